"""What a classifier costs, and ways to make it cheaper: low rank, distillation, early exit, int8.

Costs are counted on the network's ONNX graph, which a runtime without Keras executes. ONNX needs
the optional packages: ``pip install "cmlearn[onnx]"``.
"""

from __future__ import annotations

import copy
import os
import time
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import ClassifierMixin, clone
from sklearn.utils import (
    Bunch,
    _safe_indexing,
    check_consistent_length,
    check_random_state,
    column_or_1d,
)
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from cmlearn._folds import _aligned, fit_on, inner_folds, logits, out_of_fold_scores
from cmlearn._training import (
    KerasClassifier,
    check_training_parameters,
    in_batches,
    layer_seeds,
    train_network,
)
from cmlearn.calibration import fit_temperature, softmax
from cmlearn.fusion import LateFusion, _NamedParts

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from cmlearn.models import FusionClassifier

__all__ = [
    "DistilledClassifier",
    "EarlyExit",
    "compress_tensor_fusion",
    "export_onnx",
    "graph_costs",
    "interleaved_times",
    "network_inputs",
    "pareto_front",
    "quantize_onnx",
    "run_onnx",
    "svm_costs",
]


def pareto_front(cost, score) -> np.ndarray:
    """Tell which methods no other beats in both cost and score.

    Parameters
    ----------
    cost : array-like of shape (n,) or (n, n_costs)
        What each method costs; less is better. With several columns a method must be as good in
        every one of them to beat another.
    score : array-like of shape (n,)
        What it achieves; more is better.

    Returns
    -------
    ndarray of shape (n,), bool
        False for a method if another is at least as good in everything and better in something.
        Of equal ones all stay.

    Raises
    ------
    ValueError
        If the lengths differ or a number is NaN.

    Examples
    --------
    >>> pareto_front(cost=[1, 2, 3, 4], score=[0.7, 0.8, 0.75, 0.9]).tolist()
    [True, True, False, True]
    """
    cost, score = np.asarray(cost, dtype=float), np.asarray(score, dtype=float)
    cost = cost[:, None] if cost.ndim == 1 else cost
    if score.ndim != 1 or cost.ndim != 2 or len(cost) != len(score):
        raise ValueError(
            "cost must have the shape (n,) or (n, n_costs) and score (n,); got "
            f"{cost.shape} and {score.shape}"
        )
    losses = np.column_stack([cost, -score])
    if np.isnan(losses).any():
        raise ValueError(
            f"cost and score hold NaN, first in row {np.argwhere(np.isnan(losses))[0, 0]}; leave "
            "out what was not measured"
        )
    as_good = (losses[:, None] <= losses[None]).all(axis=2)
    better = (losses[:, None] < losses[None]).any(axis=2)
    return ~(as_good & better).any(axis=0)


def interleaved_times(calls: dict[str, Callable[[], object]], n_repeats: int = 20) -> pd.DataFrame:
    """Time several functions in turns, so that what else the machine does slows all alike.

    Parameters
    ----------
    calls : dict of str to function without arguments
        What to time.
    n_repeats : int
        Rounds; in each, every function is called twice, and the second call is timed, so that
        none pays for what the one before it left in the caches.

    Returns
    -------
    DataFrame
        Milliseconds: a row a round, a column a name. Compare medians of the ratios within a
        round, not the milliseconds of different runs.

    Raises
    ------
    ValueError
        If there is nothing to time or `n_repeats` is below 1.
    """
    import pandas as pd

    if not calls or n_repeats < 1:
        raise ValueError(
            f"calls must hold a function and n_repeats be at least 1; got {len(calls)} functions "
            f"and n_repeats={n_repeats!r}"
        )
    rounds = [{name: _milliseconds(call) for name, call in calls.items()} for _ in range(n_repeats)]
    return pd.DataFrame(rounds)


def _milliseconds(call: Callable[[], object]) -> float:
    call()
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


# --- ONNX ----------------------------------------------------------------------------------------


