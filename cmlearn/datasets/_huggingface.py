"""Image-text pairs of the Hugging Face Hub, or of a folder in its format."""

import errno
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

from filelock import FileLock

from cmlearn.assets import AssetError
from cmlearn.datasets._common import _SHOWN, DatasetError, _bunch, _count_table
from cmlearn.datasets._folder import _class_name, _class_order, _defect
from cmlearn.runtime import cache_dir, replace_when_whole

_CHUNK = 256  # pairs that are kept at once; a broken download loses no more
_PICTURE_SIZE = 200_000  # bytes, where the data set does not say: more than most have

_DESCR = """\
{name}
{underline}

Image-text pairs of the data set {dataset}, part {split}{revision}.

* Pairs: {pairs}{some}, in {n_groups} groups
* Pictures from the column {image!r}, texts from {text}, labels from {label!r}
* Kept in {folder}

{table}

The licence is that which the data set's own page names.
"""


def load_huggingface(
    dataset,
    *,
    image="image",
    text="text",
    label="label",
    group=None,
    name=None,
    split="train",
    revision=None,
    max_pairs=None,
    return_X_y=False,
):
    """Load image-text pairs of the Hugging Face Hub, or of a folder in its format.

    Needs the package ``datasets`` (``pip install "cmlearn[huggingface]"``). The rows are streamed:
    of a large data set no more is downloaded than `max_pairs` need. The pictures are written to
    the cache folder as they come, with their texts and labels, 256 pairs at a time; a download
    that broke off goes on behind the last of these, and a second call reads them without a
    network. No code that a data set may hold is run.

    Parameters
    ----------
    dataset : str or path-like
        The name on the Hub, such as ``"ashraq/fashion-product-images-small"``, or a folder with
        Parquet, CSV or JSON files or pictures, as ``datasets.load_dataset`` takes it.
    image, text, label : str
        The columns. ``text=None`` is for sets of pictures without texts, such as Food-101: the
        texts are then None.
    group : str, optional
        A column that says which rows are related. Without it, rows with the same picture are.
    name : str, optional
        The configuration, where a data set has several.
    split : str, default="train"
        The part.
    revision : str, optional
        A commit, branch or tag on the Hub. Give a commit for results that can be repeated: without
        it the newest is taken at the first call, and kept for this part and these columns.
    max_pairs : int, optional
        Take the first so many rows. A Hub's files are often sorted by label, so look at what you
        get.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` : DataFrame of shape (n, 2), columns ``image`` (str, path) and ``text`` (str, or
        None). ``target`` : int64 array of shape (n,), indices into ``target_names`` : list of
        str, in the data set's own order where it has one, else in natural order. ``groups`` :
        str array of shape (n,). ``DESCR`` : str.

    Raises
    ------
    ImportError
        When the package ``datasets`` is not installed.
    cmlearn.assets.AssetError
        When the Hub cannot be reached.
    DatasetError
        When there is no such data set, part or column, a column is of another type, or a row
        lacks its picture, text or label; the message names it and the remedy.
    OSError
        When there is not enough space; this is asked for before the download.

    Examples
    --------
    Photographs of clothes with the names that a shop gives them, and the set of Food-101, which
    has labels but no texts:

    >>> fashion = load_huggingface(
    ...     "ashraq/fashion-product-images-small",
    ...     text="productDisplayName", label="masterCategory", max_pairs=2000,
    ... )  # doctest: +SKIP
    >>> food = load_huggingface("ethz/food101", text=None, max_pairs=2000)  # doctest: +SKIP
    """
    _check_max_pairs(max_pairs)
    columns = {"image": image, "text": text, "label": label, "group": group}
    columns = {role: column for role, column in columns.items() if column is not None}
    source = _Source(dataset, name, split, revision, columns)
    rows, label_names = _stored_rows(source, max_pairs)
    if not rows:
        raise DatasetError(f"{source}: there is no row in it")
    _check_pictures(source, rows)
    names = label_names or sorted({row["label"] for row in rows}, key=_class_order)
    if len({row["label"] for row in rows}) < 2:
        more = "; raise max_pairs, or shuffle the data set: its rows may be sorted by label"
        raise DatasetError(
            f"{source}: every row has the label {rows[0]['label']!r}, and a classifier needs two"
            f"{more if max_pairs else ''}"
        )
    index = {label_name: number for number, label_name in enumerate(names)}
    target = [index[row["label"]] for row in rows]
    groups = [row.get("group", row["digest"]) for row in rows]
    descr = _DESCR.format(
        name=source.short,
        underline="=" * len(source.short),
        dataset=dataset,
        split=split,
        revision=f", revision {revision}" if revision else "",
        pairs=len(rows),
        some=" (the first ones)" if max_pairs is not None and len(rows) == max_pairs else "",
        n_groups=len(set(groups)),
        image=image,
        text=repr(text) if text else "nowhere",
        label=label,
        folder=source.folder,
        table=_count_table(target, names, "label"),
    )
    images, texts = [row["image"] for row in rows], [row.get("text") for row in rows]
    return _bunch(images, texts, target, names, groups, descr, return_X_y)


