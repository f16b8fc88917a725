"""voxstrata append"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import PARTIAL, TerminalReporter, print_failures, print_json
from voxstrata.cli.corpora import refuse_swapped, refuse_swapped_store, tell_corpus
from voxstrata.cli.interrupts import appended_kept, resume_hint
from voxstrata.cli.saying import say_wrapped


@click.command(short_help="Add CORPUS's recordings to a finished store.")
@click.argument("store", type=click.Path())
@options.corpus
@options.model
@options.reading
@options.planning
@options.running
@click.option("--tokens", type=options.COUNT, help="Batch size × computed positions. [default: by device]")
@click.option("--allow-overflow", is_flag=True, help="Store values beyond float16 as infinities.")
@options.as_json
def append(
    store: str,
    corpus: Path,
    model: Path,
    long: Any,
    reading: dict[str, Any],
    unit_mb: float | None,
    runtime: vs.Runtime,
    tokens: int | None,
    allow_overflow: bool,
    as_json: bool,
) -> int:
    """Encode the recordings of CORPUS that STORE does not hold, and add them to it.

    MODEL is the one that STORE was made with; outputs, context and dtype are STORE's. Recordings that it holds are
    passed over, so a corpus that has grown can be given whole. What is added is there all at once, at the end; after
    an interrupt the same command goes on.

    \b
    Example:
      voxstrata append speech.zarr more.tsv base
    """
    refuse_swapped_store(store, corpus, model)
    refuse_swapped(corpus, model, store)
    vs.open_store(store)  # what is none is refused before a large corpus is read
    with resume_hint(appended_kept(store)), TerminalReporter() as reporter:
        reporter.step("reading the corpus")
        read = vs.read_corpus(corpus, **reading)
        if not as_json:
            tell_corpus(corpus, read, err=True)
        report = vs.append(
            store,
            read,
            model,
            replace(runtime, tokens=tokens, unit_megabytes=unit_mb),
            reporter,
            long=long,
            allow_overflow=allow_overflow,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        say_wrapped(report.to_text(), indent="  ")
    print_failures(report.failures, f"all in {store}/utterances.parquet")
    return PARTIAL if report.failed else 0
