"""Candidate mode: exact SeqSim on each query's nearest by mean-pooled cosine only, and what that misses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.retrieval.compare import Sink, Tiles, compare
from voxstrata.retrieval.kernels.base import FloatMatrix, Kernel
from voxstrata.retrieval.pooled import pooled_cosine
from voxstrata.retrieval.selection import SelectedFrames, Selection
from voxstrata.retrieval.similarities import harmonic
from voxstrata.retrieval.topk import TopK

_POOLED = 2048  # pooled states per side of one product
_SEED = 0  # of the sample of queries


@dataclass(frozen=True, eq=False)
class CandidateSets:
    """Candidates of every query, as positions; -1 where there are fewer.

    forward: int32 (x, C), positions in y. backward: int32 (y, C), positions in x; of a set compared with itself, the
    same as forward.
    """

    forward: NDArray[np.int32]
    backward: NDArray[np.int32]

    def wanted(self, xs: slice, ys: slice) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which pairs of a tile are candidates: of x's queries, and of y's, both (xs, ys) bool."""
        return _mask(self.forward[xs], ys), np.ascontiguousarray(_mask(self.backward[ys], xs).T)


def nearest_pooled(x: Selection, y: Selection | None, output: str, count: int) -> CandidateSets:
    """The `count` nearest of every query by mean-pooled cosine, in both directions; ties go to the lower position.

    Pooled states of both sides are held in memory. Raises InputError naming an utterance whose mean has no direction.
    """
    forward, backward = (top.candidates() for top in nearest_lists(x, y, output, count))
    return CandidateSets(forward, forward if y is None else backward)


def nearest_lists(x: Selection, y: Selection | None, output: str, count: int) -> tuple[TopK, TopK]:
    """The same with the cosines; of a set compared with itself the second is empty."""
    x_pooled = x.store.pooled(output, x.indices)
    y_pooled = x_pooled if y is None else y.store.pooled(output, y.indices)
    other = x if y is None else y
    forward, backward = TopK(len(x), count), TopK(0 if y is None else len(other), count)
    for a, b in product(range(0, len(x), _POOLED), range(0, len(other), _POOLED)):
        i, j = slice(a, a + _POOLED), slice(b, b + _POOLED)
        cosine = pooled_cosine(x_pooled[i], y_pooled[j], x.ids[i], other.ids[j])
        if y is None:
            allowed = np.arange(a, a + len(cosine))[:, None] != np.arange(b, b + cosine.shape[1])
            forward.update(a, b, cosine, cosine, cosine, allowed)
        else:
            forward.update(a, b, cosine, cosine, cosine)
            backward.update(b, a, cosine.T, cosine.T, cosine.T)
    return forward, backward


def measure_recall(
    x: Selection, y: Selection | None, output: str, sets: CandidateSets, sample: int, tiles: Tiles, kernel: Kernel
) -> dict[str, Any]:
    """What the candidates hold of what exact search finds, per direction.

    exact_top1_among_candidates: share of `sampled` queries (drawn with a fixed seed, all of them if they are no more
    than `sample`) whose best by F1 among all of the other side is a candidate. translation_among_candidates: share of
    all `queries_with_translation` of which a candidate has the same group; null when there is none.
    tiles: in whose blocks the sides are read.
    """
    directions = [("forward", x, x if y is None else y, sets.forward, tiles.y)]
    if y is not None:
        directions.append(("backward", y, x, sets.backward, tiles.x))
    found = {}
    for name, queries, others, candidates, begin in directions:
        drawn = np.sort(np.random.default_rng(_SEED).choice(len(queries), min(sample, len(queries)), replace=False))
        own = drawn if y is None else None
        best = _exact_best(queries.part(drawn).frames(output), own, others.frames(output), begin, kernel)
        hits = (candidates[drawn] == best[:, None]).any(axis=1)
        translated = _translated(queries, others, candidates, y is None)
        found[name] = {
            "sampled": len(drawn),
            "exact_top1_among_candidates": float(hits.mean()),
            "queries_with_translation": len(translated),
            "translation_among_candidates": float(np.mean(translated)) if translated else None,
        }
    return found


class _Best(Sink):
    """Keeps the best of all others for each query."""

    def __init__(self, queries: int, own: NDArray[np.int64] | None) -> None:
        self.best, self._own = TopK(queries, 1), own

    def put(self, xs: slice, ys: slice, precision: FloatMatrix, recall: FloatMatrix) -> None:
        allowed = None if self._own is None else self._own[xs, None] != np.arange(ys.start, ys.stop)
        self.best.update(xs.start, ys.start, harmonic(precision, recall), precision, recall, allowed)


def _exact_best(
    queries: SelectedFrames, own: NDArray[np.int64] | None, others: SelectedFrames, begin: Sequence[int], kernel: Kernel
) -> NDArray[np.int32]:
    """Position of the best of all others for each query, int32 (n,); `own` are positions that do not count."""
    limit = int(max(others.lengths[a:b].sum() for a, b in pairwise(begin)))
    sink = _Best(len(queries.lengths), own)
    compare(queries, others, kernel, sink, tiles=Tiles(queries.selection.blocks(limit, _POOLED), begin))
    return sink.best.candidates()[:, 0]


def _translated(queries: Selection, others: Selection, candidates: NDArray[np.int32], itself: bool) -> list[bool]:
    """Of each query with a translation on the other side: whether one is among its candidates."""
    count = Counter(others.groups.tolist())
    return [
        any(others.groups[c] == group for c in candidates[query] if c >= 0)
        for query, group in enumerate(queries.groups.tolist())
        if group is not None and count[group] > int(itself)
    ]


def _mask(candidates: NDArray[np.int32], columns: slice) -> NDArray[np.bool_]:
    """Whether each of some columns is a candidate, (queries, columns) bool."""
    mask = np.zeros((len(candidates), columns.stop - columns.start), bool)
    query, place = np.nonzero((candidates >= columns.start) & (candidates < columns.stop))
    mask[query, candidates[query, place] - columns.start] = True
    return mask
