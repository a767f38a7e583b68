"""Scores of a classifier, how certain they are, and whether two classifiers differ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from sklearn.utils import check_consistent_length

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Interval",
    "McNemarResult",
    "TTestResult",
    "bootstrap_difference",
    "bootstrap_interval",
    "calibration_error",
    "corrected_resampled_ttest",
    "evaluate",
    "holm",
    "macro_f1",
    "mcnemar",
    "per_class_report",
    "reliability_curve",
]


def evaluate(y_true, y_pred) -> dict[str, float]:
    """Return accuracy and the micro and macro averages of precision, recall and F1.

    ``micro`` counts every row alike, ``macro`` every class alike. The precision of a class that
    is never predicted counts as 0.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        Labels of any type.

    Returns
    -------
    dict of str to float
        ``accuracy``, ``precision_micro``, ``recall_micro``, ``f1_micro``, ``precision_macro``,
        ``recall_macro``, ``f1_macro``, each from 0 to 1.

    Examples
    --------
    >>> scores = evaluate(["cat", "cat", "dog", "dog"], ["cat", "dog", "dog", "dog"])
    >>> scores["accuracy"], scores["recall_macro"]
    (0.75, 0.75)
    """
    check_consistent_length(y_true, y_pred)
    scores = {"accuracy": float(accuracy_score(y_true, y_pred))}
    for average in ("micro", "macro"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            y_true, y_pred, average=average, zero_division=0
        )
        scores[f"precision_{average}"] = float(precision)
        scores[f"recall_{average}"] = float(recall)
        scores[f"f1_{average}"] = float(f1)
    return scores


def macro_f1(y_true, y_pred) -> float:
    """Return the mean over the classes of F1; a class that is never predicted counts 0.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        Labels of any type.

    Returns
    -------
    float
        From 0 to 1.
    """
    return float(f1_score(y_true, y_pred, average="macro", zero_division=0))


def per_class_report(y_true, y_pred, *, target_names=None) -> "pd.DataFrame":
    """Return precision, recall, F1 and support of each class, one row a class.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        Labels of any type; with ``target_names``, integers from 0.
    target_names : list of str, optional
        The name of label 0, 1, 2, …, as a data set's ``target_names`` has them. Classes without
        a row are then listed too, with support 0.

    Returns
    -------
    DataFrame
        Indexed by class, with columns ``precision``, ``recall``, ``f1`` (from 0 to 1) and
        ``support`` (rows of that class in ``y_true``).
    """
    import pandas as pd

    check_consistent_length(y_true, y_pred)
    labels = np.union1d(y_true, y_pred)
    names = labels
    if target_names is not None:
        names = target_names
        _check_codes(labels, len(names))
        labels = np.arange(len(names))
    precision, recall, f1, support = precision_recall_fscore_support(
        y_true, y_pred, labels=labels, zero_division=0
    )
    columns = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    return pd.DataFrame(columns, index=pd.Index(names, name="class"))


def _check_codes(labels: np.ndarray, n_names: int) -> None:
    if not np.issubdtype(labels.dtype, np.integer) or labels[0] < 0 or labels[-1] >= n_names:
        unknown = [label for label in labels.tolist() if label not in range(n_names)]
        raise ValueError(
            f"with {n_names} target_names the labels must be integers from 0 to {n_names - 1}; "
            f"got {unknown[0] if unknown else labels[0]!r}"
        )


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; prints as ``0.842 [0.825, 0.860]``."""

    estimate: float
    low: float
    high: float
    confidence_level: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_interval(
    metric: Callable,
    y_true,
    y_pred,
    *,
    groups=None,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    random_state=None,
) -> Interval:
    """Percentile bootstrap interval of a metric over the test rows.

    The test rows are drawn again, with replacement, ``n_resamples`` times, and the metric is
    computed each time. The interval shows what another test set might have given. It does not
    show what another training set might have.

    Parameters
    ----------
    metric : callable
        ``metric(y_true, y_pred)`` returns a number, for instance
        :func:`sklearn.metrics.accuracy_score`.
    y_true, y_pred : array-like of shape (n,)
        Labels of any type.
    groups : array-like of shape (n,), optional
        Rows of one group are related (near-duplicates, one patient, one camera). Whole groups
        are drawn instead of rows, or the interval would be too narrow.
    n_resamples : int
        How many times to draw.
    confidence_level : float
        Share of the resamples' values that lies inside the interval.
    random_state : int, Generator or None
        Seed of the draws.

    Returns
    -------
    Interval

    References
    ----------
    Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13; whole groups:
    Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8.

    Examples
    --------
    >>> from sklearn.metrics import accuracy_score
    >>> y_true, y_pred = [0, 1] * 50, [0, 1] * 40 + [1, 0] * 10
    >>> print(bootstrap_interval(accuracy_score, y_true, y_pred, random_state=0))
    0.800 [0.720, 0.880]
    """
    y_true, y_pred = _labels(y_true, y_pred)

    def score(rows):
        return metric(y_true[rows], y_pred[rows])

    return _bootstrap(score, len(y_true), groups, n_resamples, confidence_level, random_state)


