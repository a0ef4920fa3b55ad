"""Dock: what the three docks have in common.

A scrolling page, and a foot that is always in sight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from magicgui.widgets import ProgressBar, PushButton
from magicgui.widgets import Widget as MagicWidget
from magicgui.widgets.bases import ValueWidget
from napari.viewer import Viewer, current_viewer
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QApplication,
    QDockWidget,
    QFrame,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.errors import RunError
from napari_strata.widgets.parts import script
from napari_strata.widgets.parts.control import Control
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.work import threads

REST = 2500
"""Milliseconds between two looks of a progress bar.

In a window with an OpenGL canvas every change, however small, has the whole window
drawn again: 15 ms without a graphics card.
"""
WIDTH = 330
"""Pixels that a dock asks for; it works from 300."""


class Dock(QWidget):
    """Base of the docks.

    Subclasses fill the page with `add` and the foot with `add_to_foot`.
    """

    @classmethod
    def of(cls, viewer: Viewer | None) -> Self:
        """Return the dock of a viewer, or make it.

        None stands for the current viewer. A dock that was closed is there again as it
        was.
        """
        whole = viewer or current_viewer()
        if whole is None:
            raise RunError("found no viewer; open napari first.")
        dock = ViewerSession.of(whole).docks.get(cls)
        return dock if isinstance(dock, cls) else cls(whole)

    name = ""
    """Title of the tab."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.session = ViewerSession.of(viewer)
        self.session.docks[type(self)] = (
            self  # napari drops a dock that is closed; what runs in it goes on
        )
        self.viewer = (
            self.session.viewer
        )  # the viewer itself: what napari gives may be a proxy
        self._kept: list[
            Any
        ] = []  # magicgui widgets live as long as something in Python holds them
        page = QWidget()
        self._page = QVBoxLayout(page)
        self._page.setContentsMargins(6, 6, 6, 6)
        self._page.setSpacing(5)
        self._page.addStretch(1)
        self.scroller = scroll = QScrollArea()
        scroll.setWidget(page)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        foot = QWidget()
        self._foot = QVBoxLayout(foot)
        self._foot.setContentsMargins(6, 2, 6, 6)
        self._foot.setSpacing(4)
        self.notice = Notice()
        self._foot.addWidget(self.notice)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(0)
        whole.addWidget(scroll, 1)
        whole.addWidget(foot)
        self._place: QDockWidget | None = None
        self.session.closing.connect(self.leave)

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(WIDTH, 560)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(290, 200)

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        super().showEvent(event)
        if _frame(self) is not self._place:
            self._place = _frame(self)
            QTimer.singleShot(0, self._join)

    def _join(self) -> None:
        """Become a tab beside the other docks of ours.

        Napari's menus put a new dock below what is there.
        """
        try:
            window, own_frame = self.window(), _frame(self)
        except RuntimeError:  # closed before it was shown
            return
        if not isinstance(window, QMainWindow) or own_frame is None:
            return
        own_frame.setWindowTitle(
            self.name
        )  # napari's own name, with the plugin's in it, does not fit on a tab
        others = [
            _frame(dock) for dock in window.findChildren(Dock) if dock is not self
        ]
        beside = [
            frame for frame in others if frame is not None and not frame.isFloating()
        ]
        if beside and own_frame not in window.tabifiedDockWidgets(beside[0]):
            window.tabifyDockWidget(beside[-1], own_frame)
        own_frame.raise_()

    def come_forward(self) -> None:
        """Show this dock, before the others in its place."""
        if (frame := _frame(self)) is not None:
            frame.show()
            frame.raise_()

    def leave(self) -> None:
        """The viewer closes: listen no more."""

    def add(self, widget: QWidget | MagicWidget) -> None:
        """Put a widget at the end of the page."""
        self._page.insertWidget(self._page.count() - 1, self._native(widget))

    def add_to_foot(self, widget: QWidget | MagicWidget) -> None:
        """Put a widget at the end of the foot."""
        self._foot.addWidget(self._native(widget))

    def row(
        self, *widgets: QWidget | MagicWidget, stretch: int | None = None
    ) -> QWidget:
        """Put widgets in a row; number `stretch` takes the remaining width."""
        holder = QWidget()
        layout = QHBoxLayout(holder)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(5)
        for number, widget in enumerate(widgets):
            layout.addWidget(self._native(widget), int(number == stretch))
        return holder

    def button(
        self, text: str, action: Callable[[], Any], tooltip: str = ""
    ) -> PushButton:
        """A button that calls `action`."""
        button = PushButton(text=text, tooltip=tooltip)
        button.changed.connect(lambda _: action())
        self._kept.append(button)
        return button

    def copy_buttons(self, copy: Callable[[Callable[[Any], str], str], Any]) -> QWidget:
        """Make *Copy as Python* and *Copy as command*, which call `copy`."""
        python = self.button(
            "Copy as Python", lambda: copy(script.as_python, "The Python script")
        )
        command = self.button(
            "Copy as command", lambda: copy(script.as_command, "The command")
        )
        return self.row(python, command)

    def title(self, text: str) -> QLabel:
        """A heading on the page."""
        label = QLabel(text)
        font = label.font()
        font.setBold(True)
        label.setFont(font)
        return label

    def copy(self, text: str, what: str) -> None:
        """Put text on the clipboard, and say so."""
        clipboard = QApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(text)
        self.notice.show_message(f"{what} is on the clipboard.")

    def copy_later(self, make: Callable[[], str], what: str) -> None:
        """Put the text that `make`, called in a thread, gives on the clipboard.

        It may write layers first.
        """
        threads.run(
            make,
            lambda text: self.copy(text, what),
            lambda error: self.notice.show_message(
                f"The layers could not be written: {error}", "error"
            ),
            owner=self,
        )

    def _native(self, widget: QWidget | MagicWidget) -> QWidget:
        if isinstance(widget, QWidget):
            return widget
        self._kept.append(widget)
        native: QWidget = widget.native
        return native


