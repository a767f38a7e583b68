import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import classification_report, f1_score

from cmlearn.metrics import (
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    evaluate,
    mcnemar,
    per_class_report,
)

CLASSES = np.array(["cup", "hat", "pen"])


def accuracy(y_true, y_pred):
    return np.mean(y_true == y_pred)


def predictions(rng, y, share):
    """Return predictions of which about that share are right; the rest is any other class."""
    other = CLASSES[(np.searchsorted(CLASSES, y) + rng.integers(1, 3, len(y))) % 3]
    return np.where(rng.random(len(y)) < share, y, other)


# --- evaluate, per_class_report -------------------------------------------------------------------

# Written out: cup 2 of 3 found and 2 of 2 right; hat 1 of 1 and 1 of 2; pen 0 of 1, never said.
Y_TRUE = ["cup", "cup", "cup", "hat", "pen"]
Y_PRED = ["cup", "cup", "hat", "hat", "cat"]


def test_scores_written_out():
    scores = evaluate(Y_TRUE, Y_PRED)
    precision, recall = [0, 2 / 2, 1 / 2, 0], [0, 2 / 3, 1, 0]  # cat, cup, hat, pen
    f1 = [0, 2 * (1 * 2 / 3) / (1 + 2 / 3), 2 * (1 / 2) / (3 / 2), 0]
    assert scores["accuracy"] == scores["f1_micro"] == scores["precision_micro"] == 3 / 5
    assert scores["recall_micro"] == 3 / 5
    assert scores["precision_macro"] == pytest.approx(np.mean(precision))
    assert scores["recall_macro"] == pytest.approx(np.mean(recall))
    assert scores["f1_macro"] == pytest.approx(np.mean(f1))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_micro_averages_are_the_accuracy(pairs):
    y_true, y_pred = zip(*pairs, strict=True)
    scores = evaluate(y_true, y_pred)
    for name in ("precision_micro", "recall_micro", "f1_micro"):
        assert scores[name] == pytest.approx(scores["accuracy"])
    assert all(0 <= score <= 1 for score in scores.values())


def test_per_class_report_agrees_with_classification_report(rng):
    y = CLASSES[rng.integers(0, 3, 60)]
    y_pred = predictions(rng, y, 0.7)
    report = per_class_report(y, y_pred)
    theirs = classification_report(y, y_pred, output_dict=True)
    assert list(report.index) == list(CLASSES)
    for label, row in report.iterrows():
        assert row["precision"] == theirs[label]["precision"]
        assert row["recall"] == theirs[label]["recall"]
        assert row["f1"] == theirs[label]["f1-score"]
        assert row["support"] == theirs[label]["support"]


def test_per_class_report_names_every_class():
    report = per_class_report([0, 0, 2], [0, 2, 2], target_names=["cup", "hat", "pen"])
    assert list(report.index) == ["cup", "hat", "pen"]
    assert list(report["support"]) == [2, 0, 1]
    assert list(report["recall"]) == [0.5, 0, 1]


@pytest.mark.parametrize("bad", [[0, 3], [-1, 0], ["cup", "hat"]])
def test_labels_that_have_no_name_are_named(bad):
    with pytest.raises(ValueError, match=f"3 target_names .* 0 to 2; got .*{bad[0]}|got 3"):
        per_class_report(bad, bad, target_names=list(CLASSES))


def test_predictions_of_another_length_are_refused():
    for function in (evaluate, per_class_report):
        with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[2, 1\]"):
            function(["a", "b"], ["a"])


# --- Bootstrap ------------------------------------------------------------------------------------


def test_interval_agrees_with_a_bootstrap_written_out(rng):
    y = CLASSES[rng.integers(0, 3, 200)]
    y_pred = predictions(rng, y, 0.8)
    draws = rng.integers(0, 200, size=(4000, 200))
    low, high = np.quantile((y_pred == y)[draws].mean(axis=1), [0.025, 0.975])
    interval = bootstrap_interval(accuracy, y, y_pred, n_resamples=4000, random_state=0)
    assert interval.estimate == (y == y_pred).mean()
    assert interval.low == pytest.approx(low, abs=0.011)
    assert interval.high == pytest.approx(high, abs=0.011)


def test_interval_agrees_with_the_binomial(rng):
    y = np.zeros(400, int)
    y_pred = (np.arange(400) < 80).astype(int)
    interval = bootstrap_interval(accuracy, y, y_pred, n_resamples=2000, random_state=0)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert interval.low == pytest.approx(0.8 - half, abs=0.006)
    assert interval.high == pytest.approx(0.8 + half, abs=0.006)


def test_confidence_level_is_the_share_inside():
    y, y_pred = [0] * 100, [0] * 70 + [1] * 30
    widths = []
    for level in (0.5, 0.95):
        interval = bootstrap_interval(accuracy, y, y_pred, confidence_level=level, random_state=0)
        widths.append(interval.high - interval.low)
        assert interval.confidence_level == level
    assert widths[1] / widths[0] == pytest.approx(1.96 / 0.674, rel=0.25)


def test_whole_groups_widen_the_interval(rng):
    """With ten copies of every row there are a tenth of the independent rows."""
    y = CLASSES[rng.integers(0, 3, 40)]
    y_pred = predictions(rng, y, 0.7)
    copies = np.tile(y, 10), np.tile(y_pred, 10)
    alone = bootstrap_interval(accuracy, y, y_pred, random_state=0)
    grouped = bootstrap_interval(
        accuracy, *copies, groups=np.tile(np.arange(40), 10), random_state=0
    )
    assert grouped == alone
    rows = bootstrap_interval(accuracy, *copies, random_state=0)
    ratio = (alone.high - alone.low) / (rows.high - rows.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.25)


