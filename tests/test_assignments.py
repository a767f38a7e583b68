"""Each assignment's checks: the reference passes, stubs and mistakes fail, other solutions pass.

The other solutions and the planted mistakes lie in ``tests/coursework``, a file an assignment,
under lines such as ``# %% q3 mistake: softmax over the wrong axis``.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from coursework.variants import read_variants

from cmlearn.coursework import Checks
from cmlearn.coursework._checks import load_cases, read_tests, run_checks

pytest.importorskip("otter")
from cmlearn.coursework import build

SOURCES = build.source_paths()
NAMES = [source.stem for source in SOURCES]
ALL = [pytest.param(name, *one, id=f"{name}-{one.question}-{one.kind}-{one.what}")
       for name in NAMES for one in read_variants(name)]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("assignments")
    return functools.cache(lambda name: build.build(build.SOURCES / f"{name}.md", out))


@pytest.fixture(scope="module")
def tests_of(built):
    return lambda name: read_tests(built(name))


@pytest.fixture(scope="module")
def states(built):
    """Run the solution once; return the namespace as it is after each question."""

    @functools.cache
    def of(name):
        return {question: dict(after) for question, after in build.run_solution(built(name))}

    return of


def try_instead(source, namespace, tests):
    namespace = dict(namespace)
    with contextlib.suppress(Exception):
        exec(compile(source, "<cell>", "exec"), namespace)
    return run_checks(tests, namespace)


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_gets_every_point(name, states, tests_of):
    for question, source in tests_of(name).items():
        result = run_checks(source, states(name)[question])
        assert not result.messages and result.score == result.possible > 0, question


@pytest.mark.parametrize("name", NAMES)
def test_the_students_stub_fails_every_question(name, built, states, tests_of):
    path = built(name) / "student" / f"{name}.ipynb"
    for question, cells in build.questions_of(nbformat.read(path, as_version=4)):
        if question is not None:
            result = try_instead(cells[-1], states(name)[question], tests_of(name)[question])
            assert result.score == 0 and all(result.messages), f"{question}: {result}"


@pytest.mark.parametrize(("name", "question", "kind", "what", "source"), ALL)
def test_mistakes_fail_and_other_solutions_pass(
    name, question, kind, what, source, states, tests_of
):
    result = try_instead(source, states(name)[question], tests_of(name)[question])
    if kind == "right":
        assert not result.messages, result
    else:
        assert result.score < result.possible
        assert not any(re.match(r"NameError|SyntaxError", m) for m in result.messages), result


def test_another_answer_may_break_the_cells_that_follow(built, tests_of):
    """`grouped_split` is called further down; later questions are answered all the same."""
    broken = "def grouped_split(groups, test_share, random_state):\n    raise KeyError(groups[0])"
    tests = tests_of("1-pairs")
    scores = {
        question: run_checks(tests[question], namespace).score
        for question, namespace in build.run_solution(built("1-pairs"), {"q6": broken})
        if question
    }
    possible = {q: sum(case.points for case in load_cases(tests[q])[1]) for q in tests}
    assert scores == possible | {"q6": 0}


@pytest.mark.parametrize(("name", "notebook", "share"), [
    ("1-pairs", "student/1-pairs.ipynb", 0),
    ("1-pairs", "instructor/1-pairs-solution.ipynb", 1),
    ("3-fusion", "instructor/3-fusion-solution.ipynb", 1),
])  # fmt: skip
def test_otter_itself_grades_with_the_zip_for_gradescope(name, notebook, share, built, tmp_path):
    shutil.copy(built(name) / notebook, tmp_path / "handed-in.ipynb")
    archive = built(name) / "instructor" / "autograder.zip"
    command = [sys.executable, "-m", "otter", "run", "--no-logo", "-a", archive, "handed-in.ipynb"]
    reply = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert reply.returncode == 0, reply.stderr[-2000:]
    tests = json.loads((tmp_path / "results.json").read_text("utf-8"))["tests"]
    questions = [test for test in tests if test.get("max_score")]
    assert len(questions) >= 8
    assert [test["score"] for test in questions] == [share * t["max_score"] for t in questions]


@pytest.mark.parametrize("name", NAMES)
def test_every_question_has_two_mistakes_and_two_other_solutions(name, tests_of):
    kinds = [(one.question, one.kind) for one in read_variants(name)]
    for question in tests_of(name):
        assert kinds.count((question, "mistake")) >= 2, question
        assert kinds.count((question, "right")) >= 2, question
    assert {question for question, _ in kinds} == set(tests_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_what_students_get_holds_no_solution_and_no_hidden_test(name, built, tests_of):
    student = built(name) / "student"
    assert [path.name for path in student.rglob("*")] == [f"{name}.ipynb"]
    text = (student / f"{name}.ipynb").read_text("utf-8")
    assert "SOLUTION" not in text and "hidden" not in text.replace("hidden test set", "")
    shipped = json.dumps(json.loads((build.PUBLIC / f"{name}.json").read_text("utf-8")))
    for source in tests_of(name).values():
        for case in load_cases(source)[1]:
            assert (case.function.__name__ in shipped) != case.hidden


@pytest.mark.parametrize("name", NAMES)
def test_what_the_repository_holds_is_what_the_source_gives(name, built):
    for path, content in build.published(built(name)).items():
        assert path.read_text("utf-8") == content, f"{path}: run `make assignments`"


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_points_and_minutes_are_those_of_the_headings(source, built, tests_of):
    text = source.read_text("utf-8")
    by_tests = {q: sum(c.points for c in load_cases(t)[1])
                for q, t in tests_of(source.stem).items()}  # fmt: skip
    points = by_tests | build.by_hand(source)
    blocks = re.findall(
        r"name: (q\d+)\n.*?\n## (Question \d+|Bonus).*?\((\d+) points?, (\d+) minutes\)",
        text, re.DOTALL)  # fmt: skip
    assert {q: float(p) for q, _, p, _ in blocks} == points
    plain = sum(float(p) for _, kind, p, _ in blocks if kind != "Bonus")
    assert f" {plain:g} points" in text.split("```{raw-cell}")[0]
    assert build.bonus(source) == [q for q, kind, _, _ in blocks if kind == "Bonus"]
    assert 8 <= sum(kind != "Bonus" for _, kind, _, _ in blocks) <= 12
    assert any(kind == "Bonus" for _, kind, _, _ in blocks)


@pytest.mark.parametrize("name", NAMES)
def test_public_checks_run_from_the_package_alone(name, states):
    grader = Checks(name)
    last = states(name)[None]
    assert all(grader.check_all(last).values())
    assert not any(grader.check_all({}).values())


def test_the_solution_fills_its_own_cache_and_leaves_the_environment_as_it_was(built):
    before = dict(os.environ)
    build.run_reference(built("1-pairs"))
    assert dict(os.environ) == before
    assert any((built("1-pairs") / "cache").iterdir())


def test_a_solution_that_fails_a_test_is_named(built, monkeypatch):
    wrong = {question: source.replace("== 0.5", "== 0.7")
             for question, source in read_tests(built("1-pairs")).items()}  # fmt: skip
    monkeypatch.setattr(build, "read_tests", lambda target: wrong)
    with pytest.raises(RuntimeError, match="solution of 1-pairs fails q2"):
        build.run_reference(built("1-pairs"))
