from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fsseg.data.binary_masks import marked, read_binary
from fsseg.data.photos import mask_of, photo
from fsseg.errors import UserError

TRUTH = np.zeros((4, 6), bool)
TRUTH[1:3, 2:6] = True
GREY = np.where(TRUTH, 255, 0).astype(np.uint8)


def palette(colours: list[int]) -> Image.Image:
    image = Image.fromarray(TRUTH.astype(np.uint8), mode="P")
    image.putpalette(colours)
    return image


def deep(white: int) -> Image.Image:
    return Image.fromarray(np.where(TRUTH, white, 0).astype(np.uint16))


def both(image: Image.Image, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The mask as data sets read it, and as `fsseg predict` does."""
    image.save(path)
    shown = photo(np.zeros((image.height, image.width, 3), np.uint8))
    return marked(read_binary(path)), mask_of(path, shown)


FORMS = {
    "grey": Image.fromarray(GREY),
    "one bit": Image.fromarray(TRUTH),
    "colours": Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)),
    "black and white palette": palette([0, 0, 0, 255, 255, 255]),
    "palette the other way round": Image.fromarray((~TRUTH).astype(np.uint8), mode="P"),
    "coloured palette": palette([0, 0, 0, 255, 0, 0]),
    "16 bits": deep(65535),
    "16 bits, 1": deep(1),
    "opaque": Image.fromarray(GREY).convert("RGBA"),
    "0 and 1": Image.fromarray(TRUTH.astype(np.uint8)),
    "0 and 15": Image.fromarray(TRUTH.astype(np.uint8) * np.uint8(15)),
    "0 and 200": Image.fromarray(TRUTH.astype(np.uint8) * np.uint8(200)),
}
FORMS["palette the other way round"].putpalette([255, 255, 255, 0, 0, 0])


@pytest.mark.parametrize("form", FORMS)
def test_what_is_beside_0_is_the_object_for_data_sets_and_predictions_alike(form: str, tmp_path: Path) -> None:
    for found in both(FORMS[form], tmp_path / "m.png"):
        np.testing.assert_array_equal(found, TRUTH.astype(np.uint8))


def test_beside_1_the_value_255_is_neither(tmp_path: Path) -> None:
    eight, sixteen = np.array([[0, 1, 255, 1]], np.uint8), np.array([[0, 1, 65535, 1]], np.uint16)
    for values in (eight, sixteen):
        for found in both(Image.fromarray(values), tmp_path / "m.png"):
            assert found.tolist() == eight.tolist()


def soft() -> Image.Image:
    return Image.fromarray(np.repeat(GREY, 4, 1)).resize((48, 8), Image.Resampling.BILINEAR)


def as_jpeg() -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(np.kron(GREY, np.ones((5, 5), np.uint8))).save(file, "JPEG", quality=80)
    return Image.open(file)


black_is_1 = Image.fromarray(TRUTH.astype(np.uint8), mode="P")
black_is_1.putpalette([255, 0, 0, 0, 0, 0])
OTHERS = {
    "soft edges": (soft(), r"holds \d+ values beside 0, where a mask of one class has one: \d+, \d+, \d+"),
    "edges of a JPEG": (as_jpeg(), r"holds \d+ values beside 0"),
    "counted": (
        Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)),
        "holds 23 values .*: 1, 2, 3, 4, 5 and 18",
    ),
    "numbers of two classes": (Image.fromarray(np.array([[0, 3, 15]], np.uint8)), "2 values beside 0, .*: 3, 15\n"),
    "a class and its boundary": (Image.fromarray(np.array([[0, 15, 255]], np.uint8)), "2 values beside 0, .*: 15, 255"),
    "black object, red background": (black_is_1, "a palette in which 1 is black, and 0 another colour"),
    "painted red": (palette([0, 0, 0, 255, 0, 0]).convert("RGB"), "painted in colours"),
    "transparent": (Image.fromarray(np.dstack([GREY] * 4)), "transparent in places"),
    "white, and transparent": (Image.fromarray(np.dstack([255 + 0 * GREY, GREY]), mode="LA"), "transparent in places"),
}


@pytest.mark.parametrize("form", OTHERS)
def test_what_only_the_user_can_understand_is_refused_by_both_and_never_cut(form: str, tmp_path: Path) -> None:
    image, what = OTHERS[form]
    image.save(tmp_path / "m.png")
    of = photo(np.zeros((image.height, image.width, 3), np.uint8))
    for read in (read_binary, lambda path: mask_of(path, of)):
        with pytest.raises(UserError, match=what) as error:
            read(tmp_path / "m.png")
        assert "m.png" in error.value.what
        assert error.value.fix.startswith("save it as PNG with 255 on the object and 0 elsewhere")


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
