import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax

from cmlearn.attacks import (
    add_sticker,
    add_word,
    choose_poisoned,
    disagreement,
    fgsm,
    pgd,
    substitute_words,
    swap_partners,
    word_neighbours,
    write_word,
)

keras = pytest.importorskip("keras")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 6, 6, 3)).astype(np.uint8)
    images[0], images[1] = 0, 255
    return images, np.arange(9) % 3


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Rescaling(1 / 64, offset=-2),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def losses(model, images, labels):
    scores = keras.ops.convert_to_numpy(model(np.asarray(images, np.float32)))
    return -log_softmax(scores.astype(float), axis=1)[np.arange(len(labels)), labels]


@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize("epsilon", [0, 0.3, 4.0, 300.0])
def test_never_outside_the_budget(network, rows, attack, epsilon):
    images, labels = rows
    attacked = attack(network, images, labels, epsilon=epsilon)
    assert attacked.dtype == np.float32
    assert np.abs(attacked.astype(np.float64) - images).max() <= epsilon
    assert attacked.min() >= 0 and attacked.max() <= 255


@settings(max_examples=15, deadline=None)
@given(epsilon=st.floats(0, 20), seed=st.integers(0, 99))
def test_the_budget_holds_for_pixels_that_are_no_whole_numbers(network, epsilon, seed):
    images = np.random.default_rng(seed).uniform(0, 255, (2, 6, 6, 3)).astype(np.float32)
    attacked = pgd(network, images, [0, 1], epsilon=epsilon, n_steps=2, random_state=seed)
    assert np.abs(attacked.astype(np.float64) - images).max() <= epsilon
    assert attacked.min() >= 0 and attacked.max() <= 255


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_a_budget_of_zero_changes_nothing(network, rows, attack):
    np.testing.assert_array_equal(attack(network, *rows, epsilon=0), rows[0])


def test_fgsm_is_the_closed_form_on_a_linear_model(rows):
    images, labels = rows
    rng = np.random.default_rng(1)
    W = rng.normal(size=(108, 3)) / 5000
    weights = keras.ops.convert_to_tensor(W.astype(np.float32))

    def linear(x):
        return keras.ops.reshape(x, (-1, 108)) @ weights

    flat = images.reshape(9, 108).astype(float)
    p = np.exp(log_softmax(flat @ W, axis=1))
    slope = (p - np.eye(3)[labels]) @ W.T
    expected = np.clip(flat + 3 * np.sign(slope), 0, 255).reshape(images.shape)
    np.testing.assert_array_equal(fgsm(linear, images, labels, epsilon=3), expected)


def test_no_attack_on_two_classes_of_a_linear_model_is_stronger_than_fgsm(rows):
    images = np.random.default_rng(3).uniform(20, 230, (9, 6, 6, 3))
    labels = rows[1] % 2
    W = np.random.default_rng(2).normal(size=(108, 2)).astype(np.float32) / 500

    def linear(x):
        return keras.ops.reshape(x, (-1, 108)) @ keras.ops.convert_to_tensor(W)

    best = losses(linear, fgsm(linear, images, labels, epsilon=5), labels)
    other = losses(linear, pgd(linear, images, labels, epsilon=5, random_state=0), labels)
    np.testing.assert_allclose(other, best, rtol=1e-4)


def test_fgsm_agrees_with_the_adversarial_robustness_toolbox(network, rows):
    pytest.importorskip("art")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the toolbox drives a TensorFlow model here")
    import tensorflow as tf
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    images, labels = rows[0].astype(np.float32), rows[1]
    theirs = TensorFlowV2Classifier(
        network,
        nb_classes=3,
        input_shape=(6, 6, 3),
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0, 255),
    )
    one = FastGradientMethod(theirs, eps=3.0).generate(images, labels)
    np.testing.assert_allclose(fgsm(network, images, labels, epsilon=3), one, atol=1e-4)
    many = ProjectedGradientDescent(
        theirs, eps=3.0, eps_step=0.75, max_iter=10, num_random_init=1, verbose=False
    ).generate(images, labels)
    ours = pgd(network, images, labels, epsilon=3, random_state=0)
    mean = losses(network, many, labels).mean()
    assert losses(network, ours, labels).mean() == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_pgd_is_at_least_as_strong_as_fgsm(network, rows, seed):
    images, labels = rows
    one = fgsm(network, images, labels, epsilon=6)
    many = pgd(network, images, labels, epsilon=6, n_steps=3, random_state=seed)
    wrong = [keras.ops.convert_to_numpy(network(x)).argmax(axis=1) != labels for x in (one, many)]
    assert (wrong[1] >= wrong[0]).all()
    same = wrong[1] == wrong[0]
    loss_one, loss_many = losses(network, one, labels), losses(network, many, labels)
    assert (loss_many[same] >= loss_one[same] - 1e-5).all()
    assert loss_many.mean() >= loss_one.mean()
    assert loss_one.mean() > losses(network, images, labels).mean()


