"""voxstrata bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxstrata.cli.console import Line, aligned, clock, count_progress, json_option, print_json, run_options, steps

if TYPE_CHECKING:
    from voxstrata.engine.measuring import Record

BUSY_LOAD = 1.0  # of other work before the measurement, that the reader should hear of


@click.command(short_help="Measure how fast this machine runs MODEL.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--outputs", default="all", show_default=True, help="Outputs to keep while measuring.")
@click.option("--corpus", type=click.Path(path_type=Path), help="Also say what this corpus would take in each context.")
@click.option("--split", help="train, dev or test of a FLEURS folder given as --corpus. [default: all]")
@run_options
@json_option
def bench(
    model: Path,
    outputs: str,
    corpus: Path | None,
    split: str | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how fast this machine runs MODEL, in about two minutes, and remember it for `voxstrata plan`.

    Extracts made-up recordings (read sentences' mix of lengths, mean 12 s) in every context into a temporary folder
    (TMPDIR, up to 2 GB), on an otherwise quiet machine; at least four and one per thread in each, which
    takes longer with large models. The result is kept in XDG_CACHE_HOME or ~/.cache, for this
    model, machine, software, device and number of threads.

    \b
    Example:
      voxstrata bench base --corpus speech.tsv --threads 2
    """
    from voxstrata.corpus import probe_corpus, read_corpus
    from voxstrata.encoders import Context, open_model
    from voxstrata.engine.estimating import estimate
    from voxstrata.engine.measuring import bench as run
    from voxstrata.engine.measuring import record_path
    from voxstrata.engine.planning import store_spec
    from voxstrata.engine.sessions import Device

    opened, on = open_model(model), Device.parse(device)
    read = read_corpus(corpus, split) if corpus else None  # a mistake in it shows before the measurement
    with Line() as line:
        record = run(opened, outputs=outputs, device=on, threads=threads, say=steps(line))
        estimates = {}
        if read:
            probed = probe_corpus(read, progress=count_progress(line, "reading headers"))
            for mode in record.modes:
                spec = store_spec(opened, outputs=outputs, context=Context(mode), device=on)  # type: ignore[arg-type]
                estimates[mode] = estimate(read, opened, spec, record, device=on, probed=probed)
    if as_json:
        expected = {mode: e.to_dict() for mode, e in estimates.items()}
        print_json(_with_rates(record) | {"record": str(record_path(record.about)), "corpus": expected or None})
        return
    click.echo(bench_text(str(model), record))
    if estimates:
        rows = [
            [mode, clock(e.seconds), f"{e.bytes / 1e9:.2f}"] for mode, e in estimates.items() if e.seconds is not None
        ]
        audio = clock(next(iter(estimates.values())).audio_seconds)
        click.echo(f"\n{corpus}, {audio} of audio, would take:\n{aligned(['context', 'h:mm:ss', 'GB'], rows)}")


def _with_rates(record: Record) -> dict[str, Any]:
    d = record.to_dict()
    for mode, t in record.modes.items():
        d["modes"][mode] |= {"audio_hours_per_hour": t.audio_hours_per_hour, "flops_per_second": t.flops_per_second}
    return d


def bench_text(model: str, record: Record) -> str:
    """The record as a table in plain text."""
    about = record.about
    header = ["context", "audio-hours per hour", "GB per audio-hour", "efficiency", "clips", "seconds"]
    rows = [
        [
            mode,
            f"{t.audio_hours_per_hour:.1f}",
            f"{3600 * t.stored_bytes / t.audio_seconds / 1e9:.2f}",
            "" if t.efficiency is None else f"{t.efficiency:.0%}",
            str(t.clips),
            f"{t.seconds:.1f}",
        ]
        for mode, t in record.modes.items()
    ]
    stages = {stage: None for t in record.modes.values() for stage in t.stages}
    busy = [[mode, *(f"{t.stages.get(s, 0.0) / t.seconds:.1%}" for s in stages)] for mode, t in record.modes.items()]
    outputs = next(iter(record.modes.values())).outputs
    note = ""
    if record.load > BUSY_LOAD:
        note = f"\nother work was running (load average {record.load}): these rates are too low"
    limit = f", sgemm {record.sgemm_rate / 1e9:.0f} GFLOP/s" if record.sgemm_rate else ""
    return (
        f"{model} on {about['cpu']}, {about['device']}, {about['threads']} of {about['cores']} cores{limit}\n"
        f"{len(outputs)} outputs as float16, made-up sound of mean 12 s\n\n"
        f"{aligned(header, rows)}\n\n"
        "busy time of the stages by wall time (they overlap; decode, log_mel and encode add up threads)\n"
        f"{aligned(['context', *stages], busy)}{note}"
    )
