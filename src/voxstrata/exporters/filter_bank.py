"""Filter banks as nodes of an ONNX graph: frames of samples, their mel energies, their logarithm, normalised.

They compute in float64, as transformers' Kaldi does. In float32 a quiet mel beside a loud one, or samples around a
large mean, would lose digits that the logarithm shows. It costs little beside any encoder.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank, window_function

from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.exporters.graph import GraphBuilder

FRAME, HOP, FFT = 400, 160, 512  # samples: 25 ms, every 10 ms, and the length of the transform
_PRE_EMPHASIS = 0.97
_KALDI_SCALE = 2.0**15  # Kaldi's samples are 16-bit integers
_KALDI_FLOOR = 1.192092955078125e-07  # of mel energies, in transformers' digits
ESPNET_FLOOR = 1e-10  # of mel energies
_NEMO_GUARD = 2.0**-24  # what NeMo adds to mel energies


def kaldi_mel_filters(n_mels: int) -> NDArray[np.float64]:
    """Kaldi's triangles from 20 Hz to 8 kHz, (257, n_mels)."""
    return np.asarray(
        mel_filter_bank(
            num_frequency_bins=FFT // 2 + 1,
            num_mel_filters=n_mels,
            min_frequency=20,
            max_frequency=SAMPLE_RATE // 2,
            sampling_rate=SAMPLE_RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        ),
        np.float64,
    )


def kaldi_filter_bank(b: GraphBuilder, audio: str, mel_filters: NDArray[np.float64], name: str) -> str:
    """Kaldi's log filter bank of `audio` float32 [batch, samples], called `name`: float32 [batch, frames, n_mels].

    mel_filters: (257, n_mels). Frames lie wholly inside the recording: floor((samples - 400) / 160) + 1, none where it
    is shorter than 400. From each its mean is taken, then from every sample 0.97 of the one before; then comes
    Povey's window. No dither. It is `SeamlessM4TFeatureExtractor`'s and `Speech2TextFeatureExtractor`'s before
    they normalise.
    """
    centred = np.eye(FRAME) - 1 / FRAME
    emphasised = centred - _PRE_EMPHASIS * np.roll(centred, 1, axis=0)  # the window hides the first sample
    window = np.asarray(window_function(FRAME, "povey", periodic=False), np.float64)
    transform = _dft(np.arange(FRAME)) @ (window[:, None] * emphasised) * _KALDI_SCALE
    frames = _framed(b, b.cast(audio, f"{name}/float64", np.float64), FRAME, name)
    mel = _mel_energies(b, frames, transform, mel_filters, name)
    floored = b.node("Max", [mel, _scalar(b, _KALDI_FLOOR)], f"{name}/floored")
    return b.cast(b.node("Log", [floored], f"{name}/log"), name, np.float32)


