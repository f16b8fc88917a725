"""What an alignment says, whatever file it is from: when each word or phone of a recording was spoken."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.base.opening import open_regular

UNNAMED = ""  # the tier of a format that has one alone, without a name
TimedLabel = tuple[float, float, str]  # start and end in seconds, and what was spoken
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks


@dataclass(frozen=True, eq=False)
class AlignedTier:
    """Spans in the order of their beginnings. starts, ends: float64 (spans,), seconds. labels: what was spoken.

    untimed: how many more have no times.
    """

    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    labels: Sequence[str]
    untimed: int = 0


@dataclass(frozen=True, eq=False)
class SpeechAlignment:
    """What is known of one recording, or of one of its channels.

    name: by which its utterance is found. channel: as it is written; None where the format has none.
    tiers: by name. seconds: how long the recording is, where the file says so. where: what messages call it.
    """

    name: str
    tiers: Mapping[str, AlignedTier]
    where: str
    channel: str | None = None
    seconds: float | None = None

    def tier(self, name: str) -> AlignedTier | None:
        """The tier of that name, or the only one of a format that names none."""
        return self.tiers.get(name, self.tiers.get(UNNAMED))


def make_tier(spans: Sequence[TimedLabel], untimed: int = 0) -> AlignedTier:
    """Of spans in any order. Raises ValueError for times that are no stretch of a recording."""
    for start, end, label in spans:
        if not 0 <= start <= end < math.inf:  # so put, NaN is none either
            raise ValueError(f"{label!r} is from {start:g} to {end:g} s, which is no stretch of a recording")
    spans = sorted(spans, key=lambda span: span[0])
    starts, ends = (np.array([span[i] for span in spans], np.float64) for i in (0, 1))
    return AlignedTier(starts, ends, [label for *_, label in spans], untimed)


def text_lines(path: Path, most: int) -> Iterator[tuple[str, str]]:
    """The lines of a file in UTF-8, of at most so many bytes each: what messages call the line, and its text.

    Raises InputError for another encoding.
    """
    with open_regular(path) as file:
        if file.read(2) in _UTF16:
            raise InputError(f"{path}: UTF-16; save it again as UTF-8")
        file.seek(0)
        for number, line in enumerate(iter(lambda: file.readline(most), b""), start=1):
            where = f"{path}, line {number}"
            yield where, read_text_of(line, where)


def read_text_of(data: bytes, where: str) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-8 with a byte order mark. Raises InputError for other bytes."""
    marked = data[:2] in _UTF16
    try:
        return data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as e:
        kind = "UTF-16, as its first bytes say" if marked else "UTF-8, nor UTF-16 with a byte order mark"
        raise InputError(f"{where}: not {kind}: {e.reason} at byte {e.start}; save it again as UTF-8") from None
