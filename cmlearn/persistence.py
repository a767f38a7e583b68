"""Save and load fitted models without pickle.

A model folder holds ``model.skops``, which scikit-learn's companion `skops` reads without
running code from the file, and ``report.json``, which says how the model was made. Keras networks
travel inside ``model.skops`` as their configuration (JSON) and their weight arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sklearn.base import BaseEstimator

from cmlearn.runtime import replace_when_whole

MODEL_FILE = "model.skops"

# Types that a model of ours may hold beyond those of NumPy, SciPy and scikit-learn that skops
# trusts. Any other is refused at loading, because a model file may come from a stranger.
TRUSTED_TYPES = frozenset(
    {
        "cmlearn.alignment.ContrastiveAlignment",
        "cmlearn.alignment.MismatchRobustClassifier",
        "cmlearn.alignment.RegularizedCCA",
        "cmlearn.alignment.ZeroShotClassifier",
        "cmlearn.calibration.TemperatureScaling",
        "cmlearn.efficiency.DistilledClassifier",
        "cmlearn.efficiency.EarlyExit",
        "cmlearn.federated.FederatedClassifier",
        "cmlearn.federated.VerticalClassifier",
        "cmlearn.finetuning.FineTunedCNN",
        "cmlearn.fusion.Fusion",
        "cmlearn.fusion.LateFusion",
        "cmlearn.fusion._CellsToMatrix",
        "cmlearn.fusion._PresentRows",
        "cmlearn.generation.FeatureGAN",
        "cmlearn.generation.ModalityImputer",
        "cmlearn.generation.NearestPrototype",
        "cmlearn.generation.RidgeGenerator",
        "cmlearn.hierarchy.FinerLabels",
        "cmlearn.image.CNNEncoder",
        "cmlearn.image.ColorHistogram",
        "cmlearn.image.HOGEncoder",
        "cmlearn.image.PretrainedCNN",
        "cmlearn.image.SIFTBagOfWords",
        "cmlearn.models.FusionClassifier",
        "cmlearn.models.NeuralClassifier",
        "cmlearn.privacy.DPClassifier",
        "cmlearn.shift.MahalanobisDetector",
        "cmlearn.shift.NeighborDetector",
        "cmlearn.text.FastTextEncoder",
        "cmlearn.text.GloVeEncoder",
        "cmlearn.text.SentenceEncoder",
        "cmlearn.text.SpellingCorrector",
        "cmlearn.two_tower.TwoTowerClassifier",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        # The columns that a fitted ColumnTransformer leaves out, in scikit-learn 1.5 to 1.7.
        "sklearn.compose._column_transformer._RemainderColsList",
        # What scikit-learn's nearest neighbours keep.
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.neighbors._kd_tree.KDTree",
    }
)


class ModelFileError(ValueError):
    """A model folder is missing, damaged, or holds something that is not trusted."""


def save_model(model: BaseEstimator, folder: str | Path) -> Path:
    """Write a fitted estimator to ``folder/model.skops``.

    Parameters
    ----------
    model : estimator
        A fitted scikit-learn or cmlearn estimator, usually a `Pipeline`.
    folder : path
        Created when it is not there.

    Returns
    -------
    Path
        The file written. It appears under its name only when it is whole.

    Raises
    ------
    ModelFileError
        If the model holds something that skops cannot write, for instance a DataFrame, or that
        `load_model` would refuse, for instance a function of your own. Nothing is written then.
    """
    import skops.io

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / MODEL_FILE
    with replace_when_whole(target) as partial:
        try:
            skops.io.dump(model, partial)
        except TypeError as error:
            raise ModelFileError(
                f"{type(model).__name__} holds something that skops cannot write ({error}). "
                "Nothing was written. joblib can keep it; such a file is for your own use alone."
            ) from error
        unknown = _unknown_types(partial)
        if unknown:
            raise ModelFileError(
                f"the model holds {', '.join(unknown)}, which load_model would refuse, because a "
                "model file may come from a stranger. Nothing was written. Build the model of "
                "scikit-learn's and cmlearn's parts alone, or keep yours with skops or joblib."
            )
    return target


def load_model(folder: str | Path) -> BaseEstimator:
    """Read the estimator that `save_model` wrote.

    Parameters
    ----------
    folder : path
        The model folder.

    Returns
    -------
    estimator
        The fitted estimator; its predictions equal those before saving.

    Raises
    ------
    ModelFileError
        If `folder` is a file, the model is missing or damaged, or it names a type that is neither
        NumPy's, SciPy's, scikit-learn's nor one of `TRUSTED_TYPES`.
    """
    import skops.io

    if Path(folder).is_file():
        raise ModelFileError(f"{folder} is a file; give the folder that it is in")
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise ModelFileError(
            f"{path} does not exist. Give the folder that `python -m cmlearn train … --out` wrote."
        )
    with _naming_damage(path):
        unknown = _unknown_types(path)
    if unknown:
        raise ModelFileError(
            f"{path} holds types that cmlearn does not trust: {', '.join(unknown)}. "
            "Nothing was loaded. Load only models from people whom you know."
        )
    with _naming_damage(path):
        return skops.io.load(path, trusted=sorted(TRUSTED_TYPES))


def _unknown_types(path: Path) -> list[str]:
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(file=path)) - TRUSTED_TYPES)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a damaged file leads to whatever its readers stumble over
        raise ModelFileError(
            f"{path} is not a whole skops file ({error}). Train the model again, or copy the "
            "folder again."
        ) from error
