"""Change the labels of a store's utterances without encoding anything again."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.opening import read_regular
from voxstrata.base.plain import counted, shown_as
from voxstrata.base.remote import is_url
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.corpus.audio_folder import is_metadata
from voxstrata.corpus.hub import is_hub_parquet
from voxstrata.corpus.lhotse import is_lhotse
from voxstrata.corpus.manifest import OWN, without_words_for_nothing
from voxstrata.corpus.nemo import is_nemo
from voxstrata.corpus.remote import local_copy
from voxstrata.corpus.rows import read_table, table_header
from voxstrata.corpus.table import PART_SCHEMA, kept_name
from voxstrata.store.checked import identity_of, table_bytes
from voxstrata.store.files import parquet_bytes
from voxstrata.store.labels import (
    HISTORY,
    PLANNED_LABELS,
    RECORD,
    RELABELLED,
    UTTERANCES,
    read_utterances,
    record_name,
    times_relabelled,
    with_column,
)
from voxstrata.store.plan import MEASURED_SCHEMA, PLACED
from voxstrata.store.several import AnyStore, open_store, place_of

# What a recording is and where its frames are: no labels, whatever a manifest says.
FIXED_COLUMNS = {"path", *PART_SCHEMA.names, *MEASURED_SCHEMA.names, *PLACED}
FIXED_COLUMNS |= {name for what in ("offset", "duration", "end", "channel") for name in OWN[what]}
_SHOWN = 5  # changes of a column that a report shows


@dataclass(frozen=True)
class RelabelReport:
    """What `relabel` changed.

    changed: utterances by column, in the manifest's order; 0 where all are as they were. examples: the first changes of
        a column, (id, old, new). named: utterances of the store that the manifest names, of so many `utterances`.
    unknown: ids of the manifest that are not in the store. ignored: columns that are no labels.
    record: the file that keeps what was replaced; None when nothing was.
    """

    store: str
    changed: dict[str, int]
    examples: dict[str, list[tuple[str, str | None, str | None]]]
    utterances: int
    named: int
    unknown: list[str]
    ignored: list[str]
    record: str | None

    def __repr__(self) -> str:
        changed = ", ".join(f"{name} of {n}" for name, n in self.changed.items())
        return shown_as(self, f"changed {changed or 'nothing'}", self.store)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    def to_text(self) -> str:
        """In a few lines."""
        lines = [f"{self.store}: {self.named} of {counted(self.utterances, 'utterance')} found in the manifest"]
        for name, count in self.changed.items():
            lines.append(f"{name}: {count} changed")
            lines += [f"  {i}: {_quoted(old)} → {_quoted(new)}" for i, old, new in self.examples[name]]
            if count > len(self.examples[name]):
                lines.append(f"  … and {count - len(self.examples[name])} more")
        if self.unknown:
            more = ", …" if len(self.unknown) > _SHOWN else ""
            shown = ", ".join(map(repr, self.unknown[:_SHOWN])) + more
            are = counted(len(self.unknown), "id of the manifest is", "ids of the manifest are")
            lines.append(f"{are} not in the store: {shown}")
        if self.ignored:
            lines.append(f"no labels, left as they are: {', '.join(self.ignored)}")
        lines.append(f"what was replaced is in {self.record}" if self.record else "nothing was changed")
        return "\n".join(lines)


def relabel(
    store: AnyStore, manifest: Corpus | pa.Table | str | Path, *, columns: Mapping[str, str] | None = None
) -> RelabelReport:
    """Change language, group, text, speaker and the user's own columns of a store's utterances, by id.

    store: its path, or opened; what is open shows the old labels until it is opened anew.
    manifest: a table with a column `id` and those that are to change, in memory or as a .tsv, .csv, .jsonl or .parquet
        file; or a corpus, or anything that `read_corpus` reads, of which columns without any value are left out.
        Recordings need not be there. An empty value empties the label. Columns and ids that it does not have stay as
        they are, a column that the store does not have is added.
    columns: what columns of a file are, `{"text": "sentence"}`, as of `read_corpus`.

    Frames stay where they are, so units still hold the languages that the plan was made with. What is replaced is kept
    in the store, in history/0001.parquet and on; a kill at any instant leaves the old labels or the new ones.

    Raises UsageError for columns that cannot be chosen; InputError for a manifest that cannot be used, names an
    utterance twice or none of the store, and for a store that another process writes.
    """
    if isinstance(manifest, str) and is_url(manifest):
        with local_copy(manifest) as copy:
            return relabel(store, copy, columns=columns)
    opened = open_store(place_of(store))
    opened.utterances  # noqa: B018  # a damaged store is refused, not written to
    files = opened.files
    origin = str(manifest) if isinstance(manifest, str | Path) else "the manifest"
    labels = _read_labels(manifest, origin, columns or {})
    with files.lock():
        for name in (f"{UTTERANCES}.*", f"{HISTORY}/*"):
            files.sweep(name)
        now, store_id = read_utterances(files), identity_of(files)
        positions = pc.index_in(now["id"], value_set=labels["id"].combine_chunks())
        named = positions.is_valid()
        if not pc.any(named).as_py():
            raise InputError(
                f"{origin}: none of its ids is in {files.root}; name utterances as it does, like "
                f"{now['id'][0].as_py()!r}"
            )
        changing = [name for name in labels.column_names if name != "id" and name not in FIXED_COLUMNS]
        table, records = now, []
        for name in changing:
            old = now[name] if name in now.column_names else pa.nulls(len(now), pa.string())
            new = pc.if_else(named, labels[name].take(positions), old)
            table = with_column(table, name, new)
            records.append(_changes(now["id"], name, old, new))
        record = pa.concat_tables(records) if records else pa.table({})
        number = times_relabelled(now) + 1
        if len(record):
            in_file = isinstance(manifest, str | Path) and Path(manifest).is_file()
            digest = hashlib.sha256(read_regular(origin) if in_file else parquet_bytes(labels)).hexdigest()
            when = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"manifest": Path(origin).name, "sha256": digest, "when": when}
            record = record.replace_schema_metadata({RECORD: json.dumps(about, ensure_ascii=False).encode()})
            files.write(record_name(number), table_bytes(record, store_id))
            # from here on the change counts
            counted = {**(now.schema.metadata or {}), RELABELLED: str(number).encode()}
            files.write(UTTERANCES, table_bytes(table.replace_schema_metadata(counted), store_id))
    return RelabelReport(
        store=files.root,
        changed={name: len(part) for name, part in zip(changing, records, strict=True)},
        examples={name: _examples(part) for name, part in zip(changing, records, strict=True)},
        utterances=len(now),
        named=pc.sum(named).as_py(),
        unknown=labels["id"].filter(pc.invert(pc.is_in(labels["id"], now["id"].combine_chunks()))).to_pylist(),
        ignored=[name for name in labels.column_names if name in FIXED_COLUMNS],
        record=record_name(number) if len(record) else None,
    )


def _read_labels(manifest: Corpus | pa.Table | str | Path, origin: str, columns: Mapping[str, str]) -> pa.Table:
    """A table of strings with an `id` in every row and no id twice; columns without a name of ours are the user's."""
    if isinstance(manifest, str | Path):
        manifest = _read_manifest(Path(manifest), columns)
    elif columns:
        raise UsageError("columns are chosen of files; rename those of a table in memory")
    if isinstance(manifest, Corpus):
        table = manifest.table.drop(PART_SCHEMA.names)
        manifest = table.select([name for name in table.column_names if table[name].null_count < len(table)])
    if "id" not in manifest.column_names:
        raise InputError(f"{origin}: no column 'id'; name the utterances as the store does")
    ids = manifest["id"].to_pylist()
    if None in ids:
        raise InputError(f"{origin}: row {ids.index(None) + 1} has no id; name the utterance or remove the row")
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise InputError(f"{origin}: {twice[0]!r} stands {Counter(ids)[twice[0]]} times; keep one for each utterance")
    return pa.table({name: _strings(manifest[name], f"{origin}, column {name!r}") for name in manifest.column_names})


