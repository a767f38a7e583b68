"""FastText, sentence transformers, words for attention, spelling."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from cmlearn import _sentences, _spelling, _subwords
from cmlearn.assets import AssetError, fetch
from cmlearn.persistence import TRUSTED_TYPES
from cmlearn.text import (
    FastTextEncoder,
    GloVeEncoder,
    OutOfVocabularyWarning,
    SentenceEncoder,
    SpellingCorrector,
    TextError,
    tokenize,
)

NAMES = ["grinning face", "red apple", "cat face", "face with tears of joy", "green apple"]
VECTORS = "cup 1 0 0\nred 0 1 0\nblue 0 0 1\nthe 1 1 1\n"


@pytest.fixture
def vec(tmp_path):
    path = tmp_path / "small.vec"
    path.write_text("4 3\n" + VECTORS)
    return str(path)


def small(**options):
    return FastTextEncoder(**{"vector_size": 8, "epochs": 2, "random_state": 0} | options)


# --- fastText -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    word=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
    min_n=st.integers(1, 4),
    more=st.integers(0, 3),
)
def test_ngrams_are_hashed_as_gensim_hashes_them(word, min_n, more):
    inner = pytest.importorskip("gensim.models.fasttext_inner")
    peer = inner.compute_ngrams_bytes(word, min_n, min_n + more)
    assert _subwords.buckets(word, min_n, min_n + more, 1000) == [
        inner.ft_hash_bytes(ngram) % 1000 for ngram in peer
    ]


def peer_of(texts, **options):
    models = pytest.importorskip("gensim.models")
    seed = int(np.random.RandomState(0).randint(2**31))
    settings = dict(vector_size=8, min_n=3, max_n=6, sg=1, alpha=0.05, min_count=1, workers=1)
    model = models.FastText(**settings | options, bucket=_subwords.N_BUCKETS, seed=seed)
    documents = [tokenize(text) for text in texts]
    model.build_vocab(documents)
    model.train(documents, total_examples=len(documents), epochs=2)
    # What training never touched holds random numbers in gensim, and counts as zero here.
    untouched = np.setdiff1d(np.arange(_subwords.N_BUCKETS), np.concatenate(model.wv.buckets_word))
    model.wv.vectors_ngrams[untouched] = 0
    return model.wv


def test_training_and_unseen_words_equal_gensim():
    peer = peer_of(NAMES)
    texts = ["red face", "grining aple", "apples of greenland"]
    expected = [np.mean([peer[word] for word in tokenize(text)], axis=0) for text in texts]
    assert np.allclose(small().fit(NAMES).transform(texts), expected, atol=1e-6)


def test_typo_is_nearer_to_its_word_than_to_others():
    encoder = small(vector_size=32, epochs=20).fit(NAMES * 20)
    typo, right, other = encoder.transform(["grining", "grinning", "apple"])
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    assert cosine(typo, right) > cosine(typo, other) + 0.2


def test_same_seed_gives_the_same_vectors_in_every_process():
    script = (
        "import hashlib; from cmlearn.text import FastTextEncoder as F;"
        f"e = F(vector_size=8, epochs=2, random_state=0).fit({NAMES!r});"
        f"print(hashlib.sha256(e.transform({NAMES!r}).tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stderr == ""
    assert not np.array_equal(
        small().fit_transform(NAMES), small(random_state=1).fit_transform(NAMES)
    )


def test_fitting_touches_no_global_seed():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    small().fit(NAMES)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_trained_encoder_works_without_gensim(monkeypatch):
    encoder = small().fit(NAMES)
    expected = encoder.transform(["grining"])
    monkeypatch.setitem(sys.modules, "gensim", None)
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    assert np.array_equal(pickle.loads(pickle.dumps(encoder)).transform(["grining"]), expected)
    with pytest.raises(ImportError, match="pip install gensim"):
        small().fit(NAMES)


def test_text_file_knows_whole_words_only(vec):
    encoder = FastTextEncoder(vec).fit(["red cup", "blu"])
    assert encoder.oov_rate_ == 1 / 3
    assert encoder.oov_words_ == ["blu"]
    assert encoder.transform(["red cup"]).tolist() == [[0.5, 0.5, 0]]
    with pytest.warns(OutOfVocabularyWarning, match="1 of 2 texts have no word") as caught:
        encoder.transform(["red", "blu"])
    assert caught[0].filename == __file__


@pytest.fixture(scope="module")
def facebook(tmp_path_factory):
    """Return a .bin file of fastText, and what gensim trained for it."""
    models = pytest.importorskip("gensim.models")
    fasttext = pytest.importorskip("gensim.models.fasttext")
    model = models.FastText(
        [tokenize(name) for name in NAMES], vector_size=6, min_count=1, bucket=50, workers=1
    )
    path = tmp_path_factory.mktemp("bin") / "model.bin"
    fasttext.save_facebook_model(model, str(path))
    return path, model.wv


def test_binary_file_gives_vectors_to_unseen_words(facebook):
    path, peer = facebook
    encoder = FastTextEncoder(path).fit(NAMES)
    words = ["apple", "aple", "unseen"]
    assert np.allclose(encoder.transform(words), [peer[word] for word in words], atol=1e-6)
    assert encoder.oov_rate_ == 0


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_binary_file_cut_short_is_refused(facebook, tmp_path, share):
    cut = tmp_path / "cut.bin"
    content = facebook[0].read_bytes()
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(TextError, match=r"cut\.bin is cut short or damaged.*Download it again"):
        FastTextEncoder(cut).fit(NAMES)


def test_files_that_are_not_there_or_no_vectors_are_named(tmp_path, vec):
    with pytest.raises(TextError, match=r"no\.bin: no such file"):
        FastTextEncoder(tmp_path / "no.bin").fit(NAMES)
    with pytest.raises(TextError, match=r"no\.vec: no such file"):
        FastTextEncoder(tmp_path / "no.vec").fit(NAMES)
    (tmp_path / "text.bin").write_text(VECTORS)
    with pytest.raises(TextError, match=r"text\.bin is not a \.bin file of fastText"):
        FastTextEncoder(tmp_path / "text.bin").fit(NAMES)


def test_other_vectors_than_in_fit_are_refused(vec):
    encoder = FastTextEncoder(vec).fit(["red"])
    with open(vec, "w") as file:
        file.write("1 3\nred 5 5 5\n")
    with pytest.raises(TextError, match="are not those that this encoder was fitted"):
        encoder.transform(["red"])
    os.remove(vec)
    with pytest.raises(TextError, match="are not there: put the file back"):
        encoder.transform(["red"])


@pytest.mark.parametrize("texts", [[], [""], ["!!", " "]])
def test_texts_without_a_word_cannot_be_trained_on(texts):
    with pytest.raises(TextError, match="hold no word, so there is nothing to train on"):
        small().fit(texts)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"vector_size": 0}, "vector_size=0 must be a whole number of at least 1"),
        ({"epochs": 1.5}, "epochs=1.5 must be a whole number"),
        ({"min_n": 4, "max_n": 3}, "min_n=4 must be at most max_n=3"),
    ],
)
def test_unfit_parameters_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        small(**bad).fit(NAMES)


def test_word_without_a_known_part_has_no_vector():
    encoder = small().fit(NAMES)
    with pytest.warns(OutOfVocabularyWarning, match="1 of 2"):
        codes = encoder.transform(["apple", "zzzz"])
    assert codes.any(axis=1).tolist() == [True, False]


# --- Sentence transformers ------------------------------------------------------------------------

SMALL_BERT = {
    "model_type": "bert",
    "vocab_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
}
PIECES = "[PAD] [UNK] [CLS] [SEP] red cup blue the ##s ##ish a b".split()


def random_weights():
    """Return weights of a small BERT under the names that Sentence Transformers gives them."""
    random = np.random.default_rng(0)
    d, hidden = SMALL_BERT["hidden_size"], SMALL_BERT["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (SMALL_BERT["vocab_size"], d),
        "embeddings.position_embeddings.weight": (SMALL_BERT["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (2, d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    for i in range(SMALL_BERT["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        denses = {f"attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        denses |= {"attention.output.dense": (d, d), "intermediate.dense": (hidden, d)}
        denses |= {"output.dense": (d, hidden)}
        for name, (rows, columns) in denses.items():
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            shapes[f"{layer}.{name}.bias"] = (rows,)
        for name in ("attention.output", "output"):
            shapes[f"{layer}.{name}.LayerNorm.weight"] = (d,)
            shapes[f"{layer}.{name}.LayerNorm.bias"] = (d,)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_bert(folder, *, config=SMALL_BERT, weights=None, pieces=PIECES):
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights() if weights is None else weights, folder / "model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("models") / "small")


def states_of(tokens, weights, config):
    """Return the last hidden states of one text: BERT, written out."""

    def norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    heads = config["num_attention_heads"]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        query, key, value = (
            dense(x, f"{layer}.attention.self.{name}").reshape(len(x), heads, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        attention = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attention /= attention.sum(axis=-1, keepdims=True)
        mixed = (attention @ value).swapaxes(0, 1).reshape(len(x), -1)
        mixed = dense(mixed, f"{layer}.attention.output.dense")
        x = norm(x + mixed, f"{layer}.attention.output.LayerNorm")
        inner = dense(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))  # GELU
        x = norm(x + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


def code_of(states):
    mean = states.mean(axis=0)
    return mean / np.linalg.norm(mean)


# [CLS] and [SEP] have the numbers 2 and 3.
TEXTS = {"red cups": [2, 4, 5, 8, 3], "The Blue, reddish": [2, 7, 6, 1, 1, 3], "": [2, 3]}


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_codes_and_tokens_equal_numpy(bert, batch_size):
    encoder = SentenceEncoder(bert, batch_size=batch_size, cache=False).fit(list(TEXTS))
    states = [states_of(tokens, random_weights(), SMALL_BERT) for tokens in TEXTS.values()]
    codes = encoder.transform(list(TEXTS))
    assert codes.dtype == np.float32
    assert np.allclose(codes, [code_of(s) for s in states], atol=1e-4)
    tokens, mask = encoder.transform_tokens(list(TEXTS))
    assert mask.sum(axis=1).tolist() == [3, 4, 0]
    for row, expected in enumerate(states):
        assert np.allclose(tokens[row, mask[row]], expected[1:-1], atol=1e-4)
    assert not tokens[~mask].any()


def test_long_text_is_read_in_pieces_and_none_of_it_is_lost(bert):
    # Ten positions, two of them for the signs: eight tokens a piece.
    text = "red cup blue the a b red cup " + "blue the a"
    pieces = [[2, 4, 5, 6, 7, 10, 11, 4, 5, 3], [2, 6, 7, 10, 3]]
    states = [states_of(piece, random_weights(), SMALL_BERT) for piece in pieces]
    encoder = SentenceEncoder(bert, cache=False).fit([text])
    assert np.allclose(encoder.transform([text])[0], code_of(np.concatenate(states)), atol=1e-4)
    tokens, mask = encoder.transform_tokens([text, "red"])
    assert mask.sum(axis=1).tolist() == [11, 1]
    assert np.allclose(tokens[0], np.concatenate([s[1:-1] for s in states]), atol=1e-4)


def test_longest_piece_is_what_the_model_was_trained_with(tmp_path):
    folder = write_bert(tmp_path / "model")
    (tmp_path / "model" / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    encoder = SentenceEncoder(folder, cache=False).fit(["a"])
    states = [states_of(p, random_weights(), SMALL_BERT) for p in ([2, 4, 5, 3], [2, 6, 3])]
    expected = code_of(np.concatenate(states))
    assert np.allclose(encoder.transform(["red cup blue"])[0], expected, atol=1e-4)


def test_second_time_reads_the_cache(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path))
    texts = ["red cup", "blue", "red cup"]
    encoder = SentenceEncoder(bert).fit(texts)
    codes, (tokens, mask) = encoder.transform(texts), encoder.transform_tokens(texts)
    script = f"""
