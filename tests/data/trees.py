"""Small data sets in the official layouts, made on the spot for the tests of the sources, `verify` and `prepare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from fsseg.data.folds import COCO_CATEGORY_IDS, COCO_CLASSES

Labels = NDArray[np.uint8]


def labels_of(*areas: tuple[int, int], size: tuple[int, int] = (40, 50), boundary: int = 0) -> Labels:
    """A label mask whose value v covers exactly `number` pixels for each (v, number), then `boundary` pixels of 255."""
    flat = np.zeros(size[0] * size[1], np.uint8)
    start = 0
    for value, number in (*areas, (255, boundary)):
        flat[start : start + number] = value
        start += number
    return flat.reshape(size)


def write_png(path: Path, labels: Labels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels, mode="P")
    image.putpalette([channel for value in range(256) for channel in (value, 255 - value, value // 2)])
    image.save(path)


def write_mat(path: Path, labels: Labels) -> None:
    """SBD's form: a struct GTcls with the fields Boundaries, Segmentation, CategoriesPresent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    present = np.unique(labels[labels > 0])
    savemat(path, {"GTcls": {"Boundaries": np.zeros((20, 1)), "Segmentation": labels, "CategoriesPresent": present}})


def write_jpeg(path: Path, size: tuple[int, int] = (40, 50), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def write_list(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


# VOC segmented t1, t2 (train) and v1, v2 (val); SBD segmented t2, s1, s2 and v2 (which must not be trained on).
VOC_MASKS = {
    "2007_t1": labels_of((1, 500), (15, 30), boundary=20),
    "2007_t2": labels_of((2, 100), boundary=10),
    "2007_v1": labels_of((20, 700), boundary=40),
    "2007_v2": labels_of((15, 900), (1, 1), boundary=5),
}
SBD_MASKS = {
    "2007_t2": labels_of((2, 110)),
    "2008_s1": labels_of((6, 800), (7, 3)),
    "2008_s2": labels_of((15, 60)),
    "2007_v2": labels_of((15, 905), (1, 1)),
}
TRAIN_AUG = ["2007_t1", "2007_t2", "2008_s1", "2008_s2"]
# (image, class_id, pixels) of TRAIN_AUG, by hand from the two tables above: VOC's mask wins for t2.
TRAIN_PAIRS = [(0, 0, 500), (0, 14, 30), (1, 1, 100), (2, 5, 800), (2, 6, 3), (3, 14, 60)]
VAL_PAIRS = [(0, 19, 700), (1, 0, 1), (1, 14, 900)]


def make_voc(root: Path, masks: str = "sbd") -> Path:
    """A VOC2012 tree of six images.

    Args:
        masks: sbd (SegmentationClass and SBD/cls), aug (SegmentationClassAug alone, and no SBD lists) or both.
    """
    lists = root / "ImageSets" / "Segmentation"
    write_list(lists / "train.txt", ["2007_t1", "2007_t2"])
    write_list(lists / "val.txt", ["2007_v1", "2007_v2"])
    for seed, image_id in enumerate(sorted({*VOC_MASKS, *SBD_MASKS})):
        write_jpeg(root / "JPEGImages" / f"{image_id}.jpg", seed=seed)
    if masks in ("sbd", "both"):
        for image_id, labels in VOC_MASKS.items():
            write_png(root / "SegmentationClass" / f"{image_id}.png", labels)
        for image_id, labels in SBD_MASKS.items():
            write_mat(root / "SBD" / "cls" / f"{image_id}.mat", labels)
        write_list(root / "SBD" / "train.txt", ["2007_t2", "2008_s2", "2007_v2"])
        write_list(root / "SBD" / "val.txt", ["2008_s1"])
    if masks in ("aug", "both"):
        for image_id, labels in {**SBD_MASKS, **VOC_MASKS}.items():
            write_png(root / "SegmentationClassAug" / f"{image_id}.png", labels)
    return root


def coco_categories() -> list[dict[str, Any]]:
    return [{"id": i, "name": n, "supercategory": "x"} for i, n in zip(COCO_CATEGORY_IDS, COCO_CLASSES)]


def box(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """A polygon that covers exactly the pixels [x, x + width) x [y, y + height)."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def run_lengths(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """COCO's uncompressed run-length code (column by column, starting with zeros), written out by hand."""
    counts, value, run = [], 0, 0
    for pixel in mask.T.ravel():
        if pixel == value:
            run += 1
        else:
            counts.append(run)
            value, run = int(pixel), 1
    return {"size": list(mask.shape), "counts": [*counts, run]}


def coco_json() -> dict[str, Any]:
    """Two 30x20 images. 7: two people that overlap, a crowd of people, a dog. 9: one toothbrush in two pieces."""
    crowd = np.zeros((20, 30), np.uint8)
    crowd[0:10, 8:20] = 1
    dog = 18
    return {
        "images": [
            {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "height": 20, "width": 30},
            {"id": 7, "file_name": "COCO_val2014_000000000007.jpg", "height": 20, "width": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": box(0, 0, 10, 10)},
            {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": box(5, 5, 10, 10)},
            {"id": 3, "image_id": 7, "category_id": 1, "iscrowd": 1, "segmentation": run_lengths(crowd)},
            {"id": 4, "image_id": 7, "category_id": dog, "iscrowd": 0, "segmentation": box(12, 12, 6, 4)},
            {"id": 5, "image_id": 9, "category_id": 90, "segmentation": box(0, 0, 3, 2) + box(20, 10, 4, 4)},
        ],
        "categories": coco_categories(),
    }


def make_coco(root: Path, year: int = 2014) -> Path:
    """`coco_json` as both splits, with images."""
    for split in ("train", "val"):
        content = json.loads(json.dumps(coco_json()).replace("val2014", f"{split}{year}"))
        path = root / "annotations" / f"instances_{split}{year}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for image in content["images"]:
            write_jpeg(root / f"{split}{year}" / image["file_name"], (20, 30), seed=image["id"])
    return root
