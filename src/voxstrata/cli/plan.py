"""voxstrata plan"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxstrata.cli.console import (
    FAILURES_SHOWN,
    PARTIAL,
    Line,
    aligned,
    clock,
    count_progress,
    json_option,
    print_json,
    run_options,
)
from voxstrata.cli.options import storing_options

if TYPE_CHECKING:
    from voxstrata.engine.estimating import Estimate


@click.command(short_help="What extracting CORPUS would take: storage and time.")
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@storing_options
@run_options
@json_option
def plan(
    corpus: Path,
    model: Path,
    outputs: str,
    mode: str,
    dtype: str,
    pool: str | None,
    every: int,
    long: str,
    split: str | None,
    unit_mb: float | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Tell what `voxstrata extract CORPUS MODEL` would take: units, windows, tokens, storage, and time.

    Reads headers only, computes and writes nothing. The expected time comes from what `voxstrata bench MODEL`
    measured on this machine with the same device and threads; without that it is left out.

    \b
    Example:
      voxstrata plan speech.tsv base --outputs layer_03,layer_06,final
    """
    from voxstrata.corpus import probe_corpus, read_corpus
    from voxstrata.encoders import Context, open_model
    from voxstrata.engine.estimating import estimate
    from voxstrata.engine.measuring import recorded
    from voxstrata.engine.planning import store_spec
    from voxstrata.engine.sessions import Device, available_threads

    opened, on = open_model(model), Device.parse(device)
    spec = store_spec(
        opened,
        outputs=outputs,
        context=Context(mode),  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        pool=pool,  # type: ignore[arg-type]
        every=every,
        device=on,
    )
    used = threads or available_threads()
    record = recorded(opened, on, used)
    read = read_corpus(corpus, split)
    with Line() as line:
        found = estimate(
            read,
            opened,
            spec,
            record,
            long=long,  # type: ignore[arg-type]
            unit_megabytes=unit_mb,
            device=on,
            probed=probe_corpus(read, progress=count_progress(line, "reading headers")),
        )
    command = f"voxstrata bench {model} --device {device} --threads {used}"
    if as_json:
        print_json(found.to_dict() | {"device": device, "threads": used, "bench": None if record else command})
    else:
        click.echo(f"{corpus} with {model}:{estimate_text(found)}")
        if record:
            click.echo(
                f"\nexpected time {_time(found)} on {device}, {used} threads, by the rate `voxstrata bench` stored "
                f"({len(record.modes[spec.context.mode].outputs)} outputs)"
            )
        else:
            click.echo(f"\nexpected time not known: measure this machine with `{command}` (two minutes)")
    if found.failures:
        click.echo(f"{len(found.failures)} recordings cannot be read:", err=True)
        for name, reason in list(found.failures.items())[:FAILURES_SHOWN]:
            click.echo(f"  {name}: {reason}", err=True)
        if len(found.failures) > FAILURES_SHOWN:
            click.echo(f"  … and {len(found.failures) - FAILURES_SHOWN} more; `--json` lists all", err=True)
    return PARTIAL if found.failures else 0


def _time(found: Estimate) -> str:
    assert found.seconds is not None
    return f"{clock(found.seconds)} ({found.audio_seconds / found.seconds:.1f} audio-hours per hour)"


def estimate_text(found: Estimate) -> str:
    """Recordings, work and storage, in plain text."""
    readable = found.recordings - len(found.failures)
    rows = [
        ("recordings", f"{readable} of {found.recordings} readable, {clock(found.audio_seconds)} of audio"),
        ("units", f"{found.units}"),
        ("windows", f"{found.windows} of at most 30 s, {found.mode}"),
        ("tokens", f"{found.tokens:,} positions to compute, {found.flops / 1e12:,.1f} TFLOP"),
    ]
    table = [[name, f"{found.rows:,}", f"{found.bytes_per_output / 1e6:,.1f}"] for name in found.outputs]
    table.append(["all", f"{found.rows * len(found.outputs):,}", f"{found.bytes / 1e6:,.1f}"])
    about = "\n".join(f"  {k:<12}{v}" for k, v in rows)
    return f"\n{about}\n\n{aligned(['output', 'rows', 'MB on disk'], table)}"
