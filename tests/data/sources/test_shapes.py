"""`shapes5i`: what the pictures hold, how they lie on disk, and that a half-made data set is never used."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from fsseg.config.compose import compose
from fsseg.config.schema import ShapesConfig
from fsseg.data.registry import DataAtHand
from fsseg.data.setup.verify import verify
from fsseg.data.sources import shapes
from fsseg.data.sources.shapes import ShapesSource, dataset_folder, generate, is_whole
from fsseg.data.sources.shapes_backgrounds import FAMILY_NAMES
from fsseg.data.sources.shapes_draw import CLASS_PARTS, CLASSES, Layout, Recipe, deal, draw_image
from fsseg.data.sources.voc_layout import VocSource
from fsseg.errors import UserError

REPO = Path(__file__).resolve().parents[3]
TRAIN, VAL, SEED = 60, 40, 3
TINY = (4, 3, 5)  # num_train, num_val, seed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes")
    generate(path, TRAIN, VAL, SEED)
    return path


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return dataset_folder(root, TRAIN, VAL, SEED)


@pytest.fixture
def source(root: Path) -> ShapesSource:
    return ShapesSource(config(root))


def config(root: Path, counts: tuple[int, int, int] = (TRAIN, VAL, SEED)) -> ShapesConfig:
    num_train, num_val, seed = counts
    return ShapesConfig(
        name="shapes5i", root=str(root), image_size=97, num_train=num_train, num_val=num_val, generator_seed=seed
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_list(folder: Path, name: str) -> list[str]:
    return (folder / "ImageSets" / "Segmentation" / f"{name}.txt").read_text().split()


def labels_of(folder: Path, image_id: str) -> NDArray[np.uint8]:
    return np.array(Image.open(folder / "SegmentationClass" / f"{image_id}.png"))


def run_python(code: str, *arguments: object, hash_seed: int = 0) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, PYTHONPATH=str(REPO), PYTHONHASHSEED=str(hash_seed))
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment)


# --- what the classes are ---------------------------------------------------------------------------------------------


def test_no_single_property_tells_a_class_but_any_two_do() -> None:
    assert len(set(CLASSES)) == 20
    for k in range(3):
        assert min(Counter(parts[k] for parts in CLASS_PARTS).values()) >= 4
    for a, b in combinations(range(3), 2):
        assert len({(parts[a], parts[b]) for parts in CLASS_PARTS}) == 20


def test_each_fold_mixes_colours_shapes_and_textures() -> None:
    for fold in range(4):
        colours, textures, forms = zip(*CLASS_PARTS[5 * fold : 5 * fold + 5])
        assert (len(set(colours)), len(set(textures)), len(set(forms))) == (5, 4, 5)


def test_a_class_name_is_colour_texture_shape() -> None:
    assert "red dotted cross" in CLASSES
    assert all(name == " ".join(parts) for name, parts in zip(CLASSES, CLASS_PARTS))


# --- which objects stand in which image -------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_images", "least"), [(600, 60), (400, 40)])
def test_every_class_has_enough_images_on_every_background(num_images: int, least: int) -> None:
    layouts = deal(num_images, Random(1), Recipe())
    classes = Counter(c for p in layouts for c in p.class_ids)
    on_family = Counter((p.family, c) for p in layouts for c in p.class_ids)
    assert len(layouts) == num_images
    assert len(classes) == 20
    assert min(classes.values()) >= least
    # a 5-shot episode needs six images of a class on one family
    assert len(on_family) == 20 * len(FAMILY_NAMES)
    assert min(on_family.values()) >= 6
    assert max(on_family.values()) - min(on_family.values()) <= 3
    assert len(Counter(p.family for p in layouts)) == 5


def test_images_hold_one_to_three_different_classes_most_of_them_several() -> None:
    layouts = deal(400, Random(2), Recipe())
    sizes = Counter(len(p.class_ids) for p in layouts)
    assert sizes == {1: 40, 2: 160, 3: 200}  # Recipe.object_shares: 10, 40, 50 %
    assert all(len(set(p.class_ids)) == len(p.class_ids) for p in layouts)


@pytest.mark.parametrize(("look_alike", "low", "high"), [(0.0, 0.42, 0.63), (0.5, 0.66, 0.86), (1.0, 0.9, 1.0)])
def test_distractors_share_a_property_as_often_as_asked(look_alike: float, low: float, high: float) -> None:
    """By chance 10 of the other 19 classes share one: 3 the colour, 3 the shape, 4 the texture; 0.53, then 0.76, 1."""
    layouts = deal(600, Random(3), Recipe(object_shares=(0, 1, 0), look_alike=look_alike))
    alike = [any(x == y for x, y in zip(*(CLASS_PARTS[c] for c in p.class_ids))) for p in layouts]
    assert low <= np.mean(alike) <= high


# --- how an image looks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_id", range(20))
def test_a_lone_object_is_whole_and_wears_a_thin_boundary(class_id: int) -> None:
    image, labels = draw_image(Layout(class_id % 5, (class_id,)), Random(class_id), Recipe())
    assert image.shape == (*labels.shape, 3)
    assert image.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, class_id + 1, 255}
    inside, band = labels == class_id + 1, labels == 255
    ring = ndimage.binary_dilation(inside) & ~inside
    assert (labels[ring] == 255).all()
    # 1.8 px across an edge; where two edges meet in a corner no more than about twice that
    assert not ndimage.binary_erosion(band, np.ones((5, 5)), border_value=0).any()
    share = (inside.sum() + band.sum() / 2) / labels.size
    assert 0.72 * 0.075 * 0.9 < share < 0.135 * 1.05  # Recipe.area, of which at least Recipe.visible shows


def test_colour_of_an_object_is_that_of_its_name() -> None:
    """Dominant hue of each class's pixels against the six named sectors of the colour circle."""
    hues = {"red": 0, "yellow": 60, "green": 120, "blue": 210, "purple": 280}
    for class_id, (colour, _, _) in enumerate(CLASS_PARTS):
        image, labels = draw_image(Layout(0, (class_id,)), Random(100 + class_id), Recipe(ambient=0, noise=0))
        hsv = np.array(Image.fromarray(image).convert("HSV"))[labels == class_id + 1].astype(float)
        angle = np.median(((hsv[:, 0] * 360 / 255 - hues[colour]) + 180) % 360 - 180)
        assert abs(angle) < 25, CLASSES[class_id]


