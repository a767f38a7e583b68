"""The book itself: pages and notebooks in step, links, and what the built pages show."""

import importlib.util
import json
import re
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT
from docutils import nodes
from docutils.utils import new_document

from cmlearn import book


def _load(name):
    path = ROOT / "book" / "_ext" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


notebooks = _load("notebooks")
book_build = _load("book_build")
TOC = [f"{name}.md" for name in notebooks._toc_names()]
PAGES = [path.relative_to(ROOT).as_posix() for path in notebooks.page_paths()]


# ---------------------------------------------------------------- the build's own extension


@pytest.mark.parametrize("changed", ["cmlearn/a.py", "book/_runs/a.json", "data/a.png"])
def test_outputs_are_kept_until_what_they_depend_on_changes(tmp_path, monkeypatch, changed):
    monkeypatch.setenv("CMLEARN_DATA", str(tmp_path / "data"))
    for name in ("cmlearn/a.py", "book/_runs/a.json", "data/a.png", "book/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    app = SimpleNamespace(srcdir=tmp_path)
    output = tmp_path / "_build" / ".jupyter_cache" / "output"
    book_build.drop_stale_cache(app, None)
    output.write_text("kept")
    (tmp_path / "book" / "page.md").write_text("a page's own text is the cache's business")
    book_build.drop_stale_cache(app, None)
    assert output.exists()
    (tmp_path / changed).write_text("22" if changed.startswith("data") else "2")
    book_build.drop_stale_cache(app, None)
    assert not output.exists()


def test_footnotes_of_a_docstring_become_plain_text():
    lines = ["As in [1]_.", "", ".. [1] A. Author,", "   a title.", "", "More."]
    book_build.flatten_references(None, "function", "f", None, None, lines)
    assert lines == ["As in [1].", "", "", "* [1] A. Author,", "  a title.", "", "More."]


def test_only_the_lines_that_tensorflow_logs_are_dropped():
    text = "I0000 00:00:17.1 1 stub.cc:31] no drivers\nUserWarning: five texts\n"
    document = new_document("page")
    document += nodes.literal_block(text, text, classes=["output", "stderr"])
    document += nodes.literal_block(text, text, classes=["output"])
    book_build.drop_tensorflow_log(None, document)
    assert [node.astext() for node in document.children] == ["UserWarning: five texts\n", text]


def test_the_check_of_notebooks_fails_on_a_difference(tmp_path, monkeypatch, capsys):
    page = ROOT / "book" / "03-math" / "notation.md"
    assert notebooks.main(["--check", str(page)]) == 0
    monkeypatch.setattr(notebooks, "rendered", lambda path: "another text")
    assert notebooks.main(["--check", str(page)]) == 1
    assert "notation.ipynb is out of step with its page" in capsys.readouterr().err

    def refuse(path):
        raise notebooks.PageError(f"{path.name}: a link leads nowhere")

    monkeypatch.setattr(notebooks, "rendered", refuse)
    assert notebooks.main(["--check", str(page)]) == 1
    assert "notation.md: a link leads nowhere" in capsys.readouterr().err


# ---------------------------------------------------------------- cmlearn.book


def test_glue_prints_outside_the_build(monkeypatch, capsys):
    monkeypatch.delenv(book.BUILDING, raising=False)
    book.glue("share", np.float64(0.12345))
    book.glue("rows", 1200, ",")
    book.glue("name", "concat")
    assert capsys.readouterr().out == "share = 0.123\nrows = 1,200\nname = concat\n"


def test_glue_hands_the_shown_text_to_the_book(monkeypatch, capsys):
    myst_nb = pytest.importorskip("myst_nb")
    glued = {}
    monkeypatch.setenv(book.BUILDING, "1")
    monkeypatch.setattr(myst_nb, "glue", lambda name, value, display: glued.update({name: value}))
    book.glue("share", 0.5, ".0%")
    assert glued == {"share": "50%"}
    assert capsys.readouterr().out == ""


def test_a_claim_is_held_in_the_build_and_told_elsewhere(monkeypatch, capsys):
    numbers = {"a": 1}
    monkeypatch.delenv(book.BUILDING, raising=False)
    with book.claim():
        assert numbers["a"] == 2
    with book.claim():
        assert numbers["gone"] == 2
    told = capsys.readouterr().out
    assert 'assert numbers["a"] == 2' in told and 'assert numbers["gone"] == 2' in told
    monkeypatch.setenv(book.BUILDING, "1")
    with pytest.raises(AssertionError), book.claim():
        assert numbers["a"] == 2


def test_asserts_of_hidden_cells_are_claims():
    source = "if x:\n    assert (a ==\n        b)\nprint(1)\nassert c, d"
    assert notebooks.only_told(source) == (
        "from cmlearn.book import claim\n\nif x:\n    with claim():\n        assert (a ==\n"
        "            b)\nprint(1)\nwith claim():\n    assert c, d"
    )
    assert notebooks.only_told("print(1)") == "print(1)"
    with pytest.raises(notebooks.PageError, match="line of its own"):
        notebooks.only_told("x = 1; assert x")


def test_page_footer_names_the_run():
    table = book.page_footer()
    assert list(table.columns) == ["this run"]
    assert table.loc["profile", "this run"] == "quick"
    assert int(table.loc["peak memory (MiB)", "this run"]) > 10
    assert not table["this run"].str.contains("{", regex=False).any()


# ---------------------------------------------------------------- the notebooks' generator


def convert(text):
    return notebooks.convert_markdown(
        text, notebooks.Page("book/index.md", notebooks.labels_of(text))
    )


def test_admonition_becomes_a_quotation_and_a_solution_unfolds():
    assert convert("```{note}\nMind the **gap**.\n```") == "> **Note**\n>\n> Mind the **gap**."
    hidden = convert("```{admonition} Solution to 1\n:class: dropdown\nIt is `2`.\n```")
    assert hidden == ("<details>\n<summary>Solution to 1</summary>\n\nIt is `2`.\n\n</details>")


def test_nested_fences_are_kept_apart():
    inner = "```python\nx = {1}\n```\nand `y`"
    made = convert(f"````{{admonition}} Solution\n:class: dropdown\n{inner}\n````\nafter")
    assert made == f"<details>\n<summary>Solution</summary>\n\n{inner}\n\n</details>\n\nafter"


def test_equations_are_numbered_in_reading_order():
    text = "$$ a = b $$ (eq-one)\n\n$$\nc\n= d\n$$ (eq-two)\n\nSee {eq}`eq-two` and {eq}`eq-one`."
    made = convert(text)
    assert "a = b\n\\tag{1}\n$$" in made
    assert "c\n= d\n\\tag{2}\n$$" in made
    assert made.endswith("See [(2)](#eq-two) and [(1)](#eq-one).")


def test_roles_become_plain_text():
    made = convert(
        "{term}`modalities <modality>`, {func}`~cmlearn.book.glue`, {glue:text}`acc:.2f`"
    )
    assert made == "modalities, `glue`, ‹acc›"
    assert convert("inline code ``{ref}`x` `` stays") == "inline code ``{ref}`x` `` stays"


def test_citation_takes_name_year_and_address():
    made = convert("as in {cite}`pennington-2014`")
    assert made == "as in ([Pennington et al., 2014](https://doi.org/10.3115/v1/D14-1162))"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```{grid} 2\n```", "grid"),
        ("{ref}`no-such-label`", "leads nowhere"),
        ("[text](no-such-page.md)", "leads nowhere"),
        ("{cite}`nobody-1900`", "references.bib"),
        ("{unknownrole}`x`", "unknownrole"),
        ("```{note}\nnever closed", "never closed"),
        ("```{figure} /book/_assets/logo.svg\n:name: x\n```", "alt"),
    ],
)
def test_what_has_no_plain_form_is_an_error(text, says):
    with pytest.raises(notebooks.PageError, match=says):
        convert(text)


