"""Checks, the sandbox, and grading: honest submissions, accidents and attacks."""

import base64
import csv
import io
import json
import os
import socket
import sys
import threading
import types
import zipfile
from decimal import Decimal
from fractions import Fraction
from http import HTTPStatus
from pathlib import Path

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from conftest import ROOT
from coursework.toy import TESTS, notebook

from cmlearn.coursework import Checks, _messages
from cmlearn.coursework._checks import only_reports, run_checks
from cmlearn.coursework.grade import (
    Grade,
    Submission,
    _csv,
    _write_all,
    feedback_page,
    find_submissions,
    grade,
    grade_folder,
    main,
)
from cmlearn.coursework.sandbox import Limits, Sandbox, SandboxError, isolation

REASON = isolation()
isolated = pytest.mark.skipif(REASON is not None, reason=str(REASON))
LIMITS = Limits(seconds=40, cell_seconds=5, memory=700, processes=60, output=1, disk=32)


def as_submission(made, name="someone"):
    return Submission(name, [cell.source for cell in made.cells], "toy")


def graded(*extra, limits=LIMITS, **parts):
    return grade(as_submission(notebook(*extra, **parts)), TESTS, limits=limits)


# ---------------------------------------------------------------- checks


def test_messages_teach_and_points_are_those_of_the_checks_that_passed():
    def double(x):
        return 2 * x if x.__class__ is int else 0

    result = run_checks(TESTS["q1"], {"double": double})
    assert (result.score, result.possible) == (1, 2)
    assert result.messages == ["SECRET: arrays are doubled as well."]
    assert "not yet" in repr(result) and "<li" in result._repr_html_()


def test_what_is_not_done_is_said_so():
    assert run_checks(TESTS["q2"], {}).messages == [
        "`total` is not defined: run the cell that makes it."
    ]
    assert "still `...`" in run_checks(TESTS["q2"], {"total": ...}).messages[0]


def test_a_function_that_returns_nothing_is_told_so_unless_nothing_is_an_answer():
    said = run_checks(TESTS["q1"], {"double": lambda x: None}).messages
    assert len(said) == 1 and said[0].startswith("`double` returned nothing")
    asked = TESTS["q1"].replace("double(2) == 4", "double(2) is None")
    assert run_checks(asked, {"double": lambda x: None}).score == 1


def test_a_watched_function_can_be_an_argument_of_another(sandbox):
    sandbox.ask("run", "def one(f): return f(1)\ndef twice(x): return 2 * x")
    source = TESTS["q2"].replace("total == 6", "one(twice) == 2").replace("(total)", "(one, twice)")
    assert run_checks(source, sandbox).messages == []


def test_an_error_of_the_students_code_is_named_with_its_line():
    namespace = {}
    exec(compile("def double(x):\n    return x['a']", "<cell>", "exec"), namespace)
    (message,) = run_checks(TESTS["q1"], namespace).messages[:1]
    assert message.startswith("TypeError") and "`double`, line 2" in message


def test_html_of_a_message_is_escaped():
    source = TESTS["q2"].replace("The total", "<script>alert(1)</script>")
    assert "<script>" not in run_checks(source, {"total": 1})._repr_html_()


def test_an_unknown_assignment_or_question_names_those_there_are():
    with pytest.raises(ValueError, match="there are '1-pairs'"):
        Checks("9-nothing")
    with pytest.raises(ValueError, match="no checks for 'q99'; it has them for q1"):
        Checks("1-pairs").check("q99", {})


def test_the_notebooks_own_names_are_what_is_checked():
    namespace = {"Checks": Checks, "n_pairs": ..., "n_classes": 1, "largest_class": "x"}
    exec("found = Checks('1-pairs').check('q1')", namespace)
    assert any("`n_pairs` is still" in message for message in namespace["found"].messages)


# ---------------------------------------------------------------- handing in


def of_pairs(*cells):
    first = 'from cmlearn.coursework import Checks\ngrader = Checks("1-pairs")'
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in (first, *cells)]
    )


def test_the_submission_is_the_one_notebook_of_this_assignment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nbformat.write(of_pairs("x = 1"), tmp_path / "作业一.ipynb")
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "other.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    path = Checks("1-pairs").save_submission()
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["作业一.ipynb"]
        assert archive.read("作业一.ipynb") == (tmp_path / "作业一.ipynb").read_bytes()
    assert "作业一.ipynb" in capsys.readouterr().out
    (found,) = [s for s in find_submissions(tmp_path) if s.name == "1-pairs-submission"]
    assert found.assignment == "1-pairs" and found.problem is None
    nbformat.write(of_pairs(), tmp_path / "copy.ipynb")
    with pytest.raises(FileNotFoundError, match=r"copy\.ipynb, 作业一\.ipynb"):
        Checks("1-pairs").save_submission()
    assert Checks("1-pairs").save_submission("copy.ipynb").is_file()
    with pytest.raises(FileNotFoundError, match="not the notebook of assignment 1-pairs"):
        Checks("1-pairs").save_submission("other.ipynb")


