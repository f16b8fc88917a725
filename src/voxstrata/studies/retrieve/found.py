"""How well translations were found by `similarity`: recall from the lists of the best candidates that it left."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import UsageError
from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, percent_text
from voxstrata.base.result import Result
from voxstrata.base.tables import Percent, TextTable, distinct, in_percent
from voxstrata.evaluation.levels import MEAN, pool_sizes
from voxstrata.evaluation.metrics import MeanEvaluation, evaluate_ranks
from voxstrata.retrieval.finished import read_similarity
from voxstrata.retrieval.folder import BACKWARD, FORWARD
from voxstrata.retrieval.mining import group_codes
from voxstrata.retrieval.recordings import EVERY_RECORDING
from voxstrata.studies.retrieve.options import RetrievalOptions
from voxstrata.studies.retrieve.text import brackets, interval_text, telling_metrics

BEST_F1 = "f1_of_best"  # a metric: mean over all queries, with a partner or without

FOUND_SCHEMA = pa.schema(
    [("direction", pa.string()), ("metric", pa.string()), ("pool", pa.string())]
    + [(name, pa.float64()) for name in ("value", "low", "high", "chance")]
    + [(name, pa.int64()) for name in ("queries", "queries_without_partner", "candidates", "candidates_max")]
)

_SHARES = ("exact_top1_among_candidates", "translation_among_candidates")  # of what candidates miss
_Codes = npt.NDArray[np.int64]

_DEFAULT = RetrievalOptions()


@dataclass(frozen=True, eq=False, repr=False)
class FoundRetrieval(Result):
    """Recall of what `similarity` found. It comes from the lists of the best candidates, not from all scores.

    table: one row per (direction, metric), columns as in FOUND_SCHEMA; a figure that does not exist is null. direction:
    "forward", "backward" and the mean of both; a set compared with itself has "forward" only. Metrics: recall@k for k
    up to the length of the lists, mrr@top (a partner that is not on the list adds 0), and f1_of_best. Chance is that of
    the same metric: of mrr@top, too, ranks beyond the list count 0. low, high: as in `Retrieval`.

    A query is any utterance with another of its group on the other side, its pool all of the other side (of a set
    compared with itself without the query). Wrong candidates with the score of the first partner rank ahead, as in
    `retrieve`, but those of them that did not fit on the list cannot be counted.
    """

    table: pa.Table

    command = "retrieve"
    question = "How many translations are on the lists?"
    files: ClassVar = {"table": "found.parquet"}
    key = "voxstrata_found"
    markdown = "found.md"
    brief = 2

    @property
    def title(self) -> str:
        s = self.settings
        x, y = ("{} ({})".format(", ".join(s[n]["languages"]) or n, s[n]["utterances"]) if s[n] else "" for n in "xy")
        return f"{s['output']}: the best {s['top']} of each utterance, {f'{x} and {y}' if y else f'{x} with itself'}"

    def direction(self, name: str) -> str:
        """ "forward" and "backward" in languages, such as "en → es"; other names as they are."""
        s = self.settings
        x, y = (", ".join(s[side]["languages"]) if s[side] else "" for side in "xy")
        if not y:
            return f"{x or 'all'}, among themselves" if name == FORWARD else name
        return {FORWARD: f"{x} → {y}", BACKWARD: f"{y} → {x}"}.get(name, name)

    def finding(self) -> Finding:
        rows = self.table.to_pylist()
        metric = telling_metrics(self.table)[0]
        found = []
        for row in rows:
            if row["metric"] == metric and row["direction"] != MEAN:
                share, chance = percent_text(row["value"], row["low"], row["high"]), percent_text(row["chance"])
                found.append(f"{self.direction(row['direction'])}: {metric} is {share}, chance {chance}.")
        return Finding(f"{self.settings['output']}. {' '.join(found)}")

    def tables(self) -> list[TextTable]:
        s = self.settings
        found = [_summary(self.table, s, self.direction)]
        if s["misses"]:
            first = next(iter(s["misses"].values()))
            header = ["direction", *(f"{name} (%)" if name in _SHARES else name for name in first)]
            rows = [
                [
                    self.direction(name),
                    *(Percent(100 * v) if k in _SHARES and v is not None else v for k, v in counts.items()),
                ]
                for name, counts in s["misses"].items()
            ]
            found.append(TextTable(f"What comparing {s['candidates']} candidates alone misses", header, rows))
        return found

    def figures(self) -> dict[str, Figure]:
        return {}


def evaluate_similarity(folder: str | Path, options: RetrievalOptions = _DEFAULT) -> FoundRetrieval:
    """How well translations were found by a comparison that `similarity` left in a folder.

    options: of these `ks` and `bootstrap` count; scores and kernel were decided by the comparison.
    Raises InputError where the folder holds no finished comparison, UsageError for another pool than all recordings
    and for hard negatives.
    """
    if options.pool != EVERY_RECORDING:
        raise UsageError(
            f"{folder}: its lists were made of all recordings; for pool {options.pool} run `voxstrata retrieve` on the "
            "store, or compare sets of one recording of each sentence"
        )
    if options.negatives:
        raise UsageError(f"{folder}: lists of the best candidates hold no hard negatives; run retrieve on the store")
    found = read_similarity(folder)
    (x, y), names = group_codes([found.x["group"], found.y["group"]])
    directions = [(FORWARD, found.x, found.y, x, y)]
    if not found.itself:
        directions.append((BACKWARD, found.y, found.x, y, x))
    partners = {name: _partners(asked, pool, found.itself) for name, _, _, asked, pool in directions}
    drawn = sorted({names[code] for name, _, _, asked, _ in directions for code in set(asked[partners[name] > 0])})
    resamples = options.resamples(drawn) if drawn else None
    rows: list[dict[str, Any]] = []
    mean = MeanEvaluation()
    for name, queries, pool, asked, held in directions:
        top = found.top.filter(pc.equal(found.top["direction"], name))
        size, k = len(pool) - found.itself, found.plan["top"]
        ranks = _ranks(top, queries["id"], pool["id"], asked, held)[partners[name] > 0]
        groups = np.array([names[code] if code >= 0 else "" for code in asked])
        evaluation = evaluate_ranks(
            ranks, partners[name], size, top=k, ks=options.ks, groups=groups, resamples=resamples
        )
        if (partners[name] >= size).any():
            evaluation = evaluation.emptied()
        mean.add(evaluation)
        rows += [{"direction": name, **row} for row in evaluation.rows()]
        best = np.asarray(top["f1"].filter(pc.equal(top["rank"], 1)), np.float64)
        counts = {"queries": len(best), "queries_without_partner": 0, "candidates": size, "candidates_max": size}
        rows.append({"direction": name, "metric": BEST_F1, "value": float(best.mean()), **counts})
    if not found.itself:
        rows += [{"direction": MEAN, **row} for row in mean.result().rows()]
    settings = {name: found.plan[name] for name in ("output", "kernel", "top", "candidates")}
    settings |= {"x": _about(found.x), "y": None if found.itself else _about(found.y)}
    settings |= {"misses": found.misses, **options.about(drawn), "weights_sha256": found.weights_sha256}
    table = pa.Table.from_pylist([{**row, "pool": EVERY_RECORDING} for row in rows], schema=FOUND_SCHEMA)
    return FoundRetrieval(table.replace_schema_metadata({FoundRetrieval.key: json.dumps(settings, ensure_ascii=False)}))


def _about(side: pa.Table) -> dict[str, Any]:
    languages = sorted(name for name in distinct(side, "language") if name is not None)
    return {"utterances": len(side), "languages": languages}


def _partners(queries: _Codes, pool: _Codes, itself: bool) -> _Codes:
    """How many of the pool are of each query's group, without itself."""
    held = np.bincount(pool[pool >= 0], minlength=int(max(queries.max(), pool.max(), 0)) + 1)
    return np.where(queries >= 0, held[queries] - itself, 0)


