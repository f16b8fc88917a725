"""voxstrata plan"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.base.plain import counted
from voxstrata.base.remote import shown
from voxstrata.cli import options
from voxstrata.cli.console import PARTIAL, TerminalReporter, print_failures, print_json
from voxstrata.cli.corpora import corpus_json, refuse_swapped, tell_corpus
from voxstrata.cli.saying import say, say_wrapped


@click.command(short_help="What extracting CORPUS would take: storage and time.")
@options.corpus
@options.model
@options.reading
@options.storing
@options.planning
@options.running
@options.as_json
def plan(
    corpus: Path,
    model: Path,
    spec: vs.StoreSpec,
    long: Any,
    reading: dict[str, Any],
    unit_mb: float | None,
    runtime: vs.Runtime,
    as_json: bool,
) -> int:
    """Tell what `voxstrata extract CORPUS MODEL` would take: units, windows, tokens, storage, and time.

    Reads headers only, computes and writes nothing. The expected time comes from what `voxstrata bench MODEL`
    measured on this machine with the same device and threads; without that it is left out.

    \b
    Example:
      voxstrata plan speech.tsv base --outputs layer_03,layer_06,final
    """
    from voxstrata.engine.estimating import estimate
    from voxstrata.engine.measuring import recorded

    refuse_swapped(corpus, model)
    opened, runtime = vs.open_model(model), replace(runtime, unit_megabytes=unit_mb)
    record = recorded(opened, runtime)
    read = vs.read_corpus(corpus, **reading)
    if not as_json:
        tell_corpus(corpus, read)
    with TerminalReporter() as reporter:
        found = estimate(read, opened, spec, runtime, record, reporter, long=long)
    used, device = runtime.thread_count, runtime.device
    command = f"voxstrata bench {model} --device {device} --threads {used}"
    if as_json:
        about = {"device": str(device), "threads": used, "bench": None if record else command}
        print_json(asdict(found) | about | {"corpus": corpus_json(read)})
    else:
        say(f"\n{shown(str(corpus))} with {model}:\n\n{found.to_text()}")
        if record:
            outputs = counted(len(record.contexts[found.context].outputs), "output")
            where = f"{device}, {counted(used, 'thread')}; measured by `voxstrata bench` with {outputs}"
            say_wrapped(f"\nexpected: about {found.in_words()}, on this machine ({where})")
        else:
            say_wrapped(f"\n{found.in_words()}; the time is not known, this measures it in two minutes:")
            say(f"  {command}")
    print_failures(found.failures, "which `--json` lists")
    return PARTIAL if found.failures else 0
