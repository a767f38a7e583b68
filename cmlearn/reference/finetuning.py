"""Fine-tuned networks on the photographs of groceries, with and without teachers.

Made of parts, a network each, that are stored under ``_build/reference/finetuning`` as they are
done; a part that is interrupted goes on from its last epoch. ``--minutes 9`` stops after nine
minutes, and the same command goes on from there. What must be at hand: the data set where
``CMLEARN_DATA`` says, the weights (``python -m cmlearn fetch efficientnet-lite0 efficientnet-lite2
minilm``), Keras with any of its backends. No network is asked for anything then.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import accuracy_score

from cmlearn import finetuning
from cmlearn.datasets import load_grocery
from cmlearn.finetuning import FineTunedCNN, coarse_to_fine, family_probabilities, load_pixels
from cmlearn.image import PretrainedCNN
from cmlearn.reference.grocery import trade_off, unseen_kinds, zero_shot_scores
from cmlearn.runtime import (
    device,
    peak_gpu_memory,
    peak_memory,
    replace_when_whole,
    save_run,
)
from cmlearn.text import SentenceEncoder

WORK = Path(__file__).resolve().parents[2] / "_build" / "reference" / "finetuning"
SEEDS = (0, 1, 2)
SOURCES = [
    f"cmlearn/{module}.py"
    for module in (
        "_augmentation",
        "_checkpoints",
        "_finetuning_layers",
        "_sentences",
        "_training",
        "datasets/_grocery",
        "efficientnet",
        "finetuning",
        "image",
        "reference/finetuning",
        "reference/grocery",
        "text",
    )
]


LABELS, FAMILIES = "labels", "labels + families"
DRAWN, EVERYTHING = f"{FAMILIES} + drawn codes", f"{FAMILIES} + teachers"

# What each network learns from beside the labels: parameters, and where `Data` holds them.
METHODS = {
    LABELS: {},
    FAMILIES: {"families": "families"},
    DRAWN: {"families": "families", "teachers": "drawn"},
    EVERYTHING: {"families": "families", "teachers": "teachers"},
}
WEIGHT = 0.5  # of the family's loss and of the teachers'


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is computed on one kind of machine."""

    variants: dict[str, int]  # network: pixels a side
    epochs: int
    batch_size: int
    drop_path: float
    augmentation: float = 0.3
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = SEEDS


CPU = Size({"lite0": 160}, 8, 32, drop_path=0.0)
GPU = Size({"lite0": 320, "lite2": 384}, 60, 64, drop_path=0.2)


class Data(NamedTuple):
    """The photographs of one size, and what is known of their kinds."""

    pixels: dict[str, np.ndarray]  # by part of the official split
    target: dict[str, np.ndarray]
    families: np.ndarray  # of each kind
    family_names: list[str]
    teachers: np.ndarray  # of each kind
    drawn: np.ndarray  # the teachers, dealt out to the kinds by chance


def run(path: Path) -> None:
    """Train what is not trained yet, and store the scores."""
    size = GPU if device().startswith("GPU") else CPU
    folder = WORK / ("gpu" if size is GPU else "cpu")
    on_gpu = {}
    for variant, pixels in size.variants.items():
        data = read_data(pixels)
        for method, seed in parts(size):
            train_part(folder, variant, method, seed, data, size)
        for seed in size.seeds:
            train_without(folder, variant, seed, data, size)
        if size is GPU:
            on_gpu[variant] = measure(data, variant, pixels, size)
    results = summary(folder, data, size)
    if on_gpu:
        results["gpu"] = on_gpu
    trained = [*results["networks"].values(), *results["unseen"].values()]
    save_run(
        path, results, sources=SOURCES, seconds=sum(sum(found["seconds"]) for found in trained)
    )


def parts(size: Size) -> Iterator[tuple[str, int]]:
    """Yield method and seed of every network; all methods of one seed come together."""
    for seed in size.seeds:
        for method in size.methods:
            yield method, seed


def read_data(size: int) -> Data:
    """Read the photographs of every part of the split, and the codes of the kinds."""
    grocery = load_grocery()
    rows = {split: np.flatnonzero(grocery.split == split) for split in ("train", "val", "test")}
    images = grocery.data["image"].to_numpy()
    teachers = teacher_codes(grocery.classes)
    return Data(
        {split: load_pixels(images[chosen], size) for split, chosen in rows.items()},
        {split: grocery.target[chosen] for split, chosen in rows.items()},
        grocery.coarse_of_fine,
        grocery.coarse_names,
        teachers,
        np.random.default_rng(0).permutation(teachers),
    )


def teacher_codes(classes) -> np.ndarray:
    """Return what is known of each kind: the codes of its description and of its iconic picture."""
    texts = SentenceEncoder().fit_transform(classes["description"])
    icons = PretrainedCNN("efficientnet-lite0").fit_transform(classes["icon"])
    icons = icons - icons.mean(axis=0)
    texts = texts - texts.mean(axis=0)
    return np.hstack(
        [codes / np.linalg.norm(codes, axis=1, keepdims=True) for codes in (texts, icons)]
    )


def part_file(folder: Path, variant: str, method: str, seed: int) -> Path:
    """Return where the answers of one network are kept."""
    name = method.replace(" + ", "-").replace(" ", "-")
    return folder / f"{variant}-{name}-{seed}.npz"


def train_part(folder: Path, variant: str, method: str, seed: int, data: Data, size: Size) -> None:
    """Train one network, unless it has been trained, and keep its answers on the test set."""
    file = part_file(folder, variant, method, seed)
    if file.exists():
        return
    start = time.monotonic()
    known = {name: getattr(data, field) for name, field in METHODS[method].items()}
    classifier = untrained(file, variant, seed, size, **known)
    classifier.fit(data.pixels["train"], data.target["train"])
    views = finetuning.augmented_views(data.pixels["test"])
    answers = {
        "val": classifier.predict_proba(data.pixels["val"]),
        "test": np.stack([classifier.predict_proba(view) for view in views]),
    }
    with replace_when_whole(file) as partial:
        np.savez(
            partial,
            **answers,
            loss=classifier.history_["loss"],
            accuracy=classifier.history_["accuracy"],
            seconds=time.monotonic() - start,
            device=device(),
        )
    scores = accuracies(answers["test"][0], data.target["test"], data.families)
    print(f"{variant}, {method}, seed {seed}: {scores}", flush=True)


def train_without(folder: Path, variant: str, seed: int, data: Data, size: Size) -> None:
    """Train a network on some of the kinds, and keep how like each kind the test photographs are.

    The kinds that are held out are those of the frozen features' run with the same seed.
    """
    file = unseen_file(folder, variant, seed)
    if file.exists():
        return
    start = time.monotonic()
    n_kinds, target = len(data.families), data.target["train"]
    seen = np.setdiff1d(np.arange(n_kinds), unseen_kinds(n_kinds, seed))
    train = np.isin(target, seen)
    classifier = untrained(
        file, variant, seed, size, families=data.families[seen], teachers=data.teachers[seen]
    )
    classifier.fit(data.pixels["train"][train], target[train])
    likeness = classifier.similarities(data.pixels["test"], data.teachers)
    with replace_when_whole(file) as partial:
        np.savez(partial, likeness=likeness, seconds=time.monotonic() - start, device=device())
    scores = zero_shot_scores(likeness, data.target["test"], unseen_kinds(n_kinds, seed))
    print(f"{variant}, kinds held out, seed {seed}: {scores}", flush=True)


def unseen_file(folder: Path, variant: str, seed: int) -> Path:
    """Return where the answers of a network are kept that did not see all kinds."""
    return folder / f"{variant}-unseen-{seed}.npz"


def untrained(file: Path, variant: str, seed: int, size: Size, **known) -> FineTunedCNN:
    """Return the classifier of one part; ``known`` is what it learns from beside the labels."""
    return FineTunedCNN(
        variant,
        epochs=size.epochs,
        batch_size=size.batch_size,
        drop_path=size.drop_path,
        augmentation=size.augmentation,
        checkpoint=file.with_suffix(".training"),
        random_state=seed,
        family_weight=WEIGHT,
        teacher_weight=WEIGHT,
        **known,
    )


def accuracies(probabilities: np.ndarray, target: np.ndarray, families: np.ndarray) -> dict:
    """Return the accuracies of fine and coarse answers, made in each of the two orders."""
    fine, stepwise = probabilities.argmax(axis=1), coarse_to_fine(probabilities, families)
    coarse = family_probabilities(probabilities, families).argmax(axis=1)
    return {
        "fine": accuracy_score(target, fine),
        "coarse": accuracy_score(families[target], families[fine]),
        "coarse to fine": accuracy_score(target, stepwise),
        "sum over the family": accuracy_score(families[target], coarse),
    }


def summary(folder: Path, data: Data, size: Size) -> dict:
    """Return the scores of every method, of its ensembles, and what the teachers bring."""
    target, families = data.target["test"], data.families
    networks = {}
    together: dict[str, list[np.ndarray]] = {method: [] for method in size.methods}
    right: dict[str, np.ndarray] = {}
    for variant in size.variants:
        for method in size.methods:
            found = [load_part(part_file(folder, variant, method, seed)) for seed in size.seeds]
            plain = [part["test"][0] for part in found]
            viewed = [part["test"].mean(axis=0) for part in found]
            together[method] += viewed
            right[f"{variant}, {method}"] = np.mean(
                [p.argmax(axis=1) == target for p in plain], axis=0
            )
            networks[f"{variant}, {method}"] = {
                "single": [accuracies(p, target, families) for p in plain],
                "views": [accuracies(p, target, families) for p in viewed],
                "ensemble": accuracies(np.mean(viewed, axis=0), target, families),
                "validation": [
                    accuracies(part["val"], data.target["val"], families) for part in found
                ],
                "loss": [part["loss"] for part in found],
                "train accuracy": [part["accuracy"] for part in found],
                "seconds": [float(part["seconds"]) for part in found],
                "device": sorted({str(part["device"]) for part in found}),
            }
    return {
        "size": dataclasses.asdict(size),
        "networks": networks,
        "ensembles": {
            method: accuracies(np.mean(all_views, axis=0), target, families)
            for method, all_views in together.items()
        },
        "gains": {
            f"{variant}, {method} over {base}": gain(
                right[f"{variant}, {method}"], right[f"{variant}, {base}"]
            )
            for variant in size.variants
            for base, method in itertools.combinations(size.methods, 2)
        },
        "unseen": {variant: unseen(folder, variant, data, size) for variant in size.variants},
        "families": data.family_names,
        "recall": recall_by_family(right, data),
        "peak_memory_mib": round(peak_memory() / 2**20),
    }


