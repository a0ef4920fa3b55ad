"""Shared parts of the benchmarks.

Each contender runs in a process of its own; medians, memory and the machine are
reported in a table.

A benchmark is a script with functions of no argument, each a contender, registered with
`contender`. Run as ``python script.py NAME --alone`` it calls one and prints its facts
as JSON; run without a name it starts each in turn, prints a table and writes a JSON
file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
CONTENDERS: dict[str, Callable[[argparse.Namespace], Facts | None]] = {}
PACKAGES = (
    "napari-strata",
    "torch",
    "monai",
    "nnunetv2",
    "onnxruntime",
    "openvino",
    "zarr",
    "tifffile",
    "numpy",
)


def contender(
    name: str,
) -> Callable[[Callable[[argparse.Namespace], Facts | None]], Any]:
    """Register a function as a contender; it returns None if it cannot run here."""

    def register(function: Callable[[argparse.Namespace], Facts | None]) -> Any:
        CONTENDERS[name] = function
        return function

    return register


def timed(call: Callable[[], Any], *, repeats: int, warm: int = 1) -> Facts:
    """Measure the seconds of `call`: median, fastest, slowest; return its result too.

    The first `warm` calls do not count.
    """
    for _ in range(warm):
        call()
    seconds, result = [], None
    for _ in range(repeats):
        begun = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - begun)
    return {
        "answer": result,
        "median": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "runs": repeats,
    }


def memory() -> dict[str, float]:
    """Megabytes of this process: anonymous now, and resident at most."""
    with open("/proc/self/status", encoding="utf-8") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {
        "anonymous": int(lines["RssAnon"].split()[0]) / 1024,
        "peak": int(lines["VmHWM"].split()[0]) / 1024,
    }


def machine() -> Facts:
    """Describe the machine and the versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "system": platform.platform(),
        "load before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(
                line.split(":")[1].strip()
                for line in file
                if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor()


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="contenders; all when left out")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--table",
        action="store_true",
        help="run nothing: print the table of the --json file",
    )
    parser.add_argument(
        "--alone",
        action="store_true",
        help="run one contender here; its facts are printed as JSON",
    )
    return parser


def run(options: argparse.Namespace) -> dict[str, Facts] | None:
    """Run each contender in a process of its own; None inside such a process."""
    if options.alone:
        facts = CONTENDERS[options.names[0]](options)
        if facts is not None:
            facts = {
                key: value for key, value in facts.items() if key != "answer"
            } | memory()
        print("FACTS " + json.dumps(facts))
        return None
    about, results = machine(), _earlier(options)
    if options.table:
        print(f"{_processor()}, from {options.json}\n")
        return {name: results[name] for name in CONTENDERS if name in results}
    for name in options.names or CONTENDERS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, sys.argv[0], name, "--alone", *_passed_on()]
        reply = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        lines = [
            line for line in reply.stdout.splitlines() if line.startswith("FACTS ")
        ]
        if reply.returncode or not lines:
            print(f"{name}: ended with status {reply.returncode}", file=sys.stderr)
            continue
        if facts := json.loads(lines[-1][6:]):
            results[name] = facts
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(
                json.dumps({"machine": about, "contenders": results}, indent=2) + "\n"
            )
    print(
        f"{about['processor']}, {about['cores']} cores, GPU {about['gpu']}, "
        f"torch {about['versions']['torch']}\n"
    )
    return {name: results[name] for name in CONTENDERS if name in results}


def _earlier(options: argparse.Namespace) -> dict[str, Facts]:
    """With names, the figures of the others are those of the file."""
    if (options.names or options.table) and options.json and options.json.exists():
        return dict(json.loads(options.json.read_text())["contenders"])
    return {}


def _passed_on() -> list[str]:
    """The options of this call, without the contenders' names."""
    return [argument for argument in sys.argv[1:] if argument not in CONTENDERS]


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Markdown; floats with three digits."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append(
            "| "
            + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row)
            + " |"
        )
    return "\n".join(lines)
