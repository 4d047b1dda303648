from __future__ import annotations

import io
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from trees import labels_of, write_jpeg, write_mat, write_png

from fsseg.data import images
from fsseg.data.images import decode_image, image_size, read_image, read_labels, reduction
from fsseg.data.pixels import STD
from fsseg.data.transforms import EvalTransform, TrainTransform
from fsseg.errors import UserError


def test_truncated_jpeg_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    write_jpeg(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"cut\.jpg cannot be read.*truncated"):
        read_image(path)


def test_something_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "none.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"page\.jpg cannot be read: not an image"):
        read_image(tmp_path / "page.jpg")
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        read_labels(tmp_path / "none.png")
    with pytest.raises(UserError, match=r"gone\.jpg is missing"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match=r"gone\.jpg is missing"):
        image_size(tmp_path / "gone.jpg")


def test_grey_and_cmyk_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (6, 4), 77).save(tmp_path / "grey.jpg")
    Image.new("CMYK", (6, 4), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")  # no ink: white
    grey, cmyk = read_image(tmp_path / "grey.jpg"), read_image(tmp_path / "cmyk.jpg")
    assert grey.shape == cmyk.shape == (4, 6, 3)
    assert (grey == 77).all()
    assert (cmyk >= 254).all()


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate a quarter turn"
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (4, 8, 3)
    assert image_size(tmp_path / "turned.jpg") == (4, 8)


def test_palette_png_and_mat_give_the_numbers_not_the_colours(tmp_path: Path) -> None:
    labels = labels_of((1, 3), (20, 7), boundary=5)
    write_png(tmp_path / "a.png", labels)
    write_mat(tmp_path / "a.mat", labels)
    Image.fromarray(labels).save(tmp_path / "grey.png")
    for name in ("a.png", "a.mat", "grey.png"):
        read = read_labels(tmp_path / name)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, labels)


def test_coloured_mask_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4), (128, 0, 0)).save(tmp_path / "painted.png")
    with pytest.raises(UserError, match=r"painted\.png is of mode RGB"):
        read_labels(tmp_path / "painted.png")


def test_damaged_mat_is_named(tmp_path: Path) -> None:
    write_mat(tmp_path / "cut.mat", labels_of((1, 3)))
    (tmp_path / "cut.mat").write_bytes((tmp_path / "cut.mat").read_bytes()[:150])
    savemat(tmp_path / "other.mat", {"x": 1})
    savemat(tmp_path / "odd.mat", {"GTcls": {"Segmentation": np.full((3, 4), 0.5)}})
    for name in ("cut.mat", "other.mat", "odd.mat"):
        with pytest.raises(UserError, match=name):
            read_labels(tmp_path / name)


def photograph(width: int, height: int, **save: Any) -> bytes:
    """A JPEG with structure at every scale and the noise of a camera."""
    draw = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3))
    for cell in (160, 40, 12):
        coarse = draw.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    pixels = pixels / 3 + draw.normal(0, 4, pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88, **save)
    return buffer.getvalue()


@pytest.mark.parametrize("save", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_jpegs_have_the_pixels_of_pillows_decoder(save: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = photograph(101, 67, **save)
    expected = np.array(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data), expected)
    monkeypatch.setattr(images, "_decoder", lambda: None)
    np.testing.assert_array_equal(decode_image(data), expected)


def test_a_large_jpeg_is_decoded_no_larger_than_need_be_and_a_small_one_whole() -> None:
    large, small = photograph(1603, 1201), photograph(640, 480)
    shapes = [decode_image(large, longer_side).shape for longer_side in (None, 802, 801, 400, 100)]
    assert shapes == [(1201, 1603, 3), (1201, 1603, 3), (601, 802, 3), (301, 401, 3), (151, 201, 3)]
    assert [reduction(shape, (1201, 1603)) for shape in shapes] == [1, 1, 2, 4, 8]
    assert decode_image(small, 100).shape == (480, 640, 3)
    assert reduction((600, 801), (1201, 1603)) == 0  # another picture, not this one reduced
    assert reduction((240, 320), (480, 640)) == 0  # so small a picture never is


@pytest.mark.parametrize("size", [129, 257, 393])
def test_decoding_at_reduced_size_changes_the_network_input_within_the_stated_tolerance(size: int) -> None:
    data = photograph(1603, 1201)
    mask = np.zeros((1201, 1603), np.uint8)
    transform = EvalTransform(size)
    reduced = decode_image(data, transform.longer_side)
    assert len(reduced) < 1201
    scale = torch.tensor(STD).view(3, 1, 1) * 255
    difference = ((transform(reduced, mask).image - transform(decode_image(data), mask).image) * scale).abs()
    assert difference.mean() < 0.7
    assert torch.quantile(difference.flatten()[::7], 0.99) <= 4
    train = TrainTransform(size, (0.9, 1.0), rotate_degrees=10.0)
    plain, turned = (train(decode_image(data, n), mask, Random(1)).image for n in (None, train.longer_side))
    assert ((plain - turned) * scale).abs().mean() < 3  # rotation averages whole pixels first: by other factors


def test_decoding_is_quiet_whatever_filters_are_set(tmp_path: Path) -> None:
    """torchvision announces at every call that its decoder will go; pytest sets its filters anew for every test."""
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "a.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert read_image(tmp_path / "a.jpg").shape == (8, 9, 3)
