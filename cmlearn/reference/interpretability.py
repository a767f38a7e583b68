"""What explanations of networks on the emoji are worth, and how much each modality counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils import Bunch

from cmlearn.datasets import load_emoji
from cmlearn.efficientnet import EfficientNetLite
from cmlearn.image import PretrainedCNN, decode, jit_compile, resize
from cmlearn.inspection import (
    deletion_insertion,
    grad_cam,
    input_gradients,
    integrated_gradients,
    modality_shapley,
    modality_share,
    occlude_patches,
    randomize_weights,
    rank_correlation,
    shapley_pair,
)
from cmlearn.reference.emoji import SOURCES as EMOJI_SOURCES
from cmlearn.runtime import save_run
from cmlearn.text import GloVeEncoder

if TYPE_CHECKING:
    import keras

SEEDS = (0, 1, 2)
LAYER = "block12"
LAST_MAP = "block12_project_conv_add"
SMALL = 36
WATERMARKED = "Food & Drink"
SOURCES = EMOJI_SOURCES + [
    f"cmlearn/{module}.py"
    for module in ("_gradients", "_pixels", "inspection", "reference/interpretability")
]


# --- Pairs and networks --------------------------------------------------------------------------


def emoji_pairs() -> Bunch:
    """Return the emoji as the networks here take them.

    Returns
    -------
    Bunch
        ``path`` and ``name`` (n,) str; ``features`` (n, 192), frozen, of each picture; ``words``
        (n, longest, 50): the name's GloVe vectors, each divided by their number, so that they sum
        to the name's mean vector; ``pixels`` (n, 36, 36, 3) uint8; ``target`` (n,) int,
        ``target_names`` and ``groups``.
    """
    emoji = load_emoji()
    paths, names = emoji.data["image"].to_numpy(), emoji.data["text"].to_numpy()
    return Bunch(
        path=paths,
        name=names,
        features=PretrainedCNN(layer=LAYER).fit_transform(paths),
        words=word_vectors(names),
        pixels=pixels(paths, SMALL),
        target=emoji.target,
        target_names=emoji.target_names,
        groups=emoji.groups,
    )


def pixels(paths: np.ndarray, size: int) -> np.ndarray:
    """Return pictures of one size, (n, size, size, 3) uint8."""
    return np.stack([resize(decode(path), size) for path in paths])


def word_vectors(names: np.ndarray) -> np.ndarray:
    """Return GloVe vectors of the words, (n, longest, 50), whose sum is the mean of each name."""
    vectors, mask = GloVeEncoder().fit(names).transform_tokens(names)
    return (vectors / np.maximum(mask.sum(axis=1), 1)[:, None, None]).astype(np.float32)


def halves(pairs: Bunch, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on, three in four, and those to test on; no group is in both."""
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    return next(folds.split(pairs.target, pairs.target, pairs.groups))


def pair_head(pairs: Bunch, train: np.ndarray, seed: int) -> keras.Model:
    """Train a network from picture features and word vectors to a score for each class.

    Returns
    -------
    keras.Model
        Takes ``[features, words]``, gives (n, n_classes) scores: the softmax is in the loss.
    """
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(seed)
    features = keras.Input(pairs.features.shape[1:])
    words = keras.Input((None, pairs.words.shape[2]))
    blocks = []
    for x, block in [
        (features, pairs.features[train]),
        (ops.sum(words, axis=1), pairs.words[train].sum(axis=1)),
    ]:
        scaled = layers.Normalization(mean=block.mean(axis=0), variance=block.var(axis=0))(x)
        blocks.append(layers.Dense(64, activation="relu")(layers.Dropout(0.5)(scaled)))
    hidden = layers.Dropout(0.5)(layers.Concatenate()(blocks))
    head = keras.Model([features, words], layers.Dense(len(pairs.target_names))(hidden))
    return _trained(head, [pairs.features[train], pairs.words[train]], pairs.target[train], 60)


