"""Where the stamps of Tux Paint come from: a folder that is there, a Debian package, an archive."""

import errno
import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from filelock import FileLock

from cmlearn.assets import AssetError
from cmlearn.datasets._common import DatasetError
from cmlearn.runtime import cache_dir, data_home, replace_when_whole

KEPT = (".png", ".svg", ".txt")  # the sounds are nine tenths of the package

_PACKAGE = "tuxpaint-stamps-default"
_INSTALLED = (Path("/usr/share/tuxpaint/stamps"), Path("/usr/local/share/tuxpaint/stamps"))
_INSIDE = "usr/share/tuxpaint/stamps"  # where a package holds them
_UNPACKED_SIZE = 60_000_000  # bytes, drawings included
_SECONDS = 60  # without an answer, until a download is given up


class _Download(NamedTuple):
    file: str
    size: int  # bytes
    sha256: str


# The hash is the one in the signed description of Debian's source package, which is this file.
_ARCHIVE = _Download(
    "tuxpaint-stamps-2022.06.04.tar.gz",
    215_615_180,
    "842065576fae554358e00e51d71a492616a6490b12b592228067477c287a0bf8",
)
_ARCHIVE_ADDRESS = (
    "https://downloads.sourceforge.net/project/tuxpaint/tuxpaint-stamps/2022-06-04/" + _ARCHIVE.file
)
_INSIDE_ARCHIVE = "tuxpaint-stamps-2022.06.04/stamps"


def find_stamps(home: str | os.PathLike | None) -> Path:
    """Return the folder of the stamps, downloaded when there is none yet."""
    places = [data_home(home) / "tuxpaint-stamps", *_INSTALLED, *_unpacked()]
    found = _first_with_captions(places)
    if found is not None:
        return found
    with FileLock(cache_dir() / ".tuxpaint-stamps.lock"):
        # Another process may have unpacked them while this one waited for its turn.
        return _first_with_captions(_unpacked()) or _download()


def _first_with_captions(places: list[Path]) -> Path | None:
    return next((p for p in places if p.is_dir() and any(p.glob("*/**/*.txt"))), None)


def _unpacked() -> list[Path]:
    packages = sorted(cache_dir().glob(f"{_PACKAGE}_*"), reverse=True)
    return [*packages, cache_dir() / _ARCHIVE.file.removesuffix(".tar.gz")]


def release_of(folder: Path) -> str:
    """Say in words which release a folder holds."""
    if folder.name.startswith(f"{_PACKAGE}_"):
        return f"Debian package {folder.name.replace('_', ' ')}"
    if f"{folder.name}.tar.gz" == _ARCHIVE.file:
        return f"Tux Paint's archive {folder.name}"
    return "release unknown"


def _download() -> Path:
    """Get the package by apt or, where that fails, the archive, and unpack it into the cache."""
    try:
        return _download_package()
    except AssetError as error:
        without_apt = str(error)
    try:
        return _download_archive()
    except AssetError as error:
        raise _unreachable(f"{without_apt}; and {error}") from None


def _download_package() -> Path:
    package = _apt_candidate()
    if package is None:
        raise AssetError("there is no apt-get here that knows the package")
    work = _work_folder()
    _check_space(work, work / package.file, package)
    reply = _apt("download", _PACKAGE, folder=work)
    if reply.returncode != 0:
        said = reply.stderr.strip().splitlines()[-1:]
        raise AssetError(f"apt-get could not download it ({' '.join(said)})")
    folder = cache_dir() / package.file.removesuffix(".deb").rpartition("_")[0]
    return _check_and_unpack(work / package.file, package, _unpack_package, folder)


def _download_archive() -> Path:
    work = _work_folder()
    _check_space(work, work / _ARCHIVE.file, _ARCHIVE)
    _http_download(_ARCHIVE_ADDRESS, work / _ARCHIVE.file, _ARCHIVE.size)
    folder = cache_dir() / _ARCHIVE.file.removesuffix(".tar.gz")
    return _check_and_unpack(work / _ARCHIVE.file, _ARCHIVE, _unpack_archive, folder)


def _work_folder() -> Path:
    work = cache_dir() / "downloads"
    work.mkdir(exist_ok=True)
    return work


def _check_and_unpack(
    file: Path, expected: _Download, unpack: Callable[[Path, Path], None], folder: Path
) -> Path:
    _check_hash(file, expected)
    with replace_when_whole(folder) as partial:
        partial.mkdir()
        unpack(file, partial)
    file.unlink(missing_ok=True)
    return folder


def _http_download(address: str, path: Path, size: int) -> None:
    """Download to `path`, from where an earlier try broke off."""
    have = path.stat().st_size if path.exists() else 0
    if have >= size:
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            goes_on = reply.status == 206  # 200: the server begins at the beginning
            with open(path, "ab" if goes_on else "wb") as file:
                shutil.copyfileobj(reply, file, 2**20)
    except (OSError, http.client.HTTPException) as error:  # also a connection that breaks off
        raise AssetError(f"{address} could not be downloaded ({error})") from error
    have = path.stat().st_size
    if have < size:
        raise AssetError(f"the download of {address} broke off after {have / 1e6:,.0f} MB")


