"""Similarities of the states of two languages, as stored or with the means of speaker and language removed.

Frames are read block by block, so a language need not fit in memory; matrices of N × M similarities do.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.retrieval.compare import Matrices, Utterances, compare
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.retrieval.pooled import pooled_cosine
from voxstrata.retrieval.ragged import Ragged
from voxstrata.studies.align.inputs import Participants

RAW, CENTRED = "raw", "means removed"  # the kinds of states
SEQSIM, POOLED = "seqsim_f1", "pooled_cosine"  # the similarities

_Centres = dict[int, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class CentredFrames:
    """Frames less the centre of each utterance's cell: a side of `compare`. centres: (n, d) float32."""

    frames: Utterances
    centres: NDArray[np.float32]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each utterance, int64 (n,)."""
        return self.frames.lengths

    def ragged(self, begin: int, end: int) -> Ragged:
        """Frames of the utterances at positions begin … end - 1, float32."""
        block = self.frames.ragged(begin, end)
        rows = block.rows.astype(np.float32)
        for (first, last), centre in zip(pairwise(block.offsets), self.centres[begin:end], strict=True):
            rows[first:last] -= centre
        return replace(block, rows=rows)


def cell_centres(participants: Participants, output: str) -> _Centres:
    """What is removed from each cell: the mean over its utterances' mean states, (d,) float32.

    Speakers are cells within their language, so removing their mean removes the language's too; cell 0, of
    utterances whose speaker is unknown or rare, takes the mean of all of the language.
    """
    selection, cells = participants.selection, participants.cells
    means = selection.store.pooled(output, selection.indices).astype(np.float64)
    return {
        int(cell): (means if cell == 0 else means[cells == cell]).mean(axis=0).astype(np.float32)
        for cell in np.unique(cells)
    }


class StateSimilarity:
    """Similarities of one output between languages. centres: by language, see `cell_centres`."""

    def __init__(self, output: str, similarity: str, kernel: Kernel, centres: dict[str, _Centres]) -> None:
        self.output, self._similarity, self._kernel, self._centres = output, similarity, kernel, centres
        self._means: dict[bytes, NDArray[np.float32]] = {}  # (n, d), by the utterances' indices

    def matrix(self, x: Participants, y: Participants, states: str) -> NDArray[np.float32]:
        """Similarity of every utterance of x (N) to every one of y (M), (N, M); the same both ways.

        Raises InputError for a frame, or a pooled state, that is zero, NaN or infinite.
        """
        if self._similarity == POOLED:
            a, b = self._pooled(x, states), self._pooled(y, states)
            try:
                return pooled_cosine(a, b, x.selection.ids, y.selection.ids)
            except InputError as error:
                raise InputError(f"output {self.output}: {error}") from error
        sink = Matrices(len(x.selection), len(y.selection))
        compare(self._frames(x, states), self._frames(y, states), self._kernel, sink)
        return sink.seqsim().f1

    def _frames(self, side: Participants, states: str) -> Utterances:
        frames = side.selection.frames(self.output)
        return frames if states == RAW else CentredFrames(frames, self._centre_of_each(side))

    def _pooled(self, side: Participants, states: str) -> NDArray[np.float32]:
        indices = side.selection.indices
        if (key := indices.tobytes()) not in self._means:  # read once for raw states and for those less their means
            self._means[key] = side.selection.store.pooled(self.output, indices)
        rows = self._means[key]
        return rows if states == RAW else rows - self._centre_of_each(side)

    def _centre_of_each(self, side: Participants) -> NDArray[np.float32]:
        """(n, d) float32."""
        centres = self._centres[side.language]
        return np.stack([centres[cell] for cell in side.cells.tolist()])
