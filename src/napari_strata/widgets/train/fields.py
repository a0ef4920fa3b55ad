"""Widgets for the fields of a recipe.

A widget keeps the value exactly, including None, 1e-4 and tuples of any length.
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

PADDING_PX = 8
"""Pixels of padding beside the text of a field."""
MIN_CHARACTERS = 6
"""Smallest width of a choice, in characters."""


class Field:
    """A setting and its widget.

    `value` is the setting as plain data (as in a recipe file), `error` explains why the
    typed text is not a value. A value that was shown is returned unchanged until it is
    edited.
    """

    edited = Signal(object)
    """Emitted with this field when the user edits it."""

    def __init__(self, path: str, info: FieldInfo, label: str = "") -> None:
        self.path, self.label = path, label or info.title or setting_label(path)
        self.value: Any = ...  # before the first `show`; no setting has this value
        self.error = self.problem = ""
        self._help = info.description or ""
        self._example = show_value(info.get_default())
        self._types = _alternatives(info.annotation)
        choices = [
            choice
            for part in self._types
            for choice in get_args(part)
            if get_origin(part) is Literal
        ]
        self.is_switch = self._types == [bool]
        self._choices: dict[str, Any] = {}
        if choices and all(
            get_origin(part) is Literal or part is NoneType for part in self._types
        ):
            choices += [None] if NoneType in self._types else []
            self._choices = {_choice_text(choice): choice for choice in choices}
        self.widget = self._widget()
        self.native: QWidget = self.widget.native
        if isinstance(self.widget, LineEdit):
            self.make_room("0.0001")
        self.mark("")
        self.widget.changed.connect(self._on_edit)

    def _widget(self) -> CheckBox | ComboBox | LineEdit:
        if self.is_switch:
            return CheckBox(text=self.label)
        if self._choices:
            combo = ComboBox(choices=list(self._choices))
            make_compact(combo.native)
            return combo
        edit = LineEdit()
        edit.native.setPlaceholderText("not set" if NoneType in self._types else "")
        edit.native.setSizePolicy(
            QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed
        )
        edit.native.editingFinished.connect(self._normalise_text)
        return edit

    def make_room(self, text: str) -> None:
        """Set the minimum width to that of a text."""
        self.native.setMinimumWidth(
            self.native.fontMetrics().horizontalAdvance(text) + PADDING_PX
        )

    def show(self, value: Any) -> None:
        """Show a value without emitting a signal."""
        if self.error or _differs(value, self.value):
            self.value, self.error = value, ""
            self._set_widget(self._shown(value))
        self.mark("")

    def type(self, text: Any) -> None:
        """Edit the setting like a user."""
        self.widget.value = text
        self._normalise_text()

    def mirror(self, source: Field) -> None:
        """Copy value and error of another field of the same setting."""
        if self.error != source.error or _differs(self.value, source.value):
            self.value, self.error = source.value, source.error
            self._set_widget(
                source.widget.value if self.error else self._shown(self.value)
            )
        self.mark(source.problem)

    def mark(self, problem: str) -> None:
        """Mark the widget with a problem; an empty text removes the mark."""
        self.problem = problem
        tip = "\n\n".join(filter(None, (problem, self._help)))
        self.native.setToolTip(wrapped(tip))
        frame = f"border: 2px solid {_error_color()}; padding: 0px;" if problem else ""
        style = f"{type(self.native).__name__} {{ {frame} }}" if problem else ""
        if self.native.styleSheet() != style:
            self.native.setStyleSheet(style)

    def explain(self, why_not: str) -> None:
        """Disable the setting with a reason; an empty text enables it."""
        self.native.setEnabled(not why_not)
        self.native.setToolTip(wrapped(why_not or self._help))

    def _set_widget(self, shown: Any) -> None:
        with self.widget.changed.blocked():
            self.widget.value = shown
        if isinstance(self.widget, LineEdit):
            self.widget.native.setCursorPosition(0)

    def _shown(self, value: Any) -> Any:
        if self.is_switch:
            return bool(value)
        if self._choices:
            return _choice_text(value)
        return show_value(value)

    def _on_edit(self, shown: Any) -> None:
        self.error = ""
        if shown == "" and NoneType not in self._types:
            self.error = f"{self.path} is empty: type a value, such as {self._example}."
        elif self.is_switch:
            self.value = bool(shown)
        elif self._choices:
            self.value = self._choices[shown]
        else:
            try:
                self.value = self._parse(str(shown))
            except (RecipeError, ValueError):  # PyYAML raises it for 2020-13-45
                hint = (
                    f"; type it like this: {self._example}." if self._example else "."
                )
                self.error = f"{self.path} is {str(shown)!r}: it cannot be read{hint}"
        self.edited.emit(self)

    def _parse(self, text: str) -> Any:
        if not text.strip():
            return None
        if str in self._types and {*self._types} <= {str, NoneType}:
            return text
        origins = {get_origin(part) for part in self._types}
        if dict in origins:
            content = re.sub(r":(?=\S)", ": ", text.strip().strip("{}"))
            return parse_value("{" + content + "}")
        if tuple in origins and not text.strip()[0].isalpha():
            content = ", ".join(
                filter(None, re.split(r"[\s,;]+", text.strip().strip("[]()")))
            )
            return [_plain_number(item) for item in content.split(", ") if item]
        return _plain_number(text.strip())

    def _normalise_text(self) -> None:
        """Show the value as it was parsed, when typing ends."""
        if not (self.error or self.problem):
            self._set_widget(self._shown(self.value))


def check(raw: Mapping[str, Any], fields: Iterable[Field]) -> tuple[Recipe | None, str]:
    """Parse plain data as a recipe; mark the fields with problems.

    Returns
    -------
    recipe
        The recipe, or None if it is not valid.
    problem
        Description of the problems; empty without problems.
    """
    fields = list(fields)
    recipe, lines = None, [field.error for field in fields if field.error]
    if not lines:
        try:
            recipe = Recipe.parse(raw)
        except RecipeError as error:
            lines = _section_errors(raw) or str(error).splitlines()
    labels = {field.path: field.label for field in fields}
    for field in fields:
        own_lines = [line for line in lines if _mentions(line, field.path)]
        field.mark(_with_labels(own_lines[0], labels) if own_lines else "")
    more = f" And {len(lines) - 1} more." if len(lines) > 1 else ""
    return recipe, _with_labels(lines[0], labels) + more if lines else ""


def _section_errors(raw: Mapping[str, Any]) -> list[str]:
    """Find the problems of each section separately, so that all are listed."""
    lines = []
    for name, value in raw.items():
        try:
            Recipe.parse({name: value})
        except RecipeError as error:
            lines += str(error).replace("recipe: ", "").splitlines()
    return lines


def show_value(value: Any) -> str:
    """Format a value as text that is parsed to the same value.

    For example ``0.0001``, ``1, 6, 12, 18`` or ``ce: 1, dice: 1``; empty for None.
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


