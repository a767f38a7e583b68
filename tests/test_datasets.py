import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import mutual_info_score

from cmlearn.assets import fetch
from cmlearn.datasets import (
    DatasetError,
    Scene,
    _folder,
    iter_pairs,
    load_emoji,
    load_folder,
    load_scenes,
)

# Emoji


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


def group_of(emoji, character):
    return emoji.groups[list(emoji.emoji).index(character)]


def test_emoji_agree_with_the_lists_they_come_from(emoji):
    entries = json.loads((fetch("emoji-data") / "emoji.json").read_text(encoding="utf-8"))
    expected = {
        "".join(chr(int(point, 16)) for point in entry["unified"].split("-")): entry["category"]
        for entry in entries
        if entry["category"] not in ("Flags", "Component")
    }
    found = {
        character: emoji.target_names[target]
        for character, target in zip(emoji.emoji, emoji.target, strict=True)
    }
    assert found == expected
    assert len(emoji.target_names) == 8
    assert len(emoji.data) == len(expected) > 1500
    assert emoji.target.dtype == np.int64


def test_emoji_pictures_are_different_files_and_names_are_plain(emoji):
    assert emoji.data["image"].is_unique
    for path in emoji.data["image"]:
        with Image.open(path) as picture:
            assert picture.size == (72, 72)
    assert not emoji.data["text"].str.contains("[:_]").any()
    row = list(emoji.emoji).index("👩‍💻")
    assert emoji.data["text"][row] == "woman technologist"
    assert emoji.data["image"][row].endswith("1f469-200d-1f4bb.png")


@pytest.mark.parametrize(
    "related",
    [
        "👩‍💻 👨‍💻 🧑‍💻",
        "👪 👨‍👩‍👧 👩‍👦",
        "🏃 🏃‍♀️ 🏃‍♂️",
        "👫 👬 👭 🧑‍🤝‍🧑",
        "💏 👩‍❤️‍💋‍👨",
        "💑 👨‍❤️‍👨",
        "🤴 👸 🫅",
    ]
    + ["🎅 🤶 🧑‍🎄", "🐻 🐻‍❄️", "👨 👩 🧑 👨‍🦰", "🚶 🚶‍♀️‍➡️"],
)
def test_related_emoji_share_a_group(emoji, related):
    assert len({group_of(emoji, character) for character in related.split()}) == 1


@pytest.mark.parametrize("pair", ["👩‍💻 👩‍🚀", "💏 💑", "👫 👪", "💻 👩‍💻", "👧 👩", "🐈 🐕"])
def test_unrelated_emoji_do_not(emoji, pair):
    first, second = pair.split()
    assert group_of(emoji, first) != group_of(emoji, second)


def test_skin_tones_join_the_group_of_their_base(emoji):
    toned = load_emoji(skin_tones=True)
    assert len(toned.data) > 2 * len(emoji.data)
    assert set(toned.groups) == set(emoji.groups)
    assert group_of(toned, "👩🏽‍💻") == group_of(emoji, "🧑‍💻")
    assert group_of(toned, "👩🏻‍🤝‍👨🏿") == group_of(emoji, "👫")
    assert toned.data["image"].is_unique
    assert "every one of them" in toned.DESCR


def test_emoji_description_counts_and_credits(emoji):
    assert f"Pairs: {len(emoji.data)}, in {len(set(emoji.groups))} groups" in emoji.DESCR
    count = int((emoji.target == emoji.target_names.index("Food & Drink")).sum())
    assert ["Food", "&", "Drink", str(count)] in [row.split() for row in emoji.DESCR.splitlines()]
    assert "CC BY 4.0" in emoji.DESCR


def test_emoji_speak_chinese_and_may_come_as_a_pair():
    data, target = load_emoji(language="zh", return_X_y=True)
    names = json.loads((fetch("emoji-names") / "emoji_zh.json").read_text(encoding="utf-8"))
    assert names["🍕"].strip(":") in set(data["text"])
    assert data["text"][0] == "嘿嘿"
    assert len(data) == len(target)


