"""Writing the page of a run, an evaluation, a study or a measurement."""

from __future__ import annotations

from pathlib import Path

from napari_strata.core.runs import MEASURES_FILE, CrossvalFolder, SearchFolder
from napari_strata.report import crossval, html, measures, search
from napari_strata.report import run as run_page


def write_page(run: str | Path, out: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about a run, a study or a measurement.

    Parameters
    ----------
    run
        Folder of a run, an evaluation, a cross-validation or a search: finished,
        stopped or in progress. Or a folder that `Measures.save` wrote.
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
    elif (folder / MEASURES_FILE).is_file():
        text = measures.render(folder)
    else:
        text = run_page.render(folder)
    path = folder / "report.html" if out is None else Path(out).expanduser()
    return html.write(path, text)
