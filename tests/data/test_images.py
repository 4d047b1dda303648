from __future__ import annotations

import ast
import io
import os
import shutil
import struct
import warnings
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.io import savemat
from trees import labels_of, write_jpeg, write_mat, write_png

from fsseg.data import images
from fsseg.data.images import check_image, decode_image, image_size, read_image, read_labels, reduction
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


# --- formats, depths, palettes ----------------------------------------------------------------------------------------

PACKAGE = Path(images.__file__).parents[1]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n10 10 moveto 0 0 lineto stroke\nshowpage\n"


def raw_png(
    path: Path, size: tuple[int, int], depth: int, colour: int, rows: list[bytes], palette: bytes = b""
) -> Path:
    """A PNG written chunk by chunk: `depth` bits a channel, `colour` 0 grey, 2 RGB, 3 palette, 4 and 6 with alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + (chunk(b"PLTE", palette) if palette else b"") + body + chunk(b"IEND", b"")
    )
    return path


def test_a_file_of_another_format_starts_no_program_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands an EPS to Ghostscript, which runs it as a program."""
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert shutil.which("gs") == str(ghostscript)
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(EPS)
        for read in (read_image, image_size, check_image, read_labels):
            with pytest.raises(UserError, match=rf"{name} cannot be read: not an image"):
                read(tmp_path / name)
    assert not (tmp_path / "started").exists()