import sys, numpy as np
from cmlearn.text import SentenceEncoder
encoder = SentenceEncoder({bert!r}).fit({texts!r})
assert encoder.transform({texts!r}).tolist() == {codes.tolist()!r}
assert encoder.transform_tokens({texts!r})[0].tolist() == {tokens.tolist()!r}
assert not {{"keras", "tensorflow", "keras_hub", "tokenizers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert np.array_equal(codes, SentenceEncoder(bert, cache=False).fit(texts).transform(texts))
    assert mask.sum() == 5


def test_codes_do_not_depend_on_the_other_texts(bert):
    texts = ["red", "red cup the blue a b", "the cup"]
    encoder = SentenceEncoder(bert, cache=False).fit(texts)
    alone = np.vstack([encoder.transform([text]) for text in texts])
    assert np.allclose(encoder.transform(texts), alone, atol=1e-5)
    assert np.allclose(encoder.transform(texts[::-1]), alone[::-1], atol=1e-5)


ON_JAX = """
import keras, sys, numpy as np
from cmlearn.text import SentenceEncoder
assert keras.backend.backend() == "jax"
codes = SentenceEncoder(sys.argv[1], cache=False).fit_transform(["red cups", ""])
print(codes.tolist())
"""


def test_other_backend(bert):
    pytest.importorskip("jax")
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    command = [sys.executable, "-c", ON_JAX, bert]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    expected = [
        code_of(states_of(TEXTS[t], random_weights(), SMALL_BERT)) for t in ("red cups", "")
    ]
    assert np.allclose(json.loads(run.stdout), expected, atol=1e-4)


@pytest.fixture(scope="module")
def minilm():
    try:
        return fetch("minilm")
    except AssetError as error:
        pytest.skip(str(error))


def test_minilm_equals_numpy_and_knows_what_is_alike(minilm):
    from safetensors.numpy import load_file
    from tokenizers import BertWordPieceTokenizer

    texts = ["a happy dog", "a cheerful puppy", "the stock market fell by 2.5 percent"]
    codes = SentenceEncoder(cache=False).fit_transform(texts)
    assert codes.shape == (3, 384)
    assert codes[0] @ codes[1] > 0.6 > 0.2 > codes[0] @ codes[2]
    tokenizer = BertWordPieceTokenizer(str(minilm / "vocab.txt"), lowercase=True)
    config = json.loads((minilm / "config.json").read_text())
    weights = load_file(minilm / "model.safetensors")
    for code, text in zip(codes, texts, strict=True):
        states = states_of(tokenizer.encode(text).ids, weights, config)
        assert np.allclose(code, code_of(states), atol=1e-4)


def test_weights_cut_short_are_refused(tmp_path):
    folder = write_bert(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TextError, match=r"model\.safetensors is cut short"):
        SentenceEncoder(folder, cache=False).fit_transform(["red"])


def without(name):
    return {key: value for key, value in random_weights().items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": without("encoder.layer.1.output.dense.bias")},
            r"lacks 'encoder\.layer\.1\.output\.dense\.bias': these are the weights of another",
        ),
        (
            {"config": SMALL_BERT | {"vocab_size": 13}},
            r"'embeddings\.word_embeddings\.weight' has shape \(12, 8\).* belong to different",
        ),
        ({"config": SMALL_BERT | {"model_type": "gpt2"}}, "expected a BERT, got model_type 'gpt2'"),
        ({"config": SMALL_BERT | {"hidden_act": "relu"}}, "expected hidden_act 'gelu', got 'relu'"),
        ({"pieces": ["[UNK]", "[PAD]", "red"]}, r"lacks \[CLS\], \[SEP\]: it is not BERT's"),
    ],
)
def test_files_of_another_model_are_refused(tmp_path, change, message):
    folder = write_bert(tmp_path / "model", **change)
    with pytest.raises(TextError, match=message):
        SentenceEncoder(folder, cache=False).fit_transform(["red"])


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_damaged_description_is_refused(tmp_path, name):
    folder = write_bert(tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_text(path.read_text()[:-20])
    with pytest.raises(TextError, match=f"{name} is n"):
        SentenceEncoder(folder, cache=False).fit_transform(["red"])


def test_incomplete_folder_is_named(tmp_path):
    folder = write_bert(tmp_path / "model")
    os.remove(tmp_path / "model" / "tokenizer.json")
    with pytest.raises(TextError, match=r"model lacks tokenizer\.json"):
        SentenceEncoder(folder).fit(["red"])
    with pytest.raises(TextError, match="no/such/model: no such folder"):
        SentenceEncoder("no/such/model").fit(["red"])


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(TextError, match="model='minilmm' is neither .* Did you mean 'minilm'"):
        SentenceEncoder("minilmm").fit(["red"])
    with pytest.raises(ValueError, match="model=3 must be a name"):
        SentenceEncoder(3).fit(["red"])
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number"):
        SentenceEncoder(batch_size=0).fit(["red"])


def test_changed_model_is_refused_after_fit(tmp_path):
    folder = write_bert(tmp_path / "model")
    encoder = SentenceEncoder(folder, cache=False).fit(["red"])
    write_bert(tmp_path / "model", weights=random_weights() | {"more": np.zeros(1, np.float32)})
    with pytest.raises(TextError, match="is not the one that this encoder was fitted with"):
        encoder.transform(["red"])


def test_preset_of_kerashub(bert, tmp_path, monkeypatch):
    keras_hub = pytest.importorskip("keras_hub")
    pytest.importorskip("tensorflow_text")
    folder = tmp_path / "preset"
    # The same weights in KerasHub's own layout.
    _sentences._backbone(Path(bert), SMALL_BERT).save_to_preset(str(folder))
    keras_hub.tokenizers.BertTokenizer(vocabulary=PIECES_WITH_MASK, lowercase=True).save_to_preset(
        str(folder)
    )
    # A preset's name leads KerasHub to a download; this one it finds on the disk.
    monkeypatch.setattr(_sentences, "folder_of", lambda model: None)
    encoder = SentenceEncoder(str(folder), cache=False).fit(["red"])
    expected = [
        code_of(states_of(TEXTS[t], random_weights(), SMALL_BERT)) for t in ("red cups", "")
    ]
    assert np.allclose(encoder.transform(["red cups", ""]), expected, atol=1e-4)
    assert len(encoder.get_feature_names_out()) == 8


# KerasHub's tokenizer insists on [MASK]; "b" gives its place to it.
PIECES_WITH_MASK = [*PIECES[:-1], "[MASK]"]


# --- Words for attention --------------------------------------------------------------------------


def test_words_of_glove_leave_unknown_ones_out(vec):
    encoder = GloVeEncoder(vec).fit(["red"])
    with pytest.warns(OutOfVocabularyWarning, match="1 of 3 texts") as caught:
        tokens, mask = encoder.transform_tokens(["red zxqyv cup cup", "blue", "zxqyv"])
    assert caught[0].filename == __file__
    assert tokens.dtype == np.float32
    assert tokens.shape == (3, 3, 3)
    assert mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert tokens[0].tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert not tokens[~mask].any()


@pytest.mark.parametrize("kind", ["glove", "trained", "vec"])
def test_mean_of_the_words_is_the_code(vec, kind):
    encoder = {"glove": GloVeEncoder(), "trained": small(), "vec": FastTextEncoder(vec)}[kind]
    texts = ["red apple", "the red cup, the blue cup", "cup"]
    encoder.fit(texts)
    tokens, mask = encoder.transform_tokens(texts)
    means = tokens.sum(axis=1) / mask.sum(axis=1, keepdims=True)
    assert np.allclose(means, encoder.transform(texts), atol=1e-6)


@pytest.mark.filterwarnings("ignore::cmlearn.text.OutOfVocabularyWarning")
def test_words_of_no_text_and_of_empty_ones(vec, bert):
    for encoder in (GloVeEncoder(vec), FastTextEncoder(vec), SentenceEncoder(bert, cache=False)):
        tokens, mask = encoder.fit(["red"]).transform_tokens([""])
        assert tokens.shape[:2] == mask.shape == (1, 1)
        assert not mask.any()
        tokens, mask = encoder.transform_tokens([])
        assert tokens.shape == (0, 1, len(encoder.get_feature_names_out()))
        assert mask.shape == (0, 1)
        assert encoder.transform([]).shape == (0, tokens.shape[2])


@pytest.mark.parametrize("method", ["transform", "transform_tokens"])
@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_missing_rows_are_named(vec, bert, method, missing):
    encoders = [GloVeEncoder(vec), FastTextEncoder(vec), small(), SentenceEncoder(bert)]
    for encoder in encoders:
        encoder.fit(["red cup"])
        with pytest.raises(TextError, match="row 1: the text is missing"):
            getattr(encoder, method)(["red", missing])
        with pytest.raises(TextError, match="row 1: the text is missing"):
            clone(encoder).fit(["red", missing])


# --- Spelling -------------------------------------------------------------------------------------


def one_edit_apart(a, b):
    """Say whether one edit makes the one the other, by looking at what differs."""
    if len(a) == len(b):
        places = [i for i in range(len(a)) if a[i] != b[i]]
        swapped = len(places) == 2 and places[1] == places[0] + 1
        return len(places) <= 1 or (
            swapped and a[places[0]] == b[places[1]] and a[places[1]] == b[places[0]]
        )
    shorter, longer = sorted([a, b], key=len)
    return len(longer) - len(shorter) == 1 and any(
        longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer))
    )


