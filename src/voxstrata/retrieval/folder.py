"""The folder a comparison is written to: plan, matrices, a part per tile row, and the final table.

FOLDER/
  plan.json            all that decides the result, and its fingerprint
  rows.parquet         the utterances of x (and columns.parquet those of y), by position
  candidates.npz       in candidate mode, the candidates of every query; candidates.json: their recall
  matrix.zarr          when asked for: a zarr v3 group of f1, precision, recall, (x, y) float32, NaN where not computed
  units/<tile row>/    top.parquet, the best of that row, and done.json, its commit marker
  top.parquet          the final table, once every row is done
"""

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr

from voxstrata.base.errors import InputError
from voxstrata.base.opening import load_arrays
from voxstrata.retrieval.candidates import CandidateSets
from voxstrata.retrieval.kernels.base import FloatMatrix
from voxstrata.retrieval.selection import Selection
from voxstrata.retrieval.tileplan import TilePlan
from voxstrata.retrieval.topk import TopK, named
from voxstrata.store.files import LOCK, Files, parquet_bytes, patient_lock, zarr_array

_SCHEMA = 1
PLAN_FILE, TOP_FILE, ROWS_FILE, COLUMNS_FILE = "plan.json", "top.parquet", "rows.parquet", "columns.parquet"
CANDIDATES_FILE, MISSES_FILE = "candidates.npz", "candidates.json"
_UNITS, _DONE, _MATRIX = "units", "done.json", "matrix.zarr"
_NAMES = {PLAN_FILE, TOP_FILE, ROWS_FILE, COLUMNS_FILE, CANDIDATES_FILE, MISSES_FILE, _UNITS, _MATRIX}
_PARTIAL = re.compile(rf"({'|'.join(map(re.escape, sorted(_NAMES)))})(\.[0-9a-f]+)?\.partial")
FORWARD, BACKWARD = "forward", "backward"


