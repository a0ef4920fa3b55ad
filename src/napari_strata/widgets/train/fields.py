"""One field of a recipe -> one widget that holds its value exactly, with None, 1e-4 and
tuples of any length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import napari
from magicgui.widgets import CheckBox, ComboBox, LineEdit
from napari.settings import get_settings
from napari.utils.theme import get_theme
from psygnal import Signal
from pydantic.fields import FieldInfo
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QComboBox, QSizePolicy, QWidget

from napari_strata.core.errors import RecipeError
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import parse_value

PADDING = 8
"""Pixels beside the text of a field."""
NARROW = 6
"""Characters that a choice shows at least; more where there is room."""


class Field:
    """A setting and its widget.

    `value` is the setting as plain data (as in a recipe file), `error` says why what
    was typed is none. A value that was shown comes back as it is until somebody edits
    it, whatever its text looks like.
    """

    edited = Signal(object)
    """Somebody typed, picked or clicked; carries the field."""

    def __init__(self, path: str, info: FieldInfo, label: str = "") -> None:
        self.path, self.label = path, label or info.title or in_words(path)
        self.value: Any = ...  # nothing yet: no setting is this
        self.error = self.problem = ""
        self._tip = info.description or ""
        self._example = show_value(info.get_default())
        self._types = _alternatives(info.annotation)
        choices = [
            word
            for part in self._types
            for word in get_args(part)
            if get_origin(part) is Literal
        ]
        self.is_switch = self._types == [bool]
        self._words: dict[str, Any] = {}
        if choices and all(
            get_origin(part) is Literal or part is NoneType for part in self._types
        ):
            choices += [None] if NoneType in self._types else []
            self._words = {_word(word): word for word in choices}
        self.widget = self._widget()
        self.native: QWidget = self.widget.native
        if isinstance(self.widget, LineEdit):
            self.make_room("0.0001")
        self.mark("")
        self.widget.changed.connect(self._on_edit)

    def _widget(self) -> CheckBox | ComboBox | LineEdit:
        if self.is_switch:
            return CheckBox(text=self.label)
        if self._words:
            combo = ComboBox(choices=list(self._words))
            tame(combo.native)
            return combo
        edit = LineEdit()
        edit.native.setPlaceholderText("not set" if NoneType in self._types else "")
        edit.native.setSizePolicy(
            QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed
        )
        edit.native.editingFinished.connect(self._tidy)
        return edit

    def make_room(self, text: str) -> None:
        """Be no narrower than this text."""
        self.native.setMinimumWidth(
            self.native.fontMetrics().horizontalAdvance(text) + PADDING
        )

    def show(self, value: Any) -> None:
        """Hold this value; nothing is emitted."""
        if self.error or _differ(value, self.value):
            self.value, self.error = value, ""
            self._put(self._shown(value))
        self.mark("")

    def type(self, text: Any) -> None:
        """Edit the setting as a person does."""
        self.widget.value = text
        self._tidy()

    def mirror(self, other: Field) -> None:
        """Hold what another field of the same setting holds, right or wrong."""
        if self.error != other.error or _differ(self.value, other.value):
            self.value, self.error = other.value, other.error
            self._put(other.widget.value if self.error else self._shown(self.value))
        self.mark(other.problem)

    def mark(self, problem: str) -> None:
        """Mark the widget as wrong, in words; an empty text takes the mark away."""
        self.problem = problem
        tip = "\n\n".join(filter(None, (problem, self._tip)))
        self.native.setToolTip(wrapped(tip))
        frame = f"border: 2px solid {_error_color()}; padding: 0px;" if problem else ""
        style = f"{type(self.native).__name__} {{ {frame} }}" if problem else ""
        if self.native.styleSheet() != style:
            self.native.setStyleSheet(style)

    def explain(self, why_not: str) -> None:
        """Disable the setting and say why; an empty text enables it."""
        self.native.setEnabled(not why_not)
        self.native.setToolTip(wrapped(why_not or self._tip))

    def _put(self, shown: Any) -> None:
        with self.widget.changed.blocked():
            self.widget.value = shown
        if isinstance(self.widget, LineEdit):
            self.widget.native.setCursorPosition(0)

    def _shown(self, value: Any) -> Any:
        if self.is_switch:
            return bool(value)
        if self._words:
            return _word(value)
        return show_value(value)

    def _on_edit(self, shown: Any) -> None:
        self.error = ""
        if shown == "" and NoneType not in self._types:
            self.error = f"{self.path} is empty: type a value, such as {self._example}."
        elif self.is_switch:
            self.value = bool(shown)
        elif self._words:
            self.value = self._words[shown]
        else:
            try:
                self.value = self._parse(str(shown))
            except (
                RecipeError,
                ValueError,
            ):  # PyYAML lets some, such as 2020-13-45, through
                such = (
                    f"; type it like this: {self._example}." if self._example else "."
                )
                self.error = f"{self.path} is {str(shown)!r}: it cannot be read{such}"
        self.edited.emit(self)

    def _parse(self, text: str) -> Any:
        if not text.strip():
            return None
        if str in self._types and {*self._types} <= {str, NoneType}:
            return text
        origins = {get_origin(part) for part in self._types}
        if dict in origins:
            inside = re.sub(r":(?=\S)", ": ", text.strip().strip("{}"))
            return parse_value("{" + inside + "}")
        if tuple in origins and not text.strip()[0].isalpha():
            inside = ", ".join(
                filter(None, re.split(r"[\s,;]+", text.strip().strip("[]()")))
            )
            return [_plain_number(item) for item in inside.split(", ") if item]
        return _plain_number(text.strip())

    def _tidy(self) -> None:
        """Once typing ends, the text is the value as it was understood."""
        if not (self.error or self.problem):
            self._put(self._shown(self.value))


def check(raw: Mapping[str, Any], fields: Iterable[Field]) -> tuple[Recipe | None, str]:
    """The recipe that plain data makes, or None and what is wrong, in words.

    The wrong fields are marked.
    """
    fields = list(fields)
    recipe, lines = None, [field.error for field in fields if field.error]
    if not lines:
        try:
            recipe = Recipe.parse(raw)
        except RecipeError as error:
            lines = _complaints(raw) or str(error).splitlines()
    labels = {field.path: field.label for field in fields}
    for field in fields:
        own_lines = [line for line in lines if _names(line, field.path)]
        field.mark(_plain(own_lines[0], labels) if own_lines else "")
    more = f" And {len(lines) - 1} more." if len(lines) > 1 else ""
    return recipe, _plain(lines[0], labels) + more if lines else ""


def _complaints(raw: Mapping[str, Any]) -> list[str]:
    """Find the problems of each section by itself, so that none hides those of
    another.
    """
    lines = []
    for name, value in raw.items():
        try:
            Recipe.parse({name: value})
        except RecipeError as error:
            lines += str(error).replace("recipe: ", "").splitlines()
    return lines


def show_value(value: Any) -> str:
    """A value as text that reads back to it: 0.0001, ``1, 6, 12, 18``, ``ce: 1, dice.

    1``, nothing for None.
    """
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {show_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(show_value, value)) or "[]"
    if isinstance(value, float):
        text = repr(value).replace("e-0", "e-")
        return text.removesuffix(".0")
    return str(value)


def in_words(path: str) -> str:
    """``training.learning_rate`` -> Learning rate."""
    return path.rsplit(".", 1)[-1].replace("_", " ").capitalize()


def wrapped(text: str) -> str:
    """A tooltip that Qt breaks into lines."""
    paragraphs = "".join(
        f"<p>{escape(part)}</p>" for part in text.split("\n\n") if part
    )
    return f"<qt>{paragraphs}</qt>" if paragraphs else ""


def tame(combo: QComboBox) -> None:
    """Make a combo box narrow where it must be, and deaf to the wheel that scrolls the
    page it is on.
    """
    combo.setSizeAdjustPolicy(
        QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
    )
    combo.setMinimumContentsLength(NARROW)
    combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    combo.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    combo.installEventFilter(_NoWheel(combo))


class _NoWheel(QObject):
    """Leaves the wheel to the page."""

    def eventFilter(self, _watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802 (Qt's name)
        if event is not None and event.type() == QEvent.Type.Wheel:
            event.ignore()
            return True
        return False


def _alternatives(annotation: Any) -> list[Any]:
    """The types that a field may have, without what Annotated adds."""
    if hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Literal, tuple, dict, None) or annotation in (
        bool,
        int,
        float,
        str,
    ):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _alternatives(part)]


def _plain_number(text: str) -> Any:
    """A number as people write it.

    YAML takes 010 for 8, 1:30 for 90 and 2020-01-01 for a day.
    """
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text):
        return float(text)
    return text


def _differ(one: Any, other: Any) -> bool:
    return type(one) is not type(other) or bool(one != other)


def _word(value: Any) -> str:
    return "none" if value is None else str(value).replace("_", " ")


def _names(line: str, path: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(path)}(?!\w)", line) is not None


def _plain(line: str, labels: Mapping[str, str]) -> str:
    """An error of the recipe with the labels that stand in the form for its dotted
    keys.
    """
    for path in sorted(labels, key=len, reverse=True):
        line = re.sub(
            rf"(?<![\w.]){re.escape(path)}(?!\w)(\.[\w\[\]]+)*", labels[path], line
        )
    line = re.sub(r"\b(input|string|tuple|dictionary) should", r"it must", line)
    line = re.sub(r", unable to parse [a-z ]+| after validation|'", "", line)
    return line.replace("it must be a valid", "it must be a").replace(
        "a integer", "an integer"
    )


def _error_color() -> str:
    viewer = napari.current_viewer()
    theme = viewer.theme if viewer is not None else get_settings().appearance.theme
    return str(get_theme(theme).error.as_hex())
