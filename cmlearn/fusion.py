"""Fusing the features (early fusion) or the decisions (late fusion) of several modalities."""

import warnings
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import issparse
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import DataDimensionalityWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils import _safe_indexing, check_consistent_length, check_random_state
from sklearn.utils.metaestimators import _BaseComposition, available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from cmlearn._folds import (
    fit_on,
    inner_folds,
    logits,
    margins,
    out_of_fold_scores,
    probabilities,
)
from cmlearn.calibration import fit_temperature

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Fusion", "LateFusion", "drop_modality", "feature_table", "stack_features"]


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


def drop_modality(
    table: "pd.DataFrame", name: str, share: float = 1.0, *, random_state=None
) -> "pd.DataFrame":
    """Return a copy of a table in which a random share of the rows lacks a modality.

    Parameters
    ----------
    table : DataFrame
        A feature table, or one of images and texts.
    name : str
        The column, such as ``"image"``.
    share : float
        From 0 to 1. With the same seed, the rows that lack it at one share lack it at every
        larger share too.
    random_state : int, RandomState instance or None
        Seed of the choice of rows.

    Returns
    -------
    DataFrame
        With ``None`` in those cells.
    """
    if name not in table:
        raise ValueError(f"there is no column {name!r}; the table has {list(table)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1; got {share!r}")
    order = check_random_state(random_state).permutation(len(table))
    cells = list(table[name])
    for row in order[: round(share * len(table))]:
        cells[row] = None
    return table.assign(**{name: _object_array(cells)})


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
        A column of a :func:`feature_table` is passed through by its name, as in ``("image",
        "passthrough", "image")``; of sequences the mean over the positions is taken.
    how : {"concat", "mean", "product"}
        ``concat`` lays the blocks side by side. ``mean`` and ``product`` first project every
        block to a common width, then average or multiply them entry by entry.
    projection : {"random", "pca"}
        How ``mean`` and ``product`` reach the common width.
    n_components : int or None
        The common width; ``None`` means 1024 for random projections and the width of the
        narrowest block (or the number of training rows, if that is smaller) for PCA.
    missing : {"error", "mask"}
        What to do with a row in which all columns of a block are missing (``None`` or NaN).
        ``mask`` leaves the block out there: encoders do not see the row, ``concat`` has zeros
        for it (each feature at its mean), ``mean`` averages the blocks that are present, and
        ``product`` takes a constant vector of length 1 instead. A row without any block is zero.
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
        missing="error",
        random_state=None,
    ):
        self.transformers = transformers
        self.how = how
        self.projection = projection
        self.n_components = n_components
        self.missing = missing
        self.random_state = random_state

    def fit(self, X, y=None):
        """Fit the encoders, the scaling and the projections; see ``fit_transform``."""
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X, y=None):
        """Fit on the table ``X`` (n rows) and return the fused features, (n, d) float32."""
        self._check_parameters()
        self.encoder_ = ColumnTransformer(self._encoders(), sparse_threshold=0)
        encoded = self.encoder_.fit_transform(X, y)
        self.n_features_in_ = self.encoder_.n_features_in_
        self.blocks_ = {
            name: columns
            for name, columns in getattr(self.encoder_, "output_indices_", {}).items()
            if columns.start < columns.stop
        }
        features = self._check_features(encoded)
        _check_not_all_missing(self._split(features))
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
        tags.input_tags.allow_nan = self.missing == "mask"
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
        _check_missing(self.missing)

    def _encoders(self) -> list:
        return [
            (name, _block_encoder(name, transformer, columns, self.missing), columns)
            for name, transformer, columns in self.transformers
        ]

    def _check_features(self, encoded) -> np.ndarray:
        blocks = self._split(np.asarray(encoded))
        if not blocks:
            raise ValueError("every block is dropped or empty, so there is nothing to fuse")
        return np.hstack(
            [_check_block(name, block, self.missing) for name, block in blocks.items()]
        )

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
            block = block[_present(block)]
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
        present = np.column_stack([_present(block) for block in blocks.values()])
        balanced = {
            name: np.nan_to_num(block) / self.lengths_[name] for name, block in blocks.items()
        }
        if self.how == "concat":
            return np.hstack(list(balanced.values()))
        projected = np.stack(
            [self.projections_[name].transform(block) for name, block in balanced.items()]
        )
        return self._combine(projected, present.T[:, :, np.newaxis]) / self.fused_length_

    def _combine(self, projected: np.ndarray, present: np.ndarray) -> np.ndarray:
        if self.how == "mean":
            return projected.sum(axis=0) / np.maximum(present.sum(axis=0, dtype=np.float32), 1)
        # Like a projected block's, its length is 1: or rows with one block would be far longer.
        neutral = np.float32(1 / np.sqrt(projected.shape[2]))
        product = np.where(present, projected, neutral).prod(axis=0)
        return np.where(present.any(axis=0), product, np.float32(0))


