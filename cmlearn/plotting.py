"""Small figures: each function draws on the axes it is given, and returns them.

Every figure can be read without colour: classes differ in marker, bars in hatching, and each
number that matters is written out. Text that the default font cannot draw (Chinese, say) is set
in an installed font that can.
"""

import textwrap
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_comparison",
    "plot_confusion_matrix",
    "plot_embedding",
    "plot_intervals",
    "plot_learning_curve",
    "plot_missing_curve",
    "plot_reliability",
    "plot_rescues",
    "plot_samples",
    "plot_size_curve",
]

# Okabe and Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/, without the
# yellow, which is too light for a white page.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"
_MOST_NUMBERED = 60  # classes of a confusion matrix with numbers in its cells


def plot_samples(images, texts, *, labels=None, axes=None) -> np.ndarray:
    """Draw pictures with their captions, one pair a panel.

    Parameters
    ----------
    images : sequence of length n
        Anything that :func:`cmlearn.image.decode` reads; ``None`` leaves the panel empty.
    texts : sequence of str or None, length n
        The captions, written below the pictures.
    labels : sequence of length n, optional
        Written above the pictures.
    axes : array of Axes, optional
        One panel for each pair; a new figure with up to six panels a row if not given.

    Returns
    -------
    ndarray of Axes
    """
    images, texts = list(images), list(texts)
    labels = [None] * len(images) if labels is None else list(labels)
    if not len(images) == len(texts) == len(labels):
        raise ValueError(
            f"each panel needs an image, a text and a label; got {len(images)} images, "
            f"{len(texts)} texts and {len(labels)} labels"
        )
    axes = _new_panels(len(images)) if axes is None else np.asarray(axes)
    if axes.size < len(images):
        raise ValueError(f"{len(images)} samples do not fit on {axes.size} axes")
    for ax, image, text, label in zip(axes.flat, images, texts, labels, strict=False):
        _draw_pair(ax, image, text, label)
    for ax in axes.flat[len(images) :]:
        ax.axis("off")
    return axes


