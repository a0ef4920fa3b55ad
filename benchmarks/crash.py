"""Kill commands at random moments, run them again until they finish, and compare.

``python benchmarks/crash.py --kills 200 --seed 1``

``train``, ``train --extend``, ``predict``, ``crossval`` and ``tune`` get SIGKILL, one
to three times for each result. After each kill the same command follows, or ``train
--resume`` where the run has begun. The finished result is compared with that of a
command that nobody killed: all weights bit for bit, all label values, and the names of
all files. Every command is a process of its own, forked from a server that has
imported torch, so that a kill costs a second instead of five. Linux and macOS only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from napari_strata.core.axes import to_canonical
from napari_strata.core.image import Image
from napari_strata.core.runs import RunFolder
from napari_strata.io import read_labels, write_image, write_labels

TINY = (
    *("--set=network={kind: unet, widths: [4, 8]}", "--set=patches.size=32"),
    *("--set=patches.per_epoch=16", "--set=training.batch_size=4"),
    *("--set=training.precision=fp32", "--set=training.learning_rate=1e-2"),
)
EARLY = 0.15
"""Share of the kills that come before a command prints anything, while it reads."""
TIMEOUT_S = 600
MODULES = [
    "napari_strata.cli.commands",
    "napari_strata.training.loop",
    "napari_strata.studies.tune",
    "napari_strata.inference.batch",
    "torch._dynamo",  # the first optimiser imports it
    "__main__",
]


@dataclass(frozen=True)
class Case:
    """A command, and what it leaves.

    Parameters
    ----------
    command
        Words of the command, without the output.
    begin
        Prepares the output, such as a run to be extended.
    again
        Words of the command after a kill; the same by default.
    """

    name: str
    out: str
    command: tuple[str, ...]
    begin: Callable[[Path], None] = lambda _out: None
    again: Callable[[Case, Path], tuple[str, ...]] = lambda case, _out: case.command


@dataclass
class Counts:
    """What was seen of one command."""

    kills: int = 0
    results: int = 0
    equal: int = 0
    dead_ends: int = 0
    leftovers: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def write_data(folder: Path) -> None:
    """Write a stack with two grey values, and its labels."""
    rng = np.random.default_rng(0)
    rows = np.sin(np.arange(64) / 5)
    truth = (rows[:, None] + rows + rng.normal(0, 0.2, (4, 64, 64))) > 0
    grey = np.where(truth, 160, 90) + rng.normal(0, 8, truth.shape)
    image = Image(grey.clip(0, 255).astype(np.uint8), "ZYX")
    write_image(folder / "images.tif", image)
    write_labels(folder / "labels.tif", image.labels_like(truth.astype(np.uint8)))
    write_image(folder / "large.tif", Image(np.tile(image.data, (5, 4, 4)), "ZYX"))


def resume(case: Case, out: Path) -> tuple[str, ...]:
    """Return the words that continue a training."""
    if not RunFolder(out).has_begun:
        return case.command
    words = [word for word in case.command if not word.startswith("--extend")]
    recipe = RunFolder(out).recipe
    if words != list(case.command) and recipe.training.epochs == 2:
        return case.command  # killed before the run knew that it is extended
    return (*words, "--resume")


def cases(data: Path) -> list[Case]:
    """Return the commands to be killed."""
    pair = (str(data / "images.tif"), str(data / "labels.tif"))
    short = "--set=training.epochs=2"
    trained = data / "trained"
    predict = ("predict", str(trained), str(data / "large.tif"))

    def copy_run(out: Path) -> None:
        shutil.copytree(trained, out)

    train = ("train", *pair, *TINY, short)
    return [
        Case("train", "run", train, again=resume),
        Case(
            "train --extend",
            "run",
            ("train", *pair, "--extend=1"),
            begin=copy_run,
            again=resume,
        ),
        Case("predict", "labels.tif", predict),
        Case("predict to Zarr", "labels.zarr", predict),
        Case("crossval", "folds", ("crossval", *pair, *TINY, short, "--folds=2")),
        Case(
            "tune",
            "search",
            (
                *("tune", *pair, *TINY, "--set=training.epochs=1", "--folds=1"),
                "--grid=training.learning_rate=1e-2,1e-3",
            ),
        ),
    ]


def run_command(words: list[str], log: str) -> None:
    """Run the command line in this process; its output goes to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["napari-strata", *words]
    from napari_strata import cli

    cli.main()


