"""Chunked zarr v3 stores of per-layer embeddings: the plan that shapes them, writing, and reading."""

from voxstrata.store.plan import Plan, make_plan
from voxstrata.store.reader import EmbeddingStore
from voxstrata.store.several import open_store
from voxstrata.store.spec import StoreSpec
from voxstrata.store.writer import StoreWriter

__all__ = ["EmbeddingStore", "Plan", "StoreSpec", "StoreWriter", "make_plan", "open_store"]