def bootstrap_difference(
    metric: Callable,
    y_true,
    pred_a,
    pred_b,
    *,
    groups=None,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    random_state=None,
) -> Interval:
    """Percentile bootstrap interval of ``metric`` of model a minus that of model b.

    Both models are scored on the same resampled rows each time, so rows that are hard for both
    do not widen the interval. The parameters are those of :func:`bootstrap_interval`, with
    ``pred_a`` and ``pred_b`` the two models' predictions for the same rows.
    """
    y_true, pred_a, pred_b = _labels(y_true, pred_a, pred_b)

    def difference(rows):
        return metric(y_true[rows], pred_a[rows]) - metric(y_true[rows], pred_b[rows])

    return _bootstrap(difference, len(y_true), groups, n_resamples, confidence_level, random_state)


def _labels(*columns) -> list[np.ndarray]:
    check_consistent_length(*columns)
    return [np.asarray(column) for column in columns]


def _bootstrap(score, n_rows, groups, n_resamples, confidence_level, random_state) -> Interval:
    from scipy.stats import bootstrap

    members = _members(groups, n_rows)

    def resampled_score(units):
        return score(np.concatenate([members[unit] for unit in units]))

    result = bootstrap(
        (np.arange(len(members)),),
        resampled_score,
        vectorized=False,
        n_resamples=n_resamples,
        batch=100,  # draws in memory at a time
        confidence_level=confidence_level,
        method="percentile",
        rng=random_state,
    )
    low, high = result.confidence_interval
    return Interval(float(score(np.arange(n_rows))), float(low), float(high), confidence_level)


