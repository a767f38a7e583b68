"""Where and how a run happens: profile, folders, device, seed, safe writing, provenance."""

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

_STARTED = time.monotonic()
_PACKAGE = Path(__file__).resolve().parent
_MAIN_PACKAGES = ("cmlearn", "numpy", "scikit-learn", "keras", "tensorflow", "jax", "torch")
_DAY = 24 * 60 * 60  # seconds


def profile() -> str:
    """Return the size of the run: ``"quick"`` or ``"full"``.

    ``CMLEARN_PROFILE`` decides. Without it a machine whose Keras backend sees a
    GPU runs in full, any other quickly. The profile changes sizes, never the code path.

    Returns
    -------
    str
        ``"quick"`` or ``"full"``.

    Raises
    ------
    ValueError
        When ``CMLEARN_PROFILE`` holds any other value.
    """
    wanted = os.environ.get("CMLEARN_PROFILE", "")
    if wanted in ("quick", "full"):
        return wanted
    if wanted:
        raise ValueError(
            f"CMLEARN_PROFILE is {wanted!r}: set it to 'quick' or 'full', or unset it "
            "(then a machine with a GPU runs in full, any other quickly)."
        )
    return "full" if device().startswith("GPU") else "quick"


def cache_dir() -> Path:
    """Return the folder for downloads and computed features, made when missing.

    ``CMLEARN_CACHE`` names it; without it, it is the platform's user cache folder
    (``~/.cache/cmlearn`` on Linux).

    Returns
    -------
    pathlib.Path
        An existing folder.

    Raises
    ------
    OSError
        When the folder cannot be made; the message names it and the remedy.
    """
    named = os.environ.get("CMLEARN_CACHE")
    if named:
        return _make_folder(Path(named).expanduser(), "CMLEARN_CACHE")
    import platformdirs

    return _make_folder(Path(platformdirs.user_cache_dir("cmlearn", False)), "CMLEARN_CACHE")


def data_home(path: str | os.PathLike | None = None) -> Path:
    """Return the folder that holds large data sets, made when missing.

    Parameters
    ----------
    path : path-like, optional
        The folder. Without it ``CMLEARN_DATA`` names the folder, and without that
        it is ``~/cmlearn_data``.

    Returns
    -------
    pathlib.Path
        An existing folder.

    Raises
    ------
    OSError
        When the folder cannot be made; the message names it and the remedy.
    """
    folder = Path(path or os.environ.get("CMLEARN_DATA") or "~/cmlearn_data").expanduser()
    return _make_folder(folder, "CMLEARN_DATA")


def _make_folder(folder: Path, variable: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot make the folder {folder} ({error.strerror}): "
            f"set {variable} to a folder that you may write to",
        ) from error
    return folder.resolve()


def device() -> str:
    """Say in words what the Keras backend computes on.

    Keras is loaded only where an accelerator may be present, and need not be installed.

    Returns
    -------
    str
        ``"CPU (2 cores)"`` or, for instance, ``"GPU NVIDIA A100-SXM4-40GB"``.
    """
    if _may_have_gpu() and _backend_sees_gpu():
        return f"GPU {_gpu_name()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU ({cores} core{'s' if cores != 1 else ''})"


def _may_have_gpu() -> bool:
    # Importing a backend takes seconds; most machines can be told apart without it.
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    drivers = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return (
        platform.system() == "Darwin"
        or shutil.which("nvidia-smi") is not None
        or any(os.path.exists(driver) for driver in drivers)
    )


@functools.cache
def _backend_sees_gpu() -> bool:
    try:
        import keras

        return bool(keras.distribution.list_devices("gpu"))
    except Exception:  # no Keras, or a backend that cannot start: then nothing runs on a GPU
        return False


@functools.cache
def _gpu_name() -> str:
    return nvidia_smi("name") or "of unknown make"


def nvidia_smi(field: str) -> str:
    """Ask NVIDIA's own tool about the first GPU.

    Parameters
    ----------
    field : str
        What ``nvidia-smi --query-gpu`` knows by that name, such as ``"name"`` or
        ``"memory.total"``.

    Returns
    -------
    str
        The answer with its unit; empty where there is no such tool or no GPU.
    """
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        reply = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return reply.stdout.partition("\n")[0].strip()


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and, where it is installed, the Keras backend's generators.

    Parameters
    ----------
    seed : int
        Non-negative, below 2**32.

    Raises
    ------
    ValueError
        When the seed is outside that range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed is {seed}: it must be at least 0 and less than 2**32")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- libraries still draw from the old global state
    if importlib.util.find_spec("keras") is not None:
        import keras

        keras.utils.set_random_seed(seed)


