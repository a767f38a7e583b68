"""Features of more pairs than one process should take: chunk by chunk, or by workers of Ray.

Both ways read the pairs with `cmlearn.datasets.iter_pairs`, encode them with the same encoders and
write the same Parquet file, a row group a chunk.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import pickle
import secrets
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow
    from sklearn.base import BaseEstimator

__all__ = ["ENGINES", "Costs", "amdahl_speedup", "embed_pairs", "measure_costs"]

ENGINES = ("local", "ray")
_OBJECT_STORE = 128 * 2**20  # bytes: a few chunks on their way, never the whole input
_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_memory_monitor_refresh_ms": "0",  # it kills workers for what other programs hold
    "TF_NUM_INTRAOP_THREADS": "1",  # a worker a core
    "TF_NUM_INTEROP_THREADS": "1",
}


def embed_pairs(
    data: str | os.PathLike,
    out: str | os.PathLike,
    encoders: dict[str, BaseEstimator],
    *,
    engine: str = "local",
    workers: int = 2,
    encoding: str = "utf-8",
) -> int:
    """Write the features of pairs to a Parquet file, a row group a chunk of 256 pairs.

    Parameters
    ----------
    data : path-like
        What `cmlearn.datasets.iter_pairs` reads: a folder, a CSV or a Parquet file.
    out : path-like
        The Parquet file. It holds the columns of `data`, without pictures that came as bytes,
        and a column ``<name>_features`` an encoder: a fixed-size list of float32.
    encoders : dict of str to transformer
        ``"image"`` and, where there are texts to encode, ``"text"``: transformers that learn
        nothing from what they are fitted to.
    engine : {"local", "ray"}
        ``"local"`` works in this process. ``"ray"`` reads in one process of Ray Data [1]_ and
        encodes in `workers` others, each of which loads the encoders once. The rows and their
        order are the same.
    workers : int, default=2
        Processes that encode at once, with ``engine="ray"``. Each computes with one thread.
    encoding : str, default="utf-8"
        Of ``texts.txt`` or the CSV file.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    ImageError, DatasetError
        When a picture or row cannot be used, or the data have a column of features already; the
        message names it. Nothing is written to `out`.
    ImportError
        When `engine` is ``"ray"`` and Ray is not installed.
    ValueError
        When `engine` or `workers` is none that exists.

    Notes
    -----
    With ``"ray"`` each worker writes its chunks to the folder ``<out>.parts``, one file a chunk,
    named by its number and by a fingerprint of the chunk and the encoders. A worker that dies is
    started again and repeats one chunk. A run that was killed goes on with the chunks that have
    no file yet; one whose pairs or encoders have changed has another fingerprint and is made
    anew. At the end the files are joined in order, and the folder is removed.

    Ray is started for the call on this machine alone, or, where ``RAY_ADDRESS`` names a cluster,
    joined; then `data` and `out` must lie where all machines see them.

    References
    ----------
    .. [1] P. Moritz et al., "Ray: a distributed framework for emerging AI applications", OSDI
       2018. https://www.usenix.org/conference/osdi18/presentation/moritz
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} must be one of {', '.join(map(repr, ENGINES))}.")
    if workers < 1:
        raise ValueError(f"workers={workers!r} must be at least 1.")
    if engine == "ray":
        return _embed_with_ray(Path(data), Path(out), encoders, workers, encoding)
    return _embed_here(Path(data), Path(out), encoders, encoding)


# What it costs


