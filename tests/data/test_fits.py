"""Where `protocol.fit=squash` and `pfenet` put image, mask and padding: sizes by hand, pixels by OpenCV."""

from __future__ import annotations

from random import Random

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from fsseg.data.pixels import Sample
from fsseg.data.transforms import EvalTransform, TrainTransform

FITS = ("longer_side", "squash", "pfenet")
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def levels(sample: Sample) -> NDArray[np.float64]:
    """The image back in 0..255, (S, S, 3)."""
    return (sample.image.numpy().transpose(1, 2, 0) * STD + MEAN) * 255


def picture(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Red tells the column, green the row; blue is an ellipse, which the mask marks; a frame of 255 in the mask."""
    rows, columns = np.mgrid[:height, :width]
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[..., 0] = columns * 255 // max(1, width - 1)
    image[..., 1] = rows * 255 // max(1, height - 1)
    inside = ((rows + 0.5) / height - 0.6) ** 2 / 0.09 + ((columns + 0.5) / width - 0.4) ** 2 / 0.04 < 1
    image[..., 2] = np.where(inside, 255, 0)
    mask = inside.astype(np.uint8)
    mask[0] = 255
    return image, mask


def scaled(image: NDArray[np.uint8], mask: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray, NDArray]:
    """To (height, width): the image by OpenCV, the mask by the rule of pixel centres, in whole numbers."""
    rows, columns = ([(2 * i + 1) * old // (2 * new) for i in range(new)] for old, new in zip(mask.shape, size))
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), mask[rows][:, columns]


def assert_filled(sample: Sample, image: NDArray, mask: NDArray, corner: tuple[int, int], black: bool) -> None:
    """The square holds exactly this picture at `corner`, and padding."""
    side = sample.mask.shape[0]
    region = np.zeros((side, side), dtype=bool)
    region[corner[0] : corner[0] + image.shape[0], corner[1] : corner[1] + image.shape[1]] = True
    assert (sample.picture.numpy() == region).all()
    assert sample.valid_size == image.shape[:2]
    padding = sample.image.numpy()[:, ~region]
    expected = -MEAN / STD if black else np.zeros(3)  # (0 - mean) / std: a black pixel, normalised
    assert padding == pytest.approx(np.broadcast_to(expected[:, None], padding.shape), abs=1e-6)
    assert (levels(sample)[~region].round() == (0 if black else [124, 116, 104])).all()
    assert (sample.mask.numpy()[~region] == 255).all()
    assert (sample.mask.numpy()[region].reshape(mask.shape) == mask).all()
    difference = np.abs(levels(sample)[region].reshape(image.shape) - image)
    assert difference[..., :2].max() <= 4  # ramps: anti-aliasing changes them little, and at the edges only
    assert difference[..., 2].mean() <= 4


SIZES_AT_TEST = [
    # (height, width), S -> the longer side to S, the other in proportion, both down to a multiple of 8
    ((375, 500), 473, (352, 472)),  # 354.75 and 473
    ((500, 333), 473, (472, 312)),  # 473 and 315.018
    ((500, 500), 473, (472, 472)),
    ((480, 640), 641, (480, 640)),  # 480.75 and 641
    ((640, 427), 641, (640, 424)),  # 641 and 427.67
    ((20, 30), 65, (40, 64)),  # 43.3 and 65: enlarged
    ((65, 65), 65, (64, 64)),
    ((300, 90), 97, (96, 24)),  # 97 and 29.1
    ((90, 300), 80, (24, 80)),  # 24 and 80
]


@pytest.mark.parametrize(("size", "side", "expected"), SIZES_AT_TEST)
def test_pfenet_at_test_lies_in_the_upper_left_corner_of_a_black_square(size, side, expected) -> None:
    image, mask = picture(*size)
    assert_filled(EvalTransform(side, "pfenet")(image, mask), *scaled(image, mask, expected), (0, 0), black=True)


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (50, 50), (80, 80), (30, 90), (400, 60)])
def test_squash_fills_the_square_at_test_and_in_training(size: tuple[int, int]) -> None:
    image, mask = picture(*size)
    big, big_mask = scaled(image, mask, (80, 80))
    assert_filled(EvalTransform(80, "squash")(image, mask), big, big_mask, (0, 0), black=False)
    for seed in range(3):  # neither a scale nor a crop
        train = TrainTransform(80, (0.5, 2.0), flip_probability=0.0, fit="squash")
        assert_filled(train(image, mask, Random(seed)), big, big_mask, (0, 0), black=False)
    mirrored = TrainTransform(80, (0.5, 2.0), flip_probability=1.0, fit="squash")(image, mask, Random(0))
    assert_filled(mirrored, big[:, ::-1], big_mask[:, ::-1], (0, 0), black=False)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("size", "scale", "expected", "corner"),
    [
        # image, factor -> its scaled size, and int(padding / 2) above and left of the part in the square of 65
        ((40, 90), 1.0, (40, 90), (12, 0)),  # 25 rows of padding: 12 above, 13 below
        ((40, 90), 0.9, (36, 81), (14, 0)),
        ((20, 31), 1.0, (20, 31), (22, 17)),
        ((20, 31), 1.5, (30, 46), (17, 9)),  # 46.5 to the even number
        ((64, 65), 1.0, (64, 65), (0, 0)),
        ((130, 100), 0.5, (65, 50), (0, 7)),
        ((200, 170), 1.1, (220, 187), (0, 0)),
    ],
)
def test_pfenet_in_training_scales_the_image_of_its_own_size_and_pads_around_it(
    size: tuple[int, int], scale: float, expected: tuple[int, int], corner: tuple[int, int], flip: bool
) -> None:
    image, mask = picture(*size)
    transform = TrainTransform(65, (scale, scale), flip_probability=float(flip), fit="pfenet")
    for seed in range(4):
        plan = transform.place(mask, Random(seed))
        assert plan.scaled == expected
        big, big_mask = scaled(image, mask, expected)
        window = np.s_[plan.top : plan.top + 65, plan.left : plan.left + 65]
        part, part_mask = big[window], big_mask[window]
        if flip:
            part, part_mask = part[:, ::-1], part_mask[:, ::-1]
        assert part.shape[:2] == (min(65, expected[0]), min(65, expected[1]))
        assert_filled(transform(image, mask, Random(seed)), part, part_mask, corner, black=False)


def test_pfenets_crop_keeps_85_percent_where_some_crop_does() -> None:
    image, mask = np.zeros((100, 120, 3), dtype=np.uint8), np.zeros((100, 120), dtype=np.uint8)
    mask[30:80, 10:60] = 1
    transform = TrainTransform(65, (0.9, 1.1), flip_probability=0.5, fit="pfenet")
    shares, corners = [], set()
    for seed in range(150):
        plan = transform.place(mask, Random(seed))
        _, whole = scaled(image, mask, plan.scaled)
        seen = (transform(image, mask, Random(seed)).mask == 1).sum()
        shares.append(int(seen) / (whole == 1).sum())
        corners.add((plan.top, plan.left))
    assert min(shares) >= 0.84  # pixels of the scaled mask are counted here, those of the original there
    assert min(shares) < 0.95
    assert len(corners) > 50


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("angle", [0.0, 25.0])
def test_the_same_draw_gives_the_same_sample(fit: str, angle: float) -> None:
    image, mask = picture(120, 90)
    transform = TrainTransform(65, (0.6, 1.6), angle, 0.5, 0.5, fit=fit)
    samples = [transform(image, mask, Random(f"fsseg transform 0 {number} query")) for number in (5, 5, 6)]
    assert torch.equal(samples[0].image, samples[1].image)
    assert torch.equal(samples[0].mask, samples[1].mask)
    assert not torch.equal(samples[0].image, samples[2].image)


@settings(deadline=None)
@given(
    height=st.integers(1, 150), width=st.integers(1, 150), y=st.floats(0, 0.999), x=st.floats(0, 0.999),
    object_size=st.integers(1, 60), fit=st.sampled_from(FITS), side=st.sampled_from([33, 64, 65]),
    degrees=st.sampled_from([0.0, 30.0]), blur=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_an_object_in_the_image_is_in_the_network_input(
    height, width, y, x, object_size, fit, side, degrees, blur, seed
) -> None:
    mask = np.zeros((height, width), dtype=np.uint8)
    top, left = int(y * height), int(x * width)
    mask[top : top + object_size, left : left + object_size] = 1
    image = np.where(mask[..., None] == 1, 255, 0).astype(np.uint8).repeat(3, 2)
    train = TrainTransform(side, (0.5, 2.0), degrees, blur, 0.5, fit=fit)
    evaluation = EvalTransform(side, fit)
    for sample in (train(image, mask, Random(seed)), evaluation(image, mask, keep_foreground=True)):
        marked, shown = (sample.mask == 1).numpy(), sample.picture.numpy()
        assert marked.any()
        assert shown[marked].all()
        assert (sample.mask.numpy()[~shown] == 255).all()
        assert not (sample.mask.numpy()[shown] == 255).any()  # none is annotated
        assert sample.valid_size[0] <= side
        assert sample.valid_size[1] <= side
        assert shown.sum() <= sample.valid_size[0] * sample.valid_size[1]
        if fit == "squash":
            assert sample.valid_size == (side, side)


@settings(deadline=None)
@given(
    height=st.integers(40, 150), width=st.integers(40, 150), fit=st.sampled_from(FITS),
    degrees=st.sampled_from([0.0, 20.0, 90.0]), flip=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_the_mask_lies_on_the_object_with_every_fit(height, width, fit, degrees, flip, seed) -> None:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 5 : height // 2, width // 3 : -width // 4] = 1
    image = np.where(mask[..., None] == 1, 255, 0).astype(np.uint8).repeat(3, 2)
    samples = [
        TrainTransform(65, (0.8, 1.4), degrees, 0.0, float(flip), fit=fit)(image, mask, Random(seed)),
        EvalTransform(65, fit)(image, mask),
    ]
    for sample in samples:
        inside = ndimage.binary_erosion(sample.picture.numpy(), iterations=2)
        bright, marked = levels(sample)[..., 0] > 127.5, (sample.mask == 1).numpy()
        near = ndimage.binary_dilation(marked, iterations=2) & ~ndimage.binary_erosion(marked, iterations=2)
        assert ((bright == marked) | near | ~inside).all()


@pytest.mark.parametrize("size", [(1, 90), (90, 1), (1, 1), (2, 200)])
def test_images_of_a_single_row_or_column(size: tuple[int, int]) -> None:
    mask = np.ones(size, dtype=np.uint8)
    image = np.full((*size, 3), 200, dtype=np.uint8)
    # 1 of 90 is 0.7 of 65: a multiple of 8 below that would be nothing
    expected = {(1, 90): (8, 64), (90, 1): (64, 8), (1, 1): (64, 64), (2, 200): (8, 64)}[size]
    assert EvalTransform(65, "pfenet")(image, mask).valid_size == expected
    assert EvalTransform(65, "squash")(image, mask).valid_size == (65, 65)
    for fit in FITS:
        for transform in (TrainTransform(65, (0.9, 1.1), fit=fit), TrainTransform(65, (0.9, 1.1), 10.0, 1.0, fit=fit)):
            sample = transform(image, mask, Random(0))
            assert (sample.mask == 1).any()
            assert bool(torch.isfinite(sample.image).all())


def test_large_jpegs_are_decoded_whole_where_a_fit_may_show_all_their_pixels() -> None:
    assert TrainTransform(400, fit="pfenet").longer_side is None  # a crop of the image at its own size
    assert TrainTransform(400, fit="squash").longer_side is None  # 3000 x 300: the short side is enlarged
    assert EvalTransform(400, "squash").longer_side is None
    assert EvalTransform(400, "pfenet").longer_side == EvalTransform(400).longer_side == 800
