"""Controlled retrieval in one table, as text, and in one figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa

from voxstrata.base.errors import UsageError
from voxstrata.base.figures import STYLES
from voxstrata.base.tables import aligned
from voxstrata.evaluation.metrics import MEAN
from voxstrata.studies.align.inputs import CENTRED, RAW
from voxstrata.studies.align.measure import (
    AT_ZERO,
    CHANGE,
    DISCRIMINATION,
    DURATIONS,
    FIT,
    GIVEN_DURATION,
    KEY,
    PHONEMES,
    RECALL,
    SLOPE,
)
from voxstrata.studies.align.pools import ALL, CLOSEST, MATCHED, RANDOM, UNLIKE

# header, states, control, metric, whether percent
_COLUMNS = (
    ("all", RAW, ALL, RECALL, True),
    ("means removed", CENTRED, ALL, RECALL, True),
    ("removed − all", CENTRED, ALL, CHANGE, True),
    ("matched", RAW, MATCHED, RECALL, True),
    ("unlike", RAW, UNLIKE, RECALL, True),
    ("unlike − matched", RAW, UNLIKE, CHANGE, True),
    ("random", RAW, RANDOM, RECALL, True),
    ("closest", RAW, CLOSEST, RECALL, True),
    ("closest − random", RAW, CLOSEST, CHANGE, True),
    ("if unlike", RAW, FIT, AT_ZERO, True),
    ("log-odds/SD", RAW, FIT, SLOPE, False),
    ("given duration", RAW, FIT, GIVEN_DURATION, False),
    ("discrimination", RAW, FIT, DISCRIMINATION, False),
)
# Columns that fit a terminal or a page: whole pools, controlled pools.
_PARTS = ((0, 1, 2, 3, 10, 11, 12, 13), (0, 4, 5, 6, 7, 8, 9))
_WIDTH, _HEIGHT, _DPI = 7.2, 3.6, 220  # inches: a two-column page of a paper

Key = tuple[str, str, str, str]  # system, states, control, metric


def align_cells(table: pa.Table, source: str = MEAN, target: str = MEAN) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the one table: a row per system, then pool sizes and chance. Percent but for the last two.

    Intervals stand in brackets on a line of their own, below their figure.
    """
    found = _figures(table, source, target)
    body = []
    for system in systems(table):
        cells = [system]
        for _, states, control, metric, percent in _COLUMNS:
            cells.append(_cell(found.get((system, states, control, metric)), 100 if percent else 1))
        body.append(cells)
    pools, chances = ["pool"], ["chance"]
    for _, states, control, metric, *_ in _COLUMNS:
        row = found.get((systems(table)[0], states, control, metric)) if metric == RECALL else None
        same = row is not None and row["candidates"] == row["candidates_max"]
        pools.append("" if row is None else str(row["candidates"]) + ("" if same else f"–{row['candidates_max']}"))
        chances.append("" if row is None or row["chance"] is None else _text(row["chance"], 100))
    return ["system", *(name for name, *_ in _COLUMNS)], [*body, pools, chances]


def to_terminal(table: pa.Table) -> str:
    """The means in two tables in plain text, whole pools above controlled ones, and what the columns are."""
    return "\n\n".join([*(aligned(header, body) for header, body in _parts(*align_cells(table))), explanation(table)])


def to_markdown(table: pa.Table, title: str) -> str:
    """The table in its two parts and what its columns are, as a GitHub page; after the mean, every direction."""

    def both(source: str, target: str) -> str:
        return "\n".join(_pipes(header, body) for header, body in _parts(*align_cells(table, source, target)))

    parts = [f"# {title}\n", f"## Mean over directions\n\n{both(MEAN, MEAN)}", explanation(table) + "\n"]
    parts += [f"## {source} → {target}\n\n{both(source, target)}" for source, target in directions(table)]
    return "\n".join(parts)


def _parts(header: list[str], body: list[list[str]]) -> list[tuple[list[str], list[list[str]]]]:
    """The table's columns by _PARTS."""
    return [([header[i] for i in part], [[row[i] for i in part] for row in body]) for part in _PARTS]


