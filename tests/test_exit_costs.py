"""What an exit costs is what its written checkpoint holds, and what PyTorch counts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("torch")

from conftest import sound
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from voxstrata.early_exit.checkpoint import load_transcriber, spectrograms, write_early_exit
from voxstrata.early_exit.costs import decoder_flops, exit_costs
from voxstrata.early_exit.decoder import Ask, Decoder
from voxstrata.early_exit.decoding import in_float32, prompt
from voxstrata.early_exit.exits import EarlyExit
from voxstrata.early_exit.policies import GREEDY
from voxstrata.early_exit.states import encode_layers

EXITS = (EarlyExit(1, "without"), EarlyExit(1), EarlyExit(3))


def test_sizes_are_those_of_the_written_checkpoint_and_means_those_of_the_transcripts(
    tiny_transcriber: Path, tmp_path: Path
) -> None:
    source = load_transcriber(str(tiny_transcriber))
    rows = [
        {"after": at.after, "norm": at.norm, "tokens": n + at.after, "decoder_seconds": 0.5 * n,
         "encoder_seconds": None if at.after == 3 else 1.0 + n}
        for n in (0, 2) for at in EXITS
    ]  # fmt: skip
    schema = pa.schema([("after", pa.int32()), ("norm", pa.string()), ("tokens", pa.int32())])
    schema = schema.append(pa.field("decoder_seconds", pa.float64())).append(pa.field("encoder_seconds", pa.float64()))
    found = exit_costs(source, pa.Table.from_pylist(rows, schema)).to_pylist()
    assert [EarlyExit(r["after"], r["norm"]) for r in found] == list(EXITS)
    assert [r["tokens"] for r in found] == [2, 2, 4]
    assert [r["encoder_seconds"] for r in found] == [2.0, 2.0, None]
    assert [r["decoder_seconds"] for r in found] == [0.5, 0.5, 0.5]
    for r, at in zip(found, EXITS, strict=True):
        write_early_exit(source, tmp_path / str(at), at)
        tensors = load_file(tmp_path / str(at) / "model.safetensors").values()
        assert r["parameters"] == sum(t.numel() for t in tensors)
        assert r["bytes"] == sum(t.numel() * t.itemsize for t in tensors)


def test_operations_are_those_that_pytorch_counts(tiny_transcriber: Path) -> None:
    source = load_transcriber(str(tiny_transcriber))
    model = in_float32(source.model)
    features = spectrograms(source.encoder, [sound(0.7, 1)])
    start = prompt(model.generation_config, "<|en|>", "transcribe")
    with FlopCounterMode(display=False) as encoding, sdpa_kernel(SDPBackend.MATH):
        states = encode_layers(model, features, [1]).layers[1][0]
    (size,) = exit_costs(source, table_of(EarlyExit(1))).to_pylist()
    assert size["encoder_flops"] == encoding.get_total_flops()
    decoder = Decoder(model, GREEDY, str, new_tokens=9, stop_loops=False)
    with FlopCounterMode(display=False) as decoding, sdpa_kernel(SDPBackend.MATH):
        ((_, found),) = decoder.decode([Ask(lambda: states, start)])
    # one that is cut is not given its last token, and has no logits of an end
    tokens = len(found.ids) - (not found.ended)
    assert decoder_flops(model.config, tokens) == decoding.get_total_flops()


def table_of(at: EarlyExit) -> pa.Table:
    names = {"after": at.after, "norm": at.norm, "tokens": 1, "encoder_seconds": 1.0, "decoder_seconds": 1.0}
    return pa.Table.from_pylist([names])
