"""Tests of the feature table and of fusing decisions when they are learned or parts are missing."""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
from conftest import AllColumns
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedGroupKFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.fixes import parse_version

from cmlearn.calibration import TemperatureScaling, fit_temperature
from cmlearn.fusion import Fusion, LateFusion, drop_modality, feature_table, stack_features
from cmlearn.metrics import calibration_error
from cmlearn.persistence import load_model, save_model

# --- The feature table ----------------------------------------------------------------------------


def test_vectors_go_there_and_back(rng):
    image = rng.normal(size=(6, 4))
    array, present = stack_features(feature_table(image=image)["image"])
    np.testing.assert_array_equal(array, image.astype(np.float32))
    assert array.dtype == np.float32 and present.dtype == bool and present.all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=1, max_size=8))
def test_sequences_of_any_length_go_there_and_back(lengths):
    rng = np.random.default_rng(0)
    rows = [None if length is None else rng.normal(size=(length, 3)) for length in lengths]
    table = feature_table(text=rows)
    tokens, mask = stack_features(table["text"], cell_shape=(2, 3))
    assert tokens.dtype == np.float32 and tokens.shape == (*mask.shape, 3)
    for row, values, real in zip(rows, tokens, mask, strict=True):
        expected = np.zeros((0, 3)) if row is None else row
        np.testing.assert_array_equal(values[real], expected.astype(np.float32))
        assert (values[~real] == 0).all()
        assert real.tolist() == sorted(real.tolist(), reverse=True)  # padding lies behind


def test_padding_is_left_out_and_comes_back(rng):
    tokens = rng.normal(size=(3, 4, 2)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    table = feature_table(text=(tokens, mask), image=np.zeros((3, 5)))
    assert [None if cell is None else cell.shape for cell in table["text"]] == [
        (3, 2),
        None,
        (1, 2),
    ]
    array, found = stack_features(table["text"])
    np.testing.assert_array_equal(found, mask[:, :3])
    np.testing.assert_array_equal(array, np.where(mask[..., None], tokens, 0)[:, :3])


def test_grids_keep_their_positions(rng):
    grid = rng.normal(size=(2, 9, 4)).astype(np.float32)
    array, mask = stack_features(feature_table(image=grid)["image"])
    np.testing.assert_array_equal(array, grid)
    assert mask.shape == (2, 9) and mask.all()


def test_missing_rows_are_zero_and_masked():
    table = feature_table(image=[np.ones(2), None, [3, 4]])
    assert table["image"][1] is None
    array, present = stack_features(table["image"])
    np.testing.assert_array_equal(array, [[1, 1], [0, 0], [3, 4]])
    assert present.tolist() == [True, False, True]


def test_scikit_learn_and_pandas_split_and_join_the_table(rng):
    table = feature_table(image=rng.normal(size=(6, 4)), text=[np.ones((2, 3))] * 6)
    for train, test in KFold(3).split(table):
        assert stack_features(table.iloc[test]["image"])[0].shape == (2, 4)
        assert stack_features(table.iloc[train]["text"])[0].shape == (4, 2, 3)
    longer = table.reindex(range(7))  # pandas fills with NaN
    assert stack_features(longer["image"])[1].tolist() == [True] * 6 + [False]


def test_all_missing_takes_the_shape_of_the_training_rows():
    array, present = stack_features([None, None], cell_shape=(5,))
    assert array.shape == (2, 5) and not array.any() and not present.any()
    array, mask = stack_features([None, None], cell_shape=(7, 5))
    assert array.shape == (2, 7, 5) and not array.any()
    assert mask.shape == (2, 7) and not mask.any()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([np.ones(3), np.ones(4)], r"'text' has shape \(4,\) in row 1, but \(3,\) in row 0"),
        ([None, np.ones(3), np.ones((2, 3))], r"shape \(2, 3\) in row 2, but \(3,\) in row 1"),
        ([np.ones(2), np.array([1, np.nan])], "'text' holds NaN or infinite values in row 1"),
        ([np.ones(2), np.array([1, 1e300])], "NaN or infinite values in row 1"),
        ([np.ones(2), "red cup"], r"row 1 holds str of type <U7 and shape \(\)"),
        ([np.ones(2), np.array(["a", "b"])], "row 1 holds ndarray of type <U1"),
        ([np.ones(2), 1j * np.ones(2)], "row 1 holds ndarray of type complex128"),
        ([np.ones((1, 1, 1))], r"row 0 holds ndarray of type float64 and shape \(1, 1, 1\)"),
        ([np.ones(0)], r"row 0 holds ndarray of type float64 and shape \(0,\)"),
        ((np.ones((2, 3, 4)), np.ones((2, 3))), "mask of type float64"),
        ((np.ones((2, 3, 4)), np.ones((2, 2), bool)), r"shapes \(2, 3, 4\) and \(2, 2\)"),
    ],
)
def test_bad_cells_name_the_row(column, message):
    with pytest.raises(ValueError, match=message):
        feature_table(text=column)
    if not isinstance(column, tuple):
        with pytest.raises(ValueError, match=message):
            stack_features(pd.Series(column, name="text", dtype=object))


