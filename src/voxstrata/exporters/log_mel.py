"""Log-mel as an ONNX graph: what WhisperFeatureExtractor computes, per utterance, on any device."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from voxstrata.encoders.frames import HOP_LENGTH, N_FFT
from voxstrata.exporters.standard_graph import GraphBuilder


def log_mel_graph(mel_filters: NDArray[Any]) -> onnx.ModelProto:
    """Build the graph.

    `mel_filters`: (201, n_mels), as `WhisperFeatureExtractor.mel_filters`.

    `audio` float32 [batch, samples], a multiple of 160 samples at 16 kHz, zero after each utterance's end,
    becomes `log_mel` float32 [batch, n_mels, samples / 160]. The floor 8 below the maximum (log10 power) is
    taken per utterance, never over the batch. At 480 000 samples it is Hugging Face's extractor exactly, with
    reflected edges.
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
    for name, value in (
        ("pads", [N_FFT // 2, N_FFT // 2]),
        ("one", [1]),
        ("two", [2]),
        ("zero", [0]),
        ("last", [-1]),
    ):
        b.constant(name, np.array(value, np.int64))
    for name, scalar in (("floor", 1e-10), ("range", 8.0), ("four", 4.0), ("ln10", np.log(10.0))):
        b.constant(name, np.array(scalar, np.float32))
    x = b.node("Pad", ["audio", "pads", "", "one"], "reflected", mode="reflect")
    x = b.node("Unsqueeze", [x, "one"], "channel")
    x = b.node("Conv", [x, "dft"], "spectrum", kernel_shape=[N_FFT], strides=[HOP_LENGTH])
    x = b.node("Slice", [x, "zero", "last", "two"], "spectrum/frames")  # the extractor drops the last frame
    x = b.node("Mul", [x, x], "squares")
    b.nodes.append(helper.make_node("Split", [x], ["re2", "im2"], name="parts", axis=1, num_outputs=2))
    x = b.node("MatMul", ["mel_filters", b.node("Add", ["re2", "im2"], "power")], "mel")
    x = b.node("Div", [b.node("Log", [b.node("Max", [x, "floor"], "mel/floored")], "ln"), "ln10"], "log10")
    b.constant("mel_and_time", np.array([1, 2], np.int64))
    peak = b.node("ReduceMax", [x, "mel_and_time"], "peak", keepdims=1)
    x = b.node("Max", [x, b.node("Sub", [peak, "range"], "lowest")], "clamped")
    b.node("Div", [b.node("Add", [x, "four"], "shifted"), "four"], "log_mel")
    return b.model(
        "whisper_log_mel",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", "samples"])],
        [helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", n_mels, "time"])],
    )
