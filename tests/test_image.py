"""Decoding, geometry and the image encoders."""

import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.ndimage import rotate as scipy_rotate
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_sample_image
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from cmlearn.image import (
    CNNEncoder,
    ImageError,
    PretrainedCNN,
    center_crop,
    compose,
    decode,
    flip,
    jit_compile,
    normalize,
    random_crop,
    resize,
    rotate,
)


@pytest.fixture
def picture(rng):
    """A small picture whose four quarters and channels differ."""
    coarse = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


def saved(image, path, **options):
    image.save(path, **options)
    return path


# --- Decoding ------------------------------------------------------------------------------------


def test_png_comes_back_exactly_from_path_string_and_bytes(picture, tmp_path):
    path = saved(Image.fromarray(picture), tmp_path / "a.png")
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        np.testing.assert_array_equal(decode(source), picture)


def test_jpeg_is_red_first(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    pixels = decode(saved(Image.fromarray(red), tmp_path / "red.jpg", quality=95))
    assert (pixels[..., 0] > 240).all() and (pixels[..., 1:] < 15).all()


@pytest.mark.parametrize("name", ["with space.png", 'it\'s "quoted".png', "猫 图片.png"])
def test_unusual_names(picture, tmp_path, name):
    path = saved(Image.fromarray(picture), tmp_path / name)
    np.testing.assert_array_equal(decode(str(path)), picture)
    path.write_bytes(b"not an image")
    with pytest.raises(ImageError) as caught:
        decode(str(path))
    assert repr(str(path)) in str(caught.value)


# What turns the stored picture upright, by the EXIF standard's numbers.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(picture, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(picture), tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode(path), UPRIGHT[orientation](picture))


def test_grey_is_repeated(picture, tmp_path):
    grey = picture[..., 0]
    pixels = decode(saved(Image.fromarray(grey), tmp_path / "grey.png"))
    np.testing.assert_array_equal(pixels, np.dstack([grey] * 3))


def test_one_bit(tmp_path):
    bits = np.eye(9, dtype=bool)
    pixels = decode(saved(Image.fromarray(bits), tmp_path / "bits.png"))
    np.testing.assert_array_equal(pixels[..., 1], bits * 255)


def test_palette(tmp_path):
    indices = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), mode="L").convert("P")
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90] + [0] * 759)
    pixels = decode(saved(indices, tmp_path / "palette.png"))
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [10, 20, 30]]]
    np.testing.assert_array_equal(pixels, expected)


def test_palette_with_a_transparent_entry_is_laid_over_white(tmp_path):
    indices = Image.fromarray(np.array([[0, 1]], np.uint8), mode="L").convert("P")
    indices.putpalette([10, 20, 30, 40, 50, 60] + [0] * 762)
    path = saved(indices, tmp_path / "transparent.png", transparency=1)
    np.testing.assert_array_equal(decode(path), [[[10, 20, 30], [255, 255, 255]]])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opacity_is_laid_over_white(rng, tmp_path, mode):
    stored = rng.integers(0, 256, (7, 5, len(mode)), dtype=np.uint8)
    stored[0, 0, -1], stored[0, 1, -1] = 0, 255
    pixels = decode(saved(Image.fromarray(stored, mode=mode), tmp_path / "alpha.png"))
    opacity = stored[..., -1:] / 255
    expected = np.rint(stored[..., :-1] * opacity + 255 * (1 - opacity)).astype(int)
    np.testing.assert_array_equal(pixels, np.broadcast_to(expected, pixels.shape))
    np.testing.assert_array_equal(pixels[0, 0], 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_to_8(tmp_path, suffix):
    levels = np.array([[0, 257, 128 * 257, 65535, 300]], np.uint16)
    path = tmp_path / f"deep.{suffix}"
    cv2.imwrite(str(path), levels)
    np.testing.assert_array_equal(decode(path)[..., 0], [[0, 1, 128, 255, 1]])
    np.testing.assert_array_equal(decode(levels)[..., 2], [[0, 1, 128, 255, 1]])


def test_16_bit_colour_png(rng, tmp_path):
    colours = rng.integers(0, 256, (4, 5, 3), dtype=np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), colours[..., ::-1])
    np.testing.assert_array_equal(decode(tmp_path / "deep.png"), colours // 257)


def test_cmyk(tmp_path):
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 0] = 255  # cyan
    path = saved(Image.fromarray(ink, mode="CMYK"), tmp_path / "ink.jpg", quality=95)
    np.testing.assert_allclose(decode(path)[8, 8].astype(int), [0, 255, 255], atol=3)
    exact = saved(Image.fromarray(ink, mode="CMYK"), tmp_path / "ink.tif")
    np.testing.assert_array_equal(decode(exact)[8, 8], [0, 255, 255])


