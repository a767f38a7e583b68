"""Encoders over training sizes with their costs, and remedies for wrong names, on three splits."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from sklearn.base import TransformerMixin, clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from cmlearn import comparison
from cmlearn.alignment import MismatchRobustClassifier
from cmlearn.datasets import load_emoji, load_scenes
from cmlearn.fusion import Fusion
from cmlearn.generation import FeatureGAN, ModalityImputer, RidgeGenerator
from cmlearn.image import CNNEncoder, HOGEncoder, PretrainedCNN, SIFTBagOfWords
from cmlearn.models import FusionClassifier
from cmlearn.reference.methods import SOURCES as METHODS_SOURCES
from cmlearn.runtime import save_run
from cmlearn.text import FastTextEncoder, GloVeEncoder, SentenceEncoder

SEEDS = (0, 1, 2)
EMOJI_SIZES = (100, 300, 800)
SCENES_SIZES = (100, 300)
RATES = (0.0, 0.3, 0.6)
ATTENTION_RATES = (0.0, 0.6)
COSTED = 100
"""How many pictures or texts the costs are for."""
SOURCES = METHODS_SOURCES + [
    f"cmlearn/{module}.py" for module in ("_gan", "alignment", "datasets/_scenes", "reference/faq")
]


# --- Encoders over training sizes ----------------------------------------------------------------


def image_encoders(seed: int) -> dict[str, TransformerMixin]:
    """Return the image encoders that are compared, by name."""
    return {
        "CNN, pretrained": PretrainedCNN(layer="block12"),
        "CNN, trained here": CNNEncoder(image_size=36, epochs=12, batch_size=16, random_state=seed),
        "HOG": HOGEncoder(),
        "SIFT": SIFTBagOfWords(random_state=seed),
    }


def text_encoders(seed: int) -> dict[str, TransformerMixin]:
    """Return the text encoders that are compared, by name."""
    return {
        "MiniLM": SentenceEncoder(),
        "GloVe": GloVeEncoder(),
        "fastText": FastTextEncoder(random_state=seed),
        "TF-IDF": TfidfVectorizer(sublinear_tf=True),
    }


def emoji_halves(labels: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """Return the rows of a training half, in random order, and of a test half."""
    halves = StratifiedGroupKFold(2, shuffle=True, random_state=seed)
    train, test = next(halves.split(labels, labels, groups))
    return np.random.default_rng(seed).permutation(train), test


def two_bit_scenes(seed: int):
    """Return 600 scenes, of whose label the picture alone knows one bit, the caption the other."""
    return load_scenes(600, redundant=0, unique_image=1, unique_text=1, random_state=seed)


def accuracy_by_size(data, labels, train, test, sizes, seed) -> pd.DataFrame:
    """Return the accuracy of each pair of encoders for each number of training pairs.

    Each encoder sees nothing but the first ``size`` training pairs. Both blocks stand side by side
    in front of a support vector machine.

    Parameters
    ----------
    data : DataFrame
        Columns ``image`` and ``text``.
    labels : ndarray of shape (n,)
        Labels.
    train, test : ndarray of int
        Rows.
    sizes : iterable of int
        How many of the training rows to use.
    seed : int
        For the encoders that draw random numbers.

    Returns
    -------
    DataFrame
        A row a pair of encoders, a column a size.
    """
    table = {}
    for size in sizes:
        rows = train[:size]
        images, texts = (
            {
                name: encoded(encoder, data[column], labels, rows, test)
                for name, encoder in encoders(seed).items()
            }
            for column, encoders in (("image", image_encoders), ("text", text_encoders))
        )
        for image, text in itertools.product(images, texts):
            score = side_by_side(images[image], texts[text], labels[rows], labels[test])
            table.setdefault((image, text), {})[size] = score
    return pd.DataFrame(table).T.rename_axis(["image", "text"])


def encoded(encoder, column, labels, train, test) -> list[np.ndarray]:
    """Fit an encoder on the training rows, and encode these and the test rows."""
    fitted = clone(encoder).fit(column.iloc[train], labels[train])
    parts = [fitted.transform(column.iloc[rows]) for rows in (train, test)]
    return [part.toarray() if issparse(part) else np.asarray(part) for part in parts]


def side_by_side(images, texts, y_train, y_test) -> float:
    """Return the accuracy of both blocks of features, each given as (training, test)."""
    rows_train, rows_test = (np.hstack(pair) for pair in zip(images, texts, strict=True))
    width = images[0].shape[1]
    blocks = [
        ("image", "passthrough", slice(0, width)),
        ("text", "passthrough", slice(width, rows_train.shape[1])),
    ]
    model = make_pipeline(Fusion(blocks), SVC(C=10))
    return model.fit(rows_train, y_train).score(rows_test, y_test)


# --- Costs ---------------------------------------------------------------------------------------


def costs() -> dict[str, dict[str, float]]:
    """Return for each encoder processor seconds, bytes a row and peak memory, without the cache.

    Each encoder has a process of its own, so that its peak memory is its own too (libraries
    included).
    """
    names = [*image_encoders(0), *text_encoders(0)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return {name: pool.apply(_cost, (name,)) for name in names}


def _cost(name: str) -> dict[str, float]:
    emoji = load_emoji()
    images = image_encoders(0)
    encoder = (images | text_encoders(0))[name]
    if "cache" in encoder.get_params():
        encoder.set_params(cache=False)
    rows = np.random.default_rng(0).permutation(len(emoji.target))
    column = emoji.data["image" if name in images else "text"].iloc[rows]
    start = time.process_time()
    encoder.fit(column.iloc[:COSTED], emoji.target[rows[:COSTED]])
    encoder.transform(column.iloc[:1])  # loads what is loaded at first use
    fitted = time.process_time()
    features = encoder.transform(column.iloc[COSTED : 2 * COSTED])
    return {
        "fit_seconds": fitted - start,
        "transform_seconds": time.process_time() - fitted,
        "bytes_a_row": 4 * features.shape[1],
        "peak_mib": _own_peak_mib(),
    }


def _own_peak_mib() -> float:
    # Linux only. `resource` would also count what the parent held before this process began.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


# --- Wrong names in the training pairs -----------------------------------------------------------


def with_wrong_names(pairs: pd.DataFrame, rate: float, seed: int) -> pd.DataFrame:
    """Return the pairs with the names of a random share of them passed round."""
    rows = np.random.default_rng(seed).permutation(len(pairs))[: int(rate * len(pairs))]
    texts = pairs["text"].to_numpy(dtype=object, copy=True)
    texts[rows] = texts[np.roll(rows, 1)]
    return pairs.assign(text=texts)


def pair_machine():
    """Return both blocks side by side before a support vector machine; a name may be missing."""
    machine = comparison.fused(["image", "text"], classifier=SVC(C=10))
    return machine.set_params(fusion__missing="mask")


def remedies(vectors, labels, groups, train, test, rate, seed) -> dict[str, float]:
    """Return the accuracy of each answer to wrong names in a share of the training pairs.

    Parameters
    ----------
    vectors : DataFrame
        Columns ``image`` and ``text`` of feature vectors.
    labels, groups : ndarray of shape (n,)
        Labels, and which rows are related.
    train, test : ndarray of int
        Rows.
    rate : float
        Share of the training names that are wrong.
    seed : int
        Which names are wrong; also for the generators.

    Returns
    -------
    dict of str to float
        Accuracy on the test rows, whose names are right.
    """
    given, judged = with_wrong_names(vectors.iloc[train], rate, seed), vectors.iloc[test]
    y_train, y_test = labels[train], labels[test]
    hiding = MismatchRobustClassifier(pair_machine(), rate)
    hiding.fit(given, y_train, groups=groups[train])
    hidden = given.assign(text=given["text"].where(~hiding.hidden_, None))
    picture = comparison.fused(["image"], classifier=SVC(C=10))
    scores = {
        "picture alone": picture.fit(given, y_train).score(judged, y_test),
        "nothing done": pair_machine().fit(given, y_train).score(judged, y_test),
        "suspects hidden": hiding.score(judged, y_test),
    }
    gan = FeatureGAN(hidden_units=(128,), steps=150, random_state=seed)
    for name, generator in (("ridge", RidgeGenerator()), ("GAN", gan)):
        filled = ModalityImputer(to_text=generator, to_image=RidgeGenerator()).fit(hidden)
        machine = pair_machine().fit(filled.transform(hidden), y_train)
        scores[f"hidden, filled by {name}"] = machine.score(judged, y_test)
    return scores


def attention(sequences, labels, train, test, rate, seed) -> float:
    """Return the accuracy of cross-attention over words and patches, trained with wrong names."""
    model = FusionClassifier("cross-attention", epochs=12, batch_size=64, random_state=seed)
    model.fit(with_wrong_names(sequences.iloc[train], rate, seed), labels[train])
    return model.score(sequences.iloc[test], labels[test])


# --- The run -------------------------------------------------------------------------------------


def run(path: Path) -> None:
    """Judge encoders and remedies on three splits of the emoji, and encoders on three scenes."""
    emoji = load_emoji()
    table, labels, groups = comparison.emoji_table()
    vectors = comparison.as_pair(table, image="cnn", text="glove")
    sequences = comparison.as_pair(table, image="grid", text="words")
    results = {"costs": costs(), "emoji": [], "scenes": [], "remedies": []}
    for seed in SEEDS:
        train, test = emoji_halves(labels, groups, seed)
        found = accuracy_by_size(emoji.data, labels, train, test, EMOJI_SIZES, seed)
        results["emoji"].append(_nested(found))
        scenes = two_bit_scenes(seed)
        first, second = np.arange(300), np.arange(300, 600)
        found = accuracy_by_size(scenes.data, scenes.target, first, second, SCENES_SIZES, seed)
        results["scenes"].append(_nested(found))
        by_rate = {
            str(rate): remedies(vectors, labels, groups, train, test, rate, seed) for rate in RATES
        }
        for rate in ATTENTION_RATES:
            score = attention(sequences, labels, train, test, rate, seed)
            by_rate[str(rate)]["cross-attention"] = score
        results["remedies"].append(by_rate)
        save_run(path, results, sources=SOURCES)  # each time, so that a run cut off leaves some
        print(f"seed {seed} done", flush=True)


def _nested(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    found: dict = {}
    for (image, text), row in table.iterrows():
        found.setdefault(image, {})[text] = {str(size): score for size, score in row.items()}
    return found


def mean_over_seeds(tables: list[dict]) -> pd.DataFrame:
    """Return the mean accuracy over the splits: a row a pair of encoders, a column a size."""
    rows = {
        (image, text): np.mean([list(table[image][text].values()) for table in tables], axis=0)
        for image, texts in tables[0].items()
        for text in texts
    }
    sizes = [int(size) for size in next(iter(next(iter(tables[0].values())).values()))]
    return pd.DataFrame(rows, index=sizes).T.rename_axis(["image", "text"])
