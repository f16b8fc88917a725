"""Read a store: lazily, by utterance, by unit, or as ragged arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.encoders.card import ModelCard
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.encoders.outputs import select_outputs
from voxstrata.store.files import ROOT, Files, root_attributes, zarr_array
from voxstrata.store.labels import HISTORY, read_utterances, times_relabelled
from voxstrata.store.shard import ShardLayout
from voxstrata.store.spec import STORE_SCHEMA, StoreSpec
from voxstrata.store.writer import DONE, FAILED, PENDING, PLAN, marked_units, read_marker, read_plans, stored_table

if TYPE_CHECKING:
    import pandas
    import xarray

_POOLED_ROWS = 1 << 14  # rows that pooling reads at once, beside one utterance: memory stays small
# Arrays of stores and of their copies; zarr has other codecs, too, and some of those run code that a chunk holds.
_TYPES = {"int64", "int32", "uint8", "float16", "float32", "string"}
_CODECS = {"bytes", "sharding_indexed", "crc32c", "zstd", "gzip", "blosc", "transpose", "vlen-utf8"}


def refuse_foreign_arrays(files: Files, spec: StoreSpec) -> None:
    """Raise InputError for arrays that no store and no copy of one has, before zarr reads any.

    That is zarr format 2 (whose filters may be pickles), and types, codecs and transformers that are not known here.
    """
    own = ["start", "length", "status", *(f"{spec.group}/{output}" for output in spec.outputs)]
    others = [f"{spec.group}/{name}" for name in files.names(spec.group) if name != ROOT]  # xarray opens them, too
    for name in dict.fromkeys(["", spec.group, "utterance", *own, *others]):
        try:
            node = json.loads(files.read(f"{name}/{ROOT}".lstrip("/")))
            wrong = _foreign(node)
        except (FileNotFoundError, NotADirectoryError):
            wrong = "no zarr 3 array" if name in own else ""
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            wrong = f"not zarr's metadata ({e!r})"
        if wrong:
            raise InputError(
                f"{files.root}: {name or ROOT}: {wrong}, which voxstrata neither writes nor reads; get another copy"
            )


def _foreign(node: Any) -> str:
    """What is not ours in an array, or in a group and what it says of those below it (consolidated metadata)."""
    if node["zarr_format"] != 3:
        return f"zarr format {node['zarr_format']}"
    if node["node_type"] == "group":
        below = ((node.get("consolidated_metadata") or {}).get("metadata") or {}).values()
        return next(filter(None, map(_foreign, below)), "")
    if str(node["data_type"]) not in _TYPES:
        return f"data type {node['data_type']}"
    if node.get("storage_transformers"):
        return "storage transformers"
    return next((f"codec {name}" for name in _codecs(node["codecs"]) if name not in _CODECS), "")


def _codecs(codecs: Any) -> Iterator[str]:
    for codec in codecs:
        known: dict[str, Any] = {"name": codec} if isinstance(codec, str) else codec
        yield known["name"]
        for inner in ("codecs", "index_codecs"):
            yield from _codecs((known.get("configuration") or {}).get(inner, []))


class EmbeddingStore:
    """A store opened for reading. Nothing is read before it is asked for.

    >>> store = open_store("prompts.zarr")                    # doctest: +SKIP
    >>> store.frames("en/agent-user", "layer_06").shape       # doctest: +SKIP
    (112, 512)
    """

    def __init__(self, path: str | Path) -> None:
        self.files = Files(path)
        about = root_attributes(self.files).get("voxstrata")
        if about is None:
            raise InputError(f"{path}: not a voxstrata store; `voxstrata extract` makes one")
        if about.get("schema") != STORE_SCHEMA:
            raise InputError(
                f"{path}: store schema {about.get('schema')}, this version reads {STORE_SCHEMA}; extract again"
            )
        if not self.files.exists(PLAN):
            raise InputError(f"{path}: its creation was interrupted; run the extraction again, it will resume")
        self.about: dict[str, Any] = about
        if self.files.names(HISTORY):  # so that results say which labels they were made with
            about["relabelled"] = times_relabelled(read_utterances(self.files))
        try:
            self.model = ModelCard.from_dict(about["model"])
            self.spec = StoreSpec.from_dict(about["spec"])
        except (KeyError, TypeError, ValueError, UsageError) as e:
            raise InputError(f"{path}: what it says of its model is damaged ({e}); get another copy") from e
        refuse_foreign_arrays(self.files, self.spec)
        self.root = zarr.open_group(self.files.zarr_store(read_only=True), mode="r", zarr_format=3)
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def __repr__(self) -> str:
        done, total = int((self.status == DONE).sum()), len(self.status)
        return (
            f"<EmbeddingStore {self.files.root}: {done} of {total} utterances, {self.spec.group} of "
            f"{', '.join(self.outputs)}, d={self.model.d_model}, {self.spec.context.mode}, {self.model.checkpoint}>"
        )

    def __len__(self) -> int:
        return len(self.start)

    @property
    def name(self) -> str:
        """Its name without the folders that it lies in."""
        return Path(self.files.root).name

    @property
    def parts(self) -> list[tuple[EmbeddingStore, int]]:
        """The stores that it consists of, each with the index of its first utterance: itself alone, or several."""
        return [(self, 0)]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the stored outputs in depth order."""
        return tuple(self.spec.outputs)

    @property
    def has_frames(self) -> bool:
        """Whether frames are stored, not pooled vectors alone."""
        return self.spec.pool is None

    @property
    def row_seconds(self) -> float | None:
        """Seconds from one stored row to the next (0.02 unless frames were averaged); None when pooled."""
        samples = self.about["samples_per_row"]
        return None if samples is None else samples / SAMPLE_RATE

    @cached_property
    def start(self) -> NDArray[np.int64]:
        """First row of each utterance, int64 (utterances,)."""
        return np.asarray(zarr_array(self.root, "start")[:])

    @cached_property
    def length(self) -> NDArray[np.int32]:
        """Rows of each utterance, int32 (utterances,)."""
        return np.asarray(zarr_array(self.root, "length")[:])

    @cached_property
    def _unit_bounds(self) -> list[tuple[int, int]]:
        """First utterance of each unit, and the one after its last."""
        plans = read_plans(self.files, self.about)
        first = ((plan["first_utterance"], pairwise(plan["unit_begin"])) for plan in plans)
        return [(n + a, n + b) for n, bounds in first for a, b in bounds]

    @cached_property
    def markers(self) -> dict[int, dict[str, Any]]:
        """What the markers of the committed units say, by unit."""
        units = [unit for unit in marked_units(self.files) if unit < len(self._unit_bounds)]
        markers = {unit: read_marker(self.files, unit) for unit in units}
        return {unit: marker for unit, marker in markers.items() if marker is not None}

    @property
    def _failures(self) -> dict[int, str]:
        """Failures that only commit markers know yet: those of a run that has not finished."""
        return {int(i): reason for marker in self.markers.values() for i, reason in marker["failed"].items()}

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """0 pending, 1 done, 2 failed, for each utterance; up to date while a run is going on or was cut short."""
        status = np.asarray(zarr_array(self.root, "status")[:])
        if (status == PENDING).any():
            for unit in self.markers:
                status[slice(*self._unit_bounds[unit])] = DONE
            status[list(self._failures)] = FAILED
        return status

    @property
    def complete(self) -> bool:
        """Whether every utterance is done or failed."""
        return not bool((self.status == PENDING).any())

    @cached_property
    def utterances(self) -> pa.Table:
        """Arrow table in index order: the columns of the corpus (id, path, language, group, text, speaker, member,
        offset, duration, channel, then others), seconds, samples, size_bytes, failure, row_start, row_count, status
        ("done", "failed" or "pending", up to date while a run is going on or was cut short)."""
        # an append that was cut short may have left rows there that are not in the arrays yet
        table, failures = read_utterances(self.files).replace_schema_metadata(None).slice(0, len(self)), None
        if (np.asarray(zarr_array(self.root, "status")[:]) == PENDING).any():
            failures = dict(enumerate(table["failure"].to_pylist())) | self._failures
        return stored_table(table, self.start, self.length, self.status, failures)

    @cached_property
    def ids(self) -> list[str]:
        """Utterance ids in index order."""
        return [str(i) for i in self.utterances["id"].to_pylist()]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    def index(self, utterance: str | int) -> int:
        """Index of an utterance given by id or index. Raises UsageError for an unknown one."""
        if isinstance(utterance, str):
            if utterance not in self._index:
                raise UsageError(f"{self.files.root}: no utterance {utterance!r}, it holds e.g. {self.ids[0]!r}")
            return self._index[utterance]
        if not 0 <= utterance < len(self):
            raise UsageError(f"{self.files.root}: index {utterance} out of range, it holds {len(self)} utterances")
        return int(utterance)

    def array(self, output: str) -> zarr.Array[Any]:
        """The zarr array of an output: (rows, d) of frames, or (utterances, d) when pooled."""
        self.require_output(output)
        if output not in self._arrays:  # zarr takes longer to find an array than we to read an utterance
            self._arrays[output] = zarr_array(self.root, f"{self.spec.group}/{output}")
        return self._arrays[output]

    def require_output(self, output: str) -> None:
        """Raise UsageError for an output that is not stored."""
        if output not in self.outputs:
            raise UsageError(f"{self.files.root}: no output {output!r}; it holds {', '.join(self.outputs)}")

    def frames(self, utterance: str | int, output: str) -> NDArray[Any]:
        """States of one utterance, (rows, d) in the stored dtype."""
        return self.ragged(output, [self.index(utterance)])[0]

    def ragged(
        self, output: str, indices: Sequence[int] | NDArray[np.integer[Any]]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """States of several utterances, in the order asked for.

        Returns rows (n, d) and offsets int64 (utterances + 1,): utterance k owns rows[offsets[k] : offsets[k + 1]].
        Raises UsageError for a pooled store or an utterance that is not done.
        """
        if not self.has_frames:
            raise UsageError(f"{self.files.root}: holds pooled vectors, no frames; extract without --pool")
        index = np.asarray(indices, np.int64)
        self._require_done(index)
        array = self.array(output)
        offsets = np.concatenate([[0], np.cumsum(self.length[index], dtype=np.int64)])
        rows = np.empty((int(offsets[-1]), array.shape[1]), array.dtype)
        # neighbours on disk are read in one piece
        breaks = np.flatnonzero(self.start[index][1:] != (self.start[index] + self.length[index])[:-1]) + 1
        for piece in np.split(np.arange(len(index)), breaks):
            if len(piece):
                first = index[piece[0]]
                self._read(array, int(self.start[first]), rows[offsets[piece[0]] : offsets[piece[-1] + 1]])
        return rows, offsets

    def _read(self, array: zarr.Array[Any], begin: int, out: NDArray[Any]) -> None:
        """Rows of an array from `begin`, into `out`; on a local disk straight from the shards."""
        layout = ShardLayout.of(array)
        if self.files.local is None or layout is None:
            out[:] = array[begin : begin + len(out)]
            return
        shard_rows, end, at = layout.shard_rows, begin + len(out), begin
        while at < end:
            unit = at // shard_rows
            stop = min(end, (unit + 1) * shard_rows)
            path = self.files.local / array.path / array.metadata.encode_chunk_key((unit, 0))
            layout.read(path, at % shard_rows, out[at - begin : stop - begin])
            at = stop

    def units(self, output: str) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64]]]:
        """Unit after unit, as stored: (indices, rows, offsets) of its done utterances; memory stays at one unit."""
        for a, b in self._unit_bounds:
            indices = a + np.flatnonzero(self.status[a:b] == DONE)
            if len(indices):
                yield (indices, *self.ragged(output, indices))

    def pooled(
        self, output: str, indices: Sequence[int] | NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.float32]:
        """Mean over the rows of each utterance, float32 (utterances, d); read, or computed from frames.

        By default of all utterances; then those not done are NaN.
        Raises UsageError when an utterance asked for is not done.
        """
        if indices is None:
            out = np.full((len(self), self.model.d_model), np.nan, np.float32)
            done = np.flatnonzero(self.status == DONE)
            out[done] = self.pooled(output, done)
            return out
        index = np.asarray(indices, np.int64)
        self._require_done(index)
        array = self.array(output)
        if not self.has_frames:
            return np.asarray(array.oindex[self.start[index], :], np.float32)
        out = np.empty((len(index), array.shape[1]), np.float32)
        reads = np.cumsum(self.length[index], dtype=np.int64) // _POOLED_ROWS  # which read an utterance falls into
        for run in np.split(np.arange(len(index)), np.flatnonzero(np.diff(reads)) + 1):
            rows, offsets = self.ragged(output, index[run])
            sums = np.add.reduceat(rows.astype(np.float32), offsets[:-1], axis=0)
            out[run] = sums / np.diff(offsets)[:, None]
        return out

    def to_pandas(self) -> pandas.DataFrame:
        """The table of utterances, by id. Needs pandas."""
        return self.utterances.to_pandas().set_index("id")

    def to_xarray(self) -> xarray.Dataset:
        """The arrays of all outputs, read when values are asked for; what is known of the utterances as coordinates.

        Frames have dimensions row and d_model; an utterance's are the `row_count` rows from `row_start` on. Pooled
        states have utterance and d_model. Needs xarray and pandas.
        """
        import xarray

        arrays = xarray.open_zarr(
            self.files.zarr_store(read_only=True), group=self.spec.group, chunks=None, zarr_format=3
        )
        known = self.to_pandas().drop(columns=list(self.outputs), errors="ignore")
        columns = {name: ("utterance", values.to_numpy()) for name, values in known.items()}
        if not self.has_frames and "row" in arrays.dims:  # appended to: between the units are rows of nobody
            arrays = arrays.isel(row=xarray.DataArray(self.start, dims="utterance"))
            done = xarray.DataArray(self.status == DONE, dims="utterance")
            arrays = arrays if done.all() else arrays.where(done, 0)  # as they are before an append
        return arrays.assign_coords(utterance=self.ids, **columns)

    def to_torch(
        self,
        outputs: str | Sequence[str] = "all",
        utterances: Sequence[str | int] | NDArray[np.integer[Any]] | None = None,
        *,
        columns: Sequence[str] = (),
        iterable: bool = False,
    ) -> Any:
        """A data set for PyTorch's DataLoader: a StoreDataset, or, iterable, a StoreStream (voxstrata.store.training).

        outputs: one name gives states (rows, d); several, a list, or "all" give (outputs, rows, d).
        utterances: ids or indices, by default all that are done. columns: of `utterances`, given with every item.
        Needs torch.

        Raises UsageError for an unknown output, utterance or column, and an utterance that is not done.
        """
        from voxstrata.store.training import StoreDataset, StoreStream

        known = [name for name in self.utterances.column_names if name not in ("index", "states", "lengths")]
        chosen("column", list(columns) or None, known)
        asked = np.flatnonzero(self.status == DONE) if utterances is None else [self.index(u) for u in utterances]
        index = np.asarray(asked, np.int64)
        self._require_done(index)
        names, one = select_outputs(outputs, self.outputs), isinstance(outputs, str) and outputs in self.outputs
        return (StoreStream if iterable else StoreDataset)(self, names, one, index, columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.files.root,)  # in another process it is opened anew

    def _require_done(self, index: NDArray[np.int64]) -> None:
        outside = index[(index < 0) | (index >= len(self))]
        if len(outside):
            self.index(int(outside[0]))
        bad = index[self.status[index] != DONE]
        if len(bad):
            i = int(bad[0])
            row = self.utterances.slice(i, 1).to_pylist()[0]
            raise UsageError(
                f"{self.files.root}: utterance {row['id']!r} is {row['status']}"
                + (f": {row['failure']}" if row["failure"] else "; run the extraction to its end")
            )
