"""The base: blocks of S by one matrix product each, their maxima while they are in cache."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from voxstrata.retrieval.kernels.base import FloatMatrix, Packed
from voxstrata.retrieval.ragged import Ragged

BLOCK_ROWS = 2048  # frames per side of a block of S: 16 MiB of float32, large enough for full matmul speed


class Float32:
    """SeqSim on the CPU in float32.

    At most block_rows × block_rows float32 of S exist at a time (16 MiB by default). An utterance longer than that is
    taken in pieces; then its running maxima, one float32 per frame and utterance of the other side's block, exist too.
    """

    name = "float32"
    block_frames = 65_536

    def __init__(self, block_rows: int = BLOCK_ROWS) -> None:
        self.block_rows = block_rows

    def pack(self, utterances: Ragged) -> Packed:
        return Packed(utterances.unit().rows, utterances.offsets, utterances.names)

    def compare(self, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix]:
        block_rows = self.block_rows
        precision = np.empty((len(x), len(y)))
        recall = np.empty((len(x), len(y)))
        buffer = np.empty(min(block_rows, len(x.rows)) * min(block_rows, len(y.rows)), np.float32)
        for i, j in _groups(x.lengths, block_rows):
            for k, m in _groups(y.lengths, block_rows):
                row_max, column_max = _maxima(x, y, slice(i, j), slice(k, m), block_rows, buffer)
                x_starts, y_starts = _starts(x.offsets, i, j), _starts(y.offsets, k, m)
                precision[i:j, k:m] = np.add.reduceat(row_max, x_starts, axis=0, dtype=np.float64)
                recall[i:j, k:m] = np.add.reduceat(column_max, y_starts, axis=1, dtype=np.float64)
        precision /= x.lengths[:, None]
        recall /= y.lengths
        return precision.astype(np.float32), recall.astype(np.float32)


def _maxima(
    x: Packed, y: Packed, xs: slice, ys: slice, block_rows: int, buffer: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Largest cosine of each frame of x[xs] within each utterance of y[ys], and the other way round.

    (frames of xs, utterances of ys) and (utterances of xs, frames of ys), float32. Either side is a group of
    `_groups`: whole utterances that fit one block, or a single longer one, cut into several blocks.
    """
    x_first, x_last = int(x.offsets[xs.start]), int(x.offsets[xs.stop])
    y_first, y_last = int(y.offsets[ys.start]), int(y.offsets[ys.stop])
    # Maxima start at -inf: a start of 0 would beat every negative cosine.
    row_max = np.full((x_last - x_first, ys.stop - ys.start), -np.inf, np.float32)
    column_max = np.full((xs.stop - xs.start, y_last - y_first), -np.inf, np.float32)
    x_bounds = [*_starts(x.offsets, xs.start, xs.stop), block_rows]
    y_starts = _starts(y.offsets, ys.start, ys.stop)
    for a in range(x_first, x_last, block_rows):
        xb = x.rows[a : min(a + block_rows, x_last)]
        rows = row_max[a - x_first : a - x_first + len(xb)]
        for b in range(y_first, y_last, block_rows):
            yb = y.rows[b : min(b + block_rows, y_last)]
            columns = column_max[:, b - y_first : b - y_first + len(yb)]
            s = np.matmul(xb, yb.T, out=buffer[: len(xb) * len(yb)].reshape(len(xb), len(yb)))
            np.maximum(rows, np.maximum.reduceat(s, y_starts, axis=1), out=rows)
            # Not reduceat: along axis 0 it walks down columns, which is far slower.
            for i, (start, end) in enumerate(pairwise(x_bounds)):
                np.maximum(columns[i], s[start:end].max(axis=0), out=columns[i])
    return row_max, column_max


def _groups(lengths: npt.NDArray[np.int64], block_rows: int) -> Iterator[tuple[int, int]]:
    """Runs [i, j) of utterances with at most block_rows frames together; a longer utterance stands alone."""
    first, frames = 0, 0
    for i, length in enumerate(lengths):
        if i > first and frames + length > block_rows:
            yield first, i
            first, frames = i, 0
        frames += length
    yield first, len(lengths)


def _starts(offsets: npt.NDArray[np.int64], i: int, j: int) -> npt.NDArray[np.int64]:
    """First rows of utterances i to j, counted from the first row of utterance i."""
    starts: npt.NDArray[np.int64] = offsets[i:j] - offsets[i]
    return starts
