import importlib
import inspect
import json
import pkgutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

import cmlearn
from cmlearn.federated import FederatedClassifier, VerticalClassifier
from cmlearn.fusion import Fusion
from cmlearn.hierarchy import FinerLabels
from cmlearn.persistence import MODEL_FILE, TRUSTED_TYPES, ModelFileError, load_model, save_model
from cmlearn.privacy import DPClassifier
from cmlearn.shift import MahalanobisDetector, NeighborDetector
from cmlearn.text import GloVeEncoder


@pytest.fixture
def table(rng):
    return rng.normal(size=(20, 3)), np.array(["a", "乙"] * 10, dtype=object)


def test_predictions_are_those_before_saving(table, tmp_path):
    X, y = table
    model = make_pipeline(StandardScaler(), SVC(kernel="linear")).fit(X, y)
    assert save_model(model, tmp_path / "a model") == tmp_path / "a model" / MODEL_FILE
    again = load_model(tmp_path / "a model")
    np.testing.assert_array_equal(again.decision_function(X), model.decision_function(X))
    assert list(again.predict(X)) == list(model.predict(X))


def test_only_the_model_file_is_left(table, tmp_path):
    save_model(LogisticRegression().fit(*table), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_FILE]


def test_a_failed_save_leaves_the_earlier_model(table, tmp_path, monkeypatch):
    model = LogisticRegression().fit(*table)
    save_model(model, tmp_path)
    before = (tmp_path / MODEL_FILE).read_bytes()

    def write_half(model, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(skops.io, "dump", write_half)
    with pytest.raises(OSError, match="the disk is full: free some space"):
        save_model(model, tmp_path)
    assert (tmp_path / MODEL_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_FILE]


def public_estimators():
    """Return the names of all estimators that the package offers."""
    found = set()
    for module in pkgutil.iter_modules(cmlearn.__path__):
        if module.name.startswith("_") or module.ispkg:
            continue
        name = f"cmlearn.{module.name}"
        for each, thing in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            own = thing.__module__ == name and not each.startswith("_")
            if own and issubclass(thing, BaseEstimator):
                found.add(f"{name}.{each}")
    return found


def test_every_estimator_of_the_package_may_be_loaded():
    found = public_estimators()
    assert {"cmlearn.fusion.Fusion", "cmlearn.finetuning.FineTunedCNN"} <= found
    assert found <= TRUSTED_TYPES


@pytest.mark.parametrize(
    "model",
    [
        DPClassifier(random_state=0),
        FederatedClassifier(random_state=0),
        VerticalClassifier(random_state=0),
        FinerLabels(LogisticRegression(), column="kind"),
        MahalanobisDetector(),
        NeighborDetector(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_they_answer_as_before_saving(table, tmp_path, model):
    X, y = table
    X = pd.DataFrame(X, columns=["a", "b", "c"])
    if isinstance(model, FinerLabels):
        X = X.assign(kind=["small", "small", "large", "large"] * 5)
    model.fit(X, y)
    save_model(model, tmp_path)
    answer = "predict" if hasattr(model, "predict") else "score_samples"
    again = getattr(load_model(tmp_path), answer)(X)
    np.testing.assert_array_equal(again, getattr(model, answer)(X))


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    save_model(StandardScaler(), tmp_path)
    before = (tmp_path / MODEL_FILE).read_bytes()
    with pytest.raises(ModelFileError, match=r"holds .*forbidden.*Nothing was written"):
        save_model(FunctionTransformer(forbidden), tmp_path)
    assert (tmp_path / MODEL_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_FILE]


def forbidden(X):
    raise AssertionError("code of the file was run")


def test_a_function_from_elsewhere_is_refused(table, tmp_path):
    X, _ = table
    model = FunctionTransformer(forbidden)
    skops.io.dump(model, tmp_path / MODEL_FILE)
    with pytest.raises(ModelFileError, match=r"does not trust: .*forbidden.*Nothing was loaded"):
        load_model(tmp_path)


def test_a_crafted_call_is_refused(table, tmp_path):
    """A file whose schema names os.system, as an attacker would write it by hand."""
    save_model(LogisticRegression().fit(*table), tmp_path)
    with zipfile.ZipFile(tmp_path / MODEL_FILE) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    schema = json.loads(parts["schema.json"])
    schema |= {"__class__": "system", "__module__": "os"}
    with zipfile.ZipFile(tmp_path / MODEL_FILE, "w") as file:
        for name, content in (parts | {"schema.json": json.dumps(schema)}).items():
            file.writestr(name, content)
    with pytest.raises(ModelFileError, match=r"does not trust: os\.system"):
        load_model(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(table, tmp_path, kept):
    save_model(LogisticRegression().fit(*table), tmp_path)
    path = tmp_path / MODEL_FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelFileError, match=r"model\.skops is not a whole skops file"):
        load_model(tmp_path)


def test_a_file_with_a_damaged_middle_is_named(table, tmp_path):
    save_model(LogisticRegression().fit(*table), tmp_path)
    path = tmp_path / MODEL_FILE
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    array = next(name for name in parts if name.endswith(".npy"))
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content[:40] if name == array else content)
    with pytest.raises(ModelFileError, match="not a whole skops file"):
        load_model(tmp_path)


@pytest.mark.parametrize("folder", ["missing", "."])
def test_a_folder_without_a_model_says_what_to_give(tmp_path, folder):
    with pytest.raises(ModelFileError, match="Give the folder that `python -m cmlearn train"):
        load_model(tmp_path / folder)


def test_a_file_in_the_place_of_its_folder_is_refused(tmp_path):
    (tmp_path / "model.skops").touch()
    with pytest.raises(ModelFileError, match=r"model\.skops is a file; give the folder that it is"):
        load_model(tmp_path / "model.skops")


def test_word_vectors_that_moved_are_named_and_can_be_pointed_to(tmp_path):
    vectors = tmp_path / "glove.txt"
    vectors.write_text("red 1 0\nblue 0 1\n")
    pairs = pd.DataFrame({"text": ["red", "blue"] * 5})
    fusion = Fusion([("text", GloVeEncoder(str(vectors)), "text")])
    model = make_pipeline(fusion, LogisticRegression()).fit(pairs, ["r", "b"] * 5)
    save_model(model, tmp_path)
    vectors.rename(tmp_path / "elsewhere.txt")
    again = load_model(tmp_path)
    with pytest.raises(ValueError, match=r"glove\.txt, with which .* not there: put the file back"):
        again.predict(pairs)
    encoder = again[0].encoder_.named_transformers_["text"]
    encoder.set_params(vectors=str(tmp_path / "elsewhere.txt"))
    assert list(again.predict(pairs)) == ["r", "b"] * 5
