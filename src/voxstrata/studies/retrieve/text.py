"""A retrieval table in tables for people. Every summary carries pool size and chance: recall alone says nothing."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.errors import InputError
from voxstrata.base.finding import Finding, SmallCurve, in_hundred, percent_text
from voxstrata.base.plain import counted
from voxstrata.base.result import metadata
from voxstrata.base.tables import TextTable, distinct, in_percent
from voxstrata.encoders.outputs import depth_order
from voxstrata.evaluation.bootstrap import LEVEL
from voxstrata.evaluation.hubness import HUB_NEIGHBOURS
from voxstrata.evaluation.levels import DIRECTION, MEAN, pool_sizes
from voxstrata.evaluation.metrics import ROUNDING
from voxstrata.retrieval.recordings import EVERY_RECORDING, POOL_MEANS
from voxstrata.studies.retrieve.negatives import NEGATIVES, hard_metrics

SKEW = f"k_occurrence_skew@{HUB_NEIGHBOURS}"
MUTUAL = "mutual_knn"  # @k: a metric
LINEAR_CKA = "linear_cka"  # in the place of the similarity, for the metrics cka and cka_debiased
SETTINGS_KEY = "voxstrata_retrieval"  # of the settings, in the table's metadata

_Row = dict[str, Any]
_Rows = dict[tuple[str, str, str, str], _Row]  # of means: by output, similarity, score and metric


def conditions(table: pa.Table) -> str:
    """Directions, pool size, queries and chance behind the figures of `table`, in one line.

    Ranges stand where they differ between directions; directions without a query are left out.
    """
    directions = table.filter(pc.and_(pc.equal(table["level"], DIRECTION), pc.is_valid(table["value"])))
    metrics = telling_metrics(directions)
    directions = directions.filter(pc.is_in(directions["metric"], value_set=pa.array(metrics, pa.string())))
    if len(directions) == 0:
        raise InputError("the table holds no direction with a query: there is nothing to show")
    count = len(set(zip(directions["source"].to_pylist(), directions["target"].to_pylist(), strict=True)))
    chances = []
    for metric in metrics:
        part = directions.filter(pc.equal(directions["metric"], metric))
        chances.append(f"{metric} {_span(part['chance'], in_percent)} %")
    pool = _counted_span(directions["candidates"], "candidate", "candidates")
    queries = _counted_span(directions["queries"], "query", "queries")
    return (
        f"{counted(count, 'direction')}; pool of {pool} ({pool_of(table)}), {queries} each; "
        f"chance: {', '.join(chances)}"
    )


def pool_of(table: pa.Table) -> str:
    """Which recordings a table's figures are made of; of tables without that column, which are older, "all"."""
    named = distinct(table, "pool") if "pool" in table.column_names else []
    return ", ".join(filter(None, named)) or EVERY_RECORDING


def retrieval_metrics(table: pa.Table) -> list[str]:
    """recall@k and mrr, as far as `table` holds them."""
    return [metric for metric in distinct(table, "metric") if metric.startswith("recall@") or metric == "mrr"]


def telling_metrics(table: pa.Table) -> list[str]:
    """Those that say something: where no pool has more than k candidates, recall@k is 100 %, and so is its chance."""
    found = retrieval_metrics(table)
    by_metric = table.group_by("metric").aggregate([("chance", "min")])
    chance = dict(zip(by_metric["metric"].to_pylist(), by_metric["chance_min"].to_pylist(), strict=True))
    return [name for name in found if chance[name] is None or chance[name] < 1 - ROUNDING] or found[:1]


def similarities_of(table: pa.Table) -> list[str]:
    """Similarities of the table in its order, seqsim_f1 in front, without linear CKA."""
    names = [name for name in distinct(table, "similarity") if name != LINEAR_CKA]
    return sorted(names, key=lambda name: name != "seqsim_f1")


