"""From the vectors of words to the codes of texts: averages, padded sequences, unknown words."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import scipy.sparse

from cmlearn._word_vectors import WordVectors


class OutOfVocabularyWarning(UserWarning):
    """Texts without a single known word became zero vectors."""


def distinct(documents: Iterable[list[str]]) -> list[str]:
    """Return each word once, in the order of its first use."""
    return list(dict.fromkeys(word for document in documents for word in document))


def look_up(vectors: WordVectors, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the vector of each word, zeros where there is none, and whether there is one."""
    rows = vectors.index(words)
    found = np.zeros((len(words), vectors.dim), np.float32)
    found[rows >= 0] = vectors.vectors[rows[rows >= 0]]
    return found, rows >= 0


def average(
    documents: list[list[str]],
    words: list[str],
    found: np.ndarray,
    known: np.ndarray,
    weight: Callable[[str], float] = lambda word: 1.0,
) -> np.ndarray:
    """Return the weighted mean of the vectors of each document's known words."""
    column = {word: i for i, word in enumerate(words) if known[i]}
    entries = [
        (row, column[word], count * weight(word))
        for row, document in enumerate(documents)
        for word, count in Counter(document).items()
        if word in column
    ]
    i, j, value = zip(*entries, strict=True) if entries else ((), (), ())
    shape = (len(documents), len(words))
    weights = scipy.sparse.csr_matrix((value, (i, j)), shape=shape, dtype=float)
    total = np.asarray(weights.sum(axis=1)).ravel()
    codes = weights @ found.astype(float) / np.where(total > 0, total, 1.0)[:, None]
    return codes.astype(np.float32)


def sequences(
    documents: list[list[str]], words: list[str], found: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of each document's known words in order, padded, and the mask."""
    column = {word: i for i, word in enumerate(words) if known[i]}
    rows = [[column[word] for word in document if word in column] for document in documents]
    return pad([found[places] for places in rows], found.shape[1])


def pad(sequences: list[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences as one array (n, length, width) with zeros behind each, and the mask."""
    # At least one position, for no layer takes a sequence of none.
    longest = max([1, *map(len, sequences)])
    tokens = np.zeros((len(sequences), longest, width), np.float32)
    mask = np.zeros((len(sequences), longest), bool)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return tokens, mask


def measure_unknown(
    documents: list[list[str]], words: list[str], known: np.ndarray
) -> tuple[float, list[str]]:
    """Return the share of the words without a vector, and the most frequent 20 of them."""
    counts = Counter(word for document in documents for word in document)
    unknown = Counter({w: counts[w] for w, k in zip(words, known, strict=True) if not k})
    return unknown.total() / max(counts.total(), 1), [word for word, _ in unknown.most_common(20)]


def warn_unknown(
    documents: list[list[str]], words: list[str], known: np.ndarray, stacklevel: int
) -> None:
    """Warn once of the texts that have no known word."""
    have = {word for word, k in zip(words, known, strict=True) if k}
    unknown = [row for row, document in enumerate(documents) if have.isdisjoint(document)]
    if not unknown:
        return
    empty = sum(not documents[row] for row in unknown)
    shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
    warning = OutOfVocabularyWarning(
        f"{len(unknown)} of {len(documents)} texts have no word with a vector ({empty} of them "
        f"no word at all) and became zero vectors: row {shown}"
    )
    warning.texts = [" ".join(documents[row]) for row in unknown]
    warnings.warn(warning, stacklevel=stacklevel + 1)
