"""What the page of questions claims, held against its stored run."""

import pandas as pd
import pytest

from cmlearn.reference import RUNS
from cmlearn.reference.faq import ATTENTION_RATES, RATES, SEEDS, mean_over_seeds
from cmlearn.runtime import load_run


@pytest.fixture(scope="module")
def results():
    return load_run(RUNS / "faq.json")["results"]


@pytest.fixture(scope="module")
def remedy(results):
    splits = [pd.DataFrame(split) for split in results["remedies"]]
    assert len(splits) == len(SEEDS) >= 3
    assert list(splits[0].columns) == [str(rate) for rate in RATES]
    return sum(splits) / len(splits)


def test_the_text_encoder_matters_more_than_the_image_encoder_on_emoji(results):
    many = mean_over_seeds(results["emoji"])[800]
    by_text, by_image = (many.groupby(level=level).mean() for level in ("text", "image"))
    assert by_text.idxmax() == "MiniLM"
    assert by_image.idxmax() == "CNN, pretrained"
    assert by_text.max() - by_text.min() > by_image.max() - by_image.min() + 0.05


def test_glove_beats_minilm_with_a_hundred_labels_only(results):
    table = mean_over_seeds(results["emoji"])
    few, many = (table[size].groupby(level="text").mean() for size in (100, 800))
    assert few["GloVe"] > few["MiniLM"]
    assert many["MiniLM"] > many["GloVe"]


def test_a_pretrained_network_beats_one_trained_here_on_emoji_at_every_size(results):
    by_image = mean_over_seeds(results["emoji"]).groupby(level="image").mean()
    assert (by_image.loc["CNN, pretrained"] > by_image.loc["CNN, trained here"]).all()


def test_descriptors_of_grey_levels_cannot_see_colour(results):
    colour = mean_over_seeds(results["scenes"])[300].groupby(level="image")
    assert colour.min()["CNN, pretrained"] > 0.95
    assert colour.max()[["SIFT", "HOG"]].max() < 0.65


def test_wrong_names_cost_little_and_no_remedy_stands_out(remedy):
    worst = remedy["0.6"]
    assert worst["picture alone"] < worst["nothing done"] < remedy.loc["nothing done", "0.0"]
    tried = [str(rate) for rate in ATTENTION_RATES]
    assert (remedy.loc["cross-attention", tried] < remedy.loc["nothing done", tried]).all()
    close = worst[["nothing done", "suspects hidden", "hidden, filled by ridge"]]
    assert close.max() - close.min() < 0.04
