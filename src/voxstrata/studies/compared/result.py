"""What several encoders reached on one corpus: tables and pictures side by side, saved and loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve, in_hundred, percent_text
from voxstrata.base.plain import counted
from voxstrata.base.result import Result, metadata
from voxstrata.base.tables import TextTable, as_stored, distinct, in_percent, with_interval
from voxstrata.evaluation.levels import MEAN, pool_sizes, with_level
from voxstrata.studies.align.pools import POOL_ALL, POOL_CLOSEST, POOL_UNLIKE
from voxstrata.studies.align.states import CENTRED, RAW
from voxstrata.studies.align.table import RECALL, stored_means
from voxstrata.studies.compared.figures import plot_alignment_by_depth, plot_recall_by_depth
from voxstrata.studies.compared.table import encoder_table
from voxstrata.studies.retrieve.text import (
    BEST_AT_CHANCE,
    SKEW,
    best_output,
    brackets,
    conditions,
    interval_text,
    number_text,
    retrieval_metrics,
    similarities_of,
    telling_metrics,
)

STORES = "voxstrata_stores"  # in a table's metadata: the descriptions of all stores that it was made from
_CHOSEN = f"The best outputs were chosen on these same data. {BEST_AT_CHANCE}"

_HARD = ((POOL_UNLIKE, "of the pairs that sound unlike"), (POOL_CLOSEST, "among what sounds closest"))

_Row = dict[str, Any]


def _best_of(rows: Iterable[_Row]) -> _Row:
    return max(rows, key=lambda row: -1.0 if row["value"] is None else float(row["value"]))


def _share_of(row: _Row) -> str:
    return percent_text(row["value"], row["low"], row["high"])


class ComparedEncoders(Result):
    """What results of several encoders share: each is measured against itself, on the utterances that all have.

    settings: those of the study, and encoders (what each is), utterances, not_in_all (by encoder, how many others do
    not have), differences (what to bear in mind, in sentences).
    """

    @property
    def title(self) -> str:
        names = [about["encoder"] for about in self.settings["encoders"]]
        return f"{counted(len(names), 'encoder')}: {', '.join(names)}"

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        found = super().load(folder)
        return cls(with_level(found.table))  # type: ignore[call-arg]  # of the dataclasses below

    @property
    def stores(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (metadata(self.table, STORES) or {"stores": []})["stores"]
        return found


@dataclass(frozen=True, eq=False, repr=False)
class ComparedRetrieval(ComparedEncoders):
    """Finding translations by several encoders.

    table: rows as in Retrieval, with three columns in front: encoder, its family, and the output's depth (blocks passed
    / all blocks; `final` is at 1, as the last block is). Three more at the end, at level "mean": behind, how far the
    figure is below the best output of all encoders, and the ends of its interval, paired by resample.
    """

    table: pa.Table

    command = "retrieve"
    question = "Which encoder finds translations?"
    files: ClassVar = {"table": "compared.parquet"}
    key = "voxstrata_compared_retrieval"
    markdown = "compared.md"
    captions: ClassVar = {"recall_by_depth": "How many translations come first, by depth, beside chance"}
    brief = 2

    def finding(self) -> Finding:
        means, similarity, metric = self._means(), similarities_of(self.table)[0], telling_metrics(self.table)[0]
        encoders = [about["encoder"] for about in self.settings["encoders"]]
        best = [_best_of(rows[metric] for rows in means[name, similarity, "raw"].values()) for name in encoders]
        first = _best_of(best)
        ranked = sorted(zip(encoders, best, strict=True), key=lambda pair: -(pair[1]["value"] or 0.0))
        said = [f"{name} at {row['output']}: {_share_of(row)}" for name, row in ranked]
        by_chance = percent_text(first["chance"])
        answer = f"{'; '.join(said)} of the translations come first, by {similarity}. Chance is {by_chance}."
        value, low, high, chance = (in_hundred([row[n] for row in best]) for n in ("value", "low", "high", "chance"))
        up, at = f"{metric} (%), best layer", best.index(first)
        return Finding(answer, SmallCurve(up, encoders, value, low, high, chance, best=at, steps=True))

    def tables(self) -> list[TextTable]:
        means = self._means()
        first, *others = similarities_of(self.table)
        scores = distinct(self.table, "score")
        best = self._best(means, [(first, "raw")], "Best output of each encoder")
        every = [(s, score) for s in (first, *others) for score in scores]
        by_depth = [self._by_depth(means, similarity) for similarity in (first, *others)]
        return [best, encoder_table(self.settings), *by_depth, self._best(means, every, "Best outputs by every score")]

    def stored(self) -> list[TextTable]:
        metric = retrieval_metrics(self.table)[0]
        names = [
            "encoder",
            "family",
            "depth",
            "output",
            "similarity",
            "level",
            "source",
            "target",
            "value",
            "low",
            "high",
        ]
        names += ["chance", "queries", "candidates", "candidates_max"]
        raw = pc.and_(pc.equal(self.table["metric"], metric), pc.equal(self.table["score"], "raw"))
        title = f"{metric} at every level, as stored"
        shares = ("value", "low", "high", "chance")
        return [as_stored(self.table.filter(raw), title, names, shares=shares, of=len(self.table))]

    def figures(self) -> dict[str, Figure]:
        return {"recall_by_depth": plot_recall_by_depth(self.table, self.settings, self.title)}

    def _means(self) -> dict[tuple[str, str, str], dict[str, dict[str, _Row]]]:
        """Rows of the mean over directions: by encoder, similarity and score; then by output, and by metric."""
        found: dict[tuple[str, str, str], dict[str, dict[str, _Row]]] = {}
        for row in self.table.filter(pc.equal(self.table["level"], MEAN)).to_pylist():
            outputs = found.setdefault((row["encoder"], row["similarity"], row["score"]), {})
            outputs.setdefault(row["output"], {})[row["metric"]] = row
        return found

    def _best(self, means: Any, asked: list[tuple[str, str]], title: str) -> TextTable:
        """Of each encoder the output that is best by the first metric."""
        metric, *others = telling_metrics(self.table)
        body = []
        for similarity, score in asked:
            for about in self.settings["encoders"]:
                outputs = means[about["encoder"], similarity, score]
                name = max(outputs, key=lambda name: -1 if (v := outputs[name][metric]["value"]) is None else v)
                row = outputs[name][metric]
                rest = [in_percent(outputs[name][other]["value"]) for other in others]
                figures = [interval_text(row), interval_text(row, "behind"), *rest]
                hubness = number_text(outputs[name][SKEW], "value")
                front = [similarity, score] if len(asked) > 1 else []
                named = best_output(name, row)
                body.append([about["encoder"], *front, named, f"{row['depth']:.2f}", *figures, hubness])
        front = ["similarity", "score"] if len(asked) > 1 else []
        header = ["encoder", *front, "best output", "depth", metric, "behind the best", *others, "hubness"]
        by = f"By {asked[0][0]}. " if len(asked) == 1 else ""
        return TextTable(title, header, body, f"{by}{self._note()} {_CHOSEN}")

    def _by_depth(self, means: Any, similarity: str) -> TextTable:
        """One similarity's own score: all outputs of all encoders, and chance."""
        metrics = telling_metrics(self.table)
        body = []
        for about in self.settings["encoders"]:
            for output, rows in means[about["encoder"], similarity, "raw"].items():
                first, *rest = (rows[metric] for metric in metrics)
                figures = [
                    interval_text(first),
                    interval_text(first, "behind"),
                    *(in_percent(r["value"]) for r in rest),
                ]
                hubness = number_text(rows[SKEW], "value")
                body.append([about["encoder"], output, f"{first['depth']:.2f}", *figures, hubness])
        chance = [in_percent(r["chance"]) for r in (first, *rest)]
        body.append(["chance", "", "", chance[0], "", *chance[1:], number_text(rows[SKEW], "chance")])
        header = ["encoder", "output", "depth", metrics[0], "behind the best", *metrics[1:], "hubness"]
        return TextTable(f"{similarity}, every output", header, body, self._note())

    def _note(self) -> str:
        trivial = ", ".join(self.settings["only_translations"])
        note = f"Percent (hubness is not), mean over {conditions(self.table)}.{brackets(self.table)} Behind the best "
        note += "output of all encoders, paired by resample. Hubness: skewness of 10-occurrence."
        return note + (f" Without figures, since any answer is right: {trivial}." if trivial else "")


