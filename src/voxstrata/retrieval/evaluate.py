"""Recall@k of retrieval by score, with what chance would reach on the same pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxstrata.errors import InputError, UsageError

BoolMatrix = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recall:
    """Recall@k of one direction, or the mean of several.

    value, chance: fractions in [0, 1], NaN where no query has a partner. queries: rows that have a partner.
    queries_without_partner: rows left out for having none. candidates, candidates_max: smallest and largest
    pool the figure is made of; they differ only in a mean.
    """

    k: int
    value: float
    chance: float
    queries: int
    queries_without_partner: int
    candidates: int
    candidates_max: int


@dataclass(frozen=True)
class PairRecall:
    """Recall@k between two sets: x queries y (forward), y queries x (backward)."""

    forward: Recall
    backward: Recall

    @property
    def mean(self) -> Recall:
        """Unweighted mean of the two directions."""
        return mean_recall([self.forward, self.backward])


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
    positives: BoolMatrix = x[:, None] == y[None, :]
    return positives


def best_ranks(scores: npt.NDArray[np.floating], positives: BoolMatrix) -> npt.NDArray[np.int64]:
    """Rank, from 1, of the best positive of every row that has one: (queries,) int64.

    scores, positives: (N, M), rows are queries. Non-positives with the same score rank ahead (pessimistic):
    constant scores earn nothing. Other positives of the row do not push the best one down.
    """
    if scores.ndim != 2 or scores.shape != positives.shape:
        raise InputError(f"scores {scores.shape} and positives {positives.shape} must be matrices of one shape")
    if np.isnan(scores).any():
        raise InputError("scores hold NaN and cannot be ranked; find the utterance that has no finite states")
    asked = positives.any(axis=1)
    scores, positives = scores[asked], positives[asked]
    best = np.max(scores, axis=1, where=positives, initial=-np.inf, keepdims=True)
    ranks: npt.NDArray[np.int64] = 1 + np.count_nonzero(~positives & (scores >= best), axis=1)
    return ranks


def chance_at_k(positives_per_query: npt.NDArray[np.integer], candidates: int, k: int) -> float:
    """Expected recall@k of a random order: mean over queries of 1 - C(M - p, k) / C(M, k).

    p: positives of a query among the M candidates. Returns NaN without queries, 1 where k reaches M.
    """
    _check_k(k)
    if len(positives_per_query) == 0:
        return math.nan
    k = min(k, candidates)
    drawn = np.arange(k)
    negatives = candidates - positives_per_query[:, None] - drawn
    # C(M - p, k) / C(M, k) as the chance of k draws without a positive; a factor is 0 once negatives run out.
    miss = np.prod(negatives / (candidates - drawn), axis=1)
    return float(np.mean(1 - miss))


def recall_at_k(scores: npt.NDArray[np.floating], positives: BoolMatrix, k: int) -> Recall:
    """Share of queries with a positive among the k best scores, ties as in `best_ranks`.

    scores (N, M): rows are queries, columns candidates. positives (N, M) bool, see `positives_from_groups`.
    Rows without a positive are not asked, only counted; columns without one stay in the pool.
    """
    return _recall(best_ranks(scores, positives), positives, k)


def evaluate_pair(
    forward: npt.NDArray[np.floating],
    backward: npt.NDArray[np.floating],
    positives: BoolMatrix,
    ks: Sequence[int],
) -> list[PairRecall]:
    """Recall@k for each of `ks`, in both directions.

    forward (N, M): scores with x as queries. backward (M, N): scores with y as queries, which need not be the
    transpose: precision and recall are not symmetric. positives (N, M) bool.
    """
    ranks, ranks_back = best_ranks(forward, positives), best_ranks(backward, positives.T)
    return [PairRecall(_recall(ranks, positives, k), _recall(ranks_back, positives.T, k)) for k in ks]


def mean_recall(recalls: Sequence[Recall]) -> Recall:
    """Unweighted mean of value and chance over the directions that have queries; counts are summed."""
    if len({recall.k for recall in recalls}) != 1:
        raise UsageError("a mean needs at least one recall, and all at the same k")
    asked = [recall for recall in recalls if recall.queries]
    return Recall(
        k=recalls[0].k,
        value=math.fsum(recall.value for recall in asked) / len(asked) if asked else math.nan,
        chance=math.fsum(recall.chance for recall in asked) / len(asked) if asked else math.nan,
        queries=sum(recall.queries for recall in recalls),
        queries_without_partner=sum(recall.queries_without_partner for recall in recalls),
        candidates=min(recall.candidates for recall in asked or recalls),
        candidates_max=max(recall.candidates_max for recall in asked or recalls),
    )


def _recall(ranks: npt.NDArray[np.int64], positives: BoolMatrix, k: int) -> Recall:
    _check_k(k)
    rows, candidates = positives.shape
    counts = np.count_nonzero(positives, axis=1)
    return Recall(
        k=k,
        value=float(np.mean(ranks <= k)) if len(ranks) else math.nan,
        chance=chance_at_k(counts[counts > 0], candidates, k),
        queries=len(ranks),
        queries_without_partner=rows - len(ranks),
        candidates=candidates,
        candidates_max=candidates,
    )


def _check_k(k: int) -> None:
    if k < 1:
        raise UsageError(f"k is {k}; recall@k needs k of at least 1")
