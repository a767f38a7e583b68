"""Drawn scenes and their captions, with knobs for what each modality knows."""

import itertools
from dataclasses import dataclass

import numpy as np

from cmlearn.datasets._common import _bunch

_SEEN = {  # what a picture shows: the words for 0 and 1
    "colour": ("red", "blue"),
    "shape": ("circle", "square"),
    "size": ("small", "large"),
    "position": ("left", "right"),
    "background": ("light", "dark"),
    "count": ("one", "two"),
}
_UNSEEN = {  # what only words can say
    "weight": ("heavy", "weightless"),
    "warmth": ("warm", "cold"),
    "age": ("new", "old"),
    "price": ("cheap", "expensive"),
}
_VARIED = ("colour", "shape", "size", "position")  # vary even where no label asks for them

_SCENES_DESCR = """\
Scenes: drawn shapes and captions, with known information
=========================================================

Every picture shows one or two coloured shapes, every caption describes some of it. The
label is made of fair coin tosses ("bits"), each of which is carried in one of four ways:

{table}

* Pairs: {pairs}, {classes} classes
* Pictures: {size} x {size} pixels, drawn when asked for

Without noise, mismatch and missing rows, the mutual information with the label is exactly
{image} bit(s) for the picture, {text} for the caption and {both} for the two together. A
synergy bit is the XOR of what the picture shows and what the caption says: each alone is
a coin toss, and both together answer whether the caption fits the picture.

* image_noise {image_noise}: chance that one attribute of a picture is redrawn at random
* caption_noise {caption_noise}: the same for one word of a caption
* mismatch_rate {mismatch_rate}: chance that a row gets the caption of another row
* missing_rate {missing_rate}: chance that a row lacks its picture or its caption (None)

A redrawn attribute is wrong half of the time. The label never changes: noise touches what
is shown and said. The pictures and captions are made by cmlearn and free of rights.
"""


