"""Masks at feature size by hand, and gathering."""

from __future__ import annotations

import model_reference as reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsseg.errors import UserError
from fsseg.model.blocks.tokens import (
    Positions,
    area_average,
    downsample_masks,
    inside_and_outside,
    picture_cells,
    to_tokens,
    unless_full,
)


def masks_of(*pixels: tuple[int, int], side: int = 17) -> torch.Tensor:
    mask = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    for y, x in pixels:
        mask[0, 0, y, x] = 1
    return mask


@pytest.mark.parametrize(("side", "cells"), [(17, 3), (13, 4), (9, 9)])
def test_area_average_is_the_mean_around_each_cells_pixel(side: int, cells: int) -> None:
    image = torch.randn(2, 3, side, side, dtype=torch.float64)
    result = area_average(image, (cells, cells))
    for b in range(2):
        np.testing.assert_allclose(result[b], reference.area_average(image[b].numpy(), cells), atol=1e-12)


def test_a_cell_is_foreground_from_half_of_its_area_on() -> None:
    # Stride 8: the middle cell covers pixels 4..12 on both sides, 81 of them; half is 40.5.
    for rows, expected in ((4, False), (5, True)):
        mask = masks_of(side=17)
        mask[0, 0, 4 : 4 + rows, 4:13] = 1
        mask[0, 0, 0:5, 0:5] = 1  # keeps the mask from vanishing
        assert downsample_masks(mask, (3, 3))[0, 0, 1, 1].item() is expected


def test_exactly_half_of_its_area_is_enough() -> None:
    # Stride 2: a corner cell covers four pixels. The last one is full, so that the mask does not vanish.
    mask = masks_of((0, 0), (0, 1), (0, 4), (3, 3), (3, 4), (4, 3), (4, 4), side=5)
    assert downsample_masks(mask, (3, 3))[0, 0].nonzero().tolist() == [[0, 0], [2, 2]]


def test_ignored_pixels_are_not_foreground() -> None:
    mask = torch.full((1, 1, 17, 17), 255, dtype=torch.uint8)
    mask[0, 0, :5, :5] = 1
    expected = torch.zeros(3, 3, dtype=torch.bool)
    expected[0, 0] = True
    assert torch.equal(downsample_masks(mask, (3, 3))[0, 0], expected)


def test_a_vanishing_mask_keeps_its_best_covered_cell() -> None:
    mask = masks_of((1, 1), (15, 9), (15, 8))  # cell (0, 0) has 1 of 25 pixels, cell (2, 1) has 2 of 45
    result = downsample_masks(mask, (3, 3))[0, 0]
    assert result.nonzero().tolist() == [[2, 1]]


def test_other_shots_keep_their_masks_when_one_vanishes() -> None:
    masks = torch.zeros(1, 2, 17, 17, dtype=torch.uint8)
    masks[0, 0, :, :] = 1
    masks[0, 1, 8, 8] = 1
    result = downsample_masks(masks, (3, 3))
    assert result[0, 0].all()
    assert result[0, 1].nonzero().tolist() == [[1, 1]]


def test_vanishing_is_an_error_where_asked_for_and_names_the_image() -> None:
    with pytest.raises(UserError, match="cat_7") as caught:
        downsample_masks(masks_of((8, 8)), (3, 3), "error", [["cat_7"]])
    assert "model.vanished_mask" in caught.value.fix


@pytest.mark.parametrize("value", [0, 255])
def test_an_empty_mask_is_an_error_that_names_the_image(value: int) -> None:
    masks = torch.ones(2, 2, 17, 17, dtype=torch.uint8)
    masks[1, 0] = value
    with pytest.raises(UserError, match="dog_3"):
        downsample_masks(masks, (3, 3), names=[["dog_1", "dog_2"], ["dog_3", "dog_4"]])


