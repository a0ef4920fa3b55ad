"""List of recent runs to choose a model, with picture, classes, date, score and size.

Runs can be deleted from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from qtpy.QtCore import QModelIndex, QRect, QRectF, QSize, Qt, Signal
from qtpy.QtGui import (
    QAction,
    QColor,
    QFont,
    QFontMetrics,
    QImage,
    QKeySequence,
    QPainter,
    QPainterPath,
    QPalette,
)
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QMessageBox,
    QSizePolicy,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.files import LAYERS, measure_size
from napari_strata.core.locks import find_writer
from napari_strata.core.run_list import (
    RunSummary,
    check_deletable,
    delete_run,
    last_events,
    list_runs,
)
from napari_strata.core.text import format_bytes, format_count
from napari_strata.widgets.parts.colors import faded
from napari_strata.widgets.parts.picture import find_panels, read_pixels, to_image
from napari_strata.widgets.work import threads

__all__ = ["RunList", "RunSummary", "last_events", "list_runs"]

NO_RUNS_TEXT = "No models yet: train one in the Train dock, or open a model file."
SUMMARY = Qt.ItemDataRole.UserRole
THUMBNAIL = Qt.ItemDataRole.UserRole + 1
FACTS = Qt.ItemDataRole.UserRole + 2
THUMBNAIL_SIDE_PX = 128
"""Side of a thumbnail in pixels, twice the displayed size on most screens."""
PADDING_PX = 5
VISIBLE_ROWS = 3
"""Number of visible runs; others can be scrolled to."""
MAX_SWATCHES = 6
MONTHS = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)


class FolderContent(NamedTuple):
    """Content of a folder: runs, their thumbnails, and their sizes in bytes."""

    runs: list[RunSummary]
    thumbnails: dict[tuple[Path, int], QImage | None]
    sizes: dict[Path, int]


class RunList(QWidget):
    """List of runs with a model, the newest first, of which one can be chosen."""

    chosen = Signal(object)
    """Emitted with the path of a run that the user has chosen."""
    deleted = Signal(object)
    """Emitted with the path of a run that the user has deleted."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._folder: Path | None = None
        self._selected: Path | None = None
        self._busy = self._must_refresh = False
        self._thumbnails: dict[tuple[Path, int], QImage | None] = {}
        self._runs: list[RunSummary] = []
        self.text = QLabel(NO_RUNS_TEXT)
        self.text.setWordWrap(True)
        self.list = QListWidget()
        self.list.setItemDelegate(_Delegate(self.list))
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.list.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setResizeMode(QListWidget.ResizeMode.Adjust)
        self.list.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.list.setAccessibleName("Recent models")
        self.list.itemSelectionChanged.connect(self._on_choice)
        self.delete_action = QAction("Delete ...", self.list)
        self.delete_action.setShortcut(QKeySequence.StandardKey.Delete)
        self.delete_action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        self.delete_action.triggered.connect(self.ask_to_delete)
        self.list.addAction(self.delete_action)
        self._update_action()
        self.list.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.addWidget(self.text)
        rows.addWidget(self.list)
        self.list.hide()

    def set_folder(self, folder: Path | None) -> None:
        """List the runs of a folder, which need not exist yet."""
        self._folder = folder
        self.refresh()

    def refresh(self) -> None:
        """Read the folder again in a thread; the choice is kept."""
        if self._busy:
            self._must_refresh = True
            return
        self._busy, self._must_refresh = True, False
        folder, thumbnails = self._folder, dict(self._thumbnails)
        threads.run(
            lambda: _read_folder(folder, thumbnails),
            self._on_content,
            lambda _error: self._on_read(),
            owner=self,
        )

    def select(self, path: Path | None) -> None:
        """Select a run, now or when it appears, without a signal.

        For a path that is not listed, no run is selected.
        """
        self._selected = path
        self._mark()

    def selected(self) -> Path | None:
        """Return the selected run, or None."""
        items = self.list.selectedItems()
        return items[0].data(SUMMARY).path if items else None

    def runs(self) -> list[RunSummary]:
        """Return the listed runs."""
        return list(self._runs)

    def ask_to_delete(self) -> None:
        """Ask whether the selected run is to be deleted, and delete it.

        Its size is counted in a thread first.
        """
        path = self.selected()
        if path is None:
            return
        threads.run(
            lambda: measure_size(check_deletable(path)),
            lambda size: self._confirm(path, size),
            self._show_problem,
            owner=self,
        )

    def _confirm(self, path: Path, size: int) -> None:
        box = self._box(f"Delete {path.name} ({format_bytes(size)})?")
        text = f"The folder {path} cannot be restored."
        if (path / LAYERS).is_dir():
            text += " It also has the labels that were painted for this run."
        box.setInformativeText(text)
        button = box.addButton("Delete", QMessageBox.ButtonRole.DestructiveRole)
        box.setDefaultButton(box.addButton(QMessageBox.StandardButton.Cancel))
        assert button is not None
        button.clicked.connect(lambda: self._delete(path))
        box.open()

    def _delete(self, path: Path) -> None:
        threads.run(
            lambda: delete_run(path),
            lambda _: self._on_deleted(path),
            self._show_problem,
            owner=self,
        )

    def _on_deleted(self, path: Path) -> None:
        self.deleted.emit(path)
        self.refresh()

    def _show_problem(self, error: Exception) -> None:
        self._box(str(error)).open()

    def _box(self, text: str) -> QMessageBox:
        box = QMessageBox(self)
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        box.setText(text)
        return box

    def _on_content(self, content: FolderContent) -> None:
        self._thumbnails = content.thumbnails
        self._runs = content.runs
        self.list.blockSignals(True)
        while self.list.count() > len(content.runs):
            self.list.takeItem(self.list.count() - 1)
        for row, run in enumerate(content.runs):
            item = self.list.item(row) or QListWidgetItem(self.list)
            item.setData(SUMMARY, run)
            item.setData(
                THUMBNAIL, content.thumbnails.get(key) if (key := _key(run)) else None
            )
            facts = describe_facts(run, size=content.sizes.get(run.path))
            item.setData(FACTS, facts)
            item.setData(
                Qt.ItemDataRole.AccessibleTextRole,
                ", ".join((run.name, describe_classes(run), facts)),
            )
            item.setToolTip(tooltip(run))
        self.list.blockSignals(False)
        self.text.setVisible(not content.runs)
        self.list.setVisible(bool(content.runs))
        self._fit()
        self._mark()
        self._on_read()

    def _on_read(self) -> None:
        self._busy = False
        if self._must_refresh:
            self.refresh()

    def _mark(self) -> None:
        self.list.blockSignals(True)
        self.list.clearSelection()
        self.list.setCurrentItem(None)
        for row, run in enumerate(self._runs):
            if self._selected is not None and run.path == self._selected:
                self.list.setCurrentRow(row)
                self.list.scrollToItem(self.list.item(row))
        self.list.blockSignals(False)
        self.list.viewport().update()
        self._update_action()

    def _update_action(self) -> None:
        items = self.list.selectedItems()
        run = items[0].data(SUMMARY) if items else None
        self.delete_action.setEnabled(run is not None and not run.is_running)
        self.delete_action.setToolTip(
            "Select a run in the list to delete its folder."
            if run is None
            else f"{run.name} is in training and cannot be deleted."
            if run.is_running
            else f"Delete the folder {run.path}"
        )

    def _on_choice(self) -> None:
        self._update_action()
        path = self.selected()
        if path is not None:
            self._selected = path
            self.chosen.emit(path)

    def _fit(self) -> None:
        """Set the height to that of the runs, up to `VISIBLE_ROWS`."""
        count = min(self.list.count(), VISIBLE_ROWS)
        # A part of another row shows that the list continues.
        visible_rows = count + (0.4 if self.list.count() > VISIBLE_ROWS else 0)
        row = self.list.sizeHintForRow(0) if count else 0
        self.list.setFixedHeight(
            round(visible_rows * row) + 2 * self.list.frameWidth() + 2
        )


