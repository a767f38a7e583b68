"""What the page on groceries says of its stored run, and the pieces that computed it."""

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from cmlearn.reference import RUNS, grocery
from cmlearn.runtime import load_run


@pytest.fixture(scope="module")
def run():
    return load_run(RUNS / "grocery.json")


@pytest.fixture(scope="module")
def stored(run):
    return run["results"]


def test_the_run_is_that_of_the_code(run):
    assert not run["stale"]


def test_the_official_test_set_was_judged(stored):
    assert stored["n_test"] == 2485


def test_frozen_features_reach_what_was_asked(stored):
    fine = {name: row["fine"] for name, row in stored["classifiers"].items()}
    assert fine[f"{grocery.QUICK}, discriminant"] >= 0.72
    assert max(fine, key=fine.get) == "all four, discriminant"
    assert fine["lite0, discriminant"] > fine["lite0, SVM"]


def test_intervals_hold_their_estimates(stored):
    for row in stored["classifiers"].values():
        assert row["fine_low"] < row["fine"] < row["fine_high"]
        assert row["coarse_low"] < row["coarse"] < row["coarse_high"]
        assert row["fine"] < row["coarse"]


def test_a_description_of_the_kind_gives_the_label_away(stored):
    cheat = stored["cheating"]
    assert cheat["description of the kind"] > 0.99
    assert cheat["both"] > 0.95 > cheat["picture"]


def test_few_photographs(stored):
    few = {
        name: {shots: np.mean(draws) for shots, draws in by_shots.items()}
        for name, by_shots in stored["few_shot"].items()
    }
    draws = stored["few_shot"]["class means"].values()
    assert min(map(len, draws)) >= 3
    assert few["class means with the icon"]["1"] > few["class means"]["1"] > few["icon alone"]["0"]
    assert few["discriminant"]["16"] > few["class means"]["16"]
    assert few["discriminant"]["8"] > few["class means with the icon"]["8"]
    assert few["discriminant"]["2"] < 0.05
    means = list(few["class means"].values())
    assert means == sorted(means)


def test_kinds_without_photographs(stored):
    rows = stored["zero_shot"]
    assert len({row["repeat"] for row in rows}) >= 3
    for knowledge in ("icon", "description", "both"):
        of_it = [row for row in rows if row["knowledge"] == knowledge]
        assert np.mean([row["among unseen"] for row in of_it]) > 3 * of_it[0]["chance"]
        assert all(row["unseen, among all"] < row["seen, among all"] for row in of_it)
        for row, curve in zip(of_it, stored["trade_offs"][knowledge], strict=True):
            assert curve["unseen"][-1] == row["among unseen"]


def test_prototypes_are_nearest_centroids_on_the_sphere(rng):
    X, y = rng.normal(size=(60, 5)), rng.integers(0, 4, 60)
    found = grocery.Prototypes().fit(X, y)
    centroids = np.array([X[y == one].mean(axis=0) for one in range(4)])
    nearest = NearestCentroid().fit(normalize(centroids), np.arange(4))
    np.testing.assert_array_equal(found.predict(X), nearest.predict(normalize(X)))


def test_an_icon_counts_as_so_many_photographs(rng):
    X, y, icons = rng.normal(size=(6, 3)), np.array([0, 0, 1, 1, 2, 2]), rng.normal(size=(3, 3))
    twice = grocery.Prototypes(icons, weight=2.0).fit(X, y).means_
    by_hand = grocery.Prototypes().fit(np.vstack([X, icons, icons]), np.r_[y, [0, 1, 2] * 2]).means_
    np.testing.assert_allclose(twice, by_hand)


def test_so_many_rows_of_each_class_are_drawn():
    target = np.repeat([0, 1, 2], [5, 2, 9])
    rows = np.arange(1, 16)
    found = grocery.drawn(target, rows, 3, seed=0)
    assert np.bincount(target[found]).tolist() == [3, 2, 3]
    assert set(found) <= set(rows) and len(set(found)) == len(found)
    assert not np.array_equal(found, grocery.drawn(target, rows, 3, seed=1))


def test_views_are_standardised_on_the_training_rows_and_weigh_alike(rng):
    features = {"a": 5 + 3 * rng.normal(size=(200, 4)), "b": rng.normal(size=(200, 16))}
    train = np.arange(200) < 150
    found = grocery.joined(features, ("a", "b"), train)
    sizes = [np.square(block[train]).sum(axis=1).mean() for block in np.split(found, [4], axis=1)]
    np.testing.assert_allclose(sizes, 1.0)


def test_zero_shot_scores_of_four_photographs():
    likeness = np.array(
        [
            [0.9, 0.1, 0.2, 0.0],  # seen, right
            [0.2, 0.3, 0.8, 0.1],  # seen, taken for an unseen one
            [0.9, 0.1, 0.2, 0.1],  # unseen, right among the unseen alone
            [0.1, 0.2, 0.3, 0.8],  # unseen, right among all
        ]
    )
    found = grocery.zero_shot_scores(likeness, np.array([0, 1, 2, 3]), np.array([3, 2]))
    assert found == {
        "among unseen": 1.0,
        "chance": 0.5,
        "seen, among all": 0.5,
        "unseen, among all": 0.5,
        "harmonic mean": 0.5,
    }


def test_the_trade_off_goes_from_all_answers_seen_to_none(rng):
    likeness, target = rng.normal(size=(500, 9)), rng.integers(9, size=500)
    likeness[np.arange(500), target] += 2
    unseen = np.array([7, 1, 4])
    seen = np.setdiff1d(np.arange(9), unseen)
    found = grocery.trade_off(likeness, target, unseen)
    is_unseen = np.isin(target, unseen)
    for number, offset in enumerate(found["offset"]):
        lowered = likeness.copy()
        lowered[:, seen] -= offset
        right = lowered.argmax(axis=1) == target
        # A tie at the offset itself goes to the unseen kind; argmax may see it otherwise.
        assert abs(found["seen"][number] - right[~is_unseen].mean()) < 1.5 / (~is_unseen).sum()
        assert abs(found["unseen"][number] - right[is_unseen].mean()) < 1.5 / is_unseen.sum()
    scores = grocery.zero_shot_scores(likeness, target, unseen)
    assert found["unseen"][0] == found["seen"][-1] == 0
    assert found["unseen"][-1] == scores["among unseen"]
    assert found["seen"][0] * scores["among unseen"] > found["area"] > 0.3


def test_zero_shot_finds_held_out_classes_when_codes_and_pictures_agree(rng):
    """Eighty-one classes on a line of codes that the pictures show through a linear map."""
    codes = normalize(rng.normal(size=(81, 6)))
    target = np.repeat(np.arange(81), 12)
    pictures = codes[target] @ rng.normal(size=(6, 20)) + 0.01 * rng.normal(size=(972, 20))
    split = np.tile(["train"] * 6 + ["test"] * 6, 81)

    class Data:
        pass

    data = Data()
    data.target, data.split = target, split
    unseen, asked = np.arange(20), target[split == "test"]
    likeness = grocery.without_photographs(data, pictures, codes, unseen)
    found = grocery.zero_shot_scores(likeness, asked, unseen)
    assert found["among unseen"] > 0.9 and found["unseen, among all"] > 0.9
    shuffled = codes[rng.permutation(81)]
    likeness = grocery.without_photographs(data, pictures, shuffled, unseen)
    broken = grocery.zero_shot_scores(likeness, asked, unseen)
    assert broken["among unseen"] < 0.3
