"""The one form every corpus takes: a root folder and a table of strings."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voxstrata.audio.remote import RemoteSource
from voxstrata.audio.source import FileSource, Recording, Source
from voxstrata.base.columns import all_differ, as_column, nulls, take_rows
from voxstrata.base.errors import InputError, UnreachableError
from voxstrata.base.plain import counted
from voxstrata.base.remote import is_url
from voxstrata.base.tables import distinct, first_few
from voxstrata.corpus.ids import made_ids

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
_ONE_LINE = ("path", "member", "id", "language", "group", "speaker")  # printed in lines that a break would part
_NAMED = 5  # how many offenders a message lists before it only counts them

Row = dict[str, str | None]
# Where the lengths of recordings come from before they are decoded.
Lengths = Literal["headers", "manifest"]


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
    """Recordings below one folder, or below a URL such as s3://bucket/speech.

    table: one row a recording. Columns of strings: id, path, language, group, text, speaker; what is not known is null,
        id and path never are, and ids are unique. `path` is relative to `root`, with "/" between its parts, or a
        URL. `group` names what an utterance translates: rows of one group mean the same. Then columns that say which
        part of the file a recording is, null for all of it: `member` (string; its name in a pack), `offset` and
        `duration` (float64, seconds), `channel` (int32, 0 is the first). Columns after these are strings that the store
        keeps and nothing reads. Columns that are left out are null.
    packs: by `path`, the files that hold many recordings.
    signed: by `path`, URLs that need more to be read than may be stored or printed.
    notes: what a person should know of how the corpus was read, a sentence each.
    lengths: where those of the recordings come from: "headers", or `duration` in "manifest", and then no header is read
        before a recording is decoded.
    """

    root: Path | str
    table: pa.Table
    packs: Mapping[str, Pack] = field(default_factory=dict)
    notes: Sequence[str] = ()
    lengths: Lengths = "headers"
    signed: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        known = [*CORPUS_SCHEMA, *PART_SCHEMA]
        names = {column.name for column in known}
        columns = {
            f.name: self.table[f.name].cast(f.type) if f.name in self.table.column_names else nulls(len(self), f.type)
            for f in known
        }
        for name in self.table.column_names:
            if name not in names:
                columns[kept_name(name, columns)] = self.table[name]
        object.__setattr__(self, "table", pa.table(columns))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        spoken = sorted(name for name in distinct(self.table, "language") if name is not None)
        return f"<Corpus {self.root}: {counted(len(self), 'recording')}, {first_few(spoken) or 'no language'}>"

    @property
    def where(self) -> str:
        """The root as messages name it: "." would say nothing."""
        return str(self.root.absolute() if self.root == Path() else self.root)

    @property
    def extra(self) -> list[str]:
        """Names of the columns that are kept for the user alone."""
        return list(self.table.column_names[len(CORPUS_SCHEMA) + len(PART_SCHEMA) :])

    def take(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> "Corpus":
        """The recordings in some rows, in that order."""
        return replace(self, table=take_rows(self.table, rows))

    def without_root(self, text: str) -> str:
        """`text` with paths below the corpus made relative to it."""
        return text.replace(f"{self.root}{os.sep}", "")

    def reading_places(self, segments: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which rows are best read in the order in which they lie in their file, and their positions in its pack.

        segments: bool (rows,), whether a row is less than the whole sound file. Returns bool (rows,), and int64
        (rows,): 0 of what is in no pack, or in one that any order suits. Within a file, such rows go by position, then
        `offset`.
        """
        in_order, positions = segments.copy(), np.zeros(len(self), np.int64)
        members = self.table["member"]
        if members.null_count == len(self):
            return in_order, positions
        for row, (path, member) in enumerate(zip(self.table["path"].to_pylist(), members.to_pylist(), strict=True)):
            position = None if member is None else self.packs[path].position(member)
            if position is not None:
                in_order[row], positions[row] = True, position
        return in_order, positions

    def refuse_gone(self) -> None:
        """Raise UnreachableError where the folder of the recordings is gone, or empty: no fault of theirs."""
        if self.packs or isinstance(self.root, str) or (self.root.is_dir() and _holds_anything(self.root)):
            return
        raise UnreachableError(
            f"{self.where}: no recording is there any more; bring it back, or mount it, and run the same again"
        )

    def recording(self, i: int) -> Recording:
        """What is decoded for row `i`."""
        path, member, offset, duration, channel = (self.table[n][i].as_py() for n in ("path", *PART_SCHEMA.names))
        source = self._file(path) if member is None else self.packs[path].source(member)
        return Recording(source, offset, duration, channel)

    def _file(self, path: str) -> Source:
        if isinstance(self.root, Path) and not is_url(path):
            return FileSource(self.root / path)
        return RemoteSource(self.signed.get(path, path if is_url(path) else f"{self.root}/{path}"))


