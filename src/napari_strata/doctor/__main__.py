"""``python -m napari_strata.doctor``: what ``napari-strata doctor`` prints; it needs no more than this Python."""

from __future__ import annotations

import argparse
import sys

from napari_strata.doctor import report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m napari_strata.doctor", description="Look at what is installed."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print a JSON object a line."
    )
    parser.add_argument("--folder", help="Where runs are kept.")
    parser.add_argument("--worker", metavar="COMMAND", help="What starts a worker.")
    given = parser.parse_args()
    sys.exit(int(report(given.worker, given.folder, as_json=given.json)))
