"""How long it takes until something can be done, each in a process of its own, beside what cannot be avoided.

python benchmarks/startup.py [NAME]... [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

from contest import Facts, arguments, contender, run, table, timed

COMMANDS = {
    "python that does nothing": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import torch": ["-c", "import torch"],
    "import segmentation_models_pytorch": ["-c", "import segmentation_models_pytorch"],
    "import napari_strata": ["-c", "import napari_strata"],
    "napari-strata --help": ["-c", "import sys; sys.argv = ['napari-strata', '--help']\n"
                             "from napari_strata.cli import main\nmain()"],
    "napari-strata recipes": ["-c", "import sys; sys.argv = ['napari-strata', 'recipes']\n"
                              "from napari_strata.cli import main\nmain()"],
    "a wrong option": ["-c", "import sys; sys.argv = ['napari-strata', 'train', '--nothing']\n"
                       "from napari_strata.cli import main\nmain()"],
    "the plugin's manifest": ["-c", "from npe2 import PluginManifest as Manifest\n"
                              "Manifest.from_distribution('napari-strata')"],
    "npe2, which reads it": ["-c", "import npe2"],
    "the plugin's reader": ["-c", "import napari_strata.plugin"],
    "the worker, ready for a job": ["-c", "import napari_strata.worker.server, napari_strata.inference.predict"],
}  # fmt: skip


def _contest(words: list[str]) -> Callable[[argparse.Namespace], Facts]:
    def contest(options: argparse.Namespace) -> Facts:
        def call() -> None:
            subprocess.run(
                [sys.executable, *words],
                check=False,
                capture_output=True,
                env=dict(os.environ),
            )

        return timed(call, repeats=max(5, options.repeats))

    return contest


for _name, _words in COMMANDS.items():
    contender(_name)(_contest(_words))


def main() -> None:
    found = run(arguments(__doc__).parse_args())
    if not found:
        return
    torchs = found.get("import torch", {}).get("median")
    rows = [
        [
            name,
            facts["median"],
            f"{facts['least']:.2f}-{facts['most']:.2f}",
            facts["median"] / torchs if torchs else "-",
        ]
        for name, facts in found.items()
    ]
    print(table(["", "seconds", "spread", "x import torch"], rows))


if __name__ == "__main__":
    main()
