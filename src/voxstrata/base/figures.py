"""What all pictures share: figures outside pyplot, titles that fit, colours. Needs the extra `plot`."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxstrata.base.errors import UsageError
from voxstrata.base.plain import spelt_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure
else:
    Figure = Any  # at run time a name for annotations: matplotlib is loaded when something is drawn

# Okabe and Ito's colours, told apart by colour-blind readers; the markers serve black and white print.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
_ENCODERS = (*STYLES, ("#E69F00", "v"), ("#56B4E9", "P"), ("#555555", "X"))
DPI = 120
PDF_FONTS = 42  # TrueType, which journals take; matplotlib's own default, 3, is refused by many
_LABEL = 0.05  # of the axes' height: what a label at the end of a curve takes


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
                if (plain := spelt_out(text.get_text())) != text.get_text():
                    text.set_text(plain)
            super().draw(renderer)

        def _repr_png_(self) -> bytes:  # what a notebook shows: pyplot would tell it, and takes no part
            picture = BytesIO()
            self.savefig(picture, format="png", dpi=DPI)
            return picture.getvalue()

    return Plain


def text_size(figure: Figure) -> float:
    """Points for titles and labels of the whole figure: large pictures are looked at from further away."""
    return max(11.0, 0.6 * float(figure.get_figwidth()))


def set_title(figure: Figure, *paragraphs: str, size: float | None = None) -> None:
    """Paragraphs as the title of the whole figure, wrapped to its width. size: in points.

    A number stays with its %, and with the metric in front of it.
    """
    size = size or text_size(figure)
    characters = int(figure.get_figwidth() * 72 / (0.53 * size))  # how wide a character is, to its size, on average
    together = [re.sub(r"(?<=\d) (?=%)|(?<=@\d) (?=\d)", "\u00a0", paragraph) for paragraph in paragraphs]
    lines = [line for paragraph in together for line in textwrap.wrap(paragraph, characters)]
    figure.suptitle("\n".join(lines), fontsize=size, x=0.01, ha="left")


def save_figure(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Save as the suffix says. A PDF holds no date, and its letters as fonts that journals take."""
    from matplotlib import rc_context

    with rc_context({"pdf.fonttype": PDF_FONTS}):
        figure.savefig(path, dpi=dpi, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)


def percent_axis(axes: Any, highest: float = 100.0) -> None:
    """The axis of shares, in percent: from 0 to 20, 40, 60, 80 or 100, as far as the highest figure needs."""
    top = percent_top(highest)
    axes.set_ylim(-0.02 * top, 1.03 * top)
    axes.set_yticks(range(0, top + 1, {20: 5, 40: 10}.get(top, 20)))


def percent_top(highest: float) -> int:
    """Where an axis of percents ends: above the highest figure, at most at 100."""
    return int(min(20 * math.ceil(max(highest, 20.0) / 20), 100))


@dataclass(frozen=True, eq=False)
class DepthCurve:
    """Figures of one encoder by depth.

    depth: (outputs,), from 0, the input of the first block, to 1, the end of the last. value, low, high: (outputs,) in
    percent, NaN for none. apart: (outputs,) bool, outputs that are no block's own, such as `final` behind a last
    LayerNorm.
    """

    label: str
    depth: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    apart: NDArray[np.bool_]


def _look(n: int) -> tuple[str, str]:
    """Colour and marker of the encoder numbered n."""
    return _ENCODERS[n % len(_ENCODERS)]


def draw_by_depth(axes: Any, curves: Sequence[DepthCurve]) -> None:
    """Curves of several encoders on one axis of depth, in the same colours wherever they stand.

    An output that is no block's own has a hollow marker, joined to the last block's by a dotted line.
    """
    for n, curve in enumerate(curves):
        colour, marker = _look(n)
        dash = ("-", "--", "-.")[n // len(_ENCODERS) % 3]
        look = {"color": colour, "marker": marker, "markersize": 4.5}
        own, apart = np.flatnonzero(~curve.apart), np.flatnonzero(curve.apart)
        axes.fill_between(curve.depth[own], curve.low[own], curve.high[own], color=colour, alpha=0.13, linewidth=0)
        axes.vlines(curve.depth[apart], curve.low[apart], curve.high[apart], color=colour, alpha=0.4, linewidth=1)
        axes.plot(curve.depth[own], curve.value[own], dash, label=curve.label, linewidth=1.8, zorder=3, **look)
        for i in apart:
            joined = [*own[-1:], i]
            axes.plot(curve.depth[joined], curve.value[joined], ":", color=colour, linewidth=1.2, zorder=3)
            axes.plot(curve.depth[i], curve.value[i], zorder=4, **look, markerfacecolor="white")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def label_curves(axes: Any, curves: Sequence[DepthCurve], chance: float, top: float) -> None:
    """Names to the right of the curves' ends and of chance, apart from each other; top: end of the axis of values."""
    ends = [(curve.label, curve.value[~np.isnan(curve.value)]) for curve in curves]
    labels = [(name, float(values[-1]), _look(n)[0]) for n, (name, values) in enumerate(ends) if len(values)]
    labels.append(("chance", chance, "black"))
    places = spread([at / top for _, at, _ in labels], _LABEL)
    for (name, at, colour), place in zip(labels, places, strict=True):
        axes.annotate(
            name, (1.02, at), (1.07, place * top), xycoords="data", textcoords="data", annotation_clip=False,
            color=colour, fontsize=9, va="center", arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6},
        )  # fmt: skip


def spread(at: Sequence[float], gap: float) -> list[float]:
    """The places nearest to those wanted, in their order, of which no two are closer than `gap`."""
    order = np.argsort(at, kind="stable")
    pools: list[tuple[float, int]] = []  # of neighbours that touch: where the first is to be, and how many they are
    for n, i in enumerate(order):
        pools.append((at[i] - n * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, k) = pools[-2:]
            pools[-2:] = [((m * a + k * b) / (m + k), m + k)]
    places = np.empty(len(order))
    places[order] = [place for place, held in pools for _ in range(held)] + gap * np.arange(len(order))
    return [float(place) for place in places]