def _new_panels(n: int) -> np.ndarray:
    import matplotlib.pyplot as plt

    n_columns = min(max(n, 1), 6)
    n_rows = max(-(-n // n_columns), 1)
    size = (1.7 * n_columns, 2.2 * n_rows)
    _, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    return axes


def _draw_pair(ax, image, text, label) -> None:
    if image is None:
        ax.text(0.5, 0.5, "no image", ha="center", va="center", transform=ax.transAxes)
    else:
        ax.imshow(_picture(image))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)  # a style that hides two of the four leaves half a frame
    ax.set_xlabel(_wrapped("no text" if text is None else text), fontsize=8, parse_math=False)
    if label is not None:
        ax.set_title(_wrapped(label), fontsize=9, parse_math=False)
    _use_fonts_with_the_glyphs(ax)


def _picture(source) -> np.ndarray:
    from cmlearn.image import decode

    return decode(source)


def _wrapped(text, width: int = 22) -> str:
    return textwrap.fill(str(text), width)


def plot_confusion_matrix(y_true, y_pred, *, target_names=None, ax=None) -> "Axes":
    """Draw how often each class (row) was predicted as each class (column).

    The colour shows the share of the row, so that rare classes are as visible as common ones;
    the number in each cell counts test rows. With more than 60 classes the numbers are left out
    and the figure grows no more.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        Labels of any type; with ``target_names``, integers from 0.
    target_names : list of str, optional
        The name of label 0, 1, 2, ….
    ax : Axes, optional
        Where to draw; a new figure if not given.

    Raises
    ------
    ValueError
        If a label has no name among ``target_names``.
    """
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    from cmlearn.metrics import _check_codes

    labels = names = np.union1d(y_true, y_pred)
    if target_names is not None:
        _check_codes(labels, len(target_names))
        labels, names = np.arange(len(target_names)), target_names
    has_numbers = len(labels) <= _MOST_NUMBERED
    side = 2.5 + 0.45 * min(len(labels), _MOST_NUMBERED)
    ax = ax or _new_axes((side, side))
    counts = confusion_matrix(y_true, y_pred, labels=labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(shares, display_labels=names)
    display.plot(
        ax=ax, cmap="Blues", colorbar=False, xticks_rotation=90, include_values=has_numbers
    )
    if has_numbers:
        for text, count in zip(display.text_.flat, counts.flat, strict=True):
            text.set_text(str(count) if count else "")
    for name in [*ax.get_xticklabels(), *ax.get_yticklabels()]:
        name.set_parse_math(False)  # a class may be called "$5 to $10"
        name.set_fontsize(name.get_fontsize() * min(1, _MOST_NUMBERED / len(labels)))
    display.im_.set_clim(0, 1)
    ax.set(xlabel="predicted class", ylabel="true class")
    _use_fonts_with_the_glyphs(ax)
    return ax


def plot_learning_curve(history: dict, *, metric: str = "loss", ax=None) -> "Axes":
    """Draw a metric of the training and the validation part over the epochs.

    Parameters
    ----------
    history : dict of str to list of float
        As :class:`cmlearn.models.NeuralClassifier` keeps it in ``history_``; without
        ``val_…`` only the training curve is drawn.
    metric : str
        ``"loss"`` (in nats) or ``"accuracy"``.
    ax : Axes, optional
        Where to draw; a new figure if not given.
    """
    if metric not in history:
        raise ValueError(f"the history holds {sorted(history)}, but no {metric!r}")
    ax = ax or _new_axes((5, 3.2))
    epochs = np.arange(1, len(history[metric]) + 1)
    ax.plot(epochs, history[metric], color=COLORS[0], label="training")
    if f"val_{metric}" in history:
        ax.plot(epochs, history[f"val_{metric}"], "--", color=COLORS[1], label="validation")
        best = int(np.argmin(history["val_loss"])) + 1
        ax.axvline(best, color="0.5", lw=1, ls=":", label=f"kept: epoch {best}")
    ax.set(xlabel="epoch", ylabel="loss (nats)" if metric == "loss" else metric)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax


def plot_embedding(
    features,
    y,
    *,
    images=None,
    method: str = "pca",
    target_names=None,
    n_thumbnails: int = 40,
    random_state=None,
    ax=None,
) -> "Axes":
    """Draw a flat map of the features: one point a row, one colour and marker a class.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Features of one modality, or fused ones.
    y : array-like of shape (n,)
        Labels; with ``target_names``, integers from 0.
    images : sequence of length n, optional
        Pictures, of which ``n_thumbnails`` are drawn where their points lie.
    method : {"pca", "tsne"}
        ``pca`` keeps the two directions of largest variance, and its axes say how much of it
        they hold. ``tsne`` keeps neighbours together, and its distances have no unit.
    target_names : list of str, optional
        The name of label 0, 1, 2, ….
    n_thumbnails : int
        How many pictures to draw; they are chosen at random.
    random_state : int or None
        Seed of t-SNE and of the choice of pictures.
    ax : Axes, optional
        Where to draw; a new figure if not given.
    """
    features, y = np.asarray(features), np.asarray(y)
    if len(features) != len(y):
        raise ValueError(f"there are {len(features)} rows of features for {len(y)} labels")
    ax = ax or _new_axes((7, 5.5))
    points, axis_names = _flat_map(features, method, random_state)
    for number, label in enumerate(np.unique(y)):
        ax.scatter(
            *points[y == label].T,
            s=14,
            alpha=0.7,
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number % len(MARKERS)],
            label=label if target_names is None else target_names[label],
        )
    if images is not None:
        _draw_thumbnails(ax, points, list(images), n_thumbnails, random_state)
    ax.set(xlabel=axis_names[0], ylabel=axis_names[1])
    legend = ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for name in legend.get_texts():
        name.set_parse_math(False)
    _use_fonts_with_the_glyphs(ax)
    return ax


def _flat_map(features: np.ndarray, method: str, random_state) -> tuple:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method == "pca":
        pca = PCA(2, random_state=random_state)
        points = pca.fit_transform(features)
        shares = pca.explained_variance_ratio_
        return points, [f"component {i + 1} ({shares[i]:.0%} of the variance)" for i in (0, 1)]
    if method == "tsne":
        points = TSNE(init="pca", random_state=random_state).fit_transform(features)
        return points, ["t-SNE 1 (no unit)", "t-SNE 2 (no unit)"]
    raise ValueError(f'method must be "pca" or "tsne"; got {method!r}')


def _draw_thumbnails(ax, points, images, n_thumbnails, random_state) -> None:
    rng = np.random.default_rng(random_state)
    shown = [row for row in rng.permutation(len(images)) if images[row] is not None]
    for row in shown[:n_thumbnails]:
        _draw_thumbnail(ax, images[row], points[row])


def _draw_thumbnail(ax, image, position, *, pixels: int = 22, **options) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    picture = _picture(image)
    thumbnail = OffsetImage(picture, zoom=pixels / max(picture.shape[:2]))
    ax.add_artist(AnnotationBbox(thumbnail, position, frameon=False, **options))


def plot_rescues(y_true, predictions: dict, *, images=None, n_thumbnails=6, ax=None) -> "Axes":
    """Draw how often each combination of models was right, with examples.

    One bar for each of the combinations, such as "image wrong, text right, fused right": where
    fusion rescues a mistake, where it adds one, and where nobody knows.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        The true labels.
    predictions : dict of str to array-like of shape (n,)
        The predictions of some models for the same rows, such as
        ``{"image": …, "text": …, "fused": …}``.
    images : sequence of length n, optional
        Pictures, of which the first few of each combination are drawn at the end of its bar.
    n_thumbnails : int
        How many pictures a bar gets at most.
    ax : Axes, optional
        Where to draw; a new figure if not given.
    """
    y_true = np.asarray(y_true)
    right = np.column_stack([np.asarray(p) == y_true for p in predictions.values()])
    outcomes = [tuple(row) for row in right.tolist()]
    bars = sorted(set(outcomes))  # all wrong at the bottom, all right at the top
    ax = ax or _new_axes((8, 0.8 + 0.45 * len(bars)))
    for height, outcome in enumerate(bars):
        rows = [row for row, other in enumerate(outcomes) if other == outcome]
        rescued = outcome[-1]
        ax.barh(height, len(rows), color=COLORS[0 if rescued else 1], hatch="" if rescued else "//")
        ax.annotate(f"{len(rows)}", (len(rows), height), (4, 0), va="center", **_IN_POINTS)
        for place, picture in enumerate(_first_pictures(images, rows, n_thumbnails)):
            offset = (42 + 24 * place, 0)
            _draw_thumbnail(ax, picture, (len(rows), height), xybox=offset, boxcoords=_POINTS)
    ax.set_yticks(range(len(bars)), [_outcome_name(predictions, outcome) for outcome in bars])
    ax.set_xlim(0, 2 * ax.get_xlim()[1] if images is not None else None)
    ax.set(xlabel="test rows", title=f"solid: {list(predictions)[-1]} right; hatched: wrong")
    _use_fonts_with_the_glyphs(ax)
    return ax


def _first_pictures(images, rows: list[int], n: int) -> list:
    if images is None:
        return []
    images = list(images)
    return [images[row] for row in rows if images[row] is not None][:n]


_POINTS = "offset points"
_IN_POINTS = {"textcoords": _POINTS}


def _outcome_name(predictions: dict, outcome: tuple) -> str:
    return ", ".join(
        f"{name} {'right' if right else 'wrong'}"
        for name, right in zip(predictions, outcome, strict=True)
    )


def plot_intervals(intervals: dict, *, xlabel: str = "accuracy", ax=None) -> "Axes":
    """Draw estimates with their confidence intervals, one row each, the first at the top.

    Parameters
    ----------
    intervals : dict of str to Interval
        As :func:`cmlearn.metrics.bootstrap_interval` returns them.
    xlabel : str
        What is estimated, with its unit.
    ax : Axes, optional
        Where to draw; a new figure if not given.
    """
    ax = ax or _new_axes((6, 0.9 + 0.4 * len(intervals)))
    for row, interval in enumerate(intervals.values()):
        ax.plot([interval.low, interval.high], [row, row], color=COLORS[0], lw=2)
        ax.plot(interval.estimate, row, "o", color=COLORS[0])
        ax.annotate(
            f"{interval.estimate:.3f}", (interval.estimate, row), (0, 5), ha="center", **_IN_POINTS
        )
    levels = {interval.confidence_level for interval in intervals.values()}
    level = f" ({levels.pop():.0%} interval)" if len(levels) == 1 else ""
    ax.set_yticks(range(len(intervals)), list(intervals))
    ax.set(xlabel=xlabel + level, ylim=(len(intervals) - 0.4, -0.7))
    _use_fonts_with_the_glyphs(ax)
    return ax


def plot_comparison(scores, *, metric: str = "accuracy", confidence_level=0.95, ax=None) -> "Axes":
    """Draw the mean score of every method with its interval, the best at the top.

    Parameters
    ----------
    scores : DataFrame
        As :func:`cmlearn.model_selection.compare_methods` returns them, for one training size
        and one variant.
    metric : str
        The column to draw.
    confidence_level : float
        Of the intervals, which take into account that folds share training rows
        (:func:`cmlearn.model_selection.score_intervals`).
    ax : Axes, optional
        Where to draw; a new figure if not given.
    """
    from cmlearn.model_selection import score_intervals

    intervals = score_intervals(scores, metric, confidence_level=confidence_level)
    if metric in ("calibration_error", "log_loss", "fit_seconds", "predict_seconds"):
        intervals = dict(reversed(intervals.items()))  # the lowest is the best
    return plot_intervals(intervals, xlabel=_metric_name(metric), ax=ax)


def _metric_name(metric: str) -> str:
    return metric.replace("_", " ") + (" (nats)" if metric == "log_loss" else "")


def plot_size_curve(scores, *, metric: str = "accuracy", ax=None) -> "Axes":
    """Draw the mean score of every method over the number of training rows.

    Parameters
    ----------
    scores : DataFrame
        As :func:`cmlearn.model_selection.compare_methods` returns them with ``train_sizes``.
    metric : str
        The column to draw; the band is one standard deviation of the folds to either side.
    ax : Axes, optional
        Where to draw; a new figure if not given. Its x axis is made logarithmic.
    """
    sizes = scores.groupby("train_size")["n_train"].transform("mean")
    ax = _draw_curves(scores.assign(size=sizes), "size", metric, ax)
    ax.set_xscale("log")
    ax.set_xlabel("training rows")
    return ax


def plot_missing_curve(
    scores, *, metric: str = "accuracy", xlabel: str = "share of rows without the modality", ax=None
) -> "Axes":
    """Draw the mean score of every method over the share of test rows that lack a modality.

    Parameters
    ----------
    scores : DataFrame
        As :func:`cmlearn.model_selection.compare_methods` returns them with ``variants`` whose
        names are the shares, numbers from 0 to 1.
    metric : str
        The column to draw; the band is one standard deviation of the folds to either side.
    xlabel : str
        What the shares are of.
    ax : Axes, optional
        Where to draw; a new figure if not given.
    """
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(scores["variant"]):
        raise ValueError(
            "the variants must be numbers, the shares that are missing, such as variants={0.0: …, "
            f"0.5: …}}; got {scores['variant'].unique().tolist()}"
        )
    ax = _draw_curves(scores, "variant", metric, ax)
    ax.set_xlabel(xlabel)
    return ax


def _draw_curves(scores, x: str, metric: str, ax) -> "Axes":
    if metric not in scores:
        raise ValueError(f"there is no metric {metric!r}; the scores hold {list(scores)}")
    ax = ax or _new_axes((6, 4))
    for number, name in enumerate(scores["method"].unique()):
        folds = scores[scores["method"] == name].groupby(x)[metric]
        mean, spread = folds.mean(), folds.std().fillna(0)
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        ax.plot(mean.index, mean, color=color, marker=marker, label=name)
        ax.fill_between(mean.index, mean - spread, mean + spread, color=color, alpha=0.15, lw=0)
    ax.set_ylabel(_metric_name(metric))
    ax.legend(fontsize=8)
    _use_fonts_with_the_glyphs(ax)
    return ax


def plot_reliability(
    y_true, probabilities: dict, *, labels=None, n_bins: int = 15, ax=None
) -> "Axes":
    """Draw how often each model was right over how sure it was, and the calibration error.

    Below the diagonal a model is too certain, above it too modest. The area of a point is the
    share of rows that it stands for.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Labels; or, with one probability a row, whether the prediction was right.
    probabilities : dict of str to array-like of shape (n, n_classes) or (n,)
        Each model's class probabilities, or those of its predicted class alone.
    labels : array-like of shape (n_classes,), optional
        The label of each column of the probabilities; the sorted labels if not given.
    n_bins : int
        Number of bins of equal width from 0 to 1.
    ax : Axes, optional
        Where to draw; a new figure if not given.
    """
    from cmlearn.metrics import calibration_error, reliability_curve

    ax = ax or _new_axes((5, 4.5))
    ax.plot([0, 1], [0, 1], ":", color="0.5", lw=1, label="perfectly calibrated")
    for number, (name, y_prob) in enumerate(probabilities.items()):
        curve = reliability_curve(y_true, y_prob, labels=labels, n_bins=n_bins)
        error = calibration_error(y_true, y_prob, labels=labels, n_bins=n_bins)
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        ax.plot(curve["confidence"], curve["accuracy"], color=color, lw=1)
        ax.scatter(
            curve["confidence"],
            curve["accuracy"],
            s=400 * curve["n_rows"] / curve["n_rows"].sum(),
            color=color,
            marker=marker,
            label=f"{name} (error {error:.3f})",
        )
    ax.set(
        xlabel="probability of the predicted class",
        ylabel="share that is right",
        ylim=(-0.03, 1.03),
    )
    ax.legend(fontsize=8)
    _use_fonts_with_the_glyphs(ax)
    return ax


def _new_axes(size: tuple[float, float]) -> "Axes":
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=size, layout="constrained")
    return ax