def network_inputs(classifier: FusionClassifier, X: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the arrays that a fitted `FusionClassifier` hands to its network, by input's name.

    Parameters
    ----------
    classifier : FusionClassifier
        Fitted.
    X : DataFrame
        A feature table with the columns ``image`` and ``text``.
    """
    from cmlearn.models import _stack_pairs

    check_is_fitted(classifier, "weights_")
    return classifier._inputs(_stack_pairs(X, classifier.cell_shapes_))


def export_onnx(model, path: str | os.PathLike) -> Path:
    """Write a network as an ONNX file, which runs without Keras and without this package.

    Parameters
    ----------
    model : keras.Model or fitted classifier of this package
        The network. It is exported as it predicts: dropout is gone.
    path : path
        Where to write; the name should end in ``.onnx``.

    Returns
    -------
    Path
        The file. Its inputs have the names of the network's and an open number of rows.

    References
    ----------
    ONNX, "Open Neural Network Exchange", https://onnx.ai/onnx/repo-docs/IR.html
    """
    import keras
    import onnx

    path = Path(path)
    network = model._keras_model() if isinstance(model, KerasClassifier) else model
    network = _with_constant_standardisation(network)
    if isinstance(network, keras.Sequential):
        network = keras.Model(network.inputs, network.outputs)
    network(keras.tree.map_structure(_two_rows, network.input))  # Keras exports no unused network
    network.export(path, format="onnx", verbose=False)
    onnx.save(_with_padding_of_its_kind(onnx.load(path)), path)
    return path


def _two_rows(tensor) -> np.ndarray:
    shape = (2, *(2 if length is None else length for length in tensor.shape[1:]))
    return np.ones(shape, tensor.dtype)


def _with_constant_standardisation(network):
    """Return a copy in which a `Normalization` is a scale and an offset.

    Its mean and variance are tensors outside the graph, and an exporter would ask for them as
    inputs.
    """
    import keras

    def replaced(layer):
        if not isinstance(layer, keras.layers.Normalization):
            return layer.__class__.from_config(layer.get_config())
        mean, variance = (
            keras.ops.convert_to_numpy(x).reshape(-1).astype(float)
            for x in (layer.mean, layer.variance)
        )
        scale = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
        return keras.layers.Rescaling(
            scale.tolist(), offset=(-mean * scale).tolist(), name=layer.name
        )

    if not any(isinstance(layer, keras.layers.Normalization) for layer in network.layers):
        return network
    twin = keras.models.clone_model(network, clone_function=replaced)
    for layer in twin.layers:
        if not isinstance(layer, keras.layers.Rescaling):
            layer.set_weights(network.get_layer(layer.name).get_weights())
    return twin


def _with_padding_of_its_kind(model):
    """Return an ONNX model in which what is padded and what it is padded with have one dtype.

    The exporter casts an array of booleans to numbers before it pads, but not the padding value.
    """
    import onnx
    from onnx import numpy_helper

    values = {array.name: array for array in model.graph.initializer}
    kinds = {
        node.output[0]: attribute.i
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    for node in model.graph.node:
        if node.op_type != "Pad" or node.input[0] not in kinds or len(node.input) < 3:
            continue
        kind, value = kinds[node.input[0]], values[node.input[2]]
        if value.data_type != kind:
            name = f"{value.name} as {kind}"
            if name not in values:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
                array = numpy_helper.to_array(value).astype(dtype)
                values[name] = numpy_helper.from_array(array, name)
                model.graph.initializer.append(values[name])
            node.input[2] = name
    return model


def run_onnx(path, inputs: dict[str, np.ndarray], *, batch_size: int = 256) -> np.ndarray:
    """Return what an ONNX network gives for many rows, computed by ONNX Runtime on the CPU.

    Parameters
    ----------
    path : path or onnxruntime.InferenceSession
        The network; a session that is open already saves loading it again.
    inputs : dict of str to ndarray
        An array of n rows for every input of the network, converted to its dtype.
    batch_size : int
        Rows that pass the network at once.

    Returns
    -------
    ndarray of n rows
        The first output.

    Raises
    ------
    ValueError
        If an input is missing.
    """
    session = onnx_session(path) if isinstance(path, (str, os.PathLike)) else path
    dtypes = {one.name: _numpy_dtype(one.type) for one in session.get_inputs()}
    missing = sorted(dtypes.keys() - inputs.keys())
    if missing:
        raise ValueError(
            f"the network takes the inputs {sorted(dtypes)}; {', '.join(missing)} is missing"
        )
    arrays = {name: np.asarray(inputs[name], dtype) for name, dtype in dtypes.items()}
    n_rows = len(next(iter(arrays.values())))
    parts = [
        session.run(None, {name: a[start : start + batch_size] for name, a in arrays.items()})[0]
        for start in range(0, n_rows, batch_size)
    ]
    return np.concatenate(parts)


def onnx_session(path: str | os.PathLike, *, n_threads: int = 1, optimize: bool = True):
    """Return an ONNX Runtime session on the CPU with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _numpy_dtype(kind: str) -> np.dtype:
    names = {"tensor(float)": "float32", "tensor(double)": "float64"}
    return np.dtype(names.get(kind, kind.removeprefix("tensor(").removesuffix(")")))


def quantize_onnx(
    source: str | os.PathLike,
    target: str | os.PathLike,
    inputs: dict[str, np.ndarray],
    *,
    batch_size: int = 16,
) -> Path:
    """Write an ONNX network again with weights and activations of 8 bits.

    Parameters
    ----------
    source, target : path
        The network in float32, and the file to write.
    inputs : dict of str to ndarray
        Rows like those that the network will see, to find the range of every activation. They
        must not be test rows; their labels are not needed.
    batch_size : int
        Rows that pass the network at once while the ranges are sought.

    Returns
    -------
    Path
        `target`. Its inputs and outputs are as before, float32.

    Raises
    ------
    ValueError
        If there is no row.

    Notes
    -----
    Static quantisation [1]_: a weight is a whole number from -64 to 64 times a scale of its
    output channel, an activation one from 0 to 255 times a scale of its tensor, after an offset.

    Why not up to 127: a processor without instructions for sums of four such products (VNNI) adds
    two of them in 16 bits, and cuts what does not fit. Two products of 255 and 64 fit. Kernels of
    depthwise convolutions, which are not computed in that way, go up to 127.

    References
    ----------
    .. [1] Jacob et al., "Quantization and training of neural networks for efficient
       integer-arithmetic-only inference", CVPR 2018, https://doi.org/10.1109/CVPR.2018.00286
    """
    if not inputs or not len(next(iter(inputs.values()))):
        raise ValueError("quantisation needs at least one row of inputs to find the ranges")
    import contextlib
    import io
    import logging
    import tempfile

    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    types = {one.name: _numpy_dtype(one.type) for one in onnx_session(source).get_inputs()}
    batches = [
        {name: np.asarray(inputs[name][i : i + batch_size], kind) for name, kind in types.items()}
        for i in range(0, len(next(iter(inputs.values()))), batch_size)
    ]
    logging.getLogger().addFilter(lambda record: "pre-processing" not in record.getMessage())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(target),
            _Batches(batches),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,
            extra_options={"TensorQuantOverrides": _depthwise_in_full_range(prepared)},
        )
    return Path(target)


