"""A retrieval table in text. Every summary carries pool size and chance: recall alone says nothing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import InputError
from voxstrata.base.tables import aligned, distinct
from voxstrata.encoders.outputs import depth_order
from voxstrata.evaluation.bootstrap import LEVEL
from voxstrata.evaluation.metrics import MEAN
from voxstrata.studies.retrieve.measure import LINEAR_CKA, SKEW, Row

LEFT = ("output", "similarity", "score", "best output", "of")  # columns of names
Text = tuple[list[str], list[list[str]]]  # header and body
Means = dict[tuple[str, str, str, str], Row]  # by output, similarity, score and metric


def conditions(table: pa.Table) -> str:
    """Directions, pool size, queries and chance behind the figures of `table`, in one line.

    Ranges stand where they differ between directions; directions without a query are left out.
    """
    directions = table.filter(pc.and_(pc.not_equal(table["source"], table["target"]), pc.is_valid(table["value"])))
    metrics = retrieval_metrics(directions)
    directions = directions.filter(pc.is_in(directions["metric"], value_set=pa.array(metrics, pa.string())))
    if len(directions) == 0:
        raise InputError("the table holds no direction with a query: there is nothing to show")
    count = len(set(zip(directions["source"].to_pylist(), directions["target"].to_pylist(), strict=True)))
    chances = []
    for metric in metrics:
        part = directions.filter(pc.equal(directions["metric"], metric))
        chances.append(f"{metric} {_span(part['chance'], lambda chance: f'{100 * chance:.1f}')} %")
    return (
        f"{count} direction{'s' * (count != 1)}; pool of {_span(directions['candidates'])} candidates, "
        f"{_span(directions['queries'])} queries each; chance: {', '.join(chances)}"
    )


def retrieval_metrics(table: pa.Table) -> list[str]:
    """recall@k and mrr, as far as `table` holds them."""
    return [metric for metric in distinct(table, "metric") if metric.startswith("recall@") or metric == "mrr"]


def similarities_of(table: pa.Table) -> list[str]:
    """Similarities of the table in its order, seqsim_f1 in front, without linear CKA."""
    names = [name for name in distinct(table, "similarity") if name != LINEAR_CKA]
    return sorted(names, key=lambda name: name != "seqsim_f1")


def summary_tables(table: pa.Table) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table of means: outputs for each similarity, the best outputs, linear CKA."""
    means = _means(table)
    found = [(similarity, *_by_output(table, means, similarity)) for similarity in similarities_of(table)]
    found.append(("Best output", *_best(table, means)))
    if any(key[1] == LINEAR_CKA for key in means):
        found.append(("Linear CKA of pooled states, language to language", *_cka(table, means)))
    return found


def to_markdown(table: pa.Table) -> str:
    """`summary_tables` as GitHub tables, and what their figures stand on."""
    parts = [f"## {title}\n\n{_pipes((header, body))}" for title, header, body in summary_tables(table)]
    return "\n".join([*parts, caption(table)]) + "\n"


def to_terminal(table: pa.Table) -> str:
    """The outputs by the first similarity, and the best output by each, in aligned plain text."""
    means = _means(table)
    first = similarities_of(table)[0]
    parts = [f"{first}\n{_aligned(_by_output(table, means, first))}", _aligned(_best(table, means)), caption(table)]
    return "\n\n".join(parts) + "\n"


def _means(table: pa.Table) -> Means:
    rows = table.filter(pc.equal(table["source"], MEAN)).to_pylist()
    if not rows:
        raise InputError('the table holds no rows with source "mean"; pass the whole table that retrieve returned')
    return {(row["output"], row["similarity"], row["score"], row["metric"]): row for row in rows}


