"""w2v-BERT 2.0 and what was fine-tuned from it: a conformer that learned from sound alone (Seamless, 2023)."""

from voxstrata.exporters.families._conformer import ACTIVATIONS, ConformerShape, check_settings, configured
from voxstrata.exporters.families._stacked_bank import NAMES, Ending, StackedBankConformer, check_stacked_extractor
from voxstrata.exporters.original import CheckpointFiles, Original
from voxstrata.exporters.reading import known_keys
from voxstrata.exporters.strict import check_floats, check_stated, count_blocks, load_module, tensors_below

MODEL_TYPES = ("wav2vec2-bert",)
TITLE = "w2v-BERT 2.0"

_KEYS: dict[type, str] = {
    int: "hidden_size num_hidden_layers num_attention_heads intermediate_size feature_projection_input_dim "
    "conv_depthwise_kernel_size left_max_position_embeddings right_max_position_embeddings adapter_kernel_size "
    "adapter_stride num_adapter_layers output_hidden_size",
    float: "layer_norm_eps",
    bool: "add_adapter use_intermediate_ffn_before_adapter",
    str: "hidden_act adapter_act position_embeddings_type",
}
# What only training uses is off: then the module has no tensors of it, either.
_INFERENCE = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}


def load(files: CheckpointFiles) -> Original:
    """The encoder in these files. Raises InputError for one that is not as the released models are."""
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    file = files.folder / "config.json"
    given = {k: v for k, v in files.config.items() if v is not None or k != "output_hidden_size"}
    config = configured(file, Wav2Vec2BertConfig, known_keys(file, given, _KEYS) | _INFERENCE)
    wanted = {
        "position_embeddings_type": ("relative_key",),
        "hidden_act": ACTIVATIONS,
        "adapter_act": ACTIVATIONS,
        "output_hidden_size": (config.hidden_size,),
    }
    check_settings(file, config, wanted)
    check_stacked_extractor(files, config.feature_projection_input_dim)
    mark = "feature_projection.projection.weight"
    _, state = tensors_below(files.folder, files.tensors, ("wav2vec2_bert.", ""), mark, TITLE)
    state.pop("masked_spec_embed", None)  # what training puts in place of frames that it hides
    check_floats(files.folder, state)
    stated = {"num_hidden_layers": config.num_hidden_layers}
    check_stated(files.folder, stated, {"num_hidden_layers": count_blocks(state, "encoder.layers.")})
    module = load_module(files.folder, lambda: Wav2Vec2BertModel(config), state, TITLE)
    shape = ConformerShape(
        names=NAMES,
        layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        heads=config.num_attention_heads,
        feed_forward=config.intermediate_size,
        kernel=config.conv_depthwise_kernel_size,
        positions="relative_key",
        causal=True,
        batch_norm=False,
        activation=config.hidden_act,
        epsilon=config.layer_norm_eps,
        left=config.left_max_position_embeddings,
        right=config.right_max_position_embeddings,
    )
    ending = Ending(
        feed_forward=config.use_intermediate_ffn_before_adapter,
        adapters=config.num_adapter_layers if config.add_adapter else 0,
        kernel=config.adapter_kernel_size,
        stride=config.adapter_stride,
        activation=config.adapter_act,
    )
    width = config.feature_projection_input_dim
    return StackedBankConformer(TITLE, module, shape, ending, width, config.layer_norm_eps)
