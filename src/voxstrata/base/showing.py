"""Who shows people what a long piece of work is doing: on a terminal, in a log, in a notebook."""

from __future__ import annotations

import os
import shutil
import sys
import time
from html import escape
from typing import Any, TextIO

from voxstrata.base.plain import rate_text, spelt_out, wrapped
from voxstrata.base.progress import PROGRESS, Progress, Reporter
from voxstrata.base.tables import clock

LOG_SECONDS = 60.0  # between two lines of a log
QUIET_SECONDS = 2.0  # after which a log says something: what is done by then needs no log
LIVE_SECONDS = 0.2  # between two looks of a line or a bar that is rewritten


class _Stages(Reporter):
    """Knows when each stage began, and how far it was then.

    Rates and the time that is left count from a stage's first report: what was done before that (by an earlier run,
    say) took none of this time.
    """

    def __init__(self) -> None:
        self.last: Progress | None = None  # that was told of
        self._begin = time.monotonic()
        self._shown: float | None = None  # when progress of this stage was last shown
        self._first: tuple[float, Progress] | None = None  # of the stage: when, and how far it was

    def _text(self, progress: Progress, now: float) -> str:
        self.last = progress
        if self._first is None or self._first[1].stage != progress.stage:
            self._first, self._shown = (now, progress), None
        begin, first = self._first
        return _progress_text(progress, first, now - begin)

    def _due(self, now: float, seconds: float) -> bool:
        """Whether this stage's progress was not shown for so long; if so it is now."""
        if self._shown is not None and now - self._shown < seconds:
            return False
        self._shown = now
        return True

    def _since(self) -> str:
        return clock(time.monotonic() - self._begin)


class TerminalReporter(_Stages):
    """Tells on standard error: steps as lines of their own, progress as one line rewritten in place, then cleared.

    Where that is no terminal there are warnings, and for work that takes longer than QUIET_SECONDS its steps, a line
    when a stage begins and one a minute; `always`: all steps are printed there. The environment variable
    VOXSTRATA_PROGRESS, which `--progress` sets, asks for another of PROGRESS_KINDS.
    Used as a context, so that the last line does not stay behind.
    """

    def __init__(self, always: bool = False, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        asked = os.environ.get(PROGRESS, "auto")
        self._terminal = terminal = self._stream.isatty()  # whether somebody looks on
        self._live = asked == "bar" or (asked == "auto" and terminal)
        self._log = asked == "log" or (asked == "auto" and not terminal)
        self._quiet = 0.0 if asked == "log" else QUIET_SECONDS  # seconds in which a log says nothing
        self._always = asked == "log" or (always and asked != "none")

    def step(self, text: str) -> None:
        self._first = None
        if self._always or self._live or (self._log and time.monotonic() - self._begin >= self._quiet):
            self._print(self._fitted(f"{self._since()}  {text}"))

    def warn(self, text: str) -> None:
        self._print(self._fitted(text))

    def progress(self, progress: Progress) -> None:
        """Shown five times a second at the most, in a log once a minute."""
        now = time.monotonic()
        text = self._text(progress, now)
        if self._live and self._due(now, LIVE_SECONDS):
            columns = shutil.get_terminal_size().columns - 1  # a longer line would stay behind when it is rewritten
            self._stream.write(f"\r\x1b[2K{spelt_out(text)[:columns]}")
            self._stream.flush()
        elif self._log and now - self._begin >= self._quiet and self._due(now, LOG_SECONDS):
            self._print(f"{self._since()}  {text}")

    def clear(self) -> None:
        """Clear the line of progress."""
        if self._live:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def _fitted(self, text: str) -> str:
        """In lines of the terminal's width; lines of a log stay whole."""
        return text if self._log or not self._terminal else wrapped(text, shutil.get_terminal_size().columns)

    def _print(self, text: str) -> None:
        self.clear()
        self._stream.write(f"{spelt_out(text)}\n")
        self._stream.flush()

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


class NotebookReporter(_Stages):
    """Tells in the output of a Jupyter cell: steps and warnings as lines, and under them a bar."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._handle: Any = None

    def step(self, text: str) -> None:
        self._first = None
        self._lines.append(f"{self._since()}  {text}")
        self._show()

    def warn(self, text: str) -> None:
        self._lines.append(text)
        self._show()

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        text = self._text(progress, now)
        if self._due(now, LIVE_SECONDS) or progress.share >= 1:
            label = escape(spelt_out(text))
            self._show(f'<progress max="1" value="{progress.share:.4f}" aria-label="{label}"></progress> {label}')

    def _show(self, bar: str = "") -> None:
        from IPython.display import HTML, display

        shown: Any = HTML("<br>".join([*(escape(spelt_out(line)) for line in self._lines), bar]))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


def progress_bar() -> Reporter:
    """A Reporter that shows what it is told: in a notebook as a bar, elsewhere as the command line does."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return NotebookReporter() if hasattr(shell, "kernel") else TerminalReporter()


def _progress_text(p: Progress, first: Progress, seconds: float) -> str:
    """What is done, the rate, and the time that is left, `seconds` after the stage's `first` report."""
    text = f"{p.stage} {p.done:,}/{p.total:,}{p.unit and ' '}{p.unit}"
    if p.work is not None:
        text += f" ({100 * p.share:.0f} %)"
    if p.share > first.share and seconds > 0:
        if p.rated is not None:
            text += f"  {rate_text((p.rated - (first.rated or 0.0)) / seconds)} {p.rate_unit}"
        text += f"  ETA {clock((1 - p.share) / (p.share - first.share) * seconds)}"
    return text + (f"  failed {p.failed}" if p.failed else "")
