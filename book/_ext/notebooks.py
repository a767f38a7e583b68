"""Write the notebook beside each page: ``python book/_ext/notebooks.py [--check] [PAGE.md …]``.

A page is MyST Markdown. Jupyter and Colab know Markdown, HTML and LaTeX but nothing of Sphinx,
so directives, roles, labels, citations and quoted numbers are turned into what they do know.
What this file has no plain form for is an error that names the page and the line: nothing is
left raw, nothing is dropped.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import jupytext
import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "cmlearn/__init__.py").read_text())[1]
COLAB = "https://colab.research.google.com/github"
ADMONITIONS = set(
    "admonition attention caution danger error hint important margin note seealso tip "
    "warning".split()
)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


class PageError(ValueError):
    """A page holds something that has no plain form, or that leads nowhere."""


@dataclass(frozen=True)
class Repository:
    """The project's address, from ``_config.yml``."""

    url: str
    branch: str

    @property
    def slug(self) -> str:
        return "/".join(self.url.rstrip("/").removesuffix(".git").split("/")[-2:])

    @property
    def folder(self) -> str:
        return self.slug.split("/")[1]

    def file(self, path: str) -> str:
        return f"{self.url}/blob/{self.branch}/{path}"

    def raw(self, path: str) -> str:
        return f"{self.url}/raw/{self.branch}/{path}"

    def colab(self, path: str) -> str:
        return f"{COLAB}/{self.slug}/blob/{self.branch}/{path}"


@cache
def repository() -> Repository:
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    return Repository(config["url"].rstrip("/"), config["branch"])


@dataclass
class Page:
    """What a converter must know about the page that it is in."""

    path: str  # below the root, with forward slashes
    labels: dict[str, str] = field(default_factory=dict)  # label -> what a reference says
    cited: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- the pages


def page_paths() -> list[Path]:
    """Return every page that is in the table of contents and has code cells."""
    return [ROOT / f"{name}.md" for name in _toc_names() if is_notebook(ROOT / f"{name}.md")]


def _toc_names() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    names = [toc["root"]]

    def walk(node: object) -> None:
        if isinstance(node, list):
            for item in node:
                walk(item)
        elif isinstance(node, dict):
            if "file" in node:
                names.append(node["file"])
            for value in node.values():
                walk(value)

    walk([value for key, value in toc.items() if key != "root"])
    return names


def is_notebook(path: Path) -> bool:
    if not path.exists():
        return False
    front = re.match(r"---\n(.*?)\n---\n", path.read_text("utf-8"), re.S)
    return bool(front) and "kernelspec" in (yaml.safe_load(front[1]) or {})


@cache
def all_labels() -> dict[str, tuple[str, str]]:
    """Map every label of every page to (page, what a reference to it says)."""
    found: dict[str, tuple[str, str]] = {}
    for name in _toc_names():
        path = ROOT / f"{name}.md"
        if path.exists():
            for label, says in labels_of(path.read_text("utf-8")).items():
                found[label] = (f"{name}.md", says)
    return found


def labels_of(text: str) -> dict[str, str]:
    """Find a page's labels; figures, tables and equations are numbered in reading order."""
    found: dict[str, str] = {}
    counts = {"Figure": 0, "Table": 0, "equation": 0}

    def count(kind: str) -> int:
        counts[kind] += 1
        return counts[kind]

    waiting: list[str] = []
    for kind, value in _landmarks(text):
        if kind == "label":
            waiting.append(value)
            continue
        if kind == "heading":
            found.update(dict.fromkeys(waiting, value))
        elif kind == "equation":
            found[value] = f"({count(kind)})"
        else:
            says = f"{kind} {count(kind)}"
            found.update(dict.fromkeys([*waiting, value] if value else waiting, says))
        waiting = []
    return found


_LANDMARK = re.compile(
    r"""^\((?P<label>[\w:.-]+)\)=\s*$
      | ^\#{1,6}\s+(?P<heading>.+?)\s*$
      | ^\s*\$\$[ ]*\((?P<dollar>[\w:.-]+)\)\s*$
      | ^.*\$\$[ ]*\((?P<inline>[\w:.-]+)\)\s*$
      | ^(?P<fence>`{3,}|:{3,})\{(?P<directive>[\w-]+)\}.*$
    """,
    re.X,
)