def _depthwise_in_full_range(network: Path) -> dict[str, list[dict]]:
    """Return ONNX Runtime's settings for the kernels of the depthwise convolutions."""
    import onnx

    full = {"axis": 0, "symmetric": True, "reduce_range": False}
    kernels = {}
    for node in onnx.load(network).graph.node:
        groups = {a.name: a.i for a in node.attribute}.get("group", 1)
        if node.op_type == "Conv" and groups > 1:
            kernels[node.input[1]] = [full]
    return kernels


class _Batches:
    """What ONNX Runtime's quantiser reads its calibration rows from."""

    def __init__(self, batches: list[dict]):
        self.batches = iter(batches)

    def get_next(self) -> dict | None:
        return next(self.batches, None)


def graph_costs(path: str | os.PathLike, inputs: dict[str, np.ndarray]) -> Bunch:
    r"""Count what one pass through an ONNX network takes, from the shapes of a real pass.

    Parameters
    ----------
    path : path
        The network in float32.
    inputs : dict of str to ndarray
        At least two rows.

    Returns
    -------
    Bunch
        ``flops``: floating-point operations of the convolutions and matrix products of one row,
        two for each multiplication and the addition that follows it.

        ``weight_bytes``: the constants of the graph.

        ``activation_bytes``: a function of the number of rows, which returns the most bytes that
        all arrays take which were computed and will be read again, if each is freed after its
        last reader and no operations are fused. A runtime that fuses needs less.

    Raises
    ------
    ValueError
        If there are fewer than two rows.

    Examples
    --------
    A dense layer of 10 inputs and 3 units takes :math:`2 \cdot 10 \cdot 3` operations a row; see
    the page "More efficient fusion".
    """
    import onnx

    if min(len(array) for array in inputs.values()) < 2:
        raise ValueError("counting needs inputs of at least two rows")
    graph = onnx.load(path).graph
    weights = {array.name: onnx.numpy_helper.to_array(array) for array in graph.initializer}
    one, two = (_all_arrays(path, {k: v[:n] for k, v in inputs.items()}) for n in (1, 2))

    def live(n_rows: int) -> int:
        sizes = {name: one[name][1] + (two[name][1] - one[name][1]) * (n_rows - 1) for name in one}
        return _peak_bytes(graph, sizes)

    shapes = {name: shape for name, (shape, _) in one.items()}
    shapes |= {name: array.shape for name, array in weights.items()}
    return Bunch(
        flops=2 * sum(_node_multiply_adds(node, shapes) for node in graph.node),
        weight_bytes=sum(array.nbytes for array in weights.values()),
        activation_bytes=live,
    )


