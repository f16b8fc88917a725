"""Errors of transcripts, utterance by utterance, and the two parts: one to choose an exit on, one to report it on."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow as pa

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.base.tables import first_few
from voxstrata.early_exit.decoding import Transcripts, is_english
from voxstrata.early_exit.exits import DEV, ERROR_KINDS, TEST
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
    unit: what errors are counted in: "word", "character", or "auto", see `units_of`.
    choose_by: the errors that choose the exit: of transcripts with their loops "cut", or "plain", as they are.
    """

    normalizer: str = "whisper"
    dev_share: float = 0.5
    seed: int = 0
    resamples: int = RESAMPLES
    unit: str = "auto"
    choose_by: str = "cut"


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
                f"{language}: {counted(here.total(), 'utterance, which falls', 'utterances, which all fall')} into the "
                f"{next(iter(here))} part; choosing and reporting need both: give more groups of this language, or "
                "another share or seed"
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
    empty = [str(row["id"]) for row, (_, text) in zip(rows, found, strict=True) if not _says_something(text)]
    if empty:
        raise InputError(
            f"the text of {first_few(empty)} holds no letter or digit once normalised: nothing to score; correct it or "
            "leave the row out"
        )
    return found


def units_of(
    rows: Sequence[Mapping[str, str | None]], scoring: Scoring, foreign: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """By language the unit that errors are counted in, "word" or "character"; and why, where that needs saying.

    "auto" takes characters where the script has no spaces, and for `foreign` languages, which the model has no name
    for. It has seen none of their spelling and writes what it hears as a language it knows would, so nearly every word
    is wrong by a letter. Raises UsageError for an unknown unit.
    """
    chosen("unit", [scoring.unit], ("auto", "word", "character"))
    chosen("choice", [scoring.choose_by], ("cut", "plain"))
    scripts = {language: script for language, (script, _) in scripts_of(rows).items()}
    if scoring.unit != "auto":
        return dict.fromkeys(scripts, scoring.unit), {}
    spaced = {language for language, script in scripts.items() if script not in UNSPACED}
    why = dict.fromkeys(spaced & {*foreign}, "the model has no such language, so it knows none of its spelling")
    return {language: "word" if language in spaced - {*why} else "character" for language in scripts}, why


def score(
    transcripts: Transcripts,
    parts: Sequence[str],
    scoring: Scoring,
    english: bool,
    folder: Path,
    units: Mapping[str, str],
) -> pa.Table:
    """One row per utterance and exit: the texts, as they are and normalised, and what is counted (TRANSCRIPT_SCHEMA).

    parts: of each row of `transcripts`. units: by language, see `units_of`. script and unit are the language's, for a
    stray text in another script, too. Errors are apart by kind, for words and for characters; `cut_` ones are of the
    transcript with its loop cut. empty: nothing is left once normalised. chance_errors, chance_length: in the
    language's unit, against the text of another recording (`others_of`), null where there is none; loops are cut or not
    as the choice has them. told: the language that was announced, or detected.
    Raises what `references` raises.
    """
    rows = []
    expectations = references(transcripts.rows, scoring, english, folder)
    scripts = scripts_of(transcripts.rows)
    others = others_of(transcripts.rows, parts, [expected for _, expected in expectations])
    for i, (row, part, (norm, expected)) in enumerate(zip(transcripts.rows, parts, expectations, strict=True)):
        language = str(row["language"])
        script, unit = scripts[language][0], units[language]
        about: dict[str, Any] = {
            "id": row["id"],
            "language": language,
            "script": script,
            "group": group_of(row),
            "part": part,
        }
        about |= {"reference": row["text"], "reference_normalized": expected, "unit": unit}
        about["seconds"] = transcripts.seconds[i] if transcripts.seconds else None
        for at, found in transcripts.texts.items():
            text, cut = found[i].text, found[i].cut
            heard, heard_cut = norm(text), norm(cut)
            counted = _counted(expected, heard, script)
            of_cut = counted if heard == heard_cut else _counted(expected, heard_cut, script)
            if (other := others[i]) is not None:
                said = heard if scoring.choose_by == "plain" else heard_cut
                by_chance = _counted(expectations[other][1], said, script)
                about |= {"chance_errors": by_chance[f"{unit}_errors"], "chance_length": by_chance[f"{unit}s"]}
            rows.append(
                about
                | {"after": at.after, "norm": at.norm, "transcript": text, "cut": cut}
                | {"transcript_normalized": heard, "looped": found[i].looped, "empty": not _says_something(heard)}
                | {name: getattr(found[i], name) for name in DECODED.names}
                | {"told": found[i].language}
                | counted
                | {f"cut_{name}": count for name, count in of_cut.items()}
            )
    return pa.Table.from_pylist(rows, schema=TRANSCRIPT_SCHEMA)


COUNTS = tuple(f"{unit}_{kind}" for unit in ("word", "character") for kind in ("errors", *ERROR_KINDS))
DECODED = pa.schema([  # of `Transcript`, beside its texts
    ("tokens", pa.int32()), ("ended", pa.bool_()),
    ("avg_logprob", pa.float64()), ("no_speech", pa.float64()), ("temperature", pa.float64()),
    ("encoder_seconds", pa.float64()), ("decoder_seconds", pa.float64()),
])  # fmt: skip
TRANSCRIPT_SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("id", "language", "script", "group", "part")]
    + [("seconds", pa.float64()), ("after", pa.int32()), ("norm", pa.string())]
    + [(n, pa.string()) for n in ("reference", "transcript", "cut")]
    + [(n, pa.string()) for n in ("reference_normalized", "transcript_normalized")]
    + [("looped", pa.bool_()), ("empty", pa.bool_()), ("unit", pa.string())]
    + [(n, pa.int32()) for n in ("words", "characters", *COUNTS, *(f"cut_{name}" for name in COUNTS))]
    + [(n, pa.int32()) for n in ("chance_errors", "chance_length")]
    + [*DECODED, ("told", pa.string())]
)


