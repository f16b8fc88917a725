"""A store as xarray has it.

This module alone imports xarray; `EmbeddingStore.to_xarray` imports it when it is called.
"""

from typing import Any

import xarray

from voxstrata.store.writer import DONE


def dataset_of(store: Any) -> xarray.Dataset:
    """What `EmbeddingStore.to_xarray` gives."""
    arrays = xarray.open_zarr(
        store.files.zarr_store(read_only=True), group=store.spec.group, chunks=None, zarr_format=3
    )
    known = store.to_pandas().drop(columns=list(store.outputs), errors="ignore")
    columns = {name: ("utterance", values.to_numpy()) for name, values in known.items()}
    if not store.has_frames and "row" in arrays.dims:  # appended to: between the units are rows of nobody
        arrays = arrays.isel(row=xarray.DataArray(store.start, dims="utterance"))
        done = xarray.DataArray(store.status == DONE, dims="utterance")
        arrays = arrays if done.all() else arrays.where(done, 0)  # as they are before an append
    return arrays.assign_coords(utterance=store.ids, **columns)
