"""Inputs made worse on purpose, to measure what a model withstands."""

import numbers
import re
from collections.abc import Callable, Iterable

import numpy as np
from sklearn.utils import check_random_state

from cmlearn.text import _as_texts

__all__ = ["add_typos"]

_WORD = re.compile(r"[^\W\d_]+")
# Chinese, Japanese and Korean are typed through an input method, whose slips are other ones.
_INPUT_METHOD = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]"
)

# Where the keys of an English (QWERTY) keyboard lie: each row is shifted against the one above.
_KEYS = {
    key: (column + shift, row)
    for row, (keys, shift) in enumerate([("qwertyuiop", 0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75)])
    for column, key in enumerate(keys)
}
_NEIGHBOURS = {
    key: "".join(
        other for other, (u, v) in _KEYS.items() if other != key and (u - x) ** 2 + (v - y) ** 2 < 2
    )
    for key, (x, y) in _KEYS.items()
}


def add_typos(
    texts: Iterable[str],
    typos_per_word: int = 1,
    random_state: int | np.random.RandomState | None = None,
) -> list[str]:
    """Misspell every word, as a hasty typist does.

    Each typo is one of four kinds that are equally likely: two neighbouring letters change places,
    a letter is left out, a letter is doubled, or the key beside the right one on an English
    keyboard is hit. A kind that a word does not admit (nothing to swap in "ooo", no known key in
    Greek) is drawn again.

    Parameters
    ----------
    texts : array-like of str, shape (n,) or (n, 1)
        The texts.
    typos_per_word : int, default=1
        How many typos are made in a word, one after the other; a later one can undo an earlier one.
    random_state : int, RandomState instance or None, default=None
        Decides the typos. The same number gives the same typos for the same texts.

    Returns
    -------
    list of str
        The misspelt texts, in order.

    Raises
    ------
    TextError
        If a row is missing or not a string.
    ValueError
        If `typos_per_word` is not a whole number of at least 0.

    Notes
    -----
    A word is a run of letters. Left alone are words of a single letter, all that is no letter
    (digits, punctuation, blanks), and words with Chinese, Japanese or Korean characters, which are
    not typed letter by letter. A capital stays a capital. The kinds are those of [1]_, which
    spares the first and last letter and words of up to three letters; here every letter of every
    word is at risk.

    References
    ----------
    .. [1] D. Pruthi, B. Dhingra and Z. C. Lipton, "Combating Adversarial Misspellings with Robust
       Word Recognition", ACL 2019. https://doi.org/10.18653/v1/P19-1561

    Examples
    --------
    >>> from cmlearn.robustness import add_typos
    >>> add_typos(["red apple", "a 2nd cup"], random_state=0)
    ['reed applee', 'a 2d cul']
    """
    if not isinstance(typos_per_word, numbers.Integral) or typos_per_word < 0:
        raise ValueError(f"typos_per_word={typos_per_word!r} must be a whole number of at least 0")
    random = check_random_state(random_state)

    def misspelt(match: re.Match) -> str:
        word = match[0]
        for _ in range(typos_per_word):
            word = _misspell(word, random)
        return word

    return [_WORD.sub(misspelt, text) for text in _as_texts(texts)]


def _misspell(word: str, random: np.random.RandomState) -> str:
    if len(word) < 2 or _INPUT_METHOD.search(word):
        return word
    for kind in random.permutation(len(_KINDS)):
        places, change = _KINDS[kind]
        possible = places(word)
        if possible:
            at = possible[random.randint(len(possible))]
            return word[:at] + change(word, at, random)
    raise AssertionError("any letter can be left out")


def _anywhere(word: str) -> range:
    return range(len(word))


def _before_another(word: str) -> list[int]:
    return [i for i in range(len(word) - 1) if word[i] != word[i + 1]]


def _known_keys(word: str) -> list[int]:
    return [i for i, letter in enumerate(word) if letter.lower() in _NEIGHBOURS]


def _swap(word: str, at: int, random: np.random.RandomState) -> str:
    return word[at + 1] + word[at] + word[at + 2 :]


def _drop(word: str, at: int, random: np.random.RandomState) -> str:
    return word[at + 1 :]


def _double(word: str, at: int, random: np.random.RandomState) -> str:
    return word[at] + word[at:]


def _slip(word: str, at: int, random: np.random.RandomState) -> str:
    near = _NEIGHBOURS[word[at].lower()]
    key = near[random.randint(len(near))]
    return (key.upper() if word[at].isupper() else key) + word[at + 1 :]


# Where each kind of typo can happen, and what then stands from that place on.
_KINDS: tuple[tuple[Callable, Callable], ...] = (
    (_before_another, _swap),
    (_anywhere, _drop),
    (_anywhere, _double),
    (_known_keys, _slip),
)
