"""FastConformer, NVIDIA's encoder with a frame every 80 ms: Parakeet transcribes, Canary translates, too.

Cohere's recogniser has the same encoder. Only the encoder is loaded, so transformers 4.57 does for all of them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from voxstrata.base.errors import InputError
from voxstrata.encoders.family import Family, Output, Step
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.encoders.outputs import depth
from voxstrata.exporters.families._conformer import (
    ACTIVATIONS,
    BlockNames,
    ConformerBuilder,
    ConformerShape,
    arrays,
    check_settings,
)
from voxstrata.exporters.filter_bank import FFT, FRAME, HOP, nemo_filter_bank, standardised
from voxstrata.exporters.graph import GraphBuilder
from voxstrata.exporters.original import CheckpointFiles, Original, ShapedOriginal
from voxstrata.exporters.pytorch import block_states
from voxstrata.exporters.reading import brief, known_keys
from voxstrata.exporters.strict import (
    check_extractor,
    check_floats,
    check_stated,
    configured,
    count_blocks,
    load_module,
    tensors_below,
)
from voxstrata.exporters.weights import EncoderShape, WeightsFile

MODEL_TYPES = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt", "parakeet_encoder", "canary", "cohere_asr")
TITLE = "FastConformer (Parakeet, Canary, Cohere)"

_KEYS: dict[type, str] = {
    int: "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size conv_kernel_size "
    "subsampling_factor subsampling_conv_channels num_mel_bins subsampling_conv_kernel_size subsampling_conv_stride "
    "max_position_embeddings",
    bool: "attention_bias convolution_bias scale_input",
    str: "hidden_act",
}
# What transformers 5 takes where a configuration does not say it. No weight shows scale_input.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "canary": {"num_hidden_layers": 32, "num_mel_bins": 128, "scale_input": False},
    "cohere_asr": {
        "hidden_size": 1280,
        "num_hidden_layers": 48,
        "intermediate_size": 5120,
        "num_mel_bins": 128,
        "scale_input": False,
    },
}
_FAMILY_NAMES = {"canary": "Canary", "cohere_asr": "Cohere Transcribe"}
_PREPROCESSING = {
    "sampling_rate": SAMPLE_RATE,
    "hop_length": HOP,
    "n_fft": FFT,
    "win_length": FRAME,
    "preemphasis": 0.97,
}
# NeMo's names, which Cohere's files keep
_RENAMED = {
    r"^pre_encode\.conv\.": "subsampling.layers.",
    r"^pre_encode\.out\.": "subsampling.linear.",
    r"\.self_attn\.linear_([qkv])\.": r".self_attn.\1_proj.",
    r"\.self_attn\.linear_out\.": ".self_attn.o_proj.",
    r"\.self_attn\.linear_pos\.": ".self_attn.relative_k_proj.",
    r"\.self_attn\.pos_bias_": ".self_attn.bias_",
    r"\.conv\.batch_norm\.": ".conv.norm.",
}
_NAMES = BlockNames(
    first=("norm_feed_forward1", "feed_forward1.linear1", "feed_forward1.linear2"),
    attention=("norm_self_att", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    positions=("self_attn.relative_k_proj", "self_attn.bias_u", "self_attn.bias_v"),
    convolution=("norm_conv", "conv.pointwise_conv1", "conv.depthwise_conv", "conv.norm", "conv.pointwise_conv2"),
    second=("norm_feed_forward2", "feed_forward2.linear1", "feed_forward2.linear2"),
    last="norm_out",
)
_WINDOW, _OVERLAP = 2000, 125  # frames: 160 s, and 10 s at each end
_SHORTEST_WINDOW = 4 * _OVERLAP


def load(files: CheckpointFiles) -> Original:
    """The encoder in these files. Raises InputError for one that is not as the released models are."""
    file = files.folder / "config.json"
    kind = str(files.config.get("model_type"))
    nested = files.config if kind == "parakeet_encoder" else files.config.get("encoder_config")
    if not isinstance(nested, Mapping):
        raise InputError(f"{file}: encoder_config is {brief(nested)}, not an object; fetch the file again")
    config, make = _original(file, _DEFAULTS.get(kind, {}) | known_keys(file, nested, _KEYS))
    mels = config.num_mel_bins
    check_extractor(files, {**_PREPROCESSING, "feature_size": mels})
    tensors = {_renamed(name): value for name, value in files.tensors.items()}
    _, state = tensors_below(
        files.folder, tensors, ("encoder.", "model.encoder.", ""), "subsampling.linear.weight", TITLE
    )
    check_floats(files.folder, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    stated = {"num_hidden_layers": config.num_hidden_layers}
    check_stated(files.folder, stated, {"num_hidden_layers": count_blocks(state)})
    module = load_module(files.folder, make, state, TITLE)
    shape = ConformerShape(
        names=_NAMES,
        layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        heads=config.num_attention_heads,
        feed_forward=config.intermediate_size,
        kernel=config.conv_kernel_size,
        positions="relative",
        causal=False,
        batch_norm=True,
        activation=config.hidden_act,
    )
    return _FastConformer(_FAMILY_NAMES.get(kind, "Parakeet"), module, shape, config)


def _renamed(name: str) -> str:
    """transformers' name of a tensor that may have NeMo's."""
    prefix = next((p for p in ("model.encoder.", "encoder.") if name.startswith(p)), "")
    own = name.removeprefix(prefix)
    for pattern, new in _RENAMED.items():
        own = re.sub(pattern, new, own)
    return prefix + own


def _original(file: Path, known: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration, and what makes the module of it. Raises InputError where they describe no such encoder."""
    try:
        with redirect_stdout(None):  # transformers 4 prints a notice for its own developers
            from transformers import ParakeetEncoder, ParakeetEncoderConfig
    except ImportError:
        raise InputError(
            f"{file}: FastConformer needs transformers 4.57 or newer; pip install -U transformers"
        ) from None
    settings = {k: v for k, v in known.items() if k != "num_key_value_heads"}
    config: Any = configured(file, ParakeetEncoderConfig, settings)
    if not hasattr(config, "convolution_bias") and not known.get("convolution_bias", True):
        raise InputError(f"{file}: convolution_bias is false; that needs transformers 5; pip install -U transformers")
    kernel, stride, factor = (
        getattr(config, f"subsampling_{part}") for part in ("conv_kernel_size", "conv_stride", "factor")
    )
    check_settings(file, config, {"hidden_act": ACTIVATIONS})
    if config.max_position_embeddings < _SHORTEST_WINDOW:
        raise InputError(
            f"{file}: max_position_embeddings is {config.max_position_embeddings}; released encoders have 5000, and a "
            f"window of fewer than {_SHORTEST_WINDOW} frames cannot be exported"
        )
    if stride != 2 or kernel % 2 != 1 or factor < 2 or factor & (factor - 1):
        raise InputError(
            f"{file}: subsampling by {factor}, with kernel {kernel} and stride {stride}; FastConformers are exported "
            "with a power of two, an odd kernel and stride 2"
        )
    return config, lambda: ParakeetEncoder(config)