def test_tables_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="the lengths are: image 2, text 3"):
        feature_table(image=np.ones((2, 4)), text=np.ones((3, 4)))
    with pytest.raises(ValueError, match="at least one modality"):
        feature_table()
    with pytest.raises(ValueError, match="'text' is missing in all of the 2 rows.*cell_shape"):
        stack_features(pd.Series([None, None], name="text"))
    with pytest.raises(ValueError, match=r"rows of shape \(3,\); in training they were \(4,\)"):
        stack_features([np.ones(3)], cell_shape=(4,))
    with pytest.raises(ValueError, match=r"rows of shape \(3,\); in training they were \(2, 3\)"):
        stack_features([np.ones(3)], cell_shape=(2, 3))


def test_drop_modality_takes_more_rows_for_a_larger_share(rng):
    table = feature_table(image=rng.normal(size=(20, 2)), text=np.ones((20, 3)))
    lacking = {}
    for share in (0, 0.25, 0.5, 1.0):
        dropped = drop_modality(table, "image", share, random_state=3)
        lacking[share] = set(np.flatnonzero(dropped["image"].isna()))
    assert [len(rows) for rows in lacking.values()] == [0, 5, 10, 20]
    assert lacking[0.25] < lacking[0.5]
    assert table["image"].notna().all()
    texts = pd.DataFrame({"text": ["a", "b"]}, index=[7, 9])
    assert drop_modality(texts, "text")["text"].tolist() == [None, None]
    assert drop_modality(texts, "text").index.tolist() == [7, 9]
    with pytest.raises(ValueError, match=r"no column 'sound'; the table has \['image', 'text'\]"):
        drop_modality(table, "sound")
    with pytest.raises(ValueError, match="share must be from 0 to 1; got 50"):
        drop_modality(table, "image", 50)


# --- Fusion with missing modalities ---------------------------------------------------------------


@pytest.fixture
def pairs(rng):
    """150 pairs of three classes that each modality knows something of; some rows lack one."""
    y = rng.integers(0, 3, size=150)
    image = rng.normal(size=(150, 5)) * 10
    image[:, 0] += 20 * y
    text = rng.normal(size=(150, 3))
    text[:, 1] += 2 * (y == 2)
    return image, text, np.array(["cup", "hat", "pen"])[y]


def with_missing(image, text):
    """Return a table without every 5th image and every 7th text (and once without both)."""
    table = feature_table(image=image, text=text)
    table.loc[::5, "image"] = None
    table.loc[::7, "text"] = None
    return table


BLOCKS = [("image", "passthrough", "image"), ("text", "passthrough", "text")]


def balanced(values, present):
    """Return the balanced block written out, NaN where missing."""
    known = values[present]
    scaled = (values - known.mean(axis=0)) / known.std(axis=0)
    scaled /= np.sqrt((scaled[present] ** 2).sum(axis=1).mean())
    return np.where(present[:, None], scaled, np.nan)


def test_columns_of_a_feature_table_pass_through(pairs):
    image, text, _ = pairs
    fusion = Fusion(BLOCKS)
    fused = fusion.fit_transform(feature_table(image=image, text=text))
    plain = [("image", "passthrough", slice(0, 5)), ("text", "passthrough", slice(5, 8))]
    expected = Fusion(plain).fit_transform(np.hstack([image, text]))
    np.testing.assert_allclose(fused, expected, atol=1e-5)
    assert list(fusion.get_feature_names_out())[4:6] == ["image__image4", "text__text0"]


