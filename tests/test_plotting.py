import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.offsetbox import AnnotationBbox

mpl.use("Agg")
import matplotlib.pyplot as plt

from cmlearn import plotting
from cmlearn.metrics import Interval
from cmlearn.plotting import (
    plot_comparison,
    plot_confusion_matrix,
    plot_embedding,
    plot_intervals,
    plot_learning_curve,
    plot_missing_curve,
    plot_reliability,
    plot_rescues,
    plot_samples,
    plot_size_curve,
)

NAMES = ["cup", "hat", "pen"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def picture(value=0):
    return np.full((8, 6, 3), value, np.uint8)


def draw(artist):
    """Draw the whole figure: some mistakes show only then."""
    artist.figure.canvas.draw()


def thumbnails(ax):
    return [artist for artist in ax.get_children() if isinstance(artist, AnnotationBbox)]


def written(ax):
    return [text.get_text() for text in ax.texts]


# --- plot_samples ---------------------------------------------------------------------------------


def test_samples_show_each_picture_with_its_caption_and_label():
    axes = plot_samples([picture(9), picture(200)], ["red cup", "a hat"], labels=["cup", "hat"])
    draw(axes.flat[0])
    assert axes.shape == (1, 2)
    for ax, value, caption, label in zip(
        axes.flat, (9, 200), ("red cup", "a hat"), NAMES, strict=False
    ):
        np.testing.assert_array_equal(ax.images[0].get_array(), picture(value))
        assert (ax.get_xlabel(), ax.get_title()) == (caption, label)


def test_missing_parts_are_said_to_be_missing():
    axes = plot_samples([None, picture()], ["red cup", None])
    assert written(axes[0, 0]) == ["no image"] and not axes[0, 0].images
    assert axes[0, 1].get_xlabel() == "no text"


def test_captions_are_wrapped_not_cut_and_dollars_are_dollars():
    caption = "the red cup costs $5 and the blue one costs $6 in this shop"
    ax = plot_samples([picture()], [caption]).flat[0]
    draw(ax)
    assert ax.get_xlabel().count("\n") >= 1
    assert ax.get_xlabel().replace("\n", " ") == caption


def test_more_samples_than_a_row_holds_leave_no_empty_frame():
    axes = plot_samples([picture()] * 7, ["text"] * 7)
    assert axes.shape == (2, 6)
    assert [ax.axison for ax in axes.flat] == [True] * 7 + [False] * 5


def test_samples_are_drawn_on_the_axes_given():
    _, mine = plt.subplots(1, 2)
    assert plot_samples([picture()] * 2, ["a", "b"], axes=mine) is mine
    assert mine[1].get_xlabel() == "b"


def test_samples_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match="got 2 images, 1 texts and 2 labels"):
        plot_samples([picture()] * 2, ["a"])
    with pytest.raises(ValueError, match="2 samples do not fit on 1 axes"):
        plot_samples([picture()] * 2, ["a", "b"], axes=plt.subplots()[1])


# --- plot_confusion_matrix ------------------------------------------------------------------------


def test_confusion_matrix_counts_rows_and_colours_shares():
    y_true, y_pred = [0] * 4 + [1], [0, 0, 0, 1, 1]
    ax = plot_confusion_matrix(y_true, y_pred, target_names=NAMES)
    draw(ax)
    assert written(ax) == ["3", "1", "", "", "1", "", "", "", ""]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert ax.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in ax.get_yticklabels()] == NAMES
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")


def test_confusion_matrix_of_a_catalogue_stays_a_figure():
    classes = np.arange(150)
    ax = plot_confusion_matrix(classes, np.roll(classes, 1))
    width, height = ax.figure.get_size_inches()
    assert width == height < 31
    assert not ax.texts
    assert len(ax.get_xticklabels()) == 150
    numbered = plot_confusion_matrix(classes[:60], classes[:60])
    assert len(numbered.texts) == 3600
    larger, smaller = (one.get_xticklabels()[0].get_fontsize() for one in (numbered, ax))
    assert smaller < larger / 2


@pytest.mark.parametrize("label", [3, -1])
def test_confusion_matrix_leaves_out_no_row(label):
    with pytest.raises(ValueError, match=f"integers from 0 to 2; got {label}"):
        plot_confusion_matrix([0, 1, label], [0, 1, 1], target_names=["hat", "cup", "sun"])