def others_of(
    rows: Sequence[Mapping[str, str | None]], parts: Sequence[str], expected: Sequence[str]
) -> list[int | None]:
    """For each row another of its part and language, of another group and with another text; None where there is none.

    Texts of nearly one length are paired: how long a recording is must not tell them apart. So what an exit says is
    held against texts that it has not heard: an exit that says the same of everything does as well there.
    """
    members: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault((parts[i], str(row["language"])), []).append(i)
    groups = [group_of(row) for row in rows]
    found: list[int | None] = [None] * len(rows)
    for held in members.values():
        left = sorted(held, key=lambda i: (len(expected[i]), expected[i], str(rows[i]["id"])))
        while left:
            i = left.pop(0)
            apart = (j for j in left if groups[j] != groups[i] and expected[j] != expected[i])
            if (j := next(apart, None)) is not None:
                left.remove(j)
                found[i], found[j] = j, i
            else:  # the last of an odd number: one that has a partner already, nearest in length
                again = [j for j in held if groups[j] != groups[i] and expected[j] != expected[i]]
                found[i] = min(again, key=lambda j: abs(len(expected[j]) - len(expected[i])), default=None)
    return found


def _counted(expected: str, transcript: str, script: str) -> dict[str, int]:
    """Lengths of the reference, and the errors of each kind, in words and in characters."""
    found = {}
    words = jiwer.process_words(expected, transcript)
    if script in UNSPACED:  # where a space stands is a matter of taste there
        expected, transcript = expected.replace(" ", ""), transcript.replace(" ", "")
    for unit, aligned in (("word", words), ("character", jiwer.process_characters(expected, transcript))):
        kinds: tuple[Any, ...] = (aligned.substitutions, aligned.deletions, aligned.insertions)
        found[f"{unit}s"] = sum(kinds[:2]) + aligned.hits
        found |= {f"{unit}_{kind}": n for kind, n in zip(("errors", *ERROR_KINDS), (sum(kinds), *kinds), strict=True)}
    return found


def _says_something(normalized: str) -> bool:
    return any(c.isalnum() for c in normalized)
