"""Run a submission apart from everything: no network, no files but its own, bounded in every way.

The isolation is bubblewrap's [1]_. A submission's process sees the system's programs, the Python
environment and `cmlearn`, all read-only, and an empty folder; not the instructor's tests, not
other submissions. The tests stay in the grader's process and ask for values and results by a
pipe: what comes back is plain data, never code.

References
----------
.. [1] https://github.com/containers/bubblewrap
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cmlearn.coursework import _messages

__all__ = ["Limits", "Remote", "Sandbox", "SandboxError", "Stopped", "isolation", "visible_below"]

_PACKAGE = Path(__file__).resolve().parents[1]
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache",
           "/etc/alternatives", "/etc/fonts", "/etc/localtime")  # fmt: skip
_WATCH = 0.05  # seconds between two looks at what the submission uses


class SandboxError(RuntimeError):
    """There is no way to run submissions here; the message says why."""


class Stopped(RuntimeError):
    """The submission's process is gone; the message says why."""


@dataclass(frozen=True)
class Limits:
    """What one submission may use.

    Parameters
    ----------
    seconds : float, default=180
        From start to end, the tests' questions included.
    cell_seconds : float, default=60
        For one cell, or for one call of a function by a test.
    memory : float, default=3072
        MiB of main memory, all its processes together.
    processes : int, default=256
        Processes and threads at one time.
    output : float, default=8
        MiB printed.
    disk : float, default=256
        MiB of files.
    """

    seconds: float = 180
    cell_seconds: float = 60
    memory: float = 3072
    processes: int = 256
    output: float = 8
    disk: float = 256


def _read_only() -> list[Path]:
    """Return the folders and files of this machine that every submission can read."""
    python = {Path(sys.prefix), Path(sys.base_prefix)} - {Path("/usr"), Path("/")}
    return [path for path in [*map(Path, _SYSTEM), *sorted(python)] if path.exists()]


def visible_below(path: Path) -> Path | None:
    """Return the folder through which every submission could read a path, or None.

    Parameters
    ----------
    path : path
        Of the instructor's tests, for instance.

    Returns
    -------
    pathlib.Path or None
        A folder of the system, or of the Python environment.
    """
    place = path.resolve()
    return next((one for one in _read_only() if place.is_relative_to(one.resolve())), None)


def isolation() -> str | None:
    """Return why submissions cannot be isolated here, or None where they can.

    Returns
    -------
    str or None
        What is missing.
    """
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (Debian and Ubuntu: sudo apt install bubblewrap)"
    trial = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    reply = subprocess.run([*trial, "true"], capture_output=True, text=True, check=False)
    return None if reply.returncode == 0 else f"bubblewrap does not work here: {reply.stderr}"


class Remote:
    """An object that stayed in the submission's process: ask for attributes, call it, iterate.

    Arguments and results travel as plain data. An exception raised over there is raised here as
    the nearest of Python's own kinds.
    """

    def __init__(self, sandbox: Sandbox, number: int, kind: str):
        self._sandbox, self._number, self._kind = sandbox, number, kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._sandbox.ask("attribute", self._number, name)

    def __call__(self, *args, **kwargs) -> Any:
        """Call the object over there."""
        plain = (_messages.encode(a, _own_number) for a in (list(args), kwargs))
        return self._sandbox.ask("call", self._number, *plain)

    def __iter__(self) -> Iterator:
        return iter(self._sandbox.ask("items", self._number))

    def __repr__(self) -> str:
        return f"<{self._kind} of the submission>"


def _own_number(value: Any) -> int:
    value = inspect.unwrap(value)  # a function that the checks watch
    if isinstance(value, Remote):
        return value._number
    raise TypeError(f"A test can pass plain data to a submission, and not {type(value).__name__}.")


