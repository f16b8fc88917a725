"""Recall@k and mean reciprocal rank of retrieval by score, beside chance, with bootstrap intervals by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.tables import known
from voxstrata.evaluation.bootstrap import Resamples, percentile_interval

BoolMatrix = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

KS = (1, 5, 10)
ROUNDING = 1e-9  # a random matching that comes as close to a figure equals it
_COUNTS = ("queries", "queries_without_partner", "candidates", "candidates_max")
CELLS_AT_ONCE = 1 << 22  # matrix cells taken at once where temporaries are as large as their input


@dataclass(frozen=True)
class MetricEstimate:
    """One figure: its value, the ends of its interval (NaN without resamples), and what chance would reach."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures of one direction, or the mean of several.

    metrics: their names. values, chance: (metrics,) float64, NaN where no query has a partner.
    samples: (resamples, metrics) float64, the values in each resample; (0, metrics) when none were drawn.
    queries: rows asked. queries_without_partner: rows left out for having no partner. candidates, candidates_max:
    smallest and largest pool the figures are made of; they differ only in a mean.
    null: (permutations, metrics) float64, the figures when all is matched at random; (0, 0) where that is not asked.
    """

    metrics: tuple[str, ...]
    values: Float64
    chance: Float64
    samples: Float64
    queries: int
    queries_without_partner: int
    candidates: int
    candidates_max: int
    null: Float64 = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def estimates(self) -> dict[str, MetricEstimate]:
        """The figures by the name of their metric, with 95 % percentile intervals."""
        columns = zip(self.values, *percentile_interval(self.samples), self.chance, strict=True)
        return {name: MetricEstimate(*map(float, c)) for name, c in zip(self.metrics, columns, strict=True)}

    def rows(self) -> list[dict[str, Any]]:
        """A row for each metric, as tables of figures hold it; null for what does not exist."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        rows = []
        for metric, figure in self.estimates.items():
            low, high = (None if math.isnan(figure.value) else known(end) for end in (figure.low, figure.high))
            value, chance = known(figure.value), known(figure.chance)
            rows.append({"metric": metric, "value": value, "low": low, "high": high, "chance": chance, **counts})
        for row, value, draws, ends in zip(
            rows, self.values, self.null.T, percentile_interval(self.null).T, strict=False
        ):
            if len(draws) and not math.isnan(value):
                p = (1 + np.count_nonzero(draws >= value - ROUNDING)) / (1 + len(draws))
                row |= {
                    "p": p,
                    "null_mean": float(draws.mean()),
                    "null_low": float(ends[0]),
                    "null_high": float(ends[1]),
                }
        return rows

    def emptied(self) -> Evaluation:
        """The same without figures, and nothing asked: for a pool in which no candidate would be wrong."""
        nothing = np.full(len(self.metrics), math.nan)
        samples = np.full_like(self.samples, math.nan)
        return replace(self, values=nothing, chance=nothing, samples=samples, queries=0)


def evaluate(
    scores: npt.NDArray[np.floating],
    positives: BoolMatrix,
    ks: Sequence[int] = KS,
    groups: npt.ArrayLike | None = None,
    resamples: Resamples | None = None,
) -> Evaluation:
    """Recall@k for each of `ks`, and the mean reciprocal rank: the metrics "recall@1", …, "mrr".

    scores (N, M): rows are queries, columns candidates, larger is better. positives (N, M) bool, see
    `positives_from_groups`. Rows without a positive are not asked, only counted; columns without one stay in the
    pool. Recall@k is the share of queries with a positive among the k best scores, the reciprocal rank that of the
    first positive; ties as in `best_ranks`.
    groups (N,): the sentence of each row, needed with `resamples`. Resamples draw sentences among the queries; the
    pool of candidates stays as it is, so the intervals say nothing about other pools.
    For the other direction pass both matrices transposed. Raises InputError for NaN and for shapes that differ.
    """
    ranks = best_ranks(scores, positives)
    return evaluate_ranks(
        ranks, np.count_nonzero(positives, axis=1), positives.shape[1], ks=ks, groups=groups, resamples=resamples
    )


