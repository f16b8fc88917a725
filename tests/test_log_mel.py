"""The log-mel graph is WhisperFeatureExtractor, per utterance, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import sound

pytest.importorskip("torch")
from voxstrata.encoders.card import LOG_MEL
from voxstrata.encoders.frames import WINDOW_SAMPLES
from voxstrata.exporters.log_mel import log_mel_graph

Array = np.ndarray[Any, np.dtype[Any]]


def session(graph: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def recordings() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    t = np.arange(WINDOW_SAMPLES) / 16_000
    return {
        "voice": sound(3.0, 1),
        "digital silence": np.zeros(20_000, np.float32),
        "one sample": np.array([0.5], np.float32),
        "161 samples": sound(161 / 16_000, 2),
        "exactly 30 s": sound(30.0, 3),
        "clipping": np.clip(20 * np.sin(2 * np.pi * 200 * t[:80_000]), -1, 1).astype(np.float32),
        "beyond full scale": 30 * sound(2.0, 4),
        "very quiet": (1e-5 * rng.standard_normal(80_000)).astype(np.float32),
        "white noise": (0.1 * rng.standard_normal(80_000)).astype(np.float32),
        "steady tone": np.sin(2 * np.pi * 440 * t[:80_000]).astype(np.float32),
        "constant": np.full(16_000, 0.5, np.float32),
        "sound to the very end": np.sin(2 * np.pi * 300 * t).astype(np.float32),
    }


def padded(audio: Array) -> Array:
    row = np.zeros(WINDOW_SAMPLES, np.float32)
    row[: len(audio)] = audio
    return row


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_is_whispers_per_utterance_whatever_else_is_in_the_batch(n_mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    run = session(log_mel_graph(extractor.mel_filters))
    sounds = recordings()
    (together,) = run.run(None, {"audio": np.stack([padded(a) for a in sounds.values()])})
    assert together.shape == (len(sounds), n_mels, 3000)
    for (name, audio), row in zip(sounds.items(), together, strict=True):
        alone = extractor(audio, sampling_rate=16_000, return_tensors="np")["input_features"][0]
        assert np.abs(row - alone).max() < 1e-4, name
        (by_itself,) = run.run(None, {"audio": padded(audio)[None]})
        np.testing.assert_array_equal(by_itself[0], row, err_msg=name)


def test_log_mel_is_the_definition_in_float64() -> None:
    from transformers import WhisperFeatureExtractor

    filters = WhisperFeatureExtractor().mel_filters
    run = session(log_mel_graph(filters))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    for name, audio in recordings().items():
        x = np.pad(padded(audio).astype(np.float64), 200, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(x, 400)[::160][:3000]
        power = np.abs(np.fft.rfft(frames * window)) ** 2
        want = np.log10(np.maximum(power @ filters, 1e-10)).T
        want = (np.maximum(want, want.max() - 8) + 4) / 4
        (got,) = run.run(None, {"audio": padded(audio)[None]})
        assert np.abs(got[0] - want).max() < 1e-4, name


def test_a_short_array_gives_the_columns_of_the_full_window(tiny_model: Path) -> None:
    """The engine computes the log-mel of a bucket alone; two frames of silence at its end make it the window's."""
    run = session(tiny_model / LOG_MEL)
    audio = sound(1.0, 6)
    (full,) = run.run(None, {"audio": padded(audio)[None]})
    (short,) = run.run(None, {"audio": padded(audio)[None, : 102 * 320]})
    np.testing.assert_array_equal(short[:, :, :200], full[:, :, :200])
