"""Create or resume a store, and commit units to it."""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from voxstrata.base.columns import scattered
from voxstrata.base.errors import InputError
from voxstrata.base.spool import Spool
from voxstrata.corpus.table import PART_SCHEMA
from voxstrata.encoders.card import ModelCard
from voxstrata.store.checked import (
    REPAIR,
    about_store,
    checksum,
    identity,
    identity_of,
    json_bytes,
    table_bytes,
    with_checksum,
)
from voxstrata.store.claims import Claims
from voxstrata.store.description import (
    ARRAY_MEANINGS,
    COORDINATES,
    README,
    corpus_root,
    output_attributes,
    store_readme,
)
from voxstrata.store.files import LOCK, ROOT, Files, root_attributes, zarr_array
from voxstrata.store.labels import HISTORY, UTTERANCES, read_utterances, relabelled, with_column
from voxstrata.store.markers import UNITS, marked_units, marker_name, read_marker, read_markers
from voxstrata.store.plan import Plan
from voxstrata.store.planned import APPENDED, PROBE, refuse_other_plan
from voxstrata.store.planned import PLAN as PLAN
from voxstrata.store.planned import appended_name as appended_name
from voxstrata.store.planned import read_plans as read_plans
from voxstrata.store.shard import ShardLayout, checksum_of, shard_checksum
from voxstrata.store.soundness import reading_zarr
from voxstrata.store.spec import STORE_SCHEMA, StoreSpec
from voxstrata.store.strings import string_chunk

PENDING, DONE, FAILED = 0, 1, 2
SPANS = "spans"  # what a store says of itself whose states are those of words or phones, taken from another store
STATUS = ("pending", "done", "failed")
# What is left of a root group's metadata when a run is killed while it writes them for the first time.
_PARTIAL_ROOT = re.compile(r"zarr\.(json\.)?[0-9a-f]+\.partial")


def stored_table(
    utterances: pa.Table,
    start: NDArray[np.int64],
    length: NDArray[np.int32],
    status: NDArray[np.uint8],
    failures: Mapping[int, str] | None = None,
) -> pa.Table:
    """What `utterances.parquet` holds: a plan's utterances, where their rows are, and what has become of them.

    utterances: of a plan, or stored ones, whose columns are renewed. failures: reasons by index; None leaves them.
    """
    columns = {
        "row_start": start,
        "row_count": length,
        "status": pa.array(STATUS).take(pa.array(status.astype(np.int64))),
    }
    if failures is not None:
        columns["failure"] = scattered(failures, len(utterances))
    for name, values in columns.items():
        utterances = with_column(utterances, name, pa.array(values))
    return utterances


def refuse_foreign(files: Files) -> None:
    """Raise InputError where something lies that is not a store of ours, before anything is written there."""
    if files.local is not None and files.local.exists() and not files.local.is_dir():
        raise InputError(f"{files.root}: a file, not a store; choose another name")
    found = [n for n in files.names() if n != LOCK and not _PARTIAL_ROOT.fullmatch(n)]
    # markers alone make it ours where `verify --repair` has removed what was damaged
    if found and "voxstrata" not in root_attributes(files) and not marked_units(files):
        raise InputError(
            f"{files.root}: exists and is not a voxstrata store (it holds {found[0]}); choose another name"
        )


def refuse_spans(files: Files) -> None:
    """Raise InputError where a store lies that was made of another one: recordings have no place in it."""
    if (made := root_attributes(files).get("voxstrata", {}).get(SPANS)) is not None:
        raise InputError(f"{files.root}: holds spans of {made['store']}; append to that, and make the spans anew")


def compare_settings(files: Files, card: ModelCard, spec: StoreSpec) -> dict[str, Any]:
    """Refuse a store of another model or other settings; what the store says of itself."""
    about = root_attributes(files).get("voxstrata", {})
    where = f"{files.root}: cannot resume: "
    if about.get("schema") != STORE_SCHEMA:
        raise InputError(
            f"{where}its schema is {about.get('schema')}, this version writes {STORE_SCHEMA}; use a new name"
        )
    about = about_store(files)
    theirs, identity = ModelCard.from_dict(about["model"]), card.identity(spec.context)
    for key, value in theirs.identity(spec.context).items():
        if value != identity[key]:
            raise InputError(
                f"{where}it was made with another model: {key} is {value} there ({theirs.checkpoint}), "
                f"{identity[key]} here ({card.checkpoint}); use that model or a new store"
            )
    if theirs.format != card.format:  # other graphs of the same network, which round otherwise
        raise InputError(
            f"{where}its model is of format {theirs.format}, this one of format {card.format}; "
            "use the version of voxstrata that began it, or a new store"
        )
    there, here = _flat(about["spec"]), _flat(spec.to_dict())
    for key in here | there:
        if there.get(key) != here.get(key):
            if key == "outputs":
                held, asked = (",".join(spec["outputs"]) for spec in (there, here))
                raise InputError(
                    f"{where}outputs are {held} there, {asked} here; use the same (--outputs {held}) or a new store"
                )
            raise InputError(
                f"{where}{key} is {there.get(key)} there, {here.get(key)} here; use the same or a new store"
            )
    return dict(about)


