"""Whatever a stranger's configuration says, every family refuses it with a reason, and makes nothing of its sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from voxstrata.base.errors import InputError  # noqa: E402
from voxstrata.exporters.families import family_modules, family_of  # noqa: E402
from voxstrata.exporters.original import CheckpointFiles, FamilyModule  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "encoders.md"
KINDS = [(module, kind) for module in family_modules() for kind in module.MODEL_TYPES]
# names that configurations of speech encoders have, in transformers and in ESPnet
_TEXT = """
hidden_size num_hidden_layers num_attention_heads intermediate_size d_model encoder_layers encoder_attention_heads
encoder_ffn_dim num_mel_bins max_source_positions conv_dim conv_stride conv_kernel feat_extract_norm
do_stable_layer_norm num_feat_extract_layers feature_size num_conv_layers input_feat_per_channel input_channels
conv_kernel_sizes position_embeddings_type left_max_position_embeddings speech_encoder_layers
speech_encoder_attention_heads subsampling_factor subsampling_conv_channels conv_kernel_size activation_function
hidden_act output_size num_blocks attention_heads linear_units cgmlp_linear_units encoder encoder_conf frontend
frontend_conf normalize normalize_conf token_list sampling_rate feature_extractor_type
"""
NAMES = _TEXT.split()
PARTS = ("audio_config", "encoder_config", "speech_encoder", "encoder", "config")
VALUES: dict[str, Any] = {
    "huge": 10**9, "negative": -1, "zero": 0, "text": "x", "a fraction": 0.5, "null": None, "true": True,
    "a list": [[1]], "a mapping": {"a": {"b": 1}}, "beyond floats": 10**400,
}  # fmt: skip


@pytest.mark.parametrize("module, kind", KINDS, ids=[kind for _, kind in KINDS])  # noqa: PT006
def test_hostile_settings_are_refused_with_a_reason(module: FamilyModule, kind: str, tmp_path: Path) -> None:
    tensors = {"conv1.weight": torch.zeros(2, 2, 3), "encoder.layers.0.fc1.weight": torch.zeros(2)}
    for what, value in [("nothing", None), *VALUES.items()]:
        settings = {} if what == "nothing" else dict.fromkeys(NAMES, value)
        for nested in (False, True):
            config = dict.fromkeys(PARTS, settings) if nested else settings
            files = CheckpointFiles("x", None, tmp_path, config | {"model_type": kind}, dict(settings), tensors)
            with pytest.raises(InputError) as e:
                module.load(files)
            assert str(tmp_path) in str(e.value), f"{what}: the message names no file"
            assert len(str(e.value)) < 700, f"{what}: the message is long"
            assert "\n" not in str(e.value)


def test_a_model_type_is_of_one_family() -> None:
    kinds = [kind for _, kind in KINDS]
    assert len(kinds) == len(set(kinds))
    assert all(family_of(kind) is module for module, kind in KINDS)
    assert [family_of(kind) for kind in (None, "whisper", 5, [], {})] == [None] * 5


def test_the_docs_list_every_family() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [kind for _, kind in KINDS if f"`{kind}`" not in page] == []
