"""Weights held against what a configuration says of them, before anything is made of the sizes that it claims.

A configuration may come from a stranger, or belong to other weights. All families load through here.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from voxstrata.base.errors import InputError
from voxstrata.exporters.hub import first_line
from voxstrata.exporters.original import CheckpointFiles
from voxstrata.exporters.reading import MERGE, brief

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Module = TypeVar("Module", bound=torch.nn.Module)
Settings = TypeVar("Settings")


def configured(file: Path, kind: Callable[..., Settings], known: Mapping[str, Any]) -> Settings:
    """A configuration of transformers with these settings. Raises InputError where it does not take them."""
    try:
        return kind(**known)
    except Exception as e:
        raise InputError(f"{file}: not a usable configuration ({first_line(e)})") from e


def check_extractor(files: CheckpointFiles, expected: Mapping[str, object]) -> None:
    """Raises InputError where the feature extractor's settings are not what the feature graph computes."""
    for key, value in expected.items():
        if files.preprocessor.get(key, value) != value:
            raise InputError(
                f"{files.folder}: the feature extractor's {key} is {brief(files.preprocessor[key])}, the encoder takes "
                f"{value!r}; correct the file, or remove it if it belongs to another model"
            )


def tensors_below(
    path: Path, tensors: Mapping[str, torch.Tensor], prefixes: Sequence[str], mark: str, what: str
) -> tuple[str, dict[str, torch.Tensor]]:
    """The first of the prefixes below which the tensor `mark` is, and the tensors there, by the rest of their names.

    Raises InputError where it is below none: the checkpoint has no such encoder. what: the encoder, in words.
    """
    prefix = next((p for p in prefixes if p + mark in tensors), None)
    if prefix is None:
        raise InputError(f"{path}: the weights hold no {what} encoder (no {mark})")
    return prefix, {k.removeprefix(prefix): tensors[k] for k in tensors if k.startswith(prefix)}


def check_floats(path: Path, state: Mapping[str, torch.Tensor], part: str = "encoder") -> None:
    """Raises InputError for quantised tensors, and for those of an adapter. part: whose tensors they are."""
    odd = next((k for k, v in state.items() if v.dtype not in FLOATS), None)
    if odd is not None:
        raise InputError(
            f"{path}: {part} tensor {odd} holds {str(state[odd].dtype).removeprefix('torch.')}, quantised values that "
            "are no weights without their scales; take the checkpoint's float weights"
        )
    lora = next((k for k in state if "lora_" in k), None)
    if lora is not None:
        raise InputError(f"{path}: {part} tensor {lora} is an adapter's; {MERGE}")


def check_stated(path: Path, stated: Mapping[str, object], found: Mapping[str, int]) -> None:
    """Raises InputError unless each size that the weights have is the one that the configuration states.

    stated: sizes by the configuration's name. found: of some of them what the weights have.
    """
    for key, size in found.items():
        if stated[key] != size or not (size or key.endswith("layers")):
            raise InputError(
                f"{path}: the configuration does not fit the weights: {key} is {stated[key]}, they have {size}"
            )


def axes(state: Mapping[str, torch.Tensor], where: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """Sizes that tensors show. where: by name of the size, the tensor and the axis that has it."""
    there = {k: (t, axis) for k, (t, axis) in where.items() if t in state and state[t].ndim > axis}
    return {k: state[t].shape[axis] for k, (t, axis) in there.items()}


def count_blocks(state: Mapping[str, torch.Tensor], prefix: str = "layers.") -> int:
    """How many numbers follow the prefix in the names."""
    return len({k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)})


def load_module(
    path: Path, make: Callable[[], Module], state: Mapping[str, torch.Tensor], what: str, *, alone: bool = True
) -> Module:
    """A module with these weights in float32, ready to compute.

    make: makes it with any weights. It is made without memory first, so that nothing is allocated that the weights do
    not bear out. Raises InputError, naming the tensor, unless names and shapes are the module's and all values finite.
    what: the encoder, in words. alone: other tensors must not lie beside its own.
    """
    try:
        with torch.device("meta"):
            module = make()
    except Exception as e:
        raise InputError(f"{path}: the configuration describes no {what} encoder ({first_line(e)})") from e
    expected = module.state_dict()
    fitting = _fitted(path, state if alone else {k: v for k, v in state.items() if k in expected}, expected)
    if any(name not in fitting for name, _ in module.named_buffers()):  # constants that no checkpoint holds
        module = make()
    module.load_state_dict(fitting, assign=True)
    module.eval().requires_grad_(False)
    return module


def _fitted(
    path: Path, state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors in float32. Raises InputError unless names and shapes are as expected and all values finite."""
    missing = sorted(set(expected) - set(state))
    wrong = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    if missing or wrong:
        first = (missing or wrong)[0]
        found = "is missing" if missing else f"is {tuple(state[first].shape)}, not {tuple(expected[first].shape)}"
        raise InputError(
            f"{path}: weights do not fit config.json: encoder tensor {first} {found} "
            f"({len(missing) + len(wrong)} in all)"
        )
    unused = sorted(set(state) - set(expected))
    if unused:
        raise InputError(f"{path}: more encoder tensors than config.json describes, e.g. {unused[0]}")
    floats = {k: v if v.dtype == torch.int64 else v.to(torch.float32) for k, v in state.items()}
    bad = next((k for k, v in floats.items() if not torch.isfinite(v).all()), None)
    if bad:
        raise InputError(f"{path}: encoder tensor {bad} holds NaN or infinite values")
    return floats
