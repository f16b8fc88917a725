"""What hatchling asks when it builds: the README as a package index shows it, where no repository lies beside it."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_INTO_REPOSITORY = re.compile(r"(!?)\[([^\[\]]*)\]\((?![a-z]+:|#)([^()\s]+)\)")


def readme_alone(readme: str, repository: str | None, version: str) -> str:
    """Links into the repository, at the version's tag where it is known; otherwise their text alone."""

    def moved(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if repository is None:
            return f"(A picture: {text}.)" if picture else text
        return f"{picture}[{text}]({repository.rstrip('/')}/{'raw' if picture else 'blob'}/v{version}/{target})"

    return _INTO_REPOSITORY.sub(moved, readme)


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        text = readme_alone(text, repository, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
