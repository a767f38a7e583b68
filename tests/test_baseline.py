import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import train_test_split

from cmlearn.baseline import (
    build_classifier,
    build_models,
    compare,
    cross_validate,
    shared_images,
    split_pairs,
)


def test_without_groups_the_split_is_scikit_learns_stratified_one():
    labels = np.array(["a"] * 30 + ["b"] * 10, dtype=object)
    train, test = split_pairs(labels, np.arange(40), test_size=0.25, seed=3)
    expected = train_test_split(np.arange(40), test_size=0.25, random_state=3, stratify=labels)
    np.testing.assert_array_equal(train, expected[0])
    np.testing.assert_array_equal(test, expected[1])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("sizes", [[100, 2], [100, 2, 2, 2], [40, 30, 20, 10, 4, 3, 2, 2, 2]])
def test_rare_classes_are_on_both_sides_whatever_the_share(sizes, share):
    labels = np.repeat([f"class {n}" for n in range(len(sizes))], sizes).astype(object)
    for seed in range(10):
        train, test = split_pairs(labels, np.arange(len(labels)), test_size=share, seed=seed)
        assert sorted([*train, *test]) == list(range(len(labels)))
        assert set(labels[train]) == set(labels[test]) == set(labels)
        assert abs(len(test) - share * len(labels)) <= len(sizes)


def test_pictures_that_are_missing_are_no_copies_of_each_other(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"the same picture")
    train = pd.DataFrame({"image": [tmp_path / "a", None]})
    test = pd.DataFrame({"image": [None, str(tmp_path / "b"), np.zeros((2, 2, 3))]})
    assert shared_images(train, test) == 1


def test_groups_stay_whole_and_every_class_is_on_both_sides():
    labels = np.repeat(np.array(["a", "b", "c"], dtype=object), [20, 12, 4])
    groups = np.array([f"{label}{n // 2}" for n, label in enumerate(labels)])  # c: two groups
    for seed in range(10):
        train, test = split_pairs(labels, groups, seed=seed)
        assert sorted([*train, *test]) == list(range(36))
        assert not set(groups[train]) & set(groups[test])
        assert set(labels[train]) == set(labels[test]) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.4, 1 / 3), (0.29, 1 / 4), (0.2, 1 / 5), (0.8, 1 / 2)]
)
def test_with_groups_the_share_is_the_nearest_of_one_half_one_third_and_so_on(share, expected):
    groups = np.repeat(np.arange(60), 4)
    labels = np.where(groups % 2, "a", "b").astype(object)
    _, test = split_pairs(labels, groups, test_size=share)
    assert len(test) / len(labels) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("labels", "groups", "share", "message"),
    [
        ("aaab", "1234", 0.5, "a single pair .* b"),
        ("aabb", "1233", 0.5, r"single group\): b"),
        ("aabbcc", "123456", 0.2, "4 for training and 2 for the test, but there are 3 classes"),
        ("aabb", "1212", 0.2, "2 classes and each part"),
    ],
)
def test_splits_that_cannot_be_are_refused(labels, groups, share, message):
    with pytest.raises(ValueError, match=message):
        split_pairs(np.array(list(labels)), np.array(list(groups)), test_size=share)


def test_copies_are_found_by_content(tmp_path):
    for name, value in [("a", 0), ("b", 9), ("c", 0), ("d", 5)]:
        Image.new("L", (4, 4), value).save(tmp_path / f"{name}.png")
    paths = {name: str(tmp_path / f"{name}.png") for name in "abcd"}
    train = pd.DataFrame({"image": [paths["a"], paths["b"]]})
    test = pd.DataFrame({"image": [paths["c"], paths["d"]]})
    assert shared_images(train, test) == 1
    arrays = pd.Series([np.zeros((2, 2, 3)), np.ones((2, 2, 3))])
    assert shared_images(pd.DataFrame({"image": arrays}), pd.DataFrame({"image": arrays[1:]})) == 1


