"""The published list sizes, and how a list is counted for comparison. The sources' `compare` is the caller.

The sizes are part of the package (`facts/list_sizes.json`, which says where they come from).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from fsseg.config.schema import ProtocolConfig
from fsseg.data.lists import eligible_pairs, images_with
from fsseg.data.source import ClassIndex

MIN_PIXELS = 2048
"""The published lists take an (image, class) pair from this size on (2 * 32 * 32)."""


@cache
def facts() -> dict[str, Any]:
    """The published sizes."""
    text = resources.files("fsseg.data.setup").joinpath("facts/list_sizes.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def list_sizes(
    index: ClassIndex, classes: Sequence[int], drop: Sequence[int] = (), rule: str = "pixels"
) -> tuple[dict[int, int], int]:
    """(images per class, images) of the listed pairs, in images without a pixel of a class to `drop`.

    Args:
        rule: pixels (objects from `MIN_PIXELS` on) or grid, as `protocol.list_rule`.
    """
    protocol = ProtocolConfig(name="published", list_rule=rule, min_pixels=MIN_PIXELS)
    pairs = eligible_pairs(index, classes, protocol, images_with(index, drop))
    per_class = dict.fromkeys(classes, 0)
    for _, class_id in pairs:
        per_class[class_id] += 1
    return per_class, len({image for image, _ in pairs})
