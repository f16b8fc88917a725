"""Whether written checkpoints compute what they claim: their tokens against a plain loop over our own ONNX graph."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from transformers import GenerationMixin, WhisperForConditionalGeneration

from voxstrata.base.errors import AudioError, InputError, UsageError
from voxstrata.base.folders import scratch_folder
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.tables import TextTable
from voxstrata.corpus import Corpus
from voxstrata.early_exit.checkpoint import Transcriber, quiet_transformers, spectrograms, write_early_exit
from voxstrata.early_exit.decoder import Ask
from voxstrata.early_exit.decoding import AUTO, Decoding, in_float32, language_tokens, make_decoder, new_tokens, prompt
from voxstrata.early_exit.exits import EarlyExit, check_exit
from voxstrata.early_exit.recordings import failure_reason, find_recordings, read_recording, refuse_if_none
from voxstrata.early_exit.states import ExitNorms
from voxstrata.encoders.card import ENCODER, WEIGHTS
from voxstrata.encoders.outputs import output_names
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.standard_graph import encoder_graph
from voxstrata.exporters.weights import WeightsFile

_CLEAR_LEAD = 0.01  # of the best logit over the second: below it, rounding may decide


@dataclass(frozen=True)
class ExitCheck:
    """One exit: how many recordings gave the same tokens both ways, of how many; and tokens compared.

    fast: how many gave the loop's tokens in the decoder of `sweep`. relative_l2: of the written encoder, from its card.
    margin: where tokens first differ, by how much the loop's best logit led the second, the widest over recordings and
    both ways; None where all agree. A margin near 0 is a tie that rounding decides; a wide one is an error.
    """

    after: int
    norm: str
    recordings: int
    equal: int
    fast: int
    tokens: int
    relative_l2: float
    margin: float | None

    @property
    def agrees(self) -> bool:
        """Whether both ways compute the same, up to ties."""
        return self.margin is None or self.margin < _CLEAR_LEAD


def checks_table(checks: Sequence[ExitCheck]) -> TextTable:
    """A row per exit."""
    header = ["k", "LayerNorm", "equal", "sweep's", "tokens", "encoder's difference", "margin where they differ"]
    rows = []
    for c in checks:
        margin = "–" if c.margin is None else f"{c.margin:.1e}"
        counts = [f"{n}/{c.recordings}" for n in (c.equal, c.fast)]
        rows.append([c.after, c.norm, *counts, c.tokens, f"{c.relative_l2:.1e}", margin])
    fast, of = sum(c.fast for c in checks), sum(c.recordings for c in checks)
    said = f"The decoder of sweep makes the plain loop's tokens in {fast} of {of} transcripts."
    return TextTable("Written checkpoints against a plain loop", header, rows, said)


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
    if AUTO in tokens.values():
        raise UsageError("check announces a language, so that both ways have the same; auto is for sweep")
    if tokens and None in languages:
        raise InputError(f"{corpus.where}: a recording without language; name it in the manifest's column 'language'")
    log_mel, failures = _log_mel(source, corpus)
    decoding = replace(decoding, max_new_tokens=new_tokens(source.model, decoding), stop_loops=False)
    original = in_float32(source.model)
    norms = ExitNorms(original.model.encoder.layer_norm)
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
            compared = []
            for i in list(log_mel):
                try:
                    states = norms(at, _layer(session, log_mel[i], at))
                    start = prompt(original.generation_config, tokens.get(str(languages[i])), decoding.task)
                    compared.append(_compare(original, states, written, log_mel[i], start, decoding))
                except Exception as e:  # as in a sweep, it costs this recording alone
                    failures[str(corpus.table["id"][i])] = failure_reason(corpus, i, e)
                    del log_mel[i]
            refuse_if_none(corpus, log_mel, failures)
            both = [found for _, *found in compared]
            leads = [[lead for lead in leads if lead is not None] for leads in zip(*both, strict=True)]
            equal, fast = (len(compared) - len(found) for found in leads)
            margin = max([*leads[0], *leads[1]], default=None)
            count = sum(n for n, _, _ in compared)
            checks.append(ExitCheck(at.after, at.norm, len(compared), equal, fast, count, card.relative_l2, margin))
    return checks, failures


def _compare(
    original: Any, states: torch.Tensor, written: Any, log_mel: torch.Tensor, start: tuple[int, ...], decoding: Decoding
) -> tuple[int, float | None, float | None]:
    """How many tokens the loop makes, and by how much its best logit led where `written` first differs (else None),
    and where the decoder of `sweep` does."""
    loop, leads = _plain_loop(original, states, start, decoding)
    ((_, fast),) = make_decoder(original, str, decoding).decode([Ask(lambda: states[0], start)])

    def lead(theirs: Sequence[int]) -> float | None:
        differ = [j for j, (a, b) in enumerate(zip(loop, theirs, strict=False)) if a != b]
        return None if loop == theirs else leads[differ[0] if differ else min(len(loop), len(theirs))]

    return len(loop), lead(generated(written, log_mel, start, decoding)), lead(list(fast.ids))


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


def _layer(session: Any, log_mel: torch.Tensor, at: EarlyExit) -> torch.Tensor:
    """layer_k of our graph."""
    (state,) = session.run([f"layer_{at.after:02d}"], {"log_mel": log_mel.numpy()})
    return torch.from_numpy(state)


def _plain_loop(
    model: Any, states: torch.Tensor, start: Sequence[int], decoding: Decoding
) -> tuple[list[int], list[float]]:
    """Tokens, the end of text left out, and the lead of each over the second best logit."""
    g = model.generation_config
    ids, leads = list[int](), list[float]()
    while len(ids) < decoding.max_new_tokens:
        with torch.inference_mode():
            given = torch.tensor([[*start, *ids]])
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


def generated(model: Any, log_mel: torch.Tensor, start: Sequence[int], decoding: Decoding) -> list[int]:
    """Tokens that transformers' `generate` makes after the prompt `start`, without the end of text.

    It is the one of all its models: Whisper's own starts anew within a window where the model says a time, which an
    early exit may do although it was told not to.
    """
    with quiet_transformers(), torch.inference_mode():
        ids: list[int] = GenerationMixin.generate(
            model, log_mel, decoder_input_ids=torch.tensor([start]), max_new_tokens=new_tokens(model, decoding),
            num_beams=1, do_sample=False,
        )[0].tolist()[len(start) :]  # fmt: skip
    end = model.generation_config.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids
