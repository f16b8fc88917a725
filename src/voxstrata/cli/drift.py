"""voxstrata drift"""

from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import PARTIAL, TerminalReporter, print_failures, save_and_print
from voxstrata.cli.corpora import read_and_note, refuse_swapped


@click.command()
@options.corpus
@options.model
@click.option(
    "--clips",
    type=click.IntRange(min=0),
    default=100,
    help="About how many recordings, in whole groups of translations; 0 takes all.",
)
@options.outputs
@click.option(
    "--against",
    type=options.PATH,
    help="Another export of the same checkpoint to be the reference, as for int8. [default: MODEL itself]",
)
@options.reading
@options.out("Folder for drift.parquet, drift.md and pictures.", required=False)
@options.running
@options.overwrite
@options.as_json
def drift(
    corpus: Path,
    model: Path,
    clips: int,
    outputs: str,
    against: Path | None,
    reading: dict[str, Any],
    folder: Path | None,
    runtime: vs.Runtime,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Measure what the cheaper contexts cost with MODEL on CORPUS.

    Extracts the same recordings `padded`, `bucketed` and `trimmed`. Prints the cosine of frames to the padded run for
    every output (mean, 0.1 % quantile, worst frame, shares below 0.9 and 0.5, worst utterance), the speed, and the
    change in recall@1 where the corpus has translations.
    Needs temporary disk space for three float32 stores of the sample.

    \b
    Example:
      voxstrata drift speech.tsv base --clips 200 -o drift
      voxstrata drift speech.tsv base-int8 --against base
    """
    from voxstrata.studies.drift.result import Drift

    refuse_swapped(corpus, model)
    if folder is not None:
        Drift.refuse_foreign(folder)
        Drift.refuse_earlier(folder, overwrite)
    with TerminalReporter() as reporter:
        result = vs.drift(
            read_and_note(corpus, reading),
            vs.open_model(model),
            clips=clips or None,
            outputs=outputs,
            runtime=runtime,
            against=None if against is None else vs.open_model(against),
            reporter=reporter,
        )
        save_and_print(result, folder, as_json, reporter)
    print_failures(result.failures, "`--json` lists all")
    return PARTIAL if result.failures else 0
