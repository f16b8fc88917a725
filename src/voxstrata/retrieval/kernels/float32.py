"""The base: blocks of S by one matrix product each, their maxima while they are in cache."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import product
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from voxstrata.base.compiled import thread_count
from voxstrata.retrieval.kernels.base import FloatMatrix, FloatVector, Packed, PairIndices, runs
from voxstrata.retrieval.kernels.maxima import add_columns, add_rows, take_maxima
from voxstrata.retrieval.ragged import Ragged

BLOCK_ROWS = 2048  # frames per side of a block of S: 16 MiB of float32, large enough for full matmul speed


class Float32:
    """SeqSim on the CPU in float32.

    Each thread has blocks of S of its own, so that the maxima of one are taken while another is multiplied: at most
    block_rows × block_rows float32 (16 MiB by default) a thread. An utterance longer than that is taken in pieces; then
    its running maxima, one float32 per frame and utterance of the other side's block, exist too. While it runs, BLAS
    has one thread per caller, in the whole process.
    """

    name = "float32"
    block_frames = 65_536

    def __init__(self, block_rows: int = BLOCK_ROWS) -> None:
        self.block_rows = block_rows

    def pack(self, utterances: Ragged) -> Packed:
        return Packed(utterances.unit().rows, utterances.offsets)

    def compare(self, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix]:
        precision, recall = np.empty((len(x), len(y))), np.empty((len(x), len(y)))
        threads = thread_count()
        size = min(self.block_rows, len(x.rows)) * min(self.block_rows, len(y.rows))
        buffers: SimpleQueue[npt.NDArray[np.float32]] = SimpleQueue()
        for _ in range(threads):
            buffers.put(np.empty(size, np.float32))

        def block(both: tuple[tuple[int, int], tuple[int, int]]) -> None:
            (i, j), (k, m) = both
            buffer = buffers.get()
            try:
                precision[i:j, k:m], recall[i:j, k:m] = _sums(x.part(i, j), y.part(k, m), self.block_rows, buffer)
            finally:
                buffers.put(buffer)

        blocks = product(runs(x.lengths, self.block_rows), runs(y.lengths, self.block_rows))
        with ThreadPoolExecutor(threads) as pool, one_blas_thread():
            for _ in pool.map(block, blocks):
                pass
        precision /= x.lengths[:, None]
        recall /= y.lengths
        return precision.astype(np.float32), recall.astype(np.float32)

    def compare_pairs(self, x: Packed, y: Packed, i: PairIndices, j: PairIndices) -> tuple[FloatVector, FloatVector]:
        precision, recall = np.empty(len(i)), np.empty(len(i))

        def share(first: int) -> None:
            buffer = np.empty(self.block_rows**2, np.float32)  # pages that no product fills are never touched
            for n in range(first, len(i), threads):
                a, b = x.part(i[n], i[n] + 1), y.part(j[n], j[n] + 1)
                rows, columns = _sums(a, b, self.block_rows, buffer)
                precision[n], recall[n] = rows[0, 0] / len(a.rows), columns[0, 0] / len(b.rows)

        threads = thread_count()
        with ThreadPoolExecutor(threads) as pool, one_blas_thread():
            for _ in pool.map(share, range(threads)):
                pass
        return precision.astype(np.float32), recall.astype(np.float32)


@cache
def _libraries() -> Any:
    """Handles of the loaded BLAS libraries."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


_lock = Lock()
_users = 0
_limits: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread for each caller of BLAS; what was before returns when the last of several users leaves."""
    global _users, _limits
    with _lock:
        if not _users:
            _limits = _libraries().limit(limits=1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _limits.restore_original_limits()


def _sums(
    x: Packed, y: Packed, block_rows: int, buffer: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each pair the largest cosine of every frame of x, summed, and of every frame of y: both (n, m) float64.

    Either side is one of `runs`: whole utterances that fit one block, or a single longer one, cut into several.
    """
    # Maxima start at -inf: a start of 0 would beat every negative cosine.
    row_max = np.full((len(x.rows), len(y)), -np.inf, np.float32)
    row_sums, column_sums = np.zeros((len(x), len(y))), np.zeros((len(x), len(y)))
    for b in range(0, len(y.rows), block_rows):
        yb = y.rows[b : b + block_rows]
        y_bounds = np.append(y.offsets[:-1], len(yb))
        column_max = np.full((len(x), len(yb)), -np.inf, np.float32)
        for a in range(0, len(x.rows), block_rows):
            xb = x.rows[a : a + block_rows]
            s = np.matmul(xb, yb.T, out=buffer[: len(xb) * len(yb)].reshape(len(xb), len(yb)))
            take_maxima(s, np.append(x.offsets[:-1], len(xb)), y_bounds, row_max[a : a + len(xb)], column_max)
        add_columns(column_max, y_bounds, column_sums)
    add_rows(row_max, x.offsets, row_sums)
    return row_sums, column_sums
