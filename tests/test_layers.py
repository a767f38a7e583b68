"""The layers against NumPy, written row by row and with missing parts left out, not masked."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from keras_checks import (
    assert_gradients_are_differences,
    gradients,
    other_backends,
    run_under,
)

keras = pytest.importorskip("keras")

from cmlearn.layers import (  # noqa: E402
    BottleneckFusion,
    CrossAttention,
    FiLM,
    FixedFusion,
    GatedFusion,
    LowRankBilinear,
    MissingEmbedding,
    ModalityDropout,
    ScaledSimilarity,
    TensorFusion,
)

D1, D2, UNITS, ROWS = 5, 3, 4, 6
PRESENT = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1], [1, 1]], bool)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


# --- The formulas in NumPy ------------------------------------------------------------------------


def by_row(both, first, second):
    """Return a reference for pairs of vectors from what one row gives, whoever is there."""

    def reference(weights, x1, x2, present=None):
        present = np.ones((len(x1), 2), bool) if present is None else present
        rows = []
        for a, b, (has_a, has_b) in zip(x1, x2, present, strict=True):
            if has_a and has_b:
                rows.append(both(weights, a, b))
            elif has_a:
                rows.append(first(weights, a, len(b)))
            elif has_b:
                rows.append(second(weights, b, len(a)))
            else:
                rows.append(None)
        width = next(len(row) for row in rows if row is not None)
        return np.stack([np.zeros(width) if row is None else row for row in rows])

    return reference


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gated_row(weights, a, b):
    w1, w2, wz = weights
    z = sigmoid(np.concatenate([a, b]) @ wz)
    return z * np.tanh(a @ w1) + (1 - z) * np.tanh(b @ w2)


def tensor_row(weights, a, b):
    outer = np.outer(np.append(a, 1), np.append(b, 1))
    return outer.ravel() @ weights[0]


def low_rank_row(weights, a, b, rank=2):
    w1, bias1, w2, bias2 = (np.atleast_2d(w).reshape(-1, rank, UNITS) for w in weights)
    fused = np.zeros(UNITS)
    for r in range(rank):
        factor1 = np.append(a, 1) @ np.concatenate([w1[:, r], bias1[:, r]])
        factor2 = np.append(b, 1) @ np.concatenate([w2[:, r], bias2[:, r]])
        fused += factor1 * factor2
    return fused


def film_row(weights, a, b):
    w1, b1, w2, b2 = weights
    modulation = b @ w2 + b2
    return (1 + modulation[:UNITS]) * (a @ w1 + b1) + modulation[UNITS:]


def layer_norm(x, gamma, beta):
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def attend_row(weights, query, context):
    """Return one row's output (q, d) and weights (heads, q, c); every position counts."""
    gq, bq, gc, bc, wq, cq, wk, ck, wv, cv, wo, co, gh, bh, w1, b1, w2, b2 = weights
    q, c = layer_norm(query, gq, bq), layer_norm(context, gc, bc)
    attended, maps = co, []
    for head in range(wq.shape[1]):
        queries = q @ wq[:, head] + cq[head]
        keys = c @ wk[:, head] + ck[head]
        values = c @ wv[:, head] + cv[head]
        scores = np.exp(queries @ keys.T / np.sqrt(keys.shape[1]))
        maps.append(scores / scores.sum(axis=1, keepdims=True))
        attended = attended + maps[-1] @ values @ wo[head]
    hidden = query + attended
    update = np.maximum(layer_norm(hidden, gh, bh) @ w1 + b1, 0) @ w2 + b2
    return hidden + update, np.stack(maps)


def cross_attention(weights, query, context, query_mask=None, context_mask=None):
    n, n_query, n_context = len(query), query.shape[1], context.shape[1]
    query_mask = np.ones((n, n_query), bool) if query_mask is None else query_mask
    context_mask = np.ones((n, n_context), bool) if context_mask is None else context_mask
    output = np.zeros(query.shape)
    maps = np.zeros((n, weights[4].shape[1], n_query, n_context))
    for row in range(n):
        q, c = np.flatnonzero(query_mask[row]), np.flatnonzero(context_mask[row])
        if len(c) == 0:
            output[row, q] = query[row, q]
        elif len(q):
            found, found_maps = attend_row(weights, query[row, q], context[row, c])
            output[row, q] = found
            maps[row][:, q[:, None], c[None]] = found_maps
    return output, maps


