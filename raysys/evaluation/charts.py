"""Small charts as SVG text: no library, no script, nothing to fetch, readable for ever."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 28, 44
COLOURS = ("#0b6bcb", "#c4521a", "#2e8540", "#7a4fbf", "#b3186d", "#6b6b00", "#008080", "#555555", "#d08700", "#4a2c2a")
GRID_LINES = 4


@dataclass(frozen=True, slots=True)
class Point:
    """x: a number, or the place of a named tick. low, high: of the interval of y; None = none is drawn."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Axes:
    """What the axes are called. ticks: names of x = 0, 1, 2, ...; None = x is a number."""

    title: str
    x: str
    y: str
    ticks: Sequence[str] | None = None


def lines(axes: Axes, series: Mapping[str, Sequence[Point]]) -> str:
    """One line a series, with the intervals of its points."""
    return _chart(axes, series, joined=True)


def scatter(axes: Axes, series: Mapping[str, Sequence[Point]]) -> str:
    """Points alone."""
    return _chart(axes, series, joined=False)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Data to pixels."""

    x0: float
    x1: float
    y1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.y1 * (HEIGHT - TOP - BOTTOM)


def _chart(axes: Axes, series: Mapping[str, Sequence[Point]], joined: bool) -> str:
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return ""
    scale = _scale([point for points in drawn.values() for point in points], axes)
    parts = [_frame(axes, scale)]
    for number, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts += [_series(points, scale, colour, joined), _key(name, number, colour)]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(axes.title)}">{"".join(parts)}</svg>'


def _scale(points: Sequence[Point], axes: Axes) -> _Scale:
    xs = [point.x for point in points] if axes.ticks is None else [0.0, len(axes.ticks) - 1.0]
    top = max(max(point.y, point.y if point.high is None else point.high) for point in points)
    low, high = min(xs), max(xs)
    return _Scale(low, high if high > low else low + 1, _rounded_up(top))


def _rounded_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999)


def _frame(axes: Axes, scale: _Scale) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [_text(LEFT, 16, axes.title, "title"), _text((LEFT + right) / 2, HEIGHT - 6, axes.x, "middle")]
    parts.append(
        f'<text transform="translate(12,{(TOP + bottom) / 2}) rotate(-90)" class="middle">{escape(axes.y)}</text>'
    )
    for line in range(GRID_LINES + 1):
        value = scale.y1 * line / GRID_LINES
        y = scale.y(value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:.4g}", "end"))
    for x, name in _x_ticks(axes, scale):
        parts.append(_text(scale.x(x), bottom + 16, name, "middle"))
    return "".join(parts)


def _x_ticks(axes: Axes, scale: _Scale) -> list[tuple[float, str]]:
    if axes.ticks is not None:
        return [(float(place), name) for place, name in enumerate(axes.ticks)]
    steps = [scale.x0 + (scale.x1 - scale.x0) * i / GRID_LINES for i in range(GRID_LINES + 1)]
    return [(x, f"{x:.3g}") for x in steps]


def _series(points: Sequence[Point], scale: _Scale, colour: str, joined: bool) -> str:
    parts = []
    if joined:
        path = " ".join(f"{scale.x(point.x):.1f},{scale.y(point.y):.1f}" for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for point in points:
        x = scale.x(point.x)
        if point.low is not None and point.high is not None:
            low, high = scale.y(max(point.low, 0)), scale.y(point.high)
            parts.append(f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{scale.y(point.y):.1f}" r="3.5" fill="{colour}"/>')
    return "".join(parts)


def _key(name: str, number: int, colour: str) -> str:
    y = TOP + 8 + 20 * number
    x = WIDTH - RIGHT + 14
    return f'<rect x="{x}" y="{y - 8}" width="10" height="10" fill="{colour}"/>' + _text(x + 16, y + 1, name, "start")


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'
