"""Read a store: lazily, by utterance, by unit, or as ragged arrays."""

from __future__ import annotations

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
from voxstrata.base.columns import encoded
from voxstrata.base.errors import InputError, UsageError, naming_extras
from voxstrata.base.plain import counted
from voxstrata.base.recognised import mistaken
from voxstrata.encoders.card import ModelCard
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.encoders.outputs import OutputChoice, names_one, select_output, select_outputs
from voxstrata.store.checked import REPAIR, about_store, identity
from voxstrata.store.files import ROOT, Files, root_attributes, zarr_array
from voxstrata.store.labels import HISTORY, read_utterances, times_relabelled, utterance_columns
from voxstrata.store.markers import marked_units, read_markers
from voxstrata.store.one import StoredUtterance
from voxstrata.store.rows import fill_rows
from voxstrata.store.soundness import first_rows, in_no_unit, reading_zarr, refuse_foreign_arrays
from voxstrata.store.spec import STORE_SCHEMA, StoreSpec
from voxstrata.store.utterances import IdPlaces, StoredUtterances, ids_like
from voxstrata.store.writer import DONE, FAILED, PENDING, PLAN, read_plans

if TYPE_CHECKING:
    import pandas
    import xarray

_POOLED_ROWS = 1 << 14  # rows that pooling reads at once, beside one utterance: memory stays small


