"""Errors of transcripts, utterance by utterance, and the two parts: one to choose an exit on, one to report it on."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow as pa

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.tables import first_few
from voxstrata.early_exit.decoding import Transcripts, is_english
from voxstrata.early_exit.exits import DEV, TEST
from voxstrata.early_exit.normalization import Normalizer, normalizer
from voxstrata.evaluation.bootstrap import RESAMPLES

# Scripts written without spaces between words. Radford et al. 2022 (arXiv 2212.04356, appendix C) name Chinese,
# Japanese, Thai, Lao and Burmese; Khmer and Tibetan do as they do.
UNSPACED = frozenset({"CJK", "THAI", "LAO", "MYANMAR", "KHMER", "TIBETAN"})
NO_SCRIPT = "NONE"


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


def script_of(text: str) -> str:
    """The script of most letters by their Unicode names ("LATIN", "CYRILLIC", …); Han and kana are both "CJK"."""
    names = (unicodedata.name(c, "").split(" ")[0] for c in text if unicodedata.category(c)[0] == "L")
    found = Counter("CJK" if n in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO") else n for n in names)
    return found.most_common(1)[0][0] if found else NO_SCRIPT


def scripts_of(rows: Sequence[Mapping[str, str | None]]) -> dict[str, tuple[str, dict[str, int]]]:
    """By language: the script that most of its texts are in, and how many texts are in each other one.

    Texts without letters ("42") have no say. Ties: the script whose name comes first.
    """
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(str(row["language"]), Counter()).update([script_of(str(row["text"]))])
    found = {}
    for language, held in counts.items():
        held.pop(NO_SCRIPT, None)
        ranked = sorted(held, key=lambda script: (-held[script], script)) or [NO_SCRIPT]
        found[language] = ranked[0], {script: held[script] for script in ranked[1:]}
    return found


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
        raise InputError(
            f"the text of {first_few(empty)} holds no letter or digit once normalised: nothing to score; correct it or "
            "leave the row out"
        )
    return found


def score(transcripts: Transcripts, parts: Sequence[str], scoring: Scoring, english: bool, folder: Path) -> pa.Table:
    """One row per utterance and exit: both texts, as they are and normalised, errors and lengths of the reference.

    parts: of each row of `transcripts`. script and unit are the language's (`scripts_of`), those of a stray text in
    another script, too. Raises what `references` raises.
    """
    rows = []
    expectations = references(transcripts.rows, scoring, english, folder)
    scripts = scripts_of(transcripts.rows)
    for i, (row, part, (norm, expected)) in enumerate(zip(transcripts.rows, parts, expectations, strict=True)):
        script, _ = scripts[str(row["language"])]
        unit = "character" if script in UNSPACED else "word"
        for at, heard in transcripts.texts.items():
            found = heard[i]
            transcript = norm(found.text)
            words, characters = jiwer.process_words(expected, transcript), _characters(expected, transcript, script)
            rows.append((
                row["id"], row["language"], script, group_of(row), part, at.after, at.norm, row["text"],
                found.text, expected, transcript, *_errors(words), *_errors(characters), unit,
                *(getattr(found, name) for name in DECODED.names),
            ))  # fmt: skip
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * len(TRANSCRIPT_SCHEMA)
    return pa.table(columns, schema=TRANSCRIPT_SCHEMA)


# of `Transcript`, beside its text
DECODED = pa.schema([
    ("cut", pa.string()), ("tokens", pa.int32()), ("ended", pa.bool_()), ("looped", pa.bool_()),
    ("avg_logprob", pa.float64()), ("no_speech", pa.float64()), ("temperature", pa.float64()),
])  # fmt: skip
TRANSCRIPT_SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("id", "language", "script", "group", "part")]
    + [("after", pa.int32()), ("norm", pa.string())]
    + [(n, pa.string()) for n in ("reference", "transcript", "reference_normalized", "transcript_normalized")]
    + [(n, pa.int32()) for n in ("word_errors", "words", "character_errors", "characters")]
    + [("unit", pa.string())]
    + list(DECODED)
)


def _characters(expected: str, transcript: str, script: str) -> Any:
    if script in UNSPACED:  # where a space stands is a matter of taste there
        expected, transcript = expected.replace(" ", ""), transcript.replace(" ", "")
    return jiwer.process_characters(expected, transcript)


def _errors(aligned: Any) -> tuple[int, int]:
    """Substitutions, deletions and insertions, and the length of the reference."""
    wrong = aligned.substitutions + aligned.deletions
    return wrong + aligned.insertions, wrong + aligned.hits