def test_openmoji_is_drawn_once(monkeypatch, tmp_path):
    pytest.importorskip("resvg_py")
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path))
    drawn = load_emoji(style="openmoji")
    with Image.open(drawn.data["image"][0]) as picture:
        assert picture.size == (72, 72)
        assert picture.getextrema()[3] == (0, 255)
    assert drawn.data["image"].map(lambda path: path.startswith(str(tmp_path))).all()
    assert "CC BY-SA 4.0" in drawn.DESCR
    monkeypatch.setattr("resvg_py.svg_to_bytes", None)
    assert load_emoji(style="openmoji").data.equals(drawn.data)


@pytest.mark.parametrize("wrong", [{"style": "noto"}, {"language": "tlh"}])
def test_emoji_refuse_unknown_choices(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong.values()))}.*choose"):
        load_emoji(**wrong)


# Scenes


def bits_known(observed, target):
    codes = pd.Series(observed).factorize()[0]
    return mutual_info_score(codes, target) / np.log(2)


@pytest.mark.parametrize(
    "bits",
    [
        dict(redundant=1),
        dict(redundant=0, synergy=1),
        dict(redundant=1, unique_image=1, unique_text=1),
        dict(redundant=0, synergy=2, unique_text=1),
        dict(redundant=1, unique_image=1, unique_text=1, synergy=1),
    ],
)
def test_scenes_hold_the_information_they_promise(bits):
    scenes = load_scenes(6000, **bits)
    pictures = [f"{s.colour}{s.shape}{s.size}{s.background}{s.count}" for s in scenes.data["image"]]
    # The opening of a caption is chance; a small picture code keeps the estimate's bias small.
    captions = [
        " ".join(
            w for w in text.split() if w not in "a an picture of here is this shows you can see"
        )
        for text in scenes.data["text"]
    ]
    both = [f"{a} {b}" for a, b in zip(pictures, captions, strict=True)]
    for name, observed in [("image", pictures), ("text", captions), ("both", both)]:
        known = bits_known(observed, scenes.target)
        assert known == pytest.approx(scenes.information[name], abs=0.06), name
    assert len(scenes.target_names) == 2 ** sum(bits.values())
    assert set(scenes.target) == set(range(len(scenes.target_names)))


def test_a_synergy_label_says_whether_the_caption_fits():
    scenes = load_scenes(200, redundant=0, synergy=1)
    for scene, text, target in zip(
        scenes.data["image"], scenes.data["text"], scenes.target, strict=True
    ):
        fits = ("red", "blue")[scene.colour] in text.split()
        assert scenes.target_names[target] == ("colour fits" if fits else "colour differs")


def test_scene_pixels_show_its_attributes():
    def reddish(scene):
        picture = np.asarray(scene).astype(int)
        return picture[..., 0] - picture[..., 2] > 100

    left, right = reddish(Scene(position=0)), reddish(Scene(position=1))
    assert left[:, :32].sum() == left.sum() > 0
    assert right[:, 32:].sum() == right.sum() > 0
    assert reddish(Scene(colour=1)).sum() == 0
    assert reddish(Scene(size=1)).sum() > 2 * left.sum()
    assert reddish(Scene(count=1)).sum() == pytest.approx(2 * left.sum(), rel=0.1)
    assert reddish(Scene(shape=1)).sum() == pytest.approx(left.sum(), rel=0.15)
    assert reddish(Scene(shape=1))[:, :32].any(0).sum() < left.any(0).sum()
    assert np.asarray(Scene(background=1))[0, 0].tolist() == [60, 60, 60]
    assert np.asarray(Scene(pixels=20)).shape == (20, 20, 3)


def test_scenes_repeat_with_their_seed():
    first, again, other = (load_scenes(50, random_state=seed) for seed in (1, 1, 2))
    assert first.data.equals(again.data)
    assert not first.data.equals(other.data)


def test_noise_redraws_half_wrong_and_leaves_the_label():
    scenes = load_scenes(4000, caption_noise=0.4, image_noise=0.2)
    said = scenes.data["text"].str.contains("blue").to_numpy()
    shown = np.array([scene.colour for scene in scenes.data["image"]])
    assert np.mean(said != scenes.target) == pytest.approx(0.2, abs=0.03)
    assert np.mean(shown != scenes.target) == pytest.approx(0.1, abs=0.03)
    assert (scenes.attributes["colour"] == scenes.target).all()


