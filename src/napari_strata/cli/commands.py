"""The commands of ``napari-strata``; each calls the Python API of the same name."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from napari_strata.cli.options import (
    AsJson,
    Axes,
    Device,
    Group,
    LabelsPath,
    ModelPath,
    Overwrite,
    Part,
    Raw,
    RecipeName,
    Scheduler,
    Series,
    Stack,
    StudyFolder,
    TrainingOptions,
    Tta,
    Unlabelled,
    With,
    read_files,
    with_predict_options,
    with_training_options,
)
from napari_strata.core.errors import RunError, StrataError, TrainingError
from napari_strata.core.options import PredictOptions
from napari_strata.core.runs import CrossvalFolder, RunFolder, check_model_header
from napari_strata.core.text import (
    describe_calibration,
    format_bytes,
    format_count,
    format_score,
    printable,
)

if TYPE_CHECKING:
    from napari_strata.core.run_list import RunSummary

# Modules that import torch or numpy are imported inside the commands, so that --help
# and a typing error answer at once.


class _Commands(TyperGroup):
    """Command group in which Ctrl-C ends with a message and exit status 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _print_error(
                "stopped; what was finished is kept (train --resume, or the same "
                "predict, crossval or tune, continues)."
            )
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Train and run segmentation networks on image stacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
@with_training_options
def train(
    options: TrainingOptions,
    *,
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's name (see: recipes) or a YAML file.",
            show_default="default, or --start's own",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="A model or run to start from: fine-tuning."
        ),
    ] = None,
    freeze_encoder: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Leave the encoder as it is for N epochs."
        ),
    ] = None,
    val: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="IMAGES LABELS", help="Images and labels to validate on."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run.")
    ] = False,
    extend: Annotated[
        int, typer.Option(min=0, metavar="N", help="Add this many epochs to a run.")
    ] = 0,
) -> None:
    """Train a network on images and labels."""
    from napari_strata.cli.console import show
    from napari_strata.core.recipes import load_recipe

    chosen_recipe: Any = recipe or "default"
    overrides = options.overrides()
    if freeze_encoder is not None:
        overrides["training.freeze_encoder"] = freeze_encoder
    if start is not None:
        overrides["training.start"] = str(start)
        # A run that continues has its recipe and weights, and needs no start.
        if not (resume or extend):
            from napari_strata.training.transfer import fine_tuning_recipe

            chosen_recipe = fine_tuning_recipe(start, recipe)
    # Mistakes in the recipe and the files are found before torch is imported.
    load_recipe(chosen_recipe)
    pairs = options.read_pairs()
    validation = []
    if val is not None:
        validation = read_files(
            *val, axes=options.axes, series=options.series, raw=options.raw
        )
    from napari_strata.training.loop import iter_train

    events = iter_train(
        chosen_recipe,
        pairs,
        out=out,
        validation=validation or None,
        classes=options.classes([*pairs, *validation]),
        unlabelled=options.unlabelled_values(),
        overrides=overrides,
        device=options.device,
        resume=resume,
        extend=extend,
    )
    with closing(events):  # Ctrl-C while something is printed stops it at once
        show(events, as_json=options.as_json)


