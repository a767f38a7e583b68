"""Tests of the network that learns from images and texts end to end, and of its checkpoints."""

import functools
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.signal import correlate
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from cmlearn import two_tower
from cmlearn._checkpoints import CHECKPOINT_FILE
from cmlearn.datasets import load_scenes
from cmlearn.image import ImageError
from cmlearn.persistence import load_model, save_model
from cmlearn.text import TextError, tokenize
from cmlearn.two_tower import CheckpointError, TwoTowerClassifier

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.usefixtures("step_by_step")


def small(how="concat", **parameters):
    """Return a classifier that trains fast: a tiny tower, no auxiliary outputs, no validation."""
    defaults = {
        "units": 8,
        "image_size": 16,
        "filters": (4,),
        "embedding_width": 6,
        "epochs": 1,
        "batch_size": 16,
        "validation_fraction": 0,
        "random_state": 0,
    }
    return TwoTowerClassifier(how, **{**defaults, **parameters})


def scenes(n_samples=40, **parameters):
    bunch = load_scenes(n_samples, image_size=16, random_state=0, **parameters)
    return bunch.data, np.asarray(bunch.target_names)[bunch.target]


@pytest.fixture(scope="module")
def pairs():
    X, y = scenes()
    X.at[2, "image"] = X.at[5, "text"] = None
    return X, y


@functools.cache
def fit_once():
    X, y = scenes()
    X.at[2, "image"] = X.at[5, "text"] = None
    return small("gated").fit(X, y)


# --- What it computes -----------------------------------------------------------------------------


def test_learns_what_both_modalities_know(in_graph):
    bunch = load_scenes(240, redundant=2, image_size=32, random_state=0)
    X, y = bunch.data, bunch.target
    options = {"image_size": 32, "filters": (8, 16), "units": 16, "learning_rate": 5e-3}
    model = small("gated", epochs=12, modality_dropout=0.3, auxiliary_weight=0.3, **options)
    model.fit(X[:180], y[:180])
    assert model.score(X[180:], y[180:]) > 0.7  # a guess has 0.25
    assert model.score(X[180:].assign(image=None), y[180:]) > 0.5
    assert model.score(X[180:].assign(text=None), y[180:]) > 0.4


def test_a_product_learns_what_neither_modality_knows_alone(in_graph):
    X, y = scenes(200, redundant=0, synergy=1)
    options = {"dropout": 0, "learning_rate": 0.01, "epochs": 15, "augmentation": 0.02}
    model = small("low-rank", **options).fit(X[:150], y[:150])
    assert model.score(X[150:], y[150:]) > 0.9


def group_normalised(x, groups, scale, shift):
    """Normalise (h, w, c) over positions and the channels of each group."""
    parts = x.reshape(-1, groups, x.shape[-1] // groups)
    mean = parts.mean(axis=(0, 2), keepdims=True)
    variance = parts.var(axis=(0, 2), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + 1e-3)).reshape(x.shape) * scale + shift


def test_probabilities_are_those_of_the_network_written_out(pairs):
    X, y = pairs
    model = small("concat").fit(X, y)
    w = dict(zip([v.path for v in model._keras_model().weights], model.weights_, strict=True))
    row = X.iloc[0]
    x = np.asarray(row["image"]).astype(float) / 127.5 - 1
    kernel = w["convolution_0/kernel"]
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    x = np.concatenate([correlate(padded, kernel[..., i], "valid") for i in range(4)], axis=2)
    x = group_normalised(x, 4, w["norm_0/gamma"], w["norm_0/beta"])
    x = np.maximum(x, 0).reshape(8, 2, 8, 2, 4).max(axis=(1, 3)).mean(axis=(0, 1))
    image = np.maximum(x @ w["image_projection/kernel"] + w["image_projection/bias"], 0)
    numbers = [model.vocabulary_[word] for word in tokenize(row["text"])]
    words = w["words/embeddings"][numbers].mean(axis=0)
    text = np.maximum(words @ w["text_projection/kernel"] + w["text_projection/bias"], 0)
    scores = np.concatenate([image, text]) @ w["label/kernel"] + w["label/bias"]
    expected = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(model.predict_proba(X.iloc[[0]])[0], expected, atol=1e-5)


