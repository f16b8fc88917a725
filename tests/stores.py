"""Small stores of made-up frames, written as extraction writes them but without audio or a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from voxstrata.audio.decode import AudioInfo
from voxstrata.corpus import Corpus, Probed
from voxstrata.corpus.table import CORPUS_SCHEMA
from voxstrata.encoders.card import ModelCard
from voxstrata.encoders.family import Family, Output, Step
from voxstrata.encoders.frames import SAMPLE_RATE, SAMPLES_PER_FRAME
from voxstrata.store import EmbeddingStore, StoreSpec, StoreWriter, make_plan, open_store


@dataclass(frozen=True)
class Utterance:
    """Frames (n, d), language and group of an utterance."""

    frames: np.ndarray
    language: str | None = "en"
    group: str | None = None


def card(d: int, **changes: Any) -> ModelCard:
    """A model card as an export would write it."""
    whole = ModelCard(
        1, "made-up", None, "0" * 64, 1, d, 1, 80, "float32", 17, ("final",), "final", {"sha256": "1" * 64}, {}, {}
    )
    return replace(whole, **changes)


def family(
    name: str,
    outputs: Sequence[str],
    *,
    hop: int = 320,
    norm: Any = "post",
    repeats: int = 1,
    prefix: tuple[str, ...] = (),
) -> Family:
    """A declaration; `final` has fewer frames by `repeats`."""
    held = tuple(Output(o, o, None, repeats if o == "final" else 1) for o in outputs)
    steps, flops = (Step(hop, hop),), (0, 0, 0)
    return Family(
        name, "samples", "none", 1, steps, 100 * hop, 0, ("exact",), "none", norm, held, stem_flops=flops,
        block_flops=flops, prefix=prefix,
    )  # fmt: skip


def make_store(
    path: Path, utterances: Mapping[str, Utterance], *, spec: StoreSpec | None = None, **changes: Any
) -> EmbeddingStore:
    """Write a store of which every output holds these frames, by default `final`; `changes` to the model's card.

    An utterance without frames is one whose header cannot be read.
    """
    spec = spec or StoreSpec(("final",), dtype="float32")
    ids = list(utterances)
    d = next(iter(utterances.values())).frames.shape[1]
    samples = [len(utterances[i].frames) * spec.every * SAMPLES_PER_FRAME for i in ids]
    columns: dict[str, list[str | None]] = {
        "id": list(ids),
        "path": [f"{i}.wav" for i in ids],
        "language": [utterances[i].language for i in ids],
        "group": [utterances[i].group for i in ids],
        "text": [None] * len(ids),
        "speaker": [None] * len(ids),
    }
    infos = [AudioInfo(n, SAMPLE_RATE, n, 1, 44) if n else None for n in samples]
    unreadable = {i: "no audio" for i, n in enumerate(samples) if not n}
    plan = make_plan(
        Corpus(Path("/"), pa.table(columns, schema=CORPUS_SCHEMA)),
        Probed.of(infos, unreadable),
        spec,
        d,
        unit_megabytes=1,
    )
    writer = StoreWriter(path, plan, card(d, **changes))
    names = plan.utterances["id"].to_pylist()
    for unit in set(range(plan.units)) - writer.done():
        block = np.zeros((plan.unit_rows, d), spec.stored_dtype)
        for i in plan.members(unit):
            start = int(plan.start[i]) - unit * plan.unit_rows
            frames = utterances[names[i]].frames
            block[start : start + plan.length[i]] = frames.mean(axis=0) if spec.pool else frames
        writer.commit(unit, dict.fromkeys(spec.outputs, block), {})
    writer.finish()
    return open_store(path)


def without_checksums(path: Path) -> None:
    """Make of a store one as versions before checksums wrote it."""
    root = json.loads((path / "zarr.json").read_text())
    about, below = root["attributes"]["voxstrata"], root["consolidated_metadata"]["metadata"]
    del about["checksums"], root["attributes"]["voxstrata_checksum"]
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name in [name for name, node in below.items() if node["node_type"] == "array"]:
        values, metadata = group[name][:], json.loads((path / name / "zarr.json").read_text())
        for codecs in (metadata["codecs"], metadata["codecs"][0].get("configuration", {}).get("codecs", [])):
            codecs[:] = [codec for codec in codecs if codec["name"] != "crc32c"]
        below[name] = metadata
        (path / name / "zarr.json").write_text(json.dumps(metadata))
        zarr.open_group(path, mode="r+", use_consolidated=False)[name][:] = values
    (path / "zarr.json").write_text(json.dumps(root))
    for file in path.glob("*/zarr.json"):
        node = json.loads(file.read_text())
        if inner := (node.get("consolidated_metadata") or {}).get("metadata"):
            inner |= {name: below[f"{file.parent.name}/{name}"] for name in inner}
            file.write_text(json.dumps(node))
    for file in [*path.glob("*.parquet"), *path.glob("history/*.parquet")]:
        table = pq.read_table(file)
        known = {k: v for k, v in (table.schema.metadata or {}).items() if k not in (b"store", b"checksum")}
        pq.write_table(table.replace_schema_metadata(known), file)
    for file in [path / "plan.json", *path.glob("units/*.json")]:
        added = ("store", "checksum", "checksums", "readme")
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in added}))


class MadeUpStore:
    """A store in memory, as retrieval reads one: several outputs of any frames, a row each in `utterances`.

    most_frames: the largest number of frames that was read at once.
    """

    __class__ = property(lambda _: EmbeddingStore)  # type: ignore[assignment]  # so that isinstance takes it for one
    has_frames = True
    name = "made-up.zarr"
    files = SimpleNamespace(root=name)
    about: ClassVar = {
        "model": {"checkpoint": "made-up", "silence": {}},
        "spec": {"context": {"mode": "bucketed"}},
        "plan": "0" * 64,
    }

    def __init__(self, utterances: pa.Table, frames: Mapping[str, Sequence[np.ndarray]]) -> None:
        self.utterances = utterances.append_column("status", pa.array(["done"] * len(utterances)))
        self.outputs = tuple(frames)
        self.most_frames = 0
        self._frames = frames

    def output(self, name: str) -> str:
        return name

    @property
    def parts(self) -> list[tuple[MadeUpStore, int]]:
        return [(self, 0)]

    @property
    def ids(self) -> list[str]:
        ids: list[str] = self.utterances["id"].to_pylist()
        return ids

    def table(self, columns: Sequence[str]) -> pa.Table:
        return self.utterances.select(list(columns))

    @property
    def length(self) -> np.ndarray:
        return np.array([len(states) for states in next(iter(self._frames.values()))])

    def ragged(self, output: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._frames[output][i] for i in indices]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        self.most_frames = max(self.most_frames, int(offsets[-1]))
        return np.concatenate(parts), offsets

    def pooled(self, output: str, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._frames[output][i].mean(axis=0) for i in indices]).astype(np.float32)


def ends(row: Mapping[str, Any]) -> tuple[str, str]:
    """What a row of figures is about: source and target of a direction, both together for a pair, or mean and mean."""
    if row["level"] == "direction":
        return row["source"], row["target"]
    name = f"{row['source']} ↔ {row['target']}" if row["level"] == "pair" else "mean"
    return name, name
