"""Newest validation picture of a training: image, truth and prediction.

A click shows it larger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QImage, QKeySequence, QShortcut
from qtpy.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_strata.widgets.parts.picture import (
    Picture,
    find_panels,
    read_pixels,
    to_image,
)
from napari_strata.widgets.work import threads

PANELS = ("image", "truth", "prediction")
NOTHING = (
    "No picture yet: each epoch makes one of a validation image, its truth and its"
    " prediction."
)


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture that was read.

    All pictures there are, which one this is, the whole of it, and its panels.
    """

    files: tuple[Path, ...]
    index: int
    whole: QImage | None
    panels: tuple[QImage, ...]

    def is_same(self, other: Shown) -> bool:
        """Return True if there is nothing new to show; pixels are not compared."""
        return (
            self.whole is other.whole
            and self.files == other.files
            and self.index == other.index
        )


class Preview(QWidget):
    """The newest picture in a run's ``previews`` folder.

    Arrows lead to those of earlier epochs.
    """

    shown = Signal()  # another picture, or another folder
    nothing = NOTHING
    title, others = "Validation picture", "other epochs"
    ends = ("This is the first picture.", "This is the newest picture.")
    arrows = ("The picture of the epoch before.", "The picture of the next epoch.")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._folder: Path | None = None
        self._shown: Shown | None = None
        self._wanted: Path | None = None  # None: the newest
        self._busy = self._again = False
        self._large: LargePreview | None = None
        self.caption = QLabel()
        self.caption.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred
        )
        self.text = QLabel(self.nothing)
        self.text.setWordWrap(True)
        self.picture = Picture()
        self.picture.setCursor(Qt.CursorShape.PointingHandCursor)
        self.picture.setToolTip("Click to see it large.")
        self.picture.clicked.connect(self.open_large)
        self.back, self.forth = arrow("◀"), arrow("▶")
        self.back.clicked.connect(lambda: self.step(-1))
        self.forth.clicked.connect(lambda: self.step(1))
        self._head = QWidget()
        row = QHBoxLayout(self._head)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(3)
        row.addWidget(self.caption, 1)
        row.addWidget(self.back)
        row.addWidget(self.forth)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(3)
        for widget in (self._head, self.picture, self.text):
            rows.addWidget(widget)
        self._show()

    def add_button(self, button: QToolButton) -> None:
        """Put a button beside the arrows."""
        layout = self._head.layout()
        assert layout is not None
        layout.addWidget(button)

    def set_folder(self, folder: Path | None) -> None:
        """Show the pictures of a folder, which need not exist yet.

        None shows nothing.
        """
        if folder != self._folder:
            self._folder, self._shown, self._wanted = folder, None, None
            self._show()
        self.refresh()

    def refresh(self) -> None:
        """Look whether there is a newer picture.

        One of an earlier epoch that was stepped to stays.
        """
        if self._folder is None:
            return
        if self._busy:
            self._again = True
            return
        self._busy, self._again = True, False
        folder, epoch, before = self._folder, self._wanted, self._shown
        threads.run(
            lambda: _read(self.files(folder), epoch, before),
            lambda found: self._take(folder, found),
            self._fail,
            owner=self,
        )

    def files(self, folder: Path) -> tuple[Path, ...]:
        """The pictures of a folder in their order; called in a thread."""
        return pictures(folder)

    def step(self, by: int) -> None:
        """Go to the picture of an earlier (negative) or later epoch, as far as there
        are any.
        """
        if self._shown is None or not self._shown.files:
            return
        files = self._shown.files
        index = min(max(self._shown.index + by, 0), len(files) - 1)
        self._wanted = None if index == len(files) - 1 else files[index]
        self.refresh()

    @property
    def index(self) -> int | None:
        """Name the picture that is shown."""
        return (
            None if self._shown is None or not self._shown.files else self._shown.index
        )

    @property
    def epoch(self) -> int | None:
        """The epoch whose picture is shown."""
        return (
            None
            if self._shown is None or not self._shown.files
            else epoch_of(self._shown.files[self._shown.index])
        )

    @property
    def whole(self) -> QImage | None:
        """The picture as it is in its file."""
        return self._shown.whole if self._shown else None

    def words(self) -> str:
        """Describe the picture that is shown."""
        if self._shown is None or self.epoch is None:
            return ""
        newest = self._shown.index == len(self._shown.files) - 1
        return f"Epoch {self.epoch}" + (
            ", the newest" if newest else f" of {epoch_of(self._shown.files[-1])}"
        )

    def heading(self) -> str:
        """Heading over the picture."""
        return f"Validation after epoch {self.epoch}"

    def panels(
        self, found: tuple[QImage, ...]
    ) -> tuple[tuple[QImage, ...], tuple[str, ...]]:
        """Panels that are visible, with their captions."""
        return found, PANELS if len(found) == len(PANELS) else ()

    def open_large(self) -> None:
        """Open a window with the whole picture, its scores and legend.

        It follows what is shown here.
        """
        if self._large is None:
            self._large = LargePreview(self)
        self._large.show()
        self._large.raise_()
        self._large.activateWindow()

    def _take(self, folder: Path, found: Shown) -> None:
        self._busy = False
        if folder == self._folder and not (
            self._shown is not None and found.is_same(self._shown)
        ):
            self._shown = found
            self._show()
        if self._again or folder != self._folder:
            self.refresh()

    def _fail(self, error: Exception) -> None:
        self._busy = False
        self.text.setText(f"The picture cannot be read: {error}")
        self.text.show()
        if self._again:
            self.refresh()

    def _show(self) -> None:
        view = self._shown
        there = view is not None and bool(view.files)
        self._head.setVisible(there)
        self.picture.setVisible(there)
        self.text.setText(self.nothing)
        self.text.setVisible(not there)
        if view is not None and there:
            self.caption.setText(self.heading())
            self.caption.setToolTip(str(view.files[view.index]))
            self.picture.set_images(*self.panels(view.panels))
            first, last = view.index == 0, view.index == len(view.files) - 1
            _enable(self.back, self.ends[0] if first else "", self.arrows[0])
            _enable(self.forth, self.ends[1] if last else "", self.arrows[1])
        self.shown.emit()


