"""The stamps of Tux Paint: photographs and drawings with a sentence about each."""

import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from cmlearn._cache import FeatureCache
from cmlearn.datasets._common import DatasetError, _bunch, _count_table, _some
from cmlearn.datasets._stamps_source import KEPT, find_stamps, release_of
from cmlearn.runtime import cache_dir, replace_when_whole

_DRAWN_SIZE = 320  # pixels of a drawing's longer side

# What the tested release holds that cannot be paired, so that nobody is warned of it every time.
_KNOWN_LEFT_OUT = {
    "household/arttools/pencil2",  # a drawing that refers to a file that is not there
    "seasonal/christmas/gift",  # captions whose pictures Debian left out
    "seasonal/christmas/gift2",
}

_DESCR = """\
Tux Paint stamps: pictures and a sentence about each
====================================================

Tux Paint is a drawing program for children; its stamps are photographs and drawings that
a child can print onto a picture, each with a short sentence that is shown and read out:
a photograph of a bird with "A blackbird.". Volunteers have translated the sentences into
some 60 languages. The task is to tell the folder that a stamp is filed under.

* Pairs: {pairs}, in {n_groups} groups
* Pictures: PNG as they come ({n_png}), and SVG drawings made into PNG ({n_svg}), their longer
  side {size} pixels; most have a transparent background
* Sentences: {language}
* Read from {place} ({release})

{table}

A folder at the top is a category when at least {min_pairs} of its stamps have a sentence in
the language; what lies in smaller ones is left out. So are copies of a stamp that an artist
mirrored by hand (their names end in ``_mirror`` or ``_flip``): they have no sentence of their
own. Could not be paired:

{left_out}

Groups
------
Many stamps are variants of one another: three views of one flower, the same letter outlined
and filled, a coin and the next coin. ``groups`` gives one name to stamps that are related by
any chain of these rules, to be passed to ``StratifiedGroupKFold`` and its kin:

1. the same sentence in English, apart from capitals and punctuation;
2. in the same category, the same file name apart from capitals and from a number, "left" or
   "right" at its end;
3. nearly the same picture: cut to what is not transparent and scaled to 16 x 16 cells, colours
   and opacity differ by less than {near} of the full range (root mean square), as it is or
   mirrored.

What remains are series of different things that look alike, such as the hands that spell the
letters in sign language, or ten gravestones. They have sentences of their own and keep their own
groups; that makes a part of what a classifier scores on them easy, most of all on "symbols".

Beware: a sentence may name its category outright ("The letter a." is one of the symbols). That
is part of the task here, and a leak in others.

Licence
-------
GNU General Public License, version 2: the Tux Paint stamps, copyright 2002-2022 by Bill
Kendrick and many contributors, whom CONTRIBUTORS.txt of https://tuxpaint.org names. Whoever
shows the pictures should name Tux Paint.
"""


