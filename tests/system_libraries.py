"""Install the system libraries that the tests need, or name them.

Run by tox before the tests. The engine's wheels need only the C++ runtime and zlib.
``--viewer`` adds the libraries of PyQt6, its xcb plugin and software OpenGL (found with
ldd), and Xvfb. Missing packages are installed as root on Debian.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

ENGINE_LIBRARIES = {"libstdc++.so.6": "libstdc++6", "libz.so.1": "zlib1g"}
"""Shared library -> Debian package."""

VIEWER_LIBRARIES = {
    "libGL.so.1": "libgl1",  # brings libglx-mesa0 and, with it, the software renderer
    "libEGL.so.1": "libegl1",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-shm.so.0": "libxcb-shm0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
}
PROGRAMS = {"Xvfb": "xvfb"}
"""Program -> Debian package; needed where there is no display."""


def find_missing(
    libraries: Mapping[str, str], programs: Mapping[str, str]
) -> list[str]:
    """Return the Debian packages of the programs and libraries that are missing."""
    packages = []
    for program, package in programs.items():
        if shutil.which(program) is None:
            packages.append(package)
    for library, package in libraries.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            packages.append(package)
    return packages


def main(arguments: list[str]) -> int:
    """Install or name the missing packages and return the exit status."""
    if not sys.platform.startswith("linux"):
        return 0
    libraries = dict(ENGINE_LIBRARIES)
    programs: dict[str, str] = {}
    if "--viewer" in arguments:
        libraries |= VIEWER_LIBRARIES
        if not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
            programs = PROGRAMS
    packages = find_missing(libraries, programs)
    if not packages:
        return 0
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], check=True)
        subprocess.run(install, check=True)
        return 0
    print(
        f"system libraries are missing: {', '.join(packages)}. "
        f"On Debian or Ubuntu: sudo {' '.join(install)}"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
