"""What commands print: progress on a terminal, tables, JSON."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.base.showing import TerminalReporter as TerminalReporter
from voxstrata.base.tables import aligned as aligned
from voxstrata.base.tables import clock as clock
from voxstrata.cli.saying import say, say_json, say_wrapped

if TYPE_CHECKING:
    from voxstrata.base.result import Result
    from voxstrata.store import EmbeddingStore

PARTIAL = 4  # exit code: done, but some recordings failed

FAILURES_SHOWN = 10  # the rest is in the store


def print_json(result: Any) -> None:
    """One JSON object, non-ASCII kept."""
    say_json(json.dumps(result, ensure_ascii=False, indent=1))


def save_and_print(
    result: Result, folder: Path | None, as_json: bool, reporter: Reporter = SILENT, **about: Any
) -> None:
    """Save a result where there is a folder for it. Print it and what was written, or all as JSON beside `about`."""
    written = []
    if folder is not None:
        reporter.step(f"writing tables and pictures to {folder}")
        written = result.save(folder)
    if as_json:
        found = {"settings": result.settings, "rows": result.table.to_pylist()}
        print_json({**about, "out": folder and str(folder), **found})
    else:
        say(result)
        if written:
            say_written(folder, [path.name for path in written])


def say_written(folder: Path | None, names: Iterable[str]) -> None:
    """Which files a command left in a folder."""
    say_wrapped(f"\n{folder}: {', '.join(names)}")


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
        say_wrapped(f"  {name}: {reason}", err=True, indent="    ")
    if len(failures) > FAILURES_SHOWN:
        say(f"  … and {len(failures) - FAILURES_SHOWN} more, {rest}", err=True)


def print_left_out(store: EmbeddingStore) -> None:
    """How many utterances of a store are pending or failed, and so take no part; on standard error."""
    for status, number in Counter(store.utterances["status"].to_pylist()).items():
        if status != "done":
            are = "is" if number == 1 else "are"
            takes = "takes" if number == 1 else "take"
            what = f"{counted(number, 'utterance')} {are} {status} and {takes} no part"
            say_wrapped(f"{store.files.root}: {what}", err=True)
