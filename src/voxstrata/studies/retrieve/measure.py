"""Cross-lingual retrieval over a store: the tidy table."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.result import STORE
from voxstrata.base.tables import known
from voxstrata.encoders.outputs import OutputChoice, depth_order, select_outputs
from voxstrata.evaluation import hubness
from voxstrata.evaluation.bootstrap import Resamples, percentile_interval
from voxstrata.evaluation.levels import DIRECTION, MEAN, PAIR
from voxstrata.evaluation.metrics import (
    BoolMatrix,
    Evaluation,
    MeanEvaluation,
    best_ranks,
    evaluate_ranks,
    positives_from_groups,
)
from voxstrata.retrieval.compare import Matrices, compare
from voxstrata.retrieval.kernels import choose_kernel
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.retrieval.kernels.monotone import Monotone
from voxstrata.retrieval.languages import equal_sentences, find_sides, groups_with_partner, only_translations
from voxstrata.retrieval.pooled import pooled_cosine
from voxstrata.retrieval.recordings import SHARED_FIRST, first_recordings, shared_sentences
from voxstrata.retrieval.selection import Selection, refuse_bad_frames
from voxstrata.store import EmbeddingStore
from voxstrata.store.several import AnyStore, open_store
from voxstrata.studies.retrieve.negatives import HardNegatives, SmallPools
from voxstrata.studies.retrieve.options import RetrievalOptions
from voxstrata.studies.retrieve.ranks import all_ranks, rank_table
from voxstrata.studies.retrieve.result import RETRIEVAL_SCHEMA, Retrieval
from voxstrata.studies.retrieve.shared import agreement, cka_of, shared_means, unsampled
from voxstrata.studies.retrieve.text import LINEAR_CKA, SETTINGS_KEY, SKEW

ALL_SIMILARITIES = ("seqsim_f1", "seqsim_precision", "seqsim_recall", "pooled_cosine")
MONOTONE = "monotone"  # asked for by name

BELOW_BEST = ("below_best", "below_best_low", "below_best_high")
_Row = dict[str, Any]
_Groups = npt.NDArray[np.str_]
_PooledStates = Callable[[], npt.NDArray[np.float32]]
_Finding = tuple[str, str, Evaluation, Evaluation]  # similarity, score, forward, backward
MeanKey = tuple[str, str, tuple[str, ...]]  # similarity, score and metrics


_DEFAULT = RetrievalOptions()


def retrieve(
    store: AnyStore,
    outputs: OutputChoice = "all",
    languages: str | Sequence[str] | None = None,
    similarities: str | Sequence[str] | None = None,
    options: RetrievalOptions = _DEFAULT,
    reporter: Reporter = SILENT,
) -> Retrieval:
    """Finding an utterance's translation, for every output and ordered pair of languages.

    Utterances that are done and have a language and a group take part. The queries are the source language's
    utterances with a partner in the target language, the candidates all of the target language's; those
    of one group are translations of each other. `options.pool` says which of their recordings those are.

    store: its path, or opened. outputs, languages, similarities: a list, or names with commas; by default all.
    similarities: of ALL_SIMILARITIES, and "monotone", the order-aware score (see `Monotone`). seqsim_precision is the
    mean over the query's frames, seqsim_recall over the candidate's. Where pooled_cosine is asked for, mutual nearest
    neighbours and CKA are measured, too.

    Where frames are compared all of them are first read and checked once. Frames are read in blocks of
    `kernel.block_frames`, of which three are in memory at a time; scores of one pair of languages are held whole.
    Raises UsageError for unknown names or impossible settings, InputError where nothing can be retrieved and, before
    any comparison, for frames that are zero, NaN or infinite; for a pooled state without direction in its turn.
    """
    store = open_store(store)
    prepared = prepare_retrieval(store, outputs, languages, similarities, options, reporter)
    for note in equal_sentences(prepared.sides):
        reporter.warn(note)
    found = measure_retrieval(prepared, options, reporter)
    # what the figures come from travels with them
    about = {SETTINGS_KEY: json.dumps(found.settings), STORE: json.dumps(store.about)}
    return Retrieval(found.table.replace_schema_metadata(about), found.ranks)


@dataclass(frozen=True, eq=False)
class PreparedRetrieval:
    """What is to be measured, once all is known to be of use.

    sides: the utterances that take part, by language. trivial: directions whose pool holds translations alone. groups:
    of all queries. kernel: of SeqSim, None where that is not asked for. hard: chooses hard negatives, if any are asked.
    """

    store: EmbeddingStore
    outputs: list[str]
    similarities: list[str]
    sides: list[Selection]
    trivial: list[str]
    groups: list[str]
    kernel: Kernel | None
    hard: HardNegatives | None


@dataclass(frozen=True, eq=False)
class MeasuredRetrieval:
    """Figures of all outputs. table, ranks: as in Retrieval. means: by output, over all directions, with their samples.

    settings: what decided them.
    """

    table: pa.Table
    ranks: pa.Table
    means: dict[str, dict[MeanKey, Evaluation]]
    settings: dict[str, Any]


def prepare_retrieval(
    store: EmbeddingStore,
    outputs: OutputChoice,
    languages: str | Sequence[str] | None,
    similarities: str | Sequence[str] | None,
    options: RetrievalOptions,
    reporter: Reporter,
    ids: Collection[str] | None = None,
) -> PreparedRetrieval:
    """Raises what `retrieve` does before any comparison. ids: where given, utterances that may take part."""
    outputs = depth_order(select_outputs(outputs, store.outputs))
    names = possible_similarities(store, similarities)
    sides = find_sides(store, languages, ids)
    if options.pool == SHARED_FIRST:
        sides = [first_recordings(side) for side in sides]
    trivial, groups = only_translations(sides, options.pool), groups_with_partner(sides)
    hard = None
    if options.negatives:
        hard = HardNegatives(store, sides, options.negatives, options.pool_size, options.phonetics)
    kernel = None
    if any(name.startswith("seqsim") for name in names):
        kernel = options.kernel or choose_kernel()
    if any(_framed(name) for name in names):
        refuse_bad_frames(sides, outputs, (kernel or Monotone()).block_frames, reporter)
    return PreparedRetrieval(store, outputs, names, sides, trivial, groups, kernel, hard)


def measure_retrieval(prepared: PreparedRetrieval, options: RetrievalOptions, reporter: Reporter) -> MeasuredRetrieval:
    """The figures of what is prepared. Raises InputError for a pooled state without direction."""
    outputs, sides, kernel = prepared.outputs, prepared.sides, prepared.kernel
    resamples = options.resamples(prepared.groups)
    pairs = math.comb(len(sides), 2)
    tables: list[pa.Table] = []
    ranks: list[pa.Table] = []
    means: dict[str, dict[MeanKey, Evaluation]] = {}
    reporter.progress(Progress("retrieving", 0, len(outputs) * pairs, "pairs of languages × outputs"))
    for n, output in enumerate(outputs):
        rows: list[_Row] = []
        overall: dict[MeanKey, MeanEvaluation] = {}
        states = _States(sides, output, kernel, options.pool, prepared.hard)
        for m, (x, y) in enumerate(combinations(range(len(sides)), 2), start=1):
            for finding in states.findings(x, y, prepared.similarities, options, resamples):
                rows += _pair_rows(output, sides[x].language, sides[y].language, finding, overall)
            done, total = n * pairs + m, len(outputs) * pairs
            reporter.progress(Progress("retrieving", done, total, "pairs of languages × outputs"))
        tables.append(pa.Table.from_pylist(rows, schema=RETRIEVAL_SCHEMA))
        ranks += states.ranks
        means[output] = {key: mean.result() for key, mean in overall.items()}
    reporter.step("means and intervals over all pairs of languages")
    for n, output in enumerate(outputs):
        tables.insert(2 * n + 1, pa.Table.from_pylist(_mean_rows(means, output), schema=RETRIEVAL_SCHEMA))
    settings = {**options.about(prepared.groups), "csls_k": hubness.HUB_NEIGHBOURS}
    settings |= {
        "ratio_margin_k": hubness.MARGIN_NEIGHBOURS,
        "kernel": kernel.name if kernel else None,
        "only_translations": prepared.trivial,
        "mutual_knn_k": options.neighbours,
        "mutual_knn_permutations": options.permutations,
    }
    settings |= {"negatives": prepared.hard.about()} if prepared.hard else {}
    table = pa.concat_tables(tables)
    table = table.set_column(0, "store", pa.repeat(prepared.store.name, len(table)))
    table = table.set_column(table.column_names.index("pool"), "pool", pa.repeat(options.pool, len(table)))
    return MeasuredRetrieval(table, all_ranks(ranks), means, settings)


def _framed(similarity: str) -> bool:
    return similarity.startswith("seqsim") or similarity == MONOTONE


def possible_similarities(store: EmbeddingStore, asked: str | Sequence[str] | None) -> list[str]:
    """The similarities asked for; by default those that the store has the states for."""
    names = list(ALL_SIMILARITIES) if asked is None else chosen("similarity", asked, (*ALL_SIMILARITIES, MONOTONE))
    if asked is None and not store.has_frames:
        return [name for name in names if not _framed(name)]
    framed = ", ".join(filter(_framed, names))
    if framed and not store.has_frames:
        raise UsageError(
            f"{framed} compare frames, and this store holds pooled states only; "
            "ask for pooled_cosine, or extract again with frames"
        )
    return names


class _States:
    """Similarities of one output between languages. kernel: of SeqSim, None where that is not asked for.

    ranks: of the queries of all directions that were asked for so far, as RANKS_SCHEMA.
    """

    def __init__(
        self, sides: Sequence[Selection], output: str, kernel: Kernel | None, pool: str, hard: HardNegatives | None
    ) -> None:
        self._sides, self._output, self._kernel, self._pool, self._hard = sides, output, kernel, pool, hard
        self.ranks: list[pa.Table] = []
        self._pooled = cache(lambda i: sides[i].store.pooled(output, sides[i].indices))

    def findings(
        self, i: int, j: int, similarities: Sequence[str], options: RetrievalOptions, resamples: Resamples | None
    ) -> Iterator[_Finding]:
        """What was found between two languages, with the first as queries and with the second."""
        x, y, x_pooled, y_pooled = self._two(i, j)
        positives = positives_from_groups(x.groups, y.groups)
        pooled = "pooled_cosine" in similarities
        matrices: dict[str, tuple[hubness.Scores, hubness.Scores]] = {}
        if self._kernel is not None and len(x):
            sim = self._compared(x, y, self._kernel).seqsim()
            # Swapping the sides swaps precision and recall, so one pass serves both directions.
            matrices["seqsim_f1"] = (sim.f1, sim.f1.T)
            matrices["seqsim_precision"] = (sim.precision, sim.recall.T)
            matrices["seqsim_recall"] = (sim.recall, sim.precision.T)
        if MONOTONE in similarities and len(x):
            scores = self._compared(x, y, Monotone()).precision
            matrices[MONOTONE] = (scores, scores.T)
        if pooled:
            try:
                cosine = pooled_cosine(x_pooled(), y_pooled(), x.ids, y.ids)
            except InputError as error:
                raise InputError(f"output {self._output}, {x.language} and {y.language}: {error}") from error
            matrices["pooled_cosine"] = (cosine, cosine.T)
        nothing = np.empty((0, 0), np.float32)  # no sentence is shared
        small: tuple[list[SmallPools], list[SmallPools]] = self._hard.pools(x, y) if self._hard and len(x) else ([], [])
        for similarity in similarities:
            forward, backward = matrices.pop(similarity, (nothing, nothing))
            for score in dict.fromkeys(options.scores):
                there = self._direction((similarity, score), forward, x, y, positives, options.ks, resamples, small[0])
                back = self._direction(
                    (similarity, score), backward, y, x, positives.T, options.ks, resamples, small[1]
                )
                yield from ((similarity, score, a, b) for a, b in zip(there, back, strict=True))
        if pooled:
            shared = shared_means(x, y, x_pooled(), y_pooled())
            near = agreement(
                *shared, options.neighbours, options.permutations, resamples, seed=i * len(self._sides) + j
            )
            yield "pooled_cosine", "raw", near, near
            cka = cka_of(*shared[1:])
            yield LINEAR_CKA, "raw", cka, cka

    def _direction(
        self,
        names: tuple[str, str],
        matrix: hubness.Scores,
        x: Selection,
        y: Selection,
        positives: BoolMatrix,
        ks: Sequence[int],
        resamples: Resamples | None,
        small: Sequence[SmallPools],
    ) -> list[Evaluation]:
        """Retrieval and hubness from x to y, and retrieval in small pools. names: similarity, score."""
        undefined = False
        if not matrix.size:
            undefined = True
        elif names[1] == "csls":
            matrix = hubness.csls(matrix)
        elif names[1] == "ratio_margin":
            try:
                matrix = hubness.ratio_margin(matrix)
            except InputError:  # neighbours of negative mean: the ratio does not exist, the figures are null
                undefined = True
        ranks, partners = best_ranks(matrix, positives), np.count_nonzero(positives, axis=1)
        found = evaluate_ranks(ranks, partners, positives.shape[1], ks=ks, groups=x.groups, resamples=resamples)
        found = _unless(undefined, found)
        if positives.all(axis=1).any():  # any answer is right
            found = found.emptied()
        elif not undefined:
            whose = (self._output, *names, x.language, y.language)
            self.ranks.append(rank_table(whose, x.ids, x.groups, positives, ranks))
        skew = math.nan if undefined or not found.queries else hubness.k_occurrence_skew(matrix)
        chance = hubness.chance_skew(*matrix.shape) if found.queries else math.nan
        hub = unsampled({SKEW: (skew, chance)}, matrix.shape[0] if found.queries else 0, matrix.shape[1])
        return [found, hub, *(_unless(undefined, p.evaluate(matrix, positives, x.groups, resamples)) for p in small)]

    def _compared(self, x: Selection, y: Selection, kernel: Kernel) -> Matrices:
        sink = Matrices(len(x), len(y))
        compare(x.frames(self._output), y.frames(self._output), kernel, sink)
        return sink

    def _two(self, i: int, j: int) -> tuple[Selection, Selection, _PooledStates, _PooledStates]:
        """What two languages ask of each other, and their pooled states, read when they are called for."""
        x, y = self._sides[i], self._sides[j]
        if self._pool != SHARED_FIRST:
            return x, y, lambda: self._pooled(i), lambda: self._pooled(j)
        a, b = shared_sentences(x, y)
        return x.part(a), y.part(b), lambda: self._pooled(i)[a], lambda: self._pooled(j)[b]


def _pair_rows(output: str, x: str, y: str, finding: _Finding, overall: dict[MeanKey, MeanEvaluation]) -> list[_Row]:
    """Rows of both directions and of their mean; both directions are also added to the mean over all."""
    similarity, score, forward, backward = finding
    both, mean = MeanEvaluation(), overall.setdefault((similarity, score, forward.metrics), MeanEvaluation())
    rows = []
    for source, target, direction in ((x, y, forward), (y, x, backward)):
        both.add(direction)
        mean.add(direction)
        rows += _rows((output, similarity, score, DIRECTION, source, target), direction)
    return rows + _rows((output, similarity, score, PAIR, x, y), both.result())


def _unless(undefined: bool, found: Evaluation) -> Evaluation:
    """What was found, without figures where the scores do not exist."""
    empty = found.emptied()
    return replace(found, values=empty.values, samples=empty.samples) if undefined else found


def _rows(names: tuple[str | None, ...], found: Evaluation) -> list[_Row]:
    """Rows of one (output, similarity, score, level, source, target), one for each metric."""
    named = dict(zip(("output", "similarity", "score", "level", "source", "target"), names, strict=True))
    return [{**named, **row} for row in found.rows()]


def _mean_rows(means: dict[str, dict[MeanKey, Evaluation]], output: str) -> list[_Row]:
    """The rows of level "mean" of one output, each beside the best output of its similarity, score and metric."""
    rows: list[_Row] = []
    for key, mean in means[output].items():
        new = _rows((output, *key[:2], MEAN, None, None), mean)
        for i, row in enumerate(new if SKEW not in mean.metrics and key[0] != LINEAR_CKA else []):
            values = np.array([others[key].values[i] for others in means.values()])
            if not np.isnan(values).any():
                best = list(means.values())[int(np.argmax(values))][key]
                row |= zip(BELOW_BEST, below(best, mean, i), strict=True)
        rows += new
    return rows


def below(best: Evaluation, this: Evaluation, i: int) -> tuple[float, float | None, float | None]:
    """How far the metric numbered i is below another's, and the ends of the interval, paired by resample."""
    low, high = percentile_interval(best.samples[:, i : i + 1] - this.samples[:, i : i + 1])[:, 0]
    return float(best.values[i] - this.values[i]), known(low), known(high)
