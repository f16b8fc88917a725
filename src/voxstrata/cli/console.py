"""What commands print: progress on a terminal, tables, JSON."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from voxstrata.base.plain import spelt_out
from voxstrata.base.progress import Progress, Reporter
from voxstrata.base.tables import aligned as aligned
from voxstrata.base.tables import clock as clock
from voxstrata.cli.saying import PROGRESS, say, say_json

if TYPE_CHECKING:
    from voxstrata.base.result import Result
    from voxstrata.store import EmbeddingStore

PARTIAL = 4  # exit code: done, but some recordings failed

FAILURES_SHOWN = 10  # the rest is in the store


def print_json(result: Any) -> None:
    """One JSON object, non-ASCII kept."""
    say_json(json.dumps(result, ensure_ascii=False, indent=1))


def save_and_print(result: Result, folder: Path | None, as_json: bool, **about: Any) -> None:
    """Save a result where there is a folder for it. Print it and what was written, or all as JSON beside `about`."""
    written = [] if folder is None else result.save(folder)
    if as_json:
        found = {"settings": result.settings, "rows": result.table.to_pylist()}
        print_json({**about, "results": folder and str(folder), **found})
    else:
        say(result)
        if written:
            say(f"\n{folder}: {', '.join(path.name for path in written)}")


@contextmanager
def resume_hint() -> Iterator[None]:
    """On an interrupt, say what it cost: nothing that is committed."""
    try:
        yield
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt("what is committed is safe, the same command goes on from there") from e


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Keep from standard output what Ray prints there of lost workers; those that matter the reporter tells."""
    with redirect_stdout(io.StringIO()):
        yield


def print_failures(failures: Mapping[str, str], rest: str) -> None:
    """The first recordings that failed and why, on standard error; `rest` says where the others are."""
    if not failures:
        return
    say(f"failed recordings: {len(failures)}", err=True)
    for name, reason in list(failures.items())[:FAILURES_SHOWN]:
        say(f"  {name}: {reason}", err=True)
    if len(failures) > FAILURES_SHOWN:
        say(f"  … and {len(failures) - FAILURES_SHOWN} more, {rest}", err=True)


def print_left_out(store: EmbeddingStore) -> None:
    """How many utterances of a store are pending or failed, and so take no part; on standard error."""
    for status, number in Counter(store.utterances["status"].to_pylist()).items():
        if status != "done":
            say(f"{store.files.root}: {number} utterances are {status} and take no part", err=True)


LOG_SECONDS = 60.0  # between two lines of a log


class TerminalReporter(Reporter):
    """Tells on standard error: steps as lines of their own, progress as one line rewritten in place, then cleared.

    Where that is no terminal progress is a line a minute, and there are warnings; `always`: steps are printed there
    too. The environment variable VOXSTRATA_PROGRESS, which `--progress` sets, asks for another of PROGRESS_KINDS.
    Used as a context, so that the last line does not stay behind.
    """

    def __init__(self, always: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        asked = os.environ.get(PROGRESS, "auto")
        terminal = self._stream.isatty()  # whether somebody looks on
        self._live = asked == "bar" or (asked == "auto" and terminal)
        self._log = asked == "log" or (asked == "auto" and not terminal)
        self._always = always or asked == "log"
        self._begin = time.monotonic()
        self._shown = 0.0
        self._first: tuple[float, Progress] | None = None  # of the stage: when, and how far it was

    def step(self, text: str) -> None:
        self._first = None
        if self._always or self._live:
            self._print(f"{clock(time.monotonic() - self._begin)}  {text}")

    def warn(self, text: str) -> None:
        self._print(text)

    def progress(self, progress: Progress) -> None:
        """Shown five times a second at the most, in a log once a minute.

        Rates and the time that is left count from a stage's first report: what was done before that (by an earlier
        run, say) took none of this time.
        """
        now = time.monotonic()
        if self._first is None or self._first[1].stage != progress.stage:
            self._first, self._shown = (now, progress), 0.0 if self._live else now
        begin, first = self._first
        if self._live and now - self._shown >= 0.2:
            self._shown = now
            line = spelt_out(_progress_text(progress, first, now - begin))
            columns = shutil.get_terminal_size().columns - 1  # a longer line would stay behind when it is rewritten
            self._stream.write(f"\r\x1b[2K{line[:columns]}")
            self._stream.flush()
        elif self._log and now - self._shown >= LOG_SECONDS:
            self._shown = now
            self._print(f"{clock(now - self._begin)}  {_progress_text(progress, first, now - begin)}")

    def clear(self) -> None:
        """Clear the line of progress."""
        if self._live:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def _print(self, text: str) -> None:
        self.clear()
        self._stream.write(f"{spelt_out(text)}\n")
        self._stream.flush()

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


def _progress_text(p: Progress, first: Progress, seconds: float) -> str:
    """What is done, the rate, and the time that is left, `seconds` after the stage's `first` report."""
    text = f"{p.stage} {p.done}/{p.total}{p.unit and ' '}{p.unit}"
    if p.work is not None:
        text += f" ({p.share:.0%})"
    if p.share > first.share and seconds > 0:
        if p.rated is not None:
            text += f"  {(p.rated - (first.rated or 0.0)) / seconds:.0f} {p.rate_unit}"
        text += f"  ETA {clock((1 - p.share) / (p.share - first.share) * seconds)}"
    return text + (f"  failed {p.failed}" if p.failed else "")
