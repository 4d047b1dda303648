"""Images and masks of a user's own: turned as people see them, of any depth, and masks of two values."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fsseg.data.photos import Photo, mask_of, photo
from fsseg.errors import UserError

WHITE = np.zeros((6, 9), np.uint8)
WHITE[1:3, 2:7] = 255


@pytest.fixture(autouse=True)
def _logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("fsseg"), "propagate", True)


def picture(height: int = 6, width: int = 9) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, orientation: int = 1, **options: Any) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)
    return path


def of(pixels: NDArray[np.uint8]) -> Photo:
    return photo(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_a_photo_is_turned_as_pillow_turns_it(orientation: int, ending: str, tmp_path: Path) -> None:
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(picture(80, 120)), orientation)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    for given in (path, Image.open(path)):
        found = photo(given)
        np.testing.assert_array_equal(found.pixels, expected)
        assert found.size == expected.shape[:2]
        assert found.was_turned == (orientation != 1 and ending != "tif")  # Pillow turns those


def test_a_large_jpeg_is_reduced_and_turned_and_knows_its_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(picture(40, 60)).resize((2001, 1301)), 6)
    found = photo(path, longer_side=400)
    assert found.size == (2001, 1301)
    assert found.pixels.shape == (501, 326, 3)  # a quarter, rounded up: 400 are left


@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_a_mask_is_turned_with_its_image(orientation: int, tmp_path: Path) -> None:
    """Drawn on the upright image it stays; of the stored pixels' size, or with the same EXIF, it is turned alike."""
    image = photo(saved(tmp_path / "a.png", Image.fromarray(picture()), orientation))
    upright = ImageOps.exif_transpose(Image.open(saved(tmp_path / "m.png", Image.fromarray(WHITE), orientation)))
    expected = np.array(upright) // 255
    ways: list[Any] = [tmp_path / "m.png", upright, np.array(upright)]
    if orientation != 3:
        ways.append(WHITE)
    for given in ways:
        np.testing.assert_array_equal(mask_of(given, image), expected)


def test_depths_and_colours_are_converted(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert photo(tmp_path / "deep.png").pixels.tolist() == [[[0] * 3, [1] * 3, [255] * 3]]
    assert photo(Image.open(tmp_path / "deep.png")).pixels.tolist() == [[[0] * 3, [1] * 3, [255] * 3]]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red = photo(tmp_path / "print.jpg").pixels[4, 4].astype(int)
    assert red[0] > 200
    assert max(red[1:]) < 60
    Image.new("LA", (2, 1), (9, 0)).save(tmp_path / "la.png")
    assert photo(tmp_path / "la.png").pixels.tolist() == [[[9] * 3] * 2]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros((4, 4), np.uint8), r"an array of 4 x 4 of uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"an array of 4 x 4 x 4 of uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"an array of 0 x 4 x 3"),
        (np.zeros((4, 4, 3)), r"an array of 4 x 4 x 3 of float64"),
        (Image.new("F", (2, 2)), "PIL image of mode F"),
        ("nowhere.jpg", "image nowhere.jpg is missing"),
    ],
)
def test_what_is_no_image_is_told(given: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        photo(given)
    assert error.value.fix


def test_a_broken_and_a_huge_file_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "cut.jpg", Image.fromarray(picture(80, 120)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut.jpg cannot be read"):
        photo(path)
    Image.new("1", (10_000, 9_000)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match=r"huge.png has more than 89,478,485 pixels"):
        photo(tmp_path / "huge.png")
    with pytest.raises(UserError, match=r"is a folder, where an image or mask is wanted") as error:
        photo(tmp_path)
    assert error.value.fix == "name a file in it"


def test_a_mask_that_cannot_be_read_is_called_a_mask(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "huge.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("F", (9, 6)).save(tmp_path / "float.tif")
    for name, told in (("huge", "has more than"), ("broken", "cannot be read: not an image of the formats JPEG, PNG"),
                       ("float", "holds float values")):  # fmt: skip
        (path,) = tmp_path.glob(f"{name}.*")
        with pytest.raises(UserError, match=f"^mask image .*{name}.* {told}"):
            mask_of(path, of(picture()))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 255]], [[0, 1]]),
        ([[0, 1]], [[0, 1]]),
        ([[False, True]], [[0, 1]]),
        ([[0, 1, 255]], [[0, 1, 255]]),
        ([[1, 255]], [[1, 255]]),
        ([[255, 255]], [[1, 1]]),
        ([[0, 7]], [[0, 1]]),
    ],
)
def test_an_object_is_what_is_beside_0_and_beside_1_255_is_left_out(
    values: list[list[int]], expected: list[list[int]]
) -> None:
    image = photo(np.zeros((1, len(values[0]), 3), np.uint8))
    assert mask_of(np.array(values), image).tolist() == expected


def test_masks_of_all_kinds_of_files(tmp_path: Path) -> None:
    image = of(picture())
    grey = Image.fromarray(WHITE)
    swapped = Image.fromarray((WHITE == 0).astype(np.uint8), mode="P")  # 0 is white, 1 is black
    swapped.putpalette([255, 255, 255, 0, 0, 0])
    indexed = Image.fromarray(WHITE // 255, mode="P")
    indexed.putpalette([0, 0, 0, 128, 0, 0])
    kinds = {
        "grey.png": grey, "bits.png": grey.convert("1"),
        "rgb.png": grey.convert("RGB"), "rgb.bmp": grey.convert("RGB"),
        "la.png": grey.convert("LA"), "rgba.png": grey.convert("RGBA"), "grey.tif": grey, "swapped.png": swapped,
        "indexed.png": indexed, "deep.png": Image.fromarray(WHITE.astype(np.uint16) * 257),
    }  # fmt: skip
    for name, kind in kinds.items():
        kind.save(tmp_path / name)
        np.testing.assert_array_equal(mask_of(tmp_path / name, image), WHITE // 255, name)


def test_other_masks_are_told(tmp_path: Path) -> None:
    image = of(picture())
    colours = np.zeros((6, 9, 3), np.uint8)
    colours[2] = (200, 0, 0)
    Image.fromarray(colours).save(tmp_path / "painted.png")
    Image.fromarray(WHITE).resize((18, 12), Image.Resampling.BILINEAR).resize((9, 6)).save(tmp_path / "soft.png")
    classes = WHITE // 255 * np.uint8(15)
    classes[0, 0] = 3
    cases: list[tuple[Any, str]] = [
        (tmp_path / "painted.png", "painted.png is painted in colours"),
        (tmp_path / "soft.png", r"soft.png holds \d+ values beside 0, where a mask of one class has one: \d+, "),
        (classes, "the mask holds 2 values beside 0, where a mask of one class has one: 3, 15"),
        (WHITE.astype(int) - 255, "the mask holds a negative value"),
        (np.zeros((6, 9), np.uint8), "marks no pixel"),
        (WHITE[:, :5], "has 5 x 6 pixels, and its image the image 9 x 6"),
        (WHITE.T, "has 6 x 9 pixels, and its image the image 9 x 6"),
        (WHITE / 255, "is an array of 6 x 9 of float64"),
        (None, "^the mask is given as NoneType"),
        (tmp_path / "none.png", "none.png is missing"),
    ]
    for given, told in cases:
        with pytest.raises(UserError, match=told) as error:
            mask_of(given, image)
        assert error.value.fix
    assert not mask_of(np.zeros((6, 9)).astype(int), image, true=True).any()
    assert mask_of(WHITE, image, true=True, ones=True)[1:3, 2:7].tolist() == [[255] * 5] * 2
