"""Runs killed at random instants, again and again, until they end: the result must be that of a run nobody touched.

Processes are real. Each instant is drawn within a stage that is drawn first, so that no stage is spared for being
short: from the start of the process, from the first file on, from the plan on, from the last unit's marker on. SIGKILL,
SIGTERM and SIGINT take turns at random. Work that several runs share loses one of them at a time; some are started
again, some never. Most processes are forked from this one, where everything is imported; every `--fresh`-th work is
done by processes that are started as a user does. Every file of the result is compared byte for byte.

Exit status 1 if a byte is lost or changed, or a run that nobody killed fails.

    python benchmarks/kills.py                      # 1,000 kills of extract, 300 of similarity, 100 of append
    python benchmarks/kills.py --kills 10 --works extract
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from _common import say
from _work import DONE, STAGES, WORKS, Process, Work, differing, made_works, warm

from voxstrata.base.folders import scratch_folder

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE, FRESH_PATIENCE = 120, 900  # seconds that a work may take; runs that are not forked import and compile first
MOST_FAULTS = 20
MOST_KILLS = {1: 5, 4: 12, 3: 9}  # of one work, by the runs that share it


@dataclass
class Tally:
    """What happened to one kind of work.

    again: how often one more run was needed, after those that were not killed had ended.
    """

    works: int = 0
    identical: int = 0
    fresh: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    again: int = 0
    bytes_wrong: int = 0
    faults: list[str] = field(default_factory=list)


class Interrupted:
    """One kind of work, done over and over under kills.

    seconds: how long each stage took when nobody interrupted it.
    """

    def __init__(self, work: Work, folder: Path, seed: int, keep: Path | None) -> None:
        self.work, self.folder, self.keep = work, folder, keep
        self.rng = np.random.default_rng([seed, *work.name.encode()])
        self.tally = Tally()
        self.target, self.log = folder / "target", folder / "log.txt"
        self._measure()

    def _measure(self) -> None:
        work, target = self.work, self.target
        work.begin(target)
        alone = dataclasses.replace(work, parts=1)
        begin, reached = time.perf_counter(), dict[str, float]()
        process = Process(alone.arguments(target, 1), self.log)
        while process.poll() is None:
            # the number of units is not known yet: the last marker that appears began the end
            key = f"{work.stage(target)} {work.committed(target)}" if target.is_dir() else "start"
            reached.setdefault(key, time.perf_counter() - begin)
            time.sleep(0.0005)
        if process.code not in DONE:
            raise SystemExit(f"{work.name}: ends with {process.code} by itself\n{process.said()}")
        end = time.perf_counter() - begin
        self.work = dataclasses.replace(work, units=work.committed(target))
        named = {name.rsplit(" ", 1)[0]: when for name, when in reversed(reached.items())}
        prepare, units = named.get("prepare", named.get("start", 0.0)), named.get("finish", end)
        finish = max(reached.values())
        self.seconds = {"start": prepare, "prepare": units - prepare, "units": finish - units, "finish": end - finish}
        self.expected = self.work.result(target)

    def until(self, kills: int, fresh: int) -> Tally:
        """Do the work again and again until there were so many kills."""
        while self.tally.kills.total() < kills and len(self.tally.faults) < MOST_FAULTS:
            self._one(kills - self.tally.kills.total(), fork=not fresh or self.tally.works % fresh != fresh - 1)
        return self.tally

    def _one(self, most: int, *, fork: bool) -> None:
        work, tally, rng = self.work, self.tally, self.rng
        tally.works += 1
        tally.fresh += not fork
        work.begin(self.target)
        self.log.unlink(missing_ok=True)
        left = min(most, int(rng.integers(1, MOST_KILLS[work.parts] + 1)))
        patience = PATIENCE if fork else FRESH_PATIENCE
        end = time.monotonic() + patience
        running = {part: self._started(part, fork) for part in range(1, work.parts + 1)}
        told, lost = list[str](), list[int]()
        while running:
            if left and (victim := self._strike(running, end, slower=1 if fork else 4)):
                told.append(victim)
                left -= 1
            if not left:
                time.sleep(0.001)
            for part, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[part]
                # 130 and 143 are ours; Python, interrupted before its first line of ours, ends with 1
                if code not in (*DONE, *(-s for s in SIGNALS)) and not (process.struck and code in (1, 130, 143)):
                    self._fault(f"run {part} ended with {code} after {told}: {process.said()}", running)
                    return
                if code not in DONE:
                    if not running or rng.random() < 0.6:
                        running[part] = self._started(part, fork)
                    else:
                        lost.append(part)
            if time.monotonic() > end:
                self._fault(f"takes over {patience} s after {told}", running)
                return
        if (
            lost and differing(self.expected, self.work.result(self.target))[1]
        ):  # the others had ended before one was lost
            tally.again += 1
            last = self._started(lost[-1], fork)
            while last.poll() is None:
                time.sleep(0.001)
            if last.code not in DONE:
                self._fault(f"run {lost[-1]} ended with {last.code} after {told}: {last.said()}")
                return
        wrong, names = differing(self.expected, self.work.result(self.target))
        tally.bytes_wrong += wrong
        if names:
            self._fault(f"{wrong} bytes differ after {told}: {', '.join(names[:6])}")
        else:
            tally.identical += 1

    def _started(self, part: int, fork: bool) -> Process:
        self.tally.runs += 1
        return Process(self.work.arguments(self.target, part), self.log, fork=fork)

    def _strike(self, running: dict[int, Process], until: float, slower: int) -> str | None:
        """Wait for a random instant and kill one of the runs then; where and how, None if they ended before."""
        rng, stages = self.rng, list(self.seconds)
        now = {"first units": "units", "last units": "units"}
        reached = self.work.stage(self.target)
        first = stages.index(now.get(reached, reached))
        stage = stages[int(rng.integers(first, len(stages)))]
        order = {name: k for k, name in enumerate(stages)}
        while order[now.get(here := self.work.stage(self.target), here)] < order[stage]:
            if any(process.poll() is not None for process in running.values()) or time.monotonic() > until:
                return None
            time.sleep(0.0003)
        wait = rng.uniform(0, 1.1 * self.seconds[stage] * (slower if stage == "start" else 1) * len(running))
        end = time.perf_counter() + max(wait, 0.001 * rng.random())
        while (rest := end - time.perf_counter()) > 0:
            time.sleep(min(rest, 0.002))
            if any(process.poll() is not None for process in running.values()):
                return None
        part = int(rng.choice(list(running)))
        number = SIGNALS[int(rng.integers(len(SIGNALS)))]
        fell = self.work.stage(self.target)
        running[part].send(number)
        while running[part].poll() is None and time.monotonic() < until:
            time.sleep(0.0005)
        if running[part].code in DONE:  # it was faster
            return None
        self.tally.kills[fell] += 1
        self.tally.signals[number.name] += 1
        return f"{number.name} of run {part} in {fell}"

    def _fault(self, text: str, running: Mapping[int, Process] = MappingProxyType({})) -> None:
        for process in running.values():
            process.send(signal.SIGKILL)
            while process.poll() is None:
                time.sleep(0.001)
        self.tally.faults.append(f"{self.work.name}, work {self.tally.works}: {text}")
        if self.keep and self.target.exists():
            shutil.copytree(self.target, self.keep / f"{self.work.name} {self.tally.works}", dirs_exist_ok=True)


def table(results: dict[str, Tally]) -> str:
    """As Markdown."""
    head = ["work", "kills", *STAGES, "by signal", "works", "runs", "again", "identical", "bytes lost or changed"]
    rows = [head, ["---"] * len(head)]
    for name, t in results.items():
        kinds = " ".join(f"{k.removeprefix('SIG')} {n}" for k, n in sorted(t.signals.items()))
        cells = [name, t.kills.total(), *(t.kills[s] for s in STAGES), kinds]
        cells += [f"{t.works} ({t.fresh} fresh)", t.runs, t.again, t.identical, t.bytes_wrong]
        rows.append([str(cell) for cell in cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> int:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, help="of each work [700 and 300 of extract, 150 and 150 of similarity, 100]")
    p.add_argument("--works", nargs="+", default=[name for name in WORKS if name != "relabel"], choices=WORKS)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--fresh", type=int, default=20, help="every so-manieth work by processes that are not forked")
    p.add_argument("--keep", type=Path, help="folder for what went wrong")
    args = p.parse_args()
    wanted = {"extract": 700, "extract, 4 parts": 300, "append": 100}
    warm()
    results, begin = dict[str, Tally](), time.perf_counter()
    with scratch_folder("kills") as scratch:
        for work in made_works(Path(scratch), args.works):
            folder = Path(scratch) / work.name.replace(", ", "_").replace(" ", "_")
            folder.mkdir()
            interrupted = Interrupted(work, folder, args.seed, args.keep)
            stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in interrupted.seconds.items())
            say(f"{work.name}: {interrupted.work.units} units; seconds by stage: {stages}")
            results[work.name] = interrupted.until(args.kills or wanted.get(work.name, 150), args.fresh)
            for fault in results[work.name].faults:
                say(fault)
    print(table(results))
    print(f"{time.perf_counter() - begin:.0f} s, seed {args.seed}")
    return int(any(t.faults for t in results.values()))


if __name__ == "__main__":
    sys.exit(main())
