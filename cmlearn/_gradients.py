"""Gradients, which Keras leaves to its backend: TensorFlow, JAX and PyTorch in one place."""

from collections.abc import Callable

import numpy as np


def value_and_gradients(
    function: Callable, *arrays: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return ``function(*tensors)``, a scalar, and its gradient by each of the arrays.

    `function` is made of `keras.ops` and calls of Keras models; it gets float32 tensors of the
    shapes of `arrays` and returns a scalar tensor. For the gradient of every row of a batch at
    once, return the sum over the rows: no row's term depends on another row.
    """
    import keras

    tensors = [keras.ops.convert_to_tensor(np.asarray(array, np.float32)) for array in arrays]
    value, gradients = _BACKENDS[keras.backend.backend()](function, tensors)
    return keras.ops.convert_to_numpy(value), [
        keras.ops.convert_to_numpy(gradient) for gradient in gradients
    ]


def _tensorflow(function: Callable, tensors: list):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return value, tape.gradient(value, tensors, unconnected_gradients="zero")


def _jax(function: Callable, tensors: list):
    import jax

    return jax.value_and_grad(function, argnums=tuple(range(len(tensors))))(*tensors)


def _torch(function: Callable, tensors: list):
    import torch

    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    value = function(*tensors)
    gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    return value.detach(), [
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(tensors, gradients, strict=True)
    ]


_BACKENDS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
