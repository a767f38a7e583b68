"""Differentially private heads, their accounting, and the attack, against other references."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import comb, softmax
from scipy.stats import norm
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.utils.estimator_checks import check_estimator

from cmlearn import privacy
from cmlearn.privacy import (
    DPClassifier,
    clipped_gradient_sum,
    epsilon_spent,
    membership_advantage,
    membership_scores,
    noise_needed,
    renyi_divergence,
    tpr_at_fpr,
)
from cmlearn.reference import RUNS
from cmlearn.reference.privacy import ROOT, ask_accountant
from cmlearn.runtime import load_run

PLAN = {"steps": 150, "sampling_rate": 0.2}
OPEN = {"epsilon": math.inf, "clipping_norm": math.inf}


@pytest.fixture
def rows(rng):
    X, y = make_blobs(240, n_features=5, centers=3, cluster_std=3.0, random_state=0)
    return X / 5, np.array(["cat", "dog", "owl"])[y]


# --- Clipping ------------------------------------------------------------------------------------


def gradients(X, errors):
    """Return every row's gradient, written down: (n, k, d)."""
    return np.stack([np.outer(error, row) for row, error in zip(X, errors, strict=True)])


@pytest.mark.parametrize("clipping_norm", [0.01, 0.5, 3.0, math.inf])
def test_the_sum_is_that_of_gradients_clipped_one_by_one(rng, clipping_norm):
    X, errors = rng.normal(size=(40, 6)), rng.normal(size=(40, 4))
    expected = np.zeros((4, 6))
    for gradient in gradients(X, errors):
        expected += gradient * min(1, clipping_norm / np.linalg.norm(gradient))
    np.testing.assert_allclose(clipped_gradient_sum(X, errors, clipping_norm), expected, atol=1e-12)


def test_no_row_exceeds_the_clipping_norm(rng):
    X = rng.normal(size=(200, 6)) * np.logspace(-3, 3, 200)[:, None]
    errors = rng.normal(size=(200, 4))
    raw = np.linalg.norm(gradients(X, errors), axis=(1, 2))
    each = [
        np.linalg.norm(clipped_gradient_sum(X[i : i + 1], errors[i : i + 1], 0.7))
        for i in range(200)
    ]
    assert max(each) <= 0.7 * (1 + 1e-12)
    np.testing.assert_allclose(each, np.minimum(raw, 0.7))
    assert (raw > 0.7).any() and (raw < 0.7).any()


def test_a_row_without_a_gradient_counts_nothing():
    total = clipped_gradient_sum(np.zeros((1, 3)), np.ones((1, 2)), 1.0)
    np.testing.assert_array_equal(total, np.zeros((2, 3)))


@pytest.mark.parametrize("at", [0, 17])
def test_one_row_moves_a_step_by_at_most_the_clipping_norm(rows, at):
    X, y = rows
    labels = (y[:, None] == np.unique(y)).astype(float)
    errors = softmax(X @ np.ones((5, 3)), axis=1) - labels
    kept = np.arange(len(X)) != at
    moved = clipped_gradient_sum(X, errors, 0.05) - clipped_gradient_sum(
        X[kept], errors[kept], 0.05
    )
    assert np.linalg.norm(moved) <= 0.05 * (1 + 1e-9)


# --- Training ------------------------------------------------------------------------------------


def test_without_noise_and_clipping_it_is_ordinary_sgd(rows):
    X, y = rows
    model = DPClassifier(**OPEN, batch_size=60, epochs=5, learning_rate=0.7, random_state=3)
    model.fit(X, y)
    # The same batches, and the gradient of the mean cross-entropy written out row by row.
    random = np.random.RandomState(3)
    codes = np.unique(y, return_inverse=True)[1]
    weights, biases = np.zeros((3, 5)), np.zeros(3)
    for _ in range(20):
        drawn = np.flatnonzero(random.uniform(size=240) < 0.25)
        step, shift = np.zeros((3, 5)), np.zeros(3)
        for i in drawn:
            scores = np.exp(weights @ X[i] + biases)
            error = scores / scores.sum()
            error[codes[i]] -= 1
            step += np.outer(error, X[i])
            shift += error
        weights -= 0.7 * step / 60
        biases -= 0.7 * shift / 60
    assert model.n_steps_ == 20 and model.noise_multiplier_ == 0
    assert model.epsilon_ == math.inf
    np.testing.assert_allclose(model.coef_, weights, atol=1e-10)
    np.testing.assert_allclose(model.intercept_, biases, atol=1e-10)