class Costs(NamedTuple):
    """What a pair costs, and what a run costs before its first pair.

    Parameters
    ----------
    decode, encode : float
        Core seconds a pair: reading and decoding the picture; encoding it.
    join : float
        Seconds a pair that one process alone can spend: copying its features into one file.
    start : float
        Seconds before the first pair, on every worker at once.
    input_bytes, output_bytes : float
        Bytes a pair, on disk: the picture and its text; its features.
    """

    decode: float
    encode: float
    join: float
    start: float
    input_bytes: float
    output_bytes: float

    def seconds(self, pairs: float, *, workers: int = 1) -> float:
        """Return the time that `workers` cores take for so many pairs.

        Parameters
        ----------
        pairs : float
            How many.
        workers : int, default=1
            Cores that decode and encode at once.

        Returns
        -------
        float
            ``start + pairs * ((decode + encode) / workers + join)``.
        """
        return self.start + pairs * ((self.decode + self.encode) / workers + self.join)

    def serial_share(self) -> float:
        """Return the share of a pair's work that no second worker can take over."""
        return self.join / (self.decode + self.encode + self.join)

    def table(
        self, pairs: float, *, workers: int, bandwidth: float, price: float
    ) -> dict[str, float]:
        """Return what a run takes.

        Parameters
        ----------
        pairs : float
            How many.
        workers : int
            Cores that decode and encode at once.
        bandwidth : float
            Bytes a second at which all workers together can read the pictures.
        price : float
            Of a core for an hour, in the currency that the answer is wanted in.

        Returns
        -------
        dict
            ``core_hours``, ``hours`` on the clock (the slower of computing and reading),
            ``read_tb`` and ``written_tb`` (10^12 bytes), ``price``: every core is paid for until
            the last has finished.
        """
        computing = self.seconds(pairs, workers=workers)
        hours = max(computing, pairs * self.input_bytes / bandwidth) / 3600
        return {
            "core_hours": self.seconds(pairs) / 3600,
            "hours": hours,
            "read_tb": pairs * self.input_bytes / 1e12,
            "written_tb": pairs * self.output_bytes / 1e12,
            "price": price * workers * hours,
        }


def amdahl_speedup(serial_share: float, workers: int) -> float:
    """Return how many times as fast `workers` are as one, by Amdahl's law [1]_.

    Parameters
    ----------
    serial_share : float
        Share of one worker's time that cannot be divided, between 0 and 1.
    workers : int
        At least 1.

    Returns
    -------
    float
        ``1 / (serial_share + (1 - serial_share) / workers)``.

    Raises
    ------
    ValueError
        When an argument is outside its range.

    References
    ----------
    .. [1] G. M. Amdahl, "Validity of the single processor approach to achieving large scale
       computing capabilities", AFIPS 1967. https://doi.org/10.1145/1465482.1465560

    Examples
    --------
    >>> amdahl_speedup(0.1, 2).__round__(2), amdahl_speedup(0.1, 1000).__round__(1)
    (1.82, 9.9)
    """
    if not 0 <= serial_share <= 1:
        raise ValueError(f"serial_share={serial_share!r} must be between 0 and 1.")
    if workers < 1:
        raise ValueError(f"workers={workers!r} must be at least 1.")
    return 1 / (serial_share + (1 - serial_share) / workers)


def measure_costs(data: str | os.PathLike, encoder: BaseEstimator, *, start: float = 0.0) -> Costs:
    """Measure what a pair costs on this machine, from a sample of the input.

    Parameters
    ----------
    data : path-like
        The sample, as for `embed_pairs`; of 1,000 pairs, say.
    encoder : transformer
        Of images. Its cache must be off.
    start : float, default=0.0
        Seconds before the first pair, measured elsewhere: a process cannot time its own start.

    Returns
    -------
    Costs
        From processor time, which other programs on the machine lengthen less than the clock's.
    """
    from cmlearn.datasets import iter_pairs
    from cmlearn.image import decode, read_bytes

    encoder.fit_transform(next(iter_pairs(data))[1]["image"].head(8))  # what the first call builds
    seconds = dict.fromkeys(("decode", "encode", "join"), 0.0)
    pairs = input_bytes = 0
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        chunks = iter_pairs(data)
        while True:
            with _timed(seconds, "decode"):
                table, chunk = next(chunks, (None, None))
                pixels = [] if chunk is None else [decode(image) for image in chunk["image"]]
            if chunk is None:
                break
            with _timed(seconds, "encode"):
                features = append_features(table, chunk.assign(image=pixels), {"image": encoder})
                part = f"{len(parts)}.parquet"
                _write(Path(folder) / part, iter([features]))
            parts.append(part)
            pairs += len(chunk)
            input_bytes += sum(len(read_bytes(image)) for image in chunk["image"])
        with _timed(seconds, "join"):
            _join(Path(folder), parts, Path(folder) / "all.parquet")
        output_bytes = (Path(folder) / "all.parquet").stat().st_size
    each = {name: value / pairs for name, value in seconds.items()}
    return Costs(
        **each, start=start, input_bytes=input_bytes / pairs, output_bytes=output_bytes / pairs
    )


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.process_time()
    yield
    seconds[name] += time.process_time() - started


