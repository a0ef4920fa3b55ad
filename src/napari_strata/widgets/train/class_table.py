"""Class table of the Train dock.

It has names, colours, labelled pixels, and the meaning of 0.
"""

from __future__ import annotations

import weakref

from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QCheckBox,
    QColorDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.classes import ClassMap, default_colors
from napari_strata.widgets.layers import label_classes
from napari_strata.widgets.layers.convert import array_of
from napari_strata.widgets.layers.counts import LayerLinks, PixelCounter
from napari_strata.widgets.layers.label_classes import LabelClasses
from napari_strata.widgets.parts.class_rows import ClassRows, Row, ZeroChoice


class ClassTable(QWidget):
    """Table of the classes of a Labels layer: names, colours and use.

    The value 0 is unlabelled or the background. If the user has not decided, in labels
    that were painted it is unlabelled. In labels from a file, a sample or a plugin it
    is the background if every slice has labels, or if there is only one other value;
    otherwise there are slices to label, and 0 is unlabelled. A class map of the labels
    determines the meaning. The decision is made once for a layer.

    Every edit is stored in the layer's metadata and features, so that files and other
    docks have it too.
    """

    changed = Signal()
    """Emitted when `classes`, `counts` or `problem` have changed."""
    painted = Signal()
    """Emitted after a stroke on the labels."""
    picked = Signal(object)
    """Emitted with the layer when the user has chosen a class to paint."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layer_ref: weakref.ref[LabelsLayer] | None = None
        self._label_classes = LabelClasses()
        self._zero_choices: weakref.WeakKeyDictionary[LabelsLayer, bool] = (
            weakref.WeakKeyDictionary()
        )
        self._painted: set[int] = set()
        self._offers_objects = False  # whether to offer that all objects are one class
        self._error = self._refused = ""
        self._announced: object = None
        self._links = LayerLinks()
        self.destroyed.connect(self._links.clear)
        self._counter = PixelCounter(self)
        self._counter.counted.connect(self._on_counted)
        self._counter.painted.connect(self._on_painted)
        self._counter.failed.connect(self._on_failed)
        self._show_timer = QTimer(self)
        self._show_timer.setSingleShot(True)
        self._show_timer.timeout.connect(self._show)
        self._build()
        self._show()

    def _build(self) -> None:
        self._rows, self._zero = ClassRows(self), ZeroChoice(self)
        self._rows.picked.connect(self._pick)
        self._rows.renamed.connect(self._rename)
        self._rows.used.connect(self._use)
        self._rows.color_asked.connect(self._choose_color)
        self._zero.chosen.connect(self._on_zero)
        self._many, self._status = QLabel(self), QLabel(self)
        for label in (self._many, self._status):
            label.setWordWrap(True)
        self._status.linkActivated.connect(lambda _: self._counter.count())
        self._objects = QCheckBox("Treat all objects as one class", self)
        self._objects.setToolTip("All values except 0 are then the same class")
        self._objects.clicked.connect(self._on_objects)
        self._add, self._remove = (
            QPushButton("Add class", self),
            QPushButton("Remove", self),
        )
        self._add.clicked.connect(self.add_class)
        self._remove.clicked.connect(self._on_remove)
        buttons = QHBoxLayout()
        buttons.addWidget(self._add)
        buttons.addWidget(self._remove)
        buttons.addStretch(1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        for widget in (self._many, self._objects, self._rows):
            column.addWidget(widget)
        column.addLayout(buttons)
        column.addWidget(self._zero)
        column.addWidget(self._status)

    def set_labels(self, layer: LabelsLayer | None) -> None:
        """Show the classes of a layer. For the same layer, read its metadata again."""
        self._rows.finish()
        self._error = self._refused = ""
        new = layer is None or layer is not self._layer
        self._layer_ref = weakref.ref(layer) if layer is not None else None
        self._label_classes = (
            LabelClasses.of(layer) if layer is not None else LabelClasses()
        )
        if layer is not None and self._label_classes.background is None:
            self._label_classes.background = self._zero_choices.get(layer)
        if new:
            self._painted.clear()
            self._offers_objects = False
            self._links.clear()
            if layer is not None:
                self._links.connect(
                    layer, colormap=self._on_colormap, selected_label=self._on_selected
                )
            self._counter.watch(layer)
        self._show()

    def classes(self) -> ClassMap | None:
        """Return the classes in use.

        `ClassMap.unlabelled` has unused values, and 0 if it means unlabelled.
        """
        layer = self._layer
        return (
            self._label_classes.class_map(layer, self._values())
            if layer is not None
            else None
        )

    def counts(self) -> dict[int, int]:
        """Return the pixels of each label value, including 0.

        They are those of the last count; empty before the first.
        """
        counts = self._counter.counts
        return dict(counts.total) if counts is not None else {}

    def problem(self) -> str:
        """Explain why these labels cannot be used; empty if they can."""
        counts, rows = self._counter.counts, self._values()
        if self._layer is None:
            return "No labels: choose a labels layer, or create a new one."
        if counts is not None:
            return self._label_classes.problem(counts, rows)
        if self._counter.busy:
            return "Counting the labelled pixels …"
        used = [value for value in rows if value not in self._label_classes.unused]
        return (
            ""
            if len(used) > 1
            else "The pixels are not counted yet: press Count to find the classes."
        )

    def add_class(self) -> None:
        """Add a class with the next free value, select it, and activate the brush."""
        layer = self._layer
        if layer is None:
            return
        used_values = {*self._values(), *self._label_classes.names, *self.counts()}
        value = next(
            number
            for number in range(1, len(used_values) + 2)
            if number not in used_values
        )
        self._label_classes.names[value] = self._label_classes.name(value)
        self._write()
        self._pick(value)
        layer.mode = "paint"

    def name_classes(self, layer: LabelsLayer, names: tuple[str, ...]) -> None:
        """Give a new layer these classes, with values from 1 and distinct colours.

        The first is selected.
        """
        self.set_labels(layer)
        values = list(range(1, len(names) + 1))
        colors = dict(zip(values, default_colors(len(names)), strict=True))
        self._label_classes.names |= dict(zip(values, names, strict=True))
        label_classes.set_colors(layer, colors, ())
        self._write()
        self._pick(1)

    def pick_next(self) -> None:
        """Paint with the next class; after the last comes the first."""
        self._pick_neighbour(1)

    def pick_previous(self) -> None:
        """Paint with the class before; before the first comes the last."""
        self._pick_neighbour(-1)

    def _pick_neighbour(self, step: int) -> None:
        layer = self._layer
        values = [value for value in self._values() if value]
        if layer is None or not values:
            return
        before = -1 if step > 0 else 0
        if layer.selected_label in values:
            before = values.index(layer.selected_label)
        self._pick(values[(before + step) % len(values)])

    @property
    def _layer(self) -> LabelsLayer | None:
        return self._layer_ref() if self._layer_ref is not None else None

    def _write(self) -> None:
        """Store the content of the table in the layer."""
        layer, values = self._layer, self._values()
        if layer is None:
            return
        self._refused = ""
        self._store(layer, values)
        self._show()

    def _store(self, layer: LabelsLayer, values: list[int]) -> None:
        for value in values:
            self._label_classes.names[value] = self._label_classes.name(value)
            self._label_classes.colors[value] = self._label_classes.color(layer, value)
        self._label_classes.store(layer, self._label_classes.class_map(layer, values))

    def _values(self) -> list[int]:
        """Return the label values of the rows."""
        return (
            self._label_classes.rows(self._counter.counts, self._painted)
            if self._layer is not None
            else []
        )

    # Events of the layer

    def _on_counted(self) -> None:
        layer, counts = self._layer, self._counter.counts
        if layer is not None and counts is not None:
            self._error = ""
            if not self._counter.busy:
                self._painted.clear()
            if self._label_classes.background is None:
                self._label_classes.background = self._zero_choices[layer] = (
                    self._label_classes.is_background(counts)
                )
        self._show()

    def _on_painted(self, value: int) -> None:
        self.painted.emit()
        if value and value not in self._values():
            self._painted.add(value)
            self._show_timer.start(0)

    def _on_failed(self, text: str) -> None:
        self._error = text
        self._show()

    def _on_colormap(self, _event: object = None) -> None:
        layer = self._layer
        if layer is not None and label_classes.stored_classes(layer) is not None:
            self._store(layer, self._values())
        self._show_timer.start(0)

    def _on_selected(self, _event: object = None) -> None:
        layer = self._layer
        if layer is not None:
            self._add_colors(layer, [layer.selected_label])
            self._rows.mark(layer.selected_label)
            self._update_remove()

    def _add_colors(self, layer: LabelsLayer, values: list[int]) -> None:
        """Add colours for values that would be invisible."""
        if self._label_classes.objects or not (
            new := label_classes.invisible_values(layer, values)
        ):
            return
        used_colors = {
            label_classes.shown_color(layer, value) or "" for value in self._values()
        }
        colors: dict[int, str] = {}
        for value in new:
            old_color = self._label_classes.colors.get(value)
            colors[value] = old_color or label_classes.unused_color(
                used_colors | set(colors.values())
            )
        label_classes.set_colors(layer, colors, self._values())

    # Actions of the user

    def _pick(self, value: int) -> None:
        layer = self._layer
        if layer is None:
            return
        try:
            layer.selected_label = value
        except ValueError:  # the message of napari is not helpful
            self._refused = (
                f"{value} does not fit into this layer ({array_of(layer).dtype}): it"
                " cannot be painted."
            )
            self._show()
            return
        self._update_remove()
        self.picked.emit(layer)

    def _use(self, value: int, used: bool) -> None:
        layer = self._layer
        if layer is None:
            return
        if value == 0:
            self._label_classes.background = used
        elif not used:
            self._label_classes.unused.add(value)
        else:
            self._label_classes.unused.discard(value)
            # The reader makes values that are not classes invisible.
            if label_classes.shown_color(layer, value) is None:
                label_classes.set_colors(
                    layer,
                    {value: self._label_classes.color(layer, value)},
                    self._values(),
                )
        self._write()

    def _rename(self, value: int, name: str) -> None:
        others = {
            self._label_classes.name(number)
            for number in self._values()
            if number != value
        }
        self._refused = (
            f"“{name}” is the name of another class; choose another name."
            if name in others
            else ""
        )
        if name and not self._refused:
            self._label_classes.names[value] = name
            # 0 is not a class now; it gets another name when it becomes one.
            if self._label_classes.names.get(0) == name and value:
                del self._label_classes.names[0]
            self._write()
        else:
            self._show()

    def _choose_color(self, value: int) -> None:
        layer = self._layer
        if layer is None:
            return
        dialog = QColorDialog(QColor(self._label_classes.color(layer, value)), self)
        dialog.setWindowTitle(f"Colour of {self._label_classes.name(value)}")
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.colorSelected.connect(lambda color: self._set_color(value, color.name()))
        dialog.open()

    def _set_color(self, value: int, color: str) -> None:
        layer = self._layer
        if layer is not None:
            self._label_classes.colors[value] = color
            others = color if self._label_classes.objects and value else None
            label_classes.set_colors(
                layer, {value: color}, self._values(), others=others
            )
            self._write()

    def _on_zero(self, background: bool) -> None:
        self._label_classes.background = background
        self._write()

    def _on_objects(self, on: bool) -> None:
        self._label_classes.objects = on
        # A default name does not fit any more.
        if self._label_classes.names.get(1) in ("objects", "class 1"):
            del self._label_classes.names[1]
        self._write()

    def _on_remove(self) -> None:
        value = self._rows.current
        if value is None:
            return
        for table in (self._label_classes.names, self._label_classes.colors):
            table.pop(value, None)
        self._label_classes.unused.discard(value)
        self._painted.discard(value)
        self._write()

    # Display

    def _show(self) -> None:
        """Update all widgets, and emit `changed` if something has changed."""
        if self._rows.editing:  # do not move a row while the user edits it
            self._show_timer.start(50)
            return
        layer, counts = self._layer, self._counter.counts
        values = self._values()
        if layer is not None:
            self._add_colors(layer, values)
            if self._label_classes.is_behind(layer, values):
                self._store(layer, values)
        self._rows.fill(
            [self._row(layer, value) for value in values] if layer is not None else []
        )
        self._rows.mark(layer.selected_label if layer is not None else None)
        many = self._label_classes.look_like_objects(counts)
        self._many.setVisible(many)
        self._offers_objects |= many or self._label_classes.objects
        self._objects.setVisible(self._offers_objects)
        self._rows.setVisible(self._label_classes.objects or not many)
        if many and counts is not None:
            count = len(counts.total) - (0 in counts.total)
            self._many.setText(
                f"{count:,} label values: these look like object ids, not classes."
            )
        self._objects.setChecked(self._label_classes.objects)
        self._zero.setEnabled(layer is not None)
        self._zero.show_choice(
            self._label_classes.is_background(counts),
            self._label_classes.zero_text(counts),
        )
        self._add.setEnabled(
            layer is not None and not many and not self._label_classes.objects
        )
        self._add.setToolTip(
            self._why_no_class() or "Add a class with the next free value, to paint it"
        )
        self._update_remove()
        status = (
            self._refused
            or self._error
            or (self._counter.describe() if layer is not None else "")
        )
        self._status.setText(status)
        self._status.setVisible(bool(status))
        state = (self.classes(), self.counts(), self.problem())
        if state != self._announced:
            self._announced = state
            self.changed.emit()

    def _row(self, layer: LabelsLayer, value: int) -> Row:
        counts = self._counter.counts
        return Row(
            value=value,
            name=self._label_classes.name(value),
            color=label_classes.shown_color(layer, value),
            pixels=self._label_classes.pixels(counts, value)
            if counts is not None
            else None,
            used=value not in self._label_classes.unused,
            fixed=self._label_classes.objects and value != 0,
        )

    def _why_no_class(self) -> str:
        if self._layer is None:
            return "Choose a labels layer first, or create a new one"
        return (
            "These labels are objects, not classes" if not self._add.isEnabled() else ""
        )

    def _update_remove(self) -> None:
        value, counts = self._rows.current, self._counter.counts
        current_counts = (
            counts if not (self._counter.busy or self._counter.stale) else None
        )
        why = (
            "Choose a class without pixels first"
            if value is None
            else self._label_classes.why_kept(value, current_counts)
        )
        self._remove.setEnabled(not why)
        self._remove.setToolTip(why or "Remove this class, which has no pixels")
