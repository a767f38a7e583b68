"""Why did the model answer so? Maps over pixels and words, and the share of each modality.

Every method explains one output of a model for each row: its score for the class ``target``. Those
that take a Keras model follow its gradients and run on every backend of Keras. Those that take a
function ``predict`` only ask it again about changed inputs, so that it may be anything.

Give scores or logarithms of probabilities to the methods by gradients: where a softmax is sure, its
probabilities hardly have a gradient left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from cmlearn._gradients import value_and_gradients
from cmlearn._pixels import checked_images

if TYPE_CHECKING:
    import keras
    import pandas as pd

__all__ = [
    "ShapleyPair",
    "deletion_insertion",
    "grad_cam",
    "input_gradients",
    "integrated_gradients",
    "modality_shapley",
    "modality_share",
    "occlude_patches",
    "occlude_words",
    "randomize_weights",
    "rank_correlation",
    "shapley_pair",
]

MODALITIES = ("image", "text")


# --- By gradients --------------------------------------------------------------------------------


def input_gradients(model: Callable, inputs: Any, target: Any, *, batch_size: int = 32) -> Any:
    """Return the gradient of each row's score by what went in.

    Parameters
    ----------
    model : keras.Model or function
        Gives scores (n, n_classes) for one tensor, or for a list of tensors; no row's scores may
        depend on another row.
    inputs : ndarray of shape (n, ...), or list of them
        What the model takes, all of it real numbers.
    target : int or array-like of int, shape (n,)
        Which score of each row.
    batch_size : int
        Rows at once.

    Returns
    -------
    ndarray of the shape of `inputs`, float32, or list of them
        The gradients.

    References
    ----------
    K. Simonyan, A. Vedaldi and A. Zisserman, "Deep inside convolutional networks: visualising
    image classification models and saliency maps", 2014. https://arxiv.org/abs/1312.6034
    """
    arrays, wrap = _as_list(inputs)
    target = _targets(target, len(arrays[0]))
    parts = []
    for start in range(0, len(target), batch_size):
        rows = slice(start, start + batch_size)
        score = _score_of(lambda *tensors: model(wrap(tensors)), target[rows])
        parts.append(value_and_gradients(score, *(array[rows] for array in arrays))[1])
    return wrap([np.concatenate(part) for part in zip(*parts, strict=True)])


def integrated_gradients(
    model: Callable,
    inputs: Any,
    target: Any,
    *,
    baseline: Any,
    n_steps: int = 32,
    batch_size: int = 32,
) -> Any:
    r"""Share the difference of the score to a baseline among all numbers that went in.

    Parameters
    ----------
    model : keras.Model or function
        Gives scores (n, n_classes) for one tensor, or for a list of tensors.
    inputs : ndarray of shape (n, ...), or list of them
        What the model takes, all of it real numbers.
    target : int or array-like of int, shape (n,)
        Which score of each row.
    baseline : array-like that broadcasts to `inputs`, or list of them
        An input that says nothing: a white picture, vectors of zeros.
    n_steps : int
        Points on the way from the baseline to the input.
    batch_size : int
        Rows at once.

    Returns
    -------
    ndarray of the shape of `inputs`, float32, or list of them
        The attributions. Over a row they sum to its score less that of its baseline, up to the
        error of the sum over the steps: look at that error, and take more steps if it is large.

    Raises
    ------
    ValueError
        If `n_steps` is below 1, or there is not one baseline for each input.

    Notes
    -----
    With baseline b, the integral over the straight way [1]_ by the midpoint rule:

    .. math:: a_i = (x_i - b_i) \int_0^1 \partial_i f(b + t (x - b)) \, dt
              \approx \frac{x_i - b_i}{m}
              \sum_{k=1}^m \partial_i f\!\left(b + \tfrac{k - 1/2}{m} (x - b)\right)

    References
    ----------
    .. [1] M. Sundararajan, A. Taly and Q. Yan, "Axiomatic attribution for deep networks", ICML
       2017. https://proceedings.mlr.press/v70/sundararajan17a.html

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 2.0]])
    >>> square = lambda x: x**2
    >>> integrated_gradients(square, x, 1, baseline=0).tolist()
    [[0.0, 4.0]]
    """
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1; got {n_steps!r}")
    arrays, wrap = _as_list(inputs)
    starts = list(baseline) if isinstance(inputs, list | tuple) else [baseline]
    if len(starts) != len(arrays):
        raise ValueError(f"{len(arrays)} inputs need as many baselines; got {len(starts)}")
    starts = [np.asarray(start, np.float32) for start in starts]
    ways = [np.asarray(x, np.float32) - start for x, start in zip(arrays, starts, strict=True)]
    totals = [np.zeros(way.shape) for way in ways]
    for share in (np.arange(n_steps, dtype=np.float32) + 0.5) / n_steps:
        points = [start + share * way for start, way in zip(starts, ways, strict=True)]
        found = input_gradients(model, wrap(points), target, batch_size=batch_size)
        for total, gradient in zip(totals, _as_list(found)[0], strict=True):
            total += gradient
    shares = [way * total / n_steps for way, total in zip(ways, totals, strict=True)]
    return wrap([share.astype(np.float32) for share in shares])


def grad_cam(
    model: keras.Model, inputs: Any, target: Any, *, layer: str, batch_size: int = 32
) -> np.ndarray:
    r"""Show where in an image a convolutional network found what speaks for a class.

    Parameters
    ----------
    model : keras.Model
        Made of layers that follow each other (a functional or sequential model), with scores
        (n, n_classes) at its end.
    inputs : ndarray of shape (n, height, width, 3), or list of arrays
        RGB images, 0 to 255; for a model with several inputs all of them in the order of
        ``model.inputs``, the images being the one with four axes.
    target : int or array-like of int, shape (n,)
        Which score of each row.
    layer : str
        Name of the layer whose feature maps are weighed, most often the last one before the
        average over the positions.
    batch_size : int
        Rows at once.

    Returns
    -------
    ndarray of shape (n, height, width), float32
        At least 0, as large as the images (interpolated from the layer's coarser grid).

    Raises
    ------
    ValueError
        If the model has no layer of that name (the message lists those that it has), if the layer's
        output is no feature map, or if an image has values outside [0, 255].

    Notes
    -----
    With the feature maps :math:`A^k` of the layer and the score :math:`s` [1]_,

    .. math:: L = \max\Big(0, \sum_k \alpha_k A^k\Big), \qquad
              \alpha_k = \frac{1}{P} \sum_{p=1}^P \frac{\partial s}{\partial A^k_p} .

    References
    ----------
    .. [1] R. R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh and D. Batra, "Grad-CAM:
       visual explanations from deep networks via gradient-based localization", ICCV 2017.
       https://doi.org/10.1109/ICCV.2017.74
    """
    import keras
    from keras import ops

    arrays, _ = _as_list(inputs)
    images = _images_among(arrays)
    target = _targets(target, len(images))
    output = _feature_map(model, layer)
    front = keras.Model(model.inputs, output)
    back = keras.Model([output, *model.inputs], model.outputs[0])
    maps = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        tensors = [ops.convert_to_tensor(np.asarray(x[rows], np.float32)) for x in arrays]
        features = ops.convert_to_numpy(front(tensors, training=False))
        score = _score_of(lambda x, rest=tensors: back([x, *rest], training=False), target[rows])
        gradient = value_and_gradients(score, features)[1][0]
        weights = gradient.mean(axis=(1, 2), keepdims=True)
        maps.append(np.maximum((weights * features).sum(axis=-1), 0))
    return _enlarged(np.concatenate(maps), images.shape[1:3])


def _feature_map(model: keras.Model, layer: str) -> Any:
    """Return the output (n, height, width, channels) of a layer, by its name."""
    names = [one.name for one in model.layers]
    if layer not in names:
        raise ValueError(f"the model has no layer {layer!r}; its layers are {', '.join(names)}")
    output = model.get_layer(layer).output
    if len(getattr(output, "shape", ())) != 4:
        maps = [one.name for one in model.layers if len(getattr(one.output, "shape", ())) == 4]
        raise ValueError(
            f"the layer {layer!r} gives no feature map (n, height, width, channels); those that do "
            f"are {', '.join(maps)}"
        )
    return output


def _enlarged(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if maps.shape[1:] == tuple(size):
        return maps.astype(np.float32)
    from keras import ops

    larger = ops.image.resize(maps[..., None], size, interpolation="bilinear")
    return ops.convert_to_numpy(larger)[..., 0].astype(np.float32)


# --- By asking again -----------------------------------------------------------------------------


def occlude_patches(
    predict: Callable[[np.ndarray], Any],
    images: np.ndarray,
    target: Any,
    *,
    patch_size: int,
    stride: int | None = None,
    fill: Any = 255,
) -> np.ndarray:
    """Cover a patch of the image after the other and see how far the score falls.

    Parameters
    ----------
    predict : function
        Gives (n, n_classes) for images like `images`. It always gets all n of them in their order,
        so that it may put each beside a text of its own.
    images : ndarray of shape (n, height, width, 3)
        RGB, 0 to 255.
    target : int or array-like of int, shape (n,)
        Which score of each row.
    patch_size : int
        Height and width of the patch in pixels.
    stride : int, optional
        Pixels from one patch to the next; `patch_size` by default. Where patches overlap their
        falls are averaged.
    fill : number or array-like that broadcasts to an image
        What is laid over the patch, 0 to 255. White says nothing in a drawing on white; choose it
        with care.

    Returns
    -------
    ndarray of shape (n, height, width), float32
        How much the score falls when the pixel is covered; negative where it rises.

    Raises
    ------
    ValueError
        If the patch does not fit into the image, the stride leaves gaps, an image or `fill` has
        values outside [0, 255], or `fill` has fractions that images of whole numbers cannot hold.

    References
    ----------
    M. D. Zeiler and R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014.
    https://doi.org/10.1007/978-3-319-10590-1_53
    """
    images = checked_images(images, channels=3)
    height, width = images.shape[1:3]
    stride = patch_size if stride is None else stride
    if not 1 <= stride <= patch_size <= min(height, width):
        raise ValueError(
            f"stride={stride} and patch_size={patch_size} must go up in this order from 1 to the "
            f"image's {min(height, width)} pixels"
        )
    cover = np.broadcast_to(_checked_fill(fill, images), images.shape[1:])
    ask = _asker(predict, target, len(images))
    whole = ask(images)
    falls = np.zeros(images.shape[:3])
    counts = np.zeros((height, width))
    for top in _places(height, patch_size, stride):
        for left in _places(width, patch_size, stride):
            patch = (slice(top, top + patch_size), slice(left, left + patch_size))
            covered = images.copy()
            covered[:, *patch] = cover[patch]
            falls[:, *patch] += (whole - ask(covered))[:, None, None]
            counts[patch] += 1
    return (falls / counts).astype(np.float32)


def occlude_words(
    predict: Callable[[list[str]], Any], texts: Iterable[str], target: Any
) -> list[np.ndarray]:
    """Take one word after the other out of the text and see how far the score falls.

    Parameters
    ----------
    predict : function
        Gives (n, n_classes) for a list of texts. It always gets all n of them in their order, so
        that it may put each beside an image of its own.
    texts : iterable of str
        The texts. A word ends at a blank: put blanks between the words of a Chinese text first.
    target : int or array-like of int, shape (n,)
        Which score of each row.

    Returns
    -------
    list of ndarray of shape (n_words,), float32
        How much the score falls without each word; negative where it rises.

    References
    ----------
    J. Li, W. Monroe and D. Jurafsky, "Understanding neural networks through representation
    erasure", 2016. https://arxiv.org/abs/1612.08220

    Examples
    --------
    >>> import numpy as np
    >>> count = lambda texts: np.array([[text.count("cat")] for text in texts])
    >>> [falls.tolist() for falls in occlude_words(count, ["cat and cat", "a dog"], 0)]
    [[1.0, 0.0, 1.0], [0.0, 0.0]]
    """
    texts = list(texts)
    ask = _asker(predict, target, len(texts))
    spans = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
    whole = ask(texts)
    falls = [np.zeros(len(words), np.float32) for words in spans]
    for place in range(max(map(len, spans), default=0)):
        shorter = [
            _without(text, *words[place]) if place < len(words) else text
            for text, words in zip(texts, spans, strict=True)
        ]
        for row, fall in enumerate(whole - ask(shorter)):
            if place < len(falls[row]):
                falls[row][place] = fall
    return falls


def _without(text: str, start: int, stop: int) -> str:
    return " ".join(part for part in (text[:start].rstrip(), text[stop:].lstrip()) if part)


def _places(length: int, patch: int, stride: int) -> list[int]:
    """Return where patches begin, the last one flush with the end."""
    return sorted({*range(0, length - patch, stride), length - patch})


# --- Shares of the modalities --------------------------------------------------------------------


class ShapleyPair(NamedTuple):
    """What two players add to a game: `image` and `text` share it, `interaction` is of both."""

    image: Any
    text: Any
    interaction: Any


def shapley_pair(nothing: Any, image: Any, text: Any, both: Any) -> ShapleyPair:
    r"""Return the exact Shapley values of a game of two.

    Parameters
    ----------
    nothing, image, text, both : number or array-like
        What the game is worth with neither, the image alone, the text alone, and both: a score, a
        probability, an accuracy.

    Returns
    -------
    ShapleyPair
        ``image`` and ``text`` sum to ``both - nothing``. ``interaction`` is what the two are worth
        together beyond the sum of what each is worth alone; half of it is in either value.

    Notes
    -----
    The mean over both orders in which the players can join [1]_:

    .. math::

        \varphi_\text{image} = \tfrac12 \big[ (v_\text{image} - v_\varnothing)
        + (v_\text{both} - v_\text{text}) \big].

    References
    ----------
    .. [1] L. S. Shapley, "A value for n-person games", Contributions to the Theory of Games II,
       1953. https://doi.org/10.1515/9781400881970-018

    Examples
    --------
    >>> shapley_pair(nothing=0.25, image=0.5, text=0.75, both=0.75)
    ShapleyPair(image=0.125, text=0.375, interaction=-0.25)
    """
    nothing, image, text, both = (
        value if isinstance(value, float) else np.asarray(value, float)
        for value in (nothing, image, text, both)
    )
    return ShapleyPair(
        image=((image - nothing) + (both - text)) / 2,
        text=((text - nothing) + (both - image)) / 2,
        interaction=both - image - text + nothing,
    )


def modality_shapley(
    predict: Callable[[pd.DataFrame], Any],
    X: pd.DataFrame,
    target: Any,
    *,
    background: pd.DataFrame,
) -> pd.DataFrame:
    """Return how much of each prediction is owed to the image and how much to the text.

    A modality is taken away by putting those of other pairs in its place, one after the other, and
    averaging the predictions: what the model says when it does not know this one.

    Parameters
    ----------
    predict : function
        Gives (m, n_classes) for a table of m rows like `X`: ``predict_proba`` of a classifier.
    X : DataFrame with the columns ``image`` and ``text``
        The n rows to explain; cells of any kind.
    target : int or array-like of int, shape (n,)
        Which column of the prediction: the row's true class, or the predicted one.
    background : DataFrame with the columns ``image`` and ``text``
        Pairs that stand for what is usual, such as 50 of the training part.

    Returns
    -------
    DataFrame of n rows, the index of `X`
        The predictions ``nothing``, ``image alone``, ``text alone`` and ``both``, then the exact
        Shapley values ``image`` and ``text``, which sum to ``both - nothing``, and the
        ``interaction``: see `shapley_pair`.

    Raises
    ------
    ValueError
        If a table lacks one of the columns, or has no rows.

    Notes
    -----
    These are the interventional values of `shap` [1]_ with two groups of features. The model is
    asked about ``(2 n + 1) b + n`` pairs, for a background of b.

    References
    ----------
    .. [1] S. M. Lundberg and S.-I. Lee, "A unified approach to interpreting model predictions",
       NeurIPS 2017. https://arxiv.org/abs/1705.07874
    """
    import pandas as pd

    for name, table in (("X", X), ("background", background)):
        _check_pairs(name, table)
    target = _targets(target, len(X))
    X, index = X.reset_index(drop=True), X.index
    background = background.reset_index(drop=True)
    rows = np.repeat(np.arange(len(X)), len(background))
    usual = np.tile(np.arange(len(background)), len(X))

    def ask(image: pd.Series, text: pd.Series) -> np.ndarray:
        pairs = pd.DataFrame({"image": image.array, "text": text.array})
        return _numbers(predict(pairs))

    def mean_over_background(image: pd.Series, text: pd.Series) -> np.ndarray:
        found = ask(image, text)[np.arange(len(rows)), target[rows]]
        return found.reshape(len(X), -1).mean(axis=1)

    usually = ask(background["image"], background["text"]).mean(axis=0)
    _check_classes(target, len(usually))
    worth = {
        "nothing": usually[target],
        "image alone": mean_over_background(X["image"][rows], background["text"][usual]),
        "text alone": mean_over_background(background["image"][usual], X["text"][rows]),
        "both": ask(X["image"], X["text"])[np.arange(len(X)), target],
    }
    return pd.DataFrame(worth | shapley_pair(*worth.values())._asdict(), index=index)


def modality_share(values: pd.DataFrame) -> pd.Series:
    """Return which share of what moves a prediction is the image's.

    Parameters
    ----------
    values : DataFrame with the columns ``image`` and ``text``
        Shapley values, as `modality_shapley` gives them.

    Returns
    -------
    Series of float between 0 and 1
        The image's part in the sum of both absolute values, 0.5 where both are 0, NaN where a
        value is missing. Its mean over a data set says how much the model leans on the image.

    Notes
    -----
    MM-SHAP [1]_ makes the same fraction of the Shapley values of every patch and every word, which
    it adds up within each modality. Here a modality as a whole is one player.

    References
    ----------
    .. [1] L. Parcalabescu and A. Frank, "MM-SHAP: a performance-agnostic metric for measuring
       multimodal contributions in vision and language models & tasks", ACL 2023.
       https://doi.org/10.18653/v1/2023.acl-long.223

    Examples
    --------
    >>> import pandas as pd
    >>> modality_share(pd.DataFrame({"image": [0.1, 0.0], "text": [-0.3, 0.0]})).tolist()
    [0.25, 0.5]
    """
    image, text = values["image"].abs(), values["text"].abs()
    total = image + text
    return (image / total).where(total != 0, 0.5)


def _check_pairs(name: str, table: pd.DataFrame) -> None:
    if not {*MODALITIES} <= {*getattr(table, "columns", ())}:
        raise ValueError(
            f"{name} must be a DataFrame with the columns 'image' and 'text'; got "
            f"{list(getattr(table, 'columns', [])) or type(table).__name__}"
        )
    if len(table) == 0:
        raise ValueError(f"{name} has no rows")


# --- Is the map worth anything? ------------------------------------------------------------------


def randomize_weights(
    model: keras.Model, *, n_layers: int | None = None, random_state: Any = None
) -> keras.Model:
    """Return a copy of a network that has forgotten what it learned, from its end backwards.

    A map that stays as it was does not show what the network learned [1]_.

    Parameters
    ----------
    model : keras.Model
        A functional or sequential model; it stays as it is.
    n_layers : int, optional
        How many layers with a kernel forget, counted from the end; all of them by default.
    random_state : int, RandomState instance or None
        Decides the new order.

    Returns
    -------
    keras.Model
        The entries of each of these kernels have changed places at random. Biases and
        normalisations stay, and so does the size of what goes through the network.

    Raises
    ------
    ValueError
        If the model has fewer layers with a kernel than are to forget. (`EfficientNetLite` has its
        kernels in layers only with ``fold_batch_norm=False``.)

    References
    ----------
    .. [1] J. Adebayo, J. Gilmer, M. Muelly, I. Goodfellow, M. Hardt and B. Kim, "Sanity checks for
       saliency maps", NeurIPS 2018. https://arxiv.org/abs/1810.03292
    """
    import keras

    random = check_random_state(random_state)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    kernels: dict[str, list] = {}  # a separable or recurrent layer has two
    for weight in copy.weights:
        if weight.name.endswith("kernel"):
            kernels.setdefault(weight.path.rpartition("/")[0], []).append(weight)
    n_layers = len(kernels) if n_layers is None else n_layers
    if not 0 < n_layers <= len(kernels):
        raise ValueError(
            f"n_layers={n_layers} must be from 1 to {len(kernels)}, the layers of this model that "
            "have a kernel"
        )
    for kernel in chain.from_iterable(list(kernels.values())[-n_layers:]):
        entries = keras.ops.convert_to_numpy(kernel)
        kernel.assign(random.permutation(entries.ravel()).reshape(entries.shape))
    return copy


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of each map with its counterpart.

    Parameters
    ----------
    maps, others : ndarray of shape (n, ...)
        Maps of the same pictures.

    Returns
    -------
    ndarray of shape (n,)
        Between -1 and 1. A map that is the same everywhere ranks nothing and has 0.

    Examples
    --------
    >>> import numpy as np
    >>> rank_correlation(np.array([[1, 2, 3], [1, 2, 3]]), np.array([[10, 20, 90], [5, 5, 5]]))
    array([1., 0.])
    """
    from scipy.stats import rankdata

    ranks = [
        rankdata(np.reshape(one, (len(one), -1)), axis=1).astype(float) for one in (maps, others)
    ]
    first, second = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return (first * second).sum(axis=1) / np.where(scale > 0, scale, 1)


def deletion_insertion(
    predict: Callable[[np.ndarray], Any],
    images: np.ndarray,
    maps: np.ndarray,
    target: Any,
    *,
    n_steps: int = 16,
    fill: Any = 255,
) -> tuple[np.ndarray, np.ndarray]:
    """Take away, and put back, the pixels that a map calls important, the most important first.

    A good map makes the score fall at once when its pixels go, and rise at once when they come.

    Parameters
    ----------
    predict : function
        Gives (n, n_classes) for images like `images`; it always gets all n in their order.
    images : ndarray of shape (n, height, width, 3)
        RGB, 0 to 255.
    maps : ndarray of shape (n, height, width)
        Importance of each pixel. Pixels of equal importance go in an order drawn by lot, the same
        lot in every call.
    target : int or array-like of int, shape (n,)
        Which score of each row.
    n_steps : int
        In how many parts of equal size the pixels go.
    fill : number or array-like that broadcasts to `images`
        What stands for a pixel that is not there, 0 to 255: a colour, or blurred images.

    Returns
    -------
    deletion, insertion : ndarray of shape (n, n_steps + 1)
        The score when the share 0, 1 / n_steps, ..., 1 of the pixels is gone, or is there.

    Raises
    ------
    ValueError
        If the maps are not as large as the images, `n_steps` is below 1, an image or `fill` has
        values outside [0, 255], or `fill` has fractions that images of whole numbers cannot hold.

    References
    ----------
    V. Petsiuk, A. Das and K. Saenko, "RISE: randomized input sampling for explanation of black-box
    models", BMVC 2018. https://arxiv.org/abs/1806.07421
    """
    images, maps = checked_images(images, channels=3), np.asarray(maps, float)
    if maps.shape != images.shape[:3]:
        raise ValueError(
            f"maps must have the shape {images.shape[:3]}, that of the images; got {maps.shape}"
        )
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1; got {n_steps!r}")
    ask = _asker(predict, target, len(images))
    without = np.broadcast_to(_checked_fill(fill, images), images.shape)
    ranks = _ranks(maps)
    curves = []
    for n_gone in np.linspace(0, ranks[0].size, n_steps + 1).round():
        first = (ranks < n_gone)[..., None]
        curves.append(
            [ask(np.where(first, without, images)), ask(np.where(first, images, without))]
        )
    deletion, insertion = np.moveaxis(np.array(curves), 0, -1)
    return deletion, insertion


def _ranks(maps: np.ndarray) -> np.ndarray:
    """Return each pixel's place in the order of importance, from 0."""
    flat = maps.reshape(len(maps), -1)
    lot = np.random.default_rng(0).permutation(flat.shape[1])
    order = lot[np.argsort(-flat[:, lot], axis=1, kind="stable")]
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(flat.shape[1])[None], axis=1)
    return ranks.reshape(maps.shape)


