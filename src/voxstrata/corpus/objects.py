"""Corpora that Python programs hold: datasets of the library datasets, cuts of lhotse, samples."""

import dataclasses
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from voxstrata.audio.source import Source
from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.corpus.formats import Reading
from voxstrata.corpus.hub import audio_column, described_columns, file_stem, hub_corpus
from voxstrata.corpus.items import DESCRIBED, Item, items_corpus
from voxstrata.corpus.lhotse import LHOTSE_NAMES, cut_item
from voxstrata.corpus.memory import MEMORY, MemoryPack, samples_source
from voxstrata.corpus.table import Corpus, Pack

_HERE = Path(MEMORY)  # what messages name


def read_objects(source: Any, reading: Reading) -> Corpus:
    """A `datasets.Dataset` with a column of audio, a `lhotse.CutSet`, or an iterable of (id, samples, rate).

    Neither library is imported here: objects are told apart by the names of their classes. A fourth value of an
    iterable may be a mapping with language, group, text, speaker and what else is to be kept. Samples are floats in
    [-1, 1], int16 or int32, (frames,) or (frames, channels), at `rate` per second; all are held in memory.

    Raises UsageError for a split of what has none, and for other objects; InputError for what they hold.
    """
    kinds = [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(source).__mro__]
    if "datasets.DatasetDict" in kinds:
        split = reading.split or (next(iter(source)) if len(source) == 1 else None)
        if split not in source:
            raise UsageError(f"a DatasetDict: choose one of its splits, {', '.join(map(str, source))}, not {split!r}")
        return _read_dataset(source[split], reading)
    if reading.split is not None:
        raise UsageError(f"{type(source).__name__}: has no split {reading.split!r} to choose; leave it out")
    if "datasets.Dataset" in kinds:
        return _read_dataset(source, reading)
    if "lhotse.CutSet" in kinds:
        memory: dict[str, Source] = {}
        items = [cut_item(cut.to_dict(), f"cut {i}", Path.cwd(), memory) for i, cut in enumerate(source)]
        return items_corpus(_HERE, reading, LHOTSE_NAMES, items, {MEMORY: MemoryPack(memory)})
    if not isinstance(source, Iterable) or "datasets.IterableDataset" in kinds or isinstance(source, Mapping | bytes):
        raise UsageError(
            f"a corpus of type {type(source).__name__}: give a path, a datasets.Dataset, a lhotse.CutSet, or an "
            "iterable of (id, samples, rate)"
        )
    return _read_samples(source, reading)


def _read_samples(source: Iterable[Any], reading: Reading) -> Corpus:
    items, sources = list[Item](), dict[str, Source]()
    for i, given in enumerate(source):
        if not isinstance(given, Iterable) or isinstance(given, str) or len(parts := tuple(given)) not in (3, 4):
            raise InputError(f"item {i}: a {type(given).__name__}; give (id, samples, rate)")
        name, values = str(parts[0]), parts[3] if len(parts) == 4 else {}
        if not isinstance(values, Mapping):
            raise InputError(
                f"item {i}: its fourth value is a {type(values).__name__}; give a mapping, or leave it out"
            )
        sources[name] = samples_source(name, parts[1], parts[2])
        items.append(Item(f"item {i}", name, MEMORY, name, values=dict(values)))
    names = {what: () if what == "id" else (what,) for what in DESCRIBED}
    return items_corpus(_HERE, reading, names, items, {MEMORY: MemoryPack(sources)})


def _read_dataset(dataset: Any, reading: Reading) -> Corpus:
    schema = dataset.features.arrow_schema
    column = audio_column(_HERE, schema, reading.columns.get("path"))
    if hasattr(feature := dataset.features[column], "decode"):
        dataset = dataset.cast_column(column, dataclasses.replace(feature, decode=False))
    sounds = dataset.select_columns([column]).with_format("arrow")
    where: dict[str, list[Any]] = {name: [] for name in ("id", "path", "member")}
    for batch in sounds.iter(64):
        for sound in batch[column].chunks:
            absent = sound.field("bytes").is_null().to_pylist()
            for name, outside in zip(sound.field("path").to_pylist(), absent, strict=True):
                row = str(len(where["id"]))
                where["id"].append((name and file_stem(name), row))
                where["path"].append(str(Path(name).absolute()) if outside and name else MEMORY)
                where["member"].append(None if outside and name else row)
    notes: dict[str, None] = {}
    table = described_columns(
        schema, column, lambda names: dataset.select_columns(names).with_format("arrow")[:], notes
    )
    packs = {MEMORY: DatasetPack(sounds, column)}
    return hub_corpus(_HERE, reading, where, table, packs, notes)


@dataclass(frozen=True, eq=False)
class DatasetPack(Pack):
    """Rows of a `datasets.Dataset` in arrow format; members are their numbers, from 0."""

    rows: Any
    column: str

    def source(self, member: str) -> Source:
        return DatasetSource(self.rows, self.column, int(member))


@dataclass(frozen=True, eq=False)
class DatasetSource(Source):
    """The recording in one row of a `datasets.Dataset`."""

    rows: Any
    column: str
    row: int

    @property
    def name(self) -> str:
        return f"{MEMORY}[{self.row}]"

    def size(self) -> int:
        return len(self.read())

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read())

    def read(self) -> bytes:
        sound = self.rows[self.row][self.column][0].as_py()
        if not sound or not sound["bytes"]:
            raise AudioError(f"{self.name}: holds no audio bytes; remove the row")
        data: bytes = sound["bytes"]
        return data
