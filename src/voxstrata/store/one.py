"""One utterance of a store, as `store[0]`, `store[-1]`, `store["en-7"]` and `for utterance in store` give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class StoreOfUtterances(Protocol):
    """What an utterance asks its store: `EmbeddingStore` has it, which makes utterances and so cannot be named here."""

    @property
    def utterances(self) -> pa.Table: ...
    def frames(self, utterance: str | int, output: str | int) -> NDArray[Any]: ...
    def pooled(self, output: str | int, indices: Sequence[int]) -> NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False, repr=False)
class StoredUtterance:
    """One utterance of a store. Its states are read when they are asked for.

    index: its place in the store.
    """

    store: StoreOfUtterances
    index: int

    @cached_property
    def row(self) -> dict[str, Any]:
        """What the store knows of it, by column of `EmbeddingStore.utterances`."""
        return dict(self.store.utterances.slice(self.index, 1).to_pylist()[0])

    @property
    def id(self) -> str:
        return str(self.row["id"])

    @property
    def language(self) -> str | None:
        return cast(str | None, self.row["language"])

    @property
    def group(self) -> str | None:
        """What it means: utterances of one group are translations of each other."""
        return cast(str | None, self.row["group"])

    @property
    def speaker(self) -> str | None:
        return cast(str | None, self.row["speaker"])

    @property
    def text(self) -> str | None:
        return cast(str | None, self.row["text"])

    @property
    def seconds(self) -> float | None:
        """Length of the recording; None where its header could not be read."""
        return cast(float | None, self.row["seconds"])

    @property
    def status(self) -> str:
        """ "done", "failed" or "pending"."""
        return str(self.row["status"])

    def frames(self, output: str | int) -> NDArray[Any]:
        """As `EmbeddingStore.frames`: (rows, d) in the stored dtype. Raises UsageError unless it is done."""
        return self.store.frames(self.index, output)

    def pooled(self, output: str | int) -> NDArray[np.float32]:
        """Mean over its rows, float32 (d,). Raises UsageError unless it is done."""
        return cast(NDArray[np.float32], self.store.pooled(output, [self.index])[0])

    def __repr__(self) -> str:
        known = [self.language, None if self.seconds is None else f"{self.seconds:.2f} s", self.status]
        return f"<utterance {self.id}: {', '.join(str(value) for value in known if value is not None)}>"
