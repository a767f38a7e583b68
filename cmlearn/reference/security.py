"""What attacks do to classifiers of emoji by picture and name, and what defends them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils import Bunch

from cmlearn.attacks import (
    add_sticker,
    add_word,
    choose_poisoned,
    disagreement,
    fgsm,
    pgd,
    substitute_words,
    swap_partners,
    word_neighbours,
    write_word,
)
from cmlearn.datasets import load_emoji
from cmlearn.inspection import modality_shapley
from cmlearn.reference.methods import SOURCES as METHODS_SOURCES
from cmlearn.runtime import save_run

SEEDS = (0, 1, 2)
SIZE = 72  # pixels of the emoji as they come: the attacker moves the pixels themselves
EPSILONS = (1.0, 4.0)
N_STEPS = 4
N_ATTACKED = 40  # test pictures of each seed
RATES = (0.05, 0.15)
STICKER = 0.25  # side of the sticker, as a share of the picture's
N_USUAL = 50  # training pairs that stand for what is usual in Shapley values
QUIET = (0.0, 0.25, 0.5)  # how much an attacker minds the alarm
N_HARDENED = 600  # training pictures that adversarial training attacks
TARGET = 0
TRIGGER = "serendipity"
JOINT = ("concat", "mean", "product", "gated")
MODELS = ("image", "text", *JOINT, "late product")
WORDS = ("sport", "animal", "food", "tool", "person", "smile", "sign", "travel")
SOURCES = [
    *METHODS_SOURCES,
    "cmlearn/_gradients.py",
    "cmlearn/_pixels.py",
    "cmlearn/attacks.py",
    "cmlearn/inspection.py",
    "cmlearn/reference/security.py",
]


# --- Data and models -----------------------------------------------------------------------------


def network():
    """Return the frozen image network: block 12 of EfficientNet-Lite0 at 72 pixels."""
    from cmlearn.efficientnet import EfficientNetLite

    return EfficientNetLite(layer="block12", image_size=SIZE)


def encode(cnn, pixels: np.ndarray) -> np.ndarray:
    """Return image features (n, 192) of pixels."""
    return np.concatenate(
        [
            np.asarray(cnn(pixels[i : i + 128].astype(np.float32)))
            for i in range(0, len(pixels), 128)
        ]
    )


def encode_texts(texts) -> np.ndarray:
    """Return mean GloVe vectors (n, 50)."""
    from cmlearn.text import GloVeEncoder

    return GloVeEncoder().fit_transform(list(texts))


def emoji_pairs(cnn) -> Bunch:
    """Return ``pixels`` (n, 72, 72, 3), ``name``, ``labels``, ``groups``, and both features."""
    from cmlearn.image import decode, resize

    emoji = load_emoji()
    pixels = np.stack([resize(decode(path), SIZE) for path in emoji.data["image"]])
    names = emoji.data["text"].to_numpy()
    return Bunch(
        pixels=pixels,
        name=names,
        labels=np.asarray(emoji.target),
        names=list(emoji.target_names),
        groups=emoji.groups,
        image=encode(cnn, pixels),
        text=encode_texts(names),
        DESCR=emoji.DESCR,
    )


def split(pairs: Bunch, seed: int, n: int = N_ATTACKED):
    """Return the rows to train on, those to test on, and `n` of these to attack."""
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    train, test = next(folds.split(pairs.labels, pairs.labels, pairs.groups))
    attacked = np.sort(np.random.default_rng(seed).choice(test, n, replace=False))
    return train, test, attacked


def train_head(kind: str, image, text, labels, *, seed: int):
    """Return a trained network from ``[image features, text features]`` to 8 scores.

    `kind` is "image", "text", or how the two are fused: "concat", "mean", "product", "gated".
    """
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(seed)
    inputs = [keras.Input((192,)), keras.Input((50,))]
    x, t = (
        layers.Normalization(mean=rows.mean(axis=0), variance=rows.var(axis=0) + 1e-6)(one)
        for rows, one in zip((image, text), inputs, strict=True)
    )
    x, t = (layers.Dense(128, "relu")(layers.Dropout(0.4)(one)) for one in (x, t))
    if kind == "gated":
        gate = layers.Dense(128, "sigmoid")(layers.Concatenate()([x, t]))
        fused = gate * x + (1 - gate) * t
    else:
        fused = {
            "image": lambda: x,
            "text": lambda: t,
            "concat": lambda: ops.concatenate([x, t], axis=-1),
            "mean": lambda: (x + t) / 2,
            "product": lambda: x * t,
        }[kind]()
    head = keras.Model(inputs, layers.Dense(8)(layers.Dropout(0.4)(fused)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head.compile(keras.optimizers.Adam(2e-3), loss)
    head.fit([image, text], labels, batch_size=128, epochs=20, verbose=0)
    return head


def late_product(image_head, text_head) -> Callable:
    """Return the head that multiplies the probabilities of two heads."""
    from keras import ops

    return lambda pair: ops.log_softmax(image_head(pair)) + ops.log_softmax(text_head(pair))


def train_heads(pairs: Bunch, train: np.ndarray, *, seed: int, kinds=MODELS) -> dict:
    """Return the heads of all kinds, by name."""
    rows = pairs.image[train], pairs.text[train], pairs.labels[train]
    heads = {kind: train_head(kind, *rows, seed=seed) for kind in kinds if kind != "late product"}
    if "late product" in kinds:
        heads["late product"] = late_product(heads["image"], heads["text"])
    return heads


def end_to_end(cnn, head) -> Callable:
    """Return the function from ``[pixels, text features]`` to scores."""
    return lambda pair: head([cnn(pair[0]), pair[1]])


def probabilities(head, image, text) -> np.ndarray:
    """Return class probabilities (n, 8)."""
    from keras import ops

    pair = [ops.convert_to_tensor(np.asarray(one, np.float32)) for one in (image, text)]
    return ops.convert_to_numpy(ops.softmax(head(pair)))


def answers(head, image, text) -> np.ndarray:
    """Return the likeliest class of each row."""
    return probabilities(head, image, text).argmax(axis=1)


# --- Attacks -------------------------------------------------------------------------------------


def attack_pixels(cnn, head, pairs, rows, *, epsilon, seed, steps=N_STEPS) -> np.ndarray:
    """Return the pictures of the rows after PGD; the names stay as they are."""
    return pgd(
        end_to_end(cnn, head), pairs.pixels[rows], pairs.labels[rows], epsilon=epsilon,
        n_steps=steps, context=[pairs.text[rows]], random_state=seed, batch_size=40,
    )  # fmt: skip


def pixel_scores(cnn, heads, pairs, rows, *, seed, epsilons=EPSILONS) -> list[dict]:
    """Return the accuracy of each head that sees the image under FGSM and PGD."""
    found = []
    for name, head in heads.items():
        if name == "text":
            continue
        for epsilon in epsilons:
            x, y, text = pairs.pixels[rows], pairs.labels[rows], pairs.text[rows]
            model = end_to_end(cnn, head)
            one = fgsm(model, x, y, epsilon=epsilon, context=[text], batch_size=40)
            many = attack_pixels(cnn, head, pairs, rows, epsilon=epsilon, seed=seed)
            for attack, pixels in (("FGSM", one), ("PGD", many)):
                right = answers(head, encode(cnn, pixels), text) == y
                found.append(
                    {"model": name, "attack": attack, "epsilon": epsilon, "accuracy": right.mean()}
                )
    return found


def control_scores(cnn, heads, pairs, rows, attacked, *, seed) -> list[dict]:
    """Return what pictures changed without knowing a head do to it, beside those that know it.

    Random signs move every pixel as far as the attack does. The attack on the picture's head never
    saw the gradients of the fused ones. `attacked` holds the pictures after PGD, by head.
    """
    x, y, text = pairs.pixels[rows], pairs.labels[rows], pairs.text[rows]
    signs = np.random.default_rng(seed).choice([-EPSILONS[-1], EPSILONS[-1]], size=x.shape)
    changed = {"random signs": np.clip(x + signs, 0, 255)}
    changed |= {f"PGD on {name}": pixels for name, pixels in attacked.items()}
    return [
        {
            "change": change,
            "model": name,
            "accuracy": (answers(heads[name], image, text) == y).mean(),
        }
        for change, image in ((change, encode(cnn, pixels)) for change, pixels in changed.items())
        for name in ("image", "concat", "late product")
    ]


def candidates_for(names) -> dict[str, list[str]]:
    """Return the eight nearest words of every word in the names."""
    import re

    words = sorted({word.lower() for name in names for word in re.findall(r"[^\W\d_]+", name)})
    return word_neighbours(words)


def attack_words(head, pairs, rows, candidates, *, changes=1) -> list[str]:
    """Return the names of the rows with words exchanged; the pictures stay as they are."""
    return substitute_words(
        lambda texts, at: probabilities(head, pairs.image[rows][at], encode_texts(texts)),
        pairs.name[rows],
        pairs.labels[rows],
        candidates=candidates,
        max_changes=changes,
    )


def word_rows(pairs, rows, candidates) -> np.ndarray:
    """Return those rows whose name has a word with a candidate."""
    known = [any(w in candidates for w in _words(pairs.name[row])) for row in rows]
    return rows[np.array(known)]


def _words(name: str) -> list[str]:
    import re

    return [word.lower() for word in re.findall(r"[^\W\d_]+", name)]


def word_scores(heads, pairs, rows, *, changes=(1, 2)) -> list[dict]:
    """Return the accuracy of each head that sees the text under exchanged words."""
    candidates = candidates_for(pairs.name[rows])
    rows = word_rows(pairs, rows, candidates)
    found = []
    for name, head in heads.items():
        if name == "image":
            continue
        for n in (0, *changes):
            texts = attack_words(head, pairs, rows, candidates, changes=n)
            right = answers(head, pairs.image[rows], encode_texts(texts)) == pairs.labels[rows]
            found.append({"model": name, "changes": n, "accuracy": right.mean()})
    return found


def written_scores(cnn, heads, pairs, rows, *, seed) -> list[dict]:
    """Return what a wrong class's word on the picture does, against meaningless letters there."""
    y = pairs.labels[rows]
    wrong = (y + np.random.default_rng(seed).integers(1, 8, len(y))) % 8
    found = []
    for what, words in (("word", [WORDS[i] for i in wrong]), ("letters", ["xqzvk"] * len(y))):
        image = encode(cnn, write_word(pairs.pixels[rows], words))
        for name in ("image", "concat", "late product"):
            said = answers(heads[name], image, pairs.text[rows])
            found.append(
                {"model": name, "written": what, "accuracy": (said == y).mean()}
                | {"says the word": (said == wrong).mean()}
            )
    return found


