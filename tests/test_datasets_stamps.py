"""Stamps: a small folder and a small package made here, and the true ones where they are."""

import gzip
import hashlib
import http.server
import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cmlearn.assets import AssetError
from cmlearn.datasets import DatasetError, _stamps, _stamps_source, load_stamps

NAMES = ("cat", "dog", "owl")
CAPTION = "A {0}.\nde.utf8=Ein {0}.\nzh_CN.utf8=这是{0}。\nfr.utf8=\n"
SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}">{inside}</svg>'
DISK = '<circle cx="10" cy="10" r="8" fill="#c22"/>'


def picture(seed, size=(24, 18)):
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    noise[..., 3] = 255
    return Image.fromarray(noise)


def add_stamp(folder, name, *, seed=None, caption=None, suffix=".png"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) if seed is None else seed
    picture(seed).save(f"{path}{suffix}")
    caption = CAPTION.format(path.name) if caption is None else caption
    (path.parent / f"{path.name}.txt").write_text(caption, encoding="utf-8")


def add_drawing(folder, name, inside=DISK, *, w="20", h="20", before=""):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing = before + SQUARE.format(w=w, h=h, inside=inside)
    (path.parent / f"{path.name}.svg").write_text(drawing, encoding="utf-8")
    (path.parent / f"{path.name}.txt").write_text(f"A {path.name}.\n", encoding="utf-8")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a data folder with stamps in two categories, and keep away from the true ones."""
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_stamps_source, "_INSTALLED", ())
    stamps = tmp_path / "data" / "tuxpaint-stamps"
    for name in NAMES:
        add_stamp(stamps, f"animals/{name}")
    for name in ("oak", "fern"):
        add_stamp(stamps, f"plants/{name}")
    return tmp_path / "data"


@pytest.fixture
def stamps(home):
    return home / "tuxpaint-stamps"


def load(home, **parameters):
    return load_stamps(data_home=home, **{"min_pairs": 2} | parameters)


# What a Bunch holds


def test_pairs_categories_and_names(home):
    found = load(home)
    assert list(found.data.columns) == ["image", "text"]
    assert found.target_names == ["animals", "plants"]
    assert found.target.dtype == np.int64
    assert found.names.tolist() == [*(f"animals/{n}" for n in NAMES), "plants/fern", "plants/oak"]
    assert found.data["text"].tolist() == [f"A {name.split('/')[1]}." for name in found.names]
    for name, path in zip(found.names, found.data["image"], strict=True):
        assert path == str(home / "tuxpaint-stamps" / f"{name}.png")
    assert found.left_out == []
    assert "* none" in found.DESCR
    X, y = load(home, return_X_y=True)
    assert X.equals(found.data)
    assert np.array_equal(y, found.target)


def test_other_languages(home, stamps):
    assert load(home, language="de").data["text"][0] == "Ein cat."
    assert load(home, language="zh").data["text"][0] == "这是cat。"
    (stamps / "animals/owl.txt").write_text("An owl.\n")
    assert "animals/owl" not in load(home, language="de").names
    # An empty translation is none.
    with pytest.raises(ValueError, match=r"language 'fr': choose one of de, en, zh_CN"):
        load(home, language="fr")


def test_small_categories_are_left_out(home, stamps):
    assert load(home, min_pairs=2).target_names == ["animals", "plants"]
    with pytest.raises(ValueError, match=r"min_pairs is 3, which leaves 1 categories.*'plants': 2"):
        load(home, min_pairs=3)
    add_stamp(stamps, "space/moon")
    assert "space/moon" not in load(home).names
    assert load(home, min_pairs=1).target_names == ["animals", "plants", "space"]


def test_the_fingerprint_tells_contents_apart(home, stamps):
    first = load(home).fingerprint
    assert load(home).fingerprint == first
    (stamps / "animals/owl.txt").write_text("A bird.\n")
    assert load(home).fingerprint != first


# Groups


def group_sets(found):
    members = {}
    for name, group in zip(found.names, found.groups, strict=True):
        members.setdefault(group, set()).add(name)
    return {frozenset(names) for names in members.values() if len(names) > 1}


def test_unrelated_stamps_are_groups_of_their_own(home):
    assert group_sets(load(home)) == set()


@pytest.mark.parametrize(
    ("first", "second"),
    [("pear", "pear2"), ("eye_left", "eye_right"), ("Rose_01", "rose_02")],
)
def test_numbered_variants_share_a_group(home, stamps, first, second):
    add_stamp(stamps, f"plants/{first}", caption="One thing.\n")
    add_stamp(stamps, f"plants/cartoon/{second}", caption="Something else.\n")
    expected = {frozenset({f"plants/{first}", f"plants/cartoon/{second}"})}
    assert group_sets(load(home)) == expected


def test_names_that_are_numbers_or_differ_by_a_letter_are_different_names(home, stamps):
    for name in (*"123", "grave-a", "grave-b"):
        add_stamp(stamps, f"plants/{name}")
    assert group_sets(load(home)) == set()


def test_the_same_name_in_another_category_is_another_stamp(home, stamps):
    add_stamp(stamps, "animals/star", caption="A starfish.\n")
    add_stamp(stamps, "plants/star", caption="An aster.\n")
    assert group_sets(load(home)) == set()


def test_the_same_caption_joins_across_categories(home, stamps):
    add_stamp(stamps, "animals/one", caption="The SAME, twice\n")
    add_stamp(stamps, "plants/other", caption="The same twice.\n")
    assert group_sets(load(home)) == {frozenset({"animals/one", "plants/other"})}


def test_the_same_picture_mirrored_scaled_or_padded_joins(home, stamps):
    original = picture(7, (40, 30)).resize((160, 120))
    padded = Image.new("RGBA", (200, 200))
    padded.paste(original, (20, 40))
    variants = {"as_is": original, "wide": original.resize((120, 90)), "on_paper": padded}
    variants["turned"] = original.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, image in variants.items():
        add_stamp(stamps, f"plants/{name}", caption=f"Words of {name}\n")
        image.save(stamps / f"plants/{name}.png")
    assert group_sets(load(home)) == {frozenset(f"plants/{name}" for name in variants)}


def test_groups_do_not_depend_on_the_language(home, stamps):
    for name in ("one", "other"):
        add_stamp(stamps, f"plants/{name}", caption=f"Twice.\nde.utf8=Wort {name}\n")
    for language in ("en", "de"):
        found = load(home, language=language)
        assert group_sets(found) == {frozenset({"plants/one", "plants/other"})}


# Drawings


@pytest.mark.parametrize(("w", "h"), [("20", "20"), ("4cm", "2cm"), ("10pt", "40pt")])
def test_drawings_become_pictures(home, stamps, w, h):
    add_drawing(stamps, "plants/dot", w=w, h=h, inside='<rect width="999" height="999"/>')
    found = load(home)
    path = found.data["image"][found.names.tolist().index("plants/dot")]
    with Image.open(path) as drawn:
        assert max(drawn.size) == 320
        assert (drawn.width >= drawn.height) == (w != "10pt")
        assert drawn.getpixel((drawn.width // 2, drawn.height // 2)) == (0, 0, 0, 255)
    assert load(home).data["image"].tolist() == found.data["image"].tolist()


def test_a_picture_goes_before_a_drawing_of_the_same_name(home, stamps):
    add_drawing(stamps, "plants/oak")
    add_stamp(stamps, "plants/oak")
    found = load(home)
    assert found.data["image"].tolist()[-1].endswith("oak.png")
    assert "PNG (0)" in found.DESCR


OUTSIDE = {
    "a file": '<image width="9" height="9" href="pencil.png"/>',
    "a file by xlink": (
        '<image xmlns:xlink="http://www.w3.org/1999/xlink" width="9" height="9" '
        'xlink:href="file:///etc/hostname"/>'
    ),
    "an address": '<use href="http://localhost/x.svg#a"/>',
    "a drawing inside": '<image width="9" height="9" href="data:image/svg+xml;base64,AAAA"/>',
    "a style": '<rect width="9" height="9" style="fill: url(other.svg#paint)"/>',
    "an attribute": '<rect width="9" height="9" filter="url(\'other.svg#blur\')"/>',
    "a sheet": '<style>@import "http://localhost/a.css";</style>',
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_drawings_that_refer_outside_are_refused(home, stamps, kind):
    add_drawing(stamps, "plants/trap", OUTSIDE[kind])
    with pytest.warns(UserWarning, match=r"1 stamps .*plants/trap: the drawing refers.*outside"):
        found = load(home)
    assert "plants/trap" not in found.names
    assert "outside itself" in found.left_out[0]
    with pytest.raises(DatasetError, match=r"trap\.svg: the drawing refers to"):
        _stamps._drawn(stamps / "plants/trap.svg")


def test_external_entities_and_sheets_are_refused(home, stamps):
    for name, before in [
        ("entity", '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/hostname">]>'),
        ("sheet", '<?xml-stylesheet href="http://localhost/a.css"?>'),
    ]:
        add_drawing(stamps, f"plants/{name}", before=before)
        with pytest.raises(DatasetError, match="outside itself"):
            _stamps._drawn(stamps / f"plants/{name}.svg")


def test_drawings_may_refer_to_their_own_parts(home, stamps):
    data = io.BytesIO()
    picture(0, (4, 4)).save(data, "PNG")
    import base64

    inside = (
        '<defs><linearGradient id="g"><stop stop-color="#0a0"/></linearGradient></defs>'
        '<rect width="20" height="20" fill="url(#g)"/><a href="http://example.org"></a>'
        f'<image width="4" height="4" href="data:image/png;base64,'
        f'{base64.b64encode(data.getvalue()).decode()}"/>'
    )
    add_drawing(stamps, "plants/kind", inside)
    assert "plants/kind" in load(home).names


def test_a_damaged_drawing_is_reported(home, stamps):
    add_drawing(stamps, "plants/broken", "<rect")
    with pytest.warns(UserWarning, match="plants/broken: not a drawing in SVG"):
        load(home)


# Files that are no pair


def test_pictures_without_caption_and_the_reverse_are_reported(home, stamps):
    (stamps / "animals/cat.txt").unlink()
    (stamps / "plants/oak.png").unlink()
    add_stamp(stamps, "plants/moss")
    with pytest.warns(UserWarning, match=r"2 stamps of .*animals/cat: a picture without a caption"):
        found = load(home)
    assert found.left_out == [
        "animals/cat: a picture without a caption",
        "plants/oak: a caption without a picture",
    ]
    assert all(note in found.DESCR for note in found.left_out)


def test_what_the_tested_release_lacks_gives_no_warning(home, stamps, recwarn):
    (stamps / "seasonal/christmas").mkdir(parents=True)
    (stamps / "seasonal/christmas/gift.txt").write_text("A gift.\n")
    assert load(home).left_out == ["seasonal/christmas/gift: a caption without a picture"]
    assert not recwarn.list


def test_mirrored_copies_are_passed_over(home, stamps, recwarn):
    picture(3).save(stamps / "plants/oak_mirror.png")
    assert load(home).left_out == []
    assert not recwarn.list


def test_captions_that_are_not_utf8_or_empty(home, stamps):
    (stamps / "plants/oak.txt").write_bytes(b"A b\xe4r.\n")
    with pytest.raises(DatasetError, match=r"oak\.txt: not a caption in UTF-8"):
        load(home)
    (stamps / "plants/oak.txt").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"oak\.txt: not a caption"):
        load(home)


def test_a_picture_that_is_none(home, stamps):
    (stamps / "plants/oak.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"oak\.png: the picture cannot be read"):
        load(home)


# Getting the package


def debian_package(path, members, *, packed="gz"):
    """Write a Debian package as its format description says, without Debian's tools."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{packed}") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(info)
    control = gzip.compress(b"")
    parts = {"debian-binary": b"2.0\n", "control.tar.gz": control}
    parts[f"data.tar.{packed}"] = data.getvalue()
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for name, content in parts.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


