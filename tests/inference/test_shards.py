from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import easy_pair, tiny_model
from napari_strata import cli
from napari_strata.core.errors import RunError
from napari_strata.core.events import (
    FileEnd,
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
)
from napari_strata.core.locks import exclusive
from napari_strata.core.options import PredictOptions
from napari_strata.inference import predict as predict_module
from napari_strata.inference import shards
from napari_strata.inference.batch import predict_files
from napari_strata.inference.build import build_ensemble_predictor
from napari_strata.inference.chunks import planes_of
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.inference.ledger import ResumableOutput, WriterRole
from napari_strata.inference.outputs import OutputSpec
from napari_strata.inference.predict import Prediction, iter_predict, predict
from napari_strata.inference.shards import Shard, claim_planes
from napari_strata.inference.task import PredictionInput, PredictionTask
from napari_strata.io import read_labels, write_image, write_labels
from napari_strata.models.ensemble import load_models
from napari_strata.models.model import Model

PAIR = easy_pair((5, 24, 32))
OPTIONS = PredictOptions(device="cpu", precision="fp32", probabilities=True)


@cache
def model() -> Model:
    return tiny_model(PAIR)


@cache
def ensemble() -> EnsemblePredictor:
    return build_ensemble_predictor(load_models(model()), OPTIONS)


def run(
    out: Path, part: str | None = None, *, planes: int | None = None, **changes
) -> Prediction:
    """A part, stopped after so many planes when that is asked for."""
    options = OPTIONS.updated(**changes)
    shared = ensemble() if not changes else None
    job = Prediction(
        model(), PAIR.image, out=out, options=options, part=part, predictor=shared
    )
    for event in job:
        if isinstance(event, RegionEnd) and event.done == planes:
            job.close()
    return job


