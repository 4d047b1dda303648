"""What a run did, and result.json, which says so. Called by `fsseg.run`; `fsseg.report` reads the file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from fsseg.cell.attempt import now
from fsseg.cell.record import SCHEMA_VERSION, Cell, key_dict
from fsseg.config.schema import Config
from fsseg.engine.devices import describe_device, peak_memory
from fsseg.process.provenance import provenance

if TYPE_CHECKING:
    import torch

    from fsseg.data.source import Source
    from fsseg.engine.evaluate import EvaluationRecord
    from fsseg.engine.train import TrainingRecord


class Work:
    """What a run did, for the result."""

    def __init__(
        self, source: Source, device: torch.device, started: float, came_from: dict[str, Any] | None = None
    ) -> None:
        self.source, self.device, self.came_from = source, device, came_from
        self.training: TrainingRecord | None = None
        self.evaluation: EvaluationRecord | None = None
        self.timing: dict[str, float | None] = {"prepare_seconds": round(time.monotonic() - started, 2)}


def build_result(cell: Cell, cfg: Config, done: Work) -> dict[str, Any]:
    """The content of result.json."""
    source, record, evaluation = done.source, done.training, done.evaluation
    return {
        "schema_version": SCHEMA_VERSION,
        "cell": key_dict(cell.key),
        "fingerprint": cell.fingerprint,
        "report": cfg.report,
        "model": OmegaConf.to_container(cfg.model, resolve=True),  # type: ignore[arg-type]
        "protocol": {
            **OmegaConf.to_container(cfg.protocol, resolve=True),  # type: ignore[arg-type, dict-item]
            **(evaluation.protocol if evaluation else {}),
        },
        "metrics": evaluation.metrics if evaluation else None,
        "partial": bool(evaluation and evaluation.missing_classes),
        "missing_classes": evaluation.missing_classes if evaluation else [],
        "dataset": {
            "name": cfg.dataset.name,
            "novel_classes": [source.classes[c] for c in source.novel_classes(cfg.fold)],
            "num_val_images": len(source.index("val").image_ids) if evaluation else None,
            "train_list": source.list_origin("train") if record else None,
            "val_list": source.list_origin("val") if evaluation else None,
            "mask_rule": source.mask_rule,
            "fingerprint_train": record.dataset_fingerprint if record else None,
            "fingerprint_val": evaluation.dataset_fingerprint if evaluation else None,
            "episodes_fingerprint": evaluation.episodes_fingerprint if evaluation else None,
        },
        "training": None
        if record is None
        else {
            "steps": record.steps, "epochs": record.epochs, "images": record.images,
            "batch_size": cfg.train.batch_size, "final_loss": record.final_loss,
        },
        "cost": _cost(cfg) if cfg.eval.diagnostics else None,
        "checkpoint": done.came_from,
        "timing": {
            key: done.timing.get(key)
            for key in ("prepare_seconds", "train_seconds", "evaluate_seconds", "figures_seconds")
        },
        "peak_memory_bytes": peak_memory(done.device),
        "provenance": provenance(describe_device(done.device)),
        "finished_at": now(),
    }  # fmt: skip


def _cost(cfg: Config) -> dict[str, Any] | None:
    from fsseg.engine.diagnostics import cost_summary  # here, because a finished cell must not cost an import of torch

    return cost_summary(cfg)
