"""Every field says what it may be; a value that cannot be is told once, by its key, whatever else it breaks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from fsseg.config import schema
from fsseg.config.checks import faults, validate
from fsseg.config.compose import Composed, compose, composer, config_folder
from fsseg.errors import UserError

# One choice for each schema class, and the part of the configuration that is its own.
CHOICES = (("", ""), ("dataset=pascal5i", "dataset."), ("dataset=coco20i", "dataset."), ("method=baseline", "model."),
           ("method=prototype", "model."), ("method=hsnet", "model."), ("method=bam", "model."),
           ("backbone=resnet18", "backbone."), ("search=lr_and_rounds", "search."))  # fmt: skip
ANY_NUMBER = {"dataset.generator_seed", "search.trial"}
ANY_TEXT = {"output_dir", "device", "eval.feature_folder", "dataset.root", "dataset.cache", "dataset.sbd_root",
            "dataset.train_list", "dataset.val_list", "dataset.label_maps", "protocol.name",
            "protocol.train_pool", "notify.on_end", "search.storage", "search.study",
            "search.metric"}  # fmt: skip
NAMES = {"name", "variant"}  # any plain name
LISTS = {
    "data.roots": ["{pascal5i:''}", f"{{coco20i:{'x' * 300}}}"],
    "base_training.scale_range": ["[1.2,0.8]", "[0.9]", "[]"],
    "dataset.scale_range": ["[1.2,0.8]", "[0.9]", "[]", "[-1,1]", "[nan,1]", "[0.5,inf]"],
    "protocol.seeds": ["[1,1]", "[]"],
    "protocol.unlike": [],  # any text
    "train.betas": ["[0.9]", "[]", "[0.9,1]", "[-0.1,0.9]", "[nan,0.9]"],
    "logger.trackers": ["[nonsense]", "[wandb,wandb]"],
    "train.select": ["[last]", "[best_base,best_base]"],
    "train.lr_factors": ["{backbone:-1}", "{backbone:1001}", "{neck:0.1,backbone:nan}"],
    "eval.background_shifts": ["[0,2]", "[-1]", "[nan]"],
    "search.space": [],  # tests/sweep/test_search_space.py
}
OPEN = {"train.lr_factors"}  # its names are the user's own: to Hydra they are new keys, written with a +


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, set[type]]]:
    """Dotted key and types of every field of a composed configuration, by its schema."""
    kind = schema.OmegaConf.get_type(node)
    hints = get_type_hints(kind)
    for field in fields(kind):
        key, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint) or (get_origin(hint) is UnionType and any(map(is_dataclass, get_args(hint)))):
            if node[field.name] is not None:
                yield from leaves(node[field.name], f"{key}.")
        else:
            yield key, {hint, *get_args(hint)}


def bad_values(key: str, types: set[type]) -> list[str]:
    if key in LISTS:
        return LISTS[key]
    if float in types:
        return ["-2", "nan"]
    if int in types:
        return [] if key in ANY_NUMBER else ["-2"]
    if str in types:
        return ["a/b"] if key in NAMES else [] if key in ANY_TEXT else ["nonsense"]
    assert bool in types, key
    return []


def one(line: list[str]) -> Composed:
    with composer() as c:
        return c.one(line)


@pytest.mark.parametrize(("choice", "part"), CHOICES)
def test_a_bad_value_is_told_exactly_once_and_by_its_key(choice: str, part: str) -> None:
    line = [choice] if choice else []
    own = [(key, types) for key, types in leaves(one(line).cfg) if key.startswith(part)]
    wanted = [(key, value) for key, types in own for value in bad_values(key, types)]
    assert len(wanted) >= (2 if part else 70)
    with composer() as c:
        made = c.each([[*line, f"{'+' * (key in OPEN)}{key}={value}"] for key, value in wanted])
    for (key, value), (_, composed) in zip(wanted, made):
        assert isinstance(composed, Composed), (key, value, composed)
        found = faults(composed.cfg)
        assert [fault.what for fault in found if not fault.what.startswith(f"{key}=")] == [], (key, value)
        assert len(found) == 1, (key, value, [fault.what for fault in found])
        assert found[0].fix


@pytest.mark.parametrize(("choice", "part"), CHOICES)
@pytest.mark.parametrize("value", ["0", "1000000", "inf"])
def test_a_number_at_the_rim_is_told_at_most_once(value: str, choice: str, part: str) -> None:
    line = [choice] if choice else []
    own = [(key, types) for key, types in leaves(one(line).cfg) if key.startswith(part) and key not in LISTS]
    numbers = [key for key, types in own if types & {int, float}]
    with composer() as c:
        made = c.each([[*line, f"{key}={value}"] for key in numbers])
    for key, (_, composed) in zip(numbers, made):
        if isinstance(composed, UserError):  # an integer cannot be infinite
            assert value == "inf"
            continue
        found = [fault.what for fault in faults(composed.cfg)]
        assert len(found) <= 1, (key, found)
        assert all(f"{key}={value}" in what or (math.isinf(float(value)) and f"{key}=inf" in what) for what in found)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (["dataset.num_folds=0"], 1),  # not also "fold 0 does not exist"
        (["dataset.num_folds=40", "fold=30"], 1),
        (["train.enabled=false", "eval.enabled=false"], 1),
        (["model.heads=3"], 1),
        (["dataset.image_size=98"], 1),
        (["dataset.image_size=5002"], 1),  # neither within its limits nor a multiple
        (["model.layer=foo", "method=prototype"], 1),
        (["fold=7", "train.lr=-1", "dataset.image_size=98"], 3),
        (["dataset.name=foo", "dataset.num_folds=0"], 2),
        (["backbone=resnet50", "backbone.name=resnet101"], 0),  # one schema has both
        (["checkpoint=" + "x" * 300], 1),
    ],
)
def test_relations_of_a_value_at_fault_are_not_told_as_well(line: list[str], count: int) -> None:
    assert len(faults(one(line).cfg)) == count


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("dataset.name=pascal5i", "write dataset=pascal5i instead"),
        ("backbone.name=resnet50", "write backbone=resnet50 instead"),
        ("model.name=baseline", "write method=baseline instead"),
    ],
)
def test_a_name_of_another_choice_is_a_fault(line: str, fix: str) -> None:
    """Its settings are not those of the name: it once ran with the other one's."""
    [fault] = faults(one([line]).cfg)
    assert line in fault.what
    assert fault.fix == fix


