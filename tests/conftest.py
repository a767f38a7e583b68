"""What every test runs under, and the fixtures that more than one file uses."""

import os
import random
import tempfile
from pathlib import Path

# Set before anything imports matplotlib, Keras or the package.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CMLEARN_PROFILE", "quick")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    """Give the run its own feature cache, so that a test never reads what an earlier one left."""
    if "CMLEARN_CACHE" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="cmlearn-test-cache-")
        os.environ["CMLEARN_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- libraries under test still read the old global state


@pytest.fixture
def rng():
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def root():
    """Return the top folder of the checkout."""
    return ROOT


class AllColumns:
    """Picks every column; unlike a function it has the same name in every process."""

    def __call__(self, X):
        return list(range(X.shape[1]))

    def __repr__(self):
        return "AllColumns()"


@pytest.fixture(scope="module")
def step_by_step():
    """Do without TensorFlow's graphs: tracing one takes seconds, a few small steps take less."""
    yield from _eagerly(True)


@pytest.fixture
def in_graph(step_by_step):
    """Train as users do, within a module that goes step by step."""
    yield from _eagerly(False)


def _eagerly(eager):
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(eager)
    yield
    tf.config.run_functions_eagerly(not eager)
