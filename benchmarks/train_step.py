"""One step of training a U-Net with a ResNet34 encoder: torch as it comes, a bare loop in our settings, and ours.

    python benchmarks/train_step.py [NAME]... [--json FILE]

Eight RGB patches of 256 x 256, four classes, AdamW, cross-entropy. "Torch as it comes" is float32 and NCHW on one batch
that is always the same. The bare loop adds channels last, bfloat16 and the fused optimiser to that, and nothing else.
"Ours" is the trainer's step (augmentation, loss terms, gradient norm, check for NaN) on batches that its own loader
draws; how long the loader takes a batch, and the loop around the step, is told beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import Facts, arguments, contender, run, table, timed
from torch import nn

import napari_strata as ns
from napari_strata.core.classes import ClassMap
from napari_strata.core.events import BatchEnd, EpochEnd
from napari_strata.core.image import AnnotatedImage
from napari_strata.data.loader import PatchSource
from napari_strata.models.allocator import kept_pages
from napari_strata.models.device import choose_device, choose_precision
from napari_strata.networks import build_network
from napari_strata.training.learner import Learner
from napari_strata.training.plan import TrainingTask, plan_new

SIDE, BATCH, STEPS = 256, 8, 5
DEVICE = choose_device("auto")
SETTINGS = {
    "network.encoder_weights": "none",
    "patches.size": SIDE,
    "patches.per_epoch": BATCH * 8,
    "training.batch_size": BATCH,
    "training.loss": {"ce": 1.0},
    "training.epochs": 1,
    "training.averaging": None,
    "training.recalibration": 0,
}


def pair(side: int = 1024, planes: int = 2) -> AnnotatedImage:
    """Noise in three channels, four classes."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (planes, 3, side, side)).astype(np.uint8)
    labels = np.repeat(
        np.repeat(rng.integers(0, 4, (planes, side // 16, side // 16)), 16, 1), 16, 2
    ).astype(np.uint8)
    classes = ClassMap.from_values(range(4))
    return AnnotatedImage(
        ns.Image(image, "ZCYX"), ns.LabelImage(labels, "ZYX", classes=classes), "noise"
    )


def job(folder: str, **more: Any) -> TrainingTask:
    return TrainingTask(
        recipe="unet-resnet34",
        pairs=[pair()],
        out=Path(folder) / "run",
        overrides=SETTINGS | more,
    )


def network() -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        spec = plan_new(job(folder)).spec
    torch.manual_seed(0)
    return build_network(spec).to(DEVICE).train()


def loop(*, ours: bool, repeats: int) -> Facts:
    """A bare loop on one synthetic batch."""
    net = network()
    images = torch.randn(BATCH, 3, SIDE, SIDE, device=DEVICE)
    labels = torch.randint(0, 4, (BATCH, SIDE, SIDE), device=DEVICE)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=1e-4, fused=True if ours else None
    )
    if ours:
        net = net.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=ours):
            logits = net(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return per_step(step, repeats)


def per_step(step: Any, repeats: int) -> Facts:
    def steps() -> None:
        for _ in range(STEPS):
            step()

    facts = timed(steps, repeats=repeats)
    return {
        key: value / STEPS if key in ("median", "least", "most") else value
        for key, value in facts.items()
    }


@contender("torch as it comes")
def eager(options: argparse.Namespace) -> Facts:
    return loop(ours=False, repeats=options.repeats)


@contender("bare loop, our settings")
def bare(options: argparse.Namespace) -> Facts:
    return loop(ours=True, repeats=options.repeats)


@contender("bare loop, pages kept")
def bare_kept(options: argparse.Namespace) -> Facts:
    with kept_pages(DEVICE.type):
        return loop(ours=True, repeats=options.repeats)


@contender("ours")
def ours(options: argparse.Namespace) -> Facts:
    """The trainer's step, and how long its loader takes for a batch."""
    with tempfile.TemporaryDirectory() as folder, kept_pages(DEVICE.type):
        plan = plan_new(job(folder))
        precision = choose_precision("auto", DEVICE)
        source = PatchSource(plan.training, plan.spec, plan.recipe)
        learner = Learner(plan, device=DEVICE, precision=precision, batches=len(source))
        batches = [
            batch for _, batch in zip(range(STEPS), source.epoch(1), strict=False)
        ]
        number = iter(range(1, 10**6))
        cycle = iter(lambda: batches[next(number) % len(batches)], None)
        facts = per_step(
            lambda: learner.step(next(cycle), epoch=1, number=next(number)),
            options.repeats,
        )
        begun, count = time.perf_counter(), 0
        for _ in source.epoch(2):
            count += 1
        return facts | {
            "data": (time.perf_counter() - begun) / count,
            "precision": precision.name,
        }


@contender("the loop around it")
def around(options: argparse.Namespace) -> Facts:
    """What an epoch of the smallest network takes beyond its steps and its data, a batch.

    One thread: after each of so small steps torch's other threads wait spinning, which slows what is timed.
    """
    torch.set_num_threads(1)
    spent = {"step": 0.0, "data": 0.0}
    step, epoch = Learner.step, PatchSource.epoch

    def timed_step(self: Learner, *args: Any, **keywords: Any) -> Any:
        begun = time.perf_counter()
        try:
            return step(self, *args, **keywords)
        finally:
            spent["step"] += time.perf_counter() - begun

    def timed_epoch(self: PatchSource, number: int, *, first: int = 0) -> Any:
        batches = iter(epoch(self, number, first=first))
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            spent["data"] += time.perf_counter() - begun
            if batch is None:
                return
            yield batch

    Learner.step, PatchSource.epoch = timed_step, timed_epoch  # type: ignore[method-assign]
    small = {
        "network.kind": "unet",
        "network.widths": (2, 2),
        "patches.size": 16,
        "patches.per_epoch": 1000,
        "training.batch_size": 1,
        "training.epochs": 1,
        "training.recalibration": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        events = ns.iter_train(
            "unet-classic", [pair(128)], out=Path(folder) / "run", overrides=small
        )
        seconds: list[float] = []
        with closing(events):
            last = None
            for event in events:
                if isinstance(event, BatchEnd):
                    now = time.perf_counter() - spent["step"] - spent["data"]
                    if last is not None:
                        seconds.append(now - last)
                    last = now
                if isinstance(event, EpochEnd):
                    break
    return {
        "median": float(np.median(seconds)),
        "least": min(seconds),
        "most": max(seconds),
        "runs": len(seconds),
    }


def main() -> None:
    options = arguments(__doc__).parse_args()
    found = run(options)
    if not found:
        return
    first = found.get("torch as it comes", {}).get("median")
    rows = []
    for name, facts in found.items():
        if name == "the loop around it":
            continue
        data = (
            f"{facts['data'] / facts['median'] * 100:.2f} %" if "data" in facts else "-"
        )
        ratio = first / facts["median"] if first else "-"
        spread = f"{facts['least']:.3f}-{facts['most']:.3f}"
        rows.append(
            [name, facts["median"], spread, ratio, data, f"{facts['peak']:.0f}"]
        )
    print(
        table(
            [
                "",
                "seconds a step",
                "spread",
                "x torch as it comes",
                "data / step",
                "peak MB",
            ],
            rows,
        )
    )
    if "the loop around it" in found:
        print(
            f"\nthe loop around a step: {found['the loop around it']['median'] * 1000:.3f} ms (median of 999)"
        )


if __name__ == "__main__":
    main()
