"""Corpora on object stores and web servers: a folder of audio, or a manifest, by URL; and URLs in manifests."""

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import scratch_folder
from voxstrata.base.remote import open_remote, patiently, shown
from voxstrata.corpus.folder import AUDIO_SUFFIXES, language_notes
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.languages import language_name
from voxstrata.corpus.manifest import read_manifest
from voxstrata.corpus.rows import SUFFIXES
from voxstrata.corpus.table import Corpus, Row, build


def read_remote(url: str, reading: Reading) -> tuple[str, Corpus]:
    """What a corpus at a URL is, and the corpus: a folder of audio, or a manifest, by its suffix.

    Raises UsageError and InputError as `read_corpus` does, and for other kinds of corpora, which are read from disks.
    """
    suffixes = tuple(f"{suffix}{zipped}" for suffix in (*SUFFIXES, ".json") for zipped in ("", ".gz"))
    path = urlsplit(url).path
    if reading.split is not None:
        raise UsageError(f"{shown(url)}: a folder or a manifest by URL has no splits; leave out {reading.split!r}")
    if path.lower().endswith(suffixes):
        return "a manifest", _read_remote_manifest(url, reading)
    if path.lower().endswith((".tar", ".tgz", ".tar.gz")):
        raise InputError(
            f"{shown(url)}: tar files are read from disks alone; copy them, or name their recordings by URL"
        )
    if reading.columns or reading.lengths == "manifest":
        raise UsageError(f"{shown(url)}: a folder of audio has no columns and no lengths to choose; leave them out")
    return "a folder of audio", _read_remote_folder(url.rstrip("/"))


def _read_remote_folder(url: str) -> Corpus:
    fs, path = open_remote(url)
    path = path.rstrip("/")
    try:
        found = [name.removeprefix(f"{path}/") for name in patiently(url, lambda: fs.find(path))]
    except FileNotFoundError as error:
        raise InputError(f"{shown(url)}: cannot be listed ({error}); correct the name") from None
    paths = sorted(
        name
        for name in found
        if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES and not any(p.startswith(".") for p in name.split("/"))
    )
    if not paths:
        if not found:
            raise InputError(f"{shown(url)}: no such object or folder, or nothing in it; correct the name")
        raise InputError(f"{shown(url)}: no audio file in it (looked for {' '.join(sorted(AUDIO_SUFFIXES))})")
    tops = {top: language_name(top) for top in dict.fromkeys(p.split("/")[0] for p in paths if "/" in p)}
    rows: list[Row] = [
        {"path": p, "language": top if "/" in p and tops[top] else None} for p in paths for top in [p.split("/")[0]]
    ]
    corpus = build(shown(url), rows, [f"object {p!a}" for p in paths], shown(url))
    return replace(corpus, notes=language_notes(tops))


def _read_remote_manifest(url: str, reading: Reading) -> Corpus:
    """As a local one; paths are relative to where it lies."""
    folder = shown(url).partition("?")[0].rpartition("/")[0]
    with local_copy(url) as copy:
        return read_manifest(copy, reading, audio=folder)


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """An object as a temporary file of its name; errors that name that name the object.

    Raises InputError where there is none.
    """
    fs, path = open_remote(url)
    try:
        data = patiently(url, lambda: fs.cat_file(path))
    except FileNotFoundError:
        raise InputError(f"{shown(url)}: no such object; correct the name") from None
    with scratch_folder("remote") as folder:
        copy = Path(folder, posixpath.basename(urlsplit(url).path))
        copy.write_bytes(data)
        try:
            yield copy
        except (InputError, UsageError) as error:
            raise type(error)(str(error).replace(str(copy), shown(url))) from None
