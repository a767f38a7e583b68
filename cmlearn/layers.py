"""Fusion of an image and a text as Keras layers, for TensorFlow, JAX and PyTorch.

Two kinds of fusion share one way of being called. Those of vectors take
``layer([image, text], present=None)`` with ``image`` (b, d1), ``text`` (b, d2) and ``present``
(b, 2) bool, the columns in the order of the inputs; `BottleneckFusion` and `CrossAttention` take
sequences with a boolean mask each. Whatever a missing modality or a masked position holds, even
NaN, changes neither the result nor a gradient.
"""

from numbers import Integral

import keras
import numpy as np
from keras import ops

__all__ = [
    "BottleneckFusion",
    "CrossAttention",
    "FiLM",
    "FixedFusion",
    "GatedFusion",
    "LowRankBilinear",
    "MissingEmbedding",
    "ModalityDropout",
    "ScaledSimilarity",
    "TensorFusion",
]


@keras.saving.register_keras_serializable(package="cmlearn")
class FixedFusion(keras.layers.Layer):
    r"""Concatenate, average or multiply two vectors; nothing is learned.

    Parameters
    ----------
    how : {"concat", "mean", "product"}
        ``concat`` lays the vectors side by side. ``mean`` and ``product`` go entry by entry and
        need vectors of one width: put a ``keras.layers.Dense`` before them.
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        For an unknown ``how``, inputs that are not two vectors of one batch, or, for ``mean``
        and ``product``, of one width.

    Notes
    -----
    With :math:`x_1, x_2` the inputs:

    .. math:: [x_1; x_2], \qquad \tfrac12 (x_1 + x_2), \qquad x_1 \circ x_2.

    A missing vector is zeros in the concatenation, is left out of the mean, and is ones in the
    product. Where both are missing the result is zeros.

    Examples
    --------
    >>> import numpy as np
    >>> image, text = np.array([[1.0, 2.0]]), np.array([[3.0, 5.0]])
    >>> np.array(FixedFusion("mean")([image, text])).tolist()
    [[2.0, 3.5]]
    >>> np.array(FixedFusion("mean")([image, text], present=np.array([[True, False]]))).tolist()
    [[1.0, 2.0]]
    """

    def __init__(self, how: str, **kwargs):
        super().__init__(**kwargs)
        if how not in ("concat", "mean", "product"):
            raise ValueError(f'how must be "concat", "mean" or "product"; got {how!r}')
        self.how = how

    def build(self, input_shape):
        """Check the shapes of the two vectors."""
        self.widths = width_1, width_2 = _check_pair(self, input_shape)
        if self.how != "concat" and width_1 != width_2:
            raise ValueError(
                f'FixedFusion("{self.how}") needs two vectors of one width; got {width_1} and '
                f"{width_2}. Bring both to one width with keras.layers.Dense first."
            )

    def call(self, inputs, present=None):
        """Fuse vectors (b, d1) and (b, d2) into (b, d1 + d2) or (b, d)."""
        (x1, x2), (has_1, has_2) = _read_pair(self, inputs, present)
        if self.how == "concat":
            return ops.concatenate([x1, x2], axis=-1)
        if self.how == "mean":
            n_present = ops.cast(has_1, x1.dtype) + ops.cast(has_2, x1.dtype)
            return (x1 + x2) / ops.maximum(n_present, 1)
        product = ops.where(has_1, x1, 1) * ops.where(has_2, x2, 1)
        return ops.where(has_1 | has_2, product, 0)

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "how": self.how}


