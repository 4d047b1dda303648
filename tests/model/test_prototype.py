"""Prototype matching on features chosen by hand."""

from __future__ import annotations

import math

import model_samples as samples
import numpy as np
import pytest
import torch
from fake_source import FakeSource
from model_samples import Pixels

from fsseg.config.schema import BackboneConfig
from fsseg.data.loader import EpisodeDataset
from fsseg.data.transforms import TrainTransform
from fsseg.data.types import EpisodeSpec, collate
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.model.prototype import Prototype, otsu


def example() -> tuple:
    """Support: red square on green. Query: red left third, green elsewhere."""
    masks = torch.zeros(1, 1, 17, 17, dtype=torch.uint8)
    masks[..., :5, :5] = 1
    batch = samples.batch(masks, 17)
    red, green = torch.tensor([1.0, 0.1, 0.0]), torch.tensor([0.1, 1.0, 0.0])
    batch.support_images[:] = torch.where(masks[:, :, None] == 1, red.view(3, 1, 1), green.view(3, 1, 1))
    columns = (torch.arange(17) < 5).expand(17, 17)
    batch.query_image[:] = torch.where(columns, red.view(3, 1, 1), green.view(3, 1, 1))
    return batch, columns[::8, ::8]


@pytest.mark.parametrize("threshold", ["otsu", "background"])
def test_finds_what_looks_like_the_support(threshold: str) -> None:
    batch, expected = example()
    model = Prototype(Pixels(), samples.prototype(threshold=threshold))
    prediction = model(batch)
    assert torch.equal(prediction.rounds[0][0].argmax(0).bool(), expected)
    assert prediction.logits.shape == (1, 2, 17, 17)


