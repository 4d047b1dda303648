"""docs/engines: manifests that Kubernetes' schemas accept, one line for all engines, and what the page says of them."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

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
        assert {e["name"]: e["value"] for e in container["env"]}["FSSEG_DATA"] == "/mnt/data"
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


def test_the_sky_task_has_the_keys_of_sky_0_14() -> None:
    assert set(SKY) <= {"name", "workdir", "num_nodes", "resources", "file_mounts", "volumes", "envs", "setup", "run"}
    assert set(SKY["resources"]) <= {"infra", "accelerators", "cpus", "memory", "use_spot", "job_recovery"}
    volume = yaml.safe_load((ENGINES / "skypilot-volume.yaml").read_text())
    assert set(SKY["volumes"].values()) == {volume["name"], "fsseg-data"}
    assert volume["config"]["access_mode"] == "ReadWriteMany"


def test_the_page_has_the_command_of_each_file_and_names_what_the_files_set() -> None:
    for file in sorted(ENGINES.iterdir()):
        command = file.read_text().splitlines()[0].removeprefix("# ")
        assert command in PAGE.splitlines(), file.name
        assert f"(engines/{file.name})" in PAGE or file.name == "skypilot-volume.yaml"
    (container,) = RUNS["spec"]["template"]["spec"]["containers"]
    spec = RUNS["spec"]["template"]["spec"]
    table = PAGE.partition("| in the manifest |")[2].partition("\n\n")[0]
    assert f"`command: [{', '.join(container['command'])}]`" in table
    assert "/dev/shm" in {m["mountPath"] for m in container["volumeMounts"]}
    for key, value in re.findall(r"`(\w+): (\w+)`", table):
        held = {**RUNS["spec"], **spec, **container["volumeMounts"][1]}
        assert str(held[key]).lower() == value.lower(), key
