from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from trees import labels_of, write_jpeg, write_mat, write_png

from fsseg.data.images import image_size, read_image, read_labels
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
