"""Images and texts made worse in steps, to measure what a model withstands."""

from __future__ import annotations

import difflib
import itertools
import numbers
import re
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from cmlearn.image import ImageError, decode
from cmlearn.robustness import add_typos
from cmlearn.text import TextError, _as_texts, load_word_vectors

__all__ = [
    "IMAGE_CORRUPTIONS",
    "SEVERITIES",
    "TEXT_CORRUPTIONS",
    "corrupt_images",
    "corrupt_texts",
]

SEVERITIES = (1, 2, 3, 4, 5)
"""The five steps, the mildest first."""

_SIDE = 224  # pixels: the lengths below are those in an image with this shorter side
_FROST = np.array([0.85, 0.93, 1.0])  # a bluish white, red first


# --- Images --------------------------------------------------------------------------------------


def corrupt_images(
    images: Iterable[Any],
    name: str,
    severity: int = 1,
    *,
    random_state: int | np.random.RandomState | None = None,
) -> list[np.ndarray]:
    """Make images worse in one of 15 ways.

    Parameters
    ----------
    images : iterable of n images
        Paths, bytes of image files, Pillow images, or uint8 arrays (height, width, 3); what
        :func:`cmlearn.image.decode` takes.
    name : str
        One of `IMAGE_CORRUPTIONS`.
    severity : int, default=1
        From 1, mild, to 5, strong.
    random_state : int, RandomState instance or None, default=None
        Decides noise, directions and patterns. With the same number an image gets the same ones
        at every severity, whatever images come before and after it.

    Returns
    -------
    list of n ndarrays of shape (height, width, 3), uint8
        The corrupted images, each of its own size.

    Raises
    ------
    ImageError
        If an image cannot be decoded, or is an array that is not uint8. The message names the row.
    ValueError
        If there is no such corruption or severity.

    Notes
    -----
    The kinds are those of [1]_. Their strengths were chosen anew, on emoji, so that error rates
    are not comparable with those published for other collections. Lengths (a blur's radius, a
    shift) are in proportion to the shorter side of the image. Frost, which [1]_ pastes from
    photographs, is drawn here from random ridges.

    References
    ----------
    .. [1] D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common
       Corruptions and Perturbations", ICLR 2019. https://arxiv.org/abs/1903.12261

    Examples
    --------
    >>> import numpy as np
    >>> grey = np.full((8, 8, 3), 128, np.uint8)
    >>> brighter, = corrupt_images([grey], "brightness", 2)
    >>> brighter[0, 0].tolist()
    [179, 179, 179]
    """
    change, strength = _look_up(_IMAGE, "image corruption", name, severity)
    random = check_random_state(random_state)
    corrupted = []
    for row, image in enumerate(images):
        pixels = _decoded(image, row)
        rng = np.random.default_rng(random.randint(2**31 - 1))
        changed = change(pixels.astype(np.float64) / 255, strength, rng)
        corrupted.append(np.round(255 * np.clip(changed, 0, 1)).astype(np.uint8))
    return corrupted


