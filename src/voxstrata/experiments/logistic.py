"""Logistic regression of a hit on one predictor with an intercept per stratum, for many weightings at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

PRIOR_SD = (
    10.0  # of a normal prior on every coefficient: keeps fits finite where a predictor separates hits from misses
)
_ITERATIONS = 100
_STEP = 2.0  # largest change of a coefficient in one step
_TOLERANCE = 1e-8


@dataclass(frozen=True, eq=False)
class LogisticFits:
    """Fits of R weightings. slope: (R,) log-odds per unit of the predictor.

    at_zero: (R,) probability of a hit where the predictor is 0, mean over strata with any weight, each stratum alike.
    discrimination: (R,) Tjur's coefficient (2009, The American Statistician 63), mean fitted probability of the hits
    minus that of the misses, above what the intercepts alone reach.
    A stratum of hits alone, or of misses alone, says nothing of the slope and keeps its share of hits; slope and
    discrimination are NaN where no other stratum is left.
    """

    slope: Float64
    at_zero: Float64
    discrimination: Float64


def fit_logistic(
    hits: npt.NDArray[np.bool_], predictor: Float64, strata: npt.NDArray[np.int64], weights: Float64
) -> LogisticFits:
    """P(hit) = 1 / (1 + exp(-(intercept of the stratum + slope · predictor))), by Newton's method.

    hits, predictor, strata (0, 1, …): (n,). weights: (R, n), one fit for each row. Every coefficient has a normal prior
    of mean 0 and standard deviation PRIOR_SD, so that fits exist where the predictor separates hits from misses; it is
    weak beside data.
    """
    member = np.zeros((len(hits), int(strata.max()) + 1))
    member[np.arange(len(hits)), strata] = 1
    y, z, ridge = hits.astype(np.float64), predictor, PRIOR_SD**-2
    total = weights @ member
    share = np.divide((weights * y) @ member, total, out=np.zeros_like(total), where=total > 0)
    mixed = (share > 0) & (share < 1)
    used = weights * mixed[:, strata]
    intercepts, slope = np.zeros_like(total), np.zeros(len(weights))
    for _ in range(_ITERATIONS):
        p = _sigmoid(intercepts[:, strata] + slope[:, None] * z)
        residual, variance = used * (y - p), used * p * (1 - p)
        # The Hessian is diagonal but for the slope's row and column, so the slope's step has a closed form.
        g, v, vz = residual @ member - ridge * intercepts, variance @ member + ridge, (variance * z) @ member
        gz, vzz = residual @ z - ridge * slope, variance @ (z * z) + ridge
        d_slope = (gz - (vz * g / v).sum(axis=1)) / (vzz - (vz * vz / v).sum(axis=1))
        d_intercepts = (g - vz * d_slope[:, None]) / v
        slope += np.clip(d_slope, -_STEP, _STEP)
        intercepts += np.clip(d_intercepts, -_STEP, _STEP)
        if max(np.abs(d_slope).max(), np.abs(d_intercepts).max()) < _TOLERANCE:
            break
    p = _sigmoid(intercepts[:, strata] + slope[:, None] * z)
    held = total > 0
    at_zero = (np.where(mixed, _sigmoid(intercepts), share) * held).sum(axis=1) / held.sum(axis=1)
    slope = np.where(mixed.any(axis=1), slope, np.nan)
    return LogisticFits(slope, at_zero, _tjur(p, y, used) - _tjur(share[:, strata], y, used))


def _tjur(p: Float64, y: Float64, weights: Float64) -> Float64:
    hit, miss = weights @ y, weights @ (1 - y)
    known = (hit > 0) & (miss > 0)
    means = ((p * weights) @ y) / np.where(known, hit, 1) - ((p * weights) @ (1 - y)) / np.where(known, miss, 1)
    return np.where(known, means, np.nan)


def _sigmoid(x: Float64) -> Float64:
    return 0.5 * (1 + np.tanh(x / 2))
