"""What an exit costs: size, arithmetic, and the seconds that were measured."""

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from voxstrata.early_exit.checkpoint import Transcriber
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.fold_norm import widened
from voxstrata.encoders.context import Context
from voxstrata.engine.budget import EncoderSize

COSTS_SCHEMA = pa.schema([
    ("after", pa.int32()), ("norm", pa.string()), ("parameters", pa.int64()), ("bytes", pa.int64()),
    ("encoder_flops", pa.int64()), ("decoder_flops", pa.float64()), ("tokens", pa.float64()),
    ("encoder_seconds", pa.float64()), ("decoder_seconds", pa.float64()),
])  # fmt: skip
_FLOAT32 = 4


def exit_costs(transcriber: Transcriber, scores: pa.Table) -> pa.Table:
    """Of every exit in a table of `score`, a row (COSTS_SCHEMA).

    parameters, bytes: of the checkpoint that `write` makes of it; bytes are of the tensors. Norms that `write` has no
    checkpoint for count as those with the LayerNorm. encoder_flops: of one window of 30 s. decoder_flops: of one
    transcript, for the mean number of tokens: keys and values of the window, prompt and tokens; the token embeddings
    are looked up. A multiplication and an addition are two. encoder_seconds, decoder_seconds: means over transcripts,
    by the clock, as they were made: batches of one encoder pass and of shared steps, shared out equally. Null where
    states came from a store.
    """
    config = transcriber.model.config
    stored = transcriber.model.dtype.itemsize
    columns = {name: scores[name].to_pylist() for name in ("after", "norm", *_MEANS)}
    held: dict[EarlyExit, dict[str, list[Any]]] = {}
    for i, at in enumerate(map(EarlyExit, columns["after"], columns["norm"])):
        for name, into in held.setdefault(at, {name: [] for name in _MEANS}).items():
            into.append(columns[name][i])
    rows = []
    for at, values in sorted(held.items(), key=lambda item: item[0].rank):
        means = {name: None if None in found else float(np.mean(found)) for name, found in values.items()}
        cut = copy.deepcopy(config)
        cut.encoder_layers = cut.num_hidden_layers = at.after
        wide = widened(cut) if at.norm == "without" else cut
        linear = config.d_model**2 if at.norm == "mapped" else 0
        parameters = count_parameters(wide) + linear + (config.d_model if linear else 0)
        frames = config.max_source_positions
        size = EncoderSize(at.after, config.d_model, config.encoder_ffn_dim, config.num_mel_bins, 0)
        rows.append(
            {**asdict(at), "parameters": parameters,
             "bytes": parameters * (_FLOAT32 if at.norm == "without" else stored),
             "encoder_flops": size.window_flops(frames, Context("padded")) + 2 * frames * linear,
             "decoder_flops": decoder_flops(config, means["tokens"] or 0.0)} | means
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=COSTS_SCHEMA)


_MEANS = ("tokens", "encoder_seconds", "decoder_seconds")
_PROMPT = 4  # tokens


def count_parameters(config: WhisperConfig) -> int:
    """Of a whole Whisper of this configuration; what is tied counts once."""
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def decoder_flops(config: WhisperConfig, tokens: float) -> float:
    """Of one transcript of so many tokens after a prompt of 4; a multiplication and an addition are two.

    Logits are of the first token (no speech), of each token and of the end.
    """
    d, layers, frames, steps = config.d_model, config.decoder_layers, config.max_source_positions, tokens + _PROMPT
    memory = 2 * 2 * frames * d**2 * layers  # keys and values
    weights = 2 * (6 * d**2 + 2 * d * config.decoder_ffn_dim) * layers
    looked_at = 2 * 2 * d * (frames + (steps + 1) / 2) * layers  # logits and sums over frames and earlier tokens
    return float(memory + steps * (weights + looked_at) + (tokens + 2) * 2 * d * config.vocab_size)
