"""Image-text pairs: emoji and their names, drawn scenes and their captions, a folder of yours.

Every loader returns a `sklearn.utils.Bunch` whose ``data`` is a DataFrame with the
columns ``image`` (a path, or a `Scene` that is drawn when asked for) and ``text``.
Images stay on disk until something needs their pixels.
"""

import csv
import hashlib
import io
import itertools
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from sklearn.utils import Bunch

from cmlearn.assets import ASSETS, fetch
from cmlearn.runtime import cache_dir, replace_when_whole

_SHOWN = 5  # problems that one message lists


class DatasetError(ValueError):
    """A data set cannot be used as it is; the message names the place and the way out."""


def _bunch(images, texts, target, target_names, groups, descr, return_X_y, **extra):
    import pandas

    # Column type "object": pandas would turn a missing (None) string into NaN.
    columns = {"image": list(images), "text": list(texts)}
    data = pandas.DataFrame({k: pandas.Series(v, dtype=object) for k, v in columns.items()})
    target = np.asarray(target, dtype=np.int64)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        target_names=list(target_names),
        groups=np.asarray(groups),
        DESCR=descr,
        **extra,
    )


# --------------------------------------------------------------------------------------
# Emoji
# --------------------------------------------------------------------------------------

_EMOJI_CATEGORIES = [
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
]

_EMOJI_DESCR = """\
Emoji: small pictures and their names
=====================================

Each row pairs the picture of an emoji with its short name in one language, as the
Unicode Consortium's locale data (CLDR) gives it: the picture of a slice of pizza with
the text "pizza". The task is to tell the category that Unicode files the emoji under.

* Pairs: {pairs}, in {n_groups} groups
* Pictures: {style} ({art}), 72 x 72 pixels with transparent background
* Names: {language}
* Skin tones: {tones}

{table}

Left out are national and other flags (their names are places, their pictures patterns:
the two share little that can be learnt) and the five components that only exist to be
combined with others.

Groups
------
Many emoji are versions of one another: a woman technologist, a man technologist and a
technologist of neither gender differ by a hair line and share half their name, and a
skin tone changes only a colour. If one of them is in the training set and another in the
test set, the test measures memory. ``groups`` therefore gives every emoji the code point
of its base, to be passed to ``StratifiedGroupKFold`` and its kin. The base is found so:

1. skin tones, hair styles, the presentation selector, gender signs and the sign for
   "facing right" are taken off;
2. in a sequence of joined emoji that starts with a man, a woman or a person, the
   starting figure is replaced by "person": what it is joined with (laptop, rocket,
   wheelchair) says which role it is, and stays;
3. two or more people joined are one of four bases: holding hands, kiss, couple with
   heart, or family with whatever number of parents and children;
4. in any other sequence the first emoji is the base: a polar bear (bear and
   snowflake) belongs to the bear, a black cat to the cat;
5. figures that Unicode gave separate code points for each gender (prince and princess,
   old man and old woman, Santa and Mrs Claus) share one base.

What remains are series of different emoji that look alike, such as the 24 clock faces,
the keycaps and the signs of the zodiac. They are different signs with different names and
keep their own groups; that makes a little of what a classifier scores on them easy.

Beware: a name may hold a word that gives its category away ("face" is nearly always
Smileys & Emotion). That is part of the task here, and a leak in others.

Licences
--------
* Pictures: {art_licence}. {art_origin}.
* Names: {names_licence}. {names_origin}.
* Categories: {data_licence}. {data_origin}.

Whoever shows the pictures must name their makers; OpenMoji's must be passed on under the
same licence.
"""


