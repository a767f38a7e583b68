"""Google's accountant, asked in its own environment: ``make privacy-check`` builds it.

A script for that environment's Python, without `cmlearn`: it reads a JSON list of mechanisms from
standard input and writes their epsilons, each by Rényi divergences and by the distribution of the
privacy loss.
"""

import json
import sys

import dp_accounting
from dp_accounting import pld, rdp


def epsilons(case: dict) -> dict[str, float]:
    step = dp_accounting.PoissonSampledDpEvent(
        case["sampling_rate"], dp_accounting.GaussianDpEvent(case["noise_multiplier"])
    )
    accountants = {
        "rdp": rdp.RdpAccountant(),
        "rdp_same_orders": rdp.RdpAccountant(case["orders"]),
        "pld": pld.PLDAccountant(value_discretization_interval=case.get("interval", 1e-4)),
    }
    return {
        name: accountant.compose(step, case["steps"]).get_epsilon(case["delta"])
        for name, accountant in accountants.items()
    }


if __name__ == "__main__":
    json.dump([epsilons(case) for case in json.load(sys.stdin)], sys.stdout)
