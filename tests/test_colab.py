"""The set-up cell with a stand-in for Colab, badges and buttons, and what the last check measured.

`make colab-check` runs every notebook with Colab's versions; here are the parts that take seconds.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
import types
import urllib.parse

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from packaging.specifiers import SpecifierSet
from test_book import HTML, PAGES, TOC, notebooks

from cmlearn import preflight

REPOSITORY = notebooks.repository()
NOTEBOOKS = sorted((ROOT / "book").rglob("*.ipynb"))
ALLOWED = 11_000  # MiB of main memory a page may take
GPU_ALLOWED = 12_000


# ---------------------------------------------------------------- the set-up cell


@pytest.mark.parametrize("page", PAGES)
def test_every_notebook_has_the_setup_of_its_own_page_and_one_alone(page):
    cells = json.loads((ROOT / page).with_suffix(".ipynb").read_text("utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert sources[1] == notebooks.setup_source(page)
    assert sum("google.colab" in source for source in sources) == 1
    assert not any(re.search(r"^\s*[!%]", source, re.M) for source in sources[1:2])


def test_the_cell_is_plain_python_that_does_nothing_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("started a program"))
    before = list(sys.path)
    exec(notebooks.setup_source("book/04-code/data.md"), {})
    assert (os.getcwd(), sys.path, list(tmp_path.iterdir())) == (str(tmp_path), before, [])


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """Stand in for Colab: return its folder, and a function that runs a page's set-up cell."""
    project = tmp_path / "far"
    project.mkdir()
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b.org"]
    (project / "book" / "04-code").mkdir(parents=True)
    (project / "book" / "04-code" / "data.md").write_text("# Data\n")

    def commit(word):
        (project / "state").write_text(word)
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", word], check=True)

    subprocess.run([*git, "init", "--quiet", "-b", REPOSITORY.branch], check=True)
    commit("release")
    calls = []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(preflight, "prepare", calls.append)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{project.as_uri()}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", REPOSITORY.url)
    content = tmp_path / "content"
    content.mkdir()

    def run(page="book/04-code/data.md"):
        exec(notebooks.setup_source(page).replace("/content", str(content)), {})
        return calls

    home = content / REPOSITORY.folder
    return types.SimpleNamespace(run=run, home=home, project=project, git=git, commit=commit)


def test_before_the_release_is_tagged_the_branch_is_taken(colab):
    assert colab.run() == ["book/04-code/data.md"]
    assert (colab.home / "state").read_text() == "release"
    assert sys.path[0] == str(colab.home)


def test_the_tag_of_the_version_is_taken_though_the_branch_went_on(colab):
    from cmlearn import __version__

    subprocess.run([*colab.git, "tag", f"v{__version__}"], check=True)
    colab.commit("later")
    colab.run()
    assert (colab.home / "state").read_text() == "release"


def test_a_second_run_and_a_run_after_a_restart_keep_the_checkout(colab):
    colab.run()
    (colab.home / "mine").write_text("a reader's file")
    colab.commit("later")
    assert colab.run() == ["book/04-code/data.md"] * 2
    assert (colab.home / "mine").exists()
    assert (colab.home / "state").read_text() == "release"


def test_a_fetch_that_broke_off_is_made_again(colab):
    part = colab.home.with_name(colab.home.name + ".part")
    part.mkdir()
    (part / "half").write_text("")
    colab.run()
    assert not part.exists()
    assert not (colab.home / "half").exists()


