"""Pairs of the reader's own: folders, CSV and Parquet files."""

import csv
import hashlib
import io
import itertools
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from cmlearn.datasets._common import _SHOWN, DatasetError, _bunch, _count_table, _some
from cmlearn.runtime import cache_dir, replace_when_whole

_FOLDER_DESCR = """\
{name}
{underline}

Image-text pairs read from {place} ({layout}).

* Pairs: {pairs}, in {n_groups} groups

{table}
"""

_LAYOUTS = """\
  images/ with pictures such as 3_cat.jpg (the first number is the label) and texts.txt
          with one line a picture, in the natural order of the file names
  metadata.csv with the columns file_name, text and label, beside the pictures
  one CSV file with the columns image (or file_name), text and label
  one Parquet file with the same columns"""

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class _Row:
    place: str  # where it stands, for messages
    image: Path
    text: str
    label: str
    group: str | None = None


def load_folder(folder, *, encoding="utf-8", return_X_y=False):
    """Load image-text pairs from files on disk.

    The layout is recognised by what is there:

    1. ``images/`` and ``texts.txt``: the label is the first number in a picture's file
       name; line i of ``texts.txt`` belongs to the i-th picture in natural order, in
       which ``2_dog.png`` comes before ``10_cat.png``.
    2. ``metadata.csv`` with the columns ``file_name``, ``text`` and ``label``, beside
       the pictures or above their subfolders (the ImageFolder convention of Hugging
       Face). Without a ``label`` column the subfolder's name is the label.
    3. One CSV file, or a folder with one: columns ``image`` (or ``file_name``),
       ``text`` and ``label``.
    4. One Parquet file, or a folder with one: the same columns. A picture may be a
       path, its bytes or, as in the data sets of Hugging Face, a record of ``bytes``
       and ``path``; bytes are written to the cache folder once, and a path counts
       only where there are none.

    Paths are relative to the file that holds them. A column ``group`` says which rows
    are related and must not be split; without it, rows with the same picture are.
    Other columns and hidden files are ignored. Of each picture only the header is read.

    Parameters
    ----------
    folder : path-like
        The folder, CSV file or Parquet file.
    encoding : str, default="utf-8"
        Of ``texts.txt`` or the CSV file; a byte-order mark is dropped.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    sklearn.utils.Bunch
        ``data`` : DataFrame of shape (n, 2), columns ``image`` (str, absolute path) and
        ``text`` (str). ``target`` : int64 array of shape (n,), indices into
        ``target_names`` : list of str, the labels in natural order. ``groups`` : str
        array of shape (n,). ``DESCR`` : str.

    Raises
    ------
    DatasetError
        When anything does not fit; the message names file, line and remedy.
    """
    place = Path(folder).expanduser()
    layout, read = _recognise(place)
    rows = read(encoding)
    if not rows:
        raise DatasetError(f"{place}: there is no image-text pair in it")
    _check_rows(place, rows)
    names = sorted({row.label for row in rows}, key=_class_order)
    if len(names) == 1:
        raise DatasetError(
            f"{place}: every row has the label {names[0]!r}; a classifier needs at least two "
            f"classes. {_label_hint(layout)}"
        )
    index = {name: number for number, name in enumerate(names)}
    target = [index[row.label] for row in rows]
    groups = [row.group or str(row.image) for row in rows]
    descr = _FOLDER_DESCR.format(
        name=place.resolve().name,
        underline="=" * len(place.resolve().name),
        place=place,
        layout=layout,
        pairs=len(rows),
        n_groups=len(set(groups)),
        table=_count_table(target, names, "label"),
    )
    images, texts = [str(row.image) for row in rows], [row.text for row in rows]
    return _bunch(images, texts, target, names, groups, descr, return_X_y)


def _label_hint(layout: str) -> str:
    if layout == "images and texts.txt":
        return "The label is the first number in a picture's file name, 3 in 3_cat.jpg."
    return "Look at the column 'label', or at the subfolders that stand in for it."