class _Delegate(QStyledItemDelegate):
    """Delegate that draws a run with thumbnail, name, classes, date and score."""

    def sizeHint(self, option: QStyleOptionViewItem, _index: QModelIndex) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(200, round(3 * option.fontMetrics.lineSpacing() + 2 * PADDING_PX))

    def paint(
        self, painter: QPainter | None, option: QStyleOptionViewItem, index: QModelIndex
    ) -> None:
        if painter is None:
            return
        run, picture = index.data(SUMMARY), index.data(THUMBNAIL)
        chosen = QStyleOptionViewItem(option)
        self.initStyleOption(chosen, index)
        chosen.text = ""
        widget = option.widget
        style = widget.style() if widget is not None else QApplication.style()
        if style is not None:
            style.drawControl(
                QStyle.ControlElement.CE_ItemViewItem, chosen, painter, widget
            )
        is_selected = bool(option.state & QStyle.StateFlag.State_Selected)
        role = (
            QPalette.ColorRole.HighlightedText
            if is_selected
            else QPalette.ColorRole.Text
        )
        ink = chosen.palette.color(role)
        painter.save()
        painter.setRenderHints(
            QPainter.RenderHint.Antialiasing | QPainter.RenderHint.SmoothPixmapTransform
        )
        inside = option.rect.adjusted(PADDING_PX, PADDING_PX, -PADDING_PX, -PADDING_PX)
        _draw_thumbnail(
            painter,
            QRect(inside.topLeft(), QSize(inside.height(), inside.height())),
            picture,
            ink,
        )
        place = inside.adjusted(inside.height() + 8, 0, 0, 0)
        _draw_text(painter, place, run, index.data(FACTS), ink)
        painter.restore()


