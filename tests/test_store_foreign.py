"""A store from a stranger is opened only where its arrays are of the kinds that stores have: no chunk runs code."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Utterance, make_store

from voxstrata.base.errors import InputError
from voxstrata.store import open_store

FRAMES = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
ZARR_2 = {
    "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "fill_value": None, "order": "C",
    "filters": [{"id": "pickle", "protocol": 5}],
}  # fmt: skip


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "s.zarr", {"a": Utterance(FRAMES)})
    return tmp_path / "s.zarr"


def change(path: Path, **changes: Any) -> None:
    about = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(about | changes), encoding="utf-8")


def pickled_array(folder: Path, ran: Path) -> None:
    """An array of zarr format 2 whose chunk is a pickle."""
    folder.mkdir(exist_ok=True)
    (folder / ".zarray").write_text(json.dumps(ZARR_2), encoding="utf-8")
    (folder / "0").write_bytes(pickle.dumps(Runs(ran)))


@pytest.mark.parametrize("consolidated", [False, True])
def test_a_pickle_in_an_array_of_zarr_2_is_refused(store: Path, tmp_path: Path, consolidated: bool) -> None:
    pickled_array(store / "start", tmp_path / "ran")
    if consolidated:
        inner = {"kind": "inline", "must_understand": False, "metadata": {"start": {**ZARR_2, "attributes": {}}}}
        change(store / "zarr.json", consolidated_metadata=inner)
    else:
        (store / "start" / "zarr.json").unlink()
    with pytest.raises(InputError, match="zarr format 2" if consolidated else "start: no zarr 3 array"):
        open_store(store)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zarr_format": 2}, "zarr format 2"),
        ({"data_type": "variable_length_bytes"}, "data type variable_length_bytes"),
        ({"data_type": {"name": "numpy.datetime64"}}, "data type"),
        ({"codecs": [{"name": "vlen-bytes"}]}, "codec vlen-bytes"),
        (
            {"codecs": [{"name": "sharding_indexed", "configuration": {"codecs": ["numcodecs.zlib"]}}]},
            "codec numcodecs",
        ),
        ({"storage_transformers": ["x"]}, "storage transformers"),
        ({"codecs": 3}, "not zarr's metadata"),
    ],
)
@pytest.mark.parametrize("place", ["status", "frames/final", "frames/row"])
def test_arrays_that_no_store_has_are_refused(store: Path, place: str, changes: dict[str, Any], message: str) -> None:
    """Also one that is not the store's own: xarray would open it."""
    if place == "frames/row":
        (store / place).mkdir()
        (store / place / "zarr.json").write_bytes((store / "start" / "zarr.json").read_bytes())
        assert open_store(store).complete
    change(store / place / "zarr.json", **changes)
    with pytest.raises(InputError, match=message):
        open_store(store)


@pytest.mark.parametrize("compressor", ["zstd", "gzip", "blosc"])
def test_a_compressed_copy_is_read(store: Path, compressor: str) -> None:
    codec = {"zstd": zarr.codecs.ZstdCodec, "gzip": zarr.codecs.GzipCodec, "blosc": zarr.codecs.BloscCodec}[
        compressor
    ]()
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    kept = root["frames/final"]
    assert isinstance(kept, zarr.Array)
    rows, settings = kept[:], {"chunks": kept.chunks, "shards": kept.shards}
    root.create_array("frames/final", data=rows, compressors=codec, overwrite=True, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata are not in zarr's specification yet
        zarr.consolidate_metadata(root.store)
    np.testing.assert_array_equal(open_store(store).frames("a", "final"), FRAMES)