def test_mismatch_and_missing_rates():
    clean = load_scenes(4000, redundant=4, random_state=3)
    mixed = load_scenes(4000, redundant=4, random_state=3, mismatch_rate=0.3, missing_rate=0.2)
    assert mixed.mismatched.mean() == pytest.approx(0.3, abs=0.03)
    kept = ~mixed.mismatched & mixed.data["text"].notna().to_numpy()
    assert (mixed.data["text"][kept] == clean.data["text"][kept]).all()
    wrong = mixed.mismatched & mixed.data["text"].notna().to_numpy()
    assert (mixed.data["text"][wrong] != clean.data["text"][wrong]).mean() > 0.9
    gone = mixed.data.isna()
    assert gone.any(axis=1).mean() == pytest.approx(0.2, abs=0.03)
    assert not gone.all(axis=1).any()
    assert all(value is None for value in mixed.data["text"][gone["text"]])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(redundant=0),
        dict(redundant=4, synergy=3),
        dict(unique_text=5),
        dict(synergy=-1),
        dict(image_noise=1.5),
        dict(missing_rate=float("nan")),
        dict(n_samples=0),
        dict(image_size=4),
    ],
)
def test_scenes_refuse_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        load_scenes(**({"n_samples": 5} | wrong))


# A folder


def picture(path, value=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (value, 0, 0)).save(path, **options)


@pytest.fixture
def article(tmp_path):
    for name in ("1_b 10.png", "1_b 2.png", "0_猫 'a' \"b\".png"):
        picture(tmp_path / "data" / "images" / name)
    (tmp_path / "data" / "texts.txt").write_text("a cat\na dog\n另一只狗\n", encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture
def table(tmp_path):
    """Write a folder with two pictures and a CSV file of the given text."""
    folder = tmp_path / "table"
    for value, name in enumerate(("a.png", "b, c.png")):
        picture(folder / name, value)

    def write(text, name="pairs.csv"):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return write


def test_article_layout_pairs_in_natural_order(article):
    pairs = load_folder(article)
    names = [path.rsplit("/", 1)[1] for path in pairs.data["image"]]
    assert names == ["0_猫 'a' \"b\".png", "1_b 2.png", "1_b 10.png"]
    assert pairs.data["text"].tolist() == ["a cat", "a dog", "另一只狗"]
    assert pairs.target.tolist() == [0, 1, 1]
    assert pairs.target_names == ["0", "1"]
    assert "Pairs: 3, in 3 groups" in pairs.DESCR
    data, target = load_folder(article, return_X_y=True)
    assert data.equals(pairs.data)
    assert target.dtype == np.int64


def break_article(folder, how):
    images, texts = folder / "images", folder / "texts.txt"
    if how == "few texts":
        texts.write_text("one\ntwo\n")
    elif how == "many texts":
        texts.write_text("one\ntwo\nthree\nfour\n")
    elif how == "blank end":
        texts.write_text("one\ntwo\nthree\n\n\n")
    elif how == "empty text":
        texts.write_text("one\n \nthree\n")
    elif how == "not utf-8":
        texts.write_bytes("one\ntwo\ncafé\n".encode("latin-1"))
    elif how == "no label":
        (images / "1_b 2.png").rename(images / "dog.png")
    elif how == "two claim one":
        shutil.copy(images / "1_b 2.png", images / "1_b 02.png")
    elif how == "one class":
        (images / "0_猫 'a' \"b\".png").rename(images / "1_a.png")
    elif how == "not a picture":
        (images / "1_b 2.png").write_text("hello")
    elif how == "zero bytes":
        (images / "1_b 2.png").write_bytes(b"")
    elif how == "truncated":
        (images / "1_b 2.png").write_bytes((images / "1_b 2.png").read_bytes()[:20])
    elif how == "a folder":
        (images / "1_b 2.png").unlink()
        (images / "1_b 2.png").mkdir()
    elif how == "no texts":
        texts.unlink()
    elif how == "both layouts":
        (folder / "metadata.csv").write_text("file_name,text,label\n")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("few texts", "3 files and texts.txt 2 lines; .*without a line is 1_b 10.png"),
        ("many texts", "3 files and texts.txt 4 lines; .*without a picture is line 4"),
        ("blank end", "lines after line 3 are empty: delete them"),
        ("empty text", r"1 empty text.*line 2 \(1_b 2.png\); write a text"),
        ("not utf-8", r"texts.txt, line 3: byte 0xe9 is not valid utf-8.*encoding="),
        ("no label", "dog.png: the file name holds no number.*name it like 3_cat.jpg"),
        ("two claim one", r"1_b 0?2.png.*1_b 0?2.png claim the same line.*rename or remove"),
        ("one class", "every row has the label '1'.*at least two.*first number"),
        ("not a picture", r"line 2 \(1_b 2.png\).*not a picture of a known format"),
        ("zero bytes", r"replace each or remove(.|\n)*1_b 2.png is empty \(0 bytes\)"),
        ("truncated", r"line 2 \(1_b 2.png\).*(cut off|cannot be read)"),
        ("a folder", r"line 2 \(1_b 2.png\).*cannot be read"),
        ("no texts", "holds images but no texts.txt"),
        ("both layouts", "both texts.txt and metadata.csv: keep the one"),
    ],
)
def test_article_layout_names_what_is_wrong(article, how, message):
    break_article(article, how)
    with pytest.raises(DatasetError, match=message):
        load_folder(article)


