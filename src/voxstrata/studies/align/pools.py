"""Which queries are asked of which pools, and the chance of a hit where the pool is a random draw.

One direction has N queries and N candidates; candidate i is the translation of query i.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolMatrix = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

DURATIONS, MISMATCHES = 5, 3  # strata of pairs: by duration, and in these by how unlike the two durations are
CANDIDATES = 5  # about so many in a stratum of candidates of like duration
SMALLEST_POOL = 10  # unlike pairs below which a direction has no figure for them

ALL, UNLIKE, MATCHED, CLOSEST, RANDOM = "all", "unlike", "matched", "closest", "random"
CONTROLS = (ALL, MATCHED, UNLIKE, RANDOM, CLOSEST)


@dataclass(frozen=True, eq=False)
class Design:
    """What decides the pools of one direction; the same for every system that is asked.

    unlike: (N,) bool, pairs that sound no closer than non-translations. closest: (N, n) int64, the closest-sounding
    non-translations of each query, -1 where it has fewer of known distance. pair_strata, candidate_strata: (N,) int64,
    0, 1, …: pairs of like duration and mismatch of durations, candidates of like duration.
    """

    unlike: npt.NDArray[np.bool_]
    closest: Int64
    pair_strata: Int64
    candidate_strata: Int64


@dataclass(frozen=True, eq=False)
class Asked:
    """hits: (queries,) float64, 0 or 1, or the chance of a hit over all draws of the pool. weights: (queries,) float64.

    queries: (queries,) int64, which ones. pool: candidates of each.
    """

    hits: Float64
    weights: Float64
    queries: Int64
    pool: int


def make_design(
    distances: npt.NDArray[np.floating],
    quantile: Float64,
    query_logs: Float64,
    candidate_logs: Float64,
    least: float,
    n: int,
) -> Design:
    """Design of one direction.

    distances: (N, N) phonetic; quantile: (N,) share of non-translations that sound closer than the translation, NaN
    where unknown (never unlike). query_logs, candidate_logs: (N,) log duration less its language's mean. least: the
    quantile from which on a pair is unlike. n: closest-sounding non-translations put into a pool, at most N - 1. Ties:
    the earlier candidate.
    """
    size = len(distances)
    others = np.where(np.isnan(distances), np.inf, distances)
    order = np.argsort(others, axis=1, kind="stable")
    order = order[order != np.arange(size)[:, None]].reshape(size, -1)  # without the translation
    heard = np.where(np.isfinite(np.take_along_axis(others, order, axis=1)), order, -1)
    by_duration = _strata(query_logs + candidate_logs, DURATIONS)
    pair_strata = np.zeros(size, np.int64)
    for stratum in range(DURATIONS):
        held = by_duration == stratum
        pair_strata[held] = stratum * MISMATCHES + _strata(np.abs(query_logs - candidate_logs)[held], MISMATCHES)
    return Design(
        np.nan_to_num(quantile, nan=-1.0) >= least,
        heard[:, :n],
        pair_strata,
        _strata(candidate_logs, max(1, size // CANDIDATES)),
    )


def _strata(values: Float64, count: int) -> Int64:
    """`count` strata of equal size, from low to high."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    strata: Int64 = rank * count // max(1, len(rank))
    return strata


def ahead(scores: npt.NDArray[np.floating]) -> BoolMatrix:
    """Candidates at least as good as the translation: (N, N) bool, false on the diagonal; ties count as wrong."""
    wrong: BoolMatrix = scores >= np.diag(scores)[:, None]
    np.fill_diagonal(wrong, False)
    return wrong


def ask(wrong: BoolMatrix, design: Design) -> dict[str, Asked]:
    """Hits at rank 1 under every control.

    all: the whole pool.
    unlike: unlike pairs alone, as queries and as pool. matched: what pools of as many pairs reach, drawn at random from
    all pairs with as many of each stratum.
    closest: the translation and the closest-sounding non-translations. random: the translation and as many
    non-translations, drawn at random with as many of each stratum. Queries with too few of known distance take no part
    in either.
    Draws are not made: the mean over all of them is exact. unlike and matched have an empty pool where fewer than
    SMALLEST_POOL pairs are unlike, closest and random where no query takes part.
    """
    n = len(wrong)
    nothing = Asked(np.empty(0), np.empty(0), np.empty(0, np.int64), 0)
    chosen, heard = np.flatnonzero(design.unlike), np.flatnonzero((design.closest >= 0).all(axis=1))
    if len(chosen) < SMALLEST_POOL:
        pairs = {UNLIKE: nothing, MATCHED: nothing}
    else:
        among = wrong[np.ix_(chosen, chosen)]
        pairs = {
            UNLIKE: Asked(_hits(among), np.ones(len(chosen)), chosen, len(chosen)),
            MATCHED: _matched(wrong, design),
        }
    if len(heard):
        hard = np.take_along_axis(wrong[heard], design.closest[heard], axis=1)
        size = hard.shape[1] + 1
        strata = _members(design.candidate_strata)
        taken = strata[design.closest[heard]].sum(axis=1)
        drawn = _no_wrong(_counted(wrong[heard], strata), strata.sum(axis=0) - strata[heard], taken)
        pairs |= {
            CLOSEST: Asked(_hits(hard), np.ones(len(heard)), heard, size),
            RANDOM: Asked(drawn, np.ones(len(heard)), heard, size),
        }
    else:
        pairs |= {CLOSEST: nothing, RANDOM: nothing}
    return pairs | {ALL: Asked(_hits(wrong), np.ones(n), np.arange(n), n)}


def _members(strata: Int64) -> Int64:
    """(N, strata) int64, 1 where a row is in a stratum."""
    return np.eye(int(strata.max()) + 1, dtype=np.int64)[strata]


def _counted(wrong: BoolMatrix, strata: Int64) -> Int64:
    """How many are wrong in each stratum, (queries, strata); by BLAS, exact up to 2^24 candidates."""
    counts: Int64 = np.rint(wrong.astype(np.float32) @ strata.astype(np.float32)).astype(np.int64)
    return counts


def _hits(wrong: BoolMatrix) -> Float64:
    return np.asarray(~np.any(wrong, axis=1), np.float64)


def _matched(wrong: BoolMatrix, design: Design) -> Asked:
    strata = _members(design.pair_strata)
    held, taken = strata.sum(axis=0), strata[design.unlike].sum(axis=0)
    queries = np.flatnonzero(taken[design.pair_strata] > 0)
    own = strata[queries]
    # Given that the query is drawn, the rest of its pool is: taken - own of the held - own other pairs of each stratum.
    hits = _no_wrong(_counted(wrong[queries], strata), held - own, taken - own)
    weights = (taken / np.maximum(held, 1))[design.pair_strata[queries]]  # the chance that the query is drawn
    return Asked(hits, weights, queries, int(taken.sum()))


def _no_wrong(wrong: Int64, there: Int64, taken: Int64) -> Float64:
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
    chance: Float64 = np.where(possible, np.exp(log), 0.0).prod(axis=-1)
    return chance
