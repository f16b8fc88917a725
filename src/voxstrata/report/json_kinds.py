"""Results that are known by a JSON file, as tables of a report. Nothing is measured again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from voxstrata.base.tables import TextTable, as_stored
from voxstrata.report.kinds import read
from voxstrata.retrieval.folder import CANDIDATES_FILE as CANDIDATES
from voxstrata.retrieval.folder import COLUMNS_FILE as COLUMNS
from voxstrata.retrieval.folder import FORWARD
from voxstrata.retrieval.folder import MISSES_FILE as RECALL
from voxstrata.retrieval.folder import PLAN_FILE as PLAN
from voxstrata.retrieval.folder import ROWS_FILE as ROWS
from voxstrata.retrieval.folder import TOP_FILE as TOP

_SHOWN = 60  # rows of top.parquet


@dataclass(frozen=True)
class JsonKind:
    """What one command prints or writes as JSON.

    file: pattern of the name. writes: what stands there, in words. keys: without which it is none. end: a file that
    stands beside it once the command is done, if it writes one. beside: other files of the run, fingerprinted where
    they are there. tables: of the object and its folder; asked, model: what it was asked for, and of which encoder.
    """

    command: str
    file: str
    writes: str
    keys: frozenset[str]
    end: str | None
    beside: tuple[str, ...]
    tables: Callable[[dict[str, Any], Path], list[TextTable]]
    asked: Callable[[dict[str, Any]], dict[str, Any]]
    model: Callable[[dict[str, Any]], dict[str, Any]]


def _bench(record: dict[str, Any], _: Path) -> list[TextTable]:
    header = ["context", "audio-hours per hour", "efficiency", "clips", "audio_seconds", "seconds", "stored_bytes"]
    body = [
        [mode, t["audio_hours_per_hour"], t["efficiency"], *(t[n] for n in header[3:])]
        for mode, t in record["modes"].items()
    ]
    note = (
        f"Made-up recordings, {len(next(iter(record['modes'].values()))['outputs'])} outputs. efficiency: arithmetic "
        f"over that of matrix products in the same time. Load average before: {record['load']}."
    )
    blocks = [TextTable("How fast this machine is", header, body, note)]
    expected = record.get("corpus")
    if expected:
        names = ["recordings", "audio_seconds", "units", "tokens", "bytes", "seconds"]
        rows = [[mode, *(e[name] for name in names)] for mode, e in expected.items()]
        blocks.append(TextTable("What the corpus would take", ["context", *names], rows))
    return blocks


def _similarity(plan: dict[str, Any], folder: Path) -> list[TextTable]:
    table = read(folder / TOP)
    x = read(folder / ROWS)
    y = x if plan["one set with itself"] else read(folder / COLUMNS)
    groups = [dict(zip(side["id"].to_pylist(), side["group"].to_pylist(), strict=True)) for side in (x, y)]
    best = table.filter(pc.equal(table["rank"], 1))
    body = []
    for direction in dict.fromkeys(best["direction"].to_pylist()):
        queries, pool = groups if direction == FORWARD else groups[::-1]
        held = Counter(group for group in pool.values() if group is not None)
        itself = int(plan["one set with itself"])  # is no candidate
        size = len(pool) - itself
        rows = best.filter(pc.equal(best["direction"], direction)).to_pylist()
        asked = [r for r in rows if held[queries[r["query"]]] > itself]
        hits = [queries[r["query"]] == pool[r["candidate"]] for r in asked]
        chance = [(held[queries[r["query"]]] - itself) / size for r in asked]
        mean_f1 = sum(r["f1"] for r in rows) / len(rows)
        body.append([direction, len(rows), size, mean_f1, len(asked), _mean(hits), _mean(chance)])
    header = ["direction", "queries", "pool", "F1 of the best", "of its group in the pool", "recall@1", "chance"]
    note = (
        f"{plan['output']}, {plan['kernel']}. recall@1: share of the queries with an utterance of their group in the "
        "pool whose best candidate is one."
    )
    blocks = [TextTable("Best candidates", header, body, note)]
    if plan["candidates"]:
        recall = json.loads((folder / RECALL).read_text(encoding="utf-8"))
        names = list(next(iter(recall.values())))
        blocks.append(
            TextTable(
                f"What comparing {plan['candidates']} candidates alone misses",
                ["direction", *names],
                [[direction, *(found[name] for name in names)] for direction, found in recall.items()],
            )
        )
    return [*blocks, as_stored(table.slice(0, _SHOWN), "Candidates, as stored", of=len(table))]


def _asked_of_similarity(plan: dict[str, Any]) -> dict[str, Any]:
    """Without the tiles, and of the second set what differs from the first."""
    return {
        name: value
        for name, value in plan.items()
        if not name.endswith("_begin") and not (name.startswith("y ") and value == plan.get(f"x {name[2:]}"))
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


JSON_KINDS = (
    JsonKind(
        "bench", "bench*.json", "what `voxstrata bench --json` prints",
        frozenset({"about", "load", "sgemm_rate", "modes"}), None, (), _bench,
        lambda found: {n: value for n, value in found["about"].items() if n != "model"},
        lambda found: dict(found["about"]["model"]),
    ),
    JsonKind(
        "similarity", PLAN, "what `voxstrata similarity` plans",
        frozenset({"one set with itself", "output", "x store"}), TOP,
        (TOP, ROWS, COLUMNS, CANDIDATES, RECALL), _similarity,
        _asked_of_similarity,
        lambda found: {"weights_sha256": found["x model weights_sha256"]},
    ),
)  # fmt: skip