@settings(max_examples=300, deadline=None)
@given(st.text("abc", min_size=1, max_size=4), st.text("abc", min_size=1, max_size=5))
def test_variants_are_the_words_one_edit_away(word, other):
    assert (other in _spelling.variants(word, "abc") | {word}) == one_edit_apart(word, other)


SHORT_WORDS = ["".join(w) for n in (1, 2, 3) for w in itertools.product("ab", repeat=n)]


@settings(max_examples=300, deadline=None)
@given(
    word=st.sampled_from(SHORT_WORDS),
    counts=st.dictionaries(st.sampled_from(SHORT_WORDS), st.integers(1, 9)),
    language=st.lists(st.sampled_from(SHORT_WORDS), unique=True),
    rate=st.floats(0.01, 0.99),
)
def test_most_probable_word_equals_bayes_over_the_whole_vocabulary(word, counts, language, rate):
    ranks = {w: rank for rank, w in enumerate(language)}

    def probability(meant):
        zipf = 1 / (ranks[meant] + 1) / np.log(100_000) if meant in ranks else 0
        prior = 0.9 * counts.get(meant, 0) / max(sum(counts.values()), 1) + 0.1 * zipf
        if meant == word:
            return prior * (1 - rate)
        n = len(meant)
        edits = n + (n - 1) + n + 2 * (n + 1)  # drop, swap, the other letter, one of 2 more
        return prior * rate / edits * one_edit_apart(meant, word)

    found = _spelling.meant(word, counts, ranks, "ab", rate)
    assert probability(found) == pytest.approx(max(map(probability, SHORT_WORDS)))


