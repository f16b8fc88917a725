"""Two utterances held against each other, frame by frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from voxstrata.retrieval.similarities import harmonic


@dataclass(frozen=True)
class Word:
    """A spoken word: what was said, and when, in seconds from the utterance's start."""

    text: str
    begin: float
    end: float


@dataclass(frozen=True)
class SpokenUtterance:
    """One of the two: its id, what is said in it and in which language, and its words where their times are known."""

    id: str
    text: str = ""
    language: str | None = None
    words: Sequence[Word] = ()

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Inverse of `dataclasses.asdict`."""
        return cls(**{**d, "words": tuple(Word(**word) for word in d.get("words", ()))})


@dataclass(frozen=True, eq=False)
class Match:
    """The frames of utterance a (T1) against those of b (T2) in one output.

    cosine: (T1, T2) float32. precision: mean over the frames of a of the largest cosine in the row; recall: mean over
    the frames of b of the largest in the column; f1: their harmonic mean, SeqSim (see `seqsim`). mean: over the whole
    matrix, what any frame of a has in common with any of b.
    """

    output: str
    cosine: npt.NDArray[np.float32]

    @property
    def precision(self) -> float:
        return float(self.cosine.max(axis=1).mean(dtype=np.float64))

    @property
    def recall(self) -> float:
        return float(self.cosine.max(axis=0).mean(dtype=np.float64))

    @property
    def f1(self) -> float:
        return float(harmonic(np.array([self.precision], np.float32), np.array([self.recall], np.float32))[0])

    @property
    def mean(self) -> float:
        return float(self.cosine.mean(dtype=np.float64))
