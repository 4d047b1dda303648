"""One cell from configuration to result.json: check, resume, train, evaluate, draw, record. `train.py` calls `run`."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fsseg.cell import SCHEMA_VERSION, Cell, Status, key_dict, open_cell, write_atomic, write_json
from fsseg.config import Config, faults
from fsseg.data.registry import build_source, folder_faults
from fsseg.entry import typed
from fsseg.errors import UserError, merge_errors
from fsseg.provenance import provenance

if TYPE_CHECKING:
    import torch

    from fsseg.data.source import Source
    from fsseg.engine.evaluate import EvaluationRecord

log = logging.getLogger("fsseg")


def run(config: DictConfig, overrides: Sequence[str] | None = None) -> dict[str, Any]:
    """Bring one cell to its end and return its result.

    A cell that is done already returns at once; one that was interrupted goes on from its checkpoint.

    Args:
        config: composed from `conf/`.
        overrides: what it was composed with; None asks Hydra.

    Raises:
        UserError: for every fault that the user can mend.
    """
    cfg = typed(config)
    configure_logging(cfg.log_level)
    if overrides is None:
        overrides = _hydra_overrides()
    if found := faults(cfg):
        raise merge_errors(found)
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    cell = open_cell(cfg, {str(k): v for k, v in resolved.items()}, overrides)
    if not cfg.redo and (result := cell.finished()) is not None:
        log.info("already done: %s%s", cell.directory, _score_line(result))
        return result
    if found := folder_faults(cfg):
        raise merge_errors(found)
    if cfg.redo:
        shutil.rmtree(cell.directory, ignore_errors=True)
    cell.check_same_settings()
    return _run_cell(cell, config, cfg)


def _run_cell(cell: Cell, config: DictConfig, cfg: Config) -> dict[str, Any]:
    try:
        write_json(cell.identity_file, {"fingerprint": cell.fingerprint, "identity": cell.identity})
        write_atomic(cell.config, OmegaConf.to_yaml(config, resolve=True))
    except OSError as error:
        raise UserError(f"{cell.directory}: cannot be written ({error.strerror})", "free space or mend permissions, or set output_dir=") from None
    handler = logging.FileHandler(cell.directory / "train.log", encoding="utf-8")
    handler.setFormatter(_FORMAT)
    logging.getLogger("fsseg").addHandler(handler)
    status = Status(cell.status)
    attempt = _next_attempt(cell)
    try:
        status.update(state="running", phase="prepare")
        log.info("cell %s", cell.key)
        result = _train_and_evaluate(cell, cfg, status, attempt)
        status.update(state="done", phase=None, eta_seconds=0, peak_memory_bytes=result["peak_memory_bytes"])
        attempt("done")
        return result
    except UserError as error:
        log.debug("%s", traceback.format_exc())
        _file_only(handler, f"error: {error}")
        status.update(state="failed", phase=None, reason=error.what)
        attempt(f"failed: {error.what}")
        raise
    except KeyboardInterrupt:
        status.update(state="failed", phase=None, reason="interrupted at the keyboard")
        attempt("interrupted at the keyboard")
        raise
    except Exception as error:
        _file_only(handler, traceback.format_exc())
        status.update(state="failed", phase=None, reason=f"{type(error).__name__}: {error}"[:500])
        attempt(f"failed: {type(error).__name__}: {error}"[:500])
        raise
    finally:
        logging.getLogger("fsseg").removeHandler(handler)
        handler.close()


def _train_and_evaluate(cell: Cell, cfg: Config, status: Status, attempt: Callable[[str], None]) -> dict[str, Any]:
    import torch

    from fsseg.engine import checkpoint
    from fsseg.engine.evaluate import evaluate
    from fsseg.engine.train import train
    from fsseg.model import build_model

    device = choose_device(cfg.device)
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    started = time.monotonic()
    source = build_source(cfg)
    checkpoint.seed_everything(cfg.seed)
    model = build_model(cfg).to(device)
    if cfg.checkpoint is not None:
        _load_weights(model, cfg.checkpoint)
    log.info("%s on %s, %s: %.2f M parameters, %.2f M of them train", cfg.model.name, cfg.backbone.name, describe_device(device),
             sum(p.numel() for p in model.parameters()) / 1e6,
             sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6)  # fmt: skip
    prepared = time.monotonic()

    record = None
    if cfg.train.enabled and model.trainable:
        status.update(phase="train")
        record = train(model, source, cfg, cell, status, device, should_stop=lambda: None)
    evaluation = None
    if cfg.eval.enabled:
        status.update(phase="evaluate")
        evaluation = evaluate(model, source, cfg, status, device)
    status.update(phase="record")
    figures_started = time.monotonic()
    if evaluation is not None and cfg.logger.figures:
        draw(cell, cfg, source, evaluation)
    if record is not None:
        from fsseg.report.figures import training_curves

        training_curves(cell.directory / "figures" / "curves.png", cell.directory / "metrics.csv")
    finished = time.monotonic()

    result = {
        "schema_version": SCHEMA_VERSION,
        "cell": key_dict(cell.key),
        "fingerprint": cell.fingerprint,
        "protocol": _plain(cfg.protocol),
        "metrics": evaluation.metrics if evaluation else None,
        "partial": bool(evaluation and evaluation.missing_classes),
        "missing_classes": evaluation.missing_classes if evaluation else [],
        "dataset": {
            "name": cfg.dataset.name,
            "novel_classes": [source.classes[c] for c in source.novel_classes(cfg.fold)],
            "num_val_images": len(source.index("val").image_ids),
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
        "checkpoint": cfg.checkpoint,
        "timing": {
            "prepare_seconds": round(prepared - started, 2),
            "train_seconds": record.seconds if record else None,
            "evaluate_seconds": evaluation.seconds if evaluation else None,
            "figures_seconds": round(finished - figures_started, 2),
        },
        "peak_memory_bytes": peak_memory(device),
        "provenance": provenance(describe_device(device)),
        "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip
    write_json(cell.result, result)
    log.info("done: %s%s", cell.directory, _score_line(result))
    return result


def draw(cell: Cell, cfg: Config, source: Source, evaluation: EvaluationRecord) -> None:
    """Sheets of support | query | truth | prediction, at original size."""
    import numpy as np

    from fsseg.report.figures import SheetRow, episode_sheet

    rows = []
    for picture in evaluation.pictures:
        spec = picture.spec
        query = source.image("val", spec.query_id)
        prediction = picture.prediction.astype(np.uint8)
        if prediction.shape != query.shape[:2]:  # scored at network size: back to the image for the eye
            from PIL import Image

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


def choose_device(name: str) -> torch.device:
    """The device of `device=`.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name} is no device", "set device to auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device={name}: torch sees {torch.cuda.device_count()} GPUs", "set device=auto or device=cpu")
    return device


