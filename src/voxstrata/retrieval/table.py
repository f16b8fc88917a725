"""Cross-lingual retrieval over a store: the tidy table, and its summaries in text.

A summary always carries pool size and chance: recall alone says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.errors import InputError, UsageError
from voxstrata.retrieval.evaluate import Recall, evaluate_pair, mean_recall, positives_from_groups
from voxstrata.retrieval.pooled import pooled_cosine
from voxstrata.retrieval.ragged import Ragged
from voxstrata.retrieval.seqsim import seqsim

SIMILARITIES = ("seqsim_f1", "seqsim_precision", "seqsim_recall", "pooled_cosine")
MEAN = "mean"  # source and target of the rows that average over all directions

SCHEMA = pa.schema(
    [
        ("output", pa.string()),
        ("similarity", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("chance", pa.float64()),
        ("queries", pa.int64()),
        ("queries_without_partner", pa.int64()),
        ("candidates", pa.int64()),
        ("candidates_max", pa.int64()),
    ]
)


class StoreReader(Protocol):
    """The part of the store's reader that retrieval stands on."""

    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def utterances(self) -> pa.Table: ...
    @property
    def has_frames(self) -> bool: ...
    def ragged(
        self, output: str, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.int64]]: ...
    def pooled(self, output: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class _Side:
    """The utterances of one language that take part: rows in the store, ids and groups."""

    language: str
    indices: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    groups: npt.NDArray[np.str_]


def retrieve(
    store: StoreReader,
    outputs: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    similarities: Sequence[str] = SIMILARITIES,
    ks: Sequence[int] = (1, 5),
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Recall@k of finding an utterance's translation, for every output and ordered pair of languages.

    Utterances that are done and have a language and a group take part. The queries are the source language's
    utterances with a partner in the target language, the candidates all of the target language's; those
    of one group are translations of each other. seqsim_precision is the mean over the query's frames,
    seqsim_recall over the candidate's. `progress(done, total)` counts pairs of languages over all outputs.

    Returns one row per (output, similarity, source, target, metric), outputs by depth, columns as in SCHEMA:
    value and chance are fractions, null for a direction without a query. Rows with source = target = "mean"
    are the unweighted mean over all directions that have queries. Two languages' frames of one output are
    held in memory at a time, as stored and as float32.
    Raises UsageError for unknown names or impossible settings, InputError where nothing can be retrieved.
    """
    outputs = depth_order(_chosen("output", outputs, store.outputs))
    similarities = _chosen("similarity", similarities, SIMILARITIES)
    ks = list(dict.fromkeys(ks))
    if not ks or min(ks) < 1:
        raise UsageError(f"ks is {ks}; give at least one k, each at least 1")
    framed = [name for name in similarities if name.startswith("seqsim")]
    if framed and not store.has_frames:
        raise UsageError(
            f"{', '.join(framed)} compare frames, and this store holds pooled states only; "
            "ask for pooled_cosine, or extract again with frames"
        )
    sides = _sides(store.utterances, languages)
    pairs = len(sides) * (len(sides) - 1) // 2
    rows: list[dict[str, object]] = []
    for n, output in enumerate(outputs):
        recalls: dict[tuple[str, int], list[tuple[str, str, Recall]]] = {}
        for m, (x, y, scores) in enumerate(_scores(store, output, sides, similarities), start=1):
            positives = positives_from_groups(x.groups, y.groups)
            for similarity, (forward, backward) in scores.items():
                for pair in evaluate_pair(forward, backward, positives, ks):
                    recalls.setdefault((similarity, pair.forward.k), []).extend(
                        [(x.language, y.language, pair.forward), (y.language, x.language, pair.backward)]
                    )
            if progress:
                progress(n * pairs + m, len(outputs) * pairs)
        for (similarity, _), directions in recalls.items():
            average = (MEAN, MEAN, mean_recall([recall for _, _, recall in directions]))
            rows += [_row(output, similarity, *direction) for direction in [*directions, average]]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def depth_order(outputs: Iterable[str]) -> list[str]:
    """Distinct output names from the encoder's input to its end: layer_00, layer_01, …, then the others."""

    def depth(name: str) -> float:
        number = re.fullmatch(r"layer_(\d+)", name)
        return int(number[1]) if number else float("inf")

    return sorted(dict.fromkeys(outputs), key=depth)


def conditions(table: pa.Table) -> str:
    """Directions, pool size, queries and chance behind the figures of `table`, in one line.

    Ranges stand where they differ between directions; directions without a query are left out.
    """
    directions = table.filter(pc.and_(pc.not_equal(table["source"], MEAN), pc.is_valid(table["value"])))
    if len(directions) == 0:
        raise InputError("the table holds no direction with a query: there is nothing to show")
    count = len(set(zip(directions["source"].to_pylist(), directions["target"].to_pylist(), strict=True)))
    chances = []
    for metric in _distinct(directions, "metric"):
        part = directions.filter(pc.equal(directions["metric"], metric))
        chances.append(f"{metric} {_span(part['chance'], lambda chance: f'{100 * chance:.1f}')} %")
    return (
        f"{count} direction{'s' * (count != 1)}; pool of {_span(directions['candidates'])} candidates, "
        f"{_span(directions['queries'])} queries each; chance: {', '.join(chances)}"
    )


def to_markdown(table: pa.Table) -> str:
    """GitHub table: means over all directions in percent: outputs × (similarity, metric), and a caption."""
    header, body = _summary(table)
    names = ["output", *(f"{similarity} {metric}" for similarity, metric in header)]
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * len(header)]
    lines += ["| " + " | ".join(cells) + " |" for cells in body]
    return "\n".join([*lines, "", _caption(table)]) + "\n"


def to_terminal(table: pa.Table) -> str:
    """The same as `to_markdown` in aligned plain text, each similarity named once above its metrics."""
    header, body = _summary(table)
    similarities = list(dict.fromkeys(similarity for similarity, _ in header))
    metrics = [metric for similarity, metric in header if similarity == similarities[0]]
    first = max(len(cells[0]) for cells in [["output"], *body])
    gaps = 2 * (len(metrics) - 1)
    width = max(*map(len, metrics), -(-(max(map(len, similarities)) - gaps) // len(metrics)))
    group = len(metrics) * width + gaps
    lines = [" " * first + "".join(f"  {name:>{group}}" for name in similarities)]
    for name, *cells in [["output", *metrics * len(similarities)], *body]:
        lines.append(f"{name:<{first}}" + "".join(f"  {cell:>{width}}" for cell in cells))
    return "\n".join([*lines, "", _caption(table)]) + "\n"


def _scores(
    store: StoreReader, output: str, sides: Sequence[_Side], similarities: Sequence[str]
) -> Iterator[tuple[_Side, _Side, dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]]]:
    """Per unordered pair of languages: scores with the first as queries, and with the second as queries."""
    frames = any(name.startswith("seqsim") for name in similarities)
    pooled_of = cache(lambda i: store.pooled(output, sides[i].indices))
    for i, x in enumerate(sides[:-1]):
        x_frames = _frames(store, output, x) if frames else None
        for j, y in enumerate(sides[i + 1 :], start=i + 1):
            scores = {}
            try:
                if x_frames is not None:
                    sim = seqsim(x_frames, _frames(store, output, y))
                    # Swapping the sides swaps precision and recall, so one pass serves both directions.
                    scores["seqsim_f1"] = (sim.f1, sim.f1.T)
                    scores["seqsim_precision"] = (sim.precision, sim.recall.T)
                    scores["seqsim_recall"] = (sim.recall, sim.precision.T)
                if "pooled_cosine" in similarities:
                    pooled = pooled_cosine(pooled_of(i), pooled_of(j), x.ids, y.ids)
                    scores["pooled_cosine"] = (pooled, pooled.T)
            except InputError as error:
                raise InputError(f"output {output}, {x.language} and {y.language}: {error}") from error
            yield x, y, {name: scores[name] for name in similarities}


def _frames(store: StoreReader, output: str, side: _Side) -> Ragged:
    rows, offsets = store.ragged(output, side.indices)
    return Ragged(rows, offsets, side.ids)


def _sides(utterances: pa.Table, languages: Sequence[str] | None) -> list[_Side]:
    """The utterances that take part, by language: in the order asked for, else sorted by name."""
    known = sorted(language for language in _distinct(utterances, "language") if language is not None)
    done = pc.equal(utterances["status"], "done")
    usable = pc.and_(done, pc.and_(pc.is_valid(utterances["language"]), pc.is_valid(utterances["group"])))
    table = utterances.append_column("index", pa.array(np.arange(len(utterances)))).filter(usable)
    sides = []
    for language in known if languages is None else _chosen("language", languages, known):
        part = table.filter(pc.equal(table["language"], language))
        sides.append(
            _Side(
                language,
                np.asarray(part["index"], np.int64),
                tuple(str(name) for name in part["id"].to_pylist()),
                np.array([str(group) for group in part["group"].to_pylist()], np.str_),
            )
        )
    counts = ", ".join(f"{side.language}: {len(side.ids)}" for side in sides)
    found = (
        f"of {len(utterances)} utterances {pc.sum(done).as_py() or 0} are done, "
        f"{len(table)} of these have a language and a group ({counts or 'no language'})"
    )
    if languages is None:
        sides = [side for side in sides if side.ids]
    empty = [side.language for side in sides if not side.ids]
    if empty:
        raise InputError(
            f"no usable utterance in {', '.join(empty)}: {found}; leave these languages out or finish the extraction"
        )
    if len(sides) < 2:
        raise InputError(
            f"retrieval needs utterances of at least 2 languages: {found}; "
            "fill the manifest's language and group columns"
        )
    if not any(set(x.groups) & set(y.groups) for x, y in combinations(sides, 2)):
        raise InputError(
            f"no group occurs in two languages: {found}; "
            "translations of one sentence need the same group in the manifest"
        )
    return sides


def _row(output: str, similarity: str, source: str, target: str, recall: Recall) -> dict[str, object]:
    return {
        "output": output,
        "similarity": similarity,
        "source": source,
        "target": target,
        "metric": f"recall@{recall.k}",
        "value": recall.value if recall.queries else None,
        "chance": recall.chance if recall.queries else None,
        "queries": recall.queries,
        "queries_without_partner": recall.queries_without_partner,
        "candidates": recall.candidates,
        "candidates_max": recall.candidates_max,
    }


def _summary(table: pa.Table) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Columns (similarity, metric) and, per output, its name and the means in percent."""
    means = table.filter(pc.equal(table["source"], MEAN)).to_pylist()
    if not means:
        raise InputError('the table holds no rows with source "mean"; pass the whole table that retrieve returned')
    header = [(s, m) for s in _distinct(table, "similarity") for m in _distinct(table, "metric")]
    values = {(row["output"], row["similarity"], row["metric"]): row["value"] for row in means}
    body = []
    for output in depth_order(_distinct(table, "output")):
        cells = (values.get((output, *column)) for column in header)
        body.append([output, *("–" if cell is None else f"{100 * cell:.1f}" for cell in cells)])
    return header, body


def _caption(table: pa.Table) -> str:
    return f"Percent, mean over {conditions(table)}."


def _span(column: pa.ChunkedArray, text: Callable[[float], str] = str) -> str:
    """Smallest to largest value as text, once if both read the same."""
    ends = pc.min_max(column).as_py()
    return "–".join(dict.fromkeys([text(ends["min"]), text(ends["max"])]))


def _distinct(table: pa.Table, column: str) -> list[str]:
    names: list[str] = pc.unique(table[column]).to_pylist()
    return names


def _chosen(kind: str, asked: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Distinct names asked for (all known ones when None), each of them known."""
    if asked is None:
        return list(known)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        what = f"unknown {kind} {', '.join(map(repr, unknown))}" if unknown else f"no {kind} asked for"
        raise UsageError(f"{what}; known: {', '.join(known) or 'none'}")
    return list(dict.fromkeys(asked))
