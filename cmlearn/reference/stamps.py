"""Photographs and captions: what the page "Photos and captions" compares on Tux Paint's stamps."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Bunch

from cmlearn.comparison import coalitions, fused, late, margin_machine
from cmlearn.datasets import load_stamps
from cmlearn.fusion import Fusion, feature_table
from cmlearn.image import PretrainedCNN
from cmlearn.model_selection import compare_methods, paired_tests
from cmlearn.reference.methods import summary
from cmlearn.runtime import save_run
from cmlearn.text import GloVeEncoder, SentenceEncoder

FOLDS = 5
REPEATS = 3
GREY = 127  # of 255: the paper on which a white stamp can be seen
BEST = "three views + minilm: joint margins"
SOURCES = [
    f"cmlearn/{module}.py"
    for module in (
        "_folds",
        "_sentences",
        "_word_codes",
        "_word_vectors",
        "comparison",
        "datasets/_common",
        "datasets/_stamps",
        "efficientnet",
        "fusion",
        "image",
        "metrics",
        "model_selection",
        "reference/methods",
        "reference/stamps",
        "text",
    )
]

# How a picture is seen: the network, its layer, and the shade of the paper under it.
VIEWS = {
    "white": ("efficientnet-lite0", "block14", 255),
    "grey": ("efficientnet-lite0", "block14", GREY),
    "lite2": ("efficientnet-lite2", None, 255),
}

JOINT = {"two views": ("white", "grey"), "three views": tuple(VIEWS)}


def on_paper(path: str, shade: int) -> np.ndarray:
    """Lay a stamp in the middle of a square sheet of paper.

    Parameters
    ----------
    path : str
        A picture, which may be transparent.
    shade : int
        Of the paper, from 0 (black) to 255 (white).

    Returns
    -------
    ndarray of shape (side, side, 3), uint8
        The side is the longer one of the picture.
    """
    from PIL import Image

    with Image.open(path) as image:
        stamp = image.convert("RGBA")
    paper = Image.new("RGBA", (max(stamp.size),) * 2, (shade, shade, shade, 255))
    corner = ((paper.width - stamp.width) // 2, (paper.height - stamp.height) // 2)
    paper.alpha_composite(stamp, corner)
    return np.asarray(paper.convert("RGB"))


def stamps_table(stamps: Bunch, views: Iterable[str] = VIEWS) -> pd.DataFrame:
    """Return the frozen features of stamps.

    Parameters
    ----------
    stamps : Bunch
        As `load_stamps` returns it.
    views : iterable of str
        Keys of `VIEWS`.

    Returns
    -------
    DataFrame
        One column for each view; ``glove`` (50,) and ``minilm`` (384,); ``text``, the captions.
    """
    paths, texts = list(stamps.data["image"]), stamps.data["text"]
    images = {}
    for view in views:
        network, layer, shade = VIEWS[view]
        encoder = PretrainedCNN(network, layer=layer, verbose=True)
        images[view] = encoder.fit_transform([on_paper(path, shade) for path in paths])
    table = feature_table(
        **images,
        glove=GloVeEncoder().fit_transform(texts),
        minilm=SentenceEncoder(verbose=True).fit_transform(texts),
    )
    return table.assign(text=list(texts))


def joint_margins(views: Iterable[str], text: str) -> BaseEstimator:
    """Return late fusion of one machine for each view, each with the text beside the picture."""
    return late("margin", *((view, text) for view in views))


def methods(views: Iterable[str] = VIEWS) -> dict[str, BaseEstimator]:
    """Return what is compared, by name: single modalities, early fusion, late fusion."""
    views = list(views)
    chosen = {f"{view} alone": fused([view]) for view in views}
    chosen |= {f"{text} alone": fused([text]) for text in ("glove", "minilm")}
    for text in ("glove", "minilm"):
        chosen[f"white + {text}: concat"] = fused(["white", text])
        for name, seen in JOINT.items():
            if set(seen) <= set(views):
                chosen[f"{name} + {text}: joint margins"] = joint_margins(seen, text)
    pair = ["white", "minilm"]
    chosen["white + minilm: late margin"] = late("margin", *((name,) for name in pair))
    chosen["white + minilm: margins of all sets"] = late("margin", *coalitions(pair))
    return chosen


def by_characters(*columns: str) -> Pipeline:
    """Return a machine on TF-IDF of a text's characters, and on columns of features beside it.

    Runs of one to three characters serve any script: no language is known beforehand.
    """
    encoder = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True),
        TruncatedSVD(100, random_state=0),
    )
    text, *features = columns
    blocks = [("text", encoder, text), *((name, "passthrough", name) for name in features)]
    return Pipeline([("fusion", Fusion(blocks)), ("classifier", margin_machine())])


def bilingual_table(table: pd.DataFrame, stamps: Bunch, chinese: Bunch) -> pd.DataFrame:
    """Return the rows that have a Chinese caption as well, with ``chinese`` and its codes.

    Parameters
    ----------
    table : DataFrame
        As `stamps_table` returns it for ``stamps``.
    stamps, chinese : Bunch
        As `load_stamps` returns them in English and in Chinese.
    """
    captions = dict(zip(chinese.names, chinese.data["text"], strict=True))
    rows = np.flatnonzero([name in captions for name in stamps.names])
    texts = [captions[name] for name in stamps.names[rows]]
    codes = SentenceEncoder().fit_transform(texts)
    both = table.iloc[rows].reset_index(names="row")
    return both.assign(chinese=texts, **feature_table(minilm_chinese=codes))


def bilingual_methods() -> dict[str, BaseEstimator]:
    """Return methods that read the captions in either language, by name."""
    return {
        "picture alone": fused(["white"]),
        "English, characters": by_characters("text"),
        "Chinese, characters": by_characters("chinese"),
        "English, MiniLM": fused(["minilm"]),
        "Chinese, MiniLM": fused(["minilm_chinese"]),
        "English, characters + picture": by_characters("text", "white"),
        "Chinese, characters + picture": by_characters("chinese", "white"),
        "English, MiniLM + picture": fused(["minilm", "white"]),
        "Chinese, MiniLM + picture": fused(["minilm_chinese", "white"]),
    }


def run(path: Path) -> None:
    """Cross-validate every method on the stamps and store the scores."""
    judge = partial(
        compare_methods,
        n_splits=FOLDS,
        n_repeats=REPEATS,
        random_state=0,
        n_jobs=-1,
        verbose=True,
    )
    stamps, chinese = load_stamps(), load_stamps(language="zh")
    labels = np.asarray(stamps.target_names)[stamps.target]
    table = stamps_table(stamps)
    everything = methods()
    scores = judge(everything, table, labels, groups=stamps.groups).scores
    tests = paired_tests(scores, reference=BEST).set_index("method")

    few = {name: everything[name] for name in ("minilm alone", "white + minilm: concat", BEST)}
    split = judge(few, table, labels).scores  # variants of one stamp on both sides
    large = np.flatnonzero(np.bincount(stamps.target)[stamps.target] >= 30)
    ten = judge(
        few,
        table.iloc[large].reset_index(drop=True),
        labels[large],
        groups=stamps.groups[large],
    ).scores
    both = bilingual_table(table, stamps, chinese)
    kept = both["row"].isin(np.flatnonzero(np.isin(labels, chinese.target_names)))
    both = both[kept].reset_index(drop=True)
    rows = both["row"].to_numpy()
    languages = judge(bilingual_methods(), both, labels[rows], groups=stamps.groups[rows]).scores
    results = {
        "folds": FOLDS,
        "repeats": REPEATS,
        "n_pairs": len(labels),
        "n_groups": len(set(stamps.groups)),
        "n_categories": len(stamps.target_names),
        "fingerprint": stamps.fingerprint,
        "scores": summary(scores),
        "tests": tests.to_dict("index"),
        "ungrouped": summary(split),
        "ten_categories": {"n_pairs": len(large), "scores": summary(ten)},
        "bilingual": {
            "n_pairs": len(both),
            "categories": sorted(set(labels[rows])),
            "scores": summary(languages),
        },
    }
    save_run(path, results, sources=SOURCES)
    for name in ("scores", "ungrouped"):
        print(pd.DataFrame(results[name]).T["accuracy"].astype(float).round(3).to_string())
    for name in ("ten_categories", "bilingual"):
        print(pd.DataFrame(results[name]["scores"]).T["accuracy"].astype(float).round(3))