def _landmarks(text: str) -> Iterator[tuple[str, str]]:
    lines = text.splitlines()
    i = 0
    while i < len(lines):
        match = _LANDMARK.match(lines[i])
        plain_fence = re.match(r"^(`{3,})(?![`{])", lines[i])
        if plain_fence:
            i = _end_of_fence(lines, i, plain_fence[1])
        elif match and match["directive"]:
            end = _end_of_fence(lines, i, match["fence"])
            yield from _directive_landmark(match["directive"], lines[i + 1 : end])
            if match["directive"] in ADMONITIONS | {"dropdown"}:
                yield from _landmarks("\n".join(lines[i + 1 : end]))
            i = end
        elif match and match["label"]:
            yield "label", match["label"]
        elif match and match["heading"]:
            yield "heading", match["heading"]
        elif match:
            yield "equation", match["dollar"] or match["inline"]
        i += 1


def _directive_landmark(name: str, body: list[str]) -> Iterator[tuple[str, str]]:
    options, _ = split_options(body)
    if name == "math" and "label" in options:
        yield "equation", options["label"]
    elif name == "figure":
        yield "Figure", str(options.get("name", ""))
    elif name in ("table", "list-table"):
        yield "Table", str(options.get("name", ""))
    elif name == "code-cell":
        figure = (options.get("mystnb") or {}).get("figure")
        if figure:
            yield "Figure", str(figure.get("name", ""))


# ---------------------------------------------------------------- text


def convert_markdown(text: str, page: Page) -> str:
    """Turn a run of MyST Markdown into plain Markdown and HTML."""
    lines = text.splitlines()
    out: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        fence = re.match(r"^(`{3,}|:{3,}|~{3,})(.*)$", line)
        label = re.match(r"^\(([\w:.-]+)\)=\s*$", line)
        if fence:
            end = _end_of_fence(lines, i, fence[1])
            directive = re.match(r"^\{([\w:-]+)\}\s*(.*)$", fence[2])
            body = lines[i + 1 : end]
            if directive:
                out += _directive(directive[1], directive[2].strip(), body, page)
            else:
                out += lines[i : end + 1]
            i = end
        elif line.startswith("$$"):
            end = _end_of_math(lines, i)
            out += _dollar_math(lines[i : end + 1], page)
            i = end
        elif label:
            out.append(f'<a id="{label[1]}"></a>')
            out.append("")
        elif not line.startswith("%"):
            out.append(convert_line(line, page))
        i += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def _end_of_fence(lines: list[str], start: int, fence: str) -> int:
    closing = re.compile(rf"^\s*{re.escape(fence[0])}{{{len(fence)},}}\s*$")
    for i in range(start + 1, len(lines)):
        if closing.match(lines[i]):
            return i
    raise PageError(f"the fence {lines[start]!r} is never closed")


def _end_of_math(lines: list[str], start: int) -> int:
    if re.search(r"\$\$(\s*\([\w:.-]+\))?\s*$", lines[start][2:]):
        return start
    for i in range(start + 1, len(lines)):
        if "$$" in lines[i]:
            return i
    raise PageError(f"the formula that starts with {lines[start]!r} is never closed")


def _dollar_math(lines: list[str], page: Page) -> list[str]:
    body = "\n".join(lines)[2:]
    formula, _, tail = body.rpartition("$$")
    label = re.match(r"\s*\(([\w:.-]+)\)", tail)
    return _numbered(formula.strip(), label[1] if label else "", page)


def _numbered(formula: str, label: str, page: Page) -> list[str]:
    if not label:
        return ["$$", *formula.splitlines(), "$$"]
    tag = rf"\tag{{{page.labels[label].strip('()')}}}"
    return [f'<a id="{label}"></a>', "", "$$", *formula.splitlines(), tag, "$$"]


