"""Fusing the features (early fusion) or the decisions (late fusion) of several modalities."""

import warnings
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax
from sklearn.base import ClassifierMixin, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import DataDimensionalityWarning
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.metaestimators import _BaseComposition, available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Fusion", "LateFusion", "feature_table", "stack_features"]


def feature_table(**modalities) -> "pd.DataFrame":
    """Lay the features of several modalities side by side, one row a pair.

    Vectors and sequences of any length travel in one table that scikit-learn can split, and a
    modality that a pair lacks is ``None``.

    Parameters
    ----------
    **modalities : array, list or tuple
        One column each, named by its keyword, such as ``image=…, text=…``:

        - an array (n, d): a vector a row;
        - an array (n, positions, d): a sequence or grid a row;
        - a list of n arrays, (d,) each or (length, d) each, with ``None`` for what is missing;
        - a tuple ``(tokens (n, length, d), mask (n, length) bool)``: where ``mask`` is False is
          padding, which is left out of the table.

        A sequence without a single position counts as missing.

    Returns
    -------
    DataFrame
        n rows; its cells are float32 arrays, (d,) or (length, d), or ``None``.

    Raises
    ------
    ValueError
        If the modalities have unequal numbers of rows, or a row holds NaN, something that is not
        a number, or another width than the rows before it.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.ones((3, 4))
    >>> words = [np.ones((2, 5)), None, np.ones((7, 5))]
    >>> table = feature_table(image=image, text=words)
    >>> table["image"][0].shape, table["text"][2].shape, table["text"][1]
    ((4,), (7, 5), None)
    """
    import pandas as pd

    if not modalities:
        raise ValueError("a feature table needs at least one modality, such as image=features")
    columns = {name: _cells(name, values) for name, values in modalities.items()}
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"every modality needs one entry a pair, but the lengths are: {counts}")
    return pd.DataFrame({name: _object_array(cells) for name, cells in columns.items()})


