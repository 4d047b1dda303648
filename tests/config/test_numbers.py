"""Every numeric setting has a range: whatever number or text is given, it is refused by its key, or the run starts.

The keys come from the schemas themselves, so a new setting without a range fails here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra_plugins.fsseg_launchers import LocalConf, SlurmConf
from omegaconf import DictConfig, OmegaConf
from runs import composed, done

from fsseg.config import schema
from fsseg.config.checks import faults, field_faults
from fsseg.config.compose import Composed, composer
from fsseg.config.entry import explained, typed
from fsseg.config.hydra_internals import apply_overrides
from fsseg.errors import UserError

BAD = ("-1", "0", "1e18", "1000000000000000000", "1e30", "inf", "-inf", "nan", "text", "''", "null")
NODES = {"dataset": "dataset", "backbone": "backbone", "method": "model"}


def numbers(kind: type[Any]) -> Iterator[tuple[str, bool]]:
    """Name of every field of a schema that is a number or a list of numbers, and whether it may be null."""
    for name, hint in get_type_hints(kind).items():
        kinds = {hint, *get_args(hint)}
        if kinds & {int, float} and name in {field.name for field in fields(kind)}:
            yield name, type(None) in kinds


def settings() -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """The choice under which a setting exists, its key, and whether it may be null."""
    for name, null in numbers(schema.Config):
        yield (), name, null
    for node, kind in get_type_hints(schema.Config).items():
        if node not in NODES.values() and isinstance(kind, type) and kind.__module__ == schema.__name__:
            yield from (((), f"{node}.{name}", null) for name, null in numbers(kind))
    for group in schema.Choice.__subclasses__():
        seen = set()
        for choice, kind in group.choices().items():
            for name, null in numbers(kind):
                if name not in seen:  # what several choices share is looked at once
                    seen.add(name)
                    yield (f"{group.GROUP}={choice}",), f"{NODES[group.GROUP]}.{name}", null


SETTINGS = list(settings())


def test_the_keys_are_found() -> None:
    keys = {key for _, key, _ in SETTINGS}
    assert {"fold", "lease_seconds", "train.lr", "protocol.seeds", "dataset.year", "model.iterations",
            "backbone.trainable_layers", "sync.attempts"} <= keys  # fmt: skip
    assert len(keys) >= 45


def allowed(key: str, value: str, null: bool) -> bool:
    """What may be accepted at all: 0 where it switches something off, null where the type says so, -1 in one place."""
    return value == "0" or (value == "null" and null) or (key, value) == ("num_workers", "-1")


def found_in(cfg: DictConfig, line: str) -> list[UserError]:
    """What is wrong after one more override, as the command line applies it."""
    cfg = copy.deepcopy(cfg)
    try:
        with explained():
            apply_overrides(OverridesParser.create().parse_overrides([line]), cfg)
    except UserError as error:
        return [error]
    return list(dict(field_faults(cfg.launch, "launch.")).values()) if "launch" in cfg else faults(typed(cfg))


def check(cfg: DictConfig, key: str, null: bool) -> None:
    """Every bad value of a key is refused once, in two lines that name it, unless it may be accepted."""
    for value in BAD:
        found = found_in(cfg, f"{key}={value}")
        case = (key, value, [fault.what for fault in found])
        if not found:
            assert allowed(key, value, null), case
            continue
        assert len(found) == 1, case
        assert key in found[0].what, case
        assert found[0].fix, case
        assert "\n" not in found[0].what + found[0].fix, case


def test_a_number_out_of_range_or_a_text_is_refused_in_two_lines_that_name_the_key() -> None:
    with composer() as c:
        bases = {choice: c.compose(choice) for choice in {choice for choice, _, _ in SETTINGS}}
        for choice, key, null in SETTINGS:
            check(bases[choice], key, null)


@pytest.mark.parametrize("kind", [LocalConf, SlurmConf])
def test_so_are_the_settings_of_launchers(kind: type[Any]) -> None:
    cfg = OmegaConf.create({"launch": OmegaConf.structured(kind)})
    cfg.launch.submitit_folder = "here"  # by itself it refers to the rest of Hydra's settings
    if "name" in cfg.launch:
        cfg.launch.name = "train"
    found = list(numbers(kind))
    assert len(found) >= 5
    for name, null in found:
        check(cfg, f"launch.{name}", null)


@pytest.mark.parametrize("key", ["protocol.seeds", "eval.background_shifts", "dataset.scale_range", "model.sides"])
def test_so_are_the_elements_of_a_list(key: str) -> None:
    with composer() as c:
        cfg = c.compose(("method=pfenet",) if key.startswith("model.") else ())
    for element in BAD:
        found = found_in(cfg, f"{key}=[{element},{element}]")
        if key == "eval.background_shifts" and element == "0":
            assert found == []
            continue
        assert len(found) == 1, element
        assert key in found[0].what
        assert "\n" not in found[0].what + found[0].fix


@pytest.mark.parametrize("key", ["protocol.seeds", "eval.background_shifts"])
def test_a_list_has_an_end(key: str) -> None:
    with composer() as c:
        ((_, result),) = c.each([[f"{key}=[{','.join(str(i % 2 if 'shift' in key else i) for i in range(1001))}]"]])
    assert isinstance(result, Composed)
    (found,) = faults(result.cfg)
    assert found.what.startswith(f"{key}=")
    assert len(found.what) < 400


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["dataset.image_size=4097", "train.batch_size=4096"], "train.batch_size"),
        (["dataset.image_size=4097", "shot=1000", "train.batch_size=1", "eval.batch_size=1"], "train.batch_size"),
        (["protocol.num_episodes=1000000", "protocol.seeds=[0,1]"], "protocol.num_episodes"),
        (["protocol.num_episodes=600000", "protocol.seeds=[0]", "eval.background_shifts=[0]"], "protocol.num_episodes"),
        (["logger.figures=200", "logger.steps=true", "model.iterations=100"], "logger.figures"),
    ],
)
def test_numbers_that_no_machine_bears_together_are_refused(line: list[str], named: str) -> None:
    with composer() as c:
        found = faults(c.one(line).cfg)
    assert any(fault.what.startswith(f"{named}=") for fault in found)


def test_the_largest_published_settings_are_within_all_ranges() -> None:
    lines = (
        [
            "dataset=coco20i",
            "protocol=hdmnet",
            "shot=5",
            "train.batch_size=16",
            "backbone=resnet101",
            "dataset.val_list=" + __file__,
        ],
        [
            "dataset=coco20i",
            "protocol=pfenet",
            "dataset.image_size=1025",
            "train.batch_size=8",
            "dataset.val_list=" + __file__,
        ],
        ["dataset=pascal5i", "shot=10", "train.epochs=1000", "dataset.scale_range=[0.5,2]", "train.lr=0.1"],
    )
    with composer() as c:
        assert [faults(c.one(line).cfg) for line in lines] == [[], [], []]


@pytest.mark.slow
@pytest.mark.parametrize("value", ["-1", "0", "null"])
def test_what_is_accepted_runs(value: str, tmp_path: Path) -> None:
    for choice, key, null in SETTINGS:
        if not allowed(key, value, null) or "dataset.year" in key:  # the only one of a data set that is not there
            continue
        line = () if choice and choice[0].startswith("dataset") else choice
        try:
            overrides = (*line, f"{key}={value}", f"name={key}", "backbone.pretrained=false", "train.epochs=1")
            one = composed(tmp_path / "data", tmp_path / "out", *overrides)
        except UserError:
            continue  # refused as no value of this type
        if not faults(one.cfg):
            assert done(one).miou is not None, (key, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "lease_seconds=1", "lease_seconds=1000000", "dataset.rotate_degrees=360", "model.loss_weight=1000",
        "logger.every_steps=1000000000", "train.poly_power=1000", "train.clip_grad_norm=1e9", "train.lr=1e-300",
        "train.clip_grad_norm=1e-300", "train.checkpoint_minutes=1000000", "train.checkpoint_epochs=1000000",
        "seed=4294967295", "dataset.generator_seed=4294967295", "protocol.seeds=[4294967295]", "model.neck_pool=128",
        "train.momentum=0.9999", "train.weight_decay=1000", "train.lr=1000", "model.histogram_bins=1024",
        "model.histogram_width=1024", "model.heads=16", "protocol.min_pixels=100000000", "backbone.trainable_layers=5",
        "dataset.scale_range=[0.1,10]", "dataset.scale_range=[10,10]", "dataset.scale_range=[0.1,0.1]", "shot=1000",
        "train.epochs=1000000", "train.max_steps=1", "eval.batch_size=4096", "dataset.num_train=1", "dataset.num_val=1",
        "dataset.image_size=9", "sync.attempts=100", "sync.timeout_seconds=86400", "dataset.num_folds=20",
    ],
)  # fmt: skip
def test_a_run_at_the_end_of_a_range_ends_in_a_result_or_in_two_lines(line: str, tmp_path: Path) -> None:
    one = composed(tmp_path / "data", tmp_path / "out", line)
    assert faults(one.cfg) == []
    try:
        assert done(one).miou is not None
    except UserError as error:
        told = str(error)
    else:
        return
    assert len(told.splitlines()) == 2
