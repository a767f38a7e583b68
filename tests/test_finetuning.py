"""Fine-tuning: losses and helpers against NumPy, and a small network that learns from both."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from keras_checks import other_backends, run_under
from scipy.special import log_softmax, logsumexp
from sklearn.base import clone
from small_networks import first_blocks_only

from cmlearn import finetuning
from cmlearn._checkpoints import CheckpointError
from cmlearn.finetuning import (
    FineTunedCNN,
    coarse_to_fine,
    family_probabilities,
    load_pixels,
    smoothed_cross_entropy,
)
from cmlearn.image import ImageError
from cmlearn.persistence import load_model, save_model

keras = pytest.importorskip("keras")

SIZE = 32
FAMILIES = [0, 1, 0, 1]
NAMES = np.array(["apple", "leek", "pear", "yam"])
# Four colours, which a pretrained network tells apart at once.
COLOURS = {
    "apple": (200, 30, 30),
    "leek": (30, 160, 30),
    "pear": (190, 190, 40),
    "yam": (60, 40, 150),
}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    labels = np.repeat(NAMES, 6)
    pixels = rng.integers(0, 50, (len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    pixels += np.array([COLOURS[name] for name in labels], dtype=np.uint8)[:, None, None]
    return pixels, labels


@pytest.fixture(scope="module")
def teachers():
    return np.random.default_rng(1).normal(size=(4, 7))


SMALL = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-4, "random_state": 0}


@pytest.fixture
def first_blocks(monkeypatch):
    monkeypatch.setattr(finetuning, "_HEAD_EPOCHS", 3)
    with first_blocks_only():
        yield


@pytest.fixture(scope="module")
def taught(images, teachers):
    classifier = FineTunedCNN(
        families=FAMILIES, family_weight=0.5, teachers=teachers, teacher_weight=0.5,
        drop_path=0.2, **SMALL,
    )  # fmt: skip
    return classifier.fit(*images)


# The classifier


def test_it_learns_and_answers_with_the_labels(taught, images):
    pixels, labels = images
    assert taught.classes_.tolist() == NAMES.tolist()
    probabilities = taught.predict_proba(pixels)
    assert probabilities.shape == (24, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.mean(taught.predict(pixels) == labels) > 0.6  # chance is 0.25
    assert len(taught.history_["loss"]) == 3


def test_images_are_placed_nearest_to_their_own_teacher(taught, images, teachers):
    pixels, labels = images
    found = taught.similarities(pixels, teachers)
    assert np.abs(found).max() <= 1 + 1e-5
    assert np.mean(NAMES[found.argmax(axis=1)] == labels) > 0.6  # chance is 0.25
    # A cosine: the length of a code does not count, and its opposite has the opposite sign.
    other = taught.similarities(pixels, -3 * teachers)
    np.testing.assert_allclose(other, -found, atol=1e-5)


def test_the_answer_to_an_image_does_not_depend_on_the_others(taught, images):
    pixels, _ = images
    alone = np.vstack([taught.predict_proba(pixels[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, taught.predict_proba(pixels)[:3], atol=1e-4)


def test_it_answers_as_before_saving(taught, images, tmp_path):
    pixels, _ = images
    save_model(taught, tmp_path)
    again = load_model(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(pixels), taught.predict_proba(pixels))


def test_it_can_be_pickled_and_cloned(taught, images):
    pixels, _ = images
    again = pickle.loads(pickle.dumps(taught))
    np.testing.assert_array_equal(again.predict_proba(pixels), taught.predict_proba(pixels))
    assert not hasattr(clone(taught), "classes_")


def test_the_network_moves_but_not_its_statistics(taught):
    trained = taught._keras_model().get_layer("efficientnet_lite0")
    pretrained = finetuning._trainable_backbone("lite0", SIZE, 0.0)
    for layer in pretrained.layers:
        before, after = layer.get_weights(), trained.get_layer(layer.name).get_weights()
        same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        if isinstance(layer, keras.layers.BatchNormalization):
            assert same, layer.name
        elif before:
            assert not same, layer.name


def test_an_interrupted_training_ends_with_the_same_weights(
    images, tmp_path, monkeypatch, first_blocks
):
    straight = FineTunedCNN(**SMALL).fit(*images)
    from cmlearn._checkpoints import Checkpoint

    write = Checkpoint._write

    def write_and_die(self, model, epoch, stopping):
        write(self, model, epoch, stopping)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "_write", write_and_die)
        FineTunedCNN(checkpoint=tmp_path, **SMALL).fit(*images)
    resumed = FineTunedCNN(checkpoint=tmp_path, **SMALL).fit(*images)
    np.testing.assert_allclose(resumed.history_["loss"], straight.history_["loss"], rtol=1e-4)
    for one, other in zip(resumed.weights_, straight.weights_, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    changed = FineTunedCNN(checkpoint=tmp_path, **SMALL | {"batch_size": 12})
    with pytest.raises(CheckpointError, match="batch_size"):
        changed.fit(*images)


def test_each_distortion_leaves_the_middle_grey_image_alone():
    grey = np.full((3, SIZE, SIZE, 3), 128, np.float32)
    for layer in finetuning._distortions(0.1)[:4]:
        np.testing.assert_allclose(layer(grey, training=True), grey, atol=1e-3)
    assert finetuning._distortions(0.0) == []


def test_images_are_distorted_in_training_only(images):
    pixels = images[0].astype(np.float32)
    network = keras.Sequential(finetuning._distortions(0.2))
    np.testing.assert_array_equal(network(pixels, training=False), pixels)
    assert np.abs(np.asarray(network(pixels, training=True)) - pixels).max() > 10


# Losses and layers against NumPy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_smoothed_cross_entropy_is_equal_to_the_formula(rng, smoothing):
    scores, labels = rng.normal(size=(5, 4)).astype(np.float32), np.array([0, 3, 1, 1, 2])
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    expected = -(target * log_softmax(scores, axis=1)).sum(axis=1)
    found = smoothed_cross_entropy(smoothing)(labels, keras.ops.convert_to_tensor(scores))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)


def test_scores_of_families_are_equal_to_the_logarithms_of_their_summed_probabilities(rng):
    from cmlearn._finetuning_layers import FamilyScores

    scores = rng.normal(size=(5, 4)).astype(np.float32)
    found = np.asarray(FamilyScores([1, 0, 1, 1])(scores))
    expected = np.column_stack([scores[:, 1], logsumexp(scores[:, [0, 2, 3]], axis=1)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_residual_is_left_out_for_whole_images_and_only_in_training():
    from cmlearn._finetuning_layers import ResidualSum

    residual, shortcut = np.ones((400, 2, 2, 3), np.float32), np.zeros((400, 2, 2, 3), np.float32)
    layer = ResidualSum(0.25)
    np.testing.assert_array_equal(layer([residual, shortcut], training=False), residual)
    trained = np.asarray(layer([residual, shortcut], training=True))
    by_image = trained.reshape(400, -1)
    assert np.all(by_image == by_image[:, :1])
    assert set(np.unique(by_image.round(4))) == {0.0, np.float32(1 / 0.75).round(4)}
    assert 0.15 < np.mean(by_image[:, 0] == 0) < 0.35


def test_stochastic_depth_rises_over_the_blocks():
    from cmlearn._finetuning_layers import ResidualSum

    backbone = finetuning._trainable_backbone("lite0", SIZE, 0.3)
    rates = [layer.rate for layer in backbone.layers if isinstance(layer, ResidualSum)]
    assert rates[-1] == pytest.approx(0.3)
    assert rates == sorted(rates) and len(rates) > 5
    np.testing.assert_allclose(np.diff(rates), 0.3 / len(rates))


def test_the_cloned_network_computes_what_the_pretrained_one_does(images):
    from cmlearn.efficientnet import EfficientNetLite

    pixels = images[0][:2].astype(np.float32)
    expected = EfficientNetLite(image_size=SIZE)(pixels)
    found = finetuning._trainable_backbone("lite0", SIZE, 0.3)(pixels, training=False)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-3)


def test_the_loss_of_a_step_is_equal_to_the_formula(images, teachers, first_blocks):
    pixels, labels = images[0][::3], images[1][::3]
    classifier = FineTunedCNN(
        families=FAMILIES, family_weight=0.3, teachers=teachers, teacher_weight=0.7,
        label_smoothing=0.2, temperature=0.5, augmentation=0.0, dropout=0.0,
    )  # fmt: skip
    codes = classifier._encode_labels(labels)
    network, backbone = classifier._build(SIZE)
    classifier._compile(network, n_steps=10)
    features = np.asarray(backbone(pixels, training=False))
    heads = network.get_layer("heads")
    weight, bias = heads.get_layer("scores").get_weights()
    log_p = log_softmax(features @ weight + bias, axis=1)
    smoothed = 0.8 * np.eye(4)[codes] + 0.2 / 4
    same_family = np.equal.outer(np.array(FAMILIES)[codes], FAMILIES)
    placed = features @ heads.get_layer("place").get_weights()[0]
    cosines = (placed / np.linalg.norm(placed, axis=1, keepdims=True)) @ (
        teachers / np.linalg.norm(teachers, axis=1, keepdims=True)
    ).T
    expected = (
        -(smoothed * log_p).sum(axis=1)
        - 0.3 * logsumexp(np.where(same_family, log_p, -np.inf), axis=1)
        - 0.7 * log_softmax(cosines / 0.5, axis=1)[np.arange(len(codes)), codes]
    )
    found = network.train_on_batch(pixels, classifier._targets(codes), return_dict=True)
    assert found["loss"] == pytest.approx(expected.mean(), rel=1e-4)


@pytest.mark.parametrize("backend", other_backends())
def test_losses_and_a_step_hold_under_another_backend(backend):
    run_under(backend, __file__)


COMPILED = """
import keras
import numpy as np
from cmlearn.finetuning import _distortions