def test_otsu_cuts_between_the_cells_of_the_image_alone() -> None:
    # Cells 3 x 3 at pixels 0, 8, 16. Cosines with the support's (1, 0, 0): 1, 0.8 and 0.6 in the image's two columns,
    # and -1 in the padding, which would otherwise be cut from all the rest.
    masks = torch.zeros(1, 1, 17, 17, dtype=torch.uint8)
    masks[..., :5, :5] = 1
    batch = samples.batch(masks, 17)
    batch.support_images[:] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    batch.query_image[:] = torch.tensor([-1.0, 0.0, 0.0]).view(3, 1, 1)
    batch.query_image[..., :9] = torch.tensor([0.6, 0.8, 0.0]).view(3, 1, 1)
    batch.query_image[..., :1] = torch.tensor([0.8, 0.6, 0.0]).view(3, 1, 1)
    batch.query_image[..., 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    model = Prototype(Pixels(), samples.prototype(threshold="otsu"))
    for width in (9, 16):  # pixel 8 is the last one, or the last before the third column of cells
        batch.query_picture[:] = torch.arange(17) < width
        logits = model(batch).rounds[0][0]
        # six values 1, 0.8, 0.8, 0.6, 0.6, 0.6: left and right of 0.7 are 3 x 3 x (0.8667 - 0.6)^2 = 0.64, left and
        # right of 0.9 are 1 x 5 x (1 - 0.68)^2 = 0.512
        assert logits[0].unique().item() == pytest.approx(20 * 0.7, abs=1e-4)
    batch.query_picture[:] = False
    batch.query_picture[0, :8, :9] = True  # one row of cells: 1 and 0.6
    assert model(batch).rounds[0][0, 0].unique().item() == pytest.approx(20 * 0.8, abs=1e-4)
    batch.query_picture[:] = True  # three cells of -1: now they are the other side
    assert model(batch).rounds[0][0, 0].unique().item() == pytest.approx(20 * -0.2, abs=1e-4)


def test_otsu_leaves_out_the_corners_that_a_rotation_turns_in() -> None:
    source = FakeSource({"train": {"a": {0: 100}, "b": {0: 100}}, "val": {}})
    specs = [EpisodeSpec(number, 0, "a", ("b",)) for number in range(4)]
    transform = TrainTransform(65, (1.0, 1.0), rotate_degrees=60.0, crop_keep=0.0)
    model = Prototype(Pixels(), samples.prototype(threshold="otsu"))
    for episode in EpisodeDataset(source, "train", specs, transform):
        prediction = model(collate([episode]))
        cells = episode.query_image[:, ::8, ::8]
        corners = (cells == 0).all(0)  # padding is the mean colour exactly, and no pixel of a picture is
        height, width = (math.ceil(side / 8) for side in episode.valid_size)
        assert corners[:height, :width].any()
        assert prediction.support_foreground is not None
        cosines = torch.cosine_similarity(cells, prediction.support_foreground[0, :, None, None], dim=0)
        expected = otsu(cosines[~corners][None]).item()
        assert prediction.rounds[0][0, 0].unique().item() == pytest.approx(20 * expected, abs=1e-4)


def test_the_background_is_what_the_support_mask_calls_0() -> None:
    # A row of cells each: foreground (1, 0, 0); background (0, 1, 0); annotated 255 and padding (0, 0, 1).
    masks = torch.full((1, 1, 17, 17), 255, dtype=torch.uint8)
    masks[..., :5, :] = 1
    masks[..., 5:13, :] = 0
    batch = samples.batch(masks, 17)
    for rows, axis in ((slice(0, 5), 0), (slice(5, 13), 1), (slice(13, 17), 2)):
        batch.support_images[..., rows, :] = torch.eye(3)[axis].view(3, 1, 1)
    batch.query_image[:] = torch.tensor([0.0, 0.6, 0.8]).view(3, 1, 1)
    logits = Prototype(Pixels(), samples.prototype(threshold="background"))(batch).rounds[0]
    assert logits[0, 0].unique().item() == pytest.approx(20 * 0.6, abs=1e-4)
    assert logits[0, 1].unique().item() == pytest.approx(0.0, abs=1e-6)


def test_prototype_is_the_mean_over_all_shots_foreground() -> None:
    batch, _ = example()
    two = samples.batch(batch.support_masks.repeat(1, 2, 1, 1), 17)
    two.support_images = torch.cat((batch.support_images, 3 * batch.support_images), 1)
    two.support_masks[0, 1, :5, 5:14] = 1  # the second shot's mask covers two cells: red, and green
    prediction = Prototype(Pixels(), samples.prototype())(two)
    expected = (np.array([1, 0.1, 0]) + 3 * np.array([1, 0.1, 0]) + 3 * np.array([0.1, 1, 0])) / 3
    assert prediction.support_foreground is not None
    np.testing.assert_allclose(prediction.support_foreground[0], expected, rtol=1e-6)


def test_trains_nothing_and_says_so() -> None:
    model = build_model(samples.cell(samples.prototype(), BackboneConfig("tiny")))
    assert not model.trainable
    assert not any(p.requires_grad for p in model.parameters())
    batch, _ = example()
    prediction = model(batch)
    assert not prediction.logits.requires_grad
    with pytest.raises(UserError, match="prototype"):
        model.loss(prediction, batch.query_mask)


def test_otsu_finds_the_cut_with_the_largest_variance_between_the_sides() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 10, 40):
        values = rng.normal(size=count).astype(np.float32)
        ordered = np.sort(values.astype(float))
        spread = []
        for k in range(1, count):
            left, right = ordered[:k], ordered[k:]
            spread.append(k * (count - k) * (right.mean() - left.mean()) ** 2)
        best = int(np.argmax(spread))
        cut = otsu(torch.from_numpy(values)[None]).item()
        assert cut == pytest.approx((ordered[best] + ordered[best + 1]) / 2, abs=1e-6)


def test_otsu_calls_nothing_foreground_where_all_values_are_equal() -> None:
    for values in (torch.full((1, 6), 0.3), torch.full((1, 1), 0.3)):
        assert not (values > otsu(values)[:, None]).any()