class Sandbox:
    """One submission's process, from start to `close`; a mapping of its names to their values.

    Parameters
    ----------
    limits : Limits
        What it may use.
    cache : path, optional
        A folder that the submission gets a copy of as its feature cache.
    isolated : bool, default=True
        False runs it as a plain process, with the rights of whoever grades.

    Raises
    ------
    SandboxError
        When it is to be isolated and cannot be.
    Stopped
        When its limits do not suffice to start it.
    """

    def __init__(self, limits: Limits, *, cache: Path | None = None, isolated: bool = True):
        if isolated and (reason := isolation()):
            raise SandboxError(reason)
        self.limits = limits
        self.reason: str | None = None
        self.printed = bytearray()
        self._folder = tempfile.TemporaryDirectory(prefix="cmlearn-submission-")
        requests, to_worker = os.pipe()
        from_worker, replies = os.pipe()
        worker = [sys.executable, "-m", "cmlearn.coursework._worker", str(requests), str(replies)]
        command = [*self._wrapped(cache), *worker] if isolated else worker
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(requests, replies),
            env=self._environment(isolated),
            cwd=self._folder.name,
            start_new_session=True,
            preexec_fn=self._limit_resources,
        )
        os.close(requests)
        os.close(replies)
        self._requests = os.fdopen(to_worker, "wb")
        self._replies = os.fdopen(from_worker, "rb")
        self._ends = time.monotonic() + limits.seconds
        for work in (self._watch, self._read_output):
            threading.Thread(target=work, daemon=True).start()
        try:
            self.ask("has", "")  # before any of the submission's code: what fails here is ours
        except Stopped as stopped:
            limit = self.reason
            self.close()
            if limit is not None:
                raise Stopped(f"{limit} before its first cell: this limit is too low") from None
            said = self.printed.decode("utf-8", "replace").strip()
            raise SandboxError(f"a submission's process did not start: {stopped}. {said}") from None

    def _wrapped(self, cache: Path | None) -> list[str]:
        mib = 2**20
        command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
        command += ["--cap-drop", "ALL", "--uid", "1000", "--gid", "1000", "--hostname", "course"]
        # Folders that can be written come first and have a size; the rest is closed at the end.
        for path, size in (("/tmp", self.limits.disk * mib), ("/home", 2**20)):
            command += ["--size", str(int(size)), "--tmpfs", path]
        for path in _read_only():
            command += ["--ro-bind", str(path), str(path)]
        command += ["--ro-bind", str(_PACKAGE), "/course/cmlearn"]
        if cache is not None:
            command += ["--ro-bind", str(cache.resolve()), "/cache"]
        command += ["--proc", "/proc", "--dev", "/dev", "--size", str(64 * mib), "--tmpfs"]
        command += ["/dev/shm", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
        return [*command, "--"]

    def _environment(self, isolated: bool) -> dict[str, str]:
        own = "/tmp" if isolated else self._folder.name
        path = "/course" if isolated else str(_PACKAGE.parent)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        return threads | {
            "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
            "PYTHONPATH": path,
            "HOME": own,
            "IPYTHONDIR": f"{own}/ipython",
            "MPLCONFIGDIR": f"{own}/matplotlib",
            "CMLEARN_CACHE": f"{own}/cache",
            "CMLEARN_PROFILE": "quick",
            "MPLBACKEND": "Agg",
            "TQDM_DISABLE": "1",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "LOKY_MAX_CPU_COUNT": "1",
        }

    def _limit_resources(self) -> None:
        seconds, memory = int(self.limits.seconds) + 5, int(self.limits.memory * 2**20)
        for kind, value in (
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_DATA, 2 * memory),
            (resource.RLIMIT_FSIZE, int(self.limits.disk * 2**20)),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(kind, (value, value))

    def _watch(self) -> None:
        """Stop the process as soon as it uses too much."""
        while self._process.poll() is None:
            processes, memory = self._usage()
            if time.monotonic() > self._ends:
                self._stop(f"it took longer than {self.limits.seconds:g} s")
            elif memory > self.limits.memory * 2**20:
                self._stop(f"it used more than {self.limits.memory:g} MiB of memory")
            elif processes > self.limits.processes:
                self._stop(f"it started more than {self.limits.processes} processes and threads")
            time.sleep(_WATCH)

    def _usage(self) -> tuple[int, int]:
        threads = memory = 0
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(self._process.pid)
            for process in [top, *top.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    threads += process.num_threads()
                    memory += process.memory_info().rss
        return threads, memory

    def _read_output(self) -> None:
        while chunk := self._process.stdout.read1(65536):
            self.printed += chunk
            if len(self.printed) > self.limits.output * 2**20:
                self._stop(f"it printed more than {self.limits.output:g} MiB")
                return

    def _stop(self, reason: str) -> None:
        self.reason = self.reason or reason
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def ask(self, do: str, *of) -> Any:
        """Let the submission's process do something, and return what comes of it.

        Parameters
        ----------
        do : {"run", "has", "get", "attribute", "call", "items"}
            What.
        *of
            Its arguments, already plain.

        Returns
        -------
        object
            Plain data, or a `Remote`.

        Raises
        ------
        Stopped
            When the process is gone, or was stopped for what it did.
        Exception
            What the submission's own code raised.
        """
        request = {"do": do, "of": list(of), "seconds": self.limits.cell_seconds}
        try:
            _messages.send(self._requests, request)
            reply = _messages.receive(self._replies)
        except (EOFError, OSError):
            self._process.wait()
            ended = f"its process ended by itself (exit status {self._process.returncode})"
            raise Stopped(self.reason or ended) from None
        except Exception as error:
            self._stop(f"its answer could not be read ({error})")
            raise Stopped(self.reason) from None
        if "error" in reply:
            raise _rebuilt(reply)
        try:
            return _messages.decode(reply["value"], lambda number, kind: Remote(self, number, kind))
        except Exception as error:
            self._stop(f"its answer could not be read ({error})")
            raise Stopped(self.reason) from None

    def __contains__(self, name: str) -> bool:
        return bool(self.ask("has", name))

    def __getitem__(self, name: str) -> Any:
        return self.ask("get", name)

    def close(self) -> None:
        """End the process and everything that it started."""
        self._stop("it was over")
        self._process.wait()
        self._process.stdout.close()
        for stream in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                stream.close()
        self._folder.cleanup()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _rebuilt(reply: dict) -> Exception:
    kind = getattr(builtins, str(reply["error"]), Exception)
    known = isinstance(kind, type) and issubclass(kind, Exception)
    # These two would end a loop of the test instead of failing it.
    known = known and not issubclass(kind, StopIteration | StopAsyncIteration)
    try:
        error = (kind if known else RuntimeError)(str(reply.get("message")))
    except Exception:  # a kind that wants other arguments
        error = RuntimeError(str(reply.get("message")))
    error.add_note(str(reply.get("trace")))
    return error
