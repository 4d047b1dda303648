"""Sheets of evaluated episodes for the run directory. Called by `fsseg.run`; `fsseg.engine.redraw` draws rows of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsseg.cell.key import CellKey
from fsseg.data.source import Source
from fsseg.draw.plots import training_curves
from fsseg.draw.sheets import SheetRow, episode_sheet
from fsseg.engine.context import Run
from fsseg.engine.evaluate import EvaluationRecord
from fsseg.engine.scoring import Picture


def draw_figures(run: Run, source: Source, evaluation: EvaluationRecord | None, curves: bool) -> None:
    """Fill figures/: the sheets of an evaluation, if there was one, and the curves of a training."""
    if evaluation is not None and evaluation.pictures:
        _sheets(run, source, evaluation)
    if curves:
        training_curves(run.cell.curves_figure, run.cell.curves())


def _sheets(run: Run, source: Source, evaluation: EvaluationRecord) -> None:
    """Support | query | truth | prediction, at original size; another with every step (`logger.steps`)."""
    rows = [sheet_row(source, picture) for picture in evaluation.pictures]
    title = title_of(run.cell.key)
    episode_sheet(run.cell.episodes_figure, [replace(row, answers=[]) for row in rows], title)
    if run.cfg.logger.steps:
        episode_sheet(run.cell.steps_figure, rows, title)


def title_of(key: CellKey) -> str:
    """What a sheet is of."""
    return f"{key.method}, {key.dataset} fold {key.fold}, {key.backbone}, {key.shot}-shot"


def sheet_row(source: Source, picture: Picture) -> SheetRow:
    """One evaluated episode as a row of a sheet, its images at original size."""
    spec = picture.spec
    query = source.image("val", spec.query_id)
    return SheetRow(
        support_images=[source.image("val", i) for i in spec.support_ids],
        support_masks=[source.mask("val", i, spec.class_id) for i in spec.support_ids],
        query_image=query,
        query_mask=source.mask("val", spec.query_id, spec.class_id),
        prediction=_fitted(picture.prediction, query),
        class_name=source.classes[spec.class_id],
        iou=picture.iou,
        note=spec.query_id,
        answers=[(name, _fitted(mask, query)) for name, mask in picture.steps],
    )


def _fitted(prediction: NDArray[np.bool_], query: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A prediction made at network size, scaled to the size of its image for display."""
    mask = prediction.astype(np.uint8)
    if mask.shape == query.shape[:2]:
        return mask
    return np.asarray(Image.fromarray(mask).resize(query.shape[1::-1], Image.Resampling.NEAREST))
