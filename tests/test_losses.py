"""The losses against NumPy, written out pair by pair."""

import numpy as np
import pytest
from keras_checks import assert_gradients_are_differences, gradients

keras = pytest.importorskip("keras")

from cmlearn.layers import ScaledSimilarity  # noqa: E402
from cmlearn.losses import InfoNCE, SigLIP  # noqa: E402

BATCH = 5
MATCHES = {
    "identity": np.eye(BATCH),
    "several": np.array(
        [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    ),
    "none in a row and a column": np.diag([1, 1, 0, 1, 1]),
}
LOSSES = {
    "InfoNCE": InfoNCE(),
    "InfoNCE, temperature": InfoNCE(temperature=0.3),
    "SigLIP": SigLIP(),
    "SigLIP, temperature and bias": SigLIP(temperature=0.3, bias=-2.0),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_match = pytest.mark.parametrize("matches", MATCHES.values(), ids=MATCHES.keys())


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def similarities(rng):
    return rng.uniform(-1, 1, size=(BATCH, BATCH)).astype(np.float32)


def info_nce(loss, matches, similarity):
    """Return the loss of each row, from the probability that each match gets."""
    rows = []
    for i in range(len(matches)):
        value = 0
        for near, seen in ((matches[i], similarity[i]), (matches[:, i], similarity[:, i])):
            chances = np.exp(seen / loss.temperature) / np.exp(seen / loss.temperature).sum()
            partners = np.flatnonzero(near)
            if len(partners):
                value -= np.mean(np.log(chances[partners])) / 2
        rows.append(value)
    return np.array(rows)


def siglip(loss, matches, similarity):
    """Return the loss of each row, from the chance that each pair is judged right."""
    chance_of_match = 1 / (1 + np.exp(-(similarity / loss.temperature + loss.bias)))
    right = np.where(matches > 0, chance_of_match, 1 - chance_of_match)
    return -np.log(right).sum(axis=1)


def reference(loss, matches, similarity):
    rows = info_nce if isinstance(loss, InfoNCE) else siglip
    return rows(loss, matches, similarity.astype(np.float64))


@each_match
@each_loss
def test_loss_equals_the_formula(name, matches, rng):
    loss, similarity = LOSSES[name], similarities(rng)
    expected = reference(loss, matches, similarity)
    np.testing.assert_allclose(
        numpy(
            loss.call(
                keras.ops.convert_to_tensor(matches, "float32"),
                keras.ops.convert_to_tensor(similarity),
            )
        ),
        expected,
        atol=1e-5,
    )
    assert float(loss(matches, similarity)) == pytest.approx(expected.mean(), abs=1e-5)


@each_match
@each_loss
def test_gradient_equals_finite_differences_of_the_formula(name, matches, rng):
    loss, similarity = LOSSES[name], similarities(rng)
    found = gradients(lambda s: loss(matches, s), [similarity], [])
    assert_gradients_are_differences(
        found, lambda s: reference(loss, matches, s).mean(), [similarity], rng
    )


@pytest.mark.parametrize("loss", [InfoNCE(), SigLIP()], ids=["InfoNCE", "SigLIP"])
def test_gradient_reaches_the_learned_temperature_and_bias(loss, rng):
    image, text = rng.normal(size=(2, BATCH, 3)).astype(np.float32)
    layer = ScaledSimilarity(temperature=0.5, bias=-1.0)
    layer([image, text])

    def of_parameters(log_temperature, bias):
        lengths = np.linalg.norm(image, axis=1)[:, None] * np.linalg.norm(text, axis=1)
        similarity = image @ text.T / lengths / np.exp(log_temperature) + bias
        return reference(loss, np.eye(BATCH), similarity).mean()

    found = gradients(
        lambda *pair: loss(np.eye(BATCH), layer(list(pair))),
        [image, text],
        layer.trainable_variables,
    )
    assert_gradients_are_differences(found[2:], of_parameters, [np.log(0.5), -1.0], rng)


@each_match
@each_loss
def test_permuting_the_pairs_permutes_the_rows(name, matches, rng):
    loss, similarity, order = LOSSES[name], similarities(rng), rng.permutation(BATCH)
    loss = type(loss).from_config({**loss.get_config(), "reduction": "none"})
    rows = numpy(loss(matches, similarity))
    permuted = numpy(loss(matches[order][:, order], similarity[order][:, order]))
    np.testing.assert_allclose(permuted, rows[order], atol=1e-6)


@each_loss
def test_sample_weights_count_rows(name, rng):
    loss, similarity = LOSSES[name], similarities(rng)
    rows = reference(loss, np.eye(BATCH), similarity)
    weights = np.array([1, 0, 2, 0.5, 1])
    found = float(loss(np.eye(BATCH), similarity, sample_weight=weights))
    assert found == pytest.approx((rows * weights).mean(), abs=1e-5)


def test_info_nce_of_a_guess_is_the_logarithm_of_the_batch():
    assert float(InfoNCE()(np.eye(8), np.zeros((8, 8)))) == pytest.approx(np.log(8))


@each_loss
def test_extreme_similarities_stay_finite(name):
    loss = LOSSES[name]
    similarity = np.where(np.eye(BATCH), -1e4, 1e4).astype(np.float32)
    assert np.isfinite(float(loss(np.eye(BATCH), similarity)))
    assert float(loss(np.eye(BATCH), -similarity)) == pytest.approx(0, abs=1e-5)
    (gradient,) = gradients(lambda s: loss(np.eye(BATCH), s), [similarity], [])
    assert np.isfinite(gradient).all()


@each_loss
def test_loss_made_from_its_configuration_is_the_same(name, rng):
    loss, similarity = LOSSES[name], similarities(rng)
    twin = keras.losses.deserialize(keras.losses.serialize(loss))
    assert twin.get_config() == loss.get_config()
    assert float(twin(np.eye(BATCH), similarity)) == float(loss(np.eye(BATCH), similarity))


def test_a_saved_network_keeps_its_loss(tmp_path, rng):
    pairs = list(rng.normal(size=(2, BATCH, 3)).astype(np.float32))
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, ScaledSimilarity(bias=-10.0)(inputs))
    model.compile("sgd", SigLIP())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    before, after = (m.evaluate(pairs, np.eye(BATCH), verbose=0) for m in (model, loaded))
    assert before == after


@pytest.mark.parametrize("loss", [InfoNCE(), SigLIP()], ids=["InfoNCE", "SigLIP"])
def test_training_with_it_brings_pairs_together(loss, rng):
    image = rng.normal(size=(16, 8)).astype(np.float32)
    text = image[:, ::-1].copy()
    inputs = [keras.Input((8,)), keras.Input((8,))]
    towers = [
        keras.layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(seed))(x)
        for seed, x in enumerate(inputs)
    ]
    model = keras.Model(inputs, ScaledSimilarity(temperature=0.1, bias=-3.0)(towers))
    model.compile(keras.optimizers.Adam(0.05), loss)
    for _ in range(80):
        model.train_on_batch([image, text], np.eye(16))
    found = numpy(model([image, text])).argmax(axis=1)
    assert np.mean(found == np.arange(16)) > 0.9


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [InfoNCE, SigLIP])
def test_similarities_of_unequal_batches_are_refused(make):
    with pytest.raises(ValueError, match=r"y_pred must hold .*got the shape \(4, 3\)"):
        make()(np.eye(4), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"y_pred must hold .*got the shape \(4,\)"):
        make()(np.eye(4), np.zeros(4))


@pytest.mark.parametrize("make", [InfoNCE, SigLIP])
@pytest.mark.parametrize("y_true", [np.eye(3), np.arange(4), np.ones((4, 1))])
def test_matches_of_another_shape_are_refused(make, y_true):
    with pytest.raises(ValueError, match=r"y_true must say .*beside \(4, 4\)"):
        make()(y_true, np.zeros((4, 4)))


@pytest.mark.parametrize("make", [InfoNCE, SigLIP])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_above_zero(make, temperature):
    with pytest.raises(ValueError, match="temperature must be above 0; got"):
        make(temperature=temperature)