def summary_tables(table: pa.Table) -> list[TextTable]:
    """Tables of means: outputs by the first similarity, the best outputs, outputs by the others, linear CKA."""
    means = _means(table)
    first, *others = (_by_output(table, means, similarity) for similarity in similarities_of(table))
    found = [first, _best(table, means), *others]
    if kinds := negatives_of(table):
        hard, *rest = (_negatives(table, means, kinds, similarity) for similarity in similarities_of(table))
        found = [first, hard, *found[1:], *rest]
    if any(key[1] == LINEAR_CKA for key in means):
        found.append(_cka(table, means))
    found += [_mutual(table, means, name) for name in distinct(table, "metric") if name.startswith(f"{MUTUAL}@")]
    return found


def _means(table: pa.Table) -> _Rows:
    rows = table.filter(pc.equal(table["level"], MEAN)).to_pylist()
    if not rows:
        raise InputError('the table holds no rows of level "mean"; pass the whole table that retrieve returned')
    return {(row["output"], row["similarity"], row["score"], row["metric"]): row for row in rows}


def _by_output(table: pa.Table, means: _Rows, similarity: str) -> TextTable:
    """One similarity's own score: outputs by depth, and chance. The first metric stands with its interval."""
    metrics = telling_metrics(table)
    body = []
    for output in depth_order(distinct(table, "output")):
        row, *rest, hub = (means[output, similarity, "raw", metric] for metric in (*metrics, SKEW))
        below = interval_text(row, "below_best")
        body.append([output, interval_text(row), below, *map(interval_text, rest), number_text(hub, "value")])
    chance = [in_percent(r["chance"]) for r in (row, *rest)]  # the same for every output
    body.append(["chance", chance[0], "", *chance[1:], number_text(hub, "chance")])
    header = ["output", metrics[0], "below the best", *metrics[1:], "hubness"]
    return TextTable(similarity, header, body, f"Percent, mean over {conditions(table)}.")


def _best(table: pa.Table, means: _Rows) -> TextTable:
    """For every similarity and score the output best by the first metric, and how far ahead of the next it is."""
    first, *others = telling_metrics(table)
    outputs = depth_order(distinct(table, "output"))
    body = []
    for similarity in similarities_of(table):
        for score in distinct(table, "score"):
            rows = [means[output, similarity, score, first] for output in outputs]
            ranked = sorted((row for row in rows if row["value"] is not None), key=lambda row: -float(row["value"]))
            if not ranked:
                body.append([similarity, score, *["–"] * (5 + len(others))])
                continue
            best = ranked[0]["output"]
            rest = [in_percent(means[best, similarity, score, metric]["value"]) for metric in others]
            hubness = number_text(means[best, similarity, score, SKEW], "value")
            ahead = [(interval_text(row, "below_best"), row["output"]) for row in ranked[1:2]] or [("–", "–")]
            named = best_output(best, ranked[0])
            body.append([similarity, score, named, interval_text(ranked[0]), *ahead[0], *rest, hubness])
    header = ["similarity", "score", "best output", first, "ahead by", "of", *others, "hubness"]
    return TextTable("Best output", header, body, _stands_on(table))


def _cka(table: pa.Table, means: _Rows) -> TextTable:
    body = []
    for output in depth_order(distinct(table, "output")):
        plain, debiased = (means[output, LINEAR_CKA, "raw", metric] for metric in ("cka", "cka_debiased"))
        body.append([output, number_text(plain, "value"), number_text(plain, "chance"), number_text(debiased, "value")])
    header = ["output", "CKA", "chance", "debiased (chance 0)"]
    note = (
        "CKA: how alike the states of two languages are as a whole, up to rotation and scale. 1: the same, 0: nothing "
        "in common. Each sentence that both languages hold has one state in each, the mean over its recordings (pool "
        f"{pool_of(table)}). chance: what sentences matched at random reach. It grows with the width of the states, so "
        "CKA says nothing without it. debiased: the same, made so that chance is 0 at any width."
    )
    return TextTable("Linear CKA of pooled states, language to language", header, body, note)