def load_emoji(*, style="twemoji", language="en", skin_tones=False, return_X_y=False):
    """Load emoji: pictures, names, and the category of each.

    About 1,600 pairs in eight categories. The data arrives through `cmlearn.assets`.

    Parameters
    ----------
    style : {"twemoji", "openmoji"}, default="twemoji"
        Who drew the pictures. OpenMoji's drawings are turned into 72-pixel PNG once,
        which takes some seconds, and kept in the cache folder.
    language : str, default="en"
        Of the names: ``ar de en es fa fr id it ja ko pt ru tr zh``.
    skin_tones : bool, default=False
        Whether to add every emoji that differs from another in skin tone only. They
        more than double the data and are near-duplicates: split by ``groups``.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` : DataFrame of shape (n, 2), columns ``image`` (str, path of a PNG) and
        ``text`` (str). ``target`` : int64 array of shape (n,). ``target_names`` : list
        of 8 str. ``groups`` : str array of shape (n,), the base emoji in hexadecimal;
        ``DESCR`` says how it is chosen. ``emoji`` : str array of shape (n,), the
        characters. ``DESCR`` : str.

    Raises
    ------
    ValueError
        When `style` or `language` is not one of those above.
    cmlearn.assets.AssetError
        When the data is neither installed nor can be fetched.

    Examples
    --------
    >>> emoji = load_emoji()
    >>> int((emoji.data["text"] == "pizza").sum())
    1
    """
    names = _emoji_names(language)
    rows = _emoji_rows(skin_tones)
    codes = [code for code, _, _ in rows]
    images = _emoji_images(style, codes, skin_tones)
    texts = [_plain_name(names, code) for code in codes]
    target = [_EMOJI_CATEGORIES.index(category) for _, category, _ in rows]
    groups = [base for _, _, base in rows]
    descr = _emoji_descr(style, language, skin_tones, target, groups)
    emoji = np.array([_characters(code) for code in codes])
    return _bunch(images, texts, target, _EMOJI_CATEGORIES, groups, descr, return_X_y, emoji=emoji)


def _emoji_names(language: str) -> dict[str, str]:
    folder = fetch("emoji-names")
    known = {path.stem.removeprefix("emoji_") for path in folder.glob("emoji_*.json")}
    if language == "en":
        entries = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
        return {emoji: entry["en"] for emoji, entry in entries.items()}
    if language not in known:
        choices = ", ".join(sorted(known | {"en"}))
        raise ValueError(f"no emoji names in language {language!r}: choose one of {choices}")
    return json.loads((folder / f"emoji_{language}.json").read_text(encoding="utf-8"))


def _plain_name(names: dict[str, str], code: str) -> str:
    characters = _characters(code)
    # Some entries are listed without the presentation selector U+FE0F.
    name = names.get(characters) or names[characters.replace("\ufe0f", "")]
    return name.strip(":").replace("_", " ")


def _emoji_rows(skin_tones: bool) -> list[tuple[str, str, str]]:
    """Return code points such as "1F469-200D-1F4BB", category and base of each emoji."""
    entries = json.loads((fetch("emoji-data") / "emoji.json").read_text(encoding="utf-8"))
    rows = []
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        if entry["category"] in _EMOJI_CATEGORIES:
            codes = [entry["unified"]]
            if skin_tones:
                codes += [tone["unified"] for tone in entry.get("skin_variations", {}).values()]
            base = _base_emoji(entry["unified"])
            rows += [(code, entry["category"], base) for code in codes]
    return rows


def _characters(code: str) -> str:
    return "".join(chr(int(point, 16)) for point in code.split("-"))


_ADULTS = {"1F468", "1F469", "1F9D1"}  # man, woman, person
_CHILDREN = {"1F466", "1F467", "1F9D2"}  # boy, girl, child
_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_HAIR = {"1F9B0", "1F9B1", "1F9B2", "1F9B3"}  # red, curly, bald, white
_SIGNS = {"2640", "2642", "27A1"}  # woman, man, facing right
_TOGETHER = {"1F48B": "1F48F", "2764": "1F491", "1F91D": "1F46B"}  # kiss, heart, hands
_FAMILY = "1F46A"
_GENDERED = {  # one base for figures with a code point for each gender
    **dict.fromkeys(_ADULTS, "1F9D1"),
    **dict.fromkeys(_CHILDREN, "1F9D2"),
    **dict.fromkeys(["1F474", "1F475"], "1F9D3"),  # old man, old woman: older person
    **dict.fromkeys(["1F934", "1F478"], "1FAC5"),  # prince, princess: person with crown
    **dict.fromkeys(["1F385", "1F936"], "1F9D1-1F384"),  # Santa, Mrs Claus: Mx Claus
    **dict.fromkeys(["1F930", "1FAC3"], "1FAC4"),  # pregnant woman, man: person
    **dict.fromkeys(["1F46C", "1F46D"], "1F46B"),  # two men, two women: holding hands
    "1F57A": "1F483",  # man dancing: woman dancing
}


