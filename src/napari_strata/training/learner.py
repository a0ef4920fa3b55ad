"""The state of a training: the learner (everything that a step changes) and its progress (what the epochs gave)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from napari_strata.core.errors import TrainingError
from napari_strata.core.events import EpochEnd, from_json, to_json
from napari_strata.core.recipe import EarlyStopping
from napari_strata.data.augmentation import Augmenter
from napari_strata.data.loader import Batch, PatchSource
from napari_strata.models.device import Precision, channels_last
from napari_strata.networks import build_network
from napari_strata.networks.build import encoder_of
from napari_strata.training.averaging import AveragedWeights
from napari_strata.training.ddp import ProcessGroup
from napari_strata.training.losses import build_loss
from napari_strata.training.optim import (
    build_optimizer,
    build_schedule,
    restore_optimizer,
)
from napari_strata.training.plan import Plan
from napari_strata.training.recalibration import recalibrate
from napari_strata.training.transfer import FreezableEncoder, kept_statistics


def derived_seed(*key: int) -> int:
    """A seed of 63 bits that depends on every number of `key`."""
    return int(
        np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )


@contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """torch's random numbers as `key` says inside the block; afterwards the caller's go on as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(*key))
        yield


class Learner:
    """The network and all that a step changes: averaged weights, optimiser, schedule, scaler.

    The random numbers of a step (dropout, augmentation) follow from the recipe's seed, the epoch and the batch alone,
    so that a resumed run draws what an unbroken one would, and a checkpoint has no generator to keep. So does whether
    the encoder is frozen, from the epoch.
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
        order = channels_last(2 + len(plan.spec.axes))
        network = network.to(device, memory_format=order)  # type: ignore[call-overload]
        self.network = self.group.synchronize(network, device)
        self.encoder = FreezableEncoder(self.network)
        self.averaged = (
            AveragedWeights(self.network, section.averaging)
            if section.averaging is not None
            else None
        )
        self.optimizer = build_optimizer(section, self.network.parameters(), device)
        self.schedule = build_schedule(section, self.optimizer, batches)
        self.scaler = precision.scaler(device)
        self.loss = build_loss(
            section, classes=len(plan.spec.classes), class_counts=plan.counts
        )
        self.augment = Augmenter(
            plan.recipe.augmentation,
            physical=plan.spec.normalization.kind == "physical",
        )

    def restart_average(self) -> None:
        """Let the average begin at the weights that the network has now, such as pretrained ones."""
        if self.averaged is not None:
            self.averaged = AveragedWeights(self.network, self.averaged.decay)

    def step(self, batch: Batch, *, epoch: int, number: int) -> dict[str, float]:
        """One step of the optimiser on `batch`; the losses, and their weighted sum under "loss".

        Each rank is given the whole batch and computes its share.

        Raises
        ------
        TrainingError
            when the loss or a gradient is not finite; the weights are then those of the step before.
        """
        section = self.section
        with seeded(self.device, section.seed, epoch, number):
            images, labels = batch.images.to(self.device), batch.labels.to(self.device)
            images, labels = self.augment(images, labels, torch.default_generator)
            self.network.train()
            self.encoder.hold(epoch <= section.freeze_encoder)
            with self.precision.autocast(self.device):
                ordered = images.contiguous(memory_format=channels_last(images.ndim))
                logits = self.group.forward(self.network, ordered)
            terms = self.loss.terms(logits, labels)
            total = self.loss.total(terms)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self.scaler.scale(total))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.network.parameters(), section.clip_norm or math.inf
        )
        length, *values = torch.stack([norm, total, *terms.values()]).tolist()
        found = dict(zip(("loss", *terms), values, strict=True))
        # The scaler meets infinite gradients by lowering its factor; without one they are the end.
        if not math.isfinite(found["loss"]) or not (
            math.isfinite(length) or self.scaler.is_enabled()
        ):
            raise TrainingError(self._why_not_finite(found["loss"], epoch, number))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update(self.network)
        self.schedule.step_batch()
        return found

    def _why_not_finite(self, loss: float, epoch: int, number: int) -> str:
        what = "a gradient" if math.isfinite(loss) else "the loss"
        exact = (
            ", or set training.precision=fp32"
            if self.precision.dtype is not None
            else ""
        )
        kept = " The last checkpoint is kept." if epoch > 1 else ""
        return (
            f"{what} is not a finite number in epoch {epoch}, batch {number} (loss {loss:g}, learning rate "
            f"{self.schedule.learning_rate:.1e}); lower training.learning_rate to a third{exact}.{kept}"
        )

    def recalibrate(self, source: PatchSource) -> None:
        """Measure batch normalisation's statistics on plain patches of `source`, as the recipe says.

        Those of an encoder that the last step found frozen stay.
        """
        if count := self.section.recalibration:
            for network in self.networks.values():
                batches = source.plain(count, batch_size=self.section.batch_size)
                with (
                    kept_statistics(encoder_of(network))
                    if self.encoder.frozen
                    else nullcontext()
                ):
                    recalibrate(
                        network,
                        (self.group.split(batch.images) for batch in batches),
                        device=self.device,
                        precision=self.precision,
                    )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that may become the model: "averaged", if any, before "raw"."""
        averaged = (
            {"averaged": self.averaged.network} if self.averaged is not None else {}
        )
        return averaged | {"raw": self.network}

    def weights(self, kind: str) -> dict[str, Tensor]:
        """A network's tensors by name, on the CPU."""
        return {
            name: value.detach().cpu()
            for name, value in self.networks[kind].state_dict().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only, so that ``torch.load(weights_only=True)`` reads it."""
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict()
            if self.averaged is not None
            else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, on whatever device."""
        self.network.load_state_dict(state["network"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


@dataclass
class Progress:
    """What the epochs gave: their events, and the rows of ``metrics.csv``.

    `since` is the epoch from which early stopping counts: the last one before the run was extended.
    """

    history: list[EpochEnd] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    since: int = 0

    @property
    def epoch(self) -> int:
        """The last epoch that is complete; 0 before the first."""
        return self.history[-1].epoch if self.history else 0

    @property
    def best(self) -> EpochEnd | None:
        """The epoch with the highest mean IoU, the first of equals; the last one where nothing was scored."""
        marked = [end for end in self.history if end.best_iou]
        return marked[-1] if marked else self.history[-1] if self.history else None

    def is_best(self, *, iou: float, loss: float) -> tuple[bool, bool]:
        """Whether a mean IoU and a validation loss are better than all before; NaN never is."""
        return (
            iou
            > max((e.mean_iou for e in self.history if e.best_iou), default=-math.inf),
            loss
            < min(
                (e.validation_loss for e in self.history if e.best_loss),
                default=math.inf,
            ),
        )

    def add(
        self, end: EpochEnd, terms: Mapping[str, float], *, names: Sequence[str]
    ) -> None:
        """Keep an epoch. `terms` are its single losses, `names` those of the classes."""
        row = {k: v for k, v in asdict(end).items() if k not in ("epochs", "class_iou")}
        row |= {
            f"iou {name}": value
            for name, value in zip(names, end.class_iou, strict=True)
        }
        self.history.append(end)
        self.rows.append(row | dict(terms))

    def is_stuck(self, section: EarlyStopping | None) -> bool:
        """Whether early stopping ends the training here."""
        if section is None or all(math.isnan(end.mean_iou) for end in self.history):
            return False
        improved = [
            end.epoch
            for end in self.history
            if (end.best_iou if section.monitor == "iou" else end.best_loss)
        ]
        return self.epoch - max([self.since, *improved]) >= section.patience

    def csv(self) -> str:
        """``metrics.csv``: a row an epoch, empty where there is no number."""
        columns = dict.fromkeys(key for row in self.rows for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow(
                {
                    k: "" if isinstance(v, float) and math.isnan(v) else v
                    for k, v in row.items()
                }
            )
        return text.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "history": [to_json(end) for end in self.history],
            "rows": self.rows,
            "since": self.since,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """What `state_dict` gave."""
        history = [
            event
            for event in map(from_json, state["history"])
            if isinstance(event, EpochEnd)
        ]
        return cls(history, [dict(row) for row in state["rows"]], int(state["since"]))
