import time

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from cmlearn import efficiency
from cmlearn.efficiency import (
    DistilledClassifier,
    EarlyExit,
    compress_tensor_fusion,
    export_onnx,
    graph_costs,
    interleaved_times,
    network_inputs,
    pareto_front,
    quantize_onnx,
    run_onnx,
    svm_costs,
)
from cmlearn.fusion import LateFusion, feature_table
from cmlearn.models import FUSIONS, SEQUENCE_FUSIONS, FusionClassifier, count_flops
from cmlearn.persistence import load_model, save_model

onnx = pytest.importorskip("onnx")
keras = pytest.importorskip("keras")


# --- Pareto --------------------------------------------------------------------------------------


def front_by_hand(cost, score):
    rows = range(len(score))

    def beats(i, j):
        as_good = np.all(cost[i] <= cost[j]) and score[i] >= score[j]
        return as_good and (np.any(cost[i] < cost[j]) or score[i] > score[j])

    return [not any(beats(i, j) for i in rows) for j in rows]


@pytest.mark.parametrize("n_costs", [1, 3])
def test_pareto_front_is_what_nothing_beats(n_costs):
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost, score = rng.integers(0, 5, (12, n_costs)), rng.integers(0, 5, 12)
        assert pareto_front(cost, score).tolist() == front_by_hand(cost, score)


def test_equals_stay_on_the_front():
    assert pareto_front([1, 1, 2], [0.5, 0.5, 0.5]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("cost", "score", "message"),
    [
        ([1, 2], [0.5], "shape"),
        ([[[1]]], [0.5], "shape"),
        ([1, np.nan], [0.5, 0.6], "NaN, first in row 1"),
        ([1, 2], [np.nan, 0.6], "NaN, first in row 0"),
    ],
)
def test_bad_points_are_refused(cost, score, message):
    with pytest.raises(ValueError, match=message):
        pareto_front(cost, score)


# --- Time ----------------------------------------------------------------------------------------


def test_calls_are_timed_in_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleaved_times(calls, 3)
    assert order == list("aabb") * 3
    assert times.shape == (3, 2)


def test_times_are_milliseconds(monkeypatch):
    clock = iter(np.arange(100) * 0.002)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    times = interleaved_times({"a": lambda: None}, 2)
    np.testing.assert_allclose(times["a"], 2)


@pytest.mark.parametrize(("calls", "n"), [({}, 3), ({"a": lambda: None}, 0)])
def test_nothing_to_time_is_refused(calls, n):
    with pytest.raises(ValueError, match="at least 1"):
        interleaved_times(calls, n)


# --- ONNX ----------------------------------------------------------------------------------------


def some_pairs(how, n=60):
    rng = np.random.default_rng(0)
    labels = np.repeat(["cup", "hat", "pen"], n // 3)
    image, text = rng.normal(size=(n, 6)), rng.normal(size=(n, 5))
    image[:, 0] += 3 * (labels == "cup")
    text[:, 0] += 3 * (labels == "hat")
    if how in SEQUENCE_FUSIONS:
        image, text = np.repeat(image[:, None], 4, axis=1), np.repeat(text[:, None], 3, axis=1)
        text = [row[: 1 + i % 3] for i, row in enumerate(text)]
    table = feature_table(image=image, text=text)
    table.at[1, "image"] = None
    table.at[2, "text"] = None
    return table, labels


def fitted(how, units=8):
    table, labels = some_pairs(how)
    network = FusionClassifier(
        how, units=units, epochs=2, validation_fraction=0.0, learning_rate=1e-2, random_state=0
    )
    return network.fit(table, labels), table


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return (classifier, table, file) of every fusion."""
    folder = tmp_path_factory.mktemp("onnx")
    found = {}
    for how in FUSIONS:
        classifier, table = fitted(how)
        found[how] = classifier, table, export_onnx(classifier, folder / f"{how}.onnx")
    return found


@pytest.mark.parametrize("how", FUSIONS)
def test_the_exported_network_says_the_same_also_with_a_part_missing(exported, how):
    classifier, table, path = exported[how]
    inputs = network_inputs(classifier, table)
    found = run_onnx(path, inputs, batch_size=7)
    np.testing.assert_allclose(found, classifier.predict_proba(table), atol=1e-5)
    assert found.std(axis=0).min() > 1e-3


def test_export_leaves_the_classifier_as_it_is(exported):
    classifier, table, _ = exported["gated"]
    again, _ = fitted("gated")
    np.testing.assert_array_equal(classifier.predict_proba(table), again.predict_proba(table))


def mean_pooling(how, length):
    """Return the operations of the averages over positions that `count_flops` leaves out."""
    return 2 * 8 * sum(length) if how == "cross-attention" else 0


@pytest.mark.parametrize("how", FUSIONS)
def test_operations_of_the_graph_are_those_of_the_layers(exported, how):
    classifier, table, path = exported[how]
    found = graph_costs(path, network_inputs(classifier, table))
    lengths = (4, 3) if how in SEQUENCE_FUSIONS else (1, 1)
    expected = count_flops(classifier, image_length=lengths[0], text_length=lengths[1])
    assert found.flops == expected + mean_pooling(how, lengths)


def profiled_flops(model):
    """Return what TensorFlow's profiler counts for the matrix products and convolutions."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2_as_graph,
    )

    products = ("MatMul", "Conv2D", "DepthwiseConv2dNative")
    shape = (1, *model.input_shape[1:])
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec(shape, tf.float32)
    )
    _, definition = convert_variables_to_constants_v2_as_graph(graph)
    with tf.Graph().as_default() as whole:
        tf.graph_util.import_graph_def(definition, name="")
        profiler = tf.compat.v1.profiler
        options = (
            profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
            .with_empty_output()
            .build()
        )
        nodes = profiler.profile(whole, cmd="op", options=options).children
    counted = 0
    while nodes:
        counted += sum(n.float_ops for n in nodes if n.name in products)
        nodes = [child for node in nodes for child in node.children]
    return counted


@pytest.fixture(scope="module")
def small_cnn():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3), name="pixels"),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.Conv2D(6, 1),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )
    return model


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's profiler")
def test_operations_of_a_convolutional_network_are_those_of_the_profiler(small_cnn, tmp_path):
    path = export_onnx(small_cnn, tmp_path / "cnn.onnx")
    pixels = np.ones((2, 12, 12, 3), np.float32)
    # By hand: positions x kernel x channels in x channels out, twice.
    by_hand = 2 * (36 * 9 * 3 * 8 + 36 * 9 * 8 + 36 * 8 * 6 + 6 * 5)
    assert graph_costs(path, {"pixels": pixels}).flops == by_hand
    assert profiled_flops(small_cnn) == by_hand


def test_memory_of_a_chain_is_counted_by_hand(tmp_path):
    """Two dense layers: at the second product 20 and 30 numbers of a row are alive."""
    model = keras.Sequential(
        [
            keras.Input((10,), name="x"),
            keras.layers.Dense(20, use_bias=False),
            keras.layers.Dense(30, use_bias=False),
            keras.layers.Dense(3, use_bias=False),
        ]
    )
    found = graph_costs(export_onnx(model, tmp_path / "m.onnx"), {"x": np.ones((5, 10))})
    assert found.activation_bytes(1) == 4 * (20 + 30)
    assert found.activation_bytes(256) == 256 * 4 * (20 + 30)
    assert found.weight_bytes == 4 * (200 + 600 + 90)
    assert found.flops == 2 * (200 + 600 + 90)


def test_counting_needs_two_rows(exported):
    classifier, table, path = exported["concat"]
    with pytest.raises(ValueError, match="two rows"):
        graph_costs(path, network_inputs(classifier, table[:1]))


def test_a_missing_input_is_named(exported):
    classifier, table, path = exported["concat"]
    inputs = network_inputs(classifier, table)
    del inputs["present"]
    with pytest.raises(ValueError, match="present is missing"):
        run_onnx(path, inputs)


