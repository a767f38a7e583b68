"""Features of one modality made from the other: for unseen classes and missing modalities."""

from numbers import Integral

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin, clone
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from cmlearn._training import layer_seeds
from cmlearn.fusion import feature_table, stack_features

__all__ = [
    "FeatureGAN",
    "ModalityImputer",
    "NearestPrototype",
    "RidgeGenerator",
    "generate_features",
]


class FeatureGAN(RegressorMixin, BaseEstimator):
    """Conditional Wasserstein GAN with gradient penalty, on feature vectors.

    A generator makes the features of one modality from those of the other and from noise. A critic
    learns to tell its output from real features, and the generator learns to please the critic.
    Where a regression gives the one most expected vector, the generator gives a different one
    each time, spread as real ones are.

    Parameters
    ----------
    noise_width : int
        How many normally distributed random numbers the generator is given.
    hidden_units : tuple of int
        Width of each hidden layer (LeakyReLU) of the generator, and of the critic.
    gradient_penalty : float
        Weight of the penalty that keeps the slope of the critic near 1.
    critic_steps : int
        Steps of the critic before each step of the generator.
    learning_rate : float
        Step size of the two Adam optimisers.
    batch_size : int
        Rows a step, drawn at random.
    steps : int
        Steps of the generator. There is no early stopping: neither loss says how good the
        generated features are.
    n_draws : int
        How many draws `predict` averages.
    verbose : bool
        Show a progress bar over the steps; it stays quiet when the output is not a terminal.
    random_state : int, RandomState instance or None
        Seed of the initial weights, the noise and the batches.

    Attributes
    ----------
    history_ : dict of str to list of float
        ``critic`` and ``generator``: the losses of every step of the generator (that of the critic
        averaged over its own steps). The critic's, with its sign changed, estimates the distance
        between generated and real features, in standard deviations.
    condition_scaler_, target_scaler_ : StandardScaler
        Mean and standard deviation of every feature.
    config_ : str
        The generator's layers, as Keras's JSON.
    weights_ : list of ndarray
        Its weights. The critic is not kept.

    Notes
    -----
    The losses and the gradient of the critic by its input are written out in
    :mod:`cmlearn._gan`.

    On little data expect :class:`RidgeGenerator` to be as good or better: try it first.

    References
    ----------
    Arjovsky, Chintala and Bottou, "Wasserstein GAN", ICML 2017,
    https://arxiv.org/abs/1701.07875;
    the penalty: Gulrajani, Ahmed, Arjovsky, Dumoulin and Courville, "Improved training of
    Wasserstein GANs", NeurIPS 2017, https://arxiv.org/abs/1704.00028;
    image features from class descriptions (f-WGAN; its classification loss is left out): Xian,
    Lorenz, Schiele and Akata, "Feature generating networks for zero-shot learning", CVPR 2018,
    https://arxiv.org/abs/1712.00981
    """

    def __init__(
        self,
        *,
        noise_width=16,
        hidden_units=(256,),
        gradient_penalty=10.0,
        critic_steps=5,
        learning_rate=1e-3,
        batch_size=64,
        steps=500,
        n_draws=16,
        verbose=False,
        random_state=None,
    ):
        self.noise_width = noise_width
        self.hidden_units = hidden_units
        self.gradient_penalty = gradient_penalty
        self.critic_steps = critic_steps
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.steps = steps
        self.n_draws = n_draws
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X, y):
        """Train on pairs: ``X`` (n, d_condition) as given, ``y`` (n, d_target) to be generated."""
        self._check_parameters()
        X, y = _check_table(X, "X"), _check_table(y, "y")
        _check_pairs(X, y)
        random_state = check_random_state(self.random_state)
        self.condition_scaler_ = StandardScaler().fit(X)
        self.target_scaler_ = StandardScaler().fit(y)
        conditions = self.condition_scaler_.transform(X).astype(np.float32)
        targets = self.target_scaler_.transform(y).astype(np.float32)
        self._train(conditions, targets, int(random_state.randint(2**31 - 1)))
        return self

    def sample(self, X, random_state=None) -> np.ndarray:
        """Return one draw for every row.

        Parameters
        ----------
        X : array-like of shape (n, d_condition)
            Features that are given.
        random_state : int, RandomState instance or None
            Seed of the noise.

        Returns
        -------
        ndarray of shape (n, d_target), float32
        """
        check_is_fitted(self, "weights_")
        import keras

        X = _check_table(X, "X", width=self.condition_scaler_.n_features_in_)
        conditions = self.condition_scaler_.transform(X).astype(np.float32)
        noise = check_random_state(random_state).normal(size=(len(X), self.noise_width))
        generator = self._generator()
        generated = generator({"noise": noise.astype(np.float32), "condition": conditions})
        generated = keras.ops.convert_to_numpy(generated)
        return self.target_scaler_.inverse_transform(generated).astype(np.float32)

    def predict(self, X) -> np.ndarray:
        """Return the mean of ``n_draws`` draws, the same every time, (n, d_target) float32."""
        return np.mean([self.sample(X, random_state=draw) for draw in range(self.n_draws)], axis=0)

    def __getstate__(self) -> dict:
        state = super().__getstate__().copy()
        state.pop("_model", None)
        return state

    def _check_parameters(self) -> None:
        for name in ("noise_width", "critic_steps", "batch_size", "steps", "n_draws"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
        if not self.hidden_units:
            raise ValueError("hidden_units needs the width of at least one hidden layer; got none")
        if not self.gradient_penalty >= 0:
            raise ValueError(f"gradient_penalty must be at least 0; got {self.gradient_penalty!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0; got {self.learning_rate!r}")

    def _train(self, conditions: np.ndarray, targets: np.ndarray, seed: int) -> None:
        import keras
        from tqdm import trange

        generator, critic_training, generator_training = self._build(conditions, targets, seed)
        rng = np.random.default_rng(seed)
        zeros = np.zeros((self.batch_size, 1), np.float32)  # the models' outputs are their losses

        def drawn(*shape):
            rows = rng.integers(len(targets), size=shape)
            noise = rng.normal(size=(*shape, self.noise_width)).astype(np.float32)
            return rows, {"noise": noise, "condition": conditions[rows]}

        self.history_ = {"critic": [], "generator": []}
        for _ in trange(self.steps, desc="training", disable=None if self.verbose else True):
            critic_losses = []
            for _ in range(self.critic_steps):
                rows, inputs = drawn(self.batch_size)
                judged = {
                    "real": targets[rows],
                    "generated": keras.ops.convert_to_numpy(generator(inputs)),
                    "condition": inputs["condition"],
                    "mix": rng.random((self.batch_size, 1), dtype=np.float32),
                }
                critic_losses.append(critic_training.train_on_batch(judged, zeros))
            generator_training.critic.set_weights(critic_training.critic.get_weights())
            _, inputs = drawn(self.batch_size)
            self.history_["generator"].append(
                float(generator_training.train_on_batch(inputs, zeros))
            )
            self.history_["critic"].append(float(np.mean(critic_losses)))
        self.config_ = generator.to_json()
        self.weights_ = generator.get_weights()
        self._model = generator

    def _build(self, conditions: np.ndarray, targets: np.ndarray, seed: int) -> tuple:
        from cmlearn._gan import Critic, CriticTraining, GeneratorTraining, build_generator

        widths = targets.shape[1], conditions.shape[1]
        shapes = [(None, width) for width in widths]
        with layer_seeds(seed):
            generator = build_generator(*widths, self.noise_width, self.hidden_units)
            critic, frozen_critic = Critic(self.hidden_units), Critic(self.hidden_units)
            critic.build(shapes)
            frozen_critic.build(shapes)
        return (
            generator,
            self._compiled(CriticTraining(critic, self.gradient_penalty)),
            self._compiled(GeneratorTraining(generator, frozen_critic)),
        )

    def _compiled(self, training):
        import keras

        # Little memory, because what one player should do changes as the other moves: the paper's.
        optimizer = keras.optimizers.Adam(self.learning_rate, beta_1=0.0, beta_2=0.9)
        training.compile(optimizer, loss=lambda _, losses: losses)
        return training

    def _generator(self):
        """Return the generator, rebuilt from its configuration if it was just loaded."""
        if not hasattr(self, "_model"):
            import keras

            self._model = keras.models.model_from_json(self.config_)
            self._model.set_weights(self.weights_)
        return self._model


class RidgeGenerator(RegressorMixin, BaseEstimator):
    """Ridge regression from one modality to the other, with the spread of its errors.

    The baseline that a GAN has to beat: scikit-learn's ridge regression on standardised features,
    with a penalty found by leave-one-out, says what to expect. A draw adds the error that was made
    at a training row picked at random, so that draws are spread about as real features are, though
    equally for all conditions.

    Parameters
    ----------
    alphas : tuple of float
        The penalties to choose from.

    Attributes
    ----------
    condition_scaler_ : StandardScaler
        Mean and standard deviation of every feature that is given.
    ridge_ : RidgeCV
        The regression.
    errors_ : ndarray of shape (n, d_target), float32
        What it misses of the training rows.

    References
    ----------
    Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems",
    Technometrics 12, 1970, https://doi.org/10.1080/00401706.1970.10488634
    """

    def __init__(self, alphas=(1.0, 10.0, 100.0, 1000.0)):
        self.alphas = alphas

    def fit(self, X, y):
        """Fit on pairs: ``X`` (n, d_condition) as given, ``y`` (n, d_target) to be generated."""
        X, y = _check_table(X, "X"), _check_table(y, "y")
        _check_pairs(X, y)
        self.condition_scaler_ = StandardScaler().fit(X)
        self.ridge_ = RidgeCV(list(self.alphas)).fit(self.condition_scaler_.transform(X), y)
        self.errors_ = (y - self.predict(X)).astype(np.float32)
        return self

    def predict(self, X) -> np.ndarray:
        """Return the expected features, (n, d_target) float32."""
        check_is_fitted(self, "ridge_")
        X = _check_table(X, "X", width=self.condition_scaler_.n_features_in_)
        expected = self.ridge_.predict(self.condition_scaler_.transform(X))
        return expected.reshape(len(X), -1).astype(np.float32)

    def sample(self, X, random_state=None) -> np.ndarray:
        """Return one draw for every row, (n, d_target) float32."""
        expected = self.predict(X)
        rows = check_random_state(random_state).randint(len(self.errors_), size=len(expected))
        return expected + self.errors_[rows]


class NearestPrototype(RegressorMixin, BaseEstimator):
    """Copy the mean features of the nearest training class: the baseline that cannot surprise.

    Attributes
    ----------
    prototypes_ : ndarray of shape (n_prototypes, d_condition), float64
        Mean of the given features of each class.
    neighbors_ : KNeighborsRegressor
        Knows the mean targets of the nearest one, by the cosine.

    Examples
    --------
    >>> text, image = [[1, 0], [0, 1], [1, 1]], [[1.0], [2.0], [4.0]]
    >>> copied = NearestPrototype().fit(text, image, ["cup", "hat", "hat"]).predict([[2, 5]])
    >>> copied.tolist()
    [[3.0]]
    """

    def fit(self, X, y, labels=None):
        """Average the pairs of each class.

        Parameters
        ----------
        X, y : array-like of shape (n, d_condition) and (n, d_target)
            Features that are given, and that are to be copied.
        labels : array-like of shape (n,), optional
            Class of each pair. Without it each pair is a class of its own.
        """
        X, y = _check_table(X, "X"), _check_table(y, "y")
        _check_pairs(X, y)
        labels = np.arange(len(X)) if labels is None else labels
        check_consistent_length(X, labels)
        _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        belongs = np.eye(len(counts))[:, codes] / counts[:, None]
        self.prototypes_ = belongs @ X
        self.neighbors_ = KNeighborsRegressor(n_neighbors=1, metric="cosine")
        self.neighbors_.fit(self.prototypes_, belongs @ y)
        return self

    def predict(self, X) -> np.ndarray:
        """Return the mean features of the nearest class, (n, d_target) float32."""
        check_is_fitted(self, "neighbors_")
        X = _check_table(X, "X", width=self.prototypes_.shape[1])
        return self.neighbors_.predict(X).astype(np.float32)


def generate_features(
    generator, X, y, *, n_per_class: int = 100, random_state=None
) -> tuple[np.ndarray, np.ndarray]:
    """Make training rows of classes of which one modality is known only.

    To classify images of a class that has descriptions but no picture: fit a generator from texts
    to images on the pairs of other classes, generate images for the descriptions, and train any
    classifier on the real and the generated features.

    Parameters
    ----------
    generator : estimator
        A fitted `FeatureGAN`, `RidgeGenerator`, `NearestPrototype` or any regressor. Its
        ``sample`` is used where it has one, else its ``predict``, which gives equal rows for
        equal descriptions.
    X : array-like of shape (n, d_condition)
        Encoded descriptions.
    y : array-like of shape (n,)
        The class that each describes.
    n_per_class : int
        How many rows to make of each class; its descriptions take turns.
    random_state : int, RandomState instance or None
        Seed of the draws.

    Returns
    -------
    features : ndarray of shape (n_classes * n_per_class, d_target)
        Generated features.
    labels : ndarray of shape (n_classes * n_per_class,)
        Their classes.

    References
    ----------
    Xian, Lorenz, Schiele and Akata, "Feature generating networks for zero-shot learning",
    CVPR 2018, https://arxiv.org/abs/1712.00981

    Examples
    --------
    >>> generator = NearestPrototype().fit([[1, 0], [0, 1]], [[1.0], [2.0]])
    >>> features, labels = generate_features(
    ...     generator, [[1, 0.1], [0.3, 2]], ["mug", "cap"], n_per_class=2
    ... )
    >>> labels.tolist(), features.ravel().tolist()
    (['cap', 'cap', 'mug', 'mug'], [2.0, 2.0, 1.0, 1.0])
    """
    if not isinstance(n_per_class, Integral) or n_per_class < 1:
        raise ValueError(f"n_per_class must be a whole number of at least 1; got {n_per_class!r}")
    X, y = _check_table(X, "X"), np.asarray(y)
    check_consistent_length(X, y)
    classes = np.unique(y)
    rows = np.concatenate([np.resize(np.flatnonzero(y == label), n_per_class) for label in classes])
    if hasattr(generator, "sample"):
        features = generator.sample(X[rows], random_state=random_state)
    else:
        features = generator.predict(X[rows])
    return features, np.repeat(classes, n_per_class)


class ModalityImputer(TransformerMixin, BaseEstimator):
    """Fill a missing image with features expected from the text, and the other way round.

    Parameters
    ----------
    to_image, to_text : regressor, optional
        Learn the image features from the text features, and the text features from the image
        features, (n, d) each; None for :class:`RidgeGenerator`.

    Attributes
    ----------
    to_image_, to_text_ : regressor
        The same, fitted on the pairs that are complete.
    image_width_, text_width_ : int
        Width of the features.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(8.0).reshape(4, 2)
    >>> table = feature_table(image=image, text=[[0.0], [1.0], [2.0], None])
    >>> full = ModalityImputer(to_text=NearestPrototype()).fit_transform(table)
    >>> full["text"].isna().any()
    np.False_
    """

    def __init__(self, to_image=None, to_text=None):
        self.to_image = to_image
        self.to_text = to_text

    def fit(self, X, y=None):
        """Learn from the complete pairs of a feature table ``X`` of columns image and text."""
        has_image, has_text = X["image"].notna().to_numpy(), X["text"].notna().to_numpy()
        complete = np.flatnonzero(has_image & has_text)
        if len(complete) < 2:
            raise ValueError(
                f"filling in is learned from at least two complete pairs, but of {len(X)} rows "
                f"{has_image.sum()} have an image, {has_text.sum()} a text and {len(complete)} both"
            )
        image, text = (_vectors(X[name].iloc[complete], name) for name in ("image", "text"))
        self.image_width_, self.text_width_ = image.shape[1], text.shape[1]
        to_image, to_text = (
            RidgeGenerator() if part is None else clone(part)
            for part in (self.to_image, self.to_text)
        )
        self.to_image_ = to_image.fit(text, image)
        self.to_text_ = to_text.fit(image, text)
        return self

    def transform(self, X):
        """Return the feature table ``X`` with nothing missing; what is there stays as it is.

        Raises
        ------
        ValueError
            If a row has neither image nor text.
        """
        check_is_fitted(self, "to_image_")
        neither = np.flatnonzero(X["image"].isna() & X["text"].isna())
        if len(neither):
            raise ValueError(
                f"{len(neither)} of {len(X)} rows have neither image nor text, first row "
                f"{neither[0]}: there is nothing to fill them from, so leave them out"
            )
        image, has_image = stack_features(X["image"], cell_shape=(self.image_width_,))
        text, has_text = stack_features(X["text"], cell_shape=(self.text_width_,))
        if not has_image.all():
            image[~has_image] = self.to_image_.predict(text[~has_image])
        if not has_text.all():
            text[~has_text] = self.to_text_.predict(image[~has_text])
        return feature_table(image=image, text=text).set_index(X.index)


def _vectors(column, name: str) -> np.ndarray:
    features, _ = stack_features(column)
    if features.ndim != 2:
        raise ValueError(
            f"{name!r} holds sequences, cells of shape (length, {features.shape[2]}); average each "
            "to one vector (d,) before filling in"
        )
    return features


def _check_table(table, name: str, *, width: int | None = None) -> np.ndarray:
    table = check_array(table, dtype=np.float64, ensure_all_finite=False, input_name=name)
    bad_rows = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad_rows):
        raise ValueError(
            f"{name} holds NaN or infinite values in {len(bad_rows)} of {len(table)} rows, first "
            f"in row {bad_rows[0]}; leave those rows out"
        )
    if width is not None and table.shape[1] != width:
        raise ValueError(f"{name} is {table.shape[1]} wide; in training it was {width}")
    return table


def _check_pairs(X: np.ndarray, y: np.ndarray) -> None:
    if len(X) != len(y):
        raise ValueError(
            f"every row of X needs its row of y, but X has {len(X)} rows and y has {len(y)}"
        )
    if len(X) < 2:
        raise ValueError("a generator learns from at least two pairs; got one")
