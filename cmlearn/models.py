"""Neural networks as scikit-learn estimators, in Keras 3."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from cmlearn._training import (
    KerasClassifier,
    check_training_parameters,
    in_batches,
    layer_seeds,
    split_off_validation,
    take_rows,
    train_network,
)
from cmlearn.fusion import stack_features
from cmlearn.image import jit_compile

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FusionClassifier", "NeuralClassifier", "count_flops", "count_parameters"]

FUSIONS = (
    "concat",
    "mean",
    "product",
    "gated",
    "low-rank",
    "tensor",
    "film",
    "bottleneck",
    "cross-attention",
)
SEQUENCE_FUSIONS = ("bottleneck", "cross-attention")
MODALITIES = ("image", "text")  # the order of the columns of ``present``


class NeuralClassifier(KerasClassifier):
    """Multilayer perceptron in Keras, with dropout and early stopping.

    The features are shifted and scaled by one number each for the whole table, not feature
    by feature: the balance between blocks that :class:`cmlearn.fusion.Fusion` made stays as it
    is. Features on very different scales need a ``StandardScaler`` before.

    Parameters
    ----------
    hidden_units : tuple of int
        Width of each hidden layer (ReLU); ``()`` gives multinomial logistic regression.
    dropout : float in [0, 1)
        Share of each hidden layer's outputs that is set to zero in training.
    learning_rate : float
        Step size of the Adam optimiser.
    batch_size : int
        Rows per gradient step.
    epochs : int
        Most passes over the training part.
    patience : int
        Epochs without a lower validation loss after which training stops. The weights of the
        best epoch are restored.
    validation_fraction : float in [0, 1)
        Share of the rows, drawn by class, that is held out to decide when to stop. With 0 all
        rows are trained on for all ``epochs``. Near-duplicates may fall on both sides of this
        split, so do not read its accuracy as an estimate of the test accuracy.
    verbose : bool
        Show a progress bar over the epochs; it stays quiet when the output is not a terminal.
    random_state : int, RandomState instance or None
        Seed of the split, the initial weights, the dropout and the order of the batches.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; the columns of ``predict_proba``.
    history_ : dict of str to list of float
        ``loss`` and ``accuracy`` of every epoch, and ``val_loss``, ``val_accuracy`` (one entry
        an epoch; losses in nats).
    best_epoch_ : int
        Index of the epoch whose weights were kept.
    config_ : str
        The network's layers, as Keras's JSON.
    weights_ : list of ndarray
        Its weights. With ``config_`` they are the whole state, so that ``pickle`` and ``skops``
        store the classifier without storing a Keras object.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 15, 2014, https://jmlr.org/papers/v15/srivastava14a.html;
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015,
    https://arxiv.org/abs/1412.6980
    """

    def __init__(
        self,
        *,
        hidden_units=(256,),
        dropout=0.3,
        learning_rate=1e-3,
        batch_size=64,
        epochs=100,
        patience=10,
        validation_fraction=0.15,
        verbose=False,
        random_state=None,
    ):
        self.hidden_units = hidden_units
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X, y):
        """Train on features ``X`` (n, d) and labels ``y`` (n,) of any type."""
        check_training_parameters(self)
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        codes = self._encode_labels(y)
        random_state = check_random_state(self.random_state)
        train, validation = split_off_validation(
            codes, self.classes_, self.validation_fraction, random_state
        )
        self._train(X, codes, train, validation, random_state)
        return self

    def predict_proba(self, X) -> np.ndarray:
        """Return the class probabilities of features ``X`` (n, d), (n, n_classes) float32."""
        check_is_fitted(self, "weights_")
        X = validate_data(self, X, dtype=np.float32, reset=False)
        import keras

        model = self._keras_model()
        # Called rather than model.predict, which would compile a function for each new network.
        batches = [model(X[i : i + 1024], training=False) for i in range(0, len(X), 1024)]
        return np.concatenate([keras.ops.convert_to_numpy(batch) for batch in batches])

    def _train(self, X, codes, train, validation, random_state) -> None:
        import keras

        seed = int(random_state.randint(2**31 - 1))
        model = self._build(X[train], seed)
        model.compile(
            optimizer=keras.optimizers.Adam(self.learning_rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        self.history_ = train_network(
            model,
            (X, codes),
            train,
            validation,
            batch_size=self.batch_size,
            epochs=self.epochs,
            patience=self.patience,
            seed=seed,
            verbose=self.verbose,
        )
        self.best_epoch_ = int(np.argmin(self.history_.get("val_loss", self.history_["loss"])))
        self._keep(model)

    def _build(self, X: np.ndarray, seed: int):
        import keras

        scale = 1 / max(float(X.std()), 1e-12)
        glorot = keras.initializers.GlorotUniform
        layers = [
            keras.Input((X.shape[1],)),
            keras.layers.Rescaling(scale, offset=-float(X.mean()) * scale),
        ]
        for units in self.hidden_units:
            seed += 1
            layers += [
                keras.layers.Dense(units, activation="relu", kernel_initializer=glorot(seed)),
                keras.layers.Dropout(self.dropout, seed=seed),
            ]
        output = keras.layers.Dense(
            len(self.classes_), activation="softmax", kernel_initializer=glorot(seed + 1)
        )
        return keras.Sequential([*layers, output])


class FusionClassifier(KerasClassifier):
    r"""A network that standardises, projects and fuses image and text features.

    Parameters
    ----------
    how : str
        How the two projections become one vector, the layers of `cmlearn.layers`:

        - ``"concat"``, ``"mean"``, ``"product"``: with nothing to learn;
        - ``"gated"``: each unit is a learned blend of the two (GMU, [1]_);
        - ``"tensor"``: all products of an image unit and a text unit, learned weights [2]_;
        - ``"low-rank"``: the same with a weight tensor of low rank [3]_;
        - ``"film"``: the text scales and shifts the image's units [4]_;
        - ``"cross-attention"``: each word attends to the image's positions and each position to
          the words, then both are averaged [5]_;
        - ``"bottleneck"``: both sequences exchange a few tokens only [6]_.

        The last two need sequences in at least one column. For the others a sequence is averaged
        over its positions.
    units : int
        Width of each projection and of the fused vector.
    missing : {"mask", "embedding"}
        What stands for a missing modality: nothing, so that the fusion sees the other alone; or a
        learned vector.
    modality_dropout : float in [0, 1)
        Share of the training rows from which a random one of the two modalities is hidden in each
        step, so that the network learns to do with either [7]_. Rows that lack one already stay as
        they are. Where rows to predict will lack one, 0.5 makes the network about as good on them
        as one trained on the other modality alone.
    auxiliary_weight : float
        Weight of the loss of two more outputs, which name the label from the image alone and from
        the text alone. They keep the stronger modality from leaving the weaker one untrained, and
        are taken away after training. Rows that lack the modality do not count.
    dropout : float in [0, 1)
        Share of the inputs of the projections and of the output layer that is set to zero in
        training.
    learning_rate : float
        Step size of the Adam optimiser.
    batch_size : int
        Rows per gradient step.
    epochs : int
        Most passes over the training part.
    patience : int
        Epochs without a lower validation loss after which training stops. The weights of the
        best epoch are restored.
    validation_fraction : float in [0, 1)
        Share of the rows, drawn by class, that is held out to decide when to stop. With 0 all
        rows are trained on for all ``epochs``: better for a small table, once an earlier run's
        ``best_epoch_`` has told about how many it takes.
    verbose : bool
        Show a progress bar over the epochs; it stays quiet when the output is not a terminal.
    random_state : int, RandomState instance or None
        Seed of the split, the initial weights, the dropout and the order of the batches.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; the columns of ``predict_proba``.
    cell_shapes_ : dict of str to tuple of int
        Shape of the training cells, (d,) or (longest, d), by modality.
    history_ : dict of str to list of float
        ``loss`` and ``accuracy`` of every epoch for the fused output, and ``val_loss``,
        ``val_accuracy`` (losses in nats).
    best_epoch_ : int
        Index of the epoch whose weights were kept.
    config_ : str
        The network's layers, as Keras's JSON.
    weights_ : list of ndarray
        Its weights.

    Notes
    -----
    The mean and the standard deviation of every feature are those of the training part's present
    rows (of all their positions, for sequences). A projection is
    :math:`\mathrm{ReLU}(W z + b)` of the standardised features :math:`z`, one for each position.
    Neither attention knows the order of its positions.

    No row's answer depends on the rows beside it or on how long the others are.

    References
    ----------
    .. [1] Arevalo, Solorio, Montes-y-Gómez and González, "Gated multimodal units for information
       fusion", 2017, https://arxiv.org/abs/1702.01992
    .. [2] Zadeh, Chen, Poria, Cambria and Morency, "Tensor fusion network for multimodal
       sentiment analysis", EMNLP 2017, https://doi.org/10.18653/v1/D17-1115
    .. [3] Liu, Shen, Lakshminarasimhan, Liang, Zadeh and Morency, "Efficient low-rank multimodal
       fusion with modality-specific factors", ACL 2018, https://doi.org/10.18653/v1/P18-1209
    .. [4] Perez, Strub, de Vries, Dumoulin and Courville, "FiLM: visual reasoning with a general
       conditioning layer", AAAI 2018, https://doi.org/10.1609/aaai.v32i1.11671
    .. [5] Tsai, Bai, Liang, Kolter, Morency and Salakhutdinov, "Multimodal transformer for
       unaligned multimodal language sequences", ACL 2019, https://doi.org/10.18653/v1/P19-1656
    .. [6] Nagrani, Yang, Arnab, Jansen, Schmid and Sun, "Attention bottlenecks for multimodal
       fusion", NeurIPS 2021, https://arxiv.org/abs/2107.00135
    .. [7] Neverova, Wolf, Taylor and Nebout, "ModDrop: adaptive multi-modal gesture recognition",
       IEEE TPAMI 38(8), 2016, https://doi.org/10.1109/TPAMI.2015.2461544
    """

    def __init__(
        self,
        how="gated",
        *,
        units=128,
        missing="mask",
        modality_dropout=0.0,
        auxiliary_weight=0.5,
        dropout=0.5,
        learning_rate=1e-3,
        batch_size=32,
        epochs=100,
        patience=10,
        validation_fraction=0.15,
        verbose=False,
        random_state=None,
    ):
        self.how = how
        self.units = units
        self.missing = missing
        self.modality_dropout = modality_dropout
        self.auxiliary_weight = auxiliary_weight
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X, y):
        """Train on a feature table and its labels.

        Parameters
        ----------
        X : DataFrame with the columns ``image`` and ``text``
            As `cmlearn.fusion.feature_table` makes it: cells are float arrays, (d,) or
            (length, d), or ``None`` where a row lacks the modality.
        y : array-like of shape (n,)
            Labels of any type.

        Returns
        -------
        FusionClassifier
            Itself.

        Raises
        ------
        ValueError
            If a parameter, a column or a row is unfit; the message names it.
        """
        check_training_parameters(self)
        check_fusion_parameters(self)
        stacked = _stack_pairs(X)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        check_classification_targets(y)
        self._check_kinds(stacked)
        self.cell_shapes_ = {name: values.shape[1:] for name, (values, _) in stacked.items()}
        self.feature_names_in_ = np.array(MODALITIES, dtype=object)
        self.n_features_in_ = len(MODALITIES)
        codes = self._encode_labels(y)
        random_state = check_random_state(self.random_state)
        train, validation = split_off_validation(
            codes, self.classes_, self.validation_fraction, random_state
        )
        self._train(self._inputs(stacked), codes, train, validation, random_state)
        return self

    def predict_proba(self, X) -> np.ndarray:
        """Return the class probabilities of a feature table, (n, n_classes) float32.

        Parameters
        ----------
        X : DataFrame with the columns ``image`` and ``text``
            Cells as wide as in training, or ``None``; sequences of any length.
        """
        check_is_fitted(self, "weights_")
        inputs = self._inputs(_stack_pairs(X, self.cell_shapes_))
        return in_batches(self._keras_model(), inputs)

    def attention_maps(self, X) -> pd.DataFrame:
        """Return who attended to what, for ``how="cross-attention"``.

        Parameters
        ----------
        X : DataFrame with the columns ``image`` and ``text``
            A feature table of n rows.

        Returns
        -------
        DataFrame
            n rows, the index of `X`. Cells of ``text_to_image`` have the shape (heads, words,
            positions): the row of a word holds how much it attends to each position, and sums to
            1. Cells of ``image_to_text`` have the shape (heads, positions, words). ``None`` where
            the row lacks a modality.
        """
        check_is_fitted(self, "weights_")
        if self.how != "cross-attention":
            raise ValueError(
                f'only how="cross-attention" has attention maps; this is how={self.how!r}'
            )
        import keras
        import pandas as pd

        inputs = self._inputs(_stack_pairs(X, self.cell_shapes_))
        network = self._keras_model()
        blocks = ["text_to_image", "image_to_text"]
        scores = {name: network.get_layer(name).output[1] for name in blocks}
        maps = in_batches(keras.Model(network.inputs, scores), inputs)
        lengths = [inputs["text_mask"].sum(axis=1), inputs["image_mask"].sum(axis=1)]
        both = inputs["present"].all(axis=1)
        columns = {}
        for name, (rows, columns_) in zip(blocks, [lengths, lengths[::-1]], strict=True):
            columns[name] = [
                whole[:, :n, :m] if present else None
                for whole, n, m, present in zip(maps[name], rows, columns_, both, strict=True)
            ]
        return pd.DataFrame(columns, index=X.index)

    def __sklearn_tags__(self):
        """Say that a feature table is no matrix of numbers, and may lack cells."""
        return of_pairs(super().__sklearn_tags__())

    def _check_kinds(self, stacked: dict) -> None:
        vectors = [name for name, (values, _) in stacked.items() if values.ndim == 2]
        if self.how in SEQUENCE_FUSIONS and len(vectors) == 2:
            raise ValueError(
                f"how={self.how!r} needs a sequence of vectors, (length, d), in the cells of at "
                "least one column, but both hold single vectors; take transform_tokens of a text "
                f'encoder or transform_grid of an image encoder, or another how such as "gated"'
            )

    def _inputs(self, stacked: dict) -> dict[str, np.ndarray]:
        """Return the network's inputs for the stacked columns and their masks."""
        inputs = {"present": _has(stacked)}
        for name, (values, mask) in stacked.items():
            if self.how in SEQUENCE_FUSIONS:
                sequence = values if values.ndim == 3 else values[:, None]
                inputs |= {name: sequence, f"{name}_mask": mask.reshape(sequence.shape[:2])}
            else:
                inputs[name] = values if values.ndim == 2 else _mean_over(values, mask)
        return inputs

    def _train(self, inputs: dict, codes: np.ndarray, train, validation, random_state) -> None:
        import keras

        seed = int(random_state.randint(2**31 - 1))
        with layer_seeds(seed):
            network = self._build(take_rows(inputs, train))
        targets = {name: codes for name in network.output}
        present = inputs["present"].astype(np.float32)
        weights = {"label": np.ones(len(codes), np.float32)}
        weights |= {f"{name}_label": present[:, i] for i, name in enumerate(MODALITIES)}
        weights = {name: weights[name] for name in network.output}
        loss_weights = {name: self.auxiliary_weight for name in network.output} | {"label": 1.0}
        network.compile(
            optimizer=keras.optimizers.Adam(self.learning_rate),
            loss=dict.fromkeys(network.output, "sparse_categorical_crossentropy"),
            loss_weights=loss_weights,
            metrics={"label": ["accuracy"]},
            jit_compile=jit_compile(),
        )
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
        )
        self.best_epoch_ = int(np.argmin(self.history_.get("val_loss", self.history_["loss"])))
        self._keep(keras.Model(network.input, network.output["label"]))

    def _build(self, inputs: dict[str, np.ndarray]):
        """Return the network for inputs like the given ones, whose scale it takes."""
        import keras

        sequences = self.how in SEQUENCE_FUSIONS
        entries = {
            name: keras.Input((None, *values.shape[2:]), name=name, dtype=values.dtype.name)
            if sequences and name != "present"
            else keras.Input(values.shape[1:], name=name, dtype=values.dtype.name)
            for name, values in inputs.items()
        }
        features = []
        for i, name in enumerate(MODALITIES):
            mask = inputs[f"{name}_mask"] if sequences else inputs["present"][:, i]
            x = _standardisation(inputs[name][mask])(entries[name])
            x = keras.layers.Dropout(self.dropout)(x)
            features.append(keras.layers.Dense(self.units, activation="relu")(x))
        masks = [entries[f"{name}_mask"] for name in MODALITIES] if sequences else None
        outputs = label_outputs(
            features,
            entries["present"],
            masks,
            n_classes=len(self.classes_),
            how=self.how,
            units=self.units,
            missing=self.missing,
            modality_dropout=self.modality_dropout,
            auxiliary=self.auxiliary_weight > 0,
            dropout=self.dropout,
        )
        return keras.Model(entries, outputs)


