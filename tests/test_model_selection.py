import math

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import LinearSVC

from cmlearn.metrics import bootstrap_interval, calibration_error, mcnemar
from cmlearn.model_selection import _parts, compare_methods, paired_tests, score_intervals

METHODS = {"bayes": GaussianNB(), "svm": LinearSVC(), "guess": DummyClassifier()}


@pytest.fixture
def rows(rng):
    """160 rows in 60 groups; each class is told from the others by one feature."""
    groups = np.sort(rng.integers(0, 60, 160))
    y = np.array(["cup", "hat", "pen"])[np.array([0, 1, 2, 1])[groups % 4]]
    X = rng.normal(size=(160, 4))
    X[:, 0] += 2 * (y == "cup")
    X[:, 1] += 2 * (y == "pen")
    return X, y, groups


@pytest.fixture
def found(rows):
    X, y, groups = rows
    return compare_methods(METHODS, X, y, groups=groups, n_splits=4, n_repeats=2, random_state=0)


def folds_of_repeat(found, repeat):
    """Return the folds that were used, from the rows predicted."""
    table = found.predictions.query("method == 'bayes' and repeat == @repeat")
    tests = [part["row"].to_numpy() for _, part in table.groupby("fold")]
    everything = np.arange(160)
    return [(np.setdiff1d(everything, test), np.sort(test)) for test in tests]


def test_scores_are_scikit_learns_on_the_same_folds(rows, found):
    X, y, _ = rows
    for repeat in range(2):
        folds = folds_of_repeat(found, repeat)
        for name, method in METHODS.items():
            ours = found.scores.query("method == @name and repeat == @repeat").sort_values("fold")
            for metric, scoring in [("accuracy", "accuracy"), ("macro_f1", "f1_macro")]:
                theirs = cross_val_score(method, X, y, cv=folds, scoring=scoring)
                np.testing.assert_allclose(ours[metric], theirs)
            if name != "svm":
                y_prob = cross_val_predict(method, X, y, cv=folds, method="predict_proba")
                theirs = [log_loss(y[test], y_prob[test], labels=np.unique(y)) for _, test in folds]
                np.testing.assert_allclose(ours["log_loss"], theirs)
    svm = found.scores.query("method == 'svm'")
    assert svm[["log_loss", "calibration_error"]].isna().to_numpy().all()


def test_predictions_are_scikit_learns_and_serve_interval_and_mcnemar(rows, found):
    X, y, groups = rows
    folds = folds_of_repeat(found, 1)
    once = found.predictions.query("repeat == 1").set_index("row").sort_index()
    by_method = {name: part for name, part in once.groupby("method")}
    for name, method in METHODS.items():
        table = by_method[name]
        assert table.index.tolist() == list(range(160))
        np.testing.assert_array_equal(table["label"], y)
        expected = cross_val_predict(method, X, y, cv=folds)
        np.testing.assert_array_equal(table["prediction"], expected)
    sure = cross_val_predict(GaussianNB(), X, y, cv=folds, method="predict_proba").max(axis=1)
    np.testing.assert_allclose(by_method["bayes"]["confidence"], sure)
    bayes, guess = by_method["bayes"]["prediction"], by_method["guess"]["prediction"]
    interval = bootstrap_interval(accuracy_score, y, bayes, groups=groups, random_state=0)
    assert interval.estimate == accuracy_score(y, bayes)
    assert mcnemar(y, bayes, guess).only_a > mcnemar(y, bayes, guess).only_b


def test_calibration_error_of_each_fold(rows, found):
    X, y, _ = rows
    train, test = folds_of_repeat(found, 0)[0]
    y_prob = GaussianNB().fit(X[train], y[train]).predict_proba(X[test])
    first = found.scores.query("method == 'bayes' and repeat == 0 and fold == 0").iloc[0]
    assert first["calibration_error"] == pytest.approx(
        calibration_error(y[test], y_prob, labels=np.unique(y))
    )
    assert first["log_loss"] == pytest.approx(log_loss(y[test], y_prob, labels=np.unique(y)))
    assert first["macro_f1"] == pytest.approx(
        f1_score(y[test], GaussianNB().fit(X[train], y[train]).predict(X[test]), average="macro")
    )
    assert (first["n_train"], first["n_test"]) == (len(train), len(test))


def test_groups_stay_whole_every_row_is_tested_once_and_repeats_differ(rows, found):
    _, _, groups = rows
    for repeat in range(2):
        folds = folds_of_repeat(found, repeat)
        assert sorted(np.concatenate([test for _, test in folds])) == list(range(160))
        for train, test in folds:
            assert not set(groups[train]) & set(groups[test])
    assert not np.array_equal(folds_of_repeat(found, 0)[0][1], folds_of_repeat(found, 1)[0][1])


