import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from cmlearn._training import shuffled_batches, split_off_validation
from cmlearn.models import NeuralClassifier

keras = pytest.importorskip("keras")


def small(**parameters):
    defaults = {"hidden_units": (16,), "epochs": 5, "learning_rate": 0.03, "random_state": 0}
    return NeuralClassifier(**{**defaults, **parameters})


def blobs(n_rows=90):
    X, y = make_blobs(n_rows, centers=3, n_features=4, random_state=0)
    return X.astype(np.float32), np.array(["cup", "hat", "杯子"])[y]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    y = np.array([f"digit {label}" for label in y])
    return train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)


@pytest.fixture(scope="module")
def fitted(digits):
    """A network trained until validation stops it."""
    X, _, y, _ = digits
    return NeuralClassifier(epochs=200, patience=3, learning_rate=0.01, random_state=0).fit(X, y)


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    shifted = np.exp(x - x.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


# --- What it computes -----------------------------------------------------------------------------


def test_digits_are_learned(fitted, digits):
    _, X_test, _, y_test = digits
    assert fitted.score(X_test, y_test) > 0.95


def test_probabilities_are_those_of_the_network_written_out(fitted, digits):
    X, X_test, y, _ = digits
    hidden_kernel, hidden_bias, output_kernel, output_bias = fitted.weights_[-4:]
    rescaling = keras.models.model_from_json(fitted.config_).layers[0]
    rescaled = X_test * rescaling.scale + rescaling.offset
    hidden = relu(rescaled @ hidden_kernel + hidden_bias)
    expected = softmax(hidden @ output_kernel + output_bias)
    np.testing.assert_allclose(fitted.predict_proba(X_test), expected, atol=1e-5)


def test_features_are_rescaled_as_a_whole_by_the_training_part(fitted, digits):
    X = digits[0]
    rescaling = keras.models.model_from_json(fitted.config_).layers[0]
    assert 1 / rescaling.scale == pytest.approx(X.std(), rel=0.02)
    assert -rescaling.offset / rescaling.scale == pytest.approx(X.mean(), rel=0.02)


def test_training_stops_early_and_keeps_the_best_weights(fitted, digits):
    history = fitted.history_
    assert len(history["loss"]) < 200
    assert len(history["val_loss"]) == fitted.best_epoch_ + 1 + 3  # patience
    assert fitted.best_epoch_ == np.argmin(history["val_loss"])
    X, _, y, _ = digits
    codes = np.unique(y, return_inverse=True)[1]
    _, validation = train_test_split(
        np.arange(len(X)),
        test_size=round(0.15 * len(X)),
        stratify=codes,
        random_state=np.random.RandomState(0),
    )
    loss = log_loss(y[validation], fitted.predict_proba(X[validation]), labels=fitted.classes_)
    assert loss == pytest.approx(min(history["val_loss"]), abs=1e-4)


def test_without_validation_every_row_trains_for_all_epochs():
    X, y = blobs(3)
    model = small(validation_fraction=0, epochs=7).fit(X, y)
    assert set(model.history_) == {"loss", "accuracy"}
    assert len(model.history_["loss"]) == 7


def test_no_hidden_layer_is_logistic_regression():
    X, y = blobs()
    model = small(hidden_units=()).fit(X, y)
    assert [w.shape for w in model.weights_] == [(4, 3), (3,)]


def test_validation_part_holds_every_class_of_a_small_table():
    X, y = blobs(6)
    codes = np.array([0, 0, 1, 1, 2, 2])
    train, validation = split_off_validation(codes, np.arange(3), 0.15, np.random.RandomState(0))
    assert sorted([*train, *validation]) == list(range(6))
    assert sorted(codes[validation]) == [0, 1, 2]
    assert len(small().fit(X, np.repeat(["a", "b", "c"], 2)).history_["val_loss"]) == 5


# --- Seed, state, composition ---------------------------------------------------------------------


def test_seed_decides_everything_and_the_global_state_nothing():
    X, y = blobs()
    probabilities = []
    for seed, disturbance in [(0, 1), (0, 2), (1, 1)]:
        keras.utils.set_random_seed(disturbance)
        probabilities.append(small(random_state=seed).fit(X, y).predict_proba(X))
    np.testing.assert_array_equal(probabilities[0], probabilities[1])
    assert not np.allclose(probabilities[0], probabilities[2])


def test_fit_leaves_numpys_global_generator_alone():
    X, y = blobs()
    np.random.seed(5)  # noqa: NPY002 - the legacy generator is what is tested
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    small().fit(X, y)
    assert np.random.random() == expected  # noqa: NPY002


def test_batches_are_reshuffled_every_epoch_and_cover_all_rows():
    X = np.arange(10, dtype=np.float32)[:, None]
    batches = shuffled_batches((X, np.arange(10)), 4, seed=0)
    orders = []
    for _ in range(2):
        orders.append(np.concatenate([batches[i][1] for i in range(len(batches))]))
        batches.on_epoch_end()
    assert len(batches) == 3
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert list(orders[0]) != list(orders[1])
    resumed = shuffled_batches((X, np.arange(10)), 4, seed=0, first_epoch=1)
    assert np.concatenate([resumed[i][1] for i in range(3)]).tolist() == orders[1].tolist()


def test_pickle_and_skops_give_the_same_probabilities(fitted, digits):
    X_test = digits[1]
    expected = fitted.predict_proba(X_test)
    assert b"keras" not in pickle.dumps({"weights": fitted.weights_})
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(fitted)).predict_proba(X_test), expected
    )
    stored = skops.io.dumps(fitted)
    assert skops.io.get_untrusted_types(data=stored) == ["cmlearn.models.NeuralClassifier"]
    loaded = skops.io.loads(stored, trusted=["cmlearn.models.NeuralClassifier"])
    np.testing.assert_array_equal(loaded.predict_proba(X_test), expected)
    np.testing.assert_array_equal(loaded.predict(X_test), fitted.predict(X_test))


