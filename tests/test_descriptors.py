"""SIFT bags of words, HOG and colour histograms; scikit-learn's checks of every image encoder."""

import pickle
import zlib
from functools import lru_cache, partial

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.feature import hog
from sklearn.base import clone
from sklearn.cluster import MiniBatchKMeans
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.validation import validate_data
from threadpoolctl import threadpool_limits

from cmlearn.image import (
    CNNEncoder,
    ColorHistogram,
    HOGEncoder,
    ImageError,
    NoKeypointsWarning,
    PretrainedCNN,
    SIFTBagOfWords,
    resize,
)
from cmlearn.persistence import load_model, save_model

SIZE = 64
PLAIN = np.full((40, 40, 3), 200, np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Give each test an empty feature cache; fetched weights stay where they are."""
    from cmlearn.efficientnet import weights_file

    path = weights_file("lite0")
    monkeypatch.setattr("cmlearn.efficientnet.weights_file", lambda variant: path)
    monkeypatch.setattr("cmlearn.image.weights_file", lambda variant: path)
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))


@lru_cache
def drawn(seed, side):
    blots = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(blots, (side, side), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for each other cost more here than they save."""
    with threadpool_limits(1):
        yield


def draw(seed, side=SIZE):
    """Blots of random colours, in which SIFT finds some twenty keypoints."""
    return drawn(seed, side).copy()


@pytest.fixture(scope="module")
def images():
    return [draw(seed) for seed in range(12)]


@pytest.fixture
def tfidf(images):
    return SIFTBagOfWords(10, levels=1, image_size=SIZE, random_state=0).fit(images)


@pytest.fixture
def vlad(images):
    encoder = SIFTBagOfWords(4, encoding="vlad", levels=1, image_size=SIZE, random_state=0)
    return encoder.fit(images)


ENCODERS = [
    SIFTBagOfWords(8, image_size=SIZE, random_state=0),
    SIFTBagOfWords(4, encoding="vlad", levels=1, image_size=SIZE, random_state=0),
    HOGEncoder(image_size=32),
    ColorHistogram(3),
]
NAMES = ["tfidf", "vlad", "hog", "histogram"]
every_encoder = pytest.mark.parametrize("encoder", ENCODERS, ids=NAMES)


# --- SIFT bag of words ---------------------------------------------------------------------------


def sift(image, contrast_threshold=0.01):
    """Return what OpenCV finds: coordinates in pixels, and RootSIFT written out."""
    detector = cv2.SIFT_create(contrastThreshold=contrast_threshold)
    keypoints, descriptors = detector.detectAndCompute(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None
    )
    root = np.sqrt(descriptors / np.abs(descriptors).sum(axis=1)[:, None])
    return np.array([keypoint.pt for keypoint in keypoints]), root


def nearest(root, words):
    return ((root[:, None] - words[None]) ** 2).sum(axis=2).argmin(axis=1)


def word_counts(images, words):
    """Return how often each word occurs, by comparing each descriptor with each word."""
    numbers = [nearest(sift(image)[1], words) for image in images]
    return np.array([np.bincount(row, minlength=len(words)) for row in numbers])


def test_tfidf_equals_counted_words_and_scikit_learn(tfidf, images):
    new = [draw(seed) for seed in range(100, 105)]
    reference = TfidfTransformer().fit(word_counts(images, tfidf.words_))
    np.testing.assert_allclose(tfidf.idf_, reference.idf_)
    expected = reference.transform(word_counts(new, tfidf.words_)).toarray()
    features = tfidf.transform(new)
    assert features.shape == (5, 10) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_the_vocabulary_is_the_k_means_of_root_sift(tfidf, images):
    descriptors = np.concatenate([sift(image)[1] for image in images])
    # Whatever the order of the descriptors, the clusters must be about as tight.
    distance = ((descriptors - tfidf.words_[nearest(descriptors, tfidf.words_)]) ** 2).sum()
    reference = MiniBatchKMeans(10, n_init=5, random_state=1).fit(descriptors)
    assert distance < 1.1 * reference.inertia_
    assert distance < 0.9 * ((descriptors - descriptors.mean(axis=0)) ** 2).sum()


def test_vlad_equals_the_sums_written_out(vlad, images):
    features = vlad.transform(images)
    assert features.shape == (12, 4 * 128) and features.dtype == np.float32
    for image, row in zip(images, features, strict=True):
        _, root = sift(image)
        words = nearest(root, vlad.words_)
        blocks = []
        for word, centre in enumerate(vlad.words_):
            total = np.zeros(128)
            for descriptor in root[words == word]:
                total += descriptor - centre
            blocks.append(total / (np.linalg.norm(total) or 1))
        expected = np.concatenate(blocks)
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)


