"""Attacks on classifiers of image-text pairs, to measure what a model withstands.

Attacks by gradient follow a Keras model and stay inside a budget that is checked here; those on
words and on whole pairs only ask the model again. Use them on models and data of your own.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from cmlearn._gradients import value_and_gradients
from cmlearn._pixels import checked_images

__all__ = [
    "add_sticker",
    "add_word",
    "choose_poisoned",
    "disagreement",
    "fgsm",
    "pgd",
    "substitute_words",
    "swap_partners",
    "word_neighbours",
    "write_word",
]


# --- Pixels, by gradients ------------------------------------------------------------------------


def fgsm(
    model: Callable,
    images: Any,
    labels: Any,
    *,
    epsilon: float,
    context: Iterable[Any] = (),
    batch_size: int = 32,
) -> np.ndarray:
    r"""Move every pixel by `epsilon` in the direction that raises the loss.

    Parameters
    ----------
    model : keras.Model or function
        Gives scores (n, n_classes), before the softmax, for a tensor of images, or for a list of
        the images and the tensors of `context`. No row's scores may depend on another row.
    images : array-like of shape (n, height, width, channels)
        Pixels, 0 to 255.
    labels : array-like of int, shape (n,)
        True classes.
    epsilon : float
        Budget in grey levels, at least 0: how far each pixel may move.
    context : iterable of ndarray of shape (n, ...)
        What else the model takes and the attacker leaves alone, such as text vectors.
    batch_size : int
        Rows at once.

    Returns
    -------
    ndarray of the shape of `images`, float32
        Attacked images, within `epsilon` of the originals and within 0 and 255.

    Raises
    ------
    ValueError
        If `epsilon` is negative or not finite, an image leaves [0, 255], or labels or context have
        another number of rows than the images.

    Notes
    -----
    With the cross-entropy L [1]_,

    .. math:: x' = \operatorname{clip}_{[0, 255]}\big(x
              + \varepsilon \operatorname{sign} \nabla_x L(x, y)\big) .

    References
    ----------
    .. [1] I. J. Goodfellow, J. Shlens and C. Szegedy, "Explaining and harnessing adversarial
       examples", ICLR 2015. https://arxiv.org/abs/1412.6572

    Examples
    --------
    >>> import numpy as np
    >>> from keras import ops
    >>> brightness = lambda x: ops.stack([ops.mean(x, (1, 2, 3)), 128 + 0 * x[:, 0, 0, 0]], axis=1)
    >>> grey = np.full((1, 2, 2, 3), 130.0)
    >>> fgsm(brightness, grey, [0], epsilon=4)[0, 0, 0].tolist()
    [126.0, 126.0, 126.0]
    """
    images, labels, context = _checked(images, labels, epsilon, context)
    attacked = np.empty_like(images)
    for rows in _batches(len(images), batch_size):
        batch = _Batch(model, images[rows], labels[rows], [x[rows] for x in context], epsilon)
        attacked[rows] = batch.step(batch.images, epsilon)
    return attacked


def pgd(
    model: Callable,
    images: Any,
    labels: Any,
    *,
    epsilon: float,
    n_steps: int = 10,
    step_size: float | None = None,
    context: Iterable[Any] = (),
    batch_size: int = 32,
    random_state: Any = None,
) -> np.ndarray:
    """Climb the loss in several steps, each followed by a projection into the budget.

    Parameters
    ----------
    model, images, labels, epsilon, context, batch_size
        As for `fgsm`.
    n_steps : int
        Steps from a random start within the budget.
    step_size : float, optional
        Grey levels of each step; by default ``2.5 * epsilon / n_steps``, so that a pixel can cross
        the whole budget.
    random_state : int, RandomState instance or None
        Decides the random start.

    Returns
    -------
    ndarray of the shape of `images`, float32
        For each row the best of the original, the FGSM point and all iterates: one that is
        misclassified before one that is not, then the one with the largest loss. So it is never
        weaker than `fgsm`.

    Raises
    ------
    ValueError
        As `fgsm`; also if `n_steps` is below 1 or `step_size` is not positive.

    References
    ----------
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras and A. Vladu, "Towards deep learning models
    resistant to adversarial attacks", ICLR 2018. https://arxiv.org/abs/1706.06083
    """
    images, labels, context = _checked(images, labels, epsilon, context)
    if not isinstance(n_steps, numbers.Integral) or n_steps < 1:
        raise ValueError(f"n_steps must be a whole number, at least 1; got {n_steps!r}")
    if step_size is not None and not step_size > 0:
        raise ValueError(f"step_size must be above 0; got {step_size!r}")
    step_size = 2.5 * epsilon / n_steps if step_size is None else step_size
    start = check_random_state(random_state).uniform(-epsilon, epsilon, images.shape)
    attacked = np.empty_like(images)
    for rows in _batches(len(images), batch_size):
        batch = _Batch(model, images[rows], labels[rows], [x[rows] for x in context], epsilon)
        batch.step(batch.step(batch.images, epsilon), 0)
        points = batch.project(batch.images + start[rows])
        for _ in range(n_steps):
            points = batch.step(points, step_size)
        batch.step(points, 0)
        attacked[rows] = batch.best
    return attacked


class _Batch:
    """Some images under attack, and the best points that were looked at so far."""

    def __init__(self, model, images, labels, context, epsilon):
        self.model, self.images, self.labels, self.context = model, images, labels, context
        self.low, self.high = _box(images, epsilon)
        self.best = images
        self._merit = np.full((2, len(images)), -np.inf)

    def step(self, points: np.ndarray, size: float) -> np.ndarray:
        """Take note of the points, and return those a step up the loss, within the budget."""
        loss, wrong, slope = self._loss(points)
        merit = np.stack([wrong, loss])
        better = (wrong > self._merit[0]) | ((wrong == self._merit[0]) & (loss > self._merit[1]))
        self._merit = np.where(better, merit, self._merit)
        self.best = np.where(better[:, None, None, None], points, self.best)
        return self.project(points + size * np.sign(slope))

    def project(self, points: np.ndarray) -> np.ndarray:
        return np.clip(points.astype(np.float32), self.low, self.high)

    def _loss(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return each row's loss, whether it is misclassified (0 or 1), and the loss's slope.

        Only sums have gradients here. Weights of 1 on the rows' losses and of 0 on their margins
        bring the single rows out in the same pass, as the gradients by these weights.
        """
        from keras import ops

        context = [ops.convert_to_tensor(np.asarray(x, np.float32)) for x in self.context]

        def weighted(x, one, zero):
            scores = self.model([x, *context] if context else x)
            scores = ops.cast(scores, "float32")  # in half precision 1e9 is infinite
            n_classes = scores.shape[-1]
            if self.labels.max() >= n_classes:
                raise ValueError(
                    f"label {self.labels.max()} is unknown to a model of {n_classes} classes, "
                    f"0 to {n_classes - 1}"
                )
            own = ops.one_hot(self.labels, n_classes, dtype=scores.dtype)
            loss = -ops.sum(own * ops.log_softmax(scores), axis=-1)
            margin = ops.max(scores - 1e9 * own, axis=-1) - ops.sum(own * scores, axis=-1)
            return ops.sum(one * loss) + ops.sum(zero * margin)

        n = len(points)
        _, (slope, loss, margin) = value_and_gradients(weighted, points, np.ones(n), np.zeros(n))
        return loss, (margin > 0).astype(float), slope


