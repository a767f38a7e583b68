"""What the tests of layers and losses share: gradients of any backend and by finite differences."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest


def gradients(function, arrays, variables):
    """Return the gradients of a scalar ``function(*arrays)``, by the running backend."""
    tensors = [keras.ops.convert_to_tensor(x) for x in arrays]
    differentiate = {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}
    found = differentiate[keras.backend.backend()](function, tensors, variables)
    return [keras.ops.convert_to_numpy(gradient) for gradient in found]


def assert_gradients_are_differences(found, function, arrays, rng):
    """Compare with central differences of a scalar ``function(*arrays)``, in float64.

    Each array moves in three random directions, so that every one of its entries counts. An
    array's NaN stays NaN: there the function does not look and the gradient must be zero.
    """
    arrays = [np.array(x, np.float64) for x in arrays]
    assert len(found) == len(arrays)
    for i, gradient in enumerate(found):
        assert not np.any(gradient[np.isnan(arrays[i])])
        for _ in range(3):
            direction = rng.normal(size=arrays[i].shape)
            step = 1e-5 * direction
            above = function(*arrays[:i], arrays[i] + step, *arrays[i + 1 :])
            below = function(*arrays[:i], arrays[i] - step, *arrays[i + 1 :])
            expected = (above - below) / 2e-5
            assert np.sum(gradient * direction) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def other_backends():
    return sorted({"tensorflow", "jax", "torch"} - {keras.backend.backend()})


def run_under(backend, *files):
    """Run what these files compare with formulas once more under another backend of Keras."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    probe = subprocess.run(
        [sys.executable, "-c", f"import {backend}"], capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"{backend} cannot be imported: {probe.stderr.strip().splitlines()[-1]}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "-k", "equal and not another_backend", *map(str, files)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:]


def _by_tensorflow(function, tensors, variables):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    targets = [*tensors, *(variable.value for variable in variables)]
    return tape.gradient(value, targets, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _by_jax(function, tensors, variables):
    import jax

    def scalar(tensors, values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*tensors)

    values = [variable.value for variable in variables]
    of_tensors, of_values = jax.jit(jax.grad(scalar, argnums=(0, 1)))(tensors, values)
    return [*of_tensors, *of_values]


def _by_torch(function, tensors, variables):
    import torch

    tensors = [x.detach().requires_grad_() for x in tensors]
    targets = [*tensors, *(variable.value for variable in variables)]
    found = torch.autograd.grad(function(*tensors), targets, allow_unused=True)
    return [
        torch.zeros_like(target) if gradient is None else gradient
        for gradient, target in zip(found, targets, strict=True)
    ]