def _check_max_pairs(max_pairs) -> None:
    if max_pairs is None:
        return
    if not isinstance(max_pairs, Integral) or isinstance(max_pairs, bool) or max_pairs < 1:
        raise ValueError(f"max_pairs={max_pairs!r} must be a positive integer, or None for all")


class _Source:
    """What is asked for, and the cache folder of exactly that."""

    def __init__(self, dataset, name, split, revision, columns: dict[str, str]):
        self.dataset, self.name, self.split, self.revision = str(dataset), name, split, revision
        self.columns = columns
        facts = [self.dataset, name, split, revision, columns, _state(Path(dataset))]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.short = Path(dataset).absolute().name  # a folder's, or that on the Hub
        self.folder = cache_dir() / "huggingface" / f"{self.short}-{digest[:16]}"

    def __str__(self) -> str:
        return f"{self.dataset} ({self.split})"


def _state(folder: Path) -> list | None:
    """Return what changes when the files of a local folder do."""
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path, path.stat()) for path in files]
    return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


# --- What is kept: folders of 256 pictures with their rows ---------------------------------------


def _stored_rows(source: _Source, max_pairs: int | None) -> tuple[list[dict], list[str] | None]:
    """Return rows and label names from the cache folder, streaming what it lacks."""
    rows, label_names, is_enough = _kept(source.folder, max_pairs)
    if not is_enough:
        source.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(source.folder / ".lock"):
            # Another process may have streamed them while this one waited for its turn.
            rows, label_names, is_enough = _kept(source.folder, max_pairs)
            if not is_enough:
                rows, label_names = _stream_the_rest(source, rows, max_pairs)
    return rows[:max_pairs], label_names


def _stream_the_rest(source: _Source, rows: list[dict], max_pairs: int | None):
    stream, label_names = _open(source)
    _check_space(source, stream, max_pairs)
    for chunk in _chunks(source, stream, len(rows), max_pairs):
        rows = rows + _keep(source, chunk, first=len(rows), label_names=label_names)
    if max_pairs is None or len(rows) < max_pairs:
        with replace_when_whole(source.folder / "whole") as partial:
            partial.write_text(f"{len(rows)} pairs\n")
    return rows, label_names


def _kept(folder: Path, max_pairs: int | None) -> tuple[list[dict], list[str] | None, bool]:
    """Return the rows that are there, the names of the labels, and whether that is enough."""
    rows: list[dict] = []
    label_names = None
    while (chunk := folder / f"{len(rows):08d}").is_dir():
        content = json.loads((chunk / "rows.json").read_text(encoding="utf-8"))
        rows += [row | {"image": str(chunk / row["image"])} for row in content["rows"]]
        label_names = content["label_names"]
    is_whole = (folder / "whole").exists()
    return rows, label_names, is_whole or (max_pairs is not None and len(rows) >= max_pairs)


