"""Choosing some of what there is by name."""

from collections.abc import Sequence

from voxstrata.base.errors import UsageError


def chosen(kind: str, asked: str | Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Distinct names asked for, in a list or separated by commas; all known ones when None. Each must be known."""
    if asked is None:
        return list(known)
    if isinstance(asked, str):
        asked = [name.strip() for name in asked.split(",")]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        what = f"unknown {kind} {', '.join(map(repr, unknown))}" if unknown else f"no {kind} asked for"
        raise UsageError(f"{what}; known: {', '.join(known) or 'none'}")
    return list(dict.fromkeys(asked))
