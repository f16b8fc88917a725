"""The sweep: every exit transcribes a corpus, one is chosen on the development part and reported on the test part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from voxstrata.corpus import Corpus
from voxstrata.experiments.transcribe import Decoding, check_texts, every_exit, transcribe
from voxstrata.experiments.transcribe_report import write_results
from voxstrata.experiments.transcribe_score import (
    DEV,
    TEST,
    Choice,
    Rates,
    Scoring,
    choose,
    rates_table,
    references,
    score,
    split_groups,
)
from voxstrata.exporters.early_exit import Transcriber
from voxstrata.folders import make_writable


@dataclass(frozen=True)
class SweepReport:
    """A finished sweep. rates: see `rates_table`; transcripts: see `score`; about: settings, data and failures."""

    choices: list[Choice]
    rates: pa.Table
    transcripts: pa.Table
    about: dict[str, Any]


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

    Everything that can be refused without transcribing is refused before. Raises UsageError for blocks, languages, a
    task or settings that do not exist, InputError for missing texts and for a language that one part lacks.
    """
    import matplotlib  # noqa: F401  (missing: say so before hours of work, not after)

    make_writable(folder)
    decoding, scoring = decoding or Decoding(), scoring or Scoring()
    english = decoding.task == "translate"
    check_texts(corpus)
    rows = corpus.table.to_pylist()
    parts = dict(zip(corpus.table["id"].to_pylist(), split_groups(rows, scoring), strict=True))
    references(rows, scoring, english, transcriber.folder)
    exits = every_exit(transcriber.layers, blocks)
    heard = transcribe(transcriber, corpus, exits, decoding, device=device, progress=progress)
    table = score(heard, [parts[row["id"]] for row in heard.rows], scoring, english, transcriber.folder)
    dev, test = (Rates(table, part, scoring) for part in (DEV, TEST))
    rates, choices = rates_table([(DEV, dev), (TEST, test)]), choose(dev, test)
    about = {
        "checkpoint": transcriber.name,
        "revision": transcriber.encoder.revision,
        "weights_sha256": transcriber.encoder.sha256(),
        "layers": transcriber.layers,
        "corpus": corpus.root.name,
        "utterances": len(heard.rows),
        "decoding": decoding.to_dict(),
        "scoring": scoring.to_dict(),
        "failures": dict(heard.failures),
        "tools": {p: version(p) for p in ("voxstrata", "torch", "transformers", "jiwer")},
    }
    write_results(folder, transcriber.name, table, rates, choices, about)
    return SweepReport(choices, rates, table, about)