# In this process


def _embed_here(data: Path, out: Path, encoders: dict[str, BaseEstimator], encoding: str) -> int:
    from tqdm import tqdm

    from cmlearn.datasets import iter_pairs

    with tqdm(unit=" pairs", disable=None) as bar:
        chunks = iter_pairs(data, encoding=encoding)
        return _write(out, (append_features(*chunk, encoders) for chunk in chunks), bar.update)


def _write(out: Path, tables: Iterator[pyarrow.Table], update=lambda rows: None) -> int:
    """Write tables of one schema as the row groups of one file."""
    import pyarrow.parquet

    from cmlearn.runtime import replace_when_whole

    rows = 0
    with replace_when_whole(out) as partial, contextlib.ExitStack() as stack:
        writer = None
        for table in tables:
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(partial, table.schema)
                stack.callback(writer.close)
            writer.write_table(table)
            rows += len(table)
            update(len(table))
    return rows


def append_features(
    table: pd.DataFrame, pairs: pd.DataFrame, encoders: dict[str, BaseEstimator]
) -> pyarrow.Table:
    """Return the table with a fixed-size float32 list an encoder added.

    Pictures that came as bytes are left out: their features stand for them.
    """
    import pyarrow as pa

    from cmlearn.datasets import DatasetError

    features = pa.Table.from_pandas(without_embedded_images(table), preserve_index=False)
    for name, encoder in encoders.items():
        if name in pairs:
            if f"{name}_features" in table:
                raise DatasetError(
                    f"{table.index[0]}: there is a column {name}_features already; rename it or "
                    "take it out, so that the new features have a place"
                )
            with naming_rows(pairs):
                vectors = encoder.fit_transform(pairs[name])
            flat = pa.array(vectors.ravel(), type=pa.float32())
            column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
            if features.num_columns:
                features = features.append_column(f"{name}_features", column)
            else:  # a file of nothing but pictures; Arrow counts no rows in a table of no columns
                features = pa.table({f"{name}_features": column})
    return features


