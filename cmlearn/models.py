"""Neural networks as scikit-learn estimators, in Keras 3."""

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from cmlearn._training import (
    KerasClassifier,
    check_training_parameters,
    split_off_validation,
    train_network,
)

__all__ = ["NeuralClassifier"]


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
