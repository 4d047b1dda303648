"""Lists that name images of COCO, as the published codes have them: from the names of a file to image ids.

`coco` is the caller. The published lists are shuffled, and their order is kept: the first images of the list are the
queries of the protocols with `query_order=first_n`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fsseg.data.faults import Fault
from fsseg.data.sources.voc_lists import read_list
from fsseg.errors import UserError


def listed_images(name: str, key: str, image_ids: Sequence[str], origin: str) -> tuple[list[str], list[Fault]]:
    """Ids of the images that a list names, in its order, and a fault for every other name.

    A name is an image id, or its number alone: COCO's numbers are the same in all of its releases.

    Args:
        name: the list's file.
        key: configuration key that holds it, for messages.
        image_ids: all there are.
        origin: where those come from, for messages.

    Raises:
        UserError: there is no such file, or nothing in it.
    """
    if not (path := Path(name).expanduser()).is_file():
        raise UserError(f"{key}={name} is not a file", "give a text file with one image per line")
    names, faults = read_list(path, f"{key}={name}")
    known = set(image_ids)
    by_number = {int(digits[0]): i for i in image_ids if (digits := re.search(r"\d{1,18}$", i))}
    found: dict[str, None] = {}
    for listed in names:
        digits = re.search(r"\d{1,18}$", listed)
        image_id = listed if listed in known else by_number.get(int(digits[0])) if digits else None
        if image_id is None:
            fix = "take these names off the list, or point dataset.root at the data that it is of"
            faults.append(Fault("listed images without annotations", name, f"{listed} is not in {origin}", fix))
        elif image_id in found:
            faults.append(Fault("duplicate ids", name, f"{listed} names {image_id} again", "name each image once"))
        else:
            found[image_id] = None
    return list(found), faults
