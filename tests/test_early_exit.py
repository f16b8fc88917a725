"""Early-exit checkpoints: any tool loads them, and they compute what they claim, with and without the LayerNorm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import sound
from test_cli import run

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration  # noqa: E402

from voxstrata.base.errors import InputError, UsageError  # noqa: E402
from voxstrata.early_exit.checkpoint import load_transcriber, narrowed, write_early_exit  # noqa: E402
from voxstrata.early_exit.exits import EarlyExit  # noqa: E402
from voxstrata.early_exit.fold_norm import fold_away_final_norm  # noqa: E402

EXITS = [EarlyExit(k, norm) for k in range(4) for norm in ("with", "without")]
NEW_TOKENS = 24
SPANISH = {"language": "es", "task": "transcribe", "max_new_tokens": NEW_TOKENS}


@pytest.fixture(scope="module")
def written(tiny_transcriber: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[EarlyExit, Path]:
    """The checkpoint of every exit."""
    root = tmp_path_factory.mktemp("exits")
    transcriber = load_transcriber(str(tiny_transcriber))
    for i, at in enumerate(EXITS):
        write_early_exit(transcriber, root / str(i), at)
    return {at: root / str(i) for i, at in enumerate(EXITS)}


@pytest.fixture(scope="module")
def log_mel(tiny_transcriber: Path) -> Any:
    extractor = WhisperFeatureExtractor.from_pretrained(tiny_transcriber)
    return extractor([sound(2.0, 1), sound(7.0, 5)], sampling_rate=16_000, return_tensors="pt")["input_features"]


@pytest.fixture(scope="module")
def states(tiny_model: Path, tiny_transcriber: Path, log_mel: Any) -> dict[EarlyExit, Any]:
    """What each exit hands to the decoder, from our graph of the original encoder; the LayerNorm in float64."""
    session = ort.InferenceSession(tiny_model / "encoder_model.onnx")
    weights = load_file(tiny_transcriber / "model.safetensors")
    gain, bias = (weights[f"model.encoder.layer_norm.{p}"].double().numpy() for p in ("weight", "bias"))
    found = {}
    for at in EXITS:
        (x,) = session.run([f"layer_{at.after:02d}"], {"log_mel": log_mel.numpy()})
        if at.norm == "with":
            y = x.astype(np.float64)
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
            x = (y * gain + bias).astype(np.float32)
        found[at] = torch.from_numpy(x)
    return found


def plain_loop(original: Any, states: Any) -> list[list[int]]:
    """Greedy decoding written out: one token after the other through the original's decoder, nothing cached."""
    g = original.generation_config
    prefix = [g.decoder_start_token_id, g.lang_to_id["<|es|>"], g.task_to_id["transcribe"], g.no_timestamps_token_id]
    sequences = []
    for state in states:
        tokens: list[int] = []
        while len(tokens) < NEW_TOKENS and (not tokens or tokens[-1] != g.eos_token_id):
            with torch.inference_mode():
                hidden = original.model.decoder(
                    input_ids=torch.tensor([prefix + tokens]), encoder_hidden_states=state[None], use_cache=False
                ).last_hidden_state
                logits = original.proj_out(hidden)[0, -1]
                logits[g.suppress_tokens] = -torch.inf
                if not tokens:
                    logits[g.begin_suppress_tokens] = -torch.inf
            tokens.append(int(logits.argmax()))
        sequences.append([t for t in tokens if t != g.eos_token_id])
    return sequences


def generated(model: Any, log_mel: Any) -> list[list[int]]:
    """Each sequence up to its first end of text, which `generate` does not always return."""
    end = model.generation_config.eos_token_id
    rows = model.generate(log_mel, **SPANISH).tolist()
    rows = [[t for t in row if t not in range(257, 267)] for row in rows]  # transformers 4 leaves the prefix out, 5 not
    return [row[: row.index(end)] if end in row else row for row in rows]


@pytest.mark.parametrize("at", EXITS, ids=str)
def test_tokens_equal_those_of_a_plain_loop_over_our_graph(
    at: EarlyExit, written: dict[EarlyExit, Path], states: dict[EarlyExit, Any], tiny_transcriber: Path, log_mel: Any
) -> None:
    original = WhisperForConditionalGeneration.from_pretrained(tiny_transcriber).eval()
    assert generated(WhisperForConditionalGeneration.from_pretrained(written[at]), log_mel) == plain_loop(
        original, states[at]
    )