def bottleneck(weights, x1, x2, masks=None):
    tokens, *weights = weights
    projections, blocks = weights[:4], weights[4:]
    masks = [np.ones(x.shape[:2], bool) for x in (x1, x2)] if masks is None else masks
    rows = []
    for row in range(len(x1)):
        own, streams = tokens, {}
        for i, x in enumerate((x1, x2)):
            if masks[i][row].any():
                streams[i] = x[row][masks[i][row]] @ projections[2 * i] + projections[2 * i + 1]
        for layer in range(2):
            found = []
            for i in list(streams):
                start = 18 * (2 * layer + i)
                joint = np.concatenate([own, streams[i]])
                joint, _ = attend_row(blocks[start : start + 18], joint, joint)
                found.append(joint[: len(tokens)])
                streams[i] = joint[len(tokens) :]
            own = np.mean(found, axis=0) if found else np.zeros(tokens.shape)
        rows.append(own.mean(axis=0))
    return np.stack(rows)


def missing_embedding(weights, x, present):
    return np.stack(
        [
            row if has else np.broadcast_to(weights[0], row.shape)
            for row, has in zip(x, present, strict=True)
        ]
    )


def similarity(weights, image, text):
    cosine = [[a @ b / np.sqrt((a @ a) * (b @ b)) for b in text] for a in image]
    return np.array(cosine) / np.exp(weights[0]) + (weights[1] if len(weights) > 1 else 0)


# --- The cases ------------------------------------------------------------------------------------


@dataclass
class Case:
    """A layer, what it is called with, and its formula."""

    make: callable
    reference: callable
    arrays: list  # what a gradient is taken of
    fixed: dict = field(default_factory=dict)
    pair: bool = True

    def __call__(self, layer, *arrays, **fixed):
        inputs = [list(arrays)] if self.pair else arrays
        return layer(*inputs, **{**self.fixed, **fixed})

    def built(self, rng):
        """Return the layer with weights that are all different and none zero."""
        layer = self.make()
        self(layer, *self.arrays)
        layer.set_weights([rng.normal(scale=0.4, size=w.shape) for w in layer.weights])
        return layer


def normal(*shape, seed=1):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def with_nan(x, mask):
    x = x.copy()
    x[~mask] = np.nan
    return x


def pairs(make, reference, width_2=D2):
    """Return the case of a pair of vectors without and with parts missing."""
    x1, x2 = normal(ROWS, D1), normal(ROWS, width_2, seed=2)
    missing = [with_nan(x1, PRESENT[:, 0]), with_nan(x2, PRESENT[:, 1])]
    return Case(make, reference, [x1, x2]), Case(make, reference, missing, {"present": PRESENT})


def length_mask(lengths, longest):
    return np.arange(longest) < np.array(lengths)[:, None]


QUERY_MASK, CONTEXT_MASK = length_mask([4, 2, 0, 3], 4), length_mask([3, 0, 2, 1], 3)
QUERY, CONTEXT = normal(4, 4, 6), normal(4, 3, 5)
MASKS = {"query_mask": QUERY_MASK, "context_mask": CONTEXT_MASK}
MASKED = [with_nan(QUERY, QUERY_MASK), with_nan(CONTEXT, CONTEXT_MASK)]
GRID_MASK, WORD_MASK = length_mask([4, 4, 0, 0], 4), length_mask([3, 0, 2, 0], 3)
GRID, WORDS = normal(4, 4, 5), normal(4, 3, 6)

