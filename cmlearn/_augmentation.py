"""What the layers that distort images in training share."""

import keras


def compiled_on_jax(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return a layer that distorts images, allowed in a network that JAX compiles.

    Keras says of the layers that move pixels that they cannot be compiled, which is so for
    TensorFlow's XLA alone; one of them is enough for JAX to train the whole network uncompiled.
    """
    if keras.backend.backend() == "jax":
        layer.supports_jit = True
    return layer
