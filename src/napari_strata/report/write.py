"""Write: the page of whatever a folder holds: a run, an evaluation, a cross-validation or a search."""

from __future__ import annotations

from pathlib import Path

from napari_strata.core.runs import CrossvalFolder, SearchFolder
from napari_strata.report import crossval, html, search
from napari_strata.report.run import render as render_run


def write_page(run: str | Path, out: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about a run or a study, as far as it came, and return its path.

    Parameters
    ----------
    run
        a run folder, or that of a cross-validation or a search: finished, stopped or under way; or a folder that an
        evaluation wrote.
    out
        the page; ``report.html`` in `run` when left out. A page written before is replaced.

    Raises
    ------
    RunError
        when `run` is none of these or damaged, `out` is a file of something else, or it cannot be written.
    """
    folder = Path(run).expanduser()
    if CrossvalFolder(folder).exists:
        text = crossval.render(folder)
    elif SearchFolder(folder).exists:
        text = search.render(folder)
    else:
        text = render_run(folder)
    return html.write(
        folder / "report.html" if out is None else Path(out).expanduser(), text
    )