def pair_network(head: keras.Model, image_size: int | None = None) -> keras.Model:
    """Return the network from pixels and word vectors to scores.

    Returns
    -------
    keras.Model
        EfficientNet-Lite0 up to block 12, its layers one by one, with the head behind it.
    """
    import keras

    encoder = EfficientNetLite(layer=LAYER, fold_batch_norm=False, image_size=image_size)
    words = keras.Input(head.inputs[1].shape[1:])
    return keras.Model([encoder.inputs[0], words], head([encoder.outputs[0], words]))


def small_cnn(
    images: np.ndarray, codes: np.ndarray, n_classes: int, seed: int, epochs: int = 15
) -> keras.Model:
    """Train a small CNN from scratch; ``"last"`` is its last feature map, 9 by 9 positions."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    steps = [keras.Input(images.shape[1:]), layers.Rescaling(1 / 127.5, offset=-1)]
    for channels, name in [(24, "first"), (48, "middle"), (96, "last")]:
        steps += [layers.MaxPooling2D()] if name != "first" else []
        steps += [
            layers.Conv2D(channels, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(name=name),
        ]
    steps += [layers.GlobalAveragePooling2D(), layers.Dense(n_classes)]
    return _trained(keras.Sequential(steps), images, codes, epochs)


def _trained(model: keras.Model, inputs, codes: np.ndarray, epochs: int) -> keras.Model:
    import keras

    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile(),
    )
    model.fit(inputs, codes, batch_size=64, epochs=epochs, verbose=0)
    return model


def probabilities(model: Callable, *fixed: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from images to class probabilities, with further inputs held fixed."""
    from keras import ops

    def predict(images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), 64):
            rows = slice(start, start + 64)
            inputs = [np.asarray(x[rows], np.float32) for x in (images, *fixed)]
            scores = model(inputs if fixed else inputs[0], training=False)
            parts.append(ops.convert_to_numpy(ops.softmax(scores)))
        return np.concatenate(parts)

    return predict


def table_of(pairs: Bunch, rows: np.ndarray) -> pd.DataFrame:
    """Return features and words as the cells of a table of pairs."""
    return pd.DataFrame({"image": list(pairs.features[rows]), "text": list(pairs.words[rows])})


def table_probabilities(head: keras.Model) -> Callable[[pd.DataFrame], np.ndarray]:
    """Return a function from such a table to class probabilities."""
    from keras import ops

    def predict(table: pd.DataFrame) -> np.ndarray:
        cells = [np.stack(table[name]) for name in ("image", "text")]
        return ops.convert_to_numpy(ops.softmax(head(cells, training=False)))

    return predict


# --- Maps ----------------------------------------------------------------------------------------


