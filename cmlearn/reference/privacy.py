"""What privacy costs on the emoji, what an attack finds, and what federated training reaches."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import normalize

from cmlearn import comparison, privacy
from cmlearn.datasets import load_emoji, load_scenes
from cmlearn.federated import FederatedClassifier, VerticalClassifier, split_by_dirichlet
from cmlearn.image import PretrainedCNN
from cmlearn.privacy import (
    DPClassifier,
    epsilon_spent,
    membership_advantage,
    membership_scores,
    noise_needed,
    tpr_at_fpr,
)
from cmlearn.reference import RUNS
from cmlearn.reference.methods import SOURCES as METHODS_SOURCES
from cmlearn.runtime import save_run
from cmlearn.text import GloVeEncoder, load_word_vectors

SEEDS = (0, 1, 2)
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
CLIPPING_NORMS = (0.1, 0.25, 0.5, 1.0)
LEARNING_RATES = (2.0, 6.0, 20.0)
N_CLIENTS = 10
SKEWS = (100.0, 1.0, 0.1)
N_MODELS = 16
ROOT = RUNS.parents[1]
SOURCES = METHODS_SOURCES + [
    "cmlearn/datasets/_scenes.py",
    "cmlearn/federated.py",
    "cmlearn/privacy.py",
    "cmlearn/reference/_accountant.py",
    "cmlearn/reference/_flower.py",
    "cmlearn/reference/privacy.py",
]


def emoji_features() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return features for private training, labels and groups.

    Means and deviations are those of public data (the drawn scenes, frequent English words), and
    each row is then scaled to length 1 by itself, so that no row's features depend on another row.

    Returns
    -------
    features : dict of ndarray
        "image" (n, 192), "text" (n, 50), both (n, 242) as "fused", and "fused, not centred".
    labels, groups : ndarray of shape (n,)
        Category names and base emoji.
    """
    emoji = load_emoji()
    cnn = PretrainedCNN(layer=comparison.LAYER)
    image = cnn.fit_transform(emoji.data["image"])
    text = GloVeEncoder().fit_transform(emoji.data["text"])
    scenes = cnn.transform(load_scenes(300).data["image"])
    words = np.array(load_word_vectors("glove-6b-50d").vectors[:20_000])
    # A feature that hardly varies over the scenes must not be blown up.
    spread = scenes.std(axis=0) + 0.1 * scenes.std()
    parts = {
        "image": normalize((image - scenes.mean(axis=0)) / spread),
        "text": normalize((text - words.mean(axis=0)) / words.std(axis=0)),
    }
    plain = [normalize(image), normalize(text)]
    features = parts | {
        "fused": np.hstack(list(parts.values())) / math.sqrt(2),
        "fused, not centred": np.hstack(plain) / math.sqrt(2),
    }
    return features, np.asarray(emoji.target_names)[emoji.target], emoji.groups


