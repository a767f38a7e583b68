"""What is left of an emoji classifier when the test is unlike the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy.linalg import orthogonal_procrustes
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import normalize
from sklearn.utils import Bunch

from cmlearn.alignment import RegularizedCCA, ZeroShotClassifier
from cmlearn.calibration import TemperatureScaling
from cmlearn.comparison import LAYER, fused, style_methods
from cmlearn.corruptions import (
    IMAGE_CORRUPTIONS,
    SEVERITIES,
    TEXT_CORRUPTIONS,
    corrupt_images,
    corrupt_texts,
)
from cmlearn.datasets import load_emoji, load_scenes, load_stamps
from cmlearn.fusion import Fusion, feature_table
from cmlearn.image import PretrainedCNN, decode, flip
from cmlearn.metrics import calibration_error
from cmlearn.reference.methods import SOURCES as METHODS_SOURCES
from cmlearn.runtime import save_run
from cmlearn.shift import (
    MahalanobisDetector,
    NeighborDetector,
    detection_report,
    energy_score,
    mixup,
)
from cmlearn.text import SentenceEncoder

SEEDS = (0, 1, 2)
MIDDLE = 3  # the severity at which remedies are compared
N_CORRUPTED = 70  # test pictures of each seed that are corrupted in 75 ways
LANGUAGES = ("de", "ar", "zh")
BRIDGE_PAIRS = (100, 300, 1000)
SHOTS = (0, 1, 2, 4, 8, 16, 32)
DRAWS = 3  # choices of the few examples for each seed
STYLES = {"Twemoji": "twemoji", "OpenMoji": "openmoji"}
METHODS = {  # names of `comparison.style_methods`
    "image": "cnn alone",
    "text": "minilm alone",
    "concat": "cnn + minilm: concat",
    "late": "cnn + minilm: late margin, gamma 2",
}
DESCRIPTIONS = {
    "Activities": "a sport, game, prize, festival or art that people take part in",
    "Animals & Nature": "an animal, a bird, a fish, an insect, a plant or a flower",
    "Food & Drink": "something to eat or drink, a fruit, a dish, or tableware",
    "Objects": "a tool, a device, a piece of clothing or another thing that one can use",
    "People & Body": "a person, a job, a gesture or a part of the body",
    "Smileys & Emotion": "a face that shows a feeling, a heart, a grin, a tear",
    "Symbols": "a sign, an arrow, a button, a letter, a zodiac or a mathematical symbol",
    "Travel & Places": "a vehicle, a building, a place, the sky, the weather or the time",
}
PHOTOGRAPHED = {  # folders of the stamps, and the emoji's category that holds the like
    "animals": "Animals & Nature",
    "plants": "Animals & Nature",
    "food": "Food & Drink",
    "people": "People & Body",
    "household": "Objects",
    "clothes": "Objects",
    "town": "Travel & Places",
    "vehicles": "Travel & Places",
}
SOURCES = METHODS_SOURCES + [
    f"cmlearn/{module}.py"
    for module in (
        "alignment",
        "corruptions",
        "datasets/_scenes",
        "datasets/_stamps",
        "reference/generalisation",
        "shift",
    )
]


# --- Pairs, folds, classifiers -------------------------------------------------------------------


def emoji_pairs() -> Bunch:
    """Return the emoji with frozen features.

    Returns
    -------
    Bunch
        ``table``: cells ``cnn`` (192,) and ``minilm`` (384,); ``path``, ``name`` and ``labels``
        (n,) str; ``groups``.
    """
    emoji = load_emoji()
    names = emoji.data["text"].to_numpy()
    return Bunch(
        table=feature_table(
            cnn=encode_images(emoji.data["image"]), minilm=SentenceEncoder().fit_transform(names)
        ),
        path=emoji.data["image"].to_numpy(),
        name=names,
        labels=np.asarray(emoji.target_names)[emoji.target],
        groups=emoji.groups,
    )


def encode_images(images: Iterable) -> np.ndarray:
    """Return features of block 12 of EfficientNet-Lite0, (n, 192)."""
    return PretrainedCNN(layer=LAYER, verbose=True).fit_transform(list(images))


def split(pairs: Bunch, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on, four in five, and those to test on; no group is in both."""
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    return next(folds.split(pairs.labels, pairs.labels, pairs.groups))