class Runner:
    """Starts commands."""

    def __init__(self, folder: Path) -> None:
        self._server = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(MODULES)
        self.log = folder / "log.txt"

    def start(self, words: tuple[str, ...], out: Path) -> BaseProcess:
        """Start a command that writes to `out`."""
        self.log.write_bytes(b"")
        line = [*words, "--out", str(out), "--json", "--device", "cpu"]
        process = self._server.Process(target=run_command, args=(line, str(self.log)))
        process.start()
        return process

    def run(self, words: tuple[str, ...], out: Path) -> tuple[float, float, int]:
        """Run a command; return seconds to its first output and in all, and status."""
        began = time.monotonic()
        process = self.start(words, out)
        while process.is_alive() and not self.log.stat().st_size:
            time.sleep(0.002)
        first = time.monotonic() - began
        process.join(TIMEOUT_S)
        process.kill()
        process.join()
        return first, time.monotonic() - began, int(process.exitcode or 0)

    def kill(
        self, words: tuple[str, ...], out: Path, chance: random.Random, times: Any
    ) -> tuple[bool, int]:
        """Run a command, and kill it at a random moment.

        Returns True if it was killed before its end, and the status.
        """
        first, whole = times
        process = self.start(words, out)
        if chance.random() < EARLY:
            process.join(chance.uniform(0, first))
        else:
            while process.is_alive() and not self.log.stat().st_size:
                time.sleep(0.002)
            process.join(chance.uniform(0, whole - first))
        process.kill()
        process.join()
        return process.exitcode == -9, int(process.exitcode or 0)


def names(out: Path) -> set[str]:
    """Return the names of all files that belong to an output."""
    near = {path for path in out.parent.iterdir() if path.name != "log.txt"}
    inside = set(out.rglob("*")) if out.is_dir() else set()
    return {str(path.relative_to(out.parent)) for path in near | inside}


def table_epochs(run: Path) -> list[str]:
    """Return the epochs of the table of a run."""
    return [row["epoch"] for row in RunFolder(run).epoch_rows()]


def recorded_epochs(run: Path) -> list[int]:
    """Return the epochs among the events of a run."""
    return [end.epoch for end in RunFolder(run).history().epochs]


def difference(out: Path, expected: Path) -> str:
    """Compare a result with the expected one; return the first difference."""
    if expected.suffix in (".tif", ".zarr"):
        images = [read_labels(path) for path in (out, expected)]
        first, second = (to_canonical(i.data[...], i.axes) for i in images)
        return "" if np.array_equal(first, second) else "other labels"
    for model in sorted(expected.rglob("*.safetensors")):
        name = model.relative_to(expected)
        other, own = load_file(out / name), load_file(model)
        same = other.keys() == own.keys() and all(
            np.array_equal(other[key], own[key]) for key in own
        )
        if not same:
            return f"other weights in {name}"
    for recipe in sorted(expected.rglob("recipe.yaml")):
        name = recipe.parent.relative_to(expected)
        for kind in (table_epochs, recorded_epochs):
            if kind(out / name) != kind(recipe.parent):
                return f"{kind.__name__} in {name}: {kind(out / name)}"
    for name in ("crossval.csv", "trials.csv", "best.yaml"):
        if (expected / name).exists() and not (out / name).exists():
            return f"no {name}"
    return ""


def check(case: Case, out: Path, expected: Path, counts: Counts) -> None:
    """Compare a finished result with that of a command that was not killed."""
    counts.results += 1
    try:
        text = difference(out, expected)
    except Exception as error:  # a damaged result
        text = f"{type(error).__name__}: {error}"
    counts.equal += not text
    more = sorted(names(out) - names(expected))
    counts.leftovers += len(more)
    missing = sorted(names(expected) - names(out))
    for fault in (text, more and f"left {more}", missing and f"lacks {missing}"):
        if fault:
            counts.faults.append(f"{case.name}: {fault}")
            print(f"  {fault}", flush=True)


