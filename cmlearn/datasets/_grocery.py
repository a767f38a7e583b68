"""The Grocery Store Dataset: photographs taken in shops, and what the shops say of each kind."""

import csv
import errno
import hashlib
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmlearn.assets import AssetError
from cmlearn.datasets._common import DatasetError, _bunch, _some
from cmlearn.runtime import data_home as _data_home

_ADDRESS = "https://github.com/marcusklasson/GroceryStoreDataset.git"
_COMMIT = "fc80ba90f803d79d0383df52c5a4ac5de99ff6fc"
_LISTS = ("classes.csv", "train.txt", "val.txt", "test.txt")
_LISTS_SHA256 = "1f1578029e097fad5714b893dab89846a992f0105e8381eb66343106bc602585"
_SIZE = 300_000_000  # bytes: the files, and git's own copies of them
_SPLITS = ("train", "val", "test")

_DESCR = """\
Grocery Store Dataset: photographs of groceries, and a description of each kind
===============================================================================

Photographs of fruit, vegetables and cartons, taken with a phone in grocery stores in Sweden.
The task is to tell which of 81 kinds a photograph shows (fine: "Granny-Smith"), or which of
43 families of them (coarse: "Apple"). The authors split the photographs once and for all;
numbers that are to be compared with published ones must keep to their split.

* Photographs here: {shown}
* Kinds: {n_fine} fine and {n_coarse} coarse as the files have them (the data set's README says
  42 coarse); the validation photographs show only 60 kinds
* Read from {place}{commit}

{table}

What a description is, and is not
---------------------------------
For each of the 81 kinds the data set holds one product description and one iconic picture,
both taken from a shop's web page. They are properties of the kind, not of a photograph: whoever
gives a photograph of the test set the description of its kind has written the label beside it,
and any text classifier will then score 100%. So ``data["text"]`` is None in every row, as a
photograph comes without a caption, and the descriptions and pictures stand in ``classes``, a
row a kind. They may be used in training, or for all 81 kinds alike when a photograph is
compared with each of them.

Source and licence
------------------
M. Klasson, C. Zhang and H. Kjellström, "A hierarchical grocery store image dataset with visual
and semantic labels", WACV 2019, https://arxiv.org/abs/1901.00711.
https://github.com/marcusklasson/GroceryStoreDataset, commit {pinned}. MIT licence.
"""


def load_grocery(*, split=None, data_home=None, return_X_y=False):
    """Load the Grocery Store Dataset: photographs taken in shops, with the official split.

    5,421 photographs of 81 kinds of fruit, vegetables and cartons [1]_. They are looked for in the
    folder ``GroceryStoreDataset`` below `data_home`; when it is not there, it is fetched by git at
    the one commit that was tested (some 300 MB with git's own copies, once). A download that broke
    off goes on at the first folder of pictures that is not whole.

    Parameters
    ----------
    split : {"train", "val", "test"}, optional
        The part of the official split; all photographs by default.
    data_home : path-like, optional
        The folder of large data sets; ``CMLEARN_DATA`` by default.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` : DataFrame of shape (n, 2), columns ``image`` (str, path of a JPEG) and ``text``
        (None in every row: a photograph comes without one). ``target`` : int64 array of shape
        (n,), the kind. ``target_names`` : list of 81 str. ``coarse_target`` : int64 array of shape
        (n,). ``coarse_names`` : list of 43 str. ``coarse_of_fine`` : int64 array of shape (81,).
        ``split`` : str array of shape (n,). ``classes`` : DataFrame of shape (81, 3), indexed by
        ``target_names``, columns ``coarse`` (str), ``description`` (str) and ``icon`` (str, path
        of a JPEG). ``groups`` : str array of shape (n,), every photograph its own. ``DESCR`` : str.

    Raises
    ------
    ValueError
        When `split` is not one of those above.
    cmlearn.assets.AssetError
        When the data is not there and git cannot fetch it.
    DatasetError
        When the folder is at another commit, or its files are not those of the tested one.
    OSError
        When there is not enough space; this is asked for before the download.

    Notes
    -----
    A description is a property of a kind. Beside a test photograph it would be the label in other
    words, so it is offered by kind, never as the text of a pair.

    References
    ----------
    .. [1] M. Klasson, C. Zhang and H. Kjellström, "A hierarchical grocery store image dataset with
       visual and semantic labels", WACV 2019. https://arxiv.org/abs/1901.00711
    """
    if split is not None and split not in _SPLITS:
        raise ValueError(f"split={split!r}: choose 'train', 'val' or 'test', or None for all")
    folder = _data_home(data_home) / "GroceryStoreDataset"
    if not folder.is_dir():
        _fetch(folder)
    commit = _check_commit(folder)
    _check_lists(folder)
    classes, coarse_names = _read_classes(folder)
    rows = [row for name in _SPLITS for row in _read_split(folder, name, classes)]
    _check_pictures(folder, rows, classes)
    shown = [row for row in rows if split in (None, row.split)]
    descr = _DESCR.format(
        shown=f"{len(shown)} ({split or 'all three parts'})",
        n_fine=len(classes),
        n_coarse=len(coarse_names),
        place=folder,
        commit=f", commit {commit}" if commit else "",
        table=_split_table(rows),
        pinned=_COMMIT,
    )
    names = [row.name for row in classes]
    coarse_of_fine = np.array([row.coarse for row in classes], dtype=np.int64)
    target = [row.fine for row in shown]
    return _bunch(
        [str(row.image) for row in shown],
        [None] * len(shown),
        target,
        names,
        [row.image.stem for row in shown],
        descr,
        return_X_y,
        coarse_target=coarse_of_fine[target],
        coarse_names=coarse_names,
        coarse_of_fine=coarse_of_fine,
        split=np.array([row.split for row in shown]),
        classes=_class_table(classes, coarse_names),
    )


