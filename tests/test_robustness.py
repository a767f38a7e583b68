import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmlearn.robustness import add_typos
from cmlearn.text import TextError


def swaps(word):
    return {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)} - {word}


def drops(word):
    return {word[:i] + word[i + 1 :] for i in range(len(word))}


def doubles(word):
    return {word[:i] + word[i] + word[i:] for i in range(len(word))}


def substitutions(word, keys):
    return {
        word[:i] + key + word[i + 1 :] for i in range(len(word)) for key in keys.get(word[i], "")
    }


# Read off a keyboard, key by key.
BESIDE = {"c": "xvdf", "u": "yihj", "p": "ol"}


def test_all_typos_of_a_word_occur_and_no_others():
    found = set(add_typos(["cup"] * 2000, random_state=0))
    assert found == swaps("cup") | drops("cup") | doubles("cup") | substitutions("cup", BESIDE)


def test_kinds_are_equally_likely():
    typos = add_typos(["machine"] * 4000, random_state=0)
    counts = [sum(t in kind("machine") for t in typos) for kind in (swaps, drops, doubles)]
    assert np.allclose(counts, 1000, atol=4 * np.sqrt(4000 * 0.25 * 0.75))


def test_a_number_of_typos_a_word():
    def length_after_drops_only(n):
        # Letters of no keyboard row and all alike: nothing but leaving out and doubling is left.
        return {len(text) for text in add_typos(["ωωωωω"] * 200, n, random_state=0)}

    assert length_after_drops_only(0) == {5}
    assert length_after_drops_only(1) == {4, 6}
    assert length_after_drops_only(2) == {3, 5, 7}


@pytest.mark.parametrize("text", ["", "a b c", "12 345", "a+b=c!", "红苹果", "りんご", "사과"])
def test_what_is_left_alone(text):
    assert add_typos([text] * 20, 3, random_state=0) == [text] * 20


def test_capitals_stay_capitals():
    assert all(t.isupper() for t in add_typos(["CUP"] * 200, random_state=0))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abc XYZ-,12", max_size=20)))
def test_words_change_by_one_letter_and_nothing_else_does(texts):
    for before, after in zip(texts, add_typos(texts, random_state=0), strict=True):
        rest = str.maketrans("", "", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        assert after.translate(rest) == before.translate(rest)
        assert abs(len(after) - len(before)) <= sum(map(str.isalpha, before))


def test_seed_decides_and_no_global_state_is_touched():
    texts = ["grinning face", "red apple"] * 10
    assert add_typos(texts, random_state=1) == add_typos(texts, random_state=1)
    assert add_typos(texts, random_state=1) != add_typos(texts, random_state=2)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    add_typos(texts, random_state=1)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_any_column_of_texts_does():
    expected = add_typos(["red cup", "blue"], random_state=0)
    table = pd.DataFrame({"text": ["red cup", "blue"]})
    for column in (table["text"], table, np.array(["red cup", "blue"])):
        assert add_typos(column, random_state=0) == expected


@pytest.mark.parametrize("typos", [-1, 0.5, "1", None])
def test_unfit_numbers_of_typos_are_refused(typos):
    with pytest.raises(ValueError, match="typos_per_word=.* must be a whole number of at least 0"):
        add_typos(["cup"], typos)


def test_rows_that_are_no_texts_are_named():
    with pytest.raises(TextError, match="row 1: the text is missing"):
        add_typos(["cup", None])
    with pytest.raises(TextError, match="got a single string"):
        add_typos("cup")


def test_importing_stays_light():
    script = "import sys, cmlearn.robustness; print({'keras', 'cv2', 'gensim'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