PAIR_LAYERS = {
    "gated": (
        lambda: GatedFusion(UNITS),
        by_row(gated_row, lambda w, a, n: np.tanh(a @ w[0]), lambda w, b, n: np.tanh(b @ w[1])),
    ),
    "tensor": (
        lambda: TensorFusion(UNITS),
        by_row(
            tensor_row,
            lambda w, a, n: tensor_row(w, a, np.zeros(n)),
            lambda w, b, n: tensor_row(w, np.zeros(n), b),
        ),
    ),
    "low-rank": (
        lambda: LowRankBilinear(UNITS, rank=2),
        by_row(
            low_rank_row,
            lambda w, a, n: low_rank_row(w, a, np.zeros(n)),
            lambda w, b, n: low_rank_row(w, np.zeros(n), b),
        ),
    ),
    "film": (
        lambda: FiLM(UNITS),
        by_row(
            film_row,
            lambda w, a, n: a @ w[0] + w[1],
            lambda w, b, n: (b @ w[2] + w[3])[UNITS:],
        ),
    ),
    "concat": (
        lambda: FixedFusion("concat"),
        by_row(
            lambda w, a, b: np.append(a, b),
            lambda w, a, n: np.append(a, np.zeros(n)),
            lambda w, b, n: np.append(np.zeros(n), b),
        ),
    ),
    "mean": (
        lambda: FixedFusion("mean"),
        by_row(lambda w, a, b: (a + b) / 2, lambda w, a, n: a, lambda w, b, n: b),
    ),
    "product": (
        lambda: FixedFusion("product"),
        by_row(lambda w, a, b: a * b, lambda w, a, n: a, lambda w, b, n: b),
    ),
}


def make_cases():
    cases = {}
    for name, (make, reference) in PAIR_LAYERS.items():
        width_2 = D1 if name in ("mean", "product") else D2
        cases[name], cases[f"{name}, missing"] = pairs(make, reference, width_2)

    def attention():
        return CrossAttention(num_heads=2, key_dim=3)

    def tokens():
        return BottleneckFusion(UNITS, n_tokens=2, num_heads=2)

    def output_only(*arguments, **masks):
        return cross_attention(*arguments, **masks)[0]

    cases["attention"] = Case(attention, output_only, [QUERY, CONTEXT], pair=False)
    cases["attention, masked"] = Case(attention, output_only, MASKED, MASKS, pair=False)
    cases["bottleneck"] = Case(tokens, bottleneck, [GRID, WORDS])
    masked = [with_nan(GRID, GRID_MASK), with_nan(WORDS, WORD_MASK)]
    cases["bottleneck, masked"] = Case(
        tokens, bottleneck, masked, {"masks": [GRID_MASK, WORD_MASK]}
    )
    has = PRESENT[:, 0]
    for name, x in (("vector", normal(ROWS, D1)), ("sequence", normal(ROWS, 3, D1))):
        cases[f"embedding of a {name}"] = Case(
            MissingEmbedding,
            missing_embedding,
            [with_nan(x, has)],
            {"present": has},
            pair=False,
        )
    vectors = [normal(4, D1), normal(3, D1)]
    cases["similarity"] = Case(ScaledSimilarity, similarity, vectors)
    cases["similarity, bias"] = Case(lambda: ScaledSimilarity(bias=-10.0), similarity, vectors)
    return cases


CASES = make_cases()
each_case = pytest.mark.parametrize("name", CASES)
each_layer = pytest.mark.parametrize(  # once, with its masks where it takes some
    "name", [name for name in CASES if not {f"{name}, missing", f"{name}, masked"} & set(CASES)]
)
each_masked_case = pytest.mark.parametrize(
    "name", [name for name in CASES if name.endswith(("missing", "masked"))]
)


# --- What they compute ----------------------------------------------------------------------------


@each_case
def test_output_equals_the_formula(name, rng):
    case = CASES[name]
    layer = case.built(rng)
    expected = case.reference(
        [w.astype(np.float64) for w in layer.get_weights()],
        *[x.astype(np.float64) for x in case.arrays],
        **case.fixed,
    )
    np.testing.assert_allclose(numpy(case(layer, *case.arrays)), expected, atol=1e-5, rtol=1e-5)


@each_case
def test_gradient_equals_finite_differences_of_the_formula(name, rng):
    case = CASES[name]
    layer = case.built(rng)
    weights, n_arrays = layer.get_weights(), len(case.arrays)
    pull = rng.normal(size=numpy(case(layer, *case.arrays)).shape).astype(np.float32)
    found = gradients(
        lambda *arrays: keras.ops.sum(case(layer, *arrays) * pull),
        case.arrays,
        layer.trainable_variables,
    )
    assert_gradients_are_differences(
        found,
        lambda *all: np.sum(
            case.reference(list(all[n_arrays:]), *all[:n_arrays], **case.fixed) * pull
        ),
        [*case.arrays, *weights],
        rng,
    )


