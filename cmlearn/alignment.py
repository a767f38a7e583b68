"""Aligning images and texts in one space: retrieval, zero-shot classes, mismatched pairs."""

from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigh
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from cmlearn._folds import check_folds, stratified_folds
from cmlearn._training import (
    check_training_parameters,
    layer_seeds,
    progress_bar,
    shuffled_batches,
    take_rows,
)
from cmlearn.fusion import stack_features

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ContrastiveAlignment",
    "MismatchRobustClassifier",
    "RegularizedCCA",
    "ZeroShotClassifier",
    "alignment_scores",
    "hide_mismatched",
    "match_ranks",
    "median_rank",
    "recall_at_k",
    "retrieval_report",
]

NEIGHBOURS = 10  # as many as in the paper of `alignment_scores`
VALIDATION_BATCH = 1024  # pairs compared with each other at once, (1024, 1024) similarities


# --------------------------------------------------------------------------------------
# Two alignments: by correlation, and by contrast
# --------------------------------------------------------------------------------------


class RegularizedCCA(BaseEstimator):
    r"""Canonical correlation analysis with a ridge on both covariances.

    Finds directions :math:`a_k` of the image features and :math:`b_k` of the text features along
    which the two modalities of a pair vary together as much as possible.

    Parameters
    ----------
    n_components : int or None
        Pairs of directions; None for as many as there can be: the smaller of the two widths and
        of the number of training pairs less one.
    regularization : float
        The ridge, in units of the mean variance of a modality's features, so that it means the
        same whatever their scale. With 0 it is the classical analysis, which needs more pairs
        than features and finds perfect correlations where there are none if it has only a few
        more.

    Attributes
    ----------
    correlations_ : ndarray of shape (n_components,), float64
        Covariance of each pair of canonical variates, descending. Without a ridge these are the
        canonical correlations; with one they are smaller.
    image_weights_, text_weights_ : ndarray of shape (d, n_components), float64
        The directions.
    image_mean_, text_mean_ : ndarray of shape (d,), float64
        The features' means, which are subtracted.

    Notes
    -----
    With covariances :math:`S_{vv}, S_{tt}`, cross-covariance :math:`S_{vt}` and ridges
    :math:`r_v, r_t`, the canonical correlations and directions follow from a singular value
    decomposition,

    .. math::

        (S_{vv} + r_v I)^{-1/2}\, S_{vt}\, (S_{tt} + r_t I)^{-1/2} = U \Sigma V^\top, \qquad
        A = (S_{vv} + r_v I)^{-1/2} U, \quad B = (S_{tt} + r_t I)^{-1/2} V.

    The similarity of an image and a text is the cosine of their variates after each variate is
    multiplied by its correlation: where the correlation is :math:`\rho`, an image's variate
    :math:`u` foretells no more than :math:`\rho u` of its text's.

    References
    ----------
    Hotelling, "Relations between two sets of variates", Biometrika 28, 1936,
    https://doi.org/10.1093/biomet/28.3-4.321;
    the ridge: Vinod, "Canonical ridge and econometrics of joint production", Journal of
    Econometrics 4, 1976, https://doi.org/10.1016/0304-4076(76)90010-5;
    weights for retrieval: Gong, Ke, Isard and Lazebnik, "A multi-view embedding space for
    modeling internet images, tags, and their semantics", IJCV 106, 2014,
    https://doi.org/10.1007/s11263-013-0658-4

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> shared = rng.normal(size=(200, 2))
    >>> image, text = shared @ rng.normal(size=(2, 6)), shared @ rng.normal(size=(2, 4))
    >>> image += 0.1 * rng.normal(size=image.shape)
    >>> cca = RegularizedCCA(3, regularization=0.01).fit(image, text)
    >>> cca.correlations_.round(1)
    array([1., 1., 0.])
    >>> cca.similarity(image[:3], text[:4]).shape
    (3, 4)
    """

    def __init__(self, n_components=None, *, regularization=0.1):
        self.n_components = n_components
        self.regularization = regularization

    def fit(self, image, text):
        """Find the directions.

        Parameters
        ----------
        image, text : array-like of shape (n, d_image) and (n, d_text)
            Features of n pairs.

        Raises
        ------
        ValueError
            If there are fewer pairs or features than components, or if a covariance cannot be
            inverted because `regularization` is 0.
        """
        image, text = _check_pairs(image, text)
        n_components = self._check_parameters(image, text)
        self.image_mean_, self.text_mean_ = image.mean(axis=0), text.mean(axis=0)
        image, text = image - self.image_mean_, text - self.text_mean_
        image_whitening = self._whitening(image, "image")
        text_whitening = self._whitening(text, "text")
        covariance = image.T @ text / (len(image) - 1)
        left, self.correlations_, right = np.linalg.svd(
            image_whitening.T @ covariance @ text_whitening, full_matrices=False
        )
        self.correlations_ = self.correlations_[:n_components]
        self.image_weights_ = image_whitening @ left[:, :n_components]
        self.text_weights_ = text_whitening @ right.T[:, :n_components]
        # A pair of directions may be turned round together: the largest weight is made positive.
        largest = np.abs(self.image_weights_).argmax(axis=0)
        signs = np.sign(self.image_weights_[largest, np.arange(n_components)])
        self.image_weights_ *= signs
        self.text_weights_ *= signs
        return self

    def transform_image(self, image) -> np.ndarray:
        """Return the canonical variates of image features (n, d_image): (n, n_components)."""
        check_is_fitted(self, "image_weights_")
        image = _check_features(image, "image", width=len(self.image_mean_))
        return (image - self.image_mean_) @ self.image_weights_

    def transform_text(self, text) -> np.ndarray:
        """Return the canonical variates of text features (n, d_text): (n, n_components)."""
        check_is_fitted(self, "text_weights_")
        text = _check_features(text, "text", width=len(self.text_mean_))
        return (text - self.text_mean_) @ self.text_weights_

    def similarity(self, image, text) -> np.ndarray:
        """Return how well each image fits each text, (n_images, n_texts), from -1 to 1."""
        return cosine_similarity(
            self.transform_image(image) * self.correlations_,
            self.transform_text(text) * self.correlations_,
        )

    def _check_parameters(self, image, text) -> int:
        if not self.regularization >= 0:
            raise ValueError(f"regularization must be at least 0; got {self.regularization!r}")
        most = min(len(image) - 1, image.shape[1], text.shape[1])
        n_components = most if self.n_components is None else self.n_components
        if not isinstance(n_components, Integral) or not 1 <= n_components <= most:
            raise ValueError(
                f"n_components must be a whole number from 1 to {most} for {len(image)} pairs of "
                f"{image.shape[1]} image and {text.shape[1]} text features (one fewer than the "
                f"pairs, and no more than the features); got {n_components!r}"
            )
        return n_components

    def _whitening(self, centred: np.ndarray, name: str) -> np.ndarray:
        """Return W with W.T @ (covariance + ridge) @ W = I."""
        covariance = centred.T @ centred / (len(centred) - 1)
        ridge = self.regularization * np.trace(covariance) / len(covariance)
        variances, directions = eigh(covariance + ridge * np.eye(len(covariance)))
        if variances[0] <= variances[-1] * len(covariance) * np.finfo(float).eps:
            raise ValueError(
                f"the covariance of the {name} features cannot be inverted, because some of the "
                f"{len(covariance)} features follow from the others in these {len(centred)} pairs; "
                f"set regularization above {self.regularization}, or leave constant features out"
            )
        return directions / np.sqrt(variances)