def test_texture_shows_in_brightness() -> None:
    """Plain objects have one tone; in the others a dark tone covers the share that the pattern's geometry gives."""
    expected = {"plain": (0, 0), "striped": (0.35, 0.65), "dotted": (0.2, 0.5), "checkered": (0.35, 0.65)}
    calm = replace(Recipe(), noise=0, shading=0, ambient=0)
    for class_id, (_, texture, _) in enumerate(CLASS_PARTS):
        image, labels = draw_image(Layout(0, (class_id,)), Random(200 + class_id), calm)
        bright = image.max(axis=2)[labels == class_id + 1].astype(float)
        dark = (bright < 0.72 * bright.max()).mean()
        low, high = expected[texture]
        assert low <= dark <= high, CLASSES[class_id]


def test_drawing_depends_on_its_random_numbers_alone() -> None:
    first = draw_image(Layout(2, (1, 7)), Random(9), Recipe())
    random.seed(0)
    np.random.seed(0)
    second = draw_image(Layout(2, (1, 7)), Random(9), Recipe())
    other = draw_image(Layout(2, (1, 7)), Random(10), Recipe())
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert first[1].shape != other[1].shape or not np.array_equal(first[1], other[1])


# --- what lies on disk ------------------------------------------------------------------------------------------------


