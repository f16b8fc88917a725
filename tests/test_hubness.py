"""Hubness and the scores that correct it, against their definitions written as loops."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxstrata.base.errors import InputError, UsageError
from voxstrata.evaluation import csls, ratio_margin
from voxstrata.evaluation.hubness import chance_skew, k_occurrence, k_occurrence_skew


def neighbourhood(values: np.ndarray, k: int) -> float:
    best = sorted(map(float, values), reverse=True)[:k]
    return math.fsum(best) / len(best)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**32))
def test_corrected_scores_equal_their_formulas(n: int, m: int, k: int, seed: int) -> None:
    scores = np.random.default_rng(seed).uniform(0.1, 1, (n, m))
    r_x = [neighbourhood(row, k) for row in scores]
    r_y = [neighbourhood(column, k) for column in scores.T]
    local = [[2 * scores[i, j] - r_x[i] - r_y[j] for j in range(m)] for i in range(n)]
    margin = [[scores[i, j] / ((r_x[i] + r_y[j]) / 2) for j in range(m)] for i in range(n)]
    np.testing.assert_allclose(csls(scores, k), local, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ratio_margin(scores, k), margin, rtol=1e-12)
    # One matrix serves both directions.
    np.testing.assert_allclose(csls(scores.T, k), np.transpose(local), rtol=0, atol=1e-12)
    single = csls(scores.astype(np.float32), k)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, local, rtol=0, atol=1e-6)


def test_csls_takes_back_what_a_hub_won() -> None:
    scores = np.full((20, 20), 0.2) + 0.4 * np.eye(20)
    scores[:, 0] = 0.7  # near to everything
    scores[0, 0] = 0.9
    found, corrected = scores.argmax(axis=1), csls(scores).argmax(axis=1)
    assert (found == 0).all()
    assert (corrected == np.arange(20)).all()


def test_a_ratio_of_negative_neighbours_is_refused() -> None:
    with pytest.raises(InputError, match="positive mean score"):
        ratio_margin(np.array([[-0.5, -0.4], [-0.3, 0.1]]))
    with pytest.raises(UsageError, match="k is 0"):
        csls(np.ones((2, 2)), 0)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.data())
def test_k_occurrence_counts_the_rows_a_candidate_is_near_in(n: int, m: int, k: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 5), min_size=n * m, max_size=n * m))
    scores = np.array(values, np.float32).reshape(n, m)
    # Near: fewer than k candidates of the row are strictly better.
    expected = [sum(sum(other > row[j] for other in row) < k for row in scores) for j in range(m)]
    assert k_occurrence(scores, k).tolist() == expected


def test_skew_is_the_third_standardised_moment() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy computes the expected skewness")
    scores = np.random.default_rng(0).standard_normal((50, 80)) + np.linspace(0, 2, 80) ** 3
    assert k_occurrence_skew(scores) == pytest.approx(stats.skew(k_occurrence(scores)))
    assert math.isnan(k_occurrence_skew(np.ones((4, 30))))
    assert math.isnan(k_occurrence_skew(scores[:, :10]))  # every candidate is among the ten nearest
    assert math.isnan(chance_skew(50, 10))


def test_random_scores_have_about_the_chance_skew_and_a_hub_far_more() -> None:
    rng = np.random.default_rng(1)
    skews = [k_occurrence_skew(rng.random((157, 157))) for _ in range(200)]
    assert np.mean(skews) == pytest.approx(chance_skew(157, 157), abs=0.05)
    stats = pytest.importorskip("scipy.stats", reason="scipy knows the binomial law")
    assert chance_skew(157, 157) == pytest.approx(float(stats.binom(157, 10 / 157).stats("s")))
    hubs = rng.random((157, 157))
    hubs[:, :3] += 1
    assert k_occurrence_skew(hubs) > 5


@pytest.mark.parametrize(("score", "copies"), [(csls, 1), (ratio_margin, 1), (k_occurrence, 0)])
def test_large_matrices_are_taken_in_blocks(score: Callable[[np.ndarray], np.ndarray], copies: int) -> None:
    scores = np.random.default_rng(2).random((4000, 4000), np.float32)
    tracemalloc.start()
    score(scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (copies + 0.8) * scores.nbytes