def setting_label(path: str) -> str:
    """Return the label of a setting: "Learning rate" for its dotted key."""
    return path.rsplit(".", 1)[-1].replace("_", " ").capitalize()


def wrapped(text: str) -> str:
    """Format a tooltip so that Qt breaks its lines."""
    paragraphs = "".join(
        f"<p>{escape(part)}</p>" for part in text.split("\n\n") if part
    )
    return f"<qt>{paragraphs}</qt>" if paragraphs else ""


def make_compact(combo: QComboBox) -> None:
    """Let a combo box become narrow, and ignore the wheel, which scrolls the page."""
    combo.setSizeAdjustPolicy(
        QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
    )
    combo.setMinimumContentsLength(MIN_CHARACTERS)
    combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    combo.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    combo.installEventFilter(_NoWheel(combo))


class _NoWheel(QObject):
    """Event filter that ignores the wheel."""

    def eventFilter(self, _watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802 (Qt's name)
        if event is not None and event.type() == QEvent.Type.Wheel:
            event.ignore()
            return True
        return False


def _alternatives(annotation: Any) -> list[Any]:
    """Return the types that a field may have, without `Annotated`."""
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
    """Parse a number in common notation.

    YAML parses 010 as 8, 1:30 as 90, and 2020-01-01 as a date.
    """
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text):
        return float(text)
    return text


def _differs(first: Any, second: Any) -> bool:
    return type(first) is not type(second) or bool(first != second)


def _choice_text(value: Any) -> str:
    return "none" if value is None else str(value).replace("_", " ")


def _mentions(line: str, path: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(path)}(?!\w)", line) is not None


def _with_labels(line: str, labels: Mapping[str, str]) -> str:
    """Replace the dotted keys in an error of the recipe by the labels in the form."""
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
