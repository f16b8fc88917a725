"""Recordings in memory: sound files as bytes, or samples, as Python programs hold them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from voxstrata.audio.source import Source
from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.corpus.table import Pack

MEMORY = "memory"  # the path of recordings that lie in no file
_SUBTYPES = {"float32": "FLOAT", "int16": "PCM_16", "int32": "PCM_32"}
_MOST_CHANNELS = 64


@dataclass(frozen=True, eq=False)
class MemoryPack(Pack):
    """Sources by member."""

    sources: Mapping[str, Source]

    def source(self, member: str) -> Source:
        return self.sources[member]


@dataclass(frozen=True)
class BytesSource(Source):
    """A sound file as bytes."""

    called: str
    data: bytes

    @property
    def name(self) -> str:
        return self.called

    def size(self) -> int:
        if not self.data:
            raise AudioError(f"{self.name}: is empty (0 bytes); leave it out")
        return len(self.data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


@dataclass(frozen=True, eq=False)
class SamplesSource(Source):
    """Samples, float32, int16 or int32 of shape (frames, channels); read as a WAV file of the same type, made when it
    is opened, so that they are decoded bit by bit."""

    called: str
    samples: NDArray[Any]
    rate: int

    @property
    def name(self) -> str:
        return self.called

    def size(self) -> int:
        return len(self.read())

    def open(self) -> BinaryIO:
        file = io.BytesIO()
        subtype = _SUBTYPES[self.samples.dtype.name]
        soundfile.write(file, self.samples, self.rate, format="WAV", subtype=subtype)
        file.seek(0)
        return file


def samples_source(name: str, samples: Any, rate: Any) -> SamplesSource:
    """Samples of a recording, anything that numpy takes as an array: float or int16 or int32, mono (frames,) or
    (frames, channels), at `rate` samples per second. Floats are kept as float32.

    Raises InputError for another type or shape and for a rate that is not whole, UsageError for one that is no number
    or below 1.
    """
    if not _is_rate(rate):
        raise UsageError(f"{name}: a rate of {rate!r}; give samples per second")
    try:
        array = np.asarray(samples)
    except ValueError as e:
        raise InputError(f"{name}: no array of numbers ({e}); give (frames,) or (frames, channels)") from e
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what becomes infinite is refused when it is decoded
            array = array.astype(np.float32, copy=False)
    if array.dtype.name not in _SUBTYPES:
        raise InputError(f"{name}: samples of type {array.dtype}; give floats in [-1, 1], int16 or int32")
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or (array.shape[1] > min(_MOST_CHANNELS, len(array)) and len(array)):
        raise InputError(f"{name}: samples of shape {np.shape(samples)}; give (frames,) or (frames, channels)")
    if int(rate) != rate:
        raise InputError(f"{name}: a rate of {rate!r}; give samples per second as a whole number")
    return SamplesSource(name, array, int(rate))


def _is_rate(rate: Any) -> bool:
    number: Any = rate
    return isinstance(rate, Real) and not isinstance(rate, bool) and bool(1 <= number < 1e9)
