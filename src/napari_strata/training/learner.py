"""State of a training: learner and progress."""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from napari_strata.core.errors import TrainingError
from napari_strata.core.events import EpochEnd, from_json, to_json
from napari_strata.core.recipe import EarlyStopping
from napari_strata.data.augmentation import Augmenter
from napari_strata.data.loader import Batch, PatchSource
from napari_strata.models.device import Precision, memory_order
from napari_strata.models.model import Model
from napari_strata.models.network_predictor import NetworkPredictor
from napari_strata.networks import build_network
from napari_strata.networks.build import encoder_of
from napari_strata.training.averaging import (
    average_state,
    build_average,
    load_average,
)
from napari_strata.training.ddp import ProcessGroup
from napari_strata.training.losses import build_loss
from napari_strata.training.optim import (
    Schedule,
    build_optimizer,
    restore_optimizer,
)
from napari_strata.training.plan import Plan
from napari_strata.training.recalibration import recalibrate
from napari_strata.training.transfer import FreezableEncoder

SNAPSHOT_PATCHES = 16
"""Patches to measure the statistics of a snapshot on, which must not take long."""

MAX_SKIPPED_STEPS = 20
"""Steps in a row that the scaler may skip. It halves its factor at each, and after so
many the gradients themselves are not finite."""


def derived_seed(*key: int) -> int:
    """Return a seed of 63 bits that depends on all numbers of `key`."""
    sequence = np.random.SeedSequence((len(key), *key))
    state = sequence.generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


@contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Seed torch's random numbers by `key` in the block; restore them afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(*key))
        yield


