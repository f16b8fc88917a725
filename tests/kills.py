"""Run extractions and comparisons in processes of their own, which tests kill at random instants."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voxstrata.base.progress import Progress, Reporter
from voxstrata.corpus import Corpus
from voxstrata.engine import Runtime, extract
from voxstrata.retrieval import tileplan
from voxstrata.retrieval.all_pairs import similarity
from voxstrata.retrieval.kernels.float32 import Float32
from voxstrata.retrieval.selection import select
from voxstrata.store import StoreSpec, leases, open_store
from voxstrata.store.part import Part

# Children are forked from a server that has everything imported and no threads: fast, and without this process' torch.
# What they run stands here: a function of a test's module would have each of them import all that the test does.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["voxstrata.engine", "voxstrata.retrieval.all_pairs", "s3fs"])


Settings = tuple[StoreSpec, Runtime]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def committed(store: Path) -> int:
    """Units of a store that are written."""
    return len(list(store.glob("units/*.json")))


class Holding(Reporter):
    """Lets no run get further than to so many committed units."""

    def __init__(self, store: Path, units: int) -> None:
        self.store, self.units = store, units

    def progress(self, progress: Progress) -> None:
        while progress.stage == "extracting" and committed(self.store) >= self.units:
            time.sleep(0.001)


class Slow(Reporter):
    """Takes its time at each batch, so that others and kills come in between."""

    def progress(self, progress: Progress) -> None:
        if progress.stage == "extracting":
            time.sleep(0.02)


def extract_part(corpus: Path, model: Path, store: Path, settings: Settings, part: Part | None) -> None:
    _no_stderr()
    extract(corpus, model, store, *settings, Slow(), part=part)


def extract_with(
    environment: dict[str, str], lease_seconds: float, corpus: Path, model: Path, store: str, settings: Settings
) -> None:
    os.environ.update(environment)
    leases.LEASE_SECONDS = lease_seconds
    extract(corpus, model, store, *settings)


def compare(store: str, folder: str, settings: dict[str, Any], part: Part | None = None) -> None:
    """A comparison of one output with itself, by the float32 kernel, in chunks of two utterances."""
    _no_stderr()
    tileplan.MIN_CHUNK_UTTERANCES = 2
    similarity(select(open_store(store)), None, "final", folder, kernel=Float32(), part=part, **settings)


def _no_stderr() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _quietly(corpus: Path | Corpus, model: Path, store: Path, settings: Settings, hold_at: int | None) -> None:
    _no_stderr()  # the traceback of a KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs us in the background

    extract(corpus, model, store, *settings, Reporter() if hold_at is None else Holding(store, hold_at))


def run(
    corpus: Path | Corpus,
    model: Path,
    store: Path,
    settings: Settings,
    stop: Callable[[], int | None],
    hold_at: int | None = None,
) -> int:
    """Extract in a child, ask `stop` for a signal to send until there is one or the child ends; its exit code.

    With `hold_at` the child goes no further than to so many committed units, and waits for the signal.
    """
    child = PROCESSES.Process(target=_quietly, args=(corpus, model, store, settings, hold_at))
    child.start()
    while child.exitcode is None:
        number = stop()
        if number is not None:
            assert child.pid is not None
            os.kill(child.pid, number)
            break
        child.join(0.0005)
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def kill_and_resume(corpus: Path, model: Path, folder: Path, settings: Settings, kills: int, seed: int) -> None:
    """Kill runs `kills` times, resume each, and hold every store that got finished against an uninterrupted one.

    Every second store is also killed as soon as its first file appears, that is while it is being made.
    """
    whole = folder / "whole.zarr"
    begin = time.perf_counter()
    assert run(corpus, model, whole, settings, lambda: None) == 0
    seconds = time.perf_counter() - begin
    expected = contents(whole)
    rng = np.random.default_rng(seed)
    done, stores, interrupted_in = 0, 0, []
    while done < kills:
        stores += 1
        store = folder / f"{stores}.zarr"
        in_creation = stores % 2 == 1
        while True:
            begin, wait = time.perf_counter(), rng.uniform(0, 1.2 * seconds)
            if in_creation:
                wait /= 20  # from the first file on

            def stop(store: Path = store, wait: float = wait, in_creation: bool = in_creation) -> int | None:
                nonlocal begin
                if in_creation and not (store.is_dir() and any(store.iterdir())):
                    begin = time.perf_counter()
                return signal.SIGKILL if time.perf_counter() - begin > wait else None

            code = run(corpus, model, store, settings, stop)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            done += 1
            in_creation = False
            interrupted_in.append(committed(store))
            if done == kills:
                assert run(corpus, model, store, settings, lambda: None) == 0
                break
        assert contents(store) == expected
    print(f"units committed at each kill: {interrupted_in}; stores: {stores}")
