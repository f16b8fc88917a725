"""What every kernel offers: pack utterances once, compare packed sets as often as needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voxstrata.retrieval.ragged import Ragged

FloatMatrix = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Packed:
    """Utterances in a kernel's own form: rows of unit length, checked.

    rows: (frames, d), whatever array and number format the kernel multiplies. offsets: (n + 1,) int64, from 0.
    names: as in Ragged.
    """

    rows: Any
    offsets: npt.NDArray[np.int64]
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Frames of each utterance, (n,) int64."""
        return np.diff(self.offsets)

    def part(self, i: int, j: int) -> Packed:
        """Utterances i … j - 1, without copying their rows."""
        begin, end = int(self.offsets[i]), int(self.offsets[j])
        return Packed(self.rows[begin:end], self.offsets[i : j + 1] - begin, self.names[i:j])


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
        ...

    def compare(self, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix]:
        """Precision and recall of every utterance of x (N) to every one of y (M), each (N, M) float32.

        Precision: mean over the frames of x of the largest cosine to a frame of y; recall: mean over the frames of y
        of the largest cosine to a frame of x. Memory beside the result is bounded, whatever N and M.
        """
        ...
