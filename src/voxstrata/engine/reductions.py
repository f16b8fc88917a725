"""What is stored of encoder states, as a small ONNX graph, so that on an accelerator nothing else leaves the device.

The graph takes the states of a batch as they are, padded windows and silence included, and gives the rows that are
stored, one window's after the other's: valid frames, means of `every` neighbouring frames, or each window's mean, in
the stored type. All three are one thing: stored row r is the mean of some frames, and `index` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.store.spec import StoreSpec


@dataclass(frozen=True)
class Reduced:
    """A batch as it is stored.

    rows: for each output, for each window, its stored rows (n, d_model) in the stored type; with `pool` one row, the
    mean over the window's valid frames. finite: for each output, whether all of them are.
    """

    rows: list[list[NDArray[Any]]]
    finite: list[bool]


def row_count(frames: int, spec: StoreSpec) -> int:
    """How many rows are stored of a window of `frames` valid frames (before windows of one utterance are pooled)."""
    return 1 if spec.pool else -(-frames // spec.every)


def gathering(
    frames: Sequence[int], positions: int, spec: StoreSpec
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
    """Which positions each stored row is the mean of.

    frames: valid frames of each window of the batch; window w holds the positions w · `positions` … of the batch.
    Returns `index` int64 (rows, k) and `weights` float32 (rows, k, 1) that add up to 1 in each row, or None where
    single frames are stored. Rows of fewer than k frames repeat the last with weight 0.
    """
    k = max(frames) if spec.pool else spec.every
    index, weights = [], []
    for w, n in enumerate(frames):
        at = np.arange(row_count(n, spec) * k, dtype=np.int64).reshape(-1, k)
        valid = at < n
        index.append(w * positions + np.minimum(at, n - 1))
        weights.append(valid / valid.sum(axis=1, keepdims=True))
    if not spec.pool and k == 1:
        return np.concatenate(index), None
    return np.concatenate(index), np.concatenate(weights)[..., None].astype(np.float32)
