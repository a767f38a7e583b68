"""Tests of the feature table and of fusing decisions when they are learned or parts are missing."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from cmlearn.fusion import feature_table, stack_features

# --- The feature table ----------------------------------------------------------------------------


def test_vectors_go_there_and_back(rng):
    image = rng.normal(size=(6, 4))
    array, present = stack_features(feature_table(image=image)["image"])
    np.testing.assert_array_equal(array, image.astype(np.float32))
    assert array.dtype == np.float32 and present.dtype == bool and present.all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=1, max_size=8))
def test_sequences_of_any_length_go_there_and_back(lengths):
    rng = np.random.default_rng(0)
    rows = [None if length is None else rng.normal(size=(length, 3)) for length in lengths]
    table = feature_table(text=rows)
    tokens, mask = stack_features(table["text"], cell_shape=(2, 3))
    assert tokens.dtype == np.float32 and tokens.shape == (*mask.shape, 3)
    for row, values, real in zip(rows, tokens, mask, strict=True):
        expected = np.zeros((0, 3)) if row is None else row
        np.testing.assert_array_equal(values[real], expected.astype(np.float32))
        assert (values[~real] == 0).all()
        assert real.tolist() == sorted(real.tolist(), reverse=True)  # padding lies behind


def test_padding_is_left_out_and_comes_back(rng):
    tokens = rng.normal(size=(3, 4, 2)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    table = feature_table(text=(tokens, mask), image=np.zeros((3, 5)))
    assert [None if cell is None else cell.shape for cell in table["text"]] == [
        (3, 2),
        None,
        (1, 2),
    ]
    array, found = stack_features(table["text"])
    np.testing.assert_array_equal(found, mask[:, :3])
    np.testing.assert_array_equal(array, np.where(mask[..., None], tokens, 0)[:, :3])


def test_grids_keep_their_positions(rng):
    grid = rng.normal(size=(2, 9, 4)).astype(np.float32)
    array, mask = stack_features(feature_table(image=grid)["image"])
    np.testing.assert_array_equal(array, grid)
    assert mask.shape == (2, 9) and mask.all()


def test_missing_rows_are_zero_and_masked():
    table = feature_table(image=[np.ones(2), None, [3, 4]])
    assert table["image"][1] is None
    array, present = stack_features(table["image"])
    np.testing.assert_array_equal(array, [[1, 1], [0, 0], [3, 4]])
    assert present.tolist() == [True, False, True]


def test_scikit_learn_and_pandas_split_and_join_the_table(rng):
    table = feature_table(image=rng.normal(size=(6, 4)), text=[np.ones((2, 3))] * 6)
    for train, test in KFold(3).split(table):
        assert stack_features(table.iloc[test]["image"])[0].shape == (2, 4)
        assert stack_features(table.iloc[train]["text"])[0].shape == (4, 2, 3)
    longer = table.reindex(range(7))  # pandas fills with NaN
    assert stack_features(longer["image"])[1].tolist() == [True] * 6 + [False]


def test_all_missing_takes_the_shape_of_the_training_rows():
    array, present = stack_features([None, None], cell_shape=(5,))
    assert array.shape == (2, 5) and not array.any() and not present.any()
    array, mask = stack_features([None, None], cell_shape=(7, 5))
    assert array.shape == (2, 7, 5) and not array.any()
    assert mask.shape == (2, 7) and not mask.any()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([np.ones(3), np.ones(4)], r"'text' has shape \(4,\) in row 1, but \(3,\) in row 0"),
        ([None, np.ones(3), np.ones((2, 3))], r"shape \(2, 3\) in row 2, but \(3,\) in row 1"),
        ([np.ones(2), np.array([1, np.nan])], "'text' holds NaN or infinite values in row 1"),
        ([np.ones(2), np.array([1, 1e300])], "NaN or infinite values in row 1"),
        ([np.ones(2), "red cup"], r"row 1 holds str of type <U7 and shape \(\)"),
        ([np.ones(2), np.array(["a", "b"])], "row 1 holds ndarray of type <U1"),
        ([np.ones(2), 1j * np.ones(2)], "row 1 holds ndarray of type complex128"),
        ([np.ones((1, 1, 1))], r"row 0 holds ndarray of type float64 and shape \(1, 1, 1\)"),
        ([np.ones(0)], r"row 0 holds ndarray of type float64 and shape \(0,\)"),
        ((np.ones((2, 3, 4)), np.ones((2, 3))), "mask of type float64"),
        ((np.ones((2, 3, 4)), np.ones((2, 2), bool)), r"shapes \(2, 3, 4\) and \(2, 2\)"),
    ],
)
def test_bad_cells_name_the_row(column, message):
    with pytest.raises(ValueError, match=message):
        feature_table(text=column)
    if not isinstance(column, tuple):
        with pytest.raises(ValueError, match=message):
            stack_features(pd.Series(column, name="text", dtype=object))


def test_tables_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="the lengths are: image 2, text 3"):
        feature_table(image=np.ones((2, 4)), text=np.ones((3, 4)))
    with pytest.raises(ValueError, match="at least one modality"):
        feature_table()
    with pytest.raises(ValueError, match="'text' is missing in all of the 2 rows.*cell_shape"):
        stack_features(pd.Series([None, None], name="text"))
    with pytest.raises(ValueError, match=r"rows of shape \(3,\); in training they were \(4,\)"):
        stack_features([np.ones(3)], cell_shape=(4,))
    with pytest.raises(ValueError, match=r"rows of shape \(3,\); in training they were \(2, 3\)"):
        stack_features([np.ones(3)], cell_shape=(2, 3))
