"""What a decoder is given: all layers of recordings from one pass of the encoder, and what an exit makes of one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from voxstrata.audio.decode import AudioInfo
from voxstrata.corpus import Corpus
from voxstrata.early_exit.checkpoint import Transcriber, spectrograms
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.recordings import read_recording

StatesMap = Callable[[torch.Tensor], torch.Tensor]  # [..., d_model] to the same shape, frame by frame


@dataclass(frozen=True)
class LayerStates:
    """The residual stream of a batch of recordings after block k, by k: each [recordings, frames, d_model].

    seconds: what the encoder took until there, for the whole batch.
    """

    layers: Mapping[int, torch.Tensor]
    seconds: Mapping[int, float]


def encode_layers(model: Any, features: torch.Tensor, blocks: Iterable[int]) -> LayerStates:
    """`layer_k` of every k of `blocks` (0: the input of the first block), from one pass.

    features: [recordings, mels, 2·frames] of the model's device and dtype. model: transformers' whole Whisper.
    """
    encoder, wanted = model.model.encoder, set(blocks)
    kept, seconds = dict[int, torch.Tensor](), dict[int, float]()

    def keep(k: int, state: torch.Tensor) -> None:
        if k in wanted:
            if state.is_cuda:
                torch.cuda.synchronize()
            kept[k], seconds[k] = state, perf_counter() - start

    def given(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        keep(0, args[0])

    def made(k: int) -> Callable[[torch.nn.Module, Any, Any], None]:
        return lambda _, __, output: keep(k, output[0] if isinstance(output, tuple) else output)

    layers = encoder.layers
    with torch.inference_mode(), ExitStack() as stack:
        stack.callback(setattr, encoder, "layers", layers)
        encoder.layers = layers[: max(1, *wanted)]  # what comes after the last of `blocks` is not computed
        stack.callback(layers[0].register_forward_pre_hook(given).remove)
        for k, layer in enumerate(encoder.layers, 1):
            stack.callback(layer.register_forward_hook(made(k)).remove)
        start = perf_counter()
        encoder(features)
    return LayerStates(kept, seconds)


class ExitNorms:
    """What the states of an exit go through before the decoder gets them.

    layer_norm: the encoder's own, which `with` applies; `without` applies nothing. fitted: for exits with any other
    norm, what was fitted for them.
    """

    def __init__(self, layer_norm: StatesMap, fitted: Mapping[EarlyExit, StatesMap] | None = None) -> None:
        self._layer_norm, self._fitted = layer_norm, dict(fitted or {})

    def __call__(self, at: EarlyExit, states: torch.Tensor) -> torch.Tensor:
        """The decoder's input [..., frames, d_model] of `layer_k` (k = at.after), of that shape."""
        with torch.inference_mode():
            if at.norm == "with":
                return self._layer_norm(states)
            return states if at.norm == "without" else self._fitted[at](states)


@dataclass(frozen=True)
class EncodedStates:
    """States that `model`, transformers' whole Whisper, computes of the corpus's recordings, padded to 30 s."""

    transcriber: Transcriber
    model: Any
    corpus: Corpus

    def read(self, i: int, info: AudioInfo) -> npt.NDArray[np.float32]:
        """Samples of row `i` of the corpus. Raises AudioError where they cannot be had."""
        return read_recording(self.corpus, i, info)

    def states(self, read: Sequence[npt.NDArray[np.float32]], blocks: Iterable[int]) -> LayerStates:
        """Of recordings that were read, all together."""
        features = spectrograms(self.transcriber.encoder, list(read))
        return encode_layers(self.model, features.to(self.model.device, self.model.dtype), blocks)