@dataclass(frozen=True, eq=False, repr=False)
class ComparedAlignment(ComparedEncoders):
    """Retrieval under controls by several encoders.

    table: rows as in Alignment, with three columns in front: encoder, its family, and the output's depth, all null for
    the retrievers "phonemes" and "durations", which are the same for all.
    """

    table: pa.Table

    command = "align"
    question = "What is left without sound, by encoder?"
    files: ClassVar = {"table": "compared_align.parquet"}
    key = "voxstrata_compared_align"
    markdown = "compared_align.md"
    captions: ClassVar = {
        "align_by_depth": "How many translations come first in whole and in controlled pools, by depth, beside chance"
    }
    brief = 2

    _COLUMNS: ClassVar = (
        ("all", RAW, POOL_ALL), ("means removed", CENTRED, POOL_ALL), ("unlike", RAW, POOL_UNLIKE),
        ("closest", RAW, POOL_CLOSEST),
    )  # fmt: skip

    def finding(self) -> Finding:
        means = self.table.filter((pc.field("level") == MEAN) & (pc.field("metric") == RECALL)).to_pylist()
        found = {(r["encoder"], r["system"], r["control"]): r for r in means if r["states"] == RAW and r["encoder"]}
        control, what = next(
            (
                (name, what)
                for name, what in _HARD
                if any(r["value"] is not None for k, r in found.items() if k[2] == name)
            ),
            (POOL_ALL, "of whole pools"),
        )
        encoders = [about["encoder"] for about in self.settings["encoders"]]
        best = [_best_of(r for (e, _, pool), r in found.items() if (e, pool) == (name, POOL_ALL)) for name in encoders]
        rows = [found[name, row["system"], control] for name, row in zip(encoders, best, strict=True)]
        said = [f"{name} at {row['system']}: {percent_text(row['value'], row['low'], row['high'])}"
                for name, row in zip(encoders, rows, strict=True)]  # fmt: skip
        answer = f"{'; '.join(said)} {what} come first. Chance is {percent_text(rows[0]['chance'])}."
        value, low, high, chance = (in_hundred([row[n] for row in rows]) for n in ("value", "low", "high", "chance"))
        first = rows.index(_best_of(rows))
        return Finding(answer, SmallCurve("recall@1 (%)", encoders, value, low, high, chance, best=first, steps=True))

    def tables(self) -> list[TextTable]:
        means = self.table.filter((pc.field("level") == MEAN) & (pc.field("metric") == RECALL)).to_pylist()
        found = {(r["encoder"], r["system"], r["states"], r["control"]): r for r in means}
        systems = list(dict.fromkeys((r["encoder"], r["system"], r["depth"]) for r in means))
        body = []
        for encoder, system, depth in systems:
            rows = [found.get((encoder, system, states, control)) for _, states, control in self._COLUMNS]
            cells = ["" if r is None else with_interval(r, ("value", "low", "high"), "z.1f", 100) for r in rows]
            body.append([encoder or "no encoder", system, "" if depth is None else f"{depth:.2f}", *cells])
        first = [found[(*systems[0][:2], states, control)] for _, states, control in self._COLUMNS]
        body.append(["pool", "", "", *map(pool_sizes, first)])
        body.append(["chance", "", "", *(in_percent(r["chance"]) for r in first)])
        header = ["encoder", "output", "depth", *(name for name, *_ in self._COLUMNS)]
        return [TextTable("recall@1, mean over directions", header, body, self._note()), encoder_table(self.settings)]

    def stored(self) -> list[TextTable]:
        return stored_means(self.table)

    def figures(self) -> dict[str, Figure]:
        return {"align_by_depth": plot_alignment_by_depth(self.table, self.settings, self.title)}

    def _note(self) -> str:
        s = self.settings
        intervals = f" In brackets: 95 % bootstrap intervals over {counted(s['bootstrap_groups'], 'group')}."
        return "\n".join(
            [
                f"recall@1 in %, by {s['similarity']}.{intervals if s['bootstrap_resamples'] else ''}",
                "- all: the pool holds one recording of every sentence; means removed: each frame less the mean of its "
                "speaker or language.",
                f"- unlike: only pairs that sound unlike (by {s['by']}); without a figure where no direction has "
                f"{s['smallest_pool']} of them.",
                f"- closest: among {s['closest']} non-translations that sound closest to the query, hard negatives.",
                "- The pools are the same for all encoders. `voxstrata align` on one store has every control.",
            ]
        )