@dataclass(frozen=True)
class Scene:
    """A picture that is drawn when asked for: ``numpy.asarray(scene)``.

    Parameters
    ----------
    colour, shape, size, position, background, count : int
        0 or 1 each: red or blue, circle or square, small or large, left or right,
        light or dark, one or two.
    shift : tuple of float
        How far right and down the shapes lie from their place, in widths of the picture.
    pixels : int
        Width and height of the picture.

    Examples
    --------
    >>> picture = np.asarray(Scene(colour=1, pixels=32))
    >>> picture.shape, picture.dtype
    ((32, 32, 3), dtype('uint8'))
    """

    colour: int = 0
    shape: int = 0
    size: int = 0
    position: int = 0
    background: int = 0
    count: int = 0
    shift: tuple[float, float] = (0.0, 0.0)
    pixels: int = 64

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Draw the scene as a uint8 array of shape (pixels, pixels, 3), RGB."""
        if copy is False:
            raise ValueError("a scene is drawn anew each time: copy=False is not possible")
        place = (np.arange(self.pixels) + 0.5) / self.pixels
        radius = (0.11, 0.19)[self.size]
        across = np.abs(place[None, :] - (0.3, 0.7)[self.position] - self.shift[0])
        picture = np.full((self.pixels, self.pixels, 3), (235, 60)[self.background], np.uint8)
        for height in ((0.5,), (0.26, 0.74))[self.count]:
            down = np.abs(place[:, None] - height - self.shift[1])
            square = np.maximum(across, down) < radius * 0.886  # as large as the circle
            inside = square if self.shape else np.hypot(across, down) < radius
            picture[inside] = ((213, 44, 38), (38, 92, 213))[self.colour]
        return picture if dtype is None else picture.astype(dtype)


def load_scenes(
    n_samples=1000,
    *,
    redundant=1,
    unique_image=0,
    unique_text=0,
    synergy=0,
    image_noise=0.0,
    caption_noise=0.0,
    mismatch_rate=0.0,
    missing_rate=0.0,
    image_size=64,
    random_state=0,
    return_X_y=False,
):
    """Draw scenes with captions, where each modality knows a chosen part of the label.

    The label is a row of fair bits. The four counts say how many of them both
    modalities show, the picture alone, the caption alone, or only the two together
    (as an XOR); after Williams and Beer (2010), https://arxiv.org/abs/1004.2515.

    Parameters
    ----------
    n_samples : int, default=1000
        How many pairs.
    redundant, unique_image, unique_text, synergy : int
        Bits of the label of each kind: together at least 1, without `unique_text` at
        most 6, `unique_text` at most 4.
    image_noise, caption_noise : float, default=0.0
        Chance that one attribute in the picture, one word in the caption, is redrawn.
    mismatch_rate : float, default=0.0
        Chance that a row gets another row's caption.
    missing_rate : float, default=0.0
        Chance that a row lacks one modality (None): picture or caption, a coin toss.
    image_size : int, default=64
        Width and height in pixels, at least 16.
    random_state : int, numpy.random.Generator or None, default=0
        Where chance comes from. With the same int, rows are the same.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` : DataFrame of shape (n_samples, 2), columns ``image`` (`Scene`) and
        ``text`` (str). ``target`` : int64 array of shape (n_samples,). ``target_names``
        : list of str. ``groups`` : int array, one group a row. ``information`` : dict
        with the bits that ``image``, ``text`` and ``both`` know of the label where
        there is no noise. ``attributes`` : DataFrame, 0 or 1 for each attribute as
        the picture has it before noise. ``mismatched`` : bool array of shape
        (n_samples,). ``DESCR`` : str.

    Raises
    ------
    ValueError
        When a number is outside its range.

    Examples
    --------
    >>> scenes = load_scenes(10, redundant=0, synergy=1)
    >>> scenes.target_names
    ['colour fits', 'colour differs']
    >>> scenes.information
    {'image': 0, 'text': 0, 'both': 1}
    """
    import pandas

    bits = dict(
        synergy=synergy, redundant=redundant, unique_image=unique_image, unique_text=unique_text
    )
    rates = dict(
        image_noise=image_noise,
        caption_noise=caption_noise,
        mismatch_rate=mismatch_rate,
        missing_rate=missing_rate,
    )
    _check_scene_numbers(n_samples, image_size, bits, rates)
    rng = np.random.default_rng(random_state)
    plan = _plan_scenes(bits)
    shown = {name: _toss(rng, n_samples, name in (*_VARIED, *plan)) for name in _SEEN}
    # What the caption says: the same as the picture, but its own toss for an XOR.
    said = {
        name: shown[name] if kind == "redundant" else _toss(rng, n_samples, True)
        for name, kind in plan.items()
        if kind != "unique_image"
    }
    target = np.zeros(n_samples, np.int64)
    for name, kind in plan.items():
        target = 2 * target + _label_bit(kind, shown.get(name), said.get(name))
    attributes = pandas.DataFrame(shown)
    shown = {
        name: _redraw(rng, values, image_noise, name in plan) for name, values in shown.items()
    }
    said = {name: _redraw(rng, values, caption_noise, True) for name, values in said.items()}
    images = _scenes(rng, shown, n_samples, image_size)
    texts = _captions(rng, said, n_samples)
    mismatched = (rng.random(n_samples) < mismatch_rate) & (n_samples > 1)
    donors = (np.arange(n_samples) + rng.integers(1, max(n_samples, 2), n_samples)) % n_samples
    texts = [
        texts[donor] if wrong else text
        for text, donor, wrong in zip(texts, donors, mismatched, strict=True)
    ]
    missing, blind = rng.random(n_samples) < missing_rate, rng.random(n_samples) < 0.5
    images = [None if gone else image for image, gone in zip(images, missing & blind, strict=True)]
    texts = [None if gone else text for text, gone in zip(texts, missing & ~blind, strict=True)]
    information = {
        "image": redundant + unique_image,
        "text": redundant + unique_text,
        "both": sum(bits.values()),
    }
    names = _scene_names(plan)
    descr = _SCENES_DESCR.format(
        table="\n".join(f"* {name}: {kind.replace('_', ' ')}" for name, kind in plan.items()),
        pairs=n_samples,
        classes=len(names),
        size=image_size,
        **information,
        **rates,
    )
    return _bunch(
        images,
        texts,
        target,
        names,
        np.arange(n_samples),
        descr,
        return_X_y,
        information=information,
        attributes=attributes,
        mismatched=mismatched,
    )


def _check_scene_numbers(n_samples: int, image_size: int, bits: dict, rates: dict) -> None:
    if n_samples < 1 or image_size < 16:
        raise ValueError(
            f"n_samples={n_samples}, image_size={image_size}: need at least 1 sample and 16 pixels"
        )
    for name, value in bits.items():
        if not 0 <= value <= 6:
            raise ValueError(f"{name}={value}: it must be a number of bits from 0 to 6")
    for name, value in rates.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: it is a chance and must lie from 0 to 1")
    seen = sum(bits.values()) - bits["unique_text"]
    if seen > len(_SEEN) or bits["unique_text"] > len(_UNSEEN) or not any(bits.values()):
        raise ValueError(
            f"redundant + unique_image + synergy is {seen} and unique_text {bits['unique_text']}: "
            f"at most {len(_SEEN)} and {len(_UNSEEN)}, and together at least 1 bit"
        )


def _plan_scenes(bits: dict[str, int]) -> dict[str, str]:
    """Return which attribute carries which kind of bit, in the order of the label's bits."""
    seen, unseen = iter(_SEEN), iter(_UNSEEN)
    return {
        next(unseen if kind == "unique_text" else seen): kind
        for kind, count in bits.items()
        for _ in range(count)
    }


def _toss(rng: np.random.Generator, n_samples: int, varies: bool) -> np.ndarray:
    return rng.integers(0, 2, n_samples) if varies else np.zeros(n_samples, np.int64)


def _label_bit(kind: str, shown: np.ndarray | None, said: np.ndarray | None) -> np.ndarray:
    if kind == "synergy":
        return shown ^ said
    return said if kind == "unique_text" else shown


def _redraw(rng, values: np.ndarray, chance: float, carries: bool) -> np.ndarray:
    hit = rng.random(len(values)) < chance
    return np.where(hit & carries, rng.integers(0, 2, len(values)), values)


def _scenes(rng, shown: dict, n_samples: int, pixels: int) -> list[Scene]:
    shifts = rng.uniform(-0.04, 0.04, (n_samples, 2)).tolist()
    columns = [values.tolist() for values in shown.values()]
    return [
        Scene(**dict(zip(shown, values, strict=True)), shift=tuple(shift), pixels=pixels)
        for values, shift in zip(zip(*columns, strict=True), shifts, strict=True)
    ]


def _captions(rng, said: dict[str, np.ndarray], n_samples: int) -> list[str]:
    openings = rng.choice(["a picture of", "here is", "this shows", "you can see"], n_samples)
    words = _SEEN | _UNSEEN
    captions = []
    for row, opening in enumerate(openings):
        word = {name: words[name][values[row]] for name, values in said.items()}
        captions.append(f"{opening} {_phrase(word)}")
    return captions


def _phrase(word: dict[str, str]) -> str:
    order = ("size", *_UNSEEN, "colour")
    noun = word.get("shape", "thing") + ("s" if word.get("count") == "two" else "")
    things = [word[name] for name in order if name in word] + [noun]
    start = word.get("count") or ("an" if things[0][0] in "aeiou" else "a")
    phrase = " ".join([start, *things])
    if "position" in word:
        phrase += f" on the {word['position']}"
    if "background" in word:
        phrase += f" against a {word['background']} wall"
    return phrase


def _scene_names(plan: dict[str, str]) -> list[str]:
    words = _SEEN | _UNSEEN
    choices = [
        (f"{name} fits", f"{name} differs") if kind == "synergy" else words[name]
        for name, kind in plan.items()
    ]
    return [", ".join(choice) for choice in itertools.product(*choices)]
