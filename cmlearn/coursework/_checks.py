"""Run the checks of a question on a namespace, and tell the student what they found."""

from __future__ import annotations

import ast
import functools
import html
import inspect
import json
import re
import sys
import textwrap
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PUBLIC = Path(__file__).parent / "checks"
_LONGEST_CALL = 2000  # characters of a cell that does nothing but call the grader
_PATIENCE = 60  # seconds in which Colab hands over the notebook


class test_case:
    """Mark a function as a check, as ``otter.test_files.test_case`` does.

    Parameters
    ----------
    points : float, optional
        What the check is worth. Checks without it share what is left of the question's points.
    hidden : bool, default=False
        Whether only the instructor has it.
    success_message, failure_message, name : str, optional
        Read by otter-grader alone.
    """

    __test__ = False  # what pytest asks before it collects a class of this name

    def __init__(self, name=None, points=None, hidden=False, success_message=None,
                 failure_message=None):  # fmt: skip
        self.name, self.points, self.hidden = name, points, hidden

    def __call__(self, function: Callable) -> test_case:
        """Take the function to be run."""
        self.function = function
        self.name = self.name or function.__name__
        return self


@dataclass
class CheckResult:
    """What the checks of one question found.

    Parameters
    ----------
    question : str
        Its name.
    score, possible : float
        Points reached, and points that there are.
    messages : list of str
        A text for each check that failed.
    measures : dict of str to float
        Numbers that checks returned, for a leaderboard.
    """

    question: str
    score: float = 0.0
    possible: float = 0.0
    messages: list[str] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return not self.messages

    def __repr__(self) -> str:
        if self.passed:
            return f"{self.question}: all checks passed"
        return "\n".join([f"{self.question}: not yet", *(f"  - {m}" for m in self.messages)])

    def _repr_html_(self) -> str:
        if self.passed:
            return f"<p>✅ <b>{html.escape(self.question)}</b>: all checks passed</p>"
        items = "".join(
            f"<li style='white-space: pre-wrap'>{html.escape(m)}</li>" for m in self.messages
        )
        return f"<p>❌ <b>{html.escape(self.question)}</b>: not yet</p><ul>{items}</ul>"