def test_every_call_that_opens_an_image_names_the_formats_it_may_have() -> None:
    calls = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                calls.append(path.name)
                assert "formats" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
    assert calls == ["images.py"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_pictures_of_common_formats_are_read_under_any_name(tmp_path: Path, form: str) -> None:
    Image.new("RGB", (6, 4), (200, 100, 50)).save(tmp_path / "a.jpg", form)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (200, 100, 50)).max() <= 4
    assert image_size(tmp_path / "a.jpg") == check_image(tmp_path / "a.jpg") == (4, 6)


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow warns of the first and refuses the second
def test_an_image_that_claims_too_many_pixels_is_refused_quietly(tmp_path: Path, side: int) -> None:
    path = raw_png(tmp_path / "vast.png", (side, side), 8, 0, [b"\0"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (read_image, image_size, check_image, read_labels):
            with pytest.raises(UserError, match=r"vast\.png has more than 89,478,485 pixels") as caught:
                read(path)
            assert "smaller" in caught.value.fix


def test_a_pipe_in_place_of_an_image_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (read_image, image_size, check_image, read_labels):
        with pytest.raises(UserError, match=r"pipe\.jpg cannot be read: no regular file"):
            read(tmp_path / "pipe.jpg")


LEVELS_16 = [0, 128, 129, 257, 1000, 32768, 65406, 65407, 65535]
LEVELS_8 = [0, 0, 1, 1, 4, 128, 254, 255, 255]
"""`LEVELS_16` / 257, by hand: 1000 / 257 = 3.9, 32768 / 257 = 127.5, 65406 / 257 = 254.498, 65407 / 257 = 254.502."""


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_grey_of_16_bits_is_scaled_to_8_and_not_clipped(tmp_path: Path, byte_order: str) -> None:
    levels = np.array([LEVELS_16], dtype=byte_order)
    raw_png(tmp_path / "a.png", (9, 1), 16, 0, [levels.astype(">u2").tobytes()])
    Image.frombytes("I;16" if byte_order == "<u2" else "I;16B", (9, 1), levels.tobytes()).save(tmp_path / "a.tiff")
    for name in ("a.png", "a.tiff"):
        read = read_image(tmp_path / name)
        assert read.dtype == np.uint8
        assert read.tolist() == [[[level] * 3 for level in LEVELS_8]]
        assert check_image(tmp_path / name) == (1, 9)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_come_within_a_level_of_their_8(tmp_path: Path, colour: int, channels: int) -> None:
    """Pillow itself drops the lower byte of these."""
    row = np.repeat(np.array(LEVELS_16, ">u2"), channels).tobytes()
    read = read_image(raw_png(tmp_path / "a.png", (9, 1), 16, colour, [row]))
    assert np.abs(read[0].astype(int) - np.array(LEVELS_8)[:, None]).max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_an_image_whose_range_of_values_is_open_is_refused(tmp_path: Path, kind: Any) -> None:
    Image.fromarray(np.ones((4, 6), kind)).save(tmp_path / "a.jpg", "TIFF")
    for read in (read_image, image_size, check_image):
        with pytest.raises(UserError, match=r"a\.jpg holds .* values") as caught:
            read(tmp_path / "a.jpg")
        assert "8 bits" in caught.value.fix


def test_a_mask_of_other_than_one_byte_a_pixel_is_refused(tmp_path: Path) -> None:
    """Grey of 2 and 4 bits is spread over 0 to 255 by every reader: label 1 would come as 85 or 17."""
    raw_png(tmp_path / "one.png", (8, 1), 1, 0, [b"\x1b"])
    raw_png(tmp_path / "two.png", (8, 1), 2, 0, [b"\x1b\x1b"])
    raw_png(tmp_path / "four.png", (8, 1), 4, 0, [b"\x01\x01\x01\x01"])
    raw_png(tmp_path / "sixteen.png", (4, 1), 16, 0, [bytes(8)])
    Image.new("LA", (8, 4)).save(tmp_path / "alpha.png")
    for name in ("one", "two", "four", "sixteen", "alpha"):
        with pytest.raises(UserError, match=rf"{name}\.png is of mode .*one byte of class number"):
            read_labels(tmp_path / f"{name}.png")
    # a palette's indices are numbers at any depth
    raw_png(tmp_path / "indexed.png", (4, 1), 4, 3, [b"\x01\x20"], bytes(range(9)))
    assert read_labels(tmp_path / "indexed.png").tolist() == [[0, 1, 2, 0]]


def test_a_jpeg_is_no_mask(tmp_path: Path) -> None:
    """Its compression changes class numbers."""
    Image.new("L", (8, 4), 3).save(tmp_path / "a.png", "JPEG")
    with pytest.raises(UserError, match=r"a\.png cannot be read: not an image of the format PNG"):
        read_labels(tmp_path / "a.png")


# from the VOC development kit: background, aeroplane, bicycle, car, person, tvmonitor, void
VOC_COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 7: (128, 128, 128), 15: (192, 128, 128),
               20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip


def indexed(path: Path, colours: dict[int, tuple[int, int, int]], values: list[int]) -> Path:
    """A palette PNG of one row with the values; the palette reaches to the last of `colours`, black where none is."""
    image = Image.fromarray(np.array([values], np.uint8), mode="P")
    image.putpalette([channel for value in range(max(colours) + 1) for channel in colours.get(value, (0, 0, 0))])
    image.save(path)
    return path


def test_masks_with_vocs_palette_with_others_and_with_none_give_their_numbers(tmp_path: Path) -> None:
    values = [0, 1, 7, 15, 20, 255]
    random = np.random.default_rng(0).integers(0, 256, (256, 3)).tolist()
    palettes = {
        "voc": VOC_COLOURS,
        "voc up to 20": {value: colour for value, colour in VOC_COLOURS.items() if value < 255},
        "white boundary": {**VOC_COLOURS, 255: (255, 255, 255)},
        "grey": {value: (value, value, value) for value in range(256)},
        "steep grey": {value: (min(16 * value, 255),) * 3 for value in range(256)},
        "black": dict.fromkeys(range(256), (0, 0, 0)),
        "random": {value: tuple(colour) for value, colour in enumerate(random)},
    }
    for name, palette in palettes.items():
        assert read_labels(indexed(tmp_path / f"{name}.png", palette, values)).tolist() == [values], name
    Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "none.png")
    assert read_labels(tmp_path / "none.png").tolist() == [values]
    # grey is also the colour of cars: value 8 of a grey palette is none
    assert read_labels(indexed(tmp_path / "steep.png", palettes["steep grey"], [0, 8])).tolist() == [[0, 8]]
    # a colour of another class does no harm where no pixel has it
    assert read_labels(indexed(tmp_path / "idle.png", {1: (128, 0, 0), 2: (128, 0, 0)}, [0, 1])).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("colours", "values", "says"),
    [
        ([(0, 0, 0), (192, 128, 128), (224, 224, 192)], [0, 1, 2], "1 is 15, 2 is 255"),  # a person and his boundary
        ([(0, 0, 0), (192, 128, 128), (255, 255, 255)], [0, 1, 2], "1 is 15"),  # a white boundary
        ([(0, 0, 0), (128, 128, 128)], [0, 1], "1 is 7"),  # a car without one
        ([(192, 128, 128), (0, 0, 0)], [1, 0, 1], "0 is 15"),
        ([(0, 0, 0), (0, 128, 0), (128, 0, 0)], [0, 1, 2], "1 is 2, 2 is 1"),
    ],
)
def test_a_mask_saved_with_other_numbers_than_its_colours_say_is_refused(
    tmp_path: Path, colours: list[tuple[int, int, int]], values: list[int], says: str
) -> None:
    path = indexed(tmp_path / "a.png", dict(enumerate(colours)), values)
    with pytest.raises(UserError, match=rf"a\.png .*{says}") as caught:
        read_labels(path)
    assert "without a palette" in caught.value.fix


