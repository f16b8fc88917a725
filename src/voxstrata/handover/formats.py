"""The forms that a share can be written in, a function each: it fills one folder."""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.handover.share import Share

RUN_BYTES = 32 << 20  # read at once, over all outputs
SHARD_BYTES = 256 << 20  # of one file of those formats that want several


@dataclass(frozen=True)
class Form:
    """A form that others read.

    write: fills a folder with a share; gets the folder, and the path that it will have in the end.
    files: patterns of what it writes there beside voxstrata.json and utterances.parquet; OUTPUT stands for an output.
    package, extra: what it needs beside voxstrata's own packages, and the extra that brings it.
    index: fills the folder above, given the folders of all shares by name; where there is one share they are the same.
    """

    write: Callable[[Share, Path, Path], None]
    files: tuple[str, ...]
    package: str | None = None
    extra: str | None = None
    index: Callable[[Mapping[str, str], Share, Path], None] | None = None


def vectors(rows: NDArray[Any]) -> pa.Array:
    """Rows (n, d) as an Arrow array of lists of d values, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


# --- tables: Parquet and Lance ---


def _batches(share: Share) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """One row a frame (id, language, frame, outputs), or, pooled, one row an utterance with all that is known of it."""
    vector = pa.list_(pa.from_numpy_dtype(share.dtype), share.d_model)
    table = share.utterances()
    if not share.pooled:
        table = table.select(["id", "language"])
    fields = [*table.schema, *([] if share.pooled else [pa.field("frame", pa.int32())])]
    schema = pa.schema([*fields, *((output, vector) for output in share.outputs)], share.metadata())

    def batches() -> Iterator[pa.RecordBatch]:
        for run in share.runs(RUN_BYTES):
            lengths = np.diff(run.offsets)
            known = table.take(pa.array(np.repeat(run.positions, lengths)))
            columns = known.combine_chunks().columns
            if not share.pooled:
                frames = np.arange(run.offsets[-1]) - np.repeat(run.offsets[:-1], lengths)
                columns.append(pa.chunked_array([pa.array(frames, pa.int32())]))
            columns += [pa.chunked_array([vectors(rows)]) for rows in run.rows.values()]
            yield from pa.table(columns, schema=schema).to_batches()

    return schema, batches()


def _parquet(share: Share, folder: Path, _: Path) -> None:
    schema, batches = _batches(share)
    with pq.ParquetWriter(folder / _table(share, "parquet"), schema, **_settings(share, schema)) as file:
        for batch in batches:
            file.write_batch(batch)
    if not share.pooled:
        share.write_utterances(folder, share.utterances())


def _settings(share: Share, schema: pa.Schema) -> dict[str, Any]:
    """How Parquet is written: states as they are, since compressing or summing them up costs more than it gains."""
    known = [field for field in schema if field.name not in share.outputs]
    names, texts = [field.name for field in known], [field.name for field in known if field.type == pa.string()]
    # a column that `compression` does not name is not compressed
    return {"compression": dict.fromkeys(names, "zstd"), "use_dictionary": texts, "write_statistics": names}


def _lance(share: Share, folder: Path, _: Path) -> None:
    import lance

    schema, batches = _batches(share)
    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), folder / _table(share, "lance"))
    if not share.pooled:
        share.write_utterances(folder, share.utterances())


def _table(share: Share, suffix: str) -> str:
    return f"{'utterances' if share.pooled else 'frames'}.{suffix}"


# --- arrays ---


def _npy(share: Share, folder: Path, _: Path) -> None:
    """An array an output, rows of all utterances one after the other, which `numpy.load(…, mmap_mode="r")` maps."""
    about = {"descr": share.dtype.str, "fortran_order": False, "shape": (int(share.lengths.sum()), share.d_model)}
    with ExitStack() as stack:
        files = {o: stack.enter_context((folder / f"{o}.npy").open("wb")) for o in share.outputs}
        for file in files.values():
            np.lib.format.write_array_header_1_0(file, about)
        for run in share.runs(RUN_BYTES):
            for output, rows in run.rows.items():
                rows.tofile(files[output])
    share.write_utterances(folder, share.utterances())


def _safetensors(share: Share, folder: Path, _: Path) -> None:
    """Tensors by id, in files of about 256 MB over all outputs: OUTPUT-00000.safetensors …; the table says which."""
    from safetensors.numpy import save_file

    table, shards = share.utterances(), np.zeros(len(share), np.int32)
    ids = table["id"].to_pylist()
    if "__metadata__" in ids:
        raise InputError("safetensors: an utterance cannot be called '__metadata__' there; choose another format")
    for shard, run in enumerate(share.runs(SHARD_BYTES)):
        shards[run.positions] = shard
        for output in share.outputs:
            tensors = {ids[i]: rows[0] if share.pooled else rows for i, rows in run.each(output)}
            save_file(tensors, folder / f"{output}-{shard:05d}.safetensors", share.metadata())
    if "row_start" in table.column_names:  # there are no rows to count from
        table = table.drop(["row_start"])
    share.write_utterances(folder, table.append_column("shard", pa.array(shards)))


# --- Kaldi ---


def _kaldi(share: Share, folder: Path, final: Path) -> None:
    """A data folder of Kaldi's: feats.scp and feats.ark (pooled.scp, pooled.ark), text, utt2spk, utt2lang, …

    Several outputs have a folder each. Numbers are float32, as Kaldi's are. Its ids hold no blanks: ours get "_".
    """
    table = share.utterances()
    known = table.to_pylist()
    names = [_word(row["id"]) for row in known]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"kaldi: two ids are {twice!r} there, where ids hold no blanks; rename one of them")
    files = {o: f"{o}/" if len(share.outputs) > 1 else "" for o in share.outputs}
    kind = "pooled" if share.pooled else "feats"
    scp: dict[str, dict[str, str]] = {o: {} for o in share.outputs}
    with ExitStack() as stack:
        arks: dict[str, BinaryIO] = {}
        for output, below in files.items():
            (folder / below).mkdir(exist_ok=True)
            arks[output] = stack.enter_context((folder / f"{below}{kind}.ark").open("wb"))
        for run in share.runs(RUN_BYTES):
            for output, ark in arks.items():
                for i, rows in run.each(output):
                    at = _write_kaldi(ark, names[i], rows[0] if share.pooled else rows)
                    scp[output][names[i]] = f"{final}/{files[output]}{kind}.ark:{at}"
    speakers = {name: _word(row["speaker"] or row["id"]) for name, row in zip(names, known, strict=True)}
    of_speaker = defaultdict(list)
    for name in sorted(names, key=str.encode):
        of_speaker[speakers[name]].append(name)
    lists: dict[str, dict[str, str]] = {
        "utt2spk": speakers,
        "spk2utt": {speaker: " ".join(utterances) for speaker, utterances in of_speaker.items()},
        "utt2dur": {name: f"{row['seconds']:.6g}" for name, row in zip(names, known, strict=True)},
    }
    for column, name in (("text", "text"), ("language", "utt2lang"), ("row_count", "utt2num_frames")):
        if column in table.column_names:
            words = {n: row[column] for n, row in zip(names, known, strict=True) if row[column] is not None}
            lists[name] = {n: " ".join(str(value).split()) for n, value in words.items()}
    for output, below in files.items():
        for name, lines in {**lists, f"{kind}.scp": scp[output]}.items():
            if lines:
                text = "".join(f"{key} {lines[key]}\n" for key in sorted(lines, key=str.encode))  # as LC_ALL=C sorts
                (folder / below / name).write_text(text, encoding="utf-8")
    share.write_utterances(folder, table.append_column("kaldi_id", pa.array(names)))


def _word(name: str) -> str:
    return re.sub(r"\s", "_", name)


def _write_kaldi(ark: BinaryIO, name: str, values: NDArray[Any]) -> int:
    """Append a float32 matrix or vector in Kaldi's binary form (matrix/kaldi-matrix.cc); returns where it begins."""
    ark.write(f"{name} ".encode())
    at = ark.tell()
    ark.write(b"\0B" + (b"FM " if values.ndim == 2 else b"FV "))
    ark.write(b"".join(b"\4" + struct.pack("<i", n) for n in values.shape))
    values.astype("<f4").tofile(ark)
    return at


