"""Transformer networks that read texts: the weights that come by pip, and KerasHub's presets."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmlearn._word_vectors import TextError

if TYPE_CHECKING:
    import keras

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "tokenizer.json"
_NEEDED = (WEIGHTS, CONFIG, VOCABULARY)
# Raised when the same text and weights begin to give other codes, so that no code cached before is
# taken for a new one.
RECIPE = 1
_SHORTEST = 8  # word pieces; lengths are powers of two from here on, so that few are compiled

# What KerasHub calls the layers of BERT, and what the weights file calls them.
_LAYERS = {
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "segment_embedding": "embeddings.token_type_embeddings",
    "embeddings_layer_norm": "embeddings.LayerNorm",
    "self_attention_layer/query": "attention.self.query",
    "self_attention_layer/key": "attention.self.key",
    "self_attention_layer/value": "attention.self.value",
    "self_attention_layer/attention_output": "attention.output.dense",
    "self_attention_layer_norm": "attention.output.LayerNorm",
    "feedforward_intermediate_dense": "intermediate.dense",
    "feedforward_output_dense": "output.dense",
    "feedforward_layer_norm": "output.LayerNorm",
}
_ENDINGS = dict.fromkeys(["embeddings", "kernel", "gamma"], "weight")
_ENDINGS |= dict.fromkeys(["bias", "beta"], "bias")


def folder_of(model: str) -> Path | None:
    """Return the folder with a model's weights and tokenizer; None for a preset of KerasHub."""
    if model == "minilm":
        from cmlearn.assets import fetch

        return fetch("minilm")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if "/" in model and "://" not in model:
            raise TextError(f"{model}: no such folder with {', '.join(_NEEDED)}")
        return None
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise TextError(
            f"{folder} lacks {' and '.join(missing)}. A folder in the layout of Sentence "
            f"Transformers holds {', '.join(_NEEDED)}"
        )
    return folder


def weights_hash(model: str) -> str:
    """Return a fingerprint of all that decides the codes, found without importing Keras."""
    folder = folder_of(model)
    if folder is None:
        version = importlib.metadata.version("keras-hub")
        return hashlib.sha256(f"keras-hub {version} {model}".encode()).hexdigest()
    files = [folder / name for name in _NEEDED]
    return _hash_of(tuple(files), tuple(file.stat().st_mtime_ns for file in files))