class EmbeddingStore:
    """A store opened for reading, a sequence of utterances. Nothing is read before it is asked for."""

    def __init__(self, path: str | Path) -> None:
        self.files = Files(path)
        about = root_attributes(self.files).get("voxstrata")
        if not isinstance(about, dict):
            raise InputError(mistaken(path, "a voxstrata store", "`voxstrata extract` makes one"))
        if about.get("schema") != STORE_SCHEMA:
            raise InputError(
                f"{path}: store schema {about.get('schema')}, this version reads {STORE_SCHEMA}; extract again"
            )
        if not self.files.exists(PLAN):
            raise InputError(f"{path}: its creation was interrupted; run the extraction again, it will resume")
        self.about: dict[str, Any] = about_store(self.files)
        if self.files.names(HISTORY):  # so that results say which labels they were made with
            self.about["relabelled"] = times_relabelled(read_utterances(self.files, ()))
        try:
            self.model = ModelCard.from_dict(about["model"])
            self.spec = StoreSpec.from_dict(about["spec"])
            self.spec.check_every(self.model.family)
        except (KeyError, TypeError, ValueError, UsageError) as e:
            raise InputError(f"{path}: what it says of its model is damaged ({e}); get another copy") from e
        refuse_foreign_arrays(self.files, self.spec)
        with reading_zarr(self.files, ROOT):
            self.root = zarr.open_group(self.files.zarr_store(read_only=True), mode="r", zarr_format=3)
        self._some = StoredUtterances(self)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._indexes: dict[str, bytes] = {}  # of shards on an object store

    def __repr__(self) -> str:
        done, total = int((self.status == DONE).sum()), len(self.status)
        return (
            f"<EmbeddingStore {self.files.root}: {done} of {counted(total, 'utterance')}, {self.spec.group} of "
            f"{', '.join(self.outputs)}, d={self.model.d_model}, {self.spec.context.mode}, {self.model.checkpoint}>"
        )

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, utterance: str | int) -> StoredUtterance:
        return StoredUtterance(self, self.index(utterance))

    def __iter__(self) -> Iterator[StoredUtterance]:
        return (StoredUtterance(self, i) for i in range(len(self)))

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
        """Seconds from one stored row to the next, Whisper's 0.02 unless frames were averaged; None when pooled."""
        samples = self.about["samples_per_row"]
        return None if samples is None else samples / SAMPLE_RATE

    @cached_property
    def start(self) -> NDArray[np.int64]:
        """First row of each utterance, int64 (utterances,)."""
        return self._places[0]

    @cached_property
    def length(self) -> NDArray[np.int32]:
        """Rows of each utterance, int32 (utterances,)."""
        return self._places[1]

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """`start` and `length`.

        Raises InputError where they are not as the plan has them: rows would be others'.
        """
        start, length = self.along("start"), self.along("length")
        expected = first_rows(length, self._plans)
        if len(start) != len(length) or expected is None or not np.array_equal(start, expected):
            raise InputError(f"{self.files.root}: start or length: damaged, or not of this plan; {REPAIR}")
        rows = min(self.array(output).shape[0] for output in self.outputs)
        if (start + length > rows).any():
            raise InputError(f"{self.files.root}: {self.spec.group}: has fewer rows than its utterances; {REPAIR}")
        return start, length

    def along(self, name: str) -> NDArray[Any]:
        """A whole array along the utterances."""
        with reading_zarr(self.files, name):
            return np.asarray(zarr_array(self.root, name)[:])

    @cached_property
    def _plans(self) -> list[dict[str, Any]]:
        return read_plans(self.files, self.about)

    @property
    def unit_rows(self) -> int:
        """Rows of one unit, that is of one shard."""
        return int(self._plans[0]["unit_rows"])

    @cached_property
    def unit_bounds(self) -> list[tuple[int, int]]:
        """First utterance of each unit, and the one after its last."""
        first = ((plan["first_utterance"], pairwise(plan["unit_begin"])) for plan in self._plans)
        return [(n + a, n + b) for n, bounds in first for a, b in bounds]

    @cached_property
    def unit_identities(self) -> list[str | None]:
        """Of each unit, what its marker says that it is of (`voxstrata.store.checked.identity`)."""
        own = [(identity(self.about, None if i == 0 else p["fingerprint"]), p) for i, p in enumerate(self._plans)]
        return [store for store, plan in own for _ in plan["unit_begin"][1:]]

    @cached_property
    def markers(self) -> dict[int, dict[str, Any]]:
        """What the markers of the committed units say, by unit."""
        units = [unit for unit in marked_units(self.files) if unit < len(self.unit_bounds)]
        found = read_markers(self.files, units, self.unit_identities.__getitem__)
        return {unit: marker for unit, marker in zip(units, found, strict=True) if marker is not None}

    @property
    def pending_units(self) -> list[int]:
        """Units that are not committed."""
        return [unit for unit in range(len(self.unit_bounds)) if unit not in self.markers]

    @property
    def marked_failures(self) -> dict[int, str]:
        """Failures that only commit markers know yet: those of a run that has not finished."""
        return {int(i): reason for marker in self.markers.values() for i, reason in marker["failed"].items()}

    @cached_property
    def stored_status(self) -> NDArray[np.uint8]:
        """The array `status` as it is stored."""
        status = self.along("status")
        if len(status) != len(self) or (status > FAILED).any():
            raise InputError(f"{self.files.root}: status: damaged, it holds what no status is; {REPAIR}")
        known = identity(self.about) is not None
        if known and (status[in_no_unit(len(self), self._plans)] != FAILED).any():  # zeros where its chunk is gone
            raise InputError(f"{self.files.root}: status: damaged, or not of this plan; {REPAIR}")
        return status

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """0 pending, 1 done, 2 failed, for each utterance; up to date while a run is going on or was cut short."""
        status = self.stored_status.copy()
        if (status == PENDING).any():
            for unit in self.markers:
                status[slice(*self.unit_bounds[unit])] = DONE
            status[list(self.marked_failures)] = FAILED
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
        return StoredUtterances(self).whole()

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of `utterances`, read without the others where the file says whose it is."""
        if "utterances" in self.__dict__ or identity(self.about) is None:
            return self.utterances.select(list(columns))
        return self._some.some(columns)

    def codes(self, column: str) -> tuple[NDArray[np.int64], pa.Array]:
        """A number for each utterance's value of a column of strings, int64 (utterances,), and the values by number, in
        the order of their first rows; what is null has the number after the last."""
        if "utterances" in self.__dict__ or identity(self.about) is None:
            return encoded(self.utterances[column])
        return self._some.codes(column)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of `utterances`."""
        return utterance_columns(self.files)

    @cached_property
    def ids(self) -> list[str]:
        """Utterance ids in index order."""
        return list(self.table(["id"])["id"].to_pylist())

    @cached_property
    def _ids_at(self) -> IdPlaces:
        return IdPlaces(lambda: self.table(["id"])["id"])

    def index(self, utterance: str | int) -> int:
        """Index of an utterance by id, or by index, from the end if negative. Raises UsageError for an unknown one."""
        if isinstance(utterance, str):
            return int(self.indices([utterance])[0])
        if not (hasattr(utterance, "__index__") and -len(self) <= utterance < len(self)):
            raise UsageError(f"{self.files.root}: index {utterance} out of range, utterances there: {len(self)}")
        return int(utterance) % len(self)

    def indices(self, utterances: Sequence[str | int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Indices of utterances given by ids or indices, int64 (utterances,). Raises UsageError for an unknown one."""
        names = list(dict.fromkeys(name for name in utterances if isinstance(name, str)))
        where = self._ids_at.of(names)
        for name in names:
            if name not in where:
                held = ", ".join(map(repr, ids_like(self.table(["id"])["id"], name)))
                raise UsageError(f"{self.files.root}: no utterance {name!r}, it holds e.g. {held}")
        return np.array([where[u] if isinstance(u, str) else self.index(u) for u in utterances], np.int64)

    def array(self, output: str | int) -> zarr.Array[Any]:
        """The zarr array of an output: (rows, d) of frames, or (utterances, d) when pooled."""
        output = self.output(output)
        if output not in self._arrays:  # zarr takes longer to find an array than we to read an utterance
            with reading_zarr(self.files, f"{self.spec.group}/{output}"):
                self._arrays[output] = zarr_array(self.root, f"{self.spec.group}/{output}")
        return self._arrays[output]

    def output(self, name: str | int) -> str:
        """The stored output that a name means: "layer_03", in short "3", 3 or "layer_3", and -1 for the last.

        Raises UsageError for one that is not stored, and for several.
        """
        try:
            return select_output(name, self.outputs)
        except UsageError as e:
            raise UsageError(f"{self.files.root}: {e}") from None

    def frames(self, utterance: str | int, output: str | int) -> NDArray[Any]:
        """States of one utterance, (rows, d) in the stored dtype. output: as `output` takes it, here and below."""
        return self.ragged(output, [self.index(utterance)])[0]

    def ragged(
        self, output: str | int, indices: Sequence[int] | NDArray[np.integer[Any]]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """States of several utterances, in the order asked for.

        Returns rows (n, d) and offsets int64 (utterances + 1,): utterance k owns rows[offsets[k] : offsets[k + 1]].
        Raises UsageError for a pooled store or an utterance that is not done.
        """
        if not self.has_frames:
            raise UsageError(f"{self.files.root}: holds pooled vectors, no frames; extract without --pooled")
        index = np.asarray(indices, np.int64)
        self._require_done(index)
        array = self.array(output)
        offsets = np.concatenate([[0], np.cumsum(self.length[index], dtype=np.int64)])
        rows = np.empty((int(offsets[-1]), array.shape[1]), array.dtype)
        # neighbours on disk are read in one piece
        breaks = np.flatnonzero(self.start[index][1:] != (self.start[index] + self.length[index])[:-1]) + 1
        for piece in np.split(np.arange(len(index)), breaks):
            if len(piece):
                first, own = int(self.start[index[piece[0]]]), rows[offsets[piece[0]] : offsets[piece[-1] + 1]]
                fill_rows(self.files, array, first, own, self._indexes)
        return rows, offsets

    def _vectors(self, array: zarr.Array[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Single rows of an array, float32, unit after unit."""
        out, unit = np.empty((len(rows), array.shape[1]), np.float32), rows // self.unit_rows
        for one in np.unique(unit):
            own = np.flatnonzero(unit == one)
            first, last = int(rows[own].min()), int(rows[own].max())
            read = np.empty((last - first + 1, array.shape[1]), array.dtype)
            fill_rows(self.files, array, first, read, self._indexes)
            out[own] = read[rows[own] - first]
        return out

    def units(self, output: str | int) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64]]]:
        """Unit after unit, as stored: (indices, rows, offsets) of its done utterances; memory stays at one unit."""
        for a, b in self.unit_bounds:
            indices = a + np.flatnonzero(self.status[a:b] == DONE)
            if len(indices):
                yield (indices, *self.ragged(output, indices))

    def pooled(
        self, output: str | int, indices: Sequence[int] | NDArray[np.integer[Any]] | None = None
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
            return self._vectors(array, self.start[index])
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

    @naming_extras()
    def to_xarray(self) -> xarray.Dataset:
        """The arrays of all outputs, read when values are asked for; what is known of the utterances as coordinates.

        Frames have dimensions row and d_model; an utterance's are the `row_count` rows from `row_start` on. Pooled
        states have utterance and d_model. Needs xarray and pandas.
        """
        from voxstrata.store.labelled import dataset_of

        return dataset_of(self)

    @naming_extras()
    def to_torch(
        self,
        outputs: OutputChoice = "all",
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

        known = [name for name in self.columns if name not in ("index", "states", "lengths")]
        chosen("column", list(columns) or None, known)
        index = np.flatnonzero(self.status == DONE) if utterances is None else self.indices(utterances)
        self._require_done(index)
        names = select_outputs(outputs, self.outputs)
        return (StoreStream if iterable else StoreDataset)(self, names, names_one(outputs, names), index, columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.files.root,)  # in another process it is opened anew

    def _require_done(self, index: NDArray[np.int64]) -> None:
        outside = index[(index < -len(self)) | (index >= len(self))]
        if len(outside):
            self.index(int(outside[0]))
        if len(bad := index[self.status[index] != DONE]):
            row = self.table(["id", "status", "failure"]).slice(int(bad[0]), 1).to_pylist()[0]
            why = f": {row['failure']}" if row["failure"] else "; run the extraction to its end"
            raise UsageError(f"{self.files.root}: utterance {row['id']!r} is {row['status']}{why}")
