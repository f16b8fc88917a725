"""Made-up recordings of a realistic mix of lengths, for measuring speed.

Speed depends on the lengths of recordings and hardly on what is said in them, so that made-up sound serves, and a user
needs no corpus to learn what a corpus will cost.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import soundfile
from numpy.typing import NDArray

from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine.runtime import available_threads

_LONGEST = 30 * SAMPLE_RATE  # samples of a recording


@dataclass(frozen=True)
class LengthMix:
    """Lengths of recordings: log-normal with mean `mean` and shape `sigma`, cut to [shortest, longest], in seconds."""

    name: str
    mean: float
    sigma: float
    shortest: float
    longest: float

    def lengths(self, clips: int, seed: int = 0) -> NDArray[np.float64]:
        """So many lengths in seconds, float64 (clips,): evenly spaced quantiles in random order, so that few clips
        have the mix's spread as well."""
        rng = np.random.default_rng(seed)
        normal = np.array([NormalDist().inv_cdf((i + 0.5) / clips) for i in range(clips)])
        lengths = np.exp(np.log(self.mean) - self.sigma**2 / 2 + self.sigma * normal)
        return rng.permutation(np.clip(lengths, self.shortest, self.longest))


# prompts: mean and spread of 628 telephone prompts; fleurs: read sentences; long: all but full windows.
MIXES = {
    "prompts": LengthMix("prompts", 4.6, 0.65, 1.0, 29.0),
    "fleurs": LengthMix("fleurs", 12.0, 0.4, 2.0, 30.0),
    "long": LengthMix("long", 27.5, 0.05, 25.0, 30.0),
}


def made_up(i: int, samples: int) -> NDArray[np.float32]:
    """Samples of a recording at 16 kHz, at most 30 s, unlike for every i: part of `_sound`."""
    begin = 7919 * i % (len(_sound()) - _LONGEST)
    return _sound()[begin : begin + samples]


@functools.cache
def _sound() -> NDArray[np.float32]:
    """Two minutes of a tone that sweeps from 100 Hz to 7 kHz every ten seconds, in noise that rises and falls."""
    t = np.arange(4 * _LONGEST) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * np.cumsum(100 * 70 ** (t % 10 / 10)) / SAMPLE_RATE)
    noise = np.sin(2 * np.pi * 1.5 * t) * np.random.default_rng(0).standard_normal(len(t))
    return (0.3 * tone + 0.1 * noise).astype(np.float32)


def write_made_up(folder: Path, lengths: NDArray[np.float64]) -> Corpus:
    """A corpus of such recordings as FLAC (16 bit); `lengths` in seconds, up to 30."""
    folder.mkdir(parents=True)

    def write(i: int, seconds: float) -> None:
        soundfile.write(folder / f"{i:05d}.flac", made_up(i, round(seconds * SAMPLE_RATE)), SAMPLE_RATE)

    _sound()  # once, and not on every thread
    with ThreadPoolExecutor(available_threads()) as pool:
        list(pool.map(write, range(len(lengths)), lengths.tolist()))
    return read_corpus(folder)
