"""What an assignment's notebook needs: its public checks, and the cell that saves the submission.

Those who hand out and grade find their part in `cmlearn.coursework.build` and
`cmlearn.coursework.grade`.
"""

from cmlearn.coursework._checks import CheckResult, Checks, test_case

__all__ = ["CheckResult", "Checks", "test_case"]