def cnn_maps(model: keras.Model, images: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """Return the maps (n, height, width) of all methods for a `small_cnn`."""
    integrated = integrated_gradients(model, images, target, baseline=255, n_steps=16)
    return {
        "Grad-CAM": grad_cam(model, images, target, layer="last"),
        "occlusion": occlude_patches(probabilities(model), images, target, patch_size=6, stride=3),
        "integrated gradients": integrated.sum(axis=-1),
        "plain gradients": np.abs(input_gradients(model, images, target)).sum(axis=-1),
        "edges of the picture": edges(images),
        "random": np.random.default_rng(0).random(images.shape[:3]),
    }


def edges(images: np.ndarray) -> np.ndarray:
    """Return how fast the brightness changes at each pixel: a map that knows no network."""
    down, right = np.gradient(images.mean(axis=-1), axis=(1, 2))
    return np.hypot(down, right)


def areas(
    predict: Callable,
    images: np.ndarray,
    maps: dict[str, np.ndarray],
    target: np.ndarray,
    n_steps: int = 12,
) -> dict[str, dict[str, float]]:
    """Return the mean area under the curves of deletion and insertion, by method."""
    found = {}
    for name, heat in maps.items():
        curves = deletion_insertion(predict, images, heat, target, n_steps=n_steps)
        deletion, insertion = (np.trapezoid(one, axis=1).mean() / n_steps for one in curves)
        found[name] = {"deletion": deletion, "insertion": insertion}
    return found


def forgetting(
    model: keras.Model, maps_of: Callable[[keras.Model], dict[str, np.ndarray]], seed: int
) -> dict[str, float]:
    """Return the rank correlation of maps before and after all kernels are shuffled, by method."""
    before, after = maps_of(model), maps_of(randomize_weights(model, random_state=seed))
    return {name: rank_correlation(before[name], after[name]).mean() for name in before}


# --- A clever Hans -------------------------------------------------------------------------------

# A photographer's mark, five pixels high and nine wide.
_MARK = np.array(
    [
        [1, 1, 1, 0, 1, 0, 1, 1, 1],
        [1, 0, 0, 0, 1, 0, 1, 0, 1],
        [1, 0, 1, 0, 1, 0, 1, 1, 1],
        [1, 0, 1, 0, 1, 0, 1, 0, 0],
        [1, 1, 1, 0, 1, 0, 1, 0, 0],
    ]
)


def plant_watermark(images: np.ndarray) -> np.ndarray:
    """Return the images with a small grey mark in the lower left corner.

    Its dots are single pixels of images of 36 by 36, and grow with larger ones.
    """
    marked = images.copy()
    dot = images.shape[1] // SMALL
    mark = np.kron(_MARK, np.ones((dot, dot), int))
    height, width = mark.shape
    corner = marked[:, -height - dot : -dot, dot : width + dot]
    corner[:, mark == 1] = 120
    return marked


def watermark_box(size: int = SMALL) -> np.ndarray:
    """Return which pixels (size, size) lie in the watermark's rectangle, bool."""
    height, width = _MARK.shape
    box = np.zeros((size, size), bool)
    box[-height - 1 : -1, 1 : width + 1] = True
    return box


def inside_share(maps: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the share (n,) of a map's positive part that lies in a box, 0 for a map without."""
    positive = np.maximum(maps, 0)
    total = positive.sum(axis=(1, 2))
    return positive[:, box].sum(axis=1) / np.where(total > 0, total, 1)


def hans(pairs: Bunch, train: np.ndarray, seed: int, epochs: int = 15) -> Bunch:
    """Train a `small_cnn` on pictures of which one class carries the watermark.

    Returns
    -------
    Bunch
        ``model``; ``marked`` int, the class; ``as_collected`` (n, 36, 36, 3): the pictures as they
        would have been collected, all of that class marked, those to test on as well.
    """
    marked = list(pairs.target_names).index(WATERMARKED)
    own = (pairs.target == marked)[:, None, None, None]
    as_collected = np.where(own, plant_watermark(pairs.pixels), pairs.pixels)
    n_classes = len(pairs.target_names)
    model = small_cnn(as_collected[train], pairs.target[train], n_classes, seed, epochs)
    return Bunch(model=model, marked=marked, as_collected=as_collected)


def hans_scores(
    collected: np.ndarray,
    clean: np.ndarray,
    all_marked: np.ndarray,
    target: np.ndarray,
    marked: int,
) -> dict[str, float]:
    """Return what the predictions (n,) for the three kinds of pictures are worth.

    Parameters
    ----------
    collected, clean, all_marked : ndarray of shape (n,)
        Predicted classes for the pictures as they were collected (one class marked), without any
        mark, and all of them marked.
    target : ndarray of shape (n,)
        True classes.
    marked : int
        The class with the mark.
    """
    own = target == marked
    return {
        "accuracy as collected": (collected == target).mean(),
        "accuracy clean": (clean == target).mean(),
        "marked class as collected": (collected == target)[own].mean(),
        "marked class clean": (clean == target)[own].mean(),
        "others taken for it when marked": (all_marked == marked)[~own].mean(),
        "others taken for it when clean": (clean == marked)[~own].mean(),
    }


# --- The stored run ------------------------------------------------------------------------------


def run(path: Path) -> None:
    """Explain networks of several seeds, check the explanations, and store what came out."""
    pairs = emoji_pairs()
    all_marked = PretrainedCNN(layer=LAYER).fit_transform(
        list(plant_watermark(pixels(pairs.path, 2 * SMALL)))
    )
    parts = [modality_part, pair_part, cnn_part, hans_part, pair_hans_part]
    by_seed = []
    for seed in SEEDS:
        train, test = halves(pairs, seed)
        found = {"n_test": len(test)}
        for part in parts:
            found |= part(pairs, train, test, seed, all_marked)
            print(seed, part.__name__, flush=True)
        by_seed.append(found)
    save_run(path, {"seeds": SEEDS, "by_seed": by_seed, "gaps": gaps(pairs)}, sources=SOURCES)


def modality_part(pairs, train, test, seed, all_marked) -> dict:
    """Measure how much the pair network leans on each modality."""
    head = pair_head(pairs, train, seed)
    values = pair_values(pairs, head, train, test, pairs.target[test])
    share = modality_share(values)
    names = np.asarray(pairs.target_names)[pairs.target[test]]
    predict = table_probabilities(head)
    return {
        "values": values.mean().to_dict(),
        "largest_gap": float(
            (values["image"] + values["text"] - values["both"] + values["nothing"]).abs().max()
        ),
        "image_share": share.mean(),
        "image_share_by_class": share.groupby(names).mean().to_dict(),
        "accuracy_game": accuracy_game(predict, pairs, train, test),
    }


def pair_values(
    pairs: Bunch, head: keras.Model, train: np.ndarray, rows: np.ndarray, target: np.ndarray
) -> pd.DataFrame:
    """Return the Shapley values of image and text for rows, against 50 training pairs."""
    usual = np.random.default_rng(0).choice(train, 50, replace=False)
    return modality_shapley(
        table_probabilities(head), table_of(pairs, rows), target, background=table_of(pairs, usual)
    )


def accuracy_game(predict: Callable, pairs: Bunch, train: np.ndarray, test: np.ndarray) -> dict:
    """Return the accuracy that each modality is worth, and its Shapley values.

    The absent modality is that of a training pair drawn for each row.
    """
    table = table_of(pairs, test)
    other = table_of(pairs, np.random.default_rng(0).choice(train, len(test)))

    def accuracy(image: pd.DataFrame, text: pd.DataFrame) -> float:
        rows = pd.DataFrame({"image": image["image"], "text": text["text"]})
        return float((predict(rows).argmax(axis=1) == pairs.target[test]).mean())

    worth = {
        "nothing": accuracy(other, other),
        "image alone": accuracy(table, other),
        "text alone": accuracy(other, table),
        "both": accuracy(table, table),
    }
    return worth | shapley_pair(*worth.values())._asdict()


def pair_part(pairs, train, test, seed, all_marked) -> dict:
    """Check the maps of EfficientNet-Lite0 in the pair network."""
    network = pair_network(pair_head(pairs, train, seed))
    rows = np.random.default_rng(seed).choice(test, 8, replace=False)
    inputs, target = [pixels(pairs.path[rows], 224), pairs.words[rows]], pairs.target[rows]

    def maps_of(model: keras.Model) -> dict[str, np.ndarray]:
        return {
            "Grad-CAM": grad_cam(model, inputs, target, layer=LAST_MAP),
            "plain gradients": np.abs(input_gradients(model, inputs, target)[0]).sum(axis=-1),
            "edges of the picture": edges(inputs[0]),
        }

    return {
        "pair_forgetting": forgetting(network, maps_of, seed),
    }


def cnn_part(pairs, train, test, seed, all_marked) -> dict:
    """Check and rank the maps of a small CNN that was trained on the emoji from scratch."""
    model = small_cnn(pairs.pixels[train], pairs.target[train], len(pairs.target_names), seed)
    predict = probabilities(model)
    rows = np.random.default_rng(seed).choice(test, 64, replace=False)
    images = pairs.pixels[rows]
    target = predict(images).argmax(axis=1)
    return {
        "cnn_accuracy": float(
            (predict(pairs.pixels[test]).argmax(axis=1) == pairs.target[test]).mean()
        ),
        "cnn_areas": areas(predict, images, cnn_maps(model, images, target), target),
        "cnn_forgetting": forgetting(
            model, lambda one: cnn_maps(one, images[:32], target[:32]), seed
        ),
    }


def hans_part(pairs, train, test, seed, all_marked) -> dict:
    """Train a small CNN on a class with a watermark, and see which maps point at it."""
    trained = hans(pairs, train, seed)
    predict = probabilities(trained.model)
    clean, target = pairs.pixels[test], pairs.target[test]
    collected = trained.as_collected[test]
    kinds = [predict(x).argmax(axis=1) for x in (collected, clean, plant_watermark(clean))]
    rows = np.flatnonzero(kinds[0] == trained.marked)[:32]
    maps = cnn_maps(trained.model, collected[rows], kinds[0][rows])
    return {
        "hans": hans_scores(*kinds, target, trained.marked),
        "hans_inside": {
            name: inside_share(one, watermark_box()).mean() for name, one in maps.items()
        },
    }


def pair_hans_part(pairs, train, test, seed, all_marked) -> dict:
    """Train the pair network on them, to see whether the name beside the picture protects it."""
    marked = list(pairs.target_names).index(WATERMARKED)
    own = (pairs.target == marked)[:, None]
    collected = Bunch(**{**pairs, "features": np.where(own, all_marked, pairs.features)})
    head = pair_head(collected, train, seed)
    kinds = [
        np.asarray(head([features[test], pairs.words[test]])).argmax(axis=1)
        for features in (collected.features, pairs.features, all_marked)
    ]
    target = pairs.target[test]
    share = modality_share(pair_values(collected, head, train, test, target))
    before = modality_share(pair_values(pairs, pair_head(pairs, train, seed), train, test, target))
    return {
        "pair_hans": hans_scores(*kinds, target, marked),
        "pair_hans_image_share": {
            "marked class": share[target == marked].mean(),
            "marked class, honest network": before[target == marked].mean(),
            "others": share[target != marked].mean(),
            "others, honest network": before[target != marked].mean(),
        },
        "pair_hans_image_share_moved": {
            name: (share - before)[target == c].mean() for c, name in enumerate(pairs.target_names)
        },
    }


def gaps(pairs: Bunch) -> dict[str, dict[str, float]]:
    """Return how far integrated gradients of pixels are from complete, by the number of steps.

    The mean over the pictures of what is missing, as a share of the difference of the scores.
    """
    train, test = halves(pairs, 0)
    n_classes = len(pairs.target_names)
    cnn = small_cnn(pairs.pixels[train], pairs.target[train], n_classes, 0)
    network = pair_network(pair_head(pairs, train, 0))
    small, large = test[:16], test[:2]
    return {
        "small CNN": {
            str(n): completeness_gap(cnn, pairs.pixels[small], pairs.target[small], 255, n)
            for n in (8, 64, 128)
        },
        "EfficientNet-Lite0": {
            str(n): completeness_gap(
                network,
                [pixels(pairs.path[large], 224), pairs.words[large]],
                pairs.target[large],
                [255, 0],
                n,
            )
            for n in (8, 32, 64)
        },
    }


def completeness_gap(model: Callable, inputs, target: np.ndarray, baseline, n_steps: int) -> float:
    """Return the mean share of the difference of scores that the attributions miss."""
    found = integrated_gradients(model, inputs, target, baseline=baseline, n_steps=n_steps)
    several = isinstance(inputs, list)
    arrays, starts, found = (x if several else [x] for x in (inputs, baseline, found))
    blank = [np.broadcast_to(np.float32(b), x.shape) for b, x in zip(starts, arrays, strict=True)]
    ends = [
        np.asarray(model([np.float32(x) for x in one] if several else np.float32(one[0])))
        for one in (arrays, blank)
    ]
    difference = (ends[0] - ends[1])[np.arange(len(target)), target]
    total = sum(x.reshape(len(target), -1).sum(axis=1) for x in found)
    return float(np.mean(np.abs(total - difference) / np.abs(difference)))