def _look_up(table: dict, kind: str, name: str, severity: int) -> tuple[Callable, Any]:
    if name not in table:
        near = difflib.get_close_matches(str(name), table, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no {kind} {name!r}; choose one of {', '.join(table)}.{meant}")
    whole = isinstance(severity, numbers.Integral) and not isinstance(severity, bool)
    if not whole or severity not in SEVERITIES:
        raise ValueError(f"severity must be a whole number from 1 to 5; got {severity!r}")
    change, strengths = table[name]
    return change, strengths[severity - 1]


def _decoded(image: Any, row: int) -> np.ndarray:
    if isinstance(image, np.ndarray) and image.dtype != np.uint8:
        span = f" from {image.min():g} to {image.max():g}" if image.size else ""
        raise ImageError(
            f"row {row}: expected pixels of dtype uint8, 0 to 255; got {image.dtype}{span}. Scale "
            "them to 0 to 255, round, and call .astype(np.uint8)"
        )
    try:
        return decode(image)
    except ImageError as error:
        raise ImageError(f"row {row}: {error}") from error


def _pixels_of(length: float, image: np.ndarray) -> float:
    return length * min(image.shape[:2]) / _SIDE


def _gaussian_noise(image, deviation, rng):
    return image + rng.normal(scale=deviation, size=image.shape)


def _shot_noise(image, photons, rng):
    return rng.poisson(image * photons) / photons


def _impulse_noise(image, share, rng):
    hit, value = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
    return np.where(hit, value.astype(image.dtype), image)


def _defocus_blur(image, radius, rng):
    radius = _pixels_of(radius, image)
    x, y = _grid(radius)
    return _filtered(image, np.clip(radius + 0.5 - np.hypot(x, y), 0, 1))


def _motion_blur(image, length, rng):
    return _smeared(image, _pixels_of(length, image), np.deg2rad(rng.uniform(-45, 45)))


def _smeared(image: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Average over a line of some pixels' length through each pixel."""
    x, y = _grid(length / 2)
    along = x * np.cos(angle) + y * np.sin(angle)
    beside = y * np.cos(angle) - x * np.sin(angle)
    outside = np.maximum(np.abs(along) - length / 2, 0)
    return _filtered(image, np.clip(1 - np.hypot(outside, beside), 0, 1))


def _grid(reach: float) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(-int(np.ceil(reach)) - 1, int(np.ceil(reach)) + 2)
    return np.meshgrid(steps, steps)


def _filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    import cv2

    kernel = kernel / kernel.sum()
    filtered = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return filtered.reshape(image.shape)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, (sigma, sigma) + (0,) * (image.ndim - 2), mode="nearest")


def _glass_blur(image, reach, rng):
    reach = _pixels_of(reach, image)
    shifts = rng.uniform(-reach, reach, size=(2, *image.shape[:2]))
    softness = _pixels_of(1.5, image)
    return _blurred(_moved(_blurred(image, softness), shifts), softness)


def _elastic_transform(image, distance, rng):
    shifts = np.stack([_smooth_noise(image, 10, rng) for _ in range(2)])
    length = np.sqrt(np.square(shifts).sum(axis=0).mean())
    return _moved(image, shifts * _pixels_of(distance, image) / max(length, 1e-12))


def _smooth_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return blurred noise (height, width), everywhere of the same strength: it wraps around."""
    from scipy.ndimage import gaussian_filter

    noise = rng.normal(size=image.shape[:2])
    return gaussian_filter(noise, _pixels_of(sigma, image), mode="wrap")


def _moved(image: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Fetch each pixel from elsewhere: ``shifts`` (2, height, width), in pixels down and right."""
    import cv2

    y, x = (np.indices(image.shape[:2]) + shifts).astype(np.float32)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _zoom_blur(image, most, rng):
    centre = (np.array(image.shape[:2]) - 1) / 2
    places = np.indices(image.shape[:2]) - centre[:, None, None]
    zooms = np.linspace(1, 1 + most, 12)
    return np.mean([_moved(image, places * (1 / zoom - 1)) for zoom in zooms], axis=0)


def _snow(image, strength, rng):
    share, fading = strength
    grains = _smooth_noise(image, 2.5, rng)
    angle = np.deg2rad(rng.uniform(45, 135))
    flakes = (grains > np.quantile(grains, 1 - share)).astype(np.float64)
    flakes = _smeared(flakes[..., None], _pixels_of(8, image), angle)
    pale = (1 - fading) * image + fading * np.maximum(image, image.mean(axis=2, keepdims=True))
    return pale + 0.15 * fading * (1 - pale) + 0.9 * flakes


def _frost(image, cover, rng):
    ridges = 1 - np.abs(2 * _cloud(image.shape[:2], 1.2, rng) - 1)
    weight = cover * (0.3 + 0.7 * ridges**2)[..., None]
    shade = 0.55 + 0.45 * _cloud(image.shape[:2], 0.6, rng)[..., None]
    return (1 - weight) * image + weight * _FROST * shade


def _fog(image, thickness, rng):
    haze = _cloud(image.shape[:2], 1.7, rng)[..., None]
    return (image + thickness * haze) / (1 + thickness)


def _cloud(shape: tuple[int, int], power: float, rng: np.random.Generator) -> np.ndarray:
    """Return a random field from 0 to 1 whose amplitudes fall with the frequency's power."""
    spectrum = np.fft.rfft2(rng.normal(size=shape))
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    field = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / max(shape)) ** power, s=shape)
    field -= field.min()
    return field / max(field.max(), 1e-12)


