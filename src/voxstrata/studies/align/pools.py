"""Which queries search which pools, and the chance of a hit where the pool is a random draw.

One direction has N queries and N candidates; candidate i is the translation of query i.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxstrata.evaluation.metrics import BoolMatrix, Float64, chance_none_drawn

_Int64 = npt.NDArray[np.int64]

DURATION_STRATA, MISMATCH_STRATA = 5, 3  # of pairs: by duration, and in these by how unlike the two durations are
CANDIDATES_OF_A_STRATUM = 5  # about so many candidates of like duration
SMALLEST_POOL = 10  # unlike pairs below which a direction has no figure for them

POOL_ALL, POOL_UNLIKE, POOL_MATCHED, POOL_CLOSEST, POOL_RANDOM = "all", "unlike", "matched", "closest", "random"
POOLS = (POOL_ALL, POOL_MATCHED, POOL_UNLIKE, POOL_RANDOM, POOL_CLOSEST)


@dataclass(frozen=True, eq=False)
class PoolDesign:
    """What decides the pools of one direction; the same for every system.

    unlike: (N,) bool, pairs that sound no closer than non-translations. closest: (N, n) int64, the hard negatives of
    each query: the non-translations that sound closest to it, -1 where it has fewer of known distance. pair_strata,
    candidate_strata: (N,) int64, 0, 1, …: pairs of like duration and mismatch of durations, candidates of like
    duration.
    """

    unlike: npt.NDArray[np.bool_]
    closest: _Int64
    pair_strata: _Int64
    candidate_strata: _Int64


@dataclass(frozen=True, eq=False)
class PoolHits:
    """What queries found in one kind of pool.

    hits: (queries,) float64, 0 or 1, or the chance of a hit over all draws of the pool. weights: (queries,) float64.
    queries: (queries,) int64, which ones. pool: candidates of each.
    """

    hits: Float64
    weights: Float64
    queries: _Int64
    pool: int


_NO_POOL = PoolHits(np.empty(0), np.empty(0), np.empty(0, np.int64), 0)


def design_pools(
    distances: npt.NDArray[np.floating],
    shares_closer: Float64,
    query_logs: Float64,
    candidate_logs: Float64,
    quantile: float,
    closest: int,
) -> PoolDesign:
    """Design of one direction.

    distances: (N, N) phonetic. shares_closer: (N,) share of non-translations that sound closer than the translation,
    NaN where unknown (never unlike). query_logs, candidate_logs: (N,) log duration less its language's mean. quantile:
    the share from which on a pair is unlike. closest: hard negatives of a pool, at most N - 1. Ties: the earlier
    candidate.
    """
    size = len(distances)
    others = np.where(np.isnan(distances), np.inf, distances)
    order = np.argsort(others, axis=1, kind="stable")
    order = order[order != np.arange(size)[:, None]].reshape(size, -1)  # without the translation
    known = np.where(np.isfinite(np.take_along_axis(others, order, axis=1)), order, -1)
    by_duration = _strata(query_logs + candidate_logs, DURATION_STRATA)
    pair_strata = np.zeros(size, np.int64)
    for stratum in range(DURATION_STRATA):
        held = by_duration == stratum
        mismatch = np.abs(query_logs - candidate_logs)[held]
        pair_strata[held] = stratum * MISMATCH_STRATA + _strata(mismatch, MISMATCH_STRATA)
    unlike = np.nan_to_num(shares_closer, nan=-1.0) >= quantile
    candidate_strata = _strata(candidate_logs, max(1, size // CANDIDATES_OF_A_STRATUM))
    return PoolDesign(unlike, known[:, :closest], pair_strata, candidate_strata)


def _strata(values: Float64, count: int) -> _Int64:
    """`count` strata of equal size, from low to high."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return np.asarray(rank * count // max(1, len(rank)))


def beats_translation(scores: npt.NDArray[np.floating]) -> BoolMatrix:
    """Candidates at least as good as the translation: (N, N) bool, false on the diagonal; ties count as wrong."""
    wrong: BoolMatrix = scores >= np.diag(scores)[:, None]
    np.fill_diagonal(wrong, False)
    return wrong


def hits_by_pool(wrong: BoolMatrix, design: PoolDesign) -> dict[str, PoolHits]:
    """Hits at rank 1 in every kind of pool. wrong: (N, N), see `beats_translation`.

    all: the whole pool.
    unlike: unlike pairs alone, as queries and as pool. matched: what pools of as many pairs reach, drawn at random from
    all pairs with as many of each stratum.
    closest: the translation and its hard negatives, the closest-sounding non-translations. random: the translation and
    as many non-translations, drawn at random with as many of each stratum. Queries with too few of known distance take
    no part in either.
    Draws are not made: the mean over all of them is exact. unlike and matched have an empty pool where fewer than
    SMALLEST_POOL pairs are unlike, closest and random where no query takes part.
    """
    n = len(wrong)
    found = dict.fromkeys(POOLS, _NO_POOL) | {POOL_ALL: PoolHits(_hits(wrong), np.ones(n), np.arange(n), n)}
    unlike, queries = np.flatnonzero(design.unlike), np.flatnonzero((design.closest >= 0).all(axis=1))
    if len(unlike) >= SMALLEST_POOL:
        among = wrong[np.ix_(unlike, unlike)]
        found[POOL_UNLIKE] = PoolHits(_hits(among), np.ones(len(unlike)), unlike, len(unlike))
        found[POOL_MATCHED] = _matched(wrong, design)
    if len(queries):
        closest, ones = design.closest[queries], np.ones(len(queries))
        hard = np.take_along_axis(wrong[queries], closest, axis=1)
        strata = _members(design.candidate_strata)
        taken = strata[closest].sum(axis=1)
        drawn = chance_none_drawn(_counted(wrong[queries], strata), strata.sum(axis=0) - strata[queries], taken)
        found[POOL_CLOSEST] = PoolHits(_hits(hard), ones, queries, hard.shape[1] + 1)
        found[POOL_RANDOM] = PoolHits(drawn, ones, queries, hard.shape[1] + 1)
    return found


def _members(strata: _Int64) -> _Int64:
    """(N, strata) int64, 1 where a row is in a stratum."""
    return np.eye(int(strata.max()) + 1, dtype=np.int64)[strata]


def _counted(wrong: BoolMatrix, strata: _Int64) -> _Int64:
    """How many are wrong in each stratum, (queries, strata); by BLAS, exact up to 2^24 candidates."""
    return np.asarray(np.rint(wrong.astype(np.float32) @ strata.astype(np.float32)).astype(np.int64))


def _hits(wrong: BoolMatrix) -> Float64:
    return np.asarray(~np.any(wrong, axis=1), np.float64)


def _matched(wrong: BoolMatrix, design: PoolDesign) -> PoolHits:
    strata = _members(design.pair_strata)
    held, taken = strata.sum(axis=0), strata[design.unlike].sum(axis=0)
    queries = np.flatnonzero(taken[design.pair_strata] > 0)
    own = strata[queries]
    # Given that the query is drawn, the rest of its pool is: taken - own of the held - own other pairs of each stratum.
    hits = chance_none_drawn(_counted(wrong[queries], strata), held - own, taken - own)
    weights = (taken / np.maximum(held, 1))[design.pair_strata[queries]]  # the chance that the query is drawn
    return PoolHits(hits, weights, queries, int(taken.sum()))
