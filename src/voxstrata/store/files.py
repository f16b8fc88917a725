"""The files beside the arrays, and where a store lies: a local path or an object store's URL."""

import contextlib
import errno
import fcntl
import io
import logging
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store

from voxstrata.base.errors import HeldError, InputError
from voxstrata.base.folders import sync_path
from voxstrata.base.opening import check_regular, parse_json, read_regular
from voxstrata.base.remote import T, causes, open_remote, patiently, shown, status_of
from voxstrata.store.leases import Leases
from voxstrata.store.local_arrays import LocalArrays
from voxstrata.store.remote_arrays import PatientStore

LOCK = ".voxstrata-lock"
GROUP_ROWS = 1 << 16  # of a Parquet file: what is read for one row of it
ROOT = "zarr.json"  # of the root group
# Larger objects go up in parts of this size, a few at once: one request carries 5 GB at the most.
_PART_BYTES = 32 << 20
_PARTS_AT_ONCE = 4
# One request a read. By default these would ask for the size first, and then read in several.
_READ_AT_ONCE = {"s3": {"max_concurrency": 1}, "gs": {"concurrency": 1}}
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
_LOOK_SECONDS = 0.1  # from one look whether a lock is free to the next
_SILENT_SECONDS = 2.0  # for which a lock is waited for without a word
# Servers that write whatever a condition says, and those that do not.
_unconditional: set[str] = set()
_conditional: set[str] = set()
_log = logging.getLogger("voxstrata")