def test_attention_maps_equal_the_formula_and_sum_to_one(rng):
    case = CASES["attention, masked"]
    layer = case.built(rng)
    output, maps = case(layer, *MASKED, return_attention_scores=True)
    expected, expected_maps = cross_attention(layer.get_weights(), *MASKED, **MASKS)
    np.testing.assert_allclose(numpy(output), expected, atol=1e-5)
    np.testing.assert_allclose(numpy(maps), expected_maps, atol=1e-5)
    attends = QUERY_MASK & CONTEXT_MASK.any(axis=1, keepdims=True)
    sums = np.broadcast_to(attends[:, None], (4, 2, 4))
    np.testing.assert_allclose(numpy(maps).sum(axis=-1), sums, atol=1e-6)


@each_masked_case
def test_what_is_missing_may_hold_anything(name, rng):
    case = CASES[name]
    layer = case.built(rng)
    output = numpy(case(layer, *case.arrays))
    for garbage in (0, -1e4, np.inf):
        filled = [np.where(np.isnan(x), np.float32(garbage), x) for x in case.arrays]
        np.testing.assert_array_equal(numpy(case(layer, *filled)), output)


@pytest.mark.parametrize("name", ["attention", "bottleneck"])
def test_padding_never_changes_a_result(name, rng):
    case = CASES[name]
    layer = case.built(rng)
    expected = numpy(case(layer, *case.arrays))
    padded, masks = [], []
    for x, n_more in zip(case.arrays, (2, 3), strict=True):
        padding = np.full((len(x), n_more, x.shape[2]), np.nan, np.float32)
        padded.append(np.concatenate([x, padding], axis=1))
        masks.append(length_mask([x.shape[1]] * len(x), x.shape[1] + n_more))
    if name == "bottleneck":
        found = numpy(case(layer, *padded, masks=masks))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    else:
        found = numpy(case(layer, *padded, query_mask=masks[0], context_mask=masks[1]))
        np.testing.assert_allclose(found[:, : QUERY.shape[1]], expected, atol=1e-6)
        assert not found[:, QUERY.shape[1] :].any()


@each_layer
def test_permuting_the_batch_permutes_the_output(name, rng):
    case = CASES[name]
    layer = case.built(rng)
    orders = [rng.permutation(len(case.arrays[0]))] * 2
    if name.startswith("similarity"):
        orders[1] = rng.permutation(len(case.arrays[1]))
    output = numpy(case(layer, *case.arrays))[orders[0]]
    output = output[:, orders[1]] if name.startswith("similarity") else output
    arrays = [x[order] for x, order in zip(case.arrays, orders, strict=False)]
    fixed = {
        key: [mask[orders[0]] for mask in value] if key == "masks" else value[orders[0]]
        for key, value in case.fixed.items()
    }
    np.testing.assert_allclose(numpy(case(layer, *arrays, **fixed)), output, atol=1e-6)


@each_masked_case
def test_output_and_gradient_of_an_empty_batch_equal_zero(name, rng):
    case = CASES[name]
    layer = case.built(rng)
    fixed = {
        key: [np.zeros_like(mask) for mask in value] if key == "masks" else np.zeros_like(value)
        for key, value in case.fixed.items()
    }
    arrays = [np.full_like(x, np.nan) for x in case.arrays]
    assert not numpy(case(layer, *arrays, **fixed)).any()
    found = gradients(
        lambda *arrays: keras.ops.sum(case(layer, *arrays, **fixed)),
        arrays,
        layer.trainable_variables,
    )
    assert not any(gradient.any() for gradient in found)


def test_a_query_without_context_is_passed_through(rng):
    case = CASES["attention"]
    layer = case.built(rng)
    nothing = np.zeros(CONTEXT.shape[:2], bool)
    output, maps = case(layer, QUERY, CONTEXT, context_mask=nothing, return_attention_scores=True)
    np.testing.assert_array_equal(numpy(output), QUERY)
    assert not numpy(maps).any()


