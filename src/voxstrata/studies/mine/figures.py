"""The picture of mined pairs: precision against recall, and against the threshold. Needs the extra `plot`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxstrata.base.figures import STYLES, Figure, new_figure, percent_axis, set_title
from voxstrata.base.plain import counted
from voxstrata.base.tables import distinct
from voxstrata.evaluation.bootstrap import LEVEL
from voxstrata.retrieval.mining import PLAIN_SCORE


def plot_mining(curve: pa.Table, title: str, settings: Mapping[str, Any]) -> Figure:
    """Precision against recall and against the threshold, a line for each output, with chance.

    Outputs are coloured by depth, from dark to light. Of one output its interval is drawn, and the
    precision of pairs mined by the similarity itself. A cross marks the threshold that was given or chosen.
    """
    outputs = distinct(curve, "output")
    figure = new_figure(max(9.0, 7.5 + 0.12 * len(outputs)), 5.0)
    left, right = figure.subplots(1, 2, sharey=True)
    score, table = settings["score"], curve.to_pylist()
    line = [row for row in table if not row["chosen"]]
    for n, output in enumerate(outputs):
        own = [row for row in line if row["output"] == output]
        colour = STYLES[0][0] if len(outputs) == 1 else _by_depth(n / (len(outputs) - 1))
        precision, low, high, recall, threshold = _columns([row for row in own if row["score"] == score])
        for axes, x in ((left, recall), (right, threshold / 100)):
            axes.plot(x, precision, color=colour, linewidth=2, label=output, zorder=3)
            if len(outputs) == 1:
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        if len(outputs) == 1 and score != PLAIN_SCORE:
            plain, _, _, found, _ = _columns([row for row in own if row["score"] == PLAIN_SCORE])
            name = f"mined by {settings['similarity']} itself"
            left.plot(
                found, plain, ":", color=STYLES[1][0], linewidth=2.5, label=name, zorder=4
            )  # above: it may lie on it
        for row in table:
            if row["output"] == output and row["chosen"] and row["part"] == "all" and row["precision"] is not None:
                left.plot(100 * row["recall"], 100 * row["precision"], "X", color=colour, markersize=9, zorder=4)
                right.plot(row["threshold"], 100 * row["precision"], "X", color=colour, markersize=9, zorder=4)
    top = 20 * math.ceil(max(5 * row["recall"] for row in line) or 1)
    for axes in (left, right):
        axes.axhline(100 * line[0]["chance"], color="black", linestyle="--", linewidth=1.2, label="chance", zorder=2)
        percent_axis(axes)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set(xlabel="recall (%): right pairs found", xlim=(-0.02 * top, 1.02 * top))
    left.set_ylabel("precision (%), up: more mined pairs are right")
    right.locator_params(axis="x", nbins=5)
    right.set(xlabel=f"threshold: {settings['score']}")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    about = f"{counted(line[0]['possible'], 'right pair')} possible, chance {100 * line[0]['chance']:.2f} %"
    bands = (
        f"band: {100 * LEVEL:.0f} % bootstrap interval over groups"
        if len(outputs) == 1 and settings["bootstrap_resamples"]
        else ""
    )
    marks = "cross: the threshold" if settings["threshold"] is not None else ""
    set_title(figure, f"Mined pairs: {title}", "; ".join(filter(None, [about, bands, marks])))
    return figure


def _columns(rows: list[dict[str, Any]]) -> list[npt.NDArray[np.float64]]:
    """Precision, its interval, recall, and the threshold, of a curve, all in percent."""
    names = ("precision", "precision_low", "precision_high", "recall", "threshold")
    return [100 * np.array([row.get(name) for row in rows], np.float64) for name in names]


def _by_depth(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * share)
