"""What each command leaves behind, as tables of a report. Nothing is measured again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.base.tables import TextTable, distinct


@dataclass(frozen=True)
class Kind:
    """What one command writes. file: the table a run is known by; key: of the settings in its metadata.

    pictures, beside: other files of the run, shown, or fingerprinted, where they are there. tables: from the table and
    its folder.
    """

    command: str
    file: str
    key: str
    pictures: dict[str, str]
    beside: tuple[str, ...]
    tables: Callable[[pa.Table, Path], list[TextTable]]


def read(path: Path) -> pa.Table:
    """A Parquet table. Raises InputError when it is damaged."""
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as e:
        raise InputError(
            f"{path}: cannot be read as Parquet ({e}); run the command that wrote it again, or remove the file"
        ) from e


def _words(_: pa.Table, folder: Path) -> list[TextTable]:
    from voxstrata.studies.words.result import WordComparison

    return WordComparison.load(folder).stored()


KINDS = (
    Kind(
        "words", "words.parquet", "voxstrata_words", {"words.png": "AUC by output; chance is 0.5"},
        ("word_pairs.parquet",), _words,
    ),
)  # fmt: skip


def store_tables(utterances: pa.Table) -> list[TextTable]:
    """Utterances, and seconds of those done, by language."""
    body = []
    languages = distinct(utterances, "language")
    for language in sorted(languages, key=str):
        rows = [
            r for r in utterances.select(["language", "status", "seconds"]).to_pylist() if r["language"] == language
        ]
        states = [sum(r["status"] == status for r in rows) for status in ("done", "failed", "pending")]
        body.append([language, len(rows), *states, sum(r["seconds"] for r in rows if r["status"] == "done")])
    return [TextTable("Utterances", ["language", "utterances", "done", "failed", "pending", "seconds done"], body)]
