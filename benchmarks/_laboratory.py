"""Speech, models and training of `laboratory.py`.

Whisper's architecture, in small, learns from speech of espeak-ng: characters from log-mels. First a base learns to
transcribe. From it the transcriber goes on transcribing; the translator writes half of the Spanish and German in
English. Both see the same recordings in the same order for as many steps.

What each is taught is taught to its encoder, too, or the decoder of so small a model learns all the translating:
without this, the translator's last block aligned no languages. A linear layer behind the last block, there for training
alone, asks every frame which word it lies in: the transcriber for the word that is heard, the translator for its
English. In OWSM-CTC (Peng et al. 2024, arXiv 2402.12654) upper blocks are taught their task in much the same way.

Whisper's encoder always sees 30 s, nearly all of it silence here. Training does not compute 1500 positions for 75 of
speech: a few positions of the silence stand for all, their keys weighed with the logarithm of how many each stands for.
"""

import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from voxstrata.demo.laboratory import PIVOT, Spoken, laboratory_words, spoken_fast

HOP, POSITIONS = 160, 1500
_SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|es|>", "<|de|>", "<|translate|>", "<|transcribe|>",
            "<|notimestamps|>")  # fmt: skip
_TAIL = 4  # encoder frames of silence after the longest of a batch, computed one by one
_BLANK = 0  # of the connectionist loss; no text holds the end of text


@dataclass(frozen=True)
class Size:
    """The models and their training.

    meanings: each is spoken in every taught language.
    steps: of the base; parted: of the transcriber and the translator from there, at half the rate.
    heard: the block behind which a linear layer reads what was said, by the connectionist loss (CTC; Graves et al.
    2006), in both models alike. It is there for training alone. silence: positions that stand for all of the silence.
    """

    d_model: int = 64
    heads: int = 2
    encoder_layers: int = 4
    decoder_layers: int = 2
    heard: int = 2
    heard_weight: float = 0.3
    meanings: int = 3000
    steps: int = 900
    parted: int = 300
    batch: int = 32
    peak_rate: float = 2e-3
    warmup: int = 150
    silence: int = 8


@dataclass(frozen=True)
class Example:
    """A sentence as it is spoken, and its log-mel: float16 [n_mels, 2 · frames], without silence after it."""

    said: Spoken
    mel: npt.NDArray[np.float16]


def alphabet() -> list[str]:
    """Special tokens, then the bytes of all texts in the byte-level alphabet of Whisper's tokenizer."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    forms = "".join(form for slot in laboratory_words().values() for row in slot.values() for form in row.values())
    letters = bytes_to_unicode()
    return [*_SPECIAL, *(letters[byte] for byte in sorted(set((forms + " ").encode())))]


def tokens_of(text: str) -> list[int]:
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    ids, letters = {token: i for i, token in enumerate(alphabet())}, bytes_to_unicode()
    return [ids[letters[byte]] for byte in text.encode()]


def speak_examples(said: Sequence[Spoken]) -> list[Example]:
    """Each sentence spoken, and its log-mel as WhisperFeatureExtractor makes it."""
    filters = torch.from_numpy(WhisperFeatureExtractor(feature_size=80).mel_filters.T.astype(np.float32))
    return [Example(one, _log_mel(spoken_fast(one.text, one.language, one.speaker), filters)) for one in said]


def _log_mel(samples: npt.NDArray[np.float32], filters: torch.Tensor) -> npt.NDArray[np.float16]:
    frames = -(-len(samples) // (2 * HOP))
    padded = F.pad(torch.from_numpy(samples), (0, 2 * HOP * frames - len(samples) + 2 * 400))
    spectrum = torch.stft(padded, 400, HOP, window=torch.hann_window(400), return_complex=True)[:, : 2 * frames]
    log = (filters @ spectrum.abs().square()).clamp(min=1e-10).log10()
    return (((torch.maximum(log, log.max() - 8) + 4) / 4).numpy()).astype(np.float16)


def new_model(size: Size, seed: int) -> WhisperForConditionalGeneration:
    """A model with random weights of a seed."""
    torch.manual_seed(seed)
    end, start = 0, 1
    config = WhisperConfig(
        vocab_size=len(alphabet()), num_mel_bins=80, d_model=size.d_model, encoder_layers=size.encoder_layers,
        encoder_attention_heads=size.heads, decoder_layers=size.decoder_layers, decoder_attention_heads=size.heads,
        encoder_ffn_dim=4 * size.d_model, decoder_ffn_dim=4 * size.d_model, max_target_positions=64, init_std=0.06,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config)


def _attend(
    layer: Any, queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None, causal: bool = False
) -> torch.Tensor:
    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], x.shape[1], layer.num_heads, -1).transpose(1, 2)

    q, k, v = heads(layer.q_proj(queries)), heads(layer.k_proj(keys)), heads(layer.v_proj(keys))
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
    return layer.out_proj(x.transpose(1, 2).flatten(2))


def encode(model: Any, mel: torch.Tensor, silent: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """States behind every block, the last through the LayerNorm; and what is added to the logits of each key.

    mel: [batch, n_mels, 2 · frames], with silence after each utterance. silent: positions after these frames.
    """
    encoder = model.model.encoder
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
    # the last column's convolution sees the end of the input, as it would at 30 s; the one before sees silence alone
    x = torch.cat([x[:, :-1], x[:, -2:-1].expand(-1, 1 + len(silent), -1)], 1)
    frames = mel.shape[2] // 2
    at = torch.cat([torch.arange(frames), silent])
    x = x + encoder.embed_positions.weight[at]
    bias = torch.zeros(1, len(at), dtype=x.dtype)
    bias[:, frames:] = math.log((POSITIONS - frames) / len(silent))
    states = []
    for layer in encoder.layers:
        h = layer.self_attn_layer_norm(x)
        x = x + _attend(layer.self_attn, h, h, bias)
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        states.append(x)
    states[-1] = encoder.layer_norm(states[-1])
    return states, bias


def decode(model: Any, tokens: torch.Tensor, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary]."""
    decoder = model.model.decoder
    x = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[: tokens.shape[1]]
    for layer in decoder.layers:
        h = layer.self_attn_layer_norm(x)
        x = x + _attend(layer.self_attn, h, h, None, causal=True)
        x = x + _attend(layer.encoder_attn, layer.encoder_attn_layer_norm(x), states, bias)
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
    return F.linear(decoder.layer_norm(x), decoder.embed_tokens.weight)


