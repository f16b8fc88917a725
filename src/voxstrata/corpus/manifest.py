"""Manifests: tables, a row a recording or a stretch of one, with the columns that we name or others choose."""

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.rows import StringTable, read_table
from voxstrata.corpus.table import COLUMNS, Corpus, absolute_root, build_table, kept_name

Names = Mapping[str, Sequence[str]]  # what a column is -> what it may be called, the first that is there counts

# Stretches of a recording: what comes first wins, and times are seconds.
_PARTS: Names = {
    "offset": ("offset", "start", "start_time", "begin", "begin_time"),
    "duration": ("duration", "dur"),
    "end": ("end", "end_time", "stop", "stop_time"),
    "channel": ("channel",),
}
OWN: Names = {**{name: (name,) for name in COLUMNS}, **_PARTS}

# What others call these columns: for guesses alone, since "label" may be anything.
_ELSEWHERE: Names = {
    "path": (
        "audio", "audio_path", "audio_file", "audio_filepath", "audio_filename", "file", "file_name", "filename",
        "files", "filepath", "file_path", "wav", "wav_path", "wav_file", "wavfile", "clip", "clip_path", "recording",
        "sound", "flac", "mp3", "uri", "url", "location",
    ),
    "text": (
        "sentence", "transcription", "transcript", "raw_transcription", "normalized_text", "normalised_text",
        "orthography", "utterance_text", "reference", "ref_text", "words", "txt", "prompt",
    ),
    "language": (
        "lang", "locale", "lang_id", "language_id", "language_code", "lang_code", "source_lang", "src_lang", "iso",
        "langid",
    ),
    "speaker": (
        "client_id", "speaker_id", "speakerid", "spk", "spk_id", "spkid", "spkr", "speaker_name", "reader", "reader_id",
        "voice", "utt2spk", "talker",
    ),
    "group": (
        "group_id", "sentence_id", "meaning", "meaning_id", "translation_id", "parallel_id", "pair_id", "prompt_id",
        "text_id",
    ),
    "id": ("utt", "utt_id", "uttid", "utterance", "utterance_id", "uid", "key", "segment_id", "sample_id", "clip_id"),
    "offset": ("start_sec", "start_s", "start_seconds", "begin_sec", "onset", "tmin", "xmin", "t_start"),
    "end": ("end_sec", "end_s", "end_seconds", "tmax", "xmax", "t_end"),
    "duration": ("duration_sec", "duration_s", "duration_seconds"),
    "channel": ("chan", "channel_id"),
}  # fmt: skip
# Words that programs write for a missing value. "nan" is a language (Min Nan), "null" is German for zero: of texts and
# languages only what cannot be meant is taken so.
_MISSING = frozenset({"nan", "NaN", "NAN", "None", "null", "NULL", "Null", "<NA>", "NaT"})
_MISSING_IN = {"group": _MISSING, "speaker": _MISSING, "language": _MISSING - {"nan"}}


def read_manifest(
    path: Path, reading: Reading | None = None, *, names: Names | None = None, audio: Path | None = None
) -> Corpus:
    """Read a manifest with the columns id, path, language, group, text, speaker; only path is required.

    Columns `offset` and `duration`, or `start` and `end`, in seconds, make a row a stretch of its recording. A
    `duration` without an offset is taken for the length of the recording, and kept without being used. `channel` is the
    one that is taken; 0 is the first. Other columns are kept as strings, and the notes name them. Values are strings as
    written ("007" stays); an empty one is null, and so is NaN.

    Paths are relative to the manifest's folder, or absolute. The corpus root, to which stores name their recordings, is
    the manifest's folder; where a recording lies outside that, the folder that holds them all. A missing id becomes the
    path from the root without its suffix (with it, where that would name two recordings).

    reading.columns: what columns are, `{"text": "sentence"}`. names: what the format calls them beside our own names.
    audio: what paths are relative to, where it is not the manifest's folder.
    How files are read: see `read_table`. Raises UsageError for columns to choose that are not there, or that nothing is
    called; InputError, naming file, line and fix, for anything else.
    """
    table = read_table(path)
    used, alone = _used(table, (reading or Reading()).columns, names or {})
    if not len(table):
        raise InputError(f"{path}: has no rows; add one row per recording")
    columns: dict[str, Sequence[Any]] = {what: table.strings(used[what]) for what in COLUMNS if what in used}
    notes = without_words_for_nothing(columns)
    columns |= _parts(table, used)
    root, columns["path"] = _rooted(table, columns["path"], absolute_root(audio or path.parent))
    unused = [name for name in table.columns if name not in used.values()]
    binary = [name for name in unused if table.is_binary(name)]
    extra = {name: table.strings(name, extra=True) for name in unused if name not in binary}
    corpus = build_table(root, columns, table.place, path, extra)
    return replace(corpus, notes=[*notes, *unused_notes(unused, binary, used, alone)])