def package_members(stamps):
    inside = "./usr/share/tuxpaint/stamps/"
    files = [path for path in stamps.rglob("*") if path.is_file()]
    members = {inside + str(path.relative_to(stamps)): path.read_bytes() for path in files}
    return members | {inside + "animals/cat.ogg": b"a sound", "./usr/share/doc/x.txt": b"a text"}


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.fixture
def nowhere(home, stamps, tmp_path, monkeypatch):
    """Have the stamps in a package alone, with no apt to get it by."""
    deb = debian_package(tmp_path / "stamps.deb", package_members(stamps))
    shutil.move(stamps, tmp_path / "kept")
    monkeypatch.setattr(_stamps_source, "_apt", lambda *arguments, folder=None: None)
    monkeypatch.setattr(_stamps_source, "_ARCHIVE_ADDRESS", "http://127.0.0.1:9/stamps.tar.gz")
    return deb


FILE = "tuxpaint-stamps-default_2022.06.04-1_all.deb"


@pytest.fixture
def apt(nowhere, monkeypatch):
    """Serve the package as apt-get does, and remember what was asked for."""
    asked = []
    state = {"content": nowhere.read_bytes(), "fails": False}
    sha256 = hashlib.sha256(state["content"]).hexdigest()

    def apt_get(*arguments, folder=None):
        asked.append(arguments)
        if "--print-uris" in arguments:
            line = f"'somewhere/{FILE}' {FILE} {len(state['content'])} SHA256:{sha256}"
            return subprocess.CompletedProcess(arguments, 0, line, "")
        if state["fails"]:
            return subprocess.CompletedProcess(arguments, 100, "", "E: Failed to fetch it\n")
        (folder / FILE).write_bytes(state["content"])
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(_stamps_source, "_apt", apt_get)
    return state, asked


