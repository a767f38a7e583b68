"""The command line, on folders of a few small pictures.

Most tests replace the pretrained network by a cheap one of the same shape (fixture `network`);
one trains with the real one, in a process of its own.
"""

import errno
import functools
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import skops.io
from PIL import Image
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from sklearn.preprocessing import FunctionTransformer

import cmlearn.__main__
import cmlearn.baseline
import cmlearn.image
from cmlearn.__main__ import main
from cmlearn.assets import ASSETS
from cmlearn.baseline import build_models, split_pairs
from cmlearn.datasets import load_folder
from cmlearn.metrics import bootstrap_interval
from cmlearn.models import NeuralClassifier
from cmlearn.persistence import load_model, save_model

COLOURS = {"1": (200, 40, 40), "2": (40, 180, 40), "3": (40, 60, 200)}
WORDS = {"1": "red apple", "2": "green lime", "3": "blue berry"}


class MeanColours:
    """In the place of the pretrained network: the colours of a coarse grid, 1,280 numbers."""

    size = 16
    runs = 0
    pause = 0.0  # seconds a batch

    def features(self, pixels):
        type(self).runs += 1
        time.sleep(self.pause)
        grid = pixels.reshape(len(pixels), 4, 4, 4, 4, 3).mean(axis=(2, 4))
        return np.tile(grid.reshape(len(pixels), -1), 27)[:, :1280].astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Features of the cheap network must not get into the cache of other test files."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMLEARN_CACHE", str(folder))
        patch.setattr(cmlearn.image, "_network", lambda *parameters: MeanColours())
        patch.setattr(cmlearn.__main__, "write_plots", lambda folder, *rest: None)
        quick = functools.partial(bootstrap_interval, n_resamples=20)
        patch.setattr(cmlearn.baseline, "bootstrap_interval", quick)
        quick = functools.partial(NeuralClassifier, epochs=15)
        patch.setattr(cmlearn.baseline, "NeuralClassifier", quick)
        yield folder


write_plots = cmlearn.__main__.write_plots  # takes most of the time, so one test draws


