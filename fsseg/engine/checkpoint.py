"""Checkpoints: everything a run needs to continue exactly where it stopped. A reader never sees half a file."""

from __future__ import annotations

import io
import logging
import os
import pickle
import random
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import UNSET, Meta
from torch import Tensor, nn

from fsseg.cell.models import BestCheckpoint, Origin, Unreadable, ValidationScore
from fsseg.cell.record import RunDirectory
from fsseg.config.constraints import BEST
from fsseg.errors import Diverged, UserError
from fsseg.process.files import open_regular, prepared, write_atomic

if TYPE_CHECKING:
    from fsseg.config.schema import Config
    from fsseg.data.source import Source
    from fsseg.model.base import FewShotModel

log = logging.getLogger("fsseg")

FORMAT = 2
"""1 held the rows of metrics.csv themselves, and neither run nor the number of steps in all; it is read too."""

_NotNegative = Annotated[int, Meta(ge=0)]


class _Trained(msgspec.Struct):
    """What the weights were trained on."""

    dataset: str
    fold: int
    method: str
    backbone: str
    base_classes: list[str]


class _Content(msgspec.Struct):
    """What a checkpoint holds beside tensors: checked before any of it is used."""

    format: Annotated[int, Meta(ge=1, le=FORMAT)]
    model: dict[str, Any]
    step: _NotNegative
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    rng: dict[str, Any]
    seconds: Annotated[float, Meta(ge=0)]
    loss: float
    window: list[float]
    fingerprint: str
    dataset_fingerprint: str
    origin: _Trained
    rows: _NotNegative = 0
    metrics: list[dict[str, Any]] = []
    run: str | None = None
    steps: _NotNegative | None = None
    images_fingerprint: str | None = None
    base_scores: list[ValidationScore] = []
    base_seconds: Annotated[float, Meta(ge=0)] = 0.0
    novel_scores: list[ValidationScore] = []
    novel_seconds: Annotated[float, Meta(ge=0)] = 0.0
    novel_rule: list[Any] = []
    best_novel: dict[str, Any] = {}
    best_base: dict[str, Any] = {}
    selected: str | None = None
    config: dict[str, Any] = {}


class Damaged(UserError):
    """A checkpoint that was cut short or altered, or a file that fsseg did not write."""


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint; `path` is whole at every moment: the old one until the new one is verified.

    Args:
        path: file of the checkpoint.
        state: tensors and plain values only.
        previous: name under which the old one is kept, in the same folder.

    Raises:
        Diverged: its weights are no finite numbers; the old one is untouched, as in the other cases.
        OSError: it cannot be written.
        ClaimLost: another process has the run by now.
    """
    if (name := _not_finite(state["model"])) is not None:
        raise Diverged(f"the weights {name} are no finite numbers at step {state['step']}", _DIVERGED)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    with prepared(path) as new:
        write_atomic(new, buffer.getvalue())
        if new.stat().st_size != buffer.tell() or _faulty_part(new) is not None:
            raise OSError(5, "the checkpoint just written reads back differently", str(new))
        if previous is not None and path.exists():
            _put(path, previous)
        os.replace(new, path)


def size_of(model: nn.Module, optimizer: str = "sgd", best: int = 0) -> int:
    """Bytes of a checkpoint of this model: all its weights, and what the optimiser keeps of those that train.

    That is the momentum of SGD, or AdamW's two running means. `best` is how often it holds those that train once more
    (`train.select`).
    """
    kept = [p for p in model.parameters() if p.requires_grad] * ({"sgd": 1, "adamw": 2}[optimizer] + best)
    return size_of_weights(model) + sum(tensor.numel() * tensor.element_size() for tensor in kept)


def size_of_weights(model: nn.Module) -> int:
    """Bytes of all weights and statistics."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


@dataclass(frozen=True)
class Chosen:
    """The best checkpoint of a kind of `train.select`, with the weights in which it may differ from the last one."""

    kind: str
    record: BestCheckpoint
    weights: dict[str, Tensor]


def changing_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the host of what a training may change: the parameters that train, and all statistics."""
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    state = model.state_dict().items()
    return {name: value.detach().to("cpu", copy=True) for name, value in state if name not in still}


_DIVERGED = "lower train.lr, or set train.clip_grad_norm=1, and start anew with redo=true"


def _put(source: Path, target: Path) -> None:
    """Make `target` the file that `source` is, while `source` stays in place."""
    with prepared(target) as link:
        try:
            os.link(source, link)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            shutil.copyfile(source, link)  # no hard links here
        os.replace(link, target)


def _not_finite(model: dict[str, Any]) -> str | None:
    """Name of the first tensor with NaN or infinity, or None."""
    for name, value in model.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        Damaged: it is not whole, fsseg did not write it, or its weights are no finite numbers.
        UserError: it is missing or may not be read.
    """
    try:
        if (part := _faulty_part(path)) is not None:  # torch does not check the checksums
            raise Damaged(f"{path}: {_called(path)} is damaged ({part})", _fix(path))
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint", "give the path of a checkpoints/last.pt") from None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None
    except pickle.UnpicklingError:  # torch's words advise to load it as code
        raise Damaged(f"{path}: holds objects that no checkpoint of fsseg holds", _fix(path)) from None
    except Exception as error:  # torch raises many types for a crafted file, and they differ between versions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Damaged(f"{path}: the checkpoint cannot be read ({reason[:160]})", _fix(path)) from None
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        raise Damaged(f"{path}: not a checkpoint of fsseg (format {FORMAT})", "give the path of a checkpoints/last.pt")
    try:
        msgspec.convert(state, _Content)
    except msgspec.ValidationError as error:
        raise Damaged(f"{path}: the checkpoint makes no sense ({error})", _fix(path)) from None
    for held in ("model", *BEST):
        if (name := _not_finite(state.get(held, {}))) is not None:
            raise Damaged(f"{path}: the weights {name} are no finite numbers", _fix(path))
    return state