class Learner:
    """Network, averaged weights, optimiser, schedule and gradient scaler.

    The random numbers of a step (dropout, augmentation) depend only on the recipe's
    seed, the epoch and the batch. Therefore a resumed run has the same random numbers
    as an uninterrupted one, and a checkpoint does not store a generator. The epoch
    determines whether the encoder is frozen.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        device: torch.device,
        precision: Precision,
        batches: int,
        group: ProcessGroup | None = None,
    ) -> None:
        section = plan.recipe.training
        self.section = section
        self.group = group or ProcessGroup()
        self.device = device
        self.precision = precision
        with seeded(device, section.seed):
            network = build_network(plan.spec)
        order = memory_order(2 + len(plan.spec.axes), device)
        network = network.to(device, memory_format=order)  # type: ignore[call-overload]
        self.network = self.group.synchronize(network, device)
        self.encoder = FreezableEncoder(self.network)
        self.averaged: AveragedModel | None = None
        self.restart_average()
        self.optimizer = build_optimizer(section, self.network.parameters(), device)
        self.schedule = Schedule(section, self.optimizer, batches)
        self.scaler = precision.scaler(device)
        self.skipped_steps = 0
        self.loss = build_loss(
            section, classes=len(plan.spec.classes), class_counts=plan.counts
        )
        self.augment = Augmenter(
            plan.recipe.augmentation,
            physical=plan.spec.normalization.kind == "physical",
        )

    def restart_average(self) -> None:
        """Start the average with the current weights, such as pretrained weights."""
        if self.section.averaging is not None:
            self.averaged = build_average(self.network, self.section.averaging)

    def step(self, batch: Batch, *, epoch: int, number: int) -> dict[str, float]:
        """Make one step of the optimiser on `batch`.

        In a group of processes, each rank gets the whole batch and computes its share.

        Returns
        -------
        dict[str, float]
            Each loss by its name, and their weighted sum as "loss".

        Raises
        ------
        TrainingError
            When the loss or a gradient is not finite, with fp16 in many steps in a
            row. The weights are then unchanged.
        """
        section = self.section
        with seeded(self.device, section.seed, epoch, number):
            # From pinned memory the copies run beside the computation.
            images = batch.images.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
            images, labels = self.augment(images, labels, torch.default_generator)
            self.network.train()
            self.encoder.hold(epoch <= section.freeze_encoder)
            with self.precision.autocast(self.device):
                order = memory_order(images.ndim, self.device)
                images = images.contiguous(memory_format=order)
                logits = self.group.forward(self.network, images)
            terms = self.loss.terms(logits, labels)
            total = self.loss.total(terms)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self.scaler.scale(total))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.network.parameters(), section.clip_norm or math.inf
        )
        # One transfer from the device for all numbers.
        length, *values = torch.stack([norm, total, *terms.values()]).tolist()
        losses = dict(zip(("loss", *terms), values, strict=True))
        # After infinite gradients, the scaler skips the step and lowers its factor.
        self.skipped_steps = 0 if math.isfinite(length) else self.skipped_steps + 1
        most = MAX_SKIPPED_STEPS if self.scaler.is_enabled() else 1
        if not math.isfinite(losses["loss"]) or self.skipped_steps >= most:
            raise TrainingError(self._explain_not_finite(losses["loss"], epoch, number))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        self.schedule.step_batch()
        return losses

    def _explain_not_finite(self, loss: float, epoch: int, number: int) -> str:
        culprit = "a gradient" if math.isfinite(loss) else "the loss"
        remedy = "lower training.learning_rate to a third"
        if self.precision.dtype is torch.float16:
            remedy += ", or set training.precision to bf16 or fp32"
        elif self.precision.dtype is not None:
            remedy += ", or set training.precision=fp32"
        if math.isfinite(loss) and self.skipped_steps > 1:
            culprit = f"{culprit}, as in the {self.skipped_steps - 1} steps before,"
        checkpoint = " The last checkpoint is kept." if epoch > 1 else ""
        return (
            f"{culprit} is not a finite number in epoch {epoch}, batch {number} (loss "
            f"{loss:g}, learning rate {self.schedule.learning_rate:.1e}); "
            f"{remedy}.{checkpoint}"
        )

    def recalibrate(self, source: PatchSource) -> None:
        """Measure the statistics of batch normalisation on plain patches.

        The recipe has the number of patches. A frozen encoder is not changed.
        """
        for network in self.networks.values():
            self._recalibrate(network, source, self.section.recalibration)

    def _recalibrate(self, network: nn.Module, source: PatchSource, count: int) -> None:
        if not count:
            return
        batches = source.plain(count, batch_size=self.section.batch_size)
        recalibrate(
            network,
            (self.group.split(batch.images) for batch in batches),
            device=self.device,
            precision=self.precision,
            frozen=encoder_of(network) if self.encoder.frozen else None,
        )

    def snapshot(self, source: PatchSource) -> dict[str, Tensor]:
        """Return the newest tensors, on the CPU, in the middle of an epoch.

        Statistics of batch normalisation are measured on few patches, in a copy, so
        that the training is the same with and without snapshots.
        """
        network = copy.deepcopy(self.network)
        count = min(self.section.recalibration, SNAPSHOT_PATCHES)
        self._recalibrate(network, source, count)
        state = network.state_dict()
        return {name: value.detach().cpu() for name, value in state.items()}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Networks to validate: "averaged", if there is one, then "raw"."""
        networks: dict[str, nn.Module] = {}
        if self.averaged is not None:
            networks["averaged"] = self.averaged.module
        networks["raw"] = self.network
        return networks

    def weights(self, kind: str) -> dict[str, Tensor]:
        """Return the tensors of a network by name, on the CPU."""
        state = self.networks[kind].state_dict()
        return {name: value.detach().cpu() for name, value in state.items()}

    def predictor(self, model: Model) -> NetworkPredictor:
        """Build the predictor of a model on this learner's device."""
        # The first weights are drawn at random; leave the caller's random numbers
        # alone.
        with seeded(self.device, 0):
            network = model.build(self.device)
        return NetworkPredictor(
            network, model.spec, device=self.device, precision=self.precision
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain types.

        It can be read by ``torch.load(weights_only=True)``.
        """
        averaged = None
        if self.averaged is not None:
            averaged = average_state(self.averaged)
        return {
            "network": self.network.state_dict(),
            "averaged": averaged,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned, on any device."""
        self.network.load_state_dict(state["network"])
        if self.averaged is not None:
            load_average(self.averaged, state["averaged"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


@dataclass
class Progress:
    """Results of the epochs so far.

    Parameters
    ----------
    history
        Events of the epochs.
    rows
        Rows of ``metrics.csv``.
    since
        Epoch from which early stopping counts: the last epoch before the run was
        extended, or its labels changed.
    best_since
        Epoch from which the best one is chosen: the last one before the labels changed.
        A score by other labels cannot be compared, and its model has not seen the new.
    is_blind
        True if what validates lacks a class of the new labels. Then each epoch is taken
        for better than the one before: a score cannot tell how well the class is known.
    """

    history: list[EpochEnd] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    since: int = 0
    best_since: int = 0
    is_blind: bool = False

    def restart(self, *, is_blind: bool) -> None:
        """Choose the best epoch among those to come, because the labels changed."""
        self.since = self.best_since = self.epoch
        self.is_blind = is_blind

    @property
    def compared(self) -> list[EpochEnd]:
        """Epochs among which the best one is chosen."""
        return [end for end in self.history if end.epoch > self.best_since]

    @property
    def epoch(self) -> int:
        """Last complete epoch; 0 before the first."""
        return self.history[-1].epoch if self.history else 0

    @property
    def best(self) -> EpochEnd | None:
        """Epoch with the highest mean IoU over the classes in the truth.

        It is the first among equal ones. If nothing was scored, it is the last epoch.
        """
        for end in reversed(self.history):
            if end.best_iou:
                return end
        return self.history[-1] if self.history else None

    def is_best(
        self, *, iou: float, loss: float, earlier_iou: float = math.nan
    ) -> tuple[bool, bool]:
        """Return whether a mean IoU and a validation loss are the best so far.

        NaN is never the best.

        Parameters
        ----------
        iou
            Mean over the classes in the truth.
        earlier_iou
            `EpochEnd.mean_iou`, which is compared while there are epochs of an earlier
            version, of which the other is not known.
        """
        best = [end for end in self.compared if end.best_iou]
        is_earlier = any(
            not end.classes_in_truth and math.isfinite(end.mean_iou) for end in best
        )
        ious = [end.comparable_iou for end in best]
        if is_earlier and math.isfinite(earlier_iou):
            iou, ious = earlier_iou, [end.mean_iou for end in best]
        losses = [end.validation_loss for end in self.compared if end.best_loss]
        is_best = iou > (-math.inf if self.is_blind else max(ious, default=-math.inf))
        return is_best, loss < min(losses, default=math.inf)

    def add(
        self, end: EpochEnd, terms: Mapping[str, float], *, names: Sequence[str]
    ) -> None:
        """Add an epoch with each of its losses; `names` are those of the classes."""
        row = asdict(end)
        del row["epochs"], row["class_iou"]
        for name, value in zip(names, end.class_iou, strict=True):
            row[f"iou {name}"] = value
        self.history.append(end)
        self.rows.append(row | dict(terms))

    def is_stuck(self, section: EarlyStopping | None) -> bool:
        """Return True if early stopping ends the training now."""
        if section is None or all(math.isnan(end.mean_iou) for end in self.history):
            return False
        improved = [self.since]
        for end in self.history:
            if end.best_iou if section.monitor == "iou" else end.best_loss:
                improved.append(end.epoch)
        return self.epoch - max(improved) >= section.patience

    def csv(self) -> str:
        """Return ``metrics.csv``: a row an epoch, empty where there is no number."""
        columns = dict.fromkeys(key for row in self.rows for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            cells = dict(row)
            for key, value in row.items():
                if isinstance(value, float) and math.isnan(value):
                    cells[key] = ""
            writer.writerow(cells)
        return text.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain types only."""
        return {
            "history": [to_json(end) for end in self.history],
            "rows": self.rows,
            "since": self.since,
            "best_since": self.best_since,
            "is_blind": self.is_blind,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """Build the progress that `state_dict` described."""
        events = [from_json(text) for text in state["history"]]
        history = [event for event in events if isinstance(event, EpochEnd)]
        rows = [dict(row) for row in state["rows"]]
        # Checkpoints of earlier versions have no such entries.
        best_since = int(state.get("best_since", 0))
        is_blind = bool(state.get("is_blind", False))
        return cls(history, rows, int(state["since"]), best_since, is_blind)
