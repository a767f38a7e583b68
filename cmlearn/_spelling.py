"""Which word was meant: the noisy channel model of spelling."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping

from cmlearn._word_vectors import WordVectors

# The most frequent words of the language. Rarer entries are often misspellings themselves.
_N_WORDS = 100_000
# How far the texts at hand, rather than the language, say which words are probable.
_SHARE_OF_TEXTS = 0.9


def variants(word: str, letters: Collection[str]) -> set[str]:
    """Return all that is one edit away: a letter more, less or other, or two neighbours swapped.

    >>> sorted(variants("up", "o"))
    ['op', 'oup', 'p', 'pu', 'u', 'uo', 'uop', 'upo']
    """
    splits = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    less = {head + tail[1:] for head, tail in splits if tail}
    swapped = {head + tail[1] + tail[0] + tail[2:] for head, tail in splits if len(tail) > 1}
    other = {head + letter + tail[1:] for head, tail in splits if tail for letter in letters}
    more = {head + letter + tail for head, tail in splits for letter in letters}
    return less | swapped | other | more


def meant(
    word: str,
    counts: Mapping[str, int],
    ranks: Mapping[str, int],
    letters: Collection[str],
    typo_rate: float,
) -> str:
    """Return the word that was most probably meant.

    Parameters
    ----------
    word : str
        What was written.
    counts : mapping of str to int
        How often each word occurs in the texts at hand.
    ranks : mapping of str to int
        Rank of each word of the language, 0 for the most frequent.
    letters : collection of str
        What a letter can be mistaken for.
    typo_rate : float
        Share of the words that are misspelt.
    """
    candidates = sorted(c for c in variants(word, letters) if c in counts or c in ranks)
    total = max(sum(counts.values()), 1)
    best, highest = word, (1 - typo_rate) * _prior(word, counts, total, ranks)
    for candidate in candidates:
        if candidate == word:
            continue
        n, k = len(candidate), len(letters)
        ways = (n + 1) * k + n * (k - 1) + n + (n - 1)  # more, other, less, swapped
        chance = typo_rate / ways * _prior(candidate, counts, total, ranks)
        if chance > highest:
            best, highest = candidate, chance
    return best


def _prior(word: str, counts: Mapping[str, int], total: int, ranks: Mapping[str, int]) -> float:
    # Zipf's law: the probability of a word is inverse to its rank.
    language = 1 / ((ranks[word] + 1) * math.log(_N_WORDS)) if word in ranks else 0.0
    texts = counts.get(word, 0) / total
    return _SHARE_OF_TEXTS * texts + (1 - _SHARE_OF_TEXTS) * language


@functools.lru_cache(maxsize=1)
def ranks_of(vectors: WordVectors) -> dict[str, int]:
    """Return the rank of each of the most frequent words; files of vectors are sorted by it."""
    words = vectors.words.slice(0, _N_WORDS).to_pylist()
    return {word: rank for rank, word in enumerate(words)}
