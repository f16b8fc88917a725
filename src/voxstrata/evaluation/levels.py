"""What a row of a table of figures is about: one direction, both of two languages, or all."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

# one direction; the mean of both directions of two languages; the mean over all directions
DIRECTION, PAIR, MEAN = "direction", "pair", "mean"


def with_level(table: pa.Table) -> pa.Table:
    """A table of an earlier version in today's form: its means had "en ↔ es", or "mean", for source and target."""
    if "level" in table.column_names:
        return table
    rows = []
    for source, target in zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True):
        level = DIRECTION if source != target else MEAN if source == MEAN else PAIR
        ends = {DIRECTION: (source, target), MEAN: (None, None)}.get(level) or source.split(" ↔ ")
        rows.append(dict(zip(("level", "source", "target"), (level, *ends), strict=True)))
    at = table.column_names.index("source")
    for name in ("source", "target"):
        column = pa.array([row[name] for row in rows], pa.string())
        table = table.set_column(table.column_names.index(name), name, column)
    return table.add_column(at, "level", pa.array([row["level"] for row in rows], pa.string()))


def pool_sizes(row: Mapping[str, Any]) -> str:
    """Of the pools that a row's figure is made of, smallest to largest: "6–1,012"."""
    return "–".join(dict.fromkeys(f"{row[name]:,}" for name in ("candidates", "candidates_max")))
