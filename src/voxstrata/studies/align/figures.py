"""The picture of controlled retrieval: three panels by depth. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from voxstrata.base.figures import STYLES, Figure, new_figure, percent_axis, set_title
from voxstrata.base.plain import counted
from voxstrata.retrieval.recordings import SHARED_FIRST
from voxstrata.studies.align import table as names
from voxstrata.studies.align.pools import POOL_ALL, POOL_CLOSEST, POOL_MATCHED, POOL_RANDOM, POOL_UNLIKE
from voxstrata.studies.align.states import CENTRED, RAW

_What = tuple[str, str, str]  # states, control, metric
_WIDTH, _HEIGHT = 7.2, 3.6  # inches: a two-column page of a paper
_BLUE, _RED, _GREEN, _PURPLE = STYLES


def plot_alignment(table: pa.Table, title: str, settings: Mapping[str, Any]) -> Figure:
    """Means over directions: whole pools beside what sound and duration alone reach; controlled pools beside their
    references; slopes of the fits. Bands and bars are the table's intervals.
    """
    outputs = [name for name in names.systems(table) if name not in (names.PHONEMES, names.DURATIONS)]
    lines = _Lines(names.figures_of(table), outputs)
    figure = new_figure(max(_WIDTH, 0.55 * len(outputs)), _HEIGHT)
    whole, controlled, slope = figure.subplots(1, 3)
    _draw_whole(whole, lines)
    _draw_controlled(controlled, lines)
    bars = " (bars)" if settings["bootstrap_resamples"] else ""
    lines.add(slope, (RAW, names.FIT, names.SLOPE), f"closeness alone{bars}", _BLUE, slope=True)
    lines.add(slope, (RAW, names.FIT, names.GIVEN_DURATION), "given duration", _RED, "--", slope=True)
    slope.axhline(0, color="black", linestyle=":", linewidth=1, label="chance: sound says nothing")
    enough, number = names.directions_with_unlike_pairs(table), len(names.directions(table))
    fewer = f" (blue: {counted(enough, 'direction')})" if 0 < enough < number else ""
    up = "recall@1 (%): up is better"
    for axes, label, letter in (
        (whole, up, f"a  whole pools{lines.pool(POOL_ALL)}"),
        (controlled, up, f"b  controlled pools{fewer}"),
        (slope, "log-odds per SD: up, sound helps more", "c  closeness in sound"),
    ):
        axes.set_title(letter, fontsize=8, loc="left", fontweight="bold")
        axes.set_ylabel(label, fontsize=7)
        axes.set_xticks(range(len(outputs)), outputs, rotation=90, fontsize=6.5)
        axes.tick_params(axis="y", labelsize=6.5)
        axes.grid(axis="y", alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not slope:
            percent_axis(axes, lines.highest)  # of both: they are compared
        below = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.27), "ncols": 2}
        if axes.get_legend_handles_labels()[0]:  # none where no direction has enough pairs
            axes.legend(fontsize=5.5, frameon=False, handlelength=2.2, columnspacing=0.8, **below)
    groups = f"bands, bars: 95 % bootstrap intervals over {counted(settings['bootstrap_groups'], 'group')}"
    bands = groups if settings["bootstrap_resamples"] else ""
    about = f"by {settings['similarity']}, mean over {counted(number, 'direction')}, pool {SHARED_FIRST}"
    set_title(figure, f"What is left without sound: {title}", about, bands, size=8)
    return figure


def _draw_whole(axes: Any, lines: _Lines) -> None:
    lines.add(axes, (RAW, POOL_ALL, names.RECALL), "as stored", _BLUE)
    lines.add(axes, (CENTRED, POOL_ALL, names.RECALL), "means removed", _RED, "--")
    for name, (colour, _), dashes in ((names.PHONEMES, _GREEN, (4, 2)), (names.DURATIONS, _PURPLE, (1, 1))):
        value = lines.found[name, RAW, POOL_ALL, names.RECALL]["value"]
        axes.axhline(100 * value, color=colour, dashes=dashes, linewidth=1.2, label=f"{name} alone")
    lines.add_chance(axes, POOL_ALL, "black", "chance")


def _draw_controlled(axes: Any, lines: _Lines) -> None:
    for control, name, look, style in (
        (POOL_MATCHED, "matched pairs", _BLUE, "--"),
        (POOL_UNLIKE, "unlike-sounding pairs", _BLUE, "-"),
        (POOL_RANDOM, "random negatives", _RED, "--"),
        (POOL_CLOSEST, "hard negatives", _RED, "-"),
    ):
        lines.add(axes, (RAW, control, names.RECALL), f"{name}{lines.pool(control)}", look, style)
    for control, (colour, _) in ((POOL_UNLIKE, _BLUE), (POOL_CLOSEST, _RED)):
        lines.add_chance(axes, control, colour, f"chance{lines.pool(control)}")


@dataclass(frozen=True)
class _Lines:
    """Draws figures by output. found: of the mean over directions."""

    found: dict[names.FigureKey, dict[str, Any]]
    outputs: Sequence[str]

    @property
    def highest(self) -> float:
        """The largest recall@1 or end of an interval of any system in any pool, in percent."""
        rows = [row for key, row in self.found.items() if key[3] == names.RECALL]
        return 100 * max(x for row in rows for x in (row["value"], row["high"], 0.0) if x is not None)

    def add(
        self, axes: Any, what: _What, label: str, style: tuple[str, str], dash: str = "-", slope: bool = False
    ) -> None:
        """slope: no share to be shown in percent, and its interval in bars."""
        (colour, marker), scale = style, 1 if slope else 100
        rows = [self.found.get((output, *what), {}) for output in self.outputs]
        value, low, high = (scale * np.array([r.get(c) for r in rows], np.float64) for c in ("value", "low", "high"))
        if np.isnan(value).all():  # no direction has enough pairs: no entry in the legend either
            return
        x = np.arange(len(rows))
        face = "white" if dash == "--" else colour
        look = {"color": colour, "marker": marker, "markersize": 3.5, "markerfacecolor": face, "linewidth": 1.2}
        axes.plot(x, value, dash, label=label, **look)
        if slope and dash == "-":
            axes.vlines(x, low, high, color=colour, linewidth=1)
        elif dash == "-":
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)

    def add_chance(self, axes: Any, control: str, colour: str, label: str) -> None:
        rows = [self.found[output, RAW, control, names.RECALL] for output in self.outputs]
        chance = 100 * np.array([row["chance"] for row in rows], np.float64)
        if np.isnan(chance).all():
            return
        x = np.array([-0.4, *range(len(rows)), len(rows) - 0.6])  # of one output, too, a line
        axes.plot(x, chance[[0, *range(len(rows)), -1]], ":", color=colour, linewidth=1, label=label)

    def pool(self, control: str) -> str:
        """Its size in brackets, or smallest to largest; nothing where no direction has one."""
        row = self.found[self.outputs[0], RAW, control, names.RECALL]
        return f" ({names.pool_sizes(row)})" if row["candidates"] else ""
