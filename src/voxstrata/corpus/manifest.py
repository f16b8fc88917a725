"""Manifests: .tsv, .csv, .jsonl and .parquet tables that name recordings."""

import os
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.corpus.rows import read_rows
from voxstrata.corpus.table import COLUMNS, Corpus, Row, absolute_root, build


def read_manifest(path: Path) -> Corpus:
    """Read a manifest with the columns id, path, language, group, text, speaker; only path is required.

    Other columns are ignored, `seconds` too: lengths come from the recordings. Values are strings as written
    ("007" stays); an empty one is null. Paths are relative to the manifest's folder, or absolute. The corpus root, to
    which stores name their recordings, is the manifest's folder; where a recording lies outside that, the folder that
    holds them all. A missing id becomes the path from the root without its suffix (with it, where that would name two
    recordings).

    How files are read: see `read_rows`. Raises InputError, naming file, line and fix, for anything else.
    """
    folder = absolute_root(path.parent)
    rows, places, recordings = list[Row](), list[str](), list[Path]()
    for place, row in read_rows(path, COLUMNS, required=("path",)):
        if not (value := row.get("path")):
            raise InputError(f"{path}, {place}: path is empty; name the recording or remove the row")
        # links are not resolved, so they may lead out of the root
        recordings.append(Path(os.path.normpath(folder / value)))
        rows.append(row)
        places.append(place)
    if not rows:
        raise InputError(f"{path}: has no rows; add one row per recording")
    root = folder
    if not all(recording.is_relative_to(folder) for recording in recordings):
        root = Path(os.path.commonpath([recording.parent for recording in recordings]))
    rows = [{**row, "path": r.relative_to(root).as_posix()} for row, r in zip(rows, recordings, strict=True)]
    return build(root, rows, places, path)
