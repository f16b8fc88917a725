"""Whether what lies in a store is what a store has, before it is read and after."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, VoxstrataError
from voxstrata.base.opening import parse_json
from voxstrata.store.checked import REPAIR
from voxstrata.store.files import ROOT, Files
from voxstrata.store.spec import StoreSpec

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
            node = parse_json(files.read(f"{name}/{ROOT}".lstrip("/")))
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


@contextlib.contextmanager
def reading_zarr(files: Files, name: str) -> Iterator[None]:
    """Make an InputError of what zarr says of an array that is damaged: a checksum, a length, a codec that fails."""
    try:
        yield
    except VoxstrataError:
        raise
    except Exception as e:  # whatever a codec makes of bytes that are not its own
        raise InputError(f"{files.root}: {name}: cannot be read ({type(e).__name__}: {e}); {REPAIR}") from e


def first_rows(length: NDArray[np.int32], plans: Sequence[Mapping[str, Any]]) -> NDArray[np.int64] | None:
    """The first row of each utterance, int64, as the plans' units and the lengths have it: in a unit one follows the
    other. None where lengths and units do not fit together."""
    expected = np.zeros(len(length), np.int64)
    for plan in plans:
        begin = np.asarray(plan["unit_begin"], np.int64) + plan["first_utterance"]
        if begin[-1] > len(length) or (np.diff(begin) < 0).any() or (length < 0).any():
            return None
        before = np.zeros(begin[-1] - begin[0] + 1, np.int64)
        np.cumsum(length[begin[0] : begin[-1]], out=before[1:])
        before_unit = before[begin - begin[0]]
        if (np.diff(before_unit) > plan["unit_rows"]).any():
            return None
        unit_row = (plan["first_unit"] + np.arange(len(begin) - 1)) * plan["unit_rows"]
        expected[begin[0] : begin[-1]] = before[:-1] + np.repeat(unit_row - before_unit[:-1], np.diff(begin))
    return expected


def in_no_unit(count: int, plans: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Which of so many utterances failed before anything was encoded, bool (utterances,): they are in no unit."""
    outside = np.ones(count, bool)
    for plan in plans:
        outside[plan["first_utterance"] : plan["first_utterance"] + plan["unit_begin"][-1]] = False
    return outside


def refuse_other_table(
    files: Files, table: pa.Table, start: NDArray[np.int64], length: NDArray[np.int32], status: NDArray[np.uint8]
) -> None:
    """Raise InputError where a table of utterances is not of these arrays. While a run is going on its status is not.

    Tables of 0.1.0 lack these columns.
    """
    fits = len(table) == len(start)
    if fits and "row_start" in table.column_names:
        fits = np.array_equal(table["row_start"].to_numpy(), start) and np.array_equal(
            table["row_count"].to_numpy(), length
        )
        if fits and status.all():
            fits = np.array_equal(pc.equal(table["status"], "done").to_numpy(), status == 1)
    if not fits:
        raise InputError(f"{files.root}: utterances.parquet: not of the arrays beside it; {REPAIR}")
