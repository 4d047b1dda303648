"""Overlays of predicted masks: tint inside, border on both sides, the background dimmed."""

from __future__ import annotations

import numpy as np

from fsseg.draw.overlays import class_colours, overlay


def test_a_class_has_its_tint_and_a_border_and_the_background_is_dimmed() -> None:
    image, labels = np.full((20, 20, 3), 160, np.uint8), np.zeros((20, 20), np.uint8)
    labels[5:15, 5:15] = 2
    colours = np.array([[0, 0, 0], [9, 9, 9], [240, 0, 80]], np.uint8)
    out = overlay(image, labels, colours)
    assert out[0, 0].tolist() == [100] * 3  # 5/8 of 160
    assert out[10, 10].tolist() == [190, 100, 130]  # and 3/8 of the colour
    assert out[5, 10].tolist() == [240, 0, 80]
    assert out[4, 10].tolist() == [255] * 3
    assert out.shape == image.shape


def test_class_numbers_come_to_the_size_of_a_reduced_image() -> None:
    labels = np.zeros((40, 80), np.uint8)
    labels[:, 40:] = 1
    out = overlay(np.zeros((10, 20, 3), np.uint8), labels, class_colours(1))
    assert out.shape == (10, 20, 3)
    assert (out[:, :9] == 0).all()
    assert (out[:, 11:].max(axis=(1, 2)) > 0).all()


def test_every_number_has_a_colour_of_its_own() -> None:
    colours = class_colours(60)
    assert colours.shape == (61, 3)
    assert len({tuple(c) for c in colours.tolist()}) == 61
    assert colours[0].tolist() == [0, 0, 0]
