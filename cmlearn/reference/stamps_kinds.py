"""Stamps by kind and category: machines that are trained on finer labels than they are asked for.

The folds and the encoders are those of the run ``stamps``, so that both can be compared fold by
fold.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.utils import Bunch

from cmlearn.comparison import fused
from cmlearn.datasets import load_stamps
from cmlearn.fusion import LateFusion
from cmlearn.hierarchy import FinerLabels
from cmlearn.model_selection import compare_methods, paired_tests
from cmlearn.reference import stamps as frozen
from cmlearn.reference.methods import summary
from cmlearn.runtime import save_run

MIN_SAMPLES = 8  # training rows that make a folder a kind
TEXTS = ("glove", "minilm")
BEST = "three views + minilm: both levels"
TEN = 30  # pairs or more in a category: ten categories have as many
SOURCES = sorted({*frozen.SOURCES, "cmlearn/hierarchy.py", "cmlearn/reference/stamps_kinds.py"})


def kinds_of(stamps: Bunch) -> list[str | None]:
    """Return the folder below the category of each stamp, None where there is none.

    Parameters
    ----------
    stamps : Bunch
        As `load_stamps` returns it: ``animals/birds/crow`` is of the kind ``birds``.
    """
    folders = [str(name).split("/")[1:-1] for name in stamps.names]
    return [below[0] if below else None for below in folders]


def drawn_kinds(kinds: list[str | None], labels: np.ndarray, random_state: int = 0) -> np.ndarray:
    """Return the kinds shuffled within each category: as many and as large, but without meaning."""
    rng = np.random.default_rng(random_state)
    drawn = np.array(kinds, dtype=object)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        drawn[rows] = drawn[rng.permutation(rows)]
    return drawn


def finer(view: str, text: str, column: str = "kind") -> tuple:
    """Return a branch of late fusion: one view with the text, trained on kinds."""
    machine = FinerLabels(fused([view, text]), column=column, min_samples=MIN_SAMPLES)
    return f"{view} and {text}, kinds", machine, [view, text, column]


def coarse(view: str, text: str) -> tuple:
    """Return a branch of late fusion: one view with the text, trained on categories."""
    return f"{view} and {text}", fused([view, text]), [view, text]


def both_levels(views, text: str, column: str = "kind") -> LateFusion:
    """Return late fusion of two machines for each view, one of categories and one of kinds."""
    branches = [branch for v in views for branch in (coarse(v, text), finer(v, text, column))]
    return LateFusion(branches, how="margin")


def methods() -> dict[str, BaseEstimator]:
    """Return what is compared, by name."""
    views = list(frozen.VIEWS)
    chosen = {}
    for text in TEXTS:
        plain = f"three views + {text}"
        chosen[f"{plain}: joint margins"] = frozen.joint_margins(views, text)
        chosen[f"{plain}: kinds"] = LateFusion([finer(v, text) for v in views], how="margin")
        chosen[f"{plain}: both levels"] = both_levels(views, text)
        chosen[f"{plain}: both levels, kinds drawn"] = both_levels(views, text, "drawn")
    return chosen


def kinds_table(stamps: Bunch) -> pd.DataFrame:
    """Return the stamps' frozen features, with ``kind`` and, as a control, ``drawn``."""
    labels = np.asarray(stamps.target_names)[stamps.target]
    kinds = kinds_of(stamps)
    return frozen.stamps_table(stamps).assign(kind=kinds, drawn=drawn_kinds(kinds, labels))


def run(path: Path) -> None:
    """Cross-validate every method on the stamps and store the scores."""
    judge = partial(
        compare_methods,
        n_splits=frozen.FOLDS,
        n_repeats=frozen.REPEATS,
        random_state=0,
        n_jobs=-1,
        verbose=True,
    )
    stamps = load_stamps()
    labels = np.asarray(stamps.target_names)[stamps.target]
    table = kinds_table(stamps)
    everything = methods()
    found = judge(everything, table, labels, groups=stamps.groups)
    large = np.flatnonzero(np.bincount(stamps.target)[stamps.target] >= TEN)
    ten = judge(
        everything,
        table.iloc[large].reset_index(drop=True),
        labels[large],
        groups=stamps.groups[large],
    ).scores
    results = {
        "folds": frozen.FOLDS,
        "repeats": frozen.REPEATS,
        "min_samples": MIN_SAMPLES,
        "n_pairs": len(labels),
        "n_kinds": n_kinds(table, labels),
        "fingerprint": stamps.fingerprint,
        "scores": summary(found.scores),
        "tests": tests(found.scores),
        "recall": recall(found.predictions, labels),
        "ten_categories": {
            "n_pairs": len(large),
            "scores": summary(ten),
            "tests": tests(ten),
        },
    }
    save_run(path, results, sources=SOURCES)
    for part in (results, results["ten_categories"]):
        print(pd.DataFrame(part["scores"]).T["accuracy"].astype(float).round(4).to_string())


def tests(scores: pd.DataFrame) -> dict[str, dict]:
    """Return for each text encoder the paired comparisons of its methods with both levels."""
    found = {}
    for text in TEXTS:
        own = scores[scores["method"].str.startswith(f"three views + {text}:")]
        pairs = paired_tests(own, reference=f"three views + {text}: both levels")
        found[text] = pairs.set_index("method").to_dict("index")
    return found


def n_kinds(table: pd.DataFrame, labels: np.ndarray) -> int:
    """Return how many kinds a machine learns that is trained on all rows."""
    learned = FinerLabels(DummyClassifier(), column="kind", min_samples=MIN_SAMPLES)
    return len(learned.fit(table[["kind"]], labels).kinds_)


def recall(predictions: pd.DataFrame, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the share of each category's stamps that each method recognised, over all repeats."""
    truth = labels[predictions["row"]]
    right = predictions.assign(category=truth, right=predictions["prediction"] == truth)
    shares = right.groupby(["method", "category"])["right"].mean()
    return {method: shares[method].to_dict() for method in right["method"].unique()}