def _base_emoji(code: str) -> str:
    """Return the code of the emoji that `code` is a version of.

    >>> _base_emoji("1F469-1F3FD-200D-1F4BB")  # woman technologist, medium skin tone
    '1F9D1-1F4BB'
    >>> _base_emoji("1F3C3-200D-2640-FE0F")  # woman running
    '1F3C3'
    >>> _base_emoji("1F468-200D-1F469-200D-1F467")  # man, woman, girl
    '1F46A'
    """
    plain = [point for point in code.split("-") if point not in _TONES | {"FE0F"}]
    parts = "-".join(plain).split("-200D-")
    first, others = parts[0], [p for p in parts[1:] if p not in _SIGNS | _HAIR]
    if first not in _ADULTS or not others:
        return _GENDERED.get(first, first)
    if _ADULTS.union(_CHILDREN).isdisjoint(others):
        return f"1F9D1-{others[0]}"
    # The kiss is spelt with a heart as well, so it is asked for first.
    return next((base for sign, base in _TOGETHER.items() if sign in others), _FAMILY)


def _emoji_images(style: str, codes: list[str], skin_tones: bool) -> list[str]:
    if style == "twemoji":
        return [str(path) for path in _twemoji_files(codes)]
    if style == "openmoji":
        folder = _drawn_openmoji(codes, skin_tones)
        return [str(folder / f"{code}.png") for code in codes]
    raise ValueError(f"no emoji in style {style!r}: choose 'twemoji' or 'openmoji'")


def _twemoji_files(codes: list[str]) -> list[Path]:
    folder = fetch("twemoji")
    there = {path.stem for path in folder.glob("*.png")}
    files = []
    for code in codes:
        stem = "-".join(f"{int(point, 16):x}" for point in code.split("-"))
        # Twemoji leaves U+FE0F out of most, not all, of its file names.
        files.append(folder / f"{stem if stem in there else stem.replace('-fe0f', '')}.png")
    return files


def _drawn_openmoji(codes: list[str], skin_tones: bool) -> Path:
    asset = ASSETS["openmoji"]
    size = 72  # pixels, as Twemoji's
    kind = "tones" if skin_tones else "base"
    folder = cache_dir() / f"openmoji-{asset.version}-{size}px-{kind}"
    if folder.exists():
        return folder
    import resvg_py

    drawings = {path.stem: path for path in fetch("openmoji").glob("*.svg")}
    with replace_when_whole(folder) as partial:
        partial.mkdir()
        for code in codes:
            # OpenMoji leaves U+FE0F out of some of its file names.
            drawing = drawings.get(code) or drawings[code.replace("-FE0F", "")]
            png = resvg_py.svg_to_bytes(
                svg_path=str(drawing), width=size, height=size, skip_system_fonts=True
            )
            (partial / f"{code}.png").write_bytes(png)
    return folder


def _emoji_descr(style, language, skin_tones, target, groups) -> str:
    art, names, data = ASSETS[style], ASSETS["emoji-names"], ASSETS["emoji-data"]
    return _EMOJI_DESCR.format(
        pairs=len(target),
        n_groups=len(set(groups)),
        style={"twemoji": "Twemoji", "openmoji": "OpenMoji"}[style],
        art=f"{art.package} {art.version}",
        language=language,
        tones="every one of them" if skin_tones else "left out",
        table=_count_table(target, _EMOJI_CATEGORIES, "category"),
        art_licence=art.licence,
        art_origin=art.origin,
        names_licence=names.licence,
        names_origin=names.origin,
        data_licence=data.licence,
        data_origin=data.origin,
    )


def _count_table(target: Iterable[int], names: list[str], title: str) -> str:
    counts = Counter(target)
    width = max(len(title), *(len(name) for name in names))
    rows = [(title, "pairs"), ("-" * width, "-----")]
    rows += [(name, f"{counts[index]:>5}") for index, name in enumerate(names)]
    return "\n".join(f"{name:<{width}}  {count}" for name, count in rows)


# --------------------------------------------------------------------------------------
# Scenes
# --------------------------------------------------------------------------------------

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


