"""Run every notebook as Colab would: ``python check.py [PAGE.md …] [--again]``.

To be run by the Python of the environment that ``environment.py`` made. The notebooks are those of
the last commit, their set-up cells run unchanged but for the folder, and git takes the project
from this disk. What passed is not run again until its notebook or the package changes.
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
OUT = ROOT / "_build" / "colab"
RESULTS = OUT / "results.json"
STAND_IN = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
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


def run(notebook: Path, content: Path) -> dict:
    """Run one notebook in a fresh kernel; say how it went."""
    cells = nbformat.read(notebook, as_version=4)
    cells.cells[1].source = cells.cells[1].source.replace("/content", str(content))
    cells.cells.append(nbformat.v4.new_code_cell(LAST))
    resources = {"metadata": {"path": str(content)}}
    client = NotebookClient(cells, timeout=900, kernel_name="python3", resources=resources)
    started, error = time.monotonic(), None
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError, TimeoutError) as failure:
        error = str(failure)[-1500:]
    seconds = round(time.monotonic() - started)
    report = _text(cells.cells[1])
    told = sum(_text(cell).count("not quite true") for cell in cells.cells if "outputs" in cell)
    result = {"seconds": seconds, "error": error, "report": report, "peak_mib": None, "told": told}
    if error is None:
        result["peak_mib"] = int(_text(cells.cells[-1]).split()[-1])
        written = _git(content, "status", "--porcelain")
        if written:
            result["error"] = f"the page wrote into the repository:\n{written}"
        elif result["peak_mib"] > LIMIT:
            result["error"] = f"takes {result['peak_mib']} MiB of memory, more than {LIMIT}"
    return result


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
        says = (
            f"passed ({one['told']})"
            if one["error"] is None
            else "FAILED: " + one["error"].splitlines()[-1]
        )
        rows.append(f"{name:38} {one['seconds']:7} {one['peak_mib'] or '':>8}  {says}")
    failed = sum(one["error"] is not None for one in results.values())
    return "\n".join([*rows, f"{len(results) - failed} passed, {failed} failed"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE.md", help="default: all with a notebook")
    parser.add_argument("--again", action="store_true", help="run also what passed before")
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
        results[name] = run(ROOT / name, content) | {"fingerprint": mark}
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        one = results[name]
        print(
            one["seconds"],
            "s",
            f"passed ({one['told']})" if one["error"] is None else one["error"],
            flush=True,
        )
    here = installed()
    changed = [f"{n} {before[n]} → {here.get(n)}" for n in before if here.get(n) != before[n]]
    print(table({name: results[name] for name in wanted}))
    print(f"packages changed: {changed or 'none'}; added: {sorted(here.keys() - before.keys())}")
    return int(bool(changed) or any(results[name]["error"] for name in wanted))


if __name__ == "__main__":
    sys.exit(main())
