"""Small pieces of work for `kills.py` and `power_cut.py`: commands, what they begin from, how far they are."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from _common import limit_threads

LANGUAGES = ("ca", "de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt")
MAIN = "from voxstrata.cli import main; main()"
WORKS = ("extract", "extract, 4 parts", "similarity", "similarity, 3 parts", "append", "relabel")
LOCK = ".voxstrata-lock"  # of whoever died; the next run takes it
DONE = (0, 4)  # exit codes: all of it, all but some recordings
STAGES = ("start", "prepare", "first units", "last units", "finish")


@dataclass(frozen=True)
class Work:
    """A command that makes a folder, or changes one.

    command: arguments of `voxstrata`, "{target}" for the folder. parts: runs that share the work; 1 is given no part.
    begins_from: what the folder is a copy of; None: nothing is there. plan: the file with which preparing ends.
    markers: pattern of the files that each say that a unit is done. markers_before: of them in `begins_from`. units: of
    the work. ignored: files whose names begin so say when they were made.
    """

    name: str
    command: tuple[str, ...]
    parts: int = 1
    begins_from: Path | None = None
    plan: str = "plan.json"
    markers: str = "units/*.json"
    markers_before: int = 0
    units: int = 0
    ignored: str = "\0"

    def arguments(self, target: Path, part: int) -> list[str]:
        """Of one run."""
        shared = ["--part", f"{part}/{self.parts}"] if self.parts > 1 else []
        return [argument.format(target=target) for argument in self.command] + shared

    def begin(self, target: Path) -> None:
        """Put there what the work begins from."""
        shutil.rmtree(target, ignore_errors=True)
        if self.begins_from is not None:
            shutil.copytree(self.begins_from, target)

    def committed(self, target: Path) -> int:
        """Units that have a marker."""
        return len(list(target.glob(self.markers))) - self.markers_before

    def result(self, target: Path) -> dict[str, bytes]:
        """What it made, file by file."""
        found = contents(target) if target.is_dir() else {}
        return {name: data for name, data in found.items() if not name.startswith((self.ignored, LOCK))}

    def marked(self, made: Mapping[str, bytes]) -> dict[str, list[str]]:
        """By the file that says that a unit is done: the files that hold it."""
        units: dict[str, list[str]] = {}
        for name in fnmatch.filter(made, self.markers):
            number = int(re.findall(r"\d{6}", name)[0])
            shards = fnmatch.filter(made, f"frames/*/c/{number}/0")
            units[name] = shards or fnmatch.filter(made, f"{Path(name).parent}/top.parquet")
        return units

    def stage(self, target: Path) -> str:
        """Where the work stands, by what lies there."""
        if not target.is_dir() or (self.begins_from is None and not any(target.iterdir())):
            return "start"
        if not (target / self.plan).exists():
            return "prepare" if self.begins_from is None else "start"
        done = self.committed(target)
        if done >= self.units:
            return "finish"
        return "first units" if done < self.units / 2 else "last units"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def differing(expected: dict[str, bytes], found: dict[str, bytes]) -> tuple[int, list[str]]:
    """Bytes that are lost, changed or too many, and the files that hold them."""
    count, names = 0, []
    for name in sorted(expected.keys() | found.keys()):
        there, here = expected.get(name), found.get(name)
        if there != here:
            a, b = np.frombuffer(there or b"", np.uint8), np.frombuffer(here or b"", np.uint8)
            n = min(len(a), len(b))
            count += int((a[:n] != b[:n]).sum()) + abs(len(a) - len(b)) + (there is None or here is None)
            names.append(name + (" (gone)" if here is None else " (too many)" if there is None else ""))
    return count, names


def write_sounds(folder: Path, each: int, seconds: float = 0.3, languages: Sequence[str] = LANGUAGES) -> Path:
    """Made-up recordings, a folder for each language, and one file in it that is none."""
    for k, language in enumerate(languages):
        (folder / language).mkdir(parents=True)
        for i in range(each):
            rng = np.random.default_rng([k, i])
            t = np.arange(round(16_000 * seconds * (1 + i))) / 16_000
            sound = 0.1 * np.sin(2 * np.pi * rng.uniform(90, 900) * t) + 0.01 * rng.standard_normal(len(t))
            soundfile.write(folder / language / f"{i}.wav", sound, 16_000)
    (folder / languages[0] / "bad.wav").write_text("not audio")
    return folder


class Process:
    """A run in a process of its own, forked from this one (what it needs is imported) or started as a user does.

    log: where it writes what a terminal would show. struck: whether it was sent a signal.
    """

    def __init__(self, arguments: Sequence[str], log: Path, *, fork: bool = True, env: dict[str, str] | None = None):
        self.log, self.struck = log, False
        self.code: int | None = None
        if fork:
            sys.stdout.flush()
            # an interrupt of the child is not to run the rest of this program there
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            self.pid = os.fork()
            if self.pid == 0:
                _child(arguments, log)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        else:
            with log.open("ab") as file:
                command = [sys.executable, "-c", MAIN, *arguments]
                self._started = subprocess.Popen(command, stdout=file, stderr=file, env=env and os.environ | env)
            self.pid = self._started.pid
        self._forked = fork

    def poll(self) -> int | None:
        """The exit code; negative of a signal that ended it; None while it runs."""
        if self.code is None:
            if self._forked:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.code = os.waitstatus_to_exitcode(status) if pid else None
            else:
                self.code = self._started.poll()
        return self.code

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            self.struck = True
            os.kill(self.pid, number)

    def said(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""


def _child(arguments: Sequence[str], log: Path) -> None:
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs us in the background
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        from voxstrata.cli import main

        sys.argv = ["voxstrata", *arguments]
        main()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except KeyboardInterrupt:  # before or after the command, which says so itself
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def warm() -> None:
    """Import what the runs need, so that forking one takes no time. Starts the program again where BLAS has threads."""
    limit_threads(1)  # a fork would lose the others
    import numba.core.typing  # noqa: F401

    import voxstrata.cli.append
    import voxstrata.cli.extract
    import voxstrata.cli.similarity
    import voxstrata.engine
    import voxstrata.engine.appending
    import voxstrata.retrieval.all_pairs  # noqa: F401
    from voxstrata.retrieval.kernels.float32 import Float32
    from voxstrata.retrieval.ragged import Ragged

    kernel = Float32()
    packed = kernel.pack(Ragged(np.ones((2, 3), np.float32), np.array([0, 1, 2]), ["a", "b"]))
    kernel.compare(packed, packed)  # compiled once
    threads = set[str]()
    for _ in range(500):  # importing ONNX Runtime starts one that ends soon
        threads = {Path(f"/proc/self/task/{t}/comm").read_text().strip() for t in os.listdir("/proc/self/task")[1:]}
        if threads <= {"jemalloc_bg_thd"}:  # pyarrow's, made for forks
            return
        time.sleep(0.01)
    raise SystemExit(f"a fork would lose these threads: {threads}")


def model_and_sounds(folder: Path) -> tuple[Path, Path]:
    """A tiny model with random weights, made in a process of its own (torch has threads), and a corpus."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import golden\n"
        "from voxstrata.exporters import export\n"
        "folder = Path(sys.argv[2]); golden.write_checkpoint(folder / 'checkpoint')\n"
        "export(str(folder / 'checkpoint'), folder / 'model')"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(folder)], check=True)
    return folder / "model", write_sounds(folder / "sounds", 4)