def label_outputs(
    features,
    present,
    masks,
    *,
    n_classes,
    how,
    units,
    missing,
    modality_dropout,
    auxiliary,
    dropout,
) -> dict:
    """Fuse two modalities of one width and name the label.

    Parameters
    ----------
    features : list of two KerasTensors
        Image and text, (b, units) or (b, length, units).
    present : KerasTensor of shape (b, 2), bool
        Which of the two a row has.
    masks : list of two KerasTensors (b, length), bool, or None
        What of the sequences is no padding.
    n_classes, how, units, missing, modality_dropout, dropout
        As `FusionClassifier` takes them.
    auxiliary : bool
        Whether each modality names the label on its own as well.

    Returns
    -------
    dict of str to KerasTensor (b, n_classes)
        Class probabilities: ``label`` and, if `auxiliary`, ``image_label`` and ``text_label``.
    """
    from keras import layers, ops

    from cmlearn.layers import MissingEmbedding, ModalityDropout

    outputs = {}
    if auxiliary:
        for i, name in enumerate(MODALITIES):
            pooled = features[i] if masks is None else mean_over_mask(features[i], masks[i])
            head = layers.Dense(n_classes, activation="softmax", name=f"{name}_label")
            outputs[f"{name}_label"] = head(layers.Dropout(dropout)(pooled))
    if modality_dropout:
        present = ModalityDropout(modality_dropout)(present)
    columns = [ops.take(present, i, axis=1) for i in range(2)]
    if masks is not None:
        masks = [_shown(mask, column, missing) for mask, column in zip(masks, columns, strict=True)]
    if missing == "embedding":
        features = [
            MissingEmbedding(name=f"missing_{name}")(x, has)
            for name, x, has in zip(MODALITIES, features, columns, strict=True)
        ]
        present = None
    fused = fuse(features, present, masks, how=how, units=units, dropout=dropout)
    hidden = layers.Dropout(dropout)(fused)
    outputs["label"] = layers.Dense(n_classes, activation="softmax", name="label")(hidden)
    return outputs


def fuse(features, present, masks, *, how, units, dropout):
    """Return the fusion (b, width) of two modalities, arguments as in `label_outputs`."""
    from cmlearn import layers

    if how == "cross-attention":
        return _attend_both_ways(features, present, masks, units, dropout)
    if how == "bottleneck":
        return layers.BottleneckFusion(units, name="fusion")(features, masks=masks)
    make = {
        "gated": layers.GatedFusion,
        "low-rank": layers.LowRankBilinear,
        "tensor": layers.TensorFusion,
        "film": layers.FiLM,
    }
    layer = make[how](units, name="fusion") if how in make else layers.FixedFusion(how)
    return layer(features, present=present)


def _attend_both_ways(features, present, masks, units, dropout):
    from cmlearn.layers import CrossAttention, FixedFusion

    (image, text), (image_mask, text_mask) = features, masks
    heads = 4
    ways = {
        "image_to_text": (image, text, image_mask, text_mask),
        "text_to_image": (text, image, text_mask, image_mask),
    }
    pooled = []
    for name, (query, context, query_mask, context_mask) in ways.items():
        attended, _ = CrossAttention(heads, max(units // heads, 1), name=name)(
            query,
            context,
            query_mask=query_mask,
            context_mask=context_mask,
            return_attention_scores=True,
        )
        pooled.append(mean_over_mask(attended, query_mask))
    return FixedFusion("concat")(pooled, present=present)


def mean_over_mask(sequence, mask):
    """Return the mean (b, d) of a sequence (b, length, d) where mask (b, length) is True."""
    from keras import ops

    weights = ops.cast(mask, sequence.dtype)
    total = ops.einsum("bld,bl->bd", sequence, weights)
    return total / ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1)