@app.command()
@with_predict_options
def predict(  # noqa: PLR0913 (one parameter for each option)
    options: PredictOptions,
    model: ModelPath,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Images, folders or patterns."),
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="The label file to write, or a folder for several.")
    ],
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Only print the time, memory and disk space that it would take, for "
            "each device.",
        ),
    ] = False,
    with_: With = None,
    part: Part = None,
    scheduler: Scheduler = None,
    axes: Axes = None,
    series: Series = None,
    stack: Stack = False,
    raw: Raw = None,
    as_json: AsJson = False,
) -> None:
    """Segment images with a trained model."""
    from napari_strata.cli.console import show
    from napari_strata.core.events import FileEnd
    from napari_strata.inference.batch import predict_files
    from napari_strata.io.raw import with_layout

    models = [model, *(with_ or [])]
    inputs = with_layout(inputs, raw)
    if estimate:
        if part or scheduler:
            raise StrataError(
                "found --estimate with --part or --scheduler; it is for one process on "
                "this machine: leave them out."
            )
        _print_estimates(
            models,
            inputs,
            out=out,
            options=options,
            axes=axes,
            series=series,
            stack=stack,
            as_json=as_json,
        )
        return
    job = predict_files(
        models,
        inputs,
        out,
        options=options,
        axes=axes,
        series=series,
        stack=stack,
        part=part,
        scheduler=scheduler,
    )
    with closing(job):  # on Ctrl-C, workers are stopped too
        events = show(job, as_json=as_json)
    ends = [event for event in events if isinstance(event, FileEnd)]
    failed = [end for end in ends if end.status == "failed"]
    if failed:
        _print_error(f"{len(failed)} of {len(ends)} files failed; see above.")
        raise typer.Exit(2)


def _print_estimates(
    models: list[Path],
    inputs: list[str],
    *,
    out: Path,
    options: PredictOptions,
    axes: str | None,
    series: int | None,
    stack: bool,
    as_json: bool,
) -> None:
    """Print time, memory and disk space for each input on each device."""
    from napari_strata.inference.build import build_ensemble_predictor
    from napari_strata.inference.inputs import find_images
    from napari_strata.inference.predict import estimate_prediction
    from napari_strata.io import read_image
    from napari_strata.models.device import available_devices
    from napari_strata.models.ensemble import load_models

    devices = [options.device]
    if options.device == "auto":
        # "cuda" is the same as "cuda:0".
        devices = [name for name in available_devices() if name != "cuda"]
    ensemble = load_models([*models])
    variants = [options.updated(device=device) for device in devices]
    predictors = [build_ensemble_predictor(ensemble, variant) for variant in variants]
    for path in find_images(inputs, labels_in=out, stack=stack):
        image = read_image(path, axes=axes, series=series)
        if not as_json:
            print(printable(image.describe()))
        for variant, predictor in zip(variants, predictors, strict=True):
            result = estimate_prediction(
                ensemble, image, out=out, options=variant, predictor=predictor
            )
            if as_json:
                facts = {"event": "Estimate", "source": str(path)} | asdict(result)
                print(json.dumps(facts))
            else:
                print(f"  {result.describe()}")


@app.command()
def check(
    model: ModelPath,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images, folders or patterns."),
    ],
    axes: Axes = None,
    series: Series = None,
    stack: Stack = False,
    raw: Raw = None,
    as_json: AsJson = False,
) -> None:
    """Compare images with those that a model was trained on.

    The exit status is 3 if wrong labels are likely for an image (predict --strict
    refuses it), and otherwise 0.
    """
    from napari_strata.inference.drift import check_drift
    from napari_strata.inference.inputs import find_images
    from napari_strata.io import read_image
    from napari_strata.io.raw import with_layout
    from napari_strata.models.ensemble import load_models

    models = load_models(model)
    is_unusual = False
    for path in find_images(with_layout(inputs, raw), stack=stack):
        drift = check_drift(models, read_image(path, axes=axes, series=series))
        is_unusual |= drift.level == "ask"
        if as_json:
            print(json.dumps({"event": "Drift", "source": str(path)} | drift.as_dict()))
        else:
            print(printable(drift.describe()))
    if is_unusual:
        raise typer.Exit(3)