def _recognise(place: Path):
    if place.is_file():
        return _recognise_file(place)
    if not place.is_dir():
        raise DatasetError(f"{place}: there is no such file or folder")
    article = [name for name in ("images", "texts.txt") if (place / name).exists()]
    listed = (place / "metadata.csv").exists()
    if len(article) == 2 and listed:
        raise DatasetError(_both_listings(place))
    if listed:
        return "metadata.csv", lambda encoding: _read_image_folder(place, encoding)
    if len(article) == 2:
        return "images and texts.txt", lambda encoding: _read_article(place, encoding)
    tables = [path for path in _visible(place) if path.suffix.lower() in (".csv", ".parquet")]
    if len(tables) == 1:
        return _recognise_file(tables[0])
    if article:
        missing = ({"images", "texts.txt"} - set(article)).pop()
        raise DatasetError(f"{place} holds {article[0]} but no {missing}: both are needed")
    found = ", ".join(path.name for path in tables) or "none of them"
    raise DatasetError(f"{place}: expected one of\n{_LAYOUTS}\nfound: {found}")


def _recognise_file(path: Path):
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "CSV", lambda encoding: _read_csv(path, encoding)
    if suffix == ".parquet":
        return "Parquet", lambda encoding: _read_parquet(path)
    raise DatasetError(f"{path}: expected a folder, a .csv file or a .parquet file")


def _visible(folder: Path) -> list[Path]:
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")),
        key=lambda path: _natural(path.name),
    )


