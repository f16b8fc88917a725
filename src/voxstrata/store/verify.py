"""Read a whole store and hold everything in it against its checksums; take what is damaged back to pending."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, UnreachableError
from voxstrata.base.opening import parse_json
from voxstrata.base.plain import counted, shown_as, size_in_words
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.recognised import A_STORE, mistaken, refuse_mistaken
from voxstrata.base.tables import first_few
from voxstrata.store.checked import checked_table, checksum, identity, read_json, table_bytes
from voxstrata.store.description import README, store_readme
from voxstrata.store.files import ROOT, Files, zarr_array
from voxstrata.store.labels import UTTERANCES, read_utterances, record_name, times_relabelled
from voxstrata.store.markers import marker_name, read_marker
from voxstrata.store.planned import APPENDED, appended_name
from voxstrata.store.reader import EmbeddingStore
from voxstrata.store.several import AnyStore, place_of
from voxstrata.store.shard import ShardLayout, shard_checksum
from voxstrata.store.soundness import reading_zarr
from voxstrata.store.writer import DONE, FAILED, PENDING, PLAN, stored_table

ALONG = ("start", "length", "status", "utterance")
_GROUP = {"attributes", "zarr_format", "consolidated_metadata", "node_type"}
_CONSOLIDATED = {"kind": "inline", "must_understand": False}


@dataclass(frozen=True)
class Damage:
    """A file of a store that is not as it was written. unit, utterances (ids): whose frames are lost with it."""

    file: str
    what: str
    unit: int | None = None
    utterances: tuple[str, ...] = ()

    def __str__(self) -> str:
        unit = "" if self.unit is None else f", unit {self.unit}"
        lost = (
            f" ({counted(len(self.utterances), 'utterance')}: {first_few(self.utterances)})" if self.utterances else ""
        )
        return f"{self.file}{unit}: {self.what}{lost}"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    units, pending: all of the store, and those that are not done yet. bytes: of shards that were read. checksums:
    whether the store has any; those of 0.1.0 do not, so damage within their rows is not seen. complete: whether all was
    looked at; where metadata are damaged, units are not. mended: whether what can be was brought back, or to pending.
    """

    store: str
    units: int
    pending: int
    bytes: int
    seconds: float
    checksums: bool
    complete: bool
    damages: tuple[Damage, ...]
    mended: bool = False

    def __repr__(self) -> str:
        return shown_as(self, f"{'sound' if self.sound else counted(len(self.damages), 'damage')}", self.store)

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damages

    @property
    def utterances(self) -> list[str]:
        """Ids of all utterances whose frames are lost, each once."""
        return list(dict.fromkeys(name for damage in self.damages for name in damage.utterances))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "sound": self.sound}

    def to_text(self) -> str:
        """In a few lines, a line for each damage."""
        rate = f", {size_in_words(self.bytes / self.seconds)}/s" if self.bytes else ""
        lines = [f"damaged: {damage}" for damage in self.damages]
        lines.append(f"{self.store}: {counted(self.units, 'unit')}, {size_in_words(self.bytes)}{rate}")
        if self.pending:
            lines.append(f"units pending: {self.pending}")
        if not self.checksums:
            lines.append("it has no checksums, as stores of 0.1.0: damage within its rows is not seen")
        if self.sound:
            lines.append("nothing is damaged")
        elif self.mended:
            lines.append(
                "what is lost is pending: run the same extraction again, and the same appends, if there were any"
            )
            if not self.complete:
                lines.append("its units were not looked at: then verify it again")
        else:
            lines.append(f"damaged files: {len(self.damages)}; --repair takes what is lost back to pending")
        return "\n".join(lines)