def _all_arrays(path, inputs: dict[str, np.ndarray]) -> dict[str, tuple[tuple, int]]:
    """Return shape and bytes of every array that a pass computes, the inputs among them."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output if name]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = {
        one.name: np.asarray(inputs[one.name], _numpy_dtype(one.type))
        for one in session.get_inputs()
    }
    outputs = [output.name for output in session.get_outputs()]
    arrays = dict(zip(outputs, session.run(outputs, given), strict=True)) | given
    return {name: (array.shape, array.nbytes) for name, array in arrays.items()}


def _peak_bytes(graph, sizes: dict[str, int]) -> int:
    """Return the most bytes alive at once; what the graph returns stays to the end."""
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    last |= {value.name: len(graph.node) for value in graph.output}
    alive = {value.name for value in graph.input if value.name in sizes}
    peak = now = sum(sizes[name] for name in alive)
    for i, node in enumerate(graph.node):
        now += sum(sizes[name] for name in node.output if name in sizes)
        alive |= {name for name in node.output if name in sizes}
        peak = max(peak, now)
        done = {name for name in alive if last.get(name, i) <= i}
        now -= sum(sizes[name] for name in done)
        alive -= done
    return peak


def _node_multiply_adds(node, shapes: dict[str, tuple]) -> int:
    """Return the multiplications, each with an addition, of one ONNX operation."""
    if node.op_type == "Conv":
        kernel = shapes[node.input[1]]
        return int(np.prod(shapes[node.output[0]])) * int(np.prod(kernel[1:]))
    if node.op_type in ("MatMul", "Gemm"):
        inner = shapes[node.input[0]]
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return int(np.prod(shapes[node.output[0]])) * inner[0 if transposed else -1]
    if node.op_type == "Einsum":
        terms = node.attribute[0].s.decode().replace(" ", "").partition("->")[0].split(",")
        lengths = {
            letter: length
            for term, name in zip(terms, node.input, strict=True)
            for letter, length in zip(term, shapes[name], strict=True)
        }
        return int(np.prod(list(lengths.values())))
    return 0


def svm_costs(model) -> Bunch:
    """Count what one row costs in support vector machines with a kernel of distances.

    Parameters
    ----------
    model : fitted classifier
        A `LateFusion`, a `Pipeline` or a `OneVsRestClassifier` of ``SVC`` with an RBF kernel.

    Returns
    -------
    Bunch
        ``parameters``: the numbers that are kept, support vectors and their coefficients.
        ``flops`` of one row: a subtraction, a multiplication and an addition for each number of
        each support vector, two operations for each coefficient, and one exponential each.
        ``weight_bytes``: of the parameters, in double precision. ``activation_bytes``: a function
        of the number of rows, bytes of the largest matrix of kernel values.

    Raises
    ------
    ValueError
        If a part is no support vector machine.
    """
    shapes = [machine.support_vectors_.shape for machine in _machines(model)]
    parameters = sum(n * d + n + 1 for n, d in shapes)
    widest = max(n for n, _ in shapes)
    return Bunch(
        parameters=parameters,
        flops=sum(n * (3 * d + 3) for n, d in shapes),
        weight_bytes=8 * parameters,
        activation_bytes=lambda n_rows: 8 * n_rows * widest,
    )


def _machines(model) -> list:
    """Return the fitted ``SVC`` inside a classifier."""
    if isinstance(model, LateFusion):
        return [machine for part in model.classifiers_.values() for machine in _machines(part)]
    if hasattr(model, "steps"):
        return _machines(model.steps[-1][1])
    if hasattr(model, "estimators_"):
        return [machine for part in model.estimators_ for machine in _machines(part)]
    if not hasattr(model, "support_vectors_"):
        raise ValueError(f"{model!r} is no fitted support vector machine")
    return [model]


# --- Smaller networks ----------------------------------------------------------------------------


def compress_tensor_fusion(classifier: FusionClassifier, rank: int) -> FusionClassifier:
    r"""Replace a trained tensor fusion by its best approximation of low rank.

    Parameters
    ----------
    classifier : FusionClassifier
        Fitted, with ``how="tensor"``. It stays as it is.
    rank : int
        Products that are summed for each unit; at most ``units + 1``.

    Returns
    -------
    FusionClassifier
        A fitted one with ``how="low-rank"``.

    Raises
    ------
    ValueError
        If the classifier is no tensor fusion or the rank is out of range.

    Notes
    -----
    A unit's weights form a matrix :math:`W_k` over the entries of both modalities. Of all matrices
    of rank R, the sum of its R largest singular triples is nearest to it in squared distance [1]_:

    .. math:: [x_1; 1]^\top W_k [x_2; 1] \approx
       \sum_{r=1}^{R} \sigma_r (u_r^\top [x_1; 1]) (v_r^\top [x_2; 1]).

    References
    ----------
    .. [1] Eckart and Young, "The approximation of one matrix by another of lower rank",
       Psychometrika 1(3), 1936, https://doi.org/10.1007/BF02288367
    """
    import keras

    from cmlearn.layers import LowRankBilinear, TensorFusion

    if getattr(classifier, "how", None) != "tensor":
        raise ValueError(
            'only a FusionClassifier with how="tensor" can be compressed; got '
            f"{getattr(classifier, 'how', classifier)!r}"
        )
    check_is_fitted(classifier, "weights_")
    network = classifier._keras_model()
    fusion = next(layer for layer in network.layers if isinstance(layer, TensorFusion))
    most = min(fusion.widths) + 1
    if not 1 <= rank <= most:
        raise ValueError(f"rank must be between 1 and {most}; got {rank!r}")

    def replaced(layer):
        if layer is fusion:
            return LowRankBilinear(fusion.units, rank=rank, name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    small = keras.models.clone_model(network, clone_function=replaced)
    for layer in small.layers:
        if layer.name == fusion.name:
            kernel = keras.ops.convert_to_numpy(fusion.kernel)
            layer.set_weights(_low_rank_factors(kernel, fusion.widths, rank))
        else:
            layer.set_weights(network.get_layer(layer.name).get_weights())
    compressed = copy.copy(classifier)
    compressed.how = "low-rank"
    compressed._keep(small)
    return compressed


def _low_rank_factors(kernel: np.ndarray, widths: tuple, rank: int) -> list[np.ndarray]:
    """Return the weights of a `LowRankBilinear` for the kernel of a `TensorFusion`."""
    d1, d2 = widths
    matrices = kernel.reshape(d1 + 1, d2 + 1, -1).transpose(2, 0, 1)
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    root = np.sqrt(s[:, None, :rank])
    factors = []
    for vectors in (u[:, :, :rank] * root, vt.transpose(0, 2, 1)[:, :, :rank] * root):
        # (units, width + 1, rank) to columns that run over ranks first, then units.
        columns = vectors.transpose(1, 2, 0).reshape(vectors.shape[1], -1)
        factors += [columns[:-1], columns[-1]]
    return factors


class DistilledClassifier(KerasClassifier):
    r"""A small network that learns from the answers of a large classifier.

    Parameters
    ----------
    teacher : classifier
        Takes the rows of ``fit`` as they are, and has ``predict_proba`` or ``decision_function``
        (or is a `LateFusion` of margins). A clone is fitted.
    features : transformer
        Makes the student's features (n, d) from the same rows, such as a
        :class:`cmlearn.fusion.Fusion` of some of the columns: the student may see less than its
        teacher.
    hidden_units : tuple of int
        Width of each hidden layer (ReLU).
    soft_weight : float in [0, 1]
        Weight of the teacher's answers; the rest is the labels'. With 0 there is no teacher.
    temperature : float
        Divides the logits of both before the softmax, so that the student also sees how probable
        the teacher finds the other classes.
    cv : int, splitter or iterable
        The folds by which every training row gets an answer from a teacher that has not seen it.
    dropout : float in [0, 1)
        Share of each hidden layer's outputs that is set to zero in training.
    learning_rate : float
        Step size of the Adam optimiser.
    batch_size : int
        Rows per gradient step.
    epochs : int
        Passes over the rows.
    random_state : int, RandomState instance or None
        Seed of the initial weights, the dropout and the order of the batches.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; the columns of ``predict_proba``.
    features_ : transformer
        Fitted.
    soft_targets_ : ndarray of shape (n, n_classes)
        The teacher's calibrated probabilities of the training rows (not with ``soft_weight=0``).
    teacher_temperature_ : float
        The temperature that calibrated them.
    config_ : str
        The student's layers, as Keras's JSON.
    weights_ : list of ndarray
        Its weights.

    Notes
    -----
    With logits z of the student, the teacher's calibrated log-probabilities t and labels y, the
    loss of a row is [1]_

    .. math:: (1 - a)\, H\bigl(y, \mathrm{softmax}(z)\bigr)
       + a\, T^2\, H\bigl(\mathrm{softmax}(t / T), \mathrm{softmax}(z / T)\bigr),

    with the cross-entropy H, ``soft_weight`` a and ``temperature`` T; an unlabelled row has the
    teacher's probabilities in place of y. A teacher is too sure of rows that it was fitted on, so
    its answers come from cross-validation. Where it sees a modality that the student does not,
    this is distillation with privileged information [2]_.

    References
    ----------
    .. [1] Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015,
       https://arxiv.org/abs/1503.02531
    .. [2] Lopez-Paz, Bottou, Schölkopf and Vapnik, "Unifying distillation and privileged
       information", ICLR 2016, https://arxiv.org/abs/1511.03643
    """

    def __init__(
        self,
        teacher,
        features,
        *,
        hidden_units=(64,),
        soft_weight=0.7,
        temperature=2.0,
        cv=5,
        dropout=0.3,
        learning_rate=3e-3,
        batch_size=64,
        epochs=60,
        random_state=None,
    ):
        self.teacher = teacher
        self.features = features
        self.hidden_units = hidden_units
        self.soft_weight = soft_weight
        self.temperature = temperature
        self.cv = cv
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X, y, groups=None, unlabelled=None):
        """Ask the teacher out of fold, then train the student.

        Parameters
        ----------
        X : table or array of n rows
            What the teacher and ``features`` take.
        y : array-like of shape (n,)
            Labels of any type.
        groups : array-like of shape (n,), optional
            Related rows, which stay in one fold of the teacher.
        unlabelled : table or array of m rows, optional
            More rows like those of ``X``, for which the student has the teacher's answers alone.
        """
        check_training_parameters(self)
        self._check_distillation(unlabelled)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y, groups)
        check_classification_targets(y)
        codes = self._encode_labels(y)
        self.features_ = clone(self.features).fit(X, y)
        hard = np.eye(len(self.classes_), dtype=np.float32)[codes]
        soft = hard
        if self.soft_weight:
            self.soft_targets_ = self._ask_teacher(X, y, codes, groups)
            # The logarithms are logits: dividing them softens the answers.
            soft = softmax(np.log(self.soft_targets_ + 1e-12), self.temperature)
        features, targets = self._student_features(X), np.stack([hard, soft], axis=1)
        if unlabelled is not None:
            answers = self._answers(X, y, groups, unlabelled)
            soft = softmax(np.log(answers + 1e-12), self.temperature)
            features = np.concatenate([features, self._student_features(unlabelled)])
            targets = np.concatenate([targets, np.stack([answers, soft], axis=1)])
        self._train(features, targets.astype(np.float32))
        return self

    def predict_proba(self, X) -> np.ndarray:
        """Return the student's class probabilities, (n, n_classes) float32."""
        check_is_fitted(self, "weights_")
        return in_batches(self._keras_model(), self._student_features(X))

    def _student_features(self, X) -> np.ndarray:
        return np.asarray(self.features_.transform(X), dtype=np.float32)

    def _check_distillation(self, unlabelled) -> None:
        if unlabelled is not None and not self.soft_weight:
            raise ValueError(
                "with soft_weight=0 nobody answers for the unlabelled rows; raise soft_weight"
            )
        if not 0 <= self.soft_weight <= 1:
            raise ValueError(
                f"soft_weight must be at least 0 and at most 1; got {self.soft_weight!r}"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature!r}")

    def _ask_teacher(self, X, y, codes, groups) -> np.ndarray:
        scores = _stage_scores(self.teacher, X, y, groups, self.cv, self.classes_)
        self.teacher_temperature_ = fit_temperature(scores, codes)
        return softmax(scores, self.teacher_temperature_)

    def _answers(self, X, y, groups, unlabelled) -> np.ndarray:
        """Return the calibrated probabilities of rows that a teacher of all of X has not seen."""
        fitted = fit_on(self.teacher, X, y, groups, np.arange(len(y)))
        scores = _scores(fitted, unlabelled, self.classes_)
        return softmax(scores, self.teacher_temperature_)

    def _train(self, features: np.ndarray, targets: np.ndarray) -> None:
        import keras
        from keras import layers, ops

        def loss(targets, z):
            hard = keras.losses.categorical_crossentropy(targets[:, 0], z, from_logits=True)
            soft = keras.losses.categorical_crossentropy(
                targets[:, 1], z / self.temperature, from_logits=True
            )
            return (1 - self.soft_weight) * hard + self.soft_weight * self.temperature**2 * soft

        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with layer_seeds(seed):
            inputs = keras.Input(features.shape[1:], name="features")
            # Blocks of length 1 have small entries; the first layer learns faster from larger ones.
            x = layers.Rescaling(1 / max(float(features.std()), 1e-12))(inputs)
            for units in self.hidden_units:
                x = layers.Dropout(self.dropout)(layers.Dense(units, activation="relu")(x))
            z = layers.Dense(len(self.classes_), name="logits")(x)
        student = keras.Model(inputs, z)
        student.compile(keras.optimizers.Adam(self.learning_rate), loss, jit_compile=False)
        rows = np.arange(len(features))
        train_network(
            student,
            (features, targets),
            rows,
            None,
            batch_size=self.batch_size,
            epochs=self.epochs,
            patience=1,
            seed=seed,
        )
        self._keep(keras.Model(inputs, ops.softmax(z)))