def test_seed_decides_the_folds_and_processes_change_nothing(rows, found):
    X, y, groups = rows
    options = {"groups": groups, "n_splits": 4, "n_repeats": 2}
    again = compare_methods(METHODS, X, y, random_state=0, n_jobs=2, **options)
    pd.testing.assert_frame_equal(again.predictions, found.predictions)
    other = compare_methods(METHODS, X, y, random_state=1, **options)
    assert not other.predictions["row"].equals(found.predictions["row"])


def test_without_groups_and_with_a_table_and_number_labels(rows):
    X, y, _ = rows
    codes = np.unique(y, return_inverse=True)[1]
    found = compare_methods(
        {"bayes": GaussianNB()}, pd.DataFrame(X), codes, n_repeats=1, random_state=0
    )
    assert list(found.scores["train_size"]) == [1.0] * 5
    assert list(found.scores["variant"]) == ["as it is"] * 5
    assert (found.scores["fit_seconds"] > 0).all() and (found.scores["predict_seconds"] > 0).all()


class WantsGroups(ClassifierMixin, BaseEstimator):
    def fit(self, X, y, groups=None):
        self.classes_, self.groups_ = np.unique(y), groups
        return self

    def predict(self, X):
        assert len(self.groups_) == 120 and set(self.groups_) <= set(range(40))
        return np.full(len(X), self.classes_[0])


def test_groups_reach_methods_that_take_them(rng):
    groups = np.repeat(np.arange(40), 4)
    y = np.where(groups % 2, "cup", "hat")
    compare_methods({"m": WantsGroups()}, rng.normal(size=(160, 2)), y, groups=groups, n_splits=4)


# --- Learning curves and variants -----------------------------------------------------------------


def test_parts_of_the_training_rows_are_nested_stratified_and_of_whole_groups(rows):
    _, y, groups = rows
    sizes = [0.2, 0.5, 1.0, 60]
    parts = list(_parts(y, groups, 4, 1, sizes, 0))
    assert len(parts) == 4 * 4
    for fold in range(4):
        by_size = {size: train for _, f, size, train, _ in parts if f == fold}
        whole = by_size[1.0]
        for size, train in by_size.items():
            wanted = size if isinstance(size, int) else size * len(whole)
            assert wanted - 1 <= len(train) <= wanted + np.bincount(groups).max()
            chosen = set(groups[train])
            assert np.isin(groups[whole], list(chosen)).sum() == len(train)
            shares = pd.Series(y[train]).value_counts(normalize=True)
            expected = pd.Series(y[whole]).value_counts(normalize=True)
            assert (shares - expected).abs().max() < (0.25 if size == 0.2 else 0.15)
        assert set(by_size[0.2]) < set(by_size[0.5]) < set(whole)
    tests = {f: {tuple(test) for _, g, _, _, test in parts if g == f} for f in range(4)}
    assert all(len(same) == 1 for same in tests.values())


def test_learning_curve_rises(rows):
    X, y, groups = rows
    found = compare_methods(
        {"bayes": GaussianNB()},
        X,
        y,
        groups=groups,
        n_repeats=3,
        train_sizes=[20, 0.5, 1.0],
        random_state=0,
    )
    curve = found.scores.groupby("train_size")[["accuracy", "n_train"]].mean()
    assert curve.loc[1.0, "accuracy"] > curve.loc[20, "accuracy"] + 0.02
    assert curve.loc[0.5, "n_train"] == pytest.approx(curve.loc[1.0, "n_train"] / 2, rel=0.05)


def without_first(X):
    return np.column_stack([np.zeros(len(X)), X[:, 1:]])


def test_variants_change_the_test_rows_only(rows):
    X, y, groups = rows
    found = compare_methods(
        {"bayes": GaussianNB()},
        X,
        y,
        groups=groups,
        n_splits=4,
        n_repeats=1,
        variants={0.0: np.asarray, 1.0: without_first},
        random_state=0,
    )
    plain = compare_methods(
        {"bayes": GaussianNB()}, X, y, groups=groups, n_splits=4, n_repeats=1, random_state=0
    )
    for fold, (train, test) in enumerate(folds_of_repeat(plain, 0)):
        fitted = GaussianNB().fit(X[train], y[train])
        for variant, part in [(0.0, X[test]), (1.0, without_first(X[test]))]:
            row = found.scores.set_index(["fold", "variant"]).loc[(fold, variant)]
            assert row["accuracy"] == pytest.approx(fitted.score(part, y[test]))


# --- Tests and intervals --------------------------------------------------------------------------


