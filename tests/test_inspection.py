"""Explanations against finite differences, formulas written out, and shap."""

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras_checks import other_backends, run_under
from scipy.stats import spearmanr

from cmlearn.efficientnet import EfficientNetLite
from cmlearn.inspection import (
    deletion_insertion,
    grad_cam,
    input_gradients,
    integrated_gradients,
    modality_shapley,
    modality_share,
    occlude_patches,
    occlude_words,
    randomize_weights,
    rank_correlation,
    shapley_pair,
)

SIZE, CHANNELS, CLASSES, WIDTH = 8, 3, 4, 5


@pytest.fixture(scope="module")
def model():
    """A small CNN beside word vectors, with a smooth head; one position is a shortcut."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    pixels, words = keras.Input((SIZE, SIZE, 3)), keras.Input((3, WIDTH))
    x = layers.Rescaling(1 / 64, offset=-2)(pixels)
    first = layers.Conv2D(CHANNELS, 3, padding="same", activation="relu", name="first")(x)
    last = layers.Conv2D(CHANNELS, 3, padding="same", activation="relu", name="last")(first)
    pooled = layers.GlobalAveragePooling2D(name="pooled")(layers.Add()([first, last]))
    both = layers.Concatenate()([pooled, keras.ops.sum(words, axis=1)])
    hidden = layers.Dense(6, activation="tanh", name="hidden")(both)
    return keras.Model([pixels, words], layers.Dense(CLASSES, name="scores")(hidden))


@pytest.fixture
def inputs(rng):
    pixels = rng.uniform(0, 255, size=(3, SIZE, SIZE, 3)).astype(np.float32)
    return [pixels, rng.normal(size=(3, 3, WIDTH)).astype(np.float32)]


def own(scores, target):
    return np.asarray(scores, float)[np.arange(len(scores)), target]


def head(model, pooled, words):
    """The last two layers, written out in float64; ``pooled`` (n, channels)."""
    hidden, scores = (
        [np.asarray(keras.ops.convert_to_numpy(w), float) for w in model.get_layer(name).weights]
        for name in ("hidden", "scores")
    )
    both = np.concatenate([pooled, words.sum(axis=1)], axis=1)
    return np.tanh(both @ hidden[0] + hidden[1]) @ scores[0] + scores[1]


TARGET = np.array([0, 3, 1])


# --- By gradients --------------------------------------------------------------------------------


def test_input_gradients_equal_differences(model, inputs, rng):
    pixels, words = inputs
    of_pixels, of_words = input_gradients(model, inputs, TARGET, batch_size=2)
    front = keras.Model(model.inputs, model.get_layer("pooled").output)
    pooled = np.asarray(keras.ops.convert_to_numpy(front(inputs)), float)
    for _ in range(3):
        step = 1e-5 * rng.normal(size=words.shape)
        ends = [own(head(model, pooled, words + sign * step), TARGET) for sign in (1, -1)]
        slopes = np.sum(of_words * step, axis=(1, 2))
        np.testing.assert_allclose(slopes, (ends[0] - ends[1]) / 2, rtol=1e-3, atol=1e-10)
    # Single precision and kinks: a step of a hundredth of a grey level in every direction.
    for _ in range(3):
        step = rng.normal(size=pixels.shape).astype(np.float32) / 20
        ends = [
            own(keras.ops.convert_to_numpy(model([pixels + sign * step, words])), TARGET)
            for sign in (1, -1)
        ]
        slopes = np.sum(of_pixels * step, axis=(1, 2, 3))
        np.testing.assert_allclose(slopes, (ends[0] - ends[1]) / 2, rtol=0.05, atol=2e-4)


def test_grad_cam_equals_the_formula_with_weights_by_differences(model, inputs):
    pixels, words = inputs
    arrays = [keras.ops.convert_to_numpy(x) for x in keras.Model(
        model.inputs, [model.get_layer(name).output for name in ("first", "last")]
    )(inputs)]  # fmt: skip
    first, last = (np.asarray(x, float) for x in arrays)
    pooled = (first + last).mean(axis=(1, 2))
    expected = np.zeros(last.shape[:3])
    for channel in range(CHANNELS):
        step = 1e-5 * (np.arange(CHANNELS) == channel)
        ends = [own(head(model, pooled + sign * step, words), TARGET) for sign in (1, -1)]
        # Raising the whole map by e raises the pooled channel by e: the sum of all gradients.
        alpha = (ends[0] - ends[1]) / 2e-5 / SIZE**2
        expected += alpha[:, None, None] * last[..., channel]
    found = grad_cam(model, inputs, TARGET, layer="last", batch_size=2)
    assert found.dtype == np.float32 and found.max() > 0
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-3, atol=1e-7)


def test_grad_cam_of_a_shortcut_counts_both_ways(model, inputs):
    """``first`` reaches the end through ``last`` and past it; both gradients must be there."""
    pixels, _ = inputs
    front = keras.Model(model.inputs, model.get_layer("first").output)
    back = keras.Model([front.outputs[0], *model.inputs], model.outputs[0])
    features = keras.ops.convert_to_numpy(front(inputs))
    first, *rest = [keras.ops.convert_to_tensor(x) for x in (features, *inputs)]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(back([first, *rest])),
        keras.ops.convert_to_numpy(model(inputs)),
        atol=1e-5,
    )
    alphas = []
    for channel in range(CHANNELS):
        step = np.float32(0.02) * (np.arange(CHANNELS) == channel)
        moved = [np.float32(features + sign * step) for sign in (1, -1)]
        ends = [
            own(keras.ops.convert_to_numpy(back([keras.ops.convert_to_tensor(x), *rest])), TARGET)
            for x in moved
        ]
        alphas.append((ends[0] - ends[1]) / 0.04 / SIZE**2)
    expected = np.maximum(np.einsum("cn,nhwc->nhw", alphas, features), 0)
    found = grad_cam(model, inputs, TARGET, layer="first")
    np.testing.assert_allclose(found, expected, atol=0.05 * expected.max())


def test_grad_cam_of_an_averaged_map_is_the_map_itself(rng):
    """EfficientNet up to a block: the "score" of class k is the mean of feature map k."""
    network = EfficientNetLite(layer="block2", fold_batch_norm=False, image_size=32)
    images = rng.uniform(0, 255, size=(2, 32, 32, 3))
    layer = network.layers[-2].name
    maps = keras.ops.convert_to_numpy(
        keras.Model(network.inputs, network.layers[-2].output)(images)
    )
    found = grad_cam(network, images, [5, 7], layer=layer)
    assert found.shape == (2, 32, 32)
    expected = [
        np.maximum(maps[row, ..., k], 0) / maps[0, ..., 0].size for row, k in ((0, 5), (1, 7))
    ]
    larger = keras.ops.image.resize(np.array(expected)[..., None], (32, 32))
    np.testing.assert_allclose(
        found, keras.ops.convert_to_numpy(larger)[..., 0], rtol=1e-3, atol=1e-6
    )


def test_integrated_gradients_sum_equals_the_difference(model, inputs):
    assert_complete(model, inputs, baseline=255)


def test_integrated_gradients_from_black_are_complete(model, inputs):
    assert_complete(model, inputs, baseline=0)


def assert_complete(model, inputs, baseline):
    pixels, words = inputs
    of_pixels, of_words = integrated_gradients(
        model, inputs, TARGET, baseline=[baseline, 0], n_steps=64
    )
    start = [np.full_like(pixels, baseline), np.zeros_like(words)]
    ends = [own(keras.ops.convert_to_numpy(model(x)), TARGET) for x in (inputs, start)]
    assert np.abs(ends[0] - ends[1]).min() > 0.05
    np.testing.assert_allclose(
        of_pixels.sum(axis=(1, 2, 3)) + of_words.sum(axis=(1, 2)), ends[0] - ends[1], atol=1e-2
    )


def test_integrated_gradients_equal_the_integral_of_a_product():
    """Of x y from (a, b): the integral is (x - a) (y + b) / 2 for x, and so for y."""
    x, start = np.array([[3.0, 5.0, 7.0]]), np.array([1.0, -2.0, 0.5])

    def product(tensor):
        return tensor[:, :1] * tensor[:, 1:2]

    found = integrated_gradients(product, x, 0, baseline=start, n_steps=4)
    np.testing.assert_allclose(found, [[2 * 3 / 2, 7 * 4 / 2, 0]], rtol=1e-6)


def test_batches_change_nothing(model, inputs):
    whole = integrated_gradients(model, inputs, TARGET, baseline=[255, 0], n_steps=4)
    for row in range(3):
        alone = integrated_gradients(
            model, [x[row : row + 1] for x in inputs], TARGET[row], baseline=[255, 0], n_steps=4
        )
        for one, other in zip(whole, alone, strict=True):
            np.testing.assert_allclose(one[row], other[0], rtol=1e-3, atol=1e-5)


# --- By asking again -----------------------------------------------------------------------------


@pytest.fixture
def linear(rng):
    """A model whose score is a weighted sum of pixels: each part of it is known."""
    weights = rng.normal(size=(SIZE, SIZE, 3, CLASSES))
    return weights, lambda images: np.einsum("nhwc,hwck->nk", np.asarray(images, float), weights)


@pytest.mark.parametrize("stride", [4, 2, 3])
def test_occluded_patches_equal_the_parts_of_a_sum(linear, inputs, stride):
    weights, predict = linear
    images, fill = inputs[0], np.array([255, 0, 10])
    parts = ((images - fill) * np.moveaxis(weights[..., TARGET], -1, 0)).sum(axis=-1)
    expected, counts = np.zeros(parts.shape), np.zeros(parts.shape[1:])
    starts = [s for s in range(0, SIZE - 4, stride)] + [SIZE - 4]
    for top in starts:
        for left in starts:
            window = np.s_[:, top : top + 4, left : left + 4]
            expected[window] += parts[window].sum(axis=(1, 2), keepdims=True)
            counts[window[1:]] += 1
    found = occlude_patches(predict, images, TARGET, patch_size=4, stride=stride, fill=fill)
    np.testing.assert_allclose(found, expected / counts, rtol=1e-4)
    if stride == 4:
        np.testing.assert_allclose(found.sum(axis=(1, 2)) / 16, parts.sum(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (300, "fill has values from 300 to 300; pixels go from 0 to 255"),
        ([0, -1, 0], "fill has values from -1 to 0"),
        (float("nan"), "fill has values from nan"),
        (127.5, r"whole numbers that uint8 can hold.*got 127\.5: change fill"),
    ],
)
def test_what_covers_pixels_must_be_pixels(inputs, fill, message):
    images = inputs[0].astype(np.uint8)
    maps = np.zeros(images.shape[:3])
    with pytest.raises(ValueError, match=message):
        occlude_patches(lambda batch: batch, images, 0, patch_size=4, fill=fill)
    with pytest.raises(ValueError, match=message):
        deletion_insertion(lambda batch: batch, images, maps, 0, fill=fill)


def test_what_covers_small_whole_numbers_must_be_one_of_them(inputs):
    images = np.zeros((2, SIZE, SIZE, 3), np.int8)
    with pytest.raises(ValueError, match=r"whole numbers that int8 can hold.*got 200: change"):
        occlude_patches(lambda batch: batch, images, 0, patch_size=4, fill=[100, 200, 100])


def test_fractions_cover_images_of_real_numbers(inputs):
    seen = []

    def predict(batch):
        seen.append(batch)
        return np.zeros((3, CLASSES))

    occlude_patches(predict, inputs[0].astype(np.float32), 0, patch_size=SIZE, fill=127.5)
    assert (seen[1] == 127.5).all()


def test_occlusion_leaves_the_images_and_their_order(inputs):
    images, seen = inputs[0].astype(np.uint8), []

    def predict(batch):
        assert len(batch) == 3 and batch.dtype == np.uint8
        seen.append(batch)
        return np.zeros((3, CLASSES))

    before = images.copy()
    occlude_patches(predict, images, 0, patch_size=SIZE)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(seen[0], images)
    assert (seen[1] == 255).all() and len(seen) == 2


def test_occluded_words_equal_the_weights_of_a_sum():
    weight = {"red": 2.0, "apple": 5.0, "a": -1.0}
    texts = ["red  apple", "a red red apple", "", " pie "]

    def predict(batch):
        assert len(batch) == len(texts)
        return np.array([[0.0, sum(weight.get(word, 0) for word in t.split())] for t in batch])

    found = occlude_words(predict, texts, 1)
    assert [falls.tolist() for falls in found] == [[2, 5], [-1, 2, 2, 5], [], [0]]


def test_words_are_taken_out_with_their_blanks():
    seen = []

    def predict(batch):
        seen.append(batch)
        return np.zeros((1, 1))

    occlude_words(predict, ["one  two three"], 0)
    assert seen == [["one  two three"], ["two three"], ["one three"], ["one  two"]]


# --- Shares of the modalities --------------------------------------------------------------------


worth = st.floats(-1e3, 1e3)


@given(worth, worth, worth, worth)
def test_shapley_pair_equals_the_mean_over_both_orders(nothing, image, text, both):
    found = shapley_pair(nothing, image, text, both)
    orders = [
        {"image": image - nothing, "text": both - image},
        {"text": text - nothing, "image": both - text},
    ]
    for name in ("image", "text"):
        assert getattr(found, name) == pytest.approx(
            np.mean([order[name] for order in orders]), abs=1e-9
        )
    assert found.image + found.text == pytest.approx(both - nothing, abs=1e-9)
    assert found.interaction == pytest.approx(both - image - text + nothing, abs=1e-9)


@pytest.fixture
def pairs(rng):
    """Pairs of vectors, and a model with an interaction of both."""
    table = pd.DataFrame(
        {"image": list(rng.normal(size=(30, 4))), "text": list(rng.normal(size=(30, 2)))}
    )
    of_image, of_text = rng.normal(size=(4, 3)), rng.normal(size=(2, 3))

    def predict(rows):
        image, text = np.stack(rows["image"]) @ of_image, np.stack(rows["text"]) @ of_text
        scores = np.exp(image + text + image * text)
        return scores / scores.sum(axis=1, keepdims=True)

    return table, predict


def test_the_share_of_what_is_missing_is_missing():
    values = pd.DataFrame({"image": [0.1, np.nan, 0.0, -0.2], "text": [-0.3, 0.1, 0.0, 0.0]})
    np.testing.assert_array_equal(modality_share(values), [0.25, np.nan, 0.5, 1])


def test_modality_shapley_is_that_of_the_exact_explainer_of_shap(pairs, rng):
    shap = pytest.importorskip("shap")
    table, predict = pairs
    X, background = table[:10], table[10:]
    target = rng.integers(3, size=10)

    def of_rows(numbers):
        """Two features: the row that the image is taken from, and the one of the text."""
        image, text = numbers.astype(int).T
        cells = {"image": table["image"].array[image], "text": table["text"].array[text]}
        return predict(pd.DataFrame(cells))

    usual = np.tile(np.arange(10.0, 30)[:, None], 2)
    explainer = shap.explainers.Exact(of_rows, shap.maskers.Independent(usual, max_samples=20))
    theirs = explainer(np.tile(np.arange(10.0)[:, None], 2))
    ours = modality_shapley(predict, X, target, background=background)
    expected = theirs.values[np.arange(10), :, target]
    np.testing.assert_allclose(ours[["image", "text"]], expected, atol=1e-12)
    np.testing.assert_allclose(ours["nothing"], theirs.base_values[np.arange(10), target])


def test_modality_shapley_sums_exactly_and_keeps_the_index(pairs):
    table, predict = pairs
    X = table[:7].set_axis(list("abcdefg"))
    found = modality_shapley(predict, X, 2, background=table[20:])
    assert list(found.index) == list("abcdefg")
    np.testing.assert_allclose(
        found["image"] + found["text"], found["both"] - found["nothing"], atol=1e-14
    )
    np.testing.assert_allclose(found["both"], predict(X)[:, 2])
    np.testing.assert_allclose(found["nothing"], predict(table[20:])[:, 2].mean())
    alone = [np.mean([predict(table[20:].assign(image=[cell] * 10))[:, 2]]) for cell in X["image"]]
    np.testing.assert_allclose(found["image alone"], alone)


def test_a_modality_that_does_not_count_has_nothing(pairs):
    table, _ = pairs

    def by_text(rows):
        return np.stack(rows["text"])

    found = modality_shapley(by_text, table[:5], 0, background=table[5:])
    np.testing.assert_allclose(found[["image", "interaction"]], 0, atol=1e-15)
    np.testing.assert_allclose(modality_share(found), 0, atol=1e-12)


def test_of_an_exclusive_or_each_has_one_half():
    bits = pd.DataFrame({"image": [0, 0, 1, 1], "text": [0, 1, 0, 1]})

    def predict(rows):
        return np.stack([rows["image"] == rows["text"], rows["image"] != rows["text"]], 1) * 1.0

    found = modality_shapley(predict, bits, [0, 1, 1, 0], background=bits)
    np.testing.assert_allclose(found[["image", "text"]], 0.25)
    np.testing.assert_allclose(found["interaction"], 0.5)
    np.testing.assert_allclose(found[["nothing", "image alone", "text alone"]], 0.5)


# --- Is the map worth anything? ------------------------------------------------------------------


def kernels(model):
    return {
        weight.path.split("/")[-2]: keras.ops.convert_to_numpy(weight)
        for weight in model.weights
        if weight.name == "kernel"
    }


def test_weights_change_places_from_the_end(model, inputs):
    before, biases = kernels(model), model.get_layer("hidden").get_weights()[1]
    other = randomize_weights(model, n_layers=2, random_state=0)
    after = kernels(other)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"hidden", "scores"}
    for name in before:
        np.testing.assert_array_equal(np.sort(before[name].ravel()), np.sort(after[name].ravel()))
        np.testing.assert_array_equal(before[name], kernels(model)[name])
    np.testing.assert_array_equal(other.get_layer("hidden").get_weights()[1], biases)
    everything = kernels(randomize_weights(model, random_state=0))
    assert not any(np.array_equal(before[name], everything[name]) for name in before)


def test_layers_with_several_kernels_forget_them_all():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.SeparableConv2D(4, 3, name="apart"),
            layers.Reshape((16, 4)),
            layers.GRU(5, name="recurrent"),
            layers.Dense(2, name="scores"),
        ]
    )

    def changed(n_layers):
        other = randomize_weights(model, n_layers=n_layers, random_state=0)
        both = zip(model.weights, other.weights, strict=True)
        ops = keras.ops
        return {
            weight.path.split("/")[-1]
            for weight, new in both
            if not np.array_equal(ops.convert_to_numpy(weight), ops.convert_to_numpy(new))
        }

    assert changed(1) == {"kernel"}
    assert changed(2) == {"kernel", "recurrent_kernel"}
    assert changed(None) == {"kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel"}


def test_weights_by_seed(model):
    one, same, other = (kernels(randomize_weights(model, random_state=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one["last"], same["last"])
    assert not np.array_equal(one["last"], other["last"])


def test_kernels_that_no_layer_holds_cannot_forget():
    folded = EfficientNetLite(layer="block0", image_size=32)
    with pytest.raises(ValueError, match="from 1 to 0"):
        randomize_weights(folded)


def test_a_map_by_gradients_changes_with_the_weights(model, inputs):
    other = randomize_weights(model, random_state=0)
    maps = [np.abs(input_gradients(one, inputs, TARGET)[0]).sum(axis=-1) for one in (model, other)]
    assert rank_correlation(*maps).max() < 0.9
    np.testing.assert_allclose(rank_correlation(maps[0], maps[0]), 1)


def test_rank_correlation_equals_spearmans(rng):
    maps, others = rng.integers(5, size=(2, 6, 4, 4))
    expected = [
        spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps, others, strict=True)
    ]
    np.testing.assert_allclose(rank_correlation(maps, others), expected)


def test_deletion_and_insertion_equal_sums_of_the_largest_parts(linear, inputs):
    weights, predict = linear
    images = inputs[0]
    parts = ((images - 255) * np.moveaxis(weights[..., TARGET], -1, 0)).sum(axis=-1)
    deletion, insertion = deletion_insertion(predict, images, parts, TARGET, n_steps=4)
    blank = own(predict(np.full_like(images, 255)), TARGET)
    largest = -np.sort(-parts.reshape(3, -1), axis=1)
    gone = np.stack([largest[:, : 16 * k].sum(axis=1) for k in range(5)], axis=1)
    np.testing.assert_allclose(insertion, blank[:, None] + gone, rtol=1e-5)
    np.testing.assert_allclose(deletion, own(predict(images), TARGET)[:, None] - gone, rtol=1e-5)
    # No map can do better on a sum of pixels than the parts themselves.
    worse = deletion_insertion(predict, images, np.ones(parts.shape), TARGET, n_steps=4)
    assert (worse[0] >= deletion - 1e-6).all() and (worse[1] <= insertion + 1e-6).all()


@pytest.mark.parametrize("kind", [np.uint8, bool, np.float16])
def test_maps_of_any_type_say_which_pixels_go_first(inputs, kind):
    images = inputs[0].astype(np.uint8)
    maps = np.zeros(images.shape[:3], kind)
    maps[:, 2:6, 2:6] = 1

    def predict(batch):
        return (batch[:, 2:6, 2:6] != 255).mean(axis=(1, 2, 3), keepdims=True)[..., 0, 0]

    deletion, insertion = deletion_insertion(
        predict, images, maps, 0, n_steps=maps[0].size // 16, fill=255
    )
    np.testing.assert_allclose(deletion[:, 1:], 0)
    assert (insertion[:, 1:] == insertion[:, -1:]).all() and (insertion[:, 1] > 0.9).all()


def test_equal_pixels_go_in_the_same_scattered_order(inputs):
    images, gone = inputs[0], []

    def predict(batch):
        gone.append((batch == 255).all(axis=-1))
        return np.zeros((3, 1))

    for _ in range(2):
        deletion_insertion(predict, images, np.zeros((3, SIZE, SIZE)), 0, n_steps=4)
    first, second = gone[: len(gone) // 2], gone[len(gone) // 2 :]
    np.testing.assert_array_equal(first, second)
    quarter = first[2]
    assert quarter[0].sum() == SIZE**2 // 4
    np.testing.assert_array_equal(quarter[0], quarter[2])
    assert not quarter[0][:2].all()


# --- Bad input -----------------------------------------------------------------------------------


def test_a_layer_that_is_not_there_lists_those_that_are(model, inputs):
    with pytest.raises(ValueError, match=r"no layer 'conv5'.*first, last, .*pooled, .*scores"):
        grad_cam(model, inputs, TARGET, layer="conv5")


def test_a_layer_without_a_feature_map_names_those_with_one(model, inputs):
    with pytest.raises(ValueError, match=r"'pooled' gives no feature map.*first, last, add"):
        grad_cam(model, inputs, TARGET, layer="pooled")


@pytest.mark.parametrize("value", [-1, 256, np.nan])
def test_an_image_outside_the_range_of_pixels(model, inputs, linear, value):
    pixels, words = inputs
    pixels = pixels.copy()
    pixels[1, 2, 3, 0] = value
    maps = np.zeros(pixels.shape[:3])
    for explain in (
        lambda: grad_cam(model, [pixels, words], TARGET, layer="last"),
        lambda: occlude_patches(linear[1], pixels, TARGET, patch_size=4),
        lambda: deletion_insertion(linear[1], pixels, maps, TARGET),
    ):
        with pytest.raises(ValueError, match="image 1 has values .* go from 0 to 255"):
            explain()


@pytest.mark.parametrize("target", [[0, 1], 0.5, [[0, 1, 2]]])
def test_a_target_that_is_no_class_number_a_row(model, inputs, target):
    with pytest.raises(ValueError, match="one for each of the 3 rows"):
        input_gradients(model, inputs, target)


@pytest.mark.parametrize("target", [4, [0, -1, 0]])
def test_a_class_that_the_model_does_not_have(model, inputs, linear, pairs, target):
    for explain in (
        lambda: input_gradients(model, inputs, target),
        lambda: occlude_patches(linear[1], inputs[0], target, patch_size=4),
        lambda: modality_shapley(pairs[1], pairs[0][:3], target, background=pairs[0]),
    ):
        with pytest.raises(ValueError, match="the model has the classes 0 to"):
            explain()


def test_baselines_steps_patches_and_maps(model, inputs, linear):
    _, predict = linear
    with pytest.raises(ValueError, match="2 inputs need as many baselines; got 1"):
        integrated_gradients(model, inputs, TARGET, baseline=[0])
    with pytest.raises(ValueError, match="n_steps must be at least 1"):
        integrated_gradients(model, inputs, TARGET, baseline=[0, 0], n_steps=0)
    with pytest.raises(ValueError, match="n_steps must be at least 1"):
        deletion_insertion(predict, inputs[0], np.zeros((3, SIZE, SIZE)), 0, n_steps=0)
    for options in ({"patch_size": 9}, {"patch_size": 2, "stride": 3}, {"patch_size": 0}):
        with pytest.raises(ValueError, match="must go up"):
            occlude_patches(predict, inputs[0], 0, **options)
    with pytest.raises(ValueError, match=r"maps must have the shape \(3, 8, 8\)"):
        deletion_insertion(predict, inputs[0], np.zeros((3, 4, 4)), 0)
    with pytest.raises(ValueError, match=r"predict must give \(n, n_classes\) for 3 rows"):
        occlude_patches(lambda images: np.zeros(3), inputs[0], 0, patch_size=4)
    with pytest.raises(ValueError, match="one of the inputs must be images"):
        grad_cam(model, [inputs[1], inputs[1]], 0, layer="last")


def test_tables_without_the_columns_or_rows(pairs):
    table, predict = pairs
    with pytest.raises(ValueError, match=r"X must be a DataFrame .* got \['image', 'name'\]"):
        modality_shapley(predict, table.rename(columns={"text": "name"}), 0, background=table)
    with pytest.raises(ValueError, match="background has no rows"):
        modality_shapley(predict, table, 0, background=table[:0])
    with pytest.raises(ValueError, match="must be a DataFrame .* got ndarray"):
        modality_shapley(predict, np.zeros((3, 2)), 0, background=table)


@pytest.mark.parametrize("backend", other_backends())
def test_another_backend(backend):
    run_under(backend, __file__)
