"""voxstrata extract"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from voxstrata.cli.console import (
    PARTIAL,
    Line,
    clock,
    count_progress,
    extraction_progress,
    json_option,
    print_failures,
    print_json,
    run_options,
)
from voxstrata.cli.options import storing_options


@contextmanager
def resume_hint() -> Iterator[None]:
    """On an interrupt, say what it cost: nothing that is committed."""
    try:
        yield
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt("what is committed is safe, the same command goes on from there") from e


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", "store", required=True, help="Store to make or to resume: a path or s3://…, gs://…")
@storing_options
@run_options
@click.option("--tokens", type=click.IntRange(min=1), help="Batch size × computed positions. [default: by device]")
@click.option("--allow-overflow", is_flag=True, help="Store values beyond float16 as infinities.")
@click.option("--efficiency", is_flag=True, help="Also report the share of this CPU's matrix product rate (sgemm).")
@json_option
def extract(
    corpus: Path,
    model: Path,
    store: str,
    outputs: str,
    mode: str,
    dtype: str,
    pool: str | None,
    every: int,
    long: str,
    split: str | None,
    device: str,
    threads: int | None,
    tokens: int | None,
    unit_mb: float | None,
    allow_overflow: bool,
    efficiency: bool,
    as_json: bool,
) -> int:
    """Extract the embeddings of CORPUS with MODEL into a zarr store.

    CORPUS is a folder of audio, a manifest (.tsv, .csv, .jsonl, .parquet: path, and optionally id, language, group,
    text, speaker) or a FLEURS folder. MODEL is a folder made by `voxstrata export`. When the store exists the run
    resumes it.

    \b
    Example:
      voxstrata extract speech.tsv base -o speech.zarr --outputs layer_03,layer_06,final
    """
    from voxstrata.corpus import read_corpus
    from voxstrata.encoders import Context
    from voxstrata.engine import Device
    from voxstrata.engine import extract as run

    with resume_hint(), Line() as line:
        line.show("reading the corpus", force=True)
        report = run(
            read_corpus(corpus, split),
            model,
            store,
            outputs=outputs,
            context=Context(mode),  # type: ignore[arg-type]
            dtype=dtype,  # type: ignore[arg-type]
            pool=pool,  # type: ignore[arg-type]
            every=every,
            long=long,  # type: ignore[arg-type]
            device=Device.parse(device),
            threads=threads,
            tokens=tokens,
            unit_megabytes=unit_mb,
            allow_overflow=allow_overflow,
            efficiency=efficiency,
            progress=extraction_progress(line),
            probing=count_progress(line, "reading headers"),
        )
    if as_json:
        print_json(report.to_dict())
    else:
        resumed = f", {report.resumed_units} of them by an earlier run" if report.resumed_units else ""
        click.echo(
            f"{store}: {report.utterances - report.failed} of {report.utterances} utterances in {report.units} "
            f"units{resumed}"
        )
        if report.resumed_units == report.units:
            click.echo("nothing was left to do")
        else:
            rate = report.audio_seconds / report.seconds
            busy = "  ".join(f"{k} {v:.1f} s" for k, v in report.stages.items())
            click.echo(
                f"{clock(report.audio_seconds)} of audio in {clock(report.seconds)}: {rate:.0f} audio-hours per hour\n"
                f"busy seconds by stage (they overlap): {busy}"
            )
            if report.sgemm_rate:
                click.echo(
                    f"efficiency {report.efficiency:.0%}: {report.flops / 1e9:,.0f} GFLOP needed, matrix products run "
                    f"at {report.sgemm_rate / 1e9:.0f} GFLOP/s here"
                )
        if report.overflows:
            click.echo(f"{report.overflows} values beyond float16 were stored as infinities")
    print_failures(report.failures, f"all in {store}/utterances.parquet")
    return PARTIAL if report.failed else 0
