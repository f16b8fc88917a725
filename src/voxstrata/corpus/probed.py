"""What the headers of a corpus say, in columns: a row a recording, as large corpora need it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from voxstrata.audio.info import AudioInfo, Stated
from voxstrata.base.columns import nulls, scattered, take_rows

# The fields of AudioInfo, null where a recording fails; `failure` is why. Where a manifest states the lengths, all but
# `samples` and `is_segment` are null.
PROBED_SCHEMA = pa.schema(
    [
        ("samples", pa.int64()),
        ("source_rate", pa.int32()),
        ("source_frames", pa.int64()),
        ("channels", pa.int32()),
        ("size_bytes", pa.int64()),
        ("first_frame", pa.int64()),
        ("is_segment", pa.bool_()),
        ("failure", pa.string()),
    ]
)
_INFO = PROBED_SCHEMA.names[:-1]


@dataclass(frozen=True)
class Probed:
    """What `probe_corpus` found. table: columns of PROBED_SCHEMA, a row a recording, in the order of its corpus."""

    table: pa.Table

    @classmethod
    def of(cls, infos: Sequence[AudioInfo | None], failures: Mapping[int, str]) -> "Probed":
        """Of what is known of every recording, None where it fails, and the reasons by row."""
        columns = {name: [None if i is None else getattr(i, name) for i in infos] for name in _INFO}
        return cls.of_columns(columns, failures)

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any], failures: Mapping[int, str]) -> "Probed":
        """Of the fields of AudioInfo, a value a recording, null where it fails or is not known; reasons by row."""
        count = len(columns["samples"])
        arrays = {f.name: pa.array(columns[f.name], f.type) for f in PROBED_SCHEMA if f.name in columns}
        arrays = {f.name: arrays.get(f.name, nulls(count, f.type)) for f in PROBED_SCHEMA}
        return cls(pa.table({**arrays, "failure": scattered(failures, count)}, PROBED_SCHEMA))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """Samples at 16 kHz, int64 (recordings,), 0 where a recording fails."""
        samples = self.table["samples"]
        return np.asarray((samples.fill_null(0) if samples.null_count else samples).to_numpy())

    def info(self, row: int) -> AudioInfo | Stated | None:
        """What is known of one recording, None where it fails."""
        return _info(self.table[name][row].as_py() for name in _INFO)

    def infos(self) -> list[AudioInfo | Stated | None]:
        """`info` of every recording."""
        return list(map(_info, zip(*(self.table[name].to_pylist() for name in _INFO), strict=True)))

    @cached_property
    def failures(self) -> dict[int, str]:
        """Why recordings fail, by row."""
        failed = np.flatnonzero(self.table["failure"].is_valid().to_numpy())
        return dict(zip(failed.tolist(), self.table["failure"].take(pa.array(failed)).to_pylist(), strict=True))

    def take(self, rows: Sequence[int] | NDArray[np.integer]) -> "Probed":
        """Of the recordings in some rows, in that order."""
        return Probed(take_rows(self.table, rows))


def _info(values: Iterable[Any]) -> AudioInfo | Stated | None:
    samples, *others = values
    if samples is None:
        return None
    return Stated(samples) if others[0] is None else AudioInfo(samples, *others)