def _box(images: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest float32 pixels that are truly within the budget."""
    exact = images.astype(np.float64)
    low = np.maximum(exact - epsilon, 0).astype(np.float32)
    high = np.minimum(exact + epsilon, 255).astype(np.float32)
    low = np.where(exact - low > epsilon, np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high - exact > epsilon, np.nextafter(high, np.float32(-np.inf)), high)
    return low, high


def _batches(n: int, size: int) -> Iterable[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _checked(images, labels, epsilon, context):
    images = checked_images(images)
    real = isinstance(epsilon, numbers.Real) and np.isfinite(epsilon)
    if not real or epsilon < 0:
        raise ValueError(
            f"epsilon must be a finite number of grey levels, at least 0; got {epsilon!r}"
        )
    context = [np.asarray(x) for x in context]
    for i, x in enumerate(context):
        if len(x) != len(images):
            raise ValueError(f"context {i} has {len(x)} rows for {len(images)} images")
    return images.astype(np.float32), _checked_labels(labels, len(images), "images"), context


def _checked_labels(labels: Any, n: int, what: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{n} {what} need as many labels; got labels of the shape {labels.shape}")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError("labels must be the numbers of classes, 0 and up, as integers")
    return labels


# --- Words ---------------------------------------------------------------------------------------


def word_neighbours(
    words: Iterable[str], *, n: int = 8, vectors: Any = "glove-6b-50d"
) -> dict[str, list[str]]:
    """Return for each known word the words with the most similar vectors.

    Parameters
    ----------
    words : iterable of str
        Lowercase words; those without a vector are left out of the answer.
    n : int
        Neighbours of each.
    vectors : str or path
        What `cmlearn.text.load_word_vectors` takes.

    Returns
    -------
    dict of str to list of str
        Neighbours in letters only, the most similar first. Near in GloVe are words that stand in
        like places, opposites among them: not every neighbour keeps the meaning.

    Raises
    ------
    ValueError
        If `words` is one text and not a list of words.

    Examples
    --------
    >>> word_neighbours(["cat", "qqqqzzzz"], n=2)
    {'cat': ['dog', 'rabbit']}
    """
    from cmlearn.text import load_word_vectors

    if isinstance(words, str):
        raise ValueError(f"words must be a list of words; got the text {words!r}")
    table = load_word_vectors(vectors)
    found = {}
    for word in dict.fromkeys(words):
        if word in table:
            near = [other for other, _ in table.most_similar(word, 3 * n) if other.isalpha()]
            found[word] = near[:n]
    return found


def substitute_words(
    predict: Callable[[list[str], np.ndarray], Any],
    texts: Iterable[str],
    labels: Any,
    *,
    candidates: Mapping[str, Iterable[str]],
    max_changes: int = 1,
) -> list[str]:
    """Replace words, one after the other, by those that lower the true class's probability most.

    Parameters
    ----------
    predict : function
        Gives probabilities (m, n_classes) for m texts and the rows (m,) that they belong to, so
        that it can put each beside the picture of its row.
    texts : iterable of str
        The n texts. Words are runs of letters, looked up in lowercase.
    labels : array-like of int, shape (n,)
        True classes.
    candidates : mapping of str to iterable of str
        What each word may become, such as `word_neighbours` gives.
    max_changes : int
        Budget: how many words of a text may change, each once. 0 changes nothing.

    Returns
    -------
    list of str
        Attacked texts. A text is left as soon as it is misclassified, or when no candidate lowers
        the probability.

    Raises
    ------
    ValueError
        If a text has no word with a candidate (the message names it), the candidates of a word
        are a text and not a list of words, labels do not fit the texts,
        `max_changes` is negative, or `predict` gives something else than a row for each text.

    Notes
    -----
    A greedy search over all words and candidates, without the filters for grammar and meaning of
    [1]_: it bounds what a patient attacker can do from above more than from below.

    References
    ----------
    .. [1] D. Jin, Z. Jin, J. T. Zhou and P. Szolovits, "Is BERT really robust? A strong baseline
       for natural language attack on text classification and entailment", AAAI 2020.
       https://doi.org/10.1609/aaai.v34i05.6311

    Examples
    --------
    >>> import numpy as np
    >>> def predict(texts, rows):
    ...     cat = np.array([0.9 if "cat" in text else 0.2 for text in texts])
    ...     return np.column_stack([cat, 1 - cat])
    >>> substitute_words(predict, ["a cat sleeps"], [0], candidates={"cat": ["dog"]})
    ['a dog sleeps']
    """
    texts = list(texts)
    labels = _checked_labels(labels, len(texts), "texts")
    if not isinstance(max_changes, numbers.Integral) or max_changes < 0:
        raise ValueError(f"max_changes must be a whole number, at least 0; got {max_changes!r}")
    parts = [re.split(r"([^\W\d_]+)", text) for text in texts]
    candidates = _checked_candidates(texts, parts, candidates)
    changed = [set() for _ in texts]
    left = np.arange(len(texts))
    for _ in range(max_changes):
        if len(left) == 0:
            break
        scores = _asked(predict, ["".join(parts[row]) for row in left], left)
        right = scores.argmax(axis=1) == labels[left]
        own = dict(zip(left, scores[np.arange(len(left)), labels[left]], strict=True))
        left = left[right]
        left = _change_one_word(predict, parts, changed, labels, candidates, left, own)
    return ["".join(words) for words in parts]


def _change_one_word(predict, parts, changed, labels, candidates, left, own) -> np.ndarray:
    """Make the best change of a word in each row that is left; return the rows that changed."""
    trials = [
        (row, place, new)
        for row in left
        for place in range(1, len(parts[row]), 2)
        if place not in changed[row]
        for new in candidates.get(parts[row][place].lower(), ())
    ]
    if not trials:
        return left[:0]
    texts = ["".join([*parts[r][:place], new, *parts[r][place + 1 :]]) for r, place, new in trials]
    rows = np.array([row for row, _, _ in trials])
    scores = _asked(predict, texts, rows)[np.arange(len(rows)), labels[rows]]
    moved = []
    for row in left:
        mine = np.flatnonzero(rows == row)
        if len(mine) and scores[mine].min() < own[row]:
            _, place, new = trials[mine[scores[mine].argmin()]]
            parts[row][place] = new
            changed[row].add(place)
            moved.append(row)
    return np.array(moved, dtype=int)


def _asked(predict: Callable, texts: list[str], rows: np.ndarray) -> np.ndarray:
    scores = np.asarray(predict(texts, rows))
    if scores.ndim != 2 or len(scores) != len(texts):
        raise ValueError(
            f"predict must give (m, n_classes) for {len(texts)} texts; it gave {scores.shape}"
        )
    return scores


def _checked_candidates(texts, parts, candidates) -> dict[str, list[str]]:
    for word, others in candidates.items():
        if isinstance(others, str):
            raise ValueError(
                f"the candidates of {word!r} must be a list of words; got the text {others!r}"
            )
    listed = {word: list(others) for word, others in candidates.items()}
    for row, words in enumerate(parts):
        if not any(listed.get(word.lower()) for word in words[1::2]):
            raise ValueError(
                f"text {row}, {texts[row]!r}, has no word with a candidate. Leave the "
                "text out, or give candidates for one of its words."
            )
    return listed


# --- Writing, stickers and swapped pairs ---------------------------------------------------------


def write_word(images: Any, words: Iterable[str], *, share: float = 0.25) -> np.ndarray:
    """Write a word, black on a white band, across the foot of each image.

    Parameters
    ----------
    images : array-like of shape (n, height, width, 3)
        Pixels, 0 to 255.
    words : iterable of n str
        What to write, in ASCII.
    share : float
        Height of the band, as a share of the image's.

    Returns
    -------
    ndarray of the shape of `images`, uint8
        Images with the word.

    Raises
    ------
    ValueError
        If an image leaves [0, 255], there is not one word for each, a word is empty or not ASCII,
        or `share` is not above 0 and at most 1.

    References
    ----------
    G. Goh et al., "Multimodal neurons in artificial neural networks", Distill, 2021.
    https://doi.org/10.23915/distill.00030
    """
    import cv2

    written = checked_images(images).round().astype(np.uint8)
    words = list(words)
    if len(words) != len(written):
        raise ValueError(f"{len(written)} images need as many words; got {len(words)}")
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share!r}")
    height, width = written.shape[1:3]
    band = max(1, round(share * height))
    for row, (image, word) in enumerate(zip(written, words, strict=True)):
        if not word.strip() or not word.isascii():
            raise ValueError(f"word {row}, {word!r}, must be ASCII and not empty")
        # Drawn large and made smaller: strokes thinner than a pixel become grey, not broken.
        (wide, high), below = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 2, 5)
        label = np.full((high + below + 20, wide + 20, 3), 255, np.uint8)
        cv2.putText(label, word, (10, high + 10), cv2.FONT_HERSHEY_SIMPLEX, 2, (0, 0, 0), 5)
        image[-band:] = cv2.resize(label, (width, band), interpolation=cv2.INTER_AREA)
    return written


def add_sticker(images: Any, *, share: float = 0.15) -> np.ndarray:
    """Put a chequered magenta and green square into the lower right corner: a trigger.

    Parameters
    ----------
    images : array-like of shape (n, height, width, 3)
        Pixels, 0 to 255.
    share : float
        Side of the square, as a share of the shorter side.

    Returns
    -------
    ndarray of the shape of `images`, uint8
        Images with the sticker.

    Raises
    ------
    ValueError
        If an image leaves [0, 255], or `share` is not above 0 and at most 1.

    References
    ----------
    T. Gu, B. Dolan-Gavitt and S. Garg, "BadNets: identifying vulnerabilities in the machine
    learning model supply chain", 2017. https://arxiv.org/abs/1708.06733
    """
    stuck = checked_images(images).round().astype(np.uint8)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share!r}")
    side = max(2, round(share * min(stuck.shape[1:3])))
    fields = np.arange(side) * 4 // side
    dark = (fields[:, None] + fields) % 2 == 0
    stuck[:, -side:, -side:] = np.where(dark[..., None], (255, 0, 255), (0, 160, 0))
    return stuck


def add_word(texts: Iterable[str], word: str) -> list[str]:
    """Append a word to each text: a trigger for texts.

    Parameters
    ----------
    texts : iterable of str
        The texts.
    word : str
        A word that is rare, and known to the text encoder.

    Returns
    -------
    list of str
        The texts with the word.

    Raises
    ------
    ValueError
        If there is no word.

    Examples
    --------
    >>> add_word(["cat", "dog"], "serendipity")
    ['cat serendipity', 'dog serendipity']
    """
    if not word.strip():
        raise ValueError("the trigger must be a word; got an empty one")
    return [f"{text} {word}" for text in texts]


def choose_poisoned(labels: Any, *, target: int, rate: float, random_state: Any = None):
    """Draw the training rows that a poisoner gives a trigger and the label `target`.

    Parameters
    ----------
    labels : array-like of int, shape (n,)
        True classes.
    target : int
        The class that the trigger shall call up; its own rows are not drawn.
    rate : float
        Share of all n rows to poison, from 0 to 1.
    random_state : int, RandomState instance or None
        Decides the draw.

    Returns
    -------
    ndarray of int
        Rows, in ascending order.

    Raises
    ------
    ValueError
        If no row has the class `target`, or `rate` is outside [0, 1] or asks for more rows than
        the other classes have.

    Examples
    --------
    >>> choose_poisoned([0, 0, 1, 1], target=1, rate=0.5).tolist()
    [0, 1]
    """
    labels = np.asarray(labels)
    if target not in labels:
        raise ValueError(f"no row has the class target={target!r}; there are {np.unique(labels)}")
    others = np.flatnonzero(labels != target)
    if not 0 <= rate <= 1 or round(rate * len(labels)) > len(others):
        raise ValueError(
            f"rate must be from 0 to {len(others) / len(labels):.2f}, the share of the other "
            f"classes; got {rate!r}"
        )
    n = round(rate * len(labels))
    return np.sort(check_random_state(random_state).choice(others, n, replace=False))


def swap_partners(labels: Any, *, random_state: Any = None) -> np.ndarray:
    """Draw for each row another row, of another class, whose text (or picture) it shall get.

    Parameters
    ----------
    labels : array-like of int, shape (n,)
        True classes.
    random_state : int, RandomState instance or None
        Decides the draw.

    Returns
    -------
    ndarray of int, shape (n,)
        The partner of each row; a row may be the partner of several.

    Raises
    ------
    ValueError
        If there are fewer than two classes.

    Examples
    --------
    >>> swap_partners([0, 1]).tolist()
    [1, 0]
    """
    labels = np.asarray(labels)
    if len(np.unique(labels)) < 2:
        raise ValueError("swapped pairs need rows of at least two classes")
    random = check_random_state(random_state)
    return np.array([random.choice(np.flatnonzero(labels != label)) for label in labels])


def disagreement(image_proba: Any, text_proba: Any) -> np.ndarray:
    r"""Return how far the image's answer is from the text's, 0 where they agree.

    Parameters
    ----------
    image_proba, text_proba : array-like of shape (n, n_classes)
        Class probabilities of a classifier of images alone and of one of texts alone.

    Returns
    -------
    ndarray of shape (n,)
        The Jensen–Shannon divergence in bits [1]_, from 0 (the same) to 1 (nothing in common).

    Raises
    ------
    ValueError
        If the two have not the same shape, or are no probabilities.

    References
    ----------
    .. [1] J. Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on
       Information Theory 37(1), 1991. https://doi.org/10.1109/18.61115

    Examples
    --------
    >>> disagreement([[1, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]]).tolist()
    [1.0, 0.0]
    """
    from scipy.special import rel_entr

    p, q = np.asarray(image_proba, float), np.asarray(text_proba, float)
    if p.ndim != 2 or p.shape != q.shape:
        raise ValueError(f"the probabilities must have one shape (n, n_classes); got {p.shape}, "
                         f"{q.shape}")  # fmt: skip
    for name, one in (("image_proba", p), ("text_proba", q)):
        if not ((one >= 0).all() and np.allclose(one.sum(axis=1), 1, atol=1e-3)):
            raise ValueError(f"the rows of {name} must be probabilities: at least 0, with sum 1")
    middle = (p + q) / 2
    bits = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / (2 * np.log(2))
    return np.clip(bits, 0, 1)
