from __future__ import annotations

from email.message import Message

import check_wheel

FILES = set(check_wheel.FILES)


def build_metadata(readme: str, *requirements: str) -> Message:
    metadata = Message()
    metadata["Version"] = "1.0"
    metadata["License-File"] = "LICENSE"
    for requirement in requirements:
        metadata["Requires-Dist"] = requirement
    metadata.set_payload(readme)
    return metadata


def test_relative_links_and_images_are_found() -> None:
    readme = (
        "[a](docs/a.md) ![b](b.png) [c](https://c.org) [d](#d) "
        '<img width="3" src="e.png"> <a href="https://f.org">'
    )
    assert check_wheel.relative_links(readme) == ["docs/a.md", "b.png", "e.png"]


def test_a_correct_wheel_has_no_problems() -> None:
    metadata = build_metadata(
        "[c](https://c.org)", "numpy>=1", 'napari[all]>=0.9; extra == "all"'
    )
    assert check_wheel.find_problems(metadata, FILES) == []


def test_problems_are_listed() -> None:
    metadata = build_metadata("[a](a.md)", "PyQt6>=6", "napari>=0.9")
    metadata.replace_header("Version", "1.0+local")
    del metadata["License-File"]
    problems = check_wheel.find_problems(metadata, set())
    assert problems == [
        "relative link: a.md",
        "PyPI refuses the version 1.0+local",
        "required without an extra: PyQt6>=6",
        "required without an extra: napari>=0.9",
        "no license file",
        "no file napari_strata/napari.yaml",
        "no file napari_strata/icon.svg",
    ]
