"""The sweep: every exit transcribes a corpus, one is chosen on the development part and reported on the test part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from voxstrata.base.errors import InputError
from voxstrata.base.folders import make_writable
from voxstrata.corpus import Corpus
from voxstrata.early_exit.checkpoint import Transcriber
from voxstrata.early_exit.decoding import Decoding, check_texts, every_exit, new_tokens, transcribe
from voxstrata.early_exit.journal import JOURNAL, corpus_hash, model_hash, open_journal
from voxstrata.early_exit.normalization import ENGLISH_UNMAPPED, SPELLINGS
from voxstrata.early_exit.rates import ALL, Choice, Rates, both_parts, choose, rates_table
from voxstrata.early_exit.scoring import DEV, TEST, Scoring, references, score, scripts_of, split_groups
from voxstrata.early_exit.text import write_results


@dataclass(frozen=True)
class SweepReport:
    """A finished sweep. rates: see `rates_table`; transcripts: see `score`; about: settings, data, failures, notes.

    resumed: transcripts that an earlier run had made.
    """

    choices: list[Choice]
    rates: pa.Table
    transcripts: pa.Table
    about: dict[str, Any]
    resumed: int


def sweep(
    transcriber: Transcriber,
    corpus: Corpus,
    folder: Path,
    *,
    blocks: Sequence[int] | None = None,
    decoding: Decoding | None = None,
    scoring: Scoring | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> SweepReport:
    """Transcribe `corpus` with the encoder ended after `blocks` (None: each), score, choose, and write `folder`.

    Transcripts are written as they come; a run that was stopped goes on when it is asked for again. Checkpoint,
    corpus, task, announced languages, tokens and device must be the same then; blocks and scoring may be others.

    Everything that can be refused without transcribing is refused before. Raises UsageError for blocks, languages, a
    task or settings that do not exist, InputError for missing texts, for a language that one part lacks, and for a
    folder with the transcripts of a run with other settings.
    """
    import matplotlib  # noqa: F401  (missing: say so before hours of work, not after)

    make_writable(folder)
    decoding, scoring = decoding or Decoding(), scoring or Scoring()
    decoding = replace(decoding, max_new_tokens=new_tokens(transcriber.model, decoding))
    english = decoding.task == "translate"
    check_texts(corpus)
    rows = corpus.table.to_pylist()
    parts = dict(zip(corpus.table["id"].to_pylist(), split_groups(rows, scoring), strict=True))
    used = references(rows, scoring, english, transcriber.folder)
    normalizers = {str(row["language"]): norm.name for row, (norm, _) in zip(rows, used, strict=True)}
    settings = {
        "model_sha256": model_hash(transcriber),
        "corpus_sha256": corpus_hash(corpus),
        "task": decoding.task,
        "prompts": dict(decoding.prompts),
        "max_new_tokens": decoding.max_new_tokens,
        "device": device,
    }
    exits = every_exit(transcriber.layers, blocks)
    try:
        with open_journal(folder, settings) as journal:
            heard = transcribe(transcriber, corpus, exits, decoding, device=device, journal=journal, progress=progress)
            table = score(heard, [parts[row["id"]] for row in heard.rows], scoring, english, transcriber.folder)
            dev, test = both_parts(table, scoring)
            rates, choices = rates_table([(DEV, dev), (TEST, test)]), choose(dev, test)
            about = {
                "checkpoint": transcriber.name,
                "revision": transcriber.encoder.revision,
                "weights_sha256": transcriber.encoder.sha256(),
                **settings,
                "layers": transcriber.layers,
                "corpus": corpus.root.name,
                "utterances": len(heard.rows),
                "decoding": decoding.to_dict(),
                "scoring": scoring.to_dict(),
                "normalizers": normalizers,
                "notes": _notes(heard.rows, normalizers, dev, test, scoring),
                "failures": dict(sorted(heard.failures.items())),
                "tools": {p: version(p) for p in ("voxstrata", "torch", "transformers", "jiwer")},
            }
            write_results(folder, transcriber.name, table, rates, choices, about)
    except OSError as e:
        raise InputError(
            f"{folder}: cannot write ({e}); the transcripts in {JOURNAL} are safe: mend it and run the same command to "
            "go on"
        ) from e
    return SweepReport(choices, rates, table, about, journal.resumed)


def _notes(
    rows: Sequence[Mapping[str, str | None]], normalizers: Mapping[str, str], dev: Rates, test: Rates, scoring: Scoring
) -> list[str]:
    """What else the figures depend on: a sentence each."""
    notes = []
    unmapped = sorted(language for language, name in normalizers.items() if name == ENGLISH_UNMAPPED)
    if unmapped:
        notes.append(
            f"{', '.join(unmapped)}: the checkpoint's folder has no {SPELLINGS}, so spellings (colour, color) count as "
            "errors where Whisper's normalizer makes them one; copy the file from the original checkpoint to compare "
            "with others' WER"
        )
    for language, (script, others) in sorted(scripts_of(rows).items()):
        if others:
            held = " and ".join(f"{n} text{'s' * (n > 1)} in {name.lower()}" for name, n in others.items())
            notes.append(
                f"{language}: scored as {script.lower()}, the script of most of its texts; {held} counted with them"
            )
    for ours, other, part in ((dev, test, TEST), (test, dev, DEV)):
        for language, _ in sorted(set(ours.scopes) - set(other.scopes)):
            notes.append(
                f"{language}: no recording of the {part} part was transcribed, so no k is chosen, and '{ALL}' is "
                "without it"
            )
    for part, rates in ((DEV, dev), (TEST, test)):
        if rates.incomplete:
            notes.append(
                f"'{ALL}', {part} part: {rates.incomplete} of {scoring.resamples} resamples drew nothing of some "
                "language and are means over the others"
            )
    return notes
