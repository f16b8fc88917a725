"""Hubness: candidates that are near neighbours of far too many queries, how to measure it, and scores that correct it.

The corrected scores look at all queries at once: what a query finds depends on which other queries there are.
"""

import math

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError
from voxstrata.evaluation.metrics import CELLS_AT_ONCE, check_k

Scores = npt.NDArray[np.floating]

HUB_NEIGHBOURS = 10  # of CSLS and of k-occurrence, as in the papers
MARGIN_NEIGHBOURS = 4  # of the ratio margin, as in the paper


def csls(scores: Scores, k: int = HUB_NEIGHBOURS) -> Scores:
    """Cross-domain similarity local scaling, 2 s(x, y) - r(x) - r(y): (N, M), same dtype.

    r(x) is the mean of the k largest scores in x's row, r(y) of those in y's column; all of them where there are
    fewer. Conneau et al. 2018 (arXiv 1710.04087), with their k = 10.
    """
    scaled = 2 * scores
    scaled -= _neighbour_means(scores, k)[:, None]
    scaled -= _neighbour_means(scores.T, k)
    return scaled


def ratio_margin(scores: Scores, k: int = MARGIN_NEIGHBOURS) -> Scores:
    """Ratio margin, s(x, y) / ((r(x) + r(y)) / 2), r as in `csls`: (N, M), same dtype.

    Artetxe and Schwenk 2019 (arXiv 1811.01136), with their k = 4. Raises InputError where r(x) + r(y) is not
    positive for some pair: there the ratio has no meaning.
    """
    rows, columns = _neighbour_means(scores, k), _neighbour_means(scores.T, k)
    if rows.min() + columns.min() <= 0:
        raise InputError("the ratio margin needs neighbours of positive mean score; use csls")
    margin = np.add.outer(rows / 2, columns / 2)
    return np.divide(scores, margin, out=margin)


def k_occurrence(scores: Scores, k: int = HUB_NEIGHBOURS) -> npt.NDArray[np.int64]:
    """For each candidate, in how many rows of `scores` (N, M) it is among the k largest: (M,) int64.

    Candidates that tie with the k-th count too, so the order of the corpus does not matter.
    """
    counts = np.zeros(scores.shape[1], np.int64)
    k = min(check_k(k), scores.shape[1])
    step = max(1, CELLS_AT_ONCE // scores.shape[1])
    for a in range(0, len(scores), step):
        rows = scores[a : a + step]
        kth = np.partition(rows, -k, axis=1)[:, -k, None]
        counts += np.count_nonzero(rows >= kth, axis=0)
    return counts


def k_occurrence_skew(scores: Scores, k: int = HUB_NEIGHBOURS) -> float:
    """Skewness of `k_occurrence` over the candidates, E[(n - mean)³] / sd³: large where few candidates are hubs.

    Radovanović, Nanopoulos and Ivanović 2010 (JMLR 11). NaN where all candidates occur equally often, as they do
    with at most k candidates.
    """
    counts = k_occurrence(scores, k).astype(np.float64)
    counts -= counts.mean()
    spread = math.sqrt(np.mean(counts**2))
    return float(np.mean(counts**3)) / spread**3 if spread > 0 else math.nan


def chance_skew(queries: int, candidates: int, k: int = HUB_NEIGHBOURS) -> float:
    """Skewness of k-occurrence when every query ranks at random: that of the binomial law B(N, k / M).

    Exact for one candidate over many random orders; the skew over the M candidates of one order comes close to it
    as M grows. NaN with at most k candidates.
    """
    if candidates <= k:
        return math.nan
    share = k / candidates
    return (1 - 2 * share) / math.sqrt(queries * share * (1 - share))


def _neighbour_means(scores: Scores, k: int) -> Scores:
    """Mean of the k largest scores of each row, (N,) in the dtype of `scores`, summed in float64."""
    k = min(check_k(k), scores.shape[1])
    means = np.empty(len(scores), scores.dtype)
    step = max(1, CELLS_AT_ONCE // scores.shape[1])
    for a in range(0, len(scores), step):
        # A copy in row order: partitioning along a transposed matrix' strided rows is far slower.
        rows = np.array(scores[a : a + step], order="C")
        rows.partition(scores.shape[1] - k, axis=1)
        means[a : a + step] = rows[:, -k:].mean(axis=1, dtype=np.float64)
    return means
