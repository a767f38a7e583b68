"""The built book, page by page, in a real browser. Started by ``tests/browser/run``."""

import functools
import http.server
import os
import re
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import axe_playwright_python
import pytest
import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright
from sphinx.search.en import english_stopwords

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
SHOTS = ROOT / "_build" / "screenshots"
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 844}
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

# What axe may report, and the part of the page, none of them written here:
AXE_EXCEPTIONS = {
    # The theme's left sidebar is a <div>: its logo and the arrow that unfolds a chapter lie in no
    # landmark, and that arrow has no name. The links themselves lie in a <nav>.
    "region": r'<img [^>]*class="logo__image|<summary>',
    "summary-name": r"<summary>",
    # docutils gives each entry of the bibliography a role that newer ARIA no longer has.
    "aria-allowed-role": r'<div class="citation"[^>]* role="doc-biblioentry"',
    "aria-deprecated-role": r'<div class="citation"[^>]* role="doc-biblioentry"',
    "aria-required-children": r'<div role="list" class="citation-list">',
    # pandas leaves the corner of a table empty.
    "empty-table-header": r"<th></th>",
}


def toc_pages() -> list[str]:
    """Return the address of every page in the table of contents, below the book's root."""
    text = (ROOT / "_toc.yml").read_text("utf-8")
    return [f"{name}.html" for name in re.findall(r"(?:root|file): *(\S+)", text)]


def grouped(names: list[str]) -> list:
    """Return parameters of which each is tested by one process alone, which opens it once."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


PAGES = toc_pages()
GENERATED = ["genindex.html", "search.html"]


@pytest.fixture(scope="session")
def site():
    """Serve the book on this machine alone and return its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=HTML)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Start Chromium with a profile of its own that goes away afterwards."""
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=FLAGS)


class Visit:
    """One page, opened once; what happened meanwhile is kept."""

    def __init__(self, browser, address, *, viewport=WIDE, dark=False):
        self.complaints, self.requests, self.failed = [], [], []
        context = browser.new_context(
            viewport=viewport, color_scheme="dark" if dark else "light", reduced_motion="reduce"
        )
        self.page = context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.failed.append(request.url))
        self.page.on("response", self._response)
        self.page.goto(address, wait_until="load")
        # MathJax is there on pages with formulas only, and draws after the page has loaded.
        self.page.evaluate("() => window.MathJax?.startup?.promise")
        self.page.wait_for_load_state("networkidle")

    def _console(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _response(self, response):
        if response.status >= 400:
            self.failed.append(f"{response.status} {response.url}")

    def close(self):
        self.page.context.close()


@pytest.fixture(scope="module", params=grouped(PAGES + GENERATED))
def visit(request, browser, site):
    opened = Visit(browser, site + request.param)
    opened.name = request.param
    yield opened
    opened.close()


def test_no_complaint_on_the_console(visit):
    assert visit.complaints == []


def test_every_file_is_the_books_own(visit, site):
    foreign = [url for url in visit.requests if not url.startswith((site, "data:", "blob:"))]
    assert foreign == []
    assert visit.failed == []


def test_formulas_are_drawn(visit):
    formulas = visit.page.eval_on_selector_all(
        "main .math, main .tex2jax_process",
        """all => all.filter(e => e.textContent.trim()).map(e => {
            const drawn = e.querySelector("mjx-container");
            const box = drawn?.getBoundingClientRect();
            return [e.textContent.slice(0, 60), Boolean(box && box.width > 2 && box.height > 2),
                    Boolean(e.querySelector("mjx-merror"))];
        })""",
    )
    assert [text for text, drawn, error in formulas if error or not drawn] == []
    assert "$$" not in visit.page.eval_on_selector("main", PROSE)
    if (HTML / "_sources" / visit.name).with_suffix(".md").exists():
        source = (HTML / "_sources" / visit.name).with_suffix(".md").read_text("utf-8")
        assert not ("$$" in source and not formulas), "the page's source has formulas"


PROSE = """main => {
    const copy = main.cloneNode(true);
    copy.querySelectorAll("pre, code, mjx-container, script").forEach(e => e.remove());
    return copy.textContent;
}"""


def test_figures_are_drawn_and_described(visit):
    for figure in visit.page.query_selector_all("article img"):
        figure.scroll_into_view_if_needed()
    visit.page.wait_for_function(
        "() => [...document.querySelectorAll('article img')].every(i => i.complete)"
    )
    figures = visit.page.eval_on_selector_all(
        "article img",
        """all => all.map(img => {
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 64;
            const pen = canvas.getContext("2d");
            pen.drawImage(img, 0, 0, 64, 64);
            const pixels = new Uint32Array(pen.getImageData(0, 0, 64, 64).data.buffer);
            return {src: img.getAttribute("src").slice(0, 120), alt: (img.alt || "").trim(),
                    wide: img.naturalWidth, colours: new Set(pixels).size};
        })""",
    )
    assert [f["src"] for f in figures if f["wide"] < 8 or f["colours"] < 3] == [], "empty figures"
    # Without an alt text MyST-NB writes the picture's file name.
    bad = [f for f in figures if len(f["alt"]) < 8 or re.search(r"\.(png|svg|jpe?g)$", f["alt"])]
    assert [f["src"] for f in bad] == [], "figures without a description"


def test_links_lead_somewhere(visit, site):
    hrefs = visit.page.eval_on_selector_all(
        "a[href]", "all => all.map(a => a.getAttribute('href'))"
    )
    assert hrefs
    lost = [href for href in set(hrefs) if not _leads_somewhere(href, site + visit.name, site)]
    assert lost == []


def _leads_somewhere(href, here, site):
    address, anchor = urldefrag(urljoin(here, href))
    if not address.startswith(site):
        return _own_repository_path(address) is not False
    path = HTML / unquote(urlparse(address).path).lstrip("/")
    path = path / "index.html" if path.is_dir() else path
    if not path.is_file():
        return False
    return not anchor or path.suffix != ".html" or unquote(anchor) in _ids(path)


@functools.cache
def _ids(path):
    soup = BeautifulSoup(path.read_text("utf-8"), "html.parser")
    return {tag.get("id") or tag.get("name") for tag in soup.find_all(id=True)} | {"", "top"}


def _own_repository_path(address):
    """Return whether a link into the project's repository is in this checkout; None: not one."""
    repository = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    slug = urlparse(repository["url"]).path.strip("/")
    pattern = rf"/{re.escape(slug)}/(?:blob|raw|edit|tree)/{repository['branch']}/(.+)"
    match = re.search(pattern, urlparse(address).path)
    return (ROOT / unquote(match[1])).exists() if match else None


