"""What controlled retrieval found: one table of figures, shown as tables and a picture, saved and loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored
from voxstrata.evaluation.metrics import MEAN
from voxstrata.studies.align.figures import plot_alignment
from voxstrata.studies.align.pools import POOL_ALL, POOL_CLOSEST, POOL_MATCHED, POOL_RANDOM, POOL_UNLIKE
from voxstrata.studies.align.states import CENTRED, RAW
from voxstrata.studies.align.table import (
    AT_ZERO,
    CHANGE,
    DISCRIMINATION,
    DURATIONS,
    FIT,
    GIVEN_DURATION,
    PHONEMES,
    RECALL,
    SLOPE,
    directions,
    directions_with_unlike_pairs,
    figures_of,
    systems,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Columns of the two tables: header, states, control, metric, whether percent.
_WHOLE = (
    ("all", RAW, POOL_ALL, RECALL, True),
    ("means removed", CENTRED, POOL_ALL, RECALL, True),
    ("removed − all", CENTRED, POOL_ALL, CHANGE, True),
    ("if unlike", RAW, FIT, AT_ZERO, True),
    ("log-odds/SD", RAW, FIT, SLOPE, False),
    ("given duration", RAW, FIT, GIVEN_DURATION, False),
    ("discrimination", RAW, FIT, DISCRIMINATION, False),
)
_CONTROLLED = (
    ("matched", RAW, POOL_MATCHED, RECALL, True),
    ("unlike", RAW, POOL_UNLIKE, RECALL, True),
    ("unlike − matched", RAW, POOL_UNLIKE, CHANGE, True),
    ("random", RAW, POOL_RANDOM, RECALL, True),
    ("closest", RAW, POOL_CLOSEST, RECALL, True),
    ("closest − random", RAW, POOL_CLOSEST, CHANGE, True),
)


@dataclass(frozen=True, eq=False, repr=False)
class Alignment(Result):
    """Retrieval under controls.

    table: one row per (system, states, control, source, target, metric), columns as in ALIGN_SCHEMA; a figure that does
    not exist is null.
    - system: outputs by depth, then the retrievers "phonemes" and "durations", which see nothing else.
    - states: "raw" or, for outputs, "means removed".
    - control: the kind of pool (see `hits_by_pool`), or "fit".
    - metric: recall@1. recall@1_change, paired: of "unlike" from "matched", of "closest" from "random", and under "all"
      of means removed from raw. For "fit" log_odds_per_sd, log_odds_per_sd_given_duration, recall@1_if_unlike and
      discrimination.
    Rows with source and target "mean" are the unweighted mean over directions. low, high: 95 % bootstrap intervals over
    groups.
    """

    table: pa.Table

    command = "align"
    files: ClassVar = {"table": "align.parquet"}
    key = "voxstrata_align"
    markdown = "align.md"
    captions: ClassVar = {"align": "Controlled retrieval"}
    formats = ("png", "pdf")
    brief = 2
    dpi = 220  # for print

    @property
    def title(self) -> str:
        about = self.store
        whose = f"{about['model']['checkpoint']}, {about['spec']['context']['mode']}: " if about else ""
        return f"{whose}controlled retrieval"

    def tables(self) -> list[TextTable]:
        first, second = self._of(MEAN, MEAN)
        both = [TextTable(f"Whole pools, {first.title}", first.header, first.rows, self._note_on_whole_pools())]
        both += [TextTable(f"Controlled pools, {second.title}", second.header, second.rows, self._note_on_controls())]
        for source, target in directions(self.table):
            for kind, t in zip(("Whole", "Controlled"), self._of(source, target), strict=True):
                both.append(TextTable(f"{kind} pools, {t.title}", t.header, t.rows, folded=True))
        return both

    def stored(self) -> list[TextTable]:
        means = self.table.filter(pc.equal(self.table["source"], MEAN))
        return [as_stored(means, "Means, fractions, as stored", of=len(self.table))]

    def figures(self) -> dict[str, Figure]:
        return {"align": plot_alignment(self.table, self.title, self.settings)}

    def _of(self, source: str, target: str) -> list[TextTable]:
        """Both tables of one direction, or of the mean: a row per system, then pool sizes and chance.

        Intervals stand in brackets on a line of their own, below their figure.
        """
        title = "mean over directions" if source == MEAN else f"{source} → {target}"
        found, names = figures_of(self.table, source, target), systems(self.table)
        tables = []
        for columns in (_WHOLE, _CONTROLLED):
            body = [
                [name, *(_cell(found.get((name, a, b, c)), 100 if percent else 1) for _, a, b, c, percent in columns)]
                for name in names
            ]
            pools, chances = ["pool"], ["chance"]
            for _, states, control, metric, _ in columns:
                row = found.get((names[0], states, control, metric)) if metric == RECALL else None
                pools.append("" if row is None else "–".join(dict.fromkeys(_pool_sizes(row))))
                chances.append("" if row is None or row["chance"] is None else _number(row["chance"], 100))
            tables.append(TextTable(title, ["system", *(name for name, *_ in columns)], [*body, pools, chances]))
        return tables

    def _note_on_whole_pools(self) -> str:
        """What the columns mean under these settings, in lines that fit a terminal."""
        s = self.settings
        few = f"its language (speakers are unknown, or have fewer than {s['smallest_cell']} utterances)"
        cells = few if s["cells_are_languages"] else "its speaker in its language"
        number = f"the mean over {len(directions(self.table))} directions"
        intervals = f"In brackets: 95 % bootstrap intervals over {s['bootstrap_groups']} groups."
        return "\n".join(
            [
                f"recall@1 in %: how often the translation scores best, by {s['similarity']}; {number}.",
                *([intervals] if s["bootstrap_resamples"] else []),
                "- all: the pool holds one recording of every sentence.",
                f"- means removed: the same, where each frame is less the mean of {cells}.",
                "- The next four come from a logistic regression. It predicts the hits in the column 'all' from",
                "  closeness: how much closer the pair sounds than non-translations do, in standard deviations.",
                "- if unlike: predicted recall where translations sound no closer than non-translations.",
                "- log-odds/SD: the slope. given duration: the slope when it also knows how alike both durations are.",
                "- discrimination: Tjur's coefficient, minus that of a regression that knows the direction alone;",
                "  0 means that closeness predicts nothing.",
                f"- The rows {PHONEMES} and {DURATIONS} are retrievers that see nothing else.",
            ]
        )

    def _note_on_controls(self) -> str:
        s = self.settings
        return "\n".join(
            [
                "- unlike: queries and candidates are only those pairs that sound unlike. A pair sounds unlike when at "
                "least",
                f"  {100 * s['unlike_quantile']:g} % of the source's non-translations sound closer to it "
                f"(by {s['by']}).",
                "- matched: pools of as many pairs of like duration, drawn from all pairs. The mean over all draws.",
                f"- Both columns are {self._directions_of_unlike()}.",
                f"- closest: the pool is the translation and {s['closest']} hard negatives, the non-translations that "
                "sound",
                "  closest to the query. random: as many non-translations of like duration, drawn at random.",
            ]
        )

    def _directions_of_unlike(self) -> str:
        """What the mean over unlike pairs is over."""
        least = self.settings["smallest_pool"]
        if not (enough := directions_with_unlike_pairs(self.table)):
            return f"empty here, as no direction has {least} such pairs"
        return f"means over the {enough} directions with {least} such pairs or more"


def _pool_sizes(row: dict[str, Any]) -> list[str]:
    """Smallest and largest pool."""
    return [str(row["candidates"]), str(row["candidates_max"])]


def _cell(row: dict[str, Any] | None, scale: float) -> str:
    if row is None:
        return ""
    if row["value"] is None:
        return "–"
    if row["low"] is None:
        return _number(row["value"], scale)
    return f"{_number(row['value'], scale)}\n[{_number(row['low'], scale)}, {_number(row['high'], scale)}]"


def _number(value: float, scale: float) -> str:
    places = 1 if scale == 100 else 2
    return f"{round(scale * value, places) + 0.0:.{places}f}"  # + 0.0: no minus before a zero
