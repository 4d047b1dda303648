"""`fsseg predict` as a user types it: what it writes, what it keeps, and what it says of bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import advice, fsseg
from numpy.typing import NDArray
from PIL import Image

from fsseg.data.sources.shapes import dataset_folder, generate

LINE = ("method=prototype", "dataset=shapes5i", "dataset.image_size=25", "backbone=tiny", "device=cpu", "num_workers=0")
CLASSES = {"first": 3, "second": 7}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated")
    generate(root, 4, 60, seed=0)
    return dataset_folder(root, 4, 60, seed=0)


@pytest.fixture
def own(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data of a user: supports/ of two classes, two shots each; photos/ of five images; truth/ by class."""
    monkeypatch.chdir(tmp_path)
    labels = {p.stem: np.array(Image.open(p)) for p in sorted((generated / "SegmentationClass").glob("val_*.png"))}
    used: set[str] = set()
    for name, number in CLASSES.items():
        for image in [i for i, map_ in labels.items() if (map_ == number).sum() > 200 and i not in used][:2]:
            used.add(image)
            copy(generated, image, f"supports/{name}")
            write(f"supports/{name}/{image}.png", 255 * (labels[image] == number))
    free = {image: map_ for image, map_ in labels.items() if image not in used}
    of_each = [next(i for i, map_ in free.items() if (map_ == number).any()) for number in CLASSES.values()]
    for image in list(dict.fromkeys([*of_each, *free]))[:5]:
        copy(generated, image, "photos")
        for name, number in CLASSES.items():
            write(f"truth/{name}/{image}.png", np.where(labels[image] == 255, 255, labels[image] == number))
    return tmp_path


def copy(generated: Path, image: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(generated / "JPEGImages" / f"{image}.jpg", folder)


def write(path: str, mask: NDArray[np.generic]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)


def pixels(path: Path | str) -> NDArray[np.generic]:
    with Image.open(path) as image:
        return np.array(image)


def rows(folder: str = "out") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(folder, "predictions.csv").read_text(), newline="")))


def names() -> list[str]:
    return sorted(path.stem for path in Path("photos").iterdir())


def predicted(*words: str, line: tuple[str, ...] = LINE, status: int = 0) -> str:
    """Both outputs of the command, which must end with this status."""
    ended = fsseg("predict", *line, *words, "--out", "out")
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout + ended.stderr


def two_lines(*words: str, line: tuple[str, ...] = LINE) -> str:
    """What is said of a mistake."""
    told = predicted(*words, line=line, status=1).strip().splitlines()
    assert told[-2].startswith("error: ")
    assert told[-1].startswith("  -> ")
    return "\n".join(told[-2:])


def test_several_classes_with_all_that_is_written(own: Path) -> None:
    text = predicted("--support-dir", "supports", "photos", "--truth-dir", "truth", "--probabilities")
    table, sums = rows(), {name: [0, 0] for name in CLASSES}
    assert [row["name"] for row in table] == [name for name in names() for _ in CLASSES]
    for row in table:
        image, number = row["name"], list(CLASSES).index(row["class"]) + 1
        mask, photo, truth = (
            pixels(p) for p in (f"out/masks/{image}.png", row["file"], f"truth/{row['class']}/{image}.png")
        )
        probability = pixels(f"out/probabilities/{row['class']}/{image}.png")
        other = pixels(f"out/probabilities/{next(c for c in CLASSES if c != row['class'])}/{image}.png")
        assert mask.shape == photo.shape[:2] == probability.shape == pixels(f"out/overlays/{image}.jpg").shape[:2]
        assert set(np.unique(mask)) <= {0, 1, 2}
        found = mask == number
        assert np.all(probability[found] >= 32767)
        assert np.all(probability[found] >= other[found])
        assert float(row["share"]) == pytest.approx(found.mean(), abs=1e-6)
        if found.any():
            assert float(row["mean_probability"]) == pytest.approx(probability[found].mean() / 65535, abs=1e-5)
        both, either = int((found & (truth == 1)).sum()), int(((found & (truth != 255)) | (truth == 1)).sum())
        assert (int(row["intersection"]), int(row["union"])) == (both, either)
        assert row["iou"] == ("" if not either else str(round(100 * both / either, 4)))
        sums[row["class"]] = [a + b for a, b in zip(sums[row["class"]], (both, either))]
    for name, (both, either) in sums.items():
        assert f"; IoU {100 * both / either:.2f} over 5 true masks" in next(
            x for x in text.splitlines() if x.startswith(f"  {name}:")
        )
    assert Image.open(f"out/masks/{table[0]['name']}.png").mode == "P"
    assert pixels("out/sheet.png").shape[1] == int(5 * 2.1 * 130)


