"""Several devices of one machine: a process each, which share the units of one store."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError, VoxstrataError, debugging, error_text
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.corpus import Corpus, read_corpus
from voxstrata.encoders import Device, ModelFolder, open_model
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.engine.extraction import ExtractReport, report, work_through
from voxstrata.engine.planning import Long
from voxstrata.engine.run import Worked, open_run, prepare
from voxstrata.engine.runtime import Runtime
from voxstrata.engine.tally import Tally
from voxstrata.store.part import Part
from voxstrata.store.spec import StoreSpec

_TELL_SECONDS = 0.2  # from one report of a process to its next
_END_SECONDS = 30.0  # for a process to commit what it is at, when all are to end


def extract_on(
    devices: Sequence[Device],
    corpus: Corpus | str | Path,
    model: ModelFolder | str | Path,
    store: str | Path,
    spec: StoreSpec | None = None,
    runtime: Runtime | None = None,
    reporter: Reporter = SILENT,
    *,
    long: Long = "window",
    allow_overflow: bool = False,
    part: Part | None = None,
    durable: bool = True,
    retry_failed: bool = False,
) -> ExtractReport:
    """`extract` with a process for each device, among which the threads of `runtime` are divided.

    A process that dies is told of, and its units are taken by the others. An interrupt ends all of them. They are
    spawned: a script calls this below `if __name__ == "__main__":`. Raises what `extract` raises, and InputError when
    no process is left and units are pending.
    """
    corpus = read_corpus(corpus)
    model = open_model(model)
    runtime = replace(runtime or Runtime(), device=devices[0])
    how: dict[str, Any] = {"allow_overflow": allow_overflow, "durable": durable}
    run = prepare(corpus, model, store, spec, runtime, reporter, long=long, retry_failed=retry_failed, **how)
    begin, before = time.perf_counter(), len(run.writer.done())
    threads, share = max(1, runtime.thread_count // len(devices)), part or Part()
    processes = []
    try:
        for i, device in enumerate(devices):
            own = replace(runtime, device=device, threads=threads)
            number = Part((share.number - 1) * len(devices) + i + 1, share.of * len(devices))
            processes.append(_Process(str(device), (store, model.path, corpus, own, number, part is None, how)))
        _follow(processes, Tally(run.writer, model), reporter)
    finally:
        _end(processes)
    left = run.pending()
    if left and (died := [p for p in processes if p.worked is None]) and (part is None or len(died) == len(processes)):
        raise InputError(
            f"{store}: {counted(len(left), 'unit is', 'units are')} not done: {died[-1].why}; run the same again to go "
            "on"
        )
    worked = sum((p.worked for p in processes if p.worked is not None), Worked())
    found = run.writer.failures(set(run.order) - set(left)) if left else run.finish()
    return report(run, replace(worked, seconds=time.perf_counter() - begin), before, len(left), *found)


@dataclass
class _Process:
    """One process, and what it told. worked: set when it has come to its end. why: it has not. samples: encoded."""

    name: str
    task: tuple[Any, ...]
    worked: Worked | None = None
    why: str = ""
    samples: int = 0
    process: SpawnProcess = field(init=False)
    connection: Connection = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(theirs, *self.task), name=f"voxstrata {self.name}")
        self.process.start()
        theirs.close()  # so that the pipe ends with the process

    def receive(self, reporter: Reporter) -> bool:
        """Take what it tells; False when it has ended."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            if self.worked is None:
                code = self.process.exitcode or 0
                self.why = self.why or (f"killed by signal {-code}" if code < 0 else f"it ended with code {code}")
                reporter.warn(f"the process on {self.name} failed: {self.why}; the others take its units")
            return False
        if kind == "worked":
            self.worked = value
        elif kind == "why":
            self.why = value
        elif kind == "warn":
            reporter.warn(value)
        else:
            self.samples = value
        return True


def _follow(processes: Sequence[_Process], tally: Tally, reporter: Reporter) -> None:
    """Tell of the whole until all processes have ended."""
    living = {p.connection: p for p in processes}
    while living:
        for connection in wait(list(living), timeout=1.0):
            if not living[connection].receive(reporter):  # type: ignore[index]
                del living[connection]  # type: ignore[arg-type]
        tally.tell(reporter, sum(p.samples for p in processes))


def _end(processes: Sequence[_Process]) -> None:
    """Have all processes end, if they have not."""
    for p in processes:
        if p.process.is_alive():
            p.process.terminate()
    for p in processes:
        p.process.join(_END_SECONDS)
        p.process.kill()
        p.process.join()
        p.connection.close()


class _Sending(Reporter):
    """Tells the process that started this one."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._told = connection, 0.0

    def warn(self, text: str) -> None:
        self._connection.send(("warn", text))

    def progress(self, progress: Progress) -> None:
        if (now := time.monotonic()) - self._told >= _TELL_SECONDS:
            self._told = now
            self._connection.send(("samples", round((progress.rated or 0.0) * SAMPLE_RATE)))


def _work(
    to_parent: Connection,
    store: str | Path,
    model: Path,
    corpus: Corpus,
    runtime: Runtime,
    part: Part,
    patient: bool,
    how: dict[str, Any],
) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts all at once: the parent says when to end
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run = open_run(store, model, corpus, **how)
        worked = work_through(run, run.encoder(runtime), _Sending(to_parent), part, patient)
        to_parent.send(("worked", worked))
    except KeyboardInterrupt:
        pass
    except Exception as e:
        to_parent.send(("why", str(e) if isinstance(e, VoxstrataError | OSError) else error_text(e)))
        if debugging():
            raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # as a kill would: what is committed stays