def draw(path, colour, seed):
    noise = np.random.default_rng(seed).integers(-30, 30, (16, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


def write_vectors(path):
    rng = np.random.default_rng(0)
    words = " ".join(WORDS.values()).split()
    rows = [f"{word} {' '.join(f'{x:.3f}' for x in rng.normal(size=5))}\n" for word in words]
    path.write_text("".join(rows))


def write_pairs(folder, n_each=8):
    """Write the article's layout: labels in the names, one line a picture."""
    texts = []
    for label in COLOURS:
        for number in range(n_each):
            draw(folder / "images" / f"{label}_{number}.png", COLOURS[label], seed=len(texts))
            texts.append(WORDS[label] if number else WORDS["1"])  # one wrong text a class
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    write_vectors(folder / "glove.txt")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder)
    return folder


@pytest.fixture
def own_pairs(pairs, tmp_path):
    """Pairs that a test may break."""
    return Path(shutil.copytree(pairs, tmp_path / "pairs"))


def table_of(pairs, **columns):
    loaded = load_folder(pairs)
    names = [os.path.relpath(path, pairs) for path in loaded.data["image"]]
    labels = np.array(loaded.target_names)[loaded.target]
    return pd.DataFrame({"image": names, "text": loaded.data["text"], "label": labels, **columns})


def train(data, out, pairs, *options):
    return main(["train", str(data), "--out", str(out), "--glove", f"{pairs}/glove.txt", *options])


@pytest.fixture(scope="module")
def model(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    assert train(pairs, folder, pairs) == 0
    return folder


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# train


def test_train_prints_the_accuracy_and_writes_model_report_and_plots(
    pairs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cmlearn.__main__, "write_plots", write_plots)
    assert train(pairs, tmp_path / "model", pairs) == 0
    output = capsys.readouterr()
    assert re.search(r"^24 pairs in 3 classes: 19 to train, 5 to test$", output.out, re.M)
    report = json.loads((tmp_path / "model" / "report.json").read_text())
    accuracy = report["scores"]["image + text"]["accuracy"]
    assert f"Accuracy: {accuracy:.4f}  (95% interval" in output.out
    assert "precision  recall" in output.out
    written = {path.name for path in (tmp_path / "model").iterdir()}
    assert written == {"model.skops", "report.json", "scores.png", "confusion.png", "cases.png"}
    for name in written:
        if name.endswith(".png"):
            with Image.open(tmp_path / "model" / name) as plot:
                plot.verify()
    assert hidden(tmp_path) == []
    assert output.err == ""


def test_the_report_equals_an_independent_computation(pairs, model):
    loaded = load_folder(pairs)
    labels = np.array(loaded.target_names, dtype=object)[loaded.target]
    rows_train, rows_test = split_pairs(labels, loaded.groups, test_size=0.2, seed=42)
    fitted = build_models(glove=f"{pairs}/glove.txt")["text alone"].fit(
        loaded.data.iloc[rows_train], labels[rows_train]
    )
    y_true = labels[rows_test]
    y_text = fitted.predict(loaded.data.iloc[rows_test])
    y_both = load_model(model).predict(loaded.data.iloc[rows_test])
    report = json.loads((model / "report.json").read_text())
    for name, y_pred in {"text alone": y_text, "image + text": y_both}.items():
        scores = report["scores"][name]
        assert scores["accuracy"] == accuracy_score(y_true, y_pred)
        assert scores["macro F1"] == pytest.approx(f1_score(y_true, y_pred, average="macro"))
        assert 0 <= scores["low"] <= scores["accuracy"] <= scores["high"] <= 1
    expected = precision_recall_fscore_support(y_true, y_both, labels=["1", "2", "3"])
    per_class = pd.DataFrame(report["per class"]).T.loc[["1", "2", "3"]]
    np.testing.assert_allclose(per_class.to_numpy().T, expected, atol=1e-12)
    assert report["scores"]["most frequent class"]["accuracy"] <= 0.4
    assert report["pairs"] == {"classes": 3, "train": 19, "test": 5}
    assert report["settings"]["seed"] == 42
    assert report["settings"]["classifier"] == "linear-svm"
    assert "run" not in report["settings"]
    assert report["provenance"]["python"]


@pytest.mark.parametrize("layout", ["metadata.csv", "subfolders", "csv", "parquet", "bytes"])
def test_train_reads_every_layout(pairs, tmp_path, capsys, layout):
    data = tmp_path / "data"
    table = table_of(pairs)
    if layout == "bytes":
        record = [{"bytes": (pairs / name).read_bytes(), "path": None} for name in table["image"]]
        data.mkdir()
        table.assign(image=record).to_parquet(data / "pairs.parquet")
    elif layout == "subfolders":
        names = [f"class {row.label}/{Path(row.image).name}" for row in table.itertuples()]
        for old, new in zip(table["image"], names, strict=True):
            (data / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pairs / old, data / new)
        pd.DataFrame({"file_name": names, "text": table["text"]}).to_csv(
            data / "metadata.csv", index=False
        )
    else:
        shutil.copytree(pairs / "images", data / "images")
        if layout == "parquet":
            table.to_parquet(data / "pairs.parquet")
        name = "metadata.csv" if layout == "metadata.csv" else "pairs.csv"
        if layout != "parquet":
            table.rename(columns={"image": "file_name"}).to_csv(data / name, index=False)
    assert train(data, tmp_path / "model", pairs) == 0, capsys.readouterr().err
    y_pred = load_model(tmp_path / "model").predict(load_folder(pairs).data)
    labels = table["label"] if layout != "subfolders" else "class " + table["label"]
    assert accuracy_score(labels, y_pred) > 0.85


@pytest.mark.parametrize("fusion", ["mean", "product", "late-mean", "late-product"])
def test_every_fusion_trains_saves_and_predicts_the_same(pairs, tmp_path, fusion):
    assert train(pairs, tmp_path / "model", pairs, "--fusion", fusion) == 0
    fresh = build_models(glove=f"{pairs}/glove.txt", fusion=fusion)["image + text"]
    loaded = load_folder(pairs)
    labels = np.array(loaded.target_names, dtype=object)[loaded.target]
    rows, _ = split_pairs(labels, loaded.groups, test_size=0.2, seed=42)
    expected = fresh.fit(loaded.data.iloc[rows], labels[rows]).predict(loaded.data)
    assert list(load_model(tmp_path / "model").predict(loaded.data)) == list(expected)


@pytest.mark.parametrize("classifier", ["rbf-svm", "logistic", "mlp"])
def test_every_classifier_trains_and_tells_probabilities_if_it_has_them(
    pairs, tmp_path, classifier
):
    assert train(pairs, tmp_path / "model", pairs, "--classifier", classifier) == 0
    table_of(pairs).to_csv(pairs / "new.csv", index=False)
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(tmp_path / "model"), f"{pairs}/new.csv", "--out", str(out)]) == 0
    predictions = pd.read_csv(out, dtype={"prediction": str, "label": str})
    assert accuracy_score(predictions["label"], predictions["prediction"]) > 0.8
    assert ("probability" in predictions) == (classifier != "rbf-svm")
    if "probability" in predictions:
        assert predictions["probability"].between(1 / 3, 1).all()


def test_cross_validation_is_reported(pairs, tmp_path, capsys):
    assert train(pairs, tmp_path / "model", pairs, "--cv", "3") == 0
    report = json.loads((tmp_path / "model" / "report.json").read_text())
    assert set(report["cross-validation"]) == set(report["scores"])
    both = report["cross-validation"]["image + text"]
    assert 0.8 < both["mean"] <= 1
    assert len(both["folds"]) == 3 and np.mean(both["folds"]) == pytest.approx(both["mean"])
    output = capsys.readouterr().out
    assert "3-fold cross-validated accuracy" in output and "folds" not in output


def test_a_reader_that_stops_early_does_not_cost_the_model(pairs, tmp_path, monkeypatch):
    class OneLine(io.StringIO):
        def write(self, text):
            if "\n" in self.getvalue():
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", OneLine())
    assert train(pairs, tmp_path / "model", pairs, "--cv", "2") == 1
    assert hasattr(load_model(tmp_path / "model"), "predict")
    assert (tmp_path / "model" / "report.json").exists()


def test_the_seed_decides_the_split_and_a_repetition_is_the_same(pairs, tmp_path, capsys):
    results = []
    for number, seed in enumerate(["1", "1", "2"]):
        train(pairs, tmp_path / str(number), pairs, "--seed", seed, "--test-size", "0.5")
        report = json.loads((tmp_path / str(number) / "report.json").read_text())
        results.append((report["scores"], report["per class"]))
    assert results[0] == results[1] != results[2]
    assert "12 to train, 12 to test" in capsys.readouterr().out


def test_copies_in_training_and_test_are_counted(own_pairs, tmp_path, capsys):
    for path in (own_pairs / "images").glob("1_[1-7].png"):
        shutil.copy(own_pairs / "images" / "1_0.png", path)
    assert train(own_pairs, tmp_path / "model", own_pairs) == 0
    error = capsys.readouterr().err
    assert re.search(r"warning: 1 of the 5 test images are copies .* column 'group'", error)


