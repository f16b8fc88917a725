"""A tiny Whisper that transcribes: the tiny checkpoint's encoder, a random decoder, a tokenizer of bytes."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from voxstrata.early_exit.decoding import Transcripts
    from voxstrata.early_exit.scoring import Scoring
    from voxstrata.early_exit.transcript import Transcript

SPECIAL = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|es|>", "<|ja|>", "<|translate|>", "<|transcribe|>",
    "<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>",
)  # fmt: skip
LANGUAGES = ("en", "es", "ja")


def write_tokenizer(folder: Path) -> dict[str, int]:
    """Every byte is a token, then Whisper's special ones; returns the ids of these."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    ids = {s: int(tokenizer.token_to_id(s)) for s in SPECIAL}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    end = SPECIAL[0]
    settings = {"tokenizer_class": "WhisperTokenizer", "bos_token": end, "eos_token": end, "unk_token": end,
                "pad_token": end, "model_max_length": 1024}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "normalizer.json").write_text(json.dumps({"colour": "color"}), encoding="utf-8")
    return ids


def write_transcriber(
    folder: Path, encoder: Path, seed: int = 0, suppress: Sequence[int] = (7, 8), heads: int = 4
) -> Path:
    """A whole model with the encoder of the folder `encoder`, whose decoder listens: its tokens depend on the sound."""
    import torch
    from safetensors.torch import load_file
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    ids = write_tokenizer(folder)
    config = WhisperConfig.from_pretrained(encoder)
    config.vocab_size = max(ids.values()) + 1
    config.decoder_layers, config.max_target_positions, config.decoder_attention_heads = 2, 64, heads
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config.pad_token_id = config.bos_token_id = config.eos_token_id = end
    config.decoder_start_token_id = start
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    weights = load_file(encoder / "model.safetensors")
    encoder_weights = {k.removeprefix("model.encoder."): v.float() for k, v in weights.items() if ".encoder." in k}
    model.model.encoder.load_state_dict(encoder_weights)
    with torch.no_grad():
        for name, p in model.model.decoder.named_parameters():
            # what comes from the encoder speaks loudest, so that a wrong layer gives other tokens
            p.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.8 if "encoder_attn" in name else 0.3)
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start, max_length=64,
        is_multilingual=True, lang_to_id={f"<|{c}|>": ids[f"<|{c}|>"] for c in LANGUAGES},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"], prev_sot_token_id=ids["<|startofprev|>"],
        suppress_tokens=[*suppress, *(i for s, i in ids.items() if i != end)], begin_suppress_tokens=[end],
        return_timestamps=False,
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_length": 64}))  # there, too, as OpenAI's have it
    return folder


def heard(*texts: str) -> tuple[Transcript, ...]:
    """Transcripts that ended by themselves, a token to a character."""
    from voxstrata.early_exit.transcript import Transcript

    return tuple(Transcript(text, text, len(text), True, False, -0.5, 0.1) for text in texts)


def scored(
    heard: Transcripts,
    parts: Sequence[str],
    scoring: Scoring,
    english: bool,
    folder: Path,
    foreign: Collection[str] = (),
) -> pa.Table:
    """`score` in the units that a sweep over these rows counts in."""
    from voxstrata.early_exit.scoring import score, units_of

    return score(heard, parts, scoring, english, folder, units_of(heard.rows, scoring, foreign)[0])
