"""Word vectors on disk: the pip package, and GloVe or word2vec text files read once."""

import bisect
import functools
import hashlib
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmlearn.runtime import cache_dir, replace_when_whole

# Part of the cache's file names: raise it when the same text would be read differently.
_READER = 1
_BLOCK = 1 << 20  # bytes of text parsed at a time; larger ones miss the CPU's cache
BUNDLED = ("glove-6b-50d",)


class TextError(ValueError):
    """A text or a file of word vectors that cannot be used as it is."""


class WordVectors:
    """Words and their vectors, which stay on disk until they are looked up.

    Parameters
    ----------
    words : pyarrow.StringArray, shape (n,)
        Different words.
    vectors : ndarray of float32, shape (n, d)
        Vector of each word, usually memory-mapped.
    source : str
        Where they came from.

    Attributes
    ----------
    dim : int
        Length d of a vector.
    content_hash : str
        SHA-256 of the words and the vectors.

    Examples
    --------
    >>> from cmlearn.text import load_word_vectors
    >>> glove = load_word_vectors()
    >>> "cup" in glove, glove["cup"].shape
    (True, (50,))
    """

    def __init__(self, words, vectors: np.ndarray, source: str):
        if len(words) != len(vectors):
            raise TextError(
                f"{source}: {len(words)} words but {len(vectors)} vectors, which do not belong "
                "together: remove the file and fetch it again"
            )
        self.words = words
        self.vectors = vectors
        self.source = source
        self._sort()

    def _sort(self) -> None:
        # Half a million Python strings in a dict would take 60 MB, a sorted table of bytes takes 5.
        import pyarrow as pa
        import pyarrow.compute as pc

        order = pc.sort_indices(self.words)
        _, offsets, letters = self.words.take(order).buffers()
        self._rows = order.to_numpy().astype(np.int32)
        self._offsets = memoryview(offsets).cast("i")
        self._letters = memoryview(letters or b"")
        pa.default_memory_pool().release_unused()

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return self._row(word) >= 0

    def __getitem__(self, word: str) -> np.ndarray:
        row = self._row(word)
        if row < 0:
            raise KeyError(f"{word!r} is not among the {len(self)} words of {self.source}")
        return np.array(self.vectors[row])

    def __repr__(self) -> str:
        return f"<WordVectors {self.source}: {len(self)} words, {self.dim} dimensions>"

    def __reduce__(self):
        return load_word_vectors, (self.source,)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[1]

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of the words and the vectors, in hexadecimal."""
        digest = hashlib.sha256()
        digest.update("\n".join(self.words.to_pylist()).encode())
        for start in range(0, len(self), 1 << 16):
            digest.update(np.ascontiguousarray(self.vectors[start : start + (1 << 16)], "<f4"))
        return digest.hexdigest()

    def _row(self, word: str) -> int:
        wanted = word.encode("utf-8", "surrogatepass")
        place = bisect.bisect_left(range(len(self)), wanted, key=self._spelling)
        found = place < len(self) and self._spelling(place) == wanted
        return int(self._rows[place]) if found else -1

    def _spelling(self, place: int) -> bytes:
        return self._letters[self._offsets[place] : self._offsets[place + 1]].tobytes()

    def index(self, words: Iterable[str]) -> np.ndarray:
        """Find the rows of some words.

        Parameters
        ----------
        words : iterable of str
            The words, any number.

        Returns
        -------
        ndarray of int64, shape (m,)
            Row of each word in `vectors`, -1 where there is none.
        """
        return np.fromiter((self._row(word) for word in words), dtype=np.int64)

    def most_similar(self, word: str | np.ndarray, n: int = 10) -> list[tuple[str, float]]:
        """Find the words whose vectors point most nearly the same way.

        Parameters
        ----------
        word : str or ndarray of shape (d,)
            A known word, which is left out of the answer, or any vector.
        n : int, default=10
            How many words.

        Returns
        -------
        list of (str, float)
            Words and cosine similarities, the most similar first.

        Raises
        ------
        KeyError
            If the word has no vector.
        """
        vector = self[word] if isinstance(word, str) else np.asarray(word, dtype=np.float32)
        similarity = self.vectors @ vector / (self._lengths * np.linalg.norm(vector))
        if isinstance(word, str):
            similarity[self._row(word)] = -np.inf
        best = np.argsort(-similarity, kind="stable")[: min(n, len(self))]
        return [(self.words[i].as_py(), float(similarity[i])) for i in best]

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        length = np.sqrt(np.einsum("ij,ij->i", self.vectors, self.vectors))
        return np.where(length > 0, length, 1)


def load_word_vectors(source: str | os.PathLike = "glove-6b-50d") -> WordVectors:
    """Open word vectors.

    Parameters
    ----------
    source : str or path, default="glove-6b-50d"
        ``"glove-6b-50d"``, the 400,000 vectors of [1]_ that come by pip; or a text file with a
        word and its numbers on each line (``glove.*.txt``), with or without the first line of
        word2vec and fastText (``.vec``) that says how many lines and how many numbers follow.

    Returns
    -------
    WordVectors
        The vectors, memory-mapped. Opening the same file again in one process returns the same
        object.

    Raises
    ------
    TextError
        If the file is missing, empty or not UTF-8, or if a line has the wrong number of values or
        one that is not a finite number. The message names the line.

    Warns
    -----
    UserWarning
        If words occur twice. The first line of each counts, as in gensim: in files sorted by
        frequency it is the one of the more frequent spelling.

    Notes
    -----
    A text file is parsed once; its words and vectors are then kept in `cmlearn.runtime.cache_dir`
    under the SHA-256 of the file. Only blanks (or only tabs) separate values and only line feeds
    end lines, so a word may hold any other character. A word may even hold blanks, like ``. . .``
    in glove.840B: the last values on the line are the vector. Such words come last.

    References
    ----------
    .. [1] J. Pennington, R. Socher and C. D. Manning, "GloVe: Global Vectors for Word
       Representation", EMNLP 2014, https://doi.org/10.3115/v1/D14-1162

    Examples
    --------
    >>> from cmlearn.text import load_word_vectors
    >>> load_word_vectors()
    <WordVectors glove-6b-50d: 400000 words, 50 dimensions>
    """
    if source in BUNDLED:
        return _open_bundled(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise TextError(
            f"{source}: no such file of word vectors. Give the path of a glove.*.txt or .vec "
            f"file, or one of the names that come by pip: {', '.join(BUNDLED)}"
        )
    status = path.stat()
    return _open_text(str(path.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _open_bundled(name: str) -> WordVectors:
    from cmlearn.assets import fetch

    folder = fetch(name)
    (vectors,) = folder.rglob("*.npy")
    (words,) = folder.rglob("*.parquet")
    return WordVectors(_read_words(words), np.load(vectors, mmap_mode="r"), name)


@functools.lru_cache(maxsize=4)
def _open_text(path: str, size: int, modified: int) -> WordVectors:
    """Open a text file; size and time of change are there to tell its versions apart."""
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_dir() / "word_vectors"
    folder.mkdir(exist_ok=True)
    vectors = folder / f"{content}-{_READER}.npy"
    words = vectors.with_suffix(".parquet")
    # The words are written last: where they are, the vectors are whole.
    if not words.exists():
        _convert(Path(path), vectors, words)
    opened = WordVectors(_read_words(words), np.load(vectors, mmap_mode="r"), path)
    _warn_duplicates(words, path)
    return opened


def _read_words(path: Path):
    import pyarrow.parquet as pq

    column = pq.read_table(path, use_threads=False).column(0).combine_chunks()
    return column


def _warn_duplicates(words: Path, source: str) -> None:
    import pyarrow.parquet as pq

    note = (pq.read_schema(words).metadata or {}).get(b"duplicates")
    if note:
        warnings.warn(f"{source}: {note.decode()}", stacklevel=4)


@dataclass(frozen=True)
class _Layout:
    """How a text file is laid out, as its first lines tell."""

    separator: str
    dim: int
    header: bool
    announced: int | None
    trailing: bool

    @property
    def columns(self) -> list[str]:
        numbers = [str(i) for i in range(self.dim)]
        return ["word", *numbers, *(["nothing"] if self.trailing else [])]


def _layout(path: Path) -> _Layout:
    with open(path, "rb") as file:
        lines = [file.readline(_BLOCK), file.readline(_BLOCK)]
    if not lines[0].strip():
        raise TextError(
            f"{path}: the file is empty or starts with an empty line; expected a word and its "
            "numbers on each line"
        )
    first = _decode(lines[0], path, 1).removeprefix("\ufeff")
    separator = " " if " " in first else "\t"
    values = first.rstrip(" \t\r\n").split(separator)
    header = len(values) == 2 and all(value.isascii() and value.isdigit() for value in values)
    if header and not lines[1].strip():
        raise TextError(f"{path}: nothing follows the first line, {first.strip()!r}")
    sample = _decode(lines[1], path, 2) if header else first
    sample = sample.rstrip("\r\n")
    dim = int(values[1]) if header else len(values) - 1
    if dim < 1:
        raise TextError(f"{path}: line 1 holds a word and no numbers: {first.strip()!r}")
    return _Layout(
        separator=separator,
        dim=dim,
        header=header,
        announced=int(values[0]) if header else None,
        trailing=sample.endswith(separator),
    )


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path}: line {number} is not UTF-8 (byte {error.start + 1} of the line is "
            f"0x{line[error.start]:02x}). Unpack the file if it is compressed or binary; convert "
            "it to UTF-8 if it is text in another encoding"
        ) from None


def _convert(path: Path, vectors: Path, words: Path) -> None:
    """Write the words and vectors of a text file as Parquet and npy, each whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    layout = _layout(path)
    with replace_when_whole(vectors) as temporary:
        try:
            table = _parse(path, layout, temporary)
        except pa.ArrowInvalid as error:
            _name_bad_line(path, layout)
            raise TextError(f"{path}: {error}") from error
        if layout.announced not in (None, len(table)):
            raise TextError(
                f"{path}: line 1 announces {layout.announced} words, but {len(table)} follow. Is "
                "the file cut off? Download it again, or correct its first line"
            )
        table, note = _drop_duplicates(path, table, temporary)
    schema = pa.schema([("word", pa.string())], metadata={"duplicates": note} if note else None)
    with replace_when_whole(words) as temporary:
        pq.write_table(pa.table([table], schema=schema), temporary)


