"""Pieces of a page that needs nothing but itself: pictures with their files, settings, the page around them."""

import base64
import hashlib
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from voxstrata.base.errors import InputError
from voxstrata.base.opening import read_regular
from voxstrata.base.recognised import GENERATOR
from voxstrata.base.tables import cell_text

_PNG, _END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_PDF, _PDF_END = b"%PDF-", b"%%EOF"


def picture(path: Path, caption: str) -> str:
    """A PNG as part of the page; the PDF of the same name beside it, if any, to be saved.

    Raises InputError when either is none, or cut.
    """
    data = read_regular(path)
    if not (data.startswith(_PNG) and data.endswith(_END)):
        raise InputError(f"{path}: not a whole PNG; run the command that wrote it again, or remove the file")
    label = escape(caption)
    return (
        f'<figure><div class="box" tabindex="0" role="region" aria-label="{label}"><img alt="{label}" '
        f'data-name="{escape(path.stem)}" src="{_inline("image/png", data)}"></div>'
        f'<p class="get">{_document(path.with_suffix(".pdf"))}</p><figcaption>{label}</figcaption></figure>\n'
    )


def _document(path: Path) -> str:
    if not path.exists():
        return ""  # what earlier versions saved
    data = read_regular(path)
    if not (data.startswith(_PDF) and data.rstrip().endswith(_PDF_END)):
        raise InputError(f"{path}: not a whole PDF; run the command that wrote it again, or remove the file")
    return f'<a download="{escape(path.name)}" href="{_inline("application/pdf", data)}">PDF</a>'


def _inline(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def prose(text: str) -> str:
    """Sentences of a result, in which a number stays with its % when the line breaks."""
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", escape(text))


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
    """The page. Its policy forbids the browser to load anything, and to run anything but the page's own script."""
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'; script-src 'sha256-{own}'; base-uri 'none'; form-action 'none'\">\n"
        f"{GENERATOR}\n<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{inside}"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )
