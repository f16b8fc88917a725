"""Transcribe a corpus with the encoder ended after every block; decoding is transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from voxstrata.audio.decode import decode, probe
from voxstrata.audio.units import SAMPLE_RATE
from voxstrata.corpus import Corpus
from voxstrata.errors import AudioError, InputError, UsageError
from voxstrata.experiments.voices import primary_code
from voxstrata.exporters.early_exit import EarlyExit, Transcriber, check_exit, ended_early, quiet_transformers

TASKS = ("transcribe", "translate")
WINDOW_SECONDS = 30
NAMED = 5  # how many offenders a message lists


@dataclass(frozen=True)
class Decoding:
    """How text is made of encoder states: greedy, without timestamps, without temperature fallback.

    task: "transcribe", or "translate" (into English). prompts: the language that each corpus language is announced
    as, for languages that the model does not know; those not named are announced as themselves. max_new_tokens: where a
    transcript that does not end is cut; OpenAI's code cuts at 224, half the decoder's positions.
    """

    task: str = "transcribe"
    prompts: tuple[tuple[str, str], ...] = ()
    max_new_tokens: int = 224
    batch: int = 8

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self) | {"prompts": dict(self.prompts)}


@dataclass(frozen=True)
class Transcripts:
    """What was said and what was heard.

    rows: of the corpus, in its order, without those that failed. texts: for every exit one transcript per row.
    failures: id to reason.
    """

    rows: tuple[dict[str, str | None], ...]
    texts: Mapping[EarlyExit, tuple[str, ...]]
    failures: Mapping[str, str]


def whisper_language(name: str, known: Mapping[str, int]) -> str | None:
    """Whisper's token ("<|es|>") for a code or name ("es", "es_419", "spa-ES", "Spanish"), None where it has none.

    known: `generation_config.lang_to_id`.
    """
    low = name.lower()
    head = low.replace("-", "_").split("_")[0]
    other = {"cmn": "zh", "fil": "tl", "nb": "no", "iw": "he", "jv": "jw"}  # FLEURS' and ISO's codes, and Whisper's
    two = primary_code(head)  # of three letters
    for code in (low, TO_LANGUAGE_CODE.get(low), head, other.get(head), two, other.get(two)):
        if code and f"<|{code}|>" in known:
            return f"<|{code}|>"
    return None


def language_tokens(transcriber: Transcriber, languages: Sequence[str | None], decoding: Decoding) -> dict[str, str]:
    """The language token of every corpus language; empty for an English-only model.

    Raises UsageError for an unknown task, and for a task or a language that the model does not know.
    """
    config = transcriber.model.generation_config
    known: dict[str, int] = getattr(config, "lang_to_id", None) or {}
    if decoding.task not in TASKS:
        raise UsageError(f"unknown task {decoding.task!r}; choose one of {', '.join(TASKS)}")
    prompts = dict(decoding.prompts)
    if not known:
        foreign = sorted({str(p) for p in (prompts.get(str(n), n) for n in languages) if p and not is_english(str(p))})
        if foreign or decoding.task != "transcribe":
            raise UsageError(
                f"{transcriber.name} transcribes English alone (its generation settings name no languages), not "
                f"{', '.join(foreign) or 'translating'}; take a multilingual checkpoint, or English recordings"
            )
        return {}
    if decoding.task not in (getattr(config, "task_to_id", None) or {}):
        raise UsageError(f"{transcriber.name} knows no task {decoding.task!r}")
    tokens, unknown = {}, []
    for language in sorted({str(n) for n in languages if n is not None}):
        token = whisper_language(prompts.get(language, language), known)
        if token is None:
            unknown.append(prompts.get(language, language))
        else:
            tokens[language] = token
    if unknown:
        nearest = "--language " + (f"{unknown[0]}=es" if unknown[0] not in prompts.values() else "…")
        raise UsageError(
            f"{transcriber.name} knows no language {', '.join(map(repr, unknown))}; announce it as one it knows "
            f"({nearest}): {', '.join(t.strip('<|>') for t in sorted(known))}"
        )
    return tokens


def is_english(name: str) -> bool:
    """Whether a language's code or name means English."""
    return name.lower().replace("-", "_").split("_")[0] in ("en", "eng", "english")


def check_texts(corpus: Corpus) -> None:
    """Raises InputError when an utterance has no text or no language: both are needed to score it."""
    for column in ("language", "text"):
        values = corpus.table[column].to_pylist()
        without = [i for i, v in zip(corpus.table["id"].to_pylist(), values, strict=True) if not (v or "").strip()]
        if without:
            more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
            raise InputError(
                f"{corpus.root}: no {column} for {', '.join(map(str, without[:NAMED]))}{more}; give it in the "
                f"manifest's column {column!r}, or leave these rows out"
            )


