"""Comparison of an image with the images that models were trained on."""

from __future__ import annotations

from napari_strata.core.drift import Drift
from napari_strata.data.neighbours import with_neighbours
from napari_strata.inference.checks import check_image
from napari_strata.inference.predict import AnyImage, as_image
from napari_strata.models.ensemble import AnyModel, load_models


def check_drift(model: AnyModel, image: AnyImage) -> Drift:
    """Tell how far an image is from those that a model was trained on.

    Grey values of planes are compared with those of the training images, and structures
    with theirs. Of a large image, planes and blocks that are spread evenly are read, so
    that it takes about a second. See docs/drift.md.

    Parameters
    ----------
    model
        A `Model`, a model file, a run or cross-validation folder, or several of these;
        the one to which the image is the most unusual counts.
    image
        An `Image`, a 2D array, or the path of an image.

    Returns
    -------
    Its `level` is "ask" where labels may well be wrong, "notice", or empty; `sentences`
    say why, and `unexplained` is the share of the grey values that do not occur in the
    training images.

    Raises
    ------
    ImageError, ModelError
        when one cannot be read, or they do not go together.
    """
    models = load_models(model)
    whole = with_neighbours(as_image(image), models.spec.neighbours)
    return check_image(models.models, whole, whole.samples())
