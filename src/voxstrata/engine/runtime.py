"""How an extraction runs: what it may use of the machine."""

import os
from dataclasses import dataclass

from voxstrata.encoders.device import DeviceField
from voxstrata.encoders.frames import WINDOW_FRAMES

# Batch size × computed positions. On a CPU every thread has a batch of its own, and what does not outgrow its caches is
# fastest; a GPU wants to be filled.
DEFAULT_TOKENS = {"cpu": 500, "cuda": 16 * WINDOW_FRAMES, "tensorrt": 16 * WINDOW_FRAMES}


def available_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Runtime:
    """What a run may use of the machine.

    device: where the encoder runs, a Device or its name, such as "cuda:1"; a GPU is never assumed.
    threads: for ONNX Runtime and for decoding; by default the cores this process may use.
    tokens: batch size × computed positions; by default what suits the device.
    unit_megabytes: size of one unit over all outputs: of the buffer in memory, and so of shards. A recording that needs
        more is a unit by itself; with `StoreSpec.pool` a unit is 256 utterances. By default 128, on a GPU what eight
        batches fill, up to 4096.
    """

    device: DeviceField = DeviceField()  # noqa: RUF009  (a descriptor, of the class)
    threads: int | None = None
    tokens: int | None = None
    unit_megabytes: float | None = None

    @property
    def thread_count(self) -> int:
        """`threads`, or what there is."""
        return self.threads or available_threads()

    @property
    def batch_tokens(self) -> int:
        """`tokens`, or what suits the device."""
        return self.tokens or DEFAULT_TOKENS[self.device.kind]
