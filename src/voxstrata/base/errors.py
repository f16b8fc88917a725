"""Errors a user can act on: each names the file or value, says what is wrong, and how to mend it."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

# Of this machine, its disks and their network: the file that was being read has no part in it.
_HERE = {
    errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.ETIMEDOUT,
    errno.ENOTCONN, errno.ENODEV, errno.EHOSTDOWN,
}  # fmt: skip
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
    """A server does not answer, or answers nobody, or there is no room here for its answer, or a disk here cannot be
    read: costs the run, never a recording, since later it may be there."""


class AudioError(InputError):
    """One recording cannot be decoded; costs that recording alone during extraction."""


class GoneError(AudioError):
    """There is no file by a recording's name. Where there was one before, see `gone`."""


def is_fault_here(error: Exception) -> bool:
    """Whether what was raised while a file was read is this machine's fault: no more open files, memory or space, a
    disk or its network that fails or does not answer."""
    return isinstance(error, MemoryError | TimeoutError) or (isinstance(error, OSError) and error.errno in _HERE)


def refuse_fault_here(error: Exception, name: str) -> None:
    """Raise UnreachableError where `is_fault_here`. name: of what was read."""
    if is_fault_here(error):
        why = str(error) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
        raise UnreachableError(
            f"{name}: cannot be read now ({why}), which is no fault of the recording; mend the disk or the limit "
            "(memory; ulimit -n for open files), and run the same command to go on"
        ) from error


def gone(name: str) -> UnreachableError:
    """Where a recording is not there that was when its header was read: its disk or folder may come back."""
    return UnreachableError(
        f"{name}: is gone, and was there when its header was read; bring it back, or mount its disk, and run the same "
        "command to go on"
    )


# The extra that brings a package, by what is imported.
_EXTRAS = dict.fromkeys(("torch", "transformers", "onnx", "safetensors", "huggingface_hub", "yaml"), "export") | {
    "matplotlib": "plot", "espeakng_loader": "demo", "jiwer": "asr", "ray": "ray", "pandas": "pandas",
    "xarray": "xarray", "lance": "lance",
}  # fmt: skip


def lacking_package(error: Exception) -> InputError | None:
    """The same error in a sentence that names the extra, where a package of one is missing."""
    module = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module not in _EXTRAS:
        return None
    return InputError(f"{module} is not installed; pip install 'voxstrata[{_EXTRAS[module]}]'")


@contextmanager
def naming_extras() -> Iterator[None]:
    """Where a package is missing that an extra brings, raise InputError, which names it."""
    try:
        yield
    except ModuleNotFoundError as e:
        raise lacking_package(e) or e from None


def error_text(error: Exception) -> str:
    """Kind and text of an error that is not ours, without addresses of objects: these differ from run to run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(error).__name__}: {error}")
