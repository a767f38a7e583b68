"""Every fusion on the emoji: parameters, operations, time a batch and accuracy, in one table.

Run it by ``python tests/bench/bench_fusion.py``. Five folds grouped by base emoji, one seed.
Fusions of vectors get a vector a picture and a name; ``bottleneck`` and ``cross-attention`` get
the positions of the picture and the words of the name, which takes most of the time.
``--epochs 5``, ``--folds 2`` and ``--how gated tensor`` make it short.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

BATCH = 64
LAYER = "block12"


def main() -> None:
    """Measure and print one line a fusion, and what low rank keeps of the tensor."""
    from cmlearn.models import FUSIONS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=5, help="how many of the five to run")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--how", nargs="+", default=list(FUSIONS), choices=FUSIONS)
    options = parser.parse_args()
    vectors, sequences, labels, groups = features()
    splits = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(vectors, labels, groups)
    folds = list(splits)[: options.folds]
    print(f"{len(labels)} emoji, {options.folds} of 5 grouped folds, one seed\n")
    print(f"{'fusion':16} {'parameters':>10} {'MFLOP/row':>10} {'ms/batch':>9} {'accuracy':>9}")
    print(
        f"{'concat, SVM':16} {'':>10} {'':>10} {'':>9} {svm_accuracy(vectors, labels, folds):9.4f}"
    )
    rows = {}
    for how in options.how:
        table = sequences if how in ("bottleneck", "cross-attention") else vectors
        rows[how] = measure(how, table, labels, folds, options.epochs)
        print("{:16} {:10,} {:10.3f} {:9.2f} {:9.4f}".format(how, *rows[how]), flush=True)
    if {"tensor", "low-rank"} <= rows.keys():
        compare(rows["low-rank"], rows["tensor"])


def features() -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray, np.ndarray]:
    """Return the emoji as vectors and as sequences, with the labels and the groups."""
    from cmlearn.datasets import load_emoji
    from cmlearn.fusion import feature_table
    from cmlearn.image import PretrainedCNN
    from cmlearn.text import GloVeEncoder

    emoji = load_emoji()
    cnn, glove = PretrainedCNN(layer=LAYER), GloVeEncoder().fit(emoji.data["text"])
    grid = cnn.fit(emoji.data["image"]).transform_grid(emoji.data["image"])
    tokens, mask = glove.transform_tokens(emoji.data["text"])
    # A name of which no word has a vector is one word of zeros.
    mask[~mask.any(axis=1), 0] = True
    vectors = feature_table(image=grid.mean(axis=1), text=glove.transform(emoji.data["text"]))
    labels = np.asarray(emoji.target_names)[emoji.target]
    return vectors, feature_table(image=grid, text=(tokens, mask)), labels, emoji.groups


def svm_accuracy(table: pd.DataFrame, labels: np.ndarray, folds: list) -> float:
    """Return the accuracy of a support vector machine on the concatenation."""
    X = np.hstack([np.stack(table["image"]), np.stack(table["text"])])
    svm = make_pipeline(StandardScaler(), SVC(C=10))
    found = [svm.fit(X[train], labels[train]).predict(X[test]) for train, test in folds]
    return accuracy_score(
        np.concatenate([labels[test] for _, test in folds]), np.concatenate(found)
    )


def measure(how: str, table: pd.DataFrame, labels: np.ndarray, folds: list, epochs: int) -> tuple:
    """Return parameters, million operations a row, milliseconds a batch, accuracy."""
    from cmlearn.models import FusionClassifier, count_flops, count_parameters

    found = []
    for train, test in folds:
        model = FusionClassifier(how, epochs=epochs, validation_fraction=0, random_state=0)
        model.fit(table.iloc[train], labels[train])
        found.append(model.predict(table.iloc[test]))
    truth = np.concatenate([labels[test] for _, test in folds])
    lengths = [np.median([1 if x.ndim == 1 else len(x) for x in table[c]]) for c in table.columns]
    flops = count_flops(model, image_length=int(lengths[0]), text_length=int(lengths[1]))
    accuracy = accuracy_score(truth, np.concatenate(found))
    return count_parameters(model), flops / 1e6, batch_milliseconds(model, table), accuracy


def batch_milliseconds(model, table: pd.DataFrame, rounds: int = 20) -> float:
    """Return the median time of one batch through the compiled network, features in memory."""
    from cmlearn.models import _stack_pairs

    inputs = model._inputs(_stack_pairs(table.iloc[:BATCH], model.cell_shapes_))
    network = model._keras_model()
    network.compile(jit_compile=False)
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        network.predict_on_batch(inputs)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[2:]))


def compare(low_rank: tuple, tensor: tuple) -> None:
    """Print whether low rank keeps the tensor's accuracy at a tenth of its parameters."""
    share, gap = low_rank[0] / tensor[0], low_rank[3] - tensor[3]
    kept = "yes" if share <= 0.1 and gap >= -0.01 else "no"
    print(
        f"\nlow-rank beside tensor: {share:.1%} of the parameters, {100 * gap:+.1f} points of "
        f"accuracy; within a point at a tenth: {kept}"
    )


if __name__ == "__main__":
    main()
