"""Pictures of a retrieval table: recall by layer, and source × target matrices. Needs the extra `plot`."""

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import UsageError
from voxstrata.base.figures import STYLES, Figure, new_figure, percent_axis, set_title, text_size
from voxstrata.base.plain import counted
from voxstrata.encoders.outputs import depth_order
from voxstrata.evaluation.bootstrap import LEVEL
from voxstrata.evaluation.levels import DIRECTION, MEAN
from voxstrata.studies.retrieve.negatives import hard_metrics
from voxstrata.studies.retrieve.text import conditions, negatives_of, retrieval_metrics, similarities_of


def plot_recall_by_layer(table: pa.Table, title: str, metric: str = "recall@1") -> Figure:
    """`metric` against depth: one line per similarity, the mean over all directions, and chance.

    The similarities' own scores are drawn, each with a band for its bootstrap interval where the table has one. The
    axis begins at 0 and ends above the highest figure. Pool size and chance stand under the title.
    """
    table = _of_metric(table, metric)
    outputs = depth_order(table["output"].to_pylist())
    figure = new_figure(max(7.0, 3.0 + 0.28 * len(outputs)), 5.0)
    axes = figure.subplots()
    x = np.arange(len(outputs))
    band = ""
    highest = 0.0
    for n, similarity in enumerate(similarities_of(table)):
        colour, marker = STYLES[n % len(STYLES)]
        part = table.filter(pc.equal(table["similarity"], similarity))
        mean, low, high = (_curve(part, outputs, column) for column in ("value", "low", "high"))
        if not np.isnan(low).all():
            axes.fill_between(x, 100 * low, 100 * high, color=colour, alpha=0.15, linewidth=0)
            # a band of one output has no width
            axes.vlines(x, 100 * low, 100 * high, color=colour, alpha=0.5, linewidth=1)
            band = f"bands: {100 * LEVEL:.0f} % bootstrap intervals over groups"
        highest = max(highest, np.nanmax([0, *(100 * mean), *(100 * high)]))
        axes.plot(x, 100 * mean, color=colour, marker=marker, markersize=5, linewidth=2, label=similarity, zorder=3)
    chance = _curve(part, outputs, "chance")
    # a line through one output would have no length
    reach, chance = ([-0.5, 0.5], np.repeat(chance, 2)) if len(outputs) == 1 else (x, chance)
    axes.plot(reach, 100 * chance, color="black", linestyle="--", linewidth=1.2, label="chance", zorder=2)
    angle, side, mode = (90, "center", "default") if len(outputs) > 10 else (45, "right", "anchor")
    axes.set_xticks(x, outputs, rotation=angle, ha=side, rotation_mode=mode)
    axes.set_xlim(-0.5, len(outputs) - 0.5)
    percent_axis(axes, highest)
    axes.set_xlabel("encoder output, by depth")
    axes.set_ylabel(f"{metric} (%): up is better")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    set_title(figure, f"{_asked(metric)}, by layer: {title}", conditions(table), band)
    return figure


def _asked(metric: str) -> str:
    """What a metric says, to begin a title."""
    return (
        "How often a translation comes first" if metric == "recall@1" else f"How well translations are found, {metric}"
    )


def plot_negatives(table: pa.Table, title: str) -> Figure:
    """Recall@1 in small pools against depth, a panel for each kind of negatives: hard ones, random ones, and chance.

    Of the table's first similarity, the mean over all directions; bands are bootstrap intervals.
    """
    kinds, similarity = negatives_of(table), similarities_of(table)[0]
    table = table.filter(pc.and_(pc.equal(table["similarity"], similarity), pc.equal(table["score"], "raw")))
    outputs = depth_order(table["output"].to_pylist())
    figure = new_figure(max(8.0, len(kinds) * (2.4 + 0.2 * len(outputs))), 4.8)
    x, sizes = np.arange(len(outputs)), []
    for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        looks = zip(hard_metrics(kind)[:2], (f"negatives near in {kind}", "random negatives"), STYLES, strict=False)
        for (metric, name, (colour, marker)), line in zip(looks, ("-", "--"), strict=True):
            part = table.filter(pc.equal(table["metric"], metric))
            mean, low, high, chance = (
                100 * _curve(part, outputs, column) for column in ("value", "low", "high", "chance")
            )
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.vlines(x, low, high, color=colour, alpha=0.5, linewidth=1)
            axes.plot(x, mean, line, color=colour, marker=marker, markersize=5, linewidth=2, label=name, zorder=3)
        axes.plot([-0.5, *x, len(x) - 0.5], chance[[0, *x, -1]], ":", color="black", linewidth=1.2, label="chance")
        own = part.filter(pc.equal(part["level"], MEAN))
        ends = [pc.min(own["candidates"]).as_py(), pc.max(own["candidates_max"]).as_py()]
        sizes.append(
            f"{kind}: pools of {'–'.join(dict.fromkeys(map('{:,}'.format, ends)))}, "
            f"{counted(own['queries'][0].as_py(), 'query', 'queries')}"
        )
        axes.set_title({"sound": "sound", "length": "length", "words": "shared words"}[kind], fontsize=10)
        axes.set_xticks(x, outputs, rotation=90)
        axes.set(xlim=(-0.5, len(x) - 0.5), xlabel="encoder output, by depth")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="best")
    percent_axis(figure.axes[0])
    figure.axes[0].set_ylabel("recall@1 (%): up is better")
    bands = f"bands: {100 * LEVEL:.0f} % bootstrap intervals over groups" if pc.count(table["low"]).as_py() else ""
    head = f"{_asked('recall@1')} among a few candidates: {title}, by {similarity}, mean over directions"
    set_title(figure, head, "; ".join(sizes), bands)
    return figure


