"""Image and mask stay together, foreground stays in the picture, padding is marked."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch.nn import functional

from fsseg.data.pixels import Sample, render
from fsseg.data.placement import Foreground, Placement
from fsseg.data.transforms import EvalTransform, TrainTransform

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def levels(sample: Sample) -> torch.Tensor:
    """The image back in 0..255."""
    return (sample.image * STD + MEAN) * 255


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture with structure at several scales."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    return np.clip(smooth + draw.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A red rectangle on black, and its mask."""
    height, width = draw(st.integers(40, 160)), draw(st.integers(40, 160))
    y, x = draw(st.integers(0, height - 12)), draw(st.integers(0, width - 12))
    h, w = draw(st.integers(12, height - y)), draw(st.integers(12, width - x))
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[y : y + h, x : x + w] = 1
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[mask == 1] = (255, 0, 0)
    return image, mask


transforms = st.builds(
    TrainTransform,
    image_size=st.sampled_from([49, 65, 97]),
    scale_range=st.sampled_from([(0.9, 1.1), (0.5, 2.0)]),
    rotate_degrees=st.sampled_from([0.0, 10.0, 90.0]),
    blur_probability=st.sampled_from([0.0, 1.0]),
    flip_probability=st.sampled_from([0.0, 0.5, 1.0]),
    crop_keep=st.just(0.85),
)


@settings(max_examples=200, deadline=None)
@given(picture=pictures(), transform=transforms, seed=st.integers(0, 10**6))
def test_the_mask_lies_on_the_object_and_padding_is_marked(picture, transform, seed: int) -> None:
    image, mask = picture
    sample = transform(image, mask, Random(seed))
    size = transform.image_size
    assert sample.image.shape == (3, size, size)
    assert sample.image.dtype == torch.float32
    assert sample.mask.shape == (size, size)
    assert sample.mask.dtype == torch.uint8
    assert set(sample.mask.unique().tolist()) <= {0, 1, 255}
    assert (sample.mask == 1).any()
    height, width = sample.valid_size
    assert (sample.mask[height:] == 255).all()
    assert (sample.mask[:, width:] == 255).all()
    padding = sample.mask == 255  # the source has no 255: rotated corners and padding only
    assert (sample.image[:, padding] == 0).all()
    assert not padding[:height, :width].any() or transform.rotate_degrees > 0

    red = levels(sample)[0].numpy() > 127.5
    marked = (sample.mask == 1).numpy()
    near_edge = ndimage.binary_dilation(marked, iterations=2) & ~ndimage.binary_erosion(marked, iterations=2)
    inside = ~padding.numpy()
    inside = ndimage.binary_erosion(inside, iterations=2)
    assert ((red == marked) | near_edge | ~inside).all()


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(8, 160), width=st.integers(8, 160), deviation=st.integers(0, 100),
    transform=transforms, seed=st.integers(0, 10**6),
)  # fmt: skip
def test_the_picture_is_where_some_channel_is_not_the_mean_colour(
    height: int, width: int, deviation: int, transform: TrainTransform, seed: int
) -> None:
    """The rule by colour is the former one: padding is 0 exactly, and no mixture of whole levels is."""
    draw = np.random.default_rng(seed)
    colours = np.array([124, 116, 104]) + draw.integers(-deviation, deviation + 1, (height, width, 3))
    image = colours.clip(0, 255).astype(np.uint8)  # around the mean colour, 123.7, 116.3, 103.5
    mask = draw.choice(np.array([0, 1, 255], dtype=np.uint8), (height, width))
    evaluation = EvalTransform(transform.image_size)
    for sample in (transform(image, mask, Random(seed)), evaluation(image, mask), evaluation(image, mask, True)):
        assert sample.picture.dtype == torch.bool
        assert torch.equal(sample.picture, (sample.image != 0).any(0))
        assert (sample.mask[~sample.picture] == 255).all()
        high, wide = sample.valid_size
        assert not sample.picture[high:].any()
        assert not sample.picture[:, wide:].any()
        assert sample.picture[:high, :wide].all() or transform.rotate_degrees > 0


