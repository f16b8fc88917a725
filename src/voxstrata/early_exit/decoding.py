"""Transcribe a corpus with the encoder ended after every block; decoding is transformers' `generate`."""

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from voxstrata.base.choices import chosen
from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.tables import first_few
from voxstrata.corpus import Corpus
from voxstrata.early_exit.checkpoint import Transcriber, ended_early, quiet_transformers, spectrograms
from voxstrata.early_exit.exits import EarlyExit, check_exit
from voxstrata.early_exit.journal import Journal
from voxstrata.early_exit.recordings import failure_reason, find_recordings, read_recording, refuse_if_none
from voxstrata.phonology.voices import primary_code

_TASKS = ("transcribe", "translate")
_PROMPT_TOKENS = 4  # start, language, task, no timestamps


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


@dataclass(frozen=True)
class Transcripts:
    """What every exit makes of the recordings.

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

    Raises UsageError for an unknown task, and for a task or a language that the model does not know, InputError where
    the checkpoint does not say which it knows.
    """
    config, prompts = transcriber.model.generation_config, dict(decoding.prompts)
    name = transcriber.encoder.name
    known: dict[str, int] = getattr(config, "lang_to_id", None) or {}
    chosen("task", [decoding.task], _TASKS)
    asked = {lang: prompts.get(lang, lang) for lang in sorted({str(n) for n in languages if n is not None})}
    if not known:
        if getattr(config, "is_multilingual", None) is not False:
            raise InputError(
                f"{transcriber.folder}: generation_config.json names no languages, and the tokenizer lists none; copy "
                "both from the original checkpoint"
            )
        foreign = sorted({said for said in asked.values() if said and not is_english(said)})
        if foreign or decoding.task != "transcribe":
            raise UsageError(
                f"{name} transcribes English alone, not "
                f"{', '.join(foreign) or 'translating'}; take a multilingual checkpoint, or English recordings"
            )
        return {}
    if decoding.task not in (getattr(config, "task_to_id", None) or {}):
        raise UsageError(f"{name} knows no task {decoding.task!r}")
    tokens = {language: whisper_language(said, known) for language, said in asked.items()}
    unknown = [asked[language] for language, token in tokens.items() if token is None]
    if unknown:
        nearest = "--language " + (f"{unknown[0]}=es" if unknown[0] not in prompts.values() else "…")
        raise UsageError(
            f"{name} knows no language {', '.join(map(repr, unknown))}; announce it as one it knows "
            f"({nearest}): {', '.join(t.strip('<|>') for t in sorted(known))}"
        )
    return {language: token for language, token in tokens.items() if token}


def is_english(name: str) -> bool:
    """Whether a language's code or name means English."""
    return name.lower().replace("-", "_").split("_")[0] in ("en", "eng", "english")


def check_texts(corpus: Corpus) -> None:
    """Raises InputError when an utterance has no text or no language: both are needed to score it."""
    for column in ("language", "text"):
        values = corpus.table[column].to_pylist()
        without = [i for i, v in zip(corpus.table["id"].to_pylist(), values, strict=True) if not (v or "").strip()]
        if without:
            raise InputError(
                f"{corpus.root}: no {column} for {first_few(without)}; give it in the manifest's column {column!r}, or "
                "leave these rows out"
            )


