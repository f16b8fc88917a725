"""Linear CKA: how alike two sets of states are, up to rotation and scale, row by row matched."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError

FEWEST = 4  # rows the debiased estimator needs


@dataclass(frozen=True)
class CKA:
    """Linear CKA of n matched rows.

    value: in [0, 1], NaN where a side does not vary. chance: its mean over all ways to match the rows; far above 0
    where rows are few beside dimensions, for which reason `debiased` exists: its mean over matchings is 0, and it
    can be negative. NaN with fewer than 4 rows, or where the estimate of a side's own variation is not positive.
    """

    value: float
    chance: float
    debiased: float
    rows: int


def linear_cka(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> CKA:
    """Linear CKA of x (n, d) and y (n, e), where row i of one belongs to row i of the other.

    ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) with columns centred and Frobenius norms: Kornblith et al. 2019 (arXiv 1905.00414).
    Debiased with the unbiased HSIC of Song et al. 2012 (JMLR 13) in place of each of the three norms, as in Nguyen
    et al. 2021 (arXiv 2010.15327). Raises InputError for different numbers of rows, fewer than 2,
    NaN and infinite values.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise InputError(f"CKA needs two matrices of as many rows, at least 2, not {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("CKA needs finite states; one holds NaN or infinite values, extract it again or leave it out")
    n = len(x)
    x, y = (z.astype(np.float64) - z.mean(axis=0, dtype=np.float64) for z in (x, y))
    dx, dy = (np.einsum("ij,ij->i", z, z) for z in (x, y))  # diagonals of the Gram matrices K and L
    xy, xx, yy = (float(np.sum((a.T @ b) ** 2)) for a, b in ((x, y), (x, x), (y, y)))
    if xx == 0 or yy == 0:
        return CKA(math.nan, math.nan, math.nan, n)
    scale = math.sqrt(xx * yy)
    # Over all matchings the mean of tr(K P L Pᵀ) is tr K tr L / (n - 1), K and L being centred.
    chance = float(dx.sum() * dy.sum()) / (n - 1) / scale
    debiased = math.nan
    if n >= FEWEST:
        own_x, own_y = _unbiased(xx, dx, dx), _unbiased(yy, dy, dy)
        if own_x > 0 and own_y > 0:
            debiased = _unbiased(xy, dx, dy) / math.sqrt(own_x * own_y)
    return CKA(xy / scale, chance, debiased, n)


def group_means(
    states: npt.NDArray[np.floating], groups: npt.NDArray[np.str_]
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.float64]]:
    """Mean of `states` (n, d) over each group of `groups` (n,): the sorted groups (g,), and (g, d) float64."""
    names, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    ordered = states[np.argsort(place, kind="stable")]
    sums = np.add.reduceat(ordered, np.cumsum(counts) - counts, axis=0, dtype=np.float64)
    return names, sums / counts[:, None]


def _unbiased(square: float, dx: npt.NDArray[np.float64], dy: npt.NDArray[np.float64]) -> float:
    """Song's estimator times n (n - 3), for centred Gram matrices K and L with these diagonals.

    Its terms, with the diagonals set to 0 (K~, L~): tr(K~L~) + 1ᵀK~1 · 1ᵀL~1 / ((n-1)(n-2)) - 2/(n-2) · 1ᵀK~L~1.
    K and L being centred, K~1 is minus the diagonal, so no n × n matrix is needed. square: tr(KL) = ‖XᵀY‖².
    """
    n = len(dx)
    return square - n / (n - 2) * float(dx @ dy) + float(dx.sum() * dy.sum()) / ((n - 1) * (n - 2))