def test_one_class_gives_black_and_white_and_every_way_to_name_images_is_one(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [f"{p.with_suffix('.jpg')}:{p}" for p in sorted(Path("supports/first").glob("*.png"))]
    given = [word for pair in pairs for word in ("--support", pair)]
    predicted(*given, "photos/*.jpg", "--class", "first")
    masks = {name: pixels(f"out/masks/{name}.png") for name in names()}
    assert set(np.unique(np.concatenate([m.ravel() for m in masks.values()]))) == {0, 255}
    shutil.rmtree("out")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(f"photos/{name}.jpg" for name in names())))
    predicted("--support-dir", "supports/first", "-", "--batch-size", "4")
    for name, mask in masks.items():
        assert (pixels(f"out/masks/{name}.png") != mask).mean() < 1e-3  # rounding
    assert [row["class"] for row in rows()] == ["first"] * 5


def test_what_is_there_is_kept_and_only_the_rest_is_done(own: Path) -> None:
    given = ("--support-dir", "supports/first")
    first, second, *more = names()
    predicted(*given, f"photos/{first}.jpg", f"photos/{second}.jpg")
    stamps = {p: os.stat(p).st_mtime_ns for p in Path("out/masks").iterdir()}
    os.remove(f"out/overlays/{second}.jpg")
    with open("out/predictions.csv", "a") as file:
        file.write("a row that was cut sh")
    assert "4 images segmented" in (text := predicted(*given, "photos"))
    assert "1 kept from before" in text
    assert [row["name"] for row in rows()] == [first, second, *more]
    assert os.stat(f"out/masks/{first}.png").st_mtime_ns == stamps[Path(f"out/masks/{first}.png")]
    assert "5 images segmented" in predicted(*given, "photos", "--overwrite")
    assert os.stat(f"out/masks/{first}.png").st_mtime_ns > stamps[Path(f"out/masks/{first}.png")]
    assert len(rows()) == 5
    assert "holds predictions of other supports" in (told := two_lines("--support-dir", "supports/second", "photos"))
    assert "--overwrite" in told
    before = {path: path.read_bytes() for path in Path("out").rglob("*.*")}
    told = two_lines("--support-dir", "supports/second", f"photos/{first}.jpg", "--overwrite")
    assert (
        "--out out holds predictions of other supports, also of 4 images that this line does not name, e.g. /" in told
    )
    assert {path: path.read_bytes() for path in Path("out").rglob("*.*")} == before
    assert "5 images segmented" in predicted("--support-dir", "supports/second", "photos", "--overwrite")
    assert {row["class"] for row in rows()} == {"second"}


def test_nothing_of_other_supports_stays_when_they_are_replaced(own: Path) -> None:
    predicted("--support-dir", "supports", "photos", "--probabilities")
    kept = own / "out" / "probabilities" / "of_my_own.txt"
    kept.touch()
    assert len(list(own.glob("out/probabilities/*/*.png"))) == 2 * 5
    predicted("--support-dir", "supports/second", "photos", "--overwrite")  # without --probabilities
    left = [path for path in own.glob("out/probabilities/**/*") if path.is_file()]
    assert left == [kept]
    assert set(np.unique(pixels(f"out/masks/{names()[0]}.png"))) <= {0, 255}


