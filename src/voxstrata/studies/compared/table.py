"""Tables of several encoders: rows of another study's table, with the encoder, its family and the depth in front."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voxstrata.base.figures import DepthCurve
from voxstrata.base.tables import TextTable
from voxstrata.retrieval.encoders import StoredEncoder
from voxstrata.studies.align.table import ALIGN_SCHEMA
from voxstrata.studies.retrieve.result import RETRIEVAL_SCHEMA

BEHIND = ("behind", "behind_low", "behind_high")  # the best output of all encoders
_OWN = [("encoder", pa.string()), ("family", pa.string()), ("depth", pa.float64())]
COMPARED_RETRIEVAL_SCHEMA = pa.schema([*_OWN, *RETRIEVAL_SCHEMA, *((name, pa.float64()) for name in BEHIND)])
COMPARED_ALIGN_SCHEMA = pa.schema([*_OWN, *ALIGN_SCHEMA])


def with_encoder(table: pa.Table, encoder: StoredEncoder, output: str) -> pa.Table:
    """A study's table with encoder, family and depth in front. output: the column that names outputs."""
    depths = {name: encoder.depth(name) for name in encoder.store.outputs}
    return _with_own(
        table,
        pa.repeat(encoder.label, len(table)),
        pa.repeat(encoder.store.model.family.name, len(table)),
        pa.array([depths[name] for name in table[output].to_pylist()], pa.float64()),
    )


def without_encoder(table: pa.Table) -> pa.Table:
    """The same of rows that are no encoder's: null in their place."""
    return _with_own(table, *(pa.nulls(len(table), kind) for _, kind in _OWN))


def _with_own(table: pa.Table, *columns: pa.Array) -> pa.Table:
    for i, ((name, _), column) in enumerate(zip(_OWN, columns, strict=True)):
        table = table.add_column(i, name, column)
    return table.replace_schema_metadata()


def curves(table: pa.Table, settings: dict[str, Any], output: str) -> list[DepthCurve]:
    """A curve for each encoder from rows of which each output has one. output: the column that names outputs."""
    found = []
    for about in settings["encoders"]:
        rows = table.filter(pc.equal(table["encoder"], about["encoder"])).sort_by("depth").to_pylist()
        value, low, high = (_percent(rows, name) for name in ("value", "low", "high"))
        depth = np.array([row["depth"] for row in rows], np.float64)
        apart = np.array([row[output] in about["apart"] for row in rows], bool)
        found.append(DepthCurve(about["encoder"], depth, value, low, high, apart))
    return found


def _percent(rows: Sequence[dict[str, Any]], column: str) -> NDArray[np.float64]:
    return 100 * np.array([row[column] for row in rows], np.float64)


def encoder_table(settings: dict[str, Any]) -> TextTable:
    """What was compared."""
    header = ["encoder", "family", "blocks", "d", "ms per row", "context", "norm", "store"]
    body = []
    for a in settings["encoders"]:
        step = "pooled" if a["row_seconds"] is None else f"{1000 * a['row_seconds']:g}"
        size = [str(a["layers"]), str(a["d_model"])]
        context = ", ".join([a["context"], *a["prefix"]])
        body.append([a["encoder"], a["family"], *size, step, context, a["norm"], a["store"]])
    return TextTable("Encoders", header, body, "\n".join(settings["differences"]))