# --- Early exit ----------------------------------------------------------------------------------


class EarlyExit(ClassifierMixin, _NamedParts):
    r"""Ask a cheap classifier first, and a dearer one only about the rows that it is unsure of.

    Parameters
    ----------
    stages : list of (name, classifier, columns)
        From the cheapest to the dearest. Each sees only its own columns of the table; a later one
        may see those of the earlier ones as well. A stage has ``predict_proba`` or
        ``decision_function``, or is a `LateFusion` of margins.
    costs : list of float
        What it costs to ask each stage about one row, beyond what was paid for the stages before:
        milliseconds, joules or money. None may be negative.
    tolerance : float
        How much accuracy on the training folds may be given up for a lower cost.
    cv : int, splitter or iterable
        The folds by which every training row gets answers from stages that have not seen it.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted; the columns of ``predict_proba``.
    classifiers_ : dict of str to classifier
        The fitted stages.
    temperatures_ : ndarray of shape (n_stages,)
        The temperature of each stage's softmax.
    threshold_ : float
        A stage answers if it gives its first choice at least this probability; the last stage
        answers anyway.
    curve_ : dict of str to ndarray
        An entry a threshold, from the out-of-fold answers of the training rows: ``threshold``,
        ``accuracy``, ``cost`` (mean of a row) and, by its name, the share of rows that each stage
        answers. ``pd.DataFrame(curve_)`` makes a table of it.

    Notes
    -----
    A cascade [1]_, here with one threshold for all stages: temperature scaling makes their
    confidences comparable. The threshold is the one of lowest cost among those whose out-of-fold
    accuracy is at most ``tolerance`` below that of asking the last stage about every row. No test
    row has a part in it.

    References
    ----------
    .. [1] Viola and Jones, "Rapid object detection using a boosted cascade of simple features",
       CVPR 2001, https://doi.org/10.1109/CVPR.2001.990517;
       Teerapittayanon, McDanel and Kung, "BranchyNet: fast inference via early exiting from deep
       neural networks", ICPR 2016, https://doi.org/10.1109/ICPR.2016.7900006

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> stages = [("petal", LogisticRegression(max_iter=1000), [2, 3]),
    ...           ("all", LogisticRegression(max_iter=1000), [0, 1, 2, 3])]
    >>> cascade = EarlyExit(stages, costs=[1, 10], tolerance=0.01).fit(X, y)
    >>> bool(cascade.mean_cost(X) < 11)
    True
    """

    _parts = "stages"

    def __init__(self, stages, costs, *, tolerance=0.0, cv=5):
        self.stages = stages
        self.costs = costs
        self.tolerance = tolerance
        self.cv = cv

    def fit(self, X, y, groups=None):
        """Choose the threshold by cross-validation, then fit every stage on all rows.

        Parameters
        ----------
        X : table or array of n rows
            Holds the columns of every stage.
        y : array-like of shape (n,)
            Labels of any type.
        groups : array-like of shape (n,), optional
            Related rows, which stay in one fold.
        """
        self._check_parameters()
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y, groups)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        rows = np.arange(len(y))
        scores, self.classifiers_ = [], {}
        for name, classifier, columns in self.stages:
            seen = _safe_indexing(X, columns, axis=1)
            scores.append(_stage_scores(classifier, seen, y, groups, self.cv, self.classes_))
            self.classifiers_[name] = fit_on(classifier, seen, y, groups, rows)
        self.temperatures_ = np.array([fit_temperature(part, codes) for part in scores])
        curve = self._curve(self._calibrated(scores), codes)
        self.curve_ = {name: column.to_numpy() for name, column in curve.items()}
        self.threshold_ = self.choose_threshold()
        return self

    def predict_proba(self, X) -> np.ndarray:
        """Return the calibrated probabilities of the stage that answers, (n, n_classes)."""
        return self._ask(X)[0]

    def predict(self, X) -> np.ndarray:
        """Return the most probable label of every row, (n,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def choose_threshold(self) -> float:
        """Return the threshold that ``tolerance`` asks for, from ``curve_``."""
        import pandas as pd

        curve = pd.DataFrame(self.curve_)
        enough = curve["accuracy"] >= curve["accuracy"].iloc[-1] - self.tolerance
        # At the same cost the more accurate, and then the more cautious.
        order = curve[enough].sort_values(
            ["cost", "accuracy", "threshold"], ascending=[True, False, False]
        )
        return float(order["threshold"].iloc[0])

    def answering_stage(self, X) -> np.ndarray:
        """Return the number of the stage that answers each row, (n,) int, the first is 0."""
        return self._ask(X)[1]

    def mean_cost(self, X) -> float:
        """Return what a row costs on average, in the unit of ``costs``."""
        return float(np.cumsum(self.costs)[self.answering_stage(X)].mean())

    def sweep(self, X, y) -> pd.DataFrame:
        """Return accuracy and cost on labelled rows: a row a threshold, columns as ``curve_``.

        Raises
        ------
        ValueError
            If a label is none of ``classes_``; the message names its row.
        """
        check_is_fitted(self, "threshold_")
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        unknown = np.flatnonzero(~np.isin(y, self.classes_))
        if len(unknown):
            raise ValueError(
                f"row {unknown[0]} has the label {y.tolist()[unknown[0]]!r}, which no row of the "
                "training had: leave such rows out, or count them as errors yourself"
            )
        scores = [
            _scores(self.classifiers_[name], _safe_indexing(X, columns, axis=1), self.classes_)
            for name, _, columns in self.stages
        ]
        codes = np.searchsorted(self.classes_, y)
        return self._curve(self._calibrated(scores), codes)

    def _ask(self, X) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self, "threshold_")
        open_rows = np.arange(len(X))
        found = np.zeros((len(X), len(self.classes_)))
        stage_of = np.zeros(len(X), dtype=int)
        for stage, (name, _, columns) in enumerate(self.stages):
            if not len(open_rows):
                break
            part = _safe_indexing(_safe_indexing(X, columns, axis=1), open_rows)
            scores = _scores(self.classifiers_[name], part, self.classes_)
            found[open_rows] = softmax(scores, self.temperatures_[stage])
            stage_of[open_rows] = stage
            open_rows = open_rows[found[open_rows].max(axis=1) < self.threshold_]
        return found, stage_of

    def _calibrated(self, scores: list[np.ndarray]) -> np.ndarray:
        return np.stack([softmax(s, t) for s, t in zip(scores, self.temperatures_, strict=True)])

    def _curve(self, probabilities: np.ndarray, codes: np.ndarray) -> pd.DataFrame:
        """Return the curve for probabilities (n_stages, n, n_classes)."""
        import pandas as pd

        sure, right = probabilities.max(axis=2), probabilities.argmax(axis=2) == codes
        rows, spent = np.arange(len(codes)), np.cumsum(self.costs)
        curve = []
        for threshold in np.arange(202) / 200:  # above 1: no stage but the last
            exits = sure >= threshold
            exits[-1] = True
            stage = exits.argmax(axis=0)
            shares = np.bincount(stage, minlength=len(spent)) / len(codes)
            curve.append(
                {
                    "threshold": threshold,
                    "accuracy": right[stage, rows].mean(),
                    "cost": spent[stage].mean(),
                }
                | dict(zip((name for name, _, _ in self.stages), shares, strict=True))
            )
        return pd.DataFrame(curve)

    def _check_parameters(self) -> None:
        self._check_parts()
        if len(self.stages) < 2:
            raise ValueError("early exit needs at least two stages, a cheap and a dearer one")
        costs = list(self.costs)
        if len(costs) != len(self.stages):
            raise ValueError(
                f"costs must hold one number a stage; got {len(costs)} for {len(self.stages)}"
            )
        if not all(isinstance(cost, Real) and cost >= 0 for cost in costs):
            raise ValueError(f"costs must be numbers of at least 0; got {costs}")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"tolerance must be at least 0 and at most 1; got {self.tolerance!r}")


def _stage_scores(classifier, X, y, groups, cv, classes) -> np.ndarray:
    """Return scores (n, n_classes) of every row by a classifier that has not seen it."""
    scores = out_of_fold_scores(
        classifier,
        X,
        y,
        groups,
        inner_folds(cv, y, groups),
        score=lambda fitted, part: _scores(fitted, part, classes),
        present=np.ones(len(y), dtype=bool),
    )
    if np.isnan(scores).any():
        raise ValueError("cv must give every row to a test part once, such as cv=5")
    return scores


def _scores(classifier, X, classes: np.ndarray) -> np.ndarray:
    """Return margins or log-probabilities, a column for each of the classes."""
    if isinstance(classifier, LateFusion) and classifier.how == "margin":
        return _aligned(classifier._fused_scores(X), classifier.classes_, classes, -1.0)
    if not hasattr(classifier, "decision_function") and not hasattr(classifier, "predict_proba"):
        raise ValueError(f"{classifier!r} has neither predict_proba nor decision_function")
    return logits(classifier, X, classes)
