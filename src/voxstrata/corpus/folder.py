"""A folder of audio as a corpus."""

import os
import re
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.corpus.table import Corpus, Row, absolute_root, build

_SOUNDFILE = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".sph", ".w64"}
_PYAV = {".m4a", ".mp4", ".aac", ".webm", ".mka", ".mkv", ".wma", ".amr", ".3gp", ".ac3"}
AUDIO_SUFFIXES = frozenset(_SOUNDFILE | _PYAV)
LANGUAGE = re.compile(r"[a-z]{2,3}([_-][A-Za-z0-9]+)*")
# Three letters each, but folders of these names hold a format or a split, not Waka, Rawang or Domung.
_NOT_LANGUAGES = {"dev", "raw"} | {suffix[1:] for suffix in AUDIO_SUFFIXES}


def language_of(folder: str) -> str | None:
    """The folder's name if it looks like a language tag ("en", "pt-BR", "cmn_hans_cn"), else None."""
    return folder if LANGUAGE.fullmatch(folder) and folder not in _NOT_LANGUAGES else None


def read_folder(root: Path) -> Corpus:
    """Every audio file below `root`, by suffix, in the order of their relative paths.

    The id is the relative path without its suffix; where two files differ in their suffix alone, both keep
    it. If the first folder of the path looks like a language tag, it is the language. Hidden files and
    folders are passed over (macOS leaves `._x.wav` beside `x.wav`), symbolic links are followed.

    Raises InputError if a folder cannot be read or no audio is found.
    """
    root = absolute_root(root)
    found: list[str] = []
    for folder, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _loops(folder, name)]
        found += [
            Path(folder, name).relative_to(root).as_posix()
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES
        ]
    if not found and (root / "zarr.json").exists():
        raise InputError(f"{root}: a store, not a corpus; name the manifest or folder that it was extracted from")
    if not found:
        raise InputError(f"{root}: no audio file in it (looked for {' '.join(sorted(AUDIO_SUFFIXES))})")
    found.sort()
    rows: list[Row] = [{"path": p, "language": language_of(p.split("/")[0]) if "/" in p else None} for p in found]
    return build(root, rows, [f"file {path!a}" for path in found], root)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); change its permissions")


def _loops(folder: str, name: str) -> bool:
    """Whether `folder/name` is a link to `folder` itself or to a folder above it."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    target, here = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([target, here]) == target
