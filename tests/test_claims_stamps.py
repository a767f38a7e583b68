"""What the page "Photos and captions" claims, held against its stored run."""

import pandas as pd
import pytest

from cmlearn.reference import RUNS
from cmlearn.reference.stamps import BEST, SOURCES, on_paper
from cmlearn.runtime import load_run


@pytest.fixture(scope="module")
def stored():
    return load_run(RUNS / "stamps.json")["results"]


def accuracy(scores):
    return pd.DataFrame.from_dict(scores, orient="index")["accuracy"]


def test_three_shuffles_or_more(stored):
    assert stored["repeats"] >= 3
    assert stored["folds"] == 5
    for part in (stored, stored["ten_categories"], stored["bilingual"]):
        for score in part["scores"].values():
            assert len(score["accuracy_by_repeat"]) == stored["repeats"]


def test_the_best_fusions_reach_what_the_page_says(stored):
    found = accuracy(stored["scores"])
    assert found.idxmax() == BEST
    assert found[BEST] >= 0.92
    assert found["three views + glove: joint margins"] >= 0.89


def test_only_the_sentence_encoder_beats_pictures_and_both_together_beat_either(stored):
    found = accuracy(stored["scores"])
    pictures = found[["white alone", "grey alone", "lite2 alone"]]
    assert found["glove alone"] < pictures.max() < found["minilm alone"]
    for text in ("glove", "minilm"):
        assert found[f"{text} alone"] < found[f"white + {text}: concat"]
        assert found[f"white + {text}: concat"] < found[f"three views + {text}: joint margins"]


def test_variants_on_both_sides_flatter_every_method(stored):
    found = accuracy(stored["scores"])
    apart = accuracy(stored["ungrouped"])
    assert (apart > found[apart.index]).all()


def test_captions_in_two_languages(stored):
    found = accuracy(stored["bilingual"]["scores"])
    for language in ("English", "Chinese"):
        assert found[f"{language}, characters + picture"] > found[f"{language}, characters"]
        assert found[f"{language}, MiniLM + picture"] > found[f"{language}, MiniLM"]
    assert found["English, MiniLM"] > found["Chinese, MiniLM"]
    assert found["picture alone"] > found["Chinese, MiniLM + picture"]
    assert found["Chinese, characters"] > found["English, characters"]
    assert found["Chinese, characters + picture"] > found["picture alone"]


def test_the_sources_hold_what_is_called(root):
    assert "cmlearn/datasets/_stamps.py" in SOURCES
    assert all((root / source).is_file() for source in SOURCES)


def test_a_stamp_on_paper(tmp_path):
    from PIL import Image

    Image.new("RGBA", (4, 2), (255, 0, 0, 128)).save(tmp_path / "a.png")
    paper = on_paper(str(tmp_path / "a.png"), 100)
    assert paper.shape == (4, 4, 3)
    assert (paper[[0, 3]] == 100).all()
    assert abs(paper[1, 0].astype(int) - [178, 50, 50]).max() <= 1