def without_embedded_images(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without a column that holds whole pictures, as a Parquet file's may."""
    embedded = [name for name in table if isinstance(table[name].iloc[0], dict | bytes)]
    return table.drop(columns=[name for name in embedded if name in ("image", "file_name")])


@contextlib.contextmanager
def naming_rows(pairs: pd.DataFrame) -> Iterator[None]:
    """Name the row of a picture that cannot be decoded by the index of ``pairs``."""
    from cmlearn.image import ImageError, decode

    try:
        yield
    except ImageError:
        for place, image in pairs["image"].items():
            try:
                decode(image)
            except ImageError as error:
                raise ImageError(f"{place}: {error}") from error
        raise


# With Ray


class _Report(NamedTuple):
    """What comes back to the driver of a chunk: a few bytes, never its features."""

    part: str
    rows: int
    warnings: list[Warning]
    error: Exception | None


def _embed_with_ray(
    data: Path, out: Path, encoders: dict[str, BaseEstimator], workers: int, encoding: str
) -> int:
    from tqdm import tqdm

    _check_ray()
    data, out = data.expanduser().absolute(), out.expanduser().absolute()
    folder = out.with_name(f"{out.name}.parts")
    parts = []
    with _ray(workers), warnings.catch_warnings(), tqdm(unit=" pairs", disable=None) as bar:
        warnings.filterwarnings("ignore", module=r"ray\b")
        for report in _reports(data, folder, encoders, workers, encoding):
            if report.error is not None:
                raise report.error
            for warning in report.warnings:
                warnings.warn(warning, stacklevel=4)
            parts.append(report.part)
            bar.update(report.rows)
    rows = _join(folder, parts, out)
    shutil.rmtree(folder)
    return rows


def _check_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ImportError(
            "the engine 'ray' needs Ray, which is not installed. "
            "Install it with: pip install 'ray[data]>=2.40'"
        )


def _join(folder: Path, parts: list[str], out: Path) -> int:
    import pyarrow.parquet

    return _write(out, (pyarrow.parquet.read_table(folder / part) for part in parts))


@contextlib.contextmanager
def _ray(workers: int) -> Iterator[None]:
    """Start Ray on this machine, without dashboard and messages, and stop it in any case."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_settings(_RAY_SETTINGS))
        import ray

        if ray.is_initialized():  # somebody else's: it is theirs to stop
            yield
            return
        options = {"logging_level": "error", "log_to_driver": False}
        if "RAY_ADDRESS" not in os.environ:
            # A token of our own, so that no other user of this machine can send tasks.
            stack.enter_context(_settings({"RAY_AUTH_TOKEN": secrets.token_hex(32)}))
            folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            options |= {
                "num_cpus": workers + 1,  # one for Ray's own tasks
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": stack.enter_context(folder),
            }
        stack.callback(_silently, ray.shutdown)
        _silently(lambda: ray.init(**options))
        yield


def _silently(function: Callable[[], object]) -> None:
    """Call a function while what the process writes to its error stream goes nowhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        function()
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _settings(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, for a while."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _reports(
    data: Path, folder: Path, encoders: dict[str, BaseEstimator], workers: int, encoding: str
) -> Iterator[_Report]:
    """Yield what became of each chunk, in order, as it comes."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a chunk a block: blocks are what workers share out
    with ray.data.DataContext.current(context):
        results = (
            ray.data.from_items([{"encoding": encoding}])
            # num_cpus=0: a reader waits for the disk, and Ray must not run it inside a worker.
            .map_batches(_read, fn_args=(data, folder, encoders), batch_size=None, num_cpus=0)
            .map_batches(
                _Worker,
                fn_constructor_args=(folder, encoders),
                compute=ray.data.ActorPoolStrategy(size=workers),
                batch_size=1,
                num_cpus=1,
            )
        )
        for row in results.iter_rows():
            yield pickle.loads(row["report"])


def _read(
    batch: dict, data: Path, folder: Path, encoders: dict[str, BaseEstimator]
) -> Iterator[dict[str, list]]:
    """Yield a row a chunk: what a worker needs, or the report of what is finished or failed."""
    from cmlearn.datasets import iter_pairs

    recipe = repr(sorted((name, repr(encoder)) for name, encoder in encoders.items()))
    try:
        for number, chunk in enumerate(iter_pairs(data, encoding=str(batch["encoding"][0]))):
            part = f"{number:09d}-{_fingerprint(recipe, *chunk)}.parquet"
            if (folder / part).exists():
                report = _Report(part, len(chunk[0]), [], None)
                yield {"part": [part], "chunk": [b""], "report": [pickle.dumps(report)]}
            else:
                yield {"part": [part], "chunk": [pickle.dumps(chunk)], "report": [b""]}
    except (ValueError, OSError) as error:
        report = _Report("", 0, [], error)
        yield {"part": [""], "chunk": [b""], "report": [pickle.dumps(report)]}


def _fingerprint(recipe: str, table: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Return a digest of all that decides a part: encoders, rows, and the pictures' files."""
    whole = hashlib.sha256(recipe.encode())
    for name, column in table.items():
        whole.update(repr(name).encode())
        for value in column:
            whole.update(repr(value).encode())
    for image in pairs["image"]:
        if not isinstance(image, bytes):
            with contextlib.suppress(OSError):  # the worker will name what is missing
                status = os.stat(image)
                whole.update(f"{image} {status.st_size} {status.st_mtime_ns}".encode())
    return whole.hexdigest()[:16]


class _Worker:
    """Encodes chunks and writes a part of each; Ray Data keeps it, and with it the encoders."""

    def __init__(self, folder: Path, encoders: dict[str, BaseEstimator]):
        self.folder = folder
        self.encoders = encoders

    def __call__(self, batch: dict) -> dict[str, list[bytes]]:
        report = bytes(batch["report"][0])
        if not report:
            report = pickle.dumps(self._encode(str(batch["part"][0]), bytes(batch["chunk"][0])))
        return {"report": [report]}

    def _encode(self, part: str, chunk: bytes) -> _Report:
        from cmlearn.assets import AssetError

        table, pairs = pickle.loads(chunk)
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always", UserWarning)
                features = append_features(table, pairs, self.encoders)
            rows = _write(self.folder / part, iter([features]))
        except (ValueError, OSError, MemoryError, AssetError) as error:
            return _Report(part, 0, [], error)
        return _Report(part, rows, [warning.message for warning in heard], None)
