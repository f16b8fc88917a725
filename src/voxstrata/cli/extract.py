"""voxstrata extract"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import PARTIAL, TerminalReporter, print_failures, print_json, resume_hint
from voxstrata.cli.corpora import corpus_json, refuse_swapped, tell_corpus
from voxstrata.cli.saying import say


@click.command()
@options.corpus
@options.model
@options.out("Store to make or to resume: a path or s3://…, gs://…", "store", type=str)
@options.reading
@options.storing
@options.planning
@options.running
@click.option("--tokens", type=options.COUNT, help="Batch size × computed positions. [default: by device]")
@click.option("--allow-overflow", is_flag=True, help="Store values beyond float16 as infinities.")
@click.option("--efficiency", is_flag=True, help="Also report the share of this CPU's matrix product rate (sgemm).")
@options.as_json
def extract(
    corpus: Path,
    model: Path,
    store: str,
    spec: vs.StoreSpec,
    long: Any,
    reading: dict[str, Any],
    unit_mb: float | None,
    runtime: vs.Runtime,
    tokens: int | None,
    allow_overflow: bool,
    efficiency: bool,
    as_json: bool,
) -> int:
    """Extract the embeddings of CORPUS with MODEL into a zarr store.

    CORPUS is a folder of audio; a manifest (.tsv, .csv, .jsonl, .parquet: path, and optionally id, language, group,
    text, speaker, start, end, channel); or what others keep: FLEURS, Common Voice, CoVoST, NeMo, Kaldi, an audio folder
    of Hugging Face. MODEL is a folder made by `voxstrata export`. When the store exists the run resumes it.

    \b
    Example:
      voxstrata extract speech.tsv base -o speech.zarr --outputs layer_03,layer_06,final
    """
    refuse_swapped(corpus, model)
    with resume_hint(), TerminalReporter() as reporter:
        reporter.step("reading the corpus")
        read = vs.read_corpus(corpus, **reading)
        if not as_json:
            tell_corpus(corpus, read, err=True)
        report = vs.extract(
            read,
            model,
            store,
            spec,
            replace(runtime, tokens=tokens, unit_megabytes=unit_mb),
            reporter,
            long=long,
            allow_overflow=allow_overflow,
            efficiency=efficiency,
        )
    if as_json:
        print_json(report.to_dict() | {"corpus": corpus_json(read)})
    else:
        say(report.to_text())
    print_failures(report.failures, f"all in {store}/utterances.parquet")
    return PARTIAL if report.failed else 0
