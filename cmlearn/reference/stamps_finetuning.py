"""A network trained on with the stamps' pictures: alone, and beside the frozen encoders' machines.

Made of parts, a network each, that are stored under ``_build/reference/stamps_finetuning`` as they
are done; a part that is interrupted goes on from its last epoch. The folds are those of the run
``stamps``, so that both can be compared fold by fold.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.metrics import accuracy_score

from cmlearn.comparison import fused
from cmlearn.datasets import load_stamps
from cmlearn.finetuning import FineTunedCNN, augmented_views, load_pixels
from cmlearn.fusion import feature_table
from cmlearn.image import PretrainedCNN
from cmlearn.metrics import macro_f1
from cmlearn.model_selection import _parts, paired_tests
from cmlearn.reference import stamps as frozen
from cmlearn.reference.finetuning import load_part
from cmlearn.reference.methods import summary
from cmlearn.runtime import device, replace_when_whole, save_run

WORK = Path(__file__).resolve().parents[2] / "_build" / "reference" / "stamps_finetuning"
SIDE = 160  # pixels
EPOCHS = 5
REPEATS = 3
SMOOTHING = 0.1
PAPER = 255  # white
FROZEN = frozen.BEST
BOTH = f"{FROZEN} + fine-tuned"
SMALL = f"white alone, {SIDE} px"
# What `summary` asks for beside, and nobody took down here.
NOT_MEASURED = dict.fromkeys(["calibration_error", "fit_seconds", "predict_seconds"], np.nan)
SOURCES = sorted(
    {
        *frozen.SOURCES,
        *(
            f"cmlearn/{module}.py"
            for module in (
                "_augmentation",
                "_checkpoints",
                "_finetuning_layers",
                "_training",
                "finetuning",
                "reference/stamps_finetuning",
            )
        ),
    }
)


def run(path: Path) -> None:
    """Train what is not trained yet, and store the scores."""
    stamps = load_stamps()
    labels = np.asarray(stamps.target_names)[stamps.target]
    table = frozen.stamps_table(stamps)
    pixels = load_pixels([frozen.on_paper(p, PAPER) for p in stamps.data["image"]], SIDE)
    network, layer, _ = frozen.VIEWS["white"]
    encoder = PretrainedCNN(network, layer=layer, image_size=SIDE)
    small = feature_table(small=encoder.fit_transform(pixels))
    rows, parts = [], []
    for repeat, fold, train, test in folds(labels, stamps.groups):
        file = WORK / f"{repeat}-{fold}.npz"
        if not file.exists():
            train_part(file, pixels, table, labels, train, test, seed=repeat)
        parts.append(load_part(file))
        machine = fused(["small"]).fit(small.iloc[train], labels[train])
        parts[-1][SMALL] = machine.decision_function(small.iloc[test])
        key = {"repeat": repeat, "fold": fold, "n_train": len(train), "n_test": len(test)}
        for method, guess in answers(parts[-1], np.unique(labels)).items():
            truth = labels[test]
            found = {"accuracy": accuracy_score(truth, guess), "macro_f1": macro_f1(truth, guess)}
            rows.append(key | {"method": method} | found)
    scores = pd.DataFrame(rows).assign(train_size=1.0, variant="as it is", **NOT_MEASURED)
    results = {
        "side": SIDE,
        "epochs": EPOCHS,
        "repeats": REPEATS,
        "n_pairs": len(labels),
        "fingerprint": stamps.fingerprint,
        "scores": summary(scores),
        "tests": {
            name: paired_tests(scores, reference=name).set_index("method").to_dict("index")
            for name in (FROZEN, SMALL)
        },
        "train_accuracy": [float(part["train_accuracy"]) for part in parts],
        "seconds": [float(part["seconds"]) for part in parts],
    }
    save_run(path, results, sources=SOURCES, seconds=sum(results["seconds"]))
    print(scores.groupby("method")["accuracy"].mean().round(4).to_string())


def folds(labels: np.ndarray, groups: np.ndarray) -> Iterator[tuple]:
    """Yield repeat, fold, training rows and test rows, as `compare_methods` divides them."""
    for repeat, fold, _, train, test in _parts(labels, groups, frozen.FOLDS, REPEATS, None, 0):
        yield repeat, fold, train, test


def train_part(
    file: Path,
    pixels: np.ndarray,
    table: pd.DataFrame,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
) -> None:
    """Train one network and the frozen encoders' machines, and keep their answers on a fold."""
    start = time.monotonic()
    network = FineTunedCNN(
        epochs=EPOCHS,
        label_smoothing=SMOOTHING,
        checkpoint=file.with_suffix(".training"),
        random_state=seed,
    )
    network.fit(pixels[train], labels[train])
    margins = {}
    for name, method in machines().items():
        method.fit(table.iloc[train], labels[train])
        margins[name] = method.decision_function(table.iloc[test])
    file.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_whole(file) as partial:
        np.savez(
            partial,
            probabilities=[network.predict_proba(v) for v in augmented_views(pixels[test])],
            train_accuracy=network.history_["accuracy"][-1],
            seconds=time.monotonic() - start,
            device=device(),
            **margins,
        )
    print(f"{file.stem}: {time.monotonic() - start:.0f} s", flush=True)


def machines() -> dict:
    """Return the frozen encoders' machines that the network is compared and fused with."""
    return {
        "white alone": fused(["white"]),
        "minilm alone": fused(["minilm"]),
        **{view: fused([view, "minilm"]) for view in frozen.VIEWS},
    }


def network_margins(probabilities: np.ndarray, smoothing: float = SMOOTHING) -> np.ndarray:
    r"""Return a network's probabilities on the scale of a support vector machine's margins.

    Parameters
    ----------
    probabilities : ndarray of shape (n, n_classes)
        Of a network that was trained with smoothed labels.
    smoothing : float in (0, 1)
        The share :math:`\varepsilon` that was spread over all :math:`K` classes.

    Returns
    -------
    ndarray of shape (n, n_classes)
        Log-odds, shifted and scaled so that what the training aims at for the right class,
        :math:`1 - \varepsilon + \varepsilon / K`, is 1 and for a wrong one,
        :math:`\varepsilon / K`, is -1.

    Examples
    --------
    >>> network_margins(np.array([[0.95, 0.05]]), smoothing=0.1)
    array([[ 1., -1.]])
    """
    low = smoothing / probabilities.shape[1]
    bottom, top = logit(low), logit(1 - smoothing + low)
    return 2 * (logit(np.clip(probabilities, 1e-6, 1 - 1e-6)) - bottom) / (top - bottom) - 1


def answers(part: dict[str, np.ndarray], classes: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each method says about a test fold, by name.

    The network is one more machine beside the frozen ones: their fusion is the mean of all.
    """
    network = network_margins(part["probabilities"].astype(float).mean(axis=0))
    joint = [part[view] for view in frozen.VIEWS]
    scores = {
        "white alone": part["white alone"],
        SMALL: part[SMALL],
        "fine-tuned": network_margins(part["probabilities"][0].astype(float)),
        "fine-tuned, four views": network,
        "minilm alone": part["minilm alone"],
        "fine-tuned + minilm": (network + part["minilm alone"]) / 2,
        FROZEN: np.mean(joint, axis=0),
        BOTH: np.mean([*joint, network], axis=0),
    }
    return {name: classes[found.argmax(axis=1)] for name, found in scores.items()}
