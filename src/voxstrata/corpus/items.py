"""Recordings of packed corpora and Python programs, on their way to a table."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.manifest import Names, unused_notes, without_words_for_nothing
from voxstrata.corpus.memory import MEMORY
from voxstrata.corpus.rows import StringTable
from voxstrata.corpus.table import PART_SCHEMA, Corpus, Pack, absolute_root, build_table

DESCRIBED = ("id", "language", "group", "text", "speaker")  # the columns that do not say where a recording is

_WHERE = dict.fromkeys(("path", "offset", "duration", "end", "channel"), "")  # no column is guessed to be one of these


@dataclass
class Item:
    """One recording.

    place: where it stands, for messages. path: its file, absolute, or `MEMORY`. member, offset, duration, channel: the
    part of it (see `Corpus`). values: what is known of it, by column.
    """

    place: str
    id: str
    path: str
    member: str | None = None
    offset: float | None = None
    duration: float | None = None
    channel: int | None = None
    values: dict[str, Any] = field(default_factory=dict)


def items_corpus(
    source: Path,
    reading: Reading,
    names: Names,
    items: Sequence[Item],
    packs: Mapping[str, Pack] | None = None,
    notes: Sequence[str] = (),
) -> Corpus:
    """The recordings `items` as a corpus. See `columns_corpus`."""
    where = {f: [getattr(item, f) for item in items] for f in ("id", "path", *PART_SCHEMA.names)}
    described = dict.fromkeys(name for item in items for name in item.values)
    columns = {name: [item.values.get(name) for item in items] for name in described}
    places = [item.place for item in items]
    return columns_corpus(source, reading, names, where, columns, places.__getitem__, packs, notes)


def columns_corpus(
    source: Path,
    reading: Reading,
    names: Names,
    where: Mapping[str, Sequence[Any]],
    columns: Mapping[str, Sequence[Any]],
    place: Callable[[int], str],
    packs: Mapping[str, Pack] | None = None,
    notes: Sequence[str] = (),
) -> Corpus:
    """A corpus of columns of one length.

    names: what id, language, group, text and speaker may be called, the first that is there counts; others are kept as
    they are. where: `path`, absolute or `MEMORY`, what else says which part of it is meant, and `id` and `language` for
    where no column is that. place: where a row stands, for messages. packs: by absolute path.

    Of an id that others call so, values that repeat are not taken, and a note says so. Raises UsageError for columns to
    choose that are not there, InputError for no rows and for duplicate ids.
    """
    if not where["path"]:
        raise InputError(f"{source}: holds no recordings; name another file or folder")
    table = StringTable(source, dict(columns), range(len(where["path"])), "recording")
    used, notes = _used(table, reading.columns, names), list(notes)
    strings = {name: table.strings(name, extra=True) for name in columns}
    if (called := used.get("id", "id")) != "id" and "id" not in reading.columns:
        values = strings[called]
        if None in values or len(set(values)) < len(values):
            notes.append(f"ids are made of the files' names, since {called!r} names several recordings alike, or none")
            del used["id"]
    found: dict[str, Sequence[Any]] = {what: strings[name] for what, name in used.items()}
    found |= {what: values for what, values in where.items() if what not in found}
    if "language" in used and "language" in where:  # by the folder where the column says nothing
        found["language"] = [a or b for a, b in zip(found["language"], where["language"], strict=True)]
    notes += without_words_for_nothing(found)
    root, below = _below(source, set(where["path"]))
    found["path"] = [below[path] for path in where["path"]]
    extra = {name: values for name, values in strings.items() if name not in used.values()}
    corpus = build_table(root, found, place, source, extra)
    packs = {below.get(path, path): pack for path, pack in (packs or {}).items()}
    return replace(corpus, packs=packs, notes=[*notes, *unused_notes(list(extra), [], used | _WHERE, ())])


def _used(table: StringTable, chosen: Mapping[str, str], names: Names) -> dict[str, str]:
    for what, name in chosen.items():
        if what not in DESCRIBED:
            raise UsageError(f"--columns {what}={name}: {what} is not chosen here; choose of {', '.join(DESCRIBED)}")
        if name not in table.columns:
            there = ", ".join(map(repr, table.columns))
            raise UsageError(f"--columns {what}={name}: {table.path} has no column {name!r}; found: {there}")
    used: dict[str, str] = dict(chosen)
    for what in DESCRIBED:
        for name in names.get(what, ()):
            if what not in used and name in table.columns and name not in used.values():
                used[what] = name
    return used


def _below(source: Path, paths: set[str]) -> tuple[Path, dict[str, str]]:
    """The folder of `source`, or the one that holds all files where some lie outside; and the paths from there."""
    root = absolute_root(source if source.is_dir() else source.parent)
    files = [Path(path) for path in paths if path != MEMORY]
    if not all(file.is_relative_to(root) for file in files):
        root = Path(os.path.commonpath([file.parent for file in files]))
    return root, {MEMORY: MEMORY, **{str(file): file.relative_to(root).as_posix() for file in files}}
