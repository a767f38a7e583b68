"""Embedding with two workers of Ray against one local process, a core each.

Run with ``python tests/bench/bench_ray.py``; it prints a line a repetition. ``ratio`` compares
whole runs; ``pace`` leaves out what the same engine takes for its first two chunks, nearly all of
it for starting.
"""

import os
import tempfile
from pathlib import Path

from cmlearn.reference.scaling import SPEEDUP_PICTURES, compare_engines


def main() -> None:
    """Print the times and ratios."""
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed")
    print(f"{SPEEDUP_PICTURES} pictures; a core for one process, two for two workers")
    print(f"{'load':>6}{'local s':>9}{'ray s':>9}{'ratio':>7}{'pace':>7}")
    with tempfile.TemporaryDirectory() as place:
        for row in compare_engines(Path(place)):
            print(
                f"{row['load']:6.1f}{row['local']:9.1f}{row['ray']:9.1f}"
                f"{row['ratio']:7.2f}{row['pace_ratio']:7.2f}"
            )


if __name__ == "__main__":
    main()