def _unreachable(reason: str) -> AssetError:
    return AssetError(
        f"cannot get the Tux Paint stamps: {reason}. Nothing was changed, and what has already "
        "been downloaded is kept for the next try. Check the network and try again; or install the "
        f"package ('sudo apt-get install {_PACKAGE}'); or unpack the package or the archive on "
        "another machine and carry its folder of stamps here as tuxpaint-stamps below the folder "
        "that CMLEARN_DATA names."
    )


def _apt_candidate() -> _Download | None:
    """Ask apt which package it would download; apt takes the hash from a signed list."""
    reply = _apt("download", "--print-uris", _PACKAGE)
    line = re.search(r"'\S+' (\S+) (\d+) SHA256:(\w+)", reply.stdout) if reply else None
    return line and _Download(line[1], int(line[2]), line[3])


def _apt(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess | None:
    if shutil.which("apt-get") is None:
        return None
    command = ["apt-get", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _check_space(work: Path, file: Path, expected: _Download) -> None:
    have = file.stat().st_size if file.exists() else 0
    needed = max(expected.size - have, 0) + _UNPACKED_SIZE
    free = shutil.disk_usage(work).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the Tux Paint stamps need {needed / 1e6:,.0f} MB in {work} and {free / 1e6:,.0f} MB "
            "are free: free some space, or set CMLEARN_CACHE to a folder on another disk",
        )


def _check_hash(path: Path, expected: _Download) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.sha256:
        path.unlink()
        raise AssetError(
            f"{path.name} has the SHA-256 {found}, expected {expected.sha256}: it was damaged on "
            "its way or is not what was asked for, and was deleted. Try again"
        )


# --- Unpacking an archive, and a Debian package: an ar archive that holds data.tar.xz -------------


def _unpack_archive(path: Path, folder: Path) -> None:
    with open(path, "rb") as file:
        _unpack_tar(path, "the archive", file, _INSIDE_ARCHIVE, folder)


def _unpack_package(deb: Path, folder: Path) -> None:
    with open(deb, "rb") as file:
        name, start, size = _data_member(deb, file)
        if name.endswith(".zst") and sys.version_info < (3, 14):
            _unpack_by_dpkg(deb, folder)
            return
        file.seek(start)
        _unpack_tar(deb, f"{name} in it", _Part(file, size), _INSIDE, folder)


def _unpack_by_dpkg(deb: Path, folder: Path) -> None:
    """Unpack what Ubuntu compresses by zstd, which Python reads from 3.14 on."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        _unpack_tar(deb, "its content", process.stdout, _INSIDE, folder)
        process.stdout.read()  # the padding behind the last file, or dpkg-deb would miss a reader
    if process.returncode:
        raise DatasetError(
            f"{deb}: dpkg-deb stopped with status {process.returncode} before the end; delete the "
            "file and try again"
        )


def _unpack_tar(path: Path, name: str, file, inside: str, folder: Path) -> None:
    """Unpack pictures and captions; refuse an archive with links or names that lead out of it."""
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                _refuse_member(path, member, inside)
                _unpack_member(archive, member, inside, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DatasetError(
            f"{path}: {name} cannot be unpacked ({error}); delete the file and try again"
        ) from error


def _data_member(deb: Path, file) -> tuple[str, int, int]:
    """Return name, start and size of the archive's member data.tar.*."""
    if file.read(8) == b"!<arch>\n":
        while len(header := file.read(60)) == 60:
            name = header[:16].decode("ascii", "replace").strip().rstrip("/")
            size = int(header[48:58])
            if name.startswith("data.tar"):
                return name, file.tell(), size
            file.seek(size + size % 2, os.SEEK_CUR)
    raise DatasetError(f"{deb}: not a Debian package (an ar archive with data.tar in it)")


class _Part:
    """The next bytes of an open file, as a file that ends after them."""

    def __init__(self, file, size: int):
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        content = self._file.read(min(size, self._left))
        self._left -= len(content)
        return content


def _refuse_member(archive: Path, member: tarfile.TarInfo, inside: str) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        problem = "would land outside the folder that it is unpacked into"
    elif not (member.isfile() or member.isdir()) and inside in member.name:
        problem = "is a link or a device, not a file"
    else:
        return
    raise DatasetError(
        f"{archive}: {member.name!r} in it {problem}: it is not to be trusted and was not unpacked"
    )


def _unpack_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, inside: str, folder: Path
) -> None:
    path, parts = PurePosixPath(member.name), PurePosixPath(inside).parts
    if member.isfile() and path.parts[: len(parts)] == parts and path.suffix in KEPT:
        member.name = str(PurePosixPath(*path.parts[len(parts) :]))
        archive.extract(member, folder, filter="data")
