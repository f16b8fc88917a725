"""Outages while `extract` runs: the same command, given again, ends in the bytes of an undisturbed run.

The corpus' folder is renamed and comes back; reading a file gives EIO; there is no memory; writing finds no space, in
the middle of a file. An outage begins at a random one of the calls that it concerns and lasts for a random number of
these, at times through several runs. Every other outage is met with `keep_going`. Counted are runs that ended early,
units that were left, and calls that failed. Exit status 1 where a store is not the same byte for byte, a recording
failed, or a run ended with an error that nobody foresaw.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from voxstrata.audio.source import FileSource
from voxstrata.base.errors import InputError
from voxstrata.base.folders import scratch_folder
from voxstrata.demo.encoder import write_random_checkpoint
from voxstrata.engine import Runtime, decoding, extract
from voxstrata.exporters import ExportSpec, export
from voxstrata.store import StoreSpec
from voxstrata.store.files import Files

KINDS = ("folder away", "EIO", "no memory", "no space")
_MOST_RUNS = 400
_LONGEST = 40  # calls


class Outage:
    """Counts calls, of which some fail: those from `begin` to before `end`."""

    def __init__(self, kind: str, begin: int, end: int, folder: Path) -> None:
        self.kind, self.begin, self.end, self.failed = kind, begin, end, 0
        self._folder, self._away, self._calls = folder, folder.with_name("away"), 0
        self._lock = threading.Lock()

    def meets(self, *kinds: str) -> bool:
        """Count a call that outages of these kinds concern; whether it fails."""
        if self.kind not in kinds:
            return False
        with self._lock:
            now = self._calls
            self._calls += 1
            met = self.begin <= now < self.end
            self.failed += met
            if self.kind == "folder away" and met != self._away.exists():
                (self._folder if met else self._away).rename(self._away if met else self._folder)
            return met

    def over(self) -> None:
        if self._away.exists():
            self._away.rename(self._folder)


def install(current: list[Outage]) -> None:
    """Have what reads, decodes and writes ask the one outage in `current`, if there is one."""
    size, opened, decode, write = FileSource.size, FileSource.open, vars(decoding)["decode_to_slice"], Files.write_made

    def read(right: Callable[..., Any]) -> Callable[..., Any]:
        def asked(source: FileSource) -> Any:
            if current and current[0].meets("folder away", "EIO") and current[0].kind == "EIO":
                raise OSError(errno.EIO, "Input/output error", str(source.path))
            return right(source)

        return asked

    def decoded(*args: Any) -> Any:
        if current and current[0].meets("no memory"):
            raise MemoryError
        return decode(*args)

    def written(files: Files, name: str, parts: Callable[[], Any]) -> None:
        def cut() -> Iterator[Any]:
            yield from list(parts())[:1]
            raise OSError(errno.ENOSPC, "No space left on device", name)

        write(files, name, cut if current and current[0].meets("no space") else parts)

    FileSource.size, FileSource.open = read(size), read(opened)  # type: ignore[method-assign]
    Files.write_made = written  # type: ignore[method-assign]
    setattr(decoding, "decode_to_slice", decoded)  # noqa: B010  # mypy holds the name to be another room's


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--outages", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    rng, wrong, count = np.random.default_rng(args.seed), 0, Counter[str]()
    current: list[Outage] = []
    with scratch_folder("outages") as name:
        folder, corpus = Path(name), Path(name) / "corpus"
        for i in range(24):
            path = corpus / f"{('de', 'en', 'fr', 'uk', 'es', 'pl')[i % 6]}" / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, rng.uniform(-0.1, 0.1, 4000 + 500 * i), 16_000)
        write_random_checkpoint(folder / "checkpoint")
        model = export(str(folder / "checkpoint"), folder / "model", ExportSpec(outputs=("layer_00",)))
        how: Any = (StoreSpec(outputs=("layer_00",)), Runtime(threads=1, unit_megabytes=0.05))
        extract(corpus, model, folder / "whole.zarr", *how)
        expected = contents(folder / "whole.zarr")
        install(current)
        for number in range(args.outages):
            kind, begin = KINDS[number % len(KINDS)], int(rng.integers(0, 40))
            outage = Outage(kind, begin, begin + int(rng.geometric(0.1)) % _LONGEST + 1, corpus)
            store, keep_going = folder / "s.zarr", bool(number // len(KINDS) % 2)
            current[:] = [outage]
            for _ in range(_MOST_RUNS):
                try:
                    done = extract(corpus, model, store, *how, keep_going=keep_going)
                except InputError:
                    count["runs that ended early"] += 1
                except MemoryError:
                    count["runs that ended early"] += 1
                else:
                    count["units left to a later run"] += len(done.unreachable)
                    if not done.pending_units:
                        break
                if kind == "folder away":  # time passes, also where nothing is read
                    outage.meets(kind)
            current.clear()
            outage.over()
            count["calls that failed"] += outage.failed
            count[f"{kind}: outages met"] += outage.failed > 0
            if not store.exists() or contents(store) != expected:
                wrong += 1
                print(f"outage {number} ({kind}, calls {outage.begin} to {outage.end}): not the same bytes", flush=True)
            shutil.rmtree(store, ignore_errors=True)
    print(f"{args.outages} outages, {wrong} stores that are not the same byte for byte")
    for what, number in sorted(count.items()):
        print(f"  {what}: {number}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