def columns_guess(names: Sequence[str]) -> str | None:
    """The option that reads a table with these columns, "--columns path=file,text=sentence"; None if there is none."""
    guesses = {what: name for name, what in _guesses(names, {what: what for what in OWN if what in names}).items()}
    return "--columns " + ",".join(f"{what}={name}" for what, name in guesses.items()) if "path" in guesses else None


def names_recordings(names: Sequence[str]) -> bool:
    """Whether a table with these columns is a manifest, or would be with columns chosen."""
    return "path" in names or columns_guess(names) is not None


def _used(table: StringTable, chosen: Mapping[str, str], names: Names) -> tuple[dict[str, str], list[str]]:
    """The column of each thing that is read, and durations and ends that count for nothing without an offset."""
    chosen = {"offset" if what == "start" else what: name for what, name in chosen.items()}
    for what, name in chosen.items():
        if what not in OWN:
            raise UsageError(f"--columns {what}={name}: {what} is nothing we read; choose of {', '.join(OWN)}, start")
        if name not in table.columns:
            found = ", ".join(map(repr, table.columns))
            raise UsageError(f"--columns {what}={name}: {table.path} has no column {name!r}; found: {found}")
    used: dict[str, str] = {}
    for what, called in OWN.items():
        candidates = [chosen[what]] if what in chosen else [*names.get(what, ()), *called]
        there = [name for name in candidates if name in table.columns and name not in used.values()]
        if there and (what in chosen or there[0] not in chosen.values()):
            used[what] = there[0]
    path = used.get("path", "path")
    guess = columns_guess(list(table.columns))
    if not table.columns:
        raise InputError(f"{table.path}: has no rows; add one row per recording")
    table.require(path, "name it in the header" + (f", or choose it: {guess}" if guess else ""))
    if "end" in used and "offset" in used and "duration" not in chosen:
        used.pop("duration", None)
    alone = []
    if "offset" not in used:
        alone = [used.pop(what) for what in ("duration", "end") if what in used and what not in chosen]
    return used, alone


def without_words_for_nothing(columns: dict[str, Sequence[Any]]) -> list[str]:
    """Takes words that programs write for a missing value out of `columns`, and says so."""
    notes = []
    for name, words in _MISSING_IN.items():
        values = columns.get(name, ())
        if found := words.intersection(values):
            columns[name] = [None if value in words else value for value in values]
            number = sum(value in words for value in values)
            notes.append(f"{name}: {', '.join(sorted(found))} in {number} rows is taken as missing")
    return notes


def _parts(table: StringTable, used: Mapping[str, str]) -> dict[str, Sequence[Any]]:
    """offset and duration, in seconds, and channel, where the table has them."""
    columns: dict[str, Sequence[Any]] = {}
    offsets = _times(table, used["offset"]) if "offset" in used else None
    if offsets is not None:
        columns["offset"] = offsets
    if "duration" in used:
        columns["duration"] = lengths = _times(table, used["duration"])
        if 0.0 in lengths:
            raise _bad(table, used["duration"], lengths.index(0.0), "is no length; write the seconds that are meant")
    if "end" in used:
        ends = _times(table, used["end"])
        begins = offsets or [None] * len(ends)
        for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if end is not None and end <= (begin or 0.0):
                raise _bad(table, used["end"], i, f"is not after the start, {begin or 0:g}; correct one of the two")
        columns["duration"] = [
            None if end is None else round(end - (begin or 0.0), 9) for begin, end in zip(begins, ends, strict=True)
        ]
    if "channel" in used:
        values = table.strings(used["channel"])
        for i, value in enumerate(values):
            if value is not None and not (value.isascii() and value.isdigit() and len(value) < 5):
                raise _bad(table, used["channel"], i, "is no channel; write 0 for the first, or rename the column")
        columns["channel"] = [None if value is None else int(value) for value in values]
    return columns


