"""Build the assignments from their sources: ``python -m cmlearn.coursework.build``.

A source is a MyST page under ``book/assignments`` in the form that otter-grader's ``assign``
reads. Of each it makes, under ``_build/assignments/<name>``: ``student/``, which is all that
students get; ``instructor/`` with the solution, every test and the autograder's zip file; and
``cache/``, the features that grading would otherwise compute for each submission.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext
import nbformat

from cmlearn.coursework._checks import (
    PUBLIC,
    by_number,
    checked_question,
    only_reports,
    read_tests,
    run_checks,
)

__all__ = ["build", "main", "public_checks"]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "book" / "assignments"
CONFIG = """\
# ASSIGNMENT CONFIG
init_cell: false
check_all_cell: false
export_cell: false
solutions_pdf: false
run_tests: false
requirements:
    - cmlearn[emoji,weights] @ git+{address}
generate:
    zips: false
tests:
    ok_format: false
    url_prefix: null
"""
LOAD = """\
from cmlearn.coursework import Checks

grader = Checks("{name}")"""
SAVE = "grader.save_submission()"


def source_paths() -> list[Path]:
    """Return the sources, in order."""
    return sorted(SOURCES.glob("[0-9]-*.md"))


def build(source: Path, out: Path) -> Path:
    """Build one assignment.

    Parameters
    ----------
    source : path
        The MyST page.
    out : path
        A folder; what is built goes to ``out/<name>`` and replaces what was there.

    Returns
    -------
    pathlib.Path
        That folder.

    Raises
    ------
    RuntimeError
        When otter-grader refuses the source.
    """
    name = source.stem
    target = out / name
    shutil.rmtree(target, ignore_errors=True)
    for folder in ("student", "instructor", "cache"):
        (target / folder).mkdir(parents=True)
    with tempfile.TemporaryDirectory() as place:
        made = _assign(source, Path(place))
        student, solution = (
            nbformat.read(made / who / f"{name}.ipynb", as_version=4)
            for who in ("student", "autograder")
        )
        for archive in (made / "autograder").glob("*.zip"):
            shutil.copy(archive, target / "instructor" / "autograder.zip")
    found = solution.metadata.otter.tests
    tests = {question: found[question] for question in sorted(found, key=by_number)}
    for notebook in (student, solution):
        del notebook.metadata["otter"]
        notebook.metadata["cmlearn"] = {"assignment": name}
        for number, cell in enumerate(notebook.cells):  # otter-grader's ids are random
            cell.id = hashlib.sha256(f"{name} {number} {cell.source}".encode()).hexdigest()[:12]
    nbformat.write(student, target / "student" / f"{name}.ipynb")
    nbformat.write(solution, target / "instructor" / f"{name}-solution.ipynb")
    facts = {"tests": tests, "by_hand": by_hand(source), "bonus": bonus(source)}
    for file, content in facts.items():
        (target / "instructor" / f"{file}.json").write_text(_as_json(content), "utf-8")
    return target


def _assign(source: Path, place: Path) -> Path:
    notebook = jupytext.read(source)
    opening = [
        nbformat.v4.new_raw_cell(CONFIG.format(address=_book().repository().url)),
        notebook.cells[0],  # the title and what it says
        nbformat.v4.new_code_cell(setup_source(source)),
        nbformat.v4.new_code_cell(LOAD.format(name=source.stem)),
    ]
    closing = nbformat.v4.new_code_cell(SAVE)
    notebook.cells = [*opening, *notebook.cells[1:], closing]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python",
                                        "name": "python3"}}  # fmt: skip
    nbformat.write(notebook, place / f"{source.stem}.ipynb")
    command = [sys.executable, "-m", "otter", "assign", f"{source.stem}.ipynb", "made"]
    reply = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if reply.returncode:
        raise RuntimeError(f"otter-grader refuses {source.name}: {reply.stderr[-2000:]}")
    return place / "made"


def _book() -> ModuleType:
    """Import what makes the notebooks of the book's pages, which is no part of the package."""
    sys.path.insert(0, str(ROOT / "book" / "_ext"))
    try:
        import notebooks
    finally:
        sys.path.pop(0)
    return notebooks


def setup_source(source: Path) -> str:
    """Return the cell that installs `cmlearn` on Colab; it is that of the book's pages."""
    # Not the source itself: on Colab the folder of the page becomes the current one.
    return _book().setup_source(f"book/assignments/student/{source.name}")