@pytest.mark.parametrize("dataset", ["coco20i", "shapes5i"])
def test_a_pool_is_of_pascal_and_is_not_passed_over_elsewhere(dataset: str) -> None:
    (fault,) = faults(one([f"dataset={dataset}", "protocol.train_pool=merged_5953"]).cfg)
    assert fault.what == f"protocol.train_pool=merged_5953 is of pascal5i, and changes nothing of {dataset}"
    assert faults(one([f"dataset={dataset}", "experiment=paper", "shot=1", "fold=0"]).cfg) == []


@pytest.mark.parametrize("protocol", ["pfenet", "bam", "hdmnet", "standard protocol.query_order=first_n"])
def test_the_first_n_of_coco_need_the_list_whose_first_they_are(protocol: str, tmp_path: Path) -> None:
    line = ["dataset=coco20i", *f"protocol={protocol}".split()]
    [fault] = faults(one(line).cfg)
    assert "dataset.val_list" in fault.what
    assert "shuffled" in fault.what
    assert "lists/coco/val.txt of PFENet or BAM" in fault.fix
    assert "protocol.query_order=class_uniform" in fault.fix
    assert len(str(fault).splitlines()) == 2
    (tmp_path / "val.txt").touch()
    others = ("protocol.query_order=class_uniform", "eval.enabled=false", f"protocol.episodes_file={tmp_path}/val.txt",
              f"dataset.val_list={tmp_path}/val.txt")  # fmt: skip
    assert [faults(one([*line, other]).cfg) for other in others] == [[]] * 4
    assert faults(one([line[1], "dataset=pascal5i"]).cfg) == []
    assert faults(one(line).cfg, of_a_run=False) == []  # `fsseg cost`, `verify`: nothing is drawn


@pytest.mark.parametrize("key", ["dataset.train_list", "dataset.val_list"])
def test_a_list_of_coco_is_a_file(key: str) -> None:
    [fault] = faults(one(["dataset=coco20i", f"{key}=nowhere.txt"]).cfg)
    assert fault.what == f"{key}=nowhere.txt is not a file"


