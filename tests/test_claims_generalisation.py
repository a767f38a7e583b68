"""What the page on generalisation claims, held against its stored run."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ortho_group
from sklearn.preprocessing import normalize

from cmlearn.corruptions import IMAGE_CORRUPTIONS, SEVERITIES, TEXT_CORRUPTIONS
from cmlearn.metrics import mcnemar
from cmlearn.reference import RUNS, generalisation
from cmlearn.runtime import load_run
from cmlearn.shift import mean_corruption_error


@pytest.fixture(scope="module")
def run():
    return load_run(RUNS / "generalisation.json")


@pytest.fixture(scope="module")
def results(run):
    return run["results"]


def table(results, name):
    rows = pd.DataFrame(results[name])
    assert rows["seed"].nunique() >= 3
    return rows


@pytest.fixture(scope="module")
def corrupted(results):
    scores = table(results, "corruptions")
    return scores.groupby(["method", "corruption", "severity"])["accuracy"].mean()


def over_severity(corrupted, method, kinds):
    return corrupted[method].unstack().loc[list(kinds), list(SEVERITIES)]


def test_the_run_is_of_this_code(run):
    assert not run["stale"]
    assert sorted(generalisation.SOURCES) == run["provenance"]["sources"]


def test_another_style_costs_the_picture_and_late_fusion_stays_at_the_text(results):
    scores = table(results, "styles").pivot_table("accuracy", "method", ["train", "test"])
    own, away = scores["Twemoji", "Twemoji"], scores["Twemoji", "OpenMoji"]
    back = scores["OpenMoji", "Twemoji"]
    assert back["image"] < away["image"] < own["image"] - 0.2
    for shifted in (away, back):
        assert shifted["concat"] < shifted["text"] - 0.02
        assert abs(shifted["late"] - shifted["text"]) < 0.025
    assert scores["both", "OpenMoji"]["image"] > away["image"] + 0.2


def test_fusion_gains_on_photographs(results):
    stamps = pd.DataFrame(results["stamps"]).pivot_table("accuracy", "method", "kind")
    photographs = stamps["photographs"]
    assert photographs["image"] > photographs["majority"] + 0.1
    assert min(photographs["concat"], photographs["late"]) > photographs["text"]
    concat, late = (results["stamp_tests"]["photographs"][f"{one} over text"]
                    for one in ("concat", "late"))  # fmt: skip
    assert concat["pvalue"] < 0.05 / 6  # of six tests
    assert concat["groups_a"] < concat["only_a"] and concat["groups_b"] <= concat["only_b"]
    assert late["only_a"] > late["only_b"]


def test_languages(results):
    scores = table(results, "languages").groupby("language").mean(numeric_only=True)
    most = f"text, ridge, {generalisation.BRIDGE_PAIRS[-1]} pairs"
    assert (scores["text"] < scores[most]).all()
    assert (scores["concat"] < scores["image"]).all()
    assert (scores["routed"] > scores["late"]).all()
    assert scores["called foreign"]["zh"] > 0.9
    assert results["distinct_codes"]["zh"] < 0.5 * results["n_pairs"]


def test_unseen_classes_and_few_examples(results):
    unseen = table(results, "unseen").mean()
    assert 0.5 < unseen["image"] < unseen["text"] < unseen["text, trained"]
    few = table(results, "few_shot").groupby(["method", "shots"])["accuracy"].mean()
    assert few["text and description", 4] > few["text", 4] + 0.05
    assert few["text", 32] > few["both", 32] > few["image", 32]


def test_accuracy_falls_with_severity_on_average(corrupted):
    for method, kinds in (("image", IMAGE_CORRUPTIONS), ("text", TEXT_CORRUPTIONS)):
        steps = over_severity(corrupted, method, kinds).mean()
        assert (np.diff([corrupted[method, "none", 0], *steps]) < 0).all()


def test_late_fusion_has_the_lowest_corruption_error(corrupted):
    def error(method, kinds):
        accuracy = over_severity(corrupted, method, kinds)
        return {name: (1 - accuracy.loc[name]).tolist() for name in kinds}

    reference = error("image", IMAGE_CORRUPTIONS)
    late, concat = (
        mean_corruption_error(error(method, IMAGE_CORRUPTIONS), reference)
        for method in ("late", "concat")
    )
    assert late < concat < 1
    at_5 = over_severity(corrupted, "late", IMAGE_CORRUPTIONS)[5].mean()
    assert abs(at_5 - corrupted["text", "none", 0]) < 0.03


def test_augmentation_helps_and_late_fusion_needs_no_help(results, corrupted):
    helped = table(results, "remedies").groupby(["what", "remedy"])["corrupted"].mean()
    for what in ("image", "pair"):
        assert helped[what, "augmentation"] > helped[what, "none"] + 0.02
        assert abs(helped[what, "mixup"] - helped[what, "none"]) < 0.03
    late = over_severity(corrupted, "late", IMAGE_CORRUPTIONS)[generalisation.MIDDLE].mean()
    assert late > helped["pair"].max() + 0.02


def test_augmentation_helps_against_its_relatives(results):
    image = table(results, "remedies").query("what == 'image'").set_index("remedy")["by_corruption"]
    augmented, plain = (pd.DataFrame(list(image[one])).mean() for one in ("augmentation", "none"))
    gain = augmented - plain
    assert list(gain.index) == list(IMAGE_CORRUPTIONS)
    related = [name for name in IMAGE_CORRUPTIONS if "noise" in name or "blur" in name]
    assert gain[related].min() > 0.05
    assert gain[["snow", "frost", "fog", "brightness", "contrast"]].max() < 0.02


@pytest.mark.parametrize("n_groups", [7, 20])
def test_exchange_of_single_rows_is_the_sign_test(n_groups):
    right_a = np.arange(n_groups) > 1
    found = generalisation.exchange_test(right_a, ~right_a, np.arange(n_groups))
    expected = mcnemar(np.ones(n_groups), right_a, ~right_a).pvalue
    assert found["pvalue"] == pytest.approx(expected, abs=0.005)
    assert (found["only_a"], found["only_b"]) == (n_groups - 2, 2)


def test_exchange_takes_rows_of_one_group_together():
    right_a, right_b = np.ones(12, bool), np.zeros(12, bool)
    one, many = (
        generalisation.exchange_test(right_a, right_b, groups)["pvalue"]
        for groups in (np.repeat([0, 1], 6), np.arange(12))
    )
    assert one == pytest.approx(0.5, abs=0.01) and many < 0.001


def test_the_image_grows_too_sure_under_corruption(results):
    sure = table(results, "calibration").groupby(["what", "severity"]).mean()
    gap = (sure["confidence"] - sure["accuracy"]).unstack("what")
    assert gap["image"].is_monotonic_increasing
    assert gap["image"][5] > gap["image"][0] + 0.2
    assert abs(gap["pair"][5] - gap["pair"][0]) < 0.05


def test_the_distance_in_feature_space_tells_strange_pictures_and_the_softmax_does_not(results):
    auroc = table(results, "detection").groupby(["strange", "score"])["auroc"].mean().unstack()
    shifted = auroc.drop(index="scenes")
    assert (shifted["Mahalanobis"] > 0.8).all()
    assert (shifted[["softmax", "energy"]] < 0.65).all(axis=None)
    assert auroc.loc["scenes", "Mahalanobis"] < 0.65


# ---------------------------------------------------------------- what the run is made of


@pytest.mark.parametrize("how", ["procrustes", "ridge"])
def test_a_bridge_undoes_a_rotation(how, rng):
    english = normalize(rng.normal(size=(400, 6)) * [3, 1, 1, 1, 1, 0])
    turn = ortho_group.rvs(5, random_state=0)
    foreign = np.column_stack([english[:, :5] @ turn, np.zeros(400)])
    mapped = generalisation.bridge(foreign[:300] + 0.3, english[:300], how)(foreign[300:] + 0.3)
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(mapped, english[300:], atol=1e-5 if how == "procrustes" else 0.1)
    assert (mapped[:, 5] == 0).all()  # English never uses it


def test_a_bridge_of_another_kind():
    with pytest.raises(ValueError, match="got 'pca'"):
        generalisation.bridge(np.eye(3), np.eye(3), "pca")


def test_made_over_pictures_are_pictures(rng):
    picture = rng.integers(256, size=(20, 30, 3), dtype=np.uint8)
    for change in (generalisation.speckled, generalisation.blurred):
        changed = change(picture, np.random.default_rng(0))
        assert changed.shape == picture.shape
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, picture)
    black = np.zeros((4, 4, 3), np.uint8)
    assert (generalisation.speckled(black, rng) == 0).all()
