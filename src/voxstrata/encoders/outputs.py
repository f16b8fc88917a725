"""Names of the encoder's outputs: `layer_00` … `layer_L`, then `final`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from voxstrata.base.errors import UsageError


def output_names(layers: int) -> tuple[str, ...]:
    """All outputs of an encoder of `layers` blocks, in depth order.

    `layer_00` is the input of the first block, `layer_k` the residual stream after block k,
    `final` the final LayerNorm of `layer_L`.
    """
    return (*(f"layer_{k:02d}" for k in range(layers + 1)), "final")


def as_float16(output: str) -> str:
    """What the CPU's graph calls an output that is cast to float16."""
    return f"{output}/float16"


def depth(outputs: Sequence[str], layers: int) -> int:
    """How many of an encoder's blocks these outputs need."""
    return max(layers if name == "final" else int(name.removeprefix("layer_")) for name in outputs)


def select_outputs(wanted: Sequence[str] | str, available: Sequence[str]) -> tuple[str, ...]:
    """The wanted outputs in depth order; `"all"` is every available one.

    Raises UsageError for a name that is not available, and for an empty or repeated choice.
    """
    names = [n.strip() for n in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    if names == ["all"]:
        return tuple(available)
    unknown = [n for n in names if n not in available]
    if unknown or not names:
        raise UsageError(
            f"unknown output {', '.join(map(repr, unknown)) or 'selection (empty)'}; "
            f"this model has {', '.join(available)} (or 'all')"
        )
    if len(set(names)) != len(names):
        raise UsageError(f"an output is named twice in {','.join(names)!r}; name each once")
    return tuple(n for n in available if n in names)


def depth_order(outputs: Iterable[str]) -> list[str]:
    """Distinct output names from the encoder's input to its end: layer_00, layer_01, …, then the others."""

    def depth(name: str) -> float:
        number = re.fullmatch(r"layer_(\d+)", name)
        return int(number[1]) if number else float("inf")

    return sorted(dict.fromkeys(outputs), key=depth)
