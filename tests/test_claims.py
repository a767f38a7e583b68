"""What the book claims, held against the stored reference runs."""

import numpy as np
import pytest

from cmlearn.reference import RUNS, SEEDS
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