def test_full_batches_without_noise_and_clipping_are_what_keras_does(rows):
    keras = pytest.importorskip("keras")
    X, y = rows
    model = DPClassifier(**OPEN, batch_size=240, epochs=12, learning_rate=0.5).fit(X, y)
    codes = np.unique(y, return_inverse=True)[1]
    network = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(3, "softmax", kernel_initializer="zeros")]
    )
    network.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    network.fit(X, codes, batch_size=240, epochs=12, verbose=0)
    kernel, bias = network.get_weights()
    np.testing.assert_allclose(model.coef_, kernel.T, atol=1e-5)
    np.testing.assert_allclose(model.intercept_, bias, atol=1e-5)


def test_the_noise_has_the_deviation_that_the_accounting_assumes(rows):
    # One step from zero with every row: weights = -rate * (sum of clipped gradients + noise) / n.
    X, y = rows
    settings = {"clipping_norm": 0.3, "batch_size": 240, "epochs": 1, "learning_rate": 1.0}
    still = DPClassifier(math.inf, **settings).fit(X, y)
    noise = []
    for seed in range(60):
        model = DPClassifier(1.0, **settings, random_state=seed).fit(X, y)
        noise += [model.coef_ - still.coef_, (model.intercept_ - still.intercept_)[:, None]]
    noise = np.concatenate([part.ravel() for part in noise]) * 240
    expected = model.noise_multiplier_ * 0.3
    assert noise.std() == pytest.approx(expected, rel=0.1)
    assert abs(noise.mean()) < 4 * expected / math.sqrt(len(noise))


def test_batches_are_drawn_row_by_row(rows, monkeypatch):
    X, y = rows
    sizes = []
    real = privacy.clipped_gradient_sum
    monkeypatch.setattr(
        privacy,
        "clipped_gradient_sum",
        lambda X, *rest: sizes.append(len(X)) or real(X, *rest),
    )
    DPClassifier(**OPEN, batch_size=48, epochs=80, random_state=0).fit(X, y)
    assert len(sizes) == 400
    assert np.mean(sizes) == pytest.approx(48, abs=1.5)
    assert np.var(sizes) == pytest.approx(240 * 0.2 * 0.8, rel=0.25)


def test_a_fit_spends_its_budget_and_not_more(rows):
    for epsilon in (0.5, 1.0, 8.0):
        model = DPClassifier(epsilon, delta=1e-6, epochs=10, batch_size=50, random_state=0)
        model.fit(*rows)
        again = epsilon_spent(
            steps=model.n_steps_,
            sampling_rate=model.sampling_rate_,
            noise_multiplier=model.noise_multiplier_,
            delta=1e-6,
        )
        assert model.epsilon_ == again <= epsilon
        assert model.epsilon_ == pytest.approx(epsilon, rel=2e-3)


def test_the_same_seed_gives_the_same_weights_and_none_gives_others(rows):
    model = DPClassifier(1.0, epochs=3, random_state=5)
    np.testing.assert_array_equal(model.fit(*rows).coef_, clone(model).fit(*rows).coef_)
    free = DPClassifier(1.0, epochs=3)
    assert not np.array_equal(free.fit(*rows).coef_, clone(free).fit(*rows).coef_)


def test_answers_are_consistent(rows):
    X, y = rows
    model = DPClassifier(**OPEN, random_state=0).fit(X, y)
    chances = model.predict_proba(X)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    np.testing.assert_allclose(chances, softmax(model.decision_function(X), axis=1))
    assert (model.predict(X) == model.classes_[chances.argmax(axis=1)]).all()
    two = y != "owl"
    binary = clone(model).fit(X[two], y[two])
    scores = binary.decision_function(X[two])
    assert scores.shape == (two.sum(),)
    assert ((scores > 0) == (binary.predict(X[two]) == "dog")).all()


def test_it_keeps_the_habits_of_scikit_learn():
    check_estimator(DPClassifier(**OPEN, epochs=50, batch_size=20, learning_rate=0.5))


# --- Accounting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3, 8, 20])
@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.2, 2.0), (0.5, 0.8), (1.0, 3.0)])
def test_the_divergence_is_the_integral_that_defines_it(order, rate, noise):
    # With the row the output is a mixture of N(0, s) and N(1, s), without it N(0, s).
    def ratio(z):
        without = norm.logpdf(z, 0, noise)
        with_row = np.logaddexp(
            norm.logpdf(z, 1, noise) + np.log(rate),
            without + (np.log1p(-rate) if rate < 1 else -np.inf),
        )
        return np.exp(order * with_row + (1 - order) * without)

    # The integrand peaks at `order`, where the exponent of the last term of the mixture does.
    integral, _ = quad(ratio, -20 * noise, order + 20 * noise, points=[0, order], limit=400)
    expected = np.log(integral) / (order - 1)
    ours = renyi_divergence(order, sampling_rate=rate, noise_multiplier=noise)
    assert ours == pytest.approx(expected, rel=1e-5)


