"""Folders for results, and folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, beside `target`. It becomes `target` at the end; after an error nothing is left of it."""
    check_vacant(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp keeps others out
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