def split_options(body: list[str]) -> tuple[dict, list[str]]:
    """Split a directive's options (``:key: value`` or a YAML block) from its content."""
    if body and body[0].strip() == "---":
        end = next(i for i, line in enumerate(body[1:], 1) if line.strip() == "---")
        return yaml.safe_load("\n".join(body[1:end])) or {}, body[end + 1 :]
    options = {}
    for i, line in enumerate(body):
        match = re.match(r"^:([\w-]+):\s*(.*)$", line.strip())
        if not match:
            return options, body[i:]
        options[match[1]] = match[2]
    return options, []


def _directive(name: str, argument: str, body: list[str], page: Page) -> list[str]:
    options, content = split_options(body)
    inside = partial(convert_markdown, page=page)
    if name in ADMONITIONS or name == "dropdown":
        title = argument or ("" if name == "margin" else name.capitalize())
        if name not in ("admonition", "dropdown", "margin") and argument:
            # In a `{note}` the text may start on the line of the directive itself.
            title, content = name.capitalize(), [argument, *content]
        text = inside("\n".join(content))
        hidden = {"dropdown", "toggle"} & set(str(options.get("class", "")).split())
        if name == "dropdown" or hidden:
            return _details(convert_line(title, page), text)
        return _quote(convert_line(title, page), text)
    if name == "math":
        return _numbered("\n".join(content).strip(), options.get("label", ""), page)
    if name in ("figure", "image"):
        return _figure(argument, options, inside("\n".join(content)), page)
    if name in ("code", "code-block", "sourcecode"):
        return [f"```{argument}", *content, "```"]
    if name in ("list-table", "table"):
        caption = _caption(options, argument, page)
        rows = _list_table(content, page) if name == "list-table" else [inside("\n".join(content))]
        return ["", *rows, "", *caption, ""]
    if name == "bibliography":
        return _references(page)
    if name == "nb-exec-table":
        return ["", "(A table of run times stands here in the built book.)", ""]
    if name in ("only", "epigraph", "container", "div"):
        return inside("\n".join(content)).splitlines()
    raise PageError(
        f"the directive {{{name}}} has no plain form for notebooks yet: write it otherwise, "
        f"or teach _directive in book/_ext/notebooks.py"
    )


def _details(title: str, text: str) -> list[str]:
    return ["", "<details>", f"<summary>{_html(title)}</summary>", "", text, "", "</details>", ""]


def _quote(title: str, text: str) -> list[str]:
    lines = ([f"**{title}**", ""] if title else []) + text.splitlines()
    return ["", *(f"> {line}".rstrip() for line in lines), ""]


def _caption(options: dict, text: str, page: Page) -> list[str]:
    says = page.labels.get(str(options.get("name", "")), "")
    if not (says or text):
        return []
    anchor = f'<a id="{options["name"]}"></a>' if options.get("name") else ""
    return [anchor + " ".join(filter(None, [says and f"**{says}.**", convert_line(text, page)]))]


def _figure(source: str, options: dict, caption: str, page: Page) -> list[str]:
    if not options.get("alt"):
        raise PageError(f"the figure {source} has no :alt: text")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), source))
    if source.startswith("/"):
        path = source.lstrip("/")
    if not (ROOT / path).exists():
        raise PageError(f"the figure {source} is not there (looked for {path})")
    alt = str(options["alt"]).replace("[", "(").replace("]", ")")
    image = f"![{alt}]({repository().raw(path)})"
    return ["", image, "", *_caption(options, caption, page), ""]


def _list_table(content: list[str], page: Page) -> list[str]:
    rows: list[list[str]] = []
    for line in content:
        if re.match(r"^\*\s+-", line):
            rows.append([])
        cell = re.match(r"^(?:\*)?\s+-\s?(.*)$", line)
        if cell:
            rows[-1].append(cell[1].strip())
        elif line.strip():
            rows[-1][-1] += " " + line.strip()
    head, *rest = [[convert_line(cell, page) for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rest]]


# ---------------------------------------------------------------- roles and links


def convert_line(line: str, page: Page) -> str:
    """Turn the roles and links of one line into plain Markdown; leave inline code alone."""
    parts = re.split(r"(\{[\w:-]+\}`[^`]+`|``[^`].*?``|`[^`]+`)", line)
    return "".join(_inline(part, page) for part in parts)


