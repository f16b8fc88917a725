"""Logistic fits find the maximum of Firth's penalised likelihood, whatever the weights, and stay finite."""

from __future__ import annotations

import numpy as np
import pytest

from voxstrata.evaluation.logistic import fit_logistic


def objective(parameters: np.ndarray, y: np.ndarray, design: np.ndarray, w: np.ndarray) -> float:
    """Minus Firth's penalised log-likelihood, in plain terms; design: (n, coefficients), a column per stratum first."""
    eta = design @ parameters
    likelihood = w * (y * -np.log1p(np.exp(-eta)) + (1 - y) * -np.log1p(np.exp(eta)))
    p = 1 / (1 + np.exp(-eta))
    information = design.T @ (design * (w * p * (1 - p))[:, None])
    return float(-likelihood.sum() - np.linalg.slogdet(information)[1] / 2)


def columns(z: np.ndarray, strata: np.ndarray) -> np.ndarray:
    return np.concatenate([np.eye(strata.max() + 1)[strata], z], axis=1)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Few hits in one stratum of three, two predictors that go together."""
    rng = np.random.default_rng(1)
    z, strata = rng.standard_normal((300, 2)), rng.integers(3, size=300)
    z[:, 1] += 0.5 * z[:, 0]
    p = 1 / (1 + np.exp(-(np.array([-3.5, 0.0, 1.0])[strata] + 0.8 * z[:, 0] - 0.4 * z[:, 1])))
    return rng.random(300) < p, z, strata, rng.integers(0, 3, (4, 300)).astype(float)


@pytest.mark.parametrize("k", [1, 2])
def test_slopes_are_the_optimum_a_general_optimiser_finds(data: tuple[np.ndarray, ...], k: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    y, z, strata, weights = data
    fits = fit_logistic(y, z[:, :k], strata, weights)
    design = columns(z[:, :k], strata)
    for r, w in enumerate(weights):
        best = optimize.minimize(objective, np.zeros(3 + k), (y, design, w), method="BFGS", options={"gtol": 1e-6}).x
        assert fits.slopes[r] == pytest.approx(best[3:], abs=1e-4)
        # then intercepts under which fitted hits add up to the hits of each stratum
        shares = []
        for s in range(3):
            held, offsets = w[strata == s], z[strata == s, :k] @ best[3:]
            total = held @ y[strata == s]
            root = optimize.brentq(lambda a, h=held, o=offsets, t=total: h @ (1 / (1 + np.exp(-a - o))) - t, -30, 30)
            shares.append(1 / (1 + np.exp(-root)))
        assert fits.at_zero[r] == pytest.approx(np.mean(shares), abs=1e-4)


@pytest.mark.parametrize(("hits", "misses"), [((3, 5), (6, 2)), ((0, 4), (7, 3)), ((0, 4), (7, 0))])
def test_of_a_table_of_four_cells_the_slope_is_the_log_odds_ratio_with_half_a_case_more_in_each(
    hits: tuple[int, int], misses: tuple[int, int]
) -> None:
    """What Firth's likelihood comes to where it has a closed form (1993, section 3.3), empty cells and all."""
    y = np.repeat([True, False], [sum(hits), sum(misses)])
    z = np.concatenate([np.repeat([0.0, 1.0], hits), np.repeat([0.0, 1.0], misses)])
    fits = fit_logistic(y, z[:, None], np.zeros(len(y), np.int64), np.ones((1, len(y))))
    odds = [(hits[i] + 0.5) / (misses[i] + 0.5) for i in (0, 1)]
    assert fits.slopes[0, 0] == pytest.approx(np.log(odds[1] / odds[0]), abs=1e-4)