def _holds_anything(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except FileNotFoundError:
        return False


def build(root: Path | str, rows: Sequence[Row], places: Sequence[str], source: Path | str) -> Corpus:
    """Make a corpus of `rows`; `places` says where each stands ("line 3"). See `build_table`."""
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    return build_table(root, columns, places.__getitem__, source)


def build_table(
    root: Path | str,
    columns: Mapping[str, Any],
    place: Callable[[int], str],
    source: Path | str,
    extra: Mapping[str, Any] | None = None,
    named: pa.ChunkedArray | None = None,
) -> Corpus:
    """Make a corpus of columns of one length; for errors, `place` says where a row stands, and `source` in what.

    columns: those of `Corpus.table`, lists or of Arrow; `path` at the least, from `root`, never null. extra:
    strings that are kept beside them; one whose name the corpus or a store uses is kept as `given_<name>`. named: what
    ids are made of in place of the paths.

    A missing id becomes the path without its suffix, or the whole path where that would name two recordings. Stretches
    and channels of one file get theirs behind it: `talk@12.5-17`, `talk#1`.
    Raises InputError for duplicate ids, for text that UTF-8 cannot hold (undecodable file names), and for line breaks
    in all but texts.
    """
    arrays = {name: string_column(name, v, place, source) for name, v in columns.items() if name in COLUMNS}
    arrays |= {name: as_column(columns[name], PART_SCHEMA.field(name).type) for name in columns if name not in arrays}
    if "id" not in arrays or arrays["id"].null_count:
        arrays["id"] = made_ids(arrays if named is None else {**arrays, "path": named})
    for name in [name for name in _ONE_LINE if name in arrays]:
        if (i := pc.index(pc.match_substring(arrays[name], "\n"), True).as_py()) >= 0:
            raise InputError(
                f"{source}, {place(i)}: {name} {arrays[name][i].as_py()!r} holds a line break; rename the file or "
                "correct the row"
            )
    if not all_differ(arrays["id"]):
        raise InputError(f"{source}: duplicate ids: {_repeated(arrays['id'], place)}; give every row an id of its own")
    for name, values in (extra or {}).items():
        kept = kept_name(name, arrays)
        arrays[kept] = string_column(kept, values, place, source)
    return Corpus(root, pa.table(arrays))


def _repeated(ids: pa.ChunkedArray, place: Callable[[int], str]) -> str:
    """The first of the ids that stand more than once, and where they do."""
    counts = pc.value_counts(ids).flatten()
    names = counts[0].filter(pc.greater(counts[1], 1))
    shown = []
    for name in names[:_NAMED].to_pylist():
        rows = np.flatnonzero(pc.equal(ids, name).to_numpy())[:_NAMED]
        shown.append(f"{name!r} ({', '.join(place(int(i)) for i in rows)})")
    return "; ".join(shown) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def kept_name(name: str, others: Container[str] = ()) -> str:
    """What a column that nothing reads is called in a corpus: another name where it, a store or others use that."""
    kept = f"given_{name}" if name in _STORE_NAMES else name
    while kept in others:
        kept += "_"
    return kept


def string_column(name: str, values: Any, place: Callable[[int], str], source: Path | str) -> pa.ChunkedArray:
    """A column of strings. Raises InputError, saying where, for text that UTF-8 cannot hold."""
    try:
        return as_column(values)
    except UnicodeEncodeError:
        for i, value in enumerate(values):
            try:
                (value or "").encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"{source}, {place(i)}: {name} {value!a} is not valid Unicode; rename the file or correct the row"
                ) from None
        raise


def joined(root: Path, corpora: Sequence[Corpus]) -> Corpus:
    """Corpora as one below `root`, or what holds them all, in their order. Columns may differ; none is packed.

    Raises InputError for an id that two of them have.
    """
    tables, root = [], Path(os.path.commonpath([root, *(corpus.root for corpus in corpora)]))
    for corpus in corpora:
        below = PurePosixPath(Path(corpus.root).relative_to(root).as_posix())
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