def test_the_package_is_downloaded_checked_and_unpacked(home, apt, tmp_path):
    found = load(home)
    assert found.names.tolist()[:3] == [f"animals/{name}" for name in NAMES]
    folder = tmp_path / "cache" / "tuxpaint-stamps-default_2022.06.04-1"
    assert found.data["image"][0] == str(folder / "animals/cat.png")
    assert "Debian package tuxpaint-stamps-default 2022.06.04-1" in found.DESCR
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".png", ".txt"}
    assert list((tmp_path / "cache/downloads").iterdir()) == []
    load(home)
    assert len(apt[1]) == 2  # the second time no network is needed


def test_two_at_once_download_the_package_once(home, apt, monkeypatch):
    apt_get = _stamps_source._apt

    def slow(*arguments, folder=None):
        time.sleep(0.3)
        return apt_get(*arguments, folder=folder)

    monkeypatch.setattr(_stamps_source, "_apt", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load, [home, home])
    assert first.data["image"].tolist() == second.data["image"].tolist()
    assert [asked for asked in apt[1] if "--print-uris" not in asked] == [
        ("download", "tuxpaint-stamps-default")
    ]


def test_a_changed_package_is_refused_and_deleted(home, apt, tmp_path):
    apt[0]["content"] += b"more"
    with pytest.raises(AssetError, match=r"has the SHA-256 \w+, expected \w+"):
        load(home)
    assert list((tmp_path / "cache/downloads").iterdir()) == []
    assert not list((tmp_path / "cache").glob("tuxpaint*"))


