"""The system libraries that the tests need: installed here when that is possible, named with the command when not.

Run by tox before the tests. The engine's wheels bring everything but the C++ runtime and zlib.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

NEEDED = {"libstdc++.so.6": "libstdc++6", "libz.so.1": "zlib1g"}
"""Shared library -> Debian package."""


def missing() -> list[str]:
    """Debian packages of the libraries that cannot be loaded."""
    packages = []
    for library, package in NEEDED.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            packages.append(package)
    return packages


def main() -> int:
    """Install what is missing as root on Debian; elsewhere name it. Returns the exit status."""
    if not sys.platform.startswith("linux") or not (packages := missing()):
        return 0
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], check=True)
        subprocess.run(install, check=True)
        return 0
    print(f"system libraries are missing: {', '.join(packages)}. On Debian or Ubuntu: sudo {' '.join(install)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