# --- What all of them share ----------------------------------------------------------------------


def _as_list(inputs: Any) -> tuple[list[np.ndarray], Callable]:
    """Return the arrays in a list, and what makes of such a list what came in."""
    if isinstance(inputs, list | tuple):
        return [np.asarray(one) for one in inputs], list
    return [np.asarray(inputs)], lambda arrays: arrays[0]


def _targets(target: Any, n_rows: int) -> np.ndarray:
    target = np.asarray(target)
    if target.dtype.kind not in "iu" or target.shape not in ((), (n_rows,)):
        raise ValueError(
            f"target must be the number of a class, or one for each of the {n_rows} rows; got "
            f"{target.dtype} of the shape {target.shape}"
        )
    return np.broadcast_to(target, (n_rows,))


def _check_classes(target: np.ndarray, n_classes: int) -> None:
    wrong = np.flatnonzero((target < 0) | (target >= n_classes))
    if len(wrong):
        raise ValueError(
            f"target of row {wrong[0]} is {target[wrong[0]]}, but the model has the classes 0 to "
            f"{n_classes - 1}"
        )


def _score_of(model: Callable, target: np.ndarray) -> Callable:
    """Return the sum of the rows' scores as a function of tensors."""
    from keras import ops

    def score(*tensors):
        outputs = model(*tensors)
        _check_classes(target, outputs.shape[-1])
        return ops.sum(outputs * ops.one_hot(target, outputs.shape[-1], dtype=outputs.dtype))

    return score


