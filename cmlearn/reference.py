"""The book's reference runs: ``python -m cmlearn.reference emoji``, or ``methods``.

A run is stored as JSON under ``book/_runs``; pages show it beside what they compute themselves, and
a test holds the book's claims against it.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from cmlearn import comparison
from cmlearn.datasets import load_emoji
from cmlearn.fusion import Fusion, LateFusion
from cmlearn.image import PretrainedCNN
from cmlearn.metrics import bootstrap_difference, macro_f1
from cmlearn.model_selection import compare_methods, paired_tests, score_intervals
from cmlearn.models import NeuralClassifier
from cmlearn.runtime import save_run
from cmlearn.text import GloVeEncoder

RUNS = Path(__file__).resolve().parent.parent / "book" / "_runs"
SEEDS = (0, 1, 2)
FOLDS = 5
REPEATS = 10
SLOW_REPEATS = 3
MISSING_RATES = (0.25, 0.5, 0.75, 1.0)
BEST = "cnn + both texts: margins of all sets"
# What the scores depend on: a change in another module does not make a stored run stale.
SOURCES = [
    f"cmlearn/{module}.py"
    for module in (
        "_training",
        "_word_codes",
        "_word_vectors",
        "datasets",
        "efficientnet",
        "fusion",
        "image",
        "metrics",
        "models",
        "reference",
        "text",
    )
]
METHOD_SOURCES = SOURCES + [
    f"cmlearn/{module}.py"
    for module in (
        "_folds",
        "_sentences",
        "_spelling",
        "_subwords",
        "calibration",
        "comparison",
        "generation",
        "layers",
        "model_selection",
        "robustness",
    )
]


def emoji_features() -> tuple[np.ndarray, dict[str, slice], np.ndarray, np.ndarray]:
    """Return frozen features of the emoji.

    The features need no training, so computing them before the folds are drawn leaks nothing.

    Returns
    -------
    features : ndarray of shape (n, 242), float32
        Block 12 of EfficientNet-Lite0, then the mean GloVe vector of the name.
    columns : dict of str to slice
        Where "image" and "text" lie.
    labels : ndarray of shape (n,)
        Category names.
    groups : ndarray of shape (n,)
        Base emoji.
    """
    emoji = load_emoji()
    image = PretrainedCNN(layer="block12", verbose=True).fit_transform(emoji.data["image"])
    text = GloVeEncoder().fit_transform(emoji.data["text"])
    width = image.shape[1]
    columns = {"image": slice(0, width), "text": slice(width, width + text.shape[1])}
    labels = np.asarray(emoji.target_names)[emoji.target]
    return np.hstack([image, text]), columns, labels, emoji.groups


def emoji_models(columns: dict[str, slice], *, seed: int = 0) -> dict[str, BaseEstimator]:
    """Return the models that the book compares on the emoji features.

    Parameters
    ----------
    columns : dict of str to slice
        As `emoji_features` gives them.
    seed : int
        Seed of projections and networks.

    Returns
    -------
    dict of str to estimator
        Named by what they see and the classifier behind it.
    """

    def model(how: str, classifier: BaseEstimator, *names: str) -> Pipeline:
        blocks = [(name, "passthrough", columns[name]) for name in names]
        return Pipeline(
            [("fusion", Fusion(blocks, how=how, random_state=seed)), ("classifier", classifier)]
        )

    def late(how: str, classifier: BaseEstimator, *seen: tuple[str, ...]) -> LateFusion:
        everything = slice(0, columns["text"].stop)
        branches = [
            (" and ".join(names), model("concat", classifier, *names), everything) for names in seen
        ]
        return LateFusion(branches, how=how)

    svm, network = SVC(C=10), NeuralClassifier(random_state=seed)
    image, text, both = ("image",), ("text",), ("image", "text")
    return {
        "image, SVM": model("concat", svm, *image),
        "text, SVM": model("concat", svm, *text),
        "concat, SVM": model("concat", svm, *both),
        "mean, SVM": model("mean", svm, *both),
        "product, SVM": model("product", svm, *both),
        "late margins, SVM": late("margin", OneVsRestClassifier(svm), image, text, both),
        "image, network": model("concat", network, *image),
        "text, network": model("concat", network, *text),
        "concat, network": model("concat", network, *both),
        "late product, network": late("product", network, image, text),
    }


def run_emoji(path: Path = RUNS / "emoji.json") -> None:
    """Cross-validate every model on the emoji and store the scores."""
    features, columns, labels, groups = emoji_features()
    scores: dict[str, dict[str, list[float]]] = {}
    gains: dict[str, list[dict]] = {"SVM": [], "network": []}
    for seed in SEEDS:
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        predictions = {}
        for name, model in emoji_models(columns, seed=seed).items():
            predictions[name] = cross_val_predict(model, features, labels, groups=groups, cv=folds)
            entry = scores.setdefault(name, {"accuracy": [], "macro_f1": []})
            entry["accuracy"].append(accuracy_score(labels, predictions[name]))
            entry["macro_f1"].append(macro_f1(labels, predictions[name]))
            print(f"seed {seed}  {name:22} {entry['accuracy'][-1]:.3f} {entry['macro_f1'][-1]:.3f}")
        for classifier, entries in gains.items():
            entries.append(gain(predictions, labels, groups, classifier=classifier, seed=seed))
    results = {"seeds": SEEDS, "folds": FOLDS, "n_pairs": len(labels), "scores": scores}
    save_run(path, results | {"gains": gains}, sources=SOURCES)
    print(f"Wrote {path}")


def gain(
    predictions: dict[str, np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    classifier: str,
    seed: int,
) -> dict[str, float | str]:
    """Return by how much the best fusion beats the better single modality in macro-F1.

    Only models with the same kind of classifier are compared, "SVM" or "network". The interval
    resamples whole groups of the test rows.
    """
    names = [name for name in predictions if name.endswith(classifier)]
    alone = [name for name in names if name.startswith(("image,", "text,"))]
    fused = [name for name in names if name not in alone]

    def score(name: str) -> float:
        return macro_f1(labels, predictions[name])

    best_alone, best_fused = max(alone, key=score), max(fused, key=score)
    difference = bootstrap_difference(
        macro_f1,
        labels,
        predictions[best_fused],
        predictions[best_alone],
        groups=groups,
        random_state=seed,
    )
    return {
        "alone": best_alone,
        "fused": best_fused,
        "estimate": difference.estimate,
        "low": difference.low,
        "high": difference.high,
    }


def run_methods(path: Path = RUNS / "methods.json") -> None:
    """Cross-validate every method of `cmlearn.comparison` on the emoji and store the scores."""
    table, labels, groups = comparison.emoji_table()
    judge = partial(
        compare_methods, y=labels, groups=groups, random_state=0, n_jobs=-1, verbose=True
    )
    results: dict = {
        "folds": FOLDS,
        "repeats": REPEATS,
        "slow_repeats": SLOW_REPEATS,
        "n_pairs": len(labels),
    }
    once = {
        "styles": judge(
            comparison.style_methods(),
            table,
            n_repeats=1,
            variants={"as it is": unchanged} | comparison.other_styles(),
        ),
        "typos": judge(
            comparison.typo_methods(),
            table,
            n_repeats=1,
            variants={"as it is": unchanged, "one typo a word": comparison.with_typos},
        ),
        "missing": judge(
            comparison.missing_methods(),
            comparison.as_pair(table, image="cnn", text="glove"),
            n_repeats=1,
            variants={"as it is": unchanged} | comparison.missing_variants(MISSING_RATES),
        ),
    }
    for name, found in once.items():
        results[name] = accuracy_by_variant(found.predictions).to_dict("index")
        print(pd.DataFrame(results[name]).T.round(3).to_string())
    quick = judge(comparison.machines() | comparison.peers(), table, n_repeats=REPEATS).scores
    slow_methods = comparison.descriptors() | comparison.networks()
    slow = judge(slow_methods, table, n_repeats=SLOW_REPEATS).scores
    # The seed is the same, so the slow methods see the first of the quick ones' folds.
    both = pd.concat([quick[quick["repeat"] < SLOW_REPEATS], slow])
    tests = paired_tests(both, reference=BEST).set_index("method")
    tests.update(paired_tests(quick, reference=BEST).set_index("method"))
    results |= {"scores": summary(quick) | summary(slow), "tests": tests.to_dict("index")}
    save_run(path, results, sources=METHOD_SOURCES)
    print(f"Wrote {path}")


def unchanged(table: pd.DataFrame) -> pd.DataFrame:
    """Return the test rows as they are."""
    return table


def summary(scores: pd.DataFrame) -> dict[str, dict]:
    """Return the mean scores of each method, with an interval for the accuracy, by name."""
    intervals = score_intervals(scores)
    columns = ["accuracy", "macro_f1", "calibration_error", "fit_seconds", "predict_seconds"]
    means = scores.groupby("method", sort=False)[columns].mean()
    repeats = scores.groupby(["method", "repeat"])["accuracy"].mean()
    return {
        name: {
            **{key: None if np.isnan(value) else value for key, value in row.items()},
            "low": intervals[name].low,
            "high": intervals[name].high,
            "accuracy_by_repeat": repeats[name].tolist(),
        }
        for name, row in means.to_dict("index").items()
    }


def accuracy_by_variant(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy over all test rows: a row a method, a column a variant."""
    right = predictions.assign(right=predictions["label"] == predictions["prediction"])
    accuracy = right.groupby(["method", "variant"], sort=False)["right"].mean()
    return accuracy.unstack(sort=False)


def main() -> int:
    """Run what the command line names."""
    runs = {"emoji": run_emoji, "methods": run_methods}
    if len(sys.argv) != 2 or sys.argv[1] not in runs:
        print(f"usage: python -m cmlearn.reference {{{','.join(runs)}}}", file=sys.stderr)
        return 2
    runs[sys.argv[1]]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
