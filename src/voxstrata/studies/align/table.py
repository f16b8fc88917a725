"""The table of controlled retrieval: its columns, the names in it, and how figures are found in it."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.tables import TextTable, as_stored, distinct
from voxstrata.evaluation.levels import DIRECTION, MEAN
from voxstrata.studies.align.pools import POOL_CLOSEST, POOL_MATCHED, POOL_RANDOM, POOL_UNLIKE
from voxstrata.studies.align.states import RAW

PHONEMES, DURATIONS = "phonemes", "durations"  # retrievers that see nothing else
RECALL, CHANGE = "recall@1", "recall@1_change"
REFERENCE_POOL = {POOL_UNLIKE: POOL_MATCHED, POOL_CLOSEST: POOL_RANDOM}  # what a pool's change is measured from
FIT = "fit"  # in the place of the control: the logistic regression over all directions
SLOPE, AT_ZERO, DISCRIMINATION = "log_odds_per_sd", "recall@1_if_unlike", "discrimination"
GIVEN_DURATION = "log_odds_per_sd_given_duration"
FIT_METRICS = (SLOPE, GIVEN_DURATION, AT_ZERO, DISCRIMINATION)

ALIGN_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("system", "states", "control", "level", "source", "target", "metric", "pool")]
    + [(name, pa.float64()) for name in ("value", "low", "high", "chance")]
    + [(name, pa.int64()) for name in ("queries", "candidates", "candidates_max")]
)

FigureKey = tuple[str, str, str, str]  # system, states, control, metric


def systems(table: pa.Table) -> list[str]:
    """Outputs by depth, then the retrievers that see no states."""
    return distinct(table, "system")


def directions(table: pa.Table) -> list[tuple[str, str]]:
    """Ordered pairs of languages, as they stand."""
    table = table.filter(pc.equal(table["level"], DIRECTION))
    return list(dict.fromkeys(zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True)))


def figures_of(
    table: pa.Table, source: str | None = None, target: str | None = None
) -> dict[FigureKey, dict[str, Any]]:
    """Rows of one direction, or of the mean over all."""
    return {
        (row["system"], row["states"], row["control"], row["metric"]): row
        for row in table.to_pylist()
        if (row["source"], row["target"]) == (source, target)
    }


def directions_with_unlike_pairs(table: pa.Table) -> int:
    """How many directions have enough unlike pairs for a figure."""
    wanted = (systems(table)[0], RAW, POOL_UNLIKE, RECALL)
    found = (figures_of(table, *direction).get(wanted, {}) for direction in directions(table))
    return sum(row.get("value") is not None for row in found)


def stored_means(table: pa.Table) -> list[TextTable]:
    """Means over directions as they are stored: shares, then what the fits gave."""
    means = table.filter(pc.equal(table["level"], MEAN))
    odds = pc.is_in(means["metric"], value_set=pa.array([SLOPE, GIVEN_DURATION, DISCRIMINATION]))
    figures = ("value", "low", "high", "chance")
    return [
        as_stored(means.filter(pc.invert(odds)), "Means, as stored", shares=figures, of=len(table)),
        as_stored(means.filter(odds), "Means of the fits, as stored", of=len(table)),
    ]
