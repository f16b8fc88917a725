"""What a worker finds on its own node."""

import socket
from collections.abc import Iterable
from pathlib import Path

from voxstrata.base.errors import InputError


def refuse_unseen(what: str, paths: Iterable[str | Path]) -> None:
    """Raise InputError naming this node and a local path where none of some paths is there."""
    local = [str(path) for path in paths if "://" not in str(path)]
    if local and not any(Path(path).exists() for path in local):
        raise InputError(
            f"node {socket.gethostname()} does not see the {what} {Path(local[0]).absolute()}: put it where all nodes "
            "see it under one path, on shared storage or in an object store"
        )


def same_everywhere(path: str | Path) -> str:
    """A path as it is written on every node: absolute, or a URL."""
    return str(path) if "://" in str(path) else str(Path(path).absolute())
