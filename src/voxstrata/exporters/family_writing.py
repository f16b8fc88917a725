"""Writing the model folder of a family beyond Whisper: two graphs, their weights and the card, validated first."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import new_folder
from voxstrata.base.progress import Reporter
from voxstrata.encoders import card as layout
from voxstrata.encoders.card import ModelCard, write_card
from voxstrata.encoders.outputs import select_outputs
from voxstrata.exporters.family_validation import validate_family
from voxstrata.exporters.original import CheckpointFiles, Original
from voxstrata.exporters.spec import ExportSpec
from voxstrata.exporters.writing import stamp, tool_versions

# of a stranger's settings what may name code to load, or other files
_CODE = ("auto_map", "implementation", "custom", "trust")
_OF_FILES = ("transformers_version", "torch_dtype", "dtype", "architectures", "processor_class")  # how they were saved


def check_options(title: str, spec: ExportSpec) -> None:
    """Raises UsageError for what only Whisper can have, naming it. title: the family's."""
    given = {
        f"--dtype {spec.dtype}": spec.dtype != "float32",
        "--calibrate": spec.calibrate is not None,
        "--silence-keys": spec.silence_keys != ExportSpec.silence_keys,
        "--norm-every-layer": spec.norm_every,
    }
    wrong = [option for option, is_given in given.items() if is_given]
    if wrong:
        verb, what = ("is", "it") if len(wrong) == 1 else ("are", "them")
        raise UsageError(f"{title}: {' and '.join(wrong)} {verb} for Whisper's encoders alone; leave {what} out")


def check_prefix(spec: ExportSpec, title: str, has: Sequence[str]) -> None:
    """Raises UsageError for tokens before the speech where the encoder has none. has: those that it is told."""
    if spec.prefix and not has:
        raise UsageError(f"{title}: its encoder is told nothing before the speech; leave --prefix out")


def write_family(
    original: Original,
    files: CheckpointFiles,
    target: Path,
    spec: ExportSpec,
    reporter: Reporter,
    replaced: Collection[str] = (),
) -> None:
    """Write the new folder `target`. Errors as of `export`. replaced: as of `write_model`."""
    family = original.family
    try:
        family.check()
    except ValueError as e:
        raise InputError(f"{files.folder}: its configuration describes an encoder that cannot be ({e})") from e
    check_prefix(spec, family.name, family.prefix)
    outputs = select_outputs(spec.outputs, family.names)
    with new_folder(target, replaced) as folder:
        reporter.step("writing the graphs")
        (folder / layout.FEATURES).write_bytes(original.feature_graph())
        original.write_encoder(folder / layout.ENCODER, folder / layout.WEIGHTS, outputs)
        for name in (layout.FEATURES, layout.ENCODER):
            onnx.checker.check_model(str(folder / name))
        for name, settings in (("config", files.config), ("preprocessor_config", files.preprocessor)):
            if settings:
                text = json.dumps(_harmless(settings), indent=2, sort_keys=True)
                (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        reporter.step("validating against the original")
        weights_sha256 = state_sha256(original.state(), _harmless([files.config, files.preprocessor]))
        validation = validate_family(folder, original, outputs, reporter)
        card = ModelCard(
            format=layout.MODEL_FORMAT,
            checkpoint=files.name,
            revision=files.revision,
            weights_sha256=weights_sha256,
            layers=original.layers,
            d_model=original.d_model,
            heads=original.heads,
            n_mels=family.features,
            dtype="float32",
            opset=_opset(folder / layout.ENCODER),
            outputs=outputs,
            final_norm="final",
            silence={},
            validation=validation,
            tools=tool_versions(),
            family=family,
        )
        stamp(folder, (layout.FEATURES, layout.ENCODER), card)
        write_card(folder, card)


def state_sha256(state: Mapping[str, NDArray[np.float32]], settings: Any) -> str:
    """Hash of settings, and of names, shapes and float32 values, in whatever kind of file these lie.

    settings: JSON of the configuration: strides, heads and activations decide the states, and the weights do not show
    them.
    """
    told = json.dumps([_without(one, _OF_FILES) for one in settings], sort_keys=True)
    h = hashlib.sha256(told.encode())
    for name, value in sorted(state.items()):
        h.update(f"{name} {value.shape}\n".encode())
        h.update(np.ascontiguousarray(value, "<f4").tobytes())
    return h.hexdigest()


def _opset(path: Path) -> int:
    """The version of the standard operators that a graph uses."""
    opsets = onnx.load(str(path), load_external_data=False).opset_import
    return next(int(entry.version) for entry in opsets if entry.domain in ("", "ai.onnx"))


def _without(value: Any, keys: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return value


def _harmless(value: Any) -> Any:
    """Settings as they were read, without what may name code or files: whoever opens the folder with other tools is
    served, and nothing of a stranger's runs."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if not (k.startswith("_") or any(word in k for word in _CODE))}
        return {k: _harmless(v) for k, v in kept.items()}
    return [_harmless(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
