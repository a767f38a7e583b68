"""What installing the package asks of the machine it is installed on."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(line) for line in PROJECT["dependencies"]]
COLAB = Path(os.environ.get("CMLEARN_DATA", "")) / "colab" / "pip-freeze.gpu.txt"


@pytest.mark.parametrize("one", REQUIREMENTS + [Requirement(r) for e in EXTRAS.values() for r in e])
def test_only_lower_bounds(one):
    assert [bound.operator for bound in one.specifier] == [">="], one


@pytest.mark.skipif(not COLAB.is_file(), reason="Colab's list is not under CMLEARN_DATA")
def test_nothing_that_colab_has_is_replaced():
    """Follow the requirements; wherever Colab has the package, its version must do."""
    lines = re.findall(r"^([\w.-]+)==(\S+)$", COLAB.read_text("utf-8"), re.M)
    colab = {canonicalize_name(name): version for name, version in lines}
    asked = REQUIREMENTS + [Requirement(r) for e in ("emoji", "weights") for r in EXTRAS[e]]
    waiting, seen, replaced = list(asked), set(), []
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in seen or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        if name in colab:
            if not one.specifier.contains(colab[name], prereleases=True):
                replaced.append(f"{one}: Colab has {colab[name]}")
            continue
        # Not on Colab: pip would add it, so its own requirements count.
        seen.add(name)
        waiting += map(Requirement, importlib.metadata.requires(one.name) or [])
    assert replaced == []
    assert {canonicalize_name(one.name) for one in asked} & colab.keys()


def test_requirements_are_pinned():
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.+!-]+", line)] == []
    pinned = {canonicalize_name(line.split("==")[0]) for line in pins}
    everything = REQUIREMENTS + [Requirement(r) for e in EXTRAS.values() for r in e]
    assert {canonicalize_name(one.name) for one in everything} <= pinned


def run(code):
    bare = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=bare, check=False
    )


def test_opencv_imports_without_a_display():
    code = "import cv2, numpy; print(cv2.resize(numpy.zeros((4, 4), 'uint8'), (2, 2)).shape)"
    done = run(code)
    assert done.stdout == "(2, 2)\n", done.stderr


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys, cmlearn, cmlearn.image, cmlearn.text, cmlearn.models, cmlearn.book;"
        "heavy = {'keras', 'tensorflow', 'cv2', 'gensim', 'jieba', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = run(code)
    assert done.stdout == "[]\n", done.stderr


def gpu_packages(folder: Path, nvidia_smi: str, pip: str = "exit 0", system: str = "Linux") -> str:
    """Run the script that `make book` runs, with stand-ins for the machine; return what it did."""
    log = folder / "asked"
    stand_ins = {
        "nvidia-smi": nvidia_smi,
        "uname": f"echo {system}",
        "python": f'if [ "$1" = -c ]; then echo 2.20.0; else echo "$@" >> {log}; {pip}; fi',
    }
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    script = ["sh", str(ROOT / "tests" / "gpu_packages.sh"), str(folder / "python")]
    path = f"{folder}:{os.environ['PATH']}"
    reply = subprocess.run(
        script, capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
    )
    return (log.read_text() if log.exists() else "") + reply.stderr


def test_on_linux_with_an_nvidia_gpu_tensorflow_gets_its_cuda_libraries(tmp_path):
    asked = gpu_packages(tmp_path, nvidia_smi="echo GPU 0: of a test")
    assert asked.split() == [
        "-m", "pip", "install", "--disable-pip-version-check", "--quiet",
        "tensorflow[and-cuda]==2.20.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "machine",
    [{"nvidia_smi": "exit 9"}, {"nvidia_smi": "exit 0", "system": "Darwin"}],
    ids=["no GPU", "macOS"],
)
def test_elsewhere_no_cuda_library_is_asked_for(tmp_path, machine):
    assert gpu_packages(tmp_path, **machine) == ""


def test_a_book_is_built_on_the_cpu_when_the_cuda_libraries_cannot_be_had(tmp_path):
    said = gpu_packages(tmp_path, nvidia_smi="exit 0", pip="exit 1")
    assert "the pages will run on the CPU" in said