def test_sequences_pass_through_as_their_mean(rng):
    words = [rng.normal(size=(n, 3)) for n in (1, 4, 2, 5, 3)]
    table = feature_table(text=words)
    fused = Fusion([("text", "passthrough", "text")]).fit_transform(table)
    means = np.array([word.mean(axis=0) for word in words])
    np.testing.assert_allclose(fused, balanced(means, np.ones(5, bool)), atol=1e-5)


def present_of(table):
    return [table[name].notna().to_numpy() for name in ("image", "text")]


def test_masked_concat_is_zero_where_missing_and_scaled_by_the_rest(pairs):
    image, text, _ = pairs
    table = with_missing(image, text)
    fused = Fusion(BLOCKS, missing="mask").fit_transform(table)
    has_image, has_text = present_of(table)
    expected = np.hstack([balanced(image, has_image), balanced(text, has_text)])
    np.testing.assert_allclose(fused, np.nan_to_num(expected), atol=1e-5)
    assert (fused[0] == 0).all()  # nothing is there


@pytest.mark.parametrize("how", ["mean", "product"])
def test_masked_mean_and_product_written_out(pairs, how):
    image, text, _ = pairs
    table = with_missing(image, text)
    fusion = Fusion(BLOCKS, how=how, n_components=16, missing="mask", random_state=0)
    fused = fusion.fit_transform(table)
    expected = np.zeros((len(table), 16))
    blocks = [balanced(image, present_of(table)[0]), balanced(text, present_of(table)[1])]
    parts = [
        block @ fusion.projections_[name].components_.T
        for name, block in zip(("image", "text"), blocks, strict=True)
    ]
    for row, (a, b) in enumerate(zip(*parts, strict=True)):
        known = [part for part in (a, b) if not np.isnan(part[0])]
        if known and how == "mean":
            expected[row] = np.mean(known, axis=0)
        elif known:
            expected[row] = np.prod(known, axis=0) * 0.25 ** (2 - len(known))  # 1 / sqrt(16)
    expected /= np.sqrt((expected**2).sum(axis=1).mean())
    np.testing.assert_allclose(fused, expected, atol=1e-5)
    lengths = np.linalg.norm(fused, axis=1)
    one, both = np.isnan(blocks[0][:, 0]) ^ np.isnan(blocks[1][:, 0]), lengths > 0
    assert 0.5 < np.median(lengths[one]) / np.median(lengths[both & ~one]) < 2


@pytest.mark.parametrize("how", ["concat", "mean", "product"])
@pytest.mark.parametrize("projection", ["random", "pca"])
def test_masking_changes_nothing_where_nothing_is_missing(pairs, how, projection):
    image, text, _ = pairs
    table = feature_table(image=image, text=text)
    options = {"how": how, "projection": projection, "random_state": 0}
    np.testing.assert_array_equal(
        Fusion(BLOCKS, missing="mask", **options).fit_transform(table),
        Fusion(BLOCKS, **options).fit_transform(table),
    )


@pytest.mark.parametrize("how", ["concat", "mean", "product"])
def test_all_images_may_be_missing_in_new_rows(pairs, how):
    image, text, _ = pairs
    table = feature_table(image=image, text=text)
    fusion = Fusion(BLOCKS, how=how, n_components=16, missing="mask", random_state=0).fit(table)
    fused = fusion.transform(feature_table(image=[None] * 150, text=text))
    assert np.isfinite(fused).all() and fused.any(axis=1).all()
    one_by_one = [fusion.transform(feature_table(image=[None], text=text[[n]])) for n in range(9)]
    np.testing.assert_allclose(fused[:9], np.vstack(one_by_one), atol=1e-6)


