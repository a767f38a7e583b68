"""Embedding by workers of Ray, what it costs, and training on several devices.

Ray is started once for the file. Devices are simulated on the CPU, in processes of their own.
"""

import builtins
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from cmlearn import scaling
from cmlearn.datasets import DatasetError
from cmlearn.image import ColorHistogram, ImageError
from cmlearn.scaling import Costs, amdahl_speedup, embed_pairs, measure_costs
from cmlearn.text import GloVeEncoder, OutOfVocabularyWarning

N = 600  # three chunks, the last one shorter


@pytest.fixture(scope="module")
def ray():
    with scaling._ray(workers=2):
        import ray

        yield ray


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A CSV file of pairs with a column more; names are not in the order of the rows."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    names = [f"{number:04d}.png" for number in rng.permutation(N)]
    for name in names:
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    words = ["red", "green", "blue"]
    (folder / "glove.txt").write_text("red 1 0\ngreen 0 1\nblue 1 1\n")
    texts = [words[n % 3] if n != 300 else "qwertz" for n in range(N)]
    table = pd.DataFrame({"image": names, "text": texts, "price": range(N)})
    table.to_csv(folder / "pairs.csv", index=False)
    return folder


@pytest.fixture
def encoders(pairs):
    return {
        "image": ColorHistogram(2, cache=False),
        "text": GloVeEncoder(f"{pairs}/glove.txt"),
    }


def logging_encoder(log, kill_once=False):
    """Return an encoder that notes each call, and if asked to dies in the first one.

    The class is made here so that it travels to the workers whole.
    """

    class Logging(ColorHistogram):
        def transform(self, X):
            first = not os.path.exists(log)
            with open(log, "a") as file:
                file.write(f"{len(X)}\n")
            if kill_once and first:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().transform(X)

    return Logging(2, cache=False)


def sizes(log):
    return sorted(map(int, Path(log).read_text().split()))


def left(folder):
    return sorted(path.name for path in folder.iterdir())


# Ray


def test_ray_writes_what_the_local_engine_writes_in_the_same_order(ray, pairs, encoders, tmp_path):
    with pytest.warns(OutOfVocabularyWarning) as here:
        assert embed_pairs(pairs / "pairs.csv", tmp_path / "local.parquet", encoders) == N
    with pytest.warns(OutOfVocabularyWarning) as there:
        rows = embed_pairs(pairs / "pairs.csv", tmp_path / "ray.parquet", encoders, engine="ray")
    assert rows == N
    local, by_ray = (pa.parquet.ParquetFile(tmp_path / f"{e}.parquet") for e in ("local", "ray"))
    assert local.schema_arrow == by_ray.schema_arrow
    assert [local.metadata.row_group(n).num_rows for n in range(3)] == [256, 256, 88]
    assert [by_ray.metadata.row_group(n).num_rows for n in range(3)] == [256, 256, 88]
    one, two = local.read().to_pandas(), by_ray.read().to_pandas()
    source = pd.read_csv(pairs / "pairs.csv")
    for table in (one, two):
        assert list(table["image"]) == list(source["image"])
    for name in ("image_features", "text_features"):
        np.testing.assert_allclose(np.stack(one[name]), np.stack(two[name]), rtol=1e-6)
    assert [str(w.message) for w in there] == [str(w.message) for w in here]
    assert left(tmp_path) == ["local.parquet", "ray.parquet"]


def test_a_worker_that_is_killed_costs_one_chunk(ray, pairs, tmp_path):
    encoder = logging_encoder(tmp_path / "log", kill_once=True)
    out = tmp_path / "out.parquet"
    assert embed_pairs(pairs / "pairs.csv", out, {"image": encoder}, engine="ray") == N
    assert len(sizes(tmp_path / "log")) == 4  # three chunks, one of them twice
    assert list(pd.read_parquet(out)["price"].astype(int)) == list(range(N))