class Checks:
    """The public checks of an assignment.

    Parameters
    ----------
    assignment : str
        Its name, such as ``"1-pairs"``.

    Raises
    ------
    ValueError
        When there is no assignment of that name.

    Examples
    --------
    >>> grader = Checks("1-pairs")
    >>> grader.check("q1", {"n_pairs": ...}).passed
    False
    """

    def __init__(self, assignment: str):
        path = PUBLIC / f"{assignment}.json"
        if not path.is_file():
            known = ", ".join(sorted(repr(p.stem) for p in PUBLIC.glob("*.json")))
            raise ValueError(f"There is no assignment {assignment!r}; there are {known}.")
        self.assignment = assignment
        self._sources = json.loads(path.read_text("utf-8"))

    def check(self, question: str, namespace: Mapping[str, Any] | None = None) -> CheckResult:
        """Run the checks of a question.

        Parameters
        ----------
        question : str
            Its name, such as ``"q1"``.
        namespace : mapping, optional
            Names and values to check; by default those of the notebook that calls.

        Returns
        -------
        CheckResult
            Shown by a notebook as a list of what is not right yet.

        Raises
        ------
        ValueError
            When the assignment has no such question, or none that is checked.
        """
        if question not in self._sources:
            raise ValueError(
                f"Assignment {self.assignment} has no checks for {question!r}; "
                f"it has them for {', '.join(self._sources)}."
            )
        if namespace is None:
            namespace = inspect.currentframe().f_back.f_globals
        return run_checks(self._sources[question], namespace)

    def check_all(self, namespace: Mapping[str, Any] | None = None) -> dict[str, bool]:
        """Return for each question whether its public checks pass.

        Parameters
        ----------
        namespace : mapping, optional
            As for `check`.

        Returns
        -------
        dict of str to bool
            In the order of the questions.
        """
        if namespace is None:
            namespace = inspect.currentframe().f_back.f_globals
        return {name: self.check(name, namespace).passed for name in self._sources}

    def save_submission(self, notebook: str | Path | None = None) -> Path:
        """Write the notebook into a zip file, which is what is handed in.

        Parameters
        ----------
        notebook : path, optional
            The notebook's file. By default, on Colab, the notebook that is open; elsewhere the
            one file in the current folder that belongs to this assignment.

        Returns
        -------
        pathlib.Path
            The file ``<assignment>-submission.zip`` in the current folder.

        Raises
        ------
        FileNotFoundError
            When the folder holds no notebook of this assignment, or more than one.
        """
        colab = sys.modules.get("google.colab")
        if notebook is None and colab is not None:
            content = json.dumps(_from_colab(colab), ensure_ascii=False)
            name, saved = f"{self.assignment}.ipynb", "as it is open now"
        else:
            path = self._only_notebook() if notebook is None else Path(notebook)
            content, name = path.read_text("utf-8-sig"), path.name
            age = time.time() - path.stat().st_mtime
            saved = f"as it was saved {age:.0f} s ago; if you changed it since, save and run again"
        if not any(map(self._names, _sources(content))):
            raise FileNotFoundError(f"{name} is not the notebook of assignment {self.assignment}.")
        target = Path(f"{self.assignment}-submission.zip")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        print(f"{target} holds {name}, {saved}.")
        if colab is not None:
            colab.files.download(str(target))
        return target

    def _names(self, source: str) -> bool:
        return assignment_named_in(source) == self.assignment

    def _only_notebook(self) -> Path:
        found = []
        for path in sorted(Path.cwd().glob("*.ipynb")):
            try:
                sources = _sources(path.read_text("utf-8-sig"))
            except Exception:  # another file that only looks like a notebook is not our concern
                continue
            if any(map(self._names, sources)):
                found.append(path)
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise FileNotFoundError(
                f"Notebooks of assignment {self.assignment} in {Path.cwd()}: {names}. "
                'Name the right one: grader.save_submission("NAME.ipynb").'
            )
        return found[0]


def _sources(notebook: str) -> list[str]:
    """Return the sources of a notebook's cells, which the file holds as a text or as lines."""
    return ["".join(cell["source"]) for cell in json.loads(notebook)["cells"]]


def assignment_named_in(source: str) -> str | None:
    """Return the assignment whose checks a cell loads."""
    found = re.search(r"""Checks\(\s*["']([\w-]+)["']\s*\)""", source)
    return found and found[1]


def checked_question(source: str) -> str | None:
    """Return the question that a cell does nothing but check."""
    calls = _grader_calls(source)
    if len(calls) != 1 or calls[0].func.attr != "check" or len(calls[0].args) != 1:
        return None
    match calls[0].args[0]:
        case ast.Constant(value=str(question)):
            return question
    return None


def only_reports(source: str) -> bool:
    """Say whether a cell answers nothing: it runs all checks, or saves the submission."""
    calls = _grader_calls(source)
    return bool(calls) and {call.func.attr for call in calls} <= {"check_all", "save_submission"}


def _grader_calls(source: str) -> list[ast.Call]:
    """Return the calls of a cell that does nothing but call methods of ``grader``."""
    if len(source) > _LONGEST_CALL:
        return []
    try:
        statements = ast.parse(textwrap.dedent(source).strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a command of Jupyter, or worse
        return []
    calls = [one.value if isinstance(one, ast.Expr) else None for one in statements]
    return calls if all(map(_is_of_grader, calls)) else []


def _is_of_grader(call: object) -> bool:
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "grader"
    )


def by_number(question: str) -> tuple[int, str]:
    """Return what to sort questions by: q2 comes before q10."""
    return len(question), question


