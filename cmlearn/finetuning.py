"""Training a pretrained network on, with what is known of the classes as a teacher."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from cmlearn._checkpoints import Checkpoint
from cmlearn._training import (
    KerasClassifier,
    check_training_parameters,
    in_batches,
    layer_seeds,
    train_network,
)
from cmlearn.image import ImageError, decode, jit_compile, resize
from cmlearn.runtime import device

if TYPE_CHECKING:
    import keras

__all__ = [
    "FineTunedCNN",
    "coarse_to_fine",
    "family_probabilities",
    "load_pixels",
    "smoothed_cross_entropy",
    "augmented_views",
]

_HEAD_EPOCHS = 40
_BATCH = 32  # images a forward pass: Keras holds the outputs of all layers meanwhile


class FineTunedCNN(KerasClassifier):
    r"""An EfficientNet-Lite, pretrained on ImageNet and trained on, as a classifier of images.

    First a softmax layer learns on the frozen features; then the whole network is trained with a
    small step size, so that the features are not distorted before the layer on top of them makes
    sense [1]_.

    Parameters
    ----------
    variant : {"lite0", "lite2"}
        The pretrained network.
    families : array-like of int, shape (n_classes,), optional
        Coarse class of each class, in the order of the sorted labels. The loss then also asks for
        the family of each image; see the notes.
    family_weight : float
        Weight of that loss.
    teachers : array-like of float, shape (n_classes, n_features), optional
        What is known of each class beside its images, for instance the code of a description, in
        the order of the sorted labels. A second head has to place each image by its class's
        teacher; see the notes. Teachers are used in training only, and by `similarities`.
    teacher_weight : float
        Weight of that head's loss.
    temperature : float
        Of the softmax over cosine similarities with the teachers.
    label_smoothing : float in [0, 1)
        Share of the target that is spread evenly over all classes [2]_.
    augmentation : float in [0, 1)
        In training every image is mirrored with probability 1/2, shifted by up to this share of its
        width, zoomed by up to twice that, turned by up to a quarter of it (of a full turn), and
        made brighter or darker, with more or less contrast, by up to this share.
    drop_path : float in [0, 1)
        Stochastic depth [3]_: in training the last residual block is left out for this share of the
        images, and earlier ones for less, in proportion to their position.
    dropout : float in [0, 1)
        Share of the features that is set to zero in training, before the heads.
    learning_rate : float
        Largest step size of AdamW [4]_: it rises over the first tenth of the steps and then falls
        along half a cosine to zero.
    weight_decay : float
        Share of the step size by which each kernel shrinks in a step.
    batch_size, epochs : int
        Images a step; passes over the images.
    checkpoint : path or None
        Folder in which the state of the training is kept after every epoch. When `fit` is called
        again after it was interrupted, with the same parameters and data, it goes on where it was
        and ends with the same weights.
    verbose : bool
        Show a progress bar over the epochs; it stays quiet when the output is not a terminal.
    random_state : int, RandomState instance or None
        Seed of the heads' initial weights, the augmentation, the dropout and the order of the
        images. With `checkpoint` it must be an int.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; the columns of ``predict_proba``.
    history_ : dict of str to list of float
        ``loss`` and ``accuracy`` (of the label head, on the distorted images) of every epoch.
    config_ : str
        The network's layers, as Keras's JSON; without those that only training needs.
    weights_ : list of ndarray
        Its weights.

    Notes
    -----
    With :math:`z` the scores of the label head, :math:`p = \mathrm{softmax}(z)`, :math:`h` the
    features, :math:`W` a learned matrix, :math:`t_c` the teacher of class :math:`c` scaled to
    length 1, and :math:`f(c)` the family of class :math:`c`, the loss of an image of class
    :math:`y` is

    .. math::

        \ell = -\sum_c q_c \log p_c
        - \lambda_f \log \sum_{c : f(c) = f(y)} p_c
        - \lambda_t \log \frac{\exp(\cos(Wh, t_y) / \tau)}{\sum_c \exp(\cos(Wh, t_c) / \tau)}

    where :math:`q` is the smoothed target. The last term is the contrastive loss of image and text
    [5]_ with one text a class, against all classes rather than those of the batch.

    The statistics of the batch normalisations stay as they are on ImageNet: a batch of 32 of a few
    thousand images estimates them worse. On a GPU the network is trained in mixed precision.

    References
    ----------
    .. [1] A. Kumar, A. Raghunathan, R. Jones, T. Ma and P. Liang, "Fine-tuning can distort
       pretrained features and underperform out-of-distribution", ICLR 2022,
       https://arxiv.org/abs/2202.10054
    .. [2] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens and Z. Wojna, "Rethinking the Inception
       architecture for computer vision", CVPR 2016, https://arxiv.org/abs/1512.00567
    .. [3] G. Huang, Y. Sun, Z. Liu, D. Sedra and K. Q. Weinberger, "Deep networks with stochastic
       depth", ECCV 2016, https://arxiv.org/abs/1603.09382
    .. [4] I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019,
       https://arxiv.org/abs/1711.05101
    .. [5] A. Radford et al., "Learning transferable visual models from natural language
       supervision", ICML 2021, https://arxiv.org/abs/2103.00020
    """

    def __init__(
        self,
        variant="lite0",
        *,
        families=None,
        family_weight=0.0,
        teachers=None,
        teacher_weight=0.0,
        temperature=0.1,
        label_smoothing=0.1,
        augmentation=0.1,
        drop_path=0.0,
        dropout=0.2,
        learning_rate=3e-4,
        weight_decay=0.05,
        batch_size=32,
        epochs=10,
        checkpoint=None,
        verbose=False,
        random_state=None,
    ):
        self.variant = variant
        self.families = families
        self.family_weight = family_weight
        self.teachers = teachers
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.augmentation = augmentation
        self.drop_path = drop_path
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.checkpoint = checkpoint
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X, y):
        """Train the network.

        Parameters
        ----------
        X : ndarray of shape (n, size, size, 3), uint8
            Square RGB images of one size, as `load_pixels` gives them.
        y : array-like of shape (n,)
            The labels.

        Returns
        -------
        FineTunedCNN
            The classifier itself.

        Raises
        ------
        ValueError
            When a parameter is out of its range, `X` is of another shape or dtype, or `teachers`
            or `families` have not one row a class.
        cmlearn.two_tower.CheckpointError
            When the checkpoint is of another training.
        """
        pixels = _check_pixels(X)
        check_consistent_length(pixels, y)
        codes = self._encode_labels(y)
        self._check_parameters()
        random_state = check_random_state(self.random_state)
        seed = int(random_state.randint(2**31 - 1))
        heads = self._targets(codes)
        with layer_seeds(seed), _training_policy():
            network, backbone = self._build(pixels.shape[1])
        self._train_heads(network, in_batches(backbone, pixels, _BATCH), heads, seed)
        self._compile(network, n_steps=self.epochs * -(-len(pixels) // self.batch_size))
        checkpoint = None
        if self.checkpoint is not None:
            checkpoint = Checkpoint(self.checkpoint, self._fingerprint(pixels, codes))
        self.history_ = train_network(
            network,
            (pixels, heads),
            np.arange(len(pixels)),
            None,
            batch_size=self.batch_size,
            epochs=self.epochs,
            patience=1,
            seed=seed,
            verbose=self.verbose,
            label="label" if len(heads) > 1 else "",
            checkpoint=checkpoint,
        )
        self._keep(self._without_training_layers(network, pixels.shape[1]))
        return self

    def predict_proba(self, X) -> np.ndarray:
        """Return the probability of every class for every image, by the label head.

        Parameters
        ----------
        X : ndarray of shape (n, size, size, 3), uint8
            Images of the size that the network was trained with.

        Returns
        -------
        ndarray of shape (n, n_classes), float32
            In the order of ``classes_``.
        """
        return _softmax(self._outputs(X)["label"])

    def similarities(self, X, teachers) -> np.ndarray:
        """Return how well each image agrees with each teacher, also with those of new classes.

        Parameters
        ----------
        X : ndarray of shape (n, size, size, 3), uint8
            Images.
        teachers : array-like of float, shape (n_teachers, n_features)
            Codes made as those that the network was trained with.

        Returns
        -------
        ndarray of shape (n, n_teachers), float32
            Cosines between -1 and 1.

        Raises
        ------
        ValueError
            When the classifier was trained without teachers, or with codes of another width.
        """
        check_is_fitted(self)
        if self.teachers is None:
            raise ValueError("this classifier was trained without teachers: set teachers=… first")
        wanted = np.shape(self.teachers)[1]
        if np.ndim(teachers) != 2 or np.shape(teachers)[1] != wanted:
            raise ValueError(
                f"teachers has the shape {np.shape(teachers)}, expected (n, {wanted}): codes made "
                "as those of the training"
            )
        placed = self._outputs(X)["place"]
        return placed @ _unit_rows(teachers).T

    def _outputs(self, X) -> dict[str, np.ndarray]:
        check_is_fitted(self)
        return in_batches(self._keras_model(), _check_pixels(X), _BATCH)

    def _check_parameters(self) -> None:
        check_training_parameters(self)
        for name in ("label_smoothing", "augmentation", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1; got {getattr(self, name)!r}"
                )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature!r}")
        for name, dimensions in (("families", 1), ("teachers", 2)):
            known = getattr(self, name)
            if known is None:
                continue
            shape = np.shape(known)
            if len(shape) != dimensions or shape[0] != len(self.classes_):
                raise ValueError(
                    f"{name} has the shape {shape}, but y holds {len(self.classes_)} classes: "
                    f"give one {'row' if dimensions == 2 else 'number'} for each, in the order of "
                    "the sorted labels"
                )

    def _targets(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        targets = {"label": codes}
        if self.families is not None:
            targets["family"] = np.unique(self.families, return_inverse=True)[1][codes]
        if self.teachers is not None:
            targets["teacher"] = codes
        return targets

    def _build(self, size: int) -> tuple[keras.Model, keras.Model]:
        """Return the network as it is trained, and the pretrained part of it."""
        import keras

        backbone = _trainable_backbone(self.variant, size, self.drop_path)
        pixels = keras.Input((size, size, 3), name="pixels")
        x = pixels
        for layer in _distortions(self.augmentation):
            x = layer(x)
        features = keras.Input((backbone.output.shape[-1],), name="features")
        heads = keras.Model(features, self._heads(features), name="heads")
        return keras.Model(pixels, heads(backbone(x))), backbone

    def _heads(self, features) -> dict:
        from keras import layers

        from cmlearn._finetuning_layers import FamilyScores

        x = layers.Dropout(self.dropout)(features)
        outputs = {"label": layers.Dense(len(self.classes_), dtype="float32", name="scores")(x)}
        if self.families is not None:
            families = np.unique(self.families, return_inverse=True)[1]
            outputs["family"] = FamilyScores(families.tolist(), name="families")(outputs["label"])
        if self.teachers is not None:
            width = np.shape(self.teachers)[1]
            place = layers.Dense(width, use_bias=False, dtype="float32", name="place")(x)
            place = layers.UnitNormalization(dtype="float32", name="unit_place")(place)
            compare = layers.Dense(
                len(self.classes_),
                use_bias=False,
                dtype="float32",
                trainable=False,
                name="teachers",
            )
            outputs["teacher"] = compare(place)
            compare.set_weights([_unit_rows(self.teachers).T / self.temperature])
        return outputs

    def _train_heads(self, network, features: np.ndarray, targets: dict, seed: int) -> None:
        """Train the heads on frozen features, before the features are allowed to move."""
        import keras

        heads = network.get_layer("heads")
        heads.compile(
            keras.optimizers.Adam(1e-3),
            loss=self._losses(),
            loss_weights=self._loss_weights(),
            jit_compile=jit_compile(),
        )
        train_network(
            heads,
            (features, targets),
            np.arange(len(features)),
            None,
            batch_size=64,
            epochs=_HEAD_EPOCHS,
            patience=1,
            seed=seed,
        )

    def _compile(self, network, n_steps: int) -> None:
        import keras

        warmup = max(n_steps // 10, 1)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, n_steps - warmup, warmup_target=self.learning_rate, warmup_steps=warmup
        )
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=self.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        network.compile(
            optimizer,
            loss=self._losses(),
            loss_weights=self._loss_weights(),
            metrics={"label": ["accuracy"]},
            jit_compile=jit_compile(),
        )

    def _losses(self) -> dict:
        import keras

        plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        losses = {"label": smoothed_cross_entropy(self.label_smoothing)}
        if self.families is not None:
            losses["family"] = plain
        if self.teachers is not None:
            losses["teacher"] = plain
        return losses

    def _loss_weights(self) -> dict[str, float]:
        weights = {"label": 1.0, "family": self.family_weight, "teacher": self.teacher_weight}
        return {name: weights[name] for name in self._losses()}

    def _without_training_layers(self, network, size: int) -> keras.Model:
        """Return the network as it predicts: in 32 bits, without distortions and heads' losses."""
        import keras

        backbone = _trainable_backbone(self.variant, size, drop_path=0.0)
        trained = network.get_layer(backbone.name)
        backbone.set_weights(trained.get_weights())
        heads = network.get_layer("heads")
        outputs = {"label": heads.get_layer("scores")}
        if self.teachers is not None:
            outputs["place"] = heads.get_layer("place")
        pixels = keras.Input((size, size, 3), name="pixels")
        features = backbone(pixels)
        built = {}
        for name, layer in outputs.items():
            copy = type(layer).from_config(layer.get_config())
            built[name] = copy(features)
            copy.set_weights(layer.get_weights())
        if "place" in built:
            built["place"] = keras.layers.UnitNormalization(name="unit_place")(built["place"])
        return keras.Model(pixels, built)

    def _fingerprint(self, pixels: np.ndarray, codes: np.ndarray) -> dict[str, str]:
        """Return what must agree for a training to be continued: parameters and data."""
        import keras

        free = ("checkpoint", "verbose", "families", "teachers")
        parameters = self.get_params(deep=False)
        data = hashlib.sha256("\n".join(map(str, self.classes_)).encode())
        for values in (pixels, codes, self.families, self.teachers):
            data.update(np.ascontiguousarray(0 if values is None else values).tobytes())
        return {
            **{name: repr(value) for name, value in parameters.items() if name not in free},
            "data": data.hexdigest(),
            "Keras backend": keras.backend.backend(),
        }


