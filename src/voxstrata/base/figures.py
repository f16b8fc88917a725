"""What all pictures share: figures outside pyplot, titles that fit, colours. Needs the extra `plot`."""

from __future__ import annotations

import textwrap
from functools import cache
from typing import TYPE_CHECKING, Any

from voxstrata.base.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure
else:
    Figure = Any  # at run time a name for annotations: matplotlib is loaded when something is drawn

# Okabe and Ito's colours, told apart by colour-blind readers; the markers serve black and white print.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
DPI = 120


def new_figure(width: float, height: float) -> Figure:
    """A figure outside pyplot: no display, no global state, Agg when saved as PNG. Sizes in inches."""
    return _plain()(figsize=(width, height), layout="constrained")


@cache
def _plain() -> type[Figure]:
    """Figures that draw "$" as it stands: ids and texts are no formulas, and "$\\frac{$" is not even one."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.text import Text
    except ImportError as error:
        raise UsageError("plots need matplotlib; install it with: pip install 'voxstrata[plot]'") from error

    class Plain(Figure):
        def draw(self, renderer: Any) -> None:
            for text in self.findobj(Text):
                text.set_parse_math(False)
            super().draw(renderer)

    return Plain


def text_size(figure: Figure) -> float:
    """Points for titles and labels of the whole figure: large pictures are looked at from further away."""
    return max(11.0, 0.6 * float(figure.get_figwidth()))


def set_title(figure: Figure, *paragraphs: str) -> None:
    """Paragraphs as the title of the whole figure, wrapped to its width."""
    size = text_size(figure)
    characters = int(figure.get_figwidth() * 72 / (0.57 * size))  # how wide a character is, to its size, on average
    lines = [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, characters)]
    figure.suptitle("\n".join(lines), fontsize=size)