class ContrastiveAlignment(BaseEstimator):
    r"""Two projections, trained in Keras so that a pair's image and text lie close together.

    Each modality has a tower: hidden layers, if any, and a projection to the common space. In
    every batch each image is compared with each text, and training raises the cosine of those
    that belong together above that of those that do not.

    Parameters
    ----------
    n_components : int
        Width of the common space.
    loss : {"infonce", "siglip"}
        ``infonce`` asks which text of the batch belongs to an image, and the other way round;
        ``siglip`` asks of every image and text whether they belong together.
    hidden_units : tuple of int
        Width of each tower's hidden layers (ReLU); ``()`` for a linear projection.
    dropout : float in [0, 1)
        Share of the features, and of each hidden layer's outputs, set to zero in training.
    learning_rate : float
        Step size of the Adam optimiser.
    batch_size : int
        Pairs a step. The more there are, the harder it is to find the right one.
    epochs : int
        Most passes over the training part.
    patience : int
        Epochs without a lower validation loss after which training stops. The weights of the
        best epoch are restored.
    validation_fraction : float in [0, 1)
        Share of the pairs, drawn at random, that is held out to decide when to stop. With 0 all
        pairs are trained on for all ``epochs``.
    verbose : bool
        Show a progress bar over the epochs; it stays quiet when the output is not a terminal.
    random_state : int, RandomState instance or None
        Seed of the split, the initial weights, the dropout and the order of the batches.

    Attributes
    ----------
    temperature_ : float
        What the cosines are divided by, as training left it.
    history_ : dict of str to list of float
        ``loss`` and ``val_loss`` of every epoch (nats a row of the batch).
    best_epoch_ : int
        Index of the epoch whose weights were kept.
    image_scaler_, text_scaler_ : StandardScaler
        Mean and standard deviation of every feature.
    config_ : str
        The network's layers, as Keras's JSON.
    weights_ : list of ndarray
        Its weights.

    Notes
    -----
    With :math:`s_{ij}` the cosine of image i and text j over the temperature :math:`\tau`, the
    losses of a batch of n pairs are

    .. math::

        L_\text{InfoNCE} = -\frac{1}{2n} \sum_i \Big[
            \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}} +
            \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}} \Big], \qquad
        L_\text{SigLIP} = \frac{1}{n} \sum_{i,j} \log \big(1 + e^{-z_{ij} (s_{ij} + b)} \big),

    where :math:`z_{ij}` is 1 for a pair and -1 otherwise, and the bias b is learned. Images that
    share a text, word for word, match each other's; otherwise every other text of the batch
    counts as wrong, even if it happens to mean the same.

    References
    ----------
    van den Oord, Li and Vinyals, "Representation learning with contrastive predictive coding",
    2018, https://arxiv.org/abs/1807.03748;
    Radford et al., "Learning transferable visual models from natural language supervision",
    ICML 2021, https://arxiv.org/abs/2103.00020;
    Zhai, Mustafa, Kolesnikov and Beyer, "Sigmoid loss for language image pre-training",
    ICCV 2023, https://arxiv.org/abs/2303.15343
    """

    def __init__(
        self,
        n_components=64,
        *,
        loss="infonce",
        hidden_units=(256,),
        dropout=0.5,
        learning_rate=1e-3,
        batch_size=256,
        epochs=200,
        patience=10,
        validation_fraction=0.15,
        verbose=False,
        random_state=None,
    ):
        self.n_components = n_components
        self.loss = loss
        self.hidden_units = hidden_units
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, image, text):
        """Train both towers.

        Parameters
        ----------
        image, text : array-like of shape (n, d_image) and (n, d_text)
            Features of n pairs.

        Raises
        ------
        ValueError
            If the lengths differ, a value is not finite, there are too few pairs to hold some
            out, or a parameter is not one of those above.
        """
        self._check_parameters()
        image, text = _check_pairs(image, text)
        random_state = check_random_state(self.random_state)
        train, validation = self._split(len(image), random_state)
        self.image_scaler_ = StandardScaler().fit(image[train])
        self.text_scaler_ = StandardScaler().fit(text[train])
        self._train(self._scale(image, text), train, validation, random_state)
        return self

    def transform_image(self, image) -> np.ndarray:
        """Return image features (n, d_image) as unit vectors, (n, n_components) float32."""
        return self._transform(image, "image")

    def transform_text(self, text) -> np.ndarray:
        """Return text features (n, d_text) as unit vectors, (n, n_components) float32."""
        return self._transform(text, "text")

    def similarity(self, image, text) -> np.ndarray:
        """Return the cosine of each image with each text, (n_images, n_texts)."""
        return self.transform_image(image) @ self.transform_text(text).T

    def __getstate__(self) -> dict:
        state = super().__getstate__().copy()
        state.pop("_model", None)
        return state

    def _check_parameters(self) -> None:
        check_training_parameters(self)
        if self.loss not in ("infonce", "siglip"):
            raise ValueError(f'loss must be "infonce" or "siglip"; got {self.loss!r}')
        if not isinstance(self.n_components, Integral) or self.n_components < 1:
            raise ValueError(f"n_components must be a whole number ≥ 1; got {self.n_components!r}")

    def _split(self, n_pairs: int, random_state) -> tuple:
        """Return the row numbers of the training and of the validation part."""
        order = random_state.permutation(n_pairs)
        if self.validation_fraction == 0:
            return order, None
        n_validation = max(round(n_pairs * self.validation_fraction), 2)
        if n_pairs - n_validation < 2:
            raise ValueError(
                f"{n_pairs} pairs are too few: training and validation each compare at least two; "
                "add pairs or set validation_fraction=0"
            )
        return order[n_validation:], order[:n_validation]

    def _scale(self, image, text) -> dict[str, np.ndarray]:
        return {
            "image": self.image_scaler_.transform(image).astype(np.float32),
            "text": self.text_scaler_.transform(text).astype(np.float32),
        }

    def _train(self, pairs: dict, train, validation, random_state) -> None:
        import keras

        seed = int(random_state.randint(2**31 - 1))
        with layer_seeds(seed):
            model = self._build({name: values.shape[1] for name, values in pairs.items()})
        self.config_ = model.to_json()  # before the loss, which only training needs
        model.compile(keras.optimizers.Adam(self.learning_rate), loss=_contrast(self.loss))
        callbacks = [progress_bar(self.epochs)] if self.verbose else []
        if validation is not None:
            callbacks.append(
                keras.callbacks.EarlyStopping(patience=self.patience, restore_best_weights=True)
            )
        _, text_number = np.unique(pairs["text"], axis=0, return_inverse=True)
        data = (pairs, text_number[:, None])
        history = model.fit(
            shuffled_batches(take_rows(data, train), self.batch_size, seed),
            validation_data=None if validation is None else take_rows(data, validation),
            validation_batch_size=VALIDATION_BATCH,
            epochs=self.epochs,
            shuffle=False,  # the batches are shuffled already, and reproducibly
            callbacks=callbacks,
            verbose=0,
        ).history
        self.history_ = {name: list(map(float, values)) for name, values in history.items()}
        self.best_epoch_ = int(np.argmin(self.history_.get("val_loss", self.history_["loss"])))
        log_temperature, *_ = model.get_layer("similarity").get_weights()
        self.temperature_ = float(np.exp(log_temperature))
        self.weights_ = model.get_weights()
        self._model = model

    def _build(self, widths: dict[str, int]):
        import keras

        from cmlearn.layers import ScaledSimilarity

        inputs = {name: keras.Input((width,), name=name) for name, width in widths.items()}
        projected = [self._tower(name)(inputs[name]) for name in ("image", "text")]
        # Where the papers start them.
        start = {"temperature": 0.07}
        if self.loss == "siglip":
            start = {"temperature": 0.1, "bias": -10.0}
        similarity = ScaledSimilarity(**start, name="similarity")(projected)
        return keras.Model(inputs, similarity)

    def _tower(self, name: str):
        import keras

        layers = [keras.layers.Dropout(self.dropout)]
        for units in self.hidden_units:
            layers += [
                keras.layers.Dense(units, activation="relu"),
                keras.layers.Dropout(self.dropout),
            ]
        projection = keras.layers.Dense(self.n_components, use_bias=False)
        return keras.Sequential([*layers, projection], name=f"{name}_tower")

    def _transform(self, features, name: str) -> np.ndarray:
        check_is_fitted(self, "weights_")
        import keras

        scaler = getattr(self, f"{name}_scaler_")
        features = _check_features(features, name, width=scaler.n_features_in_)
        tower = self._keras_model().get_layer(f"{name}_tower")
        scaled = scaler.transform(features).astype(np.float32)
        projected = keras.ops.convert_to_numpy(tower(scaled, training=False))
        return normalize(projected)

    def _keras_model(self):
        """Return the network, rebuilt from its configuration if it was just loaded."""
        if not hasattr(self, "_model"):
            import keras

            from cmlearn.layers import ScaledSimilarity

            custom = {"ScaledSimilarity": ScaledSimilarity}
            self._model = keras.models.model_from_json(self.config_, custom_objects=custom)
            self._model.set_weights(self.weights_)
        return self._model


