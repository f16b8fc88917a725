"""The labels of a store's utterances: as they are now, and as they were when it was planned.

`utterances.parquet` holds the labels as they are. Its metadata count how often `voxstrata relabel` has changed them,
and history/0001.parquet, 0002, … hold what each change replaced. A record beyond that count is of a change that was
cut short before it counted.
"""

import io
import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxstrata.corpus import Corpus
from voxstrata.store.files import Files

UTTERANCES, HISTORY = "utterances.parquet", "history"
# Those of them that the plan depends on, as its fingerprint does. A column of the user's own is a label, too.
PLANNED_LABELS = ("language", "group", "text", "speaker")
RELABELLED = b"voxstrata_relabelled"  # in the metadata of utterances.parquet: the number of changes
RECORD = b"voxstrata"  # in those of a record: which manifest, and when


def read_utterances(files: Files) -> pa.Table:
    """`utterances.parquet` as it is stored, with its metadata."""
    return pq.read_table(io.BytesIO(files.read(UTTERANCES)))


def times_relabelled(utterances: pa.Table) -> int:
    """How often the labels of a stored table were changed."""
    return int((utterances.schema.metadata or {}).get(RELABELLED, b"0"))


def record_name(number: int) -> str:
    """Where the record of a change lies, counted from 1."""
    return f"{HISTORY}/{number:04d}.parquet"


def read_record(files: Files, number: int) -> tuple[pa.Table, dict[str, Any]]:
    """What a change replaced, columns id, column, old, new, and what is known of it: manifest, sha256, when."""
    table = pq.read_table(io.BytesIO(files.read(record_name(number))))
    return table, dict(json.loads(table.schema.metadata[RECORD]))


def with_planned_labels(files: Files, utterances: pa.Table) -> pa.Table:
    """A stored table with the labels that its plan was made with."""
    if not times_relabelled(utterances):
        return utterances
    rows = {name: i for i, name in enumerate(utterances["id"].to_pylist())}
    columns = {name: utterances[name].to_pylist() for name in PLANNED_LABELS}
    for number in range(times_relabelled(utterances), 0, -1):
        changed, _ = read_record(files, number)
        changed = changed.filter(pc.is_in(changed["column"], pa.array(PLANNED_LABELS)))
        for name, column, old in zip(*(changed[c].to_pylist() for c in ("id", "column", "old")), strict=True):
            columns[column][rows[name]] = old
    return _with_columns(utterances, columns)


def as_planned(files: Files, corpus: Corpus) -> Corpus:
    """A corpus with the labels that a store's plan was made with, where its own are those that the store has now.

    So the manifest that a store was relabelled with resumes it as the first one does.
    """
    now = read_utterances(files)
    if not times_relabelled(now):
        return corpus
    keys = ("id", *PLANNED_LABELS)
    planned = with_planned_labels(files, now)
    labels = dict(zip(_tuples(now, keys), _tuples(planned, PLANNED_LABELS), strict=True))
    kept = [labels.get(row, row[1:]) for row in _tuples(corpus.table, keys)]
    columns = {name: [row[i] for row in kept] for i, name in enumerate(PLANNED_LABELS)}
    return replace(corpus, table=_with_columns(corpus.table, columns))


def _tuples(table: pa.Table, columns: tuple[str, ...]) -> list[tuple[str | None, ...]]:
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """A table with these values in a column: in its place where it has that column, else as its last."""
    if name not in table.column_names:
        return table.append_column(name, values)
    return table.set_column(table.schema.get_field_index(name), name, values)


def _with_columns(table: pa.Table, columns: dict[str, list[str | None]]) -> pa.Table:
    for name, values in columns.items():
        table = with_column(table, name, pa.array(values, pa.string()))
    return table