def test_words_of_the_texts_are_preferred_and_known_ones_stay():
    corrector = SpellingCorrector().fit(["grinning face", "zxqyv"])
    found = corrector.transform(
        ["Grinnning, fcae!", "zqxyv", "house 2nd \u82f9\u679c", "", "qqqqqqqq"]
    )
    assert found.tolist() == ["grinning face", "zxqyv", "house 2nd \u82f9\u679c", "", "qqqqqqqq"]
    assert found.dtype == object


def test_other_alphabets_are_corrected_from_the_texts():
    corrector = SpellingCorrector().fit(
        ["\u043a\u0440\u0430\u0441\u043d\u043e\u0435 \u044f\u0431\u043b\u043e\u043a\u043e"]
    )
    typo = "\u043a\u0430\u0440\u0441\u043d\u043e\u0435 \u044f\u0431\u043b\u043a\u043e"
    assert corrector.transform([typo])[0] == " ".join(corrector.counts_)


def test_higher_typo_rate_corrects_more(vec):
    texts = ["red"] * 99 + ["rad"]
    assert SpellingCorrector(vec, typo_rate=0.01).fit(texts).transform(["rad"])[0] == "rad"
    assert SpellingCorrector(vec, typo_rate=0.9).fit(texts).transform(["rad"])[0] == "red"


