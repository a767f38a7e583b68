"""What the trainable classifiers share: labels, the validation part, training and the state."""

import contextlib
import random
import warnings
from collections.abc import Iterator
from numbers import Integral

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split


class KerasClassifier(ClassifierMixin, BaseEstimator):
    """A network whose whole state is ``classes_``, ``config_`` and ``weights_``.

    A class that builds on it has ``predict_proba`` and the parameters that
    `check_training_parameters` checks.
    """

    def predict(self, X) -> np.ndarray:
        """Return the most probable label of every row, (n,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def __getstate__(self) -> dict:
        state = super().__getstate__().copy()
        state.pop("_model", None)
        return state

    def _encode_labels(self, y) -> np.ndarray:
        """Keep the labels in ``classes_`` and return the row's number in them, (n,) int64."""
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "a classifier needs at least two classes, but y holds one class only: "
                f"{self.classes_.tolist()[0]!r}"
            )
        return codes

    def _keep(self, model) -> None:
        self.config_ = model.to_json()
        self.weights_ = model.get_weights()
        self._model = model

    def _keras_model(self):
        """Return the network, rebuilt from its configuration if it was just loaded."""
        if not hasattr(self, "_model"):
            import keras

            import cmlearn.layers  # noqa: F401 -- the layers that config_ may name

            self._model = keras.models.model_from_json(self.config_)
            self._model.set_weights(self.weights_)
        return self._model


def check_training_parameters(estimator) -> None:
    """Refuse a share outside [0, 1) or a count below 1, naming the parameter."""
    for name in ("validation_fraction", "dropout", "modality_dropout"):
        value = getattr(estimator, name, 0)
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1; got {value!r}")
    for name in ("batch_size", "epochs", "patience", "units", "image_size", "embedding_width"):
        value = getattr(estimator, name, 1)
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
    if estimator.learning_rate is not None and not estimator.learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0; got {estimator.learning_rate!r}")


def split_off_validation(codes: np.ndarray, classes: np.ndarray, fraction: float, random_state):
    """Return the row numbers of the training and of the validation part.

    Parameters
    ----------
    codes : ndarray of shape (n,), int
        Class of each row.
    classes : ndarray of shape (n_classes,)
        The labels, to name a class in an error.
    fraction : float in [0, 1)
        Share of the rows to hold out; 0 for none.
    random_state : RandomState
        Where the choice comes from.

    Returns
    -------
    train, validation : ndarray of int
        At least one row of every class on both sides; ``validation`` is None if `fraction` is 0.

    Raises
    ------
    ValueError
        If a class has a single row.
    """
    rows = np.arange(len(codes))
    if fraction == 0:
        return rows, None
    counts = np.bincount(codes)
    if counts.min() < 2:
        raise ValueError(
            f"class {classes.tolist()[counts.argmin()]!r} has one row only, but early "
            "stopping needs at least two of each class, one to train on and one to validate; "
            "add rows, leave the class out, or set validation_fraction=0"
        )
    n_validation = max(round(len(codes) * fraction), len(counts))
    n_validation = min(n_validation, len(codes) - len(counts))
    return train_test_split(rows, test_size=n_validation, stratify=codes, random_state=random_state)


def take_rows(data, rows: np.ndarray | slice):
    """Return some rows of every array in a nest of tuples and dicts."""
    import keras

    return keras.tree.map_structure(lambda values: values[rows], data)


