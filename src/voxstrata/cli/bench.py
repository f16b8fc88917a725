"""voxstrata bench"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.base.plain import time_in_words
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, aligned, print_json, say_written
from voxstrata.cli.corpora import read_and_note
from voxstrata.cli.saying import say


@click.command(short_help="Measure how fast this machine runs MODEL.")
@options.model
@options.outputs
@click.option("--corpus", type=options.PLACE, help="Also say what this corpus would take in each context.")
@options.reading
@options.out("Folder for bench.parquet, estimates.parquet, bench.md and a picture.", required=False)
@options.running
@options.overwrite
@options.as_json
def bench(
    model: Path,
    outputs: str,
    corpus: Path | None,
    reading: dict[str, Any],
    folder: Path | None,
    runtime: vs.Runtime,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure how fast this machine runs MODEL, in about two minutes, and remember it for `voxstrata plan`.

    Extracts made-up recordings (read sentences' mix of lengths, mean 12 s) in every context into a temporary folder
    (TMPDIR, up to 2 GB, on a GPU 16 GB), on an otherwise quiet machine; at least four and one per thread in each, which
    takes longer with large models. On a GPU all is done twice, and the second time counts. The result is kept in
    XDG_CACHE_HOME or ~/.cache, for this model, machine, software, device and number of threads.

    \b
    Example:
      voxstrata bench base --corpus speech.tsv --threads 2 -o study/speed
    """
    from voxstrata.corpus import probe_corpus
    from voxstrata.engine.bench import Bench
    from voxstrata.engine.estimating import estimate
    from voxstrata.engine.measuring import bench as run
    from voxstrata.engine.measuring import record_path

    if folder is not None:
        Bench.refuse_foreign(folder)
        Bench.refuse_earlier(folder, overwrite)
    opened = vs.open_model(model)
    read = read_and_note(corpus, reading) if corpus else None  # a mistake in it shows before the measurement
    estimates = {}
    with TerminalReporter() as reporter:
        record = run(opened, outputs, runtime, reporter)
        if read:
            probed = probe_corpus(read, reporter=reporter)
            for mode, found in record.contexts.items():
                spec = vs.StoreSpec(outputs, context=vs.Context(found.context))
                estimates[mode] = estimate(read, opened, spec, runtime, record, probed=probed)
    result = Bench.of(record, estimates, opened.card.checkpoint)
    written = result.save(folder) if folder else []
    if as_json:
        expected = {mode: asdict(found) for mode, found in estimates.items()} or None
        about = {"record": str(record_path(record.about)), "out": folder and str(folder)}
        print_json({**record.with_rates(), "corpus": expected, **about})
        return
    say(f"{model} {record.to_text()}")
    if estimates:
        audio = time_in_words(next(iter(estimates.values())).audio_seconds)
        rows = [[mode, estimate.in_words()] for mode, estimate in estimates.items()]
        say(f"\n{corpus}, {audio} of audio, would take on this machine:\n{aligned(['context', ''], rows, (0, 1))}")
    if written:
        say_written(folder, [path.name for path in written])