def load_stamps(*, language="en", min_pairs=20, data_home=None, return_X_y=False):
    """Load Tux Paint stamps: photographs and drawings, a sentence, and the category of each.

    About 900 pairs in 11 categories. The stamps are looked for in this order, and only the last
    step needs a network, once:

    1. the folder ``tuxpaint-stamps`` below `data_home`;
    2. where a Linux package installs them, ``/usr/share/tuxpaint/stamps``;
    3. the cache folder;
    4. the Debian or Ubuntu package ``tuxpaint-stamps-default`` (161 MB), downloaded by
       ``apt-get``, checked against the SHA-256 in apt's signed list and unpacked into the cache
       folder; nothing is installed, and no rights of an administrator are needed. Where there is
       no apt, or it cannot get the package, Tux Paint's own archive of the same release (216 MB),
       checked against its SHA-256. A download that broke off goes on where it stopped.

    Parameters
    ----------
    language : str, default="en"
        Of the sentences, as Tux Paint names it: ``"de"``, ``"pt_BR"``, ``"zh_TW"``; ``"zh"`` is
        short for ``"zh_CN"``. Stamps without a sentence in that language are left out.
    min_pairs : int, default=20
        The least number of pairs that makes a folder a category.
    data_home : path-like, optional
        The folder of large data sets; ``CMLEARN_DATA`` by default.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` : DataFrame of shape (n, 2), columns ``image`` (str, path of a PNG) and
        ``text`` (str). ``target`` : int64 array of shape (n,). ``target_names`` : list of str.
        ``groups`` : str array of shape (n,), stamps that are variants of each other; ``DESCR``
        says how they are found. ``names`` : str array of shape (n,), such as
        ``"animals/birds/blackbird"``. ``left_out`` : list of str, the files that could not be
        paired, and why. ``fingerprint`` : str, SHA-256 over the names, sentences and pictures,
        which tells one release from another. ``DESCR`` : str.

    Raises
    ------
    ValueError
        When no stamp has a sentence in `language`, or `min_pairs` leaves fewer than two
        categories.
    cmlearn.assets.AssetError
        When the stamps are neither there nor can be downloaded.
    DatasetError
        When the folder holds no stamps, a sentence cannot be read, or the package holds links
        or names that lead out of its folder.
    OSError
        When there is not enough space; this is asked for before the download.

    Warns
    -----
    UserWarning
        When pictures lack a caption, captions a picture, or a drawing refers to another file,
        except for those that the tested release is known for. They are left out.
    """
    folder = find_stamps(data_home)
    stamps, left_out = _read_stamps(folder)
    _warn_of(left_out, folder)
    wanted = {"zh": "zh_CN"}.get(language, language)
    chosen = _in_language(stamps, wanted, folder)
    names = _categories(chosen, min_pairs)
    thumbnails = _thumbnails([stamp.image for stamp in stamps])
    related = dict(zip([s.name for s in stamps], _groups(stamps, thumbnails), strict=True))
    rows = [stamp for stamp in chosen if stamp.category in names]
    target = [names.index(stamp.category) for stamp in rows]
    groups = [related[stamp.name] for stamp in rows]
    n_svg = sum(stamp.is_drawn for stamp in rows)
    descr = _DESCR.format(
        pairs=len(rows),
        n_groups=len(set(groups)),
        n_png=len(rows) - n_svg,
        n_svg=n_svg,
        size=_DRAWN_SIZE,
        language=wanted,
        place=folder,
        release=release_of(folder),
        table=_count_table(target, names, "category"),
        min_pairs=min_pairs,
        near=f"{_NEAR:.0%}",
        left_out="\n".join(f"* {note}" for note in left_out) or "* none",
    )
    return _bunch(
        [str(stamp.image) for stamp in rows],
        [stamp.captions[wanted] for stamp in rows],
        target,
        names,
        groups,
        descr,
        return_X_y,
        names=np.array([stamp.name for stamp in rows]),
        left_out=left_out,
        fingerprint=_fingerprint(rows, wanted),
    )


# --- Reading a folder of stamps ------------------------------------------------------------------


class _Stamp(NamedTuple):
    name: str
    image: Path
    captions: dict[str, str]  # by language
    is_drawn: bool

    @property
    def category(self) -> str:
        return self.name.split("/")[0]


def _read_stamps(folder: Path) -> tuple[list[_Stamp], list[str]]:
    """Return the stamps of a folder in the order of their names, and what could not be paired."""
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in folder.rglob("*"):
        if path.suffix in KEPT and len(path.relative_to(folder).parts) > 1:
            files[path.relative_to(folder).with_suffix("").as_posix()][path.suffix] = path
    stamps, left_out = [], []
    for name, found in sorted(files.items()):
        problem = _unpaired(name, found)
        if problem is None:
            try:
                image = found.get(".png") or _drawn(found[".svg"])
            except DatasetError as error:
                problem = str(error).removeprefix(f"{found['.svg']}: ")
        if problem is None:
            stamps.append(_Stamp(name, image, _captions(found[".txt"]), ".png" not in found))
        elif problem:
            left_out.append(f"{name}: {problem}")
    if not stamps:
        raise DatasetError(
            f"{folder} holds no stamps: expected folders such as animals, with a picture and a "
            "text of the same name for each stamp (blackbird.png or .svg, and blackbird.txt)"
        )
    return stamps, left_out


def _unpaired(name: str, found: dict[str, Path]) -> str | None:
    """Return why files are no pair: None when they are, "" when there is nothing to report."""
    if len(found) > 1 and ".txt" in found:
        return None
    if ".txt" in found:
        return "a caption without a picture"
    # A mirror image that an artist has drawn, so that lettering on it can still be read.
    return "" if name.endswith(("_mirror", "_flip")) else "a picture without a caption"


