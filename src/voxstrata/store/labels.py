"""The labels of a store's utterances: as they are now, and as they were when it was planned.

`utterances.parquet` holds the labels as they are. Its metadata count how often `voxstrata relabel` has changed them,
and history/0001.parquet, 0002, … hold what each change replaced. A record beyond that count is of a change that was
cut short before it counted.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxstrata.base.opening import parse_json
from voxstrata.base.tables import distinct
from voxstrata.corpus import Corpus
from voxstrata.store.checked import checked_table, damaged, identity_of
from voxstrata.store.files import Files

UTTERANCES, HISTORY = "utterances.parquet", "history"
# Those of them that the plan depends on, as its fingerprint does. A column of the user's own is a label, too.
PLANNED_LABELS = ("language", "group", "text", "speaker")
RELABELLED = b"voxstrata_relabelled"  # in the metadata of utterances.parquet: the number of changes
RECORD = b"voxstrata"  # in those of a record: which manifest, and when


def read_utterances(files: Files, columns: Sequence[str] | None = None, **how: Any) -> pa.Table:
    """`utterances.parquet` as it is stored, with its metadata; of some columns alone, the others are not decoded.

    how: see `checked_table`.
    Raises InputError where it is missing, damaged or another store's.
    """
    return checked_table(files, UTTERANCES, identity_of(files), columns, **how)


def utterance_columns(files: Files) -> list[str]:
    """Names of the columns of `utterances.parquet`. Raises InputError as `read_utterances` does."""
    try:
        with files.open(UTTERANCES) as data:
            names: list[str] = pq.read_schema(data).names
    except (pa.ArrowException, OSError) as e:
        raise damaged(files, UTTERANCES, f"missing, or not readable as Parquet ({e})") from None
    return names


def times_relabelled(utterances: pa.Table) -> int:
    """How often the labels of a stored table were changed."""
    return int((utterances.schema.metadata or {}).get(RELABELLED, b"0"))


def record_name(number: int) -> str:
    """Where the record of a change lies, counted from 1."""
    return f"{HISTORY}/{number:04d}.parquet"


def read_record(files: Files, number: int) -> tuple[pa.Table, dict[str, Any]]:
    """What a change replaced, columns id, column, old, new, and what is known of it: manifest, sha256, when."""
    table = checked_table(files, record_name(number), identity_of(files))
    return table, dict(parse_json(table.schema.metadata[RECORD]))


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


def relabelled(files: Files, utterances: pa.Table) -> pa.Table:
    """A plan's utterances with all the changes of labels that are on record: what a store that lost its table had."""
    number = 0
    while files.exists(record_name(number + 1)):
        number += 1
        record, _ = read_record(files, number)
        for name in distinct(record, "column"):
            changed = record.filter(pc.equal(record["column"], name))
            positions = pc.index_in(utterances["id"], value_set=changed["id"].combine_chunks())
            old = utterances[name] if name in utterances.column_names else pa.nulls(len(utterances), pa.string())
            new = pc.if_else(positions.is_valid(), changed["new"].take(positions), old)
            utterances = with_column(utterances, name, new)
    return utterances.replace_schema_metadata({RELABELLED: str(number).encode()}) if number else utterances


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
