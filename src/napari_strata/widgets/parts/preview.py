"""Pictures of the validation of a training: image, truth and prediction."""

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
NO_PICTURE_TEXT = (
    "No picture yet: after each epoch there is one of a validation image, its truth"
    " and its prediction."
)


@dataclass(frozen=True, eq=False)
class LoadedPicture:
    """Picture that was read.

    Parameters
    ----------
    files, index
        All pictures of the folder, and the index of this one.
    whole, panels
        The picture and its panels.
    """

    files: tuple[Path, ...]
    index: int
    whole: QImage | None
    panels: tuple[QImage, ...]

    def is_same(self, other: LoadedPicture) -> bool:
        """Return True if there is nothing new to show; pixels are not compared."""
        return (
            self.whole is other.whole
            and self.files == other.files
            and self.index == other.index
        )


class Preview(QWidget):
    """Widget with the pictures in a folder; arrows show those of earlier epochs."""

    shown = Signal()
    """Emitted when another picture or folder is shown."""
    nothing = NO_PICTURE_TEXT
    title, others = "Validation picture", "other epochs"
    ends = ("This is the first picture.", "This is the newest picture.")
    arrows = ("Picture of the previous epoch.", "Picture of the next epoch.")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._folder: Path | None = None
        self._shown: LoadedPicture | None = None
        self._selected: Path | None = None  # None means the newest
        self._busy = self._must_refresh = False
        self._large: LargePreview | None = None
        self.caption = QLabel()
        self.caption.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred
        )
        self.text = QLabel(self.nothing)
        self.text.setWordWrap(True)
        self.picture = Picture()
        self.picture.setCursor(Qt.CursorShape.PointingHandCursor)
        self.picture.setToolTip("Click to enlarge.")
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
        """Add a button beside the arrows."""
        layout = self._head.layout()
        assert layout is not None
        layout.addWidget(button)

    def set_folder(self, folder: Path | None) -> None:
        """Show the pictures of a folder, which may not exist yet; None for none."""
        if folder != self._folder:
            self._folder, self._shown, self._selected = folder, None, None
            self._show()
        self.refresh()

    def refresh(self) -> None:
        """Read the folder again, and show the newest picture.

        A picture of an earlier epoch that the user has chosen is kept.
        """
        if self._folder is None:
            return
        if self._busy:
            self._must_refresh = True
            return
        self._busy, self._must_refresh = True, False
        folder, epoch, before = self._folder, self._selected, self._shown
        threads.run(
            lambda: _read(self.files(folder), epoch, before),
            lambda picture: self._on_loaded(folder, picture),
            self._fail,
            owner=self,
        )

    def files(self, folder: Path) -> tuple[Path, ...]:
        """Return the pictures of a folder in their order; called in a thread."""
        return pictures(folder)

    def step(self, by: int) -> None:
        """Show the picture of an earlier (negative) or later epoch, if there is one."""
        if self._shown is None or not self._shown.files:
            return
        files = self._shown.files
        index = min(max(self._shown.index + by, 0), len(files) - 1)
        self._selected = None if index == len(files) - 1 else files[index]
        self.refresh()

    @property
    def index(self) -> int | None:
        """Index of the picture that is shown, or None."""
        return (
            None if self._shown is None or not self._shown.files else self._shown.index
        )

    @property
    def epoch(self) -> int | None:
        """Epoch of the picture that is shown, or None."""
        return (
            None
            if self._shown is None or not self._shown.files
            else epoch_of(self._shown.files[self._shown.index])
        )

    @property
    def whole(self) -> QImage | None:
        """Whole picture of the file, or None."""
        return self._shown.whole if self._shown else None

    def describe(self) -> str:
        """Describe the picture that is shown."""
        if self._shown is None or self.epoch is None:
            return ""
        newest = self._shown.index == len(self._shown.files) - 1
        return f"Epoch {self.epoch}" + (
            ", the newest" if newest else f" of {epoch_of(self._shown.files[-1])}"
        )

    def heading(self) -> str:
        """Return the heading of the picture."""
        return f"Validation after epoch {self.epoch}"

    def panels(
        self, images: tuple[QImage, ...]
    ) -> tuple[tuple[QImage, ...], tuple[str, ...]]:
        """Return the visible panels and their captions."""
        return images, PANELS if len(images) == len(PANELS) else ()

    def open_large(self) -> None:
        """Open a window with the whole picture, with scores and legend."""
        if self._large is None:
            self._large = LargePreview(self)
        self._large.show()
        self._large.raise_()
        self._large.activateWindow()

    def _on_loaded(self, folder: Path, picture: LoadedPicture) -> None:
        self._busy = False
        if folder == self._folder and not (
            self._shown is not None and picture.is_same(self._shown)
        ):
            self._shown = picture
            self._show()
        if self._must_refresh or folder != self._folder:
            self.refresh()

    def _fail(self, error: Exception) -> None:
        self._busy = False
        self.text.setText(f"The picture cannot be read: {error}")
        self.text.show()
        if self._must_refresh:
            self.refresh()

    def _show(self) -> None:
        view = self._shown
        has_picture = view is not None and bool(view.files)
        self._head.setVisible(has_picture)
        self.picture.setVisible(has_picture)
        self.text.setText(self.nothing)
        self.text.setVisible(not has_picture)
        if view is not None and has_picture:
            self.caption.setText(self.heading())
            self.caption.setToolTip(str(view.files[view.index]))
            self.picture.set_images(*self.panels(view.panels))
            first, last = view.index == 0, view.index == len(view.files) - 1
            _enable(self.back, self.ends[0] if first else "", self.arrows[0])
            _enable(self.forth, self.ends[1] if last else "", self.arrows[1])
        self.shown.emit()