@pytest.mark.parametrize("encoding", ["tfidf", "vlad"])
def test_the_first_level_of_the_pyramid_is_the_whole(images, encoding):
    whole = SIFTBagOfWords(6, encoding=encoding, levels=1, image_size=SIZE, random_state=0)
    pyramid = clone(whole).set_params(levels=3)
    expected, features = whole.fit_transform(images), pyramid.fit_transform(images)
    width = expected.shape[1]
    assert features.shape[1] == 21 * width == len(pyramid.get_feature_names_out())
    np.testing.assert_allclose(features[:, :width], expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), np.sqrt(3), rtol=1e-5)


def test_cells_hold_the_words_of_their_part_of_the_image(images):
    encoder = SIFTBagOfWords(6, levels=3, image_size=SIZE, random_state=0).fit(images)
    features = encoder.transform(images[:3])
    start = 5 * 6  # behind the whole and its four quarters
    for image, row in zip(images, features, strict=False):
        positions, root = sift(image)
        words = nearest(root, encoder.words_)
        expected = np.zeros((4, 4, 6))
        for (x, y), word in zip(positions, words, strict=True):
            expected[int((y + 0.5) / 16), int((x + 0.5) / 16), word] += encoder.idf_[word]
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(row[start:], expected.ravel(), atol=1e-6)


def test_a_mark_in_one_corner_fills_one_quarter():
    marked = PLAIN.copy()
    marked[24:36, 2:14] = draw(0, 12)
    encoder = SIFTBagOfWords(2, levels=2, image_size=SIZE, random_state=0)
    whole, *quarters = encoder.fit_transform([marked])[0].reshape(5, 2)
    np.testing.assert_allclose(quarters[2], whole)  # row 1, column 0
    assert not np.any(quarters[:2]) and not np.any(quarters[3])


@pytest.mark.parametrize("limit", [1, 5])
def test_the_keypoints_of_highest_contrast_are_kept(images, limit):
    encoder = SIFTBagOfWords(2, levels=1, max_keypoints=limit, image_size=SIZE)
    detector = cv2.SIFT_create(contrastThreshold=0.01)
    for kept, image in zip(encoder._keypoints(images), images, strict=True):
        keypoints = detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
        contrast = np.array([keypoint.response for keypoint in keypoints])
        places = (np.array([keypoint.pt for keypoint in keypoints]) + 0.5) / SIZE
        kept = [tuple(place) for place in kept.positions.tolist()]
        places = [tuple(place) for place in places.astype(np.float32).tolist()]
        least = np.sort(contrast)[-limit]
        assert len(kept) == limit and kept[0] == places[contrast.argmax()]
        assert set(kept) <= {places[i] for i in np.flatnonzero(contrast >= least)}
        assert set(kept) >= {places[i] for i in np.flatnonzero(contrast > least)}


def test_images_without_keypoints_are_counted_and_zero(tfidf, images):
    mixed = [PLAIN, images[0], PLAIN]
    with pytest.warns(
        NoKeypointsWarning, match="2 of 3 images have no keypoint.*: row 0, 2"
    ) as got:
        features = tfidf.transform(mixed)
    assert len(got) == 1 and got[0].filename == __file__
    assert not features[[0, 2]].any()
    np.testing.assert_array_equal(features[1], tfidf.transform(images[:1])[0])
    with pytest.warns(NoKeypointsWarning, match="7 of 7 .*: row 0, 1, 2, 3, 4, ..."):
        assert not tfidf.transform([PLAIN] * 7).any()


