"""The house is as DESIGN says: layers, and an import that costs nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "napari_strata"
MODULES = sorted(PACKAGE.rglob("*.py"))


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_bare_import_loads_neither_torch_nor_qt_nor_napari() -> None:
    code = "import sys, napari_strata; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = set(_python(code).split())
    heavy = {
        "torch",
        "torchvision",
        "numpy",
        "pydantic",
        "zarr",
        "tifffile",
        "napari",
        "qtpy",
        "PyQt6",
        "PySide6",
    }
    assert "napari_strata" in loaded
    assert not loaded & heavy


def test_bare_import_is_fast() -> None:
    code = "import time; t = time.perf_counter(); import napari_strata; print(time.perf_counter() - t)"
    assert min(float(_python(code)) for _ in range(3)) < 0.15


def test_public_names_all_resolve() -> None:
    code = "import napari_strata as ns; [getattr(ns, n) for n in ns.__all__]; print(sorted(ns.__all__) == dir(ns))"
    assert _python(code).strip() == "True"


def test_unknown_public_name_is_an_attribute_error() -> None:
    import napari_strata

    with pytest.raises(AttributeError, match="no attribute 'traim'"):
        _ = napari_strata.traim


def test_layers() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_one_room_transposes_and_none_unpickles(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert "weights_only=False" not in text
    assert "pickle.load" not in text
    if module.name != "axes.py":
        assert not re.search(
            r"np\.(transpose|moveaxis|swapaxes)\(|\.transpose\(|moveaxis\(", text
        )


def test_top_level_is_the_design_card() -> None:
    for name in (
        "src",
        "tests",
        "napari.yaml",
        "pyproject.toml",
        "tox.ini",
        "README.md",
        "LICENSE",
        ".ci/run",
    ):
        assert (ROOT / name).exists(), name
    assert (ROOT / "napari.yaml").resolve() == PACKAGE / "napari.yaml"
