"""Sphinx extension of this book: what Jupyter Book's own settings cannot say.

It sets the environment that the pages' kernels inherit, empties the execution cache when the
code, the packages or the data have changed, offers the plain notebook beside each page for
download instead of MyST-NB's executed copy, and knows a role: ``{colab}`book/page.ipynb``` opens a
notebook of the repository in Colab.
"""

import hashlib
import importlib.metadata
import os
import re
import shutil
from pathlib import Path

from docutils import nodes
from notebooks import ROOT, repository
from sphinx.util import logging

from cmlearn import runtime

log = logging.getLogger(__name__)

KERNEL_ENVIRONMENT = {
    "CMLEARN_BOOK_BUILD": "1",  # cmlearn.book.glue hands values to the book
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TQDM_DISABLE": "1",  # a progress bar that stands still is noise on a page
}


def setup(app):
    for name, value in KERNEL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ.get("CMLEARN_DATA"):
        # A kernel runs in its page's folder, where a relative path would mean another one.
        os.environ["CMLEARN_DATA"] = os.path.abspath(os.path.expanduser(os.environ["CMLEARN_DATA"]))
    app.add_role("colab", open_in_colab)
    app.connect("config-inited", name_the_device)
    app.connect("config-inited", drop_stale_cache)
    app.connect("config-inited", prepare_theme)
    # After napoleon (priority 500) has turned numpydoc sections into reStructuredText.
    app.connect("autodoc-process-docstring", flatten_references, priority=900)
    app.connect("autodoc-skip-member", skip_metadata_requests)
    app.connect("doctree-read", drop_tensorflow_log)
    # After the theme's launch buttons (priority 500 and later), which copy the executed notebook.
    app.connect("html-page-context", offer_plain_notebook, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def prepare_theme(app, config):
    """Keep two complaints off the browser's console.

    Without a default mode the theme's script calls the missing one invalid. sphinx-thebe, which
    Jupyter Book always loads, adds its script, with an address of a foreign server, twice to each
    page; this book has no button for it.
    """
    config.html_context["default_mode"] = "auto"
    unwanted = {"init_thebe_core", "update_thebe_context"}
    for listeners in app.events.listeners.values():
        listeners[:] = [
            one for one in listeners if getattr(one.handler, "__name__", "") not in unwanted
        ]


def name_the_device(app, config):
    """Say what the pages will run on, and why not on a GPU that is there."""
    found = runtime.device()
    log.info(f"the pages run on: {found}; profile: {runtime.profile()}")
    if shutil.which("nvidia-smi") and not found.startswith("GPU"):
        log.info(
            "nvidia-smi is here, but Keras sees no GPU. `nvidia-smi` must list one, and on Linux "
            "`make book` installs the CUDA libraries that TensorFlow needs."
        )


def drop_stale_cache(app, config):
    """Remove stored outputs that the present code, packages or data might not reproduce."""
    root = Path(app.srcdir)
    cache = root / "_build" / ".jupyter_cache"
    stamp = cache / "made-with"
    now = environment_hash(root)
    if cache.exists() and (not stamp.exists() or stamp.read_text() != now):
        log.info("code, packages or data changed: every page is run again")
        shutil.rmtree(cache)
    cache.mkdir(parents=True, exist_ok=True)
    stamp.write_text(now)


def environment_hash(root: Path) -> str:
    """SHA-256 over all that a page's outputs depend on besides the page itself.

    That is: the package's source, the stored runs and drawings that pages read, the version of
    every installed package, the profile, the device, and the names, sizes and times of the files
    under ``CMLEARN_DATA``.
    """
    digest = hashlib.sha256()
    sources = sorted(root.glob("cmlearn/**/*.py"))
    kept = sorted(path for path in root.glob("book/_*/**/*") if path.suffix in READ_BY_PAGES)
    for path in sources + kept:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    packages = importlib.metadata.distributions()
    digest.update("\n".join(sorted(f"{p.name}=={p.version}" for p in packages)).encode())
    for name in ("CMLEARN_PROFILE", "CMLEARN_DATA", "CUDA_VISIBLE_DEVICES", "KERAS_BACKEND"):
        digest.update(f"{name}={os.environ.get(name)}\n".encode())
    digest.update(f"{runtime.profile()} on {runtime.device()}\n".encode())
    digest.update(listing_of(os.environ.get("CMLEARN_DATA")))
    return digest.hexdigest()


READ_BY_PAGES = {".json", ".csv", ".txt", ".png", ".jpg", ".svg"}


def listing_of(folder: str | None) -> bytes:
    if not folder:
        return b""
    lines = []
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            state = path.stat()
            lines.append(f"{path.relative_to(folder)}\t{state.st_size}\t{state.st_mtime_ns}")
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def open_in_colab(role, rawtext, text, lineno, inliner, options=None, content=None):
    """Return a link that opens a notebook of the repository in Colab."""
    if not (ROOT / text).is_file():
        message = inliner.reporter.error(f"{text} is not in the repository", line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]
    return [nodes.reference(rawtext, "open in Colab", refuri=repository().colab(text))], []


def offer_plain_notebook(app, pagename, templatename, context, doctree):
    """Put the page's own notebook where the theme's download button points."""
    plain = Path(app.srcdir, pagename).with_suffix(".ipynb")
    if "ipynb_source" not in context or not plain.exists():
        return
    shutil.copyfile(plain, Path(app.outdir, "_sources", context["ipynb_source"]))


def flatten_references(app, what, name, obj, options, lines):
    """Turn a docstring's footnotes into plain text.

    Footnotes are numbered within a docstring, but a page of the reference holds many docstrings,
    and there each number would be defined more than once.
    """
    flat, inside = [], False
    for line in lines:
        note = re.match(r"(\s*)\.\. \[(\d+)\] +(.*)", line)
        if note:
            inside = True
            flat += ["", f"{note[1]}* [{note[2]}] {note[3]}"]
        elif inside and line.startswith("   "):
            flat.append(f"  {line.strip()}")
        else:
            inside = inside and not line.strip()
            flat.append(line)
    lines[:] = [re.sub(r"\[(\d+)\]_", r"[\1]", line) for line in flat]


def skip_metadata_requests(app, what, name, obj, skip, options):
    """Leave out the methods that scikit-learn generates; their texts refer to its own pages."""
    return True if re.match(r"set_\w+_request$|get_metadata_routing$", name) else None


TENSORFLOW_LOG = re.compile(r"WARNING: All log messages before absl|[IWE]0000 \d\d:\d\d:")


def drop_tensorflow_log(app, doctree):
    """Take out of the pages' outputs what TensorFlow logs while it starts.

    No environment variable keeps TensorFlow 2.21 from writing these lines, and they say what
    processor the book was built on, not what the reader's cell did. All else on the error stream
    stays.
    """
    for node in list(doctree.findall(nodes.literal_block)):
        if "stderr" not in node["classes"]:
            continue
        lines = node.astext().splitlines(keepends=True)
        kept = "".join(line for line in lines if not TENSORFLOW_LOG.match(line))
        if kept == node.astext():
            continue
        if kept.strip():
            node.replace_self(nodes.literal_block(kept, kept, **node.attributes))
        else:
            remove_with_empty_parents(node)


def remove_with_empty_parents(node):
    parent = node.parent
    parent.remove(node)
    if not parent.children and isinstance(parent, nodes.container):
        remove_with_empty_parents(parent)
