"""The layers of the package, and what importing it costs."""

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


def _run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout


def test_bare_import_loads_neither_torch_nor_qt_nor_napari() -> None:
    code = "import sys, napari_strata; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = set(_run_python(code).split())
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


def test_bare_import_loads_one_module_of_the_package() -> None:
    code = "import sys, napari_strata; print(*(m for m in sys.modules if 'napari_strata' in m))"
    assert _run_python(code).split() == ["napari_strata"]


def test_public_names_all_resolve() -> None:
    code = "import napari_strata as ns; [getattr(ns, n) for n in ns.__all__]; print(sorted(ns.__all__) == dir(ns))"
    assert _run_python(code).strip() == "True"


def test_unknown_public_name_is_an_attribute_error() -> None:
    import napari_strata

    with pytest.raises(AttributeError, match="no attribute 'traim'"):
        _ = napari_strata.traim


def test_layers() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_axes_transposes_and_nothing_unpickles(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert "weights_only=False" not in text
    assert "pickle.load" not in text
    if module.name != "axes.py":
        assert not re.search(
            r"np\.(transpose|moveaxis|swapaxes)\(|\.transpose\(|moveaxis\(", text
        )


def test_top_level_files() -> None:
    for name in (
        "src",
        "tests",
        "napari.yaml",
        "pyproject.toml",
        "tox.ini",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "SECURITY.md",
        ".ci/run",
    ):
        assert (ROOT / name).exists(), name
    link = ROOT / "napari.yaml"
    if link.is_symlink():
        assert link.resolve() == PACKAGE / "napari.yaml"
    else:  # git on Windows writes the target of a link into a file
        assert link.read_text() == "src/napari_strata/napari.yaml"
