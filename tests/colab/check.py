"""Run every notebook as Colab would: ``python check.py [PAGE.md …] [--again] [--restart]``.

To be run by the Python of the environment that is to be checked: the one with Colab's versions, or
the one with the newest. The notebooks are those of the last commit, their set-up cells run
unchanged but for the folder, and git takes the project from this disk. What passed is not run
again until its notebook or the package changes. A student's notebook runs with its gaps: cells may
fail, but neither the set-up nor a check nor the cell that saves the submission.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "_build" / Path(sys.prefix).name.removeprefix(".venv-")
RESULTS = OUT / "results.json"
# What the set-up cell looks for, and what saves a submission: the open notebook, and a download.
STAND_IN = """
import json, os, sys, types
colab = types.ModuleType("google.colab")
colab._message = types.ModuleType("google.colab._message")
colab._message.blocking_request = lambda *a, **k: {"ipynb": json.load(open(os.environ["OPEN"]))}
colab.files = types.SimpleNamespace(download=lambda path: print("downloaded", path))
sys.modules |= {"google.colab": colab, "google.colab._message": colab._message}
"""
# A second into the cell that it stands in, the kernel is gone, as when a runtime is lost.
KILL = """
import os, signal, threading, time
threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()
{}
time.sleep(2)
"""
LAST = "from cmlearn.runtime import peak_memory\nprint(peak_memory() // 2**20)"
LIMIT = 11_000  # MiB of main memory that a page may take


def prepare() -> Path:
    """Make the folder that stands for Colab's ``/content`` and what the kernels inherit."""
    content, source = OUT / "content", OUT / "source.git"
    subprocess.run(["rm", "-rf", str(content), str(source)], check=True)
    content.mkdir(parents=True)
    subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), str(source)], check=True)
    branch = re.search(r"^  branch: (\S+)", (ROOT / "_config.yml").read_text("utf-8"), re.M)[1]
    subprocess.run(["git", "-C", str(source), "branch", "--force", branch, "HEAD"], check=False)
    address = re.search(r"^  url: (\S+)", (ROOT / "_config.yml").read_text("utf-8"), re.M)[1]
    startup = OUT / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "colab.py").write_text(STAND_IN)
    os.environ |= {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{source.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
        "IPYTHONDIR": str(OUT / "ipython"),
        "CMLEARN_PROFILE": "quick",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TQDM_DISABLE": "1",
    }
    if os.environ.get("CMLEARN_DATA"):
        os.environ["CMLEARN_DATA"] = os.path.abspath(os.environ["CMLEARN_DATA"])
    return content


def installed() -> dict[str, str]:
    return {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}


def is_students(notebook: Path) -> bool:
    return notebook.parent.name == "student"


def open_notebook(path: Path, content: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = notebook.cells[1].source.replace("/content", str(content))
    return notebook


def execute(notebook: nbformat.NotebookNode, path: Path, content: Path) -> None:
    """Run the cells in a fresh kernel; those of a student's notebook may fail."""
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        allow_errors=is_students(path),
        resources={"metadata": {"path": str(content)}},
    ).execute()


def lose_halfway(path: Path, content: Path) -> None:
    """Run the first half of a notebook and kill its kernel inside the next cell."""
    notebook = open_notebook(path, content)
    code = [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    middle = code[len(code) // 2]
    notebook.cells = notebook.cells[: middle + 1]
    notebook.cells[middle].source = KILL.format(notebook.cells[middle].source)
    try:
        execute(notebook, path, content)
    except DeadKernelError:
        return
    raise RuntimeError(f"{path}: the kernel outlived its middle cell")


def run(path: Path, content: Path) -> dict:
    """Run one notebook in a fresh kernel; say how it went."""
    notebook = open_notebook(path, content)
    notebook.cells.append(nbformat.v4.new_code_cell(LAST))
    started, error = time.monotonic(), None
    try:
        execute(notebook, path, content)
    except (CellExecutionError, DeadKernelError, TimeoutError) as failure:
        error = str(failure)[-1500:]
    seconds = round(time.monotonic() - started)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    told = sum(_text(cell).count("not quite true") for cell in code)
    result = {"seconds": seconds, "report": _text(notebook.cells[1]), "peak_mib": None}
    if error is None:
        result["peak_mib"] = int(_text(notebook.cells[-1]).split()[-1])
        wrong = [cell.source for cell in code if must_run(cell) and failed(cell)]
        written = set(_git(content, "status", "--porcelain", "--untracked-files=all").split("\n"))
        _git(content, "clean", "--force", "--quiet")
        expected = {f"?? {submission_of(path)}"} if is_students(path) else {""}
        if wrong:
            error = f"failed: {wrong}"
        elif written != expected:
            error = f"wrote into the repository: {written}"
        elif result["peak_mib"] > LIMIT:
            error = f"takes {result['peak_mib']} MiB of memory, more than {LIMIT}"
    return result | {"error": error, "told": told}


def must_run(cell: nbformat.NotebookNode) -> bool:
    """Say whether a cell is the assignment's own: no gap before it may make it fail."""
    return "google.colab" in cell.source or "grader" in cell.source


def failed(cell: nbformat.NotebookNode) -> bool:
    return any(out.output_type == "error" for out in cell.outputs)


def submission_of(path: Path) -> str:
    return path.relative_to(ROOT).with_name(f"{path.stem}-submission.zip").as_posix()


def _text(cell) -> str:
    return "".join(out.get("text", "") for out in cell.outputs if out.get("name") == "stdout")


def _git(content: Path, *arguments: str) -> str:
    (home,) = [path for path in content.iterdir() if (path / ".git").is_dir()]
    reply = subprocess.run(["git", "-C", home, *arguments], capture_output=True, text=True)
    return reply.stdout.strip()


def fingerprint(notebook: Path) -> str:
    files = [notebook, *sorted((ROOT / "cmlearn").rglob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def verdict(one: dict) -> str:
    if one["error"] is None:
        return f"passed ({one['told']})"
    return "FAILED: " + one["error"].splitlines()[-1]


def table(results: dict) -> str:
    rows = [f"{'page':38} {'seconds':>7} {'peak MiB':>8}  result (sentences not true there)"]
    for name, one in results.items():
        rows.append(f"{name:38} {one['seconds']:7} {one['peak_mib'] or '':>8}  {verdict(one)}")
    failures = sum(one["error"] is not None for one in results.values())
    return "\n".join([*rows, f"{len(results) - failures} passed, {failures} failed"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE.md", help="default: all with a notebook")
    parser.add_argument("--again", action="store_true", help="run also what passed before")
    parser.add_argument(
        "--restart", action="store_true", help="first run each to its middle and kill its kernel"
    )
    options = parser.parse_args()
    content, before = prepare(), installed()
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "book/*.ipynb"], capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = [page.removesuffix(".md") + ".ipynb" for page in options.pages] or tracked
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in wanted:
        mark, old = fingerprint(ROOT / name), results.get(name)
        if old and old["error"] is None and old["fingerprint"] == mark and not options.again:
            continue
        print(f"{name} …", end=" ", flush=True)
        os.environ["OPEN"] = str(ROOT / name)
        if options.restart:
            lose_halfway(ROOT / name, content)
        results[name] = run(ROOT / name, content) | {"fingerprint": mark}
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        one = results[name]
        print(f"{one['seconds']} s", one["error"] or verdict(one), flush=True)
    here = installed()
    changed = [f"{n} {before[n]} → {here.get(n)}" for n in before if here.get(n) != before[n]]
    print(table({name: results[name] for name in wanted}))
    print(f"packages changed: {changed or 'none'}; added: {sorted(here.keys() - before.keys())}")
    return int(bool(changed) or any(results[name]["error"] for name in wanted))


if __name__ == "__main__":
    sys.exit(main())
