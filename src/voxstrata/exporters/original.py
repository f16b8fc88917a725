"""What every family's module gives to the export: the encoder as its makers' code computes it, and the graphs of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from voxstrata.encoders.family import Family


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint that was found and read, but not understood yet.

    name: hub id, or name of the folder or file. revision: commit, for a hub id. folder: where it lies.
    config: config.json as it is, from a stranger: a family passes on to transformers only keys that it knows, of the
    type that they must have. preprocessor: the feature extractor's settings, {} where there are none.
    tensors: all tensors of its files. prefix: tokens before the speech that the user chose; () for the family's own.
    """

    name: str
    revision: str | None
    folder: Path
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    prefix: tuple[str, ...] = ()


class Original(Protocol):
    """One checkpoint's encoder, in float32, and how it becomes graphs.

    Graphs take batches of recordings of one exact length, so no mask is needed, and none is taken.
    """

    @property
    def family(self) -> Family:
        """The declaration, with this checkpoint's outputs."""

    @property
    def layers(self) -> int:
        """Number of blocks."""

    @property
    def d_model(self) -> int:
        """Width of the states."""

    @property
    def heads(self) -> int:
        """Heads of attention in a block."""

    def state(self) -> dict[str, NDArray[np.float32]]:
        """The encoder's tensors by the names of the original module."""

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """What the original front end makes of the samples of one recording at 16 kHz, [1, …], unpadded."""

    def hidden_states(self, audio: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """Every output [1, frames, d_model] of one recording by itself, by name, computed by the original module."""

    def feature_graph(self) -> bytes:
        """Graph: `audio` float32 [batch, samples] to `features` float32 [batch, …], each recording by itself."""

    def write_encoder(self, path: Path, weights: Path, outputs: Sequence[str]) -> None:
        """Write the graph `features` float32 [batch, …] to the outputs, float32 [batch, frames, d_model]; frames are
        `family.frames(samples)`. Its tensors go into the file `weights` beside it (see `WeightsFile`)."""


class Sizes(Protocol):
    """What a shape of any family says of its blocks."""

    @property
    def layers(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def heads(self) -> int: ...


class ShapedOriginal:
    """The sizes of an `Original` whose shape knows them."""

    shape: Sizes

    @property
    def layers(self) -> int:
        return self.shape.layers

    @property
    def d_model(self) -> int:
        return self.shape.d_model

    @property
    def heads(self) -> int:
        return self.shape.heads


class FamilyModule(Protocol):
    """What a module in `exporters.families` defines.

    MODEL_TYPES: the `model_type` in config.json of the checkpoints that it loads, also of whole models around the
    encoder. TITLE: what users call them.
    """

    MODEL_TYPES: tuple[str, ...]
    TITLE: str

    def load(self, files: CheckpointFiles) -> Original:
        """The encoder in these files. Raises InputError, naming file, value and mend, for one that cannot be loaded."""
