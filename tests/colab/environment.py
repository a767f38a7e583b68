"""Make an environment with Colab's versions: ``python environment.py LIST``, run by its Python.

Of the hundreds of packages on Colab's list it installs those that cmlearn and the pages touch, and
what these require, at the list's versions. A version that does not exist for this Python is left
out and named in ``_build/colab/left-out.txt``.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "_build" / "colab"
EXTRAS = ("emoji", "weights", "huggingface", "onnx", "interpretability", "security")
KERNEL = ("ipykernel", "jax", "nbclient", "pip", "setuptools")


def versions(path: Path) -> dict[str, str]:
    """Read a list of installed packages; builds that no index has (``+cu128``) are left out."""
    rows = re.findall(r"^([\w.-]+)==([\w.!-]+)$", path.read_text("utf-8"), re.M)
    return {canonicalize_name(name): version for name, version in rows}


def wanted(colab: dict[str, str]) -> list[str]:
    """Return what Colab has of the packages that cmlearn and the pages ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [line for name in EXTRAS for line in extras[name]]
    names = {canonicalize_name(Requirement(line).name) for line in lines}
    return sorted((names & colab.keys()) | set(KERNEL))


def pip(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def install(colab: dict[str, str]) -> dict[str, str]:
    """Install what is wanted; return the packages whose version does not exist for this Python."""
    left_out: dict[str, str] = {}
    constraints = OUT / "constraints.txt"
    while True:
        pins = [f"{n}=={v}" for n, v in sorted(colab.items()) if n not in left_out]
        constraints.write_text("\n".join(pins) + "\n")
        reply = pip("install", "--constraint", str(constraints), *wanted(colab))
        if reply.returncode == 0:
            return left_out
        said = reply.stdout + reply.stderr
        blamed = re.findall(
            r"requirement ([\w.-]+)|constraint\) ([\w.-]+)==|install ([\w.-]+)", said
        )
        names = {canonicalize_name(name) for row in blamed for name in row if name}
        gone = {
            n: colab[n] for n in names & colab.keys() - left_out.keys() if not exists(n, colab[n])
        }
        if not gone:
            raise SystemExit(f"Colab's versions do not install:\n{said[-3000:]}")
        print(f"not for this Python: {gone}", flush=True)
        left_out |= gone


def exists(name: str, version: str) -> bool:
    return pip("install", "--dry-run", "--no-deps", f"{name}=={version}").returncode == 0


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    colab = versions(Path(sys.argv[1]))
    left_out = install(colab)
    here = {
        canonicalize_name(row["name"]): row["version"]
        for row in json.loads(pip("list", "--format=json").stdout)
    }
    same = [name for name in here if colab.get(name) == here[name]]
    other = [f"{name} {here[name]} (Colab: {colab.get(name, 'not there')})" for name in here]
    other = [line for line, name in zip(other, here, strict=True) if name not in same]
    lines = [f"{n}=={v}: no such version for this Python" for n, v in left_out.items()]
    (OUT / "left-out.txt").write_text("\n".join([*lines, *other]) + "\n")
    print(f"{len(same)} packages at Colab's versions, {len(other)} others (left-out.txt)")


if __name__ == "__main__":
    main()
