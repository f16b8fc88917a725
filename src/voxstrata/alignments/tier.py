"""What an alignment says, whatever file it is from: when each word or phone of a recording was spoken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError

UNNAMED = ""  # the tier of a format that has one alone, without a name


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


def make_tier(starts: Sequence[float], ends: Sequence[float], labels: Sequence[str], untimed: int = 0) -> AlignedTier:
    """Raises ValueError for times that are no stretch of a recording."""
    begin, end = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    wrong = np.flatnonzero(~(np.isfinite(begin) & np.isfinite(end) & (begin >= 0) & (end >= begin)))
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"{labels[i]!r} is from {begin[i]:g} to {end[i]:g} s, which is no stretch of a recording")
    if (np.diff(begin) < 0).any():
        order = np.argsort(begin, kind="stable")
        begin, end, labels = begin[order], end[order], [labels[i] for i in order.tolist()]
    return AlignedTier(begin, end, labels, untimed)


def read_text_of(data: bytes, where: str) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-8 with a byte order mark. Raises InputError for other bytes."""
    marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as e:
        kind = "UTF-16, as its first bytes say" if marked else "UTF-8, nor UTF-16 with a byte order mark"
        raise InputError(f"{where}: not {kind}: {e.reason} at byte {e.start}; save it again as UTF-8") from None
