"""Pieces of a page that needs nothing but itself: tables that keep the values they show, pictures, settings."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from voxstrata.errors import InputError

GENERATOR = '<meta name="generator" content="voxstrata report">'  # by which a page is known as ours
_PNG, _END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_LONG = 60  # characters from which a cell is wrapped
_NUMBER = re.compile(r"[-+−]?\d[\d.,]*(e[-+]\d+)?(\s|%|–|$)|–$")
_STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; }
body { margin: 0 auto; max-width: 72rem; padding: 0 1rem 4rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
section { border-top: 1px solid #bbb; margin-top: 3rem; }
.box { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: left; vertical-align: top; white-space: pre; border-bottom: 1px solid #ddd; }
.n { text-align: right; }
thead th { border-bottom: 2px solid #555; }
th:first-child { position: sticky; left: 0; background: #fff; }
.t { white-space: normal; min-width: 18rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { tbody th { white-space: normal; min-width: 6rem; overflow-wrap: anywhere; } }
img { display: block; max-width: 100%; min-width: 36rem; }
figure { margin: 0 0 1rem; }
figcaption, .note { color: #444; font-size: .875rem; white-space: pre-wrap; }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .1rem 1rem; font-size: .875rem; }
dt { color: #444; }
dd { margin: 0; white-space: pre-wrap; }
dt, dd { overflow-wrap: anywhere; min-width: 0; }
summary { cursor: pointer; padding: .3rem 0; }
"""


@dataclass(frozen=True)
class Rows:
    """A table. Strings stand as they are; floats are shown to four digits and kept whole in the page.

    note: what the figures stand on. folded: shown when opened.
    """

    title: str
    header: Sequence[str]
    body: Sequence[Sequence[Any]]
    note: str = ""
    folded: bool = False


def text(value: object) -> str:
    """A value as the page shows it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)


def table(rows: Rows) -> str:
    """A table in a box of its own, which scrolls; the note below it."""
    columns = [[text(line[i]) for line in rows.body] for i in range(len(rows.header))]
    right = [any(cells) and all(_NUMBER.match(cell) for cell in cells if cell) for cells in columns]
    head = "".join(f"<th{_class(r)}>{escape(name)}</th>" for name, r in zip(rows.header, right, strict=True))
    lines = []
    for line in rows.body:
        cells = [f'<th scope="row"{_class(right[0])}>{_cell(line[0])}</th>']
        cells += [f"<td{_class(r, value)}>{_cell(value)}</td>" for value, r in zip(line[1:], right[1:], strict=True)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    label = escape(rows.title)
    whole = (
        f'<div class="box" tabindex="0" role="region" aria-label="{label}"><table>\n<thead><tr>{head}</tr></thead>\n'
        "<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table></div>\n"
    )
    whole += f'<p class="note">{escape(rows.note)}</p>\n' if rows.note else ""
    if rows.folded:
        return f"<details><summary>{label}</summary>\n{whole}</details>\n"
    return f"<h3>{label}</h3>\n{whole}"


def _class(right: bool, value: object = None) -> str:
    """Of a cell: numbers to the right, long texts on several lines."""
    if right:
        return ' class="n"'
    return ' class="t"' if isinstance(value, str) and len(value) > _LONG and " " in value else ""


def _cell(value: object) -> str:
    shown = escape(text(value))
    if isinstance(value, float) and text(value) != repr(value):
        return f'<data value="{value!r}">{shown}</data>'
    return shown


def picture(path: Path, caption: str) -> str:
    """A PNG as part of the page. Raises InputError when it is none, or cut."""
    data = path.read_bytes()
    if not (data.startswith(_PNG) and data.endswith(_END)):
        raise InputError(f"{path}: not a whole PNG; run the command that wrote it again, or remove the file")
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    label = escape(caption)
    return (
        f'<figure><div class="box" tabindex="0" role="region" aria-label="{label}"><img alt="{label}" src="{source}">'
        f"</div><figcaption>{label}</figcaption></figure>\n"
    )


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    lines = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs]
    return "<dl>\n" + "\n".join(lines) + "\n</dl>\n"


def folded(title: str, inside: str) -> str:
    """Shown when opened."""
    return f"<details><summary>{escape(title)}</summary>\n{inside}</details>\n"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as pairs: names joined by points, lists by commas, one line for each of several records."""
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        items = [", ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, dict) else item for item in value]
        joined = ("\n" if any(isinstance(item, dict) for item in value) else ", ").join(str(item) for item in items)
        return [(name, joined or "none")]
    if value is None or value == {}:
        return [(name, "none")]
    return [(name, text(value) if isinstance(value, bool) else str(value))]


def page(title: str, inside: str) -> str:
    """The page. Its policy forbids the browser to load anything: what is not in the file is not shown."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'\">\n{GENERATOR}\n<title>{escape(title)}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{inside}</body>\n</html>\n"
    )