def test_the_divergence_is_the_sum_computed_without_logarithms():
    order, rate, noise = 6, 0.1, 1.5
    total = sum(
        comb(order, k) * (1 - rate) ** (order - k) * rate**k * np.exp(k * (k - 1) / (2 * noise**2))
        for k in range(order + 1)
    )
    ours = renyi_divergence(order, sampling_rate=rate, noise_multiplier=noise)
    assert ours == pytest.approx(np.log(total) / (order - 1), rel=1e-12)


def test_high_orders_do_not_overflow():
    value = renyi_divergence(1024, sampling_rate=0.01, noise_multiplier=0.3)
    assert math.isfinite(value) and value > 1000
    almost = renyi_divergence(16, sampling_rate=1 - 1e-12, noise_multiplier=2.0)
    assert almost == pytest.approx(16 / 8, rel=1e-9)


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta():
    def cost(**changes):
        return epsilon_spent(**{"noise_multiplier": 2.0} | PLAN | changes)

    assert cost(steps=300) > cost() > cost(steps=75)
    assert cost(sampling_rate=0.4) > cost() > cost(sampling_rate=0.1)
    assert cost(noise_multiplier=1.0) > cost() > cost(noise_multiplier=4.0)
    assert cost(delta=1e-8) > cost() > cost(delta=1e-3)
    assert cost(noise_multiplier=0) == math.inf


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1, 8, 50])
def test_the_noise_is_the_least_that_keeps_the_budget(epsilon):
    noise = noise_needed(epsilon, **PLAN)
    assert epsilon_spent(noise_multiplier=noise, **PLAN) <= epsilon
    assert epsilon_spent(noise_multiplier=noise * 0.999, **PLAN) > epsilon
    assert noise_needed(math.inf, **PLAN) == 0


def mechanisms(plans):
    return [
        {"sampling_rate": rate, "steps": steps, "noise_multiplier": noise, "delta": 1e-5}
        for rate, steps, noise in plans
    ]


def test_googles_accountant_agrees():
    if not (ROOT / ".venv-privacy" / "bin" / "python").is_file():
        pytest.skip("no environment with dp-accounting here: `make privacy-check` builds it")
    cases = mechanisms([(0.2, 150, 5.4), (0.05, 400, 1.2), (1.0, 10, 6.8)])
    theirs = ask_accountant(
        [case | {"orders": privacy._ORDERS, "interval": 1e-3} for case in cases]
    )
    for case, other in zip(cases, theirs, strict=True):
        ours = epsilon_spent(**case)
        assert ours == pytest.approx(other["rdp_same_orders"], rel=1e-6)
        assert other["rdp"] * 0.999 <= ours <= 1.02 * other["rdp"]
        assert 0 < other["pld"] <= ours


def test_googles_stored_answers_agree():
    cases = load_run(RUNS / "privacy.json")["results"]["accountant"]
    assert len(cases) == 15
    for case in cases:
        plan = {
            name: case[name] for name in ("steps", "sampling_rate", "noise_multiplier", "delta")
        }
        ours = epsilon_spent(**plan)
        assert ours == pytest.approx(case["rdp_same_orders"], rel=1e-6)
        assert case["pld"] <= case["rdp"] * (1 + 1e-9)
        assert case["rdp"] * 0.999 <= ours <= 1.04 * case["rdp"]
        if case["sampling_rate"] != 0.01:
            assert ours <= 1.02 * case["rdp"]


# --- The attack ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd():
    """Rows with labels at random, which a model can only learn by heart."""
    random = np.random.default_rng(0)
    return random.normal(size=(120, 60)) / 8, random.integers(0, 2, 120)


@pytest.fixture(scope="module")
def attacked(crowd):
    memory = DPClassifier(**OPEN, batch_size=60, epochs=150, learning_rate=2.0)
    private = DPClassifier(0.5, batch_size=60, epochs=20, learning_rate=2.0)
    return {
        name: membership_scores(model, *crowd, n_models=16, random_state=1)
        for name, model in (("memory", memory), ("private", private))
    }


def test_a_model_that_learned_by_heart_is_found_out_and_a_private_one_is_not(attacked):
    assert membership_advantage(*attacked["memory"]) > 0.5
    assert tpr_at_fpr(*attacked["memory"], fpr=0.05) > 0.2
    assert membership_advantage(*attacked["private"]) < 0.12
    assert tpr_at_fpr(*attacked["private"], fpr=0.05) < 0.12


