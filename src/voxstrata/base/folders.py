"""Folders for results."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

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
