"""A cache of feature vectors, addressed by the content that they were computed from.

A key is the SHA-256 of the encoder's identity (its weights and parameters) and of the item's
bytes. So a changed picture, other weights or another size can never be answered with an old
vector, and a renamed or moved file still is answered.

The store is one SQLite file. Its transactions make it safe against a killed process and against
several processes that write at once, and looking a vector up imports no deep learning library.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cmlearn.runtime import cache_dir

__all__ = ["FeatureCache"]

FILE = "features.sqlite3"
_LOOKUPS = 256  # keys asked for in one query, far below SQLite's limit of variables
_PATIENCE = 60  # seconds to wait for another process that is writing


class FeatureCache:
    """Keep and find float32 feature vectors.

    Parameters
    ----------
    identity : mapping
        What, besides the item, decides the features: encoder, weights, parameters. Must be
        JSON-serialisable.
    folder : path, optional
        Where the file `features.sqlite3` lies; `cmlearn.runtime.cache_dir` by default.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with FeatureCache({"encoder": "mean colour"}, folder=folder) as cache:
    ...         key = cache.key(b"the bytes of a picture")
    ...         cache.put_many([key], np.array([[0.5, 0.25]]))
    ...         print(cache.get_many([key])[key])
    [0.5  0.25]
    """

    def __init__(self, identity: Mapping[str, Any], *, folder: str | Path | None = None):
        canonical = json.dumps(identity, sort_keys=True, ensure_ascii=True)
        self._identity = hashlib.sha256(canonical.encode()).digest()
        self.path = Path(cache_dir() if folder is None else folder) / FILE
        with self._explained():
            self._connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            # With a write-ahead log readers and one writer do not block each other.
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
            )

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. What was put is kept."""
        self._connection.close()

    def key(self, content: bytes) -> bytes:
        """Return the address of an item.

        Parameters
        ----------
        content : bytes
            All that the item consists of.

        Returns
        -------
        bytes
            32 bytes.
        """
        return hashlib.sha256(self._identity + hashlib.sha256(content).digest()).digest()

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the vectors that are known.

        Parameters
        ----------
        keys : iterable of bytes
            What `key` returned.

        Returns
        -------
        dict of bytes to ndarray
            A float32 vector for each key that is known. Unknown keys are left out.
        """
        found, keys = {}, list(keys)
        for start in range(0, len(keys), _LOOKUPS):
            some = keys[start : start + _LOOKUPS]
            query = f"SELECT key, vector FROM features WHERE key IN ({','.join('?' * len(some))})"
            with self._explained():
                for key, vector in self._connection.execute(query, some):
                    found[key] = np.frombuffer(vector, "<f4")
        return found

    def put_many(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Keep vectors, all of them or, if the process dies, none.

        Parameters
        ----------
        keys : sequence of bytes
            What `key` returned, n of them.
        vectors : ndarray of shape (n, d)
            Stored as float32.
        """
        rows = zip(keys, np.ascontiguousarray(vectors, "<f4"), strict=True)
        with self._explained(), self._transaction():
            self._connection.executemany(
                "INSERT OR IGNORE INTO features VALUES (?, ?)",
                [(key, vector.tobytes()) for key, vector in rows],
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # SQLite has rolled back by itself after some errors, such as a full disk.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ones that name the file and the remedy."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(
                errno.EIO,
                f"The feature cache cannot be used ({error}). Free some space, wait for the other "
                "process, or set CMLEARN_CACHE to a folder that you may write to",
                str(self.path),
            ) from error
        except sqlite3.DatabaseError as error:
            raise OSError(
                errno.EIO,
                f"The feature cache is damaged ({error}). Remove the file; what it held will be "
                "computed again",
                str(self.path),
            ) from error
