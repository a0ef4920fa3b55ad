"""Predict many files with one model, loaded once.

Files that exist are skipped; a bad file is named and the others continue. Labels go to
a folder as ``<stem>_labels.tif``, with ``report.csv`` beside them: one row a file,
updated after each.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from napari_strata.core import files
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RunError, StrataError
from napari_strata.core.events import Event, FileEnd, Message
from napari_strata.core.options import PredictOptions
from napari_strata.inference.build import build_ensemble_predictor
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.inference.inputs import find_images, names_file, plan_targets
from napari_strata.inference.outputs import check_out, is_assembled
from napari_strata.inference.predict import Prediction, check_processes
from napari_strata.inference.shards import Shard, as_shard
from napari_strata.io import read_image
from napari_strata.io.paths import existing
from napari_strata.models.ensemble import AnyModel, Ensemble, load_models

if TYPE_CHECKING:
    from napari_strata.inference.dask import Cluster

PathLike = str | os.PathLike[str]
COLUMNS = ("source", "output", "status", "seconds", "message")


def predict_files(
    model: AnyModel,
    inputs: Sequence[PathLike],
    out: PathLike,
    *,
    options: PredictOptions | None = None,
    axes: str | None = None,
    series: int | None = None,
    stack: bool = False,
    part: Shard | str | None = None,
    scheduler: str | Cluster | None = None,
) -> Generator[Event]:
    """Segment files, one after another.

    Parameters
    ----------
    model
        A `Model`, the path of a model file or run folder, several of them, or a
        cross-validation folder.
    inputs
        Files, OME-Zarr stores, folders (the images in them, not in folders below),
        patterns such as ``scans/*.tif``.
    out
        A folder, made if needed; or, for a single input file, the file to write (.tif,
        .tiff, .zarr, .png).
    options
        See `PredictOptions`. Without `overwrite`, a file whose labels exist in the
        folder is skipped.
    axes
        Axes of the images, where the files do not say; see `read_image`.
    series
        Image to take from files that have several; see `read_image`.
    stack
        Take each folder and pattern as one image, a stack of slices.
    part
        "i/n". With one input: the i-th of n shares of its planes. With several: every
        n-th file, starting with the i-th, and a report of its own
        (``report.2of3.csv``). See `iter_predict`.
    scheduler
        See `iter_predict`; files are predicted one after another, each by all workers.

    Yields
    ------
    the events of each prediction, then its `FileEnd`, whose status is "done", "skipped"
    or "failed". The text of a file that is done says how it differs from the training
    images, if it does.

    Raises
    ------
    StrataError
        whatever is wrong with a single input. Of several, a bad one is reported by its
        `FileEnd` and the others continue.
    ImageError
        when there is no image among the inputs.
    RunError
        when the output file exists, `out` is a file though there are several inputs, or
        two would be written to one output.
    """
    options = options or PredictOptions()
    shard = as_shard(part)
    target = Path(out).expanduser()
    check_processes(target, shard, scheduler)
    sources = find_images(inputs, labels_in=target, stack=stack)
    single = len(sources) == 1
    if single and not stack:
        existing(sources[0])
    to_file = single and names_file(target)
    if to_file:
        if shard is None or not is_assembled(target, overwrite=options.overwrite):
            check_out(target, overwrite=options.overwrite)
        targets = {sources[0]: target}
    else:
        targets = plan_targets(sources, target)
    if shard is not None and not single:
        targets = dict(shard.deal([*targets.items()]))
        yield Message(
            f"part {shard.number} of {shard.count}: {len(targets)} of {len(sources)} "
            "files"
        )
    with _open_cluster(scheduler) as cluster:
        models = load_models(model)
        predictor = None
        if cluster is None:
            predictor = build_ensemble_predictor(models, options)
        batch = _Batch(
            model=model,
            models=models,
            options=options,
            predictor=predictor,
            axes=axes,
            series=series,
            shard=shard if single else None,
            cluster=cluster,
        )
        if to_file:
            yield from batch.predict_file(sources[0], target)
            return
        name = "report.csv"
        if shard is not None:
            name = f"report.{shard.number}of{shard.count}.csv"
        yield from _predict_all(batch, targets, target / name, single=single)


@dataclass
class _Batch:
    """Models, and their predictors on the device, or the workers that have them."""

    model: AnyModel
    models: Ensemble
    options: PredictOptions
    predictor: EnsemblePredictor | None
    axes: str | None
    series: int | None
    shard: Shard | None
    cluster: Cluster | None
    pixels: dict[str, int] | None = None
    """Pixels of each class in the last image; None where one shard of it is done."""

    def predict_file(self, source: Path, target: Path) -> Iterator[Event]:
        """Predict one file."""
        started = perf_counter()
        image = read_image(source, axes=self.axes, series=self.series)
        job = Prediction(
            self.models if self.cluster is None else self.model,
            image,
            out=target,
            options=self.options,
            part=self.shard,
            scheduler=self.cluster,
            predictor=self.predictor,
        )
        with closing(job):
            yield from job
        self.pixels = None
        text = f"part {self.shard}"
        if job.complete:
            names = self.models.spec.classes.names
            self.pixels = dict(zip(names, map(int, job.pixels), strict=True))
            text = ""
            if job.drift is not None:
                prefix = f"{image.name}: "
                sentences = (s.removeprefix(prefix) for s in job.drift.sentences)
                text = " ".join(sentences)
        seconds = perf_counter() - started
        yield FileEnd(str(source), str(target), "done", text, seconds)


def _open_cluster(
    scheduler: str | Cluster | None,
) -> AbstractContextManager[Cluster | None]:
    """Workers for all files; None without a scheduler."""
    if not isinstance(scheduler, str):
        return nullcontext(scheduler)
    from napari_strata.inference.dask import Cluster

    return Cluster(scheduler)


def _predict_all(
    batch: _Batch, targets: Mapping[Path, Path], path: Path, *, single: bool
) -> Iterator[Event]:
    """Predict files into a folder and update its report after each."""
    report = Report.open(path, batch.models.spec.classes)
    for source, target in targets.items():
        started = perf_counter()
        # With such a folder, a killed process may have left the output to be tidied up.
        has_partial = files.partial_folder(target).exists()
        if target.exists() and not has_partial and not batch.options.overwrite:
            text = "the output exists already"
            end = FileEnd(str(source), str(target), "skipped", text, 0.0)
            report = report.add(end, None)
            yield end
            continue
        try:
            for event in batch.predict_file(source, target):
                if isinstance(event, FileEnd):
                    report = report.add(event, batch.pixels)
                yield event
        except Exception as error:
            if single:
                raise
            text = str(error)
            if not isinstance(error, StrataError):
                text = f"unexpected {type(error).__name__}: {error}"
            seconds = perf_counter() - started
            end = FileEnd(str(source), str(target), "failed", text, seconds)
            report = report.add(end, {})
            yield end


@dataclass(frozen=True)
class Report:
    """``report.csv``: one row for each output.

    Its columns are source, output, status, seconds, message, and the pixels of each
    class. Rows of earlier runs into the same folder stay, so that skipping a file does
    not lose its facts.
    """

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]

    @classmethod
    def open(cls, path: Path, classes: ClassMap) -> Report:
        """Read a report, or start one.

        Raises `RunError` when a file of that name is not such a report.
        """
        rows: dict[str, dict[str, str]] = {}
        columns = (*COLUMNS, *(f"pixels {name}" for name in classes.names))
        if path.is_file():
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                reader = csv.DictReader(file)
                earlier = tuple(reader.fieldnames or ())
                if earlier[: len(COLUMNS)] != COLUMNS:
                    raise RunError(
                        f"{path}: found a file that was not written by napari-strata; "
                        "choose another folder for labels."
                    )
                rows = {row["output"]: row for row in reader}
            columns = tuple(dict.fromkeys((*columns, *earlier)))
        return cls(path, columns, rows)

    def add(self, end: FileEnd, pixels: dict[str, int] | None) -> Report:
        """Write the report with one more row.

        With `pixels` None those of the earlier row are kept.
        """
        row = {
            "source": end.source,
            "output": end.path,
            "status": end.status,
            "seconds": f"{end.seconds:.2f}",
            "message": " ".join(end.text.split()),
        }
        if pixels is None:
            row = self.rows.get(end.path, {}) | row
        else:
            row |= {f"pixels {name}": str(count) for name, count in pixels.items()}
        report = replace(self, rows=self.rows | {end.path: row})
        with (
            files.atomic(self.path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(report.rows.values())
        return report
