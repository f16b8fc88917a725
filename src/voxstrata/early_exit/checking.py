"""Whether written checkpoints compute what they claim: their tokens against a plain loop over our own ONNX graph."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from transformers import WhisperForConditionalGeneration

from voxstrata.base.errors import AudioError, InputError
from voxstrata.base.folders import scratch_folder
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.tables import TextTable
from voxstrata.corpus import Corpus
from voxstrata.early_exit.checkpoint import Transcriber, quiet_transformers, spectrograms, write_early_exit
from voxstrata.early_exit.decoding import Decoding, generate_tokens, in_float32, language_tokens, new_tokens
from voxstrata.early_exit.exits import EarlyExit, check_exit
from voxstrata.early_exit.recordings import failure_reason, find_recordings, read_recording, refuse_if_none
from voxstrata.encoders.card import ENCODER, WEIGHTS
from voxstrata.encoders.outputs import output_names
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.standard_graph import encoder_graph
from voxstrata.exporters.weights import WeightsFile

_CLEAR_LEAD = 0.01  # of the best logit over the second: below it, rounding may decide


@dataclass(frozen=True)
class ExitCheck:
    """One exit: how many recordings gave the same tokens both ways, of how many; and tokens compared.

    relative_l2: of the written encoder, from its card. margin: where tokens first differ, by how much the loop's best
    logit led the second, the widest over recordings; None where all agree. A margin near 0 is a tie that rounding
    decides; a wide one is an error.
    """

    after: int
    norm: str
    recordings: int
    equal: int
    tokens: int
    relative_l2: float
    margin: float | None

    @property
    def agrees(self) -> bool:
        """Whether both ways compute the same, up to ties."""
        return self.margin is None or self.margin < _CLEAR_LEAD


def checks_table(checks: Sequence[ExitCheck]) -> TextTable:
    """A row per exit."""
    header = ["k", "LayerNorm", "recordings equal", "tokens", "encoder's difference", "margin where they differ"]
    rows = []
    for c in checks:
        margin = "–" if c.margin is None else f"{c.margin:.1e}"
        rows.append([c.after, c.norm, f"{c.equal}/{c.recordings}", c.tokens, f"{c.relative_l2:.1e}", margin])
    return TextTable("Written checkpoints against a plain loop", header, rows)


def check_exits(
    source: Transcriber, corpus: Corpus, exits: Sequence[EarlyExit], decoding: Decoding, *, reporter: Reporter = SILENT
) -> tuple[list[ExitCheck], dict[str, str]]:
    """Write the checkpoint of every exit and compare it with our graph on every recording of `corpus`.

    The checkpoint is written with its weights as stored, as `write_early_exit` does; both ways compute in float32, in
    which float16 weights are exact. The written checkpoint decodes with transformers' `generate`. The loop feeds
    layer_k of our graph (for an exit with LayerNorm, that of the original) to the original decoder, token by token,
    without a cache, and takes the largest logit outside the suppressed tokens. Both stop where the decoder's positions
    end.

    Returns the checks and, by id, why recordings could not be compared: longer than 30 s, unreadable, or such that the
    model failed (left out from that exit on). Raises UsageError for exits, languages or a task the model has not,
    InputError when no recording is left.
    """
    for at in exits:
        check_exit(at, source.encoder.shape.layers)
    languages = corpus.table["language"].to_pylist()
    tokens = language_tokens(source, languages, decoding)
    if tokens and None in languages:
        raise InputError(f"{corpus.root}: a recording without language; name it in the manifest's column 'language'")
    log_mel, failures = _log_mel(source, corpus)
    decoding = replace(decoding, max_new_tokens=new_tokens(source.model, decoding))
    original = in_float32(source.model)
    checks = []
    with scratch_folder("early-exit") as folder:
        reporter.step("building the graph")
        session = _session(source.encoder, Path(folder))
        for n, at in enumerate(exits):
            reporter.step(f"{at}")
            card = write_early_exit(source, Path(folder) / str(n), at)
            with quiet_transformers():
                written = WhisperForConditionalGeneration.from_pretrained(Path(folder) / str(n), dtype=torch.float32)
            written.eval()
            compared: list[tuple[int, float | None]] = []
            for i in list(log_mel):
                try:
                    states = _states(session, original, log_mel[i], at)
                    found = _compare(original, states, written, log_mel[i], tokens.get(str(languages[i])), decoding)
                    compared.append(found)
                except Exception as e:  # as in a sweep, it costs this recording alone
                    failures[str(corpus.table["id"][i])] = failure_reason(corpus, i, e)
                    del log_mel[i]
            refuse_if_none(corpus, log_mel, failures)
            leads = [lead for _, lead in compared if lead is not None]
            equal, count = len(compared) - len(leads), sum(n for n, _ in compared)
            margin = max(leads, default=None)
            checks.append(ExitCheck(at.after, at.norm, len(compared), equal, count, card.relative_l2, margin))
    return checks, failures


def _compare(
    original: Any, states: torch.Tensor, written: Any, log_mel: torch.Tensor, token: str | None, decoding: Decoding
) -> tuple[int, float | None]:
    """How many tokens the loop makes, and by how much its best logit led where `written` first differs (else None)."""
    loop, leads = _plain_loop(original, states, token, decoding)
    theirs = _generated(written, log_mel, token, decoding)
    if loop == theirs:
        return len(loop), None
    differ = [j for j, (a, b) in enumerate(zip(loop, theirs, strict=False)) if a != b]
    return len(loop), leads[differ[0] if differ else min(len(loop), len(theirs))]


def _log_mel(transcriber: Transcriber, corpus: Corpus) -> tuple[dict[int, torch.Tensor], dict[str, str]]:
    """Spectrograms [1, mels, frames] by row, and by id why others cannot be read. Raises InputError without any."""
    infos, failures = find_recordings(corpus)
    found = {}
    for i, info in infos.items():
        try:
            found[i] = spectrograms(transcriber.encoder, read_recording(corpus, i, info))
        except AudioError as e:
            failures[str(corpus.table["id"][i])] = str(e)
    refuse_if_none(corpus, found, failures)
    return found, failures


def _session(encoder: Checkpoint, folder: Path) -> onnxruntime.InferenceSession:
    """The original encoder's graph, as `export` writes it, with every layer_k as output."""
    outputs = output_names(encoder.shape.layers)
    with WeightsFile(folder / WEIGHTS, encoder.state(), encoder.shape, "float32") as weights:
        graph = encoder_graph(weights, outputs=outputs, cached=False, norm_every=False)
    (folder / ENCODER).write_bytes(graph)
    return onnxruntime.InferenceSession(folder / ENCODER, providers=["CPUExecutionProvider"])


