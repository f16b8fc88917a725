"""Finding a checkpoint: its folder, what its config.json says, and then its weights, read when they are asked for.

Weights are read from safetensors or by torch.load(weights_only=True), neither of which can run code.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from voxstrata.base.errors import InputError
from voxstrata.base.progress import Reporter
from voxstrata.exporters.espnet_folder import (
    CONFIG_FILE,
    META,
    WEIGHTS_FILE,
    espnet_file,
    espnet_names,
    is_espnet,
    read_espnet,
)
from voxstrata.exporters.hub import check_source, download, first_line
from voxstrata.exporters.original import CheckpointFiles
from voxstrata.exporters.reading import read_description, read_preprocessor, weight_files


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint of which config.json was read, and no weights.

    source: what the user named. name: hub id, or name of the folder. revision: commit, for a hub id. folder: where it
    lies; of a hub id only small files are there before `fetch`. description: the file that describes it: config.json,
    or ESPnet's config.yaml. config: what that says, as it is.
    """

    source: str
    name: str
    revision: str | None
    folder: Path
    description: Path
    config: Mapping[str, Any]

    @property
    def model_type(self) -> object:
        return self.config.get("model_type")

    def fetch(self, also: Sequence[str] = ()) -> None:
        """Fetch the weights of a hub id, and files of these names."""
        if self.revision is not None:
            download(self.source, self.revision, [*also, *espnet_names(self.folder)])

    def tensors(self, reporter: Reporter) -> Mapping[str, torch.Tensor]:
        """All tensors of its files. reporter: warned of weights beside those that are read.

        Raises InputError where there are none, or a file cannot be read, or would run code to load.
        """
        espnet = is_espnet(self.folder)
        files, notes = ([espnet_file(self.folder, WEIGHTS_FILE)], []) if espnet else weight_files(self.folder)
        for note in notes:
            reporter.warn(note)
        return _Tensors(files)

    def files(self, reporter: Reporter, prefix: Sequence[str] = ()) -> CheckpointFiles:
        """All that a family's module is given. prefix: as the user chose it. Raises as `tensors` does."""
        preprocessor, tensors = read_preprocessor(self.folder)[1], self.tensors(reporter)
        return CheckpointFiles(self.name, self.revision, self.folder, self.config, preprocessor, tensors, tuple(prefix))


def find_checkpoint(source: str, revision: str | None = None) -> FoundCheckpoint:
    """Find a folder of Hugging Face's or ESPnet's, or a hub id. Raises InputError where there is none, or its weights
    are quantised."""
    check_source(source, revision)
    folder, name, commit = Path(source), Path(source).resolve().name, None
    if not folder.is_dir():
        folder = download(source, revision, [META], weights=False)
        if named := espnet_names(folder):
            folder = download(source, folder.name, [META, named[0]], weights=False)
        name, commit = source, folder.name  # a snapshot's folder is named by its commit
    file = espnet_file(folder, CONFIG_FILE) if is_espnet(folder) else folder / "config.json"
    config = read_espnet(file) if is_espnet(folder) else read_description(folder)
    return FoundCheckpoint(source, name, commit, folder, file, config)


class _Tensors(Mapping[str, torch.Tensor]):
    """Tensors of files by name; of safetensors each is read when it is asked for. Later files take precedence."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: dict[str, Any] = {}
        self._loaded: dict[str, torch.Tensor] = {}
        for path in files:
            if path.suffix != ".safetensors":
                self._loaded |= tensor_dict(torch_load(path))
                continue
            try:
                opened: Any = safe_open(path, "pt")
                self._files |= dict.fromkeys(opened.keys(), opened)
            except Exception as e:
                raise InputError(f"{path}: not readable as weights ({first_line(e)}); fetch the file again") from e

    def __getitem__(self, name: str) -> torch.Tensor:
        found = self._loaded[name] if name in self._loaded else self._files[name].get_tensor(name)
        assert isinstance(found, torch.Tensor)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter([*self._loaded, *self._files])

    def __len__(self) -> int:
        return len(self._loaded) + len(self._files)


def torch_load(path: Path) -> dict[str, Any]:
    """What a file that torch wrote holds, without what would run code. Raises InputError for anything else."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise InputError(
            f"{path}: refused, loading it would need more than tensors (it may run code); "
            "convert it to safetensors where you trust it"
        ) from e
    except Exception as e:
        raise InputError(f"{path}: not readable as a torch checkpoint ({first_line(e)}); fetch it again") from e
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def tensor_dict(loaded: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """Of a dictionary the tensors that have a name."""
    return {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