@pytest.mark.parametrize("flip", [False, True])
def test_the_corners_of_a_rotated_image_are_no_picture(flip: bool) -> None:
    # A square turned by 45 degrees: the corners cut off it are those pixels whose centre lies outside the diamond.
    image, mask = noise(64, 64), np.zeros((64, 64), dtype=np.uint8)
    sample = render(image, mask, Placement((64, 64), (64, 64), 0, 0, (64, 48), 45.0, flip), 65, False)
    ys, xs = np.mgrid[:64, :48] + 0.5
    reach = np.abs(ys - 32) + np.abs(xs - 32)
    reach = reach[:, ::-1] if flip else reach
    clear = np.abs(reach - 32 * 2**0.5) > 0.01
    assert ((sample.picture[:64, :48].numpy() == (reach < 32 * 2**0.5)) | ~clear).all()
    assert 0 < sample.picture.sum() < 64 * 48


@pytest.mark.parametrize("blur", [0.0, 1.0])
@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_the_edges_of_image_and_mask_agree_within_a_pixel(degrees: float, blur: float) -> None:
    image, mask = np.zeros((120, 160, 3), dtype=np.uint8), np.zeros((120, 160), dtype=np.uint8)
    mask[40:80, 50:110] = 1
    image[mask == 1] = 255
    transform = TrainTransform(97, (0.7, 1.4), degrees, blur, 0.0, 0.85)  # a mirror would hide a shift
    shifts = []
    for seed in range(60):
        sample = transform(image, mask, Random(seed))
        inside = ndimage.binary_erosion((sample.mask != 255).numpy(), iterations=3)
        bright, marked = (levels(sample)[0].numpy() > 127.5) & inside, (sample.mask == 1).numpy() & inside
        differ = bright != marked
        edge = marked ^ ndimage.binary_erosion(marked, border_value=1)
        edge |= ndimage.binary_dilation(marked) & ~marked
        assert not (differ & ~edge).any()
        assert differ.sum() <= 0.35 * edge.sum()
        shifts.append(np.subtract(ndimage.center_of_mass(bright), ndimage.center_of_mass(marked)))
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.1


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(30, 200), width=st.integers(30, 200), y=st.floats(0, 0.999), x=st.floats(0, 0.999),
    transform=transforms, seed=st.integers(0, 10**6),
)  # fmt: skip
def test_a_single_pixel_of_foreground_survives(height, width, y, x, transform, seed) -> None:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[int(y * height), int(x * width)] = 1
    image = np.zeros((height, width, 3), dtype=np.uint8)
    sample = transform(image, mask, Random(seed))
    assert (sample.mask == 1).any()
    valid_height, valid_width = sample.valid_size
    assert (sample.mask[:valid_height, :valid_width] == 1).any()
    assert (EvalTransform(transform.image_size)(image, mask, keep_foreground=True).mask == 1).sum() >= 1


def test_without_foreground_nothing_is_marked() -> None:
    sample = TrainTransform(65, (1.5, 2.0))(noise(80, 60), np.zeros((80, 60), dtype=np.uint8), Random(0))
    assert not (sample.mask == 1).any()


def test_the_crop_keeps_most_of_the_foreground_where_some_crop_does() -> None:
    mask = np.zeros((300, 400), dtype=np.uint8)
    mask[60:260, 20:180] = 1
    transform = TrainTransform(97, (1.0, 1.6))
    kept = [transform.place(mask, Random(f"{seed}")).kept for seed in range(300)]
    assert min(kept) >= 0.85
    assert min(kept) < 0.97  # crops do cut: the object lies at the left edge and half of them begin right of it