@pytest.mark.parametrize("rate", [0, 1, -0.1, "0.1", None])
def test_unfit_typo_rates_are_refused(rate):
    with pytest.raises(ValueError, match="typo_rate=.* must be above 0 and below 1"):
        SpellingCorrector(typo_rate=rate).fit(["red"])


def test_corrector_names_bad_rows_and_needs_fit():
    with pytest.raises(TextError, match="row 1: the text is missing"):
        SpellingCorrector().fit(["red", None])
    with pytest.raises(TextError, match="row 0: expected a text, got 3"):
        SpellingCorrector().fit(["red"]).transform([3])
    with pytest.raises(NotFittedError):
        SpellingCorrector().transform(["red"])


@pytest.mark.filterwarnings("ignore::cmlearn.text.OutOfVocabularyWarning")
@pytest.mark.parametrize("encoder", [GloVeEncoder(), small()], ids=["glove", "fasttext"])
def test_correction_brings_the_codes_of_misspelt_texts_back(encoder):
    corrected = make_pipeline(SpellingCorrector(), clone(encoder)).fit(NAMES)
    typos = ["griinning fcae", "rde apple"]
    right = corrected.transform(NAMES[:2])
    assert np.allclose(corrected.transform(typos), right)
    assert not np.allclose(clone(encoder).fit(NAMES).transform(typos), right, atol=1e-3)