def test_confusion_matrix_takes_string_labels():
    ax = plot_confusion_matrix(["hat", "cup"], ["hat", "hat"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cup", "hat"]
    assert written(ax) == ["", "1", "", "1"]


@pytest.mark.parametrize("name", ["$5 to $10", "a_$b^$"])
def test_names_of_classes_are_no_formulas(name):
    ax = plot_confusion_matrix([name, "hat"], [name, "hat"])
    draw(ax)
    names = [*ax.get_xticklabels(), *ax.get_yticklabels()]
    assert [text.get_text() for text in names].count(name) == 2
    ax = plot_embedding(np.eye(4), [name, name, "hat", "hat"])
    draw(ax)
    assert name in [text.get_text() for text in ax.get_legend().get_texts()]
    assert not any(text.get_parse_math() for text in [*names, *ax.get_legend().get_texts()])


# --- plot_learning_curve --------------------------------------------------------------------------

HISTORY = {
    "loss": [3.0, 2.0, 1.0, 0.5],
    "val_loss": [3.0, 2.5, 2.6, 2.7],
    "accuracy": [0.1, 0.2, 0.5, 0.9],
    "val_accuracy": [0.1, 0.3, 0.2, 0.2],
}


def test_learning_curve_draws_both_parts_and_the_epoch_that_was_kept():
    ax = plot_learning_curve(HISTORY)
    draw(ax)
    training, validation, kept = ax.lines
    np.testing.assert_array_equal(
        training.get_xydata(), list(zip([1, 2, 3, 4], HISTORY["loss"], strict=True))
    )
    np.testing.assert_array_equal(validation.get_ydata(), HISTORY["val_loss"])
    assert set(kept.get_xdata()) == {2}
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["training", "validation", "kept: epoch 2"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss (nats)")
    assert training.get_linestyle() != validation.get_linestyle()


def test_accuracy_curve_marks_the_epoch_of_the_lowest_loss():
    ax = plot_learning_curve(HISTORY, metric="accuracy")
    assert ax.get_ylabel() == "accuracy"
    assert set(ax.lines[2].get_xdata()) == {2}


def test_learning_curve_without_validation_or_metric():
    assert len(plot_learning_curve({"loss": [1.0, 0.5]}).lines) == 1
    with pytest.raises(ValueError, match=r"holds \['loss'\], but no 'recall'"):
        plot_learning_curve({"loss": [1.0]}, metric="recall")


# --- plot_embedding -------------------------------------------------------------------------------


def test_pca_map_shows_every_row_by_class(rng):
    features = rng.normal(size=(30, 2)) * [10, 1]
    y = np.repeat([0, 1, 2], 10)
    ax = plot_embedding(features, y, target_names=NAMES)
    draw(ax)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == NAMES
    points = np.vstack([scatter.get_offsets() for scatter in ax.collections])
    # Two features keep all distances in two components.
    expected = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points[None], axis=2), expected)
    shares = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1]
    assert ax.get_xlabel() == f"component 1 ({shares[0] / shares.sum():.0%} of the variance)"


def test_classes_differ_in_marker_as_well_as_colour(rng):
    ax = plot_embedding(rng.normal(size=(16, 3)), np.repeat(np.arange(8), 2))
    markers = {tuple(s.get_paths()[0].vertices.ravel().round(6)) for s in ax.collections}
    assert len(markers) == 8


def test_map_has_thumbnails_of_the_pictures_there_are(rng):
    images = [picture(), None] * 10
    ax = plot_embedding(rng.normal(size=(20, 3)), np.zeros(20), images=images, n_thumbnails=50)
    assert len(thumbnails(ax)) == 10
    ax = plot_embedding(rng.normal(size=(20, 3)), np.zeros(20), images=images, n_thumbnails=4)
    draw(ax)
    assert len(thumbnails(ax)) == 4


def test_thumbnails_lie_where_their_points_lie(rng):
    features = rng.normal(size=(6, 2))
    ax = plot_embedding(features, np.zeros(6), images=[picture()] * 6)
    points = ax.collections[0].get_offsets()
    places = np.array([thumbnail.xy for thumbnail in thumbnails(ax)])
    np.testing.assert_allclose(np.sort(places, axis=0), np.sort(points, axis=0))


def test_tsne_map_keeps_clusters_apart(rng):
    y = np.repeat([0, 1], 20)
    features = rng.normal(size=(40, 5)) + 20 * y[:, None]
    ax = plot_embedding(features, y, method="tsne", random_state=0)
    a, b = (scatter.get_offsets() for scatter in ax.collections)
    gap = np.linalg.norm(a.mean(axis=0) - b.mean(axis=0))
    assert gap > 2 * np.linalg.norm(a - a.mean(axis=0), axis=1).mean()
    assert ax.get_xlabel() == "t-SNE 1 (no unit)"


def test_map_refuses_other_methods_and_lengths(rng):
    with pytest.raises(ValueError, match='"pca" or "tsne"; got \'umap\''):
        plot_embedding(rng.normal(size=(4, 2)), [0] * 4, method="umap")
    with pytest.raises(ValueError, match="4 rows of features for 3 labels"):
        plot_embedding(rng.normal(size=(4, 2)), [0] * 3)