def test_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(tmp_path / "a.gif")[0, 0], [255, 0, 0])


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays(rng, channels):
    shape = (3, 4) if channels is None else (3, 4, channels)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    if channels == 4:
        pixels[..., 3] = 255
    result = decode(pixels)
    assert result.shape == (3, 4, 3) and result.dtype == np.uint8
    np.testing.assert_array_equal(result[..., 0], pixels.reshape(3, 4, -1)[..., 0])
    assert not np.shares_memory(result, pixels)


class Drawing:
    """An object that draws itself when asked for pixels."""

    def __init__(self, level):
        self.level = level

    def __array__(self, dtype=None, copy=None):
        return np.full((20, 30, 3), self.level, np.uint8)


def test_objects_that_draw_themselves():
    np.testing.assert_array_equal(decode(Drawing(7)), np.full((20, 30, 3), 7))


def test_pillow_images():
    indices = Image.fromarray(np.array([[0, 1]], np.uint8), mode="L").convert("P")
    indices.putpalette([10, 20, 30, 40, 50, 60] + [0] * 762)
    np.testing.assert_array_equal(decode(indices), [[[10, 20, 30], [40, 50, 60]]])


def test_unreadable_files_are_named(picture, tmp_path):
    whole = io.BytesIO()
    Image.fromarray(picture).save(whole, "PNG")
    contents = {
        "empty.png": (b"", "empty .0 bytes"),
        "words.png": (b"These are words.", "not an image"),
        "cut.png": (whole.getvalue()[:-40], "damaged or truncated"),
        "header.png": (whole.getvalue()[:20], "damaged|not an image"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=message) as caught:
            decode(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_cut_anywhere_raises_nothing_but_image_errors(picture, form):
    whole = io.BytesIO()
    Image.fromarray(picture).save(whole, form)
    whole = whole.getvalue()
    refused = 0
    for length in range(0, len(whole), max(1, len(whole) // 25)):
        try:
            decode(whole[:length])
        except ImageError:
            refused += 1
    # The last bytes of some formats carry no pixels.
    assert refused >= 22


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"]))
def test_any_bytes_raise_nothing_but_image_errors(noise, start):
    try:
        decode(start + noise)
    except ImageError:
        return


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(ImageError, match="nowhere.png' does not exist"):
        decode(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="cannot be read") as caught:
        decode(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ImageError, match="cannot be read"):
        decode("a\0b.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_file_without_permission_is_named(picture, tmp_path):
    path = saved(Image.fromarray(picture), tmp_path / "secret.png")
    path.chmod(0)
    with pytest.raises(ImageError, match="secret.png.*cannot be read"):
        decode(path)


@pytest.mark.parametrize("side", [110, 200])  # Pillow itself refuses from twice the limit on
def test_decompression_bomb_is_refused_without_being_unpacked(tmp_path, monkeypatch, side):
    path = saved(Image.new("1", (side, side)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was unpacked"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match="bomb.png.*MAX_IMAGE_PIXELS"):
            decode(path)


def test_limit_of_pixels_can_be_lifted(picture, tmp_path, monkeypatch):
    path = saved(Image.fromarray(picture), tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    np.testing.assert_array_equal(decode(path), picture)


def test_32_bit_pixels_are_refused(tmp_path):
    path = saved(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "float.tif")
    with pytest.raises(ImageError, match="float.tif.*32-bit"):
        decode(path)


@pytest.mark.parametrize(
    "source, message",
    [
        (None, "no image"),
        (float("nan"), "no image"),
        (3, "not an image"),
        (np.zeros((4, 4, 3)), "float64, expected uint8"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\(2, 4, 4, 3\)"),
    ],
)
def test_other_things_are_refused(source, message):
    with pytest.raises(ImageError, match=message):
        decode(source)


# --- Geometry ------------------------------------------------------------------------------------

SIDES = st.integers(1, 24)


@st.composite
def images(draw):
    shape = (draw(SIDES), draw(SIDES), draw(st.sampled_from([1, 3])))
    return draw(arrays(np.uint8, shape))


QUICK = settings(max_examples=40, deadline=None)


@QUICK
@given(images(), SIDES, SIDES)
def test_resize_keeps_dtype_channels_and_range(image, height, width):
    result = resize(image, (height, width))
    assert result.shape == (height, width, image.shape[2]) and result.dtype == np.uint8
    assert image.min() <= result.min() and result.max() <= image.max()


@QUICK
@given(images(), st.integers(1, 4), st.integers(1, 4))
def test_shrinking_by_a_whole_factor_averages(image, down, right):
    tall = np.repeat(np.repeat(image, down, axis=0), right, axis=1)
    noise = np.random.default_rng(0).integers(0, 256, tall.shape, dtype=np.uint8)
    height, width, channels = image.shape
    blocks = noise.reshape(height, down, width, right, channels)
    result = resize(noise, (height, width)).astype(float)
    np.testing.assert_allclose(result, blocks.mean(axis=(1, 3)), atol=0.51)
    np.testing.assert_array_equal(resize(tall, (height, width)), image)


def test_resize_mixed_does_not_alias():
    # Stripes as fine as pixels: sampled, they would turn into black or white.
    stripes = np.zeros((10, 300, 3), np.float32)
    stripes[:, ::2] = 1
    result = resize(stripes, (40, 100))
    np.testing.assert_allclose(result, 0.5, atol=0.18)
    assert abs(result.mean() - 0.5) < 0.01


def test_growing_interpolates_linearly():
    ramp = np.linspace(0, 1, 8, dtype=np.float32)[None, :, None].repeat(8, 0).repeat(3, 2)
    centres = (np.arange(32) + 0.5) / 4 - 0.5
    expected = np.interp(centres, np.arange(8), ramp[0, :, 0])
    np.testing.assert_allclose(resize(ramp, 32)[5, :, 1], expected, atol=1e-5)


@QUICK
@given(images(), st.data())
def test_center_crop_cuts_equal_margins(image, data):
    height = data.draw(st.integers(1, image.shape[0]))
    width = data.draw(st.integers(1, image.shape[1]))
    marked = np.zeros(image.shape[:2] + (2,), np.float32)
    marked[..., 0], marked[..., 1] = np.indices(image.shape[:2])
    cut = center_crop(marked, (height, width))
    top, left = cut[0, 0]
    bottom, right = np.subtract(image.shape[:2], cut[-1, -1]) - 1
    assert cut.shape[:2] == (height, width)
    assert 0 <= bottom - top <= 1 and 0 <= right - left <= 1


def test_random_crop_reaches_every_position_equally():
    marked = np.zeros((5, 4, 2), np.float32)
    marked[..., 0], marked[..., 1] = np.indices((5, 4))
    rng = np.random.default_rng(0)
    corners = [tuple(random_crop(marked, (3, 3), rng)[0, 0]) for _ in range(1200)]
    counts = {corner: corners.count(corner) for corner in set(corners)}
    assert set(counts) == {(i, j) for i in range(3) for j in range(2)}
    assert min(counts.values()) > 150 and max(counts.values()) < 250


def test_random_crop_repeats_with_the_seed(picture):
    cuts = [random_crop(picture, 10, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*cuts)


@pytest.mark.parametrize("crop", [center_crop, partial(random_crop, rng=np.random.default_rng(0))])
def test_crop_larger_than_the_image_is_refused(crop):
    with pytest.raises(ImageError, match="11 x 5 pixels out of an image of 10 x 20"):
        crop(np.zeros((10, 20, 3), np.uint8), size=(11, 5))


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3, 4])
def test_quarter_turns_are_exact_and_counter_clockwise(rng, quarters):
    image = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(rotate(image, 90 * quarters), np.rot90(image, quarters))


def test_rotation_equals_scipy():
    yy, xx = np.mgrid[:41, :61]
    smooth = np.sin(xx / 9) + np.cos(yy / 7)
    image = np.dstack([smooth] * 3).astype(np.float32)
    expected = scipy_rotate(smooth, 20, reshape=False, order=1, mode="nearest")
    np.testing.assert_allclose(rotate(image, 20)[..., 0], expected, atol=0.02)


@QUICK
@given(images(), st.floats(-720, 720))
def test_rotation_keeps_shape_dtype_and_range(image, degrees):
    result = rotate(image, degrees)
    assert result.shape == image.shape and result.dtype == image.dtype
    assert image.min() <= result.min() and result.max() <= image.max()


@QUICK
@given(images())
def test_flip_mirrors_and_undoes_itself(image):
    np.testing.assert_array_equal(flip(image)[:, 0], image[:, -1])
    np.testing.assert_array_equal(flip(flip(image)), image)


@QUICK
@given(images().filter(lambda image: image.shape[2] == 3))
def test_normalize_can_be_undone(image):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    result = normalize(image, mean, std)
    assert result.dtype == np.float32
    np.testing.assert_allclose((result * std + mean) * 255, image, atol=1e-3)


def test_normalize_takes_floats_as_0_to_1(picture):
    as_float = picture.astype(np.float32) / 255
    np.testing.assert_allclose(normalize(as_float, 0.5, 0.5), normalize(picture, 0.5, 0.5))
    with pytest.raises(ImageError, match="positive"):
        normalize(picture, 0, [1, 0, 1])


def test_compose_runs_in_order_and_pickles(picture):
    steps = compose(partial(resize, size=(20, 40)), partial(center_crop, size=(10, 30)), flip)
    by_hand = flip(center_crop(resize(picture, (20, 40)), (10, 30)))
    np.testing.assert_array_equal(steps(picture), by_hand)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(steps))(picture), by_hand)
    np.testing.assert_array_equal(compose()(picture), picture)


@pytest.mark.parametrize(
    "step",
    [flip, partial(resize, size=4), partial(rotate, degrees=3), partial(center_crop, size=1),
     partial(normalize, mean=0, std=1)],
)  # fmt: skip
@pytest.mark.parametrize(
    "image",
    [None, "a.png", np.zeros((4, 4), np.uint8), np.zeros((4, 0, 3), np.uint8),
     np.zeros((4, 4, 3), np.int64)],
)  # fmt: skip
def test_steps_refuse_what_is_no_image(step, image):
    with pytest.raises(ImageError, match="Expected"):
        step(image)


@pytest.mark.parametrize("size", [0, -1, 2.5, (3, 0)])
def test_sizes_must_be_whole_and_positive(picture, size):
    with pytest.raises(ImageError, match="at least 1 pixel"):
        resize(picture, size)


# --- PretrainedCNN -------------------------------------------------------------------------------

SIZE = 64  # small inputs keep the tests quick; the network is the same


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Give each test an empty feature cache; fetched weights stay where they are."""
    from cmlearn.efficientnet import weights_file

    path = weights_file("lite0")
    monkeypatch.setattr("cmlearn.efficientnet.weights_file", lambda variant: path)
    monkeypatch.setattr("cmlearn.image.weights_file", lambda variant: path)
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def paths(tmp_path, rng):
    """Five picture files of different sizes; the fourth is a copy of the first."""
    files = []
    for i, (height, width) in enumerate([(30, 40), (80, 50), (64, 64), (30, 40), (7, 200)]):
        pixels = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        files.append(
            str(saved(Image.fromarray(pixels).resize((width, height)), tmp_path / f"{i}.png"))
        )
    (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes())
    return files


@pytest.fixture
def encoder():
    return PretrainedCNN(image_size=SIZE, batch_size=2)


def test_features_equal_the_plain_network(encoder, paths):
    from cmlearn.efficientnet import EfficientNetLite

    pixels = np.stack([resize(decode(path), SIZE) for path in paths])
    network = EfficientNetLite(image_size=SIZE, fold_batch_norm=False)
    network.compile(jit_compile=jit_compile())
    features = encoder.fit_transform(paths)
    assert features.shape == (5, 1280) and features.dtype == np.float32
    np.testing.assert_allclose(features, network.predict_on_batch(pixels), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(features[0], features[3])


def test_features_of_an_inner_layer_equal_the_plain_networks_average(paths):
    import keras

    from cmlearn.efficientnet import EfficientNetLite

    whole = EfficientNetLite(image_size=SIZE, fold_batch_norm=False)
    inner = keras.Model(whole.input, whole.get_layer("block12_project_conv_add").output)
    pixels = np.stack([resize(decode(path), SIZE) for path in paths])
    expected = keras.ops.convert_to_numpy(inner(pixels, training=False)).mean(axis=(1, 2))
    encoder = PretrainedCNN(layer="block12", image_size=SIZE)
    features = encoder.fit_transform(paths)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3)
    assert len(encoder.get_feature_names_out()) == features.shape[1] == 192


def test_the_grid_is_the_plain_networks_map_row_by_row(paths):
    import keras

    from cmlearn.efficientnet import EfficientNetLite

    whole = EfficientNetLite(image_size=SIZE, fold_batch_norm=False)
    inner = keras.Model(whole.input, whole.get_layer("block4_project_conv_add").output)
    pixels = np.stack([resize(decode(path), SIZE) for path in paths])
    expected = keras.ops.convert_to_numpy(inner(pixels, training=False))
    grid = PretrainedCNN(layer="block4", image_size=SIZE, batch_size=2).transform_grid(paths)
    assert expected.shape == (5, 8, 8, 40) and grid.shape == (5, 64, 40)
    assert grid.dtype == np.float32
    for row, column in np.ndindex(8, 8):
        np.testing.assert_allclose(
            grid[:, 8 * row + column], expected[:, row, column], rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("layer, positions", [(None, 4), ("block12", 4), ("block5", 16)])
def test_the_grids_average_is_the_vector(paths, layer, positions, cache):
    encoder = PretrainedCNN(layer=layer, image_size=SIZE, batch_size=2, cache=cache)
    grid, vectors = encoder.transform_grid(paths), encoder.transform(paths)
    assert grid.shape == (5, positions, vectors.shape[1])
    np.testing.assert_allclose(grid.mean(axis=1), vectors, rtol=1e-5, atol=1e-5)


def test_the_grid_is_cached_beside_the_vectors(encoder, paths, monkeypatch):
    from cmlearn import image

    vectors, grid = encoder.transform(paths), encoder.transform_grid(paths)
    assert grid.shape == (5, 4, 1280) and np.ptp(grid, axis=1).max() > 0.1
    monkeypatch.setattr(image._Network, "features", lambda *_: pytest.fail("encoded anew"))
    np.testing.assert_array_equal(encoder.transform_grid(paths[::-1]), grid[::-1])
    np.testing.assert_array_equal(encoder.transform(paths), vectors)


def test_the_grid_refuses_what_transform_refuses(encoder, paths):
    with pytest.raises(ImageError, match="Row 1 .*There is no image"):
        encoder.transform_grid([paths[0], None])
    with pytest.raises(ValueError, match="Expected several images"):
        encoder.transform_grid(paths[0])
    with pytest.raises(ValueError, match="batch_size=0"):
        PretrainedCNN(batch_size=0).transform_grid(paths)


def test_unknown_layer_is_named_with_those_there_are(paths):
    with pytest.raises(ValueError, match="layer='block16' must be one of block0 to block15"):
        PretrainedCNN(layer="block16", image_size=SIZE).fit_transform(paths)


def test_every_container_and_source_gives_the_same(encoder, paths):
    features = encoder.transform(paths)
    frame = pd.DataFrame({"image": paths})
    contents = [Path(path).read_bytes() for path in paths]
    pixels = [decode(path) for path in paths]
    column = np.array(paths, dtype=object)
    for X in (tuple(paths), frame["image"], frame, column, column[:, None], np.array(paths),
              contents, pixels, pd.Series(pixels)):  # fmt: skip
        np.testing.assert_allclose(encoder.transform(X), features, rtol=1e-3, atol=1e-4)
    batch = np.stack([resize(image, SIZE) for image in pixels])
    np.testing.assert_allclose(encoder.transform(batch), features, rtol=1e-3, atol=1e-4)


def test_neighbours_and_batch_size_do_not_matter(paths):
    one = PretrainedCNN(image_size=SIZE, batch_size=1, cache=False).transform(paths)
    four = PretrainedCNN(image_size=SIZE, batch_size=4, cache=False).transform(paths)
    np.testing.assert_allclose(one, four, rtol=1e-3, atol=1e-4)


def test_cached_and_computed_are_equal(encoder, paths):
    first = encoder.transform(paths)
    np.testing.assert_array_equal(encoder.transform(paths), first)
    np.testing.assert_array_equal(encoder.transform(paths[::-1]), first[::-1])
    uncached = clone(encoder).set_params(cache=False).transform(paths)
    np.testing.assert_allclose(uncached, first, rtol=1e-3, atol=1e-4)


def test_a_changed_file_is_encoded_anew(encoder, paths):
    before = encoder.transform(paths)
    Image.new("RGB", (9, 9), "green").save(paths[1])
    after = encoder.transform(paths)
    assert abs(before[1] - after[1]).max() > 0.1
    np.testing.assert_array_equal(np.delete(before, 1, 0), np.delete(after, 1, 0))


def test_only_new_images_are_encoded(encoder, paths, monkeypatch):
    encoder.transform(paths[:2])
    counts = []
    from cmlearn import image

    plain = image._Network.features
    monkeypatch.setattr(
        image._Network, "features", lambda self, p: counts.append(len(p)) or plain(self, p)
    )
    encoder.transform(paths)
    assert sum(counts) == 2  # of five two are known and one is a copy
    encoder.transform(paths)
    assert sum(counts) == 2


def test_parameters_that_change_features_change_the_cache(encoder, paths):
    small = encoder.transform(paths)
    larger = clone(encoder).set_params(image_size=96).transform(paths)
    assert abs(small - larger).max() > 0.1


CACHED = """
    import sys
    from cmlearn.image import PretrainedCNN
    features = PretrainedCNN(image_size=64, batch_size=2).fit_transform(sys.argv[1:])
    heavy = {"keras", "tensorflow", "jax", "torch", "cv2"} & set(sys.modules)
    print(sorted(heavy), features.shape, float(features.sum()))
"""


def test_a_cached_run_imports_no_keras(encoder, paths):
    total = float(encoder.transform(paths).sum())
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(CACHED), *paths],
                         capture_output=True, text=True, check=True)  # fmt: skip
    imported, _, rest = run.stdout.partition("] ")
    assert imported == "["
    assert rest.startswith("(5, 1280)")
    assert float(rest.split()[-1]) == pytest.approx(total)


KILLED = """
    import sys, time
    import numpy as np
    from cmlearn import image
    from cmlearn.image import PretrainedCNN

    class Slow:
        size = 8
        def features(self, pixels):
            print(len(pixels), flush=True)
            time.sleep(0.1)
            return pixels.reshape(len(pixels), -1).astype(np.float32)

    image._network = lambda *name: Slow()
    drawings = [np.full((8, 8, 3), i, np.uint8) for i in range(40)]
    features = PretrainedCNN(image_size=8, batch_size=4).transform(drawings)
    print("whole", (features == np.arange(40)[:, None]).all())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no kill -9")
def test_a_killed_run_continues_where_it_was():
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(4):
        first.stdout.readline()
    time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    *batches, whole = second.stdout.splitlines()
    assert whole == "whole True"
    assert sum(map(int, batches)) <= 40 - 3 * 4


def test_clone_pickle_and_skops_give_equal_features(encoder, paths):
    features = encoder.set_params(cache=False).fit_transform(paths)
    stored = skops.io.dumps(encoder)
    trusted = skops.io.get_untrusted_types(data=stored)
    assert trusted == ["cmlearn.image.PretrainedCNN"]
    for copy in (clone(encoder), pickle.loads(pickle.dumps(encoder)),
                 skops.io.loads(stored, trusted=trusted)):  # fmt: skip
        np.testing.assert_array_equal(copy.transform(paths), features)


def test_works_in_a_column_transformer_and_names_its_features(encoder, paths):
    frame = pd.DataFrame({"image": paths, "size": range(5)})
    for column in ("image", ["image"]):
        both = ColumnTransformer([("picture", encoder, column), ("size", "passthrough", ["size"])])
        assert both.fit_transform(frame).shape == (5, 1281)
        names = both.get_feature_names_out()
        assert len(names) == 1281
        assert names[0] == "picture__pretrainedcnn0"
    table = encoder.set_output(transform="pandas").fit_transform(paths)
    assert list(table.columns) == list(encoder.get_feature_names_out())


def test_bad_images_are_named_with_their_row(encoder, paths, tmp_path):
    (tmp_path / "broken.png").write_bytes(Path(paths[0]).read_bytes()[:60])
    rows = {
        str(tmp_path / "broken.png"): "broken.png' is damaged",
        str(tmp_path / "gone.png"): "gone.png' does not exist",
        None: "There is no image",
    }
    for bad, message in rows.items():
        for cache in (True, False):
            encoder.set_params(cache=cache)
            with pytest.raises(ImageError, match=f"Row 3 .counted from 0.: .*{message}"):
                encoder.transform([*paths[:3], bad, paths[4]])


@pytest.mark.parametrize(
    "X, message",
    [
        ("a.png", "Expected several images"),
        (b"bytes", "Expected several images"),
        ([], "Found 0 images"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "one column of images, got 2"),
        (np.array([["x", "y"]]), "one column of images, got 2"),
    ],
)
def test_bad_containers_are_refused(encoder, X, message):
    for method in (encoder.fit, encoder.transform):
        with pytest.raises(ValueError, match=message):
            method(X)


@pytest.mark.parametrize(
    "name, value",
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("image_size", -3),
        ("model", 7),
        ("batch_size", True),
    ],
)
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        PretrainedCNN(**{name: value}).fit(["a.png"])


def test_unknown_model_offers_the_nearest(paths):
    with pytest.raises(ValueError, match="'mobilenetv2' is unknown.*MobileNetV2"):
        PretrainedCNN("mobilenetv2").transform(paths)


def test_any_keras_application(paths, monkeypatch):
    import keras

    from cmlearn import image

    plain = keras.applications.MobileNetV2
    keras.utils.set_random_seed(0)
    network = plain(weights=None, include_top=False, pooling="avg", input_shape=(SIZE, SIZE, 3))

    def without_download(*, weights, **options):
        assert weights == "imagenet" and options["pooling"] == "avg"
        return network

    without_download.__module__ = plain.__module__
    monkeypatch.setattr(keras.applications, "MobileNetV2", without_download)
    image._network.cache_clear()
    encoder = PretrainedCNN("MobileNetV2", image_size=SIZE)
    features, grid = encoder.fit_transform(paths), encoder.transform_grid(paths)
    image._network.cache_clear()
    image._grid_network.cache_clear()
    assert grid.shape == (5, 4, 1280)
    np.testing.assert_allclose(grid.mean(axis=1), features, rtol=1e-5, atol=1e-5)
    pixels = np.stack([resize(decode(path), SIZE) for path in paths]) / 127.5 - 1
    np.testing.assert_allclose(features, network.predict_on_batch(pixels), rtol=1e-3, atol=1e-4)


# --- CNNEncoder ----------------------------------------------------------------------------------


def coloured(n, rng):
    """Noisy pictures that are reddish or bluish, and which."""
    y = np.arange(n) % 2
    X = rng.integers(0, 160, (n, 20, 20, 3), dtype=np.uint8)
    X[np.arange(n), ..., 2 * y] += 90
    return list(X), np.array(["red", "blue"])[y]


SMALL = {"filters": (4, 8), "units": 6, "image_size": 16, "epochs": 8, "batch_size": 8}


@pytest.fixture(scope="module")
def fitted():
    X, y = coloured(32, np.random.default_rng(0))
    return CNNEncoder(**SMALL, random_state=0).fit(X, y), X, y


def test_trained_features_separate_the_classes(fitted):
    encoder, X, y = fitted
    new, labels = coloured(40, np.random.default_rng(1))
    classifier = LogisticRegression().fit(encoder.transform(X), y)
    assert classifier.score(encoder.transform(new), labels) > 0.9
    assert encoder.history_["loss"][-1] < encoder.history_["loss"][0]
    assert len(encoder.history_["loss"]) == len(encoder.history_["accuracy"]) == 8
    assert list(encoder.classes_) == ["blue", "red"]


def test_features_are_the_penultimate_layer(fitted):
    """The rest of the network, a softmax, written out from the stored weights."""
    encoder, X, _ = fitted
    features = encoder.transform(X)
    assert features.shape == (32, 6) and features.dtype == np.float32 and features.min() >= 0
    import keras

    from cmlearn.image import _small_cnn

    network = _small_cnn(**encoder._architecture, seed=1)
    network.set_weights(encoder.weights_)
    kinds = {type(layer) for layer in network.layers}
    assert {
        keras.layers.Conv2D,
        keras.layers.BatchNormalization,
        keras.layers.MaxPooling2D,
    } <= kinds
    kernel, bias = encoder.weights_[-2:]
    scores = np.exp(features @ kernel + bias)
    pixels = np.stack([resize(image, 16) for image in X])
    expected = np.asarray(network(pixels, training=False))
    np.testing.assert_allclose(scores / scores.sum(axis=1, keepdims=True), expected, atol=1e-4)


def test_the_seed_decides(fitted):
    import keras

    encoder, X, y = fitted
    keras.utils.set_random_seed(99)
    again = clone(encoder).fit(X, y).transform(X)
    np.testing.assert_allclose(again, encoder.transform(X), rtol=1e-4, atol=1e-5)
    other = clone(encoder).set_params(random_state=1, epochs=1).fit(X, y).transform(X)
    assert abs(other - again).max() > 0.01


def test_training_leaves_the_global_seeds_alone(fitted):
    _, X, y = fitted
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    CNNEncoder(**{**SMALL, "epochs": 1}, random_state=0).fit(X, y)
    assert np.random.random() == expected  # noqa: NPY002


def test_pickle_and_skops_round_trips_give_equal_features(fitted):
    encoder, X, _ = fitted
    features = encoder.transform(X)
    stored = skops.io.dumps(encoder)
    trusted = skops.io.get_untrusted_types(data=stored)
    assert trusted == ["cmlearn.image.CNNEncoder"]
    for copy in (pickle.loads(pickle.dumps(encoder)), skops.io.loads(stored, trusted=trusted)):
        np.testing.assert_array_equal(copy.transform(X), features)
        assert copy.history_ == encoder.history_


def test_parameters_set_after_fit_wait_for_the_next(fitted):
    encoder, X, _ = fitted
    copy = pickle.loads(pickle.dumps(encoder)).set_params(units=99, image_size=32)
    np.testing.assert_array_equal(copy.transform(X), encoder.transform(X))
    assert len(copy.get_feature_names_out()) == 6


def test_works_in_a_pipeline(fitted):
    _, X, y = fitted
    model = make_pipeline(CNNEncoder(**SMALL, random_state=0), LogisticRegression())
    assert model.fit(X, y).score(X, y) > 0.9
    assert list(model[:-1].get_feature_names_out()[:2]) == ["cnnencoder0", "cnnencoder1"]


def test_cnn_encoder_must_be_fitted():
    with pytest.raises(NotFittedError):
        CNNEncoder().transform([np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(NotFittedError):
        CNNEncoder().get_feature_names_out()


@pytest.mark.parametrize(
    "change, labels, message",
    [
        ({}, ["a"] * 4, "All 4 labels are .*'a'"),
        ({}, ["a", "b"], "inconsistent numbers of samples"),
        ({"image_size": 3}, list("abab"), "image_size=3 .*at least 4"),
        ({"filters": (4, 0)}, list("abab"), "filters=0"),
        ({"epochs": 0}, list("abab"), "epochs=0"),
        ({}, [0.1, 0.2, 0.3, 0.4], "continuous"),
    ],
)
def test_bad_training_is_refused(change, labels, message):
    X = [np.zeros((8, 8, 3), np.uint8)] * 4
    with pytest.raises(ValueError, match=message):
        CNNEncoder(**{**SMALL, **change}).fit(X, labels)


def test_cnn_encoder_names_a_bad_image(fitted):
    encoder, X, _ = fitted
    with pytest.raises(ImageError, match="Row 9 "):
        encoder.transform([*X[:9], None])
    with pytest.raises(ImageError, match="Row 1 "):
        clone(encoder).fit([X[0], None], ["a", "b"])


# --- scikit-learn's conventions ------------------------------------------------------------------


@pytest.mark.parametrize("made", [PretrainedCNN(), CNNEncoder()], ids=["pretrained", "cnn"])
@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
    ],
)
def test_scikit_learn_check(check, made):
    getattr(estimator_checks, check)(type(made).__name__, made)


def test_photograph_from_scikit_learn_is_decoded_as_pillow_does():
    path = os.path.join(os.path.dirname(sys.modules["sklearn.datasets"].__file__), "images")
    np.testing.assert_array_equal(
        decode(os.path.join(path, "china.jpg")), load_sample_image("china.jpg")
    )
