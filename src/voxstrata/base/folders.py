"""Folders for results, and folders that appear whole or not at all."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryFile, gettempdir, mkdtemp
from typing import Any

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


def check_writable(folder: Path) -> None:
    """As `make_writable`, but what was made is removed again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_writable(folder)
    for path in missing:
        path.rmdir()


@contextlib.contextmanager
def leaving_no_empty_folder(folder: Path) -> Iterator[None]:
    """After an error or an interrupt, remove the folder and those above it that were made meanwhile and are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # something is in it
                path.rmdir()
        raise


def check_vacant(folder: Path, replaced: Collection[str] = ()) -> None:
    """Raise InputError when something is there already, other than an empty folder.

    replaced: what an earlier result consists of, patterns of paths ("data/*.parquet"), the first of the file that it is
    known by: such a folder may be there, if nothing else is in it. What killed processes left of it is removed.
    """
    _sweep(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not replaced:
        what = ", or --overwrite replaces what this command made" if folder.is_dir() else ""
        raise InputError(f"{folder}: exists already; remove it or choose another name{what}")
    below = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir() or not any(path.iterdir())]
    names = sorted(path.relative_to(folder).as_posix() for path in below)
    foreign = [name for name in names if not any(_fits(name, pattern) for pattern in replaced)]
    if foreign or next(iter(replaced)) not in names:
        raise InputError(
            f"{folder}: holds something else ({(foreign or names)[0]}), which is not overwritten; choose another folder"
        )


def _fits(path: str, pattern: str) -> bool:
    """Whether each name on the path fits its pattern; `*` stays within a name, unlike fnmatch's."""
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatch, names, patterns))


@contextlib.contextmanager
def new_folder(target: Path, replaced: Collection[str] = ()) -> Iterator[Path]:
    """A folder to fill, beside `target`. It becomes `target` at the end; after an error nothing is left of it.

    replaced: as in `check_vacant`; what it names is removed once the new folder is whole. What killed processes
    left of it is removed when the next one begins, which puts back what had been moved away and not replaced yet.
    """
    check_vacant(target, replaced)
    with leaving_no_empty_folder(target.parent), contextlib.ExitStack() as stack:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _made_and_held(stack, prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        old = partial.with_suffix(".old")
        try:
            yield partial
            mode = _usual_mode(partial)  # mkdtemp keeps others out, and so do some libraries' files
            for path in (*partial.rglob("*"), partial):
                if not path.is_symlink():
                    path.chmod(mode | (mode & 0o444) >> 2 if path.is_dir() else mode)
                    sync_path(path)  # whole after a power cut, too
            if replaced and target.exists():
                target.rename(old)
            partial.rename(target)
            sync_path(target.parent)
        finally:
            if old.exists() and not target.exists():
                old.rename(target)
            for path in (partial, old):
                shutil.rmtree(path, ignore_errors=True)


def _usual_mode(folder: Path) -> int:
    """What the process's umask leaves of a new file's permissions."""
    probe = folder / ".mode"
    probe.touch(exist_ok=False)
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def sync_path(path: Path) -> None:
    """Have a file, or the names in a folder, reach the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_SCRATCH = "voxstrata-scratch-"


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder below the system's for temporary files, removed at the end; those that killed processes left of ours are
    removed, too."""
    below = Path(gettempdir())
    for path in below.glob(f"{_SCRATCH}*-????????"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # held, gone, or another user's
            if not path.is_symlink() and path.stat().st_uid == os.getuid():
                _hold(path, stack)
                shutil.rmtree(path, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        folder = _made_and_held(stack, prefix=f"{_SCRATCH}{purpose}-", dir=below)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _made_and_held(stack: contextlib.ExitStack, **name: Any) -> Path:
    """A new folder, held until the stack is left or the process dies: by that leftovers are known."""
    while True:
        path = Path(mkdtemp(**name))
        with contextlib.suppress(FileNotFoundError):  # taken for a leftover before it was held
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return path


def _hold(path: Path, stack: contextlib.ExitStack) -> None:
    """Raises OSError where another process holds the folder, or it is gone."""
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(target: Path) -> None:
    """Remove the folders that killed processes were filling to become `target`, and what these replaced; where nothing
    has come in its place yet, that is put back first.

    Of no other target: `.notes.20240131.old` may be anybody's.
    """
    unfinished = re.compile(rf"(\.{re.escape(target.name)}\.[a-z0-9_]{{8}})\.(partial|old)")
    names = [path.name for path in target.parent.iterdir() if path.is_dir()] if target.parent.is_dir() else []
    for stem in sorted({found[1] for found in map(unfinished.fullmatch, names) if found}):
        partial, old = (target.with_name(f"{stem}.{suffix}") for suffix in ("partial", "old"))
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if partial.exists():
                _hold(partial, stack)
            if old.exists() and not target.exists():
                old.rename(target)
            for path in (partial, old):
                shutil.rmtree(path, ignore_errors=True)