def test_unknown_words_are_warned_of_once(own_pairs, tmp_path, capsys):
    texts = (own_pairs / "texts.txt").read_text().splitlines()
    texts[3], texts[9], texts[10] = "Qwertz", "uiop", "uiop"
    (own_pairs / "texts.txt").write_text("\n".join(texts))
    assert train(own_pairs, tmp_path / "model", own_pairs, "--cv", "2") == 0
    error = capsys.readouterr().err
    assert error.count("warning") == 1
    assert "2 different text(s) have no word with a vector and became zero vectors" in error
    assert "'qwertz'" in error and "'uiop'" in error


def test_training_again_replaces_the_earlier_model(pairs, tmp_path):
    train(pairs, tmp_path / "model", pairs)
    assert train(pairs, tmp_path / "model", pairs, "--classifier", "logistic") == 0
    report = json.loads((tmp_path / "model" / "report.json").read_text())
    assert report["settings"]["classifier"] == "logistic"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_model_works_from_any_folder(pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(pairs)
    command = ["train", ".", "--out", str(tmp_path / "model"), "--glove", "glove.txt"]
    assert main(command) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "model", str(pairs)]) == 0


# evaluate and predict


def test_evaluate_judges_other_pairs(model, tmp_path, capsys):
    write_pairs(tmp_path / "other", n_each=3)
    assert main(["evaluate", str(model), str(tmp_path / "other")]) == 0
    other = load_folder(tmp_path / "other")
    y_true = np.array(other.target_names)[other.target]
    accuracy = accuracy_score(y_true, load_model(model).predict(other.data).astype(str))
    assert f"Accuracy: {accuracy:.4f}" in capsys.readouterr().out


def test_evaluate_counts_related_pairs_together(pairs, model, monkeypatch):
    seen = []

    def compare(predictions, y_true, *, groups=None, seed=42):
        seen.append(groups)
        return known(predictions, y_true, groups=groups, seed=seed)

    known = cmlearn.baseline.compare
    monkeypatch.setattr("cmlearn.baseline.compare", compare)
    assert main(["evaluate", str(model), str(pairs)]) == 0
    np.testing.assert_array_equal(seen[0], load_folder(pairs).groups)


def test_evaluate_names_classes_that_the_model_does_not_know(model, tmp_path, capsys):
    write_pairs(tmp_path / "other", n_each=2)
    (tmp_path / "other" / "images" / "3_0.png").rename(tmp_path / "other" / "images" / "9_0.png")
    assert main(["evaluate", str(model), str(tmp_path / "other")]) == 1
    error = capsys.readouterr().err
    assert "classes that the model was not trained on: 9. It knows: 1, 2, 3." in error


def test_evaluate_names_a_model_that_was_trained_on_numbers(pairs, tmp_path, capsys):
    loaded = load_folder(pairs)
    save_model(DummyClassifier().fit(loaded.data, loaded.target), tmp_path)
    assert main(["evaluate", str(tmp_path), str(pairs)]) == 1
    error = capsys.readouterr().err
    assert "was trained on numbers (0, 1, 2, …) in the place of class names" in error


@pytest.mark.parametrize("column", ["prediction", "probability"])
def test_predict_does_not_write_over_a_column(model, pairs, tmp_path, column, capsys):
    table_of(pairs, **{column: "my own notes"}).to_csv(pairs / "new.csv", index=False)
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(model), f"{pairs}/new.csv", "--out", str(out)]) == 1
    assert f"has a column '{column}' already" in capsys.readouterr().err
    assert not out.exists()


def test_predict_keeps_rows_and_columns_in_order(model, pairs, tmp_path):
    table = table_of(pairs, note='said "a, b"', price=["007"] * 24).iloc[::-1]
    table.to_csv(pairs / "new.csv", index=False)
    out = tmp_path / "new folder" / "predictions.csv"
    assert main(["predict", str(model), f"{pairs}/new.csv", "--out", str(out)]) == 0
    written = pd.read_csv(out, dtype=str)
    pd.testing.assert_frame_equal(
        written.drop(columns="prediction"), table.reset_index(drop=True), check_dtype=False
    )
    images = [str(pairs / name) for name in table["image"]]
    expected = load_model(model).predict(pd.DataFrame({"image": images, "text": table["text"]}))
    assert list(written["prediction"]) == list(expected)


def test_predict_reads_many_chunks(model, pairs, tmp_path):
    table = pd.concat([table_of(pairs)] * 25, ignore_index=True)
    table.to_csv(pairs / "many.csv", index=False)
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(model), f"{pairs}/many.csv", "--out", str(out)]) == 0
    written = pd.read_csv(out, dtype=str)
    assert list(written["image"]) == list(table["image"])
    assert written["prediction"].notna().all() and len(written) == 600


def test_names_with_spaces_quotes_and_chinese(model, tmp_path, capsys):
    names = ["a b.png", 'say "hi".png', "it's.png", "苹果, 红.png"]
    for seed, name in enumerate(names):
        draw(tmp_path / "新 folder" / name, COLOURS["2"], seed)
    data = tmp_path / "新 folder" / "new ones.csv"
    pd.DataFrame({"file_name": names, "text": "green lime"}).to_csv(data, index=False)
    assert main(["predict", str(model), str(data), "--out", str(tmp_path / "预测.csv")]) == 0
    written = pd.read_csv(tmp_path / "预测.csv", dtype=str)
    assert list(written["file_name"]) == names
    assert set(written["prediction"]) == {"2"}


