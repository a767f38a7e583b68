import colorsys
import io
import re

import numpy as np
import pytest
from PIL import Image

from cmlearn.corruptions import (
    IMAGE_CORRUPTIONS,
    SEVERITIES,
    TEXT_CORRUPTIONS,
    corrupt_images,
    corrupt_texts,
)
from cmlearn.datasets import load_emoji
from cmlearn.image import ImageError, decode
from cmlearn.robustness import add_typos
from cmlearn.text import TextError, load_word_vectors

RANDOM = {
    "gaussian noise",
    "shot noise",
    "impulse noise",
    "glass blur",
    "motion blur",
    "snow",
    "frost",
    "fog",
    "elastic transform",
}


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


@pytest.fixture(scope="module")
def pictures(emoji):
    return [decode(path) for path in emoji.data["image"].iloc[::110]]


@pytest.fixture(scope="module")
def names(emoji):
    return list(emoji.data["text"].iloc[::20])


def one(image, name, severity, random_state=0):
    return corrupt_images([image], name, severity, random_state=random_state)[0]


def grey(value=128, shape=(96, 96)):
    return np.full((*shape, 3), value, np.uint8)


def distances(changed, clean):
    return [
        np.sqrt(np.mean((a.astype(float) - b) ** 2)) for a, b in zip(changed, clean, strict=True)
    ]


# ---------------------------------------------------------------- all images


def test_there_are_fifteen_at_five_severities():
    assert len(IMAGE_CORRUPTIONS) == len(set(IMAGE_CORRUPTIONS)) == 15
    assert SEVERITIES == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("name", IMAGE_CORRUPTIONS)
def test_distance_to_the_clean_picture_grows_with_severity(name, pictures):
    mean = [
        np.mean(distances(corrupt_images(pictures, name, severity, random_state=0), pictures))
        for severity in SEVERITIES
    ]
    assert mean[0] > 3  # of 255
    assert (np.diff(mean) > 0).all(), mean


@pytest.mark.parametrize("name", IMAGE_CORRUPTIONS)
def test_the_seed_decides(name, pictures):
    before = [picture.copy() for picture in pictures]
    first, again, other = (
        corrupt_images(pictures, name, 3, random_state=seed) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, pictures, strict=True))
    changed = not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert changed == (name in RANDOM)
    fewer = corrupt_images(pictures[:3], name, 3, random_state=0)
    assert all(np.array_equal(a, b) for a, b in zip(fewer, first[:3], strict=True))


@pytest.mark.parametrize("name", IMAGE_CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 2), (40, 61)])
def test_any_size_stays_as_it_is(name, shape, rng):
    image = rng.integers(256, size=(*shape, 3), dtype=np.uint8)
    for severity in (1, 5):
        changed = one(image, name, severity)
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8


def test_paths_and_bytes_are_decoded(emoji):
    path = emoji.data["image"].iloc[0]
    with open(path, "rb") as file:
        content = file.read()
    wanted = one(decode(path), "fog", 2)
    for source in (path, content, Image.open(path)):
        assert np.array_equal(one(source, "fog", 2), wanted)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_an_image_gets_the_same_noise_whatever_comes_before_it(name, pictures):
    _, after_a_point = corrupt_images([grey(shape=(1, 1)), pictures[0]], name, 3, random_state=0)
    _, after_another = corrupt_images([pictures[1], pictures[0]], name, 3, random_state=0)
    assert np.array_equal(after_a_point, after_another)


def test_two_equal_images_get_different_noise():
    first, second = corrupt_images([grey(), grey()], "gaussian noise", 3, random_state=0)
    assert not np.array_equal(first, second)


# ---------------------------------------------------------------- each kind against a reference


def test_gaussian_noise_has_its_standard_deviation():
    noise = one(grey(), "gaussian noise", 1).astype(float) - 128
    assert abs(noise.mean()) < 0.5
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.02)


def test_shot_noise_varies_as_photons_do():
    noisy = one(grey(51), "shot noise", 2).astype(float) / 255  # 25 photons at full brightness
    assert noisy.mean() == pytest.approx(0.2, abs=0.005)
    assert noisy.var() == pytest.approx(0.2 / 25, rel=0.05)
    assert (one(grey(0), "shot noise", 5) == 0).all()