def test_attention_takes_the_mask_that_an_embedding_made():
    words = np.array([[3, 1, 0], [2, 0, 0]])
    embedding = keras.layers.Embedding(5, 6, mask_zero=True)
    layer = CrossAttention(num_heads=2, key_dim=3)
    by_itself = numpy(layer(QUERY[:2], embedding(words)))
    told = numpy(layer(QUERY[:2], numpy(embedding(words)), context_mask=words > 0))
    np.testing.assert_allclose(by_itself, told, atol=1e-6)
    assert np.abs(numpy(layer(QUERY[:2], numpy(embedding(words)))) - told).max() > 1e-3


def test_low_rank_is_tensor_fusion_with_factored_weights(rng):
    case = CASES["low-rank"]
    low_rank = case.built(rng)
    w1, b1, w2, b2 = low_rank.get_weights()
    first = np.concatenate([w1, b1[None]]).reshape(-1, 2, UNITS)
    second = np.concatenate([w2, b2[None]]).reshape(-1, 2, UNITS)
    tensor = TensorFusion(UNITS)
    tensor(case.arrays)
    tensor.set_weights([np.einsum("iru,jru->iju", first, second).reshape(-1, UNITS)])
    np.testing.assert_allclose(
        numpy(tensor(case.arrays)), numpy(low_rank(case.arrays)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("layer", "n_parameters"),
    [
        (GatedFusion(7), 2 * (5 + 3) * 7),
        (TensorFusion(7), (5 + 1) * (3 + 1) * 7),
        (LowRankBilinear(7, rank=2), 2 * (5 + 3 + 2) * 7),
        (FixedFusion("concat"), 0),
    ],
    ids=["gated", "tensor", "low-rank", "concat"],
)
def test_parameters_are_as_many_as_the_docstring_says(layer, n_parameters):
    layer.build([(None, 5), (None, 3)])
    assert layer.count_params() == n_parameters


# --- Dropping modalities --------------------------------------------------------------------------


def test_modality_dropout_takes_one_of_two_and_never_both():
    present = np.ones((20_000, 2), bool)
    kept = numpy(ModalityDropout(0.4, seed=0)(present, training=True))
    assert kept.dtype == bool
    assert kept.any(axis=1).all()
    first_lost, second_lost = (~kept).mean(axis=0)
    assert first_lost == pytest.approx(0.2, abs=0.015)
    assert second_lost == pytest.approx(0.2, abs=0.015)


def test_modality_dropout_leaves_incomplete_rows_as_they_are():
    present = np.array([[1, 0], [0, 1], [0, 0]] * 50, bool)
    kept = numpy(ModalityDropout(1.0, seed=0)(present, training=True))
    np.testing.assert_array_equal(kept, present)


def test_modality_dropout_at_rate_one_drops_in_every_complete_row():
    kept = numpy(ModalityDropout(1.0, seed=0)(np.ones((500, 2), bool), training=True))
    assert (kept.sum(axis=1) == 1).all()
    assert 150 < kept[:, 0].sum() < 350


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (1.0, False), (1.0, None)])
def test_modality_dropout_rests_outside_training_and_at_rate_zero(rate, training):
    kept = numpy(ModalityDropout(rate, seed=0)(PRESENT, training=training))
    np.testing.assert_array_equal(kept, PRESENT)