def evaluate_ranks(
    ranks: npt.NDArray[np.number],
    partners: npt.NDArray[np.integer],
    candidates: int,
    *,
    top: int | None = None,
    ks: Sequence[int] = KS,
    groups: npt.ArrayLike | None = None,
    resamples: Resamples | None = None,
) -> Evaluation:
    """The same of ranks that are known: (queries,), from 1, of the first positive of each row that has one.

    partners: (N,) positives of every row, among so many candidates. top: ranks are known up to this one, those beyond
    are infinite; recall@k is given for no larger k, and in the place of mrr stands "mrr@top", to which they add 0.
    """
    ks = [check_k(k) for k in dict.fromkeys(ks) if top is None or k <= top]
    metrics = (*(f"recall@{k}" for k in ks), "mrr" if top is None else f"mrr@{top}")
    asked = partners > 0
    hits = np.stack([*(ranks <= k for k in ks), 1 / ranks], axis=1)
    held = partners[asked]
    chance = [*(chance_at_k(held, candidates, k) for k in ks), chance_mrr(held, candidates, top)]
    samples = np.empty((0, len(metrics)))
    if resamples is not None:
        names = np.asarray(groups)
        if names.shape != (len(partners),):
            raise InputError(f"resampling needs the group of each row, {len(partners)} in all, got {names.shape}")
        samples = resamples.means(hits, names[asked])
    return Evaluation(
        metrics=metrics,
        values=hits.mean(axis=0) if len(hits) else np.full(len(metrics), math.nan),
        chance=np.array(chance),
        samples=samples,
        queries=len(ranks),
        queries_without_partner=len(asked) - len(ranks),
        candidates=candidates,
        candidates_max=candidates,
    )


class MeanEvaluation:
    """Unweighted mean over directions, taken as they come: one direction is held at a time.

    In a resample that drew none of a direction's queries, the mean is over the other directions.
    """

    def __init__(self) -> None:
        self._directions: list[Evaluation] = []  # without their samples
        self._null: Float64 = np.zeros(())  # sum over directions
        self._sums: Float64 = np.zeros(())  # of the samples that are not NaN, and how many these are
        self._counts: npt.NDArray[np.int64] = np.zeros((), np.int64)

    def add(self, direction: Evaluation) -> None:
        """Take in one direction; of one without queries only the counts. Raises UsageError for other metrics."""
        for other in self._directions[:1]:
            if other.metrics != direction.metrics:
                raise UsageError(f"no mean over different metrics: {other.metrics} and {direction.metrics}")
        self._directions.append(replace(direction, samples=np.empty((0, len(direction.metrics)))))
        if direction.queries:
            self._sums = self._sums + np.nan_to_num(direction.samples, nan=0.0)
            self._counts = self._counts + ~np.isnan(direction.samples)
            self._null = self._null + direction.null

    def result(self) -> Evaluation:
        """The mean; its counts of queries are sums, its pools those of directions with queries."""
        if not self._directions:
            raise UsageError("a mean needs at least one direction")
        asked = [direction for direction in self._directions if direction.queries]
        pools = asked or self._directions
        samples = np.full(self._sums.shape, math.nan)
        np.divide(self._sums, self._counts, out=samples, where=self._counts > 0)
        nothing = np.full(len(pools[0].metrics), math.nan)
        return Evaluation(
            metrics=pools[0].metrics,
            values=np.mean([d.values for d in asked], axis=0) if asked else nothing,
            chance=np.mean([d.chance for d in asked], axis=0) if asked else nothing,
            samples=samples if asked else pools[0].samples,
            queries=sum(d.queries for d in self._directions),
            queries_without_partner=sum(d.queries_without_partner for d in self._directions),
            candidates=min(d.candidates for d in pools),
            candidates_max=max(d.candidates_max for d in pools),
            null=self._null / len(asked) if asked else pools[0].null,
        )


def positives_from_groups(groups_x: npt.ArrayLike, groups_y: npt.ArrayLike) -> BoolMatrix:
    """Which columns translate which rows: (N, M) bool, true where the groups are equal.

    groups_x (N,), groups_y (M,): strings or integers. A group may occur several times on either side
    (several recordings of one sentence). Raises InputError on a missing group, which would equal every other.
    """
    x, y = np.asarray(groups_x), np.asarray(groups_y)
    for groups in (x, y):
        if groups.dtype.kind not in "iuU":
            raise InputError(
                f"groups must be all strings or all integers, got {groups.dtype}; leave out utterances without a group"
            )
    if (x.dtype.kind == "U") != (y.dtype.kind == "U"):
        raise InputError("groups of one side are strings, of the other integers: they can never be equal")
    _, codes = np.unique(np.concatenate([x, y]), return_inverse=True)  # numbers compare far faster than strings
    positives: BoolMatrix = codes[: len(x), None] == codes[len(x) :]
    return positives