def _read_manifest(path: Path, columns: Mapping[str, str]) -> Corpus | pa.Table:
    """What `read_corpus` makes of it; a table that has ids and no paths by these."""
    header = table_header(path) if path.is_file() else []
    has_id, has_path = (columns.get(what, what) in header for what in ("id", "path"))
    if has_id and not has_path and not _names_paths_otherwise(path):
        return _read_bare(path, columns)
    corpus = read_corpus(path, columns=columns)
    return _as_it_stands(corpus, header, columns) if has_id else corpus


def _names_paths_otherwise(path: Path) -> bool:
    """Whether a table without a column `path` is of a form that calls it otherwise."""
    return is_nemo(path) or is_metadata(path) or is_hub_parquet(path) or is_lhotse(path)


def _as_it_stands(corpus: Corpus, header: Sequence[str], columns: Mapping[str, str]) -> pa.Table:
    """The labels of a table with ids: also those that are empty in each row, and in its order. What says where a
    recording is stays by its name there."""
    fixed = [name for name in header if name in FIXED_COLUMNS and name not in columns.values()]
    said = {*header, *columns, *corpus.extra}
    found = {
        name: corpus.table[name]
        for name in corpus.table.column_names
        if name not in FIXED_COLUMNS and name.removeprefix("given_") not in fixed
        if name in said or corpus.table[name].null_count < len(corpus)
    }
    found |= dict.fromkeys(fixed, pa.chunked_array([pa.nulls(len(corpus), pa.string())]))
    order = {name: i for i, name in enumerate(header)}
    return pa.table({name: found[name] for name in sorted(found, key=lambda name: order.get(name, len(order)))})


