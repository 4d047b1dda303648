"""Every method on real images of PASCAL and COCO: it trains a step, is scored, and has its row in one table."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from runs import done

from fsseg.config.compose import compose
from fsseg.config.schema import MethodConfig, TimmConfig
from fsseg.report.aggregate import aggregate

pytestmark = [pytest.mark.shared, pytest.mark.filterwarnings("ignore")]

METHODS = MethodConfig.choices()
DATA = {
    "pascal5i": ("protocol.train_pool=part_train", "dataset.val_list=part_val", "fold=2"),
    "coco20i": ("dataset.year=2017", "protocol.min_pixels=0", "fold=0"),
}
SMALL = ("train.max_steps=1", "train.batch_size=2", "protocol.num_episodes=4", "protocol.seeds=[0]", "num_workers=0",
         "num_threads=1", "device=cpu", "logger.figures=0", "logger.tensorboard=false", "dataset.image_size=41",
         "base_training.max_steps=1", "base_training.batch_size=2", "base_training.image_size=41")  # fmt: skip


@pytest.mark.parametrize("dataset", DATA)
def test_every_method_trains_and_scores_on_real_images(dataset: str, shared_dir: Path, tmp_path: Path) -> None:
    """With ImageNet features of a model of timm where the method can read them, else with the tiny backbone."""
    weights = shared_dir / "weights" / "mobilenetv1_100_cut12.pth"
    real = ("backbone=timm", "backbone.model=mobilenetv1_100", f"backbone.weights={weights}")
    folder = shared_dir / "data" / ("voc_part" if dataset == "pascal5i" else "coco_tiny")
    place = (f"dataset.root={folder}", f"dataset.cache={tmp_path / 'cache'}", f"output_dir={tmp_path}")
    for method, schema in METHODS.items():
        backbone = real if schema.NEEDS <= TimmConfig.PROVIDES else ("backbone=tiny",)
        c = compose([f"method={method}", f"dataset={dataset}", *DATA[dataset], *backbone, *place, *SMALL])
        result = done(c)
        score = result.base_classes.base_miou if result.base_classes is not None else result.miou
        assert score is not None, method
        assert 0 <= score <= 100, method
        assert math.isfinite(score), method
    text = aggregate([tmp_path / "runs"], tmp_path)
    few_shot = [method for method in METHODS if method != "pspnet"]
    assert [method for method in few_shot if f"\n{method} " not in text] == []
    assert text.count("(mIoU in percent") == 1  # one table
