import numpy as np
import pytest
from scipy.optimize import approx_fprime

from cmlearn._gradients import value_and_gradients

keras = pytest.importorskip("keras")


def test_agrees_with_the_difference_quotient():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh")])
    x = np.random.default_rng(0).normal(size=3)

    def total(tensor):
        return keras.ops.sum(model(tensor) ** 2)

    value, (gradient,) = value_and_gradients(total, x[None])
    W, b = (np.asarray(w, float) for w in model.get_weights())
    exact = lambda x: np.sum(np.tanh(x @ W + b) ** 2)  # noqa: E731
    np.testing.assert_allclose(value, exact(x), rtol=1e-5)
    np.testing.assert_allclose(gradient[0], approx_fprime(x, exact), atol=1e-5)


def test_one_gradient_for_each_array_and_zero_for_one_that_is_not_used():
    _, gradients = value_and_gradients(
        lambda a, b: keras.ops.sum(3 * a), np.ones((2, 2)), np.ones(5)
    )
    np.testing.assert_array_equal(gradients[0], np.full((2, 2), 3.0))
    np.testing.assert_array_equal(gradients[1], np.zeros(5))