def test_layout_is_that_of_voc2012(folder: Path) -> None:
    train, val = read_list(folder, "train"), read_list(folder, "val")
    assert (len(train), len(val), len(set(train) | set(val))) == (TRAIN, VAL, TRAIN + VAL)
    assert {p.name for p in (folder / "JPEGImages").iterdir()} == {f"{i}.jpg" for i in train + val}
    assert {p.name for p in (folder / "SegmentationClass").iterdir()} == {f"{i}.png" for i in train + val}
    for image_id in train + val:
        with Image.open(folder / "JPEGImages" / f"{image_id}.jpg") as image:
            assert image.format == "JPEG"
            assert image.mode == "RGB"
            assert all(97 <= side <= 129 for side in image.size)
            size = image.size
        with Image.open(folder / "SegmentationClass" / f"{image_id}.png") as mask:
            assert mask.mode == "P"
            assert mask.size == size


def test_masks_carry_the_palette_of_voc(folder: Path) -> None:
    with Image.open(folder / "SegmentationClass" / "val_00000.png") as mask:
        palette = np.array(mask.getpalette("RGB")).reshape(-1, 3)
    # from the VOC development kit: aeroplane, bicycle, person, tvmonitor, void
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {k: tuple(int(v) for v in palette[k]) for k in known} == known


def test_objects_never_touch_without_a_boundary_and_stay_visible(folder: Path) -> None:
    for image_id in read_list(folder, "train") + read_list(folder, "val"):
        labels = labels_of(folder, image_id)
        for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            assert not ((a != b) & (a != 255) & (b != 255)).any()
        values, counts = np.unique(labels, return_counts=True)
        assert 1 <= len([v for v in values if 1 <= v <= 20]) <= 3
        assert all(n >= 150 for v, n in zip(values, counts) if 1 <= v <= 20)


def test_answering_all_foreground_scores_about_nine(folder: Path) -> None:
    hits, sizes = np.zeros(20), np.zeros(20)
    for image_id in read_list(folder, "train") + read_list(folder, "val"):
        counts = np.bincount(labels_of(folder, image_id).ravel(), minlength=256)
        for class_id in np.flatnonzero(counts[1:21]):
            hits[class_id] += counts[class_id + 1]
            sizes[class_id] += counts[:255].sum()
    assert 8 <= 100 * (hits / sizes).mean() <= 10


