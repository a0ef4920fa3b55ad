"""Networks: `build_network` turns the facts of a `ModelSpec` into a torch module with random weights."""

from __future__ import annotations

from napari_strata.networks.build import build_network

__all__ = ["build_network"]