def verify(store: AnyStore, *, repair: bool = False, reporter: Reporter = SILENT) -> VerifyReport:
    """Read a whole store and say what in it is damaged, missing, or another store's.

    store: its path, or opened.
    repair: what can be derived is written again; units that are damaged are pending after it, and with damaged metadata
        the plan is removed, so that the same `extract` brings back what was there, byte for byte: the units that are
        whole stay. A store that was appended to needs its appends again, too, where these or metadata were damaged.
        What `relabel` has replaced (history/) cannot be brought back.

    Raises InputError for what is no store, and, with `repair`, where another run prepares or completes it;
    UnreachableError where a server does not answer: that is no damage.
    """
    store = place_of(store)
    refuse_mistaken(store, "a voxstrata store", "`voxstrata extract` makes one", A_STORE.what)
    if (here := Path(store)).exists() and not here.is_dir():
        raise InputError(mistaken(store, "a voxstrata store", "`voxstrata extract` makes one"))
    files, begin = Files(store), time.perf_counter()
    with ExitStack() as stack:
        if repair:
            if not _is_ours(files):
                raise InputError(mistaken(store, "a voxstrata store", "`voxstrata extract` makes one"))
            stack.enter_context(files.lock())
        check = _Check(files, reporter)
        check.run()
        damages = check.damages
        if repair and damages:
            _repair(check)
            if not check.complete and files.exists(PLAN):  # now the units can be looked at, too
                check = _Check(files, reporter)
                check.run()
                damages = [*damages, *check.damages]
                if check.damages:
                    _repair(check)
    return VerifyReport(
        store=files.root,
        units=check.units,
        pending=check.pending,
        bytes=check.bytes,
        seconds=time.perf_counter() - begin,
        checksums=check.store is None or identity(check.store.about) is not None,
        complete=check.complete,
        damages=tuple(damages),
        mended=repair and bool(damages),
    )


def _is_ours(files: Files) -> bool:
    return any(files.exists(name) for name in (PLAN, UTTERANCES)) or bool(files.names("units"))