# --------------------------------------------------------------------------------------
# A folder of the reader's own
# --------------------------------------------------------------------------------------

_FOLDER_DESCR = """\
{name}
{underline}

Image-text pairs read from {place} ({layout}).

* Pairs: {pairs}, in {n_groups} groups

{table}
"""

_LAYOUTS = """\
  images/ with pictures such as 3_cat.jpg (the first number is the label) and texts.txt
          with one line a picture, in the natural order of the file names
  metadata.csv with the columns file_name, text and label, beside the pictures
  one CSV file with the columns image (or file_name), text and label
  one Parquet file with the same columns"""

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class _Row:
    place: str  # where it stands, for messages
    image: Path
    text: str
    label: str
    group: str | None = None


def load_folder(folder, *, encoding="utf-8", return_X_y=False):
    """Load image-text pairs from files on disk.

    The layout is recognised by what is there:

    1. ``images/`` and ``texts.txt``: the label is the first number in a picture's file
       name; line i of ``texts.txt`` belongs to the i-th picture in natural order, in
       which ``2_dog.png`` comes before ``10_cat.png``.
    2. ``metadata.csv`` with the columns ``file_name``, ``text`` and ``label``, beside
       the pictures or above their subfolders (the ImageFolder convention of Hugging
       Face). Without a ``label`` column the subfolder's name is the label.
    3. One CSV file, or a folder with one: columns ``image`` (or ``file_name``),
       ``text`` and ``label``.
    4. One Parquet file, or a folder with one: the same columns. A picture may be a
       path or, as in the data sets of Hugging Face, a record of ``bytes`` and
       ``path``; such bytes are written to the cache folder once.

    Paths are relative to the file that holds them. A column ``group`` says which rows
    are related and must not be split; without it, rows with the same picture are.
    Other columns and hidden files are ignored. Of each picture only the header is read.

    Parameters
    ----------
    folder : path-like
        The folder, CSV file or Parquet file.
    encoding : str, default="utf-8"
        Of ``texts.txt`` or the CSV file; a byte-order mark is dropped.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` : DataFrame of shape (n, 2), columns ``image`` (str, absolute path) and
        ``text`` (str). ``target`` : int64 array of shape (n,), indices into
        ``target_names`` : list of str, the labels in natural order. ``groups`` : str
        array of shape (n,). ``DESCR`` : str.

    Raises
    ------
    DatasetError
        When anything does not fit; the message names file, line and remedy.
    """
    place = Path(folder).expanduser()
    layout, read = _recognise(place)
    rows = read(encoding)
    if not rows:
        raise DatasetError(f"{place}: there is no image-text pair in it")
    _check_rows(place, rows)
    names = sorted({row.label for row in rows}, key=_natural)
    if len(names) == 1:
        raise DatasetError(
            f"{place}: every row has the label {names[0]!r}; a classifier needs at least two "
            f"classes. {_label_hint(layout)}"
        )
    index = {name: number for number, name in enumerate(names)}
    target = [index[row.label] for row in rows]
    groups = [row.group or str(row.image) for row in rows]
    descr = _FOLDER_DESCR.format(
        name=place.resolve().name,
        underline="=" * len(place.resolve().name),
        place=place,
        layout=layout,
        pairs=len(rows),
        n_groups=len(set(groups)),
        table=_count_table(target, names, "label"),
    )
    images, texts = [str(row.image) for row in rows], [row.text for row in rows]
    return _bunch(images, texts, target, names, groups, descr, return_X_y)


def _label_hint(layout: str) -> str:
    if layout == "images and texts.txt":
        return "The label is the first number in a picture's file name, 3 in 3_cat.jpg."
    return "Look at the column 'label', or at the subfolders that stand in for it."


def _recognise(place: Path):
    if place.is_file():
        return _recognise_file(place)
    if not place.is_dir():
        raise DatasetError(f"{place}: there is no such file or folder")
    article = [name for name in ("images", "texts.txt") if (place / name).exists()]
    listed = (place / "metadata.csv").exists()
    if len(article) == 2 and listed:
        raise DatasetError(
            f"{place} holds both texts.txt and metadata.csv: keep the one that is meant"
        )
    if listed:
        return "metadata.csv", lambda encoding: _read_image_folder(place, encoding)
    if len(article) == 2:
        return "images and texts.txt", lambda encoding: _read_article(place, encoding)
    tables = [path for path in _visible(place) if path.suffix.lower() in (".csv", ".parquet")]
    if len(tables) == 1:
        return _recognise_file(tables[0])
    if article:
        missing = ({"images", "texts.txt"} - set(article)).pop()
        raise DatasetError(f"{place} holds {article[0]} but no {missing}: both are needed")
    found = ", ".join(path.name for path in tables) or "none of them"
    raise DatasetError(f"{place}: expected one of\n{_LAYOUTS}\nfound: {found}")


