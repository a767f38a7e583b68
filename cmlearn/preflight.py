"""Prepare a hosted notebook, and say before a chapter runs what it will meet there.

The set-up cell of each notebook calls `prepare` on Colab, before anything is installed: at import
this module needs the standard library alone. ``python -m cmlearn.preflight PAGE.md`` prints the
report anywhere else.
"""

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["PreflightError", "expected", "extras", "install", "prepare", "report"]

ROOT = Path(__file__).resolve().parents[1]
DATA = ("emoji", "weights")
"""The extras that every chapter gets: data and weights that travel as packages."""

_MODULES = {"onnx": "onnxruntime", "ray": "ray", "huggingface": "datasets"}
_GB = 1e9  # bytes
_FRESH = "Runtime > Disconnect and delete runtime, then run this cell again"


class PreflightError(RuntimeError):
    """The project could not be installed as it should; the message says what to do."""


def prepare(page: str) -> None:
    """Install `cmlearn` from the checkout that holds this file, go to the page's folder, report.

    Parameters
    ----------
    page : str
        The page's path in the repository, such as ``"book/04-code/data.md"``. A page that is not
        there is given the packages of every chapter, and no expected time.

    Raises
    ------
    PreflightError
        When something cannot be installed, or only in place of what is there.
    """
    install(ROOT, (*DATA, *extras(_text(page))))
    folder = (ROOT / page).parent
    os.chdir(folder if folder.is_dir() else ROOT)
    print(report(page))


# ---------------------------------------------------------------- installing


def install(root: Path, extras: tuple[str, ...] = DATA) -> None:
    """Install the checkout `root`, editable, and change no package that is already there.

    Every installed package is a constraint of its own version, so that pip fails rather than
    replace one. Where all is there already, pip is not called and no network is needed.

    Parameters
    ----------
    root : pathlib.Path
        The checkout.
    extras : tuple of str
        Names from ``[project.optional-dependencies]``.

    Raises
    ------
    PreflightError
        With pip's reason and the way out.
    """
    if not _is_installed(root, extras):
        before = _versions()
        _pip_install(root, extras, before)
        importlib.invalidate_caches()
        after = _versions()
        changed = {name: after.get(name) for name in before if after.get(name) != before[name]}
        if changed:
            raise PreflightError(
                f"pip changed packages that were there before: {changed}. Nothing that follows can "
                f"be relied on: {_FRESH}."
            )
    # A running Python has read its .pth files: it finds an editable package after a restart only.
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def _versions() -> dict[str, str]:
    """Return the installed packages but cmlearn, as pip sees them."""
    found = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"]
        if name and name != "cmlearn":
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), one.version)
    return found


def _is_installed(root: Path, extras: tuple[str, ...]) -> bool:
    # The build leaves an .egg-info in the checkout, which does not say where cmlearn is installed.
    found = importlib.metadata.distributions(name="cmlearn")
    ours = [
        one
        for one in found
        if json.loads(one.read_text("direct_url.json") or "{}").get("url") == root.as_uri()
    ]
    if not ours:
        return False
    there = _versions()
    for line in ours[0].requires or []:
        extra = re.search(r"extra == ['\"](\w+)", line)
        name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()
        if (extra is None or extra[1] in extras) and name not in there:
            return False
    return True


def _pip_install(root: Path, extras: tuple[str, ...], there: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{n}=={v}\n" for n, v in sorted(there.items())))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input"]
        command += ["--disable-pip-version-check", "--constraint", str(constraints)]
        command += ["--editable", f"{root}[{','.join(extras)}]" if extras else str(root)]
        reply = subprocess.run(command, capture_output=True, text=True, check=False)
    if reply.returncode == 0:
        return
    said = "\n".join(reply.stderr.strip().splitlines()[-12:])
    if re.search("ResolutionImpossible|conflict", reply.stderr):
        why = (
            "A package that cmlearn needs does not fit a package that is here already, and none "
            "is replaced. On Colab: Runtime > Change runtime type > Runtime version offers "
            "earlier lists of packages. Elsewhere: use an environment of its own (the page "
            "“Ways to run this book”)."
        )
    else:
        why = (
            "Most often the package index could not be reached: run the cell again. If that does "
            f"not help: {_FRESH}."
        )
    raise PreflightError(f"cmlearn could not be installed. {why}\npip said:\n{said}")


# ---------------------------------------------------------------- what the page says of itself


def _text(page: str) -> str:
    path = ROOT / page
    return path.read_text("utf-8") if path.is_file() else ""


def _needs(text: str) -> str:
    """Return what a page writes under "What it needs", as plain text."""
    found = re.search(r"^\*\*What it needs\.\*\*(.+)$", text, re.M)
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", found[1] if found else "")
    return re.sub(r"\{[\w:]+\}`([^`<]+?)(?: <[^>]*>)?`", r"\1", plain).strip()


def expected(text: str) -> str:
    """Return the sentences in which a page states its time and memory.

    Examples
    --------
    >>> expected("**What it needs.** [NumPy](x.md). About a minute and 2 GB of memory.")
    'About a minute and 2 GB of memory.'
    """
    sentences = re.split(r"(?<=[.;)])\s+(?=[A-Z(])", _needs(text))
    measure = re.compile(r"\b(minutes?|seconds|hour|GB|MB)\b")
    return " ".join(one for one in sentences if measure.search(one))


