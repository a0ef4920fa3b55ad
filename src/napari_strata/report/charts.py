"""Charts as SVG for a page: lines over epochs, confidence against accuracy, strips of dots. Colours follow the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40
"""Room beside the plot for numbers and names of the axes."""

DOTS = 1200
"""Points in a chart beyond which none has a mark that says its value."""


@dataclass(frozen=True)
class Line:
    """A named line: points (x, y), where y that is not finite breaks it; a CSS colour, and whether it is dashed."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dashed: bool = False

    @property
    def is_empty(self) -> bool:
        return not any(math.isfinite(y) for _, y in self.points)


@dataclass(frozen=True)
class Frame:
    """From values to places in the picture: x grows to the right, y upwards."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Place of a point in pixels."""
        return self.across(x), self.down(y)

    def across(self, x: float) -> float:
        low, high = self.x
        return round(
            LEFT + (x - low) / ((high - low) or 1) * (self.width - LEFT - RIGHT), 1
        )

    def down(self, y: float) -> float:
        low, high = self.y
        return round(
            self.height
            - BOTTOM
            - (y - low) / ((high - low) or 1) * (self.height - TOP - BOTTOM),
            1,
        )


def draw_lines(
    lines: Sequence[Line], *, label: str, mark: float | None = None
) -> Markup:
    """Lines over epochs, with `label` for readers who do not see it; a dashed upright line at the epoch `mark`."""
    points = [point for line in lines for point in line.points]
    xs, ys = [x for x, _ in points], [y for _, y in points if math.isfinite(y)]
    ticks = nice_ticks(min(ys), max(ys))
    frame = Frame(
        (min(xs), max(max(xs), min(xs) + 1)),
        (min(ticks[0], min(ys)), max(ticks[-1], max(ys))),
    )
    across = [
        t
        for t in nice_ticks(*frame.x, most=8)
        if t == round(t) and frame.x[0] <= t <= frame.x[1]
    ]
    parts = [_grid(frame, across, ticks, titles=("epoch", ""))]
    if mark is not None and frame.x[0] <= mark <= frame.x[1]:
        x = frame.across(mark)
        anchor = "end" if x > WIDTH - 60 else "start"
        parts.append(
            Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                x, TOP, HEIGHT - BOTTOM
            )
            + Markup(
                '<text class="tick" x="{}" y="{}" text-anchor="{}">best</text>'
            ).format(x + (-4 if anchor == "end" else 4), TOP + 9, anchor)
        )
    parts += [_line(frame, line, dots=len(points) <= DOTS) for line in lines]
    return _svg(parts, label, (WIDTH, HEIGHT))


def draw_reliability(bins: dict[str, list[dict[str, Any]]], *, label: str) -> Markup:
    """Share of right pixels over confidence, before and after a temperature, over the share of pixels of each bin.

    `bins` holds "before" and "after", each a list of low, high, confidence, accuracy and count.
    """
    side = 330
    frame = Frame((0.0, 1.0), (0.0, 1.0), side, side)
    fifths = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = [_grid(frame, fifths, fifths, titles=("confidence", "right"))]
    total = sum(one["count"] for one in bins["after"]) or 1
    for one in bins["after"]:
        (x, bottom), height = (
            frame.at(one["low"], 0),
            frame.down(0) - frame.down(one["count"] / total),
        )
        width = frame.across(one["high"]) - x
        parts.append(
            Markup(
                '<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{} of the pixels</title></rect>'
            ).format(
                round(x + 0.5, 1),
                round(bottom - height, 1),
                round(width - 1, 1),
                round(height, 1),
                percent(one["count"] / total),
            )
        )
    (left, low), (right, high) = frame.at(0, 0), frame.at(1, 1)
    parts.append(
        Markup('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            left, low, right, high
        )
    )
    for name, color, dashed in (
        ("before", "var(--second)", True),
        ("after", "var(--first)", False),
    ):
        found = [
            (one["confidence"], one["accuracy"]) for one in bins[name] if one["count"]
        ]
        parts.append(
            _line(frame, Line(name, found, color, dashed), dots=True, what=_right_at)
        )
    return _svg(parts, label, (side, side))


STRIP = (150, 18)
"""Width and height of a strip."""


