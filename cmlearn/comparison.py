"""Every method on the same emoji: what ``python -m cmlearn.reference methods`` runs.

The page "All methods compared" shows the scores that this run stores; the functions here are what
it names when it says how a method was set up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, combinations

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from cmlearn.datasets import load_emoji
from cmlearn.fusion import Fusion, LateFusion, feature_table
from cmlearn.generation import ModalityImputer
from cmlearn.image import (
    ColorHistogram,
    HOGEncoder,
    PretrainedCNN,
    SIFTBagOfWords,
    decode,
)
from cmlearn.models import FusionClassifier, NeuralClassifier
from cmlearn.robustness import add_typos
from cmlearn.text import FastTextEncoder, GloVeEncoder, SentenceEncoder, SpellingCorrector

# Block 12 of EfficientNet-Lite0 serves drawings better than the last layer (see "Image features").
LAYER = "block12"
TEXTS = ("glove", "minilm")
NETWORKS = (
    "concat",
    "mean",
    "product",
    "gated",
    "film",
    "low-rank",
    "tensor",
    "bottleneck",
    "cross-attention",
)
FAST_NETWORKS = ("concat", "gated", "low-rank")
KERNEL_WIDTHS = (1, 2, 4)


def emoji_table() -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return the emoji with their frozen features.

    Returns
    -------
    table : DataFrame
        ``path`` and ``name`` as the data set has them; ``cnn`` (192,) and ``grid`` (49, 192), a
        network's features averaged over the picture and by position; ``glove`` (50,) and
        ``words`` (n_words, 50); ``minilm`` (384,) and ``pieces`` (n_tokens, 384). A name without a
        word that GloVe knows has no ``words``.
    labels : ndarray of shape (n,)
        Category names.
    groups : ndarray of shape (n,)
        Base emoji.
    """
    emoji = load_emoji()
    paths, names = emoji.data["image"], emoji.data["text"]
    cnn = PretrainedCNN(layer=LAYER, verbose=True)
    glove, minilm = GloVeEncoder().fit(names), SentenceEncoder(verbose=True).fit(names)
    table = feature_table(
        cnn=cnn.fit_transform(paths),
        grid=cnn.transform_grid(paths),
        glove=glove.transform(names),
        words=glove.transform_tokens(names),
        minilm=minilm.transform(names),
        pieces=minilm.transform_tokens(names),
    )
    table = table.assign(path=list(paths), name=list(names))
    return table, np.asarray(emoji.target_names)[emoji.target], emoji.groups


# --- How each method is set up -------------------------------------------------------------------

# Columns that hold no features yet, and what turns them into features inside each fold.
ENCODERS = {
    "SIFT": (SIFTBagOfWords(random_state=0), "path"),
    "HOG": (HOGEncoder(), "path"),
    "colour": (ColorHistogram(), "path"),
    "TF-IDF": (
        make_pipeline(TfidfVectorizer(sublinear_tf=True), TruncatedSVD(100, random_state=0)),
        "name",
    ),
    "fastText": (FastTextEncoder(random_state=0), "name"),
}


def margin_machine(gamma: float | str = "scale") -> OneVsRestClassifier:
    """Return support vector machines, one a class, whose margins are on one scale."""
    return OneVsRestClassifier(SVC(C=10, gamma=gamma))


def fused(
    columns: Iterable[str], *, how: str = "concat", classifier: BaseEstimator | None = None
) -> Pipeline:
    """Return early fusion of columns of `emoji_table`, in front of a classifier."""
    blocks = [(name, *ENCODERS.get(name, ("passthrough", name))) for name in columns]
    fusion = Fusion(blocks, how=how, random_state=0)
    classifier = margin_machine() if classifier is None else classifier
    return Pipeline([("fusion", fusion), ("classifier", classifier)])


def late(how: str, *seen: tuple[str, ...], classifier: BaseEstimator | None = None) -> LateFusion:
    """Return late fusion of one machine for each set of columns in ``seen``."""
    everything = sorted({name for names in seen for name in names})
    branches = [
        (" and ".join(names), fused(names, classifier=classifier), everything) for names in seen
    ]
    return LateFusion(branches, how=how)


