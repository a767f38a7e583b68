"""The book's reference runs: ``python -m cmlearn.reference emoji`` and so on, a module a run.

A run is stored as JSON under ``book/_runs``; pages show it beside what they compute themselves, and
a test holds the book's claims against it. Each module has a function ``run(path)`` and the list
``SOURCES`` of the files that its scores depend on: a change elsewhere does not make it stale.
"""

from pathlib import Path

RUNS = Path(__file__).resolve().parents[2] / "book" / "_runs"
"""The folder of the stored runs."""

GPU_RUNS = ("finetuning",)
"""The runs whose full size is meant for a GPU."""
