"""The one form every corpus takes: a root folder and a table of strings."""

import os
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.audio.source import FileSource, Recording, Source
from voxstrata.base.errors import InputError

COLUMNS = ("id", "path", "language", "group", "text", "speaker")
CORPUS_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
# Which part of the file at `path` a recording is; null where it is the whole file.
PART_SCHEMA = pa.schema(
    [("member", pa.string()), ("offset", pa.float64()), ("duration", pa.float64()), ("channel", pa.int32())]
)
# What a store says of its utterances by itself.
_STORE_NAMES = frozenset(
    [*COLUMNS, *PART_SCHEMA.names, "seconds", "samples", "size_bytes", "failure", "status", "row_start", "row_count"]
)  # fmt: skip
_NAMED = 5  # how many offenders a message lists before it only counts them

Row = dict[str, str | None]


class Pack(ABC):
    """A file that holds many recordings, such as a tar or a Parquet file, or recordings in memory. Can be pickled."""

    @abstractmethod
    def source(self, member: str) -> Source:
        """One of them."""

    def position(self, member: str) -> int | None:
        """Its place among the others, where they are best read in that order; None where any order costs the same."""
        return None


@dataclass(frozen=True)
class Corpus:
    """Recordings below one folder.

    table: one row a recording. Columns of strings: id, path, language, group, text, speaker; what is not known is null,
        id and path never are, and ids are unique. `path` is relative to `root`, with "/" between its parts. `group`
        names what an utterance translates: rows of one group mean the same. Then columns that say which part of the
        file a recording is, null for all of it: `member` (string; its name in a pack), `offset` and `duration`
        (float64, seconds), `channel` (int32, 0 is the first). Columns after these are strings that the store keeps and
        nothing reads. Columns that are left out are null.
    packs: by `path`, the files that hold many recordings.
    notes: what a person should know of how the corpus was read, a sentence each.
    """

    root: Path
    table: pa.Table
    packs: Mapping[str, Pack] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        known = [*CORPUS_SCHEMA, *PART_SCHEMA]
        names = {column.name for column in known}
        columns = {
            f.name: self.table[f.name].cast(f.type)
            if f.name in self.table.column_names
            else pa.nulls(len(self), f.type)
            for f in known
        }
        for name in self.table.column_names:
            if name not in names:
                columns[kept_name(name, columns)] = self.table[name]
        object.__setattr__(self, "table", pa.table(columns))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def extra(self) -> list[str]:
        """Names of the columns that are kept for the user alone."""
        return list(self.table.column_names[len(CORPUS_SCHEMA) + len(PART_SCHEMA) :])

    def take(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> "Corpus":
        """The recordings in some rows, in that order."""
        return replace(self, table=self.table.take(pa.array(rows, pa.int64())))

    def without_root(self, text: str) -> str:
        """`text` with paths below the corpus made relative to it."""
        return text.replace(f"{self.root}{os.sep}", "")

    def reading_places(self, segments: Sequence[bool]) -> list[tuple[str, int, float] | None]:
        """Where each row stands among recordings that are best read in the order in which they lie in their file.

        None where any order costs the same. segments: for each row, whether it is less than the whole sound file.
        """
        places: list[tuple[str, int, float] | None] = []
        columns = (self.table[name].to_pylist() for name in ("path", "member", "offset"))
        for is_segment, path, member, offset in zip(segments, *columns, strict=True):
            position = None if member is None else self.packs[path].position(member)
            in_order = is_segment or position is not None
            places.append((path, position or 0, offset or 0.0) if in_order else None)
        return places

    def refuse_gone(self) -> None:
        """Raise InputError where the folder of the recordings is not there any more, or empty: no fault of theirs."""
        if self.packs or (self.root.is_dir() and any(self.root.iterdir())):
            return
        raise InputError(
            f"{self.root}: no recording is there any more; bring it back, or mount it, and run the same again"
        )

    def recording(self, i: int) -> Recording:
        """What is decoded for row `i`."""
        path, member, offset, duration, channel = (self.table[n][i].as_py() for n in ("path", *PART_SCHEMA.names))
        source = FileSource(self.root / path) if member is None else self.packs[path].source(member)
        return Recording(source, offset, duration, channel)


def build(root: Path, rows: Sequence[Row], places: Sequence[str], source: Path) -> Corpus:
    """Make a corpus of `rows`; `places` says where each stands ("line 3"). See `build_table`."""
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    return build_table(root, columns, places.__getitem__, source)


def build_table(
    root: Path,
    columns: Mapping[str, Sequence[Any]],
    place: Callable[[int], str],
    source: Path,
    extra: Mapping[str, Sequence[str | None]] | None = None,
) -> Corpus:
    """Make a corpus of columns of one length; for errors, `place` says where a row stands, and `source` in what.

    columns: those of `Corpus.table`; `path` at the least, from `root`, never null. extra: strings that are kept beside
    them; one whose name the corpus or a store uses is kept as `given_<name>`.

    A missing id becomes the path without its suffix, or the whole path where that would name two recordings. Stretches
    and channels of one file get theirs behind it: `talk@12.5-17`, `talk#1`.
    Raises InputError for duplicate ids and for text that UTF-8 cannot hold (undecodable file names).
    """
    ids = _ids(columns)
    if len(set(ids)) < len(ids):
        repeated = [name for name, count in Counter(ids).items() if count > 1]
        lines = defaultdict(list)
        for i, name in enumerate(ids):
            lines[name].append(place(i))
        shown = "; ".join(f"{name!r} ({', '.join(lines[name][:_NAMED])})" for name in repeated[:_NAMED])
        more = f" and {len(repeated) - _NAMED} more" if len(repeated) > _NAMED else ""
        raise InputError(f"{source}: duplicate ids: {shown}{more}; give every row an id of its own")
    arrays: dict[str, pa.Array] = {}
    for name, values in {**columns, "id": ids}.items():
        arrays[name] = _array(name, values, place, source)
    for name, values in (extra or {}).items():
        kept = kept_name(name, arrays)
        arrays[kept] = _array(kept, values, place, source)
    return Corpus(root, pa.table(arrays))


def kept_name(name: str, others: Container[str] = ()) -> str:
    """What a column that nothing reads is called in a corpus: another name where it, a store or others use that."""
    kept = f"given_{name}" if name in _STORE_NAMES else name
    while kept in others:
        kept += "_"
    return kept


def _array(name: str, values: Sequence[Any], place: Callable[[int], str], source: Path) -> pa.Array:
    known = name in PART_SCHEMA.names
    try:
        return pa.array(values, PART_SCHEMA.field(name).type if known else pa.string())
    except UnicodeEncodeError:
        for i, value in enumerate(values):
            try:
                (value or "").encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"{source}, {place(i)}: {name} {value!a} is not valid Unicode; rename the file or correct the row"
                ) from None
        raise