class LargePreview(QWidget):
    """A window with the whole picture.

    Left and right step through the others, Esc closes.
    """

    def __init__(self, preview: Preview) -> None:
        super().__init__(preview, Qt.WindowType.Window)
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)  # the theme's
        self._preview = preview
        self.picture = Picture(fill=True)
        self.caption = QLabel()
        rows = QVBoxLayout(self)
        rows.setContentsMargins(8, 8, 8, 6)
        rows.addWidget(self.picture, 1)
        rows.addWidget(self.caption)
        keys = (
            (Qt.Key.Key_Escape, self.close),
            (Qt.Key.Key_Left, lambda: preview.step(-1)),
        )
        for key, action in (*keys, (Qt.Key.Key_Right, lambda: preview.step(1))):
            QShortcut(QKeySequence(key), self).activated.connect(action)
        preview.shown.connect(self._show)
        self._show()
        self.resize(self._fitting())

    def _fitting(self) -> QSize:
        """The picture's own size, as far as the screen has room for it."""
        whole, screen = self._preview.whole, self.screen()
        size = (whole.size() if whole else QSize(900, 500)) + QSize(16, 40)
        room = screen.availableGeometry().size() * 0.85 if screen else size
        return (
            size.scaled(room, Qt.AspectRatioMode.KeepAspectRatio)
            if not _fits(size, room)
            else size
        )

    def _show(self) -> None:
        whole, caption = self._preview.whole, self._preview.words()
        self.picture.set_images((whole,) if whole is not None else (), ())
        title, others = self._preview.title, self._preview.others
        self.caption.setText(
            f"{caption}.   ← → {others}, Esc closes"
            if caption
            else self._preview.nothing
        )
        self.setWindowTitle(
            f"{title}: {caption[:1].lower()}{caption[1:]}" if caption else title
        )


def epoch_of(path: Path) -> int:
    """The epoch in the name of a picture."""
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def pictures(folder: Path) -> tuple[Path, ...]:
    """The pictures in a folder, the newest last."""
    return tuple(sorted(folder.glob("epoch_*.png"), key=epoch_of))


def _read(files: tuple[Path, ...], wanted: Path | None, before: Shown | None) -> Shown:
    if not files:
        return Shown((), 0, None, ())
    index = files.index(wanted) if wanted in files else len(files) - 1
    if (
        before is not None
        and before.files
        and before.files[before.index] == files[index]
    ):
        return replace(before, files=files, index=index)
    pixels = read_pixels(files[index])
    whole = to_image(pixels)
    return Shown(
        files,
        index,
        whole,
        tuple(to_image(panel) for panel in find_panels(pixels)) or (whole,),
    )


def _fits(size: QSize, room: QSize) -> bool:
    return size.width() <= room.width() and size.height() <= room.height()


def arrow(text: str) -> QToolButton:
    """A flat button beside a picture."""
    button = QToolButton()
    button.setText(text)
    button.setAutoRaise(True)
    return button


def _enable(button: QToolButton, why_not: str, tooltip: str) -> None:
    button.setEnabled(not why_not)
    button.setToolTip(why_not or tooltip)
