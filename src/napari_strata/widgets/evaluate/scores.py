"""Parts of the Evaluate dock: which labels are compared, and the table of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from napari_strata.core.image import LabelImage
from napari_strata.widgets.layers import convert
from napari_strata.widgets.layers.choice import LayerChoice
from napari_strata.widgets.layers.live import PREDICTED
from napari_strata.widgets.parts.swatch import swatch

ERRORS = "napari_strata_errors"
"""Key of a layer's metadata that says: these are errors that the dock has shown."""

NAME, IOU, DICE, PRECISION, RECALL, PIXELS = range(6)
KEYS = ("", "iou", "dice", "precision", "recall", "support")
TITLES = ("Class", "IoU", "Dice", "Prec.", "Recall", "Pixels")
TIPS = (
    "Click a heading to sort; Ctrl+C copies the table",
    (
        "Intersection over union: pixels that both call this class, of all that either"
        " does"
    ),
    (
        "Dice: twice the pixels that both call this class, of those of the truth and"
        " the prediction together; also F1"
    ),
    "Precision: of the pixels predicted as this class, how many are",
    "Recall: of the pixels that are this class, how many were predicted so",
    "Pixels of this class in the truth",
)
ABSENT = "\N{EN DASH}"
MOST = 8
"""Rows before the table scrolls."""


class _LabelsChoice(LayerChoice):
    """Labels that follow the layer list until the user picks some.

    Under them what they are.
    """

    _by_hand: Any = None

    def _candidates(self) -> list[Any]:
        return [
            layer
            for layer in convert.labels_layers(self._viewer.layers)
            if not layer.metadata.get(ERRORS)
        ]

    def _picked(self, layer: Any) -> None:
        self._by_hand = layer
        super()._picked(layer)

    def _follow(self) -> None:
        is_open = self._by_hand is not None and self._by_hand in self._viewer.layers
        self.choose(self._by_hand if is_open else self._proposed())

    def _layer_changed(self) -> None:
        # A layer that has gone is known at once, before the list is at rest and another
        # is proposed.
        self.problem = "" if self._layer is not None else self._why_none()

    def _proposed(self) -> Any:
        raise NotImplementedError

    def _why_none(self) -> str:
        raise NotImplementedError

    def _show(self) -> None:
        super()._show()
        self.problem = "" if self._layer is not None else self._why_none()
        try:
            self.text.setText(self.problem or convert.describe(self.labels(None)))
        except ImageError as error:
            self.problem = str(error)
            self.text.setText(self.problem)

    @property
    def layer(self) -> LabelsLayer | None:
        layer: LabelsLayer | None = self._layer
        return layer

    def labels(self, like: LabelImage | None) -> LabelImage:
        """The chosen labels; axes that they do not name are those of `like`.

        Raises `ImageError`.
        """
        return convert.labels_of(self._layer, like)


class PredictionChoice(_LabelsChoice):
    """The prediction: the newest that a network made, or labels that are selected."""

    def __init__(self, viewer: Viewer) -> None:
        self.problem = ""
        super().__init__(viewer, "Prediction")
        self._follow()

    def _proposed(self) -> Any:
        candidates, selected = self._candidates(), self._selected()
        made = [
            layer
            for layer in candidates
            if layer.metadata.get(PREDICTED) or layer.name.endswith("segmented")
        ]
        picked = [layer for layer in selected if layer in made]
        if len(picked) == 1:
            return picked[0]
        if self._layer in made:
            newer = made[made.index(self._layer) + 1 :]
            return newer[-1] if newer else self._layer
        if made:
            return made[-1]
        if self._layer is not None or len(selected) != 1 or len(candidates) < 2:
            return self._layer
        return selected[0]

    def _why_none(self) -> str:
        count = len(self._candidates())
        if not count:
            return "No labels are open: predict some, or open a label file."
        return "Nothing here is known as a prediction: choose which labels are."


class TruthChoice(_LabelsChoice):
    """Choice of the truth.

    Proposed are the only other labels of the prediction's size.
    """

    def __init__(self, viewer: Viewer, prediction: PredictionChoice) -> None:
        self._prediction, self.problem = prediction, ""
        super().__init__(viewer, "Truth")
        prediction.changed.connect(self._later)
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
        if self._layer in fitting:
            return self._layer
        return fitting[0] if len(fitting) == 1 else None

    def _why_none(self) -> str:
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
        """Show the ``per_class`` part of `ConfusionMatrix.as_dict`, in the order of the
        classes.
        """
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
        """The rows as they stand, tab-separated under their titles, with every digit.

        Empty where there is no score.
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
        """Ctrl+C: ask for a copy."""
        if event is not None and event.matches(QKeySequence.StandardKey.Copy):
            self.copied.emit()
            event.accept()
            return
        super().keyPressEvent(event)

    def changeEvent(self, event: QEvent | None) -> None:  # noqa: N802
        """Follow the theme's font."""
        super().changeEvent(event)
        if event is not None and event.type() in (
            QEvent.Type.FontChange,
            QEvent.Type.StyleChange,
        ):
            self._measure()

    def sizeHint(self) -> QSize:  # noqa: N802
        """As tall as the rows, up to `MOST` of them."""
        rows = min(max(self.rowCount(), 1), MOST)
        assert self._header is not None
        assert self._lines is not None
        height = self._header.sizeHint().height() + 2 * self.frameWidth()
        return QSize(280, height + rows * self._lines.defaultSectionSize())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(200, self.sizeHint().height())

    def _measure(self) -> None:
        """Numbers get what they need and no more: the names take the rest."""
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
    """A cell that sorts by its value; no value comes first."""

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
        where = (
            "in the truth"
            if column == RECALL
            else "in the truth, and it was not predicted either"
        )
        return f"No pixel is {name} {where}: there is nothing to score."
    return f"No labelled pixel was predicted as {name}: there is nothing to score."


def short(count: int) -> str:
    """A count as it is up to 99,999.

    Beyond that in thousands, millions or milliards, three digits of it.
    """
    if count < 100_000:
        return f"{count:,}"
    size, unit = next(
        (s, u)
        for s, u in ((10**3, "k"), (10**6, "M"), (10**9, "G"))
        if count < 999.5 * s or u == "G"
    )
    return f"{float(f'{count / size:.3g}'):g} {unit}"
