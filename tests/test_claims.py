"""What the book claims, held against the stored reference runs."""

import numpy as np
import pandas as pd
import pytest

from cmlearn.comparison import chosen_kernel
from cmlearn.fusion import feature_table
from cmlearn.models import FusionClassifier, count_parameters
from cmlearn.reference import RUNS
from cmlearn.reference.emoji import SEEDS
from cmlearn.reference.methods import BEST
from cmlearn.runtime import load_run


@pytest.fixture(scope="module")
def emoji():
    return load_run(RUNS / "emoji.json")["results"]


def mean(emoji, name, score="accuracy"):
    values = emoji["scores"][name][score]
    assert len(values) == len(SEEDS) >= 3
    return np.mean(values)


def test_each_fusion_of_margins_or_networks_beats_text_and_text_beats_image(emoji):
    for classifier, fused in [("SVM", "late margins"), ("network", "late product")]:
        for score in ("accuracy", "macro_f1"):
            text = mean(emoji, f"text, {classifier}", score)
            assert mean(emoji, f"image, {classifier}", score) < text
            assert text < mean(emoji, f"{fused}, {classifier}", score)


def test_accuracy_of_the_best_fusion_with_glove(emoji):
    assert mean(emoji, "late margins, SVM") >= 0.85
    assert mean(emoji, "late product, network") >= 0.85


def test_networks_gain_six_points_of_macro_f1_by_fusion(emoji):
    gains = emoji["gains"]["network"]
    assert np.mean([gain["estimate"] for gain in gains]) >= 0.06
    assert all(gain["low"] > 0 for gain in gains)


def test_fusion_gains_less_over_the_stronger_baseline_of_the_svm(emoji):
    svm, network = (
        np.mean([gain["estimate"] for gain in emoji["gains"][classifier]])
        for classifier in ("SVM", "network")
    )
    assert all(gain["low"] > 0 for gain in emoji["gains"]["SVM"])
    assert 0 < svm < network
    assert mean(emoji, "text, SVM", "macro_f1") > mean(emoji, "text, network", "macro_f1")


def test_product_alone_loses_what_each_modality_knows(emoji):
    assert mean(emoji, "product, SVM") < mean(emoji, "text, SVM")


# --- All methods compared ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def methods():
    return load_run(RUNS / "methods.json")["results"]


def test_the_best_fusion_with_the_sentence_encoder(methods):
    scores = methods["scores"]
    best = scores[BEST]
    assert best["accuracy"] == max(entry["accuracy"] for entry in scores.values()) >= 0.885
    assert best["accuracy"] > scores["cnn + both texts: concat"]["accuracy"]
    assert best["low"] < best["accuracy"] < best["high"]
    repeats = {name: len(entry["accuracy_by_repeat"]) for name, entry in scores.items()}
    assert repeats[BEST] == methods["repeats"] >= 10
    assert min(repeats.values()) == methods["slow_repeats"] >= 3


def test_the_best_fusion_with_glove(methods):
    glove = {name: entry for name, entry in methods["scores"].items() if "cnn + glove: " in name}
    assert max(entry["accuracy"] for entry in glove.values()) >= 0.86


def test_late_fusion_withstands_another_style_where_concat_does_not(methods):
    styles = pd.DataFrame.from_dict(methods["styles"], orient="index")
    for text, least in (("glove", 0.78), ("minilm", 0.83)):
        late = styles["OpenMoji"][chosen_kernel(styles, text)]
        alone = styles["OpenMoji"][f"{text} alone"]
        assert styles["OpenMoji"][f"cnn + {text}: concat"] < alone <= late
        assert late >= least


def test_spelling_correction_saves_fasttext_and_glove_loses_more(methods):
    typos = pd.DataFrame.from_dict(methods["typos"], orient="index")
    kept = typos["one typo a word"] / typos["as it is"]
    assert kept["fastText, spelling corrected"] >= 0.9
    assert kept["GloVe, spelling corrected"] < kept["fastText, spelling corrected"]
    assert kept["GloVe"] < kept["fastText"] < 0.9


def test_modality_dropout_keeps_what_the_other_modality_is_worth(methods):
    missing = methods["missing"]
    dropped = missing["concat, network, modality dropout"]
    for gone, other in (("image", "text"), ("text", "image")):
        alone = missing[f"{other} alone, network"]["as it is"]
        assert dropped[f"{gone} missing 100%"] >= alone - 0.02


def test_low_rank_fusion_is_as_good_as_the_tensor(methods):
    scores = methods["scores"]
    low_rank, tensor = (scores[f"cnn + glove: network, {how}"] for how in ("low-rank", "tensor"))
    assert low_rank["accuracy"] >= tensor["accuracy"] - 0.01


def test_low_rank_fusion_has_a_tenth_of_the_tensors_parameters(rng):
    image, text = rng.normal(size=(16, 192)), rng.normal(size=(16, 50))
    table, labels = feature_table(image=image, text=text), np.arange(16) % 8
    size = {
        how: count_parameters(
            FusionClassifier(how, epochs=1, validation_fraction=0.0).fit(table, labels)
        )
        for how in ("low-rank", "tensor")
    }
    assert size["low-rank"] <= 0.1 * size["tensor"]
