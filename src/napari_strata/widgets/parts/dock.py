"""Base class of the docks: a scrolling page, and a foot that is always visible."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any, Self

from magicgui.widgets import ProgressBar, PushButton
from magicgui.widgets import Widget as MagicWidget
from magicgui.widgets.bases import ValueWidget
from napari.utils import progress
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
from napari_strata.widgets.parts.help import show_help
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.work import threads

STEP_INTERVAL_MS = 2500
"""Milliseconds between two updates of a progress bar.

In a window with an OpenGL canvas every change redraws the whole window, which takes
15 ms without a graphics card.
"""
WIDTH_PX = 330
"""Preferred width of a dock in pixels; at least 300 are needed."""


class Dock(QWidget):
    """Base class of the docks.

    Subclasses fill the page with `add` and the foot with `add_to_foot`.
    """

    @classmethod
    def of(cls, viewer: Viewer | None) -> Self:
        """Return the dock of a viewer; create it at the first call.

        None means the current viewer. A dock that was closed keeps its state.
        """
        viewer = viewer or current_viewer()
        if viewer is None:
            raise RunError("found no viewer; open napari first.")
        dock = ViewerSession.of(viewer).docks.get(cls)
        return dock if isinstance(dock, cls) else cls(viewer)

    name = ""
    """Title of the tab."""
    steps: tuple[str, ...] = ()
    """What to do in this dock, in order, for its help."""
    manual_page = "README.md"
    """Page of the manual about this dock."""
    shortcuts: tuple[tuple[str, str], ...] = ()
    """Keys of this dock and what they do, for its help."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self.session = ViewerSession.of(viewer)
        # A dock that is closed is kept here, and its jobs continue.
        self.session.docks[type(self)] = self
        # The viewer itself; the argument may be a proxy.
        self.viewer = self.session.viewer
        # magicgui widgets exist only while Python has a reference.
        self._magic_widgets: list[Any] = []
        page = QWidget()
        self._page = QVBoxLayout(page)
        self._page.setContentsMargins(6, 6, 6, 6)
        self._page.setSpacing(5)
        self._page.addStretch(1)
        self.help_button = self.button(
            "Help", self.show_help, "Steps, keys, and a link to the manual."
        )
        self._page.addWidget(self.help_button.native)
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
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(scroll, 1)
        column.addWidget(foot)
        self._dock_widget: QDockWidget | None = None
        self.session.closing.connect(self.leave)

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(WIDTH_PX, 560)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(290, 200)

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        super().showEvent(event)
        if _dock_widget_of(self) is not self._dock_widget:
            self._dock_widget = _dock_widget_of(self)
            QTimer.singleShot(0, self._tabify)

    def _tabify(self) -> None:
        """Make the dock a tab beside the other docks of this plugin.

        napari's menus place a new dock below the others.
        """
        try:
            window, own_frame = self.window(), _dock_widget_of(self)
        except RuntimeError:  # closed before it was shown
            return
        if not isinstance(window, QMainWindow) or own_frame is None:
            return
        # napari's title contains the name of the plugin and is too long for a tab.
        own_frame.setWindowTitle(self.name)
        others = [
            _dock_widget_of(dock)
            for dock in window.findChildren(Dock)
            if dock is not self
        ]
        beside = [
            frame for frame in others if frame is not None and not frame.isFloating()
        ]
        if beside and own_frame not in window.tabifiedDockWidgets(beside[0]):
            window.tabifyDockWidget(beside[-1], own_frame)
        own_frame.raise_()

    def come_forward(self) -> None:
        """Show this dock in front of the other tabs."""
        if (frame := _dock_widget_of(self)) is not None:
            frame.show()
            frame.raise_()

    def show_help(self) -> None:
        """Open the help of this dock."""
        show_help(self, self.steps, self.manual_page, self.shortcuts)

    def leave(self) -> None:
        """Disconnect from the viewer, when it closes."""

    def add(self, widget: QWidget | MagicWidget) -> None:
        """Put a widget at the end of the page, above the help."""
        self._page.insertWidget(self._page.count() - 2, self._native(widget))

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
        """Create a button that calls `action`."""
        button = PushButton(text=text, tooltip=tooltip)
        button.changed.connect(lambda _: action())
        self._magic_widgets.append(button)
        return button

    def copy_buttons(self, copy: Callable[[Callable[[Any], str], str], Any]) -> QWidget:
        """Create the buttons *Copy as Python* and *Copy as command*."""
        python = self.button(
            "Copy as Python", lambda: copy(script.as_python, "The Python script")
        )
        command = self.button(
            "Copy as command", lambda: copy(script.as_command, "The command")
        )
        return self.row(python, command)

    def title(self, text: str) -> QLabel:
        """Create a heading."""
        label = QLabel(text)
        font = label.font()
        font.setBold(True)
        label.setFont(font)
        return label

    def copy(self, text: str, subject: str) -> None:
        """Put text on the clipboard, and show a message."""
        clipboard = QApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(text)
        self.notice.show_message(f"{subject} is on the clipboard.")

    def copy_later(self, make: Callable[[], str], subject: str) -> None:
        """Call `make` in a thread, and put its text on the clipboard.

        `make` may write layers.
        """
        threads.run(
            make,
            lambda text: self.copy(text, subject),
            lambda error: self.notice.show_message(
                f"The layers could not be written: {error}", "error"
            ),
            owner=self,
        )

    def _native(self, widget: QWidget | MagicWidget) -> QWidget:
        if isinstance(widget, QWidget):
            return widget
        self._magic_widgets.append(widget)
        native: QWidget = widget.native
        return native


