"""An honest baseline on anyone's pairs: build the models, split, judge, report.

`python -m cmlearn train` and the page "Your own data" run on these functions.
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cmlearn._folds import check_folds, stratified_folds
from cmlearn.fusion import Fusion, LateFusion
from cmlearn.image import CNNEncoder, PretrainedCNN
from cmlearn.metrics import bootstrap_interval, macro_f1
from cmlearn.models import NeuralClassifier
from cmlearn.text import GloVeEncoder


def build_classifier(name: str, *, seed: int, probabilities: bool = False) -> BaseEstimator:
    """Return an unfitted classifier.

    Parameters
    ----------
    name : {"linear-svm", "rbf-svm", "logistic", "mlp"}
        "linear-svm" is the article's ``SVC(kernel="linear")``.
    seed : int
        Seed of the parts that draw random numbers.
    probabilities : bool
        Late fusion needs class probabilities. A support vector machine has none, so it is
        calibrated by cross-validation (Platt, 1999) when they are asked for.

    Returns
    -------
    classifier

    Raises
    ------
    ValueError
        If there is no classifier of that name.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    if name == "mlp":
        return NeuralClassifier(random_state=seed)
    if name == "logistic":
        return LogisticRegression(C=1.0, max_iter=2000)
    machines = {"linear-svm": SVC(kernel="linear"), "rbf-svm": SVC(kernel="rbf", C=10.0)}
    if name not in machines:
        raise ValueError(
            f"classifier must be one of linear-svm, rbf-svm, logistic, mlp; got {name!r}"
        )
    machine = machines[name]
    return CalibratedClassifierCV(machine, ensemble=False) if probabilities else machine


def build_image_encoder(name: str, *, seed: int, verbose: bool = False) -> BaseEstimator:
    """Return an unfitted `CNNEncoder` for "cnn", else the `PretrainedCNN` of that name."""
    if name == "cnn":
        return CNNEncoder(random_state=seed)
    return PretrainedCNN(name, verbose=verbose)


def build_models(
    *,
    image_encoder: str = "efficientnet-lite0",
    glove: str = "glove-6b-50d",
    fusion: str = "concat",
    classifier: str = "linear-svm",
    seed: int = 42,
    verbose: bool = False,
) -> dict[str, BaseEstimator]:
    """Return the unfitted models to compare on the same pairs.

    Parameters
    ----------
    image_encoder : str
        "efficientnet-lite0", "efficientnet-lite2", "cnn", or a ``keras.applications`` name.
    glove : str
        "glove-6b-50d" or the path of a file of word vectors.
    fusion : {"concat", "mean", "product", "late-mean", "late-product"}
        How the two modalities meet.
    classifier : {"linear-svm", "rbf-svm", "logistic", "mlp"}
        See `build_classifier`.
    seed : int
        Seed of everything random.
    verbose : bool
        Show progress while images are encoded.

    Returns
    -------
    dict of str to estimator
        "image + text", "image alone", "text alone" and "most frequent class". Each is fitted on a
        DataFrame with the columns ``image`` and ``text``.
    """
    image = build_image_encoder(image_encoder, seed=seed, verbose=verbose)
    blocks = {"image": image, "text": GloVeEncoder(glove)}
    alone = {
        name: _early_fusion({name: blocks[name]}, "concat", classifier, seed) for name in blocks
    }
    if fusion.startswith("late-"):
        fused = _late_fusion(blocks, fusion.removeprefix("late-"), classifier, seed)
    else:
        fused = _early_fusion(blocks, fusion, classifier, seed)
    return {
        "image + text": fused,
        "image alone": alone["image"],
        "text alone": alone["text"],
        "most frequent class": DummyClassifier(strategy="most_frequent"),
    }


def _early_fusion(blocks: dict, how: str, classifier: str, seed: int) -> Pipeline:
    columns = [(name, encoder, name) for name, encoder in blocks.items()]
    fusion = Fusion(columns, how=how, random_state=seed)
    return Pipeline([("fusion", fusion), ("classifier", build_classifier(classifier, seed=seed))])


