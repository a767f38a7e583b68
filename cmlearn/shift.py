"""When the test is unlike the training: errors under corruption, mixed rows, strange inputs."""

from __future__ import annotations

import numbers
from collections.abc import Mapping

import numpy as np
from scipy.special import logsumexp
from sklearn.base import BaseEstimator
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

__all__ = [
    "MahalanobisDetector",
    "NeighborDetector",
    "corruption_errors",
    "detection_report",
    "energy_score",
    "mean_corruption_error",
    "mixup",
]


# --- Corruption errors ---------------------------------------------------------------------------


def corruption_errors(errors: Mapping, reference: Mapping) -> dict[str, float]:
    r"""Return a model's error under each corruption, as a multiple of a reference model's.

    .. math:: \mathrm{CE}_c = \sum_{s=1}^{5} E_{s,c} \Big/ \sum_{s=1}^{5} E^\mathrm{ref}_{s,c}

    Parameters
    ----------
    errors, reference : mapping of str to sequence of float
        For each corruption, the error rates (1 − accuracy) of the model and of the reference model
        at the severities, the same ones in the same order.

    Returns
    -------
    dict of str to float
        Below 1 the model does better than the reference.

    Raises
    ------
    ValueError
        If the two do not hold the same corruptions and numbers of severities, an error is not from
        0 to 1, or the reference makes none.

    References
    ----------
    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", ICLR 2019, https://arxiv.org/abs/1903.12261

    Examples
    --------
    >>> corruption_errors({"fog": [0.1, 0.2]}, {"fog": [0.2, 0.4]})
    {'fog': 0.5}
    """
    if set(errors) != set(reference) or not errors:
        raise ValueError(
            "errors and reference must hold the same corruptions, at least one; got "
            f"{sorted(errors)} and {sorted(reference)}"
        )
    return {name: _ratio(name, errors[name], reference[name]) for name in errors}


def _ratio(name: str, errors, reference) -> float:
    errors, reference = np.asarray(errors, float), np.asarray(reference, float)
    if errors.shape != reference.shape or errors.ndim != 1:
        raise ValueError(
            f"{name!r} needs one error a severity from both models; got shapes {errors.shape} and "
            f"{reference.shape}"
        )
    both = np.concatenate([errors, reference])
    if not ((both >= 0) & (both <= 1)).all():
        raise ValueError(f"{name!r} holds an error rate outside 0 to 1: {both.tolist()}")
    if reference.sum() == 0:
        raise ValueError(f"the reference makes no error under {name!r}: nothing to divide by")
    return float(errors.sum() / reference.sum())


def mean_corruption_error(errors: Mapping, reference: Mapping) -> float:
    """Return the mean of `corruption_errors` over the corruptions.

    The sums are taken for each corruption first, so that one under which everybody errs does not
    outweigh the others.

    Examples
    --------
    >>> mean_corruption_error({"fog": [0.1], "snow": [0.9]}, {"fog": [0.2], "snow": [0.9]})
    0.75
    """
    return float(np.mean(list(corruption_errors(errors, reference).values())))


# --- Mixed rows ----------------------------------------------------------------------------------


def mixup(X, y, *, alpha: float = 0.3, random_state=None) -> tuple:
    r"""Mix each row with a random other one, for any classifier that takes weights of rows.

    The mixed row :math:`\lambda x_i + (1 - \lambda) x_j`, with :math:`\lambda` from a
    :math:`\mathrm{Beta}(\alpha, \alpha)` distribution, belongs to both classes. It is returned
    twice: once with label :math:`y_i` and weight :math:`\lambda`, once with :math:`y_j` and
    :math:`1 - \lambda`. In the cross-entropy this is the same as one row with the mixed label.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Features.
    y : array-like of shape (n,)
        Labels of any type.
    alpha : float, default=0.3
        Above 0. The smaller, the nearer each mixed row lies to one of the two it is made of.
    random_state : int, RandomState instance or None
        Decides the partners and the shares.

    Returns
    -------
    X : ndarray of shape (2 n, d)
    y : ndarray of shape (2 n,)
    sample_weight : ndarray of shape (2 n,)

    References
    ----------
    Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    https://arxiv.org/abs/1710.09412

    Examples
    --------
    >>> X, y, weight = mixup([[0.0], [1.0]], ["no", "yes"], random_state=0)
    >>> X.shape, y.shape, float(weight.sum())
    ((4, 1), (4,), 2.0)
    """
    X, y = check_array(X), np.asarray(y)
    check_consistent_length(X, y)
    if not isinstance(alpha, numbers.Real) or not 0 < alpha < np.inf:
        raise ValueError(f"alpha={alpha!r} must be a number above 0")
    random = check_random_state(random_state)
    partner = random.permutation(len(X))
    share = random.beta(alpha, alpha, size=len(X))
    mixed = share[:, None] * X + (1 - share[:, None]) * X[partner]
    return np.vstack([mixed, mixed]), np.append(y, y[partner]), np.append(share, 1 - share)


