"""Class names, COCO's category ids, and which classes each fold holds out. Called by the sources, and by `bam`.

Facts, not choices: the class orders are those of VOC2012 (alphabetical) and of COCO's `instances_*.json` (by category
id); the folds are those of PASCAL-5i (Shaban et al., BMVC 2017) and COCO-20i (Nguyen and Todorovic, ICCV 2019).
"""

from __future__ import annotations

from fsseg.config.schema import DatasetConfig
from fsseg.errors import UserError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in _COCO_GAPS)
"""Category id of each class_id: the ids of `instances_*.json` run from 1 to 90 with ten gaps."""


def fold_classes(num_classes: int, num_folds: int, fold: int, interleaved: bool = False) -> tuple[int, ...]:
    """class_ids of one fold when `num_classes` are cut into `num_folds` equal parts.

    Args:
        interleaved: fold f holds f, f + num_folds, f + 2 num_folds, ...; else the f-th block of consecutive classes.

    Raises:
        UserError: there is no such fold, or the classes cannot be cut into that many equal parts.
    """
    if num_folds < 1 or num_classes % num_folds:
        raise UserError(
            f"dataset.num_folds={num_folds} does not divide {num_classes} classes into equal folds",
            f"set dataset.num_folds to a divisor of {num_classes}",
        )
    if not 0 <= fold < num_folds:
        raise UserError(f"fold={fold} does not exist", f"set fold to a number from 0 to {num_folds - 1}")
    if interleaved:
        return tuple(range(fold, num_classes, num_folds))
    size = num_classes // num_folds
    return tuple(range(fold * size, (fold + 1) * size))


def uneven_fold(num_classes: int, num_folds: int, fold: int) -> tuple[int, ...]:
    """class_ids of one of `num_folds` blocks of consecutive classes; where these are not equal, the first ones hold one
    class more.

    Raises:
        UserError: there is no such fold, or not a class for each.
    """
    if num_folds > num_classes:
        raise UserError(
            f"dataset.num_folds={num_folds}: there are only {num_classes} classes to cut into folds",
            f"set dataset.num_folds to {num_classes} or less, or name the novel ones: dataset.novel=[...]",
        )
    if not 0 <= fold < num_folds:
        raise UserError(f"fold={fold} does not exist", f"set fold to a number from 0 to {num_folds - 1}")
    size, more = divmod(num_classes, num_folds)
    start = fold * size + min(fold, more)
    return tuple(range(start, start + size + (fold < more)))


def base_classes(dataset: DatasetConfig, fold: int) -> tuple[int, ...]:
    """class_ids that are not of a fold, sorted; by the configuration alone, without a look at the data, but where these
    alone know the classes.

    Raises:
        UserError: as `fold_classes`; or the data that know the classes are not there.
    """
    schema = DatasetConfig.named(dataset.name)
    if not schema.NUM_CLASSES:
        source = DatasetConfig.target(dataset.name)(dataset)
        return tuple(sorted(set(range(len(source.classes))) - set(source.novel_classes(fold))))
    novel = fold_classes(schema.NUM_CLASSES, dataset.num_folds, fold, schema.interleaved(dataset))
    return tuple(c for c in range(schema.NUM_CLASSES) if c not in novel)
