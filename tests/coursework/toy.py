"""A small assignment of two questions, for tests of the grader."""

import nbformat

TESTS = {
    "q1": """
from otter.test_files import test_case
OK_FORMAT = False
name = "q1"
points = 2

@test_case(points=None, hidden=False)
def test_two(double):
    assert double(2) == 4, "Twice 2 is 4."

@test_case(points=None, hidden=True)
def test_array(double):
    import numpy as np
    assert np.array_equal(double(np.arange(3)), [0, 2, 4]), "SECRET: arrays are doubled as well."
""",
    "q2": """
from otter.test_files import test_case
OK_FORMAT = False
name = "q2"
points = 3

@test_case(points=None, hidden=True)
def test_total(total):
    assert total == 6, "The total of 1, 2 and 3 is 6."
    return 0.25
""",
}
LOAD = """
class Checks:
    def __init__(self, name): pass
    def check(self, question): return 1
grader = Checks("toy")
"""
DOUBLE = "def double(x):\n    return 2 * x"
TOTAL = "total = sum([1, 2, 3])"


def notebook(*extra, double=DOUBLE, total=TOTAL, checks=("q1", "q2"), metadata=True):
    """Return a submission; extra cells come between the two questions."""
    cells = [LOAD, double, *['grader.check("q1")'] * ("q1" in checks), *extra, total]
    cells += ['grader.check("q2")'] * ("q2" in checks) + ["grader.save_submission()"]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    if metadata:
        made.metadata["cmlearn"] = {"assignment": "toy"}
    return made
