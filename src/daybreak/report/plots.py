"""Charts as inline SVG: they follow the page's colours, so one file serves light, dark and paper.

Coordinates are in units of a 340 wide box; the page scales it to its column.
"""

import math
from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
POINTS = 240  # of a curve; more can't be told apart


def number(value: float) -> str:
    """A number in few characters: 12k, 3.4M, 0.057, 1e-06."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within [low, high], about ``count`` of them, steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """The finite points, averaged in runs so that about ``POINTS`` are left; the last one stays as it is."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    run = math.ceil(len(pairs) / POINTS)
    if run > 1:
        runs = [pairs[i : i + run] for i in range(0, len(pairs) - 1, run)]
        pairs = [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in runs] + pairs[-1:]
    return [x for x, _ in pairs], [y for _, y in pairs]


def line_chart(name: str, xs: Sequence[float], ys: Sequence[float], *, percent: bool = False,
               zero: bool = False, marks: bool = False) -> Markup:
    """A curve over images seen.

    Args:
        percent: values are shares, written in percent.
        zero: the vertical axis begins at zero.
        marks: a dot at each point, for curves of few points.

    Returns:
        An ``<svg>`` that says its first, last, lowest and highest value to a screen reader; a sentence if no
        value is finite.
    """
    xs, ys = thin(xs, ys)
    if not ys:
        return Markup('<p class="missing">No finite value was recorded.</p>')
    low, high = min([*ys, 0.0] if zero else ys), max(ys)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low if zero and low == 0 else low - pad, high + pad
    start, end = min(xs[0], 0.0), max(xs[-1], 1.0)

    def across(x: float) -> float:
        return LEFT + (x - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def text(value: float) -> str:
        return f"{value * 100:.3g} %" if percent else number(value)

    parts = []
    for tick in ticks(low, high):
        y = down(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
                     f'{text(tick)}</text>')
    for tick in ticks(start, end, 3):
        anchor = "start" if tick == start else "end" if across(tick) > WIDTH - 40 else "middle"
        parts.append(f'<text class="tick" x="{across(tick):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
                     f'{number(tick)}</text>')
    path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(xs, ys, strict=True))
    parts.append(f'<polyline class="curve" points="{path}"/>')
    dots = range(len(xs)) if marks else [len(xs) - 1]
    parts += [f'<circle class="dot" cx="{across(xs[i]):.1f}" cy="{down(ys[i]):.1f}" r="2.6"/>' for i in dots]
    said = (f"{name} against images seen: first {text(ys[0])}, last {text(ys[-1])}, lowest {text(min(ys))}, "
            f"highest {text(max(ys))}.")
    return drawing("chart", WIDTH, HEIGHT, said, parts)


def drawing(kind: str, width: int, height: int, said: str, parts: Sequence[str]) -> Markup:
    """An SVG element with what a screen reader says of it."""
    return Markup(f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" '
                  f'aria-label="{escape(said)}">{"".join(parts)}</svg>')


Value = tuple[str, float, float | None]  # name of the mark, value in [0, 1], standard error


def reach(values: Sequence[Value]) -> tuple[float, float]:
    """The part of [0, 1] that holds all values with two standard errors, and a margin."""
    ends = [value + side * 2 * (error or 0) for _, value, error in values for side in (-1, 1)]
    return max(min(ends) - 0.04, 0.0), min(max(ends) + 0.04, 1.0)


def strip(values: Sequence[Value], low: float, high: float) -> Markup:
    """Values on a line from ``low`` to ``high``, each with two standard errors to either side.

    The marks differ in form, not only in colour.
    """

    def across(x: float) -> str:  # percent of the width, so that marks keep their size on any screen
        return f"{2 + (x - low) / (high - low) * 96:.2f}%"

    parts = ['<line class="axis" x1="0" x2="100%" y1="14" y2="14"/>']
    for tick in ticks(low, high, 5):
        x = across(tick)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="11" y2="17"/>'
                     f'<text class="tick" x="{x}" y="35" text-anchor="middle">{tick * 100:.3g}</text>')
    for mark, value, error in reversed(values):  # the first lies on top
        x = across(value)
        if error:
            start, end = across(max(value - 2 * error, low)), across(min(value + 2 * error, high))
            parts.append(f'<line class="whisker {mark}" x1="{start}" x2="{end}" y1="14" y2="14"/>')
        if mark == "pixels":
            parts.append(f'<rect class="mark pixels" x="{x}" y="9" width="10" height="10"/>')
        else:
            parts.append(f'<circle class="mark {mark}" cx="{x}" cy="14" r="6.5"/>')
    return Markup(f'<svg class="strip" aria-hidden="true">{"".join(parts)}</svg>')


def scatter(points: Sequence[Sequence[float]], marks: Sequence[str], titles: Sequence[str],
            said: str) -> Markup:
    """A map of points in [0, 1] x [0, 1]; ``marks`` name their styles, a pointer reveals ``titles``."""
    dots = [f'<circle class="{escape(mark)}" cx="{10 + 580 * x:.1f}" cy="{590 - 580 * y:.1f}" r="4">'
            f"<title>{escape(title)}</title></circle>"
            for (x, y), mark, title in zip(points, marks, titles, strict=True)]
    return drawing("map", 600, 600, said, dots)
