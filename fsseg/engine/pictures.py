"""Sheets of evaluated episodes for the run directory. Called by `fsseg.run`."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fsseg.cell import Cell
from fsseg.config import Config
from fsseg.data.source import Source
from fsseg.engine.evaluate import EvaluationRecord
from fsseg.report.figures import SheetRow, episode_sheet


def draw(cell: Cell, cfg: Config, source: Source, evaluation: EvaluationRecord) -> None:
    """Sheets of support | query | truth | prediction, at original size."""
    rows = []
    for picture in evaluation.pictures:
        spec = picture.spec
        query = source.image("val", spec.query_id)
        prediction = picture.prediction.astype(np.uint8)
        if prediction.shape != query.shape[:2]:  # scored at network size: back to the image for the eye
            prediction = np.asarray(Image.fromarray(prediction).resize(query.shape[1::-1], Image.Resampling.NEAREST))
        rows.append(
            SheetRow(
                support_images=[source.image("val", i) for i in spec.support_ids],
                support_masks=[source.mask("val", i, spec.class_id) for i in spec.support_ids],
                query_image=query,
                query_mask=source.mask("val", spec.query_id, spec.class_id),
                prediction=prediction,
                class_name=source.classes[spec.class_id],
                iou=picture.iou,
                note=spec.query_id,
            )
        )
    if rows:
        title = f"{cell.key.method}, {cell.key.dataset} fold {cell.key.fold}, {cell.key.backbone}, {cell.key.shot}-shot"
        episode_sheet(cell.directory / "figures" / "episodes.png", rows, title)
