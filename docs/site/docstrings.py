"""Docstrings on the site: lines that say what an argument or a field is become a list."""

import re
from typing import Any

from griffe import Extension, Object

_ITEM = re.compile(r"^(\w+(?:, \w+)*): (?=\S)")


def as_list(text: str) -> str:
    """`name: what it is`, at the beginning of a line, as an item of a list; lines that are set in go on with it."""
    made: list[str] = []
    listing = False
    for line in text.splitlines():
        if item := _ITEM.match(line):
            made += [] if listing else [""]
            names = ", ".join(f"`{name}`" for name in item[1].split(", "))
            made.append(f"- {names}: {line[item.end() :]}")
            listing = True
        else:
            if listing and not line.startswith(" "):
                listing = False
                made += [""]
            made.append(line)
    return "\n".join(made)


class Docstrings(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_list(obj.docstring.value)
