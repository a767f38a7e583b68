"""Images: decoding, geometry, and encoders that turn them into feature vectors.

An image is a uint8 array of shape (height, width, 3), red first. Wherever an image is asked for, a
path, the bytes of an image file, a Pillow image, or anything with ``__array__`` does as well.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import inspect
import io
import itertools
import logging
import numbers
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from cmlearn.efficientnet import FEATURES, VARIANTS, EfficientNetLite, weights_file
from cmlearn.runtime import device

if TYPE_CHECKING:
    import keras
    from PIL import Image

__all__ = [
    "CNNEncoder",
    "ColorHistogram",
    "HOGEncoder",
    "ImageError",
    "NoKeypointsWarning",
    "PretrainedCNN",
    "SIFTBagOfWords",
    "center_crop",
    "compose",
    "decode",
    "flip",
    "normalize",
    "random_crop",
    "resize",
    "rotate",
]


class ImageError(ValueError):
    """An image cannot be read, or is not what was asked for."""


class NoKeypointsWarning(UserWarning):
    """Images without a single keypoint became zero vectors."""


# --- Decoding ------------------------------------------------------------------------------------


def decode(source: Any) -> np.ndarray:
    """Read an image as 8-bit RGB.

    Parameters
    ----------
    source : path, bytes, PIL.Image.Image, ndarray, or object with ``__array__``
        An image file, its bytes, an opened image, or pixels: uint8 or uint16 of shape
        (height, width), or (height, width, c) with c = 1 (grey), 3 (RGB) or 4 (RGB and opacity).

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
        The image the right way up as its EXIF orientation says. Grey is repeated in the three
        channels, transparency is laid over white, 16 bits are scaled to 8, CMYK is converted
        without a colour profile, and of an animation the first picture is taken.

    Raises
    ------
    ImageError
        If the source is missing, empty, truncated, no image, has more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS`` (a decompression bomb), or has an unfit shape or dtype. The
        message names the file.

    Examples
    --------
    >>> import numpy as np
    >>> decode(np.array([[0, 255]], dtype=np.uint8)).tolist()
    [[[0, 0, 0], [255, 255, 255]]]
    """
    from PIL import Image, ImageOps

    if _is_file(source):
        return _decode_file(read_bytes(source), describe(source))
    if isinstance(source, Image.Image):
        return _rgb(ImageOps.exif_transpose(source), describe(source))
    return _from_pixels(_pixels(source))


def read_bytes(source: str | os.PathLike | bytes) -> bytes:
    """Return the bytes of an image file, or raise an `ImageError` that names it."""
    if not isinstance(source, (str, os.PathLike)):
        return bytes(source)
    try:
        with open(source, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ImageError(
            f"{describe(source)} does not exist (looked in the folder {os.getcwd()!r}). "
            "Correct the path or remove the row."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{describe(source)} cannot be read: {reason}.") from error


def _is_file(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))


def describe(source: Any) -> str:
    """Name an image in an error message."""
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"An image given as {len(source):,} bytes"
    return f"An image given as {type(source).__name__}"


def _decode_file(content: bytes, name: str) -> np.ndarray:
    from PIL import Image, ImageOps

    if not content:
        raise ImageError(f"{name} is empty (0 bytes). Copy it again or remove the row.")
    try:
        with Image.open(io.BytesIO(content)) as image:
            _refuse_bomb(image, name)
            image.load()
            return _rgb(ImageOps.exif_transpose(image), name)
    except (ImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image in a format that Pillow reads (it begins with "
            f"{content[:8]!r}). Convert it to PNG or JPEG, or remove the row."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} was not decoded: {error} {_BOMB_REMEDY}") from error
    # Pillow's many readers raise nearly anything (OSError, SyntaxError, struct.error, zlib.error …)
    # when the bytes are damaged.
    except Exception as error:
        raise ImageError(
            f"{name} is damaged or truncated ({error}). Copy it again or remove the row."
        ) from error


_BOMB_REMEDY = (
    "A small file that unpacks to very many pixels may be an attack. If you trust it, raise "
    "PIL.Image.MAX_IMAGE_PIXELS."
)


def _refuse_bomb(image: Image.Image, name: str) -> None:
    from PIL import Image

    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(
            f"{name} has {width:,} x {height:,} pixels, more than the limit of {limit:,}. "
            f"{_BOMB_REMEDY}"
        )


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    """Return the pixels of a loaded image as 8-bit RGB."""
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{name} has 32-bit pixels, whose range no format fixes. "
            "Scale it to 8 or 16 bits and save it again."
        )
    if image.mode.startswith("I;16"):
        return _from_pixels(np.asarray(image).astype(np.uint16))
    if image.has_transparency_data:
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _over_white(rgba: np.ndarray) -> np.ndarray:
    colour, opacity = rgba[..., :3].astype(np.uint32), rgba[..., 3:].astype(np.uint32)
    # Half of the divisor is added to round to the nearest.
    return ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _pixels(source: Any) -> np.ndarray:
    """Return the array of an image that came as neither a path nor bytes."""
    if source is None or (isinstance(source, float) and np.isnan(source)):
        raise ImageError(f"There is no image ({source}). Remove the row or fill the image in.")
    if not hasattr(source, "__array__"):
        raise ImageError(
            f"{describe(source)} is not an image. Give a path, the bytes of an image file, or an "
            "array of pixels."
        )
    return np.asarray(source)


def _from_pixels(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"An array of pixels has the dtype {pixels.dtype}, expected uint8 (0 to 255) or uint16 "
            "(0 to 65,535). Scale it to 0 to 255, round it, and call .astype(np.uint8)."
        )
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in pixels.shape:
        raise ImageError(
            f"An array of pixels has the shape {pixels.shape}, expected (height, width) or "
            "(height, width, c) with c = 1, 3 or 4 and no side of 0."
        )
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if channels == 4:
        return _over_white(pixels)
    if channels == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.array(pixels)


# --- Geometry ------------------------------------------------------------------------------------


def resize(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Scale an image to a size, whatever its proportions.

    Parameters
    ----------
    image : ndarray of shape (height, width, c), uint8 or float32
        The image.
    size : int or (int, int)
        New height and width in pixels; an int for a square.

    Returns
    -------
    ndarray of shape (*size, c)
        Of the same dtype. A side that shrinks is averaged over areas, so that fine patterns do not
        alias; a side that grows is interpolated linearly. No value leaves the range of the image.
    """
    import cv2

    _check(image)
    height, width = _height_width(size)
    smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
    if smaller != (image.shape[1], image.shape[0]):
        image = _with_channels(cv2.resize(image, smaller, interpolation=cv2.INTER_AREA), image)
    if (height, width) != image.shape[:2]:
        larger = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        image = _with_channels(larger, image)
    return image


