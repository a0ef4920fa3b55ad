"""Registry of exporters, and the export of a model by the name of one.

A new exporter is a module in this package with a function that `register_exporter`
decorates. The modules are imported when a model is exported.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from napari_strata import export
from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.models.ensemble import AnyModel, Ensemble, load_models

Exporter: TypeAlias = Callable[..., Sequence[str]]
"""Function that writes models to a file: ``exporter(models, path, **options)``.

`models` is an `Ensemble` of one or more. `path` has a temporary name and the final
suffixes; the file is renamed when the function returns. It returns sentences about what
was written or checked.
"""

_EXPORTERS: dict[str, Exporter] = {}


def register_exporter(name: str) -> Callable[[Exporter], Exporter]:
    """Make the decorated function the exporter called `name`."""

    def register(exporter: Exporter) -> Exporter:
        _EXPORTERS[name] = exporter
        return exporter

    return register


def find_exporter(name: str) -> Exporter:
    """Find an exporter by its name.

    Raises
    ------
    RunError
        When there is none of that name; the message lists all.
    """
    for module in pkgutil.iter_modules(export.__path__):
        import_module(f"{export.__name__}.{module.name}")
    if name not in _EXPORTERS:
        raise RunError(
            f"There is no exporter {name!r}; choose one of "
            f"{', '.join(sorted(_EXPORTERS))}."
        )
    return _EXPORTERS[name]


@dataclass(frozen=True)
class Exported:
    """File that an exporter wrote.

    Parameters
    ----------
    path
        The file.
    notes
        Sentences about what was written or checked.
    """

    path: Path
    notes: tuple[str, ...]


def export_model(
    model: AnyModel,
    to: str,
    out: str | Path,
    *,
    overwrite: bool = False,
    **options: Any,
) -> Exported:
    """Write a model as a file for other programs.

    The file appears when it is complete and checked.

    Parameters
    ----------
    model
        A model, a model file or a run folder.
    to
        Name of the exporter: ``onnx``, ``bioimageio``, or one registered with
        `register_exporter`.
    out
        The file to write.
    overwrite
        Replace the file if it exists.
    options
        Options of the exporter.

    Raises
    ------
    ModelError
        When the model cannot be read, or this exporter cannot write it.
    RunError
        When there is no such exporter, it has no such option, the file exists, a
        package is missing, or the file does not compute what the model does.
    """
    exporter = find_exporter(to)
    _check_options(to, exporter, options)
    path = Path(out).expanduser()
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name a file, such as {path / 'model'}.")
    if path.exists() and not overwrite:
        raise RunError(
            f"{path}: exists already; choose another name, or allow it to be replaced "
            "(--overwrite)."
        )
    models: Ensemble = load_models(model)
    with files.atomic(path) as temporary:
        notes = exporter(models, temporary, **options)
    return Exported(path, tuple(notes))


def _check_options(name: str, exporter: Exporter, options: Mapping[str, Any]) -> None:
    """Refuse options that an exporter does not have, by name."""
    parameters = inspect.signature(exporter).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    # The first two are the models and the path.
    known = [parameter.name for parameter in parameters][2:]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise RunError(
            f"exporter {name!r} has no option {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}: leave it out."
        )