def _ranks(
    top: pa.Table, queries: pa.ChunkedArray, pool: pa.ChunkedArray, asked: _Codes, held: _Codes
) -> npt.NDArray[np.float64]:
    """Rank of the first partner on each query's list, (queries,) float64; infinite where none is on it."""
    query = np.asarray(pc.index_in(top["query"], value_set=queries), np.int64)
    group = held[np.asarray(pc.index_in(top["candidate"], value_set=pool), np.int64)]
    f1 = np.asarray(top["f1"])
    partner = (group == asked[query]) & (group >= 0)
    best = np.full(len(asked), -np.inf, np.float32)
    np.maximum.at(best, query[partner], f1[partner])
    ahead = np.bincount(query[~partner & (f1 >= best[query])], minlength=len(asked))
    return np.where(best > -np.inf, 1.0 + ahead, np.inf)


def _summary(table: pa.Table, settings: dict[str, Any], shown: Callable[[str], str]) -> TextTable:
    """A row for each direction: every metric in percent, with its interval, beside its chance."""
    figures = {(row["direction"], row["metric"]): row for row in table.to_pylist()}
    metrics = [*telling_metrics(table), *(name for name in distinct(table, "metric") if name.startswith("mrr@"))]
    header = ["direction", "queries", "without partner", "pool", "F1 of the best"]
    header += [name for metric in metrics for name in (metric, "chance")]
    body = []
    for direction in distinct(table, "direction"):
        rows = [figures[direction, metric] for metric in metrics]
        cells = [text for row in rows for text in (interval_text(row), in_percent(row["chance"]))]
        best = figures.get((direction, BEST_F1), {"value": None})["value"]
        body.append(
            [
                shown(direction),
                rows[0]["queries"],
                rows[0]["queries_without_partner"],
                pool_sizes(rows[0]),
                best,
                *cells,
            ]
        )
    top = settings["top"]
    note = (
        f"Recall comes from the lists of each query's best {top} by F1, not from all scores: mrr@{top} counts 0 where "
        "no partner is on the list. In percent (F1 is not), chance beside it."
    )
    note += f"{brackets(table)} Pool {EVERY_RECORDING}: every utterance of the other side."
    note += " Wrong candidates with the score of the first partner rank ahead of it, as far as they are on the list."
    if settings["candidates"]:
        note += (
            f" Each query was compared with its {settings['candidates']} nearest by mean-pooled cosine alone; "
            "a partner that is not among them counts as not found."
        )
    return TextTable("Found among the best candidates", header, body, note)
