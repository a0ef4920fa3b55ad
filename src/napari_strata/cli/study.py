"""The commands crossval and tune, with the words and defaults of train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from napari_strata.cli.options import (
    AsJson,
    Axes,
    Class,
    Device,
    Foreground,
    Group,
    Images,
    LabelsPath,
    RecipeName,
    Rgb,
    Set,
    Unlabelled,
)

# Modules that bring torch or numpy are imported inside the commands, as in commands.


def crossval(  # noqa: PLR0913 (one option each)
    images: Images,
    labels: LabelsPath = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="The folder to make; the same command goes on with it after a stop."
        ),
    ],
    folds: Annotated[
        int, typer.Option(min=2, metavar="K", help="How many folds; each trains once.")
    ] = 5,
    recipe: RecipeName = "default",
    set_: Set = None,
    group: Group = None,
    unlabelled: Unlabelled = None,
    class_: Class = None,
    foreground: Foreground = False,
    rgb: Rgb = None,
    axes: Axes = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Cross-validate: train once for each fold of images, slices or specimens, and score what it held back."""
    from napari_strata.cli.console import show
    from napari_strata.cli.overrides import parse_overrides
    from napari_strata.studies.crossval import iter_crossval
    from napari_strata.studies.crossval_results import CrossvalResult

    data = _data(
        images,
        labels,
        axes=axes,
        unlabelled=unlabelled,
        coding=(class_, rgb, foreground),
    )
    overrides = parse_overrides(set_ or [])
    events = iter_crossval(
        recipe,
        out=out,
        folds=folds,
        group=group,
        overrides=overrides,
        device=device,
        **data,
    )
    show(events, as_json=as_json)
    if not as_json:
        print(CrossvalResult.load(out.expanduser()).table())


def tune(  # noqa: PLR0913 (one option each)
    images: Images,
    labels: LabelsPath = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="The folder to make; the same command goes on with it after a stop."
        ),
    ],
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=V1,V2",
            help="Values of one key to try, lists in brackets; the key recipe takes recipes. All combinations are.",
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
            help="Train all trials a little, the best 1/ETA of them on, and so on.",
        ),
    ] = None,
    no_retrain: Annotated[
        bool,
        typer.Option(
            "--no-retrain", help="Do not train the best recipe on all data at the end."
        ),
    ] = False,
    recipe: RecipeName = "default",
    set_: Set = None,
    group: Group = None,
    unlabelled: Unlabelled = None,
    class_: Class = None,
    foreground: Foreground = False,
    rgb: Rgb = None,
    axes: Axes = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Try combinations of recipe keys, networks or encoders by cross-validation; train the best on all data."""
    from napari_strata.cli.console import show
    from napari_strata.cli.overrides import parse_overrides
    from napari_strata.studies.grid import parse_grid
    from napari_strata.studies.trials import TuneResult
    from napari_strata.studies.tune import SearchOptions, iter_tune

    parsed, overrides = parse_grid(grid), parse_overrides(set_ or [])
    options = SearchOptions(
        folds, group=group, halving=halving, retrain=not no_retrain, device=device
    )
    data = _data(
        images,
        labels,
        axes=axes,
        unlabelled=unlabelled,
        coding=(class_, rgb, foreground),
    )
    show(
        iter_tune(
            recipe, grid=parsed, out=out, options=options, overrides=overrides, **data
        ),
        as_json=as_json,
    )
    if not as_json:
        print(TuneResult.load(out).table())


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(crossval)
    app.command()(tune)


def _data(
    images: Path,
    labels: Path | None,
    *,
    axes: str | None,
    unlabelled: list[int] | None,
    coding: tuple[list[str] | None, list[str] | None, bool],
) -> dict[str, Any]:
    """Pairs and what their label values mean; `coding` are --class, --rgb and --foreground."""
    from napari_strata.cli.overrides import parse_classes
    from napari_strata.io import read_pairs

    names, colors, foreground = coding
    pairs = read_pairs(images, labels, axes=axes)
    classes = parse_classes(
        pairs,
        names or [],
        colors or [],
        unlabelled=unlabelled or [],
        foreground=foreground,
    )
    return {"pairs": pairs, "classes": classes, "unlabelled": tuple(unlabelled or ())}
