"""How close the encoder without its final LayerNorm, folded into wider weights, is to the residual stream.

python benchmarks/early_exit_identity.py CHECKPOINT CORPUS [--clips 2]

Prints for every k the relative L2 over all frames, and of the worst frame, both in float32. An encoder alone is
enough: a small random decoder takes the place of the missing one.
"""

from __future__ import annotations

import argparse

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from voxstrata.audio.decode import decode
from voxstrata.cli.console import aligned
from voxstrata.corpus import read_corpus
from voxstrata.early_exit.checkpoint import narrowed, shortened
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.exporters.checkpoint import load_checkpoint
from voxstrata.exporters.pytorch import hidden_states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("corpus")
    parser.add_argument("--clips", type=int, default=2)
    args = parser.parse_args()
    checkpoint, corpus = load_checkpoint(args.checkpoint), read_corpus(args.corpus)
    audio = [decode(corpus.recording(i))[: 30 * SAMPLE_RATE] for i in range(args.clips)]
    log_mel = checkpoint.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    small = {"vocab_size": 8, "decoder_layers": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = WhisperConfig.from_dict({**checkpoint.config.to_dict(), **small, "decoder_start_token_id": 1})
    config.suppress_tokens = config.begin_suppress_tokens = None
    model = WhisperForConditionalGeneration(config).eval()
    model.model.encoder.load_state_dict(checkpoint.encoder.state_dict())
    states = hidden_states(checkpoint.encoder, log_mel)
    rows = []
    for k in range(checkpoint.shape.layers + 1):
        want = states[f"layer_{k:02d}"]
        with torch.inference_mode():
            wide = shortened(model, EarlyExit(k, "without"))
            error = narrowed(wide.model.encoder(log_mel).last_hidden_state, want.shape[-1]) - want
        frames = torch.linalg.vector_norm(error, dim=-1) / torch.linalg.vector_norm(want, dim=-1)
        whole = torch.linalg.vector_norm(error) / torch.linalg.vector_norm(want)
        rows.append([str(k), f"{whole:.1e}", f"{frames.max():.1e}"])
    print(aligned(["k", "all frames", "worst frame"], rows))


if __name__ == "__main__":
    main()