def _shown(mask, present, missing: str):
    """Return the mask (b, length) of a sequence that is absent where present (b,) is False.

    Where a learned vector stands for what is absent, it has the first position, so that it counts
    as much in a long sequence as in a short one.
    """
    from keras import ops

    present = ops.expand_dims(present, axis=1)
    shown = ops.logical_and(mask, present)
    if missing == "mask":
        return shown
    first = ops.equal(ops.cumsum(ops.ones_like(mask, dtype="int32"), axis=1), 1)
    return ops.logical_or(shown, ops.logical_and(first, ops.logical_not(present)))


def _standardisation(rows: np.ndarray):
    """Return the layer that standardises the features of rows (n, d)."""
    import keras

    variance = rows.var(axis=0, dtype=np.float64)
    # A feature that did not vary in training says nothing, and dividing by its deviation would
    # let a tiny change at test time drown all others.
    variance[variance < 1e-12] = 1
    return keras.layers.Normalization(mean=rows.mean(axis=0, dtype=np.float64), variance=variance)


def _mean_over(sequences: np.ndarray, mask: np.ndarray) -> np.ndarray:
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    return (sequences.sum(axis=1, dtype=np.float64) / counts).astype(np.float32)


def of_pairs(tags):
    """Return scikit-learn's tags as a table of pairs has them, some of which lack a part."""
    tags.input_tags.two_d_array = False
    tags.input_tags.allow_nan = True
    return tags


