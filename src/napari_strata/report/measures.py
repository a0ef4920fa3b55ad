"""Page of a measurement: fractions with their intervals, and profiles."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from napari_strata.core.errors import RunError
from napari_strata.core.runs import MEASURES_FILE
from napari_strata.core.text import printable
from napari_strata.report import figures, html
from napari_strata.report.charts import Line, draw_lines
from napari_strata.report.shape import shape_sections


@dataclass(frozen=True)
class Row:
    """A class in the table of fractions."""

    name: str
    color: str
    count: str
    estimate: str
    interval: str
    why: str


@dataclass(frozen=True)
class Chart:
    """Profile of a class, with the band of its interval."""

    title: str
    drawing: Markup
    lines: tuple[Line, ...]


def render(folder: Path) -> str:
    """Render the page of a folder that `Measures.save` wrote.

    Raises
    ------
    RunError
        If its ``measures.json`` is damaged.
    """
    path = folder / MEASURES_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        about, fractions = facts["about"], facts["fractions"]
        rows = [
            _row(name, values, about["colors"][name])
            for name, values in fractions.items()
        ]
        return html.render(
            "measures.html",
            name=printable(about["labels"]),
            region=facts["region"],
            voxels=facts["voxels"],
            voxel_size=_format_size(about["voxel_size"], about["unit"]),
            rows=rows,
            charts=_draw_profiles(facts["profile"], about["colors"]),
            axis=facts["profile"].get("axis", ""),
            sections=shape_sections(facts),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: cannot be read as a measurement ({type(error).__name__}); measure"
            " the labels again."
        ) from None


def _row(name: str, values: dict[str, Any], color: str) -> Row:
    interval = figures.NONE
    estimate = figures.NONE
    if values["interval"] != "none":
        estimate = _percent(values["estimate"])
        interval = f"{_percent(values['low'])} to {_percent(values['high'])}"
    return Row(
        printable(name),
        color,
        _percent(values["count"]),
        estimate,
        interval,
        values["why"],
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _draw_profiles(profile: dict[str, Any], colors: dict[str, str]) -> list[Chart]:
    charts = []
    for name, columns in profile.get("fractions", {}).items():
        kinds = [("counted", "count", False)]
        if any(value is not None for value in columns["low"]):
            kinds = [
                ("estimate", "estimate", False),
                ("lower end of the interval", "low", True),
                ("upper end of the interval", "high", True),
            ]
        lines = tuple(
            Line(
                title,
                _points(profile["positions"], columns[key]),
                colors[name],
                dashed,
            )
            for title, key, dashed in kinds
        )
        if all(line.is_empty for line in lines):
            continue
        x_title = f"{profile['axis']} ({profile['unit']})"
        drawing = draw_lines(
            lines, label=f"{name} along {profile['axis']}, in percent", x_title=x_title
        )
        charts.append(Chart(f"{printable(name)} (%)", drawing, lines))
    return charts


def _points(
    positions: Sequence[float], values: Sequence[float | None]
) -> list[tuple[float, float]]:
    return [
        (x, math.nan if value is None else 100 * value)
        for x, value in zip(positions, values, strict=True)
    ]


def _format_size(sizes: dict[str, float], unit: str) -> str:
    """Format the size along each axis; empty when it is unknown."""
    if unit == "pixel" and set(sizes.values()) <= {1.0}:
        return ""
    return ", ".join(f"{axis} {size:g} {unit}" for axis, size in sizes.items())
