"""Controlled retrieval: what is left of finding translations once sound, duration, speaker and language cannot help."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.result import STORE
from voxstrata.base.tables import known
from voxstrata.encoders.outputs import OutputChoice, depth_order, select_outputs
from voxstrata.evaluation import Evaluation, MeanEvaluation, Resamples
from voxstrata.evaluation.bootstrap import LEVEL, RESAMPLES, WEIGHTS_AT_ONCE
from voxstrata.evaluation.levels import DIRECTION, MEAN
from voxstrata.evaluation.logistic import LOGISTIC_METHOD, fit_logistic
from voxstrata.evaluation.metrics import Float64
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.retrieval.recordings import SHARED_FIRST
from voxstrata.store.several import AnyStore, open_store
from voxstrata.studies.align import table as names
from voxstrata.studies.align.inputs import SMALLEST_CELL, Participants, find_participants
from voxstrata.studies.align.pools import (
    CANDIDATES_OF_A_STRATUM,
    DURATION_STRATA,
    MISMATCH_STRATA,
    POOL_ALL,
    POOLS,
    SMALLEST_POOL,
    PoolDesign,
    PoolHits,
    beats_translation,
    design_pools,
    hits_by_pool,
)
from voxstrata.studies.align.result import Alignment
from voxstrata.studies.align.states import CENTRED, POOLED, RAW, SEQSIM, StateSimilarity, cell_centres
from voxstrata.studies.phonetics.folder import PhoneticsFolder
from voxstrata.studies.phonetics.pairs import NEIGHBOURS, non_translations, quantiles

CLOSENESS = ("like-length", "sentence", "word")


@dataclass(frozen=True)
class AlignOptions:
    """How retrieval is controlled.

    similarity: "seqsim_f1" or "pooled_cosine"; by default the first, of a store of pooled states the second.
    by: what decides how alike a pair sounds: its phonetic distance beside those of the 20 non-translations nearest in
        length ("like-length"), of all non-translations ("sentence"), or the same by the closest pair of words ("word").
        "sentence" and "word" also pick pairs by their durations, as the retriever "durations" then shows.
    quantile: a pair is unlike when at least this share of the source's non-translations sounds closer.
    closest: hard negatives of a pool, the closest-sounding non-translations (fewer where fewer are there).
    bootstrap: resamples of the groups for the intervals; 0 for none.
    kernel: what compares frames; by default the machine's (see `kernels.choose_kernel`).

    Raises UsageError for what none of these allows.
    """

    similarity: str | None = None
    by: str = "like-length"
    quantile: float = 0.5
    closest: int = 9
    bootstrap: int = RESAMPLES
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        for what, value, of in (("similarity", self.similarity, (SEQSIM, POOLED)), ("closeness", self.by, CLOSENESS)):
            if value is not None:
                chosen(what, [value], of)
        if not 0 <= self.quantile <= 1:
            raise UsageError(f"quantile is {self.quantile}; give a share of 0 to 1")
        if self.closest < 1:
            raise UsageError(f"closest is {self.closest}; give at least 1 non-translation for each pool")
        if self.bootstrap < 0:
            raise UsageError(f"bootstrap is {self.bootstrap}; give a number of resamples, or 0 for no intervals")


@dataclass(frozen=True, eq=False)
class DirectionInputs:
    """What one direction is measured on, whatever the system.

    groups (N,): of its pairs. pools: see PoolDesign. closeness (N,): how much closer the pair sounds than its source's
    non-translations do on average, in their standard deviations; NaN where these do not differ. baselines: scores
    (N, N) of the retrievers that see no states.
    """

    source: str
    target: str
    groups: npt.NDArray[np.str_]
    pools: PoolDesign
    closeness: Float64
    baselines: dict[str, Float64]


# Two languages with the sentences both hold, in the same order, and the directions from the first and back.
_LanguagePair = tuple[Participants, Participants, DirectionInputs, DirectionInputs]


@dataclass
class DirectionFigures:
    """What one system reached in one direction: figures by kind of pool, and hits in the whole pool (N,)."""

    inputs: DirectionInputs
    figures: dict[str, Evaluation]
    hits: npt.NDArray[np.bool_]


def align(
    store: AnyStore,
    phonetics: str | Path,
    outputs: OutputChoice = "all",
    languages: str | Sequence[str] | None = None,
    options: AlignOptions | None = None,
    reporter: Reporter = SILENT,
    *,
    ids: Collection[str] | None = None,
) -> Alignment:
    """Recall@1 of every output under every control, for every ordered pair of languages and their mean.

    store: its path, or opened.
    phonetics: folder that `voxstrata phonetics` wrote. Pairs of languages take part with the sentences both hold, one
    recording of each (see `find_participants`): N queries and N candidates, one of them right. outputs, languages:
    names, as a list or with commas between them; by default all. ids: where given, utterances that may take part.

    Frames are read in blocks of what the kernel takes at once. Matrices of N × N scores stand in memory.

    Raises UsageError for unknown names, and for frames asked of a store of pooled states; InputError where store and
    phonetics do not fit together, or where no pair of languages shares two sentences.
    """
    store, options = open_store(store), options or AlignOptions()
    outputs = depth_order(select_outputs(outputs, store.outputs))
    similarity = options.similarity or (SEQSIM if store.has_frames else POOLED)
    kernel = options.kernel or choose_kernel()
    if similarity == SEQSIM and not store.has_frames:
        raise UsageError(
            "seqsim_f1 compares frames, and this store holds pooled states only; "
            "ask for pooled_cosine, or extract again with frames"
        )
    folder = PhoneticsFolder(str(phonetics))
    participants, left_out = find_participants(store, folder, languages, ids)
    pairs = list(_language_pairs(participants, folder, options))
    if not pairs:
        raise InputError(
            "no two languages share two sentences with IPA: a pool of one utterance cannot be searched; "
            "add sentences, or give translations the same group"
        )
    groups = sorted({str(group) for x, *_ in pairs for group in x.groups})
    resamples = Resamples(groups, options.bootstrap) if options.bootstrap else None
    done, total = count(1), len(outputs) * len(pairs)

    def compared() -> None:
        reporter.progress(Progress("comparing", next(done), total, "language pairs × outputs"))

    reporter.progress(Progress("comparing", 0, total, "language pairs × outputs"))
    rows: list[dict[str, object]] = []
    for output in outputs:
        centres = {p.language: cell_centres(p, output) for p in participants}
        rows += _output_rows(StateSimilarity(output, similarity, kernel, centres), pairs, resamples, compared)
    inputs = [direction for _, _, *both in pairs for direction in both]
    for name in (names.PHONEMES, names.DURATIONS):
        rows += _rows(name, RAW, [_measure(d.baselines[name], d, resamples) for d in inputs], resamples)
    settings = {"similarity": similarity, "kernel": kernel.name if similarity == SEQSIM else None, **_settings(options)}
    settings["means_removed"] = {
        p.language: {"speakers": len(set(p.cells.tolist()) - {0}), "of_no_such_speaker": int((p.cells == 0).sum())}
        for p in participants
    }
    settings |= {"bootstrap_groups": len(groups), "left_out": left_out, "phonetics": folder.settings}
    settings["store"] = store.name
    about = {Alignment.key: json.dumps(settings, ensure_ascii=False), STORE: json.dumps(store.about)}
    return Alignment(pa.Table.from_pylist(rows, schema=names.ALIGN_SCHEMA).replace_schema_metadata(about))


def _settings(options: AlignOptions) -> dict[str, object]:
    strata = {"durations": DURATION_STRATA, "mismatches": MISMATCH_STRATA, "candidates": CANDIDATES_OF_A_STRATUM}
    settings = {
        "pool": SHARED_FIRST,
        "by": options.by,
        "unlike_quantile": options.quantile,
        "closest": options.closest,
        "strata": strata,
    }
    settings |= {"smallest_pool": SMALLEST_POOL, "neighbours_in_length": NEIGHBOURS, "smallest_cell": SMALLEST_CELL}
    return {**settings, "fit": LOGISTIC_METHOD, "bootstrap_resamples": options.bootstrap, "bootstrap_level": LEVEL}


def _language_pairs(
    participants: Sequence[Participants], folder: PhoneticsFolder, options: AlignOptions
) -> Iterator[_LanguagePair]:
    """Every two languages that share at least two sentences."""
    for p, q in combinations(participants, 2):
        _, i, j = np.intersect1d(p.groups, q.groups, assume_unique=True, return_indices=True)
        if len(i) < 2:
            continue
        x, y = p.take(i), q.take(j)
        distances = folder.distances(x.selection, y.selection, "word_distance" if options.by == "word" else "distance")
        phonemes = distances if options.by != "word" else folder.distances(x.selection, y.selection, "distance")
        there = _direction(x, y, distances, phonemes, options)
        yield x, y, there, _direction(y, x, distances.T, phonemes.T, options)


def _direction(
    source: Participants, target: Participants, distances: Float64, phonemes: Float64, options: AlignOptions
) -> DirectionInputs:
    """distances: (N, N), by which pairs are unlike and non-translations closest. phonemes: (N, N), of sentences."""
    lengths = target.segments if options.by == "like-length" else None
    shares = np.diag(quantiles(distances, np.eye(len(distances), dtype=bool), lengths))
    pools = design_pools(distances, shares, source.logs, target.logs, options.quantile, options.closest)
    closeness = _closeness(distances, lengths)
    baselines = {names.PHONEMES: -phonemes, names.DURATIONS: -np.abs(source.logs[:, None] - target.logs)}
    return DirectionInputs(source.language, target.language, source.groups, pools, closeness, baselines)


def _closeness(distances: Float64, lengths: npt.NDArray[np.int64] | None) -> Float64:
    """(N,): (mean distance of the non-translations - the translation's) / their standard deviation; NaN for 0 / 0."""
    found = np.full(len(distances), np.nan)
    same = np.eye(len(distances), dtype=bool)
    for i in range(len(distances)):
        others = distances[i, non_translations(distances, same, i, i, lengths)]
        if len(others) and not np.isnan(distances[i, i]) and others.std() > 0:
            found[i] = (others.mean() - distances[i, i]) / others.std()
    return found


def _measure(
    scores: npt.NDArray[np.floating], inputs: DirectionInputs, resamples: Resamples | None
) -> DirectionFigures:
    """One system in one direction; scores (N, N) of queries and candidates."""
    if np.isnan(scores).any():
        raise InputError(f"{inputs.source} to {inputs.target}: scores hold NaN; an utterance is without finite states")
    found = hits_by_pool(beats_translation(scores), inputs.pools)
    figures = {pool: _recall(found[pool], inputs.groups, resamples) for pool in POOLS}
    for pool, reference in names.REFERENCE_POOL.items():
        figures[pool] = _with_change(figures[pool], figures[reference])
    return DirectionFigures(inputs, figures, found[POOL_ALL].hits == 1)


def _recall(found: PoolHits, groups: npt.NDArray[np.str_], resamples: Resamples | None) -> Evaluation:
    """Weighted mean of the hits, with resamples of the groups; nothing where the pool holds fewer than two."""
    samples = np.empty((0, 1))
    if found.pool < 2:
        nothing, count = np.array([math.nan]), len(resamples) if resamples else 0
        return Evaluation((names.RECALL,), nothing, nothing, np.full((count, 1), math.nan), 0, 0, 0, 0)
    if resamples is not None:
        sums = resamples.means(np.stack([found.hits * found.weights, found.weights], axis=1), groups[found.queries])
        samples = sums[:, :1] / sums[:, 1:]
    value = np.array([np.average(found.hits, weights=found.weights)])
    n = len(found.queries)
    return Evaluation((names.RECALL,), value, np.array([1 / found.pool]), samples, n, 0, found.pool, found.pool)


def _with_change(found: Evaluation, reference: Evaluation) -> Evaluation:
    return replace(
        found,
        metrics=(names.RECALL, names.CHANGE),
        values=np.concatenate([found.values, found.values - reference.values]),
        chance=np.append(found.chance, math.nan),
        samples=np.concatenate([found.samples, found.samples - reference.samples], axis=1),
    )


def _output_rows(
    states: StateSimilarity, pairs: Sequence[_LanguagePair], resamples: Resamples | None, compared: Callable[[], None]
) -> list[dict[str, object]]:
    """Rows of one output, as stored and with means removed. compared: called after each pair of languages."""
    found: dict[str, list[DirectionFigures]] = {RAW: [], CENTRED: []}
    for x, y, there, back in pairs:
        for kind, directions in found.items():
            scores = states.matrix(x, y, kind)
            directions += [_measure(scores, there, resamples), _measure(scores.T, back, resamples)]
        compared()
    for raw, centred in zip(found[RAW], found[CENTRED], strict=True):
        centred.figures[POOL_ALL] = _with_change(centred.figures[POOL_ALL], raw.figures[POOL_ALL])
    return [row for kind, them in found.items() for row in _rows(states.output, kind, them, resamples)]


def _rows(
    system: str, states: str, directions: Sequence[DirectionFigures], resamples: Resamples | None
) -> list[dict[str, object]]:
    """Rows of one system: each direction, their mean, and the fit."""
    rows: list[dict[str, object]] = []
    for pool in POOLS:
        mean = MeanEvaluation()
        for d in directions:
            found = d.figures[pool]
            mean.add(found)
            rows += _estimates((system, states, pool, DIRECTION, d.inputs.source, d.inputs.target), found)
        rows += _estimates((system, states, pool, MEAN, None, None), mean.result())
    return rows + _estimates((system, states, names.FIT, MEAN, None, None), _fit(directions, resamples))


def _fit(directions: Sequence[DirectionFigures], resamples: Resamples | None) -> Evaluation:
    """Logistic regression of the hits in whole pools on closeness, an intercept for each direction.

    log_odds_per_sd: how much the log-odds of a hit grow per standard deviation of closeness. recall@1_if_unlike: fitted
    recall where every pair sounded like the mean non-translation, mean over directions. discrimination: Tjur's
    coefficient, above what the directions' different recall explains: 0 nothing, at most 1 less that.
    log_odds_per_sd_given_duration: the first, in a fit that also holds how alike the pair's durations are.
    Pairs without closeness take no part, and directions of hits or misses alone none in slopes and discrimination.
    """
    hits = np.concatenate([d.hits for d in directions])
    sound = np.concatenate([d.inputs.closeness for d in directions])
    duration = np.concatenate([np.diag(d.inputs.baselines[names.DURATIONS]) for d in directions])
    groups = np.concatenate([d.inputs.groups for d in directions])
    strata = np.repeat(np.arange(len(directions)), [len(d.hits) for d in directions])
    known = ~np.isnan(sound)
    hits, groups, strata = hits[known], groups[known], strata[known]
    alone, both = sound[known, None], np.stack([sound, duration], axis=1)[known]
    nothing = np.full(len(names.FIT_METRICS), math.nan)
    pools = [len(d.hits) for d in directions]
    if not len(hits):
        no_samples = np.empty((0, len(nothing)))
        return Evaluation(names.FIT_METRICS, nothing, nothing, no_samples, 0, 0, min(pools), max(pools))
    weightings = [np.ones((1, len(hits)))]
    if resamples:
        step = max(1, WEIGHTS_AT_ONCE // both.size)
        parts = (slice(a, a + step) for a in range(0, len(resamples), step))
        weightings += [resamples.drawn(groups, part).astype(np.float64) for part in parts]
    rows = []
    for weights in weightings:
        one, two = (fit_logistic(hits, predictors, strata, weights) for predictors in (alone, both))
        rows.append(np.stack([one.slopes[:, 0], two.slopes[:, 0], one.at_zero, one.discrimination], axis=1))
    values = np.concatenate(rows)
    return Evaluation(names.FIT_METRICS, values[0], nothing, values[1:], len(hits), 0, min(pools), max(pools))


def _estimates(key: tuple[str | None, ...], found: Evaluation) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for metric, e in found.estimates.items():
        row: dict[str, object] = dict(zip(names.ALIGN_SCHEMA.names, (*key, metric, SHARED_FIRST), strict=False))
        row |= {name: known(v) for name, v in vars(e).items()}
        row |= {"queries": found.queries, "candidates": found.candidates, "candidates_max": found.candidates_max}
        rows.append(row)
    return rows
