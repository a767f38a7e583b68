"""What a chapter says before it runs, and how the package is installed beside what is there."""

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from conftest import ROOT

from cmlearn import preflight

NEEDS = (
    "**What it needs.** [Fusion](fusion.md). About a minute and 2 GB of memory, in both profiles."
)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Put a page into a checkout of its own; return a function that writes it."""
    monkeypatch.setattr(preflight, "ROOT", tmp_path)
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CMLEARN_DATA", str(tmp_path / "data"))
    ask = preflight._why_no_grocery
    ask.cache_clear()

    def write(text):
        (tmp_path / "page.md").write_text(text, "utf-8")
        return "page.md"

    yield write
    ask.cache_clear()


def rows(report):
    return [tuple(line.split(maxsplit=1)) for line in report.splitlines()]


# ---------------------------------------------------------------- the report


def test_the_report_says_where_the_page_runs_and_what_it_expects(page, monkeypatch):
    monkeypatch.setenv("CMLEARN_PROFILE", "quick")
    said = dict(rows(preflight.report(page(NEEDS))))
    assert said["profile"] == "quick (CMLEARN_PROFILE says so)"
    assert said["device"].startswith(("CPU", "GPU"))
    assert " GB free of " in said["memory"]
    assert " GB free for " in said["disk"]
    assert said["expected"] == "About a minute and 2 GB of memory, in both profiles."
    assert said["skipped"] == "nothing"
    assert "PROBLEM" not in said


def test_without_a_profile_the_report_gives_the_reason(page, monkeypatch):
    monkeypatch.delenv("CMLEARN_PROFILE")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert dict(rows(preflight.report(page(NEEDS))))["profile"].startswith("quick (no GPU")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "book").rglob("*.md")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_every_page_that_says_what_it_needs_says_how_long_it_takes(path):
    text = path.read_text("utf-8")
    if "**What it needs.**" not in text:
        pytest.skip("a page without code")
    said = preflight.expected(text)
    assert "minute" in said or "seconds" in said
    assert "](" not in said
    assert "{" not in said


def test_a_page_that_is_not_there_has_no_expected_time(page):
    said = dict(rows(preflight.report("no/such/page.md")))
    assert said["expected"] == "the page does not say"


def test_too_little_memory_is_a_problem_with_a_way_out(page, monkeypatch):
    monkeypatch.setattr(preflight, "_memory", lambda: (1_500_000_000, 12_000_000_000))
    said = dict(rows(preflight.report(page(NEEDS))))
    assert "asks for 2 GB of memory and 1.5 GB are free" in said["PROBLEM"]
    assert "Manage sessions" in said["PROBLEM"]
    monkeypatch.setattr(preflight, "_memory", lambda: (2_500_000_000, 12_000_000_000))
    assert "PROBLEM" not in preflight.report("page.md")


def test_a_full_disk_is_a_problem_with_a_way_out(page, monkeypatch):
    usage = preflight.shutil.disk_usage(ROOT)._replace(free=10**9)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    assert "1.0 GB of disk are free" in preflight.report(page(NEEDS))
    assert "CMLEARN_CACHE" in preflight.report("page.md")


GROCERY = NEEDS + "\n\n```{code-cell}\ngrocery = load_grocery()\n```\n"


def test_photographs_that_cannot_be_reached_are_announced(page, monkeypatch, tmp_path):
    from cmlearn.datasets import _grocery

    monkeypatch.setattr(_grocery, "_ADDRESS", (tmp_path / "nowhere.git").as_uri())
    said = preflight.report(page(GROCERY))
    assert "skipped   what needs the photographs of groceries (file://" in said
    assert "cannot be reached" in said
    assert "CMLEARN_DATA" in said
    assert "of groceries" not in preflight.report(page(NEEDS + "\n\nOf `load_grocery()`.\n"))


def test_photographs_that_can_be_reached_are_fetched(page, monkeypatch, tmp_path):
    from cmlearn.datasets import _grocery

    subprocess.run(["git", "init", "--quiet", "--bare", str(tmp_path / "far.git")], check=True)
    monkeypatch.setattr(_grocery, "_ADDRESS", (tmp_path / "far.git").as_uri())
    said = dict(rows(preflight.report(page(GROCERY))))
    assert "300 MB" in said["fetched"]
    assert said["skipped"] == "nothing"


def test_photographs_that_are_here_are_not_mentioned(page, monkeypatch, tmp_path):
    (tmp_path / "data" / "GroceryStoreDataset").mkdir(parents=True)
    monkeypatch.setattr(preflight, "_why_no_grocery", lambda: pytest.fail("asked the network"))
    assert "of groceries" not in preflight.report(page(GROCERY))


def test_a_package_that_is_missing_is_announced(page, monkeypatch):
    text = "**What it needs.** Half a minute. The optional packages `cmlearn[onnx]`."
    monkeypatch.setitem(preflight._MODULES, "onnx", "no_such_module")
    assert "pip install no_such_module" in preflight.report(page(text))
    monkeypatch.setitem(preflight._MODULES, "onnx", "json")
    assert "json" not in preflight.report("page.md")


def test_only_data_packages_and_known_extras_are_asked_for():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = project["optional-dependencies"]
    asked = {e for path in (ROOT / "book").rglob("*.md") for e in preflight.extras(read(path))}
    assert asked | set(preflight.DATA) | set(preflight._MODULES) <= set(known)
    assert "onnx" in preflight.extras(read(ROOT / "book/05-future/efficiency.md"))
    assert preflight.extras(read(ROOT / "book/04-code/scaling.md")) == ("ray",)
    assert preflight.extras(read(ROOT / "book/04-code/data.md")) == ()


def read(path):
    return path.read_text("utf-8")


# ---------------------------------------------------------------- installing, without a network


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def venv(environment):
    """Return the Python of an environment that has pip, and version 1.0 of a package called old."""
    folder = environment
    site = next(folder.glob("lib/python*/site-packages"))
    for left in [*site.glob("cmlearn*"), *site.glob("old-*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    info = site / "old-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: old\nVersion: 1.0\n")
    (info / "RECORD").write_text("")
    return folder / "bin" / "python"


def checkout(folder: Path, requires: str = "") -> Path:
    """Make a project called cmlearn that builds with nothing but the standard library."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (folder / "backend.py").write_text(BACKEND.format(requires=requires))
    (folder / "cmlearn").mkdir()
    (folder / "cmlearn.egg-info").mkdir()  # as setuptools leaves it
    (folder / "cmlearn.egg-info" / "PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: cmlearn\nVersion: 0\n"
    )
    (folder / "cmlearn" / "__init__.py").write_text("")
    (folder / "cmlearn" / "preflight.py").write_text(read(ROOT / "cmlearn" / "preflight.py"))
    return folder