def stack_features(column, *, cell_shape: tuple | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of a feature table as one array and the mask of what it holds.

    Parameters
    ----------
    column : sequence of length n
        Float arrays (d,), or float arrays (length, d) with any lengths; ``None`` (or NaN, which
        pandas puts in its place when it joins tables) is missing.
    cell_shape : tuple of int, optional
        ``array.shape[1:]`` of the training rows, (d,) or (length, d). Rows of another kind or
        width are refused, and a column in which all is missing gets zeros of this shape.

    Returns
    -------
    array : ndarray of shape (n, d) or (n, longest, d), float32
        Missing rows, and the padding behind shorter sequences, are zeros.
    mask : ndarray of shape (n,) or (n, longest), bool
        True where a row is present, or where a position is.

    Raises
    ------
    ValueError
        If a row holds NaN, something that is not a number, or another width than the rows before
        it, or if every row is missing and ``cell_shape`` does not say what they would have been.

    Examples
    --------
    >>> import numpy as np
    >>> tokens, mask = stack_features([np.ones((2, 5)), None, np.ones((1, 5))])
    >>> tokens.shape, mask.tolist()
    ((3, 2, 5), [[True, True], [False, False], [True, False]])
    """
    name = getattr(column, "name", None) or "features"
    cells = _checked_cells(name, list(column))
    shapes = [cell.shape for cell in cells if cell is not None]
    if not shapes and cell_shape is None:
        raise ValueError(
            f"{name!r} is missing in all of the {len(cells)} rows, so its width is not known; pass "
            "cell_shape, the shape of a training row"
        )
    if shapes and cell_shape is not None:
        _check_same_kind(name, shapes[0], tuple(cell_shape))
    if len((shapes or [cell_shape])[0]) == 1:
        return _stack_vectors(cells, *(shapes or [cell_shape])[0])
    longest = max((shape[0] for shape in shapes), default=(cell_shape or (0,))[0])
    return _stack_sequences(cells, longest, (shapes or [cell_shape])[0][1])


def _cells(name: str, values) -> list:
    if isinstance(values, tuple):
        values = _without_padding(name, *values)
    return _checked_cells(name, list(values))


def _without_padding(name: str, tokens, mask) -> list:
    tokens, mask = np.asarray(tokens), np.asarray(mask)
    if mask.dtype != bool or tokens.ndim != 3 or mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"{name!r} must be (tokens (n, length, d), mask (n, length) bool); got shapes "
            f"{tokens.shape} and {mask.shape}, the mask of type {mask.dtype}"
        )
    return [row[real] for row, real in zip(tokens, mask, strict=True)]


def _checked_cells(name: str, cells: list) -> list:
    checked = [_checked_cell(name, row, cell) for row, cell in enumerate(cells)]
    present = [(row, cell.shape) for row, cell in enumerate(checked) if cell is not None]
    for row, shape in present:
        if len(shape) != len(present[0][1]) or shape[-1] != present[0][1][-1]:
            raise ValueError(
                f"{name!r} has shape {shape} in row {row}, but {present[0][1]} in row "
                f"{present[0][0]}; all rows need the same width, and all be vectors (d,) or all "
                "sequences (length, d)"
            )
    return checked


def _checked_cell(name: str, row: int, cell) -> np.ndarray | None:
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return None
    values = np.asarray(cell)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2) or values.shape[-1] == 0:
        raise ValueError(
            f"{name!r} must hold arrays of numbers, (d,) or (length, d); row {row} holds "
            f"{type(cell).__name__} of type {values.dtype} and shape {values.shape}. Encode it "
            "first, or write None where it is missing"
        )
    if len(values) == 0:
        return None
    with np.errstate(over="ignore"):  # too large for float32: infinite, and refused below
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name!r} holds NaN or infinite values in row {row}; write None where the whole row "
            "is missing"
        )
    return values


def _check_same_kind(name: str, shape: tuple, expected: tuple) -> None:
    if len(shape) != len(expected) or shape[-1] != expected[-1]:
        raise ValueError(f"{name!r} has rows of shape {shape}; in training they were {expected}")


def _object_array(cells: list) -> np.ndarray:
    # Filled one by one: np.array would make a matrix of cells that happen to be equally long.
    column = np.empty(len(cells), dtype=object)
    for row, cell in enumerate(cells):
        column[row] = cell
    return column


def _stack_vectors(cells: list, width: int) -> tuple[np.ndarray, np.ndarray]:
    present = np.array([cell is not None for cell in cells], dtype=bool)
    array = np.zeros((len(cells), width), np.float32)
    for row in np.flatnonzero(present):
        array[row] = cells[row]
    return array, present


def _stack_sequences(cells: list, longest: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    array = np.zeros((len(cells), longest, width), np.float32)
    mask = np.zeros((len(cells), longest), dtype=bool)
    for row, cell in enumerate(cells):
        if cell is not None:
            array[row, : len(cell)] = cell
            mask[row, : len(cell)] = True
    return array, mask


class _NamedParts(_BaseComposition):
    """Give (name, estimator, columns) lists the nested parameters of ColumnTransformer."""

    _parts: str  # the name of the constructor's parameter that holds the list

    @property
    def _pairs(self) -> list:
        # get_params() is also asked of half-built objects, whose list may not be triples yet.
        try:
            return [(name, estimator) for name, estimator, _ in getattr(self, self._parts)]
        except (TypeError, ValueError):
            return getattr(self, self._parts)

    @_pairs.setter
    def _pairs(self, pairs: list) -> None:
        columns = [columns for _, _, columns in getattr(self, self._parts)]
        parts = [(name, part, cols) for (name, part), cols in zip(pairs, columns, strict=True)]
        setattr(self, self._parts, parts)

    def get_params(self, deep: bool = True) -> dict:
        """Return the parameters; with ``deep``, also those of the named parts."""
        return self._get_params("_pairs", deep=deep)

    def set_params(self, **params):
        """Set parameters, also nested ones such as ``image__batch_size``."""
        if self._parts in params:
            setattr(self, self._parts, params.pop(self._parts))
        self._set_params("_pairs", **params)
        return self

    def _check_parts(self) -> None:
        parts = getattr(self, self._parts)
        if not isinstance(parts, list) or not parts or any(len(part) != 3 for part in parts):
            raise ValueError(
                f"{self._parts} must be a list of (name, estimator, columns) with at least one "
                f'entry, such as [("text", GloVeEncoder(), "text")]; got {parts!r}'
            )
        self._validate_names([name for name, _, _ in parts])


class Fusion(TransformerMixin, _NamedParts):
    r"""Encode the named blocks, bring them to the same strength, and fuse them.

    Each block (say, ``image`` and ``text``) is encoded by its own transformer, each of its
    features is standardised, and the whole block is divided by its root mean square length.
    Every block then has the same mean square length, 1, so that distances and linear
    penalties do not favour the block that happens to have more features.

    Parameters
    ----------
    transformers : list of (name, transformer, columns)
        As in :class:`sklearn.compose.ColumnTransformer`. ``"passthrough"`` uses the columns as
        they are, ``"drop"`` leaves the block out (which makes an ablation one ``set_params``).
    how : {"concat", "mean", "product"}
        ``concat`` lays the blocks side by side. ``mean`` and ``product`` first project every
        block to a common width, then average or multiply them entry by entry.
    projection : {"random", "pca"}
        How ``mean`` and ``product`` reach the common width.
    n_components : int or None
        The common width; ``None`` means 1024 for random projections and the width of the
        narrowest block (or the number of training rows, if that is smaller) for PCA.
    random_state : int, RandomState instance or None
        Seed of the random projections.

    Attributes
    ----------
    encoder_ : ColumnTransformer
        The fitted transformers.
    blocks_ : dict of str to slice
        Where each block lies in the encoded features, and in the output of ``concat``.
    scaler_ : StandardScaler
        Mean and standard deviation of every encoded feature.
    lengths_ : dict of str to float
        Root mean square length of each standardised block: the number that it is divided by.
    projections_ : dict of str to transformer
        The projection of each block; empty for ``concat``.
    fused_length_ : float
        Root mean square length of the training rows' mean or product, by which it is divided
        so that a linear classifier's penalty means the same for every fusion; 1 for ``concat``.

    Notes
    -----
    With balanced blocks :math:`z_v, z_t` and projections :math:`R, S`, the mean is
    :math:`\tfrac12 (R z_v + S z_t)`. For random projections this is a random projection of the
    concatenation and keeps its distances nearly as they were [1]_. For PCA it adds components
    that share nothing but their rank, and information is lost.

    Entry k of the product is :math:`(r_k^\top z_v)(s_k^\top z_t)`. For random projections it is a
    random projection, or sketch, of the outer product :math:`z_v z_t^\top`, so that a linear
    classifier can learn any interaction of the blocks if there are enough entries [2]_, [3]_.
    For PCA component k of one block meets component k of the other only. On features whose
    label is the XOR of a bit in each block, a linear SVM has above 0.95 with the random product
    and below 0.75 with any of the others, which is why ``"random"`` is the default.

    Features are made dense, so put a ``TruncatedSVD`` behind a ``TfidfVectorizer`` with many
    words.

    References
    ----------
    .. [1] Johnson and Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space",
       Contemporary Mathematics 26, 1984, https://doi.org/10.1090/conm/026/737400
    .. [2] Kar and Karnick, "Random feature maps for dot product kernels", AISTATS 2012,
       https://proceedings.mlr.press/v22/kar12.html
    .. [3] Gao, Beijbom, Zhang and Darrell, "Compact bilinear pooling", CVPR 2016,
       https://doi.org/10.1109/CVPR.2016.41

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(20, 5))
    >>> blocks = [("image", "passthrough", [0, 1, 2]), ("text", "passthrough", [3, 4])]
    >>> Fusion(blocks).fit_transform(X).shape
    (20, 5)
    >>> Fusion(blocks, how="product", n_components=64).fit_transform(X).shape
    (20, 64)
    """

    _parts = "transformers"

    def __init__(
        self,
        transformers,
        *,
        how="concat",
        projection="random",
        n_components=None,
        random_state=None,
    ):
        self.transformers = transformers
        self.how = how
        self.projection = projection
        self.n_components = n_components
        self.random_state = random_state

    def fit(self, X, y=None):
        """Fit the encoders, the scaling and the projections; see ``fit_transform``."""
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X, y=None):
        """Fit on the table ``X`` (n rows) and return the fused features, (n, d) float32."""
        self._check_parameters()
        self.encoder_ = ColumnTransformer(self.transformers, sparse_threshold=0)
        encoded = self.encoder_.fit_transform(X, y)
        self.n_features_in_ = self.encoder_.n_features_in_
        self.blocks_ = {
            name: columns
            for name, columns in getattr(self.encoder_, "output_indices_", {}).items()
            if columns.start < columns.stop
        }
        features = self._check_features(encoded)
        self.scaler_ = StandardScaler().fit(features)
        blocks = self._split(self.scaler_.transform(features).astype(np.float32))
        self.lengths_ = {name: _rms_length(block) for name, block in blocks.items()}
        self._fit_projections(blocks)
        self.fused_length_ = 1.0
        if self.how != "concat":
            self.fused_length_ = _rms_length(self._fuse(blocks))
        return self._fuse(blocks)

    def transform(self, X):
        """Return the fused features of the table ``X`` (n rows), (n, d) float32."""
        check_is_fitted(self, "scaler_")
        features = self._check_features(self.encoder_.transform(X))
        return self._fuse(self._split(self.scaler_.transform(features).astype(np.float32)))

    def get_feature_names_out(self, input_features=None):
        """Names of the fused features: ``image__…`` for concat, else ``mean0``, ``mean1``, …."""
        check_is_fitted(self, "scaler_")
        if self.how == "concat":
            return self.encoder_.get_feature_names_out(input_features)
        width = _projected_width(next(iter(self.projections_.values())))
        return np.array([f"{self.how}{i}" for i in range(width)], dtype=object)

    def __sklearn_tags__(self):
        """Sparse features are made dense, and all are made float32."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _check_parameters(self) -> None:
        self._check_parts()
        if self.how not in ("concat", "mean", "product"):
            raise ValueError(f'how must be "concat", "mean" or "product"; got {self.how!r}')
        if self.projection not in ("random", "pca"):
            raise ValueError(f'projection must be "random" or "pca"; got {self.projection!r}')
        if self.n_components is not None and not _is_positive_integer(self.n_components):
            raise ValueError(f"n_components must be a whole number ≥ 1; got {self.n_components!r}")

    def _check_features(self, encoded) -> np.ndarray:
        blocks = self._split(np.asarray(encoded))
        if not blocks:
            raise ValueError("every block is dropped or empty, so there is nothing to fuse")
        return np.hstack([_check_block(name, block) for name, block in blocks.items()])

    def _split(self, features: np.ndarray) -> dict:
        return {name: features[:, columns] for name, columns in self.blocks_.items()}

    def _fit_projections(self, blocks: dict) -> None:
        self.projections_ = {}
        if self.how == "concat":
            return
        width = self.n_components or _default_width(self.projection, blocks)
        # One generator for all blocks: the same seed for each would give blocks of equal width
        # the same matrix, and their average would hide all in which they are opposite.
        random_state = check_random_state(self.random_state)
        for name, block in blocks.items():
            if self.projection == "pca":
                _check_pca_width(name, block, width)
                projection = PCA(width, random_state=random_state)
            else:
                projection = GaussianRandomProjection(width, random_state=random_state)
            with warnings.catch_warnings():
                # More components than features are meant: a product needs the room.
                warnings.simplefilter("ignore", DataDimensionalityWarning)
                self.projections_[name] = projection.fit(block / self.lengths_[name])

    def _fuse(self, blocks: dict) -> np.ndarray:
        balanced = {name: block / self.lengths_[name] for name, block in blocks.items()}
        if self.how == "concat":
            return np.hstack(list(balanced.values()))
        projected = [self.projections_[name].transform(block) for name, block in balanced.items()]
        if self.how == "mean":
            return np.mean(projected, axis=0) / self.fused_length_
        return np.prod(projected, axis=0) / self.fused_length_


