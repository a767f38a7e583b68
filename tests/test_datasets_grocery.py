"""Groceries: a small repository made here, and the true data set where it is."""

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmlearn.assets import AssetError
from cmlearn.datasets import DatasetError, _grocery, load_grocery

HEADER = (
    "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
    "Iconic Image Path (str),Product Description Path (str)"
)
KINDS = [("Gala", 0, "Apple", 0), ("Pink-Lady", 1, "Apple", 0), ("Milk", 2, "Dairy", 1)]
ROWS = {
    "train": [("Gala", 1), ("Gala", 2), ("Milk", 1), ("Pink-Lady", 1)],
    "val": [("Milk", 2)],
    "test": [("Pink-Lady", 2), ("Gala", 3)],
}

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def save(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), colour).save(path)


def make(folder):
    """Write a data set in the layout of the true one."""
    root, lines = folder / "dataset", [HEADER]
    numbers = {name: (fine, coarse) for name, fine, _, coarse in KINDS}
    for name, fine, family, coarse in KINDS:
        about = f"/iconic-images-and-descriptions/{family}/{name}/{name}"
        save(root / f"{about[1:]}_Iconic.jpg", (9 * fine, 9, 9))
        (root / f"{about[1:]}_Description.txt").write_text(f"{name} är god.\n", encoding="utf-8")
        lines.append(f"{name},{fine},{family},{coarse},{about}_Iconic.jpg,{about}_Description.txt")
    (root / "classes.csv").write_text("\n".join(lines) + "\n")
    for split, rows in ROWS.items():
        listed = []
        for name, number in rows:
            path = f"{split}/Fruit/{name}/{name}_{number:03}.jpg"
            save(root / path, (number, numbers[name][0], len(split)))
            listed.append(f"{path}, {numbers[name][0]}, {numbers[name][1]}")
        (root / f"{split}.txt").write_text("\n".join(listed) + "\n")
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a data folder with a small copy of the data set, without git's records."""
    home = tmp_path / "data"
    folder = make(home / "GroceryStoreDataset")
    monkeypatch.setattr(_grocery, "_LISTS_SHA256", _grocery._lists_sha256(folder))
    return home


def folder_of(home):
    return home / "GroceryStoreDataset"