def _late_fusion(blocks: dict, how: str, classifier: str, seed: int) -> LateFusion:
    def branch(encoder: BaseEstimator) -> Pipeline:
        judge = build_classifier(classifier, seed=seed, probabilities=True)
        return make_pipeline(encoder, StandardScaler(), judge)

    return LateFusion([(name, branch(encoder), name) for name, encoder in blocks.items()], how=how)


def split_pairs(
    labels: np.ndarray, groups: np.ndarray, *, test_size: float = 0.2, seed: int = 42
) -> tuple[np.ndarray, np.ndarray]:
    """Split pairs into a training and a test part with about the same share of each class.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        The class names.
    groups : ndarray of shape (n,)
        Pairs of one group are related and stay on one side, if there are such groups.
    test_size : float
        Share of the test part, in (0, 1). With groups it is only met roughly: about the nearest of
        1/2, 1/3, 1/4, … is taken, and groups stay whole. Without, it is missed by a row for each
        class so rare that one of its rows had to change sides.
    seed : int
        Seed of the shuffle.

    Returns
    -------
    train, test : ndarray of int
        Row numbers.

    Raises
    ------
    ValueError
        If a class has a single pair or group, or a part is too small to hold every class.
    """
    members = _groups_of_each_class(labels, groups)
    lonely = sorted(str(name) for name, size in members.items() if size < 2)
    if lonely:
        raise ValueError(
            f"these classes have a single pair (or a single group): {', '.join(lonely[:10])}. A "
            "split needs at least two of each, one to learn from and one to judge by. Add pairs, "
            "or remove the class."
        )
    n_test = int(np.ceil(test_size * len(labels)))
    if min(n_test, len(labels) - n_test) < len(members):
        raise ValueError(
            f"{len(labels)} pairs with a test share of {test_size:g} give {len(labels) - n_test} "
            f"for training and {n_test} for the test, but there are {len(members)} classes and "
            "each part needs one pair of each. Add pairs or change the share."
        )
    rows = np.arange(len(labels))
    if related(groups) is None:
        return _with_every_class(
            *train_test_split(rows, test_size=test_size, random_state=seed, stratify=labels), labels
        )
    n_folds = min(range(2, len(set(groups)) + 1), key=lambda n: abs(1 / n - test_size))
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class need not be in every fold: the first one that has all classes is taken.
        warnings.filterwarnings("ignore", message="The least populated class")
        splits = list(folds.split(rows, labels, groups))
    for train, test in splits:
        if len(set(labels[train])) == len(set(labels[test])) == len(members):
            return train, test
    raise ValueError(
        f"no split with a test share of {test_size:g} was found that keeps each group whole and "
        f"has every class on both sides; the class with the fewest groups is {members.idxmin()!r} "
        f"with {members.min()}. Add groups to the small classes, or change the share."
    )


