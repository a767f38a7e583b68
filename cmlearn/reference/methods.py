"""Every method of `cmlearn.comparison` on the emoji."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cmlearn import comparison
from cmlearn.model_selection import compare_methods, paired_tests, score_intervals
from cmlearn.reference import emoji
from cmlearn.runtime import save_run

FOLDS = 5
REPEATS = 10
SLOW_REPEATS = 3
MISSING_RATES = (0.25, 0.5, 0.75, 1.0)
BEST = "cnn + both texts: margins of all sets"
SOURCES = emoji.SOURCES + [
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
        "reference/methods",
        "robustness",
    )
]


def run(path: Path) -> None:
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
    save_run(path, results, sources=SOURCES)


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
