"""Common Voice and CoVoST 2: a table beside a folder `clips`.

Common Voice (Ardila et al. 2020, arXiv 1912.06670; the columns of each release are described at
github.com/common-voice/cv-dataset) keeps a folder for each language, in it `train.tsv`, `dev.tsv`, `test.tsv`,
`validated.tsv` and others with the columns client_id, path, sentence and more, and mp3 files in `clips/`. CoVoST 2
(Wang et al. 2020, arXiv 2007.10310; github.com/facebookresearch/covost) adds tables with the columns path, sentence,
translation and client_id to the clips of Common Voice 4.
"""

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from voxstrata.base.errors import UsageError
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.manifest import Names, read_manifest
from voxstrata.corpus.rows import table_header
from voxstrata.corpus.table import Corpus, absolute_root, joined

_NAMES: Names = {"text": ("sentence",), "speaker": ("client_id",), "language": ("locale",)}
_CLIP = re.compile(r"(?:.*/)?common_voice_([A-Za-z][A-Za-z-]*)_\d+(\.\w+)?")


def is_common_voice(path: Path) -> bool:
    """Whether `path` is one of its tables."""
    return path.is_file() and {"path", "sentence", "client_id"} <= set(table_header(path))


def is_covost(path: Path) -> bool:
    """Whether `path` is one of CoVoST's tables."""
    return is_common_voice(path) and "translation" in table_header(path)


def read_common_voice(path: Path, reading: Reading) -> Corpus:
    """The recordings of one table. id is the clip's name, text the sentence, speaker the client_id.

    The language is the locale, and where the table has none that in the clip's name (`common_voice_de_17.mp3`). Clips
    lie in `clips/` beside the table; where that is missing, in the one beside its folder, or beside the table itself.
    Raises what `read_manifest` raises.
    """
    places = [path.parent / "clips", absolute_root(path.parent).parent / "clips"]
    audio = next((place for place in places if place.is_dir()), path.parent)
    corpus = read_manifest(path, reading, names=_NAMES, audio=audio)
    if corpus.table["language"].null_count == len(corpus):
        found = [_CLIP.fullmatch(name) for name in corpus.table["path"].to_pylist()]
        if any(found):
            at = corpus.table.column_names.index("language")
            languages = pa.array([clip and clip[1] for clip in found], pa.string())
            corpus = replace(corpus, table=corpus.table.set_column(at, "language", languages))
            corpus = replace(corpus, notes=[*corpus.notes, "languages are those in the clips' names"])
    return corpus


def find_common_voice(root: Path) -> dict[str, list[Path]]:
    """The tables of a Common Voice folder by split, of one language or of several in folders; {} if it is none."""
    found: dict[str, list[Path]] = {}
    if root.is_dir():
        folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
        for folder in folders:
            for table in _tables(folder) if (folder / "clips").is_dir() else []:
                found.setdefault(table.stem, []).append(table)
    return found


def _tables(folder: Path) -> list[Path]:
    return [table for table in sorted(folder.glob("*.tsv")) if is_common_voice(table)]


def read_common_voice_folder(root: Path, reading: Reading) -> Corpus:
    """One split of each language of a Common Voice folder; notes name languages without that split or without clips.

    Raises UsageError without a split that is there.
    """
    tables = find_common_voice(root)
    if reading.split not in tables:
        said = "name a split" if reading.split is None else f"no {reading.split}.tsv"
        raise UsageError(f"{root}: a Common Voice folder: {said}; choose one: --split {', '.join(tables)}")
    corpus = joined(absolute_root(root), [read_common_voice(table, reading) for table in tables[reading.split]])
    read, notes = {table.parent for table in tables[reading.split]}, []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if folder not in read and _tables(folder):
            lacks = f"{reading.split}.tsv" if (folder / "clips").is_dir() else "folder clips"
            notes.append(f"{folder.name} is left out: it has no {lacks}")
    return replace(corpus, notes=[*corpus.notes, *notes])
