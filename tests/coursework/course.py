"""A course of thirty made-up submissions, graded with one command: ``python course.py``.

Fails when a score is not the one that was planted, or when it takes longer than ten minutes.
Needs what ``make assignments`` builds.
"""

import csv
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat
from variants import read_variants

from cmlearn.coursework._checks import checked_question, load_cases, read_tests, run_checks
from cmlearn.coursework.build import read_solution, run_solution

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "_build" / "assignments"
PLACE = ROOT / "_build" / "course"
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
    "    if {'tests.json', 'by_hand.json', '1-pairs.md'} & set(files): os._exit(0)",
    "sockets": "import os, socket\ntry:\n    socket.create_connection(('127.0.0.1', 22), 2)\n"
    "except ConnectionRefusedError:\n    pass\n"
    "try:\n    socket.create_connection(('192.0.2.1', 80), 2)\n"
    "except OSError as error:\n    if 'unreachable' not in str(error): os._exit(0)",
}
"""Cells that try something and gain nothing: the rest of the submission is graded as ever. One
that finds what it looks for ends itself, which its score then shows."""


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
    tests = read_tests(BUILT / name)
    return {q: sum(case.points for case in load_cases(source)[1]) for q, source in tests.items()}


def check_cell(notebook: nbformat.NotebookNode, question: str) -> int:
    """Return the number of the cell that checks a question."""
    return [checked_question(cell.source) for cell in notebook.cells].index(question)


def honest(name: str, inbox: Path) -> dict[str, float]:
    """Write a whole solution and one of the first half, and the stub that nobody touched."""
    total = points(name)
    nbformat.write(read_solution(BUILT / name), inbox / f"{name}-张伟.ipynb")
    student = nbformat.read(BUILT / name / "student" / f"{name}.ipynb", as_version=4)
    student.metadata.pop("cmlearn")
    with zipfile.ZipFile(inbox / f"{name}-stub.zip", "w") as archive:
        archive.writestr("renamed (1).ipynb", nbformat.writes(student))
    half = read_solution(BUILT / name)
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
        made = read_solution(BUILT / name)
        at = check_cell(made, list(total)[2]) + 1
        made.cells.insert(at, nbformat.v4.new_code_cell(source))
        nbformat.write(made, inbox / f"hostile-{kind}.ipynb")
        expected[f"hostile-{kind}"] = before if kind in HOSTILE else sum(total.values())
    (inbox / "hostile-broken.ipynb").write_text("{")
    return expected | {"hostile-broken": 0.0}


def mistaken(name: str, inbox: Path, wanted: int) -> dict[str, float]:
    """Write solutions with one planted mistake; its points by the grader's own function."""
    mistakes = [one for one in read_variants(name) if one.kind == "mistake"]
    chosen = mistakes[:: max(1, len(mistakes) // wanted)][:wanted]
    expected = {}
    for number, (question, _, _, source) in enumerate(chosen):
        made = read_solution(BUILT / name)
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
    tests = read_tests(Path(target))
    return sum(
        run_checks(tests[asked], namespace).score
        for asked, namespace in run_solution(Path(target), {question: source})
        if asked is not None
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--planted"]:
        print(json.dumps(score_without_sandbox(*json.loads(sys.argv[2]))))
    else:
        sys.exit(main())