def _asker(predict: Callable, target: Any, n_rows: int) -> Callable[[Any], np.ndarray]:
    """Return a function that asks `predict` and keeps each row's score for its target."""
    target = _targets(target, n_rows)

    def ask(inputs: Any) -> np.ndarray:
        found = _numbers(predict(inputs))
        if found.ndim != 2 or len(found) != n_rows:
            raise ValueError(
                f"predict must give (n, n_classes) for {n_rows} rows; it gave {found.shape}"
            )
        _check_classes(target, found.shape[1])
        return found[np.arange(n_rows), target]

    return ask


def _numbers(found: Any) -> np.ndarray:
    """Return an array of NumPy for what a model gave, a tensor on any device."""
    if isinstance(found, np.ndarray):
        return found
    from keras import ops

    return ops.convert_to_numpy(found)


def _images_among(arrays: list[np.ndarray]) -> np.ndarray:
    images = [array for array in arrays if array.ndim == 4]
    if len(images) != 1:
        raise ValueError(
            "one of the inputs must be images, (n, height, width, 3); got the shapes "
            f"{', '.join(str(array.shape) for array in arrays)}"
        )
    return checked_images(images[0], channels=3)


def _checked_fill(fill: Any, images: np.ndarray) -> np.ndarray:
    """Return what stands for pixels in the type of the images, if it fits into that."""
    found = np.asarray(fill)
    if not ((found >= 0) & (found <= 255)).all():
        raise ValueError(
            f"fill has values from {found.min()} to {found.max()}; pixels go from 0 to 255"
        )
    exact = found.astype(images.dtype)
    if images.dtype.kind in "iu" and not np.array_equal(exact, found):
        raise ValueError(
            f"fill must be whole numbers that {images.dtype} can hold, as the images are "
            f"{images.dtype}; got {found.ravel()[np.argmax((exact != found).ravel())]}: change "
            "fill, or give the images as float32"
        )
    return exact
