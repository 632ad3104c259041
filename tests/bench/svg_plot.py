# SPDX-License-Identifier: Apache-2.0
"""Two kinds of plot as SVG text, without any library: bars in groups, and step curves over logarithmic axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Sequence

# Colours that people with any kind of colour vision tell apart (Okabe and Ito), readable on white.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5f5f5f", "#b8a600")
FONT = "font-family='system-ui, sans-serif' font-size='12'"


@dataclass(frozen=True)
class Series:
    """Values by position; None leaves a gap."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Curve:
    """Points from left to right."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool


def nice_step(span: float, steps: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides `span` into at most so many parts."""
    least = span / steps
    power = 10.0 ** math.floor(math.log10(least))
    for factor in (1, 2, 5, 10):
        if factor * power >= least * 0.999999:
            return factor * power
    raise AssertionError("unreachable")


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {extra}>{escape(text)}</text>"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, extra: str = "") -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' {extra}/>"


def _page(width: int, height: float, title: str, body: Sequence[str]) -> str:
    head = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height:.0f}' "
        f"viewBox='0 0 {width} {height:.0f}' {FONT} role='img'>",
        f"<title>{escape(title)}</title>",
        "<rect width='100%' height='100%' fill='white'/>",
        _text(16, 24, title, extra="font-size='15' font-weight='600'"),
    ]
    return "\n".join([*head, *body, "</svg>"]) + "\n"


def _legend(x: float, y: float, index: int, name: str) -> list[str]:
    colour = COLOURS[index % len(COLOURS)]
    square = f"<rect x='{x:.1f}' y='{y - 10:.1f}' width='12' height='12' fill='{colour}'/>"
    return [square, _text(x + 18, y, name)]


def grouped_bars(title: str, axis: str, groups: Sequence[str], series: Sequence[Series], mark: float) -> str:
    """Horizontal bars: a group for each name, in it one bar of each series; `mark` is drawn as a line across."""
    if any(len(one.values) != len(groups) for one in series):
        raise ValueError("a series has another number of values than there are groups")
    bar, gap, right, top, plain = 9, 10, 30, 70, 600
    left = 24 + 7 * max(len(group) for group in groups)
    width = left + plain + right
    group_height = bar * len(series) + gap
    bottom = top + group_height * len(groups)
    largest = max([mark, *(value for one in series for value in one.values if value is not None)])
    step = nice_step(largest, 8)
    scale = plain / (math.ceil(largest / step - 1e-9) * step)
    body: list[str] = []
    x: float = left
    for index, one in enumerate(series):
        body += _legend(x, 48, index, one.name)
        x += 40 + 7 * len(one.name)
    for tick in range(math.ceil(largest / step - 1e-9) + 1):
        x = left + tick * step * scale
        body.append(_line(x, top - 4, x, bottom, "#dddddd"))
        body.append(_text(x, bottom + 16, f"{tick * step:g}", "middle"))
    for row, group in enumerate(groups):
        y = top + row * group_height
        body.append(_text(left - 8, y + (group_height - gap) / 2 + 4, group, "end"))
        for index, one in enumerate(series):
            value = one.values[row]
            if value is not None:
                colour = COLOURS[index % len(COLOURS)]
                body.append(
                    f"<rect x='{left}' y='{y + index * bar:.1f}' width='{value * scale:.1f}' height='{bar - 1}' "
                    f"fill='{colour}'><title>{escape(f'{group}: {one.name} {value:.3f}')}</title></rect>"
                )
    x = left + mark * scale
    body.append(_line(x, top - 4, x, bottom, "#222222", "stroke-dasharray='4 3'"))
    body.append(_text(left + plain / 2, bottom + 36, axis, "middle"))
    return _page(width, bottom + 50, title, body)


def log_steps(title: str, axes: tuple[str, str], marks: Sequence[tuple[str, float]], curves: Sequence[Curve]) -> str:
    """Step curves over two logarithmic axes, both of values above zero; `marks` are named heights, drawn across."""
    places = [place for one in curves for place in one.points]
    if not places or any(x <= 0 or y <= 0 for x, y in places):
        raise ValueError("logarithmic scales need values above zero")
    width, left, right, top, bottom = 1040, 80, 370, 60, 440
    first, last = (math.floor(math.log10(min(x for x, _ in places))), math.ceil(math.log10(max(x for x, _ in places))))
    last = max(last, first + 1)
    lowest = math.log10(min(height for _, height in marks))

    def across(x: float) -> float:
        return left + (math.log10(x) - first) / (last - first) * (width - left - right)

    def up(y: float) -> float:
        return bottom - (max(math.log10(y), lowest) - lowest) / -lowest * (bottom - top)

    body = []
    for power in range(first, last + 1):
        for factor in range(1, 10 if power < last else 2):
            x = across(factor * 10.0**power)
            body.append(_line(x, top, x, bottom, "#cccccc" if factor == 1 else "#eeeeee"))
        body.append(_text(across(10.0**power), bottom + 18, f"{10.0 ** power:g}", "middle"))
    for name, height in marks:
        body.append(_line(left, up(height), width - right, up(height), "#888888", "stroke-dasharray='4 3'"))
        body.append(_text(left - 8, up(height) + 4, name, "end"))
    body += [_text(left, bottom + 38, axes[0]), _text(16, top - 8, axes[1])]
    for index, one in enumerate(curves):
        colour = COLOURS[one.colour % len(COLOURS)]
        path = [f"{across(one.points[0][0]):.1f},{up(1):.1f}"]
        for before, (x, y) in zip((1.0, *(y for _, y in one.points)), one.points):
            path += [f"{across(x):.1f},{up(before):.1f}", f"{across(x):.1f},{up(y):.1f}"]
        dashes = "stroke-dasharray='6 3'" if one.dashed else ""
        body.append(f"<polyline points='{' '.join(path)}' fill='none' stroke='{colour}' stroke-width='2' {dashes}/>")
        y = top + 10 + 20 * index
        body.append(_line(width - right + 20, y - 4, width - right + 44, y - 4, colour, f"stroke-width='2' {dashes}"))
        body.append(_text(width - right + 52, y, one.name))
    return _page(width, bottom + 60, title, body)
