"""An exported encoder in ONNX Runtime sessions, on a CPU; `device` has what differs on a GPU."""

from __future__ import annotations

import functools
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from voxstrata.audio.units import HOP_LENGTH, SAMPLES_PER_FRAME, WINDOW_FRAMES
from voxstrata.errors import InputError, UsageError, VoxstrataError
from voxstrata.model.card import CACHED, CPU, ENCODER, LOG_MEL, ModelFolder, encoder_graphs
from voxstrata.model.context import Context
from voxstrata.model.names import as_float16, depth, select_outputs
from voxstrata.model.silence import SilenceKeys

# Batch size × computed positions. On a CPU every thread has a batch of its own, and what does not outgrow its caches is
# fastest; a GPU wants to be filled.
DEFAULT_TOKENS = {"cpu": 500, "cuda": 16 * WINDOW_FRAMES, "tensorrt": 16 * WINDOW_FRAMES}
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True)
class Device:
    """Where the graphs run: kind "cpu", "cuda" or "tensorrt", and for the latter two which GPU."""

    kind: str = "cpu"
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """From "cpu", "cuda", "cuda:1", "tensorrt", … Raises UsageError for anything else."""
        m = re.fullmatch(r"(cpu|cuda|tensorrt)(?::(\d+))?", text)
        if m is None or (m[1] == "cpu" and m[2]):
            raise UsageError(f"unknown device {text!r}; choose cpu, cuda, cuda:1, tensorrt or tensorrt:1")
        return cls(m[1], int(m[2] or 0))


def available_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _share_arena() -> None:
    """One arena of the CPU for all sessions, which grows by what is asked for.

    onnxruntime's own doubles whenever it grows, once per session; with none, every batch waits for fresh pages.
    """
    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(cpu, ort.OrtArenaCfg({"arena_extend_strategy": 1}))  # kSameAsRequested


def session_options(threads: int) -> ort.SessionOptions:
    """Of all sessions, whatever the device: so many threads within an operator, memory from the shared arena."""
    _share_arena()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False  # one plan, and one block, for every shape that was met
    return options


