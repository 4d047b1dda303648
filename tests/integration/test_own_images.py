"""The same images as `pascal5i` and as `folder`: index, episodes and score are equal to the last digit."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from runs import done

from fsseg.config.compose import Composed, compose
from fsseg.data.folds import VOC_CLASSES
from fsseg.data.loader import evaluation_plan
from fsseg.data.registry import build_source

pytestmark = pytest.mark.filterwarnings("ignore")

LINE = ("method=prototype", "backbone=tiny", "fold=2", "dataset.num_folds=4", "dataset.image_size=41",
        "protocol.num_episodes=8", "protocol.seeds=[0,1]", "protocol.min_pixels=60", "num_workers=0", "num_threads=1",
        "device=cpu", "logger.figures=0", "logger.tensorboard=false")  # fmt: skip
LISTS = "ImageSets/Segmentation"


def drawn_labels(number: int, boundary: bool) -> NDArray[np.uint8]:
    """Rectangles of two classes, which together are all 20 in 20 images, with or without a boundary of 255."""
    labels = np.zeros((40, 50), np.uint8)
    for place, value in enumerate((number % 20 + 1, (number * 7 + 4) % 20 + 1)):
        top, left = 2 + number % 9, 3 + 24 * place
        labels[top : top + 16, left : left + 18] = 255 if boundary else 0
        labels[top + 1 : top + 15, left + 1 : left + 17] = value
    return labels


def write_pascal(root: Path, boundary: bool) -> None:
    ids = [f"2007_{number:06}" for number in range(80)]
    for folder in ("JPEGImages", "SegmentationClass", LISTS):
        (root / folder).mkdir(parents=True)
    for number, image_id in enumerate(ids):
        labels = drawn_labels(number, boundary)
        pixels = np.random.default_rng(number).integers(0, 99, (40, 50, 3)).astype(np.uint8) + labels[..., None] % 120
        Image.fromarray(pixels.astype(np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg")
        Image.fromarray(labels).save(root / "SegmentationClass" / f"{image_id}.png")
    for name, listed in (("mine_train", ids[:40]), ("mine_val", ids[40:][::-1])):  # in no sorted order
        (root / LISTS / f"{name}.txt").write_text("".join(f"{i}\n" for i in listed))


def as_folder(pascal: Path, root: Path, form: str) -> None:
    """The same images and masks as a user would lay them out."""
    shutil.copytree(pascal / "JPEGImages", root / "images")
    if form == "indexed":
        shutil.copytree(pascal / "SegmentationClass", root / "masks")
        (root / "classes.txt").write_text("\n".join(VOC_CLASSES))
        return
    for path in (pascal / "SegmentationClass").iterdir():
        labels = np.asarray(Image.open(path))
        for value in set(np.unique(labels).tolist()) - {0}:
            to = root / "masks" / VOC_CLASSES[value - 1] / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(labels == value, 255, 0).astype(np.uint8)).save(to)


def equal(one: Composed, other: Composed) -> None:
    sources = [build_source(c.cfg) for c in (one, other)]
    for split in ("train", "val"):
        first, second = (source.index(split) for source in sources)
        assert first.image_ids == second.image_ids
        assert first.fingerprint == second.fingerprint
        np.testing.assert_array_equal(first.pair_grid, second.pair_grid)
    plans = [evaluation_plan(source, c.cfg) for source, c in zip(sources, (one, other))]
    assert plans[0].episodes == plans[1].episodes
    assert plans[0].classes == plans[1].classes == (10, 11, 12, 13, 14)
    results = [done(c) for c in (one, other)]
    scores = [msgspec.to_builtins(result.metrics) for result in results]
    assert scores[0] == scores[1]
    assert 0 < scores[0]["miou"] < 100
    assert results[0].dataset.episodes_fingerprint == results[1].dataset.episodes_fingerprint
    assert results[0].dataset.novel_classes == results[1].dataset.novel_classes == list(VOC_CLASSES[10:15])


@pytest.mark.parametrize("form", ["indexed", "classes"])
def test_a_folder_of_pascals_images_scores_as_pascal(form: str, tmp_path: Path) -> None:
    """A boundary of 255 is kept by indexed masks; masks of one class have none."""
    pascal, mine = tmp_path / "VOC2012", tmp_path / "mine"
    write_pascal(pascal, boundary=form == "indexed")
    as_folder(pascal, mine, form)
    lists = {split: pascal / LISTS / f"mine_{split}.txt" for split in ("train", "val")}
    place = (f"dataset.cache={tmp_path / 'cache'}", f"output_dir={tmp_path / 'out'}")
    published = ("dataset=pascal5i", "protocol.train_pool=mine_train", "dataset.val_list=mine_val")
    own = ("dataset=folder", f"dataset.train_list={lists['train']}", f"dataset.val_list={lists['val']}")
    equal(
        compose([*published, *LINE, *place, f"dataset.root={pascal}"]),
        compose([*own, *LINE, *place, f"dataset.root={mine}"]),
    )


@pytest.mark.shared
def test_real_images_of_pascal_score_alike_as_a_folder(shared_dir: Path, tmp_path: Path) -> None:
    """With the boundary of 255 in its masks; classes that no image shows are classes all the same."""
    real, pascal, mine = shared_dir / "data" / "voc_part", tmp_path / "VOC2012", tmp_path / "mine"
    for folder in ("JPEGImages", "SegmentationClass", LISTS):
        (pascal / folder).mkdir(parents=True)
    for split in ("train", "val"):
        ids = (real / LISTS / f"part_{split}.txt").read_text().split()[-150:]
        (pascal / LISTS / f"mine_{split}.txt").write_text("".join(f"{i}\n" for i in ids))
        for image_id in ids:
            shutil.copy(real / "JPEGImages" / f"{image_id}.jpg", pascal / "JPEGImages")
            shutil.copy(real / "SegmentationClassAug" / f"{image_id}.png", pascal / "SegmentationClass")
    as_folder(pascal, mine, "indexed")
    line = ("method=prototype", "backbone=tiny", "fold=2", "dataset.num_folds=4", "dataset.image_size=41",
            "protocol.num_episodes=8", "protocol.seeds=[0]", "num_workers=0", "num_threads=1", "device=cpu",
            "logger.figures=0", "logger.tensorboard=false", f"output_dir={tmp_path / 'out'}")  # fmt: skip
    lists = (f"dataset.{split}_list={pascal / LISTS}/mine_{split}.txt" for split in ("train", "val"))
    one = compose(["dataset=pascal5i", *line, "protocol.train_pool=mine_train", "dataset.val_list=mine_val",
                   f"dataset.root={pascal}"])  # fmt: skip
    other = compose(["dataset=folder", *line, *lists, f"dataset.root={mine}"])
    sources = [build_source(c.cfg) for c in (one, other)]
    for split in ("train", "val"):
        assert sources[0].index(split).fingerprint == sources[1].index(split).fingerprint
    assert evaluation_plan(sources[0], one.cfg).episodes == evaluation_plan(sources[1], other.cfg).episodes
    scores = [msgspec.to_builtins(done(c).metrics) for c in (one, other)]
    assert scores[0] == scores[1]