@app.command()
def evaluate(  # noqa: PLR0913 (one parameter for each option)
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A run folder or a model file; or predicted labels, in a file.",
        ),
    ],
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES", help="As for train; for predicted labels, the truth."
        ),
    ],
    labels: LabelsPath = None,
    *,
    out: Annotated[
        Path,
        typer.Option(help="The folder for metrics.json, metrics.csv and pictures."),
    ],
    with_: With = None,
    tta: Tta = False,
    unlabelled: Unlabelled = None,
    axes: Axes = None,
    series: Series = None,
    raw: Raw = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a model on images with labels, or predicted labels against true ones."""
    from napari_strata.io.paths import split_part
    from napari_strata.io.raw import with_layout

    is_label_file = split_part(model)[0].is_file() or model.suffix == ".zarr"
    if is_label_file and not _is_model(model) and not (labels or with_ or tta):
        from napari_strata.evaluation.evaluate import score_labels
        from napari_strata.io import read_labels

        predicted, truth = with_layout([model, images], raw)
        confusion = score_labels(
            read_labels(predicted, axes=axes),
            read_labels(truth, axes=axes, series=series),
            unlabelled=unlabelled or [],
            out=out,
        )
        _print_scores(confusion.as_dict(), as_json=as_json)
        return
    from napari_strata.cli.console import show
    from napari_strata.evaluation.evaluate import iter_evaluate

    pairs = read_files(images, labels, axes=axes, series=series, raw=raw)
    job = iter_evaluate([model, *(with_ or [])], pairs, out=out, device=device, tta=tta)
    show(job, as_json=as_json)
    _print_scores(job.scores.as_dict(), as_json=as_json)


@app.command()
def export(  # noqa: PLR0913 (one parameter for each option)
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A run folder or a model file; for nnunet, images."
        ),
    ],
    labels: Annotated[
        Path | None, typer.Argument(metavar="LABELS", help="Labels, for nnunet.")
    ] = None,
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="What to write: onnx, bioimageio or nnunet."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The file to write; for nnunet, the folder to make.")
    ],
    image: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="IMAGE",
            help="Image for the test image and the cover of a bioimageio package.",
        ),
    ] = None,
    cite: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Text with a DOI or web address, to be cited (bioimageio).",
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(metavar="SPDX", help="Licence, such as CC-BY-4.0 (bioimageio)."),
    ] = None,
    author: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An author (bioimageio); may be repeated."),
    ] = None,
    unlabelled: Unlabelled = None,
    axes: Axes = None,
    series: Series = None,
    raw: Raw = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model, or images and labels, as files for other programs."""
    values = {"image": image, "cite": cite, "licence": licence, "authors": author}
    options = {name: value for name, value in values.items() if value}
    data_options = {
        "LABELS": labels,
        "--unlabelled": unlabelled,
        "--axes": axes,
        "--series": series,
        "--raw": raw,
    }
    if to == "nnunet":
        if options or overwrite:
            raise RunError(
                "found an option of models or --overwrite; an nnU-Net data set takes "
                f"{', '.join(data_options)}: leave it out."
            )
        from napari_strata.export.nnunet import export_nnunet

        pairs = read_files(model, labels, axes=axes, series=series, raw=raw)
        exported = export_nnunet(pairs, out, unlabelled=unlabelled or ())
    else:
        given = [name for name, value in data_options.items() if value is not None]
        if given:
            raise RunError(
                f"found {', '.join(given)}, which only nnunet takes; leave it out, or "
                "write --to nnunet."
            )
        from napari_strata.export.registry import export_model

        exported = export_model(model, to, out, overwrite=overwrite, **options)
    print(exported.path)
    for note in exported.notes:
        print(f"  {note}")


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A folder that train, crossval, tune, evaluate or measure wrote.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file to write; report.html in RUN when left out."),
    ] = None,
) -> None:
    """Write one HTML page with curves, scores and pictures; it opens offline."""
    from napari_strata.report.write import write_page

    print(write_page(run, out))