def _brightness(image, added, rng):
    # The largest of the three channels is raised, and the others with it: hue and saturation stay.
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + added, 1)
    return np.where(value > 0, image / np.maximum(value, 1e-12), 1) * raised


def _contrast(image, kept, rng):
    mean = image.mean(axis=(0, 1))
    return mean + kept * (image - mean)


def _pixelate(image, kept, rng):
    import cv2

    height, width = image.shape[:2]
    size = max(round(width * kept), 1), max(round(height * kept), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def _jpeg_compression(image, quality, rng):
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.round(255 * image).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream)) / 255


# What changes an image, and its strength at each severity. Radii, reaches and distances are in
# pixels of an image whose shorter side has 224.
_IMAGE = {
    "gaussian noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),  # standard deviation
    "shot noise": (_shot_noise, (60, 25, 12, 6, 3)),  # photons at full brightness
    "impulse noise": (_impulse_noise, (0.03, 0.06, 0.1, 0.17, 0.27)),  # share of the values
    "defocus blur": (_defocus_blur, (3, 4.5, 6, 8, 10.5)),  # radius
    "glass blur": (_glass_blur, (4, 6, 9, 13, 17)),  # reach
    "motion blur": (_motion_blur, (10, 15, 22, 30, 40)),  # length
    "zoom blur": (_zoom_blur, (0.12, 0.18, 0.25, 0.33, 0.42)),  # the largest zoom, minus 1
    "snow": (_snow, ((0.04, 0.2), (0.08, 0.35), (0.13, 0.5), (0.2, 0.65), (0.3, 0.8))),
    "frost": (_frost, (0.3, 0.42, 0.54, 0.66, 0.78)),  # the most that it covers
    "fog": (_fog, (0.5, 0.8, 1.2, 1.8, 2.6)),  # thickness
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),  # added
    "contrast": (_contrast, (0.5, 0.35, 0.23, 0.14, 0.07)),  # what is kept of it
    "elastic transform": (_elastic_transform, (3, 5, 7.5, 10.5, 14)),  # distance
    "pixelate": (_pixelate, (0.6, 0.45, 0.33, 0.25, 0.18)),  # what is kept of each side
    "jpeg compression": (_jpeg_compression, (25, 18, 13, 9, 5)),  # Pillow's quality
}

IMAGE_CORRUPTIONS = tuple(_IMAGE)
"""The names of the 15 image corruptions: noise, blur, weather, and what digital cameras add."""


# --- Texts ---------------------------------------------------------------------------------------