def check_columns(X) -> None:
    """Refuse what is no table with the columns ``image`` and ``text`` and at least one row."""
    if not hasattr(X, "columns"):
        raise ValueError(
            f"X must be a DataFrame with the columns 'image' and 'text'; got {type(X).__name__}"
        )
    if sorted(map(str, X.columns)) != sorted(MODALITIES):
        raise ValueError(
            f"X must have the columns 'image' and 'text' and no others; got {list(X.columns)}"
        )
    if len(X) == 0:
        raise ValueError("X has no rows")


def check_present(present: np.ndarray, *, fit: bool, first_row: int = 0) -> None:
    """Refuse rows that lack both modalities and, to fit, a modality that all rows lack.

    Parameters
    ----------
    present : ndarray of shape (n, 2), bool
        Which of image and text each row has.
    fit : bool
        Whether the rows are to be learned from.
    first_row : int
        Number of the first of the rows, for the message.
    """
    neither = np.flatnonzero(~present.any(axis=1))
    if len(neither):
        raise ValueError(
            f"row {first_row + neither[0]} lacks both the image and the text, so nothing tells "
            f"its label; drop such rows ({len(neither)} of {len(present)})"
        )
    for name, has in zip(MODALITIES, present.T, strict=True):
        if fit and not has.any():
            raise ValueError(
                f"{name!r} is missing in all {len(present)} rows, so there is nothing to fuse; "
                "train a classifier of the other modality alone"
            )


