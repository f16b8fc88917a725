"""Pieces of a page that needs nothing but itself: tables that keep the values they show, pictures, settings."""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError
from voxstrata.base.opening import read_regular
from voxstrata.base.tables import cell_text

GENERATOR = '<meta name="generator" content="voxstrata report">'  # by which a page is known as ours
_PNG, _END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
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


def picture(path: Path, caption: str) -> str:
    """A PNG as part of the page. Raises InputError when it is none, or cut."""
    data = read_regular(path)
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
    return [(name, cell_text(value) if isinstance(value, bool) else str(value))]


def page(title: str, inside: str) -> str:
    """The page. Its policy forbids the browser to load anything: what is not in the file is not shown."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'\">\n{GENERATOR}\n<title>{escape(title)}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{inside}</body>\n</html>\n"
    )