def test_encoders_do_not_see_missing_rows():
    texts = ["red cup", None, "blue hat", "red hat", None]
    X = pd.DataFrame({"text": texts, "size": [1.0, 2, 3, np.nan, 5]})
    parts = [("text", TfidfVectorizer(), "text"), ("size", "passthrough", ["size"])]
    fusion = Fusion(parts, missing="mask")
    fused = fusion.fit_transform(X)
    known = TfidfVectorizer().fit_transform(["red cup", "blue hat", "red hat"]).toarray()
    expected = balanced(known, np.ones(3, bool))
    np.testing.assert_allclose(fused[[0, 2, 3], :4], expected, atol=1e-5)
    assert (fused[[1, 4], :4] == 0).all() and fused[3, 4] == 0
    assert (fusion.transform(X[1:2])[0, :4] == 0).all()
    assert fusion.get_feature_names_out()[0] == "text__blue"


def test_fusion_names_what_is_missing(pairs):
    image, text, _ = pairs
    table = with_missing(image, text)
    with pytest.raises(ValueError, match='block .image. .* first in row 0; .* missing="mask"'):
        Fusion(BLOCKS).fit(table)
    with pytest.raises(ValueError, match='missing must be "error" or "mask"; got .skip.'):
        Fusion(BLOCKS, missing="skip").fit(table)
    nothing = pd.DataFrame({"text": [None, None], "size": [1.0, 2.0]})
    parts = [("text", TfidfVectorizer(), "text"), ("size", "passthrough", ["size"])]
    with pytest.raises(ValueError, match="'text' is missing in all of the 2 training rows"):
        Fusion(parts, missing="mask").fit(nothing)
    with pytest.raises(ValueError, match="'text' is missing in all of the 2 rows"):
        Fusion(BLOCKS[1:], missing="mask").fit(nothing)
    numbers = np.array([[1.0, np.nan], [2, np.nan]])
    parts = [("a", "passthrough", [0]), ("b", "passthrough", [1])]
    with pytest.raises(ValueError, match="'b' is missing in all of the 2 training rows"):
        Fusion(parts, missing="mask").fit(numbers)
    half = np.array([[1.0, np.nan], [2, 1.0]])
    with pytest.raises(ValueError, match="'all' holds NaN .* first in row 0"):
        Fusion([("all", "passthrough", [0, 1])], missing="mask").fit(half)


# --- LateFusion with missing modalities -----------------------------------------------------------


def branch(name, classifier):
    return name, make_pipeline(Fusion([(name, "passthrough", name)]), classifier), [name]


def branches(classifier):
    return [branch("image", classifier), branch("text", classifier)]


SVM = OneVsRestClassifier(SVC())
HOWS = ["mean", "product", "weighted", "stacking", "confidence"]


@pytest.mark.parametrize("how", ["mean", "product"])
def test_only_the_present_branches_vote(pairs, how):
    image, text, y = pairs
    table = with_missing(image, text)
    has_image, has_text = present_of(table)
    fused = LateFusion(branches(LogisticRegression()), how=how, missing="mask").fit(table, y)
    new = feature_table(image=[image[1], None, None], text=[None, text[2], None])
    probabilities = fused.predict_proba(new)
    for row, name, here in [(0, "image", has_image), (1, "text", has_text)]:
        _, alone, columns = branch(name, LogisticRegression())
        alone.fit(table[here][columns], y[here])
        expected = alone.predict_proba(new[columns].iloc[[row]])[0]
        np.testing.assert_allclose(probabilities[row], expected, atol=1e-6)
    shares = pd.Series(y).value_counts(normalize=True).sort_index()
    np.testing.assert_allclose(probabilities[2], shares)


def test_margins_of_the_present_branches_are_averaged(pairs):
    image, text, y = pairs
    fused = LateFusion(branches(SVM), how="margin", missing="mask").fit(
        feature_table(image=image, text=text), y
    )
    new = feature_table(image=[None] * 150, text=text)
    alone = fused.classifiers_["text"]
    np.testing.assert_array_equal(fused.predict(new), alone.predict(new[["text"]]))


@pytest.mark.parametrize("how", HOWS)
def test_every_how_takes_missing_modalities(pairs, how):
    image, text, y = pairs
    classifier = LogisticRegression() if how in ("mean", "product") else SVM
    fused = LateFusion(branches(classifier), how=how, missing="mask", cv=3)
    fused.fit(with_missing(image, text), y)
    for table in (
        with_missing(image, text),
        feature_table(image=[None] * 150, text=text),
        feature_table(image=image, text=[None] * 150),
    ):
        probabilities = fused.predict_proba(table)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        one_by_one = np.vstack([fused.predict_proba(table[n : n + 1]) for n in range(8)])
        # In float32 a row's last digit depends on the rows beside it, on some processors.
        np.testing.assert_allclose(probabilities[:8], one_by_one, rtol=1e-6)
    # Without texts the image decides, as it does alone.
    alone = fused.classifiers_["image"].predict(table[["image"]])
    assert np.mean(fused.predict(table) == alone) > (0.85 if how == "stacking" else 0.999)