def _recognise_file(path: Path):
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "CSV", lambda encoding: _read_csv(path, encoding)
    if suffix == ".parquet":
        return "Parquet", lambda encoding: _read_parquet(path)
    raise DatasetError(f"{path}: expected a folder, a .csv file or a .parquet file")


def _visible(folder: Path) -> list[Path]:
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")),
        key=lambda path: _natural(path.name),
    )


def _natural(name: str) -> list[str | int]:
    """Return a sort key in which numbers count as numbers: a2 before a10."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", name))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


# The article's layout: images/ and texts.txt


def _read_article(folder: Path, encoding: str) -> list[_Row]:
    pictures, texts = _pictures_and_lines(folder, encoding)
    labels = [_number_in_name(path) for path in pictures]
    return [
        _Row(f"texts.txt, line {line} ({path.name})", path.absolute(), text.strip(), label)
        for line, (path, text, label) in enumerate(
            zip(pictures, texts, labels, strict=True), start=1
        )
    ]


def _pictures_and_lines(folder: Path, encoding: str) -> tuple[list[Path], list[str]]:
    """Return the files of ``images/`` in natural order, and the line of each in texts.txt."""
    pictures = sorted(_visible(folder / "images"), key=lambda path: _natural(path.stem))
    _refuse_ties(pictures)
    texts = _lines(folder / "texts.txt", encoding)
    _match_lengths(folder, pictures, texts)
    return pictures, texts


def _refuse_ties(pictures: list[Path]) -> None:
    for first, second in zip(pictures, pictures[1:], strict=False):
        if _natural(first.stem) == _natural(second.stem):
            raise DatasetError(
                f"{first} and {second.name} claim the same line of texts.txt: their names have "
                "the same place in natural order; rename or remove one"
            )


def _number_in_name(path: Path) -> str:
    number = re.search(r"\d+", path.stem)
    if number is None:
        raise DatasetError(
            f"{path}: the file name holds no number to be its label; name it like 3_cat.jpg, "
            "or take it out of the folder"
        )
    return str(int(number.group()))


def _match_lengths(folder: Path, pictures: list[Path], texts: list[str]) -> None:
    if len(pictures) == len(texts):
        return
    counts = f"{folder}: images/ holds {len(pictures)} files and texts.txt {len(texts)} lines"
    if len(pictures) > len(texts):
        extra = f"the first picture without a line is {pictures[len(texts)].name}"
    elif not any(line.strip() for line in texts[len(pictures) :]):
        extra = f"the lines after line {len(pictures)} are empty: delete them"
    else:
        extra = f"the first line without a picture is line {len(pictures) + 1}"
    raise DatasetError(
        f"{counts}; {extra}. Line i belongs to the i-th picture in natural order of the names."
    )


def _read_text(path: Path, encoding: str) -> str:
    content = path.read_bytes()
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
        raise DatasetError(f"encoding={encoding!r} is not one that Python knows") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not valid {encoding}; save "
            "the file as UTF-8, or name its encoding, for instance encoding='gb18030' or 'cp1252'"
        ) from error


def _lines(path: Path, encoding: str) -> list[str]:
    lines = _read_text(path, encoding).split("\n")  # splitlines() would break at U+2028 too
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


# CSV files


def _read_csv(path: Path, encoding: str) -> list[_Row]:
    header, records = _records(path, encoding)
    columns = _columns(path, header, needs_label=True)
    return [_row(path.parent, place, record, columns) for place, record in records]


def _read_image_folder(folder: Path, encoding: str) -> list[_Row]:
    path = folder / "metadata.csv"
    header, records = _records(path, encoding)
    columns = _columns(path, header, needs_label=False)
    rows = [_row(folder, place, record, columns) for place, record in records]
    _refuse_unlisted(folder, rows)
    return rows


def _records(path: Path, encoding: str) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """Return the header and, for each row, where it stands and its cells by column."""
    reader = csv.reader(io.StringIO(_read_text(path, encoding), newline=""), strict=True)
    with _naming_line(path, reader):
        header = [cell.strip() for cell in next(reader, [])]
    return header, _rows_below(path, header, reader)


def _rows_below(path: Path, header: list[str], reader) -> Iterator[tuple[str, dict[str, str]]]:
    with _naming_line(path, reader):
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise DatasetError(
                    f"{place}: {len(cells)} cells where the header has {len(header)}; put "
                    'a text that holds a comma into double quotes: "like, this"'
                )
            if cells:
                yield place, dict(zip(header, cells, strict=True))


@contextmanager
def _naming_line(path: Path, reader) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def _columns(path: Path, header: Iterable[str], *, needs_label: bool) -> dict[str, str]:
    """Return which column holds what: image, text and, where they are, label and group."""
    header = list(header)
    doubled = [name for name, count in Counter(header).items() if count > 1]
    images = [name for name in ("image", "file_name") if name in header]
    missing = [name for name in ("text", "label") if name not in header]
    if not needs_label and "label" in missing:
        missing.remove("label")
    if len(images) != 1:
        missing.insert(0, "image (or file_name)" if not images else "one of image and file_name")
    if missing or doubled:
        problem = f"it lacks {', '.join(missing)}" if missing else f"{doubled[0]!r} comes twice"
        raise DatasetError(
            f"{path}: {problem}; its columns are {', '.join(map(repr, header)) or 'none'}. "
            "Name them image (or file_name), text and label in the first line, separated by commas"
        )
    return {"image": images[0]} | {n: n for n in ("text", "label", "group") if n in header}


def _row(root: Path, place: str, record: dict, columns: dict[str, str]) -> _Row:
    cells = {role: _cell(place, name, record[name]) for role, name in columns.items()}
    image = _inside(root, place, cells["image"])
    label = cells["label"] if "label" in cells else _subfolder(place, root, image)
    return _Row(place, image, cells["text"], label, cells.get("group"))


def _cell(place: str, column: str, value: object) -> str:
    missing = value is None or value != value  # NaN is the one value unlike itself
    if isinstance(value, float) and not missing and value.is_integer():
        value = int(value)  # pandas turns whole numbers into floats beside a missing one
    text = "" if missing else str(value).strip()
    if text in ("", "nan", "NaN"):
        raise DatasetError(
            f"{place}: the cell in column {column!r} is empty or NaN; fill it in or delete the row"
        )
    return text


def _inside(root: Path, place: str, name: str) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise DatasetError(
            f"{place}: the path {name!r} leaves the folder {root}; give a path relative to that "
            "folder, without '..'"
        )
    return root.absolute() / name


def _subfolder(place: str, root: Path, image: Path) -> str:
    if image.parent == root.absolute():
        raise DatasetError(
            f"{place}: there is no column 'label', and {image.name} is in no subfolder whose "
            "name could be it; add the column or sort the pictures into subfolders"
        )
    return image.parent.name


def _refuse_unlisted(folder: Path, rows: list[_Row]) -> None:
    listed = {row.image for row in rows}
    pictures = (p for p in folder.absolute().rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES)
    hidden = {p for p in pictures if not any(q.startswith(".") for q in _below(folder, p))}
    extra = sorted(str(path.relative_to(folder.absolute())) for path in hidden - listed)
    if extra:
        raise DatasetError(
            f"{folder}: metadata.csv does not list {_some(extra)}; add a row for each, or take "
            "them out of the folder"
        )


def _below(folder: Path, path: Path) -> tuple[str, ...]:
    return path.relative_to(folder.absolute()).parts


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


# Parquet files


def _read_parquet(path: Path) -> list[_Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = _columns(path, table.schema_arrow.names, needs_label=True)
            embedded = pyarrow.types.is_struct(table.schema_arrow.field(columns["image"]).type)
            folder = _extracted(path, table, columns["image"]) if embedded else path.parent
            return list(_parquet_rows(path, table, columns, folder, embedded))
    except pyarrow.ArrowInvalid as error:
        raise DatasetError(f"{path}: not a Parquet file that can be read ({error})") from error


def _parquet_rows(path, table, columns, folder, embedded) -> Iterator[_Row]:
    rest = {role: name for role, name in columns.items() if role != "image" or not embedded}
    for number, record in _parquet_records(table, list(rest.values())):
        place = f"{path}, row {number}"
        if embedded:
            record[columns["image"]] = _embedded_name(number)
        yield _row(folder, place, record, columns)


def _parquet_records(table, names: list[str]) -> Iterator[tuple[int, dict]]:
    number = 0
    for batch in table.iter_batches(batch_size=256, columns=names):
        for record in batch.to_pylist():
            number += 1
            yield number, record


def _embedded_name(number: int) -> str:
    return f"{number:08d}.image"  # Pillow tells the format by the content


def _extracted(path: Path, table, column: str) -> Path:
    """Return the cache folder with the pictures that the Parquet file holds as bytes."""
    with open(path, "rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    folder = cache_dir() / "parquet" / digest[:32]
    if folder.exists():
        return folder
    with replace_when_whole(folder) as partial:
        partial.mkdir()
        for number, record in _parquet_records(table, [column]):
            content = _embedded_bytes(path, number, record[column])
            (partial / _embedded_name(number)).write_bytes(content)
    return folder


def _embedded_bytes(path: Path, number: int, record: dict | None) -> bytes:
    place = f"{path}, row {number}"
    if record and record.get("bytes"):
        return record["bytes"]
    if record and record.get("path"):
        file = _inside(path.parent, place, record["path"])
        try:
            return file.read_bytes()
        except OSError as error:
            raise DatasetError(f"{place}: cannot read {file} ({error.strerror})") from error
    raise DatasetError(f"{place}: the picture has neither bytes nor a path; delete the row")


# Pairs without labels, a chunk at a time


def iter_pairs(place, *, encoding="utf-8", chunk_size=256):
    """Read pairs that need no label, a chunk at a time, so that memory does not grow with them.

    Parameters
    ----------
    place : path-like
        A CSV or Parquet file with a column ``image`` (or ``file_name``) and, where there are
        texts, a column ``text``; a folder with ``images/`` and ``texts.txt``; a folder with
        ``metadata.csv``; or any other folder, of which every picture is taken, also those in
        subfolders, in natural order.
    encoding : str, default="utf-8"
        Of ``texts.txt`` or the CSV file.
    chunk_size : int, default=256
        Rows of a chunk.

    Yields
    ------
    table : DataFrame of shape (chunk_size, n_columns)
        The rows as they stand in the file; of a folder, ``file_name`` (relative to it). Those of
        a Parquet file keep their Arrow types.
    pairs : DataFrame of shape (chunk_size, 1 or 2)
        ``image`` (str, absolute path; or bytes, if a Parquet file holds the pictures themselves)
        and, where there are texts, ``text`` (str). The index of both says where a row stands.

    Raises
    ------
    DatasetError
        When a row does not fit; the message names it and the remedy.
    """
    place = Path(place).expanduser()
    root, tables = _tables(place, encoding, chunk_size)
    empty = True
    for table in tables:
        empty = False
        yield table, _pairs(place, root, table)
    if empty:
        raise DatasetError(f"{place}: there is no picture in it, or no row below the header")


def _tables(place: Path, encoding: str, chunk_size: int):
    """Return the folder that paths are relative to, and the chunks, indexed by their places."""
    if place.is_dir() and (place / "metadata.csv").exists():
        place = place / "metadata.csv"
    if place.is_dir():
        return place, _folder_tables(place, encoding, chunk_size)
    if not place.exists():
        raise DatasetError(f"{place}: there is no such file or folder")
    if place.suffix.lower() == ".csv":
        return place.parent, _csv_tables(place, encoding, chunk_size)
    if place.suffix.lower() == ".parquet":
        return place.parent, _parquet_tables(place, chunk_size)
    raise DatasetError(f"{place}: expected a folder, a .csv file or a .parquet file")


def _folder_tables(folder: Path, encoding: str, chunk_size: int):
    if (folder / "texts.txt").exists() and (folder / "images").is_dir():
        pictures, texts = _pictures_and_lines(folder, encoding)
        columns = {"file_name": pictures, "text": texts}
    else:
        found = (path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
        visible = (
            p for p in found if not any(q.startswith(".") for q in p.relative_to(folder).parts)
        )
        columns = {"file_name": sorted(visible, key=lambda path: _natural(str(path)))}
    columns["file_name"] = [str(path.relative_to(folder)) for path in columns["file_name"]]
    records = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return _chunks(((r["file_name"], r) for r in records), list(columns), chunk_size)


def _csv_tables(path: Path, encoding: str, chunk_size: int):
    header, records = _records(path, encoding)
    _image_column(path, header)
    return _chunks(records, header, chunk_size)


def _chunks(records: Iterable[tuple[str, dict]], columns: list[str], chunk_size: int):
    import pandas as pd

    records = iter(records)
    while chunk := list(itertools.islice(records, chunk_size)):
        places, rows = zip(*chunk, strict=True)
        yield pd.DataFrame(list(rows), index=list(places), columns=columns)


def _parquet_tables(path: Path, chunk_size: int):
    import pandas as pd
    import pyarrow
    import pyarrow.parquet

    first = 1
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _image_column(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=chunk_size):
                # Arrow's types, because a chunk without missing cells would get others from pandas.
                table = batch.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
                table.index = [f"{path}, row {first + n}" for n in range(len(table))]
                first += len(table)
                yield table
    except pyarrow.ArrowInvalid as error:
        raise DatasetError(f"{path}: not a Parquet file that can be read ({error})") from error


def _image_column(place: Path, header: Iterable[str]) -> str:
    doubled = [name for name, count in Counter(header).items() if count > 1]
    if doubled:
        raise DatasetError(f"{place}: the column {doubled[0]!r} comes twice; rename one")
    columns = [name for name in ("image", "file_name") if name in header]
    if len(columns) != 1:
        raise DatasetError(
            f"{place}: expected one column image or file_name; its columns are "
            f"{', '.join(map(repr, header)) or 'none'}"
        )
    return columns[0]


def _pairs(place: Path, root: Path, table):
    import pandas as pd

    images = table[_image_column(place, table.columns)].items()
    cells = {"image": [_picture(root, row, value) for row, value in images]}
    if "text" in table:
        cells["text"] = [_said(row, value) for row, value in table["text"].items()]
    return pd.DataFrame(cells, index=table.index, dtype=object)


def _picture(root: Path, place: str, value: object) -> str | bytes:
    if isinstance(value, dict) and value.get("bytes"):
        return value["bytes"]
    name = value.get("path") if isinstance(value, dict) else value
    return str(_inside(root, place, _cell(place, "image", name if isinstance(name, str) else None)))


def _said(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"{place}: the text is {value!r}; write one, or delete the row")
    return value


# What holds for every layout


def _check_rows(place: Path, rows: list[_Row]) -> None:
    empty = [row.place for row in rows if not row.text.strip()]
    if empty:
        raise DatasetError(
            f"{place}: {len(empty)} empty text(s): {_some(empty)}; write a text for each, or "
            "remove the line and its picture"
        )
    labels: dict[Path, _Row] = {}
    for row in rows:
        first = labels.setdefault(row.image, row)
        if first.label != row.label:
            raise DatasetError(
                f"{row.place}: {row.image.name} has the label {row.label!r} here but "
                f"{first.label!r} at {first.place}; one picture can have one label"
            )
    bad = [f"{row.place}: {problem}" for row in labels.values() if (problem := _defect(row.image))]
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        listing = "\n  ".join(bad[:_SHOWN])
        raise DatasetError(
            f"{place}: {len(bad)} picture(s) cannot be used; replace each or remove its row:"
            f"\n  {listing}{more}"
        )


def _defect(path: Path) -> str | None:
    """Return what is wrong with a picture as far as its header tells, or None."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.stat().st_size == 0:
            return f"{path} is empty (0 bytes)"
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path):
                return None
    except FileNotFoundError:
        return f"{path} does not exist"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"{path} unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except UnidentifiedImageError:
        return f"{path} is not a picture of a known format, or is cut off in its header"
    except Exception as error:  # Pillow's readers raise whatever a broken header leads to
        return f"{path} cannot be read ({error})"
