"""The base: blocks of S by one matrix product each, their maxima while they are in cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from voxstrata.retrieval.kernels.base import FloatMatrix, Packed
from voxstrata.retrieval.kernels.maxima import add_columns, add_rows, groups, take_maxima, thread_count
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
        with ThreadPoolExecutor(thread_count()) as pool:
            for i, j in groups(x.lengths, block_rows):
                for k, m in groups(y.lengths, block_rows):
                    xs, ys = x.part(i, j), y.part(k, m)
                    precision[i:j, k:m], recall[i:j, k:m] = _sums(xs, ys, block_rows, buffer, pool)
        precision /= x.lengths[:, None]
        recall /= y.lengths
        return precision.astype(np.float32), recall.astype(np.float32)


def _sums(
    x: Packed, y: Packed, block_rows: int, buffer: npt.NDArray[np.float32], pool: ThreadPoolExecutor
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each pair the largest cosine of every frame of x, summed, and of every frame of y: both (n, m) float64.

    Either side is one of `groups`: whole utterances that fit one block, or a single longer one, cut into several.
    """
    # Maxima start at -inf: a start of 0 would beat every negative cosine.
    row_max = np.full((len(x.rows), len(y)), -np.inf, np.float32)
    row_sums, column_sums = np.zeros((len(x), len(y))), np.zeros((len(x), len(y)))
    # Threads share the utterances of x, so that no two write the same maximum. Half of them: the threads of the matrix
    # product spin for a while after it, and on two cores two threads took longer for the maxima than one.
    cuts = np.linspace(0, len(x), min(len(x), max(1, thread_count() // 2)) + 1).astype(np.int64)
    for b in range(0, len(y.rows), block_rows):
        yb = y.rows[b : b + block_rows]
        y_bounds = np.append(y.offsets[:-1], len(yb))
        column_max = np.full((len(x), len(yb)), -np.inf, np.float32)
        for a in range(0, len(x.rows), block_rows):
            xb = x.rows[a : a + block_rows]
            x_bounds = np.append(x.offsets[:-1], len(xb))
            s = np.matmul(xb, yb.T, out=buffer[: len(xb) * len(yb)].reshape(len(xb), len(yb)))
            rows = row_max[a : a + len(xb)]
            *others, own = [(s, x_bounds[i : j + 1], y_bounds, rows, column_max[i:j]) for i, j in pairwise(cuts)]
            started = [pool.submit(take_maxima, *share) for share in others]
            take_maxima(*own)
            for future in started:
                future.result()
        add_columns(column_max, y_bounds, column_sums)
    add_rows(row_max, x.offsets, row_sums)
    return row_sums, column_sums
