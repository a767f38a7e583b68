"""Emoji and their names."""

import json
from pathlib import Path

import numpy as np

from cmlearn.assets import ASSETS, fetch
from cmlearn.datasets._common import _bunch, _count_table
from cmlearn.runtime import cache_dir, replace_when_whole

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
