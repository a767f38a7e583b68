"""Probabilities that mean what they say: of the rows called 80% sure, 80% are right."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.utils import get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _num_samples,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from cmlearn._folds import fit_on, inner_folds, logits, out_of_fold_scores

__all__ = ["TemperatureScaling", "fit_temperature", "softmax"]


def softmax(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return ``exp(scores / temperature)`` divided by its sum over the last axis."""
    from scipy.special import softmax as scipy_softmax

    return scipy_softmax(np.asarray(scores) / temperature, axis=-1)


def fit_temperature(scores, codes) -> float:
    r"""Return the temperature with which the softmax of the scores has the lowest log loss.

    Parameters
    ----------
    scores : array-like of shape (n, n_classes)
        Margins, logits or log-probabilities of rows that the classifier was not fitted on.
    codes : array-like of shape (n,), int
        The column of the true class of each row.

    Returns
    -------
    float
        From :math:`e^{-10}` to :math:`e^{10}`. Above 1 it makes a too certain classifier doubt.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017,
    https://proceedings.mlr.press/v70/guo17a.html

    Examples
    --------
    Scores of ±1 that are right three times of four: the softmax must say 3/4.

    >>> scores = [[1, -1], [1, -1], [1, -1], [1, -1]]
    >>> temperature = fit_temperature(scores, [0, 0, 0, 1])
    >>> softmax(scores, temperature)[0].round(3).tolist()
    [0.75, 0.25]
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    scores, codes = np.asarray(scores, dtype=np.float64), np.asarray(codes)
    check_consistent_length(scores, codes)
    bad_rows = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad_rows):
        raise ValueError(
            f"the scores hold NaN or infinite values in {len(bad_rows)} of {len(scores)} rows, "
            f"first in row {bad_rows[0]}; a temperature needs finite ones"
        )
    rows = np.arange(len(codes))

    def loss(log_temperature):
        return -log_softmax(scores / np.exp(log_temperature), axis=1)[rows, codes].mean()

    found = minimize_scalar(loss, bounds=(-10, 10), options={"xatol": 1e-8})
    return float(np.exp(found.x))


class TemperatureScaling(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Give a classifier calibrated probabilities by one number, the temperature.

    Cross-validation on the training rows gives every row a score from a classifier that has not
    seen it. The temperature is the one with which the softmax of these scores has the lowest log
    loss. Then the classifier is fitted once more, on all rows. What is predicted does not change,
    only how sure it sounds.

    Parameters
    ----------
    estimator : classifier
        It needs ``decision_function``, as support vector machines have, or ``predict_proba``.
    cv : int, splitter or iterable
        The folds: a number, anything else that :func:`sklearn.model_selection.check_cv` takes,
        or a list of (training rows, test rows).

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; the columns of ``predict_proba``.
    temperature_ : float
        The scores are divided by it.
    estimator_ : classifier
        Fitted on all rows.

    Notes
    -----
    The same as scikit-learn's ``CalibratedClassifierCV(method="temperature", ensemble=False)``,
    which needs scikit-learn 1.8 and does not keep groups whole.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017,
    https://proceedings.mlr.press/v70/guo17a.html

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> X, y = load_iris(return_X_y=True)
    >>> TemperatureScaling(SVC()).fit(X, y).predict_proba(X).shape
    (150, 3)
    """

    def __init__(self, estimator, *, cv=5):
        self.estimator = estimator
        self.cv = cv

    def fit(self, X, y, groups=None):
        """Fit the classifier and the temperature.

        Parameters
        ----------
        X : table or array of n rows
            Whatever the classifier takes.
        y : array-like of shape (n,)
            Labels of any type.
        groups : array-like of shape (n,), optional
            Related rows. They stay in one fold, or the temperature would be too low.
        """
        _check_scores(self.estimator)
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y, groups)
        self.classes_, codes = np.unique(y, return_inverse=True)
        splits = inner_folds(self.cv, y, groups)
        everything = np.ones(_num_samples(X), dtype=bool)
        scores = out_of_fold_scores(self.estimator, X, y, groups, splits, self._logits, everything)
        scored = ~np.isnan(scores).any(axis=1)
        self.temperature_ = fit_temperature(scores[scored], codes[scored])
        self.estimator_ = fit_on(self.estimator, X, y, groups, np.flatnonzero(everything))
        if hasattr(self.estimator_, "n_features_in_"):
            self.n_features_in_ = self.estimator_.n_features_in_
        if hasattr(self.estimator_, "feature_names_in_"):
            self.feature_names_in_ = self.estimator_.feature_names_in_
        return self

    def __sklearn_tags__(self):
        """Take what the classifier takes."""
        tags = super().__sklearn_tags__()
        inputs = get_tags(self.estimator).input_tags
        tags.input_tags.sparse, tags.input_tags.allow_nan = inputs.sparse, inputs.allow_nan
        return tags

    def predict_proba(self, X) -> np.ndarray:
        """Return the calibrated class probabilities of n rows, (n, n_classes) float64."""
        check_is_fitted(self, "estimator_")
        return softmax(self._logits(self.estimator_, X), self.temperature_)

    def predict(self, X) -> np.ndarray:
        """Return the most probable label of every row, (n,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def _logits(self, classifier, X) -> np.ndarray:
        return logits(classifier, X, self.classes_)


def _check_scores(estimator) -> None:
    if not hasattr(estimator, "decision_function") and not hasattr(estimator, "predict_proba"):
        raise ValueError(
            f"{estimator!r} has neither decision_function nor predict_proba, so there is nothing "
            "to calibrate; take a classifier that has one, such as SVC or LogisticRegression"
        )