def _draw_thumbnail(
    painter: QPainter, place: QRect, picture: QImage | None, ink: QColor
) -> None:
    path = QPainterPath()
    path.addRoundedRect(QRectF(place), 3, 3)
    if picture is None:
        painter.fillPath(path, faded(ink, 0.12))
        return
    painter.save()
    painter.setClipPath(path)
    painter.drawImage(place, picture)
    painter.restore()


def _draw_text(
    painter: QPainter, place: QRect, run: RunSummary, facts: str, ink: QColor
) -> None:
    plain, bold = QFont(painter.font()), QFont(painter.font())
    bold.setBold(True)
    line = QFontMetrics(plain).lineSpacing()
    left = int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)

    def write(
        number: int, text: str, *, font: QFont, opacity: float, indent: int = 0
    ) -> None:
        area = QRect(
            place.left() + indent,
            place.top() + number * line,
            place.width() - indent,
            line,
        )
        painter.setFont(font)
        painter.setPen(faded(ink, opacity))
        middle = (
            Qt.TextElideMode.ElideMiddle if number == 0 else Qt.TextElideMode.ElideRight
        )
        painter.drawText(
            area, left, QFontMetrics(font).elidedText(text, middle, area.width())
        )

    write(0, run.name, font=bold, opacity=1)
    side = round(line * 0.5)
    for i, (_, color) in enumerate(run.classes[:MAX_SWATCHES]):
        painter.fillRect(
            place.left() + i * (side + 2),
            place.top() + line + (line - side) // 2,
            side,
            side,
            QColor(color),
        )
    used = len(run.classes[:MAX_SWATCHES]) * (side + 2)
    write(
        1,
        describe_classes(run),
        font=plain,
        opacity=0.9,
        indent=used + 4 if used else 0,
    )
    write(2, facts, font=plain, opacity=0.9)


def describe_classes(run: RunSummary) -> str:
    """Describe the classes: ``4 classes: pore, clay, quartz, heavy mineral``."""
    count = len(run.classes)
    if not count:
        return "classes not known"
    return (
        f"{count} class{'' if count == 1 else 'es'}:"
        f" {', '.join(name for name, _ in run.classes)}"
    )


