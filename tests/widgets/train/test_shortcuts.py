"""Keyboard shortcuts and the help that lists them."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_model.types import KeyBinding
from napari.utils.shortcuts import default_shortcuts

from napari_strata.widgets.evaluate.dock import EvaluateDock
from napari_strata.widgets.measure.dock import MeasureDock
from napari_strata.widgets.parts.dock import Dock
from napari_strata.widgets.parts.help import help_text
from napari_strata.widgets.predict.dock import PredictDock
from napari_strata.widgets.train.dock import TrainDock
from napari_strata.widgets.train.shortcuts import SHORTCUTS


def test_no_key_is_one_of_napari() -> None:
    taken = {key for keys in default_shortcuts.values() for key in keys}
    keys = [KeyBinding.from_str(shortcut.key) for shortcut in SHORTCUTS]
    assert KeyBinding.from_str("V") in taken
    assert not taken & set(keys)
    assert len(set(keys)) == len(SHORTCUTS)


@pytest.mark.parametrize("dock", [TrainDock, PredictDock, EvaluateDock, MeasureDock])
def test_every_dock_has_steps_and_a_page_that_exists(dock: type[Dock]) -> None:
    assert len(dock.steps) >= 4
    assert (Path(__file__).parents[3] / dock.manual_page).is_file()


def test_the_help_has_steps_keys_and_the_page_of_the_manual() -> None:
    text = help_text(TrainDock.steps, TrainDock.manual_page, TrainDock.shortcuts)
    for shortcut in SHORTCUTS:
        assert shortcut.key in text
        assert shortcut.text in text
    assert "press New labels" in text
    assert "docs/painting.md" in text
