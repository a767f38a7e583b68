import json

import pytest

from cmlearn.assets import ASSETS, AssetError
from cmlearn.cards import make_card
from cmlearn.runtime import load_run, save_run

DESCR = "Some pairs\n==========\n\nPictures with names.\n\nCounts\n------\n\nMany.\n"


@pytest.fixture
def facts(tmp_path):
    save_run(tmp_path / "run.json", {"accuracy": [0.5]}, sources=["cmlearn/cards.py"])
    return {
        "run": load_run(tmp_path / "run.json"),
        "title": "A model",
        "scores": {"accuracy": [0.5, 0.75]},
        "descr": DESCR,
        "assets": ["twemoji", "glove-6b-50d"],
        "intended": "To learn.",
        "limits": ["It fails."],
    }


def test_the_card_tells_scores_licences_and_provenance(facts):
    card = make_card(**facts)
    assert card == make_card(**facts)
    assert "| accuracy | 0.625 | 0.500 to 0.750 | 2 |" in card
    for name in facts["assets"]:
        assert ASSETS[name].licence in card and ASSETS[name].sha256[:16] in card
    assert facts["run"]["provenance"]["code_hash"] in card
    assert "Pictures with names." in card and "Many." not in card
    assert "- It fails." in card and "has changed" not in card


def test_a_stale_run_is_called_so(facts):
    facts["run"]["stale"] = True
    assert "The code has changed since this run" in make_card(**facts)


def test_a_score_cannot_break_the_table(facts):
    facts["scores"] = {"a | b": [1]}
    assert "| a / b |" in make_card(**facts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": {"results": {}}}, "no provenance"),
        ({"scores": {}}, "at least one score"),
        ({"scores": {"F1": []}}, "'F1' has no values"),
        ({"limits": []}, "at least one limit"),
        ({"limits": "It fails."}, r"a list of sentences, not one string: \['It fails\.'\]"),
    ],
)
def test_bad_input(facts, change, message):
    with pytest.raises(ValueError, match=message):
        make_card(**facts | change)


def test_an_unknown_asset_is_named(facts):
    with pytest.raises(AssetError, match="'no-such'"):
        make_card(**facts | {"assets": ["no-such"]})


def test_the_run_is_only_read(facts):
    before = json.dumps(facts["run"])
    make_card(**facts)
    assert json.dumps(facts["run"]) == before