def test_a_download_that_fails_names_apts_reason_and_the_ways_out(home, apt):
    apt[0]["fails"] = True
    with pytest.raises(AssetError, match=r"Failed to fetch it.*install.*CMLEARN_DATA"):
        load(home)


def test_no_apt_names_every_way_out(home, nowhere):
    with pytest.raises(AssetError) as caught:
        load(home)
    for part in ("no apt-get", "apt-get install", "CMLEARN_DATA"):
        assert part in str(caught.value)


def test_space_is_asked_for_before_the_download(home, apt, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"need 60 MB in .*downloads and 0 MB are free.*CACHE"):
        load(home)
    assert [asked for asked in apt[1] if "--print-uris" not in asked] == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("./usr/share/tuxpaint/stamps/../../../../../evil.txt", b"x", "would land outside"),
        ("/usr/share/tuxpaint/stamps/animals/evil.txt", b"x", "would land outside"),
        (
            "l",
            link("./usr/share/tuxpaint/stamps/animals/evil.txt", "/etc/hostname"),
            "is a link or a device",
        ),
        ("l", link("./usr/share/tuxpaint/stamps/animals", "/tmp"), "is a link or a device"),
    ],
)
def test_a_package_that_leads_out_is_refused(tmp_path, name, content, problem):
    members = {"./usr/share/tuxpaint/stamps/animals/good.txt": b"x", name: content}
    deb = debian_package(tmp_path / "evil.deb", members)
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match=rf"evil\.deb: .* in it {problem}"):
        _stamps_source._unpack_package(deb, tmp_path / "out")
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb to pack it with")
def test_a_package_in_ubuntus_compression_is_unpacked(tmp_path, stamps):
    inside = tmp_path / "content" / "usr" / "share" / "tuxpaint" / "stamps"
    shutil.copytree(stamps, inside)
    (tmp_path / "content" / "DEBIAN").mkdir()
    (tmp_path / "content" / "DEBIAN" / "control").write_text(
        "Package: stamps\nVersion: 1\nArchitecture: all\nMaintainer: -\nDescription: -\n"
    )
    deb = tmp_path / "stamps.deb"
    subprocess.run(
        ["dpkg-deb", "-Zzstd", "--build", str(tmp_path / "content"), str(deb)],
        check=True,
        capture_output=True,
    )
    (tmp_path / "out").mkdir()
    _stamps_source._unpack_package(deb, tmp_path / "out")
    expected = {path.relative_to(stamps) for path in stamps.rglob("*") if path.is_file()}
    found = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*")}
    assert found and found == {p for p in expected if p.suffix in _stamps_source.KEPT}
    deb.write_bytes(deb.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"stamps\.deb: .* cannot be unpacked"):
        _stamps_source._unpack_package(deb, tmp_path / "out")


