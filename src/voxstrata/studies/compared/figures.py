"""Pictures of several encoders on one axis of depth. Needs the extra `plot`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import UsageError
from voxstrata.base.figures import (
    DepthCurve,
    Figure,
    draw_by_depth,
    label_curves,
    new_figure,
    percent_axis,
    percent_top,
    set_title,
)
from voxstrata.evaluation.bootstrap import LEVEL
from voxstrata.evaluation.levels import MEAN
from voxstrata.studies.align.pools import POOL_ALL, POOL_CLOSEST, POOL_UNLIKE
from voxstrata.studies.align.states import RAW
from voxstrata.studies.align.table import DURATIONS, PHONEMES, RECALL
from voxstrata.studies.compared.table import curves
from voxstrata.studies.retrieve.text import conditions, retrieval_metrics, similarities_of

_DEPTH = "depth: blocks passed / all blocks of the encoder"
_HOLLOW = "hollow: final, behind a LayerNorm or adapter that follows the last block"
_PANELS = (
    (POOL_ALL, "a  whole pools"),
    (POOL_UNLIKE, "b  pairs that sound unlike"),
    (POOL_CLOSEST, "c  hard negatives"),
)


def plot_recall_by_depth(
    table: pa.Table, settings: dict[str, Any], title: str, similarity: str | None = None, metric: str = "recall@1"
) -> Figure:
    """`metric` of every output of every encoder, the mean over all directions, against depth, with chance.

    Depth is 0 at the input of the first block and 1 after the last, whatever the number of blocks. Bands are the
    table's bootstrap intervals. similarity: seqsim_f1 where the table has it, else its first.
    Raises UsageError for what the table does not hold.
    """
    names, metrics = similarities_of(table), retrieval_metrics(table)
    similarity = names[0] if similarity is None else similarity
    for what, name, known in (("similarity", similarity, names), ("metric", metric, metrics)):
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}; the table holds: {', '.join(known)}")
    table = table.filter((pc.field("metric") == metric) & (pc.field("score") == "raw"))
    table = table.filter(pc.field("similarity") == similarity)
    means = table.filter(pc.field("level") == MEAN)
    drawn = curves(means, settings, "output")
    figure = new_figure(9.5, 5.4)
    axes = figure.subplots()
    draw_by_depth(axes, drawn)
    chance = 100 * means["chance"][0].as_py()
    axes.axhline(chance, color="black", linestyle="--", linewidth=1.2, zorder=2)
    percent_axis(axes, _highest(drawn))
    label_curves(axes, drawn, chance, percent_top(_highest(drawn)))
    axes.set_xlabel(_DEPTH)
    axes.set_ylabel(f"{metric} (%) by {similarity}: up is better")
    set_title(
        figure, f"How often a translation comes first, by depth: {title}", conditions(table), _legend(means, drawn)
    )
    return figure


def plot_alignment_by_depth(table: pa.Table, settings: dict[str, Any], title: str) -> Figure:
    """recall@1 of every output of every encoder, mean over directions, in whole and in controlled pools, by depth."""
    means = table.filter((pc.field("level") == MEAN) & (pc.field("states") == RAW) & (pc.field("metric") == RECALL))
    figure = new_figure(12.0, 5.2)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    every: list[DepthCurve] = []
    for axes, (control, name) in zip(panels, _PANELS, strict=True):
        pool = means.filter(pc.field("control") == control)
        every += (drawn := curves(pool.filter(pc.is_valid(pool["encoder"])), settings, "system"))
        draw_by_depth(axes, drawn)
        chance = pool["chance"][0].as_py()
        if chance is not None:  # no direction has enough of such pairs
            axes.axhline(100 * chance, color="black", linestyle="--", linewidth=1.2, label="chance", zorder=2)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel(_DEPTH, fontsize=9)
        if control == POOL_ALL:
            for system, dots in ((PHONEMES, (4, 2)), (DURATIONS, (1, 1))):
                (value,) = pool.filter(pc.field("system") == system)["value"].to_pylist()
                axes.axhline(100 * value, color="#777777", dashes=dots, linewidth=1.2, label=f"{system} alone")
    panels[0].set_ylabel(f"recall@1 (%) by {settings['similarity']}: up is better")
    percent_axis(panels[0], _highest(every))
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    set_title(figure, f"What is left without sound, by depth: {title}", _legend(means, every))
    return figure


def _highest(drawn: Sequence[DepthCurve]) -> float:
    """The highest figure of all curves, with their intervals."""
    return max([0.0, *(float(np.nanmax([0, *c.value, *c.high])) for c in drawn)])


def _legend(means: pa.Table, drawn: Sequence[DepthCurve]) -> str:
    """What bands and markers are."""
    bands = f"bands: {100 * LEVEL:.0f} % bootstrap intervals over groups" if pc.count(means["low"]).as_py() else ""
    hollow = _HOLLOW if any(curve.apart.any() for curve in drawn) else ""
    return "; ".join(part for part in (bands, hollow) if part)
