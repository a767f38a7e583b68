"""Tests of the parts of the run behind the page of questions."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, TransformerMixin

from cmlearn.reference import faq


class Spy(TransformerMixin, BaseEstimator):
    """Hands on the numbers in its column, and notes the rows that it was fitted on."""

    fitted = []

    def fit(self, X, y):
        Spy.fitted.append((list(X), list(y)))
        return self

    def transform(self, X):
        return np.asarray(X, dtype=float)[:, None]


@pytest.fixture
def spied(monkeypatch):
    Spy.fitted = []
    for column in ("image", "text"):
        monkeypatch.setattr(faq, f"{column}_encoders", lambda seed: {"spy": Spy()})


def test_encoders_see_the_first_training_rows_only_and_the_pair_decides(spied):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (2, 120))
    labels = bits[0] + 2 * bits[1]
    noisy = bits + rng.normal(0, 0.1, bits.shape)
    data = pd.DataFrame({"image": noisy[0], "text": noisy[1]})
    train, test = np.arange(119, 59, -1), np.arange(60)
    table = faq.accuracy_by_size(data, labels, train, test, (10, 40), 0)
    assert list(table.columns) == [10, 40]
    assert table.loc[("spy", "spy"), 40] > 0.95
    sizes = [len(rows) for rows, _ in Spy.fitted]
    assert sizes == [10, 10, 40, 40]
    rows, seen_labels = Spy.fitted[0]
    assert rows == list(noisy[0][train[:10]])
    assert seen_labels == list(labels[train[:10]])


def test_halves_share_no_group_and_change_with_the_seed():
    labels = np.tile([0, 1], 100)
    groups = np.repeat(np.arange(50), 4)
    train, test = faq.emoji_halves(labels, groups, 0)
    assert not set(groups[train]) & set(groups[test])
    assert sorted([*train, *test]) == list(range(200))
    assert list(train) != sorted(train)
    assert set(train) != set(faq.emoji_halves(labels, groups, 1)[0])


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_named_share_of_names_is_wrong_and_none_is_lost(rate):
    pairs = pd.DataFrame({"image": range(50), "text": [f"name {n}" for n in range(50)]})
    wrong = faq.with_wrong_names(pairs, rate, 0)
    assert (wrong["text"] != pairs["text"]).sum() == 50 * rate
    assert sorted(wrong["text"]) == sorted(pairs["text"])
    assert list(wrong["image"]) == list(pairs["image"])


def test_means_over_seeds_keep_pairs_and_sizes():
    tables = [{"SIFT": {"GloVe": {"100": a, "300": 1.0}}} for a in (0.2, 0.4, 0.6)]
    mean = faq.mean_over_seeds(tables)
    assert mean.loc[("SIFT", "GloVe"), 100] == pytest.approx(0.4)
    assert mean.loc[("SIFT", "GloVe"), 300] == 1.0
