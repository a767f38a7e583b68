import pickle

import numpy as np
import pandas as pd
import pytest
import skops.io
from conftest import AllColumns
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from cmlearn.fusion import Fusion, LateFusion
from cmlearn.persistence import TRUSTED_TYPES


@pytest.fixture
def table(rng):
    """120 rows of a 5-wide and a 3-wide block on very different scales."""
    image = rng.normal(size=(120, 5)) * [1, 10, 100, 1000, 0.001] + 7
    text = rng.normal(size=(120, 3)) * 0.01
    columns = [f"i{n}" for n in range(5)] + [f"t{n}" for n in range(3)]
    return pd.DataFrame(np.hstack([image, text]), columns=columns)


BLOCKS = [
    ("image", "passthrough", [f"i{n}" for n in range(5)]),
    ("text", "passthrough", [f"t{n}" for n in range(3)]),
]


def standardised(values):
    return (values - values.mean(axis=0)) / values.std(axis=0)


def balanced_blocks(table):
    """Return the two balanced blocks, written out."""
    image = standardised(table.iloc[:, :5].to_numpy()) / np.sqrt(5)
    text = standardised(table.iloc[:, 5:].to_numpy()) / np.sqrt(3)
    return image, text


def xor_features(n_rows=1000, n_image=12, n_text=8, seed=0):
    """Image and text features that hold one bit each, turned away from the axes, and noise."""
    rng = np.random.default_rng(seed)
    bits = rng.choice([-1.0, 1.0], size=(n_rows, 2))
    image, text = rng.normal(size=(n_rows, n_image)), rng.normal(size=(n_rows, n_text))
    image[:, 0], text[:, 0] = bits.T
    blocks = [x @ np.linalg.qr(rng.normal(size=(x.shape[1],) * 2))[0] for x in (image, text)]
    return np.hstack(blocks), (bits[:, 0] != bits[:, 1]).astype(int)


XOR_BLOCKS = [("image", "passthrough", slice(0, 12)), ("text", "passthrough", slice(12, 20))]


# --- Fusion: what it computes ---------------------------------------------------------------------


def test_concat_is_standardised_blocks_over_the_root_of_their_width(table):
    fused = Fusion(BLOCKS).fit_transform(table)
    np.testing.assert_allclose(fused, np.hstack(balanced_blocks(table)), atol=2e-6)
    assert fused.dtype == np.float32


def test_new_rows_are_scaled_with_the_numbers_of_the_training_rows(table):
    fusion = Fusion(BLOCKS).fit(table[:100])
    train, new = table[:100].to_numpy(), table[100:].to_numpy()
    expected = (new - train.mean(axis=0)) / train.std(axis=0) / np.sqrt([5] * 5 + [3] * 3)
    np.testing.assert_allclose(fusion.transform(table[100:]), expected, atol=5e-6)


def test_a_wide_block_does_not_drown_a_narrow_one(rng):
    X = rng.normal(size=(200, 1330))
    blocks = [("image", "passthrough", slice(0, 1280)), ("text", "passthrough", slice(1280, 1330))]
    fusion = Fusion(blocks)
    fused = fusion.fit_transform(X)
    squared = {
        name: np.sum((fused[:100, columns] - fused[100:, columns]) ** 2, axis=1).mean()
        for name, columns in fusion.blocks_.items()
    }
    # Two independent rows of mean square length 1 are sqrt(2) apart, whatever the width.
    assert squared["image"] == pytest.approx(2, rel=0.1)
    assert squared["text"] == pytest.approx(2, rel=0.1)


def test_constant_features_do_not_count_as_width(table):
    padded = table.assign(**{f"c{n}": 3.0 for n in range(20)})
    blocks = [("image", "passthrough", [*BLOCKS[0][2], *(f"c{n}" for n in range(20))]), BLOCKS[1]]
    fusion = Fusion(blocks)
    fused = fusion.fit_transform(padded)[:, fusion.blocks_["image"]]
    np.testing.assert_allclose(fused[:, :5], balanced_blocks(table)[0], atol=2e-6)
    assert (fused[:, 5:] == 0).all()


