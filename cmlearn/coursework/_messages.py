"""Plain data as JSON and back: what passes between a grader and a submission's process.

No pickle, which would let a submission run code in the grader. What has no plain form stays where
it is, and only a number for it is sent.
"""

from __future__ import annotations

import base64
import decimal
import io
import json
import numbers
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import scipy.sparse

LARGEST = 32 * 2**20  # bytes of one message, which the grader's own memory has to bear
LONGEST = 2**20  # rows of an array that holds nothing
_PLAIN = (bool, int, float, str)
_PLAIN_KINDS = "biufcUSMm"  # of an array


def send(stream: BinaryIO, message: dict) -> None:
    """Write one message: its length in 8 bytes, and its JSON."""
    content = json.dumps(message).encode()
    stream.write(struct.pack(">Q", len(content)) + content)
    stream.flush()


def receive(stream: BinaryIO) -> dict:
    """Read one message; raise EOFError when the other side is gone, ValueError for nonsense."""
    (length,) = struct.unpack(">Q", _exactly(stream, 8))
    if length > LARGEST:
        raise ValueError(f"a message of {length} bytes is larger than {LARGEST} bytes")
    try:
        message = json.loads(_exactly(stream, length))
    except RecursionError:
        raise ValueError("a message that is nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("a message that is no object")
    return message


def _exactly(stream: BinaryIO, length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Return what JSON can hold; `keep` numbers an object that has no plain form."""
    if value is None or type(value) in _PLAIN:
        return value
    if value is ...:
        return {"is": "ellipsis"}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"is": "scalar", "of": _encode_array(np.asarray(value))}
    if np.ma.isMaskedArray(value):
        if np.ma.is_masked(value):
            return {"is": "kept", "of": keep(value), "type": type(value).__name__}
        value = value.data
    if isinstance(value, np.ndarray) and value.dtype.kind in _PLAIN_KINDS:
        return {"is": "array", "of": _encode_array(value)}
    if scipy.sparse.issparse(value):
        value = value.tocsr()
        parts = [_encode_array(a) for a in (value.data, value.indices, value.indptr)]
        return {"is": "sparse", "of": parts, "shape": list(value.shape)}
    if isinstance(value, pd.DataFrame):
        columns = [_encode_column(value.iloc[:, i], keep) for i in range(value.shape[1])]
        names = encode(value.columns.tolist(), keep)
        return {"is": "frame", "names": names, "of": columns,
                "index": encode(value.index.tolist(), keep)}  # fmt: skip
    if isinstance(value, pd.Series):
        names, index = encode(value.name, keep), encode(value.index.tolist(), keep)
        return {"is": "series", "name": names, "of": _encode_column(value, keep), "index": index}
    if isinstance(value, pd.Index):
        return {"is": "index", "of": encode(value.tolist(), keep)}
    if isinstance(value, np.ndarray):  # of objects
        return {"is": "objects", "of": encode(value.ravel().tolist(), keep),
                "shape": list(value.shape)}  # fmt: skip
    for name, kind in (("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return {"is": name, "of": [encode(item, keep) for item in value]}
    if isinstance(value, dict):
        return {"is": "dict", "of": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    if isinstance(value, str | bytes):
        return str(value) if isinstance(value, str) else {"is": "bytes", "of": value.hex()}
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real | decimal.Decimal):
        return float(value)
    array = _as_array(value)
    if array is not None:
        return {"is": "array" if array.ndim else "scalar", "of": _encode_array(array)}
    return {"is": "kept", "of": keep(value), "type": type(value).__name__}


def decode(value: Any, fetch: Callable[[int, str], Any]) -> Any:
    """Return the data; `fetch` makes something of an object that stayed on the other side."""
    if not isinstance(value, dict):
        return value
    kind, content = value["is"], value.get("of")
    if kind == "ellipsis":
        return ...
    if kind == "kept":
        return fetch(content, str(value.get("type")))
    if kind == "array":
        return _decode_array(content)
    if kind == "scalar":
        return _decode_array(content)[()]
    if kind == "sparse":
        parts = tuple(_decode_array(part) for part in content)
        return scipy.sparse.csr_matrix(parts, shape=tuple(value["shape"]))
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {decode(k, fetch): decode(v, fetch) for k, v in content}
    if kind == "frame":
        names = decode(value["names"], fetch)
        columns = {i: decode(column, fetch) for i, column in enumerate(content)}
        frame = pd.DataFrame(columns, index=decode(value["index"], fetch))
        return frame.set_axis(names, axis=1)
    if kind == "series":
        index, name = decode(value["index"], fetch), decode(value["name"], fetch)
        return pd.Series(decode(content, fetch), index=index, name=name)
    if kind == "index":
        return pd.Index(decode(content, fetch))
    if kind == "objects":
        items = decode(content, fetch)
        array = np.empty(len(items), dtype=object)
        for place, item in enumerate(items):  # a slice would unpack lists of one length
            array[place] = item
        return array.reshape(value["shape"])
    kinds = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[kind](decode(item, fetch) for item in content)


def _as_array(value: Any) -> np.ndarray | None:
    """Return a tensor's numbers, be it of Keras, TensorFlow, JAX or PyTorch; else None."""
    if not hasattr(type(value), "__array__") or hasattr(type(value), "fit"):
        return None
    try:
        array = np.asarray(value)
    except Exception:  # a tensor that has no numbers yet, or needs a gradient
        return None
    return array if array.dtype.kind in _PLAIN_KINDS else None


def _encode_column(column: pd.Series, keep: Callable[[Any], int]) -> Any:
    """Return a column of numbers or times as an array, which keeps its type; others as a list."""
    plain = isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufcMm"
    return encode(column.to_numpy() if plain else column.tolist(), keep)


def _encode_array(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def _decode_array(text: str) -> np.ndarray:
    array = np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
    if array.nbytes == 0 and max(array.shape, default=0) > LONGEST:
        raise ValueError(f"an array of shape {array.shape} that holds nothing")
    return array
