"""What `fsseg.config.hydra_internals` needs of Hydra beyond its public interface. A new Hydra starts with this file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import run_job
from hydra.errors import ConfigCompositionException
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

import fsseg
import fsseg.config.entry
from fsseg.config.compose import config_folder
from fsseg.config.flags import arranged
from fsseg.config.hydra_internals import (
    BasicLauncher,
    also_search,
    apply_overrides,
    flags_parser,
    group_repository,
    interpolation,
    look_before_reading,
    look_before_running,
    split_line,
)


@pytest.fixture
def loader() -> Iterator[Any]:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def test_hydra_is_of_the_version_whose_internals_are_known() -> None:
    assert hydra.__version__.split(".")[:2] == ["1", "3"]


def test_no_other_module_touches_them() -> None:
    package = Path(fsseg.__file__).parent
    users = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if "hydra._int" in path.read_text()}
    assert users == {"config/hydra_internals.py"}


def test_a_line_is_split_into_the_product_of_its_choices_in_order(loader: Any) -> None:
    assert split_line(loader, ["fold=0,1", "seed=range(0,2)", "protocol.seeds=[0,1],[2]", "name='a,b'"]) == [
        (f"fold={fold}", f"seed={seed}", f"protocol.seeds={seeds}", "name='a,b'")
        for fold in (0, 1)
        for seed in (0, 1)
        for seeds in ("[0,1]", "[2]")
    ]
    assert split_line(loader, []) == [()]


def test_an_interpolation_stays_as_it_was_written(loader: Any) -> None:
    """Hydra itself escapes one without quotes; in quotes a text with such escapes is left alone."""
    words = [
        "variant=lr${train.lr}",
        "name='a${b}'",
        "protocol.seeds=[${seed},1]",
        r"device='$\{x\}'",
        "dataset.root=${a:b,c}",
    ]
    assert split_line(loader, words) == [tuple(words)]
    assert split_line(loader, ["train.lr=0.1,${a.b},'${c}'"]) == [
        ("train.lr=0.1",),
        ("train.lr=${a.b}",),
        ("train.lr='${c}'",),
    ]


def test_a_further_folder_comes_where_hydra_puts_config_dir(loader: Any, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    (tmp_path / "train.yaml").write_text("never: read\n")
    also_search(loader, str(tmp_path))
    assert [source.provider for source in loader.get_search_path().get_path()][-2:] == ["command-line", "schema"]
    assert loader.load_configuration("train", ["experiment=mine"], run_mode=RunMode.RUN).name == "mine"


def test_overrides_are_put_into_a_composed_configuration(loader: Any) -> None:
    cfg = OmegaConf.create({"train": {"lr": 0.1, "epochs": 3}, "name": "runs"})
    OmegaConf.set_struct(cfg, True)
    parser = OverridesParser.create(config_loader=loader)
    apply_overrides(parser.parse_overrides(["train.lr=0.5", "+extra=1", "~name"]), cfg)
    assert cfg == {"train": {"lr": 0.5, "epochs": 3}, "extra": 1}
    with pytest.raises(ConfigCompositionException, match=r"train\.lrr"):
        apply_overrides(parser.parse_overrides(["train.lrr=0.5"]), cfg)


def test_the_repository_knows_groups_also_of_a_searchpath(loader: Any, tmp_path: Path) -> None:
    (tmp_path / "colour").mkdir()
    (tmp_path / "colour" / "red.yaml").write_text("# @package _global_\n")

    def repository(*overrides: str) -> Any:
        return group_repository(loader, loader.load_configuration("train", list(overrides), run_mode=RunMode.MULTIRUN))

    assert repository().group_exists("dataset")
    assert repository().group_exists("hydra/launcher")
    assert not repository().group_exists("fold")
    assert not repository().group_exists("colour")
    assert repository(f"hydra.searchpath=[file://{tmp_path}]").group_exists("colour")


def test_a_file_is_looked_at_before_it_is_read(tmp_path: Path) -> None:
    seen = []

    def check(path: str) -> None:
        seen.append(Path(path).name)
        raise ValueError("no")

    Plugins.instance()
    source = SourcesRegistry.instance().resolve("file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "load_config", lambda self, config_path: pytest.fail("read"))
        look_before_reading(check)
        (tmp_path / "one.yaml").write_text("a: 1\n")
        with pytest.raises(ValueError, match="no"):
            source("file", str(tmp_path)).load_config("one")
    assert seen == ["one.yaml"]


def test_a_loader_of_another_kind_has_no_repository() -> None:
    assert group_repository(object(), OmegaConf.create()) is None  # type: ignore[arg-type]


def test_the_default_launcher_is_the_class_that_ours_stand_in_for(loader: Any) -> None:
    cfg = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
    assert issubclass(BasicLauncher, Launcher)
    assert cfg.hydra.launcher._target_ == f"{BasicLauncher.__module__}.{BasicLauncher.__qualname__}"


def test_an_interpolation_is_resolved_anew_each_time_it_is_asked() -> None:
    cfg = OmegaConf.create({"a": {"b": "${c} and ${.d}", "d": [1], "e": "${.d}"}, "c": 1})
    text, other = interpolation(cfg.a, "b"), interpolation(cfg.a, "e")
    assert (text(), other()) == ("1 and [1]", [1])
    cfg.c, cfg.a.d = 2, [3]
    assert (text(), other()) == ("2 and [3]", [3])
    del cfg.c
    with pytest.raises(InterpolationKeyError):
        text()


def test_a_single_run_is_looked_at_before_a_folder_is_made(tmp_path: Path) -> None:
    module = hydra._internal.hydra

    def check(config: DictConfig) -> None:
        assert list(config.hydra.overrides.hydra) == ["hydra.run.dir=made"]
        raise ValueError(config.fold)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(module, "run_job", run_job)
        look_before_running(check)
        with (
            initialize_config_dir(str(config_folder()), job_name="train", version_base="1.3"),
            pytest.raises(ValueError, match="3"),
        ):
            GlobalHydra.instance().hydra.run("train", lambda cfg: pytest.fail("ran"), ["fold=3", "hydra.run.dir=made"])
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "arranged_line"),
    [
        ("-m fold=0,1", "-m fold=0,1"),
        ("fold=0,1 -m", "fold=0,1 -m"),
        ("fold=0 -m shot=1,5", "fold=0 shot=1,5 -m"),
        ("fold=0 --config-dir a shot=1 --cfg job seed=2", "fold=0 shot=1 seed=2 --config-dir a --cfg job"),
    ],
)
def test_overrides_may_stand_on_both_sides_of_a_flag(line: str, arranged_line: str) -> None:
    assert arranged(line.split()) == arranged_line.split()
    overrides = [word for word in line.split() if "=" in word]
    assert flags_parser().parse_args(arranged_line.split()).overrides == overrides