def corrupt_texts(
    texts: Iterable[str],
    name: str,
    severity: int = 1,
    *,
    random_state: int | np.random.RandomState | None = None,
) -> list[str]:
    """Make texts worse in one of four ways.

    Parameters
    ----------
    texts : array-like of str, shape (n,) or (n, 1)
        The texts. A word is a run of letters and digits.
    name : str
        One of `TEXT_CORRUPTIONS`:

        - ``"typos"``: 20% of the words, at severity 1, to all of them, at 5, get one typo each,
          by :func:`cmlearn.robustness.add_typos`;
        - ``"word drop"``: each word is left out with a chance of 15% to 75%, together with the
          space before it; punctuation stays. One word always stays too: a text without any is a
          missing modality, which is another test;
        - ``"synonyms"``: 20% to 100% of the words give way to the nearest other word in GloVe
          among the 50,000 most frequent. Near means used in like company: for "cat" it is "dog".
          A word without a vector stays;
        - ``"truncation"``: the last 15% to 75% of the characters are cut off, never all.
    severity : int, default=1
        From 1, mild, to 5, strong.
    random_state : int, RandomState instance or None, default=None
        Decides the words and the typos. With the same number a word that is changed at one
        severity is changed at every higher one, and texts that come after it do not matter.

    Returns
    -------
    list of str
        The corrupted texts, in order.

    Raises
    ------
    TextError
        If a row is missing, not a string, or without any word, so that there is nothing to
        corrupt. The message names the row.
    ValueError
        If there is no such corruption or severity.

    Examples
    --------
    >>> corrupt_texts(["red apple", "slice of pizza"], "truncation", 4)
    ['red', 'slice']
    >>> corrupt_texts(["black cat"], "synonyms", 5)
    ['white dog']
    """
    change, rate = _look_up(_TEXT, "text corruption", name, severity)
    random = check_random_state(random_state)
    corrupted = []
    for row, text in enumerate(_as_texts(texts)):
        words = list(_WORD.finditer(text))
        if not words:
            raise TextError(
                f"row {row}: there is nothing to corrupt in {text!r}, which holds no word; leave "
                "the row out"
            )
        corrupted.append(change(text, words, rate, random.randint(2**31 - 1)))
    return corrupted


_WORD = re.compile(r"[^\W_]+")


def _typos(text, words, rate, seed):
    return _replaced(text, words, rate, seed, _misspelt)


def _synonyms(text, words, rate, seed):
    return _replaced(text, words, rate, seed, lambda word, seed: _nearest_word(word))


def _misspelt(word: str, seed: int) -> str:
    return add_typos([word], random_state=seed)[0]


def _replaced(text: str, words: list[re.Match], rate: float, seed: int, change: Callable) -> str:
    rng = np.random.default_rng(seed)
    draws, seeds = rng.random(len(words)), rng.integers(2**31 - 1, size=len(words))
    pieces, end = [], 0
    for word, draw, word_seed in zip(words, draws, seeds.tolist(), strict=True):
        pieces += [text[end : word.start()], change(word[0], word_seed) if draw < rate else word[0]]
        end = word.end()
    return "".join(pieces) + text[end:]


@cache
def _nearest_word(word: str) -> str:
    """Return the nearest frequent word in GloVe, or the word itself where it has no vector."""
    glove = load_word_vectors()
    if word.lower() not in glove:
        return word
    vector = glove[word.lower()]
    similarity = _frequent() @ vector / np.linalg.norm(vector)
    row = glove.index([word.lower()])[0]
    if row < len(similarity):
        similarity[row] = -np.inf
    return glove.words[int(similarity.argmax())].as_py()


@lru_cache
def _frequent() -> np.ndarray:
    vectors = np.array(load_word_vectors().vectors[:50_000])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _word_drop(text, words, rate, seed):
    draws = np.random.default_rng(seed).random(len(words))
    # The word with the highest draw goes last of all, so it is the one that stays.
    dropped = draws < min(rate, draws.max())
    pieces, end = [], 0
    for word in itertools.compress(words, dropped):
        pieces.append(text[end : word.start()].rstrip())
        end = word.end()
    return ("".join(pieces) + text[end:]).lstrip()


def _truncation(text, words, rate, seed):
    return text[: max(round(len(text) * (1 - rate)), words[0].start() + 1)].rstrip()


_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
_LOSSES = (0.15, 0.3, 0.45, 0.6, 0.75)
_TEXT = {
    "typos": (_typos, _SHARES),
    "word drop": (_word_drop, _LOSSES),
    "synonyms": (_synonyms, _SHARES),
    "truncation": (_truncation, _LOSSES),
}

TEXT_CORRUPTIONS = tuple(_TEXT)
"""The names of the text corruptions."""
