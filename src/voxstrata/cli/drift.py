"""voxstrata drift"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from voxstrata.cli.console import PARTIAL, Line, aligned, json_option, print_failures, print_json, run_options, steps


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--clips",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="About how many recordings, in whole groups of translations; 0 takes all.",
)
@click.option("--outputs", default="all", show_default=True, help="Outputs to compare.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another export of the same checkpoint to be the reference, as for int8. [default: MODEL itself]",
)
@click.option("--split", help="train, dev or test of a FLEURS folder. [default: all]")
@run_options
@json_option
def drift(
    corpus: Path,
    model: Path,
    clips: int,
    outputs: str,
    against: Path | None,
    split: str | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Measure what the cheaper contexts cost with MODEL on CORPUS.

    Extracts the same recordings `padded`, `bucketed` and `trimmed`; prints for every output the cosine of each frame
    to the padded run (mean, and worst utterance), the speed, and the change in recall@1 where the corpus has
    translations. Needs temporary disk space for three float32 stores of the sample.

    \b
    Example:
      voxstrata drift speech.tsv base --clips 200
      voxstrata drift speech.tsv base-int8 --against base
    """
    from voxstrata.corpus import read_corpus
    from voxstrata.encoders import open_model
    from voxstrata.engine import Device
    from voxstrata.studies.drift.measure import measure_drift

    with Line() as line:
        report = measure_drift(
            read_corpus(corpus, split),
            open_model(model),
            clips=clips or None,
            outputs=outputs,
            device=Device.parse(device),
            threads=threads,
            against=None if against is None else open_model(against),
            say=steps(line),
        )
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(drift_text(report))
    print_failures(report.failures, "`--json` lists all")
    return PARTIAL if report.failed else 0


def drift_text(report: Any) -> str:
    """The report as a table in plain text, one block for each mode."""
    failed = f"; {report.failed} more cannot be read" if report.failed else ""
    blocks = [f"{report.checkpoint}: {report.clips} recordings, {report.audio_seconds / 60:.1f} minutes{failed}"]
    for mode, speed in report.speed.items():
        rows = []
        for r in (r for r in report.rows if r.mode == mode):
            recall = [f"{100 * r.recall[s]:.1f} ({100 * r.change[s]:+.1f})" for s in r.recall]
            rows.append([r.output, f"{r.cosine:.4f}", f"{r.worst:.4f}", r.worst_id, *recall])
        names = list(report.rows[0].recall)
        header = ["output", "cosine", "worst", "worst utterance", *(f"recall@1 {n}" for n in names)]
        blocks.append(f"{mode}: {speed:.2f} × the speed of padded (one run)\n{aligned(header, rows)}")
    if report.candidates:
        low, high = report.candidates
        pool = str(low) if low == high else f"{low} to {high}"
        blocks.append(
            f"recall@1 in %, mean over directions, in brackets the change from padded in points; "
            f"pool of {pool}, chance {100 * report.chance:.2f} %"
        )
    else:
        blocks.append(f"no retrieval: {report.no_retrieval}")
    return "\n\n".join(blocks)
