import base64
import csv
import hashlib
import importlib.metadata
import io
import os
import zipfile

import pytest

from cmlearn import assets
from cmlearn.assets import Asset, AssetError

FILES = {
    "tiny_data/__init__.py": b"raise SystemExit('the wheel was imported')",
    "tiny_data/data/a.txt": b"alpha",
    "tiny_data/data/deep/b.txt": b"beta",
    "tiny_data/data/other.bin": b"not wanted",
}
ABOUT = "tiny_data-1.0.dist-info"


def write_wheel(folder, files=FILES, version="1.0"):
    about = f"tiny_data-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: tiny-data\nVersion: {version}\n"
    files = files | {
        f"{about}/METADATA": metadata.encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(content)])
    rows.writerow([f"{about}/RECORD", "", ""])
    folder.mkdir(exist_ok=True)
    path = folder / f"tiny_data-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {f"{about}/RECORD": record.getvalue().encode()}).items():
            archive.writestr(name, content)
    return path


def asset_of(wheel):
    asset = Asset(
        name="tiny",
        package="tiny-data",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        contents="",
        licence="CC0",
        origin="this test",
        folder="tiny_data/data",
        files="*.txt",
    )
    with zipfile.ZipFile(wheel) as archive:
        rows = assets._wanted_rows(asset, archive.read(f"{ABOUT}/RECORD").decode())
    return Asset(**vars(asset) | {"contents": assets._contents(rows)})


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only source of packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny(index, monkeypatch):
    asset = asset_of(write_wheel(index))
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)
    return asset


def never_called(*args):
    raise AssertionError("the network was asked")


def install(wheel, site, monkeypatch):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(site)


def test_fetch_unpacks_the_wanted_data_and_then_works_offline(tiny, index, monkeypatch):
    folder = assets.fetch("tiny")
    assert (folder / "a.txt").read_bytes() == b"alpha"
    assert (folder / "deep" / "b.txt").read_bytes() == b"beta"
    assert not (folder / "other.bin").exists()
    assert not (folder.parent / "__init__.py").exists()
    assert os.listdir(folder.parents[2]) == [folder.parents[1].name]
    monkeypatch.setattr(assets, "_pip_download", never_called)
    assert assets.fetch("tiny") == folder


def test_a_damaged_copy_is_fetched_again(tiny):
    folder = assets.fetch("tiny")
    (folder / "a.txt").write_bytes(b"al")
    assert (assets.fetch("tiny") / "a.txt").read_bytes() == b"alpha"


def test_a_wheel_with_another_hash_is_refused_and_nothing_kept(tiny, index, tmp_path):
    write_wheel(index, FILES | {"tiny_data/data/a.txt": b"evil!"})
    with pytest.raises(AssetError, match="SHA-256 differs.*pip install tiny-data==1.0"):
        assets.fetch("tiny")
    assert os.listdir(tmp_path / "cache" / "assets") == []


def test_an_index_that_cannot_be_reached_gives_the_remedy(tiny, index, tmp_path):
    next(index.glob("*.whl")).unlink()
    with pytest.raises(AssetError, match="could not be reached.*PIP_INDEX_URL.*copy of the wheel"):
        assets.fetch("tiny")
    assert os.listdir(tmp_path / "cache" / "assets") == []


def test_an_interrupted_fetch_leaves_nothing_and_the_next_succeeds(tiny, tmp_path, monkeypatch):
    def interrupt(wheel, asset, root):
        (root / "half").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets, "_unpack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            assets.fetch("tiny")
    assert os.listdir(tmp_path / "cache" / "assets") == []
    assert (assets.fetch("tiny") / "a.txt").exists()


def test_another_process_that_was_faster_is_no_error(tiny, monkeypatch):
    folder = assets.fetch("tiny")
    answers = iter([None])
    cached = assets._cached
    monkeypatch.setattr(assets, "_cached", lambda asset: next(answers, cached(asset)))
    assert assets.fetch("tiny") == folder


def test_an_installed_package_is_used_where_it_is(tiny, index, tmp_path, monkeypatch):
    install(write_wheel(index), tmp_path / "site", monkeypatch)
    monkeypatch.setattr(assets, "_pip_download", never_called)
    assert assets.fetch("tiny") == tmp_path / "site" / "tiny_data" / "data"


def test_another_release_with_the_same_data_is_used(tiny, tmp_path, monkeypatch):
    install(write_wheel(tmp_path / "newer", version="2.0"), tmp_path / "site", monkeypatch)
    assert importlib.metadata.version("tiny-data") == "2.0"
    assert assets.fetch("tiny") == tmp_path / "site" / "tiny_data" / "data"


def test_another_release_with_other_data_is_passed_over(tiny, tmp_path, monkeypatch):
    files = FILES | {"tiny_data/data/a.txt": b"ALPHA"}
    install(write_wheel(tmp_path / "newer", files, "2.0"), tmp_path / "site", monkeypatch)
    assert (assets.fetch("tiny") / "a.txt").read_bytes() == b"alpha"


def test_an_installed_package_that_lacks_a_file_is_passed_over(tiny, index, tmp_path, monkeypatch):
    install(write_wheel(index), tmp_path / "site", monkeypatch)
    (tmp_path / "site" / "tiny_data" / "data" / "a.txt").unlink()
    assert assets.fetch("tiny").is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a\\..\\..\\evil.txt", "C:/evil.txt"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path, name):
    wheel = write_wheel(tmp_path / "wheels", FILES | {name: b"evil"})
    with pytest.raises(AssetError, match="outside the cache"):
        assets._unpack(wheel, asset_of(wheel), tmp_path / "unpacked")
    assert not list(tmp_path.rglob("evil.txt"))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AssetError, match=r"'glove'.*glove-6b-50d"):
        assets.fetch("glove")


@pytest.mark.parametrize("name", ["twemoji", "emoji-names", "emoji-data", "glove-6b-50d"])
def test_an_installed_asset_is_recognised_and_is_what_was_tested(name, monkeypatch):
    asset = assets.ASSETS[name]
    try:
        record = importlib.metadata.distribution(asset.package).read_text("RECORD")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{asset.package} is not installed")
    monkeypatch.setattr(assets, "_pip_download", never_called)
    folder = assets.fetch(name)
    path, digest, _ = assets._wanted_rows(asset, record)[0]
    content = (folder / path.removeprefix(f"{asset.folder}/")).read_bytes()
    expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    assert digest == f"sha256={expected}"