def test_a_second_run_goes_on_and_makes_anew_what_has_changed(ray, pairs, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in pairs.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    names = list(pd.read_csv(data / "pairs.csv")["image"])
    whole = (data / names[599]).read_bytes()
    (data / names[599]).write_bytes(b"no picture")
    out, log = tmp_path / "out.parquet", tmp_path / "log"
    encoder = logging_encoder(log)
    with pytest.raises(ImageError, match=rf"pairs.csv, line 601: .*{names[599]}"):
        embed_pairs(data / "pairs.csv", out, {"image": encoder}, engine="ray")
    assert not out.exists()
    assert len(left(tmp_path / "out.parquet.parts")) == 2  # the finished ones stay
    log.unlink()
    (data / names[599]).write_bytes(whole)
    cv2.imwrite(str(data / names[0]), np.zeros((9, 9, 3), np.uint8))
    assert embed_pairs(data / "pairs.csv", out, {"image": encoder}, engine="ray") == N
    assert sizes(log) == [88, 256]  # the broken chunk and the changed one, not the second
    features = np.stack(pd.read_parquet(out)["image_features"])
    expected = encoder.transform([str(data / name) for name in names])
    np.testing.assert_allclose(features, expected, rtol=1e-6)
    assert not (tmp_path / "out.parquet.parts").exists()


def test_what_cannot_be_read_is_named_as_by_the_local_engine(ray, tmp_path):
    messages = []
    for engine in scaling.ENGINES:
        with pytest.raises(DatasetError) as raised:
            embed_pairs(tmp_path / "gone", tmp_path / "f", {}, engine=engine)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert "there is no such file or folder" in messages[0]


def test_the_command_is_quiet_and_leaves_no_process(tmp_path):
    """As a user runs it, with an own Ray; the picture's encoder is the cheapest there is."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    script = """
import sys
import cmlearn.baseline
from cmlearn.image import ColorHistogram
cmlearn.baseline.build_image_encoder = lambda *name, **options: ColorHistogram(2, cache=False)
from cmlearn.__main__ import main
code = main(sys.argv[1:])
import psutil
psutil.wait_procs(children := psutil.Process().children(recursive=True), timeout=20)
print([child.name() for child in children if child.is_running()])
sys.exit(code)
"""
    out = tmp_path / "out" / "f.parquet"
    command = ["embed", tmp_path, "--out", out, "--engine", "ray", "--workers", "1"]
    run = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=120
    )
    assert run.stdout == f"Wrote the features of 1 pairs to {out}\n[]\n", run.stderr
    assert run.stderr == ""


def test_without_ray_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ray\[data\]"):
        embed_pairs(tmp_path, tmp_path / "f", {}, engine="ray")


def test_engines_and_workers_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match="engine='dask' must be one of 'local', 'ray'"):
        embed_pairs(tmp_path, tmp_path / "f", {}, engine="dask")
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        embed_pairs(tmp_path, tmp_path / "f", {}, engine="ray", workers=0)


def test_the_local_engine_never_imports_ray(pairs, encoders, tmp_path, monkeypatch):
    importing = builtins.__import__

    def refuse(name, *rest, **options):
        assert name.split(".")[0] != "ray"
        return importing(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    embed_pairs(pairs / "pairs.csv", tmp_path / "f", {"image": encoders["image"]})


@pytest.mark.parametrize("is_record", [True, False])
def test_a_file_of_nothing_but_pictures(tmp_path, is_record):
    content = cv2.imencode(".png", np.zeros((4, 4, 3)))[1].tobytes()
    picture = {"bytes": content, "path": None} if is_record else content
    pa.parquet.write_table(pa.table({"image": [picture] * 3}), tmp_path / "in.parquet")
    encoder = ColorHistogram(2, cache=False)
    assert embed_pairs(tmp_path / "in.parquet", tmp_path / "f", {"image": encoder}) == 3
    assert pd.read_parquet(tmp_path / "f").columns.tolist() == ["image_features"]


def test_features_that_are_there_already_are_not_written_beside_new_ones(pairs, encoders, tmp_path):
    table = pd.read_csv(pairs / "pairs.csv").assign(image_features=0, text_features=0)
    table.to_csv(pairs / "twice.csv", index=False)
    with pytest.raises(DatasetError, match=r"twice\.csv, line 2: there is a column image_features"):
        embed_pairs(pairs / "twice.csv", tmp_path / "f", encoders)
    assert not (tmp_path / "f").exists()
    encoders = {"text": encoders["text"]}
    with pytest.raises(DatasetError, match="there is a column text_features already"):
        embed_pairs(pairs / "twice.csv", tmp_path / "f", encoders)


# What it costs


def test_costs_against_the_formula_written_out():
    costs = Costs(0.002, 0.006, 0.0001, 10.0, 1e5, 5e3)
    assert costs.seconds(1000) == pytest.approx(10 + 1000 * 0.0081)
    assert costs.seconds(1000, workers=4) == pytest.approx(10 + 1000 * 0.0021)
    assert costs.serial_share() == pytest.approx(0.0001 / 0.0081)
    parallel = costs._replace(start=0).seconds(1) / costs._replace(start=0).seconds(1, workers=7)
    assert amdahl_speedup(costs.serial_share(), 7) == pytest.approx(parallel)
    slow, fast = (costs.table(1e6, workers=100, bandwidth=b, price=0.05) for b in (1e6, 1e12))
    assert slow["hours"] == pytest.approx(1e11 / 1e6 / 3600)  # the network decides
    assert fast["hours"] == pytest.approx((10 + 1e6 * (0.008 / 100 + 0.0001)) / 3600)
    assert fast["price"] == pytest.approx(0.05 * 100 * fast["hours"])
    assert fast["read_tb"] == pytest.approx(0.1) and fast["written_tb"] == pytest.approx(0.005)


def test_amdahl_at_its_ends_and_outside():
    assert amdahl_speedup(0, 8) == 8 and amdahl_speedup(1, 8) == 1
    assert amdahl_speedup(0.05, 10**9) == pytest.approx(20)
    with pytest.raises(ValueError, match="serial_share=1.5"):
        amdahl_speedup(1.5, 2)
    with pytest.raises(ValueError, match="workers=0"):
        amdahl_speedup(0.5, 0)


def test_costs_are_measured_for_each_stage(pairs):
    class Slow(ColorHistogram):
        def transform(self, X):
            end = time.process_time() + 0.05  # of processor time, a chunk
            while time.process_time() < end:
                pass
            return super().transform(X)

    costs = measure_costs(pairs / "pairs.csv", Slow(2, cache=False), start=3.0)
    assert costs.encode >= 3 * 0.05 / N > 0
    assert costs.decode > 0 and costs.join > 0 and costs.start == 3
    table = pd.read_csv(pairs / "pairs.csv")
    files = [(pairs / name).stat().st_size for name in table["image"]]
    assert costs.input_bytes == pytest.approx(np.mean(files))


# Several devices

TRAIN = """
import contextlib, json, os, sys

backend, devices = sys.argv[1], int(sys.argv[2])
os.environ["KERAS_BACKEND"] = backend
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
import keras
import numpy as np

from cmlearn.layers import GatedFusion

scope = contextlib.nullcontext()
if backend == "jax":
    found = len(keras.distribution.list_devices())
    keras.distribution.set_distribution(keras.distribution.DataParallel())
else:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * devices
    tf.config.set_logical_device_configuration(cpu, parts)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(devices)])
    found, scope = strategy.num_replicas_in_sync, strategy.scope()
rng = np.random.default_rng(0)
y = rng.integers(0, 3, 64)
image, text = rng.normal(size=(64, 12)) + y[:, None], rng.normal(size=(64, 8))
with scope:
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((12,)), keras.Input((8,))]
    model = keras.Model(inputs, keras.layers.Dense(3)(GatedFusion(16)(inputs)))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
before = [w.tolist() for w in model.get_weights()]
model.fit([image, text], y, batch_size=16, epochs=2, shuffle=False, verbose=0)
print(json.dumps([found, before, [w.tolist() for w in model.get_weights()]]))
"""


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_an_epoch_on_two_devices_equals_one_on_one(backend):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, backend, str(n)], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )
        for n in (1, 2)
    ]  # fmt: skip
    (n_one, start, one), (n_two, start_two, two) = (
        json.loads(process.communicate(timeout=120)[0]) for process in running
    )
    assert (n_one, n_two) == (1, 2)
    for before, other, a, b in zip(start, start_two, one, two, strict=True):
        np.testing.assert_array_equal(before, other)
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(np.subtract(a, before)).max() > 1e-3  # it did learn