def _is_positive_integer(value) -> bool:
    return isinstance(value, Integral) and value >= 1


def _check_missing(missing: str) -> None:
    if missing not in ("error", "mask"):
        raise ValueError(f'missing must be "error" or "mask"; got {missing!r}')


def _missing_rows(X) -> np.ndarray:
    """Return for each row of some columns whether all of them are missing, (n,) bool."""
    if issparse(X):
        return np.zeros(X.shape[0], dtype=bool)
    import pandas as pd

    missing = np.asarray(pd.isna(X)).reshape(len(X), -1)
    return missing.all(axis=1) & (missing.shape[1] > 0)


def _present(block: np.ndarray) -> np.ndarray:
    # Blocks are checked when they are encoded: a row of them is all NaN or not at all.
    return ~np.isnan(block[:, 0])


def _block_encoder(name: str, transformer, columns, missing: str):
    if isinstance(transformer, str):
        of_cells = transformer == "passthrough" and isinstance(columns, str)
        return _CellsToMatrix() if of_cells else transformer
    return _PresentRows(transformer, name) if missing == "mask" else transformer


class _CellsToMatrix(TransformerMixin, BaseEstimator):
    """A column of a feature table as a matrix, NaN where it is missing."""

    def fit(self, X, y=None):
        array, _ = stack_features(X)
        self.cell_shape_ = array.shape[1:]
        return self

    def transform(self, X) -> np.ndarray:
        array, mask = stack_features(X, cell_shape=self.cell_shape_)
        if array.ndim == 2:
            return np.where(mask[:, np.newaxis], array, np.float32(np.nan))
        counts = mask.sum(axis=1, dtype=np.float32)[:, np.newaxis]
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
            return array.sum(axis=1) / counts

    def get_feature_names_out(self, input_features) -> np.ndarray:
        (column,) = input_features
        return np.array([f"{column}{i}" for i in range(self.cell_shape_[-1])], dtype=object)


class _PresentRows(TransformerMixin, BaseEstimator):
    """Show a transformer only the rows that are there, and give NaN for the others."""

    def __init__(self, transformer, name):
        self.transformer = transformer
        self.name = name

    def fit(self, X, y=None):
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X, y=None) -> np.ndarray:
        present = ~_missing_rows(X)
        if not present.any():
            raise ValueError(
                f"block {self.name!r} is missing in all of the {len(present)} training rows"
            )
        self.transformer_ = clone(self.transformer)
        y = None if y is None else np.asarray(y)[present]
        encoded = self.transformer_.fit_transform(_safe_indexing(X, present), y)
        self.width_ = encoded.shape[1]
        return _spread(encoded, present)

    def transform(self, X) -> np.ndarray:
        present = ~_missing_rows(X)
        if not present.any():
            return np.full((len(present), self.width_), np.nan, np.float32)
        return _spread(self.transformer_.transform(_safe_indexing(X, present)), present)

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        return self.transformer_.get_feature_names_out(input_features)


def _spread(encoded, present: np.ndarray) -> np.ndarray:
    encoded = encoded.toarray() if issparse(encoded) else np.asarray(encoded)
    dtype = np.result_type(encoded.dtype, np.float32)  # whole numbers have no NaN
    spread = np.full((len(present), encoded.shape[1]), np.nan, dtype)
    spread[present] = encoded
    return spread