def describe_facts(
    run: RunSummary, now: datetime | None = None, *, size: int | None = None
) -> str:
    """Describe a run: ``today 14:05, mean IoU 0.82, 654 MB``.

    For a running training the date is ``in training``; for a cross-validation the
    number of models is added. The size is in bytes.
    """
    phrases = [describe_models(run)] if run.folds else []
    phrases += [
        (
            "in training"
            if run.is_running
            else format_date(run.modified, now or datetime.now())
        )
    ]
    if run.mean_iou is not None:
        phrases.append(f"mean IoU {run.mean_iou:.2f}")
    elif run.agreement:
        phrases.append(run.agreement)
    if size is not None:
        phrases.append(format_bytes(size))
    return ", ".join(phrases)


def describe_models(run: RunSummary) -> str:
    """Return ``5 models (cross-validation)``, like `Ensemble.describe`."""
    return f"{format_count(run.folds, 'model')} (cross-validation)"


def format_date(time: datetime, now: datetime) -> str:
    """Format a date as ``today 14:05``, ``yesterday 9:12`` or ``18 Nov 2025``."""
    days = (now.date() - time.date()).days
    clock = f"{time.hour}:{time.minute:02d}"
    if days in (0, 1):
        return f"{('today', 'yesterday')[days]} {clock}"
    date = f"{time.day} {MONTHS[time.month - 1]}"
    return f"{date} {clock}" if time.year == now.year else f"{date} {time.year}"


def tooltip(run: RunSummary) -> str:
    """Describe all facts of a run in lines of text."""
    ended = {
        "finished": "finished",
        "early stopping": "stopped early, without further improvement",
        "stopped": "stopped",
    }
    state = "in training" if run.is_running else ended.get(run.ended or "", "")
    planned = f" of {run.planned}" if run.planned > run.epochs else ""
    epochs = (
        f"{run.epochs}{planned} epoch{'' if max(run.epochs, run.planned) == 1 else 's'}"
    )
    trained = (
        describe_models(run)
        if run.folds
        else f"{epochs}{', ' + state if state else ''}"
    )
    score = run.agreement.capitalize() or "No score"
    if run.mean_iou is not None:
        name = "Mean IoU over the folds" if run.folds else "Best mean IoU"
        score = f"{name} {run.mean_iou:.3f}"
    lines = [
        run.name,
        describe_classes(run)[:1].upper() + describe_classes(run)[1:],
        f"Recipe {run.recipe}, {trained}",
        score,
        str(run.path),
    ]
    return "\n".join(lines)


def _key(run: RunSummary) -> tuple[Path, int] | None:
    """Return a key for the thumbnail of a run, which changes with the picture."""
    return (
        None
        if run.thumbnail is None
        else (run.thumbnail, int(run.modified.timestamp() * 1000))
    )


def _read_folder(
    folder: Path | None, known: dict[tuple[Path, int], QImage | None]
) -> FolderContent:
    runs = list_runs(folder, with_model=True) if folder is not None else []
    runs = [replace(run, writer=find_writer(run.path)) for run in runs]
    keys: Sequence[tuple[Path, int]] = [
        key for run in runs if (key := _key(run)) is not None
    ]
    return FolderContent(
        runs,
        {key: known[key] if key in known else _thumbnail(key[0]) for key in keys},
        {run.path: measure_size(run.path) for run in runs},
    )


def _thumbnail(path: Path) -> QImage | None:
    """Return the centre of the prediction as a square; None if it cannot be read."""
    try:
        pixels = read_pixels(path)
    except (OSError, ValueError):
        return None
    panels = find_panels(pixels)
    image = to_image(panels[-1] if panels else pixels)
    side = min(image.width(), image.height())
    middle = image.copy(
        (image.width() - side) // 2, (image.height() - side) // 2, side, side
    )
    return middle.scaled(
        THUMBNAIL_SIDE_PX,
        THUMBNAIL_SIDE_PX,
        Qt.AspectRatioMode.IgnoreAspectRatio,
        Qt.TransformationMode.SmoothTransformation,
    )
