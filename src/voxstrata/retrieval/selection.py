"""Some utterances of a store: what a side of a comparison is, read block by block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voxstrata.base.choices import chosen
from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.plain import counted
from voxstrata.base.progress import Progress, Reporter
from voxstrata.retrieval.kernels.base import runs
from voxstrata.retrieval.ragged import Ragged
from voxstrata.store import EmbeddingStore
from voxstrata.store.several import AnyStore, comparable, open_store, refuse_different
from voxstrata.store.writer import DONE


@dataclass(frozen=True, eq=False)
class Selection:
    """Some utterances of a store.

    indices: int64 (n,), ascending unless another order was asked for: rows and columns of results follow the store's
    order, whose neighbours on disk are read in one piece. language: of all of them, where they were chosen by one; else
    empty.
    """

    store: EmbeddingStore
    indices: NDArray[np.int64]
    language: str = ""

    def __repr__(self) -> str:
        whose = f" of {self.language}" if self.language else ""
        return f"<Selection of {self.store.name}: {counted(len(self), 'utterance')}{whose}>"

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def ids(self) -> list[str]:
        ids: list[str] = self.store.table(["id"])["id"].take(pa.array(self.indices)).to_pylist()
        return ids

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each utterance, int64 (n,)."""
        return self.store.length[self.indices].astype(np.int64)

    @cached_property
    def groups(self) -> NDArray[Any]:
        """What each utterance translates, (n,) of strings; of objects where the store does not say: None for those."""
        groups: list[str | None] = self.store.table(["group"])["group"].take(pa.array(self.indices)).to_pylist()
        return np.array(groups, object if None in groups else np.str_)

    def part(self, positions: NDArray[np.int64]) -> Selection:
        """The utterances at some positions, in that order."""
        return Selection(self.store, self.indices[positions], self.language)

    def ragged(self, output: str, begin: int, end: int) -> Ragged:
        """Frames of the utterances at positions begin … end - 1, as stored; a pooled state is the only one."""
        indices = self.indices[begin:end]
        if self.store.has_frames:
            rows, offsets = self.store.ragged(output, indices)
        else:
            rows, offsets = self.store.pooled(output, indices), np.arange(len(indices) + 1, dtype=np.int64)
        return Ragged(rows, offsets, self.ids[begin:end], f"{self.store.files.root}, output {output}: ")

    def frames(self, output: str | int) -> SelectedFrames:
        """Their frames of one encoder output, as `compare` takes them."""
        return SelectedFrames(self, self.store.output(output))

    def blocks(self, frames: int, utterances: int, multiple: int = 1) -> list[int]:
        """Bounds of blocks of at most `frames` frames and `utterances` utterances, from 0 to n.

        Blocks begin at multiples of `multiple`; so many neighbours stay together, however long they are.
        """
        total = np.concatenate([[0], np.cumsum(self.lengths)])
        bounds, previous = [0], 0
        for end in [*range(multiple, len(self), multiple), len(self)]:
            begin = bounds[-1]
            if previous > begin and (total[end] - total[begin] > frames or end - begin > utterances):
                bounds.append(previous)
            previous = end
        return [*bounds, len(self)]

    def identity(self) -> dict[str, Any]:
        """What decides the frames read from here, JSON-ready; where the store lies plays no part."""
        ids = hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()
        return {"utterances": len(self), "ids": ids, "store": self._origin(), **comparable(self.store)}

    def _origin(self) -> str | list[str]:
        """The plans by which these utterances were stored; of several stores or appends those that they are from."""
        begins, plans = [], []
        for store, first in self.store.parts:
            for part in ({"plan": store.about["plan"], "first_utterance": 0}, *store.about.get("appended", [])):
                begins.append(first + part["first_utterance"])
                plans.append(part["plan"])
        found = np.unique(np.searchsorted(begins, self.indices, "right") - 1)
        return plans[found[0]] if len(found) == 1 else [plans[i] for i in found]