def test_a_tool_that_saves_fewest_colours_renumbers_a_mask_and_is_found_out(tmp_path: Path) -> None:
    """A person, saved by Pillow's own quantisation."""
    original = indexed(tmp_path / "a.png", VOC_COLOURS, [0] * 9 + [15] * 5 + [255] * 2)
    assert set(read_labels(original).ravel().tolist()) == {0, 15, 255}
    with Image.open(original) as image:
        image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png .* is 15"):
        read_labels(tmp_path / "b.png")


@pytest.mark.shared
def test_no_real_mask_is_refused(shared_dir: Path) -> None:
    """One palette for all of them (counted once): a hundred stand for the 12031 that the scan reads."""
    for path in sorted((shared_dir / "data" / "voc_part" / "SegmentationClassAug").glob("*.png"))[::120]:
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_labels(path), np.array(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_a_photograph_that_lies_on_its_side_is_turned_as_people_see_it(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    """As Pillow's own `exif_transpose` turns it; without `upright` the pixels stay as they lie in the file."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    path, exif = tmp_path / f"a.{ending}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as opened:
        seen = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    upright = read_image(path, upright=True)
    np.testing.assert_array_equal(upright, seen)
    assert image_size(path, upright=True) == check_image(path, upright=True) == seen.shape[:2]
    if ending != "tif":  # which Pillow turns whether one asks or not
        assert read_image(path).shape == pixels.shape
        assert image_size(path) == (8, 12)


def test_a_large_photograph_is_turned_after_it_was_reduced(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((1300, 2000, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", 500, upright=True).shape == (500, 325, 3)


def test_broken_exif_is_no_reason_to_lose_an_image(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00nonsense")
    assert image_size(tmp_path / "a.jpg", upright=True) == (8, 12)


def test_a_mask_of_own_classes_may_have_any_palette(tmp_path: Path) -> None:
    """One that starts with VOC's colour of a person would tell of a renumbered mask of VOC."""
    image = Image.fromarray(labels_of((1, 500), (2, 100)), mode="P")
    image.putpalette([0, 0, 0, 192, 128, 128, 0, 0, 64])
    image.save(tmp_path / "m.png")
    with pytest.raises(UserError, match="other class numbers"):
        read_labels(tmp_path / "m.png")
    assert np.unique(read_labels(tmp_path / "m.png", own=True)).tolist() == [0, 1, 2]


def test_a_photo_of_another_format_is_to_be_converted(tmp_path: Path) -> None:
    """An iPhone's: nothing is damaged, and no second copy would help."""
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    with pytest.raises(UserError, match="not an image of the formats JPEG") as caught:
        read_image(tmp_path / "a.heic")
    assert caught.value.fix.startswith("save it in one of these formats")
