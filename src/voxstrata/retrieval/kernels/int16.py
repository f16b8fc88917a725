"""The fast path on x86: fixed-point rows, exact 32-bit integer sums, maxima in integers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import numpy.typing as npt

from voxstrata.errors import UsageError
from voxstrata.retrieval.kernels.base import FloatMatrix, Packed, runs
from voxstrata.retrieval.kernels.fixed_point import (
    SCALE,
    X_WIDTH,
    Y_WIDTH,
    available,
    effective_frames,
    panels,
    sums_of_maxima,
)
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.kernels.maxima import thread_count
from voxstrata.retrieval.ragged import Ragged

GROUP_FRAMES = 2048  # frames per side of one task of a thread
PACKED_FRAMES = 32_768  # frames per side that are in fixed point at a time: 80 MiB at d = 1280
FEW = 16  # effective frames below which rounding errors do not average out


class Int16:
    """SeqSim on the CPU from unit rows rounded to multiples of 1 / 32767.

    The error of one cosine has a standard deviation of 1.3e-5 (two sides of sqrt(1/12) steps each), and the mean over
    the frames of an utterance averages it. A frame that occurs again has the same error again: an utterance of T frames
    of which c₁, c₂, … are equal averages over T² / Σ c² of them. Pairs with an utterance of fewer than 16 effective
    frames go through `Float32`.
    Raises UsageError where the machine has no AVX2.
    """

    name = "int16"
    block_frames = PACKED_FRAMES

    def __init__(self) -> None:
        if not available():
            raise UsageError("kernel int16 needs a CPU with AVX2; take float32")

    def pack(self, utterances: Ragged) -> Packed:
        rows = utterances.unit().rows
        return Packed(rows, utterances.offsets, utterances.names, effective_frames(rows, utterances.offsets))

    def compare(self, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix]:
        precision = np.empty((len(x), len(y)))
        recall = np.empty((len(x), len(y)))
        with ThreadPoolExecutor(thread_count()) as pool:
            for i, j in runs(x.lengths, PACKED_FRAMES):
                x_groups = _fixed(x.part(i, j), i, X_WIDTH, pool)
                for k, m in runs(y.lengths, PACKED_FRAMES):
                    y_groups = _fixed(y.part(k, m), k, Y_WIDTH, pool)
                    blocks = list(product(x_groups, y_groups))
                    sums = pool.map(lambda block: sums_of_maxima(*block[0][1:], *block[1][1:]), blocks)
                    for ((rows, *_), (columns, *_)), (row_sums, column_sums) in zip(blocks, sums, strict=True):
                        precision[rows, columns], recall[rows, columns] = row_sums, column_sums
        precision /= x.lengths[:, None] * SCALE**2
        recall /= y.lengths * SCALE**2
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


Group = tuple[slice, npt.NDArray[np.int32], npt.NDArray[np.int64]]


def _fixed(side: Packed, first: int, width: int, pool: ThreadPoolExecutor) -> list[Group]:
    """Groups of utterances in fixed point: the rows or columns of the result, `panels`, offsets."""
    # Not more than a thread's share: a small set, too, keeps all threads busy.
    bounds = list(runs(side.lengths, min(GROUP_FRAMES, len(side.rows) // thread_count())))
    parts = [side.part(i, j) for i, j in bounds]
    packed = pool.map(lambda part: panels(part.rows, width), parts)
    return [
        (slice(first + i, first + j), rows, part.offsets)
        for (i, j), rows, part in zip(bounds, packed, parts, strict=True)
    ]
