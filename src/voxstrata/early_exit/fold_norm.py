"""A Whisper model whose encoder ends without its final LayerNorm, as weights for the unchanged architecture.

transformers' Whisper always applies `encoder.layer_norm`, and no weight and bias make a LayerNorm the identity: it
divides every frame by its own standard deviation and removes the frame's mean. The identity is reached by widening the
model, d → D = d + z, where the z added channels are ours:

1. Constants ±C in added channels, put there by the last block's bias, dwarf the frame's own variance. The final
   LayerNorm then divides every frame by all but the same number, which its weight multiplies back:
   relative error d·var(x) / (2·n·C²), n the number of constant channels.
2. The mean that every LayerNorm removes travels in two added channels as ±δ·mean(x), from which the decoder's
   cross-attention, being linear, adds it back. So that these channels stay the only trace of the mean, all that the
   blocks add to the residual stream is centred, which no LayerNorm sees; the output of the convolutions, centred by
   no weight as it comes out of a GELU, is centred by one inserted block (linear: gelu(u) - gelu(-u) = u).
3. Elsewhere the widened LayerNorms see the statistics of the narrow ones times √(d / D), which goes into their weights.

The decoder is widened alike, each row of the residual stream continued by its own mean, which changes no LayerNorm.
"""

import copy
import math
from functools import partial

import torch
from transformers import WhisperConfig

State = dict[str, torch.Tensor]

CONSTANT = 2.0**15  # C; the largest power of two that float16 holds
MEAN_SCALE = 2.0**-7  # δ; adds 2·δ²·mean² / d to a variance: under 1e-6 of it in whisper-base
MIN_ADDED = 4  # two channels carry the mean, two at least the constants


def fold_away_final_norm(state: State, config: WhisperConfig) -> tuple[State, WhisperConfig]:
    """Widen a whole model so that its encoder returns the residual stream as the final LayerNorm's input has it.

    state: `WhisperForConditionalGeneration`'s tensors, any float dtype; returned as float32 with one more encoder
    block, config likewise. The encoder's output [batch, frames, D] holds x - mean(x) in the first d channels and
    ±δ·mean(x) in the next two.
    """
    wide = widened(config)
    f = _Fold({k: v.to(torch.float64) for k, v in state.items()}, config, wide.d_model - config.d_model)
    return {k: v.to(torch.float32).contiguous() for k, v in f.run().items()}, wide


