"""The manifest in a real viewer: menus, docks, samples, writers and settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import npe2
import numpy as np
import pytest
from napari._app_model import get_app_model
from napari._app_model.constants import MenuId
from napari.layers import Image, Labels
from napari.plugins import _npe2
from napari.settings import get_plugin_settings

import napari_strata
from napari_strata.io import write_image
from napari_strata.io.samples import SANDSTONE
from napari_strata.plugin import METADATA

MANIFEST = Path(napari_strata.__file__).with_name("napari.yaml")
DOCKS = ("Train", "Predict", "Evaluate", "Measure")


OPEN_EVERY_MENU = """
import sys
import napari
from napari.settings import get_plugin_settings
from qtpy.QtWidgets import QMenu
viewer = napari.Viewer(show=False)
assert get_plugin_settings("napari-strata").work.device == "auto"
window = viewer.window._qt_window
opened = set()
while closed := [menu for menu in window.findChildren(QMenu) if menu not in opened]:
    for menu in closed:  # each is built when it opens
        menu.aboutToShow.emit()
    opened.update(closed)
print(*(action.text() for menu in opened for action in menu.actions()), sep="\\n")
viewer.close()
heavy = [name for name in sys.modules if name == "torch" or name.startswith("napari_strata.widgets")]
sys.exit(" ".join(heavy) or 0)
"""


@pytest.fixture
def manifest() -> npe2.PluginManifest:
    return npe2.PluginManifest.from_file(MANIFEST)


@pytest.fixture
def viewer(
    make_napari_viewer: Callable[..., Any], npe2pm: Any, manifest: npe2.PluginManifest
) -> Any:
    """A viewer with the plugin; napari's fixtures hide installed plugins."""
    made = make_napari_viewer()
    manifest.package_metadata = npe2.PackageMetadata.for_package("napari-strata")
    npe2pm.register(manifest)
    return made


def test_all_commands_of_the_manifest_exist(
    manifest: npe2.PluginManifest,
) -> None:
    manifest.validate_imports()
    assert manifest.icon == "napari_strata:icon.svg"
    assert MANIFEST.with_name("icon.svg").read_text().startswith("<svg")


def test_the_docks_use_keys_that_every_npe2_accepts(
    manifest: npe2.PluginManifest,
) -> None:
    widgets = manifest.contributions.widgets or []
    assert tuple(widget.display_name for widget in widgets) == DOCKS
    text = MANIFEST.read_text(encoding="utf-8")  # npe2 < 0.10 refuses these
    assert "default_dock_area" not in text
    assert "tabify" not in text


def test_menus_of_a_real_viewer(viewer: Any) -> None:
    menus = get_app_model().menus

    def titles(menu: str) -> list[str]:
        return [
            str(item.command.title)
            for item in menus.get_menu(menu)
            if hasattr(item, "command")
        ]

    assert [title for title in titles(MenuId.LAYERS_SEGMENT) if "Strata" in title] == [
        f"{d} (Strata)" for d in DOCKS
    ]
    for menu, docks in (
        (MenuId.LAYERS_ANNOTATE, ["Train"]),
        (MenuId.LAYERS_MEASURE, ["Evaluate", "Measure"]),
    ):
        ours = [title for title in titles(menu) if "Strata" in title]
        assert ours == [f"{dock} (Strata)" for dock in docks]
    [ours] = [
        item
        for item in menus.get_menu(MenuId.FILE_SAMPLES)
        if getattr(item, "title", "") == "Strata"
    ]
    assert titles(ours.submenu) == [
        "Sandstone (CT, 4 classes)",
        "Cells (fluorescence, 3 classes)",
    ]


def test_samples_open(viewer: Any) -> None:
    for name in ("sandstone", "cells"):
        image, labels = viewer.open_sample("napari-strata", name)
        assert (type(image), type(labels)) == (Image, Labels)
        assert labels.metadata[METADATA]["names"]
        assert list(image.scale) == list(labels.scale)


