"""Finding out what kind of corpus a path is."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.opening import check_regular
from voxstrata.base.recognised import mistaken
from voxstrata.base.remote import is_url
from voxstrata.corpus.audio_folder import find_metadata, is_metadata, read_audio_folder, read_metadata
from voxstrata.corpus.common_voice import (
    find_common_voice,
    is_common_voice,
    is_covost,
    read_common_voice,
    read_common_voice_folder,
)
from voxstrata.corpus.fleurs import find_fleurs, read_fleurs
from voxstrata.corpus.folder import read_folder
from voxstrata.corpus.formats import CorpusFormat, Reading
from voxstrata.corpus.hub import is_hub_parquet, read_hub_parquet
from voxstrata.corpus.kaldi import find_kaldi, read_kaldi
from voxstrata.corpus.lhotse import is_lhotse, read_lhotse
from voxstrata.corpus.manifest import read_manifest
from voxstrata.corpus.nemo import is_nemo, read_nemo
from voxstrata.corpus.objects import read_objects
from voxstrata.corpus.remote import read_remote
from voxstrata.corpus.rows import SUFFIXES, is_table
from voxstrata.corpus.table import Corpus, Lengths
from voxstrata.corpus.tar import is_tar, read_tar

# The first that finds its own reads it: those that look closest come first, what takes anything comes last.
CORPUS_FORMATS = (
    CorpusFormat("a FLEURS folder", lambda path: bool(find_fleurs(path)), read_fleurs, splits=True),
    CorpusFormat("a Kaldi data folder", find_kaldi, read_kaldi),
    CorpusFormat(
        "a Common Voice folder", lambda path: bool(find_common_voice(path)), read_common_voice_folder,
        splits=True, columns=True,
    ),
    CorpusFormat("a Hugging Face audio folder", lambda path: bool(find_metadata(path)), read_audio_folder, True, True),
    CorpusFormat("Parquet with audio", is_hub_parquet, read_hub_parquet, splits=True, columns=True),
    CorpusFormat("WebDataset shards", is_tar, read_tar, columns=True),
    CorpusFormat("manifests of lhotse", is_lhotse, read_lhotse, splits=True, columns=True),
    CorpusFormat("a folder of audio", Path.is_dir, lambda path, _: read_folder(path)),
    CorpusFormat("a CoVoST table", is_covost, read_common_voice, columns=True, durations=True),
    CorpusFormat("a Common Voice table", is_common_voice, read_common_voice, columns=True, durations=True),
    CorpusFormat("a NeMo manifest", is_nemo, read_nemo, columns=True, durations=True),
    CorpusFormat("metadata of a Hugging Face audio folder", is_metadata, read_metadata, columns=True, durations=True),
    CorpusFormat("a manifest", is_table, read_manifest, columns=True, durations=True),
)  # fmt: skip


def read_corpus(
    source: Any,
    split: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    channel: int | None = None,
    lengths: Lengths = "headers",
) -> Corpus:
    """Read a folder of audio, a manifest or a corpus as others keep it, by what is there (CORPUS_FORMATS).

    A table is read by `read_manifest`, and a folder that is nothing else is searched for audio files (`read_folder`).
    No recording is opened here. Objects in memory are read by `read_objects`; a Corpus is taken as it is.

    split: of what has splits; all that there are when None, but Common Voice needs one.
    columns: what a table's columns are, `{"text": "sentence"}`.
    channel: the one that is taken of every recording, 0 is the first; when None the manifest's, or the average of all.
    lengths: "headers" reads the header of every recording before it is planned. "manifest" reads none: each recording
        is `duration` seconds long, as its row says, and what turns out otherwise fails alone when it is decoded.
    Raises UsageError for an unknown split, a split, columns or durations of what has none; InputError if the source is
    missing, malformed or without recordings.
    """
    if lengths not in get_args(Lengths):
        raise UsageError(f"unknown lengths {lengths!r}; choose {' or '.join(get_args(Lengths))}")
    reading = Reading(split, columns or {}, lengths)
    if isinstance(source, Corpus):
        if split is not None or columns or lengths == "manifest":
            raise UsageError(
                "split, columns and lengths are chosen when a corpus is read, and this one is read already"
            )
        return _of_channel(source, channel)
    if not isinstance(source, str | Path):
        if lengths == "manifest":
            raise UsageError("lengths of a manifest: objects in memory have none; leave them out")
        return _of_channel(read_objects(source, reading), channel)
    if is_url(source):
        name, corpus = read_remote(str(source), reading)
        return replace(_of_channel(corpus, channel), notes=[f"read as {name}", *corpus.notes])
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a folder of audio or a manifest")
    if not source.is_dir():
        check_regular(source)
    for form in CORPUS_FORMATS:
        if form.found(source):
            break
    else:
        neither = f"not a folder and not a manifest ({', '.join(SUFFIXES)})"
        mend = "name a folder of audio or a manifest"
        raise InputError(mistaken(source, "a corpus", mend, neither))
    if split is not None and not form.splits:
        raise UsageError(f"{source}: {form.name} has no splits; leave out the split {split!r}")
    if columns and not form.columns:
        raise UsageError(f"{source}: {form.name} has no columns to choose; leave them out")
    if lengths == "manifest" and not form.durations:
        raise UsageError(f"{source}: {form.name} has no durations to plan with; leave out the lengths of a manifest")
    corpus = _of_channel(form.read(source, reading), channel)
    return replace(corpus, notes=[f"read as {form.name}", *corpus.notes])


def _of_channel(corpus: Corpus, channel: int | None) -> Corpus:
    """The corpus with one channel of every recording; None leaves it as it is."""
    if channel is None:
        return corpus
    at = corpus.table.column_names.index("channel")
    return replace(corpus, table=corpus.table.set_column(at, "channel", pa.array([channel] * len(corpus), pa.int32())))
