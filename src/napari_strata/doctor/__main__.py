"""``python -m napari_strata.doctor``, the same as ``napari-strata doctor``."""

from __future__ import annotations

import argparse
import sys

from napari_strata.doctor import report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m napari_strata.doctor", description="Check the installation."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print a JSON object a line."
    )
    parser.add_argument("--folder", help="The folder of your runs.")
    parser.add_argument(
        "--worker", metavar="COMMAND", help="The command that starts a worker."
    )
    arguments = parser.parse_args()
    sys.exit(int(report(arguments.worker, arguments.folder, as_json=arguments.json)))
