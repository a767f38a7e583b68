"""Texts to numbers: cleaning, tokens, vocabularies, word vectors and their average."""

import functools
import logging
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from cmlearn._word_vectors import BUNDLED, TextError, WordVectors, load_word_vectors

__all__ = [
    "GloVeEncoder",
    "OutOfVocabularyWarning",
    "TextError",
    "WordVectors",
    "build_vocabulary",
    "clean",
    "load_word_vectors",
    "tokenize",
]

_HAN = re.compile("([\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)")
_WEIGHTINGS = ("mean", "tfidf")


class OutOfVocabularyWarning(UserWarning):
    """Texts without a single known word became zero vectors."""


class _CharacterTable(dict):
    """Translation table for `str.translate`, filled by Unicode category as characters turn up."""

    def __init__(self, *, punctuation: bool, numbers: bool):
        super().__init__()
        self.punctuation = punctuation
        self.numbers = numbers

    def __missing__(self, code: int) -> str:
        self[code] = self._replacement(chr(code))
        return self[code]

    def _replacement(self, character: str) -> str:
        kind = unicodedata.category(character)
        # A variation selector only chooses how the character before it is drawn.
        if "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef":
            return ""
        # Invisible joiners and the byte order mark belong inside a word; U+200B separates words.
        if kind == "Cf" and character != "\u200b":
            return ""
        if kind[0] == "N":
            return character if self.numbers else " "
        if kind[0] in "LM":
            return character
        visible = kind[0] in "PS"
        return character if visible and self.punctuation else " "


@functools.cache
def _character_table(punctuation: bool, numbers: bool) -> _CharacterTable:
    return _CharacterTable(punctuation=punctuation, numbers=numbers)


def clean(
    text: str, *, lowercase: bool = True, punctuation: bool = False, numbers: bool = True
) -> str:
    """Write a text in one standard way.

    The text is brought to Unicode normal form C, so that a letter with an accent is one
    character however it was typed; runs of white space become one blank.

    Parameters
    ----------
    text : str
        Any text.
    lowercase : bool, default=True
        Turn capitals into small letters.
    punctuation : bool, default=False
        Keep punctuation and symbols. Otherwise a blank takes the place of each.
    numbers : bool, default=True
        Keep digits. Otherwise a blank takes the place of each.

    Returns
    -------
    str
        The cleaned text, possibly empty.

    Notes
    -----
    Normal form C is defined in Unicode Standard Annex 15, https://unicode.org/reports/tr15/.

    Examples
    --------
    >>> from cmlearn.text import clean
    >>> clean("  Jack-O-Lantern,   the 1st! ")
    'jack o lantern the 1st'
    >>> clean("Jack-O-Lantern, the 1st!", lowercase=False, punctuation=True, numbers=False)
    'Jack-O-Lantern, the st!'
    """
    # Lowering can take a letter apart (as in Turkish I with a dot), so it comes before the last
    # normalisation.
    text = unicodedata.normalize("NFC", text)
    text = text.translate(_character_table(punctuation, numbers))
    if lowercase:
        text = text.lower()
    return " ".join(unicodedata.normalize("NFC", text).split())


@functools.cache
def _chinese_segmenter():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jieba
    except ImportError as error:
        raise ImportError(
            "a text holds Chinese characters, and splitting them into words needs jieba: "
            "run 'pip install jieba'"
        ) from error
    from cmlearn.runtime import cache_dir

    segmenter = jieba.Tokenizer()
    # jieba would otherwise keep its dictionary in the temporary folder that all users share.
    segmenter.tmp_dir = str(cache_dir())
    level = jieba.default_logger.level
    jieba.default_logger.setLevel(logging.CRITICAL + 1)
    try:
        segmenter.initialize()
    finally:
        jieba.default_logger.setLevel(level)
    return segmenter


def _split_chinese(word: str) -> list[str]:
    parts = []
    for part in filter(None, _HAN.split(word)):
        parts += _chinese_segmenter().lcut(part) if _HAN.match(part) else [part]
    return parts


def tokenize(text: str, *, lowercase: bool = True, numbers: bool = True) -> list[str]:
    """Split a text into words.

    The text is cleaned, then split at blanks. Runs of Chinese characters, which are written
    without blanks, are segmented with jieba. Japanese and Thai need a segmenter of their own:
    their runs stay whole, except that Chinese characters in them are treated as Chinese.

    Parameters
    ----------
    text : str
        Any text.
    lowercase, numbers : bool, default=True
        As in `clean`.

    Returns
    -------
    list of str
        The words in order, repeats kept; empty if the text holds none.

    Examples
    --------
    >>> from cmlearn.text import tokenize
    >>> tokenize("Face with Tears of Joy")
    ['face', 'with', 'tears', 'of', 'joy']
    """
    words = clean(text, lowercase=lowercase, numbers=numbers).split()
    if not _HAN.search(text):
        return words
    return [part for word in words for part in _split_chinese(word)]


