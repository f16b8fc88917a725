"""The speech encoders of SeamlessM4T: w2v-BERT, trained further to translate, with an adapter at its end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError
from voxstrata.exporters.families._conformer import ACTIVATIONS, ConformerShape, Positions, check_settings, configured
from voxstrata.exporters.families._stacked_bank import NAMES, Ending, StackedBankConformer, check_stacked_extractor
from voxstrata.exporters.original import CheckpointFiles, Original
from voxstrata.exporters.reading import known_keys
from voxstrata.exporters.strict import check_floats, check_stated, count_blocks, load_module, tensors_below

MODEL_TYPES = ("seamless_m4t", "seamless_m4t_v2")
TITLE = "SeamlessM4T's speech encoder"

_KEYS: dict[type, str] = {
    int: "hidden_size speech_encoder_layers speech_encoder_attention_heads speech_encoder_intermediate_size "
    "feature_projection_input_dim conv_depthwise_kernel_size left_max_position_embeddings "
    "right_max_position_embeddings adaptor_kernel_size adaptor_stride num_adapter_layers speech_encoder_chunk_size "
    "speech_encoder_left_chunk_num",
    float: "layer_norm_eps",
    bool: "add_adapter",
    str: "speech_encoder_hidden_act position_embeddings_type",
}
_SHORTEST_CHUNK = 500  # frames: pieces of a long recording are no longer than a chunk
_EPSILON = 1e-5  # of the LayerNorms that do not take theirs from the configuration
_V1 = replace(
    NAMES,
    positions=("self_attn.linear_pos", *NAMES.positions[1:]),
    convolution=(*NAMES.convolution[:3], "conv_module.batch_norm", NAMES.convolution[4]),
)


def load(files: CheckpointFiles) -> Original:
    """The encoder in these files. Raises InputError for one that is not as the released models are."""
    file = files.folder / "config.json"
    second = files.config.get("model_type") == "seamless_m4t_v2"
    config, make = _original(file, second, known_keys(file, files.config, _KEYS))
    chunk = config.speech_encoder_chunk_size if second else None
    positions: Positions = "relative_key" if second else "relative"
    wanted = {"position_embeddings_type": (positions,), "speech_encoder_hidden_act": ACTIVATIONS}
    check_settings(file, config, wanted)
    if chunk is not None and chunk < _SHORTEST_CHUNK:
        raise InputError(
            f"{file}: speech_encoder_chunk_size is {chunk}: attention within chunks of fewer than {_SHORTEST_CHUNK} "
            "frames cannot be exported; released encoders have 20000"
        )
    check_stacked_extractor(files, config.feature_projection_input_dim)
    mark = "feature_projection.projection.weight"
    _, state = tensors_below(files.folder, files.tensors, ("speech_encoder.", ""), mark, TITLE)
    check_floats(files.folder, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    stated = {"speech_encoder_layers": config.speech_encoder_layers}
    check_stated(files.folder, stated, {"speech_encoder_layers": count_blocks(state, "encoder.layers.")})
    module: Any = load_module(files.folder, make, state, TITLE)
    embedded = getattr(module.encoder, "embed_positions", None)
    if embedded is not None and embedded.pe.is_meta:  # transformers 4 keeps it where no loading sees it
        embedded.pe = None
    shape = ConformerShape(
        names=NAMES if second else _V1,
        layers=config.speech_encoder_layers,
        d_model=config.hidden_size,
        heads=config.speech_encoder_attention_heads,
        feed_forward=config.speech_encoder_intermediate_size,
        kernel=config.conv_depthwise_kernel_size,
        positions=positions,
        causal=second,
        batch_norm=not second,
        activation=config.speech_encoder_hidden_act,
        epsilon=_EPSILON,
        left=config.left_max_position_embeddings if second else 0,
        right=config.right_max_position_embeddings if second else 0,
    )
    ending = Ending(
        norm=config.layer_norm_eps,
        feed_forward=True,
        adapters=config.num_adapter_layers if config.add_adapter else 0,
        kernel=config.adaptor_kernel_size,
        stride=config.adaptor_stride,
        last_norm=True,
    )
    title = f"SeamlessM4T v{2 if second else 1} speech encoder"
    width = config.feature_projection_input_dim
    return StackedBankConformer(title, module, shape, ending, width, config.layer_norm_eps, *([chunk] if chunk else []))


def _original(file: Path, second: bool, known: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration, and what makes the module of it."""
    if second:
        from transformers import SeamlessM4Tv2Config
        from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

        config: Any = configured(file, SeamlessM4Tv2Config, known)
        return config, lambda: SeamlessM4Tv2SpeechEncoder(config)
    from transformers import SeamlessM4TConfig
    from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TSpeechEncoder

    first: Any = configured(file, SeamlessM4TConfig, known)
    return first, lambda: SeamlessM4TSpeechEncoder(first)
