"""Checkpoints on the hub: what is a hub id, and fetching. Needs no torch."""

import re
from collections.abc import Sequence
from pathlib import Path

from voxstrata.base.errors import InputError
from voxstrata.base.opening import read_json_file
from voxstrata.base.recognised import refuse_mistaken
from voxstrata.encoders.card import CARD, WEIGHTS

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")  # in transformers' order; each before its own index
# tensors of a language model that listens through an encoder
_TEXT = ("language_model.", "model.language_model.", "lm_head.")
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def is_hub_id(source: str) -> bool:
    """Whether a source that is no local file or folder can be a hub id."""
    return bool(_HUB_ID.match(source)) and not source.endswith(".pt")


def check_source(source: str, revision: str | None) -> None:
    """Raises InputError for what cannot be a checkpoint, before anything is loaded."""
    path = Path(source)
    if path.is_dir() and revision is not None:
        raise InputError(f"{path} is a local folder: --revision is for hub ids")
    if (path / CARD).is_file() and (path / WEIGHTS).is_file():
        raise InputError(
            f"{path}: an exported model already, not a checkpoint; name the checkpoint that it was made from"
        )
    if not (path / "config.json").is_file():
        refuse_mistaken(path, "a checkpoint", "name its folder, a hub id, or OpenAI's .pt")
    if not path.exists() and not is_hub_id(source):
        raise InputError(f"{source}: no such folder or file, and not a hub id (like openai/whisper-base)")


def download(repo: str, revision: str | None = None, also: Sequence[str] = (), *, weights: bool = True) -> Path:
    """Fetch config and weights of a hub id, or find them in the local cache; returns the snapshot's folder.

    also: names of further files to fetch, where the repository has them. weights: whether they are fetched, too.
    Raises InputError when the hub refuses the id, and when it cannot be reached and nothing is cached.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    small = ["config.json", "preprocessor_config.json", "processor_config.json", "adapter_config.json", *also]
    try:
        files = HfApi().list_repo_files(repo, revision=revision)
        wanted = [f for f in files if f in small] + (_weights_among(files) if weights else [])
        index = next((f for f in wanted if f.endswith(".index.json")), None)
        if index is not None:  # of a model of many GB the encoder may lie in one of them
            at = Path(snapshot_download(repo, revision=revision, allow_patterns=[index])) / index
            spared = silent_shards(at)
            wanted = [f for f in wanted if f not in spared]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except errors.HFValidationError as e:
        raise InputError(f"{repo}: no such folder or file, and not a hub id ({first_line(e)})") from e
    except Exception as e:  # offline raises whatever the installed HTTP library raises; a cached copy still serves
        refusals = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
        if isinstance(e, refusals) and not isinstance(e, errors.LocalEntryNotFoundError):
            raise InputError(
                f"{repo}: no such folder here, and the hub refused it ({first_line(e)}); check the id and --revision"
            ) from e
        try:
            return Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            raise InputError(
                f"{repo}: no such folder here, the hub cannot be reached ({type(e).__name__}) and no copy is cached"
            ) from e


def silent_shards(index: Path) -> set[str]:
    """Of the files that an index names those that hold nothing but a language model. A damaged index names none."""
    try:
        read = read_json_file(index)
    except (OSError, ValueError):
        return set()
    named = read.get("weight_map") if isinstance(read, dict) else None
    names = {str(k): v for k, v in named.items() if isinstance(v, str)} if isinstance(named, dict) else {}
    heard = {file for tensor, file in names.items() if not tensor.startswith(_TEXT)}
    return set(names.values()) - heard if heard else set()


def _weights_among(files: Sequence[str]) -> list[str]:
    """Of a repository's files those that `reading.weight_files` may read.

    Other copies of the weights (named fp32, for flax, as ONNX) are not fetched.
    """
    for stem, suffix in (name.split(".") for name in WEIGHT_NAMES):
        whole, index = f"{stem}.{suffix}", f"{stem}.{suffix}.index.json"
        if whole in files:
            return [whole]
        if index in files:
            shards = [f for f in files if f.startswith(stem) and f.endswith(f".{suffix}") and "fp32" not in f]
            return [index, *shards]
    return []


def first_line(e: Exception) -> str:
    """What an error says in its first line, after its kind."""
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {lines[0]}" if lines else type(e).__name__