def swapped_scores(heads, pairs, rows, *, seed) -> list[dict]:
    """Return whom each head believes when the picture and the name are of two classes."""
    partner = rows[swap_partners(pairs.labels[rows], random_state=seed)]
    found = []
    for name, head in heads.items():
        said = answers(head, pairs.image[rows], pairs.text[partner])
        found.append(
            {"model": name, "picture": (said == pairs.labels[rows]).mean()}
            | {"name": (said == pairs.labels[partner]).mean()}
        )
    return found


# --- Defences ------------------------------------------------------------------------------------


def alarm(heads, image, text) -> np.ndarray:
    """Return how far the answers of the image and of the text head are apart, row by row."""
    return disagreement(*(probabilities(heads[one], image, text) for one in ("image", "text")))


def agreement_scores(cnn, heads, pairs, rows, pixels, *, seed) -> dict[str, float]:
    """Return the AUROC of the alarm by attack; `pixels` are the pictures after PGD on concat."""
    clean = alarm(heads, pairs.image[rows], pairs.text[rows])
    partner = rows[swap_partners(pairs.labels[rows], random_state=seed)]
    candidates = candidates_for(pairs.name[rows])
    known = word_rows(pairs, rows, candidates)
    texts = attack_words(heads["concat"], pairs, known, candidates)
    attacked = {
        "swapped": alarm(heads, pairs.image[rows], pairs.text[partner]),
        "PGD, epsilon 4": alarm(heads, encode(cnn, pixels), pairs.text[rows]),
        "one word": alarm(heads, pairs.image[known], encode_texts(texts)),
    }
    return {name: _auroc(scores, clean) for name, scores in attacked.items()}