class LargePreview(QWidget):
    """Window with the whole picture.

    The arrow keys show other pictures, Esc closes the window.
    """

    def __init__(self, preview: Preview) -> None:
        super().__init__(preview, Qt.WindowType.Window)
        # The background of the theme.
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
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
        """Return the size of the picture, limited by the screen."""
        whole, screen = self._preview.whole, self.screen()
        size = (whole.size() if whole else QSize(900, 500)) + QSize(16, 40)
        available = screen.availableGeometry().size() * 0.85 if screen else size
        return (
            size.scaled(available, Qt.AspectRatioMode.KeepAspectRatio)
            if not _fits(size, available)
            else size
        )

    def _show(self) -> None:
        whole, caption = self._preview.whole, self._preview.describe()
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
    """Return the epoch in the name of a picture."""
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures in a folder, the newest last."""
    return tuple(sorted(folder.glob("epoch_*.png"), key=epoch_of))


def _read(
    files: tuple[Path, ...], selected: Path | None, before: LoadedPicture | None
) -> LoadedPicture:
    if not files:
        return LoadedPicture((), 0, None, ())
    index = files.index(selected) if selected in files else len(files) - 1
    if (
        before is not None
        and before.files
        and before.files[before.index] == files[index]
    ):
        return replace(before, files=files, index=index)
    pixels = read_pixels(files[index])
    whole = to_image(pixels)
    return LoadedPicture(
        files,
        index,
        whole,
        tuple(to_image(panel) for panel in find_panels(pixels)) or (whole,),
    )


def _fits(size: QSize, available: QSize) -> bool:
    return size.width() <= available.width() and size.height() <= available.height()


def arrow(text: str) -> QToolButton:
    """Create a flat button beside a picture."""
    button = QToolButton()
    button.setText(text)
    button.setAutoRaise(True)
    return button


def _enable(button: QToolButton, why_not: str, tooltip: str) -> None:
    button.setEnabled(not why_not)
    button.setToolTip(why_not or tooltip)
