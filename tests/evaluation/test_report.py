"""The report on disk.

Names of pictures, facts beside the scores, and what is left when it cannot be written.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_strata.core.classes import ClassMap
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.evaluation import report
from napari_strata.evaluation.pictures import Example
from napari_strata.evaluation.report import name_files, write_report

CLASSES = ClassMap(names=("pore", "rock"), values=(0, 1))


def confusion(*counts: int) -> ConfusionMatrix:
    return ConfusionMatrix(CLASSES, np.array(counts).reshape(2, 2))


def example(name: str) -> Example:
    truth = np.arange(100, dtype=np.uint8).reshape(10, 10) % 2
    return Example.of(
        name,
        truth[None] * 200,
        truth,
        prediction=truth,
        confusion=confusion(50, 0, 0, 50),
    )


def test_pictures_take_the_names_given_and_facts_stand_beside_the_scores(
    tmp_path: Path,
) -> None:
    pictures = name_files([example("a/b: c")], "worst_") | {"only": example("d")}
    assert list(pictures) == ["worst_01_a_b_c", "only"]
    total = confusion(3, 1, 0, 4)
    write_report(
        total, [("one", total)], tmp_path / "out", examples=pictures, facts={"epoch": 7}
    )
    assert sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir()) == [
        "only.png",
        "worst_01_a_b_c.png",
    ]
    names = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert names == total.as_dict() | {"epoch": 7}


def test_the_scores_are_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = confusion(3, 1, 0, 4)

    def broken(_: Example) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "draw_example", broken)
    with pytest.raises(report.RunError, match="the disk is full"):
        write_report(total, [("one", total)], tmp_path, examples=[example("a")])
    assert not (tmp_path / "metrics.json").exists()
    assert list((tmp_path / "overlays").iterdir()) == []
