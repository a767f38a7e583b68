"""What every fusion of the emoji costs and what it reaches, and what makes it cheaper."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from cmlearn import comparison
from cmlearn.efficiency import (
    DistilledClassifier,
    EarlyExit,
    compress_tensor_fusion,
    export_onnx,
    graph_costs,
    interleaved_times,
    network_inputs,
    onnx_session,
    quantize_onnx,
    run_onnx,
    svm_costs,
)
from cmlearn.fusion import Fusion
from cmlearn.model_selection import _parts, paired_tests, score_intervals
from cmlearn.models import FUSIONS, SEQUENCE_FUSIONS, FusionClassifier, count_parameters
from cmlearn.reference import methods
from cmlearn.runtime import save_run

FOLDS = 5
REPEATS = 3
PAIRED_FOLDS = 2  # of each repeat, for what is only compared with itself
BATCHES = (1, 256)
UNITS = 128  # as the networks of the run "methods" have them
SMALL_UNITS = 16
SMALL_FUSIONS = ("low-rank", "tensor")  # the tensor last
RANKS = (1, 2, 4, 8, 17)
CALIBRATION_ROWS = 32
TOLERANCES = (0.0, 0.01, 0.02)
SOURCES = methods.SOURCES + ["cmlearn/efficiency.py", "cmlearn/reference/efficiency.py"]


def pairs(table: pd.DataFrame, how: str) -> pd.DataFrame:
    """Return the emoji's features as a `FusionClassifier` with this ``how`` takes them.

    Pairs that lack one (names without a word that GloVe knows) are left out of the sequences.
    """
    attends = how in SEQUENCE_FUSIONS
    columns = {"image": "grid", "text": "words"} if attends else {"image": "cnn", "text": "glove"}
    found = comparison.as_pair(table, **columns)
    return found[found.notna().all(axis=1)] if attends else found


def network(how: str, *, units: int = UNITS, epochs: int = 30) -> FusionClassifier:
    """Return a fusion network, unfitted, with the training of the page "All methods compared"."""
    return FusionClassifier(
        how,
        units=units,
        epochs=epochs,
        batch_size=128,
        learning_rate=3e-3,
        validation_fraction=0.0,
        random_state=0,
    )


def fused(*columns: str) -> Fusion:
    """Return balanced features of the columns, side by side."""
    return Fusion([(name, "passthrough", name) for name in columns])


def teacher() -> BaseEstimator:
    """Return the most accurate method of the run "methods"."""
    return comparison.machines()[methods.BEST]


def students(columns: Iterable[str] = ("cnn", "glove")) -> dict[str, BaseEstimator]:
    """Return a small network that learns from labels, and the same with the teacher's answers."""
    make = partial(DistilledClassifier, teacher(), fused(*columns), cv=3, random_state=0)
    return {"student, labels alone": make(soft_weight=0.0), "student, distilled": make()}


