"""The doctor names what is wrong and what to do, and is never itself the patient."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from napari_strata import doctor
from napari_strata.doctor import (
    Check,
    as_text,
    compute,
    diagnose,
    from_json,
    installed,
    processes,
)
from napari_strata.models import device

READY = '{"event": "Ready", "job": null, "protocol": %d, "pid": 1, "host": "gpu-host", "versions": {"torch": "9.1"}, '
READY += (
    '"devices": {"cuda": "GPU: H200, 140 GB", "cpu": "CPU, 8 cores"}, "seconds": 1.0}'
)


def _worker_that(code: str) -> Check:
    return processes.worker([sys.executable, "-c", code])


def test_a_worker_that_answers_is_timed_and_leaves_when_it_is_let_go(
    tmp_path: Path,
) -> None:
    left = tmp_path / "left"
    code = f"print('Welcome to gpu-host'); print({READY % processes.PROTOCOL!r}, flush=True); input()"
    check = _worker_that(f"try:\n {code}\nexcept EOFError:\n open({str(left)!r}, 'w')")
    assert check.status == "ok"
    assert "on gpu-host, GPU: H200, 140 GB, CPU, 8 cores, torch 9.1" in check.text
    assert left.exists(), "its stdin was not closed"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import sys; sys.exit('no torch here')",
            "ended with status 1, after: no torch here",
        ),
        (f"print({READY % 99!r})", "another version"),
        ("print('hello')", "ended with status 0"),
    ],
)
def test_a_worker_that_does_not_start_says_its_last_words(
    code: str, words: str
) -> None:
    check = _worker_that(code)
    assert check.status == "problem"
    assert words in check.text
    assert check.cure


def test_a_worker_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TIMEOUT", 0.5)
    check = _worker_that("import time; time.sleep(600)")
    assert (check.status, "said nothing for 0.5 s" in check.text) == ("problem", True)


def test_a_command_that_does_not_exist() -> None:
    check = processes.worker(["no-such-program-anywhere"])
    assert "cannot be started (No such file or directory)" in check.text


def test_folders(tmp_path: Path) -> None:
    assert installed.folder("Folder", tmp_path / "new" / "runs").status == "ok"
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    check = installed.folder("Folder", tmp_path / "file" / "runs")
    assert (check.status, "cannot be written to" in check.text) == ("problem", True)


@pytest.mark.parametrize(
    ("free", "status"), [(5e8, "problem"), (5e9, "note"), (5e10, "ok")]
)
def test_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, status: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    check = installed.folder("Folder", tmp_path)
    assert check.status == status
    assert bool(check.cure) == (status != "ok")


@pytest.mark.parametrize(
    ("cuda", "driver", "hidden", "status", "words"),
    [
        ("", ("", ""), None, "note", "a CPU build, and no NVIDIA driver"),
        ("13.2", ("", ""), None, "note", "built for CUDA 13.2, and no NVIDIA driver"),
        (
            "",
            ("H200, 580 (driver)", ""),
            None,
            "problem",
            "is a CPU build, but this machine has H200",
        ),
        (
            "13.2",
            ("H200, 580 (driver)", ""),
            "",
            "problem",
            "CUDA_VISIBLE_DEVICES='' hides every GPU",
        ),
        ("13.2", ("", ""), "-1", "note", "CUDA_VISIBLE_DEVICES='-1' hides every GPU"),
        (
            "13.2",
            ("", "Driver/library version mismatch"),
            None,
            "problem",
            "nvidia-smi says: Driver/library",
        ),
        (
            "13.2",
            ("H200, 400 (driver)", ""),
            None,
            "problem",
            "cannot use H200, 400 (driver): too old",
        ),
    ],
)
def test_why_no_gpu_is_used(
    monkeypatch: pytest.MonkeyPatch,
    cuda: str,
    driver: tuple[str, str],
    hidden: str | None,
    status: str,
    words: str,
) -> None:
    monkeypatch.setattr(compute, "_nvidia", lambda: driver)
    monkeypatch.setattr(compute, "_refusal", lambda: "too old")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check = compute._no_gpu("none is used: torch 2", cuda)
    assert (check.status, words in check.text) == (status, True), check
    assert check.cure


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compute._nvidia() == ("", "")
    _program(tmp_path / "nvidia-smi", "echo 'NVIDIA H200, 580.1'")
    assert compute._nvidia() == ("NVIDIA H200, 580.1 (driver)", "")
    _program(tmp_path / "nvidia-smi", "echo 'Failed to initialize NVML'; exit 18")
    assert compute._nvidia() == ("", "Failed to initialize NVML")


def test_a_torch_that_cannot_be_loaded_is_a_problem_with_a_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> Any:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(compute, "import_module", fail)
    check = compute.gpu()
    assert check.status == "problem"
    assert "libcudart.so.13" in check.text


@pytest.mark.parametrize(
    ("fault", "status"), [("", "ok"), ("no kernel image is available", "problem")]
)
def test_a_gpu_that_cannot_compute_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, fault: str, status: str
) -> None:
    card = SimpleNamespace(name="GTX 1080", total_memory=8e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(device, "device_fault", lambda _: fault)
    check = compute.gpu()
    assert check.status == status
    assert "GTX 1080 (8 GB)" in check.text
    assert fault in check.text
    assert bool(check.cure) == (status != "ok")


class _Hub:
    """Stands for networks.hub: `there` is in the cache, and the hub answers or not."""

    def __init__(self, *, there: bool, reason: str = "", offline: bool = False) -> None:
        self.constants = SimpleNamespace(HF_HUB_CACHE="", HF_HUB_OFFLINE=offline)
        self.try_to_load_from_cache = lambda *_, **__: "/cache/file" if there else None
        self.find_pretrained = lambda encoder: SimpleNamespace(
            encoder=encoder, repo="", file="", revision=None
        )
        self.hf_hub_url = lambda *_, **__: "https://hub"
        self.probe = lambda _: reason
        self.find_in_torch_cache = lambda _: None


@pytest.mark.parametrize(
    ("hub", "status", "words"),
    [
        (_Hub(there=True), "ok", "on this disk: resnet34, resnet50"),
        (_Hub(there=False), "ok", "downloaded when first needed: resnet34"),
        (
            _Hub(there=False, reason="no answer within 2 s"),
            "note",
            "cannot be reached (no answer within 2 s)",
        ),
        (_Hub(there=False, offline=True), "note", "HF_HUB_OFFLINE is set"),
    ],
)
def test_where_encoders_start(
    monkeypatch: pytest.MonkeyPatch, hub: _Hub, status: str, words: str
) -> None:
    monkeypatch.setattr(compute, "import_module", lambda _: hub)
    check = compute.weights()
    assert (check.status, words in check.text) == (status, True), check
    assert bool(check.cure) == (status != "ok")


def test_no_display_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "find_version", lambda _: "1")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "no display" in processes.opengl().text
    monkeypatch.setattr(processes, "find_version", lambda _: "")
    assert "napari is not installed" in processes.opengl().text


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("print('NVIDIA | H200 | 4.6')", "ok", "NVIDIA | H200 | 4.6"),
        ("print('Mesa | llvmpipe | 4.5')", "note", "drawn by the CPU"),
        (
            "import sys; sys.exit('qt.qpa: could not load xcb')",
            "problem",
            "could not load xcb",
        ),
    ],
)
def test_opengl(
    monkeypatch: pytest.MonkeyPatch, code: str, status: str, words: str
) -> None:
    monkeypatch.setattr(processes, "find_version", lambda _: "1")
    monkeypatch.setattr(processes, "WINDOW", code)
    monkeypatch.setenv("DISPLAY", ":99")
    check = processes.opengl()
    assert (check.status, words in check.text) == (status, True), check


def test_a_window_that_never_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "find_version", lambda _: "1")
    monkeypatch.setattr(processes, "WINDOW", "import time; time.sleep(600)")
    monkeypatch.setattr(processes, "TIMEOUT", 0.5)
    monkeypatch.setenv("DISPLAY", ":99")
    check = processes.opengl()
    assert check.status == "problem"
    assert "no window within 0.5 s" in check.text


def test_missing_libraries_and_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    there = dict.fromkeys((*installed.ENGINE, *installed.VIEWER), "1.0")
    monkeypatch.setattr(installed, "find_version", lambda name: there.get(name, ""))
    assert installed.viewer().cure == 'Install PyQt6: pip install "napari-strata[all]"'
    there["PySide6"] = "6.9"
    assert installed.viewer().status == "ok"
    there["PySide6"] = installed.LEAKING_PYSIDE
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    assert installed.viewer().status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 11, 9))
    assert "napari will crash" in installed.viewer().text
    monkeypatch.undo()
    monkeypatch.setattr(installed, "find_version", lambda name: there.get(name, ""))
    del there["timm"], there["napari"]
    assert installed.libraries().cure == "Install what is missing: pip install timm"
    assert installed.viewer().status == "note"


def test_a_check_that_breaks_is_a_problem_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> Check:
        raise RuntimeError("driver\nshot dead")

    monkeypatch.setattr(compute, "gpu", broken)
    monkeypatch.setattr(processes, "opengl", lambda: Check("OpenGL", "ok", "fine"))
    checks = {
        check.name: check for check in diagnose([sys.executable, "-c", ""], tmp_path)
    }
    assert len(checks) == 12
    assert checks["GPU"].text == "this check failed: RuntimeError: shot dead"
    assert checks["CPU"].status == "ok"
    text = as_text(checks.values())
    assert "problem GPU: this check failed" in text
    assert "what to do: Copy all of this into a bug report." in text


def test_a_check_survives_the_way_to_the_viewer() -> None:
    check = Check("GPU", "problem", "n'est pas là: é", "do")
    assert from_json(doctor._as_json(check)) == check
    for line in ("hello", "[1]", '{"name": "x"}', "3"):
        with pytest.raises(ValueError, match=r"."):
            from_json(line)


def test_importing_the_doctor_loads_no_torch() -> None:
    code = "import sys, napari_strata.doctor; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
