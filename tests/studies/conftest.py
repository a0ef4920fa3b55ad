"""Small images and a small recipe, shared with the tests of training."""

from __future__ import annotations

from training.conftest import scene, small

__all__ = ["scene", "small"]