@contextlib.contextmanager
def replace_when_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file or folder so that it is there whole or not at all.

    Yields a temporary path beside `path`, with the same suffix. When the block ends
    well, what was written there is flushed to disk and renamed to `path`. When it
    fails, or is interrupted, it is removed and `path` stays as it was. What a killed
    process left behind is removed by the next write to the same path, after a day.

    Parameters
    ----------
    path : path-like
        The file to write; a link stays one, and what it leads to is replaced. Missing
        parent folders are made. For a folder, `path` must not exist yet or be an empty folder.

    Yields
    ------
    pathlib.Path
        Where to write. Nothing exists there yet.

    Raises
    ------
    OSError
        When the disk is full or the folder is read-only: the message names the folder
        and the remedy.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replace_when_whole(folder / "note.txt") as partial:
    ...     _ = partial.write_text("whole")
    >>> (folder / "note.txt").read_text()
    'whole'
    """
    path = Path(os.path.realpath(path))
    with _explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_old_partials(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")
        partial = partial.with_name(partial.name + path.suffix)
        try:
            yield partial
            for written in (*partial.rglob("*"), partial):
                _flush(written)
            os.replace(partial, path)
            _flush(path.parent)
        finally:
            _remove(partial)


def _remove_old_partials(path: Path) -> None:
    for name in os.listdir(path.parent):
        if name.startswith(f".{path.name}.") and name.endswith(f".partial{path.suffix}"):
            old = path.with_name(name)
            with contextlib.suppress(FileNotFoundError):
                if time.time() - old.stat().st_mtime > _DAY:
                    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explain_write_errors(folder: Path) -> Iterator[None]:
    remedies = {
        errno.ENOSPC: "the disk is full: free some space or choose another folder",
        errno.EDQUOT: "your disk quota is used up: free some space or choose another folder",
        errno.EROFS: "it is read-only: choose a folder that you may write to",
        errno.EACCES: "you may not write there: choose another folder or change its permissions",
        errno.EPERM: "you may not write there: choose another folder or change its permissions",
        errno.ENOTDIR: "a part of this path is a file, not a folder: choose another folder",
    }
    try:
        yield
    except OSError as error:
        if getattr(error, "is_explained", False):  # a folder that was written to on the way
            raise
        about_space = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        touched = Path(error.filename) if isinstance(error.filename, str) else None
        ours = touched is not None and (touched == folder or _is_partial(touched, folder))
        above = touched is not None and touched in folder.parents
        if error.errno in remedies and (about_space or ours or above):
            message = f"cannot write in the folder {folder}: {remedies[error.errno]}"
            explained = OSError(error.errno, message)
            explained.is_explained = True
            raise explained from error
        raise


def _is_partial(path: Path, folder: Path) -> bool:
    """Say whether a path is, or lies in, what `replace_when_whole` writes in a folder."""
    if folder not in path.parents:
        return False
    name = path.relative_to(folder).parts[0]
    return name.startswith(".") and ".partial" in name


def peak_memory() -> int:
    """Return the most memory that this process has held so far, in bytes.

    Returns
    -------
    int
        Peak resident set size.
    """
    status = Path("/proc/self/status")
    if status.exists():  # getrusage on Linux counts what the parent held before exec
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def peak_gpu_memory() -> int | None:
    """Return the most memory of the first GPU that the Keras backend has held so far, in bytes.

    Returns
    -------
    int or None
        None when Keras is not loaded yet or computes on no GPU.
    """
    keras = sys.modules.get("keras")
    if keras is None or not device().startswith("GPU"):
        return None
    if keras.backend.backend() == "jax":
        import jax

        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def precision() -> str | None:
    """Return the precision that Keras computes in, such as ``"float32"`` or ``"mixed_float16"``.

    Returns
    -------
    str or None
        The name of Keras's global dtype policy; None when Keras is not loaded yet.
    """
    keras = sys.modules.get("keras")
    return None if keras is None else keras.config.dtype_policy().name


def provenance(sources: Iterable[str | os.PathLike] | None = None) -> dict:
    """Return where the numbers of this run come from.

    Parameters
    ----------
    sources : iterable of path-like, optional
        The source files that the numbers depend on, as `code_hash` takes them.
        Default: every module of `cmlearn`.

    Returns
    -------
    dict
        ``profile``, ``device``, ``python``, ``packages`` (name to version, installed
        ones only), ``seconds`` since `cmlearn.runtime` was imported,
        ``peak_memory_mib``, ``commit`` (None outside a git checkout; with "-dirty" behind it
        where one of the sources is not as it was committed), ``code_hash`` of the sources; where
        Keras is loaded, its ``precision``, and on a GPU ``peak_gpu_memory_mib``.
    """
    files = list(_PACKAGE.rglob("*.py") if sources is None else sources)
    facts = {
        "profile": profile(),
        "device": device(),
        "python": platform.python_version(),
        "packages": _versions(_MAIN_PACKAGES),
        "seconds": round(time.monotonic() - _STARTED, 1),
        "peak_memory_mib": round(peak_memory() / 2**20),
        "commit": _commit(files),
        "code_hash": code_hash(files),
    }
    if (policy := precision()) is not None:
        facts["precision"] = policy
    if (peak := peak_gpu_memory()) is not None:
        facts["peak_gpu_memory_mib"] = round(peak / 2**20)
    return facts


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _commit(files: Iterable[str | os.PathLike]) -> str | None:
    root = _PACKAGE.parent
    if not (root / ".git").exists():
        return None

    def git(*command: str | os.PathLike) -> str:
        reply = subprocess.run(
            ["git", *command], cwd=root, capture_output=True, text=True, timeout=20, check=True
        )
        return reply.stdout.strip()

    own = [file for file in files if (root / file).is_relative_to(root)]
    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", *own) if own else ""
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def code_hash(paths: Iterable[str | os.PathLike] | None = None) -> str:
    """Return a fingerprint of source files.

    Parameters
    ----------
    paths : iterable of path-like, optional
        Files, relative to the folder that holds the `cmlearn` package or absolute.
        Default: every module of `cmlearn`.

    Returns
    -------
    str
        SHA-256 in hexadecimal over names and contents, whatever the order of `paths`
        and the kind of line ends.

    Raises
    ------
    FileNotFoundError
        When one of the files does not exist.
    """
    root = _PACKAGE.parent
    if paths is None:
        paths = _PACKAGE.rglob("*.py")
    whole = hashlib.sha256()
    files = {os.path.relpath(root / path, root).replace(os.sep, "/"): root / path for path in paths}
    for name, path in sorted(files.items()):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def save_run(
    path: str | os.PathLike,
    results: dict,
    *,
    sources: Iterable[str] | None = None,
    seconds: float | None = None,
) -> None:
    """Store the results of a run, and where they come from, as JSON.

    Parameters
    ----------
    path : path-like
        The file to write; it is there whole or not at all.
    results : dict
        Whatever JSON can hold; NumPy scalars and arrays become numbers and lists.
    sources : iterable of str, optional
        The source files that the results depend on, relative to the folder that holds
        the `cmlearn` package. Default: every module of `cmlearn`.
    seconds : float, optional
        What the run took, when not all of it was done by this process.

    Raises
    ------
    ValueError
        When a result is NaN or infinite, which JSON cannot hold.
    TypeError
        When a result is of a kind that JSON cannot hold.
    """
    sources = None if sources is None else sorted(sources)
    origin = provenance(sources) | {"sources": sources}
    if seconds is not None:
        origin["seconds"] = round(seconds, 1)
    run = {"results": results, "provenance": origin}
    text = json.dumps(run, indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    with replace_when_whole(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a run cannot store {value!r}, which is a {type(value).__name__}")


def load_run(path: str | os.PathLike) -> dict:
    """Read a run that `save_run` stored.

    Parameters
    ----------
    path : path-like
        The JSON file.

    Returns
    -------
    dict
        ``results``, ``provenance`` and ``stale``: True when the code that the run
        came from has changed since.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file does not hold a stored run.
    """
    try:
        run = json.loads(Path(path).read_text(encoding="utf-8"))
        known = run["provenance"]["code_hash"]
        sources = run["provenance"]["sources"]
        run["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold a stored run ({error}): write it again with save_run"
        ) from error
    try:
        run["stale"] = known != code_hash(sources)
    except FileNotFoundError:
        run["stale"] = True
    return run