def _times(table: StringTable, name: str) -> list[float | None]:
    """A column of seconds; None where nothing is written."""
    times: list[float | None] = []
    for i, value in enumerate(table.strings(name)):
        try:
            time = None if value is None else float(value)
        except ValueError:
            raise _bad(table, name, i, "is no number; write seconds, such as 12.5, or rename the column") from None
        if time is not None and not (math.isfinite(time) and time >= 0):
            raise _bad(table, name, i, "is no time in a recording; write seconds from 0 on, such as 12.5")
        times.append(time)
    return times


def _bad(table: StringTable, name: str, i: int, why: str) -> InputError:
    return InputError(f"{table.path}, {table.place(i)}: {name} {table.strings(name)[i]!r} {why}")


def _rooted(table: StringTable, values: Sequence[str | None], folder: Path) -> tuple[Path, list[str]]:
    """The folder that holds all recordings, `folder` if it does, and their paths from there, with "/" between parts.

    Links are not resolved, so they may lead out of it.
    """
    outside: dict[str, str] = {}  # by value: the absolute path of what does not lie plainly below `folder`
    for i, value in enumerate(values):
        if value is None:
            raise InputError(f"{table.path}, {table.place(i)}: path is empty; name the recording or remove the row")
        if value not in outside and (value[0] == "/" or _PLAIN.search(value)):
            outside[value] = os.path.normpath(os.path.join(folder, value))
    root, known = folder, outside
    if not all(path.startswith(f"{folder}{os.sep}") for path in outside.values()):
        known = {str(value): os.path.normpath(os.path.join(folder, str(value))) for value in values}
        root = Path(os.path.commonpath([os.path.dirname(path) for path in known.values()]))
    start = len(os.path.join(root, ""))
    return root, [known[value][start:] if value in known else value for value in map(str, values)]


_PLAIN = re.compile(r"(^|/)\.{0,2}(/|$)")  # what normalising changes: ".", "..", and empty parts


def _guesses(names: Sequence[str], used: Mapping[str, str]) -> dict[str, str]:
    """What columns may be, by their names: of each kind that is not `used` yet the first that is called so."""
    known = {called: what for what, called_so in _ELSEWHERE.items() for called in (what, *called_so)}
    known |= {called: what for what, called_so in OWN.items() for called in called_so}
    found: dict[str, str] = {}
    for close in (False, True):
        for name in names:
            plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
            misspelt = [
                called for called in known if abs(len(called) - len(plain)) < 2
            ]  # not "segment" for "segment_id"
            alike = difflib.get_close_matches(plain, misspelt, 1, 0.8) if close and len(plain) > 3 else [plain]
            what = known.get(alike[0]) if alike else None
            if what and what not in used and what not in found.values() and name not in found:
                found[name] = what
    return found


def _kept(name: str) -> str:
    return name if kept_name(name) == name else f"{name} (as {kept_name(name)})"


def unused_notes(
    unused: Sequence[str], binary: Sequence[str], used: Mapping[str, str], alone: Sequence[str]
) -> list[str]:
    guesses = _guesses([name for name in unused if name not in alone], used)
    notes = [f"ignored: {name} (did you mean {what}? --columns {what}={name})" for name, what in guesses.items()]
    for name in alone:
        if name in OWN["end"]:
            notes.append(f"{name} stands without a start, and is not used")
        else:
            notes.append(f"{name} stands without an offset: taken for the length of the recording, and not used")
    if kept := [name for name in unused if name not in (*guesses, *binary, *alone)]:
        notes.append(f"kept with the data, not used: {', '.join(map(_kept, kept))}")
    if binary:
        notes.append(f"left out, as they hold bytes: {', '.join(binary)}")
    return notes
