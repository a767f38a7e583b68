"""What the page "Photos and captions" claims, held against its stored run."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cmlearn.comparison import fused
from cmlearn.model_selection import compare_methods
from cmlearn.reference import RUNS, stamps_finetuning, stamps_kinds
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


@pytest.fixture(scope="module")
def trained():
    return load_run(RUNS / "stamps_finetuning.json")


def test_the_networks_were_trained_on_the_same_folds_of_the_same_stamps(stored, trained):
    assert not trained["stale"]
    found = trained["results"]
    assert found["repeats"] >= 3
    assert len(found["seconds"]) == len(found["train_accuracy"]) == 5 * found["repeats"]
    assert found["fingerprint"] == stored["fingerprint"]
    for name in ("white alone", "minilm alone", BEST):
        ours = found["scores"][name]["accuracy_by_repeat"]
        theirs = stored["scores"][name]["accuracy_by_repeat"][: found["repeats"]]
        assert ours == pytest.approx(theirs, abs=0.003), name


def test_a_network_that_knows_its_pictures_loses_to_frozen_features(trained):
    found = accuracy(trained["results"]["scores"])
    control = stamps_finetuning.SMALL
    assert min(trained["results"]["train_accuracy"]) > 0.99
    assert found["fine-tuned"] < found["fine-tuned, four views"] < found[control]
    assert abs(found[control] - found["white alone"]) < 0.005  # the size is not the reason
    test = trained["results"]["tests"][control]["fine-tuned"]
    assert test["high"] < 0 and test["pvalue"] < 0.05 < test["pvalue_holm"]


def test_on_groceries_the_trained_network_beats_the_machine_on_its_frozen_features():
    networks = load_run(RUNS / "finetuning.json")["results"]["networks"]
    frozen = load_run(RUNS / "grocery.json")["results"]["classifiers"]["lite0, SVM"]["fine"]
    assert min(seed["fine"] for seed in networks["lite0, labels"]["single"]) > frozen


def test_one_more_voice_does_not_help_the_best_fusion(stored, trained):
    found = accuracy(trained["results"]["scores"])
    concat = accuracy(stored["scores"])["white + minilm: concat"]
    assert found["minilm alone"] < found["fine-tuned + minilm"] < concat
    assert found[stamps_finetuning.BOTH] < found[BEST]
    assert trained["results"]["tests"][BEST][stamps_finetuning.BOTH]["pvalue_holm"] > 0.05


@pytest.fixture(scope="module")
def by_kind():
    return load_run(RUNS / "stamps_kinds.json")


def test_kinds_were_learned_on_the_same_folds_of_the_same_stamps(stored, by_kind):
    assert not by_kind["stale"]
    found = by_kind["results"]
    assert found["fingerprint"] == stored["fingerprint"]
    assert found["folds"] == 5 and found["repeats"] >= 3
    for text in stamps_kinds.TEXTS:
        name = f"three views + {text}: joint margins"
        theirs = stored["scores"][name]["accuracy_by_repeat"]
        assert found["scores"][name]["accuracy_by_repeat"] == pytest.approx(theirs, abs=0.003)


def test_both_levels_reach_what_the_page_says(by_kind):
    ten = accuracy(by_kind["results"]["ten_categories"]["scores"])
    assert ten.idxmax() == stamps_kinds.BEST
    assert ten[stamps_kinds.BEST] >= 0.93
    assert ten["three views + glove: both levels"] >= 0.89


@pytest.mark.parametrize("text", stamps_kinds.TEXTS)
def test_kinds_help_a_little_and_drawn_kinds_do_not(by_kind, text):
    found = by_kind["results"]
    joint, both = (f"three views + {text}: {how}" for how in ("joint margins", "both levels"))
    for part in (found, found["ten_categories"]):
        scores = accuracy(part["scores"])
        assert scores[joint] < scores[both]
        assert scores[f"three views + {text}: kinds"] < scores[both]
        assert scores[f"{both}, kinds drawn"] < scores[joint] + 0.0005
    test = found["tests"][text][joint]
    assert test["low"] < 0 < test["high"]


def test_the_kind_of_a_stamp_is_the_folder_below_its_category():
    names = np.array(["animals/birds/crow", "animals/cow", "town/houses/cartoon/tent"])
    assert stamps_kinds.kinds_of(SimpleNamespace(names=names)) == ["birds", None, "houses"]


def test_drawn_kinds_stay_in_their_category():
    labels = np.repeat(["animals", "town"], 50)
    kinds = ["birds"] * 20 + [None] * 30 + ["houses"] * 50
    drawn = stamps_kinds.drawn_kinds(kinds, labels)
    assert (drawn[50:] == "houses").all()
    assert sorted(drawn[:50], key=str) == sorted(kinds[:50], key=str)
    assert drawn[:50].tolist() != kinds[:50]


def test_both_levels_are_two_machines_a_view():
    fused_levels = stamps_kinds.both_levels(["white", "grey"], "glove", "drawn")
    assert fused_levels.how == "margin"
    assert [(name, columns) for name, _, columns in fused_levels.classifiers] == [
        ("white and glove", ["white", "glove"]),
        ("white and glove, kinds", ["white", "glove", "drawn"]),
        ("grey and glove", ["grey", "glove"]),
        ("grey and glove, kinds", ["grey", "glove", "drawn"]),
    ]
    kinds = [machine for name, machine, _ in fused_levels.classifiers if "kinds" in name]
    assert all(machine.column == "drawn" for machine in kinds)


def test_recall_is_the_share_of_a_category_over_all_repeats():
    predictions = pd.DataFrame(
        {
            "method": ["a", "a", "a", "a", "b", "b"],
            "row": [0, 1, 2, 0, 0, 2],
            "prediction": ["x", "y", "y", "y", "y", "y"],
        }
    )
    found = stamps_kinds.recall(predictions, np.array(["x", "x", "y"]))
    assert found == {"a": {"x": pytest.approx(1 / 3), "y": 1.0}, "b": {"x": 0.0, "y": 1.0}}


def test_log_odds_of_what_the_labels_ask_for_are_margins_of_one():
    epsilon, classes = 0.1, 4
    asked = np.full((classes, classes), epsilon / classes)
    np.fill_diagonal(asked, 1 - epsilon + epsilon / classes)
    margins = stamps_finetuning.network_margins(asked, epsilon)
    assert margins == pytest.approx(2 * np.eye(classes) - 1)


def test_certainty_gives_finite_margins_that_keep_the_answer():
    margins = stamps_finetuning.network_margins(np.array([[1.0, 0.0], [0.3, 0.7]]), 0.1)
    assert np.isfinite(margins).all()
    assert margins.argmax(axis=1).tolist() == [0, 1]


def test_folds_are_those_of_compare_methods():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60).astype(str)
    groups = np.arange(60) // 2
    table = pd.DataFrame({"x": list(rng.normal(size=(60, 2)))})
    found = compare_methods(
        {"a": fused(["x"])}, table, labels, groups=groups,
        n_repeats=stamps_finetuning.REPEATS, random_state=0,
    )  # fmt: skip
    theirs = found.predictions.groupby(["repeat", "fold"])["row"].agg(set)
    for repeat, fold, train, test in stamps_finetuning.folds(labels, groups):
        assert theirs[repeat, fold] == set(test)
        assert not set(train) & set(test)


@pytest.mark.parametrize("sources", [SOURCES, stamps_finetuning.SOURCES, stamps_kinds.SOURCES])
def test_the_sources_hold_what_is_called(root, sources):
    assert "cmlearn/datasets/_stamps.py" in sources
    assert all((root / source).is_file() for source in sources)


def test_a_stamp_on_paper(tmp_path):
    from PIL import Image

    Image.new("RGBA", (4, 2), (255, 0, 0, 128)).save(tmp_path / "a.png")
    paper = on_paper(str(tmp_path / "a.png"), 100)
    assert paper.shape == (4, 4, 3)
    assert (paper[[0, 3]] == 100).all()
    assert abs(paper[1, 0].astype(int) - [178, 50, 50]).max() <= 1
