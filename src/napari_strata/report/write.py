"""Writing the page of a run, an evaluation, a cross-validation or a search."""

from __future__ import annotations

from pathlib import Path

from napari_strata.core.runs import CrossvalFolder, SearchFolder
from napari_strata.report import crossval, html, search
from napari_strata.report import run as run_page


def write_page(run: str | Path, out: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about a run or a study; return its path.

    Parameters
    ----------
    run
        Folder of a run, an evaluation, a cross-validation or a search: finished,
        stopped or in progress.
    out
        The page; ``report.html`` in the folder when left out. An earlier page is
        replaced.

    Raises
    ------
    RunError
        If the folder is none of these or damaged, `out` is another file, or it cannot
        be written.
    """
    folder = Path(run).expanduser()
    if CrossvalFolder(folder).exists:
        text = crossval.render(folder)
    elif SearchFolder(folder).exists:
        text = search.render(folder)
    else:
        text = run_page.render(folder)
    path = folder / "report.html" if out is None else Path(out).expanduser()
    return html.write(path, text)
