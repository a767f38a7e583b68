"""Differential privacy for the head of a model, its accounting, and the attack that tests it.

What is trained here is the last, linear layer on features that are already there. Each row's
gradient is then an outer product, so that it can be clipped without ever being written down, and a
student can follow every step. The privacy of the encoder in front is another matter: an encoder
that was trained on public data has seen none of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.special import gammaln, softmax
from scipy.stats import norm
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import roc_curve
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = [
    "DPClassifier",
    "clipped_gradient_sum",
    "epsilon_spent",
    "membership_advantage",
    "membership_scores",
    "noise_needed",
    "renyi_divergence",
    "tpr_at_fpr",
]

_ORDERS = tuple(range(2, 65)) + (80, 96, 128, 192, 256, 512, 1024)
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e5


def renyi_divergence(order: int, *, sampling_rate: float, noise_multiplier: float) -> float:
    r"""Return the Rényi divergence of one step of DP-SGD, in nats.

    A step adds up the clipped gradients of rows that are drawn each with probability
    `sampling_rate`, and adds Gaussian noise of `noise_multiplier` times the clipping norm. Its
    output with and without one given row differs by at most this much [1]_ [2]_:

    .. math::

       \frac1{\alpha - 1} \log \sum_{k=0}^{\alpha} \binom{\alpha}{k} (1 - q)^{\alpha - k} q^k
       \exp \frac{k (k - 1)}{2 \sigma^2}.

    Parameters
    ----------
    order : int
        The order alpha, a whole number of at least 2.
    sampling_rate : float in (0, 1]
        Chance of a row to be in a batch.
    noise_multiplier : float
        Standard deviation of the noise over the clipping norm, above 0.

    Returns
    -------
    float
        Divergence in nats; those of several steps add up.

    Raises
    ------
    ValueError
        If an argument is outside its range.

    References
    ----------
    .. [1] I. Mironov, "Rényi differential privacy", CSF 2017.
       https://doi.org/10.1109/CSF.2017.11
    .. [2] I. Mironov, K. Talwar and L. Zhang, "Rényi differential privacy of the sampled Gaussian
       mechanism", 2019. https://arxiv.org/abs/1908.10530

    Examples
    --------
    >>> renyi_divergence(8, sampling_rate=1.0, noise_multiplier=2.0)  # alpha / (2 sigma^2)
    1.0
    """
    _check_mechanism(sampling_rate, noise_multiplier)
    if not isinstance(order, int | np.integer) or order < 2:
        raise ValueError(f"order={order!r} must be a whole number of at least 2")
    if sampling_rate == 1:
        return order / (2 * noise_multiplier**2)
    k = np.arange(order + 1)
    log_binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    log_chance = (order - k) * np.log1p(-sampling_rate) + k * np.log(sampling_rate)
    terms = log_binomial + log_chance + k * (k - 1) / (2 * noise_multiplier**2)
    return float(np.logaddexp.reduce(terms)) / (order - 1)


def epsilon_spent(
    *,
    steps: int,
    sampling_rate: float,
    noise_multiplier: float,
    delta: float = 1e-5,
    orders: Iterable[int] = _ORDERS,
) -> float:
    r"""Return the epsilon that so many steps of DP-SGD cost.

    The Rényi divergences of the steps add up; each order gives a valid epsilon, by [1]_

    .. math::

       \varepsilon = T D_\alpha + \log \frac{\alpha - 1}{\alpha}
       - \frac{\log \delta + \log \alpha}{\alpha - 1},

    and the smallest is returned.

    Parameters
    ----------
    steps : int
        Number of steps T, at least 1.
    sampling_rate, noise_multiplier : float
        As in `renyi_divergence`. Without noise the cost is infinite.
    delta : float in (0, 1), default=1e-5
        Probability with which the bound may fail; well below one over the number of rows.
    orders : iterable of int
        The orders to try.

    Returns
    -------
    float
        Epsilon, at least 0.

    Raises
    ------
    ValueError
        If an argument is outside its range.

    References
    ----------
    .. [1] C. L. Canonne, G. Kamath and T. Steinke, "The discrete Gaussian for differential
       privacy", NeurIPS 2020. https://arxiv.org/abs/2004.00010

    Examples
    --------
    >>> round(epsilon_spent(steps=200, sampling_rate=0.1, noise_multiplier=2.0), 2)
    3.68
    """
    _check_delta(delta)
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps={steps!r} must be a whole number of at least 1")
    if noise_multiplier == 0:
        return math.inf
    costs = []
    for order in orders:
        divergence = renyi_divergence(
            order, sampling_rate=sampling_rate, noise_multiplier=noise_multiplier
        )
        slack = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        costs.append(steps * divergence + slack)
    return max(0.0, min(costs))


def noise_needed(epsilon: float, *, steps: int, sampling_rate: float, delta: float = 1e-5) -> float:
    """Return the noise multiplier with which so many steps cost `epsilon`.

    Parameters
    ----------
    epsilon : float
        Above 0; infinity needs no noise.
    steps, sampling_rate, delta
        As in `epsilon_spent`.

    Returns
    -------
    float
        The smallest noise multiplier, to a relative precision of 1e-4, that costs at most
        `epsilon`; never below 0.05.

    Raises
    ------
    ValueError
        If an argument is outside its range, or `epsilon` is so small that no noise is enough.

    Examples
    --------
    >>> sigma = noise_needed(1.0, steps=200, sampling_rate=0.1)
    >>> round(epsilon_spent(steps=200, sampling_rate=0.1, noise_multiplier=sigma), 3)
    1.0
    """
    _check_epsilon(epsilon)
    if epsilon == math.inf:
        return 0.0

    def cost(noise: float) -> float:
        return epsilon_spent(
            steps=steps, sampling_rate=sampling_rate, noise_multiplier=noise, delta=delta
        )

    low, high = _LEAST_NOISE, 1.0
    while cost(high) > epsilon:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise ValueError(
                f"epsilon={epsilon!r} with delta={delta!r} is out of reach of this accounting, "
                "however much noise there is: take a larger epsilon or delta"
            )
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle) <= epsilon else (middle, high)
    return high


def clipped_gradient_sum(X: np.ndarray, errors: np.ndarray, clipping_norm: float) -> np.ndarray:
    r"""Return the sum of the rows' gradients of a linear layer, each clipped first.

    The gradient of row i is the outer product of its error and its features, and the norm of an
    outer product is the product of the norms. So it is enough to shrink the error [1]_:

    .. math::

       \sum_i c_i\, e_i x_i^\top, \qquad
       c_i = \min\Big(1, \frac{C}{\lVert e_i \rVert \lVert x_i \rVert}\Big).

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Features of the rows.
    errors : ndarray of shape (n, k)
        Derivative of each row's loss by its scores: for the cross-entropy, probabilities minus
        the one-hot label.
    clipping_norm : float
        The norm C that no row's gradient exceeds, above 0; infinity clips nothing.

    Returns
    -------
    ndarray of shape (k, d)
        The sum.

    References
    ----------
    .. [1] I. Goodfellow, "Efficient per-example gradient computations", 2015.
       https://arxiv.org/abs/1510.01799
    """
    norms = np.linalg.norm(errors, axis=1) * np.linalg.norm(X, axis=1)
    with np.errstate(divide="ignore"):
        factor = np.minimum(1.0, clipping_norm / norms)
    return (factor[:, None] * errors).T @ X


class _SoftmaxHead(ClassifierMixin, BaseEstimator):
    """What a fitted softmax regression does with `coef_`, `intercept_` and `classes_`."""

    def decision_function(self, X) -> np.ndarray:
        """Return the scores of every class before the softmax: (n, k), or (n,) for two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=float)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X) -> np.ndarray:
        """Return the probabilities of the classes, (n, k)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=float)
        return softmax(X @ self.coef_.T + self.intercept_, axis=1)

    def predict(self, X) -> np.ndarray:
        """Return the most probable label of every row, (n,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]


