"""The encoder on an accelerator: between the audio that goes in and the rows that are stored, all stays on the device.

Log-mel, encoder and reductions are three graphs that pass device memory on by IO binding; the silence cache is uploaded
once per bucket. CUDA graphs and TensorRT profiles need fixed shapes: with them every bucket has one, its full batch,
and what is missing is filled with silence and dropped again. Without them nothing is filled.

How copies overlap computing: each thread that calls has buffers of its own, and one thread runs all encoders. While it
computes one caller's batch, another caller fetches its last batch and uploads its next. ONNX Runtime gives every run a
CUDA stream of its own, and the copy to the host is part of the run of the reductions, so it is on a stream other than
the encoder's, and Python's lock is not held meanwhile. Copies to the device are on CUDA's default stream, and done when
the call returns, as every run is: nothing else orders one step after another.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, VoxstrataError
from voxstrata.encoders.card import CACHED, ENCODER, LOG_MEL, ModelFolder
from voxstrata.encoders.frames import SAMPLES_PER_FRAME, WINDOW_FRAMES, encoder_frames
from voxstrata.engine.encoder import CALLERS, PROVIDERS, Encoder, Kept, cuda_options, device_advice, load_cuda
from voxstrata.engine.page_lock import host_array, page_lock
from voxstrata.engine.reductions import StoredRows, gathering, row_count
from voxstrata.engine.runtime import Runtime
from voxstrata.exporters.cuda_graph import cuda_encoder_graph, cuda_log_mel
from voxstrata.exporters.reductions import reduction_graph
from voxstrata.store.spec import StoreSpec

REDUCTIONS = "reductions"  # made here; the other graphs are files of the model
ENGINE_CACHE = "tensorrt"  # folder of built TensorRT engines inside the model folder


class CudaEncoder(Encoder):
    """Runs batches of windows through log-mel, encoder and the reductions of `spec` on one device.

    cuda_graphs: the encoder's launches are recorded once for each bucket and caller, and replayed.
    fused_attention: the encoder of operators of ONNX Runtime's own, attention in one; never on TensorRT.
    fixed_shapes: whether every bucket runs at the shape of its full batch: with CUDA graphs and on TensorRT.
    host_memory: "pinned", or "pageable" on a CPU and once the driver has refused to lock memory, which is slower but
    gives the same.

    Raises what `Encoder` raises, and InputError when the package onnx is missing.
    """

    def __init__(
        self,
        model: ModelFolder,
        spec: StoreSpec,
        runtime: Runtime,
        *,
        cuda_graphs: bool = False,
        fused_attention: bool = True,
    ) -> None:
        device = runtime.device
        # TensorRT does not know them, and fuses by itself
        self.fused_attention = fused_attention and device.kind != "tensorrt"
        self.fixed_shapes = cuda_graphs or device.kind == "tensorrt"
        self._cuda_graphs = cuda_graphs
        if device.kind != "cpu":
            load_cuda()
        super().__init__(model, spec, runtime)
        self.concurrency = CALLERS
        self._where = ("cpu", 0) if device.kind == "cpu" else ("cuda", device.index)
        # of states on the device; what bfloat16 computed is float32 by then, which numpy knows
        self._computed = np.dtype(np.float32 if device.bfloat16 else model.card.dtype)
        self.host_memory = "pageable" if device.kind == "cpu" else "pinned"
        self._uploaded: dict[int, dict[str, Any]] = {}  # the silence cache, by computed positions
        self._own = threading.local()
        self._callers = itertools.count()
        # One thread and not a lock: ONNX Runtime allows a session with CUDA graphs to be run from one thread only.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="device")
        # While ONNX Runtime records a CUDA graph, CUDA refuses what other threads ask of the device.
        self._recording: AbstractContextManager[Any] = threading.Lock() if cuda_graphs else nullcontext()
        self._session(REDUCTIONS)
        if device.kind == "cuda":  # what the device lacks shows now, not at the first batch
            self.stored_rows([np.zeros(SAMPLES_PER_FRAME, np.float32)], self.context.frames_computed(1))
            self._own = threading.local()  # the memory is for the threads that call

    def stored_rows(
        self, audio: Sequence[NDArray[np.float32]], frames: int, kept: Sequence[Kept] | None = None
    ) -> StoredRows:
        """Encode a batch of windows; see `Encoder`.

        At most `batch_size(frames)` windows, of at least one sample. Each calling thread has device memory of its own.
        """
        rows = self.windows_computed(len(audio), frames)
        try:
            with self._recording:
                if not hasattr(self._own, "buffers"):
                    self._own.buffers = _Buffers(self, next(self._callers))
                buffers = self._own.buffers
                self._upload(buffers, audio, frames, rows)
            self._computing.submit(self._encode, buffers, frames, rows).result()
            with self._recording:
                return self._fetch(buffers, [encoder_frames(len(x)) for x in audio], frames)
        except VoxstrataError:
            raise
        except Exception as e:  # onnxruntime's own exceptions share no base class
            raise InputError(
                f"{self.model.path}: onnxruntime failed on a batch of {rows} windows of {frames} positions ({e}); "
                f"{device_advice(self.device, e)}"
            ) from e

    def windows_computed(self, windows: int, frames: int) -> int:
        """How many windows are computed for a batch of so many."""
        return self.batch_size(frames) if self.fixed_shapes else windows

    def _upload(self, buffers: _Buffers, audio: Sequence[NDArray[np.float32]], frames: int, rows: int) -> None:
        """From samples to log-mel on the device."""
        begin = time.perf_counter()
        samples = min(frames + 2, WINDOW_FRAMES) * SAMPLES_PER_FRAME  # two frames more: see `CpuEncoder.log_mel`
        batch = buffers.audio[: rows * samples].reshape(rows, samples)
        for row, x in zip(batch, audio, strict=False):
            row[: len(x)] = x
            row[len(x) :] = 0
        batch[len(audio) :] = 0
        binding = self._session(LOG_MEL).io_binding()
        binding.bind_ortvalue_input("audio", self._on_device(batch))
        binding.bind_cpu_input("columns", np.array([2 * frames]))  # which Slice reads on the host
        shape = [rows, self.model.card.n_mels, 2 * frames]
        binding.bind_output("log_mel", *self._where, np.float32, shape, buffers.log_mel.data_ptr())
        self._count("copy_in", begin)
        begin = time.perf_counter()
        self._session(LOG_MEL).run_with_iobinding(binding)
        self._count("log_mel", begin)

    def _encode(self, buffers: _Buffers, frames: int, rows: int) -> None:
        """From log-mel to states, both on the device."""
        begin = time.perf_counter()
        name, card = self._graph(frames), self.model.card
        shape = [rows, card.n_mels, 2 * frames]
        first = (frames, rows) not in buffers.bindings
        if first:
            binding = self._session(name).io_binding()
            binding.bind_input("log_mel", *self._where, np.float32, shape, buffers.log_mel.data_ptr())
            if name == CACHED:
                for part, value in self._silence_on_device(frames).items():
                    binding.bind_ortvalue_input(part, value)
            wanted = [rows, frames, card.d_model]
            for output, states in buffers.states.items():
                binding.bind_output(output, *self._where, self._computed, wanted, states.data_ptr())
            buffers.bindings[frames, rows] = binding
        options = ort.RunOptions()
        if self._cuda_graphs:
            shapes = self.context.shapes()
            recorded = buffers.caller * len(shapes) + shapes.index(frames) + 1
            options.add_run_config_entry("gpu_graph_id", str(recorded))
        with self._recording if first else nullcontext():
            self._session(name).run_with_iobinding(buffers.bindings[frames, rows], options)
        self._count("encode", begin)

    def _on_device(self, array: NDArray[Any]) -> Any:
        """A copy that is complete. (On a CPU the array itself.)

        `bind_cpu_input` only queues one, on a stream that it then puts back among those that runs take: with several
        threads a run may start on another stream, before its input has arrived.
        """
        return ort.OrtValue.ortvalue_from_numpy(array, *self._where)

    def _silence_on_device(self, frames: int) -> dict[str, Any]:
        if frames not in self._uploaded:  # only the computing thread asks
            parts = self._silence.for_frames(frames).feeds()
            self._uploaded[frames] = {name: self._on_device(a) for name, a in parts.items()}
        return self._uploaded[frames]

    def _fetch(self, buffers: _Buffers, valid: list[int], frames: int) -> StoredRows:
        """From states on the device to stored rows on the host."""
        begin = time.perf_counter()
        d, batch = self.model.card.d_model, self.windows_computed(len(valid), frames)
        index, weights = gathering(valid, frames, self.spec)
        binding = self._session(REDUCTIONS).io_binding()
        binding.bind_ortvalue_input("index", self._on_device(index))
        if weights is not None:
            binding.bind_ortvalue_input("weights", self._on_device(weights))
        for output, states in buffers.states.items():
            binding.bind_input(output, *self._where, self._computed, [batch, frames, d], states.data_ptr())
            rows = buffers.rows[output]
            binding.bind_output(f"stored/{output}", "cpu", 0, self.spec.stored_dtype, [len(index), d], rows.ctypes.data)
            binding.bind_output(f"finite/{output}")
        self._session(REDUCTIONS).run_with_iobinding(binding)
        finite = [float(v.numpy()) == 0 for v in binding.get_outputs()[1::2]]
        ends = np.cumsum([row_count(n, self.spec) for n in valid])[:-1]
        # copied, because the next batch arrives in the same memory before these rows are placed
        stored = [v[: len(index) * d].reshape(-1, d).copy() for v in buffers.rows.values()]
        if self.spec.pool:  # from means to sums
            stored = [rows * np.array(valid, np.float64)[:, None] for rows in stored]
        self._count("copy_out", begin)
        return StoredRows([np.split(rows, ends) for rows in stored], finite)

    def _source(self, name: str) -> bytes:
        if name == REDUCTIONS:
            means, stored = bool(self.spec.pool) or self.spec.every > 1, self.spec.stored_dtype
            return reduction_graph(self.outputs, self._computed, self.model.card.d_model, stored, means=means)
        if name == LOG_MEL:
            return cuda_log_mel(self.model)
        how = {"fused": self.fused_attention, "bfloat16": self.device.bfloat16}
        return cuda_encoder_graph(self.model, self.outputs, cached=name == CACHED, **how)

    def _providers(self, name: str) -> list[Any]:
        cpu = super()._providers(name)
        if self.device.kind == "cpu":
            return cpu
        provider, options = cuda_options(self.device)
        cuda = [(provider, options), *cpu]
        if name in (CACHED, ENCODER):
            if self.device.kind == "tensorrt":
                return [(PROVIDERS["tensorrt"], self._tensorrt_options(name)), *cuda]
            if self._cuda_graphs:
                options["enable_cuda_graph"] = "1"
        return cuda

    def _tensorrt_options(self, graph: str) -> dict[str, Any]:
        """Engines cached beside the model, float16, and one explicit profile of one shape for each bucket."""
        card = self.model.card
        parts = []
        for frames in (m for m in self.context.shapes() if self._graph(m) == graph):
            parts.append(f"log_mel:{self.batch_size(frames)}x{card.n_mels}x{2 * frames}")
            if graph == CACHED:
                kv = f"{card.layers}x{card.heads}x{self._silence.keys(frames)}"
                dim = card.d_model // card.heads
                parts += [f"silence_key:{kv}x{dim}", f"silence_value:{kv}x{dim}", f"silence_bias:{kv}"]
        profiles = [f"trt_profile_{which}_shapes" for which in ("min", "opt", "max")]
        return dict.fromkeys(profiles, ",".join(parts)) | {
            "device_id": self.device.index,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(self.model.path / ENGINE_CACHE),
            "trt_fp16_enable": True,
            "trt_cuda_graph_enable": self._cuda_graphs,
        }


class _Buffers:
    """Memory of one calling thread, as large as the largest bucket needs: fixed addresses, whatever the bucket."""

    def __init__(self, encoder: CudaEncoder, caller: int) -> None:
        self.caller = caller
        self.bindings: dict[tuple[int, int], Any] = {}  # of the encoder, by computed positions and windows
        card, spec = encoder.model.card, encoder.spec
        shapes = [(encoder.batch_size(m), m) for m in encoder.context.shapes()]
        frames = max(rows * m for rows, m in shapes)
        samples = max(rows * min(m + 2, WINDOW_FRAMES) for rows, m in shapes) * SAMPLES_PER_FRAME
        stored = max(rows * row_count(m, spec) for rows, m in shapes)

        def device(size: int, dtype: Any) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type([size], dtype, *encoder._where)

        def host(size: int, dtype: Any) -> NDArray[Any]:
            array = host_array(size, dtype)
            if encoder.device.kind != "cpu" and not page_lock(array, encoder.device.index):
                encoder.host_memory = "pageable"
            return array

        self.audio = host(samples, np.float32)
        self.log_mel = device(2 * frames * card.n_mels, np.float32)
        self.states = {o: device(frames * card.d_model, encoder._computed) for o in encoder.outputs}
        self.rows = {o: host(stored * card.d_model, spec.stored_dtype) for o in encoder.outputs}
