"""Grade a folder of notebooks: ``python -m cmlearn.coursework.grade SUBMISSIONS``.

Each submission is executed anew in a `cmlearn.coursework.sandbox` and asked for its answers by
the instructor's tests, which stay outside. What a submission says about its own score is not read.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import nbformat

from cmlearn.coursework._checks import (
    CheckResult,
    assignment_named_in,
    by_number,
    checked_question,
    load_cases,
    only_reports,
    read_tests,
    run_checks,
)
from cmlearn.coursework.sandbox import (
    Limits,
    Sandbox,
    SandboxError,
    Stopped,
    isolation,
    visible_below,
)

__all__ = ["Grade", "Submission", "find_submissions", "grade", "grade_folder", "main"]

LARGEST = 32 * 2**20  # bytes of a notebook
LONGEST_PART = 100  # bytes of a part of a page's path, before the hash and the ending


@dataclass
class Submission:
    """A notebook that was handed in, or why there is none.

    Parameters
    ----------
    name : str
        Its path below the folder of submissions, without the ending where that is clear.
    cells : list of str
        The sources of its code cells.
    assignment : str or None
        Which one it belongs to, where it says so.
    problem : str or None
        Why it cannot be graded.
    notes : list of str
        What whoever grades should know.
    """

    name: str
    cells: list[str] = field(default_factory=list)
    assignment: str | None = None
    problem: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Grade:
    """What one submission reached.

    Parameters
    ----------
    submission : str
        Its name.
    assignment : str
        Of which assignment, or "".
    status : str
        ``"graded"``, or what happened.
    results : dict of str to CheckResult
        By question.
    errors : list of tuple of (str, str)
        Cells that raised: their first line, and the end of the traceback.
    notes : list of str
        What whoever grades should know.
    seconds : float
        On the clock.
    by_hand : dict of str to float
        The points of the questions that a person grades.
    bonus : list of str
        The questions that full marks do not need.
    """

    submission: str
    assignment: str
    status: str
    results: dict[str, CheckResult] = field(default_factory=dict)
    errors: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    by_hand: dict[str, float] = field(default_factory=dict)
    bonus: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Points of all questions that are graded by tests, the bonus included."""
        return sum(result.score for result in self.results.values())

    @property
    def bonus_score(self) -> float:
        """Points of the bonus questions."""
        return sum(result.score for q, result in self.results.items() if q in self.bonus)

    @property
    def possible(self) -> float:
        """Points that tests can give, without the bonus."""
        return sum(result.possible for q, result in self.results.items() if q not in self.bonus)

    @property
    def questions(self) -> list[str]:
        """All questions, those that a person grades among them, in order."""
        return sorted({**self.results, **self.by_hand}, key=by_number)


# What was handed in


def find_submissions(folder: Path) -> Iterator[Submission]:
    """Yield what lies in a folder and the folders below it, in the order of the names.

    Parameters
    ----------
    folder : path
        Notebooks, and zip files that hold one notebook each.

    Yields
    ------
    Submission
        One a file; other files, and what begins with a dot, are left alone.
    """
    paths = [path for path in sorted(folder.rglob("*")) if _is_handed_in(path, folder)]
    names = [path.relative_to(folder).as_posix() for path in paths]
    short = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    for path, name, brief in zip(paths, names, short, strict=True):
        if short.count(brief) == 1 and brief not in names:  # else each has its ending, and a page
            name = brief
        name = _printable(name)
        if path.is_symlink() or not path.is_file():
            yield Submission(name, problem="is a link or no plain file, and was not followed")
            continue
        try:
            yield _read(name, path)
        except Exception as error:  # one damaged file must not stop the grading of the others
            yield Submission(name, problem=f"cannot be read: {error}")