BACKEND = '''
import zipfile
from pathlib import Path


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name, info = "cmlearn-0-py3-none-any.whl", "cmlearn-0.dist-info"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as wheel:
        wheel.writestr("cmlearn.pth", str(Path(__file__).parent))
        wheel.writestr(
            f"{{info}}/METADATA",
            "Metadata-Version: 2.1\\nName: cmlearn\\nVersion: 0\\n{requires}",
        )
        wheel.writestr(f"{{info}}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{{info}}/RECORD", "")
    return name
'''  # fmt: skip  # noqa: E501


def install(python, root, times=1, before=""):
    code = f"""
import sys
sys.path.insert(0, {str(root)!r})
from pathlib import Path
from cmlearn import preflight
{before}
for _ in range({times}):
    preflight.install(Path({str(root)!r}), ())
print(preflight._versions())
"""
    quiet = {"PIP_NO_INDEX": "1", "PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null"}
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, env=quiet, cwd=root.parent
    )


def test_it_installs_and_a_second_run_asks_pip_nothing(venv, tmp_path):
    root = checkout(tmp_path / "project")
    first = install(venv, root)
    assert first.returncode == 0, first.stderr
    assert "'old': '1.0'" in first.stdout
    again = install(venv, root, before="preflight._pip_install = None")
    assert again.returncode == 0, again.stderr
    # After a restart, and from any folder, the package is there.
    command = [str(venv), "-E", "-c", "import cmlearn; print(cmlearn.__file__)"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.strip() == str(root / "cmlearn" / "__init__.py")


@pytest.mark.parametrize(("folder", "expected"), [("project", True), ("project-old", False)])
def test_a_checkout_of_a_longer_name_is_another(tmp_path, monkeypatch, folder, expected):
    url = json.dumps({"url": (tmp_path / folder).as_uri()})
    installed = types.SimpleNamespace(read_text=lambda name: url, requires=[])
    monkeypatch.setattr("importlib.metadata.distributions", lambda **name: [installed])
    monkeypatch.setattr(preflight, "_versions", dict)
    assert preflight._is_installed(tmp_path / "project", ()) is expected


def test_it_fails_rather_than_replace_a_package(venv, tmp_path):
    root = checkout(tmp_path / "project", "Requires-Dist: old>=2.0\\n")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    newer(wheels)
    before = f"import os; os.environ['PIP_FIND_LINKS'] = {str(wheels)!r}"
    reply = install(venv, root, before=before)
    assert reply.returncode != 0
    assert "does not fit a package that is here already, and none is replaced" in reply.stderr
    assert "Runtime version" in reply.stderr
    code = "from importlib.metadata import version; print(version('old'))"
    shown = subprocess.run([str(venv), "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == "1.0"
    # Without the constraint pip would have replaced it.
    free = install(venv, root, before=f"{before}\npreflight._versions = dict")
    assert "'old'" not in free.stderr
    shown = subprocess.run([str(venv), "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == "2.0"


def newer(folder):
    import zipfile

    with zipfile.ZipFile(folder / "old-2.0-py3-none-any.whl", "w") as wheel:
        info = "old-2.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: old\nVersion: 2.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_a_package_that_cannot_be_had_is_told_with_a_way_out(venv, tmp_path):
    reply = install(venv, checkout(tmp_path / "project", "Requires-Dist: nowhere\\n"))
    assert reply.returncode != 0
    assert "run the cell again" in reply.stderr
    assert "Disconnect and delete runtime" in reply.stderr


def test_a_package_that_was_changed_all_the_same_is_an_error(monkeypatch):
    seen = iter([{"a": "1", "b": "1"}, {"a": "2", "b": "1"}])
    monkeypatch.setattr(preflight, "_is_installed", lambda *_: False)
    monkeypatch.setattr(preflight, "_pip_install", lambda *_: None)
    monkeypatch.setattr(preflight, "_versions", lambda: next(seen))
    with pytest.raises(preflight.PreflightError, match=r"\{'a': '2'\}.*delete runtime"):
        preflight.install(ROOT)