def test_a_package_whose_reading_breaks_off_between_two_files(tmp_path, monkeypatch):
    """What came before is a whole archive, and only dpkg-deb's own word says that it is not."""
    deb = debian_package(tmp_path / "a.deb", {"./usr/share/tuxpaint/stamps/a/b.txt": b"x"})
    content = tmp_path / "content.tar"
    with tarfile.open(content, "w"):
        pass
    script = tmp_path / "dpkg-deb"
    script.write_text(f"#!/bin/sh\ncat {content}\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DatasetError, match=r"a\.deb: dpkg-deb stopped with status 2.*delete the"):
        _stamps_source._unpack_by_dpkg(deb, tmp_path)


def test_other_links_in_a_package_are_not_unpacked(tmp_path):
    members = {"./usr/share/tuxpaint/stamps/a/b.txt": b"x"}
    members["l"] = link("./usr/share/doc/changelog", "../x")
    (tmp_path / "out").mkdir()
    _stamps_source._unpack_package(
        debian_package(tmp_path / "a.deb", members, packed="xz"), tmp_path / "out"
    )
    assert [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")] == [
        "a/b.txt"
    ]


@pytest.mark.parametrize("content", [b"", b"!<arch>\n", b"<html>not found</html>" * 10])
def test_what_is_no_package(tmp_path, content):
    (tmp_path / "no.deb").write_bytes(content)
    with pytest.raises(DatasetError, match=r"no\.deb: not a Debian package"):
        _stamps_source._unpack_package(tmp_path / "no.deb", tmp_path)


def test_a_package_whose_data_is_cut_off(tmp_path):
    deb = debian_package(tmp_path / "cut.deb", {"./usr/x": os.urandom(5000)})
    deb.write_bytes(deb.read_bytes()[:2000])
    with pytest.raises(DatasetError, match=r"cut\.deb: data\.tar\.gz in it cannot be unpacked"):
        _stamps_source._unpack_package(deb, tmp_path)


def test_a_folder_without_stamps(tmp_path, monkeypatch, home, stamps):
    for path in stamps.rglob("*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match="holds no stamps: expected folders such as animals"):
        load(home)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get here")
@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")
def test_apt_gets_the_package_without_rights(home, stamps, tmp_path, monkeypatch):
    """Let the true apt-get download a small package from a source on this disk."""
    tree, source = tmp_path / "tree", tmp_path / "source"
    shutil.copytree(stamps, tree / "usr/share/tuxpaint/stamps")
    shutil.rmtree(stamps)
    (tree / "DEBIAN").mkdir()
    control = (
        "Package: {}\nVersion: 1.0-1\nArchitecture: all\nMaintainer: X <x@x>\nDescription: x\n"
    )
    (tree / "DEBIAN/control").write_text(control.format(_stamps_source._PACKAGE))
    source.mkdir()
    deb = source / f"{_stamps_source._PACKAGE}_1.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(deb)], check=True, capture_output=True)
    sha256 = hashlib.sha256(deb.read_bytes()).hexdigest()
    (source / "Packages").write_text(
        control.format(_stamps_source._PACKAGE)
        + f"Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {sha256}\n"
    )
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{source} ./\n")
    for folder in ("state/lists/partial", "archives/partial"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{tmp_path}/sources.list";\nDir::Etc::SourceParts "-";\n'
        f'Dir::State "{tmp_path}/state";\nDir::Cache "{tmp_path}";\nAPT::Sandbox::User "";\n'
        f'Dir::State::status "{tmp_path}/status";\n'
    )
    (tmp_path / "status").touch()
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    subprocess.run(["apt-get", "update"], check=True, capture_output=True)
    found = load(home)
    assert len(found.data) == 5
    assert "Debian package tuxpaint-stamps-default 1.0-1" in found.DESCR


# Getting the archive


def archive(stamps):
    """Return the bytes of a tar.gz laid out as Tux Paint's own, with a sound and a document."""
    packed, root = io.BytesIO(), "tuxpaint-stamps-2022.06.04"
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(stamps, f"{root}/stamps")
        for name in ("stamps/animals/cat.ogg", "docs/README.txt"):
            info = tarfile.TarInfo(f"{root}/{name}")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
    return packed.getvalue()


@pytest.fixture
def server(nowhere, tmp_path, monkeypatch):
    """Serve the archive on this machine, and let a test say how the server behaves."""
    content = archive(tmp_path / "kept")
    state = {"content": content, "breaks_after": None, "resumes": True, "asked": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            begin = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(begin[1]) if begin and state["resumes"] else 0
            state["asked"].append(start)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(state["content"]) - start))
            self.end_headers()
            self.wfile.write(state["content"][start:][: state["breaks_after"]])

        def log_message(self, *arguments):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{served.server_port}/stamps.tar.gz"
    expected = _stamps_source._ARCHIVE._replace(
        size=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setattr(_stamps_source, "_ARCHIVE_ADDRESS", address)
    monkeypatch.setattr(_stamps_source, "_ARCHIVE", expected)
    yield state
    served.shutdown()
    served.server_close()


def test_without_apt_the_archive_is_downloaded_checked_and_unpacked(home, server, tmp_path):
    found = load(home)
    assert found.names.tolist()[:3] == [f"animals/{name}" for name in NAMES]
    folder = tmp_path / "cache" / "tuxpaint-stamps-2022.06.04"
    assert found.data["image"][0] == str(folder / "animals/cat.png")
    assert "Tux Paint's archive tuxpaint-stamps-2022.06.04" in found.DESCR
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".png", ".txt"}
    assert list((tmp_path / "cache/downloads").iterdir()) == []
    load(home)
    assert server["asked"] == [0]  # the second time no network is needed


def test_a_download_that_broke_off_goes_on_where_it_stopped(home, server):
    server["breaks_after"] = 700
    with pytest.raises(AssetError, match="no apt-get.*broke off after.*kept for the next try"):
        load(home)
    server["breaks_after"] = None
    assert len(load(home).data) == 5
    assert server["asked"] == [0, 700]


def test_a_server_that_cannot_resume_begins_anew(home, server):
    server["breaks_after"] = 700
    with pytest.raises(AssetError, match="broke off"):
        load(home)
    server.update(breaks_after=None, resumes=False)
    assert len(load(home).data) == 5


def test_a_changed_archive_is_refused_and_deleted(home, server, tmp_path):
    server["content"] = server["content"][:-1] + b"?"
    with pytest.raises(AssetError, match=r"tar\.gz has the SHA-256 \w+, expected \w+"):
        load(home)
    assert list((tmp_path / "cache/downloads").iterdir()) == []


def test_space_is_asked_for_before_the_archive_is_downloaded(home, server, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"need 60 MB in .*downloads and 0 MB are free.*CACHE"):
        load(home)
    assert server["asked"] == []


def test_an_archive_that_leads_out_is_refused(tmp_path):
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("tuxpaint-stamps-2022.06.04/stamps/../../../evil.txt"))
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match=r"evil\.tar\.gz: .* in it would land outside"):
        _stamps_source._unpack_archive(tmp_path / "evil.tar.gz", tmp_path / "out")
    assert not list(tmp_path.rglob("evil.txt"))


