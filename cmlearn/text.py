"""Texts to numbers: cleaning, tokens, vocabularies, spelling, and encoders that give vectors."""

import functools
import logging
import numbers
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from cmlearn import _sentences, _spelling, _subwords, _word_codes
from cmlearn._word_codes import OutOfVocabularyWarning
from cmlearn._word_vectors import BUNDLED, TextError, WordVectors, load_word_vectors

__all__ = [
    "FastTextEncoder",
    "GloVeEncoder",
    "OutOfVocabularyWarning",
    "SentenceEncoder",
    "SpellingCorrector",
    "TextError",
    "WordVectors",
    "build_vocabulary",
    "clean",
    "load_word_vectors",
    "tokenize",
]

_HAN = re.compile("([\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)")
_WEIGHTINGS = ("mean", "tfidf")


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


# --- What the encoders share ---------------------------------------------------------------------


class _TextTransformer(TransformerMixin, BaseEstimator):
    """A transformer whose input is one column of texts."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.transformer_tags.preserves_dtype = []  # texts have none
        return tags


def _require_file(vectors: str | Path) -> None:
    if vectors not in BUNDLED and not Path(vectors).expanduser().is_file():
        raise TextError(
            f"the word vectors {vectors}, with which this encoder was fitted, are not "
            "there: put the file back, or call set_params(vectors=...) on the fitted encoder"
        )


def _require_same(vectors: str | Path, found: str, fitted: str) -> None:
    if found != fitted:
        raise TextError(
            f"the word vectors in {vectors} are not those that this encoder was fitted "
            "with: fit it again, or point it to the former ones with set_params(vectors=...)"
        )


def _check_positive(**parameters) -> None:
    for name, value in parameters.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1")


class GloVeEncoder(ClassNamePrefixFeaturesOutMixin, _TextTransformer):
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
        words = _word_codes.distinct(documents)
        known = vectors.index(words) >= 0
        self.oov_rate_, self.oov_words_ = _word_codes.measure_unknown(documents, words, known)
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
        documents, words, found, known = self._words(X)
        _word_codes.warn_unknown(documents, words, known, stacklevel=3)
        return _word_codes.average(documents, words, found, known, self._weight)

    def transform_tokens(self, X) -> tuple[np.ndarray, np.ndarray]:
        """Return the vector of each known word of each text, for attention.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts.

        Returns
        -------
        tokens : ndarray of float32, shape (n, length, d)
            The words in order, repeats kept, without those that have no vector; zeros behind the
            last. `length` is that of the longest text, at least 1.
        mask : ndarray of bool, shape (n, length)
            True where there is a word. With the weighting ``"mean"``, the mean of these words is
            what `transform` returns. Document frequencies are not applied.
        """
        documents, words, found, known = self._words(X)
        _word_codes.warn_unknown(documents, words, known, stacklevel=2)
        return _word_codes.sequences(documents, words, found, known)

    def _words(self, X) -> tuple[list[list[str]], list[str], np.ndarray, np.ndarray]:
        check_is_fitted(self)
        documents = self._tokenize(X)
        words = _word_codes.distinct(documents)
        return documents, words, *_word_codes.look_up(self._fitted_vectors(), words)

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

    def _weight(self, word: str) -> float:
        return self.idf_.get(word, self.unseen_idf_) if self.weighting == "tfidf" else 1.0

    def _fitted_vectors(self) -> WordVectors:
        _require_file(self.vectors)
        vectors = load_word_vectors(self.vectors)
        _require_same(self.vectors, vectors.content_hash, self.vectors_hash_)
        return vectors


class FastTextEncoder(ClassNamePrefixFeaturesOutMixin, _TextTransformer):
    r"""Encode a text as the average of its words' fastText vectors.

    A vector belongs to each sequence of letters within the words, so that a word that was never
    seen, or was misspelt, has one too: the mean of the vectors of its parts.

    Parameters
    ----------
    vectors : path or None, default=None
        None: train on the texts given to `fit`. Else a file of fastText: a ``.bin`` holds the parts
        of words as well; a ``.vec`` or ``.txt`` holds whole words only, so that a word that it
        lacks has no vector. The parameters below, but for `lowercase`, then change nothing.
    vector_size : int, default=100
        Length of a vector.
    epochs : int, default=30
        Passes over the texts.
    min_n, max_n : int, default=3, 6
        Shortest and longest sequence of letters, the signs for a word's beginning and end among
        them.
    lowercase : bool, default=True
        Lower the case of the texts.
    random_state : int, RandomState instance or None, default=None
        Decides the vectors that training starts from and the words that it contrasts.

    Attributes
    ----------
    words_ : list of str
        The words of the texts, the most frequent first; only if trained here, as are the next
        three.
    word_vectors_ : ndarray of float32, shape (n_words, d)
        Their vectors, the parts counted in.
    ngram_rows_ : ndarray of int64, shape (n_rows,)
        Places in fastText's table of parts that the texts have filled.
    ngram_vectors_ : ndarray of float32, shape (n_rows, d)
        What stands there.
    vectors_hash_ : str
        SHA-256 of the file's vectors, if they come from a file. `transform` refuses any others.
    oov_rate_ : float
        Share of the words in the texts given to `fit`, repeats counted, that have no vector.
    oov_words_ : list of str
        The most frequent words without a vector, at most 20.

    Raises
    ------
    TextError
        If a row is missing or not a string, if the texts given to `fit` hold no word, or if the
        file cannot be read or is not the one that the encoder was fitted with.
    ImportError
        If gensim is needed and missing: for training, and to read a ``.bin``. An encoder that was
        trained works without it.

    Warns
    -----
    OutOfVocabularyWarning
        Once a call, with their number, if texts have no known word. They become zero vectors.

    Notes
    -----
    The vector of a known word is the mean of its own and those of its :math:`n`-grams; of an
    unknown one, :math:`\frac{1}{|G_w|} \sum_{g \in G_w} \mathbf{z}_g` over its :math:`n`-grams
    :math:`G_w` [1]_. Those that training never met count as zero, where fastText adds the
    random numbers that their vectors started from. Training is gensim's
    (skip-gram with negative sampling), in one thread, so that the same seed gives the same vectors.

    Vectors trained on a few thousand words know little of what these mean. Large files trained on
    billions know more. Neither is by itself proof against typos in short words, most of whose
    :math:`n`-grams one letter changes: put a `SpellingCorrector` in front.

    References
    ----------
    .. [1] P. Bojanowski, E. Grave, A. Joulin and T. Mikolov, "Enriching Word Vectors with Subword
       Information", TACL 2017. https://doi.org/10.1162/tacl_a_00051

    Examples
    --------
    >>> from cmlearn.text import FastTextEncoder
    >>> encoder = FastTextEncoder(vector_size=20, random_state=0)
    >>> encoder.fit(["grinning face", "red apple"]).transform(["grining faces"]).shape
    (1, 20)
    """

    def __init__(
        self,
        vectors=None,
        *,
        vector_size=100,
        epochs=30,
        min_n=3,
        max_n=6,
        lowercase=True,
        random_state=None,
    ):
        self.vectors = vectors
        self.vector_size = vector_size
        self.epochs = epochs
        self.min_n = min_n
        self.max_n = max_n
        self.lowercase = lowercase
        self.random_state = random_state

    def fit(self, X, y=None) -> "FastTextEncoder":
        """Train the vectors, or open their file; measure how many words are known.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts.
        y : ignored
            Present by convention.

        Returns
        -------
        FastTextEncoder
            The encoder itself.
        """
        documents = self._tokenize(X)
        if self.vectors is None:
            self._train(documents)
        else:
            self.vectors_hash_, self._n_features_out = self._file_facts()
        words = _word_codes.distinct(documents)
        _, known = self._look_up(words)
        self.oov_rate_, self.oov_words_ = _word_codes.measure_unknown(documents, words, known)
        return self

    def transform(self, X) -> np.ndarray:
        """Average the vectors of each text's words.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts.

        Returns
        -------
        ndarray of float32, shape (n, d)
            One row a text; a row of zeros for a text without a word that has a vector.
        """
        documents, words, found, known = self._words(X)
        _word_codes.warn_unknown(documents, words, known, stacklevel=3)
        return _word_codes.average(documents, words, found, known)

    def transform_tokens(self, X) -> tuple[np.ndarray, np.ndarray]:
        """Return the vector of each word of each text, for attention.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts.

        Returns
        -------
        tokens : ndarray of float32, shape (n, length, d)
            The words in order, repeats kept, without those that have no vector; zeros behind the
            last. `length` is that of the longest text, at least 1.
        mask : ndarray of bool, shape (n, length)
            True where there is a word. The mean of these words is what `transform` returns.
        """
        documents, words, found, known = self._words(X)
        _word_codes.warn_unknown(documents, words, known, stacklevel=2)
        return _word_codes.sequences(documents, words, found, known)

    def _words(self, X) -> tuple[list[list[str]], list[str], np.ndarray, np.ndarray]:
        check_is_fitted(self)
        documents = self._tokenize(X)
        if self.vectors is not None:
            _require_file(self.vectors)
            _require_same(self.vectors, self._file_facts()[0], self.vectors_hash_)
        words = _word_codes.distinct(documents)
        return documents, words, *self._look_up(words)

    def _tokenize(self, X) -> list[list[str]]:
        return [tokenize(text, lowercase=self.lowercase) for text in _as_texts(X)]

    def _train(self, documents: list[list[str]]) -> None:
        _check_positive(
            vector_size=self.vector_size, epochs=self.epochs, min_n=self.min_n, max_n=self.max_n
        )
        if self.min_n > self.max_n:
            raise ValueError(f"min_n={self.min_n} must be at most max_n={self.max_n}")
        if not any(documents):
            raise TextError(
                f"the {len(documents)} texts hold no word, so there is nothing to train on: check "
                "that this is the text column"
            )
        self.words_, self.word_vectors_, self.ngram_rows_, self.ngram_vectors_ = _subwords.train(
            documents,
            vector_size=self.vector_size,
            epochs=self.epochs,
            min_n=self.min_n,
            max_n=self.max_n,
            seed=int(check_random_state(self.random_state).randint(2**31)),
        )
        self._n_features_out = self.vector_size

    @property
    def _is_bin(self) -> bool:
        return Path(self.vectors).suffix == ".bin"

    def _file_facts(self) -> tuple[str, int]:
        """Return the hash and the length of the vectors in the file."""
        if not self._is_bin:
            vectors = load_word_vectors(self.vectors)
            return vectors.content_hash, vectors.dim
        path = Path(self.vectors).expanduser()
        if not path.is_file():
            raise TextError(f"{self.vectors}: no such file of fastText vectors")
        return _subwords.file_hash(path), _subwords.read_bin(path).vector_size

    def _look_up(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.vectors is None:
            return _subwords.combine(
                words,
                {word: row for row, word in enumerate(self.words_)},
                self.word_vectors_,
                self.ngram_rows_,
                self.ngram_vectors_,
                self.min_n,
                self.max_n,
            )
        if not self._is_bin:
            return _word_codes.look_up(load_word_vectors(self.vectors), words)
        return _subwords.look_up_bin(Path(self.vectors).expanduser(), words)


class SentenceEncoder(ClassNamePrefixFeaturesOutMixin, _TextTransformer):
    r"""Encode a text by a transformer network that was trained to tell what sentences mean.

    Parameters
    ----------
    model : str, default="minilm"
        ``"minilm"``: all-MiniLM-L6-v2 (384 numbers, English, weights from a pip package). Or a
        folder with another BERT in the layout of Sentence Transformers (`model.safetensors`,
        `config.json`, `tokenizer.json`). Or the name of a KerasHub preset of the kind of BERT or
        RoBERTa, such as ``"bert_small_en_uncased"``, which KerasHub downloads.
    batch_size : int, default=32
        Texts that pass the network at once.
    cache : bool, default=True
        Keep the codes under `cmlearn.runtime.cache_dir` by the texts' content, and read them there
        next time. When all are there, Keras is not even imported.
    verbose : bool, default=False
        Show a progress bar if the error stream is a terminal.

    Attributes
    ----------
    weights_hash_ : str
        SHA-256 of the weights and the tokenizer. `transform` refuses any others.

    Raises
    ------
    TextError
        If a row is missing or not a string, if the model is unknown, if its files are cut short or
        belong to another model, or if `transform` finds another model than `fit`.

    Notes
    -----
    The code is the mean of the last hidden states over all tokens, scaled to length 1, as in
    [1]_; MiniLM itself is from [2]_. The tokens are WordPieces: the library `tokenizers` splits
    texts as the network's makers did, and needs no deep learning framework (KerasHub's own
    tokenizer needs TensorFlow whatever the backend).

    Nothing is cut off: a text of more tokens than the network reads at once (256 for MiniLM) is
    read in pieces of that length, and the mean goes over the tokens of all of them. Texts of like
    length share a batch. Codes of a finished batch are cached at once: a run that was killed
    continues there.

    A stored encoder holds the name and hash of the weights, not the weights themselves.

    References
    ----------
    .. [1] N. Reimers and I. Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese
       BERT-Networks", EMNLP 2019. https://doi.org/10.18653/v1/D19-1410
    .. [2] W. Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression
       of Pre-Trained Transformers", NeurIPS 2020. https://arxiv.org/abs/2002.10957

    Examples
    --------
    >>> from cmlearn.text import SentenceEncoder
    >>> SentenceEncoder(batch_size=64)
    SentenceEncoder(batch_size=64)
    """

    def __init__(self, model="minilm", *, batch_size=32, cache=True, verbose=False):
        self.model = model
        self.batch_size = batch_size
        self.cache = cache
        self.verbose = verbose

    def fit(self, X, y=None) -> "SentenceEncoder":
        """Check the parameters and the texts, and find the weights; nothing is learned.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts.
        y : ignored
            Present by convention.

        Returns
        -------
        SentenceEncoder
            The encoder itself.
        """
        _check_positive(batch_size=self.batch_size)
        if not isinstance(self.model, str):
            raise ValueError(f"model={self.model!r} must be a name or a folder, such as 'minilm'")
        _as_texts(X)
        self.weights_hash_ = _sentences.weights_hash(self.model)
        self._n_features_out = _sentences.width(self.model)
        return self

    def transform(self, X) -> np.ndarray:
        """Encode texts.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts. An empty one is encoded as the network reads it: nothing between its signs
            for beginning and end.

        Returns
        -------
        ndarray of float32, shape (n, d)
            One row a text, of length 1.
        """
        codes = self._codes(X, _mean_of_states)
        return np.stack(codes) if codes else np.zeros((0, self._n_features_out), np.float32)

    def transform_tokens(self, X) -> tuple[np.ndarray, np.ndarray]:
        """Return the last hidden state of each token of each text, for attention.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts.

        Returns
        -------
        tokens : ndarray of float32, shape (n, length, d)
            The word pieces in order, without the network's signs for beginning and end; zeros
            behind the last. `length` is that of the longest text, at least 1.
        mask : ndarray of bool, shape (n, length)
            True where there is a word piece.
        """
        flat = self._codes(X, _states_of_tokens)
        sequences = [states.reshape(-1, self._n_features_out) for states in flat]
        return _word_codes.pad(sequences, self._n_features_out)

    def _codes(self, X, pool: Callable[[list[np.ndarray]], np.ndarray]) -> list[np.ndarray]:
        """Return what `pool` makes of each text's hidden states, from the cache where it can."""
        check_is_fitted(self)
        texts = _as_texts(X)
        if _sentences.weights_hash(self.model) != self.weights_hash_:
            raise TextError(
                f"the model {self.model} is not the one that this encoder was fitted with: fit it "
                "again, or point it to the former one with set_params(model=...)"
            )
        if not self.cache:
            codes = dict(self._encode(texts, pool))
            return [codes[row] for row in range(len(texts))]
        from cmlearn._cache import FeatureCache

        with FeatureCache(self._identity(pool)) as cache:
            keys = [cache.key(text.encode("utf-8", "surrogatepass")) for text in texts]
            known = cache.get_many(keys)
            # A dictionary by key, so that copies of a text are encoded once.
            missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in known}
            missing_keys = list(missing)
            for row, code in self._encode(list(missing.values()), pool):
                cache.put_many([missing_keys[row]], code[None])
                known[missing_keys[row]] = code
        return [known[key] for key in keys]

    def _encode(self, texts: list[str], pool: Callable) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the row and the code of each text, the shortest first."""
        from tqdm import tqdm

        states = _sentences.read(self.model, texts, self.batch_size)
        off = None if self.verbose else True  # None: off unless the stream is a terminal
        for row, pieces in tqdm(states, total=len(texts), unit=" texts", disable=off):
            yield row, pool(pieces)

    def _identity(self, pool: Callable) -> dict[str, str | int]:
        """Return all that decides the code of a text."""
        return {
            "encoder": "SentenceEncoder",
            "recipe": _sentences.RECIPE,
            "weights": self.weights_hash_,
            "output": pool.__name__,
        }


def _mean_of_states(pieces: list[np.ndarray]) -> np.ndarray:
    mean = np.concatenate(pieces).mean(axis=0)
    return mean / np.linalg.norm(mean)


def _states_of_tokens(pieces: list[np.ndarray]) -> np.ndarray:
    """Return the states of all tokens but the signs for beginning and end, in one row."""
    return np.concatenate([states[1:-1] for states in pieces]).ravel()


class SpellingCorrector(_TextTransformer):
    r"""Replace each word of a text by the one that was most probably meant.

    Put it in front of an encoder whose words have to be spelt as it knows them:
    ``make_pipeline(SpellingCorrector(), FastTextEncoder())``.

    Parameters
    ----------
    vectors : str or path, default="glove-6b-50d"
        What `load_word_vectors` accepts. Only the words are used, and their order: the most
        frequent of the language come first.
    typo_rate : float, default=0.1
        Share of the words that one expects to be misspelt, above 0 and below 1. The higher, the
        sooner a rare word is taken for a misspelt common one.

    Attributes
    ----------
    counts_ : dict of str to int
        How often each word occurs in the texts given to `fit`, which are taken to be spelt right.
    letters_ : list of str
        The letters a to z and those of the texts given to `fit`, Chinese characters left out: what
        a letter can be mistaken for.

    Raises
    ------
    TextError
        If a row is missing or not a string, or if the vectors cannot be read.
    ValueError
        If `typo_rate` is not between 0 and 1.

    Notes
    -----
    The noisy channel model [1]_: of all words :math:`w`, choose the one of largest
    :math:`P(w)\,P(x \mid w)` for the written word :math:`x`. Here :math:`P(x \mid w)` is
    :math:`1 - r` for :math:`x = w` with the typo rate :math:`r`; :math:`r` divided by the number of
    possible edits if one edit leads from :math:`w` to :math:`x` (a letter too many, too few or
    wrong, or two neighbours swapped; all equally likely); else 0. :math:`P(w)` is nine tenths the
    share of :math:`w` in the texts given to `fit` and one tenth its share in the language, which
    follows Zipf's law from its rank among the 100,000 most frequent words.

    A word that no known word is near stays as it is, and so do words with digits or Chinese
    characters. Punctuation and capitals are lost, as in `tokenize`.

    References
    ----------
    .. [1] M. D. Kernighan, K. W. Church and W. A. Gale, "A Spelling Correction Program Based on a
       Noisy Channel Model", COLING 1990. https://aclanthology.org/C90-2036/

    Examples
    --------
    >>> from cmlearn.text import SpellingCorrector
    >>> corrector = SpellingCorrector().fit(["grinning face", "red apple"])
    >>> corrector.transform(["grining fcae", "a yelllow aple"]).tolist()
    ['grinning face', 'a yellow apple']
    """

    def __init__(self, vectors="glove-6b-50d", *, typo_rate=0.1):
        self.vectors = vectors
        self.typo_rate = typo_rate

    def fit(self, X, y=None) -> "SpellingCorrector":
        """Count the words.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            Texts that are spelt right, or mostly.
        y : ignored
            Present by convention.

        Returns
        -------
        SpellingCorrector
            Itself.
        """
        if not isinstance(self.typo_rate, numbers.Real) or not 0 < self.typo_rate < 1:
            raise ValueError(f"typo_rate={self.typo_rate!r} must be above 0 and below 1")
        load_word_vectors(self.vectors)
        words = [word for text in _as_texts(X) for word in tokenize(text)]
        self.counts_ = dict(Counter(words))
        self.letters_ = sorted(set(ascii_lowercase).union(*filter(_is_spelt, self.counts_)))
        return self

    def transform(self, X) -> np.ndarray:
        """Correct the words of texts.

        Parameters
        ----------
        X : array-like of str, shape (n,) or (n, 1)
            The texts.

        Returns
        -------
        ndarray of object (str), shape (n,)
            The corrected words of each text, a blank between them.
        """
        check_is_fitted(self)
        documents = [tokenize(text) for text in _as_texts(X)]
        ranks = _spelling.ranks_of(load_word_vectors(self.vectors))
        corrected = {
            word: _spelling.meant(word, self.counts_, ranks, self.letters_, self.typo_rate)
            for word in filter(_is_spelt, _word_codes.distinct(documents))
        }
        texts = [" ".join(corrected.get(word, word) for word in words) for words in documents]
        return np.array(texts, dtype=object)


def _is_spelt(word: str) -> bool:
    return word.isalpha() and not _HAN.search(word)
