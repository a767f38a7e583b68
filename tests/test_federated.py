"""Federated training against training in one place, and against Flower."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.datasets import make_blobs
from sklearn.utils.estimator_checks import check_estimator

from cmlearn.federated import (
    FederatedClassifier,
    VerticalClassifier,
    average_weights,
    split_by_dirichlet,
)
from cmlearn.reference import RUNS
from cmlearn.reference.privacy import ROOT, ask_flower
from cmlearn.runtime import load_run


@pytest.fixture
def rows():
    X, y = make_blobs(150, n_features=6, centers=3, cluster_std=3.0, random_state=0)
    return X / 5, np.array(["cat", "dog", "owl"])[y]


def sgd(X, y, *, epochs, batch_size, learning_rate, seed):
    """Train in one place, written out: weights (k, d) and biases (k,)."""
    random = np.random.RandomState(seed)
    labels = (y[:, None] == np.unique(y)).astype(float)
    weights, biases = np.zeros((labels.shape[1], X.shape[1])), np.zeros(labels.shape[1])
    for _ in range(epochs):
        order = random.permutation(len(X))
        for start in range(0, len(X), batch_size):
            batch = order[start : start + batch_size]
            errors = softmax(X[batch] @ weights.T + biases, axis=1) - labels[batch]
            weights = weights - learning_rate * errors.T @ X[batch] / len(batch)
            biases = biases - learning_rate * errors.mean(axis=0)
    return weights, biases


@pytest.mark.parametrize("client", [None, np.full(150, 7)])
def test_one_client_is_training_in_one_place(rows, client):
    model = FederatedClassifier(n_rounds=3, local_epochs=2, batch_size=40, random_state=4)
    model.fit(*rows, client=client)
    weights, biases = sgd(*rows, epochs=6, batch_size=40, learning_rate=0.5, seed=4)
    np.testing.assert_allclose(model.coef_, weights, atol=1e-10)
    np.testing.assert_allclose(model.intercept_, biases, atol=1e-10)


def test_a_single_full_step_of_all_clients_is_a_step_in_one_place(rows):
    X, y = rows
    client = split_by_dirichlet(y, 5, concentration=0.3, random_state=0)
    settings = {"n_rounds": 8, "local_epochs": 1, "batch_size": 150}
    apart = FederatedClassifier(**settings).fit(X, y, client=client)
    together = FederatedClassifier(**settings).fit(X, y)
    np.testing.assert_allclose(apart.rounds_, together.rounds_, atol=1e-10)


def test_a_round_is_local_training_and_a_weighted_mean(rows):
    X, y = rows
    client = np.repeat(["north", "south"], [110, 40])
    model = FederatedClassifier(n_rounds=1, local_epochs=3, batch_size=150, random_state=0)
    model.fit(X, y, client=client)
    settings = {"epochs": 3, "batch_size": 150, "learning_rate": 0.5, "seed": 0}
    assert len(set(y[:110])) == len(set(y[110:])) == 3
    (north, _), (south, _) = sgd(X[:110], y[:110], **settings), sgd(X[110:], y[110:], **settings)
    np.testing.assert_allclose(model.coef_, (110 * north + 40 * south) / 150, atol=1e-10)
    np.testing.assert_array_equal(model.rounds_[-1][:, :-1], model.coef_)


def test_clients_with_one_class_each_are_no_obstacle(rows):
    X, y = rows
    model = FederatedClassifier(random_state=0, n_rounds=30).fit(X, y, client=y)
    assert model.score(X, y) > 0.8
    assert list(model.classes_) == ["cat", "dog", "owl"]


def test_bytes_are_weights_both_ways(rows):
    X, y = rows
    model = FederatedClassifier(n_rounds=1).fit(X, y, client=np.arange(150) % 4)
    assert model.bytes_per_round_ == 4 * 2 * (3 * 6 + 3) * 4


def test_columns_apart_are_training_in_one_place(rows):
    X, y = rows
    holder = ["image", "text", "image", "text", "text", "image"]
    model = VerticalClassifier(epochs=4, batch_size=40, learning_rate=0.3, random_state=2)
    model.fit(X, y, holder=holder)
    weights, biases = sgd(X, y, epochs=4, batch_size=40, learning_rate=0.3, seed=2)
    np.testing.assert_allclose(model.coef_, weights, atol=1e-10)
    np.testing.assert_allclose(model.intercept_, biases, atol=1e-10)
    assert model.bytes_per_epoch_ == 2 * 2 * 150 * 3 * 4


@pytest.mark.parametrize("n_clients", [1, 3, 60])
@pytest.mark.parametrize("concentration", [0.01, 1.0, 1000.0])
def test_every_row_has_a_client_and_every_client_a_row(rows, n_clients, concentration):
    y = rows[1]
    client = split_by_dirichlet(y, n_clients, concentration=concentration, random_state=1)
    assert client.shape == (150,)
    assert set(client) == set(range(n_clients))
    again = split_by_dirichlet(y, n_clients, concentration=concentration, random_state=1)
    np.testing.assert_array_equal(client, again)


def test_a_small_concentration_skews_the_classes():
    y = np.repeat(np.arange(8), 100)

    def share_of_largest_class(concentration):
        client = split_by_dirichlet(y, 10, concentration=concentration, random_state=0)
        counts = np.array([np.bincount(y[client == one], minlength=8) for one in range(10)])
        return (counts.max(axis=1) / counts.sum(axis=1)).mean()

    shares = [share_of_largest_class(value) for value in (1000.0, 1.0, 0.1)]
    assert shares[0] < 0.18 < shares[1] < shares[2] and shares[2] > 0.5


def test_the_smallest_concentrations_give_each_class_to_anyone():
    """Their shares cannot be computed; 20 classes that all go to the last client are no draw."""
    y = np.repeat(np.arange(20), 10)
    client = split_by_dirichlet(y, 2, concentration=1e-300, random_state=0)
    owners = [set(client[y == label]) for label in range(20)]
    assert all(len(owner) == 1 for owner in owners)
    assert {0, 1} == set().union(*owners)


def test_they_keep_the_habits_of_scikit_learn():
    check_estimator(FederatedClassifier())
    check_estimator(VerticalClassifier(epochs=100))


def test_flower_agrees(rows):
    if not (ROOT / ".venv-flower" / "bin" / "python").is_file():
        pytest.skip("no environment with Flower here: `make federated-check` builds it")
    X, y = rows
    client = split_by_dirichlet(y, 3, concentration=0.5, random_state=0)
    plan = {"n_rounds": 2, "local_epochs": 2, "learning_rate": 0.5}
    ours = FederatedClassifier(batch_size=150, **plan).fit(X, y, client=client)
    theirs = ask_flower(X, y, client, **plan)
    np.testing.assert_allclose(theirs, ours.rounds_, atol=1e-10)


def test_flowers_stored_answer_agrees():
    found = load_run(RUNS / "privacy.json")["results"]["flower"]
    assert found["n_rounds"] == 5
    assert found["largest_difference"] < 1e-10 < 0.1 < found["largest_weight"]


# --- Bad input -----------------------------------------------------------------------------------


def test_a_missing_label_is_named():
    with pytest.raises(ValueError, match="no label in row 2"):
        split_by_dirichlet([0.0, 1.0, np.nan, 0.0], 2)


def test_a_client_without_rows_is_refused():
    with pytest.raises(ValueError, match=r"client \[1\] has none: n_rows is \[3, 0\]"):
        average_weights([np.zeros(2), np.zeros(2)], [3, 0])
    with pytest.raises(ValueError, match="every client needs at least one row"):
        average_weights([], [])
    with pytest.raises(ValueError, match="2 clients sent weights, but n_rows holds 1"):
        average_weights([np.zeros(2), np.zeros(2)], [3])


def test_a_row_without_a_client_is_refused(rows):
    with pytest.raises(ValueError, match=r"client\[0\] is missing"):
        FederatedClassifier().fit(*rows, client=[None] * 150)
    client = np.zeros(150)
    client[9] = np.nan
    with pytest.raises(ValueError, match=r"client\[9\] is missing"):
        FederatedClassifier().fit(*rows, client=client)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FederatedClassifier().fit(*rows, client=[0, 1])


def test_a_column_without_a_holder_is_refused(rows):
    with pytest.raises(ValueError, match="holder names 2 columns, but X has 6"):
        VerticalClassifier().fit(*rows, holder=["image", "text"])
    X, y = rows
    for holder in ([np.nan] + [0.0] * (X.shape[1] - 1), [None] + ["image"] * (X.shape[1] - 1)):
        with pytest.raises(ValueError, match="column 0 has no holder"):
            VerticalClassifier().fit(X, y, holder=np.array(holder))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (FederatedClassifier(n_rounds=0), "n_rounds=0 must be a whole number"),
        (FederatedClassifier(local_epochs=0.5), "local_epochs=0.5 must be a whole number"),
        (FederatedClassifier(batch_size=-1), "batch_size=-1 must be a whole number"),
        (FederatedClassifier(learning_rate=0), "learning_rate=0 must be above 0"),
        (VerticalClassifier(epochs=0), "epochs=0 must be a whole number"),
        (VerticalClassifier(learning_rate=-1), "learning_rate=-1 must be above 0"),
    ],
)
def test_bad_settings_are_refused(rows, model, message):
    with pytest.raises(ValueError, match=message):
        model.fit(*rows)


def test_bad_splits_are_refused(rows):
    y = rows[1]
    for n_clients in (0, 151, 2.0):
        with pytest.raises(ValueError, match=r"must be a whole number from 1 to 150 \(rows\)"):
            split_by_dirichlet(y, n_clients)
    with pytest.raises(ValueError, match="concentration=0 must be above 0"):
        split_by_dirichlet(y, 3, concentration=0)