def split(labels: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return training and test rows, four to one; an emoji's variants stay together."""
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    return next(folds.split(labels, labels, groups))


def private(epsilon: float, **settings) -> DPClassifier:
    """Return the head of the page; the settings are the same for every budget."""
    return DPClassifier(
        epsilon, **{"clipping_norm": 0.5, "epochs": 30, "learning_rate": 6.0} | settings
    )


def ordinary() -> LogisticRegression:
    """Return an ordinary head without privacy."""
    return LogisticRegression(C=3, max_iter=200)


def federated(**settings) -> FederatedClassifier:
    """Return the federated head of the page."""
    return FederatedClassifier(**{"learning_rate": 1.0, "random_state": 0} | settings)


def accuracy_by_round(model: FederatedClassifier, X: np.ndarray, y: np.ndarray) -> list[float]:
    """Return the accuracy of the server's weights after every round."""
    X = np.column_stack([X, np.ones(len(X))])
    return [float((model.classes_[(X @ w.T).argmax(axis=1)] == y).mean()) for w in model.rounds_]


def late_scores(models: list, parts: list[np.ndarray]) -> np.ndarray:
    """Return the product of the holders' probabilities, normalised: all that they send."""
    logarithms = [
        np.log(model.predict_proba(part)) for model, part in zip(models, parts, strict=True)
    ]
    return softmax(sum(logarithms), axis=1)


def run(path: Path) -> None:
    """Account, train, attack, federate, and store what came out."""
    results = {
        "n_models": N_MODELS,
        "n_clients": N_CLIENTS,
        "accountant": accountant_cases(),
        "flower": compared_with_flower(),
    }
    features, labels, groups = emoji_features()
    by_seed = []
    for seed in SEEDS:
        train, test = split(labels, groups, seed)
        by_seed.append(
            {
                "seed": seed,
                "n_train": len(train),
                "accuracy": private_accuracies(features, labels, train, test, seed),
                "settings": setting_accuracies(features["fused"], labels, train, test, seed),
                "federated": federated_accuracies(features, labels, train, test, seed),
                "vertical": vertical_accuracies(features, labels, train, test),
                "attack": attacks(features, labels, seed),
            }
        )
        print(by_seed[-1], flush=True)
    save_run(path, results | {"by_seed": by_seed}, sources=SOURCES)


def shown(epsilon: float) -> str:
    """Return a budget as the run's keys have it."""
    return "none" if epsilon == math.inf else f"{epsilon:g}"


def private_accuracies(features, labels, train, test, seed) -> dict:
    """Return the accuracy of every kind of features under every budget."""
    found = {}
    for name, X in features.items():
        found[name] = {
            shown(epsilon): private(epsilon, random_state=seed)
            .fit(X[train], labels[train])
            .score(X[test], labels[test])
            for epsilon in EPSILONS
        }
        fitted = ordinary().fit(X[train], labels[train])
        found[name]["logistic regression"] = fitted.score(X[test], labels[test])
    return found


def setting_accuracies(X, labels, train, test, seed) -> list[dict]:
    """Return the accuracy of other clipping norms and step lengths at epsilon 1."""
    return [
        {
            "clipping_norm": norm,
            "learning_rate": rate,
            "accuracy": private(
                1.0, clipping_norm=norm, learning_rate=rate, random_state=seed
            )
            .fit(X[train], labels[train])
            .score(X[test], labels[test]),
        }
        for norm in CLIPPING_NORMS
        for rate in LEARNING_RATES
    ]  # fmt: skip


def attacks(features, labels, seed) -> dict:
    """Return what the likelihood-ratio attack finds in heads on the fused features."""
    X = features["fused"]
    targets = {shown(epsilon): private(epsilon) for epsilon in EPSILONS}
    targets["no noise, no clipping"] = private(math.inf, clipping_norm=math.inf)
    targets["the same, four times as long"] = private(math.inf, clipping_norm=math.inf, epochs=120)
    found = {}
    for name, target in targets.items():
        scores = membership_scores(target, X, labels, n_models=N_MODELS, random_state=seed)
        found[name] = {
            "advantage": membership_advantage(*scores),
            "tpr_at_1%": tpr_at_fpr(*scores, fpr=0.01),
            "tpr_at_0.1%": tpr_at_fpr(*scores, fpr=0.001),
        }
    return found


def federated_accuracies(features, labels, train, test, seed) -> list[dict]:
    """Return the accuracy per round of training in one place and with clients of every skew."""
    X = features["fused"]
    plans = [("in one place", None, 5)] + [(f"skew {skew:g}", skew, 5) for skew in SKEWS]
    plans += [(f"skew 0.1, {epochs} local epochs", 0.1, epochs) for epochs in (1, 20)]
    found = []
    for name, skew, epochs in plans:
        client = None
        if skew is not None:
            client = split_by_dirichlet(
                labels[train], N_CLIENTS, concentration=skew, random_state=seed
            )
        model = federated(local_epochs=epochs, random_state=seed)
        model.fit(X[train], labels[train], client=client)
        accuracy = accuracy_by_round(model, X[test], labels[test])
        sent = 0 if client is None else model.bytes_per_round_
        found.append({"name": name, "accuracy": accuracy, "bytes_per_round": sent})
    return found


def vertical_accuracies(features, labels, train, test) -> dict:
    """Return what holders of images and of texts reach alone and together, and what they send."""
    parts = [features["image"], features["text"]]
    X = np.hstack(parts)
    holder = np.repeat(["image", "text"], [part.shape[1] for part in parts])
    y = labels[train]
    training = {"epochs": 60, "learning_rate": 1.0, "random_state": 0}
    alone = [VerticalClassifier(**training).fit(part[train], y) for part in parts]
    late = late_scores(alone, [part[test] for part in parts])
    joint = VerticalClassifier(**training).fit(X[train], y, holder=holder)
    k = len(joint.classes_)
    return {
        "image alone": alone[0].score(parts[0][test], labels[test]),
        "text alone": alone[1].score(parts[1][test], labels[test]),
        "scores added up": float((joint.classes_[late.argmax(axis=1)] == labels[test]).mean()),
        "trained together": joint.score(X[test], labels[test]),
        "bytes of an answer": 2 * k * 4,
        "bytes of an epoch": joint.bytes_per_epoch_,
        "bytes of the features": 4 * X[train].size,
    }


# --- Other libraries, each in its own environment ------------------------------------------------


def ask_accountant(cases: list[dict]) -> list[dict]:
    """Return epsilons of Google's dp-accounting for mechanisms (see `_accountant`).

    Raises
    ------
    FileNotFoundError
        If its environment has not been built.
    """
    python = _python(".venv-privacy", "privacy-check")
    script = Path(__file__).with_name("_accountant.py")
    answer = subprocess.run(
        [python, script], input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


def ask_flower(X, y, client, *, n_rounds: int, local_epochs: int, learning_rate: float):
    """Return the weights after every round of Flower's FedAvg with full batches (see `_flower`).

    Raises
    ------
    FileNotFoundError
        If its environment has not been built.
    """
    python = _python(".venv-flower", "federated-check")
    labels = (np.asarray(y)[:, None] == np.unique(y)).astype(float)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "rows.npz"), Path(folder, "weights.npz")
        np.savez(
            source,
            X=np.column_stack([X, np.ones(len(X))]),
            labels=labels,
            client=client,
            n_rounds=n_rounds,
            local_epochs=local_epochs,
            learning_rate=learning_rate,
        )
        script = Path(__file__).with_name("_flower.py")
        subprocess.run([python, script, source, target], capture_output=True, check=True)
        return np.load(target)["rounds"]


def _python(environment: str, target: str) -> Path:
    python = ROOT / environment / "bin" / "python"
    if not python.is_file():
        raise FileNotFoundError(
            f"{python} is not there: build its environment with `make {target}`"
        )
    return python


def accountant_cases() -> list[dict]:
    """Return mechanisms with our epsilon and the two of dp-accounting."""
    cases = []
    for rate, steps in ((0.2, 150), (0.01, 1000), (1.0, 10)):
        for epsilon in EPSILONS[:-1]:
            plan = {"sampling_rate": rate, "steps": steps, "delta": 1e-5}
            noise = noise_needed(epsilon, **plan)
            cases.append(plan | {"noise_multiplier": noise})
    theirs = ask_accountant([case | {"orders": privacy._ORDERS} for case in cases])
    return [
        case | {"ours": epsilon_spent(**case)} | other
        for case, other in zip(cases, theirs, strict=True)
    ]


def compared_with_flower() -> dict:
    """Return how far Flower's weights are from ours, on the emoji of three clients."""
    features, labels, _ = emoji_features()
    client = split_by_dirichlet(labels, 3, concentration=0.5, random_state=0)
    plan = {"n_rounds": 5, "local_epochs": 3, "learning_rate": 2.0}
    ours = FederatedClassifier(batch_size=len(labels), **plan)
    ours.fit(features["fused"], labels, client=client)
    theirs = ask_flower(features["fused"], labels, client, **plan)
    return {
        "n_rounds": len(theirs),
        "largest_difference": float(np.abs(theirs - ours.rounds_).max()),
        "largest_weight": float(np.abs(ours.rounds_).max()),
    }
