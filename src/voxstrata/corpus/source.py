"""Finding out what kind of corpus a path is."""

from pathlib import Path

from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus.fleurs import find_fleurs, read_fleurs
from voxstrata.corpus.folder import read_folder
from voxstrata.corpus.manifest import read_manifest
from voxstrata.corpus.rows import SUFFIXES
from voxstrata.corpus.table import Corpus


def read_corpus(source: str | Path, split: str | None = None) -> Corpus:
    """Read a folder of audio, a manifest or a local FLEURS folder, recognised by what is there.

    A manifest is a .tsv, .csv, .jsonl or .parquet file (see `read_manifest`). A folder that holds
    `<lang>/{train,dev,test}.tsv` of FLEURS' form, directly or below `data/`, is FLEURS (see `read_fleurs`);
    any other folder is searched for audio files (see `read_folder`). No recording is opened here.

    split: "train", "dev" or "test" of FLEURS; all of them when None.
    Raises UsageError for an unknown split, or a split of what is not FLEURS; InputError if the source is missing,
    malformed or without recordings.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a folder of audio or a manifest")
    languages = find_fleurs(source) if source.is_dir() else []
    if languages:
        return read_fleurs(source, languages, split)
    if split is not None:
        raise UsageError(f"{source}: a split ({split!r}) can be chosen of a FLEURS folder only; leave it out")
    if source.is_dir():
        return read_folder(source)
    if source.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{source}: not a folder and not a manifest ({', '.join(SUFFIXES)}); give the folder it lies in, "
            "or a manifest that names it"
        )
    return read_manifest(source)
