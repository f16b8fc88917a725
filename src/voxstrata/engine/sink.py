"""From encoder states to committed units: reduce, cast, place, write. Runs on a thread of its own."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import InputError
from voxstrata.engine.reductions import Reduced
from voxstrata.store.plan import Plan, Window
from voxstrata.store.writer import StoreWriter

FLOAT16_INFINITY = 0x7C00  # the bits of infinity; those of NaN are above, those of numbers below


class UnitSink:
    """Collects the states of one unit at a time and commits it."""

    def __init__(self, writer: StoreWriter, d_model: int, allow_overflow: bool) -> None:
        self.plan: Plan = writer.plan
        self.seconds: dict[str, float] = defaultdict(float)  # by stage: reduce, write
        self._overflows = 0  # of this unit
        self._writer = writer
        self._allow_overflow = allow_overflow
        self._d_model = d_model
        # Made with a unit's first states: a header that claims hours is found out before there are any.
        self._blocks: dict[str, NDArray[Any]] = {}
        self._memory: dict[str, NDArray[Any]] = {}  # of the blocks, kept from unit to unit: fresh pages take time

    def put(self, unit: int, windows: Sequence[Window], states: Sequence[NDArray[Any]] | Reduced) -> None:
        """Take a batch: `states` holds for each output [batch, computed positions, d_model], or what a device left of
        it.

        Raises InputError naming utterance and output when a state is not a number, or overflows float16.
        """
        begin = time.perf_counter()
        if not self._blocks:
            self._blocks = {o: self._zeros(o, self.plan.rows_used(unit)) for o in self.plan.spec.outputs}
        if isinstance(states, Reduced):
            for output, rows, finite in zip(self.plan.spec.outputs, states.rows, states.finite, strict=True):
                for window, stored in zip(windows, rows, strict=True):
                    self._place_reduced(unit, output, window, stored, finite)
        else:
            for output, batch in zip(self.plan.spec.outputs, states, strict=True):
                for window, state in zip(windows, batch, strict=True):
                    self._place(unit, output, window, state[: window.frames])
        self.seconds["reduce"] += time.perf_counter() - begin

    def _zeros(self, output: str, rows: int) -> NDArray[Any]:
        memory = self._memory.get(output)
        if memory is None or len(memory) < rows:
            self._memory[output] = np.zeros((rows, self._d_model), self.plan.spec.stored_dtype)
            return self._memory[output]
        memory[:rows] = 0
        return memory[:rows]

    def _place(self, unit: int, output: str, window: Window, state: NDArray[Any]) -> None:
        plan, spec, u = self.plan, self.plan.spec, window.utterance
        block = self._blocks[output]
        base = unit * plan.unit_rows
        if spec.pool:
            share = state.sum(axis=0, dtype=np.float64) / plan.frames[u]
            target = block[int(plan.start[u]) - base]
            target += share.astype(np.float32)
        else:
            if spec.every > 1:
                groups = np.arange(0, len(state), spec.every)
                sizes = np.diff(np.append(groups, len(state)))
                state = np.add.reduceat(state.astype(np.float32), groups, axis=0) / sizes[:, None]
            first = int(plan.start[u]) - base + window.frame // spec.every
            target = block[first : first + len(state)]
            with np.errstate(over="ignore"):
                target[:] = state
        if not _finite(target):
            self._not_finite(output, u, target)

    def _place_reduced(self, unit: int, output: str, window: Window, stored: NDArray[Any], finite: bool) -> None:
        plan, spec, u = self.plan, self.plan.spec, window.utterance
        first = int(plan.start[u]) - unit * plan.unit_rows
        if spec.pool:
            target = self._blocks[output][first]
            target += stored[0] * np.float32(window.frames / plan.frames[u])
        else:
            first += window.frame // spec.every
            target = self._blocks[output][first : first + len(stored)]
            target[:] = stored
        if not finite and not _finite(target):
            self._not_finite(output, u, target)

    def _not_finite(self, output: str, utterance: int, target: NDArray[Any]) -> None:
        name = self.plan.utterances["id"][utterance].as_py()
        inside = self.plan.spec.arithmetic == "float16"
        if inside or target.dtype != np.float16 or np.isnan(target).any():
            mend = "leave this recording out, or check the checkpoint"
            if inside:
                mend = "float16 arithmetic may overflow inside: use a model exported as float32, on cpu or cuda"
            raise InputError(f"{name}: the encoder's {output} holds values that are not finite; {mend}")
        self._overflows += int(np.isinf(target).sum())
        if not self._allow_overflow:
            raise InputError(
                f"{name}: {output} reaches beyond float16 (65504); "
                "use --dtype float32, or --allow-overflow to store infinities"
            )

    def commit(self, unit: int, failures: dict[int, str]) -> None:
        """Write the unit and make room for the next."""
        begin = time.perf_counter()
        self._writer.commit(unit, self._blocks, failures, self._overflows)
        self._overflows = 0
        self._blocks = {}
        self.seconds["write"] += time.perf_counter() - begin


def _finite(a: NDArray[Any]) -> bool:
    """Whether all values are; by their bits where numpy's own test is slow."""
    if a.dtype != np.float16:
        return bool(np.isfinite(a).all())
    # as signed numbers the positive ones are in order, as unsigned ones the negative ones are the largest
    return int(a.view(np.int16).max()) < FLOAT16_INFINITY and int(a.view(np.uint16).max()) < 0x8000 + FLOAT16_INFINITY