def _is_positive_integer(value) -> bool:
    return isinstance(value, Integral) and value >= 1


def _check_block(name: str, block: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(block):
        raise ValueError(f"block {name!r} holds complex numbers. Complex data not supported")
    try:
        # Only after scaling can float64 be cut to float32: timestamps differ in late digits.
        block = block.astype(np.float32 if block.dtype == np.float32 else np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"block {name!r} is not numeric ({error}); encode it first, for instance texts with "
            "GloVeEncoder() and images with PretrainedCNN()"
        ) from error
    bad_rows = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad_rows):
        raise ValueError(
            f"block {name!r} holds NaN or infinite values in {len(bad_rows)} of {len(block)} "
            f"rows, first in row {bad_rows[0]}; drop or impute those rows before fusing"
        )
    return block


def _rms_length(block: np.ndarray) -> float:
    length = np.sqrt(np.mean(np.sum(np.square(block, dtype=np.float64), axis=1)))
    # A block that never varies is all zeros once standardised, and has no length to divide by.
    return float(length) if length > 0 else 1.0


def _default_width(projection: str, blocks: dict) -> int:
    if projection == "random":
        return 1024
    return min(min(block.shape) for block in blocks.values())


def _check_pca_width(name: str, block: np.ndarray, width: int) -> None:
    if width > min(block.shape):
        raise ValueError(
            f"PCA can give block {name!r} at most {min(block.shape)} components, the smaller of "
            f"its {block.shape[0]} rows and {block.shape[1]} features, not n_components={width}; "
            'lower n_components or use projection="random"'
        )


