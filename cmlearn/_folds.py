"""Folds that keep related rows together, and scores of rows that a classifier has not seen."""

from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import has_fit_parameter

# What is added to a probability before its logarithm is taken, as in scikit-learn's calibration.
TINY = 1e-12


def check_folds(y, groups, n_splits: int, remedy: str) -> None:
    """Refuse more folds than the rarest class has groups (rows, where each is its own group)."""
    y = np.asarray(y, dtype=object)
    members = {}
    for label, group in zip(y, np.arange(len(y)) if groups is None else groups, strict=True):
        members.setdefault(label, set()).add(group)
    rarest = min(members, key=lambda label: len(members[label]))
    size = len(members[rarest])
    if size < n_splits:
        one, many = ("row", "rows") if groups is None else ("group of rows", "groups of rows")
        raise ValueError(
            f"class {rarest!r} has {size} {one if size == 1 else many}, fewer than the {n_splits} "
            f"folds asked for; {remedy}, or add rows"
        )


def stratified_folds(y, groups, n_splits: int, *, random_state=None) -> list:
    """Return (training rows, test rows) of every fold; groups stay whole where they are given.

    The rows are shuffled if there is a ``random_state``, else taken in order.
    """
    shuffle = random_state is not None
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = kind(n_splits, shuffle=shuffle, random_state=random_state)
    return list(folds.split(np.zeros(len(y)), y, groups))


def inner_folds(cv, y, groups) -> list:
    """Return the folds of a training part for ``cv``: a number, a splitter or a list of splits."""
    if len(set(y)) < 2:
        raise ValueError(f"y holds one class only, {y[0]!r}, so there is nothing to learn")
    if cv is None or isinstance(cv, Integral):
        n_splits = 5 if cv is None else int(cv)
        check_folds(y, groups, n_splits, "lower cv")
        return stratified_folds(y, groups, n_splits)
    return list(check_cv(cv, y, classifier=True).split(np.zeros(len(y)), y, groups))


def fit_arguments(estimator, groups) -> dict:
    """Return the groups as arguments for ``fit``, if it (or a pipeline's last step) takes them."""
    if groups is None:
        return {}
    if has_fit_parameter(estimator, "groups"):
        return {"groups": groups}
    if isinstance(estimator, Pipeline) and has_fit_parameter(estimator.steps[-1][1], "groups"):
        return {f"{estimator.steps[-1][0]}__groups": groups}
    return {}


def fit_on(estimator, X, y, groups, rows):
    """Fit a clone of the estimator on some of the rows."""
    groups = None if groups is None else np.asarray(groups)[rows]
    arguments = fit_arguments(estimator, groups)
    return clone(estimator).fit(_safe_indexing(X, rows), np.asarray(y)[rows], **arguments)


def out_of_fold_scores(estimator, X, y, groups, splits, score, present) -> np.ndarray:
    """Return the scores of every row by a classifier that was fitted without its fold.

    Parameters
    ----------
    estimator : classifier
        A clone of it is fitted for every fold.
    X, y, groups
        The rows, their labels, and their groups or None.
    splits : list of (training rows, test rows)
        The folds.
    score : callable
        ``score(fitted, X)`` returns the scores, (n, n_classes).
    present : ndarray of shape (n,), bool
        Rows that are False are neither fitted on nor scored.

    Returns
    -------
    ndarray of shape (n, n_classes)
        NaN where no fold scores the row.
    """
    scores = np.full((len(y), len(np.unique(y))), np.nan)
    for train, test in splits:
        train, test = train[present[train]], test[present[test]]
        if len(test):
            fitted = fit_on(estimator, X, y, groups, train)
            scores[test] = score(fitted, _safe_indexing(X, test))
    return scores


def probabilities(classifier, X, classes: np.ndarray) -> np.ndarray:
    """Return ``predict_proba`` with a column for each of the classes; one never seen has 0."""
    return _aligned(classifier.predict_proba(X), classifier.classes_, classes, 0.0)


def margins(classifier, X, classes: np.ndarray) -> np.ndarray:
    """Return ``decision_function`` with a column for each of the classes; one never seen has -1."""
    known = classifier.decision_function(X)
    # With two classes scikit-learn gives only the margin of the second.
    known = np.column_stack([-known, known]) if known.ndim == 1 else known
    return _aligned(known, classifier.classes_, classes, -1.0)


def logits(classifier, X, classes: np.ndarray) -> np.ndarray:
    """Return scores whose softmax can be calibrated: margins, or else log-probabilities."""
    if hasattr(classifier, "decision_function"):
        return margins(classifier, X, classes)
    return np.log(probabilities(classifier, X, classes) + TINY)


def _aligned(known, seen: np.ndarray, classes: np.ndarray, absent: float) -> np.ndarray:
    scores = np.full((len(known), len(classes)), absent)
    scores[:, np.searchsorted(classes, seen)] = known
    return scores
