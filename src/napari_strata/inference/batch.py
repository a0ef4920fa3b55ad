"""Many files with one model, loaded once: what is done is skipped, a bad file is named and the rest goes on.

Files go to a folder as ``<stem>_labels.tif``, with ``report.csv`` beside them: one row a file, kept up to date while it
runs.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from napari_strata.core import files
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, RunError, StrataError
from napari_strata.core.events import Event, FileEnd, Message
from napari_strata.inference.ensemble_predictor import Committee
from napari_strata.inference.predict import (
    Prediction,
    PredictOptions,
    build_committee,
    check_asked,
)
from napari_strata.inference.shards import Part, as_part
from napari_strata.inference.target import (
    SUFFIXES,
    check_out,
    is_put_together,
    probabilities_path,
)
from napari_strata.io import read_image
from napari_strata.io.paths import (
    RASTER_SUFFIXES,
    TIFF_SUFFIXES,
    existing,
    is_zarr,
    natural,
    stem,
)
from napari_strata.models.ensemble import AnyModel, Ensemble, load_models

if TYPE_CHECKING:
    from napari_strata.inference.scheduler import Cluster

PathLike = str | os.PathLike[str]
IMAGES = (*TIFF_SUFFIXES, *RASTER_SUFFIXES, ".zarr")
READ_ONLY = (
    *(set(TIFF_SUFFIXES + RASTER_SUFFIXES) - set(SUFFIXES)),
    ".gif",
    ".bmp",
    ".npy",
    ".h5",
    ".nii",
)
"""Suffixes of files that labels are not written to: a folder of such a name is nobody's wish."""

COLUMNS = ("source", "output", "status", "seconds", "message")


def predict_files(
    model: AnyModel,
    inputs: Sequence[PathLike],
    out: PathLike,
    *,
    options: PredictOptions | None = None,
    axes: str | None = None,
    part: Part | str | None = None,
    scheduler: str | Cluster | None = None,
) -> Generator[Event]:
    """Segment files, one after another.

    Parameters
    ----------
    model
        a `Model`, the path of a model file or run folder, several of them, or a cross-validation folder.
    inputs
        files, OME-Zarr stores, folders (the images in them, not in folders below), patterns such as ``scans/*.tif``.
    out
        a folder, made if need be; or, for a single input file, the file to write (.tif, .tiff, .zarr, .png).
    options
        see `PredictOptions`. Without `overwrite`, a file whose labels exist in the folder is skipped.
    axes
        of the images, where the files do not say; see `read_image`.
    part
        "i/n": of a single input the i-th of n runs of planes, of several every n-th file from the i-th on, with a
        report of its own (``report.2of3.csv``); see `iter_predict`.
    scheduler
        see `iter_predict`; files are done one after another, each by all workers.

    Yields
    ------
    the events of each prediction, then its `FileEnd`, whose status is "done", "skipped" or "failed".

    Raises
    ------
    StrataError
        whatever is wrong with a single input. Of several, a bad one is reported by its `FileEnd` and the rest goes on.
    ImageError
        when there is no image among the inputs.
    RunError
        when the output file exists, `out` is a file though there are several inputs, or two would share one output.
    """
    options, part = options or PredictOptions(), as_part(part)
    place = Path(out).expanduser()
    check_asked(place, part, scheduler)
    sources = find_images(inputs, labels_in=place)
    single = len(sources) == 1
    if single:
        existing(sources[0])
    if (
        single
        and place.suffix.lower() in (*SUFFIXES, *READ_ONLY)
        and (is_zarr(place) or not place.is_dir())
    ):
        if part is None or not is_put_together(place, overwrite=options.overwrite):
            check_out(place, overwrite=options.overwrite)
        targets, folder = {sources[0]: place}, None
    else:
        targets, folder = _targets(sources, place), place
    if part is not None and not single:
        targets = dict(part.deal([*targets.items()]))
        yield Message(
            f"part {part.number} of {part.of}: {len(targets)} of {len(sources)} files"
        )
    with _cluster(scheduler) as cluster:
        batch = _Batch.start(model, options, axes, part if single else None, cluster)
        if folder is None:
            yield from batch.one(sources[0], place)
        else:
            name = (
                "report.csv" if part is None else f"report.{part.number}of{part.of}.csv"
            )
            yield from _run(batch, targets, folder / name, single=single)


def find_images(
    inputs: Sequence[PathLike], *, labels_in: Path | None = None
) -> list[Path]:
    """The image files that `inputs` stand for, in natural order within each folder or pattern, each once.

    A file named but missing is in the list, so that it can be reported. What an earlier run wrote to the folder
    `labels_in` is left out, unless it is named.

    Raises
    ------
    ImageError
        when a folder or pattern holds no image and nothing else is named.
    """
    named: dict[Path, Path] = {}
    found: dict[Path, Path] = {}
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir() and not is_zarr(path):
            found |= {
                p.absolute(): p
                for p in sorted(filter(_is_image, path.iterdir()), key=natural)
            }
        elif has_magic(str(path)) and not path.exists():
            found |= {
                p.absolute(): p
                for p in sorted(
                    filter(_is_image, map(Path, glob(str(path)))), key=natural
                )
            }
        else:
            named[path.absolute()] = path
    if labels_in is not None:
        labels = [labels_in.absolute() / _output_name(path) for path in (found | named)]
        made = {*labels, *map(probabilities_path, labels)}
        found = {key: path for key, path in found.items() if key not in made}
    if not found and not named:
        shown = ", ".join(map(str, inputs)) or "nothing"
        raise ImageError(
            f"found no image in {shown}; give files ({', '.join(IMAGES)}), folders of them or patterns."
        )
    return list((named | found).values())


