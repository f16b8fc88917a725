"""Cross-lingual retrieval over a store: the tidy table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.encoders.outputs import depth_order
from voxstrata.evaluation.bootstrap import LEVEL, RESAMPLES, Resamples, percentile_interval
from voxstrata.evaluation.cka import group_means, linear_cka
from voxstrata.evaluation.hubness import (
    MARGIN_NEIGHBOURS,
    NEIGHBOURS,
    Scores,
    chance_skew,
    csls,
    k_occurrence_skew,
    ratio_margin,
)
from voxstrata.evaluation.metrics import (
    KS,
    MEAN,
    BoolMatrix,
    Evaluation,
    MeanEvaluation,
    evaluate,
    positives_from_groups,
)
from voxstrata.retrieval.kernels import choose
from voxstrata.retrieval.kernels.base import Kernel, Packed, runs
from voxstrata.retrieval.languages import Side, StoreReader, find_sides, groups_with_partner, only_translations
from voxstrata.retrieval.pooled import pooled_cosine
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.read_ahead import read_ahead
from voxstrata.retrieval.similarities import SeqSim, harmonic

SIMILARITIES = ("seqsim_f1", "seqsim_precision", "seqsim_recall", "pooled_cosine")
SCORES = ("raw", "csls", "ratio_margin")  # made of one similarity
SKEW = f"k_occurrence_skew@{NEIGHBOURS}"
LINEAR_CKA = "linear_cka"  # in the place of the similarity, for the metrics cka and cka_debiased
BOTH = " ↔ "  # between the two languages whose directions a row averages

SCHEMA = pa.schema(
    [
        ("output", pa.string()),
        ("similarity", pa.string()),
        ("score", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("chance", pa.float64()),
        ("below_best", pa.float64()),
        ("below_best_low", pa.float64()),
        ("below_best_high", pa.float64()),
        ("queries", pa.int64()),
        ("queries_without_partner", pa.int64()),
        ("candidates", pa.int64()),
        ("candidates_max", pa.int64()),
    ]
)

Row = dict[str, str | int | float | None]
Finding = tuple[str, str, Evaluation, Evaluation]  # similarity, score, forward, backward
Means = dict[tuple[str, str, tuple[str, ...]], Evaluation]  # by similarity, score and metrics


def retrieve(
    store: StoreReader,
    outputs: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    similarities: Sequence[str] = SIMILARITIES,
    scores: Sequence[str] = SCORES,
    ks: Sequence[int] = KS,
    bootstrap: int = RESAMPLES,
    kernel: Kernel | None = None,
    progress: Callable[[int, int], None] | None = None,
    checking: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Finding an utterance's translation, for every output and ordered pair of languages.

    Utterances that are done and have a language and a group take part. The queries are the source language's
    utterances with a partner in the target language, the candidates all of the target language's; those
    of one group are translations of each other. seqsim_precision is the mean over the query's frames,
    seqsim_recall over the candidate's. `progress(done, total)` counts pairs of languages over all outputs. Where frames
    are compared all of them are first read and checked once; `checking(done, total)` counts languages over all outputs.

    Returns one row per (output, similarity, score, source, target, metric), outputs by depth, columns as in SCHEMA;
    a figure that does not exist is null. Metrics:
    - recall@k for each of `ks`, and mrr, for each of `scores`: the similarity itself, `csls`, `ratio_margin`;
    - k_occurrence_skew@10, hubness; its queries are all utterances of the source language;
    - where pooled_cosine is asked for, cka and cka_debiased, with linear_cka as their similarity: linear CKA of the
      pooled states of the groups that both languages hold, averaged over a group's recordings. The same both ways.
    Rows with equal source and target are means: "en ↔ es" of the two directions, "mean" the unweighted mean over all
    directions with queries (null where one of these is null).

    Directions whose pool holds nothing but translations (one utterance, mostly) have no figures: any answer is right.

    low, high: 95 % percentile intervals over `bootstrap` resamples of the groups (0: none), which are the same for
    every row. Queries are resampled, the pool is not. Skew and CKA have no interval: drawing a sentence twice biases
    both. below_best, in rows of "mean": the best output's value of the same similarity, score and metric minus this
    one's, and the ends of the interval of that difference, paired by resample.

    kernel: what computes SeqSim; by default the fastest of this machine. Frames are read in blocks of
    `kernel.block_frames`, of which three are in memory at a time; scores of one pair of languages are held whole.
    Raises UsageError for unknown names or impossible settings, InputError where nothing can be retrieved and, before
    any comparison, for frames that are zero, NaN or infinite; for a pooled state without direction in its turn.
    """
    outputs = depth_order(chosen("output", outputs, store.outputs))
    similarities = chosen("similarity", similarities, SIMILARITIES)
    scores = chosen("score", scores, SCORES)
    ks = list(dict.fromkeys(ks))
    if not ks or min(ks) < 1:
        raise UsageError(f"ks is {ks}; give at least one k, each at least 1")
    if bootstrap < 0:
        raise UsageError(f"bootstrap is {bootstrap}; give a number of resamples, or 0 for no intervals")
    framed = [name for name in similarities if name.startswith("seqsim")]
    if framed and not store.has_frames:
        raise UsageError(
            f"{', '.join(framed)} compare frames, and this store holds pooled states only; "
            "ask for pooled_cosine, or extract again with frames"
        )
    kernel = (kernel or choose()) if framed else None
    sides = find_sides(store.utterances, languages)
    trivial = only_translations(sides)
    groups = groups_with_partner(sides)
    resamples = Resamples(groups, bootstrap) if bootstrap else None
    if kernel is not None:
        _refuse_bad_frames(store, outputs, sides, kernel.block_frames, checking)
    pairs = len(sides) * (len(sides) - 1) // 2
    tables: list[pa.Table] = []
    means: dict[str, Means] = {}
    for n, output in enumerate(outputs):
        rows: list[Row] = []
        overall: dict[tuple[str, str, tuple[str, ...]], MeanEvaluation] = {}
        for m, (x, y, findings) in enumerate(
            _findings(store, output, sides, similarities, scores, ks, resamples, kernel), start=1
        ):
            name = f"{x.language}{BOTH}{y.language}"
            for similarity, score, forward, backward in findings:
                both, mean = (
                    MeanEvaluation(),
                    overall.setdefault((similarity, score, forward.metrics), MeanEvaluation()),
                )
                for direction in (forward, backward):
                    both.add(direction)
                    mean.add(direction)
                rows += _rows((output, similarity, score, x.language, y.language), forward)
                rows += _rows((output, similarity, score, y.language, x.language), backward)
                rows += _rows((output, similarity, score, name, name), both.result())
            if progress:
                progress(n * pairs + m, len(outputs) * pairs)
        tables.append(pa.Table.from_pylist(rows, schema=SCHEMA))
        means[output] = {key: mean.result() for key, mean in overall.items()}
    for n, output in enumerate(outputs):
        tables.insert(2 * n + 1, pa.Table.from_pylist(_mean_rows(means, output), schema=SCHEMA))
    settings = {
        "bootstrap_resamples": bootstrap,
        "bootstrap_groups": len(groups),
        "bootstrap_level": LEVEL,
        "csls_k": NEIGHBOURS,
        "ratio_margin_k": MARGIN_NEIGHBOURS,
        "kernel": kernel.name if kernel else None,
        "only_translations": trivial,
    }
    return pa.concat_tables(tables).replace_schema_metadata({"voxstrata_retrieval": json.dumps(settings)})