def _stack(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mels with silence to one length, and the frames of each."""
    frames = [one.mel.shape[1] // 2 for one in examples]
    width = 2 * (max(frames) + _TAIL)
    mels = [np.pad(m := one.mel.astype(np.float32), ((0, 0), (0, width - m.shape[1])), constant_values=m.max() - 2)
            for one in examples]  # fmt: skip
    return torch.from_numpy(np.stack(mels)), torch.tensor(frames)


def _silent(frames: int, count: int, draw: random.Random) -> torch.Tensor:
    """`count` positions from `frames` on, one from each of as many equal parts."""
    edges = np.linspace(frames, POSITIONS, count + 1).astype(int)
    return torch.tensor([draw.randrange(a, b) for a, b in pairwise(edges.tolist())])


def _batches(examples: Sequence[Example], size: Size, draw: random.Random) -> Iterator[list[Example]]:
    """Without end: every epoch in a new order, a batch of recordings of about one length."""
    while True:
        order = draw.sample(range(len(examples)), len(examples))
        pool = 16 * size.batch
        for a in range(0, len(order), pool):
            near = sorted(order[a : a + pool], key=lambda i: examples[i].mel.shape[1])
            batches = [near[b : b + size.batch] for b in range(0, len(near), size.batch)]
            for batch in draw.sample(batches, len(batches)):
                yield [examples[i] for i in batch]


def prompt(language: str, task: str) -> list[int]:
    ids = {token: i for i, token in enumerate(_SPECIAL)}
    return [ids["<|startoftranscript|>"], ids[f"<|{language}|>"], ids[f"<|{task}|>"], ids["<|notimestamps|>"]]


def _forms() -> dict[tuple[str, str], int]:
    """A number for every word, by language and how it is written; words of one spelling share it."""
    rows = [row for slot in laboratory_words().values() for row in slot.values()]
    numbers: dict[str, int] = {}
    return {(lang, form): numbers.setdefault(form, len(numbers)) for row in rows for lang, form in row.items()}


def _words_of_frames(
    batch: Sequence[Example], frames: torch.Tensor, width: int, forms: dict[tuple[str, str], int], translates: bool
) -> torch.Tensor:
    """The number of the word that each frame lies in, or of its English [batch, width]; -100 in the silence.

    Words are taken to be as long as they have letters.
    """
    found = torch.full((len(batch), width), -100)
    for i, (one, n) in enumerate(zip(batch, frames.tolist(), strict=True)):
        said = one.said.text.split()
        ends = np.cumsum([len(word) for word in said])
        at = np.searchsorted(ends / ends[-1], (np.arange(n) + 0.5) / n)
        if translates:
            said = [one.said.english(word) for word in said]
        language = PIVOT if translates else one.said.language
        found[i, :n] = torch.tensor([forms[language, word] for word in said])[torch.from_numpy(at)]
    return found


def train(
    model: WhisperForConditionalGeneration, examples: Sequence[Example], size: Size, system: str, seed: int,
    say: Callable[[str], None] = print,
) -> list[float]:  # fmt: skip
    """Train in place; the loss of the texts at every step.

    system: "base" is the common beginning, "transcriber" and "translator" go on from it.
    """
    parted, translates = system != "base", system == "translator"
    steps, peak, warmup = (size.parted, size.peak_rate / 2, 50) if parted else (size.steps, size.peak_rate, size.warmup)
    draw, begin = random.Random(f"training {seed}" + " parted" * parted), time.monotonic()
    torch.manual_seed(seed + 1000)
    forms = _forms()
    namer = torch.nn.Linear(size.d_model, max(forms.values()) + 1)
    reader = torch.nn.Linear(size.d_model, len(alphabet()))
    texts = {one.said: tokens_of(one.said.text) for one in examples}
    english = {one.said.meaning: tokens_of(Spoken(one.said.meaning, PIVOT, one.said.speaker).text) for one in examples}
    learned = [p for p in (*model.parameters(), *reader.parameters()) if p.requires_grad]
    groups = [{"params": learned}, {"params": list(namer.parameters())}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    losses: list[float] = []
    model.train()
    batches = _batches(examples, size, draw)
    for step in range(steps):
        batch = next(batches)
        mel, frames = _stack(batch)
        silent = _silent(mel.shape[2] // 2, size.silence, draw)
        other = [draw.random() < 0.5 and one.said.language != PIVOT for one in batch]  # drawn for both models
        tasks = ["translate" if translates and o else "transcribe" for o in other]
        wanted = [english[one.said.meaning] if task == "translate" else texts[one.said]
                  for one, task in zip(batch, tasks, strict=True)]  # fmt: skip
        heard = [texts[one.said] for one in batch]
        long = max(map(len, wanted)) + 1
        inputs, targets = torch.zeros(len(batch), long + 3, dtype=torch.long), torch.full((len(batch), long), -100)
        for i, (one, task, text) in enumerate(zip(batch, tasks, wanted, strict=True)):
            inputs[i, : 4 + len(text)] = torch.tensor(prompt(one.said.language, task) + text)
            targets[i, : len(text) + 1] = torch.tensor([*text, 0])
        for group, rate in zip(optimizer.param_groups, (peak, 5 * peak), strict=True):
            left = (steps - step) / max(1, steps - warmup)
            group["lr"] = rate * min((step + 1) / warmup, left)
        states, bias = encode(model, mel, silent)
        logits = decode(model, inputs, states[-1], bias)[:, 3:]
        loss = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100)
        spelled = reader(states[size.heard - 1][:, : mel.shape[2] // 2]).log_softmax(-1).transpose(0, 1)
        flat = torch.tensor([token for text in heard for token in text])
        ctc = F.ctc_loss(spelled, flat, frames, torch.tensor(list(map(len, heard))), _BLANK, zero_infinity=True)
        objective = loss + size.heard_weight * ctc
        if parted:
            words = _words_of_frames(batch, frames, mel.shape[2] // 2, forms, translates)
            spoken = namer(states[-1][:, : mel.shape[2] // 2]).transpose(1, 2)
            named = F.cross_entropy(spoken, words, ignore_index=-100)
            objective = objective + named
        optimizer.zero_grad()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            told = f"loss {np.mean(losses[-100:]):.3f}, heard {float(ctc.detach()):.3f}"
            if parted:
                told += f", named {float(named.detach()):.3f}"
            say(f"step {step + 1}: {told}, {time.monotonic() - begin:.0f} s")
    model.eval()
    return losses


@torch.inference_mode()
def transcribe(model: Any, examples: Sequence[Example], task: str, announced: str | None = None) -> list[str]:
    """Greedy texts, in the order of the examples."""
    letters, draw, texts = alphabet(), random.Random(0), {}
    order = sorted(range(len(examples)), key=lambda i: examples[i].mel.shape[1])
    for a in range(0, len(order), 64):
        rows = order[a : a + 64]
        mel, _ = _stack([examples[i] for i in rows])
        states, bias = encode(model, mel, _silent(mel.shape[2] // 2, 64, draw))
        ids = torch.tensor([prompt(announced or examples[i].said.language, task) for i in rows])
        for _ in range(56):
            ids = torch.cat([ids, decode(model, ids, states[-1], bias)[:, -1:].argmax(-1)], 1)
            if (ids[:, 4:] == 0).any(1).all():
                break
        for i, row in zip(rows, ids[:, 4:].tolist(), strict=True):
            texts[i] = _text([letters[t] for t in (row[: row.index(0)] if 0 in row else row) if t >= len(_SPECIAL)])
    return [texts[i] for i in range(len(examples))]


def _text(letters: Sequence[str]) -> str:
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return bytes(byte_of[letter] for letter in letters).decode(errors="replace")


def write_model(model: WhisperForConditionalGeneration, folder: Path) -> None:
    """A Hugging Face folder in float16, with tokenizer and generation settings: what any tool for Whisper reads."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    whole = copy.deepcopy(model).half()
    end, start = _SPECIAL[:2]
    whole.generation_config = GenerationConfig(
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=vocabulary[start], max_length=64,
        is_multilingual=True, no_timestamps_token_id=vocabulary["<|notimestamps|>"], return_timestamps=False,
        lang_to_id={token: vocabulary[token] for token in _SPECIAL[2:5]},
        task_to_id={token.strip("<|>"): vocabulary[token] for token in _SPECIAL[5:7]},
    )  # fmt: skip
    whole.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "WhisperTokenizer", "bos_token": end, "eos_token": end, "unk_token": end,
                "pad_token": end, "model_max_length": 64}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")


def read_model(folder: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
