"""The plan of a comparison at corpus scale: which pairs, in which tiles."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval.compare import BLOCK_UTTERANCES, Tiles
from voxstrata.retrieval.kernels.base import Kernel
from voxstrata.retrieval.selection import Selection, refuse_incomparable

BEST = 10  # candidates kept of each query
SAMPLE = 200  # queries per direction by which candidate mode is judged
MATRICES = ("f1", "precision", "recall")
# Utterances per side of a chunk of the matrix; fewer where so many are more frames than a block may hold.
CHUNK_UTTERANCES, MIN_CHUNK_UTTERANCES = 256, 16


@dataclass(frozen=True, eq=False)
class TilePlan:
    """What is compared and in which tiles: a pure function of the sides and the settings.

    y: None compares x with itself. matrix: which of "f1", "precision", "recall" are kept whole.
    candidates: 0, or how many of each query's nearest by pooled cosine are compared. sample: queries per direction
    by which their recall is measured; 0 without candidates.
    x_begin, y_begin: bounds of the blocks, from 0 to n. chunk: utterances per side of a chunk of the matrices.
    """

    x: Selection
    y: Selection | None
    output: str
    kernel: str
    top: int
    matrix: tuple[str, ...]
    candidates: int
    sample: int
    chunk: int
    x_begin: list[int]
    y_begin: list[int]

    @property
    def other(self) -> Selection:
        """The side of the columns: y, or x itself."""
        return self.x if self.y is None else self.y

    @property
    def tiles(self) -> Tiles:
        """The blocks of both sides."""
        return Tiles(self.x_begin, self.y_begin, self.y is None)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides the result, JSON-ready, one level deep."""
        settings: dict[str, Any] = {"one set with itself": self.y is None}
        for name, side in (("x", self.x), ("y", self.y)):
            settings |= {f"{name} {key}": value for key, value in ({} if side is None else side.identity()).items()}
        for key in ("output", "kernel", "top", "matrix", "candidates", "sample", "chunk", "x_begin", "y_begin"):
            settings[key] = getattr(self, key)
        return dict(json.loads(json.dumps(settings)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the settings."""
        return settings_sha256(self.settings)


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """What tells a plan from others: of its settings, in whatever order they come."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def plan_tiles(
    x: Selection,
    y: Selection | None,
    output: str | int,
    kernel: Kernel,
    *,
    top: int = BEST,
    matrix: str | Sequence[str] = (),
    candidates: int = 0,
    sample: int = SAMPLE,
    tile_frames: int | None = None,
) -> TilePlan:
    """Plan a comparison. Raises UsageError and InputError as `similarity` does, before any frame is read."""
    output = x.store.output(output)
    refuse_incomparable(x, y, output)
    matrix = chosen("matrix", matrix, MATRICES) if matrix else []
    frames = kernel.block_frames if tile_frames is None else tile_frames
    least = {"top": (top, 1), "candidates": (candidates, 0), "sample": (sample, 1), "tile_frames": (frames, 1)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise UsageError(f"{name} is {value}; it must be at least {lowest}")
    if candidates and matrix:
        raise UsageError("candidate mode computes no whole matrix; leave out the matrix or the candidates")
    if 0 < candidates < top:
        raise UsageError(f"--top {top} of --candidates {candidates}: raise --candidates, or lower --top")
    if y is None and len(x) < 2:
        raise InputError(f"{x.store.files.root}: one utterance has nothing to be compared with; choose more")
    chunk = min(_chunk(side, frames) for side in (x, y) if side is not None) if matrix else 1
    x_begin, y_begin = (side.blocks(frames, BLOCK_UTTERANCES, chunk) if side is not None else [] for side in (x, y))
    return TilePlan(
        x, y, output, kernel.name, top, tuple(matrix), candidates, sample if candidates else 0, chunk,
        x_begin, y_begin or x_begin,
    )  # fmt: skip


def _chunk(side: Selection, frames: int) -> int:
    """The largest power of two of which any aligned run has at most `frames` frames, within bounds."""
    chunk = CHUNK_UTTERANCES
    while chunk > MIN_CHUNK_UTTERANCES and np.add.reduceat(side.lengths, np.arange(0, len(side), chunk)).max() > frames:
        chunk //= 2
    return chunk