def _findings(
    store: StoreReader,
    output: str,
    sides: Sequence[Side],
    similarities: Sequence[str],
    scores: Sequence[str],
    ks: Sequence[int],
    resamples: Resamples | None,
    kernel: Kernel | None,
) -> Iterator[tuple[Side, Side, list[Finding]]]:
    """Per unordered pair of languages: what was found, with the first as queries and with the second."""
    pooled_of = cache(lambda i: store.pooled(output, sides[i].indices))
    for i, x in enumerate(sides[:-1]):
        for j, y in enumerate(sides[i + 1 :], start=i + 1):
            positives = positives_from_groups(x.groups, y.groups)
            findings: list[Finding] = []
            matrices: dict[str, tuple[Scores, Scores]] = {}
            try:
                if kernel is not None:
                    sim = _seqsim(store, output, x, y, kernel)
                    # Swapping the sides swaps precision and recall, so one pass serves both directions.
                    matrices["seqsim_f1"] = (sim.f1, sim.f1.T)
                    matrices["seqsim_precision"] = (sim.precision, sim.recall.T)
                    matrices["seqsim_recall"] = (sim.recall, sim.precision.T)
                if "pooled_cosine" in similarities:
                    pooled = pooled_cosine(pooled_of(i), pooled_of(j), x.ids, y.ids)
                    matrices["pooled_cosine"] = (pooled, pooled.T)
            except InputError as error:
                raise InputError(f"output {output}, {x.language} and {y.language}: {error}") from error
            for similarity in similarities:
                forward, backward = matrices.pop(similarity)
                for score in scores:
                    there = _direction(forward, score, positives, x.groups, ks, resamples)
                    back = _direction(backward, score, positives.T, y.groups, ks, resamples)
                    findings += [(similarity, score, a, b) for a, b in zip(there, back, strict=True)]
            if "pooled_cosine" in similarities:
                cka = _cka(x, y, pooled_of(i), pooled_of(j))
                findings.append((LINEAR_CKA, "raw", cka, cka))
            yield x, y, findings