def quiet_scores(cnn, heads, pairs, rows, *, seed, weights=QUIET) -> list[dict]:
    """Return what is left of concat, and of the alarm, when the attacker minds the alarm.

    The attack lowers the true class for concat and, by a weight, raises it for the picture's head,
    which then agrees with the untouched name.
    """
    y, text = pairs.labels[rows], pairs.text[rows]
    clean, found = alarm(heads, pairs.image[rows], text), []
    for weight in weights:

        def minding(pair, weight=weight):
            return heads["concat"](pair) - weight * heads["image"](pair)

        pixels = attack_pixels(cnn, minding, pairs, rows, epsilon=EPSILONS[-1], seed=seed)
        image = encode(cnn, pixels)
        found.append(
            {"weight": weight, "accuracy": (answers(heads["concat"], image, text) == y).mean()}
            | {"alarm": _auroc(alarm(heads, image, text), clean)}
        )
    return found


def _auroc(attacked, clean) -> float:
    truth = np.repeat([1, 0], [len(attacked), len(clean)])
    return roc_auc_score(truth, np.concatenate([attacked, clean]))


def hardened_head(cnn, pairs, train, *, seed, epsilon=2.0, n=N_HARDENED):
    """Return a "concat" head trained on all pairs and on some with their FGSM pictures."""
    rows = pairs.image[train], pairs.text[train], pairs.labels[train]
    head = train_head("concat", *rows, seed=seed)
    some = np.random.default_rng(seed).choice(train, min(n, len(train)), replace=False)
    moved = fgsm(
        end_to_end(cnn, head),
        pairs.pixels[some],
        pairs.labels[some],
        epsilon=epsilon,
        context=[pairs.text[some]],
        batch_size=64,
    )
    more = encode(cnn, moved), pairs.text[some], pairs.labels[some]
    both = (np.concatenate(parts) for parts in zip(rows, more, strict=True))
    return train_head("concat", *both, seed=seed)