def test_predict_reads_another_encoding_and_a_byte_order_mark(model, tmp_path, capsys):
    draw(tmp_path / "a.png", COLOURS["1"], 0)
    for encoding in ("gb18030", "utf-8-sig"):
        (tmp_path / "new.csv").write_text("file_name,text\na.png,红 red\n", encoding=encoding)
        command = ["predict", str(model), f"{tmp_path}/new.csv", "--out", f"{tmp_path}/out.csv"]
        option = encoding.removesuffix("-sig")
        assert main([*command, "--encoding", option]) == 0, capsys.readouterr().err
        assert pd.read_csv(tmp_path / "out.csv")["text"][0] == "红 red"
    (tmp_path / "new.csv").write_text("file_name,text\na.png,红 red\n", encoding="gb18030")
    assert main(command) == 1
    assert "new.csv, line 2: byte 0x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name\na.png\n", r"the input has no column 'text'\. Add it"),
        ("name,text\na.png,x\n", r"expected one column image or file_name; its columns are 'name'"),
        ("text,file_name,text\nx,a.png,x\n", r"the column 'text' comes twice"),
        ("", r"new\.csv: expected one column image or file_name; its columns are none"),
        ("file_name,text\n", r"new\.csv: there is no picture in it, or no row below the header"),
        ("file_name,text\na.png,red, ripe\n", r"new\.csv, line 2: 3 cells .* double quotes"),
        ("file_name,text\na.png,x\na.png\n", r"new\.csv, line 3: 1 cells where the header has 2"),
        ('file_name,text\na.png,"red\n', r"new\.csv, line 2: not valid CSV"),
        ("file_name,text\na.png,x\n,x\n", r"new\.csv, line 3: the cell in column 'image' is empty"),
        ("file_name,text\n../a.png,x\n", r"line 2: the path '\.\./a\.png' leaves the folder"),
        ("file_name,text\n/a.png,x\n", r"line 2: the path '/a\.png' leaves the folder"),
        ("file_name,text\na.png,x\ngone.png,x\n", r"new\.csv, line 3: .*gone\.png"),
        ("file_name,text\na.png,x\ncut.png,x\n", r"new\.csv, line 3: .*cut\.png"),
        ("file_name,text\na.png,x\nempty.png,x\n", r"new\.csv, line 3: .*empty\.png"),
    ],
)
def test_predict_names_what_is_wrong(model, tmp_path, capsys, content, message):
    draw(tmp_path / "a.png", COLOURS["1"], 0)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    (tmp_path / "new.csv").write_text(content)
    before = {path.name for path in tmp_path.iterdir()}
    out = tmp_path / "out.csv"
    assert main(["predict", str(model), f"{tmp_path}/new.csv", "--out", str(out)]) == 1
    output = capsys.readouterr()
    assert re.search("error: .*" + message, output.err), output.err
    assert output.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_row_of_an_unreadable_picture_is_that_of_the_file(model, pairs, own_pairs, capsys):
    (own_pairs / "images" / "3_7.png").write_bytes(b"no picture")
    table = pd.concat([table_of(pairs)] * 12).iloc[::-1]
    table = pd.concat([table.iloc[1:], table.iloc[:1]])  # the broken one stands in each 24th row
    table = table[(table["image"] != "images/3_7.png") | (np.arange(288) == 287)]
    table.to_csv(own_pairs / "many.csv", index=False)
    command = ["predict", str(model), f"{own_pairs}/many.csv", "--out", f"{own_pairs}/out.csv"]
    assert main(command) == 1
    assert f"many.csv, line {len(table) + 1}: " in capsys.readouterr().err
    assert len(table) > 256  # in the second chunk


def test_a_model_from_a_stranger_is_refused(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    skops.io.dump(FunctionTransformer(os.system), tmp_path / "model" / "model.skops")
    assert main(["evaluate", str(tmp_path / "model"), str(tmp_path)]) == 1
    assert "holds types that cmlearn does not trust: posix.system" in capsys.readouterr().err


def test_word_vectors_that_moved_are_named(own_pairs, tmp_path, capsys):
    train(own_pairs, tmp_path / "model", own_pairs)
    (own_pairs / "glove.txt").unlink()
    assert main(["evaluate", str(tmp_path / "model"), str(own_pairs)]) == 1
    error = capsys.readouterr().err
    assert re.search(r"error: the word vectors .*glove\.txt, .* put the file back", error)
    assert error.endswith("On the command line: put the file back, or train again\n")


def test_a_process_that_calls_main_stays_as_it_was(pairs, tmp_path):
    before = warnings.showwarning, signal.getsignal(signal.SIGTERM)
    codes = []
    embedding = threading.Thread(
        target=lambda: codes.append(embed(pairs, tmp_path / "f.parquet", pairs))
    )
    embedding.start()
    embedding.join()
    assert codes == [0]
    assert (warnings.showwarning, signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("command", ["train", "embed"])
def test_weights_that_cannot_be_fetched_are_named(pairs, tmp_path, monkeypatch, capsys, command):
    def offline(*parameters):
        raise Exception("URL fetch failure on https://host/vgg16.h5: None -- Name not known")

    monkeypatch.setattr(cmlearn.image, "_network", offline)
    run = train if command == "train" else embed
    assert run(pairs, tmp_path / "out", pairs, "--image-encoder", "VGG16") == 1
    error = capsys.readouterr().err
    assert "the weights of VGG16 cannot be fetched from https://host/vgg16.h5" in error
    assert "--image-encoder efficientnet-lite0" in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "embed"])
