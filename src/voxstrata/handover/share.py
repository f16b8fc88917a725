"""What one folder of a conversion holds: some utterances of a store, read in bounded runs."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.store.files import parquet_bytes
from voxstrata.store.reader import EmbeddingStore

ADDED = ("frame", "shard", "kaldi_id")  # columns that formats add
ABOUT_FILE, UTTERANCES_FILE = "voxstrata.json", "utterances.parquet"


@dataclass(frozen=True)
class StoredRun:
    """Neighbouring utterances of a share and their rows.

    positions: of the utterances in the share. rows: by output, (n, d). offsets: int64 (utterances + 1,), where the
    rows of each begin.
    """

    positions: range
    rows: dict[str, NDArray[Any]]
    offsets: NDArray[np.int64]

    def each(self, output: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """Position and rows (n, d) of one utterance after the other."""
        for k, position in enumerate(self.positions):
            yield position, self.rows[output][self.offsets[k] : self.offsets[k + 1]]


@dataclass(frozen=True)
class Share:
    """Utterances of a store, all done, that go into one folder.

    index: int64 (utterances,), ascending. pooled: one row an utterance, the mean over its frames, float32.
    about: model, settings and what was asked for, JSON-ready. tell: told how many utterances and rows are converted.
    """

    store: EmbeddingStore
    index: NDArray[np.int64]
    outputs: tuple[str, ...]
    pooled: bool
    about: dict[str, Any]
    tell: Callable[[int, int], None]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def d_model(self) -> int:
        return self.store.model.d_model

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows."""
        return np.dtype(np.float32) if self.pooled else self.store.spec.stored_dtype

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows of each utterance, int64 (utterances,)."""
        return np.ones(len(self), np.int64) if self.pooled else self.store.length[self.index].astype(np.int64)

    def utterances(self) -> pa.Table:
        """What is known of each, without what is the same for all; `row_start`, `row_count` in the share's own rows."""
        table = self.store.utterances.take(pa.array(self.index)).drop(["failure", "status", "row_start", "row_count"])
        taken = {*self.outputs, *ADDED}  # a column of the user's own of such a name makes room
        names: list[str] = []
        for name in table.column_names:
            kept = f"given_{name}" if name in taken else name
            while kept in names:
                kept += "_"
            names.append(kept)
        table = table.rename_columns(names)
        if self.pooled:
            return table
        start = np.cumsum(self.lengths) - self.lengths
        table = table.append_column("row_start", pa.array(start))
        return table.append_column("row_count", pa.array(self.lengths, pa.int32()))

    def runs(self, limit: int) -> Iterator[StoredRun]:
        """One run after the other, in the store's order, each of at most `limit` bytes over all outputs.

        A longer utterance is a run of its own.
        """
        row_bytes = self.d_model * self.dtype.itemsize * len(self.outputs)
        begin, rows_before = 0, 0
        ends = np.cumsum(self.lengths)
        while begin < len(self):
            end = max(begin + 1, int(np.searchsorted(ends, rows_before + limit // row_bytes, "right")))
            index = self.index[begin:end]
            read = {
                o: self.store.pooled(o, index) if self.pooled else self.store.ragged(o, index)[0] for o in self.outputs
            }
            yield StoredRun(range(begin, end), read, np.concatenate([[0], np.cumsum(self.lengths[begin:end])]))
            self.tell(end - begin, int(ends[end - 1]) - rows_before)
            begin, rows_before = end, int(ends[end - 1])

    def write_about(self, folder: Path) -> None:
        """Model and settings, beside what was made."""
        text = json.dumps(self.about, ensure_ascii=False, indent=1)
        (folder / ABOUT_FILE).write_text(text + "\n", encoding="utf-8")

    def write_utterances(self, folder: Path, table: pa.Table) -> None:
        """The table that says whose rows they are, with model and settings in its metadata."""
        (folder / UTTERANCES_FILE).write_bytes(parquet_bytes(table.replace_schema_metadata(self.metadata())))

    def metadata(self) -> dict[str, str]:
        """Model and settings for formats that keep texts by name."""
        return {"voxstrata": json.dumps(self.about, ensure_ascii=False)}