def test_colab_button_opens_the_notebook(visit):
    source = (HTML / "_sources" / visit.name).with_suffix(".md")
    links = visit.page.eval_on_selector_all(
        ".article-header-buttons a[href*='colab.research.google.com']",
        "all => all.map(a => a.href)",
    )
    if not source.exists() or "kernelspec:" not in source.read_text("utf-8"):
        assert links == []
        return
    assert len(links) == 1
    assert links[0].endswith(visit.name.removesuffix(".html") + ".ipynb")
    assert _own_repository_path(links[0]) is True


def test_download_button_gives_the_plain_notebook(visit):
    source = (HTML / "_sources" / visit.name).with_suffix(".ipynb")
    links = visit.page.eval_on_selector_all(
        ".dropdown-download-buttons a[href$='.ipynb']", "all => all.length"
    )
    notebook = (ROOT / visit.name).with_suffix(".ipynb")
    assert links == int(notebook.exists())
    if notebook.exists():
        assert source.read_bytes() == notebook.read_bytes()


def axe_reports(page):
    page.add_script_tag(path=AXE)
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['html'][:100]}"
        for rule in found
        for node in rule["nodes"]
        if not _excepted(rule["id"], node)
    ]


def _excepted(rule, node):
    return rule in AXE_EXCEPTIONS and bool(re.match(AXE_EXCEPTIONS[rule], node["html"]))


def test_axe_has_nothing_to_report(visit):
    assert axe_reports(visit.page) == []


def test_wide_screenshot(visit):
    _shoot(visit.page, visit.name, "wide")


def _shoot(page, name, kind):
    SHOTS.mkdir(parents=True, exist_ok=True)
    stem = name.removesuffix(".html").replace("/", "-")
    page.evaluate("() => scrollTo(0, 0)")
    picture = SHOTS / f"{stem}-{kind}.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 5000


@pytest.mark.parametrize("name", grouped(PAGES))
def test_narrow_page_does_not_scroll_sideways(name, browser, site):
    opened = Visit(browser, site + name, viewport=NARROW)
    _shoot(opened.page, name, "narrow")
    widths = opened.page.evaluate(
        """() => [document.scrollingElement.scrollWidth,
                  [...document.querySelectorAll("main *")].filter(
                      e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(
                          ".output, pre, .highlight, .pst-scrollable-table-container, "
                          + "div.math, mjx-container, .cell_output, table")
                  ).slice(0, 5).map(e => e.outerHTML.slice(0, 120))]"""
    )
    opened.close()
    assert widths[0] <= NARROW["width"], widths[1]


@pytest.mark.parametrize("name", grouped(PAGES))
def test_dark_page_is_readable(name, browser, site):
    opened = Visit(browser, site + name, dark=True)
    opened.page.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
    _shoot(opened.page, name, "dark")
    reports = axe_reports(opened.page)
    opened.close()
    assert reports == []


def words_of(name: str) -> set[str]:
    soup = BeautifulSoup((HTML / name).read_text("utf-8"), "html.parser")
    for tag in soup.select("pre, script, mjx-container, .headerlink"):
        tag.decompose()
    return set(re.findall(r"\b[a-z]{5,14}\b", soup.find("article").get_text(" ").lower()))


@pytest.fixture(scope="session")
def own_word():
    """Give each page a word that as few other pages as possible have."""
    words = {name: words_of(name) - english_stopwords for name in PAGES}
    pages_with = Counter(word for page in words.values() for word in page)
    return {name: min(sorted(page), key=pages_with.__getitem__) for name, page in words.items()}


@pytest.mark.parametrize("name", grouped(PAGES))
def test_search_finds_the_page(name, own_word, browser, site):
    opened = Visit(browser, f"{site}search.html?q={own_word[name]}")
    opened.page.wait_for_selector("#search-results .search-summary:not(:empty)", timeout=20_000)
    opened.page.wait_for_function(
        f"() => [...document.querySelectorAll('#search-results li a')].some(a => "
        f"a.href.includes('{name}'))",
        timeout=20_000,
    )
    complaints = opened.complaints
    opened.close()
    assert complaints == []


def test_the_book_opens_from_the_disk(browser):
    opened = Visit(browser, (HTML / PAGES[0]).as_uri())
    opened.page.wait_for_selector("article h1")
    foreign = [url for url in opened.requests if not url.startswith(("file:", "data:"))]
    title = opened.page.title()
    opened.close()
    assert foreign == []
    assert "Cross-modal" in title