def _natural(name: str) -> list[str | int]:
    """Return a sort key in which numbers count as numbers: a2 before a10."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", name))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _class_name(label: str) -> str:
    """Return one name for a class, whether its accents are letters of their own or not."""
    return unicodedata.normalize("NFC", label)


def _class_order(name: str) -> tuple:
    """Return a sort key that is natural, and never a tie as "1" and "01" would be."""
    return _natural(name), name


# The article's layout: images/ and texts.txt


def _read_article(folder: Path, encoding: str) -> list[_Row]:
    pictures, texts = _pictures_and_lines(folder, encoding)
    labels = [_number_in_name(path) for path in pictures]
    return [
        _Row(f"texts.txt, line {line} ({path.name})", path.absolute(), text.strip(), label)
        for line, (path, text, label) in enumerate(
            zip(pictures, texts, labels, strict=True), start=1
        )
    ]


def _pictures_and_lines(folder: Path, encoding: str) -> tuple[list[Path], list[str]]:
    """Return the files of ``images/`` in natural order, and the line of each in texts.txt."""
    pictures = sorted(_visible(folder / "images"), key=lambda path: _natural(path.stem))
    _refuse_ties(pictures)
    texts = _lines(folder / "texts.txt", encoding)
    _match_lengths(folder, pictures, texts)
    return pictures, texts


def _refuse_ties(pictures: list[Path]) -> None:
    for first, second in zip(pictures, pictures[1:], strict=False):
        if _natural(first.stem) == _natural(second.stem):
            raise DatasetError(
                f"{first} and {second.name} claim the same line of texts.txt: their names have "
                "the same place in natural order; rename or remove one"
            )


def _number_in_name(path: Path) -> str:
    number = re.search(r"\d+", path.stem)
    if number is None:
        raise DatasetError(
            f"{path}: the file name holds no number to be its label; name it like 3_cat.jpg, "
            "or take it out of the folder"
        )
    return str(int(number.group()))


def _match_lengths(folder: Path, pictures: list[Path], texts: list[str]) -> None:
    if len(pictures) == len(texts):
        return
    counts = f"{folder}: images/ holds {len(pictures)} files and texts.txt {len(texts)} lines"
    if len(pictures) > len(texts):
        extra = f"the first picture without a line is {pictures[len(texts)].name}"
    elif not any(line.strip() for line in texts[len(pictures) :]):
        extra = f"the lines after line {len(pictures)} are empty: delete them"
    else:
        extra = f"the first line without a picture is line {len(pictures) + 1}"
    raise DatasetError(
        f"{counts}; {extra}. Line i belongs to the i-th picture in natural order of the names."
    )


def _read_text(path: Path, encoding: str) -> str:
    content = path.read_bytes()
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
        raise DatasetError(f"encoding={encoding!r} is not one that Python knows") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not valid {encoding}; save "
            "the file as UTF-8, or name its encoding, for instance encoding='gb18030' or 'cp1252'"
        ) from error


def _lines(path: Path, encoding: str) -> list[str]:
    lines = _read_text(path, encoding).split("\n")  # splitlines() would break at U+2028 too
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


# CSV files


def _read_csv(path: Path, encoding: str) -> list[_Row]:
    header, records = _records(path, encoding)
    columns = _columns(path, header, needs_label=True)
    return [_row(path.parent, place, record, columns) for place, record in records]


def _read_image_folder(folder: Path, encoding: str) -> list[_Row]:
    path = folder / "metadata.csv"
    header, records = _records(path, encoding)
    columns = _columns(path, header, needs_label=False)
    rows = [_row(folder, place, record, columns) for place, record in records]
    _refuse_unlisted(folder, rows)
    return rows


def _records(path: Path, encoding: str) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """Return the header and, for each row, where it stands and its cells by column."""
    reader = csv.reader(io.StringIO(_read_text(path, encoding), newline=""), strict=True)
    with _naming_line(path, reader):
        header = [cell.strip() for cell in next(reader, [])]
    return header, _rows_below(path, header, reader)


def _rows_below(path: Path, header: list[str], reader) -> Iterator[tuple[str, dict[str, str]]]:
    with _naming_line(path, reader):
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise DatasetError(
                    f"{place}: {len(cells)} cells where the header has {len(header)}; put "
                    'a text that holds a comma into double quotes: "like, this"'
                )
            if cells:
                yield place, dict(zip(header, cells, strict=True))


@contextmanager
def _naming_line(path: Path, reader) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def _columns(path: Path, header: Iterable[str], *, needs_label: bool) -> dict[str, str]:
    """Return which column holds what: image, text and, where they are, label and group."""
    header = list(header)
    doubled = [name for name, count in Counter(header).items() if count > 1]
    images = [name for name in ("image", "file_name") if name in header]
    missing = [name for name in ("text", "label") if name not in header]
    if not needs_label and "label" in missing:
        missing.remove("label")
    if len(images) != 1:
        missing.insert(0, "image (or file_name)" if not images else "one of image and file_name")
    if missing or doubled:
        problem = f"it lacks {', '.join(missing)}" if missing else f"{doubled[0]!r} comes twice"
        raise DatasetError(
            f"{path}: {problem}; its columns are {', '.join(map(repr, header)) or 'none'}. "
            "Name them image (or file_name), text and label in the first line, separated by commas"
        )
    return {"image": images[0]} | {n: n for n in ("text", "label", "group") if n in header}


def _row(root: Path, place: str, record: dict, columns: dict[str, str]) -> _Row:
    cells = {role: _cell(place, name, record[name]) for role, name in columns.items()}
    image = _inside(root, place, cells["image"])
    label = cells["label"] if "label" in cells else _subfolder(place, root, image)
    return _Row(place, image, cells["text"], _class_name(label), cells.get("group"))


def _cell(place: str, column: str, value: object) -> str:
    missing = value is None or value != value  # NaN is the one value unlike itself
    if isinstance(value, float) and not missing and value.is_integer():
        value = int(value)  # pandas turns whole numbers into floats beside a missing one
    text = "" if missing else str(value).strip()
    if text in ("", "nan", "NaN"):
        raise DatasetError(
            f"{place}: the cell in column {column!r} is empty or NaN; fill it in or delete the row"
        )
    return text


def _inside(root: Path, place: str, name: str) -> Path:
    """Return the path below the folder; one written on Windows may have backslashes."""
    slashed = name.replace("\\", "/")
    parts = PurePosixPath(slashed).parts
    if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise DatasetError(
            f"{place}: the path {name!r} leaves the folder {root}; give a path relative to that "
            "folder, without '..'"
        )
    path = root.absolute() / name
    return root.absolute() / slashed if "\\" in name and not path.exists() else path


def _subfolder(place: str, root: Path, image: Path) -> str:
    if image.parent == root.absolute():
        raise DatasetError(
            f"{place}: there is no column 'label', and {image.name} is in no subfolder whose "
            "name could be it; add the column or sort the pictures into subfolders"
        )
    return image.parent.name


def _refuse_unlisted(folder: Path, rows: list[_Row]) -> None:
    listed = {row.image for row in rows}
    pictures = (p for p in folder.absolute().rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES)
    hidden = {p for p in pictures if not any(q.startswith(".") for q in _below(folder, p))}
    extra = sorted(str(path.relative_to(folder.absolute())) for path in hidden - listed)
    if extra:
        raise DatasetError(
            f"{folder}: metadata.csv does not list {_some(extra)}; add a row for each, or take "
            "them out of the folder"
        )


def _below(folder: Path, path: Path) -> tuple[str, ...]:
    return path.relative_to(folder.absolute()).parts


# Parquet files


def _read_parquet(path: Path) -> list[_Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = _columns(path, table.schema_arrow.names, needs_label=True)
            kind = table.schema_arrow.field(columns["image"]).type
            if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
                return list(_parquet_rows(path, table, columns))
            return list(_rows_with_pictures(path, table, columns))
    except pyarrow.ArrowInvalid as error:
        raise DatasetError(f"{path}: not a Parquet file that can be read ({error})") from error


def _parquet_rows(path, table, columns) -> Iterator[_Row]:
    for number, record in _parquet_records(table, list(columns.values())):
        yield _row(path.parent, f"{path}, row {number}", record, columns)


def _rows_with_pictures(path, table, columns) -> Iterator[_Row]:
    """Yield the rows of a file that holds pictures itself, or records of their paths."""
    folder = _extracted(path, table, columns["image"])
    names = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
    rest = [name for role, name in columns.items() if role != "image"]
    for (number, record), (is_embedded, name) in zip(
        _parquet_records(table, rest), names, strict=True
    ):
        record[columns["image"]] = name
        root = folder if is_embedded else path.parent
        yield _row(root, f"{path}, row {number}", record, columns)


def _parquet_records(table, names: list[str]) -> Iterator[tuple[int, dict]]:
    number = 0
    for batch in table.iter_batches(batch_size=256, columns=names):
        for record in batch.to_pylist():
            number += 1
            yield number, record


_NAMES = "names.json"


def _extracted(path: Path, table, column: str) -> Path:
    """Return the cache folder with the pictures that the Parquet file holds as bytes."""
    with open(path, "rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    folder = cache_dir() / "parquet-pictures" / digest[:32]
    if folder.exists():
        return folder
    try:
        with replace_when_whole(folder) as partial:
            partial.mkdir()
            _extract(path, table, column, partial)
    except OSError:
        if not folder.exists():  # otherwise another process was faster
            raise
    return folder


def _extract(path: Path, table, column: str, folder: Path) -> None:
    """Write the pictures that are there as bytes, each once, and of every row which is its own."""
    names = []
    for number, record in _parquet_records(table, [column]):
        content, name = _content_and_path(record[column])
        if content:
            name = f"{hashlib.sha256(content).hexdigest()}.image"  # Pillow tells the format
            (folder / name).write_bytes(content)
        elif not name:
            raise DatasetError(
                f"{path}, row {number}: the picture has neither bytes nor a path; delete the row"
            )
        names.append([bool(content), name])
    (folder / _NAMES).write_text(json.dumps(names), encoding="utf-8")


def _content_and_path(cell: object) -> tuple[bytes | None, str | None]:
    """Return what a cell holds of a picture: bytes alone, a path, or a record of both."""
    if isinstance(cell, bytes):
        return cell, None
    if isinstance(cell, dict):
        return cell.get("bytes"), cell.get("path")
    return None, cell if isinstance(cell, str) else None


# Pairs without labels, a chunk at a time


def iter_pairs(place, *, encoding="utf-8", chunk_size=256):
    """Read pairs that need no label, a chunk at a time, so that memory does not grow with them.

    Parameters
    ----------
    place : path-like
        A CSV or Parquet file with a column ``image`` (or ``file_name``) and, where there are
        texts, a column ``text``; a folder with ``images/`` and ``texts.txt``; a folder with
        ``metadata.csv``, or with one CSV file (of several the one that has such a
        column); or any other folder, of which every picture is taken, also those in subfolders, in
        natural order.
    encoding : str, default="utf-8"
        Of ``texts.txt`` or the CSV file.
    chunk_size : int, default=256
        Rows of a chunk.

    Yields
    ------
    table : DataFrame of shape (chunk_size, n_columns)
        The rows as they stand in the file; of a folder, ``file_name`` (relative to it). Those of
        a Parquet file keep their Arrow types.
    pairs : DataFrame of shape (chunk_size, 1 or 2)
        ``image`` (str, absolute path; or bytes, if a Parquet file holds the pictures themselves)
        and, where there are texts, ``text`` (str). The index of both says where a row stands.

    Raises
    ------
    DatasetError
        When a row does not fit; the message names it and the remedy.
    """
    place = Path(place).expanduser()
    root, tables = _tables(place, encoding, chunk_size)
    empty = True
    for table in tables:
        empty = False
        yield table, _pairs(place, root, table)
    if empty:
        raise DatasetError(f"{place}: there is no picture in it, or no row below the header")


def _tables(place: Path, encoding: str, chunk_size: int):
    """Return the folder that paths are relative to, and the chunks, indexed by their places."""
    if place.is_dir():
        place = _listing(place, encoding) or place
    if place.is_dir():
        return place, _folder_tables(place, encoding, chunk_size)
    if not place.exists():
        raise DatasetError(f"{place}: there is no such file or folder")
    if place.suffix.lower() == ".csv":
        return place.parent, _csv_tables(place, encoding, chunk_size)
    if place.suffix.lower() == ".parquet":
        return place.parent, _parquet_tables(place, chunk_size)
    raise DatasetError(f"{place}: expected a folder, a .csv file or a .parquet file")


def _listing(folder: Path, encoding: str = "utf-8") -> Path | None:
    """Return the CSV file that says which pictures of a folder count, if there is one."""
    listed = folder / "metadata.csv"
    if _is_article(folder):
        if listed.exists():
            raise DatasetError(_both_listings(folder))
        return None
    if listed.exists():
        return listed
    tables = [path for path in _visible(folder) if path.suffix.lower() == ".csv" and path.is_file()]
    if len(tables) > 1:
        tables = [path for path in tables if _lists_pictures(path, encoding)]
    if len(tables) > 1:
        raise DatasetError(
            f"{folder} holds {_some([path.name for path in tables])}, each a list of pictures: "
            "give the file that is meant in place of the folder"
        )
    return tables[0] if tables else None


def _lists_pictures(path: Path, encoding: str) -> bool:
    """Say whether a CSV file has a column of pictures."""
    try:
        with open(path, encoding=encoding, errors="replace", newline="") as file:
            header = next(csv.reader(file), [])
    except (csv.Error, LookupError):
        return False
    columns = {cell.strip().removeprefix("\ufeff") for cell in header}
    return not {"image", "file_name"}.isdisjoint(columns)


def _is_article(folder: Path) -> bool:
    return (folder / "texts.txt").exists() and (folder / "images").is_dir()


def _both_listings(folder: Path) -> str:
    return f"{folder} holds both texts.txt and metadata.csv: keep the one that is meant"


def _folder_tables(folder: Path, encoding: str, chunk_size: int):
    if _is_article(folder):
        pictures, texts = _pictures_and_lines(folder, encoding)
        columns = {"file_name": pictures, "text": texts}
    else:
        found = (path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
        visible = (
            p for p in found if not any(q.startswith(".") for q in p.relative_to(folder).parts)
        )
        columns = {"file_name": sorted(visible, key=lambda path: _natural(str(path)))}
    columns["file_name"] = [str(path.relative_to(folder)) for path in columns["file_name"]]
    records = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return _chunks(((r["file_name"], r) for r in records), list(columns), chunk_size)


def _csv_tables(path: Path, encoding: str, chunk_size: int):
    header, records = _records(path, encoding)
    _image_column(path, header)
    return _chunks(records, header, chunk_size)


def _chunks(records: Iterable[tuple[str, dict]], columns: list[str], chunk_size: int):
    import pandas as pd

    records = iter(records)
    while chunk := list(itertools.islice(records, chunk_size)):
        places, rows = zip(*chunk, strict=True)
        yield pd.DataFrame(list(rows), index=list(places), columns=columns)


def _parquet_tables(path: Path, chunk_size: int):
    import pandas as pd
    import pyarrow
    import pyarrow.parquet

    first = 1
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _image_column(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=chunk_size):
                # Arrow's types, because a chunk without missing cells would get others from pandas.
                table = batch.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
                table.index = [f"{path}, row {first + n}" for n in range(len(table))]
                first += len(table)
                yield table
    except pyarrow.ArrowInvalid as error:
        raise DatasetError(f"{path}: not a Parquet file that can be read ({error})") from error


def _image_column(place: Path, header: Iterable[str]) -> str:
    doubled = [name for name, count in Counter(header).items() if count > 1]
    if doubled:
        raise DatasetError(f"{place}: the column {doubled[0]!r} comes twice; rename one")
    columns = [name for name in ("image", "file_name") if name in header]
    if len(columns) != 1:
        raise DatasetError(
            f"{place}: expected one column image or file_name; its columns are "
            f"{', '.join(map(repr, header)) or 'none'}"
        )
    return columns[0]


def _pairs(place: Path, root: Path, table):
    import pandas as pd

    images = table[_image_column(place, table.columns)].items()
    cells = {"image": [_picture(root, row, value) for row, value in images]}
    if "text" in table:
        cells["text"] = [_said(row, value) for row, value in table["text"].items()]
    return pd.DataFrame(cells, index=table.index, dtype=object)


def _picture(root: Path, place: str, value: object) -> str | bytes:
    content, name = _content_and_path(value)
    return content or str(_inside(root, place, _cell(place, "image", name)))


def _said(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"{place}: the text is {value!r}; write one, or delete the row")
    return value


# What holds for every layout


def _check_rows(place: Path, rows: list[_Row]) -> None:
    empty = [row.place for row in rows if not row.text.strip()]
    if empty:
        raise DatasetError(
            f"{place}: {len(empty)} empty text(s): {_some(empty)}; write a text for each, or "
            "remove the line and its picture"
        )
    labels: dict[Path, _Row] = {}
    for row in rows:
        first = labels.setdefault(row.image, row)
        if first.label != row.label:
            raise DatasetError(
                f"{row.place}: {row.image.name} has the label {row.label!r} here but "
                f"{first.label!r} at {first.place}; one picture can have one label"
            )
    bad = [f"{row.place}: {problem}" for row in labels.values() if (problem := _defect(row.image))]
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        listing = "\n  ".join(bad[:_SHOWN])
        raise DatasetError(
            f"{place}: {len(bad)} picture(s) cannot be used; replace each or remove its row:"
            f"\n  {listing}{more}"
        )


def _defect(path: Path) -> str | None:
    """Return what is wrong with a picture as far as its header tells, or None."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.stat().st_size == 0:
            return f"{path} is empty (0 bytes)"
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path):
                return None
    except FileNotFoundError:
        return f"{path} does not exist"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"{path} unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except UnidentifiedImageError:
        return f"{path} is not a picture of a known format, or is cut off in its header"
    except Exception as error:  # Pillow's readers raise whatever a broken header leads to
        return f"{path} cannot be read ({error})"