def git(*arguments, folder):
    identity = ["-c", "user.name=X", "-c", "user.email=x@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    reply = subprocess.run(command, check=True, capture_output=True, text=True)
    return reply.stdout.strip()


@pytest.fixture
def remote(home, tmp_path, monkeypatch):
    """Move the data set into a repository that a server could offer; the home is empty then."""
    remote = tmp_path / "remote"
    shutil.move(folder_of(home), remote)
    git("init", "--quiet", folder=remote)
    git("config", "uploadpack.allowFilter", "true", folder=remote)
    git("config", "uploadpack.allowAnySHA1InWant", "true", folder=remote)
    git("add", "--all", folder=remote)
    git("commit", "--quiet", "-m", "Data", folder=remote)
    monkeypatch.setattr(_grocery, "_ADDRESS", f"file://{remote}")
    monkeypatch.setattr(_grocery, "_COMMIT", git("rev-parse", "HEAD", folder=remote))
    return remote


# What a Bunch holds


def test_all_photographs(home):
    found = load_grocery(data_home=home)
    assert list(found.data.columns) == ["image", "text"]
    assert found.split.tolist() == ["train"] * 4 + ["val"] + ["test"] * 2
    assert found.target.tolist() == [0, 0, 2, 1, 2, 1, 0]
    assert found.target.dtype == found.coarse_target.dtype == np.int64
    assert found.coarse_target.tolist() == [0, 0, 1, 0, 1, 0, 0]
    assert found.target_names == ["Gala", "Pink-Lady", "Milk"]
    assert found.coarse_names == ["Apple", "Dairy"]
    assert found.coarse_of_fine.tolist() == [0, 0, 1]
    first = folder_of(home) / "dataset/train/Fruit/Gala/Gala_001.jpg"
    assert found.data["image"][0] == str(first)
    assert len(set(found.groups)) == len(found.data)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_one_part(home, split):
    found = load_grocery(data_home=home, split=split)
    assert len(found.data) == len(ROWS[split])
    assert all(f"/{split}/" in path for path in found.data["image"])
    assert len(found.target_names) == 3  # the kinds stay, though not all are in every part
    X, y = load_grocery(data_home=home, split=split, return_X_y=True)
    assert X.equals(found.data)
    assert np.array_equal(y, found.target)


def test_an_unknown_part(home):
    with pytest.raises(ValueError, match="split='dev': choose 'train', 'val' or 'test'"):
        load_grocery(data_home=home, split="dev")


def test_a_description_is_never_the_text_of_a_pair(home):
    found = load_grocery(data_home=home)
    assert found.data["text"].isna().all()
    assert list(found.classes.index) == found.target_names
    assert found.classes["description"].tolist() == [f"{n} är god." for n in found.target_names]
    assert found.classes["coarse"].tolist() == ["Apple", "Apple", "Dairy"]
    assert all(Path(path).is_file() for path in found.classes["icon"])
    assert "written the label beside it" in " ".join(found.DESCR.split())


def test_an_encoder_refuses_the_missing_texts(home):
    from cmlearn.text import GloVeEncoder

    with pytest.raises((ValueError, TypeError), match="row 0"):
        GloVeEncoder().fit(load_grocery(data_home=home).data["text"])


def test_the_environment_names_the_folder(home, monkeypatch):
    monkeypatch.setenv("CMLEARN_DATA", str(home))
    assert len(load_grocery().data) == 7


def test_other_line_ends_are_the_same_data(home):
    for name in _grocery._LISTS:
        path = folder_of(home) / "dataset" / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(load_grocery(data_home=home).data) == 7


# What is not the tested data


def test_changed_lists(home):
    path = folder_of(home) / "dataset/test.txt"
    path.write_text(path.read_text().replace(", 0, 0", ", 2, 1"))
    with pytest.raises(DatasetError, match=r"are not those of commit .*will be fetched anew"):
        load_grocery(data_home=home)


def test_a_missing_list(home):
    (folder_of(home) / "dataset/val.txt").unlink()
    with pytest.raises(DatasetError, match=r"lacks dataset/val\.txt: expected the layout"):
        load_grocery(data_home=home)


def test_missing_pictures(home):
    (folder_of(home) / "dataset/train/Fruit/Milk/Milk_001.jpg").unlink()
    with pytest.raises(DatasetError, match=r"lacks 1 files: dataset/train/Fruit/Milk/Milk_001"):
        load_grocery(data_home=home)


def test_lists_that_contradict_each_other(home, monkeypatch):
    path = folder_of(home) / "dataset/test.txt"
    path.write_text(path.read_text().replace(", 0, 0", ", 0, 1"))
    monkeypatch.setattr(_grocery, "_LISTS_SHA256", _grocery._lists_sha256(folder_of(home)))
    with pytest.raises(DatasetError, match=r"test\.txt, line 2: kind 0 is of family 1 here"):
        load_grocery(data_home=home)


# Fetching by git


@needs_git
def test_git_fetches_the_tested_commit(home, remote):
    (remote / "dataset/new.txt").write_text("later\n")
    git("add", "--all", folder=remote)
    git("commit", "--quiet", "-m", "Later", folder=remote)
    found = load_grocery(data_home=home)
    assert len(found.data) == 7
    assert git("rev-parse", "HEAD", folder=folder_of(home)) == _grocery._COMMIT
    assert git("status", "--porcelain", folder=folder_of(home)) == ""
    assert not (folder_of(home) / "dataset/new.txt").exists()
    assert f"commit {_grocery._COMMIT}" in found.DESCR
    assert [path.name for path in home.iterdir()] == ["GroceryStoreDataset"]
    shutil.rmtree(remote)
    assert len(load_grocery(data_home=home).data) == 7  # no network the second time


@needs_git
def test_a_broken_download_goes_on(home, remote, monkeypatch):
    run, done = _grocery._git, []

    def breaks(*arguments, folder):
        if arguments[0] == "checkout":
            done.append(arguments[-1])
            if len(done) == 3:
                return subprocess.CompletedProcess([], 128, "", "fatal: early EOF\n")
        return run(*arguments, folder=folder)

    monkeypatch.setattr(_grocery, "_git", breaks)
    with pytest.raises(AssetError, match=r"git checkout failed \(fatal: early EOF\)"):
        load_grocery(data_home=home)
    assert not folder_of(home).exists()
    kept = home / ".GroceryStoreDataset.download"
    assert (kept / done[0]).is_dir()
    assert not (kept / done[2]).exists()
    assert len(load_grocery(data_home=home).data) == 7
    assert not kept.exists()


@needs_git
def test_a_commit_that_the_remote_lacks(home, remote, monkeypatch):
    monkeypatch.setattr(_grocery, "_COMMIT", "0" * 40)
    with pytest.raises(AssetError, match="git fetch failed"):
        load_grocery(data_home=home)
    assert not folder_of(home).exists()


@needs_git
def test_a_checkout_of_another_commit(home, remote):
    load_grocery(data_home=home)
    git("commit", "--quiet", "--allow-empty", "-m", "Mine", folder=folder_of(home))
    with pytest.raises(DatasetError, match=rf"(?s)is at commit \w+.*checkout {_grocery._COMMIT}"):
        load_grocery(data_home=home)


@needs_git
def test_a_remote_that_cannot_be_reached(home, remote):
    shutil.rmtree(remote)
    with pytest.raises(AssetError) as caught:
        load_grocery(data_home=home)
    message = str(caught.value)
    for part in (
        "git fetch failed",
        f"git clone file://{remote}",
        f"checkout {_grocery._COMMIT}",
        "CMLEARN_DATA",
    ):
        assert part in message


def test_no_git(home, monkeypatch):
    shutil.rmtree(folder_of(home))
    monkeypatch.setattr(_grocery.shutil, "which", lambda name: None)
    with pytest.raises(AssetError, match=r"git is not installed.*\n  git clone https://github"):
        load_grocery(data_home=home)


@needs_git
def test_space_is_asked_for_before_the_download(home, remote, monkeypatch):
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needs 300 MB in .* and 0 MB are free"):
        load_grocery(data_home=home)
    assert list(home.iterdir()) == []


# The true data set

TRUE = Path(os.environ.get("CMLEARN_DATA") or "~/cmlearn_data").expanduser() / "GroceryStoreDataset"


@pytest.mark.skipif(not TRUE.is_dir(), reason="the Grocery Store Dataset is not on this machine")
def test_the_true_data_set():
    found = load_grocery()
    assert Counter(found.split.tolist()) == {"train": 2640, "val": 296, "test": 2485}
    assert (len(found.target_names), len(found.coarse_names)) == (81, 43)
    kinds = {s: len(set(found.target[found.split == s])) for s in ("train", "val", "test")}
    assert kinds == {"train": 81, "val": 60, "test": 81}
    # The name of the photograph's folder is that of its kind, or of its family.
    for path, target in zip(found.data["image"], found.target, strict=True):
        kind = found.target_names[target]
        assert kind in path or kind.split("-")[0] in path
    assert found.classes["description"].str.len().min() > 20
    assert found.classes.loc["Granny-Smith", "coarse"] == "Apple"
