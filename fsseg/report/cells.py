"""One run directory read into a `Cell`: from its result.json, or from its status and configuration without one.

`collect` is the caller. A file is either understood or refused with the reason; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
BY_FILE = ("seeds", "num_episodes", "query_order", "episodes_list")
"""Fields of a result's protocol that `protocol.episodes_file` decides, where there is one."""
_LAYOUT = re.compile(
    r"(?P<name>[^/]+)/(?P<dataset>[^/]+)/(?P<method>[^/]+)/(?P<backbone>[^/]+)/(?P<shot>\d+)shot/(?P<variant>[^/]+)"
    r"/fold(?P<fold>\d+)/seed(?P<seed>\d+)$"
)


@dataclass
class Cell:
    """One run directory, finished or not. mIoU and FB-IoU in percent; None where there is no result.

    Attributes:
        state: done, or for a cell without result: queued, running, preempted, failed, broken, unknown.
        reason: why there is no result, for people; empty for a finished cell.
        protocol: every field of the protocol; None where nothing on disk tells.
        miou, fb_iou: means over the evaluation seeds.
        miou_std, fb_iou_std: standard deviations over the evaluation seeds.
        episodes: fingerprints of the evaluated episode lists, one a seed.
        data: the data set's block of the result (fingerprints of both splits and more).
        partial: a novel class could not be evaluated; see `missing_classes`.
        result: the whole result.json.
    """

    name: str
    dataset: str
    method: str
    backbone: str
    shot: int
    fold: int
    seed: int
    variant: str
    path: Path
    state: str = "done"
    reason: str = ""
    protocol: dict[str, Any] | None = None
    miou: float | None = None
    miou_std: float | None = None
    fb_iou: float | None = None
    fb_iou_std: float | None = None
    per_class: dict[str, float] = field(default_factory=dict)
    episodes: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    partial: bool = False
    missing_classes: tuple[str, ...] = ()
    fingerprint: str = ""
    result: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All settings that decide about the numbers, flat; empty for a copied result without identity.json."""
        try:
            return mapping(load(self.path / "identity.json").get("identity"))
        except Unreadable:
            return {}

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def protocol_id(self) -> str | None:
        """8 hex digits over the protocol in full: cells are averaged only where it is equal.

        Of `episodes_file` only whether there is one counts, and which protocol its list was drawn under: every fold
        needs a file of its own. Whether two cells of a fold had the same list is for `episodes_list` to say.
        """
        if self.protocol is None:
            return None
        whole = self.protocol | {"episodes_file": self.protocol.get("episodes_file") is not None}
        if "episodes_list" in whole:
            whole["episodes_list"] = mapping(whole["episodes_list"]).get("protocol")
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:8]

    @property
    def episodes_list(self) -> str | None:
        """Fingerprint of the list in `episodes_file`, equal for all shots that were evaluated on it; None without."""
        return _text(mapping(mapping(self.protocol).get("episodes_list")).get("fingerprint"))

    @property
    def data_val(self) -> str | None:
        """Fingerprint of the evaluation split; None where the result has none."""
        return _text(self.data.get("fingerprint_val"))

    @property
    def data_train(self) -> str | None:
        """Fingerprint of the training split; None where the result has none."""
        return _text(self.data.get("fingerprint_train"))

    @property
    def label(self) -> str:
        """The cell in words: `pascal5i abcb resnet50 1-shot fold 2 seed 0`, with its variant if it has one."""
        text = f"{self.dataset} {self.method} {self.backbone} {self.shot}-shot fold {self.fold} seed {self.seed}"
        return text if self.variant == "default" else f"{text} [{self.variant}]"


def by_list(cells: list[Cell]) -> dict[str | None, list[Cell]]:
    """Cells by their list of episodes where two of one fold have different ones, else all of them under None.

    Only cells under one key were scored alike; which lists of different folds belong together, nothing tells.
    """
    if len({(c.fold, c.episodes_list) for c in cells}) == len({c.fold for c in cells}):
        return {None: cells}
    found: dict[str | None, list[Cell]] = {}
    for cell in cells:
        found.setdefault(str(cell.episodes_list), []).append(cell)
    return found


@dataclass(frozen=True)
class Problem:
    """A file that should have told something and did not."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


class Unreadable(Exception):
    """Why a file is not what its name says."""


