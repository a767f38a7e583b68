"""What the page on privacy claims, held against its stored run."""

import numpy as np
import pandas as pd
import pytest

from cmlearn.privacy import epsilon_spent
from cmlearn.reference import RUNS
from cmlearn.runtime import load_run

BUDGETS = ["0.5", "1", "2", "4", "8"]


@pytest.fixture(scope="module")
def results():
    return load_run(RUNS / "privacy.json")["results"]


@pytest.fixture(scope="module")
def by_seed(results):
    assert len(results["by_seed"]) >= 3
    return pd.DataFrame(results["by_seed"])


@pytest.fixture(scope="module")
def accuracy(by_seed):
    names = by_seed["accuracy"][0]
    return {name: pd.DataFrame([one[name] for one in by_seed["accuracy"]]).mean() for name in names}


@pytest.mark.parametrize("kind", ["image", "text", "fused"])
def test_a_larger_budget_is_more_accurate(accuracy, kind):
    means = accuracy[kind]
    assert means["0.5"] < means["1"] < means["2"] < means["8"] + 0.01


def test_the_text_beats_the_fusion_under_the_strictest_budget_alone(accuracy):
    assert accuracy["fused"]["0.5"] < accuracy["text"]["0.5"]
    assert accuracy["fused"]["2"] > accuracy["text"]["2"] + 0.03
    assert accuracy["fused"]["8"] > accuracy["text"]["8"] + 0.03


def test_clipping_alone_costs_the_image(accuracy):
    assert accuracy["image"]["none"] < accuracy["image"]["logistic regression"] - 0.05


def attack(by_seed, kind):
    drawn = by_seed["attack"]
    assert len(drawn) >= 3
    return pd.DataFrame([{name: one[kind] for name, one in seed.items()} for seed in drawn])


def test_the_attack_finds_less_under_a_smaller_budget(by_seed):
    order = ["0.5", "2", "8", "none", "no noise, no clipping", "the same, four times as long"]
    means = attack(by_seed, "advantage").mean()[order]
    assert means.is_monotonic_increasing and means["0.5"] < 0.03 < 0.15 < means.iloc[-1]
    found = attack(by_seed, "tpr_at_1%").mean()
    assert found["1"] < found["8"] < found[order[-2]] < found[order[-1]]
    assert found["1"] < 0.015 < 0.05 < found[order[-1]]


def test_no_attack_exceeds_its_limit(by_seed):
    found = attack(by_seed, "advantage")
    for budget in BUDGETS:
        factor = np.exp(float(budget))
        assert found[budget].max() <= (factor - 1 + 2e-5) / (factor + 1)


def test_twelve_trainings_cost_more_than_one(by_seed):
    table = pd.concat([pd.DataFrame(one) for one in by_seed["settings"]])
    means = table.groupby(["clipping_norm", "learning_rate"])["accuracy"].mean()
    assert len(means) == 12 and means.max() > means.min() + 0.2
    plan = {"sampling_rate": 0.2, "noise_multiplier": 10.0}
    assert epsilon_spent(steps=12 * 150, **plan) > 3 * epsilon_spent(steps=150, **plan)


def test_skewed_clients_stay_behind_and_local_epochs_help(by_seed):
    last = pd.DataFrame(
        [{one["name"]: one["accuracy"][-1] for one in seed} for seed in by_seed["federated"]]
    ).mean()
    assert last["skew 0.1"] < last["skew 1"] - 0.05
    assert abs(last["skew 100"] - last["in one place"]) < 0.05
    assert last["skew 0.1, 1 local epochs"] < last["skew 0.1"]


def test_federation_saves_no_traffic_here(by_seed):
    plan = next(one for one in by_seed["federated"][0] if one["name"] == "skew 100")
    features = by_seed["vertical"][0]["bytes of the features"]
    assert 20 * plan["bytes_per_round"] > features
    assert 60 * by_seed["vertical"][0]["bytes of an epoch"] > features


def test_scores_of_two_holders_are_worth_training_together(by_seed):
    means = pd.DataFrame(list(by_seed["vertical"])).mean()
    assert abs(means["scores added up"] - means["trained together"]) < 0.04
    assert min(means["scores added up"], means["trained together"]) > means["text alone"] + 0.03