class Results:
    """The results of one plan; opening makes the folder, or resumes the one that is there.

    A folder of another plan of which no tile row is committed or being computed (a run was refused, or stopped at once)
    is made anew; not in object stores, where nobody can tell whether another run is at it.

    overwrite: results of another plan are replaced, too, unless another run is at them.

    find: computes the candidates, in candidate mode. Files are written whole or not at all, and a tile row counts once
    its marker exists, so a run may end at any instant and be run again. Who makes the folder or its final table holds
    the folder's lock; others wait for as long as that process lives.
    Raises InputError when the folder holds something else, or the results of another plan.
    """

    def __init__(
        self, folder: str | Path, plan: TilePlan, find: Callable[[], CandidateSets] | None, overwrite: bool = False
    ) -> None:
        self.files = Files(folder)
        self.plan = plan
        self._refuse_foreign()
        with patient_lock(self.files):
            # nothing, or a creation that was cut short: no row can be committed yet
            if not self.files.exists(PLAN_FILE) or (self._difference() and self._unused(overwrite)):
                try:
                    self._create(find)
                except BaseException:
                    self.files.clear()  # what it holds is of no use without its plan
                    raise
            self._refuse_other_plan()
            self._take_labels()
        self._matrix = Files(f"{self.files.root}/{_MATRIX}")
        if plan.matrix:
            root = zarr.open_group(self._matrix.zarr_store(read_only=False), mode="r+")
            self._arrays = {name: zarr_array(root, name) for name in plan.matrix}

    def done(self) -> set[int]:
        """Tile rows that are committed."""
        return set(filter(self.committed, self.plan.tiles.rows))

    def committed(self, row: int) -> bool:
        return self.files.exists(f"{_unit(row)}/{_DONE}")

    def merged(self) -> bool:
        """Whether the final table is there."""
        return self.files.exists(TOP_FILE)

    def candidates(self) -> CandidateSets | None:
        """What candidate mode looks at; None when all pairs are compared."""
        if not self.plan.candidates:
            return None
        try:
            stored = load_arrays(io.BytesIO(self.files.read(CANDIDATES_FILE)))
            return CandidateSets(stored["forward"], stored["backward"])
        except (ValueError, KeyError) as e:
            raise InputError(f"{self.files.root}/{CANDIDATES_FILE}: damaged ({e}); remove the folder") from e

    @contextmanager
    def lock(self, row: int) -> Iterator[None]:
        """Hold a tile row for writing.

        Raises InputError when another process holds it, or has made the folder anew for another plan.
        """
        with ExitStack() as stack:
            with patient_lock(self.files):  # so that no other plan moves in between the look and the lock
                self._refuse_other_plan()
                stack.enter_context(Files(f"{self.files.root}/{_unit(row)}").lock())
            yield

    @contextmanager
    def kept_if_used(self, alone: bool) -> Iterator[None]:
        """After an error, remove a folder in which nothing is committed; not where other runs share the work."""
        try:
            yield
        except BaseException:
            if alone and not self.plan.candidates:
                with patient_lock(self.files):
                    if self._unused(overwrite=False):
                        self.files.clear()
            raise

    def put(self, name: str, xs: slice, ys: slice, scores: FloatMatrix) -> None:
        """Write a tile of a matrix: whole chunks, which no other tile row writes."""
        self._arrays[name][xs, ys] = scores

    def commit(self, row: int, forward: TopK, backward: TopK | None) -> None:
        """Write the best of a tile row, then its marker."""
        tables = [forward.table(FORWARD), *([backward.table(BACKWARD)] if backward else [])]
        self.files.write(f"{_unit(row)}/{TOP_FILE}", parquet_bytes(pa.concat_tables(tables)))
        self.files.write(f"{_unit(row)}/{_DONE}", json.dumps({"row": row}).encode())

    def merge(self, measure: Callable[[], dict[str, Any]] | None) -> dict[str, Any] | None:
        """Write the final table when every tile row is there and nobody else has written it.

        measure: computes the recall of the candidates, in candidate mode; returned, None while rows are missing.
        A pure function of the parts, so it may be repeated.
        """
        if len(self.done()) < len(self.plan.tiles.rows):  # the run that commits the last of them comes here after that
            return None
        with patient_lock(self.files):
            if not self.merged():
                if measure is not None:
                    self.files.write(MISSES_FILE, _json(measure()))
                self.files.sweep()  # nobody writes: committed rows are not computed again
                for row in self.plan.tiles.rows:
                    self.files.remove(f"{_unit(row)}/{LOCK}")  # of a process killed after its commit
                self.files.write(TOP_FILE, parquet_bytes(self._final()))
        return dict(json.loads(self.files.read(MISSES_FILE))) if self.plan.candidates else None

    def _final(self) -> pa.Table:
        x, y = self.plan.x, self.plan.y
        sides = [(FORWARD, x, self.plan.other)] + ([(BACKWARD, y, x)] if y is not None else [])
        best = {direction: TopK(len(queries), self.plan.top) for direction, queries, _ in sides}
        for row in self.plan.tiles.rows:
            part = self._part(row)
            for direction, kept in best.items():
                kept.update_from(part.filter(pc.equal(part["direction"], direction)))
        return pa.concat_tables([named(best[name].table(name), q.ids, c.ids) for name, q, c in sides])

    def _part(self, row: int) -> pa.Table:
        return _read(self.files, f"{_unit(row)}/{TOP_FILE}", f"remove {_unit(row)} and run the same again")

    def _refuse_foreign(self) -> None:
        where, local = self.files.root, self.files.local
        if local is not None and local.exists() and not local.is_dir():
            raise InputError(f"{where}: a file, not a folder; choose another name")
        foreign = [name for name in self.files.names() if name not in {*_NAMES, LOCK} and not _PARTIAL.fullmatch(name)]
        if foreign:
            raise InputError(f"{where}: exists and holds something else ({foreign[0]}); choose another name")
        if not self.files.exists(PLAN_FILE) and self.files.names(_UNITS):
            raise InputError(f"{where}: holds results, but no {PLAN_FILE}; copy it whole, or choose another name")

    def _create(self, find: Callable[[], CandidateSets] | None) -> None:
        plan = self.plan
        self.files.clear()
        self.files.write(ROWS_FILE, parquet_bytes(_utterances(plan.x)))
        if plan.y is not None:
            self.files.write(COLUMNS_FILE, parquet_bytes(_utterances(plan.y)))
        if find is not None:
            sets, buffer = find(), io.BytesIO()
            np.savez(buffer, forward=sets.forward, backward=sets.backward)
            self.files.write(CANDIDATES_FILE, buffer.getvalue())
        if plan.matrix:
            about = {"schema": _SCHEMA, "plan": plan.fingerprint(), "output": plan.output, "kernel": plan.kernel}
            matrix = Files(f"{self.files.root}/{_MATRIX}")
            root = zarr.create_group(matrix.zarr_store(read_only=False), attributes={"voxstrata_similarity": about})
            shape, chunks, names = (len(plan.x), len(plan.other)), (plan.chunk, plan.chunk), ("row", "column")
            kind: dict[str, Any] = {"dtype": "float32", "compressors": None, "fill_value": float("nan")}
            for name in plan.matrix:
                root.create_array(name, shape=shape, chunks=chunks, dimension_names=names, **kind)
        self.files.write(PLAN_FILE, _json({"schema": _SCHEMA, "fingerprint": plan.fingerprint(), **plan.settings}))

    def _take_labels(self) -> None:
        """Where `voxstrata relabel` has changed a store since: who says what, anew. Scores do not depend on it."""
        for name, side in ((COLUMNS_FILE, self.plan.y), (ROWS_FILE, self.plan.x)):
            if side is not None and _read(self.files, name) != (utterances := _utterances(side)):
                self.files.remove(TOP_FILE)  # written last: until then the run is not finished
                self.files.write(name, parquet_bytes(utterances))

    def _refuse_other_plan(self) -> None:
        difference = self._difference()
        if difference is not None:
            raise InputError(
                f"{self.files.root}: cannot resume: {difference}; use the same, a new folder, or --overwrite"
            )

    def _difference(self) -> str | None:
        """What the plan that the folder was made for has other than this one, in words."""
        stored = _read(self.files, PLAN_FILE, "remove the folder, or choose another, and run again")
        here = {"schema": _SCHEMA, **self.plan.settings}
        for key in here | stored:
            if key != "fingerprint" and stored.get(key) != here.get(key):
                if key.endswith("_begin"):
                    return f"{key} (the bounds of the blocks) differs"
                return f"{key} is {stored.get(key)} there, {here.get(key)} here"
        return None

    def _unused(self, overwrite: bool) -> bool:
        """Whether no tile row is committed (or may be overwritten) or being computed; then what is left is removed."""
        if self.files.local is None:
            return overwrite
        for name in self.files.names(_UNITS):
            if not overwrite and self.files.exists(f"{_UNITS}/{name}/{_DONE}"):
                return False
            try:
                with Files(f"{self.files.root}/{_UNITS}/{name}").lock():
                    pass
            except InputError:
                return False
        # before the plan: tile rows without one are refused
        shutil.rmtree(self.files.local / _UNITS, ignore_errors=True)
        return True


