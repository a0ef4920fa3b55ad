"""Choice of a recipe with four main settings; a group has all settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import list_recipes, load_recipe
from napari_strata.core.sections import Section
from napari_strata.widgets.train.fields import (
    Field,
    check,
    make_compact,
    setting_label,
    show_value,
    wrapped,
)
from napari_strata.widgets.train.form import CollapsibleGroup, RecipeForm
from napari_strata.widgets.work import threads

FROM_FILE = "From a file ..."
MAIN_SETTINGS = {
    "training.epochs": ("Epochs", "512"),
    "training.learning_rate": ("Learning rate", "0.0001"),
    "patches.size": ("Patch size", "512"),
    "training.batch_size": ("Batch size", "0.0001"),
}
"""Main settings: label, and a text that determines the smallest width."""
LISTED_CHANGES = 3
"""Number of changes that are listed; the tooltip has all."""


class RecipeBox(QWidget):
    """Recipe and changes of its settings.

    `changed` is emitted once for each edit and each choice of a recipe.
    """

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._base, self._start = "default", _bundled()["default"]
        self._recipe = self._start
        self._problem = ""
        self.form: RecipeForm | None = None
        self.fields = {
            path: Field(path, _info(path), label)
            for path, (label, _) in MAIN_SETTINGS.items()
        }
        self._build()
        self.set_recipe("default")

    def recipe(self) -> Recipe:
        """Return the recipe, or the last valid one if there is a `problem`."""
        return self._recipe

    def base(self) -> str:
        """Return the name of the chosen recipe, or the path of its file."""
        return self._base

    def overrides(self) -> dict[str, Any]:
        """Return the changes of the base as dotted keys and plain values."""
        return _difference(self._start, self._recipe)

    def problem(self) -> str:
        """Describe the problems of the settings; empty if there are none."""
        return self._problem

    def set_recipe(self, base: str, overrides: Mapping[str, Any] = {}) -> None:
        """Show a recipe by name or path, with changes by dotted keys.

        Raises `RecipeError` if it cannot be read; the old recipe is then kept.
        """
        self._set_base(base, _bundled().get(base) or load_recipe(base), overrides)

    def reset(self) -> None:
        """Reset every setting to that of the recipe."""
        self._set_base(self._base, self._start, {})

    def _set_base(self, base: str, start: Recipe, overrides: Mapping[str, Any]) -> None:
        recipe = start.with_overrides(overrides)
        self._base, self._start = base, start
        self._show_base()
        self._show_recipe(recipe)

    def _build(self) -> None:
        self.combo = QComboBox()
        make_compact(self.combo)
        for name, recipe in _bundled().items():
            self.combo.addItem(name, name)
            self.combo.setItemData(
                self.combo.count() - 1,
                wrapped(recipe.description),
                Qt.ItemDataRole.ToolTipRole,
            )
        self.combo.addItem(FROM_FILE)
        self.combo.activated.connect(self._on_pick)
        self.about, self.wrong, self.resized, self.differs = (_text() for _ in range(4))
        self.suggestion = SuggestionRow()
        self.suggestion.accepted.connect(self.set_recipe)
        self.reset_button = QPushButton("Reset")
        self.reset_button.setToolTip("Reset every setting to that of the recipe.")
        self.reset_button.clicked.connect(self.reset)
        self.fold = CollapsibleGroup(
            "All settings", "All settings of the recipe, with explanations."
        )
        self.fold.toggled.connect(self._on_fold)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(4)
        top = QHBoxLayout()
        top.setSpacing(6)
        top.addWidget(QLabel("Recipe"))
        top.addWidget(self.combo, 1)
        rows.addLayout(top)
        rows.addWidget(self.about)
        rows.addWidget(self.suggestion)
        rows.addLayout(self._main_rows())
        rows.addWidget(self.resized)
        messages = QVBoxLayout()
        messages.addWidget(self.wrong)
        messages.addWidget(self.differs)
        state = QHBoxLayout()
        state.setSpacing(6)
        state.addLayout(messages, 1)
        state.addWidget(self.reset_button, 0, Qt.AlignmentFlag.AlignTop)
        rows.addLayout(state)
        rows.addWidget(self.fold)

    def _main_rows(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(2)  # labels have their own margin
        grid.setVerticalSpacing(4)
        for number, field in enumerate(self.fields.values()):
            row, column = divmod(number, 2)
            label = QLabel(field.label)
            label.setToolTip(field.native.toolTip())
            label.setBuddy(field.native)
            field.make_room(MAIN_SETTINGS[field.path][1])
            grid.addWidget(label, row, 2 * column)
            grid.addWidget(field.native, row, 2 * column + 1)
            grid.setColumnStretch(2 * column + 1, 1)
            field.edited.connect(self._on_main_edit)
        return grid

    def _on_main_edit(self, field: Field) -> None:
        if self.form is not None:  # it emits `changed`
            self.form.field(field.path).type(field.widget.value)
            return
        self._check_main()
        self._show_state()
        self.changed.emit()

    def _check_main(self) -> None:
        raw = self._recipe.model_dump(mode="json")
        for path, field in self.fields.items():
            section, name = path.split(".")
            raw[section][name] = field.value
        recipe, self._problem = check(raw, self.fields.values())
        self._recipe = recipe or self._recipe

    def _on_fold(self, opened: bool) -> None:
        if opened and self.form is None:
            form = RecipeForm()
            form.set_value(self._recipe)
            if self._problem:
                for path, field in self.fields.items():
                    form.field(path).type(field.widget.value)
            form.changed.connect(self._on_form)
            self.fold.fill(form.native)
            self.form = form

    def _on_form(self, _form: object = None) -> None:
        assert self.form is not None
        self._recipe, self._problem = self.form.value(), self.form.problem
        for path, field in self.fields.items():
            field.mirror(self.form.field(path))
        self._show_state()
        self.changed.emit()

    def _on_pick(self, index: int) -> None:
        if self.combo.itemText(index) == FROM_FILE:
            self._show_base()
            self._ask_file()
        elif self.combo.itemData(index) != self._base:
            self._choose(self.combo.itemData(index))

    def _ask_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Choose a recipe", "", "Recipes (*.yaml *.yml *.json)"
        )
        if path:
            self._choose(path)

    def _choose(self, base: str) -> None:
        """Choose a recipe; a file is read in a thread."""
        if base in _bundled():
            self.set_recipe(base)
            return
        set_base = partial(self._set_base, base, overrides={})
        threads.run(lambda: load_recipe(base), set_base, self._not_loaded, owner=self)

    def _not_loaded(self, error: Exception) -> None:
        self._show_base()
        self.wrong.show_message(f"{error} The recipe is still {self._start.name}.")

    def _show_base(self) -> None:
        index = self.combo.findData(self._base)
        if index < 0:
            index = self.combo.count() - 1
            self.combo.insertItem(index, self._start.name, self._base)
            self.combo.setItemData(
                index, wrapped(self._base), Qt.ItemDataRole.ToolTipRole
            )
        self.combo.setCurrentIndex(index)
        description = self._start.description
        self.about.show_message(
            description.split(". ")[0].removesuffix(".") + "." if description else ""
        )
        for widget in (self.about, self.combo):
            widget.setToolTip(wrapped(description))

    def _show_recipe(self, recipe: Recipe) -> None:
        self._recipe, self._problem = recipe, ""
        for path, field in self.fields.items():
            section, name = path.split(".")
            field.show(getattr(getattr(recipe, section), name))
        if self.form is not None:
            self.form.set_value(recipe)
        self._show_state()
        self.changed.emit()

    def _show_state(self) -> None:
        """Show the notes beside the settings: resizing, problems, changes."""
        self.wrong.show_message(f"⚠ {self._problem}" if self._problem else "")
        side = self._recipe.patches.resize
        why = (
            f"Whole images are resized to {side} x {side} pixels, so no patches are"
            " cut."
            if side
            else ""
        )
        self.resized.show_message(why)
        if not self.fields["patches.size"].problem:
            self.fields["patches.size"].explain(
                f"{why} First clear the field All settings > Patches > Resize."
                if why
                else ""
            )
        self.fold.mark(bool(self._problem))
        overrides = sorted(
            self.overrides().items(), key=lambda item: item[0] not in MAIN_SETTINGS
        )
        changes = [self._change(path, value) for path, value in overrides]
        more = (
            f" and {len(changes) - LISTED_CHANGES} more"
            if len(changes) > LISTED_CHANGES
            else ""
        )
        self.differs.show_message(
            f"Changed: {', '.join(changes[:LISTED_CHANGES])}{more}" if changes else ""
        )
        self.differs.setToolTip(wrapped("\n\n".join(changes)))
        self.reset_button.setVisible(bool(changes or self._problem))

    def _change(self, path: str, value: Any) -> str:
        section, *names = path.split(".")
        name = setting_label(section if names == ["kind"] else path)
        label = (MAIN_SETTINGS[path][0] if path in MAIN_SETTINGS else name).lower()
        was: Any = self._start
        new: Any = self._recipe
        for part in path.split("."):
            # Another kind of network did not have this setting.
            if type(was) is not type(new) and part != "kind":
                return f"{label} {_brief(value)}"
            was, new = getattr(was, part, None), getattr(new, part)
        return f"{label} {_brief(value)} (was {_brief(was)})"


class SuggestionRow(QWidget):
    """Line that suggests another recipe, with a button to choose it."""

    accepted = Signal(str)
    """Name of the suggested recipe."""

    def __init__(self) -> None:
        super().__init__()
        self._recipe = ""
        self.text = _text()
        self.button = QPushButton()
        self.button.clicked.connect(lambda: self.accepted.emit(self._recipe))
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(6)
        row.addWidget(self.text, 1)
        row.addWidget(self.button, 0, Qt.AlignmentFlag.AlignTop)
        self.hide()

    def suggest(self, recipe: str, reason: str) -> None:
        """Suggest a recipe; with an empty name nothing is shown."""
        self._recipe = recipe
        self.text.show_message(reason)
        self.button.setText(f"Use {recipe}")
        self.setVisible(bool(recipe))


class _Text(QLabel):
    """Label with line breaks, hidden if its text is empty."""

    def show_message(self, text: str) -> None:
        self.setText(text)
        self.setVisible(bool(text))


def _text() -> _Text:
    text = _Text()
    text.setWordWrap(True)
    text.setTextFormat(Qt.TextFormat.PlainText)
    text.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    text.hide()
    return text


@cache
def _bundled() -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in list_recipes()}


def _info(path: str) -> Any:
    section, name = path.split(".")
    kind: Any = Recipe.model_fields[section].annotation
    return kind.model_fields[name]


def _brief(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Section):
        value = value.model_dump(mode="json")
    return show_value(value) or "not set"


def _difference(before: Section, after: Section, path: str = "") -> dict[str, Any]:
    """Return the changes from one section to another as dotted keys and values.

    For another kind of network, the changes are relative to its defaults.
    """
    changes: dict[str, Any] = {}
    plain = after.model_dump(mode="json")
    for name in type(after).model_fields:
        dotted = f"{path}{name}"
        was, new = getattr(before, name), getattr(after, name)
        if was == new and type(was) is type(new):
            continue
        if isinstance(was, Section) and isinstance(new, Section):
            if type(was) is not type(new):
                changes[f"{dotted}.kind"] = plain[name]["kind"]
                was = type(new)()
            changes |= _difference(was, new, f"{dotted}.")
        else:
            changes[dotted] = plain[name]
    return changes