def _projected_width(projection) -> int:
    return projection.components_.shape[0]


def _gives_probabilities(late_fusion) -> bool:
    return late_fusion.how != "margin"


class LateFusion(ClassifierMixin, _NamedParts):
    """Train one classifier per modality and fuse their answers.

    Parameters
    ----------
    classifiers : list of (name, classifier, columns)
        Each classifier sees only its own columns of the table: a string gives it one column as
        a series, a list gives it a smaller table.
    how : {"mean", "product", "margin"}
        ``mean`` averages the class probabilities. ``product`` multiplies them and divides by
        their sum, so that one classifier that rules a class out has a veto. ``margin`` averages
        the one-against-the-rest scores of ``decision_function``, for support vector machines:
        training pulls every such score towards +1 or -1, so that those of different machines
        are on one scale without a calibration. It gives no probabilities.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; the columns of ``predict_proba``.
    classifiers_ : dict of str to classifier
        The fitted classifiers.

    References
    ----------
    Kittler, Hatef, Duin and Matas, "On combining classifiers", IEEE TPAMI 20(3), 1998,
    https://doi.org/10.1109/34.667881
    """

    _parts = "classifiers"

    def __init__(self, classifiers, *, how="mean"):
        self.classifiers = classifiers
        self.how = how

    def fit(self, X, y):
        """Fit every classifier on its own columns of ``X`` (n rows) and the labels ``y`` (n,)."""
        self._check_parts()
        if self.how not in ("mean", "product", "margin"):
            raise ValueError(f'how must be "mean", "product" or "margin"; got {self.how!r}')
        self._check_classifiers()
        check_classification_targets(y)
        validate_data(self, X, skip_check_array=True)  # keeps the names and number of columns
        self.classes_ = np.unique(y)
        self.classifiers_ = {
            name: clone(classifier).fit(_safe_indexing(X, columns, axis=1), y)
            for name, classifier, columns in self.classifiers
        }
        return self

    @available_if(_gives_probabilities)
    def predict_proba(self, X) -> np.ndarray:
        """Return the fused class probabilities, (n, n_classes) float64."""
        return self._fused_scores(X)

    def predict(self, X) -> np.ndarray:
        """Return the label with the highest fused probability or margin of every row, (n,)."""
        # Asked for before classes_, which an unfitted model does not have.
        scores = self._fused_scores(X)
        return self.classes_[scores.argmax(axis=1)]

    def _check_classifiers(self) -> None:
        needed = "decision_function" if self.how == "margin" else "predict_proba"
        for name, classifier, _ in self.classifiers:
            if not hasattr(classifier, needed):
                raise ValueError(
                    f"classifier {name!r} ({classifier!r}) has no {needed}, which late fusion with "
                    f"how={self.how!r} needs; take LogisticRegression, which has both, or for "
                    "probabilities wrap it in CalibratedClassifierCV"
                )

    def _fused_scores(self, X) -> np.ndarray:
        check_is_fitted(self, "classifiers_")
        validate_data(self, X, skip_check_array=True, reset=False)
        scores = self._all_scores(X)
        if self.how != "product":
            return scores.mean(axis=0)
        # In logarithms, because a product of many small numbers underflows; and with a floor,
        # because where each class is ruled out by someone 0/0 would be left.
        floor = np.finfo(np.float64).tiny
        return softmax(np.log(np.maximum(scores, floor)).sum(axis=0), axis=1)

    def __sklearn_tags__(self):
        """Sparse features are handed on; whether they will do is for the classifiers to say."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _all_scores(self, X) -> np.ndarray:
        return np.stack(
            [
                self._aligned(self.classifiers_[name], _safe_indexing(X, columns, axis=1))
                for name, _, columns in self.classifiers
            ]
        )

    def _aligned(self, classifier, X) -> np.ndarray:
        """Put the classifier's columns where they belong; a class that it lacks gets its no."""
        if self.how == "margin":
            known, absent = classifier.decision_function(X), -1.0
            # With two classes scikit-learn gives only the margin of the second.
            known = np.column_stack([-known, known]) if known.ndim == 1 else known
        else:
            known, absent = classifier.predict_proba(X), 0.0
        scores = np.full((len(known), len(self.classes_)), absent)
        scores[:, np.searchsorted(self.classes_, classifier.classes_)] = known
        return scores
