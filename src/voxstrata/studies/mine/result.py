"""What mining found: pairs, the highest score first, and how many of them are right from which threshold on."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve, in_hundred, percent_text
from voxstrata.base.plain import counted
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored, distinct, in_percent, with_interval
from voxstrata.evaluation.bootstrap import LEVEL
from voxstrata.retrieval.mining import PLAIN_SCORE
from voxstrata.studies.mine.figures import plot_mining

ALL_GROUPS, DEV_GROUPS, TEST_GROUPS = "all", "development", "test"
_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int64()
PAIRS_SCHEMA = pa.schema(
    [(name, _TEXT) for name in ("output", "x", "y")]
    + [(name, _NUMBER) for name in ("score", "similarity")]
    + [(name, pa.int32()) for name in ("rank", "back_rank")]
    + [(name, _NUMBER) for name in ("mean", "back_mean")]
    + [(name, _TEXT) for name in ("x_language", "y_language", "x_group", "y_group")]
)
CURVE_SCHEMA = pa.schema(
    [(name, _TEXT) for name in ("output", "score", "part")]
    + [("chosen", pa.bool_()), ("threshold", _NUMBER)]
    + [(name, _COUNT) for name in ("pairs", "judged", "correct", "possible")]
    + [(name, _NUMBER) for name in ("precision", "precision_low", "precision_high", "chance")]
    + [(name, _NUMBER) for name in ("recall", "recall_low", "recall_high", "f1", "average_precision")]
)
_SHARES = 10  # rows of a curve that are shown
_CURVE = tuple(n for n in CURVE_SCHEMA.names if n.startswith(("precision", "recall", "chance", "f1", "average")))


@dataclass(frozen=True, eq=False, repr=False)
class MinedPairs(Result):
    """Mined pairs, and how right they are where the groups of both utterances are known.

    table: one row per pair, columns as in PAIRS_SCHEMA, by output, the highest score first. x, y: ids. similarity: what
    the score is made of. rank: of y among the nearest of x, back_rank of x among those of y, null where it is not on
    that list. mean, back_mean: mean similarity of the k nearest of x and of y.

    curve: one row per (output, score, threshold), columns as in CURVE_SCHEMA. score: the one asked for, and beside it
    "raw", the control: pairs mined in the same way by the similarity itself. pairs: with at least that threshold;
    judged, those of which both groups are known; correct, those whose groups are equal; possible, how many correct ones
    there could be, each utterance in one pair. precision: correct / judged; recall: correct / possible; f1 of both.
    average_precision: of all mined pairs, the sum of the precision at each right one / possible. chance: precision of
    pairs drawn at random. chosen: whether the threshold was given or chosen; it has a row for each part: "all", and
    where it was chosen for its F1 "development", on which it was, and "test", the other groups. part: pairs by the
    group of their first.
    *_low, *_high: 95 % percentile intervals over resamples of the groups.
    """

    table: pa.Table
    curve: pa.Table

    command = "mine"
    question = "Which pairs are translations?"
    files: ClassVar = {"table": "pairs.parquet", "curve": "curve.parquet"}
    key = "voxstrata_mining"
    markdown = "mine.md"
    captions: ClassVar = {"mined": "How many mined pairs are right, beside chance"}

    @property
    def title(self) -> str:
        s = self.settings
        x, y = (f"{', '.join(s[f'{n}_languages']) or n} ({s[f'{n}_utterances']})" for n in "xy")
        sets = f"{x} with itself" if s["one_set_with_itself"] else f"{x} and {y}"
        model = f"{self.store['model']['checkpoint']} on {s.get('store', 'a store')}: " if self.store else ""
        return f"{model}{sets}, {s['score']} of {s['similarity']}, k = {s['neighbours']}, {s['strategy']}"

    def finding(self) -> Finding:
        """Of the output whose pairs are best."""
        outputs = distinct(self.curve, "output")
        kept = {output: self._kept(output) for output in outputs}
        known = [output for output in outputs if kept[output][1]["precision"] is not None]
        if not known:
            pairs = ", ".join(f"{output} {kept[output][0]['pairs']}" for output in outputs)
            return Finding(f"Pairs by output: {pairs}. {self._unjudged}")
        best = max(known, key=lambda output: float(kept[output][0]["average_precision"] or 0))
        picked, row = kept[best]
        right, found = (
            percent_text(*(row[f"{n}{end}"] for end in ("", "_low", "_high"))) for n in ("precision", "recall")
        )
        answer = (
            f"{best}: of {counted(picked['pairs'], 'pair')} {right} are right, {found} of all right pairs that there "
            f"are. Chance is {percent_text(row['chance'])}."
        )
        points = [r for r in self._rows(best, self.settings["score"]) if not r["chosen"] and r["recall"] is not None]
        points = sorted(points, key=lambda r: float(r["recall"]))[:: max(1, len(points) // 12)]
        names = [f"{100 * r['recall']:.0f} % found" for r in points]
        value, low, high, chance = (
            in_hundred([r[name] for r in points]) for name in ("precision", "precision_low", "precision_high", "chance")
        )
        return Finding(answer, SmallCurve("precision (%) by how many are found", names, value, low, high, chance))

    def _kept(self, output: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The row of the pairs that were kept, and the row that says how right they are."""
        rows = self._rows(output, self.settings["score"])
        picked = [row for row in rows if row["chosen"]] or rows[-1:]
        return picked[0], picked[-1]  # the last is of the test groups, where there are any

    def tables(self) -> list[TextTable]:
        outputs = distinct(self.curve, "output")
        found = [self._by_output(outputs)]
        return [*found, self._shares(outputs[0])] if len(outputs) == 1 else found

    def stored(self) -> list[TextTable]:
        first = self.table.slice(0, 60)
        return [
            as_stored(first, "Pairs, as stored", of=len(self.table)),
            as_stored(self.curve, "Precision and recall by threshold, as stored", shares=_CURVE, of=len(self.curve)),
        ]

    @property
    def pictures(self) -> dict[str, str]:
        return dict(self.captions) if pc.count(self.curve["precision"]).as_py() else {}

    def figures(self) -> dict[str, Figure]:
        return {name: plot_mining(self.curve, self.title, self.settings) for name in self.pictures}

    def _rows(self, output: str, score: str) -> list[dict[str, Any]]:
        return [row for row in self.curve.to_pylist() if (row["output"], row["score"]) == (output, score)]

    def _by_output(self, outputs: list[str]) -> TextTable:
        """A row for each output: the pairs that were kept."""
        body = []
        for output in outputs:
            rows, plain = self._rows(output, self.settings["score"]), self._rows(output, PLAIN_SCORE)
            picked, judged = self._kept(output)
            cells = [*_figures(judged), *(in_percent(r[0]["average_precision"]) for r in (rows, plain))]
            body.append([output, _score(picked["threshold"]), picked["pairs"], *cells])
        header = ["output", "score ≥", "pairs", "precision", "recall", "AP", "raw AP"]
        return TextTable("Mined pairs", header, body, self._note())

    def _shares(self, output: str) -> TextTable:
        rows = [row for row in self._rows(output, self.settings["score"]) if not row["chosen"]]
        rows = rows[::-1][:: max(1, len(rows) // _SHARES)][::-1]
        body = [[_score(r["threshold"]), r["pairs"], *_figures(r), in_percent(r["f1"])] for r in rows]
        return TextTable(f"{output}, by threshold", ["score ≥", "pairs", "precision", "recall", "F1"], body)

    @property
    def _unjudged(self) -> str:
        why = "No pair has two known groups" if self.settings["shared_groups"] else "No group is on both sides"
        return f"{why}, so nothing says how many pairs are right."

    def _note(self) -> str:
        s, row = self.settings, self.curve.slice(0, 1).to_pylist()[0]
        if not s["shared_groups"]:
            return self._unjudged
        note = (
            f"In percent, of pairs whose groups are known; {counted(row['possible'], 'right pair')} possible of "
            f"{counted(s['shared_groups'], 'group')} on both sides. Chance: precision {percent_text(row['chance'])}, "
            "pairs drawn at random. AP: average precision of all mined pairs, whatever the threshold; raw AP: of "
            "those mined by the similarity itself."
        )
        if s["development_groups"]:
            note += (
                f" The threshold has the highest F1 on {counted(s['development_groups'], 'group')}; precision and "
                "recall are of the others."
            )
        if s["bootstrap_resamples"]:
            note += f" In brackets: {100 * LEVEL:.0f} % bootstrap intervals over groups."
        return note


def _figures(row: dict[str, Any]) -> list[str]:
    return [with_interval(row, (n, f"{n}_low", f"{n}_high"), ".1f", 100) for n in ("precision", "recall")]


def _score(value: float) -> str:
    return f"{value:.4f}"