def test_embeddings_start_from_the_given_vectors(pairs, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("red 1 2 3\nnothing 7 7 7\nblue -1 -2 -3\n")
    model = small("mean", vectors=path, learning_rate=1e-12).fit(*pairs)
    table = model._keras_model().get_layer("words").get_weights()[0]
    assert table.shape == (len(model.vocabulary_) + 2, 3)
    np.testing.assert_allclose(table[model.vocabulary_["red"]], [1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(table[model.vocabulary_["blue"]], [-1, -2, -3], atol=1e-6)
    assert not table[:2].any() and "nothing" not in model.vocabulary_


def modulated(image_score, text_score, present, strength):
    """Return what gradient of 1 becomes in each tower, for two rows whose answer is class 0."""
    import keras_checks

    scores = [
        np.array([[s, 1 - s] for s in score], np.float32) for score in (image_score, text_score)
    ]
    answer = np.zeros(2, np.int32)

    def total(image, text):
        named = {"image_score": scores[0], "text_score": scores[1]}
        parts = two_tower._modulate([image, text], named, answer, np.array(present), strength)
        for part, x in zip(parts, (image, text), strict=True):
            np.testing.assert_allclose(np.asarray(part), np.asarray(x), rtol=1e-6)
        return keras.ops.sum(parts[0]) + keras.ops.sum(parts[1])

    x = np.ones((2, 3), np.float32)
    return [g.mean() for g in keras_checks.gradients(total, [x, 2 * x], [])]


def test_the_stronger_tower_gets_less_gradient():
    both = [[True, True], [True, True]]
    found = modulated([0.8, 0.4], [0.3, 0.1], both, 0.5)
    np.testing.assert_allclose(found, [1 - np.tanh(0.5 * 3.0), 1], rtol=1e-5)
    found = modulated([0.1, 0.1], [0.3, 0.1], both, 0.5)
    np.testing.assert_allclose(found, [1, 1 - np.tanh(0.5 * 2.0)], rtol=1e-5)
    # Only rows that have both tell which of the two is ahead.
    found = modulated([0.8, 0.1], [0.1, 0.2], [[True, False], [True, True]], 1.0)
    np.testing.assert_allclose(found, [1, 1 - np.tanh(2.0)], rtol=1e-5)


def test_the_noise_on_a_towers_kernel_is_as_large_as_its_gradient(rng):
    variables = []
    for layer, name in (("convolution_0", "kernel"), ("words", "embeddings"), ("label", "kernel")):
        with keras.name_scope(layer):
            variables.append(keras.Variable(np.zeros((100, 100)), name=name))
    gradient = rng.normal(2, 3, (100, 100)).astype(np.float32)
    optimizer = two_tower._noisy_sgd(0.5, seed=0)
    steps = []
    for _ in range(2):
        before = [keras.ops.convert_to_numpy(v).copy() for v in variables]
        optimizer.apply([keras.ops.convert_to_tensor(gradient)] * 3, variables)
        after = [keras.ops.convert_to_numpy(v).copy() for v in variables]
        steps.append([(old - new) / 0.5 for old, new in zip(before, after, strict=True)])
    # The second step goes on with 0.9 of the first.
    steps[1] = [step - 0.9 * first for step, first in zip(steps[1], steps[0], strict=True)]
    for kernel, *others in steps:
        for other in others:
            np.testing.assert_allclose(other, gradient, rtol=1e-5, atol=1e-5)
        noise = (kernel - gradient) / gradient.std()
        np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.04)
        assert abs(np.corrcoef(noise.ravel(), gradient.ravel())[0, 1]) < 0.04
    first, second = (kernel - gradient for kernel, *_ in steps)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.04


def test_the_noisy_kernels_are_those_of_the_towers(pairs, monkeypatch):
    trained = []

    def train_network(network, *args, **options):
        trained.append(network)
        return {"loss": [1.0]}

    monkeypatch.setattr(two_tower, "train_network", train_network)
    small("gated", balance=0.5, filters=(4, 8), auxiliary_weight=0.5).fit(*pairs)
    kernels = [v.path for v in trained[0].trainable_variables if v.name == "kernel"]
    noisy = [path for path in kernels if path.startswith(two_tower._TOWER_LAYERS)]
    assert sorted(noisy) == [
        "convolution_0/kernel",
        "convolution_1/kernel",
        "image_projection/kernel",
        "text_projection/kernel",
    ]
    assert len(kernels) > len(noisy)


@pytest.mark.parametrize("how", ["cross-attention", "bottleneck"])
def test_balanced_training_goes_without_a_trace_into_the_kept_network(pairs, how, in_graph):
    model = small(how, balance=0.5, epochs=1, missing="embedding").fit(*pairs)
    assert "answer" not in model.config_ and "image_score" not in model.config_
    assert model.predict_proba(pairs[0]).shape == (40, 2)


def test_on_a_gpu_the_towers_train_in_16_bits_and_predict_in_32(pairs, monkeypatch):
    trained = []

    def train_network(network, *args, **options):
        trained.append(network)
        return {"loss": [1.0]}

    monkeypatch.setattr(two_tower, "train_network", train_network)
    monkeypatch.setattr(two_tower, "device", lambda: "GPU of a test")
    model = small("mean").fit(*pairs)
    network = trained[0]
    assert network.get_layer("convolution_0").compute_dtype == "float16"
    assert network.get_layer("words").compute_dtype == "float16"
    assert network.get_layer("label").compute_dtype == "float32"
    assert {v.dtype for v in network.trainable_weights} == {"float32"}
    assert type(network.optimizer).__name__ == "LossScaleOptimizer"
    assert keras.config.dtype_policy().name == "float32"
    assert "float16" not in model.config_
    inputs = model._inputs(pairs[0])
    halves = keras.ops.convert_to_numpy(network(inputs)["label"])
    np.testing.assert_allclose(halves, model.predict_proba(pairs[0]), atol=5e-3)


# --- Rows, state, seed ----------------------------------------------------------------------------


def test_a_row_is_answered_whatever_stands_beside_it(pairs):
    X, _ = pairs
    model = fit_once()
    together = model.predict_proba(X)
    assert together.dtype == np.float32
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(model.predict_proba(X.iloc[order]), together[order], atol=1e-5)
    alone = np.concatenate([model.predict_proba(X.iloc[[i]]) for i in (0, 2, 5)])
    np.testing.assert_allclose(alone, together[[0, 2, 5]], atol=1e-5)


def test_images_come_as_arrays_bytes_and_files(pairs, tmp_path):
    from PIL import Image

    model, row = fit_once(), pairs[0].iloc[[0]]
    expected = model.predict_proba(row)
    pixels = np.asarray(row["image"].iloc[0])
    path = tmp_path / "scene.png"
    Image.fromarray(pixels).save(path)
    for image in (pixels, path.read_bytes(), str(path)):
        again = row.copy()
        again["image"] = [image]
        np.testing.assert_allclose(model.predict_proba(again), expected, atol=1e-6)


def test_words_and_texts_that_training_lacked_are_unknown(pairs):
    model, row = fit_once(), pairs[0].iloc[[0]]
    unknown = model.predict_proba(row.assign(text="zebra"))
    np.testing.assert_allclose(model.predict_proba(row.assign(text="!")), unknown, atol=1e-6)
    assert np.abs(model.predict_proba(row.assign(text=None)) - unknown).max() > 1e-6


def test_pickle_and_skops_give_the_same_probabilities(pairs, tmp_path):
    X, model = pairs[0], fit_once()
    expected = model.predict_proba(X)
    assert not [value for value in model.__getstate__().values() if "keras" in str(type(value))]
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), expected)
    save_model(model, tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path).predict_proba(X), expected)


