"""Help of a dock: steps, keyboard shortcuts, and the page of the manual."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QDialogButtonBox, QLabel, QVBoxLayout, QWidget

MANUAL = "https://github.com/napari-strata/napari-strata/blob/main/"
"""Address of the manual, to which the name of a page is added."""
WIDTH_PX = 420


def show_help(
    parent: QWidget,
    steps: Sequence[str],
    page: str,
    shortcuts: Iterable[tuple[str, str]] = (),
) -> None:
    """Open a window with the help of a dock.

    Parameters
    ----------
    parent
        The dock.
    steps
        What to do, in order.
    page
        Path of the page of the manual, such as ``docs/painting.md``.
    shortcuts
        Keys and what they do.
    """
    dialog = QDialog(parent)
    dialog.setWindowTitle("Help")
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    text = QLabel(help_text(steps, page, shortcuts))
    text.setTextFormat(Qt.TextFormat.RichText)
    text.setWordWrap(True)
    text.setOpenExternalLinks(True)
    text.setMinimumWidth(WIDTH_PX)
    buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
    buttons.rejected.connect(dialog.close)
    rows = QVBoxLayout(dialog)
    rows.addWidget(text)
    rows.addWidget(buttons)
    dialog.show()


def help_text(
    steps: Sequence[str], page: str, shortcuts: Iterable[tuple[str, str]] = ()
) -> str:
    """Return the help of a dock as HTML."""
    items = "".join(f"<li>{escape(step)}</li>" for step in steps)
    keys = "".join(
        f"<tr><td><b>{escape(key)}</b>&nbsp;&nbsp;</td><td>{escape(text)}</td></tr>"
        for key, text in shortcuts
    )
    table = f"<p><b>Keys</b></p><table>{keys}</table>" if keys else ""
    link = f'<p><a href="{MANUAL}{page}">Open the manual at this page</a></p>'
    return f"<ol>{items}</ol>{table}{link}"
