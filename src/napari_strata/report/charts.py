"""Charts of a page as SVG: lines over epochs, reliability diagrams, strips of dots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from napari_strata.core.text import format_percent

WIDTH, HEIGHT = 460, 250
"""Size of a chart of lines."""

LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40
"""Margins of the plot, for the numbers and names of the axes."""

MAX_DOTS = 1200
"""If a chart has more points, none of them has a dot that shows its value."""

RELIABILITY_SIDE = 330
"""Width and height of a reliability diagram."""

STRIP_WIDTH, STRIP_HEIGHT = 150, 18


@dataclass(frozen=True)
class Line:
    """A named line of a chart.

    Parameters
    ----------
    points
        Pairs (x, y); the line is broken at a y that is not finite.
    color
        CSS colour.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dashed: bool = False

    @property
    def is_empty(self) -> bool:
        """True if no point has a finite value."""
        return not any(math.isfinite(y) for _, y in self.points)


@dataclass(frozen=True)
class Frame:
    """Mapping from values to pixels; x grows to the right, y upwards."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def right(self) -> int:
        """Right edge of the plot in pixels."""
        return self.width - RIGHT

    @property
    def bottom(self) -> int:
        """Lower edge of the plot in pixels."""
        return self.height - BOTTOM

    def x(self, value: float) -> float:
        """Return the horizontal position of a value in pixels."""
        low, high = self.x_range
        share = (value - low) / ((high - low) or 1)
        return round(LEFT + share * (self.right - LEFT), 1)

    def y(self, value: float) -> float:
        """Return the vertical position of a value in pixels."""
        low, high = self.y_range
        share = (value - low) / ((high - low) or 1)
        return round(self.bottom - share * (self.bottom - TOP), 1)


def draw_lines(
    lines: Sequence[Line],
    *,
    label: str,
    mark: float | None = None,
    x_title: str = "epoch",
) -> Markup:
    """Draw lines over epochs, or over positions.

    Parameters
    ----------
    label
        Description for readers who cannot see the chart.
    x_title
        Name of the horizontal axis.
    mark
        Epoch with a dashed vertical line, the best one.
    """
    points = [point for line in lines for point in line.points]
    epochs = [x for x, _ in points]
    values = [y for _, y in points if math.isfinite(y)]
    y_ticks = nice_ticks(min(values), max(values))
    frame = Frame(
        (min(epochs), max(max(epochs), min(epochs) + (x_title == "epoch"))),
        (min(y_ticks[0], *values), max(y_ticks[-1], *values)),
    )
    first, last = frame.x_range
    x_ticks = []
    for tick in nice_ticks(first, last, count=8):
        if first <= tick <= last and (x_title != "epoch" or tick == round(tick)):
            x_ticks.append(tick)
    parts = _draw_axes(frame, x_ticks, y_ticks, x_title=x_title)
    if mark is not None and first <= mark <= last:
        parts += _draw_mark(frame, frame.x(mark))
    for line in lines:
        parts.append(_draw_path(frame, line))
        if len(points) <= MAX_DOTS:
            parts += _draw_dots(frame, line, lambda x, y: f"{x_title} {x:g}: {y:.4g}")
    return _svg(parts, label, (WIDTH, HEIGHT))


def draw_reliability(bins: dict[str, list[dict[str, Any]]], *, label: str) -> Markup:
    """Draw accuracy over confidence, above the share of pixels in each bin.

    Parameters
    ----------
    bins
        "before" and "after" the temperature, or "after" only: each a list of tables
        with low, high, confidence, accuracy and count.
    """
    frame = Frame((0.0, 1.0), (0.0, 1.0), RELIABILITY_SIDE, RELIABILITY_SIDE)
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = _draw_axes(frame, ticks, ticks, x_title="confidence", y_title="right")
    total = sum(row["count"] for row in bins["after"]) or 1
    for row in bins["after"]:
        share = row["count"] / total
        left, top = frame.x(row["low"]), frame.y(share)
        parts.append(
            _element(
                "rect",
                _element("title", f"{format_percent(share)} of the pixels"),
                class_="bar",
                x=round(left + 0.5, 1),
                y=top,
                width=round(frame.x(row["high"]) - left - 1, 1),
                height=round(frame.y(0) - top, 1),
            )
        )
    parts.append(
        _element(
            "line",
            class_="ideal",
            x1=frame.x(0),
            y1=frame.y(0),
            x2=frame.x(1),
            y2=frame.y(1),
        )
    )
    for name, color, dashed in (
        ("before", "var(--second)", True),
        ("after", "var(--first)", False),
    ):
        filled = [row for row in bins.get(name, []) if row["count"]]
        points = [(row["confidence"], row["accuracy"]) for row in filled]
        line = Line(name, points, color, dashed)
        parts.append(_draw_path(frame, line))
        parts += _draw_dots(frame, line, _accuracy_text)
    return _svg(parts, label, (RELIABILITY_SIDE, RELIABILITY_SIDE))


def draw_strip(
    values: Sequence[tuple[str, float]], *, span: tuple[float, float], label: str
) -> Markup:
    """Draw named values as dots on a line, and their mean as a tick.

    Parameters
    ----------
    span
        Values at the left and the right end of the line.
    """
    low, high = span
    middle = STRIP_HEIGHT / 2
    finite = [(name, value) for name, value in values if math.isfinite(value)]

    def position(value: float) -> float:
        share = (value - low) / ((high - low) or 1)
        return round(6 + share * (STRIP_WIDTH - 12), 1)

    parts = [
        _element("line", class_="grid", x1=6, x2=STRIP_WIDTH - 6, y1=middle, y2=middle)
    ]
    if finite:
        x = position(sum(value for _, value in finite) / len(finite))
        parts.append(
            _element("line", class_="axis", x1=x, x2=x, y1=2, y2=STRIP_HEIGHT - 2)
        )
    for name, value in finite:
        title = _element("title", f"{name}: {value:.3f}")
        parts.append(
            _element(
                "circle", title, class_="value", cx=position(value), cy=middle, r=3.5
            )
        )
    return _svg(parts, label, (STRIP_WIDTH, STRIP_HEIGHT), style="strip")


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers, equally spaced, that enclose a range."""
    if high <= low:
        pad = abs(low) / 2 or 1.0
        low, high = low - (pad if low < 0 else min(pad, low)), high + pad
    smallest_step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(smallest_step))
    step = 10 * power
    for factor in (1, 2, 5):
        if factor * power >= smallest_step * (1 - 1e-9):
            step = factor * power
            break
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _draw_axes(
    frame: Frame,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    *,
    x_title: str,
    y_title: str = "",
) -> list[Markup]:
    right, bottom = frame.right, frame.bottom
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(_element("line", class_="grid", x1=LEFT, x2=right, y1=y, y2=y))
        parts.append(_draw_text(f"{value:g}", LEFT - 7, y + 4, anchor="end"))
    for value in x_ticks:
        x = frame.x(value)
        parts.append(
            _element("line", class_="tickmark", x1=x, x2=x, y1=bottom, y2=bottom + 4)
        )
        parts.append(_draw_text(f"{value:g}", x, bottom + 17))
    parts.append(
        _element("line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom)
    )
    middle = (LEFT + right) / 2
    parts.append(_draw_text(x_title, middle, frame.height - 6, style="title"))
    if y_title:
        parts.append(
            _element(
                "text",
                y_title,
                class_="title",
                text_anchor="middle",
                transform=f"translate(14 {(TOP + bottom) / 2}) rotate(-90)",
            )
        )
    return parts


def _draw_mark(frame: Frame, x: float) -> list[Markup]:
    """Draw a dashed vertical line with the word "best" beside it."""
    line = _element("line", class_="mark", x1=x, x2=x, y1=TOP, y2=frame.bottom)
    if x > frame.width - 60:
        return [line, _draw_text("best", x - 4, TOP + 9, anchor="end")]
    return [line, _draw_text("best", x + 4, TOP + 9, anchor="start")]


def _draw_path(frame: Frame, line: Line) -> Markup:
    """Draw a line without its dots."""
    commands = []
    command = "M"  # move to
    for x, y in line.points:
        if not math.isfinite(y):
            command = "M"
            continue
        commands.append(f"{command}{frame.x(x):g} {frame.y(y):g}")
        command = "L"  # draw a line to
    return _element(
        "path",
        class_="line dashed" if line.dashed else "line",
        d=" ".join(commands),
        style=f"stroke: {line.color}",
    )


def _draw_dots(
    frame: Frame, line: Line, describe: Callable[[float, float], str]
) -> list[Markup]:
    """Draw a dot with its value at each point of a line."""
    radius = 2.2 if len(line.points) <= 60 else 1.2
    dots = []
    for x, y in line.points:
        if not math.isfinite(y):
            continue
        title = _element("title", f"{line.name}, {describe(x, y)}")
        dots.append(
            _element(
                "circle",
                title,
                class_="dot",
                cx=frame.x(x),
                cy=frame.y(y),
                r=radius,
                style=f"fill: {line.color}",
            )
        )
    return dots


def _accuracy_text(confidence: float, accuracy: float) -> str:
    return (
        f"at confidence {format_percent(confidence)}: {format_percent(accuracy)} right"
    )


def _draw_text(
    text: str, x: float, y: float, *, anchor: str = "middle", style: str = "tick"
) -> Markup:
    return _element("text", text, class_=style, x=x, y=y, text_anchor=anchor)


def _element(tag: str, content: str = "", **attributes: Any) -> Markup:
    """Return an SVG element; everything but `Markup` is escaped.

    Attributes are named ``class_`` for class and ``text_anchor`` for text-anchor.
    """
    pairs = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), value)
        for name, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(tag, pairs, content)


def _svg(
    parts: Sequence[Markup], label: str, size: tuple[int, int], style: str = ""
) -> Markup:
    attributes = {"class": style} if style else {}
    attributes["viewBox"] = f"0 0 {size[0]} {size[1]}"
    attributes["role"] = "img"
    attributes["aria-label"] = label
    return _element("svg", Markup("").join(parts), **attributes)
