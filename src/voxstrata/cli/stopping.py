"""How the program `voxstrata` ends when it is told to: a line, and the exit code that shells expect.

Imports little, so that signals are answered from the first milliseconds on.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself imports enum: nobody would answer so long
import os
import sys

TYPE_CHECKING = False  # `typing` takes a tenth of a second, in which nobody would answer
if TYPE_CHECKING:
    from typing import Any, NoReturn

INTERRUPTED = 130  # 128 + SIGINT
_RETRY_SECONDS = 0.1

_received = 0  # the last signal that told the program to stop


def stopped_code() -> int:
    """The exit code of a signal that was received, 0 if there was none."""
    return 128 + _received if _received else 0


def stoppable(run: Any) -> NoReturn:
    """Call `run`, which takes nothing, and exit. SIGINT and SIGTERM raise KeyboardInterrupt, whatever is going on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _stop)
    sys.unraisablehook = _unraisable
    code: Any = 0
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by who started this
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        run()
    except SystemExit as e:
        code = e.code
    except BaseException:
        if not _received:
            raise
        print("interrupted", file=sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # what comes now ends the process as it is, without a traceback
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            quiet_stdout()
            code = code or 1
    if _received:  # what had to be cleaned up has been; modules that were half imported may crash at the end of Python
        if sys.stderr is not None:
            sys.stderr.flush()
        os._exit(stopped_code())
    sys.exit(code)


def quiet_stdout() -> None:
    """Standard output goes nowhere from here on: nobody reads it, and Python would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _stop(number: int, frame: Any) -> None:
    global _received
    _received = number
    raise KeyboardInterrupt


def _unraisable(what: Any) -> None:
    """An interrupt in a destructor or callback, from where nothing can be raised, comes again a little later."""
    if not isinstance(what.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(what)
        return
    import threading

    timer = threading.Timer(_RETRY_SECONDS, os.kill, (os.getpid(), _received or signal.SIGINT))
    timer.daemon = True
    timer.start()
