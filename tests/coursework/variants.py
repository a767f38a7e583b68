"""Planted mistakes and other right solutions: the files ``N-name.py`` in this folder.

Each piece stands under a line such as ``# %% q3 mistake: softmax over the wrong axis`` and is
executed in place of the solution's cell.
"""

import re
from pathlib import Path
from typing import NamedTuple

_HEAD = re.compile(r"^# %% (q\d+) (mistake|right): (.+)$", re.MULTILINE)


class Variant(NamedTuple):
    """One answer to a question."""

    question: str
    kind: str
    what: str
    source: str


def read_variants(assignment: str) -> list[Variant]:
    """Return the pieces of an assignment's file, in order."""
    text = (Path(__file__).parent / f"{assignment}.py").read_text("utf-8")
    parts = _HEAD.split(text)[1:]
    return [Variant(*parts[i : i + 4]) for i in range(0, len(parts), 4)]