def test_impulse_noise_sets_a_share_to_black_or_white():
    noisy = one(grey(), "impulse noise", 4)
    assert set(np.unique(noisy)) == {0, 128, 255}
    assert np.mean(noisy != 128) == pytest.approx(0.17, abs=0.01)
    assert np.mean(noisy == 255) == pytest.approx(0.085, abs=0.01)
    assert (one(grey(), "impulse noise", 5)[noisy != 128] == noisy[noisy != 128]).all()


@pytest.mark.parametrize("name", [n for n in IMAGE_CORRUPTIONS if "blur" in n] + ["pixelate"])
def test_blurs_leave_an_even_image_alone(name):
    assert np.abs(one(grey(77), name, 5).astype(int) - 77).max() <= 1


def point(size=224):
    image = np.zeros((size, size, 3), np.uint8)
    image[size // 2, size // 2] = 255
    return image


def lit(image):
    return np.argwhere(image[..., 0] > 0) - image.shape[0] // 2


def test_defocus_spreads_a_point_over_a_disc():
    blurred = one(255 - point(), "defocus blur", 1)  # radius 3
    spread = lit(255 - blurred)
    reach = np.hypot(*spread.T)
    assert 2.5 <= reach.max() <= 3.6
    assert len(spread) == pytest.approx(np.pi * 3.5**2, rel=0.2)


def test_motion_spreads_a_point_over_a_line():
    spread = lit(255 - one(255 - point(), "motion blur", 3))  # length 22
    assert np.hypot(*spread.T).max() == pytest.approx(11, abs=1.5)
    width, length = np.sqrt(np.linalg.eigvalsh(np.cov(spread.T)))
    assert length > 6 * width


def test_lengths_go_with_the_size_of_the_image():
    large, small = (lit(255 - one(255 - point(size), "defocus blur", 3)) for size in (448, 112))
    areas = len(large), len(small)
    assert areas[0] / areas[1] == pytest.approx((12.5 / 3.5) ** 2, rel=0.15)


def test_zoom_blur_leaves_the_centre_and_smears_the_rim():
    rings = np.zeros((101, 101, 3), np.uint8)
    rings[50, 50] = 255
    rings[50, 95:98] = 255
    blurred = one(rings, "zoom blur", 2)
    assert blurred[50, 50, 0] > 150
    assert blurred[50, 96, 0] < 100


def test_glass_moves_pixels_no_further_than_its_reach():
    image = np.zeros((224, 224, 3), np.uint8)
    image[:, 112:] = 255
    changed = one(image, "glass blur", 1)  # reach 4, softened by a blur of 1.5 before and after
    assert (changed[:, : 112 - 4 - 13] == 0).all()
    assert (changed[:, 112 + 4 + 13 :] == 255).all()
    assert changed[:, 110].std() > 10


def test_brightness_raises_the_value_and_keeps_the_hue(rng):
    image = rng.integers(30, 150, size=(4, 4, 3), dtype=np.uint8)
    brighter = one(image, "brightness", 2) / 255
    for before, after in zip(image.reshape(-1, 3) / 255, brighter.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
        np.testing.assert_allclose(after, wanted, atol=0.003)
    assert (one(grey(0), "brightness", 5) == 128).all()


def test_contrast_draws_towards_the_mean(rng):
    image = rng.integers(256, size=(9, 8, 3), dtype=np.uint8)
    mean = image.reshape(-1, 3).mean(axis=0)
    wanted = mean + 0.23 * (image - mean)
    np.testing.assert_allclose(one(image, "contrast", 3), wanted, atol=0.51)


def test_pixelate_averages_over_blocks(rng):
    image = rng.integers(256, size=(80, 80, 3), dtype=np.uint8)
    blocks = image.reshape(20, 4, 20, 4, 3).mean(axis=(1, 3))  # severity 4 keeps a quarter
    wanted = blocks.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(one(image, "pixelate", 4), wanted, atol=0.51)


def test_jpeg_is_that_of_pillow(pictures):
    stream = io.BytesIO()
    Image.fromarray(pictures[4]).save(stream, "JPEG", quality=9)
    wanted = np.asarray(Image.open(stream))
    assert np.array_equal(one(pictures[4], "jpeg compression", 4), wanted)


def test_elastic_moves_by_its_distance_on_average():
    ramp = np.repeat(np.arange(224, dtype=np.uint8)[None, :, None], 224, axis=0).repeat(3, axis=2)
    moved = one(ramp, "elastic transform", 3)[40:-40, 40:-40, 0].astype(float)
    shift = moved - ramp[40:-40, 40:-40, 0]
    # Root mean square 7.5 pixels in both directions together, of which the ramp shows one.
    assert np.sqrt(np.mean(shift**2)) == pytest.approx(7.5 / np.sqrt(2), rel=0.25)
    assert np.abs(np.diff(shift, axis=1)).max() < 6  # neighbours move alike


def test_weather_covers_what_was_there():
    assert one(grey(0), "snow", 5).mean() > one(grey(0), "snow", 1).mean() > 5
    frost = one(grey(0), "frost", 5).reshape(-1, 3).mean(axis=0)
    assert frost[0] < frost[1] < frost[2]  # bluish
    black, white = (one(grey(value), "fog", 5).astype(float) for value in (0, 255))
    np.testing.assert_allclose(white - black, 255 / 3.6, atol=1.01)


# ---------------------------------------------------------------- bad images


@pytest.mark.parametrize("severity", [0, 6, -1, 1.5, "3", None, True])
def test_severity_outside_one_to_five(severity):
    with pytest.raises(ValueError, match="whole number from 1 to 5"):
        corrupt_images([grey()], "fog", severity)
    with pytest.raises(ValueError, match="whole number from 1 to 5"):
        corrupt_texts(["red cup"], "typos", severity)


def test_numpy_severity_is_a_number():
    assert np.array_equal(one(grey(), "contrast", np.int64(2)), one(grey(), "contrast", 2))


def test_unknown_name():
    with pytest.raises(ValueError, match="Did you mean 'gaussian noise'"):
        corrupt_images([grey()], "gaussian_noise")
    with pytest.raises(ValueError, match="choose one of typos, word drop"):
        corrupt_texts(["red cup"], "rain")
    with pytest.raises(ValueError, match="no image corruption None"):
        corrupt_images([grey()], None)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.full((4, 4, 3), 300.0), r"row 1: .*uint8.*float64 from 300 to 300"),
        (np.full((4, 4, 3), -0.5, np.float32), "float32 from -0.5"),
        (np.full((4, 4, 3), 256, np.int64), "int64 from 256"),
        (np.full((4, 4, 3), 0.5), "Scale them to 0 to 255"),
        (np.zeros((4, 4, 5), np.uint8), r"row 1: .*\(4, 4, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), "row 1"),
        ("no-such-file.png", "row 1: 'no-such-file.png' does not exist"),
        (None, "row 1: There is no image"),
    ],
)
def test_image_that_is_not_8_bit_is_refused(image, says):
    with pytest.raises(ImageError, match=says):
        corrupt_images([grey(), image], "fog")