class _Check:
    """What is found of a store. metadata: files that extraction must prepare anew. complete: units were read, too."""

    def __init__(self, files: Files, reporter: Reporter) -> None:
        self.files, self._reporter = files, reporter
        self.damages: list[Damage] = []
        self.metadata: set[str] = set()
        self.units = self.pending = self.bytes = 0
        self.complete = False
        self.store: EmbeddingStore | None = None

    def run(self) -> None:
        try:
            store = EmbeddingStore(self.files.root)
            self.units = len(store.unit_bounds)
        except InputError as e:
            if not _is_ours(self.files):
                raise
            name, *said = str(e).removeprefix(f"{self.files.root}: ").split(": ")
            self._add_metadata(name if said and self.files.exists(name) else ROOT, _said(e))
            return
        self.store = store
        self._check_files(store)
        if not self.metadata & {UTTERANCES, *ALONG[:3]}:
            self._check_units(store, store.ids, store.start, store.length, store.stored_status)
            self.complete = True

    def _add(self, file: str, what: str, *of: Any) -> None:
        self.damages.append(Damage(file, what.removeprefix(f"{file}: "), *of))

    def _add_metadata(self, file: str, what: str) -> None:
        self.metadata.add(file)
        self._add(file, what)

    def _check_files(self, store: EmbeddingStore) -> None:
        """Everything but the units."""
        files, own = self.files, identity(store.about)
        plan = read_json(files, PLAN, own)
        pending = appended_name(len(store.about.get("appended", [])) + 1)
        for name, what in () if files.exists(pending) else _zarr_damages(files):  # an append may be half done
            self._add_metadata(name, what)
        for name in (*ALONG[:3], *(ALONG[3:] if ALONG[3] in store.root else ())):
            self._try(name, lambda name=name: store.along(name))
        self._try("start", lambda: store.start)
        self._try("status", lambda: store.stored_status)
        self._try(UTTERANCES, lambda: read_utterances(files))
        if not self.metadata & set(ALONG):
            self._try(UTTERANCES, lambda: store.utterances)
        known = ALONG[3] in store.root and not self.metadata & {UTTERANCES, *ALONG}
        if known and store.along(ALONG[3]).tolist() != store.ids:
            self._add_metadata(ALONG[3], f"other ids than {UTTERANCES}")
        if "chunk_rows" in plan or files.exists("probe.parquet"):
            self._try("probe.parquet", lambda: checked_table(files, "probe.parquet", own))
        if "readme" in plan and (not files.exists(README) or checksum(files.read(README)) != plan["readme"]):
            self._add(README, "missing, damaged or changed")
        if UTTERANCES not in self.metadata:
            for number in range(times_relabelled(read_utterances(files))):
                try:
                    checked_table(files, record_name(number + 1), own)
                except InputError as e:
                    self._add(record_name(number + 1), f"{_said(e)}; it cannot be brought back")

    def _try(self, name: str, read: Any) -> None:
        try:
            read()
        except InputError as e:
            if name not in self.metadata:
                self._add_metadata(name, _said(e))

    def _check_units(
        self,
        store: EmbeddingStore,
        ids: Sequence[str],
        start: NDArray[np.int64],
        length: NDArray[np.int32],
        status: NDArray[np.uint8],
    ) -> None:
        """Markers, shards and what they say of each utterance."""
        rows = [int(length[a:b].sum()) for a, b in store.unit_bounds]
        total, begun = sum(rows), 0
        row_bytes = store.model.d_model * store.spec.stored_dtype.itemsize * len(store.outputs)
        for unit, (a, b) in enumerate(store.unit_bounds):
            marker, there = store.markers.get(unit), False
            # a run at work may have put it there since
            if marker is None and (there := self.files.exists(marker_name(unit))):
                marker = read_marker(self.files, unit, store.unit_identities[unit])
            if marker is None:
                if there or bool((status[a:b] != PENDING).any()):
                    what = "missing, damaged or of another store"
                    self._add(marker_name(unit), what, unit, tuple(ids[a:b]))
                else:
                    self.pending += 1
            else:
                failed = {int(i) for i in marker["failed"]}
                expected = np.array([FAILED if i in failed else DONE for i in range(a, b)], np.uint8)
                if ((status[a:b] != expected) & (status[a:b] != PENDING)).any() and "status" not in self.metadata:
                    self._add_metadata("status", f"not what {marker_name(unit)} says")
                if len(failed) < b - a:
                    for file, what, bad in self._shard_damages(store, unit, rows[unit], marker):
                        lost = [ids[i] for i in range(a, b) if _lies_in(bad, start[i], length[i]) and i not in failed]
                        self._add(file, what, unit, tuple(lost))
            begun += rows[unit]
            rated, bad_units = begun * row_bytes / 1e6, len(self.damages)
            progress = Progress("verifying", unit + 1, self.units, "units", begun, total, rated, "MB/s", bad_units)
            self._reporter.progress(progress)

    def _shard_damages(
        self, store: EmbeddingStore, unit: int, rows: int, marker: Mapping[str, Any]
    ) -> Iterator[tuple[str, str, list[tuple[int, int]]]]:
        """Of a unit's shards: the file, what is wrong, and the rows that are lost, from and to in the arrays."""
        unit_rows = store.unit_rows
        first, every = unit * unit_rows, [(unit * unit_rows, (unit + 1) * unit_rows)]
        for output in store.outputs:
            array = store.array(output)
            layout, name = ShardLayout.of(array), array.path
            bad: list[int] = []
            found: int | None = None
            try:
                if layout is None or layout.shard_rows != unit_rows:  # a copy that other tools made
                    with reading_zarr(self.files, name):
                        block = np.asarray(array[first : first + rows])
                    self.bytes += block.nbytes
                    chunk_rows = read_json(self.files, PLAN).get("chunk_rows")
                    if chunk_rows is None:
                        continue
                    found = shard_checksum(ShardLayout(chunk_rows, unit_rows, block.strides[0]).parts(block))
                else:
                    name += f"/{array.metadata.encode_chunk_key((unit, 0))}"
                    data = self._bytes(name)
                    self.bytes += len(data)
                    bad, found = layout.check(data, rows)
            except (InputError, FileNotFoundError, ValueError) as e:
                yield name, "missing" if isinstance(e, FileNotFoundError) else _said(e), every
                continue
            if bad:
                assert layout is not None
                lost = [(first + c * layout.chunk_rows, first + (c + 1) * layout.chunk_rows) for c in bad]
                yield name, "the checksum of its rows is wrong", lost
            elif found is not None and found != marker.get("checksums", {}).get(output, found):
                yield name, "of another unit or store", every

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        if self.files.local is not None:
            path = self.files.local / name
            return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        return np.frombuffer(self.files.read(name), np.uint8)