def _unit(row: int) -> str:
    return f"{_UNITS}/{row:06d}"


@dataclass(frozen=True)
class FoundSimilarity:
    """What a finished comparison left in its folder.

    plan: all that decided it. x, y: the utterances of both sides, by position (y as x when a set is compared with
    itself); columns id, language, group, frames. top: the best candidates of every query.
    misses: what the candidates hold of exact search, by direction; None where all pairs were compared.
    """

    plan: dict[str, Any]
    x: pa.Table
    y: pa.Table
    top: pa.Table
    misses: dict[str, Any] | None

    files = (TOP_FILE, PLAN_FILE, ROWS_FILE, COLUMNS_FILE, CANDIDATES_FILE, MISSES_FILE)

    @property
    def settings(self) -> dict[str, Any]:
        """The plan without its tiles, and of the second set only what differs from the first."""
        return {
            name: value
            for name, value in self.plan.items()
            if not name.endswith("_begin") and not (name.startswith("y ") and value == self.plan.get(f"x {name[2:]}"))
        }

    @property
    def weights_sha256(self) -> str:
        """Of the encoder of the first set."""
        return str(self.plan["x model weights_sha256"])

    @property
    def itself(self) -> bool:
        """Whether a set was compared with itself."""
        return bool(self.plan["one set with itself"])


def is_similarity(folder: str | Path) -> bool:
    """Whether a folder was made by `similarity`, finished or not."""
    files = Files(folder)
    return files.exists(PLAN_FILE) and files.exists(ROWS_FILE)


def read_similarity(folder: str | Path) -> FoundSimilarity:
    """What `similarity` left in a folder. Raises InputError where it is not finished, or damaged."""
    files = Files(folder)
    if not is_similarity(folder):
        raise InputError(f"{folder}: holds no result of `voxstrata similarity`")
    if not files.exists(TOP_FILE):
        raise InputError(f"{folder}: `voxstrata similarity` has not finished here; run it again, it will resume")
    try:
        plan, x = _read(files, PLAN_FILE), _read(files, ROWS_FILE)
        y = x if plan["one set with itself"] else _read(files, COLUMNS_FILE)
        misses = _read(files, MISSES_FILE) if plan["candidates"] else None
        return FoundSimilarity(plan, x, y, _read(files, TOP_FILE), misses)
    except OSError as e:
        raise InputError(f"{folder}: cannot be read ({e}); mend it, or run `voxstrata similarity` again") from e


def _read(files: Files, name: str, mend: str = "remove the folder and run `voxstrata similarity` again") -> Any:
    """A table, or the object of a JSON file. Raises InputError where it is damaged, OSError where it is missing."""
    data = files.read(name)
    try:
        return dict(json.loads(data)) if name.endswith(".json") else pq.read_table(io.BytesIO(data))
    except (ValueError, TypeError, OSError, pa.ArrowException) as e:
        raise InputError(f"{files.root}/{name}: damaged ({e}); {mend}") from e


def _utterances(side: Selection) -> pa.Table:
    """Who stands where: id, language, group, frames, by position."""
    table = side.store.utterances.select(["id", "language", "group"]).take(pa.array(side.indices))
    return table.append_column("frames", pa.array(side.lengths))


def _json(d: dict[str, Any]) -> bytes:
    return (json.dumps(d, indent=1) + "\n").encode()
