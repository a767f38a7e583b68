"""Pairs of the Hugging Face Hub: data sets of the same format made here, and no network."""

import io
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cmlearn.assets import AssetError
from cmlearn.datasets import DatasetError, _huggingface, load_huggingface

datasets = pytest.importorskip("datasets")


def png(number, kind="PNG"):
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PICTURES = [png(n) for n in range(8)]
NAMES = [f"Shirt number {n}" for n in range(8)]
KINDS = ["Apparel", "Shoes"] * 4


def write(folder, *, split="train", **columns):
    """Write a Parquet file as the Hub holds it."""
    file = folder / "data" / f"{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns)
    if "image" in columns and isinstance(columns["image"][0], dict):
        table = table.cast_column("image", datasets.Image())
    if isinstance(columns.get("label", [""])[0], int) and "names" not in columns:
        table = table.cast_column("label", datasets.ClassLabel(names=["pie", "soup", "cake"]))
    table.to_parquet(file)
    return folder


def pictures(contents=PICTURES):
    return [{"bytes": content, "path": None} for content in contents]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fashion(tmp_path):
    columns = {"image": pictures(), "productDisplayName": NAMES, "masterCategory": KINDS}
    return write(tmp_path / "fashion", **columns, year=[2012.0] * 8)


def load(folder, **parameters):
    named = {"text": "productDisplayName", "label": "masterCategory"}
    return load_huggingface(folder, **named | parameters)


# What a Bunch holds


def test_columns_by_name(fashion):
    found = load(fashion)
    assert list(found.data.columns) == ["image", "text"]
    assert found.data["text"].tolist() == NAMES
    assert found.target_names == ["Apparel", "Shoes"]
    assert found.target.tolist() == [0, 1] * 4
    assert found.target.dtype == np.int64
    assert "Pairs: 8, in 8 groups" in found.DESCR
    X, y = load(fashion, return_X_y=True)
    assert X.equals(found.data)
    assert np.array_equal(y, found.target)


def test_pictures_are_kept_byte_for_byte(fashion):
    for path, content in zip(load(fashion).data["image"], PICTURES, strict=True):
        with open(path, "rb") as file:
            assert file.read() == content


def test_classes_in_their_own_order_and_no_texts(tmp_path):
    """Load as Food-101 comes: numbers of classes, whose names the data set holds."""
    folder = write(tmp_path / "food", image=pictures(PICTURES[:4]), label=[1, 0, 1, 0])
    found = load_huggingface(folder, text=None)
    assert found.target_names == ["pie", "soup", "cake"]
    assert found.target.tolist() == [1, 0, 1, 0]
    assert found.data["text"].isna().all()