def test_int8_is_near_and_a_quarter_of_the_size(tmp_path):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3), name="pixels"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    pixels = np.random.default_rng(0).uniform(size=(40, 16, 16, 3)).astype(np.float32)
    source = export_onnx(model, tmp_path / "float.onnx")
    target = quantize_onnx(source, tmp_path / "int8.onnx", {"pixels": pixels[:20]})
    exact = run_onnx(source, {"pixels": pixels[20:]})
    rough = run_onnx(target, {"pixels": pixels[20:]})
    error = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.03
    assert target.stat().st_size < 0.35 * source.stat().st_size
    kernels = [a for a in onnx.load(target).graph.initializer if len(a.dims) == 4]
    assert {a.data_type for a in kernels} == {onnx.TensorProto.INT8}


def test_int8_says_the_same_on_processors_that_add_products_in_16_bits(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    keras.utils.set_random_seed(0)
    positive = {"activation": "relu", "kernel_initializer": keras.initializers.RandomUniform(0, 1)}
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3), name="pixels"),
            keras.layers.Conv2D(64, 3, **positive),
            keras.layers.DepthwiseConv2D(3, activation="relu"),
            keras.layers.Conv2D(32, 1, **positive),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    pixels = np.random.default_rng(0).uniform(0.8, 1, size=(40, 16, 16, 3)).astype(np.float32)
    source = export_onnx(model, tmp_path / "float.onnx")
    target = quantize_onnx(source, tmp_path / "int8.onnx", {"pixels": pixels[:20]})

    kernels = [a for a in onnx.load(target).graph.initializer if len(a.dims) == 4]
    largest = {tuple(a.dims): np.abs(onnx.numpy_helper.to_array(a)).max() for a in kernels}
    assert largest == {(64, 3, 3, 3): 64, (64, 1, 3, 3): 127, (32, 64, 1, 1): 64}

    # Without optimisation the rounded numbers are multiplied as floats, which loses nothing.
    in_floats = ort.SessionOptions()
    in_floats.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact = run_onnx(ort.InferenceSession(target, in_floats), {"pixels": pixels[20:]})
    whole = run_onnx(target, {"pixels": pixels[20:]})
    np.testing.assert_allclose(whole, exact, rtol=0.01)


def test_quantisation_needs_rows(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        quantize_onnx("any.onnx", tmp_path / "x.onnx", {"pixels": np.ones((0, 3))})


# --- Machines ------------------------------------------------------------------------------------


def test_costs_of_machines_are_summed_by_hand():
    X, y = load_iris(return_X_y=True)
    one = make_pipeline(StandardScaler(), OneVsRestClassifier(SVC(C=10)))
    fused = LateFusion([("first", one, [0, 1]), ("all", clone(one), [0, 1, 2, 3])], how="margin")
    fused.fit(X, y)
    n = {
        name: [len(m.support_vectors_) for m in part[-1].estimators_]
        for name, part in fused.classifiers_.items()
    }
    found = svm_costs(fused)
    assert found.parameters == sum(k * 3 + 1 for k in n["first"]) + sum(k * 5 + 1 for k in n["all"])
    assert found.flops == sum(k * 9 for k in n["first"]) + sum(k * 15 for k in n["all"])
    assert found.weight_bytes == 8 * found.parameters
    assert found.activation_bytes(10) == 80 * max(n["first"] + n["all"])


def test_something_else_than_a_machine_is_refused():
    with pytest.raises(ValueError, match="no fitted support vector machine"):
        svm_costs(LogisticRegression())


# --- Low rank ------------------------------------------------------------------------------------


def test_full_rank_is_the_tensor_fusion_itself():
    classifier, table = fitted("tensor")
    before = classifier.predict_proba(table)
    same = compress_tensor_fusion(classifier, 9)
    np.testing.assert_allclose(same.predict_proba(table), before, atol=1e-5)
    assert (same.how, classifier.how) == ("low-rank", "tensor")
    np.testing.assert_array_equal(classifier.predict_proba(table), before)


@pytest.mark.parametrize("rank", [1, 3])
def test_factors_are_the_truncated_decomposition_of_every_unit(rank):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5 * 7, 2)).astype(np.float32)
    a, a_bias, b, b_bias = efficiency._low_rank_factors(kernel, (4, 6), rank)
    a, b = np.vstack([a, a_bias]), np.vstack([b, b_bias])
    for unit in range(2):
        matrix = kernel[:, unit].reshape(5, 7)
        u, s, vt = np.linalg.svd(matrix)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        columns = [r * 2 + unit for r in range(rank)]
        np.testing.assert_allclose(a[:, columns] @ b[:, columns].T, best, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 10])