def test_modality_dropout_repeats_itself_from_its_seed():
    present = np.ones((200, 2), bool)
    layers = [ModalityDropout(0.5, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (numpy(layer(present, training=True)) for layer in layers)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (numpy(layers[0](present, training=True)) != first).any()


def test_dropout_of_attention_acts_in_training_only():
    layer = CrossAttention(num_heads=2, key_dim=3, dropout=0.5, seed=0)
    still, moving = (numpy(layer(QUERY, CONTEXT, training=t)) for t in (False, True))
    np.testing.assert_array_equal(still, numpy(layer(QUERY, CONTEXT)))
    assert np.abs(still - moving).max() > 0.01


# --- Keeping and training -------------------------------------------------------------------------


def network(case, layer):
    """Return a network that is this layer alone; it is called with ``feed(case)``."""
    arrays = [keras.Input(x.shape[1:]) for x in case.arrays]
    fixed = keras.tree.map_structure(lambda x: keras.Input(x.shape[1:], dtype="bool"), case.fixed)
    return keras.Model(keras.tree.flatten([arrays, fixed]), case(layer, *arrays, **fixed))


def feed(case):
    return keras.tree.flatten([case.arrays, case.fixed])


@each_layer
def test_saved_network_predicts_the_same(name, rng, tmp_path):
    case = CASES[name]
    model = network(case, case.built(rng))
    model.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(numpy(loaded(feed(case))), numpy(model(feed(case))))


@each_layer
def test_layer_made_from_its_configuration_is_the_same(name, rng):
    case = CASES[name]
    layer = case.built(rng)
    twin = type(layer).from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    case(twin, *case.arrays)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(numpy(case(twin, *case.arrays)), numpy(case(layer, *case.arrays)))


def test_configuration_holds_every_argument():
    made = [
        GatedFusion(3, seed=1, name="a"),
        TensorFusion(3, seed=1),
        LowRankBilinear(3, rank=2, seed=1),
        FiLM(3, seed=1),
        FixedFusion("mean"),
        CrossAttention(2, 3, dropout=0.1, seed=1),
        BottleneckFusion(6, n_tokens=3, num_heads=2, num_layers=1, dropout=0.1, seed=1),
        ModalityDropout(0.3, seed=1),
        MissingEmbedding(dtype="float64"),
        ScaledSimilarity(temperature=0.2, bias=-1.0),
    ]
    for layer in made:
        config = layer.get_config()
        assert type(layer).from_config(config).get_config() == config
        unchanged = {"name", "trainable", "dtype"}
        for key in set(config) - unchanged:
            assert config[key] == getattr(layer, key)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: GatedFusion(UNITS, seed=seed),
        lambda seed: TensorFusion(UNITS, seed=seed),
        lambda seed: LowRankBilinear(UNITS, seed=seed),
        lambda seed: FiLM(UNITS, seed=seed),
        lambda seed: BottleneckFusion(UNITS, num_heads=2, seed=seed),
    ],
    ids=["gated", "tensor", "low-rank", "film", "bottleneck"],
)
def test_seed_decides_the_initial_weights(make):
    def weights(seed):
        layer = make(seed)
        layer([GRID, GRID] if isinstance(layer, BottleneckFusion) else [GRID[:, 0], GRID[:, 0]])
        return [w for w in layer.get_weights() if w.size > 1 and w.std() > 0]

    first, again, other = weights(1), weights(1), weights(2)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    # Two kernels of one shape are drawn apart.
    assert len(first) == 1 or (first[0].shape != first[1].shape) or (first[0] != first[1]).any()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@each_layer
def test_half_precision_stays_finite_and_close(name, policy, rng):
    case = CASES[name]
    layer = case.built(rng)
    half = type(layer).from_config({**layer.get_config(), "dtype": policy})
    case(half, *case.arrays)
    half.set_weights(layer.get_weights())
    output = numpy(keras.ops.cast(case(half, *case.arrays), "float32"))
    scale = np.abs(output).max()
    np.testing.assert_allclose(output, numpy(case(layer, *case.arrays)), atol=0.05 * scale)
    found = gradients(
        lambda *arrays: keras.ops.sum(keras.ops.cast(case(half, *arrays), "float32")),
        case.arrays,
        half.trainable_variables,
    )
    assert all(np.isfinite(gradient.astype(np.float32)).all() for gradient in found)


def test_similarity_with_a_vector_of_zeros_is_zero_and_has_a_gradient():
    for policy in ("float32", "mixed_float16"):
        layer = ScaledSimilarity(dtype=policy)
        zeros, text = np.zeros((2, 3), np.float32), normal(4, 3)
        assert not numpy(layer([zeros, text])).any()
        found = gradients(
            lambda *x, layer=layer: keras.ops.sum(layer(list(x))),
            [zeros, text],
            layer.trainable_variables,
        )
        assert all(np.isfinite(gradient).all() for gradient in found)


def test_bound_of_the_temperature_is_of_the_kind_that_every_keras_takes():
    layer = ScaledSimilarity()
    layer.build([(None, 3), (None, 3)])
    bound = layer.log_temperature.constraint
    assert isinstance(bound, keras.constraints.Constraint)  # Keras before 3.14 takes no function
    assert type(bound)(**bound.get_config())(np.float32(-9.0)) == np.log(0.01).astype(np.float32)