def test_a_folder_of_pictures_with_metadata(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for number, content in enumerate(PICTURES[:4]):
        (folder / f"{number}.png").write_bytes(content)
        rows.append(json.dumps({"file_name": f"{number}.png", "text": "a", "label": str(number)}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    found = load_huggingface(folder)
    assert found.target_names == list("0123")
    with open(found.data["image"][2], "rb") as file:
        assert file.read() == PICTURES[2]


def test_rows_with_the_same_picture_or_group_are_related(tmp_path):
    columns = {"text": ["a"] * 4, "label": list("xyxy"), "who": ["p", "q", "q", "p"]}
    folder = write(
        tmp_path / "twice", image=pictures([PICTURES[n] for n in (0, 1, 0, 2)]), **columns
    )
    groups = load_huggingface(folder).groups
    assert groups[0] == groups[2]
    assert len(set(groups)) == 3
    assert load_huggingface(folder, group="who").groups.tolist() == ["p", "q", "q", "p"]


@pytest.mark.parametrize("missing", [None, " "])
def test_a_row_without_a_group_is_named(tmp_path, missing):
    columns = {"text": ["a"] * 3, "label": list("xyx"), "who": ["p", missing, "q"]}
    folder = write(tmp_path / "twice", image=pictures(PICTURES[:3]), **columns)
    with pytest.raises(DatasetError, match=r"row 1: the column 'who' holds .*, not a group"):
        load_huggingface(folder, group="who")


# Streaming, keeping, going on


def spy_on_rows(monkeypatch):
    seen = []
    row = _huggingface._row

    def spied(source, number, record, names):
        seen.append(number)
        return row(source, number, record, names)

    monkeypatch.setattr(_huggingface, "_row", spied)
    return seen


def test_no_more_is_read_than_asked_for(fashion, monkeypatch):
    seen = spy_on_rows(monkeypatch)
    assert len(load(fashion, max_pairs=3).data) == 3
    assert seen == [0, 1, 2]
    assert "(the first ones)" in load(fashion, max_pairs=3).DESCR
    more = load(fashion, max_pairs=5)  # goes on behind what is there
    assert seen == [0, 1, 2, 3, 4]
    assert more.data["text"].tolist() == NAMES[:5]
    assert load(fashion, max_pairs=2).data["text"].tolist() == NAMES[:2]
    assert len(load(fashion).data) == 8
    assert seen == list(range(8))


def test_the_second_time_nothing_is_opened(fashion, monkeypatch):
    first = load(fashion)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load(fashion).data.equals(first.data)


def test_a_broken_download_goes_on(fashion, monkeypatch):
    monkeypatch.setattr(_huggingface, "_CHUNK", 3)
    seen, row = [], _huggingface._row

    def breaks(source, number, record, names):
        if number == 4 and len(seen) < 5:
            seen.append(number)
            raise ConnectionError("reset by peer")
        seen.append(number)
        return row(source, number, record, names)

    monkeypatch.setattr(_huggingface, "_row", breaks)
    with pytest.raises(AssetError, match=r"broke off \(reset by peer\).*goes on behind"):
        load(fashion)
    assert load(fashion).data["text"].tolist() == NAMES
    assert seen == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]


def test_a_hub_that_changes_is_read_as_it_was_at_the_first_call(fashion, monkeypatch):
    commits, asked = ["first", "second"], []
    load_dataset = datasets.load_dataset

    def hub(dataset, name, *, revision, **settings):
        asked.append(revision)
        return load_dataset(str(fashion), name, **settings)

    monkeypatch.setattr(_huggingface, "_CHUNK", 3)
    monkeypatch.setattr(_huggingface, "_newest_commit", lambda dataset: commits.pop(0))
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert len(load("somebody/fashion", max_pairs=3).target) == 3
    assert load("somebody/fashion").data["text"].tolist() == NAMES
    assert asked == ["first", "first"] and commits == ["second"]


def test_two_at_once_stream_a_data_set_once(fashion, monkeypatch):
    opened, open_stream = [], _huggingface._open

    def slow(source):
        opened.append(source)
        time.sleep(0.3)
        return open_stream(source)

    monkeypatch.setattr(_huggingface, "_open", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load, [fashion, fashion])
    assert first.data.equals(second.data) and len(opened) == 1


def test_a_changed_folder_is_read_anew(fashion):
    load(fashion)
    columns = {"image": pictures(), "productDisplayName": NAMES[::-1], "masterCategory": KINDS}
    write(fashion, **columns)
    assert load(fashion).data["text"].tolist() == NAMES[::-1]


# Bad input


@pytest.mark.parametrize(
    ("parameters", "missing"),
    [
        ({"text": "text"}, "'text'"),
        ({"label": "label", "image": "img"}, "'img', 'label'"),
        ({"group": "who"}, "'who'"),
    ],
)
def test_missing_columns(fashion, parameters, missing):
    with pytest.raises(DatasetError) as caught:
        load(fashion, **parameters)
    assert f"has no column {missing}; its columns are 'image', 'prod" in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"image": "masterCategory"},
            r"'masterCategory' holds Value\('string'\), expected pictures",
        ),
        ({"text": "year"}, r"'year' holds Value\('float64'\), expected strings"),
        ({"label": "year"}, r"'year' holds .*, expected a class, string or integer"),
        ({"label": "image"}, r"'image' holds Image.*, expected a class"),
    ],
)
def test_columns_of_another_type(fashion, parameters, message):
    with pytest.raises(DatasetError, match=message):
        load(fashion, **parameters)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("text", None, r"row 2: the column 'text' holds None, not a text"),
        ("text", "  ", r"row 2: the column 'text' holds '  ', not a text"),
        ("label", None, r"row 2: the column 'label' holds None, not a label"),
        ("label", "", r"row 2: the column 'label' holds '', not a label"),
        ("image", None, r"row 2: the column 'image' holds None, not a picture"),
    ],
)
def test_rows_that_lack_something(tmp_path, column, value, message):
    columns = {"image": pictures(PICTURES[:4]), "text": list("abcd"), "label": list("xyxy")}
    columns[column][2] = value
    with pytest.raises(DatasetError, match=message):
        load_huggingface(write(tmp_path / "holes", **columns))


