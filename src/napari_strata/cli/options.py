"""Arguments and options that several commands share, in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Images = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGES",
        help="A TIFF stack, PNG, OME-Zarr, a folder of images, a data set folder or a CSV of pairs.",
    ),
]
LabelsPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="LABELS",
        help="Their labels; not needed for a data set folder or a CSV.",
    ),
]
ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A run folder, a model file or a cross-validation folder."
    ),
]
With = Annotated[
    list[Path] | None,
    typer.Option(
        "--with",
        metavar="MODEL",
        help="One more model: probabilities are averaged. May be given several times.",
    ),
]
Tta = Annotated[
    bool, typer.Option("--tta", help="Average over flips and turns (8 times the work).")
]
Ortho = Annotated[
    bool,
    typer.Option(
        "--ortho",
        help="Average over XY, XZ and YZ planes of a volume (3 times the work).",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Axes = Annotated[
    str | None,
    typer.Option(help="Axes of the images, such as ZYX, where the files do not say."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")]
Unlabelled = Annotated[
    list[int] | None,
    typer.Option(
        metavar="VALUE",
        help="A label value that means: not labelled. May be given several times.",
    ),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="A recipe's name (see: recipes) or a YAML file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one key, as training.epochs=5."
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Finds the specimen in each image's name, as '^(rock[0-9]+)_'; images of one specimen stay in one fold.",
    ),
]
Class = Annotated[
    list[str] | None,
    typer.Option(
        "--class", metavar="VALUE=NAME", help="Name a label value, as 2=clay."
    ),
]
Foreground = Annotated[
    bool,
    typer.Option("--foreground", help="0 is background, every other value foreground."),
]
Rgb = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLOR=NAME", help="A colour of colour-coded labels, as ff0000=roof."
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        metavar="i/n",
        help="Only the i-th of n parts: a run of planes of one image, every n-th of several files. The n processes, "
        "on one machine or many, work in any order; the last one writes the file.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Predict on Dask workers (extra: distributed): local:N for N on this machine, or tcp://host:port.",
    ),
]
