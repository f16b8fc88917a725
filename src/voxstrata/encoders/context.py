"""Context: what the encoder sees beyond the speech (padded, bucketed, trimmed, exact)."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from voxstrata.base.errors import UsageError
from voxstrata.encoders.frames import FRAMES_PER_SECOND, WINDOW_FRAMES

Mode = Literal["padded", "bucketed", "trimmed", "exact"]

# Encoder frames. Buckets are narrow where clips are common and wide where they are rare. The last edge is the full
# window, which is the padded reference itself.
DEFAULT_EDGES = (*range(75, 500, 25), *range(500, 1000, 50), *range(1000, 1501, 100))


@dataclass(frozen=True)
class Context:
    """How many positions are computed for an utterance and what attention sees after them.

    mode:
        `padded` computes all 1500 positions of the 30 s window, as in Whisper's training. It is the reference.
        `bucketed` computes the first m positions, m being the smallest edge ≥ frames + tail. The keys and values of
        the positions m … 1499 come from the model's silence cache.
        `trimmed` computes the same m positions and attends to nothing else.
        `exact` computes the recording's own frames and nothing else: the context of encoders without a fixed window.
        `bucketed` and `trimmed` are Whisper's alone.
    tail:
        encoder frames (20 ms each) of real padding that are computed after the speech.
    edges:
        encoder frames, ascending; the last one is 1500. They are fixed, so that the result for an utterance depends
        on that utterance alone. An accelerator also sees few shapes.
    pad:
        what follows the speech: a zero waveform, as in Hugging Face's feature extractor.
    chosen:
        whether somebody asked for it. One that nobody did gives way to the own context of the model's family.
    """

    mode: Mode = "bucketed"
    tail: int = FRAMES_PER_SECOND
    edges: tuple[int, ...] = field(default=DEFAULT_EDGES, repr=False)
    pad: Literal["zero_waveform"] = "zero_waveform"
    chosen: bool = field(default=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UsageError(f"unknown context {self.mode!r}; choose one of {', '.join(get_args(Mode))}")
        if self.tail < 0:
            raise UsageError(f"tail of {self.tail} frames: it cannot be negative")
        if list(self.edges) != sorted(set(self.edges)) or not self.edges or self.edges[-1] != WINDOW_FRAMES:
            raise UsageError(f"bucket edges must ascend and end with {WINDOW_FRAMES}, got {self.edges}")

    def of(self, modes: Sequence[str]) -> Self:
        """This context for a family that has these modes, its own first. Raises UsageError where it has not this one.

        Messages name the model in front.
        """
        if not self.chosen:
            return type(self).from_dict({"mode": modes[0]})
        if self.mode not in modes:
            raise UsageError(f"has no context {self.mode!r}; its contexts: {', '.join(modes)}")
        return self

    def frames_computed(self, frames: int, whole: int = WINDOW_FRAMES) -> int:
        """Encoder positions computed for a window of `frames` valid encoder frames; whole: those of a full window."""
        if self.mode == "exact":
            return frames
        if self.mode == "padded":
            return whole
        return self.edges[bisect_left(self.edges, min(frames + self.tail, WINDOW_FRAMES))]

    def shapes(self) -> tuple[int, ...]:
        """Every number of positions this context of Whisper's can compute, ascending."""
        return (WINDOW_FRAMES,) if self.mode == "padded" else self.edges

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` restores it."""
        if self.mode == "exact":
            return {"mode": "exact"}
        if self.mode == "padded":
            return {"mode": "padded", "pad": self.pad}
        return {"mode": self.mode, "tail": self.tail, "edges": list(self.edges), "pad": self.pad}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(**({**d, "edges": tuple(d["edges"])} if "edges" in d else d))