def test_paired_tests_written_out(found):
    table = found.scores.pivot(index=["repeat", "fold"], columns="method", values="accuracy")
    tests = paired_tests(found.scores, "guess").set_index("method")
    assert list(tests.index) == ["bayes", "svm"]
    share = found.scores["n_test"].mean() / found.scores["n_train"].mean()
    for name, row in tests.iterrows():
        d = (table[name] - table["guess"]).to_numpy()
        error = math.sqrt((1 / 8 + share) * d.var(ddof=1))
        assert row["difference"] == pytest.approx(d.mean())
        assert row["statistic"] == pytest.approx(d.mean() / error)
    low, high = sorted(tests["pvalue"])
    assert sorted(tests["pvalue_holm"]) == pytest.approx([2 * low, max(high, 2 * low)])
    everyone = paired_tests(found.scores)
    pairs = list(zip(everyone["method"], everyone["reference"], strict=True))
    assert pairs == [("bayes", "svm"), ("bayes", "guess"), ("svm", "guess")]


def test_intervals_have_the_best_first_and_the_corrected_width(found):
    intervals = score_intervals(found.scores, confidence_level=0.9)
    means = found.scores.groupby("method")["accuracy"].mean()
    assert list(intervals) == list(means.sort_values(ascending=False).index)
    bayes = found.scores.query("method == 'bayes'")["accuracy"]
    share = found.scores["n_test"].mean() / found.scores["n_train"].mean()
    # 1.8946: the 95% quantile of Student's t with 7 degrees of freedom, from tables.
    half = 1.8946 * math.sqrt((1 / 8 + share) * bayes.var(ddof=1))
    assert intervals["bayes"].estimate == pytest.approx(bayes.mean())
    assert intervals["bayes"].high - bayes.mean() == pytest.approx(half, rel=1e-4)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "methods must be a dict of names to classifiers"),
        ({"methods": [("a", GaussianNB())]}, "methods must be a dict"),
        ({"methods": {"a": "svm"}}, "method 'a' .* has no fit and predict"),
        ({"y": ["cup"] * 3}, r"inconsistent numbers of samples: \[160, 3, 160\]"),
        ({"groups": [1, 2]}, r"inconsistent numbers of samples: \[160, 160, 2\]"),
        ({"n_splits": 1}, "n_splits must be at least 2"),
        ({"n_repeats": 0}, "n_repeats at least 1; got 5 and 0"),
        ({"n_splits": 16}, "class 'cup' has 1[0-9] groups of rows, fewer than the 16 folds"),
        ({"train_sizes": [0.0]}, "train_sizes must be shares above 0"),
        ({"train_sizes": [1.5]}, "train_sizes must be .* got 1.5"),
        ({"train_sizes": [1000]}, "the 1.. of the training part; got 1000"),
        ({"train_sizes": [2]}, "a training size of 2 leaves class .* without a row"),
    ],
)
def test_bad_input_is_named(rows, changes, message):
    X, y, groups = rows
    arguments = {"methods": METHODS, "X": X, "y": y, "groups": groups} | changes
    with pytest.raises(ValueError, match=message):
        compare_methods(**arguments)


def test_an_error_says_which_method_and_fold(rows):
    X, y, _ = rows
    with pytest.raises(ValueError) as caught:
        compare_methods({"svm": LinearSVC(C=-1)}, X, y)
    assert "while method 'svm' worked on repeat 0, fold 0" in caught.value.__notes__


def test_tables_that_cannot_be_compared_are_refused(found):
    scores = found.scores
    with pytest.raises(ValueError, match="no method 'forest'; the scores hold .*'bayes'"):
        paired_tests(scores, "forest")
    with pytest.raises(ValueError, match="no metric 'recall'"):
        paired_tests(scores, metric="recall")
    with pytest.raises(ValueError, match="method 'svm' has no 'log_loss' in 8 folds"):
        score_intervals(scores, "log_loss")
    with pytest.raises(ValueError, match="method 'svm' has no 'accuracy' in 1 folds"):
        paired_tests(scores.drop(index=scores.query("method == 'svm'").index[0]))
    with pytest.raises(ValueError, match="at least two methods"):
        paired_tests(scores.query("method == 'svm'"))
    both = pd.concat([scores, scores.assign(train_size=0.5)])
    with pytest.raises(ValueError, match=r"several values of 'train_size', \[1.0, 0.5\]; choose"):
        score_intervals(both)


def test_folds_are_stratified_group_folds(rows, found):
    _, y, groups = rows
    seed = np.random.RandomState(0).randint(2**31 - 1)
    expected = StratifiedGroupKFold(4, shuffle=True, random_state=seed).split(y, y, groups)
    for (_, test), (_, ours) in zip(expected, folds_of_repeat(found, 0), strict=True):
        np.testing.assert_array_equal(test, ours)
