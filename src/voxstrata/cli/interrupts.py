"""What an interrupted command says: what is kept, as it lies there now, and what to type to go on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from voxstrata.base.errors import VoxstrataError
from voxstrata.base.plain import counted
from voxstrata.base.remote import is_url
from voxstrata.base.showing import TerminalReporter

_UNKNOWN = "the same command goes on from what is kept"


@contextmanager
def resume_hint(kept: Callable[[], str]) -> Iterator[None]:
    """On an interrupt, say what it has kept. kept: looks, and says it in a sentence."""
    try:
        yield
    except KeyboardInterrupt as e:
        try:
            hint = kept()
        except (VoxstrataError, OSError):  # a server that does not answer, a disk that is gone
            hint = _UNKNOWN
        raise KeyboardInterrupt(hint) from e


def units_kept(store: str | Path) -> Callable[[], str]:
    """Of a store that `extract`, `spans` or `words` was making."""

    def kept() -> str:
        from voxstrata.store import EmbeddingStore
        from voxstrata.store.files import Files
        from voxstrata.store.writer import PLAN

        if not Files(store).exists(PLAN):
            return _said(0, 0, "unit")
        opened = EmbeddingStore(store)
        units = len(opened.unit_bounds)
        return _said(units - len(opened.pending_units), units, "unit")

    return kept


def appended_kept(store: str | Path) -> Callable[[], str]:
    """Of the units that `append` was adding to a store."""
    from voxstrata.store.appender import pending_append
    from voxstrata.store.files import Files, root_attributes
    from voxstrata.store.markers import marked_units
    from voxstrata.store.reader import EmbeddingStore

    def appends() -> int:
        about = root_attributes(Files(store)).get("voxstrata")
        return len(about.get("appended", [])) if isinstance(about, dict) else 0

    before = appends()

    def kept() -> str:
        if appends() > before:
            return "all is added already; the same command finds nothing new"
        opened = EmbeddingStore(store)
        pending = pending_append(opened)
        if pending is None:
            return _said(0, 0, "unit")
        done = sum(unit >= pending["first_unit"] for unit in marked_units(opened.files))
        return _said(done, len(pending["unit_begin"]) - 1, "unit")

    return kept


def rows_kept(folders: Collection[str | Path], overwrite: bool = False) -> Callable[[], str]:
    """Of the tile rows that `similarity` was comparing, an output in each folder.

    Without figure where the folders are URLs, since each row would be asked for, and with `overwrite`, since the rows
    that lie there may still be the earlier ones.
    """

    def kept() -> str:
        from voxstrata.retrieval.finished import rows_done

        if overwrite or any(map(is_url, folders)):
            return _UNKNOWN
        found = [rows_done(folder) for folder in folders]
        rows = max(of for _, of in found)  # the same in each folder, whether it was begun or not
        return _said(sum(done for done, _ in found), rows * len(found), "tile row")

    return kept


def transcripts_kept(reporter: TerminalReporter) -> Callable[[], str]:
    """Of the transcripts that `early-exit sweep` was writing, each written before it is told of."""

    def kept() -> str:
        last = reporter.last
        if last is None or last.unit != "transcripts":
            return "nothing new is transcribed yet; the same command begins again"
        return _said(last.done, last.total, "transcript")

    return kept


def _said(done: int, of: int, one: str) -> str:
    if not of:
        return "nothing was written yet; the same command begins again"
    if not done:
        return f"no {one} is done yet; the same command begins with the first"
    are = "is" if done == 1 else "are"
    return f"{done} of {counted(of, one)} {are} kept; the same command goes on from there"
