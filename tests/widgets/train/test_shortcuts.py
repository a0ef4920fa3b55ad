"""Keyboard shortcuts and the help that lists them."""

from __future__ import annotations

from app_model.types import KeyBinding
from napari.utils.shortcuts import default_shortcuts

from napari_strata.widgets.parts.help import help_text
from napari_strata.widgets.train.dock import TrainDock
from napari_strata.widgets.train.shortcuts import SHORTCUTS


def test_no_key_is_one_of_napari() -> None:
    taken = {key for keys in default_shortcuts.values() for key in keys}
    keys = [KeyBinding.from_str(shortcut.key) for shortcut in SHORTCUTS]
    assert KeyBinding.from_str("V") in taken
    assert not taken & set(keys)
    assert len(set(keys)) == len(SHORTCUTS)


def test_the_help_has_steps_keys_and_the_page_of_the_manual() -> None:
    text = help_text(TrainDock.steps, TrainDock.manual_page, TrainDock.shortcuts)
    for shortcut in SHORTCUTS:
        assert shortcut.key in text
        assert shortcut.text in text
    assert "press New labels" in text
    assert "docs/painting.md" in text
