"""The folder a comparison is written to: plan, matrices, a part per tile row, and the final table.

FOLDER/
  plan.json            all that decides the result, and its fingerprint
  rows.parquet         the utterances of x (and columns.parquet those of y), by position
  candidates.npz       in candidate mode, the candidates of every query; candidates.json: their recall
  matrix.zarr          when asked for: a zarr v3 group of f1, precision, recall, (x, y) float32, NaN where not computed
  units/<tile row>/    top.parquet, the best of that row, and done.json, its commit marker
  claims/              who computes which row, until all are done
  anew                 while somebody looks whether the folder may be made anew for another plan
  top.parquet          the final table, once every row is done

All say which plan they are of: JSON files and matrices by a field, tables in their metadata.
"""

import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr
from zarr.codecs import Crc32cCodec

from voxstrata.base.errors import InputError, UnreachableError
from voxstrata.base.opening import load_arrays, parse_json
from voxstrata.retrieval.candidates import CandidateSets
from voxstrata.retrieval.finished import (
    ABOUT,
    CANDIDATES_FILE,
    COLUMNS_FILE,
    COMPARE_AGAIN,
    DONE_FILE,
    MISSES_FILE,
    PLAN_FILE,
    ROWS_FILE,
    TILE_ROWS,
    TOP_FILE,
    read_result,
    read_tile_plan,
)
from voxstrata.retrieval.kernels.base import FloatMatrix
from voxstrata.retrieval.tileplan import TilePlan
from voxstrata.retrieval.topk import TopK, named
from voxstrata.store.checked import json_bytes, table_bytes
from voxstrata.store.claims import CLAIMS, Claims
from voxstrata.store.files import LOCK, Files, patient_lock, zarr_array
from voxstrata.store.leases import LEASE_SECONDS

_SCHEMA = 1
_MATRIX, _ANEW = "matrix.zarr", "anew"
_NAMES = {PLAN_FILE, TOP_FILE, ROWS_FILE, COLUMNS_FILE, CANDIDATES_FILE, MISSES_FILE, TILE_ROWS, _MATRIX, _ANEW, CLAIMS}
_PARTIAL = re.compile(rf"({'|'.join(map(re.escape, sorted(_NAMES)))})(\.[0-9a-f]+)?\.partial")
FORWARD, BACKWARD = "forward", "backward"