def _contrast(loss: str):
    """Return the loss of similarities (b, b), given the number of each pair's text, (b, 1)."""
    from keras import ops

    from cmlearn.losses import InfoNCE, SigLIP

    contrast = {"infonce": InfoNCE, "siglip": SigLIP}[loss]()

    def of_similarities(text_number, similarity):
        matches = ops.equal(text_number, ops.transpose(text_number))
        return contrast.call(ops.cast(matches, similarity.dtype), similarity)

    return of_similarities


def _check_pairs(image, text) -> tuple[np.ndarray, np.ndarray]:
    image, text = _check_features(image, "image"), _check_features(text, "text")
    if len(image) != len(text):
        raise ValueError(
            f"every pair needs an image and a text, but there are {len(image)} images and "
            f"{len(text)} texts"
        )
    if len(image) < 2:
        raise ValueError("an alignment compares pairs, and needs at least two; got one")
    return image, text


def _check_features(features, name: str, *, width: int | None = None) -> np.ndarray:
    features = check_array(
        features, dtype=np.float64, ensure_all_finite=False, input_name=f"{name} features"
    )
    bad_rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad_rows):
        raise ValueError(
            f"the {name} features hold NaN or infinite values in {len(bad_rows)} of "
            f"{len(features)} rows, first in row {bad_rows[0]}; drop those rows, or fill them with "
            "cmlearn.generation.ModalityImputer"
        )
    if width is not None and features.shape[1] != width:
        raise ValueError(
            f"the {name} features are {features.shape[1]} wide; in training they were {width}"
        )
    return features


