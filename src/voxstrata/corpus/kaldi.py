"""Kaldi data folders: `wav.scp`, and where they are there `segments`, `text`, `utt2spk` and `utt2lang`.

As described in Kaldi's documentation, "Data preparation" (kaldi-asr.org/doc/data_prep.html). Each file has a line an
entry: a key, white space, and the value. `segments` has utterance, recording, start and end in seconds (an end of -1 is
the recording's), and in extract-segments' fifth field a channel. Without it every recording is an utterance.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError
from voxstrata.corpus.folder import unnamed_notes
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.rows import read_text
from voxstrata.corpus.table import Corpus, absolute_root, build_table

_ABOUT = {"text": "text", "utt2spk": "speaker", "utt2lang": "language"}
_ARCHIVE = re.compile(r".+\.ark:\d+")

Entries = dict[str, tuple[int, str]]  # key -> line and value


def find_kaldi(root: Path) -> bool:
    """Whether `root` is a folder with a `wav.scp`."""
    return (root / "wav.scp").is_file()


def read_kaldi(root: Path, reading: Reading) -> Corpus:
    """The utterances of a Kaldi data folder, in the order of `segments` or `wav.scp`.

    Paths of `wav.scp` are absolute, or relative to the folder, or to the first folder above it from which the first of
    them is there (recipes run two folders above `data/train`).
    Raises InputError, naming file, line and fix, for a command (`|`) or an archive in place of a file, a key that
    stands twice, a recording that is not in `wav.scp`, and times that are none.
    """
    scp, cut = root / "wav.scp", root / "segments"
    recordings = _entries(scp)
    for key, (line, value) in recordings.items():
        _refuse_no_file(scp, line, key, value)
    where, notes = _base(root, recordings)
    paths = {key: os.path.normpath(where / value) for key, (_, value) in recordings.items()}
    source, entries = (cut, _entries(cut)) if cut.is_file() else (scp, recordings)
    parts = [_segment(cut, *entry, paths) for entry in entries.values()] if cut.is_file() else []
    names, lines = list(entries), [line for line, _ in entries.values()]
    of_rows = [part[0] for part in parts] or list(paths.values())
    common = where
    if not all(path.startswith(f"{where}{os.sep}") for path in of_rows):
        common = Path(os.path.commonpath([os.path.dirname(path) for path in of_rows]))
    start = len(os.path.join(common, ""))
    columns: dict[str, Sequence[Any]] = {"id": names, "path": [path[start:] for path in of_rows]}
    if parts:
        columns |= dict(zip(("offset", "duration", "channel"), list(zip(*parts, strict=True))[1:], strict=True))

    extra: dict[str, list[str | None]] = {}
    for file in [*sorted(path.name for path in root.glob("utt2*")), "text"]:
        if (root / file).is_file():
            about = _entries(root / file)
            (columns if file in _ABOUT else extra)[_ABOUT.get(file, file)] = [
                about[name][1] or None if name in about else None for name in names
            ]
            if strangers := about.keys() - entries.keys():
                notes.append(f"{file} names {len(strangers)} that {source.name} has not, such as {min(strangers)}")
    read = {"wav.scp", "segments", *_ABOUT, *extra}
    others = sorted(path.name for path in root.iterdir() if path.is_file() and path.name not in read)
    notes += [f"kept with the data, not used: {', '.join(extra)}"] if extra else []
    notes += [f"not read: {', '.join(others)}"] if others else []
    notes += unnamed_notes([root], set(paths.values()), "wav.scp")
    corpus = build_table(common, columns, lambda i: f"line {lines[i]}", source, extra)
    return replace(corpus, notes=notes)


def _entries(file: Path) -> Entries:
    """Line and value of each key of a Kaldi file."""
    entries: Entries = {}
    for line, content in enumerate(read_text(file).split("\n"), start=1):
        if not content.strip():
            continue
        key, *value = content.split(maxsplit=1)
        if key in entries:
            raise InputError(f"{file}, line {line}: {key!r} stands in line {entries[key][0]}, too; remove one")
        entries[key] = line, value[0].strip() if value else ""
    if not entries:
        raise InputError(f"{file}: has no entries; add one per line")
    return entries


def _refuse_no_file(scp: Path, line: int, key: str, value: str) -> None:
    if value.endswith("|"):
        command = value.removesuffix("|").strip()
        raise InputError(
            f"{scp}, line {line}: {key} is a command ({value}), and none are run here; write what it prints to a file "
            f"and name that: {command} > {key}.wav"
        )
    if not value or _ARCHIVE.fullmatch(value):
        raise InputError(f"{scp}, line {line}: {key} is no file of its own ({value!r}); write it to one and name that")


def _base(root: Path, recordings: Entries) -> tuple[Path, list[str]]:
    """What relative paths are relative to, and a note where that is not the folder itself."""
    here = absolute_root(root)
    relative = next((value for _, value in recordings.values() if not os.path.isabs(value)), None)
    base = next((above for above in (here, *here.parents) if relative and (above / relative).is_file()), here)
    return base, [] if base == here else [f"the paths of wav.scp begin at {base}"]


def _segment(
    file: Path, line: int, value: str, paths: Mapping[str, str]
) -> tuple[str, float, float | None, int | None]:
    """Path, offset, duration (None: to the end) and channel of one segment."""
    recording, *rest = value.split()
    if recording not in paths:
        raise InputError(f"{file}, line {line}: no recording {recording!r} in wav.scp; add it or remove the line")
    try:
        begin, end = (float(time) for time in rest[:2])
        channel = int(rest[2]) if len(rest) > 2 else None
    except ValueError:
        raise InputError(
            f"{file}, line {line}: {' '.join(rest)!r} is no start and end; write both in seconds, such as 1.5 3.25"
        ) from None
    to_end = end == -1
    if not (math.isfinite(begin) and begin >= 0 and (to_end or (math.isfinite(end) and end > begin))):
        raise InputError(f"{file}, line {line}: {begin:g} to {end:g} s is no stretch of a recording; correct the times")
    return paths[recording], begin, None if to_end else round(end - begin, 9), channel
