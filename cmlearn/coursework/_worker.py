"""Run in the sandbox: execute a submission's cells, and answer what the grader asks about them.

Started with the numbers of two open files, one to read requests from and one to write replies to.
Nothing here is secret, and nothing here is trusted: a submission can change all of it, and gains
no more than it would by giving other answers.
"""

from __future__ import annotations

import builtins
import itertools
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from cmlearn.coursework import _messages

_LONGEST_ITERATION = 100_000


def main() -> None:
    """Answer requests until there are no more."""
    requests, replies = (os.fdopen(int(fd), mode) for fd, mode in zip(sys.argv[1:3], ("rb", "wb"),
                                                                      strict=True))  # fmt: skip
    cache = Path("/cache")
    if cache.is_dir():  # a copy, because the feature cache is opened for writing
        shutil.copytree(cache, os.environ["CMLEARN_CACHE"])
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance(colors="nocolor", history_manager=None)
    submission = Submission(shell)
    signal.signal(signal.SIGALRM, submission.stop)
    while True:
        try:
            request = _messages.receive(requests)
        except EOFError:
            return
        _messages.send(replies, submission.answer(request))


class Submission:
    """The namespace of a submission, and the objects that the grader holds a number of."""

    def __init__(self, shell):
        self.shell = shell
        self.kept: list[Any] = []
        self.seconds = 0.0

    def stop(self, signum, frame):
        """End what takes too long."""
        raise TimeoutError(
            f"took longer than the {self.seconds:g} s that one cell or call may take"
        )

    def answer(self, request: dict) -> dict:
        """Do what is asked within its time; every failure is part of the answer."""
        self.seconds = request["seconds"]
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            return {"value": getattr(self, request["do"])(*request["of"])}
        except BaseException as error:
            return {"error": _kind(error), "message": _text(error), "trace": _trace(error)}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def run(self, source: str):
        """Execute one cell."""
        result = self.shell.run_cell(source, store_history=False)
        error = result.error_before_exec or result.error_in_exec
        sys.stdout.flush()
        if error is not None:
            raise error

    def has(self, name: str) -> bool:
        """Say whether the namespace has a name."""
        return name in self.shell.user_ns

    def get(self, name: str):
        """Return the value of a name."""
        return self.encode(self.shell.user_ns[name])

    def attribute(self, number: int, name: str):
        """Return an attribute of a kept object."""
        return self.encode(getattr(self.kept[number], name))

    def call(self, number: int, args, kwargs):
        """Call a kept object."""
        args, kwargs = (_messages.decode(a, lambda i, _: self.kept[i]) for a in (args, kwargs))
        return self.encode(self.kept[number](*args, **kwargs))

    def items(self, number: int):
        """Return what iterating over a kept object gives."""
        return self.encode(list(itertools.islice(self.kept[number], _LONGEST_ITERATION)))

    def encode(self, value: Any):
        """Return plain data, and numbers for what is none."""
        return _messages.encode(value, self.keep)

    def keep(self, value: Any) -> int:
        """Hold an object for later requests."""
        self.kept.append(value)
        return len(self.kept) - 1


def _kind(error: BaseException) -> str:
    """Return the name of the nearest of Python's own exceptions: the grader has no others."""
    ours = (c.__name__ for c in type(error).__mro__ if getattr(builtins, c.__name__, None) is c)
    return next(ours, "Exception")


def _text(error: BaseException) -> str:
    try:
        return f"{error}" if type(error).__name__ == _kind(error) else repr(error)
    except Exception:
        return type(error).__name__


def _trace(error: BaseException) -> str:
    """Return the traceback's lines from the submission's first cell on; those before are ours."""
    try:
        whole = traceback.TracebackException.from_exception(error)
        own = [i for i, f in enumerate(whole.stack) if f.filename.startswith("<ipython")]
        ours = own[0] if own else len(whole.stack)  # a cell that is no Python has none of its own
        whole.stack = traceback.StackSummary.from_list(whole.stack[ours:])
        return "".join(whole.format(chain=False))[-4000:]
    except Exception:
        return type(error).__name__


if __name__ == "__main__":
    main()
