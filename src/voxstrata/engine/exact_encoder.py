"""The encoder of families whose recordings are encoded by themselves, or followed by silence; nothing is masked."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, UsageError, VoxstrataError
from voxstrata.encoders.card import ENCODER, FEATURES, ModelFolder
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.encoders.onnx_file import cut_onnx
from voxstrata.engine.device_rows import REDUCTIONS, DeviceRows
from voxstrata.engine.encoder import CALLERS, Kept, cuda_options, device_advice, load_cuda
from voxstrata.engine.reductions import StoredRows, reduce_states, row_count
from voxstrata.engine.runtime import Runtime
from voxstrata.store.spec import StoreSpec


class ExactEncoder(DeviceRows):
    """Runs windows of one exact length, or padded to one, through an exported model of a family other than Whisper.

    On a CPU a batch is one window, computed on the caller's thread: what it gives cannot depend on others. On a GPU
    windows of one length share a batch; their states are reduced there, and what is stored comes to the host.

    Raises what `Encoder` raises, and UsageError for TensorRT and for bfloat16.
    """

    _on_host = True  # whether states come to the host, and are reduced there

    def __init__(
        self,
        model: ModelFolder,
        spec: StoreSpec | None = None,
        runtime: Runtime | None = None,
        sessions: dict[str, ort.InferenceSession] | None = None,
    ) -> None:
        runtime = runtime or Runtime()
        if runtime.device.kind == "tensorrt" or runtime.device.bfloat16:
            name = model.card.family.name
            raise UsageError(f"{model.path}: {name} runs on cpu and cuda; TensorRT and bfloat16 are for Whisper")
        if runtime.device.kind == "cuda":
            load_cuda()
        super().__init__(model, spec or StoreSpec(), runtime, sessions)
        if runtime.device.kind == "cuda":
            self.concurrency = CALLERS
            self._reduce_on_device()
            # what the device lacks shows now, not at the first batch
            self.stored_rows([np.zeros(SAMPLE_RATE, np.float32)], model.card.family.frames(SAMPLE_RATE))

    def _reduce_on_device(self) -> None:
        """From now on states stay on the device."""
        family, spec = self.model.card.family, self.spec
        frames = family.frames(SAMPLE_RATE if spec.pool else family.window)  # of a batch of many rows
        self._begin_rows(np.dtype(np.float32), super().batch_size(frames) * row_count(frames, spec))
        self._on_host = False

    def _first_graphs(self) -> tuple[str, ...]:
        return FEATURES, self._deepest

    @property
    def _deepest(self) -> str:
        """The encoder's graph up to the deepest output that is kept, by the name of the session: the file's own, or
        with that output's.

        Shallower outputs stay, whether they are kept or not, so that a state does not depend on which others are.
        """
        deepest = max(self.outputs, key=self.model.card.outputs.index)
        return ENCODER if deepest == self.model.card.outputs[-1] else f"{ENCODER}:{deepest}"

    def _make_session(self, name: str) -> ort.InferenceSession:
        # each holds weights of its own: where encoders share sessions, the last two depths stay
        for other in [other for other in self._sessions if other.startswith(ENCODER)][:-1]:
            self._sessions.pop(other, None)
        return super()._make_session(name)

    def _source(self, name: str) -> Path | bytes:
        if name == REDUCTIONS:
            return super()._source(name)
        file, _, deepest = name.partition(":")
        path, outputs = self.model.path / file, self.model.card.outputs
        return cut_onnx(path, outputs[: outputs.index(deepest) + 1]) if deepest else path

    def _providers(self, name: str) -> list[Any]:
        cpu = super()._providers(name)
        return cpu if self.device.kind == "cpu" else [cuda_options(self.device), *cpu]

    def batch_size(self, frames: int) -> int:
        return 1 if self.device.kind == "cpu" else super().batch_size(frames)

    def stored_rows(
        self, audio: Sequence[NDArray[np.float32]], frames: int, kept: Sequence[Kept] | None = None
    ) -> StoredRows:
        """Encode a batch of windows of one exact length, or of any where they are padded; see `Encoder`."""
        kept = kept or [(0, self.model.card.family.frames(len(x))) for x in audio]
        if not self._on_host:
            return self._from_device(audio, kept)
        states = self.run(audio)
        begin = time.perf_counter()
        rows = reduce_states(
            [[state[skip : skip + n] for state, (skip, n) in zip(batch, kept, strict=True)] for batch in states],
            [n for _, n in kept],
            self.spec,
        )
        self._count("reduce", begin)
        return rows

    def run(self, audio: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The states of windows of one exact length: for each output an array [batch, frames, d_model].

        In the context `padded` each is followed by zeros up to the family's window, whose frames are all returned.
        May be called from several threads at once.
        """
        audio = self._windows(audio)
        features, wanted = self._features(audio)
        begin = time.perf_counter()
        states = self._compute(self._deepest, list(self.outputs), {"features": features})
        self._count("encode", begin)
        self._check({output: state.shape for output, state in zip(self.outputs, states, strict=True)}, wanted, audio)
        return states

    def _from_device(self, audio: Sequence[NDArray[np.float32]], kept: Sequence[Kept]) -> StoredRows:
        """What is stored of the windows, by way of states that stay on the device."""
        audio = self._windows(audio)
        features, wanted = self._features(audio)
        with self._told(self._deepest, {"features": features}):
            begin = time.perf_counter()
            session = self._session(self._deepest)
            binding = session.io_binding()
            binding.bind_ortvalue_input("features", self._on_device(features))
            for output in self.outputs:
                binding.bind_output(output, *self._where)
            session.run_with_iobinding(binding)
            states = dict(zip(self.outputs, binding.get_outputs(), strict=True))
            self._count("encode", begin)
            self._check({output: tuple(state.shape()) for output, state in states.items()}, wanted, audio)
            return self._stored(states, wanted, kept)

    def _windows(self, audio: Sequence[NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
        """As they are encoded."""
        if self.context.mode != "padded":
            return audio
        return [np.pad(x, (0, self.model.card.family.window - len(x))) for x in audio]

    def _features(self, audio: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
        """What the encoder sees of the windows, and the shape of each output that its family declares."""
        begin, family = time.perf_counter(), self.model.card.family
        # one by one, as the CPU's log-mel is: what is left over of a row may be rounded by other code
        found = [self._compute(FEATURES, ["features"], {"audio": np.asarray(x, np.float32)[None]})[0] for x in audio]
        self._count("features", begin)
        wanted = (len(audio), family.frames(len(audio[0])), self.model.card.d_model)
        return found[0] if len(found) == 1 else np.concatenate(found), wanted

    def _check(
        self, shapes: Mapping[str, tuple[int, ...]], wanted: tuple[int, ...], audio: Sequence[NDArray[np.float32]]
    ) -> None:
        for output, shape in shapes.items():
            if shape != wanted:
                raise InputError(
                    f"{self.model.path / ENCODER}: {output} is {shape} for {len(audio[0])} samples, its family "
                    f"declares {wanted}; export the model again"
                )

    def _compute(self, name: str, outputs: list[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with self._told(name, feeds):
            return list(self._session(name).run(outputs, feeds))

    @contextmanager
    def _told(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> Iterator[None]:
        """What fails within is told with the graph, the shapes of its inputs, and what may mend it."""
        try:
            yield
        except VoxstrataError:
            raise
        except Exception as e:  # onnxruntime's own exceptions share no base class
            shapes = ", ".join(f"{k} {v.shape}" for k, v in feeds.items())
            advice = "if memory ran out, use fewer threads, or cut long recordings"
            if self.device.kind != "cpu":
                advice = device_advice(self.device, e)
            raise InputError(
                f"{self.model.path / name.partition(':')[0]}: onnxruntime failed on {shapes} ({e}); {advice}"
            ) from e
