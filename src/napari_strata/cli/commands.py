"""The commands: train, predict, evaluate and the others that are not in modules of their own."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from napari_strata.cli.estimate import show_estimates
from napari_strata.cli.info import describe_model
from napari_strata.cli.objects import register as register_objects
from napari_strata.cli.options import (
    AsJson,
    Axes,
    Class,
    Device,
    Foreground,
    Images,
    LabelsPath,
    ModelPath,
    Ortho,
    Part,
    Rgb,
    Scheduler,
    Set,
    Tta,
    Unlabelled,
    With,
)
from napari_strata.cli.study import register
from napari_strata.core.errors import StrataError, TrainingError
from napari_strata.core.options import PredictOptions
from napari_strata.core.runs import CrossvalFolder, RunFolder

# Modules that bring torch or numpy are imported inside the commands, so that --help and a typing error answer at once.


class _Commands(TyperGroup):
    """The commands; Ctrl-C in one of them ends in a sentence and status 130, which typer alone would do wordlessly."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _complain(
                "stopped; what was finished is kept (train --resume, or the same predict, crossval or tune, goes on)."
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
def train(  # noqa: PLR0913 (one option each)
    images: Images,
    labels: LabelsPath = None,
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
    set_: Set = None,
    val: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="IMAGES LABELS", help="Images and labels to validate on."),
    ] = None,
    unlabelled: Unlabelled = None,
    class_: Class = None,
    foreground: Foreground = False,
    rgb: Rgb = None,
    axes: Axes = None,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    extend: Annotated[
        int, typer.Option(min=0, metavar="N", help="Add this many epochs to a run.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a network on images and labels."""
    from napari_strata.cli.console import show
    from napari_strata.cli.overrides import parse_classes, parse_overrides
    from napari_strata.io import read_pairs
    from napari_strata.training.loop import iter_train
    from napari_strata.training.transfer import fine_tuning_recipe

    chosen: Any = recipe or "default"
    overrides = parse_overrides(set_ or [])
    if freeze_encoder is not None:
        overrides["training.freeze_encoder"] = freeze_encoder
    if start is not None:
        overrides["training.start"] = str(start)
        if not (
            resume or extend
        ):  # a run that goes on has its recipe and its weights, and needs no start
            chosen = fine_tuning_recipe(start, recipe)
    pairs, held = (
        read_pairs(images, labels, axes=axes),
        read_pairs(*val, axes=axes) if val else [],
    )
    events = iter_train(
        chosen,
        pairs,
        out=out,
        validation=held or None,
        classes=parse_classes(
            [*pairs, *held],
            class_ or [],
            rgb or [],
            unlabelled=unlabelled or [],
            foreground=foreground,
        ),
        unlabelled=tuple(unlabelled or ()),
        overrides=overrides,
        device=device,
        resume=resume,
        extend=extend,
    )
    with closing(events):  # a Ctrl-C while something is printed ends it at once
        show(events, as_json=as_json)


@app.command()
def predict(  # noqa: PLR0913 (one option each)
    model: ModelPath,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Images, folders or patterns."),
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="The label file to write, or a folder for several.")
    ],
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="Also write the probability of each class."
        ),
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Only say what it would take: time, memory, disk, for each device.",
        ),
    ] = False,
    with_: With = None,
    tta: Tta = False,
    ortho: Ortho = False,
    part: Part = None,
    scheduler: Scheduler = None,
    axes: Axes = None,
    device: Device = "auto",
    backend: Annotated[
        str, typer.Option(help="torch; or onnx, openvino: CPU, extras of these names.")
    ] = "torch",
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Let torch.compile make kernels first; pays for large stacks on a GPU.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Segment images with a trained model."""
    from napari_strata.cli.console import show
    from napari_strata.core.events import FileEnd
    from napari_strata.inference.batch import predict_files

    options = PredictOptions(
        device=device,
        probabilities=probabilities,
        overwrite=overwrite,
        tta=tta,
        ortho=ortho,
        backend=backend,
        compile=compile_,
    )
    if estimate and (part or scheduler):
        raise StrataError(
            "found --estimate with --part or --scheduler; it tells what one process here takes: leave them."
        )
    if estimate:
        show_estimates(
            [model, *(with_ or [])],
            inputs,
            out=out,
            options=options,
            axes=axes,
            as_json=as_json,
        )
        return
    models = [model, *(with_ or [])]
    job = predict_files(
        models, inputs, out, options=options, axes=axes, part=part, scheduler=scheduler
    )
    with closing(job):  # on Ctrl-C, workers are told
        events = show(job, as_json=as_json)
    failed = [e for e in events if isinstance(e, FileEnd) and e.status == "failed"]
    if failed:
        _complain(
            f"{len(failed)} of {len([e for e in events if isinstance(e, FileEnd)])} files failed; see above."
        )
        raise typer.Exit(2)


@app.command()
def evaluate(  # noqa: PLR0913 (one option each)
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
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a model on images against their labels, or predicted labels against true ones."""
    by_labels = labels is None and not with_ and not tta
    if (
        by_labels
        and (model.is_file() or model.suffix == ".zarr")
        and not _is_model(model)
    ):
        _evaluate_labels(
            model, images, out=out, unlabelled=unlabelled or [], as_json=as_json
        )
        return
    from napari_strata.cli.console import show
    from napari_strata.evaluation.evaluate import iter_evaluate
    from napari_strata.io import read_pairs

    pairs = read_pairs(images, labels, axes=axes)
    job = iter_evaluate([model, *(with_ or [])], pairs, out=out, device=device, tta=tta)
    show(job, as_json=as_json)
    scores = job.scores.as_dict()
    print(json.dumps({"event": "Scores"} | scores) if as_json else _table(scores))