def describe_device(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where there is one, else the resident size of this process at its largest."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


_FORMAT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


def configure_logging(level: str) -> None:
    """Our loggers to stderr at `level`; the root logger and Hydra's stay as they are."""
    logger = logging.getLogger("fsseg")
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        level = "info"  # `faults` names it
    logger.setLevel(level.upper())
    logger.propagate = False
    if not any(getattr(h, "fsseg_console", False) for h in logger.handlers):
        console = logging.StreamHandler()
        console.setFormatter(_FORMAT)
        console.fsseg_console = True  # type: ignore[attr-defined]
        logger.addHandler(console)


def _file_only(handler: logging.FileHandler, text: str) -> None:
    handler.emit(logging.LogRecord("fsseg", logging.ERROR, "", 0, text, (), None))


def _hydra_overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def _score_line(result: dict[str, Any]) -> str:
    metrics = result.get("metrics")
    return f"  mIoU {metrics['miou']:.2f}  FB-IoU {metrics['fb_iou']:.2f}" if metrics else ""


def _load_weights(model: torch.nn.Module, path: str) -> None:
    from pathlib import Path

    from fsseg.engine import checkpoint

    state = checkpoint.load(Path(path))
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        line = str(error).splitlines()[1].strip() if len(str(error).splitlines()) > 1 else str(error)
        raise UserError(
            f"checkpoint={path} does not fit this model: {line[:200]}",
            "give the method, backbone and model.* settings it was trained with",
        ) from None
    log.info("weights from %s (step %s)", path, state.get("step"))


def _next_attempt(cell: Cell) -> Callable[[str], None]:
    """Open attempts/<n>.json for this start; the returned function notes why it ended."""
    folder = cell.directory / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(p.stem) for p in folder.glob("*.json") if p.stem.isdigit()]
    path = folder / f"{max(taken, default=0) + 1}.json"
    record = {"started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"), "ended": None, **provenance()}
    record["pid"] = os.getpid()
    write_json(path, record)

    def end(reason: str) -> None:
        record["ended"] = reason
        record["ended_at"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(path, record)

    return end
