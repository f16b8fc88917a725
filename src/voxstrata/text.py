"""Tables in plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import zip_longest


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Header and rows in columns, those numbered in `left` to the left, the others to the right.

    A cell may have several lines.
    """
    lines = [line for row in [header, *rows] for line in zip_longest(*(c.split("\n") for c in row), fillvalue="")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    )
