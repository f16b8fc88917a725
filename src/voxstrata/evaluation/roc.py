"""AUC of some pairs against others, in strata, with a bootstrap over what the pairs are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxstrata.evaluation.bootstrap import WEIGHTS_AT_ONCE, Resamples, percentile_interval

_Values = npt.NDArray[np.float64]
_Groups = npt.NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of pairs. values: (n,) float64, higher is closer. groups: (n, 2), of what either member counts as."""

    values: _Values
    groups: _Groups


@dataclass(frozen=True)
class AUC:
    """value: 0 to 1, 0.5 by chance. low, high: 95 % bootstrap interval, NaN without resamples."""

    value: float
    low: float
    high: float


def auc(strata: Sequence[tuple[Scored, Scored]], resamples: Resamples | None) -> AUC:
    """How often a pair beats a reference pair of its own stratum, ties counting half (Mann–Whitney's U over n · m).

    strata: (pairs, reference). A pair's share of beaten references is averaged over all pairs of all strata; strata
    that lack either are passed over. NaN when all do.

    Interval: percentile bootstrap over groups. A pair weighs as much as the product of how often its two groups were
    drawn, or, when both are one group, as often as that was drawn: the bootstrap of a U-statistic (Arcones & Giné
    1992), since pairs that share a group are no independent evidence.
    """
    strata = [(pairs, reference) for pairs, reference in strata if len(pairs.values) and len(reference.values)]
    if not strata:
        return AUC(np.nan, np.nan, np.nan)
    won = np.concatenate([_share_beaten(pairs.values, reference.values) for pairs, reference in strata])
    value = float(won.mean())
    if resamples is None:
        return AUC(value, np.nan, np.nan)
    total, weight = np.zeros(len(resamples)), np.zeros(len(resamples))
    for pairs, reference in strata:
        _add_resampled(pairs, reference, resamples, total, weight)
    samples = np.full((len(resamples), 1), np.nan)
    np.divide(total, weight, out=samples[:, 0], where=weight > 0)
    return AUC(value, *map(float, percentile_interval(samples)[:, 0]))


def _share_beaten(values: _Values, reference: _Values) -> _Values:
    ordered = np.sort(reference)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(ordered))


def _add_resampled(pairs: Scored, reference: Scored, resamples: Resamples, total: _Values, weight: _Values) -> None:
    """Add a stratum's sum of weighted shares, and of weights, in every resample."""
    order = np.argsort(reference.values, kind="stable")
    ordered = reference.values[order]
    below, up_to = (np.searchsorted(ordered, pairs.values, side) for side in ("left", "right"))
    step = max(1, WEIGHTS_AT_ONCE // (len(ordered) + 1))
    for a in range(0, len(resamples), step):
        part = slice(a, min(a + step, len(resamples)))
        cumulated = np.zeros((part.stop - part.start, len(ordered) + 1))
        np.cumsum(_weights(reference.groups[order], resamples, part), axis=1, out=cumulated[:, 1:])
        whole = cumulated[:, -1:]
        shares = (cumulated[:, below] + cumulated[:, up_to]) / np.maximum(2 * whole, 1)
        weights = _weights(pairs.groups, resamples, part) * (whole > 0)
        total[part] += (weights * shares).sum(axis=1)
        weight[part] += weights.sum(axis=1)


def _weights(groups: _Groups, resamples: Resamples, part: slice) -> _Values:
    """How much each pair counts, (resamples of the part, n) float64."""
    first, second = (resamples.drawn(groups[:, side], part).astype(np.float64) for side in (0, 1))
    return np.where(groups[:, 0] == groups[:, 1], first, first * second)
