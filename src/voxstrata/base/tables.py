"""Tables for people: one form that is printed, written as Markdown, or put on a page."""

import math
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from voxstrata.base.plain import spelt_out

_LONG = 60  # characters from which a cell is wrapped on a page
_NUMBER = re.compile(r"[-+−]?\d[\d.,]*(e[-+]\d+)?(\s|%|–|$)|–$")


_LEAST = 1e-9  # percent: less is what rounding leaves of 0


class Percent(float):
    """A figure in percent: tables show one decimal, and a page keeps the whole value."""


@dataclass(frozen=True)
class TextTable:
    """A table for people. Strings stand as they are; floats are shown to four digits, and on a page kept whole.

    header: (columns,). rows: each (columns,). note: what the figures stand on, in sentences. folded: on a page, shown
    when opened.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    folded: bool = False

    def to_text(self, width: int | None = None) -> str:
        """In columns; without title and note.

        width: of the terminal, in characters. A table that is wider comes in pieces, one below the other, each with
        the first columns, as many as tell its rows apart. None: in one piece.
        """
        cells = [[cell_text(value) for value in row] for row in self.rows]
        right = self._right()
        columns = list(zip(self.header, *cells, strict=True))
        sizes = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
        keys = next((n for n in range(1, 4) if len({tuple(row[:n]) for row in cells}) == len(cells)), 1)
        pieces = [list(range(keys))]
        for i in range(keys, len(columns)):
            wide = sum(sizes[k] + 2 for k in (*pieces[-1], i)) - 2
            if width is not None and len(pieces[-1]) > keys and wide > width:
                pieces.append(list(range(keys)))
            pieces[-1].append(i)
        texts = []
        for piece in pieces:
            header, *rows = zip(*(columns[i] for i in piece), strict=True)
            texts.append(aligned(header, rows, [n for n, i in enumerate(piece) if not right[i]]))
        return "\n\n".join(texts)

    def to_markdown(self) -> str:
        """As a GitHub table; without title and note."""
        rule = ["---:" if right else "---" for right in self._right()]
        head, *cells = ([_markdown_cell(value) for value in row] for row in (self.header, *self.rows))
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *cells))

    def to_html(self, folded: bool = False) -> str:
        """As an HTML table in a box of its own, which scrolls; title above, note below. folded: shown when opened."""
        right = self._right()
        head = "".join(f"<th{_class(r)}>{escape(name)}</th>" for name, r in zip(self.header, right, strict=True))
        lines = []
        for row in self.rows:
            cells = [f'<th scope="row"{_class(right[0])}>{_cell(row[0])}</th>']
            cells += [f"<td{_class(r, value)}>{_cell(value)}</td>" for value, r in zip(row[1:], right[1:], strict=True)]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        label = escape(self.title)
        whole = (
            f'<div class="box" tabindex="0" role="region" aria-label="{label}"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table></div>\n"
        )
        whole += _note(self.note)
        if folded or self.folded:
            return f"<details><summary>{label}</summary>\n{whole}</details>\n"
        return f"<h3>{label}</h3>\n{whole}"

    def _right(self) -> list[bool]:
        """Whether a column holds numbers, which stand to the right; (columns,)."""
        columns = [[cell_text(row[i]) for row in self.rows] for i in range(len(self.header))]
        return [any(cells) and all(_NUMBER.match(cell) for cell in cells if cell) for cells in columns]


def terminal_width() -> int | None:
    """Columns of the terminal that standard output goes to; None where it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def cell_text(value: object) -> str:
    """A value as tables show it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Percent):
        return f"{round(value, 1) + 0.0:.1f}"  # + 0.0: no minus before a zero
    return f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)


def markdown_text(text: str) -> str:
    """Text in which no tag, link, picture or control sequence of a stranger takes effect."""
    plain = spelt_out(text.replace("\r\n", "\n").replace("\r", "\n"))
    return plain.replace("<", "&lt;").replace("](", "]\\(")


def _markdown_cell(value: object) -> str:
    text = markdown_text(cell_text(value))
    return text.replace("`", "\\`").replace("|", "\\|").replace("\n", "<br>")


def _class(right: bool, value: object = None) -> str:
    """Of a cell: numbers to the right, long texts on several lines."""
    if right:
        return ' class="n"'
    return ' class="t"' if isinstance(value, str) and len(value) > _LONG and " " in value else ""


def _note(text: str) -> str:
    """Lines of a note as paragraphs, those that begin with "- " as lists."""
    html = ""
    for item, lines in groupby(text.split("\n") if text else [], lambda line: line.startswith("- ")):
        if item:
            html += '<ul class="note">' + "".join(f"<li>{escape(line[2:])}</li>" for line in lines) + "</ul>\n"
        else:
            html += f'<p class="note">{escape(chr(10).join(lines))}</p>\n'
    return html


def _cell(value: object) -> str:
    shown = escape(cell_text(value))
    if isinstance(value, float) and cell_text(value) != repr(value):
        return f'<data value="{value!r}">{shown}</data>'
    return shown


def first_few(names: Sequence[object], shown: int = 5) -> str:
    """What a message names of many: "a, b and 3 more"."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more


def known(value: float) -> float | None:
    """A figure as tables store it: null for NaN."""
    return None if math.isnan(value) else float(value)


def in_percent(value: float | None) -> str:
    """A share as every table shows it, in percent with one decimal: "16.3"; "–" for none.

    One that rounds to 0.0 without being 0, such as the chance of a large pool, shows its first digit: "0.03".
    """
    text = cell_text(None if value is None else Percent(100 * value))
    if text == "0.0" and value is not None and 100 * value > _LEAST:
        return f"{float(f'{100 * value:.0e}'):.10f}".rstrip("0")
    return text


def with_interval(row: Mapping[str, Any], names: Sequence[str], spec: str, scale: float = 1, apart: str = " ") -> str:
    """A row's value, low and high end, in the columns of these names, as "0.5 [0.4, 0.6]"; without interval the value.

    spec: of a number, as `format` takes it. apart: what stands before the bracket.
    """
    if row[names[0]] is None:
        return cell_text(None)
    value, *ends = ("" if row[name] is None else format(scale * row[name], spec) for name in names)
    return f"{value}{apart}[{', '.join(ends)}]" if all(ends) else value


def clock(seconds: float) -> str:
    """h:mm:ss."""
    s = round(seconds)
    return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Header and rows in columns, those numbered in `left` to the left, the others to the right.

    A cell may have several lines.
    """
    lines = [line for row in [header, *rows] for line in zip_longest(*(c.split("\n") for c in row), fillvalue="")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    )


def distinct(table: pa.Table, column: str) -> list[str]:
    """The distinct values of a column, in the order in which they come first."""
    names: list[str] = pc.unique(table[column]).to_pylist()
    return names


def as_stored(
    table: pa.Table,
    title: str,
    columns: list[str] | None = None,
    *,
    shares: Collection[str] = (),
    of: int | None = None,
    note: str = "",
) -> TextTable:
    """Rows of an Arrow table under its own names; folded where these are some `of` so many rows.

    shares: columns of fractions, which are shown in percent, as everywhere on a page.
    """
    names = columns or table.column_names
    rows = [
        [100 * row[name] if name in shares and row[name] is not None else row[name] for name in names]
        for row in table.select(names).to_pylist()
    ]
    title = title if of is None else f"{title} ({len(rows)} of {of} rows)"
    header = [f"{name} (%)" if name in shares else name for name in names]
    return TextTable(title, header, rows, note, folded=of is not None)
