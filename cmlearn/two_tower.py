"""A network that learns from images and texts themselves, not from features made before."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from cmlearn._checkpoints import Checkpoint, CheckpointError
from cmlearn._training import (
    KerasClassifier,
    check_training_parameters,
    in_batches,
    layer_seeds,
    split_off_validation,
    train_network,
)
from cmlearn.image import ImageError, decode, jit_compile, resize
from cmlearn.models import (
    MODALITIES,
    SEQUENCE_FUSIONS,
    check_columns,
    check_fusion_parameters,
    check_present,
    label_outputs,
    mean_over_mask,
    of_pairs,
)
from cmlearn.runtime import device
from cmlearn.text import TextError, build_vocabulary, load_word_vectors, tokenize

if TYPE_CHECKING:
    import keras

__all__ = ["CheckpointError", "TwoTowerClassifier"]

_PADDING, _UNKNOWN, _FIRST_WORD = 0, 1, 2  # what the numbers of the words begin with
_TOWER_LAYERS = ("convolution_", "image_projection", "text_projection")


class TwoTowerClassifier(KerasClassifier):
    r"""A convolutional network and word embeddings, fused and trained end to end on the labels.

    Parameters
    ----------
    how : str
        The fusion, as in :class:`cmlearn.models.FusionClassifier`. ``"cross-attention"`` and
        ``"bottleneck"`` see every word and every position of the last feature map, the others
        their averages.
    units : int
        Width of the projection of each tower and of the fused vector.
    image_size : int
        Height and width in pixels that images are scaled to.
    filters : tuple of int
        Channels of each block of convolution (3 x 3), group normalisation, ReLU and maximum
        pooling (2 x 2).
    vectors : str, path or None
        Word vectors that the embeddings start from, as
        :func:`cmlearn.text.load_word_vectors` opens them; ``None`` starts from random ones.
    embedding_width : int
        Width of the word embeddings that start from random numbers; `vectors` bring their own.
    augmentation : float in [0, 1)
        In training every image is shifted, turned and zoomed at random by up to this share of its
        width, of a full turn and of its size. Images are not mirrored: left and right may matter.
    missing, modality_dropout, auxiliary_weight
        As in :class:`cmlearn.models.FusionClassifier`.
    balance : float
        Strength :math:`\alpha` of the gradient modulation OGM-GE; 0 for none. See the notes.
    dropout : float in [0, 1)
        Share of the inputs of the output layer that is set to zero in training.
    learning_rate : float or None
        Step size; ``None`` is 0.001 for Adam, and 0.02 for the gradient descent with momentum
        that `balance` calls for.
    batch_size, epochs, patience, validation_fraction
        As in :class:`cmlearn.models.FusionClassifier`.
    checkpoint : path or None
        Folder in which the state of the training is kept after every epoch. When `fit` is called
        again after it was interrupted, with the same parameters and data, it goes on where it was
        and ends with the same weights. A training that had ended is not repeated; with more
        ``epochs`` it goes on.
    verbose : bool
        Show a progress bar over the epochs; it stays quiet when the output is not a terminal.
    random_state : int, RandomState instance or None
        Seed of the split, the initial weights, the augmentation, the dropout and the order of the
        batches. With `checkpoint` it must be an int.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; the columns of ``predict_proba``.
    vocabulary_ : dict of str to int
        Number of each word of the training texts.
    history_ : dict of str to list of float
        ``loss`` and ``accuracy`` of every epoch for the fused output, and ``val_loss``,
        ``val_accuracy`` (losses in nats).
    best_epoch_ : int
        Index of the epoch whose weights were kept.
    config_ : str
        The network's layers, as Keras's JSON; without those that only training needs.
    weights_ : list of ndarray
        Its weights.

    Notes
    -----
    The network, and so a stored classifier, computes in 32 bits. On a GPU the towers are trained in
    mixed precision [1]_: they compute in 16 bits, weights and loss stay in 32.

    Group normalisation [2]_ rather than batch normalisation, so that the blank images of pairs
    that lack one do not enter the statistics of the others, and a row's answer never depends on
    the rows beside it.

    A word that the training texts lack is "unknown", and so is the only word of a text that holds
    none. The vector for unknown words is learned only where a training text is empty; it starts
    at zeros, the mean of the others.

    ``balance`` is on-the-fly gradient modulation with generalisation enhancement (OGM-GE, [3]_).
    Two more output layers name the label from each tower alone; they learn without an influence on
    the towers. With :math:`s_v, s_t` their probabilities of the true labels, summed over the
    complete rows of a batch, and :math:`\rho_v = s_v / s_t = 1/\rho_t`, the gradient that reaches a
    tower is multiplied by

    .. math:: k_u = 1 - \tanh(\alpha \rho_u) \text{ if } \rho_u > 1 \text{ else } 1 .

    Then normal noise is added to the gradient of each kernel of the towers, with the standard
    deviation of that gradient's entries. The paper takes the scores from the two halves of a linear
    classifier on the concatenation, which other fusions do not have, and the noise's deviation from
    the gradient before it is multiplied. The word vectors get no noise: most of them have no
    gradient in a batch. Adam divides each gradient by its own size and would undo the modulation,
    so the network is then trained by gradient descent with momentum 0.9, as in the paper.

    References
    ----------
    .. [1] Micikevicius et al., "Mixed precision training", ICLR 2018,
       https://arxiv.org/abs/1710.03740
    .. [2] Wu and He, "Group normalization", ECCV 2018, https://arxiv.org/abs/1803.08494
    .. [3] Peng, Wei, Deng, Wang and Hu, "Balanced multimodal learning via on-the-fly gradient
       modulation", CVPR 2022, https://doi.org/10.1109/CVPR52688.2022.00806
    """

    def __init__(
        self,
        how="gated",
        *,
        units=64,
        image_size=64,
        filters=(32, 64, 128),
        vectors=None,
        embedding_width=50,
        augmentation=0.0,
        missing="mask",
        modality_dropout=0.0,
        auxiliary_weight=0.0,
        balance=0.0,
        dropout=0.3,
        learning_rate=None,
        batch_size=32,
        epochs=50,
        patience=10,
        validation_fraction=0.15,
        checkpoint=None,
        verbose=False,
        random_state=None,
    ):
        self.how = how
        self.units = units
        self.image_size = image_size
        self.filters = filters
        self.vectors = vectors
        self.embedding_width = embedding_width
        self.augmentation = augmentation
        self.missing = missing
        self.modality_dropout = modality_dropout
        self.auxiliary_weight = auxiliary_weight
        self.balance = balance
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.checkpoint = checkpoint
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X, y):
        """Train on pairs and their labels.

        Parameters
        ----------
        X : DataFrame with the columns ``image`` and ``text``
            Images as `cmlearn.image.decode` takes them, texts as str; ``None`` where a pair lacks
            one of the two.
        y : array-like of shape (n,)
            Labels of any type.

        Returns
        -------
        TwoTowerClassifier
            Itself.

        Raises
        ------
        ValueError
            If a parameter, a column or a row is unfit; the message names it.
        ImageError, TextError
            If an image cannot be decoded or a text is none; the message names the row.
        CheckpointError
            If the checkpoint is damaged, or of another network or other data.
        """
        self._check_parameters()
        check_columns(X)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        check_classification_targets(y)
        codes = self._encode_labels(y)
        check_present(X[list(MODALITIES)].notna().to_numpy(), fit=True)
        self._set_vocabulary(X)
        inputs = self._inputs(X)
        random_state = check_random_state(self.random_state)
        train, validation = split_off_validation(
            codes, self.classes_, self.validation_fraction, random_state
        )
        self.feature_names_in_ = np.array(MODALITIES, dtype=object)
        self.n_features_in_ = len(MODALITIES)
        self._train(inputs, codes, train, validation, int(random_state.randint(2**31 - 1)))
        return self

    def predict_proba(self, X) -> np.ndarray:
        """Return the class probabilities of pairs, (n, n_classes) float32.

        Parameters
        ----------
        X : DataFrame with the columns ``image`` and ``text``
            As in training; ``None`` where a pair lacks one of the two.
        """
        check_is_fitted(self, "weights_")
        check_columns(X)
        network = self._keras_model()
        # In parts, so that memory holds the pixels of one of them only.
        parts = [X.iloc[start : start + 256] for start in range(0, len(X), 256)]
        rows = range(0, len(X), 256)
        return np.concatenate(
            [
                in_batches(network, self._inputs(part, first))
                for part, first in zip(parts, rows, strict=True)
            ]
        )

    def __sklearn_tags__(self):
        """Say that a table of images and texts is no matrix, and may lack cells."""
        return of_pairs(super().__sklearn_tags__())

    def _check_parameters(self) -> None:
        check_training_parameters(self)
        check_fusion_parameters(self)
        if not 0 <= self.augmentation < 1:
            raise ValueError(
                f"augmentation must be at least 0 and below 1; got {self.augmentation!r}"
            )
        if not self.balance >= 0:
            raise ValueError(f"balance must be at least 0; got {self.balance!r}")
        if len(self.filters) == 0 or self.image_size < 2 ** len(self.filters):
            raise ValueError(
                f"image_size={self.image_size} is halved by each block of filters="
                f"{self.filters!r}: give one block at least, and at least 2 pixels a block"
            )
        if self.checkpoint is not None and not isinstance(self.random_state, Integral):
            raise ValueError(
                "a training that can be continued needs the same chance every time: with "
                f"checkpoint=..., random_state must be an int; got {self.random_state!r}"
            )

    # --- From cells to arrays --------------------------------------------------------------------

    def _set_vocabulary(self, X) -> None:
        texts = [text for text in _texts(X["text"]) if text is not None]
        words = build_vocabulary(texts)
        if not words:
            raise TextError(
                f"the {len(texts)} training texts hold no word, so there is no vocabulary to learn"
            )
        self.vocabulary_ = {word: number + _FIRST_WORD for word, number in words.items()}

    def _inputs(self, X, first_row: int = 0) -> dict[str, np.ndarray]:
        """Return pixels (n, s, s, 3) uint8, words (n, longest) int32 and what is present."""
        texts = _texts(X["text"], first_row)
        pixels, has_image = _pixels(X["image"], self.image_size, first_row)
        words = [self._numbers(text) for text in texts]
        longest = max(map(len, words))
        present = np.stack([has_image, [text is not None for text in texts]], axis=1)
        check_present(present, fit=False, first_row=first_row)
        padded = [row + [_PADDING] * (longest - len(row)) for row in words]
        return {"image": pixels, "text": np.array(padded, np.int32), "present": present}

    def _numbers(self, text: str | None) -> list[int]:
        words = [self.vocabulary_.get(word, _UNKNOWN) for word in tokenize(text or "")]
        return words or [_UNKNOWN]

    # --- The network -----------------------------------------------------------------------------

    def _train(self, inputs: dict, codes: np.ndarray, train, validation, seed: int) -> None:

        with layer_seeds(seed):
            network = self._build(training=True)
        self._start_from_vectors(network)
        targets = dict.fromkeys(network.output, codes)
        present = inputs["present"].astype(np.float32)
        weights = {"label": np.ones(len(codes), np.float32)}
        loss_weights = {"label": 1.0}
        for i, name in enumerate(MODALITIES):
            weights |= {f"{name}_label": present[:, i], f"{name}_score": present[:, i]}
            loss_weights |= {f"{name}_label": self.auxiliary_weight, f"{name}_score": 1.0}
        network.compile(
            optimizer=self._optimizer(seed),
            loss=dict.fromkeys(network.output, "sparse_categorical_crossentropy"),
            loss_weights={name: loss_weights[name] for name in network.output},
            metrics={"label": ["accuracy"]},
            jit_compile=jit_compile(),
        )
        weights = {name: weights[name] for name in network.output}
        if self.balance:
            inputs = inputs | {"answer": codes.astype(np.int32)}
        checkpoint = None
        if self.checkpoint is not None:
            checkpoint = Checkpoint(self.checkpoint, self._fingerprint(inputs, codes))
        self.history_ = train_network(
            network,
            (inputs, targets, weights),
            train,
            validation,
            batch_size=self.batch_size,
            epochs=self.epochs,
            patience=self.patience,
            seed=seed,
            verbose=self.verbose,
            label="label" if len(network.output) > 1 else "",
            checkpoint=checkpoint,
        )
        self.best_epoch_ = int(np.argmin(self.history_.get("val_loss", self.history_["loss"])))
        self._keep(self._without_training_layers(network))

    def _optimizer(self, seed: int):
        import keras

        if self.balance:
            optimizer = _noisy_sgd(self.learning_rate or 0.02, seed)
        else:
            optimizer = keras.optimizers.Adam(self.learning_rate or 1e-3)
        if _tower_policy() == "mixed_float16":
            # Small gradients vanish in 16 bits unless the loss is made larger for a while.
            return keras.optimizers.LossScaleOptimizer(optimizer)
        return optimizer

    def _without_training_layers(self, network) -> keras.Model:
        """Return the network as it predicts: in 32 bits, with the trained weights."""
        predictor = self._build(training=False)
        for layer in predictor.layers:
            if layer.weights:
                layer.set_weights(network.get_layer(layer.name).get_weights())
        return predictor

    def _start_from_vectors(self, network) -> None:
        embedding = network.get_layer("words")
        table = embedding.get_weights()[0]
        if self.vectors is not None:
            vectors = load_word_vectors(self.vectors)
            rows = vectors.index(self.vocabulary_)
            known = rows >= 0
            table[_FIRST_WORD:][known] = vectors.vectors[rows[known]]
        table[:_FIRST_WORD] = 0
        embedding.set_weights([table])

    def _build(self, *, training: bool) -> keras.Model:
        import keras

        policy = _tower_policy() if training else "float32"
        size = self.image_size
        entries = {
            "image": keras.Input((size, size, 3), name="image", dtype="uint8"),
            "text": keras.Input((None,), name="text", dtype="int32"),
            "present": keras.Input((2,), name="present", dtype="bool"),
        }
        features, masks = [], []
        for name, tower in zip(MODALITIES, (self._image_tower, self._text_tower), strict=True):
            sequence, mask = tower(entries[name], training, policy)
            has = keras.ops.take(entries["present"], [len(masks)], axis=1)
            mask = keras.ops.logical_and(mask, has)
            if self.how not in SEQUENCE_FUSIONS:
                sequence = mean_over_mask(sequence, mask)
            projection = keras.layers.Dense(
                self.units, activation="relu", dtype=policy, name=f"{name}_projection"
            )
            projected = projection(sequence)
            features.append(keras.ops.cast(projected, "float32"))
            masks.append(mask)
        scores = {}
        if training and self.balance:
            entries["answer"] = keras.Input((), name="answer", dtype="int32")
            scores = self._scores(features, masks)
            features = _modulate(
                features, scores, entries["answer"], entries["present"], self.balance
            )
        outputs = label_outputs(
            features,
            entries["present"],
            masks if self.how in SEQUENCE_FUSIONS else None,
            n_classes=len(self.classes_),
            how=self.how,
            units=self.units,
            missing=self.missing,
            modality_dropout=self.modality_dropout if training else 0,
            auxiliary=training and self.auxiliary_weight > 0,
            dropout=self.dropout,
        )
        return keras.Model(entries, outputs | scores if training else outputs["label"])

    def _image_tower(self, pixels, training: bool, policy: str):
        """Return the last feature map as a sequence (b, positions, channels), and its mask."""
        from keras import layers, ops

        from cmlearn._augmentation import compiled_on_jax

        x = layers.Rescaling(1 / 127.5, offset=-1, dtype="float32")(pixels)
        if training and self.augmentation:
            share = self.augmentation
            for layer in (
                layers.RandomTranslation(share, share, fill_mode="nearest"),
                layers.RandomRotation(share, fill_mode="nearest"),
                layers.RandomZoom(share, fill_mode="nearest"),
            ):
                x = compiled_on_jax(layer)(x)
        for i, channels in enumerate(self.filters):
            convolution = layers.Conv2D(
                channels,
                3,
                padding="same",
                use_bias=False,
                kernel_initializer="he_normal",
                dtype=policy,
                name=f"convolution_{i}",
            )
            groups = np.gcd(channels, 8).item()
            x = layers.GroupNormalization(groups, dtype=policy, name=f"norm_{i}")(convolution(x))
            x = layers.ReLU(dtype=policy)(x)
            x = layers.MaxPooling2D(dtype=policy)(x)
        sequence = layers.Reshape((-1, x.shape[-1]), dtype=policy)(x)
        return sequence, ops.ones_like(ops.max(sequence, axis=-1), dtype="bool")

    def _text_tower(self, words, training: bool, policy: str):
        """Return the embedded words (b, length, width), and which of them are no padding."""
        from keras import initializers, layers, ops

        width = self.embedding_width
        if self.vectors is not None:
            width = load_word_vectors(self.vectors).dim
        embedding = layers.Embedding(
            len(self.vocabulary_) + _FIRST_WORD,
            width,
            # About as large as the numbers in GloVe vectors.
            embeddings_initializer=initializers.RandomNormal(stddev=0.5),
            dtype=policy,
            name="words",
        )
        return embedding(words), ops.not_equal(words, _PADDING)

    def _scores(self, features, masks) -> dict:
        """Return what each tower says alone, by layers that learn nothing into the towers."""
        from keras import layers, ops

        scores = {}
        for name, x, mask in zip(MODALITIES, features, masks, strict=True):
            pooled = x if len(x.shape) == 2 else mean_over_mask(x, mask)
            head = layers.Dense(len(self.classes_), activation="softmax", name=f"{name}_score")
            scores[f"{name}_score"] = head(ops.stop_gradient(pooled))
        return scores

    def _fingerprint(self, inputs: dict, codes: np.ndarray) -> dict[str, str]:
        """Return what must agree for a training to be continued: parameters and data."""
        import keras

        free = ("epochs", "checkpoint", "verbose")
        parameters = self.get_params(deep=False)
        data = hashlib.sha256("\n".join([*map(str, self.classes_), *self.vocabulary_]).encode())
        for values in (*inputs.values(), codes):
            data.update(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes())
        return {
            **{name: repr(value) for name, value in parameters.items() if name not in free},
            "data": data.hexdigest(),
            "Keras backend": keras.backend.backend(),
        }


def _tower_policy() -> str:
    """Return the precision in which towers are trained here."""
    return "mixed_float16" if device().startswith("GPU") else "float32"


def _modulate(features, scores: dict, answer, present, strength: float) -> list:
    """Return the same features, through which less gradient flows to the stronger tower."""
    from keras import ops

    complete = ops.cast(ops.all(present, axis=1), "float32")
    answer = ops.expand_dims(answer, axis=1)
    strengths = [
        ops.sum(ops.squeeze(ops.take_along_axis(score, answer, axis=1), axis=1) * complete)
        for score in scores.values()
    ]
    modulated = []
    for x, own, other in zip(features, strengths, strengths[::-1], strict=True):
        ratio = own / ops.maximum(other, 1e-8)
        share = ops.stop_gradient(ops.where(ratio > 1, 1 - ops.tanh(strength * ratio), 1.0))
        modulated.append(share * x + ops.stop_gradient((1 - share) * x))
    return modulated


def _noisy_sgd(learning_rate: float, seed: int):
    """Return gradient descent with momentum and noise on the gradients of the towers' kernels.

    Each kernel's noise has the standard deviation of the entries of its gradient.
    """
    import keras
    from keras import ops

    class NoisySGD(keras.optimizers.SGD):
        def __init__(self):
            super().__init__(learning_rate, momentum=0.9)
            self.noise = keras.random.SeedGenerator(seed)
            # As an attribute the state is one of the optimiser's variables, kept in checkpoints.
            self.noise_state = self.noise.state

        def build(self, variables):
            super().build(variables)
            # In a compiled step the shape of a gradient need not be known; its variable's is.
            self._noise_shapes = [
                tuple(v.shape) if v.path.startswith(_TOWER_LAYERS) and v.name == "kernel" else None
                for v in variables
            ]

        def apply(self, grads, trainable_variables=None):
            if not self.built:
                self.build(trainable_variables)
            grads = [
                gradient if shape is None else self._with_noise(gradient, shape)
                for gradient, shape in zip(grads, self._noise_shapes, strict=True)
            ]
            super().apply(grads, trainable_variables)

        def _with_noise(self, gradient, shape):
            noise = keras.random.normal(shape, dtype=gradient.dtype, seed=self.noise)
            return gradient + ops.std(gradient) * noise

    return NoisySGD()


# --- Cells ---------------------------------------------------------------------------------------


def _is_missing(cell: Any) -> bool:
    return pd.api.types.is_scalar(cell) and pd.isna(cell)


def _texts(column, first_row: int = 0) -> list[str | None]:
    texts = [None if _is_missing(cell) else cell for cell in column]
    for row, text in enumerate(texts, first_row):
        if text is not None and not isinstance(text, str):
            raise TextError(
                f"row {row}: expected a text, got {text!r:.80} of type {type(text).__name__}; "
                "convert the column with str, or write None where there is no text"
            )
    return texts


def _pixels(column, size: int, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the images scaled to squares (n, size, size, 3) uint8, and which there are (n,)."""
    images = list(column)
    pixels = np.zeros((len(images), size, size, 3), np.uint8)
    present = np.array([not _is_missing(image) for image in images])

    def read(i: int) -> None:
        try:
            pixels[i] = resize(decode(images[i]), size)
        except ImageError as error:
            raise ImageError(f"Row {first_row + i} (counted from 0): {error}") from error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(read, np.flatnonzero(present).tolist()))
    return pixels, present
