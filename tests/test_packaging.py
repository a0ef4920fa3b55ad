"""Files about the package agree with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch"}
"""Name on PyPI -> name on conda-forge."""
FILES_WITH_THE_ADDRESS = ("CITATION.cff", "SECURITY.md", "recipe/recipe.yaml")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_conda_recipe_has_the_same_requirements(project: dict[str, Any]) -> None:
    recipe = yaml.safe_load((ROOT / "recipe/recipe.yaml").read_text(encoding="utf-8"))
    expected = set()
    for requirement in project["project"]["dependencies"]:
        name, versions = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
        expected.add(f"{CONDA_NAMES.get(name, name)} {versions}")
    run = set(recipe["requirements"]["run"])
    assert run - {"python >=${{ python_min }}"} == expected


def test_the_address_of_the_repository_is_the_same_everywhere(
    project: dict[str, Any],
) -> None:
    address = project["project"]["urls"]["Repository"]
    owner_and_name = address.removeprefix("https://github.com/")
    for file in ("pyproject.toml", *FILES_WITH_THE_ADDRESS):
        text = (ROOT / file).read_text(encoding="utf-8")
        pattern = r"https://(?:github|raw\.githubusercontent)\.com/([\w-]+/[\w-]+)"
        assert set(re.findall(pattern, text)) == {owner_and_name}, file


def test_every_classified_python_has_a_tox_environment(project: dict[str, Any]) -> None:
    classifiers = "\n".join(project["project"]["classifiers"])
    versions = re.findall(r":: 3\.(\d+)$", classifiers, re.MULTILINE)
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    assert f"py{{{','.join('3' + minor for minor in versions)}}}" in tox
    assert project["project"]["requires-python"] == f">=3.{versions[0]}"