def _warn_of(left_out: list[str], folder: Path) -> None:
    unknown = [note for note in left_out if note.split(": ")[0] not in _KNOWN_LEFT_OUT]
    if unknown:
        warnings.warn(
            f"{len(unknown)} stamps of {folder} are left out: {_some(unknown)}. All are listed "
            "in left_out of the Bunch; complete or remove the files to be rid of this warning.",
            stacklevel=3,
        )


def _captions(path: Path) -> dict[str, str]:
    """Return the captions of one stamp by language; English stands in the first line."""
    try:
        english, *others = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, ValueError) as error:
        raise DatasetError(
            f"{path}: not a caption in UTF-8 whose first line is English ({error}); correct it or "
            "remove the stamp"
        ) from error
    captions = {"en": english.strip()}
    for line in others:
        language, mark, caption = line.partition(".utf8=")
        if mark:
            captions[language.strip()] = caption.strip()
    return {language: caption for language, caption in captions.items() if caption}


def _in_language(stamps: list[_Stamp], language: str, folder: Path) -> list[_Stamp]:
    chosen = [stamp for stamp in stamps if language in stamp.captions]
    if not chosen:
        known = sorted({language for stamp in stamps for language in stamp.captions})
        raise ValueError(
            f"no stamp in {folder} has a caption in language {language!r}: choose one of "
            f"{', '.join(known)}"
        )
    return chosen


def _categories(stamps: list[_Stamp], min_pairs: int) -> list[str]:
    counts = Counter(stamp.category for stamp in stamps)
    names = sorted(name for name, count in counts.items() if count >= min_pairs)
    if len(names) < 2:
        raise ValueError(
            f"min_pairs is {min_pairs}, which leaves {len(names)} categories: a classifier needs "
            f"at least two. The pairs in each are {dict(counts.most_common())}"
        )
    return names


def _fingerprint(stamps: list[_Stamp], language: str) -> str:
    whole = hashlib.sha256()
    for stamp in stamps:
        content = hashlib.sha256(stamp.image.read_bytes()).hexdigest()
        whole.update(f"{stamp.name}\0{stamp.captions[language]}\0{content}\n".encode())
    return whole.hexdigest()


# --- Drawings ------------------------------------------------------------------------------------


def _drawn(path: Path) -> Path:
    """Return the PNG of an SVG, drawn once for each content and kept in the cache folder."""
    content = path.read_bytes()
    _refuse_outside(path, content)
    digest = hashlib.sha256(content).hexdigest()
    png = cache_dir() / "stamps-drawn" / f"{path.stem}-{digest[:16]}-{_DRAWN_SIZE}px.png"
    if not png.exists():
        with replace_when_whole(png) as partial:
            partial.write_bytes(_rasterize(path))
    return png


def _rasterize(path: Path) -> bytes:
    import io

    from PIL import Image

    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(
            "load_stamps needs the package resvg-py to draw SVG: run\n  pip install resvg-py"
        ) from error

    def draw(**size) -> bytes:
        # Without fonts: lettering would depend on those of the machine. Sizes in pt, mm or cm
        # need a resolution to be understood.
        return bytes(
            resvg_py.svg_to_bytes(svg_path=str(path), skip_system_fonts=True, dpi=96, **size)
        )

    try:
        with Image.open(io.BytesIO(draw(height=16))) as small:
            longer = "width" if small.width > small.height else "height"
        return draw(**{longer: _DRAWN_SIZE})
    except ValueError as error:
        raise DatasetError(f"{path}: the drawing cannot be drawn ({error})") from error


def _refuse_outside(path: Path, content: bytes) -> None:
    """Refuse a drawing that could make its renderer read another file or address."""
    outside = next(_references_outside(path, content), None)
    if outside is not None:
        raise DatasetError(
            f"{path}: the drawing refers to {outside[:80]!r}, outside itself, and is not drawn; "
            "embed what it needs or remove the stamp"
        )


def _references_outside(path: Path, content: bytes) -> Iterator[str]:
    text = content.decode("utf-8", "replace")
    yield from re.findall(r"<!ENTITY[^>]*\b(?:SYSTEM|PUBLIC)\b[^>]*>", text)
    yield from re.findall(r"<\?xml-stylesheet[^>]*>", text)
    try:
        elements = list(ElementTree.fromstring(content).iter())
    except ElementTree.ParseError as error:
        raise DatasetError(f"{path}: not a drawing in SVG ({error})") from error
    for element in elements:
        tag = str(element.tag).rpartition("}")[2]
        values = [*element.attrib.values(), element.text or "" if tag == "style" else ""]
        yield from (url for value in values for url in _style_urls(value) if _is_outside(url))
        for name, value in element.attrib.items():
            # A link leads the reader somewhere; nothing is loaded for it.
            if name.rpartition("}")[2] in ("href", "src") and tag != "a" and _is_outside(value):
                yield value


