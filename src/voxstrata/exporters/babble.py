"""Sound that is made up, in the place of speech, for a silence cache that needs no recordings."""

import numpy as np
from numpy.typing import NDArray

from voxstrata.encoders.frames import SAMPLE_RATE

_STEP = SAMPLE_RATE // 100  # samples between the points at which the sound is described
_HARMONICS = 40
_RESONANCES = ((300, 800, 80, 1.0), (900, 2300, 110, 0.5), (2300, 3000, 150, 0.25))  # Hz from, to; width; gain


def babble(seed: int, samples: int) -> NDArray[np.float32]:
    """Sound with rhythm and spectrum of speech, another for every seed: vowels of a voice that rises and falls, hiss
    between them, pauses, noise far below. Float32 at 16 kHz.

    A vowel is the harmonics of a voice, each as loud as three resonances let it be: a formant synthesizer in parallel
    (Klatt 1980), of amplitudes alone.
    """
    rng = np.random.default_rng(seed)
    steps = samples // _STEP + 2

    def wandering(low: float, high: float, seconds: float) -> NDArray[np.float64]:
        """Between random values that are so far apart, at every step."""
        points = rng.uniform(low, high, max(2, int(steps * _STEP / SAMPLE_RATE / seconds) + 2))
        return np.interp(np.arange(steps), np.linspace(0, steps - 1, len(points)), points)

    def each_sample(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(np.arange(samples), np.arange(steps) * _STEP, values)

    pitch = wandering(90, 220, 0.4)
    resonances = [(wandering(low, high, 0.12), width, gain) for low, high, width, gain in _RESONANCES]
    syllables = np.sin(2 * np.pi * np.cumsum(wandering(3, 6, 0.5)) * _STEP / SAMPLE_RATE) + 0.6
    loud = syllables.clip(min=0) * (wandering(-0.4, 1, 0.8) > 0)
    voiced = wandering(-0.3, 1, 0.1) > 0
    phase = 2 * np.pi * np.cumsum(each_sample(pitch)) / SAMPLE_RATE
    sound = 0.15 * each_sample(loud * ~voiced) * np.diff(rng.standard_normal(samples), prepend=0)
    for n in range(1, _HARMONICS + 1):
        heard = sum(gain / (1 + ((n * pitch - centre) / width) ** 2) for centre, width, gain in resonances)
        sound += each_sample(heard * (n * pitch < 7600) * loud * voiced) * np.sin(n * phase)
    sound *= 0.4 / max(float(np.abs(sound).max()), 1e-6)
    return (sound + 10 ** -rng.uniform(2.5, 4) * rng.standard_normal(samples)).astype(np.float32)
