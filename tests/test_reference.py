"""Tests of the reference runs' parts; the runs themselves are stored."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from cmlearn.reference.__main__ import main
from cmlearn.reference.emoji import emoji_models, gain

COLUMNS = {"image": slice(0, 6), "text": slice(6, 10)}


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    labels = np.repeat(["cup", "hat", "pen"], 20)
    features = rng.normal(size=(60, 10)).astype("float32")
    features[:, 0] += 3 * (labels == "cup")
    features[:, 6] += 3 * (labels == "hat")
    return features, labels


@pytest.mark.parametrize("name", ["image, SVM", "text, SVM"])
def test_a_single_modality_sees_nothing_of_the_other(pairs, name):
    features, labels = pairs
    model = emoji_models(COLUMNS)[name].fit(features, labels)
    other = COLUMNS["text" if name.startswith("image") else "image"]
    changed = features.copy()
    changed[:, other] = 99
    np.testing.assert_array_equal(model.predict(features), model.predict(changed))


def test_every_svm_model_fits_and_fusion_knows_more_than_each_alone(pairs):
    features, labels = pairs
    models = {n: m for n, m in emoji_models(COLUMNS).items() if n.endswith("SVM")}
    assert len(models) == 6
    scores = {
        name: model.fit(features, labels).score(features, labels) for name, model in models.items()
    }
    assert scores["concat, SVM"] >= max(scores["image, SVM"], scores["text, SVM"])


def test_gain_compares_the_best_of_each_kind_with_the_same_classifier():
    labels = np.array(["a", "b"] * 20)
    wrong = np.where(np.arange(40) < 8, "a", labels)
    worse = np.where(np.arange(40) < 20, "a", labels)
    predictions = {
        "image, SVM": worse,
        "text, SVM": wrong,
        "concat, SVM": labels,
        "mean, SVM": worse,
        "text, network": labels,
    }
    found = gain(predictions, labels, np.arange(40), classifier="SVM", seed=0)
    assert (found["alone"], found["fused"]) == ("text, SVM", "concat, SVM")
    expected = 1 - f1_score(labels, wrong, average="macro")
    assert found["estimate"] == pytest.approx(expected)
    assert found["low"] <= expected <= found["high"]


def test_unknown_run_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reference", "nothing"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "emoji" in capsys.readouterr().err