def crash(
    case: Case,
    folder: Path,
    expected: Path,
    *,
    runner: Runner,
    times: tuple[float, float],
    chance: random.Random,
    counts: Counts,
) -> None:
    """Kill a command one to three times, finish it, and compare."""
    out = folder / case.out
    case.begin(out)
    words, kills = case.command, chance.randint(1, 3)
    while True:
        if kills:
            kills -= 1
            killed, status = runner.kill(words, out, chance, times)
            counts.kills += killed
        else:
            killed = False
            _, _, status = runner.run(words, out)
        if not killed:
            break
        words = case.again(case, out)
    log = runner.log.read_text(encoding="utf-8").strip()
    # Killed while Python ended, a prediction leaves nothing that says that it did.
    is_whole = "exists already" in log and names(out) == names(expected)
    if status and not is_whole:
        counts.dead_ends += 1
        counts.faults.append(f"{case.name}: {' '.join(words)}: {log[-500:]}")
        print(f"  dead end: {counts.faults[-1]}", flush=True)
        return
    check(case, out, expected, counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="name of one command")
    parser.add_argument("--keep", type=Path, help="a new folder to keep all files in")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    chance = random.Random(options.seed)
    root = options.keep or Path(tempfile.mkdtemp(prefix="strata-crash-"))
    root.mkdir(parents=True, exist_ok=True)
    runner = Runner(root)
    write_data(root)
    pair = (str(root / "images.tif"), str(root / "labels.tif"))
    short = ("train", *pair, *TINY, "--set=training.epochs=2")
    runner.run(short, root / "trained")
    table: dict[str, Counts] = {}
    known: dict[str, tuple[Path, tuple[float, float]]] = {}
    selected = [c for c in cases(root) if options.only in (None, c.name)]
    for case in selected:
        table[case.name] = Counts()
        expected = root / f"whole {case.name}" / case.out
        expected.parent.mkdir()
        case.begin(expected)
        first, whole, status = runner.run(case.command, expected)
        assert status == 0, runner.log.read_text(encoding="utf-8")
        known[case.name] = expected, (first, whole)
        print(f"{case.name}: {first:.2f} s to the first line, {whole:.2f} s in all")
    number = 0
    with suppress(KeyboardInterrupt):  # Ctrl-C: the figures so far
        while sum(counts.kills for counts in table.values()) < options.kills:
            case = selected[number % len(selected)]
            counts = table[case.name]
            folder = root / f"{number} {case.name}"
            folder.mkdir()
            expected, times = known[case.name]
            began = time.monotonic()
            faults = len(counts.faults)
            crash(
                case,
                folder,
                expected,
                runner=runner,
                times=times,
                chance=chance,
                counts=counts,
            )
            counts.seconds += time.monotonic() - began
            total = sum(counts.kills for counts in table.values())
            print(f"{total} kills, {number + 1} results: {case.name}", flush=True)
            if options.keep is None and len(counts.faults) == faults:
                shutil.rmtree(folder)
            number += 1
    print(f"{'command':18}{'kills':>7}{'results':>9}{'equal':>7}{'dead ends':>11}"
          f"{'leftovers':>11}{'s/kill':>8}")  # fmt: skip
    for name, counts in table.items():
        each = counts.seconds / max(counts.kills, 1)
        print(f"{name:18}{counts.kills:7}{counts.results:9}{counts.equal:7}"
              f"{counts.dead_ends:11}{counts.leftovers:11}{each:8.1f}")  # fmt: skip
    if options.out is not None:
        record = {name: asdict(counts) for name, counts in table.items()}
        options.out.write_text(json.dumps(record, indent=2) + "\n")
    faults = sum(len(counts.faults) for counts in table.values())
    if not faults and options.keep is None:
        shutil.rmtree(root)
    elif faults:
        sys.exit(f"{faults} faults; see {root}")


if __name__ == "__main__":
    main()