def test_rank_out_of_range_is_refused(rank):
    with pytest.raises(ValueError, match="between 1 and 9"):
        compress_tensor_fusion(fitted("tensor")[0], rank)


def test_only_tensor_fusion_is_compressed():
    with pytest.raises(ValueError, match='how="tensor"'):
        compress_tensor_fusion(FusionClassifier("gated"), 2)


# --- Distillation --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return X[order], np.array(["a", "b", "c"])[y[order]]


def student(**parameters):
    options = {"hidden_units": (), "epochs": 30, "learning_rate": 0.1, "random_state": 0, "cv": 3}
    options = {"teacher": LogisticRegression(max_iter=500)} | options | parameters
    return DistilledClassifier(features=StandardScaler(), **options)


def test_soft_targets_are_out_of_fold(iris):
    X, y = iris
    rng = np.random.default_rng(0)
    noise = rng.permutation(y)  # nothing to learn, but a nearest neighbour knows its own row
    from sklearn.neighbors import KNeighborsClassifier

    nearest = DistilledClassifier(KNeighborsClassifier(1), StandardScaler(), epochs=1, cv=3)
    soft = nearest.fit(X, noise).soft_targets_
    right = nearest.classes_[soft.argmax(axis=1)] == noise
    assert right.mean() < 0.5
    np.testing.assert_allclose(soft.sum(axis=1), 1)


def test_the_loss_is_the_formula(iris, monkeypatch):
    X, y = iris
    caught = {}

    def catch(model, data, *arguments, **options):
        caught.update(model=model, data=data)

    monkeypatch.setattr(efficiency, "train_network", catch)
    model = student(soft_weight=0.3, temperature=3.0).fit(X, y)
    features, targets = caught["data"]
    network = caught["model"]
    z = keras.ops.convert_to_numpy(network(features))
    log_q = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    log_q_soft = z / 3 - np.log(np.exp(z / 3).sum(axis=1, keepdims=True))
    teacher = model.soft_targets_ ** (1 / 3)
    teacher /= teacher.sum(axis=1, keepdims=True)
    onehot = (y[:, None] == model.classes_).astype(float)
    expected = -0.7 * (onehot * log_q).sum(axis=1) - 0.3 * 9 * (teacher * log_q_soft).sum(axis=1)
    found = network.evaluate(features, targets, verbose=0, batch_size=len(y))
    assert found == pytest.approx(expected.mean(), rel=1e-4)


def test_a_student_of_soft_answers_alone_follows_its_teacher(iris, monkeypatch):
    X, y = iris

    def rotated(model, X, y, codes, groups):
        return 0.1 + 0.7 * np.eye(3)[(codes + 1) % 3]

    monkeypatch.setattr(DistilledClassifier, "_ask_teacher", rotated)
    model = student(soft_weight=1.0).fit(X, y)
    names = {"a": "b", "b": "c", "c": "a"}
    assert (model.predict(X) == [names[label] for label in y]).mean() > 0.8
    # Where the teacher counts little, the labels win.
    assert student(soft_weight=0.05, temperature=1.0).fit(X, y).score(X, y) > 0.9


def test_unlabelled_rows_are_learned_from_the_teacher(iris):
    X, y = iris
    few = np.concatenate([np.flatnonzero(y == label)[:4] for label in "abc"])
    rest = np.setdiff1d(np.arange(len(y)), few)
    model = student().fit(X[few], y[few], unlabelled=X[rest])
    teacher = LogisticRegression(max_iter=500).fit(X[few], y[few])
    assert (model.predict(X[rest]) == teacher.predict(X[rest])).mean() > 0.95
    assert len(model.soft_targets_) == len(few)