def test_another_encoding_and_a_byte_order_mark(article):
    (article / "texts.txt").write_bytes("猫\r\n狗\r\n狗\u2028狗".encode("gb18030"))
    assert load_folder(article, encoding="gb18030").data["text"].tolist() == [
        "猫",
        "狗",
        "狗\u2028狗",
    ]
    (article / "texts.txt").write_bytes("\ufeff猫\n狗\n狗".encode())
    assert load_folder(article).data["text"][0] == "猫"
    with pytest.raises(DatasetError, match="utf-9"):
        load_folder(article, encoding="utf-9")


def test_a_decompression_bomb_is_refused(article, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DatasetError, match="more than 10 pixels"):
        load_folder(article)


def test_csv_keeps_quotes_commas_and_line_breaks(table):
    folder = table('image,label,text,x\na.png,10,"say ""hi"",\nyou",\n"b, c.png",9,狗,\n')
    pairs = load_folder(folder)
    assert pairs.data["text"].tolist() == ['say "hi",\nyou', "狗"]
    assert pairs.data["image"].tolist() == [str(folder / "a.png"), str(folder / "b, c.png")]
    assert pairs.target_names == ["9", "10"]
    assert load_folder(folder / "pairs.csv").data.equals(pairs.data)


def test_rows_of_one_picture_or_one_group_belong_together(table):
    rows = "a.png,u,cat\na.png,v,cat\n" + '"b, c.png",w,dog\n'
    groups = load_folder(table("image,text,label\n" + rows)).groups
    assert groups[0] == groups[1] != groups[2]
    grouped = "image,text,label,group\na.png,u,cat,1\n" + '"b, c.png",w,dog,1\n'
    assert load_folder(table(grouped)).groups.tolist() == ["1", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,text,label\na.png,,1\n", "pairs.csv, line 2.*'text' is empty or NaN"),
        ("image,text,label\na.png,x,1\na.png,x,nan\n", "line 3.*'label' is empty or NaN"),
        ("image,label\na.png,1\n", "lacks text; its columns are 'image', 'label'"),
        ("image;text;label\na.png;x;1\n", "lacks.*image;text;label.*separated by commas"),
        ("", "lacks image.*its columns are none"),
        ("image,text,label\n", "no image-text pair"),
        ("image,text,text,label\n", "'text' comes twice"),
        ("image,file_name,text,label\n", "one of image and file_name"),
        ("image,text,label\na.png,x,y,1\n", "line 2: 4 cells where the header has 3.*quotes"),
        ('image,text,label\na.png,"x,1\n', "line 2: not valid CSV"),
        ("image,text,label\n../b.png,x,1\n", "line 2.*'../b.png' leaves the folder"),
        ("image,text,label\nx/../../b.png,x,1\n", "leaves the folder"),
        ("image,text,label\n/etc/b.png,x,1\n", "'/etc/b.png' leaves the folder"),
        ("image,text,label\n..\\b.png,x,1\n", "leaves the folder"),
        ("image,text,label\nC:\\b.png,x,1\n", "leaves the folder"),
        ("image,text,label\na.png,x,1\nno.png,x,2\n", "line 3: .*no.png does not exist"),
        ("image,text,label\na.png,x,1\na.png,y,2\n", "line 3.*'2' here but '1' at .*line 2"),
        ("image,text,label\na.png,x,1\na.png,y,1\n", "every row has the label '1'.*'label'"),
        (b"image,text,label\na.png,x\xff,1\n", "line 2: byte 0xff is not valid utf-8"),
    ],
)
def test_csv_names_what_is_wrong(table, text, message):
    with pytest.raises(DatasetError, match=message):
        load_folder(table(text))


