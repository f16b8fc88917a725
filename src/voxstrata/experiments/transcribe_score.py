"""Word and character error rates of transcripts, and the choice of an exit: made on one part, reported on another."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from voxstrata.errors import InputError, UsageError
from voxstrata.experiments.transcribe import NAMED, Transcripts, is_english
from voxstrata.exporters.early_exit import EarlyExit
from voxstrata.retrieval.bootstrap import RESAMPLES, Resamples, percentile_interval

DEV, TEST = "dev", "test"
ALL = "all"  # the unweighted mean over languages and scripts
NORMALIZERS = ("whisper", "light")
# Scripts written without spaces between words. Radford et al. 2022 (arXiv 2212.04356, appendix C) name Chinese,
# Japanese, Thai, Lao and Burmese; Khmer and Tibetan do as they do.
UNSPACED = frozenset({"CJK", "THAI", "LAO", "MYANMAR", "KHMER", "TIBETAN"})
NO_SCRIPT = "NONE"
Normalizer = Callable[[str], str]


@dataclass(frozen=True)
class Scoring:
    """What is measured. dev_share: of the groups, drawn by `seed`, on which the exit is chosen.

    normalizer: "whisper" is Whisper's own (English rules for English, the basic one for all else, which takes combining
    marks for spaces); "light" is NFKC, lower case, punctuation and symbols to spaces, marks kept.
    """

    normalizer: str = "whisper"
    dev_share: float = 0.5
    seed: int = 0
    resamples: int = RESAMPLES

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """One language and script, or all: the exit with the fewest errors on the development part, on the test part.

    rate, original, difference: error rates of the exit and of the whole encoder (k = L with LayerNorm) as fractions,
    and the first minus the second, each with (low, high), the 95 % percentile bootstrap over the test part's groups.
    """

    language: str
    script: str
    unit: str
    chosen: EarlyExit
    dev_rate: float
    rate: tuple[float, float, float]
    original: tuple[float, float, float]
    difference: tuple[float, float, float]
    utterances: int
    groups: int


def script_of(text: str) -> str:
    """The script of most letters by their Unicode names ("LATIN", "CYRILLIC", …); Han and kana are both "CJK"."""
    names = (unicodedata.name(c, "").split(" ")[0] for c in text if unicodedata.category(c)[0] == "L")
    found = Counter("CJK" if n in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO") else n for n in names)
    return found.most_common(1)[0][0] if found else NO_SCRIPT


def _scripts(rows: Sequence[Mapping[str, str | None]]) -> list[str]:
    """The script of each row's text; a text without letters ("42") has the commonest of its language."""
    own = [script_of(str(row["text"])) for row in rows]
    commonest: dict[str | None, Counter[str]] = {}
    for row, script in zip(rows, own, strict=True):
        if script != NO_SCRIPT:
            commonest.setdefault(row["language"], Counter())[script] += 1
    found = {language: counts.most_common(1)[0][0] for language, counts in commonest.items()}
    return [found.get(row["language"], s) if s == NO_SCRIPT else s for row, s in zip(rows, own, strict=True)]


def normalizer(kind: str, english: bool, folder: Path) -> Normalizer:
    """The normalizer of one language; English spellings are read from the checkpoint's normalizer.json."""
    if kind not in NORMALIZERS:
        raise UsageError(f"unknown normalizer {kind!r}; choose one of {', '.join(NORMALIZERS)}")
    if kind == "light":
        return _light
    if not english:
        basic: Normalizer = BasicTextNormalizer()
        return lambda text: basic(text).strip()
    file = folder / "normalizer.json"
    spellings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rules: Normalizer = EnglishTextNormalizer(spellings)
    return lambda text: rules(text).strip()


def _light(text: str) -> str:
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"\s+", " ", "".join(kept)).strip()