def _printable(text: str) -> str:
    """Return a text that every file takes: bytes of a name that are not UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_handed_in(path: Path, folder: Path) -> bool:
    return path.suffix.lower() in (".ipynb", ".zip") and not _is_hidden(path.relative_to(folder))


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.parts)


def _read(name: str, path: Path) -> Submission:
    content = _unzipped(path) if path.suffix.lower() == ".zip" else _plain(path)
    try:
        notebook = nbformat.reads(content.decode("utf-8-sig"), as_version=4)
        cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        if not all(isinstance(cell, str) for cell in cells):
            raise TypeError("the source of a cell is no text")
    except Exception as error:  # nbformat raises many kinds; all mean the same here
        raise ValueError(f"it is not a notebook ({type(error).__name__}: {error})") from None
    named = notebook.metadata.get("cmlearn", {})
    said = named.get("assignment") if isinstance(named, dict) else None
    said = said if isinstance(said, str) else None
    loaded = next(filter(None, map(assignment_named_in, cells)), None)
    made = Submission(name, cells, loaded or said)  # the cell is what the student sees
    if loaded and said and loaded != said:
        made.notes.append(
            f"The notebook was made for assignment {said}, and its first cells load the checks of "
            f"{loaded}: it was graded as {loaded}."
        )
    return made


def _refuse_large(size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"it has {size / 2**20:.0f} MiB; {LARGEST / 2**20:.0f} are allowed")


def _plain(path: Path) -> bytes:
    _refuse_large(path.stat().st_size)
    return path.read_bytes()


def _unzipped(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        held = [
            info
            for info in archive.infolist()
            if info.filename.lower().endswith(".ipynb") and not _is_hidden(PurePath(info.filename))
        ]
        if len(held) != 1:
            raise ValueError(f"the zip file holds {len(held)} notebooks, and one is wanted")
        if held[0].flag_bits & 1:
            raise ValueError("the zip file wants a password")
        _refuse_large(held[0].file_size)
        return archive.read(held[0])


# Grading one


def grade(
    submission: Submission,
    tests: dict[str, str],
    *,
    limits: Limits | None = None,
    cache: Path | None = None,
    isolated: bool = True,
) -> Grade:
    """Execute a submission and run the tests on what it computed.

    A question is tested where the notebook has its last ``grader.check``, with the values of that
    moment; where that cell is gone, at the end.

    Parameters
    ----------
    submission : Submission
        A readable one.
    tests : dict of str to str
        The instructor's test file of each question.
    limits : Limits, optional
        What the submission may use.
    cache : path, optional
        A feature cache that it gets a copy of.
    isolated : bool, default=True
        False runs it with the rights of whoever grades.

    Returns
    -------
    Grade
        Points for every question, zero where the submission did not get that far.

    Raises
    ------
    SandboxError
        When it is to be isolated and cannot be.
    """
    started = time.monotonic()
    made = Grade(
        submission.name, submission.assignment or "", "graded", notes=list(submission.notes)
    )
    for question, source in tests.items():
        possible = sum(case.points for case in load_cases(source)[1])
        made.results[question] = CheckResult(question, 0.0, possible, ["It was not reached."])
    steps, gone = _steps(submission.cells, list(tests))
    if gone:
        made.notes.append(
            f"The cells that check {', '.join(gone)} are missing, so that the tests saw what the "
            "names held at the notebook's end. Keep these cells below your answers: then names "
            "that you use again do no harm."
        )
    try:
        with Sandbox(limits or Limits(), cache=cache, isolated=isolated) as sandbox:
            for source, question in steps:
                if question is None:
                    _run_cell(sandbox, source, made)
                else:
                    made.results[question] = _test(sandbox, question, tests[question])
    except Stopped as stopped:
        made.status = f"stopped: {stopped}"
    made.seconds = time.monotonic() - started
    return made


def _steps(cells: list[str], questions: list[str]) -> tuple[list[tuple[str, str | None]], list]:
    """Return the cells to run and the questions to test, in order, and those without a cell."""
    checks = {i: asked for i, cell in enumerate(cells) if (asked := checked_question(cell))}
    last = {question: i for i, question in checks.items() if question in questions}
    steps: list[tuple[str, str | None]] = []
    for i, cell in enumerate(cells):
        if i not in checks and not only_reports(cell):
            steps.append((cell, None))
        elif i in checks and last.get(checks[i]) == i:
            steps.append(("", checks[i]))
    gone = [question for question in questions if question not in last]
    return steps + [("", question) for question in gone], gone


def _run_cell(sandbox: Sandbox, source: str, made: Grade) -> None:
    try:
        sandbox.ask("run", source)
    except Stopped:
        raise
    except Exception as error:
        first = source.strip().splitlines()[0] if source.strip() else ""
        trace = "\n".join(getattr(error, "__notes__", [])).strip().splitlines()[-12:]
        made.errors.append((first, "\n".join(trace)))


def _test(sandbox: Sandbox, question: str, source: str) -> CheckResult:
    result = run_checks(source, sandbox)
    if sandbox.reason is not None:  # it was killed during a test: what the test says is no answer
        raise Stopped(sandbox.reason)
    return result


# Grading all


def grade_folder(
    folder: Path,
    out: Path,
    built: Path,
    *,
    limits: Limits | None = None,
    jobs: int = 2,
    isolated: bool = True,
    assignment: str | None = None,
) -> list[Grade]:
    """Grade all that lies in a folder; write ``grades.csv``, a page of feedback each, and more.

    Parameters
    ----------
    folder : path
        The submissions.
    out : path
        Where ``grades.csv``, ``leaderboard.csv``, ``gradescope/`` and ``feedback/`` go. A
        ``grades.csv`` with other content is renamed after its time, and the rest is written anew.
    built : path
        What `cmlearn.coursework.build` made.
    limits : Limits, optional
        For each submission.
    jobs : int, default=2
        Submissions at a time.
    isolated : bool, default=True
        As for `grade`.
    assignment : str, optional
        For submissions that do not say which one they belong to.

    Returns
    -------
    list of Grade
        In the order of the names.

    Raises
    ------
    SandboxError, FileNotFoundError
        When nothing can be graded.
    ValueError
        When submissions could read the instructor's tests, or each other, where they lie.
    """
    if isolated and (reason := isolation()):
        raise SandboxError(reason)
    for place in (folder, built):
        if isolated and (bound := visible_below(place)):
            raise ValueError(
                f"{place} lies in {bound}, which every submission can read. Move it elsewhere."
            )
    tests, by_hand, bonus = _all_tests(built), _facts(built, "by_hand"), _facts(built, "bonus")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder.")

    def one(submission: Submission) -> Grade:
        submission.assignment = submission.assignment or assignment
        if submission.problem is None and submission.assignment not in tests:
            known = ", ".join(tests)
            submission.problem = (
                f"says that it belongs to assignment {submission.assignment!r}; there are {known}"
                if submission.assignment
                else f"does not say which assignment it belongs to; there are {known}"
            )
        if submission.problem is not None:
            return Grade(submission.name, submission.assignment or "", submission.problem,
                         notes=submission.notes)  # fmt: skip
        cache = built / submission.assignment / "cache"
        try:
            return grade(submission, tests[submission.assignment], limits=limits,
                         isolated=isolated, cache=cache if cache.is_dir() else None)  # fmt: skip
        except Exception as error:  # what nobody foresaw must not cost the others their grades
            problem = f"could not be graded ({type(error).__name__}: {error})"
            return Grade(submission.name, submission.assignment, _printable(problem))

    _try_out(limits or Limits(), isolated)
    (out / "grades-partial.csv").unlink(missing_ok=True)
    grades = []
    try:
        with ThreadPoolExecutor(jobs) as pool:
            for made in pool.map(one, find_submissions(folder)):
                made.by_hand = by_hand.get(made.assignment, {})
                made.bonus = bonus.get(made.assignment, [])
                grades.append(made)
                print(_in_short(made), flush=True)
    except BaseException:
        if grades:  # whoever interrupts keeps what has been graded, and what an earlier call wrote
            _write_grades(out / "grades-partial.csv", grades)
        raise
    _write_all(grades, out)
    return grades


def _in_short(made: Grade) -> str:
    bonus = f" (bonus {made.bonus_score:g})" if made.bonus_score else ""
    return f"{made.submission}: {made.score:g}/{made.possible:g}{bonus} {made.status}"


def _try_out(limits: Limits, isolated: bool) -> None:
    """Start a process without a submission: what fails here would fail for everybody."""
    try:
        Sandbox(limits, isolated=isolated).close()
    except Stopped as stopped:
        raise SandboxError(str(stopped)) from None


def _all_tests(built: Path) -> dict[str, dict[str, str]]:
    tests = {
        path.parent.parent.name: read_tests(path.parent.parent)
        for path in sorted(built.glob("*/instructor/tests.json"))
    }
    if not tests:
        raise FileNotFoundError(f"{built} holds no assignment: run `make assignments` first.")
    return tests


def _facts(built: Path, kind: str) -> dict[str, Any]:
    """Return what the build wrote down of each assignment beside its tests."""
    paths = built.glob(f"*/instructor/{kind}.json")
    return {path.parent.parent.name: json.loads(path.read_text("utf-8")) for path in paths}


def _write_grades(path: Path, grades: list[Grade]) -> None:
    content = _printable(_grades_csv(grades)).encode("utf-8-sig")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_bytes() != content:
        kept = _put_aside(path)
        print(f"{path} of an earlier call, which may hold points by hand, is now {kept.name}")
    path.write_bytes(content)


def _put_aside(path: Path) -> Path:
    """Rename a file after the time at which it was written; no other file is overwritten."""
    written = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    stem = f"{path.stem}-{written}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    free = (path.with_name(name + path.suffix) for name in names)
    return path.rename(next(place for place in free if not place.exists()))


def _write_all(grades: list[Grade], out: Path) -> None:
    _write_grades(out / "grades.csv", grades)
    (out / "leaderboard.csv").write_text(_printable(_leaderboard_csv(grades)), "utf-8-sig")
    for kind in ("feedback", "gradescope"):  # no page of an earlier call stays among the new ones
        if (out / kind).exists():
            shutil.rmtree(out / kind)
    for made in grades:
        try:
            _write_pages(made, out)
        except OSError as error:  # a name that the disk refuses must not cost the others theirs
            print(_printable(f"No page could be written for {made.submission}: {error}"))


def _write_pages(made: Grade, out: Path) -> None:
    name = "/".join(map(_short, made.submission.split("/")))
    for kind, ending, content in (
        ("feedback", "html", feedback_page(made)),
        ("gradescope", "json", json.dumps(_gradescope(made), indent=1)),
    ):
        path = out / kind / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_printable(content), "utf-8")


def _short(part: str) -> str:
    """Return a part of a path; what is too long for a disk is cut, and told apart by its hash."""
    written = part.encode()
    if len(written) <= LONGEST_PART:
        return part
    cut = written[:LONGEST_PART].decode("utf-8", "ignore")
    return f"{cut}-{hashlib.sha256(written).hexdigest()[:10]}"


def _grades_csv(grades: list[Grade]) -> str:
    """Return a row a submission; columns of questions that a person grades are left empty."""
    questions = sorted({q for made in grades for q in made.questions}, key=by_number)
    head = ["submission", "assignment", "status", "score", "possible", "bonus", "by_hand"]
    rows = [[*head, *questions]]
    for made in grades:
        points = {q: f"{r.score:g}" for q, r in made.results.items()}
        sums = (made.score, made.possible, made.bonus_score, sum(made.by_hand.values()))
        rows.append([made.submission, made.assignment, made.status, *(f"{n:g}" for n in sums),
                     *(points.get(q, "") for q in questions)])  # fmt: skip
    return _csv(rows)


def _leaderboard_csv(grades: list[Grade]) -> str:
    rows = [
        [made.assignment, name, f"{value:.4f}", made.submission]
        for made in grades
        for result in made.results.values()
        for name, value in result.measures.items()
    ]
    rows.sort(key=lambda row: (row[0], row[1], -float(row[2])))
    return _csv([["assignment", "measure", "value", "submission"], *rows])


def _csv(rows: list[list[str]]) -> str:
    """Return the rows; a text that a spreadsheet would take for a formula begins with a quote."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([[_harmless(cell) for cell in row] for row in rows])
    return file.getvalue()