# --------------------------------------------------------------------------------------
# Retrieval
# --------------------------------------------------------------------------------------


def match_ranks(similarity) -> np.ndarray:
    """Return at which place each query finds its own partner.

    Parameters
    ----------
    similarity : array-like of shape (n, n)
        Row i holds how well query i fits each of the candidates; candidate i is its partner.
        Rows of images and columns of texts ask for texts by image; transposed, for images by
        text.

    Returns
    -------
    ndarray of shape (n,), int
        Place of the partner, 1 for the first. Candidates that fit just as well as the partner
        are placed before it: an alignment that gives all the same similarity must not look good.

    Examples
    --------
    >>> match_ranks([[0.9, 0.1, 0.3], [0.8, 0.5, 0.7], [0.2, 0.2, 0.2]]).tolist()
    [1, 3, 3]
    """
    similarity = check_array(similarity, input_name="similarity")
    if similarity.shape[0] != similarity.shape[1]:
        raise ValueError(
            "retrieval needs as many queries as candidates, query i belonging to candidate i; got "
            f"a similarity of shape {similarity.shape}"
        )
    return (similarity >= np.diag(similarity)[:, None]).sum(axis=1)


def recall_at_k(similarity, k: int = 1) -> float:
    """Return the share of queries whose partner is among the k best candidates.

    Parameters
    ----------
    similarity : array-like of shape (n, n)
        As in :func:`match_ranks`; chance level is k / n.
    k : int
        From 1 to n.

    Returns
    -------
    float
        From 0 to 1.
    """
    ranks = match_ranks(similarity)
    if not isinstance(k, Integral) or not 1 <= k <= len(ranks):
        raise ValueError(f"k must be a whole number from 1 to {len(ranks)} candidates; got {k!r}")
    return float(np.mean(ranks <= k))