network = keras.Sequential([keras.Input((8, 8, 3)), *_distortions(0.3)])
network.compile(loss="mse")  # compiled where Keras sees no layer that forbids it
assert network.jit_compile
pixels = np.full((4, 8, 8, 3), 100.0)
moved = np.asarray(network(pixels, training=True))
assert moved.shape == pixels.shape and np.isfinite(moved).all()
assert network.evaluate(pixels, pixels, verbose=0) == 0  # nothing is distorted in evaluation
"""


def test_a_network_that_distorts_its_images_is_compiled_on_jax():
    pytest.importorskip("jax")
    result = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]


# Helpers


def test_coarse_to_fine_differs_from_the_best_class_only_where_the_family_says_so(rng):
    probabilities = rng.dirichlet(np.ones(6), size=200)
    families = [0, 0, 1, 1, 2, 2]
    sums = family_probabilities(probabilities, families)
    np.testing.assert_allclose(sums, probabilities.reshape(200, 3, 2).sum(axis=2))
    chosen = coarse_to_fine(probabilities, families)
    assert np.array_equal(np.asarray(families)[chosen], sums.argmax(axis=1))
    agree = np.asarray(families)[probabilities.argmax(axis=1)] == sums.argmax(axis=1)
    assert 0 < agree.sum() < 200
    assert np.array_equal(chosen[agree], probabilities.argmax(axis=1)[agree])


def test_views_are_the_image_its_mirror_and_both_enlarged():
    pixels = np.zeros((1, 40, 40, 3), np.uint8)
    pixels[0, 18:22, 10:12] = 255  # left of the middle
    plain, mirrored, near, near_mirrored = finetuning.augmented_views(pixels, zoom=1.25)
    np.testing.assert_array_equal(plain, pixels)
    np.testing.assert_array_equal(mirrored[:, :, ::-1], pixels)
    np.testing.assert_array_equal(near_mirrored, near[:, :, ::-1])
    columns = np.average(np.arange(40), weights=near[0].sum(axis=(0, 2)))
    assert columns == pytest.approx(19.5 - 1.25 * (19.5 - 10.5), abs=0.3)


def test_pixels_are_the_middle_square(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    found = load_pixels([wide, wide.transpose(1, 0, 2)], 20)
    assert found.dtype == np.uint8 and np.all(found == 200)
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"row 1: .*no\.png"):
        load_pixels([wide, tmp_path / "no.png"], 20)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": [0, 1]}, r"families has the shape \(2,\), but y holds 4 classes"),
        ({"teachers": np.ones((3, 5))}, r"teachers has the shape \(3, 5\), but y holds 4"),
        ({"teachers": np.zeros((4, 5))}, "teachers holds a row that is zero"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"variant": "lite9"}, "lite9"),
    ],
)
def test_parameters_out_of_range_are_named(images, change, message):
    with pytest.raises(ValueError, match=message):
        FineTunedCNN(**SMALL | change).fit(*images)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((8, 32, 32, 3)), np.zeros((8, 32, 30, 3), np.uint8), np.zeros((8, 32, 32), np.uint8)],
)
def test_other_arrays_than_square_images_are_refused(pixels):
    with pytest.raises(ValueError, match="expected uint8 of shape .* as load_pixels makes them"):
        FineTunedCNN().fit(pixels, np.arange(8) % 2)


def test_similarities_need_teachers_of_the_same_width(taught, images):
    with pytest.raises(ValueError, match=r"expected \(n, 7\)"):
        taught.similarities(images[0], np.ones((2, 5)))
    without = clone(taught).set_params(teachers=None)
    without.classes_, without.weights_ = taught.classes_, taught.weights_
    with pytest.raises(ValueError, match="trained without teachers"):
        without.similarities(images[0], np.ones((2, 7)))