def test_unlabelled_rows_without_a_teacher_are_refused(iris):
    X, y = iris
    with pytest.raises(ValueError, match="raise soft_weight"):
        student(soft_weight=0.0).fit(X, y, unlabelled=X)


def test_without_a_teacher_it_is_not_asked(iris, monkeypatch):
    monkeypatch.setattr(DistilledClassifier, "_ask_teacher", None)
    X, y = iris
    model = student(soft_weight=0.0).fit(X, y)
    assert model.score(X, y) > 0.9
    assert not hasattr(model, "soft_targets_")


def test_student_repeats_itself_and_survives_pickling(iris):
    import pickle

    X, y = iris
    one, two = student(epochs=3).fit(X, y), student(epochs=3).fit(X, y)
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_allclose(again.predict_proba(X), one.predict_proba(X), atol=1e-6)


def test_student_is_exported(iris, tmp_path):
    X, y = iris
    model = student(epochs=3, hidden_units=(8,)).fit(X, y)
    path = export_onnx(model, tmp_path / "student.onnx")
    found = run_onnx(path, {"features": model._student_features(X)})
    np.testing.assert_allclose(found, model.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"soft_weight": 1.5}, "soft_weight"),
        ({"temperature": 0}, "temperature"),
        ({"dropout": 1.0}, "dropout"),
        ({"teacher": StandardScaler()}, "neither predict_proba"),
    ],
)
def test_bad_student_is_refused(iris, parameters, message):
    with pytest.raises((ValueError, TypeError), match=message):
        student().set_params(**parameters).fit(*iris)


def test_a_student_answers_as_before_saving(iris, tmp_path):
    model = student(epochs=1).fit(*iris)
    save_model(model, tmp_path)
    np.testing.assert_array_equal(
        load_model(tmp_path).predict_proba(iris[0]), model.predict_proba(iris[0])
    )


# --- Early exit ----------------------------------------------------------------------------------


def stages(cheap=None):
    cheap = LogisticRegression(max_iter=500) if cheap is None else cheap
    return [("cheap", cheap, [0, 1]), ("all", LogisticRegression(max_iter=500), [0, 1, 2, 3])]


def test_an_early_exit_comes_back_from_its_file(iris, tmp_path):
    X, y = iris
    model = EarlyExit(stages(), [1, 10]).fit(X, y)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert loaded.choose_threshold() == model.threshold_
    pd.testing.assert_frame_equal(loaded.sweep(X, y), model.sweep(X, y))


def test_the_curve_of_early_exit_refuses_labels_that_it_cannot_give(iris):
    X, y = iris
    model = EarlyExit(stages(), [1, 10]).fit(X[y != "b"], y[y != "b"])
    first = y.tolist().index("b")
    with pytest.raises(ValueError, match=f"row {first} has the label 'b', which no row of the"):
        model.sweep(X, y)


def test_the_threshold_decides_who_answers(iris):
    X, y = iris
    model = EarlyExit(stages(), [1, 10]).fit(X, y)
    cheap, everything = (model.classifiers_[name] for name in ("cheap", "all"))
    sure = [
        scores.max(axis=1)
        for scores in [
            efficiency.softmax(cheap.decision_function(X[:, :2]), model.temperatures_[0])
        ]
    ][0]
    for threshold in (0.0, 0.7, 1.01):
        model.threshold_ = threshold
        expected = np.where(sure >= threshold, cheap.predict(X[:, :2]), everything.predict(X))
        np.testing.assert_array_equal(model.predict(X), expected)
        np.testing.assert_array_equal(model.answering_stage(X), sure < threshold)
        assert model.mean_cost(X) == pytest.approx(1 + 10 * (sure < threshold).mean())


def test_the_sweep_is_what_each_threshold_does(iris):
    X, y = iris
    model = EarlyExit(stages(), [1, 10]).fit(X[:100], y[:100])
    swept = model.sweep(X[100:], y[100:])
    for row in swept.iloc[[0, 120, 160, -1]].itertuples():
        model.threshold_ = row.threshold
        assert model.score(X[100:], y[100:]) == pytest.approx(row.accuracy)
        assert model.mean_cost(X[100:]) == pytest.approx(row.cost)
    assert swept["cost"].is_monotonic_increasing
    assert swept["cost"].iloc[[0, -1]].tolist() == [1, 11]
    np.testing.assert_allclose(swept[["cheap", "all"]].sum(axis=1), 1)