# --- As scikit-learn transformers -----------------------------------------------------------------


def test_beside_tfidf_with_svd():
    X = pd.DataFrame({"text": NAMES * 4})
    y = ["face", "fruit", "face", "face", "fruit"] * 4
    tfidf = make_pipeline(TfidfVectorizer(), TruncatedSVD(3, random_state=0))
    columns = ColumnTransformer([("glove", GloVeEncoder(), "text"), ("tfidf", tfidf, "text"),
                                 ("fasttext", small(), "text")])  # fmt: skip
    assert columns.fit_transform(X).shape == (20, 50 + 3 + 8)
    assert columns.get_feature_names_out()[-1] == "fasttext__fasttextencoder7"
    model = make_pipeline(SpellingCorrector(), FeatureUnion([("a", tfidf), ("b", small())]),
                          LogisticRegression())  # fmt: skip
    search = GridSearchCV(model, {"featureunion__b__min_n": [2, 3]}, cv=2)
    assert search.fit(X["text"], y).score(X["text"], y) == 1


def test_more_components_than_words_or_texts_is_said_by_scikit_learn():
    tfidf = make_pipeline(TfidfVectorizer(), TruncatedSVD(100, random_state=0))
    with pytest.raises(ValueError, match=r"n_components\(100\) must be <= n_features\(10\)"):
        tfidf.fit(NAMES)
    with pytest.raises(ValueError, match="empty vocabulary"):
        tfidf.fit(["!", ""])


