"""Audio folders of Hugging Face datasets: `metadata.csv`, `.jsonl` or `.parquet` beside the audio.

As described in the documentation of `datasets`, "Create an audio dataset", AudioFolder (huggingface.co/docs/datasets/
audio_dataset): the column file_name holds paths from the metadata file's folder; other columns are free. Splits are
folders, each with its own metadata file or under a common one.
"""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from voxstrata.base.errors import UsageError
from voxstrata.corpus.folder import unnamed_notes
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.manifest import Names, read_manifest
from voxstrata.corpus.rows import table_header
from voxstrata.corpus.table import Corpus, absolute_root, joined

_NAMES: Names = {
    "path": ("file_name",),
    "text": ("transcription", "text", "transcript", "sentence"),
    "language": ("language", "lang", "locale"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def is_metadata(path: Path) -> bool:
    """Whether `path` is a table with a column file_name."""
    return path.is_file() and "file_name" in table_header(path)


def read_metadata(path: Path, reading: Reading) -> Corpus:
    """The recordings of one metadata file. Raises what `read_manifest` raises."""
    return read_manifest(path, reading, names=_NAMES)


def find_metadata(root: Path) -> list[Path]:
    """The metadata files of an audio folder: its own, or those of its folders, the splits; [] if it is none."""
    if not root.is_dir():
        return []
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for group in ([root], folders):
        if files := [folder / name for folder in group for name in _FILES if is_metadata(folder / name)]:
            return files
    return []


def read_audio_folder(root: Path, reading: Reading) -> Corpus:
    """The recordings that the metadata files name; of one split, where splits are folders with a file each.

    A note counts the audio files that they do not name.

    Raises UsageError for a split that is not there, and what `read_manifest` raises.
    """
    files, root = find_metadata(root), absolute_root(root)
    splits = [file.parent.name for file in files if absolute_root(file.parent) != root]
    if reading.split is not None:
        if reading.split not in splits:
            has = f"choose of {', '.join(splits)}" if splits else "it has no folders with metadata of their own"
            raise UsageError(f"{root}: no split {reading.split!r}; {has}")
        files = [file for file in files if file.parent.name == reading.split]
    corpora = []
    for file in files:
        corpus = read_metadata(file, reading)
        if file.parent != root and "id" not in table_header(file):  # ids from the folder on, as paths are
            at = corpus.table.column_names.index("id")
            ids = [f"{file.parent.name}/{name}" for name in corpus.table["id"].to_pylist()]
            corpus = replace(corpus, table=corpus.table.set_column(at, "id", pa.array(ids, pa.string())))
        corpora.append(corpus)
    corpus = joined(root, corpora)
    named = {str(corpus.root / path) for path in corpus.table["path"].to_pylist()}
    by = ", ".join(absolute_root(file).relative_to(root).as_posix() for file in files)
    below = [root] if reading.split is None else [file.parent for file in files]
    return replace(corpus, notes=[*corpus.notes, *unnamed_notes(below, named, by)])