def _members(groups, n_rows: int) -> list[np.ndarray]:
    """Return the row numbers of every unit that is drawn: a group, or a single row."""
    if groups is None:
        groups = np.arange(n_rows)
    groups = np.asarray(groups)
    if len(groups) != n_rows:
        raise ValueError(f"groups has {len(groups)} entries for {n_rows} rows; give one a row")
    _, codes = np.unique(groups, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    if len(members) < 2:
        unit = "row" if n_rows < 2 else "group"
        raise ValueError(f"the bootstrap needs at least two {unit}s to draw from; got one {unit}")
    return members


@dataclass(frozen=True)
class McNemarResult:
    """How often two models are right on the same rows, and the test of their difference."""

    both: int
    only_a: int
    only_b: int
    neither: int
    statistic: int
    pvalue: float


def mcnemar(y_true, pred_a, pred_b) -> McNemarResult:
    """Exact McNemar test of whether one model is right more often than another on the same rows.

    Only rows that exactly one model gets right say anything. If the models were equally good,
    each such row would favour either with probability 1/2, so that the number that favours the
    first follows a binomial distribution.

    Parameters
    ----------
    y_true, pred_a, pred_b : array-like of shape (n,)
        Labels of any type and the two models' predictions.

    Returns
    -------
    McNemarResult
        The four counts, ``statistic`` (the smaller of ``only_a`` and ``only_b``) and the
        two-sided ``pvalue``, which is 1 when the models are right on the same rows.

    References
    ----------
    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12, 1947, https://doi.org/10.1007/BF02295996

    Examples
    --------
    >>> mcnemar([1] * 10, [1] * 10, [1] * 4 + [0] * 6)
    McNemarResult(both=4, only_a=6, only_b=0, neither=0, statistic=0, pvalue=0.03125)
    """
    from scipy.stats import binomtest

    y_true, pred_a, pred_b = _labels(y_true, pred_a, pred_b)
    right_a, right_b = pred_a == y_true, pred_b == y_true
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    pvalue = 1.0
    if only_a + only_b > 0:
        pvalue = float(binomtest(only_a, only_a + only_b).pvalue)
    return McNemarResult(
        both=int((right_a & right_b).sum()),
        only_a=only_a,
        only_b=only_b,
        neither=int((~right_a & ~right_b).sum()),
        statistic=min(only_a, only_b),
        pvalue=pvalue,
    )


def reliability_curve(
    y_true, y_prob, *, labels=None, n_bins: int = 15, strategy: str = "uniform"
) -> "pd.DataFrame":
    """Compare how sure a classifier was with how often it was right, bin by bin.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Labels of any type; or, with one-dimensional ``y_prob``, whether the prediction was right.
    y_prob : array-like of shape (n, n_classes) or (n,)
        Class probabilities; or the probability of the predicted class alone.
    labels : array-like of shape (n_classes,), optional
        The label of each column of ``y_prob``, a classifier's ``classes_``. Without it they are
        the sorted labels of ``y_true``.
    n_bins : int
        Number of bins from 0 to 1.
    strategy : {"uniform", "quantile"}
        Bins of equal width, or bins with equally many rows.

    Returns
    -------
    DataFrame
        One row a bin that is not empty, with columns ``confidence`` (mean probability of the
        predicted class), ``accuracy`` (share of rows that are right) and ``n_rows``.

    References
    ----------
    Niculescu-Mizil and Caruana, "Predicting good probabilities with supervised learning",
    ICML 2005, https://doi.org/10.1145/1102351.1102430

    Examples
    --------
    >>> reliability_curve([1, 1, 0, 1], [0.9, 0.9, 0.9, 0.5], n_bins=2).round(2)
       confidence  accuracy  n_rows
    0         0.5      1.00       1
    1         0.9      0.67       3
    """
    import pandas as pd

    right, confidence = _confidence(y_true, y_prob, labels)
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1; got {n_bins!r}")
    if strategy == "uniform":
        edges = np.linspace(0, 1, n_bins + 1)
    elif strategy == "quantile":
        edges = np.quantile(confidence, np.linspace(0, 1, n_bins + 1))
    else:
        raise ValueError(f'strategy must be "uniform" or "quantile"; got {strategy!r}')
    rows = pd.DataFrame({"confidence": confidence, "accuracy": right.astype(float)})
    bins = rows.groupby(np.searchsorted(edges[1:-1], confidence))
    return bins.mean().assign(n_rows=bins.size()).reset_index(drop=True)


def calibration_error(
    y_true, y_prob, *, labels=None, n_bins: int = 15, strategy: str = "uniform"
) -> float:
    """Return the expected calibration error: by how much sureness and accuracy differ.

    The bins of :func:`reliability_curve`, whose parameters these are, are averaged by their
    numbers of rows. The error of a perfectly calibrated classifier is not quite 0: with few rows
    a bin, accuracy strays from its mean by chance.

    Returns
    -------
    float
        From 0 to 1.

    References
    ----------
    Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
    binning", AAAI 2015, https://doi.org/10.1609/aaai.v29i1.9602; bins of equal mass: Nixon et
    al., "Measuring calibration in deep learning", CVPR workshops 2019,
    https://arxiv.org/abs/1904.01685

    Examples
    --------
    >>> round(calibration_error([1, 1, 0, 1], [0.9, 0.9, 0.9, 0.5]), 3)
    0.3
    """
    curve = reliability_curve(y_true, y_prob, labels=labels, n_bins=n_bins, strategy=strategy)
    gaps = (curve["accuracy"] - curve["confidence"]).abs()
    return float(np.average(gaps, weights=curve["n_rows"]))


def _confidence(y_true, y_prob, labels) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each prediction is right, and how sure it was."""
    y_true, y_prob = _labels(y_true, y_prob)
    if not np.issubdtype(y_prob.dtype, np.number) or not np.all((y_prob >= 0) & (y_prob <= 1)):
        raise ValueError("y_prob must hold probabilities, numbers from 0 to 1")
    if y_prob.ndim == 1:
        if not np.isin(y_true, (0, 1)).all():
            raise ValueError(
                "with one probability a row, y_true must say whether the prediction was right, "
                f"0 or 1; got {y_true[~np.isin(y_true, (0, 1))][0]!r}"
            )
        return y_true.astype(bool), y_prob
    labels = np.unique(y_true) if labels is None else np.asarray(labels)
    if y_prob.ndim != 2 or y_prob.shape[1] != len(labels):
        raise ValueError(
            f"y_prob has shape {y_prob.shape}, but there are {len(labels)} labels; give one "
            "column a class, and their labels if y_true does not hold them all"
        )
    return labels[y_prob.argmax(axis=1)] == y_true, y_prob.max(axis=1)


def holm(pvalues) -> np.ndarray:
    """Adjust the p-values of several tests so that together they keep one level.

    With every adjusted value below 0.05 called a difference, the probability of even one false
    alarm is at most 0.05, however the tests depend on each other.

    Parameters
    ----------
    pvalues : array-like of shape (n_tests,)
        From 0 to 1.

    Returns
    -------
    ndarray of shape (n_tests,)
        In the order given, at most 1.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6(2), 1979, https://www.jstor.org/stable/4615733

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    pvalues = np.asarray(pvalues, dtype=float)
    if pvalues.ndim != 1 or not np.all((pvalues >= 0) & (pvalues <= 1)):
        raise ValueError(f"p-values must be a list of numbers from 0 to 1; got {pvalues}")
    order = np.argsort(pvalues, kind="stable")
    raised = pvalues[order] * np.arange(len(pvalues), 0, -1)
    adjusted = np.empty_like(pvalues)
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1)
    return adjusted


