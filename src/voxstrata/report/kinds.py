"""What each command leaves behind, as tables of a report. Nothing is measured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxstrata.base.errors import InputError
from voxstrata.base.tables import TextTable, as_stored, distinct
from voxstrata.studies.retrieve.result import Retrieval
from voxstrata.studies.retrieve.text import retrieval_metrics

CLOSEST, TRANSCRIPTS = 50, 120  # rows shown of tables that have one per pair, or per utterance and exit


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


def _retrieval(table: pa.Table, _: Path) -> list[TextTable]:
    blocks = Retrieval(table).tables()
    first = retrieval_metrics(table)[0]
    names = ["output", "similarity", "source", "target", "value", "low", "high", "chance", "queries"]
    names += ["candidates", "candidates_max"]
    raw = pc.and_(pc.equal(table["metric"], first), pc.equal(table["score"], "raw"))
    return [
        *blocks,
        as_stored(table.filter(raw), f"{first} of every direction, fractions, as stored", names, of=len(table)),
    ]


def _align(_: pa.Table, folder: Path) -> list[TextTable]:
    from voxstrata.studies.align.result import Alignment

    result = Alignment.load(folder)
    return [*result.tables(), *result.stored()]


def _words(_: pa.Table, folder: Path) -> list[TextTable]:
    from voxstrata.studies.words.result import WordComparison

    return WordComparison.load(folder).stored()


def _explain(table: pa.Table, _: Path) -> list[TextTable]:
    rows = as_stored(table, "How well the frames of two utterances match")
    note = "precision, recall: mean of the best cosine over the frames of a, of b; f1: SeqSim. One pair has no pool."
    return [TextTable(rows.title, rows.header, rows.rows, note)]


def _phonetics(table: pa.Table, _: Path) -> list[TextTable]:
    from voxstrata.studies.phonetics.pairs import summarise  # which brings in numba

    directions: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        directions.setdefault((row["source_language"], row["target_language"]), []).append(row)
    body = []
    for rows in directions.values():
        d = summarise(rows)
        span = "–".join(dict.fromkeys(map(str, d.candidates)))
        figures = (d.distance, d.quantile, d.like_length, d.closest, d.chance, d.word_quantile, d.word_closest)
        known = [None if isnan(value) else value for value in figures]
        body.append([f"{d.source} → {d.target}", d.pairs, span, *known])
    header = ["direction", "pairs", "pool", "distance", "quantile", "like length", "closest", "chance"]
    header += ["word quantile", "word closest"]
    note = (
        "distance: mean of translations; quantile: median share of a sentence's non-translations that sound closer "
        "than its translation (0.5: sound says nothing); like length: the same among those of like length; closest: "
        "share of translations that sound closest of their pool, beside chance; word: the same by the closest pair of "
        "words."
    )
    names = ["source", "target", "distance", "rank", "non_translations", "quantile", "quantile_like_length"]
    names += ["word_distance", "source_word", "target_word"]
    near = table.sort_by("distance").slice(0, CLOSEST)
    return [
        TextTable("How alike translations sound", header, body, note),
        as_stored(near, "The translations that sound most alike, as stored", names, of=len(table)),
    ]


def _early_exit(table: pa.Table, folder: Path) -> list[TextTable]:
    note = (
        "Error rates as fractions, 95 % intervals. The exit (after: its k) has the fewest errors on the development "
        "part; the rest is of the test part. original: the whole encoder; difference: its rate less that, paired."
    )
    chosen = as_stored(read(folder / "choices.parquet"), "The exit chosen")
    blocks = [TextTable(chosen.title, chosen.header, chosen.rows, note)]
    for part in ("test", "dev"):
        found = table.filter(pc.equal(table["part"], part))
        blocks.append(as_stored(found, f"Every exit on the {part} part, as stored", of=len(table)))
    if (folder / "transcripts.parquet").exists():
        heard = read(folder / "transcripts.parquet")
        names = ["id", "language", "part", "after", "final_norm", "unit", "word_errors", "words"]
        names += ["character_errors", "characters", "reference", "transcript"]
        blocks.append(as_stored(heard.slice(0, TRANSCRIPTS), "Transcripts, as stored", names, of=len(heard)))
    return blocks


KINDS = (
    Kind(
        "retrieve", "retrieval.parquet", "voxstrata_retrieval",
        {"recall_by_layer.png": "Retrieval by output, with chance", "languages.png": "Retrieval by direction"},
        (), _retrieval,
    ),
    Kind(
        "align", "align.parquet", "voxstrata_align", {"align.png": "Controlled retrieval by output, with chance"},
        (), _align,
    ),
    Kind("phonetics", "phonetics.parquet", "voxstrata_phonetics", {}, ("ipa.parquet", "distances.parquet"), _phonetics),
    Kind(
        "words", "words.parquet", "voxstrata_words", {"words.png": "AUC by output; chance is 0.5"},
        ("word_pairs.parquet",), _words,
    ),
    Kind(
        "explain", "explain.parquet", "voxstrata_explain", {"explain.png": "Frame × frame cosines"},
        ("maxima.parquet",), _explain,
    ),
    Kind(
        "early-exit sweep", "errors.parquet", "voxstrata", {"early_exit.png": "Errors by exit, test part"},
        ("choices.parquet", "transcripts.parquet"), _early_exit,
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


def settings(table: pa.Table, key: str) -> dict[str, Any] | None:
    """What a table's metadata hold under `key`; None where they do not."""
    found = (table.schema.metadata or {}).get(key.encode())
    return None if found is None else dict(json.loads(found))