def explanation(table: pa.Table) -> str:
    """What the columns mean under the settings of this table, one line each."""
    s = settings(table)
    few = f"their language (speakers unknown, or with fewer than {s['smallest_cell']} utterances)"
    cells = few if s["cells_are_languages"] else "their speaker in their language"
    drawn = f"; in brackets 95 % bootstrap intervals over {s['bootstrap_groups']} groups"
    intervals = drawn if s["bootstrap_resamples"] else ""
    return "\n".join(
        [
            f"recall@1 in %, {s['similarity']}, mean over {len(directions(table))} directions{intervals}.",
            f"- means removed: frames less the mean of {cells}.",
            f"- unlike: pairs that at least {100 * s['unlike_quantile']:g} % of the non-translations sound closer than "
            f"(by {s['by']}), among themselves;",
            f"  matched: as many pairs of like length drawn from all; {_over(table, s['smallest_pool'])}.",
            f"- closest: the translation and the {s['closest']} closest-sounding non-translations; random: as many "
            "drawn.",
            "- if unlike, log-odds/SD, discrimination: logistic fit of the hits (all) on how much closer the pair",
            "  sounds than non-translations: recall where no closer, slope, discrimination beyond the directions';",
            "  given duration: the slope beside how alike the pair's durations are.",
            f"- {PHONEMES}, {DURATIONS}: retrievers that see these alone.",
        ]
    )


def _over(table: pa.Table, least: int) -> str:
    """What the mean over unlike pairs is over."""
    if not (enough := _enough(table)):
        return f"none here, as no direction has {least} such pairs"
    return f"over the {enough} directions with {least} such pairs or more"


def _enough(table: pa.Table) -> int:
    """How many directions have enough unlike pairs for a figure."""
    first = systems(table)[0]
    return sum(
        (row["system"], row["states"], row["control"], row["metric"]) == (first, RAW, UNLIKE, RECALL)
        and row["source"] != MEAN
        and row["value"] is not None
        for row in table.to_pylist()
    )