def test_recorded_families_are_those_in_the_pictures(folder: Path) -> None:
    """A nearest-mean rule on simple statistics of background pixels finds the recorded family again."""
    lines = (folder / "ImageSets" / "Segmentation" / "backgrounds.txt").read_text().splitlines()
    recorded = dict(line.split() for line in lines)
    assert list(recorded) == read_list(folder, "train") + read_list(folder, "val")
    assert Counter(recorded.values()) == dict.fromkeys(FAMILY_NAMES, (TRAIN + VAL) // 5)
    features = []
    for image_id in recorded:
        pixels = np.array(Image.open(folder / "JPEGImages" / f"{image_id}.jpg"), dtype=float)
        ground = labels_of(folder, image_id) == 0
        grey = pixels.mean(axis=2)
        step = np.abs(np.diff(grey, axis=0))[ground[1:] & ground[:-1]]
        features.append([*pixels[ground].mean(axis=0), 3 * grey[ground].std(), 10 * step.mean()])
    table, names = np.array(features), np.array(list(recorded.values()))
    means = np.array([table[:TRAIN][names[:TRAIN] == f].mean(axis=0) for f in FAMILY_NAMES])
    guess = np.array(FAMILY_NAMES)[((table[TRAIN:, None] - means) ** 2).sum(axis=2).argmin(axis=1)]
    assert (guess == names[TRAIN:]).mean() >= 0.9


def test_each_family_has_the_colours_of_its_name(folder: Path) -> None:
    """Mean background colour: sky is blue, foliage green, confetti pink, sand and bricks brown, bricks the darker."""
    lines = (folder / "ImageSets" / "Segmentation" / "backgrounds.txt").read_text().splitlines()
    means: dict[str, list[NDArray[np.float64]]] = {family: [] for family in FAMILY_NAMES}
    for image_id, family in map(str.split, lines):
        pixels = np.array(Image.open(folder / "JPEGImages" / f"{image_id}.jpg"), dtype=float)
        means[family].append(pixels[labels_of(folder, image_id) == 0].mean(axis=0))
    mean = {family: np.mean(colours, axis=0) for family, colours in means.items()}
    order = {family: "".join("rgb"[k] for k in np.argsort(-colour)) for family, colour in mean.items()}
    assert order == {"gradient": "bgr", "grating": "rgb", "clouds": "grb", "blobs": "rbg", "bricks": "rgb"}
    assert mean["bricks"].mean() < mean["grating"].mean() - 20


def test_generator_json_tells_the_settings(folder: Path) -> None:
    record = json.loads((folder / "generator.json").read_text())
    assert (record["num_train"], record["num_val"], record["seed"]) == (TRAIN, VAL, SEED)
    assert record["generator_version"] == shapes.VERSION
    assert record["recipe"]["side"] == [97, 129]
    assert record["classes"] == list(CLASSES)


def test_same_settings_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    generate(tmp_path / "a", *TINY)
    code = "import sys; from fsseg.data.sources.shapes import generate; generate(sys.argv[1], *map(int, sys.argv[2:]))"
    assert run_python(code, tmp_path / "b", *TINY, hash_seed=77).wait() == 0
    a, b = (contents(dataset_folder(tmp_path / name, *TINY)) for name in "ab")
    assert a == b
    assert len(a) == 2 * 7 + 3 + 1


def test_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    for seed in (0, 1):
        generate(tmp_path, 2, 1, seed)
    first, second = (contents(dataset_folder(tmp_path, 2, 1, seed)) for seed in (0, 1))
    assert first["JPEGImages/val_00000.jpg"] != second["JPEGImages/val_00000.jpg"]
    assert first["JPEGImages/val_00000.jpg"] != first["JPEGImages/train_00000.jpg"]


def test_each_setting_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {
        dataset_folder(tmp_path, 10, 5, 0),
        dataset_folder(tmp_path, 11, 5, 0),
        dataset_folder(tmp_path, 10, 6, 0),
        dataset_folder(tmp_path, 10, 5, 1),
        dataset_folder(tmp_path, 10, 5, 0, Recipe(noise=0.5)),
    }
    assert len(folders) == 5
    assert {f.parent for f in folders} == {tmp_path}


# --- several processes, interruptions, damage -------------------------------------------------------------------------


def test_processes_that_start_at_once_share_one_result(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from fsseg.data.sources import shapes\n"
        "root = pathlib.Path(sys.argv[1]); me = root / sys.argv[2]; other = root / sys.argv[3]\n"
        "real = shapes._write\n"
        "def write(*args):\n"
        "    real(*args); me.touch()\n"
        "    while not other.exists(): time.sleep(0.01)\n"  # both have written before either publishes
        "shapes._write = write\n"
        "shapes.generate(root, 4, 3, 5)\n"
        "assert shapes.is_whole(shapes.dataset_folder(root, 4, 3, 5))\n"
    )
    children = [run_python(code, tmp_path, "one", "two"), run_python(code, tmp_path, "two", "one")]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two", dataset_folder(tmp_path, *TINY).name}


def test_the_first_to_finish_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, write, winner = dataset_folder(tmp_path, *TINY), shapes._write, []

    def overtaken(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(shapes, "_write", write)
        generate(tmp_path, *TINY)
        winner.append(final.stat().st_ino)

    monkeypatch.setattr(shapes, "_write", overtaken)
    generate(tmp_path, *TINY)
    assert [final.stat().st_ino] == winner
    assert list(tmp_path.iterdir()) == [final]


def test_an_exception_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def draw_three(*args: object) -> object:
        calls.append(args)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return draw_image(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shapes, "draw_image", draw_three)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, *TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing_that_counts(tmp_path: Path) -> None:
    code = (
        "import os, sys; from fsseg.data.sources import shapes\n"
        "real, calls = shapes.draw_image, []\n"
        "def draw(*args):\n"
        "    calls.append(1)\n"
        "    return real(*args) if len(calls) < 4 else os._exit(9)\n"
        "shapes.draw_image = draw\n"
        "shapes.generate(sys.argv[1], 4, 3, 5)\n"
    )
    assert run_python(code, tmp_path).wait() == 9
    final = dataset_folder(tmp_path, *TINY)
    (left,) = tmp_path.iterdir()
    assert left != final
    generate(tmp_path, *TINY)
    assert is_whole(final)
    assert left.exists()  # it could still be at work
    long_ago = time.time() - 2 * shapes.STALE_SECONDS
    for path in (*left.rglob("*"), left):
        os.utime(path, (long_ago, long_ago))
    generate(tmp_path, 1, 1, 0)
    assert not left.exists()


@pytest.mark.parametrize("damage", ["truncated image", "missing mask", "no record", "garbled record", "short list"])
def test_a_damaged_data_set_is_made_anew(tmp_path: Path, damage: str) -> None:
    generate(tmp_path, *TINY)
    final = dataset_folder(tmp_path, *TINY)
    before = contents(final)
    image = final / "JPEGImages" / "train_00001.jpg"
    if damage == "truncated image":
        image.write_bytes(image.read_bytes()[:500])
    elif damage == "missing mask":
        (final / "SegmentationClass" / "val_00000.png").unlink()
    elif damage == "no record":
        (final / "generator.json").unlink()
    elif damage == "garbled record":
        (final / "generator.json").write_text('{"files": ')
    else:
        (final / "ImageSets" / "Segmentation" / "val.txt").write_text("val_00000\n")
    assert not is_whole(final)
    generate(tmp_path, *TINY)
    assert contents(final) == before
    assert [p.name for p in tmp_path.iterdir()] == [final.name]


def test_a_whole_data_set_is_left_alone(tmp_path: Path) -> None:
    generate(tmp_path, *TINY)
    final = dataset_folder(tmp_path, *TINY)
    (final / ".fsseg").mkdir()
    (final / ".fsseg" / "masks.store").write_text("an index that a reader keeps there")
    before = {p: p.stat().st_mtime_ns for p in final.rglob("*")}
    generate(tmp_path, *TINY)
    assert {p: p.stat().st_mtime_ns for p in final.rglob("*")} == before


# --- checksums --------------------------------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    """Flip one bit; the size stays."""
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(bytes(data))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    generate(tmp_path, *TINY)
    return dataset_folder(tmp_path, *TINY)


def forget_checksums(folder: Path) -> None:
    """As an earlier version wrote the record."""
    record = json.loads((folder / "generator.json").read_text())
    del record["crc32"]
    (folder / "generator.json").write_text(json.dumps(record, indent=2) + "\n")


IMAGE, MASK = "JPEGImages/val_00001.jpg", "SegmentationClass/val_00001.png"


def mask_flip(path: Path) -> None:
    """Another number at one pixel, in a mask that is sound in all else."""
    with Image.open(path) as image:
        labels, palette = np.array(image), image.getpalette()
    labels[0, 0] ^= 1
    changed = Image.fromarray(labels)
    changed.putpalette(palette)
    changed.save(path)


def test_the_record_holds_a_checksum_of_every_file(tiny: Path) -> None:
    files = {name: data for name, data in contents(tiny).items() if name != "generator.json"}
    assert len(files) == 2 * 7 + 3
    record = json.loads((tiny / "generator.json").read_text())
    assert record["crc32"] == {name: zlib.crc32(data) for name, data in files.items()}


@pytest.mark.parametrize("version", ["now", "earlier"])
def test_a_flipped_bit_anywhere_in_an_image_is_found(tiny: Path, version: str) -> None:
    source = ShapesSource(config(tiny.parent, TINY))
    whole = (tiny / IMAGE).read_bytes()
    if version == "earlier":
        forget_checksums(tiny)
    for position in (2 * len(whole) // 3, len(whole) - 100, 24, 700):
        flip(tiny / IMAGE, position)
        if version == "now":
            with pytest.raises(UserError, match=r"val_00001\.jpg is not the file that was written") as caught:
                source.image("val", "val_00001")
            assert f"remove {tiny}" in caught.value.fix
            source.image("val", "val_00000")
            with pytest.raises(UserError, match=r"(?s)val_00001\.jpg") as caught:
                source.check(["val"])
            source.check(["train"])
        faults = {fault.path for fault in verify(ShapesSource(config(tiny.parent, TINY))).faults}
        assert faults == {str(tiny / IMAGE)}
        (tiny / IMAGE).write_bytes(whole)
    assert verify(ShapesSource(config(tiny.parent, TINY))).ready


@pytest.mark.parametrize("version", ["now", "earlier"])
def test_a_changed_pixel_of_a_mask_is_found(tiny: Path, version: str) -> None:
    if version == "earlier":
        forget_checksums(tiny)
    before = (tiny / MASK).stat().st_size
    mask_flip(tiny / MASK)
    record = json.loads((tiny / "generator.json").read_text())
    record["files"]["SegmentationClass"][1] += (tiny / MASK).stat().st_size - before  # else it is incomplete at once
    (tiny / "generator.json").write_text(json.dumps(record))
    source = ShapesSource(config(tiny.parent, TINY))
    if version == "now":
        with pytest.raises(UserError, match=r"val_00001\.png is not the file that was written"):
            source.mask("val", "val_00001", 0)
        with pytest.raises(UserError, match=r"val_00001\.png"):
            source.check()
    faults = [fault for fault in verify(source).faults if fault.kind == "generated files that were changed"]
    assert [fault.path for fault in faults] == [str(tiny / MASK)]
    assert f"remove {tiny}" in faults[0].fix


@pytest.mark.parametrize("name", ["train.txt", "backgrounds.txt"])
def test_a_flipped_bit_in_a_list_is_named_at_once(tiny: Path, name: str) -> None:
    path = tiny / "ImageSets" / "Segmentation" / name
    flip(path, path.read_text().index("\n") - 1)  # the last letter of the first line
    with pytest.raises(UserError, match=rf"list .*{name} is not the file that was written") as caught:
        ShapesSource(config(tiny.parent, TINY))
    assert f"remove {tiny}" in caught.value.fix


def test_a_flipped_bit_in_a_list_of_an_earlier_version_is_named(tiny: Path) -> None:
    forget_checksums(tiny)
    lists = tiny / "ImageSets" / "Segmentation"
    whole = (lists / "backgrounds.txt").read_bytes()
    flip(lists / "backgrounds.txt", whole.index(b"\n") - 1)
    with pytest.raises(UserError, match=r"list .*backgrounds\.txt is not the file that was written") as caught:
        ShapesSource(config(tiny.parent, TINY))
    assert f"remove {tiny}" in caught.value.fix
    (lists / "backgrounds.txt").write_bytes(whole)
    flip(lists / "train.txt", len("train_0000"))
    faults = verify(ShapesSource(config(tiny.parent, TINY))).faults
    assert [Path(fault.path).name for fault in faults if "were changed" in fault.kind] == ["train.txt"]


def test_data_of_an_earlier_version_are_used_as_they_are_and_get_checksums_from_verify(tiny: Path) -> None:
    expected = (tiny / "generator.json").read_text()
    forget_checksums(tiny)
    old = (tiny / "generator.json").read_text()
    files = {name: data for name, data in contents(tiny).items() if name != "generator.json"}
    source = ShapesSource(config(tiny.parent, TINY))
    source.check()
    source.image("val", "val_00001")
    assert (tiny / "generator.json").read_text() == old
    assert verify(source, decode=False).ready
    assert (tiny / "generator.json").read_text() == old
    assert verify(source).ready
    assert (tiny / "generator.json").read_text() == expected
    assert {name: data for name, data in contents(tiny).items() if name in files} == files
    flip(tiny / IMAGE, 3000)
    with pytest.raises(UserError, match=r"val_00001\.jpg"):
        source.image("val", "val_00001")


def test_data_of_an_earlier_version_that_cannot_be_written_to_are_verified_all_the_same(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = shapes.write_json

    def refuse(path: Path, value: object) -> None:
        if path.parent == tiny:
            raise PermissionError(13, "Permission denied")
        write(path, value)

    forget_checksums(tiny)
    monkeypatch.setattr(shapes, "write_json", refuse)
    assert verify(ShapesSource(config(tiny.parent, TINY))).ready
    flip(tiny / IMAGE, 3000)
    assert {fault.path for fault in verify(ShapesSource(config(tiny.parent, TINY))).faults} == {str(tiny / IMAGE)}


def test_data_of_another_jpeg_encoder_are_no_fault_and_a_flipped_bit_in_them_is(tiny: Path) -> None:
    """The other encoder: the same coefficients, coded progressively."""
    forget_checksums(tiny)
    for path in (tiny / "JPEGImages").iterdir():
        pixels = Image.open(path)
        pixels.save(path, "JPEG", quality="keep", progressive=True)
    record = json.loads((tiny / "generator.json").read_text())
    record["files"]["JPEGImages"][1] = sum(path.stat().st_size for path in (tiny / "JPEGImages").iterdir())
    (tiny / "generator.json").write_text(json.dumps(record))
    whole = (tiny / IMAGE).read_bytes()
    flip(tiny / IMAGE, whole.index(b"\xff\xda") + 20)  # in the mean colours of the blocks
    assert {fault.path for fault in verify(ShapesSource(config(tiny.parent, TINY))).faults} == {str(tiny / IMAGE)}
    (tiny / IMAGE).write_bytes(whole)
    assert verify(ShapesSource(config(tiny.parent, TINY))).ready
    assert json.loads((tiny / "generator.json").read_text())["crc32"][IMAGE] == zlib.crc32(whole)


# --- the source -------------------------------------------------------------------------------------------------------


def test_source_is_read_by_the_code_that_reads_voc(source: ShapesSource, folder: Path) -> None:
    assert isinstance(source, VocSource)
    for part in ("image", "mask", "index", "novel_classes"):
        assert part not in vars(ShapesSource)
    assert source.name == "shapes5i"
    assert source.classes == CLASSES
    assert [source.novel_classes(f) for f in range(4)] == [tuple(range(5 * f, 5 * f + 5)) for f in range(4)]
    index = source.index("val")
    assert list(index.image_ids) == read_list(folder, "val")
    pairs = {}
    for position, image_id in enumerate(index.image_ids):
        counts = np.bincount(labels_of(folder, image_id).ravel(), minlength=256)
        pairs |= {(position, int(c)): int(counts[c + 1]) for c in np.flatnonzero(counts[1:21])}
    found = zip(index.pair_image.tolist(), index.pair_class.tolist(), index.pair_pixels.tolist())
    assert {(i, c): n for i, c, n in found} == pairs


def test_masks_of_the_source_mark_one_class(source: ShapesSource, folder: Path) -> None:
    index = source.index("train")
    position, class_id = int(index.pair_image[0]), int(index.pair_class[0])
    image_id = index.image_ids[position]
    labels = labels_of(folder, image_id)
    expected = np.where(labels == 255, 255, np.where(labels == class_id + 1, 1, 0))
    assert np.array_equal(source.mask("train", image_id, class_id), expected)
    assert source.image("train", image_id).shape == (*labels.shape, 3)


def test_ambient_brings_object_and_background_together(tmp_path: Path) -> None:
    def contrast(ambient: float) -> float:
        ShapesSource(ShapesConfig(name="shapes5i", root=str(tmp_path), num_train=1, num_val=20, ambient=ambient))
        folder = dataset_folder(tmp_path, 1, 20, 0, Recipe(ambient=ambient))
        found = []
        for image_id in read_list(folder, "val"):
            pixels = np.array(Image.open(folder / "JPEGImages" / f"{image_id}.jpg"), dtype=float)
            labels = labels_of(folder, image_id)
            found.append(np.abs(pixels[(labels > 0) & (labels < 255)].mean(0) - pixels[labels == 0].mean(0)).mean())
        return float(np.mean(found))

    # the distance between the colours of object and background shrinks by 1 - ambient, up to noise and boundaries
    assert contrast(0.5) / contrast(0.0) == pytest.approx(0.5, abs=0.05)


def test_a_pickled_source_still_knows_the_families(source: ShapesSource, folder: Path) -> None:
    copy = pickle.loads(pickle.dumps(source))
    for line in (folder / "ImageSets" / "Segmentation" / "backgrounds.txt").read_text().splitlines():
        image_id, family = line.split()
        assert copy.background_family(image_id.split("_")[0], image_id) == FAMILY_NAMES.index(family)


def test_source_generates_on_first_use_and_check_folder_does_not(tmp_path: Path) -> None:
    cfg = config(tmp_path / "new" / "shapes5i", TINY)
    assert ShapesSource.check_folder(cfg) == []
    assert not (tmp_path / "new").exists()
    assert len(ShapesSource(cfg).index("train").image_ids) == 4
    assert ShapesSource.check_folder(cfg) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    cfg = config(tmp_path / "data" / "shapes5i", TINY)
    (fault,) = ShapesSource.check_folder(cfg)
    assert str(tmp_path / "data") in fault.what
    assert "dataset.root" in fault.fix
    with pytest.raises(UserError, match=r"dataset\.root"):
        ShapesSource(cfg)


def test_a_root_without_write_permission_serves_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path, TINY)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere, so chmod would not tell
    (fault,) = ShapesSource.check_folder(cfg)
    assert str(tmp_path) in fault.what
    generate(tmp_path, *TINY)
    monkeypatch.setattr(shapes, "_write", lambda *args: pytest.fail("written again"))
    assert ShapesSource.check_folder(cfg) == []
    assert ShapesSource(cfg).name == "shapes5i"


def test_a_full_disk_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shapes, "_write", full)
    with pytest.raises(UserError, match="No space left"):
        ShapesSource(config(tmp_path, TINY))
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_moved_elsewhere_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(tmp_path / "a", *TINY)
    shutil.move(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(shapes, "_write", lambda *args: pytest.fail("written again"))
    assert len(ShapesSource(config(tmp_path / "b", TINY)).index("val").image_ids) == 3


def test_training_images_are_counted_where_the_data_set_is_and_nothing_is_generated_for_it(tmp_path: Path) -> None:
    line = ["dataset=shapes5i", f"dataset.root={tmp_path}", "dataset.num_train=60", "dataset.num_val=1", "fold=1"]
    cfg = compose(line).cfg
    assert DataAtHand().training_images(cfg) is None
    assert list(tmp_path.iterdir()) == []
    source = ShapesSource(cfg.dataset)  # type: ignore[arg-type]
    held = {image: {c for c in range(20) if (source.mask("train", image, c) == 1).any()}
            for image in source.index("train").image_ids}  # fmt: skip
    usable = [classes for classes in held.values() if not classes & {5, 6, 7, 8, 9}]  # images with a novel class go
    images = Counter(c for classes in usable for c in classes)
    assert DataAtHand().training_images(cfg) == sum(any(images[c] >= 2 for c in classes) for classes in usable) > 0
