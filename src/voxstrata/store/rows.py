"""Rows of an array, wherever they lie: a shard on a disk or in an object store, or a copy of another layout."""

from typing import Any

import zarr
from numpy.typing import NDArray

from voxstrata.store.files import Files
from voxstrata.store.shard import RemoteShard, ShardLayout
from voxstrata.store.soundness import reading_zarr


def fill_rows(files: Files, array: "zarr.Array[Any]", begin: int, out: NDArray[Any], indexes: dict[str, bytes]) -> None:
    """Rows of an array from `begin`, into `out`; straight from the shards where they are laid out as ours.

    indexes: of shards on an object store, kept by name. Raises InputError for what is damaged.
    """
    layout = ShardLayout.of(array)
    if layout is None:
        with reading_zarr(files, array.path):
            out[:] = array[begin : begin + len(out)]
        return
    shard_rows, end, at = layout.shard_rows, begin + len(out), begin
    while at < end:
        unit = at // shard_rows
        stop = min(end, (unit + 1) * shard_rows)
        name = f"{array.path}/{array.metadata.encode_chunk_key((unit, 0))}"
        place = files.local / name if files.local is not None else _remote(files, name, indexes)
        layout.read(place, at % shard_rows, out[at - begin : stop - begin])
        at = stop


def _remote(files: Files, name: str, indexes: dict[str, bytes]) -> RemoteShard:
    return RemoteShard(f"{files.root}/{name}", lambda begin, end: files.read_range(name, begin, end), indexes)
