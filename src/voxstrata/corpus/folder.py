"""A folder of audio as a corpus."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.corpus.languages import language_name
from voxstrata.corpus.manifest import names_recordings
from voxstrata.corpus.rows import table_header
from voxstrata.corpus.table import Corpus, Row, absolute_root, build
from voxstrata.encoders.card import CARD

_SOUNDFILE = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".sph", ".w64"}
_PYAV = {".m4a", ".mp4", ".aac", ".webm", ".mka", ".mkv", ".wma", ".amr", ".3gp", ".ac3"}
AUDIO_SUFFIXES = frozenset(_SOUNDFILE | _PYAV)
_TABLES = (".tsv", ".csv", ".jsonl", ".json", ".parquet", ".gz")
_SHOWN = 12  # names in a note
LANGUAGE = re.compile(r"[a-z]{2,3}([_-][A-Za-z0-9]+)*")


def read_folder(root: Path) -> Corpus:
    """Every audio file below `root`, by suffix, in the order of their relative paths.

    The id is the relative path without its suffix; where two files differ in their suffix alone, both keep it. If the
    first folder of the path is a language code or name (see `language_name`), it is the language; the notes say which
    are and which are not. Hidden files and folders are passed over (macOS leaves `._x.wav` beside `x.wav`), symbolic
    links are followed.

    Raises InputError if a folder cannot be read or no audio is found.
    """
    root = absolute_root(root)
    found = files_below(root, AUDIO_SUFFIXES)
    if not found and (root / "zarr.json").exists():
        raise InputError(f"{root}: a store, not a corpus; name the manifest or folder that it was extracted from")
    if not found and (root / CARD).exists():
        raise InputError(f"{root}: a model, not a corpus; name a folder of audio or a manifest")
    if not found and (named := manifests_in(root)):
        raise InputError(f"{root}: no audio file in it, but a manifest; name that: {named[0]}")
    if not found:
        raise InputError(f"{root}: no audio file in it (looked for {' '.join(sorted(AUDIO_SUFFIXES))})")
    folders_of = [path.split("/")[0] if "/" in path else None for path in found]
    tops = {name: language_name(name) for name in dict.fromkeys(folders_of) if name is not None}
    rows: list[Row] = [
        {"path": path, "language": top if top is not None and tops[top] else None}
        for path, top in zip(found, folders_of, strict=True)
    ]
    corpus = build(root, rows, [f"file {path!a}" for path in found], root)
    return replace(corpus, notes=[*language_notes(tops), *_manifest_notes(root)])


def language_folder(root: Path, file: Path) -> str | None:
    """The first folder between `root` and `file` that is a language code or name; None if none is."""
    return next((folder for folder in file.relative_to(root).parts[:-1] if language_name(folder)), None)


def language_notes(tops: Mapping[str, str | None]) -> list[str]:
    known = {name: called for name, called in tops.items() if called}
    languages = [name if name.lower() == called.lower() else f"{name} ({called})" for name, called in known.items()]
    others = [name for name in tops if name not in known]
    notes = [f"folders taken for languages: {_listed(languages)}"] if languages else []
    return [*notes, f"folders that are no language code or name: {_listed(others)}"] if others else notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def unnamed_notes(folders: Sequence[Path], named: Collection[str], by: str) -> list[str]:
    """How many audio files below `folders` are none of those that `by` names, by their absolute paths."""
    found = {os.path.join(folder, path) for folder in map(absolute_root, folders) for path in _audio_below(folder)}
    if not (unnamed := found.difference(named)):
        return []
    are = "audio file is" if len(unnamed) == 1 else "audio files are"
    return [f"{len(unnamed)} {are} not named by {by}, and left out, such as {min(unnamed)}"]


def _audio_below(folder: Path) -> list[str]:
    """As `files_below`; none where something cannot be listed, which matters only to who names it."""
    try:
        return files_below(folder, AUDIO_SUFFIXES)
    except InputError:
        return []


def _manifest_notes(root: Path) -> list[str]:
    """That the folder holds manifests, which were not read."""
    return [
        f"{path.name} is a manifest, and was not read: name {path} in place of the folder"
        for path in manifests_in(root)
    ]


def manifests_in(root: Path) -> list[Path]:
    """Tables in a folder, not below it, that name recordings."""
    tables = [path for path in sorted(root.iterdir()) if path.is_file() and path.name.lower().endswith(_TABLES)]
    return [path for path in tables if names_recordings(table_header(path))]


def files_below(root: Path, suffixes: Collection[str]) -> list[str]:
    """The files below `root` with one of these suffixes, by their paths from there with "/" between parts, sorted.

    Raises InputError if a folder cannot be read.
    """
    found: list[str] = []
    for folder, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _loops(folder, name)]
        found += [
            Path(folder, name).relative_to(root).as_posix()
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); change its permissions")


def _loops(folder: str, name: str) -> bool:
    """Whether `folder/name` is a link to `folder` itself or to a folder above it."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    target, here = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([target, here]) == target
