"""What commands print goes through `say`: text may come from a stranger's files, and a terminal obeys what it is sent.

Imports little: `--help` and errors need nothing else.
"""

import shutil
import sys
from typing import Any

import click

from voxstrata.base.plain import escaped_json, spelt_out, wrapped


def say(text: object = "", err: bool = False) -> None:
    """Print a line, on standard error if `err`."""
    click.echo(spelt_out(text), err=err)


def say_json(text: str) -> None:
    """Print JSON."""
    click.echo(escaped_json(text))


def say_wrapped(text: object, err: bool = False, indent: str = "") -> None:
    """Print sentences, on a terminal in lines of its width. indent: before all lines of a paragraph but its first."""
    shown = spelt_out(text)
    width = shutil.get_terminal_size().columns if (sys.stderr if err else sys.stdout).isatty() else None
    click.echo(wrapped(shown, width, indent), err=err)


def say_error(error: Any) -> None:
    """Print an error, on a terminal in lines of its width."""
    say_wrapped(f"error: {error}", err=True)
