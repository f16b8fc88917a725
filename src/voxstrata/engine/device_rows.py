"""Rows on their way from an accelerator to the host: reduced on it, and copied to memory that is used again.

The copy is part of the run of the reductions, whose outputs are bound to host memory: ONNX Runtime gives every run a
CUDA stream of its own, so the copy is on one other than the encoder's, and Python's lock is not held meanwhile.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from voxstrata.engine.encoder import Encoder, Kept
from voxstrata.engine.page_lock import HostRing, host_array, page_lock
from voxstrata.engine.reductions import StoredRows, gathering, row_count
from voxstrata.exporters.reductions import reduction_graph

REDUCTIONS = "reductions"  # made here; the other graphs are files of the model
# Batches of stored rows that may be on their way at once: those that are fetched, that wait to be placed, and that are.
ROWS_IN_FLIGHT = 12


class DeviceRows(Encoder):
    """An encoder whose states lie on the device. (In tests that may be the CPU: the same calls, other addresses.)

    host_memory: "pinned", or "pageable" on a CPU and once the driver has refused to lock memory, which is slower but
    gives the same.
    """

    host_memory = "pageable"

    def _begin_rows(self, computed: np.dtype[Any], largest: int) -> None:
        """Make what brings rows to the host. computed: the type of states. largest: rows of a batch, those beyond get
        memory that is not kept."""
        self._where = ("cpu", 0) if self.device.kind == "cpu" else ("cuda", self.device.index)
        self._computed = computed
        self.host_memory = "pageable" if self.device.kind == "cpu" else "pinned"
        self._rows = HostRing(self._bytes(largest), ROWS_IN_FLIGHT)
        self._reductions = self._make_session(REDUCTIONS)  # of this encoder's outputs: not among those that are shared

    def _bytes(self, rows: int) -> int:
        """Of each output so many rows, and at the end whether all of it is finite."""
        return len(self.outputs) * (rows * self.model.card.d_model + 1) * self.spec.stored_dtype.itemsize

    def _on_device(self, array: NDArray[Any]) -> Any:
        """A copy that is complete. (On a CPU the array itself.)

        `bind_cpu_input` only queues one, on a stream that it then puts back among those that runs take: with several
        threads a run may start on another stream, before its input has arrived.
        """
        return ort.OrtValue.ortvalue_from_numpy(array, *self._where)

    def _page_locked(self, size: int) -> NDArray[np.uint8]:
        """So many bytes that the device copies to and from, page-locked where the driver allows it."""
        array = host_array(size, np.uint8)
        if self.device.kind != "cpu" and not page_lock(array, self.device.index):
            self.host_memory = "pageable"
        return array

    def _stored(self, states: Mapping[str, Any], shape: Sequence[int], kept: Sequence[Kept]) -> StoredRows:
        """From states on the device (OrtValues by output, [batch, positions, d_model]) to stored rows on the host."""
        begin = time.perf_counter()
        dtype, d, valid = self.spec.stored_dtype, shape[-1], [n for _, n in kept]
        index, weights = gathering(kept, shape[1], self.spec)
        binding = self._reductions.io_binding()
        binding.bind_ortvalue_input("index", self._on_device(index))
        if weights is not None:
            binding.bind_ortvalue_input("weights", self._on_device(weights))
        size = self._bytes(len(index))
        piece = self._rows.take(self._page_locked) if size <= self._rows.size else np.empty(size, np.uint8)
        taken = piece.view(dtype)
        *stored, _ = np.split(taken, len(index) * d * np.arange(1, len(self.outputs) + 1))
        stored, checks = [rows.reshape(-1, d) for rows in stored], taken[-len(self.outputs) :]
        for rows, (output, value) in zip(stored, states.items(), strict=True):
            binding.bind_input(output, *self._where, self._computed, list(shape), value.data_ptr())
            binding.bind_output(f"stored/{output}", "cpu", 0, dtype, [len(index), d], rows.ctypes.data)
        binding.bind_output("finite", "cpu", 0, dtype, [len(checks), 1], checks.ctypes.data)
        self._reductions.run_with_iobinding(binding)
        finite = (checks == 0).tolist()
        ends = np.cumsum([row_count(n, self.spec) for n in valid])[:-1]
        if self.spec.pool:  # from means to sums
            stored = [rows * np.array(valid, np.float64)[:, None] for rows in stored]
        self._count("copy_out", begin)
        return StoredRows([np.split(rows, ends) for rows in stored], finite)

    def _source(self, name: str) -> Path | bytes:
        if name != REDUCTIONS:
            return super()._source(name)
        means, stored = bool(self.spec.pool) or self.spec.every > 1, self.spec.stored_dtype
        return reduction_graph(self.outputs, self._computed, self.model.card.d_model, stored, means=means)
