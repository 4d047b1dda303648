"""Label maps of base classes, and the images that a base learner sees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_source import FakeSource, index_of

from fsseg.config.schema import DatasetConfig, EvalConfig, MethodConfig, ProtocolConfig, TrainConfig
from fsseg.data.base_images import BaseClasses, base_evaluation_plan, base_training_plan, labelled_images
from fsseg.data.loader import ImageFiles, training_loader
from fsseg.errors import UserError

IMAGES: Any = {
    "a": {2: 100, 5: 100}, "b": {3: 100, 0: 100}, "c": {7: 100}, "d": {0: 100}, "e": {2: 0, 4: 100}, "f": {6: 100},
    "g": {2: 100, 3: 100}, "h": {4: 100, 6: 100}, "i": {5: 100, 7: 100},
}  # fmt: skip
"""Fold 0 holds out classes 0 and 1: `b` has a novel class and a base class, `d` a novel one alone."""


def settings(novel: str = "drop", **changes: Any) -> Any:
    values = {
        "fold": 0, "shot": 1, "seed": 3, "num_workers": 0, "model": MethodConfig(name="pspnet"),
        "dataset": DatasetConfig(name="fake", root="", image_size=41, rotate_degrees=10.0, scale_range=[0.5, 2.0]),
        "protocol": ProtocolConfig(name="x", min_pixels=50, novel_in_training=novel, train_query="pair"),
        "train": TrainConfig(epochs=1, batch_size=3, lr=0.1), "eval": EvalConfig(),
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


class Painted:
    """Masks of two classes by hand; class 1 is COCO's crowd in places, and the two overlap in the last column."""

    name, classes = "painted", ("x", "y", "z")
    masks = ([[1, 0, 0, 1]], [[0, 255, 1, 1]], [[255, 0, 0, 0]])

    def mask(self, split: str, image_id: str, class_id: int, ignore_classes: Any = ()) -> Any:
        return np.array(self.masks[class_id], dtype=np.uint8)


def test_a_label_map_by_hand() -> None:
    files: Any = ImageFiles(Painted(), "train")  # type: ignore[arg-type]

    def row(classes: tuple[int, ...], present: tuple[int, ...]) -> list[int]:
        (labels,) = BaseClasses(classes, {"i": present}, ()).label_map(files, "i").tolist()
        return labels

    assert row((0, 1, 2), (0, 1)) == [1, 255, 2, 2]  # a crowd is left open; the later class is on top
    assert row((0, 1, 2), (0, 2)) == [1, 0, 0, 1]  # what one leaves open and another covers is of that one
    assert row((1, 2), (1, 2)) == [255, 255, 1, 1]  # places in the fold, not ids


@pytest.mark.parametrize(
    ("novel", "images", "pixel"),
    [("drop", list("aceghif"), None), ("background", list("abcefghi"), 0), ("ignore", list("abcefghi"), 255)],
)
def test_images_and_novel_pixels_follow_the_protocol(novel: str, images: list[str], pixel: int | None) -> None:
    source: Any = FakeSource({"train": IMAGES, "val": IMAGES})
    plan = base_training_plan(source, settings(novel))
    assert sorted(plan.lists.images) == sorted(images)
    assert len(plan.sampler) == len(images)  # each once an epoch, although the protocol's episodes go by pairs
    drawn = [plan.sampler[n] for n in range(len(images))]
    assert sorted(spec.query_id for spec in drawn) == sorted(images)
    assert {spec.support_ids for spec in drawn} == {()}
    assert plan.base is not None
    assert plan.base.classes == (2, 3, 4, 5, 6, 7)
    assert plan.base.present["e"] == (2, 4)  # the crowd of class 2 as well, which is in no list
    assert base_evaluation_plan(source, settings(novel)).images == plan.lists.images
    if pixel is not None:
        labels = plan.base.label_map(ImageFiles(source, "train", plan.ignore_classes), "b")
        assert labels[10, 5] == pixel  # a pixel of class 0
        assert labels[10, 48] == 2  # of class 3, the second base class


def test_a_batch_has_no_supports_and_the_labels_lie_where_the_colours_are() -> None:
    source: Any = FakeSource({"train": IMAGES, "val": IMAGES})
    cfg = settings(dataset=DatasetConfig(name="fake", root="", image_size=41, scale_range=[0.5, 2.0]))
    seen: set[int] = set()
    for batch in training_loader(source, cfg, 0, 8, base_training_plan(source, cfg)):
        assert batch.support_images.shape == (3, 0, 3, 41, 41)
        assert batch.support_masks.shape == (3, 0, 41, 41)
        for image, labels, picture in zip(batch.query_image, batch.query_mask, batch.query_picture):
            assert ((labels == 255) == ~picture).all()  # nothing here is left open but the padding
            red = (image[0] * 0.229 + 0.485) * 255
            for label in set(labels.unique().tolist()) - {0, 255}:
                ours = red[labels == label]
                if len(ours) >= 20:  # not the rim of a block alone
                    seen.add(label)
                    # a block of class c is of red 10 c + 20, and label 1 is class 2
                    assert abs(float(ours.median()) - (10 * (label + 1) + 20)) < 4
    assert seen == {1, 2, 3, 4, 5, 6}


def test_batches_depend_on_the_step_alone() -> None:
    source: Any = FakeSource({"train": IMAGES, "val": IMAGES})
    cfg = settings()
    plan = base_training_plan(source, cfg)
    whole = list(training_loader(source, cfg, 0, 4, plan))
    for step, batch in enumerate(training_loader(source, cfg, 2, 2, plan), start=2):
        assert torch.equal(batch.query_image, whole[step].query_image)
        assert torch.equal(batch.query_mask, whole[step].query_mask)
    (part, *_) = training_loader(source, cfg, 0, 4, plan, range(1, 3))  # what one of several processes loads
    assert torch.equal(part.query_mask, whole[0].query_mask[1:])


def test_evaluation_images_come_in_order_with_labels_of_their_own_size() -> None:
    source: Any = FakeSource({"train": IMAGES, "val": IMAGES})
    plan = base_evaluation_plan(source, settings())
    items = list(labelled_images(source, settings(), plan, plan.images[:2]))
    assert [item.labels.shape for item in items] == [(40, 60)] * 2
    assert [item.valid_size for item in items] == [(27, 41)] * 2
    assert set(np.unique(items[0].labels).tolist()) == {0, 1, 4}  # image a: classes 2 and 5
    assert items[0].mask[27:].eq(255).all()


def test_a_split_without_a_base_class_is_two_lines() -> None:
    source: Any = FakeSource({"train": {"a": {0: 100}, "b": {0: 100}}, "val": {}})
    with pytest.raises(UserError, match="no base class has the 2 images"):
        base_training_plan(source, settings())


def test_present_classes_are_those_of_the_index() -> None:
    base = BaseClasses.of(index_of({"a": {3: 1, 0: 5}, "b": {1: 9}}), (0, 1), ProtocolConfig(name="x"), 4)
    assert (base.classes, base.present, base.ignore_classes) == ((2, 3), {"a": (3,)}, ())
