"""Controlled pools: who is asked of whom, and random pools' exact means against all draws written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from voxstrata.studies.align.pools import (
    POOL_ALL,
    POOL_CLOSEST,
    POOL_MATCHED,
    POOL_RANDOM,
    POOL_UNLIKE,
    SMALLEST_POOL,
    PoolDesign,
    beats_translation,
    design_pools,
    hits_by_pool,
)


@pytest.fixture
def wrong() -> np.ndarray:
    rng = np.random.default_rng(5)
    found = rng.random((14, 14)) < 0.15
    np.fill_diagonal(found, False)
    return found


def design(n: int, unlike: list[int], closest: np.ndarray, pairs: np.ndarray, candidates: np.ndarray) -> PoolDesign:
    return PoolDesign(np.isin(np.arange(n), unlike), closest, pairs, candidates)


def test_matched_pools_are_the_mean_over_all_draws(wrong: np.ndarray) -> None:
    strata = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    unlike = [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert len(unlike) == SMALLEST_POOL
    found = hits_by_pool(wrong, design(14, unlike, np.zeros((14, 1), np.int64), strata, strata))[POOL_MATCHED]
    recalls = []
    for first in itertools.combinations(range(7), 5):
        for second in itertools.combinations(range(7, 14), 5):
            pool = [*first, *second]
            recalls.append(np.mean([not wrong[q, pool].any() for q in pool]))
    assert found.pool == 10
    assert np.average(found.hits, weights=found.weights) == pytest.approx(np.mean(recalls))


def test_random_pools_are_the_mean_over_all_draws_of_like_duration(wrong: np.ndarray) -> None:
    strata = np.repeat([0, 1, 2], [5, 5, 4])
    closest = np.array([[c for c in range(14) if c != q][q % 4 : q % 4 + 4] for q in range(14)])
    found = hits_by_pool(wrong, design(14, [], closest, strata, strata))
    for q in range(14):
        counts = np.bincount(strata[closest[q]], minlength=3)
        draws = [
            itertools.combinations([c for c in range(14) if c != q and strata[c] == s], counts[s]) for s in range(3)
        ]
        hits = [not wrong[q, list(itertools.chain(*pool))].any() for pool in itertools.product(*draws)]
        assert found[POOL_RANDOM].hits[q] == pytest.approx(np.mean(hits))
        assert found[POOL_CLOSEST].hits[q] == (not wrong[q, closest[q]].any())
        assert found[POOL_ALL].hits[q] == (not wrong[q].any())
    assert found[POOL_RANDOM].pool == found[POOL_CLOSEST].pool == 5


def test_unlike_pairs_are_asked_among_themselves_and_too_few_give_nothing(wrong: np.ndarray) -> None:
    strata, closest = np.zeros(14, np.int64), np.zeros((14, 1), np.int64)
    unlike = [1, 2, 3, 5, 6, 7, 8, 10, 11, 13]
    found = hits_by_pool(wrong, design(14, unlike, closest, strata, strata))[POOL_UNLIKE]
    assert found.queries.tolist() == unlike
    assert found.hits.tolist() == [not wrong[q, unlike].any() for q in unlike]
    assert hits_by_pool(wrong, design(14, unlike[1:], closest, strata, strata))[POOL_UNLIKE].pool == 0


def test_a_design_takes_the_closest_others_and_the_unlike_pairs() -> None:
    rng = np.random.default_rng(6)
    distances = rng.random((30, 30))
    distances[0, 5] = np.nan
    distances[7, 3:] = np.nan  # three known distances, its own among them or not
    quantile = np.array([np.nan, *np.linspace(0, 1, 29)])
    logs = rng.standard_normal(30)
    made = design_pools(distances, quantile, logs, logs + 0.1, 0.5, 4)
    assert made.unlike.tolist() == [q >= 0.5 for q in quantile]
    assert made.closest[7].tolist() == [*sorted(range(3), key=lambda c: distances[7, c]), -1]
    right = np.zeros((30, 30), bool)
    found = hits_by_pool(right, made)
    assert found["closest"].queries.tolist() == found["random"].queries.tolist() == [q for q in range(30) if q != 7]
    assert found["all"].queries.tolist() == list(range(30))
    for q in set(range(30)) - {7}:
        others = sorted((c for c in range(30) if c != q), key=lambda c: np.nan_to_num(distances[q, c], nan=9))
        assert made.closest[q].tolist() == others[:4]
    assert np.bincount(made.candidate_strata).tolist() == [5] * 6
    assert np.bincount(made.pair_strata).tolist() == [2] * 15
    assert design_pools(distances, quantile, logs, logs, 0.5, 99).closest.shape == (30, 29)


def test_ties_count_as_wrong() -> None:
    assert beats_translation(np.ones((3, 3))).sum() == 6
    assert beats_translation(np.eye(3)).sum() == 0
