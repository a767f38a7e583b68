"""The feature cache: exact, atomic, safe with several processes, clear when it cannot work."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmlearn._cache import FILE, FeatureCache


@pytest.fixture
def cache(tmp_path):
    with FeatureCache({"encoder": "test"}, folder=tmp_path) as cache:
        yield cache


def test_vectors_come_back_exactly(cache, rng):
    keys = [cache.key(bytes([i])) for i in range(5)]
    vectors = rng.standard_normal((5, 7)).astype(np.float32)
    cache.put_many(keys, vectors)
    found = cache.get_many([*reversed(keys), cache.key(b"unknown")])
    assert set(found) == set(keys)
    np.testing.assert_array_equal(np.stack([found[key] for key in keys]), vectors)
    assert found[keys[0]].dtype == np.float32


def test_more_keys_than_one_query_holds(cache):
    keys = [cache.key(str(i).encode()) for i in range(1000)]
    cache.put_many(keys, np.arange(1000)[:, None])
    found = cache.get_many(iter(keys))
    assert [float(found[key][0]) for key in keys] == list(range(1000))


def test_vectors_outlive_the_object(tmp_path):
    with FeatureCache({"a": 1}, folder=tmp_path) as first:
        first.put_many([first.key(b"x")], np.array([[1.5]]))
    with FeatureCache({"a": 1}, folder=tmp_path) as second:
        assert second.get_many([second.key(b"x")])[second.key(b"x")] == 1.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=8)), unique=True, max_size=20))
def test_keys_differ_when_identity_or_content_differs(tmp_path_factory, pairs):
    folder = tmp_path_factory.getbasetemp()
    keys = set()
    for size, content in pairs:
        with FeatureCache({"size": size}, folder=folder) as cache:
            keys.add(cache.key(content))
    assert len(keys) == len(pairs)


def test_identity_is_told_apart_by_value_and_not_by_order(tmp_path):
    def key(**identity):
        with FeatureCache(identity, folder=tmp_path) as cache:
            return cache.key(b"x")

    assert key(a=1, b=2) == key(b=2, a=1)
    assert key(a=1, b=2) != key(a=2, b=1)


def test_as_many_vectors_as_keys_or_nothing_is_kept(cache):
    keys = [cache.key(b"1"), cache.key(b"2")]
    with pytest.raises(ValueError):
        cache.put_many(keys, np.zeros((1, 3)))
    assert cache.get_many(keys) == {}


WRITER = """
    import sys
    import numpy as np
    from cmlearn._cache import FeatureCache

    start, stop = int(sys.argv[2]), int(sys.argv[3])
    with FeatureCache({"encoder": "test"}, folder=sys.argv[1]) as cache:
        for batch in range(start, stop):
            keys = [cache.key(f"{batch}-{i}".encode()) for i in range(20)]
            cache.put_many(keys, np.full((20, 1000), batch))
            print(batch, flush=True)
"""


def start_writer(folder, start, stop):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), str(start), str(stop)],
        stdout=subprocess.PIPE,
        text=True,
    )


def batch_of(cache, batch):
    return cache.get_many([cache.key(f"{batch}-{i}".encode()) for i in range(20)])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no kill -9")
def test_kill_9_keeps_what_was_reported_and_no_half_batch(tmp_path):
    writer = start_writer(tmp_path, 0, 10**9)
    reported = [int(writer.stdout.readline()) for _ in range(20)]
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    reported += [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.stdout.close()
    with FeatureCache({"encoder": "test"}, folder=tmp_path) as cache:
        for batch in reported:
            vectors = batch_of(cache, batch).values()
            assert len(vectors) == 20 and all(
                (v == batch).all() and v.size == 1000 for v in vectors
            )
        # The batch that was being written is there as a whole or not at all.
        assert len(batch_of(cache, reported[-1] + 1)) in (0, 20)
        key = cache.key(b"after")
        cache.put_many([key], np.ones((1, 2)))
        assert key in cache.get_many([key])


DYING = """
    import os, signal, sys
    import numpy as np
    from cmlearn._cache import FeatureCache

    class Dying:
        def __init__(self, connection):
            self.connection = connection

        def __getattr__(self, name):
            return getattr(self.connection, name)

        def execute(self, command, *values):
            if command == "COMMIT":
                os.kill(os.getpid(), signal.SIGKILL)
            return self.connection.execute(command, *values)

    cache = FeatureCache({"encoder": "test"}, folder=sys.argv[1])
    cache._connection = Dying(cache._connection)
    keys = [cache.key(str(i).encode()) for i in range(3000)]
    cache.put_many(keys, np.ones((3000, 1000)))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no kill -9")
def test_kill_9_at_the_worst_moment_keeps_nothing_of_the_batch(tmp_path):
    """12 MB wait for their commit, more than SQLite keeps in memory: they are on the disk."""
    with FeatureCache({"encoder": "test"}, folder=tmp_path) as cache:
        before = [cache.key(f"before {i}".encode()) for i in range(1000)]
        cache.put_many(before, np.ones((1000, 1000)))
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(DYING), str(tmp_path)])
    assert run.returncode == -signal.SIGKILL
    with FeatureCache({"encoder": "test"}, folder=tmp_path) as cache:
        keys = [cache.key(str(i).encode()) for i in range(3000)]
        assert set(cache.get_many([*before, *keys])) == set(before)
        assert cache._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_processes_write_at_once(tmp_path):
    writers = [start_writer(tmp_path, 0, 30), start_writer(tmp_path, 20, 50)]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    with FeatureCache({"encoder": "test"}, folder=tmp_path) as cache:
        assert all(len(batch_of(cache, batch)) == 20 for batch in range(50))


def test_damaged_file_is_named_with_the_remedy(tmp_path):
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    with pytest.raises(OSError, match="damaged.*Remove the file") as caught:
        FeatureCache({}, folder=tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)


def test_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    with pytest.raises(OSError, match="CMLEARN_CACHE") as caught:
        FeatureCache({}, folder=tmp_path / "missing")
    assert "missing" in str(caught.value)


def test_full_disk_is_named_and_nothing_half_written(cache):
    # SQLite answers a file that may not grow as it answers a full disk.
    pages = cache._connection.execute("PRAGMA page_count").fetchone()[0]
    cache._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    keys = [cache.key(bytes([i])) for i in range(50)]
    with pytest.raises(OSError, match="full.*Free some space"):
        cache.put_many(keys, np.zeros((50, 1000)))
    assert cache.get_many(keys) == {}
