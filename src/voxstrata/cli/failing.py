"""The one place where errors become a message and an exit code. Nobody sees a traceback who did not ask for one."""

import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from voxstrata.base.errors import DEBUG as DEBUG
from voxstrata.base.errors import VoxstrataError, debugging, lacking_package
from voxstrata.base.plain import spelt_out
from voxstrata.cli.saying import say, say_error
from voxstrata.cli.stopping import INTERRUPTED, quiet_stdout, stopped_code

UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h

_OURS = str(Path(__file__).parents[1])
_WORDS = 9  # of a path that was typed without quotes, at the most


def tell(error: BaseException, args: Sequence[str] = ()) -> int:
    """Print what went wrong; returns the exit code. args: what was typed behind `voxstrata`."""
    if isinstance(error, KeyboardInterrupt | click.Abort) or stopped_code():  # imports may make it another error
        # click makes an Abort of an interrupt
        hint = str(error.__cause__ or error) if isinstance(error, KeyboardInterrupt | click.Abort) else ""
        say("interrupted" + (f": {hint}" if hint else ""), err=True)
        return stopped_code() or INTERRUPTED
    if isinstance(error, BrokenPipeError) and error.filename is None:  # as `| head` has it
        quiet_stdout()
        return 1  # as click has it
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # its text is the help; click 8.2 has it
        say(error, err=True)
        return 2
    if isinstance(error, click.ClickException):
        if isinstance(error, click.UsageError) and error.ctx is not None:
            say(error.ctx.get_usage(), err=True)
            say(f"Try '{error.ctx.command_path} {error.ctx.help_option_names[-1]}' for help.\n", err=True)
        say(f"Error: {error.format_message()}", err=True)
        _tell_unquoted(error.format_message(), args)
        return error.exit_code
    if debugging():
        text = "".join(traceback.format_exception(error))
        print(*map(spelt_out, text.splitlines()), sep="\n", file=sys.stderr)
    if isinstance(error, VoxstrataError):
        say_error(error)
        _tell_unquoted(str(error), args)
        return error.exit_code
    if isinstance(error, OSError):  # a full disk, a folder that may not be written: the message names the file
        say_error(error)
        return 3
    if isinstance(error, UnicodeEncodeError):  # click asks the system for a path before we do
        say_error(f"{error.object!a}: not valid Unicode, so that no file can be called so; correct the name")
        return 3
    if isinstance(error, Exception) and (lacking := lacking_package(error)):
        say_error(lacking)
        return lacking.exit_code
    say_error(unforeseen_text(error))
    return UNFORESEEN


def _tell_unquoted(said: str, args: Sequence[str]) -> None:
    """Say so where an error speaks of a part of a path that has spaces and was typed without quotes, or of too many
    arguments.

    Such a path is there, or its folder is; its first word alone is no path.
    """
    too_many = "unexpected extra argument" in said
    values = [value_of(arg) for arg in args]
    for count in range(min(len(args), _WORDS), 1, -1):
        for i in range(len(args) - count + 1):
            words = [values[i], *args[i + 1 : i + count]]
            whole = " ".join(words)
            if not _leads_somewhere(whole, words[-1]) or os.path.exists(words[0]):
                continue
            if too_many or any(_names(said, word) for word in words):
                say(f"Did you mean {shlex.quote(whole)}? A path with spaces needs quotes.", err=True)
                return


def value_of(arg: str) -> str:
    """What is typed behind `--option=`, else the argument itself."""
    return arg.partition("=")[2] if arg.startswith("--") and "=" in arg else arg


def _names(said: str, word: str) -> bool:
    """Whether a text speaks of a word, not of one that it is a part of."""
    return bool(word) and re.search(rf"(?<![\w/]){re.escape(word)}(?!\w)", said) is not None


def _leads_somewhere(path: str, last: str) -> bool:
    """Whether a path exists, or the folder that it names, whose name reaches into the last word of it."""
    return os.path.exists(path) or ("/" in last[1:] and os.path.exists(os.path.dirname(path)))


def unforeseen_text(error: BaseException) -> str:
    """What can be said of an error that nobody thought of: its kind and text, the file, how to report it."""
    place = _place(error.__traceback__)
    kind = type(error).__name__
    what = "there is not enough memory" if isinstance(error, MemoryError) else f"{kind}: {error}".rstrip(": ")
    text = f"{place}: {what}" if place else what
    if isinstance(error, MemoryError):
        return f"{text}; give it smaller files, or a machine with more"
    return (
        f"{text}\nNobody foresaw this: a file is damaged in a way of its own, or the fault is ours. Please report it, "
        f"with what the same command prints as `voxstrata --debug …`, or with {DEBUG}=1 set."
    )


def _place(at: TracebackType | None) -> str:
    """The file being worked on: what the innermost function of ours that has one calls so."""
    found = ""
    while at is not None:
        frame = at.tb_frame
        if frame.f_code.co_filename.startswith(_OURS) and "cli" not in Path(frame.f_code.co_filename).parts:
            own: list[Any] = [*frame.f_locals.values(), *(getattr(frame.f_locals.get("self"), n, None) for n in _FILES)]
            found = next((str(value) for value in own if isinstance(value, Path)), found)
        at = at.tb_next
    return found


_FILES = ("path", "_path", "folder", "local")  # what objects of ours call theirs


def tell_thread(about: threading.ExceptHookArgs) -> None:
    """As `threading.excepthook`, in a sentence."""
    if about.exc_value is not None and not isinstance(about.exc_value, SystemExit):
        say(f"in a thread of its own: {unforeseen_text(about.exc_value)}", err=True)
        if debugging():
            traceback.print_exception(about.exc_value)