class DPClassifier(_SoftmaxHead):
    r"""Softmax regression trained by DP-SGD.

    Every step draws each row with the same small probability, clips the gradient of every drawn
    row to the norm C, adds up, adds Gaussian noise of standard deviation :math:`\sigma C`, divides
    by the expected number of rows and takes a step [1]_. The noise is the least with which all
    steps together cost `epsilon`.

    Parameters
    ----------
    epsilon : float, default=1.0
        The privacy budget, above 0: whatever is concluded from the weights, its odds change by a
        factor of at most exp(epsilon) when one row is added or removed, except with probability
        `delta`. ``float("inf")`` trains without noise, and without any promise.
    delta : float in (0, 1), default=1e-5
        See above; well below one over the number of rows.
    clipping_norm : float, default=1.0
        The norm C; infinity only together with an infinite `epsilon`.
    batch_size : int, default=256
        Rows in a batch, on average.
    epochs : int, default=40
        How often each row is drawn, on average.
    learning_rate : float, default=2.0
        Length of the steps.
    random_state : int, RandomState instance or None, default=None
        Decides batches and noise. The promise needs noise that nobody else knows: for a model that
        is given away leave it at None.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        The labels, which count as public.
    coef_ : ndarray of shape (k, d)
        Weights.
    intercept_ : ndarray of shape (k,)
        Biases.
    noise_multiplier_ : float
        Standard deviation of the noise over the clipping norm.
    epsilon_ : float
        What the steps that were taken cost, at most `epsilon`.
    sampling_rate_ : float
        Chance of a row to be in a batch.
    n_steps_ : int
        Number of steps.

    Notes
    -----
    The promise covers what happens in `fit`. A scaler that was fitted on the same rows before, or a
    setting that was chosen by looking at them, is not covered: scale each row by itself, as
    `sklearn.preprocessing.Normalizer` does, or by the statistics of other, public data. The number
    of rows counts as public. NumPy's generator and floating-point numbers are good enough to learn
    from, and not hardened against an attacker who knows them [2]_.

    References
    ----------
    .. [1] M. Abadi et al., "Deep learning with differential privacy", CCS 2016.
       https://doi.org/10.1145/2976749.2978318
    .. [2] I. Mironov, "On significance of the least significant bits for differential privacy",
       CCS 2012. https://doi.org/10.1145/2382196.2382264

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> X, y = make_blobs(400, centers=2, random_state=0)
    >>> model = DPClassifier(epsilon=2.0, random_state=0).fit(X / 5, y)
    >>> model.score(X / 5, y) > 0.9
    True
    >>> round(model.epsilon_, 2)
    2.0
    """

    def __init__(
        self,
        epsilon: float = 1.0,
        *,
        delta: float = 1e-5,
        clipping_norm: float = 1.0,
        batch_size: int = 256,
        epochs: int = 40,
        learning_rate: float = 2.0,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.epsilon = epsilon
        self.delta = delta
        self.clipping_norm = clipping_norm
        self.batch_size = batch_size
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X, y) -> DPClassifier:
        """Train on features (n, d) and labels (n,).

        Raises
        ------
        ValueError
            If a parameter is outside its range, or there are fewer than two classes.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=float)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y holds one class only: {self.classes_.tolist()[0]!r}; two are needed"
            )
        X, labels = _with_constant(X), np.eye(len(self.classes_))[codes]
        self.sampling_rate_ = min(1.0, self.batch_size / len(X))
        self.n_steps_ = math.ceil(self.epochs / self.sampling_rate_)
        plan = {"steps": self.n_steps_, "sampling_rate": self.sampling_rate_, "delta": self.delta}
        self.noise_multiplier_ = noise_needed(self.epsilon, **plan)
        self.epsilon_ = epsilon_spent(noise_multiplier=self.noise_multiplier_, **plan)
        weights = self._descend(X, labels, check_random_state(self.random_state))
        self.coef_, self.intercept_ = weights[:, :-1], weights[:, -1]
        return self

    def _descend(self, X, labels, random) -> np.ndarray:
        weights = np.zeros((labels.shape[1], X.shape[1]))
        expected = self.sampling_rate_ * len(X)
        for _ in range(self.n_steps_):
            drawn = np.flatnonzero(random.uniform(size=len(X)) < self.sampling_rate_)
            batch = X[drawn]
            errors = softmax(batch @ weights.T, axis=1) - labels[drawn]
            total = clipped_gradient_sum(batch, errors, self.clipping_norm)
            if self.noise_multiplier_ > 0:
                deviation = self.noise_multiplier_ * self.clipping_norm
                total = total + random.normal(scale=deviation, size=total.shape)
            weights -= self.learning_rate * total / expected
        return weights

    def _check_parameters(self) -> None:
        _check_epsilon(self.epsilon)
        _check_delta(self.delta)
        if not self.clipping_norm > 0:
            raise ValueError(f"clipping_norm={self.clipping_norm!r} must be above 0")
        if self.clipping_norm == math.inf and self.epsilon != math.inf:
            raise ValueError(
                f"epsilon={self.epsilon!r} needs a finite clipping_norm: without clipping one row "
                "can move the weights as far as it likes, and no noise hides that"
            )
        for name in ("batch_size", "epochs"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate!r} must be above 0")


def membership_scores(
    estimator: BaseEstimator,
    X,
    y,
    *,
    n_models: int = 32,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Attack a kind of model, asking of each row whether it was trained on.

    The likelihood-ratio attack [1]_. Each of `n_models` copies of `estimator` is trained on a
    random half of the rows. Every model is attacked in turn, the others serving as the attacker's
    shadow models: for each row, the logits of its label's probability under the shadow models that
    trained on it, and under those that did not, are taken for two normal distributions, and the
    score is the logarithm of the ratio of their densities at the logit of the attacked model.

    Parameters
    ----------
    estimator : classifier with ``predict_proba``
        What to attack; it is cloned. A ``random_state`` parameter is set to another value for
        every copy.
    X : array-like of shape (n, d)
        Rows that may or may not have been trained on.
    y : array-like of shape (n,)
        Their labels, which the attacker knows.
    n_models : int, default=32
        At least 8: an even number, so that each row is in half of the training sets.
    random_state : int, RandomState instance or None, default=None
        Decides the halves.

    Returns
    -------
    scores : ndarray of shape (n_models, n)
        High where the attack says "was a member".
    members : ndarray of shape (n_models, n), bool
        Which rows each model was trained on.

    Raises
    ------
    ValueError
        If `n_models` is odd or below 8.

    References
    ----------
    .. [1] N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis and F. Tramèr, "Membership inference
       attacks from first principles", IEEE S&P 2022.
       https://doi.org/10.1109/SP46214.2022.9833649
    """
    if not isinstance(n_models, int | np.integer) or n_models < 8 or n_models % 2:
        raise ValueError(f"n_models={n_models!r} must be an even number of at least 8")
    X, y = check_array(X), np.asarray(y)
    random = check_random_state(random_state)
    ranks = random.uniform(size=(n_models, len(X))).argsort(axis=0)
    members = ranks < n_models // 2
    logits = np.array([_trained_logits(estimator, X, y, rows, random) for rows in members])
    scores = np.empty_like(logits)
    for attacked in range(n_models):
        others = np.arange(n_models) != attacked
        inside = np.where(members[others], logits[others], np.nan)
        outside = np.where(members[others], np.nan, logits[others])
        scores[attacked] = _log_density(logits[attacked], inside) - _log_density(
            logits[attacked], outside
        )
    return scores, members