def corrupted_rows(test: np.ndarray, seed: int) -> np.ndarray:
    """Return the test rows whose pictures and names are corrupted."""
    return np.sort(np.random.default_rng(seed).choice(test, N_CORRUPTED, replace=False))


def machines() -> dict[str, BaseEstimator]:
    """Return support vector machines on image, text and both, by short name."""
    known = style_methods()
    return {short: known[name] for short, name in METHODS.items()}


def logistic() -> LogisticRegression:
    """Return the classifier that is used where probabilities are wanted."""
    return LogisticRegression(C=10, tol=1e-3, max_iter=1000)


def with_features(table: pd.DataFrame, **columns: np.ndarray) -> pd.DataFrame:
    """Return the table with other features (n, d) in the named columns."""
    return table.assign(**{name: list(rows) for name, rows in columns.items()})


def right(classifier: BaseEstimator, table: pd.DataFrame, labels: np.ndarray) -> float:
    """Return the accuracy on a table."""
    return accuracy_score(labels, classifier.predict(table))


# --- Style -------------------------------------------------------------------------------------


def style_scores(pairs: Bunch, openmoji: np.ndarray, seed: int) -> list[dict]:
    """Train on the drawings of one house, or of both, and test on each.

    Parameters
    ----------
    openmoji : ndarray of shape (n, 192)
        Features of the same emoji as OpenMoji draws them.

    Returns
    -------
    list of dict
        With the ``accuracy`` on all test rows, and on those ``without the largest group``, which
        no training part holds.
    """
    train, test = split(pairs, seed)
    is_of_others = pairs.groups[test] != pd.Series(pairs.groups).mode()[0]
    tables = {"Twemoji": pairs.table, "OpenMoji": with_features(pairs.table, cnn=openmoji)}
    trained_on = {name: table.iloc[train] for name, table in tables.items()}
    trained_on["both"] = pd.concat(trained_on.values(), ignore_index=True)
    scores = []
    for source, rows in trained_on.items():
        labels = np.tile(pairs.labels[train], len(rows) // len(train))
        for method, machine in machines().items():
            machine.fit(rows, labels)
            for target, table in tables.items():
                hits = machine.predict(table.iloc[test]) == pairs.labels[test]
                scores.append(
                    {
                        "train": source,
                        "test": target,
                        "method": method,
                        "accuracy": hits.mean(),
                        "without the largest group": hits[is_of_others].mean(),
                    }
                )
    return scores


def stamp_scores(pairs: Bunch) -> tuple[list[dict], dict[str, dict]]:
    """Train on all emoji and test on the stamps of categories that both know.

    Photographs and drawings among the stamps are scored apart; the loader draws what came as a
    vector graphic, and the rest are nearly all photographs. Beside the scores stand, for each
    kind, tests of concatenation against late fusion, and of both against the text.
    """
    stamps = load_stamps()
    folder = np.asarray(stamps.target_names)[stamps.target]
    shared = np.isin(folder, list(PHOTOGRAPHED))
    labels = np.array([PHOTOGRAPHED.get(name, "") for name in folder])
    paths, captions = (stamps.data[name].to_numpy() for name in ("image", "text"))
    table = feature_table(
        cnn=encode_images(paths[shared]), minilm=SentenceEncoder().fit_transform(captions[shared])
    )
    labels, drawn = labels[shared], np.array(["stamps-drawn" in path for path in paths[shared]])
    groups = stamps.groups[shared]
    found = {
        name: machine.fit(pairs.table, pairs.labels).predict(table)
        for name, machine in machines().items()
    }
    scores, tests = [], {}
    for kind, rows in (("photographs", ~drawn), ("drawings", drawn)):
        majority = pd.Series(labels[rows]).value_counts(normalize=True).iloc[0]
        by_method = {"majority": majority} | {
            name: accuracy_score(labels[rows], answers[rows]) for name, answers in found.items()
        }
        scores += [
            {"kind": kind, "method": name, "n": int(rows.sum()), "accuracy": accuracy}
            for name, accuracy in by_method.items()
        ]
        right = {name: answers[rows] == labels[rows] for name, answers in found.items()}
        tests[kind] = {
            f"{one} over {other}": exchange_test(right[one], right[other], groups[rows])
            for one, other in (("concat", "late"), ("concat", "text"), ("late", "text"))
        }
    return scores, tests


def exchange_test(
    right_a: np.ndarray, right_b: np.ndarray, groups: np.ndarray, *, n_draws: int = 100_000
) -> dict[str, float]:
    """Test whether two classifiers are right equally often, where whole groups go together.

    If they were, one could exchange the two in any group and nothing would be lost. The p-value is
    the share of such exchanges, drawn at random for every group, that leave a difference as large
    as the one found; the one found counts among them. Where every row is a group of its own, this
    is the sign test behind McNemar's.

    Parameters
    ----------
    right_a, right_b : ndarray of shape (n,), bool
        Whether each classifier was right.
    groups : ndarray of shape (n,)
        Rows of one group are related.
    n_draws : int
        How many exchanges are drawn.

    Returns
    -------
    dict of str to float
        ``only_a`` and ``only_b``, rows that one of them alone has right; ``groups_a`` and
        ``groups_b``, groups in which one of them has more right; ``pvalue``.

    References
    ----------
    E. S. Edgington and P. Onghena, *Randomization Tests*, 4th edition, 2007.

    Examples
    --------
    >>> a, b = np.ones(6, bool), np.zeros(6, bool)
    >>> round(exchange_test(a, b, np.arange(6))["pvalue"], 2)  # 2 of 64
    0.03
    >>> exchange_test(a, b, np.zeros(6))["pvalue"]
    1.0
    """
    lead = pd.Series(right_a.astype(int) - right_b.astype(int)).groupby(groups).sum().to_numpy()
    lead = lead[lead != 0]
    signs = np.random.default_rng(0).choice((-1, 1), (n_draws, len(lead)))
    as_large = np.abs(signs @ lead) >= abs(lead.sum())
    return {
        "only_a": int((right_a & ~right_b).sum()),
        "only_b": int((right_b & ~right_a).sum()),
        "groups_a": int((lead > 0).sum()),
        "groups_b": int((lead < 0).sum()),
        "pvalue": float((as_large.sum() + 1) / (n_draws + 1)),
    }


# --- Languages -----------------------------------------------------------------------------------


def bridge(foreign: np.ndarray, english: np.ndarray, how: str) -> Callable:
    """Learn a linear map from the codes of foreign names to those of their English translations.

    Parameters
    ----------
    foreign, english : ndarray of shape (n, d)
        Codes of the two names of n things.
    how : {"procrustes", "ridge"}
        A rotation between the centred codes, which keeps all distances, or any matrix, found by
        ridge regression.

    Returns
    -------
    callable
        From codes (m, d) to codes (m, d) of length 1.

    References
    ----------
    Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 1966,
    https://doi.org/10.1007/BF02289451
    """
    centre, target = foreign.mean(axis=0), english.mean(axis=0)
    # One of MiniLM's numbers is 0 for every text; turned into it, any other would be a huge one
    # to a classifier that divides by the standard deviation.
    live = english.std(axis=0) > 1e-6
    known, wanted = (foreign - centre)[:, live], (english - target)[:, live]
    if how == "procrustes":
        turned, _ = orthogonal_procrustes(known, wanted)
    elif how == "ridge":
        turned = Ridge(1.0, fit_intercept=False).fit(known, wanted).coef_.T
    else:
        raise ValueError(f'how must be "procrustes" or "ridge"; got {how!r}')
    matrix = np.zeros((len(live), len(live)))
    matrix[np.ix_(live, live)] = turned
    return lambda codes: normalize((codes - centre) @ matrix + target).astype(np.float32)


def trained_machines(pairs: Bunch, seed: int) -> dict[str, BaseEstimator]:
    """Return the machines, trained on the seed's training rows."""
    train, _ = split(pairs, seed)
    rows, labels = pairs.table.iloc[train], pairs.labels[train]
    return {name: machine.fit(rows, labels) for name, machine in machines().items()}


def language_scores(
    pairs: Bunch, trained: dict[str, BaseEstimator], codes: np.ndarray, seed: int
) -> dict[str, float]:
    """Test machines that were trained with English names with the names in another language.

    Parameters
    ----------
    trained : dict
        As `trained_machines` returns it for the seed.
    codes : ndarray of shape (n, 384)
        Codes of the names in the other language.

    Returns
    -------
    dict of str to float
        Accuracies, and under "called foreign" the share of the names that are told from English
        ones, at 5% false alarms on the English names of the test rows.
    """
    train, test = split(pairs, seed)
    labels = pairs.labels
    english = np.stack(pairs.table["minilm"])
    foreign = with_features(pairs.table, minilm=codes).iloc[test]
    found = {name: machine.predict(foreign) for name, machine in trained.items()}
    scores = {name: accuracy_score(labels[test], answers) for name, answers in found.items()}

    detector = NeighborDetector(1).fit(english[train])
    threshold = np.quantile(detector.score_samples(english[test]), 0.05)
    strange = detector.score_samples(codes[test]) < threshold
    routed = np.where(strange, found["image"], found["late"])
    scores |= {"called foreign": strange.mean(), "routed": accuracy_score(labels[test], routed)}

    order = np.random.default_rng(seed).permutation(train)
    for how, sizes in (("procrustes", BRIDGE_PAIRS[-1:]), ("ridge", BRIDGE_PAIRS)):
        for size in sizes:
            known = order[:size]
            mapped = bridge(codes[known], english[known], how)(codes[test])
            table = with_features(foreign, minilm=mapped)
            scores[f"text, {how}, {size} pairs"] = right(trained["text"], table, labels[test])
    scores[f"late, ridge, {size} pairs"] = right(trained["late"], table, labels[test])

    native = machines()["text"].fit(
        with_features(pairs.table, minilm=codes).iloc[train], labels[train]
    )
    scores["text, trained in it"] = right(native, foreign, labels[test])
    return scores


# --- Unseen classes, few examples ----------------------------------------------------------------


def described() -> tuple[np.ndarray, np.ndarray]:
    """Return codes (8, 384) of the categories' descriptions, and the categories."""
    texts = [f"{name}: {text}" for name, text in DESCRIPTIONS.items()]
    return SentenceEncoder().fit_transform(texts), np.array(list(DESCRIPTIONS))


def unseen_scores(pairs: Bunch, seed: int) -> dict[str, float]:
    """Tell two categories apart that were in no training row, from descriptions alone.

    Returns
    -------
    dict of str to float
        Accuracies, averaged over all 28 pairs of categories, on the test rows of the two; chance
        is one half. "trained" has seen training rows of the two.
    """
    train, test = split(pairs, seed)
    codes, names = described()
    image, text = (np.stack(pairs.table[name]) for name in ("cnn", "minilm"))
    scores: dict[str, list[float]] = {}
    for hidden in combinations(names, 2):
        of_two = np.isin(pairs.labels, hidden)
        seen, rows = train[~of_two[train]], test[of_two[test]]
        alignment = RegularizedCCA(32).fit(image[seen], text[seen])
        two = np.isin(names, hidden)
        zero_shot = ZeroShotClassifier(alignment).fit(codes[two], names[two])
        by_image = zero_shot.decision_function(image[rows])
        by_text = normalize(text[rows]) @ normalize(codes[two]).T
        order = np.argsort(names[two])  # the columns of by_image
        by_text = by_text[:, order]
        fits = {"image": by_image, "text": by_text, "both": by_image + by_text}
        for method, fit in fits.items():
            found = zero_shot.classes_[fit.argmax(axis=1)]
            scores.setdefault(method, []).append(accuracy_score(pairs.labels[rows], found))
        known = train[of_two[train]]
        for method in ("image", "text"):
            machine = machines()[method].fit(pairs.table.iloc[known], pairs.labels[known])
            score = right(machine, pairs.table.iloc[rows], pairs.labels[rows])
            scores.setdefault(f"{method}, trained", []).append(score)
    return {method: float(np.mean(values)) for method, values in scores.items()}


def few_shot_scores(pairs: Bunch, seed: int) -> list[dict]:
    """Train on a few examples of each category, with and without its description.

    The description enters as one more example, whose picture is missing.
    """
    train, test = split(pairs, seed)
    codes, names = described()
    descriptions = feature_table(cnn=[None] * len(names), minilm=codes)
    rng = np.random.default_rng(seed)
    scores = []
    for draw in range(DRAWS):
        order = rng.permutation(train)
        for shots in SHOTS:
            rows = np.concatenate([order[pairs.labels[order] == name][:shots] for name in names])
            few, labels = pairs.table.iloc[rows], pairs.labels[rows]
            for method, columns in (("image", ["cnn"]), ("text", ["minilm"]), ("both", _BOTH)):
                told = {"": (few, labels)} if shots else {}
                if method != "image":
                    rows_told = pd.concat([few, descriptions], ignore_index=True)
                    told[" and description"] = rows_told, np.append(labels, names)
                if shots == 0 and method == "both":
                    continue
                for suffix, (table, y) in told.items():
                    classifier = _masked(columns, logistic()).fit(table, y)
                    accuracy = right(classifier, pairs.table.iloc[test], pairs.labels[test])
                    scores.append(
                        {"method": method + suffix, "shots": shots, "draw": draw}
                        | {"accuracy": accuracy}
                    )
    return scores


_BOTH = ["cnn", "minilm"]


def _masked(columns: list[str], classifier: BaseEstimator) -> BaseEstimator:
    """Return early fusion in which a missing block is zero."""
    return fused(columns, classifier=classifier).set_params(fusion__missing="mask")


# --- Corruptions ---------------------------------------------------------------------------------


def corrupted_tables(pairs: Bunch, rows: np.ndarray, seed: int) -> dict[tuple, pd.DataFrame]:
    """Return the rows under every corruption and severity; one half of each pair stays clean."""
    clean = pairs.table.iloc[rows]
    images, texts = {}, {}
    for severity in SEVERITIES:
        for name in IMAGE_CORRUPTIONS:
            changed = corrupt_images(pairs.path[rows], name, severity, random_state=seed)
            images[name, severity] = changed
        for name in TEXT_CORRUPTIONS:
            changed = corrupt_texts(pairs.name[rows], name, severity, random_state=seed)
            texts[name, severity] = changed
    features = _encode_all(images, encode_images)
    codes = _encode_all(texts, SentenceEncoder().fit_transform)
    tables = {key: with_features(clean, cnn=rows) for key, rows in features.items()}
    return tables | {key: with_features(clean, minilm=rows) for key, rows in codes.items()}


def _encode_all(inputs: dict[tuple, list], encode: Callable) -> dict[tuple, np.ndarray]:
    together = encode([item for items in inputs.values() for item in items])
    return dict(zip(inputs, np.split(together, len(inputs)), strict=True))


def corruption_scores(
    pairs: Bunch,
    trained: dict[str, BaseEstimator],
    tables: dict[tuple, pd.DataFrame],
    rows: np.ndarray,
) -> list[dict]:
    """Return the accuracy of the machines under every corruption; severity 0 is the clean rows.

    What a machine does not see it is not tested on: names for the image's, pictures for the text's.
    """
    scores = []
    for method, machine in trained.items():
        blind = {"image": TEXT_CORRUPTIONS, "text": IMAGE_CORRUPTIONS}.get(method, ())
        for (name, severity), table in {("none", 0): pairs.table.iloc[rows], **tables}.items():
            if name in blind:
                continue
            accuracy = right(machine, table, pairs.labels[rows])
            scores.append(
                {"method": method, "corruption": name, "severity": severity}
                | {"accuracy": accuracy}
            )
    return scores


# --- What helps ----------------------------------------------------------------------------------


def speckled(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply an image by noise; none of the 15 corruptions does."""
    noise = rng.normal(1, rng.uniform(0.1, 0.5), size=pixels.shape)
    return np.clip(np.round(pixels * noise), 0, 255).astype(np.uint8)


def blurred(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur an image by a Gaussian; none of the 15 corruptions does this alone."""
    import cv2

    return cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.5, 3))


