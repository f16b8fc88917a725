"""Logistic regression of a hit on predictors with an intercept per stratum, for many weightings at once."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from voxstrata.evaluation.metrics import Float64

LOGISTIC_METHOD = "Firth's penalised likelihood, intercepts refitted (FLIC)"
_ITERATIONS = 200
_STEP = 5.0  # largest change of a coefficient in one step
_TOLERANCE = 1e-6
_COLLINEAR = 1e-9  # share of a predictor's variance within strata below which the others, or the strata, decide it


@dataclass(frozen=True, eq=False)
class LogisticFits:
    """Fits of R weightings. slopes: (R, k) log-odds per unit of each predictor.

    at_zero: (R,) probability of a hit where the predictors are 0, mean over strata with any weight, each stratum alike.
    discrimination: (R,) Tjur's coefficient (2009, The American Statistician 63), mean fitted probability of the hits
    minus that of the misses, above what the intercepts alone reach.
    A stratum of hits alone, or of misses alone, says nothing of the slopes and keeps its share of hits; slopes and
    discrimination are NaN where no other stratum is left, or where a predictor does not vary within the others.
    """

    slopes: Float64
    at_zero: Float64
    discrimination: Float64


def fit_logistic(
    hits: npt.NDArray[np.bool_], predictors: Float64, strata: npt.NDArray[np.int64], weights: Float64
) -> LogisticFits:
    """P(hit) = 1 / (1 + exp(-(intercept of the stratum + slopes · predictors))), by Firth's penalised likelihood.

    hits: (n,); predictors: (n, k); strata: (n,), 0, 1, …; weights: (R, n), one fit for each row.

    Maximum likelihood takes slopes too far from 0, or the wrong way, where hits are few, and has none where a predictor
    separates hits from misses. Firth (1993, Biometrika 80) adds half the log-determinant of the information to the
    log-likelihood, which takes the first-order bias away and is always finite (Heinze & Schemper 2002, Statistics in
    Medicine 21). It also draws fitted probabilities towards 1/2, so intercepts are then fitted again by maximum
    likelihood, slopes held (FLIC; Puhr et al. 2017, Statistics in Medicine 36): fitted hits add up to the hits.
    """
    order = np.argsort(strata, kind="stable")
    _, starts, strata = np.unique(strata[order], return_index=True, return_inverse=True)
    data = _Data(hits[order].astype(np.float64), predictors[order], strata, starts, weights[:, order])
    total = data.sums(data.weights)
    share = np.divide(data.sums(data.weights * data.y), total, out=np.zeros_like(total), where=total > 0)
    mixed = (share > 0) & (share < 1)
    data = replace(data, weights=data.weights * mixed[:, strata])
    log_odds = np.where(mixed, np.log(np.where(mixed, share, 0.5) / np.where(mixed, 1 - share, 0.5)), 0)
    known = _varies(data)
    slopes = _firth(data, known, log_odds)
    intercepts = _refitted(data, slopes @ data.z.T, mixed, log_odds)
    p = _sigmoid(intercepts[:, strata] + slopes @ data.z.T)
    held = total > 0
    at_zero = (np.where(mixed, _sigmoid(intercepts), share) * held).sum(axis=1) / held.sum(axis=1)
    beyond = _tjur(p, data) - _tjur(share[:, strata], data)
    return LogisticFits(np.where(known[:, None], slopes, np.nan), at_zero, np.where(known, beyond, np.nan))


@dataclass(frozen=True, eq=False)
class _Data:
    """What is fitted: y (n,) hits, z (n, k) predictors, strata (n,), weights (R, n).

    Rows of a stratum stand together, the first of each at `starts` (S,).
    """

    y: Float64
    z: Float64
    strata: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    weights: Float64

    def sums(self, values: Float64) -> Float64:
        """Sums over strata, (R, n, …) to (R, S, …)."""
        return np.asarray(np.add.reduceat(values, self.starts, axis=1))

    def centred(self, weights: Float64) -> tuple[Float64, Float64, Float64]:
        """Predictors less their weighted means within strata (R, n, k), these means (R, S, k), sums of weights (R, S).

        A stratum without weight has mean 0.
        """
        total, sums = self.sums(weights), self.sums(weights[:, :, None] * self.z)
        means = sums / np.where(total > 0, total, 1)[:, :, None]
        return self.z - means[:, self.strata], means, total


def _varies(data: _Data) -> npt.NDArray[np.bool_]:
    """(R,) whether every predictor varies within strata, and none is decided by the others."""
    u, _, _ = data.centred(data.weights)
    moments = np.einsum("rn,rnk,rnl->rkl", data.weights, u, u)
    spread = np.sqrt(np.einsum("rkk->rk", moments))
    found = (spread > _COLLINEAR * np.sqrt(data.weights @ (data.z * data.z))).all(axis=1)
    scale = np.where(found[:, None], spread, 1)
    correlations = moments / scale[:, :, None] / scale[:, None, :]
    return np.asarray(found & (np.linalg.det(correlations) > _COLLINEAR))


def _firth(data: _Data, known: npt.NDArray[np.bool_], intercepts: Float64) -> Float64:
    """Slopes (R, k) by Fisher scoring with Firth's modified score, 0 where not known.

    intercepts: (R, S), where scoring begins. A step that lowers the penalised likelihood is halved.
    """
    y, strata = data.y, data.strata
    intercepts, slopes = intercepts.copy(), np.zeros((len(data.weights), data.z.shape[1]))
    to_intercepts, to_slopes = np.zeros_like(intercepts), np.zeros_like(slopes)  # the next steps
    reached = np.full(len(slopes), -np.inf)  # penalised log-likelihoods
    rows = np.flatnonzero(known)  # those that still move
    for _ in range(_ITERATIONS):
        a, b, w = intercepts[rows] + to_intercepts[rows], slopes[rows] + to_slopes[rows], data.weights[rows]
        eta = a[:, strata] + b @ data.z.T
        p = _sigmoid(eta)
        variance = w * p * (1 - p)
        # The information is diagonal but for the slopes' rows and columns; with predictors centred by stratum, the
        # slopes' part stands alone.
        u, means, total = data.centred(variance)
        total = np.where(total > 0, total, 1)
        information = np.einsum("rn,rnk,rnl->rkl", variance, u, u)
        value = (w * (y * eta - np.logaddexp(0, eta))).sum(axis=1) + np.log(total).sum(axis=1) / 2
        value += np.linalg.slogdet(information)[1] / 2
        better = value >= reached[rows] - _TOLERANCE**2 * np.abs(value)
        inverse = np.linalg.inv(information[better])
        hat = variance[better] * (1 / total[better][:, strata] + ((u[better] @ inverse) * u[better]).sum(axis=2))
        residual = w[better] * (y - p[better]) + hat * (0.5 - p[better])
        d_slopes = np.einsum("rkl,rnl,rn->rk", inverse, u[better], residual)
        d_intercepts = data.sums(residual) / total[better] - (means[better] @ d_slopes[:, :, None])[:, :, 0]
        moved, back = rows[better], rows[~better]
        intercepts[moved], slopes[moved], reached[moved] = a[better], b[better], value[better]
        to_intercepts[moved], to_slopes[moved] = np.clip(d_intercepts, -_STEP, _STEP), np.clip(d_slopes, -_STEP, _STEP)
        to_intercepts[back] /= 2
        to_slopes[back] /= 2
        left = np.maximum(np.abs(to_slopes[rows]).max(axis=1), np.abs(to_intercepts[rows]).max(axis=1))
        rows = rows[left > _TOLERANCE]
        if not len(rows):
            break
    return slopes


def _refitted(data: _Data, offsets: Float64, mixed: npt.NDArray[np.bool_], log_odds: Float64) -> Float64:
    """Intercepts (R, S) of greatest likelihood beside given offsets (R, n): Newton's method, bisection where it strays.

    mixed: (R, S) strata with hits and misses. log_odds: (R, S) of each stratum's share of hits; the intercept is that
    less one of the offsets at most.
    """
    used, strata = data.weights, data.strata
    reach = np.abs(offsets).max(axis=1, keepdims=True)
    low, high, intercepts = log_odds - reach, log_odds + reach, log_odds
    for _ in range(_ITERATIONS):
        p = _sigmoid(intercepts[:, strata] + offsets)
        score, slope = data.sums(used * (data.y - p)), data.sums(used * p * (1 - p))
        low, high = np.where(score > 0, intercepts, low), np.where(score < 0, intercepts, high)
        step = np.where(mixed & (slope > 0), score / np.where(slope > 0, slope, 1), 0)
        newton = intercepts + step
        intercepts = np.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        if np.abs(step).max() < _TOLERANCE:
            break
    return intercepts


def _tjur(p: Float64, data: _Data) -> Float64:
    """(R,) mean of p (R, n) over hits less that over misses."""
    y, weights = data.y, data.weights
    hit, miss = weights @ y, weights @ (1 - y)
    known = (hit > 0) & (miss > 0)
    means = ((p * weights) @ y) / np.where(known, hit, 1) - ((p * weights) @ (1 - y)) / np.where(known, miss, 1)
    return np.where(known, means, np.nan)


def _sigmoid(x: Float64) -> Float64:
    return 0.5 * (1 + np.tanh(x / 2))
