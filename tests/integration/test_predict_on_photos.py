"""Prediction on real photographs of PASCAL: as scored, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import done

import fsseg
from fsseg.cell.finished import open_finished
from fsseg.cell.record import RunDirectory, open_cell
from fsseg.config.compose import compose
from fsseg.engine.redraw import answer

pytestmark = [pytest.mark.shared, pytest.mark.filterwarnings("ignore")]

LINE = ("dataset=pascal5i", "protocol.train_pool=part_train", "dataset.val_list=part_val", "fold=2", "backbone=timm",
        "backbone.model=mobilenetv1_100", "train.max_steps=1", "train.batch_size=2", "train.lr=1e-6",
        "protocol.num_episodes=3", "protocol.seeds=[0]", "num_workers=0", "num_threads=1", "device=cpu",
        "logger.figures=0", "logger.tensorboard=false", "dataset.image_size=73")  # fmt: skip


@pytest.mark.parametrize("method", ["abcb", "prototype"])
def test_masks_of_real_photos_are_those_that_were_scored(method: str, shared_dir: Path, tmp_path: Path) -> None:
    voc = shared_dir / "data" / "voc_part"
    weights = shared_dir / "weights" / "mobilenetv1_100_cut12.pth"
    c = compose([f"method={method}", *LINE, f"backbone.weights={weights}", f"dataset.root={voc}", "shot=2",
                 f"dataset.cache={tmp_path / 'cache'}", f"output_dir={tmp_path}"])  # fmt: skip
    done(c)
    found = open_finished(RunDirectory(open_cell(c.cfg, c.resolved, c.task_overrides).directory))
    pictures = answer(found, {(0, 0), (0, 1), (0, 2)}).pictures
    predictor = fsseg.load(found.cell.directory)
    marked = 0
    for (_, number), picture in pictures.items():
        spec, supports = picture.spec, []
        for name in spec.support_ids:
            labels = np.array(Image.open(voc / "SegmentationClassAug" / f"{name}.png"))
            mask = np.where(labels == 255, 255, labels == spec.class_id + 1).astype(np.uint8)
            Image.fromarray(mask).save(tmp_path / f"{number}_{name}.png")
            supports.append((voc / "JPEGImages" / f"{name}.jpg", tmp_path / f"{number}_{name}.png"))
        mask = predictor.predict(voc / "JPEGImages" / f"{spec.query_id}.jpg", supports).mask
        np.testing.assert_array_equal(mask, picture.prediction)
        marked += int(mask.sum())
    assert marked > 1000