@functools.lru_cache(maxsize=4)
def _hash_of(files: tuple[Path, ...], modified: tuple[int, ...]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def width(model: str) -> int:
    """Return the length of a code, for a folder without importing Keras."""
    folder = folder_of(model)
    return open_network(model).width if folder is None else _config(folder)["hidden_size"]


@dataclass(frozen=True)
class Network:
    """A transformer and its tokenizer."""

    model: keras.Model
    tokenize: Callable[[list[str]], list[list[int]]]  # without special tokens
    start: int
    end: int
    padding: int
    max_length: int  # tokens, the two special ones among them
    width: int

    def hidden_states(self, pieces: Sequence[list[int]]) -> list[np.ndarray]:
        """Return the last hidden states (length + 2, width) of texts given as token numbers."""
        lengths = [len(piece) + 2 for piece in pieces]
        # Numbers of rows and lengths in powers of two: a new shape is compiled anew.
        rows = 1 << (len(pieces) - 1).bit_length()
        columns = min(max(_SHORTEST, 1 << (max(lengths) - 1).bit_length()), self.max_length)
        tokens = np.full((rows, columns), self.padding, np.int32)
        for row, piece in enumerate(pieces):
            tokens[row, : lengths[row]] = [self.start, *piece, self.end]
        filled = np.array(lengths + [columns] * (rows - len(pieces)))[:, None]
        inputs = {
            "token_ids": tokens,
            "padding_mask": (np.arange(columns) < filled).astype(np.int32),
            "segment_ids": np.zeros_like(tokens),
        }
        wanted = {tensor.name for tensor in self.model.inputs}
        states = self.model.predict_on_batch({name: inputs[name] for name in wanted})
        return [
            np.asarray(row[:length], np.float32)
            for row, length in zip(np.asarray(states), lengths, strict=False)
        ]

    def split(self, tokens: list[int]) -> list[list[int]]:
        """Cut a text into as many pieces as the network needs to read it all."""
        step = self.max_length - 2
        return [tokens[i : i + step] for i in range(0, len(tokens), step)] or [[]]


# Clones made by cross-validation share the network; two are kept for a comparison of models.
@functools.lru_cache(maxsize=2)
def _open(model: str, fingerprint: str) -> Network:
    """Open a network; the fingerprint is there to tell versions of a folder apart."""
    folder = folder_of(model)
    return _open_preset(model) if folder is None else _open_folder(folder)


def open_network(model: str) -> Network:
    """Return the network of that name, opened once."""
    return _open(model, weights_hash(model))


def read(model: str, texts: list[str], batch_size: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield the row of each text and the hidden states of its pieces, the shortest text first."""
    if not texts:
        return
    network = open_network(model)
    pieces = [network.split(tokens) for tokens in network.tokenize(texts)]
    # Texts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(texts)), key=lambda row: sum(map(len, pieces[row])))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = [piece for row in rows for piece in pieces[row]]
        states = iter(
            state
            for i in range(0, len(batch), batch_size)
            for state in network.hidden_states(batch[i : i + batch_size])
        )
        for row in rows:
            yield row, [next(states) for _ in pieces[row]]


def _compiled(inputs, output) -> keras.Model:
    import keras

    from cmlearn.image import jit_compile

    model = keras.Model(inputs, output)
    model.compile(jit_compile=jit_compile())
    return model


# --- A folder in the layout of Sentence Transformers ----------------------------------------------


def _config(folder: Path) -> dict:
    config = _read_json(folder / CONFIG)
    kind = config.get("model_type")
    if kind != "bert":
        raise TextError(
            f"{folder / CONFIG}: expected a BERT, got model_type {kind!r}. Choose another model, "
            "or give the name of a KerasHub preset"
        )
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise TextError(f"{folder / CONFIG}: expected hidden_act 'gelu', got {activation!r}")
    return config


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TextError(f"{path} is not whole JSON ({error}). Download it again") from error


def _open_folder(folder: Path) -> Network:
    config = _config(folder)
    tokenizer = _tokenizer(folder)
    backbone = _backbone(folder, config)
    ids = {name: tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]")}
    absent = [name for name, number in ids.items() if number is None]
    if absent:
        raise TextError(f"{folder / VOCABULARY} lacks {', '.join(absent)}: it is not BERT's")

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return Network(
        model=_compiled(backbone.inputs, backbone.output["sequence_output"]),
        tokenize=tokenize,
        start=ids["[CLS]"],
        end=ids["[SEP]"],
        padding=ids["[PAD]"],
        max_length=_max_length(folder, config),
        width=config["hidden_size"],
    )


def _max_length(folder: Path, config: dict) -> int:
    trained = folder / "sentence_bert_config.json"
    positions = config["max_position_embeddings"]
    if not trained.is_file():
        return positions
    return min(_read_json(trained).get("max_seq_length") or positions, positions)


def _tokenizer(folder: Path):
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / VOCABULARY))
    except Exception as error:  # the library raises nothing narrower
        raise TextError(
            f"{folder / VOCABULARY} is no whole tokenizer ({error}). Download it again"
        ) from error
    # The file asks for texts to be cut at 128 tokens and padded to as many.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _backbone(folder: Path, config: dict):
    """Return KerasHub's BERT with the weights of the folder.

    Older versions of `from_preset` (0.26, say) look for other names than those in the files of
    Sentence Transformers, so the weights are put in place here.
    """
    import keras
    import keras_hub

    arrays = _arrays(folder / WEIGHTS)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_sequence_length=config["max_position_embeddings"],
        num_segments=config["type_vocab_size"],
    )
    for layer in backbone.layers:
        # KerasHub computes GELU by its approximation with tanh, these weights were trained with the
        # exact one. The codes would differ in the fourth decimal.
        if isinstance(layer, keras_hub.layers.TransformerEncoder):
            layer._feedforward_intermediate_dense.activation = keras.activations.gelu
    for variable in backbone.weights:
        # The pooled output, trained to guess the next sentence, is not used.
        if "pooled_dense" not in variable.path:
            variable.assign(_fitting(arrays, variable, folder / WEIGHTS))
    return backbone


def _arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise TextError(
            f"{path} is cut short or no safetensors file ({error}). Download it again"
        ) from error


def _fitting(arrays: dict[str, np.ndarray], variable, path: Path) -> np.ndarray:
    name = _stored_name(variable.path)
    shape = tuple(variable.shape)
    if name not in arrays:
        raise TextError(f"{path} lacks {name!r}: these are the weights of another model")
    array = arrays[name]
    if array.size != np.prod(shape):
        raise TextError(
            f"{path}: {name!r} has shape {array.shape}, which does not fit the {shape} that "
            f"{CONFIG} calls for. The two files belong to different models"
        )
    # A stored matrix maps from its columns to its rows, Keras's from its first axes to its last.
    return (array.T if variable.path.endswith("kernel") else array).reshape(shape)


def _stored_name(path: str) -> str:
    """Return the stored name of a KerasHub variable.

    >>> _stored_name("transformer_layer_3/self_attention_layer/query/kernel")
    'encoder.layer.3.attention.self.query.weight'
    """
    *parts, ending = path.split("/")
    number = None
    if parts[0].startswith("transformer_layer_"):
        number = parts.pop(0).removeprefix("transformer_layer_")
    name = f"{_LAYERS['/'.join(parts)]}.{_ENDINGS[ending]}"
    return name if number is None else f"encoder.layer.{number}.{name}"


# --- Presets of KerasHub --------------------------------------------------------------------------


def _open_preset(name: str) -> Network:
    import difflib

    import keras_hub

    try:
        backbone = keras_hub.models.Backbone.from_preset(name)
        tokenizer = keras_hub.tokenizers.Tokenizer.from_preset(name)
    except Exception as error:  # KerasHub passes on whatever the download raises
        near = difflib.get_close_matches(name, ["minilm", *keras_hub.models.BertBackbone.presets])
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise TextError(
            f"model={name!r} is neither 'minilm', nor a folder, nor a preset that KerasHub can "
            f"load here ({' '.join(str(error).split())[:300]}).{hint}"
        ) from error
    output = backbone.output
    if isinstance(output, dict):
        output = output["sequence_output"]
    start = getattr(tokenizer, "cls_token_id", None) or getattr(tokenizer, "start_token_id", None)
    end = getattr(tokenizer, "sep_token_id", None) or getattr(tokenizer, "end_token_id", None)
    inputs = {tensor.name for tensor in backbone.inputs}
    if None in (start, end) or not inputs <= {"token_ids", "padding_mask", "segment_ids"}:
        raise TextError(
            f"model={name!r} is a {type(backbone).__name__}, which does not encode texts the way "
            "BERT and RoBERTa do. Choose such a preset"
        )

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [np.asarray(tokenizer(text)).tolist() for text in texts]

    return Network(
        model=_compiled(backbone.inputs, output),
        tokenize=tokenize,
        start=start,
        end=end,
        padding=tokenizer.pad_token_id,
        max_length=getattr(backbone, "max_sequence_length", 512),
        width=output.shape[-1],
    )