def widened(config: WhisperConfig) -> WhisperConfig:
    """The configuration of `fold_away_final_norm`'s model: whole heads wider, and one encoder block longer."""
    step = math.lcm(2, config.encoder_attention_heads, config.decoder_attention_heads)  # and of an even width
    wide = copy.deepcopy(config)
    wide.d_model = config.d_model + -(-MIN_ADDED // step) * step
    wide.encoder_layers = wide.num_hidden_layers = config.encoder_layers + 1
    return wide


_zeros, _ones = (partial(make, dtype=torch.float64) for make in (torch.zeros, torch.ones))
_pad = torch.nn.functional.pad


class _Fold:
    """Builds the wide tensors, in float64, one module after the other."""

    def __init__(self, state: State, config: WhisperConfig, added: int) -> None:
        self.old, self.new, self.config = state, State(), config
        self.d, self.z = config.d_model, added
        pairs = (added - 2) // 2
        signs = [0.0, 0.0] + [1.0, -1.0] * pairs
        self.constants = CONSTANT * torch.tensor(signs, dtype=torch.float64)  # (z,)
        # standard deviation over D channels where the constants stand
        self.deviation = CONSTANT * math.sqrt(2 * pairs / (self.d + added))
        self.carrier = _zeros(added)  # what a mean of 1 becomes in the added channels
        self.carrier[:2] = torch.tensor([MEAN_SCALE, -MEAN_SCALE])

    def run(self) -> State:
        self._encoder()
        self._decoder()
        return self.new

    def _encoder(self) -> None:
        e, d, z, layers = "model.encoder", self.d, self.z, self.config.encoder_layers
        self.new[f"{e}.conv1.weight"] = _pad(self.old[f"{e}.conv1.weight"], (0, 0, 0, 0, 0, z))
        self.new[f"{e}.conv2.weight"] = _pad(self.old[f"{e}.conv2.weight"], (0, 0, 0, z, 0, z))
        for conv in ("conv1", "conv2"):
            self.new[f"{e}.{conv}.bias"] = _pad(self.old[f"{e}.{conv}.bias"], (0, z))
        positions = self.old[f"{e}.embed_positions.weight"]
        self.new[f"{e}.embed_positions.weight"] = torch.cat([positions, self.constants.expand(len(positions), z)], 1)
        self._centring_block(f"{e}.layers.0", keep_constants=layers == 0)
        for n in range(layers):
            old, new = f"{e}.layers.{n}", f"{e}.layers.{n + 1}"
            heads = self.config.encoder_attention_heads
            self._norm(f"{old}.self_attn_layer_norm", f"{new}.self_attn_layer_norm")
            self._attention(f"{old}.self_attn", f"{new}.self_attn", heads, centred=True)
            self._norm(f"{old}.final_layer_norm", f"{new}.final_layer_norm")
            self._mlp(old, new, centred=True)
            if n == layers - 1:
                self.new[f"{new}.fc2.bias"][d:] += self.constants
        self.new[f"{e}.layer_norm.weight"] = self._linear_norm()
        self.new[f"{e}.layer_norm.bias"] = _zeros(d + z)

    def _linear_norm(self) -> torch.Tensor:
        """Weight of a LayerNorm over constants: it lets d channels and the two carriers pass, minus the mean."""
        weight = _zeros(self.d + self.z)
        weight[: self.d + 2] = self.deviation
        return weight

    def _centring_block(self, new: str, keep_constants: bool) -> None:
        """x ← x - mean(x), carriers ← ±δ·mean(x), and the constants of the positions away unless the exit is here."""
        d, wide, ffn = self.d, self.d + self.z, self.config.encoder_ffn_dim
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.new[f"{new}.self_attn.{part}.weight"] = _zeros(wide, wide)
            if part != "k_proj":
                self.new[f"{new}.self_attn.{part}.bias"] = _zeros(wide)
        for norm, weight in (("self_attn_layer_norm", _ones(wide)), ("final_layer_norm", self._linear_norm())):
            self.new |= {f"{new}.{norm}.weight": weight, f"{new}.{norm}.bias": _zeros(wide)}
        mean = _zeros(wide)
        mean[:d], mean[d] = 1 / d, -1.0  # the carrier is still 0 - mean over D, so this is the mean over d
        away = torch.cat([-_ones(d), self.carrier])
        fc1, fc2 = (_zeros(s) for s in ((ffn, wide), (wide, ffn)))
        fc1[0], fc1[1] = mean, -mean
        fc2[:, 0], fc2[:, 1] = away, -away
        bias = _zeros(wide)
        if not keep_constants:
            bias[d:] = -self.constants
        self.new |= {f"{new}.fc1.weight": fc1, f"{new}.fc2.weight": fc2}
        self.new |= {f"{new}.fc1.bias": _zeros(ffn), f"{new}.fc2.bias": bias}

    def _decoder(self) -> None:
        m = "model.decoder"
        for table in ("embed_tokens", "embed_positions"):
            self.new[f"{m}.{table}.weight"] = self._rows(self.old[f"{m}.{table}.weight"].T, centred=False).T
        for n in range(self.config.decoder_layers):
            layer, heads = f"{m}.layers.{n}", self.config.decoder_attention_heads
            for attention in ("self_attn", "encoder_attn"):
                self._norm(f"{layer}.{attention}_layer_norm", f"{layer}.{attention}_layer_norm")
                self._attention(f"{layer}.{attention}", f"{layer}.{attention}", heads, centred=False)
            self._norm(f"{layer}.final_layer_norm", f"{layer}.final_layer_norm")
            self._mlp(layer, layer, centred=False)
        self._norm(f"{m}.layer_norm", f"{m}.layer_norm")
        if self.config.tie_word_embeddings:  # the added channels meet zeros: what the rows hold there does not matter
            self.new["proj_out.weight"] = self.new[f"{m}.embed_tokens.weight"]
        else:
            self.new["proj_out.weight"] = self._columns(self.old["proj_out.weight"])

    def _norm(self, old: str, new: str) -> None:
        """Channels of ours come out as 0."""
        scale = math.sqrt(self.d / (self.d + self.z))
        self.new[f"{new}.weight"] = _pad(self.old[f"{old}.weight"] * scale, (0, self.z))
        self.new[f"{new}.bias"] = _pad(self.old[f"{old}.bias"], (0, self.z))

    def _columns(self, weight: torch.Tensor, sees_encoder: bool = False) -> torch.Tensor:
        """Weight (rows, D) for inputs that are 0 in the added channels, or for the encoder's output."""
        wide = _pad(weight, (0, self.z))
        if sees_encoder:
            # carriers ±δ·mean - r, channels x - mean - r, where r is the rounding error of the LayerNorm's own mean
            total = weight.sum(1)
            wide[:, self.d] = total * (0.5 / MEAN_SCALE - 0.5)
            wide[:, self.d + 1] = total * (-0.5 / MEAN_SCALE - 0.5)
        return wide

    def _rows(self, weight: torch.Tensor, centred: bool) -> torch.Tensor:
        """Weight (D, columns) or bias (D,) of what is added to the residual stream."""
        mean = weight.mean(0, keepdim=True)
        if not centred:
            return torch.cat([weight, mean.expand(self.z, *weight.shape[1:])])
        carrier = self.carrier.reshape(-1, *[1] * (weight.ndim - 1))
        return torch.cat([weight - mean, carrier * mean])

    def _attention(self, old: str, new: str, heads: int, centred: bool) -> None:
        size, more = self.d // heads, self.z // heads

        def head_rows(t: torch.Tensor) -> torch.Tensor:  # (heads · size, …) → (heads · (size + more), …)
            t = t.reshape(heads, size, -1)
            return _pad(t, (0, 0, 0, more)).reshape(heads * (size + more), -1)

        for part in ("q_proj", "k_proj", "v_proj"):
            # the architecture divides logits by √(size + more)
            factor = math.sqrt((size + more) / size) if part == "q_proj" else 1.0
            sees_encoder = old.endswith("encoder_attn") and part != "q_proj"
            weight = self._columns(self.old[f"{old}.{part}.weight"] * factor, sees_encoder)
            self.new[f"{new}.{part}.weight"] = head_rows(weight)
            if f"{old}.{part}.bias" in self.old:
                self.new[f"{new}.{part}.bias"] = head_rows(self.old[f"{old}.{part}.bias"] * factor).flatten()
        columns = head_rows(self.old[f"{old}.out_proj.weight"].T).T
        self.new[f"{new}.out_proj.weight"] = self._rows(columns, centred)
        self.new[f"{new}.out_proj.bias"] = self._rows(self.old[f"{old}.out_proj.bias"], centred)

    def _mlp(self, old: str, new: str, centred: bool) -> None:
        self.new[f"{new}.fc1.weight"] = self._columns(self.old[f"{old}.fc1.weight"])
        self.new[f"{new}.fc1.bias"] = self.old[f"{old}.fc1.bias"]
        for part in ("weight", "bias"):
            self.new[f"{new}.fc2.{part}"] = self._rows(self.old[f"{old}.fc2.{part}"], centred)
