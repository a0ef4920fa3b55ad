"""Sections of a page with measures of shape: tables and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from napari_strata.core.text import printable
from napari_strata.report.charts import Line, draw_lines
from napari_strata.report.measure_tables import (
    ROCK,
    TOPICS,
    CurvesContent,
    TableContent,
    topic_content,
)


@dataclass(frozen=True)
class ShapeChart:
    """Chart with its legend."""

    title: str
    drawing: Markup
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Section:
    """Section of the page; `why` says why there is nothing to show."""

    name: str
    title: str
    about: str
    why: str
    table: TableContent | None
    chart: ShapeChart | None


def shape_sections(measures: Mapping[str, Any]) -> list[Section]:
    """Return the sections for the content of ``measures.json``."""
    if "chords" not in measures:
        return []
    sections = []
    for topic in TOPICS:
        if topic == ROCK and ROCK_KEY not in measures:
            continue
        content = topic_content(measures, topic)
        chart = None
        if content.curves is not None:
            chart = _draw(content.curves)
        name = topic.lower().replace(" ", "-")
        sections.append(
            Section(name, topic, content.explanation, content.why, content.table, chart)
        )
    return sections


ROCK_KEY = "rock"
"""Key of ``measures.json`` that exists if it was asked for."""


def _draw(content: CurvesContent) -> ShapeChart | None:
    lines = []
    for curve in content.curves:
        points = list(zip(curve.xs, curve.ys, strict=True))
        if any(math.isfinite(y) for _, y in points):
            lines.append(Line(printable(curve.name), points, curve.color))
    if not lines:
        return None
    drawing = draw_lines(lines, label=content.y_title, x_title=content.x_title)
    return ShapeChart(content.y_title, drawing, tuple(lines))
