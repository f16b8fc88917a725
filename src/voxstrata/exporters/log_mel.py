"""Log-mel as an ONNX graph: what WhisperFeatureExtractor computes, per utterance, on any device."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.encoders.frames import HOP_LENGTH, N_FFT, SAMPLES_PER_FRAME, WINDOW_SAMPLES
from voxstrata.exporters.graph import GraphBuilder


def log_mel_graph(mel_filters: NDArray[Any], *, cuda: bool = False) -> bytes:
    """Build the graph, serialized.

    mel_filters: (201, n_mels), as `WhisperFeatureExtractor.mel_filters`.
    cuda: as a GPU runs it, with an input more, `columns` int64 [1]: how many of the first mel frames it returns.

    `audio` float32 [batch, samples], a multiple of 160 samples at 16 kHz, zero after each utterance's end, becomes
    `log_mel` float32 [batch, n_mels, samples / 160]. Values are limited to 8 below the utterance's own maximum (log10
    of power), whatever else is in the batch. At 480 000 samples the result is that of Hugging Face's extractor, which
    mirrors the sound at its ends.
    """
    b = GraphBuilder()
    n_mels = mel_filters.shape[1]
    x = _log_mel(b, mel_filters, "audio", "log_mel/all" if cuda else "log_mel", cuda)
    inputs = [b.tensor("audio", np.float32, ["batch", "samples"])]
    if cuda:
        inputs.append(b.tensor("columns", np.int64, [1]))
        b.node("Slice", [x, "zero", "columns", "two"], "log_mel")
    return b.model("whisper_log_mel", inputs, [b.tensor("log_mel", np.float32, ["batch", n_mels, "time"])])


def unpadded_log_mel_graph(mel_filters: NDArray[Any]) -> bytes:
    """The same for recordings of one length, with no more silence after them than their last encoder frame sees.

    `audio` float32 [batch, samples], from 1 to 480 000, becomes `features` float32 [batch, n_mels, 2 · frames + 1],
    frames = ceil(samples / 320). The values are those of the recording padded with zeros to 30 s; the column that
    would lie after the 30 s is 0.
    """
    b = GraphBuilder()
    frame, one = b.ints("frame", SAMPLES_PER_FRAME), b.ints("one", 1)
    samples = b.node("Shape", ["audio"], "samples", start=1, end=2)
    frames = b.node("Add", [samples, b.ints("frame_less_1", SAMPLES_PER_FRAME - 1)], "frames/reached")
    frames = b.node("Div", [frames, frame], "frames")
    columns = b.node("Mul", [frames, b.ints("frame_columns", 2)], "columns/frames")
    columns = b.node("Add", [columns, one], "columns")
    # no column of these is as near to the end as the window reaches, but at the end of the 30 s
    padded = b.node("Mul", [columns, b.ints("hop", HOP_LENGTH)], "padded/columns")
    padded = b.node("Add", [padded, b.ints("reach", 2 * HOP_LENGTH)], "padded/reach")
    padded = b.node("Min", [padded, b.ints("window", WINDOW_SAMPLES)], "padded")
    pads = b.node("Concat", [b.ints("no_pads", 0, 0, 0), b.node("Sub", [padded, samples], "pad")], "pads/all", axis=0)
    x = _log_mel(b, mel_filters, b.node("Pad", ["audio", pads], "audio/padded"), "log_mel")
    x = b.node("Pad", [x, b.ints("one_column", 0, 0, 0, 0, 0, 1)], "log_mel/and_zero")
    b.node("Slice", [x, "zero", columns, "two"], "features")
    inputs = [b.tensor("audio", np.float32, ["batch", "samples"])]
    outputs = [b.tensor("features", np.float32, ["batch", mel_filters.shape[1], "columns"])]
    return b.model("whisper_log_mel_unpadded", inputs, outputs)


def _log_mel(b: GraphBuilder, mel_filters: NDArray[Any], audio: str, name: str, cuda: bool = False) -> str:
    """The nodes from padded audio to log-mel, called `name`."""
    # A Hann-windowed DFT: rows 0…200 are cosines, 201…401 sines.
    n = np.arange(N_FFT)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / N_FFT)
    angle = 2 * np.pi * np.outer(np.arange(N_FFT // 2 + 1), n) / N_FFT
    dft = np.concatenate([np.cos(angle), -np.sin(angle)]) * window
    b.constant("dft", np.ascontiguousarray(dft.T if cuda else dft[:, None], np.float32))
    b.constant("mel_filters", np.ascontiguousarray(mel_filters if cuda else mel_filters.T, np.float32))
    # on a GPU to whole hops, without the frame that is dropped
    b.ints("pads", N_FFT // 2, 2 * HOP_LENGTH - N_FFT // 2 if cuda else N_FFT // 2)
    for constant, number in (("one", 1), ("two", 2), ("zero", 0), ("last", -1)):
        b.ints(constant, number)
    for constant, scalar in (("floor", 1e-10), ("range", 8.0), ("four", 4.0), ("ln10", np.log(10.0))):
        b.constant(constant, np.array(scalar, np.float32))
    x = b.node("Pad", [audio, "pads", "", "one"], "reflected", mode="reflect")
    x = (_by_product if cuda else _by_convolution)(b, x)
    x = b.node("Div", [b.node("Log", [b.node("Max", [x, "floor"], "mel/floored")], "ln"), "ln10"], "log10")
    peak = b.node("ReduceMax", [x, b.ints("mel_and_time", 1, 2)], "peak", keepdims=1)
    x = b.node("Max", [x, b.node("Sub", [peak, "range"], "lowest")], "clamped")
    return b.node("Div", [b.node("Add", [x, "four"], "shifted"), "four"], name)


def _by_convolution(b: GraphBuilder, audio: str) -> str:
    """The power by mel bin [batch, n_mels, time], its DFT as a strided convolution."""
    x = b.node("Unsqueeze", [audio, "one"], "channel")
    x = b.node("Conv", [x, "dft"], "spectrum", kernel_shape=[N_FFT], strides=[HOP_LENGTH])
    x = b.node("Slice", [x, "zero", "last", "two"], "spectrum/frames")  # the extractor drops the last frame
    return b.node("MatMul", ["mel_filters", _power(b, x, axis=1)], "mel")


def _by_product(b: GraphBuilder, audio: str) -> str:
    """The same by a product, which needs none of the plans that cuDNN makes for each shape.

    A window is 2.5 hops long: two whole ones, and the first half of the next.
    """
    hops = b.node("Reshape", [audio, b.ints("by_hop", 0, -1, HOP_LENGTH)], "hops")
    half = [b.ints("third", 2, 0), b.ints("half", 2**31, N_FFT - 2 * HOP_LENGTH), b.ints("hop_and_sample", 1, 2)]
    windows = [
        b.node("Slice", [hops, "zero", b.ints("before_last", -2), "one"], "hops/first"),
        b.node("Slice", [hops, "one", "last", "one"], "hops/second"),
        b.node("Slice", [hops, *half], "hops/third"),
    ]
    x = b.node("MatMul", [b.node("Concat", windows, "windows", axis=2), "dft"], "spectrum")
    x = b.node("MatMul", [_power(b, x, axis=2), "mel_filters"], "mel/frames")
    return b.node("Transpose", [x], "mel", perm=[0, 2, 1])


def _power(b: GraphBuilder, x: str, axis: int) -> str:
    """Of cosines and, after them along `axis`, sines."""
    x = b.node("Mul", [x, x], "squares")
    return b.node("Add", b.split(x, ["re2", "im2"], "parts", axis=axis), "power")
