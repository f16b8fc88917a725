"""The markers of committed units: a unit counts once its marker is there, and can be read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from voxstrata.base.errors import InputError, UnreachableError
from voxstrata.base.remote import at_once
from voxstrata.store.checked import read_json
from voxstrata.store.files import Files

UNITS = "units"


def marked_units(files: Files) -> list[int]:
    """Units that have a marker, in order."""
    return [int(name.removesuffix(".json")) for name in files.names(UNITS) if name.endswith(".json")]


def read_marker(files: Files, unit: int, store: str | None = None) -> dict[str, Any] | None:
    """What the marker of a unit says: "unit", "failed" (reasons by index), "overflows", "checksums" (by output).

    store: the identity that it must have. None where there is none, or one that is damaged, as a power cut may leave
    it, or another store's: the unit is to be done again. Raises UnreachableError where a server does not answer.
    """
    try:
        marker = read_json(files, marker_name(unit), store)
        whole = marker["unit"] == unit and all(int(i) >= 0 for i in marker["failed"]) and marker["overflows"] >= 0
    except UnreachableError:  # an outage: nothing is damaged
        raise
    except (InputError, ValueError, TypeError, KeyError):
        return None
    return marker if whole else None


def read_markers(files: Files, units: Sequence[int], store: Callable[[int], str | None]) -> Iterator[Any]:
    """What `read_marker` gives for each unit, in order, many at a time from an object store. store: by unit."""

    def read(unit: int) -> dict[str, Any] | None:
        return read_marker(files, unit, store(unit))

    return map(read, units) if files.local is not None else at_once(read, units)


def marker_name(unit: int) -> str:
    """Where the marker of a unit lies."""
    return f"{UNITS}/{unit:06d}.json"
