"""What is stored, apart from whose speech it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from voxstrata.base.errors import UsageError
from voxstrata.encoders.card import ModelCard
from voxstrata.encoders.context import Context
from voxstrata.encoders.device import Device
from voxstrata.encoders.family import Family
from voxstrata.encoders.outputs import select_outputs, spelt_outputs
from voxstrata.encoders.whisper import WHISPER

_NOT_CHOSEN = Context(chosen=False)
STORE_SCHEMA = 1  # of the store's layout


@dataclass(frozen=True)
class StoreSpec:
    """What is kept of every utterance.

    outputs: names, as a sequence or with commas between them; "all" are all that the model has. `for_model` writes in
        full what is in short, as `select_outputs` takes it.
    dtype: of stored frames; pooled states are always float32.
    pool: "mean" keeps one vector per utterance, the mean over its valid frames, instead of frames.
    every: keeps the mean of every `every` neighbouring frames (the last one of what is left); divides the family's
        `seam` (Whisper's is 1500), so that windows of long recordings join without one.
    context: by default the own of the model's family, which `for_model` fills in.
    arithmetic: what the encoder computed in, whatever is stored; `for_model` fills it in.
    windows: how recordings longer than the window were cut, in words; `for_model` fills it in. Each window is to the
        encoder an utterance of its own.
    """

    outputs: Sequence[str] = "all"
    dtype: Literal["float16", "float32"] = "float16"
    pool: Literal["mean"] | None = None
    every: int = 1
    context: Context = _NOT_CHOSEN
    arithmetic: Literal["float16", "bfloat16", "float32"] = "float32"
    windows: str = WHISPER.cutting

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", spelt_outputs(self.outputs))
        if self.dtype not in ("float16", "float32"):
            raise UsageError(f"unknown dtype {self.dtype!r}; stores hold float16 or float32")
        if self.pool not in (None, "mean"):
            raise UsageError(f"unknown pooling {self.pool!r}; there is 'mean'")
        if self.every < 1:
            raise UsageError(f"--every {self.every}: choose 1 or more")
        if self.pool and self.every != 1:
            raise UsageError("--pooled and --every exclude each other: pooling leaves one vector per utterance")

    def for_model(self, card: ModelCard, device: Device) -> StoreSpec:
        """The same with the names of that model's outputs, in depth order, with its own context where none was chosen,
        and with what it computes in on that device.

        Raises UsageError for an output or context that the model has not, an output that is named twice, and an `every`
        that does not fit its windows.
        """
        outputs, family = select_outputs(self.outputs, card.outputs), card.family
        try:
            context = self.context.of(family.contexts)
        except UsageError as e:
            raise UsageError(f"{card.checkpoint}: {family.name} {e}") from None
        self.check_every(family)
        arithmetic = device.arithmetic(card.dtype)
        return replace(self, outputs=outputs, context=context, arithmetic=arithmetic, windows=family.cutting)

    def check_every(self, family: Family) -> None:
        """Raises UsageError unless means of `every` frames never reach from one window into the next."""
        if family.seam % self.every:
            some = [n for n in (2, 3, 4, 5, 7, 10, 25, 50) if family.seam % n == 0]
            like = f", like {', '.join(map(str, some[:-1]))} or {some[-1]}" if len(some) > 1 else ""
            raise UsageError(f"--every {self.every}: choose a divisor of {family.seam}{like}")

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
        return asdict(self) | {"outputs": list(self.outputs), "context": self.context.to_dict()}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(**{**d, "context": Context.from_dict(d["context"])})
