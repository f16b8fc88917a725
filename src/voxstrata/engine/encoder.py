"""What an encoder is to the engine: samples go in, and the rows that are stored come out."""

import contextlib
import functools
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, UsageError
from voxstrata.encoders.card import CACHED, ENCODER, LOG_MEL, ModelFolder
from voxstrata.encoders.device import Device
from voxstrata.encoders.frames import WINDOW_FRAMES
from voxstrata.engine.reductions import StoredRows
from voxstrata.engine.runtime import Runtime
from voxstrata.store.spec import StoreSpec

Kept = tuple[int, int]  # of the frames of a window: how many are not kept before those that are, and how many these are
CALLERS = 2  # threads that call at once on a GPU: one batch is computed while another is fetched and the next uploaded
_WARNINGS, _ERRORS = 2, 3  # onnxruntime's severities; the first is its default
_OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate",
    "alloc_failed",
    "bad_alloc",
    "bad allocation",
)  # in onnxruntime's words
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


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


def load_cuda() -> None:
    """Load CUDA's libraries from where pip put them; what is missing is named on stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        ort.preload_dlls()


def cuda_options(device: Device) -> tuple[str, dict[str, Any]]:
    """The CUDA provider, with settings that keep what the export was validated to."""
    options: dict[str, Any] = {
        "device_id": device.index,
        "use_tf32": 0,  # TF32 keeps 10 bits of a float32 product
        "cudnn_conv_algo_search": "HEURISTIC",  # the default times all algorithms anew for every shape
        "arena_extend_strategy": "kSameAsRequested",
        # Attention by the flash kernel (1), and where it cannot be had, as in float32, by the memory-efficient one (2).
        # Left to itself the provider takes cuDNN's from compute capability 9.0 on, which makes a plan for each shape.
        "sdpa_kernel": 3,
        "enable_skip_layer_norm_strict_mode": 1,  # sums in float32; otherwise mean and variance are in float16, too
    }
    return PROVIDERS["cuda"], options


def device_advice(device: Device, error: Exception, *, loading: bool = False) -> str:
    """What mends what onnxruntime raised on a device. loading: a graph and its weights, not at a batch."""
    if device.kind == "cpu" or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
        if loading:
            return f"the model does not fit in what memory of {device} is free; nvidia-smi shows what else runs there"
        return "if memory ran out, choose a smaller token budget (--tokens)"
    if device.kind == "tensorrt" and "TensorRT" in str(error):
        return "TensorRT's provider needs libnvinfer.so.10, from pip or among the system's; or use --device cuda"
    return (
        "nvidia-smi -L lists the GPUs that there are; pip install 'voxstrata[gpu]' brings the libraries of CUDA that "
        "onnxruntime-gpu needs; or use --device cpu"
    )


class Encoder(ABC):
    """An exported model in sessions on one device, and what is kept of its states.

    spec: what is kept, resolved for this model and device. seconds: busy ones by stage, over all threads.
    concurrency: how many threads should call `stored_rows` at once.
    threads: for decoding. tokens: batch size × computed positions.
    sessions: by graph, to be shared by encoders whose graphs are the same.

    Raises InputError when a graph is damaged or the device's provider cannot be loaded, UsageError for unknown outputs
    and for an int8 model on a GPU.
    """

    def __init__(
        self,
        model: ModelFolder,
        spec: StoreSpec,
        runtime: Runtime,
        sessions: dict[str, ort.InferenceSession] | None = None,
    ) -> None:
        self.model = model
        self.spec = spec.for_model(model.card, runtime.device)
        self.outputs, self.context = self.spec.outputs, self.spec.context
        self.device = runtime.device
        self.threads, self.tokens = runtime.thread_count, runtime.batch_tokens
        self.concurrency = self.threads
        if model.card.dtype == "int8" and self.device.kind != "cpu":
            raise UsageError(
                f"{model.path}: an int8 model runs on CPUs alone; export it as float16, or use --device cpu"
            )
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._sessions: dict[str, ort.InferenceSession] = {} if sessions is None else sessions
        if self.context.mode == "bucketed":
            self._silence = model.silence()
            self._silence.check(self.context.edges[0])
        # What most windows need is loaded now, so that a broken file or driver shows before the work.
        for name in self._first_graphs():
            self._session(name)

    def _first_graphs(self) -> tuple[str, ...]:
        """Those that most windows need."""
        return LOG_MEL, self._graph(self.context.edges[0])

    @abstractmethod
    def stored_rows(
        self, audio: Sequence[NDArray[np.float32]], frames: int, kept: Sequence[Kept] | None = None
    ) -> StoredRows:
        """Encode a batch of windows at 16 kHz, at most as long as the family's, computing `frames` positions of each.

        kept: which frames of each; by default those that its samples fill. Whisper's windows do not overlap, and all of
        these are kept.

        May be called from several threads at once. Raises InputError when memory runs out or a graph fails otherwise.
        """

    def _graph(self, frames: int) -> str:
        """The graph that computes `frames` positions, of those every model but an int8 one has."""
        # a full window has no cached keys, and there is a graph without empty inputs for it
        return CACHED if self.context.mode == "bucketed" and frames < WINDOW_FRAMES else ENCODER

    def batch_size(self, frames: int) -> int:
        """How many windows of `frames` computed positions go into one batch."""
        # one scale for all that an int8 product multiplies must be the window's own
        return 1 if self.model.card.dtype == "int8" else max(1, self.tokens // frames)

    def _count(self, stage: str, begin: float) -> None:
        with self._lock:
            self.seconds[stage] += time.perf_counter() - begin

    def _session(self, name: str) -> ort.InferenceSession:
        if (session := self._sessions.get(name)) is None:
            with self._making:  # for long: who has a session waits neither for it nor to count
                if (session := self._sessions.get(name)) is None:
                    session = self._sessions[name] = self._make_session(name)
        return session

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
        source = self._source(name)
        try:
            if self.device.kind != "cpu":
                ort.set_default_logger_severity(_ERRORS)  # it warns each time that the provider is no plugin
            # without fallback: onnxruntime would go on with the CPU when the device fails, and say so on stdout
            session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
        except Exception as e:  # onnxruntime's own exceptions share no base class
            if self.device.kind != "cpu" and self._is_sound(name, options):
                said = str(e).strip()
                advice = device_advice(self.device, e, loading=True)
                raise InputError(f"{self.device} could not be started ({said}); {advice}") from e
            path = self.model.path / name
            raise InputError(f"{path}: onnxruntime cannot load it ({e}); export the model again") from e
        finally:
            if self.device.kind != "cpu":
                ort.set_default_logger_severity(_WARNINGS)
        if wanted not in session.get_providers():
            raise InputError(
                f"{wanted} could not be started: its libraries or the driver are missing (onnxruntime's lines above "
                "name them); pip install 'voxstrata[gpu]' brings CUDA's; or use --device cpu"
            )
        return session

    def _is_sound(self, name: str, options: ort.SessionOptions) -> bool:
        """Whether what a graph is made of loads on a CPU, so that the device is at fault that could not load the graph.

        Tried is the model's own file, which names the same weights: a CPU could not load a graph in bfloat16.
        """
        path = self.model.path / name.partition(":")[0]
        try:
            if path.exists():  # the reductions are of no file
                ort.InferenceSession(path, options, providers=[PROVIDERS["cpu"]])
        except Exception:  # onnxruntime's own exceptions share no base class; its first error is what the user is told
            return False
        return True
