import errno
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from cmlearn import runtime


def test_profile_obeys_the_variable(monkeypatch):
    monkeypatch.setenv("CMLEARN_PROFILE", "full")
    assert runtime.profile() == "full"
    monkeypatch.setenv("CMLEARN_PROFILE", "quick")
    assert runtime.profile() == "quick"


def test_profile_refuses_other_values(monkeypatch):
    monkeypatch.setenv("CMLEARN_PROFILE", "fast")
    with pytest.raises(ValueError, match="'fast'.*'quick' or 'full'"):
        runtime.profile()


@pytest.mark.parametrize(("device", "expected"), [("GPU X", "full"), ("CPU (2 cores)", "quick")])
def test_profile_follows_the_device(monkeypatch, device, expected):
    monkeypatch.delenv("CMLEARN_PROFILE", raising=False)
    monkeypatch.setattr(runtime, "device", lambda: device)
    assert runtime.profile() == expected


def test_device_counts_the_usable_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert runtime.device().startswith(f"CPU ({cores} core")


def test_device_and_import_need_no_keras():
    code = (
        "import sys; sys.modules['keras'] = None\n"
        "from cmlearn import runtime, assets, datasets\n"
        "runtime._may_have_gpu = lambda: True\n"
        "assert runtime.device().startswith('CPU'), runtime.device()\n"
        "heavy = {'tensorflow', 'cv2', 'gensim', 'jieba', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("variable", ["CMLEARN_CACHE", "CMLEARN_DATA"])
def test_folders_come_from_the_environment(monkeypatch, tmp_path, variable):
    wanted = tmp_path / "a b" / "c"
    monkeypatch.setenv(variable, str(wanted))
    found = runtime.cache_dir() if variable == "CMLEARN_CACHE" else runtime.data_home()
    assert found == wanted.resolve()
    assert found.is_dir()


def test_data_home_prefers_its_argument(monkeypatch, tmp_path):
    monkeypatch.setenv("CMLEARN_DATA", str(tmp_path / "variable"))
    assert runtime.data_home(tmp_path / "argument") == (tmp_path / "argument").resolve()


def test_cache_dir_that_cannot_be_made_names_the_variable(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="file/cache.*set CMLEARN_CACHE"):
        runtime.cache_dir()


def test_set_seed_repeats_every_generator():
    keras = pytest.importorskip("keras")

    def draw():
        runtime.set_seed(7)
        old = np.random.rand()  # noqa: NPY002 -- what set_seed promises
        return random.random(), old, float(keras.random.normal(()))

    assert draw() == draw()


def test_set_seed_refuses_a_negative_seed():
    with pytest.raises(ValueError, match="-1"):
        runtime.set_seed(-1)


def test_replace_when_whole_replaces(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with runtime.replace_when_whole(path) as partial:
            assert partial.parent == path.parent
            assert partial.suffix == ".txt"
            partial.write_text(text)
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replace_when_whole_keeps_the_old_file_on_failure(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), runtime.replace_when_whole(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_replace_when_whole_makes_a_folder(tmp_path):
    with runtime.replace_when_whole(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "x").write_text("x")
    assert os.listdir(tmp_path / "folder") == ["x"]
    assert os.listdir(tmp_path) == ["folder"]


def test_every_file_of_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    with runtime.replace_when_whole(tmp_path / "folder") as partial:
        (partial / "below").mkdir(parents=True)
        (partial / "below" / "x").write_text("x")
    folder = tmp_path / "folder"
    written = [path.stat().st_ino for path in (folder / "below" / "x", folder / "below", folder)]
    assert set(written) <= set(flushed)
    assert flushed[-1] == tmp_path.stat().st_ino


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    with runtime.replace_when_whole(tmp_path / "link.csv") as partial:
        partial.write_text("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"


def test_a_killed_writer_leaves_the_old_file_and_a_later_one_cleans_up(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from cmlearn.runtime import replace_when_whole\n"
        "with replace_when_whole(sys.argv[1]) as partial:\n"
        "    partial.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.read_text() == "old"
    (left,) = set(os.listdir(tmp_path)) - {"a.txt"}
    os.utime(tmp_path / left, (0, 0))
    with runtime.replace_when_whole(path) as partial:
        partial.write_text("new")
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_names_the_folder_and_the_remedy(tmp_path):
    with (
        pytest.raises(OSError, match=f"{tmp_path}.*disk is full: free some space") as caught,
        runtime.replace_when_whole(tmp_path / "a.txt") as partial,
    ):
        partial.symlink_to("/dev/full")
        partial.write_text("x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_a_full_disk_on_the_way_is_not_taken_for_the_place_of_the_result(tmp_path):
    def full(partial):
        raise OSError(errno.ENOSPC, "No space left on device", str(partial))

    with (
        pytest.raises(OSError, match=f"cannot write in the folder {tmp_path / 'cache'}: the disk"),
        runtime.replace_when_whole(tmp_path / "results" / "a.txt"),
        runtime.replace_when_whole(tmp_path / "cache" / "weights") as partial,
    ):
        full(partial)


def test_a_read_only_folder_names_the_folder_and_the_remedy(tmp_path):
    def fail(partial):
        raise OSError(errno.EROFS, "Read-only file system", str(partial))

    with (
        pytest.raises(OSError, match=f"{tmp_path}.*read-only: choose a folder"),
        runtime.replace_when_whole(tmp_path / "a.txt") as partial,
    ):
        fail(partial)


@pytest.mark.parametrize("place", ["elsewhere", "out"])
def test_an_unreadable_input_is_not_blamed_on_the_output_folder(tmp_path, place):
    """The input may lie beside the output."""
    unreadable = str(tmp_path / place / "input.csv")
    with (
        pytest.raises(PermissionError, match="Permission denied: .*input.csv"),
        runtime.replace_when_whole(tmp_path / "out" / "a.txt"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", unreadable)


@pytest.mark.parametrize("is_within", [True, False])
def test_a_refusal_of_what_is_written_is_blamed_on_the_output_folder(tmp_path, is_within):
    with (
        pytest.raises(OSError, match=f"cannot write in the folder {tmp_path}: you may not write"),
        runtime.replace_when_whole(tmp_path / "model") as partial,
    ):
        refused = partial / "model.skops" if is_within else partial
        raise PermissionError(errno.EACCES, "Permission denied", str(refused))


def test_peak_memory_keeps_what_was_held_and_freed():
    code = (
        "from cmlearn.runtime import peak_memory\n"
        "before = peak_memory()\n"
        "block = bytearray(64 * 2**20)\n"
        "del block\n"
        "grown = peak_memory() - before\n"
        "assert 60 * 2**20 < grown < 80 * 2**20, grown\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("echo '80 GiB'; echo '40 GiB'", "80 GiB"), ("exit 9", ""), ("true", "")],
    ids=["two GPUs", "no GPU", "no answer"],
)
def test_nvidia_smi_is_asked_about_the_first_gpu(monkeypatch, tmp_path, answer, expected):
    (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{answer}\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert runtime.nvidia_smi("memory.total") == expected
    assert "--query-gpu=memory.total" in (tmp_path / "asked").read_text()


GPU_BACKENDS = {
    "tensorflow": "tensorflow.config.experimental.get_memory_info = lambda name: {'peak': 5}\n",
    "jax": "jax.local_devices = lambda: [SimpleNamespace(memory_stats=lambda: stats)]\n",
    "torch": "torch = SimpleNamespace(cuda=SimpleNamespace(max_memory_allocated=lambda: 5))\n",
}


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_peak_gpu_memory_asks_the_backend_that_keras_computes_with(backend):
    """No GPU is needed: each backend's own counter is replaced by one that says 5 bytes."""
    code = (
        "import sys\n"
        "from types import SimpleNamespace\n"
        "from cmlearn import runtime\n"
        "assert runtime.peak_gpu_memory() is None\n"
        "import jax, keras, tensorflow\n"
        "assert runtime.peak_gpu_memory() is None\n"
        f"keras.backend.backend = lambda: {backend!r}\n"
        "runtime.device = lambda: 'GPU of a test'\n"
        "stats = {'peak_bytes_in_use': 5}\n"
        + GPU_BACKENDS[backend]
        + ("sys.modules['torch'] = torch\n" if backend == "torch" else "")
        + "assert runtime.peak_gpu_memory() == 5\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_provenance_names_the_precision_once_keras_is_loaded():
    code = (
        "from cmlearn import runtime\n"
        "assert 'precision' not in runtime.provenance()\n"
        "import keras\n"
        "assert runtime.provenance()['precision'] == 'float32'\n"
        "keras.config.set_dtype_policy('mixed_bfloat16')\n"
        "assert runtime.provenance()['precision'] == 'mixed_bfloat16'\n"
        "assert 'peak_gpu_memory_mib' not in runtime.provenance()\n"
        "runtime.peak_gpu_memory = lambda: 3 * 2**20\n"
        "assert runtime.provenance()['peak_gpu_memory_mib'] == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_code_hash_ignores_line_ends_and_order_but_not_content(tmp_path):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_bytes(b"x = 1\n")
    second.write_bytes(b"y = 1\n")
    known = runtime.code_hash([first, second])
    first.write_bytes(b"x = 1\r\n")
    assert runtime.code_hash([second, first]) == known
    first.write_bytes(b"x = 2\n")
    assert runtime.code_hash([first, second]) != known


def test_a_stored_run_turns_stale_when_its_code_changes(tmp_path):
    source, path = tmp_path / "a.py", tmp_path / "run.json"
    source.write_text("x = 1\n")
    results = {"f1": np.float64(0.5), "curve": np.arange(3)}
    runtime.save_run(path, results, sources=[str(source)])
    run = runtime.load_run(path)
    assert run["results"] == {"f1": 0.5, "curve": [0, 1, 2]}
    assert run["provenance"]["python"] == sys.version.split()[0]
    assert run["provenance"]["packages"]["numpy"] == np.__version__
    assert run["stale"] is False
    source.write_text("x = 2\n")
    assert runtime.load_run(path)["stale"] is True
    source.unlink()
    assert runtime.load_run(path)["stale"] is True


def test_only_a_changed_source_makes_the_commit_dirty(monkeypatch, tmp_path):
    package = tmp_path / "cmlearn"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    (package / "b.py").write_text("y = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "Both"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(runtime, "_PACKAGE", package)
    (package / "b.py").write_text("y = 2\n")
    (tmp_path / "run.json").write_text("{}")
    clean = runtime.provenance(["cmlearn/a.py"])["commit"]
    assert len(clean) == 12
    assert runtime.provenance([])["commit"] == clean
    assert runtime.provenance(["cmlearn/a.py", "cmlearn/b.py"])["commit"] == f"{clean}-dirty"
    assert runtime.provenance()["commit"] == f"{clean}-dirty"
    elsewhere = tmp_path.with_name("elsewhere.py")
    elsewhere.write_text("z = 1\n")
    assert runtime.provenance(["cmlearn/a.py", elsewhere])["commit"] == clean


def test_a_run_of_many_processes_says_what_they_took_together(tmp_path):
    runtime.save_run(tmp_path / "run.json", {}, sources=[], seconds=1234.56)
    assert runtime.load_run(tmp_path / "run.json")["provenance"]["seconds"] == 1234.6


def test_save_run_writes_nothing_when_a_result_is_nan(tmp_path):
    with pytest.raises(ValueError):
        runtime.save_run(tmp_path / "run.json", {"f1": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"results": 1})])
def test_load_run_refuses_other_files(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.json does not hold a stored run"):
        runtime.load_run(path)
