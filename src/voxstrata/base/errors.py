"""Errors a user can act on: each names the file or value, says what is wrong, and how to mend it."""

import os
import re

DEBUG = "VOXSTRATA_DEBUG"  # of the environment: tracebacks are shown


def debugging() -> bool:
    """Whether tracebacks are asked for."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


class VoxstrataError(Exception):
    """Base of every error raised on purpose; the command line prints its text without a traceback."""

    exit_code = 1


class UsageError(VoxstrataError):
    """An argument is wrong: an unknown output name, an impossible setting (exit code 2)."""

    exit_code = 2


class InputError(VoxstrataError):
    """A file, corpus, checkpoint, model or store cannot be used as it is (exit code 3)."""

    exit_code = 3


class HeldError(InputError):
    """Another process is writing what this one is to write; later it may not be."""


class UnreachableError(InputError):
    """A server does not answer, or answers nobody: costs the run, never a recording, since later it may be there."""


class AudioError(InputError):
    """One recording cannot be decoded; costs that recording alone during extraction."""


def error_text(error: Exception) -> str:
    """Kind and text of an error that is not ours, without addresses of objects: these differ from run to run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(error).__name__}: {error}")