def made_over(pairs: Bunch) -> np.ndarray:
    """Return features (n, 192) of all emoji, each speckled or blurred."""
    rng = np.random.default_rng(0)
    changes = rng.choice([speckled, blurred], size=len(pairs.path))
    pictures = zip(pairs.path, changes, strict=True)
    return encode_images(change(decode(path), rng) for path, change in pictures)


class Remedies:
    """Classifiers of one kind, each trained with one thing that may help against corruption.

    Parameters
    ----------
    columns : list of str
        "cnn", or "cnn" and "minilm".
    table, labels : DataFrame and ndarray
        The training rows.
    changed : ndarray of shape (n, 192)
        Features of the training rows' pictures, made over.
    seed : int
        Decides what is mixed.
    """

    def __init__(self, columns, table, labels, changed, seed):
        self.columns, self.seed = columns, seed
        more = [table, with_features(table, cnn=changed)]
        self.trained = {
            "none": self._fit(table, labels),
            "augmentation": self._fit_all(more, labels),
            "mixup": self._fit_mixed(table, labels),
        }
        if len(columns) == 2:
            halves = [table.assign(cnn=None), table.assign(minilm=None)]
            alone = [_masked([name], logistic()).fit(table, labels) for name in columns]
            self.trained |= {
                "modality dropout": self._fit_all([table, *halves], labels),
                "ensemble": [*alone, self.trained["none"]],
                "augmentation and dropout": self._fit_all([*more, *halves], labels),
            }

    def _fit_all(self, tables, labels):
        return self._fit(pd.concat(tables, ignore_index=True), np.tile(labels, len(tables)))

    def _fit(self, table, labels):
        return _masked(self.columns, logistic()).fit(table, labels)

    def _fit_mixed(self, table, labels):
        model = self._fit(table, labels)
        features, y, weight = mixup(model[:-1].transform(table), labels, random_state=self.seed)
        model[-1].fit(features, y, sample_weight=weight)
        return model

    def probabilities(self, name: str, *views: pd.DataFrame) -> np.ndarray:
        """Return class probabilities (n, n_classes), averaged over views of the same rows."""
        models = self.trained[name]
        models = models if isinstance(models, list) else [models]
        return np.mean([model.predict_proba(view) for model in models for view in views], axis=0)

    def accuracy(self, name: str, labels: np.ndarray, *views: pd.DataFrame) -> float:
        """Return the accuracy of the averaged probabilities."""
        found = self.probabilities(name, *views).argmax(axis=1)
        return accuracy_score(labels, np.unique(labels_of(self.trained[name]))[found])


