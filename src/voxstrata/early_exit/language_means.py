"""Means by language and over languages, with bootstrap over groups, for figures that choose nothing."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from voxstrata.base.tables import known
from voxstrata.early_exit.exits import MEAN_OF_LANGUAGES
from voxstrata.evaluation.bootstrap import Resamples, percentile_interval

Floats = npt.NDArray[np.float64]


class LanguageMeans:
    """Draws of groups: of a language its own, for the mean over languages those of all, so that translations stay
    together. Whatever is measured with one object is measured on the same draws, so differences are paired.

    languages, groups: (n,) of all recordings, each group as often as it comes.
    """

    def __init__(self, languages: Sequence[str], groups: Sequence[str], resamples: int, seed: int) -> None:
        of = {name: [g for n, g in zip(languages, groups, strict=True) if n == name] for name in sorted({*languages})}
        self._alone = {name: Resamples(held, resamples, seed) for name, held in of.items()}
        self._jointly = Resamples(list(groups), resamples, seed)

    def measure(
        self, values: npt.ArrayLike, languages: Sequence[str], groups: Sequence[str],
        figure: Callable[[Floats], Floats] = lambda means: means[..., 0],
    ) -> dict[str, tuple[float, Floats]]:  # fmt: skip
        """By language, and as MEAN_OF_LANGUAGES, a figure and the same in every resample, (resamples,).

        values: (n, m) of rows with these languages and groups. figure: of means (…, m) → (…). For the mean of
        languages each has the same weight; a resample that drew nothing of some is the mean over the others.
        Resamples are NaN where there is a single group.
        """
        table, where = np.asarray(values, np.float64), np.asarray(languages)
        held = np.asarray(groups)
        found, drawn = dict[str, tuple[float, Floats]](), []
        nothing = np.full(len(self._jointly), np.nan)
        for name in sorted({*languages}):
            own = where == name
            several = len(set(held[own].tolist())) > 1
            samples = figure(self._alone[name].means(table[own], held[own])) if several else nothing
            found[name] = float(figure(table[own].mean(axis=0))), samples
            drawn.append(figure(self._jointly.means(table[own], held[own])))
        if found:
            counted = (~np.isnan(drawn)).sum(axis=0)
            mean = np.divide(np.nansum(drawn, axis=0), counted, out=nothing.copy(), where=counted > 0)
            value = float(np.mean([value for value, _ in found.values()]))
            found[MEAN_OF_LANGUAGES] = value, mean if len(set(held.tolist())) > 1 else nothing
        return found


def interval(samples: Floats) -> tuple[float | None, float | None]:
    """The ends of the 95 % percentile interval of resamples (resamples,), as tables store them."""
    (low,), (high,) = percentile_interval(samples[:, None])
    return known(low), known(high)
