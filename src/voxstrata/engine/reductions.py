"""What is stored of encoder states: valid frames, means of `every` neighbours, or what gives each mean.

`reduce_states` does it on the host, the graph of `exporters.reductions` on an accelerator. To that graph all three are
one thing: row r is the mean of some frames, and `gathering` says which.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.store.spec import StoreSpec

FLOAT16_INFINITY = 0x7C00  # the bits of infinity; those of NaN are above, those of numbers below


@dataclass(frozen=True)
class StoredRows:
    """What is stored of a batch of windows.

    rows: for each output, for each window, its rows (n, d_model) in the stored dtype. With `pool` one row in float64,
    the *sum* over the window's valid frames: an utterance may have several windows, and whoever places the rows divides
    by the frames of all of them.
    finite: for each output, whether all values are.
    """

    rows: list[list[NDArray[Any]]]
    finite: list[bool]


def row_count(frames: int, spec: StoreSpec) -> int:
    """How many rows are stored of a window of `frames` valid frames (before windows of one utterance are pooled)."""
    return 1 if spec.pool else -(-frames // spec.every)


def reduce_states(
    states: Sequence[NDArray[Any] | Sequence[NDArray[Any]]], frames: Sequence[int], spec: StoreSpec
) -> StoredRows:
    """What is stored of a batch whose states are on the host.

    states: for each output (batch, positions, d_model). frames: valid frames of each window, which come first.
    Sums of `pool` are taken in float64, means of `every` neighbours in float32. Values beyond float16 become infinite.
    """
    rows = [[_window_rows(state[:n], spec) for state, n in zip(batch, frames, strict=True)] for batch in states]
    return StoredRows(rows, [all(map(all_finite, own)) for own in rows])


def _window_rows(state: NDArray[Any], spec: StoreSpec) -> NDArray[Any]:
    if spec.pool:
        return np.asarray(state.sum(axis=0, dtype=np.float64, keepdims=True))
    if spec.every > 1:
        first = np.arange(0, len(state), spec.every)
        sizes = np.diff(np.append(first, len(state)))
        state = np.add.reduceat(state.astype(np.float32), first, axis=0) / sizes[:, None]
    with np.errstate(over="ignore"):
        return state.astype(spec.stored_dtype, copy=False)


def all_finite(a: NDArray[Any]) -> bool:
    """Whether all values are finite; by their bits where numpy's own test is slow."""
    if a.dtype != np.float16:
        return bool(np.isfinite(a).all())
    # as signed numbers the positive ones are in order, as unsigned ones the negative ones are the largest
    return int(a.view(np.int16).max()) < FLOAT16_INFINITY and int(a.view(np.uint16).max()) < 0x8000 + FLOAT16_INFINITY


def gathering(
    kept: Sequence[tuple[int, int]], positions: int, spec: StoreSpec
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
    """Which positions each stored row is the mean of.

    kept: of each window of the batch, how many frames are not kept before those that are, and how many these are.
    Window w holds the positions w · `positions` … of the batch.
    Returns `index` int64 (rows, k) and `weights` float32 (rows, 1, k) that add up to 1 in each row, or None where
    single frames are stored. Rows of fewer than k frames repeat the last with weight 0.
    """
    k = max(n for _, n in kept) if spec.pool else spec.every
    index, weights = [], []
    for w, (skip, n) in enumerate(kept):
        at = np.arange(row_count(n, spec) * k, dtype=np.int64).reshape(-1, k)
        valid = at < n
        index.append(w * positions + skip + np.minimum(at, n - 1))
        weights.append(valid / valid.sum(axis=1, keepdims=True))
    if not spec.pool and k == 1:
        return np.concatenate(index), None
    return np.concatenate(index), np.concatenate(weights)[:, None].astype(np.float32)