def test_on_colab_the_open_notebook_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    colab, message = types.ModuleType("google.colab"), types.ModuleType("google.colab._message")
    given, downloads = {"ipynb": json.loads(nbformat.writes(of_pairs("x = 2")))}, []
    message.blocking_request = lambda *a, **k: given
    colab._message, colab.files = message, types.SimpleNamespace(download=downloads.append)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google.colab._message", message)
    Checks("1-pairs").save_submission()
    assert downloads == ["1-pairs-submission.zip"]
    with zipfile.ZipFile(downloads[0]) as archive:
        assert "x = 2" in archive.read("1-pairs.ipynb").decode()
    message.blocking_request = lambda *a, **k: None
    with pytest.raises(RuntimeError, match=r"Download \.ipynb"):
        Checks("1-pairs").save_submission()


# ---------------------------------------------------------------- plain data


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 2.5, float("inf"), "ö", b"\0\1", ..., [1, [2]], (1, "a"), {1, 2},
     {"a": 1, (1, 2): [3]}, 10**30, {}, []],
    ids=repr,
)  # fmt: skip
def test_plain_values_come_back_as_they_were(value):
    back = _messages.decode(json.loads(json.dumps(_messages.encode(value, None))), None)
    assert back == value and type(back) is type(value)


def test_arrays_tables_and_sparse_matrices_come_back():
    def around(value):
        return _messages.decode(json.loads(json.dumps(_messages.encode(value, None))), None)

    for array in (
        np.arange(6, dtype=np.int8).reshape(2, 3),
        np.zeros((0, 4)),
        np.array(["a", "ö"]),
    ):
        assert around(array).dtype == array.dtype and np.array_equal(around(array), array)
    assert around(np.float32(0.1)) == np.float32(0.1) and around(np.bool_(True)) == True  # noqa: E712
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=[5, 7])
    pd.testing.assert_frame_equal(around(frame), frame)
    pd.testing.assert_series_equal(around(frame["a"]), frame["a"])
    times = pd.DataFrame({"day": pd.to_datetime(["2026-01-02"]), "small": np.array([3], np.int8)})
    pd.testing.assert_frame_equal(around(times), times)
    sparse = scipy.sparse.random(5, 4, 0.5, random_state=0)
    assert np.array_equal(around(sparse).toarray(), sparse.toarray())
    assert around(np.array(["a", None], dtype=object)).tolist() == ["a", None]
    lists = np.empty(2, dtype=object)
    lists[:] = [[1, 2], [3, 4]]
    assert around(lists).shape == (2,) and around(lists)[1] == [3, 4]
    assert around(lists.reshape(1, 2)).shape == (1, 2)


def test_an_array_that_would_never_end_is_refused():
    header = {"descr": "<U0", "fortran_order": False, "shape": (10**12,)}
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    sent = {"is": "array", "of": base64.b64encode(buffer.getvalue()).decode()}
    with pytest.raises(ValueError, match="that holds nothing"):
        _messages.decode(sent, None)


def test_what_has_no_plain_form_stays_where_it_is():
    masked = np.ma.masked_array([1, 2], mask=[True, False])
    assert _messages.encode(masked, lambda value: 4) == {
        "is": "kept", "of": 4, "type": "MaskedArray",
    }  # fmt: skip
    kept = []
    sent = _messages.encode([print, 1], lambda value: kept.append(value) or 0)
    assert kept == [print]
    assert _messages.decode(sent, lambda number, kind: (number, kind)) == [
        (0, "builtin_function_or_method"), 1,
    ]  # fmt: skip


class Tensor:
    """What a library's tensor says of itself."""

    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        if self.value is None:
            raise RuntimeError("it has no numbers yet")
        return np.array(self.value, dtype)


class Model(Tensor):
    def fit(self):
        """Make it an estimator."""


