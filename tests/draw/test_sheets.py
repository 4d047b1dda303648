from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fsseg.draw.sheets import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    SheetRow,
    episode_sheet,
    paint,
    read_curves,
    training_curves,
)


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
    return {
        "support_images": [image] * shots, "support_masks": [mask] * shots, "query_image": image, "query_mask": mask,
        "prediction": mask, "class_name": "dog", "iou": 87.5,
    } | changes  # fmt: skip


def test_a_sheet_is_one_png_with_room_for_every_episode_and_support(tmp_path):
    episode_sheet(tmp_path / "new" / "a.png", [row(), row()], "title")
    episode_sheet(tmp_path / "b.png", [SheetRow(**row(5)), row(3)])
    a, b = Image.open(tmp_path / "new" / "a.png"), Image.open(tmp_path / "b.png")
    assert a.format == "PNG"
    assert b.width - a.width == pytest.approx(4 * 2.1 * 130, abs=4)  # four more panels of 2.1 inches at 130 dpi
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


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


def test_a_sheet_without_episodes_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        episode_sheet(tmp_path / "a.png", [])
    assert list(tmp_path.iterdir()) == []


def test_curves_skip_empty_and_broken_cells_and_take_the_later_of_two_lines(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,train/loss,lr,val/miou\n10,1.0,0.1,\n20,0.9,0.09,40\n20,0.8,0.09,41\n30,nan,0.08,\n40,0.")
    curves = read_curves(file)
    assert curves["train/loss"] == ([10.0, 20.0, 40.0], [1.0, 0.8, 0.0])
    assert curves["lr"] == ([10.0, 20.0, 30.0], [0.1, 0.09, 0.08])
    assert curves["val/miou"] == ([20.0], [41.0])


def test_curves_have_a_panel_for_miou_only_where_it_was_recorded(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss,lr\n" + "".join(f"{s},{1 / s},{0.1}\n" for s in range(1, 200)))
    assert training_curves(tmp_path / "two.png", file)
    file.write_text("step,loss,lr,val/miou\n1,2,0.1,30\n2,1,0.1,40\n")
    assert training_curves(tmp_path / "three.png", file)
    two, three = Image.open(tmp_path / "two.png"), Image.open(tmp_path / "three.png")
    assert three.width / two.width == pytest.approx(1.5, abs=0.01)


def test_no_curves_are_drawn_of_nothing(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss\n")
    assert not training_curves(tmp_path / "a.png", file)
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(FileNotFoundError):
        training_curves(tmp_path / "a.png", tmp_path / "absent.csv")


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
