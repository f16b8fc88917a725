"""Log-mel as an ONNX graph: what WhisperFeatureExtractor computes, per utterance, on any device."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.encoders.frames import HOP_LENGTH, N_FFT
from voxstrata.exporters.graph import GraphBuilder


def log_mel_graph(mel_filters: NDArray[Any], *, columns: bool = False) -> bytes:
    """Build the graph, serialized.

    mel_filters: (201, n_mels), as `WhisperFeatureExtractor.mel_filters`.
    columns: the graph has an input of that name more, int64 [1]: how many of the first mel frames it returns.

    `audio` float32 [batch, samples], a multiple of 160 samples at 16 kHz, zero after each utterance's end, becomes
    `log_mel` float32 [batch, n_mels, samples / 160]. Values are limited to 8 below the utterance's own maximum (log10
    of power), whatever else is in the batch. At 480 000 samples the result is that of Hugging Face's extractor, which
    mirrors the sound at its ends.
    """
    b = GraphBuilder()
    n_mels = mel_filters.shape[1]
    # A Hann-windowed DFT as one strided convolution: rows 0…200 are cosines, 201…401 sines.
    n = np.arange(N_FFT)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / N_FFT)
    angle = 2 * np.pi * np.outer(np.arange(N_FFT // 2 + 1), n) / N_FFT
    dft = np.concatenate([np.cos(angle), -np.sin(angle)]) * window
    b.constant("dft", dft[:, None].astype(np.float32))
    b.constant("mel_filters", np.ascontiguousarray(mel_filters.T, np.float32))
    b.ints("pads", N_FFT // 2, N_FFT // 2)
    for name, number in (("one", 1), ("two", 2), ("zero", 0), ("last", -1)):
        b.ints(name, number)
    for name, scalar in (("floor", 1e-10), ("range", 8.0), ("four", 4.0), ("ln10", np.log(10.0))):
        b.constant(name, np.array(scalar, np.float32))
    x = b.node("Pad", ["audio", "pads", "", "one"], "reflected", mode="reflect")
    x = b.node("Unsqueeze", [x, "one"], "channel")
    x = b.node("Conv", [x, "dft"], "spectrum", kernel_shape=[N_FFT], strides=[HOP_LENGTH])
    x = b.node("Slice", [x, "zero", "last", "two"], "spectrum/frames")  # the extractor drops the last frame
    x = b.node("Mul", [x, x], "squares")
    power = b.node("Add", b.split(x, ["re2", "im2"], "parts", axis=1), "power")
    x = b.node("MatMul", ["mel_filters", power], "mel")
    x = b.node("Div", [b.node("Log", [b.node("Max", [x, "floor"], "mel/floored")], "ln"), "ln10"], "log10")
    peak = b.node("ReduceMax", [x, b.ints("mel_and_time", 1, 2)], "peak", keepdims=1)
    x = b.node("Max", [x, b.node("Sub", [peak, "range"], "lowest")], "clamped")
    x = b.node("Div", [b.node("Add", [x, "four"], "shifted"), "four"], "log_mel/all" if columns else "log_mel")
    inputs = [b.tensor("audio", np.float32, ["batch", "samples"])]
    if columns:
        inputs.append(b.tensor("columns", np.int64, [1]))
        b.node("Slice", [x, "zero", "columns", "two"], "log_mel")
    return b.model("whisper_log_mel", inputs, [b.tensor("log_mel", np.float32, ["batch", n_mels, "time"])])
