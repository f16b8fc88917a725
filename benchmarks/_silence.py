"""What silence.py and silence_default.py share: clips with their padded states, and how far a cache is from them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxstrata.audio.decode import decode
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import ModelFolder, Silence
from voxstrata.encoders.frames import WINDOW_FRAMES, encoder_frames
from voxstrata.encoders.silence import BucketSilence
from voxstrata.engine import CpuEncoder

MEAN, WORST = 0.995, 0.98  # asked of `final`: mean cosine over all frames, and of the worst clip


@dataclass(frozen=True)
class WithCache(ModelFolder):
    """The exported model with another silence cache."""

    cache: Silence | BucketSilence

    def silence(self) -> Silence | BucketSilence:
        return self.cache


@dataclass(frozen=True)
class Clip:
    """A recording of at most 30 s: samples at 16 kHz, valid frames, log-mel level of its padding, padded states by
    output [frames, d]."""

    name: str
    language: str
    audio: NDArray[np.float32]
    frames: int
    level: float
    padded: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Near:
    """One clip with a cache: mean cosine of its frames to the padded run, and those under 0.99, by output; seconds of
    the encoder."""

    name: str
    language: str
    frames: int
    cosine: dict[str, float]
    low: dict[str, list[float]]
    seconds: float


@dataclass(frozen=True)
class Summary:
    """Several clips: mean cosine over all frames by output; the lowest clip's mean of `final`, and which it is."""

    cosine: dict[str, float]
    worst: float
    worst_id: str

    @classmethod
    def of(cls, clips: Sequence[Near]) -> Summary:
        frames = sum(c.frames for c in clips)
        worst = min(clips, key=lambda c: c.cosine["final"])
        mean = {o: sum(c.cosine[o] * c.frames for c in clips) / frames for o in worst.cosine}
        return cls(mean, worst.cosine["final"], worst.name)


@dataclass(frozen=True)
class Frames:
    """The frames of several clips, of one output: the lowest cosine, the one that 0.1 % do not exceed (at most 0.99),
    and the shares below 0.9 and 0.5."""

    worst: float
    lowest_0_1_percent: float
    below_09: float
    below_05: float

    @classmethod
    def of(cls, clips: Sequence[Near], output: str) -> Frames:
        frames = sum(c.frames for c in clips)
        low = np.sort([x for c in clips for x in c.low[output]] + [0.99])
        shares = [float((low < below).sum() / frames) for below in (0.9, 0.5)]
        return cls(float(low[0]), float(low[min(-(-frames // 1000), len(low)) - 1]), *shares)

    def cells(self) -> list[str]:
        """For a table."""
        return [f"{100 * self.below_09:.3f} %", f"{100 * self.below_05:.3f} %", f"{self.worst:.3f}"]


def shown(layers: int) -> tuple[str, ...]:
    """The outputs that are compared: half way, the last block, `final`."""
    return f"layer_{layers // 2:02d}", f"layer_{layers:02d}", "final"


def calibration(model: ModelFolder, source: str) -> list[tuple[str, NDArray[np.float32]]]:
    """The recordings that the model's cache was made from, whole."""
    corpus = read_corpus(source)
    ids = corpus.table["id"].to_pylist()
    return [(r["name"], decode(corpus.recording(ids.index(r["name"])))) for r in model.card.silence["recordings"]]


def padded_clip(encoder: CpuEncoder, corpus: Corpus, row: int) -> Clip:
    """Decode a recording and run it `padded`; recordings over 30 s are refused."""
    audio = decode(corpus.recording(row))
    if encoder_frames(len(audio)) > WINDOW_FRAMES:
        sys.exit(f"{corpus.recording(row).source.name}: over 30 s; measure on recordings that fit one window")
    frames = encoder_frames(len(audio))
    log_mel = encoder.log_mel([audio], WINDOW_FRAMES)
    states = encoder.encode(log_mel, WINDOW_FRAMES, keep=frames)
    padded = {o: s[0] for o, s in zip(encoder.outputs, states, strict=True)}
    table = corpus.table
    name, language = (str(table[c][row].as_py() or "unknown") for c in ("id", "language"))
    # behind the speech stands the log-mel's floor, which depends on the loudest cell of the recording
    return Clip(name, language, audio, frames, float(log_mel.min()), padded)


def near(encoder: CpuEncoder, clip: Clip) -> Near:
    """Encode a clip and compare."""
    frames = encoder.context.frames_computed(clip.frames)
    log_mel = encoder.log_mel([clip.audio], frames)
    begin = time.perf_counter()
    states = encoder.encode(log_mel, frames, keep=clip.frames)
    seconds = time.perf_counter() - begin
    cosine, low = {}, {}
    for output, (state, *_) in zip(encoder.outputs, states, strict=True):
        a, b = state.astype(np.float64), clip.padded[output]
        each = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        cosine[output], low[output] = float(each.mean()), [round(float(x), 4) for x in np.sort(each[each < 0.99])]
    return Near(clip.name, clip.language, clip.frames, cosine, low, seconds)


def measure(encoder: CpuEncoder, clips: Sequence[Clip]) -> list[Near]:
    """All clips, one at a time on each thread."""
    with ThreadPoolExecutor(encoder.concurrency) as pool:
        return list(pool.map(lambda clip: near(encoder, clip), clips))


def marks(mean: float, worst: float) -> str:
    """Whether the marks are met, in words."""
    return f"{'reached' if mean >= MEAN else 'MISSED'} / {'reached' if worst >= WORST else 'MISSED'}"


def folder_of(corpus: str) -> str:
    """A short name of a corpus."""
    path = Path(corpus)
    return path.name if path.is_dir() else path.parent.name