def _trained_logits(estimator, X, y, rows, random) -> np.ndarray:
    model = clone(estimator)
    seeds = [name for name in model.get_params() if name.split("__")[-1] == "random_state"]
    model.set_params(**{name: random.randint(2**31) for name in seeds})
    model.fit(X[rows], y[rows])
    column = np.searchsorted(model.classes_, y)
    if not np.array_equal(model.classes_[column.clip(max=len(model.classes_) - 1)], y):
        raise ValueError("a class is so rare that half of the rows can miss it: leave it out")
    chance = model.predict_proba(X)[np.arange(len(y)), column].clip(1e-12, 1 - 1e-12)
    return np.log(chance) - np.log1p(-chance)


def _log_density(values: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Return the log density of each value in the normal distribution of its column."""
    # One spread for all rows is what [1] advises for few shadow models.
    mean = np.nanmean(sample, axis=0)
    spread = np.sqrt(np.nanmean((sample - mean) ** 2))
    return norm.logpdf(values, mean, spread + 1e-6)


def membership_advantage(scores: np.ndarray, members: np.ndarray) -> float:
    r"""Return the largest difference of true and false positive rate over all thresholds.

    Parameters
    ----------
    scores : ndarray of float
        High where the attack says "was a member".
    members : ndarray of bool, of the same shape
        The truth.

    Returns
    -------
    float
        From 0, a coin, to 1. Under epsilon-differential privacy it is at most
        :math:`(e^\varepsilon - 1 + 2\delta) / (e^\varepsilon + 1)`.

    Examples
    --------
    >>> membership_advantage(np.array([0.1, 0.4, 0.8, 0.9]), np.array([False, False, True, True]))
    1.0
    """
    false, true, _ = roc_curve(np.ravel(members), np.ravel(scores))
    return float((true - false).max())


def tpr_at_fpr(scores: np.ndarray, members: np.ndarray, fpr: float = 0.01) -> float:
    """Return the share of members that are found while at most a share `fpr` of others is accused.

    Parameters
    ----------
    scores, members
        As in `membership_advantage`.
    fpr : float in (0, 1), default=0.01
        False positive rate that is allowed.

    Returns
    -------
    float
        True positive rate.

    Examples
    --------
    >>> tpr_at_fpr(np.array([0.1, 0.4, 0.8, 0.9]), np.array([False, True, False, True]))
    0.5
    """
    if not 0 < fpr < 1:
        raise ValueError(f"fpr={fpr!r} must be above 0 and below 1")
    false, true, _ = roc_curve(np.ravel(members), np.ravel(scores), drop_intermediate=False)
    return float(true[false <= fpr].max())


def _with_constant(X: np.ndarray) -> np.ndarray:
    return np.column_stack([X, np.ones(len(X))])


def _check_epsilon(epsilon: float) -> None:
    if not epsilon > 0:
        raise ValueError(
            f"epsilon={epsilon!r} must be above 0: smaller is more private, and 0 would allow the "
            'model to learn nothing at all; float("inf") trains without privacy'
        )


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(
            f"delta={delta!r} must be above 0 and below 1; take it well below one over the number "
            "of rows, for instance 1e-5"
        )


def _check_mechanism(sampling_rate: float, noise_multiplier: float) -> None:
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"sampling_rate={sampling_rate!r} must be above 0 and at most 1")
    if not noise_multiplier > 0:
        raise ValueError(f"noise_multiplier={noise_multiplier!r} must be above 0")
