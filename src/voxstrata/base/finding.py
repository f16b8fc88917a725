"""What a result says to whoever reads nothing else: a sentence or two, and a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voxstrata.base.tables import in_percent

Figures = Sequence[float | None]


@dataclass(frozen=True)
class SmallCurve:
    """Figures along an axis, to be drawn small.

    up: what they are and in which unit, such as "recall@1 (%)". names: (points,), what stands below. value, low, high:
    (points,), None where there is none. chance: (points,), with `chance_name` what one gets for nothing. best: the
    number of the point that the answer is about. steps: whether the points are kinds, not an order: no line joins them.
    top: where the axis ends; None for shares, whose axis ends at 20, 40, … or 100 %.
    """

    up: str
    names: Sequence[str]
    value: Figures
    low: Figures = ()
    high: Figures = ()
    chance: Figures = ()
    chance_name: str = "chance"
    best: int | None = None
    steps: bool = False
    top: float | None = None


@dataclass(frozen=True)
class Finding:
    """The answer to a result's question, in plain sentences, with chance and interval where there are any."""

    answer: str
    curve: SmallCurve | None = None


def percent_text(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A share as "16.3 %", with its interval as "16.3 % [14.1, 18.5]"; "–" for none. Figures are `in_percent`'s."""
    if value is None:
        return "–"
    shown = [in_percent(x) for x in (value, low, high) if x is not None]
    return f"{shown[0]} %" + (f" [{shown[1]}, {shown[2]}]" if len(shown) == 3 else "")


def in_hundred(values: Figures) -> list[float | None]:
    """Shares in percent; None stays."""
    return [None if value is None else 100 * value for value in values]
