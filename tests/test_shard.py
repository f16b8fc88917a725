"""Shards written by us are zarr's, to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from voxstrata.store.files import Files
from voxstrata.store.shard import shard_bytes, shard_parts

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