# --- Reading the lists ---------------------------------------------------------------------------


class _Class(NamedTuple):
    name: str
    coarse: int
    icon: Path
    description: Path


class _Row(NamedTuple):
    split: str
    image: Path
    fine: int


def _read_classes(folder: Path) -> tuple[list[_Class], list[str]]:
    """Return the kinds in the order of their numbers, and the names of the families."""
    root = folder / "dataset"
    with open(root / "classes.csv", encoding="utf-8", newline="") as file:
        records = [[cell.strip() for cell in record] for record in csv.reader(file)][1:]
    coarse_names = {int(record[3]): record[2] for record in records}
    classes = [
        _Class(name, int(coarse), root / icon.lstrip("/"), root / description.lstrip("/"))
        for name, _, _, coarse, icon, description in sorted(records, key=lambda r: int(r[1]))
    ]
    return classes, [coarse_names[index] for index in sorted(coarse_names)]


def _read_split(folder: Path, split: str, classes: list[_Class]) -> list[_Row]:
    root = folder / "dataset"
    lines = (root / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    records = [[cell.strip() for cell in line.split(",")] for line in lines]
    for number, (_, fine, coarse) in enumerate(records, start=1):
        if classes[int(fine)].coarse != int(coarse):
            raise DatasetError(
                f"{root / split}.txt, line {number}: kind {fine} is of family {coarse} here and "
                f"of {classes[int(fine)].coarse} in classes.csv"
            )
    return [_Row(split, root / name, int(fine)) for name, fine, _ in records]


def _class_table(classes: list[_Class], coarse_names: list[str]):
    import pandas

    columns = {
        "coarse": [coarse_names[row.coarse] for row in classes],
        "description": [row.description.read_text(encoding="utf-8").strip() for row in classes],
        "icon": [str(row.icon) for row in classes],
    }
    return pandas.DataFrame(columns, index=[row.name for row in classes])


def _split_table(rows: list[_Row]) -> str:
    counts = Counter(row.split for row in rows)
    kinds = {split: len({r.fine for r in rows if r.split == split}) for split in _SPLITS}
    lines = ["split  photographs  kinds", "-----  -----------  -----"]
    lines += [f"{split:<5}  {counts[split]:>11}  {kinds[split]:>5}" for split in _SPLITS]
    return "\n".join(lines)


# --- Checking that it is the tested data ---------------------------------------------------------


def _check_commit(folder: Path) -> str | None:
    """Return the commit of a checkout; None when the folder is a copy without git's records."""
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    reply = _git("rev-parse", "HEAD", folder=folder)
    if reply.returncode != 0:  # for instance because the folder belongs to another user
        return None
    commit = reply.stdout.strip()
    if commit != _COMMIT:
        raise DatasetError(
            f"{folder} is at commit {commit}, and the data set was tested at {_COMMIT}: run\n"
            f"  git -C '{folder}' fetch --depth 1 origin {_COMMIT}\n"
            f"  git -C '{folder}' checkout {_COMMIT}\n"
            "or move the folder away, and it will be fetched anew"
        )
    return commit


def _check_lists(folder: Path) -> None:
    """Compare the lists of kinds and photographs with those of the tested commit."""
    missing = [name for name in _LISTS if not (folder / "dataset" / name).is_file()]
    if missing:
        raise DatasetError(
            f"{folder} lacks dataset/{missing[0]}: expected the layout of a checkout of "
            f"{_ADDRESS}. Move the folder away, and it will be fetched anew"
        )
    if _lists_sha256(folder) != _LISTS_SHA256:
        raise DatasetError(
            f"{folder}: the files {', '.join(_LISTS)} in dataset are not those of "
            f"commit {_COMMIT}. Move the folder away, and it will be fetched anew"
        )


def _lists_sha256(folder: Path) -> str:
    whole = hashlib.sha256()
    for name in _LISTS:
        # git on Windows may have given the files other line ends.
        content = (folder / "dataset" / name).read_bytes().replace(b"\r\n", b"\n")
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def _check_pictures(folder: Path, rows: list[_Row], classes: list[_Class]) -> None:
    files = [row.image for row in rows]
    files += [file for row in classes for file in (row.icon, row.description)]
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        raise DatasetError(
            f"{folder} lacks {len(missing)} files: {_some(missing)}. In a checkout run "
            f"\"git -C '{folder}' checkout -- dataset\"; else move the folder away, and it will be "
            "fetched anew"
        )


# --- Fetching by git -----------------------------------------------------------------------------


def _fetch(folder: Path) -> None:
    """Fetch the tested commit into a folder beside, a part at a time, and rename it when whole."""
    if shutil.which("git") is None:
        raise AssetError(_remedy(folder, "git is not installed"))
    _check_space(folder.parent)
    work = folder.with_name(f".{folder.name}.download")
    work.mkdir(exist_ok=True)
    _run(folder, "init", "--quiet", work=work)
    _run(folder, "config", "remote.origin.url", _ADDRESS, work=work)
    # Only the list of files first; their contents follow by folder, and what is there stays.
    _run(folder, "fetch", "--depth=1", "--filter=blob:none", "origin", _COMMIT, work=work)
    for part in _parts(folder, work):
        _run(folder, "checkout", "--quiet", _COMMIT, "--", part, work=work)
    _run(folder, "checkout", "--quiet", "--detach", _COMMIT, work=work)
    os.replace(work, folder)


def _parts(folder: Path, work: Path) -> list[str]:
    """Return the folders of a checkout that are fetched one after the other."""
    listed = _run(folder, "ls-tree", "-d", "-r", "-z", "--name-only", _COMMIT, work=work)
    names = [name for name in listed.stdout.split("\0") if name]
    return [name for name in names if name.count("/") == 2]  # dataset/train/Fruit


def _run(folder: Path, *arguments: str, work: Path) -> subprocess.CompletedProcess:
    reply = _git(*arguments, folder=work)
    if reply.returncode != 0:
        said = reply.stderr.strip().splitlines() or ["it gave no reason"]
        raise AssetError(_remedy(folder, f"git {arguments[0]} failed ({said[-1]})"))
    return reply


def _git(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    # git must never wait for a password, and answers in English.
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _remedy(folder: Path, reason: str) -> str:
    return (
        f"cannot get the Grocery Store Dataset: {reason}. What has already been fetched is kept "
        "for the next try. Check the network and try again; or get it on any machine with\n"
        f"  git clone {_ADDRESS} GroceryStoreDataset\n"
        f"  git -C GroceryStoreDataset checkout {_COMMIT}\n"
        f"and put the folder at {folder}, or name the folder that holds it by CMLEARN_DATA."
    )


def _check_space(home: Path) -> None:
    free = shutil.disk_usage(home).free
    if free < _SIZE:
        raise OSError(
            errno.ENOSPC,
            f"the Grocery Store Dataset needs {_SIZE / 1e6:,.0f} MB in {home} and "
            f"{free / 1e6:,.0f} MB are free: free some space, or set CMLEARN_DATA to a folder on "
            "another disk",
        )