def median_rank(similarity) -> float:
    """Return the median place of the partner: 1 at best; (n + 1) / 2 by chance.

    Parameters
    ----------
    similarity : array-like of shape (n, n)
        As in :func:`match_ranks`.
    """
    return float(np.median(match_ranks(similarity)))


def retrieval_report(similarity, ks: tuple[int, ...] = (1, 10)) -> "pd.DataFrame":
    """Return recall and median rank both ways.

    Parameters
    ----------
    similarity : array-like of shape (n_images, n_texts)
        Pair i in row and column i.
    ks : tuple of int
        Where to take the recall.

    Returns
    -------
    DataFrame
        Rows ``image to text`` and ``text to image``; columns ``recall@k`` (from 0 to 1) for each
        k, and ``median rank``.

    Examples
    --------
    >>> retrieval_report([[0.9, 0.1], [0.95, 0.5]], ks=(1,))
                   recall@1  median rank
    image to text       0.5          1.5
    text to image       0.5          1.5
    """
    import pandas as pd

    similarity = np.asarray(similarity)
    rows = {
        direction: {f"recall@{k}": recall_at_k(asked, k) for k in ks}
        | {"median rank": median_rank(asked)}
        for direction, asked in [("image to text", similarity), ("text to image", similarity.T)]
    }
    return pd.DataFrame.from_dict(rows, orient="index")


