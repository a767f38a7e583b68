"""What all functions that change pixels ask of the images they are given."""

from typing import Any

import numpy as np


def checked_images(images: Any, *, channels: int | None = None) -> np.ndarray:
    """Return a batch of images as an array, if its values can be pixels.

    Parameters
    ----------
    images : array-like of shape (n, height, width, channels)
        Grey levels from 0 to 255, of any type.
    channels : int, optional
        How many there must be. Default: any number.

    Raises
    ------
    ValueError
        When the shape is another one, there is no image, or a value is not from 0 to 255.
    """
    images = np.asarray(images)
    right = images.ndim == 4 and channels in (None, images.shape[-1])
    if not right or len(images) == 0:
        raise ValueError(
            f"images must be (n, height, width, {channels or 'channels'}), n > 0; "
            f"got the shape {images.shape}"
        )
    inside = ((images >= 0) & (images <= 255)).reshape(len(images), -1).all(axis=1)
    if not inside.all():
        row = int(np.argmin(inside))
        raise ValueError(
            f"image {row} has values from {images[row].min()} to {images[row].max()}; pixels go "
            "from 0 to 255. Give images as they were before they were normalised."
        )
    return images
