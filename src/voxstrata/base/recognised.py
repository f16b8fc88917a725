"""What lies at a path, told by its files: an argument that is mistaken for another ends in an error that says both."""

import os
from pathlib import Path
from typing import NamedTuple

from voxstrata.base.errors import InputError
from voxstrata.base.opening import JSON_BYTES, open_regular, read_regular
from voxstrata.base.remote import is_url, shown

GENERATOR = '<meta name="generator" content="voxstrata report">'  # by which a page is known as ours
_HEAD = 4096  # bytes of a page in which that stands
_TABLES = (".tsv", ".csv", ".jsonl", ".parquet")

# The file by which a folder with a result is known, and the command that writes it.
RESULT_FILES = {
    "retrieval.parquet": "retrieve", "compared.parquet": "retrieve", "found.parquet": "retrieve",
    "align.parquet": "align", "compared_align.parquet": "align", "phonetics.parquet": "phonetics",
    "words.parquet": "words", "errors.parquet": "early-exit sweep", "fits.parquet": "early-exit sweep",
    "languages.parquet": "early-exit sweep", "wrong_words.parquet": "early-exit sweep", "pairs.parquet": "mine",
    "explain.parquet": "explain", "drift.parquet": "drift", "bench.parquet": "bench",
}  # fmt: skip


class Recognised(NamedTuple):
    """what: such as "a store". belongs: what takes it, in a clause."""

    what: str
    belongs: str


A_STORE = Recognised("a store", "stores are given as STORE")
_MODEL = Recognised("a model", "models are given as MODEL")
A_CHECKPOINT = Recognised("a checkpoint", "`voxstrata export` makes a model of a checkpoint")
_SIMILARITY = Recognised("a folder of `voxstrata similarity`", "`voxstrata retrieve` and `mine` take it as STORE")
_PAGE = Recognised("a page of `voxstrata report`", "a browser shows it")
A_TABLE = Recognised("a table", "manifests are given as CORPUS")
_TAKEN = {
    "phonetics.parquet": "--phonetics of `voxstrata align` and `retrieve` takes them",
    "fits.parquet": "--refitted of `voxstrata early-exit write` takes them",
}


def recognised(path: str | Path) -> Recognised | None:
    """What lies there, where that can be told: something that voxstrata wrote, a checkpoint, or a table. Reads the
    zarr.json of a store or the head of a page at most; None for URLs and for what cannot be read."""
    here = Path(path)
    try:
        if is_url(path) or not here.exists():
            return None
        if here.is_dir():
            return _folder(here)
        if here.suffix in (".html", ".htm"):
            with open_regular(here) as file:
                return _PAGE if GENERATOR.encode() in file.read(_HEAD) else None
        return A_TABLE if here.is_file() and here.name.lower().removesuffix(".gz").endswith(_TABLES) else None
    except (OSError, ValueError, InputError):
        return None


def _folder(here: Path) -> Recognised | None:
    """Asks for each name: a folder may hold a corpus of many files, which nobody wants listed."""
    if (here / "zarr.json").exists():
        return A_STORE if b'"voxstrata"' in read_regular(here / "zarr.json", JSON_BYTES) else None
    if (here / "card.json").exists():
        return _MODEL
    if (here / "plan.json").exists() and (here / "rows.parquet").exists():
        return _SIMILARITY
    for name, command in RESULT_FILES.items():
        if (here / name).exists():
            return Recognised(results_of(command), _TAKEN.get(name, "`voxstrata report` shows them"))
    if not (here / "config.json").exists():
        return None
    # a model without its card has a config.json, too
    return None if any(name.endswith(".onnx") for name in os.listdir(here)) else A_CHECKPOINT


def results_of(command: str) -> str:
    """What a folder with the results of a command is called."""
    return f"results of `voxstrata {command}`"


def mistaken(path: str | Path, wanted: str, mend: str, otherwise: str = "") -> str:
    """What an error says where something else lies at a path than was wanted.

    wanted: such as "a model". mend: what to give or to do. otherwise: said of what is not recognised, in the place of
    "not a model".
    """
    name = shown(str(path))
    if not is_url(path) and not os.path.lexists(path):
        return f"{name}: no such file or folder; {mend}"
    if known := recognised(path):
        return _instead(path, known, wanted, mend)
    return f"{name}: {otherwise or f'not {wanted}'}; {mend}"


def refuse_mistaken(path: str | Path, wanted: str, mend: str, right: str = "") -> None:
    """Raises InputError where something is recognised at a path, except where that is called `right`. The others: as of
    `mistaken`."""
    if (known := recognised(path)) and known.what != right:
        raise InputError(_instead(path, known, wanted, mend))


def _instead(path: str | Path, known: Recognised, wanted: str, mend: str) -> str:
    return f"{shown(str(path))}: {known.what}, not {wanted}; {mend} ({known.belongs})"
