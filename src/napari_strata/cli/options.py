"""Arguments and options that several commands share, and how their text is parsed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from napari_strata.core.errors import RecipeError
from napari_strata.core.options import PredictOptions
from napari_strata.core.recipes import parse_value

# Modules that import torch or numpy are imported where they are used, so that --help
# and a typing error answer at once.
if TYPE_CHECKING:
    from napari_strata.core.classes import ClassMap
    from napari_strata.core.image import AnnotatedImage

AUTOMATIC = ("batch", "precision", "tile")
"""Options of a prediction that the command line leaves to the program."""


def _predict_option(name: str) -> Any:
    """Return the command-line option for a field of `PredictOptions`."""
    field = PredictOptions.model_fields[name]
    names = [f"--{name}"] if field.annotation is bool else []
    return typer.Option(*names, help=field.description)


Images = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGES",
        help="A TIFF stack, PNG, OME-Zarr, HDF5 (file.h5:/raw), NRRD, NIfTI or MRC, a "
        "raw volume (see --raw), a folder of images, a data set folder or a CSV of "
        "pairs.",
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
Device = Annotated[str, _predict_option("device")]
Tta = Annotated[bool, _predict_option("tta")]
Overwrite = Annotated[bool, _predict_option("overwrite")]
Axes = Annotated[
    str | None,
    typer.Option(
        help="Axes of the images, such as ZYX, if the files do not state them."
    ),
]
Series = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="The image to take from files that hold several, from 0 (see: info).",
    ),
]
Stack = Annotated[
    bool,
    typer.Option(
        "--stack",
        help="Take each folder and pattern as one image, a stack of slices.",
    ),
]
Raw = Annotated[
    str | None,
    typer.Option(
        metavar="LAYOUT",
        help="How raw volumes are stored: sizes along X, Y and Z (X changes fastest in "
        "the file), dtype, byte order and bytes before the pixels, as "
        "1024x1024x512:uint16:little:0; the last two may be left out. Or after a path: "
        "labels.raw:1024x1024x512:uint8.",
    ),
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
StudyFolder = Annotated[
    Path,
    typer.Option(
        help="The folder to make; the same command continues it after a stop."
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Finds the specimen in each image's name, as '^(rock[0-9]+)_'; images of "
        "one specimen stay in one fold.",
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        metavar="i/n",
        help="Only the i-th of n parts: consecutive planes of one image, or every n-th "
        "of several files. The n processes, on one machine or many, work in any order; "
        "the last one writes the file.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Predict on Dask workers (extra: distributed): local:N for N on this "
        "machine, or tcp://host:port.",
    ),
]


@dataclass(frozen=True)
class TrainingOptions:
    """Options that train, crossval and tune share: data, classes and recipe keys."""

    images: Images
    labels: LabelsPath = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one key, as training.epochs=5."
        ),
    ] = None
    unlabelled: Unlabelled = None
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="VALUE=NAME", help="Name a label value, as 2=clay."
        ),
    ] = None
    foreground: Annotated[
        bool,
        typer.Option(
            "--foreground", help="0 is background, every other value foreground."
        ),
    ] = False
    rgb: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLOR=NAME",
            help="A colour of colour-coded labels, as ff0000=roof.",
        ),
    ] = None
    axes: Axes = None
    series: Series = None
    raw: Raw = None
    device: Device = "auto"
    as_json: AsJson = False

    def read_pairs(self) -> list[AnnotatedImage]:
        """Open the images with their labels."""
        return read_files(
            self.images, self.labels, axes=self.axes, series=self.series, raw=self.raw
        )

    def overrides(self) -> dict[str, Any]:
        """Parse the dotted keys and values of ``--set``. Raises `RecipeError`."""
        values = {}
        for item in self.set_ or []:
            key, equals, value = item.partition("=")
            if not equals or not key:
                raise RecipeError(
                    f"--set {item!r}: needed is KEY=VALUE, for example "
                    "--set training.epochs=5."
                )
            values[key.strip()] = parse_value(value)
        return values

    def unlabelled_values(self) -> tuple[int, ...]:
        """Label values that mean "not labelled"."""
        return tuple(self.unlabelled or ())

    def classes(self, pairs: list[AnnotatedImage]) -> ClassMap | None:
        """Build the class map; None to take it from the labels.

        Raises
        ------
        RecipeError
            If options contradict each other, or name a value that no label has.
        """
        from napari_strata.core.classes import ClassMap
        from napari_strata.core.spec import find_classes

        names = self.class_ or []
        if self.rgb and (self.foreground or names):
            raise RecipeError(
                "--rgb names its colours itself; leave out --foreground and --class."
            )
        if self.rgb:
            return _parse_colors(self.rgb)
        if self.foreground:
            return _rename(ClassMap.foreground(), names)
        if names:
            return _rename(find_classes(pairs, self.unlabelled or []), names)
        return None


def read_files(
    images: Path,
    labels: Path | None,
    *,
    axes: str | None,
    series: int | None,
    raw: str | None,
) -> list[AnnotatedImage]:
    """Open the images and labels that a command names."""
    from napari_strata.io import read_pairs
    from napari_strata.io.raw import with_layout

    paths = [images] if labels is None else [images, labels]
    return read_pairs(*with_layout(paths, raw), axes=axes, series=series)


def with_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a typer command the `TrainingOptions`, as its first parameter."""
    hints = get_type_hints(TrainingOptions, include_extras=True)
    parameters = [
        parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(TrainingOptions).parameters.items()
    ]
    return _with_options(command, TrainingOptions, parameters)