def test_a_block_that_never_varies_is_zero_not_nan(table):
    fusion = Fusion([("image", "passthrough", ["c"]), BLOCKS[1]])
    fused = fusion.fit_transform(table.assign(c=5.0))
    assert (fused[:, 0] == 0).all() and np.isfinite(fused).all()


def test_random_mean_is_a_random_projection_of_concat(table):
    fusion = Fusion(BLOCKS, how="mean", n_components=16, random_state=0)
    fused = fusion.fit_transform(table)
    matrix = np.hstack([fusion.projections_[name].components_ for name in ("image", "text")])
    expected = np.hstack(balanced_blocks(table)) @ matrix.T
    np.testing.assert_allclose(fused, expected / rms_length(expected), atol=1e-5)


def test_product_entries_are_products_of_one_projection_of_each_block(table):
    fusion = Fusion(BLOCKS, how="product", n_components=16, random_state=0)
    fused = fusion.fit_transform(table)
    image, text = balanced_blocks(table)
    image_part = image @ fusion.projections_["image"].components_.T
    text_part = text @ fusion.projections_["text"].components_.T
    expected = image_part * text_part
    np.testing.assert_allclose(fused, expected / rms_length(expected), atol=1e-5)


def rms_length(rows):
    return np.sqrt((rows**2).sum(axis=1).mean())


def test_product_sketches_the_outer_product(table):
    """Inner products of sketches estimate those of the flattened outer products."""
    sketch = Fusion(BLOCKS, how="product", n_components=20_000, random_state=0)
    image, text = balanced_blocks(table)
    outer = np.einsum("ni,nj->nij", image, text).reshape(len(table), -1)
    outer /= rms_length(outer)
    fused = sketch.fit_transform(table)
    assert np.corrcoef((fused @ fused.T).ravel(), (outer @ outer.T).ravel())[0, 1] > 0.98


def test_pca_projects_each_block_on_its_own_components(table):
    fused = Fusion(BLOCKS, how="mean", projection="pca", n_components=2).fit_transform(table)
    parts = [PCA(2).fit_transform(block) for block in balanced_blocks(table)]
    expected = np.mean(parts, axis=0)
    np.testing.assert_allclose(np.abs(fused), np.abs(expected) / rms_length(expected), atol=1e-3)


def test_blocks_of_equal_width_get_different_projections(rng):
    blocks = [("a", "passthrough", slice(0, 4)), ("b", "passthrough", slice(4, 8))]
    half = rng.normal(size=(50, 4))
    opposite = Fusion(blocks, how="mean", n_components=8, random_state=0)
    opposite.fit(np.hstack([half, -half]))
    a, b = (projection.components_ for projection in opposite.projections_.values())
    assert np.abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.5


@pytest.mark.parametrize("how", ["mean", "product"])
def test_fused_features_have_mean_square_length_one(table, how):
    fused = Fusion(BLOCKS, how=how, random_state=0).fit_transform(table)
    assert fused.shape == (120, 1024)
    assert rms_length(fused) == pytest.approx(1, abs=1e-4)


def test_default_width_of_pca_is_that_of_the_narrowest_block(table):
    assert Fusion(BLOCKS, how="mean", projection="pca").fit_transform(table).shape == (120, 3)
    assert Fusion(BLOCKS, how="mean", projection="pca").fit_transform(table[:2]).shape == (2, 2)


@pytest.mark.parametrize("how", ["concat", "mean", "product"])
def test_fit_transform_equals_fit_then_transform(table, how):
    both = Fusion(BLOCKS, how=how, random_state=0).fit_transform(table)
    apart = Fusion(BLOCKS, how=how, random_state=0).fit(table).transform(table)
    np.testing.assert_array_equal(both, apart)


