"""Random changes of an annotation file: each is a fault told in words, or masks that have the pixels of the index."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from trees import coco_json

from fsseg.config.schema import CocoConfig
from fsseg.data.sources.coco import CocoSource
from fsseg.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

ODD: list[Any] = [
    None, True, False, 0, -1, 7, 0.5, 10**9, 2**32, 2**63, 10**400, 1e18, 1e308, float("nan"), float("inf"),
    -float("inf"), "", "0", "abc", "\n", "\ud800", "h", "hb0", "o" * 5000, [], [[]], [1, 2], [[1, 2, 3, 4]],
    [[1, 2, 3, 4, 5]], [600], {}, {"a": 1}, {"size": [20, 30], "counts": [600]}, {"size": [20, 30], "counts": []},
    {"size": [20, 30], "counts": "hb0"}, {"size": [20, 30], "counts": [100, -100, 600]},
]  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value below this one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*above, key)
        yield from places(below, (*above, key))


def change(content: dict[str, Any], random: Random) -> None:
    """Put something odd in some place, take that away, or move a number."""
    keys = ("images", "annotations") if random.random() < 0.9 else tuple(content)
    *way, last = random.choice(list(places({key: content[key] for key in keys})))
    inner: Any = content
    for key in way:
        inner = inner[key]
    kind = random.random()
    if kind < 0.2:
        del inner[last]
    elif kind < 0.5 and type(inner[last]) in (int, float):
        inner[last] = inner[last] * random.choice([-1, 1, 2, 1e6]) + random.choice([-1, 0, 0.3, 1])
    else:
        inner[last] = copy.deepcopy(random.choice(ODD))


@pytest.mark.slow
def test_random_annotations_are_told_or_read_right(tmp_path: Path) -> None:
    random = Random(0)
    told: list[str] = []
    for number in range(2000):
        content = coco_json()
        change(content, random)
        root = tmp_path / str(number)
        (root / "annotations").mkdir(parents=True)
        (root / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
        coco = CocoSource(CocoConfig(name="coco20i", root=str(root), coco_masks=("painted", "union")[number % 2]))
        try:
            index = coco.index("val")
        except UserError as error:
            told.append(str(error))
            continue
        for image, class_id, pixels in zip(index.pair_image, index.pair_class, index.pair_pixels):
            masks = [coco.mask("val", index.image_ids[image], int(class_id)) for _ in range(2)]
            assert [int((mask == 1).sum()) for mask in masks] == [pixels, pixels], content
    assert 500 < len(told) < 1950
    assert all("instances_val2014.json" in text and text.encode() for text in told)