def _stack_pairs(X, cell_shapes: dict | None = None) -> dict:
    """Return the values and the mask of both columns of a feature table."""
    check_columns(X)
    if cell_shapes is None:
        check_present(X[list(MODALITIES)].notna().to_numpy(), fit=True)
    stacked = {
        name: stack_features(X[name], cell_shape=(cell_shapes or {}).get(name))
        for name in MODALITIES
    }
    check_present(_has(stacked), fit=False)
    return stacked


def _has(stacked: dict) -> np.ndarray:
    """Return which modalities each row has, (n, 2) bool."""
    masks = [mask for _, mask in stacked.values()]
    return np.stack([mask if mask.ndim == 1 else mask.any(axis=1) for mask in masks], axis=1)


def check_fusion_parameters(estimator) -> None:
    """Refuse an unknown way of fusing or of treating what is missing."""
    if estimator.how not in FUSIONS:
        raise ValueError(
            f"how must be one of {', '.join(map(repr, FUSIONS))}; got {estimator.how!r}"
        )
    if estimator.missing not in ("mask", "embedding"):
        raise ValueError(f'missing must be "mask" or "embedding"; got {estimator.missing!r}')
    if not estimator.auxiliary_weight >= 0:
        raise ValueError(f"auxiliary_weight must be at least 0; got {estimator.auxiliary_weight!r}")
    if estimator.how == "bottleneck" and estimator.units % 4:
        raise ValueError(f'how="bottleneck" needs units in multiples of 4; got {estimator.units!r}')