def _with_every_class(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move a row of each class that one side lacks there from the other side."""
    for name in dict.fromkeys(labels):
        if name not in labels[test]:
            row = train[labels[train] == name][0]
            train, test = train[train != row], np.append(test, row)
        elif name not in labels[train]:
            row = test[labels[test] == name][0]
            train, test = np.append(train, row), test[test != row]
    return train, test


def _groups_of_each_class(labels: np.ndarray, groups: np.ndarray) -> pd.Series:
    return pd.Series(groups).groupby(np.asarray(labels, dtype=object)).nunique()


def check_training_part(labels: np.ndarray, *, fusion: str, classifier: str) -> None:
    """Refuse a class of one training pair where a part of that is held back to learn from.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        The class names of a training part.
    fusion, classifier : str
        As for `build_models`.

    Raises
    ------
    ValueError
        If a network would stop early by a part of the training pairs, or late fusion calibrate a
        support vector machine on one, and a class has a single pair there.
    """
    if classifier == "mlp":
        option, other = "--classifier mlp", "another classifier"
    elif fusion.startswith("late-") and classifier.endswith("-svm"):
        option, other = f"--fusion {fusion}", "another fusion, or --classifier logistic"
    else:
        return
    names, counts = np.unique(np.asarray(labels, dtype=str), return_counts=True)
    lonely = names[counts < 2].tolist()
    if lonely:
        raise ValueError(
            f"these classes have a single pair in a training part: {', '.join(lonely[:10])}. "
            f"{option} holds back a part of the training pairs and needs two of each class. Add "
            f"pairs, take {other}, or remove the class."
        )


def related(groups: np.ndarray | None) -> np.ndarray | None:
    """Return the groups, or None where each holds a single pair."""
    return None if groups is None or len(set(groups)) == len(groups) else groups


def shared_images(train: pd.DataFrame, test: pd.DataFrame) -> int:
    """Count the test images whose file is byte for byte one of the training files."""
    seen = {_content(image) for image in train["image"].dropna()}
    return sum(_content(image) in seen for image in test["image"].dropna())


def _content(image: object) -> bytes:
    import hashlib

    if isinstance(image, str | os.PathLike):
        with open(image, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    raw = image if isinstance(image, bytes) else np.asarray(image).tobytes()
    return hashlib.sha256(raw).digest()


def compare(
    predictions: dict[str, np.ndarray],
    y_true: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    seed: int = 42,
) -> pd.DataFrame:
    """Return accuracy, its 95% interval and macro-F1, a row a model.

    The interval is that of Wilson [1]_ where pairs are independent. Where groups of them are
    related, it is the percentile bootstrap over groups; but a bootstrap of answers that are all
    right (or all wrong) has no width, so that there it is Wilson's, with a group as one answer.

    Parameters
    ----------
    predictions : dict of str to ndarray of shape (n,)
        Predicted labels of each model.
    y_true : ndarray of shape (n,)
        True labels.
    groups : ndarray of shape (n,), optional
        Pairs of one group are related. Where all pairs are of one group, there is nothing else to
        count than pairs.
    seed : int
        Seed of the resampling.

    Returns
    -------
    DataFrame
        Index: the models. Columns: ``accuracy``, ``low``, ``high``, ``macro F1``.

    References
    ----------
    .. [1] E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
       Journal of the American Statistical Association 22, 1927.
       https://doi.org/10.1080/01621459.1927.10502953
    """
    groups = related(groups)
    if groups is not None and len(set(groups)) < 2:
        groups = None
    rows = {}
    for name, y_pred in predictions.items():
        low, high = _accuracy_interval(y_true, y_pred, groups, seed)
        rows[name] = {
            "accuracy": accuracy_score(y_true, y_pred),
            "low": low,
            "high": high,
            "macro F1": macro_f1(y_true, y_pred),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _accuracy_interval(
    y_true: np.ndarray, y_pred: np.ndarray, groups: np.ndarray | None, seed: int
) -> tuple[float, float]:
    from scipy.stats import binomtest

    right, n = int(accuracy_score(y_true, y_pred, normalize=False)), len(y_true)
    if groups is not None and 0 < right < n:
        drawn = bootstrap_interval(accuracy_score, y_true, y_pred, groups=groups, random_state=seed)
        return drawn.low, drawn.high
    if groups is not None:
        n = len(set(groups))
        right = min(right, n)  # none, or all of them
    wilson = binomtest(right, n).proportion_ci(method="wilson")
    return float(wilson.low), float(wilson.high)


def split_folds(
    labels: np.ndarray, groups: np.ndarray, *, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the row numbers of the training and test part of each fold of `cross_validate`."""
    check_folds(labels, related(groups), folds, "ask for fewer folds (--cv)")
    return stratified_folds(labels, groups, folds, random_state=seed)


def cross_validate(
    models: dict[str, BaseEstimator],
    data: pd.DataFrame,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    folds: int,
    seed: int,
) -> pd.DataFrame:
    """Return the accuracy over stratified folds, a row a model.

    Groups stay whole, as in `split_pairs`.

    Returns
    -------
    DataFrame
        Index: the models. Columns: ``mean``; ``spread``, the standard deviation over the folds;
        ``folds``, the list of the folds' accuracies. The folds are the same for every model.

    Raises
    ------
    ValueError
        If a class has fewer pairs or groups than there are folds.
    """
    splits = split_folds(labels, groups, folds=folds, seed=seed)
    scores = {
        name: cross_val_score(model, data, labels, cv=splits, error_score="raise")
        for name, model in models.items()
    }
    rows = {
        name: {"mean": s.mean(), "spread": s.std(ddof=1), "folds": s.tolist()}
        for name, s in scores.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