def with_predict_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a typer command the `PredictOptions`, as its first parameter."""
    parameters = []
    for name, field in PredictOptions.model_fields.items():
        if name not in AUTOMATIC:
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=Annotated[field.annotation, _predict_option(name)],
                )
            )
    return _with_options(command, PredictOptions, parameters)


def _with_options(
    command: Callable[..., None],
    options_type: Callable[..., Any],
    parameters: list[inspect.Parameter],
) -> Callable[..., None]:
    """Replace the first parameter of a command by the parameters of its options."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    names = [parameter.name for parameter in parameters]

    def run(**values: Any) -> None:
        options = options_type(**{name: values.pop(name) for name in names})
        command(options, **values)

    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    # typer reads both.
    signature = inspect.Signature([*own, *parameters])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {
        name: parameter.annotation for name, parameter in signature.parameters.items()
    }
    return run


def _rename(classes: ClassMap, items: list[str]) -> ClassMap:
    """Rename the classes of some values."""
    names = dict(_split(item, "--class 2=clay") for item in items)
    values = [str(value) for value in classes.values]
    for value in names:
        if value not in values:
            raise RecipeError(
                f"--class {value}: the labels hold no such value; found "
                f"{list(classes.values)}."
            )
    renamed = tuple(
        names.get(value, name)
        for value, name in zip(values, classes.names, strict=True)
    )
    rest = None
    if classes.rest is not None:
        rest = renamed[classes.names.index(classes.rest)]
    # Validated anew: two classes of one name would be one column in every table.
    content = classes.model_dump() | {"names": renamed, "rest": rest}
    return type(classes).model_validate(content)


def _parse_colors(items: list[str]) -> ClassMap:
    from napari_strata.core.classes import ClassMap

    colors, names = [], []
    for item in items:
        color, name = _split(item, "--rgb ff0000=roof")
        if not re.fullmatch("#?[0-9a-fA-F]{6}", color):
            raise RecipeError(
                f"--rgb {item!r}: colours are six hexadecimal digits, for example "
                "ff0000=roof."
            )
        packed = int(color.lstrip("#"), 16)
        colors.append((packed >> 16 & 255, packed >> 8 & 255, packed & 255))
        names.append(name)
    return ClassMap.from_rgb(colors, names=names)


def _split(item: str, example: str) -> tuple[str, str]:
    left, equals, right = item.partition("=")
    if not equals or not right:
        raise RecipeError(f"{item!r}: needed is VALUE=NAME, for example {example}.")
    return left.strip(), right.strip()
