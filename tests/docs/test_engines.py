"""docs/engines: manifests that Kubernetes' schemas accept, one line for all engines, and what the page says of them."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from kubernetes_validate.utils import all_versions

from fsseg.cli.app import app
from fsseg.config.compose import composer
from fsseg.errors import UserError

DOCS = Path(__file__).resolve().parents[2] / "docs"
ENGINES = DOCS / "engines"
PAGE = (DOCS / "engines.md").read_text()
VERSIONS = [v for v in dict.fromkeys(all_versions()) if int(v.split(".")[1]) >= 29]


def manifests(name: str) -> dict[str, dict[str, Any]]:
    """The objects of a file by kind and name."""
    found = yaml.safe_load_all((ENGINES / name).read_text())
    return {f"{one['kind']} {one['metadata']['name']}": one for one in found}


RUNS = manifests("kubernetes.yaml")["Job fsseg-paper"]
OBJECTS = {name: one for file in sorted(ENGINES.glob("kubernetes*.yaml")) for name, one in manifests(file.name).items()}
SKY: dict[str, Any] = yaml.safe_load((ENGINES / "skypilot.yaml").read_text())
SKY_DATA: dict[str, Any] = yaml.safe_load((ENGINES / "skypilot-data.yaml").read_text())
PLACES = {"FSSEG_DATA": "/mnt/data", "TORCH_HOME": "/mnt/data/torch"}


@pytest.mark.parametrize("name", OBJECTS)
def test_kubernetes_accepts_the_manifests(name: str) -> None:
    assert len(VERSIONS) >= 3
    for version in VERSIONS:
        kubernetes_validate.validate(OBJECTS[name], version, strict=True)


def test_a_field_that_kubernetes_does_not_know_would_be_found() -> None:
    wrong = copy.deepcopy(RUNS)
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 120
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_rules_that_no_schema_holds() -> None:
    """The API server refuses backoffLimitPerIndex and podFailurePolicy with other completion modes or policies."""
    spec = RUNS["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 4
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("job", ["Job fsseg-paper", "Job fsseg-data"])
def test_every_mount_has_its_volume_and_every_claim_is_made(job: str) -> None:
    spec = OBJECTS[job]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert {(e["name"], e["value"]) for e in container["env"]} <= PLACES.items()
    claims = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
    assert {f"PersistentVolumeClaim {claim}" for claim in claims} <= set(OBJECTS)


def test_both_engines_start_the_same_line_which_is_the_papers_grid() -> None:
    (container,) = RUNS["spec"]["template"]["spec"]["containers"]
    line = [*container["command"], *container["args"]]
    word, program, *words = shlex.split(SKY["run"])
    assert word == "exec"
    assert [program.rpartition("/")[2], *words] == line
    assert line[:3] == ["python", "train.py", "-m"]
    with composer() as c:
        cells = c.grid(line[3:])
    assert len(cells) == 32
    assert not [found for _, found in cells if isinstance(found, UserError)]
    assert {found.cfg.output_dir for _, found in cells if not isinstance(found, UserError)} == {"/mnt/outputs"}


def test_both_engines_fetch_the_same_data_with_lines_that_the_command_knows() -> None:
    containers = OBJECTS["Job fsseg-data"]["spec"]["template"]["spec"]["containers"]
    lines = [[*container["command"], *container["args"]] for container in containers]
    in_sky = [shlex.split(line) for line in SKY_DATA["run"].splitlines() if "fsseg" in line]
    assert [[program.rpartition("/")[2], *words] for program, *words in in_sky] == lines
    command = typer.main.get_command(app)
    for _, name, *words in lines:
        command.get_command(None, name).make_context(name, words)  # type: ignore[attr-defined]  # raises for an option


@pytest.mark.parametrize("task", [SKY, SKY_DATA], ids=["runs", "data"])
def test_the_sky_tasks_have_the_keys_of_sky_0_14(task: dict[str, Any]) -> None:
    assert task["envs"] == PLACES
    assert set(task) <= {"name", "workdir", "num_nodes", "resources", "file_mounts", "volumes", "envs", "setup", "run"}
    assert set(task["resources"]) <= {"infra", "accelerators", "cpus", "memory", "use_spot", "job_recovery"}
    volume = yaml.safe_load((ENGINES / "skypilot-volume.yaml").read_text())
    assert set(task["volumes"].values()) <= {volume["name"], "fsseg-data"}
    assert volume["config"]["access_mode"] == "ReadWriteMany"


def test_the_page_has_the_command_of_each_file_and_names_what_the_files_set() -> None:
    for file in sorted(ENGINES.iterdir()):
        command = file.read_text().splitlines()[0].removeprefix("# ")
        assert command in PAGE.splitlines(), file.name
        assert f"(engines/{file.name})" in PAGE
    (container,) = RUNS["spec"]["template"]["spec"]["containers"]
    spec = RUNS["spec"]["template"]["spec"]
    table = PAGE.partition("| in the manifest |")[2].partition("\n\n")[0]
    assert f"`command: [{', '.join(container['command'])}]`" in table
    assert "/dev/shm" in {m["mountPath"] for m in container["volumeMounts"]}
    for key, value in re.findall(r"`(\w+): (\w+)`", table):
        held = {**RUNS["spec"], **spec, **container["volumeMounts"][1]}
        assert str(held[key]).lower() == value.lower(), key
