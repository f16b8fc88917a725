"""What commands print goes through `say`: text may come from a stranger's files, and a terminal obeys what it is sent.

Imports little: `--help` and errors need nothing else.
"""

import shutil
import sys
from textwrap import fill
from typing import Any

import click

from voxstrata.base.plain import escaped_json, spelt_out

PROGRESS, PROGRESS_KINDS = "VOXSTRATA_PROGRESS", ("auto", "bar", "log", "none")


def say(text: object = "", err: bool = False) -> None:
    """Print a line, on standard error if `err`."""
    click.echo(spelt_out(text), err=err)


def say_json(text: str) -> None:
    """Print JSON."""
    click.echo(escaped_json(text))


def say_error(error: Any) -> None:
    """Print an error, on a terminal in lines of its width."""
    text = spelt_out(f"error: {error}")
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = (fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
        text = "\n".join(lines)
    click.echo(text, err=True)