def test_tensors_and_numbers_of_other_kinds_travel_as_their_values():
    def around(value):
        return _messages.decode(json.loads(json.dumps(_messages.encode(value, None))), None)

    for value, plain in (
        (Tensor([[1, 2.5]]), np.array([[1, 2.5]])),
        (np.ma.masked_array([1, 2]), np.array([1, 2])),
        (keras.ops.softmax(np.zeros((1, 2), np.float32)), np.full((1, 2), 0.5, np.float32)),
    ):
        back = around([value])[0]
        assert type(back) is np.ndarray and back.dtype == plain.dtype
        assert np.array_equal(back, plain)
    numbers = [Tensor(0.5), Decimal("0.5"), Fraction(1, 2), keras.ops.convert_to_tensor(0.5)]
    assert [value - 0.5 for value in around(numbers)] == [0, 0, 0, 0]
    status = around(HTTPStatus.OK)
    assert status == 200 and type(status) is int


@pytest.mark.parametrize("value", [Tensor, Model(1), Tensor(None), Tensor([print]), 1j])
def test_what_is_no_tensor_of_numbers_stays_where_it_is(value):
    assert _messages.encode(value, lambda value: 4)["of"] == 4


def test_no_array_of_objects_is_read_since_it_could_hold_code():
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    sent = {"is": "array", "of": base64.b64encode(buffer.getvalue()).decode()}
    with pytest.raises(ValueError, match="pickle"):
        _messages.decode(sent, None)


# ---------------------------------------------------------------- the sandbox


@pytest.fixture(scope="module")
def sandbox():
    if REASON:
        pytest.skip(REASON)
    with Sandbox(LIMITS) as running:
        yield running


def test_functions_objects_and_iterators_are_asked_from_outside(sandbox):
    sandbox.ask("run", "import numpy as np\ndef f(x, k=1): return x * k\n"
                       "class A:\n    n = 3\n    def twice(self, x): return 2 * x\n"
                       "a, g = A(), (i * i for i in range(3))")  # fmt: skip
    assert np.array_equal(sandbox["f"](np.arange(3), k=2), [0, 2, 4])
    assert sandbox["a"].n == 3 and sandbox["a"].twice("ab") == "abab"
    assert sandbox["A"]().twice(sandbox["a"].n) == 6
    assert list(sandbox["g"]) == [0, 1, 4]
    assert "f" in sandbox and "nothing" not in sandbox
    with pytest.raises(TypeError, match="plain data"):
        sandbox["f"](print)


def test_errors_arrive_as_pythons_own_kinds(sandbox):
    sandbox.ask("run", "class Odd(KeyError): pass\ndef f(kind): raise kind('why')\n"
                       "def g(): raise ValueError('because')\ndef h(): raise Odd('x')")  # fmt: skip
    with pytest.raises(ValueError, match="because"):
        sandbox["g"]()
    sandbox.ask("run", "def stop(x): raise StopIteration('enough')")
    with pytest.raises(RuntimeError, match="enough"):  # or a loop of the test would end in peace
        list(map(sandbox["stop"], [1, 2]))
    with pytest.raises(KeyError, match="Odd"):
        sandbox["h"]()
    with pytest.raises(ZeroDivisionError) as caught:
        sandbox.ask("run", "1 / 0")
    assert "1 / 0" in caught.value.__notes__[0]


def test_a_cell_that_takes_too_long_is_left_and_the_next_one_runs(sandbox):
    with pytest.raises(TimeoutError, match="took longer than the 5 s"):
        sandbox.ask("run", "while True: pass")
    sandbox.ask("run", "after = 1")
    assert sandbox["after"] == 1


def test_no_file_of_this_machine_is_seen(sandbox, tmp_path):
    secret = tmp_path / "solution.txt"
    secret.write_text("secret")
    sandbox.ask("run", f"""
import glob, os
seen = [os.path.exists(p) for p in {[str(secret), str(ROOT / "book"), str(ROOT / "tests"),
                                     str(Path.home() / ".bashrc"), "/etc/passwd"]!r}]
""")  # fmt: skip
    assert sandbox["seen"] == [False] * 5
    assert not any(key.startswith("SECRET") for key in sandbox["os"].environ)


