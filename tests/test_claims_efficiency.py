"""What the page on efficiency claims, held against its stored run and that of all methods."""

import numpy as np
import pandas as pd
import pytest

from cmlearn.efficiency import pareto_front
from cmlearn.reference import RUNS
from cmlearn.reference.methods import BEST
from cmlearn.runtime import load_run

CONCAT = "cnn + glove: network, concat"
TENSOR = "cnn + glove: network, tensor"
MARGINS = "cnn + glove: margins of all sets"


@pytest.fixture(scope="module")
def stored():
    run = load_run(RUNS / "efficiency.json")
    assert run["results"]["repeats"] >= 3
    return run["results"]


@pytest.fixture(scope="module")
def plot(stored):
    compared = load_run(RUNS / "methods.json")["results"]["scores"]
    costs = pd.DataFrame(stored["costs"]).T
    costs = costs[~costs.index.str.contains("units")].copy()
    costs["accuracy"] = [(compared | stored["scores"])[name]["accuracy"] for name in costs.index]
    return costs


def test_the_run_is_of_this_code():
    assert not load_run(RUNS / "efficiency.json")["stale"]


def test_both_runs_judge_the_best_method_alike(stored):
    compared = load_run(RUNS / "methods.json")["results"]["scores"][BEST]["accuracy_by_repeat"]
    assert stored["scores"][BEST]["accuracy"] == pytest.approx(np.mean(compared[:3]), abs=0.005)


def test_words_are_the_cheap_modality_and_the_picture_the_dear_one(stored):
    words, codes, picture = (part["milliseconds_64"] for part in stored["encoders"].values())
    assert 10 * words < codes < picture


def test_a_fusion_network_is_little_work_beside_the_picture(stored, plot):
    networks = plot[plot.index.str.contains("network")]
    assert networks["flops"].max() < 0.2 * stored["encoders"]["picture"]["flops"]
    assert plot.loc[CONCAT, "flops"] < 0.001 * stored["encoders"]["picture"]["flops"]


@pytest.mark.parametrize(
    "cost", ["parameters", "flops", "bytes_1", "bytes_256", "ratio_1", "ratio_256"]
)
def test_elaborate_networks_are_on_no_front_and_the_best_machine_on_every_one(plot, cost):
    front = pd.Series(pareto_front(plot[cost], plot["accuracy"]), plot.index)
    for how in ("tensor", "bottleneck", "cross-attention"):
        assert not front[f"cnn + glove: network, {how}"]
    assert front[BEST]


def test_machines_are_more_accurate_than_networks_and_dearer(plot):
    assert plot.loc[MARGINS, "accuracy"] > plot.loc[CONCAT, "accuracy"]
    assert plot.loc[MARGINS, "flops"] > 20 * plot.loc[CONCAT, "flops"]


def test_operations_are_not_time(plot):
    assert plot.loc[TENSOR, "ratio_1"] < plot.loc[TENSOR, "flops"] / plot.loc[CONCAT, "flops"]


def test_rank_buys_accuracy_and_full_rank_gives_it_all_back(stored):
    cut = [stored["scores"][f"tensor, 16 units, cut to rank {r}"]["accuracy"] for r in (1, 4, 17)]
    assert cut[0] < cut[1]
    full = stored["scores"][f"{TENSOR}, 16 units"]["accuracy"]
    assert cut[2] == pytest.approx(full, abs=1e-3)


def test_int8_costs_less_than_two_points(stored):
    assert all(abs(test["difference"]) < 0.02 for test in stored["int8"].values())


def test_folded_network_is_faster_and_int8_smaller(stored):
    found = stored["image_network"]
    assert found["Keras, folded"]["ratio_32"] < 1
    assert found["ONNX, int8"]["bytes"] < 0.4 * found["ONNX, float32"]["bytes"]
    assert found["ONNX, int8"]["ratio_32"] < found["ONNX, float32"]["ratio_32"]


def test_the_cascade_saves_half_for_a_point(stored):
    chosen = pd.DataFrame(stored["cascade"]["chosen"]).set_index("tolerance")
    assert chosen["cost"].is_monotonic_decreasing
    assert chosen.loc[0.01, "cost"] < 0.6 * chosen.loc[0.01, "cost_of_all"]
    assert chosen.loc[0.01, "accuracy"] > chosen.loc[0.01, "accuracy_of_all"] - 0.02