def test_rows_without_a_class(tmp_path):
    folder = write(tmp_path / "hidden", image=pictures(PICTURES[:2]), label=[0, -1])
    with pytest.raises(DatasetError, match="row 1: the column 'label' holds -1, not a label"):
        load_huggingface(folder, text=None)


def test_bytes_that_are_no_picture(tmp_path):
    contents = [PICTURES[0], b"no picture"]
    folder = write(tmp_path / "bad", image=pictures(contents), text=["a", "b"], label=["x", "y"])
    with pytest.raises(
        DatasetError, match=r"(?s)1 picture\(s\) cannot be used.*row 1: .* is not a"
    ):
        load_huggingface(folder)


def test_one_label_only(fashion, tmp_path):
    with pytest.raises(DatasetError, match="every row has the label 'Apparel'.*raise max_pairs"):
        load(fashion, max_pairs=1)


def test_unknown_parts_and_folders(fashion, tmp_path):
    with pytest.raises(DatasetError, match=r"Bad split: dev.*Name another by split="):
        load(fashion, split="dev")
    with pytest.raises(DatasetError, match="there is no such data set, or it asks for a login"):
        load_huggingface(f"{tmp_path}/nowhere/")


def test_a_number_of_pairs_may_be_numpys(fashion):
    assert len(load(fashion, max_pairs=np.int64(3)).data) == 3


def test_a_data_set_has_the_name_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"somebody/fashion": "fashion", "photos/": "photos", ".": tmp_path.name}
    for dataset, name in names.items():
        assert _huggingface._Source(dataset, None, "train", None, {}).short == name


@pytest.mark.parametrize("max_pairs", [0, -1, 2.5, "all", True])
def test_a_number_of_pairs_that_is_none(fashion, max_pairs):
    with pytest.raises(ValueError, match="must be a positive integer"):
        load(fashion, max_pairs=max_pairs)


def test_no_network(monkeypatch):
    def unreachable(*arguments, **parameters):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    with pytest.raises(AssetError, match=r"cannot be reached.*\n  hf download --repo-type dataset"):
        load_huggingface("ashraq/fashion-product-images-small")
    monkeypatch.setattr(_huggingface, "_newest_commit", lambda dataset: "0123abc")
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(AssetError, match=r"cannot be reached.*\n  hf download --repo-type dataset"):
        load_huggingface("ashraq/fashion-product-images-small")


def test_the_package_is_not_installed(fashion, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "cmlearn\[huggingface\]"'):
        load(fashion)


def test_space_is_asked_for_before_the_download(fashion, monkeypatch, cache):
    cache.mkdir()
    usage = shutil.disk_usage(cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    seen = spy_on_rows(monkeypatch)
    with pytest.raises(OSError, match=r"needs about \d+ MB .* and 0 MB are free.*lower max_pairs"):
        load(fashion)
    assert seen == []