def count_parameters(model) -> int:
    """Return how many numbers a network learns.

    Parameters
    ----------
    model : keras.Model, keras.Layer or fitted classifier of this package
        The network.

    Returns
    -------
    int
        The trainable ones; the mean and the deviation of a standardisation are not.
    """
    return sum(math.prod(weight.shape) for weight in _network_of(model).trainable_weights)


def count_flops(model, *, image_length: int = 1, text_length: int = 1) -> int:
    """Return how many floating-point operations the matrix products of one row take.

    Parameters
    ----------
    model : keras.Model or fitted classifier of this package
        The network, made of layers that are known here; its inputs of open length are named
        ``image…`` and ``text…``.
    image_length, text_length : int
        Positions and words of the row, for networks of sequences.

    Returns
    -------
    int
        Two for each multiplication and the addition that follows it. Activations,
        normalisations, averages and products entry by entry, which are few beside them, do not
        count.

    Raises
    ------
    ValueError
        If the network holds a layer whose products are not known.

    Examples
    --------
    >>> import keras
    >>> count_flops(keras.Sequential([keras.Input((10,)), keras.layers.Dense(3)]))
    60
    """
    lengths = {"image": image_length, "text": text_length}
    return 2 * sum(map(_multiply_adds, _with_lengths(_network_of(model), lengths).layers))


def _network_of(model):
    return model._keras_model() if isinstance(model, KerasClassifier) else model


def _with_lengths(network, lengths: dict[str, int]):
    """Return the network again, with inputs of the given lengths where they are open."""
    import keras

    description = json.loads(network.to_json())
    for layer in description["config"]["layers"]:
        shape = layer["config"].get("batch_shape")
        if layer["class_name"] == "InputLayer" and None in shape[1:]:
            name = layer["config"]["name"].partition("_")[0]
            shape[1] = lengths[name]
    return keras.models.model_from_json(json.dumps(description))


def _multiply_adds(layer) -> int:
    """Return the multiplications, each with an addition, of one row in a layer."""
    from keras import layers

    from cmlearn import layers as fusions

    kernels = sum(math.prod(weight.shape) for weight in layer.weights if len(weight.shape) > 1)
    once_a_row = (fusions.GatedFusion, fusions.LowRankBilinear, fusions.FiLM)
    if kernels == 0 or isinstance(layer, layers.Embedding):  # looking up is no product
        return 0
    if isinstance(layer, layers.Dense):
        return kernels * math.prod(layer.input.shape[1:-1])
    if isinstance(layer, layers.Conv2D):
        return kernels * math.prod(layer.output.shape[1:-1])
    if isinstance(layer, once_a_row):
        return kernels
    if isinstance(layer, fusions.TensorFusion):
        return kernels + (layer.input[1].shape[-1] + 1) * layer.units
    if isinstance(layer, fusions.CrossAttention):
        return _attention_multiply_adds(layer, *(x.shape[1] for x in layer.input[:2]))
    if isinstance(layer, fusions.BottleneckFusion):
        lengths = [x.shape[1] for x in layer.input[:2]]
        total = 0
        for modality, length in enumerate(lengths):
            joint = length + layer.n_tokens
            total += length * math.prod(layer.projections[modality].kernel.shape)
            blocks = [pair[modality] for pair in layer.blocks]
            total += sum(_attention_multiply_adds(block, joint, joint) for block in blocks)
        return total
    raise ValueError(f"the products of a {type(layer).__name__} layer are not known")


def _attention_multiply_adds(block, n_query: int, n_context: int) -> int:
    """Return those of a `CrossAttention`: its kernels, the scores and the weighted sums."""
    kernels = {
        weight.path.split("/")[-2]: math.prod(weight.shape)
        for weight in block.weights
        if weight.name == "kernel"
    }
    of_context = kernels["key"] + kernels["value"]
    products = 2 * n_query * n_context * block.num_heads * block.key_dim
    return n_query * (sum(kernels.values()) - of_context) + n_context * of_context + products