def _from_colab(colab) -> dict:
    from google.colab import _message

    reply = _message.blocking_request("get_ipynb", request="", timeout_sec=_PATIENCE)
    if not reply:
        raise RuntimeError(
            "Colab did not hand over the notebook. Use File > Download > Download .ipynb, and "
            "submit that file."
        )
    return reply["ipynb"]


def read_tests(target: Path) -> dict[str, str]:
    """Return the instructor's test file of each question of a built assignment."""
    return json.loads((target / "instructor" / "tests.json").read_text("utf-8"))


def load_cases(source: str) -> tuple[str, list[test_case]]:
    """Read a test file in otter-grader's form; return the question and its checks with points."""
    source = re.sub(r"^from otter\.test_files import test_case$", "", source, flags=re.MULTILINE)
    scope: dict[str, Any] = {"test_case": test_case}
    exec(compile(source, "<checks>", "exec"), scope)
    cases = [value for value in scope.values() if isinstance(value, test_case)]
    free = [case for case in cases if case.points is None]
    left = float(scope.get("points") or 0) - sum(c.points for c in cases if c.points is not None)
    for case in free:
        case.points = left / len(free)
    return scope["name"], cases


def run_checks(source: str, namespace: Mapping[str, Any]) -> CheckResult:
    """Run the checks of one test file.

    Parameters
    ----------
    source : str
        The file, in otter-grader's exception-based form.
    namespace : mapping
        What the checks' arguments are taken from, by name.

    Returns
    -------
    CheckResult
        Points of the checks that passed, messages of those that did not.
    """
    question, cases = load_cases(source)
    result = CheckResult(question, possible=sum(case.points for case in cases))
    none_is_an_answer = re.search(r"\bis None\b", source)
    for case in cases:
        try:
            arguments = _arguments(case.function, namespace)
            if not none_is_an_answer:
                arguments = {name: _watched(name, value) for name, value in arguments.items()}
            measure = case.function(**arguments)
        except Exception as error:
            message = _explain(error)
            if message not in result.messages:
                result.messages.append(message)
        else:
            result.score += case.points
            if isinstance(measure, int | float):
                result.measures[case.name] = float(measure)
    return result


class _NotDone(Exception):
    pass


def _arguments(function: Callable, namespace: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {}
    for name in inspect.signature(function).parameters:
        if name not in namespace:
            raise _NotDone(f"`{name}` is not defined: run the cell that makes it.")
        value = namespace[name]
        if value is ...:
            raise _NotDone(f"`{name}` is still `...`: put your answer there.")
        arguments[name] = value
    return arguments


def _watched(name: str, value: Any) -> Any:
    """Return a function that says so when it returns nothing; other values as they are."""
    if not inspect.isfunction(value) and getattr(value, "_kind", None) != "function":
        return value

    @functools.wraps(value)
    def watched(*args, **kwargs):
        answer = value(*args, **kwargs)
        if answer is None:
            raise _NotDone(
                f"`{name}` returned nothing: write your answer there, and hand it back with "
                "`return`."
            )
        return answer

    return watched


def _explain(error: Exception) -> str:
    if isinstance(error, _NotDone):
        return str(error)
    if isinstance(error, AssertionError):
        return str(error) or "A check failed without a message: " + _failing_line(error)
    return f"{type(error).__name__}: {str(error) or 'no message'}{_where(error)}"


def _failing_line(error: Exception) -> str:
    return f"line {traceback.extract_tb(error.__traceback__)[-1].lineno} of the checks"


def _where(error: Exception) -> str:
    """Say which line of the student's own code raised; the checks' own lines help nobody."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.startswith(("<ipython", "<string", "<cell"))
           or re.search(r"ipykernel_\d+", f.filename)]  # fmt: skip
    places = [(frame.lineno, frame.name) for frame in own]
    for note in getattr(error, "__notes__", []):  # the traceback of a submission's own process
        places += re.findall(r'File "<ipython[^"]*", line (\d+), in (\S+)', note)
    return " (raised in `{1}`, line {0})".format(*places[-1]) if places else ""
