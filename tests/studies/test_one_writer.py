"""A folder is written by one process at a time, and a killed one leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny_recipe
from napari_strata.core.errors import RunError
from napari_strata.core.events import Event, Message
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.locks import LOCK
from napari_strata.core.runs import RunFolder
from napari_strata.io.paths import replacing
from napari_strata.studies.crossval import iter_crossval
from napari_strata.studies.tune import iter_tune
from napari_strata.training.loop import iter_train, train

Scene = Callable[..., AnnotatedImage]
Writer = Callable[..., Generator[Event, None, None]]
DEAD = 2**22 + 1
"""Larger than any process number."""


def iter_search(
    recipe: Any, pairs: Any, **options: Any
) -> Generator[Event, None, None]:
    return iter_tune(recipe, pairs, {"training.learning_rate": [1e-3]}, **options)


WRITERS: dict[str, tuple[Writer, dict[str, Any]]] = {
    "train": (iter_train, {}),
    "resume": (iter_train, {"resume": True}),
    "extend": (iter_train, {"extend": 1}),
    "crossval": (iter_crossval, {"folds": 2}),
    "tune": (iter_search, {"folds": 1}),
}


def begin(name: str, out: Path, data: AnnotatedImage) -> Generator[Event, None, None]:
    write, options = WRITERS[name]
    return write(tiny_recipe(), data, out=out, **options)


@pytest.mark.parametrize("second", WRITERS)
@pytest.mark.parametrize("first", WRITERS)
def test_the_second_writer_is_refused(
    tmp_path: Path, scene: Scene, first: str, second: str
) -> None:
    data, out = scene(planes=4), tmp_path / "out"
    if first in ("resume", "extend"):
        train(tiny_recipe(), data, out=out)
    with closing(begin(first, out, data)) as running:
        next(running)
        files = {path: path.stat().st_mtime_ns for path in out.iterdir()}
        with (
            pytest.raises(RunError) as refused,
            closing(begin(second, out, data)) as other,
        ):
            next(other)
        known = (
            f"process {os.getpid()} on",
            "exists already",
            "found no run",
            "contains",
        )
        assert any(words in str(refused.value) for words in known)
        assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == files
    assert not (out / LOCK).exists()


def test_the_refusal_names_the_process(tmp_path: Path, scene: Scene) -> None:
    data = scene(planes=4)
    train(tiny_recipe(), data, out=tmp_path)
    with closing(begin("extend", tmp_path, data)) as running:
        next(running)
        with pytest.raises(RunError, match=rf"process {os.getpid()} on .* is writing"):
            train(tiny_recipe(), data, out=tmp_path, resume=True)


def test_a_folder_of_a_process_killed_before_it_trained_is_used(
    tmp_path: Path, scene: Scene
) -> None:
    (tmp_path / LOCK).write_text(f"{DEAD}\n{os.uname().nodename}\n")
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / f".{DEAD}-1.tmp.recipe.yaml").write_text("name: x")
    (tmp_path / "previews").mkdir()
    train(tiny_recipe(), scene(planes=4), out=tmp_path)
    assert RunFolder.open(tmp_path).has_model
    assert not list(tmp_path.glob(".*"))


def test_unfinished_files_of_a_killed_process_are_removed_and_named(
    tmp_path: Path, scene: Scene
) -> None:
    data = scene(planes=4)
    train(tiny_recipe(), data, out=tmp_path)
    (tmp_path / f".{DEAD}-7.tmp.last.pt").write_bytes(bytes(2_000_000))
    (tmp_path / "previews" / f".{DEAD}-7.tmp.epoch_0003.png").write_bytes(b"")
    own = tmp_path / f".{os.getpid()}-7.tmp.report.html"
    own.write_text("of a process that runs")
    events = list(begin("extend", tmp_path, data))
    texts = [event.text for event in events if isinstance(event, Message)]
    assert "removed 2 unfinished files of a killed process (2.0 MB)" in texts
    assert list(tmp_path.glob("**/.*")) == [own]


def test_a_refused_training_leaves_no_folder(tmp_path: Path, scene: Scene) -> None:
    with pytest.raises(Exception, match="folds"):
        list(iter_crossval(tiny_recipe(), scene(), out=tmp_path / "a" / "b", folds=50))
    assert not (tmp_path / "a").exists()


def test_an_output_that_was_being_replaced_is_restored(tmp_path: Path) -> None:
    target = tmp_path / "labels.zarr"
    old, unfinished = (
        tmp_path / f".{DEAD}.{kind}.labels.zarr" for kind in ("old", "tmp")
    )
    old.mkdir()
    (old / "zarr.json").write_text("old")
    unfinished.mkdir()
    other = tmp_path / f".{DEAD}.tmp.more.labels.zarr"
    other.mkdir()
    with (
        pytest.raises(RunError, match="exists already"),
        replacing(target, overwrite=False),
    ):
        pass
    assert (target / "zarr.json").read_text() == "old"
    assert set(tmp_path.iterdir()) == {target, other}
