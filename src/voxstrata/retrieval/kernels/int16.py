"""The fast path on x86: fixed-point rows, exact 32-bit integer sums, maxima in integers."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from voxstrata.base.compiled import thread_count
from voxstrata.base.errors import UsageError
from voxstrata.retrieval.kernels.base import FloatMatrix, FloatVector, Packed, PairIndices, runs
from voxstrata.retrieval.kernels.fixed_point import (
    X_WIDTH,
    Y_WIDTH,
    available,
    effective_frames,
    panels,
    scale,
    sums_of_maxima,
)
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.ragged import Ragged

GROUP_FRAMES = 2048  # frames per side of one task of a thread
PACKED_FRAMES = 32_768  # frames per side that are in fixed point at a time: 80 MiB at d = 1280
FEW = 16  # effective frames below which rounding errors do not average out


class Int16:
    """SeqSim on the CPU from unit rows rounded to 16 bits.

    In steps of 1 / 46,000 (coarser where an entry is above 0.707) the error of one cosine has a standard deviation of
    9e-6, sqrt(1/12) steps for either side, and the mean over the frames of an utterance averages it. A frame that
    occurs again has the same error again: an utterance of T frames of which c₁, c₂, … are equal averages over T² / Σ c²
    of them. Pairs with an utterance of fewer than 16 effective frames go through `Float32`. What remains: frames that
    are nearly equal average one side only (within 3e-5), and rows that hold few different values (1 and -1 only, say)
    round them all alike, by up to sqrt(d) / 46,000.
    Raises UsageError where the machine has no AVX2.
    """

    name = "int16"
    block_frames = PACKED_FRAMES

    def __init__(self) -> None:
        if not available():
            raise UsageError("kernel int16 needs a CPU with AVX2; take float32")

    def pack(self, utterances: Ragged) -> Packed:
        rows = utterances.unit().rows
        return Packed(rows, utterances.offsets, effective_frames(rows, utterances.offsets))

    def compare(self, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix]:
        precision, recall = np.empty((len(x), len(y))), np.empty((len(x), len(y)))
        with ThreadPoolExecutor(thread_count()) as pool:
            for i, j in runs(x.lengths, PACKED_FRAMES):
                x_groups = _fixed(x.part(i, j), i, X_WIDTH, pool)
                for k, m in runs(y.lengths, PACKED_FRAMES):
                    y_groups = _fixed(y.part(k, m), k, Y_WIDTH, pool)
                    blocks = list(product(x_groups, y_groups))
                    sums = pool.map(lambda block: sums_of_maxima(*block[0][2:], *block[1][2:]), blocks)
                    for ((rows, a, *_), (columns, b, *_)), (row_sums, column_sums) in zip(blocks, sums, strict=True):
                        scales = a[:, None] * b
                        precision[rows, columns], recall[rows, columns] = row_sums / scales, column_sums / scales
        precision /= x.lengths[:, None]
        recall /= y.lengths
        assert x.effective is not None, "not from `pack`"
        assert y.effective is not None, "not from `pack`"
        x_few, y_few = x.effective < FEW, y.effective < FEW
        for xs, ys in ((x_few, np.full(len(y), True)), (~x_few, y_few)):
            if xs.any() and ys.any():
                pairs = np.ix_(xs, ys)
                precision[pairs], recall[pairs] = Float32().compare(
                    x.take(np.flatnonzero(xs)), y.take(np.flatnonzero(ys))
                )
        return precision.astype(np.float32), recall.astype(np.float32)

    def compare_pairs(self, x: Packed, y: Packed, i: PairIndices, j: PairIndices) -> tuple[FloatVector, FloatVector]:
        precision, recall = np.empty(len(i), np.float32), np.empty(len(i), np.float32)
        assert x.effective is not None, "not from `pack`"
        assert y.effective is not None, "not from `pack`"
        few = (x.effective < FEW)[i] | (y.effective < FEW)[j]
        if few.any():
            precision[few], recall[few] = Float32().compare_pairs(x, y, i[few], j[few])
        many = np.flatnonzero(~few)
        threads = thread_count()

        def share(first: int) -> None:
            for n in many[first::threads].tolist():
                x_scale, rows, x_bounds = x_fixed[i[n]]
                y_scale, columns, y_bounds = y_fixed[j[n]]
                row_sums, column_sums = sums_of_maxima(rows, x_bounds, columns, y_bounds)
                scales = x_scale[0] * y_scale[0]
                precision[n] = row_sums[0, 0] / scales / x_bounds[-1]
                recall[n] = column_sums[0, 0] / scales / y_bounds[-1]

        with ThreadPoolExecutor(threads) as pool:
            x_fixed, y_fixed = _one_by_one(x, i[many], X_WIDTH, pool), _one_by_one(y, j[many], Y_WIDTH, pool)
            for _ in pool.map(share, range(threads)):
                pass
        return precision, recall


Fixed = tuple[npt.NDArray[np.float64], npt.NDArray[np.int32], npt.NDArray[np.int64]]
Group = tuple[slice, npt.NDArray[np.float64], npt.NDArray[np.int32], npt.NDArray[np.int64]]


def _fixed(side: Packed, first: int, width: int, pool: ThreadPoolExecutor) -> list[Group]:
    """Groups of utterances in fixed point: the rows or columns of the result, scales, `panels`, offsets."""
    # Not more than a thread's share: a small set, too, keeps all threads busy.
    bounds = list(runs(side.lengths, min(GROUP_FRAMES, len(side.rows) // thread_count())))
    parts = [side.part(i, j) for i, j in bounds]
    packed = pool.map(lambda part: _panels(part, width), parts)
    return [(slice(first + i, first + j), *fixed) for (i, j), fixed in zip(bounds, packed, strict=True)]


def _panels(part: Packed, width: int) -> Fixed:
    """Scales by utterance, `panels`, offsets."""
    scales = np.array([scale(part.rows[i:j]) for i, j in pairwise(part.offsets)], np.float32)
    return scales.astype(np.float64), panels(part.rows, part.offsets, scales, width), part.offsets


def _one_by_one(side: Packed, chosen: PairIndices, width: int, pool: ThreadPoolExecutor) -> dict[int, Fixed]:
    """Each of the chosen utterances in fixed point."""
    used = np.unique(chosen).tolist()
    return dict(zip(used, pool.map(lambda u: _panels(side.part(u, u + 1), width), used), strict=True))
