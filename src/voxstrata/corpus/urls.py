"""URLs among the paths of a manifest."""

import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from voxstrata.base.errors import InputError
from voxstrata.base.remote import is_url, shown

Rooted = tuple[Path | str, list[str], dict[str, str]]


def rooted_urls(paths: Sequence[str], folder: Path | str, where: Callable[[int], str]) -> Rooted:
    """What holds all recordings, their paths from there, and the URLs that are signed, by these paths.

    folder: what paths that are no URLs are relative to. where: of a row, for errors. The root is the longest URL that
    all recordings lie below; where some lie elsewhere, `folder`, and then their paths are URLs without what signs them.
    """
    asked: list[str] = []
    for i, path in enumerate(paths):
        if is_url(path):
            asked.append(path)
        elif isinstance(folder, Path):
            asked.append(os.path.normpath(os.path.join(folder, path)))
        elif path.startswith("/"):
            raise InputError(f"{where(i)}: path {path!r} is one of a disk; write a URL, or a path from {folder}")
        else:
            asked.append(_below(folder, path))
    known = [shown(path) for path in asked]
    root: Path | str = folder
    if all(map(is_url, known)):
        # what all have in common, the first and the last in order have
        common = os.path.commonprefix([min(known), max(known)]).rpartition("/")[0]  # noqa: RUF071  cut at a "/"
        inside = isinstance(folder, str) and all(path.startswith(f"{folder}/") for path in known)
        if not inside and urlsplit(common).netloc and "?" not in common:
            root = common
    own = os.path.join(str(root), "")
    found = [
        path[len(own) :] if path.startswith(own) else path if is_url(path) else os.path.relpath(path, root)
        for path in known
    ]
    signed = {name: url for name, url, public in zip(found, asked, known, strict=True) if url != public}
    return root, found, signed


def _below(folder: str, path: str) -> str:
    scheme, _, rest = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(f'{rest}/{path}')}"
