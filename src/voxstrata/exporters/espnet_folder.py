"""Checkpoints as ESPnet packs them: meta.yaml names a config.yaml and a .pth, or the two lie in one folder.

Weights are read with torch.load(weights_only=True), and YAML by its safe loader: neither can run code.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # transformers and huggingface_hub bring it

from voxstrata.base.errors import InputError
from voxstrata.base.opening import JSON_BYTES, read_regular
from voxstrata.base.plain import counted
from voxstrata.base.tables import first_few
from voxstrata.exporters.hub import first_line

META, _CONFIG = "meta.yaml", "config.yaml"
# parts of meta.yaml, and how the key of a file in them ends
CONFIG_FILE, WEIGHTS_FILE = ("yaml_files", "_train_config"), ("files", "_model_file")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C reads a list of 50 000 tokens in a second


def is_espnet(folder: Path) -> bool:
    """Whether a folder is one of ESPnet's."""
    return _is_packed(folder) or ((folder / _CONFIG).is_file() and not (folder / "config.json").is_file())


def _is_packed(folder: Path) -> bool:
    """Whether there is a meta.yaml of ESPnet's."""
    meta = folder / META
    return meta.is_file() and b"yaml_files:" in read_regular(meta, JSON_BYTES)


def espnet_names(folder: Path) -> list[str]:
    """Configuration and weights in meta.yaml, if there is one, whether they are there or not. Raises InputError where
    it does not name one of each inside of the folder."""
    if not _is_packed(folder):
        return []
    meta = read_yaml(folder / META)
    return [_named(folder / META, meta.get(part), ending) for part, ending in (CONFIG_FILE, WEIGHTS_FILE)]


def espnet_file(folder: Path, kind: tuple[str, str]) -> Path:
    """The configuration (CONFIG_FILE) or the weights (WEIGHTS_FILE). Raises InputError unless there is one."""
    if names := espnet_names(folder):
        name = names[(CONFIG_FILE, WEIGHTS_FILE).index(kind)]
        if not (folder / name).is_file():
            raise InputError(f"{folder / META}: names {name!r:.100}, which is not there; fetch it")
        return folder / name
    if kind == CONFIG_FILE:
        return folder / _CONFIG
    found = sorted(folder.glob("*.pth"))
    if len(found) != 1:
        have = f"holds {first_few([f.name for f in found])}" if found else "holds no .pth"
        raise InputError(f"{folder}: {have}; leave the one beside {_CONFIG} that is to be exported")
    return found[0]


def read_espnet(file: Path) -> dict[str, Any]:
    """A config.yaml, and in it as `model_type` what the encoder is. Raises InputError as `read_yaml` does."""
    found = read_yaml(file)
    return found | {"model_type": f"espnet:{found.get('encoder')!s:.60}"}


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InputError where it is none, is larger than 64 MB, or refers to itself.

    ESPnet writes no references. A few lines of them can stand for more values than any memory holds.
    """
    try:
        text = read_regular(file, JSON_BYTES).decode("utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Loader)):
            raise InputError(f"{file}: has references (*name), which ESPnet does not write; write them out")
        found = yaml.load(text, _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise InputError(f"{file}: not readable as YAML ({first_line(e)}); fetch it again") from e
    if not isinstance(found, dict):
        raise InputError(f"{file}: holds no YAML mapping; fetch it again")
    return found


def _named(meta: Path, files: object, ending: str) -> str:
    """The one file whose key has that ending."""
    names = [v for k, v in files.items() if str(k).endswith(ending)] if isinstance(files, Mapping) else []
    if len(names) != 1 or not isinstance(names[0], str):
        raise InputError(f"{meta}: names {counted(len(names), 'file')} as …{ending}, not one; correct it")
    inside = PurePosixPath(names[0])
    if inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"{meta}: names {names[0]!r:.100}, which is outside of the folder; correct it")
    return names[0]