def _keep(source: _Source, chunk: list[dict], *, first: int, label_names) -> list[dict]:
    folder = source.folder / f"{first:08d}"
    rows = []
    with replace_when_whole(folder) as partial:
        partial.mkdir()
        for number, row in enumerate(chunk, start=first):
            picture = row.pop("picture")
            image = f"{number:08d}.image"  # Pillow tells the format by the content
            (partial / image).write_bytes(picture)
            rows.append(row | {"image": image, "digest": hashlib.sha256(picture).hexdigest()})
        content = json.dumps({"rows": rows, "label_names": label_names}, ensure_ascii=False)
        (partial / "rows.json").write_text(content, encoding="utf-8")
    return [row | {"image": str(folder / row["image"])} for row in rows]


def _check_space(source: _Source, stream, max_pairs: int | None) -> None:
    part = (stream.info.splits or {}).get(source.split)
    pairs, size = (part.num_examples, part.num_bytes) if part else (None, None)
    if not pairs:
        pairs, size = max_pairs or _CHUNK, (max_pairs or _CHUNK) * _PICTURE_SIZE
    needed = size * min(max_pairs or pairs, pairs) // pairs
    free = shutil.disk_usage(cache_dir()).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{source} needs about {needed / 1e6:,.0f} MB in {cache_dir()} and {free / 1e6:,.0f} "
            "MB are free: free some space, set CMLEARN_CACHE to a folder on another disk, or lower "
            "max_pairs",
        )