@pytest.mark.parametrize("kind", ["trained", "vec", "bert", "corrector"])
def test_stored_encoder_gives_the_same(vec, bert, kind):
    encoders = {
        "trained": small(),
        "vec": FastTextEncoder(vec),
        "bert": SentenceEncoder(bert, cache=False),
        "corrector": SpellingCorrector(),
    }
    texts = ["red cup", "the blue"]
    encoder = encoders[kind].fit(texts)
    expected = encoder.transform(texts)
    assert np.array_equal(pickle.loads(pickle.dumps(encoder)).transform(texts), expected)
    stored = skops.io.dumps(encoder)
    assert set(skops.io.get_untrusted_types(data=stored)) <= TRUSTED_TYPES
    loaded = skops.io.loads(stored, trusted=sorted(TRUSTED_TYPES))
    assert np.array_equal(loaded.transform(texts), expected)
    assert b"gensim" not in stored
    if kind != "trained":
        assert len(stored) < 10_000
    with pytest.raises(NotFittedError):
        clone(encoder).transform(texts)


@pytest.mark.parametrize("encoder", [small(), "bert"], ids=["fasttext", "bert"])
def test_names_of_the_columns(encoder, bert):
    encoder = SentenceEncoder(bert, cache=False) if encoder == "bert" else encoder
    texts = pd.Series(["red cup", "blue"], index=["x", "y"])
    table = clone(encoder).set_output(transform="pandas").fit_transform(texts)
    assert table.shape == (2, 8)
    assert list(table.index) == ["x", "y"]
    assert table.columns[0] == f"{type(encoder).__name__.lower()}0"


# scikit-learn's checks feed numbers, and run on no transformer whose tags ask for texts. Here each
# number becomes a word, so that all of them run. What they check of the numbers themselves
# (infinities, sparse matrices, the count of columns) is then the work of `validate_data`.
class OfNumbers:
    def fit(self, X, y=None):
        return super().fit(as_texts(validate_data(self, X)))

    def transform(self, X):
        check_is_fitted(self)
        return super().transform(as_texts(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        tags._skip_test = False
        return tags


class GloVeOfNumbers(OfNumbers, GloVeEncoder):
    pass


class FastTextOfNumbers(OfNumbers, FastTextEncoder):
    pass


class SentencesOfNumbers(OfNumbers, SentenceEncoder):
    pass


def as_texts(X):
    words = np.array("red cup blue the a b".split())
    return [" ".join(row) for row in words[np.abs(10 * X).astype(int) % 6]]


BERT_OF_NUMBERS = "bert-of-numbers"  # relative, for a test must have the same name in each process


@pytest.fixture(scope="module")
def folder_of_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    (folder / BERT_OF_NUMBERS).mkdir()
    write_bert(folder / BERT_OF_NUMBERS)
    return folder


@parametrize_with_checks(
    [
        GloVeOfNumbers(),
        GloVeOfNumbers(weighting="tfidf"),
        FastTextOfNumbers(vector_size=2, epochs=1),
        SentencesOfNumbers(BERT_OF_NUMBERS, cache=False),
    ]
)
def test_scikit_learn_check(estimator, check, folder_of_bert, monkeypatch):
    monkeypatch.chdir(folder_of_bert)
    check(estimator)
