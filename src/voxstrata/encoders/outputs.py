"""Names of the encoder's outputs: `layer_00` … `layer_L`, then `final`."""

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

from voxstrata.base.errors import UsageError
from voxstrata.base.plain import counted

OutputChoice = str | int | Iterable[str | int]  # what `select_outputs` takes


def output_names(layers: int) -> tuple[str, ...]:
    """All outputs of an encoder of L = `layers` blocks, in depth order.

    `layer_00` is the input of the first block. `layer_k` is the residual stream after block k. `final` is `layer_L`
    after the final LayerNorm.
    """
    return (*(f"layer_{k:02d}" for k in range(layers + 1)), "final")


def describe(output: str, layers: int, final_norm: str) -> tuple[str, int | None]:
    """What an output is in words, and which of transformers' `hidden_states` equals it, None where none does.

    layers, final_norm: as in the model's card.
    """
    if output == "final":
        return f"output of the encoder: the residual stream after block {layers}, through the final LayerNorm", layers
    block = int(output.removeprefix("layer_"))
    what = f"residual stream after block {block}" if block else "input of the first block"
    if final_norm == "every":
        return f"{what}, through the final LayerNorm", layers if block == layers else None
    return f"{what}, before the final LayerNorm", block if block < layers else None


def as_float16(output: str) -> str:
    """The name in the CPU's graph of an output as float16."""
    return f"{output}/float16"


def depth(outputs: Sequence[str], layers: int) -> int:
    """How many of an encoder's `layers` blocks these outputs need."""
    return max(layers if name == "final" else int(name.removeprefix("layer_")) for name in outputs)


def depth_fraction(output: str, layers: int) -> float:
    """How much of an encoder of `layers` blocks lies before an output: 0 for `layer_00`, 1 after the last block."""
    return depth([output], layers) / layers


def spelt_outputs(wanted: OutputChoice) -> tuple[str, ...]:
    """The names of a choice as they were given, of numbers their digits, of a string the parts between commas.

    Raises UsageError for what is no name, such as None, True and 1.5.
    """
    if isinstance(wanted, str):
        return tuple(name.strip() for name in wanted.split(","))
    if _is_number(wanted):
        return (_spelt(wanted),)
    try:
        return tuple(map(_spelt, wanted))  # type: ignore[arg-type]  # what is not iterable raises TypeError
    except TypeError:
        return (_spelt(wanted),)


def _spelt(name: Any) -> str:
    if isinstance(name, str):
        return name.strip()
    if not _is_number(name):
        raise UsageError(f"no output {name!r}; give names or numbers, such as 'final', 3 or -1")
    return str(operator.index(name))


def _is_number(given: Any) -> bool:
    """Whether it is an integer, of numpy or another library, too; True and False are none."""
    try:
        operator.index(given)
    except TypeError:
        return False
    return not isinstance(given, bool)


def select_outputs(wanted: OutputChoice, available: Sequence[str]) -> tuple[str, ...]:
    """The wanted outputs in depth order. A string is a comma-separated list; "all" is every available one.

    A name may be written in short: "3", 3 and "layer_3" are `layer_03`, "2-5" are `layer_02` to `layer_05`, and "-1"
    and -1 are the last of those that are available, "-2" the one before.

    Raises UsageError for a name that is not available, a name given twice, and an empty choice.
    """
    given = spelt_outputs(wanted)
    if given == ("all",):
        return tuple(available)
    names = [name for short in given for name in _names(short, available)]
    unknown = [n for n in names if n not in available]
    if unknown or not names:
        raise UsageError(
            f"unknown output {', '.join(map(repr, unknown)) or 'selection (empty)'}; "
            f"known: {', '.join(available)} (or 'all')"
        )
    if len(set(names)) != len(names):
        raise UsageError(f"an output is named twice in {','.join(names)!r}; name each once")
    return tuple(n for n in available if n in names)


def select_output(wanted: str | int, available: Sequence[str]) -> str:
    """The one output that a name means, written as `select_outputs` takes it. Raises UsageError for none or several."""
    given = ",".join(spelt_outputs(wanted))
    if given in available:
        return given
    try:
        names = select_outputs(given, available)
    except UsageError:
        raise UsageError(f"no output {given!r}; it holds {', '.join(available)}") from None
    if len(names) > 1:
        raise UsageError(f"{given!r} are {counted(len(names), 'output')}; name one of {', '.join(names)}")
    return names[0]


def names_one(wanted: OutputChoice, names: Sequence[str]) -> bool:
    """Whether `names`, which `select_outputs` made of `wanted`, are one that was asked for as one, however spelt."""
    one = wanted != "all" if isinstance(wanted, str) else _is_number(wanted)
    return len(names) == 1 and one


def _names(short: str, available: Sequence[str]) -> list[str]:
    """What a short name stands for; another name stands for itself."""
    if match := re.fullmatch(r"(?:layer_)?(\d{1,4})|(\d{1,4})-(\d{1,4})", short):
        first, last = int(match[1] or match[2]), int(match[1] or match[3])
        return [f"layer_{k:02d}" for k in range(first, last + 1)] or [short]
    if re.fullmatch(r"-\d{1,4}", short) and -int(short) in range(1, len(available) + 1):
        return [available[int(short)]]
    return [short]


def depth_order(outputs: Iterable[str]) -> list[str]:
    """Distinct output names by depth: layer_00, layer_01, …, then all others in the order given."""

    def depth(name: str) -> float:
        number = re.fullmatch(r"layer_(\d+)", name)
        return int(number[1]) if number else float("inf")

    return sorted(dict.fromkeys(outputs), key=depth)
