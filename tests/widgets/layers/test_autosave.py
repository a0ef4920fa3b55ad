from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels as LabelsLayer
from qtpy.QtCore import QObject

from napari_strata.core.classes import ClassMap
from napari_strata.core.image import Image
from napari_strata.io import read_labels
from napari_strata.plugin import METADATA
from napari_strata.widgets.layers.autosave import (
    DRAFT_FILE,
    Autosave,
    find_drafts,
    is_alive,
    this_process,
)

CLASSES = ClassMap(names=("pore", "grain"), values=(1, 2), unlabelled=(0,))
IMAGE = Image(np.zeros((2, 16, 16), np.uint8), "ZYX", scale=(3, 1, 1), name="sand")


def _layer() -> LabelsLayer:
    classes = {METADATA: CLASSES.model_dump(mode="json")}
    return LabelsLayer(
        np.zeros((2, 16, 16), np.uint8), name="mine", scale=(3, 1, 1), metadata=classes
    )


def test_painted_labels_are_saved_and_others_are_not(
    tmp_path: Path, qtbot: Any
) -> None:
    owner = QObject()
    autosave = Autosave(lambda: tmp_path / "run" / "layers", owner)
    layer = _layer()
    autosave.watch(layer, IMAGE)
    autosave.save()
    assert not (tmp_path / "run").exists()
    layer.paint((1, 8, 8), 2)
    with qtbot.waitSignal(autosave.saved):
        autosave.save()
    stored = read_labels(tmp_path / "run" / "layers" / "autosave.tif")
    assert stored.classes == CLASSES
    assert stored.scale == (3, 1, 1)
    np.testing.assert_array_equal(np.asarray(stored.data), layer.data)
    assert layer.data.any()
    with qtbot.assertNotEmitted(autosave.saved, wait=100):
        autosave.save()
    autosave.watch(None, None)


def test_labels_are_saved_automatically(
    tmp_path: Path, qtbot: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Autosave, "interval_s", 0.05)
    owner = QObject()
    autosave = Autosave(lambda: tmp_path, owner)
    layer = _layer()
    autosave.watch(layer, IMAGE)
    with qtbot.waitSignal(autosave.saved, timeout=120_000):
        layer.paint((0, 3, 3), 1)
    with qtbot.waitSignal(autosave.saved, timeout=120_000):
        layer.undo()
    assert not np.asarray(read_labels(tmp_path / "autosave.tif").data).any()
    autosave.watch(None, None)


def test_labels_are_offered_after_a_crash_and_not_while_napari_runs(
    tmp_path: Path,
) -> None:
    layer, owner = _layer(), QObject()
    autosave = Autosave(lambda: tmp_path / "run" / "layers", owner)
    autosave.watch(layer, IMAGE)
    layer.paint((0, 3, 3), 1)
    autosave.save_at_once()
    assert find_drafts(tmp_path) == []
    note = tmp_path / "run" / "layers" / DRAFT_FILE
    facts = json.loads(note.read_text())
    note.write_text(
        json.dumps(facts | {"started": facts["started"] - 1})
    )  # the number has gone to another process
    (one,) = find_drafts(tmp_path)
    assert one.describe().startswith('"mine" of ')
    one.forget()
    assert find_drafts(tmp_path) == []
    assert one.path.is_file()
    autosave.watch(None, None)


def test_a_disk_that_cannot_be_written_is_reported(tmp_path: Path, qtbot: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    owner = QObject()
    autosave = Autosave(lambda: tmp_path / "file" / "layers", owner)
    layer = _layer()
    autosave.watch(layer, IMAGE)
    layer.paint((0, 3, 3), 1)
    with qtbot.waitSignal(autosave.failed) as caught:
        autosave.save()
    assert "could not be saved" in caught.args[0]
    autosave.watch(None, None)


def test_this_process_is_alive() -> None:
    facts = this_process()
    assert is_alive(facts)
    assert not is_alive(facts | {"host": "elsewhere"})
    assert not is_alive({})
