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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    "ImageError",
    "PretrainedCNN",
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
        return tags


class PretrainedCNN(_ImageTransformer):
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

    def fit(self, X: Any, y: Any = None) -> PretrainedCNN:
        """Check the parameters and the container of the images; nothing is learned.

        Parameters
        ----------
        X : array-like of shape (n,) or (n, 1)
            Images. They are not opened.
        y : ignored
            Accepted so that the encoder fits in a `Pipeline`.

        Returns
        -------
        PretrainedCNN
            Itself.
        """
        self._check_parameters()
        _images(X)
        return self

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
        self._check_parameters()
        images = list(enumerate(_images(X)))
        with ThreadPoolExecutor(_threads()) as pool:
            if self.cache:
                return self._read_or_encode(images, pool)
            return np.concatenate([features for *_, features in self._encode(images, pool)])

    def _read_or_encode(self, images: list, pool: ThreadPoolExecutor) -> np.ndarray:
        from cmlearn._cache import FeatureCache

        with FeatureCache(self._identity()) as cache:
            digests = _in_order(pool, _digest, images, ahead=2 * self.batch_size)
            keys = [cache.key(digest) for digest in digests]
            known = cache.get_many(keys)
            # A dictionary by key, so that copies of an image are encoded once.
            missing = {key: image for key, image in zip(keys, images, strict=True)
                       if key not in known}  # fmt: skip
            for rows, digests, features in self._encode(list(missing.values()), pool):
                # By the bytes that were decoded: the file may have changed since it was looked up.
                cache.put_many([cache.key(digest) for digest in digests], features)
                known.update(
                    (keys[row], vector) for row, vector in zip(rows, features, strict=True)
                )
        return np.stack([known[key] for key in keys])

    def _encode(
        self, images: list[tuple[int, Any]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[int], list[bytes], np.ndarray]]:
        """Yield the rows, content digests and features of one batch after the other."""
        from tqdm import tqdm

        if not images:
            return
        network = _network(self.model, self.layer, self.image_size)
        load = functools.partial(_load, size=network.size)
        loaded = _in_order(pool, load, images, ahead=2 * self.batch_size)
        off = None if self.verbose else True  # None: off unless the stream is a terminal
        with tqdm(total=len(images), unit=" images", disable=off) as bar:
            for start in range(0, len(images), self.batch_size):
                rows = [row for row, _ in images[start : start + self.batch_size]]
                digests, pixels = zip(*itertools.islice(loaded, len(rows)), strict=True)
                yield rows, list(digests), network.features(np.stack(pixels))
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

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


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
                f"All {len(labels)} labels are {self.classes_[0]!r}: a network needs two classes "
                "or more to learn what tells them apart."
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
        self._network = None

    def _fitted_network(self) -> _Network:
        if getattr(self, "_network", None) is None:
            import keras

            model = _small_cnn(**self._architecture, seed=0)
            model.set_weights(self.weights_)
            encoder = keras.Model(model.input, model.get_layer("features").output)
            self._network = _Network(encoder, self._architecture["image_size"])
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


def _load(image: tuple[int, Any], size: int) -> tuple[bytes, np.ndarray]:
    """Return the SHA-256 of a numbered image's content, and its pixels scaled to a square."""
    row, source = image
    with _naming(row):
        if _is_file(source):
            content = read_bytes(source)
            return _hash(content), resize(_decode_file(content, describe(source)), size)
        pixels = decode(source)
        return _hash(pixels), resize(pixels, size)


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


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