@pytest.mark.parametrize("how", HOWS)
def test_masking_changes_no_decision_where_nothing_is_missing(pairs, how):
    image, text, y = pairs
    table = feature_table(image=image, text=text)
    first, second = (
        LateFusion(branches(LogisticRegression()), how=how, missing=missing, cv=3).fit(table, y)
        for missing in ("error", "mask")
    )
    np.testing.assert_array_equal(first.predict_proba(table), second.predict_proba(table))


def test_late_fusion_names_what_is_missing(pairs):
    image, text, y = pairs
    table = with_missing(image, text)
    parts = branches(LogisticRegression())
    with pytest.raises(ValueError, match="row 0 holds nothing .* classifier 'image'; set missing="):
        LateFusion(parts).fit(table, y)
    whole = feature_table(image=image, text=text)
    with pytest.raises(ValueError, match="row 6 holds nothing .* classifier 'text'"):
        LateFusion(parts).fit(whole, y).predict(table.assign(image=whole["image"])[1:].iloc[-150:])
    with pytest.raises(ValueError, match="columns of classifier 'text' are missing in every row"):
        LateFusion(parts, missing="mask").fit(whole.assign(text=None), y)
    cups = whole.assign(text=[t if c == "cup" else None for t, c in zip(text, y, strict=True)])
    with pytest.raises(ValueError, match="'text' has rows of one class only, 'cup'"):
        LateFusion(parts, missing="mask").fit(cups, y)
    with pytest.raises(ValueError, match='missing must be "error" or "mask"; got None'):
        LateFusion(parts, missing=None).fit(whole, y)


# --- LateFusion that learns -----------------------------------------------------------------------


@pytest.fixture
def groups(rng):
    return rng.integers(0, 40, size=150)


def folds_of(y, groups):
    return list(StratifiedGroupKFold(3).split(np.zeros(len(y)), y, groups))


def out_of_fold(classifier, column, table, y, splits, method):
    """Return out-of-fold scores of one branch by scikit-learn."""
    _, model, columns = branch(column, classifier)
    return cross_val_predict(model, table[columns], y, cv=splits, method=method)


@pytest.mark.parametrize("classifier", [LogisticRegression(), SVM])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_stacking_equals_scikit_learns(pairs, groups, classifier, n_classes):
    image, text, y = pairs
    y = y if n_classes == 3 else np.where(y == "cup", "cup", "other")
    table = feature_table(image=image, text=text)
    splits = folds_of(y, groups)
    picked = [(name, Pipeline([("all", model)])) for name, model, _ in branches(classifier)]
    theirs = StackingClassifier(picked, LogisticRegression(max_iter=1000), cv=splits).fit(table, y)
    ours = LateFusion(branches(classifier), how="stacking", cv=3).fit(table, y, groups=groups)
    np.testing.assert_allclose(ours.predict_proba(table), theirs.predict_proba(table), atol=1e-6)
    np.testing.assert_array_equal(ours.predict(table), theirs.predict(table))


def log_pool(scores, temperatures, weights):
    logs = [log_softmax(s / t, axis=1) for s, t in zip(scores, temperatures, strict=True)]
    return sum(w * part for w, part in zip(weights, logs, strict=True))


def log_loss_of(pooled, codes, temperature=1.0):
    return -log_softmax(pooled / temperature, axis=1)[np.arange(len(codes)), codes].mean()