def test_learned_temperature_stops_at_a_hundredth():
    """Cosines that are never confident enough push the temperature down without end."""
    image, text = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([image, text], ScaledSimilarity(temperature=0.011)([image, text]))
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=lambda y, logits: -logits)
    pairs = np.ones((4, 2), np.float32)
    model.fit([pairs, pairs], np.zeros((4, 4), np.float32), epochs=2, batch_size=4, verbose=0)
    assert np.exp(model.get_weights()[0]) == pytest.approx(0.01, rel=1e-5)


def test_a_network_of_all_parts_learns_with_parts_missing(rng):
    """The label is the XOR of a sign in each modality, which no sum of the two can tell."""
    x1, x2 = rng.normal(size=(2, 256, 2)).astype(np.float32)
    y = (x1[:, 0] > 0) ^ (x2[:, 0] > 0)
    present = np.ones((256, 2), bool)
    inputs = [keras.Input((2,)), keras.Input((2,)), keras.Input((2,), dtype="bool")]
    kept = ModalityDropout(0.1, seed=0)(inputs[2])
    fused = LowRankBilinear(8, seed=0)(inputs[:2], present=kept)
    output = keras.layers.Dense(
        1, "sigmoid", kernel_initializer=keras.initializers.GlorotUniform(0)
    )(fused)
    model = keras.Model(inputs, output)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    model.optimizer.learning_rate = 0.05
    model.fit([x1, x2, present], y, epochs=12, batch_size=64, shuffle=False, verbose=0)
    accuracy = model.evaluate([x1, x2, present], y, verbose=0)[1]
    assert accuracy > 0.9


# --- Bad input ------------------------------------------------------------------------------------

VECTOR, OTHER_VECTOR = normal(4, D1), normal(4, D2)
PAIR_MAKERS = {name: make for name, (make, _) in PAIR_LAYERS.items()}
each_pair_layer = pytest.mark.parametrize("make", PAIR_MAKERS.values(), ids=PAIR_MAKERS.keys())


@each_pair_layer
def test_unequal_batches_are_refused(make):
    layer = make()
    with pytest.raises(ValueError, match="as many rows; got batches of 3 and 4"):
        layer([normal(4, D1), normal(3, D1)])
    layer([VECTOR, VECTOR])
    with pytest.raises(ValueError, match="as many rows; got batches of 3 and 4"):
        layer([normal(3, D1), VECTOR])


@each_pair_layer
def test_a_single_input_is_refused(make):
    with pytest.raises(ValueError, match=r"fuses two inputs, \[image, text\]; got a single one"):
        make()(VECTOR)
    with pytest.raises(ValueError, match="fuses two inputs.*got 1"):
        make()([VECTOR])
    with pytest.raises(ValueError, match="fuses two inputs.*got 3"):
        make()([VECTOR, VECTOR, VECTOR])


@each_pair_layer
def test_sequences_are_refused_where_vectors_belong(make):
    with pytest.raises(ValueError, match=r"second input has the shape \(4, 4, 5\)"):
        make()([VECTOR, GRID])


@each_pair_layer
def test_present_of_another_shape_is_refused(make):
    with pytest.raises(ValueError, match=r"present must have the shape \(batch, 2\).*\(4,\)"):
        make()([VECTOR, VECTOR], present=np.ones(4, bool))
    with pytest.raises(ValueError, match="batches of 3 and 4"):
        make()([VECTOR, VECTOR], present=np.ones((3, 2), bool))


@pytest.mark.parametrize("name", ["gated", "tensor", "low-rank", "film"])
def test_another_width_than_it_was_built_for_is_refused(name):
    layer = PAIR_MAKERS[name]()
    layer([VECTOR, OTHER_VECTOR])
    with pytest.raises(ValueError, match="built for widths 5 and 3; got 3 and 5"):
        layer([OTHER_VECTOR, VECTOR])


@pytest.mark.parametrize("how", ["mean", "product"])
def test_mean_and_product_refuse_unequal_widths(how):
    with pytest.raises(ValueError, match=f'"{how}".*one width; got 5 and 3'):
        FixedFusion(how)([VECTOR, OTHER_VECTOR])


