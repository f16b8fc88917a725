"""The order-aware score: the best monotone alignment of two utterances' frames, over the same tiles as SeqSim."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np

from voxstrata.base.compiled import jit, thread_count
from voxstrata.retrieval.kernels.base import FloatMatrix, FloatVector, Packed, PairIndices, runs
from voxstrata.retrieval.kernels.float32 import BLOCK_ROWS, one_blas_thread
from voxstrata.retrieval.kernels.maxima import larger
from voxstrata.retrieval.ragged import Ragged


class Monotone:
    """Dynamic time warping of the cosines S that SeqSim is made of, on the CPU in float32.

    D(i, j) = S(i, j) + max(D(i - 1, j), D(i, j - 1), D(i - 1, j - 1) + S(i, j)), D(1, 1) = 2 S(1, 1), and the score is
    D(T1, T2) / (T1 + T2): the symmetric form without slope constraint of Sakoe and Chiba 1978 (IEEE TASSP 26), for
    similarities in place of distances. A diagonal step counts twice, so every path weighs T1 + T2 whatever its length:
    the score is a mean in [-1, 1], and long paths win nothing. Which of several best paths is taken does not matter.
    Each frame of x is met for the first time once, and so is each of y: the score is at most (T1 P + T2 R) / (T1 + T2)
    with SeqSim's precision P and recall R, for which frames may be chosen in any order.

    As `Kernel` has it there are two matrices; here precision and recall are both the score, which is symmetric.
    Memory: a block of S, 16 MiB by default, for each thread.
    """

    name = "monotone"
    block_frames = 65_536

    def __init__(self, block_rows: int = BLOCK_ROWS) -> None:
        self.block_rows = block_rows

    def pack(self, utterances: Ragged) -> Packed:
        return Packed(utterances.unit().rows, utterances.offsets)

    def compare(self, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix]:
        scores = np.empty((len(x), len(y)), np.float32)

        def block(both: tuple[tuple[int, int], tuple[int, int]]) -> None:
            (i, j), (k, m) = both
            scores[i:j, k:m] = _aligned(x.part(i, j), y.part(k, m), self.block_rows)

        blocks = product(runs(x.lengths, self.block_rows), runs(y.lengths, self.block_rows))
        with ThreadPoolExecutor(thread_count()) as pool, one_blas_thread():
            for _ in pool.map(block, blocks):
                pass
        return scores, scores

    def compare_pairs(self, x: Packed, y: Packed, i: PairIndices, j: PairIndices) -> tuple[FloatVector, FloatVector]:
        def pair(both: tuple[int, int]) -> float:
            a, b = both
            return float(_aligned(x.part(a, a + 1), y.part(b, b + 1), self.block_rows)[0, 0])

        with ThreadPoolExecutor(thread_count()) as pool, one_blas_thread():
            scores = np.array(list(pool.map(pair, zip(i.tolist(), j.tolist(), strict=True))), np.float32)
        return scores, scores


def _aligned(x: Packed, y: Packed, block_rows: int) -> FloatMatrix:
    """Scores (n, m) float32 of every utterance of x to every one of y, S a few rows at a time."""
    scores = np.empty((len(x), len(y)), np.float32)
    step = max(1, block_rows**2 // len(y.rows))
    reached = np.empty(len(y.rows))  # D of the last row, for every column
    for a in range(0, len(x.rows), step):
        s = x.rows[a : a + step] @ y.rows.T
        _advance(s, a, x.offsets, y.offsets, reached, scores)
    return scores


@jit
def _advance(s: Any, first: Any, x_bounds: Any, y_bounds: Any, reached: Any, scores: Any) -> None:
    """Go on with D by the rows of s: (rows, columns), the first of them row `first` of x.

    x_bounds (n + 1,), y_bounds (m + 1,): where utterances begin. reached: (columns,) float64, D of the row before, and
    after the call of the last. scores (n, m) is filled for utterances of x that end in s.
    """
    i = 0
    for r in range(len(s)):
        row = first + r
        while row >= x_bounds[i + 1]:
            i += 1
        for j in range(len(y_bounds) - 1):
            begin, end = y_bounds[j], y_bounds[j + 1]
            if row == x_bounds[i]:
                left = np.float64(s[r, begin])  # counted again below: the first pair weighs 2
                for c in range(begin, end):
                    left += s[r, c]
                    reached[c] = left
            else:
                before = reached[begin]
                left = before + s[r, begin]
                reached[begin] = left
                for c in range(begin + 1, end):
                    above = reached[c]
                    left = larger(larger(above, left), before + s[r, c]) + s[r, c]
                    before = above
                    reached[c] = left
            if row == x_bounds[i + 1] - 1:
                scores[i, j] = reached[end - 1] / (x_bounds[i + 1] - x_bounds[i] + end - begin)
