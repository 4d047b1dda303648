"""A job runs what its sweep recorded, whatever becomes of the YAML files meanwhile, and says what else has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_directories import KEY, make_run
from sweeps import Sweep, states, wait_until

from fsseg.cell import attempt
from fsseg.cell.attempt import AttemptFile, Submission
from fsseg.cell.sweeps import sweeps_of

EXPERIMENT = "# @package _global_\nname: s\nvariant: edited\ntrain:\n  lr: {}\n"


def config_dir(folder: Path) -> Path:
    """A folder for --config-dir with the experiment `mine`; returns its file."""
    file = folder / "extra" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(EXPERIMENT.format(0.011))
    return file


@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_a_cell_that_waits_does_not_see_an_edited_file(sweep: Sweep, tmp_path: Path, launcher: str) -> None:
    file = config_dir(tmp_path)
    line = ("-m", "--config-dir", str(tmp_path / "extra"), "experiment=mine", "fold=0,1")
    workers = ("hydra/launcher=local", "hydra.launcher.workers=1") if launcher == "local" else ()
    process = sweep.start(*line, *workers, FAKE_0="part:go", FAKE_GO=str(tmp_path))
    cells = [sweep.cell(fold, variant="edited") for fold in (0, 1)]
    wait_until(cells[0].claim_file.exists)
    file.write_text(EXPERIMENT.format(0.5))
    (tmp_path / "go").write_text("")
    output, _ = process.communicate()
    assert states(output) == ["done", "done"], output
    [record] = [s.record for s in sweeps_of([tmp_path / "outputs" / "s"])]
    assert record.line[:2] == ["experiment=mine", "fold=0,1"]
    assert record.launcher == launcher
    assert record.end == "came to its end"
    assert [record.config_of(cell)["train"]["lr"] for cell in record.cells] == [0.011, 0.011]
    results = [cell.result() for cell in cells]
    assert [r.fingerprint for r in results if r is not None] == [cell.fingerprint for cell in record.cells]
    assert not list((tmp_path / "outputs/s/sweeps").glob("*.claim"))

    code, output = sweep.run(*line)  # by the file as it is now these are other cells
    assert code == 1
    assert output.count("train.lr: 0.011 there, 0.5 now\n  -> keep both") == 2


def test_a_file_that_is_part_of_the_identity_may_not_change_meanwhile(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_text("a")
    process = sweep.start(
        "-m", "fold=0,1", "hydra/launcher=local", "hydra.launcher.workers=1", "variant=v",
        f"checkpoint={tmp_path / 'last.pt'}", FAKE_0="part:go", FAKE_GO=str(tmp_path),
    )  # fmt: skip
    wait_until(sweep.cell(0, variant="v").claim_file.exists)
    (tmp_path / "last.pt").write_text("b")
    (tmp_path / "go").write_text("")
    output, _ = process.communicate()
    assert process.returncode == 1
    assert states(output) == ["done", "failed"]
    seen = sweep.cell(1, variant="v").look()
    assert seen.state == "failed"
    assert "not what was submitted: fingerprint" in seen.reason
    assert not sweep.cell(1, variant="v").result_file.exists()


@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_what_a_line_interpolates_is_recorded_with_the_values_of_each_cell(sweep: Sweep, launcher: str) -> None:
    line = ("train.lr=0.1,0.2", "variant='lr${train.lr}'", "train.momentum='${oc.env:MOMENTUM}'")
    code, output = sweep.run("-m", *line, f"hydra/launcher={launcher}", MOMENTUM="0.5")
    assert (code, states(output)) == (0, ["done", "done"]), output
    [record] = [s.record for s in sweeps_of([sweep.folder / "outputs" / "s"])]
    assert record.line[:3] == list(line)
    assert [cell.overrides[:3] for cell in record.cells] == [
        [f"train.lr={lr}", f"variant='lr{lr}'", "train.momentum='0.5'"] for lr in (0.1, 0.2)
    ]
    results = [sweep.cell(0, variant=f"lr{lr}").result() for lr in (0.1, 0.2)]
    assert [r.fingerprint for r in results if r is not None] == [cell.fingerprint for cell in record.cells]
    assert [record.config_of(cell)["train"]["lr"] for cell in record.cells] == [0.1, 0.2]


def test_an_attempt_says_how_the_code_has_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, KEY)
    then = {"commit": "a" * 40, "dirty": False, "source": "0001"}
    monkeypatch.setattr(attempt, "code_state", lambda: then)
    with Submission("sweeps/3.json", then).known():
        assert AttemptFile(run).change == ""
    monkeypatch.setattr(attempt, "code_state", lambda: {"commit": "a" * 40, "dirty": True, "source": "0002"})
    with Submission("sweeps/3.json", then).known():
        change = AttemptFile(run).change
    assert change == (
        "the code has changed since sweeps/3.json was written: commit aaaaaaaaaa, source 0001 then, "
        "commit aaaaaaaaaa with changes that are not committed, source 0002 now"
    )
    written = json.loads((run.attempts / "2.json").read_text())
    assert (written["sweep"], written["submitted"], written["change"]) == ("sweeps/3.json", then, change)
    assert AttemptFile(run).change == ""  # a run that was not submitted