def test_unknown_how_is_refused():
    with pytest.raises(ValueError, match=r"how must be .*got 'sum'"):
        FixedFusion("sum")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GatedFusion(0), "units must be at least 1; got 0"),
        (lambda: TensorFusion(-1), "units must be at least 1; got -1"),
        (lambda: LowRankBilinear(0), "units must be at least 1; got 0"),
        (lambda: LowRankBilinear(4, rank=0), "rank must be at least 1; got 0"),
        (lambda: FiLM(0), "units must be at least 1; got 0"),
        (lambda: CrossAttention(0, 4), "num_heads must be at least 1; got 0"),
        (lambda: CrossAttention(2, 0), "key_dim must be at least 1; got 0"),
        (lambda: CrossAttention(2, 2, dropout=1.0), "dropout must be .* below 1; got 1.0"),
        (lambda: BottleneckFusion(0), "units must be at least 1; got 0"),
        (lambda: BottleneckFusion(8, n_tokens=0), "n_tokens must be at least 1; got 0"),
        (lambda: BottleneckFusion(8, num_layers=0), "num_layers must be at least 1; got 0"),
        (lambda: BottleneckFusion(6), "units must be a multiple of num_heads; got units=6"),
        (lambda: BottleneckFusion(8, dropout=-0.1), "dropout must be at least 0"),
        (lambda: ModalityDropout(1.5), "rate must be at least 0 and at most 1; got 1.5"),
        (lambda: ScaledSimilarity(temperature=0.0), "temperature must be at least 0.01"),
        (lambda: GatedFusion(2.5), "units must be a whole number; got 2.5"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "masks", "message"),
    [
        ((QUERY, CONTEXT[:3]), {}, "as many rows; got batches of 3 and 4"),
        ((VECTOR, CONTEXT), {}, r"query has the shape \(4, 5\)"),
        ((QUERY, VECTOR), {}, r"context has the shape \(4, 5\)"),
        ((QUERY, CONTEXT), {"context_mask": QUERY_MASK}, r"context_mask must be .*\(4, 3\); got"),
        ((QUERY, CONTEXT), {"query_mask": QUERY_MASK[0]}, r"query_mask must be .*\(4, 4\); got"),
    ],
)
def test_attention_refuses_what_does_not_fit(arguments, masks, message):
    with pytest.raises(ValueError, match=message):
        CrossAttention(2, 3)(*arguments, **masks)


@pytest.mark.parametrize(
    ("inputs", "masks", "message"),
    [
        ([GRID], None, "fuses two inputs.*got 1"),
        (GRID, None, "fuses two inputs.*got a single one"),
        ([GRID, WORDS[:3]], None, "as many rows; got batches of 3 and 4"),
        ([GRID, VECTOR], None, r"the second input has the shape \(4, 5\)"),
        ([GRID, WORDS], [None, GRID_MASK], "the second mask must be"),
        ([GRID, WORDS], [GRID_MASK], "two masks"),
    ],
)
def test_bottleneck_refuses_what_does_not_fit(inputs, masks, message):
    with pytest.raises(ValueError, match=message):
        BottleneckFusion(4)(inputs, masks=masks)


def test_embedding_and_dropout_refuse_another_shape():
    with pytest.raises(ValueError, match=r"one bool a row, \(batch,\); got the shape \(4, 1\)"):
        MissingEmbedding()(VECTOR, np.ones((4, 1), bool))
    with pytest.raises(ValueError, match="batches of 3 and 4"):
        MissingEmbedding()(VECTOR, np.ones(3, bool))
    with pytest.raises(ValueError, match=r"got the shape \(4, 2, 2, 2\)"):
        MissingEmbedding()(np.zeros((4, 2, 2, 2)), np.ones(4, bool))
    with pytest.raises(ValueError, match=r"shape \(batch, 2\).*got \(4, 3\)"):
        ModalityDropout(0.5)(np.ones((4, 3), bool))


def test_similarity_refuses_unequal_widths():
    with pytest.raises(ValueError, match=r"one width d; got the shapes \(4, 5\) and \(4, 3\)"):
        ScaledSimilarity()([VECTOR, OTHER_VECTOR])


# --- Other backends -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", other_backends())
def test_formulas_and_gradients_hold_under_another_backend(backend):
    run_under(backend, __file__, Path(__file__).with_name("test_losses.py"))
