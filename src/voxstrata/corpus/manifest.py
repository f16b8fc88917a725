"""Manifests: .tsv, .csv, .jsonl and .parquet tables that name recordings."""

from __future__ import annotations

import os
from pathlib import Path

from voxstrata.corpus.rows import read_rows
from voxstrata.corpus.table import COLUMNS, Corpus, Row, absolute_root, build
from voxstrata.errors import InputError


def read_manifest(path: Path) -> Corpus:
    """Read a manifest with the columns id, path, language, group, text, speaker; only path is required.

    Other columns are ignored, `seconds` too: lengths come from the recordings. Values are strings as written
    ("007" stays); an empty one is null. Paths are relative to the manifest's folder, the corpus root. A
    missing id becomes the path without its suffix (with it, where that would name two recordings).

    How files are read: see `read_rows`. Raises InputError, naming file, line and fix, for anything else.
    """
    root = absolute_root(path.parent)
    rows: list[Row] = []
    places: list[str] = []
    for place, row in read_rows(path, COLUMNS, required=("path",)):
        rows.append({**row, "path": _relative(path, place, root, row.get("path"))})
        places.append(place)
    if not rows:
        raise InputError(f"{path}: has no rows; add one row per recording")
    return build(root, rows, places, path)


def _relative(manifest: Path, place: str, root: Path, value: str | None) -> str:
    """The row's path relative to `root`; links are not resolved, so they may lead out of the root."""
    if not value:
        raise InputError(f"{manifest}, {place}: path is empty; name the recording or remove the row")
    full = Path(os.path.normpath(root / value))
    if not full.is_relative_to(root):
        raise InputError(
            f"{manifest}, {place}: path {value!r} lies outside the manifest's folder {root}; "
            "move the manifest to a folder above all recordings, or link their folder into the manifest's"
        )
    return full.relative_to(root).as_posix()