class Joined:
    """Parts as one sequence of bytes, of which slices are copied, never the whole: what fsspec uploads in pieces."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._parts = [memoryview(part).cast("B") for part in parts if len(part)]
        self._begin = [0, *accumulate(map(len, self._parts))]

    def __len__(self) -> int:
        return self._begin[-1]

    def __getitem__(self, wanted: slice) -> bytes:
        begin, end, _ = wanted.indices(len(self))
        pieces, k = [], bisect_right(self._begin, begin) - 1
        while begin < end:
            stop = min(end, self._begin[k + 1])
            pieces.append(self._parts[k][begin - self._begin[k] : stop - self._begin[k]])
            begin, k = stop, k + 1
        return b"".join(pieces)


class Files:
    """Whole-file reads and writes below the root of a store; a file is there entirely or not at all.

    durable: what is written has reached the disk when `write` returns, so that a power cut does not take it back.

    On object stores each request is tried again as `patiently` does. Raises what it raises.
    """

    def __init__(self, root: str | Path, *, durable: bool = True) -> None:
        self.root, self.durable = str(root).rstrip("/"), durable
        if shown(self.root) != self.root:
            raise InputError(
                f"{shown(self.root)}: no credentials in the name of a store, which is kept in all that is made of it; "
                "give them by the environment"
            )
        self._fs, self._path = open_remote(self.root)
        self.local = Path(self._path) if isinstance(self._fs, LocalFileSystem) else None
        kinds = self._fs.protocol
        self._kind = kinds if isinstance(kinds, str) else kinds[0]

    def zarr_store(self, *, read_only: bool) -> Store:
        """The same place as zarr sees it."""
        if self.local is not None:
            return LocalArrays(self.local, self.write, read_only=read_only)
        return PatientStore.of(self.root, read_only=read_only)

    def _ask(self, name: str, action: Callable[[str], T]) -> T:
        """What an action on the path of a file gives, patiently where that is no local disk."""
        path = f"{self._path}/{name}".rstrip("/")
        if self.local is not None:
            return action(path)
        return patiently(f"{self.root}/{name}", lambda: action(path))

    def exists(self, name: str) -> bool:
        return bool(self._ask(name, self._fs.exists))

    def names(self, folder: str = "") -> list[str]:
        """Names directly below a folder, sorted; none when it is not there."""
        self._fs.invalidate_cache()
        try:
            found = self._ask(folder, lambda path: self._fs.ls(path, detail=False))
        except FileNotFoundError:
            return []
        return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in found)

    def read(self, name: str) -> bytes:
        if self.local is not None:
            return read_regular(self.local / name)
        return bytes(self._ask(name, lambda path: self._fs.cat_file(path, **self._at_once)))

    def read_range(self, name: str, begin: int, end: int | None = None) -> bytes:
        """The bytes from `begin` to before `end` of a file, in one request; the last -begin ones where that is < 0."""
        if self.local is not None:
            check_regular(self.local / name)
        data = bytes(self._ask(name, lambda path: self._fs.cat_file(path, start=begin, end=end, **self._at_once)))
        longer = len(data) > (-begin if end is None else end - begin)
        return data[begin:end] if longer else data  # a server that knows no ranges sends all

    @property
    def _at_once(self) -> dict[str, int]:
        return _READ_AT_ONCE.get(self._kind, {})

    def open(self, name: str) -> Any:
        """A file to be read piece by piece, as Arrow reads one."""
        return self._fs.open(f"{self._path}/{name}", "rb") if self.local is None else pa.OSFile(str(self.local / name))

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Write a file of these parts so that a kill at any instant leaves the old one, the new one, or none."""
        self.write_made(name, lambda: parts)

    def write_made(self, name: str, parts: Callable[[], Iterable[bytes | memoryview]]) -> None:
        """As `write`, of parts that are made as they are written; for an object store all are held."""
        if self.local is None:
            self._upload(name, list(parts()))
            return
        target = self.local / name
        while True:
            self._make_folder(target.parent)
            # a name of its own: should two processes write one file, neither cuts what the other moves into place
            partial = target.with_name(f"{target.name}.{uuid4().hex}.partial")
            try:
                with partial.open("xb") as f:
                    for part in parts():
                        f.write(part)
                    if self.durable:
                        f.flush()
                        os.fsync(f.fileno())
                try:
                    partial.replace(target)
                    break
                except FileNotFoundError:  # taken for a dead run's: what we do again, another has done and completed
                    continue
            except OSError:  # a full disk must not stay full
                partial.unlink(missing_ok=True)
                raise
        if self.durable:
            sync_path(target.parent)

    def _make_folder(self, folder: Path) -> None:
        """Make a local folder, and those above it, if they are not there."""
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        if self.durable:
            for made in new:
                sync_path(made.parent)

    def _upload(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """One PUT; a large file in several, which make an object when the last is there."""
        data, how = Joined(parts), dict[str, int]()
        if self._kind in ("s3", "gs") and len(data) >= 2 * _PART_BYTES:
            how = {"chunksize": _PART_BYTES} | ({"max_concurrency": _PARTS_AT_ONCE} if self._kind == "s3" else {})
        value = data if how else data[:]
        try:
            self._ask(name, lambda path: self._fs.pipe_file(path, value, **how))
        except FileNotFoundError as e:
            raise InputError(f"{self.root}: no such bucket ({e}); make it, or correct the name") from None

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file that is not there; False where it is. Not for local disks.

        At once, in the stores that know conditional writes: of two who call it one gets True. Others are noted, and
        asked before: there two may get True.
        """
        server = urlsplit(self.root).netloc

        def attempt(path: str) -> bool:
            try:
                if server not in _unconditional:
                    self._fs.pipe_file(path, data, mode="create")
                    return True
            except FileExistsError:
                return False
            except Exception as error:
                # How a store says that it has no conditional writes: HTTP's 501, or its fsspec, by not taking the mode.
                chain = causes(error)
                if not any(status_of(e) == 501 or isinstance(e, TypeError | NotImplementedError) for e in chain):
                    raise
                self._note_unconditional(server)
            if self._fs.exists(path):
                return False
            self._fs.pipe_file(path, data)
            return True

        try:
            made = self._ask(name, attempt)
        except FileExistsError:
            return False
        if made and server not in _unconditional | _conditional:
            if self._ask(name, attempt):  # a store that minds conditions has it now
                self._note_unconditional(server)
            _conditional.add(server)
        return made

    def _note_unconditional(self, server: str) -> None:
        if server not in _unconditional:
            _unconditional.add(server)
            _log.warning(
                "%s: no conditional writes here: two workers may do the same unit, which costs time, no data", self.root
            )

    def touch(self, name: str, data: bytes) -> bool:
        """Write a small file anew, or, if that fails, not: the next time will do. Whether it did."""
        try:
            self._fs.pipe_file(f"{self._path}/{name}", data)
        except Exception:  # whatever the server's library raises; the caller is told, and tries again
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, self._fs.rm_file)

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all below it if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda path: self._fs.rm(path, recursive=True))

    def clear(self, keep: Collection[str] = (LOCK,)) -> None:
        """Remove everything but what is kept; the root's metadata last, since they say whose folder this is."""
        for name in sorted(self.names(), key=lambda n: n == ROOT):
            if name not in keep:
                self.remove_folder(name)

    def sweep(self, name: str = "**/*") -> None:
        """Remove what killed runs left half-written: all of it, or that of files which nobody writes now."""
        if self.local is not None:
            for leftover in self.local.glob(f"{name}.partial"):
                leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing; the operating system lets go of it when the process dies, however it dies.

        Makes the folder where there is none. Raises HeldError when another process holds it. Object stores have no
        locks: there it is a lease, and that of a process which died is waited for.
        """
        if self.local is None:
            with Leases(self) as leases:
                leases.wait(f"{LOCK}/plan", "another run is writing this store")
                yield
            return
        self._make_folder(self.local)
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
def patient_lock(files: Files, tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """The lock of `Files.lock`, waited for as long as another process has it: for what takes seconds.

    tell: called once, with who has it, where that takes longer. Raises what `Files.lock` raises but HeldError.
    """
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(files.lock())
            except HeldError as e:
                if tell and time.monotonic() - begin > _SILENT_SECONDS:
                    tell(f"waiting: {e}")
                    tell = None
                time.sleep(_LOOK_SECONDS)
            else:
                break
        yield


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
            raise HeldError(
                f"{path.parent}: another run (process {holder}) is writing this store; wait for it or stop it"
            ) from None
        except FileNotFoundError:
            os.close(fd)
        except OSError as e:
            os.close(fd)
            if e.errno not in NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            raise without_locks(path.parent, e) from e


def without_locks(folder: Path, error: OSError) -> InputError:
    """What to raise where a file system has no locks."""
    return InputError(
        f"{folder}: no locks in this file system ({error}), which keep runs apart; mount it with them "
        "(Lustre: -o flock), or choose another place"
    )


def root_attributes(files: Files) -> dict[str, Any]:
    """Attributes of the root group; empty where there is no readable zarr group."""
    try:
        attributes = parse_json(files.read(ROOT)).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def zarr_array(root: zarr.Group, name: str) -> "zarr.Array[Any]":
    """An array of a group, by path."""
    array = root[name]
    assert isinstance(array, zarr.Array)
    return array


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file, in groups of rows that can be read by themselves."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=GROUP_ROWS)
    return buffer.getvalue()
