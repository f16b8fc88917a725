"""Hold the exported graphs against PyTorch, on every output, at lengths far from each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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

    Returns what the card says of it. That is for every output the largest relative L2 difference over all lengths, once
    without cached keys and once with them, and the largest absolute difference of the log-mel.
    Raises InputError naming the output and the length when a difference exceeds TOLERANCE.
    """
    v = _Validation(folder, checkpoint, outputs, dtype, norm_every)
    runs = [(v.without_cache, s) for s in LENGTHS] + [(v.with_cache, s) for s in _CACHED_LENGTHS]
    with torch.inference_mode():
        for done, (run, seconds) in enumerate(runs):
            reporter.progress(Progress("validating", done, len(runs), "lengths"))
            run(seconds)
    return {
        "measure": "largest relative L2 difference from float32 PyTorch",
        "lengths_seconds": list(LENGTHS),
        "cached_lengths_seconds": list(_CACHED_LENGTHS),
        "outputs": v.worst,
        "outputs_cached": v.worst_cached,
        "log_mel_max_abs": v.worst_mel,
    }


class _Validation:
    """The graphs in sessions, and the largest differences so far."""

    def __init__(
        self, folder: Path, checkpoint: Checkpoint, outputs: Sequence[str], dtype: str, norm_every: bool
    ) -> None:
        self.checkpoint, self.outputs, self.dtype, self.norm_every = checkpoint, outputs, dtype, norm_every
        self.log_mel = cpu_session(folder / LOG_MEL)
        self.graphs = {name: cpu_session(folder / name) for name in ENCODER_GRAPHS[dtype]}
        self.worst, self.worst_cached, self.worst_mel = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, 0.0), 0.0

    def without_cache(self, seconds: float) -> None:
        """Log-mel, and every graph with no cached key."""
        # two voices of different loudness, one long and one short, so that neighbours could leak
        voices = [voice(seconds, 120.0, 0.3), voice(seconds / 3, 210.0, 0.01)]
        features = torch.cat([self.checkpoint.features(v) for v in voices])
        self._compare_log_mel(voices, features, seconds)
        frames, s = round(seconds * FRAMES_PER_SECOND), self.checkpoint.shape
        log_mel = features[:, :, : 2 * frames]
        want = hidden_states(self.checkpoint.encoder, log_mel)
        none = np.zeros((s.layers, s.heads, 0, s.head_dim), np.float32)
        for name in self.graphs.keys() - {CACHED}:
            cache = (none, none) if name == CPU else None
            self._compare(self._run(name, log_mel, cache), want, self.worst, f"at {seconds} s ({name})")

    def with_cache(self, seconds: float) -> None:
        """Every graph that takes cached keys. Given those of a padded run, it must give that run's states.

        This must hold whatever else is in the batch. The convolution at the cut sees a zero instead of the next mel
        frame, so the padded run is given a zero there, too.
        """
        encoder, frames = self.checkpoint.encoder, round((seconds + 1) * FRAMES_PER_SECOND)
        features = torch.cat([self.checkpoint.features(voice(seconds, p, 0.2)) for p in (150.0, 90.0)])
        features[:, :, 2 * frames : 2 * frames + 1] = 0
        key, value = (t[:, :, frames:].numpy() for t in queries_keys_values(encoder, features[:1])[1:])
        want = hidden_states(encoder, features[:1])
        at = f"at {seconds} s with {WINDOW_FRAMES - frames} cached keys"
        for name in self.graphs.keys() - {ENCODER}:
            got = [a[:1] for a in self._run(name, features[:, :, : 2 * frames], (key, value))]
            self._compare(got, want, self.worst_cached, f"{at} ({name})")

    def _run(
        self, name: str, log_mel: torch.Tensor, cache: tuple[NDArray[Any], NDArray[Any]] | None
    ) -> list[NDArray[Any]]:
        feeds = {"log_mel": log_mel.numpy()}
        if cache is not None:
            feeds |= SilenceKeys(*cache, np.zeros(cache[0].shape[:3], np.float32)).feeds()
        if name == CPU:
            feeds["positions"] = np.full(self.checkpoint.shape.layers, log_mel.shape[2] // 2)
        return list(self.graphs[name].run(self.outputs, feeds))

    def _compare(
        self, got: Sequence[NDArray[Any]], want: dict[str, torch.Tensor], worst: dict[str, float], at: str
    ) -> None:
        for name, a in zip(self.outputs, got, strict=True):
            t = want[name]
            if self.norm_every and name != "final":
                t = self.checkpoint.encoder.layer_norm(t)
            b = t[:, : a.shape[1]].numpy().astype(np.float64)
            difference = float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))
            if not difference <= TOLERANCE[self.dtype]:  # so put, NaN fails too
                raise InputError(
                    f"validation failed: {name} differs from PyTorch by {difference:.2e} (relative L2) {at}, "
                    f"allowed is {TOLERANCE[self.dtype]:.0e} for {self.dtype}; no model was written"
                )
            worst[name] = max(worst[name], difference)

    def _compare_log_mel(self, voices: Sequence[NDArray[np.float32]], features: torch.Tensor, seconds: float) -> None:
        audio = np.zeros((len(voices), WINDOW_SAMPLES), np.float32)
        for row, v in zip(audio, voices, strict=True):
            row[: len(v)] = v
        (got,) = self.log_mel.run(None, {"audio": audio})
        difference = float(np.abs(got - features.numpy()).max())
        if not difference <= _LOG_MEL_TOLERANCE:
            raise InputError(
                f"validation failed: log-mel differs from WhisperFeatureExtractor by {difference:.1e} "
                f"at {seconds} s, allowed is {_LOG_MEL_TOLERANCE:.0e}; no model was written"
            )
        self.worst_mel = max(self.worst_mel, difference)


def cpu_session(path: Path) -> ort.InferenceSession:
    """A graph that runs on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def voice(seconds: float, pitch: float, amplitude: float) -> NDArray[np.float32]:
    """A gliding harmonic tone in bursts over a little noise, float32 samples at 16 kHz."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * pitch * (t + 0.1 * np.sin(2 * np.pi * 0.7 * t))
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    noise = np.random.default_rng(int(pitch)).standard_normal(len(t))
    burst = 0.6 + 0.4 * np.sin(2 * np.pi * 3.1 * t)
    return np.asarray(amplitude * (0.3 * burst * tone + 0.01 * noise), np.float32)