def test_label_maps_that_would_not_be_read_are_a_fault() -> None:
    [fault] = faults(one(["dataset=coco20i", "dataset.label_maps=/maps"]).cfg)
    assert "dataset.label_maps=/maps is not read with dataset.coco_masks=painted" in fault.what
    assert faults(one(["dataset=coco20i", "dataset.label_maps=/maps", "dataset.coco_masks=maps"]).cfg) == []


def test_a_misspelt_report_is_a_fault() -> None:
    [fault] = faults(one(["report=table3_component"]).cfg)
    assert fault.what.startswith("report=table3_component ")
    assert "table3_components" in fault.fix
    assert faults(one(["report=table3_components"]).cfg) == []


def test_the_reports_of_the_schema_are_those_that_can_be_made() -> None:
    from fsseg.report.experiments import REPORTS

    assert set(schema.REPORTS) == set(REPORTS)


@pytest.mark.parametrize("group", [schema.DatasetConfig, schema.MethodConfig, schema.BackboneConfig])
def test_every_choice_of_a_group_has_its_schema_and_its_file(group: type[schema.Choice]) -> None:
    files = {path.stem for path in (config_folder() / group.GROUP).glob("*.yaml")}
    assert set(group.choices()) == files


@pytest.mark.parametrize("group", [schema.DatasetConfig, schema.MethodConfig, schema.BackboneConfig])
def test_a_name_without_a_schema_is_an_error_that_lists_the_names(group: type[schema.Choice]) -> None:
    with pytest.raises(UserError, match=r"\.name=mnist is unknown") as caught:
        group.target("mnist")
    assert all(name in caught.value.fix for name in group.choices())


def test_each_schema_builds_the_class_of_its_name() -> None:
    from fsseg.data.registry import source_class
    from fsseg.model import method_class

    assert source_class("pascal5i").__name__ == "PascalSource"
    assert source_class("coco20i").__name__ == "CocoSource"
    assert source_class("shapes5i").__name__ == "ShapesSource"
    assert [method_class(name).__name__ for name in ("abcb", "baseline", "pfenet", "bam", "prototype", "hsnet")] == [
        "Abcb",
        "Baseline",
        "Pfenet",
        "Bam",
        "Prototype",
        "Hsnet",
    ]


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_the_stride_of_a_backbone_is_that_of_its_network(name: str) -> None:
    import torch

    from fsseg.model.backbones import build_backbone

    backbone = build_backbone(schema.BackboneConfig(name, pretrained=False))
    stride = schema.BackboneConfig.named(name).STRIDE
    assert backbone(torch.zeros(1, 3, 2 * stride + 1, 2 * stride + 1))["layer4"].shape[2:] == (3, 3)


@pytest.mark.parametrize(("name", "count"), [("shapes5i", 20), ("pascal5i", 20), ("coco20i", 80)])
def test_the_number_of_classes_is_that_of_the_folds(name: str, count: int) -> None:
    from fsseg.data.folds import COCO_CLASSES, VOC_CLASSES
    from fsseg.data.sources.shapes_draw import CLASSES

    assert count == schema.DatasetConfig.named(name).NUM_CLASSES
    assert count == len({"shapes5i": CLASSES, "pascal5i": VOC_CLASSES, "coco20i": COCO_CLASSES}[name])


def test_composing_and_checking_a_grid_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from fsseg.config.compose import composer; from fsseg.config.checks import faults\n"
        "with composer() as c:\n"
        "    for _, made in c.grid(['dataset=pascal5i,shapes5i', 'method=abcb,prototype']):\n"
        "        assert not faults(made.cfg)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0


@pytest.mark.parametrize("key", ["shot", "fold", "name", "train", "dataset", "protocol", "sync"])
def test_what_was_taken_out_of_the_configuration_is_told_with_its_key(key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key} (was taken out of the configuration|has no value)") as caught:
        validate(compose([f"~{key}"]).cfg)
    assert f"~{key}" in caught.value.fix


def test_an_interpolation_to_a_value_of_another_type_is_told() -> None:
    with pytest.raises(UserError, match="num_folds"):
        compose(["dataset.num_folds=${name}"])


@pytest.mark.parametrize(
    "line", ["eval.background_shifts=[[[]]]", "protocol.seeds=[[1]]", "dataset.scale_range=[[1],2]"]
)
def test_a_list_in_place_of_a_number_is_told(line: str) -> None:
    with pytest.raises(UserError, match=line.partition("=")[0].replace(".", r"\.")):
        validate(compose([line]).cfg)
