"""The files beside the arrays, and where a store lies: a local path or an object store's URL."""

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store

from voxstrata.base.errors import InputError
from voxstrata.base.opening import check_regular, parse_json, read_regular

LOCK = ".voxstrata-lock"
ROOT = "zarr.json"  # of the root group


class _RegularStore(zarr.storage.LocalStore):
    """Arrays on a disk, of regular files alone: a FIFO in a stranger's store would be waited for without end."""

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        with contextlib.suppress(OSError):  # not there, which zarr answers
            check_regular(self.root / key)
        return await super().get(key, *args, **options)


class Files:
    """Whole-file reads and writes below the root of a store; a file is there entirely or not at all.

    durable: what is written has reached the disk when `write` returns, so that a power cut does not take it back.
    """

    def __init__(self, root: str | Path, *, durable: bool = True) -> None:
        self.root, self.durable = str(root).rstrip("/"), durable
        try:
            self._fs, self._path = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as e:
            raise InputError(f"{root}: {e}; object stores need the extra `remote`") from e
        self.local = Path(self._path) if isinstance(self._fs, LocalFileSystem) else None

    def zarr_store(self, *, read_only: bool) -> Store:
        """The same place as zarr sees it."""
        if self.local is not None:
            return _RegularStore(self.local, read_only=read_only)
        return zarr.storage.FsspecStore.from_url(self.root, read_only=read_only)

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(f"{self._path}/{name}"))

    def names(self, folder: str = "") -> list[str]:
        """Names directly below a folder, sorted; none when it is not there."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(f"{self._path}/{folder}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in found)

    def read(self, name: str) -> bytes:
        if self.local is not None:
            return read_regular(self.local / name)
        return bytes(self._fs.cat_file(f"{self._path}/{name}"))

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Write a file of these parts so that a kill at any instant leaves the old one, the new one, or none."""
        if self.local is None:
            self._fs.pipe_file(f"{self._path}/{name}", b"".join(parts))  # one PUT
            return
        target = self.local / name
        new = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        # a name of its own: should two processes write one file, neither cuts what the other moves into place
        partial = target.with_name(f"{target.name}.{uuid4().hex}.partial")
        try:
            with partial.open("xb") as f:
                for part in parts:
                    f.write(part)
                if self.durable:
                    f.flush()
                    os.fsync(f.fileno())
            partial.replace(target)
        except OSError:  # a full disk must not stay full
            partial.unlink(missing_ok=True)
            raise
        if self.durable:
            for folder in (target.parent, *(made.parent for made in new)):
                sync_folder(folder)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._path}/{name}")

    def clear(self) -> None:
        """Remove everything but the lock; the root's metadata last, since they say whose folder this is."""
        for name in sorted(self.names(), key=lambda n: n == ROOT):
            if name != LOCK:
                self._fs.rm(f"{self._path}/{name}", recursive=True)

    def sweep(self) -> None:
        """Remove what a killed run left half-written, here and in zarr's local store (both say `.partial`)."""
        if self.local is not None:
            for leftover in self.local.rglob("*.partial"):
                leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing; the operating system lets go of it when the process dies, however it dies.

        Object stores have no locks: there, writing twice at once is the caller's to avoid.
        Makes the folder where there is none. Raises InputError when another process holds it.
        """
        if self.local is None:
            yield
            return
        self.local.mkdir(parents=True, exist_ok=True)
        path = self.local / LOCK
        fd = _locked(path)
        try:
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)


@contextlib.contextmanager
def patient_lock(files: Files) -> Iterator[None]:
    """The lock of `Files.lock`, waited for as long as another process has it: for what takes seconds."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(files.lock())
            except InputError:
                time.sleep(0.1)
            else:
                break
        yield


def sync_folder(folder: Path) -> None:
    """Have the names in a folder reach the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the holder before us may have removed the file between our open and our lock
            if os.path.exists(path) and os.fstat(fd).st_ino == os.stat(path).st_ino:
                return fd
            os.close(fd)
        except BlockingIOError:
            holder = os.read(fd, 32).decode().strip() or "unknown"
            os.close(fd)
            raise InputError(
                f"{path.parent}: another run (process {holder}) is writing this store; wait for it or stop it"
            ) from None
        except FileNotFoundError:
            os.close(fd)


def root_attributes(files: Files) -> dict[str, Any]:
    """Attributes of the root group; empty where there is no readable zarr group."""
    try:
        attributes = parse_json(files.read(ROOT)).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def zarr_array(root: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of a group, by path."""
    array = root[name]
    assert isinstance(array, zarr.Array)
    return array


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