def _check_pictures(source: _Source, rows: list[dict]) -> None:
    bad = [
        f"row {number}: {problem}"
        for number, row in enumerate(rows)
        if (problem := _defect(Path(row["image"])))
    ]
    if bad:
        listing = "\n  ".join(bad[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DatasetError(
            f"{source}: {len(bad)} picture(s) cannot be used; correct the data set, or delete "
            f"{source.folder} and load again, if the download was damaged:\n  {listing}{more}"
        )


# --- Streaming -----------------------------------------------------------------------------------


def _open(source: _Source):
    """Return the stream of the wanted columns, and the names of the labels if it knows them."""
    datasets = _datasets()
    with _explained(source):
        stream = datasets.load_dataset(
            source.dataset,
            source.name,
            split=source.split,
            revision=_revision(source),
            streaming=True,
        )
        features = stream.features or next(iter(stream.take(1)), {})
    wanted = list(source.columns.values())
    missing = [column for column in wanted if column not in features]
    if missing:
        raise DatasetError(
            f"{source} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, features))}. Name yours by image=, text= and label="
        )
    stream = stream.select_columns(list(dict.fromkeys(wanted)))
    image = source.columns["image"]
    if stream.features:
        _check_types(source, stream.features)
        # The bytes as they are: decoding and encoding anew would change them.
        stream = stream.cast_column(image, datasets.Image(decode=False))
    return stream, getattr(features[source.columns["label"]], "names", None)


def _revision(source: _Source) -> str | None:
    """Return what was asked for, or the commit that was the newest at the first call."""
    if source.revision is not None or Path(source.dataset).exists():
        return source.revision
    kept = source.folder / "revision"
    if not kept.exists():
        newest = _newest_commit(source.dataset)
        with replace_when_whole(kept) as partial:
            partial.write_text(newest)
    return kept.read_text()


def _newest_commit(dataset: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return HfApi().dataset_info(dataset).sha
    except (HFValidationError, RepositoryNotFoundError) as error:  # a path is no name
        raise FileNotFoundError(str(error)) from error
    except Exception as error:  # whatever the Hub's client lets through: no network, no answer
        raise ConnectionError(str(error)) from error


def _datasets():
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "load_huggingface needs the package datasets, which is not installed: run\n"
            '  pip install "cmlearn[huggingface]"'
        ) from error
    return datasets


@contextmanager
def _explained(source: _Source) -> Iterator[None]:
    """Turn the errors of the Hub into ones that name the way out."""
    try:
        yield
    except ConnectionError as error:
        raise AssetError(
            f"{source} cannot be reached: {error}. Check the network and try again, what has "
            "already been downloaded is kept; or get the data set on another machine with\n"
            f"  hf download --repo-type dataset {source.dataset} --local-dir FOLDER\n"
            "and give that folder in place of the name"
        ) from error
    except FileNotFoundError as error:
        raise DatasetError(
            f"{source}: there is no such data set, or it asks for a login ({error}). Correct the "
            "name, or log in with 'hf auth login'"
        ) from error
    except ValueError as error:  # no such part, no such configuration
        raise DatasetError(f"{source}: {error}. Name another by split= or name=") from error


def _check_types(source: _Source, features) -> None:
    """Refuse columns whose declared type cannot be what they are asked for as."""
    held = {role: features[column] for role, column in source.columns.items()}
    expected = {"image": "pictures", "text": "strings", "label": "a class, string or integer"}
    fits = {
        "image": _holds_pictures(held["image"]),
        "text": _dtype(held.get("text")) in ("string", "large_string", None),
        "label": _dtype(held["label"]).startswith(
            ("int", "uint", "string", "large_string", "bool")
        ),
    }
    for role, fit in fits.items():
        if not fit:
            raise DatasetError(
                f"{source}: the column {source.columns[role]!r} holds {held[role]}, expected "
                f"{expected[role]}. Name another by {role}="
            )


def _holds_pictures(feature) -> bool:
    import datasets

    is_record = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
    is_bytes = _dtype(feature) in ("binary", "large_binary")
    return is_record or is_bytes or isinstance(feature, datasets.Image)


def _dtype(feature) -> str | None:
    return None if feature is None else str(getattr(feature, "dtype", "nothing of the kind"))


def _chunks(source: _Source, stream, first: int, max_pairs: int | None) -> Iterator[list[dict]]:
    label_names = getattr((stream.features or {}).get(source.columns["label"]), "names", None)
    records = enumerate(stream.skip(first) if first else stream, start=first)
    rows = (_row(source, number, record, label_names) for number, record in records)
    if max_pairs is not None:
        rows = itertools.islice(rows, max_pairs - first)
    with _explained_rows(source):
        while chunk := list(itertools.islice(rows, _CHUNK)):
            yield chunk


@contextmanager
def _explained_rows(source: _Source) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise AssetError(
            f"{source}: the download broke off ({error}). Load it again: it goes on behind the "
            "pairs that are already there"
        ) from error


def _row(source: _Source, number: int, record: dict, label_names: list[str] | None) -> dict:
    place = f"{source}, row {number}"
    cells = {role: record[column] for role, column in source.columns.items()}
    row = {
        "picture": _picture(place, source.columns["image"], cells["image"]),
        "label": _label(place, source.columns["label"], cells["label"], label_names),
    }
    if "text" in cells:
        row["text"] = _text(place, source.columns["text"], cells["text"])
    if "group" in cells:
        row["group"] = _group(place, source.columns["group"], cells["group"])
    return row


def _picture(place: str, column: str, value: object) -> bytes:
    if isinstance(value, dict) and value.get("bytes"):
        return value["bytes"]
    if isinstance(value, dict) and value.get("path"):
        import fsspec

        with fsspec.open(value["path"], "rb") as file:
            return file.read()
    raise DatasetError(
        f"{place}: the column {column!r} holds {_shortened(value)}, not a picture; leave the row "
        "out, or take another column by image="
    )


def _text(place: str, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(
            f"{place}: the column {column!r} holds {_shortened(value)}, not a text; leave the row "
            "out, or take another column by text="
        )
    return value


def _group(place: str, column: str, value: object) -> str:
    if value is None or value != value or not str(value).strip():  # NaN differs from itself
        raise DatasetError(
            f"{place}: the column {column!r} holds {_shortened(value)}, not a group; rows without "
            "one would count as related. Give each a value of its own, or leave group= out"
        )
    return str(value)


def _label(place: str, column: str, value: object, names: list[str] | None) -> str:
    known = isinstance(value, str | int) and value != ""
    if names is not None:
        known = isinstance(value, int) and 0 <= value < len(names)  # -1: not labelled
    if not known:
        raise DatasetError(
            f"{place}: the column {column!r} holds {_shortened(value)}, not a label; leave the row "
            "out, or take another column by label="
        )
    return _class_name(str(value)) if names is None else names[value]


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
