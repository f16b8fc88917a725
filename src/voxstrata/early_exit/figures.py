"""Pictures of a sweep over exits: errors, their kinds, empty and looping transcripts, by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from voxstrata.base.figures import STYLES, Figure, new_figure, set_title
from voxstrata.base.plain import counted
from voxstrata.early_exit.exits import ERROR_KINDS, MEAN_OF_LANGUAGES, NORMS, EarlyExit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_EXIT = "no exit transcribes this language better than saying nothing"
_Row = Mapping[str, Any]
NORM_NAMES = {
    "with": "with final LayerNorm",
    "without": "without final LayerNorm",
    "refitted": "LayerNorm refitted",
    "mapped": "mapped to the last layer",
}
RATE_NAMES = {"word": "WER", "character": "CER", "both": "WER or CER"}  # by unit
_KINDS = dict(zip(ERROR_KINDS, ("#E69F00", "#56B4E9", "#555555"), strict=True))


_BEYOND, _END = 104.0, 108.0  # where what is far above 100 % stands on an axis of shares, and where the axis ends


def plot_errors(rows: Sequence[_Row], choices: Mapping[str, _Row], whose: str) -> Figure:
    """The rate that chooses by k, a panel for each language, with intervals, chance and the line of saying nothing.

    rows: of RATES_SCHEMA, of one part. choices: of CHOICES_SCHEMA, by language. whose: of which checkpoint and corpus.
    The chosen exit has a ring. The axes end at 100 %: what is above stands at the top, with its figure.
    """
    name = next(iter(choices.values()))["chosen_by"]
    low, high = ("low", "high") if name == "rate" else (f"{name}_low", f"{name}_high")

    def draw(axes: Axes, mine: Sequence[_Row]) -> None:
        draw_by_norm(axes, rows, mine, (name, low, high), chance="chance", most=_BEYOND)
        axes.plot([], [], ":", color="#555555", lw=1.2, label="chance: against other recordings' texts")
        axes.axhline(100, color="black", lw=0.8, ls="--", label="saying nothing")
        choice = choices.get(mine[0]["language"])
        if choice and choice["after"] is not None:
            at = next(r for r in mine if (r["after"], r["norm"]) == (choice["after"], choice["norm"]))
            ring: dict[str, Any] = {
                "markersize": 11,
                "markerfacecolor": "none",
                "color": "black",
                "ls": "",
                "label": "chosen",
            }
            axes.plot(at["after"], min(100 * at[name], _BEYOND), "o", **ring)
        elif choice:
            axes.text(
                0.5, 0.03, NO_EXIT.replace(" better", "\nbetter"), transform=axes.transAxes, fontsize=8, ha="center"
            )
        _end_at_hundred(axes)
        axes.set_ylabel(f"{RATE_NAMES[mine[0]['unit']]} (%): down is better", fontsize=9)

    loops = ", loops cut" if name == "cut_rate" else ""
    return by_language(rows, draw, f"Errors by exit{loops}: {whose}, test part{intervals(rows, low)}")


def plot_kinds(rows: Sequence[_Row], choices: Mapping[str, _Row], whose: str) -> Figure:
    """Substitutions, deletions and insertions upon each other by k; a column for each norm, a row for each language.

    rows, choices, whose: as for `plot_errors`. Transcripts are as they are; a dash is at the rate with loops cut. The
    axes end at 100 %: the figure of a higher bar stands in it.
    """
    scopes, norms = list(dict.fromkeys((r["language"], r["script"]) for r in rows)), list(norm_looks(rows))
    figure = new_figure(max(5.0, 3.6 * len(norms)), 2.3 * len(scopes) + 1.4)
    panels = figure.subplots(len(scopes), len(norms), squeeze=False, sharex=True, sharey=True)
    for line, scope in zip(panels, scopes, strict=True):
        for axes, norm in zip(line, norms, strict=True):
            mine = [r for r in rows if (r["language"], r["script"], r["norm"]) == (*scope, norm)]
            if not mine:
                axes.set_visible(False)
                continue
            unit = "word" if mine[0]["unit"] == "word" else "character"
            x, base = [r["after"] for r in mine], [0.0] * len(mine)
            for kind, colour in _KINDS.items():
                values = [100 * r[f"{unit}_{kind}"] for r in mine]
                axes.bar(x, values, bottom=base, color=colour, width=0.7, label=kind)
                base = [a + b for a, b in zip(base, values, strict=True)]
            cut = [min(100 * r["cut_wer" if unit == "word" else "cut_cer"], _BEYOND) for r in mine]
            axes.plot(x, cut, "_", color="black", markersize=12, mew=2, label="all, with loops cut")
            _name_beyond(
                axes, [(k, top) for k, top in zip(x, base, strict=True) if top > _END], "white", _KINDS["insertions"]
            )
            axes.axhline(100, color="black", lw=0.8, ls="--", label="saying nothing")
            _dress(axes, f"{_title(mine[0])}, {NORM_NAMES.get(norm, norm)}")
            _end_at_hundred(axes)
            axes.set_ylabel(f"% of {unit}s: down is better", fontsize=9)
    _legend(figure, f"Kinds of errors by exit: {whose}, test part")
    return figure


def plot_shares(rows: Sequence[_Row], choices: Mapping[str, _Row], whose: str) -> Figure:
    """Shares of empty and of looping transcripts by k, a panel for each language, with intervals.

    rows, choices, whose: as for `plot_errors`.
    """

    def draw(axes: Axes, mine: Sequence[_Row]) -> None:
        for share, hollow in (("empty", False), ("looping", True)):
            draw_by_norm(axes, rows, mine, (share, f"{share}_low", f"{share}_high"), f"{share}, ", hollow=hollow)
        axes.set_ylim(-2, 102)
        axes.set_ylabel("% of transcripts: down is better", fontsize=9)

    title = f"Empty and looping transcripts by exit: {whose}, test part{intervals(rows, 'empty_low')}"
    return by_language(rows, draw, title)


def plot_speed(rows: Sequence[_Row], choices: Mapping[str, _Row], whose: str, costs: Sequence[_Row]) -> Figure:
    """The rate that chooses against what a recording costs, a panel for each language; a point for each exit, named k.

    rows, choices, whose: as for `plot_errors`. costs: of COSTS_SCHEMA. Cost is seconds as measured, encoder and
    decoder; where they are not known, arithmetic.
    """
    from matplotlib.ticker import AutoLocator

    name = next(iter(choices.values()))["chosen_by"]
    timed = all(r[part] is not None for r in costs for part in ("encoder_seconds", "decoder_seconds"))
    unit, scale = ("seconds", 1.0) if timed else ("flops", 1e-9)
    spent = {(r["after"], r["norm"]): scale * (r[f"encoder_{unit}"] + r[f"decoder_{unit}"]) for r in costs}

    def draw(axes: Axes, mine: Sequence[_Row]) -> None:
        for norm, (colour, marker) in norm_looks(rows).items():
            of = [r for r in mine if r["norm"] == norm]
            x, y = [spent[r["after"], norm] for r in of], np.minimum(scaled(of, name), _BEYOND).tolist()
            axes.plot(x, y, "-", color=colour, lw=0.7, alpha=0.6)
            axes.plot(x, y, marker, color=colour, markersize=4, label=NORM_NAMES.get(norm, norm))
            for at, rate, r in zip(x, y, of, strict=True):
                look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": colour}
                axes.annotate(str(r["after"]), (at, rate), (4, 3), **look)
        axes.axhline(100, color="black", lw=0.8, ls="--", label="saying nothing; what is above is worse")
        _end_at_hundred(axes)
        axes.set_ylabel(f"{RATE_NAMES[mine[0]['unit']]} (%): down is better", fontsize=9)

    cost = "seconds for a recording, as measured" if timed else "GFLOP for a recording"
    title = f"Errors against cost of every exit k: {whose}, test part; lower left is better"
    figure = by_language(rows, draw, title)
    for axes in figure.axes:
        axes.set_xlabel(cost, fontsize=9)
        axes.xaxis.set_major_locator(AutoLocator())
        axes.set_xlim(left=0)
    return figure


def by_language(rows: Sequence[_Row], draw: Callable[[Axes, Sequence[_Row]], None], title: str) -> Figure:
    """A panel for each language, at most three in a line."""
    scopes = list(dict.fromkeys((r["language"], r["script"]) for r in rows))
    columns = min(len(scopes), 3)
    lines = -(-len(scopes) // columns)
    figure = new_figure(max(5.0, 3.6 * columns), 2.9 * lines + 1.4)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
    for axes, scope in zip(panels, scopes, strict=False):
        mine = [r for r in rows if (r["language"], r["script"]) == scope]
        draw(axes, mine)
        utterances = max(r["utterances"] for r in mine)  # an exit may have figures of fewer
        _dress(axes, f"{_title(mine[0])} ({counted(utterances, 'utterance')})")
    for axes in figure.axes[len(scopes) :]:
        axes.set_visible(False)
    for axes in figure.axes:
        axes.tick_params(labelbottom=True)  # which shared axes have in the last line alone
    _legend(figure, title)
    return figure


def draw_by_norm(
    axes: Axes,
    rows: Sequence[_Row],
    mine: Sequence[_Row],
    names: Sequence[str],
    what: str = "",
    *,
    scale: float = 100.0,
    most: float = inf,
    hollow: bool = False,
    chance: str = "",
) -> None:
    """A curve over k for each norm of `rows`, of one panel's rows `mine`, with its interval.

    names: columns of the value and, where there is a band, of its ends. what: before the norm's name in the legend.
    scale: of what is drawn to what the columns hold. most: what is above stands there, with its figure. hollow: dashed,
    with hollow markers. chance: the column of a dotted line beside it.
    """
    for norm, (colour, marker) in norm_looks(rows).items():
        of = [r for r in mine if r["norm"] == norm]
        x = [r["after"] for r in of]
        value, *ends = (scaled(of, name, scale) for name in names)
        if ends:
            low, high = (np.minimum(end, most) for end in ends)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4}
        look |= {"ls": "--", "markerfacecolor": "white"} if hollow else {}
        axes.plot(x, np.minimum(value, most), **look, label=f"{what}{NORM_NAMES.get(norm, norm)}")
        _name_beyond(axes, [(k, v) for k, v in zip(x, value, strict=True) if v > most], colour, shift=7.0)
        if chance:
            axes.plot(x, np.minimum(scaled(of, chance, scale), most), ":", color=colour, lw=1.2)


def norm_looks(rows: Sequence[_Row]) -> dict[str, tuple[str, str]]:
    """The norms that rows have, nearest to the original first, and how each is drawn, whichever others there are."""
    looks = {norm: STYLES[i % len(STYLES)] for i, norm in enumerate(reversed(NORMS))}
    held = sorted({r["norm"] for r in rows}, key=lambda norm: EarlyExit(0, norm).rank, reverse=True)
    return {norm: looks[norm] for norm in held}


def intervals(rows: Sequence[_Row], low: str) -> str:
    """What the title says of them: nothing where the table has none."""
    return "; bands: 95 % bootstrap intervals" if any(r[low] is not None for r in rows) else ""


def _end_at_hundred(axes: Axes) -> None:
    axes.set_ylim(0, _END)
    axes.set_yticks(range(0, 101, 20))


def _name_beyond(
    axes: Axes, points: Iterable[tuple[float, float]], colour: str, ground: str = "none", shift: float = 0.0
) -> None:
    """The figures of what is above the axis, at its top, shifted up by so many points; ground: the colour behind."""
    for x, y in points:
        axes.annotate(f"{y:.0f}", (x, _BEYOND), (0, shift), textcoords="offset points", fontsize=7, color=colour,
                      ha="center", va="center", annotation_clip=False, zorder=5,
                      bbox={"facecolor": ground, "edgecolor": "none", "pad": 0.5})  # fmt: skip


def scaled(rows: Sequence[_Row], name: str, scale: float = 100.0) -> list[float]:
    return [nan if r[name] is None else scale * r[name] for r in rows]


def _title(row: _Row) -> str:
    language = row["language"]
    if language == MEAN_OF_LANGUAGES:
        return "all, mean over languages"
    return ", ".join(filter(None, (language, row["script"].lower())))


def _dress(axes: Axes, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=9)
    axes.set_xlabel("encoder ends after block k", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, title: str) -> None:
    """What is drawn in any panel, once, below; the title above."""
    shown: dict[str, Any] = {}
    for axes in figure.axes:
        shown |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = {kind: shown.pop(kind) for kind in ERROR_KINDS if kind in shown} | shown
    # in points: a character at this size is so wide on average, and a sample of the line with what is around it
    widest = max(map(len, shown)) * 4.8 + 40
    columns = 2 if 2 * widest < 72 * figure.get_figwidth() else 1
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    set_title(figure, title)
