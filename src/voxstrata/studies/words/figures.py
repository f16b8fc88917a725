"""The picture of a word comparison: AUC by depth. Needs the extra `plot`."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.figures import STYLES, Figure, new_figure, set_title
from voxstrata.encoders.outputs import depth_order
from voxstrata.evaluation.bootstrap import LEVEL
from voxstrata.studies.words.pairs import WORD_KINDS
from voxstrata.studies.words.table import DURATION_ALONE, EVERY_LANGUAGE, WORD_SIMILARITIES

_TITLES = {
    "synonyms": "synonyms\nsame meaning, other sound",
    "near_homophones": "near-homophones\nother meaning, same sound",
}


def plot_words(table: pa.Table, title: Sequence[str]) -> Figure:
    """AUC against random pairs by depth, a panel for either kind, a line per similarity with its interval.

    Dashed: chance. Dotted: what the words' durations give alone. title: its paragraphs.
    """
    table = table.filter(pc.equal(table["source"], EVERY_LANGUAGE))
    outputs = depth_order(table.filter(pc.is_valid(table["output"]))["output"].to_pylist())
    figure = new_figure(max(10.0, 3.0 + 0.56 * len(outputs)), 5.4)
    panels = figure.subplots(1, 2, sharey=True)
    x = np.arange(len(outputs))
    for axes, kind in zip(panels, WORD_KINDS, strict=True):
        rows = {(r["output"], r["similarity"]): r for r in table.to_pylist() if r["kind"] == kind}
        for (colour, marker), similarity in zip(STYLES, WORD_SIMILARITIES, strict=False):
            found = [rows[output, similarity] for output in outputs]
            value, low, high = (np.array([row[c] for row in found], np.float64) for c in ("auc", "low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.vlines(x, low, high, color=colour, alpha=0.5, linewidth=1)  # a band of one output has no width
            axes.plot(x, value, color=colour, marker=marker, markersize=5, linewidth=2, label=similarity)
        axes.axhline(0.5, color="black", linestyle="--", linewidth=1.2, label="chance")
        duration = rows[None, DURATION_ALONE]["auc"]
        axes.axhline(duration, color="black", linestyle=":", linewidth=1.2, label="duration alone")
        axes.set_title(_TITLES[kind], fontsize=10)
        axes.set_xticks(x, outputs, rotation=90)
        axes.set(xlabel="encoder output, by depth", xlim=(-0.5, len(outputs) - 0.5))
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("AUC, up: nearer than random pairs")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    bands = f"bands: {100 * LEVEL:.0f} % bootstrap intervals over meanings" if table["low"].null_count == 0 else ""
    set_title(figure, *title, bands)
    return figure
