"""Late and early fusion of frozen features on the emoji, with machines and networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from cmlearn.datasets import load_emoji
from cmlearn.fusion import Fusion, LateFusion
from cmlearn.image import PretrainedCNN
from cmlearn.metrics import bootstrap_difference, macro_f1
from cmlearn.models import NeuralClassifier
from cmlearn.runtime import save_run
from cmlearn.text import GloVeEncoder

SEEDS = (0, 1, 2)
FOLDS = 5
SOURCES = [
    f"cmlearn/{module}.py"
    for module in (
        "_training",
        "_word_codes",
        "_word_vectors",
        "datasets/_common",
        "datasets/_emoji",
        "efficientnet",
        "fusion",
        "image",
        "metrics",
        "models",
        "reference/emoji",
        "text",
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


def run(path: Path) -> None:
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
