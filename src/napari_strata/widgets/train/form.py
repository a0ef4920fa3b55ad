"""Form with all settings of a recipe, built from the fields of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, get_args

from magicgui.widgets import CheckBox, Container
from pydantic.fields import FieldInfo
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QGridLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.network_sections import NetworkSection, network_kinds
from napari_strata.core.recipe import Recipe
from napari_strata.core.sections import Section, section_of
from napari_strata.widgets.train.fields import Field, check, setting_label, wrapped

VOLUME_SETTINGS = {"patches.depth", "augmentation.flip_depth"}
"""Settings for networks of volumes."""
PLANE_SETTINGS = {"patches.neighbours", "patches.resize"}
"""Settings for networks of planes."""


class CollapsibleGroup(QWidget):
    """Group of widgets that can be opened by a click on its title."""

    toggled = Signal(bool)

    def __init__(self, title: str, tooltip: str = "") -> None:
        super().__init__()
        self._title, self._mark = title, ""
        self.button = QPushButton()
        self.button.setCheckable(True)
        self.button.setStyleSheet(
            "text-align: left; border: none; outline: none;"
            " background: transparent; padding: 2px 0;"
        )
        self.button.setToolTip(wrapped(tooltip))
        self._content = QWidget()
        self._content.hide()
        self._rows = QVBoxLayout(self._content)
        self._rows.setContentsMargins(8, 0, 0, 4)
        self._rows.setSpacing(3)
        column = QVBoxLayout(self)
        column.setAlignment(Qt.AlignmentFlag.AlignTop)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self.button)
        column.addWidget(self._content)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        self.button.toggled.connect(self._on_toggled)
        self._show_title()

    @property
    def is_open(self) -> bool:
        """True while the content is shown."""
        return self.button.isChecked()

    def fill(self, widget: QWidget) -> None:
        """Put a widget into the group."""
        self._rows.addWidget(widget)

    def mark(self, wrong: bool) -> None:
        """Show in the title that the group contains a problem."""
        self._mark = " ⚠" if wrong else ""
        self._show_title()

    def _on_toggled(self, opened: bool) -> None:
        self._content.setVisible(opened)
        self._show_title()
        self.toggled.emit(opened)

    def _show_title(self) -> None:
        arrow = "▾" if self.is_open else "▸"
        self.button.setText(f"{arrow} {self._title}{self._mark}")


class _Group(QWidget):
    """Fields of a section, one below the other."""

    def __init__(
        self, section: type[Section], path: str, edited: Callable[..., None]
    ) -> None:
        super().__init__()
        self._edited = edited
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(2)  # labels have their own margin
        self._grid.setVerticalSpacing(3)
        self._grid.setColumnStretch(1, 1)
        self._fixed: dict[str, Any] = {}
        self._notes: dict[str, QLabel] = {}
        self.parts: dict[str, _Part] = {}
        for name, info in section.model_fields.items():
            if len(get_args(info.annotation)) == 1:  # Literal["unet"] has no choice
                self._fixed[name] = info.default
            else:
                self._add(name, info, f"{path}.{name}")

    def read(self) -> dict[str, Any]:
        return self._fixed | {
            name: part.value if isinstance(part, Field) else part.read()
            for name, part in self.items
        }

    def show_values(self, raw: dict[str, Any]) -> None:
        for name, part in self.items:
            if isinstance(part, Field):
                part.show(raw[name])
            else:
                part.show_values(raw[name])

    @property
    def items(self) -> list[tuple[str, _Part]]:
        return list(self.parts.items())

    def fields(self) -> Iterator[Field]:
        """Iterate over the fields that are in use."""
        for _, part in self.items:
            if isinstance(part, Field):
                yield part
            else:
                yield from part.fields()

    def show_problems(self) -> None:
        """Show the problem of each field below it."""
        last_problem = ""  # two fields may have a common problem
        for name, part in self.items:
            if isinstance(part, Field):
                note = self._notes[name]
                note.setText(f"⚠ {part.problem}")
                note.setVisible(bool(part.problem) and part.problem != last_problem)
                last_problem = part.problem
            else:
                part.show_problems()

    def _add(self, name: str, info: FieldInfo, path: str) -> None:
        row = self._grid.rowCount()
        sections = _sections(info)
        if sections:
            part: _Part = make_part(sections, info, path, self._edited)
            self._grid.addWidget(part.native, row, 0, 1, 2)
        else:
            part = Field(path, info)
            part.edited.connect(self._edited)
            if part.is_switch:
                self._grid.addWidget(part.native, row, 0, 1, 2)
            else:
                label = QLabel(part.label)
                label.setToolTip(part.native.toolTip())
                label.setBuddy(part.native)
                self._grid.addWidget(label, row, 0)
                self._grid.addWidget(part.native, row, 1)
            note = self._notes[name] = QLabel()
            note.setWordWrap(True)
            note.hide()
            self._grid.addWidget(note, row + 1, 0, 1, 2)
        self.parts[name] = part


class _Fixed:
    """Section that is always present, in a group that can be opened."""

    def __init__(
        self,
        kinds: list[type[Section]],
        info: FieldInfo,
        path: str,
        edited: Callable[..., None],
    ) -> None:
        self.group = _Group(kinds[0], path, edited)
        self.native: QWidget = CollapsibleGroup(
            setting_label(path), info.description or kinds[0].__doc__ or ""
        )
        self.native.fill(self.group)

    def read(self) -> Any:
        return self.group.read()

    def show_values(self, raw: Any) -> None:
        self.group.show_values(raw)

    def fields(self) -> Iterator[Field]:
        return self.group.fields()

    def show_problems(self) -> None:
        self.group.show_problems()
        if isinstance(self.native, CollapsibleGroup):
            self.native.mark(any(field.problem for field in self.fields()))


class _Optional(_Fixed):
    """Section that may be left out, with a check box."""

    def __init__(
        self,
        kinds: list[type[Section]],
        info: FieldInfo,
        path: str,
        edited: Callable[..., None],
    ) -> None:
        self._default = kinds[0]().model_dump(mode="json")
        self._edited = edited
        self.group = _Group(kinds[0], path, edited)
        self.group.layout().setContentsMargins(16, 0, 0, 4)
        self.group.show_values(self._default)
        self.switch = CheckBox(text=setting_label(path))
        self.switch.native.setToolTip(
            wrapped(kinds[0].__doc__ or info.description or "")
        )
        self.native: QWidget = QWidget()
        rows = QVBoxLayout(self.native)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(3)
        rows.addWidget(self.switch.native)
        rows.addWidget(self.group)
        self.group.hide()
        self.switch.changed.connect(self._on_switch)

    def read(self) -> Any:
        return self.group.read() if self.switch.value else None

    def show_values(self, raw: Any) -> None:
        with self.switch.changed.blocked():
            self.switch.value = raw is not None
        self.group.setVisible(raw is not None)
        self.group.show_values(self._default if raw is None else raw)

    def fields(self) -> Iterator[Field]:
        return self.group.fields() if self.switch.value else iter(())

    def _on_switch(self, on: bool) -> None:
        self.group.setVisible(on)
        self._edited()


class _Variant(_Fixed):
    """Section of one of several kinds.

    A choice selects the kind. Each kind keeps its values while another is selected.
    """

    def __init__(
        self,
        kinds: list[type[Section]],
        info: FieldInfo,
        path: str,
        edited: Callable[..., None],
    ) -> None:
        self._key = "kind"
        self._path, self._edited = path, edited
        self._kinds = {kind.model_fields[self._key].default: kind for kind in kinds}
        self._groups: dict[str, _Group] = {}
        choice = FieldInfo(
            annotation=_literal(self._kinds), description=_tip(self._kinds)
        )
        self.choice = Field(f"{path}.{self._key}", choice)
        self.choice.edited.connect(self._on_choice)
        self.native = CollapsibleGroup(setting_label(path), choice.description or "")
        top = QWidget()
        grid = QGridLayout(top)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(QLabel(self.choice.label), 0, 0)
        grid.addWidget(self.choice.native, 0, 1)
        grid.setColumnStretch(1, 1)
        self.native.fill(top)
        self.choice.show(next(iter(self._kinds)))
        self._swap()

    def read(self) -> Any:
        return self.group.read()

    def show_values(self, raw: Any) -> None:
        self.choice.show(raw[self._key])
        self._swap()
        for kind, group in self._groups.items():
            group.show_values(
                raw
                if kind == raw[self._key]
                else self._kinds[kind]().model_dump(mode="json")
            )

    def fields(self) -> Iterator[Field]:
        yield self.choice
        yield from self.group.fields()

    def _on_choice(self, _field: Field) -> None:
        self._swap()
        self._edited()

    def _swap(self) -> None:
        kind = self.choice.value
        if kind not in self._groups:
            self._groups[kind] = _Group(self._kinds[kind], self._path, self._edited)
            self._groups[kind].show_values(self._kinds[kind]().model_dump(mode="json"))
            assert isinstance(self.native, CollapsibleGroup)
            self.native.fill(self._groups[kind])
        self.group = self._groups[kind]
        for name, group in self._groups.items():
            group.setVisible(name == kind)


_Part: TypeAlias = Field | _Fixed


class RecipeForm(Container[Any]):
    """Form with all settings of a recipe.

    `changed` is emitted once for each edit. Invalid entries are marked and ignored.
    """

    def __init__(self) -> None:
        super().__init__(labels=False)
        self.problem = ""
        self._sections: dict[str, _Fixed] = {}
        self._recipe = Recipe()
        self.native.layout().setContentsMargins(0, 0, 0, 0)
        self.native.layout().setSpacing(2)
        for name, info in Recipe.model_fields.items():
            # Fields that are not sections (version, name, description) are kept.
            if kinds := _sections(info):
                self._sections[name] = make_part(kinds, info, name, self._on_edit)
                self.native.layout().addWidget(self._sections[name].native)
        self.set_value(self._recipe)

    def value(self) -> Recipe:
        """Return the recipe, or the last valid one if there is a `problem`."""
        return self._recipe

    def set_value(self, recipe: Recipe) -> None:
        """Show a recipe without emitting a signal."""
        self._recipe, self.problem = recipe, ""
        raw = recipe.model_dump(mode="json")
        for name, section in self._sections.items():
            section.show_values(raw[name])
            section.show_problems()
        self._explain()

    def field(self, path: str) -> Field:
        """Return the field of a dotted key, for example ``training.epochs``."""
        return next(field for field in self.fields() if field.path == path)

    def fields(self) -> Iterator[Field]:
        """Iterate over the fields in use.

        They belong to the chosen network and to sections that are switched on.
        """
        for section in self._sections.values():
            yield from section.fields()

    def _on_edit(self, _field: object = None) -> None:
        raw = self._recipe.model_dump(mode="json") | {
            name: section.read() for name, section in self._sections.items()
        }
        recipe, self.problem = check(raw, self.fields())
        self._recipe = recipe or self._recipe
        for section in self._sections.values():
            section.show_problems()
        self._explain()
        self.changed.emit(self)

    def _explain(self) -> None:
        """Disable settings that do not apply to the chosen network, with a reason."""
        why = dict.fromkeys(
            VOLUME_SETTINGS,
            "This network takes single planes; the setting applies only to unet3d.",
        )
        kind = self._sections["network"].read()["kind"]
        if network_kinds()[kind].axes == "ZYX":
            why = dict.fromkeys(
                PLANE_SETTINGS,
                "unet3d always sees the planes above and below; the setting is for"
                " networks of planes.",
            )
        for field in self.fields():
            # A field with a problem stays enabled, so that it can be corrected.
            if field.path in VOLUME_SETTINGS | PLANE_SETTINGS and not field.problem:
                field.explain(why.get(field.path, ""))


def make_part(
    kinds: list[type[Section]], info: FieldInfo, path: str, edited: Callable[..., None]
) -> _Fixed:
    """Build the part of the form for a field with one of these sections."""
    if len(kinds) > 1:
        return _Variant(kinds, info, path, edited)
    return (_Optional if type(None) in get_args(info.annotation) else _Fixed)(
        kinds, info, path, edited
    )


def _sections(info: FieldInfo) -> list[type[Section]]:
    """Return the sections that a field may have; empty for a plain value."""
    section = section_of(info)
    if section is NetworkSection:
        return list(network_kinds().values())
    return [section] if section else []


def _literal(words: Any) -> Any:
    return Literal[tuple(words)]


def _tip(kinds: dict[str, type[Section]]) -> str:
    return "\n\n".join(
        f"{name.replace('_', ' ')}: {kind.__doc__}" for name, kind in kinds.items()
    )
