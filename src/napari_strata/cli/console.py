"""Show events on a console: a progress bar, plain lines in a pipe, or JSON lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    STROKES_ARE_EASY,
    BatchEnd,
    CrossvalEnd,
    EpochEnd,
    Event,
    FileEnd,
    FoldEnd,
    FoldStarted,
    LabelsUpdated,
    Message,
    PredictionEnd,
    PredictionStarted,
    RegionEnd,
    TrainingEnd,
    TrainingStarted,
    TreesCompared,
    TrialEnd,
    TrialStarted,
    TuneEnd,
    to_json,
)
from napari_strata.core.text import (
    format_count,
    format_duration,
    format_mean_std,
    format_score,
    printable,
)


def show(events: Iterable[Event], *, as_json: bool = False) -> list[Event]:
    """Show each event as it comes; return all but those of batches and regions."""
    results = []
    with _open_printer(as_json) as print_event:
        for event in events:
            print_event(event)
            if not isinstance(event, (BatchEnd, RegionEnd)):
                results.append(event)
    return results


@contextmanager
def _open_printer(as_json: bool) -> Iterator[Callable[[Event], None]]:
    if as_json:
        yield lambda event: print(to_json(event), flush=True)
        return
    # In a pipe, long lines are not wrapped: logs are searched, not looked at.
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
        yield _Printer(console, bar).print_event


class _Printer:
    """Prints events as text for people, above a progress bar."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("", total=None, visible=False, note="")
        self._class_names: tuple[str, ...] = ()
        # Within a trial of a search, only folds are shown, not their epochs.
        self._in_trial = False

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(printable(text), style=style, markup=False)

    def _progress(self, name: str, done: int, total: int, note: str = "") -> None:
        self._bar.update(
            self._task,
            description=printable(name),
            completed=done,
            total=total,
            note=note,
            visible=done < total,
            refresh=True,
        )

    @singledispatchmethod
    def print_event(self, event: Event) -> None:
        """Print an event; types without a method of their own are not shown."""

    @print_event.register
    def _(self, event: Message) -> None:
        if event.level == "warning":
            self._print(f"warning: {event.text}", "yellow")
        elif not self._in_trial:
            self._print(event.text)

    @print_event.register
    def _(self, event: LabelsUpdated) -> None:
        self._print(event.text)

    @print_event.register
    def _(self, event: TrainingStarted) -> None:
        self._class_names = event.class_names
        if self._in_trial:
            return
        self._print(
            f"training on {event.device} in {event.precision}: "
            f"{event.parameters / 1e6:.2f} M parameters, epochs {event.first_epoch} to "
            f"{event.epochs} of {event.batches} steps"
        )
        self._print(f"validation: {event.validation_text}")

    @print_event.register
    def _(self, event: BatchEnd) -> None:
        self._progress(
            f"epoch {event.epoch}", event.batch, event.batches, f"loss {event.loss:.3f}"
        )

    @print_event.register
    def _(self, event: EpochEnd) -> None:
        if self._in_trial:
            return
        columns = [
            f"epoch {event.epoch}/{event.epochs}",
            f"loss {event.train_loss:.3f}",
        ]
        if not math.isnan(event.validation_loss):
            columns.append(f"validation loss {event.validation_loss:.3f}")
        if event.agreement:
            columns.append(event.agreement)
        elif event.score:
            numbers = [str(number) for number in range(len(event.class_iou))]
            names = self._class_names or numbers
            scores = _format_scores(names, event.class_iou)
            columns.append(f"{event.score} ({scores})")
        columns.append(format_duration(event.seconds))
        if event.best_iou:
            columns.append("best")
        self._print("  ".join(columns))

    @print_event.register
    def _(self, event: TreesCompared) -> None:
        self._print(event.text)

    @print_event.register
    def _(self, event: TrainingEnd) -> None:
        if self._in_trial:
            return
        text = (
            f"{event.reason} after epoch {event.epoch}, "
            f"{format_duration(event.seconds)}; best epoch {event.best_epoch}"
        )
        # Events of earlier versions have no score in words.
        score = event.score or event.agreement
        if not score and not math.isnan(event.mean_iou):
            score = f"mean IoU {format_score(event.mean_iou)}"
        if event.agreement:
            score += f"; {STROKES_ARE_EASY}"
        if score:
            text += f" ({score})"
        self._print(text)
        self._print(f"model: {event.model}", "bold")

    @print_event.register
    def _(self, event: PredictionStarted) -> None:
        planes = format_count(event.regions, "plane")
        text = f"{event.name}: {planes} on {event.device}"
        if event.done:
            text += f", {event.done} of them already done"
        self._print(text)

    @print_event.register
    def _(self, event: RegionEnd) -> None:
        self._progress("planes", event.done, event.regions)

    @print_event.register
    def _(self, event: PredictionEnd) -> None:
        text = f"{event.name} done in {format_duration(event.seconds)}"
        if event.path:
            text += f": {event.path}"
        self._print(text)

    @print_event.register
    def _(self, event: FileEnd) -> None:
        text = f"{event.status}  {event.source}"
        if event.text:
            reason = event.text.removeprefix(f"{event.source}: ")
            text += f": {reason}"
        self._print(text, "red" if event.status == "failed" else "")

    @print_event.register
    def _(self, event: FoldStarted) -> None:
        if not self._in_trial:
            self._print(
                f"fold {event.fold} of {event.folds} validates on {event.text}", "bold"
            )

    @print_event.register
    def _(self, event: FoldEnd) -> None:
        scores = _format_scores(event.class_names, event.class_iou)
        score = event.score or f"mean IoU {format_score(event.mean_iou)}"
        result = event.agreement or f"{score} ({scores})"
        self._print(
            f"fold {event.fold}/{event.folds}  {result}  "
            f"{format_duration(event.seconds)}"
        )

    @print_event.register
    def _(self, event: CrossvalEnd) -> None:
        if self._in_trial:
            return
        score = _describe_score(event)
        self._print(
            f"{event.folds} folds: {score}; all of it is in {event.out}",
            "bold",
        )

    @print_event.register
    def _(self, event: TrialStarted) -> None:
        self._in_trial = True
        text = (
            f"trial {event.trial} of {event.trials}: {event.name}, "
            f"{format_count(event.epochs, 'epoch')}"
        )
        if event.folds > 1:
            text += f" in each of {event.folds} folds"
        self._print(text, "bold")

    @print_event.register
    def _(self, event: TrialEnd) -> None:
        self._in_trial = False
        result = _describe_score(event)
        if event.text:
            result = f"failed: {event.text}"
        self._print(
            f"trial {event.trial}/{event.trials}  {result}  "
            f"{format_duration(event.seconds)}",
            "red" if event.text else "",
        )

    @print_event.register
    def _(self, event: TuneEnd) -> None:
        self._print(f"best: {event.best}, {_describe_score(event)}", "bold")
        self._print(f"recipe: {event.recipe}")
        if event.model:
            self._print(f"model, trained on all data: {event.model}", "bold")


def _describe_score(event: CrossvalEnd | TrialEnd | TuneEnd) -> str:
    """Describe agreement with strokes, or the mean IoU over folds."""
    mean = format_mean_std(event.mean_iou, event.mean_iou_std)
    return event.agreement or f"mean IoU {mean}"


def _format_scores(names: Sequence[str], scores: Sequence[float]) -> str:
    """Format scores of classes: ``pore 0.812, clay 0.640``."""
    return ", ".join(
        f"{name} {format_score(score)}"
        for name, score in zip(names, scores, strict=False)
    )