@app.command()
def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER...",
            help="Folders of runs, or runs.",
            show_default="this folder",
        ),
    ] = None,
    *,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete", help="Delete these runs, cross-validations or searches."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """List runs with their state, score and size, or delete some."""
    from napari_strata.core.run_list import find_runs

    if delete:
        _delete_runs(folders or [], ask=not yes, as_json=as_json)
        return
    summaries = [
        (run, run.measure_size())
        for folder in folders or [Path()]
        for run in find_runs(folder)
    ]
    if as_json:
        for run, size in summaries:
            print(json.dumps({"event": "Run"} | _run_facts(run, size)))
    elif not summaries:
        print("found no runs here")
    else:
        _print_runs(summaries)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe whole.")] = None,
) -> None:
    """List the recipes, or show one."""
    from napari_strata.core.recipes import dump_recipe, list_recipes, load_recipe

    if name:
        print(dump_recipe(load_recipe(name)), end="")
        return
    for recipe in list_recipes():
        summary = recipe.description.split(". ")[0].rstrip(".")
        print(f"{recipe.name:24}{summary}.")


@app.command()
def info(
    path: Annotated[
        Path, typer.Argument(help="An image, a label file, a model or a run folder.")
    ],
    series: Series = None,
    raw: Raw = None,
) -> None:
    """Describe a file: axes, pixel size and channels, or a model's training."""
    from napari_strata.io import describe
    from napari_strata.io.raw import with_layout

    (path,) = with_layout([path], raw)
    lines = _describe_model(path) if _is_model(path) else describe(path, series=series)
    print(printable("\n".join(lines)))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to make.")] = Path("demo"),
    device: Device = "auto",
    viewer: Annotated[
        bool,
        typer.Option(
            "--viewer",
            help="Open napari with the sandstone and the docks, ready to train.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Generate a sandstone, train a network on it, segment a new stack and score it."""
    if viewer:
        _show_demo()
        return
    from napari_strata.cli.console import show
    from napari_strata.cli.demo import iter_demo

    show(iter_demo(out, device=device), as_json=as_json)


@app.command()
def doctor(
    folder: Annotated[
        Path | None, typer.Option(help="The folder of your runs.")
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="The command that starts a worker."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the installation, the GPU, the display, the worker and the disk."""
    from napari_strata.doctor import report

    if report(worker, folder, as_json=as_json):
        raise typer.Exit(1)


@app.command()
@with_training_options
def crossval(
    options: TrainingOptions,
    *,
    out: StudyFolder,
    folds: Annotated[
        int, typer.Option(min=2, metavar="K", help="How many folds; each trains once.")
    ] = 5,
    recipe: RecipeName = "default",
    group: Group = None,
) -> None:
    """Train once for each fold of images, slices or specimens, and score the rest."""
    from napari_strata.cli.console import show
    from napari_strata.studies.crossval import iter_crossval
    from napari_strata.studies.crossval_results import CrossvalResult

    pairs = options.read_pairs()
    events = iter_crossval(
        recipe,
        pairs,
        out=out,
        folds=folds,
        group=group,
        classes=options.classes(pairs),
        unlabelled=options.unlabelled_values(),
        overrides=options.overrides(),
        device=options.device,
    )
    show(events, as_json=options.as_json)
    if not options.as_json:
        print(CrossvalResult.load(out.expanduser()).table())


@app.command()
@with_training_options
def tune(
    options: TrainingOptions,
    *,
    out: StudyFolder,
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=V1,V2",
            help="Values of one key to try, lists in brackets; the key recipe takes "
            "recipes. All combinations are tried.",
        ),
    ],
    folds: Annotated[
        int, typer.Option(min=1, metavar="K", help="Folds of each trial; 1: one split.")
    ] = 3,
    halving: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="ETA",
            help="Train all trials a little, the best 1/ETA of them further, and so "
            "on.",
        ),
    ] = None,
    no_retrain: Annotated[
        bool,
        typer.Option(
            "--no-retrain", help="Do not train the best recipe on all data at the end."
        ),
    ] = False,
    recipe: RecipeName = "default",
    group: Group = None,
) -> None:
    """Cross-validate combinations of recipe keys; train the best on all data."""
    from napari_strata.cli.console import show
    from napari_strata.studies.grid import parse_grid
    from napari_strata.studies.trials import TuneResult
    from napari_strata.studies.tune import SearchOptions, iter_tune

    parsed_grid, overrides = parse_grid(grid), options.overrides()
    search_options = SearchOptions(
        folds,
        group=group,
        halving=halving,
        retrain=not no_retrain,
        device=options.device,
    )
    pairs = options.read_pairs()
    events = iter_tune(
        recipe,
        pairs,
        grid=parsed_grid,
        out=out,
        options=search_options,
        classes=options.classes(pairs),
        unlabelled=options.unlabelled_values(),
        overrides=overrides,
    )
    show(events, as_json=options.as_json)
    if not options.as_json:
        print(TuneResult.load(out).table())


@app.command()
def objects(  # noqa: PLR0913 (one parameter for each option)
    labels: Annotated[
        Path,
        typer.Argument(metavar="LABELS", help="A label file, such as predict wrote."),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="The file of ids to write: .tif, .zarr, .h5, or .png (one plane)."
        ),
    ],
    of: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS",
            help="The class of the objects; not needed when there are two classes.",
        ),
    ] = None,
    smallest: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SIZE",
            help="Drop objects below this volume (or area), in the pixel size's unit.",
        ),
    ] = 0,
    fill_holes: Annotated[
        bool, typer.Option("--fill-holes", help="Close holes inside objects.")
    ] = False,
    split: Annotated[
        float | None,
        typer.Option(
            metavar="DISTANCE",
            help="Cut touching objects whose centres lie at least this far apart, in "
            "that unit.",
        ),
    ] = None,
    by_plane: Annotated[
        bool,
        typer.Option(
            "--by-plane",
            help="Treat planes one by one; for volumes larger than the memory.",
        ),
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Also write a table, one row for each object."
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="IMAGE", help="The image, for grey values in the table."),
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(
            help="Axes of the label file, such as ZYX, if it does not state them."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Number the connected pieces of one class, and measure them."""
    from napari_strata.core.image import AnnotatedImage
    from napari_strata.inference.outputs import check_out
    from napari_strata.io import read_image, read_labels, write_labels
    from napari_strata.measure.object_table import (
        check_table_path,
        count_objects,
        region_table,
        write_table,
    )
    from napari_strata.measure.objects import find_objects

    # Whatever can be refused is refused before the long computation.
    if image is not None and table is None:
        raise RunError(
            "found --image without --table; grey values go into the table: name it, as "
            "--table objects.csv."
        )
    if table is not None:
        check_table_path(table.expanduser(), overwrite=overwrite)
    check_out(out.expanduser(), overwrite=overwrite)
    label_image = read_labels(labels, axes=axes)
    grey_image = None
    if image is not None:
        grey_image = read_image(image)
        AnnotatedImage(grey_image, label_image)  # raises if they do not fit each other
    ids = find_objects(
        label_image,
        of=of,
        smallest=smallest,
        fill_holes=fill_holes,
        split=split,
        by_plane=by_plane,
    )
    # Measured before anything is written: a failure leaves no file.
    rows = []
    if table is not None:
        rows = region_table(ids, grey_image, by_plane=by_plane)
    paths = [str(write_labels(out, ids, overwrite=overwrite))]
    if table is not None:
        paths.append(str(write_table(table, rows, overwrite=overwrite)))
    count = count_objects(ids)
    print(f"{', '.join(paths)}: {format_count(count, 'object')}")


@app.command()
def measure(  # noqa: PLR0913 (one parameter for each option)
    labels: Annotated[
        Path,
        typer.Argument(metavar="LABELS", help="A label file, such as predict wrote."),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(help="The folder for measures.json, tables and report.html."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="The model that predicted the labels: its errors in validation give "
            "the intervals.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE",
            help="The image that was segmented: without intervals if it looks unlike "
            "the training images.",
        ),
    ] = None,
    region: Annotated[
        str,
        typer.Option(
            metavar="MASK|specimen|all",
            help="What is measured: all; the specimen, which is found; or the pixels "
            "of a mask file that are not 0.",
        ),
    ] = "all",
    along: Annotated[
        str | None,
        typer.Option(
            metavar="Z",
            help="Axis of the profile: Z, Y, X or T.",
            show_default="Z, if there are several planes",
        ),
    ] = None,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="A class to report; all when left out. May be given several times.",
        ),
    ] = None,
    rock: Annotated[
        bool,
        typer.Option(
            "--rock",
            help="Estimate also the error because the specimen is small.",
        ),
    ] = False,
    axes: Annotated[
        str | None,
        typer.Option(
            help="Axes of the label file, such as ZYX, if it does not state them."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the share of each class, with an interval from the model's own errors."""
    from napari_strata.io import read_image, read_labels
    from napari_strata.measure.measures import measure as measure_labels
    from napari_strata.report.write import write_page

    measures = measure_labels(
        read_labels(labels, axes=axes),
        model=model,
        image=None if image is None else read_image(image),
        region=region,
        along=along,
        classes=class_,
        rock=rock,
    )
    folder = measures.save(out)
    page = write_page(folder)
    if as_json:
        print(json.dumps({"event": "Measures"} | measures.to_dict()))
        return
    print(printable(measures.describe()))
    print(page)


def main() -> None:
    """Run the command line; a user's mistake ends in a short message and status 2."""
    for stream in (sys.stdout, sys.stderr):
        # Names that the terminal's encoding does not have are escaped, as "\\xb5m".
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_processes(sys.argv[1:])
        app()
    except StrataError as error:
        # The first of several processes on a machine reports an error of all of them;
        # if it is lost, whichever process notices.
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        if is_first or isinstance(error, TrainingError):
            _print_error(str(error))
        sys.exit(2)
    except MemoryError as error:
        _print_error(
            f"memory ran out ({error}): close other programs, or use smaller patches,"
            " tiles or images; what was finished is kept."
        )
        sys.exit(2)


def _check_processes(arguments: list[str]) -> None:
    """Refuse to run anything but ``train`` in several processes (torchrun)."""
    is_distributed = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if is_distributed and arguments[:1] != ["train"]:
        raise StrataError(
            "found several processes (torchrun), which share the command train only; "
            "start this one without torchrun."
        )


def _is_model(path: Path) -> bool:
    return (
        path.suffix == ".safetensors"
        or RunFolder(path).exists
        or CrossvalFolder(path).exists
    )


def _describe_model(path: Path) -> list[str]:
    """Describe a model, a run or a cross-validation. Raises `ModelError`."""
    if path.suffix == ".safetensors":
        check_model_header(path)  # without torch, which takes seconds to import
    from napari_strata.models.ensemble import load_models

    models = load_models(path)
    model = models.models[0]
    spec, best = model.spec, model.best
    kind = "model" if len(models.models) == 1 else models.describe()
    numbers = sum(weights.numel() for weights in model.weights.values())
    pixel_size = ", ".join(
        f"{axis} {size:g} {spec.pixel_unit}" for axis, size in spec.pixel_size.items()
    )
    if spec.pixel_unit == "pixel" and set(spec.pixel_size.values()) <= {1.0}:
        pixel_size = "unknown"
    lines = [
        f"{kind} {path}: recipe {model.recipe.name}, trained {model.created}, "
        f"{len(model.history)} epochs",
        f"  network: {spec.network.kind}, {spec.in_channels} channels in, "
        f"{numbers / 1e6:.2f} M numbers",
        f"  trained on: {spec.dtype}, pixel size {pixel_size}",
    ]
    lines += [f"  {note}" for note in spec.notes]
    for row in spec.classes.table():
        lines.append(
            f"  class {row['index']}: {row['name']}, value {row['value']}, "
            f"{row['color']}"
        )
    if best and best.agreement:
        lines.append(f"  validation: {best.agreement}")
    elif best and best.score:
        lines.append(f"  validation: {best.score} in epoch {best.epoch}")
    return lines


def _run_facts(run: RunSummary, size: int) -> dict[str, Any]:
    score = run.mean_iou
    return {
        "path": str(run.path),
        "state": run.state,
        "modified": run.modified.isoformat(timespec="seconds"),
        "recipe": run.recipe,
        "epochs": run.epochs,
        "planned": run.planned,
        "folds": run.folds,
        "trials": run.trials,
        "done": run.done,
        "mean_iou": None if score is None or math.isnan(score) else score,
        "agreement": run.agreement,
        "size": size,
    }


def _print_runs(summaries: Sequence[tuple[RunSummary, int]]) -> None:
    width = max(len(printable(str(run.path))) for run, _ in summaries)
    heads = ("state", "date", "recipe", "done", "IoU", "size")
    print(f"{'run':{width}}  {heads[0]:9}{heads[1]:18}{heads[2]:20}", end="")
    print(f"{heads[3]:>13}{heads[4]:>7}{heads[5]:>10}")
    for run, size in summaries:
        done = f"{run.epochs}/{run.planned} epochs"
        if run.folds:
            done = f"{run.done}/{run.folds} folds"
        if run.trials:
            done = f"{run.done}/{run.trials} trials"
        print(
            f"{printable(str(run.path)):{width}}  {run.state:9}"
            f"{run.modified:%Y-%m-%d %H:%M}  {printable(run.recipe):20}{done:>13}"
            f"{format_score(run.mean_iou):>7}{format_bytes(size):>10}"
        )
    total = format_bytes(sum(size for _, size in summaries))
    print(f"{format_count(len(summaries), 'run')}, {total}")


def _delete_runs(paths: Sequence[Path], *, ask: bool, as_json: bool) -> None:
    from napari_strata.core.files import measure_size
    from napari_strata.core.run_list import check_deletable, delete_run

    if not paths:
        raise RunError("found no run to delete; give one or several after --delete.")
    # Before the first is deleted.
    for path in paths:
        check_deletable(path)
    for path in paths:
        size = format_bytes(measure_size(path))
        question = f"Delete {printable(str(path))} ({size})?"
        if ask and not typer.confirm(question, err=True):
            continue
        freed = delete_run(path)
        if as_json:
            print(json.dumps({"event": "RunDeleted", "path": str(path), "size": freed}))
        else:
            print(f"deleted {printable(str(path))}, {format_bytes(freed)}")


def _show_demo() -> None:
    # Imported by name: the engine knows neither Qt nor napari, which may be missing.
    try:
        show = import_module("napari_strata.widgets.demo").show_demo
    except ImportError as error:
        raise StrataError(
            f"found no viewer ({error}); needed are napari and Qt: "
            'pip install "napari-strata[all]".'
        ) from None
    show()


def _print_error(text: str) -> None:
    print(f"error: {printable(text)}", file=sys.stderr)


def _print_scores(scores: dict[str, Any], *, as_json: bool) -> None:
    """Print scores as a table for people, or as one line of JSON."""
    from napari_strata.core.metrics import describe_scores

    if as_json:
        print(json.dumps({"event": "Scores"} | scores))
        return
    print(f"{'class':24}{'value':>6}    IoU   Dice   prec. recall   pixels")
    for name, row in scores["per_class"].items():
        columns = (row["iou"], row["dice"], row["precision"], row["recall"])
        cells = "".join(_format_score(score) for score in columns)
        print(f"{printable(name):24}{row['value']:>6}{cells} {row['support']:>8}")
    print(
        f"{describe_scores(scores)}, "
        f"pixel accuracy{_format_score(scores['pixel_accuracy'])}"
    )
    calibration = scores.get("calibration")
    if calibration and calibration["ece"] is not None:
        print(describe_calibration(calibration["ece"], calibration["classwise_ece"]))


def _format_score(score: float | None) -> str:
    return "      -" if score is None else f"{score:7.3f}"