@dataclass(frozen=True)
class _FastConformer(ShapedOriginal):
    title: str
    module: torch.nn.Module
    shape: ConformerShape
    config: Any

    @property
    def kernel(self) -> int:
        """Of the convolutions that shorten time."""
        return int(self.config.subsampling_conv_kernel_size)

    @property
    def convolutions(self) -> int:
        return int(math.log2(self.config.subsampling_factor))

    @property
    def family(self) -> Family:
        layers, hop = self.layers, HOP << self.convolutions
        outputs = [Output("layer_00", "subsampled features: what the first block takes", 0)]
        outputs += [Output(f"layer_{k:02d}", f"block {k}, after the LayerNorm at its end", k) for k in range(1, layers)]
        return Family(
            name=self.title,
            input="filter_bank",
            normalisation="natural logarithm of mel energies of the pre-emphasised recording, plus 2⁻²⁴; each mel with "
            "mean 0 and variance 1 over the recording, of a long one over each piece; no dither",
            features=self.config.num_mel_bins,
            steps=(Step(HOP, HOP), *[Step(self.kernel, 2, self.kernel // 2 * 2)] * self.convolutions),
            window=min(_WINDOW, self.config.max_position_embeddings) * hop,
            overlap=_OVERLAP * hop,
            contexts=("exact",),
            masks="none is used: a batch holds recordings of one length, so no row is padded",
            norm="post",
            outputs=(*outputs, Output("final", f"block {layers}, after the LayerNorm at its end", layers)),
            stem_flops=(0, self._stem_flops(), 0),
            block_flops=self.shape.flops,
            least=2 * HOP,  # of one frame of features there is no variance
        )

    def _stem_flops(self) -> int:
        """Per frame: filter bank, convolutions, projection."""
        mels, channels = self._mels(0), int(self.config.subsampling_conv_channels)
        total = ((FFT + 2) * FFT + (FFT // 2 + 1) * mels) << self.convolutions
        for k in range(1, self.convolutions + 1):
            per_place = channels * (self.kernel**2 + (channels if k > 1 else 0))
            total += (per_place * self._mels(k)) << (self.convolutions - k)
        return 2 * (total + channels * self._mels(self.convolutions) * self.d_model)

    def _mels(self, convolutions: int) -> int:
        """Bins that are left after so many convolutions."""
        mels = int(self.config.num_mel_bins)
        for _ in range(convolutions):
            mels = Step(self.kernel, 2, self.kernel // 2 * 2).count(mels)
        return mels

    def state(self) -> dict[str, NDArray[np.float32]]:
        return arrays(self.module)

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """As the extractor makes them, without the frame at the end that it masks."""
        made = _extractor(self.config.num_mel_bins)(audio, sampling_rate=SAMPLE_RATE)
        return torch.as_tensor(made["input_features"][:, made["attention_mask"][0]])

    def hidden_states(self, audio: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        blocks: Any = self.module.get_submodule("layers")
        states, last = block_states(self.module, blocks, self.features(audio))
        return {**{f"layer_{k:02d}": state for k, state in enumerate(states[:-1])}, "final": last}

    def feature_graph(self) -> bytes:
        b, mels = GraphBuilder(), self.config.num_mel_bins
        standardised(b, nemo_filter_bank(b, "audio", _mel_filters(mels), "bank"), "features", ddof=1, outside=1e-5)
        audio = b.tensor("audio", np.float32, ["batch", "samples"])
        return b.model("nemo_filter_bank", [audio], [b.tensor("features", np.float32, ["batch", "time", mels])])

    def write_encoder(self, path: Path, weights: Path, outputs: Sequence[str]) -> None:
        s = self.shape
        sizes = EncoderShape(s.layers, s.d_model, s.heads, self.config.num_mel_bins)
        with WeightsFile(weights, {}, sizes, "float32") as file:
            path.write_bytes(self._graph(file, outputs))

    def _graph(self, weights: WeightsFile, outputs: Sequence[str]) -> bytes:
        b = ConformerBuilder(self.module.state_dict(), weights, self.shape)
        x = self._subsampled(b)
        deepest = depth(outputs, self.layers)
        names = ["final" if k == self.layers else f"layer_{k:02d}" for k in range(1, deepest + 1)]
        b.blocks(x, "layers", names)
        features = b.tensor("features", np.float32, ["batch", "time", self.config.num_mel_bins])
        states = [b.tensor(name, np.float32, ["batch", "frames", self.d_model]) for name in outputs]
        return b.model("fast_conformer", [features], states)

    def _subsampled(self, b: ConformerBuilder) -> str:
        """Two-dimensional convolutions over time and mels, each halving both, and a projection: `layer_00`."""
        x = b.node("Unsqueeze", ["features", b.one], "features/channel")
        shorten = {"kernel_shape": [self.kernel] * 2, "pads": [self.kernel // 2] * 4, "strides": [2, 2]}
        x = b.node("Relu", [b.conv(x, "subsampling.layers.0", **shorten)], "subsampling/0")
        for k in range(1, self.convolutions):
            depthwise, pointwise = (f"subsampling.layers.{3 * k + i}" for i in (-1, 0))
            x = b.conv(x, depthwise, **shorten, group=self.config.subsampling_conv_channels)
            x = b.node("Relu", [b.conv(x, pointwise, kernel_shape=[1, 1])], f"subsampling/{k}")
        x = b.node("Transpose", [x], "subsampling/btcm", perm=[0, 2, 1, 3])
        width = self.config.subsampling_conv_channels * self._mels(self.convolutions)
        x = b.node("Reshape", [x, b.ints("subsampling/width", 0, -1, width)], "subsampling/flat")
        scale = math.sqrt(self.d_model) if self.config.scale_input else 1.0
        return b.node("Identity", [b.linear(x, "subsampling.linear", scale)], "layer_00")


def _mel_filters(mels: int) -> NDArray[np.float64]:
    """Slaney's triangles from 0 to 8 kHz, (257, mels)."""
    return np.asarray(
        mel_filter_bank(FFT // 2 + 1, mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    )


def _extractor(mels: int) -> Any:
    """ParakeetFeatureExtractor, whose `__init__` takes the same filters from librosa with transformers 4."""
    from transformers.models.parakeet.feature_extraction_parakeet import ParakeetFeatureExtractor

    extractor: Any = ParakeetFeatureExtractor.__new__(ParakeetFeatureExtractor)
    SequenceFeatureExtractor.__init__(extractor, feature_size=mels, sampling_rate=SAMPLE_RATE, padding_value=0.0)
    for key in ("hop_length", "n_fft", "win_length", "preemphasis"):
        setattr(extractor, key, _PREPROCESSING[key])
    extractor.mel_filters = torch.from_numpy(_mel_filters(mels).T).to(torch.float32)
    return extractor
