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
from voxstrata.store.plan import UNIT_MEGABYTES


@contextmanager
def resume_hint() -> Iterator[None]:
    """On an interrupt, say what it cost: nothing that is committed."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("what is committed is safe; the same command goes on from there", err=True)
        raise


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", "store", required=True, help="Store to make or to resume: a path or s3://…, gs://…")
@click.option("--outputs", default="all", show_default=True, help="Outputs to keep, e.g. layer_03,layer_06,final.")
@click.option(
    "--context",
    "mode",
    type=click.Choice(["bucketed", "padded", "trimmed"]),
    default="bucketed",
    show_default=True,
    help="What the encoder sees beyond the speech; `voxstrata drift` measures the difference.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Of the stored frames.",
)
@click.option("--pool", type=click.Choice(["mean"]), help="Keep one vector per utterance instead of frames.")
@click.option(
    "--every", type=int, default=1, show_default=True, help="Keep the mean of every N frames; N divides 1500."
)
@click.option(
    "--long",
    type=click.Choice(["window", "error"]),
    default="window",
    show_default=True,
    help="Recordings over 30 s: cut into 30 s windows, or refuse.",
)
@click.option("--split", help="train, dev or test of a FLEURS folder. [default: all]")
@run_options
@click.option("--tokens", type=click.IntRange(min=1), help="Batch size × computed positions. [default: by device]")
@click.option(
    "--unit-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=UNIT_MEGABYTES,
    show_default=True,
    help="Megabytes of one unit (shard) over all outputs, and so of the buffer; a longer recording takes more.",
)
@click.option("--allow-overflow", is_flag=True, help="Store values beyond float16 as infinities.")
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
    unit_mb: float,
    allow_overflow: bool,
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
    from voxstrata.engine import Device
    from voxstrata.engine import extract as run
    from voxstrata.model import Context

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
        if report.overflows:
            click.echo(f"{report.overflows} values beyond float16 were stored as infinities")
    print_failures(report.failures, f"all in {store}/utterances.parquet")
    return PARTIAL if report.failed else 0