def load_pixels(images: Iterable[Any], size: int) -> np.ndarray:
    """Read images once, as squares of one size, for all the epochs of a training.

    The shorter side is scaled to `size` and the middle is kept.

    Parameters
    ----------
    images : iterable of path, bytes or ndarray
        As :func:`cmlearn.image.decode` reads them.
    size : int
        Height and width in pixels.

    Returns
    -------
    ndarray of shape (n, size, size, 3), uint8
        RGB.

    Raises
    ------
    cmlearn.image.ImageError
        When an image cannot be read; the message names its row.
    """
    images = list(images)
    pixels = np.empty((len(images), size, size, 3), np.uint8)

    def read(row: int) -> None:
        try:
            pixels[row] = resize(_square(decode(images[row])), size)
        except ImageError as error:
            raise ImageError(f"row {row}: {error}") from error

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(images))))
    return pixels


def _square(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def augmented_views(pixels: np.ndarray, zoom: float = 1.15) -> list[np.ndarray]:
    """Return images as they are, mirrored, and both enlarged: to be judged and averaged.

    Parameters
    ----------
    pixels : ndarray of shape (n, size, size, 3), uint8
        Square images.
    zoom : float
        How much the middle is enlarged.

    Returns
    -------
    list of four ndarrays of the same shape
        Averaging a classifier's probabilities over them is test-time augmentation [1]_.

    References
    ----------
    .. [1] A. Krizhevsky, I. Sutskever and G. E. Hinton, "ImageNet classification with deep
       convolutional neural networks", NeurIPS 2012, section 4.1.

    Examples
    --------
    >>> pixels = np.zeros((2, 8, 8, 3), np.uint8)
    >>> [view.shape for view in augmented_views(pixels)]
    [(2, 8, 8, 3), (2, 8, 8, 3), (2, 8, 8, 3), (2, 8, 8, 3)]
    """
    size = pixels.shape[1]
    margin = round(size * (1 - 1 / zoom) / 2)
    middle = pixels[:, margin : size - margin, margin : size - margin]
    near = np.stack([resize(picture, size) for picture in middle])
    return [view for scaled in (pixels, near) for view in (scaled, scaled[:, :, ::-1])]


def family_probabilities(probabilities: np.ndarray, families: Sequence[int]) -> np.ndarray:
    """Add up the probabilities of the classes of each family.

    Parameters
    ----------
    probabilities : ndarray of shape (n, n_classes)
        Of the classes.
    families : sequence of int, length n_classes
        Number of the family of each class, from 0.

    Returns
    -------
    ndarray of shape (n, n_families)
        Of the families.

    Examples
    --------
    >>> family_probabilities(np.array([[0.5, 0.3, 0.2]]), [0, 1, 1])
    array([[0.5, 0.5]])
    """
    membership = np.eye(max(families) + 1)[np.asarray(families)]
    return np.asarray(probabilities) @ membership


def coarse_to_fine(probabilities: np.ndarray, families: Sequence[int]) -> np.ndarray:
    """Choose the most probable family first, and then its most probable class.

    Parameters
    ----------
    probabilities : ndarray of shape (n, n_classes)
        Of the classes.
    families : sequence of int, length n_classes
        Number of the family of each class, from 0.

    Returns
    -------
    ndarray of shape (n,), int
        Number of the class chosen for each row.

    Examples
    --------
    The first class is the most probable one, and the two of the other family together more so:

    >>> coarse_to_fine(np.array([[0.4, 0.35, 0.25]]), [0, 1, 1])
    array([1])
    """
    chosen = family_probabilities(probabilities, families).argmax(axis=1)
    inside = np.asarray(families)[None, :] == chosen[:, None]
    return np.where(inside, probabilities, -1.0).argmax(axis=1)


def smoothed_cross_entropy(smoothing: float):
    r"""Return the cross-entropy with smoothed labels, as a loss for Keras.

    Parameters
    ----------
    smoothing : float in [0, 1)
        :math:`\varepsilon` in :math:`q_c = (1 - \varepsilon) [c = y] + \varepsilon / K`, the target
        of class :math:`c` of :math:`K` for a row of class :math:`y`.

    Returns
    -------
    callable
        ``loss(y_true, scores)`` of shapes (n,) and (n, K), giving (n,); `scores` before softmax.
    """
    from keras import ops

    def loss(y_true, scores):
        log_probabilities = ops.log_softmax(scores, axis=-1)
        right = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), scores.shape[-1])
        of_label = ops.sum(right * log_probabilities, axis=-1)
        return -(1 - smoothing) * of_label - smoothing * ops.mean(log_probabilities, axis=-1)

    return loss


