"""voxstrata drift"""

from __future__ import annotations

from pathlib import Path

import click

from voxstrata.cli.console import PARTIAL, TerminalReporter, json_option, print_failures, print_json, run_options
from voxstrata.cli.options import outputs_option


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
@outputs_option
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another export of the same checkpoint to be the reference, as for int8. [default: MODEL itself]",
)
@click.option("--split", help="train, dev or test of a FLEURS folder. [default: all]")
@click.option(
    "-o",
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for drift.parquet, drift.md and drift.png; an earlier result there is replaced.",
)
@run_options
@json_option
def drift(
    corpus: Path,
    model: Path,
    clips: int,
    outputs: str,
    against: Path | None,
    split: str | None,
    folder: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Measure what the cheaper contexts cost with MODEL on CORPUS.

    Extracts the same recordings `padded`, `bucketed` and `trimmed`. Prints the cosine of frames to the padded run for
    every output (mean, and worst utterance), the speed, and the change in recall@1 where the corpus has translations.
    Needs temporary disk space for three float32 stores of the sample.

    \b
    Example:
      voxstrata drift speech.tsv base --clips 200 -o drift
      voxstrata drift speech.tsv base-int8 --against base
    """
    from voxstrata.corpus import read_corpus
    from voxstrata.encoders import open_model
    from voxstrata.engine import Device, Runtime
    from voxstrata.studies.drift.measure import measure_drift
    from voxstrata.studies.drift.result import Drift

    if folder is not None:
        Drift.refuse_foreign(folder)
    with TerminalReporter() as reporter:
        result = measure_drift(
            read_corpus(corpus, split),
            open_model(model),
            clips=clips or None,
            outputs=outputs,
            runtime=Runtime(Device.parse(device), threads),
            against=None if against is None else open_model(against),
            reporter=reporter,
        )
    written = result.save(folder) if folder is not None else []
    if as_json:
        print_json({**result.settings, "rows": result.table.to_pylist(), "results": str(folder) if folder else None})
    else:
        click.echo(result)
        if written:
            click.echo(f"\n{folder}: {', '.join(path.name for path in written)}")
    print_failures(result.failures, "`--json` lists all")
    return PARTIAL if result.failures else 0
