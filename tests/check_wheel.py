"""Check the wheel in a folder as PyPI and the napari hub would show it.

``python tests/check_wheel.py dist``; run by ``tox run -e package`` after the build.
"""

from __future__ import annotations

import re
import sys
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from zipfile import ZipFile

LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:a|img)\b[^>]*\b(?:href|src)=[\"']([^\"']+)")
"""Target of a link or an image, in Markdown or in HTML."""
ABSOLUTE = ("https://", "http://", "#", "mailto:")
BINDINGS = {"napari", "pyqt5", "pyqt6", "pyside2", "pyside6"}
"""Packages that the user chooses: no plugin may require them."""
FILES = ("napari_strata/napari.yaml", "napari_strata/icon.svg")


def relative_links(text: str) -> list[str]:
    """Return the targets of links and images that are valid in a checkout only."""
    targets = [markdown or html for markdown, html in LINK.findall(text)]
    return [target for target in targets if not target.startswith(ABSOLUTE)]


def find_problems(metadata: Message, files: set[str]) -> list[str]:
    """Return one line for each thing that is wrong with a wheel.

    Parameters
    ----------
    metadata
        The wheel's METADATA.
    files
        Names of the files in the wheel.
    """
    readme = str(metadata.get_payload())
    problems = [f"relative link: {target}" for target in relative_links(readme)]
    if "+" in metadata["Version"]:
        problems.append(f"PyPI refuses the version {metadata['Version']}")
    for requirement in metadata.get_all("Requires-Dist", []):
        name = re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower()
        if name in BINDINGS and "extra ==" not in requirement:
            problems.append(f"required without an extra: {requirement}")
    if not metadata.get_all("License-File"):
        problems.append("no license file")
    problems += [f"no file {name}" for name in FILES if name not in files]
    return problems


def main(folder: str) -> int:
    """Print the problems of the only wheel in `folder`; return the exit status."""
    [path] = Path(folder).glob("*.whl")
    with ZipFile(path) as wheel:
        files = set(wheel.namelist())
        [name] = [file for file in files if file.endswith(".dist-info/METADATA")]
        metadata = BytesParser().parsebytes(wheel.read(name))
    problems = find_problems(metadata, files)
    print(*problems or [f"{path.name}: no problems"], sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
