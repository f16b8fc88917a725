"""What is stored, apart from whose speech it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np

from voxstrata.base.errors import UsageError
from voxstrata.encoders.card import ModelCard
from voxstrata.encoders.context import Context
from voxstrata.encoders.device import Device
from voxstrata.encoders.frames import WINDOW_FRAMES
from voxstrata.encoders.outputs import select_outputs

STORE_SCHEMA = 1  # of the store's layout
# Recordings over 30 s. Each window is to the encoder an utterance of its own (own log-mel maximum, own context).
WINDOWS = "30 s windows from the start, no overlap, encoded apart, states concatenated"


@dataclass(frozen=True)
class StoreSpec:
    """What is kept of every utterance.

    outputs: names, as a sequence or with commas between them; "all" are all that the model has.
    dtype: of stored frames; pooled states are always float32.
    pool: "mean" keeps one vector per utterance, the mean over its valid frames, instead of frames.
    every: keeps the mean of every `every` neighbouring frames (the last one of what is left); divides 1500, so
        that windows of long recordings join without a seam.
    arithmetic: what the encoder computed in, whatever is stored; `for_model` fills it in.
    """

    outputs: Sequence[str] = "all"
    dtype: Literal["float16", "float32"] = "float16"
    pool: Literal["mean"] | None = None
    every: int = 1
    context: Context = field(default_factory=Context)
    arithmetic: Literal["float16", "float32"] = "float32"

    def __post_init__(self) -> None:
        names = self.outputs.split(",") if isinstance(self.outputs, str) else self.outputs
        object.__setattr__(self, "outputs", tuple(name.strip() for name in names))
        if self.dtype not in ("float16", "float32"):
            raise UsageError(f"unknown dtype {self.dtype!r}; stores hold float16 or float32")
        if self.pool not in (None, "mean"):
            raise UsageError(f"unknown pooling {self.pool!r}; there is 'mean'")
        if self.every < 1 or WINDOW_FRAMES % self.every:
            raise UsageError(f"--every {self.every}: choose a divisor of {WINDOW_FRAMES}, like 2, 5, 10, 25 or 50")
        if self.pool and self.every != 1:
            raise UsageError("--pool and --every exclude each other: pooling leaves one vector per utterance")

    def for_model(self, card: ModelCard, device: Device) -> StoreSpec:
        """The same with the names of that model's outputs, in depth order, and with what it computes in on that device.

        Raises UsageError for an output that the model has not, and for one that is named twice.
        """
        outputs = select_outputs(self.outputs, card.outputs)
        return replace(self, outputs=outputs, arithmetic=device.arithmetic(card.dtype))

    @property
    def group(self) -> str:
        """The zarr group of the embeddings: `frames` or `pooled`."""
        return "pooled" if self.pool else "frames"

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """dtype of the arrays on disk."""
        return np.dtype("float32" if self.pool else self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` restores it."""
        return asdict(self) | {"outputs": list(self.outputs), "context": self.context.to_dict(), "windows": WINDOWS}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        d = {k: v for k, v in d.items() if k != "windows"}
        return cls(**{**d, "context": Context.from_dict(d["context"])})