@pytest.mark.parametrize("encoding", ["tfidf", "vlad"])
def test_images_without_keypoints_may_be_trained_on(images, encoding):
    encoder = SIFTBagOfWords(4, encoding=encoding, image_size=SIZE, random_state=0)
    with pytest.warns(NoKeypointsWarning, match="1 of 5") as got:
        features = encoder.fit_transform([*images[:4], PLAIN])
    assert len(got) == 1 and np.isfinite(features).all() and not features[4].any()


@pytest.mark.parametrize("cache", [True, False])
def test_fewer_descriptors_than_words_are_refused(images, cache):
    encoder = SIFTBagOfWords(5000, image_size=SIZE, cache=cache)
    with pytest.raises(ValueError, match=r"12 images hold \d+ SIFT .* fewer than n_words=5000"):
        encoder.fit(images)
    with pytest.raises(ValueError, match="2 images hold 0 SIFT descriptors"):
        encoder.fit([PLAIN, PLAIN])


def test_the_vocabulary_is_learned_from_a_sample(images, monkeypatch):
    monkeypatch.setattr("cmlearn.image._VOCABULARY_SAMPLE", 7)
    learned = []
    plain = MiniBatchKMeans.fit
    monkeypatch.setattr(
        MiniBatchKMeans, "fit", lambda self, X: learned.append(len(X)) or plain(self, X)
    )
    SIFTBagOfWords(5, image_size=SIZE, random_state=0).fit(images)
    assert learned == [7]


def test_the_seed_decides_and_the_global_one_is_left_alone(images, tfidf):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    again = clone(tfidf).fit(images)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.testing.assert_array_equal(again.words_, tfidf.words_)
    other = clone(tfidf).set_params(random_state=1).fit(images)
    assert abs(other.words_ - tfidf.words_).max() > 1e-3


def test_must_be_fitted():
    with pytest.raises(NotFittedError):
        SIFTBagOfWords().transform([PLAIN])
    with pytest.raises(NotFittedError):
        SIFTBagOfWords().get_feature_names_out()


# --- HOG and colour histogram --------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"orientations": 6, "pixels_per_cell": 12, "cells_per_block": 3}]
)
def test_hog_equals_scikit_image(images, options):
    encoder = HOGEncoder(image_size=48, **options)
    features = encoder.fit_transform(images)
    cell, block = encoder.pixels_per_cell, encoder.cells_per_block
    expected = [
        hog(resize(image, 48), encoder.orientations, (cell, cell), (block, block), channel_axis=2)
        for image in images
    ]
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert features.dtype == np.float32
    assert features.shape[1] == len(encoder.get_feature_names_out())


def test_hog_of_stripes_has_one_direction():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    blurred = cv2.GaussianBlur(stripes, (5, 5), 1)
    blurred[:, ::8] = 0
    for turned, direction in ((blurred, 0), (blurred.transpose(1, 0, 2), 4)):
        features = HOGEncoder(image_size=32).fit_transform([turned])
        assert features.reshape(-1, 9).sum(axis=0).argmax() == direction


@pytest.mark.parametrize("space", ["rgb", "hsv", "lab"])
@pytest.mark.parametrize("bins", [2, 5, 8])
def test_histogram_equals_numpy(images, bins, space):
    features = ColorHistogram(bins, color_space=space).fit_transform(images)
    assert features.shape == (12, bins**3) and features.dtype == np.float32
    for image, row in zip(images, features, strict=True):
        if space != "rgb":
            code = {"hsv": cv2.COLOR_RGB2HSV, "lab": cv2.COLOR_RGB2LAB}[space]
            image = cv2.cvtColor(image, code)
        top = [180 if space == "hsv" else 256, 256, 256]
        pixels = image.reshape(-1, 3).astype(float)
        counts, _ = np.histogramdd(pixels, bins, range=[(0, limit) for limit in top])
        np.testing.assert_allclose(row**2, counts.ravel() / len(pixels), atol=1e-6)