def few_labels(X, y, groups, *, share: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that keep their label, and those that lose it; groups stay whole."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(round(1 / share), shuffle=True, random_state=0)
    unlabelled, labelled = next(folds.split(X, y, groups))
    return labelled, unlabelled


def with_few_labels(X_train, y_train, groups, X_test, y_test) -> dict[str, float]:
    """Return accuracies where a quarter of the training rows has a label."""
    known, unknown = few_labels(X_train, y_train, groups)
    X, y = X_train.iloc[known], y_train[known]
    plain, distilled = students().values()
    plain.fit(X, y, groups=groups[known])
    distilled.fit(X, y, groups=groups[known], unlabelled=X_train.iloc[unknown])
    return {
        "few labels: student, labels alone": plain.score(X_test, y_test),
        "few labels: student, distilled": distilled.score(X_test, y_test),
        "few labels: teacher": teacher().fit(X, y).score(X_test, y_test),
    }


def cascade(costs: Iterable[float], *, tolerance: float = 0.0) -> EarlyExit:
    """Return the cascade word vectors, then sentence code, then picture."""
    stages = [
        ("word vectors", comparison.fused(["glove"]), ["glove"]),
        ("+ sentence code", comparison.fused(["glove", "minilm"]), ["glove", "minilm"]),
        ("+ picture", teacher(), ["cnn", "glove", "minilm"]),
    ]
    return EarlyExit(stages, list(costs), tolerance=tolerance, cv=3)


def run(path: Path) -> None:
    """Count, time and cross-validate, and store what came out."""
    table, labels, groups = comparison.emoji_table()
    pixels = pictures(table)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        encoders = encoder_costs(table, pixels, folder)
        print(encoders)
        classify = stage_times(table, labels)
        print(classify)
        # A stage costs its own encoder and its own classifier.
        costs = [
            encoder["milliseconds_64"] + classify[name]
            for encoder, name in zip(encoders.values(), classify, strict=True)
        ]
        results = {
            "folds": FOLDS,
            "repeats": REPEATS,
            "n_pairs": len(labels),
            "encoders": encoders,
            "stages": {"classify": classify, "costs": costs},
            "image_network": image_network_times(pixels, folder),
            "costs": fusion_costs(table, labels, folder),
        }
        print(pd.DataFrame(results["costs"]).T.to_string())
        results |= cross_validated(table, labels, groups, pixels, costs, folder)
    save_run(path, results, sources=SOURCES)


def pictures(table: pd.DataFrame) -> np.ndarray:
    """Return the emoji's pictures as the image network takes them, (n, 224, 224, 3) uint8."""
    from cmlearn.image import decode, resize

    return np.stack([resize(decode(path), 224) for path in table["path"]])


# --- What things cost ----------------------------------------------------------------------------


def image_network(folder: Path) -> Path:
    """Write the image network up to the layer that the book uses, and return the file."""
    from cmlearn.efficientnet import EfficientNetLite

    return export_onnx(EfficientNetLite(layer=comparison.LAYER), folder / "image.onnx")


def encoder_costs(table: pd.DataFrame, pixels: np.ndarray, folder: Path) -> dict:
    """Return milliseconds a pair of every encoder, alone and many at once, and its operations."""
    from cmlearn.image import PretrainedCNN
    from cmlearn.text import GloVeEncoder, SentenceEncoder

    names, paths = list(table["name"][:256]), list(table["path"][:256])
    encoders = {
        "word vectors": (GloVeEncoder().fit(names), names),
        "sentence code": (SentenceEncoder(cache=False).fit(names), names),
        "picture": (PretrainedCNN(layer=comparison.LAYER, cache=False).fit(paths), paths),
    }
    found = {name: {} for name in encoders}
    for n_rows, n_repeats in ((1, 9), (64, 3)):
        calls = {
            name: partial(encoder.transform, rows[:n_rows])
            for name, (encoder, rows) in encoders.items()
        }
        times = interleaved_times(calls, n_repeats).median() / n_rows
        for name in found:
            found[name][f"milliseconds_{n_rows}"] = times[name]
    counted = graph_costs(image_network(folder), {"pixels": pixels[:2]})
    found["picture"] |= {"flops": counted.flops, "weight_bytes": counted.weight_bytes}
    return found


def stage_times(table: pd.DataFrame, labels: np.ndarray) -> dict[str, float]:
    """Return milliseconds a pair of the classifier of every stage of the cascade, by its name."""
    stages = cascade([0, 0, 0]).stages
    rows = table.iloc[:64]
    calls = {
        name: partial(classifier.fit(table[columns], labels).predict, rows[columns])
        for name, classifier, columns in stages
    }
    return (interleaved_times(calls, 5).median() / len(rows)).to_dict()


def image_network_times(pixels: np.ndarray, folder: Path) -> dict:
    """Return milliseconds of an image by the same network, run in four ways."""
    import tensorflow as tf

    from cmlearn.efficientnet import EfficientNetLite

    plain = image_network(folder)
    small = quantize_onnx(plain, folder / "int8.onnx", {"pixels": pixels[:CALIBRATION_ROWS]})
    found = {}
    calls = {}
    for name, fold in (("Keras, batch norm", False), ("Keras, folded", True)):
        model = EfficientNetLite(layer=comparison.LAYER, fold_batch_norm=fold)
        calls[name] = tf.function(partial(model, training=False), jit_compile=False)
    for name, file in (("ONNX, float32", plain), ("ONNX, int8", small)):
        calls[name] = partial(_onnx_pixels, onnx_session(file, n_threads=2))
    for n_rows, n_repeats in ((1, 15), (32, 5)):
        batch = pixels[:n_rows].astype(np.float32)
        times = interleaved_times({n: partial(f, batch) for n, f in calls.items()}, n_repeats)
        for name in calls:
            found.setdefault(name, {})[f"milliseconds_{n_rows}"] = times[name].median() / n_rows
            ratio = (times[name] / times["Keras, batch norm"]).median()
            found[name][f"ratio_{n_rows}"] = ratio
    found["ONNX, float32"]["bytes"] = plain.stat().st_size
    found["ONNX, int8"]["bytes"] = small.stat().st_size
    return found


def _onnx_pixels(session, pixels: np.ndarray) -> np.ndarray:
    return run_onnx(session, {"pixels": pixels})


def fusion_costs(table: pd.DataFrame, labels: np.ndarray, folder: Path) -> dict[str, dict]:
    """Return parameters, operations, bytes and time of every fusion, by name.

    Times are medians of ratios to the concatenation by a network, in rounds in which all are
    called in turns, and that network's milliseconds. They leave the encoders out.
    """
    rows = np.random.default_rng(0).permutation(len(table))
    found, calls = {}, {n_rows: {} for n_rows in BATCHES}
    settings = [(how, UNITS) for how in FUSIONS] + [(how, SMALL_UNITS) for how in SMALL_FUSIONS]
    for how, units in settings:
        name = network_name(how, units)
        part = pairs(table.iloc[rows], how)
        # The weights do not matter here, so a single epoch will do.
        fitted = network(how, units=units, epochs=1).fit(part[:400], labels[part.index[:400]])
        inputs = network_inputs(fitted, part[: max(BATCHES)])
        file = export_onnx(fitted, folder / "fusion.onnx")
        found[name] = _costs(graph_costs(file, inputs), count_parameters(fitted))
        session = onnx_session(file)
        for n_rows in BATCHES:
            few = {key: array[:n_rows] for key, array in inputs.items()}
            calls[n_rows][name] = partial(run_onnx, session, few)
    for name in MACHINES:
        fitted = comparison.machines()[name].fit(table, labels)
        counted = svm_costs(fitted)
        found[name] = _costs(counted, counted.parameters)
        for n_rows in BATCHES:
            calls[n_rows][name] = partial(fitted.predict, table.iloc[:n_rows])
    for name, student in students().items():
        student.set_params(soft_weight=0.0, epochs=1).fit(table, labels)
        inputs = {"features": student._student_features(table[: max(BATCHES)])}
        file = export_onnx(student, folder / "fusion.onnx")
        found[name] = _costs(graph_costs(file, inputs), count_parameters(student))
        session = onnx_session(file)
        for n_rows in BATCHES:
            few = {key: array[:n_rows] for key, array in inputs.items()}
            calls[n_rows][name] = partial(run_onnx, session, few)
    for n_rows in BATCHES:
        times = interleaved_times(calls[n_rows], 15 if n_rows == 1 else 5)
        concat = times[network_name("concat", UNITS)]
        for name in found:
            found[name][f"ratio_{n_rows}"] = (times[name] / concat).median()
            found[name][f"milliseconds_{n_rows}"] = times[name].median()
    return found


MACHINES = ("cnn + glove: concat", "cnn + glove: margins of all sets", methods.BEST)


def network_name(how: str, units: int) -> str:
    """Return the name of a network, that of the run "methods" for the networks in there."""
    name = f"cnn + glove: network, {how}"
    return name if units == UNITS else f"{name}, {units} units"


def _costs(counted, parameters: int) -> dict:
    memory = {f"bytes_{n}": counted.weight_bytes + counted.activation_bytes(n) for n in BATCHES}
    return {"parameters": parameters, "flops": counted.flops} | memory


# --- What they reach -----------------------------------------------------------------------------


def cross_validated(
    table: pd.DataFrame,
    labels: np.ndarray,
    groups: np.ndarray,
    pixels: np.ndarray,
    costs: list[float],
    folder: Path,
) -> dict:
    """Return accuracies on the folds of the run "methods", and the cascade's curves."""
    plain = image_network(folder)
    scores, pairwise, curves, chosen = [], [], [], []
    for repeat, fold, _, train, test in _parts(labels, groups, FOLDS, REPEATS, None, 0):
        key = {"repeat": repeat, "fold": fold, "train_size": 1.0, "variant": "as it is"}
        key |= {"n_train": len(train), "n_test": len(test)}
        parts = table.iloc[train], labels[train], table.iloc[test], labels[test]
        found = {}
        for name, student in students().items():
            student.fit(*parts[:2], groups=groups[train])
            found[name] = student.score(*parts[2:])
        if fold < PAIRED_FOLDS:
            paired = small_networks(*parts)
            paired |= with_few_labels(*parts[:2], groups[train], *parts[2:])
            paired |= with_int8(plain, pixels, table, labels, train, test, folder)
            pairwise += [{"method": n, "accuracy": value} | key for n, value in paired.items()]
            print(repeat, fold, {n: round(value, 3) for n, value in paired.items()}, flush=True)
        fitted = cascade(costs).fit(*parts[:2], groups=groups[train])
        curves.append(fitted.sweep(*parts[2:]))
        found[methods.BEST] = curves[-1]["accuracy"].iloc[-1]  # the last stage, asked about all
        chosen += [exits(fitted, tolerance, *parts[2:]) for tolerance in TOLERANCES]
        scores += [{"method": name, "accuracy": value} | key for name, value in found.items()]
        print(repeat, fold, {name: round(value, 3) for name, value in found.items()}, flush=True)
    scores, pairwise = pd.DataFrame(scores), pd.DataFrame(pairwise)
    intervals = score_intervals(scores) | score_intervals(pairwise)
    tests = paired_tests(scores, reference="student, labels alone").set_index("method")
    chosen = pd.DataFrame(chosen)
    return {
        "scores": {
            name: {"accuracy": i.estimate, "low": i.low, "high": i.high}
            for name, i in intervals.items()
        },
        "distillation": tests.loc["student, distilled"].drop("reference").to_dict(),
        "distillation_few": paired_tests(
            pairwise[pairwise["method"].str.startswith("few labels: student")],
            reference="few labels: student, labels alone",
        ).iloc[0][["difference", "low", "high", "pvalue"]].to_dict(),
        "int8": int8_tests(pairwise),
        "paired_folds": PAIRED_FOLDS,
        "cascade": {
            "curve": pd.concat(curves).groupby("threshold").mean().reset_index()
            .to_dict("list"),
            "chosen": chosen.groupby("tolerance").mean().reset_index().to_dict("list"),
        },
    }  # fmt: skip


def small_networks(X_train, y_train, X_test, y_test) -> dict[str, float]:
    """Return the accuracy of narrow networks, and of a tensor fusion compressed to low rank."""
    train, test = pairs(X_train, "concat"), pairs(X_test, "concat")
    found = {}
    for how in SMALL_FUSIONS:
        fitted = network(how, units=SMALL_UNITS).fit(train, y_train)
        found[network_name(how, SMALL_UNITS)] = fitted.score(test, y_test)
    for rank in RANKS:  # of the tensor fusion, which was the last
        compressed = compress_tensor_fusion(fitted, rank)
        found[f"tensor, {SMALL_UNITS} units, cut to rank {rank}"] = compressed.score(test, y_test)
    return found


def with_int8(plain, pixels, table, labels, train, test, folder) -> dict[str, float]:
    """Return accuracies of machines that see test pictures through both image networks.

    The ranges of the activations are those of training pictures.
    """
    calibration = np.random.default_rng(0).choice(train, CALIBRATION_ROWS, replace=False)
    small = quantize_onnx(plain, folder / "fold.onnx", {"pixels": pixels[calibration]})
    features = run_onnx(onnx_session(small, n_threads=2), {"pixels": pixels[test]}, batch_size=32)
    rough = table.iloc[test].assign(cnn=list(features))
    found = {}
    for columns in (["cnn"], ["cnn", "glove"]):
        fitted = comparison.fused(columns).fit(table.iloc[train], labels[train])
        name = " + ".join(columns)
        found[f"{name}, float32"] = fitted.score(table.iloc[test], labels[test])
        found[f"{name}, int8"] = fitted.score(rough, labels[test])
    return found


def int8_tests(scores: pd.DataFrame) -> dict[str, dict]:
    """Return the accuracy that int8 costs, with an interval."""
    found = {}
    for name in ("cnn", "cnn + glove"):
        both = scores[scores["method"].isin([f"{name}, float32", f"{name}, int8"])]
        test = paired_tests(both, reference=f"{name}, float32").iloc[0]
        found[name] = {key: test[key] for key in ("difference", "low", "high", "pvalue")}
    return found


def exits(fitted: EarlyExit, tolerance: float, X_test, y_test) -> dict[str, float]:
    """Return what a fitted cascade does on test rows with the threshold for a tolerance."""
    fitted.tolerance = tolerance
    fitted.threshold_ = fitted.choose_threshold()
    everything = fitted.sweep(X_test, y_test).iloc[-1]
    return {
        "tolerance": tolerance,
        "threshold": fitted.threshold_,
        "accuracy": fitted.score(X_test, y_test),
        "cost": fitted.mean_cost(X_test),
        "accuracy_of_all": everything["accuracy"],
        "cost_of_all": everything["cost"],
        "share_of_last": float((fitted.answering_stage(X_test) == len(fitted.stages) - 1).mean()),
    }