# --------------------------------------------------------------------------------------
# Classes known by description only
# --------------------------------------------------------------------------------------


def _has_temperature(zero_shot) -> bool:
    return hasattr(zero_shot.alignment, "temperature_")


class ZeroShotClassifier(ClassifierMixin, BaseEstimator):
    """Classify images by which class's description they fit best.

    No image of the classes is needed: an alignment that was fitted on pairs of any kind compares
    each image with encoded names or descriptions of the classes.

    Parameters
    ----------
    alignment : estimator
        A fitted :class:`RegularizedCCA` or :class:`ContrastiveAlignment`. It is used as it is.
        (``sklearn.base.clone``, and so cross-validation, forgets its fit; wrap it in
        :class:`sklearn.frozen.FrozenEstimator` to keep it.)

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    descriptions_ : ndarray of shape (n_descriptions, d_text)
        The encoded descriptions.

    References
    ----------
    Frome et al., "DeViSE: a deep visual-semantic embedding model", NeurIPS 2013,
    https://papers.nips.cc/paper/2013/hash/7cce53cf90577442771720a370c3c723-Abstract.html;
    several descriptions a class: Radford et al., "Learning transferable visual models from
    natural language supervision", ICML 2021, https://arxiv.org/abs/2103.00020
    """

    def __init__(self, alignment):
        self.alignment = alignment

    def fit(self, text, y):
        """Learn what the classes are called.

        Parameters
        ----------
        text : array-like of shape (n_descriptions, d_text)
            Encoded names or descriptions, by the encoder of the alignment's texts; one or more a
            class, whose similarities are averaged.
        y : array-like of shape (n_descriptions,)
            The class that each describes.
        """
        check_is_fitted(self.alignment)
        text = _check_features(text, "text")
        check_consistent_length(text, y)
        check_classification_targets(y)
        self.classes_, self._codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "a choice needs descriptions of at least two classes, but y holds one only: "
                f"{self.classes_.tolist()[0]!r}"
            )
        self.descriptions_ = text
        return self

    def decision_function(self, image) -> np.ndarray:
        """Return how well image features (n, d_image) fit each class, (n, n_classes)."""
        check_is_fitted(self, "descriptions_")
        similarity = self.alignment.similarity(image, self.descriptions_)
        belongs = np.eye(len(self.classes_))[self._codes]
        return similarity @ belongs / belongs.sum(axis=0)

    @available_if(_has_temperature)
    def predict_proba(self, image) -> np.ndarray:
        """Return the softmax of the similarities over the learned temperature, (n, n_classes)."""
        return softmax(self.decision_function(image) / self.alignment.temperature_, axis=1)

    def predict(self, image) -> np.ndarray:
        """Return the class whose descriptions fit best of every row, (n,)."""
        fits = self.decision_function(image)
        return self.classes_[fits.argmax(axis=1)]


