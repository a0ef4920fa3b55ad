"""Settings of the plugin in napari's Preferences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari.settings import get_plugin_settings

from napari_strata.core.command import split_command
from napari_strata.widgets.work.client import default_command


@dataclass(frozen=True)
class Settings:
    """Device for jobs, folder for runs, and command that starts a worker."""

    device: str
    runs: Path
    command: tuple[str, ...]

    @classmethod
    def load(cls) -> Settings:
        """Read the settings from napari's Preferences; empty means the default."""
        values = preferences()
        return cls(
            device=values.device.strip() or "auto",
            runs=(
                Path(values.runs.strip()).expanduser()
                if values.runs.strip()
                else Path.home() / "napari-strata"
            ),
            command=_split(values.worker_command) or tuple(default_command()),
        )


def preferences() -> Any:
    """Return the plugin's section of napari's Preferences."""
    return get_plugin_settings("napari-strata").work


def _split(command: str) -> tuple[str, ...]:
    try:
        return tuple(split_command(command))
    except ValueError:  # a missing quote: the worker will not start, with a message
        return (command,)