def best_ranks(scores: npt.NDArray[np.floating], positives: BoolMatrix) -> npt.NDArray[np.int64]:
    """Rank, from 1, of the best positive of every row that has one: (queries,) int64.

    scores, positives: (N, M), rows are queries. Non-positives with the same score rank ahead (pessimistic):
    constant scores earn nothing. Other positives of the row do not push the best one down.
    """
    if scores.ndim != 2 or scores.shape != positives.shape:
        raise InputError(f"scores {scores.shape} and positives {positives.shape} must be matrices of one shape")
    ranks = np.zeros(len(scores), np.int64)
    step = max(1, CELLS_AT_ONCE // max(1, scores.shape[1]))
    for a in range(0, len(scores), step):
        rows, partner = scores[a : a + step], positives[a : a + step]
        if np.isnan(rows).any():
            raise InputError("scores hold NaN and cannot be ranked; find the utterance that has no finite states")
        best = np.max(rows, axis=1, where=partner, initial=-np.inf, keepdims=True)
        ranks[a : a + step] = 1 + np.count_nonzero(~partner & (rows >= best), axis=1)
    return ranks[positives.any(axis=1)]


def chance_at_k(positives_per_query: npt.NDArray[np.integer], candidates: int, k: int) -> float:
    """Expected recall@k of a random order: mean over queries of 1 - C(M - p, k) / C(M, k).

    p: positives of a query among the M candidates. Returns NaN without queries, 1 where k reaches M.
    """
    check_k(k)
    if len(positives_per_query) == 0:
        return math.nan
    k = min(k, candidates)
    numbers, queries = np.unique(positives_per_query, return_counts=True)
    drawn = np.arange(k)
    # C(M - p, k) / C(M, k) as the chance of k draws without a positive; a factor is 0 once negatives run out.
    miss = np.prod((candidates - numbers[:, None] - drawn) / (candidates - drawn), axis=1)
    return float(np.average(1 - miss, weights=queries))


def chance_mrr(positives_per_query: npt.NDArray[np.integer], candidates: int, top: int | None = None) -> float:
    """Expected reciprocal rank of the first positive in a random order, mean over queries; NaN without queries.

    For p positives among M candidates it is p / (M - p + 1) · (H_M - H_{p-1}), H_n = 1 + 1/2 + … + 1/n. The first
    positive stands at rank r in C(M - r, p - 1) of the C(M, p) arrangements, and f(M, p) = sum over r of
    C(M - r, p - 1) / r equals C(M, p - 1) · (H_M - H_{p-1}): for p = 1 that is H_M, and from M - 1 to M both sides
    grow by f(M - 1, p - 1), by Pascal's rule.
    top: ranks beyond it count 0. Then the sum over r up to `top` of P(rank r) / r, P(rank r) being the growth of the
    chance of a positive among the first r.
    """
    if len(positives_per_query) == 0:
        return math.nan
    numbers, queries = np.unique(positives_per_query, return_counts=True)
    if top is not None:
        drawn = np.arange(min(top, candidates))
        miss = np.cumprod((candidates - numbers[:, None] - drawn) / (candidates - drawn), axis=1)
        first = -np.diff(miss, axis=1, prepend=1.0)
        return float(np.average(first @ (1 / (drawn + 1)), weights=queries))
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, candidates + 1))])
    expected = numbers / (candidates - numbers + 1) * (harmonic[candidates] - harmonic[numbers - 1])
    return float(np.average(expected, weights=queries))


def chance_none_drawn(
    wrong: npt.NDArray[np.int64], there: npt.NDArray[np.int64], taken: npt.NDArray[np.int64]
) -> Float64:
    """Chance that draws without replacement, `taken` of the `there` candidates of each stratum, hold no `wrong` one.

    All (queries, strata), or shapes that broadcast to it; returns (queries,).
    """
    most = int(np.max(there, initial=0))
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
    right = there - wrong
    possible = taken <= right
    room = np.where(possible, right - taken, 0)
    # C(right, taken) / C(there, taken)
    log = log_factorial[right] - log_factorial[room] + log_factorial[there - taken] - log_factorial[there]
    return np.asarray(np.where(possible, np.exp(log), 0.0).prod(axis=-1))


def check_k(k: int) -> int:
    """`k`, or UsageError where no k best can be taken."""
    if k < 1:
        raise UsageError(f"k is {k}; the k best need k of at least 1")
    return k