def new_page() -> tuple[QWidget, QVBoxLayout]:
    """A widget to fill, and its rows."""
    page = QWidget()
    rows = QVBoxLayout(page)
    rows.setContentsMargins(2, 4, 2, 2)
    rows.setSpacing(5)
    return page, rows


def _frame(widget: QWidget) -> QDockWidget | None:
    """The dock widget of the window that holds a widget."""
    parent = widget.parentWidget()
    while parent is not None and not isinstance(parent, QDockWidget):
        parent = parent.parentWidget()
    return parent


class Notice(QLabel):
    """One message for the user, until the next.

    What went wrong and what to do, or what was done.
    """

    MARKS = {"info": "", "warning": "⚠ ", "error": "✗ "}

    def __init__(self) -> None:
        super().__init__()
        self.setWordWrap(True)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.level = ""
        self.hide()

    def show_message(self, text: str, level: str = "info") -> None:
        """Show `text`; an empty one clears the line."""
        self.level = level if text else ""
        self.setText(f"{self.MARKS[level]}{text}" if text else "")
        self.setVisible(bool(text))

    def clear(self) -> None:
        self.show_message("")


class Progress(QWidget):
    """A bar with a line of text under it; hidden when there is nothing to show."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = ProgressBar(value=0, min=0, max=100)
        self.text = QLabel()
        self.text.setWordWrap(True)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(2)
        rows.addWidget(self._bar.native)
        rows.addWidget(self.text)
        self._next: tuple[int, int, str] | None = None
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(REST)
        self._rest.timeout.connect(self._flush)
        self.hide()

    def show_step(self, done: int, total: int, text: str) -> None:
        """So much of so much; a total of 0 means that it cannot be known yet.

        Steps show at most once in `REST`.
        """
        self._next = (done, total, text)
        if not self._rest.isActive() or not self.isVisible():
            self._flush()

    def hideEvent(self, event: QHideEvent | None) -> None:  # noqa: N802 (Qt's name)
        super().hideEvent(event)
        self._rest.stop()
        self._next = None

    def _flush(self) -> None:
        if self._next is None:
            return
        done, total, text = self._next
        self._next = None
        # Not Qt's moving bar where the total is not known: it would have the window
        # drawn thirty times a second.
        total = total or 1
        self._rest.start()
        self.setUpdatesEnabled(
            False
        )  # Qt's bar would draw itself at once, and the text a second time
        if (self._bar.max, self._bar.value) != (total, min(done, total)):
            self._bar.max = total
            self._bar.value = min(done, total)
        self.text.setText(text)
        self.setUpdatesEnabled(True)
        self.show()


def draw(widget: ValueWidget[Any], control: Control) -> None:
    """Show the state of a control on its widget."""
    widget.enabled = control.enabled
    widget.tooltip = control.tooltip
    if widget.visible != control.visible:
        widget.visible = control.visible