def _refuse_bad_frames(
    store: StoreReader,
    outputs: Sequence[str],
    sides: Sequence[Side],
    block_frames: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Raise InputError for frames without direction now: their turn may come after hours of comparing."""
    for n, (output, side) in enumerate(product(outputs, sides), start=1):
        for run in _runs(store, side, block_frames):
            try:
                _frames(store, output, side, run).check()
            except InputError as error:
                raise InputError(f"output {output}, {side.language}: {error}") from error
        if progress:
            progress(n, len(outputs) * len(sides))


def _runs(store: StoreReader, side: Side, frames: int) -> list[tuple[int, int]]:
    """Runs of a side's utterances that are read at once."""
    return list(runs(store.length[side.indices].astype(np.int64), frames))


def _frames(store: StoreReader, output: str, side: Side, run: tuple[int, int]) -> Ragged:
    part = slice(*run)
    return Ragged(*store.ragged(output, side.indices[part]), side.ids[part])


def _seqsim(store: StoreReader, output: str, x: Side, y: Side, kernel: Kernel) -> SeqSim:
    """SeqSim of two languages, whose frames are read and packed block by block."""

    def load(block: tuple[Side, tuple[int, int]]) -> Packed:
        return kernel.pack(_frames(store, output, *block))

    x_runs, y_runs = (_runs(store, side, kernel.block_frames) for side in (x, y))
    order = [block for run in x_runs for block in ((x, run), *((y, other) for other in y_runs))]
    precision = np.empty((len(x.ids), len(y.ids)), np.float32)
    recall = np.empty_like(precision)
    packed = read_ahead(load, order)
    for i, j in x_runs:
        left = next(packed)
        for k, m in y_runs:
            precision[i:j, k:m], recall[i:j, k:m] = kernel.compare(left, next(packed))
        del left  # before the next of its size is waited for
    return SeqSim(harmonic(precision, recall), precision, recall)


def _direction(
    matrix: Scores,
    score: str,
    positives: BoolMatrix,
    groups: npt.NDArray[np.str_],
    ks: Sequence[int],
    resamples: Resamples | None,
) -> tuple[Evaluation, Evaluation]:
    """Retrieval and hubness of one direction under one score."""
    undefined, trivial = False, bool(positives.all(axis=1).any())
    if score == "csls":
        matrix = csls(matrix)
    elif score == "ratio_margin":
        try:
            matrix = ratio_margin(matrix)
        except InputError:  # neighbours of negative mean: the ratio does not exist, the figures are null
            undefined = True
    found = evaluate(matrix, positives, ks, groups, resamples)
    skew = math.nan if undefined else k_occurrence_skew(matrix)
    if undefined:
        nothing = np.full(len(found.metrics), math.nan)
        found = replace(found, values=nothing, samples=np.full_like(found.samples, math.nan))
    if trivial:  # no candidate would be wrong
        nothing = np.full(len(found.metrics), math.nan)
        found = replace(found, values=nothing, chance=nothing, samples=np.full_like(found.samples, math.nan), queries=0)
    if not found.queries:
        return found, _figures({SKEW: (math.nan, math.nan)}, 0, matrix.shape[1])
    return found, _figures({SKEW: (skew, chance_skew(*matrix.shape))}, *matrix.shape)


def _cka(x: Side, y: Side, x_states: npt.NDArray[np.float32], y_states: npt.NDArray[np.float32]) -> Evaluation:
    """Linear CKA of the groups that both languages hold, its queries and candidates."""
    (x_groups, x_means), (y_groups, y_means) = group_means(x_states, x.groups), group_means(y_states, y.groups)
    shared, i, j = np.intersect1d(x_groups, y_groups, assume_unique=True, return_indices=True)
    if len(shared) < 2:
        return _figures({"cka": (math.nan, math.nan), "cka_debiased": (math.nan, math.nan)}, 0, len(shared))
    cka = linear_cka(x_means[i], y_means[j])
    return _figures({"cka": (cka.value, cka.chance), "cka_debiased": (cka.debiased, 0.0)}, len(shared), len(shared))


def _figures(figures: dict[str, tuple[float, float]], queries: int, candidates: int) -> Evaluation:
    """Figures without resamples: value and chance by metric."""
    values, chance = np.array(list(figures.values())).T
    empty = np.empty((0, len(figures)))
    return Evaluation(tuple(figures), values, chance, empty, queries, 0, candidates, candidates)


def _rows(names: tuple[str, str, str, str, str], found: Evaluation) -> list[Row]:
    """Rows of one (output, similarity, score, source, target), one for each metric."""
    rows: list[Row] = []
    for metric, estimate in found.estimates.items():
        known = not math.isnan(estimate.value)
        row: Row = dict(zip(("output", "similarity", "score", "source", "target"), names, strict=True))
        row |= {
            "metric": metric,
            "value": _known(estimate.value),
            "low": _known(estimate.low) if known else None,
            "high": _known(estimate.high) if known else None,
            "chance": _known(estimate.chance),
            "queries": found.queries,
            "queries_without_partner": found.queries_without_partner,
            "candidates": found.candidates,
            "candidates_max": found.candidates_max,
        }
        rows.append(row)
    return rows


def _mean_rows(means: dict[str, Means], output: str) -> list[Row]:
    """The rows of "mean" of one output, each beside the best output of its similarity, score and metric."""
    rows: list[Row] = []
    for key, mean in means[output].items():
        new = _rows((output, *key[:2], MEAN, MEAN), mean)
        if SKEW not in mean.metrics and key[0] != LINEAR_CKA:
            values = np.array([others[key].values for others in means.values()])
            for i, row in enumerate(new):
                if np.isnan(values[:, i]).any():
                    continue
                best = list(means.values())[int(np.argmax(values[:, i]))][key]
                low, high = percentile_interval(best.samples[:, i : i + 1] - mean.samples[:, i : i + 1])[:, 0]
                row["below_best"] = float(best.values[i] - mean.values[i])
                row["below_best_low"], row["below_best_high"] = _known(low), _known(high)
        rows += new
    return rows


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
