"""Conformers over Kaldi's filter bank, two of its frames in one: w2v-BERT 2.0 and Seamless's speech encoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import SeamlessM4TFeatureExtractor

from voxstrata.encoders.family import Family, Output, Step
from voxstrata.encoders.outputs import depth
from voxstrata.exporters.families._conformer import BlockNames, ConformerBuilder, ConformerShape, arrays
from voxstrata.exporters.filter_bank import FFT, FRAME, HOP, kaldi_filter_bank, kaldi_mel_filters, standardised
from voxstrata.exporters.graph import GraphBuilder
from voxstrata.exporters.original import CheckpointFiles, ShapedOriginal
from voxstrata.exporters.pytorch import block_states
from voxstrata.exporters.strict import check_extractor
from voxstrata.exporters.weights import EncoderShape, WeightsFile

STACK = 2  # frames of the filter bank in one of the encoder
_WINDOW, _OVERLAP = 2000, 200  # frames: 40 s, and 4 s at each end
_PREPROCESSING = {"sampling_rate": 16_000, "stride": STACK, "feature_extractor_type": "SeamlessM4TFeatureExtractor"}
_NORMALISED = (
    "natural logarithm of Kaldi's mel energies (16-bit samples, no dither), each mel with mean 0 and variance 1 over "
    "the recording, of a long one over each piece; two frames side by side"
)

NAMES = BlockNames(
    first=("ffn1_layer_norm", "ffn1.intermediate_dense", "ffn1.output_dense"),
    attention=("self_attn_layer_norm", *(f"self_attn.linear_{p}" for p in ("q", "k", "v", "out"))),  # type: ignore[arg-type]
    positions=("self_attn.distance_embedding", "self_attn.pos_bias_u", "self_attn.pos_bias_v"),
    convolution=(
        "conv_module.layer_norm",
        "conv_module.pointwise_conv1",
        "conv_module.depthwise_conv",
        "conv_module.depthwise_layer_norm",
        "conv_module.pointwise_conv2",
    ),
    second=("ffn2_layer_norm", "ffn2.intermediate_dense", "ffn2.output_dense"),
    last="final_layer_norm",
)


@dataclass(frozen=True)
class Ending:
    """What comes after the blocks.

    norm: a LayerNorm, and its epsilon. feed_forward: half of one is added, with that activation. adapters: layers that
    shorten time, each by a convolution of `kernel` frames every `stride`. last_norm: a LayerNorm after all.
    """

    norm: float | None = None
    feed_forward: bool = False
    adapters: int = 0
    kernel: int = 1
    stride: int = 1
    activation: str = "relu"
    last_norm: bool = False

    @property
    def repeats(self) -> int:
        return int(self.stride**self.adapters)

    @property
    def is_nothing(self) -> bool:
        return not (self.norm or self.feed_forward or self.adapters or self.last_norm)

    @property
    def first(self) -> int:
        """How many frames of the input are an adapter's frame 0, less its stride: its middle ones, where it sees more
        than its stride."""
        return max(0, self.stride // 2 - (self.kernel - self.stride + 1) // 2)


def check_stacked_extractor(files: CheckpointFiles, width: int) -> None:
    """Raises InputError where the feature extractor's settings are not those of features of that width."""
    check_extractor(files, {**_PREPROCESSING, "num_mel_bins": width // STACK, "feature_size": width // STACK})


@dataclass(frozen=True)
class StackedBankConformer(ShapedOriginal):
    """An `Original`: a module of transformers with `feature_projection`, `encoder.layers`, and what follows them.

    title: the family's name. width: of a feature frame. limit: frames that it takes at most, where that is less than
    memory would. epsilon: of the LayerNorm before the projection.
    """

    title: str
    module: torch.nn.Module
    shape: ConformerShape
    ending: Ending
    width: int
    epsilon: float
    limit: int = _WINDOW

    @property
    def mels(self) -> int:
        return self.width // STACK

    @property
    def family(self) -> Family:
        hop = HOP * STACK
        seen = "a block's convolution sees earlier frames alone" if self.shape.causal else "nothing is causal"
        return Family(
            name=self.title,
            input="filter_bank",
            normalisation=_NORMALISED,
            features=self.width,
            steps=(Step(FRAME, HOP), Step(STACK, STACK)),
            window=min(self.limit, _WINDOW) * hop,
            overlap=_OVERLAP * hop,
            contexts=("exact",),
            masks=f"none is used: a batch holds recordings of one length; {seen}",
            norm="post",
            outputs=tuple(self._outputs()),
            stem_flops=(0, self._stem_flops(), 0),
            block_flops=self.shape.flops,
        )

    def _outputs(self) -> list[Output]:
        end, layers = self.ending, self.layers
        outputs = [Output("layer_00", "projected features: what the first block takes", 0)]
        outputs += [Output(f"layer_{k:02d}", f"block {k}, after the LayerNorm at its end", k) for k in range(1, layers)]
        last = f"block {layers}, after the LayerNorm at its end"
        if end.is_nothing:
            return [*outputs, Output("final", last, layers)]
        last += " and the encoder's own; transformers 5 puts last_hidden_state in its place" if end.norm else ""
        parts = ["half a feed-forward added"] * end.feed_forward
        if end.adapters:
            parts.append(
                f"{end.adapters} layers of an adapter, whose frames are as long as {end.repeats} of the others"
            )
        parts += ["a LayerNorm"] * end.last_norm
        outputs.append(Output(f"layer_{layers:02d}", last, layers))
        final = f"last_hidden_state: layer_{layers:02d}, {', '.join(parts)}"
        return [*outputs, Output("final", final, None, end.repeats)]

    def _stem_flops(self) -> int:
        """Per frame: filter bank, projection, and what follows the blocks (its attention, which is short, left out)."""
        s, end = self.shape, self.ending
        bank = STACK * ((FFT + 2) * FRAME + (FFT // 2 + 1) * self.mels)
        shorter, after = 1, 2 * s.d_model * s.feed_forward * end.feed_forward
        for _ in range(end.adapters):
            shorter *= end.stride
            layer = 4 * s.d_model**2 * end.kernel + 4 * s.d_model**2 + 2 * s.d_model * s.feed_forward
            after += layer // shorter
        return 2 * (bank + self.width * s.d_model + after)

    def state(self) -> dict[str, NDArray[np.float32]]:
        return arrays(self.module)

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """As the extractor makes them, without the frame that it pads and masks where their number is odd."""
        made: Any = SeamlessM4TFeatureExtractor(feature_size=self.mels, num_mel_bins=self.mels)(
            audio, sampling_rate=16_000, return_tensors="pt"
        )
        return torch.as_tensor(made["input_features"][:, : int(made["attention_mask"].sum())])

    def hidden_states(self, audio: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        encoder: Any = self.module.get_submodule("encoder")
        states, last = block_states(self.module, encoder.layers, self.features(audio))
        if self.ending.norm:
            with torch.inference_mode():
                states[-1] = encoder.layer_norm(states[-1])
        states.append(self._repeated(last, states[0].shape[1]))
        if self.ending.is_nothing:
            del states[-2]  # it is the same
        return dict(zip(self.family.names, states, strict=True))

    def _repeated(self, last: torch.Tensor, frames: int) -> torch.Tensor:
        """The adapter's frames, each in the place of those that it was made of."""
        end, places, counts = self.ending, torch.arange(frames), frames
        for _ in range(end.adapters):
            counts = Step(end.kernel, end.stride, end.stride // 2 * 2).count(counts)
            places = ((places + end.first) // end.stride).clamp(max=counts - 1)
        return last[:, places]

    def feature_graph(self) -> bytes:
        b = GraphBuilder()
        bank = kaldi_filter_bank(b, "audio", kaldi_mel_filters(self.mels), "bank")
        x = standardised(b, bank, "bank/normalised", ddof=1, inside=1e-7)
        frames = b.node("Div", [b.node("Shape", [x], "bank/frames", start=1, end=2), b.ints("stack", STACK)], "frames")
        even = b.node("Mul", [frames, "stack"], "even")
        x = b.node("Slice", [x, b.ints("int_0", 0), even, b.ints("int_1", 1)], "bank/even")
        batch = b.node("Shape", [x], "batch", start=0, end=1)
        shape = b.node("Concat", [batch, frames, b.ints("width", self.width)], "features/shape", axis=0)
        b.node("Reshape", [x, shape], "features", allowzero=1)
        audio = b.tensor("audio", np.float32, ["batch", "samples"])
        features = b.tensor("features", np.float32, ["batch", "frames", self.width])
        return b.model("stacked_filter_bank", [audio], [features])

    def write_encoder(self, path: Path, weights: Path, outputs: Sequence[str]) -> None:
        s = self.shape
        with WeightsFile(weights, {}, EncoderShape(s.layers, s.d_model, s.heads, self.width), "float32") as file:
            path.write_bytes(self._graph(file, outputs))

    def _graph(self, weights: WeightsFile, outputs: Sequence[str]) -> bytes:
        end, layers = self.ending, self.layers
        b = ConformerBuilder(self.module.state_dict(), weights, self.shape)
        x = b.layer_norm("features", "feature_projection.layer_norm", self.epsilon)
        x = b.node("Identity", [b.linear(x, "feature_projection.projection")], "layer_00")
        names = [f"layer_{k:02d}" for k in range(1, depth(outputs, layers) + 1)]
        if len(names) == layers and (end.norm or end.is_nothing):
            names[-1] = f"block_{layers:02d}"
        x = b.blocks(x, "encoder.layers", names)
        if end.is_nothing and "final" in outputs:
            b.node("Identity", [x], "final")
        elif len(names) == layers and end.norm:
            x = b.layer_norm(x, "encoder.layer_norm", end.norm, name=f"layer_{layers:02d}")
        if "final" in outputs and not end.is_nothing:
            self._end(b, x)
        features = b.tensor("features", np.float32, ["batch", "frames", self.width])
        states = [b.tensor(name, np.float32, ["batch", "frames", self.d_model]) for name in outputs]
        return b.model("conformer", [features], states)

    def _end(self, b: ConformerBuilder, x: str) -> None:
        """From the last block's state to `final`."""
        end = self.ending
        if end.feed_forward:
            widen, narrow = (f"intermediate_ffn.{part}_dense" for part in ("intermediate", "output"))
            x = b.node("Add", [x, b.feed_forward(x, widen, narrow, "relu", 0.5)], "intermediate_ffn/added")
        counts = []
        for k in range(end.adapters):
            x = b.adapter(x, f"adapter.layers.{k}", end.kernel, end.stride, end.activation)
            counts.append(b.frames(x))
        if end.last_norm:
            x = b.layer_norm(x, "inner_layer_norm", 1e-5)
        if counts:
            x = b.node("Gather", [x, self._places(b, counts)], "final/repeated", axis=1)
        b.node("Identity", [x], "final")

    def _places(self, b: ConformerBuilder, counts: Sequence[str]) -> str:
        """For every frame the adapter's that stands for it; as `_repeated`."""
        zero, one = (b.constant(f"scalar_{n}", np.array(n, np.int64)) for n in (0, 1))
        places = b.node("Range", [zero, b.node("Squeeze", [b.length], "places/end"), one], "places")
        for k, count in enumerate(counts):
            moved = b.node("Add", [places, b.ints("places/first", self.ending.first)], f"places/{k}/moved")
            place = b.node("Div", [moved, b.ints("places/stride", self.ending.stride)], f"places/{k}/own")
            places = b.node("Min", [place, b.node("Sub", [count, b.one], f"places/{k}/last")], f"places/{k}")
        return places
