"""Time until a command or the worker is ready, beside the unavoidable imports.

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
    "napari-strata --help": ["-m", "napari_strata", "--help"],
    "napari-strata recipes": ["-m", "napari_strata", "recipes"],
    "a wrong option": ["-m", "napari_strata", "train", "--nothing"],
    "the plugin's manifest": ["-c", "from npe2 import PluginManifest as Manifest\n"
                              "Manifest.from_distribution('napari-strata')"],
    "npe2, which reads it": ["-c", "import npe2"],
    "the plugin's reader": ["-c", "import napari_strata.plugin"],
    "the worker, ready for a job": [
        "-c", "import napari_strata.worker.server, napari_strata.inference.predict"
    ],
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
    results = run(arguments(__doc__).parse_args())
    if not results:
        return
    torchs = results.get("import torch", {}).get("median")
    rows = [
        [
            name,
            facts["median"],
            f"{facts['least']:.2f}-{facts['most']:.2f}",
            facts["median"] / torchs if torchs else "-",
        ]
        for name, facts in results.items()
    ]
    print(table(["", "seconds", "spread", "x import torch"], rows))


if __name__ == "__main__":
    main()
