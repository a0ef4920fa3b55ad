"""The command objects: connected pieces of one class of a label file, numbered, with a table if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Modules that bring torch or numpy are imported inside the commands, as in commands.


def objects(  # noqa: PLR0913 (one option each)
    labels: Annotated[
        Path,
        typer.Argument(metavar="LABELS", help="A label file, such as predict wrote."),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="The file of ids to write: .tif, .zarr, or .png for one plane."
        ),
    ],
    of: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS",
            help="The class whose pieces are wanted; not needed when there are two classes.",
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
            help="Cut touching objects whose centres lie at least this far apart, in that unit.",
        ),
    ] = None,
    by_plane: Annotated[
        bool,
        typer.Option(
            "--by-plane",
            help="Every plane by itself; for volumes larger than the memory.",
        ),
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Also write a table with a row an object."),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="IMAGE", help="The image, for grey values in the table."),
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(
            help="Axes of the label file, such as ZYX, where it does not say."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
) -> None:
    """Number the connected pieces of one class, and measure them."""
    from napari_strata.core.errors import RunError
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

    # What can be refused is refused before the long work.
    if image is not None and table is None:
        raise RunError(
            "found --image without --table; grey values go into the table: name it, as --table objects.csv."
        )
    if table is not None:
        check_table_path(table.expanduser(), overwrite=overwrite)
    check_out(out.expanduser(), overwrite=overwrite)
    opened = read_labels(labels, axes=axes)
    grey = read_image(image) if image is not None else None
    if grey is not None:
        AnnotatedImage(grey, opened)
    found = find_objects(
        opened,
        of=of,
        smallest=smallest,
        fill_holes=fill_holes,
        split=split,
        by_plane=by_plane,
    )
    rows = region_table(found, grey, by_plane=by_plane) if table is not None else []
    written = [str(write_labels(out, found, overwrite=overwrite))]
    if table is not None:
        written.append(str(write_table(table, rows, overwrite=overwrite)))
    count = count_objects(found)
    print(f"{', '.join(written)}: {count} object{'s' * (count != 1)}")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(objects)
