"""Choices of the labels to compare, and the table of scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from napari.layers import Labels as LabelsLayer
from napari.viewer import Viewer
from qtpy.QtCore import QEvent, QSize, Qt, Signal
from qtpy.QtGui import QKeyEvent, QKeySequence
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.data.trained_on import TrainedOn, are_trained
from napari_strata.evaluation.compare import find_seen
from napari_strata.plugin import stored_classes
from napari_strata.widgets.layers import convert
from napari_strata.widgets.layers.choice import OpenLabelsChoice
from napari_strata.widgets.layers.live import MODEL, PREDICTED
from napari_strata.widgets.parts.swatch import swatch
from napari_strata.widgets.work import threads

NAME, IOU, DICE, PRECISION, RECALL, PIXELS = range(6)
KEYS = ("", "iou", "dice", "precision", "recall", "support")
TITLES = ("Class", "IoU", "Dice", "Prec.", "Recall", "Pixels")
TIPS = (
    "Click a heading to sort; Ctrl+C copies the table",
    (
        "Intersection over union: pixels of this class in both truth and prediction,"
        " divided by pixels of this class in either"
    ),
    (
        "Dice, also F1: twice the pixels of this class in both, divided by the sum of"
        " those in truth and prediction"
    ),
    "Precision: fraction of the pixels predicted as this class that are correct",
    "Recall: fraction of the pixels of this class that are predicted",
    "Pixels of this class in the truth",
)
ABSENT = "\N{EN DASH}"
LOOKED_UP = 16
"""Planes of labels that are looked up among those that were trained on."""
MAX_ROWS = 8
"""Largest height of the table, in rows."""


class PredictionChoice(OpenLabelsChoice):
    """Choice of the prediction: the newest prediction, or selected labels."""

    def __init__(self, viewer: Viewer) -> None:
        self.problem = ""
        super().__init__(viewer, "Prediction")
        self._follow()

    def _proposed(self) -> Any:
        candidates, selected = self._candidates(), self._selected()
        predictions = [
            layer
            for layer in candidates
            if layer.metadata.get(PREDICTED) or layer.name.endswith("segmented")
        ]
        picked = [layer for layer in selected if layer in predictions]
        if len(picked) == 1:
            return picked[0]
        if self._layer in predictions:
            newer = predictions[predictions.index(self._layer) + 1 :]
            return newer[-1] if newer else self._layer
        if predictions:
            return predictions[-1]
        if self._layer is not None or len(selected) != 1 or len(candidates) < 2:
            return self._layer
        return selected[0]

    def _missing_reason(self) -> str:
        count = len(self._candidates())
        if not count:
            return "No labels are open: predict an image, or open a label file."
        return "No prediction was found: choose the labels that are the prediction."


class TruthChoice(OpenLabelsChoice):
    """Choice of the truth: the only other labels with the size of the prediction.

    Labels that the model of the prediction was trained on come last.
    """

    def __init__(self, viewer: Viewer, prediction: PredictionChoice) -> None:
        self._prediction, self.problem = prediction, ""
        self._trained: WeakKeyDictionary[LabelsLayer, tuple[Any, bool]] = (
            WeakKeyDictionary()
        )
        super().__init__(viewer, "Truth")
        prediction.changed.connect(self._follow_later)
        self._follow()

    def _fitting(self) -> list[Any]:
        prediction = self._prediction.layer
        shape = convert.array_of(prediction).shape if prediction is not None else None
        others = [
            layer
            for layer in self._candidates()
            if layer is not prediction and not layer.metadata.get(PREDICTED)
        ]
        return [layer for layer in others if convert.array_of(layer).shape == shape]

    def _proposed(self) -> Any:
        fitting = self._fitting()
        new = [layer for layer in fitting if not self.is_trained(layer)]
        for candidates in (new, fitting):
            if self._layer in candidates:
                return self._layer
            if candidates:
                return candidates[0] if len(candidates) == 1 else None
        return None

    def is_trained(self, layer: LabelsLayer | None) -> bool:
        """Return True if the model of the prediction was trained on these labels.

        False until a thread has looked them up.
        """
        prediction = self._prediction.layer
        models = prediction.metadata.get(MODEL) if prediction is not None else None
        if layer is None or models is None:
            return False
        key = (models, id(layer.data))
        known = self._trained.get(layer, (None, False))
        if known[0] == key:
            return known[1]
        self._trained[layer] = (key, False)
        try:
            look_up = self._look_up(layer, models)
        except ImageError:
            return False  # the dock says what is wrong
        threads.run(
            look_up,
            lambda trained: self._looked_up(layer, key, trained),
            lambda _error: None,  # the comparison says what is wrong
            owner=self,
        )
        return False

    def _look_up(
        self, layer: LabelsLayer, models: tuple[str, ...]
    ) -> Callable[[], bool]:
        """Return a function that looks labels up in a thread."""
        labels = convert.labels_of(layer, self._prediction.labels(None))
        classes = stored_classes({"metadata": layer.metadata})
        image = convert.image_below(self._viewer, labels)
        return lambda: are_trained(
            find_seen(
                labels,
                classes,
                TrainedOn.of(models),
                image=image,
                most=LOOKED_UP,
            )
        )

    def _looked_up(self, layer: LabelsLayer, key: Any, trained: bool) -> None:
        if trained and layer in self._viewer.layers:
            self._trained[layer] = (key, trained)
            self._follow_later()

    def _missing_reason(self) -> str:
        if self._prediction.layer is None:
            return "Choose the prediction first."
        count = len(self._fitting())
        if count > 1:
            return (
                f"{count} label layers have the prediction's size: choose which is the"
                " truth."
            )
        return (
            "No other labels have the prediction's size: open or paint the truth, or"
            " choose it here."
        )


class ScoreTable(QTableWidget):
    """Table of the scores of each class; a dash stands for a missing score."""

    copied = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, len(TITLES), parent)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.setShowGrid(False)
        for column, (title, tip) in enumerate(zip(TITLES, TIPS, strict=True)):
            item = QTableWidgetItem(title)
            item.setToolTip(tip)
            if column == NAME:
                item.setTextAlignment(
                    Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
                )
            self.setHorizontalHeaderItem(column, item)
        self._header, self._lines = self.horizontalHeader(), self.verticalHeader()
        assert self._header is not None
        assert self._lines is not None
        header = self._header
        header.setHighlightSections(False)
        header.setMinimumSectionSize(1)
        for column in range(len(TITLES)):
            fit = (
                QHeaderView.ResizeMode.Stretch
                if column == NAME
                else QHeaderView.ResizeMode.Fixed
            )
            header.setSectionResizeMode(column, fit)
        self._lines.hide()
        self._measure()

    def show_scores(
        self, per_class: Mapping[str, Mapping[str, Any]], classes: ClassMap
    ) -> None:
        """Show ``per_class`` of `ConfusionMatrix.as_dict`, in the order of classes."""
        self.setSortingEnabled(False)
        self.setRowCount(len(classes))
        for row, (name, color) in enumerate(
            zip(classes.names, classes.colors, strict=True)
        ):
            scores = per_class[name]
            cell = _Cell(name, name, name)
            cell.setIcon(swatch(self, color))
            self.setItem(row, NAME, cell)
            for column in range(IOU, len(KEYS)):
                self.setItem(row, column, _number(scores, column, name))
        assert self._header is not None
        self._header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.setSortingEnabled(True)
        self.updateGeometry()

    def text(self) -> str:
        """Return the table as tab-separated text with all digits.

        Missing scores are empty.
        """
        rows = ["\t".join(["class", "IoU", "Dice", "precision", "recall", "pixels"])]
        for row in range(self.rowCount()):
            cells = [self.item(row, column) for column in range(self.columnCount())]
            values = [
                cell.data(Qt.ItemDataRole.UserRole)
                for cell in cells
                if cell is not None
            ]
            rows.append(
                "\t".join("" if value is None else str(value) for value in values)
            )
        return "\n".join(rows) + "\n"

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802 (Qt's name)
        """Emit `copied` on Ctrl+C."""
        if event is not None and event.matches(QKeySequence.StandardKey.Copy):
            self.copied.emit()
            event.accept()
            return
        super().keyPressEvent(event)

    def changeEvent(self, event: QEvent | None) -> None:  # noqa: N802
        """Adapt the size to the font of the theme."""
        super().changeEvent(event)
        if event is not None and event.type() in (
            QEvent.Type.FontChange,
            QEvent.Type.StyleChange,
        ):
            self._measure()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return the size for all rows, up to `MAX_ROWS`."""
        rows = min(max(self.rowCount(), 1), MAX_ROWS)
        assert self._header is not None
        assert self._lines is not None
        height = self._header.sizeHint().height() + 2 * self.frameWidth()
        return QSize(280, height + rows * self._lines.defaultSectionSize())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(200, self.sizeHint().height())

    def _measure(self) -> None:
        """Set the widths: numbers get what they need, names get the rest."""
        height, width = (
            self.fontMetrics().height(),
            self.fontMetrics().horizontalAdvance,
        )
        assert self._header is not None
        assert self._lines is not None
        for column in range(IOU, len(TITLES)):
            widest = width("99,999" if column == PIXELS else "1.00") + height // 2
            self._header.resizeSection(
                column, max(widest, width(TITLES[column]) + height // 2)
            )
        self._lines.setDefaultSectionSize(round(1.6 * height))
        self.setIconSize(QSize(height, height))
        self.updateGeometry()


class _Cell(QTableWidgetItem):
    """Cell that is sorted by its value; missing values come first."""

    def __init__(self, text: str, value: object, tip: str) -> None:
        super().__init__(text)
        self.setData(Qt.ItemDataRole.UserRole, value)
        self.setToolTip(tip)

    def __lt__(self, other: QTableWidgetItem) -> bool:
        own_value, other_value = (
            item.data(Qt.ItemDataRole.UserRole) for item in (self, other)
        )
        if own_value is None or other_value is None:
            return own_value is None and other_value is not None
        return bool(own_value < other_value)


def _number(scores: Mapping[str, Any], column: int, name: str) -> _Cell:
    value = scores[KEYS[column]]
    if value is None:
        cell = _Cell(ABSENT, None, _why_absent(column, name, scores))
    elif column == PIXELS:
        cell = _Cell(short(value), value, f"{value:,} pixels of {name} in the truth")
    else:
        text = "1.00" if value > 0.9995 else f"{value:.3f}"[1:]
        cell = _Cell(text, value, f"{TIPS[column]}: {100 * value:.2f} %")
    cell.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    return cell


def _why_absent(column: int, name: str, scores: Mapping[str, Any]) -> str:
    if column == RECALL or (column in (IOU, DICE) and not scores["support"]):
        place = (
            "in the truth"
            if column == RECALL
            else "in the truth, and it was not predicted either"
        )
        return f"No pixel is {name} {place}: there is nothing to score."
    return f"No labelled pixel was predicted as {name}: there is nothing to score."


def short(count: int) -> str:
    """Format a count: up to 99,999 with all digits, otherwise as 123 k, M or G."""
    if count < 100_000:
        return f"{count:,}"
    size, unit = next(
        (s, u)
        for s, u in ((10**3, "k"), (10**6, "M"), (10**9, "G"))
        if count < 999.5 * s or u == "G"
    )
    return f"{float(f'{count / size:.3g}'):g} {unit}"