def _check_block(name: str, block: np.ndarray, missing: str) -> np.ndarray:
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
    whole = np.isnan(block).all(axis=1) & (missing == "mask")
    bad_rows = np.flatnonzero(~np.isfinite(block).all(axis=1) & ~whole)
    if len(bad_rows):
        raise ValueError(
            f"block {name!r} holds NaN or infinite values in {len(bad_rows)} of {len(block)} "
            f"rows, first in row {bad_rows[0]}; drop or impute those rows before fusing, or, where "
            'the whole block is missing, set missing="mask"'
        )
    return block


def _check_not_all_missing(blocks: dict) -> None:
    for name, block in blocks.items():
        if not _present(block).any():
            raise ValueError(f"block {name!r} is missing in all of the {len(block)} training rows")


def _rms_length(block: np.ndarray) -> float:
    present = block[_present(block)]
    length = np.sqrt(np.mean(np.sum(np.square(present, dtype=np.float64), axis=1)))
    # A block that never varies is all zeros once standardised, and has no length to divide by.
    return float(length) if length > 0 else 1.0


def _default_width(projection: str, blocks: dict) -> int:
    if projection == "random":
        return 1024
    return min(min(_present(block).sum(), block.shape[1]) for block in blocks.values())


def _check_pca_width(name: str, block: np.ndarray, width: int) -> None:
    if width > min(block.shape):
        raise ValueError(
            f"PCA can give block {name!r} at most {min(block.shape)} components, the smaller of "
            f"its {block.shape[0]} rows and {block.shape[1]} features, not n_components={width}; "
            'lower n_components or use projection="random"'
        )


def _projected_width(projection) -> int:
    return projection.components_.shape[0]


_LEARNED = ("weighted", "stacking", "confidence")
_HOWS = ("mean", "product", "margin", *_LEARNED)


def _gives_probabilities(late_fusion) -> bool:
    return late_fusion.how != "margin"


