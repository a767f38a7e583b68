"""What the page on security claims, held against its stored run."""

import pandas as pd
import pytest

from cmlearn.reference import RUNS
from cmlearn.runtime import load_run

FUSED = ["concat", "mean", "product", "gated", "late product"]


@pytest.fixture(scope="module")
def seeds():
    found = load_run(RUNS / "security.json")["results"]["by_seed"]
    assert len(found) >= 3
    return found


def mean(seeds, name, keys, value="accuracy"):
    return pd.concat([pd.DataFrame(one[name]) for one in seeds]).groupby(keys)[value].mean()


def test_pgd_is_never_weaker_than_fgsm(seeds):
    for one in seeds:
        table = pd.DataFrame(one["pixels"]).pivot(
            index=["model", "epsilon"], columns="attack", values="accuracy"
        )
        assert (table["PGD"] <= table["FGSM"]).all()


def test_fusion_stands_between_the_attacked_image_and_the_untouched_text(seeds):
    pixels = mean(seeds, "pixels", ["attack", "epsilon", "model"])["PGD"]
    text = pd.DataFrame([one["clean_attacked"] for one in seeds])["text"].mean()
    assert (pixels[1.0][FUSED] > pixels[1.0]["image"]).all()
    assert (pixels[4.0][FUSED] < text - 0.2).all()


def test_fusion_withstands_exchanged_words_better_than_the_text(seeds):
    words = mean(seeds, "words", ["changes", "model"])
    assert (words[2][FUSED] > words[2]["text"]).all()


def test_agreement_finds_swapped_pairs_better_than_one_word(seeds):
    found = pd.DataFrame([one["agreement"] for one in seeds]).mean()
    assert found["swapped"] > 0.7 and found["swapped"] > found["one word"]


def test_the_direction_does_more_than_any_grain_and_carries_over(seeds):
    found = mean(seeds, "controls", ["change", "model"])
    for model in ("image", "concat", "late product"):
        assert found["PGD on image", model] < found["random signs", model] - 0.3
    assert found["PGD on concat", "concat"] <= found["PGD on image", "concat"]


def test_an_attacker_who_minds_the_alarm_is_quieter_in_every_seed(seeds):
    for one in seeds:
        quiet = pd.DataFrame(one["quiet"]).set_index("weight")
        assert quiet["alarm"].iloc[-1] < quiet["alarm"].iloc[0]
        assert quiet["accuracy"].iloc[-1] < 0.2
