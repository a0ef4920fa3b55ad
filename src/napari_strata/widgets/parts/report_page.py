"""Reports that the docks write."""

from __future__ import annotations

from pathlib import Path


def page_of(run: Path) -> Path:
    """Write the report of a run. It takes long, so call it in a thread."""
    from napari_strata.report.write import write_page

    return write_page(run)


def free_folder(folder: Path, name: str, what: str = "scores") -> Path:
    """Return `folder` if it is empty or missing, or a new folder in it."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    number = 1
    while (
        path := folder
        / (f"{what}-{name}" if number == 1 else f"{what}-{name}-{number}")
    ).exists():
        number += 1
    return path
