"""The families beyond Whisper, a module each. Adding one is a module here and a test file.

A module defines what `exporters.original.FamilyModule` lists. It is found by being here.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from voxstrata.base.errors import InputError
from voxstrata.exporters.original import FamilyModule
from voxstrata.exporters.reading import brief
from voxstrata.exporters.towers import Tower, find_tower


@cache
def family_modules() -> tuple[FamilyModule, ...]:
    """All of them, by name of the module."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return tuple(cast(FamilyModule, importlib.import_module(f"{__name__}.{name}")) for name in names)


def family_of(model_type: object) -> FamilyModule | None:
    """The module for checkpoints of that `model_type`, or None."""
    return next((module for module in family_modules() if model_type in module.MODEL_TYPES), None)


# encoders that look like Whisper's, and what makes another graph of them
_OTHERS = {
    "glmasr": "its positions are rotary",
    "qwen2_5_omni": "it attends in chunks of its own",
    "qwen3_omni": "it attends in chunks of its own",
    "qwen3_asr": "it attends in chunks of its own",
    "voxtral_realtime": "it is causal",
}


def described_encoder(file: Path, config: Mapping[str, Any]) -> Tower | FamilyModule:
    """The encoder that a config.json describes: one of Whisper's graph, or the module of its family.

    Raises InputError where there is none that is known, or none at all; the message lists those that are.
    """
    kind = config.get("model_type")
    found = family_of(kind) or find_tower(file, config)
    if found is not None:
        return found
    titles = ["Whisper", "towers made from Whisper (Voxtral, MOSS, Ultravox)", *(m.TITLE for m in family_modules())]
    why = next((f", whose encoder is not Whisper's: {why}" for name, why in _OTHERS.items() if name in str(kind)), "")
    named = config.get("architectures")
    if not why and isinstance(named, list) and named and all("CausalLM" in str(name) for name in named):
        why = f" ({brief(named[0])}), a decoder of text without an encoder of speech"
    raise InputError(f"{file}: model_type is {brief(kind)}{why}; known families: {'; '.join(titles)}")