def train_network(
    model,
    data: tuple,
    train: np.ndarray,
    validation: np.ndarray | None,
    *,
    batch_size: int,
    epochs: int,
    patience: int,
    seed: int,
    verbose: bool = False,
    label: str = "",
    checkpoint=None,
) -> dict[str, list[float]]:
    """Train a compiled network, which ends with the weights of its best epoch.

    Parameters
    ----------
    model : keras.Model
        The network.
    data : tuple (inputs, targets) or (inputs, targets, sample_weights)
        Arrays, or dicts of arrays, of n rows each.
    train, validation : ndarray of int
        Row numbers; without validation rows all epochs are trained and the last weights are kept.
    batch_size, epochs, patience : int
        Rows a step; most epochs; epochs without a lower validation loss before training stops.
    seed : int
        Decides the order of the rows.
    verbose : bool
        Show a progress bar in a terminal.
    label : str
        Name of the output that the labels belong to, where there is more than one.
    checkpoint : Checkpoint, optional
        Keeps the state of every epoch on disk, and may hold the epochs of an earlier run.

    Returns
    -------
    dict of str to list of float
        ``loss``, ``accuracy`` and, with validation rows, ``val_loss`` and ``val_accuracy``.
    """
    import keras

    prefix = f"{label}_" if label else ""
    callbacks = [progress_bar(epochs)] if verbose else []
    stopping = None
    if validation is not None:
        stopping = keras.callbacks.EarlyStopping(
            f"val_{prefix}loss", patience=patience, mode="min", restore_best_weights=True
        )
        callbacks.append(stopping)
    first_epoch = 0
    if checkpoint is not None:
        first_epoch = checkpoint.restore(model, epochs)
        epochs = first_epoch if checkpoint.stopped else epochs
        callbacks.append(checkpoint.callback(stopping))
    history = model.fit(
        shuffled_batches(take_rows(data, train), batch_size, seed, first_epoch),
        validation_data=None if validation is None else take_rows(data, validation),
        initial_epoch=first_epoch,
        epochs=epochs,
        shuffle=False,  # the batches are shuffled already, and reproducibly
        callbacks=callbacks,
        verbose=0,
    ).history
    if checkpoint is not None:
        history = checkpoint.history
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    keras_names = [name.replace("val_", f"val_{prefix}") for name in names]
    keras_names[:2] = [prefix + name for name in names[:2]]
    return {
        name: list(map(float, history[found]))
        for name, found in zip(names, keras_names, strict=True)
        if found in history
    }


def shuffled_batches(data: tuple, batch_size: int, seed: int, first_epoch: int = 0):
    """Return the batches as a Keras data set with a random generator of its own.

    Keras's own shuffling takes its seed from the whole process, which fitting a classifier
    should neither depend on nor change. The order of an epoch is the same whether the epochs
    before it were trained now or in an earlier run.
    """
    import keras

    n_rows = len(keras.tree.flatten(data)[0])

    class ShuffledBatches(keras.utils.PyDataset):
        def __init__(self):
            super().__init__()
            self.rng = np.random.default_rng(seed)
            for _ in range(first_epoch + 1):
                self.order = self.rng.permutation(n_rows)

        def __len__(self):
            return -(-n_rows // batch_size)

        def __getitem__(self, index):
            return take_rows(data, self.order[index * batch_size : (index + 1) * batch_size])

        def on_epoch_end(self):
            self.order = self.rng.permutation(n_rows)

    return ShuffledBatches()


def in_batches(model, inputs, batch_size: int = 256):
    """Return what the network gives for many rows, as it does when it does not train."""
    import keras

    n_rows = len(keras.tree.flatten(inputs)[0])
    batches = []
    with warnings.catch_warnings():
        # Keras takes attention to a sequence of one position for a mistake.
        warnings.filterwarnings("ignore", "You are using a softmax over axis")
        for start in range(0, n_rows, batch_size):
            batch = take_rows(inputs, slice(start, start + batch_size))
            # Called rather than model.predict, which would compile a function for each network.
            outputs = model(batch, training=False)
            batches.append(keras.tree.map_structure(keras.ops.convert_to_numpy, outputs))
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)


@contextlib.contextmanager
def layer_seeds(seed: int) -> Iterator[None]:
    """Let `seed` decide the seed of every layer that is made inside and is given none.

    Keras draws those seeds from Python's own generator, whose state is put back afterwards.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def progress_bar(epochs: int):
    import keras
    from tqdm import tqdm

    bar = tqdm(total=epochs, desc="training", unit="epoch", disable=None)

    def show(epoch, logs):
        bar.set_postfix({name: f"{value:.3f}" for name, value in logs.items()}, refresh=False)
        bar.update()

    return keras.callbacks.LambdaCallback(on_epoch_end=show, on_train_end=lambda logs: bar.close())
