"""`device=auto`: a GPU that a job was given is used, or missed in two lines; the CPU only where none was given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import cell_of, composed

from fsseg.cell.models import State
from fsseg.engine import devices
from fsseg.engine.devices import choose_device, forget_peak, peak_memory, taken_by
from fsseg.errors import UserError
from fsseg.run import run

NAMES = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(RuntimeError("no driver\nmore")))


@pytest.mark.parametrize(
    "said", ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=GPU-8932f937", "SLURM_JOB_GPUS=0", "SLURM_STEP_GPUS=2",
             "SLURM_GPUS_ON_NODE=1"],
)  # fmt: skip
def test_a_gpu_that_was_given_and_is_not_seen_ends_the_run(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*said.split("="))
    with pytest.raises(UserError) as caught:
        choose_device("auto")
    assert caught.value.what == f"{said} says that this process was given a GPU, but torch sees none (no driver)"
    assert "device=cpu" in caught.value.fix
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "said", ["", "CUDA_VISIBLE_DEVICES=", "CUDA_VISIBLE_DEVICES=-1", "CUDA_VISIBLE_DEVICES=NoDevFiles",
             "SLURM_GPUS_ON_NODE=0", "SLURM_JOB_GPUS=", "CUDA_VISIBLE_DEVICES= SLURM_JOB_GPUS=0"],
)  # fmt: skip
def test_without_a_gpu_given_auto_is_the_cpu(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in said.split():
        monkeypatch.setenv(*word.split("="))
    assert choose_device("auto") == torch.device("cpu")


def test_torchs_own_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that was built without CUDA asserts; one that sees no GPU under these names says nothing."""
    monkeypatch.setattr(
        torch.cuda, "init", lambda: (_ for _ in ()).throw(AssertionError("Torch not compiled with CUDA"))
    )
    assert devices._why_no_gpu() == "Torch not compiled with CUDA"
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert devices._why_no_gpu() == "it names none of the GPUs of this machine"


def test_a_run_of_such_a_job_ends_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    c = composed(tmp_path / "shapes5i", tmp_path / "outputs", "device=auto")
    with pytest.raises(UserError, match="SLURM_JOB_GPUS=0 says"):
        run(c.config, c.task_overrides)
    told = cell_of(c).status()
    assert told is not None
    assert told.state == State.FAILED
    assert (told.reason or "").startswith("SLURM_JOB_GPUS=0 says that this process was given a GPU")
    assert not cell_of(c).checkpoint.exists()
    assert not (tmp_path / "shapes5i").exists()  # no data were made


def test_a_look_at_what_a_part_takes_leaves_the_peak_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that counts as torch does: what is in use, and the most of it since it was asked to begin anew."""
    device, now, most = torch.device("cuda", 0), 0, 0

    def use(change: int) -> None:
        nonlocal now, most
        now += change
        most = max(most, now)

    def anew(_: torch.device) -> None:
        nonlocal most
        most = now

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: most)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", anew)
    forget_peak(device)
    use(900)
    use(-800)
    assert taken_by(lambda: (use(50), use(-50)), device) == 50
    assert taken_by(lambda: (use(20), use(-10)), device) == 20
    assert peak_memory(device) == 900
    use(1000)
    assert peak_memory(device) == 1110
    forget_peak(device)
    assert peak_memory(device) == 1110 == now
    use(-1110)
    forget_peak(device)
    assert peak_memory(device) == 0
