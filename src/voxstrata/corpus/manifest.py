"""Manifests: tables, a row a recording or a stretch of one, with the columns that we name or others choose."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.columns import SLICE, as_column, slices
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.rows import StringTable, read_table
from voxstrata.corpus.table import COLUMNS, Corpus, Lengths, absolute_root, build_table, kept_name, string_column
from voxstrata.corpus.urls import rooted_urls

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
    path: Path, reading: Reading | None = None, *, names: Names | None = None, audio: Path | str | None = None
) -> Corpus:
    """Read a manifest with the columns id, path, language, group, text, speaker; only path is required.

    Columns `offset` and `duration`, or `start` and `end`, in seconds, make a row a stretch of its recording. A
    `duration` without an offset is taken for the length of the recording, and kept without being used. `channel` is the
    one that is taken; 0 is the first. Other columns are kept as strings, and the notes name them. Values are strings as
    written ("007" stays); an empty one is null, and so is NaN.

    Paths are relative to the manifest's folder, absolute, or URLs (see `rooted_urls`). The corpus root, to which stores
    name their recordings, is the manifest's folder; where a recording lies outside that, the folder that holds them
    all. A missing id becomes the path from the root without its suffix (with it, where that would name two recordings).
    Where some recordings are in the manifest's folder, ids are made of paths from there: one elsewhere changes no
    other's.

    reading.columns: what columns are, `{"text": "sentence"}`. names: what the format calls them beside our own names.
    audio: what paths are relative to, where it is not the manifest's folder; a folder or a URL.
    How files are read: see `read_table`. Raises UsageError for columns to choose that are not there, or that nothing is
    called; InputError, naming file, line and fix, for anything else.
    """
    table, reading = read_table(path), reading or Reading()
    used, alone = _used(table, reading.columns, names or {}, reading.lengths)
    if not len(table):
        raise InputError(f"{path}: has no rows; add one row per recording")
    columns: dict[str, Any] = {what: table.column(used[what]) for what in COLUMNS if what in used}
    notes = without_words_for_nothing(columns)
    columns |= _parts(table, used)
    if reading.lengths == "manifest":
        _require_durations(table, columns.get("duration"))
    folder, signed = audio if isinstance(audio, str) else absolute_root(audio or path.parent), dict[str, str]()
    root: Path | str
    seen = None
    if isinstance(folder, Path) and not pc.any(pc.match_substring(columns["path"], "://")).as_py():
        root, columns["path"] = _rooted(table, columns["path"], folder)
        seen = _seen_from(folder, root, columns["path"])
    else:
        given = _require_paths(table, columns["path"]).to_pylist()
        root, columns["path"], signed = rooted_urls(given, folder, lambda i: f"{path}, {table.place(i)}")
    unused = [name for name in table.columns if name not in used.values()]
    binary = [name for name in unused if table.is_binary(name)]
    extra = {name: table.column(name, extra=True) for name in unused if name not in binary}
    corpus = build_table(root, columns, table.place, path, extra, seen)
    notes += unused_notes(unused, binary, used, alone)
    return replace(corpus, notes=notes, lengths=reading.lengths, signed=signed)


def _columns_hint(names: Sequence[str], chosen: Mapping[str, str]) -> str:
    """Which option may read a table with these columns; of what is not chosen yet the path alone is guessed."""
    if (path := _path_guess(names)) is None:
        return ""
    option = ",".join(f"{what}={name}" for what, name in {"path": path, **chosen}.items())
    others = ", ".join(what for what in COLUMNS if what != "path" and what not in chosen and what not in names)
    return f", or choose it: --columns {option}" + (f"; {others} go the same way, after commas" if others else "")


def _path_guess(names: Sequence[str]) -> str | None:
    """The column that may name the recordings, where none is called path."""
    guesses = _guesses(names, {what: what for what in OWN if what in names})
    return next((name for name, what in guesses.items() if what == "path"), None)


def names_recordings(names: Sequence[str]) -> bool:
    """Whether a table with these columns is a manifest, or would be with columns chosen."""
    return "path" in names or _path_guess(names) is not None


def _used(
    table: StringTable, chosen: Mapping[str, str], names: Names, lengths: Lengths
) -> tuple[dict[str, str], list[str]]:
    """The column of each thing that is read, and durations and ends that count for nothing without an offset, where
    lengths are those of headers."""
    chosen = {"offset" if what == "start" else what: name for what, name in chosen.items()}
    for what, name in chosen.items():
        if what not in OWN:
            swapped = f"; the other way round: --columns {name}={what}" if name in OWN and what in table.columns else ""
            known = f"choose of {', '.join(OWN)}, start"
            raise UsageError(f"--columns {what}={name}: {what} is nothing we read{swapped or f'; {known}'}")
        if name not in table.columns:
            found = ", ".join(map(repr, table.columns))
            raise UsageError(f"--columns {what}={name}: {table.path} has no column {name!r}; found: {found}")
    used: dict[str, str] = {}
    for what, called in OWN.items():
        if what in chosen:  # also where the column is chosen for something else, too
            used[what] = chosen[what]
            continue
        there = [name for name in (*names.get(what, ()), *called) if name in table.columns]
        there = [name for name in there if what == "path" or name not in used.values()]
        if there and (what == "path" or there[0] not in chosen.values()):
            used[what] = there[0]
    path = used.get("path", "path")
    if not table.columns:
        raise InputError(f"{table.path}: has no rows; add one row per recording")
    table.require(path, "name it in the header" + _columns_hint(list(table.columns), chosen))
    if "end" in used and "offset" in used and "duration" not in chosen:
        used.pop("duration", None)
    alone = []
    if "offset" not in used and lengths == "headers":
        alone = [used.pop(what) for what in ("duration", "end") if what in used and what not in chosen]
    return used, alone


def without_words_for_nothing(columns: dict[str, Any]) -> list[str]:
    """Takes words that programs write for a missing value out of `columns`, lists or of Arrow, and says so."""
    notes = []
    for name in [name for name in _MISSING_IN if name in columns]:
        column = as_column(columns[name])
        nothing = pc.is_in(column, pa.array(sorted(_MISSING_IN[name])))
        if number := pc.sum(nothing).as_py():
            found = sorted(pc.unique(column.filter(nothing)).to_pylist())
            columns[name] = pc.if_else(nothing, None, column)
            notes.append(f"{name}: {', '.join(found)} in {counted(number, 'row')} is taken as missing")
    return notes


def _parts(table: StringTable, used: Mapping[str, str]) -> dict[str, pa.ChunkedArray]:
    """offset and duration, in seconds, and channel, where the table has them."""
    columns: dict[str, pa.ChunkedArray] = {}
    if "offset" in used:
        columns["offset"] = _times(table, used["offset"])
    if "duration" in used:
        columns["duration"] = lengths = _times(table, used["duration"])
        if (i := _first(pc.equal(lengths, 0.0))) is not None:
            raise _bad(table, used["duration"], i, "is no length; write the seconds that are meant")
    if "end" in used:
        ends = _times(table, used["end"])
        begins = pc.fill_null(columns["offset"], 0.0) if "offset" in columns else pa.scalar(0.0)
        if (i := _first(pc.less_equal(ends, begins))) is not None:
            begin = begins[i].as_py() if "offset" in columns else 0.0
            raise _bad(table, used["end"], i, f"is not after the start, {begin:g}; correct one of the two")
        columns["duration"] = _rounded(pc.subtract(ends, begins))
    if "channel" in used:
        values = table.column(used["channel"])
        if (i := _first(pc.invert(pc.match_substring_regex(values, "^[0-9]{1,4}$")))) is not None:
            raise _bad(table, used["channel"], i, "is no channel; write 0 for the first, or rename the column")
        columns["channel"] = values.cast(pa.int32())
    return columns


def _times(table: StringTable, name: str) -> pa.ChunkedArray:
    """A column of seconds, float64; null where nothing is written."""
    times = table.numbers(name)
    if times is None:
        times = as_column(_numbers(table, name), pa.float64())
    if (i := _first(pc.invert(pc.and_(pc.is_finite(times), pc.greater_equal(times, 0.0))))) is not None:
        raise _bad(table, name, i, "is no time in a recording; write seconds from 0 on, such as 12.5")
    return times


def _numbers(table: StringTable, name: str) -> list[float | None]:
    """A column of numbers as Python reads them."""
    numbers: list[float | None] = []
    for i, value in enumerate(table.strings(name)):
        try:
            numbers.append(None if value is None else float(value))
        except ValueError:
            raise _bad(table, name, i, "is no number; write seconds, such as 12.5, or rename the column") from None
    return numbers


def _rounded(seconds: pa.ChunkedArray) -> pa.ChunkedArray:
    """To the nanosecond, as Python rounds: a difference of two times is what was meant."""
    pieces = ([None if v is None else round(v, 9) for v in own] for (own,) in slices([seconds]))
    return pa.chunked_array([pa.array(piece, pa.float64()) for piece in pieces], pa.float64())


def _first(mask: pa.ChunkedArray) -> int | None:
    """The first row where a mask is true."""
    i = pc.index(mask, True).as_py()
    return None if i < 0 else int(i)


def _require_durations(table: StringTable, durations: pa.ChunkedArray | None) -> None:
    mend = "add it, or take the lengths of headers (--lengths headers)"
    if durations is None:
        raise InputError(f"{table.path}: no column of durations, and lengths are to be the manifest's; {mend}")
    if (i := _first(pc.is_null(durations))) is not None:
        raise InputError(f"{table.path}, {table.place(i)}: no duration, and lengths are to be the manifest's; {mend}")


def _bad(table: StringTable, name: str, i: int, why: str) -> InputError:
    return InputError(f"{table.path}, {table.place(i)}: {name} {table.strings(name)[i]!r} {why}")


def _rooted(table: StringTable, paths: pa.ChunkedArray, folder: Path) -> tuple[Path, pa.ChunkedArray]:
    """The folder that holds all recordings, `folder` if it does, and their paths from there, with "/" between parts.

    Links are not resolved, so they may lead out of it.
    """
    _require_paths(table, paths)
    absolute = pc.starts_with(paths, "/")
    if not pc.any(absolute).as_py():
        odd = pc.match_substring_regex(paths, _ODD)
        return _rooted_each(table, paths, folder) if pc.any(odd).as_py() else (folder, paths)
    odd = pc.match_substring_regex(pc.utf8_slice_codeunits(paths, 1), _ODD)
    if not pc.all(absolute).as_py() or pc.any(odd).as_py():
        return _rooted_each(table, paths, folder)
    # what all have in common, the first and the last in order have
    ends = pc.min_max(paths).as_py()
    common = os.path.commonpath([os.path.dirname(ends["min"]), os.path.dirname(ends["max"])])
    root = folder if os.path.join(common, "").startswith(os.path.join(folder, "")) else Path(common)
    return root, pc.utf8_slice_codeunits(paths, len(os.path.join(root, "")))


def _require_paths(table: StringTable, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    if (i := _first(pc.is_null(paths))) is not None:
        raise InputError(f"{table.path}, {table.place(i)}: path is empty; name the recording or remove the row")
    return paths


def _rooted_each(table: StringTable, paths: pa.ChunkedArray, folder: Path) -> tuple[Path, pa.ChunkedArray]:
    """The same of paths that are to be normalised, or of which only some are absolute."""

    def normal() -> Iterator[list[str]]:
        for (own,) in slices([paths]):
            yield [re.sub("^//", "/", os.path.normpath(os.path.join(folder, value))) for value in own]

    root, below = folder, os.path.join(folder, "")
    if not all(path.startswith(below) for own in normal() for path in own):
        root = Path(
            os.path.commonpath([os.path.commonpath([os.path.dirname(path) for path in own]) for own in normal()])
        )
    start, done = len(os.path.join(root, "")), list[pa.ChunkedArray]()
    for n, own in enumerate(normal()):
        places = lambda i, n=n: table.place(n * SLICE + i)  # noqa: E731
        done.append(string_column("path", [path[start:] for path in own], places, table.path))
    return root, pa.chunked_array([chunk for own in done for chunk in own.chunks])


def _seen_from(folder: Path, root: Path, paths: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Paths below `root` as they are from `folder`, where this is below it and holds some of them; else None."""
    if root == folder or not folder.is_relative_to(root):
        return None
    below = os.path.join(folder.relative_to(root), "")
    inside = pc.starts_with(paths, below)
    if not pc.any(inside).as_py():
        return None
    others = [os.path.relpath(root / path, folder) for path in paths.filter(pc.invert(inside)).to_pylist()]
    within = pc.utf8_slice_codeunits(paths, len(below)).combine_chunks()
    return pa.chunked_array(
        [pc.replace_with_mask(within, pc.invert(inside).combine_chunks(), pa.array(others, pa.string()))]
    )


_ODD = r"(^|/)\.{0,2}(/|$)"  # what normalising changes: ".", "..", and empty parts


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