def _lies_in(bad: Sequence[tuple[int, int]], start: int, length: int) -> bool:
    return any(start < end and start + length > begin for begin, end in bad)


def _said(error: Exception) -> str:
    """What an error says is wrong, without the file and the way to mend it. Raises it where nothing is: an outage."""
    if isinstance(error, UnreachableError):
        raise error
    return str(error).split(": ", 1)[-1].split("; ")[0]


def _zarr_damages(files: Files) -> Iterator[tuple[str, str]]:
    """Where zarr's metadata contradict each other: those of each array stand in three places."""
    root = parse_json(files.read(ROOT))
    consolidated = root.get("consolidated_metadata")
    if set(root) - _GROUP:
        yield ROOT, f"unknown keys: {first_few(sorted(set(root) - _GROUP))}"
    if not consolidated:  # a copy without
        return
    if {k: v for k, v in consolidated.items() if k != "metadata"} != _CONSOLIDATED:
        yield ROOT, "its consolidated metadata are not zarr's"
    for name, node in consolidated["metadata"].items():
        file = f"{name}/{ROOT}"
        try:
            there = parse_json(files.read(file))
        except (FileNotFoundError, ValueError) as e:
            yield file, f"missing or damaged ({type(e).__name__})"
            continue
        if node.get("node_type") == "group":
            below = ((there.pop("consolidated_metadata", None) or {}).get("metadata") or {}).items()
            if any(consolidated["metadata"].get(f"{name}/{key}") != value for key, value in below):
                yield file, f"not what {ROOT} says of it"
                continue
            node = {key: value for key, value in node.items() if key != "consolidated_metadata"}
        if there != node:
            yield file, f"not what {ROOT} says of it"


def _repair(check: _Check) -> None:
    """Write again what can be derived; units go back to pending, and with damaged metadata the plan is removed."""
    files, store = check.files, check.store
    lost = sorted({damage.unit for damage in check.damages if damage.unit is not None})
    for unit in lost:
        files.remove(marker_name(unit))
    first_units = len(read_json(files, PLAN)["unit_begin"]) - 1 if store is not None else 0
    if store is None or check.metadata - set(ALONG) or any(unit >= first_units for unit in lost):
        files.remove(PLAN)  # extraction makes everything but the units anew
        for name in {damage.file for damage in check.damages if damage.file.startswith(APPENDED)}:
            files.remove(name)
        try:
            parse_json(files.read(ROOT))
        except (ValueError, FileNotFoundError):
            files.remove(ROOT)
        return
    if any(damage.file == README for damage in check.damages):
        text = store_readme(store.model, store.spec).encode()
        if checksum(text) != read_json(files, PLAN)["readme"]:  # of another version
            files.remove(PLAN)
            return
        files.write(README, text)
    table = read_utterances(files)
    status = pc.index_in(table["status"], pa.array(["pending", "done", "failed"])).to_numpy().astype(np.uint8)
    for unit in lost:
        members = slice(*store.unit_bounds[unit])
        known_failed = np.asarray(table["samples"].fill_null(0).to_numpy())[members] == 0
        status[members] = np.where(known_failed, FAILED, PENDING)
    if lost:
        places = (table["row_start"].to_numpy(), table["row_count"].to_numpy())
        files.write(UTTERANCES, table_bytes(stored_table(table, *places, status), identity(store.about)))
    values = {"start": table["row_start"], "length": table["row_count"], "utterance": table["id"]}
    root = zarr.open_group(files.zarr_store(read_only=False), mode="r+")
    together = {"start", "length"}  # held against each other: of a chunk that is gone, the other may be told
    for name in check.metadata & set(values) | (together if check.metadata & together else set()):
        array = zarr_array(root, name)
        column = values[name].slice(0, array.shape[0])
        array[:] = np.array(column.to_pylist(), array.dtype) if name == "utterance" else column.to_numpy()
    array = zarr_array(root, "status")
    array[:] = status[: array.shape[0]]
