"""Parquet files with the bytes of recordings, as the Hugging Face hub and the library datasets keep them.

A column of audio is struct<bytes: binary, path: string>; the schema's metadata, "huggingface", say which is, and which
numbers stand for names.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.opening import parse_json
from voxstrata.base.parquet import parquet_file, read_parquet_table
from voxstrata.corpus.folder import files_below, language_folder
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.items import columns_corpus
from voxstrata.corpus.manifest import Names
from voxstrata.corpus.parquet_rows import ParquetPack, audio_bytes
from voxstrata.corpus.table import Corpus, Pack, absolute_root

# What corpora on the hub call these columns. Of those on one line the first that is there counts.
HUB_NAMES: Names = {
    "id": ("id", "segment_id", "utterance_id", "utt_id", "audio_id"),
    "language": ("language", "locale", "lang", "lang_id", "language_code"),
    "group": ("group",),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk_id"),
}
# google/fleurs: its id is the sentence's, which translations share.
_FLEURS = {"id", "raw_transcription", "transcription", "lang_id", "lang_group_id"}
_FLEURS_NAMES: Names = {"group": ("id",), "text": ("raw_transcription",), "language": ("lang_id",)}


_SHARD = re.compile(r"(.+?)(-\d{5}-of-\d{5})?\.parquet", re.IGNORECASE)


def is_hub_parquet(path: Path) -> bool:
    """Whether a Parquet file, or the first in a folder, has a column of audio."""
    try:
        return any(_audio_columns(_schema(file)) for file in _files(path)[:1])
    except (OSError, pa.ArrowException):
        return False


def _schema(file: Path) -> pa.Schema:
    with parquet_file(file) as opened:
        return opened.schema_arrow


def read_hub_parquet(path: Path, reading: Reading) -> Corpus:
    """A Parquet file of recordings, or all below a folder; their bytes stay where they are.

    Members are numbers of rows, from 0. A recording without bytes is the file that its `path` names, from the Parquet
    file's folder. The id is a column of that meaning; otherwise the recording's file name without its suffix, or, where
    two are alike, the Parquet file's and the row. Without a column of languages, the first folder that is called like a
    language counts. Times in other columns tell where a recording was cut from, and are kept without being used. A
    split is the beginning of a file's name, "train" of `train-00000-of-00002.parquet`, or its folder.
    `reading.columns["path"]` chooses between columns of audio.

    Raises InputError for a file that is damaged or has no column of audio, or several of which none is called so.
    """
    root = path if path.is_dir() else path.parent
    files = [file for file in _files(path) if reading.split in (None, *_splits(root, file))]
    if not files:
        raise UsageError(f"{path}: no Parquet file of the split {reading.split!r}; name another, or leave it out")
    where: dict[str, list[Any]] = {name: [] for name in ("id", "path", "member", "language")}
    tables, packs, notes = list[pa.Table](), dict[str, Pack](), dict[str, None]()
    for file in files:
        try:
            with parquet_file(file) as opened:
                column = audio_column(file, opened.schema_arrow, reading.columns.get("path"))
                absent, named = _without_bytes(opened, column), _file_names(opened, column, file)
                tables.append(described_columns(opened.schema_arrow, column, partial(read_parquet_table, file), notes))
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file}: no Parquet file, or damaged ({error}); fetch it again") from None
        pack = ParquetPack(absolute_root(file), column)
        packs[str(pack.path)] = pack
        language = language_folder(root, file)
        shard = _SHARD.sub(r"\1\2", file.relative_to(root).as_posix())
        for row, name in enumerate(named):
            outside = pack.path.parent / name if row in absent and name else None
            where["path"].append(os.path.normpath(outside or pack.path))
            where["member"].append(None if outside else str(row))
            where["id"].append((name and file_stem(name), f"{shard}/{row}"))
            where["language"].append(language)
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"{path}: its files do not have the same columns ({error}); read them one by one") from None
    if not reading.split and len(splits := sorted({_splits(root, file)[0] for file in files})) > 1:
        notes[f"all splits are read ({', '.join(splits)}); choose one by --split"] = None
    return hub_corpus(path, reading, where, table, packs, notes)


def hub_corpus(
    source: Path,
    reading: Reading,
    where: dict[str, list[Any]],
    table: pa.Table,
    packs: Mapping[str, Pack],
    notes: Mapping[str, None],
) -> Corpus:
    """A corpus of rows with the columns `table`; `where` has of each two ids, of which the first may be null or another
    row's, too, beside what `columns_corpus` asks for."""
    stems = Counter(stem for stem, _ in where["id"])
    where["id"] = [stem if stem and stems[stem] == 1 else row for stem, row in where["id"]]
    columns = {name: table[name] for name in table.column_names}
    names = {**HUB_NAMES, "id": (), **_FLEURS_NAMES} if columns.keys() >= _FLEURS else HUB_NAMES
    chosen = replace(reading, columns={what: name for what, name in reading.columns.items() if what != "path"})
    return columns_corpus(source, chosen, names, where, columns, lambda i: _place(where, i), packs, list(notes))


def _place(where: Mapping[str, Sequence[Any]], i: int) -> str:
    path, member = where["path"][i], where["member"][i]
    return path if member is None else f"{path}[{member}]"


def file_stem(name: str) -> str:
    """The id that a file's name gives: without folders where it begins at the root, as those are another machine's."""
    path = PurePosixPath(name)
    return str((PurePosixPath(path.name) if path.is_absolute() else path).with_suffix(""))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [path / name for name in files_below(path, {".parquet"})]
    return [path] if path.suffix.lower() == ".parquet" else []


def _splits(root: Path, file: Path) -> list[str]:
    """What a file's split may be called: the beginning of its name, or a folder it is in."""
    return [_SHARD.sub(r"\1", file.name), *file.relative_to(root).parts[:-1]]


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What datasets says of each column."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _audio_columns(schema: pa.Schema) -> list[str]:
    """Columns that hold sound files, or should: what datasets calls Audio; else by name or form."""
    features = _features(schema)
    if named := [name for name, about in features.items() if about.get("_type") == "Audio" and name in schema.names]:
        return named
    return [
        field.name
        for field in schema
        if field.name not in features
        and (_bytes_type(field.type) is not None or (field.name == "audio" and pa.types.is_struct(field.type)))
        and (field.name == "audio" or pa.types.is_struct(field.type))
    ]


def _bytes_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of the bytes in a column of sound files; None if it has none."""
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        kind = kind.field(at).type if at >= 0 else pa.null()
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return kind if any(test(kind) for test in binary) else None


def audio_column(file: Path, schema: pa.Schema, chosen: str | None) -> str:
    """The column of sound files, `chosen` if given. Raises InputError as `read_hub_parquet` does."""
    candidates = [chosen] if chosen else _audio_columns(schema)
    if len(candidates) > 1 and "audio" in candidates:
        candidates = ["audio"]
    if len(candidates) > 1:
        raise InputError(f"{file}: several columns of audio; choose one: --columns path={candidates[0]}")
    if not candidates or candidates[0] not in schema.names:
        raise InputError(f"{file}: has no column of audio{f' {chosen!r}' if chosen else ''}; found: {schema.names}")
    kind = schema.field(candidates[0]).type
    if _bytes_type(kind) is None:
        raise InputError(
            f"{file}: {candidates[0]} is {kind}, not struct<bytes: binary, path: string>; "
            "write it by datasets, with the column cast to Audio(decode=False)"
        )
    return candidates[0]


def _file_names(file: pq.ParquetFile, column: str, path: Path) -> list[str | None]:
    """The names that recordings had as files, a row each."""
    kind = file.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return [None] * file.metadata.num_rows
    names: list[str | None] = (
        read_parquet_table(path, [f"{column}.path"])[column].combine_chunks().field("path").to_pylist()
    )
    return [name or None for name in names]


def _without_bytes(file: pq.ParquetFile, column: str) -> set[int]:
    """Rows without bytes; by the file's statistics, where these say that all or none are."""
    absent: set[int] = set()
    begin = 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        chunks = [about.column(i) for i in range(about.num_columns)]
        chunk = next(c for c in chunks if c.path_in_schema in (column, f"{column}.bytes"))
        known = chunk.statistics if chunk.is_stats_set and chunk.statistics.has_null_count else None
        if known and known.null_count == about.num_rows:
            absent |= set(range(begin, begin + about.num_rows))
        elif not known or known.null_count:
            at = begin
            for batch in file.iter_batches(16, row_groups=[group], columns=[column]):
                absent |= {at + i for i, null in enumerate(audio_bytes(batch.column(0)).is_null().to_pylist()) if null}
                at += len(batch)
        begin += about.num_rows
    return absent


def described_columns(
    schema: pa.Schema, column: str, read: Callable[[list[str]], pa.Table], notes: dict[str, None]
) -> pa.Table:
    """The columns beside the one of audio, as `read` reads them; numbers that stand for names as these."""
    features = _features(schema)
    others = [field for field in schema if field.name != column]
    kept = [f.name for f in others if not pa.types.is_nested(f.type) and _bytes_type(f.type) is None]
    if left := [field.name for field in others if field.name not in kept]:
        notes[f"left out, as they are no strings or numbers: {', '.join(left)}"] = None
    table = read(kept).replace_schema_metadata()
    for name in kept:
        about = features.get(name, {})
        if about.get("_type") == "ClassLabel" and pa.types.is_integer(schema.field(name).type):
            numbers = table[name].to_pylist()
            called = about.get("names") or []
            values = [called[n] if n is not None and 0 <= n < len(called) else None for n in numbers]
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table