def _inline(part: str, page: Page) -> str:
    role = re.match(r"^\{([\w:-]+)\}`([^`]+)`$", part)
    if role:
        return _role(role[1], role[2], page)
    if part.startswith("`"):
        return part
    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", partial(_link, page=page), part)


def _role(name: str, text: str, page: Page) -> str:
    titled = re.match(r"^(.*?)\s*<([^>]+)>$", text, re.S)
    says, target = (titled[1], titled[2]) if titled else ("", text)
    if name.startswith("glue"):
        return f"‹{text.split(':')[0]}›"
    if name in ("eq", "ref", "numref", "numfig"):
        return _reference(says, target, page)
    if name == "doc":
        return _page_link(says, target, page)
    if name in ("term", "abbr"):
        return says or target
    if name.startswith("cite"):
        return _cite(name, text, page)
    if name == "math":
        return f"${text}$"
    if name in ("sub", "sup", "kbd"):
        return f"<{name}>{_html(text)}</{name}>"
    if name == "download":
        return _link(re.match(r"\[(.*?)\]\((.*?)\)", f"[{says or target}]({target})"), page)
    if name in CODE_ROLES:
        return f"`{says or (target[1:].split('.')[-1] if target.startswith('~') else target)}`"
    raise PageError(f"the role {{{name}}} has no plain form: see _role in book/_ext/notebooks.py")


CODE_ROLES = {
    prefix + kind
    for prefix in ("", "py:")
    for kind in ("class", "func", "meth", "mod", "attr", "data", "exc", "obj", "code", "file")
}


def _reference(says: str, label: str, page: Page) -> str:
    if label in page.labels:
        return f"[{(says or page.labels[label]).replace('%s', page.labels[label])}](#{label})"
    if label not in all_labels():
        raise PageError(f"the reference to {label!r} leads nowhere")
    where, number = all_labels()[label]
    there = (
        number if not re.match(r"Figure|Table|\(", number) else f"{number} of “{title_of(where)}”"
    )
    return f"[{says or there}]({_address(where, page)}#{label})"


def _page_link(says: str, target: str, page: Page) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), target))
    path = (target.lstrip("/") if target.startswith("/") else path).removesuffix(".md") + ".md"
    if not (ROOT / path).exists():
        raise PageError(f"the link to {target} leads nowhere (looked for {path})")
    return f"[{says or title_of(path)}]({_address(path, page)})"


def _link(match: re.Match, page: Page) -> str:
    text, target = match[1], match[2]
    if re.match(r"[a-z]+:", target):
        return match[0]
    path, _, anchor = target.partition("#")
    if not path:
        return _reference(text, anchor, page) if anchor in all_labels() else match[0]
    if path.endswith(".md"):
        link = _page_link(text, path, page)
        return link[:-1] + f"#{anchor})" if anchor else link
    if path in all_labels():
        return _reference(text, path, page)
    there = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), path))
    if not (ROOT / there).exists():
        raise PageError(f"the link to {target} leads nowhere (looked for {there})")
    return f"[{text}]({repository().file(there)}{'#' + anchor if anchor else ''})"


def _address(path: str, page: Page) -> str:
    """Where a notebook finds another page: the notebook beside it, else the file online."""
    if not is_notebook(ROOT / path):
        return repository().file(path)
    beside = posixpath.relpath(path, posixpath.dirname(page.path))
    return beside.removesuffix(".md") + ".ipynb"


@cache
def title_of(path: str) -> str:
    return re.search(r"^# (.+)$", (ROOT / path).read_text("utf-8"), re.M)[1].strip()


