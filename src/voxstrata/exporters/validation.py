"""Hold the exported graphs against PyTorch, on every output, at lengths far from each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedRandom
from os import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.base.progress import Progress, Reporter
from voxstrata.encoders.card import CACHED, CPU, ENCODER, ENCODER_GRAPHS, LOG_MEL
from voxstrata.encoders.frames import FRAMES_PER_SECOND, SAMPLE_RATE, WINDOW_FRAMES, WINDOW_SAMPLES
from voxstrata.encoders.silence import SilenceKeys
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.pytorch import hidden_states, queries_keys_values

LENGTHS = (0.1, 1.0, 7.0, 19.6, 30.0)  # seconds
_CACHED_LENGTHS = (0.5, 7.0, 19.6, 29.0)  # seconds, followed by one of padding; the last has no cached keys
# Relative L2 to float32 PyTorch. Float16 keeps 11 bits, and its errors add up over the layers. What 8 bits cost depends
# on the checkpoint, and `voxstrata drift` measures it. Here only broken graphs are to be found.
TOLERANCE = {"float32": 2e-4, "float16": 1e-2, "int8": 0.5}
_LOG_MEL_TOLERANCE = 1e-4  # of the extractor's scale, on which speech spans about 2


def validate(
    folder: Path, checkpoint: Checkpoint, outputs: Sequence[str], dtype: str, norm_every: bool, reporter: Reporter
) -> dict[str, Any]:
    """Compare graphs and PyTorch on made-up voiced sounds of LENGTHS seconds.

    First PyTorch computes them all, whose states go into a file without a name in `folder`. Then each graph in turn is
    held against it. So no two copies of the weights need be in memory, and **the checkpoint has no weights
    afterwards**.

    Returns what the card says of it. That is for every output the largest relative L2 difference over all lengths, once
    without cached keys and once with them, and the largest absolute difference of the log-mel.
    Raises InputError naming the output and the length when a difference exceeds TOLERANCE.
    """
    names = ENCODER_GRAPHS[dtype]
    wanted = [(cached, seconds) for cached, of in ((False, LENGTHS), (True, _CACHED_LENGTHS)) for seconds in of]
    total = len(wanted) + sum(_suits(name, cached) for name in names for cached, _ in wanted)
    steps = (Progress("validating", done, total, "runs") for done in range(total))
    worst = {False: dict.fromkeys(outputs, 0.0), True: dict.fromkeys(outputs, 0.0)}
    with TemporaryFile(dir=folder) as file, torch.inference_mode():
        reference = _Reference(file, checkpoint, outputs, norm_every, cpu_session(folder / LOG_MEL))
        cases = []
        for cached, seconds in wanted:
            reporter.progress(next(steps))
            cases.append(reference.with_cache(seconds) if cached else reference.without_cache(seconds))
        checkpoint.encoder.to("meta")
        for name in names:
            session = cpu_session(folder / name, fold=False)
            for case in cases:
                if _suits(name, case.cached):
                    reporter.progress(next(steps))
                    _compare(name, session, case, worst[case.cached], dtype)
            del session
    return {
        "measure": "largest relative L2 difference from float32 PyTorch",
        "lengths_seconds": list(LENGTHS),
        "cached_lengths_seconds": list(_CACHED_LENGTHS),
        "outputs": worst[False],
        "outputs_cached": worst[True],
        "log_mel_max_abs": reference.worst_mel,
    }


def _suits(graph: str, cached: bool) -> bool:
    """Whether a graph takes cached keys, or can do without any."""
    return graph != (ENCODER if cached else CACHED)


class StoredArray:
    """An array at the end of a file, read again when it is asked for."""

    def __init__(self, file: BufferedRandom, array: NDArray[Any]) -> None:
        self._file, self._at, self._shape, self._dtype = file, file.seek(0, SEEK_END), array.shape, array.dtype
        for part in array:  # a copy of all of it would be large
            file.write(np.ascontiguousarray(part).data)

    def read(self) -> NDArray[Any]:
        found = np.empty(self._shape, self._dtype)
        self._file.seek(self._at)
        self._file.readinto(found.reshape(-1).view(np.uint8).data)
        return found


@dataclass(frozen=True)
class _Case:
    """What graphs are given, and the states that they must give.

    log_mel: [batch, n_mels, 2 · frames]. keys: the cached key and value of a padded run; None without. want: of the
    batch's first members, by output, [members, frames, d_model]. at: which case it is, for messages.
    """

    log_mel: StoredArray
    keys: tuple[StoredArray, StoredArray] | None
    want: dict[str, StoredArray]
    at: str

    @property
    def cached(self) -> bool:
        return self.keys is not None


class _Reference:
    """PyTorch's states, and the largest difference of the log-mel so far."""

    def __init__(
        self,
        file: BufferedRandom,
        checkpoint: Checkpoint,
        outputs: Sequence[str],
        norm_every: bool,
        log_mel: ort.InferenceSession,
    ) -> None:
        self._file, self._checkpoint, self._outputs, self._norm_every = file, checkpoint, outputs, norm_every
        self._log_mel, self.worst_mel = log_mel, 0.0

    def without_cache(self, seconds: float) -> _Case:
        """Of two recordings, for graphs with no cached key."""
        # two voices of different loudness, one long and one short, so that neighbours could leak
        voices = [voice(seconds, 120.0, 0.3), voice(seconds / 3, 210.0, 0.01)]
        features = torch.cat([self._checkpoint.features(v) for v in voices])
        self._compare_log_mel(voices, features, seconds)
        log_mel = features[:, :, : 2 * round(seconds * FRAMES_PER_SECOND)]
        return _Case(self._put(log_mel), None, self._states(log_mel, log_mel), f"at {seconds} s")

    def with_cache(self, seconds: float) -> _Case:
        """For every graph that takes cached keys. Given those of a padded run, it must give that run's states.

        This must hold whatever else is in the batch. The convolution at the cut sees a zero instead of the next mel
        frame, so the padded run is given a zero there, too.
        """
        frames = round((seconds + 1) * FRAMES_PER_SECOND)
        features = torch.cat([self._checkpoint.features(voice(seconds, p, 0.2)) for p in (150.0, 90.0)])
        features[:, :, 2 * frames : 2 * frames + 1] = 0
        key, value = queries_keys_values(self._checkpoint.encoder, features[:1])[1:]  # queries are not held
        keys = self._put(key[:, :, frames:]), self._put(value[:, :, frames:])
        del key, value
        log_mel = features[:, :, : 2 * frames]
        at = f"at {seconds} s with {WINDOW_FRAMES - frames} cached keys"
        return _Case(self._put(log_mel), keys, self._states(features[:1], log_mel), at)

    def _put(self, tensor: torch.Tensor) -> StoredArray:
        return StoredArray(self._file, tensor.numpy())

    def _states(self, run: torch.Tensor, log_mel: torch.Tensor) -> dict[str, StoredArray]:
        """Of a run the states at the positions of `log_mel`."""
        encoder, found = self._checkpoint.encoder, {}
        states = hidden_states(encoder, run)
        for name in self._outputs:
            state = states[name]
            if self._norm_every and name != "final":
                state = encoder.layer_norm(state)
            found[name] = self._put(state[:, : log_mel.shape[2] // 2])
        return found

    def _compare_log_mel(self, voices: Sequence[NDArray[np.float32]], features: torch.Tensor, seconds: float) -> None:
        audio = np.zeros((len(voices), WINDOW_SAMPLES), np.float32)
        for row, v in zip(audio, voices, strict=True):
            row[: len(v)] = v
        (got,) = self._log_mel.run(None, {"audio": audio})
        difference = float(np.abs(got - features.numpy()).max())
        if not difference <= _LOG_MEL_TOLERANCE:
            raise InputError(
                f"validation failed: log-mel differs from WhisperFeatureExtractor by {difference:.1e} "
                f"at {seconds} s, allowed is {_LOG_MEL_TOLERANCE:.0e}; no model was written"
            )
        self.worst_mel = max(self.worst_mel, difference)


def _compare(name: str, session: ort.InferenceSession, case: _Case, worst: dict[str, float], dtype: str) -> None:
    """Run a graph, and hold one output after the other against PyTorch's."""
    log_mel = case.log_mel.read()
    feeds = {"log_mel": log_mel}
    layers, heads, _, dim = next((i.shape for i in session.get_inputs() if i.name == "silence_key"), [0] * 4)
    if case.keys:
        key, value = (part.read() for part in case.keys)
        feeds |= SilenceKeys(key, value, np.zeros(key.shape[:3], np.float32)).feeds()
    elif name == CPU:
        none = np.zeros((layers, heads, 0, dim), np.float32)
        feeds |= SilenceKeys(none, none, none[..., 0]).feeds()
    if name == CPU:
        feeds["positions"] = np.full(layers, log_mel.shape[2] // 2)
    states = dict(zip(case.want, session.run(list(case.want), feeds), strict=True))
    del feeds
    for output, stored in case.want.items():
        b = stored.read().astype(np.float64)
        a = states.pop(output)[: len(b)].astype(np.float64)
        difference = float(np.linalg.norm(a - b) / np.linalg.norm(b))
        if not difference <= TOLERANCE[dtype]:  # so put, NaN fails too
            raise InputError(
                f"validation failed: {output} differs from PyTorch by {difference:.2e} (relative L2) {case.at} "
                f"({name}), allowed is {TOLERANCE[dtype]:.0e} for {dtype}; no model was written"
            )
        worst[output] = max(worst[output], difference)


def cpu_session(path: Path, *, fold: bool = True) -> ort.InferenceSession:
    """A graph that runs on the CPU, in no more memory than it needs at any time.

    fold: what is made of constants alone, such as padded weights, is made once, when the session is, which takes twice
    the memory of the weights; else in every run, where it is needed, which takes longer and may round otherwise.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # which grows by doubling, and keeps the most that was ever needed
    options.enable_mem_pattern = False
    on_cpu = {"providers": ["CPUExecutionProvider"]}
    if fold:
        return ort.InferenceSession(path, options, **on_cpu)
    # a graph in memory does not know where its weights lie
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return ort.InferenceSession(_constants_first(path), options, disabled_optimizers=["ConstantFolding"], **on_cpu)


def _constants_first(path: Path) -> bytes:
    """The same graph, nodes that take constants alone before all others.

    ONNX Runtime (1.31) runs such a node just before the one that takes it, where it stands before that one's other
    inputs, and else all of them before anything else. Of padded weights that would be a second copy.
    """
    model = onnx.load(str(path), load_external_data=False)
    constant = {tensor.name for tensor in model.graph.initializer}
    first: list[onnx.NodeProto] = []
    others: list[onnx.NodeProto] = []
    for node in model.graph.node:
        alone = constant.issuperset(name for name in node.input if name)
        constant.update(node.output if alone else ())
        (first if alone else others).append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*first, *others)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def voice(seconds: float, pitch: float, amplitude: float) -> NDArray[np.float32]:
    """A gliding harmonic tone in bursts over a little noise, float32 samples at 16 kHz."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * pitch * (t + 0.1 * np.sin(2 * np.pi * 0.7 * t))
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    noise = np.random.default_rng(int(pitch)).standard_normal(len(t))
    burst = 0.6 + 0.4 * np.sin(2 * np.pi * 3.1 * t)
    return np.asarray(amplitude * (0.3 * burst * tone + 0.01 * noise), np.float32)
