"""Shards written by us are zarr's, to the byte, and read as zarr reads them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Utterance, make_store

from voxstrata.base.errors import InputError
from voxstrata.store import open_store
from voxstrata.store.files import Files
from voxstrata.store.shard import is_plain, read_shard_rows, shard_bytes, shard_parts

SHARD, CHUNK = 48, 8  # rows


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 47, 48])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_shard_is_byte_for_byte_what_zarr_writes(rows: int, dtype: str, tmp_path: Path) -> None:
    block = np.random.default_rng(rows).standard_normal((rows, 5)).astype(dtype)
    array = zarr.create_array(
        zarr.storage.LocalStore(tmp_path / "zarr"), shape=(2 * SHARD, 5), chunks=(CHUNK, 5), shards=(SHARD, 5),
        dtype=dtype, compressors=None, fill_value=0,
    )  # fmt: skip
    array[SHARD : SHARD + rows] = block
    expected = (tmp_path / "zarr" / "c" / "1" / "0").read_bytes()
    files = Files(tmp_path / "ours")
    files.write("c/1/0", *shard_parts(block, CHUNK, SHARD))
    assert files.read("c/1/0") == expected
    assert shard_bytes(rows, 5 * block.itemsize, CHUNK, SHARD) == len(expected)


def test_rows_are_written_without_a_copy() -> None:
    block = np.zeros((16, 5), np.float16)
    rows = shard_parts(block, CHUNK, SHARD)[0]
    block[3, 2] = 7
    assert np.frombuffer(rows, np.float16)[3 * 5 + 2] == 7


def test_an_object_store_gets_the_same_bytes() -> None:
    block = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    files = Files("memory://shards")
    files.write("c/0/0", *shard_parts(block, CHUNK, SHARD))
    assert files.read("c/0/0") == b"".join(shard_parts(block, CHUNK, SHARD))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[zarr.Array, Path]:
    """An array of three shards that zarr wrote: a full one, one with a chunk of nothing but zeros, none at all."""
    folder = tmp_path_factory.mktemp("array")
    array = zarr.create_array(
        zarr.storage.LocalStore(folder), shape=(3 * SHARD, 5), chunks=(CHUNK, 5), shards=(SHARD, 5),
        dtype="float16", compressors=None, fill_value=0,
    )  # fmt: skip
    rows = np.random.default_rng(1).standard_normal((2 * SHARD, 5)).astype(np.float16)
    rows[SHARD + 2 * CHUNK : SHARD + 3 * CHUNK] = 0  # zarr leaves it out and moves the next one up
    array[: 2 * SHARD] = rows
    return array, folder


@pytest.mark.parametrize("shard", [0, 1])
def test_any_rows_of_a_shard_read_as_zarr_reads_them(written: tuple[zarr.Array, Path], shard: int) -> None:
    array, folder = written
    assert is_plain(array)
    for begin in range(SHARD):
        for end in range(begin + 1, SHARD + 1):
            out = np.full((end - begin, 5), np.nan, np.float16)
            read_shard_rows(folder / "c" / str(shard) / "0", begin, CHUNK, SHARD, out)
            if not np.array_equal(out, expected := array[shard * SHARD + begin : shard * SHARD + end]):
                np.testing.assert_array_equal(out, expected, err_msg=f"{begin}:{end}")


def test_a_missing_shard_is_an_input_error(written: tuple[zarr.Array, Path]) -> None:
    with pytest.raises(InputError, match="c/2/0: missing; run the same extraction again"):
        read_shard_rows(written[1] / "c" / "2" / "0", 0, CHUNK, SHARD, np.empty((3, 5), np.float16))


@pytest.mark.parametrize("damage", ["index", "cut", "empty"])
def test_a_damaged_shard_is_an_input_error(written: tuple[zarr.Array, Path], tmp_path: Path, damage: str) -> None:
    data = bytearray((written[1] / "c" / "0" / "0").read_bytes())
    data[-10] ^= 1 if damage == "index" else 0
    path = tmp_path / "shard"
    path.write_bytes({"index": data, "cut": data[:100], "empty": b""}[damage])
    with pytest.raises(InputError, match=r"shard: damaged"):
        read_shard_rows(path, 0, CHUNK, SHARD, np.empty((3, 5), np.float16))


def test_a_shard_whose_index_points_beyond_its_end_is_an_input_error(
    written: tuple[zarr.Array, Path], tmp_path: Path
) -> None:
    data = (written[1] / "c" / "0" / "0").read_bytes()
    path = tmp_path / "shard"
    path.write_bytes(data[-(16 * SHARD // CHUNK + 4) :])  # the index, but no rows
    with pytest.raises(InputError, match="shard: cut short"):
        read_shard_rows(path, SHARD - 1, CHUNK, SHARD, np.empty((1, 5), np.float16))


@pytest.mark.parametrize("settings", [{"compressors": "auto"}, {"shards": None}, {"chunks": (CHUNK, 1)}])
def test_arrays_of_another_layout_are_left_to_zarr(tmp_path: Path, settings: dict[str, Any]) -> None:
    given = {"chunks": (CHUNK, 4), "shards": (SHARD, 4), "compressors": None, **settings}
    array = zarr.create_array(zarr.storage.LocalStore(tmp_path), shape=(SHARD, 4), dtype="float16", **given)
    assert not is_plain(array)


def test_a_store_that_was_recompressed_reads_the_same(tmp_path: Path) -> None:
    frames = np.random.default_rng(2).standard_normal((30, 4)).astype(np.float32)
    make_store(tmp_path / "s.zarr", {"a": Utterance(frames[:10]), "b": Utterance(frames)})
    rows = zarr.open_array(tmp_path / "s.zarr", path="frames/final", mode="r")[:]
    root = zarr.open_group(tmp_path / "s.zarr", mode="r+", use_consolidated=False)
    root.create_array("frames/final", data=rows, overwrite=True)  # zarr's default: compressed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata are not in zarr's specification yet
        zarr.consolidate_metadata(root.store)
    with pytest.raises(InputError, match="cannot resume: final was stored again with other chunks"):
        make_store(tmp_path / "s.zarr", {"a": Utterance(frames[:10]), "b": Utterance(frames)})
    again = open_store(tmp_path / "s.zarr")
    assert not is_plain(again.array("final"))
    np.testing.assert_array_equal(again.frames("b", "final"), frames)
    np.testing.assert_array_equal(again.frames("a", "final"), frames[:10])
