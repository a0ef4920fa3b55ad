"""Pages from templates: one file each, which opens without a network."""

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
"""Tag of the pages of this program; only such files are replaced."""


def render(template: str, **context: Any) -> str:
    """Render a page of ``templates``; everything that a person typed is escaped."""
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = _environment().get_template(template)
    return page.render(context, mark=Markup(MARK), written=written, version=_version())


def write(path: Path, text: str) -> Path:
    """Write a page and return its path.

    Raises
    ------
    RunError
        If `path` is a folder or another file, or cannot be written.
    """
    if path.is_dir():
        raise RunError(
            f"{path}: found a folder where the page is to be written; give the name of "
            "an HTML file."
        )
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(2000)
        if MARK.encode() not in start:
            raise RunError(
                f"{path}: found another file here, which is not replaced; choose "
                "another name."
            )
    files.write_text(path, text)
    return path


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
    environment.filters["count"] = "{:,}".format
    environment.filters["duration"] = figures.duration
    return environment
