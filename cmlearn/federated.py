"""Federated learning: the rows stay with those who hold them, and weights travel instead."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

__all__ = ["FederatedClassifier", "average_weights", "split_by_dirichlet"]

_BYTES = 4  # a weight travels as float32


def split_by_dirichlet(
    y,
    n_clients: int,
    *,
    concentration: float = 1.0,
    random_state: int | np.random.RandomState | None = None,
) -> np.ndarray:
    """Deal the rows out to clients that see different mixtures of the classes.

    The rows of each class are dealt out in shares that are drawn from a symmetric Dirichlet
    distribution [1]_. A large `concentration` gives every client about the same mixture, a small
    one leaves a client with few classes.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels.
    n_clients : int
        At least 1 and at most n.
    concentration : float, default=1.0
        Above 0.
    random_state : int, RandomState instance or None, default=None
        Decides the shares and who gets which row.

    Returns
    -------
    ndarray of shape (n,), int
        The client of each row, from 0. Every client has at least one row: where the draw leaves
        one without, it gets a row of the client that has the most.

    Raises
    ------
    ValueError
        If an argument is outside its range.

    References
    ----------
    .. [1] T.-M. H. Hsu, H. Qi and M. Brown, "Measuring the effects of non-identical data
       distribution for federated visual classification", 2019. https://arxiv.org/abs/1909.06335

    Examples
    --------
    >>> split_by_dirichlet(["a", "a", "a", "b", "b", "b"], 2, random_state=0).tolist()
    [1, 0, 0, 0, 1, 0]
    """
    y = column_or_1d(y)
    if not isinstance(n_clients, int | np.integer) or not 1 <= n_clients <= len(y):
        raise ValueError(
            f"n_clients={n_clients!r} must be a whole number from 1 to {len(y)} (rows)"
        )
    if not concentration > 0:
        raise ValueError(f"concentration={concentration!r} must be above 0")
    random = check_random_state(random_state)
    client = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        rows = random.permutation(np.flatnonzero(y == label))
        shares = random.dirichlet(np.full(n_clients, concentration))
        ends = np.round(np.cumsum(shares) * len(rows)).astype(int)
        for number, part in enumerate(np.split(rows, ends[:-1])):
            client[part] = number
    for number in range(n_clients):
        if not (client == number).any():
            richest = np.bincount(client, minlength=n_clients).argmax()
            client[random.choice(np.flatnonzero(client == richest))] = number
    return client


def average_weights(weights: list[np.ndarray], n_rows: list[int]) -> np.ndarray:
    """Return the mean of the clients' weights, each counted by its number of rows.

    Parameters
    ----------
    weights : list of ndarray, all of one shape
        What each client sends.
    n_rows : list of int
        How many rows each client trained on.

    Returns
    -------
    ndarray
        The average.

    Raises
    ------
    ValueError
        If a client has no rows, or the two lists differ in length.

    Examples
    --------
    >>> average_weights([np.array([0.0, 1.0]), np.array([4.0, 1.0])], [3, 1])
    array([1., 1.])
    """
    if len(weights) != len(n_rows):
        raise ValueError(f"{len(weights)} clients sent weights, but n_rows holds {len(n_rows)}")
    if min(n_rows, default=0) < 1:
        raise ValueError(f"every client needs at least one row; got {list(n_rows)}")
    return np.average(weights, axis=0, weights=n_rows)


class FederatedClassifier(ClassifierMixin, BaseEstimator):
    """Softmax regression trained by federated averaging.

    In every round each client starts from the weights of the server, takes steps of stochastic
    gradient descent on its own rows, and sends its weights back; the server averages them, each
    counted by the client's number of rows [1]_.

    Parameters
    ----------
    n_rounds : int, default=20
        Rounds.
    local_epochs : int, default=5
        How often a client goes through its rows in a round.
    batch_size : int, default=32
        Rows in a step.
    learning_rate : float, default=0.5
        Length of the steps.
    random_state : int, RandomState instance or None, default=None
        Decides the order of the rows.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        The labels.
    coef_ : ndarray of shape (k, d)
        Weights.
    intercept_ : ndarray of shape (k,)
        Biases.
    rounds_ : ndarray of shape (n_rounds, k, d + 1)
        The server's weights after every round, biases last.
    bytes_per_round_ : int
        What all clients receive and send in a round, as float32.

    References
    ----------
    .. [1] B. McMahan, E. Moore, D. Ramage, S. Hampson and B. Agüera y Arcas,
       "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017.
       https://proceedings.mlr.press/v54/mcmahan17a.html

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> X, y = make_blobs(300, centers=3, random_state=1)
    >>> client = split_by_dirichlet(y, 4, random_state=0)
    >>> model = FederatedClassifier(random_state=0).fit(X / 10, y, client=client)
    >>> model.score(X / 10, y) > 0.95
    True
    >>> model.bytes_per_round_  # 4 clients, both ways, 3 classes, 2 weights and a bias, 4 bytes
    288
    """

    def __init__(
        self,
        *,
        n_rounds: int = 20,
        local_epochs: int = 5,
        batch_size: int = 32,
        learning_rate: float = 0.5,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_rounds = n_rounds
        self.local_epochs = local_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X, y, client=None) -> FederatedClassifier:
        """Train on features (n, d), labels (n,) and the client of each row (n,).

        Without `client` all rows belong to one, which is training in one place.

        Raises
        ------
        ValueError
            If a parameter is outside its range, or `client` has another length than `y`.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=float)
        check_classification_targets(y)
        client = np.zeros(len(y), dtype=int) if client is None else column_or_1d(client)
        check_consistent_length(y, client)
        self.classes_, codes = np.unique(y, return_inverse=True)
        X = np.column_stack([X, np.ones(len(X))])
        labels = np.eye(len(self.classes_))[codes]
        random = check_random_state(self.random_state)
        holders = [np.flatnonzero(client == one) for one in np.unique(client)]
        weights = np.zeros((len(self.classes_), X.shape[1]))
        self.rounds_ = []
        for _ in range(self.n_rounds):
            sent = [self._train(weights, X[rows], labels[rows], random) for rows in holders]
            weights = average_weights(sent, [len(rows) for rows in holders])
            self.rounds_.append(weights)
        self.rounds_ = np.array(self.rounds_)
        self.bytes_per_round_ = 2 * len(holders) * weights.size * _BYTES
        self.coef_, self.intercept_ = weights[:, :-1], weights[:, -1]
        return self

    def _train(self, weights, X, labels, random) -> np.ndarray:
        for _ in range(self.local_epochs):
            order = random.permutation(len(X))
            for start in range(0, len(X), self.batch_size):
                rows = order[start : start + self.batch_size]
                errors = softmax(X[rows] @ weights.T, axis=1) - labels[rows]
                weights = weights - self.learning_rate * errors.T @ X[rows] / len(rows)
        return weights

    def _check_parameters(self) -> None:
        for name in ("n_rounds", "local_epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate!r} must be above 0")

    def predict_proba(self, X) -> np.ndarray:
        """Return the probabilities of the classes, (n, k)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=float)
        return softmax(X @ self.coef_.T + self.intercept_, axis=1)

    def predict(self, X) -> np.ndarray:
        """Return the most probable label of every row, (n,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]