def test_image_folder_takes_labels_from_subfolders(tmp_path):
    for name in ("cat/1.png", "dog/2.png"):
        picture(tmp_path / name)
    picture(tmp_path / ".hidden" / "3.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\ndog/2.png,b\ncat/1.png,a\n")
    pairs = load_folder(tmp_path)
    assert pairs.target_names == ["cat", "dog"]
    assert pairs.target.tolist() == [1, 0]
    (tmp_path / "metadata.csv").write_text("file_name,text,label\ndog/2.png,b,x\ncat/1.png,a,y\n")
    assert load_folder(tmp_path).target_names == ["x", "y"]


def test_image_folder_names_unlisted_and_unlabelled_pictures(tmp_path):
    for name in ("cat/1.png", "dog/2.png", "3.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,text\ndog/2.png,b\ncat/1.png,a\n")
    with pytest.raises(DatasetError, match="does not list 3.png; add a row"):
        load_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n3.png,b\ncat/1.png,a\n")
    with pytest.raises(DatasetError, match="line 2: there is no column 'label', and 3.png"):
        load_folder(tmp_path)


def test_parquet_with_paths_and_with_embedded_bytes(table, tmp_path, monkeypatch):
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))
    folder = table("", "unused.txt")
    rows = pd.DataFrame({"image": ["a.png", "b, c.png"], "text": ["x", "y"], "label": [3, 10]})
    rows.to_parquet(folder / "pairs.parquet")
    by_path = load_folder(folder)
    assert by_path.data["image"].tolist() == [str(folder / "a.png"), str(folder / "b, c.png")]
    assert by_path.target_names == ["3", "10"]
    content = [(folder / name).read_bytes() for name in rows["image"]]
    rows["image"] = [{"bytes": c, "path": None} for c in content]
    rows.to_parquet(folder / "pairs.parquet")
    embedded = load_folder(folder)
    for path, expected in zip(embedded.data["image"], content, strict=True):
        with open(path, "rb") as stored:
            assert stored.read() == expected
    assert load_folder(folder).data.equals(embedded.data)


def test_parquet_records_with_a_path_mean_the_file_beside_them(table, tmp_path, monkeypatch):
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))
    folder = table("", "unused.txt")
    content = (folder / "b, c.png").read_bytes()
    images = [{"bytes": None, "path": "a.png"}, {"bytes": content, "path": "elsewhere.png"}]
    rows = pd.DataFrame({"image": images, "text": ["x", "y"], "label": [3, 10]})
    rows.to_parquet(folder / "pairs.parquet")
    other = tmp_path / "other"
    other.mkdir()
    picture(other / "a.png")
    shutil.copy(folder / "pairs.parquet", other)
    for place in (folder, other):
        first, second = load_folder(place).data["image"]
        assert first == str(place / "a.png")
        assert Path(second).read_bytes() == content
    (other / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"pairs\.parquet, row 1: .*a\.png does not exist"):
        load_folder(other)


