"""The arithmetic a plan needs, and the rate of matrix products that bounds how fast this machine can do it.

One definition for every efficiency that is reported: floating-point operations of the encoder's matrix products, a
multiplication and an addition counted as two. A window of m computed positions, attending to K = m + cached keys:

    conv1      2 · 2m · 3 · mels · d
    conv2      2 · m · 3 · d · d
    per layer  4 · 2 · m · d²     (query, key, value and output projections)
             + 2 · 2 · m · K · d  (logits, weighted values)
             + 2 · 2 · m · d · ffn  (MLP)

Layers count up to the deepest output that is kept; in the last of them only the n positions that are stored have to be
computed: 2 · 2 · m · d² (key, value) + 2 · 2 · n · d² (query, output) + 2 · 2 · n · K · d + 2 · 2 · n · d · ffn.
Softmax, LayerNorm, GELU and log-mel are left out. That is Whisper's; other families declare what they take
(`Family.flops`), which counts up to the deepest output that is kept.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from voxstrata.base.errors import InputError
from voxstrata.base.opening import read_json_file
from voxstrata.encoders import Context, ModelFolder
from voxstrata.encoders.family import Family
from voxstrata.encoders.frames import WINDOW_FRAMES
from voxstrata.encoders.outputs import depth
from voxstrata.store.plan import Plan

SGEMM_SIDE = 2048  # rows and columns of the square matrices: 48 MiB in all, beyond the caches
SGEMM_TURNS = 8  # the best counts
# Read by the BLAS libraries numpy is built on, once, when they load.
BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

_SGEMM = """
import sys, time, numpy as np
n, turns = int(sys.argv[1]), int(sys.argv[2])
a, b = np.random.default_rng(0).standard_normal((2, n, n), np.float32)
out, best = np.empty((n, n), np.float32), float("inf")
for _ in range(turns):
    begin = time.perf_counter()
    np.matmul(a, b, out=out)
    best = min(best, time.perf_counter() - begin)
print(2 * n**3 / best)
"""


class Arithmetic(Protocol):
    """What a window takes."""

    def window_flops(self, frames: int, context: Context, kept: int | None = None) -> int:
        """Floating-point operations of one window of `frames` computed positions, of which `kept` (by default all) are
        wanted."""


def arithmetic_of(model: ModelFolder, outputs: Sequence[str]) -> Arithmetic:
    """Of a model, as far as these outputs need it."""
    if model.card.whisper:
        return EncoderSize.of(model, outputs)
    return FamilySize(model.card.family, depth(outputs, model.card.layers))


@dataclass(frozen=True)
class FamilySize:
    """The arithmetic of an encoder that declares it. layers: blocks that have to run."""

    family: Family
    layers: int

    def window_flops(self, frames: int, context: Context, kept: int | None = None) -> int:
        """As `Arithmetic`; all computed frames count."""
        return self.family.flops(frames, self.layers)


@dataclass(frozen=True)
class EncoderSize:
    """What the arithmetic of a Whisper encoder depends on.

    layers: blocks that have to run. ffn: width of the MLP. silence_keys: cached keys per head, 0 when there is one
    for each position.
    """

    layers: int
    d_model: int
    ffn: int
    n_mels: int
    silence_keys: int

    @classmethod
    def of(cls, model: ModelFolder, outputs: Sequence[str]) -> Self:
        """Of a model, as far as these outputs need it."""
        card, path = model.card, model.path / "config.json"
        try:
            ffn = int(read_json_file(path)["encoder_ffn_dim"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise InputError(f"{path}: no encoder_ffn_dim ({e}); export the model again") from e
        return cls(depth(outputs, card.layers), card.d_model, ffn, card.n_mels, int(card.silence["groups"]))

    def window_flops(self, frames: int, context: Context, kept: int | None = None) -> int:
        """Floating-point operations of one window of `frames` computed positions, of which `kept` (by default all) are
        wanted of the last block."""
        m, d, keys = frames, self.d_model, frames
        if context.mode == "bucketed" and m < WINDOW_FRAMES:
            keys += self.silence_keys or WINDOW_FRAMES - m

        def layer(n: int) -> int:
            return 4 * (m + n) * d**2 + 4 * n * keys * d + 4 * n * d * self.ffn

        blocks = (self.layers - 1) * layer(m) + layer(kept or m) if self.layers else 0
        return 12 * m * self.n_mels * d + 6 * m * d**2 + blocks


@dataclass(frozen=True)
class Work:
    """What a plan asks of the encoder: windows, tokens (computed positions), operations."""

    windows: int
    tokens: int
    flops: int

    @classmethod
    def of(cls, plan: Plan, size: Arithmetic) -> Self:
        """Of all windows of a plan."""
        context, family = plan.spec.context, plan.family
        samples, advance = plan.samples[plan.samples > 0], family.window - 2 * family.overlap
        whole = -(-np.maximum(samples - family.window, 0) // advance)  # windows before a recording's last
        full = family.frames(family.window)
        numbers = np.bincount(family.frames(samples - whole * advance), minlength=full + 1)  # of windows, by frames
        numbers[0] = 0  # the rest of a recording may be too short for a frame
        numbers[full] += whole.sum()
        windows = [(n, int(numbers[n]), context.frames_computed(n, full)) for n in np.flatnonzero(numbers).tolist()]
        return cls(
            sum(number for _, number, _ in windows),
            sum(number * m for _, number, m in windows),
            sum(number * size.window_flops(m, context, kept) for kept, number, m in windows),
        )


def sgemm_rate(threads: int) -> float:
    """Best float32 operations per second of numpy's matrix product (2048³) on so many threads; takes about a second.

    Measured in a process of its own, since BLAS libraries fix their threads when they load.
    """
    environment = os.environ | dict.fromkeys(BLAS_THREADS, str(threads))
    command = [sys.executable, "-c", _SGEMM, str(SGEMM_SIDE), str(SGEMM_TURNS)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)
