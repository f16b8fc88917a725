"""What two languages make of the sentences that both hold: nearest neighbours, CKA."""

import math

import numpy as np
import numpy.typing as npt

from voxstrata.evaluation.bootstrap import Resamples
from voxstrata.evaluation.cka import group_means, linear_cka
from voxstrata.evaluation.metrics import Evaluation, Float64
from voxstrata.evaluation.neighbours import mutual_neighbours
from voxstrata.retrieval.selection import Selection
from voxstrata.studies.retrieve.text import MUTUAL

_Groups = npt.NDArray[np.str_]


def shared_means(
    x: Selection, y: Selection, x_states: npt.NDArray[np.float32], y_states: npt.NDArray[np.float32]
) -> tuple[_Groups, Float64, Float64]:
    """The groups that both languages hold, and their mean states on either side."""
    (x_groups, x_means), (y_groups, y_means) = group_means(x_states, x.groups), group_means(y_states, y.groups)
    shared, i, j = np.intersect1d(x_groups, y_groups, assume_unique=True, return_indices=True)
    return shared, x_means[i], y_means[j]


def agreement(
    groups: _Groups, x: Float64, y: Float64, k: int, permutations: int, resamples: Resamples | None, seed: int
) -> Evaluation:
    """Mutual nearest neighbours of the groups that both languages hold, its queries and candidates."""
    found = mutual_neighbours(x, y, k, permutations, seed)
    samples = np.empty((0, 1)) if resamples is None else resamples.means(found.shares[:, None], groups)
    asked = 0 if math.isnan(found.chance) else len(groups)
    value = np.array([found.shares.mean() if asked else math.nan])
    null, chance = found.null[:, None], np.array([found.chance])
    metrics = (f"{MUTUAL}@{k}",)
    return Evaluation(metrics, value, chance, samples, asked, 0, len(groups), len(groups), null)


def cka_of(x: Float64, y: Float64) -> Evaluation:
    """Linear CKA of matched rows, its queries and candidates."""
    if len(x) < 2:
        return unsampled({"cka": (math.nan, math.nan), "cka_debiased": (math.nan, math.nan)}, 0, len(x))
    cka = linear_cka(x, y)
    return unsampled({"cka": (cka.value, cka.chance), "cka_debiased": (cka.debiased, 0.0)}, len(x), len(x))


def unsampled(figures: dict[str, tuple[float, float]], queries: int, candidates: int) -> Evaluation:
    """Figures without resamples: value and chance by metric."""
    values, chance = np.array(list(figures.values())).T
    return Evaluation(tuple(figures), values, chance, np.empty((0, len(figures))), queries, 0, candidates, candidates)