# --- The network ---------------------------------------------------------------------------------


def _trainable_backbone(variant: str, size: int, drop_path: float) -> keras.Model:
    """Return the pretrained network, trainable but for its batch normalisations' statistics."""
    import keras

    from cmlearn._finetuning_layers import ResidualSum
    from cmlearn.efficientnet import EfficientNetLite

    pretrained = EfficientNetLite(variant, image_size=size, fold_batch_norm=False)
    sums = [layer.name for layer in pretrained.layers if isinstance(layer, keras.layers.Add)]

    def with_drop_path(layer):
        if layer.name in sums and drop_path:
            rate = drop_path * (sums.index(layer.name) + 1) / len(sums)
            return ResidualSum(rate, name=layer.name)
        return type(layer).from_config(layer.get_config())

    backbone = keras.models.clone_model(pretrained, clone_function=with_drop_path)
    backbone.set_weights(pretrained.get_weights())
    for layer in backbone.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    return backbone


def _distortions(strength: float) -> list:
    from keras import layers

    from cmlearn._augmentation import compiled_on_jax

    if not strength:
        return []
    fill = {"fill_mode": "nearest", "dtype": "float32"}
    pixels = {"value_range": (0, 255), "dtype": "float32"}
    return [
        layers.RandomFlip("horizontal", dtype="float32"),
        compiled_on_jax(layers.RandomRotation(strength / 4, **fill)),
        compiled_on_jax(layers.RandomTranslation(strength, strength, **fill)),
        compiled_on_jax(layers.RandomZoom((-2 * strength, strength), **fill)),
        layers.RandomBrightness(strength, **pixels),
        layers.RandomContrast(strength, **pixels),
    ]


@contextlib.contextmanager
def _training_policy() -> Iterator[None]:
    """Make layers in 16 bits on a GPU, which multiplies such numbers faster."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16" if device().startswith("GPU") else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _check_pixels(X) -> np.ndarray:
    pixels = np.asarray(X)
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise ValueError(
            f"X is an array of {pixels.dtype} of shape {shape}, expected uint8 of shape "
            "(n, size, size, 3): square RGB images of one size, as load_pixels makes them"
        )
    return pixels


def _unit_rows(codes) -> np.ndarray:
    codes = np.asarray(codes, dtype=np.float32)
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    if not np.isfinite(codes).all() or (lengths == 0).any():
        raise ValueError(
            "teachers holds a row that is zero, NaN or infinite: each needs a direction"
        )
    return codes / lengths


def _softmax(scores: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return softmax(scores, axis=1)