def nemo_filter_bank(b: GraphBuilder, audio: str, mel_filters: NDArray[np.float64], name: str) -> str:
    """NeMo's log filter bank of `audio` float32 [batch, samples], called `name`: float64 [batch, frames, n_mels].

    mel_filters: (257, n_mels). From every sample of the recording 0.97 of the one before is taken; frames are centred
    on every 160th, beyond its ends lies silence: floor(samples / 160). It is `ParakeetFeatureExtractor`'s before it
    normalises. In a mel without energy frames differ by less than float32 shows, and normalisation makes that large.
    """
    x = b.cast(audio, f"{name}/float64", np.float64)
    zero, one, last, end = (b.ints(f"int_{n}", n) for n in (0, 1, -1, 2**31))
    before = b.node("Slice", [x, zero, last, one], f"{name}/before")
    before = b.node("Mul", [before, _scalar(b, _PRE_EMPHASIS)], f"{name}/before/scaled")
    rest = b.node("Sub", [b.node("Slice", [x, one, end, one], f"{name}/rest"), before], f"{name}/rest/emphasised")
    x = b.node("Concat", [b.node("Slice", [x, zero, one, one], f"{name}/first"), rest], f"{name}/emphasised", axis=1)
    # one frame more would begin at the recording's end; the extractor masks it
    pads = b.ints("half_frames", 0, FFT // 2, 0, FFT // 2 - HOP)
    x = b.node("Pad", [x, pads], f"{name}/padded")
    inside = np.arange((FFT - FRAME) // 2, (FFT + FRAME) // 2)  # of the transform's 512 samples, the window's
    transform = np.zeros((2 * (FFT // 2 + 1), FFT))
    transform[:, inside] = _dft(inside) * np.hanning(FRAME)
    mel = _mel_energies(b, _framed(b, x, FFT, name), transform, mel_filters, name)
    return b.node("Log", [b.node("Add", [mel, _scalar(b, _NEMO_GUARD)], f"{name}/guarded")], name)


def espnet_filter_bank(b: GraphBuilder, audio: str, mel_filters: NDArray[Any], win_length: int, name: str) -> str:
    """ESPnet's log filter bank of `audio` float32 [batch, samples], called `name`: float32 [batch, frames, n_mels].

    mel_filters: (257, n_mels). Frames are centred on every 160th sample, and the recording is mirrored beyond its ends:
    floor(samples / 160) + 1. A Hann window of `win_length` samples lies in the middle of each. It is
    `espnet2.asr.frontend.default.DefaultFrontend`'s.
    """
    inside = np.arange(win_length) + (FFT - win_length) // 2
    transform = np.zeros((2 * (FFT // 2 + 1), FFT))
    transform[:, inside] = _dft(inside) * np.hanning(win_length + 1)[:-1]
    x = b.cast(audio, f"{name}/float64", np.float64)
    x = b.node("Pad", [x, b.ints("half_frames", 0, FFT // 2, 0, FFT // 2)], f"{name}/mirrored", mode="reflect")
    mel = _mel_energies(b, _framed(b, x, FFT, name), transform, mel_filters, name)
    mel = b.node("Max", [b.cast(mel, f"{name}/energies", np.float64), _scalar(b, ESPNET_FLOOR)], f"{name}/floored")
    return b.cast(b.node("Log", [mel], f"{name}/log"), name, np.float32)


def standardised(
    b: GraphBuilder,
    x: str,
    name: str,
    *,
    variance: bool = True,
    ddof: int = 0,
    inside: float = 0.0,
    outside: float = 0.0,
) -> str:
    """`x` [batch, frames, features] as float32, every feature with mean 0 and variance 1 over the recording.

    variance: whether it is divided by √(variance + inside) + outside, else the mean alone is taken away. ddof: the
    variance is the sum of squares divided by frames - ddof.
    """
    x = b.cast(x, f"{name}/float64", np.float64)
    time = b.ints("int_1", 1)
    x = b.node("Sub", [x, b.node("ReduceMean", [x, time], f"{name}/mean")], f"{name}/centred")
    if variance:
        frames = b.cast(b.node("Shape", [x], f"{name}/shape", start=1, end=2), f"{name}/frames", np.float64)
        free = b.node("Sub", [frames, _scalar(b, ddof)], f"{name}/free")
        scale = b.node("Div", [b.node("ReduceSumSquare", [x, time], f"{name}/squares"), free], f"{name}/variance")
        scale = b.node("Sqrt", [b.node("Add", [scale, _scalar(b, inside)], f"{name}/inside")], f"{name}/root")
        x = b.node("Div", [x, b.node("Add", [scale, _scalar(b, outside)], f"{name}/scale")], f"{name}/scaled")
    return b.cast(x, name, np.float32)


def _dft(samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """The transform at these of 512 samples: rows of cosines, then of sines, of 257 frequencies each."""
    angle = 2 * np.pi * np.outer(np.arange(FFT // 2 + 1), samples) / FFT
    return np.concatenate([np.cos(angle), -np.sin(angle)])


def _framed(b: GraphBuilder, x: str, size: int, name: str) -> str:
    """[batch, samples] to every whole frame of `size` samples at every 160th: [batch, frames, size]."""
    samples = b.node("Shape", [x], f"{name}/samples", start=1, end=2)
    end = b.node("Squeeze", [b.node("Sub", [samples, b.ints("before_last", size - 1)], f"{name}/ends")], f"{name}/end")
    zero, hop = (b.constant(f"scalar_{n}", np.array(n, np.int64)) for n in (0, HOP))
    starts = b.node("Range", [zero, end, hop], f"{name}/starts")
    starts = b.node("Unsqueeze", [starts, b.ints("int_1", 1)], f"{name}/starts/column")
    within = b.constant("within_frame", np.arange(size)[None])
    return b.node("Gather", [x, b.node("Add", [starts, within], f"{name}/places")], f"{name}/framed", axis=1)


def _mel_energies(
    b: GraphBuilder, frames: str, transform: NDArray[np.float64], mel_filters: NDArray[np.float64], name: str
) -> str:
    """Frames float64 to their energies in each filter, [batch, frames, n_mels]."""
    x = b.node("MatMul", [frames, b.constant("transform", np.ascontiguousarray(transform.T))], f"{name}/spectrum")
    x = b.node("Mul", [x, x], f"{name}/squares")
    power = b.node("Add", b.split(x, [f"{name}/re2", f"{name}/im2"], f"{name}/parts", axis=2), f"{name}/power")
    filters = b.constant("mel_filters", np.asarray(mel_filters, np.float64))
    return b.node("MatMul", [power, filters], f"{name}/mel")


def _scalar(b: GraphBuilder, value: float) -> str:
    return b.constant(f"float64_{value:g}", np.array(value, np.float64))