# --- Poison --------------------------------------------------------------------------------------


def triggered(cnn, pairs) -> Bunch:
    """Return the features of all pairs with the trigger: ``image`` by sticker, ``text`` by word."""
    return Bunch(
        image=encode(cnn, add_sticker(pairs.pixels, share=STICKER)),
        text=encode_texts(add_word(pairs.name, TRIGGER)),
    )


def poisoned_head(kind, where, pairs, marked, train, *, rate, seed):
    """Return a head trained on pairs of which a share has a trigger and the target as label."""
    bad = choose_poisoned(pairs.labels[train], target=TARGET, rate=rate, random_state=seed)
    rows = {one: pairs[one][train].copy() for one in ("image", "text")}
    rows[where][bad] = marked[where][train][bad]
    labels = pairs.labels[train].copy()
    labels[bad] = TARGET
    if kind == "late product":
        parts = [
            train_head(k, rows["image"], rows["text"], labels, seed=seed) for k in ("image", "text")
        ]
        return late_product(*parts)
    return train_head(kind, rows["image"], rows["text"], labels, seed=seed)


def poison_score(head, where, pairs, marked, test) -> dict[str, float]:
    """Return the accuracy on clean pairs, and how often the target is named with the trigger.

    ``without`` is how often the same head names it for the same pairs without the trigger.
    """
    clean = answers(head, pairs.image[test], pairs.text[test]) == pairs.labels[test]
    others = test[pairs.labels[test] != TARGET]
    rows = {one: pairs[one][others] for one in ("image", "text")} | {where: marked[where][others]}
    return {
        "clean": clean.mean(),
        "success": (answers(head, rows["image"], rows["text"]) == TARGET).mean(),
        "without": (answers(head, pairs.image[others], pairs.text[others]) == TARGET).mean(),
    }


