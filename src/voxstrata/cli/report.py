"""voxstrata report"""

from pathlib import Path

import click

from voxstrata.base.plain import size_in_words
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, print_json
from voxstrata.cli.saying import say_wrapped


@click.command(short_help="One HTML page of all results in DIR and below.")
@click.argument("folder", metavar="DIR", type=options.PATH)
@options.out(
    "The page; an earlier one is replaced. [default: DIR/report.html; of a store, STORE.html beside it]",
    "target",
    required=False,
    type=options.PATH,
)
@options.as_json
def report(folder: Path, target: Path | None, as_json: bool) -> None:
    """One page of all results in DIR and below. It opens with what was found, then shows each study: figures, tables,
    settings, fingerprints of data and models.

    Takes the folders that retrieve, similarity, mine, align, phonetics, words, explain, drift, bench and early-exit
    sweep wrote, stores, and what `bench --json` printed into files named bench*.json. The page is one HTML file that
    needs no network. Tables sort, and are saved as CSV; figures are saved as PNG and PDF. Nothing is measured again.

    \b
    Example:
      voxstrata retrieve speech.zarr -o study/retrieval
      voxstrata report study
    """
    from voxstrata.report.page import write_report

    with TerminalReporter() as reporter:
        written = write_report(folder, target, reporter)
    if as_json:
        print_json(written.to_dict())
        return
    for run in written.runs:
        say_wrapped(f"{run.path}: {run.command}, {run.whose}", indent="  ")
    say_wrapped(f"\n{written.out}: {size_in_words(Path(written.out).stat().st_size)}")
    for name, reason in written.left_out.items():
        say_wrapped(f"left out: {name}: {reason}", err=True)