def test_every_exit_says_something_else(
    states: dict[EarlyExit, Any], tiny_transcriber: Path, written: dict[EarlyExit, Path]
) -> None:
    """Or the test above would pass with the wrong layer."""
    original = WhisperForConditionalGeneration.from_pretrained(tiny_transcriber).eval()
    said = [tuple(map(tuple, plain_loop(original, states[at]))) for at in EXITS]
    assert len(set(said)) == len(EXITS)
    assert all(a != b for a, b in said)  # and the decoder listens: two sounds, two texts


def test_the_last_exit_with_the_norm_is_the_original(tiny_transcriber: Path, written: dict[EarlyExit, Path]) -> None:
    old, new = (load_file(f / "model.safetensors") for f in (tiny_transcriber, written[EarlyExit(3)]))
    assert sorted(old) == sorted(new)
    assert all(torch.equal(old[k], new[k]) for k in old)
    configs = [json.loads((f / "config.json").read_text()) for f in (tiny_transcriber, written[EarlyExit(3)])]
    moved = [config.pop("max_length", None) for config in configs]  # by transformers, to the settings of generation
    assert moved == [64, None]
    assert json.loads((written[EarlyExit(3)] / "generation_config.json").read_text())["max_length"] == 64
    assert configs[0] == configs[1]


def test_with_the_norm_the_tensors_are_the_originals(tiny_transcriber: Path, written: dict[EarlyExit, Path]) -> None:
    old, new = (load_file(f / "model.safetensors") for f in (tiny_transcriber, written[EarlyExit(1)]))
    assert {k for k in old if not k.startswith(("model.encoder.layers.1.", "model.encoder.layers.2."))} == set(new)
    assert all(torch.equal(old[k], v) for k, v in new.items())


@pytest.mark.parametrize("after", range(4))
def test_without_the_norm_the_decoder_sees_the_residual_stream(
    after: int, written: dict[EarlyExit, Path], states: dict[EarlyExit, Any], tiny_transcriber: Path, log_mel: Any
) -> None:
    at = EarlyExit(after, "without")
    original = WhisperForConditionalGeneration.from_pretrained(tiny_transcriber).eval()
    wide = WhisperForConditionalGeneration.from_pretrained(written[at]).eval()
    ids = torch.tensor([[257, 5, 80, 200, 31]] * 2)
    with torch.inference_mode():
        seen = wide.model.encoder(log_mel).last_hidden_state
        got = wide(encoder_outputs=(seen,), decoder_input_ids=ids).logits
        want = original(encoder_outputs=(states[at],), decoder_input_ids=ids).logits
        other = original(encoder_outputs=(states[EarlyExit(after)],), decoder_input_ids=ids).logits
    error = (narrowed(seen, 32) - states[at]).norm(dim=-1) / states[at].norm(dim=-1)
    assert error.max() < 1e-4  # the worst frame
    assert (got - want).norm() < 1e-3 * want.norm()  # the decoder's loud attention magnifies rounding
    assert (other - want).norm() > 0.1 * want.norm()  # the LayerNorm does matter here
    card = json.loads((written[at] / "early_exit.json").read_text())
    assert card["after"] == after
    assert card["relative_l2"] < 1e-5
    assert card["added_channels"] == wide.config.d_model - 32 == 4