def center_crop(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Cut the middle out of an image.

    Parameters
    ----------
    image : ndarray of shape (height, width, c)
        The image.
    size : int or (int, int)
        Height and width of the cut in pixels; an int for a square.

    Returns
    -------
    ndarray of shape (*size, c)
        A view. Where the margins cannot be equal, the upper or left one is the smaller by a pixel.

    Raises
    ------
    ImageError
        If the image is smaller than the cut.
    """
    height, width = _crop_size(image, size)
    return _cut(image, (image.shape[0] - height) // 2, (image.shape[1] - width) // 2, height, width)


def random_crop(
    image: np.ndarray, size: int | tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Cut a random part out of an image, each position equally likely.

    Parameters
    ----------
    image : ndarray of shape (height, width, c)
        The image.
    size : int or (int, int)
        Height and width of the cut in pixels; an int for a square.
    rng : numpy.random.Generator
        Where the position is drawn from.

    Returns
    -------
    ndarray of shape (*size, c)
        A view.

    Raises
    ------
    ImageError
        If the image is smaller than the cut.
    """
    height, width = _crop_size(image, size)
    top = rng.integers(image.shape[0] - height + 1)
    left = rng.integers(image.shape[1] - width + 1)
    return _cut(image, top, left, height, width)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turn an image about its centre.

    Parameters
    ----------
    image : ndarray of shape (height, width, c), uint8 or float32
        The image.
    degrees : float
        Angle, counter-clockwise.

    Returns
    -------
    ndarray of the same shape and dtype
        What leaves the frame is lost. The corners that come free repeat the nearest pixel of the
        edge, because black ones would be a mark that a network could learn.
    """
    import cv2

    _check(image)
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return _with_channels(turned, image)


def flip(image: np.ndarray) -> np.ndarray:
    """Mirror an image left to right.

    Parameters
    ----------
    image : ndarray of shape (height, width, c)
        The image.

    Returns
    -------
    ndarray of the same shape and dtype
        A view.
    """
    _check(image)
    return image[:, ::-1]


def normalize(
    image: np.ndarray, mean: float | Sequence[float], std: float | Sequence[float]
) -> np.ndarray:
    """Scale pixel values to 0 to 1, subtract a mean and divide by a standard deviation.

    Parameters
    ----------
    image : ndarray of shape (height, width, c), uint8 or float
        A uint8 image is divided by 255 first; a float one is taken to lie in 0 to 1 already.
    mean, std : float or sequence of c floats
        On the scale 0 to 1, for all channels or for each.

    Returns
    -------
    ndarray of shape (height, width, c), float32

    Raises
    ------
    ImageError
        If a standard deviation is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> normalize(np.full((1, 1, 3), 255, np.uint8), mean=0.5, std=0.25).tolist()
    [[[2.0, 2.0, 2.0]]]
    """
    _check(image)
    if np.min(std) <= 0:
        raise ImageError(f"std={std!r} must be positive.")
    values = image.astype(np.float32)
    if image.dtype == np.uint8:
        values /= np.float32(255)
    return (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def compose(*steps: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Chain steps, the first one first.

    Parameters
    ----------
    *steps : callable
        Each takes an image and returns one. Fix a step's arguments with `functools.partial`.

    Returns
    -------
    callable
        Picklable if the steps are.

    Examples
    --------
    >>> from functools import partial
    >>> import numpy as np
    >>> thumbnail = compose(decode, partial(resize, size=64), partial(center_crop, size=48))
    >>> thumbnail(np.zeros((100, 200), np.uint8)).shape
    (48, 48, 3)
    """
    return functools.partial(_run_steps, steps)


def _run_steps(steps: tuple[Callable, ...], image: Any) -> Any:
    for step in steps:
        image = step(image)
    return image


def _check(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or 0 in image.shape:
        found = image.shape if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(
            f"Expected an array of shape (height, width, c) with no side of 0, got {found}. "
            "Call decode(...) first."
        )
    if image.dtype not in (np.uint8, np.float32):
        raise ImageError(f"Expected an image of dtype uint8 or float32, got {image.dtype}.")


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if np.ndim(size) == 0 else size
    for side in (height, width):
        if int(side) != side or side < 1:
            raise ImageError(f"size={size!r} must be one or two whole numbers of at least 1 pixel.")
    return int(height), int(width)


def _crop_size(image: np.ndarray, size: int | tuple[int, int]) -> tuple[int, int]:
    _check(image)
    height, width = _height_width(size)
    if height > image.shape[0] or width > image.shape[1]:
        raise ImageError(
            f"Cannot cut {height} x {width} pixels out of an image of {image.shape[0]} x "
            f"{image.shape[1]} (height x width). Resize it first."
        )
    return height, width


def _cut(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    return image[top : top + height, left : left + width]


def _with_channels(result: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Give back the last axis, which OpenCV drops when there is one channel."""
    return result.reshape(*result.shape[:2], image.shape[2])


# --- Encoders ------------------------------------------------------------------------------------


class _ImageTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What the encoders share: one column of images in, named feature columns out."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # whatever an image is kept in, float32 comes
        return tags


class _UntrainedEncoder(_ImageTransformer):
    """An encoder that learns nothing from the images."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters and the container of the images; nothing is learned.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images. They are not opened.
        y : ignored
            Accepted so that the encoder fits in a `Pipeline`.

        Returns
        -------
        self
            The encoder itself.
        """
        self._check_parameters()
        _images(X)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


class PretrainedCNN(_UntrainedEncoder):
    """Encode images by a convolutional network trained on ImageNet.

    Parameters
    ----------
    model : str
        ``"efficientnet-lite0"`` (1,280 features, weights from a pip package),
        ``"efficientnet-lite2"``, or the name of a function in `keras.applications` such as
        ``"MobileNetV2"``, whose weights Keras downloads.
    layer : str, optional
        Take the features from inside the network: the output of this layer, averaged over all
        positions. ``"block0"`` to ``"block15"`` for ``"efficientnet-lite0"`` (to ``"block22"`` for
        ``"efficientnet-lite2"``), else a Keras layer's name. The last layers are tuned to the
        classes and the photographs of ImageNet; earlier ones serve other pictures better [1]_.
    image_size : int, optional
        Height and width in pixels that images are scaled to; what the model was trained at by
        default.
    batch_size : int
        Images that pass the network at once.
    cache : bool
        Keep the features under `cmlearn.runtime.cache_dir` by the images' content, and read them
        there next time. When all are there, Keras is not even imported.
    verbose : bool
        Show a progress bar if the error stream is a terminal.

    Notes
    -----
    The whole image is scaled to a square: nothing is cut off. While the network works on one batch,
    other threads read and decode the next, so that memory holds a few batches however many images
    there are. The features of a finished batch are cached at once: a run that was killed continues
    there.

    References
    ----------
    .. [1] J. Yosinski, J. Clune, Y. Bengio and H. Lipson, "How transferable are features in deep
       neural networks?", NeurIPS 2014. https://arxiv.org/abs/1411.1792

    Examples
    --------
    >>> PretrainedCNN().get_feature_names_out()[:2].tolist()
    ['pretrainedcnn0', 'pretrainedcnn1']
    """

    def __init__(
        self,
        model: str = "efficientnet-lite0",
        *,
        layer: str | None = None,
        image_size: int | None = None,
        batch_size: int = 32,
        cache: bool = True,
        verbose: bool = False,
    ):
        self.model = model
        self.layer = layer
        self.image_size = image_size
        self.batch_size = batch_size
        self.cache = cache
        self.verbose = verbose

    def transform(self, X: Any) -> np.ndarray:
        """Encode images.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images: paths, bytes of image files, arrays, or objects with ``__array__``.

        Returns
        -------
        ndarray of shape (n, d), float32
            The last feature map, averaged over all positions.

        Raises
        ------
        ImageError
            If an image cannot be decoded. The message names its row and file.
        """
        return self._encode(X, _network, self._identity)

    def transform_grid(self, X: Any) -> np.ndarray:
        """Encode images by what the network sees at each position.

        Attention between modalities needs to know where in the image a feature was found, which
        the average that `transform` returns has lost.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images, as for `transform`.

        Returns
        -------
        ndarray of shape (n, positions, d), float32
            The feature map before the average over the positions, which go row by row from the
            upper left. Every image is scaled to the same square, so that all have as many: 49
            (7 x 7) for ``"efficientnet-lite0"``, four times as many for a `layer` so early that
            the network has halved its map once less.

        Raises
        ------
        ImageError
            If an image cannot be decoded. The message names its row and file.

        Notes
        -----
        With ``cache=True`` the maps are kept beside the vectors, ``4 * positions * d`` bytes each:
        250 kB for ``"efficientnet-lite0"``.
        """
        maps = self._encode(X, _grid_network, self._grid_identity)
        return maps.reshape(len(maps), -1, self._n_features_out)

    def _encode(
        self, X: Any, network: Callable[..., _Network], identity: Callable[[], dict[str, Any]]
    ) -> np.ndarray:
        """Return the outputs of a network, one flat row an image, cached if asked for."""
        self._check_parameters()
        images = list(enumerate(_images(X)))
        with ThreadPoolExecutor(_threads()) as pool:
            encode = functools.partial(self._encode_batches, network, pool)
            if self.cache:
                return np.stack(_read_or_encode(images, identity(), encode, pool))
            return np.concatenate([features for *_, features in encode(images)])

    def _encode_batches(
        self, network: Callable[..., _Network], pool: ThreadPoolExecutor, images: list
    ) -> _Encoded:
        from tqdm import tqdm

        if not images:
            return
        network = network(self.model, self.layer, self.image_size)
        load = functools.partial(_load, size=network.size)
        loaded = _in_order(pool, load, images, ahead=2 * self.batch_size)
        off = None if self.verbose else True  # None: off unless the stream is a terminal
        with tqdm(total=len(images), unit=" images", disable=off) as bar:
            for start in range(0, len(images), self.batch_size):
                rows = [row for row, _ in images[start : start + self.batch_size]]
                digests, pixels = zip(*itertools.islice(loaded, len(rows)), strict=True)
                features = network.features(np.stack(pixels))
                yield rows, list(digests), features.reshape(len(rows), -1)
                bar.update(len(rows))

    def _identity(self) -> dict[str, Any]:
        """Return all that decides the features of an image, found without importing Keras."""
        if self.model in _LITE:
            path = weights_file(_LITE[self.model])
            weights = _file_digest(path, path.stat().st_mtime_ns)
        else:
            weights = f"keras {importlib.metadata.version('keras')}"
        return {
            "encoder": "PretrainedCNN",
            "recipe": _RECIPE,
            "model": self.model,
            "layer": self.layer,
            "weights": weights,
            "image_size": self.image_size or _trained_size(self.model),
        }

    def _grid_identity(self) -> dict[str, Any]:
        return {**self._identity(), "output": "grid"}

    def _check_parameters(self) -> None:
        if not isinstance(self.model, str):
            raise ValueError(f"model={self.model!r} must be a name, such as 'efficientnet-lite0'.")
        _check_positive("batch_size", self.batch_size)
        if self.image_size is not None:
            _check_positive("image_size", self.image_size)

    @property
    def _n_features_out(self) -> int:
        if self.model in _LITE and self.layer is None:
            return FEATURES
        return _network(self.model, self.layer, self.image_size).model.output_shape[-1]


class CNNEncoder(_ImageTransformer):
    """A small convolutional network, trained on the labels; its last hidden layer is the features.

    Parameters
    ----------
    filters : sequence of int
        Channels of each block of convolution (3 x 3), batch normalisation, ReLU and maximum
        pooling (2 x 2).
    units : int
        Width of the hidden layer behind the globally averaged last block: the number of features.
    image_size : int
        Height and width in pixels that images are scaled to.
    epochs : int
        Passes over the training images.
    batch_size : int
        Images a step.
    learning_rate : float
        Step size of Adam.
    verbose : bool
        Show a progress bar if the error stream is a terminal.
    random_state : int, RandomState instance or None
        Decides the first weights and the order of the images.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels.
    history_ : dict of str to list of float
        ``"loss"`` (cross-entropy in nats) and ``"accuracy"`` on the training images, an entry an
        epoch.
    weights_ : list of ndarray
        The trained weights, in the order of the network's layers.

    Notes
    -----
    Training holds the scaled images in memory: ``3 * image_size ** 2`` bytes each. The same seed
    gives the same features on the same machine and backend. A fitted encoder is nothing but numbers
    and strings, and so can be pickled and stored by skops.
    """

    def __init__(
        self,
        *,
        filters: Sequence[int] = (32, 64, 128),
        units: int = 128,
        image_size: int = 64,
        epochs: int = 30,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.filters = filters
        self.units = units
        self.image_size = image_size
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> CNNEncoder:
        """Train the network to name the labels.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images.
        y : array-like of shape (n,)
            Labels, of two classes or more.

        Returns
        -------
        CNNEncoder
            Itself.

        Raises
        ------
        ImageError
            If an image cannot be decoded.
        ValueError
            If there are not as many labels as images, or fewer than two classes.
        """
        self._check_parameters()
        images = _images(X)
        labels = column_or_1d(y, warn=True)
        check_consistent_length(images, labels)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"All {len(labels)} labels are of one class, {self.classes_[0]!r}: a network needs "
                "two classes or more to learn what tells them apart."
            )
        self._architecture = {
            "filters": [int(filters) for filters in self.filters],
            "units": int(self.units),
            "image_size": int(self.image_size),
            "classes": len(self.classes_),
        }
        self._train(self._pixels(images), codes)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Encode images.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images.

        Returns
        -------
        ndarray of shape (n, units), float32
            What the last hidden layer answers, none of it negative.

        Raises
        ------
        ImageError
            If an image cannot be decoded.
        """
        check_is_fitted(self, "weights_")
        images = _images(X)
        network = self._fitted_network()
        parts = []
        for start in range(0, len(images), self.batch_size):
            pixels = self._pixels(images[start : start + self.batch_size], start)
            parts.append(network.features(pixels))
        return np.concatenate(parts)

    def _train(self, pixels: np.ndarray, codes: np.ndarray) -> None:
        import keras
        from tqdm import trange

        random = check_random_state(self.random_state)
        model = _small_cnn(**self._architecture, seed=int(random.randint(2**31)))
        model.compile(
            optimizer=keras.optimizers.Adam(self.learning_rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=jit_compile(),
        )
        self.history_ = {"loss": [], "accuracy": []}
        off = None if self.verbose else True
        for _ in (bar := trange(self.epochs, unit=" epochs", disable=off)):
            # Shuffled here and not by Keras, whose order hangs on a seed of the whole process.
            order = random.permutation(len(codes))
            run = model.fit(
                pixels[order], codes[order], batch_size=self.batch_size, shuffle=False, verbose=0
            )
            for name, values in self.history_.items():
                values.extend(run.history[name])
            bar.set_postfix({name: f"{values[-1]:.3f}" for name, values in self.history_.items()})
        self.weights_ = model.get_weights()
        self._network = _hidden_layer(model)

    def _fitted_network(self) -> _Network:
        if getattr(self, "_network", None) is None:
            model = _small_cnn(**self._architecture, seed=0)
            model.set_weights(self.weights_)
            self._network = _hidden_layer(model)
        return self._network

    def _pixels(self, images: list, first_row: int = 0) -> np.ndarray:
        """Return the scaled images, decoded by several threads."""
        size = self._architecture["image_size"]
        pixels = np.empty((len(images), size, size, 3), np.uint8)
        with ThreadPoolExecutor(_threads()) as pool:
            load = functools.partial(_load, size=size)
            numbered = list(enumerate(images, first_row))
            for row, (_, image) in enumerate(_in_order(pool, load, numbered, self.batch_size)):
                pixels[row] = image
        return pixels

    def _check_parameters(self) -> None:
        for name in ("units", "image_size", "epochs", "batch_size"):
            _check_positive(name, getattr(self, name))
        for filters in self.filters:
            _check_positive("filters", filters)
        if self.image_size < 2 ** len(self.filters):
            raise ValueError(
                f"image_size={self.image_size} is halved by each of the {len(self.filters)} blocks "
                f"and so must be at least {2 ** len(self.filters)}."
            )

    @property
    def _n_features_out(self) -> int:
        # AttributeError before fit, which is how scikit-learn sees that there is nothing to name.
        return self._architecture["units"]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_network", None)
        return state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


# --- Descriptors without a network ---------------------------------------------------------------


class SIFTBagOfWords(_ImageTransformer):
    """Encode images by how often each word of a visual vocabulary occurs in them.

    SIFT finds keypoints, places that stand out from what surrounds them, and describes each by 128
    numbers [1]_. The centres of a k-means clustering of the training images' descriptors are the
    visual words [2]_. An image then is a text of visual words, and TF-IDF or VLAD turns it into a
    vector.

    Parameters
    ----------
    n_words : int
        Size of the vocabulary. ``"vlad"`` needs fewer words than ``"tfidf"``: 16 to 64.
    encoding : {"tfidf", "vlad"}
        ``"tfidf"``: how often a word occurs, times how few training images have it, as
        :class:`sklearn.feature_extraction.text.TfidfTransformer` computes it. ``"vlad"``: the sum,
        for each word, of the differences between the word and the descriptors nearest to it [3]_,
        each word's sum brought to length 1 (intra-normalisation [4]_).
    levels : int
        Levels of the spatial pyramid [5]_. The first is the whole image, the second its four
        quarters, each further one has cells of half the side. Every cell has its own vector.
    max_keypoints : int
        Of an image's keypoints those of the highest contrast are kept.
    contrast_threshold : float
        Keypoints of less contrast are left out. OpenCV's own choice, 0.04, leaves drawings with
        plain areas few keypoints.
    image_size : int
        Height and width in pixels that images are scaled to. Small pictures gain from being
        enlarged, because SIFT sees no pattern of a few pixels.
    cache : bool
        Keep keypoints and descriptors under `cmlearn.runtime.cache_dir` by the images' content,
        and read them there next time. They do not depend on the training images.
    random_state : int, RandomState instance or None
        Decides the sample of descriptors and the first centres.

    Attributes
    ----------
    words_ : ndarray of shape (n_words, 128), float32
        The vocabulary.
    idf_ : ndarray of shape (n_words,), float64
        Inverse document frequency of each word: ``log((1 + n) / (1 + df)) + 1`` for `n` training
        images of which `df` have the word.

    Notes
    -----
    Descriptors are compared as RootSIFT: divided by their sum, then the square root of each entry,
    so that the Euclidean distance becomes the Hellinger distance [6]_. The vocabulary is learned
    from at most 100,000 descriptors, drawn at random from all. Each level of the pyramid is
    brought to length 1, and its cells keep their proportion; so the first level is the vector that
    ``levels=1`` gives, and the whole has the length ``sqrt(levels)``. The pyramid's authors let
    the finest of three levels count twice as much; with two levels they too let both count alike.

    References
    ----------
    .. [1] D. G. Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 60, 2004.
       https://doi.org/10.1023/B:VISI.0000029664.99615.94
    .. [2] J. Sivic and A. Zisserman, "Video Google: a text retrieval approach to object matching in
       videos", ICCV 2003. https://doi.org/10.1109/ICCV.2003.1238663
    .. [3] H. Jegou, M. Douze, C. Schmid and P. Perez, "Aggregating local descriptors into a compact
       image representation", CVPR 2010. https://doi.org/10.1109/CVPR.2010.5540039
    .. [4] R. Arandjelovic and A. Zisserman, "All about VLAD", CVPR 2013.
       https://doi.org/10.1109/CVPR.2013.207
    .. [5] S. Lazebnik, C. Schmid and J. Ponce, "Beyond bags of features: spatial pyramid matching
       for recognizing natural scene categories", CVPR 2006. https://doi.org/10.1109/CVPR.2006.68
    .. [6] R. Arandjelovic and A. Zisserman, "Three things everyone should know to improve object
       retrieval", CVPR 2012. https://doi.org/10.1109/CVPR.2012.6248018

    Examples
    --------
    >>> import numpy as np
    >>> pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    >>> encoder = SIFTBagOfWords(n_words=8, levels=2, image_size=64, cache=False, random_state=0)
    >>> encoder.fit_transform(pixels).shape  # 8 words in the whole and in 4 quarters
    (4, 40)
    """

    def __init__(
        self,
        n_words: int = 256,
        *,
        encoding: str = "tfidf",
        levels: int = 2,
        max_keypoints: int = 300,
        contrast_threshold: float = 0.01,
        image_size: int = 256,
        cache: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_words = n_words
        self.encoding = encoding
        self.levels = levels
        self.max_keypoints = max_keypoints
        self.contrast_threshold = contrast_threshold
        self.image_size = image_size
        self.cache = cache
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> SIFTBagOfWords:
        """Learn the vocabulary and how rare each word is.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images.
        y : ignored
            Accepted so that the encoder fits in a `Pipeline`.

        Returns
        -------
        SIFTBagOfWords
            Itself.

        Raises
        ------
        ImageError
            If an image cannot be decoded.
        ValueError
            If the images hold fewer descriptors than `n_words`.
        """
        from sklearn.feature_extraction.text import TfidfTransformer

        images = self._keypoints(X)
        self.words_ = self._vocabulary(images)
        counts = [
            np.bincount(words, minlength=self.n_words) for words in _nearest(images, self.words_)
        ]
        self.idf_ = TfidfTransformer().fit(np.stack(counts)).idf_
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Encode images.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images.

        Returns
        -------
        ndarray of shape (n, d), float32
            ``d = cells * n_words`` for ``"tfidf"`` and ``cells * n_words * 128`` for ``"vlad"``,
            where ``cells`` is 1, 5 or 21 for 1, 2 or 3 levels. Cells go row by row, a level after
            the other. An image without a keypoint is a row of zeros, and a `NoKeypointsWarning`
            counts such images.

        Raises
        ------
        ImageError
            If an image cannot be decoded. The message names its row and file.
        """
        check_is_fitted(self, "words_")
        images = self._keypoints(X)
        _warn_of_no_keypoints(images)
        encoded = np.empty((len(images), self._n_features_out), np.float32)
        for row, words in enumerate(_nearest(images, self.words_)):
            levels = [self._level(images[row], words, level) for level in range(self.levels)]
            encoded[row] = np.concatenate(levels)
        return encoded

    def _keypoints(self, X: Any) -> list[_Keypoints]:
        import cv2

        self._check_parameters()
        parameters = {
            "image_size": int(self.image_size),
            "max_keypoints": int(self.max_keypoints),
            "contrast_threshold": float(self.contrast_threshold),
        }
        identity = {"encoder": "SIFT", "recipe": 1, "opencv": cv2.__version__, **parameters}
        find = functools.partial(
            _find_keypoints,
            max_keypoints=parameters["max_keypoints"],
            contrast_threshold=parameters["contrast_threshold"],
        )
        packed = _describe(X, find, self.image_size, identity if self.cache else None)
        return [_unpack(one) for one in packed]

    def _vocabulary(self, images: list[_Keypoints]) -> np.ndarray:
        from sklearn.cluster import MiniBatchKMeans

        descriptors = np.concatenate([image.descriptors for image in images])
        if len(descriptors) < self.n_words:
            raise ValueError(
                f"The {len(images)} images hold {len(descriptors)} SIFT descriptors, fewer than "
                f"n_words={self.n_words}. Give more images, ask for fewer words, or find more "
                "keypoints by a larger image_size or a smaller contrast_threshold."
            )
        random = check_random_state(self.random_state)
        if len(descriptors) > _VOCABULARY_SAMPLE:
            sample = random.choice(len(descriptors), _VOCABULARY_SAMPLE, replace=False)
            descriptors = descriptors[sample]
        clusters = MiniBatchKMeans(self.n_words, n_init=1, random_state=random)
        return clusters.fit(_root_sift(descriptors)).cluster_centers_.astype(np.float32)

    def _level(self, image: _Keypoints, words: np.ndarray, level: int) -> np.ndarray:
        """Return one level of an image's pyramid, of length 1 or 0."""
        side = 2**level
        column, row = np.clip((image.positions * side).astype(int), 0, side - 1).T
        bins = (row * side + column) * len(self.words_) + words
        n_bins = side**2 * len(self.words_)
        if self.encoding == "tfidf":
            counts = np.bincount(bins, minlength=n_bins)
            return _unit(counts * np.tile(self.idf_, side**2))
        residuals = np.zeros((n_bins, _SIFT_LENGTH))
        np.add.at(residuals, bins, _root_sift(image.descriptors) - self.words_[words])
        return _unit(_unit(residuals).ravel())

    def _check_parameters(self) -> None:
        for name in ("n_words", "levels", "max_keypoints", "image_size"):
            _check_positive(name, getattr(self, name))
        _check_choice("encoding", self.encoding, ("tfidf", "vlad"))
        threshold = self.contrast_threshold
        if not isinstance(threshold, numbers.Real) or not 0 <= threshold < 1:
            raise ValueError(f"contrast_threshold={threshold!r} must be from 0 to below 1.")

    @property
    def _n_features_out(self) -> int:
        # AttributeError before fit, which is how scikit-learn sees that there is nothing to name.
        cells = sum(4**level for level in range(self.levels))
        return cells * len(self.words_) * (1 if self.encoding == "tfidf" else _SIFT_LENGTH)


class HOGEncoder(_UntrainedEncoder):
    """Encode images by histograms of oriented gradients: outlines and where they are [1]_.

    The image is divided into cells. In each cell the directions in which the brightness changes
    are counted, weighted by how much it changes. Each group of neighbouring cells, a block, is
    normalised together, so that lighting matters less.

    Parameters
    ----------
    orientations : int
        Directions that are told apart, over half a turn.
    pixels_per_cell : int
        Side of a cell in pixels.
    cells_per_block : int
        Side of a block in cells.
    image_size : int
        Height and width in pixels that images are scaled to.
    cache : bool
        Keep the features under `cmlearn.runtime.cache_dir` by the images' content, and read them
        there next time.

    Notes
    -----
    The computation is :func:`skimage.feature.hog` with ``block_norm="L2-Hys"``. At each pixel the
    colour channel that changes most counts.

    References
    ----------
    .. [1] N. Dalal and B. Triggs, "Histograms of oriented gradients for human detection", CVPR
       2005. https://doi.org/10.1109/CVPR.2005.177

    Examples
    --------
    >>> import numpy as np
    >>> upright = np.zeros((64, 64, 3), np.uint8)
    >>> upright[:, 32:] = 255
    >>> features = HOGEncoder(cache=False).fit_transform([upright])
    >>> features.shape  # 7 x 7 blocks of 2 x 2 cells of 9 directions
    (1, 1764)
    """

    def __init__(
        self,
        *,
        orientations: int = 9,
        pixels_per_cell: int = 8,
        cells_per_block: int = 2,
        image_size: int = 64,
        cache: bool = True,
    ):
        self.orientations = orientations
        self.pixels_per_cell = pixels_per_cell
        self.cells_per_block = cells_per_block
        self.image_size = image_size
        self.cache = cache

    def transform(self, X: Any) -> np.ndarray:
        """Encode images.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images.

        Returns
        -------
        ndarray of shape (n, d), float32
            ``d = blocks ** 2 * cells_per_block ** 2 * orientations`` with ``blocks =
            image_size // pixels_per_cell - cells_per_block + 1``; 0 to 1 each.

        Raises
        ------
        ImageError
            If an image cannot be decoded. The message names its row and file.
        """
        self._check_parameters()
        parameters = {
            "orientations": int(self.orientations),
            "pixels_per_cell": int(self.pixels_per_cell),
            "cells_per_block": int(self.cells_per_block),
        }
        identity = {
            "encoder": "HOG",
            "recipe": 1,
            "scikit-image": importlib.metadata.version("scikit-image"),
            "image_size": int(self.image_size),
            **parameters,
        }
        hog = functools.partial(_hog, **parameters)
        return np.stack(_describe(X, hog, self.image_size, identity if self.cache else None))

    def _check_parameters(self) -> None:
        for name in ("orientations", "pixels_per_cell", "cells_per_block", "image_size"):
            _check_positive(name, getattr(self, name))
        if self.image_size < (smallest := self.pixels_per_cell * self.cells_per_block):
            raise ValueError(
                f"image_size={self.image_size} is less than one block of "
                f"{self.cells_per_block} cells of {self.pixels_per_cell} pixels: it must be at "
                f"least {smallest}."
            )

    @property
    def _n_features_out(self) -> int:
        blocks = self.image_size // self.pixels_per_cell - self.cells_per_block + 1
        return blocks**2 * self.cells_per_block**2 * self.orientations


class ColorHistogram(_UntrainedEncoder):
    """Encode images by how much of them has which colour, wherever it is [1]_.

    Parameters
    ----------
    bins : int
        Parts that each of the three colour channels is divided into; ``bins ** 3`` features.
    color_space : {"hsv", "rgb", "lab"}
        The channels: hue, saturation and brightness; red, green and blue; or CIE lightness,
        green to red and blue to yellow.
    cache : bool
        Keep the features under `cmlearn.runtime.cache_dir` by the images' content, and read them
        there next time.

    Notes
    -----
    A feature is the square root of the share of the pixels in a bin. The squares of the features
    add up to 1, and the Euclidean distance between two images is the Hellinger distance of their
    histograms, which large plain areas dominate less [2]_. Transparency counts as white.

    References
    ----------
    .. [1] M. J. Swain and D. H. Ballard, "Color indexing", IJCV 7, 1991.
       https://doi.org/10.1007/BF00130487
    .. [2] A. Vedaldi and A. Zisserman, "Efficient additive kernels via explicit feature maps",
       IEEE TPAMI 34, 2012. https://doi.org/10.1109/TPAMI.2011.153

    Examples
    --------
    >>> import numpy as np
    >>> half_red = np.zeros((8, 8, 3), np.uint8)
    >>> half_red[:4, :, 0] = 255
    >>> features = ColorHistogram(2, color_space="rgb", cache=False).fit_transform([half_red])
    >>> (features**2).round(3).tolist()  # black first, pure red fifth
    [[0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0]]
    """

    def __init__(self, bins: int = 8, *, color_space: str = "hsv", cache: bool = True):
        self.bins = bins
        self.color_space = color_space
        self.cache = cache

    def transform(self, X: Any) -> np.ndarray:
        """Encode images.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images. They are not scaled.

        Returns
        -------
        ndarray of shape (n, bins ** 3), float32
            The bins of the last channel go fastest.

        Raises
        ------
        ImageError
            If an image cannot be decoded. The message names its row and file.
        """
        import cv2

        self._check_parameters()
        parameters = {"bins": int(self.bins), "color_space": self.color_space}
        identity = {"encoder": "ColorHistogram", "recipe": 1, "opencv": cv2.__version__}
        histogram = functools.partial(_color_histogram, **parameters)
        return np.stack(
            _describe(X, histogram, None, {**identity, **parameters} if self.cache else None)
        )

    def _check_parameters(self) -> None:
        _check_positive("bins", self.bins)
        if self.bins > 256:
            raise ValueError(f"bins={self.bins} is more than the 256 values of a channel.")
        _check_choice("color_space", self.color_space, tuple(_HIGHEST))

    @property
    def _n_features_out(self) -> int:
        return self.bins**3


_SIFT_LENGTH = 128
_VOCABULARY_SAMPLE = 100_000

# One above the highest value of each channel, as OpenCV codes 8-bit colours.
_HIGHEST = {"hsv": (180, 256, 256), "rgb": (256, 256, 256), "lab": (256, 256, 256)}


class _Keypoints(NamedTuple):
    """The keypoints of one image: where they are, from 0 to 1, and what is there."""

    positions: np.ndarray  # (m, 2), float32, column before row
    descriptors: np.ndarray  # (m, 128), uint8


def _find_keypoints(
    pixels: np.ndarray, max_keypoints: int, contrast_threshold: float
) -> np.ndarray:
    """Return an image's keypoints, those of the highest contrast first, packed for the cache."""
    import cv2

    sift = cv2.SIFT_create(nfeatures=max_keypoints, contrastThreshold=contrast_threshold)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    keypoints, descriptors = sift.detectAndCompute(grey, None)
    if not keypoints:
        return np.empty((0, 2 + _SIFT_LENGTH // 4), np.float32)
    contrast = np.array([keypoint.response for keypoint in keypoints])
    # OpenCV returns more than it was asked for when the last ones are equal.
    best = np.argsort(-contrast, kind="stable")[:max_keypoints]
    # The centre of the first pixel has the coordinate 0.
    positions = (np.array([keypoint.pt for keypoint in keypoints]) + 0.5) / len(pixels)
    # SIFT's numbers are whole and below 256. Four of them travel as one of the cache's float32.
    whole = np.ascontiguousarray(descriptors[best], np.uint8)
    return np.hstack([positions[best].astype("<f4"), whole.view("<f4")])


def _unpack(packed: np.ndarray) -> _Keypoints:
    rows = packed.reshape(-1, 2 + _SIFT_LENGTH // 4)
    return _Keypoints(rows[:, :2], np.ascontiguousarray(rows[:, 2:]).view(np.uint8))


def _root_sift(descriptors: np.ndarray) -> np.ndarray:
    sums = descriptors.sum(axis=1, keepdims=True, dtype=np.float32)
    return np.sqrt(descriptors / np.maximum(sums, 1))


def _nearest(images: list[_Keypoints], words: np.ndarray) -> list[np.ndarray]:
    """Return the number of the nearest word for each descriptor of each image."""
    from sklearn.metrics import pairwise_distances_argmin

    descriptors = np.concatenate([image.descriptors for image in images])
    if not len(descriptors):
        return [np.empty(0, int)] * len(images)
    numbers = pairwise_distances_argmin(_root_sift(descriptors), words)
    return np.split(numbers, np.cumsum([len(image.positions) for image in images])[:-1])


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Bring vectors, along the last axis, to length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _warn_of_no_keypoints(images: list[_Keypoints]) -> None:
    rows = [row for row, image in enumerate(images) if not len(image.positions)]
    if not rows:
        return
    shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    warnings.warn(
        NoKeypointsWarning(
            f"{len(rows)} of {len(images)} images have no keypoint and became zero vectors: row "
            f"{shown}. A larger image_size or a smaller contrast_threshold finds more keypoints."
        ),
        stacklevel=4,  # to whoever called transform, which scikit-learn wraps
    )


def _hog(
    pixels: np.ndarray, orientations: int, pixels_per_cell: int, cells_per_block: int
) -> np.ndarray:
    from skimage.feature import hog

    cell, block = (pixels_per_cell, pixels_per_cell), (cells_per_block, cells_per_block)
    return hog(pixels, orientations, cell, block, channel_axis=-1).astype(np.float32)


def _color_histogram(pixels: np.ndarray, bins: int, color_space: str) -> np.ndarray:
    import cv2

    if color_space != "rgb":
        pixels = cv2.cvtColor(pixels, getattr(cv2, f"COLOR_RGB2{color_space.upper()}"))
    ranges = [limit for highest in _HIGHEST[color_space] for limit in (0, highest)]
    counts = cv2.calcHist([pixels], [0, 1, 2], None, [bins] * 3, ranges)
    return np.sqrt(counts / counts.sum(dtype=np.float64)).astype(np.float32).ravel()


# --- Networks ------------------------------------------------------------------------------------

_LITE = {variant.asset: name for name, variant in VARIANTS.items()}

# Raised when the same image, weights and parameters begin to give other features, so that no
# feature cached before is taken for a new one.
_RECIPE = 1


class _Network:
    """A Keras model with the size and the scaling of its input."""

    def __init__(self, model: keras.Model, size: int, preprocess: Callable | None = None):
        self.model = model
        self.size = size
        self.preprocess = preprocess
        model.compile(jit_compile=jit_compile())

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return the float32 output for uint8 ``(n, size, size, 3)``."""
        count = len(pixels)
        # A new batch size is compiled anew. In powers of two there are few.
        padding = (1 << (count - 1).bit_length()) - count
        pixels = np.pad(pixels, ((0, padding), (0, 0), (0, 0), (0, 0)))
        if self.preprocess is not None:
            pixels = self.preprocess(pixels.astype(np.float32))
        with _without_tracing_advice():
            return np.asarray(self.model.predict_on_batch(pixels), np.float32)[:count]


@contextmanager
def _without_tracing_advice() -> Iterator[None]:
    """Keep back TensorFlow's advice on retracing, which a network a fold of a split calls forth."""

    def is_other(record: logging.LogRecord) -> bool:
        return "retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


# Clones made by cross-validation share the network; two are kept for a comparison of models.
@functools.lru_cache(maxsize=2)
def _network(name: str, layer: str | None, image_size: int | None) -> _Network:
    size = image_size or _trained_size(name)
    if name in _LITE:
        return _Network(EfficientNetLite(_LITE[name], layer=layer, image_size=size), size)
    builder = _application(name)
    # With the classifier, because only then does Keras use the size of the training.
    size = size or builder(weights=None).input_shape[1]
    model = builder(
        weights="imagenet", include_top=False, pooling="avg", input_shape=(size, size, 3)
    )
    if layer is not None:
        model = _averaged(model, layer)
    return _Network(model, size, sys.modules[builder.__module__].preprocess_input)


@functools.lru_cache(maxsize=2)
def _grid_network(name: str, layer: str | None, image_size: int | None) -> _Network:
    """Return the same network without the average over the positions, its last layer."""
    import keras

    pooled = _network(name, layer, image_size)
    model = keras.Model(pooled.model.inputs, pooled.model.layers[-1].input)
    return _Network(model, pooled.size, pooled.preprocess)


def _averaged(model: keras.Model, layer: str) -> keras.Model:
    """Return the network up to a layer, with its output averaged over all positions."""
    import keras

    output = model.get_layer(layer).output
    return keras.Model(model.inputs, keras.layers.GlobalAveragePooling2D()(output))


def _application(name: str) -> Callable[..., keras.Model]:
    """Return the function of `keras.applications` of that name."""
    import keras

    names = [n for n, made in vars(keras.applications).items() if inspect.isfunction(made)]
    if name not in names:
        near = difflib.get_close_matches(name, [*_LITE, *names]) or list(_LITE)
        raise ValueError(
            f"model={name!r} is unknown. Did you mean {' or '.join(map(repr, near))}? "
            "Any function of keras.applications will do."
        )
    return getattr(keras.applications, name)


def _trained_size(name: str) -> int | None:
    return VARIANTS[_LITE[name]].image_size if name in _LITE else None


def _small_cnn(
    filters: Sequence[int], units: int, image_size: int, classes: int, seed: int
) -> keras.Model:
    """Return the untrained network of `CNNEncoder`."""
    import keras

    layers, initializers = keras.layers, keras.initializers
    pixels = keras.Input((image_size, image_size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(pixels)
    for block, channels in enumerate(filters):
        start = initializers.HeNormal(seed=seed + block)
        x = layers.Conv2D(
            channels, 3, padding="same", use_bias=False, kernel_initializer=start
        )(x)  # fmt: skip
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D()(x)
    x = layers.GlobalAveragePooling2D()(x)
    start = initializers.HeNormal(seed=seed + len(filters))
    x = layers.Dense(units, activation="relu", kernel_initializer=start, name="features")(x)
    start = initializers.GlorotUniform(seed=seed + len(filters) + 1)
    x = layers.Dense(classes, activation="softmax", kernel_initializer=start)(x)
    return keras.Model(pixels, x)


def _hidden_layer(model: keras.Model) -> _Network:
    """Return the network of `_small_cnn` up to its features."""
    import keras

    encoder = keras.Model(model.input, model.get_layer("features").output)
    return _Network(encoder, model.input_shape[1])


def jit_compile() -> bool | str:
    """Return what ``keras.Model.compile(jit_compile=…)`` should be given here.

    Returns
    -------
    bool or str
        False for TensorFlow on a CPU, where XLA runs depthwise convolutions many times slower than
        TensorFlow's own kernels; else ``"auto"``.
    """
    import keras

    on_cpu = not device().startswith("GPU")
    return False if keras.backend.backend() == "tensorflow" and on_cpu else "auto"


# --- Reading ahead -------------------------------------------------------------------------------


# What an encoding function yields, batch by batch: rows, digests of the content, features.
_Encoded = Iterator[tuple[list[int], list[bytes], np.ndarray]]

_AHEAD = 64  # images that are read and described before their turn


def _read_or_encode(
    images: list[tuple[int, Any]],
    identity: dict[str, Any],
    encode: Callable[[list[tuple[int, Any]]], _Encoded],
    pool: ThreadPoolExecutor,
) -> list[np.ndarray]:
    """Return the features of numbered images, and encode only those that no cache holds."""
    from cmlearn._cache import FeatureCache

    with FeatureCache(identity) as cache:
        keys = [cache.key(digest) for digest in _in_order(pool, _digest, images, _AHEAD)]
        known = cache.get_many(keys)
        # A dictionary by key, so that copies of an image are encoded once.
        missing = {key: image for key, image in zip(keys, images, strict=True)
                   if key not in known}  # fmt: skip
        for rows, digests, features in encode(list(missing.values())):
            # By the bytes that were decoded: the file may have changed since it was looked up.
            cache.put_many([cache.key(digest) for digest in digests], features)
            known.update((keys[row], vector) for row, vector in zip(rows, features, strict=True))
    return [known[key] for key in keys]


def _describe(
    X: Any,
    describe: Callable[[np.ndarray], np.ndarray],
    image_size: int | None,
    identity: dict[str, Any] | None,
) -> list[np.ndarray]:
    """Apply a function to the pixels of each image, in threads; with an identity, cached."""
    images = list(enumerate(_images(X)))
    with ThreadPoolExecutor(_threads()) as pool:
        encode = functools.partial(_describe_each, describe, image_size, pool)
        if identity is not None:
            return _read_or_encode(images, identity, encode, pool)
        return [features[0] for *_, features in encode(images)]


def _describe_each(
    describe: Callable[[np.ndarray], np.ndarray],
    image_size: int | None,
    pool: ThreadPoolExecutor,
    images: list[tuple[int, Any]],
) -> _Encoded:
    def load_and_describe(image: tuple[int, Any]) -> tuple[bytes, np.ndarray]:
        digest, pixels = _load(image, image_size)
        return digest, describe(pixels)

    described = _in_order(pool, load_and_describe, images, _AHEAD)
    for (row, _), (digest, features) in zip(images, described, strict=True):
        yield [row], [digest], features[None]


def _images(X: Any) -> list:
    """Return the images of one column as a list, whatever holds the column."""
    if isinstance(X, (str, bytes, os.PathLike)):
        raise ValueError(f"Expected several images, got one ({X!r:.80}). Put it in a list.")
    if scipy.sparse.issparse(X):
        raise ValueError("Expected a column of images, got a sparse matrix.")
    if getattr(X, "ndim", 1) == 2:
        X = _only_column(X)
    images = list(X)
    if not images:
        raise ValueError("Found 0 images where at least 1 is required.")
    return images


def _only_column(X: Any) -> Any:
    if X.shape[1] != 1:
        raise ValueError(f"Expected one column of images, got {X.shape[1]} columns.")
    return X.iloc[:, 0] if hasattr(X, "iloc") else X[:, 0]


def _digest(image: tuple[int, Any]) -> bytes:
    """Return the SHA-256 of a numbered image's content."""
    row, source = image
    with _naming(row):
        return _hash(read_bytes(source) if _is_file(source) else decode(source))


def _load(image: tuple[int, Any], size: int | None) -> tuple[bytes, np.ndarray]:
    """Return the SHA-256 of a numbered image's content, and its pixels scaled to a square."""
    row, source = image
    with _naming(row):
        if _is_file(source):
            content = read_bytes(source)
            digest, pixels = _hash(content), _decode_file(content, describe(source))
        else:
            pixels = decode(source)
            digest = _hash(pixels)
    return digest, pixels if size is None else resize(pixels, size)


def _hash(content: bytes | np.ndarray) -> bytes:
    if isinstance(content, np.ndarray):
        content = repr(content.shape).encode() + content.tobytes()
    return hashlib.sha256(content).digest()


@contextmanager
def _naming(row: int) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise ImageError(f"Row {row} (counted from 0): {error}") from error


def _in_order(
    pool: ThreadPoolExecutor, function: Callable, items: Iterable, ahead: int
) -> Iterator[Any]:
    """Map in several threads and yield in order, at most `ahead` items before the reader."""
    pending: deque = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@functools.lru_cache(maxsize=4)
def _file_digest(path: Path, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}.")


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