class Encoder:
    """Runs batches of windows through an exported model.

    On a CPU a batch is computed on one thread, the caller's, and nothing is split: `concurrency` threads that run a
    batch each are faster than as many threads on one batch, and what a window gives cannot depend on their number.

    `half`: states are returned as float16, what does not fit as infinite; else in the model's dtype.

    Raises InputError when the graph is damaged or the device's provider cannot be loaded, UsageError for a GPU, which
    `DeviceEncoder` runs on, and there for an int8 model.
    """

    kinds: tuple[str, ...] = ("cpu",)  # of devices it runs on

    def __init__(
        self,
        model: ModelFolder,
        outputs: Sequence[str] | str = "all",
        context: Context | None = None,
        *,
        device: Device | None = None,
        threads: int | None = None,
        tokens: int | None = None,
        half: bool = False,
    ) -> None:
        self.model = model
        self.half = half
        self.outputs = select_outputs(outputs, model.card.outputs)
        self.context = context or Context()
        self.device = device or Device()
        self.threads = threads or available_threads()
        self.tokens = tokens or DEFAULT_TOKENS[self.device.kind]
        self.concurrency = self.threads  # how many threads should run batches at once
        if model.card.dtype == "int8" and self.device.kind != "cpu":
            raise UsageError(
                f"{model.path}: an int8 model runs on CPUs alone; export it as float16, or use --device cpu"
            )
        if self.device.kind not in self.kinds:
            raise UsageError(f"Encoder runs on CPUs; for {self.device.kind} use DeviceEncoder")
        self.seconds: dict[str, float] = defaultdict(float)  # by stage, over all threads: log_mel, encode
        self._lock = threading.Lock()
        self._keys_lock = threading.Lock()  # held for long when a bucket is met first: nobody else waits
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._keys: dict[int, SilenceKeys] = {}
        if self.context.mode == "bucketed":
            self._silence = model.silence()
            self._silence_keys(self.context.edges[0])  # an edge before the cache's begin fails here
        # What most windows need is loaded now, so that a broken file or driver shows before the work.
        self._session(LOG_MEL)
        self._session(self._graph(self.context.edges[0]))

    def _graph(self, frames: int) -> str:
        """The graph that computes `frames` positions."""
        if self.device.kind == "cpu" and CPU in encoder_graphs(self.model.card.dtype):
            return CPU
        # a full window has no cached keys, and GPUs get a graph without empty inputs for it
        return CACHED if self.context.mode == "bucketed" and frames < WINDOW_FRAMES else ENCODER

    def batch_size(self, frames: int) -> int:
        """How many windows of `frames` computed positions go into one batch."""
        # one scale for all that an int8 product multiplies must be the window's own
        return 1 if self.model.card.dtype == "int8" else max(1, self.tokens // frames)

    def run(self, audio: Sequence[NDArray[np.float32]], frames: int, *, keep: int | None = None) -> list[NDArray[Any]]:
        """Encode windows of at most 30 s at 16 kHz in a batch, computing `frames` positions of each.

        `keep`: how many positions from the first are wanted; by default all. Returns for each output an array
        [batch, keep, d_model]. What a window gives does not depend on the others. May be called from several threads
        at once.
        """
        return self.encode(self.log_mel(audio, frames), frames, keep=keep)

    def encode(self, log_mel: NDArray[np.float32], frames: int, *, keep: int | None = None) -> list[NDArray[Any]]:
        """The second half of `run`, from what `log_mel` returned."""
        begin = time.perf_counter()
        keep = keep or frames
        name = self._graph(frames)
        feeds: dict[str, NDArray[Any]] = {"log_mel": log_mel}
        if name != ENCODER:
            k = self._silence_keys(frames)
            feeds |= {"silence_key": k.key, "silence_value": k.value, "silence_bias": k.bias}
        names = list(self.outputs)
        if name == CPU:
            feeds["positions"] = self._positions(frames, keep)
            names = [as_float16(n) if self.half else n for n in names]
        states = self._compute(name, names, feeds)
        if self.half:
            with np.errstate(over="ignore"):
                states = [s.astype(np.float16, copy=False) for s in states]
        self._count("encode", begin)
        return [s[:, :keep] for s in states]

    def _silence_keys(self, frames: int) -> SilenceKeys:
        """The cached keys beside `frames` computed positions: none unless `bucketed`."""
        with self._keys_lock:
            if frames not in self._keys:
                if self.context.mode != "bucketed":
                    card = self.model.card
                    none = np.zeros((card.layers, card.heads, 0, card.d_model // card.heads), np.float32)
                    self._keys[frames] = SilenceKeys(none, none, none[..., 0])
                else:
                    if self._silence.group is None:  # a whole cache for every bucket would be too much to keep
                        self._keys.clear()
                    self._keys[frames] = self._silence.for_frames(frames)
            return self._keys[frames]

    def _positions(self, frames: int, keep: int) -> NDArray[np.int64]:
        """How many positions each block has to compute: all, but in the last that an output needs those kept, and after
        it as few as there can be."""
        needed = depth(self.outputs, self.model.card.layers)
        positions = np.ones(self.model.card.layers, np.int64)
        positions[:needed] = frames
        if self.model.card.dtype != "int8":  # whose scale comes from all that a product multiplies
            # ONNX Runtime multiplies a single row by other code, which rounds otherwise.
            positions[needed - 1 : needed] = min(max(keep, 2), frames)
        return positions

    def _count(self, stage: str, begin: float) -> None:
        with self._lock:
            self.seconds[stage] += time.perf_counter() - begin

    def log_mel(self, audio: Sequence[NDArray[np.float32]], frames: int) -> NDArray[np.float32]:
        """Log-mel [batch, n_mels, 2·frames] of windows followed by silence, as in the padded 30 s window."""
        begin = time.perf_counter()
        # Two frames more than asked for, so that the reflection at the array's end meets silence, not speech;
        # at 30 s it is the reflection that Hugging Face's extractor has there too.
        padded = min(frames + 2, WINDOW_FRAMES)
        batch = np.zeros((len(audio), padded * SAMPLES_PER_FRAME), np.float32)
        for row, samples in zip(batch, audio, strict=True):
            row[: len(samples)] = samples
        # One by one: onnxruntime computes most of a logarithm with vector code and what is left over with scalar
        # code, they round differently, and where they meet would depend on the batch.
        parts = [self._compute(LOG_MEL, ["log_mel"], {"audio": row[None]})[0] for row in batch]
        log_mel = np.concatenate(parts)
        columns: NDArray[np.float32] = log_mel[:, :, : frames * SAMPLES_PER_FRAME // HOP_LENGTH]
        columns = np.ascontiguousarray(columns)
        self._count("log_mel", begin)
        return columns

    def _compute(self, name: str, outputs: list[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            computed: list[NDArray[Any]] = self._session(name).run(outputs, feeds)
        except Exception as e:  # onnxruntime's own exceptions share no base class
            shapes = ", ".join(f"{k} {v.shape}" for k, v in feeds.items())
            raise InputError(
                f"{self.model.path / name}: onnxruntime failed on {shapes} ({e}); if memory ran out, choose a "
                "smaller token budget"
            ) from e
        return computed

    def _session(self, name: str) -> ort.InferenceSession:
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._make_session(name)
            return self._sessions[name]

    def _source(self, name: str) -> Path | bytes:
        """Where a graph comes from."""
        return self.model.path / name

    def _providers(self, name: str) -> list[Any]:
        """Execution providers for a graph, the one that is wanted first."""
        return [(PROVIDERS["cpu"], {})]

    def _make_session(self, name: str) -> ort.InferenceSession:
        options = session_options(1 if self.device.kind == "cpu" else self.threads)
        # where the weights of a graph lie that is given as bytes
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self.model.path))
        providers = self._providers(name)
        wanted = providers[0][0]
        if wanted not in ort.get_available_providers():
            raise InputError(f"this onnxruntime has no {wanted}; install onnxruntime-gpu, or use --device cpu")
        path = self.model.path / name
        try:
            # without fallback: onnxruntime would go on with the CPU when the device fails, and say so on stdout
            session = ort.InferenceSession(self._source(name), options, providers=providers, enable_fallback=0)
        except VoxstrataError:
            raise
        except Exception as e:  # onnxruntime's own exceptions share no base class
            raise InputError(f"{path}: onnxruntime cannot load it ({e}); export the model again") from e
        if wanted not in session.get_providers():
            raise InputError(
                f"{wanted} could not be started: its libraries or the driver are missing (onnxruntime's "
                "lines above name them); use --device cpu"
            )
        return session
