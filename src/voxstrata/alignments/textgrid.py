"""Praat's TextGrid files, in the long and the short form.

As Praat's manual says ("TextGrid file formats"), a reader takes numbers, quoted texts and flags that stand free, and
passes over all else: `xmin = 0` and `0` are the same, and `intervals [1]:` is nothing. So both forms are one.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from voxstrata.alignments.tier import AlignedTier, SpeechAlignment, TimedLabel, make_tier, read_text_of
from voxstrata.base.errors import InputError
from voxstrata.base.opening import read_regular

TEXTGRID_BYTES = 1 << 26  # the most of one file: some twenty hours of phones
_TOKEN = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"|(?<!\S)(<exists>|<absent>|[-+]?\d[\d.eE+-]*)(?!\S)|(?<!\S)!.*')
_APART = 1e-6  # seconds by which an interval may begin before the last one ends: rounding


def read_textgrid(path: Path, name: str) -> SpeechAlignment:
    """The interval tiers of a TextGrid; tiers of points have no spans and are passed over.

    Raises InputError, naming the file and what is wrong: no TextGrid, another encoding, intervals that overlap.
    """
    text = read_text_of(read_regular(path, TEXTGRID_BYTES), str(path))
    try:
        seconds, tiers = _tiers(_Tokens(text))
    except ValueError as e:
        raise InputError(f"{path}: no sound TextGrid: {e}; save it again with Praat") from None
    return SpeechAlignment(name, tiers, str(path), seconds=seconds)


class _Tokens:
    """The values of a file, one after the other, each asked for by its kind."""

    def __init__(self, text: str) -> None:
        self._found: Iterator[re.Match[str]] = (m for m in _TOKEN.finditer(text) if m[1] is not None or m[2])
        self._text = text

    def _next(self, kind: str) -> re.Match[str]:
        found = next(self._found, None)
        if found is None:
            raise ValueError(f"it ends where {kind} is due")
        return found

    def string(self) -> str:
        found = self._next("a text")
        if found[1] is None:
            raise ValueError(f"{found[2]} stands where a text is due, in line {self._line(found)}")
        return found[1].replace('""', '"')

    def number(self) -> float:
        found = self._next("a number")
        try:
            return float(found[2] or "")
        except ValueError:
            line = self._line(found)
            raise ValueError(f"{found[0][:40]} stands where a number is due, in line {line}") from None

    def count(self) -> int:
        value = self.number()
        if not (value.is_integer() and value >= 0):
            raise ValueError(f"{value:g} is no number of tiers or intervals")
        return int(value)

    def flag(self) -> bool:
        return self._next("<exists>")[2] == "<exists>"

    def end(self) -> None:
        found = next(self._found, None)
        if found is not None:
            raise ValueError(f"{found[0][:40]} stands behind its last tier, in line {self._line(found)}")

    def _line(self, found: re.Match[str]) -> int:
        return self._text.count("\n", 0, found.start()) + 1


def _tiers(tokens: _Tokens) -> tuple[float, dict[str, AlignedTier]]:
    kind = (tokens.string(), tokens.string())
    if not kind[0].startswith("ooTextFile") or kind[1] != "TextGrid":
        raise ValueError(f"it holds {kind[1]!r} of {kind[0]!r}")
    tokens.number()
    seconds, tiers = tokens.number(), dict[str, AlignedTier]()
    for _ in range(tokens.count() if tokens.flag() else 0):
        kind = (tokens.string(), tokens.string())
        tokens.number(), tokens.number()
        if kind[0] == "TextTier":
            for _ in range(tokens.count()):
                tokens.number(), tokens.string()
        elif kind[0] == "IntervalTier":
            if kind[1] in tiers:
                raise ValueError(f"two tiers are called {kind[1]!r}")
            tiers[kind[1]] = _intervals(kind[1], tokens)
        else:
            raise ValueError(f"a tier of the class {kind[0]!r}")
    tokens.end()
    return seconds, tiers


def _intervals(name: str, tokens: _Tokens) -> AlignedTier:
    spans = list[TimedLabel]()
    for n in range(tokens.count()):
        spans.append((tokens.number(), tokens.number(), tokens.string()))
        start = spans[-1][0]
        if n and start < spans[-2][1] - _APART:
            raise ValueError(f"interval {n + 1} of the tier {name!r} begins at {start:g} s, before the last one ends")
    return make_tier(spans)