class Results:
    """The results of one plan; opening makes the folder, or resumes the one that is there.

    A folder of another plan of which no tile row is committed or being computed (a run was refused, or stopped at once)
    is made anew. overwrite: results of another plan are replaced, too, unless another run is at them.

    find: computes the candidates, in candidate mode. Files are written whole or not at all, and a tile row counts once
    its marker exists, so a run may end at any instant and be run again. Who makes the folder or its final table holds
    the folder's lock; others wait for as long as that process lives. Who computes rows needs claims alone.
    Raises InputError when the folder holds something else, or the results of another plan.
    """

    def __init__(
        self, folder: str | Path, plan: TilePlan, find: Callable[[], CandidateSets] | None, overwrite: bool = False
    ) -> None:
        self.files = Files(folder)
        self.plan = plan
        self._claims = Claims(self.files)
        self._done: set[int] = set()
        self._refuse_foreign()
        if not self._in_place() or self._stale():
            self._make(find, overwrite)
        if plan.matrix:
            self._arrays = self._open_matrix()

    def _make(self, find: Callable[[], CandidateSets] | None, overwrite: bool) -> None:
        with patient_lock(self.files):
            self.files.remove(_ANEW)  # of one who was killed
            # nothing, or a creation that was cut short: no row can be committed yet
            if not self.files.exists(PLAN_FILE) or (self._difference() and self._unused(overwrite)):
                try:
                    self._create(find)
                except BaseException:
                    self._clear()  # what it holds is of no use without its plan
                    raise
            self._refuse_other_plan()
            self._take_labels()

    def pending(self) -> list[int]:
        """Tile rows that are not committed, in order."""
        return [row for row in self.plan.tiles.rows if not self.committed(row)]

    def committed(self, row: int) -> bool:
        """Whether a row has its marker. One that cannot be read, or is of another row or plan, is none."""
        if row not in self._done and self._marker(row) is not None:
            self._done.add(row)
        return row in self._done

    def merged(self) -> bool:
        """Whether the final table is there."""
        return self.files.exists(TOP_FILE)

    def candidates(self) -> CandidateSets | None:
        """What candidate mode looks at; None when all pairs are compared."""
        if not self.plan.candidates:
            return None
        try:
            stored = load_arrays(io.BytesIO(self.files.read(CANDIDATES_FILE)))
            if str(stored.get("plan", self.plan.fingerprint)) != self.plan.fingerprint:
                raise ValueError("of another comparison")
            return CandidateSets(stored["forward"], stored["backward"])
        except (ValueError, KeyError) as e:
            raise InputError(f"{self.files.root}/{CANDIDATES_FILE}: damaged ({e}); {COMPARE_AGAIN}") from e

    @contextmanager
    def claim(self, row: int) -> Iterator[bool]:
        """Hold a tile row, to compute and commit it; False where another run holds it, or has committed it.

        Raises InputError when another process has made the folder anew for another plan.
        """
        try:
            held = self._hold(row)
            if (
                not self._in_place()
            ):  # who makes the folder anew looks at the claims after saying so: one sees the other
                self._claims.drop(row)
                with patient_lock(self.files):
                    self.files.remove(_ANEW)
                    self._refuse_other_plan()
                    held = self._hold(row)
            yield held and not self.committed(row)  # since the look before
        finally:
            self._claims.drop(row)

    def _hold(self, row: int) -> bool:
        return not self.committed(row) and self._claims.take(row)

    @contextmanager
    def kept_if_used(self, alone: bool) -> Iterator[None]:
        """After an error, remove a folder in which nothing is committed; not where other runs share the work."""
        try:
            yield
        except BaseException:
            if alone and not self.plan.candidates:
                with patient_lock(self.files):
                    if self._unused(overwrite=False):
                        self._clear()
            raise

    def put(self, name: str, xs: slice, ys: slice, scores: FloatMatrix) -> None:
        """Write a tile of a matrix: whole chunks, which no other tile row writes."""
        self._arrays[name][xs, ys] = scores

    def commit(self, row: int, forward: TopK, backward: TopK | None) -> None:
        """Write the best of a tile row, then its marker; all of the row is on the disk by then."""
        tables = [forward.table(FORWARD), *([backward.table(BACKWARD)] if backward else [])]
        part = table_bytes(self._signed(pa.concat_tables(tables)), None)
        self.files.write(f"{_unit(row)}/{TOP_FILE}", part)
        marker = {"row": row, "plan": self.plan.fingerprint, "top_sha256": hashlib.sha256(part).hexdigest()}
        self.files.write(f"{_unit(row)}/{DONE_FILE}", json.dumps(marker).encode())

    def merge(self, measure: Callable[[], dict[str, Any]] | None) -> list[int]:
        """Write the final table when every tile row is there and nobody else has written it.

        measure: computes the recall of the candidates, in candidate mode.
        A pure function of the parts, so it may be repeated. Returns rows whose part turned out missing or damaged:
        they are pending again, and there is no final table.
        """
        if self.pending():  # the run that commits the last of them comes here after that
            return []
        with patient_lock(self.files):
            if self.merged():
                return []
            damaged = [row for row in self.plan.tiles.rows if self._part(row) is None]
            for row in damaged:
                self.files.remove(f"{_unit(row)}/{DONE_FILE}")
                self._done.discard(row)
            if not damaged:
                if measure is not None:
                    self.files.write(MISSES_FILE, json_bytes(measure(), None))
                self.files.sweep()  # nobody writes: committed rows are not computed again
                self._claims.clear()
                self.files.write(TOP_FILE, table_bytes(self._signed(self._final()), None))
        return damaged

    def misses(self) -> dict[str, Any] | None:
        """What `measure` found, once it is merged; None where all pairs were compared."""
        if not (self.plan.candidates and self.merged()):
            return None
        return dict(read_result(self.files, MISSES_FILE, self.plan.fingerprint))

    def _final(self) -> pa.Table:
        x, y = self.plan.x, self.plan.y
        sides = [(FORWARD, x, self.plan.other)] + ([(BACKWARD, y, x)] if y is not None else [])
        best = {direction: TopK(len(queries), self.plan.top) for direction, queries, _ in sides}
        for row in self.plan.tiles.rows:
            part = self._part(row)
            assert part is not None  # looked at before
            for direction, kept in best.items():
                kept.update_from(part.filter(pc.equal(part["direction"], direction)))
        return pa.concat_tables([named(best[name].table(name), q.ids, c.ids) for name, q, c in sides])

    def _marker(self, row: int) -> dict[str, Any] | None:
        try:
            marker = parse_json(self.files.read(f"{_unit(row)}/{DONE_FILE}"))
            plan = self.plan.fingerprint
            return marker if marker["row"] == row and marker.get("plan", plan) == plan else None
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def _part(self, row: int) -> pa.Table | None:
        """The best of a tile row, None where it is not what its marker says. Markers of 0.1.0 say nothing of it."""
        marker = self._marker(row) or {}
        try:
            data = self.files.read(f"{_unit(row)}/{TOP_FILE}")
            if marker and marker.get("top_sha256") in (None, hashlib.sha256(data).hexdigest()):
                return pq.read_table(io.BytesIO(data))
        except (FileNotFoundError, ValueError, pa.ArrowException):
            pass
        return None

    def _signed(self, table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata({ABOUT: json.dumps({"plan": self.plan.fingerprint})})

    def _refuse_foreign(self) -> None:
        where, local = self.files.root, self.files.local
        if local is not None and local.exists() and not local.is_dir():
            raise InputError(f"{where}: a file, not a folder; choose another name")
        foreign = [name for name in self.files.names() if name not in {*_NAMES, LOCK} and not _PARTIAL.fullmatch(name)]
        if foreign:
            raise InputError(f"{where}: exists and holds something else ({foreign[0]}); choose another name")
        if not self.files.exists(PLAN_FILE) and self.files.names(TILE_ROWS):
            raise InputError(f"{where}: holds results, but no {PLAN_FILE}; copy it whole, or choose another name")

    def _create(self, find: Callable[[], CandidateSets] | None) -> None:
        plan = self.plan
        self._clear()
        for name, utterances in self._labels().items():
            self.files.write(name, table_bytes(utterances, None))
        if find is not None:
            sets, buffer = find(), io.BytesIO()
            np.savez(buffer, forward=sets.forward, backward=sets.backward, plan=np.array(plan.fingerprint))
            self.files.write(CANDIDATES_FILE, buffer.getvalue())
        if plan.matrix:
            about = {"schema": _SCHEMA, "plan": plan.fingerprint, "output": plan.output, "kernel": plan.kernel}
            matrix = Files(f"{self.files.root}/{_MATRIX}")
            root = zarr.create_group(matrix.zarr_store(read_only=False), attributes={ABOUT: about})
            shape, chunks, names = (len(plan.x), len(plan.other)), (plan.chunk, plan.chunk), ("row", "column")
            kind: dict[str, Any] = {"dtype": "float32", "compressors": [Crc32cCodec()], "fill_value": float("nan")}
            for name in plan.matrix:
                root.create_array(name, shape=shape, chunks=chunks, dimension_names=names, **kind)
        self.files.write(PLAN_FILE, _json({"schema": _SCHEMA, "fingerprint": plan.fingerprint, **plan.settings}))

    def _labels(self) -> dict[str, pa.Table]:
        """Who stands where: id, language, group, frames, by position, a table for each side."""
        labels = {}
        for name, side in ((COLUMNS_FILE, self.plan.y), (ROWS_FILE, self.plan.x)):
            if side is not None:
                table = side.store.utterances.select(["id", "language", "group"]).take(pa.array(side.indices))
                labels[name] = self._signed(table.append_column("frames", pa.array(side.lengths)))
        return labels

    def _take_labels(self) -> None:
        """Write anew who says what where `voxstrata relabel` has changed a store since; scores do not depend on it.

        So is what is damaged, or of another comparison: the final table by another `merge`.
        """
        if stale := self._stale():
            self.files.remove(TOP_FILE)  # written last: until then the run is not finished
        for name, utterances in stale.items():
            if utterances is not None:
                self.files.write(name, table_bytes(utterances, None))

    def _stale(self) -> dict[str, pa.Table | None]:
        """Files that are not what they are to be: with the tables to write there, None where a merge writes them."""
        stale = {name: table for name, table in self._labels().items() if self._stored(name) != table}
        merged = (TOP_FILE, *([MISSES_FILE] if self.plan.candidates else [])) if self.merged() else ()
        return stale | {name: None for name in merged if self._stored(name) is None}

    def _stored(self, name: str) -> Any:
        """A table, or the object of a JSON file; None where it is missing, damaged, or of another comparison."""
        try:
            return read_result(self.files, name, self.plan.fingerprint)
        except UnreachableError:
            raise
        except InputError:
            return None

    def _open_matrix(self) -> "dict[str, zarr.Array[Any]]":
        where = f"{self.files.root}/{_MATRIX}"
        try:
            root = zarr.open_group(Files(where).zarr_store(read_only=False), mode="r+")
            plan = dict(root.attrs)[ABOUT]["plan"]  # type: ignore[index,call-overload]
            arrays = {name: zarr_array(root, name) for name in self.plan.matrix}
        except (OSError, ValueError, TypeError, KeyError, AssertionError) as e:
            raise InputError(f"{where}: damaged ({e}); {COMPARE_AGAIN}") from e
        if plan != self.plan.fingerprint:
            raise InputError(f"{where}: of another comparison; {COMPARE_AGAIN}")
        return arrays

    def _refuse_other_plan(self) -> None:
        difference = self._difference()
        if difference is not None:
            raise InputError(
                f"{self.files.root}: cannot resume: {difference}; use the same, a new folder, or --overwrite"
            )

    def _difference(self) -> str | None:
        """What the plan that the folder was made for has other than this one, in words."""
        stored = read_tile_plan(self.files)
        here = {"schema": _SCHEMA, **self.plan.settings}
        for key in here | stored:
            if key != "fingerprint" and stored.get(key) != here.get(key):
                if key.endswith("_begin"):
                    return f"{key} (the bounds of the blocks) differs"
                return f"{key} is {stored.get(key)} there, {here.get(key)} here"
        return None

    def _in_place(self) -> bool:
        """Whether the folder is there for this plan, and nobody looks whether it may be made anew."""
        try:
            return not self.files.exists(_ANEW) and self._difference() is None
        except (InputError, FileNotFoundError):  # what is wrong is said by who holds the lock
            return False

    def _unused(self, overwrite: bool) -> bool:
        """Whether no tile row is committed (or may be overwritten) or being computed. Then none is until `_clear`."""
        self.files.write(_ANEW, b"")
        if self._free(overwrite):
            return True
        self.files.remove(_ANEW)
        return False

    def _free(self, overwrite: bool) -> bool:
        markers = (f"{TILE_ROWS}/{name}/{DONE_FILE}" for name in self.files.names(TILE_ROWS))
        if not overwrite and any(map(self.files.exists, markers)):
            return False
        names = (name.split(".")[0] for name in self.files.names(CLAIMS))
        claimed, looks = set(map(int, filter(str.isdigit, names))), 0
        while claimed:
            for row in filter(self._claims.take, sorted(claimed)):
                self._claims.drop(row)
                claimed.discard(row)
            looks += 1
            if claimed and (self.files.local is not None or looks > 2 * LEASE_SECONDS):
                return False
            if claimed:
                time.sleep(1)  # until a lease shows whether its owner lives
        return True

    def _clear(self) -> None:
        self.files.remove_folder(TILE_ROWS)  # tile rows without a plan are refused
        self.files.remove(PLAN_FILE)  # and with it nothing may be missing
        self.files.clear()


def _unit(row: int) -> str:
    return f"{TILE_ROWS}/{row:06d}"


def _json(d: dict[str, Any]) -> bytes:
    return (json.dumps(d, indent=1) + "\n").encode()