def _use_fonts_with_the_glyphs(ax) -> None:
    """Add a fallback font to every text on ``ax`` that holds glyphs the default font lacks."""
    import matplotlib as mpl
    from matplotlib.text import Text

    without_font: set[str] = set()
    for text in ax.findobj(Text):
        missing = _missing_glyphs(text.get_text())
        font = _font_with(missing) if missing else None
        if font is not None:
            text.set_fontfamily([*mpl.rcParams["font.family"], font])
        elif missing:
            without_font |= missing
    if without_font:
        warnings.warn(
            f"no installed font can draw {''.join(sorted(without_font))!r}, so boxes stand in the "
            "figure; install one, for Chinese for instance the package fonts-noto-cjk, and "
            "restart Python",
            stacklevel=3,
        )


def _missing_glyphs(text: str) -> frozenset[str]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    if text.isascii():
        return frozenset()
    default = get_font(findfont(FontProperties()))
    return frozenset(c for c in text if not c.isspace() and not default.get_char_index(ord(c)))


@lru_cache
def _font_with(characters: frozenset[str]) -> str | None:
    """Return the family of an installed font that has all the characters, or None."""
    from matplotlib.font_manager import fontManager, get_font

    # Fonts made for Chinese, Japanese and Korean first: they have the rest of the text as well.
    fonts = sorted(fontManager.ttflist, key=lambda font: ("CJK" not in font.name, font.name))
    for font in fonts:
        if "lastresort" in font.name.replace(" ", "").lower():  # it has boxes for everything
            continue
        face = get_font(font.fname)
        if all(face.get_char_index(ord(character)) for character in characters):
            return font.name
    return None