def _parse(path: Path, layout: _Layout, target: Path):
    """Write the vectors of a text file to `target` in npy format, and return its words."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.csv

    odd_lines: list[str] = []
    types = {name: pa.float32() for name in layout.columns} | {
        "word": pa.string(),
        "nothing": pa.string(),
    }
    words = []

    def keep_aside(line) -> str:
        odd_lines.append(line.text)
        return "skip"

    with open(path, "rb") as source, open(target, "wb") as file:
        if layout.header:
            source.readline()
        reader = pyarrow.csv.open_csv(
            source,
            read_options=pyarrow.csv.ReadOptions(column_names=layout.columns, block_size=_BLOCK),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=layout.separator, quote_char=False, invalid_row_handler=keep_aside
            ),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, null_values=[]),
        )
        _write_npy_header(file, 0, layout.dim)
        for batch in reader:
            words += [batch.column(0)] if len(batch) else []
            _write_vectors(file, batch.columns[1 : layout.dim + 1])
            if layout.trailing and not _all_empty(batch.columns[-1]):
                raise pa.ArrowInvalid("a line has too many values")
        if odd_lines:
            rare, numbers = _read_odd_lines(odd_lines, layout)
            words.append(pa.array(rare, pa.string()))
            file.write(numbers.tobytes())
        words = pa.chunked_array(words, pa.string()).combine_chunks()
        file.seek(0)
        _write_npy_header(file, len(words), layout.dim)
    if pa.compute.index(words, "").as_py() >= 0:
        raise pa.ArrowInvalid("a line starts with its separator, so it has no word")
    return words


def _all_empty(column) -> bool:
    import pyarrow.compute as pc

    return pc.sum(pc.utf8_length(column)).as_py() in (None, 0)


def _write_npy_header(file, n: int, dim: int) -> None:
    # NumPy leaves room for the first axis to grow, so the header can be written again.
    header = {"descr": "<f4", "fortran_order": False, "shape": (n, dim)}
    np.lib.format.write_array_header_1_0(file, header)


def _write_vectors(file, columns) -> None:
    import pyarrow as pa

    block = np.stack([column.to_numpy() for column in columns], axis=1)
    if not np.isfinite(block).all():
        raise pa.ArrowInvalid("a value is not a finite number")
    file.write(block.tobytes())


def _read_odd_lines(lines: list[str], layout: _Layout) -> tuple[list[str], np.ndarray]:
    """Read lines that do not split into the expected number of values."""
    import pyarrow as pa

    split = [_split_line(line, layout) for line in lines]
    if any(isinstance(entry, str) for entry in split):
        raise pa.ArrowInvalid("a line has the wrong number of values")
    return [word for word, _ in split], np.array([values for _, values in split], np.float32)


def _split_line(line: str, layout: _Layout) -> tuple[str, list[float]] | str:
    """Return the word and numbers of a line, or what is wrong with it."""
    values = line.rstrip("\r\n").removesuffix(layout.separator).split(layout.separator)
    word = layout.separator.join(values[: -layout.dim])
    surplus = len(values) - 1 - layout.dim
    # More numbers than expected are a vector of another width, not a word with blanks in it.
    if surplus < 0 or (surplus > 0 and _is_number(values[surplus])):
        found = f"has {len(values) - 1} numbers after the word {values[0]!r}"
        return f"{found}, but line 1 calls for {layout.dim}"
    if not word:
        return f"starts with its separator ({layout.separator!r}), so it has no word"
    for value in values[-layout.dim :]:
        if not _is_number(value):
            return f"has {value!r} where a number is expected"
        if not abs(float(value)) <= float(np.finfo(np.float32).max):
            return f"has {value!r}, which is not a finite number"
    return word, [float(value) for value in values[-layout.dim :]]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _name_bad_line(path: Path, layout: _Layout) -> None:
    """Raise an error that names the first bad line, found by reading slowly."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip(b"\r\n") or (layout.header and number == 1):
                continue
            text = _decode(line, path, number)
            problem = _split_line(text.removeprefix("\ufeff") if number == 1 else text, layout)
            if isinstance(problem, str):
                raise TextError(
                    f"{path}: line {number} {problem}. Correct or remove the line; if it is the "
                    "last one, the file may be cut off: download it again"
                )


