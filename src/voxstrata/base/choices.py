"""Choosing some of what there is by name."""

from collections.abc import Sequence
from difflib import get_close_matches

from voxstrata.base.errors import UsageError

_LISTED = 24  # names that an error lists; of more it lists some


def chosen(kind: str, asked: str | Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Distinct names asked for, in a list or separated by commas; all known ones when None. Each must be known."""
    if asked is None:
        return list(known)
    if isinstance(asked, str):
        asked = [name.strip() for name in asked.split(",")]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        what = f"unknown {kind} {', '.join(map(repr, unknown))}" if unknown else f"no {kind} asked for"
        raise UsageError(f"{what}; known: {listed(known, unknown) or 'none'}")
    return list(dict.fromkeys(asked))


def listed(known: Sequence[str], asked: Sequence[str] = ()) -> str:
    """Names for an error, with commas: all, or of many those that are spelt like one that was asked for, then others,
    and how many more there are."""
    if len(known) <= _LISTED:
        return ", ".join(known)
    near = [close for name in asked for close in get_close_matches(name, known)]
    some = list(dict.fromkeys([*near, *known]))[:_LISTED]
    return f"{', '.join(some)}, and {len(known) - len(some)} more"
