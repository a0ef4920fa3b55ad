"""The small pictures and the small recipe of the tests of training."""

from __future__ import annotations

from training.conftest import scene, small

__all__ = ["scene", "small"]