def test_a_truth_that_comes_later_scores_what_is_there(own: Path) -> None:
    predicted("--support-dir", "supports/first", "photos")
    assert {row["iou"] for row in rows()} == {""}
    text = predicted("--support-dir", "supports/first", "photos", "--truth-dir", "truth/first")
    assert "over 5 true masks" in text
    assert all(row["union"] for row in rows())
    assert "no true mask" not in text
    Path(f"truth/first/{names()[0]}.png").unlink()
    text = predicted("--support-dir", "supports/first", "photos", "--truth-dir", "truth/first")
    assert "no true mask for 1 of 5 images in truth/first" in text
    assert "1 image segmented" in text  # to take its score away
    assert [row["union"] == "" for row in rows()] == [row["name"] == names()[0] for row in rows()]


def test_a_truth_that_was_mended_and_another_one_score_anew(own: Path) -> None:
    line = ("--support-dir", "supports/first", "photos", "--truth-dir")
    predicted(*line, "truth/first")
    before = {row["name"]: row["iou"] for row in rows()}
    assert "5 kept from before" in predicted(*line, "truth/first")
    shutil.copytree("truth/first", "mended")
    name = names()[0]
    write(f"mended/{name}.png", pixels(f"out/masks/{name}.png") // 255)
    os.utime(f"mended/{name}.png", (1, 1))
    assert "5 images segmented" in predicted(*line, "mended")  # another folder, with an older file
    assert {row["name"]: row["iou"] for row in rows()} == {**before, name: "100.0"}
    other = names()[1]
    write(f"mended/{other}.png", pixels(f"out/masks/{other}.png") // 255)
    assert "1 image segmented" in predicted(*line, "mended")
    assert {row["name"]: row["iou"] for row in rows()} == {**before, name: "100.0", other: "100.0"}
    assert "5 kept from before" in predicted(*line[:-1])  # without truths scores stay
    assert "5 kept from before" in predicted(*line, "mended")
    write("older.png", pixels(f"truth/first/{name}.png"))
    os.utime("older.png", (1, 1))
    Path("older.png").rename(f"mended/{name}.png")
    assert "1 image segmented" in predicted(*line, "mended")


def test_one_truth_of_numbers_scores_as_one_of_each_class(own: Path) -> None:
    """Beside a classes.txt whose order is another one; as the folder of a data set, and as its `masks/`."""
    Path("mine/masks").mkdir(parents=True)
    Path("mine/classes.txt").write_text("second\nother\nfirst\n")
    for name in names():
        first, second = (pixels(f"truth/{of_class}/{name}.png") for of_class in CLASSES)
        numbers = np.where(first == 255, 255, 3 * (first == 1) + (second == 1))
        numbers[(numbers == 0) & (np.indices(numbers.shape).sum(0) == 9)] = 2  # of a class that nobody asks for
        write(f"mine/masks/{name}.png", numbers)
        for of_class in CLASSES:  # 1 somewhere in each, or 255 would be the object
            assert (pixels(f"truth/{of_class}/{name}.png") != 255).any()
    predicted("--support-dir", "supports", "photos", "--truth-dir", "truth")
    by_class = rows()
    assert sum(int(row["intersection"]) for row in by_class) > 0
    for folder in ("mine", "mine/masks"):
        predicted("--support-dir", "supports", "photos", "--truth-dir", folder, "--overwrite")
        for row, expected in zip(rows(), by_class, strict=True):
            assert {k: v for k, v in row.items() if k != "seconds"} == {
                k: v for k, v in expected.items() if k != "seconds"
            }
    write(f"mine/masks/{names()[1]}.png", numbers * 0 + 4)
    told = predicted("--support-dir", "supports", "photos", "--truth-dir", "mine", "--overwrite", status=1)
    assert f"left out: mine/masks/{names()[1]}.png holds 4, for which mine/classes.txt has no line" in told
    shutil.rmtree("out")
    Path("mine/classes.txt").write_text("second\n")
    told = two_lines("--support-dir", "supports", "photos", "--truth-dir", "mine")
    assert "error: mine/classes.txt names no class first: it has second" in told
    Path("mine/classes.txt").unlink()
    told = two_lines("--support-dir", "supports", "photos", "--truth-dir", "mine/masks")
    assert "error: --truth-dir mine/masks has no folder of a class (first, second)" in told
    assert not list(Path().glob("out/*"))


def test_a_boundary_is_no_object_where_others_mark_it_by_1(own: Path) -> None:
    second = names()[1]
    for name in names():
        truth = np.zeros(pixels(f"photos/{name}.jpg").shape[:2])
        truth[:5] = 255
        truth[20:30, 20:30] = name == second  # of the class; the others show nothing of it
        write(f"one/{name}.png", truth)
        write(f"two/{name}.png", 255 * (truth == 255))
    predicted("--support-dir", "supports/first", "photos", "--truth-dir", "one")
    for row in rows():
        mask = pixels(f"out/masks/{row['name']}.png") == 255
        mask[20:30, 20:30] |= row["name"] == second
        assert int(row["union"]) == mask[5:].sum()
    predicted("--support-dir", "supports/first", "photos", "--truth-dir", "two", "--overwrite")
    for row in rows():
        mask = pixels(f"out/masks/{row['name']}.png") == 255
        assert (int(row["intersection"]), int(row["union"])) == (mask[:5].sum(), mask[5:].sum() + mask[:5].size)


def test_files_that_no_prediction_wrote_are_not_replaced(own: Path) -> None:
    """Own data as `dataset=folder` reads them have masks/ too: --out into their folder must not cost the true ones."""
    words, mine = ("--support-dir", "supports/first", "photos"), f"out/masks/{names()[0]}.png"
    write(mine, np.full((3, 4), 7))
    before = Path(mine).read_bytes()
    assert two_lines(*words) == (
        f"error: --out out holds {mine}, and no predict.json says what wrote it\n"
        "  -> choose another folder: --out, or replace it: --overwrite"
    )
    assert [path.read_bytes() for path in own.glob("out/**/*.*")] == [before]
    Path(mine).rename("out/masks/other.png")  # nobody's business
    predicted(*words)
    Path("out/predict.json").write_text("{")
    assert "predict.json" in two_lines(*words)
    predicted(*words, "--overwrite")


def test_images_of_one_name_do_not_overwrite_each_other(own: Path) -> None:
    first, second, *_ = names()
    for folder, image in (("a", first), ("b", second)):
        Path(folder).mkdir()
        shutil.copy(f"photos/{image}.jpg", f"{folder}/x.jpg")
    predicted("--support-dir", "supports/first", "a", "b")
    assert [row["name"] for row in rows()] == ["x", "b_x"]
    for name, image in (("x", first), ("b_x", second)):
        assert pixels(f"out/masks/{name}.png").shape == pixels(f"photos/{image}.jpg").shape[:2]


def test_an_image_that_cannot_be_used_is_named_and_the_others_go_on(own: Path) -> None:
    truth = Path(f"truth/first/{names()[1]}.png")
    write(str(truth), np.zeros((3, 3)))
    Path("photos/broken.jpg").write_bytes(b"no image")
    Path("photos/empty.png").touch()
    text = predicted("--support-dir", "supports/first", "photos", "--truth-dir", "truth", status=1)
    assert "left out: image photos/broken.jpg cannot be read" in text
    assert "left out: image photos/empty.png cannot be read" in text
    assert f"left out: {truth} has 3 x 3 pixels, and its image photos/" in text
    assert "5 images segmented" in text
    assert len(rows()) == 5
    assert text.rstrip().splitlines()[-2].startswith("error: 3 of 7 images could not be used (named above), e.g. ")
    Path("photos/broken.jpg").unlink()
    Path("photos/empty.png").unlink()
    truth.unlink()
    assert "0 images segmented, 5 kept" in predicted("--support-dir", "supports/first", "photos")


def test_what_is_named_at_the_end_is_there(own: Path) -> None:
    Path("broken.jpg").write_bytes(b"no image")
    text = predicted("--support-dir", "supports/first", "broken.jpg", status=1)
    assert "  predictions.csv sheet.png\n" in text
    assert sorted(path.name for path in Path("out").iterdir()) == ["predict.json", "predictions.csv", "sheet.png"]
    assert "1 of 1 image could not be used" in text


def test_a_photo_on_its_side_is_turned_and_said_once(own: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in names():
        with Image.open(f"photos/{name}.jpg") as image:
            image.save(f"photos/{name}.jpg", exif=exif)
    text = predicted("--support-dir", "supports/first", "photos")
    assert text.count("turned as its EXIF orientation says") == 1
    for name in names():
        with Image.open(f"photos/{name}.jpg") as image, Image.open(f"out/masks/{name}.png") as mask:
            assert mask.size == image.size[::-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["photos/*.gif"], "'photos/*.gif' matches no image"),
        (["photos", "--out", "photos/x.txt/out"], "nothing can be written there"),
        (["photos", "--truth-dir", "supports"], "--truth-dir supports has no true mask of any image: e.g. no "),
        (["photos", "--checkpoint", "truth/x.jpg"], "truth/x.jpg: it is no checkpoint, or it is damaged"),
        (["photos", "--support", "supports/first"], "there is no colon"),
        (["photos", "--truth-dir", "nowhere"], "--truth-dir nowhere is no folder"),
        (["photos", "--support-dir", "supports/first"], "class first is named twice"),
        (["photos", "model.treshold=otsu"], "model.treshold"),
        (["photos", "--checkpoint", "nowhere.pt"], "nowhere.pt: there is no such checkpoint"),
        (["photos", "method=abcb"], "method=abcb is nothing without training"),
        (["photos", "backbone=resnet18", "backbone.weights=nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_input_is_told_in_two_lines_and_nothing_is_written(own: Path, words: list[str], told: str) -> None:
    Path("photos/x.txt").touch()
    Path("truth/x.jpg").write_bytes(b"a photo")
    line = tuple(o for o in LINE if o.partition("=")[0] not in {w.partition("=")[0] for w in words})
    ended = fsseg("predict", *line, "--support-dir", "supports", "--out", "out", *words)
    what, fix = advice(ended)
    assert told in what
    assert "delete" not in fix
    assert "Traceback" not in ended.stderr
    assert not list(Path().glob("out/*"))


def test_a_mask_that_cannot_be_used_is_told_before_anything_is_written(own: Path) -> None:
    mask = sorted(Path("supports/first").glob("*.png"))[0]
    for broken, told in (
        (np.zeros((3, 4)), "has 4 x 3 pixels, and its image supports/first/"),
        (0 * pixels(mask), "marks no pixel of an object"),
        (
            pixels(mask) // 255 * 9 + np.eye(*pixels(mask).shape),
            "holds 3 values beside 0, where a mask of one class has one: 1",
        ),
    ):
        write(str(mask), broken)
        assert f"error: {mask} {told}" in two_lines("--support-dir", "supports", "photos")
    assert not list(Path().glob("out/*"))


def test_no_model_is_told_and_a_file_with_an_equals_sign_is_an_image(own: Path) -> None:
    assert "no model is named" in two_lines("--support-dir", "supports", "photos", line=())
    shutil.move(f"photos/{names()[0]}.jpg", "a=b.jpg")
    predicted("--support-dir", "supports/first", "a=b.jpg")
    assert [row["name"] for row in rows()] == ["a=b"]
    assert json.loads(Path("out/predict.json").read_text())["about"] == "prototype on tiny, nothing trained, 25 px"