def build_vocabulary(
    texts: Iterable[str], *, min_count: int = 1, max_size: int | None = None
) -> dict[str, int]:
    """Give the words of some texts numbers, the most frequent first.

    Parameters
    ----------
    texts : iterable of str
        The texts; each goes through `tokenize`.
    min_count : int, default=1
        Leave out words that occur less often than this in all texts together.
    max_size : int or None, default=None
        Keep at most this many words.

    Returns
    -------
    dict of str to int
        Index of each word, 0 for the most frequent; words of equal count in alphabetical order.

    Examples
    --------
    >>> from cmlearn.text import build_vocabulary
    >>> build_vocabulary(["red cup", "blue cup"])
    {'cup': 0, 'blue': 1, 'red': 2}
    """
    counts = Counter(word for text in _as_texts(texts) for word in tokenize(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    frequent = [word for word in ranked if counts[word] >= min_count]
    return {word: index for index, word in enumerate(frequent[:max_size])}


def _as_texts(X) -> list[str]:
    """Turn a list, array, Series or one-column table of texts into a list, every row checked."""
    if isinstance(X, str):
        raise TextError("expected a list of texts, got a single string: pass [text]")
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    shape = getattr(X, "shape", None)
    if shape is not None and len(shape) != 1:
        if len(shape) != 2 or shape[1] != 1:
            raise TextError(
                f"expected one column of texts, got an array of shape {shape}: "
                "choose the text column, for instance X['text']"
            )
        X = X[:, 0]
    texts = list(X)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TextError(_not_a_text(row, text))
    # NumPy's own string type would otherwise end up in stored models.
    return [str(text) for text in texts]


def _not_a_text(row: int, value) -> str:
    # pandas' own missing values can be told by name without loading pandas.
    kind = type(value).__name__
    if (
        value is None
        or kind in ("NAType", "NaTType")
        or (kind.startswith("float") and value != value)
    ):
        return (
            f"row {row}: the text is missing ({value!r}). Drop the row, or fill in '' if a zero "
            "vector should stand for a missing text"
        )
    return (
        f"row {row}: expected a text, got {value!r} of type {kind}. "
        "Choose the text column, or convert the values with str()"
    )


class GloVeEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Encode a text as the average of the word vectors of its words.

    Parameters
    ----------
    vectors : str or path, default="glove-6b-50d"
        What `load_word_vectors` accepts: the name of the vectors that come by pip, or a GloVe or
        word2vec text file.
    weighting : {"mean", "tfidf"}, default="mean"
        Count every word once each time that it occurs, or weight it by its inverse document
        frequency in the texts given to `fit`. A word that those texts lack weighs as much as one
        found in none of them, which is the most that a word can weigh.
    lowercase : bool, default=True
        Lower the case of the texts. Turn off for vectors that know capitals.

    Attributes
    ----------
    oov_rate_ : float
        Share of the words in the texts given to `fit`, repeats counted, that have no vector.
    oov_words_ : list of str
        The most frequent words without a vector, at most 20.
    vectors_hash_ : str
        SHA-256 of the word vectors. `transform` refuses any others.
    idf_ : dict of str to float
        Inverse document frequency by word; only if ``weighting="tfidf"``.
    unseen_idf_ : float
        The same for a word found in none of the texts; only if ``weighting="tfidf"``.

    Raises
    ------
    TextError
        If a row is missing or not a string, if the vectors cannot be read, or if `transform` finds
        other vectors than `fit`.

    Warns
    -----
    OutOfVocabularyWarning
        Once a call, with their number, if texts have no known word. They become zero vectors.

    Notes
    -----
    With counts :math:`c_w` of the known words of a text, the code is
    :math:`\sum_w c_w a_w \mathbf{v}_w / \sum_w c_w a_w`, where :math:`a_w` is 1 or the inverse
    document frequency :math:`1 + \ln\frac{1 + n}{1 + n_w}` of scikit-learn's `TfidfVectorizer`.
    The vectors are those of [1]_.

    A stored encoder holds the name and hash of the vectors, not the vectors themselves.

    References
    ----------
    .. [1] J. Pennington, R. Socher and C. D. Manning, "GloVe: Global Vectors for Word
       Representation", EMNLP 2014, https://doi.org/10.3115/v1/D14-1162

    Examples
    --------
    >>> from cmlearn.text import GloVeEncoder
    >>> GloVeEncoder().fit_transform(["grinning face", "red apple"]).shape
    (2, 50)
    """

    def __init__(self, vectors="glove-6b-50d", *, weighting="mean", lowercase=True):
        self.vectors = vectors
        self.weighting = weighting
        self.lowercase = lowercase

    def fit(self, X, y=None) -> "GloVeEncoder":
        """Measure how many words are known, and how rare each is if the weighting asks for it.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts.
        y : ignored
            Present by convention.

        Returns
        -------
        GloVeEncoder
            The encoder itself.
        """
        if self.weighting not in _WEIGHTINGS:
            raise ValueError(f"weighting must be one of {_WEIGHTINGS}, got {self.weighting!r}")
        documents = self._tokenize(X)
        vectors = load_word_vectors(self.vectors)
        counts = Counter(word for words in documents for word in words)
        known = vectors.index(counts) >= 0
        unknown = Counter({w: c for (w, c), k in zip(counts.items(), known, strict=True) if not k})
        self.oov_rate_ = unknown.total() / max(counts.total(), 1)
        self.oov_words_ = [word for word, _ in unknown.most_common(20)]
        self.vectors_hash_ = vectors.content_hash
        self._n_features_out = vectors.dim
        if self.weighting == "tfidf":
            self._fit_idf(documents)
        return self

    def transform(self, X) -> np.ndarray:
        """Average the vectors of each text's known words.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts.

        Returns
        -------
        ndarray of float32, shape (n, d)
            One row a text; a row of zeros for a text without a known word.
        """
        check_is_fitted(self)
        documents = self._tokenize(X)
        vectors = self._fitted_vectors()
        words = list(dict.fromkeys(word for document in documents for word in document))
        rows = vectors.index(words)
        column = {word: i for i, word in enumerate(words) if rows[i] >= 0}
        weights = self._weights(documents, column, len(words))
        total = np.asarray(weights.sum(axis=1)).ravel()
        self._warn_unknown(documents, total)
        known = np.zeros((len(words), vectors.dim))
        known[rows >= 0] = vectors.vectors[rows[rows >= 0]]
        codes = weights @ known / np.where(total > 0, total, 1.0)[:, None]
        return codes.astype(np.float32)

    def _tokenize(self, X) -> list[list[str]]:
        return [tokenize(text, lowercase=self.lowercase) for text in _as_texts(X)]

    def _fit_idf(self, documents: list[list[str]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.unseen_idf_ = float(np.log1p(len(documents)) + 1)
        if not any(documents):
            self.idf_ = {}
            return
        tfidf = TfidfVectorizer(analyzer=list).fit(documents)
        words = tfidf.get_feature_names_out().tolist()
        self.idf_ = dict(zip(words, tfidf.idf_.tolist(), strict=True))

    def _weights(self, documents, column, width) -> scipy.sparse.csr_matrix:
        idf = self.idf_ if self.weighting == "tfidf" else {}
        unseen = self.unseen_idf_ if self.weighting == "tfidf" else 1.0
        entries = [
            (row, column[word], count * idf.get(word, unseen))
            for row, document in enumerate(documents)
            for word, count in Counter(document).items()
            if word in column
        ]
        i, j, value = zip(*entries, strict=True) if entries else ((), (), ())
        return scipy.sparse.csr_matrix((value, (i, j)), shape=(len(documents), width), dtype=float)

    def _fitted_vectors(self) -> WordVectors:
        if self.vectors not in BUNDLED and not Path(self.vectors).expanduser().is_file():
            raise TextError(
                f"the word vectors {self.vectors}, with which this encoder was fitted, are not "
                "there: put the file back, or call set_params(vectors=...) on the fitted encoder"
            )
        vectors = load_word_vectors(self.vectors)
        if vectors.content_hash != self.vectors_hash_:
            raise TextError(
                f"the word vectors in {self.vectors} are not those that this encoder was fitted "
                "with: fit it again, or point it to the former ones with set_params(vectors=...)"
            )
        return vectors

    def _warn_unknown(self, documents: list[list[str]], total: np.ndarray) -> None:
        unknown = np.flatnonzero(total == 0)
        if len(unknown) == 0:
            return
        empty = sum(not documents[row] for row in unknown)
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        warning = OutOfVocabularyWarning(
            f"{len(unknown)} of {len(documents)} texts have no word with a vector ({empty} of them "
            f"no word at all) and became zero vectors: row {shown}"
        )
        warning.texts = [" ".join(documents[row]) for row in unknown]
        warnings.warn(warning, stacklevel=4)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        return tags
