"""Networks: torch modules, and their weights."""

from __future__ import annotations

from napari_strata.networks.build import build_network

__all__ = ["build_network"]
