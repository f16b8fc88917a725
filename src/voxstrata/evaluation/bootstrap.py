"""Percentile bootstrap over groups: sentences are drawn, not recordings, and the same ones for every output."""

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError, UsageError

RESAMPLES = 1000
LEVEL = 0.95  # of the intervals
WEIGHTS_AT_ONCE = 1 << 22  # weights taken as float64 at once: 32 MiB


class Resamples:
    """Draws of groups with replacement, as many as there are distinct ones, made once.

    Whatever is measured with one object is measured on the same draws, so differences between two measures are
    paired. Recordings of one sentence stay together: they are no independent evidence.

    groups: (n,) strings or integers, in any order and as often as they come. Takes 2 bytes per resample and group.
    Raises UsageError for fewer than 1 resample, InputError without groups.
    """

    def __init__(self, groups: npt.ArrayLike, count: int = RESAMPLES, seed: int = 0) -> None:
        self.groups = np.unique(np.asarray(groups))
        if count < 1:
            raise UsageError(f"{count} resamples; give at least 1")
        if not len(self.groups):
            raise InputError("no groups to resample")
        rng, n = np.random.default_rng(seed), len(self.groups)
        self._weights = np.empty((count, n), np.uint16)
        for weights in self._weights:
            weights[:] = np.bincount(rng.integers(n, size=n), minlength=n)

    def __len__(self) -> int:
        return len(self._weights)

    def means(self, values: npt.NDArray[np.floating], groups: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Means of `values` (n, m) in every resample, (resamples, m) float64; groups (n,) says whose each row is.

        A row counts as often as its group was drawn. NaN in a resample that drew none of the groups.
        Raises InputError for a group that the resamples do not know.
        """
        place = self._places(groups)
        rows = np.concatenate([values, np.ones((len(values), 1))], axis=1, dtype=np.float64)  # the last counts rows
        sums = np.zeros((len(self.groups), rows.shape[1]))
        np.add.at(sums, place, rows)
        totals = np.empty((len(self), rows.shape[1]))
        step = max(1, WEIGHTS_AT_ONCE // len(self.groups))
        for a in range(0, len(self), step):
            totals[a : a + step] = self._weights[a : a + step].astype(np.float64) @ sums
        means = np.full((len(self), values.shape[1]), np.nan)
        np.divide(totals[:, :-1], totals[:, -1:], out=means, where=totals[:, -1:] > 0)
        return means

    def drawn(self, groups: npt.ArrayLike, part: slice = slice(None)) -> npt.NDArray[np.uint16]:
        """How often each of `groups` (n,) was drawn, in the resamples of `part`: (resamples of the part, n) uint16.

        Raises InputError for a group that the resamples do not know.
        """
        return self._weights[part, self._places(groups)]

    def _places(self, groups: npt.ArrayLike) -> npt.NDArray[np.int64]:
        names = np.asarray(groups)
        place = np.minimum(np.searchsorted(self.groups, names), len(self.groups) - 1)
        unknown = np.flatnonzero(self.groups[place] != names)
        if len(unknown):
            raise InputError(
                f"group {names[unknown[0]].item()!r} is not among those resampled; draw from the groups of all queries"
            )
        return place


def percentile_interval(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The middle 95 % of each column of `samples` (resamples, m): lower and upper ends, (2, m) float64.

    NaN are left out; a column without any other value gives NaN.
    """
    ends = np.full((2, samples.shape[1]), np.nan)
    known = ~np.isnan(samples)
    tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    if len(samples) and known.all():
        return np.asarray(np.percentile(samples, tails, axis=0))
    for column in np.flatnonzero(known.any(axis=0)):
        ends[:, column] = np.percentile(samples[known[:, column], column], tails)
    return ends