# --- plot_rescues ---------------------------------------------------------------------------------

Y = np.array(["cup"] * 6)
PREDICTIONS = {
    "image": ["cup", "hat", "hat", "cup", "hat", "cup"],
    "text": ["cup", "cup", "cup", "hat", "hat", "cup"],
    "fused": ["cup", "cup", "cup", "hat", "hat", "hat"],
}


def test_rescues_counts_each_combination():
    ax = plot_rescues(Y, PREDICTIONS)
    draw(ax)
    names = [label.get_text() for label in ax.get_yticklabels()]
    counts = dict(zip(names, [bar.get_width() for bar in ax.patches], strict=True))
    assert counts == {
        "image wrong, text wrong, fused wrong": 1,
        "image wrong, text right, fused right": 2,
        "image right, text wrong, fused wrong": 1,
        "image right, text right, fused wrong": 1,
        "image right, text right, fused right": 1,
    }
    assert written(ax) == ["1", "2", "1", "1", "1"]
    assert ax.get_xlabel() == "test rows"


def test_rescues_are_told_from_mistakes_without_colour():
    ax = plot_rescues(Y, PREDICTIONS)
    for bar, label in zip(ax.patches, ax.get_yticklabels(), strict=True):
        assert bool(bar.get_hatch()) == label.get_text().endswith("fused wrong")
    assert "hatched: wrong" in ax.get_title()


def test_rescues_show_pictures_of_each_combination():
    images = [picture(n) for n in range(5)] + [None]
    ax = plot_rescues(Y, PREDICTIONS, images=images, n_thumbnails=1)
    draw(ax)
    values = [int(thumbnail.offsetbox.get_data()[0, 0, 0]) for thumbnail in thumbnails(ax)]
    assert values == [4, 1, 3, 0]  # the first row of each combination; row 5 has no picture


# --- plot_intervals -------------------------------------------------------------------------------


def test_intervals_are_drawn_in_order_with_their_numbers():
    intervals = {"image": Interval(0.7, 0.6, 0.8, 0.95), "both": Interval(0.9, 0.85, 0.95, 0.95)}
    ax = plot_intervals(intervals, xlabel="macro-F1")
    draw(ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["image", "both"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.6, 0.8])
    np.testing.assert_array_equal(ax.lines[3].get_xdata(), [0.9])
    assert written(ax) == ["0.700", "0.900"]
    assert ax.get_xlabel() == "macro-F1 (95% interval)"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first at the top


# --- Comparisons ----------------------------------------------------------------------------------


def fold_scores(**columns):
    """Return scores of two methods over 2 × 3 folds at each of two sizes and two variants."""
    rows = [
        {"method": method, "repeat": repeat, "fold": fold, "train_size": size, "variant": variant}
        | {"accuracy": 0.5 + 0.1 * (method == "both") + 0.2 * size - 0.1 * variant + 0.01 * fold}
        | {"log_loss": 2.0 - 0.5 * (method == "both") + 0.1 * fold, "n_test": 40}
        | {"n_train": int(80 * size) + fold - 1}
        for method in ("text", "both")
        for repeat in range(2)
        for fold in range(3)
        for size in (0.5, 1.0)
        for variant in (0.0, 1.0)
    ]
    table = pd.DataFrame(rows)
    for name, value in columns.items():
        table = table[table[name] == value]
    return table


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 0.81), ("log_loss", 1.6)])
def test_comparison_draws_means_and_corrected_intervals_best_first(metric, best):
    scores = fold_scores(train_size=1.0, variant=0.0)
    ax = plot_comparison(scores, metric=metric)
    draw(ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["both", "text"]
    values = scores[scores["method"] == "both"][metric].to_numpy()
    assert ax.lines[1].get_xdata()[0] == pytest.approx(values.mean()) == pytest.approx(best)
    # 2.5706: the 97.5% quantile of Student's t with 5 degrees of freedom, from tables.
    half = 2.5706 * np.sqrt((1 / 6 + 40 / 80) * values.var(ddof=1))
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [best - half, best + half], rtol=1e-4)
    name = {"accuracy": "accuracy", "log_loss": "log loss (nats)"}[metric]
    assert ax.get_xlabel() == f"{name} (95% interval)"


def test_size_curve_draws_the_mean_over_the_folds():
    ax = plot_size_curve(fold_scores(variant=0.0))
    draw(ax)
    text, both = ax.lines
    np.testing.assert_allclose(text.get_xdata(), [40, 80])
    np.testing.assert_allclose(text.get_ydata(), [0.61, 0.71])
    np.testing.assert_allclose(both.get_ydata(), [0.71, 0.81])
    spread = np.std([0.0, 0.01, 0.02] * 2, ddof=1)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.61 - spread, 0.71 + spread))
    assert [entry.get_text() for entry in ax.get_legend().get_texts()] == ["text", "both"]
    assert text.get_marker() != both.get_marker()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training rows", "accuracy")
    assert ax.get_xscale() == "log"