def unseen(folder: Path, variant: str, data: Data, size: Size) -> dict[str, list]:
    """Return the scores of the networks that did not see all kinds, by seed."""
    found = [load_part(unseen_file(folder, variant, seed)) for seed in size.seeds]
    asked = [
        (part["likeness"], data.target["test"], unseen_kinds(len(data.families), seed))
        for part, seed in zip(found, size.seeds, strict=True)
    ]
    return {
        "scores": [zero_shot_scores(*question) for question in asked],
        "trade_offs": [trade_off(*question) for question in asked],
        "seconds": [float(part["seconds"]) for part in found],
        "device": sorted({str(part["device"]) for part in found}),
    }


def load_part(file: Path) -> dict[str, np.ndarray]:
    """Return what `train_part` kept."""
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def gain(with_it: np.ndarray, without: np.ndarray) -> dict[str, float]:
    """Return the mean difference of two methods' shares of right answers, with an interval.

    Each photograph counts once, with its mean over the seeds, so that the interval is that of the
    choice of photographs.
    """
    rng = np.random.default_rng(0)
    difference = with_it - without
    drawn = rng.integers(len(difference), size=(2000, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])
    return {"gain": float(difference.mean()), "low": float(low), "high": float(high)}


def recall_by_family(right: dict[str, np.ndarray], data: Data) -> dict[str, list[float]]:
    """Return for each method the share of right answers in each family of the test set."""
    family = data.families[data.target["test"]]
    return {
        name: [float(share[family == one].mean()) for one in range(family.max() + 1)]
        for name, share in right.items()
    }


# --- What a GPU reaches --------------------------------------------------------------------------


def measure(data: Data, variant: str, pixels: int, size: Size) -> dict:
    """Measure training steps in both precisions beside the ceiling of the machine.

    Every time is the median of 30 steps after 10 that are not counted; copying the batch to the
    device counts, since a training has to do it.
    """
    import keras

    results: dict = {}
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        network = training_network(variant, pixels, len(data.families), size.drop_path)
        batch = data.pixels["train"][: size.batch_size]
        labels = {"label": data.target["train"][: size.batch_size]}
        step = median_seconds(lambda net=network, x=batch, y=labels: net.train_on_batch(x, y))
        ceiling = matmul_rate("float32" if policy == "float32" else "float16")
        work = 3 * operations(network) * size.batch_size
        results[policy] = {
            "step_seconds": step,
            "images_per_second": size.batch_size / step,
            "operations_per_second": work / step,
            "ceiling_operations_per_second": ceiling,
            "share_of_ceiling": work / step / ceiling,
        }
    keras.config.set_dtype_policy("float32")
    prepare = median_seconds(lambda: data.pixels["train"][np.arange(size.batch_size)])
    step = results["mixed_float16"]["step_seconds"]
    results["busy_in_turn"] = step / (step + prepare)
    results["peak_gpu_memory_mib"] = round((peak_gpu_memory() or 0) / 2**20)
    return results


def training_network(variant: str, pixels: int, n_classes: int, drop_path: float):
    """Return the network that a classifier trains on labels alone, compiled."""
    classifier = FineTunedCNN(variant, drop_path=drop_path, random_state=0)
    classifier.classes_ = np.arange(n_classes)
    network, _ = classifier._build(pixels)
    classifier._compile(network, n_steps=1000)
    return network


def operations(network) -> int:
    """Return the operations of the convolutions of one image, two for each multiplication."""
    total = 0
    for layer in network.layers:
        if hasattr(layer, "layers"):
            total += operations(layer)
        elif len(getattr(layer, "kernel", np.empty(0)).shape) == 4:
            total += 2 * np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:-1])
    return int(total)


def median_seconds(action, warm_up: int = 10, repeats: int = 30) -> float:
    """Return the median time of an action that was done some times before."""
    times = []
    for repeat in range(warm_up + repeats):
        start = time.perf_counter()
        action()
        if repeat >= warm_up:
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def matmul_rate(dtype: str, side: int = 8192) -> float:
    """Return the operations a second of a large matrix product."""
    from keras import ops

    matrix = ops.ones((side, side), dtype=dtype)
    seconds = median_seconds(lambda: float(ops.convert_to_numpy(ops.matmul(matrix, matrix)[0, 0])))
    return 2 * side**3 / seconds