def test_clone_has_the_parameters_and_not_the_weights():
    copy = clone(fit_once())
    assert copy.get_params() == fit_once().get_params()
    assert not hasattr(copy, "weights_")


# scikit-learn's remaining checks feed matrices of numbers; here a table holds images and texts.
@parametrize_with_checks([small()])
def test_follows_scikit_learn(estimator, check):
    check(estimator)


# --- Checkpoints ----------------------------------------------------------------------------------

RESUMABLE = {
    "epochs": 4,
    "augmentation": 0.1,
    "modality_dropout": 0.3,
    "validation_fraction": 0.2,
}

KILLED = """
import os, signal, sys
import numpy as np
import pandas as pd
from test_two_tower import RESUMABLE, scenes, small
save, saved = np.savez, []

def save_half_of_the_third(file, **arrays):
    saved.append(file)
    if len(saved) == 3:
        open(file, "wb").write(b"PK half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, **arrays)

np.savez = save_half_of_the_third
small("gated", checkpoint=sys.argv[1], **RESUMABLE).fit(*scenes())
"""


def run(script, *arguments, **environment):
    path = {"PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, **path, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_killed_training_goes_on_and_ends_the_same(tmp_path, monkeypatch, in_graph):
    X, y = scenes()
    killed = run(KILLED, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = small("gated", checkpoint=tmp_path, **RESUMABLE)
    epochs = []
    restore = two_tower.Checkpoint.restore
    monkeypatch.setattr(
        two_tower.Checkpoint,
        "restore",
        lambda *arguments: epochs.append(restore(*arguments)) or epochs[-1],
    )
    resumed.fit(X, y)
    assert epochs == [2]  # the last whole one: the third was being written
    straight = small("gated", **RESUMABLE).fit(X, y)
    assert resumed.history_ == straight.history_
    assert resumed.best_epoch_ == straight.best_epoch_
    for found, expected in zip(resumed.weights_, straight.weights_, strict=True):
        np.testing.assert_array_equal(found, expected)
    # A training that has ended is not repeated.
    again = small("gated", checkpoint=tmp_path, **RESUMABLE).fit(X, y)
    assert epochs[1:] == [4]
    np.testing.assert_array_equal(again.predict_proba(X), resumed.predict_proba(X))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("checkpoint")
    small("mean", epochs=2, checkpoint=folder).fit(*pairs)
    return folder / CHECKPOINT_FILE


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"units": 4}, r"another training: it differs in units \(stored 8, here 4\)"),
        ({"random_state": 1}, r"differs in random_state \(stored 0, here 1\)"),
        ({"epochs": 1}, "holds a training of 2 epochs already, more than epochs=1"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(pairs, checkpoint, parameters, message):
    model = small("mean", **{"epochs": 2, "checkpoint": checkpoint.parent, **parameters})
    with pytest.raises(CheckpointError, match=message):
        model.fit(*pairs)


def test_a_checkpoint_of_other_data_is_refused(pairs, checkpoint):
    X, y = pairs
    X = X.copy()
    X.at[0, "text"] = X.at[1, "text"] = "a red thing"
    with pytest.raises(CheckpointError, match="differs in the training data"):
        small("mean", epochs=2, checkpoint=checkpoint.parent).fit(X, y)


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_damaged_checkpoint_is_named(pairs, checkpoint, tmp_path, keep):
    content = checkpoint.read_bytes()
    kept = content[: int(keep * len(content)) if isinstance(keep, float) else keep]
    (tmp_path / checkpoint.name).write_bytes(kept)
    with pytest.raises(CheckpointError, match=r"checkpoint.npz is not a whole checkpoint .*remove"):
        small("mean", epochs=2, checkpoint=tmp_path).fit(*pairs)


def test_a_checkpoint_that_lacks_the_weights_is_named(pairs, tmp_path):
    np.savez(tmp_path / CHECKPOINT_FILE, notes=np.array("{}"))
    with pytest.raises(CheckpointError, match="checkpoint.npz is not a whole checkpoint"):
        small("mean", epochs=2, checkpoint=tmp_path).fit(*pairs)


# --- Backends -------------------------------------------------------------------------------------

ON_JAX = """
import sys
import numpy as np
import pandas as pd
import keras
from test_two_tower import RESUMABLE, scenes, small
assert keras.backend.backend() == "jax"
X, y = scenes()
options = {**RESUMABLE, "balance": 0.3}
compile = keras.Model.compile

def compile_and_look(network, **settings):
    compile(network, **settings)
    assert network.jit_compile, "the layers that distort images keep JAX from compiling"

keras.Model.compile = compile_and_look
straight = small("gated", **{**options, "epochs": 2}).fit(X, y)
small("gated", checkpoint=sys.argv[1], **{**options, "epochs": 1}).fit(X, y)
resumed = small("gated", checkpoint=sys.argv[1], **{**options, "epochs": 2}).fit(X, y)
assert all(map(np.array_equal, resumed.weights_, straight.weights_))
assert straight.predict_proba(X).shape == (40, 2)
"""


def test_other_backend(tmp_path):
    pytest.importorskip("jax")
    result = run(ON_JAX, tmp_path, KERAS_BACKEND="jax")
    assert result.returncode == 0, result.stderr[-2000:]


def test_importing_the_module_does_not_load_keras():
    result = run("import sys, cmlearn.two_tower; assert not {'keras', 'cv2'} & set(sys.modules)")
    assert result.returncode == 0, result.stderr


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"how": "sum"}, "how must be one of .*got 'sum'"),
        ({"augmentation": 1}, "augmentation must be .*got 1"),
        ({"balance": -0.1}, "balance must be at least 0; got -0.1"),
        ({"filters": ()}, "one block at least"),
        ({"image_size": 2, "filters": (4, 4)}, "image_size=2 is halved by each block"),
        ({"embedding_width": 0}, "embedding_width must be a whole number of at least 1; got 0"),
        ({"checkpoint": "x", "random_state": None}, "random_state must be an int; got None"),
        ({"learning_rate": -1}, "learning_rate must be above 0; got -1"),
    ],
)
def test_bad_parameters_are_named(pairs, parameters, message):
    with pytest.raises(ValueError, match=message):
        small(**parameters).fit(*pairs)