# ---------------------------------------------------------------- texts


def changed_share(changed, clean):
    import difflib

    ratios = [
        difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
        for a, b in zip(changed, clean, strict=True)
    ]
    return 1 - np.mean(ratios)


@pytest.mark.parametrize("name", TEXT_CORRUPTIONS)
def test_texts_change_more_with_severity(name, names):
    shares = [
        changed_share(corrupt_texts(names, name, severity, random_state=0), names)
        for severity in SEVERITIES
    ]
    assert (np.diff([0, *shares]) > 0).all(), shares


@pytest.mark.parametrize("name", TEXT_CORRUPTIONS)
def test_the_seed_decides_over_texts(name, names):
    first, again, other = (corrupt_texts(names, name, 2, random_state=seed) for seed in (0, 0, 1))
    assert first == again
    assert (first != other) == (name != "truncation")
    assert corrupt_texts(names[:7], name, 2, random_state=0) == first[:7]


def _words(text):
    return re.findall(r"[^\W_]+", text)


def test_a_changed_word_stays_changed_at_higher_severity(names):
    for name in ("typos", "synonyms"):
        for mild, strong, clean in zip(
            corrupt_texts(names, name, 2, random_state=0),
            corrupt_texts(names, name, 4, random_state=0),
            names,
            strict=True,
        ):
            for a, b, word in zip(*map(_words, (mild, strong, clean)), strict=True):
                assert a in (word, b)


