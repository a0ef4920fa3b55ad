"""Recent runs: what a folder of runs holds, read without the engine, and the list from which a model is chosen."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QLabel, QListWidgetItem, QVBoxLayout, QWidget

from napari_strata.classes import default_colors
from napari_strata.events import EpochEnd, Event, TrainingEnd, TrainingStarted, from_json
from napari_strata.widgets import _background
from napari_strata.widgets._preview import pictures
from napari_strata.widgets._recent_rows import LINES, SIDE, RowList, thumbnail

NONE = "No models yet: train one in the Train dock, or open a model file."
_RUN = Qt.ItemDataRole.UserRole


@dataclass(frozen=True)
class RunSummary:
    """A run on disk. `mean_iou` is that of the best epoch, `ended` why the training ended, "" while it has not.

    `running` is what ``running.json`` says of a training that goes on without napari.
    """

    path: Path
    name: str
    recipe: str
    class_names: tuple[str, ...]
    class_colors: tuple[str, ...]
    time: datetime
    epochs: int
    planned: int
    mean_iou: float | None
    thumbnail: Path | None
    has_model: bool
    running: dict[str, Any] | None
    ended: str


def list_runs(folder: Path, limit: int = 20, *, with_model: bool = False) -> list[RunSummary]:
    """The newest runs in `folder`, newest first; what is no run, or cannot be read, is passed over."""
    try:
        places = [place for place in folder.iterdir() if (place / "recipe.yaml").is_file()]
    except OSError:
        return []
    if with_model:
        places = [place for place in places if _model(place).is_file()]
    dated = sorted(((_changed(place), place) for place in places), reverse=True)
    return [_summary(place, datetime.fromtimestamp(time)) for time, place in dated[:limit]]


def last_events(run: Path) -> list[Event]:
    """All events of a run so far; a line that was cut off is left out."""
    return list(_events(run))


def _events(run: Path, *, brief: bool = False) -> Iterator[Event]:
    """Events of ``events.jsonl``, in `brief` without the steps, which are nearly all of it."""
    try:
        lines = (run / "events.jsonl").read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        if not (brief and line.startswith(b'{"event": "BatchEnd"')):
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                yield from_json(line.decode())


def _summary(place: Path, time: datetime) -> RunSummary:
    started: TrainingStarted | None = None
    ended = ""
    epochs: dict[int, EpochEnd] = {}
    for event in _events(place, brief=True):
        if isinstance(event, TrainingStarted):
            started, ended = event, ""
        elif isinstance(event, EpochEnd):
            epochs[event.epoch] = event
        elif isinstance(event, TrainingEnd):
            ended = event.reason
    scores = [e.mean_iou for e in epochs.values() if math.isfinite(e.mean_iou)]
    names, colors = _classes(_json(place / "data.json"), started)
    running = _json(place / "running.json")
    files = pictures(place / "previews")
    return RunSummary(
        path=place,
        name=place.name,
        recipe=_recipe_name(place / "recipe.yaml"),
        class_names=names,
        class_colors=colors,
        time=time,
        epochs=max(epochs, default=0),
        planned=started.epochs if started else max((e.epochs for e in epochs.values()), default=0),
        mean_iou=max(scores, default=None),
        thumbnail=files[max(files)] if files else None,
        has_model=_model(place).is_file(),
        running=running if isinstance(running, dict) else None,
        ended=ended,
    )


def _model(place: Path) -> Path:
    return place / "model.safetensors"


def _changed(place: Path) -> float:
    """When the training last said something; a run that was only copied or looked at keeps its place."""
    for name in ("events.jsonl", "model.safetensors", "recipe.yaml"):
        with suppress(OSError):
            return (place / name).stat().st_mtime
    return 0.0


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _classes(record: Any, started: TrainingStarted | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and colours of the classes as ``data.json`` has them; the names are in the events, too."""
    try:
        rows = record["classes"]
        return tuple(str(row["name"]) for row in rows), tuple(str(row["color"]) for row in rows)
    except (KeyError, TypeError):
        names = started.class_names if started else ()
        return names, default_colors(len(names))