def transcribe_recordings(
    transcriber: Transcriber,
    corpus: Corpus,
    exits: Sequence[EarlyExit],
    decoding: Decoding,
    *,
    device: str = "cpu",
    journal: Journal | None = None,
    reporter: Reporter = SILENT,
) -> Transcripts:
    """Transcribe every recording of at most 30 s with every exit; one that is longer, or fails, is a failure.

    device: of torch, "cpu" or "cuda". The model runs in its own dtype on a GPU, in float32 on the CPU.
    journal: what was transcribed before, and where transcripts are written as they come.

    Raises UsageError for exits, languages or a task the model has not, InputError without tokenizer or when no
    recording can be used.
    """
    for at in exits:
        check_exit(at, transcriber.encoder.shape.layers)
    rows = corpus.table.to_pylist()
    tokens = language_tokens(transcriber, [row["language"] for row in rows], decoding)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: torch finds no CUDA device; use --device cpu")
    tokenizer = _tokenizer(transcriber)
    model = in_float32(transcriber.model) if device == "cpu" else transcriber.model.to(torch.device(device))
    infos, failures = find_recordings(corpus)
    names = {i: str(rows[i]["id"]) for i in infos}
    texts: dict[EarlyExit, dict[int, str]] = {at: {} for at in exits}
    for at, i in product(exits, infos):
        if journal and (text := journal.find(names[i], infos[i], at)) is not None:
            texts[at][i] = text
    before, total = sum(map(len, texts.values())), len(infos) * len(exits)
    # one language to a batch, and the longest first, so that running out of memory shows at once
    order = sorted(infos, key=lambda i: (str(rows[i]["language"]), -infos[i].samples))
    batches = deque(_batches(order, rows, decoding.batch))
    while batches:
        batch = batches.popleft()
        if all(of.keys() >= set(batch) for of in texts.values()):
            continue
        audio = {}
        for i in batch:
            try:
                audio[i] = read_recording(corpus, i, infos[i])
            except AudioError as e:
                failures[names[i]] = str(e)
        missing = [at for at in exits if not texts[at].keys() >= audio.keys()]
        if not missing:
            continue
        token = tokens.get(str(rows[batch[0]]["language"]))
        try:
            features = spectrograms(transcriber.encoder, list(audio.values())).to(model.device, model.dtype)
            for at in missing:
                ids = generate_tokens(model, features, at, token, decoding)
                for i, text in zip(audio, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                    if i not in texts[at]:
                        texts[at][i] = text.strip()
                        if journal:
                            journal.add(names[i], infos[i], at, texts[at][i])
                done = sum(map(len, texts.values()))
                reporter.progress(Progress("transcribing", done - before, total - before, "transcripts"))
        except OSError:  # the journal's, not a recording's
            raise
        except Exception as e:  # one bad recording must cost neither its neighbours nor the run
            if len(audio) == 1:
                failures.update({names[i]: failure_reason(corpus, i, e) for i in audio})
            batches.extendleft([i] for i in audio if len(audio) > 1)
    whole = [i for i in sorted(infos) if all(i in of for of in texts.values())]
    refuse_if_none(corpus, whole, failures)
    return Transcripts(
        tuple(rows[i] for i in whole), {at: tuple(of[i] for i in whole) for at, of in texts.items()}, failures
    )


def in_float32(model: Any) -> Any:
    """The model in float32; a copy unless it is, since `write_early_exit` writes weights as they are stored."""
    return model if model.dtype == torch.float32 else copy.deepcopy(model).float()


def _tokenizer(transcriber: Transcriber) -> Any:
    reason = "no tokenizer.json or vocab.json"  # without either, transformers 5 makes up an empty tokenizer
    if any((transcriber.folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        try:
            return AutoTokenizer.from_pretrained(transcriber.folder, local_files_only=True, trust_remote_code=False)
        except Exception as e:
            reason = f"{type(e).__name__}: {e}"
    raise InputError(f"{transcriber.folder}: no usable tokenizer ({reason}); copy the original checkpoint's there")


def _batches(order: Sequence[int], rows: Sequence[dict[str, Any]], size: int) -> list[list[int]]:
    """Up to `size` neighbours of one language together."""
    runs = [list(run) for _, run in groupby(order, lambda i: rows[i]["language"])]
    return [run[a : a + size] for run in runs for a in range(0, len(run), size)]


def generate_tokens(model: Any, features: torch.Tensor, at: EarlyExit, token: str | None, decoding: Decoding) -> Any:
    """Ids (batch, tokens) of a batch of one language, whose token is None for an English-only model."""
    prompt = {"language": token, "task": decoding.task} if token else {}
    how = {"num_beams": 1, "do_sample": False, "return_timestamps": False}
    with ended_early(model, at), quiet_transformers(), torch.inference_mode():
        return model.generate(features, max_new_tokens=new_tokens(model, decoding), **how, **prompt)


def new_tokens(model: Any, decoding: Decoding) -> int:
    """How many tokens a transcript may have: what is asked for, or what the decoder has positions for."""
    return min(decoding.max_new_tokens, int(model.config.max_target_positions) - _PROMPT_TOKENS)