@pytest.mark.parametrize("how", ["weighted", "confidence"])
def test_pools_written_out(pairs, groups, how):
    image, text, y = pairs
    table = feature_table(image=image, text=text)
    fused = LateFusion(branches(SVM), how=how, cv=3).fit(table, y, groups=groups)
    splits = folds_of(y, groups)
    codes = np.searchsorted(fused.classes_, y)
    oof = [out_of_fold(SVM, name, table, y, splits, "decision_function") for name in BOTH]
    for scores, temperature in zip(oof, fused.temperatures_, strict=True):
        losses = [log_loss_of(scores, codes, temperature * f) for f in (1, 0.98, 1.02)]
        assert losses[0] == min(losses)
    scores = [
        clone(model).fit(table[columns], y).decision_function(table[columns])
        for _, model, columns in branches(SVM)
    ]
    if how == "weighted":
        assert fused.weights_.sum() == pytest.approx(1) and (fused.weights_ >= 0).all()
        pooled = log_pool(scores, fused.temperatures_, fused.weights_)
    else:
        sure = [
            softmax(s / t, axis=1).max(axis=1, keepdims=True)
            for s, t in zip(scores, fused.temperatures_, strict=True)
        ]
        pooled = log_pool(scores, fused.temperatures_, sure)
    expected = softmax(pooled / fused.temperature_, axis=1)
    np.testing.assert_allclose(fused.predict_proba(table), expected, atol=1e-6)


BOTH = ("image", "text")


def test_weights_have_the_lowest_log_loss_of_a_fine_grid(pairs, groups):
    image, text, y = pairs
    table = feature_table(image=image, text=text)
    fused = LateFusion(branches(SVM), how="weighted", cv=3).fit(table, y, groups=groups)
    splits, codes = folds_of(y, groups), np.searchsorted(fused.classes_, y)
    oof = [out_of_fold(SVM, name, table, y, splits, "decision_function") for name in BOTH]

    def loss(weight, temperature):
        pooled = log_pool(oof, fused.temperatures_, [weight, 1 - weight])
        return log_loss_of(pooled, codes, temperature)

    grid = {(w, t): loss(w, t) for w in np.linspace(0, 1, 51) for t in np.geomspace(0.2, 2, 60)}
    best = min(grid, key=grid.get)
    assert loss(fused.weights_[0], fused.temperature_) <= grid[best] + 1e-9
    assert fused.weights_[0] == pytest.approx(best[0], abs=0.03)
    assert fused.temperature_ == pytest.approx(best[1], rel=0.05)


def test_weights_by_accuracy_are_right_as_often_as_any_on_the_grid(pairs, groups):
    image, text, y = pairs
    table = feature_table(image=image, text=text)
    fused = LateFusion(branches(SVM), how="weighted", scoring="accuracy", cv=3)
    fused.fit(table, y, groups=groups)
    splits, codes = folds_of(y, groups), np.searchsorted(fused.classes_, y)
    oof = [out_of_fold(SVM, name, table, y, splits, "decision_function") for name in BOTH]

    def accuracy(weight):
        pooled = log_pool(oof, fused.temperatures_, [weight, 1 - weight])
        return np.mean(pooled.argmax(axis=1) == codes)

    assert fused.weights_.sum() == pytest.approx(1)
    assert accuracy(fused.weights_[0]) == max(accuracy(w / 20) for w in range(21))


def test_noise_gets_no_weight(rng):
    y = rng.integers(0, 2, size=200)
    table = feature_table(
        image=rng.normal(size=(200, 3)), text=rng.normal(size=(200, 2)) + y[:, None]
    )
    fused = LateFusion(branches(LogisticRegression()), how="weighted").fit(table, y)
    assert fused.weights_[1] > 0.85


def test_temperature_undoes_the_certainty_of_a_branch_that_is_counted_twice(pairs):
    image, _, y = pairs
    table = feature_table(image=image, text=image)
    fused = LateFusion(branches(SVM), how="confidence").fit(table, y)
    # Two equal branches with weights max p: the pool's exponent is 2 max p, on average above 1.
    assert fused.temperature_ > 1.3
    alone = TemperatureScaling(branch("image", SVM)[1]).fit(table[["image"]], y)
    np.testing.assert_array_equal(fused.predict(table), alone.predict(table[["image"]]))