def test_word_vectors_are_looked_for_before_the_pictures(pairs, tmp_path, monkeypatch, command):
    monkeypatch.setattr(MeanColours, "runs", 0)
    for number in range(10):  # pictures that are not in the cache
        draw(tmp_path / "images" / f"{number % 2}_{number}.png", COLOURS["1"], seed=900 + number)
    (tmp_path / "texts.txt").write_text("red apple\n" * 10)
    run = train if command == "train" else embed
    assert run(tmp_path, tmp_path / "out" / "m", pairs, "--glove", "glvoe.txt") == 1
    assert MeanColours.runs == 0


# embed


def embed(data, out, pairs, *options):
    return main(["embed", str(data), "--out", str(out), "--glove", f"{pairs}/glove.txt", *options])


def test_embed_writes_the_features_of_both_encoders(pairs, tmp_path, capsys):
    from cmlearn.image import PretrainedCNN
    from cmlearn.text import GloVeEncoder

    assert embed(pairs, tmp_path / "f.parquet", pairs) == 0
    written = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert written.column_names == ["file_name", "text", "image_features", "text_features"]
    assert written.schema.field("image_features").type == pa.list_(pa.float32(), 1280)
    data = load_folder(pairs).data
    for name, encoder in [
        ("image", PretrainedCNN()),
        ("text", GloVeEncoder(f"{pairs}/glove.txt")),
    ]:
        features = np.stack(written[f"{name}_features"].to_numpy())
        np.testing.assert_array_equal(features, encoder.fit_transform(data[name]))
    assert capsys.readouterr() == (
        f"Wrote the features of 24 pairs to {tmp_path / 'f.parquet'}\n",
        "",
    )


def test_embed_takes_every_picture_of_a_folder_without_texts(pairs, tmp_path):
    draw(tmp_path / "in" / "b10.png", COLOURS["1"], 0)
    draw(tmp_path / "in" / "b9.png", COLOURS["2"], 0)
    draw(tmp_path / "in" / "a" / "x.png", COLOURS["3"], 0)
    (tmp_path / "in" / ".hidden.png").touch()
    (tmp_path / "in" / "notes.txt").touch()
    assert embed(tmp_path / "in", tmp_path / "f.parquet", pairs) == 0
    written = pd.read_parquet(tmp_path / "f.parquet")
    assert list(written["file_name"]) == ["a/x.png", "b9.png", "b10.png"]
    assert list(written.columns) == ["file_name", "image_features"]


def test_embed_keeps_the_types_of_a_parquet_file_with_pictures_in_it(pairs, tmp_path):
    """Missing cells only in the second chunk would change pandas' types, and the file's."""
    n = 300
    picture = {"bytes": (pairs / "images" / "1_1.png").read_bytes(), "path": None}
    source = pa.table(
        {
            "image": [picture] * n,
            "text": ["red apple"] * n,
            "price": pa.array([*range(n - 1), None], pa.int64()),
            "sold": pa.array([*[True] * (n - 1), None], pa.bool_()),
        }
    )
    pyarrow.parquet.write_table(source, tmp_path / "in.parquet")
    assert embed(tmp_path / "in.parquet", tmp_path / "f.parquet", pairs) == 0
    written = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert written.column_names == ["text", "price", "sold", "image_features", "text_features"]
    assert written["price"] == source["price"] and written["sold"] == source["sold"]


def test_embed_warns_of_unknown_words_once(pairs, tmp_path, capsys):
    names = ["images/1_1.png"] * 600
    texts = [f"qwertz{n % 300}" for n in range(600)]
    pd.DataFrame({"image": names, "text": texts}).to_csv(pairs / "odd.csv", index=False)
    assert embed(pairs / "odd.csv", tmp_path / "f.parquet", pairs) == 0
    error = capsys.readouterr().err
    assert error.count("warning") == error.count("\n") == 1
    assert "300 different text(s)" in error


def test_embed_names_the_row_of_a_broken_picture_and_writes_nothing(own_pairs, capsys):
    (own_pairs / "images" / "2_3.png").write_bytes(b"no picture")
    assert embed(own_pairs, own_pairs / "f.parquet", own_pairs) == 1
    assert re.search(r"error: images/2_3\.png: .*2_3\.png", capsys.readouterr().err)
    assert not (own_pairs / "f.parquet").exists() and hidden(own_pairs) == []


def test_embed_refuses_an_untrained_encoder_and_a_folder_without_pictures(pairs, tmp_path, capsys):
    assert embed(pairs, tmp_path / "f", pairs, "--image-encoder", "cnn") == 1
    assert "embed needs an encoder that is trained already" in capsys.readouterr().err
    assert embed(tmp_path, tmp_path / "f", pairs) == 1
    assert "there is no picture in it" in capsys.readouterr().err
    assert embed(tmp_path / "gone", tmp_path / "f", pairs) == 1
    assert "gone: there is no such file or folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_embed_with_ray_but_without_it_installed_says_what_to_install(
    pairs, tmp_path, monkeypatch, capsys
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "ray" else find(name)
    )
    assert embed(pairs, tmp_path / "f.parquet", pairs, "--engine", "ray") == 1
    assert "pip install 'ray[data]>=2.40'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--workers", "0"], ["--engine", "dask"]])