def _ids(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """The ids that are given, and others made of the paths."""
    paths: Sequence[str] = columns["path"]
    nothing: Sequence[Any] = [None] * len(paths)
    given = columns.get("id", nothing)
    if None not in given:
        return list(given)
    stems = {path: _stem(path) for path in set(paths)}
    shared = {stem for stem, count in Counter(stems.values()).items() if count > 1}
    repeated = {path for path, count in Counter(paths).items() if count > 1}
    parts = zip(*(columns.get(name, nothing) for name in ("offset", "duration", "channel")), strict=True)
    made: list[str] = []
    for name, path, (offset, duration, channel) in zip(given, paths, parts, strict=True):
        if name is None:
            name = path if stems[path] in shared else stems[path]
            if path in repeated:
                if offset is not None or duration is not None:
                    begin = offset or 0.0
                    name += f"@{_seconds(begin)}" + (f"-{_seconds(begin + duration)}" if duration is not None else "")
                if channel is not None:
                    name += f"#{channel}"
        made.append(name)
    return made


def _stem(path: str) -> str:
    """The path without its suffix."""
    stem, suffix = os.path.splitext(path)
    return path if suffix == "." else stem


def _seconds(value: float) -> str:
    """To the microsecond, as short as that goes: "12.5"."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def joined(root: Path, corpora: Sequence[Corpus]) -> Corpus:
    """Corpora as one below `root`, or what holds them all, in their order. Columns may differ; none is packed.

    Raises InputError for an id that two of them have.
    """
    tables, root = [], Path(os.path.commonpath([root, *(corpus.root for corpus in corpora)]))
    for corpus in corpora:
        below = PurePosixPath(corpus.root.relative_to(root).as_posix())
        at = corpus.table.column_names.index("path")
        paths = [str(below / path) for path in corpus.table["path"].to_pylist()]
        tables.append(corpus.table.set_column(at, "path", pa.array(paths, pa.string())))
    table = pa.concat_tables(tables, promote_options="default")
    twice = [name for name, count in Counter(table["id"].to_pylist()).items() if count > 1]
    if twice:
        raise InputError(f"{root}: duplicate ids: {', '.join(map(repr, twice[:_NAMED]))}; read its parts one by one")
    return Corpus(root, table, notes=list(dict.fromkeys(note for corpus in corpora for note in corpus.notes)))


def absolute_root(folder: Path) -> Path:
    """`folder` as an absolute path, with its symbolic links left as they are."""
    return Path(os.path.abspath(folder))
