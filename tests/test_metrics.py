import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from sklearn.calibration import calibration_curve
from sklearn.metrics import classification_report, f1_score

from cmlearn.metrics import (
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    calibration_error,
    corrected_resampled_ttest,
    evaluate,
    holm,
    macro_f1,
    mcnemar,
    per_class_report,
    reliability_curve,
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


def test_macro_f1_counts_a_class_that_is_never_predicted_as_zero(rng):
    assert macro_f1(["a", "b"], ["a", "a"]) == pytest.approx((2 / 3 + 0) / 2)
    y = CLASSES[rng.integers(0, 3, 60)]
    y_pred = predictions(rng, y, 0.7)
    assert macro_f1(y, y_pred) == evaluate(y, y_pred)["f1_macro"]


# --- Calibration ----------------------------------------------------------------------------------


def probabilities(rng, n, n_classes):
    raw = rng.random((n, n_classes)) ** 3
    return raw / raw.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("n_bins", [1, 4, 15])
def test_reliability_is_scikit_learns_curve_of_the_first_choice(rng, strategy, n_bins):
    y = CLASSES[rng.integers(0, 3, 300)]
    y_prob = probabilities(rng, 300, 3)
    right = CLASSES[y_prob.argmax(axis=1)] == y
    curve = reliability_curve(y, y_prob, n_bins=n_bins, strategy=strategy)
    expected = calibration_curve(right, y_prob.max(axis=1), n_bins=n_bins, strategy=strategy)
    np.testing.assert_allclose(curve[["accuracy", "confidence"]].T, expected)
    assert curve["n_rows"].sum() == 300
    again = reliability_curve(right, y_prob.max(axis=1), n_bins=n_bins, strategy=strategy)
    assert again.equals(curve)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_calibration_error_written_out(n, n_bins, seed):
    rng = np.random.default_rng(seed)
    y, y_prob = rng.integers(0, 4, n), probabilities(rng, n, 4)
    total = 0.0
    for k in range(n_bins):
        inside = [
            (y_prob[i].argmax() == y[i], y_prob[i].max())
            for i in range(n)
            if k / n_bins < y_prob[i].max() <= (k + 1) / n_bins
        ]
        if inside:
            right, sure = np.mean(inside, axis=0)
            total += len(inside) / n * abs(right - sure)
    error = calibration_error(y, y_prob, labels=range(4), n_bins=n_bins)
    assert error == pytest.approx(total, abs=1e-9)


def test_calibration_error_of_known_cases(rng):
    y = rng.integers(0, 2, 4000)
    sure = np.where(rng.random(4000) < 0.8, y, 1 - y)
    honest = np.where(sure[:, None] == [0, 1], 0.8, 0.2)
    assert calibration_error(y, honest) == pytest.approx(0, abs=0.02)
    shouting = np.where(sure[:, None] == [0, 1], 1.0, 0.0)
    assert calibration_error(y, shouting) == pytest.approx(0.2, abs=0.02)
    assert calibration_error(y, shouting, strategy="quantile") == calibration_error(y, shouting)


def test_bins_of_equal_mass_hold_equally_many_rows(rng):
    y_prob = probabilities(rng, 200, 3)
    curve = reliability_curve(rng.integers(0, 3, 200), y_prob, n_bins=10, strategy="quantile")
    assert set(curve["n_rows"]) == {20}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0, 1], [[0.5, 0.5]]), {}, r"inconsistent numbers of samples: \[2, 1\]"),
        (([0, 1], [[0.5, 1.5], [0, 1]]), {}, "numbers from 0 to 1"),
        (([0, 1], [[0.5, np.nan], [0, 1]]), {}, "numbers from 0 to 1"),
        (([0, 1], [["a", "b"], ["a", "b"]]), {}, "numbers from 0 to 1"),
        (([0, 1], [[0.5, 0.2, 0.3]] * 2), {}, r"shape \(2, 3\), but there are 2 labels"),
        (([0, 2], [0.5, 0.5]), {}, "whether the prediction was right, 0 or 1; got .*2"),
        (([0, 1], [0.5, 0.5]), {"n_bins": 0}, "n_bins must be at least 1; got 0"),
        (([0, 1], [0.5, 0.5]), {"strategy": "equal"}, "strategy must be .*; got 'equal'"),
    ],
)
def test_bad_probabilities_are_named(arguments, options, message):
    for function in (calibration_error, reliability_curve):
        with pytest.raises(ValueError, match=message):
            function(*arguments, **options)


# --- Holm and the corrected t-test ----------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_holm_agrees_with_statsmodels(pvalues):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    expected = multitest.multipletests(pvalues, method="holm")[1]
    np.testing.assert_allclose(holm(pvalues), expected)


def test_holm_written_out():
    # 0.01 × 3; 0.03 × 2; 0.04 × 1, but not below the one before it.
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
    assert holm([]).shape == (0,)
    for bad in ([0.5, 1.5], [np.nan], [[0.5]], [-0.1]):
        with pytest.raises(ValueError, match="p-values must be a list of numbers from 0 to 1"):
            holm(bad)


def test_without_correction_it_is_the_paired_t_test(rng):
    a, b = rng.normal(0.8, 0.02, 25), rng.normal(0.78, 0.02, 25)
    ours, theirs = corrected_resampled_ttest(a - b, test_share=0), ttest_rel(a, b)
    assert (ours.statistic, ours.pvalue) == pytest.approx((theirs.statistic, theirs.pvalue))
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))


def test_correction_written_out(rng):
    d = rng.normal(0.01, 0.02, 25)
    result = corrected_resampled_ttest(d, test_share=1 / 4, confidence_level=0.9)
    error = math.sqrt((1 / 25 + 1 / 4) * sum((d - d.mean()) ** 2) / 24)
    assert result.statistic == pytest.approx(d.mean() / error)
    # 1.7108820799: the 95% quantile of Student's t with 24 degrees of freedom, from tables.
    assert result.high == pytest.approx(d.mean() + 1.7108820799 * error)
    assert result.low == pytest.approx(d.mean() - 1.7108820799 * error)
    assert result.pvalue > corrected_resampled_ttest(d, test_share=0).pvalue


def test_corrected_test_keeps_its_level_where_the_plain_one_does_not(rng):
    """Folds with a shared part: the correlation that the correction assumes, n2 / (n1 + n2)."""
    rejections = np.zeros(2)
    for _ in range(400):
        d = math.sqrt(0.2) * rng.normal() + math.sqrt(0.8) * rng.normal(size=25)
        for k, share in enumerate((1 / 4, 0)):
            rejections[k] += corrected_resampled_ttest(d, test_share=share).pvalue < 0.05
    assert rejections[0] / 400 < 0.09 and rejections[1] / 400 > 0.2


def test_t_test_without_variance_and_with_bad_input():
    assert corrected_resampled_ttest([0, 0, 0], test_share=0.25).pvalue == 1
    certain = corrected_resampled_ttest([0.5, 0.5], test_share=0.25)
    assert (certain.statistic, certain.pvalue, certain.low) == (np.inf, 0, 0.5)
    for bad in ([0.1], [0.1, np.nan], [[0.1, 0.2]]):
        with pytest.raises(ValueError, match="two or more finite differences"):
            corrected_resampled_ttest(bad, test_share=0.25)
    with pytest.raises(ValueError, match="test_share must be at least 0; got -1"):
        corrected_resampled_ttest([0.1, 0.2], test_share=-1)