def _read_bare(path: Path, chosen: Mapping[str, str]) -> pa.Table:
    table, known = read_table(path), ("id", *PLANNED_LABELS)
    for what, name in chosen.items():
        if what not in known:
            raise UsageError(f"--columns {what}={name}: {what} is not chosen here; choose of {', '.join(known)}")
        if name not in table.columns:
            raise UsageError(
                f"--columns {what}={name}: {path} has no column {name!r}; found: {', '.join(table.columns)}"
            )
    called = {name: what for what, name in chosen.items()}
    columns: dict[str, Any] = {}
    for name in table.columns:
        label = called.get(name, kept_name(name) if name in chosen else name)
        columns[label] = table.column(name, extra=label not in known)
    without_words_for_nothing(columns)
    return pa.table(columns)


def _strings(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """A column as strings; null where it is empty or not a number."""
    try:
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        column = column.cast(pa.string())
    except pa.ArrowException as error:
        raise InputError(f"{where}: {error}; make it strings") from None
    return pc.if_else(pc.equal(column, ""), None, column)


def _changes(ids: pa.ChunkedArray, column: str, old: pa.ChunkedArray, new: pa.ChunkedArray) -> pa.Table:
    """What a column's new values replace: id, column, old, new, a row for each utterance that changes."""
    same = pc.or_(pc.fill_null(pc.equal(old, new), False), pc.and_(pc.is_null(old), pc.is_null(new)))
    table = pa.table({"id": ids, "column": pa.array([column] * len(ids), pa.string()), "old": old, "new": new})
    return table.filter(pc.invert(same))


def _examples(changes: pa.Table) -> list[tuple[str, str | None, str | None]]:
    return [(row["id"], row["old"], row["new"]) for row in changes.slice(0, _SHOWN).to_pylist()]


def _quoted(label: str | None) -> str:
    return "–" if label is None else repr(label)
