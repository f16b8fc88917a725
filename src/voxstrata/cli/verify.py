"""voxstrata verify"""

import sys

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, print_json
from voxstrata.cli.saying import say_wrapped

DAMAGED = 3  # exit code, that of input which cannot be used


@click.command(short_help="Read a whole store and name what is damaged.")
@click.argument("store", type=click.Path())
@click.option("--repair", is_flag=True, help="Take what is damaged back to pending, for the same extraction to mend.")
@options.as_json
def verify(store: str, repair: bool, as_json: bool) -> None:
    """Read all of STORE, hold it against its checksums, and name what is damaged, by utterance.

    The exit code is 3 where anything is damaged, with --repair, too. With --repair, what can be derived is written
    again, and what is lost is pending. The same extraction then brings it back, byte for byte.

    \b
    Example:
      voxstrata verify speech.zarr --repair && echo sound || voxstrata extract speech.tsv base -o speech.zarr
    """
    with TerminalReporter() as reporter:
        report = vs.verify(store, repair=repair, reporter=reporter)
    if as_json:
        print_json(report.to_dict())
    else:
        say_wrapped(report.to_text(), indent="  ")
    if not report.sound:
        sys.exit(DAMAGED)