def _mutual(table: pa.Table, means: _Rows, metric: str) -> TextTable:
    body, k = [], metric.partition("@")[2]
    for output in depth_order(distinct(table, "output")):
        row = means[output, "pooled_cosine", "raw", metric]
        null = [in_percent(row[name]) for name in ("null_low", "null_high")]
        p = "–" if row["p"] is None else f"{row['p']:.3g}"
        own = [interval_text(row), interval_text(row, "below_best"), in_percent(row["chance"])]
        body.append([output, *own, f"{null[0]} – {null[1]}", p])
    drawn = (metadata(table, SETTINGS_KEY) or {}).get("mutual_knn_permutations")
    note = (
        f"How many neighbours a sentence keeps, in percent: of the {k} sentences nearest to it in one language, those "
        f"that are also among its {k} nearest in the other. The mean over pairs of languages, of the "
        f"{pool_sizes(row)} sentences that both hold. A sentence has one state in each, the mean over its recordings "
        f"(pool {pool_of(table)}).{brackets(table)} at random: where 95 % of {drawn} random matchings of the sentences "
        "lie. p: the share of matchings that agree at least as well, the true one counted with them."
    )
    header = ["output", metric, "below the best", "chance", "at random", "p"]
    return TextTable("Mutual nearest neighbours of pooled states, language to language", header, body, note)


def negatives_of(table: pa.Table) -> list[str]:
    """By what the hard negatives of a table were chosen."""
    return [kind for kind in NEGATIVES if hard_metrics(kind)[0] in distinct(table, "metric")]


def _negatives(table: pa.Table, means: _Rows, kinds: list[str], similarity: str) -> TextTable:
    """Retrieval in small pools, by kind and output: among hard negatives, among random ones, the difference."""
    body, places = [], {}
    for kind in kinds:
        hard, random, minus = hard_metrics(kind)
        part = table.filter(pc.and_(pc.equal(table["metric"], hard), pc.equal(table["level"], DIRECTION)))
        part = part.filter(pc.and_(pc.equal(part["similarity"], similarity), pc.equal(part["score"], "raw")))
        directions = [row for row in part.to_pylist() if row["value"] is not None]
        for output in depth_order(distinct(table, "output")):
            rows = [means[output, similarity, "raw", metric] for metric in (hard, random, minus)]
            worst = min((r for r in directions if r["output"] == output), key=lambda r: float(r["value"]), default=None)
            least = "–" if worst is None else f"{in_percent(worst['value'])} {worst['source']}→{worst['target']}"
            body.append([kind, output, interval_text(rows[0]), in_percent(rows[1]["value"]),
                         interval_text(rows[2]), least])  # fmt: skip
            places[kind] = rows[0]
        body.append([kind, "chance", *[in_percent(places[kind]["chance"])] * 2, "0.0", ""])
    sizes = "; ".join(
        f"{kind} {counted(row['queries'], 'query', 'queries')} ({row['queries_without_partner']:,} without enough "
        "negatives), pools of " + pool_sizes(row)
        for kind, row in places.items()
    )
    how = {"sound": "that sound most like the query", "length": "whose length is nearest to the query's",
           "words": "that share most words with the translation"}  # fmt: skip
    note = (
        f"Percent, recall@1, mean over directions; candidates of pool {pool_of(table)}. {sizes}. Hard negatives are "
        f"those {', or '.join(how[kind] for kind in kinds)}; at random: as many other sentences, the mean over all "
        f"draws.{brackets(table)} Minus random is paired. Worst: the direction lowest among hard ones."
    )
    header = ["by", "output", "hard", "random", "hard - random", "worst"]
    return TextTable(f"Hard negatives, {similarity}", header, body, note)