def new_page() -> tuple[QWidget, QVBoxLayout]:
    """Create a widget with a vertical layout."""
    page = QWidget()
    rows = QVBoxLayout(page)
    rows.setContentsMargins(2, 4, 2, 2)
    rows.setSpacing(5)
    return page, rows


def _dock_widget_of(widget: QWidget) -> QDockWidget | None:
    """Return the dock widget that contains a widget, or None."""
    parent = widget.parentWidget()
    while parent is not None and not isinstance(parent, QDockWidget):
        parent = parent.parentWidget()
    return parent


class Notice(QLabel):
    """Line with the last message for the user."""

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
        """Show `text`; an empty text hides the line."""
        self.level = level if text else ""
        self.setText(f"{self.MARKS[level]}{text}" if text else "")
        self.setVisible(bool(text))

    def clear(self) -> None:
        self.show_message("")


class Progress(QWidget):
    """Progress bar with a line of text; hidden if nothing runs.

    napari shows the same progress under *activity*, with the text `subject`.
    """

    def __init__(self, subject: str) -> None:
        super().__init__()
        self._subject = subject
        self._activity: progress | None = None
        self._makes_activity = False
        self._bar = ProgressBar(value=0, min=0, max=100)
        self.text = QLabel()
        self.text.setWordWrap(True)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(2)
        rows.addWidget(self._bar.native)
        rows.addWidget(self.text)
        self._next: tuple[int, int, str] | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(STEP_INTERVAL_MS)
        self._timer.timeout.connect(self._flush)
        self._activity_timer = QTimer(self)
        self._activity_timer.setSingleShot(True)
        self._activity_timer.timeout.connect(self._show_activity)
        self.hide()

    def show_step(self, done: int, total: int, text: str) -> None:
        """Show progress; a total of 0 means that it is unknown.

        There are at least `STEP_INTERVAL_MS` between two updates.
        """
        self._next = (done, total, text)
        if not self._timer.isActive() or not self.isVisible():
            self._flush()

    def hideEvent(self, event: QHideEvent | None) -> None:  # noqa: N802 (Qt's name)
        super().hideEvent(event)
        self._timer.stop()
        self._next = None
        if self.isHidden():
            self._end_activity()

    def _flush(self) -> None:
        if self._next is None:
            return
        done, total, text = self._next
        self._next = None
        # Not Qt's moving bar for an unknown total, because it redraws the window thirty
        # times a second.
        total = total or 1
        self._timer.start()
        # Otherwise bar and text would be drawn separately.
        self.setUpdatesEnabled(False)
        if (self._bar.max, self._bar.value) != (total, min(done, total)):
            self._bar.max = total
            self._bar.value = min(done, total)
        self.text.setText(text)
        self.setUpdatesEnabled(True)
        self.show()
        # Later, because napari processes all events when it adds a bar.
        self._activity_timer.start()

    def _end_activity(self) -> None:
        if self._activity is not None:
            self._activity.close()
            self._activity = None

    def _show_activity(self) -> None:
        """Show the progress under napari's *activity*."""
        if self.isHidden() or self._makes_activity:
            return
        if self._activity is None:
            # napari processes all events meanwhile, also the end of a job. Without a
            # file the progress would be printed, too.
            self._makes_activity = True
            self._activity = progress(
                total=self._bar.max, desc=self._subject, file=StringIO()
            )
            self._makes_activity = False
            if self.isHidden():
                self._end_activity()
                return
        if self._activity.total != self._bar.max:
            self._activity.total = self._bar.max
        self._activity.update(self._bar.value - self._activity.n)


def draw(widget: ValueWidget[Any], control: Control) -> None:
    """Apply the state of a control to its widget."""
    widget.enabled = control.enabled
    widget.tooltip = control.tooltip
    # `visible` is False for every widget of a window that is not shown yet.
    if widget.native.isHidden() == control.visible:
        widget.visible = control.visible