# --- Hugging Face ---


def _hf(share: Share, folder: Path, _: Path) -> None:
    """One row an utterance: all that is known of it, and its states, in Parquet files of about 256 MB."""
    table = share.utterances()
    if "row_start" in table.column_names:
        table = table.drop(["row_start"])
    (folder / "data").mkdir()
    for shard, run in enumerate(share.runs(SHARD_BYTES)):
        part = table.slice(run.positions.start, len(run.positions)).replace_schema_metadata(share.metadata())
        for output, rows in run.rows.items():
            states = vectors(rows)
            if not share.pooled:
                states = pa.ListArray.from_arrays(pa.array(run.offsets, pa.int32()), states)
            part = part.append_column(output, states)
        group = max(1, len(part) * RUN_BYTES // max(RUN_BYTES, part.nbytes))
        file = folder / "data" / f"train-{shard:05d}.parquet"
        pq.write_table(part, file, row_group_size=group, **_settings(share, part.schema))


def _hf_card(shares: Mapping[str, str], share: Share, folder: Path) -> None:
    """The README.md of a data set: a configuration a share."""
    configs = "\n".join(
        f"- config_name: {_quoted(name or 'unknown')}\n  data_files: {_quoted(f'{below}data/train-*.parquet')}"
        for name, below in shares.items()
    )
    states = "the mean over its frames" if share.pooled else "its frames"
    text = f"""---
configs:
{configs}
---
# Embeddings of speech

States of the encoder of `{share.store.model.checkpoint}`: {", ".join(share.outputs)}.
A row is an utterance, with {states}.
`voxstrata.json` says with which model and settings. `datasets.load_dataset` opens this folder.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"  # as YAML quotes


_LANCE = ("data/*.lance", "_transactions/*.txn", "_versions/*.manifest", "_versions/latest_version_hint.json")
_KALDI_LISTS = ("text", "utt2spk", "spk2utt", "utt2dur", "utt2lang", "utt2num_frames")
_KALDI = (*_KALDI_LISTS, *(f"{kind}.{suffix}" for kind in ("feats", "pooled") for suffix in ("scp", "ark")))

FORMS: Mapping[str, Form] = {
    "parquet": Form(_parquet, ("frames.parquet",)),
    "npy": Form(_npy, ("OUTPUT.npy",)),
    "safetensors": Form(_safetensors, ("OUTPUT-*.safetensors",), "safetensors", "safetensors"),
    "lance": Form(
        _lance, tuple(f"{kind}.lance/{name}" for kind in ("frames", "utterances") for name in _LANCE), "lance", "lance"
    ),
    "kaldi": Form(_kaldi, (*_KALDI, *(f"OUTPUT/{name}" for name in _KALDI))),
    "hf": Form(_hf, ("README.md", "data/train-*.parquet"), index=_hf_card),
}
