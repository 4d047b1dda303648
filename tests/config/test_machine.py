"""Where data lie on a machine, and how it launches: what wins, what is refused, and that no cell is another by it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from fsseg.cell.record import open_cell
from fsseg.config import compose as module
from fsseg.config.checks import faults
from fsseg.config.compose import Composed, Composer, composer, config_folder
from fsseg.config.entry import explained
from fsseg.config.machine import install, machine
from fsseg.config.schema import Config
from fsseg.errors import UserError

ALL = "dataset=pascal5i,coco20i,shapes5i"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "machine.yaml"
    path.write_text("")
    monkeypatch.setenv("FSSEG_MACHINE", str(path))
    return path


def cells(*line: str) -> list[Composed]:
    with composer() as c:
        made = [composed for _, composed in c.grid(line)]
    assert all(isinstance(one, Composed) for one in made), made
    return made  # type: ignore[return-value]


def roots(*line: str) -> list[str]:
    return [one.cfg.dataset.root for one in cells(*line)]


def test_the_first_of_line_environment_and_file_says_where_data_lie(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert roots(ALL) == ["data/VOCdevkit/VOC2012", "data/coco", "data/shapes5i"]
    file.write_text("data: /disk")
    assert roots(ALL) == ["/disk/VOCdevkit/VOC2012", "/disk/coco", "/disk/shapes5i"]
    file.write_text("data: /disk\nroots:\n  coco20i: ~/my coco\n")
    assert roots(ALL) == ["/disk/VOCdevkit/VOC2012", "~/my coco", "/disk/shapes5i"]
    monkeypatch.setenv("FSSEG_DATA", "/env")
    assert roots(ALL) == ["/env/VOCdevkit/VOC2012", "/env/coco", "/env/shapes5i"]
    line = ("data.roots.pascal5i=/a", "data.roots.coco20i='b c'")
    assert roots(ALL, *line) == ["/a", "b c", "/env/shapes5i"]
    assert roots(ALL, *line, "dataset.root=/line") == ["/line"] * 3
    monkeypatch.setenv("FSSEG_DATA", "")  # as not set
    assert roots("dataset=coco20i") == ["~/my coco"]


def test_where_data_lie_is_no_part_of_a_cell(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*line: str) -> list[tuple[str, str]]:
        made = [open_cell(c.cfg, c.resolved, c.task_overrides) for c in cells(*line)]
        return [(str(cell.key), cell.fingerprint) for cell in made]

    # As they were before there was such a thing as machine.yaml.
    known = [
        ("runs/pascal5i/abcb/resnet50/1shot/default/fold2/seed0", "057aece75e14d12e"),
        ("runs/coco20i/abcb/resnet50/1shot/dataset.coco_masks-union/fold0/seed0", "b8338348d5f417df"),
        ("runs/shapes5i/abcb/tiny/1shot/default/fold0/seed0", "d38d293b7aac4a67"),
    ]
    lines = (["dataset=pascal5i", "fold=2"], ["dataset=coco20i", "dataset.coco_masks=union"], [])
    assert [found for line in lines for found in names(*line)] == known
    file.write_text("data: /disk\nroots: {shapes5i: /x}\nlauncher: slurm\nlaunchers: {slurm: {partition: gpu}}")
    assert [found for line in lines for found in names(*line)] == known
    monkeypatch.setenv("FSSEG_DATA", "/env")
    given = ["data.roots.pascal5i=/a", "data.roots.coco20i=/b"]
    assert [found for line in lines for found in names(*line, *given)] == known


def test_such_cells_are_made_from_one_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("data: /disk")
    composed: list[Sequence[str]] = []
    slowly = Composer._slowly
    monkeypatch.setattr(module.Composer, "_slowly", lambda self, job: composed.append(job) or slowly(self, job))
    made = cells("dataset=pascal5i,coco20i", "data.roots.pascal5i=/a,/b", "fold=0,1", "seed=range(0,5)")
    assert all(isinstance(one.cfg, Config) for one in made)
    assert {(one.cfg.dataset.name, one.cfg.dataset.root) for one in made} == {
        ("pascal5i", "/a"), ("pascal5i", "/b"), ("coco20i", "/disk/coco")}  # fmt: skip
    assert composed == [("dataset=pascal5i",), ("dataset=coco20i",)]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.roots.pascal=/a", "data.roots.pascal: there is no such configuration key"),
        ("data.roots=/a", "data.roots: Cannot assign"),
        ("data.roots.coco20i=[1]", "data.roots.coco20i"),
        ("data.roots.coco20i=''", "data.roots="),
        ("data.roots.coco20i='a\nb'", "data.roots="),
        ("~data", "data was taken out"),
    ],
)
def test_a_wrong_root_on_the_line_is_told_by_its_key(override: str, says: str) -> None:
    with composer() as c:
        try:
            (told,) = faults(c.one([override]).cfg)
        except UserError as error:
            told = error
    assert told.what.startswith(says)
    assert told.fix


def test_a_number_that_names_a_folder_stays_as_it_is_written() -> None:
    assert roots("dataset=coco20i", "data.roots.coco20i=1.10") == ["1.10"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dta: /x", "dta: there is no such key -> did you mean data?"),
        ("roots: {voc: /x}", "roots.voc: there is no such key -> there are: shapes5i, pascal5i, coco20i"),
        ("launchers: {submitit_slurm: {}}", "launchers.submitit_slurm: there is no such key"),
        ("data: 5", "data: 5 is no folder"),
        ("data: ''", "data: '' is no folder"),
        ("data: relative/path", "data: relative/path is a relative path -> begin it with / or ~/"),
        ("roots: {coco20i: [a]}", "roots.coco20i: ['a'] is no folder"),
        ("roots: /x", "roots is /x, and must be keys with values"),
        ("launchers: {slurm: 5}", "launchers.slurm is 5, and must be"),
        ("launcher: 5", "launcher: 5 is no name"),
        ("- a", "the file is ['a'], and must be"),
        ("a: [", ", line 2: is no YAML"),
        ("data: &a /x\nroots: {coco20i: *a}", "it has anchors or tags"),
        ("data: " + "x" * 2_000_000, "has more than 1 MB"),
    ],
)
def test_a_faulty_file_is_told_with_its_key(text: str, says: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        machine()
    told = f"{refused.value.what} -> {refused.value.fix}"
    assert told.startswith(str(file))
    assert says in told
    with pytest.raises(UserError, match=r"machine\.yaml"):
        cells()


def test_the_example_of_the_documentation_is_read(file: Path) -> None:
    page = (config_folder().parent / "docs" / "data.md").read_text()
    file.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    assert roots(ALL) == ["/data/VOCdevkit/VOC2012", "~/sets/coco2014", "/data/shapes5i"]
    name, node = launcher()
    assert (name, node.partition, node.account) == ("slurm", "gpu", "lab")
    assert launcher("hydra/launcher=local")[1].workers == 4


def test_the_file_is_in_the_users_configuration_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fsseg").mkdir()
    (tmp_path / "fsseg" / "machine.yaml").write_text("data: /mine")
    monkeypatch.delenv("FSSEG_MACHINE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert machine().data == "/mine"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert (machine().file, machine().is_there) == (tmp_path / "home" / ".config" / "fsseg" / "machine.yaml", False)
    monkeypatch.setenv("FSSEG_MACHINE", str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match="FSSEG_MACHINE"):
        machine()


def test_a_file_that_changes_is_read_again_and_a_fault_in_the_middle_is_the_cells(file: Path) -> None:
    file.write_text("data: /one")
    with composer() as c:
        (one,) = (composed for _, composed in c.grid(["dataset=coco20i"]))
        assert isinstance(one, Composed)
        assert one.cfg.dataset.root == "/one/coco"
        file.write_text("dta: /two/")
        os.utime(file, ns=(1, 1))
        ((_, two),) = c.grid(["dataset=coco20i", "seed=1"])
    assert isinstance(two, UserError)
    assert two.what == f"{file}: dta: there is no such key"


# ------------------------------------------------------------------------------------------------------ launchers

DEFAULTS = "launcher: slurm\nlaunchers:\n  slurm: {partition: gpu, timeout_min: 9}\n  local: {workers: 4}\n"


def launcher(*line: str, multirun: bool = True) -> Any:
    with initialize_config_dir(str(config_folder()), job_name="train", version_base="1.3"), explained():
        install(multirun)
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        loader = GlobalHydra.instance().config_loader()
        hydra = loader.load_configuration("train", list(line), run_mode=mode).hydra
        return hydra.runtime.choices["hydra/launcher"], hydra.launcher


def test_the_machine_launches_where_the_line_names_no_launcher(file: Path, tmp_path: Path) -> None:
    assert launcher()[0] == "basic"
    file.write_text(DEFAULTS)
    name, node = launcher()
    assert (name, node.partition, node.timeout_min, node.cpus_per_task) == ("slurm", "gpu", 9, 8)  # 8: the preset's own
    assert launcher("hydra.launcher.partition=cpu")[1].partition == "cpu"
    name, node = launcher("hydra/launcher=local")
    assert (name, node.workers) == ("local", 4)
    assert launcher("hydra/launcher=basic")[0] == "basic"
    assert launcher(multirun=False)[0] == "basic"

    (tmp_path / "experiment").mkdir()
    experiment = tmp_path / "experiment" / "mine.yaml"
    experiment.write_text("# @package _global_\nhydra: {launcher: {timeout_min: 1440}}\n")  # what the preset has, too
    mine = (f"hydra.searchpath=[{tmp_path}]", "experiment=mine")
    assert launcher(*mine)[1].timeout_min == 1440
    experiment.write_text("# @package _global_\ndefaults:\n  - override /hydra/launcher: basic\n")
    assert launcher(*mine)[0] == "basic"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("launcher: slrum", "launcher: slrum: there is no such launcher"),
        ("launcher: slurm\nlaunchers: {slurm: {partitoin: gpu}}", "launchers.slurm.partitoin: there is no such key"),
        ("launcher: local\nlaunchers: {local: {workers: many}}", "launchers.local.workers: Value 'many' of type 'str'"),
    ],
)
def test_a_faulty_launcher_default_is_told_with_file_and_key(text: str, says: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        launcher()
    assert refused.value.what.startswith(f"{file}: {says}")
    assert refused.value.fix


def test_a_misspelt_setting_is_told_also_of_a_launcher_that_is_not_chosen(file: Path) -> None:
    file.write_text("launchers: {slurm: {partion: gpu}}\n")
    with pytest.raises(UserError) as refused:
        launcher("hydra/launcher=local")
    assert refused.value.what == f"{file}: launchers.slurm.partion: there is no such key"
    assert refused.value.fix == "did you mean partition?"


def test_a_launcher_that_the_line_misspells_is_not_blamed_on_the_machine() -> None:
    with pytest.raises(UserError) as refused:
        launcher("hydra/launcher=slrum")
    assert refused.value.what == "hydra/launcher=slrum: there is no such hydra/launcher"
    assert "machine_" not in refused.value.fix