def by_hand(source: Path) -> dict[str, float]:
    """Return the points of the questions that a person grades."""
    return {c["name"]: float(c["points"]) for c in _configs(source) if c.get("manual") == "true"}


def bonus(source: Path) -> list[str]:
    """Return the questions that full marks do not need."""
    return [c["name"] for c in _configs(source) if c.get("bonus") == "true"]


def _configs(source: Path) -> list[dict[str, str]]:
    """Return what stands at the begin of each question; otter-grader reads it, save ``bonus``."""
    blocks = re.findall(r"# BEGIN QUESTION\n(.*?)```", source.read_text("utf-8"), re.DOTALL)
    return [dict(re.findall(r"^(\w+): *(.+)$", block, re.MULTILINE)) for block in blocks]


def questions_of(notebook: nbformat.NotebookNode) -> list[tuple[str | None, list[str]]]:
    """Split the code cells at the checks: what leads to each question, and what is left."""
    parts: list[tuple[str | None, list[str]]] = []
    cells: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if question := checked_question(cell.source):
            parts.append((question, cells))
            cells = []
        else:
            cells.append(cell.source)
    return [*parts, (None, cells)]


def read_solution(target: Path) -> nbformat.NotebookNode:
    """Return the reference solution of a built assignment."""
    path = target / "instructor" / f"{target.name}-solution.ipynb"
    return nbformat.read(path, as_version=4)


def run_solution(
    target: Path, instead: dict[str, str] | None = None
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Execute the solution; yield each question with the namespace that its tests would see.

    Parameters
    ----------
    target : path
        What `build` returned.
    instead : dict of str to str, optional
        What is executed in place of a question's answer. What it raises, and what other cells
        then raise, is left to the tests.

    Yields
    ------
    tuple of (str or None, dict)
        The same namespace each time. The last question is None: what follows the last check.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    forgiven = (Exception,) if instead else ()
    for question, cells in questions_of(read_solution(target)):
        answer = (instead or {}).get(question)
        for source in cells if answer is None else [*cells[:-1], answer]:
            if not only_reports(source):
                with contextlib.suppress(*forgiven):
                    exec(compile(source, f"<cell of {question}>", "exec"), namespace)
        yield question, namespace


def run_reference(target: Path) -> None:
    """Execute the solution, fill the cache by it, and run every test.

    Parameters
    ----------
    target : path
        What `build` returned.

    Raises
    ------
    RuntimeError
        When the solution itself fails a test.
    """
    tests = read_tests(target)
    before = os.environ.get("CMLEARN_CACHE")
    os.environ["CMLEARN_CACHE"] = str(target / "cache")
    try:
        for question, namespace in run_solution(target):
            if question and (failed := run_checks(tests[question], namespace).messages):
                raise RuntimeError(f"The solution of {target.name} fails {question}: {failed}")
    finally:
        if before is None:
            del os.environ["CMLEARN_CACHE"]
        else:
            os.environ["CMLEARN_CACHE"] = before


def public_checks(target: Path) -> dict[str, str]:
    """Return the test files of an assignment without what is hidden.

    Parameters
    ----------
    target : path
        What `build` returned.

    Returns
    -------
    dict of str to str
        The public test file of each question.
    """
    shown = {}
    for question, source in read_tests(target).items():
        head, *cases = re.split(r"(?m)^(?=@test_case\()", source)
        shown[question] = head + "".join(c for c in cases if "hidden=True" not in c.split("\n")[0])
    return shown


def _as_json(content: dict | list) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def published(target: Path) -> dict[Path, str]:
    """Return what the repository holds of an assignment beside its source, by path.

    Parameters
    ----------
    target : path
        What `build` returned.

    Returns
    -------
    dict of pathlib.Path to str
        The public checks in the package, and the students' notebook, which the book offers.
    """
    name = target.name
    student = (target / "student" / f"{name}.ipynb").read_text("utf-8")
    checks = _as_json(public_checks(target))
    return {PUBLIC / f"{name}.json": checks, SOURCES / "student" / f"{name}.ipynb": student}


def main(arguments: list[str] | None = None) -> int:
    """Build all assignments, or those named."""
    parser = argparse.ArgumentParser(prog="python -m cmlearn.coursework.build", description=__doc__)
    parser.add_argument("sources", nargs="*", type=Path, help="by default all")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "assignments")
    chosen = parser.parse_args(arguments)
    for source in chosen.sources or source_paths():
        target = build(source.resolve(), chosen.out)
        for path, content in published(target).items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, "utf-8")
        run_reference(target)
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