def test_compare_equals_scikit_learns_scores(rng):
    y_true = rng.choice(["a", "b", "c"], 60)
    y_pred = np.where(rng.random(60) < 0.7, y_true, "a")
    table = compare({"model": y_pred, "perfect": y_true}, y_true)
    assert table.loc["model", "accuracy"] == accuracy_score(y_true, y_pred)
    assert table.loc["model", "macro F1"] == f1_score(y_true, y_pred, average="macro")
    assert table.loc["model", "low"] < table.loc["model", "accuracy"] < table.loc["model", "high"]
    low = 1 / (1 + 1.959964**2 / 60)  # of Wilson's interval, where all are right
    assert list(table.loc["perfect"]) == pytest.approx([1, low, 1, 1])
    right = int((y_true == y_pred).sum())
    wilson = binomtest(right, 60).proportion_ci(method="wilson")
    assert tuple(table.loc["model", ["low", "high"]]) == (wilson.low, wilson.high)
    spread = np.sqrt(table.loc["model", "accuracy"] * (1 - table.loc["model", "accuracy"]) / 60)
    width = table.loc["model", "high"] - table.loc["model", "low"]
    assert width == pytest.approx(2 * 1.96 * spread, rel=0.3)  # the normal approximation


def test_compare_draws_related_pairs_together(rng):
    groups = np.repeat(np.arange(20), 10)
    y_true = np.full(200, "a")
    y_pred = np.where(rng.random(20) < 0.6, "a", "b")[groups]  # right or wrong as a group
    width = np.ptp(compare({"m": y_pred}, y_true)[["low", "high"]].to_numpy())
    wide = np.ptp(compare({"m": y_pred}, y_true, groups=groups)[["low", "high"]].to_numpy())
    assert wide == pytest.approx(width * np.sqrt(10), rel=0.3)
    all_right = compare({"m": y_true}, y_true, groups=groups).loc["m"]
    assert all_right["low"] == pytest.approx(1 / (1 + 1.959964**2 / 20)) and all_right["high"] == 1
    all_wrong = compare({"m": np.full(200, "b")}, y_true, groups=groups).loc["m"]
    assert all_wrong["low"] == 0 and all_wrong["high"] == pytest.approx(1 - all_right["low"])
    one = compare({"m": y_pred}, y_true, groups=np.zeros(200))
    pd.testing.assert_frame_equal(one, compare({"m": y_pred}, y_true))


def test_an_unknown_classifier_is_named():
    with pytest.raises(ValueError, match="linear-svm, rbf-svm, logistic, mlp; got 'linear_svm'"):
        build_classifier("linear_svm", seed=0)


def test_cross_validation_keeps_groups_whole(rng):
    """Rows of a group are the same, so that memory would score 1 if groups were torn apart."""
    n_groups = 40
    labels = np.repeat(rng.permutation(np.array(["a", "b"] * (n_groups // 2), dtype=object)), 5)
    groups = np.repeat(np.arange(n_groups), 5)
    X = np.repeat(rng.normal(size=(n_groups, 4)), 5, axis=0)
    machine = build_classifier("rbf-svm", seed=0)
    whole = cross_validate({"m": machine}, X, labels, groups, folds=4, seed=0)
    torn = cross_validate({"m": machine}, X, labels, np.arange(200), folds=4, seed=0)
    assert whole.loc["m", "mean"] < 0.7 < 0.95 < torn.loc["m", "mean"]
    folds = whole.loc["m", "folds"]
    assert len(folds) == 4 and np.std(folds, ddof=1) == whole.loc["m", "spread"]


def test_too_many_folds_are_refused_by_groups():
    labels = np.array(list("aaaaaabbbbbb"))
    cross_validate({}, np.zeros((12, 1)), labels, np.arange(12), folds=6, seed=0)
    with pytest.raises(ValueError, match="class 'a' has 6 rows, fewer than the 7 .* fewer folds"):
        cross_validate({}, np.zeros((12, 1)), labels, np.arange(12), folds=7, seed=0)
    with pytest.raises(ValueError, match="has 3 groups of rows, fewer than the 4 folds"):
        cross_validate({}, np.zeros((12, 1)), labels, np.arange(12) // 2, folds=4, seed=0)


def test_the_articles_classifier_is_the_default():
    machine = build_models()["image + text"].named_steps["classifier"]
    assert type(machine).__name__ == "SVC" and machine.kernel == "linear"
    assert list(build_models()) == [
        "image + text",
        "image alone",
        "text alone",
        "most frequent class",
    ]
    assert hasattr(build_classifier("rbf-svm", seed=0, probabilities=True), "predict_proba")