def labels_of(models) -> np.ndarray:
    """Return the classes that a model, or the first of some, knows."""
    return (models[0] if isinstance(models, list) else models).classes_


def mirrored(pairs: Bunch, rows: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return features of the corrupted pictures' mirror images, by corruption; "none" is clean."""
    pictures = {("none", 0): [decode(path) for path in pairs.path[rows]]}
    for name in IMAGE_CORRUPTIONS:
        changed = corrupt_images(pairs.path[rows], name, MIDDLE, random_state=seed)
        pictures[name, MIDDLE] = changed
    flipped = {
        key: [np.ascontiguousarray(flip(picture)) for picture in items]
        for key, items in pictures.items()
    }
    return {key[0]: rows for key, rows in _encode_all(flipped, encode_images).items()}


def remedy_scores(
    pairs: Bunch,
    tables: dict[tuple, pd.DataFrame],
    rows: np.ndarray,
    mirrors: dict[str, np.ndarray],
    changed: np.ndarray,
    seed: int,
) -> list[dict]:
    """Return the accuracy of every remedy on clean rows, and on average over the corruptions.

    Parameters
    ----------
    mirrors : dict of str to ndarray of shape (n_rows, 192)
        As `mirrored` returns it.
    changed : ndarray of shape (n, 192)
        As `made_over` returns it.
    """
    train, _ = split(pairs, seed)
    labels, clean = pairs.labels[rows], pairs.table.iloc[rows]
    scores = []
    for what, columns in (("image", ["cnn"]), ("pair", _BOTH)):
        remedies = Remedies(
            columns,
            pairs.table.iloc[train],
            pairs.labels[train],
            changed[train],
            seed,
        )
        for name in remedies.trained:
            for views in (1, 2):

                def score(key, table, name=name, views=views, remedies=remedies):
                    mirror = with_features(table, cnn=mirrors[key])
                    return remedies.accuracy(name, labels, *(table, mirror)[:views])

                at = {key: score(key, tables[key, MIDDLE]) for key in IMAGE_CORRUPTIONS}
                suffix = " and mirror" if views == 2 else ""
                scores.append(
                    {"what": what, "remedy": name + suffix, "clean": score("none", clean)}
                    | {"corrupted": np.mean(list(at.values())), "by_corruption": at}
                )
    return scores


# --- Calibration and strange inputs --------------------------------------------------------------


def calibration_scores(
    pairs: Bunch, tables: dict[tuple, pd.DataFrame], rows: np.ndarray, seed: int
) -> list[dict]:
    """Return accuracy, mean confidence and calibration error at each severity, all images pooled.

    The temperature was fitted on clean training rows.
    """
    train, _ = split(pairs, seed)
    scores = []
    for what, columns in (("image", ["cnn"]), ("pair", _BOTH)):
        classifier = TemperatureScaling(fused(columns, classifier=logistic()), cv=3)
        classifier.fit(pairs.table.iloc[train], pairs.labels[train], pairs.groups[train])
        for severity in (0, *SEVERITIES):
            seen = [pairs.table.iloc[rows]]
            if severity:
                seen = [tables[name, severity] for name in IMAGE_CORRUPTIONS]
            labels = np.tile(pairs.labels[rows], len(seen))
            proba = np.vstack([classifier.predict_proba(table) for table in seen])
            found = classifier.classes_[proba.argmax(axis=1)]
            scores.append(
                {"what": what, "severity": severity, "accuracy": accuracy_score(labels, found)}
                | {"confidence": proba.max(axis=1).mean()}
                | {"error": calibration_error(labels, proba, labels=classifier.classes_)}
            )
    return scores


def strangers() -> dict[str, np.ndarray]:
    """Return features (n, 192) of pictures that are no emoji, by name."""
    stamps = load_stamps().data["image"].to_numpy()
    photographs = [path for path in stamps if "stamps-drawn" not in path][::4]
    scenes = load_scenes(200, random_state=0).data["image"]
    return {"scenes": encode_images(scenes), "photographs": encode_images(photographs)}


def detectors(features: np.ndarray, labels: np.ndarray) -> dict[str, Callable]:
    """Return scores of strangeness by name, functions of image features (n, 192)."""
    table = feature_table(cnn=features)
    classifier = fused(["cnn"], classifier=logistic()).fit(table, labels)
    fusion = Fusion([("cnn", "passthrough", "cnn")]).fit(table)

    def scaled(rows):
        return fusion.transform(feature_table(cnn=rows))

    mahalanobis = MahalanobisDetector().fit(scaled(features), labels)
    neighbors = NeighborDetector().fit(scaled(features))
    return {
        "softmax": lambda x: classifier.predict_proba(feature_table(cnn=x)).max(axis=1),
        "energy": lambda x: energy_score(classifier.decision_function(feature_table(cnn=x))),
        "Mahalanobis": lambda x: mahalanobis.score_samples(scaled(x)),
        "neighbours": lambda x: neighbors.score_samples(scaled(x)),
    }


def detection_scores(
    pairs: Bunch, tables: dict[tuple, pd.DataFrame], strange: dict[str, np.ndarray], seed: int
) -> list[dict]:
    """Return how well each score tells the test pictures from strange and from corrupted ones."""
    train, test = split(pairs, seed)
    image = np.stack(pairs.table["cnn"])
    corrupted = {
        f"corrupted, severity {severity}": np.vstack(
            [np.stack(tables[name, severity]["cnn"]) for name in IMAGE_CORRUPTIONS]
        )
        for severity in (1, 3, 5)
    }
    return [
        {"score": name, "strange": kind} | detection_report(score(image[test]), score(rows))
        for name, score in detectors(image[train], pairs.labels[train]).items()
        for kind, rows in (strange | corrupted).items()
    ]


# --- The run -------------------------------------------------------------------------------------


def run(path: Path) -> None:
    """Measure everything above for three seeds and store it."""
    pairs = emoji_pairs()
    changed = made_over(pairs)
    openmoji = encode_images(load_emoji(style="openmoji").data["image"])
    codes = {
        language: SentenceEncoder(verbose=True).fit_transform(
            load_emoji(language=language).data["text"]
        )
        for language in LANGUAGES
    }
    strange = strangers()
    tasks = []
    for seed in SEEDS:
        rows = corrupted_rows(split(pairs, seed)[1], seed)
        tables, mirrors = corrupted_tables(pairs, rows, seed), mirrored(pairs, rows, seed)
        arguments = (pairs, seed, rows, tables, mirrors, changed, openmoji, codes, strange)
        tasks.append(delayed(seed_scores)(*arguments))
    results: dict = {"seeds": SEEDS, "n_pairs": len(pairs.labels), "n_corrupted": N_CORRUPTED}
    results["distinct_codes"] = {
        language: len(np.unique(rows.round(4), axis=0)) for language, rows in codes.items()
    }
    results["stamps"], results["stamp_tests"] = stamp_scores(pairs)
    for seed, found in zip(SEEDS, Parallel(n_jobs=len(SEEDS))(tasks), strict=True):
        for name, entries in found.items():
            results.setdefault(name, []).extend({"seed": seed, **entry} for entry in entries)
    save_run(path, results, sources=SOURCES)


def seed_scores(
    pairs, seed, rows, tables, mirrors, changed, openmoji, codes, strange
) -> dict[str, list[dict]]:
    """Return all that is measured for one seed, by name."""
    trained = trained_machines(pairs, seed)
    _, test = split(pairs, seed)
    return {
        "corruptions": corruption_scores(pairs, trained, tables, rows),
        "styles": style_scores(pairs, openmoji, seed),
        "languages": [
            {"language": language} | language_scores(pairs, trained, codes[language], seed)
            for language in LANGUAGES
        ],
        "unseen": [unseen_scores(pairs, seed)],
        "few_shot": few_shot_scores(pairs, seed),
        "remedies": remedy_scores(pairs, tables, rows, mirrors, changed, seed),
        "calibration": calibration_scores(pairs, tables, rows, seed),
        "detection": detection_scores(pairs, tables, {"OpenMoji": openmoji[test], **strange}, seed),
    }
