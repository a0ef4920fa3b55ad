"""Report pages that the docks write."""

from __future__ import annotations

from pathlib import Path


def page_of(run: Path) -> Path:
    """Write the report page of a run. Call it in a thread: it is slow."""
    from napari_strata.report.write import write_page

    return write_page(run)


def free_folder(folder: Path, name: str) -> Path:
    """`folder` if it is empty or not there yet, else a new one in it."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    number = 1
    while (
        path := folder
        / (f"scores-{name}" if number == 1 else f"scores-{name}-{number}")
    ).exists():
        number += 1
    return path