@keras.saving.register_keras_serializable(package="cmlearn")
class GatedFusion(keras.layers.Layer):
    r"""Gated multimodal unit: a learned gate chooses between the modalities, entry by entry.

    Parameters
    ----------
    units : int
        Width of the result.
    seed : int or None
        Seed of the initial weights; ``None`` draws from Keras's global generator.
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        If ``units`` is below 1, or the inputs are not two vectors of one batch.

    Notes
    -----
    With :math:`x_1` (d1) and :math:`x_2` (d2),

    .. math::

        h_i = \tanh(W_i x_i), \quad z = \sigma(W_z [x_1; x_2]), \quad
        h = z \circ h_1 + (1 - z) \circ h_2,

    which takes 2 (d1 + d2) units parameters [1]_. Where one modality is missing the gate is
    open for the other alone, and h is its :math:`h_i`; where both are missing h is zeros.

    References
    ----------
    .. [1] Arevalo, Solorio, Montes-y-Gómez and González, "Gated multimodal units for information
       fusion", ICLR workshop 2017, https://arxiv.org/abs/1702.01992

    Examples
    --------
    >>> import numpy as np
    >>> layer = GatedFusion(8)
    >>> layer([np.ones((4, 5)), np.ones((4, 3))]).shape == (4, 8)
    True
    >>> layer.count_params()
    128
    """

    def __init__(self, units: int, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        _check_positive(units=units)
        self.units = units
        self.seed = seed
        seeds = _seeds(seed, 3)
        self.projections = [
            self._dense(name, seed) for name, seed in zip(("first", "second"), seeds, strict=False)
        ]
        self.gate = self._dense("gate", seeds[2], activation="sigmoid")

    def _dense(self, name, seed, activation="tanh"):
        return keras.layers.Dense(
            self.units,
            activation=activation,
            use_bias=False,
            kernel_initializer=_glorot(seed),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, input_shape):
        """Create the weights for vectors of the given shapes."""
        self.widths = width_1, width_2 = _check_pair(self, input_shape)
        self.projections[0].build((None, width_1))
        self.projections[1].build((None, width_2))
        self.gate.build((None, width_1 + width_2))

    def call(self, inputs, present=None):
        """Fuse vectors (b, d1) and (b, d2) into (b, units)."""
        (x1, x2), (has_1, has_2) = _read_pair(self, inputs, present)
        gate = self.gate(ops.concatenate([x1, x2], axis=-1))
        gate_1 = ops.where(has_2, gate, 1) * ops.cast(has_1, gate.dtype)
        gate_2 = ops.where(has_1, 1 - gate, 1) * ops.cast(has_2, gate.dtype)
        return gate_1 * self.projections[0](x1) + gate_2 * self.projections[1](x2)

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "units": self.units, "seed": self.seed}


@keras.saving.register_keras_serializable(package="cmlearn")
class TensorFusion(keras.layers.Layer):
    r"""Linear map of the outer product of both vectors, each with a 1 appended.

    It can learn any product of an entry of one modality with an entry of the other, and through
    the 1 every entry alone. The price is (d1 + 1) (d2 + 1) units parameters: 40 million for an
    image of 1,280 and a text of 384 numbers and only 80 units. `LowRankBilinear` is the same map
    at a small share of them.

    Parameters
    ----------
    units : int
        Width of the result.
    seed : int or None
        Seed of the initial weights; ``None`` draws from Keras's global generator.
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        If ``units`` is below 1, or the inputs are not two vectors of one batch.

    Notes
    -----
    .. math:: h_k = \sum_{ij} W_{ijk} [x_1; 1]_i [x_2; 1]_j

    as in the tensor fusion network [1]_. The outer product itself, (d1 + 1) (d2 + 1) numbers a
    row, is never held in memory. A missing modality is :math:`x_i = 0`, which leaves the other's
    entries alone and the constant; where both are missing the result is zeros.

    References
    ----------
    .. [1] Zadeh, Chen, Poria, Cambria and Morency, "Tensor fusion network for multimodal
       sentiment analysis", EMNLP 2017, https://arxiv.org/abs/1707.07250

    Examples
    --------
    >>> import numpy as np
    >>> layer = TensorFusion(8)
    >>> layer([np.ones((4, 5)), np.ones((4, 3))]).shape == (4, 8)
    True
    >>> layer.count_params() == (5 + 1) * (3 + 1) * 8
    True
    """

    def __init__(self, units: int, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        _check_positive(units=units)
        self.units = units
        self.seed = seed

    def build(self, input_shape):
        """Create the weights for vectors of the given shapes."""
        self.widths = width_1, width_2 = _check_pair(self, input_shape)
        # Two axes, as of a Dense layer on the flattened product, so that Glorot's initialiser
        # sees the number of inputs that a unit has.
        self.kernel = self.add_weight(
            shape=((width_1 + 1) * (width_2 + 1), self.units),
            initializer=_glorot(self.seed),
            name="kernel",
        )

    def call(self, inputs, present=None):
        """Fuse vectors (b, d1) and (b, d2) into (b, units)."""
        (x1, x2), (has_1, has_2) = _read_pair(self, inputs, present)
        x1, x2 = _append_one(x1), _append_one(x2)
        kernel = ops.reshape(self.kernel, (x1.shape[-1], x2.shape[-1] * self.units))
        maps = ops.reshape(ops.matmul(x1, kernel), (-1, x2.shape[-1], self.units))
        fused = ops.einsum("bj,bju->bu", x2, maps)
        return ops.where(has_1 | has_2, fused, 0)

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "units": self.units, "seed": self.seed}


