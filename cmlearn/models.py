"""Neural networks as scikit-learn estimators, in Keras 3."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["NeuralClassifier"]


class NeuralClassifier(ClassifierMixin, BaseEstimator):
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
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "a classifier needs at least two classes, but y holds one class only: "
                f"{self.classes_.tolist()[0]!r}"
            )
        random_state = check_random_state(self.random_state)
        train, validation = self._split(codes, random_state)
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

    def predict(self, X) -> np.ndarray:
        """Return the most probable label of every row, (n,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def __getstate__(self) -> dict:
        state = super().__getstate__().copy()
        state.pop("_model", None)
        return state

    def _check_parameters(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must be at least 0 and below 1; "
                f"got {self.validation_fraction!r}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1; got {self.dropout!r}")
        for name in ("batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")

    def _split(self, codes: np.ndarray, random_state) -> tuple:
        """Return the row numbers of the training and of the stratified validation part."""
        rows = np.arange(len(codes))
        if self.validation_fraction == 0:
            return rows, None
        counts = np.bincount(codes)
        if counts.min() < 2:
            raise ValueError(
                f"class {self.classes_.tolist()[counts.argmin()]!r} has one row only, but early "
                "stopping needs at least two of each class, one to train on and one to validate; "
                "add rows, leave the class out, or set validation_fraction=0"
            )
        n_validation = max(round(len(codes) * self.validation_fraction), len(counts))
        n_validation = min(n_validation, len(codes) - len(counts))
        return train_test_split(
            rows, test_size=n_validation, stratify=codes, random_state=random_state
        )

    def _train(self, X, codes, train, validation, random_state) -> None:
        import keras

        seed = int(random_state.randint(2**31 - 1))
        model = self._build(X[train], seed)
        model.compile(
            optimizer=keras.optimizers.Adam(self.learning_rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        callbacks = [_progress_bar(self.epochs)] if self.verbose else []
        if validation is not None:
            callbacks.append(
                keras.callbacks.EarlyStopping(patience=self.patience, restore_best_weights=True)
            )
        history = model.fit(
            _shuffled_batches(X[train], codes[train], self.batch_size, seed),
            validation_data=None if validation is None else (X[validation], codes[validation]),
            epochs=self.epochs,
            shuffle=False,  # the batches are shuffled already, and reproducibly
            callbacks=callbacks,
            verbose=0,
        )
        self.history_ = {name: list(map(float, v)) for name, v in history.history.items()}
        self.best_epoch_ = int(np.argmin(self.history_.get("val_loss", self.history_["loss"])))
        self.config_ = model.to_json()
        self.weights_ = model.get_weights()
        self._model = model

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

    def _keras_model(self):
        """Return the network, rebuilt from its configuration if it was just loaded."""
        if not hasattr(self, "_model"):
            import keras

            self._model = keras.models.model_from_json(self.config_)
            self._model.set_weights(self.weights_)
        return self._model


def _shuffled_batches(X: np.ndarray, codes: np.ndarray, batch_size: int, seed: int):
    """Return the batches as a Keras data set with a random generator of its own.

    Keras's own shuffling takes its seed from the whole process, which fitting a classifier
    should neither depend on nor change.
    """
    import keras

    class ShuffledBatches(keras.utils.PyDataset):
        def __init__(self):
            super().__init__()
            self.rng = np.random.default_rng(seed)
            self.order = self.rng.permutation(len(X))

        def __len__(self):
            return -(-len(X) // batch_size)

        def __getitem__(self, index):
            rows = self.order[index * batch_size : (index + 1) * batch_size]
            return X[rows], codes[rows]

        def on_epoch_end(self):
            self.order = self.rng.permutation(len(X))

    return ShuffledBatches()


def _progress_bar(epochs: int):
    import keras
    from tqdm import tqdm

    bar = tqdm(total=epochs, desc="training", unit="epoch", disable=None)

    def show(epoch, logs):
        bar.set_postfix({name: f"{value:.3f}" for name, value in logs.items()}, refresh=False)
        bar.update()

    return keras.callbacks.LambdaCallback(on_epoch_end=show, on_train_end=lambda logs: bar.close())