def _is_of_a_run(path: Path) -> bool:
    """Whether a file lies where a run keeps its checkpoints: it may then be deleted, for the run makes it anew."""
    run = RunDirectory(path.absolute().parent.parent)
    return path.absolute().parent == run.checkpoints and run.identity_file.is_file()


def _called(path: Path) -> str:
    return "the checkpoint" if _is_of_a_run(path) else "it is no checkpoint, or it"


def _fix(path: Path) -> str:
    return "delete it, or give another one" if _is_of_a_run(path) else "give the path of a checkpoints/last.pt"


def start_from(model: FewShotModel, cfg: Config, source: Source) -> Origin:
    """Fill the model from `checkpoint=`; returns its origin, for the record.

    Raises:
        UserError: it does not fit, or was trained on classes that are novel here.
    """
    path = str(cfg.checkpoint)
    state = load(Path(path))
    check_with_result(Path(path), state)
    trained = set(state["origin"]["base_classes"])
    if seen := [source.classes[c] for c in source.novel_classes(cfg.fold) if source.classes[c] in trained]:
        fix = f"evaluate it on the fold it was trained for: fold={state['origin']['fold']}"
        if state["origin"]["dataset"] != cfg.dataset.name:
            fix = "name the other classes as novel (dataset.novel=[...]), or give a checkpoint that has not seen these"
        what = f"checkpoint={path} was trained on {', '.join(seen)}, novel in fold {cfg.fold} of {cfg.dataset.name}"
        raise UserError(what, fix)
    fill(model, state, path)
    selected = state.get("selected")
    return Origin(
        path=path, step=state["step"], fingerprint=state["fingerprint"], **state["origin"],
        selected=UNSET if selected is None else selected,
    )  # fmt: skip


def fill(model: FewShotModel, state: dict[str, Any], path: str) -> None:
    """Put the weights of a checkpoint that was read from `path` into a model, and say which they are.

    Raises:
        UserError: they are of another model.
    """
    if (misfit := model.misfit(state["model"])) is not None:
        raise UserError(f"checkpoint={path} {misfit.what}", misfit.fix)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        line = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise UserError(
            f"checkpoint={path} does not fit this model: {line[:200]}",
            "give the method, backbone and model.* settings it was trained with",
        ) from None
    log.info("weights from %s (step %s)", path, state["step"])
    if (selected := state.get("selected")) is not None:
        log.warning("checkpoint=%s is not the last of its training, but %s", path, BEST.get(selected, selected))
    elif (total := state.get("steps")) is not None and state["step"] < total:
        log.warning("checkpoint=%s is of an unfinished training: step %d of %d", path, state["step"], total)


def check_with_result(path: Path, state: dict[str, Any]) -> None:
    """Refuse a checkpoint that is not the one of the result beside it.

    Raises:
        UserError: run or step differ.
    """
    try:
        result = RunDirectory(path.absolute().parent.parent).result()
    except Unreadable:
        return
    if result is None or result.training is None:
        return
    step: int | None = result.training.steps
    if (selected := state.get("selected")) is not None:
        step = best.step if (best := result.best.get(selected)) is not None else None
    ours, theirs = (state.get("run"), state["step"]), (result.run, step)
    if ours[1] != theirs[1] or (None not in (ours[0], theirs[0]) and ours[0] != theirs[0]):  # None: of earlier versions
        raise UserError(
            f"{path}: run {ours[0]}, step {ours[1]}, but result.json beside it: run {theirs[0]}, step {theirs[1]}",
            "train that cell anew with redo=true, or move the checkpoint out of its directory",
        )


def recover(path: Path, previous: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None if there is none.

    A damaged one is reported and replaced by the previous one. Otherwise the next save would keep it as previous.

    Raises:
        UserError: one of them may not be read.
    """
    candidate, state = newest(path, previous, device)
    if state is not None and candidate is not path:
        _put(candidate, path)
    return state


def newest(path: Path, previous: Path, device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any] | None]:
    """As `recover`, with the file that it is in; nothing is replaced."""
    found = [p for p in (path, previous) if p.exists()]
    for candidate in found:
        try:
            state = load(candidate, device)
        except Damaged as error:
            log.warning("%s", error.what)
            continue
        if candidate is not path:
            log.warning("going on from the checkpoint before it, %s", candidate)
        return candidate, state
    if found:
        log.warning("no checkpoint here is usable: training starts anew")
    return path, None


def _faulty_part(path: Path) -> str | None:
    """The first fault of the archive that holds a checkpoint (sizes and checksums of its parts), or None."""
    try:
        with os.fdopen(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
            if packed := [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]:
                return f"{packed[0]} is compressed"  # torch compresses nothing: it could unpack to any size
            part = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error) or "no archive"
    return None if part is None else f"checksum of {part}"


def rng_state() -> dict[str, Any]:
    """State of every random number generator that training may touch."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore all generators to a state from `rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
