"""Class names, COCO's category ids, and which classes each fold holds out. Called by every source and by the reports.

Facts, not choices: the class orders are those of VOC2012 (alphabetical) and of COCO's `instances_*.json` (by category
id); the folds are those of PASCAL-5i (Shaban et al., BMVC 2017) and COCO-20i (Nguyen and Todorovic, ICCV 2019).
"""

from __future__ import annotations

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

NUM_FOLDS = 4


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


def novel_classes(dataset: str, fold: int, contiguous: bool = False, num_folds: int = NUM_FOLDS) -> tuple[int, ...]:
    """Held-out class_ids of a fold of `pascal5i`, `shapes5i` or `coco20i`.

    Args:
        contiguous: COCO-20i only: fold f holds 20f..20f+19, a variant seen in some papers, instead of f, f+4, f+8, ...

    Raises:
        UserError: unknown data set or fold.
    """
    if dataset in ("pascal5i", "shapes5i"):
        return fold_classes(20, num_folds, fold)
    if dataset == "coco20i":
        return fold_classes(80, num_folds, fold, interleaved=not contiguous)
    raise UserError(f"dataset.name={dataset} has no folds", "choose dataset= pascal5i, coco20i or shapes5i")


def base_classes(dataset: str, fold: int, contiguous: bool = False, num_folds: int = NUM_FOLDS) -> tuple[int, ...]:
    """The classes that are trained on when `fold` is held out: all that `novel_classes` does not name."""
    novel = set(novel_classes(dataset, fold, contiguous, num_folds))
    return tuple(c for c in range(80 if dataset == "coco20i" else 20) if c not in novel)