@pytest.mark.parametrize("angle", [0.0, -25.0, 25.0])
def test_the_share_kept_is_the_one_seen_in_the_picture(angle: float) -> None:
    mask = np.zeros((150, 210), dtype=np.uint8)
    ys, xs = np.mgrid[:150, :210]
    mask[((ys - 60) / 40) ** 2 + ((xs - 130) / 60) ** 2 < 1] = 1
    image = np.zeros((150, 210, 3), dtype=np.uint8)
    scaled = (180, 252)
    whole = render(image, mask, Placement((150, 210), scaled, 0, 0, scaled, angle), 252, False)
    for top, left in ((0, 0), (40, 10), (83, 155), (20, 90)):
        plan = Placement((150, 210), scaled, top, left, (97, 97), angle)
        seen = (render(image, mask, plan, 97, False).mask == 1).sum() / (whole.mask == 1).sum()
        assert Foreground(mask, plan).kept(top, left) == pytest.approx(float(seen), abs=0.01)


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (97, 113), (60, 50)])
def test_evaluation_images_are_resized_like_torch_does_with_antialiasing(size: tuple[int, int]) -> None:
    image = noise(*size)
    height, width = (round(side * 97 / max(size)) for side in size)
    sample = EvalTransform(97)(image, np.zeros(size, dtype=np.uint8))
    assert sample.valid_size == (height, width)
    expected = functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), (height, width), mode="bilinear", antialias=True
    )[0]
    difference = (levels(sample)[:, :height, :width] - expected).abs()
    assert difference.max() < 3.5  # of 255: bytes are rounded twice, and large images are first reduced
    assert difference.mean() < 0.6


def test_a_window_has_the_pixels_of_scaling_the_whole_image_and_cropping() -> None:
    image, mask = noise(150, 200), (noise(150, 200)[..., 0] > 128).astype(np.uint8)
    plan = Placement((150, 200), (210, 280), 70, 130, (97, 97))
    sample = render(image, mask, plan, 97, False)
    whole = np.asarray(Image.fromarray(image).resize((280, 210), Image.Resampling.BILINEAR))
    crop = torch.from_numpy(whole[70:167, 130:227].copy()).permute(2, 0, 1)
    assert (levels(sample) - crop).abs().max() <= 1.01
    whole_mask = mask[((np.arange(210) + 0.5) * 150 / 210).astype(int)][
        :, ((np.arange(280) + 0.5) * 200 / 280).astype(int)
    ]
    assert (sample.mask.numpy() == whole_mask[70:167, 130:227]).all()


def test_blur_is_opencvs_gaussian_of_five_pixels() -> None:
    image, mask = noise(97, 97), np.zeros((97, 97), dtype=np.uint8)
    sample = TrainTransform(97, (1.0, 1.0), 0.0, 1.0, 0.0)(image, mask, Random(0))
    weights = np.array([1, 4, 6, 4, 1]) / 16  # cv2.getGaussianKernel(5, 0)
    kernel = np.outer(weights, weights)
    expected = [ndimage.correlate(image[..., c].astype(float), kernel, mode="nearest") for c in range(3)]
    assert np.abs(levels(sample).numpy() - np.stack(expected)).max() < 0.01


def test_the_flip_mirrors_image_and_mask() -> None:
    image, mask = noise(60, 97), (noise(60, 97)[..., 1] > 128).astype(np.uint8)
    plain, mirrored = (TrainTransform(97, (1.0, 1.0), 0.0, 0.0, p)(image, mask, Random(5)) for p in (0.0, 1.0))
    assert torch.equal(plain.image.flip(-1), mirrored.image)
    assert torch.equal(plain.mask.flip(-1), mirrored.mask)


def test_annotated_ignore_stays_255_and_is_not_taken_for_padding() -> None:
    image = np.full((97, 97, 3), 200, dtype=np.uint8)
    mask = np.full((97, 97), 255, dtype=np.uint8)
    mask[40:60, 40:60] = 1
    sample = TrainTransform(97, (1.0, 1.0), 20.0)(image, mask, Random(1))
    assert (sample.mask[45:52, 45:52] == 1).all()
    centre = sample.image[:, 30:35, 45:50]
    assert (sample.mask[30:35, 45:50] == 255).all()
    assert ((centre * STD + MEAN) * 255).round().unique().tolist() == [200.0]
    assert (sample.image[:, 0, 0] == 0).all()


def test_switching_one_augmentation_leaves_the_random_numbers_of_the_others_alone() -> None:
    mask = np.zeros((100, 140), dtype=np.uint8)
    mask[30:80, 30:100] = 1
    for seed in range(20):
        base = TrainTransform(97, (0.8, 1.3), 0.0, 0.0, 0.5).place(mask, Random(seed))
        blurred = TrainTransform(97, (0.8, 1.3), 0.0, 1.0, 0.5).place(mask, Random(seed))
        assert (base.scaled, base.top, base.left, base.flip) == (
            blurred.scaled, blurred.top, blurred.left, blurred.flip,
        )  # fmt: skip