def test_each_row_is_in_half_of_the_models(attacked):
    scores, members = attacked["memory"]
    assert scores.shape == members.shape == (16, 120)
    assert (members.sum(axis=0) == 8).all()
    assert np.isfinite(scores).all()
    sizes = members.sum(axis=1)
    assert sizes.min() > 30 and sizes.max() < 90  # no model has all rows, or none
    assert len(np.unique(members, axis=1).T) > 60  # and rows do not go together


def test_the_score_is_the_likelihood_ratio_written_out(crowd, monkeypatch):
    X, y = crowd[0][:5], crowd[1][:5]
    logits = np.random.default_rng(3).normal(size=(8, 5))
    answers = iter(logits)
    monkeypatch.setattr(privacy, "_trained_logits", lambda *_: next(answers))
    scores, members = membership_scores(DPClassifier(), X, y, n_models=8, random_state=0)
    one = 2
    spread, mean = {}, {}
    for side in (True, False):
        sample = [
            [logits[m, i] for m in range(8) if m != one and members[m, i] == side] for i in range(5)
        ]
        mean[side] = [np.mean(values) for values in sample]
        residuals = [v - np.mean(values) for values in sample for v in values]
        spread[side] = math.sqrt(np.mean(np.square(residuals))) + 1e-6
    expected = [
        norm.logpdf(logits[one, i], mean[True][i], spread[True])
        - norm.logpdf(logits[one, i], mean[False][i], spread[False])
        for i in range(5)
    ]
    np.testing.assert_allclose(scores[one], expected)


def test_advantage_and_rate_against_all_thresholds(rng):
    scores, members = rng.normal(size=300).round(1), rng.uniform(size=300) < 0.4
    scores[members] += 0.6
    best, allowed = 0.0, 0.0
    for threshold in [*np.unique(scores), np.inf]:
        true = (scores[members] >= threshold).mean()
        false = (scores[~members] >= threshold).mean()
        best = max(best, true - false)
        allowed = max(allowed, true if false <= 0.05 else 0)
    assert membership_advantage(scores, members) == pytest.approx(best)
    assert tpr_at_fpr(scores, members, fpr=0.05) == pytest.approx(allowed)
    assert membership_advantage(np.zeros(300), members) == 0


# --- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "epsilon=0 must be above 0"),
        ({"epsilon": -1.0}, "epsilon=-1.0 must be above 0"),
        ({"epsilon": math.nan}, "epsilon=nan must be above 0"),
        ({"delta": 0}, "delta=0 must be above 0 and below 1"),
        ({"delta": 1}, "delta=1 must be above 0 and below 1"),
        ({"clipping_norm": 0}, "clipping_norm=0 must be above 0"),
        ({"clipping_norm": math.inf}, "needs a finite clipping_norm"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number"),
        ({"epochs": 1.5}, "epochs=1.5 must be a whole number"),
        ({"learning_rate": 0}, "learning_rate=0 must be above 0"),
        ({"epsilon": 1e-4}, "out of reach of this accounting"),
    ],
)
def test_bad_settings_are_refused(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        DPClassifier(**settings).fit(*rows)


def test_one_class_is_refused(rows):
    with pytest.raises(ValueError, match="one class only: 'cat'"):
        DPClassifier().fit(rows[0][:10], ["cat"] * 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0 must be above 0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan must be above 0"),
        ({"sampling_rate": 0}, "sampling_rate=0 must be above 0 and at most 1"),
        ({"sampling_rate": 1.1}, "sampling_rate=1.1 must be above 0 and at most 1"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"delta": 1.0}, "delta=1.0 must be above 0 and below 1"),
        ({"orders": [1]}, "order=1 must be a whole number of at least 2"),
    ],
)
def test_bad_mechanisms_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        epsilon_spent(**{"noise_multiplier": 1.0} | PLAN | arguments)
    if "sampling_rate" in arguments or "steps" in arguments or "delta" in arguments:
        with pytest.raises(ValueError, match=message):
            noise_needed(1.0, **PLAN | arguments)


def test_bad_attacks_are_refused(rows):
    for n_models in (6, 9, 8.0):
        with pytest.raises(ValueError, match="must be an even number of at least 8"):
            membership_scores(DPClassifier(), *rows, n_models=n_models)
    X, y = rows[0], rows[1].copy()
    y[0] = "yak"
    with pytest.raises(ValueError, match="so rare that half of the rows can miss it"):
        membership_scores(DPClassifier(**OPEN, epochs=1), X, y, n_models=8, random_state=0)
    for fpr in (0, 1):
        with pytest.raises(ValueError, match=f"fpr={fpr} must be above 0 and below 1"):
            tpr_at_fpr([0.1, 0.2], [True, False], fpr=fpr)