def test_ids_change_with_their_own_cell_only(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    front = "---\nkernelspec:\n  display_name: Python 3\n  name: python3\n---\n\n# Title\n\n"
    cells = ["```{code-cell}\na = 1\n```", "```{code-cell}\nb = 2\n```"]
    page.write_text(front + "\n\n".join(cells))
    notebooks.repository.cache_clear()
    (tmp_path / "_config.yml").write_text("repository: {url: 'https://x.org/o/r', branch: b}")
    before = [cell.id for cell in notebooks.notebook_of(page).cells]
    page.write_text(front + "\n\n".join([cells[0], "A new sentence.", cells[1]]))
    after = [cell.id for cell in notebooks.notebook_of(page).cells]
    monkeypatch.undo()
    notebooks.repository.cache_clear()
    assert len(after) == len(before) + 1
    assert [one for one in after if one in before] == before


# ---------------------------------------------------------------- the pages


@pytest.mark.parametrize("page", TOC)
def test_page_in_the_table_of_contents_exists(page):
    assert (ROOT / page).is_file()


def test_there_are_pages_to_check():
    assert "book/index.md" in PAGES
    assert len(PAGES) >= 5


@pytest.mark.parametrize("page", PAGES)
def test_notebook_is_in_step_with_its_page(page):
    path = ROOT / page
    beside = path.with_suffix(".ipynb")
    assert beside.exists(), "run `make notebooks`"
    assert beside.read_text("utf-8") == notebooks.rendered(path), "run `make notebooks`"


@pytest.mark.parametrize("page", PAGES)
def test_notebook_is_plain_and_opens_with_the_setup(page):
    notebook = nbformat.read((ROOT / page).with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    title, setup = notebook.cells[:2]
    assert title.source.startswith("# ")
    assert f"{config['branch']}/{page.removesuffix('.md')}.ipynb" in title.source
    assert config["url"] in setup.source
    assert "google.colab" in setup.source
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"``.+?``|^```.*?^```", "", cell.source, flags=re.S | re.M)
            assert not re.search(r"^\s*(`{3,}|:{3,})\{|\{[a-z:]+\}`", text, re.M), cell.source
        else:
            assert cell.outputs == []


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_notebook_lead_somewhere(page):
    notebook = json.loads((ROOT / page).with_suffix(".ipynb").read_text("utf-8"))
    url = notebooks.repository().url
    text = "\n".join(
        "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"
    )
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert f'id="{target[1:]}"' in text, target
        elif target.startswith(url + "/"):
            inside = re.match(rf"{re.escape(url)}/(?:blob|raw)/[^/]+/([^#]+)", target)
            assert (ROOT / inside[1]).exists(), target
        elif not re.match(r"[a-z]+:", target):
            assert ((ROOT / page).parent / target.split("#")[0]).exists(), target


def test_no_page_but_the_settings_holds_the_projects_address():
    address = notebooks.repository().url.removeprefix("https://")
    holders = [path for path in TOC if address in (ROOT / path).read_text("utf-8")]
    assert holders == []


# ---------------------------------------------------------------- the built pages

HTML = ROOT / "_build" / "html"


def built(page):
    """Return the built page as parsed HTML; skip where it was not built since it was changed."""
    source, html = ROOT / page, (HTML / page).with_suffix(".html")
    if not html.exists() or html.stat().st_mtime < source.stat().st_mtime:
        pytest.skip("the page was not built since it was last changed: run `make book`")
    return BeautifulSoup(html.read_text("utf-8"), "html.parser")


@pytest.mark.parametrize("page", PAGES)
def test_every_cell_that_should_show_something_does(page):
    shown = built(page).select("div.cell")
    cells = [c for c in notebooks.jupytext.read(str(ROOT / page)).cells if c.cell_type == "code"]
    cells = [c for c in cells if "remove-cell" not in c.metadata.get("tags", [])]
    assert len(shown) == len(cells)
    empty = [
        cell.source
        for cell, box in zip(cells, shown, strict=True)
        if speaks(cell.source)
        and not box.select_one(".cell_output")
        and not {"remove-output", "hide-output"} & set(cell.metadata.get("tags", []))
    ]
    assert empty == []


def speaks(source):
    """Whether a cell must have an output: it prints, draws, or ends with an expression."""
    import ast

    tree = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))
    if not tree.body:
        return False
    last = tree.body[-1]
    if isinstance(last, ast.Expr) and not source.rstrip().endswith(";"):
        called = last.value.func if isinstance(last.value, ast.Call) else None
        name = getattr(called, "id", getattr(called, "attr", ""))
        return name not in SILENT and not name.startswith("assert")
    return any(
        isinstance(n, ast.Name) and n.id == "print"
        for s in tree.body
        for n in ast.walk(s)
        if not isinstance(s, ast.FunctionDef)
    )


# Calls that return nothing.
SILENT = {
    "mkdir",
    "glue",
    "use_style",
    "filterwarnings",
    "simplefilter",
    "seed",
    "set_seed",
    "update",
    "append",
}


@pytest.mark.parametrize("page", PAGES)
def test_every_glued_number_is_there(page):
    soup = built(page)
    named = re.findall(r"\{glue:text\}`[^`]+`", (ROOT / page).read_text("utf-8"))
    pasted = [tag.get_text(strip=True).strip("'\"") for tag in soup.select("span.pasted-text")]
    assert len(pasted) == len(named)
    assert all(pasted)