def plot_language_matrix(
    table: pa.Table, title: str, similarity: str | None = None, metric: str = "recall@1"
) -> Figure:
    """`metric` from each source language to each target language, one heatmap per output.

    All outputs are shown, on one scale of 0 to 100 %, on which chance is marked: choosing the best on the data it is
    reported on would flatter it. similarity: seqsim_f1 when the table has it, else the table's first. Directions
    without a query show "–".
    """
    table = _of_metric(table, metric)
    known = similarities_of(table)
    similarity = known[0] if similarity is None else similarity
    if similarity not in known:
        raise UsageError(f"unknown similarity {similarity!r}; the table holds: {', '.join(known)}")
    table = table.filter(pc.equal(table["similarity"], similarity))
    outputs = depth_order(table["output"].to_pylist())
    directions = table.filter(pc.equal(table["level"], DIRECTION))
    languages = list(dict.fromkeys(directions["source"].to_pylist()))
    side = max(1.6, 0.36 * len(languages))  # inches per heatmap: room for three digits in each cell
    columns = min(len(outputs), max(math.ceil(math.sqrt(1.3 * len(outputs))), math.ceil(6 / (side + 0.7))))
    rows = math.ceil(len(outputs) / columns)
    figure = new_figure(max(5.0, columns * (side + 0.7) + 1.2), rows * (side + 0.8) + 1.2)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(outputs) :]:
        axes.set_visible(False)
    for axes, output in zip(grid.flat, outputs, strict=False):
        matrix = 100 * _matrix(directions.filter(pc.equal(directions["output"], output)), languages)
        image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=100)
        for (i, j), value in np.ndenumerate(matrix):
            if i != j:
                text, colour = "–" if math.isnan(value) else f"{value:.0f}", "white" if value <= 48 else "black"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
        axes.set_title(output, fontsize=10)
        axes.set_xticks(range(len(languages)), languages, rotation=90, fontsize=8)
        axes.set_yticks(range(len(languages)), languages, fontsize=8)
        axes.spines[:].set_visible(False)
    size = text_size(figure)
    bar = figure.colorbar(image, ax=grid, shrink=0.6)
    bar.set_label(f"{metric} (%): lighter is better", fontsize=size)
    if chance := pc.mean(directions["chance"]).as_py():
        bar.ax.axhline(100 * chance, color="white", linewidth=1.5)
        bar.ax.annotate("chance ", (0, 100 * chance), xycoords=("axes fraction", "data"), ha="right", va="center")
    figure.supxlabel("target language (candidates)", fontsize=size)
    figure.supylabel("source language (queries)", fontsize=size)
    set_title(figure, f"{_asked(metric)}, from language to language: {title}, by {similarity}", conditions(table))
    return figure


def _of_metric(table: pa.Table, metric: str) -> pa.Table:
    """Rows of one retrieval metric under the similarities' own scores."""
    known = retrieval_metrics(table)
    if metric not in known:
        raise UsageError(f"unknown metric {metric!r}; the table holds: {', '.join(known) or 'none'}")
    return table.filter(pc.and_(pc.equal(table["metric"], metric), pc.equal(table["score"], "raw")))


def _curve(table: pa.Table, outputs: list[str], column: str) -> npt.NDArray[np.float64]:
    """A column of the mean over directions by output, (outputs,) float64, NaN where the table has none."""
    part = table.filter(pc.equal(table["level"], MEAN))
    values = dict(zip(part["output"].to_pylist(), part[column].to_pylist(), strict=True))
    return np.array([values.get(output) for output in outputs], np.float64)


def _matrix(table: pa.Table, languages: list[str]) -> npt.NDArray[np.float64]:
    """Values of one output, (sources, targets) float64, NaN where the table has none."""
    values = {(row["source"], row["target"]): row["value"] for row in table.to_pylist()}
    cells = [[values.get((source, target)) for target in languages] for source in languages]
    return np.array(cells, np.float64)
