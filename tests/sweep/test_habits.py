"""Launchers of Hydra's own packages: what becomes of a line with them, and of its second start."""

from __future__ import annotations

import logging
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from sweeps import REPO, Sweep, states, wait_until

import fsseg.config.entry  # noqa: F401  registers the schemas
from fsseg.sweep.launchers.habit import adopt


def of_line(*overrides: str) -> DictConfig:
    """The configuration of a sweep as Hydra gives it to the sweeper."""
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        return GlobalHydra.instance().config_loader().load_configuration("train", list(overrides), RunMode.MULTIRUN)


def settings(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config.hydra.launcher)  # type: ignore[return-value]


def adopted(*overrides: str) -> dict[str, Any]:
    config = of_line(*overrides)
    adopt(config)
    return settings(config)


def test_submitits_slurm_is_fssegs_with_the_resources_that_it_asks_for() -> None:
    found = adopted("hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.mem_gb=9")
    assert found["_target_"] == "hydra_plugins.fsseg_launchers.SlurmLauncher"
    assert (found["partition"], found["mem_gb"]) == ("gpu", 9)
    assert (found["gpus_per_node"], found["cpus_per_task"], found["array_parallelism"]) == (None, None, 256)
    # an hour, no requeue, and pickles that a later job of the same number would read are no choices of the user
    assert (found["timeout_min"], found["max_num_timeout"], found["poll_seconds"]) == (1440, 10, 10.0)
    assert found["additional_parameters"] == {"requeue": True}
    assert "now:" in found["submitit_folder"]
    preset = settings(of_line("hydra/launcher=slurm"))
    assert {k: found[k] for k in ("submitit_folder", "timeout_min")} == {
        k: preset[k] for k in ("submitit_folder", "timeout_min")
    }


def test_what_the_line_says_is_kept_also_if_it_is_the_launchers_default() -> None:
    found = adopted(
        "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60", "hydra.launcher.max_num_timeout=0",
        "+hydra.launcher.additional_parameters.mail-user=me", "hydra.launcher.submitit_folder=/logs",
    )  # fmt: skip
    assert (found["timeout_min"], found["max_num_timeout"], found["submitit_folder"]) == (60, 0, "/logs")
    assert found["additional_parameters"] == {"requeue": True, "mail-user": "me"}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """fsseg's loggers hand nothing on to the root logger, at which pytest listens."""
    logging.getLogger("fsseg.sweep").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("fsseg.sweep").removeHandler(caplog.handler)


def test_they_are_fssegs_under_any_sweeper() -> None:
    from hydra.core.plugins import Plugins

    config = of_line("hydra/launcher=submitit_slurm", "hydra/sweeper=basic", "hydra.launcher.partition=gpu")
    context: Any = None
    launcher: Any = Plugins.instance().instantiate_launcher(context, lambda cfg: None, config)
    assert type(launcher).__name__ == "SlurmLauncher"
    assert launcher.queues
    assert launcher.params["partition"] == "gpu"


def test_the_machines_settings_of_slurm_count_for_submitits_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "machine.yaml"
    file.write_text("launchers: {slurm: {partition: here, account: lab, timeout_min: 90}}\n")
    monkeypatch.setenv("FSSEG_MACHINE", str(file))
    found = adopted("hydra/launcher=submitit_slurm", "hydra.launcher.account=mine")
    assert (found["partition"], found["account"], found["timeout_min"]) == ("here", "mine", 90)


def test_submitits_local_is_fssegs_and_says_what_it_does_not_have(said: pytest.LogCaptureFixture) -> None:
    config = of_line("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "hydra.launcher.tasks_per_node=2")
    adopt(config)
    found = settings(config)
    assert found["_target_"] == "hydra_plugins.fsseg_launchers.LocalLauncher"
    assert (found["tasks_per_node"], found["workers"], found["gpus_per_node"]) == (2, None, None)
    assert "hydra/launcher=local" in said.text
    assert "it has no timeout_min" in said.text


@pytest.mark.parametrize("name", ["basic", "local", "slurm"])
def test_fssegs_launchers_stay_as_they_are(name: str) -> None:
    assert adopted(f"hydra/launcher={name}") == settings(of_line(f"hydra/launcher={name}"))


def test_of_another_launcher_it_is_said_what_it_lacks(said: pytest.LogCaptureFixture) -> None:
    config = of_line()
    with open_dict(config.hydra):
        config.hydra.launcher = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}
        config.hydra.runtime.choices["hydra/launcher"] = "joblib"
    before = settings(config)
    adopt(config)
    assert settings(config) == before
    (line,) = {record.getMessage() for record in said.records}
    assert line.startswith("hydra/launcher=joblib is not fsseg's: a cell that is killed may end the sweep")


def test_with_submitits_local_a_killed_cell_costs_only_itself(sweep: Sweep) -> None:
    line = ("-m", "fold=0,1", "hydra/launcher=submitit_local")
    code, output = sweep.run(*line, FAKE_0="kill")
    assert code == 1
    assert states(output) == ["failed", "done"]
    assert "killed by SIGKILL" in output
    code, output = sweep.run(*line)
    assert code == 0
    assert "1 of 2 cells done, 1 to run" in output


def test_with_submitits_slurm_a_second_start_submits_nothing_again(sweep: Sweep) -> None:
    """The cluster is a stand-in whose jobs wait for ever."""
    commands = sweep.folder / "bin"
    commands.mkdir()
    calls = sweep.folder / "calls"
    told = {"sbatch": f"echo x >> {calls}; echo 'Submitted batch job 12'",
            "squeue": "echo 12_0 12 PENDING 0 Resources; echo 12_1 13 PENDING 0 Resources",
            "srun": "true", "sacct": "true", "scontrol": "echo ClusterName = lab", "scancel": "true"}  # fmt: skip
    for name, text in told.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(stat.S_IRWXU)
    line = ("-m", "fold=0,1", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu")
    path = f"{commands}:/usr/bin:/bin"
    first = sweep.start(*line, PATH=path)
    wait_until(lambda: any("12_1" in record.read_text() for record in sweep.folder.rglob("sweeps/*.json")))
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate()
    assert "with timeout_min=1440" in output
    code, output = sweep.run(*line, PATH=path)
    assert code == 0, output
    assert calls.read_text() == "x\n"
    assert "2 in other hands" in output
    assert "SLURM job 12_1" in output
