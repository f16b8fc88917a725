"""Folders for results, and folders that appear whole or not at all."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp

from voxstrata.base.errors import InputError


def make_writable(folder: Path) -> None:
    """Make a folder unless it is there, and try to write into it: before the work, not after.

    Raises InputError naming the folder when that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as e:
        raise InputError(f"{folder}: results cannot be written here ({e.strerror}); choose another folder") from e


def check_vacant(folder: Path) -> None:
    """Raises InputError when something is there already, other than an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists already; remove it or choose another folder")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, beside `target`. It becomes `target` at the end; after an error nothing is left of it.

    What a killed process left of its own is removed when the next one begins.
    """
    check_vacant(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    partial = Path(mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    held = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # let go of when the process dies: by that leftovers are known
        yield partial
        partial.chmod(0o755)  # mkdtemp keeps others out
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(held)


def _sweep(target: Path) -> None:
    """Remove unfinished folders of `target` that no process holds."""
    for found in target.parent.iterdir():
        if not re.fullmatch(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}\.partial", found.name) or not found.is_dir():
            continue
        with contextlib.suppress(OSError):  # held, or gone
            fd = os.open(found, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(fd)
