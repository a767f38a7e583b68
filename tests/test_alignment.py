import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import skops.io
from scipy.linalg import eigh
from sklearn.base import clone
from sklearn.cross_decomposition import CCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from cmlearn.alignment import (
    ContrastiveAlignment,
    MismatchRobustClassifier,
    RegularizedCCA,
    ZeroShotClassifier,
    alignment_scores,
    hide_mismatched,
    match_ranks,
    median_rank,
    recall_at_k,
    retrieval_report,
)
from cmlearn.datasets import load_scenes
from cmlearn.fusion import Fusion, feature_table
from cmlearn.persistence import TRUSTED_TYPES


def pairs(n=200, noise=0.3, seed=0):
    """Return 5 image and 4 text features with three causes in common."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9)
    shared = rng.normal(size=(n, 3))
    image = shared @ mixing.normal(size=(3, 5)) + noise * rng.normal(size=(n, 5))
    text = shared @ mixing.normal(size=(3, 4)) + noise * rng.normal(size=(n, 4))
    return image + 7, 100 * text


def small(**parameters):
    defaults = {"n_components": 4, "hidden_units": (16,), "dropout": 0.0, "random_state": 0}
    defaults |= {"batch_size": 64, "epochs": 30, "learning_rate": 0.01}
    return ContrastiveAlignment(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def contrastive():
    return small().fit(*pairs())


# --- Canonical correlations -----------------------------------------------------------------------


def test_without_a_ridge_it_is_scikit_learns_cca():
    image, text = pairs()
    ours = RegularizedCCA(3, regularization=0).fit(image, text)
    theirs = CCA(3, max_iter=10_000, tol=1e-12).fit(image, text)
    of_image, of_text = theirs.transform(image, text)
    for k in range(3):
        for mine, other in [
            (ours.transform_image(image), of_image),
            (ours.transform_text(text), of_text),
        ]:
            assert abs(np.corrcoef(mine[:, k], other[:, k])[0, 1]) == pytest.approx(1, abs=1e-6)
        correlation = np.corrcoef(of_image[:, k], of_text[:, k])[0, 1]
        assert ours.correlations_[k] == pytest.approx(correlation, abs=1e-6)


@pytest.mark.parametrize("regularization", [0.0, 0.5])
def test_correlations_are_the_generalised_eigenvalues(regularization):
    image, text = pairs()
    cca = RegularizedCCA(4, regularization=regularization).fit(image, text)
    joint = np.cov(np.hstack([image, text]).T)
    across, within = np.zeros((9, 9)), np.zeros((9, 9))
    across[:5, 5:], across[5:, :5] = joint[:5, 5:], joint[5:, :5]
    for block in (slice(0, 5), slice(5, 9)):
        covariance = joint[block, block]
        ridge = regularization * np.trace(covariance) / len(covariance)
        within[block, block] = covariance + ridge * np.eye(len(covariance))
    values, vectors = eigh(across, within)
    np.testing.assert_allclose(cca.correlations_, values[::-1][:4], atol=1e-10)
    for k in range(4):
        directions = np.concatenate([cca.image_weights_[:, k], cca.text_weights_[:, k]])
        expected = vectors[:, -1 - k]
        assert abs(cosine_similarity([directions], [expected])[0, 0]) == pytest.approx(1)


def test_variates_are_uncorrelated_and_of_unit_variance():
    image, text = pairs()
    cca = RegularizedCCA(regularization=0).fit(image, text)
    variates = np.hstack([cca.transform_image(image), cca.transform_text(text)])
    expected = np.eye(8)
    expected[:4, 4:] = expected[4:, :4] = np.diag(cca.correlations_)
    np.testing.assert_allclose(np.cov(variates.T), expected, atol=1e-10)


def test_similarity_weighs_the_variates_by_their_correlations():
    image, text = pairs()
    cca = RegularizedCCA().fit(image, text)
    u = cca.transform_image(image[:5]) * cca.correlations_
    v = cca.transform_text(text[:7]) * cca.correlations_
    cosines = u @ v.T / np.outer(np.linalg.norm(u, axis=1), np.linalg.norm(v, axis=1))
    np.testing.assert_allclose(cca.similarity(image[:5], text[:7]), cosines)


def test_scale_of_the_features_does_not_matter():
    image, text = pairs()
    one = RegularizedCCA().fit(image, text).similarity(image, text)
    other = RegularizedCCA().fit(image * 1000, text / 50)
    np.testing.assert_allclose(other.similarity(image * 1000, text / 50), one)


@pytest.mark.parametrize("alignment", [RegularizedCCA(7), RegularizedCCA(0), RegularizedCCA(1.5)])
def test_more_components_than_pairs_or_features_allow(alignment):
    image, text = pairs(4)
    with pytest.raises(ValueError, match="n_components must be .* from 1 to 3 for 4 pairs of 5 im"):
        alignment.fit(image, text)


def test_a_singular_covariance_asks_for_a_ridge():
    image, text = pairs()
    image[:, 1] = 2 * image[:, 0]
    with pytest.raises(ValueError, match="image features cannot be inverted.*regularization above"):
        RegularizedCCA(regularization=0).fit(image, text)
    RegularizedCCA().fit(image, text)
    with pytest.raises(ValueError, match="regularization must be at least 0; got -1"):
        RegularizedCCA(regularization=-1).fit(image, text)


# --- Contrast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_new_pairs_find_each_other(loss, contrastive):
    alignment = contrastive if loss == "infonce" else small(loss=loss).fit(*pairs())
    report = retrieval_report(alignment.similarity(*pairs(100, seed=1)), ks=(10,))
    assert (report["recall@10"] > 0.6).all()  # by chance 0.1
    assert min(alignment.history_["val_loss"]) < alignment.history_["val_loss"][0]


def test_projections_are_the_network_written_out(contrastive):
    image, text = pairs(20, seed=1)
    for features, scaler, weights, transform in [
        (image, contrastive.image_scaler_, contrastive.weights_[:3], contrastive.transform_image),
        (text, contrastive.text_scaler_, contrastive.weights_[3:6], contrastive.transform_text),
    ]:
        hidden_kernel, hidden_bias, projection = weights
        scaled = (features - scaler.mean_) / scaler.scale_
        projected = np.maximum(scaled @ hidden_kernel + hidden_bias, 0) @ projection
        expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
        np.testing.assert_allclose(transform(features), expected, atol=1e-5)


def test_best_epoch_is_kept_and_its_loss_is_that_of_the_held_out_pairs(contrastive):
    image, text = pairs()
    held_out = np.random.RandomState(0).permutation(200)[:30]
    logits = contrastive.similarity(image[held_out], text[held_out]) / contrastive.temperature_
    own = np.diag(logits)
    to_text = np.log(np.exp(logits).sum(axis=1)) - own
    to_image = np.log(np.exp(logits).sum(axis=0)) - own
    assert (to_text + to_image).mean() / 2 == pytest.approx(
        min(contrastive.history_["val_loss"]), abs=1e-4
    )
    assert contrastive.best_epoch_ == np.argmin(contrastive.history_["val_loss"])


def test_equal_texts_are_no_contrast():
    from cmlearn.alignment import _contrast

    similarity = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    loss = _contrast("siglip")(np.array([[4], [4], [1]]), similarity)
    signs = np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    expected = np.log1p(np.exp(-signs * similarity)).sum(axis=1)
    np.testing.assert_allclose(np.asarray(loss), expected, atol=1e-5)


def test_held_out_pairs_are_no_part_of_the_standardisation():
    image, text = pairs()
    model = small(epochs=1, random_state=0).fit(image, text)
    train, validation = model._split(len(image), np.random.RandomState(0))
    assert len(validation) == 30
    for scaler, features in ((model.image_scaler_, image), (model.text_scaler_, text)):
        np.testing.assert_allclose(scaler.mean_, features[train].mean(axis=0))
        assert not np.allclose(scaler.mean_, features.mean(axis=0))


def test_seed_decides_everything_and_the_global_state_nothing(contrastive):
    import keras

    image, text = pairs()
    expected = small(epochs=2).fit(image, text).transform_image(image)
    keras.utils.set_random_seed(5)
    again = small(epochs=2).fit(image, text).transform_image(image)
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("kind", ["contrastive", "cca", "zero-shot"])
def test_pickle_and_skops_keep_what_was_learned(kind, contrastive):
    image, text = pairs()
    model = contrastive if kind == "contrastive" else RegularizedCCA().fit(image, text)
    if kind == "zero-shot":
        model = ZeroShotClassifier(model).fit(text[:2], ["cup", "hat"])
    answer = "decision_function" if kind == "zero-shot" else "transform_image"
    stored = skops.io.dumps(model)
    assert set(skops.io.get_untrusted_types(data=stored)) <= TRUSTED_TYPES
    for loaded in (
        pickle.loads(pickle.dumps(model)),
        skops.io.loads(stored, trusted=sorted(TRUSTED_TYPES)),
    ):
        np.testing.assert_array_equal(getattr(loaded, answer)(image), getattr(model, answer)(image))
    assert b"keras" not in pickle.dumps([type(v).__module__ for v in vars(clone(model)).values()])


ON_JAX = """
import numpy as np, pickle, keras
from test_alignment import pairs, small
image, text = pairs()
model = small(epochs=15).fit(image, text)
assert keras.backend.backend() == "jax"
first = model.similarity(image, text)
assert np.median((first >= np.diag(first)[:, None]).sum(axis=1)) < 20
assert np.array_equal(pickle.loads(pickle.dumps(model)).similarity(image, text), first)
assert np.array_equal(small(epochs=15).fit(image, text).similarity(image, text), first)
"""


def test_other_backend(root):
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests")])
    command = [sys.executable, "-c", ON_JAX]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_importing_the_module_does_not_load_keras():
    command = "import sys, cmlearn.alignment; assert not {'keras', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "triplet"}, 'loss must be "infonce" or "siglip"; got \'triplet\''),
        ({"n_components": 0}, "n_components must be a whole number ≥ 1; got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1; got 1.0"),
        ({"epochs": 0}, "epochs must be .* at least 1; got 0"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        small(**parameters).fit(*pairs())


@pytest.mark.parametrize("alignment", [RegularizedCCA(), small()])
def test_bad_pairs_are_named(alignment):
    image, text = pairs()
    with pytest.raises(ValueError, match="there are 200 images and 199 texts"):
        alignment.fit(image, text[:-1])
    with pytest.raises(ValueError, match="at least two; got one"):
        alignment.fit(image[:1], text[:1])
    text[3, 1] = np.nan
    with pytest.raises(ValueError, match="text features hold NaN .* 1 of 200 rows, first in row 3"):
        alignment.fit(image, text)


def test_too_few_pairs_to_hold_some_out():
    with pytest.raises(ValueError, match="3 pairs are too few.*validation_fraction=0"):
        small().fit(*pairs(3))


def test_other_width_than_in_training(contrastive):
    image, text = pairs()
    for alignment in (contrastive, RegularizedCCA().fit(image, text)):
        with pytest.raises(ValueError, match="image features are 4 wide; in training they were 5"):
            alignment.transform_image(text)


# --- Retrieval ------------------------------------------------------------------------------------


def test_ranks_are_those_of_sorting(rng):
    similarity = rng.normal(size=(30, 30))
    for row, rank in enumerate(match_ranks(similarity)):
        assert list(np.argsort(-similarity[row])).index(row) + 1 == rank


def test_recall_and_median_rank_are_those_of_counting(rng):
    similarity = rng.normal(size=(31, 31))
    ranks = [1 + sum(other > row[i] for other in row) for i, row in enumerate(similarity)]
    assert recall_at_k(similarity, 5) == sum(rank <= 5 for rank in ranks) / 31
    assert median_rank(similarity) == sorted(ranks)[15]
    report = retrieval_report(similarity, ks=(1, 5))
    assert report.loc["text to image", "recall@5"] == recall_at_k(similarity.T, 5)
    assert report.loc["image to text", "median rank"] == median_rank(similarity)
    assert list(report.columns) == ["recall@1", "recall@5", "median rank"]


def test_ties_are_places_lost():
    assert match_ranks(np.zeros((4, 4))).tolist() == [4, 4, 4, 4]
    assert recall_at_k(np.zeros((4, 4)), 3) == 0


def test_bad_retrieval_is_named():
    with pytest.raises(ValueError, match=r"query i .* candidate i; got .* \(2, 3\)"):
        match_ranks(np.zeros((2, 3)))
    for k in (0, 4, 1.5):
        with pytest.raises(ValueError, match=f"k must be a whole number from 1 to 3 .*got {k}"):
            recall_at_k(np.eye(3), k)
    with pytest.raises(ValueError, match="similarity contains NaN"):
        match_ranks([[np.nan, 1], [1, 1]])


# --- Zero-shot ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    """Pictures of 8 kinds, of which the last two are not for training, and encoded captions."""
    scenes = load_scenes(400, redundant=3, image_size=16, random_state=0)
    words = CountVectorizer().fit(scenes.data["text"])
    image = np.stack([np.asarray(scene).ravel() for scene in scenes.data["image"]]) / 255
    return image, words.transform(scenes.data["text"]).toarray() * 1.0, scenes.target, words


def test_classes_never_seen_are_named_from_their_captions(scenes):
    image, text, target, words = scenes
    seen = target < 6
    captions = ["a small blue square", "a large blue square"]
    alignment = RegularizedCCA().fit(image[seen], text[seen])
    model = ZeroShotClassifier(alignment).fit(words.transform(captions).toarray(), [6, 7])
    assert model.score(image[~seen], target[~seen]) > 0.9
    assert not hasattr(model, "predict_proba")


def test_fits_of_a_class_are_averaged_over_its_descriptions(contrastive):
    image, text = pairs()
    model = ZeroShotClassifier(contrastive).fit(text[:3], ["b", "a", "b"])
    cosines = contrastive.similarity(image, text[:3])
    expected = np.column_stack([cosines[:, 1], (cosines[:, 0] + cosines[:, 2]) / 2])
    np.testing.assert_allclose(model.decision_function(image), expected, atol=1e-6)
    odds = np.exp(expected / contrastive.temperature_)
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(image), probabilities, atol=1e-4)
    assert list(model.predict(image)) == list(np.array(["a", "b"])[expected.argmax(axis=1)])


def test_bad_zero_shot_is_named(contrastive):
    _, text = pairs()
    with pytest.raises(ValueError, match="at least two classes, but y holds one only: 'cup'"):
        ZeroShotClassifier(contrastive).fit(text[:2], ["cup", "cup"])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ZeroShotClassifier(contrastive).fit(text[:2], ["cup"])
    with pytest.raises(ValueError, match="not fitted yet"):
        ZeroShotClassifier(RegularizedCCA()).fit(text[:2], ["cup", "hat"])


# --- Mismatched pairs -----------------------------------------------------------------------------


def test_mismatched_pairs_have_low_scores():
    image, text = pairs()
    wrong = np.arange(200) < 40
    text[wrong] = np.roll(text[wrong], 1, axis=0)
    scores = alignment_scores(RegularizedCCA(3), image, text)
    assert roc_auc_score(wrong, -scores) > 0.9
    np.testing.assert_array_equal(alignment_scores(RegularizedCCA(3), image, text), scores)


def test_a_pair_does_not_vouch_for_itself(rng):
    """Pure noise: an alignment that has seen the pairs takes them for fitting, out of fold not."""
    image, text = rng.normal(size=(60, 40)), rng.normal(size=(60, 40))
    groups = np.arange(60) // 2
    alignment = RegularizedCCA(regularization=0.01)
    others = np.roll(text, 1, axis=0)
    seen = np.diag(alignment.fit(image, text).similarity(image, text)).mean()
    assert seen > 0.9
    out_of_fold = alignment_scores(alignment, image, text, groups=groups)
    shifted = alignment_scores(alignment, image, others, groups=groups)
    assert abs(out_of_fold.mean() - shifted.mean()) < 0.3


def test_the_worst_texts_of_each_class_are_hidden():
    table = feature_table(image=np.ones((10, 2)), text=np.ones((10, 3)))
    y = np.array(["a"] * 5 + ["b"] * 5)
    scores = np.array([5, 4, 3, 2, 1, -1, -2, -3, -4, -5])
    hidden = hide_mismatched(table, y, scores, rate=0.8)
    assert np.flatnonzero(hidden["text"].isna()).tolist() == [3, 4, 8, 9]  # 5 * 0.8 * (1 - 1/2)
    assert hidden["image"].notna().all() and table["text"].notna().all()
    with pytest.raises(ValueError, match="rate must be at least 0 and below 1; got 1"):
        hide_mismatched(table, y, scores, rate=1)


def noisy_scenes(seed, rate):
    scenes = load_scenes(
        400, unique_text=2, image_noise=0.3, mismatch_rate=rate, image_size=16, random_state=seed
    )
    words = CountVectorizer(vocabulary=sorted(set(" ".join(scenes.data["text"]).split())))
    image = np.stack([np.asarray(scene)[::2, ::2].ravel() for scene in scenes.data["image"]])
    text = words.transform(scenes.data["text"]).toarray() * 1.0
    return feature_table(image=image / 255, text=text), scenes.target, scenes.mismatched


def test_training_withstands_mismatched_texts():
    table, y, mismatched = noisy_scenes(seed=1, rate=0.4)
    clean, y_clean, _ = noisy_scenes(seed=2, rate=0.0)
    fusion = Fusion([(name, "passthrough", name) for name in ("image", "text")], missing="mask")
    naive = make_pipeline(fusion, LogisticRegression(C=10, max_iter=1000))
    robust = MismatchRobustClassifier(naive, 0.4).fit(table, y)
    assert roc_auc_score(mismatched, -robust.text_scores_) > 0.9
    assert mismatched[robust.hidden_].mean() > 0.9
    gain = robust.score(clean, y_clean) - naive.fit(table, y).score(clean, y_clean)
    assert gain > 0.05
    best = robust.predict_proba(clean).argmax(axis=1)
    np.testing.assert_array_equal(robust.classes_[best], robust.predict(clean))


def test_texts_are_judged_by_classifiers_that_have_not_seen_their_relatives():
    """Twice the same rows: alone each text has its twin in training, in groups it has not."""
    table, y, _ = noisy_scenes(seed=1, rate=0.4)
    table, y = table.iloc[:60], y[:60]
    twice, labels = pd.concat([table, table], ignore_index=True), np.tile(y, 2)
    image = make_pipeline(Fusion([("image", "passthrough", "image")]), LogisticRegression())
    model = MismatchRobustClassifier(image, 0.4, text_classifier=KNeighborsClassifier(1), cv=3)
    alone = model.fit(twice, labels).text_scores_
    groups = np.tile(np.arange(60), 2)
    together = model.fit(twice, labels, groups=groups).text_scores_
    assert together.mean() < alone.mean() - 0.05


def test_without_mismatch_nothing_is_hidden():
    table, y, _ = noisy_scenes(seed=1, rate=0.0)
    table.loc[3, "text"] = None
    fusion = Fusion([("image", "passthrough", "image")])
    robust = MismatchRobustClassifier(make_pipeline(fusion, LogisticRegression()), 0.0)
    robust.fit(table, y)
    assert not robust.hidden_.any() and robust.text_scores_[3] == 0
    assert not hasattr(MismatchRobustClassifier(fusion), "predict_proba")


def test_bad_tables_are_named():
    sequences = feature_table(image=np.ones((4, 2)), text=np.ones((4, 3, 5)))
    model = MismatchRobustClassifier(LogisticRegression(), cv=2)
    with pytest.raises(ValueError, match="texts are sequences.*average their words"):
        model.fit(sequences, ["a", "b"] * 2)
    table = feature_table(image=np.ones((4, 2)), text=[None] * 4)
    with pytest.raises(ValueError, match="'text' is missing in all of the 4 rows"):
        model.fit(table, ["a", "b"] * 2)
    table = feature_table(image=np.ones((4, 2)), text=np.ones((4, 2)))
    with pytest.raises(ValueError, match="class 'b' has 1 row, fewer than the 2 folds"):
        model.fit(table, ["a", "a", "a", "b"])
