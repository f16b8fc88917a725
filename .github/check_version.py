"""Whether a tag may become a release: package, CITATION.cff and CHANGELOG.md must name its version, and nothing is left
under "Unreleased"."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """What is in the way of releasing `tag` ("v1.2.3"), in sentences; nothing where it may be released."""
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        return [f"{tag}: write it as v1.2.3, or v1.2.3rc1"]
    version = tag[1:]
    package = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = re.search(r"^version: *\"?([^\"\n]+)\"?$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    headings = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    found = {
        "pyproject.toml": package,
        "CITATION.cff": cited and cited[1],
        "the first heading of CHANGELOG.md": headings[0],
    }
    return [f"{where} says {what}, the tag {version}" for where, what in found.items() if what != version]


if __name__ == "__main__":
    wrong = problems(sys.argv[1])
    print("\n".join(wrong) or f"{sys.argv[1]}: may be released")
    sys.exit(bool(wrong))