def test_a_layer_is_saved_and_opened_as_it_was(viewer: Any, tmp_path: Path) -> None:
    image, labels = viewer.open_sample("napari-strata", "sandstone")
    paths = viewer.layers.save(str(tmp_path / "all"), plugin="napari-strata")
    stores = viewer.layers.save(
        str(tmp_path / "zarr"), plugin="napari-strata.write_zarr_folder"
    )
    assert [Path(path).name for path in paths] == [
        "sandstone.ome.tif",
        "sandstone labels.ome.tif",
    ]
    # Names that end in .ome.tif or .zarr come to us unasked, since no other writer knows them.
    paths += image.save(str(tmp_path / "one.ome.tif")) + labels.save(
        str(tmp_path / "two.zarr")
    )
    for path in paths + stores:
        [again] = viewer.open(path, plugin="napari-strata")
        first = labels if isinstance(again, Labels) else image
        np.testing.assert_array_equal(again.data, first.data)
        assert (again.axis_labels, again.units) == (first.axis_labels, first.units)
        np.testing.assert_array_equal(again.scale, first.scale)
        assert again.name.startswith(first.name)
        if isinstance(again, Labels):
            assert again.metadata == labels.metadata
            assert list(again.features["class"]) == ["unlabelled", *SANDSTONE.names]
        else:
            assert again.metadata[METADATA] == {
                "path": path,
                "series": 0,
                "axes": "ZYX",
                "channel": None,
            }
    with pytest.raises(napari_strata.StrataError, match="nothing is replaced"):
        viewer.layers.save(str(tmp_path / "all"), plugin="napari-strata")


def test_channels_have_their_file_and_index(viewer: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.ome.tif"
    image = napari_strata.Image(
        np.arange(40, dtype=np.uint16).reshape(2, 4, 5),
        "CYX",
        channel_names=("DAPI", "GFP"),
    )
    write_image(path, image)
    layers = viewer.open(str(path), plugin="napari-strata")
    assert [layer.name.rpartition(" ")[2] for layer in layers] == ["DAPI", "GFP"]
    for number, layer in enumerate(layers):
        np.testing.assert_array_equal(layer.data, image.data[number])
        assert layer.metadata[METADATA] == {
            "path": str(path),
            "series": 0,
            "axes": "CYX",
            "channel": number,
        }


def test_a_colour_layer_is_restored_as_colour(viewer: Any, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    layer = viewer.add_image(
        data, rgb=True, scale=(2, 2), units=("micrometer", "micrometer")
    )
    [again] = viewer.open(
        layer.save(str(tmp_path / "a.ome.tif"))[0], plugin="napari-strata"
    )
    assert again.rgb
    np.testing.assert_array_equal(again.data, data)
    assert list(again.scale) == [2, 2]


def test_the_save_dialog_offers_every_writer(viewer: Any) -> None:
    layers = viewer.open_sample("napari-strata", "cells")
    both, _ = _npe2.file_extensions_string_for_layers(layers)
    assert "Strata Folder of OME-TIFF files (*.*)" in str(both)
    assert "Strata Folder of OME-Zarr stores (*.*)" in str(both)
    for layer, title in zip(
        layers,
        ("Image with axes and scale", "Labels with scale and class names"),
        strict=True,
    ):
        one, _ = _npe2.file_extensions_string_for_layers([layer])
        assert f"Strata {title} (*.ome.tif *.ome.tiff *.tif" in str(one)


def test_the_save_dialog_replaces_only_confirmed_files(
    viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, labels = viewer.open_sample("napari-strata", "cells")
    viewer.layers.selection = {labels}
    chosen = "Strata Labels with scale and class names (*.ome.tif *.ome.tiff *.tif *.tiff *.ome.zarr *.zarr)"

    def save_as(name: str) -> None:
        """Return the name from the dialog; Qt asks for confirmation if exactly this file exists."""
        answer = (str(tmp_path / name), chosen)
        monkeypatch.setattr(
            "qtpy.QtWidgets.QFileDialog.getSaveFileName", lambda *_, **__: answer
        )
        viewer.window._qt_viewer._save_layers_dialog(selected=True)

    save_as("mine")
    file = tmp_path / "mine.ome.tif"
    before = file.read_bytes()
    labels.data = np.zeros_like(labels.data)
    with pytest.raises(napari_strata.StrataError, match="exists already"):
        save_as("mine")
    assert file.read_bytes() == before
    save_as("mine.ome.tif")
    assert file.read_bytes() != before


def test_settings_have_plain_defaults(viewer: Any) -> None:
    fields = type(get_plugin_settings("napari-strata").work).model_fields
    assert {name: field.default for name, field in fields.items()} == {
        "device": "auto",
        "runs": "",
        "worker_command": "",
    }
    assert [field.title for field in fields.values()] == [
        "Device",
        "Folder for runs",
        "Worker command",
    ]
    assert all(field.description for field in fields.values())


def test_discovery_and_menus_import_neither_torch_nor_a_dock() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN_EVERY_MENU],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Train (Strata)" in done.stdout
    assert "Sandstone (CT, 4 classes)" in done.stdout