@dataclass(frozen=True)
class TTestResult:
    """The mean difference, its confidence interval, and the test of whether it is 0."""

    estimate: float
    low: float
    high: float
    confidence_level: float
    statistic: float
    pvalue: float


def corrected_resampled_ttest(
    differences, *, test_share: float, confidence_level: float = 0.95
) -> TTestResult:
    r"""Test the score differences of two models over the folds of repeated cross-validation.

    The folds share most of their training rows, so their scores are not independent, and the
    plain paired t-test finds differences where there are none. The variance of the mean of J
    differences is therefore taken to be :math:`(1/J + n_2/n_1)\,s^2` rather than
    :math:`s^2/J`, where a fold has :math:`n_1` training and :math:`n_2` test rows. The scores of
    one model, in place of differences, give the interval of its mean.

    Parameters
    ----------
    differences : array-like of shape (J,)
        Score of model a minus that of model b, one for each fold of each repeat.
    test_share : float
        :math:`n_2/n_1`: 1/4 for five folds. With 0 it is the plain paired t-test.
    confidence_level : float
        Of the interval.

    Returns
    -------
    TTestResult
        With J − 1 degrees of freedom; the p-value is two-sided.

    References
    ----------
    Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003,
    https://doi.org/10.1023/A:1024068626366

    Examples
    --------
    >>> test = corrected_resampled_ttest([0.02, 0.01, 0.03, 0.02, 0.02], test_share=1 / 4)
    >>> round(test.estimate, 3), round(test.pvalue, 3)
    (0.02, 0.014)
    """
    from scipy.stats import t

    differences = np.asarray(differences, dtype=float)
    if differences.ndim != 1 or len(differences) < 2 or not np.isfinite(differences).all():
        raise ValueError(
            f"the test needs two or more finite differences, one a fold; got {differences}"
        )
    if not test_share >= 0:
        raise ValueError(f"test_share must be at least 0; got {test_share!r}")
    n_folds, mean = len(differences), float(differences.mean())
    error = float(np.sqrt((1 / n_folds + test_share) * differences.var(ddof=1)))
    half = float(t.ppf((1 + confidence_level) / 2, n_folds - 1)) * error
    # Without any variance, a mean other than 0 is certain, and a mean of 0 says nothing.
    statistic = mean / error if error > 0 else float(np.sign(mean)) * np.inf if mean else 0.0
    pvalue = float(2 * t.sf(abs(statistic), n_folds - 1))
    return TTestResult(mean, mean - half, mean + half, confidence_level, statistic, pvalue)