def _stands_on(table: pa.Table) -> str:
    """What the figures of the tables stand on: directions, pools, queries, chance, intervals."""
    note = f"Percent (hubness and CKA are not), mean over {conditions(table)}.{brackets(table)}"
    note += f" Pool {(pool := pool_of(table))}: {POOL_MEANS[pool]}. hubness: whether a few candidates "
    note += "are near to many queries (skewness of how often each is among the 10 nearest); 0: all alike."
    if no_more := [name for name in retrieval_metrics(table) if name not in telling_metrics(table)]:
        note += f" Without {', '.join(no_more)}, which is 100 % by chance in so small a pool."
    trivial = ", ".join((metadata(table, SETTINGS_KEY) or {}).get("only_translations", []))
    if trivial:
        note += f" Without figures, since the pool holds one sentence and any answer is right: {trivial}."
    if len(distinct(table, "output")) > 1:
        note += " The best output was chosen on these same data."
    return f"{note} {BEST_AT_CHANCE}"


def best_layer(table: pa.Table) -> Finding:
    """The output that finds most translations by the table's first similarity, beside chance, and a curve by depth.

    Outputs whose interval of how far they are behind reaches 0 are named with it.
    """
    means, similarity, metric = _means(table), similarities_of(table)[0], telling_metrics(table)[0]
    outputs = depth_order(distinct(table, "output"))
    rows = [means[output, similarity, "raw", metric] for output in outputs]
    known = [row for row in rows if row["value"] is not None]
    if not known:
        return Finding("No direction has a figure.")
    best = max(known, key=lambda row: float(row["value"]))
    value, low, high, chance = (in_hundred([row[name] for row in rows]) for name in ("value", "low", "high", "chance"))
    curve = SmallCurve(f"{metric} (%)", outputs, value, low, high, chance, best=rows.index(best))
    share = percent_text(best["value"], best["low"], best["high"])
    by_chance = f"Chance is {percent_text(best['chance'])}, of {pool_sizes(best)} candidates."
    if best_output(best["output"], best) != best["output"]:
        return Finding(f"No layer is above chance. The highest, {best['output']}, has {share}. {by_chance}", curve)
    how = "come first" if metric == "recall@1" else f"count by {metric}"
    answer = f"{best['output']}: {share} of the translations {how}, by {similarity}. {by_chance}"
    behind = {row["output"]: row.get("below_best_low") for row in known if row is not best}
    if equal := [name for name, low in behind.items() if low is not None and low <= 0]:
        answer += f" As good, for all that these data can say: {', '.join(equal)}."
    return Finding(answer, curve)


BEST_AT_CHANCE = "An output marked (chance) is not above chance: the lower end of its interval is not."


def best_output(name: str, row: _Row) -> str:
    """The name of the best output, and that it is at chance where it is: of many at chance one is always the best."""
    low = row["value"] if row["low"] is None else row["low"]
    return f"{name} (chance)" if row["value"] is not None and low <= row["chance"] else name


def brackets(table: pa.Table) -> str:
    """What brackets hold, where a table has intervals."""
    shown = pc.count(table["low"]).as_py() > 0
    return f" In brackets: {100 * LEVEL:.0f} % bootstrap intervals over groups, pool fixed." if shown else ""


def number_text(row: _Row, column: str) -> str:
    value = row.get(column)
    return f"{value:.2f}" if isinstance(value, float) else "–"


def interval_text(row: _Row, column: str = "value") -> str:
    """In percent, with the interval where there is one."""
    low, high = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
    text = in_percent(row[column])
    if row[low] is None or (column != "value" and row[column] == 0 and row[high] == 0):
        return text
    return f"{text} [{in_percent(row[low])}, {in_percent(row[high])}]"


def _span(column: pa.ChunkedArray, text: Callable[[float], str]) -> str:
    """Smallest to largest value as text, once if both read the same."""
    ends = pc.min_max(column).as_py()
    return "–".join(dict.fromkeys([text(ends["min"]), text(ends["max"])]))


def _counted_span(column: pa.ChunkedArray, one: str, many: str) -> str:
    """How many of what, smallest to largest: "1 query", "6–1,012 queries"."""
    span = _span(column, "{:,}".format)
    return f"{span} {one if span == '1' else many}"
