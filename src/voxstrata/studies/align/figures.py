"""The picture of controlled retrieval: three panels by depth. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from voxstrata.base.figures import STYLES, Figure, new_figure, percent_axis, set_title
from voxstrata.base.plain import counted
from voxstrata.evaluation.levels import pool_sizes
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
    panels, legends = figure.subplots(2, 3, height_ratios=(1, 0.01))  # legends hang below whatever the ticks take
    whole, controlled, slope = panels
    _draw_whole(whole, lines)
    _draw_controlled(controlled, lines)
    bars = " (bars)" if settings["bootstrap_resamples"] else ""
    lines.add(slope, (RAW, names.FIT, names.SLOPE), f"closeness alone{bars}", _BLUE, slope=True)
    lines.add(slope, (RAW, names.FIT, names.GIVEN_DURATION), "given duration", _RED, "--", slope=True)
    slope.axhline(0, color="black", linestyle=":", linewidth=1, label="chance: sound says nothing")
    cut = lines.end_near_lines(slope, (RAW, names.FIT, names.SLOPE))
    enough, number = names.directions_with_unlike_pairs(table), len(names.directions(table))
    fewer = f" (blue in b: over {enough})" if 0 < enough < number else ""
    up = "recall@1 (%): up is better"
    for axes, below, label, letter in (
        (whole, legends[0], up, f"a  whole pools{lines.pool(POOL_ALL)}"),
        (controlled, legends[1], up, "b  controlled pools"),
        (slope, legends[2], "log-odds per SD: up, sound helps more", "c  closeness in sound"),
    ):
        axes.set_title(letter, fontsize=8, loc="left", fontweight="bold")
        axes.set_ylabel(label, fontsize=7)
        axes.set_xticks(range(len(outputs)), outputs, rotation=90, fontsize=6.5)
        axes.tick_params(axis="y", labelsize=6.5)
        axes.grid(axis="y", alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not slope:
            percent_axis(axes, lines.highest)  # of both: they are compared
        below.axis("off")
        entries = axes.get_legend_handles_labels()
        if entries[0]:  # none where no direction has enough pairs
            look = {"ncols": 1 if axes is slope else 2, "handlelength": 2.2, "columnspacing": 0.8, "borderaxespad": 0}
            below.legend(*entries, loc="upper center", fontsize=5.5, frameon=False, **look)
    groups = f"bands, bars: 95 % bootstrap intervals over {counted(settings['bootstrap_groups'], 'group')}"
    groups += "; a bar with a number is cut, and goes on to it" if cut else ""
    bands = groups if settings["bootstrap_resamples"] else ""
    about = f"by {settings['similarity']}, mean over {counted(number, 'direction')}{fewer}, pool {SHARED_FIRST}"
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

    def end_near_lines(self, axes: Any, what: _What) -> bool:
        """End the axis where bars leave the lines by more than these span and by more than two bars' usual length.

        One wide interval would flatten all lines. Where a bar is cut, its end is written. Returns whether one is.
        """
        rows = [self.found.get((output, *what), {}) for output in self.outputs]
        low, high = (np.array([r.get(c) for r in rows], np.float64) for c in ("low", "high"))
        drawn = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
        least, most = float(np.nanmin(drawn)), float(np.nanmax(drawn))
        if np.isnan(high).all():  # no intervals
            return False
        room = max(most - least, 2 * float(np.nanquantile(high - low, 0.5, method="lower")))
        bottom, top = least - room, most + room
        ends = [("↓", i, low[i], bottom, "bottom") for i in np.flatnonzero(low < bottom)]
        ends += [("↑", i, high[i], top, "top") for i in np.flatnonzero(high > top)]
        if (high > top).any():
            axes.set_ylim(top=top)
        if (low < bottom).any():
            axes.set_ylim(bottom=bottom)
        for arrow, i, end, at, side in ends:
            axes.text(i + 0.15, at, f"{arrow} {end:.1f}", fontsize=5.5, va=side, ha="left")
        return bool(ends)

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
        return f" ({pool_sizes(row)})" if row["candidates"] else ""
