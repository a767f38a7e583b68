"""Word vectors made of character n-grams: fastText's, trained by gensim or read from its files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cmlearn._word_vectors import TextError

# Rows that n-grams are hashed to: fastText's two millions would take 800 MB, of which small texts
# leave nearly all untouched.
N_BUCKETS = 1 << 17
_MAGIC = (793712314).to_bytes(4, "little")  # how Facebook's files begin


def buckets(word: str, min_n: int, max_n: int, n_buckets: int = N_BUCKETS) -> list[int]:
    """Return the rows of a word's character n-grams, as fastText counts them.

    The word stands in angle brackets, so that "<re" is the beginning of a word and "re" is not.

    >>> [g for g in _ngrams("red", 3, 4)]
    ['<re', '<red', 'red', 'red>', 'ed>']
    """
    return [_fnv1a(ngram.encode("utf-8", "replace")) % n_buckets
            for ngram in _ngrams(word, min_n, max_n)]  # fmt: skip


def _ngrams(word: str, min_n: int, max_n: int) -> Iterator[str]:
    marked = f"<{word}>"
    for start in range(len(marked)):
        for end in range(start + min_n, min(start + max_n, len(marked)) + 1):
            only_a_bracket = end - start == 1 and (start == 0 or end == len(marked))
            if not only_a_bracket:
                yield marked[start:end]


def _fnv1a(data: bytes) -> int:
    """Return the 32-bit hash of Fowler, Noll and Vo with fastText's slip: bytes are signed."""
    value = 2166136261
    for byte in data:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value


def train(
    documents: Sequence[list[str]],
    *,
    vector_size: int,
    epochs: int,
    min_n: int,
    max_n: int,
    seed: int,
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Train fastText on texts given as words.

    Returns
    -------
    words : list of str
        The most frequent first.
    vectors : ndarray of float32, shape (n_words, vector_size)
        Vector of each word, its n-grams counted in.
    rows : ndarray of int64, shape (n_rows,)
        Rows that the n-grams of these words are hashed to, ascending.
    ngram_vectors : ndarray of float32, shape (n_rows, vector_size)
        Vector of each of these rows.
    """
    FastText = gensim_models().FastText
    model = FastText(
        vector_size=vector_size,
        min_n=min_n,
        max_n=max_n,
        bucket=N_BUCKETS,
        sg=1,
        alpha=0.05,
        min_count=1,
        seed=seed,
        # Several workers would race; Python's own hash differs from process to process.
        workers=1,
        hashfxn=_steady_hash,
    )
    model.build_vocab(documents)
    model.train(documents, total_examples=len(documents), epochs=epochs)
    words = list(model.wv.index_to_key)
    rows = np.unique([row for word in words for row in buckets(word, min_n, max_n)])
    rows = rows.astype(np.int64)
    return words, model.wv.vectors.copy(), rows, model.wv.vectors_ngrams[rows]


def _steady_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def gensim_models():
    """Return `gensim.models`, or say how to get it."""
    try:
        import gensim.models
    except ImportError as error:
        raise ImportError(
            "training fastText, and reading its .bin files, needs gensim: run 'pip install gensim'"
        ) from error
    return gensim.models


def combine(
    words: Sequence[str],
    known: dict[str, int],
    vectors: np.ndarray,
    rows: np.ndarray,
    ngram_vectors: np.ndarray,
    min_n: int,
    max_n: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Look words up; a word that is not known gets the mean of its n-grams' vectors.

    An n-gram that training never met counts as zero. fastText leaves it at the random numbers that
    its vector started from, which say nothing.

    Returns
    -------
    found : ndarray of float32, shape (m, d)
        Zeros for a word without a known n-gram.
    has_vector : ndarray of bool, shape (m,)
    """
    place = {row: i for i, row in enumerate(rows.tolist())}
    found = np.zeros((len(words), vectors.shape[1]), np.float32)
    has_vector = np.zeros(len(words), bool)
    for i, word in enumerate(words):
        if word in known:
            found[i], has_vector[i] = vectors[known[word]], True
            continue
        hashed = buckets(word, min_n, max_n)
        seen = [place[row] for row in hashed if row in place]
        if seen:
            found[i], has_vector[i] = ngram_vectors[seen].sum(axis=0) / len(hashed), True
    return found, has_vector


def read_bin(path: str | Path):
    """Return gensim's vectors from a .bin file of fastText, read once."""
    status = Path(path).stat()
    return _read_bin(str(Path(path).resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read_bin(path: str, size: int, modified: int):
    """Read a file; size and time of change are there to tell its versions apart."""
    with open(path, "rb") as file:
        if file.read(4) != _MAGIC:
            raise TextError(
                f"{path} is not a .bin file of fastText. Give a text file of vectors a name that "
                "ends in .vec or .txt"
            )
    try:
        return gensim_models().fasttext.load_facebook_vectors(path)
    except ImportError:
        raise
    except Exception as error:  # a damaged file leads to whatever the reader stumbles over
        raise TextError(
            f"{path} is cut short or damaged ({type(error).__name__}: {error}). Download it again"
        ) from error


def look_up_bin(path: str | Path, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Look words up in a .bin file; as `combine`."""
    vectors = read_bin(path)
    found = np.zeros((len(words), vectors.vector_size), np.float32)
    has_vector = np.zeros(len(words), bool)
    for i, word in enumerate(words):
        # A word that is too short for any n-gram.
        with contextlib.suppress(KeyError):
            found[i], has_vector[i] = vectors.get_vector(word), True
    return found, has_vector


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file, computed once for each of its versions."""
    status = Path(path).stat()
    return _file_hash(str(Path(path).resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _file_hash(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
