"""Checkpoints: everything a run needs to continue exactly where it stopped. A reader never sees half a file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fsseg.cell.models import Origin
from fsseg.errors import UserError
from fsseg.process.files import write_atomic

if TYPE_CHECKING:
    from fsseg.config.schema import Config
    from fsseg.data.source import Source

log = logging.getLogger("fsseg")

FORMAT = 1


class Damaged(UserError):
    """A checkpoint that was cut short or altered, or a file that fsseg did not write."""


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint; `path` is whole at every moment: the old one until the new one is verified.

    Args:
        path: file of the checkpoint.
        state: tensors and plain values only.
        previous: name under which the old one is kept, in the same folder.

    Raises:
        OSError: it cannot be written; the old one is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    new = path.with_name(f"{path.name}.new")
    try:
        write_atomic(new, buffer.getvalue())
        if new.stat().st_size != buffer.tell() or _faulty_part(new) is not None:
            raise OSError(5, "the checkpoint just written reads back differently", str(new))
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(new, path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Make `previous` the file that `path` is, while `path` stays in place."""
    link = previous.with_name(f".{previous.name}.tmp")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
    except OSError:  # no hard links here: for a moment only `previous` exists, and `recover` finds it
        os.replace(path, previous)
    else:
        os.replace(link, previous)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        Damaged: it is not whole, or fsseg did not write it.
        UserError: it is missing or may not be read.
    """
    try:
        if (part := _faulty_part(path)) is not None:  # torch does not check the checksums
            raise Damaged(f"{path}: the checkpoint is damaged ({part})", "delete it, or give another one")
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint", "give the path of a checkpoints/last.pt") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Damaged(
            f"{path}: the checkpoint cannot be read ({reason[:160]})", "delete it, or give another one"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise Damaged(f"{path}: not a checkpoint of fsseg (format {FORMAT})", "give the path of a checkpoints/last.pt")
    return state


def start_from(model: nn.Module, cfg: Config, source: Source) -> Origin:
    """Fill the model from `checkpoint=`; returns its origin, for the record.

    Raises:
        UserError: it does not fit, or was trained on classes that are novel here.
    """
    path = str(cfg.checkpoint)
    state = load(Path(path))
    trained = set(state["origin"]["base_classes"])
    if seen := [source.classes[c] for c in source.novel_classes(cfg.fold) if source.classes[c] in trained]:
        raise UserError(
            f"checkpoint={path} was trained on {', '.join(seen)}, novel in fold {cfg.fold} of {cfg.dataset.name}",
            f"evaluate it on the fold it was trained for: fold={state['origin']['fold']}",
        )
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        line = str(error).splitlines()[1].strip() if len(str(error).splitlines()) > 1 else str(error)
        raise UserError(
            f"checkpoint={path} does not fit this model: {line[:200]}",
            "give the method, backbone and model.* settings it was trained with",
        ) from None
    log.info("weights from %s (step %s)", path, state["step"])
    return Origin(path=path, step=state["step"], fingerprint=state["fingerprint"], **state["origin"])


def recover(path: Path, previous: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None if there is none.

    A damaged one is reported and replaced by the previous one. Otherwise the next save would keep it as previous.

    Raises:
        UserError: one of them may not be read.
    """
    found = [p for p in (path, previous) if p.exists()]
    for candidate in found:
        try:
            state = load(candidate, device)
        except Damaged as error:
            log.warning("%s", error.what)
            continue
        if candidate is not path:
            log.warning("going on from the checkpoint before it, %s", candidate)
            os.replace(candidate, path)
        return state
    if found:
        log.warning("no checkpoint here is usable: training starts anew")
    return None


def _faulty_part(path: Path) -> str | None:
    """The first fault of the archive that holds a checkpoint (sizes and checksums of its parts), or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except zipfile.BadZipFile as error:
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