def _html(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"(?<!\*)\*([^*]+)\*", r"<i>\1</i>", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


# ---------------------------------------------------------------- citations


@cache
def bibliography() -> dict:
    from pybtex.database import parse_file

    return parse_file(str(ROOT / "book" / "references.bib"), "bibtex").entries


def _entry(key: str):
    if key not in bibliography():
        raise PageError(f"the citation {key!r} is not in book/references.bib")
    return bibliography()[key]


def _cite(role: str, text: str, page: Page) -> str:
    shown = []
    for key in (part.strip() for part in text.split(",")):
        entry = _entry(key)
        if key not in page.cited:
            page.cited.append(key)
        year = entry.fields.get("year", "n.d.")
        name = f"{_authors(entry)} ({year})" if role == "cite:t" else f"{_authors(entry)}, {year}"
        shown.append(f"[{name}]({_address_of(entry)})" if _address_of(entry) else name)
    return " and ".join(shown) if role == "cite:t" else f"({'; '.join(shown)})"


def _authors(entry) -> str:
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [_unbrace(" ".join(person.prelast_names + person.last_names)) for person in people]
    if not names:
        return _unbrace(entry.fields.get("key") or entry.fields.get("title", "anonymous"))
    return names[0] + " et al." if len(names) > 2 else " and ".join(names)


def _address_of(entry) -> str:
    doi = entry.fields.get("doi")
    return f"https://doi.org/{doi}" if doi else entry.fields.get("url", "")


def _unbrace(text: str) -> str:
    from pybtex.richtext import Text

    return str(Text.from_latex(text))


def _references(page: Page) -> list[str]:
    lines = []
    for key in page.cited:
        entry = _entry(key)
        title = _unbrace(entry.fields.get("title", ""))
        where = _unbrace(entry.fields.get("journal") or entry.fields.get("booktitle") or "")
        parts = [f"{_authors(entry)} ({entry.fields.get('year', 'n.d.')})", title, where]
        lines.append(
            f"- {'. '.join(part for part in parts if part)}. {_address_of(entry)}".rstrip()
        )
    return ["", *lines, ""]


# ---------------------------------------------------------------- notebooks


def notebook_of(path: Path) -> nbformat.NotebookNode:
    """Build the plain notebook of one page.

    Raises
    ------
    PageError
        With the page's name and the first line of the passage that has no plain form.
    """
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text("utf-8")
    try:
        page = Page(name, labels_of(text))
    except PageError as error:
        raise PageError(f"{name}: {error}") from error
    source = jupytext.reads(text, fmt="md:myst")
    body = []
    for cell in source.cells:
        try:
            body += list(_cells(cell, page))
        except (PageError, KeyError) as error:
            first = cell.source.strip().splitlines()[0] if cell.source.strip() else ""
            raise PageError(f"{name}, in the passage that starts {first!r}: {error}") from error
    cells = [*_opening(body, page), *body]
    _number(cells, name)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata, nbformat_minor=5)
    nbformat.validate(notebook)
    return notebook


def _cells(cell: nbformat.NotebookNode, page: Page) -> Iterator[nbformat.NotebookNode]:
    if cell.cell_type == "code":
        yield _code(cell)
        caption = (cell.metadata.get("mystnb") or {}).get("figure")
        if caption:
            yield _markdown("\n".join(_caption(caption, caption.get("caption", ""), page)))
        return
    text = convert_markdown(cell.source, page)
    left = RAW.search(re.sub(r"``.+?``", "", text))
    if left:
        raise PageError(f"{left[0].strip()!r} was left raw: keep a role on one line, unindented")
    if text:
        yield _markdown(text)


RAW = re.compile(r"^\s*(`{3,}|:{3,})\{[\w:-]+\}|\{[a-z]+(:\w+)?\}`|^\([\w:.-]+\)=\s*$", re.M)


