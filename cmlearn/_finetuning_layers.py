"""The layers that only the training of `cmlearn.finetuning` needs."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="cmlearn")
class ResidualSum(keras.layers.Layer):
    """Add a residual to its shortcut; in training leave it out for whole images at random.

    Parameters
    ----------
    rate : float in [0, 1)
        Share of the images whose residual is left out; the others' are scaled up by 1 / (1 - rate).
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.drop = keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1))

    def call(self, inputs, training=False):
        residual, shortcut = inputs
        return self.drop(residual, training=training) + shortcut

    def get_config(self):
        return super().get_config() | {"rate": self.rate}


@keras.saving.register_keras_serializable(package="cmlearn")
class FamilyScores(keras.layers.Layer):
    """Turn scores of classes into scores of families: the logarithm of their sums of exponentials.

    Parameters
    ----------
    families : list of int
        Number of the family of each class, from 0.
    """

    def __init__(self, families: list[int], **kwargs):
        super().__init__(**kwargs)
        self.families = families

    def call(self, scores):
        members = [
            np.flatnonzero(np.equal(self.families, f)) for f in range(max(self.families) + 1)
        ]
        sums = [ops.logsumexp(ops.take(scores, rows, axis=-1), axis=-1) for rows in members]
        return ops.stack(sums, axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], max(self.families) + 1)

    def get_config(self):
        return super().get_config() | {"families": self.families}