def coalitions(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return every set of at least one of the names.

    Examples
    --------
    >>> coalitions(["image", "text"])
    [('image',), ('text',), ('image', 'text')]
    """
    names = list(names)
    return list(chain.from_iterable(combinations(names, k + 1) for k in range(len(names))))


def as_pair(table: pd.DataFrame, *, image: str, text: str) -> pd.DataFrame:
    """Return two columns of a table under the names that a `FusionClassifier` looks for."""
    return table[[image, text]].set_axis(["image", "text"], axis=1)


def network(how: str, text: str, *, seed: int = 0, **parameters) -> Pipeline:
    """Return a fusion network on the emoji; attention gets positions and words, the rest means."""
    attends = how in ("bottleneck", "cross-attention")
    image = "grid" if attends else "cnn"
    text = {"glove": "words", "minilm": "pieces"}[text] if attends else text
    select = FunctionTransformer(partial(as_pair, image=image, text=text))
    return make_pipeline(select, FusionClassifier(how, random_state=seed, **parameters))


def descriptors() -> dict[str, BaseEstimator]:
    """Return the methods on image features that no network has learned, by name."""
    methods = {f"{name} alone": fused([name]) for name in ("SIFT", "HOG", "colour")}
    return methods | {"SIFT + HOG + colour": fused(["SIFT", "HOG", "colour"])}


def machines() -> dict[str, BaseEstimator]:
    """Return the methods on other frozen features, without a network of ours, by name."""
    logistic = LogisticRegression(max_iter=2000)
    alone = ("cnn", "glove", "minilm", "fastText", "TF-IDF")
    methods = {f"{name} alone": fused([name]) for name in alone}
    for text in TEXTS:
        pair = f"cnn + {text}"
        methods |= {
            f"{pair}: {how}": fused(["cnn", text], how=how) for how in ("concat", "mean", "product")
        }
        methods |= {
            f"{pair}: late {how}": late(how, ("cnn",), (text,))
            for how in ("weighted", "confidence", "stacking")
        }
        methods |= {
            f"{pair}: late {how}, logistic": late(how, ("cnn",), (text,), classifier=logistic)
            for how in ("mean", "product")
        }
        methods[f"{pair}: late margin"] = late("margin", ("cnn",), (text,))
        methods[f"{pair}: margins of all sets"] = late("margin", *coalitions(["cnn", text]))
    three = ["cnn", *TEXTS]
    methods["cnn + both texts: concat"] = fused(three)
    methods["cnn + both texts: margins of all sets"] = late("margin", *coalitions(three))
    return methods


def peers(text: str = "glove") -> dict[str, BaseEstimator]:
    """Return what scikit-learn itself offers for two blocks of features."""
    logistic = LogisticRegression(max_iter=2000)
    branches = [(name, fused([name], classifier=logistic)) for name in ("cnn", text)]
    forest = RandomForestClassifier(500, random_state=0)
    return {
        "peer: VotingClassifier": VotingClassifier(branches, voting="soft"),
        "peer: StackingClassifier": StackingClassifier(branches, final_estimator=logistic),
        "peer: random forest on concat": fused(["cnn", text], classifier=forest),
    }


def networks() -> dict[str, BaseEstimator]:
    """Return the networks with learned fusion, by name.

    All rows are trained on for a fixed number of epochs: with some 1,300 of them, those that early
    stopping would hold out are missed.
    """
    training = {"epochs": 30, "batch_size": 128, "learning_rate": 3e-3, "validation_fraction": 0.0}
    pairs = [("glove", how) for how in NETWORKS] + [("minilm", how) for how in FAST_NETWORKS]
    return {f"cnn + {text}: network, {how}": network(how, text, **training) for text, how in pairs}


# --- Another style, typing errors, a missing modality --------------------------------------------


def grey(pixels: np.ndarray) -> np.ndarray:
    """Take the colour out of an image (height, width, 3), uint8."""
    import cv2

    return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def edges(pixels: np.ndarray) -> np.ndarray:
    """Return the edges of an image (height, width, 3), black on white, two pixels wide."""
    import cv2

    found = cv2.Canny(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), 60, 120)
    return np.repeat(255 - cv2.dilate(found, np.ones((2, 2), np.uint8))[..., None], 3, axis=2)


def outlined(pixels: np.ndarray) -> np.ndarray:
    """Pale the colours of an image (height, width, 3) and draw its edges in black."""
    pale = (0.5 * pixels + 127.5).astype(np.uint8)
    return np.minimum(pale, edges(pixels))


RESTYLES = {"grey": grey, "outlined": outlined, "edges": edges}


def other_styles() -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
    """Return functions that give rows of `emoji_table` the features of another style, by name.

    The styles are the Twemoji art made over by `RESTYLES`, and "OpenMoji".
    """
    cnn = PretrainedCNN(layer=LAYER, verbose=True)
    paths = load_emoji().data["image"]
    features = {
        name: cnn.fit_transform([restyle(decode(path)) for path in paths])
        for name, restyle in RESTYLES.items()
    }
    features["OpenMoji"] = cnn.fit_transform(load_emoji(style="openmoji").data["image"])
    return {name: partial(with_images, features=rows) for name, rows in features.items()}


def with_images(table: pd.DataFrame, features: np.ndarray) -> pd.DataFrame:
    """Return rows of `emoji_table` with other image features, given for all rows (n, 192)."""
    return table.assign(cnn=list(features[table.index]))


def with_typos(table: pd.DataFrame) -> pd.DataFrame:
    """Return rows of `emoji_table` with one typo in every word of the names."""
    return table.assign(name=add_typos(table["name"], random_state=0))


def without(table: pd.DataFrame, column: str, rate: float) -> pd.DataFrame:
    """Return rows of a feature table of which a random share lacks a modality."""
    hidden = np.random.default_rng(0).permutation(len(table)) < rate * len(table)
    return table.assign(**{column: table[column].where(~hidden, None)})


def style_methods() -> dict[str, BaseEstimator]:
    """Return the methods of the test on another style; ``gamma`` is that of the image's machine.

    With an RBF kernel of large gamma a picture unlike all those seen in training is near to none
    of them, and the margins of all classes fall to about the same value: the machine abstains.
    """
    methods: dict[str, BaseEstimator] = {"cnn alone": fused(["cnn"])}
    for text in TEXTS:
        methods[f"{text} alone"] = fused([text])
        methods[f"cnn + {text}: concat"] = fused(["cnn", text])
        for gamma in KERNEL_WIDTHS:
            image = ("image", fused(["cnn"], classifier=margin_machine(gamma)), ["cnn"])
            branches = [image, ("text", fused([text]), [text])]
            name = f"cnn + {text}: late margin, gamma {gamma}"
            methods[name] = LateFusion(branches, how="margin")
    return methods


def chosen_kernel(accuracy: pd.DataFrame, text: str) -> str:
    """Return the late fusion that is best on average over Twemoji and its made-over drawings.

    Parameters
    ----------
    accuracy : DataFrame
        A row a method of `style_methods`; of the columns "as it is" and the names in `RESTYLES`
        are looked at, OpenMoji's is not.
    text : str
        "glove" or "minilm".
    """
    seen = accuracy[["as it is", *RESTYLES]].mean(axis=1)
    return seen[seen.index.str.startswith(f"cnn + {text}: late margin")].idxmax()


def typo_methods() -> dict[str, BaseEstimator]:
    """Return text classifiers to be tested on misspelt names, by name."""
    encoders = {
        "GloVe": GloVeEncoder(),
        "MiniLM": SentenceEncoder(),
        "fastText": FastTextEncoder(random_state=0),
    }
    encoders |= {
        f"{name}, spelling corrected": make_pipeline(SpellingCorrector(), encoder)
        for name, encoder in encoders.items()
    }
    return {
        name: make_pipeline(Fusion([("text", encoder, "name")]), margin_machine())
        for name, encoder in encoders.items()
    }


def missing_methods() -> dict[str, BaseEstimator]:
    """Return methods that take pairs without an image or without a text, by name.

    They take tables of the columns "image" and "text" (see `as_pair`). Two of them know a single
    modality only, and show what is left when the other is gone.
    """
    blocks = {name: (name, "passthrough", name) for name in ("image", "text")}
    both = list(blocks.values())
    branches = [
        (name, make_pipeline(Fusion([block]), margin_machine()), [name])
        for name, block in blocks.items()
    ]
    plain = FusionClassifier("concat", epochs=50, validation_fraction=0.0, random_state=0)
    dropped = clone(plain).set_params(modality_dropout=0.5)
    perceptron = NeuralClassifier(random_state=0)
    return {
        "image alone, network": make_pipeline(Fusion(both[:1], missing="mask"), perceptron),
        "text alone, network": make_pipeline(Fusion(both[1:], missing="mask"), perceptron),
        "concat, SVM, masked": make_pipeline(Fusion(both, missing="mask"), margin_machine()),
        "concat, SVM, filled in": make_pipeline(ModalityImputer(), Fusion(both), margin_machine()),
        "late margin, SVM": LateFusion(branches, how="margin", missing="mask"),
        "concat, network": plain,
        "concat, network, modality dropout": dropped,
        "concat, network, dropout and learned vector": clone(dropped).set_params(
            missing="embedding"
        ),
    }


def missing_variants(rates: Iterable[float]) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
    """Return functions that hide the image or the text in a share of the rows, by name."""
    return {
        f"{column} missing {rate:.0%}": partial(without, column=column, rate=rate)
        for column in ("image", "text")
        for rate in rates
    }
