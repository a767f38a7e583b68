import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import skops.io
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from cmlearn.fusion import feature_table
from cmlearn.generation import (
    FeatureGAN,
    ModalityImputer,
    NearestPrototype,
    RidgeGenerator,
    generate_features,
)
from cmlearn.persistence import TRUSTED_TYPES


def small(**parameters):
    defaults = {"noise_width": 2, "hidden_units": (16,), "batch_size": 32, "steps": 3}
    return FeatureGAN(**{**defaults, "random_state": 0, **parameters})


def pairs(n=120):
    """Return texts (n, 2) and images (n, 3) that follow from them, apart from noise."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(n, 2))
    image = np.column_stack([text[:, 0], -text[:, 1], text.sum(axis=1)]) * [1, 10, 100] + 5
    return text, image + 0.1 * rng.normal(size=image.shape)


@pytest.fixture(scope="module")
def gan():
    return small(steps=200, learning_rate=3e-3).fit(*pairs())


# --- The critic -----------------------------------------------------------------------------------


def critic_weights(rng, widths=(5, 8, 6, 1)):
    shapes = list(zip(widths[:-1], widths[1:], strict=True))
    kernels = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    return kernels, [rng.normal(size=shape[1:]).astype(np.float32) for shape in shapes]


def scores_in_numpy(features, kernels, biases):
    for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
        features = features @ kernel + bias
        features = np.where(features > 0, features, 0.2 * features)
    return features @ kernels[-1] + biases[-1]


def test_critic_is_the_network_written_out(rng):
    from cmlearn._gan import critic_forward

    kernels, biases = critic_weights(rng)
    x = rng.normal(size=(7, 5)).astype(np.float32)
    scores, gradients = (np.asarray(part) for part in critic_forward(x, kernels, biases))
    np.testing.assert_allclose(scores, scores_in_numpy(x, kernels, biases), rtol=1e-5, atol=1e-5)
    assert gradients.shape == (7, 5)


def test_input_gradient_is_the_finite_difference(rng):
    from cmlearn._gan import critic_forward

    kernels, biases = critic_weights(rng)
    x = rng.normal(size=(7, 5))
    _, gradients = critic_forward(x.astype(np.float32), kernels, biases)
    for k, step in enumerate(1e-6 * np.eye(5)):
        higher, lower = (scores_in_numpy(x + s, kernels, biases) for s in (step, -step))
        expected = (higher - lower)[:, 0] / 2e-6
        np.testing.assert_allclose(np.asarray(gradients)[:, k], expected, rtol=1e-3, atol=1e-3)


def test_input_gradient_is_tensorflows(rng):
    tensorflow = pytest.importorskip("tensorflow")
    from cmlearn._gan import critic_forward

    kernels, biases = critic_weights(rng)
    x = tensorflow.constant(rng.normal(size=(7, 5)).astype(np.float32))
    with tensorflow.GradientTape() as tape:
        tape.watch(x)
        scores, gradients = critic_forward(x, kernels, biases)
    np.testing.assert_allclose(gradients, tape.gradient(scores, x), rtol=1e-5, atol=1e-5)


def critic_training(rng):
    from cmlearn._gan import Critic, CriticTraining

    critic = Critic((8, 6))
    critic.build([(None, 3), (None, 2)])
    critic.set_weights([weight.astype(np.float32) for weight in _interleaved(rng)])
    inputs = {name: rng.normal(size=(7, 3)).astype(np.float32) for name in ("real", "generated")}
    inputs["condition"] = rng.normal(size=(7, 2)).astype(np.float32)
    inputs["mix"] = rng.random((7, 1)).astype(np.float32)
    return CriticTraining(critic, 10.0), inputs


def _interleaved(rng):
    return [weight for layer in zip(*critic_weights(rng), strict=True) for weight in layer]


def critic_loss_in_numpy(weights, inputs, gradient_penalty=10.0):
    kernels, biases = weights[::2], weights[1::2]

    def score(target):
        return scores_in_numpy(np.hstack([target, inputs["condition"]]), kernels, biases)

    between = inputs["mix"] * inputs["real"] + (1 - inputs["mix"]) * inputs["generated"]
    between = between.astype(np.float64)
    steps = 1e-6 * np.eye(3)
    slopes = [(score(between + step) - score(between - step)) / 2e-6 for step in steps]
    length = np.linalg.norm(np.hstack(slopes), axis=1, keepdims=True)
    return score(inputs["generated"]) - score(inputs["real"]) + gradient_penalty * (length - 1) ** 2


def test_critics_loss_is_the_formula(rng):
    training, inputs = critic_training(rng)
    weights = [np.asarray(weight, np.float64) for weight in training.critic.get_weights()]
    expected = critic_loss_in_numpy(weights, inputs)
    np.testing.assert_allclose(np.asarray(training(inputs)), expected, rtol=1e-5, atol=1e-3)


def test_keras_differentiates_the_penalty_by_the_weights(rng):
    """One step of plain gradient descent moves each weight by the finite difference of the loss."""
    import keras

    training, inputs = critic_training(rng)
    before = [np.asarray(weight, np.float64) for weight in training.critic.get_weights()]
    # A long step, so that 32 bits hold the difference of the weights to more digits.
    rate = 1.0
    training.compile(keras.optimizers.SGD(rate), loss=lambda _, losses: losses)
    training.train_on_batch(inputs, np.zeros((7, 1), np.float32))
    after = training.critic.get_weights()
    inputs = {name: np.asarray(values, np.float64) for name, values in inputs.items()}
    for position in range(0, 6, 2):  # each layer's kernel
        gradient = (before[position] - after[position]) / rate
        expected = np.empty_like(gradient)
        for index in np.ndindex(*gradient.shape):
            losses = []
            for sign in (1, -1):
                moved = [weight.copy() for weight in before]
                moved[position][index] += sign * 1e-5
                losses.append(critic_loss_in_numpy(moved, inputs).mean())
            expected[index] = (losses[0] - losses[1]) / 2e-5
        # 32 bits round sums of terms as large as the largest entry.
        size = abs(expected).max()
        np.testing.assert_allclose(gradient / size, expected / size, rtol=1e-3, atol=1e-4)


def test_generators_loss_moves_the_generator_and_never_the_critic(rng):
    from cmlearn._gan import Critic, GeneratorTraining, build_generator

    generator, critic = build_generator(3, 2, 2, (4,)), Critic((8,))
    critic.build([(None, 3), (None, 2)])
    training = GeneratorTraining(generator, critic)
    inputs = {name: rng.normal(size=(5, 2)).astype(np.float32) for name in ("noise", "condition")}
    target = np.asarray(generator(inputs))
    kernels, biases = critic.get_weights()[::2], critic.get_weights()[1::2]
    scores = scores_in_numpy(np.hstack([target, inputs["condition"]]), kernels, biases)
    np.testing.assert_allclose(np.asarray(training(inputs)), -scores, rtol=1e-5, atol=1e-5)
    training.compile("sgd", loss=lambda _, losses: losses)
    training.train_on_batch(inputs, np.zeros((5, 1), np.float32))
    np.testing.assert_array_equal(critic.get_weights()[0], kernels[0])
    assert not np.allclose(np.asarray(generator(inputs)), target)


# --- The GAN --------------------------------------------------------------------------------------


def test_generated_features_follow_the_condition_and_have_the_targets_scale(gan):
    text, image = pairs()
    drawn = gan.sample(text, random_state=0)
    assert drawn.shape == image.shape and drawn.dtype == np.float32
    for k in range(3):
        assert np.corrcoef(drawn[:, k], image[:, k])[0, 1] > 0.9
    np.testing.assert_allclose(drawn.std(axis=0), image.std(axis=0), rtol=0.2)


def test_draws_differ_and_are_those_of_the_seed(gan):
    text, _ = pairs()
    one = gan.sample(text, random_state=0)
    np.testing.assert_array_equal(gan.sample(text, random_state=0), one)
    assert not np.allclose(gan.sample(text, random_state=1), one)
    mean = np.mean([gan.sample(text, random_state=draw) for draw in range(16)], axis=0)
    np.testing.assert_allclose(gan.predict(text), mean, rtol=1e-4, atol=1e-4)


def test_seed_decides_everything_and_the_global_state_nothing():
    import keras

    text, image = pairs()
    expected = small().fit(text, image).predict(text)
    keras.utils.set_random_seed(7)
    np.testing.assert_array_equal(small().fit(text, image).predict(text), expected)


def test_losses_of_every_step_are_kept(gan):
    assert len(gan.history_["critic"]) == len(gan.history_["generator"]) == 200
    assert np.isfinite(gan.history_["critic"]).all()


ON_JAX = """
import jax, keras, numpy as np, pickle
from cmlearn._gan import critic_forward
from test_generation import critic_weights, pairs, small
assert keras.backend.backend() == "jax"
rng = np.random.default_rng(0)
kernels, biases = critic_weights(rng)
x = rng.normal(size=(7, 5)).astype("float32")
expected = jax.grad(lambda x: critic_forward(x, kernels, biases)[0].sum())(x)
np.testing.assert_allclose(critic_forward(x, kernels, biases)[1], expected, rtol=1e-4, atol=1e-5)
text, image = pairs()
model = small(steps=5).fit(text, image)
first = model.predict(text)
assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(text), first)
assert np.array_equal(small(steps=5).fit(text, image).predict(text), first)
assert not np.allclose(small(steps=6).fit(text, image).predict(text), first)
"""


def test_other_backend(root):
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests")])
    command = [sys.executable, "-c", ON_JAX]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_importing_the_module_does_not_load_keras():
    command = (
        "import sys, cmlearn.generation as g; assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", command], check=True)


# --- The baselines --------------------------------------------------------------------------------


def test_ridge_expects_what_scikit_learns_ridge_expects():
    text, image = pairs()
    scaler = StandardScaler().fit(text)
    expected = Ridge(10).fit(scaler.transform(text), image).predict(scaler.transform(text))
    model = RidgeGenerator(alphas=(10.0,)).fit(text, image)
    np.testing.assert_allclose(model.predict(text), expected, rtol=1e-5)
    np.testing.assert_allclose(model.errors_, image - expected, atol=1e-4)


def test_ridge_draws_add_the_errors_of_training_rows():
    text, image = pairs()
    model = RidgeGenerator().fit(text, image)
    added = model.sample(text, random_state=0) - model.predict(text)
    distances = np.abs(added[:, None] - model.errors_).max(axis=2).min(axis=1)
    assert distances.max() < 1e-4
    np.testing.assert_array_equal(model.sample(text, 3), model.sample(text, 3))


def test_a_single_target_column_stays_a_column():
    text, image = pairs()
    assert RidgeGenerator().fit(text, image[:, :1]).sample(text, 0).shape == (120, 1)


def test_nearest_prototype_copies_the_mean_of_the_nearest_class(rng):
    text, image = pairs()
    labels = rng.choice(["cup", "hat", "pen"], 120)
    copied = NearestPrototype().fit(text, image, labels).predict(text[:10])
    means = {label: text[labels == label].mean(axis=0) for label in ("cup", "hat", "pen")}
    for row in range(10):
        cosines = {label: text[row] @ mean / np.linalg.norm(mean) for label, mean in means.items()}
        nearest = max(cosines, key=cosines.get)
        np.testing.assert_allclose(copied[row], image[labels == nearest].mean(axis=0), rtol=1e-5)


# --- Unseen classes, missing modalities -----------------------------------------------------------


def test_a_class_known_by_its_descriptions_is_recognised(rng):
    """Three attributes make eight classes; the last has all three, and no image in training."""
    attributes = rng.integers(0, 2, (400, 3))
    y = attributes @ [4, 2, 1]
    text = attributes + 0.1 * rng.normal(size=(400, 3))
    image = attributes @ rng.normal(size=(3, 12)) + 0.2 * rng.normal(size=(400, 12))
    seen = np.flatnonzero(y < 7)
    generator = RidgeGenerator().fit(text[seen], image[seen])
    described, new = np.split(np.flatnonzero(y == 7), [20])
    made, labels = generate_features(generator, text[described], y[described], random_state=0)
    assert made.shape == (100, 12) and set(labels) == {7}
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit(np.vstack([image[seen], made]), np.concatenate([y[seen], labels]))
    assert classifier.score(image[new], y[new]) > 0.9


def test_descriptions_take_turns_and_predict_stands_in_for_sample():
    text, image = pairs(4)
    model = Ridge().fit(text, image)
    made, labels = generate_features(model, text, ["b", "a", "a", "b"], n_per_class=3)
    assert list(labels) == ["a"] * 3 + ["b"] * 3
    np.testing.assert_allclose(made, model.predict(text[[1, 2, 1, 0, 3, 0]]))
    with pytest.raises(ValueError, match="n_per_class must be a whole .* got 0"):
        generate_features(model, text, ["b", "a", "a", "b"], n_per_class=0)


def holes():
    text, image = pairs()
    texts, images = list(text), list(image)
    images[3] = texts[5] = texts[6] = None
    return feature_table(image=images, text=texts), text, image


def test_missing_cells_are_filled_from_the_other_modality_and_no_cell_is_changed():
    table, text, image = holes()
    table.index = range(1000, 1120)
    full = ModalityImputer(to_text=Ridge()).fit(table).transform(table)
    complete = np.setdiff1d(np.arange(120), [3, 5, 6])
    expected = RidgeGenerator().fit(text[complete], image[complete]).predict(text[[3]])
    np.testing.assert_allclose(full["image"].iloc[3], expected[0], rtol=1e-4)
    expected = Ridge().fit(image[complete], text[complete]).predict(image[[5, 6]])
    np.testing.assert_allclose(np.stack(full["text"].iloc[[5, 6]]), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(
        np.stack(full["text"].iloc[complete]), text[complete].astype("f4")
    )
    assert list(full.index) == list(table.index)
    assert table["text"].isna().sum() == 2


def test_all_images_may_be_missing_after_training():
    table, *_ = holes()
    imputer = ModalityImputer().fit(table)
    blind = table.drop(index=[5, 6]).assign(image=None)
    assert imputer.transform(blind)["image"].map(len).eq(3).all()


def test_tables_that_cannot_be_filled_are_named():
    table, text, image = holes()
    imputer = ModalityImputer().fit(table)
    table.at[3, "text"] = None
    with pytest.raises(ValueError, match="1 of 120 rows have neither .* first row 3"):
        imputer.transform(table)
    alone = feature_table(image=image, text=[None] * 120)
    with pytest.raises(ValueError, match="of 120 rows 120 have an image, 0 a text and 0 both"):
        ModalityImputer().fit(alone)
    sequences = feature_table(image=image, text=np.ones((120, 3, 2)))
    with pytest.raises(ValueError, match="'text' holds sequences.*average each"):
        ModalityImputer().fit(sequences)
    with pytest.raises(ValueError, match=r"'text' has rows of shape \(3,\).*training .*\(2,\)"):
        imputer.transform(feature_table(image=image, text=image))


# --- State and bad input --------------------------------------------------------------------------


def test_pickle_and_skops_keep_what_was_learned(gan):
    table, text, image = holes()
    for model, given in [
        (gan, text),
        (RidgeGenerator().fit(text, image), text),
        (NearestPrototype().fit(text, image), text),
    ]:
        stored = skops.io.dumps(model)
        assert set(skops.io.get_untrusted_types(data=stored)) <= TRUSTED_TYPES
        for loaded in (
            pickle.loads(pickle.dumps(model)),
            skops.io.loads(stored, trusted=sorted(TRUSTED_TYPES)),
        ):
            np.testing.assert_array_equal(loaded.predict(given), model.predict(given))
        assert clone(model).get_params() == model.get_params()
    imputer = ModalityImputer(RidgeGenerator()).fit(table)
    loaded = skops.io.loads(skops.io.dumps(imputer), trusted=sorted(TRUSTED_TYPES))
    np.testing.assert_array_equal(
        np.stack(loaded.transform(table)["image"]), np.stack(imputer.transform(table)["image"])
    )


@pytest.mark.parametrize("model", [small(), RidgeGenerator(), NearestPrototype()])
def test_bad_pairs_are_named(model):
    text, image = pairs()
    with pytest.raises(ValueError, match="X has 120 rows and y has 119"):
        model.fit(text, image[1:])
    with pytest.raises(ValueError, match="at least two pairs; got one"):
        model.fit(text[:1], image[:1])
    image[4, 0] = np.nan
    with pytest.raises(ValueError, match="y holds NaN .* 1 of 120 rows, first in row 4"):
        model.fit(text, image)


def test_other_width_than_in_training(gan):
    text, image = pairs()
    for model in (gan, RidgeGenerator().fit(text, image), NearestPrototype().fit(text, image)):
        with pytest.raises(ValueError, match="X is 3 wide; in training it was 2"):
            model.predict(image)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        ({"noise_width": 1.5}, "noise_width must be .*got 1.5"),
        ({"hidden_units": ()}, "hidden_units needs .* got none"),
        ({"gradient_penalty": -1}, "gradient_penalty must be at least 0; got -1"),
        ({"learning_rate": 0}, "learning_rate must be above 0; got 0"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        small(**parameters).fit(*pairs())
