"""Events on a console: a progress bar on a terminal, plain lines elsewhere, JSON lines on request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import singledispatchmethod

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from napari_strata.core.events import (
    BatchEnd,
    CrossvalEnd,
    EpochEnd,
    Event,
    FileEnd,
    FoldEnd,
    FoldStarted,
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
    TrainingEnd,
    TrainingStarted,
    TrialEnd,
    TrialStarted,
    TuneEnd,
    to_json,
)
from napari_strata.core.text import duration


def show(events: Iterable[Event], *, as_json: bool = False) -> list[Event]:
    """Show each event as it comes and return those that tell an outcome (all but batches and regions)."""
    kept = []
    with _printer(as_json) as handle:
        for event in events:
            handle(event)
            if not isinstance(event, (BatchEnd, RegionEnd)):
                kept.append(event)
    return kept


@contextmanager
def _printer(as_json: bool) -> Iterator[Callable[[Event], None]]:
    if as_json:
        yield lambda event: print(to_json(event), flush=True)
        return
    # Plain text in a pipe keeps its line length: a log is searched, not looked at.
    console = Console(highlight=False, soft_wrap=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield _People(console, bar)


class _People:
    """Turns events into words."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("", total=None, visible=False, note="")
        self._names: tuple[str, ...] = ()
        self._brief = (
            False  # within a trial of a search, folds are lines and epochs are not
        )

    def __call__(self, event: Event) -> None:
        self._show(event)

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False)

    def _progress(self, name: str, done: int, total: int, note: str = "") -> None:
        self._bar.update(
            self._task,
            description=name,
            completed=done,
            total=total,
            note=note,
            visible=done < total,
            refresh=True,
        )

    @singledispatchmethod
    def _show(self, event: Event) -> None:
        """Events without words of their own are not shown."""

    @_show.register
    def _(self, event: Message) -> None:
        if self._brief and event.level != "warning":
            return
        self._say(
            f"warning: {event.text}" if event.level == "warning" else event.text,
            _STYLES.get(event.level, ""),
        )

    @_show.register
    def _(self, event: TrainingStarted) -> None:
        self._names = event.class_names
        if self._brief:
            return
        self._say(
            f"training on {event.device} in {event.precision}: {event.parameters / 1e6:.2f} M parameters, epochs "
            f"{event.first_epoch} to {event.epochs} of {event.batches} steps"
        )
        self._say(f"validation: {event.validation_text}")

    @_show.register
    def _(self, event: BatchEnd) -> None:
        self._progress(
            f"epoch {event.epoch}", event.batch, event.batches, f"loss {event.loss:.3f}"
        )

    @_show.register
    def _(self, event: EpochEnd) -> None:
        if self._brief:
            return
        classes = _named(
            self._names or tuple(map(str, range(len(event.class_iou)))), event.class_iou
        )
        best = "  best" if event.best_iou else ""
        scores = (
            ""
            if math.isnan(event.mean_iou)
            else f"  mean IoU {_score(event.mean_iou)} ({classes})"
        )
        validation = (
            ""
            if math.isnan(event.validation_loss)
            else f"  validation loss {event.validation_loss:.3f}"
        )
        self._say(
            f"epoch {event.epoch}/{event.epochs}  loss {event.train_loss:.3f}{validation}{scores}  "
            f"{duration(event.seconds)}{best}"
        )

    @_show.register
    def _(self, event: TrainingEnd) -> None:
        if self._brief:
            return
        score = (
            ""
            if math.isnan(event.mean_iou)
            else f" (mean IoU {_score(event.mean_iou)})"
        )
        self._say(
            f"{event.reason} after epoch {event.epoch}, {duration(event.seconds)}; best epoch {event.best_epoch}{score}"
        )
        self._say(f"model: {event.model}", "bold")

    @_show.register
    def _(self, event: PredictionStarted) -> None:
        rest = f", {event.done} of them already done" if event.done else ""
        self._say(
            f"{event.name}: {event.regions} plane{'' if event.regions == 1 else 's'} on {event.device}{rest}"
        )

    @_show.register
    def _(self, event: RegionEnd) -> None:
        self._progress("planes", event.done, event.regions)

    @_show.register
    def _(self, event: PredictionEnd) -> None:
        where = f": {event.path}" if event.path else ""
        self._say(f"{event.name} done in {duration(event.seconds)}{where}")

    @_show.register
    def _(self, event: FileEnd) -> None:
        reason = (
            f": {event.text.removeprefix(f'{event.source}: ')}" if event.text else ""
        )
        self._say(
            f"{event.status}  {event.source}{reason}",
            "red" if event.status == "failed" else "",
        )

    @_show.register
    def _(self, event: FoldStarted) -> None:
        if not self._brief:
            self._say(
                f"fold {event.fold} of {event.folds} validates on {event.text}", "bold"
            )

    @_show.register
    def _(self, event: FoldEnd) -> None:
        classes = _named(event.class_names, event.class_iou)
        self._say(
            f"fold {event.fold}/{event.folds}  mean IoU {_score(event.mean_iou)} ({classes})  {duration(event.seconds)}"
        )

    @_show.register
    def _(self, event: CrossvalEnd) -> None:
        if not self._brief:
            score = _spread(event.mean_iou, event.mean_iou_std)
            self._say(
                f"{event.folds} folds: mean IoU {score}; all of it is in {event.out}",
                "bold",
            )

    @_show.register
    def _(self, event: TrialStarted) -> None:
        self._brief = True
        folds = "" if event.folds == 1 else f" in each of {event.folds} folds"
        epochs = f"{event.epochs} epoch{'' if event.epochs == 1 else 's'}"
        self._say(
            f"trial {event.trial} of {event.trials}: {event.name}, {epochs}{folds}",
            "bold",
        )

    @_show.register
    def _(self, event: TrialEnd) -> None:
        self._brief = False
        told = (
            f"failed: {event.text}"
            if event.text
            else f"mean IoU {_spread(event.mean_iou, event.mean_iou_std)}"
        )
        line = f"trial {event.trial}/{event.trials}  {told}  {duration(event.seconds)}"
        self._say(line, "red" if event.text else "")

    @_show.register
    def _(self, event: TuneEnd) -> None:
        self._say(
            f"best: {event.best}, mean IoU {_spread(event.mean_iou, event.mean_iou_std)}",
            "bold",
        )
        self._say(f"recipe: {event.recipe}")
        if event.model:
            self._say(f"model, trained on all data: {event.model}", "bold")


_STYLES = {"warning": "yellow"}


def _named(names: tuple[str, ...], values: tuple[float, ...]) -> str:
    return ", ".join(
        f"{name} {_score(value)}" for name, value in zip(names, values, strict=False)
    )


def _spread(mean: float, deviation: float) -> str:
    return (
        _score(mean) if math.isnan(deviation) else f"{_score(mean)} +- {deviation:.3f}"
    )


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
