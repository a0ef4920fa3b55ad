"""Choice of a recipe: four main settings, and all others in a group that opens."""

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
    in_words,
    show_value,
    tame,
    wrapped,
)
from napari_strata.widgets.train.form import Fold, RecipeForm
from napari_strata.widgets.work import threads

FROM_FILE = "From a file ..."
PLAIN = {
    "training.epochs": ("Epochs", "512"),
    "training.learning_rate": ("Learning rate", "0.0001"),
    "patches.size": ("Patch size", "512"),
    "training.batch_size": ("Patches/step", "0.0001"),
}
"""The settings of the first level: label, and a text that fits in."""
SHOWN = 3
"""Changes that are named; the others are counted, and named in the tooltip."""


class RecipeBox(QWidget):
    """A recipe and what is changed in it.

    `changed` is emitted once for every edit and every other recipe.
    """

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._base, self._start = "default", _bundled()["default"]
        self._recipe = self._start
        self._problem = ""
        self.form: RecipeForm | None = None
        self.fields = {
            path: Field(path, _info(path), label) for path, (label, _) in PLAIN.items()
        }
        self._build()
        self.set_recipe("default")

    def recipe(self) -> Recipe:
        """The recipe as it stands.

        While there is a `problem`, as it last stood right.
        """
        return self._recipe

    def base(self) -> str:
        """Name of the recipe that was chosen, or the path of its file."""
        return self._base

    def overrides(self) -> dict[str, Any]:
        """Dotted keys and values (plain data) that make the base the recipe that stands
        here.
        """
        return _difference(self._start, self._recipe)

    def problem(self) -> str:
        """Explain what is wrong with the settings; empty when nothing is."""
        return self._problem

    def set_recipe(self, base: str, overrides: Mapping[str, Any] = {}) -> None:
        """Show a recipe by name or path, with dotted keys replaced.

        Raises `RecipeError` and shows the old one then.
        """
        self._take(base, _bundled().get(base) or load_recipe(base), overrides)

    def reset(self) -> None:
        """Take every setting from the recipe again."""
        self._take(self._base, self._start, {})

    def _take(self, base: str, start: Recipe, overrides: Mapping[str, Any]) -> None:
        recipe = start.with_overrides(overrides)
        self._base, self._start = base, start
        self._show_base()
        self._show_recipe(recipe)

    def _build(self) -> None:
        self.combo = QComboBox()
        tame(self.combo)
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
        self.reset_button = QPushButton("Reset")
        self.reset_button.setToolTip("Take every setting from the recipe again.")
        self.reset_button.clicked.connect(self.reset)
        self.fold = Fold(
            "All settings", "Every setting of the recipe, with an explanation of each."
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
        rows.addLayout(self._plain_rows())
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

    def _plain_rows(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(2)  # labels have some room of their own
        grid.setVerticalSpacing(4)
        for number, field in enumerate(self.fields.values()):
            row, column = divmod(number, 2)
            label = QLabel(field.label)
            label.setToolTip(field.native.toolTip())
            label.setBuddy(field.native)
            field.make_room(PLAIN[field.path][1])
            grid.addWidget(label, row, 2 * column)
            grid.addWidget(field.native, row, 2 * column + 1)
            grid.setColumnStretch(2 * column + 1, 1)
            field.edited.connect(self._on_plain)
        return grid

    def _on_plain(self, field: Field) -> None:
        if self.form is not None:  # which answers with `changed`
            self.form.field(field.path).type(field.widget.value)
            return
        self._check_plain()
        self._show_state()
        self.changed.emit()

    def _check_plain(self) -> None:
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
        """Take another recipe; a file is read in a thread."""
        if base in _bundled():
            self.set_recipe(base)
            return
        take = partial(self._take, base, overrides={})
        threads.run(lambda: load_recipe(base), take, self._not_loaded, owner=self)

    def _not_loaded(self, error: Exception) -> None:
        self._show_base()
        self.wrong.say(f"{error} The recipe stays {self._start.name}.")

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
        self.about.say(
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
        self.wrong.say(f"⚠ {self._problem}" if self._problem else "")
        side = self._recipe.patches.resize
        why = (
            f"Whole pictures are resized to {side} x {side} pixels, so no patches are"
            " cut."
            if side
            else ""
        )
        self.resized.say(why)
        if not self.fields["patches.size"].problem:
            self.fields["patches.size"].explain(
                f"{why} Empty All settings > Patches > Resize first." if why else ""
            )
        self.fold.mark(bool(self._problem))
        overrides = sorted(
            self.overrides().items(), key=lambda item: item[0] not in PLAIN
        )
        changes = [self._change(path, value) for path, value in overrides]
        more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        self.differs.say(
            f"Changed: {', '.join(changes[:SHOWN])}{more}" if changes else ""
        )
        self.differs.setToolTip(wrapped("\n\n".join(changes)))
        self.reset_button.setVisible(bool(changes or self._problem))

    def _change(self, path: str, value: Any) -> str:
        section, *names = path.split(".")
        name = in_words(section if names == ["kind"] else path)
        label = (PLAIN[path][0] if path in PLAIN else name).lower()
        was: Any = self._start
        new: Any = self._recipe
        for part in path.split("."):
            if (
                type(was) is not type(new) and part != "kind"
            ):  # another kind of network: it was nothing before
                return f"{label} {_brief(value)}"
            was, new = getattr(was, part, None), getattr(new, part)
        return f"{label} {_brief(value)} (was {_brief(was)})"


class _Text(QLabel):
    """Text that wraps, and takes no room when there is none."""

    def say(self, text: str) -> None:
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


def _difference(one: Section, other: Section, path: str = "") -> dict[str, Any]:
    """Dotted keys that make `one` into `other`.

    Another kind of network is counted from its own defaults.
    """
    changes: dict[str, Any] = {}
    plain = other.model_dump(mode="json")
    for name in type(other).model_fields:
        dotted, was, new = f"{path}{name}", getattr(one, name), getattr(other, name)
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
