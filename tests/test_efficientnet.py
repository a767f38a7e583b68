"""EfficientNet-Lite against a computation in NumPy and SciPy, and the checkpoint reader."""

import os
import pickle
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import correlate2d
from scipy.special import softmax
from sklearn.datasets import load_sample_image

from cmlearn.efficientnet import (
    CheckpointError,
    EfficientNetLite,
    _blocks,
    read_torch_checkpoint,
    weights_file,
)
from cmlearn.image import center_crop, decode, resize

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def arrays():
    return read_torch_checkpoint(weights_file("lite0"))


@pytest.fixture(scope="module")
def pixels():
    photograph = resize(load_sample_image("china.jpg"), 224)
    return np.stack([photograph, skimage.data.astronaut()[100:324, 100:324]])


@pytest.fixture(scope="module")
def layered():
    return EfficientNetLite(include_top=True, fold_batch_norm=False)


@pytest.fixture(scope="module")
def folded():
    model = EfficientNetLite(include_top=True)
    # XLA takes long to compile; neither it nor its absence changes what is computed.
    model.compile(jit_compile=False)
    return model


@pytest.fixture(scope="module")
def outputs(layered, pixels):
    """Outputs of the named layers for `pixels`."""
    import keras

    names = ["conv_stem_relu6", "block0_project_conv_norm", "block1_project_conv_norm"]
    names += ["block2_project_conv_add", "block15_project_conv_norm", "features", "probabilities"]
    part = keras.Model(layered.input, [layered.get_layer(name).output for name in names])
    return dict(zip(names, map(np.asarray, part(pixels)), strict=True))


# --- The same in NumPy and SciPy, channels first as in the checkpoint ----------------------------