def test_groups_keep_copies_out_of_the_inner_training_part(rng):
    """Each row comes five times: memory looks perfect unless the copies stay together."""
    y = np.tile(rng.permutation(np.repeat([0, 1], 20)), 5)
    table = feature_table(image=np.tile(rng.normal(size=(40, 4)), (5, 1)))
    memory = [branch("image", KNeighborsClassifier(1))]
    torn = LateFusion(memory, how="confidence").fit(table, y)
    whole = LateFusion(memory, how="confidence").fit(table, y, groups=np.tile(np.arange(40), 5))
    assert torn.predict_proba(table).max(axis=1).mean() > 0.95
    assert whole.predict_proba(table).max(axis=1).mean() < 0.75


def test_groups_reach_the_classifiers_that_take_them(pairs, groups):
    image, text, y = pairs
    table = feature_table(image=image, text=text)
    model = TemperatureScaling(branch("image", SVM)[1], cv=3)
    fused = LateFusion([("image", model, ["image"])]).fit(table, y, groups=groups)
    expected = clone(model).fit(table[["image"]], y, groups=groups).temperature_
    assert fused.classifiers_["image"].temperature_ == expected
    assert clone(model).fit(table[["image"]], y).temperature_ != expected
    inside = LateFusion([("image", make_pipeline(FunctionTransformer(), model), ["image"])])
    inside.fit(table, y, groups=groups)
    assert inside.classifiers_["image"][-1].temperature_ == expected


def test_classes_that_a_branch_never_saw(pairs):
    image, text, y = pairs
    table = feature_table(image=image, text=text)
    table["text"] = [t if c != "pen" else None for t, c in zip(table["text"], y, strict=True)]
    for how in HOWS:
        fused = LateFusion(branches(LogisticRegression()), how=how, missing="mask").fit(table, y)
        assert np.isfinite(fused.predict_proba(table)).all()
        assert fused.score(table, y) > 0.75


@pytest.mark.parametrize("how", ["weighted", "stacking", "confidence"])
def test_learned_fusion_is_stored_whole(pairs, how, tmp_path):
    image, text, y = pairs
    table = with_missing(image, text)
    fused = LateFusion(branches(SVM), how=how, missing="mask", cv=3).fit(table, y)
    expected = fused.predict_proba(table)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fused)).predict_proba(table), expected)
    save_model(fused, tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path).predict_proba(table), expected)
    again = clone(fused).fit(table, y)
    np.testing.assert_array_equal(again.predict_proba(table), expected)


def test_encoders_of_tables_with_missing_texts_are_stored(tmp_path):
    X = pd.DataFrame({"text": ["red cup", None, "blue hat", "red hat"], "size": [1.0, 2, 3, 4]})
    parts = [("text", TfidfVectorizer(), "text"), ("size", "passthrough", ["size"])]
    fusion = Fusion(parts, missing="mask").fit(X)
    save_model(fusion, tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path).transform(X), fusion.transform(X))


def test_learned_fusion_names_what_is_wrong(pairs):
    image, text, y = pairs
    table = feature_table(image=image, text=text)
    parts = branches(SVM)
    with pytest.raises(ValueError, match='scoring must be .*; got "f1"'.replace('"f1"', "'f1'")):
        LateFusion(parts, how="weighted", scoring="f1").fit(table, y)
    with pytest.raises(
        ValueError, match="class 'mug' has 2 rows, fewer than the 5 folds.*lower cv"
    ):
        LateFusion(parts, how="stacking").fit(table, np.r_[["mug"] * 2, y[2:]])
    few = np.where(y == "cup", 0, np.arange(150))
    with pytest.raises(ValueError, match="class 'cup' has 1 group of rows, fewer than the 5"):
        LateFusion(parts, how="confidence").fit(table, y, groups=few)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[150, 150, 3\]"):
        LateFusion(parts, how="stacking").fit(table, y, groups=[1, 2, 3])
    with pytest.raises(ValueError, match="'image' .*NearestNeighbors.* predict_proba or decision_"):
        LateFusion([("image", NearestNeighbors(), ["image"])], how="stacking").fit(table, y)


