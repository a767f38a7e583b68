import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from cmlearn import comparison
from cmlearn.fusion import feature_table


def square() -> np.ndarray:
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[8:24, 8:24] = (200, 30, 30)
    return pixels


def test_grey_has_one_value_for_all_channels_and_leaves_white_white():
    grey = comparison.grey(square())
    assert (grey == grey[..., :1]).all()
    assert grey[0, 0, 0] == 255 and grey[16, 16, 0] < 150


def test_edges_are_black_along_the_border_and_nowhere_else():
    edges = comparison.edges(square())
    assert set(np.unique(edges)) == {0, 255}
    assert (edges[16, 6:11] == 0).any() and (edges[16, 21:27] == 0).any()
    assert (edges[13:19, 13:19] == 255).all() and (edges[:4] == 255).all()


def test_outlined_is_paler_with_black_edges():
    outlined = comparison.outlined(square())
    np.testing.assert_array_equal(outlined[16, 16], (227, 142, 142))
    assert (outlined[comparison.edges(square()) == 0] == 0).all()


def test_images_of_another_style_follow_the_rows_numbers():
    table = pd.DataFrame({"cnn": list(np.zeros((4, 2))), "name": list("abcd")})
    features = np.arange(8.0).reshape(4, 2)
    shown = comparison.with_images(table.iloc[[2, 0]], features)
    np.testing.assert_array_equal(np.stack(list(shown["cnn"])), features[[2, 0]])
    assert list(shown["name"]) == ["c", "a"]


def test_typos_change_the_names_and_only_them():
    table = pd.DataFrame({"cnn": [1, 2], "name": ["grinning face", "red apple"]})
    shown = comparison.with_typos(table)
    assert all(shown["name"] != table["name"]) and list(shown["cnn"]) == [1, 2]


def test_every_coalition_of_three_once():
    found = comparison.coalitions("abc")
    assert len(found) == len(set(found)) == 7
    assert set(found) >= {("a",), ("b", "c"), ("a", "b", "c")}


def test_the_kernel_is_chosen_without_a_look_at_openmoji():
    names = [f"cnn + glove: late margin, gamma {gamma}" for gamma in (1, 2)]
    accuracy = pd.DataFrame(
        {"as it is": [0.8, 0.8], "grey": [0.7, 0.6], "outlined": [0.6, 0.6], "edges": [0.5, 0.5]},
        index=names,
    ).assign(OpenMoji=[0.1, 0.9])
    assert comparison.chosen_kernel(accuracy, "glove") == names[0]


@pytest.fixture(scope="module")
def small_table():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 20)
    means = {"a": 0, "b": 3, "c": 6}
    image = np.array([means[label] for label in labels])[:, None] + rng.normal(size=(60, 4))
    text = np.array([means[label] for label in labels])[:, None] + rng.normal(size=(60, 3))
    table = feature_table(cnn=image, glove=text, minilm=text[:, ::-1])
    return table, labels


METHODS = comparison.machines() | comparison.peers()


@pytest.mark.parametrize("name", [n for n in METHODS if "TF-IDF" not in n and "fastText" not in n])
def test_each_method_learns_an_easy_table(small_table, name):
    table, labels = small_table
    fitted = clone(METHODS[name]).fit(table[::2], labels[::2])
    # A product cannot tell (-, -) from (+, +), the first class from the last.
    least = 0.5 if name.endswith("product") else 0.75
    assert (fitted.predict(table[1::2]) == labels[1::2]).mean() > least


def test_methods_have_different_names_and_cover_each_fusion():
    names = [*comparison.descriptors(), *METHODS, *comparison.networks()]
    assert len(names) == len(set(names))
    assert {f"cnn + glove: network, {how}" for how in comparison.NETWORKS} < set(names)


def test_attention_gets_positions_and_words_and_the_rest_their_means():
    table = pd.DataFrame(columns=["cnn", "grid", "glove", "words", "minilm", "pieces"])

    def seen(how, text):
        select = comparison.network(how, text)[0].get_params()["func"]
        return select.keywords["image"], select.keywords["text"], list(select(table).columns)

    assert seen("gated", "glove") == ("cnn", "glove", ["image", "text"])
    assert seen("cross-attention", "minilm") == ("grid", "pieces", ["image", "text"])
    assert isinstance(comparison.network("gated", "glove"), Pipeline)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_missing_variants_hide_the_share_asked_for(small_table, rate):
    table = comparison.as_pair(small_table[0], image="cnn", text="glove")
    for column, hide in zip(
        ["image", "text"], comparison.missing_variants([rate]).values(), strict=True
    ):
        shown = hide(table)
        assert shown[column].isna().mean() == rate
        assert shown.drop(columns=column).notna().all(axis=None)
        assert table[column].notna().all()


@pytest.mark.parametrize("name", [n for n in comparison.missing_methods() if "network" not in n])
def test_methods_for_a_missing_modality_take_it(small_table, name):
    table, labels = small_table
    table = comparison.as_pair(table, image="cnn", text="glove")
    fitted = comparison.missing_methods()[name].fit(table[::2], labels[::2])
    for hide in comparison.missing_variants([1.0]).values():
        assert (fitted.predict(hide(table)) == labels).mean() > 0.6
