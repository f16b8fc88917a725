"""A family of encoders, declared: how its time runs, what it takes, what its outputs are.

Everything outside the exporters' modules for single families takes these facts from here: plan, store, contexts,
arithmetic, readers. The card of an exported model carries the declaration, so a store says of itself what it holds.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from voxstrata.encoders.frames import SAMPLE_RATE

_LISTS = ("contexts", "prefix", "stem_flops", "block_flops")  # of plain values

_MOST = 1 << 53  # that JSON's numbers hold everywhere
_LONGEST = 1 << 25  # samples of a window, half an hour: what is padded to it, or counted by its frames, takes memory

Input = Literal["log_mel", "filter_bank", "samples"]
Norm = Literal["pre", "post"]
Count = TypeVar("Count", int, NDArray[np.int64])


@dataclass(frozen=True)
class Step:
    """One step from samples to states: a frame for every `stride` inputs, which sees `kernel` of them.

    padding: inputs that are put before and after, in all.
    """

    kernel: int
    stride: int
    padding: int = 0

    def count(self, n: Count) -> Count:
        """How many frames come from `n` inputs: floor((n + padding - kernel) / stride) + 1, never below 0."""
        found: Any = (n + self.padding - self.kernel) // self.stride + 1
        return cast(Count, found * (found > 0))


@dataclass(frozen=True)
class Output:
    """One output of an encoder.

    meaning: in words. hidden_states: which of transformers' `hidden_states` equals it; None where none does.
    repeats: an output that has fewer frames than the others gives each of its own this many times.
    """

    name: str
    meaning: str
    hidden_states: int | None
    repeats: int = 1


@dataclass(frozen=True)
class Piece:
    """A part of a recording that is encoded by itself.

    sample, samples: where it begins, and how long it is, at 16 kHz. frame: the recording's frames before those that
    are kept of it. skip, frames: of the frames that the encoder makes of it the first are not kept, then so many are.
    """

    sample: int
    samples: int
    frame: int
    skip: int
    frames: int


@dataclass(frozen=True)
class Family:
    """What is true of all encoders of one training recipe; with the outputs of one checkpoint.

    name: as transformers calls the family, or its authors.
    input: what the encoder's first layer takes: "log_mel", "filter_bank" or "samples". normalisation: what is done to
        it, in words. features: its width; 1 for samples.
    steps: from samples at 16 kHz to frames of the outputs, in turn.
    window: samples that the encoder takes at most at once. A longer recording is cut into pieces. overlap: samples of
        a piece, at each end that is not the recording's own, whose states are dropped. Both are multiples of `hop`.
    contexts: modes of `Context` that are defined for it, the default first.
    masks: what the encoder's own masks mean, and how it is batched here, in words.
    norm: whether blocks normalise what they take ("pre") or what they give ("post").
    outputs: those that it has, in depth order.
    stem_flops, block_flops: floating-point operations, before the blocks and of one block, of a recording of n frames:
        the polynomial a + b·n + c·n². Matrix products and convolutions alone; a multiplication and an addition are two.
    prefix: tokens before the speech, as "what=value", where the states depend on any.
    least: samples below which a recording has no frames, though the steps would give it some.
    """

    name: str
    input: Input
    normalisation: str
    features: int
    steps: tuple[Step, ...]
    window: int
    overlap: int
    contexts: tuple[str, ...]
    masks: str
    norm: Norm
    outputs: tuple[Output, ...]
    stem_flops: tuple[int, int, int]
    block_flops: tuple[int, int, int]
    prefix: tuple[str, ...] = ()
    least: int = 0

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        product = 1
        for step in self.steps:
            product *= step.stride
        return product

    @property
    def seconds_per_frame(self) -> float:
        return self.hop / SAMPLE_RATE

    @property
    def first_centre(self) -> float:
        """Samples before the middle of what the first frame sees; the others follow every `hop`. Of what the steps pad
        half stands before the input."""
        centre, stride = 0.0, 1
        for step in self.steps:
            centre += (step.kernel - 1 - step.padding) / 2 * stride
            stride *= step.stride
        return centre

    @property
    def seam(self) -> int:
        """Frames: in a recording every piece begins at a multiple of so many."""
        return math.gcd((self.window - self.overlap) // self.hop, (self.window - 2 * self.overlap) // self.hop)

    @property
    def cutting(self) -> str:
        """How recordings longer than the window are encoded, in words."""
        window, kept = self.window / SAMPLE_RATE, (self.window - 2 * self.overlap) / SAMPLE_RATE
        if not self.overlap:
            return f"{window:g} s windows from the start, no overlap, encoded apart, states concatenated"
        return (
            f"{window:g} s windows every {kept:g} s, encoded apart, the states of {self.overlap / SAMPLE_RATE:g} s at "
            "each end inside the recording dropped, the others concatenated"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs, in depth order."""
        return tuple(output.name for output in self.outputs)

    def output(self, name: str) -> Output:
        """The output of that name. Raises KeyError."""
        return {o.name: o for o in self.outputs}[name]

    def frames(self, samples: Count) -> Count:
        """How many frames a recording of so many samples at 16 kHz has; 0 where it is too short for one.

        Of a recording that is cut into pieces too: they overlap by whole frames, and each is counted once.
        """
        found: Any = samples
        for step in self.steps:
            found = step.count(found)
        return cast(Count, found * (samples >= self.least))

    def too_short(self, samples: int) -> str:
        """Why a recording of so many samples has no frame, in words."""
        least = self.shortest
        return (
            f"{samples / SAMPLE_RATE:g} s ({samples} samples at 16 kHz) are too short for a frame of {self.name}, "
            f"which needs {least / SAMPLE_RATE:g} s ({least} samples)"
        )

    def flops(self, frames: int, blocks: int) -> int:
        """Floating-point operations of a recording of so many frames, up to a block."""

        def polynomial(of: tuple[int, int, int]) -> int:
            return of[0] + of[1] * frames + of[2] * frames**2

        return polynomial(self.stem_flops) + blocks * polynomial(self.block_flops)

    @property
    def shortest(self) -> int:
        """The fewest samples that give a frame."""
        samples = 1
        for step in reversed(self.steps):
            samples = max(1, (samples - 1) * step.stride + step.kernel - step.padding)
        return max(samples, self.least)

    def pieces(self, samples: int) -> Iterator[Piece]:
        """The parts in which a recording is encoded, in their order: one, where it is no longer than the window."""
        advance, first = self.window - 2 * self.overlap, 0
        while True:
            own = min(self.window, samples - first)
            last = first + own >= samples
            begin = self.overlap // self.hop if first else 0
            end = self.frames(own) if last else (self.window - self.overlap) // self.hop
            yield Piece(first, own, first // self.hop + begin, begin, end - begin)
            if last:
                return
            first += advance

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` restores it."""
        listed = {name: list(getattr(self, name)) for name in _LISTS}
        steps, outputs = [asdict(step) for step in self.steps], [asdict(output) for output in self.outputs]
        return asdict(self) | listed | {"steps": steps, "outputs": outputs}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError for what is none."""
        steps, outputs = (tuple(kind(**x) for x in d[key]) for kind, key in ((Step, "steps"), (Output, "outputs")))
        lists = {name: tuple(d[name]) for name in _LISTS}
        family = cls(**{**d, **lists, "steps": steps, "outputs": outputs})
        family.check()
        return family

    def check(self) -> None:
        """Raises ValueError for a declaration that no encoder can have, TypeError for values of other types."""
        texts = [self.name, self.normalisation, self.masks, *self.contexts, *self.prefix]
        texts += [text for output in self.outputs for text in (output.name, output.meaning)]
        positive = [size for step in self.steps for size in (step.kernel, step.stride)]
        positive += [self.window, self.features, *(output.repeats for output in self.outputs)]
        others = [step.padding for step in self.steps] + [self.overlap, self.least, *self.stem_flops, *self.block_flops]
        others += [o.hidden_states for o in self.outputs if o.hidden_states is not None]
        if not all(isinstance(text, str) for text in texts) or not all(type(n) is int for n in positive + others):
            raise TypeError("names and meanings are texts, sizes are whole numbers")
        if not self.steps or min(positive) < 1 or min(others) < 0 or max(positive + others) > _MOST:
            raise ValueError(f"sizes are 1 or more, padding and operations 0 or more, none above {_MOST}")
        if (len(self.stem_flops), len(self.block_flops)) != (3, 3):
            raise ValueError("a polynomial of operations has three numbers")
        if self.input not in get_args(Input) or self.norm not in get_args(Norm):
            raise ValueError(f"input {self.input!r} or norm {self.norm!r} is unknown")
        if self.window % self.hop or self.overlap % self.hop or self.window <= 2 * self.overlap:
            raise ValueError(f"window {self.window} and overlap {self.overlap} do not fit frames of {self.hop} samples")
        if self.window > _LONGEST or self.frames(self.window) > self.window // self.hop + len(self.steps):
            raise ValueError(f"a window of {self.window} samples, of {self.frames(self.window)} frames, is not to be")
        kept = (self.window - self.overlap) // self.hop
        if self.frames(self.window) < kept or self.frames(2 * self.overlap + 1) < self.overlap // self.hop:
            raise ValueError(f"overlap {self.overlap}: pieces of a long recording would lack frames; make it longer")
        if not self.outputs or len(set(self.names)) != len(self.names) or not self.contexts:
            raise ValueError("outputs and contexts are missing, or an output is named twice")