def split_groups(rows: Sequence[Mapping[str, str | None]], scoring: Scoring) -> list[str]:
    """The part of each row, "dev" or "test": whole groups (a row without group is its own), drawn by the seed.

    Raises UsageError for a share outside 0 … 1, InputError when a language is missing from one part.
    """
    if not 0 < scoring.dev_share < 1:
        raise UsageError(f"a development share of {scoring.dev_share}; give one between 0 and 1, like 0.5")
    groups = [group_of(row) for row in rows]
    names = sorted(set(groups))
    drawn = np.random.default_rng(scoring.seed).permutation(len(names))
    size = min(max(1, round(scoring.dev_share * len(names))), len(names) - 1)
    dev = {names[i] for i in drawn[:size]}
    parts = [DEV if g in dev else TEST for g in groups]
    for language in sorted({str(row["language"]) for row in rows}):
        here = Counter(p for p, row in zip(parts, rows, strict=True) if str(row["language"]) == language)
        if len(here) < 2:
            raise InputError(
                f"{language}: all {here.total()} utterances fall into the {next(iter(here))} part; choosing and "
                "reporting need both: give more groups of this language, or another share or seed"
            )
    return parts


def group_of(row: Mapping[str, str | None]) -> str:
    """The row's group, or its id where it has none; marked, so that the two never meet."""
    return f"group {row['group']}" if row.get("group") else f"id {row['id']}"


def references(
    rows: Sequence[Mapping[str, str | None]], scoring: Scoring, english: bool, folder: Path
) -> list[tuple[Normalizer, str]]:
    """The normalizer and the normalised text of each row.

    english: whether every text is English whatever the language says (translating). folder: of the checkpoint.
    Raises UsageError for an unknown normalizer, InputError for a text of which normalising leaves nothing.
    """
    both = {e: normalizer(scoring.normalizer, e, folder) for e in (False, True)}
    found = []
    for row in rows:
        norm = both[english or is_english(str(row["language"]))]
        found.append((norm, norm(str(row["text"]))))
    empty = [str(row["id"]) for row, (_, text) in zip(rows, found, strict=True) if not any(c.isalnum() for c in text)]
    if empty:
        more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        raise InputError(
            f"the text of {', '.join(empty[:NAMED])}{more} holds no letter or digit once normalised: nothing to score; "
            "correct it or leave the row out"
        )
    return found


def score(transcripts: Transcripts, parts: Sequence[str], scoring: Scoring, english: bool, folder: Path) -> pa.Table:
    """One row per utterance and exit: both texts, as they are and normalised, errors and lengths of the reference.

    parts: of each row of `transcripts`. Raises what `references` raises.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    expectations = references(transcripts.rows, scoring, english, folder)
    scripts = _scripts(transcripts.rows)
    for i, (row, part, script, (norm, expected)) in enumerate(
        zip(transcripts.rows, parts, scripts, expectations, strict=True)
    ):
        unit = "character" if script in UNSPACED else "word"
        for at, texts in transcripts.texts.items():
            heard = norm(texts[i])
            words, characters = jiwer.process_words(expected, heard), _characters(expected, heard, script)
            values = (
                row["id"], row["language"], script, group_of(row), part, at.after, at.final_norm, row["text"],
                texts[i], expected, heard, *_errors(words), *_errors(characters), unit,
            )  # fmt: skip
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return pa.table(columns, schema=SCHEMA)


SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("id", "language", "script", "group", "part")]
    + [("after", pa.int32()), ("final_norm", pa.bool_())]
    + [(n, pa.string()) for n in ("reference", "transcript", "reference_normalized", "transcript_normalized")]
    + [(n, pa.int32()) for n in ("word_errors", "words", "character_errors", "characters")]
    + [("unit", pa.string())]
)


def _characters(expected: str, heard: str, script: str) -> Any:
    if script in UNSPACED:  # where a space stands is a matter of taste there
        expected, heard = expected.replace(" ", ""), heard.replace(" ", "")
    return jiwer.process_characters(expected, heard)


def _errors(aligned: Any) -> tuple[int, int]:
    """Substitutions, deletions and insertions, and the length of the reference."""
    wrong = aligned.substitutions + aligned.deletions
    return wrong + aligned.insertions, wrong + aligned.hits


class Rates:
    """Error rates of one part by language and script, for every exit, with bootstrap over groups."""

    def __init__(self, table: pa.Table, part: str, scoring: Scoring) -> None:
        rows = [r for r in table.to_pylist() if r["part"] == part]
        if not rows:
            raise InputError(f"no utterance of the {part} part was transcribed; see the failures")
        pairs = sorted({(r["after"], r["final_norm"]) for r in rows})
        self.exits = [EarlyExit(*pair) for pair in pairs]
        self.scopes = sorted({(r["language"], r["script"]) for r in rows})
        self.units = {(r["language"], r["script"]): r["unit"] for r in rows}
        self._resamples = Resamples([r["group"] for r in rows], scoring.resamples, scoring.seed)
        self._counts: dict[tuple[str, str], tuple[NDArray[np.float64], list[str]]] = {}
        for scope in self.scopes:
            mine: dict[str, list[dict[str, Any]]] = {}
            for r in rows:
                if (r["language"], r["script"]) == scope:
                    mine.setdefault(r["id"], []).append(r)
            place = {at: i for i, at in enumerate(self.exits)}
            counts = np.zeros((len(mine), len(self.exits), 4))
            for n, utterance in enumerate(mine.values()):
                for r in utterance:
                    counts[n, place[EarlyExit(r["after"], r["final_norm"])]] = [
                        r["word_errors"], r["words"], r["character_errors"], r["characters"]
                    ]  # fmt: skip
            self._counts[scope] = counts, [u[0]["group"] for u in mine.values()]

    def utterances(self, scope: tuple[str, str]) -> tuple[int, int]:
        """Number of utterances and of groups."""
        scopes = self.scopes if scope[0] == ALL else [scope]
        groups = {g for s in scopes for g in self._counts[s][1]}
        return sum(len(self._counts[s][1]) for s in scopes), len(groups)

    def rate(self, scope: tuple[str, str], unit: str | None = None) -> NDArray[np.float64]:
        """Errors over reference length, (exits,); unit None is the scope's own, words or characters."""
        if scope[0] == ALL:
            return np.asarray(np.mean([self.rate(s, unit) for s in self.scopes], axis=0))
        totals = self._counts[scope][0].sum(axis=0)
        a = 0 if (unit or self.units[scope]) == "word" else 2
        return np.asarray(totals[:, a] / totals[:, a + 1])

    def samples(self, scope: tuple[str, str]) -> NDArray[np.float64]:
        """`rate` in every resample, (resamples, exits); NaN where a resample drew no group of the scope."""
        if scope[0] == ALL:
            return np.asarray(np.mean([self.samples(s) for s in self.scopes], axis=0))
        counts, groups = self._counts[scope]
        a = 0 if self.units[scope] == "word" else 2
        means = self._resamples.means(counts[:, :, a : a + 2].reshape(len(counts), -1), groups)
        return np.asarray(means[:, 0::2] / means[:, 1::2])