def extras(text: str) -> tuple[str, ...]:
    """Return the optional packages that a page names under "What it needs".

    Examples
    --------
    >>> extras("**What it needs.** Half a minute. The optional packages `cmlearn[onnx]`.")
    ('onnx',)
    """
    named = re.findall(r"cmlearn\[([\w,]+)\]", _needs(text))
    return tuple(sorted({one for names in named for one in names.split(",")} - set(DATA)))


# ---------------------------------------------------------------- the report


def report(page: str) -> str:
    """Say what a page will find on this machine, and what it will have to leave out.

    Parameters
    ----------
    page : str
        The page's path in the repository, such as ``"book/04-code/data.md"``.

    Returns
    -------
    str
        A line each for profile, device, memory, disk, expected time; then what is to be fetched,
        what will be skipped and why, and what to do about it.
    """
    from cmlearn import __version__, runtime

    text = _text(page)
    free, whole = _memory()
    disk = shutil.disk_usage(runtime.cache_dir()).free
    rows = [
        ("cmlearn", f"{__version__} in {ROOT}"),
        ("profile", _profile(runtime.profile())),
        ("device", ", ".join(filter(None, [runtime.device(), runtime.nvidia_smi("memory.total")]))),
        ("memory", f"{free / _GB:.1f} GB free of {whole / _GB:.1f} GB" if whole else "unknown"),
        ("disk", f"{disk / _GB:.0f} GB free for {runtime.cache_dir()}"),
        ("expected", expected(text) or "the page does not say"),
        *[("fetched", line) for line in _to_fetch(text)],
        *([("skipped", line) for line in _skipped(text)] or [("skipped", "nothing")]),
        *[("PROBLEM", line) for line in _problems(text, free, disk)],
    ]
    return "\n".join(f"{name:9} {line}" for name, line in rows)


def _profile(name: str) -> str:
    if os.environ.get("CMLEARN_PROFILE"):
        return f"{name} (CMLEARN_PROFILE says so)"
    if name == "full":
        return "full (there is a GPU)"
    return "quick (no GPU; on Colab, Runtime > Change runtime type offers one)"


def _memory() -> tuple[int, int]:
    """Return the bytes of main memory that are free and that there are; 0 where unknown."""
    try:
        rows = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {name: int(rest.split()[0]) * 1024 for name, rest in (r.split(":") for r in rows)}
    return sizes["MemAvailable"], sizes["MemTotal"]


def _to_fetch(text: str) -> list[str]:
    lines = []
    if _uses(text, "load_stamps") and not _stamps_are_here():
        lines.append("the stamps, once: 161 MB through apt, or 216 MB where there is no apt")
    if _uses(text, "load_grocery") and not _grocery_is_here() and not _why_no_grocery():
        lines.append("the photographs of groceries, once: some 300 MB through git")
    return lines


def _skipped(text: str) -> list[str]:
    lines = []
    if _uses(text, "load_grocery") and not _grocery_is_here() and _why_no_grocery():
        lines.append(
            f"what needs the photographs of groceries ({_why_no_grocery()}): the stored "
            "run is shown. To have them, put GroceryStoreDataset into the folder that "
            "CMLEARN_DATA names"
        )
    for extra in extras(text):
        if extra in _MODULES and importlib.util.find_spec(_MODULES[extra]) is None:
            lines.append(
                f"what needs {_MODULES[extra]}, which is not installed: "
                f"pip install {_MODULES[extra]} adds it"
            )
    return lines


def _problems(text: str, free: int, disk: int) -> list[str]:
    lines = []
    asked = [float(number) for number in re.findall(r"([\d.]+) GB of memory", _needs(text))]
    if asked and free and max(asked) * _GB > free:
        lines.append(
            f"this page asks for {max(asked):g} GB of memory and {free / _GB:.1f} GB are free: "
            "close other notebooks (on Colab: Runtime > Manage sessions)"
        )
    if disk < 2 * _GB:
        lines.append(
            f"{disk / _GB:.1f} GB of disk are free, and data and features may take 2: set "
            "CMLEARN_CACHE to a folder on another disk before cmlearn is used"
        )
    return lines


def _uses(text: str, function: str) -> bool:
    cells = re.findall(r"^```\{code-cell\}.*?^```", text, re.M | re.S)
    return any(f"{function}(" in cell for cell in cells)


def _stamps_are_here() -> bool:
    from cmlearn.datasets import _stamps_source
    from cmlearn.runtime import data_home

    places = [
        data_home() / "tuxpaint-stamps",
        *_stamps_source._INSTALLED,
        *_stamps_source._unpacked(),
    ]
    return any(place.is_dir() for place in places)


def _grocery_is_here() -> bool:
    from cmlearn.runtime import data_home

    return (data_home() / "GroceryStoreDataset").is_dir()


@functools.cache
def _why_no_grocery() -> str:
    """Return why git cannot fetch the photographs, or nothing where it can."""
    from cmlearn.datasets._grocery import _ADDRESS

    if shutil.which("git") is None:
        return "there is no git to fetch them with"
    command = ["git", "ls-remote", "--quiet", _ADDRESS, "HEAD"]
    quiet = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(command, capture_output=True, timeout=20, check=True, env=quiet)
    except (OSError, subprocess.SubprocessError):
        return f"{_ADDRESS} cannot be reached"
    return ""


if __name__ == "__main__":
    print(report(sys.argv[1] if len(sys.argv) > 1 else ""))
