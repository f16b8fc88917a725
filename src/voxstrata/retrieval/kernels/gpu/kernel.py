"""The host side: rows on the device, blocks that fit its memory, launches."""

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.retrieval.kernels.base import FloatMatrix, FloatVector, Packed, PairIndices, runs
from voxstrata.retrieval.ragged import Ragged

SCRATCH_BYTES = 3 << 29  # 1.5 GiB: for blocks of about 140,000 frames a side, a tenth of a second's work each
STAGING_BYTES = 64 << 20  # of page-locked memory by which rows go to the device; two are in use at a time
UNIT_VALUES = 8192  # that a program of `scale_rows` scales at a time, 32 for each of its threads
MEAN_BLOCK = 512  # frames a program of `means` sums at a time
# Multiprocessors that `maxima` leaves to `scale_rows`. Its own programs stay until a block is compared and leave no
# room beside them, so that rows for the next tile would wait for the end of each block.
RESERVED = 1


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


# By compute capability, the lowest first; one that is not here takes the tile of the next lower one. Each compiles
# without spills in a loop, and within the shared memory of a block (tests/test_kernel_triton.py). None is measured.
_HALF = {
    (8, 0): Tile(128, 128, 32, warps=8, stages=4),
    (9, 0): Tile(128, 256, 64, warps=8, stages=4),
    (10, 0): Tile(128, 128, 64, warps=8, stages=4),
    (12, 0): Tile(128, 128, 64, warps=8, stages=3),
}
TILES = {"float16": _HALF, "bfloat16": _HALF, "float32": {(8, 0): Tile(64, 64, 16, warps=4, stages=3, programs=2)}}


def tile_for(dtype: str, capability: tuple[int, int]) -> Tile:
    """The tile of `TILES` for rows of that format on a device of that compute capability."""
    known = TILES[dtype]
    return known[max((c for c in known if c <= capability), default=min(known))]


class Triton:
    """SeqSim on the first CUDA device (CUDA_VISIBLE_DEVICES chooses it), with float32 sums and maxima.

    dtype: number format of the rows, float16, bfloat16 or float32. tile: the cut of the work; None: that of `tile_for`.
    scratch_bytes: bound on device memory beside the packed rows (half of what is free, if that is less).
    Packing has a stream of its own, so that one thread may pack while another compares.
    With TRITON_INTERPRET=1 set before the first use and no CUDA device, it runs in Triton's interpreter, for tests.
    Raises UsageError for another dtype, without torch or triton, and without a device.
    """

    # A tile then takes some 1.5 s of an H200 at d = 1280, more than a disk needs for its next block (1.3 GB).
    block_frames = 1 << 19

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
            self._packing = torch.cuda.Stream(self._device, priority=-1)  # before what else waits for a multiprocessor
            self._processors = torch.cuda.get_device_properties(self._device).multi_processor_count
            capability = torch.cuda.get_device_capability(self._device)
            self._descriptors = capability >= (9, 0)  # from which on a bulk copy engine reads by them
            self._turn: AbstractContextManager[Any] = nullcontext()
        elif triton.knobs.runtime.interpret:
            self._device, self._packing, self._processors, capability = torch.device("cpu"), None, 3, (0, 0)
            self._descriptors = True
            self._turn = threading.Lock()  # the interpreter runs one program at a time
        else:
            raise UsageError("the GPU kernel finds no CUDA device; choose a CPU kernel")
        self.name = f"triton-{dtype}"
        self.tile = tile or tile_for(dtype, capability)
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
        width = -(-d // 8) * 8  # rows must start at multiples of 16 bytes
        needed = frames * (width * self._dtype.itemsize + 8)
        free = free_bytes(self._device)
        if needed + self.scratch_bytes > free:
            raise InputError(
                f"{counted(len(utterances), 'utterance')} of {frames} frames × d = {d} need {_gib(needed)} of device "
                f"memory and {_gib(self.scratch_bytes)} to work in, {_gib(free)} are free; compare smaller sets "
                "(`similarity` has --tile-frames for it), or on the CPU"
            )
        given = torch.float16 if utterances.rows.dtype == np.float16 else torch.float32  # torch cannot read bfloat16
        at_once = max(1, STAGING_BYTES // (d * given.itemsize))
        columns = 1 << (width - 1).bit_length()
        rows_each = max(1, UNIT_VALUES // columns)
        with torch.cuda.stream(self._packing):
            rows = torch.empty((frames, width), dtype=self._dtype, device=self._device)
            squares = torch.empty(frames, dtype=torch.float64, device=self._device)
            for first in range(0, frames, at_once):
                some = utterances.rows[first : first + at_once]
                staged = torch.empty(some.shape, dtype=given, pin_memory=self._packing is not None)
                np.copyto(staged.numpy(), some, casting="unsafe")  # while the part before goes to the device
                if self._packing is not None:
                    self._packing.synchronize()  # so that no more than two parts are staged
                with self._turn:
                    self._programs.scale_rows[(-(-len(some) // rows_each),)](
                        staged.to(self._device, non_blocking=True),
                        rows,
                        squares,
                        first,
                        len(some),
                        d=d,
                        width=width,
                        ROWS=rows_each,
                        COLUMNS=columns,
                        num_warps=8,
                    )
            found = squares.cpu().numpy()  # when all is done
        if not (np.isfinite(found) & (found > 0)).all():
            utterances.unit()  # raises, and names the frame
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
                with self._turn, self._torch.cuda.device_of(x.rows):
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

    def _operand(self, rows: Any, block: int) -> Any:
        """Rows as `maxima` takes them, so many at a time."""
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor.from_tensor(rows, [block, self.tile.d]) if self._descriptors else rows

    def _block(self, x: Packed, y: Packed) -> Any:
        """Precision and recall of one block of pairs, (2, N, M) float32 on the device."""
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
        grid = min((len(strips) - 1) * blocks, max(1, self._processors - RESERVED) * tile.programs)
        self._programs.maxima[(grid,)](
            self._operand(x.rows, tile.x),
            self._operand(y.rows, tile.y),
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
            DESCRIPTORS=self._descriptors,
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