class LateFusion(ClassifierMixin, _NamedParts):
    r"""Train one classifier per modality and fuse their answers.

    Parameters
    ----------
    classifiers : list of (name, classifier, columns)
        Each classifier sees only its own columns of the table: a string gives it one column as
        a series, a list gives it a smaller table.
    how : {"mean", "product", "margin", "weighted", "stacking", "confidence"}
        ``mean`` averages the class probabilities. ``product`` multiplies them and divides by
        their sum, so that one classifier that rules a class out has a veto. ``margin`` averages
        the one-against-the-rest scores of ``decision_function``, for support vector machines:
        training pulls every such score towards +1 or -1, so that those of different machines
        are on one scale without a calibration. It gives no probabilities.

        The other three learn how to fuse from out-of-fold scores (see Notes) and take
        classifiers with ``decision_function`` or ``predict_proba``. ``weighted`` gives each
        classifier one weight. ``confidence`` gives it another weight for every row, the
        probability of its first choice. ``stacking`` fits a logistic regression on all scores.
    missing : {"error", "mask"}
        What to do with a row in which all columns of a classifier are missing (``None`` or NaN).
        ``mask`` leaves the row out of that classifier's training, and lets the others decide
        about it. A row without any modality gets the classes' shares of the training rows.
    cv : int, splitter or iterable
        The inner folds of the hows that learn, as in
        :class:`cmlearn.calibration.TemperatureScaling`.
    scoring : {"neg_log_loss", "accuracy"}
        What the weights of ``weighted`` are chosen by.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; the columns of ``predict_proba``.
    classifiers_ : dict of str to classifier
        The fitted classifiers.
    class_prior_ : ndarray of shape (n_classes,)
        The classes' shares of the training rows.
    temperatures_ : ndarray of shape (n_classifiers,)
        The temperature of each classifier's softmax (``weighted`` and ``confidence``).
    weights_ : ndarray of shape (n_classifiers,)
        At least 0, with sum 1 (``weighted``).
    temperature_ : float
        The temperature of the fused distribution (``weighted`` and ``confidence``).
    stacker_ : LogisticRegression
        Takes the classifiers' scores side by side (``stacking``).
    score_means_ : ndarray of shape (n_classifiers, n_classes)
        What ``stacking`` takes as the scores of a classifier whose modality is missing.

    Notes
    -----
    Inner cross-validation gives each training row scores from classifiers that were not fitted
    on it; then every classifier is fitted on all rows. With ``groups``, related rows stay in one
    fold: otherwise the scores would look surer than they are.

    ``weighted`` and ``confidence`` are logarithmic opinion pools [2]_. The scores of classifier
    b become probabilities :math:`p_b` by temperature scaling [3]_, and

    .. math:: p(c) \propto \Bigl(\prod_b p_b(c)^{w_b}\Bigr)^{1/T},

    where :math:`w_b` is the learned weight, or :math:`\max_c p_b(c)` [4]_, and T is the
    temperature with the lowest log loss. It undoes the false certainty that multiplying
    dependent answers brings. A missing modality is a factor of 1.

    Temperature scaling needs margins that mean the same for every class, so take
    ``OneVsRestClassifier(SVC())``: the margins of a bare ``SVC`` for several classes count
    votes.

    ``stacking`` equals :class:`sklearn.ensemble.StackingClassifier` [5]_ with a
    ``LogisticRegression`` on the same folds: probabilities are its features, or, from
    classifiers without them, margins. It has learned how the scores go together, so it loses
    most when a modality is missing that was there in training; a pool only leaves a factor out.

    References
    ----------
    .. [1] Kittler, Hatef, Duin and Matas, "On combining classifiers", IEEE TPAMI 20(3), 1998,
       https://doi.org/10.1109/34.667881
    .. [2] Heskes, "Selecting weighting factors in logarithmic opinion pools", NIPS 1997,
       https://proceedings.neurips.cc/paper/1997/hash/81c8727c62e800be708dbf37c4695dff-Abstract.html
    .. [3] Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks",
       ICML 2017, https://proceedings.mlr.press/v70/guo17a.html
    .. [4] Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution
       examples in neural networks", ICLR 2017, https://arxiv.org/abs/1610.02136
    .. [5] Wolpert, "Stacked generalization", Neural Networks 5(2), 1992,
       https://doi.org/10.1016/S0893-6080(05)80023-1

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> parts = [("sepal", LogisticRegression(), [0, 1]), ("petal", LogisticRegression(), [2, 3])]
    >>> fused = LateFusion(parts, how="weighted").fit(X, y)
    >>> bool(fused.weights_[1] > fused.weights_[0])
    True
    """

    _parts = "classifiers"

    def __init__(self, classifiers, *, how="mean", missing="error", cv=5, scoring="neg_log_loss"):
        self.classifiers = classifiers
        self.how = how
        self.missing = missing
        self.cv = cv
        self.scoring = scoring

    def fit(self, X, y, groups=None):
        """Fit every classifier on its own columns, and what fuses them.

        Parameters
        ----------
        X : table or array of n rows
            Holds the columns of every classifier.
        y : array-like of shape (n,)
            Labels of any type.
        groups : array-like of shape (n,), optional
            Related rows, which stay in one inner fold. They are handed on to classifiers whose
            ``fit`` takes them.
        """
        self._check_parameters()
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y, groups)
        validate_data(self, X, skip_check_array=True)  # keeps the names and number of columns
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.class_prior_ = np.bincount(codes) / len(codes)
        present = self._rows_seen(X)
        self._check_branches(codes, present)
        self.classifiers_ = {
            name: fit_on(
                classifier, _safe_indexing(X, columns, axis=1), y, groups, np.flatnonzero(here)
            )
            for (name, classifier, columns), here in zip(self.classifiers, present, strict=True)
        }
        if self.how in _LEARNED:
            self._learn(self._out_of_fold(X, y, groups, present), present, codes)
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

    def __sklearn_tags__(self):
        """Sparse features are handed on; whether they will do is for the classifiers to say."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.missing == "mask"
        return tags

    def _check_parameters(self) -> None:
        self._check_parts()
        if self.how not in _HOWS:
            names = ", ".join(f'"{how}"' for how in _HOWS[:-1])
            raise ValueError(f'how must be {names} or "{_HOWS[-1]}"; got {self.how!r}')
        _check_missing(self.missing)
        if self.scoring not in ("neg_log_loss", "accuracy"):
            raise ValueError(f'scoring must be "neg_log_loss" or "accuracy"; got {self.scoring!r}')
        for name, classifier, _ in self.classifiers:
            self._check_classifier(name, classifier)

    def _check_classifier(self, name: str, classifier) -> None:
        needed = ["decision_function"] if self.how == "margin" else ["predict_proba"]
        if self.how in _LEARNED:
            needed = ["predict_proba", "decision_function"]
        if not any(hasattr(classifier, method) for method in needed):
            raise ValueError(
                f"classifier {name!r} ({classifier!r}) has no {' or '.join(needed)}, which late "
                f"fusion with how={self.how!r} needs; take LogisticRegression, which has both, or "
                "for probabilities wrap it in cmlearn.calibration.TemperatureScaling"
            )

    def _rows_seen(self, X) -> np.ndarray:
        """Return which classifier has something to see in which row, (n_classifiers, n) bool."""
        columns = [_safe_indexing(X, columns, axis=1) for _, _, columns in self.classifiers]
        present = ~np.stack([_missing_rows(part) for part in columns])
        if self.missing == "error" and not present.all():
            branch, row = np.argwhere(~present)[0]
            raise ValueError(
                f"row {row} holds nothing (NaN) for classifier {self.classifiers[branch][0]!r}; "
                'set missing="mask" to let the other classifiers decide about such rows'
            )
        return present

    def _check_branches(self, codes: np.ndarray, present: np.ndarray) -> None:
        for (name, _, _), here in zip(self.classifiers, present, strict=True):
            seen = np.unique(codes[here])
            if not len(seen):
                raise ValueError(f"the columns of classifier {name!r} are missing in every row")
            if len(seen) < min(2, len(self.classes_)):
                raise ValueError(
                    f"classifier {name!r} has rows of one class only, "
                    f"{self.classes_.tolist()[seen[0]]!r}; the others are missing there"
                )

    def _scores(self, classifier, X) -> np.ndarray:
        if self.how == "margin":
            return margins(classifier, X, self.classes_)
        if self.how in ("weighted", "confidence"):
            return logits(classifier, X, self.classes_)
        if hasattr(classifier, "predict_proba"):
            return probabilities(classifier, X, self.classes_)
        return margins(classifier, X, self.classes_)

    def _out_of_fold(self, X, y, groups, present: np.ndarray) -> np.ndarray:
        splits = inner_folds(self.cv, y, groups)
        return np.stack(
            [
                out_of_fold_scores(
                    classifier,
                    _safe_indexing(X, columns, axis=1),
                    y,
                    groups,
                    splits,
                    score=self._scores,
                    present=here,
                )
                for (_, classifier, columns), here in zip(self.classifiers, present, strict=True)
            ]
        )

    def _learn(self, scores: np.ndarray, present: np.ndarray, codes: np.ndarray) -> None:
        """Fit what fuses out-of-fold ``scores`` (n_classifiers, n, n_classes), NaN if missing."""
        present = present & ~np.isnan(scores).any(axis=2)  # cv may leave rows unscored
        known = present.any(axis=0)
        scores, present, codes = scores[:, known], present[:, known], codes[known]
        if self.how == "stacking":
            self.score_means_ = np.nanmean(scores, axis=1)
            self.stacker_ = LogisticRegression(max_iter=1000)
            self.stacker_.fit(self._features(scores, present), codes)
            return
        self.temperatures_ = np.array(
            [
                fit_temperature(part[here], codes[here])
                for part, here in zip(scores, present, strict=True)
            ]
        )
        logs = self._log_probabilities(scores, present)
        if self.how == "weighted":
            search = _weights_by_accuracy if self.scoring == "accuracy" else _weights_by_log_loss
            self.weights_ = search(logs, codes)
        self.temperature_ = fit_temperature(self._pooled(logs), codes)

    def _fused_scores(self, X) -> np.ndarray:
        check_is_fitted(self, "classifiers_")
        validate_data(self, X, skip_check_array=True, reset=False)
        present = self._rows_seen(X)
        scores = np.zeros((*present.shape, len(self.classes_)))
        for branch, (name, _, columns) in enumerate(self.classifiers):
            rows = np.flatnonzero(present[branch])
            if len(rows):
                part = _safe_indexing(_safe_indexing(X, columns, axis=1), rows)
                scores[branch, rows] = self._scores(self.classifiers_[name], part)
        fused = self._fuse(scores, present)
        fused[~present.any(axis=0)] = self.class_prior_
        return fused

    def _fuse(self, scores: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Fuse (n_classifiers, n, n_classes); what ``scores`` hold where not present is ignored."""
        here = present[:, :, np.newaxis]
        if self.how in ("mean", "margin"):
            return np.where(here, scores, 0).sum(axis=0) / np.maximum(here.sum(axis=0), 1)
        if self.how == "product":
            # In logarithms, because a product of many small numbers underflows; and with a floor,
            # because where each class is ruled out by someone 0/0 would be left.
            floor = np.finfo(np.float64).tiny
            logs = np.where(here, np.log(np.maximum(scores, floor)), 0)
            return softmax(logs.sum(axis=0), axis=1)
        if self.how == "stacking":
            return self.stacker_.predict_proba(self._features(scores, present))
        pooled = self._pooled(self._log_probabilities(scores, present))
        return softmax(pooled / self.temperature_, axis=1)

    def _features(self, scores: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Lay the scores of all classifiers side by side, as StackingClassifier does."""
        filled = np.where(present[:, :, np.newaxis], scores, self.score_means_[:, np.newaxis, :])
        if len(self.classes_) == 2:
            filled = filled[:, :, 1:]  # the first column says nothing that the second does not
        return np.concatenate(filled, axis=1)

    def _log_probabilities(self, scores: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Return calibrated log-probabilities; 0, the logarithm of a factor 1, where missing."""
        scaled = scores / self.temperatures_[:, np.newaxis, np.newaxis]
        return np.where(present[:, :, np.newaxis], log_softmax(scaled, axis=2), 0)

    def _pooled(self, logs: np.ndarray) -> np.ndarray:
        if self.how == "weighted":
            return np.tensordot(self.weights_, logs, axes=1)
        confidence = np.exp(logs.max(axis=2, keepdims=True))
        return (confidence * logs).sum(axis=0)


def _weights_by_log_loss(logs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the weights whose pool, at its best temperature, has the lowest log loss."""
    rows = np.arange(len(codes))

    def loss(strengths):  # weights divided by the temperature: at least 0, with any sum
        pooled = log_softmax(np.tensordot(strengths, logs, axes=1), axis=1)
        return -pooled[rows, codes].mean()

    start = np.full(len(logs), 1 / len(logs))
    found = minimize(loss, start, method="L-BFGS-B", bounds=[(0, None)] * len(logs)).x
    return found / found.sum() if found.sum() > 0 else start


def _weights_by_accuracy(logs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the best weights on a grid of step 1/20; of equals, those of the lowest log loss."""
    rows = np.arange(len(codes))

    def merit(weights):
        pooled = log_softmax(np.tensordot(weights, logs, axes=1), axis=1)
        return np.mean(pooled.argmax(axis=1) == codes), pooled[rows, codes].mean()

    grid = [np.array(parts) / 20 for parts in _simplex_grid(len(logs), 20)]
    return max(grid, key=merit)


def _simplex_grid(n_parts: int, total: int):
    """Yield every tuple of whole numbers ≥ 0 with that sum."""
    if n_parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _simplex_grid(n_parts - 1, total - first):
            yield (first, *rest)