def test_histogram_does_not_mind_places_and_enlarging(images):
    encoder = ColorHistogram(4)
    rolled = [np.roll(image, (9, 20), axis=(0, 1)) for image in images]
    larger = [np.kron(image, np.ones((3, 2, 1), np.uint8)) for image in images]
    features = encoder.transform(images)
    np.testing.assert_array_equal(encoder.transform(rolled), features)
    np.testing.assert_allclose(encoder.transform(larger), features, atol=1e-6)


# --- What they share -----------------------------------------------------------------------------


@every_encoder
def test_cached_computed_and_mixed_are_equal(encoder, images):
    uncached = clone(encoder).set_params(cache=False).fit(images)
    expected = uncached.transform(images)
    cached = clone(encoder).fit(images)
    np.testing.assert_array_equal(cached.transform(images[:5]), expected[:5])
    np.testing.assert_array_equal(cached.transform(images[::-1]), expected[::-1])
    np.testing.assert_array_equal(cached.transform(images), expected)


@pytest.mark.parametrize(
    "encoder, function",
    list(zip(ENCODERS[1:], ("_find_keypoints", "_hog", "_color_histogram"), strict=True)),
    ids=NAMES[1:],
)
def test_only_new_images_are_described(encoder, function, images, monkeypatch):
    from cmlearn import image

    counted, plain = [], getattr(image, function)
    monkeypatch.setattr(image, function, lambda *a, **k: counted.append(1) or plain(*a, **k))
    encoder = clone(encoder).fit(images)
    encoder.transform(images)
    encoder.transform([*images, images[0].copy(), draw(50)])
    assert len(counted) == 13


def test_keypoints_and_their_absence_are_cached(images, monkeypatch):
    encoder = clone(ENCODERS[0]).fit([*images, PLAIN])
    monkeypatch.setattr("cmlearn.image._find_keypoints", lambda *a, **k: pytest.fail("anew"))
    with pytest.warns(NoKeypointsWarning):
        assert encoder.transform([*images, PLAIN]).any(axis=1).sum() == 12


@pytest.mark.parametrize(
    "encoder, change",
    [
        (ENCODERS[0], {"image_size": 80}),
        (ENCODERS[0], {"max_keypoints": 3}),
        (ENCODERS[0], {"contrast_threshold": 0.1}),
        (ENCODERS[2], {"image_size": 33}),
        (HOGEncoder(pixels_per_cell=16, cells_per_block=1), {"image_size": 65}),
        (ENCODERS[3], {"color_space": "lab"}),
    ],
)
def test_parameters_that_change_features_change_the_cache(encoder, change, images):
    first = clone(encoder).fit(images).transform(images)
    changed = clone(encoder).set_params(**change).fit(images)
    uncached = clone(changed).set_params(cache=False).fit(images)
    second = changed.transform(images)
    np.testing.assert_array_equal(second, uncached.transform(images))
    assert abs(second - first).max() > 1e-4


