"""Shards written by us are zarr's, to the byte, and read as zarr reads them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Utterance, make_store
from zarr.codecs import Crc32cCodec

from voxstrata.base.errors import InputError
from voxstrata.store import open_store
from voxstrata.store.files import Files
from voxstrata.store.shard import ShardLayout

SHARD, CHUNK = 48, 8  # rows


def layout(d: int, itemsize: int, checksums: bool = True) -> ShardLayout:
    return ShardLayout(CHUNK, SHARD, d * itemsize, checksums)


def zarr_array(folder: Path, d: int, dtype: str, checksums: bool, **settings: Any) -> zarr.Array:
    """An array of three shards, laid out as ours, for zarr to write."""
    given = {"chunks": (CHUNK, d), "shards": (SHARD, d), "compressors": Crc32cCodec() if checksums else None}
    store = zarr.storage.LocalStore(folder)
    return zarr.create_array(store, shape=(3 * SHARD, d), dtype=dtype, fill_value=0, **{**given, **settings})


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 47, 48])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_shard_is_byte_for_byte_what_zarr_writes(rows: int, dtype: str, checksums: bool, tmp_path: Path) -> None:
    block = np.random.default_rng(rows).standard_normal((rows, 5)).astype(dtype)
    array = zarr_array(tmp_path / "zarr", 5, dtype, checksums)
    array[SHARD : SHARD + rows] = block
    expected = (tmp_path / "zarr" / "c" / "1" / "0").read_bytes()
    files, ours = Files(tmp_path / "ours"), layout(5, block.itemsize, checksums)
    assert ShardLayout.of(array) == ours
    files.write("c/1/0", *ours.parts(block))
    assert files.read("c/1/0") == expected
    assert ours.size(rows) == len(expected)


def test_rows_are_written_without_a_copy() -> None:
    block = np.zeros((16, 5), np.float16)
    second = layout(5, 2).parts(block)[2]
    block[CHUNK + 3, 2] = 7
    assert np.frombuffer(second, np.float16)[3 * 5 + 2] == 7


def test_an_object_store_gets_the_same_bytes() -> None:
    block = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    files = Files("memory://shards")
    files.write("c/0/0", *layout(5, 4).parts(block))
    assert files.read("c/0/0") == b"".join(layout(5, 4).parts(block))


@pytest.fixture(scope="module", params=[True, False])
def written(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[zarr.Array, Path]:
    """An array of three shards that zarr wrote: a full one, one with a chunk of nothing but zeros, none at all."""
    folder = tmp_path_factory.mktemp("array")
    array = zarr_array(folder, 5, "float16", request.param)
    rows = np.random.default_rng(1).standard_normal((2 * SHARD, 5)).astype(np.float16)
    rows[SHARD + 2 * CHUNK : SHARD + 3 * CHUNK] = 0  # zarr leaves it out and moves the next one up
    array[: 2 * SHARD] = rows
    return array, folder


def read(array: zarr.Array, path: Path, begin: int, end: int) -> np.ndarray:
    found = ShardLayout.of(array)
    assert found
    out = np.full((end - begin, 5), np.nan, np.float16)
    found.read(path, begin, out)
    return out


@pytest.mark.parametrize("shard", [0, 1])
def test_any_rows_of_a_shard_read_as_zarr_reads_them(written: tuple[zarr.Array, Path], shard: int) -> None:
    array, folder = written
    whole = array[shard * SHARD : (shard + 1) * SHARD]
    for begin in range(SHARD):
        for end in range(begin + 1, SHARD + 1):
            out = read(array, folder / "c" / str(shard) / "0", begin, end)
            if not np.array_equal(out, whole[begin:end]):
                np.testing.assert_array_equal(out, whole[begin:end], err_msg=f"{begin}:{end}")


def test_a_missing_shard_is_an_input_error(written: tuple[zarr.Array, Path]) -> None:
    with pytest.raises(InputError, match="c/2/0: missing; run the same extraction again"):
        read(written[0], written[1] / "c" / "2" / "0", 0, 3)


@pytest.mark.parametrize("damage", ["index", "cut", "empty"])
def test_a_damaged_shard_is_an_input_error(written: tuple[zarr.Array, Path], tmp_path: Path, damage: str) -> None:
    data = bytearray((written[1] / "c" / "0" / "0").read_bytes())
    data[-10] ^= 1 if damage == "index" else 0
    path = tmp_path / "shard"
    path.write_bytes({"index": data, "cut": data[:100], "empty": b""}[damage])
    with pytest.raises(InputError, match=r"shard: damaged"):
        read(written[0], path, 0, 3)


def test_each_flipped_bit_is_found_by_reading_its_chunk_and_no_other(tmp_path: Path) -> None:
    block = np.random.default_rng(3).standard_normal((3 * CHUNK, 5)).astype(np.float16)
    ours, path = layout(5, 2), tmp_path / "shard"
    data = b"".join(ours.parts(block))
    rng = np.random.default_rng(4)
    for chunk in range(3):
        for at in rng.choice(ours.stored_bytes, 20, replace=False).tolist():
            flipped = bytearray(data)
            flipped[chunk * ours.stored_bytes + at] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            out = np.empty((1, 5), np.float16)
            for row in range(3 * CHUNK):
                if row // CHUNK == chunk:
                    message = (
                        f"shard: damaged, the checksum of its rows {chunk * CHUNK} to {chunk * CHUNK + 7} is wrong"
                    )
                    with pytest.raises(InputError, match=message):
                        ours.read(path, row, out)
                else:
                    ours.read(path, row, out)
                    np.testing.assert_array_equal(out[0], block[row])


def test_a_shard_of_a_store_without_checksums_is_no_shard_of_one_with(tmp_path: Path) -> None:
    path, block = tmp_path / "shard", np.ones((CHUNK, 5), np.float16)
    path.write_bytes(b"".join(layout(5, 2, False).parts(block)))
    with pytest.raises(InputError, match="shard: damaged, or of another store: its chunks are of another size"):
        layout(5, 2).read(path, 0, np.empty((1, 5), np.float16))


def test_a_shard_whose_index_points_beyond_its_end_is_an_input_error(
    written: tuple[zarr.Array, Path], tmp_path: Path
) -> None:
    data = (written[1] / "c" / "0" / "0").read_bytes()
    path = tmp_path / "shard"
    path.write_bytes(data[-(16 * SHARD // CHUNK + 4) :])  # the index, but no rows
    with pytest.raises(InputError, match="shard: cut short"):
        read(written[0], path, SHARD - 1, SHARD)


@pytest.mark.parametrize("settings", [{"compressors": "auto"}, {"shards": None}, {"chunks": (CHUNK, 1)}])
def test_arrays_of_another_layout_are_left_to_zarr(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert ShardLayout.of(zarr_array(tmp_path, 4, "float16", False, **settings)) is None


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
    assert ShardLayout.of(again.array("final")) is None
    np.testing.assert_array_equal(again.frames("b", "final"), frames)
    np.testing.assert_array_equal(again.frames("a", "final"), frames[:10])