def test_missing_curve_draws_the_mean_over_the_share_that_is_missing():
    ax = plot_missing_curve(fold_scores(train_size=1.0), metric="accuracy")
    draw(ax)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 1])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.71, 0.61])
    assert ax.get_xlabel() == "share of rows without the modality"
    with pytest.raises(ValueError, match=r"variants must be numbers.* got \['as it is'\]"):
        plot_missing_curve(fold_scores().assign(variant="as it is"))
    with pytest.raises(ValueError, match="no metric 'recall'; the scores hold"):
        plot_missing_curve(fold_scores(), metric="recall")


def test_reliability_draws_each_bin_and_the_error():
    y_prob = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    ax = plot_reliability([0, 0, 0, 1, 1, 1], {"image": y_prob, "text": y_prob}, n_bins=10)
    draw(ax)
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(points, [[0.6, 1.0], [0.9, 0.75]])
    sizes = ax.collections[0].get_sizes()
    assert sizes[1] / sizes[0] == pytest.approx(2)
    texts = [entry.get_text() for entry in ax.get_legend().get_texts()]
    # 2/6 of the rows are 0.4 off, 4/6 are 0.15 off.
    assert texts == ["perfectly calibrated", "image (error 0.233)", "text (error 0.233)"]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0], [1, 1]])


# --- Fonts ----------------------------------------------------------------------------------------


def test_chinese_gets_a_font_that_has_the_glyphs(recwarn):
    if plotting._font_with(frozenset("杯子")) is None:
        pytest.skip("no font with Chinese glyphs is installed")
    ax = plot_samples([picture()], ["红色的杯子"]).flat[0]
    draw(ax)
    families = ax.xaxis.label.get_fontfamily()
    assert families[-1] == plotting._font_with(frozenset("红色的杯子"))
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_a_font_of_boxes_is_no_font(recwarn):
    """matplotlib brings one that claims every character; U+0378 means nothing to anybody."""
    assert plotting._font_with(frozenset("\u0378")) is None
    with pytest.warns(UserWarning, match="no installed font can draw"):
        plot_samples([picture()], ["\u0378"])


def test_ascii_text_keeps_the_default_font():
    ax = plot_samples([picture()], ["red cup"]).flat[0]
    assert ax.xaxis.label.get_fontfamily() == mpl.rcParams["font.family"]


def test_a_glyph_without_a_font_costs_no_other_text_its_font(monkeypatch):
    monkeypatch.setattr(
        plotting, "_font_with", lambda characters: None if "\U0001fae0" in characters else "Serif"
    )
    _, ax = plt.subplots()
    emoji, chinese = ax.text(0, 0, "\U0001fae0"), ax.text(0, 1, "杯子")
    with pytest.warns(UserWarning, match="no installed font can draw '\U0001fae0'"):
        plotting._use_fonts_with_the_glyphs(ax)
    assert "Serif" in chinese.get_fontfamily()
    assert "Serif" not in emoji.get_fontfamily()


def test_missing_font_gives_one_warning_with_the_remedy(monkeypatch):
    monkeypatch.setattr(plotting, "_font_with", lambda characters: None)
    with pytest.warns(UserWarning, match="'子杯'.*fonts-noto-cjk") as caught:
        plot_samples([picture()], ["杯子"], labels=["杯子"])
    assert len(caught) == 1


@pytest.mark.parametrize(
    "plot",
    [
        lambda ax: plot_confusion_matrix([0, 1], [0, 1], ax=ax),
        lambda ax: plot_learning_curve(HISTORY, ax=ax),
        lambda ax: plot_embedding(np.eye(4), [0, 0, 1, 1], ax=ax),
        lambda ax: plot_rescues(Y, PREDICTIONS, ax=ax),
        lambda ax: plot_intervals({"a": Interval(0.5, 0.4, 0.6, 0.9)}, ax=ax),
        lambda ax: plot_comparison(fold_scores(train_size=1.0, variant=0.0), ax=ax),
        lambda ax: plot_size_curve(fold_scores(), ax=ax),
        lambda ax: plot_missing_curve(fold_scores(), ax=ax),
        lambda ax: plot_reliability([0, 1], {"a": np.eye(2)}, ax=ax),
    ],
)
def test_the_axes_given_are_drawn_on_and_returned(plot):
    _, ax = plt.subplots()
    assert plot(ax) is ax
    assert plt.get_fignums() == [ax.figure.number]
    assert ax.get_xlabel()


def test_importing_the_module_does_not_load_matplotlib():
    command = "import sys, cmlearn.plotting; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)