@pytest.mark.parametrize("planted", [0.0, 0.7])
def test_few_hits_leave_no_bias(planted: float) -> None:
    """About five hits among 300, a predictor with a long tail: maximum likelihood is off by 0.1 and more here."""
    rng, slopes = np.random.default_rng(2), []
    for _ in range(400):
        z = rng.standard_exponential(300) - 1
        y = rng.random(300) < 1 / (1 + np.exp(-(-4.3 - planted + planted * z)))
        slopes.append(fit_logistic(y, z[:, None], np.zeros(300, np.int64), np.ones((1, 300))).slopes[0, 0])
    found = np.array(slopes)[~np.isnan(slopes)]
    assert found.mean() == pytest.approx(planted, abs=max(0.06, 4 * found.std(ddof=1) / np.sqrt(len(found))))


def test_a_planted_slope_is_found() -> None:
    rng = np.random.default_rng(2)
    z = rng.standard_normal(40_000)
    y = rng.random(40_000) < 1 / (1 + np.exp(-(-1 + 0.7 * z)))
    fits = fit_logistic(y, z[:, None], np.zeros(40_000, np.int64), np.ones((1, 40_000)))
    assert fits.slopes[0, 0] == pytest.approx(0.7, abs=0.04)
    assert fits.at_zero[0] == pytest.approx(1 / (1 + np.e), abs=0.01)


def test_fitted_hits_add_up_however_few_they_are() -> None:
    rng = np.random.default_rng(5)
    y = np.arange(400) < 3
    fits = fit_logistic(y, 1e-9 * rng.standard_normal((400, 1)), np.zeros(400, np.int64), np.ones((1, 400)))
    assert fits.at_zero[0] == pytest.approx(3 / 400, abs=1e-4)  # Firth's own intercept says 3.5 / 401


def test_a_predictor_that_decides_explains_all_and_one_of_noise_nothing() -> None:
    rng = np.random.default_rng(3)
    y, strata, ones = rng.random(2000) < 0.3, np.zeros(2000, np.int64), np.ones((1, 2000))
    decides = fit_logistic(y, np.where(y, 1.0, -1.0)[:, None], strata, ones)
    assert np.isfinite(decides.slopes).all()
    assert decides.discrimination[0] > 0.99
    assert abs(fit_logistic(y, rng.standard_normal((2000, 1)), strata, ones).discrimination[0]) < 0.005


def test_strata_of_hits_or_misses_alone_say_nothing_of_the_slope() -> None:
    rng = np.random.default_rng(4)
    y, z = rng.random(100) < 0.5, rng.standard_normal((100, 1))
    one = fit_logistic(y, z, np.zeros(100, np.int64), np.ones((1, 100)))
    more = np.concatenate([y, np.ones(50, bool), np.zeros(50, bool)])
    strata = np.repeat([0, 1, 2], [100, 50, 50])
    three = fit_logistic(more, np.concatenate([z, np.full((100, 1), 3.0)]), strata, np.ones((1, 200)))
    assert three.slopes[0, 0] == pytest.approx(one.slopes[0, 0], abs=1e-6)
    assert three.at_zero[0] == pytest.approx((one.at_zero[0] + 1 + 0) / 3, abs=1e-6)
    nothing = fit_logistic(np.ones(5, bool), np.arange(5.0)[:, None], np.zeros(5, np.int64), np.ones((1, 5)))
    assert np.isnan(nothing.slopes[0, 0])
    assert np.isnan(nothing.discrimination[0])
    assert nothing.at_zero[0] == 1


def test_a_predictor_that_does_not_vary_has_no_slope_and_leaves_other_weightings_alone() -> None:
    rng = np.random.default_rng(6)
    y, z = rng.random(60) < 0.5, rng.standard_normal(60)
    z[:20] = 0.1
    same = np.arange(60) < 20
    fits = fit_logistic(y, z[:, None], np.zeros(60, np.int64), np.stack([same, ~same]).astype(float))
    assert np.isnan(fits.slopes[0, 0])
    assert np.isfinite(fits.slopes[1, 0])
    assert fits.at_zero[0] == pytest.approx(y[same].mean())
    twice = fit_logistic(y, np.stack([z, 2 * z], axis=1), np.zeros(60, np.int64), np.ones((1, 60)))
    assert np.isnan(twice.slopes).all()
