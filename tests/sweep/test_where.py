"""`fsseg where`: every row says where, by what and whether it is there, and how to set what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import make_coco, make_voc

from fsseg.sweep.where import places, text


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def rows(*line: str) -> dict[str, tuple[str, str, str]]:
    return {p.name: (p.path, p.by, p.state) for p in places(line)}


def test_each_row_names_what_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "machine.yaml"
    monkeypatch.setenv("FSSEG_MACHINE", str(file))
    make_voc(tmp_path / "voc")
    make_coco(tmp_path / "all" / "coco")
    file.write_text(f"roots: {{pascal5i: {tmp_path}/voc}}\nlauncher: slurm\nlaunchers:\n  slurm: {{partition: gpu}}\n"
                    "  local: {workers: 4}\n")  # fmt: skip
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-0676ba61.pth").write_bytes(b"")
    assert rows("data.roots.coco20i=elsewhere") == {
        "shapes5i": ("data/shapes5i", "default", "is made on first use"),
        "pascal5i": (f"{tmp_path}/voc", f"{file}", "there"),
        "coco20i": ("elsewhere", "the line", "missing: there is no such folder"),
        "outputs": ("outputs", "default", "is made by the first run"),
        "weights": (f"{tmp_path}/torch/hub/checkpoints", "TORCH_HOME", "resnet50, missing: resnet18 resnet101"),
        "machine.yaml": (f"{file}", "FSSEG_MACHINE", "read"),
        "launcher": ("slurm", f"{file}", "partition=gpu"),
        "hydra/launcher=local": ("", f"{file}", "workers=4"),
    }
    monkeypatch.setenv("FSSEG_DATA", "all")
    found = rows("hydra/launcher=local", "output_dir=/tmp")
    assert found["coco20i"] == ("all/coco", "FSSEG_DATA", "there")
    assert found["pascal5i"] == ("all/VOCdevkit/VOC2012", "FSSEG_DATA", "missing: there is no such folder")
    assert found["launcher"] == ("local", "the line", "workers=4")
    assert found["outputs"] == ("/tmp", "the line", "there")


def test_what_a_folder_lacks_is_named_and_how_to_say_where_it_is(tmp_path: Path) -> None:
    make_coco(tmp_path / "coco", year=2017)
    found = places(["data.roots.coco20i=coco"])
    (coco,) = (p for p in found if p.name == "coco20i")
    lacking = ("annotations/instances_train2014.json", "annotations/instances_val2014.json", "train2014", "val2014")
    assert coco.state == f"missing: {', '.join(lacking)}"
    lines = [line.split() for line in text(found).splitlines()]
    assert ["on", "the", "line", "data.roots.pascal5i=FOLDER", "data.roots.coco20i=FOLDER"] in lines
    assert "fsseg prepare dataset=pascal5i --download" in text(found)
    assert "fsseg prepare dataset=coco20i dataset.root=coco --download" in text(found)


def test_a_folder_that_lacks_only_a_list_is_there(tmp_path: Path) -> None:
    make_voc(tmp_path / "a")
    line = ["dataset=pascal5i", f"dataset.root={tmp_path / 'a'}", "protocol.train_pool=merged_5953"]
    found = text(places(line))
    assert "there, but training pool merged_5953" in found
    assert "say where the missing data are" not in found


def test_a_line_with_a_data_set_shows_that_one(tmp_path: Path) -> None:
    make_voc(tmp_path / "a")
    found = places(["dataset=pascal5i", "dataset.root=a"])
    assert [(p.name, p.state) for p in found][:2] == [("pascal5i", "there"), ("outputs", "is made by the first run")]
    assert "FOLDER" not in text(found)
    assert [p.name for p in places(["experiment=paper"])][:3] == ["pascal5i", "coco20i", "outputs"]
