"""Flip bits, cut, empty, delete and swap files of a finished store, and see that each is found and mended.

A store is extracted, and a second one of other recordings with the same shapes. Then, `--count` times in a copy of the
first: a file is chosen, by `--by` either each as likely as the others or by its bytes, and one of its bits is flipped
(every fifth time instead it is cut, emptied, deleted, or replaced by that file of the second store). What is damaged
must be found: opening the store and reading every utterance, or `verify`, says so; and no value that is read differs
from the original without an error. Then `verify --repair` and the same extraction must bring back every byte.

Exit status 1 when anything was not found, was returned as data, or was not mended.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from _common import say

import voxstrata as vs
from voxstrata.base.folders import scratch_folder

KINDS = ("cut", "empty", "delete", "swap")
# Nothing else holds what relabelling replaced: damage is found, not mended.
LOST = "history/"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_all(path: Path) -> dict[str, bytes]:
    """All that a reader gets of a store: each utterance's states and its row of the table; InputError where it is told.

    An utterance whose reading fails is left out.
    """
    store, found = vs.open_store(path), {}
    for row in store.utterances.to_pylist():
        found[f"row {row['id']}"] = repr(row).encode()
        for output in store.outputs:
            try:
                if store.has_frames:
                    found[f"{output} {row['id']}"] = store.frames(row["id"], output).tobytes()
                else:
                    found[f"{output} {row['id']}"] = store.pooled(output, [store.index(row["id"])]).tobytes()
            except vs.VoxstrataError:
                continue
    return found


def harm(path: Path, name: str, kind: str, other: Path, rng: np.random.Generator) -> bool:
    """Damage a file; False where this leaves it as it is."""
    file = path / name
    data = file.read_bytes()
    if kind == "delete":
        file.unlink()
        return True
    if kind == "swap":
        if not (other / name).exists():
            return False
        new = (other / name).read_bytes()
    elif kind == "flip":
        flipped = bytearray(data)
        flipped[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        new = bytes(flipped)
    else:
        new = data[: int(rng.integers(len(data)))] if kind == "cut" else b""
    file.write_bytes(new)
    return new != data


def trial(
    whole: Path, other: Path, copy: Path, name: str, kind: str, rng: np.random.Generator, mend: Callable[[Path], object]
) -> str | None:
    """Damage a file of a copy; what went wrong, "" for nothing, None where the file was not changed."""
    expected = contents(whole)
    if copy.exists():
        shutil.rmtree(copy)
    shutil.copytree(whole, copy)
    if not harm(copy, name, kind, other, rng):
        return None
    right, wrong = read_all(whole), ""
    try:
        got = read_all(copy)
    except vs.VoxstrataError:
        got = {}
    if other_values := [key for key, value in got.items() if right.get(key) != value]:
        # what one reads alone cannot tell another store's shard: `verify` does
        wrong = "" if kind == "swap" and name.split("/")[0] in ("frames", "pooled") else f"read as data: {other_values}"
    report = vs.verify(copy, repair=True)
    if report.sound:
        return wrong or "not found"
    if name.startswith(LOST):
        return wrong
    mend(copy)
    left = contents(copy)
    differing = sorted(n for n in left.keys() | expected.keys() if left.get(n) != expected.get(n))
    if differing:
        return wrong or f"not mended: {differing}"
    return wrong if vs.verify(copy).sound else "not sound after mending"


def harmed(whole: Path, other: Path, copy: Path, mend: Callable[[Path], object], count: int, seed: int, by: str) -> int:
    """`count` trials; prints what was found of each kind, and returns how many went wrong."""
    rng, files = np.random.default_rng(seed), contents(whole)
    names = list(files)
    sizes = np.array([len(files[n]) for n in names], float)
    share = sizes / sizes.sum() if by == "bytes" else None
    done: Counter[str] = Counter()
    wrong = 0
    while sum(done.values()) < count:
        kind = KINDS[int(rng.integers(len(KINDS)))] if sum(done.values()) % 5 == 4 else "flip"
        name = str(rng.choice(names, p=share))
        found = trial(whole, other, copy, name, kind, rng, mend)
        if found is None:
            continue
        done[kind] += 1
        if found:
            wrong += 1
            say(f"{kind} {name}: {found}")
    say(f"{sum(done.values())} ({dict(done)}), {wrong} not found, returned as data, or not mended")
    return wrong


def corpus(folder: Path, seed: int) -> Path:
    """Recordings of four languages, the same lengths for each seed, and one that cannot be read."""
    rng = np.random.default_rng(seed)
    for i in range(12):
        path = folder / ("de", "en", "es", "fr")[i % 4] / f"{seed}-{i:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(4000 + 900 * i).astype(np.float32), 16_000, subtype="FLOAT")
    (folder / "en" / "bad.wav").write_text("no audio")
    return folder


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="a model folder, small")
    p.add_argument("--count", type=int, default=1000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--by", choices=["file", "bytes"], default="file")
    p.add_argument("--pool", choices=["mean"])
    args = p.parse_args()
    with scratch_folder("flips") as name:
        folder = Path(name)
        spec = vs.StoreSpec(vs.open_model(args.model).card.outputs[-2:], pool=args.pool)
        given = corpus(folder / "a", 1)
        how = {"runtime": vs.Runtime(threads=1)}
        vs.extract(given, args.model, folder / "a.zarr", spec, **how)
        vs.extract(corpus(folder / "b", 2), args.model, folder / "b.zarr", spec, **how)

        def mend(store: Path) -> None:
            vs.extract(given, args.model, store, spec, **how)

        paths = (folder / "a.zarr", folder / "b.zarr", folder / "c.zarr")
        return int(harmed(*paths, mend, args.count, args.seed, args.by) > 0)


if __name__ == "__main__":
    sys.exit(main())