def test_no_network_not_even_this_machines_own(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with pytest.raises(OSError):
            sandbox.ask("run", f"import socket\nsocket.create_connection({address!r}, 2)")


@pytest.mark.parametrize("place", ["/dev/shm/x", "/tmp/x", "/dev/x", "/x", "/home/x", "/usr/x"])
def test_what_can_be_written_has_an_end(sandbox, place):
    # Many files, each below what a single file may hold.
    cell = f"""
import glob, os
try:
    for number in range(20):
        with open({place!r} + str(number), 'wb') as file:
            file.write(bytes(16 * 2**20))
finally:
    for path in glob.glob({place!r} + '*'):
        os.remove(path)
"""
    with pytest.raises(OSError, match="No space left|Read-only"):
        sandbox.ask("run", cell)


def test_processes_of_others_are_not_seen(sandbox):
    sandbox.ask("run", "import os\npids = [p for p in os.listdir('/proc') if p.isdigit()]")
    assert len(sandbox["pids"]) < 5


# ---------------------------------------------------------------- grading one


@isolated
def test_an_honest_submission_gets_its_points():
    made = graded()
    assert (made.status, made.score, made.possible) == ("graded", 5, 5)
    assert made.results["q2"].measures == {"test_total": 0.25}
    half = graded(double="def double(x):\n    return 4")
    assert half.score == 4 and half.results["q1"].messages == [
        "SECRET: arrays are doubled as well."
    ]


@isolated
def test_a_question_is_tested_with_the_values_at_its_check():
    later = graded("double = None")
    assert later.score == 5
    gone = graded("double = None", checks=("q2",))
    assert gone.score == 3 and len(gone.notes) == 1
    assert "The cells that check q1 are missing" in gone.notes[0] and "Keep these" in gone.notes[0]


@isolated
def test_a_cell_that_is_no_python_is_shown_without_what_is_not_the_students(sandbox):
    with pytest.raises(SyntaxError) as caught:
        sandbox.ask("run", "x = 1\ny = = 2")
    (trace,) = caught.value.__notes__
    assert "y = = 2" in trace and "line 2" in trace
    assert "IPython" not in trace and sys.prefix not in trace


@isolated
def test_under_the_grader_an_error_has_its_line_and_an_unwritten_function_its_name():
    broken = graded(double="def double(x):\n    return x['a']")
    (first, second) = broken.results["q1"].messages
    assert first.startswith("TypeError") and second.startswith("IndexError")
    assert first.endswith("(raised in `double`, line 2)") and second.endswith(
        "(raised in `double`, line 2)"
    )
    stub = graded(double="def double(x):\n    ...")
    assert stub.results["q1"].messages == [
        "`double` returned nothing: write your answer there, and hand it back with `return`."
    ]


@isolated
def test_a_cell_that_fails_costs_itself_alone():
    made = graded("1 / 0")
    assert made.score == 5 and made.errors[0][0] == "1 / 0"
    assert "ZeroDivisionError" in made.errors[0][1]


STOPPED = {
    "it took longer than 12 s": "import time\nwhile True:\n    try: time.sleep(99)\n"
                                "    except BaseException: pass",
    "it used more than 700 MiB of memory": "x = []\nwhile True: x.append(bytearray(10**8))",
    "it started more than": "import threading as t, time\nfor _ in range(100):\n"
                            "    t.Thread(target=lambda: time.sleep(9), daemon=True).start()\n"
                            "time.sleep(3)",
    "it printed more than 1 MiB": "while True: print('x' * 10000)",
    "exit status 0": "import os\nos._exit(0)",
    "ended by itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "could not be read (a message of": "import os\nfor fd in range(3, 30):\n"
                                       "    try: os.write(fd, b'\\xff' * 9)\n    except OSError: 0",
    "could not be read (": "import gc\nfor o in gc.get_objects():\n"
                           "    if type(o).__name__ == 'Submission':\n"
                           "        type(o).answer = lambda self, r: {'value': {'is': 'set'}}",
}  # fmt: skip


@isolated
@pytest.mark.parametrize("reason", STOPPED)
def test_what_was_done_before_a_hang_or_crash_counts(reason):
    limits = Limits(**vars(LIMITS) | {"seconds": 12}) if "longer" in reason else LIMITS
    made = graded(STOPPED[reason], limits=limits)
    assert made.status.startswith("stopped: ") and reason in made.status
    assert made.results["q1"].score == 2 and made.score == 2
    assert made.results["q2"].messages == ["It was not reached."]


@isolated
def test_a_fork_bomb_is_stopped():
    made = graded("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
    assert made.status.startswith("stopped: it ") and made.score == 2


FORGED = [
    "print('q1 2/2 q2 3/3 {\"score\": 100}')",
    "grader.check = lambda *a: 'all checks passed'",
    "from cmlearn.coursework import _checks\n"
    "_checks.run_checks = lambda *a: _checks.CheckResult('q2', 99, 3)",
    "import numpy as np\nnp.array_equal = lambda *a: True",
    "import builtins\nbuiltins.AssertionError = ValueError",
    "class Equal(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__",
    "open('results.json', 'w').write('{\"score\": 100}')",
]


@isolated
@pytest.mark.parametrize("attack", FORGED)
def test_a_score_that_was_forged_is_not_believed(attack):
    total = "total = Equal(5)" if "Equal" in attack else "total = 5"
    made = graded(attack, total=total)
    assert made.results["q2"].score == 0 and made.score == 2


@isolated
def test_an_object_that_equals_everything_equals_nothing_here():
    class_ = "class All:\n    def __eq__(self, o): return True\n    def __bool__(self): return True"
    assert graded(class_, total="total = All()").results["q2"].score == 0


@isolated
def test_a_right_answer_counts_whatever_kind_of_number_it_is():
    double = "import keras\ndef double(x):\n    return keras.ops.multiply(2, x)"
    total = "from fractions import Fraction\ntotal = Fraction(12, 2)"
    made = graded(double=double, total=total, limits=Limits(seconds=120))
    assert made.score == 5, made


@isolated
def test_the_hidden_tests_are_nowhere_in_the_submissions_process():
    search = """
import gc
needle = "SEC" + "RET"
total = 6 if any(needle in o for o in gc.get_objects() if isinstance(o, (str, list, dict))) else 0
for frame in __import__("sys")._current_frames().values():
    while frame is not None:
        if any(needle in repr(v) for v in list(frame.f_locals.values()) if isinstance(v, str)
               and "needle" not in v):
            total = 6
        frame = frame.f_back
"""
    assert graded(total=search).results["q2"].score == 0


@isolated
def test_one_submission_leaves_nothing_for_the_next():
    graded("open('/tmp/left', 'w').write('6')")
    made = graded(total="import os\ntotal = 6 if os.path.exists('/tmp/left') else 0")
    assert made.results["q2"].score == 0


def test_without_bubblewrap_nothing_runs_unless_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        Sandbox(LIMITS)
    assert main([str(tmp_path), "--built", str(tmp_path)]) == 2
    assert "--not-isolated" in capsys.readouterr().err
    made = grade(as_submission(notebook()), TESTS, limits=LIMITS, isolated=False)
    assert made.score == 5


# ---------------------------------------------------------------- grading a folder


@pytest.fixture
def built(tmp_path):
    folder = tmp_path / "built" / "toy" / "instructor"
    folder.mkdir(parents=True)
    (folder / "tests.json").write_text(json.dumps(TESTS))
    (folder / "by_hand.json").write_text(json.dumps({"q3": 4}))
    return tmp_path / "built"


@pytest.fixture
def course(tmp_path):
    """Make a folder of submissions as they really arrive."""
    place = tmp_path / "in"
    (place / "group b").mkdir(parents=True)
    nbformat.write(notebook(), place / "ann.ipynb")
    nbformat.write(notebook(metadata=False), place / "没有元数据.ipynb")
    nbformat.write(notebook(total="total = 0"), place / "group b" / "ann.ipynb")
    text = nbformat.writes(notebook())
    with zipfile.ZipFile(place / "zipped.zip", "w") as archive:
        archive.writestr("../../作业 一.ipynb", text)
        archive.writestr("__MACOSX/._作业.ipynb", "rubbish")
    with zipfile.ZipFile(place / "two.zip", "w") as archive:
        archive.writestr("a.ipynb", text)
        archive.writestr("b.ipynb", text)
    with zipfile.ZipFile(place / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.ipynb", " " * (33 * 2**20))
    (place / "broken.ipynb").write_text('{"cells": [')
    (place / "not.zip").write_text("no zip")
    (place / "link.ipynb").symlink_to(place / "ann.ipynb")
    (place / "=cmd.ipynb").write_text(text.replace('"toy"', '"other"').replace('\\"toy\\"', "x"))
    (place / "readme.txt").write_text("left alone")
    return place


@isolated
def test_a_folder_becomes_a_table_and_pages(course, built, tmp_path):
    out = tmp_path / "out"
    grades = grade_folder(course, out, built, limits=LIMITS)
    with (out / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(grades) == 10
    full = {"ann", "没有元数据", "zipped"}
    assert {name for name, row in rows.items() if row["score"] == "5"} == full
    assert rows["group b/ann"]["score"] == "2" and rows["group b/ann"]["q2"] == "0"
    assert rows["ann"]["by_hand"] == "4" and rows["ann"]["q3"] == ""
    said = {name: row["status"] for name, row in rows.items()}
    assert "holds 2 notebooks" in said["two"] and "MiB" in said["bomb"]
    assert "not a notebook" in said["broken"] and "cannot be read" in said["not"]
    assert "link" in said["link"] and "'other'" in said["'=cmd"]
    pages = {p.relative_to(out / "feedback").as_posix() for p in out.rglob("*.html")}
    assert {"ann.html", "group b/ann.html", "没有元数据.html"} <= pages and len(pages) == 10
    assert "5</b> of\n5 points" in (out / "feedback" / "ann.html").read_text("utf-8")
    scope = json.loads((out / "gradescope" / "ann.json").read_text("utf-8"))
    assert scope["score"] == 5 and [t["max_score"] for t in scope["tests"]] == [2, 3]
    board = (out / "leaderboard.csv").read_text("utf-8-sig").splitlines()
    assert board[0] == "assignment,measure,value,submission" and len(board) == 4


def test_the_command_passes_on_what_it_is_told(tmp_path, monkeypatch):
    seen = []

    def grade_folder(folder, out, built, **options):
        seen.append((folder, out, built, options))
        return [Grade("ann", "toy", status) for status in statuses]

    monkeypatch.setattr("cmlearn.coursework.grade.grade_folder", grade_folder)
    statuses = ["graded", "graded"]
    arguments = [str(tmp_path), "--out", "o", "--built", "b", "--assignment", "toy", "--jobs", "3"]
    assert main([*arguments, "--seconds", "7", "--memory", "99"]) == 0
    folder, out, built, options = seen[0]
    assert (folder, str(out), str(built)) == (tmp_path, "o", "b")
    assert options["limits"] == Limits(seconds=7, memory=99)
    assert options["jobs"] == 3 and options["assignment"] == "toy" and options["isolated"]
    statuses[1] = "stopped: it took too long"
    assert main([*arguments, "--not-isolated"]) == 1
    assert not seen[1][3]["isolated"]


@isolated
def test_bonus_and_questions_for_a_person_are_named_and_no_part_of_what_is_possible(
    built, tmp_path, capsys
):
    (built / "toy" / "instructor" / "bonus.json").write_text(json.dumps(["q2"]))
    (built / "toy" / "instructor" / "by_hand.json").write_text(json.dumps({"q3": 4, "q10": 1}))
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    nbformat.write(notebook(), place / "ann.ipynb")
    nbformat.write(notebook(total="total = 0"), place / "bob.ipynb")
    (place / "broken.ipynb").write_text("{")
    grade_folder(place, out, built, limits=LIMITS)
    with (out / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    sums = [[rows[name][c] for c in ("score", "possible", "bonus")] for name in ("ann", "bob")]
    assert sums == [["5", "2", "3"], ["2", "2", "0"]]
    assert "ann: 5/2 (bonus 3) graded\nbob: 2/2 graded" in capsys.readouterr().out
    scope = json.loads((out / "gradescope" / "ann.json").read_text("utf-8"))
    assert [(t["score"], t["max_score"]) for t in scope["tests"]] == [(2, 2), (3, 0)]
    page = " ".join((out / "feedback" / "ann.html").read_text("utf-8").split())
    assert "5</b> of 2 points for what tests can grade, bonus 3 included." in page
    assert "3 of 3 (bonus)" in page and "2 of 2</td>" in page
    assert page.index("read by a person, 4 points") < page.index("read by a person, 1 point<")
    assert "bonus" not in (out / "feedback" / "bob.html").read_text("utf-8").split("<table>")[0]
    assert "<table>" not in (out / "feedback" / "broken.html").read_text("utf-8")


def test_a_notebook_that_an_editor_marked_as_utf_8_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marked.ipynb").write_text(nbformat.writes(of_pairs("x = 1")), "utf-8-sig")
    Checks("1-pairs").save_submission()
    for found in find_submissions(tmp_path):
        assert found.problem is None and found.assignment == "1-pairs"


def test_what_jupyter_keeps_for_itself_in_a_zip_file_is_no_second_notebook(tmp_path):
    text = nbformat.writes(notebook())
    with zipfile.ZipFile(tmp_path / "ann.zip", "w") as archive:
        archive.writestr("./hw/toy.ipynb", text)
        archive.writestr("hw/.ipynb_checkpoints/toy-checkpoint.ipynb", text)
    assert [found.problem for found in find_submissions(tmp_path)] == [None]


def test_the_cell_that_loads_the_checks_says_which_assignment_it_is(tmp_path):
    made = notebook()
    made.metadata["cmlearn"]["assignment"] = "1-pairs"
    nbformat.write(made, tmp_path / "copied.ipynb")
    nbformat.write(notebook(), tmp_path / "usual.ipynb")
    copied, usual = find_submissions(tmp_path)
    assert (copied.assignment, usual.assignment, usual.notes) == ("toy", "toy", [])
    assert "made for assignment 1-pairs" in copied.notes[0] and "as toy" in copied.notes[0]
    assert grade(copied, {}, limits=LIMITS, isolated=False).notes == copied.notes


def test_a_long_name_has_a_page_and_one_that_cannot_be_written_costs_no_other_its_page(
    tmp_path, capsys
):
    long = "\\udcd5" * 70
    names = [long + "a", long + "b", "c" * 100, "x" * 101 + "/y", "in/the/way", "in", "in.html/z"]
    _write_all([Grade(name, "toy", "graded") for name in names], tmp_path)
    for kind, ending, number in (("feedback", "html", 6), ("gradescope", "json", 6)):
        pages = list((tmp_path / kind).rglob(f"*.{ending}"))
        assert len([page for page in pages if page.is_file()]) == number
        assert all(len(part.encode()) <= 120 for page in pages for part in page.parts)
    assert (tmp_path / "feedback" / f"{'c' * 100}.html").is_file()
    assert capsys.readouterr().out.startswith("No page could be written for in.html/z: ")


def damaged(path, method=None):
    """Write a zip file whose content is damaged, or compressed by a method that Python lacks."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.ipynb", nbformat.writes(notebook()))
    content = bytearray(path.read_bytes())
    if method is None:
        content[45:80] = bytes(35)
    else:
        for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            content[content.index(mark) + place] = method
    path.write_bytes(bytes(content))


@isolated
def test_what_one_submission_is_like_costs_no_other_its_grade(built, tmp_path, monkeypatch):
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    nbformat.write(notebook(), place / "ann.ipynb")
    nbformat.write(notebook(total="raise ValueError('\\ud800')"), place / "surrogate.ipynb")
    Path(os.fsdecode(bytes(place) + b"/M\xfcller.ipynb")).write_text(nbformat.writes(notebook()))
    damaged(place / "stream.zip")
    damaged(place / "method.zip", method=9)
    for name, source in (("five", 5), ("none", None)):
        written = json.loads(nbformat.writes(notebook()))
        written["cells"][0]["source"] = source
        (place / f"{name}.ipynb").write_text(json.dumps(written))
    grades = {made.submission: made for made in grade_folder(place, out, built, limits=LIMITS)}
    assert len(grades) == 7
    assert grades["ann"].score == grades["M\\udcfcller"].score == 5
    assert grades["surrogate"].status == "graded"
    for name in ("stream", "method", "five", "none"):
        assert grades[name].status.startswith("cannot be read: ")
    pages = {path.stem for path in (out / "feedback").iterdir()}
    assert pages == {path.stem for path in (out / "gradescope").iterdir()} == set(grades)

    def unforeseen(*arguments, **settings):
        raise LookupError("nobody thought of this")

    monkeypatch.setattr("cmlearn.coursework.grade.grade", unforeseen)
    for made in grade_folder(place, out, built, limits=LIMITS):
        assert made.status.startswith(("cannot be read: ", "could not be graded (LookupError: "))


@isolated
@pytest.mark.parametrize(
    ("limits", "said"),
    [(Limits(memory=60), "more than 60 MiB"), (Limits(seconds=0.05), "longer than 0.05 s")],
)
def test_a_limit_that_no_process_can_keep_is_named(limits, said):
    made = grade(as_submission(notebook()), TESTS, limits=limits)
    assert said in made.status and "this limit is too low" in made.status


@isolated
def test_a_limit_that_is_too_low_for_all_is_told_before_any_is_graded(built, tmp_path):
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    (place / "ann.ipynb").write_text(nbformat.writes(notebook()))
    with pytest.raises(SandboxError, match=r"longer than 0\.05 s.*this limit is too low"):
        grade_folder(place, out, built, limits=Limits(seconds=0.05))
    assert not out.exists()


@isolated
def test_grades_that_there_are_survive_an_interruption(built, tmp_path, monkeypatch):
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    for name in ("ann", "bob", "eve"):
        (place / f"{name}.ipynb").write_text(nbformat.writes(notebook()))
    starts = iter([None, SandboxError("killed for memory"), KeyboardInterrupt()])

    def interrupted(submission, *arguments, **settings):
        problem = next(starts)
        if problem is not None:
            raise problem
        return grade(submission, *arguments, **settings)

    monkeypatch.setattr("cmlearn.coursework.grade.grade", interrupted)
    out.mkdir()
    (out / "grades.csv").write_text("of an earlier call")
    with pytest.raises(KeyboardInterrupt):
        grade_folder(place, out, built, limits=LIMITS, jobs=1)
    assert (out / "grades.csv").read_text() == "of an earlier call"
    rows = (out / "grades-partial.csv").read_text("utf-8-sig").splitlines()
    assert [row.split(",")[0] for row in rows] == ["submission", "ann", "bob"]
    assert "could not be graded (SandboxError: killed for memory)" in rows[2]
    monkeypatch.undo()
    assert len(grade_folder(place, out, built, limits=LIMITS, jobs=1)) == 3
    assert not (out / "grades-partial.csv").exists()


def test_points_by_hand_are_kept_and_pages_of_an_earlier_call_go(tmp_path, capsys):
    def write(*names):
        _write_all([Grade(name, "toy", "graded") for name in names], tmp_path)
        return (tmp_path / "grades.csv").read_bytes()

    def kept():
        return sorted(path.read_bytes() for path in tmp_path.glob("grades-*.csv"))

    first = write("ann", "bob")
    assert write("ann", "bob") == first and kept() == [] and capsys.readouterr().out == ""
    by_hand = first + b"7 points for q12"
    for number in (1, 2):  # two of one second are two files
        (tmp_path / "grades.csv").write_bytes(by_hand + b"!" * number)
        os.utime(tmp_path / "grades.csv", (0, 0))
        write("eve")
        assert "is now grades-19" in capsys.readouterr().out
    assert kept() == [by_hand + b"!", by_hand + b"!!"]
    for kind in ("feedback", "gradescope"):
        assert [path.stem for path in (tmp_path / kind).iterdir()] == ["eve"]


def test_each_folder_of_submissions_has_its_own_place_for_grades(tmp_path, monkeypatch):
    places = []
    monkeypatch.setattr(
        "cmlearn.coursework.grade.grade_folder", lambda _, out, *a, **k: places.append(out) or []
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "week 2").mkdir()
    for arguments in (["week 2"], ["week 2/"], ["in", "--out", "here"]):
        assert main(arguments) == 0
    assert places == [Path("_build/grades/week 2")] * 2 + [Path("here")]


@pytest.mark.parametrize(
    ("source", "reports"),
    [
        ("grader.check_all()", True),
        ("  grader.save_submission();  # the file for the course", True),
        ("grader.check_all()\ngrader.save_submission()\n", True),
        ("grader.check_all()\nanswer = 5", False),
        ("grader.check_all(); answer = 5", False),
        ("answer = grader.check_all()", False),
        ('grader.save_submission(Path("mine.ipynb"))\n# done', True),
        ("# nothing but a remark", False),
        ("%pip install something", False),
        ("grader.check_all()" + " " * 500_000 + "x", False),
    ],
)
def test_cells_that_answer_nothing(source, reports):
    assert only_reports(source) == reports


def test_a_negative_number_stays_one_in_a_table():
    assert _csv([["-0.5", "=A1", "-x", "+1e", "3"]]) == "-0.5,'=A1,'-x,'+1e,3\n"


def test_tests_that_submissions_could_read_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cmlearn.coursework.grade.isolation", lambda: None)
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert main([str(tmp_path / "in"), "--built", str(tmp_path / "built")]) == 2
    assert f"lies in {tmp_path}, which every submission can read" in capsys.readouterr().err


def test_two_files_of_one_name_are_two_submissions(tmp_path):
    text = nbformat.writes(notebook())
    (tmp_path / "ann.ipynb").write_text(text)
    (tmp_path / "bob.ipynb").write_text(text)
    with zipfile.ZipFile(tmp_path / "ann.zip", "w") as archive:
        archive.writestr("ann.ipynb", text)
    found = [submission.name for submission in find_submissions(tmp_path)]
    assert found == ["ann.ipynb", "ann.zip", "bob"]
    (tmp_path / "ann.ipynb.ipynb").write_text(text)
    found = [submission.name for submission in find_submissions(tmp_path)]
    assert found == ["ann.ipynb", "ann.ipynb.ipynb", "ann.zip", "bob"]


def test_feedback_shows_what_a_student_wrote_as_text():
    evil = "<script>alert(1)</script>"
    made = Grade(evil, "toy", f"stopped: {evil}", {}, [(evil, evil)], [evil])
    assert "<script>" not in feedback_page(made)


def test_an_assignment_that_was_not_built_says_what_to_do(tmp_path, capsys):
    if REASON:
        pytest.skip(REASON)
    assert main([str(tmp_path), "--built", str(tmp_path / "nothing")]) == 2
    assert "make assignments" in capsys.readouterr().err


def test_threads_and_files_of_a_submission_are_closed():
    if REASON:
        pytest.skip(REASON)
    before = len(os.listdir("/proc/self/fd"))
    graded()
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.main_thread():
            thread.join(0.5)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