def changed(X, row, column, cell):
    X = X.copy()
    X.at[row, column] = cell
    return X


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda X: X.drop(columns="text"), ValueError, "columns 'image' and 'text'"),
        (lambda X: X.assign(image=None).drop(index=5), ValueError, "'image' is missing in all 39"),
        (lambda X: changed(X, 2, "text", None), ValueError, "row 2 lacks both"),
        (lambda X: changed(X, 2, "text", pd.NA), ValueError, "row 2 lacks both"),
        (lambda X: X.assign(image=pd.NA).drop(index=5), ValueError, "missing in all 39"),
        (lambda X: changed(X, 4, "text", 7), TextError, "row 4: expected a text, got 7"),
        (lambda X: changed(X, 4, "image", "no.png"), ImageError, "Row 4 .*no.png.*does not exist"),
        (lambda X: X.assign(text="!?"), TextError, "40 training texts hold no word"),
    ],
)
def test_bad_tables_are_named(pairs, change, kind, message):
    X, y = pairs
    X = change(X)
    with pytest.raises(kind, match=message):
        small().fit(X, y[: len(X)])


def test_a_missing_cell_of_pandas_is_one(pairs):
    X, model = pairs[0].astype(object), fit_once()
    none, missing = (changed(X, 3, "text", cell) for cell in (None, pd.NA))
    np.testing.assert_array_equal(model.predict_proba(missing), model.predict_proba(none))


def test_rows_of_a_prediction_are_named_by_their_place_in_the_table(pairs):
    X, model = pairs[0], fit_once()
    many = X.iloc[[0] * 300].reset_index(drop=True)
    with pytest.raises(ImageError, match="Row 290 "):
        model.predict(changed(many, 290, "image", b"no image"))
    with pytest.raises(TextError, match="row 290: expected a text"):
        model.predict(changed(many, 290, "text", 3.5))
    with pytest.raises(ValueError, match="row 290 lacks both"):
        model.predict(changed(changed(many, 290, "text", None), 290, "image", None))