def draw_strip(
    values: Sequence[tuple[str, float]], *, span: tuple[float, float], label: str
) -> Markup:
    """Named values as dots on a line from `span`'s low to its high, and their mean as a tick."""
    width, height = STRIP
    middle, (low, high) = height / 2, span
    known = [(name, value) for name, value in values if math.isfinite(value)]

    def across(value: float) -> float:
        return round(6 + (value - low) / ((high - low) or 1) * (width - 12), 1)

    parts = [
        Markup('<line class="grid" x1="6" x2="{}" y1="{}" y2="{}"/>').format(
            width - 6, middle, middle
        )
    ]
    if known:
        x = across(sum(value for _, value in known) / len(known))
        parts.append(
            Markup('<line class="axis" x1="{0}" x2="{0}" y1="2" y2="{1}"/>').format(
                x, height - 2
            )
        )
    for name, value in known:
        said = f"{name}: {value:.3f}"
        parts.append(
            Markup(
                '<circle class="value" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>'
            ).format(across(value), middle, said)
        )
    return _svg(parts, label, STRIP, style="strip")


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers a round step apart that enclose `low`..`high`, about `most` of them."""
    if high <= low:
        pad = abs(low) / 2 or 1.0
        low, high = low - (pad if low < 0 else min(pad, low)), high + pad
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def percent(share: float) -> str:
    """``12.3 %``; nothing that is not nothing is ``<0.1 %``."""
    return (
        "0 %" if share == 0 else "<0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
    )


def _grid(
    frame: Frame,
    across: Sequence[float],
    up: Sequence[float],
    *,
    titles: tuple[str, str],
) -> Markup:
    right, bottom = frame.width - RIGHT, frame.height - BOTTOM
    parts = []
    for value in up:
        y = frame.down(value)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                LEFT, right, y, y
            )
        )
        parts.append(
            Markup(
                '<text class="tick" x="{}" y="{}" text-anchor="end">{:g}</text>'
            ).format(LEFT - 7, y + 4, value)
        )
    for value in across:
        x = frame.across(value)
        parts.append(
            Markup(
                '<line class="tickmark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
            ).format(x, bottom, bottom + 4)
        )
        parts.append(
            Markup(
                '<text class="tick" x="{}" y="{}" text-anchor="middle">{:g}</text>'
            ).format(x, bottom + 17, value)
        )
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            LEFT, right, bottom, bottom
        )
    )
    middle = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(
        Markup(
            '<text class="title" x="{}" y="{}" text-anchor="middle">{}</text>'
        ).format(middle[0], frame.height - 6, titles[0])
    )
    if titles[1]:
        parts.append(
            Markup(
                '<text class="title" text-anchor="middle" transform="translate(14 {}) rotate(-90)">{}</text>'
            ).format(middle[1], titles[1])
        )
    return Markup("").join(parts)


def _line(frame: Frame, line: Line, *, dots: bool, what: Any = None) -> Markup:
    """A path that breaks where there is no value, and a dot that says its value at each point."""
    path, pen = [], "M"
    for x, y in line.points:
        if not math.isfinite(y):
            pen = "M"
            continue
        left, top = frame.at(x, y)
        path.append(f"{pen}{left:g} {top:g}")
        pen = "L"
    drawn = Markup('<path class="line{}" d="{}" style="stroke: {}"/>').format(
        " dashed" if line.dashed else "", " ".join(path), line.color
    )
    if not dots:
        return drawn
    say = what or (lambda x, y: f"epoch {x:g}: {y:.4g}")
    for x, y in line.points:
        if math.isfinite(y):
            left, top = frame.at(x, y)
            drawn += Markup(
                '<circle class="dot" cx="{}" cy="{}" r="{}" style="fill: {}"><title>{}</title></circle>'
            ).format(
                left,
                top,
                2.2 if len(line.points) <= 60 else 1.2,
                line.color,
                f"{line.name}, {say(x, y)}",
            )
    return drawn


def _right_at(confidence: float, accuracy: float) -> str:
    return f"at confidence {percent(confidence)}: {percent(accuracy)} right"


def _svg(
    parts: Sequence[Markup], label: str, size: tuple[int, int], style: str = ""
) -> Markup:
    head = Markup('<svg{} viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        Markup(f' class="{style}"') if style else "", *size, escape(label)
    )
    return head + Markup("").join(parts) + Markup("</svg>")
