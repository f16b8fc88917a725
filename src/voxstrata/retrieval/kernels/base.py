"""What every kernel offers: pack utterances once, compare packed sets as often as needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voxstrata.retrieval.ragged import Ragged

FloatMatrix = npt.NDArray[np.float32]
FloatVector = npt.NDArray[np.float32]
PairIndices = npt.NDArray[np.intp]

_WHOLE = 1 / 4  # share of a tile's pairs from which on the whole tile costs no more than the pairs one by one


@dataclass(frozen=True, eq=False)
class Packed:
    """Utterances in a kernel's own form: rows of unit length, checked.

    rows: (frames, d), whatever array and number format the kernel multiplies. offsets: (n + 1,) int64, from 0.
    effective: (n,) float64, frames of each utterance if repeated ones counted less, for kernels
    whose rounding errors average over frames.
    """

    rows: Any
    offsets: npt.NDArray[np.int64]
    effective: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Frames of each utterance, (n,) int64."""
        return np.diff(self.offsets)

    def part(self, i: int, j: int) -> Packed:
        """Utterances i … j - 1, without copying their rows."""
        begin, end = int(self.offsets[i]), int(self.offsets[j])
        effective = None if self.effective is None else self.effective[i:j]
        return Packed(self.rows[begin:end], self.offsets[i : j + 1] - begin, effective)

    def take(self, chosen: npt.NDArray[np.intp]) -> Packed:
        """Some utterances, their rows copied together."""
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        effective = None if self.effective is None else self.effective[chosen]
        return Packed(self.rows[rows], offsets, effective)


class Kernel(Protocol):
    """One way to compute SeqSim's precision and recall.

    What a pair gives never depends on which other pairs are in the call beyond float32 rounding, and the same call
    gives the same bits.
    """

    name: str
    block_frames: int  # frames per side of one call of `compare` from which on it runs at full speed

    def pack(self, utterances: Ragged) -> Packed:
        """Scale rows to unit length, in the kernel's form.

        Raises InputError naming utterance and frame for a row that is zero, NaN or infinite.
        """

    def compare(self, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix]:
        """Precision and recall of every utterance of x (N) to every one of y (M), each (N, M) float32.

        Precision: mean over the frames of x of the largest cosine to a frame of y; recall: mean over the frames of y
        of the largest cosine to a frame of x. Memory beside the result is bounded, whatever N and M.
        """

    def compare_pairs(self, x: Packed, y: Packed, i: PairIndices, j: PairIndices) -> tuple[FloatVector, FloatVector]:
        """Precision and recall of the pairs (i[0], j[0]), (i[1], j[1]), …, each (pairs,) float32.

        For few pairs of many: no product of other pairs is computed.
        """


def runs(lengths: npt.NDArray[np.int64], frames: int, utterances: int | None = None) -> Iterator[tuple[int, int]]:
    """Runs [i, j) of at most so many frames, and utterances, together; a longer utterance stands alone."""
    first, taken = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > first and (taken + length > frames or i - first == utterances):
            yield first, i
            first, taken = i, 0
        taken += length
    yield first, len(lengths)


def compare_some(
    kernel: Kernel, x: Packed, y: Packed, wanted: npt.NDArray[np.bool_] | None
) -> tuple[FloatMatrix, FloatMatrix]:
    """Precision and recall (N, M) of the wanted pairs (N, M) of packed blocks, all if None; others may be NaN."""
    if wanted is None or wanted.mean() > _WHOLE:
        return kernel.compare(x, y)
    precision, recall = np.full((2, *wanted.shape), np.nan, np.float32)
    pairs = np.nonzero(wanted)
    precision[pairs], recall[pairs] = kernel.compare_pairs(x, y, *pairs)
    return precision, recall
