"""Add the units of another plan to a finished store.

New shards and markers lie beside the old ones from the beginning, and nothing reads them: the shapes of the arrays end
before them. The metadata of the root group hold those of all arrays (zarr calls them consolidated), so replacing that
one file makes everything that was appended part of the store, at once. An append that is cut short before is a plan in
appended/ that does not count yet; the same append goes on with it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.core.metadata.v3 import ArrayV3Metadata

from voxstrata.base.columns import scattered
from voxstrata.base.errors import InputError
from voxstrata.base.opening import parse_json
from voxstrata.base.plain import counted
from voxstrata.base.remote import is_url
from voxstrata.encoders.card import ModelCard
from voxstrata.store.checked import identity, json_bytes, read_json, table_bytes, with_checksum
from voxstrata.store.files import ROOT, root_attributes, zarr_array
from voxstrata.store.labels import UTTERANCES, read_utterances, with_column
from voxstrata.store.markers import marked_units, marker_name
from voxstrata.store.plan import Plan
from voxstrata.store.reader import EmbeddingStore
from voxstrata.store.soundness import reading_zarr
from voxstrata.store.writer import PENDING, StoreWriter, appended_name, compare_settings, read_plans, stored_table


def pending_append(store: EmbeddingStore) -> dict[str, Any] | None:
    """The plan of an append that was begun and does not count yet."""
    name = appended_name(len(store.about.get("appended", [])) + 1)
    return read_json(store.files, name, identity(store.about)) if store.files.exists(name) else None


class StoreAppender(StoreWriter):
    """Writes the units of a plan after those of a finished store, made with the same model and settings.

    plan: with the `unit_rows` of the store, and none of its ids. The appended utterances are there all at once, with
    `finish`; until then readers see the store as it was.

    Raises InputError when the store is of another model or other settings, or an append of something else was begun.
    """

    def __init__(self, store: EmbeddingStore, plan: Plan, card: ModelCard) -> None:
        self._store = store
        last = read_plans(store.files, store.about)[-1]
        self.first_unit = last["first_unit"] + len(last["unit_begin"]) - 1
        self.first_utterance = len(store)
        super().__init__(store.files.root, plan, card)

    def _fingerprint(self) -> str:
        pending = pending_append(self._store)
        assert pending is not None  # written by `_compare`
        return str(pending["fingerprint"])

    def _refuse_unfinished(self) -> None:
        root = parse_json(self.files.read(ROOT))
        if root.get("consolidated_metadata") is None:
            raise InputError(f"{self.files.root}: a copy without consolidated metadata; append to the original")
        if (self._store.stored_status == PENDING).any():
            raise InputError(f"{self.files.root}: not finished; run its extraction to the end, then append")

    def _compare(self, card: ModelCard) -> None:
        compare_settings(self.files, card, self.plan.spec)
        self._refuse_unfinished()
        pending = pending_append(self._store)
        fingerprint, name = self.plan.fingerprint(), appended_name(len(self._store.about.get("appended", [])) + 1)
        units = [unit for unit in marked_units(self.files) if unit >= self.first_unit]
        if pending is not None and not self.plan.is_that_of(pending["fingerprint"]):
            if units:
                raise InputError(
                    f"{self.files.root}: an append of other recordings was begun and is not finished "
                    f"({counted(len(units), 'unit is', 'units are')}), or with units of another size; run that "
                    f"to its end, or remove {name} in the store to "
                    "give it up"
                )
            self.files.remove(name)
            pending = None
        if pending is None:
            for unit in units:  # of an append that was given up
                self.files.remove(marker_name(unit))
            place = {"first_unit": self.first_unit, "first_utterance": self.first_utterance}
            about = {"fingerprint": fingerprint, "unit_rows": self.plan.unit_rows, **place}
            about["unit_begin"] = self.plan.unit_begin.tolist()
            self.files.write(name, json_bytes(about, identity(self._store.about)))

    def finish(self) -> tuple[dict[int, str], int]:
        """Once every unit is committed: make the appended utterances part of the store.

        Returns failures by index in the plan, and overflows. A pure function of plan, markers and the store before it,
        so it may be repeated until it is done.
        """
        plan = self.plan
        failures, overflows = self.failures(range(plan.units))
        self.files.sweep()
        root = parse_json(self.files.read(ROOT))
        arrays = root["consolidated_metadata"]["metadata"]
        start = np.where(plan.length > 0, plan.start + self.first_unit * plan.unit_rows, 0)
        added = {"start": start, "length": plan.length, "status": self._status(failures)}
        added["utterance"] = np.array(plan.utterances["id"].to_pylist(), np.dtypes.StringDType())
        whole = {n: np.concatenate([self._along(n), v]) for n, v in added.items() if n in arrays}
        for name, values in whole.items():
            self._write_longer(name, arrays[name], values)
        for array in self._arrays.values():
            longer = arrays[array.path]
            longer["shape"][0] = (self.first_unit + plan.units) * plan.unit_rows
            if plan.spec.pool:  # between the units there are rows of nobody
                longer["dimension_names"][0] = "row"
                longer["attributes"]["valid_rows"] = "row start[i] of utterance i, where status[i] is 1"
        for name in (*whole, *(array.path for array in self._arrays.values())):
            self.files.write(f"{name}/{ROOT}", json.dumps(arrays[name], indent=2).encode())
        group = f"{plan.spec.group}/{ROOT}"
        own = json.loads(self.files.read(group))
        if inner := (own.get("consolidated_metadata") or {}).get("metadata"):
            inner |= {output: arrays[array.path] for output, array in self._arrays.items()}
            self.files.write(group, json.dumps(own, indent=2).encode())
        before = read_utterances(self.files).slice(0, self.first_utterance)
        table = pa.concat_tables([before, self._added_table(failures)], promote_options="default")
        table = stored_table(table, whole["start"], whole["length"], whole["status"])
        table = table.replace_schema_metadata(before.schema.metadata)
        self.files.write(UTTERANCES, table_bytes(table, identity(self._store.about)))
        about = root["attributes"]["voxstrata"]
        part = {"plan": plan.fingerprint(), "first_utterance": self.first_utterance}
        about["appended"] = [*about.get("appended", []), part]
        if about.get("checksums"):
            root["attributes"] = with_checksum(root["attributes"])
        self.files.write(ROOT, json.dumps(root, indent=2).encode())  # from here on all of it counts
        return failures, overflows

    def _along(self, name: str) -> NDArray[Any]:
        with reading_zarr(self.files, name):
            return np.asarray(zarr_array(self._root, name)[:])

    def _write_longer(self, name: str, metadata: dict[str, Any], values: NDArray[Any]) -> None:
        """Write an array's values anew, as one chunk, and change its metadata to say so.

        The chunk's file gets another name than the one that readers of the store take as long as the metadata are not
        replaced: the separator in it, "/" or ".", changes with each append.
        """
        metadata["shape"] = metadata["chunk_grid"]["configuration"]["chunk_shape"] = [len(values)]
        separator = metadata["chunk_key_encoding"]["configuration"]
        separator["separator"] = "." if separator["separator"] == "/" else "/"
        place = zarr.storage.StorePath(self.files.zarr_store(read_only=False), name)
        zarr.Array(zarr.AsyncArray(metadata=ArrayV3Metadata.from_dict(metadata), store_path=place))[:] = values

    def _added_table(self, failures: Mapping[int, str]) -> pa.Table:
        """The appended utterances, with paths from where those of the store begin."""
        table = self.plan.utterances
        root = root_attributes(self.files).get("corpus_root")
        if root is not None:
            there = root if is_url(root) else os.path.normpath(os.path.join(self.files.local or "", root))
            paths = [_path_from(there, self.plan.corpus.root, path) for path in table["path"].to_pylist()]
            table = with_column(table, "path", pa.array(paths, pa.string()))
        return with_column(table, "failure", scattered(failures, len(table)))


def _path_from(there: str, root: Path | str, path: str) -> str:
    """The path of a recording below `root` as it is seen from `there`; a URL where it lies elsewhere."""
    if is_url(path) or isinstance(root, str):
        url = path if is_url(path) else f"{root}/{path}"
        return url.removeprefix(f"{there}/")
    return f"file://{root / path}" if is_url(there) else Path(os.path.relpath(root / path, there)).as_posix()
