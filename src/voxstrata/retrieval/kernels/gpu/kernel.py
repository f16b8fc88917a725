"""The host side: rows on the device, blocks that fit its memory, launches."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError, UsageError
from voxstrata.retrieval.kernels.base import FloatMatrix, FloatVector, Packed, PairIndices, runs
from voxstrata.retrieval.ragged import Ragged

SCRATCH_BYTES = 3 << 29  # 1.5 GiB: blocks of `Triton.block_frames` frames a side stay whole
STAGING_FRAMES = 1 << 14  # rows scaled to unit length at a time, in float64: 160 MiB at d = 1280
MEAN_BLOCK = 512  # frames a program of `means` sums at a time


@dataclass(frozen=True)
class Tile:
    """How `programs.maxima` cuts its work: a tile of S, its depth, the threads and the strip.

    x, y, d: frames of x, frames of y and columns of one step, powers of two from 16 on. warps, stages: warps per
    program and copies under way. programs: programs per multiprocessor. strip: frames of x per item of work.
    """

    x: int
    y: int
    d: int
    warps: int
    stages: int
    programs: int = 1
    strip: int = 2048


# By compiler report (no spills in the loop over d) and shared memory; not yet by measurement.
TILES = {
    "float16": Tile(128, 256, 64, warps=8, stages=4),
    "bfloat16": Tile(128, 256, 64, warps=8, stages=4),
    "float32": Tile(64, 64, 16, warps=4, stages=3, programs=2),
}


class Triton:
    """SeqSim on the first CUDA device (CUDA_VISIBLE_DEVICES chooses it), with float32 sums and maxima.

    dtype: number format of the rows, float16, bfloat16 or float32. tile: the cut of the work; None: `TILES[dtype]`.
    scratch_bytes: bound on device memory beside the packed rows (half of what is free, if that is less).
    With TRITON_INTERPRET=1 set before the first use and no CUDA device, it runs in Triton's interpreter, for tests.
    Raises UsageError for another dtype, without torch or triton, and without a device.
    """

    block_frames = 131_072

    def __init__(self, dtype: str = "float16", *, tile: Tile | None = None, scratch_bytes: int = SCRATCH_BYTES) -> None:
        if dtype not in TILES:
            raise UsageError(f"the GPU kernel takes rows of {', '.join(TILES)}, not {dtype}")
        try:
            import torch
            import triton

            from voxstrata.retrieval.kernels.gpu import programs
        except ImportError as error:
            raise UsageError(
                f"the GPU kernel needs {error.name}: pip install torch (built for CUDA; it brings triton), "
                "or choose a CPU kernel"
            ) from error
        if torch.cuda.is_available():
            self._device = torch.device("cuda:0")
            self._processors = torch.cuda.get_device_properties(self._device).multi_processor_count
        elif triton.knobs.runtime.interpret:
            self._device, self._processors = torch.device("cpu"), 3
        else:
            raise UsageError("the GPU kernel finds no CUDA device; choose a CPU kernel")
        self.name = f"triton-{dtype}"
        self.tile = tile or TILES[dtype]
        self.scratch_bytes = scratch_bytes
        self._dtype = getattr(torch, dtype)
        self._precision = "ieee" if dtype == "float32" else "tf32"  # no part in products of 16-bit rows
        self._torch, self._programs = torch, programs

    def pack(self, utterances: Ragged) -> Packed:
        """Rows of unit length on the device, (frames, d up to the next multiple of 8), the added columns zero.

        Raises InputError naming utterance and frame for a row that is zero, NaN or infinite, and with sizes for a set
        that does not fit the device beside the scratch memory.
        """
        torch = self._torch
        frames, d = utterances.rows.shape
        shape = (frames, -(-d // 8) * 8)  # rows must start at multiples of 16 bytes
        needed = math.prod(shape) * self._dtype.itemsize
        free = free_bytes(self._device)
        if needed + self.scratch_bytes > free:
            raise InputError(
                f"{len(utterances)} utterances of {frames} frames × d = {d} need {_gib(needed)} of device memory and "
                f"{_gib(self.scratch_bytes)} to work in, {_gib(free)} are free; compare smaller sets, or on the CPU"
            )
        rows = torch.zeros(shape, dtype=self._dtype, device=self._device)
        for begin in range(0, frames, STAGING_FRAMES):
            # float64 as in `unit_rows`: no square of a float32 overflows or vanishes.
            some = utterances.rows[begin : begin + STAGING_FRAMES]
            if some.dtype.name == "bfloat16":  # numpy's, unknown to torch
                some = some.astype(np.float32)
            part = torch.tensor(some, device=self._device).double()
            squares = part.square().sum(dim=1, keepdim=True)
            if not bool((squares.isfinite() & (squares > 0)).all()):
                utterances.unit()  # raises, and names the frame
            rows[begin : begin + len(part), :d] = part.div_(squares.sqrt_()).to(self._dtype)
        return Packed(rows, utterances.offsets)

    def compare(self, x: Packed, y: Packed) -> tuple[FloatMatrix, FloatMatrix]:
        """See `Kernel.compare`. Scratch memory stays under `scratch_bytes`; one utterance alone may pass that."""
        precision, recall = np.empty((2, len(x), len(y)), np.float32)
        # With F frames and at most F / 128 utterances a side, the scratch holds at most F² (1/128 + 1/128 + 1/y)
        # float32: frames of y for each utterance of x, frames of x for each piece of y.
        scratch = min(self.scratch_bytes, free_bytes(self._device) // 2)
        frames = max(128, math.isqrt(int(scratch / 4 / (1 / 64 + 1 / self.tile.y))))
        for i, j in runs(x.lengths, frames, frames // 128):
            for k, m in runs(y.lengths, frames, frames // 128):
                # Triton launches on the thread's current device, whichever holds the rows.
                with self._torch.cuda.device_of(x.rows):
                    both = self._block(x.part(i, j), y.part(k, m)).cpu().numpy()
                precision[i:j, k:m], recall[i:j, k:m] = both
        return precision, recall

    def compare_pairs(self, x: Packed, y: Packed, i: PairIndices, j: PairIndices) -> tuple[FloatVector, FloatVector]:
        """See `Kernel.compare_pairs`: a call of `compare` for every utterance of x among the pairs."""
        precision, recall = np.empty(len(i), np.float32), np.empty(len(i), np.float32)
        for u in np.unique(i):
            pairs = np.flatnonzero(i == u)
            p, r = self.compare(x.part(u, u + 1), y.take(j[pairs]))
            precision[pairs], recall[pairs] = p[0], r[0]
        return precision, recall

    def _block(self, x: Packed, y: Packed) -> Any:
        """Precision and recall of one block of pairs, (2, N, M) float32 on the device."""
        from triton.tools.tensor_descriptor import TensorDescriptor

        torch, tile = self._torch, self.tile
        x_frames, y_frames = len(x.rows), len(y.rows)
        strips = [0, *(j for _, j in runs(x.lengths, tile.strip))]
        blocks = -(-y_frames // tile.y)
        edges = np.minimum(np.arange(blocks + 1) * tile.y, y_frames)
        pieces = np.union1d(edges, y.offsets)  # where a block or an utterance begins, and the end

        def to_device(values: npt.ArrayLike) -> Any:
            return torch.tensor(np.asarray(values, np.int32), device=self._device)

        def empty(*shape: int) -> Any:
            return torch.empty(shape, dtype=torch.float32, device=self._device)

        x_offsets, y_offsets = to_device(x.offsets), to_device(y.offsets)
        row_max, column_max = empty(len(pieces) - 1, x_frames), empty(len(x), y_frames)
        grid = min((len(strips) - 1) * blocks, self._processors * tile.programs)
        self._programs.maxima[(grid,)](
            TensorDescriptor.from_tensor(x.rows, [tile.x, tile.d]),
            TensorDescriptor.from_tensor(y.rows, [tile.y, tile.d]),
            x_offsets,
            to_device(strips),
            to_device(pieces),
            to_device(np.searchsorted(pieces, edges)),
            row_max,
            column_max,
            x_frames,
            y_frames,
            len(strips) - 1,
            blocks,
            d=x.rows.shape[1],
            X_BLOCK=tile.x,
            Y_BLOCK=tile.y,
            D_BLOCK=tile.d,
            GROUP=8,
            PRECISION=self._precision,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        both = empty(2, len(x), len(y))
        self._programs.means[(len(x), len(y))](
            row_max,
            column_max,
            x_offsets,
            y_offsets,
            to_device(np.searchsorted(pieces, y.offsets)),
            both[0],
            both[1],
            x_frames,
            y_frames,
            len(y),
            BLOCK=MEAN_BLOCK,
            num_warps=2,
        )
        return both


def free_bytes(device: Any) -> int:
    """Memory of the device that new tensors can take; unlimited in the interpreter."""
    import torch

    if device.type != "cuda":
        return 1 << 62
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + cached)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
