"""The power fails at random instants: what was not fsynced may be lost. What a marker says is there must be there.

A run is done while a small library (`_disk.c`, compiled here, loaded by LD_PRELOAD) logs every call that changes a file
or a folder, and every fsync. From the log the disk is built as a power cut may leave it after any call:

- bytes of a file written since its last fsync are there or not, block by block; where they are not, there is what was
  there before, or zeros, or anything; its length is the old or the new one, or zero;
- a name that was made, moved or removed since its folder's last fsync is there or not: each for itself ("any"), or all
  up to a random call ("journal", as ext4 and xfs keep order), or none ("least").

In every such state each unit whose marker is whole must have all its bytes, and the same command must end in the bytes
of a run that nobody interrupted. After the end of the command all of it must be there, without another run.
`--no-fsync` runs with the option of that name, and must show losses: else this could not fail.
The log is replayed without losses, too, and must give the files that are there: no call was missed.

Exit status 1 if one of these does not hold. Needs Linux and a C compiler (`cc`).

    python benchmarks/power_cut.py --instants 100
    python benchmarks/power_cut.py --instants 100 --works extract --no-fsync
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _common import say
from _work import DONE, WORKS, Process, Work, contents, differing, made_works, warm

from voxstrata.base.folders import scratch_folder

HEAD = struct.Struct("<c3xiiiqII")
BLOCK = 4096
ORDERS = ("any", "journal", "least")


class Inode:
    """A file: its bytes, those at its last fsync, and which bytes were written since."""

    def __init__(self, data: bytes = b"", durable: bytes | None = None) -> None:
        self.data, self.durable = bytearray(data), durable or b""
        self.dirty: list[tuple[int, int]] = []
        self.changed = False

    def write(self, at: int, data: bytes) -> None:
        if at > len(self.data):
            self.data += bytes(at - len(self.data))
        self.data[at : at + len(data)] = data
        self.dirty.append((at, at + len(data)))
        self.changed = True

    def truncate(self, size: int) -> None:
        del self.data[size:]
        self.data += bytes(size - len(self.data))
        self.changed = True

    def sync(self) -> None:
        self.durable, self.dirty, self.changed = bytes(self.data), [], False

    def after_cut(self, rng: np.random.Generator) -> bytes:
        """What a power cut may leave of it."""
        if not self.changed:
            return bytes(self.data)
        kind = rng.integers(0, 5)
        if kind == 0:
            return self.durable
        if kind == 1:
            return b""
        out = bytearray(self.data)
        for begin, end in self.dirty if kind < 4 else ():  # 4: all of it, by chance
            for at in range(begin - begin % BLOCK, end, BLOCK):
                a, b = max(at, begin), min(at + BLOCK, end, len(out))
                if b > a and rng.random() < 0.7:
                    old = self.durable[a:b].ljust(b - a, b"\0")
                    out[a:b] = (old, bytes(b - a), rng.bytes(b - a))[rng.integers(0, 3)]
        return bytes(out[: len(self.durable)] if kind == 3 and self.durable else out)


class Folder:
    """Names and what they are of; `changes` since the last fsync: (call, name, what it became, None: nothing)."""

    def __init__(self) -> None:
        self.names: dict[str, Inode | Folder] = {}
        self.durable: dict[str, Inode | Folder] = {}
        self.changes: list[tuple[int, str, Inode | Folder | None]] = []

    def put(self, call: int, name: str, what: Inode | Folder | None) -> None:
        if what is None:
            self.names.pop(name, None)
        else:
            self.names[name] = what
        self.changes.append((call, name, what))

    def sync(self) -> None:
        self.durable, self.changes = dict(self.names), []


class Disk:
    """What the calls of a log make of the files below `root`, and what of it is durable."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = str(root), _read(root)
        self.open: dict[tuple[int, int], Inode | Folder] = {}
        self.calls = self.committed = 0  # committed: what a journal is sure to hold

    def _find(self, path: str) -> tuple[Folder, str]:
        folder, parts = self.top, path.removeprefix(self.root).strip("/").split("/")
        for part in parts[:-1]:
            folder = folder.names[part]  # type: ignore[assignment]
        return folder, parts[-1]

    def apply(self, kind: str, pid: int, fd: int, flags: int, offset: int, path: str, data: bytes) -> None:
        self.calls += 1
        if kind == "O":
            if path == self.root:
                self.open[pid, fd] = self.top
                return
            folder, name = self._find(path)
            if name not in folder.names:
                folder.put(self.calls, name, Inode())
            found = self.open[pid, fd] = folder.names[name]
            if flags & os.O_TRUNC and isinstance(found, Inode) and found.data:
                found.truncate(0)
        elif kind == "C":
            self.open.pop((pid, fd), None)
        elif kind in "WTF":
            found = self.open[pid, fd]
            if kind == "F":
                found.sync()
                self.committed = self.calls
            elif isinstance(found, Inode):
                found.write(offset, data) if kind == "W" else found.truncate(offset)
        elif kind == "M":
            folder, name = self._find(path)
            folder.put(self.calls, name, Folder())
        elif kind == "U":
            folder, name = self._find(path)
            folder.put(self.calls, name, None)
        else:  # R, L
            (folder, name), (onto, target) = self._find(path), self._find(data.decode())
            what = folder.names[name]
            onto.put(self.calls, target, what)
            if kind == "R":
                folder.put(self.calls, name, None)

    def write(self, target: Path, order: str | None, rng: np.random.Generator) -> None:
        """The state after a power cut now; without an order: what the running system sees."""
        shutil.rmtree(target, ignore_errors=True)
        kept = int(rng.integers(self.committed, self.calls + 1)) if order == "journal" else 0
        _write(self.top, target, order, kept, rng)