@dataclass(frozen=True, eq=False)
class SelectedFrames:
    """The frames of a selection in one encoder output, read block by block: a side of `compare` (`Utterances`)."""

    selection: Selection
    output: str

    def __repr__(self) -> str:
        return f"<frames of {self.output}, {self.selection}>"

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.selection.lengths

    def ragged(self, begin: int, end: int) -> Ragged:
        return self.selection.ragged(self.output, begin, end)


def select(
    store: AnyStore, languages: str | Sequence[str] | None = None, ids: Sequence[str] | None = None
) -> Selection:
    """The utterances of a store that are done, of some languages, or those with certain ids.

    store: its path, or opened.

    Raises UsageError for an unknown language or id and for an utterance asked for that is not done, InputError when
    nothing is left.
    """
    store = open_store(store)
    usable = store.status == DONE
    if ids is not None:
        wanted = np.unique(store.indices(ids))
        missing = wanted[~usable[wanted]]
        if len(missing):
            first = store.table(["id"])["id"][int(missing[0])].as_py()
            raise UsageError(
                f"{store.files.root}: {len(missing)} of the utterances asked for are not done, e.g. "
                f"{first!r}; leave them out or finish the extraction"
            )
        usable &= np.isin(np.arange(len(store)), wanted)
    one = ""
    if languages is not None:
        column = store.table(["language"])["language"]
        known = sorted(name for name in pc.unique(column).to_pylist() if name is not None)
        try:
            languages = chosen("language", languages, known)
        except UsageError as e:
            raise UsageError(f"{store.files.root}: {e}") from e
        usable &= np.asarray(pc.fill_null(pc.is_in(column, pa.array(languages)), False))
        one = languages[0] if len(languages) == 1 else ""
    if not usable.any():
        raise InputError(
            f"{store.files.root}: nothing to compare: of its utterances ({len(store)}) none is both done and asked for"
            f"{' (' + ', '.join(languages) + ')' if languages else ''}; finish the extraction or choose others"
        )
    return Selection(store, np.flatnonzero(usable).astype(np.int64), one)


def selection_of(side: Selection | AnyStore) -> Selection:
    """A side of a comparison: a selection as it is, of a store (or its path) all utterances that are done.

    Raises what `select` does.
    """
    return side if isinstance(side, Selection) else select(side)


def refuse_incomparable(x: Selection, y: Selection | None, output: str) -> None:
    """Raise InputError or UsageError where the states of `output` cannot be compared, before any is read.

    y: None when x is compared with itself.
    """
    for side in (x,) if y is None else (x, y):
        where = side.store.files.root
        side.store.output(output)
        if not len(side):
            raise InputError(f"{where}: an empty set; choose at least one utterance")
    if y is None:
        return
    refuse_different(x.store, y.store)
    shared = _shared(x, y)
    if shared:
        raise UsageError(
            f"the two sets share {counted(len(shared), 'utterance')}, e.g. {shared[0]!r}: choose disjoint sets, or "
            "leave out the second to compare a set with itself"
        )


def _shared(x: Selection, y: Selection) -> list[str]:
    """Ids of the utterances that are in both, of stores that are the same place."""
    shared = []
    for there, first in x.store.parts:
        for here, begin in y.store.parts:
            if _place(there) == _place(here):
                own = np.intersect1d(x.indices - first, y.indices - begin)
                shared += [there.ids[i] for i in own.tolist() if 0 <= i < len(there)]
    return shared


def _place(store: EmbeddingStore) -> str:
    """Where a store lies; of a local one the same however its path was written."""
    return store.files.root if store.files.local is None else str(store.files.local.resolve())


def refuse_bad_frames(sides: Sequence[Selection], outputs: Sequence[str], frames: int, reporter: Reporter) -> None:
    """Raise InputError for frames without direction now: their turn may come after hours of comparing.

    frames: how many are read at once.
    """
    total = len(outputs) * len(sides)
    for n, (output, side) in enumerate(product(outputs, sides), start=1):
        for begin, end in runs(side.lengths, frames):
            side.ragged(output, begin, end).check()
        reporter.progress(Progress("checking frames", n, total, "sides × outputs"))
