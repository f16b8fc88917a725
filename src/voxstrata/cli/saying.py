"""What commands print goes through `say`: text may come from a stranger's files, and a terminal obeys what it is sent.

Imports little: `--help` and errors need nothing else.
"""

import re
from typing import Any

import click

PROGRESS, PROGRESS_KINDS = "VOXSTRATA_PROGRESS", ("auto", "bar", "log", "none")

# C0 without tab and newline, DEL, C1, marks that turn the direction of text around, halves of surrogate pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object) -> str:
    """Text as a terminal may have it: what would move the cursor, colour or reorder what is printed is spelt out."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))


def say(text: object = "", err: bool = False) -> None:
    """Print a line, on standard error if `err`."""
    click.echo(shown(text), err=err)


def json_text(text: str) -> str:
    """JSON in which the same characters are escaped; what it says does not change."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say_json(text: str) -> None:
    """Print JSON."""
    click.echo(json_text(text))


def say_error(error: Any) -> None:
    """Print an error."""
    say(f"error: {error}", err=True)
