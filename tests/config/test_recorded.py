"""A recorded configuration becomes the one that it was recorded of, or is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omegaconf import OmegaConf

from fsseg.cell.key import flatten
from fsseg.cell.record import open_cell
from fsseg.config.compose import compose, composer
from fsseg.config.entry import resolved, typed
from fsseg.config.history import BEFORE
from fsseg.config.recorded import from_recorded
from fsseg.config.schema import trains
from fsseg.errors import UserError


def test_every_choice_comes_back_with_its_types_and_its_fingerprint() -> None:
    with composer() as c:
        grid = c.grid(["dataset=shapes5i,pascal5i,coco20i", "method=abcb,baseline,prototype", "train.max_steps=null,5"])
    assert len(grid) == 18
    for _, composed in grid:
        assert not isinstance(composed, UserError)
        plain = json.loads(json.dumps(composed.resolved))
        config: Any = from_recorded(plain)
        assert resolved(config) == composed.resolved
        for node in ("dataset", "backbone", "model", "protocol", "train"):
            assert OmegaConf.get_type(config[node]) is OmegaConf.get_type(composed.config[node])
        assert trains(config) == trains(composed.cfg)
        then = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
        assert open_cell(config, plain, composed.task_overrides).fingerprint == then.fingerprint


@pytest.mark.parametrize(
    ("change", "named"),
    [({"new": 1}, "new"), ({"fold": None}, "fold"), ({"seed": "x"}, "seed"), ({"train": {"new": 1}}, "new"),
     ({"model": {"name": "gone"}}, "gone"), ({"model": {}}, "name"), ({"dataset": 5}, "int")],
)  # fmt: skip
def test_what_this_code_does_not_know_is_refused(change: dict[str, Any], named: str) -> None:
    plain = compose([]).resolved | change
    with pytest.raises(UserError, match="does not fit this version") as caught:
        from_recorded(plain)
    assert named in caught.value.what


def test_a_missing_setting_is_refused() -> None:
    plain = compose([]).resolved
    del plain["seed"]
    with pytest.raises(UserError, match="seed is known on one side only"):
        from_recorded(plain)


def earlier(plain: dict[str, Any]) -> dict[str, Any]:
    """As it was recorded before any of the settings existed that came later, and while those that are gone did."""
    found: dict[str, Any] = json.loads(json.dumps(plain))
    for key in BEFORE:
        group, _, name = key.partition(".")
        found[group].pop(name, None)
    for name in ("base_training", "check", "notify", "num_threads", "sync"):
        found.pop(name)
    found["logger"].pop("trackers")
    found["dataset"]["hue_shift"], found["train"]["warmup_steps"] = 0.0, 0
    return found


@pytest.mark.parametrize("line", [["dataset=coco20i", "backbone=resnet50"], ["dataset=shapes5i", "train.lr=0.5"]])
def test_a_run_of_before_has_what_every_run_had_then(line: list[str]) -> None:
    composed = compose(line)
    today: Any = from_recorded(composed.resolved)
    found: Any = from_recorded(earlier(composed.resolved))
    flat, now = flatten(resolved(found)), flatten(resolved(today))
    assert flat.keys() == now.keys()
    known = {key: value for key, value in BEFORE.items() if key in now}
    assert {key: flat[key] for key in known} == known
    assert {k for k in now if flat[k] != now[k]} <= {*known, *(k for k in now if k.startswith("base_training."))}
    if line[0] == "dataset=coco20i":  # today masks are painted, and the run had others
        assert (found.dataset.coco_masks, today.dataset.coco_masks) == ("union", "painted")
    assert trains(found) == trains(today)
    gone = earlier(composed.resolved)
    gone["train"]["warmup_steps"] = 100
    with pytest.raises(UserError, match="warmup_steps"):
        from_recorded(gone)


def test_a_job_of_before_trackers_and_the_command_at_the_end_is_the_same_cell_without_them() -> None:
    """As a job of a sweep takes it from the record (`fsseg.sweep.launchers.base`)."""
    composed = compose(["dataset=shapes5i", "train.lr=0.5"])
    plain = json.loads(json.dumps(composed.resolved))
    del plain["notify"], plain["logger"]["trackers"]
    config: Any = from_recorded(plain)
    assert (config.notify.on_end, config.notify.timeout_seconds, config.logger.trackers) == (None, 60.0, [])
    now = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
    then = open_cell(typed(config), plain, composed.task_overrides)
    assert (then.fingerprint, then.directory) == (now.fingerprint, now.directory)
