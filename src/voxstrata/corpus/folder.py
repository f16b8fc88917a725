"""A folder of audio as a corpus."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.base.recognised import A_CHECKPOINT, refuse_mistaken
from voxstrata.corpus.languages import language_name
from voxstrata.corpus.manifest import names_recordings
from voxstrata.corpus.rows import table_header
from voxstrata.corpus.table import Corpus, Row, absolute_root, build

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
    found, again = _found_below(root, AUDIO_SUFFIXES)
    if not found:
        named = manifests_in(root)
        # A manifest may lie beside a checkpoint's files. In what voxstrata wrote, tables that name recordings are none.
        right = A_CHECKPOINT.what if named else ""
        refuse_mistaken(root, "a corpus", "name a folder of audio or a manifest", right)
        if named:
            raise InputError(f"{root}: no audio file in it, but a manifest; name that: {named[0]}")
        raise InputError(f"{root}: no audio file in it (looked for {' '.join(sorted(AUDIO_SUFFIXES))})")
    folders_of = [path.split("/")[0] if "/" in path else None for path in found]
    tops = {name: language_name(name) for name in dict.fromkeys(folders_of) if name is not None}
    rows: list[Row] = [
        {"path": path, "language": top if top is not None and tops[top] else None}
        for path, top in zip(found, folders_of, strict=True)
    ]
    corpus = build(root, rows, [f"file {path!a}" for path in found], root)
    notes = [f"links to files that are there already are left out: {_listed(again)}"] if again else []
    return replace(corpus, notes=[*language_notes(tops), *notes, *_manifest_notes(root)])


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

    Links are followed, and each real folder and each real file comes once: by its own path where that is below `root`,
    else by that of the first link. A link to a folder above is passed over.
    Raises InputError if a folder cannot be read.
    """
    return _found_below(root, suffixes)[0]


def _found_below(root: Path, suffixes: Collection[str]) -> tuple[list[str], list[str]]:
    """As `files_below`, and the links that are left out since the file they lead to is there already."""
    seen: set[str] = set()  # real folders
    by_real: dict[str, str] = {}  # paths of files by their real ones
    above = os.path.realpath(root)
    todo, folder_links, file_links = [os.fspath(root)], list[str](), list[str]()
    while todo or folder_links:
        if not todo:  # what is no link comes first
            folder_links.sort(reverse=True)
            link = folder_links.pop()
            if not any(_holds(os.path.realpath(link), at) for at in (above, os.path.realpath(os.path.dirname(link)))):
                todo.append(link)
            continue
        folder = todo.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        for entry in _listed_in(folder):
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (folder_links if entry.is_symlink() else todo).append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                if entry.is_symlink():
                    file_links.append(entry.path)
                else:
                    by_real[os.path.join(real, entry.name)] = entry.path
    left_out = [path for path in sorted(file_links) if by_real.setdefault(os.path.realpath(path), path) != path]

    def below(path: str) -> str:
        return Path(path).relative_to(root).as_posix()

    return sorted(map(below, by_real.values())), list(map(below, left_out))


def _listed_in(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); change its permissions") from None


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: no folder, and as a recording it fails alone
        return False


def _holds(folder: str, other: str) -> bool:
    """Whether a real folder is another one or above it."""
    return os.path.commonpath([folder, other]) == folder
