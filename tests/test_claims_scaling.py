"""What the page "Outgrowing one machine" claims, held against its stored run."""

import numpy as np
import pytest

from cmlearn.reference import RUNS
from cmlearn.reference.scaling import SOURCES
from cmlearn.runtime import load_run


@pytest.fixture(scope="module")
def stored():
    return load_run(RUNS / "scaling.json")["results"]


def test_three_repeats_of_everything_that_is_timed(stored):
    assert stored["repeats"] >= 3
    assert len(stored["costs"]) == len(stored["engines"]) == stored["repeats"]
    assert all(len(rows) == stored["repeats"] for rows in stored["local"].values())
    assert {"1000", "10000", "100000"} == set(stored["local"]) == set(stored["driver"])


def test_a_thousand_pictures_predict_a_hundred_thousand_to_a_factor_of_two(stored):
    pace = np.median([row["decode"] + row["encode"] for row in stored["costs"]])
    median = {int(n): np.median([r["processor"] for r in rows])
              for n, rows in stored["local"].items()}  # fmt: skip
    start = median[1000] - 1000 * pace
    for n, seconds in median.items():
        assert 0.5 < seconds / (start + n * pace) < 2


def test_the_memory_of_the_driver_does_not_grow(stored):
    peaks = {int(n): row["peak_mib"] for n, row in stored["driver"].items()}
    assert peaks[100_000] < 1.15 * peaks[1000]


def test_two_workers_are_at_least_half_again_as_fast_and_less_than_twice(stored):
    assert stored["pictures"]["cnn_side"] == 224
    for row in stored["engines"]:
        assert 1.5 <= row["ratio"] < row["pace_ratio"] < 2


def test_ratios_follow_from_the_times(stored):
    for row in stored["engines"]:
        assert row["ratio"] == pytest.approx(row["local"] / row["ray"])
        assert row["ray_few"] > row["local_few"]  # starting Ray takes longer


def test_the_sources_hold_what_is_called(root):
    assert all((root / source).is_file() for source in SOURCES)