def test_groups_of_any_label_and_size():
    groups = ["b", "a", "b", "a", "c"]
    seen = []

    def rows_drawn(y_true, y_pred):
        seen.append(sorted(y_true.tolist()))
        return 0.0

    bootstrap_interval(rows_drawn, range(5), range(5), groups=groups, n_resamples=20)
    members = {frozenset({0, 2}), frozenset({1, 3}), frozenset({4})}
    for rows in seen:
        assert all(len({rows.count(row) for row in group}) == 1 for group in members)
    assert {len(rows) for rows in seen} > {5}  # the sizes of the groups differ


def test_difference_is_paired(rng):
    y = CLASSES[rng.integers(0, 3, 300)]
    hard = rng.random(300) < 0.4
    wrong = np.where(y == "cup", "hat", "cup")
    a = np.where(hard, wrong, y)
    b = a.copy()
    b[np.flatnonzero(~hard)[:6]] = wrong[np.flatnonzero(~hard)[:6]]
    difference = bootstrap_difference(accuracy, y, a, b, random_state=0)
    assert difference.estimate == pytest.approx(6 / 300)
    # Each of the rows differs with probability 6/300, independently of how hard the rows are.
    half = 1.96 * math.sqrt(0.02 * 0.98 / 300)
    assert difference.high == pytest.approx(0.02 + half, abs=0.005)
    alone = bootstrap_interval(accuracy, y, a, random_state=0)
    assert difference.high - difference.low < (alone.high - alone.low) / 2


def test_difference_changes_sign_with_the_order(rng):
    y = CLASSES[rng.integers(0, 3, 100)]
    a, b = predictions(rng, y, 0.9), predictions(rng, y, 0.6)
    forth = bootstrap_difference(accuracy, y, a, b, random_state=0)
    back = bootstrap_difference(accuracy, y, b, a, random_state=0)
    assert forth.low > 0
    assert (back.estimate, back.low, back.high) == pytest.approx(
        (-forth.estimate, -forth.high, -forth.low)
    )


def test_coverage_is_near_the_level(rng):
    hits = 0
    for trial in range(100):
        y = np.zeros(80, int)
        y_pred = (rng.random(80) > 0.75).astype(int)
        interval = bootstrap_interval(
            accuracy, y, y_pred, n_resamples=200, confidence_level=0.9, random_state=trial
        )
        hits += interval.low <= 0.75 <= interval.high
    assert 80 <= hits <= 98


def test_seed_decides_the_interval(rng):
    y = CLASSES[rng.integers(0, 3, 100)]
    y_pred = predictions(rng, y, 0.7)

    def macro_f1(y_true, y_pred):
        return f1_score(y_true, y_pred, average="macro")

    first, again, other = (
        bootstrap_interval(macro_f1, y, y_pred, n_resamples=100, random_state=seed)
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_perfect_predictions_give_a_point():
    interval = bootstrap_interval(accuracy, [0, 1, 2], [0, 1, 2], random_state=0)
    assert (interval.estimate, interval.low, interval.high) == (1, 1, 1)


def test_interval_prints_with_three_digits():
    assert str(Interval(0.8421, 0.8249, 0.86, 0.95)) == "0.842 [0.825, 0.860]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0, 1], [5]), "groups has 1 entries for 2 rows"),
        (([0, 1], [0, 1], [5, 5]), "at least two groups to draw from; got one group"),
        (([0], [0], None), "at least two rows to draw from; got one row"),
        (([0, 1], [0], None), r"inconsistent numbers of samples: \[2, 1\]"),
    ],
)
def test_bad_input_of_the_bootstrap_is_named(arguments, message):
    y_true, y_pred, groups = arguments
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(accuracy, y_true, y_pred, groups=groups)


# --- McNemar --------------------------------------------------------------------------------------


def from_counts(both, only_a, only_b, neither):
    right_a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    right_b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return [1] * len(right_a), right_a, right_b


def two_sided_binomial(smaller, n):
    """Twice the lower tail of Binomial(n, 1/2), at most 1: the sum written out."""
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(smaller + 1)) / 2**n)


@given(*[st.integers(0, 40)] * 4)
@settings(deadline=None, max_examples=80)
def test_mcnemar_is_the_binomial_written_out(both, only_a, only_b, neither):
    if both + only_a + only_b + neither == 0:
        return
    result = mcnemar(*from_counts(both, only_a, only_b, neither))
    assert (result.both, result.only_a, result.only_b, result.neither) == (
        both,
        only_a,
        only_b,
        neither,
    )
    assert result.statistic == min(only_a, only_b)
    assert result.pvalue == pytest.approx(two_sided_binomial(result.statistic, only_a + only_b))


def test_mcnemar_is_symmetric_and_certain_when_models_agree():
    y, a, b = from_counts(5, 9, 2, 4)
    assert mcnemar(y, a, b).pvalue == mcnemar(y, b, a).pvalue
    assert mcnemar(y, a, a).pvalue == 1


def test_mcnemar_counts_rows_not_classes():
    """Two models that are wrong in different ways on the same rows do not differ."""
    result = mcnemar(["cup", "hat", "pen"], ["hat", "hat", "pen"], ["pen", "hat", "pen"])
    assert (result.both, result.neither, result.pvalue) == (2, 1, 1)


def test_mcnemar_refuses_predictions_of_another_length():
    with pytest.raises(ValueError, match=r"\[3, 3, 2\]"):
        mcnemar([1, 1, 1], [1, 1, 0], [1, 1])