def made_works(folder: Path, names: Sequence[str]) -> list[Work]:
    """The works of these names, with what they need made in a folder."""
    model, sounds = model_and_sounds(folder)
    more = write_sounds(folder / "more", 2, 0.4, ("da", "el", "hu"))
    for path in sorted(more.rglob("*.wav")):  # ids are paths: none of the first corpus
        path.rename(path.with_name(f"more_{path.name}"))
    running = ("--threads", "1", "--tokens", "1500")
    extract = ("extract", str(sounds), str(model), "-o", "{target}", "--outputs", "layer_01,final", *running)
    store = folder / "store.zarr"
    similarity = ("similarity", str(store), "--outputs", "final", "-o", "{target}", "--kernel", "float32")
    similarity += ("--tile-frames", "120")
    candidates = ("--candidates", "6", "--top", "3", "--sample", "10")
    made = Process([a.format(target=store) for a in extract], folder / "log.txt")
    while made.poll() is None:
        time.sleep(0.01)
    if made.code not in DONE:
        raise SystemExit(made.said())
    labels = folder / "labels.tsv"
    labels.write_text("".join(f"{row}\n" for row in ["id\tspeaker", *(f"{k}/1\tsomebody" for k in LANGUAGES)]))
    rows = {"markers": "units/*/done.json"}
    found = [
        Work("extract", extract),
        Work("extract, 4 parts", extract, parts=4),
        Work("similarity", (*similarity, "--matrix", "f1"), **rows),
        Work("similarity, 3 parts", (*similarity, *candidates), parts=3, **rows),
        Work("append", ("append", "{target}", str(more), str(model), *running), begins_from=store,
             plan="appended/0001.json", markers_before=len(list(store.glob("units/*.json")))),
        Work("relabel", ("relabel", "{target}", str(labels)), begins_from=store, ignored="history/"),
    ]  # fmt: skip
    return [work for work in found if work.name in names]