@every_encoder
def test_every_container_and_source_gives_the_same(encoder, images, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    features = clone(encoder).fit(images).transform(images)
    frame = pd.DataFrame({"image": paths})
    for X in (
        paths,
        frame,
        frame["image"],
        np.array(paths, dtype=object)[:, None],
        np.stack(images),
    ):
        np.testing.assert_array_equal(clone(encoder).fit(X).transform(X), features)


@every_encoder
def test_clone_pickle_and_model_file_give_equal_features(encoder, images, tmp_path):
    fitted = clone(encoder).fit(images)
    features = fitted.transform(images)
    save_model(fitted, tmp_path)
    for copy in (pickle.loads(pickle.dumps(fitted)), load_model(tmp_path)):
        np.testing.assert_array_equal(copy.transform(images), features)
        assert list(copy.get_feature_names_out()) == list(fitted.get_feature_names_out())
    np.testing.assert_array_equal(clone(fitted).fit(images).transform(images), features)


@every_encoder
def test_works_in_a_column_transformer_and_names_its_features(encoder, images):
    frame = pd.DataFrame({"image": images, "size": range(len(images))})
    both = ColumnTransformer([("picture", encoder, "image"), ("size", "passthrough", ["size"])])
    features = both.fit_transform(frame)
    names = both.get_feature_names_out()
    assert features.shape == (12, len(names))
    assert names[0] == f"picture__{type(encoder).__name__.lower()}0"


@every_encoder
def test_pandas_output_keeps_the_index(encoder, images):
    frame = pd.DataFrame({"image": images}, index=[f"row {i}" for i in range(len(images))])
    table = clone(encoder).set_output(transform="pandas").fit_transform(frame)
    assert list(table.index) == list(frame.index)
    assert list(table.columns) == list(clone(encoder).fit(images).get_feature_names_out())


def test_works_in_a_grid_search():
    X = [draw(seed) for seed in range(16)]
    y = np.arange(16) % 2
    for image, label in zip(X, y, strict=True):
        image[..., 2 * label] //= 4
    model = make_pipeline(ColorHistogram(), LogisticRegression(C=100))
    search = GridSearchCV(model, {"colorhistogram__bins": [1, 4]}, cv=4).fit(X, y)
    assert search.best_params_ == {"colorhistogram__bins": 4} and search.best_score_ > 0.8
    model = make_pipeline(clone(ENCODERS[0]), LogisticRegression())
    grid = {"siftbagofwords__n_words": [4, 8], "siftbagofwords__encoding": ["tfidf", "vlad"]}
    search = GridSearchCV(model, grid, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@every_encoder
@pytest.mark.parametrize("cache", [True, False])
def test_bad_images_are_named_with_their_row(encoder, cache, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and then nothing")
    fitted = clone(encoder).set_params(cache=cache).fit(images)
    rows = {
        str(tmp_path / "broken.png"): "broken.png'",
        str(tmp_path / "gone.png"): "gone.png' does not exist",
        None: "There is no image",
    }
    for bad, message in rows.items():
        with pytest.raises(ImageError, match=f"Row 2 .counted from 0.: .*{message}"):
            fitted.transform([*images[:2], bad])


@every_encoder
@pytest.mark.parametrize(
    "X, message",
    [
        ("a.png", "Expected several images"),
        ([], "Found 0 images"),
        (np.array([["x", "y"]]), "one column of images, got 2"),
    ],
)
def test_bad_containers_are_refused(encoder, images, X, message):
    fitted = clone(encoder).fit(images)
    for method in (clone(encoder).fit, fitted.transform):
        with pytest.raises(ValueError, match=message):
            method(X)


@pytest.mark.parametrize(
    "encoder, message",
    [
        (SIFTBagOfWords(0), "n_words=0 must be"),
        (SIFTBagOfWords(encoding="bow"), "encoding='bow' must be one of 'tfidf', 'vlad'"),
        (SIFTBagOfWords(levels=0), "levels=0"),
        (SIFTBagOfWords(levels=1.5), "levels=1.5"),
        (SIFTBagOfWords(max_keypoints=-1), "max_keypoints=-1"),
        (SIFTBagOfWords(contrast_threshold=-0.1), "contrast_threshold=-0.1"),
        (SIFTBagOfWords(contrast_threshold="low"), "contrast_threshold='low'"),
        (SIFTBagOfWords(image_size=0), "image_size=0"),
        (HOGEncoder(orientations=0), "orientations=0"),
        (HOGEncoder(pixels_per_cell=0), "pixels_per_cell=0"),
        (HOGEncoder(cells_per_block=2.0), "cells_per_block=2.0"),
        (HOGEncoder(image_size=15), "image_size=15 is less than one block.* at least 16"),
        (ColorHistogram(0), "bins=0"),
        (ColorHistogram(257), "bins=257 is more than the 256"),
        (ColorHistogram(color_space="cmyk"), "color_space='cmyk' must be one of 'hsv', 'rgb'"),
    ],
)
def test_bad_parameters_are_named(encoder, message, images):
    with pytest.raises(ValueError, match=message):
        encoder.fit(images)


# --- scikit-learn's checks -----------------------------------------------------------------------
# Its checks bring tables of numbers, and pass by every estimator that does not take such. Here each
# row of a table becomes a picture. What the checks then find out about an encoder's state, order
# and repetition holds for the encoder itself.


class OnTables:
    """Draws a picture for each row of a table of numbers, and gives it one of two classes."""

    def fit(self, X, y=None):
        X = validate_data(self, X)
        # Many checks bring a single label or real numbers, of which no classifier can be trained.
        return super().fit(pictures(X), None if y is None else np.arange(len(X)) % 2)

    def transform(self, X):
        return super().transform(pictures(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.string = False
        return tags


def pictures(X):
    return [draw(zlib.crc32(row.astype(float).tobytes()), side=32) for row in X]


class SIFTOnTables(OnTables, SIFTBagOfWords):
    pass


class HOGOnTables(OnTables, HOGEncoder):
    pass


class HistogramOnTables(OnTables, ColorHistogram):
    pass


class PretrainedOnTables(OnTables, PretrainedCNN):
    pass


class CNNOnTables(OnTables, CNNEncoder):
    pass


CHECKED = [
    SIFTOnTables(2, image_size=32, cache=False, random_state=0),
    SIFTOnTables(2, encoding="vlad", levels=1, image_size=32, cache=False, random_state=0),
    HOGOnTables(image_size=32, cache=False),
    HistogramOnTables(2, cache=False),
    PretrainedOnTables(image_size=32),
    CNNOnTables(filters=(2,), units=2, image_size=4, epochs=1, random_state=0),
]

WIDTH = "an image is no row of numbers, and images of any sizes go together"
VALUES = "pixels are whole numbers from 0 to 255; other values are refused by decode()"
FORM = "a column of images is a list, an array or a Series; see test_bad_containers_are_refused"
NOT_FOR_IMAGES = {
    "check_array_api_input": "the encoders work on NumPy arrays alone",
    "check_complex_data": VALUES,
    "check_dtype_object": VALUES,
    "check_estimators_dtypes": VALUES,
    "check_estimators_nan_inf": VALUES,
    "check_estimator_sparse_array": FORM,
    "check_estimator_sparse_matrix": FORM,
    "check_estimator_sparse_tag": FORM,
    "check_estimators_empty_data_messages": FORM,
    "check_f_contiguous_array_estimator": FORM,
    "check_transformer_data_not_an_array": FORM,
    "check_fit1d": "images are one-dimensional data",
    "check_fit2d_1feature": WIDTH,
    "check_fit2d_predict1d": WIDTH,
    "check_n_features_in": WIDTH,
    "check_n_features_in_after_fitting": WIDTH,
}
# Not among those that scikit-learn asks of every estimator, but a transformer should pass them.
# check_set_output_transform_pandas asks for the index of the table, which OnTables has taken away;
# test_pandas_output_keeps_the_index asks for it instead.
OF_NAMES = [
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_set_output_transform",
]


def applicable_checks():
    """Yield those of scikit-learn's checks that hold for images, for each encoder."""
    for encoder in CHECKED:
        label = f"{type(encoder).__name__}-{getattr(encoder, 'encoding', '')}"
        for estimator, check in estimator_checks.estimator_checks_generator(encoder):
            if check.func.__name__ not in NOT_FOR_IMAGES:
                yield pytest.param(estimator, check, id=f"{label}-{check.func.__name__}")
        for name in OF_NAMES:
            check = partial(getattr(estimator_checks, name), type(encoder).__name__)
            yield pytest.param(clone(encoder), check, id=f"{label}-{name}")


@pytest.fixture
def _untraced(monkeypatch):
    """Run networks without compiling them, which takes seconds a network."""
    import keras

    plain = keras.Model.compile
    monkeypatch.setattr(
        keras.Model, "compile", lambda self, **options: plain(self, run_eagerly=True, **options)
    )


@pytest.mark.usefixtures("_untraced")
@pytest.mark.parametrize("encoder, check", list(applicable_checks()))
def test_scikit_learn_check(encoder, check):
    check(encoder)


def test_checks_left_out_are_scikit_learns():
    """A name that scikit-learn has given up must not stay in the list."""
    assert all(hasattr(estimator_checks, name) for name in NOT_FOR_IMAGES)