def test_stored_state_holds_no_keras_object(fitted):
    assert not [value for value in fitted.__getstate__().values() if "keras" in str(type(value))]


def test_refit_forgets_the_first_fit():
    X, y = blobs()
    model = small().fit(X[:, :2], y)
    model.predict(X[:, :2])
    model.fit(X, y)
    assert model.predict_proba(X).shape == (90, 3)
    assert model.n_features_in_ == 4


def test_pipeline_in_cross_validation():
    X, y = blobs()
    pipeline = make_pipeline(StandardScaler(), small())
    pipeline.set_params(neuralclassifier__hidden_units=(8, 8))
    assert cross_val_score(pipeline, X, y, cv=2, error_score="raise").mean() > 0.9


def test_progress_is_shown_on_request_and_only_in_a_terminal(capsys, monkeypatch):
    X, y = blobs()
    small(verbose=True).fit(X, y)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    small(verbose=True).fit(X, y)
    assert "5/5" in capsys.readouterr().err


ON_JAX = """
import numpy as np
from sklearn.datasets import make_blobs
from cmlearn.models import NeuralClassifier
X, y = make_blobs(60, cluster_std=0.3, random_state=0)
model = NeuralClassifier(hidden_units=(8,), epochs=20, learning_rate=0.03, random_state=0)
first = model.fit(X, y).predict_proba(X)
assert model.score(X, y) > 0.9, model.score(X, y)
import keras, pickle
assert keras.backend.backend() == "jax"
assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), first)
assert np.array_equal(model.fit(X, y).predict_proba(X), first)
"""


def test_other_backend():
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-c", ON_JAX]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_importing_the_module_does_not_load_keras():
    command = "import sys, cmlearn.models; assert not {'keras', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cup"] * 6, "two classes, but y holds one class only: 'cup'"),
        (["cup"] * 5 + ["hat"], "class 'hat' has one row only.*validation_fraction=0"),
        (np.linspace(0, 1, 6), "Unknown label type: continuous"),
    ],
)
def test_labels_that_cannot_be_learned_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        small().fit(np.zeros((6, 2)), labels)


def test_missing_values_are_refused(fitted):
    X, y = blobs()
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        small().fit(X, y)
    with pytest.raises(ValueError, match="contains NaN"):
        fitted.predict(np.full((1, 64), np.nan))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction must be .*got 1.0"),
        ({"dropout": 1}, "dropout must be .*got 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1; got 0"),
        ({"patience": 0}, "patience must be a whole number of at least 1; got 0"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    X, y = blobs(6)
    with pytest.raises(ValueError, match=message):
        small(**parameters).fit(X, y)


# Each trains 1 to 10 networks at a second each, so they run with CMLEARN_PROFILE=full only.
SLOW_CHECKS = {
    "check_classifier_data_not_an_array",
    "check_classifiers_classes",
    "check_classifiers_train",
    "check_dict_unchanged",
    "check_estimators_dtypes",
    "check_estimators_nan_inf",
    "check_estimators_pickle",
    "check_f_contiguous_array_estimator",
    "check_fit2d_1feature",
    "check_fit2d_predict1d",
    "check_fit_check_is_fitted",
    "check_fit_idempotent",
    "check_fit_score_takes_y",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_n_features_in",
    "check_pipeline_consistency",
    "check_supervised_y_2d",
}


@parametrize_with_checks([small()])
def test_follows_scikit_learn(estimator, check):
    if check.func.__name__ in SLOW_CHECKS and os.environ.get("CMLEARN_PROFILE") != "full":
        pytest.skip("trains many networks: runs with CMLEARN_PROFILE=full")
    check(estimator)