@given(data=st.data(), batch=st.integers(1, 4), count=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_gather_keeps_raster_order_and_pads_with_zeros(data: st.DataObject, batch: int, count: int) -> None:
    rows = data.draw(st.lists(st.lists(st.booleans(), min_size=count, max_size=count), min_size=batch, max_size=batch))
    features = torch.arange(1.0, batch * count * 2 + 1).view(batch, count, 2)
    tokens = Positions.under(torch.tensor(rows)).gather(features)
    assert tokens.counts == [sum(row) for row in rows]
    assert tokens.values.shape[1] == max(tokens.counts)
    for b, row in enumerate(rows):
        expected = [features[b, i].tolist() for i in range(count) if row[i]]
        assert tokens.values[b, : len(expected)].tolist() == expected
        assert (tokens.values[b, len(expected) :] == 0).all()
        assert tokens.valid[b].tolist() == [True] * len(expected) + [False] * (tokens.values.shape[1] - len(expected))
        mean = np.mean(expected, axis=0) if expected else [0, 0]
        np.testing.assert_allclose(tokens.mean()[b], mean, rtol=1e-6)


def test_mask_is_none_only_if_nothing_is_padded() -> None:
    features = torch.randn(2, 3, 4)
    assert Positions.under(torch.tensor([[True, False, True], [False, True, True]])).gather(features).mask is None
    assert Positions.under(torch.tensor([[True, False, True], [False, True, False]])).gather(features).mask is not None


def test_with_values_clears_padding() -> None:
    tokens = Positions.under(torch.tensor([[True, True], [True, False]])).gather(torch.randn(2, 2, 3))
    changed = tokens.with_values(torch.ones(2, 2, 5))
    assert changed.values[1, 1].abs().sum() == 0
    assert changed.values.sum() == 15


def test_flatten_is_in_raster_order() -> None:
    maps = torch.arange(12.0).view(1, 2, 2, 3)
    assert to_tokens(maps)[0, 4].tolist() == [maps[0, 0, 1, 1].item(), maps[0, 1, 1, 1].item()]


def test_a_cell_is_padding_if_its_own_pixel_is() -> None:
    pictures = torch.ones(3, 9, 9, dtype=torch.bool)
    pictures[0, 4:] = False  # cells lie at pixels 0, 4 and 8
    pictures[1, :, 5:] = False
    pictures[2, 1:4] = False  # between the cells
    expected = torch.ones(3, 3, 3, dtype=torch.bool)
    expected[0, 1:], expected[1, :, 2] = False, False
    found = picture_cells(pictures, (3, 3))
    assert torch.equal(found, expected)
    assert picture_cells(pictures[2:], (3, 3)).all()
    assert unless_full(found) is found
    assert unless_full(picture_cells(pictures[2:], (3, 3))) is None


def test_a_picture_without_a_cell_counts_as_picture_everywhere() -> None:
    pictures = torch.zeros(2, 9, 9, dtype=torch.bool)
    pictures[:, 1:4] = True  # cells lie at pixels 0, 4 and 8
    assert picture_cells(pictures, (3, 3)).all()
    pictures[0, :5] = True
    found = picture_cells(pictures, (3, 3))
    assert found is not None
    assert found.tolist() == [[[True] * 3, [True] * 3, [False] * 3], [[True] * 3] * 3]


def test_split_leaves_out_what_is_not_valid() -> None:
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    valid = torch.tensor([[True, True, False, True], [False, True, True, False]])
    inside, outside = inside_and_outside(mask, valid)
    values = torch.arange(4.0).view(1, 4, 1).expand(2, -1, -1)
    assert (inside.counts, outside.counts) == ([1, 1], [2, 1])
    assert inside.gather(values).values.flatten().tolist() == [0, 2]
    assert outside.gather(values).values[..., 0].tolist() == [[1, 3], [1, 0]]


def test_the_number_of_tokens_may_be_rounded_up_as_far_as_there_are_positions() -> None:
    mask = torch.tensor([[True, False, True, True, False, False, True], [False] * 6 + [True]])
    features = torch.arange(14.0).view(2, 7, 1)
    for multiple, size in ((1, 4), (3, 6), (5, 5), (8, 7)):
        tokens = Positions.under(mask, multiple=multiple).gather(features)
        assert tokens.values[0, :, 0].tolist() == [0, 2, 3, 6] + [0] * (size - 4)
        assert tokens.values[1, :, 0].tolist() == [13] + [0] * (size - 1)
        assert tokens.valid.sum(1).tolist() == [4, 1] == tokens.counts
        assert not tokens.full


def test_patches_cover_the_image() -> None:
    image = torch.arange(36.0).reshape(1, 1, 6, 6)
    rows = [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5], [27.5, 29.5, 31.5]]  # means of 2 x 2: the first of 0, 1, 6, 7
    assert area_average(image, (3, 3), patches=True)[0, 0].tolist() == rows
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    mask[..., 1:4, 2:4] = 1  # half of the upper patch in the middle, all of the one below
    found = downsample_masks(mask, (3, 3), patches=True)[0, 0]
    assert found.nonzero().tolist() == [[0, 1], [1, 1]]
    picture = torch.zeros(1, 6, 6, dtype=torch.bool)
    picture[:, :3, :] = True  # the middle of the second row of patches is its pixel 3
    assert picture_cells(picture, (3, 3), patches=True)[0].tolist() == [[True] * 3, [False] * 3, [False] * 3]


def test_mixed_precision_on_a_cpu_has_few_numbers_of_tokens_and_the_same_means() -> None:
    features = torch.randn(2, 200, 8)
    numbers = set()
    for count in (1, 5, 63, 64, 65, 199, 200):
        mask = torch.zeros(2, 200, dtype=torch.bool)
        mask[0, :count], mask[1, 3:4] = True, True
        with torch.autocast("cpu", torch.bfloat16):
            tokens = Positions.where(mask).gather(features)
            inside, outside = inside_and_outside(mask)
            complement = outside.gather(features).mean()
        numbers |= {tokens.values.shape[1], inside.valid.shape[1], outside.valid.shape[1]}
        expected = torch.stack([features[0, :count].mean(0), features[1, 3]])
        torch.testing.assert_close(tokens.mean(), expected)
        if count < 200:
            torch.testing.assert_close(complement[0], features[0, count:].mean(0))
    assert numbers == {64, 128, 200}  # all positions at most
    assert Positions.where(mask[:, :70]).valid.shape[1] == 70  # elsewhere as many as there are