def test_seed_decides_the_projection(table):
    fused = [
        Fusion(BLOCKS, how="product", random_state=seed).fit_transform(table) for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(fused[0], fused[1])
    assert not np.allclose(fused[0], fused[2])


@settings(deadline=None, max_examples=25)
@given(
    scale=st.floats(0.01, 100),
    shift=st.floats(-100, 100),
    how=st.sampled_from(["concat", "mean", "product"]),
)
def test_units_of_the_inputs_do_not_matter(scale, shift, how):
    X = np.random.default_rng(0).normal(size=(30, 6))
    changed = X.copy()
    changed[:, :2] = changed[:, :2] * scale + shift
    blocks = [("image", "passthrough", [0, 1]), ("text", "passthrough", [2, 3, 4, 5])]
    fusion = Fusion(blocks, how=how, n_components=5, random_state=0)
    np.testing.assert_allclose(
        fusion.fit_transform(X), clone(fusion).fit_transform(changed), atol=5e-3
    )


# --- Fusion: what it is for -----------------------------------------------------------------------


def linear_accuracy(how, projection="random"):
    X, y = xor_features()
    fusion = Fusion(XOR_BLOCKS, how=how, projection=projection, random_state=0)
    return cross_val_score(make_pipeline(fusion, LinearSVC()), X, y, cv=3).mean()


def test_xor_defeats_linear_fusions_and_yields_to_the_product():
    assert linear_accuracy("concat") < 0.75
    assert linear_accuracy("mean") < 0.75
    assert linear_accuracy("product") > 0.95


def test_random_projection_beats_pca_in_the_product():
    # PCA multiplies component k with component k alone, and the bits need not lie on the same.
    assert linear_accuracy("product", projection="pca") < 0.75


def test_balance_lets_the_rbf_kernel_hear_the_narrow_block(rng):
    y = rng.integers(0, 2, size=300)
    wide = rng.normal(size=(300, 600))
    narrow = rng.normal(size=(300, 4)) + 2 * y[:, None]
    X = np.hstack([wide, narrow])
    blocks = [("image", "passthrough", slice(0, 600)), ("text", "passthrough", slice(600, 604))]
    balanced = cross_val_score(make_pipeline(Fusion(blocks), SVC()), X, y, cv=3).mean()
    unbalanced = cross_val_score(make_pipeline(StandardScaler(), SVC()), X, y, cv=3).mean()
    assert balanced > 0.95
    assert unbalanced < balanced - 0.1


# --- Fusion: as a scikit-learn transformer --------------------------------------------------------


def test_nested_parameters_are_those_of_column_transformer(table):
    parts = [("image", PCA(2), BLOCKS[0][2]), ("text", "passthrough", BLOCKS[1][2])]
    theirs = ColumnTransformer(parts).get_params()
    ours = Fusion(parts).get_params()
    nested = {key for key in theirs if key.startswith(("image", "text"))}
    assert nested and nested <= ours.keys()
    fusion = Fusion(parts).set_params(image__n_components=3, text="drop")
    assert fusion.transformers[0][1].n_components == 3
    assert fusion.transformers[1][1:] == ("drop", BLOCKS[1][2])
    assert fusion.fit_transform(table).shape == (120, 3)


def test_set_params_replaces_the_whole_list(table):
    fusion = Fusion(BLOCKS[:1]).set_params(transformers=BLOCKS, how="mean")
    assert fusion.fit(table).blocks_ == {"image": slice(0, 5), "text": slice(5, 8)}


def test_grid_search_over_fusions_and_ablations():
    X, y = xor_features(400)
    pipeline = make_pipeline(Fusion(XOR_BLOCKS, n_components=512, random_state=0), LinearSVC())
    grid = [
        {"fusion__how": ["concat", "product"]},
        {"fusion__text": ["drop"]},
    ]
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_ == {"fusion__how": "product"}
    assert search.best_score_ > 0.9


def test_clone_keeps_parameters_and_forgets_the_fit(table):
    fusion = Fusion(BLOCKS, how="product", n_components=7, random_state=3).fit(table)
    twin = clone(fusion)
    assert not hasattr(twin, "scaler_")
    np.testing.assert_array_equal(twin.fit_transform(table), fusion.transform(table))


@pytest.mark.parametrize("how", ["concat", "mean", "product"])
def test_pickle_and_skops_give_the_same_features(table, how):
    fusion = Fusion(BLOCKS, how=how, n_components=6, random_state=0).fit(table)
    expected = fusion.transform(table)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fusion)).transform(table), expected)
    stored = skops.io.dumps(fusion)
    untrusted = skops.io.get_untrusted_types(data=stored)
    assert set(untrusted) <= TRUSTED_TYPES
    loaded = skops.io.loads(stored, trusted=untrusted)
    np.testing.assert_array_equal(loaded.transform(table), expected)


