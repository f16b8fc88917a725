"""What the comparison of words found: AUC of synonyms and near-homophones, and every pair behind them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.figures import Figure
from voxstrata.base.finding import Finding, SmallCurve
from voxstrata.base.plain import counted
from voxstrata.base.result import Result, metadata
from voxstrata.base.tables import TextTable, as_stored, with_interval
from voxstrata.encoders.outputs import depth_order
from voxstrata.studies.words.figures import plot_words
from voxstrata.studies.words.pairs import NEAR_HOMOPHONES, SYNONYMS, WORD_KINDS
from voxstrata.studies.words.table import EVERY_LANGUAGE, WORD_CONTROLS, WORD_FIELDS, WORD_SIMILARITIES

FAILURES = "voxstrata_words_failures"  # in the table's metadata: why recordings could not be read, by id
_SHOWN = 15  # pairs of either kind in the text


@dataclass(frozen=True, eq=False, repr=False)
class WordComparison(Result):
    """How close synonyms and near-homophones of two languages are, beside random pairs.

    table: one row per (output, similarity, kind, source, target), columns as in WORDS_SCHEMA: the AUC of how
    much closer than random pairs of the same two languages the pairs are, its bootstrap interval over meanings (`auc`),
    and how many pairs, random pairs and meanings that is made of. Both languages are "all" in the rows over all pairs
    of languages. Rows without output are controls: what closeness in phonetic distance ("phonetic"), or in the
    logarithm of the duration ("duration"), gives alone.
    pairs: every pair that was compared: kind, both words (x_language, x_form, x_meaning, x_ipa, y_language, …),
    phonetic distance, and scores ("layer_06 seqsim_f1").
    """

    table: pa.Table
    pairs: pa.Table

    command = "words"
    question = "Are words near by meaning or by sound?"
    files: ClassVar = {"table": "words.parquet", "pairs": "word_pairs.parquet"}
    earlier: ClassVar = {
        "table": {"language_a": "source", "language_b": "target"},
        "pairs": {f"{what}_{old}": f"{new}_{what}" for old, new in ("ax", "by") for what in WORD_FIELDS},
    }
    beside = ("words.zarr",)
    key = "voxstrata_words"
    markdown = "words.md"
    captions: ClassVar = {"words": "How often a pair is nearer than a random one (AUC), by layer; chance is 0.5"}

    @property
    def failures(self) -> Mapping[str, str]:
        """Why recordings could not be read, by utterance id."""
        return metadata(self.table, FAILURES) or {}

    @property
    def title(self) -> str:
        return f"{self.store['model']['checkpoint']}: words" if self.store else "words"

    def finding(self) -> Finding:
        """Of the output at which synonyms are nearest."""
        found = [r for r in self._over_all_languages() if r["output"] and r["similarity"] == WORD_SIMILARITIES[0]]
        rows = {(r["output"], r["kind"]): r for r in found}
        outputs = depth_order(output for output, _ in rows)
        alike = [rows[output, SYNONYMS] for output in outputs]
        best = max(alike, key=lambda row: float(row["auc"]))
        parts = [
            f"{_shown(kind)} {with_interval(rows[best['output'], kind], ('auc', 'low', 'high'), '.3f')}"
            for kind in WORD_KINDS
        ]
        answer = (
            f"{best['output']}: against random pairs, AUC of {' and of '.join(parts)}, by {WORD_SIMILARITIES[0]}. "
            "Chance is 0.5."
        )
        value, low, high, chance = ([row[name] for row in alike] for name in ("auc", "low", "high", "chance"))
        return Finding(
            answer, SmallCurve("AUC of synonyms", outputs, value, low, high, chance, best=alike.index(best), top=1)
        )

    def tables(self) -> list[TextTable]:
        header = ["output", *(f"{_shown(kind)} {s}" for kind in WORD_KINDS for s in WORD_SIMILARITIES)]
        found = self._over_all_languages()
        shown = [with_interval(row, ("auc", "low", "high"), ".3f") for row in found]
        known = {(r["output"], r["similarity"], r["kind"]): cell for r, cell in zip(found, shown, strict=True)}
        rows = [
            [output, *(known[output, s, kind] for kind in WORD_KINDS for s in WORD_SIMILARITIES)]
            for output in depth_order(key[0] for key in known if key[0] is not None)
        ]
        for control in WORD_CONTROLS:
            cells = [cell for kind in WORD_KINDS for cell in (known[None, control, kind], "")]
            rows.append([f"({control} alone)", *cells])
        intervals = " In brackets: 95 % bootstrap intervals over meanings." if self.settings["bootstrap"] else ""
        note = (
            f"{self._basis()}. Each pair is compared with random pairs of its own two languages. Synonyms and random "
            f"pairs sound unlike, near-homophones alike: {self._thresholds()}.{intervals}"
        )
        answer = TextTable("AUC against random pairs, chance 0.5", header, rows, note)
        listed = {NEAR_HOMOPHONES: "the closest in sound", SYNONYMS: "in the order of the list"}
        return [answer, *(self._listed(kind, order) for kind, order in listed.items())]

    def stored(self) -> list[TextTable]:
        whole, has_output = pc.equal(self.table["source"], EVERY_LANGUAGE), pc.is_valid(self.table["output"])
        names = ["output", "similarity", "kind", "auc", "low", "high", "chance", "pairs", "random_pairs", "meanings"]
        outputs = self.table.filter(pc.and_(whole, has_output))
        # The controls have no output: what they go by stands in the place of the similarity.
        controls = self.table.filter(pc.and_(whole, pc.invert(has_output)))
        two = self.table.filter(pc.invert(whole))
        return [
            as_stored(outputs, "AUC against random pairs, all pairs of languages", names),
            as_stored(controls, "The same by sound or duration alone", names[1:]),
            as_stored(two, "AUC of every two languages, as stored", of=len(self.table)),
        ]

    def figures(self) -> dict[str, Figure]:
        title = [f"Near by meaning, or by sound? {self.title}", self._basis(), f"alike, unlike: {self._thresholds()}"]
        return {"words": plot_words(self.table, title)}

    def _over_all_languages(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table.filter(pc.equal(self.table["source"], EVERY_LANGUAGE)).to_pylist()
        return rows

    def _basis(self) -> str:
        """Words, languages, who spoke, and how many pairs."""
        settings = self.settings
        whole = {r["kind"]: r for r in self._over_all_languages() if r["output"]}
        pairs = [
            f"{counted(whole[k]['pairs'], _shown(k)[:-1])} of {counted(whole[k]['meanings'], 'meaning')}"
            for k in WORD_KINDS
        ]
        drawn = counted(max(row["random_pairs"] for row in whole.values()), "random pair")
        spoken = settings["spoken"]
        speaker = f"spoken by espeak-ng ({spoken['variant']})" if spoken else "recorded"
        languages = ", ".join(settings["languages"])
        return f"{counted(settings['words'], 'word')} ({languages}), {speaker}; {', '.join(pairs)}, {drawn}"

    def _thresholds(self) -> str:
        """What sounds alike and unlike."""
        s = self.settings
        return (
            f"phonetic distance ≤ {s['near_distance']:.3f}, or ≥ {s['far_distance']:.3f} (quantiles {s['near']:g} and "
            f"{s['far']:g} of words of different meaning)"
        )

    def _listed(self, kind: str, order: str) -> TextTable:
        """The first pairs of a kind, near-homophones by distance."""
        pairs = self.pairs.filter(pc.equal(self.pairs["kind"], kind))
        if kind == NEAR_HOMOPHONES:
            pairs = pairs.sort_by("phonetic_distance")
        body = []
        for r in pairs.slice(0, _SHOWN).to_pylist():
            words = [f"{r[f'{s}_form']} ({r[f'{s}_language']}, {r[f'{s}_ipa']}, “{r[f'{s}_meaning']}”)" for s in "xy"]
            body.append([*words, f"{r['phonetic_distance']:.3f}"])
        more = f"… {len(pairs) - _SHOWN} more in {self.files['pairs']}" if len(pairs) > _SHOWN else ""
        return TextTable(f"{_shown(kind).capitalize()}, {order}", ["word", "other word", "distance"], body, more)


def _shown(kind: str) -> str:
    return kind.replace("_", "-")