@pytest.mark.parametrize(("d", "encoder_heads", "decoder_heads"), [(32, 1, 1), (40, 5, 5), (24, 2, 3)])
def test_folding_takes_any_number_of_heads(d: int, encoder_heads: int, decoder_heads: int) -> None:
    torch.manual_seed(d)
    config = WhisperConfig(
        vocab_size=50, d_model=d, encoder_layers=2, decoder_layers=2, encoder_attention_heads=encoder_heads,
        decoder_attention_heads=decoder_heads, encoder_ffn_dim=48, decoder_ffn_dim=56, num_mel_bins=80,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" not in name or "decoder" in name:
                p.normal_(1.0 if name.endswith("norm.weight") else 0.1, 0.3)  # means that are not zero
    state, wide_config = fold_away_final_norm(model.state_dict(), config)
    wide = WhisperForConditionalGeneration(wide_config).eval()
    wide.load_state_dict(state)
    log_mel, ids = torch.rand(1, 80, 3000) * 2 - 1, torch.tensor([[1, 7, 3]])
    with torch.inference_mode():
        got = wide(input_features=log_mel, decoder_input_ids=ids).logits
        model.model.encoder.layer_norm = torch.nn.Identity()
        want = model(input_features=log_mel, decoder_input_ids=ids).logits
    assert (got - want).norm() < 1e-4 * want.norm()


def test_the_folded_checkpoint_runs_in_float16(
    written: dict[EarlyExit, Path], states: dict[EarlyExit, Any], tiny_transcriber: Path, log_mel: Any
) -> None:
    """No constant of ours overflows, and the difference is what float16 costs the original too."""
    at, ids = EarlyExit(2, "without"), torch.tensor([[257, 5, 80]] * 2)
    half = WhisperForConditionalGeneration.from_pretrained(written[at], dtype=torch.float16).eval()
    original = WhisperForConditionalGeneration.from_pretrained(tiny_transcriber).eval()
    with torch.inference_mode():
        got = half(input_features=log_mel.half(), decoder_input_ids=ids).logits.float()
        want = original(encoder_outputs=(states[at],), decoder_input_ids=ids).logits
    assert (got - want).norm() < 0.05 * want.norm()


def test_tokenizer_and_settings_come_along(tiny_transcriber: Path, written: dict[EarlyExit, Path]) -> None:
    for at in (EarlyExit(1), EarlyExit(1, "without")):
        tokenizer = AutoTokenizer.from_pretrained(written[at])
        assert tokenizer.decode(tokenizer("¿Qué?").input_ids, skip_special_tokens=True) == "¿Qué?"
        old, new = (json.loads((f / "generation_config.json").read_text()) for f in (tiny_transcriber, written[at]))
        assert old == new


def test_a_float16_checkpoint_stays_float16_with_the_norm(tiny_transcriber: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_transcriber, half)
    save_file(
        {k: v.half() for k, v in load_file(half / "model.safetensors").items()},
        half / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    for at, dtype in ((EarlyExit(1), torch.float16), (EarlyExit(1, "without"), torch.float32)):
        write_early_exit(str(half), tmp_path / str(at), at)
        assert {v.dtype for v in load_file(tmp_path / str(at) / "model.safetensors").values()} == {dtype}


def test_the_command_writes_a_checkpoint(
    tiny_transcriber: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("early-exit", "write", tiny_transcriber, "-k", 2, "--no-final-norm", "-o", tmp_path / "two")
    assert run(*arguments, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["card"] == json.loads((tmp_path / "two" / "early_exit.json").read_text())
    assert run(*arguments) == 3  # exists already
    assert run(*arguments[:4], 4, "-o", tmp_path / "four") == 2
    assert "give 0 to 3" in capsys.readouterr().err


@pytest.mark.parametrize("after", [-1, 4])
def test_a_block_that_is_not_there(after: int, tiny_transcriber: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"no block {after} .* give 0 to 3"):
        write_early_exit(str(tiny_transcriber), tmp_path / "x", EarlyExit(after))
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_without_decoder(tiny_transcriber: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_transcriber, bare)
    weights = {k: v for k, v in load_file(bare / "model.safetensors").items() if ".encoder." in k}
    save_file(weights, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="bare: the checkpoint holds no decoder"):
        write_early_exit(str(bare), tmp_path / "x", EarlyExit(1))


def test_an_openai_file_and_an_existing_target(tiny_transcriber: Path, tmp_path: Path) -> None:
    (tmp_path / "base.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"base\.pt: a file, .*convert_openai_to_hf"):
        write_early_exit(str(tmp_path / "base.pt"), tmp_path / "x", EarlyExit(1))
    with pytest.raises(InputError, match="exists already"):
        write_early_exit(str(tiny_transcriber), tmp_path, EarlyExit(1))


# ---- real weights: an encoder without a decoder, so a random one listens


@pytest.mark.real
@pytest.mark.parametrize("after", [0, 3, 6])
def test_the_real_encoder_without_norm_is_its_residual_stream(after: int, shared: Path, tmp_path: Path) -> None:
    """whisper-base: the written encoder against our own float64 encoder, on speech; and the tokens of both ways."""
    from hf_reference import Reference
    from transcribers import write_transcriber

    from voxstrata.audio.decode import decode

    folder = write_transcriber(tmp_path / "whole", shared / "whisper-base-encoder", heads=8)
    at = EarlyExit(after, "without")
    card = write_early_exit(str(folder), tmp_path / "out", at)
    assert card.relative_l2 < 1e-4
    wide = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    original = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    reference = Reference(shared / "whisper-base-encoder")
    clip = sorted((shared / "prompts" / "es").glob("*.flac"))[3]
    x = reference.log_mel(decode(clip))
    want = torch.from_numpy(reference.forward(x)[f"layer_{after:02d}"]).float()[None]
    with torch.inference_mode():
        got = narrowed(wide.model.encoder(x).last_hidden_state, 512)
    assert (got - want).norm() < 5e-5 * want.norm()
    assert generated(wide, x) == plain_loop(original, want)
