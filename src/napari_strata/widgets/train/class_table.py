"""The class table of the Train dock.

Names, colours, labelled pixels, and what 0 means.
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

from napari_strata.core.classes import ClassMap
from napari_strata.widgets.layers import label_classes as class_book
from napari_strata.widgets.layers.convert import array_of
from napari_strata.widgets.layers.counts import LayerLinks, PixelCounter
from napari_strata.widgets.layers.label_classes import LabelClasses
from napari_strata.widgets.parts.class_rows import ClassRows, Row, ZeroChoice


class ClassTable(QWidget):
    """Classes of a Labels layer, to be named, coloured, used or ignored.

    0 is unlabelled or the background.

    What 0 means where nobody has said so: in labels painted here (or added by hand) it
    is unlabelled. In labels from a file, a sample or a plugin it is the background if
    every slice has labels, or if there is one other value only; otherwise the slices
    without labels wait to be labelled, and 0 is unlabelled. Labels with a class map
    follow that. It is decided once for a layer and shown with the share of the pixels
    that are 0.

    Every edit goes into the layer's metadata and features, so that files and other
    docks know it too.
    """

    changed = Signal()
    painted = Signal()
    """A stroke was painted on the labels."""
    """`classes`, `counts` or `problem` say something else than before."""
    picked = Signal(object)
    """The layer, when the user has chosen a class to paint with."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layer_ref: weakref.ref[LabelsLayer] | None = None
        self._book = LabelClasses()
        self._decided: weakref.WeakKeyDictionary[LabelsLayer, bool] = (
            weakref.WeakKeyDictionary()
        )
        self._painted: set[int] = set()
        self._offered = False  # whether this layer's objects may be one class
        self._error = self._refused = ""
        self._said: object = None
        self._links = LayerLinks()
        self.destroyed.connect(self._links.clear)
        self._counter = PixelCounter(self)
        self._counter.counted.connect(self._on_counted)
        self._counter.painted.connect(self._on_painted)
        self._counter.failed.connect(self._on_failed)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._show)
        self._build()
        self._show()

    def _build(self) -> None:
        self._rows, self._zero = ClassRows(self), ZeroChoice(self)
        self._rows.picked.connect(self._pick)
        self._rows.renamed.connect(self._rename)
        self._rows.used.connect(self._use)
        self._rows.color_asked.connect(self._ask_color)
        self._zero.chosen.connect(self._on_zero)
        self._many, self._status = QLabel(self), QLabel(self)
        for label in (self._many, self._status):
            label.setWordWrap(True)
        self._status.linkActivated.connect(lambda _: self._counter.count())
        self._objects = QCheckBox("Treat all objects as one class", self)
        self._objects.setToolTip(
            "Every value but 0 is then the same class, whatever its number"
        )
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
        for part in (self._many, self._objects, self._rows):
            column.addWidget(part)
        column.addLayout(buttons)
        column.addWidget(self._zero)
        column.addWidget(self._status)

    def set_labels(self, layer: LabelsLayer | None) -> None:
        """Show the classes of a layer; read the same layer's metadata again."""
        self._rows.finish()
        self._error = self._refused = ""
        new = layer is None or layer is not self._layer
        self._layer_ref = weakref.ref(layer) if layer is not None else None
        self._book = LabelClasses.of(layer) if layer is not None else LabelClasses()
        if layer is not None and self._book.background is None:
            self._book.background = self._decided.get(layer)
        if new:
            self._painted.clear()
            self._offered = False
            self._links.clear()
            if layer is not None:
                self._links.connect(
                    layer, colormap=self._on_colormap, selected_label=self._on_selected
                )
            self._counter.watch(layer)
        self._show()

    def classes(self) -> ClassMap | None:
        """Return the classes in use.

        Unused values, and 0 where it is unlabelled, are in `ClassMap.unlabelled`.
        """
        layer = self._layer
        return (
            self._book.class_map(layer, self._values()) if layer is not None else None
        )

    def counts(self) -> dict[int, int]:
        """Pixels of each label value as counted last, 0 too.

        Empty before the first count.
        """
        counts = self._counter.counts
        return dict(counts.total) if counts is not None else {}

    def problem(self) -> str:
        """Explain why these labels cannot be trained on; empty when they can."""
        counts, rows = self._counter.counts, self._values()
        if self._layer is None:
            return "No labels: choose a labels layer, or make a new one."
        if counts is not None:
            return self._book.problem(counts, rows)
        if self._counter.busy:
            return "Counting the labelled pixels …"
        used = [value for value in rows if value not in self._book.unused]
        return (
            ""
            if len(used) > 1
            else "The pixels are not counted yet: press Count to find the classes."
        )

    def add_class(self) -> None:
        """A class of the next free value, selected, with the brush at hand."""
        layer = self._layer
        if layer is None:
            return
        taken = {*self._values(), *self._book.names, *self.counts()}
        value = next(
            number for number in range(1, len(taken) + 2) if number not in taken
        )
        self._book.names[value] = self._book.name(value)
        self._write()
        self._pick(value)
        layer.mode = "paint"

    @property
    def _layer(self) -> LabelsLayer | None:
        return self._layer_ref() if self._layer_ref is not None else None

    def _write(self) -> None:
        """Everything that the table shows goes into the layer."""
        layer, values = self._layer, self._values()
        if layer is None:
            return
        self._refused = ""
        self._store(layer, values)
        self._show()

    def _store(self, layer: LabelsLayer, values: list[int]) -> None:
        for value in values:
            self._book.names[value] = self._book.name(value)
            self._book.colors[value] = self._book.color(layer, value)
        self._book.store(layer, self._book.class_map(layer, values))

    def _values(self) -> list[int]:
        """Label values of the rows."""
        return (
            self._book.rows(self._counter.counts, self._painted)
            if self._layer is not None
            else []
        )

    # what happens to the layer

    def _on_counted(self) -> None:
        layer, counts = self._layer, self._counter.counts
        if layer is not None and counts is not None:
            self._error = ""
            if not self._counter.busy:
                self._painted.clear()
            if self._book.background is None:
                self._book.background = self._decided[layer] = self._book.is_background(
                    counts
                )
        self._show()

    def _on_painted(self, value: int) -> None:
        self.painted.emit()
        if value and value not in self._values():
            self._painted.add(value)
            self._soon.start(0)

    def _on_failed(self, text: str) -> None:
        self._error = text
        self._show()

    def _on_colormap(self, _event: object = None) -> None:
        layer = self._layer
        if layer is not None and class_book.stored_classes(layer) is not None:
            self._store(layer, self._values())
        self._soon.start(0)

    def _on_selected(self, _event: object = None) -> None:
        layer = self._layer
        if layer is not None:
            self._make_seen(layer, [layer.selected_label])
            self._rows.mark(layer.selected_label)
            self._tell_remove()

    def _make_seen(self, layer: LabelsLayer, values: list[int]) -> None:
        """Give a colour to values that would be painted without one."""
        if self._book.objects or not (new := class_book.unseen(layer, values)):
            return
        taken = {class_book.shown_color(layer, value) or "" for value in self._values()}
        colors: dict[int, str] = {}
        for value in new:
            old_color = self._book.colors.get(value)
            colors[value] = old_color or class_book.free_color(
                taken | set(colors.values())
            )
        class_book.set_colors(layer, colors, self._values())

    # what the user does

    def _pick(self, value: int) -> None:
        layer = self._layer
        if layer is None:
            return
        try:
            layer.selected_label = value
        except ValueError:  # napari's words name numbers only
            self._refused = (
                f"{value} does not fit into this layer ({array_of(layer).dtype}): it"
                " cannot be painted."
            )
            self._show()
            return
        self._tell_remove()
        self.picked.emit(layer)

    def _use(self, value: int, used: bool) -> None:
        layer = self._layer
        if layer is None:
            return
        if value == 0:
            self._book.background = used
        elif not used:
            self._book.unused.add(value)
        else:
            self._book.unused.discard(value)
            if (
                class_book.shown_color(layer, value) is None
            ):  # as our reader has it for values that are not classes
                class_book.set_colors(
                    layer, {value: self._book.color(layer, value)}, self._values()
                )
        self._write()

    def _rename(self, value: int, name: str) -> None:
        others = {
            self._book.name(number) for number in self._values() if number != value
        }
        self._refused = (
            f"“{name}” is the name of another class; each needs its own."
            if name in others
            else ""
        )
        if name and not self._refused:
            self._book.names[value] = name
            if (
                self._book.names.get(0) == name and value
            ):  # 0 is no class now, and takes another name when it is
                del self._book.names[0]
            self._write()
        else:
            self._show()

    def _ask_color(self, value: int) -> None:
        layer = self._layer
        if layer is None:
            return
        dialog = QColorDialog(QColor(self._book.color(layer, value)), self)
        dialog.setWindowTitle(f"Colour of {self._book.name(value)}")
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.colorSelected.connect(lambda color: self._set_color(value, color.name()))
        dialog.open()

    def _set_color(self, value: int, color: str) -> None:
        layer = self._layer
        if layer is not None:
            self._book.colors[value] = color
            others = color if self._book.objects and value else None
            class_book.set_colors(layer, {value: color}, self._values(), others=others)
            self._write()

    def _on_zero(self, background: bool) -> None:
        self._book.background = background
        self._write()

    def _on_objects(self, on: bool) -> None:
        self._book.objects = on
        if self._book.names.get(1) in (
            "objects",
            "class 1",
        ):  # names that we gave: it is another thing now
            del self._book.names[1]
        self._write()

    def _on_remove(self) -> None:
        value = self._rows.current
        if value is None:
            return
        for table in (self._book.names, self._book.colors):
            table.pop(value, None)
        self._book.unused.discard(value)
        self._painted.discard(value)
        self._write()

    # what is shown

    def _show(self) -> None:
        """Bring every part up to date, and say so if something is new."""
        if self._rows.editing:  # a row under the user's hands stays where it is
            self._soon.start(50)
            return
        layer, counts = self._layer, self._counter.counts
        values = self._values()
        if layer is not None:
            self._make_seen(layer, values)
            if self._book.is_behind(layer, values):
                self._store(layer, values)
        self._rows.fill(
            [self._row(layer, value) for value in values] if layer is not None else []
        )
        self._rows.mark(layer.selected_label if layer is not None else None)
        many = self._book.look_like_objects(counts)
        self._many.setVisible(many)
        self._offered |= many or self._book.objects
        self._objects.setVisible(self._offered)
        self._rows.setVisible(self._book.objects or not many)
        if many and counts is not None:
            count = len(counts.total) - (0 in counts.total)
            self._many.setText(
                f"{count:,} label values: these look like object ids, not classes."
            )
        self._objects.setChecked(self._book.objects)
        self._zero.setEnabled(layer is not None)
        self._zero.show_choice(
            self._book.is_background(counts), self._book.zero_text(counts)
        )
        self._add.setEnabled(layer is not None and not many and not self._book.objects)
        self._add.setToolTip(
            self._why_no_class() or "A class of the next free value, ready to paint"
        )
        self._tell_remove()
        status = (
            self._refused
            or self._error
            or (self._counter.describe() if layer is not None else "No labels layer")
        )
        self._status.setText(status)
        self._status.setVisible(bool(status))
        state = (self.classes(), self.counts(), self.problem())
        if state != self._said:
            self._said = state
            self.changed.emit()

    def _row(self, layer: LabelsLayer, value: int) -> Row:
        counts = self._counter.counts
        return Row(
            value=value,
            name=self._book.name(value),
            color=class_book.shown_color(layer, value),
            pixels=self._book.pixels(counts, value) if counts is not None else None,
            used=value not in self._book.unused,
            fixed=self._book.objects and value != 0,
        )

    def _why_no_class(self) -> str:
        if self._layer is None:
            return "Choose a labels layer first, or make a new one"
        return (
            "These labels are objects, not classes" if not self._add.isEnabled() else ""
        )

    def _tell_remove(self) -> None:
        value, counts = self._rows.current, self._counter.counts
        current_counts = (
            counts if not (self._counter.busy or self._counter.stale) else None
        )
        why = (
            "Choose a class without pixels first"
            if value is None
            else self._book.why_kept(value, current_counts)
        )
        self._remove.setEnabled(not why)
        self._remove.setToolTip(why or "Drop this class, which no pixel carries")