def test_pgd_is_decided_by_its_seed_and_not_by_the_size_of_a_batch(network, rows):
    first = pgd(network, *rows, epsilon=4, random_state=5)
    np.testing.assert_array_equal(first, pgd(network, *rows, epsilon=4, random_state=5))
    assert (first != pgd(network, *rows, epsilon=4, random_state=6)).any()
    small = pgd(network, *rows, epsilon=4, random_state=5, batch_size=4)
    assert np.mean(small == first) > 0.95  # but for rounding


def test_a_network_that_answers_in_half_precision_is_attacked_alike(network, rows):
    def halved(x):
        return keras.ops.cast(network(x), "float16")

    exact, rounded = (fgsm(one, *rows, epsilon=4) for one in (network, halved))
    assert np.mean(exact == rounded) > 0.95  # but for slopes near 0


def test_the_context_is_given_and_left_alone(rows):
    images, labels = rows
    context = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    seen = []

    def model(pair):
        seen.append(keras.ops.convert_to_numpy(pair[1]))
        return keras.ops.mean(pair[0], axis=(1, 2)) / 50 * pair[1]

    attacked = fgsm(model, images, labels, epsilon=2, context=[context], batch_size=4)
    np.testing.assert_array_equal(np.concatenate(seen), context)
    before = losses(lambda x: model([x, context]), images, labels)
    after = losses(lambda x: model([x, context]), attacked, labels)
    assert (after >= before - 1e-6).all() and after.mean() > before.mean()


@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -1}, "at least 0; got -1"),
        ({"epsilon": np.inf}, "finite"),
        ({"images": np.full((9, 6, 6, 3), -0.5)}, "image 0 has values from -0.5 to -0.5"),
        ({"images": np.full((9, 6, 6, 3), 256)}, "0 to 255"),
        ({"images": np.full((9, 6, 6, 3), np.nan)}, "image 0"),
        ({"images": np.zeros((6, 6, 3))}, "shape"),
        ({"labels": [0, 1]}, "9 images need as many labels"),
        ({"labels": np.full(9, 0.5)}, "integers"),
        ({"labels": np.full(9, 3)}, "label 3 is unknown to a model of 3 classes"),
        ({"context": [np.zeros((2, 1))]}, "context 0 has 2 rows for 9 images"),
    ],
)
def test_bad_input_of_attacks_by_gradients(network, rows, attack, change, message):
    given = {"images": rows[0], "labels": rows[1], "epsilon": 1} | change
    with pytest.raises(ValueError, match=message):
        attack(network, **given)


@pytest.mark.parametrize(
    ("change", "message"), [({"n_steps": 0}, "n_steps"), ({"step_size": 0}, "step_size")]
)
def test_bad_steps(network, rows, change, message):
    with pytest.raises(ValueError, match=message):
        pgd(network, *rows, epsilon=1, **change)


# --- Words ---------------------------------------------------------------------------------------

WORTH = {"red": 0.4, "fast": 0.3, "car": 0.2}


def predict(texts, rows):
    first = np.array([sum(WORTH.get(w.lower(), 0) for w in text.split()) for text in texts])
    return np.column_stack([first, 0.65 - 0 * first])


def test_the_best_words_are_replaced_first_and_no_more_than_allowed():
    candidates = {"red": ["blue"], "fast": ["slow"], "car": ["bus"]}
    change = lambda n: substitute_words(  # noqa: E731
        predict, ["Fast red car"], [0], candidates=candidates, max_changes=n
    )
    assert change(0) == ["Fast red car"]
    assert change(1) == ["Fast blue car"]
    assert change(3) == ["Fast blue car"]  # wrong already: it goes no further


def test_a_greedy_change_equals_the_best_of_all_single_changes():
    rng = np.random.default_rng(0)
    worth = dict(zip("abcdefgh", rng.uniform(size=8), strict=True))

    def predict(texts, rows):
        first = np.array([sum(worth[w] for w in text.split()) for text in texts])
        return np.column_stack([first, np.zeros(len(first))])

    candidates = {"a": [*"efg"], "b": [*"gh"], "c": ["d"]}
    every = ["a b c".replace(old, new) for old, news in candidates.items() for new in news]
    expected = min(every, key=lambda text: predict([text], [0])[0, 0])
    assert substitute_words(predict, ["a b c"], [0], candidates=candidates) == [expected]


