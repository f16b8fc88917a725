"""What an encoder is to the engine: samples go in, and the rows that are stored come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from voxstrata.encoders.card import ModelFolder
from voxstrata.engine.cpu_encoder import CpuEncoder
from voxstrata.engine.cuda_encoder import CudaEncoder
from voxstrata.engine.reductions import StoredRows
from voxstrata.engine.runtime import Runtime
from voxstrata.store.spec import StoreSpec


class Encoder(Protocol):
    """A model on one device, and what is kept of its states.

    spec: what is kept, resolved for this model and device.
    threads: for decoding. tokens: batch size × computed positions.
    concurrency: how many threads should call `stored_rows` at once.
    seconds: busy ones by stage, over all threads.
    """

    model: ModelFolder
    spec: StoreSpec
    threads: int
    tokens: int
    concurrency: int
    seconds: dict[str, float]

    def batch_size(self, frames: int) -> int:
        """How many windows of `frames` computed positions go into one batch."""

    def stored_rows(self, audio: Sequence[NDArray[np.float32]], frames: int) -> StoredRows:
        """Encode a batch of windows of at most 30 s at 16 kHz, computing `frames` positions of each.

        May be called from several threads at once. Raises InputError when memory runs out or a graph fails otherwise.
        """


def make_encoder(model: ModelFolder, spec: StoreSpec, runtime: Runtime) -> Encoder:
    """What encodes on that device. Raises what `Sessions` raises."""
    if runtime.device.kind == "cpu":
        return CpuEncoder(model, spec, runtime)
    return CudaEncoder(model, spec, runtime)
