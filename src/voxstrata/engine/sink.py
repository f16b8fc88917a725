"""From stored rows to committed units: place, write. Runs on a thread of its own."""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.base.spool import Spool
from voxstrata.engine.reductions import StoredRows, all_finite
from voxstrata.store.plan import Window
from voxstrata.store.spec import StoreSpec
from voxstrata.store.writer import StoreWriter

_SPOOLED_BYTES = 192 << 20  # of a unit of one recording that is longer than units are filled to


class UnitSink:
    """Collects the rows of one unit at a time and commits it."""

    def __init__(self, writer: StoreWriter, allow_overflow: bool) -> None:
        self.writer, self.plan = writer, writer.plan
        self.seconds: dict[str, float] = defaultdict(float)  # by stage: place, write
        self._overflows = 0  # of this unit
        self._allow_overflow = allow_overflow
        # Made with a unit's first rows: a header that claims hours is found out before there are any.
        self._blocks: dict[str, NDArray[Any] | Spool] = {}
        self._memory: dict[str, NDArray[Any]] = {}  # of the blocks, kept from unit to unit: fresh pages take time

    def put(self, unit: int, windows: Sequence[Window], stored: StoredRows) -> None:
        """Place the rows of a batch.

        Raises InputError naming utterance and output when a value is not a number, or overflows float16.
        """
        begin = time.perf_counter()
        if not self._blocks:
            make = self._spool if self._is_long(unit) else self._zeros
            self._blocks = {o: make(o, self.plan.rows_used(unit)) for o in self.plan.spec.outputs}
        for output, batch, finite in zip(self.plan.spec.outputs, stored.rows, stored.finite, strict=True):
            for window, rows in zip(windows, batch, strict=True):
                target = self._place(self._blocks[output], unit, window, rows)
                if not finite and not all_finite(target):
                    self._not_finite(output, window.utterance, target)
        self.seconds["place"] += time.perf_counter() - begin

    def _is_long(self, unit: int) -> bool:
        """Whether a unit is one recording that is too long for its rows to be held in memory."""
        row_bytes = self.writer.card.d_model * self.plan.spec.stored_dtype.itemsize * len(self.plan.spec.outputs)
        return len(self.plan.members(unit)) == 1 and self.plan.rows_used(unit) * row_bytes > _SPOOLED_BYTES

    def _spool(self, output: str, rows: int) -> Spool:
        return Spool(rows, (self.writer.card.d_model,), self.plan.spec.stored_dtype)

    def _zeros(self, output: str, rows: int) -> NDArray[Any]:
        memory = self._memory.get(output)
        if memory is None or len(memory) < rows:
            self._memory[output] = np.zeros((rows, self.writer.card.d_model), self.plan.spec.stored_dtype)
            return self._memory[output]
        memory[:rows] = 0
        return memory[:rows]

    def _place(self, block: NDArray[Any] | Spool, unit: int, window: Window, rows: NDArray[Any]) -> NDArray[Any]:
        """Put a window's rows where they belong in a unit's block; returns what stands there then."""
        plan, u = self.plan, window.utterance
        if isinstance(block, Spool):  # of frames, since a mean is short
            with np.errstate(over="ignore"):  # as of an assignment; it is looked at after
                rows = rows.astype(plan.spec.stored_dtype, copy=False)
            block.put(window.frame // plan.spec.every, rows)
            return rows
        first = int(plan.start[u]) - unit * plan.unit_rows
        return place_rows(block[first : first + int(plan.length[u])], window, rows, int(plan.frames[u]), plan.spec)

    def _not_finite(self, output: str, utterance: int, target: NDArray[Any]) -> None:
        name = self.plan.utterances["id"][utterance].as_py()
        self._overflows += overflows_of(name, output, target, self.plan.spec, self._allow_overflow)

    def commit(self, unit: int, failures: dict[int, str]) -> None:
        """Write the unit and make room for the next."""
        begin = time.perf_counter()
        self.writer.commit(unit, self._blocks, failures, self._overflows)
        self._overflows, self._blocks = 0, {}
        self.seconds["write"] += time.perf_counter() - begin

    def discard(self) -> None:
        """Forget the rows of a unit that was given up."""
        self._overflows, self._blocks = 0, {}


def place_rows(own: NDArray[Any], window: Window, rows: NDArray[Any], frames: int, spec: StoreSpec) -> NDArray[Any]:
    """Put a window's rows into its utterance's `own` (length, d), which begin as zeros; returns their place.

    frames: valid frames of the whole utterance, by which `pool` divides.
    """
    if spec.pool:
        target: NDArray[Any] = own[0]
        target += (rows[0] / frames).astype(np.float32)
    else:
        first = window.frame // spec.every
        target = own[first : first + len(rows)]
        target[:] = rows
    return target


def overflows_of(name: str, output: str, rows: NDArray[Any], spec: StoreSpec, allow: bool) -> int:
    """How many values of rows that are not finite are beyond float16. Raises InputError for these unless allowed, and
    for others."""
    inside = spec.arithmetic == "float16"
    if inside or rows.dtype != np.float16 or np.isnan(rows).any():
        mend = "leave this recording out, or check the checkpoint"
        if inside:
            mend = (
                "float16 arithmetic may overflow inside: use --device cuda:bfloat16, or a model exported as float32 on "
                "cpu or cuda"
            )
        raise InputError(f"{name}: the encoder's {output} holds values that are not finite; {mend}")
    if not allow:
        raise InputError(
            f"{name}: {output} reaches beyond float16 (65504); "
            "use --dtype float32, or --allow-overflow to store infinities"
        )
    return int(np.isinf(rows).sum())
