"""Which files a line of `fsseg predict` stands for."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from fsseg.data.own_files import Truths, find_queries, find_supports, folder_for, images_in, output_names
from fsseg.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_files_folders_patterns_and_a_list_each_once() -> None:
    touch("a/1.jpg", "a/2.JPG", "a/.hidden.jpg", "a/notes.txt", "a/deep/3.png", "b/4.webp", "odd [1].jpg")
    assert [str(p) for p in find_queries(["a"])] == ["a/1.jpg", "a/2.JPG"]
    assert [str(p) for p in find_queries(["a/*"])] == ["a/1.jpg", "a/2.JPG"]
    assert [str(p) for p in find_queries(["**/*.png", "b/*.webp"])] == ["a/deep/3.png", "b/4.webp"]
    assert [str(p) for p in find_queries(["odd [1].jpg"])] == ["odd [1].jpg"]
    assert [str(p) for p in find_queries(["-"], ["a/1.jpg\n", "\n", "gone.jpg\r\n"])] == ["a/1.jpg", "gone.jpg"]
    assert len(find_queries(["a/1.jpg", "./a/../a/1.jpg", "a"])) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["x/*.jpg"], r"'x/\*.jpg' matches no image"),
        (["gone.jpg"], r"gone.jpg: there is no such file or folder"),
        (["empty"], r"empty holds no image"),
        ([], r"no image to segment is named"),
        (["-"], r"no image to segment is named"),
    ],
)
def test_a_word_that_stands_for_nothing_is_told(words: list[str], told: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=told) as error:
        find_queries(words)
    assert error.value.fix


def test_all_words_that_stand_for_nothing_are_told_at_once() -> None:
    with pytest.raises(UserError, match=r"2 faults(.|\n)*one.jpg(.|\n)*two.jpg"):
        find_queries(["one.jpg", "two.jpg"])


def test_a_support_is_cut_at_the_colon_with_a_file_on_both_sides() -> None:
    touch("cat.jpg", "cat.png", "12:30:05.jpg", "12:30:05.png", "C:/a.jpg", "C:/a.png")
    for image in ("cat", "12:30:05", "C:/a"):
        pair = Path(f"{image}.jpg"), Path(f"{image}.png")
        assert find_supports([f"{image}.jpg:{image}.png"], [], "cat") == {"cat": [pair]}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("cat.jpg", "--support cat.jpg: there is no colon"),
        ("cat.jpg:gone.png", "gone.png is no file"),
        ("gone.jpg:cat.png", "gone.jpg is no file"),
        ("C:cat.jpg:gone.png", "no colon has a file on both sides"),
        ("a:b:c", "it can be cut at 2 colons"),
    ],
)
def test_a_support_that_cannot_be_cut_is_told(word: str, told: str) -> None:
    touch("cat.jpg", "cat.png", "a", "b:c", "a:b", "c")
    with pytest.raises(UserError, match=re.escape(told)) as error:
        find_supports([word], [], "object")
    assert "--support" in error.value.fix


def test_folders_of_supports_name_their_classes() -> None:
    touch(
        "s/cat/1.jpg", "s/cat/1.png", "s/cat/2.png", "s/cat/2_mask.png", "s/dog/x.JPG", "s/dog/x_mask.png", "s/.git/y"
    )
    cat = [(Path("s/cat/1.jpg"), Path("s/cat/1.png")), (Path("s/cat/2.png"), Path("s/cat/2_mask.png"))]
    dog = [(Path("s/dog/x.JPG"), Path("s/dog/x_mask.png"))]
    assert find_supports([], [Path("s")], "object") == {"cat": cat, "dog": dog}
    assert find_supports([], [Path("s/cat"), Path("s/dog/")], "object") == {"cat": cat, "dog": dog}
    pair = find_supports(["s/dog/x.JPG:s/cat/1.png"], [Path("s/cat")], "object")
    assert pair == {"object": [(Path("s/dog/x.JPG"), Path("s/cat/1.png"))], "cat": cat}


@pytest.mark.parametrize(
    ("files", "folders", "told"),
    [
        (["s/1.jpg", "s/1.png", "s/cat/1.jpg"], ["s"], "s holds both images and folders"),
        (["s/cat/1.jpg", "s/cat/1.png", "s/cat/2.jpg"], ["s"], "s/cat/2.jpg has no mask"),
        (["s/cat/2.png"], ["s"], "s/cat/2.png has no mask"),
        (["s/cat/notes.txt"], ["s"], "s/cat holds no image with a mask"),
        (["s/notes.txt"], ["s"], "--support-dir s holds no image"),
        ([], ["s"], "--support-dir s is no folder"),
        (["s/cat/1.jpg", "s/cat/1.png", "t/cat/1.jpg", "t/cat/1.png"], ["s", "t"], "named twice: by s/cat and t/cat"),
        ([], [], "no supports are given"),
    ],
)
def test_faulty_folders_of_supports_are_told(files: list[str], folders: list[str], told: str) -> None:
    touch(*files)
    with pytest.raises(UserError, match=re.escape(told)) as error:
        find_supports([], [Path(folder) for folder in folders], "object")
    assert error.value.fix


def test_the_class_of_support_may_not_be_that_of_a_folder() -> None:
    touch("s/cat/1.jpg", "s/cat/1.png")
    with pytest.raises(UserError, match=r"class cat is named twice: by --support and s/cat") as error:
        find_supports(["s/cat/1.jpg:s/cat/1.png"], [Path("s")], "cat")
    assert "--class" in error.value.fix


def test_images_of_one_name_do_not_share_an_output() -> None:
    names = ["a/x.jpg", "b/x.jpg", "b/x.png", "b/X.bmp", "c/y.jpg"]
    paths = [Path(name) for name in names]
    assert list(output_names(paths, {}).values()) == ["x", "b_x", "b_x_2", "b_X_3", "y"]
    known = {str(Path("b/x.jpg").absolute()): "x"}  # of an earlier start, in which it was the only one
    assert list(output_names(paths[:2], known).values()) == ["a_x", "x"]


def test_truths_lie_by_class_or_flat_for_one() -> None:
    touch("t/cat/x.png", "t/y.png")
    assert Truths(Path("t"), ("cat", "dog")).files(Path("q/x.jpg")) == {"cat": Path("t/cat/x.png")}
    assert Truths(Path("t"), ("cat",)).files(Path("q/y.jpg")) == {"cat": Path("t/y.png")}
    assert Truths(Path("t"), ("cat", "dog")).files(Path("q/y.jpg")) == {}
    with pytest.raises(UserError, match="--truth-dir u is no folder"):
        Truths(Path("u"), ()).check()


def test_a_folder_that_cannot_be_written_is_told_before_any_work() -> None:
    folder_for(Path("new/out"))
    assert list(Path("new/out").iterdir()) == []
    touch("file")
    with pytest.raises(UserError, match="--out file/out: nothing can be written there") as error:
        folder_for(Path("file/out"))
    assert "--out" in error.value.fix
    assert images_in(Path("new")) == []


def test_what_stands_where_predictions_are_to_be_written_is_told() -> None:
    touch("a/masks", "b/predictions.csv/x", "c/predict.json/x")
    for out, told in (
        ("a", "--out a: a/masks is a file, and a folder of that name is to be written"),
        ("b", "--out b: b/predictions.csv is a folder, and a file of that name is to be written"),
        ("c", "--out c: c/predict.json is a folder, and a file of that name is to be written"),
    ):
        with pytest.raises(UserError, match=re.escape(told)) as error:
            folder_for(Path(out))
        assert error.value.fix == "choose another folder: --out FOLDER, or rename what is there"


def test_files_of_other_kinds_are_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("fsseg"), "propagate", True)
    touch("a/1.jpg", "a/1.png", "a/2.HEIC", "a/3.heic", "a/notes", "a/.hidden", "b/1.jpg")
    told = "3 files left out, of kinds that are not read (2 .heic, 1 no ending)"
    for find in (
        lambda: find_queries(["a"]),
        lambda: find_queries(["a/*"]),
        lambda: find_supports([], [Path("a")], "x"),
    ):
        caplog.clear()
        find()
        assert told in caplog.text
    caplog.clear()
    find_queries(["b", "a/*.jpg"])
    assert not caplog.text


def test_truths_of_no_image_are_told() -> None:
    touch("t/cat/x.png")
    truths = Truths(Path("t"), ("cat", "dog"))
    truths.check_images([Path("y.jpg"), Path("x.jpg")])
    with pytest.raises(UserError, match=r"--truth-dir t has no true mask of any image: e\.g\. no y\.png") as error:
        truths.check_images([Path("y.jpg")])
    assert "--truth-dir" in error.value.fix