def _read(folder: Path) -> Folder:
    """A folder as it is, all of it durable."""
    out = Folder()
    for path in folder.iterdir():
        out.names[path.name] = _read(path) if path.is_dir() else Inode(data := path.read_bytes(), data)
    out.durable = dict(out.names)
    return out


def _write(folder: Folder, target: Path, order: str | None, kept: int, rng: np.random.Generator) -> None:
    target.mkdir(exist_ok=True)
    names = folder.names if order is None else dict(folder.durable)
    if order == "journal":
        for call, name, what in folder.changes:
            if call <= kept:
                names[name] = what  # type: ignore[assignment]
    elif order == "any":
        states: dict[str, list[Inode | Folder | None]] = {}
        for _, name, what in folder.changes:
            states.setdefault(name, [folder.durable.get(name)]).append(what)
        names |= {name: found[rng.integers(0, len(found))] for name, found in states.items()}  # type: ignore[misc]
    for name, what in names.items():
        if isinstance(what, Folder):
            _write(what, target / name, order, kept, rng)
        elif what is not None:
            (target / name).write_bytes(bytes(what.data) if order is None else what.after_cut(rng))


def records(log: Path) -> Iterator[tuple[str, int, int, int, int, str, bytes]]:
    """What `_disk.c` wrote."""
    data, at = log.read_bytes(), 0
    while at < len(data):
        kind, pid, fd, flags, offset, path, size = HEAD.unpack_from(data, at)
        at += HEAD.size
        yield kind.decode(), pid, fd, flags, offset, data[at : at + path].decode(), data[at + path : at + path + size]
        at += path + size


@dataclass
class Tally:
    """What happened to one kind of work.

    marked: units whose marker was whole after a cut, over all instants; torn: of them, those whose data were not.
    """

    calls: int = 0
    syncs: int = 0
    instants: int = 0
    orders: Counter[str] = field(default_factory=Counter)
    marked: int = 0
    torn: int = 0
    identical: int = 0
    lost_after_end: int = 0
    faults: list[str] = field(default_factory=list)


