from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fsseg.draw.sheets import PREDICTION_COLOUR, TRUTH_COLOUR, SheetRow, Tile, episode_sheet, paint, sample_sheet


def grey(height=20, width=20):
    return np.full((height, width, 3), 128, np.uint8)


def square_mask(height=20, width=20):
    mask = np.zeros((height, width), np.uint8)
    mask[5:15, 5:15] = 1
    return mask


def near(pixels, colour, tolerance=40):
    return (np.abs(pixels.astype(float) - 255 * np.asarray(colour)) < tolerance).all(axis=-1)


def test_paint_tints_the_inside_outlines_the_border_and_dims_the_rest():
    picture = paint(grey(), square_mask(), TRUTH_COLOUR, side=200)  # 10-fold: mask covers rows and columns 50..149
    assert picture.shape == (200, 200, 3)
    centre = 0.85 * 128 / 255 + 0.15 * np.asarray(TRUTH_COLOUR)
    assert np.abs(picture[100, 100] / 255 - centre).max() < 0.01
    assert near(picture[50, 100], TRUTH_COLOUR, 2)
    assert picture[49, 100].tolist() == [255, 255, 255]
    assert picture[10, 10].tolist() == [64, 64, 64]


def test_paint_marks_ignored_pixels_unlike_foreground_and_background():
    mask = square_mask()
    mask[:, 16:] = 255
    picture = paint(grey(), mask, TRUTH_COLOUR, side=200)
    ignored = picture[:, 165:]
    shades = {tuple(p) for p in ignored.reshape(-1, 3)}
    assert len(shades) == 2  # lightened, and the hatching
    assert (128, 128, 128) not in shades
    assert all(r == g == b for r, g, b in shades)


def test_paint_keeps_the_proportions_and_never_shrinks():
    assert paint(grey(50, 100), None, TRUTH_COLOUR, side=200).shape == (100, 200, 3)
    assert paint(grey(300, 500), None, TRUTH_COLOUR, side=200).shape == (300, 500, 3)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_paint_takes_masks_of_one_value(value):
    paint(grey(), np.full((20, 20), value, np.uint8), TRUTH_COLOUR)


def test_paint_refuses_a_mask_of_another_size():
    with pytest.raises(ValueError, match="differ in size"):
        paint(grey(), square_mask(10, 20)[:, :], TRUTH_COLOUR)


def row(shots=1, size=(97, 129), **changes):
    image, mask = grey(*size), square_mask(*size)
    values = {
        "support_images": [image] * shots, "support_masks": [mask] * shots, "query_image": image, "query_mask": mask,
        "prediction": mask, "class_name": "dog", "iou": 87.5,
    }  # fmt: skip
    return SheetRow(**(values | changes))


def test_a_sheet_is_one_png_with_room_for_every_episode_and_support(tmp_path):
    episode_sheet(tmp_path / "new" / "a.png", [row(), row()], "title")
    episode_sheet(tmp_path / "b.png", [row(5), row(3)])
    a, b = Image.open(tmp_path / "new" / "a.png"), Image.open(tmp_path / "b.png")
    assert a.format == "PNG"
    assert b.width - a.width == pytest.approx(4 * 2.1 * 130, abs=4)  # four more panels of 2.1 inches at 130 dpi
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_title_that_is_too_long_goes_on_in_the_next_line(tmp_path):
    episode_sheet(tmp_path / "a.png", [row()], "title")
    episode_sheet(tmp_path / "b.png", [row()], "title\n" + 200 * "x")  # 9.65 inches take 138 small letters
    a, b = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert a.width == b.width
    assert b.height - a.height == pytest.approx(2 * 0.18 * 130, abs=1)


def test_the_sheet_shows_the_prediction_in_its_own_colour_and_only_in_its_column(tmp_path):
    episode_sheet(tmp_path / "a.png", [row(iou=None, size=(100, 100))])
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    body = pixels[: -int(0.32 * 130) - 1]  # without the legend
    left = 1.25 * 130
    columns = np.nonzero(near(body, PREDICTION_COLOUR, 12).any(axis=0))[0]
    assert columns.min() > left + 3 * 2.1 * 130
    columns = np.nonzero(near(body, TRUTH_COLOUR, 12).any(axis=0))[0]
    assert left + 2 * 2.1 * 130 < columns.min() <= columns.max() < left + 3 * 2.1 * 130


def test_images_of_all_proportions_fit_into_one_sheet(tmp_path):
    sizes = [(97, 97), (400, 100), (100, 400)]
    episode_sheet(
        tmp_path / "a.png", [row(size=s, class_name="a very long class name, with $x_{$ and _ in it") for s in sizes]
    )
    assert (tmp_path / "a.png").stat().st_size > 0


def test_samples_stand_side_by_side_with_their_masks_and_a_row_is_as_tall_as_its_tallest(tmp_path):
    def sample(height, width):
        return Tile(grey(height, width), square_mask(height, width), "dog, train\nx_{$")

    sample_sheet(tmp_path / "a.png", [sample(100, 100), sample(50, 100), sample(50, 100)], columns=2)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    panel, text, foot = 2.1 * 130, 0.4 * 130, 0.32 * 130
    assert pixels.shape[1] == pytest.approx(2 * panel, abs=1)
    assert pixels.shape[0] == pytest.approx(panel + panel / 2 + 2 * text + foot, abs=2)
    green = near(pixels, TRUTH_COLOUR, 10)
    second = int(panel + text)
    filled = [
        [green[rows, columns].any() for columns in (slice(0, int(panel)), slice(int(panel), None))]
        for rows in (slice(0, second), slice(second, second + int(panel / 2)))
    ]
    assert filled == [[True, True], [True, False]]


def test_a_sheet_without_episodes_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        episode_sheet(tmp_path / "a.png", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.shared
def test_a_real_animal_is_painted_where_its_mask_lies(shared_dir):
    voc = shared_dir / "data" / "voc_part"
    name = (voc / "ImageSets" / "Segmentation" / "part_val.txt").read_text().split()[0]
    image = np.array(Image.open(voc / "JPEGImages" / f"{name}.jpg").convert("RGB"))
    labels = np.array(Image.open(voc / "SegmentationClassAug" / f"{name}.png"))
    mask = np.where(labels == 255, 255, labels > 0).astype(np.uint8)
    picture = paint(image, mask, PREDICTION_COLOUR, side=1)
    brightness, before = picture.mean(axis=-1), image.mean(axis=-1)
    dimmed = brightness <= 0.5 * before + 2
    bright = before > 20  # what is black cannot be dimmed
    assert dimmed[(mask == 0) & bright].mean() > 0.8  # all but the light line outside
    assert dimmed[(mask == 1) & bright].mean() < 0.1
