"""What lies at a path, told by its files: an argument that is mistaken for another ends in an error that says both."""

import os
from pathlib import Path
from typing import NamedTuple

from voxstrata.base.remote import is_url, shown

GENERATOR = '<meta name="generator" content="voxstrata report">'  # by which a page is known as ours
_HEAD = 4096  # bytes of a page in which that stands
_TABLES = (".tsv", ".csv", ".jsonl", ".parquet", ".gz")

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
_CHECKPOINT = Recognised("a checkpoint", "`voxstrata export` makes a model of a checkpoint")
_SIMILARITY = Recognised("a folder of `voxstrata similarity`", "`voxstrata retrieve` and `mine` take it as STORE")
_PAGE = Recognised("a page of `voxstrata report`", "a browser shows it")
_TABLE = Recognised("a table", "manifests are given as CORPUS")
_TAKEN = {
    "phonetics.parquet": "--phonetics of `voxstrata align` and `retrieve` takes them",
    "fits.parquet": "--refitted of `voxstrata early-exit write` takes them",
}


def recognised(path: str | Path) -> Recognised | None:
    """What lies there, where that can be told: something that voxstrata wrote, a checkpoint, or a table. Reads a few
    bytes at most; None for URLs and for what cannot be read."""
    here = Path(path)
    try:
        if is_url(path) or not here.exists():
            return None
        if here.is_dir():
            return _folder(here, set(os.listdir(here)))
        if here.suffix in (".html", ".htm"):
            with here.open("rb") as file:
                return _PAGE if GENERATOR.encode() in file.read(_HEAD) else None
        return _TABLE if here.is_file() and here.suffix in _TABLES else None
    except (OSError, ValueError):
        return None


def _folder(here: Path, names: set[str]) -> Recognised | None:
    if "zarr.json" in names:
        with (here / "zarr.json").open("rb") as file:
            return A_STORE if b'"voxstrata"' in file.read(1 << 26) else None
    if "card.json" in names:
        return _MODEL
    if {"plan.json", "rows.parquet"} <= names:
        return _SIMILARITY
    for name, command in RESULT_FILES.items():
        if name in names:
            return Recognised(f"results of `voxstrata {command}`", _TAKEN.get(name, "`voxstrata report` shows them"))
    damaged = any(name.endswith(".onnx") for name in names)  # a model without its card, which has a config.json, too
    return _CHECKPOINT if "config.json" in names and not damaged else None


def mistaken(path: str | Path, wanted: str, mend: str, otherwise: str = "") -> str:
    """What an error says where something else lies at a path than was wanted.

    wanted: such as "a model". mend: what to give or to do. otherwise: said of what is not recognised, in the place of
    "not a model".
    """
    name = shown(str(path))
    if not is_url(path) and not os.path.lexists(path):
        return f"{name}: no such file or folder; {mend}"
    if known := recognised(path):
        return f"{name}: {known.what}, not {wanted}; {mend} ({known.belongs})"
    return f"{name}: {otherwise or f'not {wanted}'}; {mend}"
