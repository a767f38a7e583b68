"""A course of thirty made-up submissions, graded with one command: ``python course.py``.

Fails when a score is not the one that was planted, or when it takes longer than ten minutes.
Needs what ``make assignments`` builds.
"""

import contextlib
import csv
import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat

from cmlearn.coursework._checks import load_cases

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "_build" / "assignments"
PLACE = ROOT / "_build" / "course"
HEAD = re.compile(r"^# %% (q\d+) (mistake|right): (.+)$", re.MULTILINE)
LIMIT = 600  # seconds for all
HANG = 60  # seconds that one submission may take


HOSTILE = {
    "fork": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory": "held = []\nwhile True:\n    held.append(bytearray(10**8))",
    "output": "while True:\n    print('x' * 10000)",
    "exit": "import os\nos._exit(0)",
    "sleep": "import time\nwhile True:\n    try: time.sleep(99)\n    except BaseException: pass",
}
"""Cells that end a submission where they stand: what was reached before counts."""

HARMLESS = {
    "forged": "print('score 100/100')\ngrader.check = lambda question: 'all checks passed'",
    "files": "open('/tmp/results.json', 'w').write('{\"score\": 100}')",
    "reads": "import os\nfor place, folders, files in os.walk('/'):\n"
    "    folders[:] = [f for f in folders if os.path.join(place, f) not in ('/proc', '/sys')]\n"
    "    assert not {'tests.json', 'by_hand.json', '1-pairs.md'} & set(files), place",
    "sockets": "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 22), 2)\n"
    "    raise SystemError('a way out')\nexcept OSError:\n    pass",
}
"""Cells that try something and gain nothing: the rest of the submission is graded as ever."""


def main() -> int:
    """Make the submissions, grade them, compare."""
    expected = {}
    inbox = PLACE / "submissions"
    subprocess.run(["rm", "-rf", str(PLACE)], check=True)
    inbox.mkdir(parents=True)
    names = sorted(path.name for path in BUILT.iterdir() if path.is_dir())
    for name in names:
        expected |= honest(name, inbox)
    expected |= attacks(names[0], inbox)
    for name in names:
        expected |= mistaken(name, inbox, (30 - len(expected)) // (len(names) - names.index(name)))
    started = time.monotonic()
    command = [sys.executable, "-m", "cmlearn.coursework.grade", inbox, "--out", PLACE / "grades"]
    command += ["--built", BUILT, "--jobs", "2", "--seconds", str(HANG)]
    subprocess.run(command, check=False, cwd=ROOT)
    seconds = time.monotonic() - started
    with (PLACE / "grades" / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        reached = {row["submission"]: float(row["score"]) for row in csv.DictReader(file)}
    wrong = {n: (expected[n], reached.get(n)) for n in expected if reached.get(n) != expected[n]}
    for name, (planted, found) in wrong.items():
        print(f"{name}: {planted:g} planted, {found} found")
    print(f"{len(expected)} submissions in {seconds:.0f} s, {len(wrong)} wrong scores")
    return int(bool(wrong) or seconds > LIMIT or set(reached) != set(expected))


def points(name: str) -> dict[str, float]:
    """Return what tests can give for each question."""
    tests = json.loads((BUILT / name / "instructor" / "tests.json").read_text("utf-8"))
    return {q: sum(case.points for case in load_cases(source)[1]) for q, source in tests.items()}


def solution(name: str) -> nbformat.NotebookNode:
    """Return the reference solution."""
    return nbformat.read(BUILT / name / "instructor" / f"{name}-solution.ipynb", as_version=4)


def check_cell(notebook: nbformat.NotebookNode, question: str) -> int:
    """Return the number of the cell that checks a question."""
    (found,) = [
        i for i, c in enumerate(notebook.cells) if c.source == f'grader.check("{question}")'
    ]
    return found


def honest(name: str, inbox: Path) -> dict[str, float]:
    """Write a whole solution and one of the first half, and the stub that nobody touched."""
    total = points(name)
    nbformat.write(solution(name), inbox / f"{name}-张伟.ipynb")
    student = nbformat.read(BUILT / name / "student" / f"{name}.ipynb", as_version=4)
    student.metadata.pop("cmlearn")
    with zipfile.ZipFile(inbox / f"{name}-stub.zip", "w") as archive:
        archive.writestr("renamed (1).ipynb", nbformat.writes(student))
    half = solution(name)
    questions = list(total)[: len(total) // 2]
    half.cells = half.cells[: check_cell(half, questions[-1]) + 1]
    nbformat.write(half, inbox / f"{name}-half.ipynb")
    return {
        f"{name}-张伟": sum(total.values()),
        f"{name}-stub": 0.0,
        f"{name}-half": sum(total[q] for q in questions),
    }


def attacks(name: str, inbox: Path) -> dict[str, float]:
    """Write the hostile ones, each with its cell after the third question."""
    total, expected = points(name), {}
    before = sum(list(total.values())[:3])
    for kind, source in (HOSTILE | HARMLESS).items():
        made = solution(name)
        at = check_cell(made, list(total)[2]) + 1
        made.cells.insert(at, nbformat.v4.new_code_cell(source))
        nbformat.write(made, inbox / f"hostile-{kind}.ipynb")
        expected[f"hostile-{kind}"] = before if kind in HOSTILE else sum(total.values())
    (inbox / "hostile-broken.ipynb").write_text("{")
    return expected | {"hostile-broken": 0.0}


def mistaken(name: str, inbox: Path, wanted: int) -> dict[str, float]:
    """Write solutions with one planted mistake; its points by the grader's own function."""
    text = (ROOT / "tests" / "coursework" / f"{name}.py").read_text("utf-8")
    parts = HEAD.split(text)[1:]
    mistakes = [parts[i : i + 4] for i in range(0, len(parts), 4) if parts[i + 1] == "mistake"]
    chosen = mistakes[:: max(1, len(mistakes) // wanted)][:wanted]
    expected = {}
    for number, (question, _, _, source) in enumerate(chosen):
        made = solution(name)
        made.cells[check_cell(made, question) - 1].source = source
        nbformat.write(made, inbox / f"{name}-mistake-{number}.ipynb")
        expected[f"{name}-mistake-{number}"] = planted(name, question, source)
    return expected


def planted(name: str, question: str, source: str) -> float:
    """Return the points of a solution with a mistake, from a process of its own."""
    given = [str(BUILT / name), question, source]
    command = [sys.executable, __file__, "--planted", json.dumps(given)]
    reply = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(reply.stdout.splitlines()[-1])


def score_without_sandbox(target: str, question: str, source: str) -> float:
    """Run a solution in which one question is answered differently, and all tests on it."""
    from cmlearn.coursework import build
    from cmlearn.coursework._checks import run_checks

    tests = json.loads((Path(target) / "instructor" / "tests.json").read_text("utf-8"))
    namespace, score = {"__name__": "__main__"}, 0.0
    for one, cells in build.questions_of(solution(Path(target).name)):
        for cell in [*cells[:-1], source] if one == question else cells:
            if not cell.startswith("grader."):
                with contextlib.suppress(Exception):
                    exec(compile(cell, "<cell>", "exec"), namespace)
        if one is not None:
            score += run_checks(tests[one], namespace).score
    return score


if __name__ == "__main__":
    if sys.argv[1:2] == ["--planted"]:
        print(json.dumps(score_without_sandbox(*json.loads(sys.argv[2]))))
    else:
        sys.exit(main())
