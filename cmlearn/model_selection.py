"""Compare methods on the same folds, and say which differences are more than chance."""

import time
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils import Bunch, _safe_indexing, check_consistent_length, check_random_state

from cmlearn._folds import check_folds, fit_on, probabilities, stratified_folds
from cmlearn.metrics import Interval, calibration_error, corrected_resampled_ttest, holm, macro_f1

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare_methods", "paired_tests", "score_intervals"]


def compare_methods(
    methods: dict,
    X,
    y,
    *,
    groups=None,
    n_splits: int = 5,
    n_repeats: int = 5,
    train_sizes=None,
    variants: dict | None = None,
    random_state=None,
    n_jobs: int | None = None,
    verbose: bool = False,
) -> Bunch:
    """Cross-validate several methods on the same stratified folds, several times over.

    Encode with frozen encoders before, and give the features: what needs no training may be
    computed once for all folds. What is trained belongs into the method.

    Parameters
    ----------
    methods : dict of str to classifier
        Unfitted; a clone is fitted for every fold. Groups are handed on to those whose ``fit``
        takes them.
    X : table or array of n rows
        What the methods take.
    y : array-like of shape (n,)
        Labels of any type.
    groups : array-like of shape (n,), optional
        Related rows, which stay whole.
    n_splits, n_repeats : int
        Folds, and how many times the rows are divided anew.
    train_sizes : list of float or int, optional
        Learning curve: shares of the training part from 0 to 1, or (at least) so many rows. Whole
        groups are drawn class by class, and the smaller part lies within the larger.
    variants : dict of str or number to callable, optional
        Each fitted method is scored on ``variant(X_test)`` for every one of these functions, such
        as those that delete images from a share of the rows. They must keep the rows' order.
    random_state : int, RandomState instance or None
        Seed of the folds.
    n_jobs : int or None
        Processes that work side by side, as in scikit-learn.
    verbose : bool
        Show a progress bar; it stays quiet when the output is not a terminal.

    Returns
    -------
    Bunch
        ``scores``: DataFrame, one row for each method, repeat, fold, train_size (as asked for; 1.0
        without ``train_sizes``) and variant (``"as it is"`` without ``variants``), with
        ``accuracy``, ``macro_f1``, ``calibration_error``, ``log_loss`` (nats; both NaN for methods
        without ``predict_proba``), ``fit_seconds``, ``predict_seconds``, ``n_train``, ``n_test``.

        ``predictions``: DataFrame, one row for each test row of each of these, with ``row``
        (number in ``X``), ``label``, ``prediction`` and ``confidence``, the probability of the
        predicted class.

    Raises
    ------
    ValueError
        If lengths differ, a class has fewer rows or groups than there are folds, or a training
        size leaves a class without a row.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from sklearn.dummy import DummyClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> methods = {"bayes": GaussianNB(), "guess": DummyClassifier()}
    >>> found = compare_methods(methods, X, y, n_repeats=2, random_state=0)
    >>> found.scores.groupby("method")["accuracy"].mean().round(2).to_dict()
    {'bayes': 0.95, 'guess': 0.33}
    """
    import pandas as pd
    from sklearn.utils.parallel import Parallel, delayed

    y = np.asarray(y)
    check_consistent_length(X, y, groups)
    _check_methods(methods, n_splits, n_repeats)
    check_folds(y, groups, n_splits, "lower n_splits")
    tasks = [
        (method, *part)
        for part in _parts(y, groups, n_splits, n_repeats, train_sizes, random_state)
        for method in methods
    ]
    variants = {"as it is": _unchanged} if variants is None else variants
    work = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_run)(task, methods[task[0]], X, y, groups, variants) for task in tasks
    )
    results = list(_progress(work, len(tasks), verbose))
    return Bunch(
        scores=pd.DataFrame([scores for rows, _ in results for scores in rows]),
        predictions=pd.concat([table for _, tables in results for table in tables]).reset_index(
            drop=True
        ),
    )


def _unchanged(X):
    return X


def _check_methods(methods, n_splits: int, n_repeats: int) -> None:
    if not isinstance(methods, dict) or not methods:
        raise ValueError(
            f"methods must be a dict of names to classifiers, {{name: classifier}}; got {methods!r}"
        )
    for name, method in methods.items():
        if not hasattr(method, "fit") or not hasattr(method, "predict"):
            raise ValueError(f"method {name!r} ({method!r}) has no fit and predict")
    if n_splits < 2 or n_repeats < 1:
        raise ValueError(
            f"n_splits must be at least 2 and n_repeats at least 1; got {n_splits} and {n_repeats}"
        )