def test_feature_names(table):
    assert list(Fusion(BLOCKS).fit(table).get_feature_names_out())[4:6] == ["image__i4", "text__t0"]
    product = Fusion(BLOCKS, how="product", n_components=2).fit(table)
    assert list(product.get_feature_names_out()) == ["product0", "product1"]


def test_dataframe_output(table):
    frame = Fusion(BLOCKS).set_output(transform="pandas").fit_transform(table)
    assert list(frame.columns)[0] == "image__i0" and frame.index.equals(table.index)


def test_sparse_features_of_texts_are_fused(table):
    frame = table.assign(text=["red cup", "blue cup", "green hat"] * 40)
    fusion = Fusion([BLOCKS[0], ("text", TfidfVectorizer(), "text")])
    dense = standardised(TfidfVectorizer().fit_transform(frame["text"]).toarray()) / np.sqrt(5)
    fused = fusion.fit_transform(frame)
    np.testing.assert_allclose(fused[:, fusion.blocks_["text"]], dense, atol=2e-6)


def test_the_table_is_left_as_it_was(table):
    before = table.copy()
    Fusion(BLOCKS, how="product").fit_transform(table)
    pd.testing.assert_frame_equal(table, before)


# --- Fusion: bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"how": "sum"}, 'how must be "concat", "mean" or "product"; got \'sum\''),
        ({"how": "mean", "projection": "ica"}, "projection must be .* got 'ica'"),
        ({"how": "mean", "n_components": 0}, "n_components must be .* got 0"),
        ({"how": "mean", "n_components": 2.5}, "n_components must be .* got 2.5"),
        ({"transformers": []}, "transformers must be a list of"),
        ({"transformers": [("image", "passthrough")]}, "transformers must be a list of"),
        ({"transformers": BLOCKS + BLOCKS[:1]}, "not unique"),
        ({"transformers": [("image", "drop", ["i0"])]}, "every block is dropped or empty"),
        ({"transformers": [("how", "passthrough", ["i0"])]}, "conflict with constructor"),
        (
            {"how": "mean", "projection": "pca", "n_components": 4},
            "block 'text' at most 3 components.*not n_components=4",
        ),
    ],
)
def test_bad_parameters_are_named(table, parameters, message):
    with pytest.raises(ValueError, match=message):
        Fusion(**{"transformers": BLOCKS, **parameters}).fit(table)


def test_missing_values_name_block_and_row(table):
    table.loc[17, "t1"] = np.nan
    with pytest.raises(ValueError, match=r"block 'text' holds NaN .* in 1 of 120 rows.* row 17"):
        Fusion(BLOCKS).fit(table)


def test_texts_without_an_encoder_name_the_block(table):
    blocks = [BLOCKS[0], ("text", "passthrough", ["words"])]
    with pytest.raises(ValueError, match="block 'text' is not numeric.*GloVeEncoder"):
        Fusion(blocks).fit(table.assign(words="red cup"))


def test_missing_column_is_named(table):
    with pytest.raises(ValueError, match="t2"):
        Fusion(BLOCKS).fit(table).transform(table.drop(columns="t2"))


EXPECTED_FAILURES_OF_FUSION = {
    "check_dtype_object": "the error for non-numeric cells names the block instead",
    "check_fit1d": "columns are picked from a table first: the error is ColumnTransformer's",
    "check_fit2d_predict1d": "the error is ColumnTransformer's",
    "check_estimators_empty_data_messages": "the error says that every block is empty",
    "check_estimator_sparse_array": "COO and DIA arrays have no columns to pick; CSR works",
    "check_estimator_sparse_matrix": "COO and DIA matrices have no columns to pick; CSR works",
}


@parametrize_with_checks(
    [
        Fusion([("all", "passthrough", AllColumns())]),
        Fusion(
            [("all", "passthrough", AllColumns())], how="product", n_components=4, random_state=0
        ),
    ],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES_OF_FUSION,
)
def test_fusion_follows_scikit_learn(estimator, check):
    check(estimator)


# --- LateFusion -----------------------------------------------------------------------------------


@pytest.fixture
def labelled(table, rng):
    """The table and three string labels that each block knows something of."""
    y = rng.integers(0, 3, size=len(table))
    known = table.to_numpy().copy()
    known[:, 0] += y
    known[:, 5] += 0.02 * (y == 2)
    return pd.DataFrame(known, columns=table.columns), np.array(["cup", "hat", "pen"])[y]


CLASSIFIERS = [
    ("image", make_pipeline(StandardScaler(), LogisticRegression()), BLOCKS[0][2]),
    ("text", make_pipeline(StandardScaler(), LogisticRegression()), BLOCKS[1][2]),
]


def separate_probabilities(X, y):
    return [clone(c).fit(X[columns], y).predict_proba(X[columns]) for _, c, columns in CLASSIFIERS]


def test_mean_equals_soft_voting(labelled):
    X, y = labelled
    picked = [
        (name, make_pipeline(ColumnTransformer([(name, "passthrough", columns)]), classifier))
        for name, classifier, columns in CLASSIFIERS
    ]
    voting = VotingClassifier(picked, voting="soft").fit(X, y)
    fused = LateFusion(CLASSIFIERS).fit(X, y)
    np.testing.assert_allclose(fused.predict_proba(X), voting.predict_proba(X))
    np.testing.assert_array_equal(fused.predict(X), voting.predict(X))


def test_product_is_the_renormalised_product(labelled):
    X, y = labelled
    image, text = separate_probabilities(X, y)
    expected = image * text / (image * text).sum(axis=1, keepdims=True)
    fused = LateFusion(CLASSIFIERS, how="product").fit(X, y)
    np.testing.assert_allclose(fused.predict_proba(X), expected)
    np.testing.assert_array_equal(fused.predict(X), fused.classes_[expected.argmax(axis=1)])


def test_margin_is_the_mean_of_the_decision_functions(labelled):
    X, y = labelled
    machines = [(name, OneVsRestClassifier(SVC()), columns) for name, _, columns in CLASSIFIERS]
    margins = [clone(svm).fit(X[cols], y).decision_function(X[cols]) for _, svm, cols in machines]
    fused = LateFusion(machines, how="margin").fit(X, y)
    expected = np.mean(margins, axis=0).argmax(axis=1)
    np.testing.assert_array_equal(fused.predict(X), fused.classes_[expected])
    assert len(set(expected)) == 3
    assert not hasattr(fused, "predict_proba")


def test_margin_with_two_classes_has_the_sign_of_the_sum(labelled):
    X, y = labelled
    two = np.where(y == "cup", "cup", "other")
    parts = [(name, LinearSVC(), columns) for name, _, columns in CLASSIFIERS]
    margins = [LinearSVC().fit(X[cols], two).decision_function(X[cols]) for _, _, cols in parts]
    fused = LateFusion(parts, how="margin").fit(X, two)
    expected = np.where(np.sum(margins, axis=0) > 0, "other", "cup")
    np.testing.assert_array_equal(fused.predict(X), expected)


class Stub(ClassifierMixin, BaseEstimator):
    """Says the same probabilities of every row, and may know some of the classes only."""

    def __init__(self, probabilities=None, classes=None):
        self.probabilities = probabilities
        self.classes = classes

    def fit(self, X, y):
        self.classes_ = np.array(np.unique(y) if self.classes is None else self.classes)
        return self

    def predict_proba(self, X):
        return np.tile(self.probabilities, (len(X), 1))


def fuse_stubs(how, *stubs, labels=("a", "b", "c")):
    X = np.zeros((len(labels), len(stubs)))
    parts = [(f"s{n}", stub, [n]) for n, stub in enumerate(stubs)]
    return LateFusion(parts, how=how).fit(X, list(labels)).predict_proba(X)[0]


def test_class_that_one_classifier_never_saw_counts_as_zero_for_it():
    partial = Stub([0.4, 0.6], classes=["a", "c"])
    whole = Stub([0.2, 0.5, 0.3])
    np.testing.assert_allclose(fuse_stubs("mean", partial, whole), [0.3, 0.25, 0.45])
    product = np.array([0.4 * 0.2, 0, 0.6 * 0.3])
    np.testing.assert_allclose(
        fuse_stubs("product", partial, whole), product / product.sum(), atol=1e-12
    )


def test_product_of_vetoes_against_every_class_stays_a_distribution():
    fused = fuse_stubs("product", Stub([1.0, 0.0, 0.0]), Stub([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(fused, [0.5, 0.5, 0], atol=1e-6)


def test_product_of_many_small_probabilities_does_not_underflow():
    stubs = [Stub([1e-200, 3e-200, 1.0]), Stub([1e-200, 1e-200, 1e-300])]
    fused = fuse_stubs("product", *stubs)
    np.testing.assert_allclose(fused, np.array([1e-100, 3e-100, 1]) / 1, atol=1e-12)


@pytest.mark.parametrize("labels", [(3, 7, 11), (True, False, True), ("cup", "hat", "杯子")])
def test_labels_of_any_type_come_back_as_they_went_in(labels):
    X = np.array([[0.0, 0], [5, 5], [9, 9]])
    parts = [("a", LogisticRegression(C=1e3), [0]), ("b", LogisticRegression(C=1e3), [1])]
    fused = LateFusion(parts).fit(X, np.array(labels))
    assert set(fused.classes_) == set(labels)
    assert set(fused.predict(X)) <= set(labels)


def test_string_column_reaches_a_text_classifier(labelled):
    X, y = labelled
    X = X.assign(text=[f"a {label}" for label in y])
    text = ("words", make_pipeline(TfidfVectorizer(), LogisticRegression()), "text")
    assert LateFusion([CLASSIFIERS[0], text]).fit(X, y).score(X, y) > 0.9


def test_late_fusion_nests_clones_and_searches(labelled):
    X, y = labelled
    fused = LateFusion(CLASSIFIERS)
    parameter = "image__logisticregression__C"
    assert fused.get_params()[parameter] == 1.0
    search = GridSearchCV(fused, {parameter: [1e-6, 1.0], "how": ["mean", "product"]}, cv=2)
    search.fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert CLASSIFIERS[0][1].get_params()["logisticregression__C"] == 1.0


def test_late_fusion_survives_pickle_and_skops(labelled):
    X, y = labelled
    fused = LateFusion(CLASSIFIERS, how="product").fit(X, y)
    expected = fused.predict_proba(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fused)).predict_proba(X), expected)
    stored = skops.io.dumps(fused)
    untrusted = skops.io.get_untrusted_types(data=stored)
    assert untrusted == ["cmlearn.fusion.LateFusion"]
    np.testing.assert_array_equal(
        skops.io.loads(stored, trusted=untrusted).predict_proba(X), expected
    )


def test_late_fusion_names_what_is_wrong(labelled):
    X, y = labelled
    with pytest.raises(ValueError, match='how must be "mean", .* or "confidence"; got \'vote\''):
        LateFusion(CLASSIFIERS, how="vote").fit(X, y)
    with pytest.raises(ValueError, match="classifiers must be a list of"):
        LateFusion([]).fit(X, y)
    with pytest.raises(ValueError, match="'text' .* no decision_function"):
        parts = [CLASSIFIERS[0], ("text", GaussianNB(), BLOCKS[1][2])]
        LateFusion(parts, how="margin").fit(X, y)
    with pytest.raises(ValueError, match="'text' .*LinearSVC.* predict_proba"):
        LateFusion([CLASSIFIERS[0], ("text", LinearSVC(), BLOCKS[1][2])]).fit(X, y)


EXPECTED_FAILURES_OF_LATE_FUSION = {
    "check_classifier_data_not_an_array": "columns are picked from a table or an array",
    "check_classifiers_train": "columns cannot be picked from a list of lists",
    "check_fit2d_predict1d": "the error says that there are no features",
    "check_estimator_sparse_array": "COO and DIA arrays have no columns to pick; CSR works",
    "check_estimator_sparse_matrix": "COO and DIA matrices have no columns to pick; CSR works",
}


@parametrize_with_checks(
    [LateFusion([("one", LogisticRegression(), slice(None))], how="product")],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES_OF_LATE_FUSION,
)
def test_late_fusion_follows_scikit_learn(estimator, check):
    check(estimator)