# --- TemperatureScaling ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classifier", [OneVsRestClassifier(LinearSVC()), GaussianNB(), LogisticRegression()]
)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_temperature_scaling_equals_scikit_learns(pairs, groups, classifier, n_classes):
    if parse_version(sklearn.__version__) < parse_version("1.8"):
        pytest.skip("scikit-learn scales temperatures from 1.8 on")
    image, _, y = pairs
    y = y if n_classes == 3 else np.where(y == "cup", "cup", "other")
    splits = folds_of(y, groups)
    theirs = CalibratedClassifierCV(classifier, method="temperature", cv=splits, ensemble=False)
    ours = TemperatureScaling(classifier, cv=3)
    ours.fit(image, y, groups=groups), theirs.fit(image, y)
    np.testing.assert_allclose(ours.predict_proba(image), theirs.predict_proba(image), atol=1e-5)
    np.testing.assert_array_equal(ours.predict(image), ours.estimator_.predict(image))


def test_temperature_is_where_the_log_loss_is_lowest(rng):
    codes = rng.integers(0, 4, size=500)
    scores = 3 * rng.normal(size=(500, 4))
    scores[np.arange(500), codes] += 2
    temperature = fit_temperature(scores, codes)
    grid = np.geomspace(0.1, 100, 2001)
    best = grid[np.argmin([log_loss_of(scores, codes, t) for t in grid])]
    assert temperature == pytest.approx(best, rel=0.004)
    assert fit_temperature(scores * 10, codes) == pytest.approx(10 * temperature, rel=1e-4)


def test_scaling_calibrates_what_shouts(rng):
    y = rng.integers(0, 3, size=900)
    X = rng.normal(size=(900, 4)) + y[:, None]
    new_y, new = rng.permutation(y), None
    new = rng.normal(size=(900, 4)) + new_y[:, None]
    loud = SVC(C=100)
    scaled = TemperatureScaling(OneVsRestClassifier(loud)).fit(X, y)
    raw = softmax(20 * scaled.estimator_.decision_function(new), axis=1)
    error = calibration_error(new_y, scaled.predict_proba(new), labels=scaled.classes_)
    assert error < 0.1 < calibration_error(new_y, raw, labels=scaled.classes_)


def test_temperature_scaling_names_what_is_wrong(pairs):
    image, _, y = pairs
    with pytest.raises(ValueError, match="NearestNeighbors.* neither decision_function nor"):
        TemperatureScaling(NearestNeighbors()).fit(image, y)
    with pytest.raises(ValueError, match="class 'mug' has 2 rows, fewer than the 5 folds"):
        TemperatureScaling(SVC()).fit(image, np.r_[["mug"] * 2, y[2:]])
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 2 rows, first in row 1"):
        fit_temperature([[1, 2], [np.nan, 1]], [0, 1])
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[2, 3\]"):
        fit_temperature([[1, 2], [2, 1]], [0, 1, 1])


def test_temperature_scaling_takes_texts_and_any_splitter(pairs):
    _, _, y = pairs
    texts = [f"a {label}" for label in y]
    model = make_pipeline(TfidfVectorizer(), LinearSVC())
    scaled = TemperatureScaling(model, cv=KFold(3, shuffle=True, random_state=0)).fit(texts, y)
    assert scaled.score(texts, y) == 1
    assert scaled.predict_proba(texts).max(axis=1).min() > 0.99


EXPECTED_FAILURES = {
    "check_classifier_data_not_an_array": "columns are picked from a table or an array",
    "check_classifiers_train": "columns cannot be picked from a list of lists",
    "check_fit2d_predict1d": "the error says that there are no features",
    "check_fit1d": "columns are picked from a table first: the error is ColumnTransformer's",
    "check_dtype_object": "the error for non-numeric cells names the block instead",
    "check_estimators_empty_data_messages": "the error says that every block is empty",
    "check_estimator_sparse_array": "COO and DIA arrays have no columns to pick; CSR works",
    "check_estimator_sparse_matrix": "COO and DIA matrices have no columns to pick; CSR works",
    "check_estimators_pickle": "NaN is allowed in whole blocks only",
    "check_estimators_pickle(readonly_memmap=True)": "NaN is allowed in whole blocks only",
}


@parametrize_with_checks(
    [
        LateFusion([("one", LogisticRegression(), slice(None))], how="confidence", cv=2),
        LateFusion([("one", LogisticRegression(), slice(None))], how="stacking", cv=2),
        Fusion([("all", "passthrough", AllColumns())], missing="mask"),
        TemperatureScaling(LogisticRegression(), cv=2),
    ],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_estimators_follow_scikit_learn(estimator, check):
    check(estimator)
