"""The encoder on a CPU."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, UsageError
from voxstrata.encoders.card import CPU, ENCODER, ENCODER_GRAPHS, LOG_MEL, ModelFolder
from voxstrata.encoders.frames import HOP_LENGTH, SAMPLES_PER_FRAME, WINDOW_FRAMES, encoder_frames
from voxstrata.encoders.outputs import as_float16, depth
from voxstrata.encoders.silence import SilenceKeys
from voxstrata.engine.encoder import Encoder, Kept
from voxstrata.engine.reductions import StoredRows, reduce_states
from voxstrata.engine.runtime import Runtime
from voxstrata.store.spec import StoreSpec


class CpuEncoder(Encoder):
    """Runs batches of windows through an exported model on a CPU.

    A batch is computed on one thread, the caller's, and nothing is split: `concurrency` threads that run a
    batch each are faster than as many threads on one batch, and what a window gives cannot depend on their number.

    Beside `stored_rows` there are the states themselves, for whoever measures them: `run`, in two steps `log_mel` and
    `encode`.

    Raises what `Encoder` raises, and UsageError for a GPU.
    """

    def __init__(
        self,
        model: ModelFolder,
        spec: StoreSpec | None = None,
        runtime: Runtime | None = None,
        sessions: dict[str, ort.InferenceSession] | None = None,
    ) -> None:
        runtime = runtime or Runtime()
        if runtime.device.kind != "cpu":
            raise UsageError(f"CpuEncoder runs on CPUs; for {runtime.device.kind} use CudaEncoder")
        self._keys_lock = threading.Lock()  # held for long when a bucket is met first: nobody else waits
        self._keys: dict[int, SilenceKeys] = {}
        super().__init__(model, spec or StoreSpec(), runtime, sessions)
        # what is averaged first is rounded afterwards
        self._half = self.spec.stored_dtype == np.float16 and self.spec.every == 1

    def _graph(self, frames: int) -> str:
        """The CPU's own, which serves every context; float16 models have none."""
        return CPU if CPU in ENCODER_GRAPHS[self.model.card.dtype] else super()._graph(frames)

    def stored_rows(
        self, audio: Sequence[NDArray[np.float32]], frames: int, kept: Sequence[Kept] | None = None
    ) -> StoredRows:
        """Encode a batch of windows; see `Encoder`. What a window gives does not depend on the others."""
        valid = [encoder_frames(len(x)) for x in audio]
        states = self.encode(self.log_mel(audio, frames), frames, keep=max(valid), half=self._half)
        begin = time.perf_counter()
        rows = reduce_states(states, valid, self.spec)
        self._count("reduce", begin)
        return rows

    def run(self, audio: Sequence[NDArray[np.float32]], frames: int, *, keep: int | None = None) -> list[NDArray[Any]]:
        """The states of a batch of windows, computing `frames` positions of each.

        `keep`: how many positions from the first are wanted; by default all. Returns for each output an array
        [batch, keep, d_model] in the model's dtype. May be called from several threads at once.
        """
        return self.encode(self.log_mel(audio, frames), frames, keep=keep)

    def encode(
        self, log_mel: NDArray[np.float32], frames: int, *, keep: int | None = None, half: bool = False
    ) -> list[NDArray[Any]]:
        """The second half of `run`, from what `log_mel` returned; `half`: as float16, what does not fit as infinite."""
        begin = time.perf_counter()
        keep = keep or frames
        name = self._graph(frames)
        feeds: dict[str, NDArray[Any]] = {"log_mel": log_mel}
        if name != ENCODER:
            feeds |= self._silence_keys(frames).feeds()
        names = list(self.outputs)
        if name == CPU:
            feeds["positions"] = self._positions(frames, keep)
            names = [as_float16(n) if half else n for n in names]
        states = self._compute(name, names, feeds)
        if half:
            with np.errstate(over="ignore"):
                states = [s.astype(np.float16, copy=False) for s in states]
        self._count("encode", begin)
        return [s[:, :keep] for s in states]

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
        log_mel = np.concatenate([self._compute(LOG_MEL, ["log_mel"], {"audio": row[None]})[0] for row in batch])
        columns = np.ascontiguousarray(log_mel[:, :, : frames * SAMPLES_PER_FRAME // HOP_LENGTH], np.float32)
        self._count("log_mel", begin)
        return columns

    def _silence_keys(self, frames: int) -> SilenceKeys:
        """The cached keys beside `frames` computed positions: none unless `bucketed`."""
        with self._keys_lock:
            if frames not in self._keys:
                if self.context.mode != "bucketed":
                    card = self.model.card
                    none = np.zeros((card.layers, card.heads, 0, card.d_model // card.heads), np.float32)
                    self._keys[frames] = SilenceKeys(none, none, none[..., 0])
                else:
                    if not self._silence.condensed:  # a whole cache for every bucket would be too much to keep
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

    def _compute(self, name: str, outputs: list[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            return list(self._session(name).run(outputs, feeds))
        except Exception as e:  # onnxruntime's own exceptions share no base class
            shapes = ", ".join(f"{k} {v.shape}" for k, v in feeds.items())
            raise InputError(
                f"{self.model.path / name}: onnxruntime failed on {shapes} ({e}); if memory ran out, choose a "
                "smaller token budget"
            ) from e