def _harmless(cell: str) -> str:
    is_number = re.fullmatch(r"[+-]?[0-9.]+", cell)
    return "'" + cell if cell.startswith(("=", "+", "-", "@")) and not is_number else cell


def _gradescope(made: Grade) -> dict[str, Any]:
    """Return the results in the form that Gradescope reads."""
    return {
        "score": made.score,
        "output": made.status,
        "execution_time": round(made.seconds, 1),
        "tests": [
            {
                "name": question,
                "score": result.score,
                "max_score": 0 if question in made.bonus else result.possible,
                "output": "\n".join(result.messages) or "all tests passed",
            }
            for question, result in made.results.items()
        ],
    }


PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ made.submission }}</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto;
         padding: 0 1rem; color-scheme: light dark }
  table { border-collapse: collapse; width: 100% }
  td, th { border-bottom: 1px solid #8888; padding: .4rem; text-align: left; vertical-align: top }
  pre { white-space: pre-wrap; overflow-wrap: anywhere }
  li { white-space: pre-wrap; overflow-wrap: anywhere }
</style>
<h1>{{ made.submission }}</h1>
<p>Assignment {{ made.assignment or "unknown" }}: <b>{{ "%g"|format(made.score) }}</b> of
{{ "%g"|format(made.possible) }} points for what tests can grade
{%- if made.bonus_score %}, bonus {{ "%g"|format(made.bonus_score) }} included{% endif %}.</p>
{% if made.status != "graded" %}<p><b>{{ made.status }}</b></p>{% endif %}
{% for note in made.notes %}<p>{{ note }}</p>{% endfor %}
{% if made.results %}<table><tr><th>Question</th><th>Points</th><th>What the tests found</th></tr>
{% for question in made.questions %}<tr><td>{{ question }}</td>
{% if question in made.by_hand %}{% set points = made.by_hand[question] %}<td></td>
<td>read by a person, {{ "%g"|format(points) }} point{{ "s" if points != 1 }}</td></tr>
{% else %}{% set result = made.results[question] %}
<td>{{ "%g"|format(result.score) }} of {{ "%g"|format(result.possible) }}
{%- if question in made.bonus %} (bonus){% endif %}</td>
<td>{% if result.messages %}<ul>{% for m in result.messages %}<li>{{ m }}</li>{% endfor %}</ul>
{% else %}all tests passed{% endif %}</td></tr>
{% endif %}{% endfor %}</table>{% endif %}
{% if made.errors %}<h2>Cells that raised an error</h2>
{% for first, trace in made.errors %}<p><code>{{ first }}</code></p><pre>{{ trace }}</pre>
{% endfor %}{% endif %}
</html>
"""


def feedback_page(made: Grade) -> str:
    """Return one student's page of feedback, as HTML.

    Parameters
    ----------
    made : Grade
        Of one submission.

    Returns
    -------
    str
        A whole page that needs no other file.
    """
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(PAGE).render(made=made)


def main(arguments: list[str] | None = None) -> int:
    """Grade from the command line; return 0 when every submission was graded, else 1."""
    parser = argparse.ArgumentParser(prog="python -m cmlearn.coursework.grade", description=__doc__)
    parser.add_argument("submissions", type=Path)
    parser.add_argument(
        "--out", type=Path, help="by default _build/grades and the name of the submissions' folder"
    )
    parser.add_argument("--built", type=Path, default=Path("_build/assignments"))
    parser.add_argument("--assignment", help="for notebooks that do not say which one they are")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="a submission")
    parser.add_argument("--memory", type=float, default=Limits.memory, help="MiB a submission")
    parser.add_argument(
        "--not-isolated",
        action="store_true",
        help="run the submissions' code with your own rights, where bubblewrap is missing",
    )
    chosen = parser.parse_args(arguments)
    limits = Limits(seconds=chosen.seconds, memory=chosen.memory)
    out = chosen.out or Path("_build/grades") / chosen.submissions.resolve().name
    try:
        grades = grade_folder(
            chosen.submissions, out, chosen.built, limits=limits, jobs=chosen.jobs,
            isolated=not chosen.not_isolated, assignment=chosen.assignment,
        )  # fmt: skip
    except SandboxError as error:
        print(
            f"Nothing was graded: {error}. Where isolation is what is missing, --not-isolated runs "
            "submissions with your own rights; do that only with code that you trust.",
            file=sys.stderr,
        )
        return 2
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(grades)} submissions; {out / 'grades.csv'}")
    return int(any(made.status != "graded" for made in grades))


if __name__ == "__main__":
    sys.exit(main())
