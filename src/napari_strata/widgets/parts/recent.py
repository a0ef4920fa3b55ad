"""List of recent runs, with picture, classes, date and score, to choose a model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from qtpy.QtCore import QModelIndex, QRect, QRectF, QSize, Qt, Signal
from qtpy.QtGui import (
    QColor,
    QFont,
    QFontMetrics,
    QImage,
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
    QSizePolicy,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from napari_strata.widgets.parts.colors import faded
from napari_strata.widgets.parts.picture import find_panels, read_pixels, to_image
from napari_strata.widgets.parts.runs import RunSummary, last_events, list_runs
from napari_strata.widgets.work import threads

__all__ = ["RunList", "RunSummary", "last_events", "list_runs"]

NONE = "No models yet: train one in the Train dock, or open a model file."
SUMMARY = Qt.ItemDataRole.UserRole
THUMBNAIL = Qt.ItemDataRole.UserRole + 1
SIDE = 128
"""Pixels of a thumbnail, twice as many as are shown on most screens."""
PAD = 5
SHOWN = 3
"""Runs in sight; the others are scrolled to."""
SWATCHES = 6
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


class Found(NamedTuple):
    """Contents of a folder: runs, and thumbnails of pictures not seen before."""

    runs: list[RunSummary]
    thumbnails: dict[tuple[Path, int], QImage | None]


class RunList(QWidget):
    """Runs that have a model, the newest first; one can be chosen."""

    chosen = Signal(object)  # Path of the run, when the user chooses it

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._folder: Path | None = None
        self._wanted: Path | None = None
        self._busy = self._again = False
        self._thumbnails: dict[tuple[Path, int], QImage | None] = {}
        self._runs: list[RunSummary] = []
        self.text = QLabel(NONE)
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
        """Look into the folder again, in the background; the choice stays."""
        if self._busy:
            self._again = True
            return
        self._busy, self._again = True, False
        folder, thumbnails = self._folder, dict(self._thumbnails)
        threads.run(
            lambda: _look(folder, thumbnails),
            self._take,
            lambda _error: self._rest(),
            owner=self,
        )

    def select(self, path: Path | None) -> None:
        """Mark a run as the chosen one, now or when it appears, without a signal.

        Another path marks none.
        """
        self._wanted = path
        self._mark()

    def selected(self) -> Path | None:
        """The run that is marked."""
        items = self.list.selectedItems()
        return items[0].data(SUMMARY).path if items else None

    def runs(self) -> list[RunSummary]:
        """The runs listed."""
        return list(self._runs)

    def _take(self, found: Found) -> None:
        self._thumbnails = found.thumbnails
        self._runs = found.runs
        self.list.blockSignals(True)
        while self.list.count() > len(found.runs):
            self.list.takeItem(self.list.count() - 1)
        for row, run in enumerate(found.runs):
            item = self.list.item(row) or QListWidgetItem(self.list)
            item.setData(SUMMARY, run)
            item.setData(
                THUMBNAIL, found.thumbnails.get(key) if (key := _key(run)) else None
            )
            item.setData(
                Qt.ItemDataRole.AccessibleTextRole,
                ", ".join((run.name, class_words(run), facts(run))),
            )
            item.setToolTip(tooltip(run))
        self.list.blockSignals(False)
        self.text.setVisible(not found.runs)
        self.list.setVisible(bool(found.runs))
        self._fit()
        self._mark()
        self._rest()

    def _rest(self) -> None:
        self._busy = False
        if self._again:
            self.refresh()

    def _mark(self) -> None:
        self.list.blockSignals(True)
        self.list.clearSelection()
        self.list.setCurrentItem(None)
        for row, run in enumerate(self._runs):
            if self._wanted is not None and run.path == self._wanted:
                self.list.setCurrentRow(row)
                self.list.scrollToItem(self.list.item(row))
        self.list.blockSignals(False)
        self.list.viewport().update()

    def _on_choice(self) -> None:
        path = self.selected()
        if path is not None:
            self._wanted = path
            self.chosen.emit(path)

    def _fit(self) -> None:
        """As high as the runs, up to some; the rest is scrolled to."""
        count = min(self.list.count(), SHOWN)
        # Half a row more shows that there is more.
        share = count + (0.4 if self.list.count() > SHOWN else 0)
        row = self.list.sizeHintForRow(0) if count else 0
        self.list.setFixedHeight(round(share * row) + 2 * self.list.frameWidth() + 2)


class _Delegate(QStyledItemDelegate):
    """Draws a run: thumbnail; name; classes with their colours; date and score."""

    def sizeHint(self, option: QStyleOptionViewItem, _index: QModelIndex) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(200, round(3 * option.fontMetrics.lineSpacing() + 2 * PAD))

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
        marked = bool(option.state & QStyle.StateFlag.State_Selected)
        role = QPalette.ColorRole.HighlightedText if marked else QPalette.ColorRole.Text
        ink = chosen.palette.color(role)
        painter.save()
        painter.setRenderHints(
            QPainter.RenderHint.Antialiasing | QPainter.RenderHint.SmoothPixmapTransform
        )
        inside = option.rect.adjusted(PAD, PAD, -PAD, -PAD)
        _draw_thumbnail(
            painter,
            QRect(inside.topLeft(), QSize(inside.height(), inside.height())),
            picture,
            ink,
        )
        _draw_words(painter, inside.adjusted(inside.height() + 8, 0, 0, 0), run, ink)
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


def _draw_words(painter: QPainter, place: QRect, run: RunSummary, ink: QColor) -> None:
    plain, bold = QFont(painter.font()), QFont(painter.font())
    bold.setBold(True)
    line = QFontMetrics(plain).lineSpacing()
    left = int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)

    def write(
        number: int, text: str, *, font: QFont, share: float, indent: int = 0
    ) -> None:
        room = QRect(
            place.left() + indent,
            place.top() + number * line,
            place.width() - indent,
            line,
        )
        painter.setFont(font)
        painter.setPen(faded(ink, share))
        middle = (
            Qt.TextElideMode.ElideMiddle if number == 0 else Qt.TextElideMode.ElideRight
        )
        painter.drawText(
            room, left, QFontMetrics(font).elidedText(text, middle, room.width())
        )

    write(0, run.name, font=bold, share=1)
    side = round(line * 0.5)
    for i, (_, color) in enumerate(run.classes[:SWATCHES]):
        painter.fillRect(
            place.left() + i * (side + 2),
            place.top() + line + (line - side) // 2,
            side,
            side,
            QColor(color),
        )
    used = len(run.classes[:SWATCHES]) * (side + 2)
    write(1, class_words(run), font=plain, share=0.9, indent=used + 4 if used else 0)
    write(2, facts(run), font=plain, share=0.9)


def class_words(run: RunSummary) -> str:
    """``4 classes: pore, clay, quartz, heavy mineral``."""
    count = len(run.classes)
    if not count:
        return "classes not known"
    return (
        f"{count} class{'' if count == 1 else 'es'}:"
        f" {', '.join(name for name, _ in run.classes)}"
    )


def facts(run: RunSummary, now: datetime | None = None) -> str:
    """``today 14:05, mean IoU 0.82``; of a training that goes on, that it does.

    Of a cross-validation, its models.
    """
    phrases = [models(run)] if run.folds else []
    phrases += [
        (
            "in training"
            if run.running is not None
            else when(run.modified, now or datetime.now())
        )
    ]
    if run.mean_iou is not None:
        phrases.append(f"mean IoU {run.mean_iou:.2f}")
    return ", ".join(phrases)


def models(run: RunSummary) -> str:
    """``5 models (cross-validation)``, in the words of `Ensemble.describe`."""
    return f"{run.folds} model{'' if run.folds == 1 else 's'} (cross-validation)"


def when(time: datetime, now: datetime) -> str:
    """A date as people say it.

    ``today 14:05``, ``yesterday 9:12``, ``18 Nov 14:05``, ``18 Nov 2025``.
    """
    days = (now.date() - time.date()).days
    clock = f"{time.hour}:{time.minute:02d}"
    if days in (0, 1):
        return f"{('today', 'yesterday')[days]} {clock}"
    date = f"{time.day} {MONTHS[time.month - 1]}"
    return f"{date} {clock}" if time.year == now.year else f"{date} {time.year}"


def tooltip(run: RunSummary) -> str:
    """Everything that is known of a run, a line each."""
    ended = {
        "finished": "finished",
        "early stopping": "stopped early, as it got no better",
        "stopped": "stopped",
    }
    state = "in training" if run.running else ended.get(run.ended or "", "")
    planned = f" of {run.planned}" if run.planned > run.epochs else ""
    epochs = (
        f"{run.epochs}{planned} epoch{'' if max(run.epochs, run.planned) == 1 else 's'}"
    )
    trained = models(run) if run.folds else f"{epochs}{', ' + state if state else ''}"
    score = "Mean IoU over the folds" if run.folds else "Best mean IoU"
    lines = [
        run.name,
        class_words(run)[:1].upper() + class_words(run)[1:],
        f"Recipe {run.recipe}, {trained}",
        f"{score} {run.mean_iou:.3f}" if run.mean_iou is not None else "No score",
        str(run.path),
    ]
    return "\n".join(lines)


def _key(run: RunSummary) -> tuple[Path, int] | None:
    """Tells the pictures of a run apart, also one that was made anew."""
    return (
        None
        if run.thumbnail is None
        else (run.thumbnail, int(run.modified.timestamp() * 1000))
    )


def _look(folder: Path | None, known: dict[tuple[Path, int], QImage | None]) -> Found:
    runs = list_runs(folder, with_model=True) if folder is not None else []
    keys: Sequence[tuple[Path, int]] = [
        key for run in runs if (key := _key(run)) is not None
    ]
    return Found(
        runs, {key: known[key] if key in known else _thumbnail(key[0]) for key in keys}
    )


def _thumbnail(path: Path) -> QImage | None:
    """The middle of the prediction, a square; None when the picture cannot be read."""
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
        SIDE, SIDE, transformMode=Qt.TransformationMode.SmoothTransformation
    )