def contents(folder: Path) -> dict[str, bytes]:
    """Files and what is in them, less locks and the random UUID of every OME file."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    files = [p for p in files if not re.fullmatch(r"\..*\.lock", p.name)]
    return {
        str(p.relative_to(folder)): re.sub(
            rb"urn:uuid:[0-9a-f-]{36}", b"", p.read_bytes()
        )
        for p in files
    }


@cache
def whole() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        run(Path(folder) / "x.tif")
        return contents(Path(folder))


def said(job) -> list[str]:
    return [event.text for event in job if isinstance(event, Message)]


@given(st.integers(1, 9), st.integers(0, 40))
def test_parts_cover_everything_once_and_are_of_nearly_equal_size(count, length):
    parts, things = [Shard(i + 1, count) for i in range(count)], list(range(length))
    assert [thing for part in parts for thing in part.share(things)] == things
    assert sorted(thing for part in parts for thing in part.deal(things)) == things
    for cut in (Shard.share, Shard.deal):
        sizes = [len(cut(part, things)) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "x", "1", "-1/3", "1/0", "1/2/3", ""])
def test_parts_that_there_are_not_are_refused(text, tmp_path):
    with pytest.raises(
        RunError,
        match=r"part .* is not possible; it must be i/n with i from 1 to n, for example 2/3",
    ):
        run(tmp_path / "x.tif", text)
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_what_it_is_called():
    assert Shard.parse(" 2/3 ") == Shard(2, 3)
    assert str(Shard(2, 3)) == "2/3"


@settings(max_examples=12)
@given(
    st.permutations(["1/3", "2/3", "3/3"]),
    st.lists(st.sampled_from([0, 1]), max_size=2),
    st.booleans(),
)
def test_parts_in_any_order_and_repeated_give_what_one_process_gives(
    order, again, stopped
):
    with TemporaryDirectory() as folder:
        out = Path(folder) / "x.tif"
        for number in again:
            run(out, order[number], planes=1 if stopped else None)
        jobs = [run(out, part) for part in order]
        assert [job.complete for job in jobs] == [False, False, True]
        assert contents(Path(folder)) == whole()
        assert jobs[-1].pixels.sum() == 5 * 24 * 32


def test_each_part_says_how_things_stand(tmp_path):
    out = tmp_path / "x.tif"
    events = list(Prediction(model(), PAIR.image, out=out, options=OPTIONS, part="2/3"))
    assert [
        (e.regions, e.done) for e in events if isinstance(e, PredictionStarted)
    ] == [(2, 0)]
    assert [
        (e.region["Z"], e.done, e.regions) for e in events if isinstance(e, RegionEnd)
    ] == [(1, 1, 2), (2, 2, 2)]
    assert (
        said(events)[-1]
        == "part 2 of 3 is done: planes 2 to 3; 2 parts are not finished yet"
    )
    assert not any(isinstance(e, PredictionEnd) for e in events)
    assert said(Prediction(model(), PAIR.image, out=out, options=OPTIONS, part="1/3"))[
        -1
    ].endswith("1 part is not finished yet")
    with pytest.raises(RunError, match="not finished"):
        _ = run(out, "1/3").labels
    *_, last = Prediction(model(), PAIR.image, out=out, options=OPTIONS, part="3/3")
    assert isinstance(last, PredictionEnd)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def test_there_may_be_more_parts_than_planes(tmp_path):
    out = tmp_path / "x.tif"
    texts = [
        said(Prediction(model(), PAIR.image, out=out, options=OPTIONS, part=f"{i}/7"))[
            -1
        ]
        for i in range(1, 7)
    ]
    assert (
        texts[0]
        == "part 1 of 7 is done: no plane is left for it; 5 parts are not finished yet"
    )
    run(out, "7/7")
    assert contents(tmp_path) == whole()


def test_a_part_that_comes_when_all_is_written_is_content(tmp_path):
    out = tmp_path / "x.tif"
    for number in (
        7,
        1,
        2,
        3,
        5,
        6,
    ):  # of which six give planes or none, and the sixth puts them together
        run(out, f"{number}/7")
    assert out.exists()
    before = out.read_bytes()
    (text,) = said(
        Prediction(model(), PAIR.image, out=out, options=OPTIONS, part="4/7")
    )
    assert text.startswith("part 4 of 7: ")
    assert "all parts are complete" in text
    assert out.read_bytes() == before
    with pytest.raises(RunError, match="exists already"):
        run(out)


def test_what_the_version_before_three_views_left_is_taken_up(tmp_path):
    out = tmp_path / "x.tif"
    run(out, planes=2)
    head = json.loads(
        (tmp_path / "x.tif.partial" / "ledger.jsonl").read_text().splitlines()[0]
    )
    assert "choice of three views" not in head["identity"]
    events = list(Prediction(model(), PAIR.image, out=out, options=OPTIONS))
    assert [e.done for e in events if isinstance(e, PredictionStarted)] == [2]


def test_one_process_takes_up_what_parts_left_and_parts_what_it_left(tmp_path):
    out = tmp_path / "a" / "x.tif"
    run(out, "2/3")
    events = list(Prediction(model(), PAIR.image, out=out, options=OPTIONS))
    assert [e.region["Z"] for e in events if isinstance(e, RegionEnd)] == [0, 3, 4]
    assert contents(out.parent) == whole()
    out = tmp_path / "b" / "x.tif"
    run(out, planes=2)
    events = list(Prediction(model(), PAIR.image, out=out, options=OPTIONS, part="1/2"))
    assert [e for e in events if isinstance(e, RegionEnd)] == []
    run(out, "2/2")
    assert contents(out.parent) == whole()


def test_parts_of_different_numbers_go_together(tmp_path):
    for part in ("1/2", "3/4"):
        assert not run(tmp_path / "x.tif", part).complete
    assert run(tmp_path / "x.tif", "2/2").complete
    assert contents(tmp_path) == whole()


@pytest.mark.parametrize("part", ["3/3", "1/2", None])
def test_parts_of_another_model_are_refused_and_stay(tmp_path, part):
    out = tmp_path / "x.tif"
    run(out, "2/3")
    before = contents(tmp_path)
    other = replace(
        model(),
        weights={
            k: v + 1 if v.is_floating_point() else v for k, v in model().weights.items()
        },
    )
    with pytest.raises(
        RunError,
        match=r"prediction with another model; planes of other processes are not deleted: .*remove",
    ):
        list(Prediction(other, PAIR.image, out=out, options=OPTIONS, part=part))
    with pytest.raises(
        RunError,
        match="another request for probabilities and choice of flips and turns",
    ):
        run(out, part, probabilities=False, tta=True, overwrite=True)
    assert contents(tmp_path) == before
    run(out, "1/3")
    assert run(out, "3/3").complete


def test_a_part_is_refused_where_one_process_left_something_else(tmp_path):
    run(tmp_path / "x.tif", planes=2, tta=True)
    before = contents(tmp_path)
    with pytest.raises(
        RunError,
        match="another choice of flips and turns; planes of other processes are not deleted",
    ):
        run(tmp_path / "x.tif", "1/3")
    assert contents(tmp_path) == before


def test_planes_that_another_process_is_writing_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "PATIENCE", 0.1)
    out = tmp_path / "x.tif"
    job = Prediction(
        model(), PAIR.image, out=out, options=OPTIONS, part="1/2", predictor=ensemble()
    )
    while not isinstance(next(job), RegionEnd):
        pass
    for part in ("1/2", "1/3", None):
        with pytest.raises(
            RunError, match="another process is predicting the same planes just now"
        ):
            run(out, part)
    assert not run(out, "2/2").complete
    rest = list(job)
    assert isinstance(rest[-1], PredictionEnd)
    assert contents(tmp_path) == whole()


def test_damage_to_planes_of_others_is_found_before_the_file_is_written(tmp_path):
    out = tmp_path / "x.tif"
    run(out, "1/2")
    array = np.load(tmp_path / "x.tif.partial" / "labels.npy", mmap_mode="r+")
    array[1, 3, 3] ^= 255
    array.flush()
    with pytest.raises(
        RunError,
        match=r"found 1 damaged planes \(wrong checksum\), the first is plane 2; run",
    ):
        run(out, "2/2")
    assert not out.exists()
    run(out)
    assert contents(tmp_path) == whole()


def test_the_file_is_put_together_by_one_process_only(tmp_path):
    out = tmp_path / "x.tif"
    run(out, "1/2")
    lock = tmp_path / "x.tif.partial" / "assembly.lock"
    lock.write_text("123\nnode7\n")
    *_, text = said(
        Prediction(model(), PAIR.image, out=out, options=OPTIONS, part="2/2")
    )
    assert "part 2 of 2 is done: planes 3 to 5. Process 123 on node7 is writing" in text
    assert f"remove {lock} and run the command again" in text
    assert not out.exists()
    lock.unlink()
    assert run(out, "1/2").complete
    assert contents(tmp_path) == whole()


def test_a_part_whose_folder_goes_while_it_looks_says_that_all_is_written(
    tmp_path, monkeypatch
):
    out = tmp_path / "x.tif"
    run(out, "1/2")
    kept = ResumableOutput.recorded_planes

    def named(self):
        found = kept(self)
        monkeypatch.undo()
        assert run(out, "1/2").complete  # another process is quicker
        return found

    monkeypatch.setattr(ResumableOutput, "recorded_planes", named)
    (*_, text) = said(
        Prediction(model(), PAIR.image, out=out, options=OPTIONS, part="2/2")
    )
    assert (
        text
        == f"part 2 of 2 is done: planes 3 to 5; all other parts are done too, and {out} has been written"
    )
    assert contents(tmp_path) == whole()


def test_one_process_alone_waits_for_who_puts_the_file_together(tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "PATIENCE", 0.1)
    out = tmp_path / "x.tif"
    task = PredictionTask(
        PredictionInput(PAIR.image, load_models(model())), ensemble(), OPTIONS
    )
    client = ResumableOutput(
        out,
        task.input.output_spec(OPTIONS),
        task.identity,
        WriterRole(planes=range(0), shared=True),
    )
    with closing(client):
        assert client.claim_assembly() == ""
        with pytest.raises(
            RunError, match="another process is predicting the same planes just now"
        ):
            run(out)
    assert run(out).complete


HOLD = """
import sys, time
from pathlib import Path
{code}
print("held", flush=True)
time.sleep(60)
"""


def hold(code: str) -> subprocess.Popen[bytes]:
    """Start a process that holds a lock until it is killed."""
    script = HOLD.format(code=textwrap.dedent(code))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_a_lock_of_a_killed_process_is_taken_over(tmp_path):
    lock = tmp_path / "lock"
    process = hold(f"""
        from napari_strata.core.locks import exclusive
        context = exclusive(Path({str(lock)!r}))
        assert context.__enter__() == ""
    """)
    with exclusive(lock) as holder:
        assert holder == f"process {process.pid} on {socket.gethostname()}"
    assert lock.exists()
    kill(process)
    with exclusive(lock) as holder:
        assert holder == ""
        with exclusive(lock) as another:
            assert another == f"process {os.getpid()} on {socket.gethostname()}"
    assert not lock.exists()


@pytest.mark.parametrize("text", ["process 123 on node7", "123\nnode7\n"])
def test_a_lock_of_another_machine_is_respected(tmp_path, text):
    lock = tmp_path / "lock"
    lock.write_text(text)
    with exclusive(lock) as holder:
        assert holder == "process 123 on node7"
    assert lock.read_text() == text


def test_claims_hold_until_they_are_released(tmp_path):
    first = claim_planes(tmp_path, range(3, 6))
    assert first is not None
    others = [claim_planes(tmp_path, planes) for planes in (range(3), range(6, 9))]
    assert None not in others
    for planes in (range(5, 7), range(3, 6), range(4, 5), range(9)):
        assert claim_planes(tmp_path, planes, wait=0.1) is None
    first.release()
    again = claim_planes(tmp_path, range(4, 6))
    assert again is not None
    assert claim_planes(tmp_path, range(3, 6)) is None
    for lock in (*others, again):
        lock.release()
    whole = claim_planes(tmp_path, range(10))
    assert whole is not None
    whole.release()


def test_claims_of_a_killed_process_are_free(tmp_path):
    process = hold(f"""
        from napari_strata.inference.shards import claim_planes
        lock = claim_planes(Path({str(tmp_path)!r}), range(3, 6))
        assert lock is not None
    """)
    assert claim_planes(tmp_path, range(5, 8)) is None
    kill(process)
    lock = claim_planes(tmp_path, range(5, 8))
    assert lock is not None
    lock.release()


def test_a_claim_makes_no_folder_again_that_is_deleted(tmp_path, monkeypatch):
    folder = tmp_path / "x.tif.partial"
    with pytest.raises(FileNotFoundError):
        claim_planes(folder, range(3))
    folder.mkdir()
    real = shards._lock_planes

    def lock_planes(*arguments):
        shutil.rmtree(folder)  # another process has put the file together
        return real(*arguments)

    monkeypatch.setattr(shards, "_lock_planes", lock_planes)
    with pytest.raises(FileNotFoundError):
        claim_planes(folder, range(3))
    assert list(tmp_path.iterdir()) == []


def test_what_a_version_with_other_locks_left_is_taken_up(tmp_path):
    out = tmp_path / "x.tif"
    run(out, planes=2)
    folder = tmp_path / "x.tif.partial"
    for path in folder.glob(".*.lock"):
        path.unlink()
    (folder / ".claims").touch()
    events = list(Prediction(model(), PAIR.image, out=out, options=OPTIONS))
    assert [e.done for e in events if isinstance(e, PredictionStarted)] == [2]
    assert contents(tmp_path) == whole()


def test_arrays_are_made_once_and_checked(tmp_path):
    spec = OutputSpec(4, (3, 3), np.dtype(np.uint8))
    (tmp_path / "y.tif.partial").mkdir()
    (tmp_path / "y.tif.partial" / "labels.npy").touch()
    with pytest.raises(RunError, match="folder that is not an unfinished prediction"):
        ResumableOutput(
            tmp_path / "y.tif", spec, {"a": 1}, WriterRole(Shard(1, 2), range(2))
        )
    one = ResumableOutput(
        tmp_path / "x.tif", spec, {"a": 1}, WriterRole(Shard(1, 2), range(2))
    )
    inode = os.stat(tmp_path / "x.tif.partial" / "labels.npy").st_ino
    one.write(1, [np.full((3, 3), 7, np.uint8)], [9])
    two = ResumableOutput(
        tmp_path / "x.tif", spec, {"a": 1}, WriterRole(Shard(2, 2), range(2, 4))
    )
    two.write(3, [np.full((3, 3), 5, np.uint8)], [9])
    assert os.stat(tmp_path / "x.tif.partial" / "labels.npy").st_ino == inode
    assert two.recorded_planes() == {1, 3}
    assert two.pixels.keys() == {3}
    one.close()
    with pytest.raises(
        RunError, match="prediction with another shape; planes of other"
    ):
        ResumableOutput(
            tmp_path / "x.tif",
            OutputSpec(4, (9, 9), spec.dtype),
            {"a": 1},
            WriterRole(Shard(1, 2), range(2)),
        )
    two.close()


def test_parts_need_a_file_to_write(tmp_path):
    with pytest.raises(
        RunError, match=r"several processes need a file to write to \(out\)"
    ):
        list(iter_predict(model(), PAIR.image, part="1/2"))
    with pytest.raises(RunError, match="give either a part or a scheduler"):
        list(
            iter_predict(
                model(),
                PAIR.image,
                out=tmp_path / "x.tif",
                part="1/2",
                scheduler="local:2",
            )
        )


def test_files_are_dealt_out_and_one_file_is_cut(tmp_path):
    for number in range(5):
        write_image(tmp_path / "scans" / f"s{number}.tif", PAIR.image)
    scans, options = tmp_path / "scans", OPTIONS.updated(probabilities=False)
    for number in (2, 1):
        events = list(
            predict_files(
                model(), [scans], tmp_path / "out", options=options, part=f"{number}/2"
            )
        )
        names = [Path(e.source).name for e in events if isinstance(e, FileEnd)]
        assert (
            names == [["s0.tif", "s2.tif", "s4.tif"], ["s1.tif", "s3.tif"]][number - 1]
        )
        with open(tmp_path / "out" / f"report.{number}of2.csv", newline="") as file:
            assert [Path(row["source"]).name for row in csv.DictReader(file)] == names
    assert len(list((tmp_path / "out").glob("*_labels.tif"))) == 5
    ends = [
        event
        for number in (1, 2)
        for event in predict_files(
            model(),
            [scans / "s0.tif"],
            tmp_path / "one.tif",
            options=options,
            part=f"{number}/2",
        )
        if isinstance(event, FileEnd)
    ]
    assert [(end.status, end.text) for end in ends] == [
        ("done", "part 1/2"),
        ("done", ""),
    ]
    expected = read_labels(tmp_path / "out" / "s0_labels.tif").read()
    assert np.array_equal(read_labels(tmp_path / "one.tif").read(), expected)


def test_the_command_line_takes_parts(tmp_path, monkeypatch, capsys):
    saved = model().save(tmp_path / "model.safetensors")
    image = write_image(tmp_path / "image.tif", PAIR.image)

    def call(*words) -> str:
        line = [
            "napari-strata",
            "predict",
            str(saved),
            str(image),
            "--out",
            str(tmp_path / "x.tif"),
            *words,
        ]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            cli.main()
        found = capsys.readouterr()
        assert (end.value.code == 2) == found.err.startswith("error: ")
        assert len(found.err.splitlines()) <= 1
        return found.out + found.err

    assert "part 3/2 is not possible; it must be i/n" in call("--part", "3/2")
    assert "give either a part or a scheduler" in call(
        "--part", "1/2", "--scheduler", "local:1"
    )
    assert "part 2 of 2 is done: planes 3 to 5; 1 part is not finished yet" in call(
        "--part", "2/2", "--device", "cpu"
    )
    assert "x.tif" in call("--part", "1/2", "--device", "cpu")
    assert read_labels(tmp_path / "x.tif").shape == (5, 24, 32)


def test_two_processes_at_once_and_one_of_them_killed(tmp_path):
    saved = model().save(tmp_path / "model.safetensors")
    image = write_labels(
        tmp_path / "image.tif", PAIR.image.labels_like(PAIR.image.data)
    )
    out = tmp_path / "cut" / "x.tif"

    def start(part: str, killed_after: int) -> subprocess.Popen[bytes]:
        script = f"""
            import os, signal
            from napari_strata.core.events import RegionEnd
            from napari_strata.inference.predict import iter_predict
            from napari_strata.core.options import PredictOptions
            options = PredictOptions(device="cpu", precision="fp32")
            for event in iter_predict({str(saved)!r}, {str(image)!r}, out={str(out)!r}, options=options, part={part!r}):
                if isinstance(event, RegionEnd) and event.done == {killed_after}:
                    os.kill(os.getpid(), signal.SIGKILL)
        """
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])

    running = [start("1/2", 99), start("2/2", 2)]
    assert [process.wait() for process in running] == [0, -signal.SIGKILL]
    ledgers = (tmp_path / "cut" / "x.tif.partial").glob("ledger.*.jsonl")
    lines = [
        json.loads(line)
        for path in ledgers
        for line in path.read_text().splitlines()[1:]
    ]
    assert sorted(line["plane"] for line in lines) == [0, 1, 2, 3]
    events = list(
        iter_predict(
            saved,
            image,
            out=out,
            options=OPTIONS.updated(probabilities=False),
            part="2/2",
        )
    )
    assert [e.region["Z"] for e in events if isinstance(e, RegionEnd)] == [4]
    predict(
        saved,
        image,
        out=tmp_path / "whole" / "x.tif",
        options=OPTIONS.updated(probabilities=False),
    )
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="a script for Linux clusters")
def test_the_slurm_array_asks_for_every_part(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "slurm" / "predict_array.sbatch"
    (tmp_path / "napari-strata").write_text('#!/bin/bash\necho "$OMP_NUM_THREADS $*"\n')
    (tmp_path / "napari-strata").chmod(0o755)
    (count,) = re.findall(
        r"^#SBATCH --array=1-(\d+)$", script.read_text(), re.MULTILINE
    )
    for number in range(1, int(count) + 1):
        given = {
            "MODEL": "run",
            "IMAGES": "a.tif b.tif",
            "OUT": "out",
            "SLURM_ARRAY_TASK_ID": str(number),
        }
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "3"}
        done = subprocess.run(
            ["bash", script],
            env=given | path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            done.stdout
            == f"3 predict run a.tif b.tif --out out --part {number}/{count}\n"
        )


def test_planes_of_no_chunks():
    assert planes_of([]) == range(0)