@keras.saving.register_keras_serializable(package="cmlearn")
class LowRankBilinear(keras.layers.Layer):
    r"""Tensor fusion whose weights are a sum of ``rank`` products: the low-rank form of it.

    It takes rank (d1 + d2 + 2) units parameters, where `TensorFusion` takes
    (d1 + 1) (d2 + 1) units.

    Parameters
    ----------
    units : int
        Width of the result.
    rank : int
        Products that are summed for each unit.
    seed : int or None
        Seed of the initial weights; ``None`` draws from Keras's global generator.
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        If ``units`` or ``rank`` is below 1, or the inputs are not two vectors of one batch.

    Notes
    -----
    .. math:: h_k = \sum_{r=1}^{R} (a_{rk}^\top [x_1; 1]) (b_{rk}^\top [x_2; 1])

    is low-rank multimodal fusion [1]_: `TensorFusion` with
    :math:`W_{ijk} = \sum_r a_{rki} b_{rkj}`. The appended 1 keeps the terms of one modality
    alone, which low-rank bilinear pooling [2]_ does without. The factors' entries for it (their
    biases) start at :math:`R^{-1/2}`, so that in the beginning each modality alone counts as
    much as in a Dense layer; small random ones would leave little but the products.

    A missing modality is :math:`x_i = 0`, which leaves the other's entries and the constant;
    where both are missing the result is zeros.

    References
    ----------
    .. [1] Liu, Shen, Lakshminarasimhan, Liang, Zadeh and Morency, "Efficient low-rank multimodal
       fusion with modality-specific factors", ACL 2018, https://arxiv.org/abs/1806.00064
    .. [2] Kim, On, Lim, Kim, Ha and Zhang, "Hadamard product for low-rank bilinear pooling",
       ICLR 2017, https://arxiv.org/abs/1610.04325

    Examples
    --------
    >>> import numpy as np
    >>> layer = LowRankBilinear(8, rank=2)
    >>> layer([np.ones((4, 5)), np.ones((4, 3))]).shape == (4, 8)
    True
    >>> layer.count_params() == 2 * (5 + 3 + 2) * 8
    True
    """

    def __init__(self, units: int, *, rank: int = 4, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        _check_positive(units=units, rank=rank)
        self.units = units
        self.rank = rank
        self.seed = seed
        self.factors = [
            keras.layers.Dense(
                rank * units,
                kernel_initializer=_glorot(seed),
                bias_initializer=keras.initializers.Constant(rank**-0.5),
                dtype=self.dtype_policy,
                name=name,
            )
            for name, seed in zip(("first", "second"), _seeds(seed, 2), strict=True)
        ]

    def build(self, input_shape):
        """Create the weights for vectors of the given shapes."""
        self.widths = _check_pair(self, input_shape)
        for factor, width in zip(self.factors, self.widths, strict=True):
            factor.build((None, width))

    def call(self, inputs, present=None):
        """Fuse vectors (b, d1) and (b, d2) into (b, units)."""
        (x1, x2), (has_1, has_2) = _read_pair(self, inputs, present)
        products = self.factors[0](x1) * self.factors[1](x2)
        fused = ops.sum(ops.reshape(products, (-1, self.rank, self.units)), axis=1)
        return ops.where(has_1 | has_2, fused, 0)

    def get_config(self):
        """Return the constructor's arguments."""
        own = {"units": self.units, "rank": self.rank, "seed": self.seed}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="cmlearn")
class FiLM(keras.layers.Layer):
    r"""Feature-wise linear modulation: the text scales and shifts each feature of the image.

    Parameters
    ----------
    units : int
        Width of the result, to which the image is brought by a linear map.
    seed : int or None
        Seed of the initial weights; ``None`` draws from Keras's global generator.
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        If ``units`` is below 1, or the inputs are not two vectors of one batch.

    Notes
    -----
    With the first input :math:`x_1` as what is modulated and the second, :math:`x_2`, as the
    condition,

    .. math::

        h = (1 + \Delta\gamma) \circ (W_1 x_1 + b_1) + \beta, \qquad
        [\Delta\gamma; \beta] = W_2 x_2 + b_2 .

    The 1 keeps the features alive while :math:`\Delta\gamma` is near zero [1]_. Where the
    condition is missing the modulation is the identity and h is :math:`W_1 x_1 + b_1`; where the
    first input is missing h is :math:`\beta`; where both are missing h is zeros.

    References
    ----------
    .. [1] Perez, Strub, de Vries, Dumoulin and Courville, "FiLM: visual reasoning with a general
       conditioning layer", AAAI 2018, https://arxiv.org/abs/1709.07871

    Examples
    --------
    >>> import numpy as np
    >>> FiLM(8)([np.ones((4, 5)), np.ones((4, 3))]).shape == (4, 8)
    True
    """

    def __init__(self, units: int, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        _check_positive(units=units)
        self.units = units
        self.seed = seed
        seeds = _seeds(seed, 2)
        self.features = keras.layers.Dense(
            units, kernel_initializer=_glorot(seeds[0]), dtype=self.dtype_policy, name="features"
        )
        self.modulation = keras.layers.Dense(
            2 * units,
            kernel_initializer=_glorot(seeds[1]),
            dtype=self.dtype_policy,
            name="modulation",
        )

    def build(self, input_shape):
        """Create the weights for vectors of the given shapes."""
        self.widths = width_1, width_2 = _check_pair(self, input_shape)
        self.features.build((None, width_1))
        self.modulation.build((None, width_2))

    def call(self, inputs, present=None):
        """Modulate vectors (b, d1) by vectors (b, d2) into (b, units)."""
        (x1, x2), (has_1, has_2) = _read_pair(self, inputs, present)
        features = ops.where(has_1, self.features(x1), 0)
        scale, shift = ops.split(ops.where(has_2, self.modulation(x2), 0), 2, axis=-1)
        return (1 + scale) * features + shift

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "units": self.units, "seed": self.seed}


