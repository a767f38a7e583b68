"""What the page on explanations claims, held against its stored run."""

import numpy as np
import pandas as pd
import pytest

from cmlearn.reference import RUNS, interpretability
from cmlearn.runtime import load_run


@pytest.fixture(scope="module")
def results():
    return load_run(RUNS / "interpretability.json")["results"]


@pytest.fixture(scope="module")
def by_seed(results):
    seeds = results["by_seed"]
    assert len(seeds) == len(results["seeds"]) >= 3
    return pd.DataFrame(seeds)


def over_seeds(column):
    return pd.DataFrame(list(column))


def areas(column, kind):
    return pd.DataFrame([{name: one[kind] for name, one in seed.items()} for seed in column])


def test_shapley_values_sum_to_the_difference(by_seed):
    assert by_seed["largest_gap"].max() < 1e-6
    values = over_seeds(by_seed["values"])
    np.testing.assert_allclose(
        values["image"] + values["text"], values["both"] - values["nothing"], atol=1e-6
    )
    games = over_seeds(by_seed["accuracy_game"])
    np.testing.assert_allclose(games["image"] + games["text"], games["both"] - games["nothing"])


def test_the_pair_network_leans_on_the_picture_in_every_seed(by_seed):
    assert (by_seed["image_share"] > 0.5).all()
    games = over_seeds(by_seed["accuracy_game"])
    assert (games["image"] > games["text"]).all()


def test_maps_change_when_the_weights_are_shuffled_and_controls_do_not(by_seed):
    forgetting = over_seeds(by_seed["cnn_forgetting"])
    controls = ["edges of the picture", "random"]
    np.testing.assert_allclose(forgetting[controls], 1)
    assert (forgetting.drop(columns=controls).abs() < 0.6).all().all()
    deep = over_seeds(by_seed["pair_forgetting"])
    np.testing.assert_allclose(deep["edges of the picture"], 1)


def test_ranking_by_deletion_differs_from_that_by_insertion(by_seed):
    deletion, insertion = (areas(by_seed["cnn_areas"], kind) for kind in KINDS)
    order = ["occlusion", "Grad-CAM", "integrated gradients", "random"]
    for better, worse in zip(order, order[1:], strict=False):
        assert (insertion[better] > insertion[worse]).all()
    mean = deletion.mean()
    assert abs(mean["integrated gradients"] - mean["occlusion"]) < 0.03
    assert max(mean["integrated gradients"], mean["occlusion"]) < mean["random"] - 0.03
    assert abs(mean["Grad-CAM"] - mean["random"]) < 0.03


KINDS = ("deletion", "insertion")


def test_the_gap_of_integrated_gradients_closes_and_is_larger_for_the_deep_network(results):
    small, deep = results["gaps"]["small CNN"], results["gaps"]["EfficientNet-Lite0"]
    assert small["128"] < 1e-2 < small["8"]
    assert deep["64"] > max(small["64"], deep["32"])


def test_the_clever_hans_is_found(by_seed):
    scores = over_seeds(by_seed["hans"])
    by_mark = scores["marked class as collected"] - scores["marked class clean"]
    assert by_mark.mean() > 0.3 and by_mark.min() > 0.1
    assert (scores["accuracy as collected"] > scores["accuracy clean"]).all()
    inside = over_seeds(by_seed["hans_inside"]).mean()
    box = interpretability.watermark_box().mean()
    assert inside["integrated gradients"] > 5 * box
    assert inside["integrated gradients"] > inside["Grad-CAM"] > 3 * box


def test_the_pair_network_uses_the_mark_less_and_the_share_of_the_picture_tells(by_seed):
    alone, scores = over_seeds(by_seed["hans"]), over_seeds(by_seed["pair_hans"])
    assert (scores["marked class as collected"] > scores["marked class clean"]).all()
    assert (scores["marked class clean"] > 0.5).all()
    fooled, honest = (scores[f"others taken for it when {kind}"] for kind in ("marked", "clean"))
    assert (honest < fooled).all() and (fooled < 0.1).all()
    assert (fooled < alone["others taken for it when marked"]).all()
    shares = over_seeds(by_seed["pair_hans_image_share"])
    assert (shares["marked class"] > shares["marked class, honest network"] + 0.08).all()
    assert ((shares["others"] - shares["others, honest network"]).abs() < 0.02).all()
    moved = over_seeds(by_seed["pair_hans_image_share_moved"])
    np.testing.assert_allclose(
        moved["Food & Drink"], shares["marked class"] - shares["marked class, honest network"]
    )
    assert moved.drop(columns="Food & Drink").abs().max(axis=None) < moved["Food & Drink"].min() / 2


def test_the_watermark_lies_in_its_box_and_grows_with_the_picture():
    for size in (36, 72):
        images = np.full((2, size, size, 3), 255, np.uint8)
        marked = interpretability.plant_watermark(images)
        changed = (marked != images).any(axis=-1)
        assert (images == 255).all()
        np.testing.assert_array_equal(changed[0], changed[1])
        assert changed[0].sum() == interpretability._MARK.sum() * (size // 36) ** 2
    box = interpretability.watermark_box()
    small = interpretability.plant_watermark(np.full((1, 36, 36, 3), 255, np.uint8))[0, ..., 0]
    assert (small[~box] == 255).all() and (small[box] < 255).any()
    maps = np.stack([box * 1.0, ~box * 1.0, np.zeros((36, 36)), -1.0 * box])
    np.testing.assert_allclose(interpretability.inside_share(maps, box), [1, 0, 0, 0])
