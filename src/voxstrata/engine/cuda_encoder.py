"""The encoder on an accelerator: between the audio that goes in and the rows that are stored, all stays on the device.

Log-mel, encoder and reductions are three graphs that pass device memory on by IO binding; the silence cache is uploaded
once per bucket. CUDA graphs and TensorRT profiles need fixed shapes: with them every bucket has one, its full batch,
and what is missing is filled with silence and dropped again. Without them nothing is filled.

How copies overlap computing: each call has buffers of its own, and one thread runs all encoders. While it computes one
caller's batch, another caller fetches its last batch and uploads its next. What a batch needs that takes long to make
(a session, a bucket's silence) its caller makes before its turn. ONNX Runtime gives every run a CUDA stream of its own,
and the copy to the host is part of the run of the reductions, so it is on a stream other than the encoder's, and
Python's lock is not held meanwhile. Copies to the device are on CUDA's default stream, and done when the call returns,
as every run is: nothing else orders one step after another.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, VoxstrataError
from voxstrata.base.folders import make_writable
from voxstrata.encoders.card import CACHED, ENCODER, ENGINE_CACHE, LOG_MEL, ModelFolder
from voxstrata.encoders.frames import SAMPLES_PER_FRAME, WINDOW_FRAMES, encoder_frames
from voxstrata.engine.device_rows import REDUCTIONS, DeviceRows
from voxstrata.engine.encoder import CALLERS, PROVIDERS, Kept, cuda_options, device_advice, load_cuda
from voxstrata.engine.reductions import StoredRows, row_count
from voxstrata.engine.runtime import Runtime
from voxstrata.exporters.cuda_graph import cuda_encoder_graph, cuda_log_mel
from voxstrata.store.spec import StoreSpec

# What onnxruntime's TensorRT provider is linked to, and its own preloading leaves out.
TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")


def load_tensorrt() -> None:
    """Load TensorRT's libraries from where pip puts them. What is not there is looked for where the system has its
    libraries, when the provider is started, which then says what is missing."""
    found = find_spec("tensorrt_libs")
    for folder in (found.submodule_search_locations or []) if found else []:
        for name in TENSORRT_LIBRARIES:
            with suppress(OSError):
                ctypes.CDLL(str(Path(folder) / name), mode=ctypes.RTLD_GLOBAL)


class CudaEncoder(DeviceRows):
    """Runs batches of windows through log-mel, encoder and the reductions of `spec` on one device.

    cuda_graphs: the encoder's launches are recorded once for each bucket and caller, and replayed; not on TensorRT.
    fused_attention: the encoder of operators of ONNX Runtime's own, attention in one; never on TensorRT.
    fixed_shapes: whether every bucket runs at the shape of its full batch: with CUDA graphs and on TensorRT.

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
        # its provider keeps one recording for a session, and would replay it at another caller's addresses
        self._cuda_graphs = cuda_graphs and device.kind != "tensorrt"
        if device.kind != "cpu":
            load_cuda()
        if device.kind == "tensorrt":
            load_tensorrt()
        super().__init__(model, spec, runtime)
        self.concurrency = CALLERS
        self._uploaded: dict[int, dict[str, Any]] = {}  # the silence cache, by computed positions
        self._uploading = threading.Lock()
        self._idle: deque[_Buffers] = deque()  # of no call just now
        self._callers = itertools.count()
        # One thread and not a lock: ONNX Runtime allows a session with CUDA graphs to be run from one thread only.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="device")
        # While ONNX Runtime records a CUDA graph, CUDA refuses what other threads ask of the device.
        self._recording: AbstractContextManager[Any] = threading.Lock() if self._cuda_graphs else nullcontext()
        # what bfloat16 computed is float32 when it leaves the encoder's graph, which numpy knows
        computed = np.dtype(np.float32 if device.bfloat16 else model.card.dtype)
        self._begin_rows(computed, max(self.batch_size(m) * row_count(m, self.spec) for m in self.context.shapes()))
        if device.kind == "cuda":  # what the device lacks shows now, not at the first batch
            self.stored_rows([np.zeros(SAMPLES_PER_FRAME, np.float32)], self.context.frames_computed(1))

    def _first_graphs(self) -> tuple[str, ...]:
        return LOG_MEL, self._encoder_session(self.context.edges[0])

    def _encoder_session(self, frames: int) -> str:
        """The session that computes `frames` positions: its graph, on TensorRT with the bucket.

        TensorRT's provider stays on the first of several profiles, so each bucket has an engine of its own.
        """
        graph = self._graph(frames)
        return f"{graph}:{frames}" if self.device.kind == "tensorrt" else graph

    def stored_rows(
        self, audio: Sequence[NDArray[np.float32]], frames: int, kept: Sequence[Kept] | None = None
    ) -> StoredRows:
        """Encode a batch of windows; see `Encoder`.

        At most `batch_size(frames)` windows, of at least one sample. Calls at one time have device memory of their own.
        The rows lie in memory that other batches get once nobody holds these.
        """
        rows = self.windows_computed(len(audio), frames)
        try:
            self._prepare(frames)
            with self._recording:
                buffers = self._buffers()
                self._upload(buffers, audio, frames, rows)
            self._computing.submit(self._encode, buffers, frames, rows).result()
            with self._recording:
                found = self._fetch(buffers, [encoder_frames(len(x)) for x in audio], frames)
            self._idle.append(buffers)
            return found
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

    def _buffers(self) -> _Buffers:
        """Those that were used last: a caller who is alone needs no others."""
        try:
            return self._idle.pop()
        except IndexError:
            return _Buffers(self, next(self._callers))

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
        name, card = self._encoder_session(frames), self.model.card
        shape = [rows, card.n_mels, 2 * frames]
        first = (frames, rows) not in buffers.bindings
        if first:
            binding = self._session(name).io_binding()
            binding.bind_input("log_mel", *self._where, np.float32, shape, buffers.log_mel.data_ptr())
            for part, value in self._uploaded.get(frames, {}).items():
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

    def _prepare(self, frames: int) -> None:
        """Make what a bucket needs and takes long to make, once: on a caller's thread, while other batches are
        computed."""
        with self._recording:
            self._session(self._encoder_session(frames))
        if self._graph(frames) != CACHED or frames in self._uploaded:
            return
        with self._uploading:
            if frames not in self._uploaded:
                parts = self._silence.for_frames(frames).feeds()
                with self._recording:
                    self._uploaded[frames] = {name: self._on_device(a) for name, a in parts.items()}

    def _fetch(self, buffers: _Buffers, valid: Sequence[int], frames: int) -> StoredRows:
        """From states on the device to stored rows on the host."""
        shape = [self.windows_computed(len(valid), frames), frames, self.model.card.d_model]
        return self._stored(buffers.states, shape, [(0, n) for n in valid])

    def _source(self, name: str) -> Path | bytes:
        if name == REDUCTIONS:
            return super()._source(name)
        if name == LOG_MEL:
            return cuda_log_mel(self.model)
        how = {"fused": self.fused_attention, "bfloat16": self.device.bfloat16}
        return cuda_encoder_graph(self.model, self.outputs, cached=name.startswith(CACHED), **how)

    def _make_session(self, name: str) -> ort.InferenceSession:
        _, _, frames = name.partition(":")
        if frames:
            make_writable(self._engines(int(frames)))
        return super()._make_session(name)

    def _providers(self, name: str) -> list[Any]:
        cpu = super()._providers(name)
        if self.device.kind == "cpu":
            return cpu
        provider, options = cuda_options(self.device)
        cuda = [(provider, options), *cpu]
        graph, _, frames = name.partition(":")
        if graph in (CACHED, ENCODER):
            if frames:
                return [(PROVIDERS["tensorrt"], self._tensorrt_options(int(frames))), *cuda]
            if self._cuda_graphs:
                options["enable_cuda_graph"] = "1"
        return cuda

    def _engines(self, frames: int) -> Path:
        """Where a bucket's engine lies: that of another number of windows is another one."""
        return self.model.path / ENGINE_CACHE / f"{self.batch_size(frames)}x{frames}"

    def _tensorrt_options(self, frames: int) -> dict[str, Any]:
        """One explicit profile of the one shape that a bucket runs at, float16, the engine cached beside the model."""
        card = self.model.card
        parts = [f"log_mel:{self.batch_size(frames)}x{card.n_mels}x{2 * frames}"]
        if self._graph(frames) == CACHED:
            kv = f"{card.layers}x{card.heads}x{self._silence.keys(frames)}"
            dim = card.d_model // card.heads
            parts += [f"silence_key:{kv}x{dim}", f"silence_value:{kv}x{dim}", f"silence_bias:{kv}"]
        profiles = [f"trt_profile_{which}_shapes" for which in ("min", "opt", "max")]
        return dict.fromkeys(profiles, ",".join(parts)) | {
            "device_id": self.device.index,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(self._engines(frames)),
            "trt_fp16_enable": True,
        }


class _Buffers:
    """Memory of one call at a time, as large as the largest bucket needs: fixed addresses, whatever the bucket."""

    def __init__(self, encoder: CudaEncoder, caller: int) -> None:
        self.caller = caller
        self.bindings: dict[tuple[int, int], Any] = {}  # of the encoder, by computed positions and windows
        card = encoder.model.card
        shapes = [(encoder.batch_size(m), m) for m in encoder.context.shapes()]
        frames = max(rows * m for rows, m in shapes)
        samples = max(rows * min(m + 2, WINDOW_FRAMES) for rows, m in shapes) * SAMPLES_PER_FRAME

        def device(size: int, dtype: Any) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type([size], dtype, *encoder._where)

        self.audio = encoder._page_locked(4 * samples).view(np.float32)
        self.log_mel = device(2 * frames * card.n_mels, np.float32)
        self.states = {o: device(frames * card.d_model, encoder._computed) for o in encoder.outputs}
