"""Bilingual word lists: read, given IPA, and spoken where there are no recordings."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

import soundfile

from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted
from voxstrata.base.progress import Progress, Reporter
from voxstrata.corpus import Corpus
from voxstrata.corpus.rows import read_rows
from voxstrata.corpus.table import Row, build
from voxstrata.phonology.espeak import speak
from voxstrata.phonology.feature_distance import Phones
from voxstrata.phonology.ipa import clean, near_voices, transcribe
from voxstrata.phonology.ipa import voices as espeak_voices
from voxstrata.phonology.voices import VOICES, voice_of

_COLUMNS = ("form", "language", "meaning", "ipa", "path")
EXAMPLE = "example"  # the list that ships: `example_words.tsv`, written for this project and under its licence
SPEAKER = VOICES[0]  # the same espeak-ng variant, speed and pitch in every language


@dataclass(frozen=True)
class Entry:
    """A word of a list: how it is written, in what language, and what it means, a label shared by its translations.

    ipa: None until known. paths: its recordings, absolute; none when it is to be spoken.
    """

    form: str
    language: str
    meaning: str
    ipa: str | None = None
    paths: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.form} ({self.language}, “{self.meaning}”)"


def read_word_list(source: str | Path) -> list[Entry]:
    """The words of a table with the columns form, language, meaning, and optionally ipa and path; "example": the one
    that ships.

    One row is one recording: rows that share form, language and meaning are recordings of one word. Paths are relative
    to the table's folder. Words are in the order of their first row.

    Raises InputError, naming the line: an empty field, a row that repeats another, two IPA for one word, a recording
    that is missing. Also where some rows name a recording and others do not, and where nothing could be compared: fewer
    than two meanings, or no meaning with words in two languages.
    """
    if str(source) == EXAMPLE and not Path(source).exists():
        with as_file(files("voxstrata.studies.words") / "example_words.tsv") as shipped:
            return read_word_list(shipped)
    table = Path(source)
    words: dict[tuple[str, str, str], Entry] = {}
    places: dict[tuple[str, str, str, Path | None], str] = {}
    for place, row in read_rows(table, _COLUMNS, required=_COLUMNS[:3]):
        form, language, meaning = (_filled(table, place, row, name) for name in _COLUMNS[:3])
        ipa = clean(row.get("ipa") or "") or None
        path = _recording(table, place, row.get("path"))
        first = places.setdefault((form, language, meaning, path), place)
        if first != place:
            raise InputError(
                f"{table}, {place}: {form!r} ({language}, {meaning!r}) stands in {first} already; remove one, or name "
                "another recording"
            )
        key = (form, language, meaning)
        word = words.get(key, Entry(form, language, meaning, ipa))
        if ipa != word.ipa:
            raise InputError(f"{table}, {place}: ipa {ipa!r} of {form!r} is {word.ipa!r} above; give one for a word")
        words[key] = replace(word, paths=(*word.paths, path)) if path else word
    entries = list(words.values())
    _refuse_unusable(table, entries)
    return entries


def _filled(table: Path, place: str, row: Row, name: str) -> str:
    value = (row[name] or "").strip()
    if not value:
        raise InputError(f"{table}, {place}: {name} is empty; fill it or remove the row")
    return value


def _recording(table: Path, place: str, value: str | None) -> Path | None:
    if not value:
        return None
    path = Path(os.path.abspath(table.parent / value))
    if not path.is_file():
        raise InputError(f"{table}, {place}: no recording {value!r} ({path}); paths are relative to the table's folder")
    return path


def _refuse_unusable(table: Path, entries: Sequence[Entry]) -> None:
    without = [word for word in entries if not word.paths]
    if 0 < len(without) < len(entries):
        raise InputError(
            f"{table}: {len(without)} of {len(entries)} words have no recording, e.g. {without[0]}: spoken and "
            "recorded words would differ by that; name a path for every word, or for none"
        )
    languages: dict[str, set[str]] = defaultdict(set)
    for word in entries:
        languages[word.meaning].add(word.language)
    if len(languages) < 2 or not any(len(held) > 1 for held in languages.values()):
        known = ", ".join(sorted({word.language for word in entries})) or "none"
        raise InputError(
            f"{table}: {counted(len(entries), 'word')}, {counted(len(languages), 'meaning')}, languages {known}: "
            "nothing to compare; at least two meanings are needed, one of them with words in two languages (one label "
            "in the column meaning)"
        )


def voices_needed(entries: Sequence[Entry]) -> dict[str, str]:
    """The espeak-ng voice of every language that has words without IPA or without recordings.

    Raises InputError naming the languages espeak-ng lacks.
    """
    languages = dict.fromkeys(word.language for word in entries if word.ipa is None or not word.paths)
    if not languages:
        return {}
    found = {language: voice_of(language, espeak_voices()) for language in languages}
    lacking = [language for language, voice in found.items() if voice is None]
    if lacking:
        raise InputError(
            f"espeak-ng speaks no {', '.join(map(repr, lacking))}; give the words of these languages IPA and "
            f"recordings (columns ipa and path), or leave them out. {near_voices(lacking)}"
        )
    return {language: voice for language, voice in found.items() if voice is not None}


def with_ipa(entries: Sequence[Entry], voices: dict[str, str]) -> list[Entry]:
    """The words with IPA: as given, else by espeak-ng.

    Raises InputError for words without a segment that PanPhon knows.
    """
    found = list(entries)
    for language, voice in voices.items():
        places = [i for i, word in enumerate(found) if word.language == language and word.ipa is None]
        for i, read in zip(places, transcribe([found[i].form for i in places], voice), strict=True):
            found[i] = replace(found[i], ipa=read.ipa)
    segments = Phones.from_ipa([word.ipa or "" for word in found]).lengths
    silent = [word for word, count in zip(found, segments, strict=True) if not count]
    if silent:
        raise InputError(
            f"{counted(len(silent), 'word has', 'words have')} no sound that PanPhon knows, e.g. {silent[0]}, IPA "
            f"{silent[0].ipa!r}; correct form or ipa, or leave them out"
        )
    return found


def word_corpus(
    entries: Sequence[Entry], folder: Path, voices: dict[str, str], reporter: Reporter
) -> tuple[Corpus, list[int]]:
    """The recordings as a corpus, group = meaning, and the word (its place in `entries`) of each.

    Words without recordings are spoken into `folder`/<language>/<n>.flac (mono, 16 bit), all languages with the same
    variant, speed and pitch of espeak-ng.
    """
    paths: list[tuple[int, Path]] = []
    for i, word in enumerate(entries):
        if word.paths:
            paths += [(i, path) for path in word.paths]
            continue
        path = folder / word.language / f"{i:05d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples, rate = speak(word.form, f"{voices[word.language]}+{SPEAKER.variant}", SPEAKER.rate, SPEAKER.pitch)
        soundfile.write(path, samples, rate, subtype="PCM_16")
        paths.append((i, Path(os.path.abspath(path))))
        reporter.progress(Progress("speaking", i + 1, len(entries), "words"))
    root = Path(os.path.commonpath([path.parent for _, path in paths]))
    rows: list[Row] = []
    for n, (i, path) in enumerate(paths):
        word, name = entries[i], f"{n:05d}-{entries[i].language}-{entries[i].form}"
        place = path.relative_to(root).as_posix()
        rows.append({"id": name, "path": place, "language": word.language, "group": word.meaning, "text": word.form})
    return build(root, rows, [f"recording {n + 1}" for n in range(len(rows))], folder), [i for i, _ in paths]
