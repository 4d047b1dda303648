"""The lines of docs/engines, each as several pods: no common process numbers, host names or network, one folder."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeps import FAKE, wait_until

from fsseg.cell.record import RunDirectory, find_runs

from .conftest import REPO
from .pod import Plan, Pod, missing, of_manifest

pytestmark = pytest.mark.process
ENGINES = REPO / "docs" / "engines"


@pytest.fixture(scope="module", autouse=True)
def _name_spaces() -> None:
    if why := missing():
        if os.environ.get("FSSEG_REQUIRE_SLURM"):
            pytest.fail(f"FSSEG_REQUIRE_SLURM is set, but name spaces cannot be made: {why}")
        pytest.skip(f"name spaces need root: {why}")


FOLDERS = ("JPEGImages", "ImageSets/Segmentation", "SegmentationClass", "annotations", "train2014", "val2014")


class Cluster:
    """Pods that share a folder of outputs and one of data; their cells do not train."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs, self.data = folder / "outputs", folder / "data"
        self.volumes = {"fsseg-outputs": self.outputs, "fsseg-data": self.data}
        self.pods: list[Pod] = []
        for name in FOLDERS:
            (self.data / name).mkdir(parents=True)
        for split in ("train", "val"):
            (self.data / f"annotations/instances_{split}2014.json").touch()
        for name in ("train", "val", "train_noval"):  # what the pool of the paper's experiments is derived from
            (self.data / f"ImageSets/Segmentation/{name}.txt").write_text(f"2007_{name}\n")
        self.outputs.mkdir()

    def start(self, plan: Plan, **environment: str) -> Pod:
        plan.environment.update(environment, PYTHONWARNINGS="ignore", OMP_NUM_THREADS="1")
        pod = Pod(plan, self.folder / f"{plan.hostname}.{len(self.pods)}.log")
        self.pods.append(pod)
        return pod

    def hung(self) -> list[RunDirectory]:
        return [RunDirectory(path.parent) for path in self.outputs.rglob("hung") if path.read_text()]

    def said(self) -> str:
        return "".join(pod.log.read_text() for pod in self.pods)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    one = Cluster(tmp_path)
    yield one
    for pod in one.pods:
        pod.kill()


MORE = ["dataset.root=/mnt/data", "lease_seconds=2"]


def job(cluster: Cluster, index: int) -> Plan:
    """A pod of docs/engines/kubernetes.yaml, its program replaced."""
    (manifest,) = [one for one in yaml.safe_load_all((ENGINES / "kubernetes.yaml").read_text()) if one["kind"] == "Job"]
    plan = of_manifest(manifest["spec"]["template"]["spec"], f"fsseg-paper-{index}", cluster.volumes)
    assert plan.command[:2] == ["python", "train.py"]
    plan.command = [sys.executable, str(FAKE), *plan.command[2:], *MORE]
    return plan


def test_pods_of_the_kubernetes_job_divide_the_cells_and_those_of_a_killed_pod_are_taken_over(cluster: Cluster) -> None:
    lasting = cluster.start(job(cluster, 0), **{f"FAKE_{fold}": "sleep:0.1" for fold in range(4)})
    evicted = cluster.start(job(cluster, 1), FAKE_2="hang")
    wait_until(lambda: len(cluster.hung()) == 1)
    lost = cluster.start(job(cluster, 2), FAKE_3="hang")
    (first,) = cluster.hung()
    assert evicted.stop() == 143
    claim = first.claim()  # another pod may have the cell by now
    assert claim is None or claim.holder.fields["host"] != "fsseg-paper-1"
    wait_until(lambda: len(cluster.hung()) == 2)
    (second,) = [run for run in cluster.hung() if run.directory != first.directory]
    lost.kill()
    assert second.claim_file.exists()  # so that it is free only after its lease
    again = cluster.start(job(cluster, 1))  # has the host name of the first pod 1
    assert (lasting.wait(), again.wait()) == (0, 0), cluster.said()

    runs = find_runs([cluster.outputs / "paper"])
    keys = {run.find_key() for run in runs}
    assert len(runs) == len(keys) == 32
    assert all(run.result() is not None for run in runs)
    finished = [json.loads((run.directory / "starts.json").read_text()) for run in runs]
    assert [len(starts) for starts in finished] == [1] * 32
    assert "on fsseg-paper-2, which gives no sign of life" in cluster.said()
    assert not list(cluster.outputs.rglob("claim.json"))


def sky_job(cluster: Cluster, number: int) -> Plan:
    """A job of docs/engines/skypilot.yaml, its program replaced, with two cells of its grid."""
    task: dict[str, Any] = yaml.safe_load((ENGINES / "skypilot.yaml").read_text())
    ours = shlex.join([sys.executable, str(FAKE)])
    assert task["run"].count("~/fsseg/bin/python train.py") == 1
    line = task["run"].strip().replace("~/fsseg/bin/python train.py", ours)
    few = ["dataset=pascal5i", "backbone=resnet50", "shot=1", "fold=0,1"]
    volumes = {place: str(cluster.volumes[name]) for place, name in task["volumes"].items()}
    command = ["bash", "-c", f"{line} {shlex.join([*few, *MORE])}"]
    return Plan(command, f"sky-{number}", volumes, environment=task["envs"])


def test_a_cancelled_sky_job_saves_and_another_completes_its_cells(cluster: Cluster) -> None:
    first = cluster.start(sky_job(cluster, 1), FAKE_1="hang")
    wait_until(lambda: len(cluster.hung()) == 1)
    assert first.stop() == 143, cluster.said()
    assert cluster.start(sky_job(cluster, 2)).wait() == 0, cluster.said()
    runs = find_runs([cluster.outputs / "paper"])
    assert [len(json.loads((run.directory / "starts.json").read_text())) for run in runs] == [1, 1]


def test_data_that_are_mounted_read_only_cannot_be_written(cluster: Cluster) -> None:
    plan = job(cluster, 0)
    plan.command = ["sh", "-c", "touch /mnt/outputs/a && touch /dev/shm/b && ! touch /mnt/data/c && hostname"]
    pod = cluster.start(plan)
    assert pod.wait() == 0
    assert pod.log.read_text().splitlines()[-1] == "fsseg-paper-0"
    assert (cluster.outputs / "a").exists()
    assert not Path("/dev/shm/b").exists()
    assert not Path("/mnt/outputs").exists()