def test_candidates_may_come_one_by_one():
    candidates = {"red": (word for word in ["blue"])}
    attacked = substitute_words(
        predict, ["fast red car", "red fast"], [0, 0], candidates=candidates
    )
    assert attacked == ["fast blue car", "blue fast"]


def test_one_text_is_no_list_of_words():
    with pytest.raises(ValueError, match="candidates of 'red' must be a list of words.*'blue'"):
        substitute_words(predict, ["red car"], [0], candidates={"red": "blue"})
    with pytest.raises(ValueError, match="words must be a list of words; got the text 'red'"):
        word_neighbours("red")


def test_words_without_a_candidate_are_an_error():
    with pytest.raises(ValueError, match="text 1, 'red', has no word with a candidate"):
        substitute_words(predict, ["car", "red"], [0, 0], candidates={"car": ["bus"], "red": []})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1]}, "1 texts need as many labels"),
        ({"max_changes": -1}, "max_changes"),
        ({"predict": lambda texts, rows: np.zeros(3)}, "predict must give"),
    ],
)
def test_bad_input_of_the_attack_on_words(change, message):
    given = {"predict": predict, "texts": ["red car"], "labels": [0]} | change
    with pytest.raises(ValueError, match=message):
        substitute_words(**given, candidates={"red": ["blue"]})


def test_neighbours_are_those_of_the_vectors():
    found = word_neighbours(["dog", "zzzzqqqq"], n=5)
    assert list(found) == ["dog"] and len(found["dog"]) == 5 and "cat" in found["dog"]


# --- Writing, stickers, pairs --------------------------------------------------------------------


def test_writing_and_sticker_stay_in_their_place():
    images = np.full((2, 40, 40, 3), 120, np.uint8)
    written = write_word(images, ["cat", "dog"])
    np.testing.assert_array_equal(written[:, :30], 120)
    assert (written[0] != written[1]).any() and written[:, 30:].min() < 100
    stuck = add_sticker(images)
    changed = (stuck != images).any(axis=(0, 3))
    assert changed[-6:, -6:].all() and changed.sum() == 36
    np.testing.assert_array_equal(images, 120)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: write_word(x, ["a"]), "2 images need as many words"),
        (lambda x: write_word(x, ["a", " "]), "word 1"),
        (lambda x: write_word(x, ["猫", "a"]), "ASCII"),
        (lambda x: write_word(x, ["a", "b"], share=0), "share"),
        (lambda x: write_word(x - 1.0, ["a", "b"]), "0 to 255"),
        (lambda x: add_sticker(x, share=2), "share"),
        (lambda x: add_sticker(x + 300.0), "0 to 255"),
        (lambda x: add_word(["a"], ""), "trigger"),
        (lambda x: choose_poisoned([0, 1], target=2, rate=0.5), "target=2"),
        (lambda x: choose_poisoned([0, 1], target=1, rate=0.9), "rate"),
        (lambda x: swap_partners([1, 1]), "two classes"),
        (lambda x: disagreement([[1, 0]], [[1, 0], [0, 1]]), "one shape"),
        (lambda x: disagreement([[1, 1]], [[1, 0]]), "image_proba"),
    ],
)
def test_bad_input_elsewhere(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 20, 20, 3)))


def test_poisoned_rows_are_of_other_classes_and_as_many_as_asked_for():
    labels = np.repeat([0, 1, 2], 20)
    rows = choose_poisoned(labels, target=1, rate=0.25, random_state=0)
    assert len(set(rows)) == 15 and (labels[rows] != 1).all()
    np.testing.assert_array_equal(
        rows, choose_poisoned(labels, target=1, rate=0.25, random_state=0)
    )


def test_partners_are_of_another_class_and_decided_by_the_seed():
    labels = np.repeat([0, 1, 2], 20)
    partners = swap_partners(labels, random_state=0)
    assert (labels[partners] != labels).all()
    np.testing.assert_array_equal(partners, swap_partners(labels, random_state=0))


def test_disagreement_is_scipys_divergence():
    p, q = np.random.default_rng(0).dirichlet(np.ones(5), (2, 30))
    expected = jensenshannon(p, q, axis=1, base=2) ** 2
    np.testing.assert_allclose(disagreement(p, q), expected, atol=1e-12)
