"""Classes inside classes."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

from cmlearn.fusion import LateFusion
from cmlearn.hierarchy import FinerLabels

CENTERS = {"ant": 0, "eagle": 3, "bus": 6, "robin": 9, "tram": 12}
CLASS_OF = {"ant": "animal", "eagle": "bird", "robin": "bird", "bus": "car", "tram": "car"}


def some_table(n=200, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.choice(list(CENTERS), n)
    x = np.array([CENTERS[kind] for kind in kinds]) + rng.normal(0, 0.4, n)
    table = pd.DataFrame({"x": x, "noise": rng.normal(size=n), "kind": kinds})
    return table, np.array([CLASS_OF[kind] for kind in kinds])


@pytest.fixture
def data():
    return some_table()


def test_kinds_are_learned_where_classes_are_not_convex(data):
    table, labels = data
    new, truth = some_table(seed=1)
    coarse = LogisticRegression(max_iter=1000).fit(table[["x"]], labels)
    finer = FinerLabels(LogisticRegression(max_iter=1000), column="kind")
    finer.fit(table[["x", "kind"]], labels)
    assert coarse.score(new[["x"]], truth) < 0.8
    assert finer.score(new[["x"]], truth) > 0.98


def test_probabilities_are_sums_and_margins_are_maxima(data):
    table, labels = data
    finer = FinerLabels(LogisticRegression(max_iter=1000), column="kind").fit(table, labels)
    x = table[["x", "noise"]]
    pairs = pd.Series(list(zip(labels, table["kind"], strict=True)))
    assert finer.kinds_ == sorted(set(pairs))
    inner = LogisticRegression(max_iter=1000).fit(x, pairs.map(finer.kinds_.index))
    probabilities, scores = inner.predict_proba(x), inner.decision_function(x)
    for place, label in enumerate(["animal", "bird", "car"]):
        own = [number for number, (of, _) in enumerate(finer.kinds_) if of == label]
        np.testing.assert_allclose(
            finer.predict_proba(table)[:, place], probabilities[:, own].sum(axis=1)
        )
        np.testing.assert_allclose(
            finer.decision_function(table)[:, place], scores[:, own].max(axis=1)
        )


def test_the_answer_is_the_class_of_the_chosen_kind(data):
    table, labels = data
    finer = FinerLabels(OneVsRestClassifier(SVC()), column="kind").fit(table, labels)
    best = finer.decision_function(table).argmax(axis=1)
    assert finer.predict(table).tolist() == finer.classes_[best].tolist()


def test_kinds_are_not_looked_at_in_prediction(data):
    table, labels = data
    finer = FinerLabels(GaussianNB(), column="kind").fit(table, labels)
    plain = finer.predict_proba(table.drop(columns="kind"))
    for told in ("ant", None):
        assert (finer.predict_proba(table.assign(kind=told)) == plain).all()


def test_a_kind_with_few_rows_is_counted_among_those_without(data):
    table, labels = data
    table.loc[table["kind"] == "robin", "kind"] = [None, np.nan, "dodo"] + ["robin"] * (
        (table["kind"] == "robin").sum() - 3
    )
    finer = FinerLabels(GaussianNB(), column="kind", min_samples=2).fit(table, labels)
    assert ("bird", None) in finer.kinds_ and ("bird", "dodo") not in finer.kinds_
    assert finer.parents_.tolist() == [0, 1, 1, 1, 2, 2]
    rare = FinerLabels(GaussianNB(), column="kind", min_samples=1).fit(table, labels)
    assert ("bird", "dodo") in rare.kinds_


def test_rows_of_a_kind_are_counted_within_its_class(data):
    table, labels = data
    one_each = [np.flatnonzero(labels == label)[0] for label in ("bird", "car")]
    table.loc[one_each, "kind"] = "cartoon"
    finer = FinerLabels(GaussianNB(), column="kind", min_samples=2)
    kinds = finer.fit(pd.concat([table, table.iloc[one_each[:1]]]), [*labels, "bird"]).kinds_
    assert ("bird", "cartoon") in kinds
    assert ("car", "cartoon") not in kinds and ("car", None) in kinds


def test_one_name_in_two_classes_is_two_kinds(data):
    table, labels = data
    finer = FinerLabels(GaussianNB(), column="kind").fit(table.assign(kind="cartoon"), labels)
    assert finer.kinds_ == [(label, "cartoon") for label in ("animal", "bird", "car")]
    plain = GaussianNB().fit(table[["x", "noise"]], labels)
    np.testing.assert_allclose(
        finer.predict_proba(table), plain.predict_proba(table[["x", "noise"]])
    )


def test_margins_of_two_classes_are_half_the_lead(data):
    table, labels = data
    two = labels != "car"
    table, labels = table[two], labels[two]
    finer = FinerLabels(OneVsRestClassifier(SVC()), column="kind").fit(table, labels)
    scores = finer.classifier_.decision_function(table[["x", "noise"]])
    lead = scores[:, 1:].max(axis=1) - scores[:, 0]
    np.testing.assert_allclose(finer.decision_function(table), lead / 2)
    alone = FinerLabels(SVC(), column="kind").fit(table.assign(kind=None), labels)
    plain = SVC().fit(table[["x", "noise"]], labels)
    np.testing.assert_allclose(
        alone.decision_function(table), plain.decision_function(table[["x", "noise"]])
    )


def test_a_voice_in_late_fusion(data):
    table, labels = data
    machine = OneVsRestClassifier(SVC())
    branches = [
        ("classes", machine, ["x", "noise"]),
        ("kinds", FinerLabels(machine, column="kind"), ["x", "noise", "kind"]),
    ]
    fused = LateFusion(branches, how="margin").fit(table, labels)
    classes, kinds = (branch.fit(table[seen], labels) for _, branch, seen in branches)
    margins = classes.decision_function(table[["x", "noise"]]) + kinds.decision_function(table)
    answers = np.unique(labels)[margins.argmax(axis=1)]
    assert fused.predict(table.assign(kind="unknown")).tolist() == answers.tolist()


def test_a_classifier_of_scikit_learn(data):
    table, labels = data
    finer = FinerLabels(GaussianNB(), column="kind", min_samples=3)
    assert clone(finer).get_params()["min_samples"] == 3
    with pytest.raises(NotFittedError):
        finer.predict(table)
    again = pickle.loads(pickle.dumps(finer.fit(table, labels)))
    assert (again.predict(table) == finer.predict(table)).all()
    assert not hasattr(finer, "decision_function")  # as GaussianNB has none
    assert not hasattr(FinerLabels(SVC(), column="kind"), "predict_proba")
    assert table.columns.tolist() == ["x", "noise", "kind"]


def test_clear_errors(data):
    table, labels = data
    finer = FinerLabels(GaussianNB(), column="breed")
    with pytest.raises(ValueError, match="'breed'.*the columns 'x', 'noise', 'kind'"):
        finer.fit(table, labels)
    with pytest.raises(ValueError, match="'breed'.*ndarray"):
        finer.fit(table[["x"]].to_numpy(), labels)
    with pytest.raises(ValueError, match="one class, 'bird'"):
        FinerLabels(GaussianNB(), column="kind").fit(table, np.full(len(table), "bird"))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FinerLabels(GaussianNB(), column="kind").fit(table, labels[:-1])
