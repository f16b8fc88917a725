"""The table of a store's utterances, read column by column, and where in it an id stands."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from voxstrata.base.columns import encoded, places_of, scattered
from voxstrata.store.labels import read_utterances
from voxstrata.store.plan import PLACED
from voxstrata.store.soundness import refuse_other_table
from voxstrata.store.writer import PENDING, stored_table

# Ids are looked up by reading through them, a hundredth of a microsecond each, until that takes longer than an index of
# about 100 bytes an utterance.
_INDEXED, _LOOKED_UP = 1 << 16, 100
_COMPARED = 20_000  # ids whose spelling is compared with one that is not there


class StoredUtterances:
    """`utterances.parquet` of a store, with what has become of the utterances by now. store: an EmbeddingStore."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._known: dict[str, pa.ChunkedArray] = {}

    def whole(self) -> pa.Table:
        """All columns."""
        store = self._store
        return stored_table(self._read(None), store.start, store.length, store.status)

    def some(self, columns: Sequence[str]) -> pa.Table:
        """Some columns; the others are not decoded, and none is twice."""
        if missing := [name for name in columns if name not in self._known]:
            stored, store = self._read([name for name in missing if name not in PLACED]), self._store
            if any(name in PLACED for name in missing):
                stored = stored_table(stored, store.start, store.length, store.status)
            self._known |= {name: stored[name] for name in missing}
        return pa.table({name: self._known[name] for name in columns})

    def codes(self, column: str) -> tuple[NDArray[np.int64], pa.Array]:
        """A column of strings that repeat, as `encoded` gives it, without any of them twice."""
        known = self._known.get(column)
        return encoded(self._read([column], [column])[column].unify_dictionaries() if known is None else known)

    def _read(self, columns: Sequence[str] | None, dictionaries: Sequence[str] = ()) -> pa.Table:
        store = self._store
        # an append that was cut short may have left rows there that are not in the arrays yet
        table = read_utterances(store.files, columns, pages=bool(self._known), dictionaries=dictionaries)
        table = table.replace_schema_metadata(None).slice(0, len(store))
        refuse_other_table(store.files, table, store.start, store.length, store.stored_status)
        if "failure" in table.column_names and (store.stored_status == PENDING).any() and store.marked_failures:
            news = pc.coalesce(scattered(store.marked_failures, len(store)), table["failure"])
            table = table.set_column(table.schema.get_field_index("failure"), "failure", news)
        return table


class IdPlaces:
    """Where each of some ids stands. ids: gives all of them when they are needed."""

    def __init__(self, ids: Callable[[], pa.ChunkedArray]) -> None:
        self._ids, self._index, self._looked_up = ids, dict[str, int](), 0

    def of(self, names: Sequence[str]) -> dict[str, int]:
        """The indices of those that are there."""
        if not self._index and names:
            ids, self._looked_up = self._ids(), self._looked_up + 1
            if len(ids) > _INDEXED and self._looked_up <= _LOOKED_UP:
                return places_of(ids, names)
            self._index = dict(zip(ids.to_pylist(), range(len(ids)), strict=True))
        return {name: self._index[name] for name in names if name in self._index}


def ids_like(ids: pa.ChunkedArray, name: str) -> list[str]:
    """For an error: ids that are spelt like one that is not there, else the first. Of many, the first of its length."""
    length = pc.subtract(pc.utf8_length(ids), len(name))
    near = ids.filter(pc.less_equal(pc.abs(length), 2)).slice(0, _COMPARED).to_pylist()
    return get_close_matches(name, near) or ids.slice(0, 1).to_pylist()
