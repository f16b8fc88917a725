"""Logistic fits find the maximum of their penalised likelihood, whatever the weights, and stay finite."""

from __future__ import annotations

import numpy as np
import pytest

from voxstrata.experiments.logistic import PRIOR_SD, fit_logistic


def objective(parameters: np.ndarray, y: np.ndarray, z: np.ndarray, strata: np.ndarray, w: np.ndarray) -> float:
    """Minus the log-likelihood with normal priors, in plain terms; parameters: slope, then intercepts."""
    eta = parameters[1:][strata] + parameters[0] * z
    likelihood = w * (y * -np.log1p(np.exp(-eta)) + (1 - y) * -np.log1p(np.exp(eta)))
    return float(-likelihood.sum() + (parameters**2).sum() / (2 * PRIOR_SD**2))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    z, strata = rng.standard_normal(600), rng.integers(3, size=600)
    p = 1 / (1 + np.exp(-(np.array([-1.5, 0.0, 1.0])[strata] + 0.8 * z)))
    return rng.random(600) < p, z, strata, rng.integers(0, 3, (4, 600)).astype(float)


def test_the_fit_is_the_optimum_a_general_optimiser_finds(data: tuple[np.ndarray, ...]) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    y, z, strata, weights = data
    fits = fit_logistic(y, z, strata, weights)
    for r, w in enumerate(weights):
        best = optimize.minimize(objective, np.zeros(4), (y, z, strata, w), method="BFGS", options={"gtol": 1e-7}).x
        assert fits.slope[r] == pytest.approx(best[0], abs=1e-4)
        assert fits.at_zero[r] == pytest.approx(np.mean(1 / (1 + np.exp(-best[1:]))), abs=1e-4)


def test_a_planted_slope_is_found() -> None:
    rng = np.random.default_rng(2)
    z = rng.standard_normal(40_000)
    y = rng.random(40_000) < 1 / (1 + np.exp(-(-1 + 0.7 * z)))
    fits = fit_logistic(y, z, np.zeros(40_000, np.int64), np.ones((1, 40_000)))
    assert fits.slope[0] == pytest.approx(0.7, abs=0.04)
    assert fits.at_zero[0] == pytest.approx(1 / (1 + np.e), abs=0.01)


def test_a_predictor_that_decides_explains_all_and_one_of_noise_nothing() -> None:
    rng = np.random.default_rng(3)
    y, strata, ones = rng.random(2000) < 0.3, np.zeros(2000, np.int64), np.ones((1, 2000))
    decides = fit_logistic(y, np.where(y, 1.0, -1.0), strata, ones)
    assert np.isfinite(decides.slope[0])
    assert decides.discrimination[0] > 0.99
    assert abs(fit_logistic(y, rng.standard_normal(2000), strata, ones).discrimination[0]) < 0.005


def test_strata_of_hits_or_misses_alone_say_nothing_of_the_slope() -> None:
    rng = np.random.default_rng(4)
    y, z = rng.random(100) < 0.5, rng.standard_normal(100)
    one = fit_logistic(y, z, np.zeros(100, np.int64), np.ones((1, 100)))
    more = np.concatenate([y, np.ones(50, bool), np.zeros(50, bool)])
    strata = np.repeat([0, 1, 2], [100, 50, 50])
    three = fit_logistic(more, np.concatenate([z, np.full(100, 3.0)]), strata, np.ones((1, 200)))
    assert three.slope[0] == pytest.approx(one.slope[0], abs=1e-6)
    assert three.at_zero[0] == pytest.approx((one.at_zero[0] + 1 + 0) / 3, abs=1e-6)
    nothing = fit_logistic(np.ones(5, bool), np.arange(5.0), np.zeros(5, np.int64), np.ones((1, 5)))
    assert np.isnan(nothing.slope[0])
    assert np.isnan(nothing.discrimination[0])
    assert nothing.at_zero[0] == 1