def test_embed_refuses_engines_and_workers_that_do_not_exist(pairs, tmp_path, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        embed(pairs, tmp_path / "f.parquet", pairs, *options)
    assert stopped.value.code == 2
    assert re.search(r"0 workers are too few|invalid choice: 'dask'", capsys.readouterr().err)


# Where to write


def test_foreign_folders_and_files_are_left_alone(pairs, model, tmp_path, capsys):
    (tmp_path / ".DS_Store").write_text("of a file manager")
    (tmp_path / "thesis.doc").write_text("years of work")
    assert train(pairs, tmp_path, pairs) == 1
    assert "holds files that no earlier training wrote (thesis.doc); nothing was changed" in (
        capsys.readouterr().err
    )
    assert train(pairs, tmp_path / "thesis.doc", pairs) == 1
    assert "thesis.doc is a file; --out must name a folder" in capsys.readouterr().err
    assert embed(pairs, tmp_path, pairs) == 1
    assert "is a folder; --out must name a file" in capsys.readouterr().err
    assert main(["predict", str(model), "new.csv", "--out", str(tmp_path)]) == 1
    assert "is a folder; --out must name a file" in capsys.readouterr().err
    assert train(pairs, tmp_path / "thesis.doc" / "model", pairs) == 1
    assert "thesis.doc cannot be written to" in capsys.readouterr().err
    assert (tmp_path / "thesis.doc").read_text() == "years of work"


def test_the_input_is_not_written_over(pairs, model, tmp_path, capsys):
    table = pd.read_csv(pairs / "new.csv")
    table.to_csv(tmp_path / "new.csv", index=False)
    (tmp_path / "link.csv").symlink_to(tmp_path / "new.csv")
    before = (tmp_path / "new.csv").read_bytes()
    for out in ("new.csv", "link.csv"):
        for command in (["embed"], ["predict", str(model)]):
            arguments = [*command, str(tmp_path / "new.csv"), "--out", str(tmp_path / out)]
            assert main(arguments) == 1
            assert f"{out} is the input; give --out another name" in capsys.readouterr().err
    assert (tmp_path / "new.csv").read_bytes() == before
    (tmp_path / "link.csv").unlink()
    assert main(["embed", str(tmp_path), "--out", str(tmp_path / "new.csv")]) == 1
    assert "new.csv is the input" in capsys.readouterr().err
    assert (tmp_path / "new.csv").read_bytes() == before


def test_a_figure_that_fails_does_not_cost_the_model(pairs, tmp_path, monkeypatch, capsys):
    def fails(*arguments, **settings):
        raise MemoryError("a confusion matrix of a catalogue")

    monkeypatch.setattr("cmlearn.plotting.plot_confusion_matrix", fails)
    monkeypatch.setattr(cmlearn.__main__, "write_plots", write_plots)
    assert train(pairs, tmp_path / "model", pairs) == 0
    assert "not all figures could be drawn (MemoryError: a confusion" in capsys.readouterr().err
    assert hasattr(load_model(tmp_path / "model"), "predict")
    assert (tmp_path / "model" / "report.json").exists()


def test_an_earlier_model_that_cannot_be_removed_is_named(pairs, tmp_path, monkeypatch, capsys):
    train(pairs, tmp_path / "model", pairs)
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
    assert train(pairs, tmp_path / "model", pairs) == 0
    (earlier,) = hidden(tmp_path)
    error = capsys.readouterr().err
    assert (
        f"warning: the earlier model could not be removed and lies in {tmp_path}/{earlier}" in error
    )


def test_the_current_folder_cannot_be_replaced(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for out in (".", str(tmp_path)):
        assert train(pairs, out, pairs) == 1
        error = capsys.readouterr().err
        assert f"{out} is the current folder" in error and f"such as {Path(out) / 'model'}" in error


def test_a_model_goes_where_a_link_leads(pairs, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    for _ in range(2):
        assert train(pairs, tmp_path / "model", pairs) == 0
        assert (tmp_path / "model").is_symlink()
        assert (tmp_path / "disk" / "model" / "report.json").exists()
    assert hidden(tmp_path) == hidden(tmp_path / "disk") == []


def test_a_volume_cannot_be_replaced(pairs, tmp_path, monkeypatch, capsys):
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "volume")
    for out in (tmp_path / "volume", tmp_path / "link"):
        assert train(pairs, out, pairs) == 1
        assert f"such as {out / 'model'}" in capsys.readouterr().err


def test_training_again_does_not_remove_what_was_put_beside_the_model(pairs, tmp_path, capsys):
    assert train(pairs, tmp_path / "model", pairs) == 0
    (tmp_path / "model" / "predictions.csv").write_text("an afternoon's work")
    assert train(pairs, tmp_path / "model", pairs) == 1
    assert "no earlier training wrote (predictions.csv); nothing" in capsys.readouterr().err
    assert (tmp_path / "model" / "predictions.csv").read_text() == "an afternoon's work"


@pytest.mark.parametrize("command", ["train", "embed", "predict"])
def test_a_read_only_folder_is_found_before_the_work(pairs, model, tmp_path, monkeypatch, capsys,
                                                     command):  # fmt: skip
    def refuse(dir):  # root may write anywhere, so the refusal is acted
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    out = str(tmp_path / "out")
    arguments = {
        "train": ["train", str(pairs), "--out", out],
        "embed": ["embed", str(pairs), "--out", out],
        "predict": ["predict", str(model), "new.csv", "--out", out],
    }
    assert main(arguments[command]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: {tmp_path} cannot be written to (Permission denied). "
        "Give --out a place of your own.\n"
    )
    assert list(tmp_path.iterdir()) == []


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("writer", ["cmlearn.runtime.provenance", "skops.io.dump"])
def test_a_full_disk_keeps_the_earlier_model(pairs, tmp_path, monkeypatch, capsys, writer):
    train(pairs, tmp_path / "model", pairs)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    monkeypatch.setattr(writer, full_disk)
    assert train(pairs, tmp_path / "model", pairs, "--classifier", "logistic") == 1
    assert "the disk is full: free some space" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("command", ["embed", "predict"])
def test_a_full_disk_leaves_nothing_half_written(pairs, model, tmp_path, monkeypatch, capsys,
                                                 command):  # fmt: skip
    pd.concat([table_of(pairs)] * 30).to_csv(pairs / "many.csv", index=False)
    (tmp_path / "out").write_text("the earlier one")
    target, name = (
        (pyarrow.parquet.ParquetWriter, "write_table")
        if command == "embed"
        else (pd.DataFrame, "to_csv")
    )
    write, calls = getattr(target, name), []

    def write_once(*arguments, **options):  # the first chunk fits, the second does not
        calls.append(1)
        return write(*arguments, **options) if len(calls) == 1 else full_disk()

    monkeypatch.setattr(target, name, write_once)
    source = f"{pairs}/many.csv"
    place = str(tmp_path / "out")
    arguments = (
        ["embed", source, "--out", place, "--glove", f"{pairs}/glove.txt"]
        if command == "embed"
        else ["predict", str(model), source, "--out", place]
    )
    assert main(arguments) == 1
    assert len(calls) == 2
    assert f"cannot write in the folder {tmp_path}: the disk is full" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "the earlier one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Classes and splits


def test_a_class_with_one_member_is_named(own_pairs, tmp_path, capsys):
    for path in (own_pairs / "images").glob("3_[1-7].png"):
        path.rename(path.with_name(path.name.replace("3_", "2_9")))
    assert train(own_pairs, tmp_path / "model", own_pairs) == 1
    error = capsys.readouterr().err
    assert "these classes have a single pair (or a single group): 3." in error
    assert list(tmp_path.glob("model*")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classifier", "mlp"], "single pair in a training part: 3. --classifier mlp holds"),
        (["--fusion", "late-mean"], "in a training part: 3. --fusion late-mean holds back"),
        ([], None),
        (["--fusion", "late-mean", "--classifier", "logistic"], None),
    ],
)
def test_a_class_with_one_training_pair_is_named(own_pairs, tmp_path, capsys, options, message):
    for path in (own_pairs / "images").glob("3_[2-7].png"):
        path.rename(path.with_name(path.name.replace("3_", "2_9")))
    assert train(own_pairs, tmp_path / "model", own_pairs, *options) == (1 if message else 0)
    if message:
        assert message in capsys.readouterr().err


def test_a_class_with_one_training_pair_in_a_fold_is_named(own_pairs, tmp_path, capsys):
    for path in (own_pairs / "images").glob("3_[3-7].png"):
        path.rename(path.with_name(path.name.replace("3_", "2_9")))
    assert train(own_pairs, tmp_path / "m", own_pairs, "--classifier", "mlp", "--cv", "2") == 1
    assert "in a training part: 3. --classifier mlp holds back" in capsys.readouterr().err


def test_classes_that_differ_in_case_alone_are_warned_of(pairs, tmp_path, capsys):
    shutil.copytree(pairs / "images", tmp_path / "images")
    table = table_of(pairs)
    table["label"] = table["label"].map({"1": "cat", "2": "CAT", "3": "dog"})
    table.to_csv(tmp_path / "pairs.csv", index=False)
    assert train(tmp_path / "pairs.csv", tmp_path / "model", pairs) == 0
    error = capsys.readouterr().err
    assert "alone are trained as different ones: 'CAT' and 'cat'. Spell" in error
    assert error.count("warning") == 1


def test_too_small_a_test_part_and_too_many_folds_are_refused(pairs, tmp_path, capsys):
    assert train(pairs, tmp_path / "model", pairs, "--test-size", "0.05") == 1
    assert re.search(r"give 22 for training and 2 for the test.*3 classes", capsys.readouterr().err)
    assert train(pairs, tmp_path / "model", pairs, "--cv", "9") == 1
    assert "class '1' has 8 rows, fewer than the 9 folds asked for; ask for fewer" in (
        capsys.readouterr().err
    )


# Usage, exit codes, signals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "data"], "required: --out"),
        (["train", "data", "--out", "m", "--test-size", "1.5"], "1.5 is not between 0 and 1"),
        (["train", "data", "--out", "m", "--test-size", "many"], "'many' is not a number"),
        (["train", "data", "--out", "m", "--cv", "1"], "1 folds are too few"),
        (["train", "data", "--out", "m", "--cv", "a"], "--cv: 'a' is not a whole number"),
        (["train", "data", "--out", "m", "--seed", "0.5"], "--seed: '0.5' is not a whole number"),
        (["train", "data", "--out", "m", "--seed", "-1"], "-1 is not between 0 and 4294967295"),
        (["train", "data", "--out", "m", "--fusion", "glue"], "invalid choice: 'glue'"),
        (["embed", "data"], "required: --out"),
        (["embed", "data", "--out", "f", "--workers", "x"], "'x' is not a whole number"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "usage: python -m cmlearn" in error and message in error


@pytest.mark.parametrize("command", ["", "fetch", "train", "evaluate", "predict", "embed"])
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert "python -m cmlearn train data/ --out model/" in capsys.readouterr().out


def test_fetch_all_fetches_each_asset(monkeypatch, capsys):
    monkeypatch.setattr("cmlearn.assets.fetch", lambda name: f"/there/{name}")
    assert main(["fetch", "--all"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed] == [[name, f"/there/{name}"] for name in ASSETS]


def test_too_little_memory_is_said(monkeypatch, capsys):
    def exhausted(name):
        raise MemoryError

    monkeypatch.setattr("cmlearn.assets.fetch", exhausted)
    assert main(["fetch", "minilm"]) == 1
    assert capsys.readouterr().err == "error: there is not enough memory\n"


def test_fetch_lists_and_names_an_unknown_asset(capsys):
    assert main(["fetch"]) == 0
    assert "glove-6b-50d" in capsys.readouterr().out
    assert main(["fetch", "no-such-asset"]) == 1
    assert "no-such-asset" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(pairs, tmp_path, monkeypatch, capsys):
    def interrupt(self, pixels):
        raise KeyboardInterrupt

    draw(tmp_path / "in" / "new.png", (1, 2, 3), 0)
    monkeypatch.setattr(MeanColours, "features", interrupt)
    assert embed(tmp_path / "in", tmp_path / "f.parquet", pairs) == 130
    assert "Interrupted. Finished features are kept" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


SLOW = """
import sys
sys.path.insert(0, {tests!r})
import cmlearn.image, cmlearn.__main__, test_main
test_main.MeanColours.pause = 1.0
cmlearn.image._network = lambda *parameters: test_main.MeanColours()
cmlearn.__main__.end_on_sigterm()
sys.exit(cmlearn.__main__.main(sys.argv[1:]))
"""


@contextmanager
def process(arguments, cache):
    """Start the command in a process of its own, with a network that takes its time."""
    script = SLOW.format(tests=str(Path(__file__).parent))
    running = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"CMLEARN_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def wait_for_features(cache, running):
    """Wait until the first batch is in the cache."""
    log = cache / "features.sqlite3-wal"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size > 100_000):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("command", "blow"),
    [
        ("embed", signal.SIGKILL),
        ("embed", signal.SIGTERM),
        ("train", signal.SIGKILL),
        ("train", signal.SIGINT),
    ],
)
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch, command, blow):
    write_pairs(tmp_path / "in", n_each=30)
    cache = tmp_path / "cache"
    cache.mkdir()
    out_name = "out" if command == "train" else "out.parquet"
    arguments = [command, tmp_path / "in", "--out", tmp_path / out_name]
    arguments += ["--glove", tmp_path / "in" / "glove.txt"]
    with process(arguments, cache) as running:
        wait_for_features(cache, running)
        running.send_signal(blow)
        _, error = running.communicate(timeout=60)
    codes = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
    assert running.returncode == codes[blow], error
    assert "Traceback" not in error
    assert not (tmp_path / out_name).exists()
    if blow != signal.SIGKILL:
        assert hidden(tmp_path) == []
    monkeypatch.setenv("CMLEARN_CACHE", str(cache))
    monkeypatch.setattr(MeanColours, "runs", 0)
    assert main([str(argument) for argument in arguments]) == 0
    assert (tmp_path / out_name).exists()
    n_batches = {"embed": 3, "train": 4}[command]  # 90 pictures at once, or 72 and then 18
    assert 0 < MeanColours.runs < n_batches