def _evaluate_labels(
    prediction: Path, truth: Path, *, out: Path, unlabelled: list[int], as_json: bool
) -> None:
    from napari_strata.evaluation.evaluate import score_labels
    from napari_strata.io import read_labels

    confusion = score_labels(
        read_labels(prediction), read_labels(truth), unlabelled=unlabelled, out=out
    )
    scores = confusion.as_dict()
    print(json.dumps({"event": "Scores"} | scores) if as_json else _table(scores))


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A folder that train, crossval, tune or evaluate wrote."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file to write; report.html in RUN when left out."),
    ] = None,
) -> None:
    """Write one HTML page: curves, scores, confusion, confidence, pictures; folds or trials; it opens offline."""
    from napari_strata.report.write import write_page

    print(write_page(run, out))


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
        print(f"{recipe.name:24}{recipe.description.split('. ')[0].rstrip('.')}.")


@app.command()
def info(
    path: Annotated[
        Path, typer.Argument(help="An image, a label file, a model or a run folder.")
    ],
) -> None:
    """Say what a file holds: axes, pixel size, channels; or what a model or run is."""
    from napari_strata.io import describe

    lines = describe_model(path) if _is_model(path) else describe(path)
    print("\n".join(lines))


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
    """Generate a sandstone, train a network on it, segment a new stack and score the result."""
    if viewer:
        _show_demo()
        return
    from napari_strata.cli.console import show
    from napari_strata.cli.demo import iter_demo

    show(iter_demo(out, device=device), as_json=as_json)


@app.command()
def doctor(
    folder: Annotated[Path | None, typer.Option(help="Where runs are kept.")] = None,
    worker: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="What starts a worker.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at what is installed, which GPU is used or why none is, the display, the worker and the disk."""
    from napari_strata.doctor import report

    if report(worker, folder, as_json=as_json):
        raise typer.Exit(1)


register(app)
register_objects(app)


def main() -> None:
    """Entry point: a user's mistake ends in one or two lines and status 2."""
    try:
        _check_alone(sys.argv[1:])
        app()
    except StrataError as error:
        # Of several processes on a machine one says it; of a lost first one, whoever finds out.
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, TrainingError):
            _complain(str(error))
        sys.exit(2)


def _check_alone(words: list[str]) -> None:
    """Refuse to do in several processes (torchrun) what they do not share."""
    if (
        "RANK" in os.environ
        and os.environ.get("WORLD_SIZE", "1") != "1"
        and words[:1] != ["train"]
    ):
        raise StrataError(
            "found several processes (torchrun), which share the command train only; start this one without torchrun."
        )


def _is_model(path: Path) -> bool:
    return (
        path.suffix == ".safetensors"
        or RunFolder(path).exists
        or CrossvalFolder(path).exists
    )


def _complain(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def _show_demo() -> None:
    # By name: the engine knows neither Qt nor napari, and works where they are not installed.
    try:
        show = import_module("napari_strata.widgets.demo").show_demo
    except ImportError as error:
        raise StrataError(
            f'found no viewer ({error}); needed are napari and Qt: pip install "napari-strata[all]".'
        ) from None
    show()


def _table(scores: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "      -" if value is None else f"{value:7.3f}"

    rows = [f"{'class':24}{'value':>6}    IoU   Dice   prec. recall   pixels"]
    for name, row in scores["per_class"].items():
        cells = "".join(number(row[k]) for k in ("iou", "dice", "precision", "recall"))
        rows.append(f"{name:24}{row['value']:>6}{cells} {row['support']:>8}")
    rows.append(
        f"mean IoU{number(scores['mean_iou'])}, pixel accuracy{number(scores['pixel_accuracy'])}"
    )
    return "\n".join(rows)
