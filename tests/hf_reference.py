"""References for the engine: Hugging Face's encoder, and an encoder in float64 written from the paper's formulas.

Neither shares code with the package; both load the weights themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

WINDOW = 480_000  # samples
Array = np.ndarray[Any, Any]
# Extra keys for one layer: key and value (heads, keys, head_dim), bias (heads, keys).
Extra = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class Reference:
    """The encoder of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        config = WhisperConfig(**json.loads((folder / "config.json").read_text()))
        tensors = load_file(folder / "model.safetensors")
        self.state = {k.removeprefix("model.encoder."): v for k, v in tensors.items() if ".encoder." in k}
        self.state = {k: v.to(torch.float32) for k, v in self.state.items()}
        self.encoder = WhisperEncoder(config).eval()
        self.encoder.load_state_dict(self.state)
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
        self.heads = config.encoder_attention_heads
        self.layers = config.encoder_layers

    def log_mel(self, audio: Array) -> torch.Tensor:
        """Log-mel (1, n_mels, 3000) of at most 30 s, padded."""
        return self.extractor(audio, sampling_rate=16_000, return_tensors="pt")["input_features"]

    def padded(self, audio: Array) -> dict[str, Array]:
        """Every output of a recording of any length, (frames, d_model): windows of 30 s, each padded and encoded."""
        parts: dict[str, list[Array]] = {}
        for begin in range(0, len(audio), WINDOW):
            window = audio[begin : begin + WINDOW]
            last: list[torch.Tensor] = []
            hook = self.encoder.layer_norm.register_forward_pre_hook(
                lambda _, args, last=last: last.append(args[0])  # layer_L: output_hidden_states leaves it out
            )
            with torch.inference_mode():
                states = self.encoder(self.log_mel(window), output_hidden_states=True).hidden_states
            hook.remove()
            named = {f"layer_{k:02d}": s for k, s in enumerate(states[:-1])}
            named |= {f"layer_{self.layers:02d}": last[0], "final": states[-1]}
            for name, state in named.items():
                parts.setdefault(name, []).append(state[0, : -(-len(window) // 320)].numpy())
        return {name: np.concatenate(p) for name, p in parts.items()}

    def forward(self, log_mel: torch.Tensor, extra: Extra | None = None) -> dict[str, Array]:
        """Every output (m, d_model) of log-mel (1, n_mels, 2·m) in float64; `extra` keys follow the computed ones."""
        w = {k: v.double() for k, v in self.state.items()}
        x = F.gelu(F.conv1d(log_mel.double(), w["conv1.weight"], w["conv1.bias"], padding=1))
        x = F.gelu(F.conv1d(x, w["conv2.weight"], w["conv2.bias"], padding=1, stride=2))[0].T
        m, d = x.shape
        x = x + w["embed_positions.weight"][:m]
        out = {"layer_00": x}
        for k in range(self.layers):
            p = f"layers.{k}"

            def split(y: torch.Tensor) -> torch.Tensor:
                return y.reshape(m, self.heads, -1).transpose(0, 1)

            h = F.layer_norm(x, (d,), w[f"{p}.self_attn_layer_norm.weight"], w[f"{p}.self_attn_layer_norm.bias"])
            query = split(h @ w[f"{p}.self_attn.q_proj.weight"].T + w[f"{p}.self_attn.q_proj.bias"])
            key = split(h @ w[f"{p}.self_attn.k_proj.weight"].T)
            value = split(h @ w[f"{p}.self_attn.v_proj.weight"].T + w[f"{p}.self_attn.v_proj.bias"])
            bias = torch.zeros(self.heads, m, dtype=torch.float64)
            if extra is not None:
                key, value = torch.cat([key, extra[k][0]], 1), torch.cat([value, extra[k][1]], 1)
                bias = torch.cat([bias, extra[k][2]], 1)
            logits = query @ key.transpose(1, 2) / (d / self.heads) ** 0.5 + bias[:, None]
            attended = (torch.softmax(logits, -1) @ value).transpose(0, 1).reshape(m, d)
            x = x + attended @ w[f"{p}.self_attn.out_proj.weight"].T + w[f"{p}.self_attn.out_proj.bias"]
            h = F.layer_norm(x, (d,), w[f"{p}.final_layer_norm.weight"], w[f"{p}.final_layer_norm.bias"])
            h = F.gelu(h @ w[f"{p}.fc1.weight"].T + w[f"{p}.fc1.bias"])
            x = x + h @ w[f"{p}.fc2.weight"].T + w[f"{p}.fc2.bias"]
            out[f"layer_{k + 1:02d}"] = x
        out["final"] = F.layer_norm(x, (d,), w["layer_norm.weight"], w["layer_norm.bias"])
        return {name: s.numpy() for name, s in out.items()}


def cached_keys(silence: Mapping[str, Array], m: int) -> Extra:
    """Keys for the positions m … 1499 of a silence cache (the arrays of silence.npz), group by group, in float64.

    Where the cache has buckets, those of the nearest one, for as many positions as are left.
    """
    if "buckets" in silence:
        bucket = min(silence["buckets"].tolist(), key=lambda b: abs(b - m))
        at = silence["buckets"].tolist().index(bucket)
        key, value, bias = (torch.from_numpy(silence[n][at].astype(np.float64)) for n in ("key", "value", "bias"))
        if m == 1500:
            key, value, bias = key[:, :, :0], value[:, :, :0], bias[:, :, :0]
        return list(zip(key, value, bias + np.log(max(1500 - m, 1) / (1500 - bucket)), strict=True))
    first = int(silence["first"])
    layers = []
    for k in range(len(silence["key"])):
        key, value = (torch.from_numpy(silence[n][k][:, m - first :].astype(np.float64)) for n in ("key", "value"))
        if "group" not in silence:
            layers.append((key, value, torch.zeros(key.shape[:2], dtype=torch.float64)))
            continue
        heads, groups = len(key), int(silence["group"].max()) + 1
        keys, values = (torch.zeros(heads, groups, key.shape[2], dtype=torch.float64) for _ in range(2))
        bias = torch.full((heads, groups), -torch.inf, dtype=torch.float64)
        for h in range(heads):
            for g in range(groups):
                members = torch.from_numpy(silence["group"][k][h, m - first :] == g)
                if members.any():
                    keys[h, g], values[h, g] = key[h][members].mean(0), value[h][members].mean(0)
                    bias[h, g] = np.log(int(members.sum()))
        layers.append((keys, values, bias))
    return layers


def relative_l2(a: Array, b: Array) -> float:
    """‖a - b‖ / ‖b‖ over all values."""
    assert a.shape == b.shape
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
