"""Frozen features on the photographs of groceries: classifiers, few-shot and zero-shot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC

from cmlearn.datasets import load_grocery
from cmlearn.finetuning import coarse_to_fine, family_probabilities
from cmlearn.image import PretrainedCNN
from cmlearn.metrics import bootstrap_interval, mcnemar
from cmlearn.runtime import save_run
from cmlearn.text import SentenceEncoder

SOURCES = [
    f"cmlearn/{module}.py"
    for module in (
        "_sentences",
        "datasets/_grocery",
        "efficientnet",
        "finetuning",
        "image",
        "metrics",
        "reference/grocery",
        "text",
    )
]

# What the frozen networks say of a photograph.
VIEWS = {
    "lite0": ("efficientnet-lite0", None),
    "lite0 block14": ("efficientnet-lite0", "block14"),
    "lite0 block12": ("efficientnet-lite0", "block12"),
    "lite2": ("efficientnet-lite2", None),
}
# Sets of features, the smallest first.
SETS = {
    "lite0": ("lite0",),
    "lite2": ("lite2",),
    "lite0 + lite2": ("lite0", "lite2"),
    "all four": tuple(VIEWS),
}
QUICK = "lite0 + lite2"
SHOTS = (1, 2, 4, 8, 16)
REPEATS = 3
HELD_OUT = 20  # kinds, in each repeat
N_OFFSETS = 41
SEARCHED = (1e1, 1e2, 1e3, 1e4, 1e5)  # strengths of the ridge


def run(path: Path) -> None:
    """Compute every experiment of the page in full, and store it."""
    grocery = load_grocery()
    features = {name: view_features(grocery.data["image"], name) for name in VIEWS}
    icons = {name: view_features(grocery.classes["icon"], name) for name in VIEWS}
    texts = SentenceEncoder().fit_transform(grocery.classes["description"])
    zero, trade_offs = zero_shot(grocery, features["lite0"], icons["lite0"], texts, repeats=REPEATS)
    results = {
        "n_test": int(np.sum(grocery.split == "test")),
        "classifiers": classifiers(grocery, features),
        "cheating": cheating(grocery, features["lite0"], texts),
        "hierarchy": hierarchy(grocery, features),
        "few_shot": few_shot(grocery, features["lite0"], icons["lite0"], repeats=REPEATS),
        "zero_shot": zero.to_dict("records"),
        "trade_offs": trade_offs,
    }
    save_run(path, results, sources=SOURCES)


def view_features(images, name: str) -> np.ndarray:
    """Return one view of the images, (n, width) float32; cached by content."""
    model, layer = VIEWS[name]
    return PretrainedCNN(model, layer=layer).fit_transform(images)


def discriminant() -> LinearDiscriminantAnalysis:
    """Return linear discriminant analysis whose covariance is shrunk by Ledoit and Wolf's rule."""
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")


def joined(
    features: dict[str, np.ndarray], names: tuple[str, ...], train: np.ndarray
) -> np.ndarray:
    """Put views side by side, each standardised on the training rows and of the same total size."""
    blocks = []
    for name in names:
        scaler = StandardScaler().fit(features[name][train])
        blocks.append(scaler.transform(features[name]) / np.sqrt(features[name].shape[1]))
    return np.hstack(blocks)


def classifiers(grocery, features: dict[str, np.ndarray]) -> dict[str, dict]:
    """Return the scores of the support vector machine and of the discriminant on each set."""
    train, test = grocery.split == "train", grocery.split == "test"
    target = grocery.target
    X, answers = features["lite0"], {}
    for name, scale in {
        "lite0, SVM": Normalizer(),
        "lite0 standardised, SVM": StandardScaler(),
    }.items():
        machine = make_pipeline(scale, SVC(C=10)).fit(X[train], target[train])
        answers[name] = machine.predict(X[test])
    for name, views in SETS.items():
        X = joined(features, views, train)
        answers[f"{name}, discriminant"] = (
            discriminant().fit(X[train], target[train]).predict(X[test])
        )
    scores = {name: score(grocery, target[test], found) for name, found in answers.items()}
    best, second = sorted(scores, key=lambda name: -scores[name]["fine"])[:2]
    p_value = mcnemar(target[test], answers[best], answers[second]).pvalue
    scores[best] |= {"second": second, "p_against_second": float(p_value)}
    return scores