def load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Unreadable(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise Unreadable(f"holds a {type(value).__name__} instead of an object")
    return value


def finished(folder: Path, result: dict[str, Any]) -> Cell:
    """The cell of a result of schema version 1.

    Raises:
        Unreadable: another version, or a field that the tables need is absent or no sensible value.
    """
    version = result.get("schema_version")
    if version != SCHEMA_VERSION:
        raise Unreadable(
            "has no schema_version: no result of fsseg"
            if version is None
            else f"has schema_version {version!r}; this fsseg reads version {SCHEMA_VERSION}"
        )
    key = mapping(result.get("cell"))
    metrics = mapping(result.get("metrics"))
    protocol = result.get("protocol")
    if not isinstance(protocol, dict):
        raise Unreadable("has no protocol")
    return Cell(
        **{k: _typed(key, k, str, "cell.") for k in ("name", "dataset", "method", "backbone", "variant")},
        **{k: _typed(key, k, int, "cell.") for k in ("shot", "fold", "seed")},
        path=folder,
        protocol=protocol,
        miou=_percent(metrics, "miou"),
        miou_std=_number(metrics.get("miou_std")),
        fb_iou=_number(metrics.get("fb_iou")),
        fb_iou_std=_number(metrics.get("fb_iou_std")),
        per_class={k: n for k, v in mapping(metrics.get("per_class")).items() if (n := _number(v)) is not None},
        episodes=_episodes(metrics),
        data=mapping(result.get("dataset")),
        partial=bool(result.get("partial", False)) or bool(result.get("missing_classes")),
        missing_classes=_texts(result.get("missing_classes")),
        fingerprint=str(result.get("fingerprint", "")),
        result=result,
    )


def _episodes(metrics: dict[str, Any]) -> tuple[str, ...]:
    seeds = metrics.get("per_seed")
    entries = [s for s in seeds if isinstance(s, dict)] if isinstance(seeds, list) else []
    return tuple(str(s["episodes_fingerprint"]) for s in entries if s.get("episodes_fingerprint"))


def unfinished(folder: Path, files: set[str], problems: list[Problem]) -> Cell | None:
    """The cell of a directory without a readable result, or None if the directory is no run."""
    config: dict[str, Any] = {}
    status: dict[str, Any] = {}
    if "config.yaml" in files:
        config = _load_yaml(folder / "config.yaml", problems)
    status_fault = ""
    if "status.json" in files:
        try:
            status = load(folder / "status.json")
        except Unreadable as error:
            status_fault = f"status.json {error}"
            problems.append(Problem(folder / "status.json", str(error)))
    key = _key_from_path(folder) or _key_from_config(config)
    if key is None:
        if "status.json" in files and not status_fault:
            problems.append(Problem(folder, "has a status.json, but neither its path nor its config.yaml names a cell"))
        return None
    protocol = config.get("protocol")
    state = str(status.get("state") or "unknown")
    reason = status_fault or _reason(state, status)
    if state == "done":
        state = "unknown"  # only result.json means done
    return Cell(
        **key, path=folder, state=state, reason=reason, protocol=protocol if isinstance(protocol, dict) else None
    )


def _reason(state: str, status: dict[str, Any]) -> str:
    if state == "done":
        return "status.json says done, but there is no result.json"
    if not status:
        return "has a config.yaml, but no status.json"
    parts = [state]
    if (step := _number(status.get("step"))) is not None:
        steps = _number(status.get("steps"))
        parts.append(f"step {step:.0f}" + (f" of {steps:.0f}" if steps else ""))
    if state == "running":
        if (eta := _number(status.get("eta_seconds"))) is not None:
            parts.append(f"{_span(eta)} to go")
        if (beat := _number(status.get("heartbeat"))) is not None:
            parts.append(
                f"last heard of {_span(max(0.0, time.time() - beat))} ago on {status.get('host', 'unknown host')}"
            )
    if status.get("reason"):
        parts.append(str(status["reason"]).strip())
    return ", ".join(parts)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _key_from_path(folder: Path) -> dict[str, Any] | None:
    match = _LAYOUT.search(folder.resolve().as_posix())
    if match is None:
        return None
    return {k: int(v) if k in ("shot", "fold", "seed") else v for k, v in match.groupdict().items()}


def _key_from_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """For a run directory that was copied out of its tree; its variant can no longer be told."""
    try:
        return {
            "name": str(config["name"]),
            "dataset": str(config["dataset"]["name"]),
            "method": str(config["model"]["name"]),
            "backbone": str(config["backbone"]["name"]),
            "shot": int(config["shot"]),
            "fold": int(config["fold"]),
            "seed": int(config["seed"]),
            "variant": "unknown",
        }
    except (KeyError, TypeError, ValueError):
        return None


def _load_yaml(path: Path, problems: list[Problem]) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(Problem(path, f"cannot be read ({str(error).splitlines()[0]})"))
        return {}
    return mapping(value)


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _typed(mapping: dict[str, Any], key: str, kind: type, prefix: str) -> Any:
    value = mapping.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Unreadable(f"has {prefix}{key}={value!r}, no {'text' if kind is str else 'whole number'}")
    return value


def _percent(metrics: dict[str, Any], key: str) -> float:
    value = _number(metrics.get(key))
    if value is None or not 0 <= value <= 100:
        raise Unreadable(f"has metrics.{key}={metrics.get(key)!r}, no percentage")
    return value
