from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsseg.data.binary_masks import read_binary
from fsseg.errors import UserError

TRUTH = np.zeros((4, 6), bool)
TRUTH[1:3, 2:6] = True
GREY = np.where(TRUTH, 255, 0).astype(np.uint8)


def palette(colours: list[int]) -> Image.Image:
    image = Image.fromarray(TRUTH.astype(np.uint8), mode="P")
    image.putpalette(colours)
    return image


FORMS = {
    "grey": Image.fromarray(GREY),
    "one bit": Image.fromarray(TRUTH),
    "colours": Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)),
    "palette": palette([0, 0, 0, 255, 255, 255]),
    "16 bits": Image.fromarray(np.where(TRUTH, 65535, 0).astype(np.uint16)),
    "opaque": Image.fromarray(GREY).convert("RGBA"),
}


@pytest.mark.parametrize("form", FORMS)
def test_black_and_white_is_read_however_it_is_stored(form: str, tmp_path: Path) -> None:
    FORMS[form].save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "m.png"), GREY)


OTHERS = {
    "0 and 1": (Image.fromarray(TRUTH.astype(np.uint8)), r"m\.png holds other values than 0 and 255: 1\n"),
    "soft edges": (Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)), "1, 2, 3, 4, 5 and 18 more"),
    "16 bits of 0 and 1": (Image.fromarray(TRUTH.astype(np.uint16)), "other values"),
    "painted red": (palette([0, 0, 0, 255, 0, 0]), "holds colours"),
    "transparent": (Image.fromarray(np.dstack([GREY] * 4)), "transparent"),
}


@pytest.mark.parametrize("form", OTHERS)
def test_what_only_the_user_can_understand_is_refused(form: str, tmp_path: Path) -> None:
    image, what = OTHERS[form]
    image.save(tmp_path / "m.png")
    with pytest.raises(UserError, match=what) as error:
        read_binary(tmp_path / "m.png")
    assert "save it" in error.value.fix


def test_grey_levels_are_cut_where_a_published_data_set_has_them(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_binary(tmp_path / "m.png", grey=True).tolist() == [[0, 0, 255, 255]]


def test_a_mask_is_turned_as_its_image_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(GREY).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_binary(tmp_path / "m.png"), np.rot90(GREY, -1))


def test_no_png_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "m.jpg")
    with pytest.raises(UserError, match=r"not an image of the format PNG"):
        read_binary(tmp_path / "m.jpg")