def _by_output(table: pa.Table, means: Means, similarity: str) -> Text:
    """One similarity's own score: outputs by depth, and chance. The first metric stands with its interval."""
    first, *others = retrieval_metrics(table)
    body = []
    chance: list[str] = []
    for output in depth_order(distinct(table, "output")):
        row = means[output, similarity, "raw", first]
        rest = [means[output, similarity, "raw", metric] for metric in others]
        hub = means[output, similarity, "raw", SKEW]
        body.append(
            [output, _interval(row), _interval(row, "below_best"), *(_interval(r) for r in rest), _number(hub, "value")]
        )
        chance = ["chance", _percent(row["chance"]), "", *(_percent(r["chance"]) for r in rest), _number(hub, "chance")]
    return ["output", first, "below the best", *others, "hubness"], [*body, chance]


def _best(table: pa.Table, means: Means) -> Text:
    """For every similarity and score the output best by the first metric, and how far ahead of the next it is."""
    first, *others = retrieval_metrics(table)
    outputs = depth_order(distinct(table, "output"))
    body = []
    for similarity in similarities_of(table):
        for score in distinct(table, "score"):
            rows = [means[output, similarity, score, first] for output in outputs]
            ranked = sorted((row for row in rows if row["value"] is not None), key=lambda row: -_value(row))
            if not ranked:
                body.append([similarity, score, *["–"] * (5 + len(others))])
                continue
            best = str(ranked[0]["output"])
            rest = [_percent(means[best, similarity, score, metric]["value"]) for metric in others]
            rest.append(_number(means[best, similarity, score, SKEW], "value"))
            ahead = _interval(ranked[1], "below_best") if len(ranked) > 1 else "–"
            runner_up = str(ranked[1]["output"]) if len(ranked) > 1 else "–"
            body.append([similarity, score, best, _interval(ranked[0]), ahead, runner_up, *rest])
    return ["similarity", "score", "best output", first, "ahead by", "of", *others, "hubness"], body


def _cka(table: pa.Table, means: Means) -> Text:
    body = []
    for output in depth_order(distinct(table, "output")):
        plain, debiased = (means[output, LINEAR_CKA, "raw", metric] for metric in ("cka", "cka_debiased"))
        body.append([output, _number(plain, "value"), _number(plain, "chance"), _number(debiased, "value")])
    return ["output", "CKA", "chance", "debiased (chance 0)"], body


def caption(table: pa.Table) -> str:
    """What the figures of the tables stand on: directions, pools, queries, chance, intervals."""
    intervals = pc.count(table["low"]).as_py() > 0
    stored = (table.schema.metadata or {}).get(b"voxstrata_retrieval", b"{}")
    trivial = ", ".join(json.loads(stored).get("only_translations", []))
    return (
        f"Percent (hubness and CKA are not), mean over {conditions(table)}."
        + (f" In brackets: {100 * LEVEL:.0f} % bootstrap intervals over groups, pool fixed." if intervals else "")
        + " Hubness: skewness of 10-occurrence."
        + (
            f" Without figures, since the pool holds one sentence and any answer is right: {trivial}."
            if trivial
            else ""
        )
        + (" The best output was chosen on these same data." if len(distinct(table, "output")) > 1 else "")
    )


def _value(row: Row) -> float:
    return float(row["value"] or 0.0)


def _percent(value: object) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}" if isinstance(value, float) else "–"  # + 0.0: no minus before a zero


def _number(row: Row, column: str) -> str:
    value = row.get(column)
    return f"{value:.2f}" if isinstance(value, float) else "–"


def _interval(row: Row, column: str = "value") -> str:
    """In percent, with the interval where there is one."""
    low, high = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
    text = _percent(row[column])
    if row[low] is None or (column == "below_best" and row[column] == 0 and row[high] == 0):
        return text
    return f"{text} [{_percent(row[low])}, {_percent(row[high])}]"


def _pipes(text: Text) -> str:
    header, body = text
    left = len([name for name in header if name in LEFT])
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * left + "---:|" * (len(header) - left)]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in body)]) + "\n"


def _aligned(text: Text) -> str:
    header, body = text
    return aligned(header, body, [i for i, name in enumerate(header) if name in LEFT])


def _span(column: pa.ChunkedArray, text: Callable[[float], str] = str) -> str:
    """Smallest to largest value as text, once if both read the same."""
    ends = pc.min_max(column).as_py()
    return "–".join(dict.fromkeys([text(ends["min"]), text(ends["max"])]))