def _style_urls(value: str) -> list[str]:
    return re.findall(r"url\(\s*['\"]?([^'\")]*)", value) + re.findall(r"@import[^;]*", value)


def _is_outside(reference: str) -> bool:
    inside = re.match(r"\s*(#|data:image/(png|jpe?g|gif|webp)[;,]|$)", reference, re.IGNORECASE)
    return inside is None


# --- Variants of one stamp -----------------------------------------------------------------------

_CELLS = 16  # a side of a thumbnail
_NEAR = 0.09  # root mean square difference of two thumbnails, of at most 1


def _thumbnails(paths: list[Path]) -> np.ndarray:
    """Return colours and opacity of each picture in a coarse grid (n, 16, 16, 4), float32."""
    contents = [path.read_bytes() for path in paths]
    with FeatureCache({"encoder": "thumbnail", "cells": _CELLS, "version": 1}) as cache:
        keys = [cache.key(content) for content in contents]
        known = cache.get_many(keys)
        missing = [index for index, key in enumerate(keys) if key not in known]
        if missing:
            new = np.stack([_thumbnail(paths[index]).ravel() for index in missing])
            cache.put_many([keys[index] for index in missing], new)
            known |= dict(zip([keys[index] for index in missing], new, strict=True))
    return np.stack([known[key] for key in keys]).reshape(-1, _CELLS, _CELLS, 4)


def _thumbnail(path: Path) -> np.ndarray:
    import cv2
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    except OSError as error:
        raise DatasetError(
            f"{path}: the picture cannot be read ({error}); replace it or remove the stamp"
        ) from error
    colours = np.dstack([pixels[..., :3] * pixels[..., 3:], pixels[..., 3]])
    seen = np.argwhere(colours[..., 3] > 0.05)
    if len(seen):
        (top, left), (bottom, right) = seen.min(axis=0), seen.max(axis=0) + 1
        colours = colours[top:bottom, left:right]
    return cv2.resize(colours, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)


def _groups(stamps: list[_Stamp], thumbnails: np.ndarray) -> list[str]:
    """Name the group of each stamp after its first member."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    english = [_plain(stamp.captions.get("en", stamp.name)) for stamp in stamps]
    bases = [(stamp.category, _base_name(stamp.name)) for stamp in stamps]
    links = [*_same(english), *_same(bases), *_near(thumbnails)]
    rows, columns = np.array(links, dtype=int).reshape(-1, 2).T
    related = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(stamps),) * 2)
    _, labels = connected_components(related, directed=False)
    first = {label: stamps[i].name for i, label in reversed(list(enumerate(labels)))}
    return [first[label] for label in labels]


def _plain(caption: str) -> str:
    return " ".join(re.findall(r"\w+", caption.casefold()))


def _base_name(name: str) -> str:
    """Return the name that variants of one stamp share.

    >>> [_base_name(name) for name in ("food/Pear2", "people/eye_blue_left", "town/grave-a")]
    ['pear', 'eye_blue', 'grave-a']
    >>> _base_name("symbols/math/7")
    '7'
    """
    stem = PurePosixPath(name).name.casefold()
    base = re.sub(r"([-_]?\d+|[-_](left|right))+$", "", stem)
    return base or stem


def _same(values: list) -> Iterator[tuple[int, int]]:
    first: dict = {}
    for index, value in enumerate(values):
        yield first.setdefault(value, index), index


def _near(thumbnails: np.ndarray) -> Iterable[tuple[int, int]]:
    """Return the pairs of thumbnails that differ little, one of them mirrored or not."""
    from scipy.spatial.distance import cdist

    as_is = thumbnails.reshape(len(thumbnails), -1)
    mirrored = thumbnails[:, :, ::-1].reshape(len(thumbnails), -1)
    squares = np.minimum(cdist(as_is, as_is), cdist(as_is, mirrored)) / np.sqrt(as_is.shape[1])
    return np.argwhere(squares < _NEAR)