def test_all_words_get_one_typo_at_severity_five():
    words = ["machine", "learning", "is", "fun"]
    changed = corrupt_texts([" ".join(words)], "typos", 5, random_state=0)[0].split()
    for word, typo in zip(words, changed, strict=True):
        assert typo in {add_typos([word], random_state=seed)[0] for seed in range(300)} - {word}


def test_the_share_of_words_with_typos():
    text = " ".join(["learning"] * 4000)
    changed = corrupt_texts([text], "typos", 2, random_state=0)[0].split()
    assert np.mean([word != "learning" for word in changed]) == pytest.approx(0.4, abs=0.03)


def test_word_drop_leaves_out_a_share_and_never_all():
    text = " ".join(map(str, range(4000)))
    kept = corrupt_texts([text], "word drop", 3, random_state=0)[0].split()
    assert len(kept) / 4000 == pytest.approx(0.55, abs=0.03)
    assert [int(word) for word in kept] == sorted(map(int, kept))
    assert corrupt_texts(["cup"] * 50, "word drop", 5, random_state=0) == ["cup"] * 50
    two = corrupt_texts(["red cup"] * 400, "word drop", 5, random_state=0)
    assert set(two) == {"red cup", "red", "cup"}


def test_word_drop_leaves_the_punctuation():
    dropped = corrupt_texts(["flag: one (big) star!"] * 400, "word drop", 4, random_state=0)
    assert "flag: (big) star!" in dropped
    for text in dropped:
        assert [mark for mark in text if mark in ":()!"] == [":", "(", ")", "!"]
        assert text == text.strip() and "  " not in text


def test_synonym_is_the_nearest_in_glove():
    glove = load_word_vectors()
    for word in ("cat", "happy", "guitar"):
        rows = glove.vectors[:50_000]
        cosine = rows @ glove[word] / np.linalg.norm(rows, axis=1) / np.linalg.norm(glove[word])
        best = np.argsort(-cosine)[:2]
        wanted = next(glove.words[int(row)].as_py() for row in best)
        wanted = glove.words[int(best[1])].as_py() if wanted == word else wanted
        assert corrupt_texts([word], "synonyms", 5) == [wanted]
    assert corrupt_texts(["qzxqzx"], "synonyms", 5) == ["qzxqzx"]


def test_truncation_keeps_the_beginning():
    assert corrupt_texts(["abcdefghij" * 2], "truncation", 1) == [("abcdefghij" * 2)[:17]]
    assert corrupt_texts(["a", "  it"], "truncation", 5) == ["a", "  i"]


def test_what_stands_between_words_stays():
    assert corrupt_texts(["(X) & (Y)!"], "typos", 5, random_state=0) == ["(X) & (Y)!"]
    changed = corrupt_texts(["(cat) & dog!"], "synonyms", 5, random_state=0)[0]
    assert changed[0] == "(" and ") & " in changed and changed.endswith("!")


@pytest.mark.parametrize("text", ["", "   ", "!?", "🙂", "_"])
@pytest.mark.parametrize("name", TEXT_CORRUPTIONS)
def test_text_with_nothing_to_corrupt(name, text):
    with pytest.raises(TextError, match="row 1: there is nothing to corrupt"):
        corrupt_texts(["red cup", text], name)


def test_rows_that_are_no_texts():
    with pytest.raises(TextError, match="row 1: the text is missing"):
        corrupt_texts(["red cup", None], "typos")
    with pytest.raises(TextError, match="single string"):
        corrupt_texts("red cup", "typos")