# --- Strange inputs ------------------------------------------------------------------------------


def energy_score(scores, *, temperature: float = 1.0) -> np.ndarray:
    r"""Return the negative energy of each row: large where some class has a high score.

    .. math:: T \log \sum_c \exp(f_c(x) / T)

    Parameters
    ----------
    scores : array-like of shape (n, n_classes)
        A classifier's scores before the softmax.
    temperature : float, default=1.0
        Above 0.

    Returns
    -------
    ndarray of shape (n,)
        Low for rows unlike those of the training.

    References
    ----------
    Liu, Wang, Owens and Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020,
    https://arxiv.org/abs/2010.03759

    Examples
    --------
    >>> energy_score([[0.0, 0.0], [5.0, 0.0]]).round(2).tolist()
    [0.69, 5.01]
    """
    if not isinstance(temperature, numbers.Real) or not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be a number above 0")
    return temperature * logsumexp(check_array(scores) / temperature, axis=1)


class MahalanobisDetector(BaseEstimator):
    """Score rows by their distance from the nearest class's mean, in units of the scatter.

    Parameters
    ----------
    shrinkage : float, default=0.1
        From 0 to 1: how far the covariance is drawn towards a multiple of the identity, so that it
        can be inverted when there are few rows.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    means_ : ndarray of shape (n_classes, d)
        Mean of each class.
    precision_ : ndarray of shape (d, d)
        Inverse of the covariance that all classes share.

    References
    ----------
    Lee, Lee, Lee and Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples
    and Adversarial Attacks", NeurIPS 2018, https://arxiv.org/abs/1807.03888
    """

    def __init__(self, shrinkage: float = 0.1):
        self.shrinkage = shrinkage

    def fit(self, X, y):
        """Compute means and covariance of features (n, d) with labels (n,)."""
        from sklearn.covariance import shrunk_covariance

        if not isinstance(self.shrinkage, numbers.Real) or not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage={self.shrinkage!r} must be from 0 to 1")
        X, y = validate_data(self, X, y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.means_ = np.stack([X[codes == code].mean(axis=0) for code in range(codes.max() + 1)])
        centred = X - self.means_[codes]
        covariance = centred.T @ centred / len(X)
        self.precision_ = np.linalg.pinv(shrunk_covariance(covariance, self.shrinkage))
        return self

    def score_samples(self, X) -> np.ndarray:
        """Return minus the smallest squared distance of each row, (n,): low where it is strange."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        distances = [
            ((X - mean) @ self.precision_ * (X - mean)).sum(axis=1) for mean in self.means_
        ]
        return -np.min(distances, axis=0)


class NeighborDetector(BaseEstimator):
    """Score rows by their distance from the k-th nearest training row, all scaled to length 1.

    Parameters
    ----------
    n_neighbors : int, default=5
        The k.

    References
    ----------
    Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022,
    https://proceedings.mlr.press/v162/sun22d.html
    """

    def __init__(self, n_neighbors: int = 5):
        self.n_neighbors = n_neighbors

    def fit(self, X, y=None):
        """Store features (n, d)."""
        X = normalize(validate_data(self, X))
        if not 1 <= self.n_neighbors <= len(X):
            raise ValueError(
                f"n_neighbors={self.n_neighbors!r} must be from 1 to the number of rows, {len(X)}"
            )
        self.neighbors_ = NearestNeighbors(n_neighbors=self.n_neighbors).fit(X)
        return self

    def score_samples(self, X) -> np.ndarray:
        """Return minus the distance of each row, (n,), from -2 to 0: low where it is strange."""
        check_is_fitted(self)
        distances, _ = self.neighbors_.kneighbors(normalize(validate_data(self, X, reset=False)))
        return -distances[:, -1]


def detection_report(inside, outside) -> dict[str, float]:
    """Return how well a score tells strange rows from familiar ones.

    Parameters
    ----------
    inside, outside : array-like of shape (n,) and (m,)
        Scores of familiar and of strange test rows; a good score is high for the familiar.

    Returns
    -------
    dict of str to float
        ``auroc``: the chance that a random familiar row scores higher than a random strange one,
        0.5 for a coin. ``false_alarms``: the share of familiar rows that are called strange when
        the threshold lets 95% of the strange rows be found.

    Examples
    --------
    >>> detection_report([2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 2.5, 3.5])
    {'auroc': 0.8125, 'false_alarms': 0.5}
    """
    inside, outside = (np.asarray(scores, dtype=float) for scores in (inside, outside))
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
            raise ValueError(
                f"{name} must be a row of at least one finite number; got shape {scores.shape}"
            )
    familiar = np.repeat([1, 0], [len(inside), len(outside)])
    threshold = np.quantile(outside, 0.95, method="inverted_cdf")
    return {
        "auroc": float(roc_auc_score(familiar, np.append(inside, outside))),
        "false_alarms": float(np.mean(inside <= threshold)),
    }
