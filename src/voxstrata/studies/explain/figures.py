"""The picture of a frame × frame match. Needs the extra `plot`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voxstrata.base.figures import new_figure, set_title
from voxstrata.studies.explain.matches import Match, SpokenUtterance, Word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_PANELS_ACROSS = 4  # panels side by side; more go below
_ROWS_COLOUR, _COLUMNS_COLOUR = "#D55E00", "#56B4E9"  # Okabe and Ito
_COLOURMAP = "gray"  # leaves both colours of the maxima visible
_PANEL, _BESIDE = 5.2, 1.9  # inches of a panel, and about how much of them is not the matrix
_WORD = 0.105  # inches that a word's label takes along its axis


def draw_matches(
    matches: Sequence[Match], a: SpokenUtterance, b: SpokenUtterance, row_seconds: float, title: str
) -> Figure:
    """The cosines of a's frames (upwards) and b's (to the right), a panel per output.

    Dots mark the best frame of b for every frame of a, crosses the best frame of a for every frame of b; above and to
    the right stand the values of these maxima. Each panel has a grey scale of its own, from its 2nd percentile to
    its maximum: outputs differ in how alike any two frames are. row_seconds: of one frame.
    """
    across = min(len(matches), _PANELS_ACROSS)
    down = math.ceil(len(matches) / across)
    side = max(_PANEL, _BESIDE + _WORD * max(len(a.words), len(b.words)))
    figure = new_figure(1.0 + side * across, 1.6 + (side + 0.2) * down)
    grid = np.atleast_1d(figure.subfigures(down, across, squeeze=False)).flat
    for panel, match in zip(grid, matches, strict=False):
        _panel(panel, match, a, b, row_seconds, _WORD / (side - _BESIDE))
    dots = (
        "lighter is more alike; dots: best frame of b for each frame of a; crosses: best frame of a for each frame of b"
    )
    said = [f"{letter}: {side.id}" + (f" “{side.text}”" if side.text else "") for letter, side in (("a", a), ("b", b))]
    set_title(figure, title, *said, dots)
    return figure


def _panel(panel: SubFigure, match: Match, a: SpokenUtterance, b: SpokenUtterance, step: float, word: float) -> None:
    """One output. step: seconds of a frame. word: share of an axis that a word's label takes."""
    s = match.cosine
    height, width = (n * step for n in s.shape)
    grid = panel.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(1, 5))
    axes = panel.add_subplot(grid[1, 0])
    above = panel.add_subplot(grid[0, 0], sharex=axes)
    beside = panel.add_subplot(grid[1, 1], sharey=axes)
    low, high = float(np.percentile(s, 2)), float(s.max())
    look: dict[str, Any] = {"cmap": _COLOURMAP, "vmin": low, "vmax": high, "aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(s, origin="lower", extent=(0, width, 0, height), **look)
    rows, columns = ((np.arange(n) + 0.5) * step for n in s.shape)
    size = 60 / max(10, math.sqrt(max(s.shape)))
    crosses, dots = rows[s.argmax(axis=0)], columns[s.argmax(axis=1)]
    axes.scatter(columns, crosses, s=2 * size, color=_COLUMNS_COLOUR, marker="x", linewidths=0.8)
    axes.scatter(dots, rows, s=size, color=_ROWS_COLOUR, marker="o", linewidths=0)
    axes.set(xlim=(0, width), ylim=(0, height), xlabel="b: seconds", ylabel="a: seconds")
    above.plot(columns, s.max(axis=0), color=_COLUMNS_COLOUR, linewidth=1)
    above.axhline(match.recall, color="black", linestyle=":", linewidth=0.8)
    above.set_ylabel("maximum", fontsize=8)
    beside.plot(s.max(axis=1), rows, color=_ROWS_COLOUR, linewidth=1)
    beside.axvline(match.precision, color="black", linestyle=":", linewidth=0.8)
    beside.set_xlabel("maximum", fontsize=8)
    for margin in (above, beside):
        margin.tick_params(labelsize=8)
        margin.spines[["top", "right"]].set_visible(False)
        margin.margins(0.05)
    beside.tick_params(axis="x", labelrotation=90)  # it is narrow: side by side they run into each other
    above.tick_params(labelbottom=False)
    beside.tick_params(labelleft=False)
    _words(axes, a.words, b.words, word)
    panel.colorbar(image, ax=[axes, beside], location="bottom", shrink=0.5, aspect=30, label="cosine")
    panel.suptitle(f"{match.output}: P {match.precision:.3f}  R {match.recall:.3f}  F1 {match.f1:.3f}", fontsize=11)


def _words(axes: Axes, upwards: Sequence[Word], across: Sequence[Word], share: float) -> None:
    """Words beside their axis, with a line where each begins and ends. share: of the axis that a label takes."""
    width, height = axes.get_xlim()[1], axes.get_ylim()[1]
    for draw, words in ((axes.axhline, upwards), (axes.axvline, across)):
        for word in words:
            for seconds in (word.begin, word.end):
                draw(seconds, color="white", linewidth=0.4, alpha=0.5)
    strips = []
    if across:  # an axis of their own, beyond the seconds
        strips.append(strip := axes.secondary_xaxis(-0.06))
        strip.set_xticks(_apart(across, share * width, width), [w.text for w in across], rotation=90, fontsize=7)
        strip.set_xlabel("b: seconds, words")
        axes.set_xlabel("")
    if upwards:
        strips.append(strip := axes.secondary_yaxis(-0.06))
        strip.set_yticks(_apart(upwards, share * height, height), [w.text for w in upwards], fontsize=7)
        strip.set_ylabel("a: seconds, words")
        axes.set_ylabel("")
    for strip in strips:
        strip.tick_params(length=0)
        strip.spines[:].set_visible(False)


def _apart(words: Sequence[Word], least: float, length: float) -> list[float]:
    """Where the words' labels stand: at their middles, neighbours closer than `least` seconds moved apart alike.

    None stands before 0 or after `length` seconds, as far as all of them have room.
    """
    runs: list[tuple[float, int]] = []  # middle of each run of labels that touch, and how many they are
    for word in words:
        middle, count = (word.begin + word.end) / 2, 1
        while True:
            middle = max(min(middle, length - least * count / 2), least * count / 2)
            if not runs or middle - runs[-1][0] >= least * (runs[-1][1] + count) / 2:
                break
            before, n = runs.pop()
            middle, count = (before * n + middle * count) / (n + count), n + count
        runs.append((middle, count))
    return [middle + (i - (count - 1) / 2) * least for middle, count in runs for i in range(count)]
