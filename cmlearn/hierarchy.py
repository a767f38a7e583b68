"""Classes inside classes: learn the finer ones, answer with those that hold them."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from cmlearn._folds import margins

__all__ = ["FinerLabels"]


def _has(method: str):
    return available_if(lambda finer: hasattr(finer.classifier, method))


class FinerLabels(ClassifierMixin, BaseEstimator):
    r"""Train a classifier on finer labels than it is asked for.

    A class may hold several kinds: "seasonal" holds Halloween and Easter. Where the kind of each
    training row is known, the classifier learns the kinds, and the answer is the class of the kind
    that fits best [1]_. Whether that helps depends on the data [2]_. Kinds are needed for training
    only: they are not looked at in prediction.

    Parameters
    ----------
    classifier : classifier
        Learns the kinds from the table's other columns.
    column : str
        The column of the table that names each row's kind; None or NaN where it has none. Rows of
        a class that have none are one more kind. The same name in two classes is two kinds.
    min_samples : int
        A kind with fewer training rows is counted among the rows that have none.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    kinds_ : list of (label, kind)
        What the classifier learned, in its order; the kind is None for rows without one.
    parents_ : ndarray of shape (n_kinds,), int
        Which of the classes each kind belongs to.
    classifier_ : classifier
        Fitted on numbers of kinds.

    References
    ----------
    .. [1] Chen, Ding, Chin and Marculescu, "Understanding the impact of label granularity on
       CNN-based image classification", 2019, https://arxiv.org/abs/1901.07012
    .. [2] Pirovano, Milanesio, Caselle, Fariselli and Osella, "Should we always train models on
       fine-grained classes?", 2025, https://arxiv.org/abs/2509.05130

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn.linear_model import LogisticRegression
    >>> table = pd.DataFrame({"x": [0.0, 1, 2, 3], "kind": ["ant", "robin", "bus", "eagle"]})
    >>> finer = FinerLabels(LogisticRegression(C=100), column="kind")
    >>> finer = finer.fit(table, ["animal", "bird", "vehicle", "bird"])
    >>> finer.kinds_
    [('animal', 'ant'), ('bird', 'eagle'), ('bird', 'robin'), ('vehicle', 'bus')]
    >>> finer.predict(pd.DataFrame({"x": [2.9, 1.1, 2.0]})).tolist()
    ['bird', 'bird', 'vehicle']
    """

    def __init__(self, classifier, *, column, min_samples=1):
        self.classifier = classifier
        self.column = column
        self.min_samples = min_samples

    def fit(self, X, y):
        """Fit the classifier on the kinds.

        Parameters
        ----------
        X : DataFrame of n rows
            The column of kinds, and what the classifier learns from.
        y : array-like of shape (n,)
            The class of each row.

        Raises
        ------
        ValueError
            If ``X`` is no table with that column, or there are fewer than two classes.
        """
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        kinds = self._kinds(X, y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_.tolist()[0]!r}; give two or more")
        # None is sorted before any name; labels are in the order of classes_.
        order = {label: place for place, label in enumerate(self.classes_.tolist())}
        pairs = list(zip(y.tolist(), kinds, strict=True))
        self.kinds_ = sorted(
            set(pairs), key=lambda pair: (order[pair[0]], pair[1] is not None, str(pair[1]))
        )
        self.parents_ = np.array([order[label] for label, _ in self.kinds_])
        number = {pair: place for place, pair in enumerate(self.kinds_)}
        codes = np.array([number[pair] for pair in pairs])
        self.classifier_ = clone(self.classifier).fit(self._rest(X), codes)
        return self

    @_has("decision_function")
    def decision_function(self, X) -> np.ndarray:
        """Return the highest score of each class's kinds, (n, n_classes) float64.

        With two classes, (n,): half the second one's lead over the first, which keeps the scale of
        one-against-the-rest margins.
        """
        classifier = self._fitted()
        scores = margins(classifier, self._rest(X), classifier.classes_)
        best = np.stack(
            [scores[:, self.parents_ == place].max(axis=1) for place in range(len(self.classes_))],
            axis=1,
        )
        return best if len(self.classes_) > 2 else (best[:, 1] - best[:, 0]) / 2

    @_has("predict_proba")
    def predict_proba(self, X) -> np.ndarray:
        """Return for each class the sum of its kinds' probabilities, (n, n_classes) float64."""
        belongs = self.parents_[:, np.newaxis] == np.arange(len(self.classes_))
        return self._fitted().predict_proba(self._rest(X)) @ belongs

    def predict(self, X) -> np.ndarray:
        """Return the class of the kind that the classifier chooses, (n,)."""
        chosen = self._fitted().predict(self._rest(X))
        return self.classes_[self.parents_[chosen]]

    def _kinds(self, X, y) -> list:
        """Return the kind of each training row, None where it has none or too few rows."""
        import pandas as pd

        if self.column not in getattr(X, "columns", ()):
            raise ValueError(
                f"training needs a table with the column {self.column!r}, which names the kind of "
                f"each row; got {_names(X)}"
            )
        table = pd.DataFrame({"kind": np.asarray(X[self.column], dtype=object), "label": y})
        size = table.groupby(["label", "kind"])["kind"].transform("size")
        known = table["kind"].notna() & (size >= self.min_samples)
        return [kind if here else None for kind, here in zip(table["kind"], known, strict=True)]

    def _rest(self, X):
        """Return the table without the kinds, which may be missing in prediction."""
        return X.drop(columns=self.column, errors="ignore")

    def _fitted(self):
        check_is_fitted(self, "classifier_")
        return self.classifier_


def _names(X) -> str:
    columns = getattr(X, "columns", None)
    return type(X).__name__ if columns is None else f"the columns {', '.join(map(repr, columns))}"
