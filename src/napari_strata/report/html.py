"""HTML: a page from a template, as one file that opens anywhere without a network, and writes over no other file."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.report import figures

MARK = '<meta name="generator" content="napari-strata">'
"""What says that a page is ours and may be written anew."""


def render(template: str, **context: Any) -> str:
    """A page of ``templates`` as text. Everything that a person typed is escaped."""
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = _environment().get_template(template)
    return page.render(context, mark=Markup(MARK), written=written, version=_version())


def write(place: Path, text: str) -> Path:
    """Write a page and return its path.

    Raises
    ------
    RunError
        when `place` is a folder or a file of something else, or cannot be written.
    """
    if place.is_dir():
        raise RunError(
            f"{place}: found a folder where the page is to be written; give the name of an HTML file."
        )
    if place.is_file():
        with open(place, "rb") as file:
            ours = MARK.encode() in file.read(2000)
        if not ours:
            raise RunError(
                f"{place}: found another file here, which is not replaced; choose another name."
            )
    files.write_text(place, text)
    return place


def _version() -> str:
    try:
        return version("napari-strata")
    except PackageNotFoundError:
        return ""


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("napari_strata.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = figures.share
    environment.filters["number"] = figures.number
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["duration"] = figures.duration
    return environment