class StoreWriter:
    """Writes the units of one plan made with one model.

    Opening makes the store, or resumes the one that is there. A unit counts once its marker exists, and its
    arrays are written whole before that, so a run may end at any instant and be run again.

    Raises InputError when `path` holds something else, or a store of another schema, model or plan.
    """

    # What an append adds to: the units and utterances of the store before it. A plan counts its own from 0.
    first_unit = first_utterance = 0

    def __init__(self, path: str | Path | Files, plan: Plan, card: ModelCard, *, stored: bool = False) -> None:
        """stored: the plan was read from there, and model and settings were compared."""
        self.files, self.plan, self.card = path if isinstance(path, Files) else Files(path), plan, card
        refuse_foreign(self.files)
        if self.files.exists(PLAN):
            if not stored:
                self._compare(card)
            with reading_zarr(self.files, ROOT):
                self._root = zarr.open_group(self.files.zarr_store(read_only=False), mode="r+")
        else:  # nothing, or a creation that was cut short: no unit can have been committed yet
            self._root = self._create(card)
        with reading_zarr(self.files, plan.spec.group):
            self._arrays = {o: zarr_array(self._root, f"{plan.spec.group}/{o}") for o in plan.spec.outputs}
        row_bytes = card.d_model * plan.spec.stored_dtype.itemsize
        expected = ShardLayout(plan.chunk_rows, plan.unit_rows, row_bytes)
        self._layouts: dict[str, ShardLayout] = {}
        for output, array in self._arrays.items():
            layout = ShardLayout.of(array)
            known = layout in (expected, replace(expected, checksums=False))  # as stores of 0.1.0
            if layout is None or not known or array.dtype != plan.spec.stored_dtype:
                raise InputError(
                    f"{self.files.root}: cannot resume: {output} was stored again with other chunks, byte order or "
                    "compression; this copy can be read, resume the original"
                )
            self._layouts[output] = layout
        self._identity = identity(about_store(self.files), self._fingerprint())
        self._sound, self._damaged = set[int](), set[int]()  # by what markers in an object store were found to say

    def _fingerprint(self) -> str:
        """That which the units' markers say they are of: the first plan's."""
        return str(about_store(self.files)["plan"])

    def marked(self) -> set[int]:
        """Units that have a marker, whatever it says; but those that `done` found damaged have none."""
        return self._named() - self._damaged

    def _named(self) -> set[int]:
        own = (unit - self.first_unit for unit in marked_units(self.files))
        return {unit for unit in own if 0 <= unit < self.plan.units}

    def done(self) -> set[int]:
        """Units that are committed, as `committed` says. In an object store each good marker is read once alone."""
        named = self._named()
        if self.files.local is not None:
            return set(filter(self.committed, named))
        new = sorted(named - self._sound)
        markers = read_markers(self.files, [self.first_unit + unit for unit in new], lambda _: self._identity)
        self._damaged = {unit for unit, marker in zip(new, markers, strict=True) if marker is None}
        self._sound |= named - self._damaged
        return named - self._damaged

    def committed(self, unit: int) -> bool:
        """Whether a unit has a marker that can be read; on a local disk not where its shards are missing or cut short,
        as a copy may leave them."""
        if (marker := read_marker(self.files, self.first_unit + unit, self._identity)) is None:
            return False
        return self.files.local is None or len(marker["failed"]) == len(self.plan.members(unit)) or self._whole(unit)

    def _whole(self, unit: int) -> bool:
        assert self.files.local is not None
        plan = self.plan
        for output, array in self._arrays.items():
            shard = self.files.local / self._shard(array, unit)
            expected = self._layouts[output].size(plan.rows_used(unit))
            if not shard.exists() or shard.stat().st_size < expected:
                return False
        return True

    def _shard(self, array: "zarr.Array[Any]", unit: int) -> str:
        return f"{array.path}/{array.metadata.encode_chunk_key((self.first_unit + unit, 0))}"

    def commit(
        self, unit: int, blocks: Mapping[str, NDArray[Any] | Spool], failures: Mapping[int, str], overflows: int = 0
    ) -> None:
        """Write one unit: for every output a block of its used rows × d, as one shard; then its marker.

        `blocks`: empty for a unit without a readable recording, which gets no shards: its rows read as zeros.
        `failures`: reasons by utterance index. `overflows`: stored values that are infinite.
        """
        checksums = {}
        for output, array in self._arrays.items():
            if blocks and isinstance(block := blocks[output], Spool):
                own: list[bytes] = []
                made = partial(self._layouts[output].streamed, block, own)
                self.files.write_made(self._shard(array, unit), made)
                checksums[output] = checksum_of(own)
            elif blocks:
                parts = self._layouts[output].parts(block[: self.plan.rows_used(unit)])
                self.files.write(self._shard(array, unit), *parts)
                checksums[output] = shard_checksum(parts)
            else:
                self.files.remove(self._shard(array, unit))
        number, failed = self.first_unit + unit, {str(self.first_utterance + i): failures[i] for i in sorted(failures)}
        marker: dict[str, Any] = {"unit": number, "failed": failed, "overflows": overflows}
        if self._identity is not None:
            marker["checksums"] = checksums
        self.files.write(marker_name(number), json_bytes(marker, self._identity))
        self._damaged.discard(unit)

    def reopen(self, unit: int) -> None:
        """Make a committed unit pending again; what is stored of it can be read until it is written anew."""
        self.files.remove(marker_name(self.first_unit + unit))
        self._sound.discard(unit)

    def failures(self, units: Iterable[int]) -> tuple[dict[int, str], int]:
        """Reasons by index of all that failed at probing or in these committed units, and the units' overflows.

        Raises InputError for a unit without a marker that can be read.
        """
        failures = dict(self.plan.probed.failures)
        overflows = 0
        numbers = [self.first_unit + unit for unit in units]
        markers = read_markers(self.files, numbers, lambda _: self._identity)
        for number, marker in zip(numbers, markers, strict=True):
            if marker is None:
                mend = REPAIR if self.files.local is None else "run the same extraction again"
                raise InputError(f"{self.files.root}/{marker_name(number)}: missing or damaged; {mend}")
            failures |= {int(i) - self.first_utterance: reason for i, reason in marker["failed"].items()}
            overflows += marker["overflows"]
        return failures, overflows

    def finish(self) -> tuple[dict[int, str], int]:
        """Once every unit is committed: write `status` and the failures; returns all failures by index, and overflows.

        A pure function of plan and markers, so it may be repeated. What killed runs left half-written is removed.
        """
        failures, overflows = self.failures(range(self.plan.units))
        self.files.sweep()  # only now: until then other runs write
        Claims(self.files).clear()
        status, count = self._status(failures), len(self.plan.utterances)
        # As it was made, relabelled and appended to: the manifest of this run may lack columns, or lie elsewhere.
        table = self._with_parts(read_utterances(self.files))
        self._write_utterances(table, status, failures)
        with reading_zarr(self.files, "status"):  # as it is by now: those that were appended are kept
            root = zarr.open_group(self.files.zarr_store(read_only=False), mode="r+")
            zarr_array(root, "status")[:count] = status
        return failures, overflows

    def _with_parts(self, stored: pa.Table) -> pa.Table:
        """A stored table with the columns of PART_SCHEMA, which those of 0.1.0 lack, in the places of the plan's."""
        lacking = [name for name in PART_SCHEMA.names if name not in stored.column_names]
        for name in lacking if len(stored) == len(self.plan.utterances) else ():
            at = self.plan.utterances.schema.get_field_index(name)
            stored = stored.add_column(at, name, self.plan.utterances[name])
        return stored

    def _status(self, failures: Mapping[int, str]) -> NDArray[np.uint8]:
        status = np.full(len(self.plan.utterances), DONE, np.uint8)
        status[list(failures)] = FAILED
        return status

    def _write_utterances(self, table: pa.Table, status: NDArray[np.uint8], failures: Mapping[int, str]) -> None:
        own = stored_table(table.slice(0, len(status)), self.plan.start, self.plan.length, status, failures)
        if len(table) > len(own):
            own = pa.concat_tables([own, table.slice(len(own))])
        self.files.write(UTTERANCES, table_bytes(own, identity_of(self.files)))

    def _create(self, card: ModelCard) -> zarr.Group:
        plan, spec = self.plan, self.plan.spec
        about = {
            "schema": STORE_SCHEMA,
            "model": card.to_dict(),
            "spec": spec.to_dict(),
            "plan": plan.fingerprint(),
            "samples_per_row": None if spec.pool else card.family.hop * spec.every,
            "checksums": "crc32c",
            **plan.derived,
        }
        if plan.corpus.lengths != "headers":
            about["lengths"] = plan.corpus.lengths
        self._clear(identity(about))
        where = {"corpus_root": corpus_root(plan.corpus.root, self.files.local)}
        attributes = with_checksum({"voxstrata": about, **where, **COORDINATES})
        root = zarr.create_group(self.files.zarr_store(read_only=False), attributes=attributes)
        count = len(plan.utterances)
        rows = count if spec.pool else plan.units * plan.unit_rows
        dims = ("utterance" if spec.pool else "row", "d_model")
        root.create_group(spec.group)
        for output in spec.outputs:
            root.create_array(
                f"{spec.group}/{output}",
                shape=(rows, card.d_model),
                chunks=(plan.chunk_rows, card.d_model),
                shards=(plan.unit_rows, card.d_model),
                dtype=spec.stored_dtype,
                compressors=[Crc32cCodec()],
                fill_value=0,
                dimension_names=dims,
                attributes=output_attributes(output, card, spec),
            )
        status = np.where(plan.samples > 0, PENDING, FAILED).astype(np.uint8)
        along = {"utterance": None, "start": plan.start, "length": plan.length, "status": status}
        for name, values in along.items():
            about_it: dict[str, Any] = {
                "attributes": {"long_name": ARRAY_MEANINGS[name]},
                "dimension_names": ("utterance",),
                "chunks": (count,),
                "compressors": [Crc32cCodec()],
            }
            if values is not None:
                root.create_array(name, data=values, **about_it)
            else:
                ids = root.create_array(name, shape=(count,), dtype=np.dtypes.StringDType(), **about_it)
                self.files.write(
                    f"{name}/{ids.metadata.encode_chunk_key((0,))}", *string_chunk(plan.corpus.table["id"])
                )
        with warnings.catch_warnings():
            # Zarr's format 3 does not specify consolidated metadata yet, which zarr warns of. With them readers find
            # the arrays in one read, and do not stumble over the files that are none.
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            for group in (spec.group, ""):
                zarr.consolidate_metadata(root.store, path=group)
        known = self.failures([])[0]
        table = stored_table(plan.utterances, plan.start, plan.length, status, known)
        self._write_utterances(relabelled(self.files, table), status, known)
        readme = store_readme(card, spec).encode()
        self.files.write(README, readme)
        self.files.write(PROBE, table_bytes(plan.probed.table, identity(about)))
        stored = {"schema": STORE_SCHEMA, "fingerprint": about["plan"], "unit_rows": plan.unit_rows}
        stored |= {"chunk_rows": plan.chunk_rows, "unit_begin": plan.unit_begin.tolist(), "readme": checksum(readme)}
        self.files.write(PLAN, json_bytes(stored, identity(about)))
        return root

    def _clear(self, store: str | None) -> None:
        """Remove what a creation that was cut short has left, or `verify --repair` of a store: the units stay.

        Raises InputError where there are units, and none is of this plan and model.
        """
        units = marked_units(self.files)
        if units and all(read_marker(self.files, unit, store) is None for unit in units):
            raise InputError(
                f"{self.files.root}: holds units of another corpus, model or settings, and its {PLAN} is missing; give "
                "those that it was made with, copy it whole, or choose another name"
            )
        self.files.clear(keep=(LOCK, *((UNITS, APPENDED, HISTORY, self.plan.spec.group) if units else ())))
        for name in ("", *(f"{name}/" for name in self.files.names(self.plan.spec.group))):
            self.files.remove(f"{self.plan.spec.group}/{name}{ROOT}")

    def _compare(self, card: ModelCard) -> None:
        """Refuse to resume a store that something else made, saying what differs."""
        about = compare_settings(self.files, card, self.plan.spec)
        if not self.plan.is_that_of(about["plan"]):
            refuse_other_plan(self.files, about, self.plan, card.d_model)


def _flat(d: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as one level: {"context": {"mode": …}} becomes {"context mode": …}."""
    flat: dict[str, Any] = {}
    for key, value in d.items():
        flat |= {f"{key} {k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat
