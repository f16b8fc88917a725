"""The one form every corpus takes: a root folder and a table of strings."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from voxstrata.base.errors import InputError

COLUMNS = ("id", "path", "language", "group", "text", "speaker")
CORPUS_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
_NAMED = 5  # how many offenders a message lists before it only counts them

Row = dict[str, str | None]


@dataclass(frozen=True)
class Corpus:
    """Recordings below one folder.

    `table` has the string columns id, path, language, group, text, speaker, in this order; what is not known
    is null, id and path never are, and ids are unique. `path` is relative to `root`, with "/" between its
    parts. `group` names what an utterance translates: rows of one group mean the same.
    """

    root: Path
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def without_root(self, text: str) -> str:
        """`text` with paths below the corpus made relative to it."""
        return text.replace(f"{self.root}{os.sep}", "")

    def absolute(self, i: int) -> Path:
        """Full path of the recording in row `i`."""
        return self.root / str(self.table["path"][i].as_py())


def build(root: Path, rows: Sequence[Row], places: Sequence[str], source: Path) -> Corpus:
    """Make a corpus of `rows`; for errors, `places` says where each stands ("line 3"), and `source` in what.

    A missing id becomes the path without its suffix, or the whole path where that would name two recordings.
    Raises InputError for duplicate ids and for text that UTF-8 cannot hold (undecodable file names).
    """
    stems: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        stems[_stem(row)].add(str(row["path"]))
    for row in rows:
        row["id"] = row.get("id") or (_stem(row) if len(stems[_stem(row)]) == 1 else row["path"])

    repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        lines = defaultdict(list)
        for row, place in zip(rows, places, strict=True):
            lines[row["id"]].append(place)
        shown = "; ".join(f"{name!r} ({', '.join(lines[name][:_NAMED])})" for name in repeated[:_NAMED])
        more = f" and {len(repeated) - _NAMED} more" if len(repeated) > _NAMED else ""
        raise InputError(f"{source}: duplicate ids: {shown}{more}; give every row an id of its own")
    for row, place in zip(rows, places, strict=True):
        for name, value in row.items():
            try:
                (value or "").encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"{source}, {place}: {name} {value!a} is not valid Unicode; rename the file or correct the row"
                ) from None
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    return Corpus(root, pa.table(columns, schema=CORPUS_SCHEMA))


def _stem(row: Row) -> str:
    return str(PurePosixPath(str(row["path"])).with_suffix(""))


def absolute_root(folder: Path) -> Path:
    """`folder` as an absolute path, with its symbolic links left as they are."""
    return Path(os.path.abspath(folder))