def transcribe(
    transcriber: Transcriber,
    corpus: Corpus,
    exits: Sequence[EarlyExit],
    decoding: Decoding,
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Transcripts:
    """Transcribe every recording of at most 30 s with every exit; a longer or unreadable one is a failure.

    device: of torch, "cpu" or "cuda". The model runs in its own dtype on a GPU, in float32 on the CPU.
    progress: hears of (batches × exits) done and in all.

    Raises UsageError for exits, languages or a task the model has not, InputError without tokenizer or when no
    recording can be used.
    """
    for at in exits:
        check_exit(at, transcriber.layers)
    rows = corpus.table.to_pylist()
    tokens = language_tokens(transcriber, [row["language"] for row in rows], decoding)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: torch finds no CUDA device; use --device cpu")
    tokenizer = _tokenizer(transcriber)
    model = transcriber.model.to(torch.device(device))
    if device == "cpu":
        model = model.float()
    lengths, failures = _probe(corpus)
    if not lengths:
        raise InputError(f"{corpus.root}: no recording can be transcribed; the first: {next(iter(failures.values()))}")
    # one language to a batch, and the longest first, so that running out of memory shows at once
    order = sorted(lengths, key=lambda i: (str(rows[i]["language"]), -lengths[i]))
    batches = _batches(order, rows, decoding.batch)
    texts: dict[EarlyExit, dict[int, str]] = {at: {} for at in exits}
    done = 0
    for batch in batches:
        audio, kept = [], []
        for i in batch:
            try:
                audio.append(decode(corpus.absolute(i)))
                kept.append(i)
            except AudioError as e:
                failures[str(rows[i]["id"])] = corpus.without_root(str(e))
        if kept:
            log_mel = transcriber.encoder.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")
            features = log_mel["input_features"].to(model.device, model.dtype)
        for at in exits:
            if kept:
                ids = _generate(model, features, at, tokens.get(str(rows[kept[0]]["language"])), decoding)
                for i, text in zip(kept, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                    texts[at][i] = text.strip()
            done += 1
            progress(done, len(batches) * len(exits))
    heard = sorted(texts[exits[0]])
    return Transcripts(
        tuple(rows[i] for i in heard), {at: tuple(texts[at][i] for i in heard) for at in exits}, failures
    )


def _tokenizer(transcriber: Transcriber) -> Any:
    reason = "no tokenizer.json or vocab.json"  # without either, transformers 5 makes up an empty tokenizer
    if any((transcriber.folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        try:
            return AutoTokenizer.from_pretrained(transcriber.folder, local_files_only=True)
        except Exception as e:
            reason = f"{type(e).__name__}: {e}"
    raise InputError(f"{transcriber.folder}: no usable tokenizer ({reason}); copy the original checkpoint's there")


def _probe(corpus: Corpus) -> tuple[dict[int, int], dict[str, str]]:
    """Samples of each row that can be transcribed, and why the others cannot."""
    lengths, failures = {}, {}
    for i, name in enumerate(corpus.table["id"].to_pylist()):
        try:
            samples = probe(corpus.absolute(i)).samples
        except AudioError as e:
            failures[str(name)] = corpus.without_root(str(e))
            continue
        if samples > WINDOW_SECONDS * SAMPLE_RATE:
            failures[str(name)] = f"{samples / SAMPLE_RATE:.1f} s, more than Whisper's window of 30 s; cut it"
        else:
            lengths[i] = samples
    return lengths, failures


def _batches(order: Sequence[int], rows: Sequence[dict[str, Any]], size: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in order:
        last = batches[-1] if batches else None
        if last is not None and len(last) < size and rows[last[0]]["language"] == rows[i]["language"]:
            last.append(i)
        else:
            batches.append([i])
    return batches


def _generate(model: Any, features: torch.Tensor, at: EarlyExit, token: str | None, decoding: Decoding) -> torch.Tensor:
    """Token ids of a batch of one language, whose token is None for an English-only model."""
    prompt = {"language": token, "task": decoding.task} if token else {}
    room = model.config.max_target_positions - 4  # start, language, task, no timestamps
    length = min(decoding.max_new_tokens, room)
    with ended_early(model, at), quiet_transformers(), torch.inference_mode():
        ids: torch.Tensor = model.generate(
            features, num_beams=1, do_sample=False, return_timestamps=False, max_new_tokens=length, **prompt
        )
    return ids


def every_exit(layers: int, blocks: Sequence[int] | None = None) -> tuple[EarlyExit, ...]:
    """Exits after the given blocks (None: after every block, and before the first), each with and without LayerNorm.

    The last block is always among them: the others are compared with it.
    """
    chosen = sorted({*(range(layers + 1) if blocks is None else blocks), layers})
    return tuple(EarlyExit(k, norm) for k in chosen for norm in (True, False))
