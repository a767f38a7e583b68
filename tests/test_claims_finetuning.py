"""What the page on full training says of its stored run, and the pieces that computed it."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from cmlearn.reference import RUNS, finetuning, grocery
from cmlearn.reference.finetuning import EVERYTHING, LABELS
from cmlearn.runtime import load_run


@pytest.fixture(scope="module")
def run():
    return load_run(RUNS / "finetuning.json")


@pytest.fixture(scope="module")
def stored(run):
    return run["results"]


def test_the_run_is_that_of_the_code(run):
    assert not run["stale"]


def test_three_seeds_of_each_method_on_one_kind_of_machine(run, stored):
    assert len(set(stored["size"]["seeds"])) >= 3
    for found in stored["networks"].values():
        assert len(found["single"]) == len(found["views"]) == len(stored["size"]["seeds"])
        assert found["device"] == [run["provenance"]["device"]]


def test_views_and_ensembles_are_better_than_one_network_and_one_view(stored):
    for name in (LABELS, EVERYTHING):
        found = stored["networks"][f"lite0, {name}"]
        one, views = (np.mean([s["fine"] for s in found[key]]) for key in ("single", "views"))
        assert one < views < found["ensemble"]["fine"]


def test_one_network_asked_once_is_above_the_best_frozen_features(stored):
    frozen = load_run(RUNS / "grocery.json")["results"]["classifiers"]
    best = max(found["fine"] for found in frozen.values())
    for name in (LABELS, EVERYTHING):
        assert np.mean([s["fine"] for s in stored["networks"][f"lite0, {name}"]["single"]]) > best


def test_the_training_photographs_are_known_far_better_than_those_of_the_test(stored):
    plain = stored["networks"][f"lite0, {LABELS}"]
    known = np.mean([curve[-1] for curve in plain["train accuracy"]])
    assert known > 0.95 > np.mean([seed["fine"] for seed in plain["single"]]) + 0.1


def test_each_method_is_compared_with_each_before_it(stored):
    pairs = itertools.combinations(finetuning.METHODS, 2)
    assert set(stored["gains"]) == {f"lite0, {method} over {base}" for base, method in pairs}
    for gain in stored["gains"].values():
        assert gain["low"] < gain["gain"] < gain["high"]


def test_a_gain_is_the_difference_of_the_shares(rng):
    with_it, without = rng.integers(0, 2, 400) / 1.0, rng.integers(0, 2, 400) / 1.0
    found = finetuning.gain(with_it, without)
    assert found["gain"] == pytest.approx(with_it.mean() - without.mean())
    half = 1.96 * np.std(with_it - without) / np.sqrt(400)
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.1)


def test_accuracies_of_both_orders():
    probabilities = np.array([[0.4, 0.35, 0.25], [0.1, 0.8, 0.1], [0.9, 0.1, 0.0]])
    found = finetuning.accuracies(probabilities, np.array([1, 1, 0]), np.array([0, 1, 1]))
    assert found == {
        "fine": pytest.approx(2 / 3),
        "coarse": pytest.approx(2 / 3),
        "coarse to fine": 1.0,
        "sum over the family": 1.0,
    }


def small_data(n=12, size=32):
    rng = np.random.default_rng(0)
    target = np.arange(n) % 3
    pixels = rng.integers(0, 60, (n, size, size, 3), dtype=np.uint8)
    pixels[np.arange(n), :, :, target] += 150
    return finetuning.Data(
        dict.fromkeys(("train", "val", "test"), pixels),
        dict.fromkeys(("train", "val", "test"), target),
        np.array([0, 1, 1]),
        ["red", "not red"],
        teachers := rng.normal(size=(3, 5)),
        teachers[[1, 2, 0]],
    )


def test_parts_are_trained_once_and_summed_up(tmp_path, monkeypatch):
    data = small_data()
    monkeypatch.setattr(grocery, "HELD_OUT", 1)
    size = finetuning.Size({"lite0": 32}, 1, 4, 0.0, methods=(LABELS, EVERYTHING), seeds=(0, 1))
    for method, seed in finetuning.parts(size):
        finetuning.train_part(tmp_path, "lite0", method, seed, data, size)
    for seed in size.seeds:
        finetuning.train_without(tmp_path, "lite0", seed, data, size)
    found = finetuning.summary(tmp_path, data, size)
    assert set(found["networks"]) == {f"lite0, {LABELS}", f"lite0, {EVERYTHING}"}
    assert len(found["networks"][f"lite0, {LABELS}"]["single"]) == 2
    assert set(found["gains"]) == {f"lite0, {EVERYTHING} over {LABELS}"}
    assert len(found["recall"][f"lite0, {LABELS}"]) == 2
    unseen = found["unseen"]["lite0"]
    assert [scores["chance"] for scores in unseen["scores"]] == [1, 1]
    assert [curve["unseen"][-1] for curve in unseen["trade_offs"]] == [1, 1]

    def never(*arguments, **settings):
        raise AssertionError("a part that was done is not trained again")

    monkeypatch.setattr(finetuning, "FineTunedCNN", never)
    for method, seed in finetuning.parts(size):
        finetuning.train_part(tmp_path, "lite0", method, seed, data, size)
        finetuning.train_without(tmp_path, "lite0", seed, data, size)


def test_a_network_that_is_asked_about_new_kinds_has_seen_none_of_their_photographs(
    tmp_path, monkeypatch
):
    data, seen = small_data(), []

    class Watched(finetuning.FineTunedCNN):
        def fit(self, X, y):
            seen.append((set(y.tolist()), len(X), self.families, self.teachers))
            return super().fit(X, y)

    monkeypatch.setattr(grocery, "HELD_OUT", 1)
    monkeypatch.setattr(finetuning, "FineTunedCNN", Watched)
    size = finetuning.Size({"lite0": 32}, 1, 4, 0.0, seeds=(0,))
    finetuning.train_without(tmp_path, "lite0", 0, data, size)
    kinds = np.setdiff1d([0, 1, 2], grocery.unseen_kinds(3, 0))
    ((labels, n_images, families, teachers),) = seen
    assert labels == set(kinds.tolist()) and n_images == 8
    np.testing.assert_array_equal(families, data.families[kinds])
    np.testing.assert_array_equal(teachers, data.teachers[kinds])
    assert finetuning.load_part(tmp_path / "lite0-unseen-0.npz")["likeness"].shape == (12, 3)


def test_each_network_is_measured_on_photographs_of_its_own_size(tmp_path, monkeypatch):
    size = finetuning.Size({"lite0": 32, "lite2": 48}, 1, 4, 0.0, methods=(LABELS,), seeds=(0,))
    measured, stored = {}, {}

    def measure(data, variant, pixels, size):
        measured[variant] = pixels, data.pixels["train"].shape[1]
        return "measured"

    monkeypatch.setattr(finetuning, "GPU", size)
    monkeypatch.setattr(finetuning, "device", lambda: "GPU of a test")
    monkeypatch.setattr(finetuning, "read_data", lambda pixels: small_data(size=pixels))
    for name in ("train_part", "train_without"):
        monkeypatch.setattr(finetuning, name, lambda *arguments: None)
    empty = {"networks": {}, "unseen": {}}
    monkeypatch.setattr(finetuning, "summary", lambda *arguments: dict(empty))
    monkeypatch.setattr(finetuning, "measure", measure)
    monkeypatch.setattr(
        finetuning, "save_run", lambda path, results, **rest: stored.update(results)
    )
    finetuning.run(tmp_path / "run.json")
    assert measured == {"lite0": (32, 32), "lite2": (48, 48)}
    assert stored["gpu"] == {"lite0": "measured", "lite2": "measured"}


def test_operations_are_counted_through_the_whole_network():
    network = finetuning.training_network("lite0", 224, 10, 0.0)
    # The published count is 407 million multiplications with additions.
    assert finetuning.operations(network) / 2 == pytest.approx(407e6, rel=0.08)


def test_a_run_whose_time_is_up_says_so():
    code = (
        "import sys, time\n"
        "from cmlearn.reference import __main__ as command, grocery\n"
        "grocery.run = lambda path: time.sleep(60)\n"
        "sys.argv = ['reference', 'grocery', '--minutes', '0.01']\n"
        "sys.exit(command.main())\n"
    )
    reply = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100
    )
    assert reply.returncode == 3
    assert "grocery: time is up; the same command goes on from here" in reply.stderr
