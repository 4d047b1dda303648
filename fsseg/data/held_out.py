"""Training images that are held back, so that training can be watched on base classes (`eval.every_epochs`).

`fsseg.data.loader` makes the episodes of them; `fsseg plan` counts what is left to train on. A pure function of the
training lists and the run's seed, like every draw in `fsseg.data.episodes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from fsseg.config.schema import Config
from fsseg.data.episodes import permutation
from fsseg.data.lists import FoldLists, images_needed
from fsseg.errors import UserError


def count_held_back(images: int, share: float) -> int:
    """How many of `images` training images are held back, if no class is too small for it."""
    return max(1, round(share * images))


def hold_back(lists: FoldLists, cfg: Config) -> tuple[FoldLists, FoldLists | None]:
    """The lists to train on, and those of the images held back; None, and the lists as they are, by default.

    The images stand in an order drawn by the seed, and are taken from its beginning: first, one class after the other,
    until the class has the images of an episode, if at least as many are left to train on; then whatever comes,
    until `eval.base_share` of all are taken. An image is passed over if a class of it would have too few left to
    train on. It is held back for all of its classes, and nobody trains on it, neither as query nor as support.

    Raises:
        UserError: no class has an episode's images among those held back.
    """
    if not cfg.eval.every_epochs:
        return lists, None
    needed = images_needed(cfg.protocol, cfg.shot)
    held = _drawn(lists, needed, count_held_back(len(lists.images), cfg.eval.base_share), cfg.seed)
    trained, validated = _part(lists, needed, held, False), _part(lists, needed, held, True)
    if not validated.candidates:
        raise UserError(
            f"eval.base_share={cfg.eval.base_share} holds {len(held)} of {len(lists.images)} training images back: no "
            f"base class has the {needed} of them that a {cfg.shot}-shot episode needs",
            "raise eval.base_share, or set eval.every_epochs=0 to train without base-class validation",
        )
    return trained, validated


def _drawn(lists: FoldLists, needed: int, count: int, seed: int) -> set[str]:
    classes_of: dict[str, list[int]] = {image: [] for image in lists.images}
    for c, images in lists.candidates.items():
        for image in images:
            classes_of.setdefault(image, []).append(c)
    left = Counter({c: len(images) for c, images in lists.candidates.items()})
    taken: Counter[int] = Counter()
    held: set[str] = set()
    order = [lists.images[i] for i in permutation(len(lists.images), f"fsseg held back {seed}")]

    def take(image: str) -> None:
        if len(held) < count and image not in held and all(left[c] > needed for c in classes_of[image]):
            held.add(image)
            left.subtract(classes_of[image])
            taken.update(classes_of[image])

    for c in lists.classes:
        if len(lists.candidates[c]) >= 2 * needed:
            for image in order:
                if taken[c] >= needed or len(held) == count:
                    break
                if c in classes_of[image]:
                    take(image)
    for image in order:
        take(image)
    return held


def _part(lists: FoldLists, needed: int, held: Collection[str], inside: bool) -> FoldLists:
    """The lists of the images in `held`, or of the others; a class with too few of them for an episode is missing."""
    found = {c: tuple(i for i in ids if (i in held) == inside) for c, ids in lists.candidates.items()}
    candidates = {c: ids for c, ids in found.items() if len(ids) >= needed}
    rows = [
        (image, usable, tuple(c for c in as_query if c in candidates))
        for image, classes, as_query in zip(lists.images, lists.classes_of, lists.query_classes)
        if (image in held) == inside and (usable := tuple(c for c in classes if c in candidates))
    ]
    images, classes_of, query_classes = zip(*rows) if rows else ((), (), ())
    missing = tuple(sorted({*lists.missing_classes, *lists.candidates} - set(candidates)))
    return FoldLists(images, classes_of, candidates, missing, query_classes)