def _markdown(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(text)


HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def _code(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    new = nbformat.v4.new_code_cell(cell.source)
    if HIDDEN & set(cell.metadata.get("tags", [])):
        new.source = only_told(cell.source)
        new.metadata = {"cellView": "form", "jupyter": {"source_hidden": True}}
    return new


def only_told(source: str) -> str:
    """Put each ``assert`` of a cell into ``with claim():``, which elsewhere tells and goes on.

    What a hidden cell asserts holds with the versions that the book is built with.
    """
    lines = source.split("\n")
    asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    for node in sorted(asserts, key=lambda node: -node.lineno):
        first, last = node.lineno - 1, node.end_lineno
        if lines[first][: node.col_offset].strip():
            raise PageError(f"an assert needs a line of its own: {lines[first]}")
        indent = " " * node.col_offset
        held = [f"    {line}" if line else line for line in lines[first:last]]
        lines[first:last] = [f"{indent}with claim():", *held]
    if asserts:
        lines.insert(0, "from cmlearn.book import claim\n")
    return "\n".join(lines)


SETUP = """\
# On Colab this cell fetches the project, installs cmlearn beside what is there, and says what this
# chapter will find. Run it again after a restart. Anywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    import os, shutil, subprocess

    project, home = "{url}", "/content/{folder}"
    for version in {versions}:  # the release's tag, and where there is none the branch
        if not os.path.isdir(home):
            shutil.rmtree(home + ".part", ignore_errors=True)
            command = f"git clone --quiet --depth 1 --branch {{version}} {{project}} {{home}}.part"
            clone = subprocess.run(command.split(), capture_output=True, text=True)
            if clone.returncode == 0:
                os.rename(home + ".part", home)
    if not os.path.isdir(home):
        raise RuntimeError(f"{{project}} cannot be fetched; run this cell again. {{clone.stderr}}")
    sys.path.insert(0, home)
    from cmlearn import preflight

    preflight.prepare("{page}")"""


def setup_source(page: str) -> str:
    """Return the source of the set-up cell of a page, given by its path in the repository.

    What is installed is the release whose version the package has; before that release is
    tagged, and for a version that ends in ``dev``, the branch of ``_config.yml``.
    """
    here = repository()
    versions = [here.branch] if "dev" in VERSION else [f"v{VERSION}", here.branch]
    return SETUP.format(url=here.url, folder=here.folder, versions=json.dumps(versions), page=page)


def _opening(body: list, page: Page) -> list[nbformat.NotebookNode]:
    """Make the title cell and the set-up cell; the title leaves the first cell of the body."""
    title = re.match(r"(?:<a id=.*?></a>\s*)?# (.+)\n*", body[0].source)
    if not title:
        raise PageError(f"{page.path} does not start with a title (# …)")
    body[0].source = body[0].source[title.end() :].strip()
    if not body[0].source:
        del body[0]
    here = repository()
    notebook = page.path.removesuffix(".md") + ".ipynb"
    lines = [
        f"# {title[1].strip()}",
        "",
        f"[Open this page in Colab]({here.colab(notebook)}) · [the project]({here.url})",
    ]
    if any("‹" in cell.source for cell in body if cell.cell_type == "markdown"):
        lines += [
            "",
            "A name in ‹these brackets› stands for a number: the cell that computes it prints it.",
        ]
    setup = nbformat.v4.new_code_cell(setup_source(page.path))
    return [_markdown("\n".join(lines)), setup]


def _number(cells: list[nbformat.NotebookNode], name: str) -> None:
    """Give each cell an id that only a change to that very cell changes."""
    seen: dict[str, int] = {}
    for cell in cells:
        times = seen[cell.source] = seen.get(cell.source, 0) + 1
        content = f"{name}\0{cell.cell_type}\0{cell.source}\0{times}"
        cell.id = hashlib.sha256(content.encode()).hexdigest()[:12]


def rendered(path: Path) -> str:
    """Return the text of the notebook file that belongs beside a page."""
    return json.dumps(notebook_of(path), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE.md", help="default: all pages")
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    options = parser.parse_args(arguments)
    failed = False
    for path in [page.resolve() for page in options.pages] or page_paths():
        try:
            failed |= _out_of_step(path) if options.check else _write(path)
        except PageError as error:
            print(error, file=sys.stderr)
            failed = True
    return int(failed)


def _out_of_step(path: Path) -> bool:
    beside = path.with_suffix(".ipynb")
    if beside.exists() and beside.read_text("utf-8") == rendered(path):
        return False
    print(
        f"{beside.relative_to(ROOT)} is out of step with its page: run `make notebooks`",
        file=sys.stderr,
    )
    return True


def _write(path: Path) -> bool:
    beside, text = path.with_suffix(".ipynb"), rendered(path)
    if not beside.exists() or beside.read_text("utf-8") != text:
        beside.write_text(text, "utf-8")
        print(f"wrote {beside.relative_to(ROOT)}")
    return False


if __name__ == "__main__":
    sys.exit(main())
