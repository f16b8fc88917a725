"""Mutual nearest neighbours: do two sets of states, row by row matched, place the same rows near each other?"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError, UsageError
from voxstrata.evaluation.metrics import Float64, check_k

MUTUAL_NEIGHBOURS = 10  # as in the paper
PERMUTATIONS = 1000
_TIE = 1e-9  # cosines no farther apart are equal: what float64 leaves of equal rows


@dataclass(frozen=True, eq=False)
class MutualNeighbours:
    """Agreement on nearest neighbours of n matched rows.

    shares: (n,) for each row, which share of its k neighbours in one set are its neighbours in the other; their mean is
    the agreement. chance: its mean over all ways to match the rows, k / (n - 1). null: (permutations,) the agreement of
    rows matched at random. NaN with at most k + 1 rows, where all are neighbours.
    """

    shares: Float64
    chance: float
    null: Float64


def mutual_neighbours(
    x: npt.NDArray[np.floating],
    y: npt.NDArray[np.floating],
    k: int = MUTUAL_NEIGHBOURS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> MutualNeighbours:
    """Agreement of x (n, d) and y (n, e), where row i of one belongs to row i of the other.

    Neighbours of a row are the k others of its own set with the largest cosine: mutual k-nearest-neighbour agreement of
    Huh et al. 2024 (arXiv 2405.07987), with their k = 10. Rows that tie for the last places share them alike, so that
    states which do not differ agree by chance alone, whatever their order.
    Raises InputError for different numbers of rows and for rows that are zero, NaN or infinite.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(f"neighbours need two matrices of as many rows, not {x.shape} and {y.shape}")
    if permutations < 0:
        raise UsageError(f"{permutations} permutations; give a number, or 0 for none")
    n, rng = len(x), np.random.default_rng(seed)
    if n <= check_k(k) + 1:
        return MutualNeighbours(np.full(n, np.nan), np.nan, np.full(permutations, np.nan))
    near, there = _neighbours(x, k), _neighbours(y, k)
    i, j = np.nonzero(near)
    weights = near[i, j]
    shares = np.bincount(i, weights * there[i, j], minlength=n) / k
    null = np.empty(permutations)
    for p in range(permutations):
        matched = rng.permutation(n)
        null[p] = weights @ there[matched[i], matched[j]] / (n * k)
    return MutualNeighbours(shares, k / (n - 1), null)


def _neighbours(states: npt.NDArray[np.floating], k: int) -> Float64:
    """How much each row (i) has each other (j) among its k neighbours, (n, n) float64: 1, 0, or a part where they tie.

    Every row has k in all.
    """
    rows = states.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        raise InputError(
            f"row {bad[0]} is zero, NaN or infinite and has no neighbours; extract it again or leave it out"
        )
    rows /= lengths[:, None]
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    last = np.partition(cosines, -k, axis=1)[:, -k, None]
    nearer = cosines > last + _TIE
    tied = (cosines >= last - _TIE) & ~nearer
    places = (k - nearer.sum(axis=1)) / tied.sum(axis=1)
    near: Float64 = nearer + tied * places[:, None]
    return near
