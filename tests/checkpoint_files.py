"""Whisper checkpoints in the containers and under the names that people have them in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

State = dict[str, Any]
PREFIX = "model.encoder."


def encoder_only(weights: Mapping[str, Any], prefix: str) -> State:
    return {prefix + k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}


def openai_checkpoint(weights: Mapping[str, Any], mels: int = 80) -> dict[str, Any]:
    """The encoder under OpenAI's names, written out by hand, with the dims of the tiny checkpoint."""
    e = encoder_only(weights, "")
    tensors = {
        "encoder.positional_embedding": e["embed_positions.weight"],
        "encoder.ln_post.weight": e["layer_norm.weight"],
        "encoder.ln_post.bias": e["layer_norm.bias"],
        "decoder.token_embedding.weight": torch.zeros(64, 32),
    }
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            tensors[f"encoder.{conv}.{part}"] = e[f"{conv}.{part}"]
    layers = len({k.split(".")[1] for k in e if k.startswith("layers.")})
    for n in range(layers):
        for theirs, ours in (
            ("attn.query", "self_attn.q_proj"),
            ("attn.key", "self_attn.k_proj"),
            ("attn.value", "self_attn.v_proj"),
            ("attn.out", "self_attn.out_proj"),
            ("attn_ln", "self_attn_layer_norm"),
            ("mlp.0", "fc1"),
            ("mlp.2", "fc2"),
            ("mlp_ln", "final_layer_norm"),
        ):
            for part in ("weight", "bias"):
                if theirs != "attn.key" or part == "weight":  # the key projection has no bias
                    tensors[f"encoder.blocks.{n}.{theirs}.{part}"] = e[f"layers.{n}.{ours}.{part}"]
    d = e["conv1.weight"].shape[0]
    dims = {
        "n_mels": mels, "n_vocab": 64, "n_audio_ctx": 1500, "n_audio_state": d, "n_audio_head": d // 8,
        "n_audio_layer": layers, "n_text_ctx": 32, "n_text_state": d, "n_text_head": 4, "n_text_layer": 1,
    }  # fmt: skip
    return {"dims": dims, "model_state_dict": tensors}


def sharded(folder: Path, weights: State, tiny: Path) -> str:
    from transformers import WhisperForConditionalGeneration

    WhisperForConditionalGeneration.from_pretrained(tiny).save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return str(folder)