def _drop_duplicates(path: Path, words, vectors: Path):
    """Keep the first line of each word; return the words and a note on what was left out."""
    import pyarrow.compute as pc

    codes = words.dictionary_encode().indices.to_numpy()
    if not len(codes) or codes.max() + 1 == len(codes):
        return words, None
    keep = np.sort(np.unique(codes, return_index=True)[1])
    first = words[int(np.setdiff1d(np.arange(len(codes)), keep)[0])].as_py()
    _keep_rows(vectors, keep)
    lines = _lines_of(path, first)
    note = (
        f"{len(codes) - len(keep)} lines repeat a word of an earlier line and were left out, "
        f"the first of them {first!r} on line {lines[1]} (kept: line {lines[0]})"
    )
    return pc.take(words, keep), note


def _keep_rows(vectors: Path, keep: np.ndarray) -> None:
    stored = np.load(vectors, mmap_mode="r+")
    # Rows only move towards the start, so none is overwritten before it is read.
    for start in range(0, len(keep), 1 << 16):
        chunk = keep[start : start + (1 << 16)]
        stored[start : start + len(chunk)] = stored[chunk]
    stored.flush()
    end = stored.offset + len(keep) * stored.strides[0]
    dim = stored.shape[1]
    del stored
    with open(vectors, "r+b") as file:
        _write_npy_header(file, len(keep), dim)
        file.truncate(end)


def _lines_of(path: Path, word: str) -> list[int]:
    starts = (word.encode() + b" ", word.encode() + b"\t")
    with open(path, "rb") as file:
        return [number for number, line in enumerate(file, 1) if line.startswith(starts)]
