"""Result of a measurement: tabs with fractions and measures of shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_strata.report.measure_tables import (
    EXPLANATIONS,
    TOPICS,
    VOLUME,
    CurvesContent,
    TableContent,
    fraction_table,
    profile_curves,
    topic_content,
    why_no_interval,
)
from napari_strata.widgets.parts.figure import Curve, Figure
from napari_strata.widgets.parts.table import Heading, Table, TableRow


class FractionView(QWidget):
    """Table of the fractions, and their profile along an axis."""

    position_chosen = Signal(float)
    """Emitted with the position along the axis that was clicked, in its unit."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.caption, self.why = _paragraph(), _paragraph()
        self.table = Table()
        self.table.itemSelectionChanged.connect(self._choose_classes)
        self._curves: CurvesContent | None = None
        self.profile_title = _paragraph()
        self.figure = Figure()
        self.figure.clicked.connect(self.position_chosen.emit)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 4, 0, 0)
        rows.setSpacing(5)
        for widget in (
            self.caption,
            self.table,
            self.why,
            self.profile_title,
            self.figure,
        ):
            rows.addWidget(widget)
            widget.hide()
        rows.addStretch(1)
        self.caption.setText(
            "Measure shows how much of each class there is, with its error, and the"
            " profile along an axis."
        )
        self.caption.show()

    def show_measures(self, measures: Mapping[str, Any]) -> None:
        """Show the content of ``measures.json``."""
        self.table.show()
        self.caption.setText(
            f"{measures['about']['labels']}, region: {measures['region']},"
            f" {measures['voxels']:,} labelled pixels"
        )
        _show_table(self.table, fraction_table(measures))
        why = why_no_interval(measures)
        self.why.setText(why)
        self.why.setVisible(bool(why))
        curves = self._curves = profile_curves(measures)
        for widget in (self.profile_title, self.figure):
            widget.setVisible(curves is not None)
        if curves is not None:
            axis = measures["profile"]["axis"]
            self.profile_title.setText(
                f"Profile along {axis}; click it to move the slider, choose rows above"
                " to see only those classes"
            )
            _show_curves(self.figure, curves)

    def _choose_classes(self) -> None:
        """Show the curves of the rows that are selected, or all."""
        if self._curves is None:
            return
        rows = {index.row() for index in self.table.selectedIndexes()}
        chosen = tuple(
            curve
            for row, curve in enumerate(self._curves.curves)
            if row in rows or not rows
        )
        _show_curves(self.figure, replace(self._curves, curves=chosen))


class ShapeView(QWidget):
    """Measures of shape, one topic at a time."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._measures: Mapping[str, Any] | None = None
        self.topic = QComboBox()
        self.topic.addItems(TOPICS)
        self.caption, self.text = _paragraph(), _paragraph()
        self.table, self.figure = Table(), Figure()
        self.map_button = QPushButton("Show the fractions in cubes as layers")
        self.map_button.setToolTip("A map of each class: where there is more of it.")
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 4, 0, 0)
        rows.setSpacing(5)
        for widget in (
            self.topic,
            self.caption,
            self.table,
            self.figure,
            self.map_button,
            self.text,
        ):
            rows.addWidget(widget)
        for widget in (self.caption, self.table, self.figure, self.map_button):
            widget.hide()
        rows.addStretch(1)
        self._show()
        self.topic.currentTextChanged.connect(self._show)

    def show_measures(self, measures: Mapping[str, Any]) -> None:
        """Show the content of ``measures.json``."""
        self._measures = measures
        self.caption.setText(
            f"{measures['about']['labels']}, region: {measures['region']}"
        )
        self.caption.show()
        self._show()

    def _show(self, _topic: str = "") -> None:
        if self._measures is None:
            self.text.setText(EXPLANATIONS[self.topic.currentText()])
            return
        content = topic_content(self._measures, self.topic.currentText())
        self.table.setVisible(content.table is not None)
        if content.table is not None:
            _show_table(self.table, content.table)
        self.figure.setVisible(content.curves is not None)
        if content.curves is not None:
            # The table names the classes beside their colours.
            legend = content.table is None
            _show_curves(self.figure, content.curves, legend=legend)
        is_volume = self.topic.currentText() == VOLUME
        self.map_button.setVisible(is_volume and "local" in self._measures)
        self.text.setText(content.why or content.explanation)
        self.text.setToolTip(content.explanation)


def _show_table(table: Table, content: TableContent) -> None:
    headings = [Heading(column.text, column.tip) for column in content.columns]
    rows = [TableRow(row.name, row.color, row.texts, row.tips) for row in content.rows]
    table.show_rows(headings, rows)


def _show_curves(
    figure: Figure, content: CurvesContent, *, legend: bool = False
) -> None:
    curves = [
        Curve(data.name, data.xs, data.ys, data.color, data.low, data.high)
        for data in content.curves
    ]
    figure.show_curves(
        curves, x_title=content.x_title, y_title=content.y_title, legend=legend
    )


def _paragraph() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    return label