def test_an_archive_that_is_cut_off(tmp_path, stamps):
    content = archive(stamps)
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"cut\.tar\.gz: the archive cannot be unpacked"):
        _stamps_source._unpack_archive(tmp_path / "cut.tar.gz", tmp_path)


# The true stamps


def true_stamps():
    home = os.environ.get("CMLEARN_DATA", "")
    places = [*_stamps_source._INSTALLED, *_stamps_source._unpacked()]
    return any(p.is_dir() for p in places) or os.path.isdir(os.path.join(home, "tuxpaint-stamps"))


@pytest.fixture(scope="module")
def true():
    if not true_stamps():
        pytest.skip("the Tux Paint stamps are not on this machine")
    return load_stamps()


def test_the_true_stamps(true):
    counts = dict(zip(true.target_names, np.bincount(true.target), strict=True))
    assert len(true.data) == sum(counts.values()) > 800
    assert {"animals", "food", "symbols", "town", "vehicles"} <= set(counts)
    assert min(counts.values()) >= 20
    assert true.data["image"].is_unique
    assert not true.data["text"].str.contains("utf8").any()
    groups = dict(zip(true.names, true.groups, strict=True))
    assert groups["plants/flowers/flower1"] == groups["plants/flowers/flower2"]
    assert groups["symbols/alphabets/asl/asl_a"] != groups["symbols/alphabets/asl/asl_b"]
    assert groups["animals/birds/blackbird"] != groups["animals/birds/swallow"]


def test_the_true_chinese_captions(true):
    chinese = load_stamps(language="zh")
    assert len(chinese.data) > 600
    both = dict(zip(true.names, true.data["text"], strict=True))
    texts = dict(zip(chinese.names, chinese.data["text"], strict=True))
    assert (both["animals/birds/blackbird"], texts["animals/birds/blackbird"]) == (
        "A blackbird.",
        "黑鸟。",
    )
