"""Federated averaging by Flower, in its own environment: ``make federated-check`` builds it.

A script for that environment's Python, without `cmlearn`: it reads features, one-hot labels and the
client of each row from an .npz file, lets Flower's simulation train a softmax regression with full
batches, and writes the weights after every round to another.
"""

import os
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.app.message import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


def simulate(source: str, target: str) -> None:
    """Train on the rows in the file `source`, and write the file `target`."""
    given = dict(np.load(source))
    n_clients = int(given["client"].max()) + 1
    n_rounds, local_epochs = int(given["n_rounds"]), int(given["local_epochs"])
    learning_rate = float(given["learning_rate"])
    clients, server = ClientApp(), ServerApp()

    @clients.train()
    def train(message, context):
        own = given["client"] == context.node_config["partition-id"]
        X, labels = given["X"][own], given["labels"][own]
        weights = message.content["arrays"].to_numpy_ndarrays()[0]
        for _ in range(local_epochs):
            scores = X @ weights.T
            chances = np.exp(scores - scores.max(axis=1, keepdims=True))
            chances /= chances.sum(axis=1, keepdims=True)
            weights = weights - learning_rate * (chances - labels).T @ X / len(X)
        content = {
            "arrays": ArrayRecord.from_numpy_ndarrays([weights]),
            "metrics": MetricRecord({"num-examples": len(X)}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    @server.main()
    def serve(grid, context):
        rounds = []

        def keep(number, arrays):
            rounds.append(arrays.to_numpy_ndarrays()[0])

        start = np.zeros((given["labels"].shape[1], given["X"].shape[1]))
        FedAvg(
            fraction_evaluate=0.0, min_train_nodes=n_clients, min_available_nodes=n_clients
        ).start(
            grid, ArrayRecord.from_numpy_ndarrays([start]), num_rounds=n_rounds, evaluate_fn=keep
        )
        np.savez(target, rounds=rounds[-n_rounds:])

    run_simulation(server, clients, n_clients, backend_config={"client_resources": {"num_cpus": 1}})


if __name__ == "__main__":
    simulate(*sys.argv[1:])
