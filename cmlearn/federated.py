"""Federated learning: the rows stay with those who hold them, and weights travel instead."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, validate_data

from cmlearn.privacy import _SoftmaxHead

__all__ = ["FederatedClassifier", "VerticalClassifier", "average_weights", "split_by_dirichlet"]

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
        Above 0 and finite.
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
        If an argument is outside its range, or a label is missing.

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
    missing = np.flatnonzero(pd.isna(y))
    if len(missing):
        raise ValueError(f"y has no label in row {missing[0]}: give one, or leave the row out")
    if not isinstance(n_clients, int | np.integer) or not 1 <= n_clients <= len(y):
        raise ValueError(
            f"n_clients={n_clients!r} must be a whole number from 1 to {len(y)} (rows)"
        )
    if not 0 < concentration < np.inf:
        raise ValueError(f"concentration={concentration!r} must be above 0 and finite")
    random = check_random_state(random_state)
    client = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        rows = random.permutation(np.flatnonzero(y == label))
        shares = random.dirichlet(np.full(n_clients, concentration))
        if not np.isfinite(shares).all():  # so uneven that no share is above the smallest number
            shares = np.eye(n_clients)[random.randint(n_clients)]
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
    empty = [number for number, n in enumerate(n_rows) if n < 1]
    if empty or not n_rows:
        raise ValueError(
            f"every client needs at least one row, and client {empty} has none: n_rows is "
            f"{list(n_rows)}; leave such a client out of the round"
        )
    return np.average(weights, axis=0, weights=n_rows)


class FederatedClassifier(_SoftmaxHead):
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
        _check_training(self, "n_rounds", "local_epochs", "batch_size")
        X, y = validate_data(self, X, y, dtype=float)
        check_classification_targets(y)
        client = np.zeros(len(y), dtype=int) if client is None else column_or_1d(client)
        check_consistent_length(y, client)
        if pd.isna(client).any():
            row = int(pd.isna(client).argmax())
            raise ValueError(f"client[{row}] is missing: name the client that holds the row")
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


class VerticalClassifier(_SoftmaxHead):
    r"""Softmax regression over columns that different holders keep.

    Scores of a linear model are sums over columns, so that each holder can compute its part alone.
    For every batch each holder sends its part of the scores, and whoever has the labels adds the
    parts up and sends the errors (probabilities minus the one-hot labels) back; the holders'
    gradients need nothing else [1]_. The weights are those of training in one place.

    Parameters
    ----------
    epochs : int, default=20
        How often the rows are gone through.
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
        Weights; in use each holder would keep its own columns.
    intercept_ : ndarray of shape (k,)
        Biases, which whoever has the labels keeps.
    bytes_per_epoch_ : int
        What all holders send and receive in an epoch, as float32.

    Notes
    -----
    Neither side sees the other's columns, and still much is given away: the error of a row is
    negative for its label alone, so that every holder learns the labels.

    References
    ----------
    .. [1] Q. Yang, Y. Liu, T. Chen and Y. Tong, "Federated machine learning: concept and
       applications", ACM TIST 2019. https://doi.org/10.1145/3298981

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> X, y = make_blobs(300, centers=3, random_state=1)
    >>> model = VerticalClassifier(random_state=0).fit(X / 10, y, holder=["image", "text"])
    >>> model.score(X / 10, y) > 0.95
    True
    >>> model.bytes_per_epoch_  # 2 holders, both ways, 300 rows, 3 classes, 4 bytes
    14400
    """

    def __init__(
        self,
        *,
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float = 0.5,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X, y, holder=None) -> VerticalClassifier:
        """Train on features (n, d), labels (n,) and the holder of each column (d,).

        Without `holder` all columns belong to one.

        Raises
        ------
        ValueError
            If a parameter is outside its range, or `holder` does not name one for each column.
        """
        _check_training(self, "epochs", "batch_size")
        X, y = validate_data(self, X, y, dtype=float)
        check_classification_targets(y)
        holder = np.zeros(X.shape[1], dtype=int) if holder is None else column_or_1d(holder)
        if len(holder) != X.shape[1]:
            raise ValueError(f"holder names {len(holder)} columns, but X has {X.shape[1]}")
        missing = np.flatnonzero(pd.isna(holder))
        if len(missing):
            raise ValueError(f"column {missing[0]} has no holder: holder holds a missing value")
        self.classes_, codes = np.unique(y, return_inverse=True)
        labels = np.eye(len(self.classes_))[codes]
        random = check_random_state(self.random_state)
        parts = {one: X[:, holder == one] for one in np.unique(holder)}
        weights = {one: np.zeros((labels.shape[1], part.shape[1])) for one, part in parts.items()}
        biases = np.zeros(labels.shape[1])
        for _ in range(self.epochs):
            order = random.permutation(len(X))
            for start in range(0, len(X), self.batch_size):
                rows = order[start : start + self.batch_size]
                sent = [part[rows] @ weights[one].T for one, part in parts.items()]
                errors = softmax(sum(sent) + biases, axis=1) - labels[rows]
                step = self.learning_rate / len(rows)
                biases = biases - step * errors.sum(axis=0)
                for one, part in parts.items():
                    weights[one] = weights[one] - step * errors.T @ part[rows]
        self.coef_ = np.empty((labels.shape[1], X.shape[1]))
        for one, part in weights.items():
            self.coef_[:, holder == one] = part
        self.intercept_ = biases
        self.bytes_per_epoch_ = 2 * len(parts) * labels.size * _BYTES
        return self


def _check_training(estimator: _SoftmaxHead, *counts: str) -> None:
    for name in counts:
        value = getattr(estimator, name)
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    if not estimator.learning_rate > 0:
        raise ValueError(f"learning_rate={estimator.learning_rate!r} must be above 0")