def padded(x, size, stride):
    """Pad with zeros as TensorFlow's "same" does: more below and right than above and left."""
    total = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:]]
    return np.pad(x, [(0, 0)] + [(n // 2, n - n // 2) for n in total])


def convolution(x, kernel, stride=1):
    windows = sliding_window_view(padded(x, kernel.shape[-1], stride), kernel.shape[2:], (1, 2))
    return np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], kernel, optimize=True)


def depthwise(x, kernel, stride):
    x = padded(x, kernel.shape[-1], stride)
    maps = [correlate2d(channel, k[0], mode="valid") for channel, k in zip(x, kernel, strict=True)]
    return np.stack(maps)[:, ::stride, ::stride]


def batch_norm(x, arrays, name):
    names = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, var = (arrays[f"{name}.{n}"].astype(float)[:, None, None] for n in names)
    return gamma * (x - mean) / np.sqrt(var + 1e-3) + beta


def relu6(x):
    return np.clip(x, 0, 6)


def block(x, arrays, index, stride):
    name = f"_blocks.{index}."
    if f"{name}_expand_conv.weight" in arrays:
        x = convolution(x, arrays[f"{name}_expand_conv.weight"].astype(float))
        x = relu6(batch_norm(x, arrays, f"{name}_bn0"))
    x = depthwise(x, arrays[f"{name}_depthwise_conv.weight"].astype(float), stride)
    x = relu6(batch_norm(x, arrays, f"{name}_bn1"))
    x = convolution(x, arrays[f"{name}_project_conv.weight"].astype(float))
    return batch_norm(x, arrays, f"{name}_bn2")


def first(output):
    """Return the first image's map with the channels first."""
    return output[0].transpose(2, 0, 1).astype(float)


def test_stem_equals_numpy(outputs, arrays, pixels):
    x = (pixels[0].transpose(2, 0, 1).astype(float) - 127) / 128
    x = relu6(batch_norm(convolution(x, arrays["_conv_stem.weight"], 2), arrays, "_bn0"))
    np.testing.assert_allclose(first(outputs["conv_stem_relu6"]), x, **TOLERANCE)


def test_blocks_equal_scipy(outputs, arrays):
    x = block(first(outputs["conv_stem_relu6"]), arrays, 0, stride=1)
    np.testing.assert_allclose(first(outputs["block0_project_conv_norm"]), x, **TOLERANCE)
    x = block(x, arrays, 1, stride=2)
    np.testing.assert_allclose(first(outputs["block1_project_conv_norm"]), x, **TOLERANCE)
    x = x + block(x, arrays, 2, stride=1)
    np.testing.assert_allclose(first(outputs["block2_project_conv_add"]), x, **TOLERANCE)


def test_head_equals_numpy(outputs, arrays):
    x = first(outputs["block15_project_conv_norm"])
    x = relu6(batch_norm(convolution(x, arrays["_conv_head.weight"]), arrays, "_bn1"))
    features = x.mean(axis=(1, 2))
    np.testing.assert_allclose(outputs["features"][0], features, **TOLERANCE)
    scores = arrays["_fc.weight"].astype(float) @ features + arrays["_fc.bias"]
    np.testing.assert_allclose(outputs["probabilities"][0], softmax(scores), **TOLERANCE)


def test_folding_changes_nothing_but_rounding(folded, outputs, pixels):
    np.testing.assert_allclose(
        folded.predict_on_batch(pixels), outputs["probabilities"], rtol=1e-3, atol=1e-5
    )


def test_uint8_and_float_pixels_mean_the_same(folded, pixels):
    as_float = folded.predict_on_batch(pixels.astype(np.float32))
    np.testing.assert_allclose(folded.predict_on_batch(pixels), as_float, atol=1e-6)


# Indices of the 1,000 classes of ImageNet (ILSVRC 2012).
PHOTOGRAPHS = {
    "chelsea": {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"},
    "coffee": {967: "espresso"},
    "camera": {872: "tripod"},
    "rocket": {657: "missile", 744: "projectile", 812: "space shuttle"},
    "flower.jpg": {985: "daisy"},
    "china.jpg": {698: "palace", 663: "monastery", 832: "stupa"},
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_named_as_what_they_show(folded, name):
    is_sample = name.endswith(".jpg")
    image = load_sample_image(name) if is_sample else getattr(skimage.data, name)()
    image = decode(image)
    image = resize(center_crop(image, min(image.shape[:2])), 224)
    best = int(folded.predict_on_batch(image[None]).argmax())
    assert best in PHOTOGRAPHS[name]


def test_probabilities_sum_to_one(folded, pixels):
    np.testing.assert_allclose(folded.predict_on_batch(pixels).sum(axis=1), 1, rtol=1e-5)


def test_without_top_the_features_come_out(outputs, pixels):
    model = EfficientNetLite()
    model.compile(jit_compile=False)
    np.testing.assert_allclose(model.predict_on_batch(pixels), outputs["features"], atol=1e-3)


def test_another_image_size_changes_the_input_alone():
    model = EfficientNetLite(image_size=96)
    assert model.input_shape == (None, 96, 96, 3)
    assert model.output_shape == (None, 1280)


def test_lite2_scales_depth_and_width_as_published():
    blocks = list(_blocks(1.1, 1.2))
    assert [convolutions[-1].filters for convolutions, _ in blocks] == (
        [16] + [24] * 3 + [48] * 3 + [88] * 4 + [120] * 4 + [208] * 5 + [352]
    )


def test_unknown_variant_names_the_known_ones():
    with pytest.raises(ValueError, match="lite9.*lite0, lite2"):
        EfficientNetLite("lite9")


# --- The checkpoint reader -----------------------------------------------------------------------


class Tensor:
    def __init__(self, array, key, offset=0, shape=None, strides=None):
        self.array, self.key, self.offset = np.ascontiguousarray(array), key, offset
        self.shape = self.array.shape if shape is None else shape
        own = tuple(s // array.itemsize for s in self.array.strides)
        self.strides = own if strides is None else strides


@pytest.fixture
def write_checkpoint(tmp_path, monkeypatch):
    """Write a file as torch.save did, from stand-ins for PyTorch's own classes."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    utils._rebuild_tensor_v2 = lambda *parts: None
    utils._rebuild_tensor_v2.__module__, utils._rebuild_tensor_v2.__qualname__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
    )
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    storage_of = {"f": torch.FloatStorage, "i": torch.LongStorage}

    class Storage:
        def __init__(self, tensor):
            self.tensor = tensor

    class Pickler(pickle.Pickler):
        def persistent_id(self, found):
            if isinstance(found, Storage):
                array = found.tensor.array
                return ("storage", storage_of[array.dtype.kind], found.tensor.key, "cpu",
                        array.size, None)  # fmt: skip

        def reducer_override(self, found):
            if isinstance(found, Tensor):
                return utils._rebuild_tensor_v2, (Storage(found), found.offset, found.shape,
                                                  found.strides, False, OrderedDict())  # fmt: skip
            return NotImplemented

    def write(content, name="weights.pth", magic=0x1950A86A20F9469CFC6C):
        path = tmp_path / name
        with path.open("wb") as file:
            for header in (magic, 1001, {"little_endian": True}):
                pickle.dump(header, file, protocol=2)
            Pickler(file, protocol=2).dump(content)
            tensors = [t for t in content.values() if isinstance(t, Tensor)]
            pickle.dump([t.key for t in tensors], file, protocol=2)
            for tensor in tensors:
                file.write(struct.pack("<q", tensor.array.size) + tensor.array.tobytes())
        return path

    return write


def test_reader_returns_what_was_written(write_checkpoint, rng):
    weight = rng.standard_normal((3, 4)).astype(np.float32)
    content = OrderedDict(
        weight=Tensor(weight, "1"), count=Tensor(np.array(7), "2", shape=(), strides=())
    )
    read = read_torch_checkpoint(write_checkpoint(content))
    assert list(read) == ["weight", "count"]
    np.testing.assert_array_equal(read["weight"], weight)
    assert read["weight"].dtype == np.float32 and read["weight"].flags.writeable
    assert read["count"] == 7 and read["count"].dtype == np.int64


def test_reader_follows_strides_and_offsets(write_checkpoint):
    numbers = np.arange(12, dtype=np.float32)
    view = Tensor(numbers, "1", offset=2, shape=(2, 3), strides=(1, 3))
    read = read_torch_checkpoint(write_checkpoint({"view": view}))["view"]
    np.testing.assert_array_equal(read, [[2, 5, 8], [3, 6, 9]])


@pytest.mark.parametrize("strides, offset", [((100, 1), 0), ((3, 1), 10), ((-3, 1), 6)])
def test_reader_refuses_to_look_outside_a_storage(write_checkpoint, strides, offset):
    numbers = np.arange(12, dtype=np.float32)
    bad = Tensor(numbers, "1", offset=offset, shape=(2, 3), strides=strides)
    with pytest.raises(CheckpointError, match="'bad' reaches outside"):
        read_torch_checkpoint(write_checkpoint({"bad": bad}))


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_reader_runs_no_code_from_the_file(write_checkpoint, tmp_path):
    marker = tmp_path / "hacked"
    path = write_checkpoint({"weight": Attack(marker)})
    with pytest.raises(CheckpointError, match="mkdir.*nothing was run"):
        read_torch_checkpoint(path)
    assert not marker.exists()


def test_reader_names_a_truncated_file_at_any_length(write_checkpoint, rng):
    path = write_checkpoint({"weight": Tensor(rng.standard_normal(50, np.float32), "1")})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="weights.pth"):
            read_torch_checkpoint(path)


def test_reader_refuses_another_format(write_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="does not begin"):
        read_torch_checkpoint(write_checkpoint({}, magic=1))
    other = tmp_path / "zip.pth"
    other.write_bytes(b"PK\x03\x04 a newer file")
    with pytest.raises(CheckpointError, match="zip.pth"):
        read_torch_checkpoint(other)


def test_weights_of_another_network_are_refused(write_checkpoint):
    stem = Tensor(np.zeros((32, 3, 5, 5), np.float32), "1")
    path: Path = write_checkpoint({"_conv_stem.weight": stem})
    with pytest.raises(CheckpointError, match=r"\(32, 3, 5, 5\), expected \(32, 3, 3, 3\)"):
        EfficientNetLite(weights=path)
    with pytest.raises(CheckpointError, match="no _conv_stem.weight"):
        EfficientNetLite(weights=write_checkpoint({"other": stem}))
