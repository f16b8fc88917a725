"""Transcribe a corpus with the encoder ended after every block: encoded once, decoded for all exits together."""

import copy
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import chain, groupby
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from voxstrata.base.choices import chosen, some_names
from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.base.tables import first_few
from voxstrata.corpus import Corpus
from voxstrata.corpus.languages import language_name
from voxstrata.early_exit.checkpoint import Transcriber
from voxstrata.early_exit.decoder import Ask, Decoded, Decoder
from voxstrata.early_exit.exits import EarlyExit, check_exit
from voxstrata.early_exit.journal import Journal
from voxstrata.early_exit.policies import policy
from voxstrata.early_exit.recordings import failure_reason, find_recordings, refuse_if_none
from voxstrata.early_exit.states import EncodedStates, ExitNorms, LayerStates
from voxstrata.early_exit.transcript import Transcript
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.phonology.voices import primary_code
from voxstrata.store.part import Part

AUTO = "auto"  # in the place of a language: the one that the model detects
_TASKS = ("transcribe", "translate")
_LOOK_AGAIN = 1.0  # seconds until a run that waits for others looks again
_PROMPT_TOKENS = 4  # start, language, task, no timestamps


@dataclass(frozen=True)
class Decoding:
    """How text is made of encoder states, without timestamps.

    task: "transcribe", or "translate" (into English). prompts: the language that each corpus language is announced
    as, for languages that the model does not know; those not named are announced as themselves; AUTO for the one that
    the decoder's first step finds likeliest, at each exit for itself. max_new_tokens: where a
    transcript that does not end is cut; OpenAI's code cuts at 224, half the decoder's positions. policy: "greedy" takes
    the best token each time; "whisper" tries again at other temperatures where OpenAI's code does (`policies`), with
    draws by `seed`. stop_loops: a transcript goes no further once it loops (`find_loop`); what comes before the loop's
    second copy is the same either way where no draws are compared.
    """

    task: str = "transcribe"
    prompts: tuple[tuple[str, str], ...] = ()
    max_new_tokens: int = 224
    batch: int = 8
    policy: str = "greedy"
    stop_loops: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Transcripts:
    """What every exit makes of the recordings.

    rows: of the corpus, in its order, without those that failed. texts: for every exit one transcript per row.
    failures: id to reason. seconds: of each row's audio, none where it is not known.
    """

    rows: tuple[dict[str, str | None], ...]
    texts: Mapping[EarlyExit, tuple[Transcript, ...]]
    failures: Mapping[str, str]
    seconds: tuple[float, ...] = ()


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
    """The language token of every corpus language, or AUTO; empty for an English-only model.

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
    tokens = {language: AUTO if said == AUTO else whisper_language(said, known) for language, said in asked.items()}
    unknown = [asked[language] for language, token in tokens.items() if token is None]
    if unknown:
        codes = [token.strip("<|>") for token in sorted(known)]
        called = {str(language_name(code)).lower(): code for code in codes}
        near = {said: [called[name] for name in get_close_matches(said.lower(), called, 1)] for said in unknown}
        first = unknown[0]
        example = "--language " + (f"{first}={[*near[first], 'es'][0]}" if first not in prompts.values() else "…")
        some = some_names(list(dict.fromkeys([*chain.from_iterable(near.values()), *codes])), unknown)
        raise UsageError(
            f"{name} knows no language {', '.join(map(repr, unknown))}; announce it as one it knows ({example}): {some}"
            f"{'; its generation_config.json lists all' if some.endswith('more') else ''}"
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
                f"{corpus.where}: no {column} for {first_few(without)}; give it in the manifest's column {column!r}, "
                "or leave these rows out"
            )


def transcribe_recordings(
    transcriber: Transcriber,
    corpus: Corpus,
    exits: Sequence[EarlyExit],
    decoding: Decoding,
    *,
    device: str = "cpu",
    journal: Journal | None = None,
    part: Part | None = None,
    reporter: Reporter = SILENT,
    norms: ExitNorms | None = None,
) -> Transcripts | None:
    """Transcribe every recording of at most 30 s with every exit; one that is longer, or fails, is a failure.

    device: of torch, "cpu" or "cuda". The model runs in its own dtype on a GPU, in float32 on the CPU.
    journal: what was transcribed before, and where transcripts are written as they come. Runs with one journal share
    the batches: each takes those of its part first, then what others have not begun. A run with a part returns None
    where others have not finished theirs; one without waits for them.
    norms: what the states go through at each exit, for exits with another norm than `with` and `without`.

    Raises UsageError for exits, languages or a task the model has not, InputError without tokenizer or when no
    recording can be used.
    """
    for at in exits:
        check_exit(at, transcriber.encoder.shape.layers)
    lots = _Lots(transcriber, corpus, exits, decoding, device, journal, reporter, norms)
    while left := lots.left():
        worked = [lots.take(lot) for lot in (part or Part()).order(range(len(lots.batches))) if lot in left]
        if any(worked):
            continue
        if part is not None:
            return None
        reporter.step(f"waiting for {counted(len(left), 'batch', 'batches')} that other runs transcribe")
        time.sleep(_LOOK_AGAIN)
    return lots.transcripts()


class _Lots:
    """Batches of recordings, and what every exit makes of them. They are the same whoever transcribes how many.

    batches: of rows of the corpus; one language to a batch, and the longest first, so that running out of memory shows
    at once.
    """

    def __init__(
        self, transcriber: Transcriber, corpus: Corpus, exits: Sequence[EarlyExit], decoding: Decoding,
        device: str, journal: Journal | None, reporter: Reporter, norms: ExitNorms | None,
    ) -> None:  # fmt: skip
        self._transcriber, self._corpus, self._exits, self._decoding = transcriber, corpus, exits, decoding
        self._journal, self._reporter = journal, reporter
        self._rows = rows = corpus.table.to_pylist()
        self._tokens = language_tokens(transcriber, [row["language"] for row in rows], decoding)
        self._tokenizer = _tokenizer(transcriber)
        model = model_on(transcriber, device)
        self._source = EncodedStates(transcriber, model, corpus)
        self._norms = norms or ExitNorms(model.model.encoder.layer_norm)
        self._decoder = make_decoder(model, self._text, decoding)
        self._settings = model.generation_config
        known = getattr(self._settings, "lang_to_id", None) or {}
        self._codes = {token: name.strip("<|>") for name, token in known.items()}
        self._infos, self._failures = find_recordings(corpus)
        self._names = {i: str(rows[i]["id"]) for i in self._infos}
        self._texts: dict[EarlyExit, dict[int, Transcript]] = {at: {} for at in exits}
        order = sorted(self._infos, key=lambda i: (str(rows[i]["language"]), -self._infos[i].samples))
        self.batches = _batches(order, rows, decoding.batch)
        self._learn(self._infos)

    @property
    def _known(self) -> int:
        return sum(map(len, self._texts.values()))

    def left(self) -> set[int]:
        """Batches of which a text is missing, as far as is known here."""
        if self._journal:
            self._journal.refresh()
        self._learn(self._infos)
        return {lot for lot, batch in enumerate(self.batches) if self._missing(batch)}

    def take(self, lot: int) -> bool:
        """Transcribe what is missing of a batch; False where another run does, or has by now."""
        batch = self.batches[lot]
        with self._journal.claim(lot) if self._journal else nullcontext(True) as mine:
            self._learn(batch)
            if not mine or not self._missing(batch):
                return False
            pieces = deque([batch])
            while pieces:
                self._transcribe(pieces)
            return True

    def transcripts(self) -> Transcripts:
        """Of the recordings that every exit has a text of. Raises InputError where there is none."""
        whole = [i for i in sorted(self._infos) if all(i in of for of in self._texts.values())]
        refuse_if_none(self._corpus, whole, self._failures)
        texts = {at: tuple(of[i] for i in whole) for at, of in self._texts.items()}
        heard = {self._names[i] for i in whole}  # some maybe at a second trial
        failures = {name: reason for name, reason in self._failures.items() if name not in heard}
        seconds = tuple(self._infos[i].samples / SAMPLE_RATE for i in whole)
        return Transcripts(tuple(self._rows[i] for i in whole), texts, failures, seconds)

    def _missing(self, batch: Iterable[int]) -> bool:
        failed = self._failures
        return any(i not in of and self._names[i] not in failed for of in self._texts.values() for i in batch)

    def _learn(self, batch: Iterable[int]) -> None:
        """What the journal has of these recordings."""
        if self._journal is None:
            return
        for i in batch:
            name, info = self._names[i], self._infos[i]
            for at in self._exits:
                if i not in self._texts[at] and (known := self._journal.find(name, info, at)) is not None:
                    self._texts[at][i] = known
            if (reason := self._journal.failure(name, info)) is not None:
                self._failures[name] = reason

    def _fail(self, i: int, reason: str) -> None:
        self._failures[self._names[i]] = reason
        if self._journal:
            self._journal.fail(self._names[i], self._infos[i], reason)

    def _transcribe(self, pieces: deque[list[int]]) -> None:
        """Transcribe the first of these batches; where that fails, its recordings come back one by one."""
        batch, audio = pieces.popleft(), {}
        for i in batch:
            try:
                audio[i] = self._source.read(i, self._infos[i])
            except AudioError as e:
                self._fail(i, str(e))
        missing = [at for at in self._exits if not self._texts[at].keys() >= audio.keys()]
        if not missing:
            return
        self._tell()  # encoding takes a while before the first text is there
        token = self._tokens.get(str(self._rows[batch[0]]["language"]))
        start = prompt(self._settings, token, self._decoding.task)
        try:
            found = self._source.states(list(audio.values()), {at.after for at in missing})
            asks = [
                Ask(partial(self._input, found, at, n), start, f"{self._names[i]} {at}")
                for at in missing for n, i in enumerate(audio)
            ]  # fmt: skip
            asked = [(at, i) for at in missing for i in audio]
            shares = {k: seconds / len(audio) for k, seconds in found.seconds.items()}
            for n, decoded in self._decoder.decode(asks):
                self._add(asked[n], decoded, shares)
        except OSError:  # the journal's, not a recording's
            raise
        except Exception as e:  # one bad recording must cost neither its neighbours nor the run
            if len(audio) == 1:
                for i in audio:
                    self._fail(i, failure_reason(self._corpus, i, e))
            pieces.extendleft([i] for i in audio if len(audio) > 1)

    def _input(self, found: LayerStates, at: EarlyExit, n: int) -> torch.Tensor:
        return self._norms(at, found.layers[at.after][n])

    def _add(self, asked: tuple[EarlyExit, int], decoded: Decoded, encoding: Mapping[int, float]) -> None:
        at, i = asked
        if i in self._texts[at]:
            return
        self._texts[at][i] = transcript = self._transcript(decoded, encoding.get(at.after))
        if self._journal:
            self._journal.add(self._names[i], self._infos[i], at, transcript)
        self._tell()

    def _tell(self) -> None:
        total = len(self._infos) * len(self._exits)
        self._reporter.progress(Progress("transcribing", self._known, total, "transcripts"))

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _transcript(self, decoded: Decoded, encoding: float | None) -> Transcript:
        """Log-probability and probability to four decimals: beyond, they depend on what else was decoded."""
        whole, cut = ("" if decoded.silent else self._text(ids) for ids in (decoded.ids, decoded.ids[: decoded.kept]))
        no_speech = None if decoded.no_speech is None else round(decoded.no_speech, 4)
        looped = decoded.kept is not None and not decoded.silent  # silence has no words to repeat
        return Transcript(
            whole, cut, len(decoded.ids), decoded.ended, looped, round(decoded.avg_logprob, 4), no_speech,
            decoded.temperature, self._codes.get(decoded.language), encoding, decoded.seconds,
        )  # fmt: skip


def in_float32(model: Any) -> Any:
    """The model in float32; a copy unless it is, since `write_early_exit` writes weights as they are stored."""
    return model if model.dtype == torch.float32 else copy.deepcopy(model).float()


def model_on(transcriber: Transcriber, device: str) -> Any:
    """The model in float32 on the CPU, in its own dtype on a GPU. Raises UsageError where there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: torch finds no CUDA device; use --device cpu")
    return in_float32(transcriber.model) if device == "cpu" else transcriber.model.to(torch.device(device))


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


def make_decoder(model: Any, text: Callable[[Sequence[int]], str], decoding: Decoding) -> Decoder:
    """For `model`, transformers' whole Whisper. Raises UsageError for a policy that does not exist."""
    return Decoder(
        model, policy(decoding.policy), text, new_tokens=new_tokens(model, decoding), stop_loops=decoding.stop_loops,
        seed=decoding.seed,
    )  # fmt: skip


def prompt(settings: Any, token: str | None, task: str) -> tuple[int, ...]:
    """Start of transcript, language, task, no timestamps: what a model of these generation settings has of them.

    token: the language's, None for an English-only model. AUTO gives None in its place, for `Ask`.
    """
    start = [settings.decoder_start_token_id]
    if token is not None:
        start += [None if token == AUTO else settings.lang_to_id[token], settings.task_to_id[task]]
    silent = getattr(settings, "no_timestamps_token_id", None)
    return tuple(start if silent is None else [*start, silent])


def new_tokens(model: Any, decoding: Decoding) -> int:
    """How many tokens a transcript may have: what is asked for, or what the decoder has positions for."""
    return min(decoding.max_new_tokens, int(model.config.max_target_positions) - _PROMPT_TOKENS)