def _parts(y, groups, n_splits, n_repeats, train_sizes, random_state):
    """Yield (repeat, fold, train_size, training rows, test rows)."""
    random_state = check_random_state(random_state)
    for repeat in range(n_repeats):
        seed = random_state.randint(2**31 - 1)
        folds = stratified_folds(y, groups, n_splits, random_state=seed)
        for fold, (train, test) in enumerate(folds):
            if train_sizes is None:
                yield repeat, fold, 1.0, train, test
                continue
            order, ends = _stratified_order(y, groups, train, np.random.default_rng(seed + fold))
            for size in train_sizes:
                yield repeat, fold, size, _first_groups(order, ends, size, y), test


def _stratified_order(y, groups, train, rng) -> tuple[np.ndarray, np.ndarray]:
    """Return the training rows in random order, group by group, and where each group ends.

    Group k of the m groups of a class is put at (k + 1/2) / m of the way, so that every
    beginning of the order has about the classes' shares of the whole.
    """
    import pandas as pd

    names = np.asarray(train if groups is None else np.asarray(groups)[train], dtype=object)
    rows = pd.DataFrame({"row": train, "group": names, "label": y[train]})
    # A group with several labels counts for the one of its first row.
    first = rows.drop_duplicates("group").sample(frac=1, random_state=rng)
    by_class = first.groupby("label")
    place = (by_class.cumcount() + 0.5) / by_class["row"].transform("size")
    first = first.assign(place=place).sort_values("place", kind="stable")
    rank = pd.Series(np.arange(len(first)), index=first["group"])
    ranks = rank.loc[rows["group"]].to_numpy()
    return train[np.argsort(ranks, kind="stable")], np.cumsum(np.bincount(ranks))


def _first_groups(order: np.ndarray, ends: np.ndarray, size, y) -> np.ndarray:
    wanted = round(size * len(order)) if isinstance(size, float) else size
    if not 0 < wanted <= len(order):
        raise ValueError(
            f"train_sizes must be shares above 0 and up to 1.0, or numbers of rows up to the "
            f"{len(order)} of the training part; got {size!r}"
        )
    rows = order[: ends[np.searchsorted(ends, wanted)]]
    absent = np.setdiff1d(y[order], y[rows])
    if len(absent):
        raise ValueError(
            f"a training size of {size!r} leaves class {absent.tolist()[0]!r} without a row; "
            "give a larger one"
        )
    return rows


def _progress(work, n_tasks: int, verbose: bool):
    from tqdm import tqdm

    # None: quiet when the output is not a terminal.
    return tqdm(
        work, total=n_tasks, desc="comparing", unit="fit", disable=None if verbose else True
    )


def _run(task, method, X, y, groups, variants) -> tuple[list, list]:
    name, repeat, fold, train_size, train, test = task
    key = {"method": name, "repeat": repeat, "fold": fold, "train_size": train_size}
    try:
        start = time.perf_counter()
        fitted = fit_on(method, X, y, groups, train)
        sizes = {"fit_seconds": time.perf_counter() - start, "n_train": len(train)}
        results = [
            _score(key | {"variant": variant}, sizes, fitted, X, y, test, change)
            for variant, change in variants.items()
        ]
    except Exception as error:
        error.add_note(f"while method {name!r} worked on repeat {repeat}, fold {fold}")
        raise
    return [scores for scores, _ in results], [table for _, table in results]


def _score(key, sizes, fitted, X, y, test, change) -> tuple:
    import pandas as pd
    from sklearn.metrics import accuracy_score, log_loss

    part, label = change(_safe_indexing(X, test)), y[test]
    start = time.perf_counter()
    prediction = fitted.predict(part)
    seconds = time.perf_counter() - start
    scores = {
        "accuracy": accuracy_score(label, prediction),
        "macro_f1": macro_f1(label, prediction),
        "calibration_error": np.nan,
        "log_loss": np.nan,
    }
    confidence = np.full(len(test), np.nan)
    if hasattr(fitted, "predict_proba"):
        classes = np.unique(y)
        y_prob = probabilities(fitted, part, classes)
        confidence = y_prob[np.arange(len(test)), np.searchsorted(classes, prediction)]
        right = label == prediction
        scores["calibration_error"] = calibration_error(right, np.clip(confidence, 0, 1))
        scores["log_loss"] = log_loss(label, y_prob, labels=classes)
    table = pd.DataFrame(
        {"row": test, "label": label, "prediction": prediction, "confidence": confidence}
    )
    return key | scores | sizes | {"predict_seconds": seconds, "n_test": len(test)}, (
        pd.concat([pd.DataFrame(key, index=table.index), table], axis=1)
    )