def rates_table(parts: Sequence[tuple[str, Rates]]) -> pa.Table:
    """One row per part, language, script and exit: WER, CER, and the rate of the scope's unit with its interval."""
    rows = []
    for part, rates in parts:
        for scope in [*rates.scopes, (ALL, ALL)]:
            low, high = percentile_interval(rates.samples(scope))
            wer, cer, rate = rates.rate(scope, "word"), rates.rate(scope, "character"), rates.rate(scope)
            utterances, groups = rates.utterances(scope)
            rows += [
                {"part": part, "language": scope[0], "script": scope[1], "after": at.after, "final_norm": at.final_norm,
                 "unit": rates.units.get(scope, "both"), "rate": rate[i], "low": low[i], "high": high[i],
                 "wer": wer[i], "cer": cer[i], "utterances": utterances, "groups": groups}
                for i, at in enumerate(rates.exits)
            ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def choose(dev: Rates, test: Rates) -> list[Choice]:
    """For every language and script, and for all: the exit chosen on `dev`, as it does on `test`.

    Of exits that tie, the deepest is taken, then the one with the LayerNorm: the nearest to the original. A language
    and script that either part lacks is left out.
    """
    choices = []
    original = len(test.exits) - 1  # sorted by depth, True after False
    for scope in [*(s for s in test.scopes if s in dev.scopes), (ALL, ALL)]:
        errors = dev.rate(scope)
        best = max(np.flatnonzero(errors == errors.min()))
        values, samples = test.rate(scope), test.samples(scope)
        columns = np.stack([samples[:, best], samples[:, original], samples[:, best] - samples[:, original]], axis=1)
        ends = percentile_interval(columns)
        points = (values[best], values[original], values[best] - values[original])
        rate, whole, difference = ((float(p), float(ends[0, i]), float(ends[1, i])) for i, p in enumerate(points))
        choices.append(
            Choice(
                *scope, test.units.get(scope, "both"), test.exits[best], float(errors[best]), rate, whole, difference,
                *test.utterances(scope),
            )
        )  # fmt: skip
    return choices