def plot_align(table: pa.Table, path: str | PathLike[str], title: str) -> None:
    """The figure, in the format of the path's suffix (png, pdf, svg): three panels by depth, means over directions.

    Whole pools beside what sound and duration alone reach; controlled pools beside their references; slopes of the
    fits. Bands and bars are the table's intervals.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib; install it with: pip install 'voxstrata[plot]'") from error
    found = _figures(table, MEAN, MEAN)
    outputs = [name for name in systems(table) if name not in (PHONEMES, DURATIONS)]
    figure = Figure(figsize=(max(_WIDTH, 0.55 * len(outputs)), _HEIGHT), layout="constrained")
    whole, controlled, slope = figure.subplots(1, 3)
    blue, red, green, purple = (colour for colour, _ in STYLES)
    _line(whole, found, outputs, (RAW, ALL, RECALL), "as stored", blue, "o")
    _line(whole, found, outputs, (CENTRED, ALL, RECALL), "means removed", red, "s", "--")
    for name, colour, dashes in ((PHONEMES, green, (4, 2)), (DURATIONS, purple, (1, 1))):
        value = found[name, RAW, ALL, RECALL]["value"]
        whole.axhline(100 * value, color=colour, dashes=dashes, linewidth=1.2, label=f"{name} alone")
    _chance(whole, found, outputs, ALL, "black", "chance")
    enough = _enough(table)
    fewer = f" (blue: {enough} directions)" if 0 < enough < len(directions(table)) else ""
    for control, name, colour, marker, style in (
        (MATCHED, "matched pairs", blue, "o", "--"),
        (UNLIKE, "unlike pairs", blue, "o", "-"),
        (RANDOM, "random pool", red, "s", "--"),
        (CLOSEST, "closest-sounding pool", red, "s", "-"),
    ):
        label = f"{name}{_pool(found, outputs, control)}"
        _line(controlled, found, outputs, (RAW, control, RECALL), label, colour, marker, style)
    for control, colour in ((UNLIKE, blue), (CLOSEST, red)):
        _chance(controlled, found, outputs, control, colour, f"chance{_pool(found, outputs, control)}")
    bars = " (bars)" if settings(table)["bootstrap_resamples"] else ""
    _line(slope, found, outputs, (RAW, FIT, SLOPE), f"closeness alone{bars}", blue, "o", scale=1, bars=True)
    _line(slope, found, outputs, (RAW, FIT, GIVEN_DURATION), "given duration", red, "s", "--", scale=1)
    slope.axhline(0, color="black", linewidth=0.8)
    for axes, label, letter in (
        (whole, "recall@1 (%)", f"a  whole pools{_pool(found, outputs, ALL)}"),
        (controlled, "recall@1 (%)", f"b  controlled pools{fewer}"),
        (slope, "log-odds of a hit per SD", "c  closeness in sound"),
    ):
        axes.set_title(letter, fontsize=8, loc="left", fontweight="bold")
        axes.set_ylabel(label, fontsize=7)
        axes.set_xticks(range(len(outputs)), outputs, rotation=90, fontsize=6.5)
        axes.tick_params(axis="y", labelsize=6.5)
        axes.grid(axis="y", alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not slope:
            axes.set_ylim(bottom=0)
        below = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.27), "ncols": 2}
        if axes.get_legend_handles_labels()[0]:  # none where no direction has enough pairs
            axes.legend(fontsize=5.5, frameon=False, handlelength=2.2, columnspacing=0.8, **below)
    s = settings(table)
    bands = f"\nbands, bars: 95 % bootstrap intervals over {s['bootstrap_groups']} groups"
    figure.suptitle(
        f"{title}: {s['similarity']}, mean over {len(directions(table))} directions"
        + (bands if s["bootstrap_resamples"] else ""),
        fontsize=8,
    )
    figure.savefig(path, dpi=_DPI)


def systems(table: pa.Table) -> list[str]:
    """Outputs by depth, then the retrievers that see no states."""
    return list(dict.fromkeys(table["system"].to_pylist()))


def directions(table: pa.Table) -> list[tuple[str, str]]:
    """Ordered pairs of languages, as they stand."""
    pairs = zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True)
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != MEAN]


def settings(table: pa.Table) -> dict[str, Any]:
    """What `align` was asked for."""
    return dict(json.loads(table.schema.metadata[KEY.encode()]))


def _figures(table: pa.Table, source: str, target: str) -> dict[Key, dict[str, Any]]:
    return {
        (row["system"], row["states"], row["control"], row["metric"]): row
        for row in table.to_pylist()
        if (row["source"], row["target"]) == (source, target)
    }


def _cell(row: dict[str, Any] | None, scale: float) -> str:
    if row is None:
        return ""
    if row["value"] is None:
        return "–"
    if row["low"] is None:
        return _text(row["value"], scale)
    return f"{_text(row['value'], scale)}\n[{_text(row['low'], scale)}, {_text(row['high'], scale)}]"


def _text(value: float, scale: float) -> str:
    places = 1 if scale == 100 else 2
    return f"{round(scale * value, places) + 0.0:.{places}f}"  # + 0.0: no minus before a zero


def _pipes(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    lines += [f"| {' | '.join(cells)} |".replace("\n", "<br>") for cells in body]
    return "\n".join(lines) + "\n"


def _line(
    axes: Any,
    found: dict[Key, dict[str, Any]],
    outputs: Sequence[str],
    what: tuple[str, str, str],
    label: str,
    colour: str,
    marker: str,
    style: str = "-",
    scale: float = 100,
    bars: bool = False,
) -> None:
    rows = [found.get((output, *what), {}) for output in outputs]
    value, low, high = (scale * np.array([r.get(c) for r in rows], np.float64) for c in ("value", "low", "high"))
    if np.isnan(value).all():  # no direction has enough pairs: no entry in the legend either
        return
    x = np.arange(len(outputs))
    face = "white" if style == "--" else colour
    axes.plot(
        x, value, style, color=colour, marker=marker, markersize=3.5, markerfacecolor=face, linewidth=1.2, label=label
    )
    if bars:
        axes.vlines(x, low, high, color=colour, linewidth=1)
    elif style == "-":
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _pool(found: dict[Key, dict[str, Any]], outputs: Sequence[str], control: str) -> str:
    """Its size in brackets, or smallest to largest; nothing where no direction has one."""
    row = found[outputs[0], RAW, control, RECALL]
    sizes = dict.fromkeys(str(row[name]) for name in ("candidates", "candidates_max"))
    return f" ({'–'.join(sizes)})" if row["candidates"] else ""


def _chance(
    axes: Any, found: dict[Key, dict[str, Any]], outputs: Sequence[str], control: str, colour: str, label: str | None
) -> None:
    chance = 100 * np.array([found[output, RAW, control, RECALL]["chance"] for output in outputs], np.float64)
    if np.isnan(chance).all():
        return
    x = np.array([-0.4, *range(len(outputs)), len(outputs) - 0.6])  # of one output, too, a line
    axes.plot(x, chance[[0, *range(len(outputs)), -1]], ":", color=colour, linewidth=1, label=label)