def _states(session: Any, original: Any, log_mel: torch.Tensor, at: EarlyExit) -> torch.Tensor:
    """What the decoder is given: layer_k of our graph, through the original's LayerNorm where the exit has it."""
    (state,) = session.run([f"layer_{at.after:02d}"], {"log_mel": log_mel.numpy()})
    states = torch.from_numpy(state)
    if at.norm == "without":
        return states
    with torch.inference_mode():
        normed: torch.Tensor = original.model.encoder.layer_norm(states)
    return normed


def _prefix(model: Any, token: str | None, decoding: Decoding) -> list[int]:
    """Start of transcript, language, task, no timestamps: what the model has of them."""
    g = model.generation_config
    prefix = [g.decoder_start_token_id]
    if token is not None:
        prefix += [g.lang_to_id[token], g.task_to_id[decoding.task]]
    silent = getattr(g, "no_timestamps_token_id", None)
    return prefix if silent is None else [*prefix, silent]


def _plain_loop(
    model: Any, states: torch.Tensor, token: str | None, decoding: Decoding
) -> tuple[list[int], list[float]]:
    """Tokens, the end of text left out, and the lead of each over the second best logit."""
    g = model.generation_config
    ids, leads, prefix = list[int](), list[float](), _prefix(model, token, decoding)
    while len(ids) < decoding.max_new_tokens:
        with torch.inference_mode():
            given = torch.tensor([prefix + ids])
            hidden = model.model.decoder(input_ids=given, encoder_hidden_states=states, use_cache=False)
            logits = model.proj_out(hidden.last_hidden_state)[0, -1]
            logits[g.suppress_tokens or []] = -torch.inf
            if not ids:
                logits[g.begin_suppress_tokens or []] = -torch.inf
            best = torch.topk(logits, 2)
        leads.append(float(best.values[0] - best.values[1]))
        if int(best.indices[0]) == g.eos_token_id:
            break
        ids.append(int(best.indices[0]))
    return ids, leads


def _generated(model: Any, log_mel: torch.Tensor, token: str | None, decoding: Decoding) -> list[int]:
    """Tokens of `generate`, without prefix and end of text."""
    whole = EarlyExit(model.config.encoder_layers)
    ids: list[int] = generate_tokens(model, log_mel, whole, token, decoding)[0].tolist()
    prefix = _prefix(model, token, decoding)
    if ids[: len(prefix)] == prefix:  # versions of transformers differ in whether they return it
        ids = ids[len(prefix) :]
    end = model.generation_config.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids
