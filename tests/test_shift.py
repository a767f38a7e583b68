import numpy as np
import pytest
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.utils.estimator_checks import check_estimator

from cmlearn.shift import (
    MahalanobisDetector,
    NeighborDetector,
    corruption_errors,
    detection_report,
    energy_score,
    mean_corruption_error,
    mixup,
)


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


# ---------------------------------------------------------------- corruption errors


def test_corruption_error_by_hand():
    model = {"fog": [0.1, 0.2, 0.3], "snow": [0.2, 0.2, 0.5]}
    reference = {"snow": [0.8, 0.4, 0.4], "fog": [0.2, 0.4, 0.6]}
    found = corruption_errors(model, reference)
    assert found == pytest.approx({"fog": 0.5, "snow": 0.9 / 1.6})
    assert mean_corruption_error(model, reference) == pytest.approx((0.5 + 0.9 / 1.6) / 2)
    assert mean_corruption_error(model, model) == 1


@pytest.mark.parametrize(
    ("model", "reference", "says"),
    [
        ({}, {}, "at least one"),
        ({"fog": [0.1]}, {"snow": [0.1]}, "same corruptions"),
        ({"fog": [0.1, 0.2]}, {"fog": [0.1]}, r"\(2,\) and \(1,\)"),
        ({"fog": [40.0]}, {"fog": [0.5]}, "outside 0 to 1"),
        ({"fog": [np.nan]}, {"fog": [0.5]}, "outside 0 to 1"),
        ({"fog": [0.1]}, {"fog": [0.0]}, "no error under 'fog'"),
    ],
)
def test_errors_that_cannot_be_compared(model, reference, says):
    with pytest.raises(ValueError, match=says):
        mean_corruption_error(model, reference)


# ---------------------------------------------------------------- mixup


def test_mixed_rows_lie_between_two_rows(rng):
    X, y = rng.normal(size=(50, 3)), np.arange(50)
    mixed, labels, weight = mixup(X, y, alpha=0.5, random_state=1)
    assert np.array_equal(mixed[:50], mixed[50:])
    np.testing.assert_allclose(weight[:50] + weight[50:], 1)
    assert np.array_equal(labels[:50], y)
    assert sorted(labels[50:]) == list(range(50))
    assert np.mean(labels[:50] != labels[50:]) > 0.8  # hardly a row is mixed with itself
    wanted = weight[:50, None] * X[labels[:50]] + weight[50:, None] * X[labels[50:]]
    np.testing.assert_allclose(mixed[:50], wanted)
    assert np.array_equal(mixup(X, y, alpha=0.5, random_state=1)[0], mixed)


def test_weights_give_the_cross_entropy_of_mixed_labels(iris):
    X, y = iris
    mixed, labels, weight = mixup(X, y, random_state=0)
    model = LogisticRegression(max_iter=5000).fit(mixed, labels, sample_weight=weight)
    log_proba = model.predict_log_proba(mixed[: len(X)])
    soft = (
        weight[: len(X), None] * np.eye(3)[y] + weight[len(X) :, None] * np.eye(3)[labels[len(X) :]]
    )
    twice = -weight * model.predict_log_proba(mixed)[np.arange(2 * len(X)), labels]
    np.testing.assert_allclose(twice.sum(), -(soft * log_proba).sum())


def test_a_small_alpha_hardly_mixes(rng):
    _, _, weight = mixup(rng.normal(size=(2000, 1)), np.zeros(2000), alpha=0.01, random_state=0)
    assert np.mean(np.minimum(weight, 1 - weight) < 0.01) > 0.9
    _, _, weight = mixup(rng.normal(size=(2000, 1)), np.zeros(2000), alpha=1.0, random_state=0)
    assert np.var(weight) == pytest.approx(1 / 12, rel=0.1)  # uniform


@pytest.mark.parametrize("alpha", [0, -1, "a", np.inf, np.nan])
def test_alpha_must_be_above_zero(alpha):
    with pytest.raises(ValueError, match="alpha"):
        mixup([[0.0], [1.0]], [0, 1], alpha=alpha)


# ---------------------------------------------------------------- strange inputs


def test_energy_written_out(rng):
    scores = rng.normal(size=(20, 4))
    wanted = 2.5 * np.log(np.exp(scores / 2.5).sum(axis=1))
    np.testing.assert_allclose(energy_score(scores, temperature=2.5), wanted)
    assert np.isfinite(energy_score([[1e4, -1e4]])).all()
    with pytest.raises(ValueError, match="temperature"):
        energy_score(scores, temperature=0)


def test_mahalanobis_against_scipy(iris):
    X, y = iris
    detector = MahalanobisDetector(shrinkage=0).fit(X, y)
    means = [X[y == c].mean(axis=0) for c in range(3)]
    centred = np.vstack([X[y == c] - means[c] for c in range(3)])
    inverse = np.linalg.inv(np.cov(centred.T, bias=True))
    wanted = [-(min(mahalanobis(x, m, inverse) for m in means) ** 2) for x in X]
    np.testing.assert_allclose(detector.score_samples(X), wanted)


def test_full_shrinkage_is_the_plain_distance(iris):
    X, y = iris
    detector = MahalanobisDetector(shrinkage=1).fit(X, y)
    plain = -(cdist(X, detector.means_).min(axis=1) ** 2)
    assert np.corrcoef(detector.score_samples(X), plain)[0, 1] == pytest.approx(1)


def test_neighbours_against_all_distances(iris):
    X, _ = iris
    scaled = X / np.linalg.norm(X, axis=1, keepdims=True)
    wanted = -np.sort(cdist(scaled[100:], scaled[:100]), axis=1)[:, 2]
    np.testing.assert_allclose(
        NeighborDetector(3).fit(X[:100]).score_samples(X[100:]), wanted, atol=1e-7
    )


def test_far_rows_are_strange(iris):
    X, y = iris
    for detector in (MahalanobisDetector(), NeighborDetector()):
        detector.fit(X, y)
        strange = X[:, ::-1]
        assert (
            detection_report(detector.score_samples(X), detector.score_samples(strange))["auroc"]
            > 0.99
        )


@pytest.mark.parametrize("detector", [MahalanobisDetector(), NeighborDetector(1)])
def test_scikit_learn_conventions(detector):
    check_estimator(detector)


def test_detector_parameters(iris):
    X, y = iris
    with pytest.raises(ValueError, match="shrinkage"):
        MahalanobisDetector(2).fit(X, y)
    with pytest.raises(ValueError, match="n_neighbors=0"):
        NeighborDetector(0).fit(X)
    with pytest.raises(ValueError, match="number of rows, 150"):
        NeighborDetector(151).fit(X)
    with pytest.raises(ValueError, match="features"):
        NeighborDetector().fit(X).score_samples(X[:, :2])


def test_report_against_scikit_learn(rng):
    inside, outside = rng.normal(1, 1, 300), rng.normal(0, 1, 200)
    report = detection_report(inside, outside)
    # Strange rows are the ones to be found: the lower the score, the stranger.
    strange = np.repeat([0, 1], [300, 200])
    score = -np.append(inside, outside)
    assert report["auroc"] == pytest.approx(roc_auc_score(strange, score))
    false, found, _ = roc_curve(strange, score, drop_intermediate=False)
    assert report["false_alarms"] == pytest.approx(false[found >= 0.95].min())
    assert detection_report(inside, inside)["auroc"] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [[], [np.nan], [[1.0]]])
def test_report_of_nothing(bad):
    with pytest.raises(ValueError, match="outside must be"):
        detection_report([1.0], bad)