@dataclass
class _Batch:
    """Models, and their networks on the device, or the workers that have them."""

    model: AnyModel
    models: Ensemble
    options: PredictOptions
    committee: Committee | None
    axes: str | None
    part: Part | None
    cluster: Cluster | None
    pixels: dict[str, int] | None = None
    """Pixels of each class in the last image; None where a part of it is done."""

    @classmethod
    def start(
        cls,
        model: AnyModel,
        options: PredictOptions,
        axes: str | None,
        part: Part | None,
        cluster: Cluster | None,
    ) -> _Batch:
        models = load_models(model)
        committee = build_committee(models, options) if cluster is None else None
        return cls(model, models, options, committee, axes, part, cluster)

    def one(self, source: Path, target: Path) -> Iterator[Event]:
        started = perf_counter()
        image = read_image(source, axes=self.axes)
        job = Prediction(
            self.models if self.cluster is None else self.model,
            image,
            out=target,
            options=self.options,
            part=self.part,
            scheduler=self.cluster,
            committee=self.committee,
        )
        with closing(job):
            yield from job
        names, text = (
            self.models.spec.classes.names,
            "" if job.complete else f"part {self.part}",
        )
        self.pixels = (
            dict(zip(names, map(int, job.pixels), strict=True))
            if job.complete
            else None
        )
        yield FileEnd(str(source), str(target), "done", text, perf_counter() - started)


def _cluster(scheduler: str | Cluster | None) -> AbstractContextManager[Cluster | None]:
    """The workers that are asked for, for all files."""
    if not isinstance(scheduler, str):
        return nullcontext(scheduler)
    from napari_strata.inference.scheduler import Cluster

    return Cluster(scheduler)


def _run(
    batch: _Batch, targets: Mapping[Path, Path], path: Path, *, single: bool
) -> Iterator[Event]:
    report = Report.open(path, batch.models.spec.classes)
    for source, target in targets.items():
        started = perf_counter()
        if target.exists() and not batch.options.overwrite:
            end = FileEnd(
                str(source), str(target), "skipped", "the output exists already", 0.0
            )
            report = report.add(end, None)
            yield end
            continue
        try:
            for event in batch.one(source, target):
                if isinstance(event, FileEnd):
                    report = report.add(event, batch.pixels)
                yield event
        except Exception as error:
            if single:
                raise
            text = (
                str(error)
                if isinstance(error, StrataError)
                else f"unexpected {type(error).__name__}: {error}"
            )
            end = FileEnd(
                str(source), str(target), "failed", text, perf_counter() - started
            )
            report = report.add(end, {})
            yield end


@dataclass(frozen=True)
class Report:
    """``report.csv``: source, output, status, seconds, message, and the pixels of each class; one row an output.

    Rows of earlier runs into the same folder stay, so that skipping a file does not lose what was known of it.
    """

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]

    @classmethod
    def open(cls, path: Path, classes: ClassMap) -> Report:
        """Raises `RunError` when a file of that name is not such a report."""
        rows: dict[str, dict[str, str]] = {}
        columns = (*COLUMNS, *(f"pixels {name}" for name in classes.names))
        if path.is_file():
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                reader = csv.DictReader(file)
                earlier = tuple(reader.fieldnames or ())
                if earlier[: len(COLUMNS)] != COLUMNS:
                    raise RunError(
                        f"{path}: found a file that is not our report; choose another folder for labels."
                    )
                rows = {row["output"]: row for row in reader}
            columns = tuple(dict.fromkeys((*columns, *earlier)))
        return cls(path, columns, rows)

    def add(self, end: FileEnd, pixels: dict[str, int] | None) -> Report:
        """The report with one more row, written; with `pixels` None those of the earlier row are kept."""
        row = {
            "source": end.source,
            "output": end.path,
            "status": end.status,
            "seconds": f"{end.seconds:.2f}",
            "message": " ".join(end.text.split()),
        }
        counts = {
            f"pixels {name}": str(count) for name, count in (pixels or {}).items()
        }
        earlier = self.rows.get(end.path, {}) if pixels is None else {}
        report = replace(self, rows=self.rows | {end.path: earlier | row | counts})
        with (
            files.atomic(self.path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(report.rows.values())
        return report


def _targets(sources: Sequence[Path], folder: Path) -> dict[Path, Path]:
    if folder.exists() and not folder.is_dir():
        raise RunError(
            f"{folder}: is a file, and {len(sources)} inputs need a folder; choose another name for it."
        )
    if folder.suffix.lower() in (*SUFFIXES, *READ_ONLY) and (
        not folder.exists() or is_zarr(folder)
    ):
        raise RunError(
            f"{folder}: names one file, and there are {len(sources)} inputs; give a folder."
        )
    targets = {source: folder / _output_name(source) for source in sources}
    by_target: dict[Path, list[str]] = {}
    for source, target in targets.items():
        by_target.setdefault(target, []).append(str(source))
    if shared := {
        target.name: names for target, names in by_target.items() if len(names) > 1
    }:
        shown = "; ".join(
            f"{' and '.join(names)} to {target}"
            for target, names in list(shared.items())[:4]
        )
        raise RunError(
            f"several inputs would be written to one file ({shown}); predict them into separate folders."
        )
    return targets


def _output_name(source: Path) -> str:
    return f"{stem(source)}_labels.tif"


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in IMAGES
