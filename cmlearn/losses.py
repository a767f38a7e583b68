"""Losses that bring matching images and texts together, for TensorFlow, JAX and PyTorch.

Both take a batch's similarities as ``y_pred`` (b, b), an image a row and a text a column, and as
``y_true`` (b, b) which of them match: the identity where each image has one text. A value a row
comes out before the reduction, so that ``sample_weight`` (b,) can turn doubtful pairs down.
Give each batch its own ``np.eye(b)`` (from a ``keras.utils.PyDataset``): rows cut out of one large
identity have their ones in other columns than the batch's texts.
:class:`cmlearn.layers.ScaledSimilarity` makes such similarities, with a learned temperature.
"""

import keras
from keras import ops

__all__ = ["InfoNCE", "SigLIP"]


@keras.saving.register_keras_serializable(package="cmlearn")
class InfoNCE(keras.losses.Loss):
    r"""Symmetric contrastive loss: find each image's text in the batch, and each text's image.

    Parameters
    ----------
    temperature : float
        Divides the similarities. 1 for logits that are scaled already, as those of
        `ScaledSimilarity`; 0.07 is usual for plain cosine similarities.
    reduction, name, dtype
        As every Keras loss takes them.

    Raises
    ------
    ValueError
        If ``temperature`` is not above 0, or ``y_true`` and ``y_pred`` are not (b, b) both.

    Notes
    -----
    With similarities :math:`s_{ij}`, matches :math:`y_{ij}` and temperature :math:`\tau`, the
    value of row i is

    .. math::

        -\tfrac12 \sum_j \Big(
            \frac{y_{ij}}{\sum_k y_{ik}} \log \frac{e^{s_{ij}/\tau}}{\sum_k e^{s_{ik}/\tau}} +
            \frac{y_{ji}}{\sum_k y_{ki}} \log \frac{e^{s_{ji}/\tau}}{\sum_k e^{s_{ki}/\tau}}
        \Big),

    in nats: InfoNCE [1]_ in both directions, as CLIP [2]_ has it. With guesses no better than
    chance it is log b, so that losses of different batch sizes do not compare. Several matches
    of one row share its target evenly; a row or column without a match counts 0.

    References
    ----------
    .. [1] van den Oord, Li and Vinyals, "Representation learning with contrastive predictive
       coding", 2018, https://arxiv.org/abs/1807.03748
    .. [2] Radford et al., "Learning transferable visual models from natural language
       supervision", ICML 2021, https://arxiv.org/abs/2103.00020

    Examples
    --------
    >>> import numpy as np
    >>> guess = InfoNCE()(np.eye(4), np.zeros((4, 4)))
    >>> round(float(guess), 4), round(float(np.log(4)), 4)
    (1.3863, 1.3863)
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        reduction="sum_over_batch_size",
        name="info_nce",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        _check_temperature(temperature)
        self.temperature = temperature

    def call(self, y_true, y_pred):
        """Return the loss (b,) of matches and similarities (b, b) each."""
        _check_square(y_true, y_pred)
        logits = y_pred / self.temperature
        to_text = _cross_entropy(y_true, logits)
        to_image = _cross_entropy(ops.transpose(y_true), ops.transpose(logits))
        return (to_text + to_image) / 2

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable(package="cmlearn")
class SigLIP(keras.losses.Loss):
    r"""Pairwise sigmoid loss: tell of every image and text in the batch whether they match.

    Each pair is judged by itself, with no softmax over the batch, so that the loss works with
    small batches and several matches a row.

    Parameters
    ----------
    temperature : float
        Divides the similarities. 1 for logits that are scaled already, as those of
        `ScaledSimilarity`; training in the paper starts at 0.1.
    bias : float
        Added to the scaled similarities. 0 for logits that have their bias; training in the
        paper starts at -10, because most pairs of a batch do not match.
    reduction, name, dtype
        As every Keras loss takes them.

    Raises
    ------
    ValueError
        If ``temperature`` is not above 0, or ``y_true`` and ``y_pred`` are not (b, b) both.

    Notes
    -----
    With similarities :math:`s_{ij}`, matches :math:`y_{ij} \in \{0, 1\}`, temperature
    :math:`\tau` and bias :math:`\beta`, the value of row i is

    .. math::

        -\sum_j \log \sigma\big( (2 y_{ij} - 1) (s_{ij} / \tau + \beta) \big)

    in nats, as in the pseudo-code of [1]_, where a parameter t is our :math:`1 / \tau`.

    References
    ----------
    .. [1] Zhai, Mustafa, Kolesnikov and Beyer, "Sigmoid loss for language image pre-training",
       ICCV 2023, https://arxiv.org/abs/2303.15343

    Examples
    --------
    >>> import numpy as np
    >>> loss = SigLIP(temperature=0.1)
    >>> similarity = np.array([[0.9, -0.9], [-0.9, 0.9]])
    >>> bool(loss(np.eye(2), similarity) < loss(1 - np.eye(2), similarity))
    True
    """

    def __init__(
        self,
        temperature: float = 1.0,
        bias: float = 0.0,
        *,
        reduction="sum_over_batch_size",
        name="siglip",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        _check_temperature(temperature)
        self.temperature = temperature
        self.bias = bias

    def call(self, y_true, y_pred):
        """Return the loss (b,) of matches and similarities (b, b) each."""
        _check_square(y_true, y_pred)
        logits = y_pred / self.temperature + self.bias
        return -ops.sum(ops.log_sigmoid((2 * y_true - 1) * logits), axis=1)

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature, "bias": self.bias}


def _cross_entropy(matches, logits):
    """Return the cross entropy (b,) of each row's matches, 0 in a row without one."""
    n_matches = ops.sum(matches, axis=1, keepdims=True)
    targets = matches / ops.where(n_matches > 0, n_matches, 1)
    return -ops.sum(targets * ops.log_softmax(logits, axis=1), axis=1)


def _check_temperature(temperature):
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature!r}")


def _check_square(y_true, y_pred):
    rows, columns = y_pred.shape if len(y_pred.shape) == 2 else (0, 1)
    if _differ(rows, columns):
        raise ValueError(
            "y_pred must hold the similarity of every image with every text of the batch, "
            f"(batch, batch); got the shape {tuple(y_pred.shape)}"
        )
    if len(y_true.shape) != 2 or _differ(y_true.shape[0], rows) or _differ(y_true.shape[1], rows):
        raise ValueError(
            "y_true must say of every pair in y_pred whether it matches, such as np.eye(batch); "
            f"got the shape {tuple(y_true.shape)} beside {tuple(y_pred.shape)}"
        )


def _differ(size, other):
    """Tell whether two sizes differ, as far as they are known before the batch is."""
    return size is not None and other is not None and size != other
