"""The networks of :class:`cmlearn.generation.FeatureGAN`, in Keras alone, for any backend."""

import keras
from keras import ops

__all__ = ["Critic", "CriticTraining", "GeneratorTraining", "build_generator", "critic_forward"]

LEAK = 0.2  # slope of LeakyReLU below 0, as in Xian et al. (2018)


def critic_forward(features, kernels, biases):
    r"""Return the scores of a LeakyReLU network, and their gradients by its input.

    Parameters
    ----------
    features : tensor of shape (b, d)
        The network's input.
    kernels, biases : list of tensor
        Weights :math:`W_1, \dots, W_L` and :math:`b_1, \dots, b_L` of its layers, of which the
        last has one output.

    Returns
    -------
    scores : tensor of shape (b, 1)
        One number a row.
    gradients : tensor of shape (b, d)
        Derivative of each row's score by that row's input.

    Notes
    -----
    The gradient penalty needs the gradient of the critic by its *input* inside the loss, and each
    backend has a way of its own to ask for it. For this network none is needed, because the
    gradient can be written down. A layer computes :math:`h_l = s_l \odot (W_l^\top h_{l-1} + b_l)`
    where the slope :math:`s_l` is 1 for each positive sum and 0.2 for each other; the last layer
    has no slope. The chain rule then gives the product of the weights and slopes,

    .. math:: \nabla_{h_0} D = W_1 (s_1 \odot W_2 (s_2 \odot \dots W_L)).

    It is exact: the slopes are steps, whose own derivative is 0 wherever it exists. And it is made
    of ordinary tensor operations, so that Keras differentiates the penalty by the weights.
    """
    slopes = []
    for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
        features = ops.matmul(features, kernel) + bias
        slopes.append(ops.where(features > 0, 1.0, LEAK))
        features = features * slopes[-1]
    scores = ops.matmul(features, kernels[-1]) + biases[-1]
    gradients = ops.transpose(kernels[-1])
    for kernel, slope in zip(reversed(kernels[:-1]), reversed(slopes), strict=True):
        gradients = ops.matmul(gradients * slope, ops.transpose(kernel))
    return scores, gradients


class Critic(keras.layers.Layer):
    """Score how real a target looks beside its condition; higher is more real.

    Parameters
    ----------
    hidden_units : tuple of int
        Width of each hidden layer, at least one.
    """

    def __init__(self, hidden_units, **kwargs):
        super().__init__(**kwargs)
        widths = [*hidden_units, 1]
        self.layers = [keras.layers.Dense(units) for units in widths]

    def build(self, input_shape):
        """Create the weights for targets (b, d_target) and conditions (b, d_condition)."""
        width = sum(shape[-1] for shape in input_shape)
        for layer in self.layers:
            layer.build((None, width))
            width = layer.units

    def call(self, inputs):
        """Return the scores (b, 1) and their gradients by the target, (b, d_target)."""
        target, condition = inputs
        kernels = [layer.kernel for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        scores, gradients = critic_forward(ops.concatenate(inputs, axis=1), kernels, biases)
        return scores, gradients[:, : target.shape[1]]


def build_generator(target_width: int, condition_width: int, noise_width: int, hidden_units):
    """Return a network from noise (b, noise_width) and conditions to targets (b, target_width)."""
    noise = keras.Input((noise_width,), name="noise")
    condition = keras.Input((condition_width,), name="condition")
    hidden = keras.layers.Concatenate()([noise, condition])
    for units in hidden_units:
        hidden = keras.layers.LeakyReLU(LEAK)(keras.layers.Dense(units)(hidden))
    target = keras.layers.Dense(target_width)(hidden)
    return keras.Model({"noise": noise, "condition": condition}, target, name="generator")


class CriticTraining(keras.Model):
    r"""The critic's loss, as a model whose output is the loss of each row.

    Parameters
    ----------
    critic : Critic
        Is trained.
    gradient_penalty : float
        Weight :math:`\lambda` of the penalty.

    Notes
    -----
    .. math:: L_D = D(\tilde x, c) - D(x, c) + \lambda (\|\nabla_{\hat x} D(\hat x, c)\| - 1)^2

    for a real target x, a generated one :math:`\tilde x`, their condition c, and
    :math:`\hat x = \epsilon x + (1 - \epsilon) \tilde x` somewhere between the two.
    """

    def __init__(self, critic, gradient_penalty, **kwargs):
        super().__init__(**kwargs)
        self.critic = critic
        self.gradient_penalty = gradient_penalty

    def call(self, inputs):
        """Return the loss (b, 1) of targets real and generated, condition and mix (b, 1)."""
        real, generated, condition, mix = (
            inputs[name] for name in ("real", "generated", "condition", "mix")
        )
        real_scores, _ = self.critic([real, condition])
        generated_scores, _ = self.critic([generated, condition])
        between = mix * real + (1 - mix) * generated
        _, gradients = self.critic([between, condition])
        # The root's own derivative at 0 is infinite.
        lengths = ops.sqrt(ops.sum(ops.square(gradients), axis=1, keepdims=True) + 1e-12)
        penalty = ops.square(lengths - 1)
        return generated_scores - real_scores + self.gradient_penalty * penalty


class GeneratorTraining(keras.Model):
    r"""The generator's loss, as a model whose output is the loss of each row.

    Parameters
    ----------
    generator : keras.Model
        Is trained.
    critic : Critic
        Is not: a copy that is given the critic's weights before every step.

    Notes
    -----
    .. math:: L_G = -D(G(z, c), c)
    """

    def __init__(self, generator, critic, **kwargs):
        super().__init__(**kwargs)
        self.generator = generator
        self.critic = critic
        self.critic.trainable = False

    def call(self, inputs):
        """Return the loss (b, 1) of noise and condition."""
        scores, _ = self.critic([self.generator(inputs), inputs["condition"]])
        return -scores