@pytest.fixture
def embedded(table, tmp_path, monkeypatch):
    """Return a folder with a Parquet file that holds two pictures, and their bytes."""
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))
    folder = table("", "unused.txt")
    contents = [(folder / name).read_bytes() for name in ("a.png", "b, c.png")]
    images = [{"bytes": content} for content in contents]
    rows = pd.DataFrame({"image": images, "text": ["x", "y"], "label": [3, 10]})
    rows.to_parquet(folder / "pairs.parquet")
    return folder, contents


def test_parquet_of_bytes_alone(embedded):
    folder, contents = embedded
    found = [Path(path).read_bytes() for path in load_folder(folder).data["image"]]
    assert found == contents


def test_parquet_rows_with_the_same_picture_are_related(tmp_path, monkeypatch):
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))
    for value, name in enumerate(("a.png", "b.png")):
        picture(tmp_path / name, value)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    contents = [first, first, second, second]
    for images in (contents, [{"bytes": content} for content in contents]):
        rows = pd.DataFrame({"image": images, "text": list("wxyz"), "label": [1, 1, 2, 2]})
        rows.to_parquet(tmp_path / "pairs.parquet")
        found = load_folder(tmp_path / "pairs.parquet")
        groups = found.groups.tolist()
        assert groups[0] == groups[1] != groups[2] == groups[3]
        assert Path(found.data["image"][3]).read_bytes() == second
        _, pairs = next(iter_pairs(tmp_path / "pairs.parquet"))
        assert pairs["image"].tolist() == contents
    rows.assign(label=[1, 2, 2, 2]).to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(DatasetError, match="one picture can have one label"):
        load_folder(tmp_path / "pairs.parquet")


def test_paths_written_on_windows(tmp_path):
    picture(tmp_path / "images" / "0.png")
    picture(tmp_path / "images" / "1.png")
    rows = "images\\0.png,x,cat\nimages\\1.png,y,dog\n"
    for name in ("metadata.csv", "pairs.csv"):
        for old in tmp_path.glob("*.csv"):
            old.unlink()
        (tmp_path / name).write_text(f"file_name,text,label\n{rows}")
        expected = [str(tmp_path / "images" / f"{n}.png") for n in range(2)]
        assert load_folder(tmp_path).data["image"].tolist() == expected
        assert next(iter_pairs(tmp_path))[1]["image"].tolist() == expected


def test_labels_that_look_alike_are_one_class_and_ties_have_an_order(table):
    place = table('image,text,label\na.png,x,Caf\u00e9\n"b, c.png",y,Cafe\u0301\n')
    with pytest.raises(DatasetError, match="every row has the label 'Caf\u00e9'"):
        load_folder(place)
    place = table('image,text,label\na.png,x,1\n"b, c.png",y,01\n')
    assert load_folder(place).target_names == ["01", "1"]


def test_a_folder_with_one_csv_file_is_what_that_file_says(table):
    place = table('image,text,label\n"b, c.png",y,1\n')
    rows, pairs = next(iter_pairs(place))
    assert pairs["image"].tolist() == [str(place / "b, c.png")]
    assert pairs["text"].tolist() == ["y"] and rows["label"].tolist() == ["1"]
    (place / "notes.csv").write_text("who,what\nI,took these\n")
    assert next(iter_pairs(place))[1].equals(pairs)
    (place / "drafts.csv").mkdir()
    (place / "cells.csv").write_text("x" * 200_000 + ",y\n")
    assert next(iter_pairs(place))[1].equals(pairs)
    shutil.copy(place / "pairs.csv", place / "predictions.csv")
    with pytest.raises(DatasetError, match=r"pairs\.csv, predictions\.csv, each a list of pic"):
        next(iter_pairs(place))
    (place / "images").mkdir()
    for name in ("texts.txt", "metadata.csv"):
        (place / name).touch()
    with pytest.raises(DatasetError, match=r"holds both texts\.txt and metadata\.csv"):
        next(iter_pairs(place))