def _recipe_name(path: Path) -> str:
    """The name in a recipe, without checking the rest of it; "" when it cannot be read."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        line = re.search(r"^name:.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        return str(yaml.safe_load(line[0])["name"] or "") if line else ""
    return ""


def when(time: datetime, today: date) -> str:
    """``today 14:05``, ``yesterday 09:30``, ``12 March 14:05``, or with the year when it is another one."""
    if time.date() == today:
        return f"today {time:%H:%M}"
    if time.date() == today - timedelta(days=1):
        return f"yesterday {time:%H:%M}"
    return f"{time.day} {time:%B %H:%M}" if time.year == today.year else f"{time.day} {time:%B %Y}"


def lines_of(run: RunSummary, today: date) -> tuple[str, str]:
    """What stands below a run's name: its classes; its date, score, and how far it is."""
    count = len(run.class_names)
    classes = f"{count} class{'' if count == 1 else 'es'}: {', '.join(run.class_names)}" if count else "Classes unknown"
    words = [when(run.time, today) if run.running is None else "training now"]
    if run.mean_iou is not None:
        words.append(f"mean IoU {run.mean_iou:.3f}")
    return classes, ", ".join(words)


class RunList(QWidget):
    """The runs in a folder that have a model, the newest first; one of them can be chosen."""

    chosen = Signal(object)  # Path of a run; only when a person chose it

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.runs: list[RunSummary] = []
        self.empty, self.list = QLabel(NONE), RowList()
        self.empty.setWordWrap(True)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.addWidget(self.empty)
        rows.addWidget(self.list)
        self.list.hide()
        self._folder: Path | None = None
        self._selected: Path | None = None
        self._wanted = 0
        self._thumbnails: dict[tuple[Path, datetime], QPixmap] = {}
        self.list.currentItemChanged.connect(self._choose)

    def set_folder(self, folder: Path) -> None:
        """List the runs of this folder."""
        self._folder = folder
        self.refresh()

    def refresh(self) -> None:
        """Read the folder again."""
        self._wanted += 1
        folder, number = self._folder, self._wanted
        if folder is not None:
            _background.run(
                lambda: list_runs(folder, with_model=True),
                lambda runs: self._fill(number, runs),
                lambda _error: None,
                owner=self,
            )

    def select(self, path: Path | None) -> None:
        """Mark this run, now or as soon as it is listed; what is not in the list unmarks all. `chosen` stays silent."""
        self._selected = path
        numbers = [i for i, run in enumerate(self.runs) if path is not None and run.path == path]
        self.list.blockSignals(True)
        if numbers:
            self.list.setCurrentRow(numbers[0])
            self.list.scrollToItem(self.list.item(numbers[0]))
        else:
            self.list.setCurrentRow(-1)
            self.list.clearSelection()
        self.list.blockSignals(False)

    def _fill(self, number: int, runs: list[RunSummary]) -> None:
        if number != self._wanted:
            return
        self.runs = runs
        self.list.blockSignals(True)
        self.list.clear()
        for run in runs:
            self.list.addItem(self._item(run))
        self.list.blockSignals(False)
        self.list.setVisible(bool(runs))
        self.empty.setVisible(not runs)
        self.list.updateGeometry()
        self.select(self._selected)
        self._load_thumbnails(number)

    def _item(self, run: RunSummary) -> QListWidgetItem:
        item = QListWidgetItem(run.name)
        item.setData(_RUN, run)
        classes, words = lines_of(run, date.today())
        item.setData(LINES, (run.name, classes, words))
        epochs = f"{run.epochs} of {run.planned} epochs" if run.planned else "No epoch complete"
        item.setToolTip(f"{run.path}\n{classes}\n{words}\nRecipe {run.recipe or 'unknown'}, {epochs}")
        item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{run.name}, {classes}, {words}")
        if (picture := self._thumbnails.get((run.thumbnail or run.path, run.time))) is not None:
            item.setData(Qt.ItemDataRole.DecorationRole, picture)
        return item

    def _load_thumbnails(self, number: int) -> None:
        wanted = {(run.thumbnail, run.time) for run in self.runs if run.thumbnail is not None}
        self._thumbnails = {key: picture for key, picture in self._thumbnails.items() if key in wanted}
        missing = [key for key in wanted if key not in self._thumbnails]
        ratio = self.devicePixelRatioF()
        side = round(SIDE * ratio)

        def show(images: list[QImage]) -> None:
            for key, image in zip(missing, images, strict=True):
                if not image.isNull():
                    image.setDevicePixelRatio(ratio)
                    self._thumbnails[key] = QPixmap.fromImage(image)
            if number == self._wanted:
                for row, run in enumerate(self.runs):
                    picture = self._thumbnails.get((run.thumbnail or run.path, run.time))
                    if (item := self.list.item(row)) is not None:
                        item.setData(Qt.ItemDataRole.DecorationRole, picture)

        if missing:
            _background.run(
                lambda: [thumbnail(path, side) for path, _ in missing], show, lambda _error: None, owner=self
            )

    def _choose(self, item: QListWidgetItem | None) -> None:
        if item is not None:
            self._selected = item.data(_RUN).path
            self.chosen.emit(self._selected)
