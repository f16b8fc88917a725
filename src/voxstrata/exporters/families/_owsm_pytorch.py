"""OWSM's encoders in PyTorch, from ESPnet's tensors by ESPnet's names: what the graphs are held against.

Written from ESPnet's modules (`espnet2.asr.frontend.default`, `espnet2.asr.encoder.e_branchformer_encoder`,
`e_branchformer_ctc_encoder`, `espnet2.s2t.espnet_ctc_model`), which are not imported. The tests hold it against those.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from voxstrata.exporters.families._owsm_settings import OwsmSettings
from voxstrata.exporters.filter_bank import ESPNET_FLOOR, FFT, HOP

LAYER_NORM_EPS = 1e-12  # ESPnet's

Tensors = Mapping[str, torch.Tensor]


def owsm_log_mel(t: Tensors, win_length: int, audio: torch.Tensor) -> torch.Tensor:
    """Normalised log-mel [batch, time, n_mels] of samples [batch, samples]."""
    window = torch.hann_window(win_length)
    spectrum = torch.stft(audio, FFT, HOP, win_length, window=window, return_complex=True)
    power = spectrum.real**2 + spectrum.imag**2
    mel = (power.mT @ t["frontend.logmel.melmat"]).clamp(min=ESPNET_FLOOR).log()
    return (mel - t["normalize.mean"]) / t["normalize.std"]


def owsm_states(t: Tensors, settings: OwsmSettings, features: torch.Tensor) -> list[torch.Tensor]:
    """Every output [batch, frames, d_model] in depth order, of normalised log-mel [batch, time, n_mels]."""
    x, skipped, memory = _subsampled(t, settings, features), 0, None
    if settings.prompt is not None:
        language, task, _ = settings.prompt.ids
        prefix = _projected(t, "embed_proj", t["embed.weight"][[language, task]])
        x, skipped = torch.cat([prefix.expand(len(x), -1, -1), x], 1), 2
        memory = prompt_states(t, settings)
    x = with_positions(x)
    states = [x]
    for k in range(settings.blocks.layers):
        x = _block(t, settings, x, f"encoder.encoders.{k}", memory)
        states.append(x)
        if k + 1 in settings.conditioned:
            said = linear(t, "ctc.ctc_lo", x).softmax(-1)
            x = x + linear(t, "encoder.conditioning_layer", said)
    return [state[:, skipped:] for state in (*states, layer_norm(t, "encoder.after_norm", x))]


def prompt_states(t: Tensors, settings: OwsmSettings) -> torch.Tensor:
    """What cross-attention attends to, [1, 1, d_model]: the encoder of the text before, of which there is none."""
    assert settings.prompt is not None
    x = with_positions(t["embed.weight"][settings.prompt.ids[2]][None, None])
    for k in range(settings.prompt.encoder.layers):
        m = f"prompt_encoder.encoders.{k}"
        y = layer_norm(t, f"{m}.norm1", x)
        x = x + attention(t, f"{m}.self_attn", settings.prompt.encoder.heads, y, y)
        y = linear(t, f"{m}.feed_forward.w_1", layer_norm(t, f"{m}.norm2", x)).relu()
        x = x + linear(t, f"{m}.feed_forward.w_2", y)
    return _projected(t, "prompt_proj", layer_norm(t, "prompt_encoder.after_norm", x))


def positions(frames: int, d_model: int) -> torch.Tensor:
    """Sines and cosines [frames, d_model], in turn."""
    rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / d_model))
    angle = torch.arange(0, frames, dtype=torch.float32)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def with_positions(x: torch.Tensor) -> torch.Tensor:
    """[batch, time, d_model], scaled by the root of d_model before positions are added."""
    return x * math.sqrt(x.shape[-1]) + positions(x.shape[1], x.shape[2])


def linear(t: Tensors, module: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, t[f"{module}.weight"], t[f"{module}.bias"])


def layer_norm(t: Tensors, module: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], t[f"{module}.weight"], t[f"{module}.bias"], LAYER_NORM_EPS)


def attention(t: Tensors, module: str, heads: int, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Of x [batch, time, d_model] to what is seen [batch or 1, keys, d_model]."""
    seen = seen.expand(len(x), -1, -1)
    parts = (linear(t, f"{module}.linear_{n}", y) for n, y in (("q", x), ("k", seen), ("v", seen)))
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in parts)
    joined = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return linear(t, f"{module}.linear_out", joined.transpose(1, 2).flatten(2))


def _projected(t: Tensors, module: str, x: torch.Tensor) -> torch.Tensor:
    """From the prompt's width to the encoder's; where they are one there is no such module."""
    return linear(t, module, x) if f"{module}.weight" in t else x


def _subsampled(t: Tensors, settings: OwsmSettings, features: torch.Tensor) -> torch.Tensor:
    x = features[:, None]
    for i in range(settings.convolutions):
        x = F.conv2d(x, t[f"encoder.embed.conv.{2 * i}.weight"], t[f"encoder.embed.conv.{2 * i}.bias"], stride=2).relu()
    return linear(t, settings.embed_out, x.transpose(1, 2).flatten(2))


def _block(t: Tensors, settings: OwsmSettings, x: torch.Tensor, m: str, memory: torch.Tensor | None) -> torch.Tensor:
    x = x + 0.5 * _feed_forward(t, f"{m}.feed_forward_macaron", layer_norm(t, f"{m}.norm_ff_macaron", x))
    y = layer_norm(t, f"{m}.norm_mha", x)
    both = torch.cat(
        [attention(t, f"{m}.attn", settings.blocks.heads, y, y), _gating(t, m, layer_norm(t, f"{m}.norm_mlp", x))], -1
    )
    merged = both + _over_time(t, f"{m}.depthwise_conv_fusion", both)
    x = x + linear(t, f"{m}.merge_proj", merged)
    x = x + 0.5 * _feed_forward(t, f"{m}.feed_forward", layer_norm(t, f"{m}.norm_ff", x))
    if memory is not None and f"{m}.norm_cross_attn.weight" in t:
        y = layer_norm(t, f"{m}.norm_cross_attn", x)
        x = x + attention(t, f"{m}.cross_attn", settings.blocks.heads, y, memory)
    return layer_norm(t, f"{m}.norm_final", x)


def _feed_forward(t: Tensors, module: str, x: torch.Tensor) -> torch.Tensor:
    return linear(t, f"{module}.w_2", F.silu(linear(t, f"{module}.w_1", x)))


def _gating(t: Tensors, m: str, x: torch.Tensor) -> torch.Tensor:
    """The branch beside attention: one half of the channels, times the other half convolved over time."""
    kept, gate = F.gelu(linear(t, f"{m}.cgmlp.channel_proj1.0", x)).chunk(2, -1)
    gate = _over_time(t, f"{m}.cgmlp.csgu.conv", layer_norm(t, f"{m}.cgmlp.csgu.norm", gate))
    return linear(t, f"{m}.cgmlp.channel_proj2", kept * gate)


def _over_time(t: Tensors, module: str, x: torch.Tensor) -> torch.Tensor:
    """Each channel's own convolution."""
    weight = t[f"{module}.weight"]
    padding, groups = (weight.shape[-1] - 1) // 2, len(weight)
    return F.conv1d(x.mT, weight, t[f"{module}.bias"], padding=padding, groups=groups).mT