# --------------------------------------------------------------------------------------
# Pairs that do not belong together
# --------------------------------------------------------------------------------------


def alignment_scores(alignment, image, text, *, cv: int = 5, groups=None) -> np.ndarray:
    r"""Return how well image and text of each pair fit, by alignments that have not seen it.

    Each fold's pairs are scored by a copy of the alignment that was fitted on the other folds:
    an alignment that is able to memorise would vouch for every pair that it was trained on. From
    twice the similarity of image and text, their mean similarities to the ten texts and images of
    the fold that fit them best are subtracted, because some texts fit every image.

    Parameters
    ----------
    alignment : estimator
        Such as :class:`RegularizedCCA`; it is cloned, not fitted.
    image, text : array-like of shape (n, d_image) and (n, d_text)
        Features of n pairs, some of which may be mismatched.
    cv : int
        Number of folds; rows are dealt to them at random, in the same way every time.
    groups : array-like of shape (n,), optional
        Rows of one group are related and stay in one fold.

    Returns
    -------
    ndarray of shape (n,), float64
        Higher fits better. To draw a ROC curve of detecting mismatched pairs, give
        :func:`sklearn.metrics.roc_curve` the negative scores.

    References
    ----------
    The subtraction (cross-domain similarity local scaling): Lample, Conneau, Ranzato, Denoyer
    and Jégou, "Word translation without parallel data", ICLR 2018,
    https://arxiv.org/abs/1710.04087
    """
    image, text = _check_pairs(image, text)
    groups = np.arange(len(image)) if groups is None else np.asarray(groups)
    check_consistent_length(image, groups)
    scores = np.empty(len(image))
    for train, test in GroupKFold(cv, shuffle=True, random_state=0).split(image, groups=groups):
        fitted = clone(alignment).fit(image[train], text[train])
        scores[test] = _scaled_locally(fitted.similarity(image[test], text[test]))
    return scores


def _scaled_locally(similarity: np.ndarray) -> np.ndarray:
    n_nearest = min(NEIGHBOURS, len(similarity))
    nearest_texts = np.sort(similarity, axis=1)[:, -n_nearest:].mean(axis=1)
    nearest_images = np.sort(similarity, axis=0)[-n_nearest:].mean(axis=0)
    return 2 * np.diag(similarity) - nearest_texts - nearest_images


