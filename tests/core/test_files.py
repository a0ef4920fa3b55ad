from __future__ import annotations

import errno
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.core.files import atomic, replace, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "labels.tif"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic(target) as temporary:
        temporary.write_text("half" * 10_000 + "\ud800", encoding="utf-8")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EACCES, "cannot be written to"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_disk_errors_are_said_in_words(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(RunError, match=words), atomic(tmp_path / "a.txt"):
        raise OSError(code, "x")
    assert not list(tmp_path.iterdir())


def test_temporary_name_keeps_the_suffixes(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.ome.tif") as temporary:
        assert temporary.name.endswith(".ome.tif")
        assert temporary.parent == tmp_path
        temporary.write_text("x")


def test_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "µ")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "µ"


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "a" / "b.txt", "x")


def test_two_threads_write_one_file_without_harm(tmp_path: Path) -> None:
    started, target = threading.Barrier(2), tmp_path / "a.txt"
    failed: list[Exception] = []

    def write(text: str) -> None:
        try:
            for _ in range(50):
                started.wait(10)
                with atomic(target) as temporary:
                    temporary.write_text(text * 10_000)
        except Exception as error:  # shown by the assertion
            failed.append(error)
            started.abort()

    threads = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert target.read_text() in ("a" * 10_000, "b" * 10_000)
    assert list(tmp_path.iterdir()) == [target]


class BusyFile:
    """A rename that is refused at first, as on Windows while somebody reads."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    def __call__(self, source: Path, target: Path) -> None:
        if self.refusals:
            self.refusals -= 1
            raise PermissionError(errno.EACCES, "used by another process")
        source.rename(target)


def test_windows_replaces_a_file_when_its_readers_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = SimpleNamespace(name="nt", replace=BusyFile(3))
    monkeypatch.setattr(files, "os", windows)
    (tmp_path / "new").write_text("new")
    replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"


@pytest.mark.parametrize("system", ["nt", "posix"])
def test_a_file_that_stays_in_use_is_an_error(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "REPLACE_PATIENCE_S", 0.2)
    busy = SimpleNamespace(name=system, replace=BusyFile(1000))
    monkeypatch.setattr(files, "os", busy)
    with pytest.raises(PermissionError):
        replace(tmp_path / "new", tmp_path / "old")


def test_names_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("ö" * 125 + "a.tif")
    write_text(target, "whole")
    assert target.read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    folder = files.partial_folder(target)
    folder.mkdir()
    assert files.partial_folder(tmp_path / "a.tif").name == "a.tif.partial"
