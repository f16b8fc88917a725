"""How alike the wrong words of translations sound to what was said, by exit, as one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve, in_hundred, percent_text
from voxstrata.base.result import Result
from voxstrata.base.tables import TextTable, as_stored, in_percent, with_interval
from voxstrata.early_exit.exits import MEAN_OF_LANGUAGES, exit_name
from voxstrata.early_exit.figures import by_language, draw_by_norm, intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WRONG, RIGHT, MISSED = "wrong", "right", "missed"  # kinds of words: see `echo`
NULL_SENTENCES = 20  # that a word is compared with, beside the one that was said
_SHOWN = 60  # words of a report
_WORDS = {WRONG: "wrong words", MISSED: "words that should have stood there"}


@dataclass(frozen=True, eq=False, repr=False)
class WrongWords(Result):
    """Whether wrong words sound like what was said.

    table: a row per language, exit and kind of word, and for the mean over languages (ECHO_RATES_SCHEMA). words: every
    word beside what was said (ECHO_SCHEMA).
    """

    table: pa.Table
    words: pa.Table

    command = "early-exit sweep"
    question = "Do wrong words sound like what was said?"
    files: ClassVar = {"table": "wrong_words.parquet", "words": "words_heard.parquet"}
    key = "voxstrata"
    markdown = "wrong_words.md"
    captions: ClassVar = {"wrong_words": "How often wrong words sound like what was said, by exit, beside chance"}
    folder: ClassVar = "sound"  # within the sweep's

    @property
    def store(self) -> None:
        """None: a sweep names its store itself."""

    @property
    def title(self) -> str:
        return f"Wrong words of translations at early exits of {self.settings['checkpoint']}, by their sound"

    def finding(self) -> Finding | None:
        """Of the whole encoder, over all languages."""
        rows = [r for r in self.table.to_pylist() if (r["language"], r["norm"]) == (MEAN_OF_LANGUAGES, "with")]
        wrong = [r for r in rows if r["kind"] == WRONG]
        if not wrong or wrong[-1]["closer"] is None:
            return None
        last = wrong[-1]
        missed = next(r for r in rows if r["kind"] == MISSED and r["after"] == last["after"])
        answer = (
            f"With the whole encoder {percent_text(last['closer'], last['low'], last['high'])} of the wrong words are "
            "closer in sound to the sentence that was said than to another one, of the words that should have stood "
            f"there {percent_text(missed['closer'])}. Chance is 50 %."
        )
        value, low, high = (in_hundred([r[name] for r in wrong]) for name in ("closer", "low", "high"))
        names, half = [str(r["after"]) for r in wrong], [50.0] * len(wrong)
        return Finding(answer, SmallCurve("wrong words that are closer (%), by block k", names, value, low, high, half))

    def tables(self) -> list[TextTable]:
        rows = []
        cells: dict[tuple[str, str], dict[str, Any]] = {}
        for r in self.table.to_pylist():
            cells.setdefault((r["language"], exit_name(r["after"], r["norm"])), {})[r["kind"]] = r
        for (language, at), kinds in cells.items():
            wrong, others = kinds[WRONG], (kinds[MISSED], kinds[RIGHT])
            closer = with_interval(wrong, ["closer", "low", "high"], ".1f", 100)
            beyond = with_interval(wrong, ["beyond_missed", "beyond_low", "beyond_high"], "+.1f", 100)
            less = [in_percent(r["closer"]) for r in others]
            rows.append([language, at, f"{wrong['words']} ({wrong['groups']})", closer, *less, beyond])
        header = ["language", "k", "words (groups)", "wrong", "missed", "right", "wrong - missed"]
        alike = TextTable("How often a word is closer in sound to what was said", header, rows, self._explanation())
        names = ["language", "after", "norm", "kind", "words", "recordings", "groups", "distance", "null", "closer"]
        names += ["foreign_script"]
        return [alike, as_stored(self.table, "All kinds of words, as stored", names, shares=("closer",))]

    def stored(self) -> list[TextTable]:
        wrong = self.words.filter(pc.equal(self.words["kind"], WRONG)).sort_by("distance")
        names = ["id", "after", "norm", "word", "ipa", "nearest", "distance", "null", "closer"]
        title = "The wrong words that sound most like what was said"
        return [as_stored(wrong.slice(0, _SHOWN), title, names, of=len(wrong))]

    def _explanation(self) -> str:
        text = (
            "In %: how often a word is closer in sound to the nearest word of the sentence that was said than to that "
            f"of another sentence of its language ({NULL_SENTENCES} nearest in length, other groups); 50 is chance. "
            "wrong: substituted or inserted words; missed: those of the reference that should have stood there; right: "
            "words of both. In brackets 95 % bootstrap intervals over groups. A word counts once in a recording. "
            "'wrong - missed' above 0: wrong words sound like what was said beyond what names and loan words explain. "
            f"'{MEAN_OF_LANGUAGES}' is the mean of languages. Sound: IPA of the texts by espeak-ng (English voice for "
            "the translation), distance over PanPhon's features by the longer word; nobody has listened."
        )
        return "\n".join([text, *(f"- {note}" for note in self.settings["sound_notes"])])

    def figures(self) -> dict[str, Figure]:
        """Wrong words beside missed ones by k, a panel for each language, with intervals and chance."""
        rows = [{**r, "script": "", "utterances": r["recordings"]} for r in self.table.to_pylist()]

        def draw(axes: Axes, mine: Sequence[Mapping[str, Any]]) -> None:
            for kind, names in ((WRONG, ("closer", "low", "high")), (MISSED, ("closer",))):
                of = [r for r in mine if r["kind"] == kind]
                draw_by_norm(axes, rows, of, names, f"{_WORDS[kind]}, ", hollow=kind == MISSED)
            axes.axhline(50, color="black", lw=0.8, ls=":", label="chance")
            axes.set_ylim(-2, 102)
            axes.set_ylabel("% closer to what was said:\nup is more alike", fontsize=9)

        whose = f"{self.settings['checkpoint']} on {self.settings['corpus']}"
        title = f"Do wrong words sound like what was said? {whose}{intervals(rows, 'low')}"
        return {"wrong_words": by_language(rows, draw, title)}
