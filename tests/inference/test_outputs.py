from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest

from napari_strata.core.errors import RunError
from napari_strata.core.text import format_bytes
from napari_strata.inference import ledger as module
from napari_strata.inference.ledger import ResumableOutput
from napari_strata.inference.outputs import MemoryOutput, OutputSpec, check_space

SPEC = OutputSpec(planes=3, shape=(4, 5), dtype=np.dtype(np.uint16), classes=2)
IDENTITY = {"model": "m1", "image": "i1", "sides": (1, 2)}


def plane(number: int) -> list[np.ndarray]:
    labels = np.arange(20, dtype=np.uint16).reshape(4, 5) + 100 * number
    return [labels, np.full((2, 4, 5), number / 4, np.float16)]


def make(path, identity=IDENTITY, spec=SPEC) -> ResumableOutput:
    return ResumableOutput(path / "out.tif", spec, identity)


def stop_after(path, numbers) -> None:
    """What a killed process leaves behind."""
    out = make(path)
    for number in numbers:
        out.write(number, plane(number), [number, 20 - number])
    out.close()


def check_whole(out) -> None:
    labels, probabilities = out.arrays()
    for number in range(3):
        assert np.array_equal(labels[number], plane(number)[0])
        assert np.array_equal(probabilities[number], plane(number)[1])
    assert out.pixels == {n: (n, 20 - n) for n in range(3)}


@pytest.mark.parametrize("kind", ["memory", "partial"])
def test_planes_come_back_in_their_places(tmp_path, kind):
    out = MemoryOutput(SPEC) if kind == "memory" else make(tmp_path)
    for number in (2, 0, 1):
        out.write(number, plane(number), [number, 20 - number])
    check_whole(out)
    out.remove()
    assert list(tmp_path.iterdir()) == []


def test_finished_planes_are_taken_up_again(tmp_path):
    stop_after(tmp_path, [0, 2])
    out = make(tmp_path)
    assert out.pixels == {0: (0, 20), 2: (2, 18)}
    assert out.discarded == ()
    out.write(1, plane(1), [1, 19])
    check_whole(out)
    out.close()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": "m2"}, ("model",)),
        ({"image": "x", "sides": (2, 2)}, ("image", "sides")),
    ],
)
def test_planes_of_another_model_or_image_are_discarded_and_it_is_said_why(
    tmp_path, changed, named
):
    stop_after(tmp_path, [0, 1, 2])
    out = make(tmp_path, IDENTITY | changed)
    assert out.discarded == named
    assert out.pixels == {}
    assert not out.arrays()[0].any()
    out.close()


def test_planes_of_another_form_are_not_taken_up(tmp_path):
    stop_after(tmp_path, [0, 1])
    for spec in (
        OutputSpec(3, (5, 4), SPEC.dtype, 2),
        OutputSpec(3, (4, 5), np.dtype(np.uint8), 2),
        OutputSpec(1, (4, 5), SPEC.dtype, 2),
    ):
        out = make(tmp_path, spec=spec)
        assert out.pixels == {}
        out.close()


def test_a_plane_that_does_not_hold_its_checksum_is_done_again(tmp_path):
    stop_after(tmp_path, [0, 1])
    file = tmp_path / "out.tif.partial" / "labels.npy"
    raw = bytearray(file.read_bytes())
    raw[-1 - 2 * 20 * 2] ^= 1  # in the last pixel of plane 0
    file.write_bytes(raw)
    out = make(tmp_path)
    assert set(out.pixels) == {1}
    out.close()


def test_a_ledger_line_cut_off_by_a_kill_is_left_out_and_the_ledger_goes_on(tmp_path):
    stop_after(tmp_path, [0, 1])
    ledger = tmp_path / "out.tif.partial" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-9])
    out = make(tmp_path)
    assert set(out.pixels) == {0}
    out.write(1, plane(1), [1, 19])
    out.close()
    out = make(tmp_path)
    assert set(out.pixels) == {0, 1}
    out.close()


@pytest.mark.parametrize(
    "junk", ["[1]", '{"plane": 7, "pixels": [], "crc32": 0}', '{"plane": true}', "null"]
)
def test_ledger_lines_that_make_no_sense_are_left_out(tmp_path, junk):
    stop_after(tmp_path, [0])
    with open(tmp_path / "out.tif.partial" / "ledger.jsonl", "a") as file:
        file.write(junk + "\n")
    out = make(tmp_path)
    assert set(out.pixels) == {0}
    out.close()


def test_a_kill_before_the_first_plane_or_a_lost_array_means_a_fresh_start(tmp_path):
    folder = tmp_path / "out.tif.partial"
    folder.mkdir()
    (folder / ".123.tmp.ledger.jsonl").write_text("")
    stop_after(tmp_path, [0])
    (folder / "probabilities.npy").unlink()
    out = make(tmp_path)
    assert out.pixels == {}
    for number in range(3):
        out.write(number, plane(number), [number, 20 - number])
    check_whole(out)
    out.close()


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path):
    folder = tmp_path / "out.tif.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not an unfinished prediction"):
        make(tmp_path)
    (folder / "ledger.jsonl").write_text(
        json.dumps({"format": "someone else's"}) + "\n"
    )
    with pytest.raises(RunError, match="not an unfinished prediction"):
        make(tmp_path)
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1)
    )
    with pytest.raises(
        RunError, match=r"needs up to 720 bytes on this disk and 1 bytes are free"
    ):
        make(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_room_is_asked_of_the_nearest_folder_that_exists(tmp_path):
    check_space(tmp_path / "a" / "b", SPEC)


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path, monkeypatch):
    out = make(tmp_path)
    out.write(0, plane(0), [0, 20])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_all", full)
        with pytest.raises(
            RunError,
            match=r"disk is full.*run the same command again: 1 of 3 planes are kept",
        ):
            out.write(1, plane(1), [1, 19])
    out.close()
    out = make(tmp_path)
    assert set(out.pixels) == {0}
    out.close()


def test_other_write_errors_are_said_in_words(tmp_path, monkeypatch):
    out = make(tmp_path)

    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "_write_all", failing)
    with pytest.raises(RunError, match="cannot be written"):
        out.write(1, plane(1), [1, 19])
    out.close()


def test_a_folder_that_cannot_be_made_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        make(tmp_path / "file")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12, "12 bytes"),
        (12_340_000, "12.3 MB"),
        (2_000_000_000, "2 GB"),
        (3 * 10**13, "30 TB"),
    ],
)
def test_sizes_for_people(count, text):
    assert format_bytes(count) == text
