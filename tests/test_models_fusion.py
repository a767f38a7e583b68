"""Tests of the fusion network on feature tables, and of the counts of what a network costs."""

import functools
import json
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from cmlearn import models
from cmlearn.fusion import feature_table
from cmlearn.models import FUSIONS, FusionClassifier, count_flops, count_parameters
from cmlearn.persistence import load_model, save_model

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.usefixtures("step_by_step")

OF_VECTORS = [how for how in FUSIONS if how not in ("bottleneck", "cross-attention")]
UNITS = 8


def small(how="gated", **parameters):
    """Return a classifier that trains fast: no auxiliary outputs, no validation, a single epoch."""
    defaults = {
        "units": UNITS,
        "epochs": 1,
        "learning_rate": 0.01,
        "auxiliary_weight": 0,
        "validation_fraction": 0,
        "random_state": 0,
    }
    return FusionClassifier(how, **{**defaults, **parameters})


def make_pairs(n_rows=40):
    """Image grids of 4 positions and texts of 1 to 3 words, which both know the label."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, n_rows)
    image = [codes[i] + rng.normal(size=(4, 6)) for i in range(n_rows)]
    text = [codes[i] + rng.normal(size=(rng.integers(1, 4), 5)) for i in range(n_rows)]
    image[3] = image[4] = text[7] = None
    return feature_table(image=image, text=text), np.array(["cup", "hat", "杯子"])[codes]


@pytest.fixture(scope="module")
def pairs():
    return make_pairs()


@functools.cache
def fit_once(how):
    return small(how).fit(*make_pairs())


@pytest.fixture(params=FUSIONS)
def fitted(request):
    return fit_once(request.param)


def without(X, column):
    return X.assign(**{column: None})


def fitted_network(model):
    return keras.models.model_from_json(model.config_)


# --- What it computes -----------------------------------------------------------------------------


def softmax(x):
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def pooled(column, width):
    """Average each cell over its positions; zeros where it is missing."""
    return np.stack([np.zeros(width) if c is None else c.mean(axis=0) for c in column])


def one_appended(x):
    return np.hstack([x, np.ones((len(x), 1))])


def fuse_by_numpy(how, v, t, w):
    """Fuse complete rows by the papers' formulas; ``w`` are the layer's weights."""
    if how in ("concat", "mean", "product"):
        return {"concat": np.hstack([v, t]), "mean": (v + t) / 2, "product": v * t}[how]
    if how == "gated":
        gate = 1 / (1 + np.exp(-np.hstack([v, t]) @ w[2]))
        return gate * np.tanh(v @ w[0]) + (1 - gate) * np.tanh(t @ w[1])
    if how == "tensor":
        outer = np.einsum("bi,bj->bij", one_appended(v), one_appended(t))
        return outer.reshape(len(v), -1) @ w[0]
    if how == "low-rank":
        product = (v @ w[0] + w[1]) * (t @ w[2] + w[3])
        return product.reshape(len(v), -1, UNITS).sum(axis=1)
    scale, shift = np.split(t @ w[2] + w[3], 2, axis=1)
    return (1 + scale) * (v @ w[0] + w[1]) + shift


def test_probabilities_are_those_of_the_network_written_out(fitted, pairs):
    if fitted.how not in OF_VECTORS:
        pytest.skip("tests of the layers compute attention by hand")
    X = pairs[0].drop(index=[3, 4, 7])
    scales = [
        layer
        for layer in fitted_network(fitted).layers
        if isinstance(layer, keras.layers.Normalization)
    ]
    features = []
    for i, (name, width) in enumerate([("image", 6), ("text", 5)]):
        mean, variance = np.array(scales[i].input_mean), np.array(scales[i].input_variance)
        standardised = (pooled(X[name], width) - mean) / np.sqrt(variance)
        kernel, bias = fitted.weights_[2 * i : 2 * i + 2]
        features.append(np.maximum(standardised @ kernel + bias, 0))
    fused = fuse_by_numpy(fitted.how, *features, fitted.weights_[4:-2])
    expected = softmax(fused @ fitted.weights_[-2] + fitted.weights_[-1])
    np.testing.assert_allclose(fitted.predict_proba(X), expected, atol=1e-5)


def test_features_are_standardised_by_the_present_training_rows(pairs):
    X, _ = pairs
    model = fit_once("mean")
    scale = next(
        layer
        for layer in fitted_network(model).layers
        if isinstance(layer, keras.layers.Normalization)
    )
    image = np.stack([cell.mean(axis=0) for cell in X["image"] if cell is not None])
    np.testing.assert_allclose(np.ravel(scale.input_mean), image.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.ravel(scale.input_variance), image.var(axis=0), rtol=1e-5)


def test_a_feature_that_never_varied_has_no_say():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    image[:, 1] = 5
    model = small("concat", epochs=1).fit(feature_table(image=image, text=text), [0, 1] * 10)
    expected = model.predict_proba(feature_table(image=image, text=text))
    image[:, 1] += 1e-3
    changed = model.predict_proba(feature_table(image=image, text=text))
    np.testing.assert_allclose(changed, expected, atol=1e-2)


def test_products_learn_what_only_both_together_know(in_graph):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (200, 2))
    image, text = (2 * bits[:, [i]] - 1 + 0.3 * rng.normal(size=(200, 3)) for i in (0, 1))
    X, y = feature_table(image=image, text=text), bits[:, 0] ^ bits[:, 1]
    options = {"dropout": 0, "epochs": 15}
    assert small("tensor", **options).fit(X, y).score(X, y) > 0.95
    # A sum of what each knows cannot hold an XOR, whatever it learns.
    assert small("concat", **options).fit(X, y).score(X, y) < 0.8


# --- Rows stand alone -----------------------------------------------------------------------------


def test_a_row_is_answered_whatever_stands_beside_it(fitted, pairs):
    X, _ = pairs
    together = fitted.predict_proba(X)
    assert together.shape == (40, 3) and together.dtype == np.float32
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(fitted.predict_proba(X.iloc[order]), together[order], atol=1e-5)
    alone = np.concatenate([fitted.predict_proba(X.iloc[[i]]) for i in (0, 3, 7, 9)])
    np.testing.assert_allclose(alone, together[[0, 3, 7, 9]], atol=1e-5)


def test_padding_changes_nothing(fitted, pairs):
    X, _ = pairs
    long = feature_table(image=[np.ones((9, 6))], text=[np.ones((20, 5))])
    padded = fitted.predict_proba(pd.concat([X, long], ignore_index=True))[:40]
    np.testing.assert_allclose(padded, fitted.predict_proba(X), atol=1e-5)


def test_a_column_that_is_missing_throughout_is_predicted(fitted, pairs):
    X, _ = pairs
    for name in ("image", "text"):
        rows = X[X[{"image": "text", "text": "image"}[name]].notna()]
        assert np.isfinite(fitted.predict_proba(without(rows, name))).all()
    # Row 3 has no image already.
    blind = fitted.predict_proba(without(X.iloc[[3]], "image"))
    np.testing.assert_allclose(blind, fitted.predict_proba(X.iloc[[3]]), atol=1e-6)


def test_pickle_skops_and_json_give_the_same_probabilities(fitted, pairs, tmp_path):
    X, _ = pairs
    expected = fitted.predict_proba(X)
    assert not [value for value in fitted.__getstate__().values() if "keras" in str(type(value))]
    loaded = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(loaded.predict_proba(X), expected)
    save_model(fitted, tmp_path)
    loaded = load_model(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(X), expected)
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    assert json.loads(fitted.config_)


# --- Missing modalities ---------------------------------------------------------------------------


def test_modality_dropout_teaches_to_do_with_either(in_graph):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    image, text = (np.eye(3)[y] + 0.2 * rng.normal(size=(120, 3)) for _ in range(2))
    X = feature_table(image=image, text=text)
    options = {"modality_dropout": 0.5, "dropout": 0.1, "epochs": 20, "learning_rate": 0.03}
    model = small("gated", **options).fit(X, y)
    assert model.score(X, y) > 0.95
    for name in ("image", "text"):
        assert model.score(without(X, name), y) > 0.9


def test_a_learned_vector_stands_for_what_is_missing(pairs):
    X, y = pairs
    model = small("bottleneck", missing="embedding", modality_dropout=0.5).fit(X, y)
    network = model._keras_model()
    learned = {
        name: network.get_layer(f"missing_{name}").get_weights()[0] for name in ("image", "text")
    }
    assert all(np.abs(vector).max() > 1e-3 for vector in learned.values())
    blind = without(X, "image").drop(index=7)
    expected = model.predict_proba(blind)
    # The learned vector counts once, however long the other grids in the batch are.
    long = feature_table(image=[np.ones((9, 6))], text=[np.ones((20, 5))])
    padded = model.predict_proba(pd.concat([blind, long], ignore_index=True))[: len(blind)]
    np.testing.assert_allclose(padded, expected, atol=1e-5)
    network.get_layer("missing_image").set_weights([learned["image"] + 1])
    assert np.abs(model.predict_proba(blind) - expected).max() > 1e-4


def test_auxiliary_outputs_see_no_missing_row_and_go_after_training(pairs, monkeypatch):
    X, y = pairs
    seen = {}

    def train_network(network, data, *args, **options):
        seen.update(zip(("inputs", "targets", "weights"), data, strict=True))
        seen["losses"] = network.get_compile_config()["loss_weights"]
        return {"loss": [1.0], "accuracy": [0.0]}

    monkeypatch.setattr(models, "train_network", train_network)
    model = small(auxiliary_weight=0.25).fit(X, y)
    assert np.flatnonzero(seen["weights"]["image_label"] == 0).tolist() == [3, 4]
    assert np.flatnonzero(seen["weights"]["text_label"] == 0).tolist() == [7]
    assert seen["weights"]["label"].all()
    losses = {"label": 1.0, "image_label": 0.25, "text_label": 0.25}
    assert seen["losses"] == losses
    assert "image_label" not in model.config_ and '"label"' in model.config_


def test_history_is_that_of_the_fused_output(pairs, in_graph):
    model = small(auxiliary_weight=0.5, patience=1, epochs=30, learning_rate=0.3)
    model.set_params(how="mean", validation_fraction=0.2).fit(*pairs)
    assert set(model.history_) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert len(model.history_["val_loss"]) == model.best_epoch_ + 1 + 1 < 30
    assert model.best_epoch_ == np.argmin(model.history_["val_loss"])


# --- Attention ------------------------------------------------------------------------------------


def test_attention_maps_have_the_shape_of_each_pair(pairs):
    X = pairs[0].set_axis(np.arange(40) + 100)
    model = fit_once("cross-attention")
    maps = model.attention_maps(X)
    assert list(maps.columns) == ["text_to_image", "image_to_text"]
    assert list(maps.index) == list(X.index)
    assert maps.loc[[103, 104, 107]].isna().all(axis=None)
    for row in (100, 101, 102):
        words = len(X["text"][row])
        assert maps["text_to_image"][row].shape == (4, words, 4)
        assert maps["image_to_text"][row].shape == (4, 4, words)
        np.testing.assert_allclose(maps["text_to_image"][row].sum(axis=2), 1, atol=1e-5)
        np.testing.assert_allclose(maps["image_to_text"][row].sum(axis=2), 1, atol=1e-5)
    alone = model.attention_maps(X.loc[[101]])
    np.testing.assert_allclose(alone["text_to_image"][101], maps["text_to_image"][101], atol=1e-5)


def test_a_vector_is_a_sequence_of_one_beside_a_sequence(pairs, recwarn):
    X, y = pairs
    X = X.assign(image=[None if cell is None else cell.mean(axis=0) for cell in X["image"]])
    model = small("cross-attention", epochs=1).fit(X, y)
    recwarn.clear()
    assert model.attention_maps(X)["image_to_text"][0].shape[:2] == (4, 1)
    assert not [warning for warning in recwarn if "softmax" in str(warning.message)]


# --- As an estimator ------------------------------------------------------------------------------


def test_seed_decides_everything_and_the_global_state_nothing(pairs):
    probabilities = []
    for seed, disturbance in [(0, 1), (0, 2), (1, 1)]:
        keras.utils.set_random_seed(disturbance)
        model = small("low-rank", random_state=seed, modality_dropout=0.3).fit(*pairs)
        probabilities.append(model.predict_proba(pairs[0]))
    np.testing.assert_array_equal(probabilities[0], probabilities[1])
    assert not np.allclose(probabilities[0], probabilities[2])


def test_fit_leaves_the_global_generators_alone(pairs):
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the legacy generator is what is tested
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    small("mean").fit(*pairs)
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002


def test_cross_validation_splits_the_table(pairs):
    scores = cross_val_score(
        small("mean", epochs=15, learning_rate=0.05), *pairs, cv=2, error_score="raise"
    )
    assert scores.mean() > 0.5


def test_clone_has_the_parameters_and_not_the_weights(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "weights_")
    assert fitted.classes_.tolist() == ["cup", "hat", "杯子"]


# scikit-learn's remaining checks feed matrices of numbers; a feature table holds arrays and None.
@parametrize_with_checks([small()])
def test_follows_scikit_learn(estimator, check):
    check(estimator)


# --- Costs ----------------------------------------------------------------------------------------


def test_parameters_and_flops_are_those_counted_by_hand(fitted):
    projections = (6 + 1) * UNITS + (5 + 1) * UNITS
    u, d = UNITS, UNITS
    fusion = {
        "concat": (0, 0),
        "mean": (0, 0),
        "product": (0, 0),
        "gated": (2 * (d + d) * u, 2 * (d + d) * u),
        "low-rank": (4 * (2 * d + 2) * u, 4 * 2 * d * u),
        "tensor": ((d + 1) ** 2 * u, (d + 1) ** 2 * u + (d + 1) * u),
        "film": ((d + 1) * u + (d + 1) * 2 * u, d * u + d * 2 * u),
    }
    if fitted.how not in fusion:
        pytest.skip("counted in the test of sequences")
    width = 2 * u if fitted.how == "concat" else u
    parameters, products = fusion[fitted.how]
    assert count_parameters(fitted) == projections + parameters + (width + 1) * 3
    assert count_flops(fitted) == 2 * ((6 + 5) * u + products + width * 3)


def attention_flops(n_query, n_context, d):
    scores_and_sums = 2 * n_query * n_context * d
    feed_forward = 2 * n_query * d * 4 * d
    return 2 * (2 * n_query * d * d + 2 * n_context * d * d + scores_and_sums + feed_forward)


def test_flops_of_sequences_are_those_counted_by_hand(fitted):
    p, n, u = 4, 3, UNITS
    projections = 2 * (p * 6 * u + n * 5 * u)
    if fitted.how == "cross-attention":
        expected = attention_flops(p, n, u) + attention_flops(n, p, u) + 2 * 2 * u * 3
    elif fitted.how == "bottleneck":
        layers = [attention_flops(p + 4, p + 4, u), attention_flops(n + 4, n + 4, u)]
        expected = 2 * sum(layers) + 2 * (p + n) * u * u + 2 * u * 3
    else:
        pytest.skip("counted in the test of vectors")
    assert count_flops(fitted, image_length=p, text_length=n) == projections + expected


def test_flops_of_a_convolution_and_of_an_unknown_layer():
    image = keras.Input((8, 8, 3))
    network = keras.Model(image, keras.layers.Conv2D(5, 3, padding="same")(image))
    assert count_flops(network) == 2 * 8 * 8 * 9 * 3 * 5
    assert count_parameters(network) == 9 * 3 * 5 + 5
    words = keras.Input((7, 3))
    with pytest.raises(ValueError, match="products of a LSTM layer are not known"):
        count_flops(keras.Model(words, keras.layers.LSTM(2)(words)))


# --- Backends -------------------------------------------------------------------------------------

ON_JAX = """
import pickle
import numpy as np
from test_models_fusion import make_pairs, small
import keras
assert keras.backend.backend() == "jax"
X, y = make_pairs()
options = {"modality_dropout": 0.3, "auxiliary_weight": 0.3, "epochs": 15, "learning_rate": 0.05}
model = small("low-rank", **options).fit(X, y)
first = model.predict_proba(X)
assert model.score(X, y) > 0.6, model.score(X, y)
assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), first)
assert np.array_equal(model.fit(X, y).predict_proba(X), first)
"""


def test_other_backend():
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", ON_JAX]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"how": "attention"}, "how must be one of 'concat', .*'cross-attention'; got 'attention'"),
        ({"missing": "zeros"}, "missing must be .*got 'zeros'"),
        ({"units": 0}, "units must be a whole number of at least 1; got 0"),
        ({"units": 2.5}, "units must be a whole number of at least 1; got 2.5"),
        ({"how": "bottleneck", "units": 6}, "needs units in multiples of 4; got 6"),
        ({"modality_dropout": 1}, "modality_dropout must be .*got 1"),
        ({"auxiliary_weight": -1}, "auxiliary_weight must be at least 0; got -1"),
        ({"learning_rate": 0}, "learning_rate must be above 0; got 0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be .*got 1.0"),
    ],
)
def test_bad_parameters_are_named(pairs, parameters, message):
    with pytest.raises(ValueError, match=message):
        small(**parameters).fit(*pairs)


def broken(X, row, column, cell):
    X = X.copy()
    X.at[row, column] = cell
    return X


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X.rename(columns={"text": "caption"}), r"columns 'image' and 'text'.*'caption'"),
        (lambda X: X.assign(label=1), r"no others; got \['image', 'text', 'label'\]"),
        (lambda X: X.to_numpy(), "X must be a DataFrame .*got ndarray"),
        (lambda X: X.iloc[:0], "X has no rows"),
        (lambda X: without(X, "text").drop(index=[3, 4]), "'text' is missing in all 38 rows"),
        (lambda X: broken(X, 3, "text", None), r"row 3 lacks both .*\(1 of 40\)"),
        (lambda X: broken(X, 2, "image", np.ones((4, 5))), r"'image' has shape \(4, 5\) in row 2"),
        (lambda X: broken(X, 5, "text", np.full((1, 5), np.nan)), "'text' holds NaN .*row 5"),
        (lambda X: broken(X, 5, "text", "a cup"), "'text' must hold arrays of numbers.*row 5"),
    ],
)
def test_bad_tables_are_named(pairs, change, message):
    X, y = pairs
    X = change(X)
    with pytest.raises(ValueError, match=message):
        small().fit(X, y[: len(X)])


def test_attention_to_vectors_alone_is_refused(pairs):
    X = feature_table(image=np.ones((4, 3)), text=np.ones((4, 2)))
    for how in ("cross-attention", "bottleneck"):
        with pytest.raises(ValueError, match=f"how='{how}' needs a sequence .*transform_tokens"):
            small(how).fit(X, [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X[["image"]], "columns 'image' and 'text'"),
        (lambda X: X.assign(image=[np.ones((4, 7))] * len(X)), "rows of shape .4, 7.; in training"),
        (lambda X: X.assign(image=[np.ones(6)] * len(X)), r"rows of shape \(6,\); in training"),
        (lambda X: X.assign(image=None, text=None), r"row 0 lacks both"),
    ],
)
def test_rows_unlike_those_of_the_training_are_refused(pairs, change, message):
    with pytest.raises(ValueError, match=message):
        fit_once("mean").predict(change(pairs[0]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cup"] * 40, "two classes, but y holds one class only: 'cup'"),
        (["cup"] * 39 + ["hat"], "class 'hat' has one row only.*validation_fraction=0"),
        (["cup", "hat"], "inconsistent numbers of samples"),
        (np.linspace(0, 1, 40), "Unknown label type: continuous"),
    ],
)
def test_labels_that_cannot_be_learned_are_named(pairs, labels, message):
    with pytest.raises(ValueError, match=message):
        small(validation_fraction=0.2).fit(pairs[0], labels)


def test_only_cross_attention_has_maps(pairs):
    with pytest.raises(ValueError, match='only how="cross-attention" has attention maps'):
        fit_once("mean").attention_maps(pairs[0])