class Cut:
    """One kind of work, and power cuts in it."""

    def __init__(self, work: Work, scratch: Path, seed: int, fsync: bool, keep: Path | None) -> None:
        self.work, self.scratch, self.fsync, self.keep = work, scratch, fsync, keep
        self.rng = np.random.default_rng([seed, *work.name.encode()])
        self.disk = scratch / "disk"
        self.target = self.disk / "target"
        self.tally = Tally()

    def _run(self, part: int, **how: object) -> Process:
        extra = [] if self.fsync else ["--no-fsync"]
        return Process([*self.work.arguments(self.target, part), *extra], self.scratch / "log.txt", **how)  # type: ignore[arg-type]

    def record(self, library: Path) -> None:
        """Do the work once, logged."""
        self.disk.mkdir(exist_ok=True)
        self.work.begin(self.target)
        log = self.scratch / "disk.log"
        log.unlink(missing_ok=True)
        env = {"LD_PRELOAD": str(library), "DISK_ROOT": str(self.disk), "DISK_LOG": str(log)}
        running = [self._run(part, fork=False, env=env) for part in range(1, self.work.parts + 1)]
        for process in running:
            while process.poll() is None:
                time.sleep(0.01)
            if process.code not in DONE:
                raise SystemExit(f"{self.work.name}: ends with {process.code}\n{process.said()}")
        self.records = list(records(log))
        self.expected = self.work.result(self.target)
        self.tally.calls = len(self.records)
        self.tally.syncs = sum(kind == "F" for kind, *_ in self.records)
        replayed, seen = self.scratch / "replayed", contents(self.disk)
        whole = self._began()
        for entry in self.records:
            whole.apply(*entry)
        whole.write(replayed, None, self.rng)
        if missed := differing(seen, contents(replayed))[1]:
            raise SystemExit(f"{self.work.name}: the log misses calls that made {', '.join(missed)}")

    def _began(self) -> Disk:
        """The disk before the first call, anew."""
        self.work.begin(self.target)
        return Disk(self.disk)

    def cut(self, instants: int) -> Tally:
        """Cut the power after so many calls, drawn at random, and after the last."""
        drawn = np.sort(self.rng.integers(0, len(self.records) + 1, instants))
        disk, at = self._began(), 0
        for k, call in enumerate([*drawn.tolist(), *[len(self.records)] * len(ORDERS)]):
            for entry in self.records[at:call]:
                disk.apply(*entry)
            at = call
            order, after = ORDERS[k % len(ORDERS)], k >= instants
            disk.write(self.disk, order, self.rng)
            self._check(f"{order}, after call {call} of {len(self.records)}", order, after)
        return self.tally

    def _check(self, when: str, order: str, after: bool) -> None:
        tally, target = self.tally, self.target
        tally.instants += 1
        tally.orders[order] += 1
        left = contents(target) if target.is_dir() else {}
        if after and (lost := differing(self.expected, self.work.result(target))[0]):
            tally.lost_after_end += lost
            self._fault(f"{when}: {lost} bytes are lost though the command had ended", left)
        for marker, data in self.work.marked(self.expected).items():
            if left.get(marker) == self.expected[marker]:
                tally.marked += 1
                if torn := [name for name in data if left.get(name) != self.expected[name]]:
                    tally.torn += 1
                    self._fault(f"{when}: {marker} is there, {', '.join(torn)} not", left)
        process = self._run(1)
        while process.poll() is None:
            time.sleep(0.001)
        if process.code not in DONE:
            self._fault(f"{when}: going on ends with {process.code}: {process.said()[-600:]}", left)
            return
        wrong, names = differing(self.expected, self.work.result(target))
        tally.identical += not names
        if names:
            self._fault(f"{when}: {wrong} bytes differ after going on: {', '.join(names[:6])}", left)

    def _fault(self, text: str, left: dict[str, bytes]) -> None:
        self.tally.faults.append(f"{self.work.name}: {text}")
        if self.keep:
            for name, data in left.items():
                path = self.keep / f"{self.work.name} {self.tally.instants}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def table(results: dict[str, Tally]) -> str:
    """As Markdown."""
    head = ["work", "calls", "fsyncs", "cuts", "units with a marker", "of them not whole", "identical after going on"]
    rows = [[*head, "bytes lost after the end"]]
    rows.append(["---"] * len(rows[0]))
    for name, t in results.items():
        cells = [name, t.calls, t.syncs, t.instants, t.marked, t.torn, t.identical, t.lost_after_end]
        rows.append([str(c) for c in cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> int:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--instants", type=int, default=100, help="power cuts for each work and seed")
    p.add_argument("--works", nargs="+", default=[*WORKS], choices=WORKS)
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--no-fsync", dest="fsync", action="store_false", help="the control, which must show losses")
    p.add_argument("--keep", type=Path, help="folder for states that went wrong")
    args = p.parse_args()
    warm()
    results, begin = dict[str, Tally](), time.perf_counter()
    with scratch_folder("power-cut") as scratch:
        library = Path(scratch) / "disk.so"
        source = Path(__file__).with_name("_disk.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        for work in made_works(Path(scratch), args.works):
            for seed in args.seeds:
                folder = Path(scratch) / f"{work.name} {seed}".replace(", ", "_").replace(" ", "_")
                folder.mkdir()
                cut = Cut(work, folder, seed, args.fsync, args.keep)
                cut.record(library)
                tally = cut.cut(args.instants)
                results[work.name if len(args.seeds) == 1 else f"{work.name}, seed {seed}"] = tally
                for fault in tally.faults[:12]:
                    say(fault)
    print(table(results))
    print(f"{time.perf_counter() - begin:.0f} s, seeds {args.seeds}, {'' if args.fsync else 'no '}fsync")
    faults = any(t.faults for t in results.values())
    return int(faults if args.fsync else not faults)


if __name__ == "__main__":
    sys.exit(main())
