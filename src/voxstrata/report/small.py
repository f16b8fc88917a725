"""Small pictures for the opening of a page: drawn as SVG, in the page's own colours, light or dark."""

from collections.abc import Callable, Sequence
from html import escape

from voxstrata.base.figures import percent_top
from voxstrata.base.finding import SmallCurve

_WIDTH, _HEIGHT = 340, 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 328, 22, 112  # of the panel


def small_picture(curve: SmallCurve) -> str:
    """Figures as an SVG: values with their intervals, chance dashed, what the answer is about ringed."""
    known = [y for part in (curve.value, curve.high, curve.chance) for y in part if y is not None]
    top = curve.top or percent_top(max(known, default=0.0))
    count = len(curve.names)
    inner = 12 if count > 1 else (_RIGHT - _LEFT) / 2
    step = (_RIGHT - _LEFT - 2 * inner) / max(1, count - 1)

    def x(i: float) -> float:
        return _LEFT + inner + step * i

    def y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * min(max(value, 0.0), top) / top

    def joined(values: Sequence[float | None]) -> str:
        return " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values) if v is not None)

    parts = [f'<text x="4" y="12">{escape(curve.up)}</text>']
    for level in (0, top):
        parts.append(f'<line class="base" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(level):.1f}" y2="{y(level):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{y(level) + 4:.1f}" text-anchor="end">{level:g}</text>')
    around = enumerate(zip(curve.low, curve.high, strict=False))
    ends = [(x(i), y(low), y(high)) for i, (low, high) in around if low is not None and high is not None]
    if curve.steps or count == 1:
        for at, low, high in ends:
            parts.append(f'<line class="end" x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
    elif ends:
        edge = [(at, high) for at, _, high in ends] + [(at, low) for at, low, _ in reversed(ends)]
        parts.append(f'<polygon class="band" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in edge)}"/>')
    if by_chance := [(x(i), y(c)) for i, c in enumerate(curve.chance) if c is not None]:
        line = [(_LEFT, by_chance[0][1]), *by_chance, (_RIGHT, by_chance[-1][1])]
        parts.append(f'<polyline class="chance" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in line)}"/>')
        begin = _RIGHT - 6.5 * len(curve.chance_name)  # the legend: in a corner, where no figure is
        parts.append(f'<line class="chance" x1="{begin - 28:.1f}" x2="{begin - 6:.1f}" y1="8" y2="8"/>')
        parts.append(f'<text x="{_RIGHT}" y="12" text-anchor="end">{escape(curve.chance_name)}</text>')
    if not curve.steps:
        parts.append(f'<polyline class="line" points="{joined(curve.value)}"/>')
    for i, value in enumerate(curve.value):
        if value is not None:
            parts.append(f'<circle class="dot" cx="{x(i):.1f}" cy="{y(value):.1f}" r="2.8"/>')
    parts += _names(curve, x)
    if curve.best is not None and (value := curve.value[curve.best]) is not None:
        parts.append(f'<circle class="best" cx="{x(curve.best):.1f}" cy="{y(value):.1f}" r="6"/>')
    shown = "; ".join(f"{n}: {v:.1f}" for n, v in zip(curve.names, curve.value, strict=True) if v is not None)
    label = escape(f"{curve.up}: {shown}")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>\n'


def _names(curve: SmallCurve, x: Callable[[float], float]) -> list[str]:
    """Below the axis: the first, the last and the one that the answer is about; of kinds, all that have room."""
    last = len(curve.names) - 1
    wanted = list(range(last + 1)) if curve.steps and last < 6 else [curve.best or 0, 0, last]
    shown: list[str] = []
    taken: list[tuple[float, float]] = []
    for i in dict.fromkeys(wanted):
        name = curve.names[i]
        half = 3.5 * len(name)
        middle = min(max(x(i), _LEFT - 20 + half), _WIDTH - half)
        if any(middle - half < b and a < middle + half for a, b in taken):
            continue
        taken.append((middle - half - 4, middle + half + 4))
        shown.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(name)}</text>')
    return shown
