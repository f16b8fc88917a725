"""Per-layer speech-encoder embeddings at corpus scale, and the cross-lingual retrieval analysis on them."""

from voxstrata.corpus import read_corpus
from voxstrata.engine import Device, extract
from voxstrata.errors import AudioError, InputError, UsageError, VoxstrataError
from voxstrata.model import Context, open_model
from voxstrata.store import open_store

__all__ = [
    "AudioError",
    "Context",
    "Device",
    "InputError",
    "UsageError",
    "VoxstrataError",
    "extract",
    "open_model",
    "open_store",
    "read_corpus",
]