def score_intervals(
    scores: "pd.DataFrame", metric: str = "accuracy", *, confidence_level: float = 0.95
) -> dict[str, Interval]:
    """Return each method's mean score with its interval, the highest mean first.

    The intervals are those of :func:`cmlearn.metrics.corrected_resampled_ttest`: they hold for
    another training and another test set of these sizes.

    Parameters
    ----------
    scores : DataFrame
        As :func:`compare_methods` returns them, for one training size and one variant.
    metric : str
        The column to average.
    confidence_level : float
        Of the intervals.

    Returns
    -------
    dict of str to Interval
        What :func:`cmlearn.plotting.plot_intervals` draws.
    """
    table = _fold_scores(scores, metric)
    share = _test_share(scores)
    found = {}
    for name in table.mean().sort_values(ascending=False, kind="stable").index:
        test = corrected_resampled_ttest(
            table[name], test_share=share, confidence_level=confidence_level
        )
        found[name] = Interval(test.estimate, test.low, test.high, confidence_level)
    return found


def paired_tests(
    scores: "pd.DataFrame",
    reference: str | None = None,
    *,
    metric: str = "accuracy",
    confidence_level: float = 0.95,
) -> "pd.DataFrame":
    """Test each method against a reference on the same folds, corrected for how many there are.

    Parameters
    ----------
    scores : DataFrame
        As :func:`compare_methods` returns them, for one training size and one variant.
    reference : str, optional
        The method that all others are compared with; every pair of methods if not given.
    metric : str
        The column to compare.
    confidence_level : float
        Of each interval by itself: Holm corrects the p-values only.

    Returns
    -------
    DataFrame
        One row a comparison: ``method``, ``reference``, ``difference`` (mean score of the method
        minus that of the reference) with its interval ``low``, ``high``, ``statistic`` and
        ``pvalue`` of :func:`cmlearn.metrics.corrected_resampled_ttest`, and ``pvalue_holm``.

    Raises
    ------
    ValueError
        If a method or metric is not there, or a method lacks a fold that another has.
    """
    import pandas as pd

    table = _fold_scores(scores, metric)
    if reference is not None and reference not in table:
        raise ValueError(f"there is no method {reference!r}; the scores hold {list(table)}")
    pairs = list(combinations(table, 2))
    if reference is not None:
        pairs = [(name, reference) for name in table if name != reference]
    if not pairs:
        raise ValueError("a comparison needs at least two methods; the scores hold one")
    rows = []
    for name, other in pairs:
        test = corrected_resampled_ttest(
            table[name] - table[other],
            test_share=_test_share(scores),
            confidence_level=confidence_level,
        )
        rows.append(
            {
                "method": name,
                "reference": other,
                "difference": test.estimate,
                "low": test.low,
                "high": test.high,
                "statistic": test.statistic,
                "pvalue": test.pvalue,
            }
        )
    return pd.DataFrame(rows).assign(pvalue_holm=holm([row["pvalue"] for row in rows]))


def _fold_scores(scores: "pd.DataFrame", metric: str) -> "pd.DataFrame":
    """Return a metric with one row a fold and one column a method, in the order they came in."""
    if metric not in scores:
        raise ValueError(f"there is no metric {metric!r}; the scores hold {list(scores)}")
    for column in ("train_size", "variant"):
        values = scores[column].unique().tolist()
        if len(values) > 1:
            raise ValueError(
                f"the scores hold several values of {column!r}, {values}; choose one, such as "
                f"scores[scores[{column!r}] == {values[-1]!r}]"
            )
    table = scores.pivot(index=["repeat", "fold"], columns="method", values=metric)
    table = table[scores["method"].unique()]
    if table.isna().to_numpy().any():
        name = table.columns[table.isna().any()][0]
        raise ValueError(f"method {name!r} has no {metric!r} in {table[name].isna().sum()} folds")
    return table


def _test_share(scores: "pd.DataFrame") -> float:
    return float(scores["n_test"].mean() / scores["n_train"].mean())