def score(grocery, truth: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Return fine and coarse accuracy with bootstrap intervals over the photographs."""
    found = {}
    for kind, names in (("fine", np.arange(81)), ("coarse", grocery.coarse_of_fine)):
        interval = bootstrap_interval(accuracy_score, names[truth], names[answers], random_state=0)
        found |= {
            kind: interval.estimate,
            f"{kind}_low": interval.low,
            f"{kind}_high": interval.high,
        }
    return found


def cheating(grocery, pictures: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """Return what is scored when each test photograph comes with the description of its kind."""
    train, test = grocery.split == "train", grocery.split == "test"
    pictures, beside = unit(pictures), unit(texts)[grocery.target]
    offered = {
        "picture": pictures,
        "description of the kind": beside,
        "both": np.hstack([pictures, beside]),
    }
    machine = SVC(kernel="linear", C=10)
    return {
        name: float(
            machine.fit(X[train], grocery.target[train]).score(X[test], grocery.target[test])
        )
        for name, X in offered.items()
    }


def hierarchy(grocery, features: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the accuracies of the ways in which kinds and families can be decided."""
    train, test = grocery.split == "train", grocery.split == "test"
    X, families = joined(features, SETS[QUICK], train), grocery.coarse_of_fine
    fine = discriminant().fit(X[train], grocery.target[train])
    coarse = discriminant().fit(X[train], grocery.coarse_target[train])
    p = fine.predict_proba(X[test])
    best, truth = p.argmax(axis=1), grocery.target[test]
    wrong = best != truth
    return {
        "fine": accuracy_score(truth, best),
        "fine, family first": accuracy_score(truth, coarse_to_fine(p, families)),
        "coarse, of the best kind": accuracy_score(families[truth], families[best]),
        "coarse, by the sums": accuracy_score(
            families[truth], family_probabilities(p, families).argmax(axis=1)
        ),
        "coarse, trained on families": accuracy_score(families[truth], coarse.predict(X[test])),
        "certain": float(np.mean(p.max(axis=1) > 0.99)),
        "mistakes inside the family": float(
            np.mean(families[truth[wrong]] == families[best[wrong]])
        ),
    }


# --- Few photographs -----------------------------------------------------------------------------


class Prototypes(ClassifierMixin):
    """Nearest class mean by cosine, to which a picture that is given for each class may belong."""

    def __init__(self, pictures: np.ndarray | None = None, weight: float = 1.0):
        self.pictures = pictures
        self.weight = weight

    def fit(self, X: np.ndarray, y: np.ndarray) -> Prototypes:
        """Average the rows of each class, and the picture of it as so many rows more."""
        self.classes_ = np.unique(y)
        sums = np.array([X[y == one].sum(axis=0) for one in self.classes_])
        counts = np.array([np.sum(y == one) for one in self.classes_], dtype=float)
        if self.pictures is not None:
            sums = sums + self.weight * self.pictures[self.classes_]
            counts += self.weight
        self.means_ = unit(sums / counts[:, None])
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the class whose mean has the largest cosine."""
        return self.classes_[(unit(X) @ self.means_.T).argmax(axis=1)]


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale every row to length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def few_shot(grocery, pictures: np.ndarray, icons: np.ndarray, *, repeats: int) -> dict[str, dict]:
    """Return for each method and number of photographs a kind the accuracy of each repeat."""
    train, test = np.flatnonzero(grocery.split == "train"), grocery.split == "test"
    scaler = StandardScaler().fit(pictures[train])
    X, icons = scaler.transform(pictures), scaler.transform(icons)
    methods = {
        "class means": lambda: Prototypes(),
        "class means with the icon": lambda: Prototypes(icons),
        "discriminant": discriminant,
    }
    scores: dict[str, dict] = {name: {} for name in methods}
    for shots in SHOTS:
        for name, make in methods.items():
            if shots == 1 and name == "discriminant":
                continue  # one row a class leaves nothing to estimate a covariance from
            scores[name][str(shots)] = [
                float(
                    np.mean(
                        make().fit(X[rows], grocery.target[rows]).predict(X[test])
                        == grocery.target[test]
                    )
                )
                for rows in (drawn(grocery.target, train, shots, seed) for seed in range(repeats))
            ]
    return scores | {"icon alone": {"0": [icon_alone(grocery, X, icons)]}}


def drawn(target: np.ndarray, rows: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Return so many of the rows of each class, or all where there are fewer."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.concatenate([order[target[order] == one][:shots] for one in np.unique(target[rows])])


def icon_alone(grocery, X: np.ndarray, icons: np.ndarray) -> float:
    """Return the accuracy of the nearest iconic picture, with no photograph to learn from."""
    test = grocery.split == "test"
    nearest = (unit(X[test]) @ unit(icons).T).argmax(axis=1)
    return float(np.mean(nearest == grocery.target[test]))


# --- Kinds without a photograph ------------------------------------------------------------------


def zero_shot(
    grocery, pictures: np.ndarray, icons: np.ndarray, texts: np.ndarray, *, repeats: int
) -> tuple[pd.DataFrame, dict[str, list[dict]]]:
    """Return accuracies on kinds of which no photograph was seen, a row a repeat and knowledge.

    A ridge regression maps photographs to the codes of their kinds; a photograph goes to the kind
    whose code lies nearest to where it is mapped. Beside the table stands the `trade_off` of every
    repeat, by knowledge.
    """
    knowledge = {
        "icon": unit(icons - icons.mean(axis=0)),
        "description": unit(texts - texts.mean(axis=0)),
    }
    knowledge["both"] = np.hstack(list(knowledge.values()))
    rows, trade_offs = [], {name: [] for name in knowledge}
    target = grocery.target[grocery.split == "test"]
    for seed in range(repeats):
        unseen = unseen_kinds(len(texts), seed)
        for name, codes in knowledge.items():
            likeness = without_photographs(grocery, pictures, codes, unseen)
            scores = zero_shot_scores(likeness, target, unseen)
            rows.append({"repeat": seed, "knowledge": name} | scores)
            trade_offs[name].append(trade_off(likeness, target, unseen))
    return pd.DataFrame(rows), trade_offs


def without_photographs(grocery, pictures, codes: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Return how like each kind the test photographs are when those of some kinds are held out."""
    target, is_unseen = grocery.target, np.isin(grocery.target, unseen)
    train = (grocery.split == "train") & ~is_unseen
    test = grocery.split == "test"
    scaler = StandardScaler().fit(pictures[train])
    X = scaler.transform(pictures)
    ridge = Ridge(chosen_strength(X[train], target[train], codes)).fit(
        X[train], codes[target[train]]
    )
    return unit(ridge.predict(X[test])) @ unit(codes).T


def unseen_kinds(n_kinds: int, seed: int) -> np.ndarray:
    """Draw the kinds of which no photograph is shown."""
    return np.random.default_rng(seed).permutation(n_kinds)[:HELD_OUT]


def zero_shot_scores(
    likeness: np.ndarray, target: np.ndarray, unseen: np.ndarray
) -> dict[str, float]:
    """Return the accuracies of answers by likeness, on kinds with and without photographs.

    Parameters
    ----------
    likeness : ndarray of shape (n, n_kinds)
        Of each photograph and the code of each kind.
    target : ndarray of shape (n,), int
        The kind of each photograph.
    unseen : ndarray of int
        The kinds of which no photograph was seen in training.

    Returns
    -------
    dict
        ``among unseen``: share of the photographs of unseen kinds that are right when only unseen
        kinds may be answered, and its ``chance``; ``seen, among all`` and ``unseen, among all``:
        shares when every kind may be answered, and their ``harmonic mean``.
    """
    is_unseen = np.isin(target, unseen)
    among_unseen = unseen[likeness[is_unseen][:, unseen].argmax(axis=1)]
    right = likeness.argmax(axis=1) == target
    seen_right, unseen_right = float(right[~is_unseen].mean()), float(right[is_unseen].mean())
    total = seen_right + unseen_right
    return {
        "among unseen": float(np.mean(among_unseen == target[is_unseen])),
        "chance": 1 / len(unseen),
        "seen, among all": seen_right,
        "unseen, among all": unseen_right,
        "harmonic mean": 2 * seen_right * unseen_right / total if total else 0.0,
    }


def trade_off(likeness: np.ndarray, target: np.ndarray, unseen: np.ndarray) -> dict:
    """Return the accuracies on seen and unseen kinds as the seen ones are held back.

    Every kind may be answered, and a constant is taken off the likeness of all seen kinds [1]_.

    Parameters
    ----------
    likeness : ndarray of shape (n, n_kinds)
        Of each photograph and the code of each kind.
    target : ndarray of shape (n,), int
        The kind of each photograph.
    unseen : ndarray of int
        The kinds of which no photograph was seen in training.

    Returns
    -------
    dict
        ``offset``, ``seen``, ``unseen`` : lists of float, the constant and the accuracies that it
        gives, from one that leaves every answer to the seen kinds to one that leaves none.
        ``area`` : float, under the curve of unseen over seen.

    References
    ----------
    .. [1] W.-L. Chao, S. Changpinyo, B. Gong and F. Sha, "An empirical study and analysis of
       generalized zero-shot learning for object recognition in the wild", ECCV 2016.
       https://doi.org/10.1007/978-3-319-46475-6_4
    """
    likeness = likeness.astype(float)
    seen = np.setdiff1d(np.arange(likeness.shape[1]), unseen)
    familiar, new = likeness[:, seen], likeness[:, unseen]
    lead = familiar.max(axis=1) - new.max(axis=1)
    familiar_right = seen[familiar.argmax(axis=1)] == target
    new_right = unseen[new.argmax(axis=1)] == target
    is_unseen = np.isin(target, unseen)
    offsets = np.quantile(lead, np.linspace(0, 1, N_OFFSETS))
    offsets[0] = np.nextafter(offsets[0], -np.inf)
    stays = lead > offsets[:, None]
    on_seen = (stays & familiar_right)[:, ~is_unseen].mean(axis=1)
    on_unseen = (~stays & new_right)[:, is_unseen].mean(axis=1)
    return {
        "offset": offsets.tolist(),
        "seen": on_seen.tolist(),
        "unseen": on_unseen.tolist(),
        "area": float(-np.trapezoid(on_unseen, on_seen)),
    }


def chosen_strength(X: np.ndarray, target: np.ndarray, codes: np.ndarray) -> float:
    """Choose the ridge's strength by other held-out kinds of the training photographs."""
    kinds = np.random.default_rng(0).permutation(np.unique(target))
    pretended = kinds[: len(kinds) // 4]
    held = np.isin(target, pretended)
    found = []
    for strength in SEARCHED:
        ridge = Ridge(strength).fit(X[~held], codes[target[~held]])
        likeness = unit(ridge.predict(X[held])) @ unit(codes[pretended]).T
        found.append(np.mean(pretended[likeness.argmax(axis=1)] == target[held]))
    return SEARCHED[int(np.argmax(found))]
