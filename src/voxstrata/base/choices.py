"""Choosing some of what there is by name."""

from __future__ import annotations

from collections.abc import Sequence

from voxstrata.base.errors import UsageError


def chosen(kind: str, asked: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Distinct names asked for (all known ones when None), each of them known."""
    if asked is None:
        return list(known)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        what = f"unknown {kind} {', '.join(map(repr, unknown))}" if unknown else f"no {kind} asked for"
        raise UsageError(f"{what}; known: {', '.join(known) or 'none'}")
    return list(dict.fromkeys(asked))