@keras.saving.register_keras_serializable(package="cmlearn")
class CrossAttention(keras.layers.Layer):
    r"""One sequence attends to another: words to the positions of an image, or the reverse.

    The cross-modal transformer block of MulT: attention, then a feed-forward network, each
    behind a layer normalisation and added to what came in.

    Parameters
    ----------
    num_heads : int
        Attention heads.
    key_dim : int
        Width of a query and of a key in each head.
    dropout : float in [0, 1)
        Share of the attention weights and of both sublayers' outputs that is set to zero in
        training.
    seed : int or None
        Seed of the initial weights and the dropout; ``None`` draws from Keras's global generator.
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        If ``num_heads`` or ``key_dim`` is below 1, ``dropout`` is outside [0, 1), or the inputs
        are not two sequences of one batch with masks of their shape.

    Notes
    -----
    With a query sequence Q (q, d), a context C (c, e), and LN for layer normalisation [1]_,

    .. math::

        Z = Q + \mathrm{Attention}(\mathrm{LN}(Q), \mathrm{LN}(C)), \qquad
        Y = Z + W_2 \max(0, W_1 \mathrm{LN}(Z) + b_1) + b_2 ,

    with the scaled dot-product attention of several heads [2]_ and 4 d units inside the
    feed-forward network. The block knows nothing of order: add position embeddings before it
    where order matters.

    A row whose whole context is masked is passed through as it is, with attention weights of
    zero. Masked positions of the query come out as zeros. A mask that Keras carries along (from
    ``Embedding(mask_zero=True)``) is used when none is given.

    References
    ----------
    .. [1] Tsai, Bai, Liang, Kolter, Morency and Salakhutdinov, "Multimodal transformer for
       unaligned multimodal language sequences", ACL 2019, https://arxiv.org/abs/1906.00295
    .. [2] Vaswani et al., "Attention is all you need", NeurIPS 2017,
       https://arxiv.org/abs/1706.03762

    Examples
    --------
    >>> import numpy as np
    >>> words, grid = np.ones((2, 3, 8)), np.ones((2, 49, 16))
    >>> layer = CrossAttention(num_heads=2, key_dim=4)
    >>> output, weights = layer(words, grid, return_attention_scores=True)
    >>> output.shape == (2, 3, 8), weights.shape == (2, 2, 3, 49)
    (True, True)
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_positive(num_heads=num_heads, key_dim=key_dim)
        _check_share(dropout=dropout)
        self.supports_masking = True
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.dropout = dropout
        self.seed = seed

    def build(self, query_shape, context_shape):
        """Create the weights for sequences of the given shapes."""
        _check_sequences(self, ("query", query_shape), ("context", context_shape))
        width = query_shape[-1]
        seeds = _seeds(self.seed, 5)
        part = {"dtype": self.dtype_policy}
        self.query_norm = keras.layers.LayerNormalization(name="query_norm", **part)
        self.context_norm = keras.layers.LayerNormalization(name="context_norm", **part)
        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads,
            self.key_dim,
            dropout=self.dropout,
            kernel_initializer=_glorot(seeds[0]),
            seed=seeds[1],
            name="attention",
            **part,
        )
        self.hidden_norm = keras.layers.LayerNormalization(name="hidden_norm", **part)
        self.hidden = keras.layers.Dense(
            4 * width,
            activation="relu",
            kernel_initializer=_glorot(seeds[2]),
            name="hidden",
            **part,
        )
        self.output_dense = keras.layers.Dense(
            width, kernel_initializer=_glorot(seeds[3]), name="output", **part
        )
        self.drop = keras.layers.Dropout(self.dropout, seed=seeds[4], **part)
        self.query_norm.build(query_shape)
        self.context_norm.build(context_shape)
        self.attention.build(query_shape, context_shape)
        self.hidden_norm.build(query_shape)
        self.hidden.build(query_shape)
        self.output_dense.build((*query_shape[:-1], 4 * width))

    def call(
        self,
        query,
        context,
        query_mask=None,
        context_mask=None,
        return_attention_scores=False,
        training=None,
    ):
        """Let the query (b, q, d) attend to the context (b, c, e).

        ``query_mask`` (b, q) and ``context_mask`` (b, c) are True at what counts. Returns
        (b, q, d) and, with ``return_attention_scores``, the weights (b, heads, q, c) as well,
        which sum to 1 over the context, or are all 0 where there is nothing to attend to.
        """
        _check_sequences(
            self,
            ("query", query.shape),
            ("context", context.shape),
            masks=(("query_mask", query_mask), ("context_mask", context_mask)),
        )
        query, query_mask = _read_sequence(query, query_mask)
        context, context_mask = _read_sequence(context, context_mask)
        pairs = query_mask[:, :, None] & context_mask[:, None, :]
        attended, weights = self.attention(
            self.query_norm(query),
            self.context_norm(context),
            attention_mask=pairs,
            return_attention_scores=True,
            training=training,
        )
        hidden = query + self.drop(attended, training=training)
        update = self.output_dense(self.hidden(self.hidden_norm(hidden)))
        hidden = hidden + self.drop(update, training=training)
        # Where a softmax has nothing to choose from it is uniform, not zero.
        output = ops.where(ops.any(pairs, axis=2)[:, :, None], hidden, query)
        if return_attention_scores:
            return output, ops.where(pairs[:, None], weights, 0)
        return output

    def get_config(self):
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "dropout": self.dropout,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="cmlearn")
class BottleneckFusion(keras.layers.Layer):
    r"""Two sequences that exchange what they know through a few learned tokens.

    Each modality attends to itself and to the bottleneck tokens; the tokens that come out of
    the two are averaged and go into the next layer. The cost grows with the length of each
    sequence on its own, and not with the two lengths' product.

    Parameters
    ----------
    units : int
        Width of the tokens and of the result, to which both sequences are brought by a linear
        map. A multiple of ``num_heads``.
    n_tokens : int
        Bottleneck tokens.
    num_heads : int
        Attention heads.
    num_layers : int
        Layers. With one, no modality sees the other; only the result holds both.
    dropout : float in [0, 1)
        As in `CrossAttention`.
    seed : int or None
        Seed of the initial weights and the dropout; ``None`` draws from Keras's global generator.
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        If a count is below 1, ``units`` is not a multiple of ``num_heads``, ``dropout`` is
        outside [0, 1), or the inputs are not two sequences of one batch with masks of their
        shape.

    Notes
    -----
    With the sequences :math:`Z_1, Z_2`, bottleneck tokens B and a transformer layer
    :math:`T_i` (here `CrossAttention` of a sequence to itself) for each modality [1]_,

    .. math:: [Z_i; B_i] \leftarrow T_i([Z_i; B]), \qquad B \leftarrow \tfrac12 (B_1 + B_2).

    The result is the mean of the last layer's tokens, where the paper reads a class token of
    each modality. A modality whose mask is all False is missing: B is then the other's
    :math:`B_i` alone. Where both are missing the result is zeros.

    References
    ----------
    .. [1] Nagrani, Yang, Arnab, Jansen, Schmid and Sun, "Attention bottlenecks for multimodal
       fusion", NeurIPS 2021, https://arxiv.org/abs/2107.00135

    Examples
    --------
    >>> import numpy as np
    >>> grid, words = np.ones((2, 49, 16)), np.ones((2, 3, 8))
    >>> BottleneckFusion(8, num_heads=2)([grid, words]).shape == (2, 8)
    True
    """

    def __init__(
        self,
        units: int,
        *,
        n_tokens: int = 4,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_positive(units=units, n_tokens=n_tokens, num_heads=num_heads, num_layers=num_layers)
        _check_share(dropout=dropout)
        if units % num_heads:
            raise ValueError(
                f"units must be a multiple of num_heads; got units={units} and "
                f"num_heads={num_heads}"
            )
        self.units = units
        self.n_tokens = n_tokens
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.dropout = dropout
        self.seed = seed
        seeds = iter(_seeds(seed, 3 + 2 * num_layers))
        self.token_initializer = keras.initializers.RandomNormal(stddev=0.02, seed=next(seeds))
        self.projections = [
            keras.layers.Dense(
                units,
                kernel_initializer=_glorot(next(seeds)),
                dtype=self.dtype_policy,
                name=f"projection_{modality}",
            )
            for modality in range(2)
        ]
        self.blocks = [
            [
                CrossAttention(
                    num_heads,
                    units // num_heads,
                    dropout=dropout,
                    seed=next(seeds),
                    dtype=self.dtype_policy,
                    name=f"block_{layer}_{modality}",
                )
                for modality in range(2)
            ]
            for layer in range(num_layers)
        ]

    def build(self, input_shape):
        """Create the weights for sequences of the given shapes."""
        shapes = _check_two(self, input_shape)
        _check_sequences(self, ("the first input", shapes[0]), ("the second input", shapes[1]))
        self.tokens = self.add_weight(
            shape=(self.n_tokens, self.units), initializer=self.token_initializer, name="tokens"
        )
        for projection, shape in zip(self.projections, shapes, strict=True):
            projection.build(shape)
        for block in sum(self.blocks, []):
            block.build((None, None, self.units), (None, None, self.units))

    def call(self, inputs, masks=None, training=None):
        """Fuse sequences (b, p, d) and (b, l, e) into (b, units).

        ``masks`` is a pair of masks (b, p) and (b, l), True at what counts, either of which may
        be ``None``.
        """
        shapes = [x.shape for x in _check_two(self, inputs)]
        masks = (None, None) if masks is None else masks
        if len(masks) != 2:
            raise ValueError(f"{self.name} takes two masks, one an input; got {len(masks)}")
        _check_sequences(
            self,
            ("the first input", shapes[0]),
            ("the second input", shapes[1]),
            masks=(("the first mask", masks[0]), ("the second mask", masks[1])),
        )
        streams, masks = zip(*map(_read_sequence, inputs, masks), strict=True)
        streams = [dense(x) for dense, x in zip(self.projections, streams, strict=True)]
        present = [ops.any(mask, axis=1)[:, None, None] for mask in masks]
        batch = ops.shape(streams[0])[0]
        tokens = ops.broadcast_to(self.tokens, (batch, self.n_tokens, self.units))
        tokens = ops.cast(tokens, streams[0].dtype)
        for blocks in self.blocks:
            updated = [
                self._attend(*arguments, tokens, training)
                for arguments in zip(blocks, streams, masks, strict=True)
            ]
            streams = [stream for stream, _ in updated]
            tokens = _mean_of_present([own for _, own in updated], present)
        return ops.mean(tokens, axis=1)

    def _attend(self, block, stream, mask, tokens, training):
        """Return the stream (b, l, units) and its own version of the tokens (b, n, units)."""
        n_tokens = self.n_tokens
        joint = ops.concatenate([tokens, stream], axis=1)
        mask = ops.pad(mask, [[0, 0], [n_tokens, 0]], constant_values=True)
        joint = block(joint, joint, query_mask=mask, context_mask=mask, training=training)
        return joint[:, n_tokens:], joint[:, :n_tokens]

    def get_config(self):
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "units": self.units,
            "n_tokens": self.n_tokens,
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "dropout": self.dropout,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="cmlearn")
class ModalityDropout(keras.layers.Layer):
    """In training, take one of the two modalities away from some rows that have both.

    A network that has met pairs with a part missing still works when one is missing at test
    time. Its input and output are the ``present`` that the fusions of this module take, so that
    nothing of the dropped modality is seen.

    Parameters
    ----------
    rate : float in [0, 1]
        Share of the complete rows that lose a modality: the first or the second, with even
        chances. A row is never left with none [1]_.
    seed : int or None
        Seed of the choice; ``None`` draws from Keras's global generator.
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        If ``rate`` is outside [0, 1] or ``present`` does not have two columns.

    References
    ----------
    .. [1] Neverova, Wolf, Taylor and Nebout, "ModDrop: adaptive multi-modal gesture recognition",
       IEEE TPAMI 38(8), 2016, https://arxiv.org/abs/1501.00102

    Examples
    --------
    >>> import numpy as np
    >>> present = np.array([[True, True], [True, False]])
    >>> np.array(ModalityDropout(1.0, seed=0)(present, training=True)).sum(axis=1).tolist()
    [1, 1]
    """

    def __init__(self, rate: float, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be at least 0 and at most 1; got {rate!r}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        """Check the shape of ``present``."""
        _check_present(self, input_shape)

    def call(self, present, training=None):
        """Return ``present`` (b, 2) bool, in training with some entries turned to False."""
        present = ops.cast(present, "bool")
        if not training or self.rate == 0:
            return present
        chance = keras.random.uniform((ops.shape(present)[0], 1), seed=self.seed_generator)
        first, second = chance < self.rate / 2, chance >= 1 - self.rate / 2
        complete = ops.all(present, axis=1, keepdims=True)
        return present & ~(complete & ops.concatenate([first, second], axis=1))

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="cmlearn")
class MissingEmbedding(keras.layers.Layer):
    """Put a learned vector in the place of what is missing.

    Parameters
    ----------
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        If the input is neither vectors nor sequences, or ``present`` is not one bool a row.

    Notes
    -----
    The vector starts at zeros, the mean of standardised features. In a sequence it stands at
    every position; what follows must be given a mask that is True at one of them at least.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 2.0], [np.nan, np.nan]])
    >>> np.array(MissingEmbedding()(x, np.array([True, False]))).tolist()
    [[1.0, 2.0], [0.0, 0.0]]
    """

    def build(self, x_shape, present_shape):
        """Create the vector for inputs of the given shape."""
        if len(x_shape) not in (2, 3):
            raise ValueError(
                f"{self.name} takes vectors (batch, width) or sequences (batch, length, width); "
                f"got the shape {tuple(x_shape)}"
            )
        if len(present_shape) != 1:
            raise ValueError(
                f"present must hold one bool a row, (batch,); got the shape {tuple(present_shape)}"
            )
        _check_batches(self, x_shape[0], present_shape[0])
        self.vector = self.add_weight(shape=(x_shape[-1],), initializer="zeros", name="vector")

    def call(self, x, present):
        """Return ``x`` (b, d) or (b, l, d) with the vector where ``present`` (b,) is False."""
        _check_batches(self, x.shape[0], present.shape[0])
        present = ops.cast(present, "bool")
        present = present[:, None] if len(x.shape) == 2 else present[:, None, None]
        return ops.where(present, x, ops.cast(self.vector, x.dtype))


class _AtLeast(keras.constraints.Constraint):
    """Keep a weight from falling below a bound. Keras takes a plain function only since 3.14."""

    def __init__(self, bound):
        self.bound = bound

    def __call__(self, weight):
        return ops.maximum(weight, self.bound)

    def get_config(self):
        return {"bound": float(self.bound)}


@keras.saving.register_keras_serializable(package="cmlearn")
class ScaledSimilarity(keras.layers.Layer):
    r"""Cosine similarity of every image with every text, over a learned temperature.

    Its output is what :class:`cmlearn.losses.InfoNCE` and :class:`cmlearn.losses.SigLIP` take,
    with their own temperature and bias left alone.

    Parameters
    ----------
    temperature : float
        Where the temperature starts. It is held at 0.01 or above while it is learned.
    bias : float or None
        Where the learned bias starts; ``None`` for no bias.
    **kwargs
        ``name`` and ``dtype``, as every Keras layer takes them.

    Raises
    ------
    ValueError
        If ``temperature`` is below 0.01, or the inputs are not two matrices of one width.

    Notes
    -----
    .. math:: s_{ij} = \frac{1}{\tau} \frac{u_i^\top v_j}{\|u_i\| \|v_j\|} + b

    What is learned is :math:`\log \tau`, as in CLIP [1]_, which starts at
    :math:`\tau = 0.07` and stops at 0.01. SigLIP [2]_ starts at :math:`\tau = 0.1` and
    :math:`b = -10`. The similarity with a vector of zeros is 0.

    References
    ----------
    .. [1] Radford et al., "Learning transferable visual models from natural language
       supervision", ICML 2021, https://arxiv.org/abs/2103.00020
    .. [2] Zhai, Mustafa, Kolesnikov and Beyer, "Sigmoid loss for language image pre-training",
       ICCV 2023, https://arxiv.org/abs/2303.15343

    Examples
    --------
    >>> import numpy as np
    >>> image, text = np.eye(2), np.array([[2.0, 0.0], [0.0, 3.0]])
    >>> np.array(ScaledSimilarity(temperature=0.5)([image, text])).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """

    def __init__(self, *, temperature: float = 0.07, bias: float | None = None, **kwargs):
        super().__init__(**kwargs)
        if temperature < 0.01:
            raise ValueError(f"temperature must be at least 0.01; got {temperature!r}")
        self.temperature = temperature
        self.bias = bias

    def build(self, input_shape):
        """Check that both inputs have one width, and create the weights."""
        shapes = _check_two(self, input_shape)
        if any(len(shape) != 2 for shape in shapes) or shapes[0][-1] != shapes[1][-1]:
            raise ValueError(
                f"{self.name} takes images (b, d) and texts (c, d) of one width d; got the shapes "
                f"{tuple(shapes[0])} and {tuple(shapes[1])}"
            )
        self.log_temperature = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(np.log(self.temperature)),
            # Held on the weight and not in the call, where it would stop its gradient for good.
            constraint=_AtLeast(np.log(0.01)),
            name="log_temperature",
        )
        if self.bias is not None:
            self.bias_weight = self.add_weight(
                shape=(), initializer=keras.initializers.Constant(self.bias), name="bias"
            )

    def call(self, inputs):
        """Return the logits (b, c) of images (b, d) with texts (c, d)."""
        # In full precision: half of it has no number for the square of a small length.
        image, text = (_unit_length(ops.cast(x, self.variable_dtype)) for x in inputs)
        scale = ops.cast(ops.exp(-self.log_temperature), image.dtype)
        logits = ops.matmul(image, ops.transpose(text)) * scale
        return logits if self.bias is None else logits + ops.cast(self.bias_weight, image.dtype)

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature, "bias": self.bias}


def _read_pair(layer, inputs, present):
    """Return both vectors, zeros where missing, and (b, 1) bool each for where they are not."""
    widths = _check_pair(layer, [x.shape for x in _check_two(layer, inputs)])
    if tuple(widths) != tuple(layer.widths):
        raise ValueError(
            f"{layer.name} was built for widths {' and '.join(map(str, layer.widths))}; got "
            f"{' and '.join(map(str, widths))}. Are the inputs in the order that they were in?"
        )
    if present is None:
        present = ops.ones((ops.shape(inputs[0])[0], 2), "bool")
    _check_present(layer, present.shape)
    _check_batches(layer, inputs[0].shape[0], present.shape[0])
    present = ops.cast(present, "bool")
    has = present[:, :1], present[:, 1:]
    # Chosen, not multiplied: 0 times NaN is NaN.
    return [ops.where(has[i], inputs[i], 0) for i in range(2)], has


def _read_sequence(x, mask):
    """Return the sequence with zeros where it is masked, and its mask (b, l) bool."""
    mask = ops.ones(ops.shape(x)[:2], "bool") if mask is None else ops.cast(mask, "bool")
    return ops.where(mask[:, :, None], x, 0), mask


def _mean_of_present(values, present):
    """Return the mean of two tensors over those that are present, zeros where none is."""
    first, second = (ops.where(has, x, 0) for has, x in zip(present, values, strict=True))
    n_present = sum(ops.cast(has, first.dtype) for has in present)
    return (first + second) / ops.maximum(n_present, 1)


def _append_one(x):
    return ops.pad(x, [[0, 0], [0, 1]], constant_values=1)


def _unit_length(x):
    # keras.ops.normalize has no finite gradient at a vector of zeros.
    square = ops.sum(x * x, axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.where(square > 1e-12, square, 1))


def _seeds(seed, n):
    """Return ``n`` independent seeds made from one, or as many ``None``."""
    if seed is None:
        return [None] * n
    return [int(state) >> 1 for state in np.random.SeedSequence(seed).generate_state(n)]


def _glorot(seed):
    return keras.initializers.GlorotUniform(seed)


def _check_positive(**values):
    for name, value in values.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number; got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value!r}")


def _check_share(**values):
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1; got {value!r}")


def _check_two(layer, inputs):
    """Return the inputs, or their shapes, if they are two."""
    nested = isinstance(inputs, (list, tuple))
    if not nested or any(isinstance(item, int) or item is None for item in inputs):
        raise ValueError(f"{layer.name} fuses two inputs, [image, text]; got a single one")
    if len(inputs) != 2:
        raise ValueError(f"{layer.name} fuses two inputs, [image, text]; got {len(inputs)}")
    return inputs


def _check_pair(layer, shapes):
    """Return the widths of two vectors of one batch."""
    shapes = _check_two(layer, shapes)
    for order, shape in zip(("first", "second"), shapes, strict=True):
        if len(shape) != 2:
            raise ValueError(
                f"{layer.name} fuses vectors, (batch, width); the {order} input has the shape "
                f"{tuple(shape)}. Average a sequence over its positions first."
            )
    _check_batches(layer, shapes[0][0], shapes[1][0])
    return shapes[0][-1], shapes[1][-1]


def _check_present(layer, shape):
    if len(shape) != 2 or shape[1] != 2:
        raise ValueError(
            f"{layer.name}: present must have the shape (batch, 2), a column for each modality; "
            f"got {tuple(shape)}"
        )


def _check_sequences(layer, *named_shapes, masks=()):
    for name, shape in named_shapes:
        if len(shape) != 3:
            raise ValueError(
                f"{layer.name} takes sequences, (batch, length, width); {name} has the shape "
                f"{tuple(shape)}"
            )
    _check_batches(layer, *(shape[0] for _, shape in named_shapes))
    for (name, mask), (_, shape) in zip(masks, named_shapes, strict=False):
        if mask is not None and not _fits(mask.shape, shape[:2]):
            raise ValueError(
                f"{layer.name}: {name} must be (batch, length), here {tuple(shape[:2])}; got "
                f"{tuple(mask.shape)}"
            )


def _fits(shape, expected):
    """Tell whether two shapes agree wherever both are known."""
    return len(shape) == len(expected) and all(
        a == b or a is None or b is None for a, b in zip(shape, expected, strict=True)
    )


def _check_batches(layer, *sizes):
    sizes = {size for size in sizes if size is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"{layer.name}: all inputs must have as many rows; got batches of "
            f"{' and '.join(map(str, sorted(sizes)))}"
        )
