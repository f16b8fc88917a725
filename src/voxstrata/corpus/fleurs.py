"""A local copy of FLEURS (Conneau et al. 2022, arXiv 2205.12446) as a corpus.

The tables have no header; their columns are sentence id, file name, raw transcription, normalised transcription, the
latter's characters, number of samples and gender, as google/fleurs' own `fleurs.py` reads them.
"""

import io
from itertools import product
from pathlib import Path, PurePosixPath

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.opening import open_regular
from voxstrata.corpus.folder import LANGUAGE
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.rows import read_text, tsv_rows
from voxstrata.corpus.table import Corpus, Row, absolute_root, build

SPLITS = ("train", "dev", "test")
_FIELDS = 7


def find_fleurs(root: Path) -> list[Path]:
    """The language folders of a FLEURS copy at `root`, sorted; empty if it is none."""
    for base in (root / "data", root):
        folders = sorted(path for path in base.iterdir() if LANGUAGE.fullmatch(path.name)) if base.is_dir() else []
        if languages := [folder for folder in folders if any(_is_table(folder, split) for split in SPLITS)]:
            return languages
    return []


def _is_table(folder: Path, split: str) -> bool:
    """Whether the split's table is FLEURS': seven columns, first a number and a wav; not Common Voice's."""
    try:
        with io.TextIOWrapper(open_regular(folder / f"{split}.tsv"), encoding="utf-8-sig") as file:
            fields = file.readline(1 << 20).split("\t")
    except (OSError, UnicodeDecodeError):
        return False
    return len(fields) >= _FIELDS and fields[0].isdigit() and fields[1].lower().endswith(".wav")


def read_fleurs(root: Path, reading: Reading) -> Corpus:
    """The recordings of one split (or of all) of all language folders of the copy at `root`.

    id is "<lang>/<split>/<stem>", language the folder's name, group the sentence id, which translations
    share, text the raw transcription; FLEURS names no speakers. Audio lies in `<lang>/audio/<split>/` or, in
    older copies, `<lang>/<split>/`. Of a file named twice in a table the first row counts.

    Raises UsageError for an unknown split, InputError for a malformed table or audio that was not unpacked.
    """
    languages, split = find_fleurs(root), reading.split
    if split is not None and split not in SPLITS:
        raise UsageError(f"split {split!r} is not one of FLEURS: {', '.join(SPLITS)}")
    rows: dict[str, Row] = {}  # by path
    places: list[str] = []
    for folder, name in product(languages, SPLITS if split is None else (split,)):
        table = folder / f"{name}.tsv"
        if not table.is_file():
            continue
        audio = _audio_folder(folder, name)
        for line, (number, file, text, *_) in tsv_rows(table, read_text(table), _FIELDS):
            if not file or PurePosixPath(file).name != file:
                raise InputError(f"{table}, line {line}: {file!r} is not a file name; correct the row")
            path = (audio / file).relative_to(root).as_posix()
            if path not in rows:
                name_of = f"{folder.name}/{name}/{PurePosixPath(file).stem}"
                about = {"language": folder.name, "group": number or None, "text": text or None}
                rows[path] = {"id": name_of, "path": path, **about}
                places.append(f"{table.relative_to(root)} line {line}")
    if not rows:
        raise InputError(f"{root}: no rows in any {split or 'train, dev or test'}.tsv; fetch that split")
    return build(absolute_root(root), list(rows.values()), places, root)


def _audio_folder(folder: Path, split: str) -> Path:
    candidates = [folder / "audio" / split, folder / split]
    if found := [candidate for candidate in candidates if candidate.is_dir()]:
        return found[0]
    raise InputError(
        f"{folder}: no audio of split {split!r}; looked for {candidates[0]} and {candidates[1]}; "
        f"unpack audio/{split}.tar.gz where it lies"
    )