@pytest.mark.parametrize("header", ["picture,text,label", "image;text;label"])
def test_the_one_csv_file_of_a_folder_is_not_passed_over_for_its_header(table, header):
    place = table(f"{header}\na.png,x,1\n")
    with pytest.raises(DatasetError, match=r"pairs\.csv: expected one column image or file_name"):
        next(iter_pairs(place))


def test_the_one_csv_file_of_a_folder_in_another_encoding(table):
    place = table("image,text\na.png,Käse\n".encode("utf-16"))
    _, pairs = next(iter_pairs(place, encoding="utf-16"))
    assert pairs["text"].tolist() == ["Käse"]


def test_a_reader_that_is_overtaken_takes_what_the_faster_one_wrote(embedded, monkeypatch):
    folder, contents = embedded
    extract, readers = _folder._extract, []

    def overtaken(*arguments):
        readers.append(arguments)
        if len(readers) == 1:
            load_folder(folder)
        extract(*arguments)

    monkeypatch.setattr(_folder, "_extract", overtaken)
    found = [Path(path).read_bytes() for path in load_folder(folder).data["image"]]
    assert found == contents and len(readers) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ["x", None]}, "pairs.parquet, row 2.*'text' is empty or NaN"),
        ({"label": [1, float("nan")]}, "row 2.*'label' is empty or NaN"),
        ({"image": ["a.png", "../b.png"]}, "row 2.*leaves the folder"),
        ({"image": [{"bytes": None, "path": None}] * 2}, "row 1.*neither bytes nor a path"),
    ],
)
def test_parquet_names_what_is_wrong(table, tmp_path, monkeypatch, change, message):
    monkeypatch.setenv("CMLEARN_CACHE", str(tmp_path / "cache"))
    folder = table("", "unused.txt")
    rows = {"image": ["a.png", "b, c.png"], "text": ["x", "y"], "label": [3, 10]} | change
    pd.DataFrame(rows).to_parquet(folder / "pairs.parquet")
    with pytest.raises(DatasetError, match=message):
        load_folder(folder)


def test_a_broken_parquet_file_and_unknown_places(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DatasetError, match="x.parquet: not a Parquet file"):
        load_folder(tmp_path)
    (tmp_path / "y.csv").write_text("")
    with pytest.raises(DatasetError, match=r"expected one of(.|\n)*found: x.parquet, y.csv"):
        load_folder(tmp_path)
    with pytest.raises(DatasetError, match="nowhere: there is no such"):
        load_folder(tmp_path / "nowhere")


# iter_pairs; what is wrong in a CSV file is tested through the command line


def test_pairs_come_in_chunks_and_equal_those_of_load_folder(article):
    chunks = list(iter_pairs(article, chunk_size=2))
    assert len(chunks) > 1 and {len(pairs) for _, pairs in chunks[:-1]} == {2}
    together = pd.concat([pairs for _, pairs in chunks])
    expected = load_folder(article).data
    assert list(together["image"]) == list(expected["image"])
    assert list(together["text"]) == list(expected["text"])
    assert list(together.index) == list(pd.concat([table for table, _ in chunks])["file_name"])


def test_pairs_of_a_csv_are_indexed_by_their_lines(tmp_path):
    (tmp_path / "x.csv").write_text('image,text,note\na.png,"two\nlines",1\n\nb.png,x,2\n')
    ((table, pairs),) = iter_pairs(tmp_path / "x.csv")
    assert list(pairs.index) == [f"{tmp_path}/x.csv, line {n}" for n in (3, 5)]
    assert list(pairs["image"]) == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert list(pairs["text"]) == ["two\nlines", "x"]
    assert list(table["note"]) == ["1", "2"]


def test_pairs_of_a_parquet_file_name_a_missing_text(tmp_path):
    table = pd.DataFrame({"image": ["a.png", "b.png"], "text": ["x", None]})
    table.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match=r"x\.parquet, row 2: the text is .*write one"):
        list(iter_pairs(tmp_path / "x.parquet"))
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(DatasetError, match="not a Parquet file that can be read"):
        list(iter_pairs(tmp_path / "x.parquet"))