def test_what_a_killed_training_left_is_removed_after_a_day(pairs, tmp_path):
    left = tmp_path / ".model.1234-abcd.partial"
    left.mkdir()
    (left / "model.skops").touch()
    os.utime(left, (0, 0))
    assert train(pairs, tmp_path / "model", pairs) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_exchange_puts_the_earlier_model_back(pairs, tmp_path, monkeypatch):
    train(pairs, tmp_path / "model", pairs)
    before = (tmp_path / "model" / "report.json").read_bytes()
    monkeypatch.setattr("cmlearn.runtime.os.replace", full_disk_of_folders)
    assert train(pairs, tmp_path / "model", pairs, "--classifier", "logistic") == 1
    monkeypatch.undo()
    assert (tmp_path / "model" / "report.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


replace = os.replace


def full_disk_of_folders(old, new):
    return full_disk() if Path(old).is_dir() else replace(old, new)


def test_the_real_network_in_a_quiet_process_and_again_from_the_cache(pairs, tmp_path):
    """No stand-in: the command as a user runs it, with its output going to a file."""
    small = tmp_path / "small"
    for path in sorted((pairs / "images").glob("*_[0-2].png")):
        (small / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, small / "images")
    (small / "texts.txt").write_text("red apple\n" * 9)
    environment = os.environ | {"CMLEARN_CACHE": str(tmp_path)}
    del environment["TF_CPP_MIN_LOG_LEVEL"]
    command = ["-m", "cmlearn", "embed", small, "--glove", f"{pairs}/glove.txt", "--out"]

    def run(*arguments, **variables):
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment | variables, capture_output=True, text=True, check=True,
        )  # fmt: skip

    first = run(*command, tmp_path / "1.parquet")
    assert first.stderr == ""
    options = {"TF_CPP_MIN_LOG_LEVEL": "2"}  # leaves the error stream as it is
    again = run("-X", "importtime", *command, tmp_path / "2.parquet", **options)
    assert " sklearn.base" in again.stderr
    assert not re.search(r"\| +(keras|tensorflow)\b", again.stderr)
    one, two = (pd.read_parquet(tmp_path / f"{n}.parquet")["image_features"] for n in (1, 2))
    np.testing.assert_array_equal(np.stack(one), np.stack(two))
    assert np.stack(one).shape == (9, 1280) and np.stack(one).std(axis=0).max() > 0