def test_the_threshold_is_the_cheapest_that_keeps_the_accuracy(iris):
    X, y = iris
    last = None
    for tolerance in (0.0, 0.05, 1.0):
        model = EarlyExit(stages(), [1, 10], tolerance=tolerance).fit(X, y)
        curve = pd.DataFrame(model.curve_)
        enough = curve[curve["accuracy"] >= curve["accuracy"].iloc[-1] - tolerance]
        chosen = curve[curve["threshold"] == model.threshold_].iloc[0]
        assert chosen["cost"] == enough["cost"].min()
        assert last is None or chosen["cost"] <= last
        last = chosen["cost"]
    assert last == 1  # any loss is allowed: nobody asks the second stage


def test_late_stages_see_only_open_rows(iris):
    class Counting(LogisticRegression):
        seen = []

        def decision_function(self, X):
            self.seen.append(len(X))
            return super().decision_function(X)

    X, y = iris
    parts = stages()
    parts[1] = ("all", Counting(max_iter=500), [0, 1, 2, 3])
    model = EarlyExit(parts, [1, 10]).fit(X, y)
    model.threshold_ = 0.7
    Counting.seen.clear()
    asked = (model.answering_stage(X) == 1).sum()
    assert Counting.seen == [asked]
    assert 0 < asked < len(X)


def test_curve_is_of_rows_that_no_stage_has_seen(iris):
    from sklearn.neighbors import KNeighborsClassifier

    X, y = iris
    noise = np.random.default_rng(0).permutation(y)
    nearest = [("a", KNeighborsClassifier(1), [0, 1]), ("b", KNeighborsClassifier(1), [0, 1, 2, 3])]
    model = EarlyExit(nearest, [1, 1]).fit(X, noise)
    assert model.curve_["accuracy"].max() < 0.5 < model.score(X, noise)


def test_three_stages_of_margins_with_groups():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 30)
    X = rng.normal(size=(90, 6)) + 2 * np.repeat(np.eye(3), 2, axis=1)[np.repeat(range(3), 30)]
    machine = OneVsRestClassifier(LinearSVC())
    late = LateFusion([("x", machine, [0, 1, 2]), ("y", machine, [3, 4, 5])], how="margin")
    parts = [("one", machine, [0, 1]), ("two", machine, [0, 1, 2]), ("all", late, list(range(6)))]
    model = EarlyExit(parts, [1, 2, 3], cv=3).fit(X, labels, groups=np.arange(90) // 2)
    assert model.temperatures_.shape == (3,)
    assert model.score(X, labels) > 0.8
    assert clone(model).get_params()["tolerance"] == 0.0
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stages": stages()[:1], "costs": [1]}, "at least two stages"),
        ({"costs": [1]}, "one number a stage"),
        ({"costs": [1, -1]}, "at least 0"),
        ({"costs": [1, "x"]}, "at least 0"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"stages": [("a", 1)]}, "list of"),
        ({"stages": stages(cheap=StandardScaler())}, "neither predict_proba"),
    ],
)
def test_bad_cascade_is_refused(iris, parameters, message):
    options = {"stages": stages(), "costs": [1, 10]} | parameters
    with pytest.raises((ValueError, TypeError), match=message):
        EarlyExit(**options).fit(*iris)


def test_unfitted_cascade_says_so(iris):
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        EarlyExit(stages(), [1, 10]).predict(iris[0])


def test_feature_tables_pass_through(iris):
    X, y = iris
    table = pd.DataFrame(X, columns=list("abcd"))
    parts = [("cheap", stages()[0][1], ["a", "b"]), ("all", stages()[1][1], list("abcd"))]
    found = EarlyExit(parts, [1, 10]).fit(table, y).predict(table)
    np.testing.assert_array_equal(found, EarlyExit(stages(), [1, 10]).fit(X, y).predict(X))