def test_a_project_that_cannot_be_fetched_is_told_with_a_way_out(colab, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{(colab.project / 'none').as_uri()}.insteadOf")
    with pytest.raises(RuntimeError, match="cannot be fetched; run this cell again"):
        colab.run()
    assert not colab.home.exists()


# ---------------------------------------------------------------- badges and buttons


def target(address):
    """Return the path in the repository that an address of ours means, or None."""
    address = urllib.parse.unquote(address)
    ours = [
        rf"{re.escape(REPOSITORY.url)}/(?:blob|raw|edit|tree)/{re.escape(REPOSITORY.branch)}/(.+)",
        rf"{re.escape(REPOSITORY.colab(''))}(.+)",
        rf"https://mybinder\.org/v2/gh/{REPOSITORY.slug}/{REPOSITORY.branch}\?urlpath=lab/tree/(.+)",
    ]
    for pattern in ours:
        found = re.match(pattern, address)
        if found:
            return found[1].split("#")[0].split("?")[0]
    return None


@pytest.mark.parametrize("page", PAGES)
def test_the_notebooks_badges_lead_to_files(page):
    cells = json.loads((ROOT / page).with_suffix(".ipynb").read_text("utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    addresses = re.findall(r"\]\((https://[^)\s]+)\)", text)
    paths = [path for path in map(target, addresses) if path]
    assert page.removesuffix(".md") + ".ipynb" in paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    strays = [one for one in addresses if "colab.research" in one and target(one) is None]
    assert strays == []


@pytest.mark.parametrize("page", TOC)
def test_the_built_pages_buttons_lead_to_files(page):
    html = (HTML / page).with_suffix(".html")
    if not html.exists():
        pytest.skip("the page was not built: run `make book`")
    soup = BeautifulSoup(html.read_text("utf-8"), "html.parser")
    addresses = [link["href"] for link in soup.select(".article-header-buttons a[href]")]
    paths = [path for path in map(target, addresses) if path]
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    if page not in PAGES:
        return
    notebook = page.removesuffix(".md") + ".ipynb"
    colab = [target(one) for one in addresses if "colab.research" in one]
    assert colab == [notebook]
    assert [target(one) for one in addresses if "mybinder.org" in one] == [notebook]
    here = [one for one in addresses if not re.match(r"[a-z]+:|#", one)]
    assert any(one.endswith(".ipynb") for one in here)
    assert [one for one in here if not (html.parent / one.split("#")[0]).is_file()] == []


def test_the_students_page_opens_each_assignment_in_colab():
    html = HTML / "book" / "students.html"
    if not html.exists():
        pytest.skip("the page was not built: run `make book`")
    links = BeautifulSoup(html.read_text("utf-8"), "html.parser").select("article a[href]")
    paths = {target(link["href"]) for link in links if "colab.research" in link["href"]}
    student = (ROOT / "book" / "assignments" / "student").glob("*.ipynb")
    assert paths == {path.relative_to(ROOT).as_posix() for path in student}


def test_binder_installs_what_the_book_was_tested_with():
    folder = ROOT / ".binder"
    lines = (folder / "requirements.txt").read_text("utf-8").split("\n")
    named = [line.removeprefix("-r ") for line in lines if line]
    assert [(folder / name).resolve() for name in named] == [ROOT / "requirements.txt"]
    python = (folder / "runtime.txt").read_text("utf-8").strip().removeprefix("python-")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert python in SpecifierSet(project["requires-python"])
    assert os.access(folder / "postBuild", os.X_OK)


# ---------------------------------------------------------------- a release


def tagged_elsewhere(root, version):
    """Return the commit that carries the version's tag, unless it is the one checked out."""

    def commit_of(name):
        ask = ["git", "-C", str(root), "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}"]
        return subprocess.run(ask, capture_output=True, text=True).stdout.strip()

    tagged = commit_of(f"refs/tags/v{version}")
    return "" if tagged == commit_of("HEAD") else tagged


def test_a_later_state_does_not_carry_the_number_of_a_release():
    assert tagged_elsewhere(ROOT, notebooks.VERSION) == "", "raise the version: see the README"


def test_that_check_sees_a_tag_that_was_left_behind(colab):
    assert tagged_elsewhere(colab.project, "1.0") == ""
    subprocess.run([*colab.git, "tag", "v1.0"], check=True)
    assert tagged_elsewhere(colab.project, "1.0") == ""
    colab.commit("later")
    assert len(tagged_elsewhere(colab.project, "1.0")) == 40


# ---------------------------------------------------------------- nothing asked, nothing sent


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_logs_in_uploads_or_asks(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    asks = r"files\.upload|drive\.mount|userdata|authenticate|notebook_login|\binput\(|getpass"
    assert re.findall(asks, code) == []


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("page", PAGES)
def test_the_built_page_took_no_more_memory_than_colab_has(page):
    html = (HTML / page).with_suffix(".html")
    if not html.exists():
        pytest.skip("the page was not built: run `make book`")
    text = BeautifulSoup(html.read_text("utf-8"), "html.parser").get_text(" ", strip=True)
    for name, allowed in (("peak memory", ALLOWED), ("peak GPU memory", GPU_ALLOWED)):
        for taken in re.findall(rf"{name} \(MiB\) (\d+)", text):
            assert int(taken) < allowed, name