def hide_mismatched(table, y, scores, *, rate: float) -> "pd.DataFrame":
    """Make the text missing in the pairs that fit worst, class by class.

    The label and the image of such a pair are right, so the row stays.

    Parameters
    ----------
    table : DataFrame of n rows
        With a column ``text``, as :func:`cmlearn.fusion.feature_table` makes it.
    y : array-like of shape (n,)
        Labels. Each class loses its own share, or a class that is hard to tell by its texts
        would lose them all.
    scores : array-like of shape (n,)
        Higher fits better.
    rate : float in [0, 1)
        Share of the rows that got the text of another row. A text from a row of the same class
        does no harm, so of a class with share p of the rows, ``rate * (1 - p)`` are hidden.

    Returns
    -------
    DataFrame
        A copy with ``None`` for the hidden texts.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be at least 0 and below 1; got {rate!r}")
    check_consistent_length(table, y, scores)
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    scores = np.asarray(scores)
    hidden = []
    for code, count in enumerate(counts):
        rows = np.flatnonzero(codes == code)
        n_hidden = round(rate * (1 - count / len(codes)) * count)
        hidden.extend(rows[np.argsort(scores[rows], kind="stable")[:n_hidden]])
    texts = table["text"].to_numpy(dtype=object, copy=True)
    texts[hidden] = None
    return table.assign(text=texts)


class MismatchRobustClassifier(ClassifierMixin, BaseEstimator):
    """Train a classifier on pairs some of whose texts belong to other images.

    A classifier of the texts alone, which never sees the row that it judges, says how likely the
    row's label is given its text. In the rows where it is least likely the text is made missing,
    and the wrapped classifier is trained on what is left. Labels and images are taken as right.

    Parameters
    ----------
    classifier : classifier
        Takes a feature table in which a text may be missing.
    mismatch_rate : float in [0, 1)
        Share of the training rows that have the text of another row, known or guessed.
    text_classifier : classifier, optional
        Judges the labels from text features (n, d), with ``predict_proba``; None for logistic
        regression on standardised features.
    cv : int
        Number of folds in which the texts are judged.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    text_scores_ : ndarray of shape (n,), float64
        Logarithm of the probability of each training row's label given its text (nats); 0 where
        the text was missing from the start.
    hidden_ : ndarray of shape (n,), bool
        Training rows whose text was made missing.
    classifier_ : classifier
        The fitted classifier.

    Notes
    -----
    It can only find what the text says about the label by itself. Where the label follows from
    image and text together but from neither alone (an XOR), the suspects are picked at random, and
    hiding them does harm. The texts of the rows to be predicted are not judged.

    References
    ----------
    Choosing by small loss: Han et al., "Co-teaching: robust training of deep neural networks
    with extremely noisy labels", NeurIPS 2018, https://arxiv.org/abs/1804.06872;
    the trimmed loss: Shen and Sanghavi, "Learning with bad training data via iterative trimmed
    loss minimization", ICML 2019, https://proceedings.mlr.press/v97/shen19e.html;
    out-of-fold probabilities, class by class: Northcutt, Jiang and Chuang, "Confident learning:
    estimating uncertainty in dataset labels", JAIR 70, 2021, https://arxiv.org/abs/1911.00068
    """

    def __init__(self, classifier, mismatch_rate=0.1, *, text_classifier=None, cv=5):
        self.classifier = classifier
        self.mismatch_rate = mismatch_rate
        self.text_classifier = text_classifier
        self.cv = cv

    def fit(self, X, y, groups=None):
        """Judge the texts, hide the suspect ones, and train.

        Parameters
        ----------
        X : DataFrame of n rows
            Columns ``image`` and ``text`` of vectors, as `cmlearn.fusion.feature_table` makes it.
        y : array-like of shape (n,)
            Labels.
        groups : array-like of shape (n,), optional
            Rows of one group are related; a text is never judged by one that is related.
        """
        check_classification_targets(y)
        check_consistent_length(X, y)
        y = np.asarray(y)
        self.classes_ = np.unique(y)
        self.text_scores_ = self._judge(X["text"], y, groups)
        table = hide_mismatched(X, y, self.text_scores_, rate=self.mismatch_rate)
        self.hidden_ = (table["text"].isna() & X["text"].notna()).to_numpy()
        self.classifier_ = clone(self.classifier).fit(table, y)
        return self

    def predict(self, X) -> np.ndarray:
        """Return the label of every row, (n,)."""
        check_is_fitted(self, "classifier_")
        return self.classifier_.predict(X)

    @available_if(lambda self: hasattr(self.classifier, "predict_proba"))
    def predict_proba(self, X) -> np.ndarray:
        """Return the class probabilities, (n, n_classes)."""
        check_is_fitted(self, "classifier_")
        return self.classifier_.predict_proba(X)

    def _judge(self, column, y: np.ndarray, groups) -> np.ndarray:
        text, present = stack_features(column)
        if text.ndim != 2:
            raise ValueError(
                f"the texts are sequences, cells of shape (length, {text.shape[2]}); average their "
                "words first: they are judged as vectors (d,)"
            )
        rows = np.flatnonzero(present)
        classifier = self.text_classifier
        if classifier is None:
            classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        groups = None if groups is None else np.asarray(groups)[rows]
        check_folds(y[rows], groups, self.cv, "lower cv")
        splits = stratified_folds(y[rows], groups, self.cv, random_state=0)
        probabilities = cross_val_predict(
            classifier, text[rows], y[rows], cv=splits, method="predict_proba"
        )
        of_label = probabilities[np.arange(len(rows)), np.searchsorted(np.unique(y[rows]), y[rows])]
        scores = np.zeros(len(y))
        scores[rows] = np.log(np.maximum(of_label, np.finfo(float).tiny))
        return scores
