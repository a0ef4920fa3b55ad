"""The plugin's settings, as napari's Preferences keep them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari.settings import get_plugin_settings

from napari_strata.core.command import split_command
from napari_strata.widgets.work.client import default_command


@dataclass(frozen=True)
class Settings:
    """`device` for jobs, the folder for runs, and the command that starts a worker."""

    device: str
    runs: Path
    command: tuple[str, ...]

    @classmethod
    def load(cls) -> Settings:
        """Read the settings from napari's Preferences.

        An empty text means the default.
        """
        values = preferences()
        return cls(
            device=values.device.strip() or "auto",
            runs=(
                Path(values.runs.strip()).expanduser()
                if values.runs.strip()
                else Path.home() / "napari-strata"
            ),
            command=_words(values.worker_command) or tuple(default_command()),
        )


def preferences() -> Any:
    """Return our section of napari's Preferences; its events announce changes."""
    return get_plugin_settings("napari-strata").work


def _words(command: str) -> tuple[str, ...]:
    try:
        return tuple(split_command(command))
    except (
        ValueError
    ):  # a quote that does not end: the start of the worker will fail, and name it
        return (command,)