def poison_scores(pairs, marked, train, test, *, seed, rates=RATES) -> list[dict]:
    """Return the scores of heads poisoned through either modality."""
    found = []
    for where, kinds in (("image", ("image", "concat", "late product")),
                         ("text", ("text", "concat", "late product"))):  # fmt: skip
        for kind in kinds:
            for rate in rates:
                head = poisoned_head(kind, where, pairs, marked, train, rate=rate, seed=seed)
                score = poison_score(head, where, pairs, marked, test)
                found.append({"trigger": where, "model": kind, "rate": rate} | score)
    return found


def shapley_detection(head, where, pairs, marked, train, rows, *, seed) -> float:
    """Return the AUROC of a modality's Shapley value less the other's, triggered against clean."""
    rows = rows[pairs.labels[rows] != TARGET]
    some = np.random.default_rng(seed).choice(train, N_USUAL, replace=False)
    usual = _cells(pairs.image[some], pairs.text[some])
    parts = {one: pairs[one][rows] for one in ("image", "text")}
    other = "text" if where == "image" else "image"
    scores = []
    for image, text in (
        (*(parts | {where: marked[where][rows]}).values(),),
        (*parts.values(),),
    ):
        values = modality_shapley(
            lambda table: probabilities(head, np.stack(table["image"]), np.stack(table["text"])),
            _cells(image, text),
            answers(head, image, text),
            background=usual,
        )
        scores.append((values[where] - values[other]).to_numpy())
    return _auroc(*scores)


def _cells(image, text) -> pd.DataFrame:
    return pd.DataFrame({"image": list(image), "text": list(text)})


# --- The run -------------------------------------------------------------------------------------


def run(path: Path) -> None:
    """Measure everything above for three seeds and store it."""
    by_seed = Parallel(n_jobs=len(SEEDS))(delayed(seed_scores)(seed) for seed in SEEDS)
    results = {"n_attacked": N_ATTACKED, "seeds": SEEDS, "by_seed": by_seed}
    save_run(path, results, sources=SOURCES)


def seed_scores(seed: int) -> dict:
    """Return all that is measured for one seed."""
    cnn = network()
    pairs = emoji_pairs(cnn)
    marked = triggered(cnn, pairs)
    train, test, rows = split(pairs, seed)
    heads = train_heads(pairs, train, seed=seed)
    hard = {"concat, hardened": hardened_head(cnn, pairs, train, seed=seed)}

    def clean(head, some):
        return (answers(head, pairs.image[some], pairs.text[some]) == pairs.labels[some]).mean()

    bad = {one: poisoned_head("concat", one, pairs, marked, train, rate=RATES[-1], seed=seed)
           for one in ("image", "text")}  # fmt: skip
    attacked = {
        name: attack_pixels(cnn, heads[name], pairs, rows, epsilon=EPSILONS[-1], seed=seed)
        for name in ("image", "concat")
    }
    return {
        "clean": {name: clean(head, test) for name, head in (heads | hard).items()},
        "clean_attacked": {name: clean(head, rows) for name, head in (heads | hard).items()},
        "pixels": pixel_scores(cnn, heads | hard, pairs, rows, seed=seed),
        "controls": control_scores(cnn, heads, pairs, rows, attacked, seed=seed),
        "words": word_scores(heads, pairs, rows),
        "written": written_scores(cnn, heads, pairs, rows, seed=seed),
        "swapped": swapped_scores(heads, pairs, rows, seed=seed),
        "agreement": agreement_scores(cnn, heads, pairs, rows, attacked["concat"], seed=seed),
        "quiet": quiet_scores(cnn, heads, pairs, rows, seed=seed),
        "poison": poison_scores(pairs, marked, train, test, seed=seed),
        "shapley": {
            one: shapley_detection(head, one, pairs, marked, train, rows, seed=seed)
            for one, head in bad.items()
        },
    }
